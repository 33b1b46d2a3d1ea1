"""Files inside a container's root, reached without ever following a link of the image out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import stat

from layerstore._core import mount
from layerstore.errors import InvalidInput, LimitExceeded
from layerstore.naming import about, close_fd, closing_fd, fstat
from layerstore.store.pieces import read_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINKS = 40  # as the kernel's own limit, see path_resolution(7)


class Rootfs:
    """A root file system as a process inside would see it: paths start at its root, links stay in it.

    Use it as a context manager; it holds one descriptor.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> Rootfs:
        return self

    def __exit__(self, *_: object) -> None:
        close_fd(self._fd)

    def read_text(self, path: str, max_size_bytes: int) -> str:
        """The text of a regular file; undecodable bytes become surrogates. `FileNotFoundError` when it is absent."""
        with self._opened(path, os.O_RDONLY | os.O_NONBLOCK) as fd:
            status = fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise InvalidInput(f'"{path}" of the image is not a regular file')
            if status.st_size > max_size_bytes:
                raise LimitExceeded(f'"{path}" of the image has {status.st_size} bytes, more than {max_size_bytes}')
            # Its size, not the limit, for which Python would map a buffer.
            with about(path):
                return read_at(fd, status.st_size, 0).decode("utf-8", "surrogateescape")

    def status(self, path: str) -> os.stat_result:
        """What stat(2) says of `path`, links followed. Raises `OSError`."""
        with self._opened(path, os.O_PATH) as fd:
            return fstat(fd)

    def has_acl(self, path: str) -> bool:
        """Whether an access control list says more of who may do what than the mode does. Raises `OSError`."""
        with self._opened(path, os.O_PATH) as fd:
            try:
                return bool(os.getxattr(f"/proc/self/fd/{fd}", "system.posix_acl_access"))
            except OSError:
                return False

    def steps(self, path: str) -> Iterator[str]:
        """Every path on the way that `path` leads, links resolved, "/" first and where it leads to last.

        What is missing counts as a directory, and a loop of links ends it.
        """
        pending = _parts(path)
        reached = "/"
        links = 0
        yield reached
        while pending:
            part = pending.pop(0)
            link = None if part == ".." else self._link(reached, part)
            if link is None:
                reached = posixpath.normpath(posixpath.join(reached, part))
                yield reached
                continue
            links += 1
            if links > MAX_LINKS:
                return
            pending = _parts(link) + pending
            reached = "/" if link.startswith("/") else reached

    def _link(self, directory: str, name: str) -> str | None:
        """Where the link `name` in a directory points, None when it is no link or is missing."""
        try:
            with self._opened(directory, os.O_PATH | os.O_DIRECTORY) as fd:
                return os.readlink(name, dir_fd=fd)
        except OSError:
            return None

    def make_directory(self, path: str) -> None:
        """Make a directory and its parents (mode 0755, root's) where they do not exist."""
        with self._made(path):
            pass

    def make_mount_point(self, path: str, *, directory: bool) -> None:
        """Make sure that `path` exists to be mounted on: a directory, or an empty file in a directory."""
        if directory:
            self.make_directory(path)
            return
        for _ in range(MAX_LINKS):
            parent, name = posixpath.split(posixpath.normpath(path))
            with self._made(parent) as parent_fd:
                try:
                    close_fd(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644, dir_fd=parent_fd))
                    return
                except FileExistsError:
                    link = self._dangling(path, name, parent_fd)
            if link is None:
                return
            path = posixpath.join(parent, link)
        raise InvalidInput(f'"{path}" in the container leads through more than {MAX_LINKS} symbolic links')

    def _opened(self, path: str, flags: int) -> contextlib.AbstractContextManager[int]:
        return closing_fd(mount.open_inside(self._fd, path, flags))

    def _dangling(self, path: str, name: str, parent_fd: int) -> str | None:
        """Where the link `path` (`name` in `parent_fd`) points, when nothing is there; None when something is."""
        try:
            with self._opened(path, os.O_PATH):
                return None
        except FileNotFoundError:
            return os.readlink(name, dir_fd=parent_fd)

    @contextlib.contextmanager
    def _made(self, path: str) -> Iterator[int]:
        """The descriptor of the directory `path`, after its missing parts were made."""
        pending = _parts(path)
        reached = "/"
        links = 0
        while pending:
            part = pending.pop(0)
            following = posixpath.join(reached, part)
            with self._opened(reached, os.O_PATH | os.O_DIRECTORY) as parent_fd:
                try:
                    os.mkdir(part, 0o755, dir_fd=parent_fd)
                except FileExistsError:
                    link = self._dangling(following, part, parent_fd)
                    if link is not None:
                        links += 1
                        if links > MAX_LINKS:
                            raise InvalidInput(f'"{path}" in the container leads through too many links') from None
                        pending = _parts(link) + pending
                        reached = "/" if link.startswith("/") else reached
                        continue
            reached = following
        try:
            with self._opened(reached, os.O_PATH | os.O_DIRECTORY) as fd:
                yield fd
        except OSError as error:
            if error.errno == errno.ENOTDIR:
                raise InvalidInput(f'"{path}" in the container is not a directory') from None
            raise


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part not in ("", ".")]
