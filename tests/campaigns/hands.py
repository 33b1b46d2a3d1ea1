"""Many hands on one container: processes that do every verb of the store to it, with random kills; and many starts.

    make hands                                             16 processes on one container for 10 minutes, then 8 of four
                                                           threads on 4 containers, then 1,000 starts
    make hands HANDS_ARGS="--seconds 30 --seed 7"          shorter, and drawn otherwise
    make hands HANDS_ARGS="--only one --verbs mount,umount,rm"  a part of it, and some of the verbs (verbs.py)

Each process mounts, writes, runs programs, commits, exports, copies, forks, rolls back, moves, removes and makes anew
the container that all others have, by Python and by commands, beside everything that is done to its image and to the
store. Three in four are killed now and then, and begun again. One begins exports that nobody reads on; one has a
container of its own, which must not wait for that.

What is in a container are directories that tell themselves whether they are whole (generations.py). What is read of it
in any way must have those that were there, and an image that was committed all of them. Beside that it is watched that
nothing is mounted twice, that every verb ends, and that nothing is left. With a failure comes the command to draw the
same again; which of two processes is first is not drawn.
"""

import argparse
import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from images import Image, docker_files, tar_of
from layer_model import write_tar
from leftovers import loop_devices, mount_points
from test_containers import base, busybox
from waiting import wait_for

from campaigns import record, verbs
from campaigns.generations import History, Seen, Span
from campaigns.verbs import BASE, MARK, VERBS
from layerstore import Store
from layerstore._core import mount
from layerstore.errors import LayerstoreError

PATIENCE_SECONDS = 60
"""How long one verb may take."""
HOLD_SECONDS = 25
"""How long an export is left unread."""
BYSTANDER_SECONDS, BYSTANDER_PART = 5, 0.6
"""How long all may take that is done to a container which nobody else has, and what part of such an export: it must not
wait for that."""
DERIVED_LIMIT_BYTES = 64 << 10
"""So little that whoever needs an index makes it, and evicts others."""
SLACK_BYTES = 256 << 10
"""What the store may take more on disk than before: blocks that are partly used, directories that have grown."""
_KINDS = ("packs", "objects", "cold", "layers", "chains", "blobs", "containers", "logs", "staging", "downloads")
_CGROUPS = Path("/sys/fs/cgroup")
_SHOWN = 12
_SHOWN_BYTES = 300
REPORTS = Path(__file__).parents[2] / "build/hands"
"""Where all that went wrong is written to, and the journals."""


@dataclass
class Running:
    """A process of hands. `is_mortal`: it may be killed."""

    options: verbs.Options
    process: subprocess.Popen[bytes]
    is_mortal: bool


@dataclass
class Told:
    """What all journals say."""

    history: History = field(default_factory=History)
    seen: list[Seen] = field(default_factory=list)
    verbs: list[dict[str, Any]] = field(default_factory=list)
    forced: dict[str, list[Span]] = field(default_factory=lambda: defaultdict(list))
    committed: dict[str, tuple[str, Span, str | None]] = field(default_factory=dict)
    """Name of an image -> the container, while it was committed, and its id; None where nobody saw the end."""
    untagged: set[str] = field(default_factory=set)
    """Names that may have been removed."""

    def is_disturbed(self, container: str, span: Span) -> bool:
        """Whether a container was taken from who used it, by force."""
        return any(span.overlaps(forced) for forced in self.forced[container])

    def is_excused(self, note: dict[str, Any]) -> bool:
        """Whether what failed may do so: the mount that it used was taken away by force, or a rollback took what it had
        just made."""
        span, container = Span(note["begin"], note["at"]), note["of"]
        if container is None:
            return False
        rolled_back = any(span.overlaps(rollback) for rollback, _ in self.history.rollbacks[container])
        if rolled_back and note["verb"] in verbs.WRITERS and note["errno"] in (errno.ENOENT, errno.ESTALE):
            return True
        return note["verb"] in verbs.IN_MOUNT and self.is_disturbed(container, span)


def read_journals(directory: Path, killed: dict[str, float]) -> Told:
    """What processes have noted; `killed` says when those ended that did not do so by themselves."""
    told = Told()
    made: list[dict[str, Any]] = []
    shown: list[dict[str, Any]] = []
    for path in sorted(directory.iterdir()):
        lines = path.read_text().splitlines(keepends=True)
        notes = [json.loads(line) for line in lines if line.endswith("\n")]  # its last may be a part
        ends = {note["ends"]: note for note in notes if "ends" in note}
        # A command that it had begun ends with it, but not at the same moment.
        death = killed.get(path.name, float("inf")) + 1
        for note in notes:
            kind = note["kind"]
            if kind == "verb":
                told.verbs.append(note)
            elif kind == "made":
                made.append(note)
            elif kind == "shown":
                shown.append(note)
            elif kind == "saw":
                span = Span(note["begin"], note["end"])
                told.seen.append(Seen(note["of"], span, f"{note['how']} by {note['maker']}", note["found"]))
            elif "begins" in note:
                _note_span(told, note, ends.get(note["begins"]), death)
    for note in made:
        span = Span(note["begin"], note["at"])
        if not told.is_disturbed(note["of"], span):
            told.history.made[note["of"]][note["name"]] = span
    for note in shown:
        if note["name"] in told.committed:
            of, span, _ = told.committed[note["name"]]
            told.seen.append(Seen(of, span, f"image {note['name']} mounted by {note['maker']}", note["found"]))
    return told


def _note_span(told: Told, note: dict[str, Any], end: dict[str, Any] | None, death: float) -> None:
    """What was begun: `end` is None where its process was killed before it ended."""
    kind, of, name = note["kind"], note.get("of"), note.get("name", "")
    if end is not None and end["is_done"] is False and kind not in ("removed", "forced", "untagged"):
        return  # it says that nothing was done
    span = Span(note["at"], death if end is None else end["at"])
    if kind == "removed":
        told.history.removed[of, name].append(span)
    elif kind == "rollback":
        told.history.rollbacks[of].append((span, name))
    elif kind == "snapshot":
        told.history.snapshots[of, name] = span
    elif kind == "forced":
        told.forced[of].append(span)
    elif kind == "untagged":
        told.untagged.add(name)
    else:
        told.committed[name] = of, span, None if end is None else end.get("image")


class MountWatcher:
    """Looks at what is mounted below a directory whenever that changes: nothing may be there twice."""

    def __init__(self, top: Path) -> None:
        self._top = str(top)
        self._stop = threading.Event()
        self.looks = 0
        self.doubles: list[str] = []
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> "MountWatcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        with open("/proc/self/mountinfo", "rb", buffering=0) as file:
            poll = select.poll()
            poll.register(file, select.POLLPRI)  # the kernel tells so of changes (proc(5), /proc/pid/mounts)
            before: dict[str, set[str]] = {}
            while not self._stop.is_set():
                found = self._look(file)
                for what, ids in found.items():
                    # The kernel gives it in parts: what moved meanwhile may be in two of them.
                    if len(ids & before.get(what, set())) > 1 and what not in self.doubles:
                        self.doubles.append(what)
                        print(f"mounted {len(ids)} times at {time.monotonic():.3f}: {what}", flush=True)
                before = found
                if not found:
                    poll.poll(200)

    def _look(self, file: io.FileIO) -> dict[str, set[str]]:
        """The mount points and upper directories that are there more than once, each with the ids of the mounts."""
        self.looks += 1
        file.seek(0)
        found: dict[str, set[str]] = defaultdict(set)
        for line in file.readall().decode(errors="replace").splitlines():
            if self._top in line:
                fields = line.split()
                found[fields[4]].add(fields[0])
                for option in fields[-1].split(","):
                    if option.startswith("upperdir="):
                        found[option].add(fields[0])
        return {what: ids for what, ids in found.items() if len(ids) > 1}


class Campaign:
    """One store, and the hands on it."""

    def __init__(self, scratch: Path, seed: int, derived_limit_bytes: int | None, again: str) -> None:
        self.scratch = scratch
        self.root = scratch / "store"
        self.seed = seed
        self._draw = random.Random(seed)
        self._again = again
        self._killed: dict[str, float] = {}
        self._hung: list[str] = []
        self._ids: set[str] = set()
        for name in ("journal", "status", "own", "context", "upon", "logs"):
            (scratch / name).mkdir()
        (scratch / "context/file").write_bytes(b"of the context")
        (scratch / "context/Dockerfile").write_text(
            f"FROM {BASE}\nARG round\nENV ROUND=$round\nCOPY file /copied/\nRUN echo $ROUND >/round\n"
        )
        (scratch / "upon/file").write_bytes(b"upon another")
        (scratch / "upon/Dockerfile").write_text("ARG UPON\nFROM ${UPON}\nCOPY file /upon\n")
        image = Image([write_tar(base()), busybox()], [BASE])
        (scratch / "base.tar").write_bytes(tar_of(docker_files([image])))
        with Store(self.root, create=True, derived_limit_bytes=derived_limit_bytes) as store:
            store.load(scratch / "base.tar")
        self._used = self.used()

    # Processes

    def start(self, options: verbs.Options, *, is_mortal: bool) -> Running:
        command = [sys.executable, "-m", "campaigns.verbs", json.dumps(vars(options), default=str)]
        with (self.scratch / "logs" / options.process).open("w") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return Running(options, process, is_mortal)

    def many(
        self, processes: int, threads: int, containers: int, seconds: float, names: list[str], hold_seconds: float
    ) -> Iterator[record.Row]:
        alike = threads, containers, self.seed, hold_seconds
        running = [
            self.start(verbs.Options(number, 0, *alike, names, self.scratch), is_mortal=number % 4 != 0)
            for number in range(processes)
        ]
        for number, verb in ((1000, "export-held"), (1001, "bystand")):
            options = verbs.Options(number, 0, 1, containers, self.seed, hold_seconds, [verb], self.scratch)
            running.append(self.start(options, is_mortal=False))
        try:
            with MountWatcher(self.root) as watcher:
                self._let_work(running, time.monotonic() + seconds)
                (self.scratch / "stop").touch()
                self._let_work(running, None)
        finally:
            for each in running:
                each.process.kill()
                each.process.wait()
        told = read_journals(self.scratch / "journal", self._killed)
        yield from self._rows(told, running, watcher, hold_seconds, f"{_on(containers)} by {_by(processes, threads)}")

    def _let_work(self, running: list[Running], until: float | None) -> None:
        """Until then, with kills meanwhile; or until all have ended. Not for longer where one hangs."""
        kill_at = 0.0
        while not self._hung and (until is None or time.monotonic() < until):
            alive = [each for each in running if each.process.poll() is None]
            if until is None and not alive:
                return
            self._ids.update(os.listdir(self.root / "containers"))
            for each in running:
                self._check_time(each)
            if until is not None and time.monotonic() > kill_at:
                kill_at = time.monotonic() + self._draw.uniform(0.2, 3)
                self._kill_one(running)
            time.sleep(0.05)
            if self._hung:
                self._tell_where(running)

    def _kill_one(self, running: list[Running]) -> None:
        mortal = [number for number, each in enumerate(running) if each.is_mortal and each.process.poll() is None]
        if not mortal:
            return
        number = self._draw.choice(mortal)
        victim = running[number]
        victim.process.kill()
        victim.process.wait()
        self._killed[victim.options.process] = time.monotonic()
        for path in (self.scratch / "status").glob(f"{victim.options.process}.*"):
            path.unlink()
        for path in (self.scratch / "own").glob(f"{victim.options.process}.*"):
            shutil.rmtree(path, ignore_errors=True)  # a command of its own may write to it yet
        options = dataclasses.replace(victim.options, life=victim.options.life + 1)
        running[number] = self.start(options, is_mortal=True)

    def _check_time(self, running: Running) -> None:
        for path in (self.scratch / "status").glob(f"{running.options.process}.*"):
            if running.process.poll() is not None:
                return
            text = path.read_text()
            if not text:
                continue
            what, since, allowed = json.loads(text)
            waits = time.monotonic() - since
            if waits > PATIENCE_SECONDS + allowed:
                self._hung.append(f"{path.name} of process {running.process.pid}: {what}, for {waits:.0f} s")

    def _tell_where(self, running: list[Running]) -> None:
        """Who holds which lock, who waits for one, and where each process and each command is."""
        print("\n".join(["it hangs:", *self._hung]))
        pids = [each.process.pid for each in running if each.process.poll() is None]
        print("\n".join(locks_of(_with_children(pids))))
        for path in sorted((self.scratch / "status").iterdir()):
            print(f"{path.name} {path.read_text().strip()} at {time.monotonic():.1f}")
        for pid in _with_children(pids):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
                print(f"process {pid}: {command[-_SHOWN_BYTES:]}\n{Path(f'/proc/{pid}/stack').read_text()}")
                if sys.executable in command:
                    os.kill(pid, signal.SIGUSR1)
        time.sleep(2)
        for log in sorted((self.scratch / "logs").iterdir()):
            if text := log.read_text():
                print(f"log of {log.name}:\n{text}")
        sys.stdout.flush()

    # What came of it

    def _rows(
        self, told: Told, running: list[Running], watcher: MountWatcher, hold_seconds: float, where: str
    ) -> Iterator[record.Row]:
        _print_counts(told)
        failures = [note for note in told.verbs if note["what"] == "failed" and not told.is_excused(note)]
        slow = [
            f"all of a container that nobody else has took {note['at'] - note['begin']:.1f} s"
            for note in told.verbs
            if note["verb"] == "bystand"
            and note["at"] - note["begin"] > max(BYSTANDER_SECONDS, BYSTANDER_PART * hold_seconds)
        ]
        crashed = [] if self._hung else [self._log_of(each) for each in running if each.process.returncode]
        lost = [f"{_where(seen)}: {each}" for seen in told.seen for each in told.history.lost(seen)]
        torn = [f"{_where(seen)}: {each}" for seen in told.seen for each in told.history.torn(seen)]
        images, left = 0, []
        if not self._hung:
            with _as_failures(left, "the images at the end"):
                images = self._check_images(told, lost, torn)
            left += self.leftovers()
        self._report(failures, {"CRASHED": crashed, "SLOW": slow, "LOST": lost, "TORN": torn, "LEFT": left})
        if failures or crashed or slow or lost or torn or left or self._hung or watcher.doubles:
            print(f"again: {self._again}", flush=True)
        yield record.Row(
            f"every verb {where}",
            len(told.verbs),
            crashed=len(failures) + len(slow) + (len(self._hung) or len(crashed)),
            leaked=len(left),
        )
        yield record.Row(
            f"what is read or committed meanwhile {where}",
            len(told.seen) + images,
            lost=len(lost),
            corrupt=len(torn),
        )
        yield record.Row(f"a look for what is mounted twice {where}", watcher.looks, corrupt=len(watcher.doubles))
        yield record.Row(f"SIGKILL at any moment {where}", len(self._killed))

    def _log_of(self, running: Running) -> str:
        options = running.options
        log = (self.scratch / "logs" / options.process).read_text()
        return f"process {options.process} ended with {running.process.returncode}:\n{log}"

    def _report(self, failures: list[dict[str, Any]], others: dict[str, list[str]]) -> None:
        """Print some of what went wrong; all of it is written to a file."""
        lines = {
            "FAILED": [
                f"{note['verb']} by {note['maker']} from {note['begin']:.3f} to {note['at']:.3f} of {note['of']}:\n"
                f"{note['why']}"
                for note in failures
            ],
            **others,
        }
        if not any(lines.values()):
            return
        REPORTS.mkdir(parents=True, exist_ok=True)
        report = REPORTS / f"{self.scratch.name}.log"
        shutil.copytree(self.scratch / "journal", REPORTS / self.scratch.name)
        report.write_text("".join(f"{kind} {line}\n" for kind, found in lines.items() for line in found))
        kinds = Counter(f"{note['verb']}: {note['why'].strip().splitlines()[-1]}"[:_SHOWN_BYTES] for note in failures)
        for kind, count in kinds.most_common(_SHOWN):
            print(f"FAILED {count} times: {kind}")
        for kind, found in others.items():
            for line in found[:_SHOWN]:
                print(f"{kind} {line}")
        print(f"all of them, with tracebacks: {report}; what was done when: {report.with_suffix('')}", flush=True)

    def _check_images(self, told: Told, lost: list[str], torn: list[str]) -> int:
        """Look at images that were committed for what is missing or not whole; returns how many there are."""
        checked = 0
        with Store(self.root, verify="always") as store:
            there = {name: image for image in store.images() for name in image.names}
            for name, (container, span, image_id) in told.committed.items():
                image = there.get(name) or there.get(f"free-{name.removeprefix('own-')}")
                if image is None:
                    if image_id is not None and name not in told.untagged:
                        lost.append(f"image {name}, committed at {span.end:.3f}, is gone")
                    continue
                checked += 1
                if image_id is not None and image.id != image_id:
                    lost.append(f"image {name} is {image.id}, and was {image_id}")
                seen = Seen(container, span, f"image {name} at the end", verbs.read_image(image))
                lost += [f"{_where(seen)}: {each}" for each in told.history.lost(seen)]
                torn += [f"{_where(seen)}: {each}" for each in told.history.torn(seen)]
            torn += [f"fsck: {vars(damage)}" for damage in store.check().damages]
        return checked

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

    def leftovers(self) -> list[str]:
        """What is left once all that hands have made is removed again: there should be nothing."""
        left: list[str] = []
        with _as_failures(left, "what hands have made cannot be removed"), Store(self.root) as store:
            store.remove(store.containers(), force=True)
            for name in [name for image in store.images() for name in image.names if name != BASE]:
                store.remove_image(name)
            store.load(self.scratch / "base.tar")
        top = f"{self.scratch}/"

        def in_the_kernel() -> list[str]:
            found = [f"mount {path}" for path in mount_points() if path.startswith(top)]
            found += [f"{device} of {file}" for device, file in loop_devices().items() if file.startswith(top)]
            found += [f"process {pid}: {command}" for pid, command in self.processes().items()]
            return found + [f"control group {path}" for path in self._groups()]

        with contextlib.suppress(AssertionError):
            wait_for(lambda: not in_the_kernel(), 5)
        left += in_the_kernel()
        with _as_failures(left, "garbage cannot be collected"):
            # Now that the commands have ended which hands had begun that were killed.
            with Store(self.root) as store:
                store.prune(older_than_seconds=0)
            used = self.used()
            if used.total() > self._used.total() + SLACK_BYTES:
                left.append(f"{used.total() - self._used.total()} bytes, of {dict(used - self._used)}")
        for name in (
            "containers",
            "logs",
            "staging",
            "run/runtime",
            "builds/images",
            "builds/containers",
            "builds/temporary",
        ):
            if (self.root / name).exists():
                left += [f"{name}/{each}" for each in os.listdir(self.root / name)]
        left += [f"run/{each}" for each in os.listdir(self.root / "run") if len(each) > 64 and each.endswith(".lock")]
        left += locks_of([int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()], self.root)
        return left

    def processes(self) -> dict[int, str]:
        """Those that run in containers, or otherwise for a hand."""
        found = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit() and int(path.name) != os.getpid():
                with contextlib.suppress(OSError):
                    command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    is_ours = f"{MARK}={self.scratch}".encode() in (path / "environ").read_bytes().split(b"\0")
                    if is_ours or str(self.scratch) in command:
                        found[int(path.name)] = command
        return found

    def _groups(self) -> list[str]:
        return [top for top, _, _ in os.walk(_CGROUPS) if any(id_ in os.path.basename(top) for id_ in self._ids)]

    def starts(self, count: int, at_once: int) -> record.Row:
        """Containers that are made, run or start a program, and are removed."""
        failures: list[str] = []

        def one(store: Store, number: int) -> None:
            try:
                container = store.create(BASE)
                self._ids.add(container.id)
                marked = {MARK: str(self.scratch)}
                if number % 2:
                    with open(os.devnull, "rb") as nothing:
                        status = container.run(["/bin/true"], env=marked, stdin=nothing)
                    if status:
                        raise verbs.Failed(f"the program ended with {status}")
                    container.remove()
                else:
                    container.start(["/bin/busybox", "sleep", "100"], env=marked)
                    if container.state != "running":
                        raise verbs.Failed(f"it is {container.state}, and not running")
                    container.remove(force=True)
            except (LayerstoreError, OSError, verbs.Failed) as error:
                failures.append(f"{number}: {type(error).__name__}: {error}")

        begin = time.monotonic()
        with Store(self.root) as store, ThreadPoolExecutor(at_once) as threads:
            for _ in threads.map(lambda number: one(store, number), range(count)):
                pass
        print(f"{count} starts, {at_once} at a time: {count / (time.monotonic() - begin):.0f} a second")
        left = self.leftovers()
        for line in failures[:_SHOWN] + left[:_SHOWN]:
            print(f"starts: {line}", flush=True)
        return record.Row(f"starts, {at_once} at a time", count, crashed=len(failures), leaked=len(left))

    def remove(self) -> None:
        """All of it, whatever state it is in."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for path in sorted(mount_points(), reverse=True):
            if path.startswith(f"{self.scratch}/"):
                with contextlib.suppress(OSError):
                    mount.umount(path, lazy=True)
        for path in self._groups():
            with contextlib.suppress(OSError):
                os.rmdir(path)
        shutil.rmtree(self.scratch, ignore_errors=True)


@contextlib.contextmanager
def _as_failures(found: list[str], what: str) -> Iterator[None]:
    """Has an error of the block be one more of what is found."""
    try:
        yield
    except (LayerstoreError, OSError):
        found.append(f"{what}: {traceback.format_exc()}")


def _where(seen: Seen) -> str:
    return f"{seen.how} of {seen.container[:12]} from {seen.span.begin:.3f} to {seen.span.end:.3f}"


def _on(containers: int) -> str:
    return "on one container" if containers == 1 else f"on {containers} containers"


def _by(processes: int, threads: int) -> str:
    return f"{processes} processes" if threads == 1 else f"{processes} processes of {threads} threads"


def _print_counts(told: Told) -> None:
    """How often each verb was done, and what came of it."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    longest: dict[str, float] = defaultdict(float)
    for note in told.verbs:
        is_failure = note["what"] == "failed"
        how = "" if not is_failure else "excused " if told.is_excused(note) else "FAILED "
        counts[note["verb"]][how + note["result"]] += 1
        longest[note["verb"]] = max(longest[note["verb"]], note["at"] - note["begin"])
    for verb, found in sorted(counts.items()):
        results = ", ".join(f"{count} {what}" for what, count in found.most_common())
        print(f"  {verb:<16} {results}; at most {longest[verb]:.1f} s", flush=True)


def _with_children(pids: Iterable[int]) -> list[int]:
    """These processes, and after them all that they began."""
    found = list(pids)
    for pid in found:  # it grows
        for path in Path(f"/proc/{pid}/task").glob("*/children"):
            with contextlib.suppress(OSError):
                found += [child for child in map(int, path.read_text().split()) if child not in found]
    return found


def locks_of(pids: Iterable[int], below: Path | None = None) -> list[str]:
    """The locks of files that processes hold, of those below a directory only where one is given; and without one who
    waits for which (proc(5), /proc/pid/fdinfo and /proc/locks)."""
    told = []
    paths: dict[str, str] = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{pid}/fdinfo").iterdir():
                with contextlib.suppress(OSError):
                    for line in path.read_text().splitlines():
                        if line.startswith("lock:"):
                            words = line.split()
                            file = os.readlink(f"/proc/{pid}/fd/{path.name}")
                            paths[words[6]] = file
                            if below is None or file.startswith(f"{below}/"):
                                told.append(f"process {pid} holds {words[2]} {words[4]} of {file}")
    if below is None:
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "->" and words[6] in paths:
                told.append(f"process {words[5]} waits for {words[2]} {words[4]} of {paths[words[6]]}")
    return told


def main() -> int:
    parser = argparse.ArgumentParser(prog="hands", description="Many hands on one container, and on four; many starts.")
    parser.add_argument("--seconds", type=float, default=600, help="of each of the two (%(default)s)")
    parser.add_argument("--starts", type=int, default=1000, help="of containers, 8 at a time (%(default)s)")
    parser.add_argument("--seed", type=int, help="of what is drawn; by default another one each time")
    parser.add_argument("--only", choices=("one", "four", "starts"), help="one of the three parts")
    parser.add_argument("--verbs", default=",".join(VERBS), help="these alone, with commas between them")
    parser.add_argument("--scratch", type=Path, default=Path("/var/tmp"), help="where the store is")
    parser.add_argument("--record", action="store_true", help="write the results, and the table of docs/reliability.md")
    options = parser.parse_args()
    names = options.verbs.split(",")
    if unknown := [name for name in names if name not in VERBS]:
        parser.error(f"there are no verbs {unknown}; there are {', '.join(VERBS)}")
    os.environ["LAYERSTORE_STRICT_LOCKS"] = (
        "1"  # for hands and commands: locks that are taken out of order are an error
    )
    seed = random.randrange(10**6) if options.seed is None else options.seed
    begin = time.monotonic()
    rows: list[record.Row] = []
    hold_seconds = min(HOLD_SECONDS, options.seconds / 2)

    def part(name: str, work: Callable[[Campaign], Iterable[record.Row]]) -> None:
        if options.only not in (None, name):
            return
        given = f"--only {name} --seed {seed} --seconds {options.seconds:g} --starts {options.starts}"
        if len(names) < len(VERBS):
            given += f" --verbs {options.verbs}"
        print(f"== {name}: {given}", flush=True)
        scratch = Path(tempfile.mkdtemp(prefix="layerstore-hands-", dir=options.scratch))
        limit = DERIVED_LIMIT_BYTES if name == "one" else None
        campaign = Campaign(scratch, seed, limit, f'make hands HANDS_ARGS="{given}"')
        try:
            rows.extend(work(campaign))
        finally:
            campaign.remove()

    part("one", lambda campaign: campaign.many(16, 1, 1, options.seconds, names, hold_seconds))
    part("four", lambda campaign: campaign.many(8, 4, 4, options.seconds, names, hold_seconds))
    part("starts", lambda campaign: [campaign.starts(options.starts, 8)])
    if options.record:
        record.write("hands", rows, record.command_of("hands", sys.argv[1:]), time.monotonic() - begin)
    return record.told(rows)


if __name__ == "__main__":
    sys.exit(main())
