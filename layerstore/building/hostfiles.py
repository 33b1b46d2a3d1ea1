"""What a build reads of the host: what is below one directory, by its descriptor and never by a path from the root, so
that nothing that is exchanged meanwhile leads out of it; and contents, which are those that were hashed or an error."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from layerstore._core.hashing import Hasher
from layerstore._core.mount import open_inside
from layerstore.errors import Conflict, InvalidInput, NotFound
from layerstore.layers.blob_streams import pieces_of
from layerstore.naming import about, close_fd, closing_fd, fstat, path_of
from layerstore.store import reflink
from layerstore.trees.entries import Entry
from layerstore.types import encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

    from layerstore.store.pieces import Piece

_PATH_MAX = 4096  # limits.h: of one path that the system takes, with the byte at its end
_CAPABILITY = "security.capability"
# Nothing waits for a writer of a FIFO, and no terminal becomes this process's.
_TO_READ = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_ITSELF = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
# What opening a path says that was there, and without a link on its way, when it was listed.
_EXCHANGED = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.EXDEV, errno.EAGAIN, errno.ESTALE)


class HostDirectory:
    """A directory of the host that a caller named. Paths are relative to it, "" for itself; none leads out of it.

    A context manager; it holds one descriptor.
    """

    def __init__(self, path: str) -> None:
        self.path = path.rstrip("/") or "/"
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> HostDirectory:
        return self

    def __exit__(self, *_: object) -> None:
        close_fd(self._fd)

    def shown(self, path: str) -> str:
        """The path as messages tell it."""
        return f"{self.path.rstrip('/')}/{path}" if path else self.path

    def resolve(self, path: str) -> str:
        """Where a path leads, links followed as if the directory were the root: a path without links.

        Raises `FileNotFoundError`, `NotADirectoryError`, `Conflict` where it is exchanged meanwhile, `OSError`.
        """
        spelled = path.strip("/") or "."
        try:
            close_fd(open_inside(self._fd, spelled, os.O_PATH, links=False))
            found = os.path.normpath("/" + spelled)[1:]
            return "" if found == "." else found
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise
        with closing_fd(open_inside(self._fd, spelled, os.O_PATH)) as fd:
            top, place = (os.readlink(f"/proc/self/fd/{each}").rstrip("/") for each in (self._fd, fd))
        if place != top and not place.startswith(f"{top}/"):
            raise self.changed(path)
        return place[len(top) + 1 :]

    @contextlib.contextmanager
    def opened(self, path: str, flags: int = _ITSELF) -> Iterator[int]:
        """A descriptor of what is at a path that was found before, none of it a link but perhaps its last name.

        Raises `Conflict` where that is not so any more, `OSError`.
        """
        try:
            fd = self._open(encode_path(path) or b".", flags)
        except OSError as error:
            if error.errno in _EXCHANGED:
                raise self.changed(path) from error
            raise
        with closing_fd(fd):
            yield fd

    def _open(self, path: bytes, flags: int) -> int:
        if len(path) < _PATH_MAX:
            return open_inside(self._fd, path, flags, links=False)
        above, _, name = path.rpartition(b"/")
        with closing_fd(self._open(above, os.O_PATH | os.O_DIRECTORY)) as fd:
            return open_inside(fd, name, flags, links=False)

    def names(self, path: str) -> list[str]:
        """Of what is in the directory at a path that was found before; none where it is no directory. Raises as
        `opened`."""
        with self.opened(path) as fd:
            return _names(fd) if stat.S_ISDIR(fstat(fd).st_mode) else []

    def look(self, path: str) -> tuple[Entry, list[str]]:
        """What is at a path that was found before, of root, and the names in it where it is a directory. What is said
        of it is of one file, whatever takes its place meanwhile. Raises as `opened`."""
        with self.opened(path) as fd:
            status = fstat(fd)
            entry = Entry(encode_path(path), status.st_mode, 0, 0, status.st_mtime_ns)
            if stat.S_ISLNK(status.st_mode):
                entry.target = os.readlink(b"", dir_fd=fd)
            elif stat.S_ISDIR(status.st_mode):
                return entry, _names(fd)
            elif stat.S_ISREG(status.st_mode):
                entry.size = status.st_size
                entry.source = HostFile(self, path, status) if status.st_size else None
                with contextlib.suppress(OSError):
                    entry.xattrs = {_CAPABILITY.encode(): os.getxattr(f"/proc/self/fd/{fd}", _CAPABILITY)}
            elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                entry.rdev = status.st_rdev
            return entry, []

    def read(self, path: str, max_bytes: int) -> bytes:
        """The first bytes of a regular file, links to it followed as by `resolve`. Raises `FileNotFoundError`,
        `InvalidInput` where it is something else, `NotFound` where it is a link that leads to nothing in the directory,
        or below one, `OSError`."""
        try:
            place = open_inside(self._fd, path, os.O_PATH)
        except FileNotFoundError:
            if not os.path.lexists(self.shown(path)):
                raise
            where = "a link" if os.path.islink(self.shown(path)) else "below a link"
            raise NotFound(
                f"{self.shown(path)} is {where} that leads to nothing in {self.path}; put the file there"
            ) from None
        try:
            with closing_fd(place):
                if not stat.S_ISREG(fstat(place).st_mode):
                    raise InvalidInput(f"{self.shown(path)} is no regular file")
                with open(f"/proc/self/fd/{place}", "rb") as file:
                    return file.read(max_bytes)
        except OSError as error:
            error.filename = self.shown(path)
            raise

    def changed(self, path: str) -> Conflict:
        """The error for what is not as it was found before."""
        return Conflict(f"{self.shown(path)} was changed while it was read; build again")


def _names(fd: int) -> list[str]:
    try:
        readable = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
    except OSError as error:
        error.filename = path_of(fd)
        raise
    with closing_fd(readable), about(readable):
        return os.listdir(readable)


class HostFile:
    """The content of a file below a `HostDirectory`, which must not change until it was read (`Conflict`): it is the
    one of `status`, and once `digest` was asked for, whatever is read has that digest."""

    def __init__(self, directory: HostDirectory, path: str, status: os.stat_result) -> None:
        self._directory = directory
        self._path = path
        self._seen = _version(status)
        self.size = status.st_size
        self._digest: bytes | None = None

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the content. Raises `Conflict`, `OSError`."""
        if self._digest is None:
            hasher = Hasher()
            with self.opened() as fd:
                for piece in self._pieces(fd):
                    hasher.update(piece)
            self._digest = hasher.digest()
        return self._digest

    def pieces(self) -> Generator[Piece]:
        """As `Source.pieces`. Raises `Conflict`, `OSError`."""
        with self.opened() as fd:
            yield from self._hashed(self._pieces(fd))

    def clone_to(self, fd: int) -> bool:
        """As `Source.clone_to`. Raises `Conflict`."""
        with self.opened() as own:
            cloned = reflink.share(fd, own)
            self._check(own)
        if cloned and self._digest is not None:
            # What the clone holds stays as it is; what was cloned may have been another content than the one hashed.
            with open(f"/proc/self/fd/{fd}", "rb", buffering=0) as clone:
                for _ in self._hashed(pieces_of(clone)):
                    pass
        return cloned

    def _hashed(self, pieces: Iterator[Piece]) -> Iterator[Piece]:
        """The pieces; raises `Conflict` at their end where they are not of the digest. Times of files cannot tell: who
        may write to a file can set them, and what is written through a mapping changes none."""
        hasher = Hasher()
        for piece in pieces:
            hasher.update(piece)
            yield piece
        if self._digest not in (None, hasher.digest()):
            raise self._directory.changed(self._path)

    def _pieces(self, fd: int) -> Iterator[Piece]:
        left = self.size
        with open(fd, "rb", buffering=0, closefd=False) as file, about(self._directory.shown(self._path)):
            for piece in pieces_of(file):
                left -= len(piece)
                if left < 0:
                    raise self._directory.changed(self._path)
                yield piece
        self._check(fd)

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file. Nothing says that what is read of it is what was hashed. Raises `Conflict` where it
        is another file now, `OSError`."""
        with self._directory.opened(self._path, _TO_READ | os.O_NOFOLLOW) as fd:
            self._check(fd)
            yield fd

    def _check(self, fd: int) -> None:
        if _version(fstat(fd)) != self._seen:
            raise self._directory.changed(self._path)


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, stat.S_IFMT(status.st_mode)
