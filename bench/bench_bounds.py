"""A fork bomb, a memory hog, a disk filler and a spinner among live containers: each held to its limits, and what
commands in the others take meanwhile."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.bench_exec import execute, percentile
from bench.context import Context
from bench.measure import Median, seconds
from bench.rows import NOTHING, Row, at_most, durably, known, within
from layerstore import Store
from layerstore.errors import Unsupported

if TYPE_CHECKING:
    from layerstore import Container
    from layerstore.containers.processes import Process

MILLISECOND, MIB = 1e3, 1 << 20
LIVE, COMMANDS = 50, 1000
POOL_BYTES = 8 << 30
PIDS, MEMORY_BYTES, CPUS, DISK_BYTES = 64, 64 * MIB, 0.1, 32 * MIB
FILLED = "/filled"
TMPFS = "a tmpfs as this kernel has no project quotas"
"""Its pages count as memory, so it is smaller than the limit on that."""
SLACK = 1.05
"""Of processor time, which is given by periods of 0.1 s."""
PRESSED_SECONDS, LOOK_SECONDS = 20.0, 0.1
BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
HOG = """
import os
while True:
    if not (pid := os.fork()):
        taken = []
        while True:
            taken.append(bytearray(b"x") * (1 << 20))
    os.waitpid(pid, 0)
"""
FILLER = """
import os
os.makedirs("/filled", exist_ok=True)
while True:
    try:
        with open("/filled/file", "wb", 0) as file:
            while True:
                file.write(bytes(1 << 20))
    except OSError:
        pass
"""
SPINNER = "while True: pass"


def run(context: Context) -> list[Row]:
    return [] if context.peers_only else list(durably(NOTHING, rows(context)))


def rows(context: Context) -> Iterator[Row]:
    """Commands in the others one after the other, with and without; all four have all four limits."""
    count, name = context.count(COMMANDS), context.fixtures.recipe("debian").name
    with Store(context.directory / "bounds-pool", create=True, pool_bytes=POOL_BYTES) as store:
        store.load(context.fixtures.archive("debian", "gzip"))
        bad, where = created(store, name)
        others = store.create(name, count=LIVE - len(bad), volatile=True)
        try:
            for container in bad:
                limits: Any = {"pids_limit": PIDS, "memory": MEMORY_BYTES, "memory_swap": MEMORY_BYTES, "cpus": CPUS}
                container.keep_alive(**limits, tmpfs=[f"{FILLED}:size={DISK_BYTES}"] if where == TMPFS else [])
            for container in others:
                container.keep_alive()
            without = commands(others, count)
            with contextlib.ExitStack() as stack:
                begun = [
                    stack.enter_context(begin(*each)) for each in zip(bad, (BOMB, HOG, FILLER, SPINNER), strict=True)
                ]
                seen = Seen(bad, begun)
                during = commands(others, count, seen)
                seen.until(PRESSED_SECONDS)
        finally:
            store.remove([*bad, *others], force=True)
    what = f"among {LIVE} live containers, pool, from Python"
    yield at_most(f"processes of a fork bomb {what}", "processes", seen.processes, {}, PIDS)
    yield at_most(f"memory of a memory hog {what}", "MiB", seen.memory_bytes / MIB, {}, MEMORY_BYTES / MIB)
    yield at_most(f"disk of a disk filler, {where}, {what}", "MiB", seen.disk_bytes / MIB, {}, DISK_BYTES / MIB)
    why = "its limit, and a twentieth for periods that are cut"
    yield at_most(f"processors of a spinner {what}", "cores", seen.cpus, {}, CPUS * SLACK, why)
    figures = (percentile(during, 99), {"without them": percentile(without, 99)})
    yield within(
        f"exec of true in the others, the 99th percentile, beside these, {count:,} commands", "ms", *figures, 2
    )
    yield known("… the median", "ms", during, {"without them": without})


def created(store: Store, name: str) -> tuple[list[Container], str]:
    """The four, and what limits their disks."""
    try:
        return store.create(name, count=4, volatile=True, disk_size=DISK_BYTES), "project quotas"
    except Unsupported:
        return store.create(name, count=4, volatile=True), TMPFS


def commands(containers: Sequence[Container], count: int, seen: Seen | None = None) -> Median:
    took = []
    for number in range(count):
        took.append(seconds(execute, containers[number % len(containers)]))
        if seen is not None:
            seen.look()
    return Median(took) * MILLISECOND


@contextlib.contextmanager
def begin(container: Container, program: str) -> Iterator[Process]:
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with container.popen(["python3", "-c", program], **quiet) as process:  # type: ignore[arg-type]  # as popen has it
        try:
            yield process
        finally:
            process.kill()


class Seen:
    """The most that was seen of each: of processes and memory what the control groups say, of the disk the files."""

    def __init__(self, bad: Sequence[Container], begun: Sequence[Process]) -> None:
        self._bomb, self._hog = bad[:2]
        self._filler, self._spinner = begun[2:]
        self._begin = self._last = time.monotonic()
        self._ticks = self._spent()
        self.processes = self.memory_bytes = self.disk_bytes = 0
        self.cpus = 0.0

    def until(self, seconds: float) -> None:
        while time.monotonic() < self._begin + seconds:
            time.sleep(LOOK_SECONDS)
            self.look()

    def look(self) -> None:
        now = time.monotonic()
        if now - self._last < LOOK_SECONDS:
            return
        self._last = now
        self.processes = max(self.processes, said(self._bomb, "pids", "pids.current", "pids.current"))
        used = said(self._hog, "memory", "memory.max_usage_in_bytes", "memory.peak")
        self.memory_bytes = max(self.memory_bytes, used)
        files = Path(f"/proc/{self._filler.pid}/root{FILLED}").iterdir()
        self.disk_bytes = max(self.disk_bytes, sum(path.stat().st_blocks * 512 for path in files))
        self.cpus = (self._spent() - self._ticks) / os.sysconf("SC_CLK_TCK") / (now - self._begin)

    def _spent(self) -> int:
        """The ticks that the spinner has had (proc(5))."""
        fields = Path(f"/proc/{self._spinner.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])


def said(container: Container, controller: str, first: str, second: str) -> int:
    """What a file of its control group says, by its name in version 1 and in version 2."""
    places = (Path(f"/sys/fs/cgroup/{controller}"), first), (Path("/sys/fs/cgroup"), second)
    for place, name in places:
        if (path := place / f"layerstore-{container.id}" / name).exists():
            return int(path.read_text())
    raise FileNotFoundError(f"no control group of {container.id[:12]} has {first} or {second}")
