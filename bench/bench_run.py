"""Running containers: `run --rm IMAGE /bin/true` from end to end, and the memory of one that sleeps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.context import Context
from bench.measure import extract, interleaved, memory_in_use, seconds, split_ours
from bench.peers import Peer, timed
from bench.rows import Row, at_most, durably, faster, known, more_often, within
from layerstore._core.mount import is_mounted, spawn
from layerstore.containers.confinement import DEFAULT
from layerstore.containers.launching import runtime_resources
from layerstore.containers.runtime import HYBRID
from layerstore.containers.seccomp import default_profile

if TYPE_CHECKING:
    from layerstore import Image, Store

T = TypeVar("T")
MILLISECOND = 1e3
KIB = 1024
TRUE = ["/bin/true"]
SLEEP = ["sleep", "1000"]
CONFINED = "bare crun, confined alike"
UNCONFINED = "bare crun"
STARTS, AT_ONCE = 1000, 8
SLEEPERS = 40
MEMORY_LIMIT_KIB = 64
DURABLE = {
    "ours": "nothing, the container is volatile",
    "docker run": "its records",
    "podman run": "its records",
    "containerd run": "its databases",
    CONFINED: "nothing",
    UNCONFINED: "nothing",
}


def run(context: Context) -> list[Row]:
    started = [*by_command(context), *from_python(context), *side_by_side(context)]
    return [*durably(DURABLE, started), *durably({"all": "memory alone is measured"}, sleepers(context))]


def by_command(context: Context) -> Iterator[Row]:
    name = context.fixtures.recipe("debian").name
    with contextlib.ExitStack() as stack:
        works: dict[str, Callable[[], float]] = {}
        for peer in context.peers():
            stack.enter_context(context.loaded(peer, "debian"))
            works[f"{peer.name} run"] = partial(peer.run, name, TRUE)
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            command = context.command(store.root, "run", "--rm", "--network", "none", name, *TRUE)
            works["ours"] = partial(timed, command)
        for work in works.values():
            work()
        figures = interleaved(works, context.rounds(15))
    ours, peers = split_ours({work: value * MILLISECOND for work, value in figures.items()})
    yield faster("run --rm --network none IMAGE /bin/true, end to end, by command", "ms", ours, peers, 3.0)


def from_python(context: Context) -> Iterator[Row]:
    """Create, mount, run and remove a container (volatile, as by `run --rm`), against crun alone on a ready bundle: one
    that is confined as ours is, and one that has neither a control group nor a seccomp filter."""
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(bare_bundle(context, TRUE))
        alike = stack.enter_context(confined_bundles(context, bundle, 1))[0]
        works: dict[str, Callable[[], float]] = {
            CONFINED: partial(seconds, spawn_confined_crun, alike),
            UNCONFINED: partial(seconds, spawn_crun, bundle, "bare"),
        }
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            image = store.image(context.fixtures.recipe("debian").name)
            works["ours"] = partial(seconds, run_and_remove, store, image)
        for work in works.values():
            work()
        figures = interleaved(works, context.rounds(50))
    ours, peers = split_ours({work: value * MILLISECOND for work, value in figures.items()})
    confined = {CONFINED: peers.pop(CONFINED)}
    yield within("create, run /bin/true, remove, from Python", "ms", ours, confined, 1.3)
    yield known("the same against a container that nothing confines, from Python", "ms", ours, peers)


def side_by_side(context: Context) -> Iterator[Row]:
    """Many starts, some at a time: ours create, run and remove a container each, crun has a ready bundle a thread."""
    count = STARTS if not context.quick else STARTS // 10
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(bare_bundle(context, TRUE))
        bundles = stack.enter_context(confined_bundles(context, bundle, AT_ONCE))
        works: dict[str, Callable[[], float]] = {
            CONFINED: partial(starts_a_second, count, bundles, spawn_confined_crun)
        }
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            image = store.image(context.fixtures.recipe("debian").name)
            works["ours"] = partial(
                starts_a_second, count, [store] * AT_ONCE, lambda store: run_and_remove(store, image)
            )
        figures = interleaved(works, context.rounds(3))
    ours, peers = split_ours(figures)
    yield more_often(f"{count:,} starts, {AT_ONCE} at a time, from Python", "a second", ours, peers, 0.75)


def starts_a_second(count: int, lanes: Sequence[T], start: Callable[[T], None]) -> float:
    """Each lane starts one after the other, all lanes at once; raises what a start raised."""
    share = count // len(lanes)

    def work(lane: T) -> None:
        for _ in range(share):
            start(lane)

    with ThreadPoolExecutor(len(lanes)) as pool:
        took = seconds(lambda: list(pool.map(work, lanes)))
    return share * len(lanes) / took


def run_and_remove(store: Store, image: Image) -> None:
    container = store.create(image, volatile=True)
    if container.run(TRUE):
        raise RuntimeError("/bin/true failed in our container")
    container.remove()


@contextlib.contextmanager
def bare_bundle(context: Context, arguments: list[str]) -> Iterator[Path]:
    """crun's own default configuration (its five namespaces), on the image as a directory tree."""
    bundle = context.new_directory("bundle")
    extract(context.fixtures.debian_tar(), bundle / "rootfs")
    subprocess.run(["crun", "spec"], cwd=bundle, check=True)
    config = json.loads((bundle / "config.json").read_text())
    config["process"].update(args=arguments, terminal=False)
    config["root"]["readonly"] = False
    (bundle / "config.json").write_text(json.dumps(config))
    try:
        yield bundle
    finally:
        shutil.rmtree(bundle)


@contextlib.contextmanager
def confined_bundles(context: Context, bundle: Path, count: int) -> Iterator[list[Path]]:
    """Bundles on the root of that one, confined as our containers are, which crun does itself: its control groups, the
    device rules and the limit there, the seccomp profile as JSON, capabilities and namespaces."""
    config = json.loads((bundle / "config.json").read_text())
    config["root"]["path"] = str(bundle / "rootfs")
    config["process"]["noNewPrivileges"] = False
    sets = ("bounding", "effective", "permitted")
    config["process"]["capabilities"] = {name: list(DEFAULT.capabilities) for name in sets}
    config["mounts"] = [mount for mount in config["mounts"] if mount["type"] != "cgroup"]
    config["linux"]["namespaces"].append({"type": "cgroup"})
    config["linux"]["seccomp"] = default_profile(DEFAULT.capabilities)
    config["linux"]["resources"] = runtime_resources(DEFAULT)
    directory = context.new_directory("confined")
    bundles = [directory / f"bare-{number}" for number in range(count)]
    for made in bundles:
        made.mkdir(parents=True)
        config["linux"]["cgroupsPath"] = f"/{made.name}"
        (made / "config.json").write_text(json.dumps(config))
    try:
        yield bundles
    finally:
        shutil.rmtree(directory)


def spawn_confined_crun(bundle: Path) -> None:
    confined_crun("run", "--bundle", str(bundle), bundle.name)


def confined_crun(*arguments: str) -> None:
    """In a mount namespace without version 2 of control groups where it is beside version 1: crun refuses both."""
    command = ["/usr/bin/crun", *arguments]
    hide = [HYBRID] if is_mounted(HYBRID) else []
    _, status = os.waitpid(spawn(command, private_mounts=bool(hide), hide=hide), 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")


def crun(*arguments: object) -> list[str]:
    return ["/usr/bin/crun", "--cgroup-manager=disabled", *map(str, arguments)]


def spawn_crun(bundle: Path, name: str) -> None:
    """By posix_spawn, the cheapest way that Python has."""
    command = crun("run", "--bundle", bundle, name)
    _, status = os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")


def sleepers(context: Context) -> Iterator[Row]:
    """Memory that stays in use (of processes and kernel) for each running container, over several at once."""
    name, count = context.fixtures.recipe("debian").name, SLEEPERS if not context.quick else 10
    with contextlib.ExitStack() as stack:
        works = {CONFINED: lambda: memory_of_each(count, bare_sleepers(context, count))}
        for peer in context.peers():
            stack.enter_context(context.loaded(peer, "debian"))
            works[peer.name] = partial(memory_of_peer, peer, name, count)
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            works["ours"] = lambda: memory_of_each(count, our_sleepers(store, name, count))
        for work in works.values():
            work()  # what the kernel keeps once it has had so many
        kib = interleaved(works, context.rounds(5))
    base = kib.pop(CONFINED)
    ours, peers = split_ours({name: figure.beyond(base) for name, figure in kib.items()})
    figures = {CONFINED: base, **peers}
    yield at_most(
        "memory of a running sleep beyond bare crun's, confined alike", "KiB", ours, figures, MEMORY_LIMIT_KIB
    )


def memory_of_peer(peer: Peer, name: str, count: int) -> float:
    return memory_of_each(count, peer.running(name, count, SLEEP))


def memory_of_each(count: int, started: contextlib.AbstractContextManager[object]) -> float:
    before = memory_in_use()
    with started:
        return (memory_in_use() - before) / count / KIB


@contextlib.contextmanager
def bare_sleepers(context: Context, count: int) -> Iterator[None]:
    """Confined as ours are."""
    with bare_bundle(context, SLEEP) as bundle, confined_bundles(context, bundle, count) as bundles:
        started: list[str] = []
        try:
            for made in bundles:
                confined_crun("run", "--detach", "--bundle", str(made), made.name)
                started.append(made.name)
            yield
        finally:
            for name in started:
                confined_crun("delete", "--force", name)


@contextlib.contextmanager
def our_sleepers(store: Store, name: str, count: int) -> Iterator[None]:
    containers = store.create(name, count=count)
    try:
        for container in containers:
            container.start(SLEEP)
        yield
    finally:
        store.remove(containers, force=True)
