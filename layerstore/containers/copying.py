"""Copies of trees between the host and a container."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
import sys

from layerstore.errors import Unsupported
from layerstore.naming import about, fstat
from layerstore.store.pieces import PIECE_BYTES, data_ranges, write_all
from layerstore.trees.paths import relative_to
from layerstore.trees.sources import begun, write_filled
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from io import FileIO
    from typing import IO, TypeAlias

    from layerstore.containers.mounted import MountedFiles
    from layerstore.extents.operations import Operations
    from layerstore.trees.entries import Entry

    Files: TypeAlias = Operations | MountedFiles

_PRIVILEGED = (b"security.", b"trusted.")


def copy_in(container: Files, source: str, path: str, keep_owner: bool) -> None:
    """As `layerstore.Container.copy_in`."""
    links: dict[tuple[int, int], str] = {}
    waiting = [(source, path)]
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
        # In this order: a new owner takes capabilities from a file.
        if keep_owner:
            container.chown(inside, status.st_uid, status.st_gid, follow_symlinks=False)
        for name in os.listxattr(host, follow_symlinks=False):
            with contextlib.suppress(OSError):  # one that the host has of its own (security.selinux), gone meanwhile
                container.setxattr(inside, name, os.getxattr(host, name, follow_symlinks=False), follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            container.chmod(inside, stat.S_IMODE(status.st_mode))
        if is_dir:
            directories.append((inside, status))
            waiting += [(f"{host}/{name}", f"{inside}/{name}") for name in sorted(os.listdir(host), reverse=True)]
        else:
            container.utime(inside, ns=(0, status.st_mtime_ns), follow_symlinks=False)
    for inside, status in reversed(directories):
        container.utime(inside, ns=(0, status.st_mtime_ns), follow_symlinks=False)


def _make(container: Files, host: str, inside: str, status: os.stat_result) -> None:
    mode = status.st_mode
    if stat.S_ISDIR(mode):
        if not _is_directory(container, inside):
            _make_room(container, inside)
            container.mkdir(inside)
        return
    _make_room(container, inside)
    if stat.S_ISLNK(mode):
        container.symlink(os.readlink(host), inside)
    elif stat.S_ISREG(mode):
        with about(host), open(host, "rb", 0) as read, about(inside), container.open(inside, "xb", 0) as write:
            _copy(read, write, is_sparse=status.st_blocks * 512 < status.st_size)
    else:
        container.mknod(inside, mode, status.st_rdev)


def _copy(read: FileIO, write: IO[bytes], *, is_sparse: bool) -> None:
    """Copy a content to an empty file; of a sparse one the holes stay holes."""
    piece = memoryview(bytearray(PIECE_BYTES))
    for start, end in data_ranges(read.fileno()) if is_sparse else [(0, sys.maxsize)]:
        read.seek(start)
        write.seek(start)
        while start < end and (count := _read(read, piece[: end - start])):
            write_all(write.write, piece[:count])
            start += count
        if start < end:
            return  # it is shorter than it was, or its size tells nothing (sysfs)
    write.truncate(fstat(read.fileno()).st_size)


def _read(file: FileIO, piece: memoryview) -> int:
    with about(file.fileno()):
        return file.readinto(piece)


def _make_room(container: Files, inside: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        container.unlink(inside)


def _is_directory(container: Files, path: str) -> bool:
    try:
        return stat.S_ISDIR(container.lstat(path).st_mode)
    except FileNotFoundError:
        return False


def copy_out(entries: Iterable[Entry], target: str, keep_owner: bool) -> None:
    """Write a tree (layerstore/trees/whole.py) to the host; see `layerstore.Container.copy_out`."""
    top: bytes | None = None
    places: dict[bytes, str] = {}
    directories: list[tuple[str, Entry]] = []
    devices: dict[bytes, None] = {}
    for entry in entries:
        if not keep_owner and (_is_device(entry) or entry.link in devices):
            devices[entry.path] = None
            continue
        top = entry.path if top is None else top
        below = relative_to(top, entry.path)
        host = places[entry.path] = os.path.join(target, os.fsdecode(below)) if below else target
        if entry.link is not None:
            _make_way(host)
            os.link(places[entry.link], host, follow_symlinks=False)
        elif entry.is_dir():
            _make_directory(host)
            directories.append((host, entry))
        else:
            _make_way(host)
            _make_out(entry, host)
            _attributes_out(entry, host, keep_owner)
    for host, entry in reversed(directories):
        _attributes_out(entry, host, keep_owner)
    if devices:
        first, more = "/" + decode_path(next(iter(devices))), len(devices) - 1
        also = f" and {more} more" if more else ""
        raise Unsupported(
            f"cannot copy the device {first!r}{also} to the host without its owner; all else was copied; "
            "if you trust who made it, copy with --archive (keep_owner)"
        )


def _is_device(entry: Entry) -> bool:
    return stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode)


def renamed(entries: Iterable[Entry]) -> Iterator[Entry]:
    """A tree as it is put into a tar: its names begin with the last name of its top."""
    above: int | None = None
    for entry in entries:
        if above is None:
            above = entry.path.rfind(b"/") + 1
        yield entry.at(entry.path[above:], None if entry.link is None else entry.link[above:])


def _make_way(host: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(host)


def _make_directory(host: str) -> None:
    try:
        os.mkdir(host, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(host).st_mode):
            os.unlink(host)
            os.mkdir(host, 0o700)


def _make_out(entry: Entry, host: str) -> None:
    if entry.target is not None:
        os.symlink(entry.target, os.fsencode(host))
    elif entry.is_file():
        with about(host), open(host, "xb", 0, opener=functools.partial(os.open, mode=0o600)) as file:
            if entry.source is not None and not entry.source.clone_to(file.fileno()):
                write_filled(file.fileno(), begun(entry.source, entry.size)[0])
    else:
        os.mknod(host, entry.mode, entry.rdev)


def _attributes_out(entry: Entry, host: str, keep_owner: bool) -> None:
    if keep_owner:
        os.chown(host, entry.uid, entry.gid, follow_symlinks=False)
    for name, value in entry.xattrs.items():
        if not keep_owner and name.startswith(_PRIVILEGED):
            continue
        try:
            os.setxattr(host, name, value, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EACCES, errno.ENOTSUP):
                raise
    if entry.target is None:
        # With another owner these would give the rights of that one, on the host.
        is_whole = keep_owner or entry.is_dir()
        os.chmod(host, stat.S_IMODE(entry.mode) if is_whole else entry.mode & 0o777)
    with about(host):
        os.utime(host, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)
