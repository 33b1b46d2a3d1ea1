"""The extent driver on the measured file system: first writes, forks, rolling back, random reads and writes."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.context import Context
from bench.measure import interleaved, seconds, split_ours
from bench.rows import Row, durably, keeps_up, known
from bench.writable import BLOCK, EXTENT, LARGE, LARGE_BYTES, first_writes, forks, import_large, make_large, many_forks

if TYPE_CHECKING:
    from layerstore import Store

BLOCKS = LARGE_BYTES // len(BLOCK)
MICROSECOND = 1e6


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    large = context.directory / "extent-lower/large"
    make_large(large)
    with context.store() as store:
        import_large(store, large, context.directory)
        return [
            *first_writes(context, store, EXTENT, large),
            *forks(context, store, EXTENT),
            *many_forks(context, store, EXTENT),
            *durably({"all": "nothing"}, random_blocks(context, store, large)),
        ]


def random_blocks(context: Context, store: Store, plain: Path) -> Iterator[Row]:
    """Raw files in the page cache: an image's file, and after a fifth and all of its blocks were rewritten, in any
    order."""
    container = store.create("large", driver="extent")
    with open(plain, "r+b", buffering=0) as theirs, container.open(LARGE, "r+b", buffering=0) as ours:
        for file in (theirs, ours):
            while file.read(1 << 20):
                pass
        for state, rewritten in (("the image's", 0), ("a fifth rewritten", BLOCKS // 5), ("all rewritten", BLOCKS)):
            seek_and_write(ours, [number * len(BLOCK) for number in random.sample(range(BLOCKS), rewritten)])
            ours.flush()
            yield from reads(context, ours, theirs, state)
        yield from writes(context, ours, theirs)
    container.remove()


def reads(context: Context, ours: Any, theirs: Any, which: str) -> Iterator[Row]:
    work = f"random 4 KiB reads, 1 GiB, {which}"
    buffer = bytearray(BLOCK)
    works = {"ours": partial(seek_and_read, ours, buffer), "plain file": partial(seek_and_read, theirs, buffer)}
    took, peers = split_ours(in_rounds(context, works))
    yield keeps_up(f"{work}, seek + readinto", "µs", took, peers, 0.7)
    works = {
        "ours": partial(read_at, ours.readinto_at, buffer),
        "os.preadv": partial(preadv, theirs.fileno(), buffer),
        "os.pread": partial(pread, theirs.fileno()),
    }
    yield known("… readinto_at", "µs", *split_ours(in_rounds(context, works)))


def writes(context: Context, ours: Any, theirs: Any) -> Iterator[Row]:
    work = "random 4 KiB writes, 1 GiB"
    works = {"ours": partial(seek_and_write, ours), "plain file": partial(seek_and_write, theirs)}
    took, peers = split_ours(in_rounds(context, works))
    yield keeps_up(f"{work}, seek + write", "µs", took, peers, 0.5)
    works = {"ours": partial(seek_and_write, ours), "os.pwrite": partial(pwrite, theirs.fileno())}
    yield known("… against os.pwrite", "µs", *split_ours(in_rounds(context, works)))


def in_rounds(context: Context, works: dict[str, Callable[[list[int]], object]]) -> dict[str, float]:
    """Microseconds a block. What was written before a round is with the disk when it begins."""
    count = context.count(20_000)

    def measured(work: Callable[[list[int]], object]) -> float:
        offsets = [random.randrange(BLOCKS) * len(BLOCK) for _ in range(count)]
        os.sync()
        return seconds(work, offsets) / count * MICROSECOND

    return interleaved({name: partial(measured, work) for name, work in works.items()}, context.rounds(9))


def seek_and_read(file: Any, buffer: bytearray, offsets: list[int]) -> None:
    for offset in offsets:
        file.seek(offset)
        file.readinto(buffer)


def seek_and_write(file: Any, offsets: list[int]) -> None:
    for offset in offsets:
        file.seek(offset)
        file.write(BLOCK)


def read_at(readinto_at: Callable[[bytearray, int], object], buffer: bytearray, offsets: list[int]) -> None:
    for offset in offsets:
        readinto_at(buffer, offset)


def preadv(fd: int, buffer: bytearray, offsets: list[int]) -> None:
    buffers = [buffer]
    for offset in offsets:
        os.preadv(fd, buffers, offset)


def pread(fd: int, offsets: list[int]) -> None:
    for offset in offsets:
        os.pread(fd, len(BLOCK), offset)


def pwrite(fd: int, offsets: list[int]) -> None:
    for offset in offsets:
        os.pwrite(fd, BLOCK, offset)
