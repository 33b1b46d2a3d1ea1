"""The one door to durable files: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from functools import partial

from layerstore._core.mount import syncfs
from layerstore.naming import about, close_fd, fstat, open_fd
from layerstore.store.locks import try_lock
from layerstore.store.pieces import write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NAME_BYTES = 200
"""So much of a name of up to 255 stays where something is added to it."""
_NEW_FILE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable. Raises `OSError`."""
    with open_fd(path, os.O_RDONLY | os.O_DIRECTORY) as fd, about(path):
        os.fsync(fd)


@contextlib.contextmanager
def file_system(path: str | os.PathLike[str], *, afresh: bool = False) -> Iterator[Callable[[], None]]:
    """Gives a function that makes everything on the file system of `path` durable, with one syncfs(2).

    It raises `OSError` where anything that was written in the block did not get to the disk, even if another process
    was told so before: the kernel tells that to each descriptor that was open when it happened, and to a later one
    only where nobody was told yet. `afresh`: not of what was written before the block, at the price of writing it now.
    """
    with open_fd(path, os.O_RDONLY) as fd:
        if afresh:
            with contextlib.suppress(OSError):
                syncfs(fd)
        yield partial(_syncfs, fd, os.fspath(path))


def _syncfs(fd: int, path: str) -> None:
    with about(path):
        syncfs(fd)


@contextlib.contextmanager
def writable(path: str) -> Iterator[int]:
    """A descriptor to write to a file of which the mode lets nobody write, not even its owner, who need not be root.
    Raises `OSError`."""
    with contextlib.ExitStack() as stack:
        os.chmod(path, 0o600)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            stack.callback(close_fd, fd)
        finally:
            os.chmod(path, 0o400)
        yield fd


class _Nameless(io.FileIO):
    """Whose closing no signal interrupts (`close_fd`)."""

    def __init__(self, fd: int) -> None:
        super().__init__(fd, "r+", closefd=False)

    def close(self) -> None:
        if not self.closed:
            fd = self.fileno()
            super().close()
            close_fd(fd)


def nameless(directory: str) -> io.FileIO:
    """A new file of that directory that has no name, to write and read: it is gone when it is closed. Raises
    `OSError`."""
    return _Nameless(os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600))


def first_free(path_of: Callable[[int], str], number: int) -> tuple[int, int]:
    """Make the first file, from that number on, that is not there, locked so that others see it is in use.

    Returns its number and its descriptor, to write and read. Raises `OSError`; nothing is left behind then.
    """
    while True:
        path = path_of(number)
        try:
            fd = os.open(path, _NEW_FILE, 0o400)
        except FileExistsError:
            number += 1
            continue
        try:
            try_lock(fd)
        except OSError:
            os.unlink(path)
            close_fd(fd)
            raise
        return number, fd


def write_file(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """Put `data` at `path`, whole or not at all, and durable on return. An existing file is replaced.

    Raises `OSError`; nothing is left behind then.
    """
    _replace(path, data, sync=True)
    sync_directory(os.path.dirname(path))


def write_whole(path: str | os.PathLike[str], data: bytes | memoryview) -> None:
    """As `write_file`, but not durable: after a power cut the file may be missing, old or damaged.

    For what is checked when it is opened, and can be made again. Other processes see it whole or not at all.
    """
    _replace(path, data, sync=False)


def _replace(path: str | os.PathLike[str], data: bytes | memoryview, *, sync: bool) -> None:
    temporary = _temporary_beside(path)
    with open_fd(temporary, _NEW_FILE) as fd:
        try:
            with about(path):
                write_at(fd, data, 0)
                if sync:
                    os.fsync(fd)
            os.rename(temporary, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)
            raise


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = 0o600) -> Iterator[int]:
    """For what is too large to be had at once: a descriptor, to write and read, of a file under another name.

    It gets the name `path`, durable, when the block ends, and is removed when that raises. An existing file is
    replaced. Raises `OSError`.
    """
    with claimed_beside(path, lambda new: os.open(new, _NEW_FILE, mode)) as (temporary, fd):
        yield fd
        with about(path):
            os.fsync(fd)
        os.rename(temporary, path)
    sync_directory(os.path.dirname(path))


def place(staged: str, path: str) -> None:
    """Give a file the name `path`, which is durable after the next sync of the file system. Raises `OSError`.

    What has the name already may be in use: then the file is synced before it replaces that, so that a loss of power
    finds either whole.
    """
    try:
        os.link(staged, path)
        os.unlink(staged)
    except OSError:  # it exists, or this file system has no links
        with open_fd(staged, os.O_RDONLY) as fd, about(path):
            os.fsync(fd)
        os.rename(staged, path)


@contextlib.contextmanager
def claimed_beside(path: str | os.PathLike[str], make: Callable[[str], int]) -> Iterator[tuple[str, int]]:
    """A new file or directory in the same directory, for the block to rename to `path`: its path, and its descriptor.

    `make` makes and opens it. It is removed when the block raises; of a process that was killed in one it is removed by
    the next that wants to get to `path`: it is locked until the block ends. Raises `OSError`.
    """
    _remove_abandoned(path)
    while True:
        temporary = _temporary_beside(path)
        fd = make(temporary)
        if _is_claimed(fd):
            break
        close_fd(fd)
    try:
        yield temporary, fd
    except BaseException:
        _remove(temporary)
        raise
    finally:
        close_fd(fd)


def _is_claimed(fd: int) -> bool:
    """Lock it. False where another process has found it before it was locked, and removes it."""
    try:
        return try_lock(fd) and fstat(fd).st_nlink > 0
    except OSError:  # a file system without locks
        return True


def _remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove what was made beside `path` to get that name, by processes that have ended."""
    directory, name = os.path.split(path)
    theirs = re.compile(rf"{re.escape(_name_beside(name))}[0-9a-f]{{12}}")
    with contextlib.suppress(OSError):  # what cannot be listed or removed stays
        for found in filter(theirs.fullmatch, os.listdir(directory)):
            temporary = os.path.join(directory, found)
            with open_fd(temporary, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK) as fd:
                if try_lock(fd):
                    _remove(temporary)


def _remove(path: str) -> None:
    """A file or a directory with what is in it; nothing where there is none."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            return
        import shutil

        with about(path):
            shutil.rmtree(path)


def _temporary_beside(path: str | os.PathLike[str]) -> str:
    """A path in the same directory that nothing has. Its name is not too long, however long the other is."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f"{_name_beside(name)}{os.urandom(6).hex()}")


def _name_beside(name: str) -> str:
    """What such a path begins with: it is told from whatever else is in a directory of somebody's."""
    return f".{os.fsdecode(os.fsencode(name)[:_NAME_BYTES])}.layerstore-"
