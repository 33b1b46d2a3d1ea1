"""Progress that several threads have to tell."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.results import Progress


class Teller:
    """Calls a progress callback, where there is one, from one thread at a time."""

    def __init__(self, progress: Callable[[Progress], None] | None) -> None:
        self._progress = progress
        self._lock = threading.Lock()

    def __call__(self, progress: Progress) -> None:
        if self._progress is not None:
            with self._lock:
                self._progress(progress)
