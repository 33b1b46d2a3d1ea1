"""Hashes the contents of a store, many at once and in several threads.

Files are read and not mapped: a disk that cannot read a block then says so.
"""

from __future__ import annotations

import os
from collections import deque
from functools import partial

from layerstore._core.hashing import Hasher, hash_many
from layerstore.checking.findings import reason, tried
from layerstore.naming import fstat, open_fd, starting
from layerstore.store.pieces import PIECE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_BATCH_BYTES = 8 << 20
_MAX_THREADS = 8
PADDING = "what follows it is no longer zeros"
_ZEROS = bytes(4096)

Place = tuple[int, int, bytes]
"""Where a content is said to be in a file: offset, size, digest."""


def batches(places: Iterable[Place]) -> Iterator[list[Place]]:
    """Places, ordered by their offsets, in groups that are read at once."""
    batch: list[Place] = []
    for place in places:
        if batch and place[0] + place[1] - batch[0][0] > _BATCH_BYTES:
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch


def compare(fd: int, batch: list[Place], block_bytes: int) -> list[str]:
    """What is wrong with each of these contents of a pack, "" for nothing; zeros are to follow up to the next block."""
    start = batch[0][0]
    end = -(-(batch[-1][0] + batch[-1][1]) // block_bytes) * block_bytes
    buffer = memoryview(bytearray(end - start))
    try:
        length = tried(partial(_read, fd, buffer, start))
    except OSError as error:
        if len(batch) > 1:
            return [compare(fd, [place], block_bytes)[0] for place in batch]
        return [f"it cannot be read: {reason(error)}"]
    views = [buffer[offset - start : offset - start + size] for offset, size, _ in batch]
    wrong = []
    for (offset, size, digest), found in zip(batch, hash_many(views), strict=True):
        after = offset - start + size
        padding = -size % block_bytes
        if found != digest:
            wrong.append("its bytes are not those of its digest")
        elif offset + size + padding > start + length or buffer[after : after + padding] != _ZEROS[:padding]:
            wrong.append(PADDING)
        else:
            wrong.append("")
    return wrong


def _read(fd: int, buffer: memoryview, position: int) -> int:
    done = 0
    while done < len(buffer):
        count = os.preadv(fd, [buffer[done:]], position + done)
        if not count:
            break
        done += count
    return done


def compare_object(path: str, size: int, digest: bytes) -> str:
    """What is wrong with an object, "" for nothing."""
    try:
        return tried(partial(_compare_object, path, size, digest))
    except OSError as error:
        return f"it cannot be read: {reason(error)}"


def _compare_object(path: str, size: int, digest: bytes) -> str:
    with open_fd(path, os.O_RDONLY) as fd:
        length = fstat(fd).st_size
        if length != size:
            return f"it has {length} bytes, not {size}"
        hasher = Hasher()
        buffer = memoryview(bytearray(min(max(size, 1), PIECE_BYTES)))
        position = 0
        while count := os.preadv(fd, [buffer], position):
            hasher.update(buffer[:count])
            position += count
        return "" if hasher.digest() == digest else "its bytes are not those of its digest"


def read_through(path: str) -> None:
    """Read all of a file that is mapped next: a block that the disk cannot read is an error here. Raises `OSError`."""
    with open_fd(path, os.O_RDONLY) as fd:
        buffer, position = [bytearray(PIECE_BYTES)], 0
        while count := os.preadv(fd, buffer, position):
            position += count


def in_threads(jobs: Iterable[Callable[[], None]]) -> None:
    """Do all jobs, which are made as they are begun. Raises what one raises."""
    from concurrent.futures import ThreadPoolExecutor

    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    pool = ThreadPoolExecutor(threads, "layerstore-check")
    waiting: deque[object] = deque()
    try:
        for job in jobs:
            with starting():
                waiting.append(pool.submit(job))
            if len(waiting) > 2 * threads:
                waiting.popleft().result()  # type: ignore[attr-defined]
        while waiting:
            waiting.popleft().result()  # type: ignore[attr-defined]
    finally:
        pool.shutdown(cancel_futures=True)
