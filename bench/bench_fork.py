"""Forks, snapshots and rollbacks of containers at rest, beside bare overlay mounts: on the measured file system,
without a pool. And forks of one that runs and writes, on a pool: whether they are of one moment, and how long it stands
still."""

from __future__ import annotations

import contextlib
import itertools
import mmap
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import one_moment
from bench.context import Context
from bench.loopfs import unmount_below
from bench.measure import Median, extract, helper, helper_output, interleaved, remove_tree, seconds, split_ours
from bench.rows import Row, at_most, durably, known, within
from layerstore import Store, Volume
from layerstore._core.clone import clone_tree

if TYPE_CHECKING:
    from layerstore import Container
    from layerstore.containers.processes import Process

MILLISECOND = 1e3
CHANGED = (10, 10_000)
PER_DIRECTORY, FILE_BYTES = 100, 2048
BLOCK = bytes(4096)
BARE = "mkdir + bare overlay"
BARE_AT_ONCE = 20
"""Of so many bare mounts, one after the other, a figure is the median."""
FORKS = 100
CLONE = "the clone alone"
SNAPSHOTS, LOOKED_UP = 1000, 1000
FORKS_OF_ONE_THAT_RUNS = 1000
POOL_BYTES = 8 << 30
DURABLE = {
    "ours": "by a fork and a snapshot the names, not the rows; by a rollback nothing; the container is volatile",
    BARE: "nothing",
}
OF_ONE_THAT_RUNS = {"ours": "the files, not the row", CLONE: "nothing"}


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    with contextlib.ExitStack() as stack:
        bare = stack.enter_context(Bare.made(context))
        store = stack.enter_context(context.store("debian"))
        at_rest = [*one_by_one(context, store, bare), *many(context, store, bare), *after_many(context, store)]
    return [*durably(DURABLE, at_rest), *durably(OF_ONE_THAT_RUNS, of_one_that_runs(context))]


class Bare:
    """Overlay mounts of a directory tree that has what our containers show."""

    def __init__(self, context: Context, lower: Path) -> None:
        self._context = context
        self._lower = lower
        self._program = helper("bare_overlay", context.run_directory)

    @classmethod
    @contextlib.contextmanager
    def made(cls, context: Context) -> Iterator[Bare]:
        lower = extract(context.fixtures.debian_tar(), context.new_directory("fork-lower"))
        change(lower, CHANGED[-1])
        try:
            yield cls(context, lower)
        finally:
            remove_tree(lower)

    @contextlib.contextmanager
    def mounted(self, count: int) -> Iterator[tuple[Path, Median]]:
        """`count` of them, mounted by mount(2) from C: where they are, and the milliseconds of each."""
        base = self._context.new_directory("bare")
        base.mkdir()
        try:
            microseconds = helper_output(self._program, self._lower, base, count)
            yield base, Median(map(float, microseconds)) * (1 / MILLISECOND)
        finally:
            unmount_below(base)
            remove_tree(base)

    def milliseconds(self) -> float:
        with self.mounted(BARE_AT_ONCE) as (_, took):
            return float(took)


def change(root: Path, count: int) -> None:
    """Make `count` files of 2 KiB."""
    for number in range(count):
        path = root / "changed" / str(number // PER_DIRECTORY) / str(number)
        if number % PER_DIRECTORY == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(number.to_bytes(8, "little") * (FILE_BYTES // 8))


def changed(context: Context, store: Store, count: int) -> Container:
    """With a snapshot of that, "then"."""
    container = store.create(context.fixtures.recipe("debian").name, volatile=True)
    with container.mount() as root:
        change(root, count)
    container.snapshot("then")
    return container


def write_another(container: Container) -> None:
    with container.mount() as root:
        (root / "after").write_bytes(BLOCK)


# -- one by one -----------------------------------------------------------------------------------------------------


def one_by_one(context: Context, store: Store, bare: Bare) -> Iterator[Row]:
    took: dict[str, dict[int, float]] = {"fork": {}, "rollback": {}}
    for count in CHANGED:
        container = changed(context, store, count)
        works = {
            BARE: bare.milliseconds,
            "fork": partial(forked, container),
            "rollback": partial(rolled_back, container),
        }
        for work in works.values():
            work()
        figures = interleaved(works, context.rounds(15))
        base = {BARE: figures.pop(BARE)}
        for what, figure in figures.items():
            took[what][count] = figure
            title = (
                f"{what} of a container with {count:,} changed files, ready to use, ext4 without a pool, from Python"
            )
            yield within(title, "ms", figure, base, 2.5)
        if count == CHANGED[-1]:
            yield from steps(context, container, float(base[BARE]))
        container.remove(force=True)
        store.collect_garbage()
    for what, by_count in took.items():
        work = f"… {what} with {CHANGED[-1]:,} files over {CHANGED[0]}"
        yield at_most(work, "times", by_count[CHANGED[-1]] / by_count[CHANGED[0]], {}, 1.2)


def forked(container: Container) -> float:
    """Each after one more write, and mounted."""
    write_another(container)
    made: list[Container] = []

    def work() -> None:
        made.append(container.fork())
        made[0].mount()

    took = seconds(work)
    made[0].remove(force=True)
    return took * MILLISECOND


def rolled_back(container: Container) -> float:
    """Of one more write, and mounted again."""
    write_another(container)

    def work() -> None:
        container.rollback("then")
        container.mount()

    took = seconds(work)
    container.umount()
    return took * MILLISECOND


def steps(context: Context, container: Container, bare_milliseconds: float) -> Iterator[Row]:
    """A command that writes, between a snapshot and the way back: the command starts the container, and the rollback
    stops it. Alone it starts it, too."""
    names = (f"step-{number}" for number in itertools.count())
    works = {"alone": partial(executed, container), "ours": partial(stepped, container, names)}
    for work in works.values():
        work()
    figures = interleaved(works, context.rounds(15))
    floor = figures["alone"].figures
    limit = Median(figure + 4 * bare_milliseconds for figure in floor)
    work = f"snapshot, exec that writes, rollback with {CHANGED[-1]:,} changed files, ext4 without a pool, from Python"
    yield within(work, "ms", figures["ours"], {f"the exec alone + 4 × ({BARE})": limit}, 1)
    yield known("… of that the exec alone, which starts the container", "ms", figures["alone"], {})


def executed(container: Container) -> float:
    took = seconds(write_by_command, container)
    container.stop(0)
    return took * MILLISECOND


def stepped(container: Container, names: Iterator[str]) -> float:
    name = next(names)

    def work() -> None:
        container.snapshot(name)
        write_by_command(container)
        container.rollback(name)

    took = seconds(work)
    container.remove_snapshot(name)
    return took * MILLISECOND


def write_by_command(container: Container) -> None:
    container.exec(["/bin/sh", "-c", "echo written >/written"], capture_output=True, check=True)


# -- many -----------------------------------------------------------------------------------------------------------


def many(context: Context, store: Store, bare: Bare) -> Iterator[Row]:
    """Forks by one call, mounted by one call; then a file of 4 KiB is written in each."""
    count = context.count(FORKS)
    container = changed(context, store, CHANGED[0])
    bare_figures = partial(bare_written, bare, count)
    works: dict[str, Callable[[], float]] = {
        BARE: bare_figures,
        "ours": partial(forks_written, store, container, count),
    }
    ours, peers = split_ours(interleaved(works, context.rounds(5)))
    work = f"{count} forks of a container at rest, each mounted and written to, ext4 without a pool, from Python"
    yield within(work, "ms", ours, peers, 2)
    container.remove(force=True)


def bare_written(bare: Bare, count: int) -> float:
    """The sum of the mounts, which are C's, and the writing, which is Python's as in ours."""
    with bare.mounted(count) as (base, took):
        roots = [base / str(number) / "root" for number in range(count)]
        return sum(took.figures) + seconds(write_in_each, roots) * MILLISECOND


def forks_written(store: Store, container: Container, count: int) -> float:
    write_another(container)
    made: list[Container] = []

    def work() -> None:
        made.extend(container.fork(count=count))
        store.mount(made)
        write_in_each([each.root for each in made])

    took = seconds(work)
    store.remove(made, force=True)
    return took * MILLISECOND


def write_in_each(roots: Sequence[Path]) -> None:
    for root in roots:
        # A new one: the kernel syncs its copy of another in a bare mount, and not in one that is volatile.
        fd = os.open(f"{root}/changed/0/written", os.O_WRONLY | os.O_CREAT)
        os.write(fd, BLOCK)
        os.close(fd)


# -- after many -----------------------------------------------------------------------------------------------------


def after_many(context: Context, store: Store) -> Iterator[Row]:
    """Two containers with the same files: of one a snapshot was made, of the other a thousand, each after one more
    write to one of the files. Mounted anew for each round, so that no name is cached by the overlay."""
    count = context.count(SNAPSHOTS)
    containers = {"ours": changed(context, store, LOOKED_UP), "after one": changed(context, store, LOOKED_UP)}
    took = [seconds(one_more_snapshot, containers["ours"], number) * MILLISECOND for number in range(count)]
    paths = context.run_directory / "looked-up"
    paths.write_text("".join(f"changed/{number // PER_DIRECTORY}/{number}\n" for number in range(LOOKED_UP)))
    program = helper("walk", context.run_directory)
    for what, work in (("looking up its files", partial(look_up, program, paths)), ("a walk of it", walk)):
        for container in containers.values():
            work(container)
        works = {name: partial(work, container) for name, container in containers.items()}
        ours, peers = split_ours(interleaved(works, context.rounds(15)))
        yield within(f"{what}, {LOOKED_UP:,} changed files, after {count:,} snapshots", "ms", ours, peers, 1.2)
    yield known(f"… each of these snapshots, {LOOKED_UP:,} changed files", "ms", Median(took), {})
    for container in containers.values():
        container.remove(force=True)


def one_more_snapshot(container: Container, number: int) -> None:
    with container.mount() as root:
        write_in_file(root, number)
    container.snapshot(f"after-{number}")


def write_in_file(root: Path, number: int) -> None:
    number %= LOOKED_UP
    (root / "changed" / str(number // PER_DIRECTORY) / str(number)).write_bytes(BLOCK)


def look_up(program: Path, paths: Path, container: Container) -> float:
    with container.mount() as root:
        return float(helper_output(program, "stat", root, paths)[0]) * MILLISECOND


def walk(container: Container) -> float:
    with container.mount() as root:
        command = ["find", str(root / "changed"), "-type", "f", "-size", "+100k"]
        return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.PIPE)) * MILLISECOND


# -- of one that runs -----------------------------------------------------------------------------------------------


def of_one_that_runs(context: Context) -> Iterator[Row]:
    """It writes all the time, and notes how long it could not. Its tree is also cloned while a signal stops it."""
    count = context.count(FORKS_OF_ONE_THAT_RUNS)
    told = context.new_directory("told")
    told.mkdir()
    shutil.copy(one_moment.__file__, told / "program")
    (told / "gaps").write_bytes(bytes(mmap.PAGESIZE))
    with Store(context.directory / "fork-pool", create=True, pool_bytes=POOL_BYTES) as store:
        store.load(context.fixtures.archive("debian", "gzip"))
        container = store.create(context.fixtures.recipe("debian").name, volatile=True)
        container.keep_alive(volumes=[Volume(str(told), "/told")])
        program = ["/usr/bin/python3", "/told/program", "/srv", "/told/gaps"]
        try:
            with container.popen(program, stdin=subprocess.DEVNULL) as process, ended(process):
                writer = Writer(one_moment.open_told(told / "gaps"), process)
                writer.wait_for(2 * one_moment.PLACES)
                works: dict[str, Callable[[], float]] = {
                    CLONE: partial(writer.clone, container),
                    "ours": partial(writer.fork, container),
                }
                ours, peers = split_ours(interleaved(works, context.rounds(25)))
                for _ in range(count - context.rounds(25)):
                    writer.fork(container)
        finally:
            store.remove(store.containers(), force=True)
    remove_tree(told)
    what = f"a container that writes to {one_moment.FILES:,} files, pool, from Python"
    yield at_most(f"of {count:,} forks of {what}, those not of one moment", "forks", len(writer.torn), {}, 0)
    yield within(f"how long a fork stops {what}", "ms", ours, peers, 1.3)
    for line in writer.torn:
        context.log(f"a fork is torn: {line}")


@contextlib.contextmanager
def ended(process: Process) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


class Writer:
    """The program that writes in a container, and what was found in forks of it."""

    def __init__(self, shared: mmap.mmap, process: Process) -> None:
        self._shared = shared
        self._process = process
        self.torn: list[str] = []

    def wait_for(self, writes: int) -> None:
        """Until it has written so often."""
        while one_moment.NUMBER.unpack_from(self._shared, one_moment.GAP.size)[0] < writes:
            if self._process.poll() is not None:
                raise RuntimeError(f"the program that writes ended with {self._process.returncode}")
            time.sleep(0.0005)

    def wait_for_more(self) -> None:
        self.wait_for(one_moment.NUMBER.unpack_from(self._shared, one_moment.GAP.size)[0] + 2)

    def fork(self, container: Container) -> float:
        """How long it could not write, milliseconds."""
        self.wait_for_more()
        one_moment.GAP.pack_into(self._shared, 0, 0.0)
        made = container.fork()
        self.wait_for_more()
        stopped = float(one_moment.GAP.unpack_from(self._shared)[0])
        with made.mount() as root:
            if torn := one_moment.torn(root / "srv"):
                self.torn.append(torn)
        made.remove()
        return stopped * MILLISECOND

    def clone(self, container: Container) -> float:
        """The time of cloning what it changes, in the same pool, while it is stopped."""
        target = f"{container.root.parent}/clone-{time.monotonic_ns()}"
        self._process.send_signal(signal.SIGSTOP)
        try:
            return seconds(cloned, container.inspect()["Upper"], target) * MILLISECOND
        finally:
            self._process.send_signal(signal.SIGCONT)
            remove_tree(Path(target))


def cloned(upper: str, target: str) -> None:
    fd = os.open(Path(target).parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        clone_tree(fd, upper, fd, target)
    finally:
        os.close(fd)
