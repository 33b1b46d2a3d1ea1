"""The one door to durable files: temporary file, fsync, rename, fsync of the directory."""

from __future__ import annotations

import contextlib
import os

from layerstore._core.mount import syncfs
from layerstore.store.pieces import write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def sync_directory(path: str | os.PathLike[str]) -> None:
    """Make the names in a directory durable. Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(path: str | os.PathLike[str]) -> None:
    """Make everything on the file system of `path` durable, with one syncfs(2). Raises `OSError`."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        syncfs(fd)
    finally:
        os.close(fd)


def write_file(path: str | os.PathLike[str], data: bytes | memoryview, *, mode: int = 0o600) -> None:
    """Put `data` at `path`, whole or not at all, and durable on return. An existing file is replaced.

    Raises `OSError`; nothing is left behind then.
    """
    _replace(path, data, mode, sync=True)
    sync_directory(os.path.dirname(path))


def write_whole(path: str | os.PathLike[str], data: bytes | memoryview, *, mode: int = 0o600) -> None:
    """As `write_file`, but not durable: after a power cut the file may be missing, old or damaged.

    For what is checked when it is opened, and can be made again. Other processes see it whole or not at all.
    """
    _replace(path, data, mode, sync=False)


def _replace(path: str | os.PathLike[str], data: bytes | memoryview, mode: int, *, sync: bool) -> None:
    with _begun(path, mode) as fd:
        write_at(fd, data, 0)
        if sync:
            os.fsync(fd)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, mode: int = 0o600) -> Iterator[int]:
    """For what is too large to be had at once: a descriptor, to write and read, of a file under another name.

    It gets the name `path`, durable, when the block ends, and is removed when that raises. An existing file is
    replaced. Raises `OSError`.
    """
    with _begun(path, mode) as fd:
        yield fd
        os.fsync(fd)
    sync_directory(os.path.dirname(path))


def temporary_beside(path: str | os.PathLike[str]) -> str:
    """A path in the same directory that nothing has. Its name is not too long, however long the other is."""
    directory, name = os.path.split(path)
    return os.path.join(directory, f".{name[:50]}.{os.urandom(6).hex()}")


@contextlib.contextmanager
def _begun(path: str | os.PathLike[str], mode: int) -> Iterator[int]:
    temporary = temporary_beside(path)
    fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
