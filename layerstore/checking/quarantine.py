"""Where damaged bytes are put, so that nothing reads them and nobody has lost them."""

from __future__ import annotations

import contextlib
import os

from layerstore.naming import exists
from layerstore.store import durable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.store.layout import Layout


class Quarantine:
    """The directory `quarantine/` of a store: files taken out of their places, and copies of contents of packs.

    Whoever has seen to it removes what is there.
    """

    def __init__(self, layout: Layout) -> None:
        self._root = layout.quarantine

    def take(self, path: str, name: str = "") -> None:
        """Move a file or directory there; nothing happens where it is missing. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError):
            os.rename(path, self._place(name or os.path.basename(path)))

    def copy(self, path: str) -> None:
        """Have a file there, too, under another name of the same file. Raises `OSError`."""
        os.link(path, self._place(os.path.basename(path)))

    def keep(self, name: str, data: bytes) -> None:
        """Write a copy of damaged bytes. Raises `OSError`."""
        durable.write_whole(self._place(name), data)

    def _place(self, name: str) -> str:
        os.makedirs(self._root, mode=0o700, exist_ok=True)
        path, count = f"{self._root}/{name}", 1
        while exists(path):
            count += 1
            path = f"{self._root}/{name}.{count}"
        return path
