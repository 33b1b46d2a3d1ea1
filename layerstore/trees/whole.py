"""The whole tree that a container shows, as entries: its image's with what it changed."""

from __future__ import annotations

import errno
import os

from layerstore.trees.entries import Entry
from layerstore.trees.paths import MAX_LINKS, join, names_of, path_error
from layerstore.trees.sources import StoredContent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore._core.index import Index
    from layerstore.store.contents import ContentStore


def whole(index: Index, contents: ContentStore, changed: Iterable[Entry], top: bytes = b"") -> Iterator[Entry]:
    """Entries of everything at and below `top`, in their order: that of `top` itself first, also of the root.

    Args:
        index: of the image's chain.
        changed: the container's entries (layerstore/trees/entries.py).
        top: a path. Symbolic links on the way to its last name are followed, inside the tree; one at its end only where
            "/" or "/." comes after it.

    None of them is a whiteout, none opaque. Of an inode with several names the first that comes is the file.
    Raises `OSError` (ENOENT, ENOTDIR, ELOOP) for a path that leads nowhere, `CorruptError` where the index is damaged.
    """
    walk = _Walk(index, contents, changed)
    return walk.below(*walk.place(top))


def stored_entry(index: Index, contents: ContentStore, path: bytes, number: int) -> Entry:
    """The record of an image's index as the entry of a path."""
    record = index.record(number)
    entry = Entry(path, record.mode, record.uid, record.gid, record.mtime_ns)
    entry.xattrs = record.xattrs
    if record.rdev is not None:
        entry.rdev = os.makedev(*record.rdev)
    entry.target = record.target
    if record.content is not None:
        digest, entry.size = index.content(record.content)
        entry.source = StoredContent(contents, digest)
        entry.lower = number
    return entry


class _Walk:
    """A place is a path without links and the number of the image's record that shows there, None where none does."""

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

    def place(self, top: bytes) -> tuple[bytes, int | None]:
        """The place that a path leads to, spelled without links."""
        above: list[tuple[bytes, int | None]] = []
        path, lower = b"", self._index.lookup(b"")
        waiting = names_of(top)[::-1]
        is_to_be_dir = top.endswith((b"/", b"/."))
        links = 0
        while waiting:
            entry = self._entry(path, lower)
            if not entry.is_dir():
                raise path_error(errno.ENOTDIR, top)
            name = waiting.pop()
            if name == b"..":
                path, lower = above.pop() if above else (path, lower)
                continue
            above.append((path, lower))
            path, lower = self._child(path, lower, name, top)
            target = self._entry(path, lower).target if waiting or is_to_be_dir else None
            if target is not None:
                links += 1
                if links > MAX_LINKS:
                    raise path_error(errno.ELOOP, top)
                waiting += names_of(target)[::-1]
                path, lower = above.pop()
                if target.startswith(b"/") and above:
                    path, lower = above[0]
                    above.clear()
        if is_to_be_dir and not self._entry(path, lower).is_dir():
            raise path_error(errno.ENOTDIR, top)
        return path, lower

    def _child(self, path: bytes, lower: int | None, name: bytes, top: bytes) -> tuple[bytes, int | None]:
        child = join(path, name)
        for found, record in self._children(path, lower):
            if found == child:
                return found, record
        raise path_error(errno.ENOENT, top)

    def below(self, top: bytes, lower: int | None) -> Iterator[Entry]:
        """Entries of a place and all that is below it."""
        waiting = [(top, lower)]
        while waiting:
            path, lower = waiting.pop()
            entry = self._entry(path, lower)
            yield entry.at(path, self._link(path, lower, entry))
            if entry.is_dir():
                waiting += reversed(self._children(path, lower))

    def _entry(self, path: bytes, lower: int | None) -> Entry:
        """What is at a place, under its own name."""
        entry = self._changed.get(path)
        if entry is None:
            assert lower is not None, "a name is the container's or the image's"
            return stored_entry(self._index, self._contents, path, lower)
        return entry if entry.link is None else self._changed[entry.link]

    def _link(self, path: bytes, lower: int | None, entry: Entry) -> bytes | None:
        """The name that this inode came under before."""
        if entry.is_dir():
            return None
        inode = entry.path if path in self._changed else self._index.record(lower or 0).inode
        first = self._first_names.setdefault(inode, path)
        return None if first == path else first

    def _children(self, path: bytes, lower: int | None) -> list[tuple[bytes, int | None]]:
        """The places in a directory, ordered by name."""
        entry = self._changed.get(path)
        found: dict[bytes, int | None] = {}
        if lower is not None and not (entry and entry.opaque):
            found = {self._index.record(child).name: child for child in self._index.children(lower)}
        for name in self._names.get(path, ()):
            if self._changed[join(path, name)].is_whiteout():
                found.pop(name, None)
            else:
                found.setdefault(name, None)
        return [(join(path, name), found[name]) for name in sorted(found)]
