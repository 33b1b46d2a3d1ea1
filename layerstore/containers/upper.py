"""What a container of the overlay driver changed, as entries of a layer and as its tar: read from its upper directory.

csrc/upper.h says how an upper directory is read, layerstore/layers/entries.py what its entries are. The upper
directory's own attributes are those of the container's root.
"""

from __future__ import annotations

import contextlib
import errno
import os

from layerstore._core.mount import open_inside
from layerstore._core.tar_writer import TarWriter
from layerstore._core.upper import UpperWalk
from layerstore.layers.entries import Entry
from layerstore.layers.sources import StoredContent
from layerstore.layers.tarring import content_of, write_content, write_header
from layerstore.naming import about, close_fd, fstat
from layerstore.store import reflink
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import PIECE_BYTES
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore._core.index import Index
    from layerstore._core.upper import UpperEntry
    from layerstore.layers.entries import Clone
    from layerstore.layers.streams import Piece
    from layerstore.store.contents import ContentStore


def entries(upper_fd: int, index: Index, contents: ContentStore) -> Iterator[Entry]:
    """The entries of the upper directory `upper_fd`, against the chain that `index` is of.

    contents: has the contents of the chain. What an entry's content is read from opens the file only then, so that
    `upper_fd` must still be open; one that has become another file, or shorter, is an `OSError` (ESTALE).

    The container may be in use (csrc/upper.h). Raises `LimitExceeded` for a path of more than 4,096 bytes,
    `CorruptError` for a damaged upper directory, `OSError`. Not for two threads at once.
    """
    walk = UpperWalk(index, upper_fd)
    while count := walk.read():
        for i in range(count):
            found = walk[i]
            entry = _entry(found)
            if entry.is_file() and entry.link is None and entry.size:
                stored = _stored(found, index, contents)
                entry.source = _UpperFile(upper_fd, found) if stored is None else stored
            yield entry


def tar_pieces(upper_fd: int, index: Index, contents: ContentStore, clone: Clone | None = None) -> Iterator[Piece]:
    """The bytes of `layers.tarring.tar_pieces(entries(upper_fd, index, contents), clone)`, made many entries at a time.

    The size of a file is that of what was read of it. Raises as both.
    """
    writer = TarWriter()
    walk = UpperWalk(index, upper_fd, PACK_THRESHOLD_BYTES)
    while walk.read():
        wanted = walk.wanted()
        if wanted:
            walk.give(contents.read_many([index.content(number)[0] for number in wanted]))
        walk.write(writer)
        large = walk.large()
        if large is not None:
            yield from _write_large(writer, large, walk.take_fd(), index, contents, clone)
        if len(writer) >= PIECE_BYTES:
            yield writer.take()
    writer.finish()
    yield writer.take()


def _write_large(
    writer: TarWriter, found: UpperEntry, fd: int | None, index: Index, contents: ContentStore, clone: Clone | None
) -> Iterator[Piece]:
    entry = _entry(found)
    try:
        entry.source = _stored(found, index, contents) if fd is None else _OpenFile(fd, found)
        content = content_of(entry, clone)
        write_header(writer, entry)
        if content is not None:
            yield from write_content(writer, content)
    finally:
        if fd is not None:
            close_fd(fd)


def _entry(found: UpperEntry) -> Entry:
    """All of an entry but where its content is read from."""
    entry = Entry(found.path, found.mode, found.uid, found.gid, found.mtime_ns)
    entry.rdev = found.rdev
    entry.target = found.target
    entry.link = found.link
    entry.xattrs = found.xattrs
    entry.opaque = found.is_opaque
    entry.size = found.size
    entry.lower = found.lower
    return entry


def _stored(found: UpperEntry, index: Index, contents: ContentStore) -> StoredContent | None:
    return None if found.content is None else StoredContent(contents, index.content(found.content)[0])


class _OpenFile:
    """The content of a file of an upper directory that is open: what it has now, up to the size of its entry."""

    def __init__(self, fd: int, found: UpperEntry) -> None:
        self._fd = fd
        self._found = found

    def pieces(self) -> Iterator[Piece]:
        at = 0
        while at < self._found.size:
            with about(self._fd):
                piece = os.pread(self._fd, min(PIECE_BYTES, self._found.size - at), at)
            if not piece:
                raise _changed(self._found)
            yield piece
            at += len(piece)

    def clone_to(self, fd: int) -> bool:
        if not reflink.share(fd, self._fd):
            return False
        size = fstat(fd).st_size
        if size < self._found.size:
            raise _changed(self._found)
        if size > self._found.size:
            with about(fd):
                os.ftruncate(fd, self._found.size)
        return True


class _UpperFile:
    """The content of a file of an upper directory, opened when it is read."""

    def __init__(self, upper_fd: int, found: UpperEntry) -> None:
        self._upper_fd = upper_fd
        self._found = found

    def pieces(self) -> Iterator[Piece]:
        with self._opened() as file:
            yield from file.pieces()

    def clone_to(self, fd: int) -> bool:
        with self._opened() as file:
            return file.clone_to(fd)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[_OpenFile]:
        try:
            fd = open_inside(self._upper_fd, self._found.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise _changed(self._found) from error
            raise
        try:
            status = fstat(fd)
            if (status.st_dev, status.st_ino) != self._found.identity:
                raise _changed(self._found)
            yield _OpenFile(fd, self._found)
        finally:
            close_fd(fd)


def _changed(found: UpperEntry) -> OSError:
    why = "the container changed this file while it was read; stop what runs in it, or try again"
    return OSError(errno.ESTALE, why, "/" + decode_path(found.path))
