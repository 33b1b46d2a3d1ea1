"""A build's context: the directory that COPY and ADD read. Nothing is read outside of it, whatever its links say."""

from __future__ import annotations

import contextlib
import os
import stat

from layerstore._core import mount
from layerstore._core.hashing import Hasher
from layerstore.building.patterns import Ignored, component_regex, without_top
from layerstore.errors import Conflict, InvalidInput, NotFound
from layerstore.layers.entries import Entry
from layerstore.layers.streams import pieces_of
from layerstore.limits import DEFAULT, beyond
from layerstore.naming import about, close_fd, fstat
from layerstore.store import reflink
from layerstore.types import encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.layers.streams import Piece
    from layerstore.limits import Limits

_CAPABILITY = "security.capability"


class HostFile:
    """The content of a file of the host, which must not change until it was read (`Conflict`)."""

    def __init__(self, path: str, status: os.stat_result) -> None:
        self._path = path
        self._seen = _version(status)
        self._digest: bytes | None = None

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the content. Raises `Conflict`, `OSError`."""
        if self._digest is None:
            hasher = Hasher()
            for piece in self.pieces():
                hasher.update(piece)
            self._digest = hasher.digest()
        return self._digest

    def pieces(self) -> Iterator[Piece]:
        """As `Source.pieces`. Raises `Conflict`, `OSError`."""
        with self.opened() as fd, open(fd, "rb", buffering=0, closefd=False) as file:
            with about(self._path):
                yield from pieces_of(file)
            self._check(fd)

    def clone_to(self, fd: int) -> bool:
        """As `Source.clone_to`."""
        with self.opened() as own:
            cloned = reflink.share(fd, own)
            self._check(own)
            return cloned

    @contextlib.contextmanager
    def opened(self) -> Iterator[int]:
        """A descriptor of the file. Raises `Conflict` where it is another file now, `OSError`."""
        fd = os.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            self._check(fd)
            yield fd
        finally:
            close_fd(fd)

    def _check(self, fd: int) -> None:
        if _version(fstat(fd)) != self._seen:
            raise Conflict(f"{self._path} was changed while it was read; build again")


def _version(status: os.stat_result) -> tuple[int, ...]:
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, stat.S_IFMT(status.st_mode)


class Context:
    """The files of a directory that its .dockerignore does not leave out; all belong to root. A context manager."""

    def __init__(self, root: str, ignored: Ignored) -> None:
        self._root = root.rstrip("/") or "/"
        self._ignored = ignored
        self._fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self._place = os.readlink(f"/proc/self/fd/{self._fd}").rstrip("/")
        except BaseException:
            close_fd(self._fd)
            raise

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        close_fd(self._fd)

    def resolve(self, path: str) -> str:
        """Where a path leads, links followed inside the context: relative, without links, "" for the context itself.

        Raises `NotFound` where nothing is, or what is there is left out; `InvalidInput` where the path begins outside.
        """
        self._check_inside(path)
        try:
            fd = mount.open_inside(self._fd, path.strip("/") or ".", os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(path) from None
        try:
            place = os.readlink(f"/proc/self/fd/{fd}")
        finally:
            close_fd(fd)
        found = place[len(self._place) :].lstrip("/")
        if self._ignored.leaves_out(found) and not (self._ignored.keeps_some and self._has_kept(found)):
            raise self._missing(path)
        return found

    def _check_inside(self, path: str) -> None:
        if ".." in path.split("/") and os.path.normpath(path.lstrip("/")).startswith(".."):
            raise InvalidInput(f"{path} is outside of the build context; give what is in {self._root}")

    def _missing(self, path: str) -> NotFound:
        return NotFound(f"{path} is not in the build context {self._root}, or its .dockerignore leaves it out")

    def match(self, pattern: str) -> list[str]:
        """The paths that match a pattern, sorted, spelled without links: see `without_top`. Raises `InvalidInput`."""
        self._check_inside(pattern)
        top, parts = without_top(pattern)
        try:
            found = [self.resolve(top)]
        except NotFound:
            return []
        for part in parts:
            matches = component_regex(part).fullmatch
            found = [path for directory in found for path in self._names(directory) if matches(os.path.basename(path))]
        return [path for path in sorted(found) if self._is_shown(path)]

    def _names(self, directory: str) -> list[str]:
        place = self._host(directory)
        if not stat.S_ISDIR(os.lstat(place).st_mode):
            return []
        return [f"{directory}/{name}" if directory else name for name in os.listdir(place)]

    def _is_shown(self, path: str) -> bool:
        return not self._ignored.leaves_out(path) or (self._ignored.keeps_some and self._has_kept(path))

    def _has_kept(self, path: str) -> bool:
        """Is something kept in a directory that is left out itself?"""
        waiting = [path]
        while waiting:
            for child in self._names(waiting.pop()):
                if not self._ignored.leaves_out(child):
                    return True
                waiting.append(child)
        return False

    def below(self, path: str) -> Iterator[Entry]:
        """What is at a path that `resolve` gave, and all below it, each directory before what is in it, by name.

        Paths of the entries are those of the context. Sockets are left out. Raises `OSError`.
        """
        waiting = [path]
        while waiting:
            path = waiting.pop()
            if path and not self._is_shown(path):
                continue
            host = self._host(path)
            status = os.lstat(host)
            if stat.S_ISSOCK(status.st_mode):
                continue
            yield _entry(encode_path(path), host, status)
            if stat.S_ISDIR(status.st_mode):
                waiting += sorted(self._names(path), key=encode_path, reverse=True)

    def _host(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root


def _entry(path: bytes, host: str, status: os.stat_result) -> Entry:
    entry = Entry(path, status.st_mode, 0, 0, status.st_mtime_ns)
    if stat.S_ISLNK(status.st_mode):
        entry.target = os.readlink(os.fsencode(host))
        return entry
    if stat.S_ISREG(status.st_mode):
        entry.size = status.st_size
        entry.source = HostFile(host, status) if status.st_size else None
        with contextlib.suppress(OSError):
            entry.xattrs = {_CAPABILITY.encode(): os.getxattr(host, _CAPABILITY, follow_symlinks=False)}
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        entry.rdev = status.st_rdev
    return entry


def open_context(root: str, dockerfile: str | None, limits: Limits = DEFAULT) -> Context:
    """The context in a directory, with the .dockerignore that holds for a Dockerfile: one beside it, named after it
    ("Dockerfile.dockerignore"), or else the directory's.

    Raises `NotFound` where there is no such directory, `InvalidInput` where a pattern is none, `LimitExceeded`,
    `OSError`.
    """
    if not os.path.isdir(root):
        raise NotFound(f"there is no directory {root!r} to build from; give the one that COPY is to read")
    candidates = [] if dockerfile is None else [f"{dockerfile}.dockerignore"]
    lines: list[str] = []
    path = ""
    for path in (*candidates, f"{root}/.dockerignore"):
        try:
            with about(path), open(path, "rb") as file:
                data = file.read(limits.dockerfile_bytes + 1)
            if len(data) > limits.dockerfile_bytes:
                raise beyond(f"{path} is too large", limits, "dockerfile_bytes")
            lines = data.decode("utf-8", "surrogateescape").splitlines()
            break
        except FileNotFoundError:
            continue
    return Context(root, Ignored(lines, os.path.basename(path)))
