"""Where the time of a cold look at an image goes: the kernel's work, requests to the disk. For docs/measurements.md.

Not among the benchmarks that run by default: `python -m bench.run cold`. The trees and the walks are those of `read`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench.bench_read import (
    LAYERS,
    MILLISECOND,
    TIMES_FASTER,
    WORDS,
    Mounting,
    Walk,
    layers_as_directories,
    mounting_of,
)
from bench.context import Context
from bench.loopfs import device_of
from bench.measure import interleaved, split_ours
from bench.rows import Row, known

SECTOR_BYTES = 512
MB = 1e6


@dataclass(frozen=True)
class Device:
    """The block device below the stores, by its own account (Documentation/block/stat.rst)."""

    stat: Path

    @classmethod
    def of(cls, context: Context) -> Device:
        return cls(Path("/sys/block", device_of(context.directory).name, "stat"))

    def reads(self) -> tuple[int, int]:
        """(requests, bytes) that were read so far."""
        fields = self.stat.read_text().split()
        return int(fields[0]), int(fields[2]) * SECTOR_BYTES


def run(context: Context) -> list[Row]:
    walk, device = Walk.of(context), Device.of(context)
    with contextlib.ExitStack() as stack:
        trees = {f"overlayfs, {LAYERS} directories": stack.enter_context(layers_as_directories(context))}
        if not context.peers_only:
            store = stack.enter_context(context.store("debian-12"))
            trees["ours"] = mounting_of(store, context.fixtures.recipe("debian-12").name)
        return [row for mode in TIMES_FASTER for row in of(context, walk, device, trees, mode)]


def of(context: Context, walk: Walk, device: Device, trees: dict[str, Mounting], mode: str) -> Iterator[Row]:
    times: dict[str, Callable[[str, Mounting], float]] = {
        "warm": partial(after, walk, lambda: None),
        "names and inodes dropped": partial(after, walk, drop_names_and_inodes),
        "cold, mounted": walk.mounted,
        "cold, from the mount on": walk.from_the_mount_on,
    }
    for how, timed in times.items():
        figures = interleaved({name: partial(timed, mode, tree) for name, tree in trees.items()}, context.rounds())
        ours, peers = split_ours({name: seconds * MILLISECOND for name, seconds in figures.items()})
        yield known(f"{WORDS[mode]}, {how}", "ms", ours, peers)
        if "cold" in how:
            yield from reads(walk, device, trees, mode, how, timed)


def after(walk: Walk, drop: Callable[[], None], mode: str, mounting: Mounting) -> float:
    """Seconds of a walk that follows another one and `drop`."""
    with mounting() as tree:
        walk.seconds(mode, tree)
        drop()
        return walk.seconds(mode, tree)


def drop_names_and_inodes() -> None:
    """The page cache stays: a walk after this is the kernel's work without the disk's."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("2\n")


def reads(
    walk: Walk, device: Device, trees: dict[str, Mounting], mode: str, how: str, timed: Callable[[str, Mounting], float]
) -> Iterator[Row]:
    """What one such walk asks of the disk, and what mounting before it does, which is little."""
    requests, megabytes = {}, {}
    for name, tree in trees.items():
        before = device.reads()
        timed(mode, tree)
        done = device.reads()
        requests[name] = float(done[0] - before[0])
        megabytes[name] = (done[1] - before[1]) / MB
    yield known(f"… requests, {how}", "", *split_ours(requests))
    yield known(f"… read, {how}", "MB", *split_ours(megabytes))
