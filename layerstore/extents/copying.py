"""Copies of trees between the host and a container."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore._core.view import AnyPath
    from layerstore.extents.operations import Operations

_PIECE_BYTES = 1 << 20


def copy_in(container: Operations, source: str, path: AnyPath, keep_owner: bool) -> None:
    """As `Operations.copy_in`."""
    target = os.fsdecode(os.fspath(path))
    links: dict[tuple[int, int], str] = {}
    waiting = [(source, target)]
    directories: list[tuple[str, os.stat_result]] = []
    while waiting:
        host, inside = waiting.pop()
        status = os.lstat(host)
        is_dir = stat.S_ISDIR(status.st_mode)
        first = links.setdefault((status.st_dev, status.st_ino), inside)
        if first != inside and not is_dir:
            _make_room(container, inside)
            container.link(first, inside)
            continue
        _make(container, host, inside, status)
        for name in os.listxattr(host, follow_symlinks=False):
            with contextlib.suppress(OSError):  # one that the host has of its own (security.selinux), gone meanwhile
                container.setxattr(inside, name, os.getxattr(host, name, follow_symlinks=False), follow_symlinks=False)
        if keep_owner:
            container.chown(inside, status.st_uid, status.st_gid, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            container.chmod(inside, stat.S_IMODE(status.st_mode))
        if is_dir:
            directories.append((inside, status))
            waiting += [(f"{host}/{name}", f"{inside}/{name}") for name in sorted(os.listdir(host), reverse=True)]
        else:
            container.utime(inside, ns=(0, status.st_mtime_ns), follow_symlinks=False)
    for inside, status in reversed(directories):
        container.utime(inside, ns=(0, status.st_mtime_ns))


def _make(container: Operations, host: str, inside: str, status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        if not _is_directory(container.lstat, inside):
            _make_room(container, inside)
            container.mkdir(inside)
        return
    _make_room(container, inside)
    if stat.S_ISLNK(mode):
        container.symlink(os.readlink(host), inside)
    elif stat.S_ISREG(mode):
        with open(host, "rb", 0) as read, container.open(inside, "xb", 0) as write:
            piece = memoryview(bytearray(_PIECE_BYTES))
            while count := read.readinto(piece):
                write.write(piece[:count])
    else:
        container.mknod(inside, mode, status.st_rdev)


def _make_room(container: Operations, inside: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        container.unlink(inside)


def _is_directory(lstat: Callable[[str], os.stat_result], path: str) -> bool:
    try:
        return stat.S_ISDIR(lstat(path).st_mode)
    except FileNotFoundError:
        return False


def copy_out(container: Operations, path: AnyPath, target: str, keep_owner: bool) -> None:
    """As `Operations.copy_out`."""
    links: dict[int, str] = {}
    waiting = [(os.fsdecode(os.fspath(path)), target)]
    directories: list[tuple[str, str, os.stat_result]] = []
    while waiting:
        inside, host = waiting.pop()
        status = container.lstat(inside)
        is_dir = stat.S_ISDIR(status.st_mode)
        first = links.setdefault(status.st_ino, host)
        if first != host and not is_dir:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(host)
            os.link(first, host, follow_symlinks=False)
            continue
        _make_out(container, inside, host, status)
        if is_dir:
            directories.append((inside, host, status))
            waiting += [(f"{inside}/{name}", f"{host}/{name}") for name in reversed(container.listdir(inside))]
        else:
            _attributes_out(container, inside, host, status, keep_owner)
    for inside, host, status in reversed(directories):
        _attributes_out(container, inside, host, status, keep_owner)


def _make_out(container: Operations, inside: str, host: str, status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        if not _is_directory(os.lstat, host):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(host)
            os.mkdir(host, 0o700)
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink(host)
    if stat.S_ISLNK(mode):
        os.symlink(container.readlink(inside), host)
    elif stat.S_ISREG(mode):
        with container.open(inside, "rb", 0) as read, open(host, "xb", 0) as write:
            piece = memoryview(bytearray(_PIECE_BYTES))
            while count := read.readinto(piece):  # type: ignore[attr-defined]  # a raw file
                _write_all(write.fileno(), piece[:count])
    else:
        os.mknod(host, mode, status.st_rdev)


def _write_all(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _attributes_out(container: Operations, inside: str, host: str, status: os.stat_result, keep_owner: bool) -> None:
    if keep_owner:
        os.chown(host, status.st_uid, status.st_gid, follow_symlinks=False)
    for name in container.listxattr(inside, follow_symlinks=False):
        value = container.getxattr(inside, name, follow_symlinks=False)
        try:
            os.setxattr(host, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
    if not stat.S_ISLNK(status.st_mode):
        os.chmod(host, stat.S_IMODE(status.st_mode))
    os.utime(host, ns=(status.st_mtime_ns, status.st_mtime_ns), follow_symlinks=False)
