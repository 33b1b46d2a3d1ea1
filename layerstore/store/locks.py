"""Locks: held by this process, gone when it dies; and whether a file is in use at all."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time

from layerstore.naming import about, close_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_FLOCK = struct.Struct("@hhqqi4x")
"""struct flock of Linux: type, whence, start, length, process (0)."""
_ASK_SECONDS, _REST_SECONDS = 2.0, 6.0
_LOOK_SECONDS = 0.005


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, exclusive: bool) -> Iterator[None]:
    """Hold the lock file `path` (made if missing), shared or exclusive, waiting for it. Raises `OSError`."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with _held(fd, exclusive, lets_pass=True):
        yield


@contextlib.contextmanager
def locked_past_sharers(path: str | os.PathLike[str]) -> Iterator[None]:
    """Hold a lock file exclusively that others hold shared, one or another at any moment. Raises `OSError`.

    The kernel lets a sharer in while somebody waits who wants it alone, who then would wait for as long as there is
    much to do. So sharers are asked to wait, by a lock of a byte, for two seconds of each eight: not for longer, as one
    who holds it may take it once more before he lets go, and as what he does may take an hour.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    holder = os.getpid()
    try:
        while not try_lock(fd):
            with contextlib.suppress(BlockingIOError):  # another one asks for it already
                _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, 0)
            is_held = _try_for(fd, _ASK_SECONDS)
            _lock_byte(fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0)
            if is_held or _try_for(fd, _REST_SECONDS):
                break
        yield
    finally:
        _let_go(fd, holder)


def _try_for(fd: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(_LOOK_SECONDS)
        if try_lock(fd):
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


@contextlib.contextmanager
def locked_directory(path: str | os.PathLike[str], *, exclusive: bool) -> Iterator[int]:
    """Hold the lock of a directory, as `locked`; gives a descriptor of the directory. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _held(fd, exclusive):
        yield fd


@contextlib.contextmanager
def _held(fd: int, exclusive: bool, *, lets_pass: bool = False) -> Iterator[None]:
    holder = os.getpid()
    try:
        if lets_pass and not exclusive:
            _let_pass(fd)
        with about(fd):
            fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        _let_go(fd, holder)


def _let_go(fd: int, holder: int) -> None:
    """Close a file that the process `holder` has locked, and release it: a process that was forked meanwhile has the
    descriptor, too, and would keep the lock. Such a process releases nothing, as the lock is its parent's."""
    with contextlib.suppress(OSError):  # nothing was written that it could not write
        if os.getpid() == holder:
            fcntl.flock(fd, fcntl.LOCK_UN)
    close_fd(fd)


def try_lock(fd: int, *, exclusive: bool = True) -> bool:
    """Take the lock of an open file if nobody holds one that keeps it from that. Raises `OSError`."""
    try:
        with about(fd):
            fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _lock_byte(fd: int, how: int, kind: int, start: int, length: int = 1) -> int:
    """Lock or release bytes of a file; returns the type of the lock that the kernel answers with. Raises `OSError`."""
    with about(fd):
        answer = fcntl.fcntl(fd, how, _FLOCK.pack(kind, os.SEEK_SET, start, length, 0))
    return int(_FLOCK.unpack(answer)[0])


class Claims:
    """Things that one is to work on at a time, each named by a digest: a byte of a lock file for each (fcntl(2), "Open
    file description locks"), so that there is one file however many things there are.

    Who holds some must not wait for another, unless all take what they want in one call. For one thread at a time.
    """

    def __init__(self, path: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._holder = os.getpid()

    def take(self, digests: Iterable[str]) -> None:
        """Claim them all, waiting for who has claimed one before. Always in the same order, so that none waits for one
        who waits for him. Raises `OSError`."""
        for start in sorted(map(_place, digests)):
            _lock_byte(self._fd, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK, start)

    def try_take(self, digest: str) -> bool:
        """Claim one if nobody else has."""
        try:
            _lock_byte(self._fd, fcntl.F_OFD_SETLK, fcntl.F_WRLCK, _place(digest))
        except (BlockingIOError, PermissionError):
            return False
        return True

    def release(self, digests: Iterable[str]) -> None:
        for digest in digests:
            _lock_byte(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, _place(digest))

    def close(self) -> None:
        """Release all, as `_let_go`."""
        with contextlib.suppress(OSError):
            if os.getpid() == self._holder:
                _lock_byte(self._fd, fcntl.F_OFD_SETLK, fcntl.F_UNLCK, 0, 0)
        close_fd(self._fd)


def _place(digest: str) -> int:
    return int(digest.removeprefix("sha256:")[:15], 16)


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
