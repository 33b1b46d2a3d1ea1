"""The whole tree that a container shows, as entries: its image's with what it changed."""

from __future__ import annotations

import os
import stat

from layerstore.layers.entries import Entry
from layerstore.layers.sources import StoredContent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore._core.index import Index
    from layerstore.store.contents import ContentStore


def whole(index: Index, contents: ContentStore, changed: Iterable[Entry], top: bytes = b"") -> Iterator[Entry]:
    """Entries of everything at and below `top`, in their order; the root is one, too.

    Args:
        index: of the image's chain.
        changed: the container's entries (layerstore/layers/entries.py).
        top: a path as in entries, spelled as the tree has it: none of its directories is a symbolic link.

    None of them is a whiteout, none opaque. Of an inode with several names the first that comes is the file.
    Raises `FileNotFoundError` where there is nothing at `top`, `CorruptError` where the index is damaged.
    """
    return _Walk(index, contents, changed).below(top)


class _Walk:
    """A place is a path and the number of the image's record that shows there, None where none does."""

    def __init__(self, index: Index, contents: ContentStore, changed: Iterable[Entry]) -> None:
        self._index = index
        self._contents = contents
        self._changed: dict[bytes, Entry] = {}
        self._names: dict[bytes, list[bytes]] = {}
        self._first_names: dict[int | bytes, bytes] = {}
        for entry in changed:
            self._changed[entry.path] = entry
            directory, _, name = entry.path.rpartition(b"/")
            if name:
                self._names.setdefault(directory, []).append(name)

    def below(self, top: bytes) -> Iterator[Entry]:
        waiting = [(top, self._lower(top))]
        while waiting:
            path, lower = waiting.pop()
            entry = self._of_container(path) if path in self._changed else self._of_image(path, lower)
            yield entry
            if entry.is_dir():
                waiting += reversed(self._children(path, lower))

    def _lower(self, top: bytes) -> int | None:
        path, lower = b"", self._index.lookup(b"")
        for name in top.split(b"/") if top else ():
            places = dict(self._children(path, lower))
            path = _join(path, name)
            if path not in places:
                raise FileNotFoundError(f"there is nothing at /{os.fsdecode(top)}")
            lower = places[path]
        return lower

    def _children(self, path: bytes, lower: int | None) -> list[tuple[bytes, int | None]]:
        """The places in a directory, ordered by name."""
        entry = self._changed.get(path)
        found: dict[bytes, int | None] = {}
        if lower is not None and not (entry and entry.opaque):
            found = {self._index.record(child).name: child for child in self._index.children(lower)}
        for name in self._names.get(path, ()):
            if self._changed[_join(path, name)].is_whiteout():
                found.pop(name, None)
            else:
                found.setdefault(name, None)
        return [(_join(path, name), found[name]) for name in sorted(found)]

    def _of_container(self, path: bytes) -> Entry:
        entry = self._changed[path]
        if entry.is_dir():
            return entry.at(path)
        first = entry.link or path
        return self._changed[first].at(path, self._linked(first, path))

    def _linked(self, inode: int | bytes, path: bytes) -> bytes | None:
        """The name of an inode that came before `path`."""
        first = self._first_names.setdefault(inode, path)
        return None if first == path else first

    def _of_image(self, path: bytes, number: int | None) -> Entry:
        assert number is not None, "a name is the container's or the image's"
        record = self._index.record(number)
        entry = Entry(path, record.mode, record.uid, record.gid, record.mtime_ns)
        entry.xattrs = record.xattrs
        if record.rdev is not None:
            entry.rdev = os.makedev(*record.rdev)
        entry.target = record.target
        if not stat.S_ISDIR(record.mode) and record.count > 1:
            entry.link = self._linked(record.inode, path)
        if record.content is not None:
            digest, entry.size = self._index.content(record.content)
            entry.source = StoredContent(self._contents, digest)
            entry.lower = number
        return entry


def _join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name
