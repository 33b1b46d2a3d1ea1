"""Where the contents of entries are read from, and which ranges of them have to be written."""

from __future__ import annotations

import errno
import itertools
import os

from layerstore.naming import about
from layerstore.store import reflink
from layerstore.store.pieces import PIECE_BYTES, read_at, write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from layerstore.store.contents import ContentStore
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Source

_BLOCK_BYTES = 64 << 10
_PAGE_BYTES = 4096
_ZEROS = bytes(_BLOCK_BYTES)
_HOLE = bytes(PIECE_BYTES)
"""What a piece of a hole is, the very object."""


class StoredContent:
    """A content of the store, of that digest (BLAKE3), as the `Source` of an entry. Raises also `NotFound` where it was
    collected meanwhile."""

    __slots__ = ("_contents", "digest")

    def __init__(self, contents: ContentStore, digest: bytes) -> None:
        self._contents = contents
        self.digest = digest

    def pieces(self) -> Iterator[Piece]:
        with self._contents.open(self.digest) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def link_to(self, path: str) -> bool:
        """Make `path` another name of the content's own file; False where it has none. Nobody may write to it.

        Whoever calls holds the garbage lock. Raises `OSError`.
        """
        return self._contents.link_to(self.digest, path)

    def clone_to(self, fd: int) -> bool:
        file, _, shared = self._contents.open_place(self.digest)
        with file:
            return not shared and reflink.share(fd, file.fileno())


class OpenFile:
    """The content of an open file that others may write to, as the `Source` of an entry: what it has now, up to `size`
    bytes, with zeros where it ends before that. A clone is all that it was at one moment."""

    __slots__ = ("_fd", "_size")

    def __init__(self, fd: int, size: int) -> None:
        self._fd = fd
        self._size = size

    def begun(self) -> tuple[Iterable[Piece], int]:
        """What `pieces` gives, and how much it will be: what there is, where that is one piece. Raises `OSError`."""
        wanted = min(PIECE_BYTES, self._size)
        with about(self._fd):
            head = read_at(self._fd, wanted, 0)
        if len(head) < wanted or wanted == self._size:
            return (head,), len(head)
        return itertools.chain((head,), self._pieces_from(wanted)), self._size

    def pieces(self) -> Iterator[Piece]:
        return self._pieces_from(0)

    def _pieces_from(self, at: int) -> Iterator[Piece]:
        data_at = 0
        while at < self._size:
            wanted = min(PIECE_BYTES, self._size - at)
            with about(self._fd):
                if data_at <= at:
                    data_at = self._data_from(at)
                # A program that cut it short may as well have made it as long again.
                piece = (os.pread(self._fd, wanted, at) if data_at < at + wanted else b"") or _HOLE[:wanted]
            yield piece
            at += len(piece)

    def _data_from(self, at: int) -> int:
        """Where the first byte is, from there on, that is in no hole (lseek(2), SEEK_DATA)."""
        try:
            return os.lseek(self._fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return self._size
            return at  # a file system that does not know of holes

    def clone_to(self, fd: int) -> bool:
        return reflink.share(fd, self._fd)


def begun(source: Source, size: int) -> tuple[Iterable[Piece], int]:
    """A content of so many bytes, and how many they are: others where it is a file that has changed. Raises as
    `Source.pieces`."""
    return source.begun() if isinstance(source, OpenFile) else (source.pieces(), size)


def filled(data: memoryview) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges, made of blocks of 64 KiB, that have anything but zeros."""
    if data.obj is _HOLE:
        return iter(())
    return _ranges(data, _BLOCK_BYTES, lambda at, block: block != _ZEROS[: len(block)])


def write_filled(fd: int, pieces: Iterable[Piece]) -> int:
    """Write a content to an empty file, of which blocks of zeros become holes; returns its size. Raises `OSError`, and
    what `pieces` does."""
    size = 0
    for piece in pieces:
        data = memoryview(piece)
        for start, end in filled(data):
            write_at(fd, data[start:end], size + start)
        size += len(data)
    os.ftruncate(fd, size)
    return size


def differing(data: memoryview, other: bytearray) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges, made of blocks of 4 KiB, that are not as in `other`, which is as long."""
    if other == data:
        return iter(())
    return _ranges(data, _PAGE_BYTES, lambda at, block: block != other[at : at + len(block)])


def _ranges(data: memoryview, size: int, counts: Callable[[int, bytes], bool]) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges of blocks that count."""
    begin: int | None = None
    for at in range(0, len(data), size):
        if counts(at, bytes(data[at : at + size])):
            begin = at if begin is None else begin
        elif begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(data)
