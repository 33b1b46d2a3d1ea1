"""What a container changed: its upper directory against the chain below it, as `docker diff` tells it."""

import os
import stat
from pathlib import Path

from layerstore._core.index import Index
from layerstore.results import Change
from layerstore.types import decode_path

_OPAQUE = "trusted.overlay.opaque"
_REDIRECT = "trusted.overlay.redirect"


def changes(upper: Path, index: Index) -> list[Change]:
    """Every path added (A), changed (C) or deleted (D), sorted; a directory with changes inside counts as changed.

    The upper directory alone is walked, and of the chain only what was deleted or moved. `index` is the chain's.
    Reading overlayfs's attributes needs CAP_SYS_ADMIN; without it a moved directory is told as a new one.
    """
    walk = _Walk(index)
    walk.directory(upper, b"", b"")
    return [Change(kind, "/" + decode_path(path)) for path, kind in sorted(walk.found.items())]


class _Walk:
    def __init__(self, index: Index) -> None:
        self._index = index
        self.found: dict[bytes, str] = {}

    def directory(self, upper: Path, shown: bytes, origin: bytes | None) -> None:
        """`shown` is the directory's path, `origin` the chain's directory that shows through it, None for none."""
        for entry in os.scandir(upper):
            name = os.fsencode(entry.name)
            path = _join(shown, name)
            status = entry.stat(follow_symlinks=False)
            was_there = self._index.lookup(path) is not None
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                if was_there:
                    self.found[path] = "D"
                continue
            self.found[path] = "C" if was_there else "A"
            if stat.S_ISDIR(status.st_mode):
                self._inside(Path(entry.path), path, None if origin is None else _join(origin, name))

    def _inside(self, upper: Path, shown: bytes, origin: bytes | None) -> None:
        redirect = _attribute(upper, _REDIRECT)
        if redirect is not None:
            # An absolute redirect counts from the root, another one replaces the last component (overlayfs.rst).
            origin = (
                redirect.lstrip(b"/")
                if redirect.startswith(b"/")
                else _join((origin or b"").rpartition(b"/")[0], redirect)
            )
        elif _attribute(upper, _OPAQUE) == b"y":
            origin = None
        if origin != shown:
            self._replaced(upper, shown, origin)
        self.directory(upper, shown, origin)

    def _replaced(self, upper: Path, shown: bytes, origin: bytes | None) -> None:
        """Another directory, or none, shows through here than the chain's own: tell what came and what went."""
        came = self._names(origin)
        for name in sorted(came):
            if not os.path.lexists(upper / os.fsdecode(name)):
                self._arrived(_join(shown, name), _join(origin or b"", name))
        for name in self._names(shown) - came:
            if not os.path.lexists(upper / os.fsdecode(name)):
                self.found[_join(shown, name)] = "D"

    def _arrived(self, shown: bytes, origin: bytes) -> None:
        """`origin` of the chain, with all that is below it, is at `shown` now."""
        self.found[shown] = "A" if self._index.lookup(shown) is None else "C"
        record = self._index.lookup(origin)
        if record is None or not stat.S_ISDIR(self._index.record(record).mode):
            return
        came = self._names(origin)
        for name in came:
            self._arrived(_join(shown, name), _join(origin, name))
        for name in self._names(shown) - came:
            self.found[_join(shown, name)] = "D"

    def _names(self, directory: bytes | None) -> set[bytes]:
        record = None if directory is None else self._index.lookup(directory)
        if record is None or not stat.S_ISDIR(self._index.record(record).mode):
            return set()
        return {self._index.record(child).name for child in self._index.children(record)}


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def _attribute(path: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None
