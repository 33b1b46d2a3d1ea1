"""flock(2) locks: held by this process, gone when it dies."""

from __future__ import annotations

import contextlib
import fcntl
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, exclusive: bool) -> Iterator[None]:
    """Hold the lock file `path` (made if missing), shared or exclusive, waiting for it. Raises `OSError`."""
    with _held(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), exclusive):
        yield


@contextlib.contextmanager
def locked_directory(path: str | os.PathLike[str], *, exclusive: bool) -> Iterator[int]:
    """Hold the lock of a directory, as `locked`; gives a descriptor of the directory. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with _held(fd, exclusive):
        yield fd


@contextlib.contextmanager
def _held(fd: int, exclusive: bool) -> Iterator[None]:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield
    finally:
        os.close(fd)


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of an open file if nobody holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
