"""Errors of the system that say what they are about, and that are not taken for something else."""

from __future__ import annotations

import contextlib
import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


class about:
    """Has an `OSError` of its block that names no file name this one, given by its path or descriptor: the calls that
    take a descriptor know of no path. One that has a message of its own keeps it."""

    __slots__ = ("_what",)

    def __init__(self, what: str | os.PathLike[str] | int) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if (
            isinstance(error, OSError)
            and error.filename is None
            and error.errno is not None
            and error.strerror == os.strerror(error.errno)
        ):
            error.filename = path_of(self._what) if isinstance(self._what, int) else os.fspath(self._what)


class starting:
    """Has it be an `OSError` where a thread cannot be started in its block; Python raises a bare `RuntimeError`."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, RuntimeError):
            text = "cannot start a thread: too many are running, or there is no memory for it; end some and try again"
            raise OSError(errno.EAGAIN, text) from error


def close_fd(fd: int) -> None:
    """Close a descriptor, whatever close(2) reports: it is closed all the same, and to be interrupted or to have an
    earlier write fail is no failure of what was done with it. What was written is durable once it was synced, and that
    tells whether it could be."""
    try:
        os.close(fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            raise


@contextlib.contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close a descriptor, which is its value, when the block ends."""
    try:
        yield fd
    finally:
        close_fd(fd)


def open_fd(
    path: str | bytes | os.PathLike[str], flags: int, mode: int = 0o600, *, dir_fd: int | None = None
) -> contextlib.AbstractContextManager[int]:
    """A descriptor for the block; no program that is started gets it. Raises `OSError`."""
    return closing_fd(os.open(path, flags, mode, dir_fd=dir_fd))


def null_device() -> contextlib.AbstractContextManager[int]:
    """A descriptor of /dev/null, to read and write, for the block. Raises `OSError`."""
    return open_fd(os.devnull, os.O_RDWR)


def fstat(fd: int) -> os.stat_result:
    """As `os.fstat`, whose error names no file. Raises `OSError`."""
    with about(fd):
        return os.fstat(fd)


def exists(path: str | os.PathLike[str]) -> bool:
    """As `os.path.exists`, which says no also where the system cannot tell: that is raised here, as `OSError`."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def text_of(error: BaseException) -> str:
    """What an error says to people: what was noted of it, what it is about, and what it is, without its number."""
    notes = "".join(f"{note}: " for note in getattr(error, "__notes__", ()))
    if isinstance(error, OSError) and error.strerror:
        name = None if error.filename is None else os.fsdecode(error.filename) or "''"
        return f"{notes}{error.strerror}" if name is None else f"{notes}{name}: {error.strerror}"
    return notes + (str(error) or type(error).__name__)


def path_of(fd: int) -> str:
    """Of an open file, for messages."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return f"descriptor {fd}"
