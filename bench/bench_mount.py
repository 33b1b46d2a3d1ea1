"""Creating and mounting containers by the thousand: time of each, and memory that stays in use for each."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.context import Context
from bench.loopfs import unmount_below
from bench.measure import extract, helper, helper_output, memory_in_use, seconds
from bench.peers import Containerd, Podman, podman_create_and_mount, podman_delete
from bench.rows import Row, at_most, faster, within

if TYPE_CHECKING:
    from layerstore import Container, Image, Store

    Making = Callable[[Store, Image, int], tuple[list[Container], float]]

MILLISECOND = 1e3
KIB = 1024
PODMAN_COUNT = 200  # at 13 ms to create and twice that to delete, a thousand would say the same later
MEMORY_LIMIT_KIB = 32


@dataclass(frozen=True)
class Mounted:
    """`count` containers at once: the median milliseconds of each, and the memory that each keeps in use."""

    milliseconds: float
    kib: float


def run(context: Context) -> list[Row]:
    rounds = context.rounds(3)
    bare = repeated(rounds, partial(bare_overlays, context))
    batch, single = ours(context, rounds)
    peers = {}
    if context.peer(Containerd):
        peers["containerd gRPC"] = containerd_snapshots(context)
    if context.peer(Podman):
        peers["podman API"] = podman_api(context)
    return list(rows(context.count(), bare, batch, single, peers))


def rows(
    count: int, bare: Mounted, batch: Mounted | None, single: Mounted | None, peers: dict[str, Mounted]
) -> Iterator[Row]:
    floor = {"mkdir + bare overlay": bare.milliseconds}
    alone = single.milliseconds if single else None
    work = f"create + mount a container, {count:,} left mounted"
    yield within(f"{work}, in one batch", "ms", batch.milliseconds if batch else None, floor, 1.5)
    yield within(f"{work}, one at a time", "ms", alone, floor, 2.5)
    for name, times in (("containerd gRPC", 5.0), ("podman API", 25.0)):
        if name in peers:
            figures = {name: peers[name].milliseconds}
            yield faster(f"create + mount a container, one at a time, against {name}", "ms", alone, figures, times)
    memory = {"mkdir + bare overlay": bare.kib, **{name: mounted.kib for name, mounted in peers.items()}}
    yield at_most("memory of a mounted container", "KiB", batch.kib if batch else None, memory, MEMORY_LIMIT_KIB)


def repeated(rounds: int, work: Callable[[], Mounted]) -> Mounted:
    done = [work() for _ in range(rounds)]
    return Mounted(statistics.median(m.milliseconds for m in done), statistics.median(m.kib for m in done))


def bare_overlays(context: Context) -> Mounted:
    """Three directories and one mount(2) of an overlay on the image as one directory tree, from C."""
    lower, base, count = context.directory / "bare-lower", context.new_directory("bare"), context.count()
    if not lower.exists():
        extract(context.fixtures.debian_tar(), lower)
    program = helper("bare_overlay", context.run_directory)
    base.mkdir()
    before = memory_in_use()
    try:
        microseconds = sorted(map(float, helper_output(program, lower, base, count)))
        after = memory_in_use()
    finally:
        unmount_below(base)
        shutil.rmtree(base)
    return Mounted(microseconds[count // 2] / 1e3, (after - before) / count / KIB)


def ours(context: Context, rounds: int) -> tuple[Mounted | None, Mounted | None]:
    """(a thousand by two calls, a thousand one at a time)."""
    if context.peers_only:
        return None, None
    with context.store("debian") as store:
        image, count = store.image(context.fixtures.recipe("debian").name), context.count()
        # The first mount of an image mounts what all its containers share; that is not one container's cost.
        with store.create(image).mount():
            batch = repeated(rounds, partial(our_containers, store, image, count, in_batch))
            single = repeated(rounds, partial(our_containers, store, image, count, one_at_a_time))
    return batch, single


def our_containers(store: Store, image: Image, count: int, make: Making) -> Mounted:
    before = memory_in_use()
    made, milliseconds = make(store, image, count)
    after = memory_in_use()
    store.remove(made)
    return Mounted(milliseconds, (after - before) / count / KIB)


def in_batch(store: Store, image: Image, count: int) -> tuple[list[Container], float]:
    """The mean milliseconds of a container, as there is no median of one call."""
    begin = time.perf_counter()
    made = store.create(image, count=count)
    store.mount(made)
    return made, (time.perf_counter() - begin) / count * MILLISECOND


def one_at_a_time(store: Store, image: Image, count: int) -> tuple[list[Container], float]:
    """The median milliseconds of a container."""
    made, times = [], []
    for _ in range(count):
        begin = time.perf_counter()
        container = store.create(image)
        container.mount()
        times.append(time.perf_counter() - begin)
        made.append(container)
    return made, statistics.median(times) * MILLISECOND


def containerd_snapshots(context: Context) -> Mounted:
    """Prepare by gRPC and mount(2) of the answer, as containerd's clients do."""
    containerd = context.containerd()
    assert containerd is not None
    base, count = context.new_directory("snapshots"), context.count()
    (layer,) = context.fixtures.layer_blobs("debian", "none")
    with context.loaded(containerd, "debian"):
        base.mkdir()
        snapshotter = containerd.snapshotter()
        snapshotter.prepare_and_mount("warm", layer.diff_id, base / "warm")
        snapshotter.unmount_and_remove("warm", base / "warm")
        before = memory_in_use()
        work = [seconds(snapshotter.prepare_and_mount, f"s{i}", layer.diff_id, base / f"s{i}") for i in range(count)]
        after = memory_in_use()
        for i in range(count):
            snapshotter.unmount_and_remove(f"s{i}", base / f"s{i}")
        snapshotter.close()
        base.rmdir()
    return Mounted(statistics.median(work) * MILLISECOND, (after - before) / count / KIB)


def podman_api(context: Context) -> Mounted:
    """Create and mount by the libpod REST API."""
    podman = context.podman()
    assert podman is not None
    name, count = context.fixtures.recipe("debian").name, min(PODMAN_COUNT, context.count())
    with context.loaded(podman, "debian"):
        api = podman.api()
        made: list[str] = []
        podman_delete(api, podman_create_and_mount(api, name)[0])
        before = memory_in_use()
        work = [seconds(lambda: made.append(podman_create_and_mount(api, name)[0])) for _ in range(count)]
        after = memory_in_use()
        for container in made:
            podman_delete(api, container)
        api.close()
    return Mounted(statistics.median(work) * MILLISECOND, (after - before) / count / KIB)
