"""What a container of the extent driver has otherwise than its image: as entries of a layer, and as `diff` tells it.

It is found from the inodes that were changed (`Table`), so it takes time for what changed and not for what the image
has. Where a directory is the image's own at its place, only the names are looked at that lead to changed inodes
(csrc/index/branches.h) or were changed themselves. Any other directory is looked through completely, also one of the
image that was renamed.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from layerstore._core.branches import branches, records
from layerstore._core.branches import record as record_of
from layerstore._core.log import FIRST_NEW_INODE
from layerstore.extents.image_tree import ROOT
from layerstore.extents.own_contents import LayerContent, has_own_content
from layerstore.extents.table import Inode
from layerstore.results import Change
from layerstore.trees.entries import Entry, is_left_out
from layerstore.trees.sources import StoredContent
from layerstore.types import decode_path

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore._core.branches import LazyRecord
    from layerstore.extents.tree import Tree

_NOT_LOOKED_UP = -1


def entries(tree: Tree) -> Iterator[Entry]:
    """What a container changed, in canonical order (`Entry`), of a tree that stays as it is (`Layer.moment`).

    A socket, which no layer holds, counts as nothing. Attributes that are overlayfs's, or that the host's kernel makes
    for itself, are left out. Raises `CorruptError`.
    """
    first: dict[int, bytes] = {}
    for path, inode, _, opaque in _Walk(tree, sockets=False).items():
        if inode is None:
            yield Entry(path, 0)
            continue
        entry = Entry(path, inode.mode, inode.uid, inode.gid, inode.mtime_ns)
        if inode.xattrs:
            entry.xattrs = _kept(inode.xattrs)
        if inode.entries is not None:
            entry.opaque = opaque
        else:
            _fill(entry, inode, tree)
            if inode.nlink > 1 and first.setdefault(inode.number, path) is not path:
                entry.link = first[inode.number]
        yield entry


def _fill(entry: Entry, inode: Inode, tree: Tree) -> None:
    """What an entry says of anything but a directory."""
    if inode.extents is not None and has_own_content(inode):
        if inode.extents.size:
            entry.size, entry.source = inode.extents.size, LayerContent(tree, inode)
    elif inode.digest is not None:
        entry.size, entry.lower = inode.image_size, inode.number
        entry.source = StoredContent(tree.table.image.contents, inode.digest)
    else:
        entry.target, entry.rdev = inode.target, inode.rdev


def changes(tree: Tree) -> list[Change]:
    """Every path added (A), changed (C) or deleted (D), sorted; a directory with changes inside counts as changed.

    Of a tree that stays as it is. Raises `CorruptError`.
    """
    index = tree.table.image.index
    items = [item for item in _Walk(tree, sockets=True).items() if item[0]]
    asked = [path for path, _, record, _ in items if record == _NOT_LOOKED_UP]
    looked_up = dict(zip(asked, index.lookup_many(asked), strict=True))
    found: dict[bytes, str] = {}
    hidden: list[int] = []
    for path, inode, record, opaque in items:
        if inode is None:
            found[path] = "D"
            continue
        if record == _NOT_LOOKED_UP:
            record = looked_up[path]
            opaque = record is not None and inode.is_dir()
        found[path] = "A" if record is None else "C"
        if opaque and record is not None:
            hidden += index.children(record)
    for gone in records(index, hidden):
        found.setdefault(gone.path, "D")
    return [Change(kind, "/" + decode_path(path)) for path, kind in sorted(found.items())]


def _kept(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Those that belong to the container."""
    return {name: value for name, value in xattrs.items() if not is_left_out(name)}


if TYPE_CHECKING:
    _Item = tuple[bytes, Inode | None, int | None, bool]
    """Something that is not as in the image, or a directory on the way to it. In this order:

    Its path. Its inode, None where the image has something and the container nothing. The number of the record of what
    the image has there, None for nothing; `_NOT_LOOKED_UP` in a directory that is not the image's own at its place.
    Whether it is a directory that hides the one that the image has there.
    """
    _Step = tuple[bytes, int | None, int | None, LazyRecord | None]
    """A path, the number of the inode there, the record there as of `_Item`, and that record if it is of this inode."""


class _Directory:
    """One that the walk is in: what is still to be looked at in it, and whether it is an entry whatever is found."""

    __slots__ = ("position", "stays", "steps")

    def __init__(self, steps: Iterator[_Step], position: int, stays: bool) -> None:
        self.steps = steps
        self.position = position
        self.stays = stays


class _Walk:
    """One walk through what changed. `sockets`: whether they count."""

    def __init__(self, tree: Tree, *, sockets: bool) -> None:
        self._table = tree.table
        self._image = tree.table.image
        self._index = tree.table.image.index
        self._changed = {inode.number: inode for inode in tree.table}
        self._sockets = sockets
        self._below: dict[int, list[LazyRecord]] = {}
        self._items: list[_Item] = []
        # Inodes of the image that got names: to be the same file at all of them, they are entries at those, too, that
        # are as in the image.
        self._linked: set[int] = set()
        self._everywhere: set[int] = set()

    def items(self) -> list[_Item]:
        """What changed, in canonical order."""
        numbers = [number for number in self._changed if number < FIRST_NEW_INODE]
        self._walk(numbers)
        if self._linked:
            self._everywhere = self._linked
            self._walk([*numbers, *self._linked])
        return self._items

    def _walk(self, inodes: list[int]) -> None:
        self._items, self._below = [], {}
        root, *others = branches(self._index, inodes)
        for record in others:
            self._below.setdefault(record.parent, []).append(record)
        changed = self._changed.get(ROOT)
        if changed is not None and self._differs(changed, root):
            self._items.append((b"", changed, ROOT, False))
        stack = [_Directory(self._in_image(root, b""), -1, True)]
        while stack:
            top = stack[-1]
            inside = self._next_directory(top.steps)
            if inside is not None:
                stack.append(inside)
                continue
            stack.pop()
            if not top.stays and len(self._items) == top.position + 1:
                self._items.pop()

    def _next_directory(self, steps: Iterator[_Step]) -> _Directory | None:
        """Note what comes next; stops with a directory, to be gone into. None at the end."""
        changed, items, everywhere = self._changed, self._items, self._everywhere
        for path, number, at, same in steps:
            if number is None:
                items.append((path, None, at, False))
                continue
            inode = changed.get(number)
            if same is None:
                inside = self._new(path, inode or self._image.inode(number), at)
                if inside is not None:
                    return inside
            elif same.is_dir():
                return self._on_the_way(path, inode, same)
            elif number in everywhere or (inode is not None and self._differs(inode, same)):
                items.append((path, inode or self._image.inode(number), at, False))
        return None

    def _on_the_way(self, path: bytes, inode: Inode | None, record: LazyRecord) -> _Directory:
        """A directory of the image, at its place."""
        stays = inode is not None and self._differs(inode, record)
        steps = self._in_image(record, path)
        self._items.append((path, inode or _directory_of(record), record.number, False))
        return _Directory(steps, len(self._items) - 1, stays)

    def _new(self, path: bytes, inode: Inode, at: int | None) -> _Directory | None:
        """What the image does not have at this place."""
        if inode.entries is not None:
            hides = at is not None and at != _NOT_LOOKED_UP and record_of(self._index, at).is_dir()
            self._items.append((path, inode, at, hides))
            children = self._table.children(inode)
            prefix = path + b"/"
            steps: Iterator[_Step] = ((prefix + name, number, _NOT_LOOKED_UP, None) for name, number in children)
            return _Directory(steps, len(self._items) - 1, True)
        if not self._sockets and stat.S_ISSOCK(inode.mode):
            if at is not None and at != _NOT_LOOKED_UP:
                self._items.append((path, None, at, False))
            return None
        self._items.append((path, inode, at, False))
        if inode.nlink > 1 and inode.number < FIRST_NEW_INODE:
            self._linked.add(inode.number)
        return None

    def _in_image(self, record: LazyRecord, path: bytes) -> Iterator[_Step]:
        """The steps through a directory of the image that is at its place."""
        below = self._below.get(record.number, ())
        inode = self._changed.get(record.number)
        if inode is None or not inode.entries:
            return iter([(child.path, child.inode, child.number, child) for child in below])
        prefix = path + b"/" if path else b""
        named = {prefix + name: number for name, number in inode.entries.items()}
        steps: list[_Step] = []
        for (name, number), at in zip(named.items(), self._index.lookup_many(named), strict=True):
            same = record_of(self._index, at) if at is not None and number is not None else None
            steps.append((name, number, at, same if same is not None and same.inode == number else None))
        for child in below:
            if child.path not in named:
                steps.append((child.path, child.inode, child.number, child))
        steps.sort()
        return iter(steps)

    def _differs(self, inode: Inode, record: LazyRecord) -> bool:
        """Whether an inode is not as the image has it, what is in a directory left aside."""
        if (
            (inode.extents is not None and has_own_content(inode))
            or inode.mtime_ns != record.mtime_ns
            or inode.mode != record.mode
            or inode.uid != record.uid
            or inode.gid != record.gid
        ):
            return True
        xattrs = record.xattrs
        return inode.xattrs != xattrs and _kept(inode.xattrs) != _kept(xattrs)


def _directory_of(record: LazyRecord) -> Inode:
    """A directory as the image has it."""
    inode = Inode(record.number, record.mode, record.uid, record.gid, record.mtime_ns, 1)
    inode.lower, inode.entries, inode.xattrs = record.number, {}, record.xattrs
    return inode
