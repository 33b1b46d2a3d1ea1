"""The locks of a store: which there are, in which order they are taken, how long one is waited for, and who has one.

`LOCKS` is the order. A thread takes locks of one store by rising rank only, so that no circle of threads and processes
can wait for each other; what needs a lock of a lower rank is done before one of a higher rank is taken. Where a thread
takes one out of order, that is a line in the log "layerstore", or an `AssertionError` where the environment has
LAYERSTORE_STRICT_LOCKS=1, as in tests.

A lock is one of a file in run/ (flock(2)), or of bytes of such a file (fcntl(2), "Open file description locks"), gone
with the process that holds it. Every wait ends: at the latest after the seconds that stand in `LOCKS`, with a
`Conflict` that says for what it waited, and who has that.

These have no rank:
- A lock that is tried, and not waited for: who tries delays nobody. So are those of files that their own maker has
  open (`try_lock`): a staging directory, a pack, a log, a download.
- Those that a build waits for while it looks whether it is to stop (`take_between`): the caches of a RUN, of which all
  are taken by the order of their names, and the steps that other builds make, of which who waits has none.
- One that an iterator has while its caller does something else (`container(..., lasting=True)`): who waits for that
  waits for seconds, and then is told.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import fcntl
import os
import struct
import time

from layerstore.errors import Conflict
from layerstore.naming import about, close_fd, fstat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from layerstore.store.layout import Layout
    from layerstore.types import ChainId

_HOUR = 3600.0

LOCKS = {
    # name: (seconds that it is waited for, what it is)
    "pool": (120.0, "the pool, which is being made, attached or grown"),
    "making": (120.0, "the store, which is being made"),
    "freeze": (24 * _HOUR, "the freezing of images"),
    "garbage": (24 * _HOUR, "the store's garbage lock"),
    "builds": (_HOUR, "the clearing away of what builds left"),
    "images": (600.0, "the images of builds"),
    "layers": (24 * _HOUR, "layers that are being brought"),
    "chain": (600.0, "a chain of layers"),
    "packs": (4 * _HOUR, "the bringing together of packs"),
    "staging": (600.0, "the staging area"),
    "container": (30.0, "container"),
    "mounting": (30.0, "the mount of container"),
    "still": (120.0, "the files of a running container, to read them"),
    "mounts": (120.0, "the mounts of the store"),
    "database": (300.0, "the line of those that write to the database"),
}
"""Of what takes an hour when all is well (a load, a build, a pull) a whole day is waited for; of what takes
milliseconds, until something must be wrong; of a container, which a person may have stopped in the middle (`export |
less`), as long as a person waits."""

_OF_BUILDS = {
    "cache": (24 * _HOUR, "a cache of RUN"),
    "step": (24 * _HOUR, "a step of a build"),
}
"""The same of locks without a rank."""

_RANKS = {name: rank for rank, name in enumerate(LOCKS)}
_STRICT = os.environ.get("LAYERSTORE_STRICT_LOCKS") == "1"

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of Linux: type, whence, start, length, process (0)."""
_ASK_SECONDS, _REST_SECONDS = 2.0, 6.0
_LOOK_SECONDS = 0.005
_FIRST_LOOK_SECONDS = 0.0002
_BETWEEN_SECONDS = 0.02
_SHOWN_COMMAND = 120


# What a thread has


class Note:
    """That a thread has a lock, or locks of one kind."""

    __slots__ = ("is_shared", "notes", "rank", "run")

    def __init__(self, kind: str, run: str, is_shared: bool) -> None:
        self.rank = _RANKS[kind]
        self.run = run
        self.is_shared = is_shared
        self.notes = _notes.setdefault(_thread.get_ident(), [])
        self.notes.append(self)

    def forget(self) -> None:
        """Perhaps in another thread than that which took it."""
        with contextlib.suppress(ValueError):  # a process that was forked meanwhile has none
            self.notes.remove(self)


_notes: dict[int, list[Note]] = {}
os.register_at_fork(after_in_child=_notes.clear)


def of_this_thread() -> list[Note]:
    """What it has, for a thread that works for it (`working_for`)."""
    return list(_notes.get(_thread.get_ident(), ()))


@contextlib.contextmanager
def working_for(others: Sequence[Note]) -> Iterator[None]:
    """In the block this thread works for another one, which has those locks meanwhile: they are as its own."""
    _notes[_thread.get_ident()] = list(others)
    try:
        yield
    finally:
        del _notes[_thread.get_ident()]


def _is_had(kind: str, run: str) -> bool:
    """Whether this thread has it shared already."""
    rank = _RANKS[kind]
    notes = _notes.get(_thread.get_ident(), ())
    return any(note.rank == rank and note.run == run and note.is_shared for note in notes)


def _check_order(kind: str, run: str) -> None:
    rank = _RANKS[kind]
    for note in _notes.get(_thread.get_ident(), ()):
        if note.rank >= rank and note.run == run:
            _tell_order(kind, note)
            return


def _tell_order(kind: str, note: Note) -> None:
    had = list(LOCKS)[note.rank]
    text = f"lock {kind!r} of {note.run} is taken out of order, by a thread that has {had!r}"
    if _STRICT:
        raise AssertionError(text)
    import logging

    logging.getLogger("layerstore").warning("%s", text, stack_info=True)


# What is waited for


class _WholeFile:
    """The lock of a file."""

    def __init__(self, fd: int, exclusive: bool) -> None:
        self.fd = fd
        self._how = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH

    def is_taken(self) -> bool:
        try:
            with about(self.fd):
                fcntl.flock(self.fd, self._how | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def wait(self, fd: int) -> None:
        fcntl.flock(fd, self._how)

    def undo(self, fd: int) -> None:
        fcntl.flock(fd, fcntl.LOCK_UN)

    def is_of(self, fields: list[str]) -> bool:
        return fields[1] == "FLOCK"


class _Byte:
    """The lock of a byte of a file."""

    def __init__(self, fd: int, exclusive: bool, start: int) -> None:
        self.fd = fd
        self._kind = fcntl.F_WRLCK if exclusive else fcntl.F_RDLCK
        self._start = start

    def is_taken(self) -> bool:
        try:
            _lock_byte(self.fd, fcntl.F_OFD_SETLK, self._kind, self._start)
        except (BlockingIOError, PermissionError):
            return False
        return True

    def wait(self, fd: int) -> None:
        _lock_byte(fd, fcntl.F_OFD_SETLKW, self._kind, self._start)

    def undo(self, fd: int) -> None:
        _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, self._start)

    def is_of(self, fields: list[str]) -> bool:
        if fields[1] != "OFDLCK":
            return False
        start, end = int(fields[-2]), (1 << 63) if fields[-1] == "EOF" else int(fields[-1])
        return start <= self._start <= end


def _take(wanted: _WholeFile | _Byte, kind: str, subject: str = "") -> None:
    """Take a lock, waiting for it where somebody has it. Raises `Conflict`, `OSError`."""
    if wanted.is_taken():
        return
    seconds, what = LOCKS[kind]
    end = time.monotonic() + seconds
    pause = _FIRST_LOOK_SECONDS
    waiter: _Waiter | None = None
    while (left := end - time.monotonic()) > 0:
        if waiter is None and pause > _LOOK_SECONDS:
            # Where no thread can be started, or no descriptor be had for it, it is looked again and again.
            with contextlib.suppress(RuntimeError, OSError):
                waiter = _Waiter(wanted)
        if waiter is not None:
            if waiter.is_done_in(left):
                return
            break
        time.sleep(min(pause, left))
        pause = min(2 * pause, 2 * _LOOK_SECONDS)
        if wanted.is_taken():
            return
    if wanted.is_taken():
        return
    raise Conflict(
        f"waited {seconds:g} s for {what}{subject and ' '}{subject}, which {_holders(wanted)}; "
        "try again when that has ended"
    )


def _take_between(wanted: _WholeFile | _Byte, kind: str, check: Callable[[], None]) -> None:
    seconds, what = _OF_BUILDS[kind]
    end = time.monotonic() + seconds
    while not wanted.is_taken():
        check()
        if time.monotonic() > end:
            raise Conflict(f"waited {seconds:g} s for {what}, which {_holders(wanted)}; try again when that has ended")
        time.sleep(_BETWEEN_SECONDS)


class _Waiter:
    """Stands in the kernel's line for a lock, in a thread: no call of the kernel's does that for a limited time. To
    look now and then instead would let everybody past who comes later."""

    def __init__(self, wanted: _WholeFile | _Byte) -> None:
        import threading

        self._wanted = wanted
        self._fd = os.dup(wanted.fd)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_left = self._is_taken = False
        self._error: OSError | None = None
        try:
            threading.Thread(target=self._run, name="layerstore-lock", daemon=True).start()
        except BaseException:
            close_fd(self._fd)
            raise

    def _run(self) -> None:
        try:
            with about(self._fd):
                self._wanted.wait(self._fd)
            with self._lock:
                self._is_taken = not self._is_left
                if self._is_left:
                    self._wanted.undo(self._fd)
        except OSError as error:
            self._error = error
        finally:
            close_fd(self._fd)
            self._ended.set()

    def is_done_in(self, seconds: float) -> bool:
        """Wait so long for it; after that it is given up. Raises `OSError`."""
        try:
            self._ended.wait(seconds)
        finally:
            with self._lock:
                self._is_left = not self._is_taken
        if self._error is not None:
            raise self._error
        return self._is_taken


def _holders(wanted: _WholeFile | _Byte) -> str:
    """Who has it, as a clause."""
    found = [_command(pid) for pid in filter(str.isdigit, os.listdir("/proc")) if _has(pid, wanted)]
    if not found:
        return "another process has"
    return f"{' and '.join(found)} {'have' if len(found) > 1 else 'has'}"


def _has(pid: str, wanted: _WholeFile | _Byte) -> bool:
    """Whether a process has a lock that is in the way (proc(5), "/proc/pid/fdinfo"). The locks of bytes belong to no
    process, so /proc/locks does not tell it."""
    own = fstat(wanted.fd)
    with contextlib.suppress(OSError):  # it has ended, or is not this user's
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(f"/proc/{pid}/fd/{fd}"), own):
                    with open(f"/proc/{pid}/fdinfo/{fd}") as file:
                        lines = [line.split()[1:] for line in file if line.startswith("lock:")]
                    if any(wanted.is_of(fields) for fields in lines):
                        return True
    return False


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096).rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
    except OSError:
        words = ""
    shown = "".join(c if c.isprintable() else "?" for c in words)
    shown = shown if len(shown) <= _SHOWN_COMMAND else f"{shown[:_SHOWN_COMMAND]}..."
    own = "this process" if int(pid) == os.getpid() else "process"
    return f"{own} {pid} ({shown})"


# Locks of files


class Lock:
    """The lock of a file, held in a block, of which the value is the file's descriptor."""

    __slots__ = ("_exclusive", "_fd", "_flags", "_holder", "_is_again", "_kind", "_note", "_path", "_run")

    def __init__(
        self, kind: str, path: str, run: str, *, exclusive: bool, again: bool = False, flags: int | None = None
    ) -> None:
        self._kind = kind
        self._path = path
        self._run = run
        self._exclusive = exclusive
        self._is_again = again
        self._flags = os.O_RDWR | os.O_CREAT if flags is None else flags

    def __enter__(self) -> int:
        is_had = self._is_again and _is_had(self._kind, self._run)
        if not is_had:
            _check_order(self._kind, self._run)
        fd = self._fd = os.open(self._path, self._flags | os.O_CLOEXEC, 0o600)
        self._holder = os.getpid()
        try:
            self._take(fd, is_had)
        except BaseException:
            _let_go(fd, self._holder)
            raise
        self._note = Note(self._kind, self._run, not self._exclusive)
        return fd

    def _take(self, fd: int, is_had: bool) -> None:
        _take(_WholeFile(fd, self._exclusive), self._kind)

    def __exit__(self, *_: object) -> None:
        self._note.forget()
        _let_go(self._fd, self._holder)


class _Garbage(Lock):
    """Shared, when nobody asks for it alone."""

    __slots__ = ()

    def _take(self, fd: int, is_had: bool) -> None:
        if not is_had:
            _let_pass(fd)
        super()._take(fd, is_had)


class _GarbageAlone(Lock):
    """Exclusive, where others hold it shared, one or another at any moment.

    The kernel lets a sharer in while somebody waits who wants it alone, who then would wait for as long as there is
    much to do. So sharers are asked to wait, by a lock of a byte, for two seconds of each eight: not for longer, as one
    who holds it may take it once more before he lets go, and as what he does may take an hour.
    """

    __slots__ = ()

    def _take(self, fd: int, is_had: bool) -> None:
        wanted = _WholeFile(fd, exclusive=True)
        seconds, what = LOCKS[self._kind]
        end = time.monotonic() + seconds
        while not wanted.is_taken():
            if time.monotonic() > end:
                raise Conflict(f"waited {seconds:g} s for {what}, which {_holders(wanted)}; try again later")
            with contextlib.suppress(BlockingIOError):  # another one asks for it already
                _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 0)
            is_held = _try_for(wanted, min(_ASK_SECONDS, seconds))
            _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0)
            if is_held or _try_for(wanted, min(_REST_SECONDS, end - time.monotonic())):
                break


def _try_for(wanted: _WholeFile, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        if wanted.is_taken():
            return True
    return False


def _let_pass(fd: int) -> None:
    """Wait for who wants this lock alone, if he asks for it; not for one who was stopped while he did."""
    end = None
    while _lock_byte(fd, fcntl.F_OFD_GETLK, fcntl.F_RDLCK, 0) != fcntl.F_UNLCK:
        end = end or time.monotonic() + 2 * _ASK_SECONDS
        if time.monotonic() > end:
            return
        time.sleep(_LOOK_SECONDS)


def _let_go(fd: int, holder: int) -> None:
    """Close a file that the process `holder` has locked, and release it: a process that was forked meanwhile has the
    descriptor, too, and would keep the lock. Such a process releases nothing, as the lock is its parent's."""
    with contextlib.suppress(OSError):  # nothing was written that it could not write
        if os.getpid() == holder:
            fcntl.flock(fd, fcntl.LOCK_UN)
    close_fd(fd)


def pool(path: str, store: str, *, alone: bool) -> Lock:
    """Of the pool whose lock file `path` is, for the store `store` in it. Shared: it is not detached. Alone: to make,
    attach, detach or grow it."""
    return Lock("pool", path, f"{store}/run", exclusive=alone)


def making(layout: Layout) -> Lock:
    """To make the store, in whose root it is."""
    return Lock("making", layout.root, layout.run, exclusive=True, flags=os.O_RDONLY | os.O_DIRECTORY)


def freeze(layout: Layout) -> Lock:
    """To freeze images."""
    return Lock("freeze", layout.freeze_lock, layout.run, exclusive=True)


def garbage(layout: Layout, *, again: bool = False) -> Lock:
    """Nothing is collected. `again`: this thread may have it so already, and does not wait then."""
    return _Garbage("garbage", layout.garbage_lock, layout.run, exclusive=False, again=again)


def garbage_alone(layout: Layout) -> Lock:
    """To collect garbage or to repair: nothing is imported, created, saved or built. Waits past those who share it."""
    return _GarbageAlone("garbage", layout.garbage_lock, layout.run, exclusive=True)


def images_of_builds(layout: Layout) -> Lock:
    """To make an image for a step, or publish the result of a build."""
    return Lock("images", f"{layout.builds}/images.lock", layout.run, exclusive=True)


def chain(layout: Layout, chain_id: ChainId) -> Lock:
    """To make what is derived of a chain."""
    return Lock("chain", layout.chain_lock(chain_id), layout.run, exclusive=True)


@contextlib.contextmanager
def chain_if_free(layout: Layout, chain_id: ChainId) -> Iterator[bool]:
    """The same where nobody has it; gives whether."""
    fd = os.open(layout.chain_lock(chain_id), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    holder = os.getpid()
    try:
        yield try_lock(fd)
    finally:
        _let_go(fd, holder)


def packs(layout: Layout) -> Lock:
    """To bring packs together, or cold contents back."""
    return Lock("packs", layout.packs_lock, layout.run, exclusive=True)


def staging(layout: Layout) -> Lock:
    """To take a staging directory and a pack number, or clear away what killed imports left."""
    return Lock("staging", layout.staging_lock, layout.run, exclusive=True)


def still(layout: Layout, container: str) -> Lock:
    """To stop the programs of a container while its files are read."""
    directory = layout.container(container)
    return Lock("still", directory, layout.run, exclusive=True, flags=os.O_RDONLY | os.O_DIRECTORY)


def mounts(layout: Layout, *, alone: bool) -> Lock:
    """Shared: no tree image or pack is mounted or taken away. Alone: to do that."""
    return Lock("mounts", layout.mount_lock, layout.run, exclusive=alone)


class Builds:
    """The lock of builds, a file that is open until `close`: shared while one runs, alone to clear away."""

    def __init__(self, layout: Layout, *, make: bool) -> None:
        """Raises `FileNotFoundError` where there is none, and it is not to be made; `OSError`."""
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if make else 0)
        self._run = layout.run
        self._fd = os.open(f"{layout.builds}/lock", flags, 0o600)
        self._holder = os.getpid()
        self._note: Note | None = None

    def try_alone(self) -> bool:
        """Have it alone if nobody else has it."""
        if not try_lock(self._fd):
            return False
        self._noted(is_shared=False)
        return True

    def share(self) -> None:
        """Have it shared. Raises `Conflict`, `OSError`."""
        if self._note is None:
            _check_order("builds", self._run)
        _take(_WholeFile(self._fd, exclusive=False), "builds")
        self._noted(is_shared=True)

    def _noted(self, *, is_shared: bool) -> None:
        if self._note is not None:
            self._note.forget()
        self._note = Note("builds", self._run, is_shared)

    def close(self) -> None:
        if self._note is not None:
            self._note.forget()
        _let_go(self._fd, self._holder)


# The database, which has locks of its own


class writing:
    """A transaction of the store whose line is `path` is under way in this thread until `end`."""

    __slots__ = ("_note",)

    def __init__(self, path: str) -> None:
        run = os.path.dirname(path)
        _check_order("database", run)
        self._note = Note("database", run, is_shared=False)

    def end(self) -> None:
        self._note.forget()


@contextlib.contextmanager
def turn(path: str) -> Iterator[None]:
    """Be the first of those that wait to write to the database. In a transaction that begins (`writing`)."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    holder = os.getpid()
    try:
        _take(_WholeFile(fd, exclusive=True), "database")
        yield
    finally:
        _let_go(fd, holder)


# Locks of bytes


def _lock_byte(fd: int, how: int, kind: int, start: int, length: int = 1) -> int:
    """Lock or release bytes of a file; returns the type of the lock that the kernel answers with. Raises `OSError`."""
    with about(fd):
        answer = fcntl.fcntl(fd, how, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    return int(_FLOCK.unpack(answer)[0])


class Claims:
    """Things that one is to work on at a time, each named by a digest: a byte of a lock file for each, so that there is
    one file however many things there are.

    Who holds some must not wait for another, unless all take what they want in one call. For one thread at a time.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._run = os.path.dirname(path)
        self._holder = os.getpid()
        self._note: Note | None = None

    def take(self, digests: Iterable[str]) -> None:
        """Claim layers, all of them, waiting for who has claimed one before. Always in the same order, so that none
        waits for one who waits for him. Raises `Conflict`, `OSError`."""
        _check_order("layers", self._run)
        for start in sorted(map(_place, digests)):
            _take(_Byte(self._fd, True, start), "layers")
        self._note = Note("layers", self._run, is_shared=False)

    def try_take(self, digest: str) -> bool:
        """Claim one if nobody else has."""
        return _Byte(self._fd, True, _place(digest)).is_taken()

    def take_between(self, digest: str, check: Callable[[], None]) -> None:
        """Claim the step of a build, by looking now and then, with a call of `check` between, which may raise. Raises
        `Conflict`, `OSError`."""
        _take_between(_Byte(self._fd, True, _place(digest)), "step", check)

    def release(self, digests: Iterable[str]) -> None:
        for digest in digests:
            _lock_byte(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _place(digest))

    def close(self) -> None:
        """Release all, as `_let_go`."""
        if self._note is not None:
            self._note.forget()
        _let_go_bytes(self._fd, self._holder)


def _let_go_bytes(fd: int, holder: int) -> None:
    with contextlib.suppress(OSError):
        if os.getpid() == holder:
            _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0, 0)
    close_fd(fd)


def _place(digest: str) -> int:
    name = digest.removeprefix("sha256:")
    try:
        return int(name[:15], 16)
    except ValueError:  # a directory of somebody's among the containers'
        return int.from_bytes(name.encode("utf-8", "surrogateescape")[:7], "big")


_BYTE_OF = {"container": 0, "mounting": 1, "program": 2, "command": 3}


class Containers:
    """Locks of containers, held in a block: bytes of one file, some for each (`_BYTE_OF`). Many are taken in one order.
    The block's value is whether they are held, which they are unless they are only tried."""

    __slots__ = ("_fd", "_holder", "_ids", "_is_alone", "_is_noted", "_kinds", "_layout", "_note", "_waits")

    def __init__(
        self,
        layout: Layout,
        ids: Iterable[str],
        *kinds: str,
        alone: bool,
        is_noted: bool = True,
        waits: bool = True,
    ) -> None:
        """`kinds` by rising rank."""
        self._layout = layout
        self._ids = ids
        self._kinds = kinds
        self._is_noted = is_noted
        self._is_alone = alone
        self._waits = waits

    def __enter__(self) -> bool:
        if self._waits:
            _check_order(self._kinds[0], self._layout.run)
        fd = self._fd = os.open(self._layout.containers_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._holder = os.getpid()
        try:
            is_held = self._take(fd)
        except BaseException:
            _let_go_bytes(fd, self._holder)
            raise
        self._note = Note(self._kinds[-1], self._layout.run, not self._is_alone) if self._is_noted else None
        return is_held

    def fileno(self) -> int:
        """The descriptor that holds them: whoever else has it holds them, too, until this lets go."""
        return self._fd

    def _take(self, fd: int) -> bool:
        places = sorted((4 * _place(container), container) for container in self._ids)
        # One rank of all, and then the next, or two that take several could wait for each other.
        for kind in self._kinds:
            for place, container in places:
                wanted = _Byte(fd, self._is_alone, place + _BYTE_OF[kind])
                if self._waits:
                    _take(wanted, kind, container[:12])
                elif not wanted.is_taken():
                    return False
        return True

    def __exit__(self, *_: object) -> None:
        if self._note is not None:
            self._note.forget()
        _let_go_bytes(self._fd, self._holder)


def container(layout: Layout, container: str, *, alone: bool, lasting: bool = False) -> Containers:
    """Of a container's files and snapshots. Shared: they are not taken away, rolled back or removed. Alone: to do that.

    lasting: an iterator holds it, and its caller may do anything meanwhile.
    """
    return Containers(layout, [container], "container", alone=alone, is_noted=not lasting)


def container_if_free(layout: Layout, container: str) -> Containers:
    """The same alone, where nobody has it."""
    return Containers(layout, [container], "container", alone=True, waits=False)


def containers(layout: Layout, ids: Iterable[str]) -> Containers:
    """Of many, shared."""
    return Containers(layout, ids, "container", alone=False)


def containers_to_remove(layout: Layout, ids: Iterable[str], *, waits: bool = True) -> Containers:
    """Of many, alone, and of their mounts."""
    return Containers(layout, ids, "container", "mounting", alone=True, waits=waits)


def mounting(layout: Layout, ids: Iterable[str]) -> Containers:
    """To see whether containers are mounted, and mount or unmount them."""
    return Containers(layout, ids, "mounting", alone=True)


def program(layout: Layout, container: str) -> Containers:
    """To start a program in a container, and wait for it if it is to be waited for, where nobody else does."""
    return programs(layout, [container])


def programs(layout: Layout, ids: Iterable[str]) -> Containers:
    """The same of many."""
    return Containers(layout, ids, "program", alone=True, is_noted=False, waits=False)


def starts_no_program(layout: Layout, container: str) -> Containers:
    """Whether nobody starts a program in a container, or waits for its end."""
    return Containers(layout, [container], "program", alone=False, is_noted=False, waits=False)


def command(layout: Layout, container: str, *, alone: bool) -> Containers:
    """Shared: to have a command in a container that lives. Alone: to end such a container, where nobody has one."""
    return Containers(layout, [container], "command", alone=alone, is_noted=False, waits=False)


# Files in use


def try_lock(fd: int, *, exclusive: bool = True) -> bool:
    """Take the lock of an open file if nobody holds one that keeps it from that. Raises `OSError`."""
    return _WholeFile(fd, exclusive).is_taken()


def take_between(fd: int, *, exclusive: bool, check: Callable[[], None]) -> None:
    """Take the lock of an open file, a cache of RUN, by looking now and then, with a call of `check` between, which may
    raise. Raises `Conflict`, `OSError`."""
    _take_between(_WholeFile(fd, exclusive), "cache", check)


def release(fd: int) -> None:
    """Release the lock of an open file: closing it would not where others have it open from this one. Raises
    `OSError`."""
    fcntl.flock(fd, fcntl.LOCK_UN)


def share_after(fd: int, byte: int, first: Callable[[], None]) -> None:
    """Share the lock of a byte of this file until it is closed. Who finds that nobody has it calls `first`, and others
    wait for that. Raises `Conflict`, `OSError`, and what `first` raises."""
    try:
        _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, byte)
    except (BlockingIOError, PermissionError):
        pass
    else:
        first()
    _take(_Byte(fd, False, byte), "database")


def open_elsewhere(fd: int) -> bool:
    """Whether a file, open here for writing, is open or mapped once more, by anybody.

    The kernel gives a lease for writing (fcntl(2), "Leases") only where it is not. A mount of the file counts, in
    whatever mount namespace it is, and also when it was detached and lives on for who uses it. Raises `OSError`.
    """
    import signal

    # Who opens the file at this moment makes the kernel send SIGIO, of which a program dies that does not expect it.
    with about(fd):
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        # A file system without leases is none that files are mounted from.
        return error.errno != errno.EINVAL
    with about(fd):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False
