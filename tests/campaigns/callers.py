"""Callers that are killed: processes that start containers, run commands in them and stop them, with SIGKILL at any
moment.

    make callers                                           10,000 starts by 8 processes
    make callers CALLERS_ARGS="--starts 300 --seed 7"      fewer, and drawn otherwise

Each caller starts containers in every way, has commands run in them in every way, stops and removes them; by Python and
by commands. What those left that were killed is taken up by the others. Beside them garbage is collected. One in five
is killed with all that it has begun, its runtimes among it.

In the end all are killed. Then the store is opened anew and its garbage collected, as docs/containers.md has it: what
is not in the list of containers must not be in the kernel, nor on the disk. Every container that is listed takes a
command and a stop. Once all are removed nothing is left.

It runs in a process and a mount namespace of its own, so that every process there, and every mount, is of a caller.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import json
import mmap
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from images import Image, docker_files, tar_of
from layer_model import write_tar
from leftovers import mount_points
from test_containers import base, busybox
from waiting import wait_for

from campaigns import record
from layerstore import Container, Store, aio
from layerstore.errors import Conflict, LayerstoreError, NotFound

BASE = "base:1"
BUSYBOX = "/bin/busybox"
SLEEP = [BUSYBOX, "sleep", "1000"]
KEPT = 40
"""How many containers of dead callers may be there: of more, some are removed."""
PATIENCE_SECONDS = 60
"""How long one turn of a caller may take."""
SETTLE_SECONDS = 15
"""How long it may take until runtimes have ended whose callers were killed."""
SLOW_SECONDS = 8
"""How long a command and a stop may take where nobody else does anything."""
STOPPED = (128 + signal.SIGTERM, 128 + signal.SIGKILL)
"""How a command ends where another caller stops its container."""
BETWEEN_KILLS_SECONDS = 0.08
SLACK_BYTES = 256 << 10
INSIDE = "LAYERSTORE_CALLERS_INSIDE"
NAMESPACES = ["unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child", "--mount-proc"]
COUNTED = ("starts", "execs", "stops")
REPORTS = Path(__file__).parents[2] / "build/callers"
_KINDS = ("packs", "objects", "layers", "chains", "blobs", "containers", "logs", "staging")
_CGROUPS = Path("/sys/fs/cgroup")
_SHOWN = 12


class Failed(Exception):
    """Something is not as it must be."""


class Board:
    """Numbers that all callers share, some for each lane, in which a caller that was killed is followed by another."""

    _FIELDS = ("life", "since", *COUNTED)

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        self._numbers = memoryview(mmap.mmap(-1, 8 * lanes * len(self._FIELDS))).cast("d")

    def get(self, lane: int, field: str) -> float:
        return self._numbers[lane * len(self._FIELDS) + self._FIELDS.index(field)]

    def put(self, lane: int, field: str, number: float) -> None:
        self._numbers[lane * len(self._FIELDS) + self._FIELDS.index(field)] = number

    def count(self, lane: int, field: str) -> None:
        self.put(lane, field, self.get(lane, field) + 1)

    def total(self, field: str) -> int:
        return sum(int(self.get(lane, field)) for lane in range(self.lanes))


class Journal:
    """What callers have done, and what went wrong: lines that are in the kernel's hands at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind: str, what: str) -> None:
        os.write(self._fd, (json.dumps([kind, what]) + "\n").encode())

    def noted(self, kind: str) -> list[str]:
        lines = (json.loads(line) for line in self._path.read_text().splitlines())
        return [what for one, what in lines if one == kind]


class Caller:
    """One life of one lane: what it does until it is killed."""

    def __init__(self, root: Path, lane: int, life: int, seed: int, board: Board, journal: Journal) -> None:
        self.root = root
        self.lane = lane
        self.life = life
        self.draw = random.Random(f"{seed} {lane} {life}")
        self.board = board
        self.journal = journal
        self.output = root.parent / f"output-{lane}"
        self.store: Store

    def work(self) -> None:
        while True:
            with Store(self.root) as self.store:
                for _ in range(self.draw.randrange(1, 8)):
                    self.turn()

    def turn(self) -> None:
        self.board.put(self.lane, "since", time.monotonic())
        whats = (self.own, self.of_the_dead, self.collect, self.start_many, self.start_and_forget)
        what = self.draw.choices(whats, (55, 30, 5, 5, 5))[0]
        try:
            what()
        except BaseException:
            self.journal.note("failed", f"{what.__name__}:\n{traceback.format_exc()}")

    # What is done

    def own(self) -> None:
        """All of a container that nobody else has."""
        container = self.create()
        begins = (self.keep_alive, self.start, self.start_printing, self.start_to_its_end, self.run, self.nothing)
        self.draw.choice(begins)(container)
        for _ in range(self.draw.randrange(1, 5)):
            self.execute(container)
        group = f"{_CGROUPS}/unified/layerstore-{container.id}"
        if self.draw.random() < 0.6 and self.stop(container) and os.path.exists(group):
            raise Failed(f"the container was stopped, and there is {group}")
        self.remove(container)

    def of_the_dead(self) -> None:
        """Something is done to a container of a caller that was killed, by several at the same time."""
        # Those without a name were made by `layerstore run`, which may live on.
        containers = [each for each in self.store.containers() if each.name and self.is_of_the_dead(each)]
        if not containers:
            return
        container = self.draw.choice(containers)
        works = [self.execute, self.stop, self.start, self.keep_alive, self.run, self.remove]
        work = self.remove if len(containers) > KEPT else self.draw.choice(works)
        with contextlib.suppress(Conflict, NotFound):
            work(container)

    def is_of_the_dead(self, container: Container) -> bool:
        lane, life, _ = (int(number) for number in str(container.name).split("-")[1:])
        return life < self.board.get(lane, "life")

    def collect(self) -> None:
        self.store.collect_garbage()

    def start_many(self) -> None:
        """Commands that all begin at once in containers that nothing runs in."""
        containers = [self.create() for _ in range(3)]

        async def echo(container: Container, text: str) -> None:
            self.board.count(self.lane, "execs")
            done = await aio.exec(container, [BUSYBOX, "echo", text], capture_output=True)
            self.expect((done.returncode, done.stdout), (0, f"{text}\n".encode()))

        async def all_of_them() -> None:
            await asyncio.gather(*(echo(container, str(number)) for container in containers for number in range(3)))

        for _ in containers:
            self.board.count(self.lane, "starts")
        asyncio.run(all_of_them())
        for _ in containers:
            self.board.count(self.lane, "stops")
        self.journal_removal(containers)
        self.store.remove(containers, force=True)

    # To one container

    def create(self) -> Container:
        number = time.monotonic_ns()
        container = self.store.create(BASE, name=f"of-{self.lane}-{self.life}-{number}", volatile=True)
        self.journal.note("made", container.id)
        return container

    def nothing(self, container: Container) -> None:
        """A command is to start it."""
        self.board.count(self.lane, "starts")

    def keep_alive(self, container: Container) -> None:
        self.board.count(self.lane, "starts")
        limits = ({}, {"pids_limit": 64}, {"memory": "64m", "cpus": 0.5}, {"cpuset_cpus": "0", "pids_limit": -1})
        container.keep_alive(**self.draw.choice(limits))  # type: ignore[arg-type]  # as it has them

    def start(self, container: Container) -> None:
        self.board.count(self.lane, "starts")
        container.start(SLEEP)

    def start_printing(self, container: Container) -> None:
        self.board.count(self.lane, "starts")
        container.start(["/bin/sh", "-c", "while :; do echo line; sleep 0.05; done"])
        self.expect(next(container.logs(follow=True)).data, b"line\n")

    def start_to_its_end(self, container: Container) -> None:
        self.board.count(self.lane, "starts")
        container.start(["/bin/sh", "-c", "echo last; exit 4"])
        self.expect(container.wait(PATIENCE_SECONDS / 2), 4)
        self.expect([printed.data for printed in container.logs()][-1], b"last\n")

    def start_and_forget(self) -> None:
        """It is removed when its program ends."""
        self.board.count(self.lane, "starts")
        self.board.count(self.lane, "stops")
        container = self.create()
        self.journal_removal([container])
        container.start([BUSYBOX, "sleep", "0.01"], auto_remove=True)

    def run(self, container: Container) -> None:
        self.board.count(self.lane, "starts")
        if self.by_command():
            self.command("run", "--rm", BASE, "/bin/true")
        with open(os.devnull, "r+b") as nothing:
            self.expect(container.run(["/bin/sh", "-c", "exit 3"], stdin=nothing, stdout=nothing, stderr=nothing), 3)

    def stop(self, container: Container) -> bool:
        """Whether nobody was killed meanwhile."""
        self.board.count(self.lane, "stops")
        seconds = self.draw.choice((0, 0.1))
        if self.by_command():
            return self.command("stop", "--time", str(seconds), container.id) is not None
        container.stop(seconds)
        return True

    def remove(self, container: Container) -> None:
        self.board.count(self.lane, "stops")
        self.journal_removal([container])
        if self.by_command():
            self.command("rm", "--force", container.id)
        else:
            container.remove(force=True)

    def journal_removal(self, containers: Iterable[Container]) -> None:
        for container in containers:
            self.journal.note("removed", container.id)

    def execute(self, container: Container) -> None:
        self.board.count(self.lane, "execs")
        works = (self.echo, self.status, self.filter, self.to_file, self.in_time, self.leave, self.terminate)
        self.draw.choice(works)(container)

    def echo(self, container: Container) -> None:
        text = f"{self.draw.random()}"
        if self.by_command():
            output = self.command("exec", container.id, BUSYBOX, "echo", text)
        else:
            done = container.exec([BUSYBOX, "echo", text], capture_output=True)
            output = None if done.returncode in STOPPED else done.stdout
        self.expect(output, f"{text}\n".encode(), None)

    def status(self, container: Container) -> None:
        done = container.exec(["/bin/sh", "-c", "exit 5"], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.expect(done.returncode, 5, *STOPPED)

    def filter(self, container: Container) -> None:
        data = self.draw.randbytes(200_000)
        done = container.exec(["/bin/cat"], input=data, capture_output=True)
        self.expect(done.returncode, 0, *STOPPED)
        if done.returncode == 0:
            self.expect(done.stdout, data)

    def to_file(self, container: Container) -> None:
        with self.output.open("w+b") as output, open(os.devnull, "rb") as nothing:
            done = container.exec(["/bin/echo", "written"], stdin=nothing, stdout=output, stderr=output)
            self.expect(done.returncode, 0, *STOPPED)
            if done.returncode == 0:
                self.expect(self.output.read_bytes(), b"written\n")

    def in_time(self, container: Container) -> None:
        """What it has started goes with it, out of its session, too."""
        script = "setsid sleep 1000 & sleep 1000"
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = container.exec(["/bin/sh", "-c", script], capture_output=True, timeout=self.draw.uniform(0, 0.1))
            self.expect(done.returncode, *STOPPED)

    def leave(self, container: Container) -> None:
        """It has started something that stays."""
        container.exec(["/bin/sh", "-c", "sleep 1000 >/dev/null 2>&1 &"], stdin=subprocess.DEVNULL)

    def terminate(self, container: Container) -> None:
        with container.popen(SLEEP, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
            self.draw.choice((process.terminate, process.kill))()
        self.expect(process.returncode, *STOPPED)

    def expect(self, found: object, *wanted: object) -> None:
        if found not in wanted:
            raise Failed(f"{found!r:.200} is none of {wanted!r:.200}")

    def by_command(self) -> bool:
        return self.draw.random() < 0.1

    def command(self, *arguments: str) -> bytes | None:
        """What a command printed; None where it was killed, as half of them are. Raises `Conflict` where it failed."""
        command = [sys.executable, "-m", "layerstore", "--root", str(self.root), *arguments]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as begun:
            if self.draw.random() < 0.5:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    begun.wait(self.draw.uniform(0.1, 0.5))
                begun.kill()
            output, errors = begun.communicate()
        if begun.returncode == -signal.SIGKILL:
            return None
        if begun.returncode:
            said = errors.decode(errors="replace")
            raise Conflict(said) if "Traceback" not in said else Failed(said)
        return output


class Campaign:
    """A store, callers in lanes that are killed, and what is left of them."""

    def __init__(self, scratch: Path, seed: int, lanes: int) -> None:
        self.scratch = scratch
        self.root = scratch / "store"
        self.seed = seed
        self.board = Board(lanes)
        self.journal = Journal(scratch / "journal")
        self.kills = 0
        self._draw = random.Random(seed)
        self._ids: set[str] = set()
        self._processes: dict[int, int] = {}
        """Of each lane the process that lives."""
        image = Image([write_tar(base()), busybox()], [BASE])
        with Store(self.root, create=True) as store:
            store.load(self._write("base.tar", tar_of(docker_files([image]))))
        self._used = self.used()

    def _write(self, name: str, data: bytes) -> Path:
        path = self.scratch / name
        path.write_bytes(data)
        return path

    def run(self, starts: int) -> list[record.Row]:
        begin = time.monotonic()
        hung = self._let_call(starts)
        print(
            f"{self.board.total('starts')} starts, {self.kills} kills in {time.monotonic() - begin:.0f} s", flush=True
        )
        failures = self.journal.noted("failed") + hung
        lost, left = [], []
        for check in (self.check_kernel_and_disk, self.check_containers, self.check_removal):
            try:
                found = check()
            except (LayerstoreError, OSError, Failed, AssertionError):
                failures.append(f"{check.__name__}:\n{traceback.format_exc()}")
                continue
            (lost if check == self.check_containers else left).extend(found)
        self._report({"FAILED": failures, "LOST": lost, "LEFT": left})
        by = f"by {self.board.lanes} processes"
        starts_row = record.Row(
            f"starts of containers {by}", self.board.total("starts"), len(lost), 0, len(failures), len(left)
        )
        others = [record.Row(f"{name} {by}", self.board.total(name)) for name in ("execs", "stops")]
        return [starts_row, *others, record.Row("SIGKILL of one of these at any moment", self.kills)]

    # Callers

    def _let_call(self, starts: int) -> list[str]:
        """Until there were so many starts. Returns who hung."""
        hung: list[str] = []
        next_kill = 0.0
        for lane in range(self.board.lanes):
            self._begin(lane)
        while self.board.total("starts") < starts and not hung:
            self._reap()
            self._ids.update(os.listdir(self.root / "containers"))
            if time.monotonic() > next_kill:
                next_kill = time.monotonic() + self._draw.expovariate(1 / BETWEEN_KILLS_SECONDS)
                self._kill(self._draw.randrange(self.board.lanes))
            for lane in range(self.board.lanes):
                if lane not in self._processes:
                    self._begin(lane)
                elif time.monotonic() - self.board.get(lane, "since") > PATIENCE_SECONDS:
                    os.kill(self._processes[lane], signal.SIGUSR1)
                    hung.append(f"caller {lane}, process {self._processes[lane]}, hangs: its log says where")
            time.sleep(0.002)
        if hung:
            time.sleep(1)
        for lane in self._processes:
            self._kill(lane)
        wait_for(lambda: self._reap() or not self._processes)
        self._ids.update(os.listdir(self.root / "containers"), self.journal.noted("made"))
        return hung

    def _begin(self, lane: int) -> None:
        life = int(self.board.get(lane, "life")) + 1
        self.board.put(lane, "life", life)
        self.board.put(lane, "since", time.monotonic())
        pid = os.fork()
        if pid:
            self._processes[lane] = pid
            return
        try:
            os.setpgid(0, 0)
            log = os.open(self.scratch / f"log-{lane}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            faulthandler.register(signal.SIGUSR1)
            Caller(self.root, lane, life, self.seed, self.board, self.journal).work()
        except BaseException:
            self.journal.note("failed", traceback.format_exc())
        finally:
            os._exit(1)

    def _kill(self, lane: int) -> None:
        pid = self._processes.get(lane)
        if pid is None:
            return
        self.kills += 1
        with contextlib.suppress(ProcessLookupError):
            if self._draw.random() < 0.2:
                os.killpg(pid, signal.SIGKILL)
            else:
                os.kill(pid, signal.SIGKILL)

    def _reap(self) -> None:
        """Wait for callers that have ended."""
        with contextlib.suppress(ChildProcessError):
            while (pid := os.waitpid(-1, os.WNOHANG)[0]) != 0:
                for lane in [lane for lane, process in self._processes.items() if process == pid]:
                    del self._processes[lane]

    # What is left

    def check_kernel_and_disk(self) -> list[str]:
        """What there is that belongs to no container in the list, or to one that does not run."""
        with contextlib.suppress(AssertionError):  # then it is told below
            wait_for(lambda: self._reap() or not self._commands(), SETTLE_SECONDS)
        with Store(self.root) as store:
            store.collect_garbage()
            listed = {container.id for container in store.containers()}
            running = {container.id for container in store.containers() if container.state == "running"}
        print(f"{len(listed)} containers are listed then, {len(running)} run", flush=True)
        self._reap()
        left = [f"group {path}" for path in self._groups() if path.name.removeprefix("layerstore-") not in running]
        left += [f"process {pid}: {text}" for pid, text in self._strangers(running).items()]
        left += [
            f"mount {path}"
            for path in self._mounts()
            if path.parent.parent.name == "containers" and path.parent.name not in listed
        ]
        for directory in ("containers", "run/runtime", "run/borrowed"):
            there = os.listdir(self.root / directory) if (self.root / directory).exists() else []
            left += [f"{directory}/{name}" for name in there if name not in listed]
        return left

    def check_containers(self) -> list[str]:
        """What was made and not removed is there; each takes a command and a stop, and nothing stays of it."""
        lost: list[str] = []
        removed = set(self.journal.noted("removed"))
        with Store(self.root) as store:
            containers = store.containers()
            there = {container.id for container in containers}
            lost += [f"container {id}" for id in self.journal.noted("made") if id not in removed and id not in there]
            for container in containers:
                begin = time.monotonic()
                done = container.exec(["/bin/echo", "here"], capture_output=True, text=True)
                if done.stdout != "here\n":
                    lost.append(f"a command in container {container.id}: {done}")
                middle = time.monotonic()
                container.stop(0)
                if (slow := time.monotonic() - begin) > SLOW_SECONDS:
                    lost.append(f"a command and a stop of {container.id} took {middle - begin:.1f} of {slow:.1f} s")
                if container.state == "running":
                    told = self._of_container(container.id)
                    lost.append(f"a stop of container {container.id}: it is {container.state}, with {told}")
                files = os.listdir(self.root / "containers" / container.id)
                if kept := [name for name in files if name.startswith(("command-", ".null-"))]:
                    lost.append(f"after the stop container {container.id} has {kept}")
            running = {container.id for container in containers if container.state == "running"}
        with contextlib.suppress(AssertionError):  # then it is told below
            wait_for(lambda: self._reap() or not self._strangers(running), 5)
        lost += [f"after all stops there is the group {path}" for path in self._groups()]
        lost += [f"after all stops there is process {pid}: {text}" for pid, text in self._strangers(running).items()]
        return lost

    def check_removal(self) -> list[str]:
        """Once all are removed there is nothing."""
        with Store(self.root) as store:
            store.remove(store.containers(), force=True)
            store.collect_garbage()
        with contextlib.suppress(AssertionError):
            wait_for(lambda: self._reap() or not self._strangers(()), 5)
        left = [f"group {path}" for path in self._groups()]
        left += [f"process {pid}: {text}" for pid, text in self._strangers(()).items()]
        left += [f"mount {path}" for path in self._mounts()]
        left += [f"a network namespace is mounted at {path}" for path in _namespaces_mounted()]
        for directory in ("containers", "logs", "staging", "run/runtime", "run/borrowed"):
            if (self.root / directory).exists():
                left += [f"{directory}/{name}" for name in os.listdir(self.root / directory)]
        used = self.used()
        if used.total() > self._used.total() + SLACK_BYTES:
            left.append(f"{used.total() - self._used.total()} bytes, of {dict(used - self._used)}")
        return left

    def used(self) -> Counter[str]:
        """What the store takes on disk in which directory, bytes, without what is derived."""
        with Store(self.root) as store:
            store.evict_derived(0)
            store.collect_garbage()
        found = Counter[str]()
        for kind in _KINDS:
            paths = [path for path in (self.root / kind).rglob("*") if not path.is_dir()]
            found[kind] = sum(path.lstat().st_blocks * 512 for path in paths)
        return found

    def _groups(self) -> list[Path]:
        """The control groups of our containers, in whatever hierarchy."""
        ours = {f"layerstore-{id}" for id in self._ids}
        return [Path(top) for top, _, _ in os.walk(_CGROUPS) if os.path.basename(top) in ours]

    def _mounts(self) -> list[Path]:
        return [Path(path) for path in mount_points() if path.startswith(f"{self.root}/")]

    def _of_container(self, id: str) -> str:
        """What the runtime says of it, and its processes."""
        runtime = subprocess.run(["crun", "--root", self.root / "run/runtime", "list"], capture_output=True, text=True)
        told = [line for line in (runtime.stdout + runtime.stderr).splitlines() if id in line]
        told += [f"{pid} {text}" for pid, text in _processes().items() if id in text or id in _groups_of(pid)]
        return "\n".join(told)

    def _commands(self) -> list[int]:
        """Commands of ours and runtimes that were begun by who was killed; not the runtimes that wait for a program."""
        return [
            pid
            for pid, text in _processes().items()
            if f"--root {self.root}" in text and " exec --process " not in text
        ]

    def _strangers(self, running: Iterable[str]) -> dict[int, str]:
        """The processes that are neither of a container that runs nor for one: not in its groups, without its id among
        their arguments, not on the other end of a pipe of such a one."""
        found = _processes()
        time.sleep(0.01)
        # Those that have not ended meanwhile: of these it can be told what they belong to.
        found = {pid: text for pid, text in found.items() if os.path.exists(f"/proc/{pid}")}
        known = {pid for pid, text in found.items() if any(id in text or id in _groups_of(pid) for id in running)}
        pipes = {pipe for pid in known for pipe in _pipes_of(pid)}
        known |= {pid for pid in found if _pipes_of(pid) & pipes}
        return {pid: text for pid, text in found.items() if pid not in known and os.path.exists(f"/proc/{pid}")}

    def _report(self, found: dict[str, list[str]]) -> None:
        """Print some of what went wrong; all of it is written to a file."""
        if not any(found.values()):
            return
        REPORTS.mkdir(parents=True, exist_ok=True)
        report = REPORTS / f"{self.scratch.name}.log"
        logs = "".join(path.read_text(errors="replace") for path in sorted(self.scratch.glob("log-*")))
        report.write_text("".join(f"{kind} {line}\n" for kind, lines in found.items() for line in lines) + logs)
        for kind, lines in found.items():
            counts = Counter(f"{line.splitlines()[0]} {line.strip().splitlines()[-1]}" for line in lines)
            for line, count in counts.most_common(_SHOWN):
                print(f"{kind} {count} times: {line[:300]}", flush=True)
        print(f"all of it, with tracebacks: {report}", flush=True)

    def remove(self) -> None:
        """All of it, whatever state it is in."""
        for pid in _processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in self._groups():
            with contextlib.suppress(OSError, AssertionError):
                (path / "cgroup.kill").write_text("1")
        self._reap()
        for top in reversed(self._groups()):
            for path, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError, AssertionError):
                    wait_for(lambda path=path: _has_gone(path), 2)  # type: ignore[misc]
        for mounted in reversed(self._mounts()):
            subprocess.run(["umount", "--lazy", mounted], stderr=subprocess.DEVNULL, check=False)
        shutil.rmtree(self.scratch, ignore_errors=True)


def _has_gone(group: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        try:
            os.rmdir(group)
        except OSError:
            return False
    return True


def _processes() -> dict[int, str]:
    """Every process of this namespace but this one and the first: its id, and its command."""
    found = {}
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) not in (1, os.getpid()):
            with contextlib.suppress(OSError):
                if text := (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found[int(path.name)] = text
                elif (path / "stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    found[int(path.name)] = (path / "comm").read_text()
    return found


def _groups_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text()
    except OSError:
        return ""


def _pipes_of(pid: int) -> set[str]:
    found = set()
    with contextlib.suppress(OSError):
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if (name := os.readlink(path)).startswith("pipe:"):
                    found.add(name)
    return found


def _namespaces_mounted() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if " - nsfs " in line:
            yield line.split()[4]


def enter_namespaces() -> None:
    command = [*NAMESPACES, sys.executable, "-m", "campaigns.callers", *sys.argv[1:]]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def beside_init() -> None:
    """Go on in a child, while the first process of the namespace waits for all that lose their parent, as a machine's
    init does: as long as nobody does, the container that they were in has not ended."""
    child = os.fork()
    if not child:
        return
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: os.kill(child, number))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="callers", description="Starts, commands and stops, with kills of the callers."
    )
    parser.add_argument("--starts", type=int, default=10_000, help="of containers (%(default)s)")
    parser.add_argument("--processes", type=int, default=8, help="that call at once (%(default)s)")
    parser.add_argument("--seed", type=int, help="of what is drawn; by default another one each time")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where the store is")
    parser.add_argument("--record", action="store_true", help="write the results, and the table of docs/reliability.md")
    options = parser.parse_args()
    if INSIDE not in os.environ:
        enter_namespaces()
    beside_init()
    os.environ["LAYERSTORE_STRICT_LOCKS"] = "1"
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"== --starts {options.starts} --processes {options.processes} --seed {seed}", flush=True)
    begin = time.monotonic()
    campaign = Campaign(
        Path(tempfile.mkdtemp(prefix="layerstore-callers-", dir=options.scratch)), seed, options.processes
    )
    try:
        rows = campaign.run(options.starts)
    finally:
        campaign.remove()
    if options.record:
        record.write("callers", rows, record.command_of("callers", sys.argv[1:]), time.monotonic() - begin)
    return record.told(rows)


if __name__ == "__main__":
    sys.exit(main())
