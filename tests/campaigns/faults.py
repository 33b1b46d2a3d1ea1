"""Have every system call of every operation fail as its manual page says that it may, and each allocation of the core.

    python -m campaigns.faults                                  # everything; `make faults`
    python -m campaigns.faults --sample 20 --seed 1             # so many cases of each operation; what .ci/run does
    python -m campaigns.faults --operation load --call openat --at 17 --error EMFILE -v     # one case, with every call

A case is a run of an operation (campaigns/operations.py) in a process in which the Nth of the calls of a name fails. It
must end with the right result, or with an error that says what failed and on what. Then, in the same process and with
the same `Store`: the store shows what was acknowledged, and the step that was under way whole or not at all
(`trials.reached`); the rest of the operation can be done, now that nothing fails; no descriptor and no thread is left
once the store is closed. After it, from another process: `trials.check`.

Every worker has a file system of its own, of a file in memory, in a mount namespace of its own: a sync costs nothing
there, and nobody else's mounts are seen. It needs root.
"""

import argparse
import contextlib
import ctypes
import errno
import gc
import multiprocessing
import os
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from campaigns import record
from campaigns.injection import Fault, Injector, Outcome, built
from campaigns.operations import EPOCH, CommandFailed, Place, operations
from campaigns.states import Failure
from campaigns.trials import Template, check, prepare, reached, remove_place
from layerstore import Store
from layerstore.errors import LayerstoreError

SHORT = "SHORT"
"""Not an errno: the call is made, with half of what was asked for."""
_NEW_NAME = "ENOSPC/EDQUOT EIO/ENOMEM"
_ERRORS = {
    "open openat openat2 creat": "EMFILE/ENFILE/EACCES ENOSPC/EDQUOT EIO/ENOMEM EINTR",
    "read pread64 readv preadv": "EIO EINTR SHORT",
    "write pwrite64 writev pwritev": "ENOSPC/EDQUOT EIO EINTR SHORT",
    "copy_file_range sendfile": "ENOSPC EIO/ENOMEM SHORT",
    "fsync fdatasync syncfs": "EIO ENOSPC/EDQUOT",
    "close": "EIO/EINTR",
    "rename renameat renameat2 link linkat symlink symlinkat mkdir mkdirat mknod mknodat": _NEW_NAME,
    "unlink unlinkat rmdir": "EIO/ENOMEM",
    "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat": "EIO/ENOMEM",
    "getdents64": "EIO/ENOMEM",
    "mmap mremap": "ENOMEM",
    "clone clone3 fork vfork": "EAGAIN/ENOMEM",
    "flock": "EINTR ENOLCK",
    "fcntl": "EMFILE ENOLCK",
    "fallocate ftruncate truncate": "ENOSPC/EDQUOT EIO EINTR",
    "mount fsopen open_tree fsmount move_mount mount_setattr": "ENOMEM",
    "fsconfig": "EIO/ENOMEM",
    "umount2": "EBUSY/ENOMEM",
    "ioctl": "EIO ENOSPC/EDQUOT EOPNOTSUPP",
    "setxattr lsetxattr fsetxattr": "ENOSPC/EDQUOT EIO",
    "getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr": "EIO/ENOMEM",
    "removexattr lremovexattr fremovexattr": "EIO/ENOSPC",
    "chmod fchmod fchmodat chown lchown fchown fchownat utimensat": "EIO/ENOMEM",
    "dup pipe pipe2 memfd_create epoll_create1 eventfd2": "EMFILE",
    "statfs fstatfs": "EIO/ENOMEM",
    "execve": "ENOMEM/EIO",
    "wait4 waitid": "EINTR",
    "unshare": "ENOMEM",
    "chdir fchdir chroot": "EIO/ENOMEM",
    "socket": "EMFILE/ENOMEM",
    "connect": "ECONNREFUSED/ETIMEDOUT EINTR",
    # After a reset nothing would come any more, for which a sender may wait then; and here it would for long.
    "sendto": "ENOMEM EINTR SHORT",
    "recvfrom": "ECONNRESET/ENOMEM EINTR SHORT",
    "poll": "EINTR/ENOMEM",
}
ERRORS = {call: names.split() for calls, names in _ERRORS.items() for call in calls.split()}
"""What each call may fail with, by its manual page: of those with a slash between them one at each call, in turn. Which
it may only in some uses is for injector.c to know."""


def _calls_with(error: str, but: Collection[str] = ()) -> list[str]:
    return [call for call, names in ERRORS.items() if error in " ".join(names) and call not in but]


CHANGES = frozenset(_calls_with("ENOSPC", but={"open", "openat", "openat2", "creat"}))
ALIKE, ALIKE_CHANGES = 3, 12
AFTER = frozenset({"close"})
"""Calls that do what they are for although they report an error."""

GROUPS = {
    "full disk": ("ENOSPC", _calls_with("ENOSPC", but={"ioctl"})),
    "broken disk": ("EIO", _calls_with("EIO", but={"close", "unlink", "unlinkat", "rmdir"})),
    "no descriptors": ("EMFILE", _calls_with("EMFILE")),
    "no memory": ("ENOMEM", ["mmap", "mremap", "clone", "clone3", "fork", "vfork"]),
}
"""What stays as it is until the operation has failed: from the Nth on all of these calls fail. Of a broken disk files
can be removed still, or nothing could be cleared away."""
ALLOCATION = "malloc"
LIMITS = {"descriptors": (range(24), 1), "disk": (range(32), 16 << 10), "memory": (range(24), 256 << 10)}
"""What there is really too little of, of the kernel's own doing: so many times so much is left."""
REAL = "REAL"
DISK_BYTES = 1200 << 20
_UNRESERVED_BYTES = 32 << 20
SECONDS = 40
"""After which a case hangs."""
_DEAD_THREAD = "Exception ignored in thread started by"
"""What CPython says where a thread has no memory to begin with: its `Thread.start` waits for that for ever (gh-140746),
of which the store is not to blame. Such a case does not count."""


@dataclass(frozen=True)
class Case:
    """The `at`th of the calls of that name fails so. `call` may also be a name of `GROUPS`, or `ALLOCATION`."""

    operation: str
    call: str
    at: int
    error: str

    @property
    def fault(self) -> Fault:
        if self.call == ALLOCATION:
            return Fault((), self.at, persistent=self.error == "EVERY")
        if self.call in LIMITS:
            return Fault(("setns",), 1)  # which nothing calls
        if self.call in GROUPS:
            name, calls = GROUPS[self.call]
            return Fault(tuple(calls), self.at, getattr(errno, name), persistent=True)
        number = 0 if self.error == SHORT else getattr(errno, self.error)
        return Fault((self.call,), self.at, number, after=self.call in AFTER)

    @property
    def what(self) -> str:
        """The row of the table that it counts in."""
        if self.call == ALLOCATION:
            return "allocations of the C core that fail"
        if self.call in LIMITS:
            return f"hardly any {self.call} left"
        if self.call in GROUPS:
            return f"from some call on: {self.call} ({GROUPS[self.call][0]})"
        return "short reads and writes" if self.error == SHORT else f"{self.error} at a system call"

    @property
    def options(self) -> str:
        return shlex.join(
            ["--operation", self.operation, "--call", self.call, "--at", str(self.at), "--error", self.error]
        )


@dataclass(frozen=True)
class Verdict:
    """What is wrong: `kind` is a count of `record.Row`, or empty."""

    case: Case
    kind: str
    text: str
    injected: bool
    at_what: str


# One case


def _descriptors() -> Counter[str]:
    found: Counter[str] = Counter()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # that of the listing itself
            found[os.readlink(f"/proc/self/fd/{name}")] += 1
    return found


_ALONE = frozenset(map(os.strerror, errno.errorcode))


def unclear(error: BaseException, case: Case) -> str:
    """Why an error is none that a caller can do anything with, or empty."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, MemoryError):
        return ""
    if isinstance(error, CommandFailed):
        if case.call in GROUPS and not str(error):
            return ""  # to tell it fails, too
        told = re.fullmatch(r"layerstore(?: \w+)?: (.+)\n", str(error))
        return "" if told and told[1] not in _ALONE else f"{text} does not say where"
    if isinstance(error, LayerstoreError):
        return "" if str(error) else f"{text} says nothing"
    if isinstance(error, OSError):
        says_where = error.filename is not None or (error.strerror or str(error)) != os.strerror(error.errno or 0)
        return "" if says_where else f"{text} does not say where"
    return f"{text} is no error of the library's"


def _place_of(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "/layerstore/" in frame.filename]
    return f"{frames[-1].filename.rpartition('/layerstore/')[2]}:{frames[-1].lineno}" if frames else "?"


@contextlib.contextmanager
def _limited(case: Case, top: Path) -> Iterator[None]:
    """Have the process be short of something in the block."""
    if case.call not in LIMITS:
        yield
        return
    left = case.at * LIMITS[case.call][1]
    if case.call == "disk":
        filling = top / "filling"
        with open(filling, "wb") as file:
            state = os.fstatvfs(file.fileno())
            os.posix_fallocate(file.fileno(), 0, state.f_bavail * state.f_frsize - _UNRESERVED_BYTES)
            _fill(file.fileno(), left)
            try:
                yield
            finally:
                filling.unlink()
        return
    if case.call == "memory":
        limit, used = resource.RLIMIT_AS, int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    else:
        limit, used = resource.RLIMIT_NOFILE, len(os.listdir("/proc/self/fd")) - 1
    before = resource.getrlimit(limit)
    resource.setrlimit(limit, (used + left, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(limit, before)


def _fill(fd: int, left: int) -> None:
    """Take all room that a file can have, then give so much back."""
    step, size = 1 << 20, os.fstat(fd).st_size
    while step >= 4096:
        try:
            os.posix_fallocate(fd, size, step)
            size += step
        except OSError:
            step //= 2
    os.ftruncate(fd, size - left)


def _attempt(case: Case, template: Template, place: Place, mark: Callable[[bool], None]) -> dict[str, Any]:
    """In the child: the operation with the fault, then what is left of it without."""
    os.environ["SOURCE_DATE_EPOCH"] = EPOCH
    operation = template.operation
    steps = operation.steps(place)
    done, store, caught = 0, None, None
    descriptors, threads = _descriptors(), threading.active_count()
    with _limited(case, place.store.parent.parent):
        mark(True)
        try:
            store = operation.open(place)
            for step in steps:
                step.do(store)
                done += 1
        except BaseException as error:
            caught = error
        finally:
            mark(False)
    answer: dict[str, Any] = {"error": "", "kind": "", "text": ""}
    try:
        if caught is not None:
            answer["error"] = f"{type(caught).__name__}: {caught} at {_place_of(caught)}"
            traceback.print_exception(caught)
            problem = unclear(caught, case)
            # With what it refers to, it may hold what would else be closed.
            caught = None
            gc.collect()
            done = reached(template, place, done)
            _again(template, place, store, done)
            if problem:
                raise Failure("crashed", problem)
        elif store is not None:
            store.close()
        store = None
        gc.collect()
        more = _descriptors() - descriptors
        if more:
            raise Failure("leaked", f"descriptors of {dict(more)}")
        if threading.active_count() > threads:
            raise Failure("leaked", f"threads {threading.enumerate()}")
    except Failure as failure:
        answer |= {"kind": failure.kind, "text": str(failure)}
    return answer


def _again(template: Template, place: Place, store: Store | None, done: int) -> None:
    try:
        if store is None:
            store = template.operation.open(place)
        for step in template.operation.steps(place)[done:]:
            step.do(store)
        store.close()
    except (LayerstoreError, OSError, AssertionError, MemoryError) as error:
        traceback.print_exc()
        raise Failure("lost", f"the next attempt fails: {type(error).__name__}: {error}") from error


def _check(template: Template, place: Place) -> dict[str, Any]:
    try:
        check(template, place, len(template.durable))
    except Failure as failure:
        traceback.print_exc()
        return {"kind": failure.kind, "text": f"afterwards: {failure}"}
    return {"kind": "", "text": ""}


class Bench:
    """Where a worker does its cases: a file system of its own in memory, and the templates of operations there."""

    def __init__(self, registry: int) -> None:
        _own_namespace()
        self._registry = registry
        self.top = Path(tempfile.mkdtemp(prefix="layerstore-faults-"))
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="layerstore-faults-") as disk:
            disk.truncate(DISK_BYTES)
            subprocess.run(["mkfs.xfs", "-q", disk.name], check=True)
            # Its loop device keeps the file once it has no name.
            subprocess.run(["mount", "-o", "loop", disk.name, self.top], check=True)
        self._templates: dict[str, Template] = {}
        self._injector = Injector()

    def close(self) -> None:
        subprocess.run(["umount", self.top], check=True)
        self.top.rmdir()

    def template(self, name: str) -> Template:
        if name not in self._templates:
            os.environ["SOURCE_DATE_EPOCH"] = EPOCH
            template = prepare(operations()[name], self.top / name, self._registry)
            self._templates[name] = template
            # So that what is imported when it is first needed is imported here, and not in each case.
            place = template.copy(self.top / "trial")
            template.operation.run(place, lambda _: None)
            check(template, place, len(template.durable))
            remove_place(place)
        return self._templates[name]

    def run(self, case: Case, log: Path | None = None) -> tuple[Verdict, Outcome]:
        template = self.template(case.operation)
        place = template.copy(self.top / "trial")
        output = self.top / "output"
        try:
            outcome = self._injector.run(
                lambda mark: _attempt(case, template, place, mark),
                case.fault,
                seconds=SECONDS,
                output=output,
                log=log,
            )
            answer = outcome.answer or {}
            if outcome.problem == "it hung" and _DEAD_THREAD in output.read_text(errors="replace"):
                return Verdict(case, "", "", False, outcome.text), outcome
            if outcome.problem:
                answer |= {"kind": "crashed", "text": f"{outcome.problem}: {_end_of(output)}"}
            elif not answer["kind"]:
                checked = self._injector.run(
                    lambda mark: _check(template, place), Fault(("setns",), 1), seconds=SECONDS, output=output
                )
                answer |= checked.answer or {"kind": "crashed", "text": f"afterwards: {checked.problem}"}
        finally:
            remove_place(place)
        text = f"{answer['text']} (after {answer['error']})" if answer.get("error") else answer["text"]
        met = bool(outcome.injected or (case.call in LIMITS and answer.get("error")))
        return Verdict(case, answer["kind"], text, met, outcome.text), outcome


def _end_of(output: Path) -> str:
    return " | ".join(output.read_text(errors="replace").splitlines()[-12:])


def _own_namespace() -> None:
    new_mounts = 0x00020000
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts) < 0:
        raise OSError(ctypes.get_errno(), "cannot have a mount namespace of its own (it needs root)")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)


# All of them

_bench: Bench


def _begin(registry: int) -> None:
    global _bench
    die_with_parent = 1
    ctypes.CDLL(None).prctl(die_with_parent, signal.SIGKILL)
    _bench = Bench(registry)
    # What is registered by atexit does not run in a worker.
    multiprocessing.util.Finalize(_bench, _bench.close, exitpriority=100)


@dataclass(frozen=True)
class Calls:
    """What an undisturbed run of an operation calls, in its order, and how often the core allocates.

    Attributes:
        made: name of the call, its number among those of the name, and what it is about: a path without its digits.
    """

    made: tuple[tuple[str, int, str], ...]
    allocations: int


_CALL = re.compile(r"(\w+) #(\d+) \(-?\d+: (.*), (\S+), \S+\)")
_MADE_UP = re.compile(r"(?<=objects/)../[0-9a-f]{62}|(?<=objects/)..|[0-9a-f]{8,}|\d+|\.\w{50}")


def _calls_of(name: str) -> Calls:
    with tempfile.NamedTemporaryFile("r") as log:
        verdict, _ = _bench.run(Case(name, "close", 0, "EIO"), Path(log.name))
        if verdict.kind:
            raise RuntimeError(f"{name} goes wrong undisturbed: {verdict.text}")
        found = [_CALL.fullmatch(line.rstrip("\n")) for line in log]
    made = tuple((m[1], int(m[2]), f"{_MADE_UP.sub('*', m[3])} {m[4] if m[1] == 'ioctl' else ''}") for m in found if m)
    _, outcome = _bench.run(Case(name, ALLOCATION, 0, "ONE"))
    return Calls(made, outcome.allocations)


def planned(name: str, calls: Calls, *, every: bool = False) -> Iterator[Case]:
    """The cases of an operation. Of calls alike, of the same name and about the like, the first few are enough, as a
    collection looks into each of 256 directories; all with `every`."""
    alike: Counter[tuple[str, str]] = Counter()
    chosen = []
    for place, (call, number, about) in enumerate(calls.made):
        alike[call, about] += 1
        if every or alike[call, about] <= (ALIKE_CHANGES if call in CHANGES else ALIKE):
            chosen.append(place)
            for errors in ERRORS.get(call, ()):
                alternatives = errors.split("/")
                yield Case(name, call, number, alternatives[number % len(alternatives)])
    for group, (error, members) in GROUPS.items():
        at = 0
        for place, (call, _, _) in enumerate(calls.made):
            if call in members:
                at += 1
                if place in chosen:
                    yield Case(name, group, at, error)
    for limit, (steps, _) in LIMITS.items():
        for at in steps:
            yield Case(name, limit, at, REAL)
    for at in range(1, calls.allocations + 1):
        yield Case(name, ALLOCATION, at, "ONE")
        yield Case(name, ALLOCATION, at, "EVERY")


def _run(name: str, options: argparse.Namespace) -> tuple[list[Verdict], float]:
    """The cases of an operation that are asked for, and how many seconds they took. What is wrong is told at once."""
    begin = time.monotonic()
    cases = [
        case
        for case in planned(name, _calls_of(name), every=options.every)
        if options.call in (None, case.call) and options.error in (None, case.error) and options.at in (None, case.at)
    ]
    if options.sample is not None and options.sample < len(cases):
        cases = random.Random(f"{options.seed} {name}").sample(cases, options.sample)
    verdicts = []
    for case in cases:
        verdict, _ = _bench.run(case)
        verdicts.append(verdict)
        if verdict.kind:
            print(f"{case.options}\n   {verdict.at_what}\n   {verdict.text}"[:2000], flush=True)
    return verdicts, time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(prog="campaigns.faults", description=__doc__.partition("\n")[0])
    parser.add_argument("--operation", action="append", help="only this one; may be given again")
    parser.add_argument("--call", help="only this system call, 'malloc', or one of: " + ", ".join((*GROUPS, *LIMITS)))
    parser.add_argument("--error", help="only this one; SHORT for half of what was asked for")
    parser.add_argument("--at", type=int, help="only the Nth call")
    parser.add_argument("--every", action="store_true", help="of calls alike, not the first few only")
    parser.add_argument("--sample", type=int, help="so many cases of each operation, drawn by --seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--record", action="store_true", help="write the counts to docs/reliability.md")
    parser.add_argument("-v", "--verbose", action="store_true", help="of one case: every call, and what was printed")
    options = parser.parse_args()
    begin = time.monotonic()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    os.environ["LD_PRELOAD"] = str(built("allocations"))
    built("injector")
    if options.verbose and not hasattr(ctypes.CDLL(None), "allocations_arm"):
        os.execv(sys.executable, [sys.executable, "-m", "campaigns.faults", *sys.argv[1:]])
    with _registry() as port:
        possible = [name for name, each in operations().items() if port or "registry" not in each.needs]
        names = [name for name in options.operation or possible if name in possible]
        if options.verbose:
            return _one(Case(names[0], options.call, options.at, options.error), port)
        spawned = multiprocessing.get_context("spawn")
        verdicts = []
        with ProcessPoolExecutor(options.jobs, spawned, initializer=_begin, initargs=(port,)) as pool:
            futures = {pool.submit(_run, name, options): name for name in names}
            for future in as_completed(futures):
                name, (found, seconds) = futures[future], future.result()
                verdicts += found
                bad = sum(bool(verdict.kind) for verdict in found)
                print(f"{name}: {len(found):,} cases, {bad} bad, after {time.monotonic() - begin:.0f} s", flush=True)
                if options.record:
                    record.write_part("faults", name, _rows(found), _command(options), seconds, possible)
    print(f"{time.monotonic() - begin:.0f} s")
    return record.told(_rows(verdicts))


def _command(options: argparse.Namespace) -> str:
    """What one gives to make to have cases drawn so, of whatever operation."""
    sampled = [] if options.sample is None else ["--sample", str(options.sample), "--seed", str(options.seed)]
    limited = [
        word
        for name in ("call", "error", "at")
        if (value := getattr(options, name)) is not None
        for word in (f"--{name}", str(value))
    ]
    return record.command_of("faults", [*sampled, *(["--every"] if options.every else []), *limited])


def _rows(verdicts: Sequence[Verdict]) -> list[record.Row]:
    tried: Counter[str] = Counter()
    bad: dict[str, Counter[str]] = defaultdict(Counter)
    for verdict in verdicts:
        if verdict.injected:
            tried[verdict.case.what] += 1
        if verdict.kind:
            bad[verdict.case.what][verdict.kind] += 1
    return [record.Row(what, count, **bad[what]) for what, count in sorted(tried.items())]


def _one(case: Case, registry: int) -> int:
    bench = Bench(registry)
    try:
        with tempfile.NamedTemporaryFile("r") as log:
            verdict, _ = bench.run(case, Path(log.name))
            print(log.read())
        print((bench.top / "output").read_text(errors="replace"))
        print(f"{verdict.at_what if verdict.injected else 'nothing failed'}\n{verdict.kind or 'good'} {verdict.text}")
        return int(bool(verdict.kind))
    finally:
        bench.close()


@contextlib.contextmanager
def _registry() -> Iterator[int]:
    """The port of a docker-registry, or 0 where there is none."""
    if shutil.which("docker-registry") is None:
        yield 0
        return
    from registries import Registry

    with tempfile.TemporaryDirectory() as directory, Registry(Path(directory)) as registry:
        yield registry.port


if __name__ == "__main__":
    sys.exit(main())
