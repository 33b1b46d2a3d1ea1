"""Running containers: `run --rm IMAGE /bin/true` from end to end, and the memory of one that sleeps."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import Context
from bench.measure import extract, interleaved, memory_in_use, seconds, split_ours
from bench.peers import Peer, timed
from bench.rows import Row, at_most, faster, within

if TYPE_CHECKING:
    from layerstore import Image, Store

MILLISECOND = 1e3
KIB = 1024
TRUE = ["/bin/true"]
SLEEP = ["sleep", "1000"]
SLEEPERS = 40
MEMORY_LIMIT_KIB = 64


def run(context: Context) -> list[Row]:
    return [*by_command(context), *from_python(context), *sleepers(context)]


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
    yield faster("run --rm --network none IMAGE /bin/true, end to end", "ms", ours, peers, 3.0)


def from_python(context: Context) -> Iterator[Row]:
    """Create, mount, run and remove a container (volatile, as by `run --rm`), against crun alone on a ready bundle."""
    with contextlib.ExitStack() as stack:
        bundle = stack.enter_context(bare_bundle(context, TRUE))
        works: dict[str, Callable[[], float]] = {"bare crun": partial(seconds, spawn_crun, bundle, "bare")}
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            image = store.image(context.fixtures.recipe("debian").name)
            works["ours"] = partial(seconds, run_and_remove, store, image)
        for work in works.values():
            work()
        figures = interleaved(works, context.rounds(50))
    ours, peers = split_ours({work: value * MILLISECOND for work, value in figures.items()})
    yield within("create, run /bin/true, remove, from Python", "ms", ours, peers, 1.3)


def run_and_remove(store: Store, image: Image) -> None:
    container = store.create(image, volatile=True)
    if container.run(TRUE, network="none"):
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
        works = {"bare crun": lambda: memory_of_each(count, bare_sleepers(context, count))}
        for peer in context.peers():
            stack.enter_context(context.loaded(peer, "debian"))
            works[peer.name] = partial(memory_of_peer, peer, name, count)
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            works["ours"] = lambda: memory_of_each(count, our_sleepers(store, name, count))
        for work in works.values():
            work()  # what the kernel keeps once it has had so many
        kib = interleaved(works, context.rounds(5))
    ours, others = split_ours(kib)
    more = None if ours is None else ours - others["bare crun"]
    yield at_most("memory of a running sleep beyond bare crun's", "KiB", more, beyond(others), MEMORY_LIMIT_KIB)


def memory_of_peer(peer: Peer, name: str, count: int) -> float:
    return memory_of_each(count, peer.running(name, count, SLEEP))


def beyond(kib: dict[str, float]) -> dict[str, float]:
    """The peers' memory less that of bare crun, which stays as it is."""
    return {name: value if name == "bare crun" else value - kib["bare crun"] for name, value in kib.items()}


def memory_of_each(count: int, started: contextlib.AbstractContextManager[object]) -> float:
    before = memory_in_use()
    with started:
        return (memory_in_use() - before) / count / KIB


@contextlib.contextmanager
def bare_sleepers(context: Context, count: int) -> Iterator[None]:
    with bare_bundle(context, SLEEP) as bundle:
        names = [f"sleep-{i}" for i in range(count)]
        try:
            for name in names:
                timed(crun("run", "--detach", "--bundle", bundle, name))
            yield
        finally:
            for name in names:
                timed(crun("delete", "--force", name), ok=(0, 1))


@contextlib.contextmanager
def our_sleepers(store: Store, name: str, count: int) -> Iterator[None]:
    containers = store.create(name, count=count)
    try:
        for container in containers:
            container.start(SLEEP)
        yield
    finally:
        store.remove(containers, force=True)
