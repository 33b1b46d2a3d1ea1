"""Commands in containers that live: `true` in one of 200, beside crun, docker and podman; 50 at once; and the memory of
one in which nothing runs."""

from __future__ import annotations

import contextlib
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from bench.bench_run import SLEEP, TRUE, bare_sleepers, crun, memory_of_each, memory_of_peer
from bench.context import Context
from bench.measure import Median, interleaved, seconds, split_ours
from bench.peers import exec_by_api, timed
from bench.rows import Row, at_most, durably, faster, known, within
from layerstore import Container, Store

MILLISECOND = 1e3
LIVE, AT_ONCE, IDLE = 200, 50, 40
LIVE_OF_PEERS, IDLE_OF_PEERS = 20, 10
"""Containers of docker's and podman's each: it would take minutes to start 200, and their commands would be slower."""
BARE = "bare crun exec"
MEMORY_LIMIT_KIB = 300
DURABLE = dict.fromkeys(("ours", "docker exec", "docker API"), "nothing is written")
QUANTILES = 100


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    daemons = durably(DURABLE, against_daemons(context))
    return [*daemons, *durably({"all": "nothing is written"}, [*in_one_of_many(context), *idle(context)])]


def against_daemons(context: Context) -> Iterator[Row]:
    """By command, and from Python against their REST APIs: what a client asks for the outputs and the exit status."""
    name = context.fixtures.recipe("debian").name
    count = LIVE if not context.quick else 20
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(context.store("debian"))
        containers = stack.enter_context(live(store, context, count))
        one = containers[count // 2]
        by_command: dict[str, Callable[[], float]] = {
            "ours": partial(timed, context.command(store.root, "exec", one.id, *TRUE))
        }
        by_api: dict[str, Callable[[], float]] = {"ours": partial(seconds, execute, one)}
        for peer in filter(None, (context.docker(), context.podman())):
            stack.enter_context(context.loaded(peer, "debian"))
            running = stack.enter_context(peer.running(name, LIVE_OF_PEERS, SLEEP))
            api = peer.api()
            stack.callback(api.close)
            theirs = running[LIVE_OF_PEERS // 2]
            by_command[f"{peer.name} exec"] = partial(peer.exec, theirs, TRUE)
            by_api[f"{peer.name} API"] = partial(seconds, exec_by_api, api, theirs, TRUE)
        figures = []
        for works in (by_command, by_api):
            for work in works.values():
                work()
            found = interleaved(works, context.rounds(25))
            figures.append({name: figure * MILLISECOND for name, figure in found.items()})
    work = f"exec of true in one of {count} live containers, {LIVE_OF_PEERS} of each peer's"
    (ours, commands), (from_python, apis) = map(split_ours, figures)
    yield known(f"{work}, by command", "ms", ours, commands)
    asked = {name: figure for name, figure in {**commands, **apis}.items() if name in ("docker exec", "podman API")}
    yield faster(f"{work}, from Python, against docker's command and podman's API", "ms", from_python, asked, 8)
    yield known(f"{work}, from Python, against APIs", "ms", from_python, apis)


def in_one_of_many(context: Context) -> Iterator[Row]:
    """crun alone enters the same container; it makes no control group for the command, and ours does."""
    with context.store("debian") as store, live(store, context, LIVE if not context.quick else 20) as containers:
        one = containers[len(containers) // 2]
        works: dict[str, Callable[[], float]] = {
            BARE: partial(seconds, crun_exec, store, one),
            "ours": partial(seconds, execute, one),
        }
        for work in works.values():
            work()
        figures = interleaved(works, context.rounds(200))
        ours, peers = split_ours({name: figure * MILLISECOND for name, figure in figures.items()})
        yield within(f"exec of true in one of {len(containers)} live containers, from Python", "ms", ours, peers, 1.3)
        late, theirs = (percentile(figures[name] * MILLISECOND, 99) for name in ("ours", BARE))
        typical = float(figures["ours"] * MILLISECOND)
        yield at_most("the 99th percentile of it", "ms", late, {BARE: theirs}, 3 * typical, "three times the median")
        at_once: dict[str, Callable[[], float]] = {
            BARE: partial(all_at_once, AT_ONCE, partial(crun_exec, store, one)),
            "ours": partial(all_at_once, AT_ONCE, partial(execute, one)),
        }
        figures = interleaved(at_once, context.rounds(9))
        ours, peers = split_ours({name: figure * MILLISECOND for name, figure in figures.items()})
        yield within(f"{AT_ONCE} of them at once, from Python", "ms", ours, peers, 1.3)


def idle(context: Context) -> Iterator[Row]:
    """Beside containers of others in which sleep runs, as they have none without a program."""
    name, count = context.fixtures.recipe("debian").name, IDLE if not context.quick else 10
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(context.store("debian"))
        works: dict[str, Callable[[], float]] = {
            "bare crun with sleep": lambda: memory_of_each(count, bare_sleepers(context, count)),
            "ours": lambda: memory_of_each(count, live(store, context, count)),
        }
        for peer in filter(None, (context.docker(), context.podman())):
            stack.enter_context(context.loaded(peer, "debian"))
            works[f"{peer.name} with sleep"] = partial(memory_of_peer, peer, name, IDLE_OF_PEERS)
        for work in works.values():
            work()  # what the kernel keeps once it has had so many
        ours, peers = split_ours(interleaved(works, context.rounds(5)))
        work = "memory of a live container in which nothing runs, mount and keeper included"
        yield at_most(work, "KiB", ours, peers, MEMORY_LIMIT_KIB)


@contextlib.contextmanager
def live(store: Store, context: Context, count: int) -> Iterator[Sequence[Container]]:
    containers = store.create(context.fixtures.recipe("debian").name, count=count, volatile=True)
    try:
        store.mount(containers)
        for container in containers:
            container.keep_alive()
        yield containers
    finally:
        store.remove(containers, force=True)


def execute(container: Container) -> None:
    if container.exec(TRUE, capture_output=True).returncode:
        raise RuntimeError("/bin/true failed in our container")


def crun_exec(store: Store, container: Container) -> None:
    command = crun("--root", store.root / "run/runtime", "exec", container.id, *TRUE)
    _, status = os.waitpid(os.posix_spawn(command[0], command, os.environ), 0)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")


def all_at_once(count: int, work: Callable[[], None]) -> float:
    with ThreadPoolExecutor(count) as pool:
        return seconds(lambda: [done.result() for done in [pool.submit(work) for _ in range(count)]])


def percentile(figures: Median, number: int) -> float:
    return statistics.quantiles(figures.figures, n=QUANTILES, method="inclusive")[number - 1]
