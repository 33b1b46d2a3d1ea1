"""A pool on the measured file system: first writes, beside overlayfs on that file system; forks and rolling back."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import Context
from bench.loopfs import used_bytes
from bench.measure import interleaved, seconds, split_ours
from bench.rows import Row, at_most, faster, known

if TYPE_CHECKING:
    from layerstore import Container, Store

POOL_BYTES = 8 << 30
LARGE_BYTES = 1 << 30
CHANGED = (10, 1000, 10_000)
PER_DIRECTORY = 100
SIZES = (500, 500, 9000)
"""Of the changed files, in turn: two that are copied, and one that is shared."""
MILLISECOND = 1e3


def run(context: Context) -> list[Row]:
    from layerstore import Store

    large = context.directory / "lower/large"
    make_large(large)
    with Store(context.directory / "pool-store", create=True, pool_bytes=POOL_BYTES) as store:
        try:
            return [] if context.peers_only else list(measured(context, store, large))
        finally:
            store.remove(store.containers(), force=True)


def make_large(path: Path) -> None:
    path.parent.mkdir()
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(LARGE_BYTES >> 20):
            file.write(number.to_bytes(8, "little") + piece[8:])


def measured(context: Context, store: Store, large: Path) -> Iterator[Row]:
    archive = context.directory / "large.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(large, "large")
    store.import_rootfs(archive, "large")
    archive.unlink()
    yield from first_writes(context, store, large)
    for count in CHANGED:
        yield from forks(context, store, count)
    yield from many_forks(context, store)


def first_writes(context: Context, store: Store, large: Path) -> Iterator[Row]:
    ours, peer = partial(on_pool, store), partial(on_overlayfs, context.directory, large)
    works: dict[str, Callable[[], float]] = {"ours": partial(ours, write), "overlayfs": partial(peer, write)}
    took, peers = split_ours(interleaved(works, context.rounds()))
    yield faster("first 4 KiB write into a file of 1 GiB, pool", "ms", took, peers, 2000)
    works = {"ours": partial(ours, change_mode)}
    yield known("chmod of it, pool", "ms", interleaved(works, context.rounds())["ours"], {})
    with store.create("large").mount() as view:
        before = used_bytes(Path(store.layout.root))
        write(view / "large")
        taken = (used_bytes(Path(store.layout.root)) - before) / 1024
    yield at_most("the write on disk, pool", "KiB", taken, {}, 64)


def on_pool(store: Store, work: Callable[[Path], object]) -> float:
    container = store.create("large")
    with container.mount() as view:
        took = seconds(work, view / "large")
    container.remove()
    return took * MILLISECOND


def on_overlayfs(directory: Path, large: Path, work: Callable[[Path], object]) -> float:
    with overlay(directory, large.parent) as view:
        return seconds(work, view / "large") * MILLISECOND


@contextmanager
def overlay(directory: Path, lower: Path) -> Iterator[Path]:
    upper, workdir, view = (directory / f"overlay-{name}" for name in ("upper", "work", "view"))
    for path in (upper, workdir, view):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={workdir}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, view], check=True)
    try:
        yield view
    finally:
        subprocess.run(["umount", view], check=True)
        subprocess.run(["rm", "-rf", upper, workdir, view], check=True)


def write(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, bytes(4096), 123 << 20)
    os.close(fd)


def change_mode(path: Path) -> None:
    path.chmod(0o640)


def forks(context: Context, store: Store, count: int) -> Iterator[Row]:
    container = changed(store, count)
    os.sync()
    rounds = context.rounds(7)
    took = interleaved({"fork": partial(forking, container), "rollback": partial(rolling_back, container)}, rounds)
    limit = 2 + 0.020 * count
    yield at_most(f"fork of a container with {count:,} changed files, pool", "ms", took["fork"], {}, limit)
    yield at_most(f"rollback of it after another write, {count:,} files, pool", "ms", took["rollback"], {}, 2)
    container.remove()
    store.collect_garbage()


def changed(store: Store, count: int) -> Container:
    container = store.create("large")
    with container.mount() as view:
        for number in range(count):
            directory = view / f"{number // PER_DIRECTORY}"
            directory.mkdir(exist_ok=True)
            (directory / f"{number}").write_bytes(b"x" * SIZES[number % len(SIZES)])
    container.snapshot("then")
    return container


def forking(container: Container) -> float:
    begun: list[Container] = []
    took = seconds(lambda: begun.append(container.fork()))
    begun[0].remove()
    return took * MILLISECOND


def rolling_back(container: Container) -> float:
    with container.mount() as view:
        (view / "after").write_bytes(b"after")
    return seconds(container.rollback, "then") * MILLISECOND


def many_forks(context: Context, store: Store) -> Iterator[Row]:
    count = context.count()
    container = changed(store, 10)
    root = Path(store.layout.root)
    before = used_bytes(root)
    made: list[Container] = []
    took = seconds(lambda: made.extend(container.fork(count=count)))
    yield at_most(f"{count:,} forks of a container with 10 changed files, pool, each", "ms", took / count * 1e3, {}, 1)
    yield known("disk for each, pool", "KiB", (used_bytes(root) - before) / count / 1024, {})
    store.remove([container, *made])
