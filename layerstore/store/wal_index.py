"""The file that SQLite's connections share beside a database in WAL mode (`-shm`), whole on a disk that may be full.

SQLite maps it (https://www.sqlite.org/walformat.html, section 2), and makes it by writing a byte to every 4 KiB. On a
file system of smaller blocks that leaves holes, and where the disk is full a write into one by way of the mapping ends
the process (SIGBUS), whatever it is about to do. There, whoever comes first writes it whole before SQLite sees it.
"""

from __future__ import annotations

import _thread
import contextlib
import errno
import os

from layerstore.naming import about, close_fd, fstat
from layerstore.store.locks import share_after
from layerstore.store.pieces import write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_PAGE_BYTES = 4096
_REGION_BYTES = 32768  # what is mapped at a time
_REGIONS = 4  # for a log of 16,000 pages; a larger one needs more, and more of the disk itself
_FIRST_COME = 128
"""The byte that is locked shared by all that use the file. Who finds it free empties the file (unixLockSharedMemory in
os_unix.c)."""

_held: dict[tuple[int, int], _Held] = {}
"""Files in use, by device and inode. Closing one that a connection uses would take its locks away (fcntl(2))."""
_one_at_a_time = _thread.allocate_lock()


class _Held:
    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.connections = 0


def have_whole(database: str) -> tuple[int, int] | None:
    """Have the file be there without a hole, for a connection that is about to be made; `let_go` after its end.

    Raises `OSError`: ENOSPC where it cannot be.
    """
    directory, path = os.path.dirname(database), f"{database}-shm"
    if os.statvfs(directory or ".").f_frsize >= _PAGE_BYTES:
        return None
    with _one_at_a_time:
        try:
            identity = _identity(os.stat(path))
        except FileNotFoundError:
            identity = None
        if identity not in _held:
            try:
                fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                if error.errno in (errno.EACCES, errno.EROFS):  # SQLite tells what may not be done
                    return None
                raise
            try:
                share_after(fd, _FIRST_COME, lambda: _fill(fd, path))  # from here on nobody finds it free
                _close_holes(fd, path)
                identity = _identity(fstat(fd))
            except BaseException:
                close_fd(fd)  # no connection uses it
                raise
            _held[identity] = _Held(fd)
        assert identity is not None
        _held[identity].connections += 1
        return identity


def let_go(identity: tuple[int, int] | None) -> None:
    """A connection was closed, or not made."""
    if identity is None:
        return
    with _one_at_a_time:
        held = _held[identity]
        held.connections -= 1
        if not held.connections:
            del _held[identity]
            close_fd(held.fd)


def _fill(fd: int, path: str) -> None:
    """Write zeros, by which SQLite takes nothing in it for valid and reads the log."""
    with _told(path):
        write_at(fd, bytes(_REGION_BYTES), 0)
    try:
        write_at(fd, bytes((_REGIONS - 1) * _REGION_BYTES), _REGION_BYTES)
    except OSError:
        os.ftruncate(fd, _REGION_BYTES)


def _close_holes(fd: int, path: str) -> None:
    """Whoever came first may have found no room for it, and left it to whoever came then."""
    status = fstat(fd)
    if status.st_size < _REGION_BYTES or status.st_blocks * 512 < _REGION_BYTES:
        with _told(path):
            os.posix_fallocate(fd, 0, _REGION_BYTES)


@contextlib.contextmanager
def _told(path: str) -> Iterator[None]:
    try:
        with about(path):
            yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise no_room(error.errno, path) from error


def no_room(number: int, path: str) -> OSError:
    """What to tell where a file of the database cannot grow."""
    return OSError(
        number, "the disk is full, and this file needs room; free some on its file system, and try again", path
    )


def has_room(directory: str) -> bool:
    """Whether a few files of the database could grow."""
    from layerstore.store.durable import nameless

    try:
        with nameless(directory) as file:
            os.posix_fallocate(file.fileno(), 0, 2 * _REGION_BYTES)
    except OSError as error:
        return error.errno not in (errno.ENOSPC, errno.EDQUOT)
    return True


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def after_fork() -> None:
    """In the child: another thread of the parent may have been at it."""
    global _one_at_a_time
    _one_at_a_time = _thread.allocate_lock()
