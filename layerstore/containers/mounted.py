"""A mounted container's files, to copy something in: what that needs of `Operations`, never led out of the container.

Paths begin at the container's root, and their directories are looked up in it (openat2(2), RESOLVE_IN_ROOT): a symbolic
link in the container, also one that its programs put there meanwhile, leads nowhere else. The last name of a path is
never followed.
"""

from __future__ import annotations

import contextlib
import os

from layerstore._core import mount
from layerstore.naming import close_fd, closing_fd, open_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


class MountedFiles:
    """The files below a mount point, as a context manager; it holds one descriptor. Every method raises `OSError`."""

    def __init__(self, root: str) -> None:
        self._fd = os.open(root, _DIRECTORY)

    def __enter__(self) -> MountedFiles:
        return self

    def __exit__(self, *_: object) -> None:
        close_fd(self._fd)

    @contextlib.contextmanager
    def _place(self, path: str) -> Iterator[str]:
        """A path of the host for the last name of `path`, that must not be followed. Errors name `path`."""
        directory, name = os.path.split(path.rstrip("/"))
        if name in ("", ".", ".."):
            directory, name = path, "."
        try:
            with closing_fd(mount.open_inside(self._fd, directory or "/", _DIRECTORY)) as fd:
                yield f"/proc/self/fd/{fd}/{name}"
        except OSError as error:
            raise OSError(error.errno, os.strerror(error.errno or 0), path) from None

    def lstat(self, path: str) -> os.stat_result:
        """As `os.lstat`."""
        with self._place(path) as place:
            return os.lstat(place)

    def open(self, path: str, mode: str, buffering: int) -> BinaryIO:
        """As the built-in `open` for a new file: "xb", without a buffer."""

        def opener(place: str, flags: int) -> int:
            return os.open(place, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

        with self._place(path) as place:
            return open(place, mode, buffering, opener=opener)  # type: ignore[return-value]

    def mkdir(self, path: str) -> None:
        """As `os.mkdir`."""
        with self._place(path) as place:
            os.mkdir(place)

    def mknod(self, path: str, mode: int, device: int) -> None:
        """As `os.mknod`."""
        with self._place(path) as place:
            os.mknod(place, mode, device)

    def symlink(self, src: str, dst: str) -> None:
        """As `os.symlink`."""
        with self._place(dst) as place:
            os.symlink(src, place)

    def link(self, src: str, dst: str) -> None:
        """As `os.link`, of a symbolic link the link itself."""
        with self._place(src) as first, self._place(dst) as second:
            os.link(first, second, follow_symlinks=False)

    def unlink(self, path: str) -> None:
        """As `os.unlink`."""
        with self._place(path) as place:
            os.unlink(place)

    def rmdir(self, path: str) -> None:
        """As `os.rmdir`."""
        with self._place(path) as place:
            os.rmdir(place)

    def chmod(self, path: str, mode: int) -> None:
        """As `os.chmod`, but for a symbolic link."""
        with self._place(path) as place, open_fd(place, os.O_PATH | os.O_NOFOLLOW) as fd:
            os.chmod(f"/proc/self/fd/{fd}", mode)

    def chown(self, path: str, uid: int, gid: int, *, follow_symlinks: bool) -> None:
        """As `os.chown`; `follow_symlinks` is false."""
        with self._place(path) as place:
            os.chown(place, uid, gid, follow_symlinks=follow_symlinks)

    def utime(self, path: str, *, ns: tuple[int, int], follow_symlinks: bool = False) -> None:
        """As `os.utime`; `follow_symlinks` is false."""
        with self._place(path) as place:
            os.utime(place, ns=ns, follow_symlinks=follow_symlinks)

    def setxattr(self, path: str, attribute: str, value: bytes, *, follow_symlinks: bool) -> None:
        """As `os.setxattr`; `follow_symlinks` is false."""
        with self._place(path) as place:
            os.setxattr(place, attribute, value, follow_symlinks=follow_symlinks)
