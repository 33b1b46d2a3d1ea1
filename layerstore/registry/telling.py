"""Progress, and warnings, that several threads have to tell."""

from __future__ import annotations

import threading

from layerstore.results import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.results import ProgressCallback


class Teller:
    """Calls a progress callback, where there is one, from one thread at a time."""

    def __init__(self, progress: ProgressCallback | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()
        self._warnings: set[str] = set()

    def __call__(self, progress: Progress) -> None:
        if self._progress is not None:
            with self._lock:
                self._progress(progress)

    def warn(self, text: str) -> None:
        """Tell a warning, each one once."""
        with self._lock:
            if self._progress is not None and text not in self._warnings:
                self._warnings.add(text)
                self._progress(Progress("warning", text, 0, None))
