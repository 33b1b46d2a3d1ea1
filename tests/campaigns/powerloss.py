"""Takes the power away from operations at any moment, and checks what is left.

    make powerloss                                                      10,000 states
    make powerloss POWERLOSS_ARGS="--states 500"                        so many of all operations together
    make powerloss POWERLOSS_ARGS="--operations load --kinds xfs"       those alone
    make powerloss POWERLOSS_ARGS="--break syncfs"                      must fail: that sync is taken out
    make powerloss POWERLOSS_ARGS="--self-test"                         whether these fail

An operation (campaigns/operations.py, campaigns/sequences.py) is run once, by a process of its own, on a disk that logs
every write and flush of it (campaigns/logged_disk.py); what was acknowledged is marked in the log. Then the disk is
made as it may be after a loss of power at a moment of that run; the file system is mounted, which replays its journal,
and the store is checked (campaigns/trials.py): what was acknowledged and is durable is there, what is visible is
whole, through mounts too; in one of FULL_CHECKS states fsck finds nothing, the rest of the operation is done, and
garbage collected.

While an operation runs, a file beside the store is synced again and again. So the journal of the file system is written
at moments that are not the store's, as on a machine on which more happens.
"""

import argparse
import contextlib
import json
import os
import pickle
import random
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from leftovers import mount_points
from registries import Registry

from campaigns import logged_disk, sequences, trials
from campaigns.logged_disk import Log, LoggedDisk, Replay, State, states
from campaigns.operations import EPOCH, PROGRAMS, Operation, Place, operations
from campaigns.record import COUNTS, Row, told, write_part
from campaigns.states import Failure, inside, is_store
from layerstore import Container, Store
from layerstore._core import mount
from layerstore._core import pool as pool_mounts
from layerstore.errors import LayerstoreError
from layerstore.trees.entries import Entry

KINDS = tuple(logged_disk.SIZES)
SEQUENCES = (sequences.Again, sequences.Life)
"""Being loaded, they are among `operations()`."""
STIR_SECONDS = 0.004
IDLE_SECONDS = 0.1
SELF_TEST_STATES = 160
SELF_TEST_ROUNDS = 8
"""What goes with the power depends on when the disk happened to write by itself: of a few rounds one shows it."""
POOL_DISK_BYTES = 400 << 20
COMMAND = "make powerloss"
"""That records, of whatever operations and however many states: what was tried is counted."""
PATIENCE_SECONDS = 120
MOST_TOLD = 2_000
"""Characters of what is said of a state."""
FULL_CHECKS = 10
"""Of so many states one is checked with the rest of the operation and garbage collection, which takes longest."""


def _skip(*_: object, **__: object) -> None:
    pass


def _break(what: str) -> None:
    """Take a sync out of the store."""
    from layerstore.store import db, durable

    if what == "syncfs":
        durable.syncfs = _skip
    elif what == "fsync":
        os.fsync = os.fdatasync = _skip
    elif what == "commit":
        whole = db.Database.transaction
        db.Database.transaction = lambda self, durable=True: whole(self, durable=False)  # type: ignore[method-assign, misc]
    else:
        raise ValueError(f"there is nothing to be broken that is called {what}")


BREAKS = {"syncfs": "load", "fsync": "write-extent", "commit": "tag"}
"""What can be taken out of the store, and the operation that shows it."""


def run(name: str, store: str, inputs: str, outputs: str, marks: str, broken: str) -> None:
    """The process that does an operation on the disk."""
    if broken:
        _break(broken)
    place = Place(Path(store), Path(inputs), Path(outputs))
    operations()[name].run(place, lambda number: logged_disk.write_mark(Path(marks), str(number)))
    # As a command ends: nothing is closed that would be written then.
    os._exit(0)


@contextlib.contextmanager
def _stirred(file: Path) -> Iterator[None]:
    """Have a file of the disk synced now and then."""
    ended = threading.Event()

    def stir() -> None:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        while not ended.wait(STIR_SECONDS):
            os.write(fd, b"stirred")
            os.fsync(fd)
        os.close(fd)

    thread = threading.Thread(target=stir)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@dataclass(frozen=True)
class Run:
    """An operation that was run on a logged disk."""

    operation: str
    kind: str
    log: Path
    template: Path

    @property
    def name(self) -> str:
        return f"{self.operation} on {self.kind}"


def logged(template: trials.Template, kind: str, directory: Path, broken: str = "", stir: bool = True) -> Run:
    """Run an operation on a logged disk of this kind; its log is below `directory`."""
    directory.mkdir(parents=True)
    source = Place.below(template.directory)
    with LoggedDisk(directory, kind, disk_bytes(kind, template)) as disk:
        place = Place(disk.root / "store", source.inputs, disk.root / "outputs")
        trials.copy_place(source, place)
        subprocess.run(["sync", "-f", str(disk.root)], check=True)
        disk.mark("begin")
        with _stirred(disk.root / "stirred") if stir else contextlib.nullcontext():
            command = [sys.executable, "-m", "campaigns.powerloss", "--run", template.operation.name]
            command += [str(place.store), str(place.inputs), str(place.outputs), str(disk.marks), broken]
            subprocess.run(command, check=True, timeout=PATIENCE_SECONDS)
            # Or what is not synced would have no time in which to be lost.
            time.sleep(IDLE_SECONDS if stir else 0)
    return Run(template.operation.name, kind, disk.log, template.directory)


# Checking


def acknowledged(log: Log, state: State) -> int:
    """How many steps were acknowledged."""
    return sum(text != "begin" for text in log.reached(state.moment))


def check(template: trials.Template, place: Place, steps_done: int, *, full: bool) -> None:
    """Raises `Failure` where the store is not what it must be."""
    if full:
        trials.check(template, place, steps_done, power_lost=True)
        return
    with trials.patience():
        trials.reached(template, place, steps_done, power_lost=True)
        if is_store(place.store):
            with Store(place.store) as store:
                check_mounted(store)


def check_mounted(store: Store) -> None:
    """Raises `Failure` where a mount shows something else than the store says without one: tree images that are on the
    disk are mounted as they are."""
    for container in store.containers():
        if container.driver == "overlay" and not container.row.volatile:
            compare_mounted(container)
    for image in store.images():
        if Path(store.layout.chain_description(image.chain_id)).exists():
            container = store.create(image)
            compare_mounted(container)
            container.remove()


def compare_mounted(container: Container) -> None:
    what = f"container {container.name or container.image.names}"
    try:
        with container.mount() as root:
            count = 0
            for entry in container.entries():
                count += entry.path not in (b"", b"/")
                if difference := _differs(entry, root / os.fsdecode(entry.path).lstrip("/")):
                    raise Failure("corrupt", f"{what}: the mount shows {entry.path!r} with another {difference}")
            shown = sum(len(names) + len(files) for _, names, files in os.walk(root))
            if count != shown:
                raise Failure("corrupt", f"{what}: the mount shows {shown} names, and there are {count}")
    except (LayerstoreError, OSError) as error:
        raise Failure("corrupt", f"{what} cannot be mounted and read: {type(error).__name__}: {error}") from error


def _differs(entry: Entry, path: Path) -> str:
    """What a file has otherwise than its entry says."""
    status = path.lstat()
    if (status.st_mode, status.st_uid, status.st_gid) != (entry.mode, entry.uid, entry.gid):
        return "mode or owner"
    if stat.S_ISLNK(status.st_mode) and os.fsencode(path.readlink()) != entry.target:
        return "target"
    if entry.link is not None or entry.source is None:
        return ""
    content = b"".join(bytes(piece) for piece in entry.source.pieces())
    return "" if path.read_bytes() == content else "content"


@dataclass(frozen=True)
class Result:
    """What came of a state: `kind` is a count of `record.Row`; "mount" where the file system did not mount; or ""."""

    state: str
    kind: str
    text: str
    seconds: float


def examine(replay: Replay, template: trials.Template, log: Log, state: State, *, full: bool) -> Result:
    begun = time.monotonic()
    kind = text = ""
    try:
        with replay.mounted(state) as root:
            inputs = Place.below(template.directory).inputs
            place = Place(root / "store", inputs, root / "outputs")
            # The machine was started anew; that is how the store knows.
            with inside(place.store) as directory:
                (directory / "run/boot").unlink(missing_ok=True)
            try:
                check(template, place, acknowledged(log, state), full=full)
            except Failure as failure:
                kind, text = failure.kind, str(failure)
            except Exception as error:
                kind, text = "crashed", "".join(traceback.format_exception(error))
            finally:
                take_mounts_away(root)
    except OSError as error:
        kind, text = kind or "mount", f"{text}\n{error}"
    return Result(state.name, kind, text, time.monotonic() - begun)


def take_mounts_away(root: Path) -> None:
    """What a check that failed has left mounted below a file system, so that it can be unmounted."""
    for path in sorted(mount_points(), reverse=True):
        if path.startswith(f"{root}/"):
            with contextlib.suppress(OSError):
                mount.umount(path, lazy=True)


def disk_bytes(kind: str, template: trials.Template) -> int:
    """How large a disk an operation needs."""
    return logged_disk.SIZES[kind] + (POOL_DISK_BYTES if "mkfs.xfs" in template.operation.needs else 0)


def work(template_file: Path, kind: str, log_file: Path, seed: int, count: int, part: int, parts: int) -> None:
    """Check a part of the states of a log; a line for each goes to the standard output."""
    template = pickle.loads(template_file.read_bytes())
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    # A pool is in many states at the same time, of one UUID.
    pool_mounts.mount_xfs = lambda device, target, quotas: logged_disk.mount(device, Path(target), "xfs")
    log = Log(log_file)
    chosen = states(log, log.moment_of("begin"), random.Random(seed), count)
    size = -(-len(chosen) // parts)
    with tempfile.TemporaryDirectory(dir=log_file.parent, prefix=f"part{part}.") as directory:
        replay = Replay(log, kind, Path(directory), disk_bytes(kind, template))
        for number in range(part * size, min((part + 1) * size, len(chosen))):
            result = examine(replay, template, log, chosen[number], full=number % FULL_CHECKS == 0)
            print(json.dumps(vars(result)), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=10_000, help="how many, over all operations (%(default)s)")
    parser.add_argument("--operations", nargs="+", metavar="NAME", help="those alone")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="of file systems")
    parser.add_argument("--seed", type=int, default=1, help="of what is drawn (%(default)s)")
    parser.add_argument("--break", dest="broken", choices=BREAKS, default="", help="take a sync out of the store")
    parser.add_argument("--self-test", action="store_true", help="see that each of what can be taken out is missed")
    parser.add_argument("--record", action="store_true", help="write the counts to docs/reliability.md")
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="states at once (%(default)s)")
    parser.add_argument("--work", nargs=7, help=argparse.SUPPRESS)
    parser.add_argument("--run", nargs=6, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(*arguments.run)
    if arguments.work:
        template, kind, log, *numbers = arguments.work
        work(Path(template), kind, Path(log), *map(int, numbers))
        return 0
    logged_disk.own_mounts()
    return self_test(arguments) if arguments.self_test else told(campaign(arguments))


def self_test(arguments: argparse.Namespace) -> int:
    """A campaign that finds nothing where there is something is worth nothing."""
    blind = []
    for broken, name in BREAKS.items():
        arguments.broken, arguments.operations, arguments.states = broken, [name], SELF_TEST_STATES
        rounds = (campaign(arguments) for _ in range(SELF_TEST_ROUNDS))
        if not any(row.is_bad for rows in rounds for row in rows):
            blind.append(f"{name} without {broken}")
    print(f"nothing was found: {', '.join(blind)}" if blind else "what was taken out was missed, each time", flush=True)
    return int(bool(blind))


def _can_run(operation: Operation) -> bool:
    have = {"root", "mount", *(["runtime"] if shutil.which("crun") or shutil.which("runc") else [])}
    have |= {name for name, program in PROGRAMS.items() if shutil.which(program)}
    return operation.needs <= have and not operation.damaged


@contextlib.contextmanager
def _registry(wanted: bool, memory: Path) -> Iterator[int]:
    """The port of a registry, 0 where none is wanted."""
    if not wanted:
        yield 0
        return
    (memory / "registry").mkdir()
    with Registry(memory / "registry") as registry:
        yield registry.port


def campaign(arguments: argparse.Namespace) -> list[Row]:
    known = operations()
    possible = [name for name in known if _can_run(known[name])]
    names = arguments.operations or possible
    whole: Counter[tuple[str, str]] = Counter()
    each = -(-arguments.states // (len(names) * len(arguments.kinds)))
    with (
        tempfile.TemporaryDirectory(dir="/var/tmp", prefix="powerloss.") as templates,
        tempfile.TemporaryDirectory(dir="/dev/shm", prefix="powerloss.") as memory,
        _registry(any("registry" in known[name].needs for name in names), Path(memory)) as port,
    ):
        for name in names:
            begun = time.monotonic()
            counts: Counter[tuple[str, str]] = Counter()
            template = trials.prepare(known[name], Path(templates) / name, port)
            for kind in arguments.kinds:
                done = logged(template, kind, Path(memory) / f"{name}.{kind}", arguments.broken)
                for result in examined(done, template, arguments.seed, each, arguments.jobs):
                    counts[kind, "tried"] += result.kind != "mount"
                    counts[kind, result.kind] += 1
                    if result.kind:
                        print(f"{done.name}, state {result.state}: {result.text[:MOST_TOLD]}", flush=True)
                print(f"{done.name}: {counts[kind, 'tried']} states", flush=True)
                shutil.rmtree(done.log.parent)
            whole.update(counts)
            if arguments.record:
                write_part("powerloss", name, _rows(counts, arguments), COMMAND, time.monotonic() - begun, possible)
    for kind in arguments.kinds:
        if unmounted := whole[kind, "mount"]:
            print(f"{unmounted} states of {kind} did not mount or unmount, of which the store is not to blame")
    return _rows(whole, arguments)


def _rows(counts: Counter[tuple[str, str]], arguments: argparse.Namespace) -> list[Row]:
    return [
        Row(f"loss of power on {kind}", **{what: counts[kind, what] for what in COUNTS}) for kind in arguments.kinds
    ]


def examined(run: Run, template: trials.Template, seed: int, count: int, jobs: int) -> Iterator[Result]:
    """The results of all states of a run, which so many processes check."""
    template_file = run.log.parent / "template"
    template_file.write_bytes(pickle.dumps(template))
    command = [sys.executable, "-m", "campaigns.powerloss", "--work", str(template_file), run.kind, str(run.log)]
    processes = [
        subprocess.Popen([*command, str(seed), str(count), str(part), str(jobs)], stdout=subprocess.PIPE)
        for part in range(jobs)
    ]
    for process in processes:
        assert process.stdout is not None
        for line in process.stdout:
            yield Result(**json.loads(line))
        if process.wait():
            yield Result("?", "crashed", f"the process that checks ended with {process.returncode}", 0)


if __name__ == "__main__":
    sys.exit(main())
