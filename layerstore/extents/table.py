"""The inodes of a writable layer, in memory: what was changed lies over the image.

A table is a short list of frozen levels, the newest first, and one level of its own. Forking freezes the own one, and
both sides go on with the same levels below them: an inode in a frozen level is copied when it is first changed. Levels
are merged so that each has at least twice as many inodes as the one above it; so there are few, and what merging costs
was paid for by changes.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from layerstore._core.extents import ExtentMap

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.extents.image_tree import ImageTree


class Inode:
    """One inode. `nlink` is the number of its names, for a directory, too.

    A directory has `entries`, its names that are not as the image has them: to the number of an inode, or to None where
    the image's name is gone; and `lower`, the record number of the image's directory that shows through, None for none.
    A regular file has `extents`, or, as long as nobody wrote to it, `digest` and `image_size` (bytes) of the image's
    content.
    """

    __slots__ = (
        *("number", "mode", "uid", "gid", "mtime_ns", "nlink", "xattrs", "target", "rdev", "lower", "entries"),
        *("digest", "image_size", "extents"),
    )

    def __init__(self, number: int, mode: int, uid: int, gid: int, mtime_ns: int, nlink: int) -> None:
        self.number = number
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.nlink = nlink
        self.xattrs: dict[bytes, bytes] = {}
        self.target: bytes | None = None
        self.rdev = 0
        self.lower: int | None = None
        self.entries: dict[bytes, int | None] | None = None
        self.digest: bytes | None = None
        self.image_size = 0
        self.extents: ExtentMap | None = None

    def copy(self) -> Inode:
        """One that can be changed without changing this one."""
        copy = Inode(self.number, self.mode, self.uid, self.gid, self.mtime_ns, self.nlink)
        copy.xattrs = dict(self.xattrs)
        copy.target = self.target
        copy.rdev = self.rdev
        copy.lower = self.lower
        copy.entries = None if self.entries is None else dict(self.entries)
        copy.digest = self.digest
        copy.image_size = self.image_size
        copy.extents = None if self.extents is None else self.extents.clone()
        return copy

    @property
    def size(self) -> int:
        """As `st_size`."""
        if self.target is not None:
            return len(self.target)
        return self.image_size if self.extents is None else self.extents.size

    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def is_symlink(self) -> bool:
        return stat.S_ISLNK(self.mode)


class Table:
    """The inodes of one layer and the names that lead to them.

    `own` are the inodes that it may change; numbers from `next_number` on are free. Not safe for many threads, except
    that frozen levels may be shared.
    """

    def __init__(self, image: ImageTree, levels: tuple[dict[int, Inode], ...], next_number: int) -> None:
        self.image = image
        self.levels = levels
        self.own: dict[int, Inode] = {}
        self.next_number = next_number

    def changed(self, number: int) -> Inode | None:
        """The inode if it is not the image's alone."""
        inode = self.own.get(number)
        if inode is None:
            for level in self.levels:
                inode = level.get(number)
                if inode is not None:
                    break
        return inode

    def get(self, number: int) -> Inode:
        """The inode, to be read only."""
        return self.own.get(number) or self.changed(number) or self.image.inode(number)

    def change(self, number: int) -> Inode:
        """The inode, to be changed: copied into the own level if it is not there."""
        inode = self.own.get(number)
        if inode is None:
            inode = self.own[number] = (self.changed(number) or self.image.inode(number)).copy()
        return inode

    def add(self, inode: Inode) -> None:
        """Take in a new inode."""
        self.own[inode.number] = inode
        self.next_number = max(self.next_number, inode.number + 1)

    def forget(self, number: int) -> None:
        """Drop an inode that has no name any more."""
        if not any(number in level for level in self.levels):
            self.own.pop(number, None)

    def __iter__(self) -> Iterator[Inode]:
        """Every inode that has a name and is not the image's alone."""
        seen: set[int] = set()
        for level in (self.own, *self.levels):
            for number, inode in level.items():
                if number not in seen:
                    seen.add(number)
                    if inode.nlink:
                        yield inode

    def freeze(self) -> tuple[dict[int, Inode], ...]:
        """Have nobody change what is there now; returns the levels, to be shared."""
        if self.own:
            levels = [self.own, *self.levels]
            while len(levels) > 1 and len(levels[0]) * 2 > len(levels[1]):
                levels[:2] = [{**levels[1], **levels[0]}]
            self.levels = tuple(levels)
            self.own = {}
        return self.levels

    # Names

    def child(self, directory: Inode, name: bytes) -> int | None:
        """The number of the inode of that name in a directory, None where there is none."""
        entries = directory.entries
        if entries and name in entries:
            return entries[name]
        return None if directory.lower is None else self.image.child(directory.lower, name)

    def children(self, directory: Inode) -> list[tuple[bytes, int]]:
        """The names in a directory, in their order as bytes, with the numbers of their inodes."""
        lower = () if directory.lower is None else self.image.children(directory.lower)
        if not directory.entries:
            return list(lower)
        merged = {**dict(lower), **directory.entries}
        return sorted((name, number) for name, number in merged.items() if number is not None)
