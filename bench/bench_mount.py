"""Creating and mounting containers by the thousand: time of each, and memory that stays in use for each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from bench.context import Context
from bench.loopfs import unmount_below
from bench.measure import Median, extract, helper, helper_output, memory_in_use, seconds
from bench.peers import Containerd, Podman, output, podman_create_and_mount, podman_delete, timed
from bench.rows import Row, at_most, durably, faster, known, within

if TYPE_CHECKING:
    from layerstore import Container, Image, Store

    Making = Callable[[Store, Image, int], tuple[list[Container], float]]

MILLISECOND = 1e3
KIB = 1024
PODMAN_COUNT = 200  # at 13 ms to create and twice that to delete, a thousand would say the same later
MEMORY_LIMIT_KIB = 32
BARE, CONTAINERD, PODMAN = "mkdir + bare overlay", "containerd gRPC", "podman API"
DURABLE = {
    "ours": "nothing",
    BARE: "nothing",
    CONTAINERD: "its databases, at each Prepare",
    PODMAN: "its records",
}


@dataclass(frozen=True)
class Mounted:
    """`count` containers at once: the median milliseconds of each, and the memory that each keeps in use."""

    milliseconds: float
    kib: float


def run(context: Context) -> list[Row]:
    rounds = context.rounds(3)
    bare = repeated(rounds, partial(bare_overlays, context))
    made = ours(context, rounds)
    peers = {}
    if context.peer(Containerd):
        peers[CONTAINERD] = containerd_snapshots(context)
    if context.peer(Podman):
        peers[PODMAN] = podman_api(context)
    return list(durably(DURABLE, rows(context.count(), bare, made, peers)))


def rows(count: int, bare: Mounted, made: dict[str, Mounted], peers: dict[str, Mounted]) -> Iterator[Row]:
    floor = {BARE: bare.milliseconds}
    took = {how: mounted.milliseconds for how, mounted in made.items()}
    work = f"create + mount a container, {count:,} left mounted"
    yield within(f"{work}, in one batch, by command", "ms", took.get("by command"), floor, 1.5)
    yield known(f"{work}, in one batch, from Python", "ms", took.get("in one batch"), floor)
    yield within(f"{work}, one at a time, from Python", "ms", took.get("one at a time"), floor, 2.5)
    for name, times in ((CONTAINERD, 5.0), (PODMAN, 25.0)):
        if name in peers:
            what = f"create + mount a container, one at a time, from Python, against {name}"
            yield faster(what, "ms", took.get("one at a time"), {name: peers[name].milliseconds}, times)
    memory = {BARE: bare.kib, **{name: mounted.kib for name, mounted in peers.items()}}
    kib = made["in one batch"].kib if made else None
    yield at_most("memory of a mounted container", "KiB", kib, memory, MEMORY_LIMIT_KIB)


def repeated(rounds: int, work: Callable[[], Mounted]) -> Mounted:
    done = [work() for _ in range(rounds)]
    return Mounted(Median(m.milliseconds for m in done), Median(m.kib for m in done))


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


def ours(context: Context, rounds: int) -> dict[str, Mounted]:
    """A thousand by two commands, a thousand by two calls, a thousand one at a time."""
    if context.peers_only:
        return {}
    makings: dict[str, Making] = {
        "by command": partial(by_command, context),
        "in one batch": in_batch,
        "one at a time": one_at_a_time,
    }
    with context.store("debian") as store:
        image, count = store.image(context.fixtures.recipe("debian").name), context.count()
        # The first mount of an image mounts what all its containers share; that is not one container's cost.
        with store.create(image).mount():
            return {
                how: repeated(rounds, partial(our_containers, store, image, count, making))
                for how, making in makings.items()
            }


def our_containers(store: Store, image: Image, count: int, make: Making) -> Mounted:
    before = memory_in_use()
    made, milliseconds = make(store, image, count)
    after = memory_in_use()
    store.remove(made)
    return Mounted(milliseconds, (after - before) / count / KIB)


def by_command(context: Context, store: Store, image: Image, count: int) -> tuple[list[Container], float]:
    """The mean milliseconds of a container."""
    begin = time.perf_counter()
    ids = output(context.command(store.root, "create", "--count", str(count), image.id)).split()
    timed(context.command(store.root, "mount", *ids))
    took = (time.perf_counter() - begin) / count * MILLISECOND
    return [store.container(container) for container in ids], took


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
    return made, Median(times) * MILLISECOND


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
    return Mounted(Median(work) * MILLISECOND, (after - before) / count / KIB)


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
    return Mounted(Median(work) * MILLISECOND, (after - before) / count / KIB)
