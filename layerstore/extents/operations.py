"""What can be done in a container of the extent driver from Python: the functions of `os` and the built-in `open`.

A mixin of `Container`, so that importing it loads nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any, Literal, overload

    from typing_extensions import Buffer

    from layerstore._core.view import AnyPath
    from layerstore.extents.directories import LayerEntry
    from layerstore.extents.tree import Tree
    from layerstore.extents.writable_layers import Layer


class Operations:
    """Looking into a container and changing it, without root and without a mount; for the extent driver.

    Paths are str (with surrogateescape), bytes or os.PathLike; relative ones begin at the root. Everything is done as
    by root in a chroot to the container, with the umask 022, and raises the `OSError` that the system would. There is
    one time for each inode, that of modification. Every method raises also `NotFound` where the container was removed,
    `Unsupported` for one of the overlay driver, `CorruptError`; those that change something, `Conflict` while another
    process writes to the container. The first change begins that, and closing the store ends it. What changes names or
    attributes is done whole or not at all, also where the process is killed, but for `makedirs`. Safe for
    many threads.
    """

    def _layer(self) -> Layer:
        raise NotImplementedError

    def _changing(self) -> contextlib.AbstractContextManager[Tree]:
        return self._looking(changes=True)

    @contextlib.contextmanager
    def _looking(self, *, changes: bool = False) -> Iterator[Tree]:
        while True:
            tree = self._layer().writing() if changes else self._layer().reading()
            with tree.lock:
                if not tree.closed:
                    tree.settle()
                    yield tree
                    return

    # Looking

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """As `os.stat`."""
        with self._looking() as tree:
            return tree.stat_of(tree.find(path, _follow(follow_symlinks)))

    def lstat(self, path: AnyPath) -> os.stat_result:
        """As `os.lstat`."""
        return self.stat(path, follow_symlinks=False)

    def exists(self, path: AnyPath) -> bool:
        """As `os.path.exists`."""
        try:
            self.stat(path)
        except (OSError, ValueError):
            return False
        return True

    def readlink(self, path: AnyPath) -> str | bytes:
        """As `os.readlink`."""
        with self._looking() as tree:
            target = tree.find(path, _follow(False)).target
        if target is None:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path))
        return target if _is_bytes(path) else decode_path(target)

    if TYPE_CHECKING:

        @overload
        def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]: ...
        @overload
        def listdir(self, path: bytes | os.PathLike[bytes]) -> list[bytes]: ...

    def listdir(self, path: AnyPath = "/") -> list[str] | list[bytes]:
        """As `os.listdir`, ordered as bytes."""
        with self._looking() as tree:
            names = [name for name, _ in tree.table.children(tree.directory(path))]
        return names if _is_bytes(path) else [decode_path(name) for name in names]

    def scandir(self, path: AnyPath = "/") -> Iterator[LayerEntry]:
        """As `os.scandir`, ordered by name as bytes: what the directory was at the time of the call."""
        from layerstore.extents.directories import scan

        with self._looking() as tree:
            return iter(scan(tree, path))

    def walk(
        self, top: AnyPath = "/", topdown: bool = True, followlinks: bool = False
    ) -> Iterator[tuple[str, list[str], list[str]]]:
        """As `os.walk`, ordered as bytes; a `top` that is no directory raises."""
        from layerstore.extents.directories import walk

        return walk(self, top, topdown, followlinks)

    def getxattr(self, path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> bytes:
        """As `os.getxattr`."""
        with self._looking() as tree:
            value = tree.find(path, _follow(follow_symlinks)).xattrs.get(os.fsencode(attribute))
        if value is None:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA), os.fspath(path))
        return value

    def listxattr(self, path: AnyPath = "/", *, follow_symlinks: bool = True) -> list[str]:
        """As `os.listxattr`, sorted."""
        with self._looking() as tree:
            return sorted(map(os.fsdecode, tree.find(path, _follow(follow_symlinks)).xattrs))

    # Contents

    if TYPE_CHECKING:

        @overload
        def open(
            self, path: AnyPath, mode: Literal["r", "w", "a", "x", "r+", "w+", "a+", "x+"] = "r", buffering: int = -1,
            encoding: str | None = None, errors: str | None = None, newline: str | None = None,
        ) -> IO[str]: ...  # fmt: skip
        @overload
        def open(
            self, path: AnyPath, mode: Literal["rb", "wb", "ab", "xb", "r+b", "w+b", "a+b", "x+b"], buffering: int = -1,
        ) -> IO[bytes]: ...  # fmt: skip
        @overload
        def open(
            self, path: AnyPath, mode: str, buffering: int = -1,
            encoding: str | None = None, errors: str | None = None, newline: str | None = None,
        ) -> IO[Any]: ...  # fmt: skip

    def open(
        self,
        path: AnyPath,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As the built-in `open` (text is UTF-8 unless said otherwise). A raw file has no descriptor of the system,
        and has `sync` in place of `os.fsync`.

        It shows what this process does to it meanwhile. Where another process has changed the container since a file
        was opened for reading, that file shows for good what it was then; open it again.

        Raises also `OSError` with ENXIO for devices, FIFOs and sockets, with ESTALE from a file that was open during a
        rollback.
        """
        from layerstore.extents import open_files

        parsed = open_files.parse_mode(mode)
        open_files.check_arguments(parsed, buffering, encoding, errors, newline)
        with self._changing() if parsed.writable else self._looking() as tree:
            raw = open_files.open_raw(tree, path, parsed)
        return open_files.wrap(raw, parsed, buffering, encoding, errors, newline)

    def read_bytes(self, path: AnyPath) -> bytes:
        """The content of a regular file."""
        with self.open(path, "rb", 0) as file:
            return file.read()

    def read_text(self, path: AnyPath, encoding: str | None = None, errors: str | None = None) -> str:
        """The content of a regular file as text."""
        with self.open(path, "r", -1, encoding, errors) as file:
            return str(file.read())

    def write_bytes(self, path: AnyPath, data: Buffer) -> int:
        """Make or replace the content of a file; returns its size in bytes."""
        view = memoryview(data).cast("B")
        with self.open(path, "wb", 0) as file:
            return file.write(view)

    def write_text(
        self,
        path: AnyPath,
        text: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> int:
        """Make or replace the content of a file; returns how many characters were written."""
        with self.open(path, "w", -1, encoding, errors, newline) as file:
            return int(file.write(text))

    def truncate(self, path: AnyPath, length: int) -> None:
        """As `os.truncate`."""
        if length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), os.fspath(path))
        with self._changing() as tree:
            inode = tree.find(path)
            if not inode.is_file():
                number = errno.EISDIR if inode.is_dir() else errno.EINVAL
                raise OSError(number, os.strerror(number), os.fspath(path))
            tree.truncate(inode.number, length)

    def sync(self) -> None:
        """Have everything that was done in the container be durable, as `os.fsync` of every file. Nothing is durable
        before."""
        with self._looking() as tree:
            tree.sync()

    # Names

    def mkdir(self, path: AnyPath, mode: int = 0o777) -> None:
        """As `os.mkdir`."""
        with self._changing() as tree:
            tree.make_directory(path, mode)

    def makedirs(self, path: AnyPath, mode: int = 0o777, exist_ok: bool = False) -> None:
        """As `os.makedirs`."""
        head, tail = os.path.split(os.fspath(path))
        if not tail:
            head, tail = os.path.split(head)
        if head and tail and not self.exists(head):
            with contextlib.suppress(FileExistsError):
                self.makedirs(head, exist_ok=exist_ok)
        try:
            self.mkdir(path, mode)
        except OSError:
            if not exist_ok or not self.exists(path) or not stat.S_ISDIR(self.stat(path).st_mode):
                raise

    def mknod(self, path: AnyPath, mode: int = 0o600, device: int = 0) -> None:
        """As `os.mknod`."""
        with self._changing() as tree:
            tree.make_node(path, mode, device)

    def symlink(self, src: AnyPath, dst: AnyPath, target_is_directory: bool = False) -> None:
        """As `os.symlink`."""
        with self._changing() as tree:
            tree.symlink(src, dst)

    def link(self, src: AnyPath, dst: AnyPath) -> None:
        """As `os.link`: a symbolic link gets one more name itself."""
        with self._changing() as tree:
            tree.link(src, dst)

    def unlink(self, path: AnyPath) -> None:
        """As `os.unlink`."""
        with self._changing() as tree:
            tree.unlink(path)

    def rmdir(self, path: AnyPath) -> None:
        """As `os.rmdir`."""
        with self._changing() as tree:
            tree.remove_directory(path, whole=False)

    def rmtree(self, path: AnyPath) -> None:
        """As `shutil.rmtree`, at once and whole."""
        with self._changing() as tree:
            tree.remove_directory(path, whole=True)

    def rename(self, src: AnyPath, dst: AnyPath) -> None:
        """As `os.rename`, of a directory, too, in constant time."""
        with self._changing() as tree:
            tree.rename(src, dst)

    replace = rename

    # Attributes

    def chmod(self, path: AnyPath, mode: int) -> None:
        """As `os.chmod`; no content is copied."""
        with self._changing() as tree:
            tree.set_mode(tree.find(path), mode)

    def chown(self, path: AnyPath, uid: int, gid: int, *, follow_symlinks: bool = True) -> None:
        """As `os.chown`."""
        with self._changing() as tree:
            tree.set_owner(tree.find(path, _follow(follow_symlinks)), uid, gid)

    def utime(
        self,
        path: AnyPath,
        times: tuple[float, float] | None = None,
        *,
        ns: tuple[int, int] | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        """As `os.utime`; the time of access, the first of both, is not kept."""
        import time

        if times is not None and ns is not None:
            raise ValueError("utime: you may specify either 'times' or 'ns' but not both")
        mtime_ns = ns[1] if ns is not None else time.time_ns() if times is None else _nanoseconds(times[1])
        with self._changing() as tree:
            tree.set_time(tree.find(path, _follow(follow_symlinks)), mtime_ns)

    def setxattr(
        self, path: AnyPath, attribute: str | bytes, value: Buffer, flags: int = 0, *, follow_symlinks: bool = True
    ) -> None:
        """As `os.setxattr`."""
        with self._changing() as tree:
            inode = tree.find(path, _follow(follow_symlinks))
            tree.set_xattr(inode, path, os.fsencode(attribute), bytes(value), flags)

    def removexattr(self, path: AnyPath, attribute: str | bytes, *, follow_symlinks: bool = True) -> None:
        """As `os.removexattr`."""
        with self._changing() as tree:
            tree.remove_xattr(tree.find(path, _follow(follow_symlinks)), path, os.fsencode(attribute))


def _follow(follow_symlinks: bool) -> int:
    from layerstore.extents.resolving import FOLLOW, STAY

    return FOLLOW if follow_symlinks else STAY


def _is_bytes(path: AnyPath) -> bool:
    return isinstance(os.fspath(path), bytes)


def _nanoseconds(seconds: float) -> int:
    return seconds * 10**9 if isinstance(seconds, int) else int(seconds * 1e9 // 1)
