"""Listing directories of a writable layer."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from layerstore.extents.resolving import encoded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore._core.view import AnyPath
    from layerstore.extents.operations import Operations
    from layerstore.extents.tree import Tree


class LayerEntry:
    """As `os.DirEntry`, with what the inode was when the directory was listed; where a link leads is looked up when
    asked.

    Its name and path are bytes for a directory that was given so, else str.
    """

    def __init__(self, tree: Tree, name: str | bytes, path: str | bytes, status: os.stat_result) -> None:
        self.name = name
        self.path = path
        self._tree = tree
        self._status = status

    def __repr__(self) -> str:
        return f"<LayerEntry {self.name!r}>"

    def __fspath__(self) -> str | bytes:
        return self.path

    def inode(self) -> int:
        """As `os.DirEntry.inode`."""
        return self._status.st_ino

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As `os.DirEntry.stat`."""
        if not follow_symlinks or not self.is_symlink():
            return self._status
        with self._tree.lock:
            return self._tree.stat_of(self._tree.find(self.path))

    def _has_type(self, kind: int, follow_symlinks: bool) -> bool:
        try:
            return stat.S_IFMT(self.stat(follow_symlinks=follow_symlinks).st_mode) == kind
        except FileNotFoundError:
            return False

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """As `os.DirEntry.is_dir`."""
        return self._has_type(stat.S_IFDIR, follow_symlinks)

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """As `os.DirEntry.is_file`."""
        return self._has_type(stat.S_IFREG, follow_symlinks)

    def is_symlink(self) -> bool:
        """As `os.DirEntry.is_symlink`."""
        return stat.S_ISLNK(self._status.st_mode)


def scan(tree: Tree, path: AnyPath) -> list[LayerEntry]:
    """The entries of a directory, ordered by name as bytes. Raises `OSError`."""
    top = encoded(path)
    is_bytes = isinstance(os.fspath(path), bytes)
    entries = []
    for name, number in tree.table.children(tree.directory(path)):
        status, whole = tree.stat_of(tree.table.get(number)), os.path.join(top, name)
        if is_bytes:
            entries.append(LayerEntry(tree, name, whole, status))
        else:
            entries.append(LayerEntry(tree, os.fsdecode(name), os.fsdecode(whole), status))
    return entries


def walk(
    container: Operations, top: AnyPath, topdown: bool, followlinks: bool
) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`."""
    start = os.fsdecode(encoded(top))
    waiting: list[str | tuple[str, list[str], list[str]]] = [start]
    while waiting:
        place = waiting.pop()
        if not isinstance(place, str):
            yield place
            continue
        try:
            entries = list(container.scandir(place))
        except OSError:
            if place == start:
                raise
            continue
        names = [str(entry.name) for entry in entries if _leads_to_directory(entry)]
        directories = set(names)
        others = [str(entry.name) for entry in entries if entry.name not in directories]
        links = {entry.name for entry in entries if entry.is_symlink()}
        if topdown:
            yield place, names, others
        else:
            waiting.append((place, names, others))
        waiting += [os.path.join(place, name) for name in reversed(names) if followlinks or name not in links]


def _leads_to_directory(entry: LayerEntry) -> bool:
    """As `os.walk` takes it: a link that leads nowhere counts as a file, whatever keeps it from that."""
    try:
        return entry.is_dir()
    except OSError:
        return False
