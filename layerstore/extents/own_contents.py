"""Where the contents of a layer's own files are read from."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from layerstore._core.extent_file import read
from layerstore._core.extents import IMAGE, ZERO
from layerstore._core.files import punch_holes
from layerstore.extents.applying import place_of
from layerstore.store import reflink
from layerstore.store.pieces import PIECE_BYTES, write_at
from layerstore.store.records import RANGE

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from layerstore._core.extent_io import Content
    from layerstore._core.extents import ExtentMap
    from layerstore.extents.image_tree import Descriptor
    from layerstore.extents.table import Inode
    from layerstore.extents.tree import Tree


def has_own_content(inode: Inode) -> bool:
    """Whether a regular file has anything else than the image's content of it."""
    extents = inode.extents
    if extents is None:
        return False
    if extents.size != inode.image_size:
        return True
    return bool(extents.size) and (len(extents) > 1 or extents.lookup(0, 1)[0][2] != IMAGE)


class LayerContent:
    """The content of a regular file that somebody wrote to, in a tree that stays as it is, as the `Source` of an
    entry."""

    __slots__ = ("_inode", "_tree")

    def __init__(self, tree: Tree, inode: Inode) -> None:
        self._tree = tree
        self._inode = inode

    def _extents(self) -> ExtentMap:
        assert self._inode.extents is not None
        return self._inode.extents

    def _uses_image(self) -> bool:
        return self._inode.digest is not None and any(where == IMAGE for _, _, where in self._extents())

    def _image(self) -> tuple[Content, Descriptor] | tuple[None, None]:
        if self._inode.digest is None or not self._uses_image():
            return None, None
        return self._tree.table.image.content(self._inode.digest, self._inode.image_size)

    def identity(self) -> Hashable:
        """Equal for sources, of this and other states of layers of one image, of which the bytes are in the same
        place."""
        places = tuple((start, length, self._named(where)) for start, length, where in self._extents())
        return self._inode.digest, places

    def _named(self, where: int) -> int | tuple[str, int]:
        """A source by the id of the log, which other layers have another number for."""
        if where in (IMAGE, ZERO):
            return where
        number, offset = place_of(where)
        return self._tree.logs.ids[number], offset

    def pieces(self) -> Iterator[memoryview]:
        extents = self._extents()
        content, _keeps_open = self._image()
        for position in range(0, extents.size, PIECE_BYTES):
            piece = bytearray(min(PIECE_BYTES, extents.size - position))
            read(extents, self._tree.logs.files, content, position, piece)
            yield memoryview(piece)

    def clone_to(self, fd: int) -> bool:
        if self._inode.digest is None or not self._uses_image():
            return False
        file = self._tree.table.image.whole_file(self._inode.digest)
        if file is None or not reflink.share(fd, file.fd):
            return False
        extents = self._extents()
        os.ftruncate(fd, extents.size)
        for start, length, where in extents:
            if where == ZERO:
                punch_holes(fd, RANGE.pack(start, length))
            elif where != IMAGE:
                self._write(fd, start, length)
        return True

    def _write(self, fd: int, start: int, length: int) -> None:
        """Write a range that comes from logs."""
        for position in range(start, start + length, PIECE_BYTES):
            data = bytearray(min(PIECE_BYTES, start + length - position))
            read(self._extents(), self._tree.logs.files, None, position, data)
            write_at(fd, data, position)
