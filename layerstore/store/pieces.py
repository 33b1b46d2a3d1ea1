"""Contents by the piece: how much is read and written at a time, and writing all of it where a call takes only some."""

from __future__ import annotations

import errno
import os

from layerstore.naming import about, path_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    from typing_extensions import Buffer

    Piece: TypeAlias = bytes | memoryview

PIECE_BYTES = 1 << 20


def write_all(write: Callable[[memoryview], int | None], data: Buffer) -> None:
    """Have `write`, which says how many bytes it took, take all of `data`: a raw file takes less at a time where the
    disk is nearly full.

    Raises what it raises, and `BlockingIOError` where it takes nothing for now and says None.
    """
    rest = memoryview(data).cast("B")
    while rest:
        done = write(rest)
        if done is None:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        rest = rest[done:]


def read_whole(path: str) -> bytes:
    """A small file. Raises `OSError`."""
    with about(path), open(path, "rb") as file:
        return file.read()


def read_at(fd: int, count: int, position: int) -> bytes:
    """The bytes of a file from `position` on, `count` of them or all to its end. Raises `OSError`."""
    data = os.pread(fd, count, position)
    while len(data) < count and (more := os.pread(fd, count - len(data), position + len(data))):
        data += more
    return data


def pieces_between(fd: int, start: int, end: int) -> Iterator[bytes]:
    """The bytes of a file between two positions. Raises `OSError`, also where the file ends before."""
    while start < end:
        with about(fd):
            piece = read_at(fd, min(PIECE_BYTES, end - start), start)
            if not piece:
                text = f"the file ends at byte {start}, and was longer when it was begun to be read; try again"
                raise OSError(errno.EIO, text, path_of(fd))
        start += len(piece)
        yield piece


def data_ranges(fd: int) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges of a file that are no holes (lseek(2), SEEK_DATA). Raises `OSError`."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # there is none from here on
                return
            raise
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def write_at(fd: int, data: Buffer, position: int) -> None:
    """Write all of `data` at byte `position` of a file. Raises `OSError`."""
    rest = memoryview(data).cast("B")
    while rest:
        done = os.pwrite(fd, rest, position)
        rest, position = rest[done:], position + done
