"""What one of many hands does to a container that others work on, too: every verb of the store, one after the other.

A hand notes what it is about to do, and what came of it, in a journal of its process: lines of JSON that are in the
kernel's hands at once, so that nothing of it is lost when the process is killed. Times are of the clock that all
processes share. Whether all of it agrees is for the campaign to say (campaigns/hands.py).

What another one does may well make a verb impossible: the container is gone, in use, of the other driver. Such errors
are expected, and counted. Every other one is a failure.
"""

import contextlib
import ctypes
import errno
import faulthandler
import io
import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns import generations
from layerstore import Container, Image, Store
from layerstore.errors import Conflict, NotFound, Unsupported
from layerstore.trees.entries import Entry

BASE = "base:1"
DRIVERS = ("overlay", "extent")
MARK = "LAYERSTORE_HANDS"
"""In the environment of every program that runs in a container: the scratch directory."""
MOST_GENERATIONS = 8
_COPYING_SECONDS = 120
_COMMAND = r"""
import ctypes, faulthandler, os, signal, sys, traceback
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
parent = int(sys.argv.pop(1))
if os.getppid() != parent:
    os._exit(9)
faulthandler.register(signal.SIGUSR1, int(sys.argv.pop(1)))
from layerstore import cli
from layerstore.cli import command
tell = command.told
def told(error):
    number = getattr(error, "errno", None)
    where = "".join(traceback.format_tb(error.__traceback__))
    return f"[{type(error).__name__} {number or 0}] {tell(error)}\n{where}"
command.told = told
cli.main()
"""
"""The command line: it ends with who began it, tells on SIGUSR1 where it is, and of an error its class and place."""


class Failed(Exception):
    """Something is not as it must be."""


class Slipped(Exception):
    """Another one unmounted it between two steps of this hand's own."""


class CommandError(Exception):
    """A command failed, as it says itself."""

    def __init__(self, kind: str, number: int, text: str) -> None:
        head, _, where = text.partition("\n")
        super().__init__(f"{where}{kind}: {head}")
        self.kind = kind
        self.number = number


class Killed(Exception):
    """This hand killed the command that it had begun."""


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread ends that started it (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Journal:
    """The lines of one process, and for each of its hands what it does now."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        self._numbers = itertools.count()

    def note(self, kind: str, **said: object) -> None:
        os.write(self._fd, (json.dumps({"kind": kind, "at": time.monotonic(), **said}) + "\n").encode())

    @contextlib.contextmanager
    def noted(self, kind: str, **said: object) -> Iterator[dict[str, object]]:
        """A line before the block and one after it, which tells also what is put into the dict, and if it failed."""
        number = next(self._numbers)
        self.note(kind, begins=number, **said)
        more: dict[str, object] = {"is_done": True}
        try:
            yield more
        except (Killed, GeneratorExit):
            more["is_done"] = None  # nobody knows
            raise
        except BaseException:
            more["is_done"] = False
            raise
        finally:
            self.note(kind, ends=number, **more)


def errno_of(error: BaseException) -> int:
    return getattr(error, "number", getattr(error, "errno", None)) or 0


def expected(verb: str, error: BaseException) -> str | None:
    """The class of an error that others may be the cause of, None for another one."""
    kind = error.kind if isinstance(error, CommandError) else type(error).__name__
    if isinstance(error, (Slipped, Killed)):
        return kind
    if kind in (NotFound.__name__, Conflict.__name__):
        return kind
    if kind == Unsupported.__name__ and verb not in ("create", "build"):
        return kind
    # A file of the container that another one removed while it was read.
    if errno_of(error) == errno.ESTALE and verb in _READERS:
        return "ESTALE"
    return None


IN_MOUNT = ("write", "run", "start", "exec", "copy-in", "unpack")
"""Those that work in the mounted container: where another one takes that away by force they may fail in any way."""
WRITERS = ("write", "copy-in", "unpack")
"""Those that a rollback of the extent driver may take from what they have just made, or have open."""
_READERS = ("export", "export-held", "entries", "copy-out", "move", "fork")


@dataclass
class Options:
    """What a process is told: its number, how often it was begun anew, and the campaign's own."""

    number: int
    life: int
    threads: int
    containers: int
    seed: int
    hold_seconds: float
    verbs: list[str]
    scratch: Path

    def __post_init__(self) -> None:
        self.scratch = Path(self.scratch)

    @property
    def process(self) -> str:
        """What no other process is called."""
        return f"{self.number}.{self.life}"

    @property
    def root(self) -> Path:
        return self.scratch / "store"


class Hand:
    """One thread of one process."""

    def __init__(self, options: Options, thread: int, journal: Journal) -> None:
        self.options = options
        self.maker = f"{options.process}.{thread}"
        self.draw = random.Random(f"{options.seed} {self.maker}")
        self.journal = journal
        self.own = options.scratch / f"own/{self.maker}"
        self.own.mkdir()
        self._count = itertools.count()
        self._status = os.open(options.scratch / f"status/{self.maker}", os.O_WRONLY | os.O_CREAT, 0o600)
        self._told_to = os.dup(2)  # which commands have, too
        self.store: Store
        self.container: Container | None = None
        self.tell("begins")

    def tell(self, what: str, allowed_seconds: float = 0) -> None:
        """Say what it does from now on, and how much longer that may take than what waits for nobody."""
        text = json.dumps([what, time.monotonic(), allowed_seconds])
        os.pwrite(self._status, text.ljust(200).encode(), 0)

    def do(self, store: Store, verb: str) -> None:
        """Do it to that store, and note what came of it."""
        self.store = store
        self.attempt(verb, getattr(self, verb.replace("-", "_")))

    def attempt(self, verb: str, work: Callable[[], object]) -> None:
        self.container = None
        self.tell(verb, self.options.hold_seconds)
        begin = time.monotonic()
        kind, result, failure, number = "ok", "ok", None, None
        try:
            work()
        except BaseException as error:
            known, number = expected(verb, error), errno_of(error)
            kind, result = ("expected", known) if known else ("failed", type(error).__name__)
            if known is None:
                failure = traceback.format_exc()
        of = None if self.container is None else self.container.id
        told = {"what": kind, "result": result, "errno": number, "why": failure}
        self.journal.note("verb", verb=verb, begin=begin, of=of, maker=self.maker, **told)
        self.tell("between two verbs")

    # The container

    def box(self, driver: str | None = None) -> Container:
        """One of those that all work on; made if it is missing. With `driver` an error where it is of the other one."""
        name = f"box{self.draw.randrange(self.options.containers)}"
        try:
            self.container = self.store.container(name)
        except NotFound:
            wanted = self.draw.choice(("overlay", *DRIVERS)) if driver is None else driver
            self.container = self.create(name, wanted)
        if driver is not None and self.container.driver != driver:
            raise Unsupported(f"it is of the {self.container.driver} driver")
        return self.container

    def create(self, name: str, driver: str) -> Container:
        try:
            return self.store.create(BASE, name=name, driver=driver)  # type: ignore[arg-type]  # one of the two
        except NotFound:
            self.load()
            return self.store.create(BASE, name=name, driver=driver)  # type: ignore[arg-type]  # one of the two

    def load(self) -> None:
        self.store.load(self.options.scratch / "base.tar")

    def command(self, *arguments: str, may_kill: bool = True) -> bytes:
        """What a command printed. Now and then it is killed."""
        process = self.begin(*arguments)
        with process:
            if may_kill and self.draw.random() < 0.1:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(self.draw.uniform(0.03, 0.4))
                process.kill()
            out, err = process.communicate()
        return self.ended(process.returncode, out, err.decode(errors="replace"))

    def begin(self, *arguments: str) -> subprocess.Popen[bytes]:
        given = [sys.executable, "-c", _COMMAND, str(os.getpid()), str(self._told_to)]
        given += ["--root", str(self.options.root), *arguments]
        environment = {**os.environ, MARK: str(self.options.scratch)}
        return subprocess.Popen(
            given,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment,
            pass_fds=[self._told_to],
        )

    def ended(self, status: int, out: bytes, err: str) -> bytes:
        if status == -signal.SIGKILL:
            raise Killed
        if status:
            head, has_class, text = err.partition("[")[2].partition("] ")
            kind, _, number = head.partition(" ")
            if err.startswith("layerstore rmi: ") and not has_class:  # it tells of each image itself
                raise CommandError(Conflict.__name__, 0, err)
            if not has_class or "Traceback" in err:
                raise Failed(f"exit status {status}: {err}")
            raise CommandError(kind, int(number), text)
        return out

    def by_command(self) -> bool:
        return self.draw.random() < 0.25

    @contextlib.contextmanager
    def mounted(self, container: Container) -> Iterator[int]:
        """A descriptor of its root, which keeps everybody from unmounting it without force."""
        container.mount()
        fd = os.open(container.root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if os.fstat(fd).st_dev == os.stat(self.options.root / "containers").st_dev:
                raise Slipped
            yield fd
        finally:
            os.close(fd)

    # Generations

    def new_generation(self, kind: str = "gen") -> str:
        return generations.new_name(kind, f"{self.maker}.{next(self._count)}", self.draw)

    def made(self, container: Container, name: str, begin: float) -> None:
        """It is whole, and in the kernel's hands."""
        if container.driver == "extent":
            container.sync()
        self.journal.note("made", of=container.id, name=name, begin=begin, driver=container.driver)

    def saw(self, of: str, how: str, begin: float, found: dict[str, str], end: float | None = None) -> None:
        self.journal.note(
            "saw", of=of, how=how, begin=begin, end=end or time.monotonic(), found=found, maker=self.maker
        )

    def write(self) -> None:
        """One more generation, and one less where there are many."""
        container, begin, name = self.box(), time.monotonic(), self.new_generation()
        if container.driver == "overlay":
            with self.mounted(container) as fd:
                os.mkdir(f"tmp-{name}", dir_fd=fd)
                for file, data in generations.files_of(name).items():
                    with open(f"tmp-{name}/{file}", "xb", opener=_below(fd)) as made:
                        made.write(data)
                os.rename(f"tmp-{name}", name, src_dir_fd=fd, dst_dir_fd=fd)
                self.made(container, name, begin)
                self.erase_some(container, os.listdir(fd), _Mounted(fd))
            if self.draw.random() < 0.4:
                container.umount()
        else:
            container.mkdir(f"/tmp-{name}")
            for file, data in generations.files_of(name).items():
                container.write_bytes(f"/tmp-{name}/{file}", data)
            container.rename(f"/tmp-{name}", f"/{name}")
            self.made(container, name, begin)
            self.erase_some(container, container.listdir("/"), container)

    def erase_some(self, container: Container, names: list[str], files: Any) -> None:
        """Remove generations that are too many; and what those left that were killed."""
        there = [name for name in names if generations.is_generation(name) and not self.may_be_copied(files, name)]
        self.draw.shuffle(there)
        for name in there[MOST_GENERATIONS:]:
            with self.journal.noted("removed", of=container.id, name=name), contextlib.suppress(FileNotFoundError):
                # Another one may have been quicker.
                files.rename(name, f"tmp-{os.getpid()}-{name}")
                self.remove_below(files, f"tmp-{os.getpid()}-{name}")

    def may_be_copied(self, files: Any, name: str) -> bool:
        """Whether another one may be about to put files into it: to take it away would have that fail."""
        try:
            return name.startswith("in-") and time.time() - files.stat(name).st_mtime < _COPYING_SECONDS
        except FileNotFoundError:
            return True

    def remove_below(self, files: Any, top: str) -> None:
        for name in files.listdir(top):
            files.unlink(f"{top}/{name}")
        files.rmdir(top)

    def copy_in(self) -> None:
        container, begin, name = self.box(), time.monotonic(), self.new_generation("in")
        source = self.own / name
        source.mkdir()
        try:
            for file, data in generations.files_of(name).items():
                (source / file).write_bytes(data)
            if self.by_command():
                self.command("cp", str(source), f"{container.id}:/{name}")
            else:
                container.copy_in(source, f"/{name}")
            self.made(container, name, begin)
        finally:
            shutil.rmtree(source)

    def unpack(self) -> None:
        container, begin, name = self.box(), time.monotonic(), self.new_generation("in")
        container.unpack(io.BytesIO(generations.tar_of(name)), "/")
        self.made(container, name, begin)

    def run(self) -> None:
        """A program that makes a generation."""
        container, begin, name = self.box("overlay"), time.monotonic(), self.new_generation()
        with (self.own / "said").open("w+b") as said, open(os.devnull, "rb") as nothing:
            status = container.run(
                making(name),
                env={MARK: str(self.options.scratch)},
                stdin=nothing,
                stdout=said,
                stderr=said,
            )
            said.seek(0)
            text = said.read(2000).decode(errors="replace")
        if status == 128 + signal.SIGKILL:
            raise Killed
        if status:
            raise Failed(f"the program ended with {status}: {text}")
        self.made(container, name, begin)

    def start(self) -> None:
        container = self.box("overlay")
        seconds = self.draw.choice((0, 1, 20))
        container.start(["/bin/busybox", "sleep", str(seconds)], env={MARK: str(self.options.scratch)})

    def kill(self) -> None:
        self.box("overlay").kill()

    def exec(self) -> None:
        """A command that makes a generation, beside whatever runs; now and then it is killed before it is done."""
        container, begin, name = self.box("overlay"), time.monotonic(), self.new_generation()
        timeout = self.draw.uniform(0, 0.05) if self.draw.random() < 0.2 else None
        given = {"env": {MARK: str(self.options.scratch)}, "capture_output": True, "timeout": timeout}
        try:
            done = container.exec(making(name), **given)  # type: ignore[arg-type]
        except subprocess.TimeoutExpired:
            return
        if done.returncode in (128 + signal.SIGKILL, 128 + signal.SIGTERM):
            raise Killed
        if done.returncode:
            raise Failed(f"the command ended with {done.returncode}: {done.stderr[:2000]!r}")
        self.made(container, name, begin)

    def stop(self) -> None:
        container = self.box("overlay")
        self.command("stop", "-t", "0", container.id) if self.by_command() else container.stop(self.draw.choice((0, 1)))

    def pause(self) -> None:
        """For a moment. What others have in it stands still meanwhile, and nobody begins anything."""
        container = self.box("overlay")
        try:
            self.command("pause", container.id) if self.by_command() else container.pause()
            time.sleep(self.draw.uniform(0, 0.2))
        finally:  # also where the command was killed
            unpause(container)

    def unpause(self) -> None:
        container = self.box("overlay")
        self.command("unpause", container.id) if self.by_command() else container.unpause()

    # Reading

    def commit(self) -> None:
        """An image, which must have all that was in the container, and stays until this hand gives it to the others."""
        container, number = self.box(), next(self._count)
        own, free = f"own-{self.maker}.{number}:1", f"free-{self.maker}.{number}:1"
        begin = time.monotonic()
        with self.journal.noted("commit", of=container.id, name=own) as said:
            if self.by_command():
                said["image"] = self.command("commit", container.id, own).decode().strip()
            else:
                said["image"] = container.commit(own).id
        end = time.monotonic()
        image = self.store.image(own)
        self.saw(container.id, "commit", begin, read_image(image), end)
        if self.draw.random() < 0.2:
            self.build_upon(own, image)
        self.store.tag(own, free)
        with self.journal.noted("untagged", name=own):
            self.store.remove_image(own)

    def build_upon(self, name: str, image: Image) -> None:
        before = read_image(image)
        built = self.store.build(
            self.options.scratch / "upon", build_args={"UPON": name}, pull="never", names=[f"free-{name[4:-2]}b:1"]
        )
        after = read_image(built)
        if before != after:
            raise Failed(f"what was built upon {name} has {after} where it has {before}")

    def diff(self) -> None:
        container, begin = self.box(), time.monotonic()
        if self.by_command():
            lines = self.command("diff", container.id).decode().splitlines()
            paths = [line[2:].strip("/") for line in lines if line[0] == "A"]
        else:
            paths = [change.path.strip("/") for change in container.diff() if change.kind == "A"]
        found: dict[str, int] = {}
        for path in paths:
            top, is_below, _ = path.partition("/")
            if generations.is_generation(top):
                found[top] = found.get(top, 0) + bool(is_below)
        self.saw(
            container.id,
            "diff",
            begin,
            {
                name: generations.WHOLE if count == int(name.rpartition("-")[2]) else f"{count} files are told"
                for name, count in found.items()
            },
        )

    def entries(self) -> None:
        container, begin = self.box(), time.monotonic()
        entries = container.entries()
        if self.draw.random() < 0.3:
            for _ in itertools.islice(entries, self.draw.randrange(20)):
                pass
            entries.close()  # type: ignore[attr-defined]  # it is a generator
            return
        self.saw(container.id, "entries", begin, generations.judge_all(_files_of(entries)))

    def export(self) -> None:
        """Its tar, read slowly now and then, or given up half way."""
        container, begin = self.box(), time.monotonic()
        pause = self.draw.choice((0, 0, 0.02))
        give_up_after = self.draw.randrange(40) if self.draw.random() < 0.3 else None
        if self.by_command():
            process = self.begin("export", container.id)
            with process:
                assert process.stdout is not None
                assert process.stderr is not None
                if give_up_after is not None:
                    process.stdout.read(1 << 14)
                    time.sleep(pause * 10)
                    process.stdout.close()
                    process.kill() if self.draw.random() < 0.5 else process.wait()
                    return
                data = process.stdout.read()
                err = process.stderr.read().decode(errors="replace")
            self.ended(process.returncode, b"", err)
            self.saw(container.id, "export", begin, generations.judge_all(generations.in_tar(_Reader([data]))))
            return
        pieces = container.export()
        if give_up_after is not None:
            for _ in itertools.islice(pieces, give_up_after):
                time.sleep(pause)
            pieces.close()  # type: ignore[attr-defined]  # it is a generator
            return
        self.saw(
            container.id, "export", begin, generations.judge_all(generations.in_tar(_Reader(_slowly(pieces, pause))))
        )

    def export_held(self) -> None:
        """As `export C | less`: it begins, and then nobody reads on. The next one not at once."""
        container = self.box()
        if self.draw.random() < 0.5:
            pieces = container.export()
            next(pieces, None)
            self.sleep(self.options.hold_seconds)
            pieces.close()  # type: ignore[attr-defined]  # it is a generator
        else:
            process = self.begin("export", container.id)
            with process:
                assert process.stdout is not None
                process.stdout.read(1000)
                self.sleep(self.options.hold_seconds)
                process.kill()
                process.stdout.close()
        self.tell("rests", self.options.hold_seconds)
        self.sleep(self.options.hold_seconds)

    def sleep(self, seconds: float) -> None:
        """Unless everything is to stop."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not (self.options.scratch / "stop").exists():
            time.sleep(0.1)

    def copy_out(self) -> None:
        container, begin, target = self.box(), time.monotonic(), self.own / f"out{next(self._count)}"
        try:
            container.copy_out("/", target)
            self.saw(container.id, "copy-out", begin, generations.judge_all(_files_on_host(target)))
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def fork(self) -> None:
        """A container of its own, which has all that was in this one."""
        container, begin = self.box(), time.monotonic()
        name = f"fork-{os.getpid()}-{self.maker}.{next(self._count)}"
        if self.by_command():
            self.command("fork", "--name", name, container.id)
            made = self.store.container(name)
        else:
            made = container.fork(name=name)
        end = time.monotonic()
        self.saw(container.id, "fork", begin, generations.judge_all(_files_of(made.entries())), end)
        made.remove()

    def again(self) -> None:
        """A container of an image that was committed: what is in it is what the image has, whole or not; whether it may
        have that depends on what was done to the container that was committed."""
        names = [name for image in self.store.images() for name in image.names if name.startswith("free-")]
        if not names:
            return
        name = f"again-{os.getpid()}-{self.maker}.{next(self._count)}"
        made = self.store.create(self.draw.choice(names), name=name)
        with made.mount() as root:
            found = generations.judge_all(_files_on_host(Path(root)))
        has = read_image(made.image)
        made.remove()
        if found != has:
            raise Failed(f"{made.row.image_name} shows when it is mounted {found} where it has {has}")
        committed = f"own-{made.row.image_name[5:-2].removesuffix('b')}:1"
        self.journal.note("shown", name=committed, found=found, maker=self.maker)

    # Its state

    def mount(self) -> None:
        container = self.box()
        self.command("mount", container.id) if self.by_command() else container.mount()

    def umount(self) -> None:
        container = self.box()
        self.command("umount", container.id) if self.by_command() else container.umount()

    def umount_force(self) -> None:
        container = self.box("overlay")
        with self.journal.noted("forced", of=container.id):
            container.umount(force=True)

    def rm(self) -> None:
        container = self.box()
        self.command("rm", container.id) if self.by_command() else container.remove()

    def rm_force(self) -> None:
        container = self.box()
        with self.journal.noted("forced", of=container.id):
            self.command("rm", "-f", container.id) if self.by_command() else container.remove(force=True)

    def move(self) -> None:
        container = self.box()
        driver = DRIVERS[container.driver == "overlay"]
        self.command("move", container.id, "--driver", driver) if self.by_command() else container.move(driver)  # type: ignore[arg-type]  # one of the two

    def snapshot(self) -> None:
        container, name = self.box(), f"s{self.maker}.{next(self._count)}"
        with self.journal.noted("snapshot", of=container.id, name=name):
            self.command("snapshot", container.id, name) if self.by_command() else container.snapshot(name)
        names = [snapshot.name for snapshot in container.snapshots()]
        if len(names) > 4:
            container.remove_snapshot(self.draw.choice(names))

    def snapshots(self) -> None:
        self.box().snapshots()

    def rollback(self) -> None:
        container = self.box()
        names = [snapshot.name for snapshot in container.snapshots()]
        if not names:
            return
        name = self.draw.choice(names)
        if container.driver == "overlay" and self.draw.random() < 0.7:
            container.umount()
        with self.journal.noted("rollback", of=container.id, name=name):
            self.command("rollback", container.id, name) if self.by_command() else container.rollback(name)

    def remove_snapshot(self) -> None:
        container = self.box()
        names = [snapshot.name for snapshot in container.snapshots()]
        if names:
            container.remove_snapshot(self.draw.choice(names))

    def inspect(self) -> None:
        if self.by_command():
            self.command("ps", "-a")
            return
        container = self.box()
        container.inspect()
        self.store.states(self.store.containers())

    # The store

    def tag(self) -> None:
        self.store.tag(BASE, f"alias{self.draw.randrange(3)}:1")

    def rmi(self) -> None:
        """A name of the image, the one that all need among them; or an image that was committed."""
        if self.draw.random() < 0.3:
            self.store.remove_image(self.draw.choice((BASE, "alias0:1", "alias1:1", "alias2:1")))
            return
        names = [name for image in self.store.images() for name in image.names if name.startswith("free-")]
        for name in self.draw.sample(names, min(3, len(names))):
            with self.journal.noted("untagged", name=name):
                self.command("rmi", name) if self.by_command() else self.store.remove_image(name)

    def save(self) -> None:
        target = self.own / "saved.tar"
        names = [name for image in self.store.images() for name in image.names if name.startswith("free-")]
        self.store.save(self.draw.choice([BASE, *names]), target)
        target.unlink()

    def gc(self) -> None:
        self.command("gc") if self.by_command() else self.store.collect_garbage()

    def prune(self) -> None:
        self.store.prune(older_than_seconds=0)

    def fsck(self) -> None:
        if self.by_command():
            self.command("fsck", "--quick")
            return
        report = self.store.check(quick=True)
        if not report.is_clean:
            raise Failed(f"a check finds {[vars(damage) for damage in report.damages[:3]]}")

    def freeze(self) -> None:
        names = [name for image in self.store.images() for name in image.names if name[:4] in ("own-", "free")]
        if names:
            self.store.freeze(self.draw.choice(names))

    def thaw(self) -> None:
        frozen = [image for image in self.store.images() if image.is_frozen]
        if frozen:
            self.store.thaw(self.draw.choice(frozen))

    def evict(self) -> None:
        self.store.evict_derived(0)

    def usage(self) -> None:
        self.store.usage()
        if self.draw.random() < 0.3:
            self.store.dedup_stats(sample_bytes=0)

    def build(self) -> None:
        name = f"free-built.{self.maker}.{next(self._count)}:1"
        try:
            self.store.build(
                self.options.scratch / "context",
                names=[name],
                build_args={"round": str(self.draw.randrange(3))},
                pull="never",
            )
        except NotFound:
            self.load()
            raise
        if self.store.image(name).view.read_bytes("/copied/file") != b"of the context":
            raise Failed(f"{name} has another file than its context")

    def sweep(self) -> None:
        """Remove what processes have left that were killed."""
        for container in self.store.containers():
            kind, _, rest = (container.name or "").partition("-")
            if kind in ("fork", "again") and not os.path.exists(f"/proc/{rest.partition('-')[0]}"):
                container.remove(force=True)

    def bystand(self) -> None:
        """All of a container that nobody else has."""
        name = f"again-{os.getpid()}-{self.maker}.{next(self._count)}"
        container = self.create(name, "overlay")
        with container.mount() as root:
            (Path(root) / "written").write_bytes(b"by nobody else")
        container.remove()


VERBS = {
    **{"mount": 6, "umount": 5, "umount-force": 1, "write": 10, "run": 3, "start": 2, "kill": 2, "commit": 8},
    **{"exec": 5, "stop": 1, "pause": 2, "unpause": 1},
    **{"diff": 3, "export": 4, "entries": 3, "copy-in": 4, "copy-out": 2, "unpack": 3, "fork": 4, "again": 2},
    **{"snapshot": 3, "snapshots": 1, "rollback": 4, "remove-snapshot": 1, "move": 4, "inspect": 2, "rm": 2},
    **{"rm-force": 1, "tag": 1, "rmi": 3, "save": 1, "gc": 1, "prune": 1, "fsck": 1, "freeze": 1, "thaw": 1},
    **{"evict": 3, "usage": 1, "build": 1, "sweep": 1},
}
"""How often each, in proportion."""


def work(options: Options) -> int:
    """What a process does until it is told to stop: with a store that its threads share, opened again and again."""
    die_with_parent()
    faulthandler.register(signal.SIGUSR1)
    os.environ[MARK] = str(options.scratch)
    journal = Journal(options.scratch / "journal" / options.process)
    hands = [Hand(options, thread, journal) for thread in range(options.threads)]
    first, *others = hands
    names = options.verbs
    weights = [VERBS.get(name, 1) for name in names]
    stop = options.scratch / "stop"

    def some(hand: Hand, store: Store, count: int) -> None:
        for _ in range(count):
            if not stop.exists():
                hand.do(store, hand.draw.choices(names, weights)[0])

    def opened() -> None:
        with Store(options.root, verify="always") as store:
            count = first.draw.randrange(1, 12)
            threads = [threading.Thread(target=some, args=(hand, store, count)) for hand in others]
            for thread in threads:
                thread.start()
            some(first, store, count)
            first.tell("waits for its threads", float("inf"))  # of which each has its own time
            for thread in threads:
                thread.join()
            first.tell("close", options.hold_seconds)

    while not stop.exists():
        first.attempt("open", opened)
    with Store(options.root) as store:
        for container in store.containers():  # whoever was killed left them so, and others wait for what is in them
            unpause(container)
    for hand in hands:
        shutil.rmtree(hand.own)
    return 0


def unpause(container: Container) -> None:
    """Unless somebody else did."""
    with contextlib.suppress(Conflict):
        container.unpause()


def making(name: str) -> list[str]:
    """The program that makes a generation, in a container."""
    tool = "/bin/busybox"
    lines = ["set -e", f"{tool} mkdir /tmp-{name}"]
    lines += [f"printf %s '{text}' >/tmp-{name}/{file}" for file, text in generations.texts_of(name).items()]
    lines += [f"{tool} mv /tmp-{name} /{name}"]
    return ["/bin/sh", "-c", "\n".join(lines)]


# Files


def read_image(image: Image) -> dict[str, str]:
    """What is found of each generation of an image."""
    view = image.view

    def files() -> Iterator[tuple[str, bytes | None]]:
        for top, _, names in view.walk("/"):
            name = top.strip("/")
            if not generations.is_generation(name.partition("/")[0]):
                continue
            yield name, None
            paths = [f"{top}/{each}" for each in names]
            yield from zip((path.strip("/") for path in paths), view.read_many(paths), strict=True)

    return generations.judge_all(files())


class _Mounted:
    """What `erase_some` needs of a mounted container."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def rename(self, old: str, new: str) -> None:
        os.rename(old, new, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def stat(self, path: str) -> os.stat_result:
        return os.stat(path, dir_fd=self._fd)

    def listdir(self, path: str) -> list[str]:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self._fd)
        try:
            return os.listdir(fd)
        finally:
            os.close(fd)

    def unlink(self, path: str) -> None:
        os.unlink(path, dir_fd=self._fd)

    def rmdir(self, path: str) -> None:
        os.rmdir(path, dir_fd=self._fd)


class _Reader(io.RawIOBase):
    """The pieces of a stream as a file."""

    def __init__(self, pieces: Iterable[Any]) -> None:
        self._pieces = iter(pieces)
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            self._rest = memoryview(bytes(piece))
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def _below(fd: int) -> Callable[[str, int], int]:
    return lambda path, flags: os.open(path, flags, 0o644, dir_fd=fd)


def _slowly(pieces: Iterable[Any], pause_seconds: float) -> Iterator[Any]:
    for piece in pieces:
        yield piece
        time.sleep(pause_seconds)


def _files_of(entries: Iterable[Entry]) -> Iterator[tuple[str, bytes | None]]:
    for entry in entries:
        path = os.fsdecode(entry.path)
        if not generations.is_generation(path.partition("/")[0]):
            continue
        if not entry.is_file():
            yield path, None
        else:
            yield path, b"" if entry.source is None else b"".join(map(bytes, entry.source.pieces()))


def _files_on_host(root: Path) -> Iterator[tuple[str, bytes | None]]:
    for top in root.iterdir():
        if generations.is_generation(top.name) and stat.S_ISDIR(top.lstat().st_mode):
            yield top.name, None
            for path in top.iterdir():
                yield f"{top.name}/{path.name}", path.read_bytes()


if __name__ == "__main__":
    sys.exit(work(Options(**json.loads(sys.argv[1]))))
