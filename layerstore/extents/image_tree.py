"""The image below a writable layer: its inodes as those of the layer are, and the files that its contents are in."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from layerstore._core import branches
from layerstore._core.extent_io import Content
from layerstore.extents.table import Inode
from layerstore.naming import close_fd
from layerstore.store.recent import Recent
from layerstore.trees.paths import join

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.store.contents import ContentStore
    from layerstore.views.view import View

ROOT = 0
"""The number of the root directory: an inode of the image has the number of its first record in the index."""
_CACHED = 4096
_OPEN_PACKS = 64


class Descriptor:
    """An open file, closed when nobody refers to it any more."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __del__(self) -> None:
        close_fd(self.fd)


class PackFiles:
    """The packs that contents of images were read from last, open: of all images of a store."""

    def __init__(self) -> None:
        self._files = Recent(_OPEN_PACKS)

    def shared(self, path: str, file: Descriptor) -> Descriptor:
        """The one that is kept of a pack; `file` where there is none yet."""
        kept: Descriptor = self._files.keep(path, file)
        return kept


class ImageTree:
    """Inodes and names of an image. What it gives is shared: whoever changes an inode copies it first.

    `index` is that of its chain, `contents` the store that has its contents, `files` keeps packs open. Raises
    `CorruptError` where the index is damaged. Safe for many threads.
    """

    def __init__(self, view: View, contents: ContentStore, files: PackFiles) -> None:
        self.index = view.index
        self.contents = contents
        self._inodes: dict[int, Inode] = {}
        self._children: dict[tuple[int, bytes], int | None] = {}
        self._files = files

    def inode(self, number: int) -> Inode:
        """The inode of that number."""
        inode = self._inodes.get(number)
        if inode is None:
            inode = self._read(number)
            if len(self._inodes) >= _CACHED:
                self._inodes.clear()
            self._inodes[number] = inode
        return inode

    def _read(self, number: int) -> Inode:
        record = branches.record(self.index, number)
        inode = Inode(number, record.mode, record.uid, record.gid, record.mtime_ns, record.links)
        inode.xattrs = record.xattrs
        inode.target = record.target
        if record.rdev is not None:
            inode.rdev = os.makedev(*record.rdev)
        if record.is_dir():
            inode.lower, inode.entries = number, {}
        elif record.content is not None:
            inode.digest, inode.image_size = record.content
        return inode

    def child(self, directory: int, name: bytes) -> int | None:
        """The number of the inode of that name in a directory, None where there is none."""
        key = directory, name
        try:
            return self._children[key]
        except KeyError:
            pass
        path = branches.record(self.index, directory).path
        record = self.index.lookup(join(path, name))
        number = None if record is None else branches.record(self.index, record).inode
        if len(self._children) >= _CACHED:
            self._children.clear()
        self._children[key] = number
        return number

    def children(self, directory: int) -> Iterator[tuple[bytes, int]]:
        """The names in a directory, in their order as bytes, with the numbers of their inodes."""
        for record in branches.records(self.index, self.index.children(directory)):
            yield record.name, record.inode

    def content(self, digest: bytes, size: int) -> tuple[Content, Descriptor]:
        """Where a content is, and what keeps its file open. Raises `NotFound`, `CorruptError`, `OSError`."""
        file, offset, _ = self._place(digest)
        return Content(file.fd, offset, size), file

    def whole_file(self, digest: bytes) -> Descriptor | None:
        """The file that has a content and nothing else, None where it is in a pack. Raises as `content`."""
        file, _, shared = self._place(digest)
        return None if shared else file

    def _place(self, digest: bytes) -> tuple[Descriptor, int, bool]:
        opened, offset, shared = self.contents.open_place(digest)
        file = Descriptor(os.dup(opened.fileno()))
        opened.close()
        if shared:
            file = self._files.shared(str(opened.name), file)
        return file, offset, shared
