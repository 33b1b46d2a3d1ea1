"""What a container of the overlay driver changed, as entries of a layer and as its tar: read from its upper directory,
and from the frozen ones that it stands on.

csrc/upper/upper.h says how an upper directory is read, layerstore/trees/entries.py what its entries are. The upper
directory's own attributes are those of the container's root.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from layerstore._core.mount import open_inside
from layerstore._core.tar_writer import TarWriter
from layerstore._core.upper import UpperWalk
from layerstore.naming import about, closing_fd, fstat
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import PIECE_BYTES
from layerstore.trees.entries import Entry, is_left_out
from layerstore.trees.sources import OpenFile, StoredContent
from layerstore.trees.tarring import content_of, write_content, write_header
from layerstore.trees.whiteouts import METACOPY
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from layerstore._core.index import Index
    from layerstore._core.upper import UpperEntry
    from layerstore.store.contents import ContentStore
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Clone


_REPLACED = "the container put a file of its image here while it was read; stop what runs in it, or try again"


def entries(uppers: Sequence[int], index: Index, contents: ContentStore) -> Iterator[Entry]:
    """The entries of an upper directory and of those it stands on (`frozen.opened`), against the chain of `index`.

    contents: has the contents of the chain. What an entry's content is read from opens the file only then, so that
    `uppers` must still be open; one that has become another file is an `OSError` (ESTALE).

    The container may be in use (csrc/upper/upper.h). Raises `LimitExceeded` for a path of more than 4,096 bytes,
    `CorruptError` for a damaged upper directory, `OSError`. Not for two threads at once.
    """
    walk = UpperWalk(index, uppers)
    while count := walk.read():
        for i in range(count):
            found = walk[i]
            entry = _entry(found)
            if entry.is_file() and entry.link is None and entry.size:
                stored = _stored(found, index, contents)
                entry.source = _UpperFile(uppers, found) if stored is None else stored
            yield entry


def present(tree: Iterable[Entry]) -> Iterator[Entry]:
    """A tree (layerstore/trees/whole.py) of `entries`, with each file as it is when it is asked for.

    One that was replaced by another file is that one, one that was removed or has become something else is left out.
    What an entry's content is read from can be used until the next is asked for. Raises as `entries`.
    """
    others: dict[bytes, bytes] = {}
    lost: set[bytes] = set()
    for entry in tree:
        first = entry.link
        if first is not None and first not in lost:
            entry.link = others.get(first, first)
            yield entry
            continue
        entry.link = None
        if not isinstance(entry.source, _UpperFile):
            yield entry
            continue
        try:
            with entry.source.now(entry) as is_same:
                if first is not None and is_same:
                    lost.remove(first)
                    others[first] = entry.path
                yield entry
        except _Gone:
            if first is None:
                lost.add(entry.path)


def tar_pieces(
    uppers: Sequence[int], index: Index, contents: ContentStore, clone: Clone | None = None
) -> Iterator[Piece]:
    """The bytes of `trees.tarring.tar_pieces(entries(uppers, index, contents), clone)`, made many entries at a time.

    The size of a file is that of what was read of it. Raises as both.
    """
    writer = TarWriter()
    walk = UpperWalk(index, uppers, PACK_THRESHOLD_BYTES)
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
    with contextlib.nullcontext() if fd is None else closing_fd(fd):
        entry.source = _stored(found, index, contents) if fd is None else OpenFile(fd, found.size)
        content = content_of(entry, clone)
        write_header(writer, entry)
        if content is not None:
            yield from write_content(writer, content)


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


class _UpperFile:
    """The content of a file of an upper directory, opened when it is read."""

    def __init__(self, uppers: Sequence[int], found: UpperEntry) -> None:
        self._uppers = uppers
        self._found = found

    def pieces(self) -> Iterator[Piece]:
        with self._opened() as file:
            yield from file.pieces()

    def clone_to(self, fd: int) -> bool:
        with self._opened() as file:
            return file.clone_to(fd)

    @contextlib.contextmanager
    def now(self, entry: Entry) -> Iterator[bool]:
        """Have `entry`, of one of its names, be what is there now while this is open; says whether it is the same file.

        Raises `_Gone`, `OSError`.
        """
        if self._found.layer:  # nobody changes it
            with self._opened() as entry.source:
                yield True
            return
        with self._at(entry.path) as fd:
            status = fstat(fd)
            _take_attributes(entry, fd, status)
            entry.size = status.st_size
            entry.source = OpenFile(fd, entry.size) if entry.size else None
            yield self._is(status)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[OpenFile]:
        with self._at(self._found.place) as fd:
            status = fstat(fd)
            if not self._is(status) or not stat.S_ISREG(status.st_mode):
                raise _Gone(self._found.path)
            yield OpenFile(fd, self._found.size)

    def _is(self, status: os.stat_result) -> bool:
        return (status.st_dev, status.st_ino) == self._found.identity

    @contextlib.contextmanager
    def _at(self, path: bytes) -> Iterator[int]:
        try:
            fd = open_inside(self._uppers[self._found.layer], path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO):
                raise _Gone(path) from error
            raise
        with closing_fd(fd):
            yield fd


class _Gone(OSError):
    """That there is another file, or none."""

    def __init__(self, path: bytes) -> None:
        why = "the container changed this file while it was read; stop what runs in it, or try again"
        super().__init__(errno.ESTALE, why, "/" + decode_path(path))


def _take_attributes(entry: Entry, fd: int, status: os.stat_result) -> None:
    """Those of what is in an entry's place now. Raises `_Gone` for what is no regular file, `OSError`."""
    if not stat.S_ISREG(status.st_mode):
        raise _Gone(entry.path)
    with about(fd):
        names = sorted(os.fsencode(name) for name in os.listxattr(fd))
        if METACOPY in names:  # its content is the image's, and is found by reading all of the tree again
            raise OSError(errno.ESTALE, _REPLACED, "/" + decode_path(entry.path))
        entry.xattrs = {name: os.getxattr(fd, name) for name in names if not is_left_out(name)}
    entry.mode, entry.uid, entry.gid = status.st_mode, status.st_uid, status.st_gid
    entry.mtime_ns = status.st_mtime_ns
