"""One state of a writable layer, to look into and to change: the operations of the `os` module."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

from layerstore._core import log as kinds
from layerstore._core.log import Record
from layerstore.extents.applying import Applier, extents_of
from layerstore.extents.log import read_again
from layerstore.extents.resolving import FOLLOW, PARENT, STAY, Place, encoded, error, resolve
from layerstore.extents.table import Table
from layerstore.extents.xattrs import CAPABILITY, is_no_acl, why_not

if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore._core.extent_io import LogWriter
    from layerstore._core.view import AnyPath
    from layerstore.extents.log import Logs
    from layerstore.extents.table import Inode

_UMASK = 0o022
_MAX_LINKS = 65000
_MAX_TARGET_BYTES = 4095
_MAX_XATTR_NAME_BYTES = 255
_MAX_XATTR_BYTES = 65536
_MAX_FILE_BYTES = (1 << 63) - 1
_KEEPS = (-1, (1 << 32) - 1)
_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.posix_acl_")


class Tree:
    """A table with the logs that its extents name and, where it may be changed, the writer of the last of them.

    Paths are as of `View`. Errors are those of the system. Whoever calls holds `lock`.
    """

    def __init__(
        self, table: Table, logs: Logs, log_number: int, device: int, add_source: Callable[[bytes], int]
    ) -> None:
        self.table = table
        self.logs = logs
        self.log_number = log_number
        self.writer: LogWriter | None = None
        self.lock = threading.RLock()
        self.closed = False
        self.applier = Applier(table, log_number, add_source)
        self._device = device
        self._add_source = add_source
        self._base = table.levels, table.next_number
        self._done_bytes = 0
        self._sync_log: Callable[[LogWriter], None]
        self._make_durable: Callable[[], None] | None = None

    # Looking

    def locate(self, path: AnyPath, follow: int = FOLLOW) -> Place:
        """The place that a path leads to. Raises `OSError`."""
        return resolve(self.table, path, follow)

    def find(self, path: AnyPath, follow: int = FOLLOW) -> Inode:
        """The inode that a path leads to. Raises `OSError`."""
        number = self.locate(path, follow).number
        if number is None:
            raise error(errno.ENOENT, path)
        return self.table.get(number)

    def stat_of(self, inode: Inode) -> os.stat_result:
        """As `os.lstat`: st_ino is the inode's number and 1, every time that of modification."""
        ns, size = inode.mtime_ns, 0 if inode.is_dir() else inode.size
        seconds, rest = divmod(ns, 10**9)
        exact = seconds + 1e-9 * rest
        times = {f"st_{which}time{unit}": value for which in "amc" for unit, value in (("", exact), ("_ns", ns))}
        more = {"st_blksize": 4096, "st_blocks": (size + 511) // 512, "st_rdev": inode.rdev}
        nlink = 1 if inode.is_dir() else inode.nlink
        whole = (inode.mode, inode.number + 1, self._device, nlink, inode.uid, inode.gid, size, *[seconds] * 3)
        return os.stat_result(whole, times | more)

    def directory(self, path: AnyPath) -> Inode:
        """The directory that a path leads to. Raises `OSError`."""
        inode = self.find(path)
        if not inode.is_dir():
            raise error(errno.ENOTDIR, path)
        return inode

    # Changing

    def begin(self, writer: LogWriter, sync_log: Callable[[LogWriter], None], make_durable: Callable[[], None]) -> None:
        """Allow changes. `sync_log` makes durable what was written to the log, `make_durable` what the log depends on;
        that is called once, when it is asked for."""
        self._done_bytes = writer.end
        self.writer = self.logs.files[self.log_number] = writer
        self._sync_log = sync_log
        self._make_durable = make_durable

    def settle(self) -> None:
        """Have the table be what the log says, also where an exception (an interrupt) came between the two.

        It is called before an operation looks at anything. Raises `CorruptError`, `OSError`; the next call tries again.
        """
        writer = self.writer
        if writer is None or writer.end == self._done_bytes:
            return
        length = writer.flush()
        table = Table(self.table.image, *self._base)
        applier = Applier(table, self.log_number, self._add_source, self.applier)
        applier.replay(read_again(self.logs.descriptors[self.log_number].fd, length))
        # In this order, for threads that look up an inode meanwhile: first in `own`, then in `levels`.
        self.table.next_number = table.next_number
        self.table.levels = table.freeze()
        self.table.own = {}
        applier.table = self.table
        self.applier = applier
        self._done_bytes = length

    def end(self) -> None:
        """Append what is gathered and allow no operation any more. Raises `OSError`; it is closed then, too."""
        with self.lock:
            writer, self.closed = self.writer, True
            if writer is not None:
                writer.flush()

    def flush(self) -> int:
        """Append what is gathered, so that other processes see it; returns the log's length."""
        assert self.writer is not None
        self.settle()
        return self.writer.flush()

    def sync(self) -> None:
        """Have all that was done be durable."""
        with self.lock:
            if self.writer is not None:
                self._sync_log(self.writer)
                if self._make_durable is not None:
                    self._make_durable()
                    self._make_durable = None

    def commit(self, *records: Record) -> None:
        """Write one operation to the log and do it. Raises `OSError`; nothing was done then.

        Where an exception comes after the log has it, `settle` does it.
        """
        assert self.writer is not None
        self.writer.append(records)
        self.applier.apply(records)
        self._done_bytes = self.writer.end

    def _new(self, path: AnyPath) -> tuple[Inode, Place]:
        """The directory for a new name and its place. Raises `OSError` where there is something already."""
        place = self.locate(path, PARENT)
        if place.number is not None:
            raise error(errno.EEXIST, path)
        return self.table.get(place.parents[-1]), place

    def _old(self, path: AnyPath) -> tuple[Place, Inode]:
        """The place and inode of a name that is to be removed."""
        place = self.locate(path, PARENT)
        if place.number is None:
            raise error(errno.ENOENT, path)
        return place, self.table.get(place.number)

    def make(self, parent: Inode, name: bytes, mode: int, *, target: bytes = b"", device: int = 0) -> int:
        """Make an inode of that mode (with its type) in a directory; returns its number."""
        now = time.time_ns()
        if stat.S_ISDIR(mode):
            mode |= parent.mode & stat.S_ISGID
        gid = parent.gid if parent.mode & stat.S_ISGID else 0
        number = self.table.next_number
        self.commit(
            Record(kinds.CREATE, number, 0, device, mode, 0, gid, now, b"", target),
            Record(kinds.ENTRY, parent.number, value=number, mtime_ns=now, payload=name),
        )
        return number

    def make_directory(self, path: AnyPath, mode: int = 0o777) -> None:
        """As `os.mkdir`."""
        parent, place = self._new(path)
        self.make(parent, place.name, stat.S_IFDIR | (mode & 0o1777 & ~_UMASK))

    def make_node(self, path: AnyPath, mode: int, device: int) -> None:
        """As `os.mknod`."""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK):
            raise error(errno.EPERM if stat.S_ISDIR(mode) else errno.EINVAL, path)
        parent, place = self._new(path)
        if place.slash:
            raise error(errno.ENOENT, path)
        is_device = stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        self.make(parent, place.name, kind | (mode & 0o7777 & ~_UMASK), device=device if is_device else 0)

    def symlink(self, target: AnyPath, path: AnyPath) -> None:
        """As `os.symlink`."""
        data = encoded(target)
        if not data or len(data) > _MAX_TARGET_BYTES:
            raise error(errno.ENAMETOOLONG if data else errno.ENOENT, target, path)
        place = self.locate(path, PARENT)
        if place.number is not None or place.slash:
            raise error(errno.EEXIST if place.number is not None else errno.ENOENT, target, path)
        self.make(self.table.get(place.parents[-1]), place.name, stat.S_IFLNK | 0o777, target=data)

    def link(self, source: AnyPath, path: AnyPath) -> None:
        """As `os.link`: of a symbolic link, the link gets one more name."""
        number = self.locate(source, STAY).number
        if number is None:
            raise error(errno.ENOENT, source, path)
        place = self.locate(path, PARENT)
        inode = self.table.get(number)
        if place.number is not None:
            raise error(errno.EEXIST, source, path)
        if place.slash:
            raise error(errno.ENOENT, source, path)
        if inode.is_dir() or inode.nlink >= _MAX_LINKS:
            raise error(errno.EPERM if inode.is_dir() else errno.EMLINK, source, path)
        now = time.time_ns()
        self.commit(Record(kinds.ENTRY, place.parents[-1], value=number, mtime_ns=now, payload=place.name))

    def unlink(self, path: AnyPath) -> None:
        """As `os.unlink`."""
        place, inode = self._old(path)
        if inode.is_dir():
            raise error(errno.EISDIR, path)
        if place.slash:
            raise error(errno.ENOTDIR, path)
        self._remove(place)

    def remove_directory(self, path: AnyPath, *, whole: bool) -> None:
        """As `os.rmdir`; with `whole` also one that is not empty, at once."""
        place, inode = self._old(path)
        if not place.name or place.name in (b".", b".."):
            number = {b".": errno.EINVAL, b"..": errno.ENOTEMPTY}.get(place.name, errno.EBUSY)
            raise error(number, path)
        if not inode.is_dir():
            raise error(errno.ENOTDIR, path)
        if not whole and self.table.children(inode):
            raise error(errno.ENOTEMPTY, path)
        self._remove(place)

    def _remove(self, place: Place) -> None:
        self.commit(Record(kinds.REMOVE, place.parents[-1], mtime_ns=time.time_ns(), payload=place.name))

    def rename(self, source: AnyPath, target: AnyPath) -> None:
        """As `os.rename`, of directories, too: nothing is copied."""
        old, new = self.locate(source, PARENT), self.locate(target, PARENT)
        if any(place.name in (b"", b".", b"..") for place in (old, new)):
            raise error(errno.EBUSY, source, target)
        if old.number is None:
            raise error(errno.ENOENT, source, target)
        number = self._why_not_rename(old, self.table.get(old.number), new)
        if number:
            raise error(number, source, target)
        if old.number == new.number:
            return
        now = time.time_ns()
        self.commit(
            Record(kinds.ENTRY, new.parents[-1], value=old.number, mtime_ns=now, payload=new.name),
            Record(kinds.REMOVE, old.parents[-1], mtime_ns=now, payload=old.name),
        )

    def _why_not_rename(self, old: Place, inode: Inode, new: Place) -> int:
        """The number of the system's error, 0 for none; in the kernel's order (fs/namei.c, do_renameat2 and
        vfs_rename)."""
        if not inode.is_dir() and (old.slash or new.slash):
            return errno.ENOTDIR
        if old.number in new.parents:
            return errno.EINVAL
        if new.number in old.parents:
            return errno.ENOTEMPTY
        if new.number is None or old.number == new.number:
            return 0
        there = self.table.get(new.number)
        if inode.is_dir() != there.is_dir():
            return errno.ENOTDIR if inode.is_dir() else errno.EISDIR
        return errno.ENOTEMPTY if there.is_dir() and self.table.children(there) else 0

    # Attributes

    def set_mode(self, inode: Inode, mode: int) -> None:
        """As `os.chmod`."""
        self.commit(Record(kinds.ATTRIBUTES, inode.number, value=kinds.SET_MODE, mode=mode & 0o7777))

    def set_time(self, inode: Inode, mtime_ns: int) -> None:
        """As `os.utime`."""
        self.commit(Record(kinds.ATTRIBUTES, inode.number, value=kinds.SET_MTIME, mtime_ns=mtime_ns))

    def set_owner(self, inode: Inode, uid: int, gid: int) -> None:
        """As `os.chown`: -1, also as 32 bits, keeps; what is no id raises `OverflowError`. A file loses set-user-ID and
        capabilities by it, as from the kernel (fs/open.c, chown_common)."""
        which = (0 if uid in _KEEPS else kinds.SET_UID) | (0 if gid in _KEEPS else kinds.SET_GID)
        mode = inode.mode & 0o7777
        if not inode.is_dir():
            mode &= ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if mode != inode.mode & 0o7777:
            which |= kinds.SET_MODE
        else:
            mode = 0
        records = self._privileges(inode)
        if which:
            ids = 0 if uid in _KEEPS else uid, 0 if gid in _KEEPS else gid
            records.append(Record(kinds.ATTRIBUTES, inode.number, 0, which, mode, *ids))
        if records:
            self.commit(*records)

    def _privileges(self, inode: Inode) -> list[Record]:
        """What takes the capabilities from a file that is changed."""
        return [Record(kinds.XATTR_REMOVE, inode.number, name=CAPABILITY)] if CAPABILITY in inode.xattrs else []

    def set_xattr(self, inode: Inode, path: AnyPath, name: bytes, value: bytes, flags: int) -> None:
        """As `os.setxattr`."""
        self._check_xattr(inode, path, name)
        if len(value) > _MAX_XATTR_BYTES:
            raise error(errno.E2BIG, path)
        if flags & os.XATTR_CREATE and name in inode.xattrs:
            raise error(errno.EEXIST, path)
        if flags & os.XATTR_REPLACE and name not in inode.xattrs:
            raise error(errno.ENODATA, path)
        if number := why_not(inode, name, value):
            raise error(number, path)
        if not is_no_acl(name, value):
            self.commit(Record(kinds.XATTR, inode.number, name=name, payload=value))
        elif name in inode.xattrs:
            self.commit(Record(kinds.XATTR_REMOVE, inode.number, name=name))

    def remove_xattr(self, inode: Inode, path: AnyPath, name: bytes) -> None:
        """As `os.removexattr`."""
        self._check_xattr(inode, path, name)
        if name not in inode.xattrs:
            raise error(errno.ENODATA, path)
        self.commit(Record(kinds.XATTR_REMOVE, inode.number, name=name))

    def _check_xattr(self, inode: Inode, path: AnyPath, name: bytes) -> None:
        if not name or len(name) > _MAX_XATTR_NAME_BYTES:
            raise error(errno.ERANGE, path)
        if not name.startswith(_NAMESPACES):
            raise error(errno.ENOTSUP, path)
        if name.startswith(b"user.") and not (inode.is_file() or inode.is_dir()):
            raise error(errno.EPERM, path)

    # Contents

    def write(self, number: int, offset: int, data: memoryview) -> None:
        """Write at byte `offset` of a file; no bytes change nothing, not even its time. Raises `OSError`."""
        assert self.writer is not None
        if not data:
            return
        _check_end(offset + len(data))
        inode = self.table.own.get(number) or self.table.change(number)
        if inode.xattrs and CAPABILITY in inode.xattrs:
            self.commit(*self._privileges(inode))
        now = time.time_ns()
        self.writer.write(inode.extents or extents_of(inode), number, offset, data, now)
        inode.mtime_ns = now
        self._done_bytes = self.writer.end

    def truncate(self, number: int, size: int) -> None:
        """Set the size of a file, to at most 2^63 - 1 bytes. Raises `OSError`."""
        _check_end(size)
        inode = self.table.get(number)
        record = Record(kinds.TRUNCATE, number, value=size, mtime_ns=time.time_ns())
        self.commit(*self._privileges(inode), record)

    def punch(self, number: int, offset: int, length: int) -> None:
        """Have a range of a file be zeros; its size stays. Raises `OSError`, for one that is none as fallocate(2)."""
        if offset < 0 or length <= 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        _check_end(offset + length)
        record = Record(kinds.PUNCH, number, offset, length, mtime_ns=time.time_ns())
        self.commit(*self._privileges(self.table.get(number)), record)

    def create(self, path: AnyPath, mode: int, *, exclusive: bool) -> int:
        """The number of the file at a path, which is made where there is none; links are followed, also to what is not
        there."""
        place = self.locate(path, PARENT)
        if place.slash and place.name not in (b"", b".", b".."):
            raise error(errno.EISDIR, path)
        if not exclusive:
            place = self.locate(path)
        if place.number is not None:
            if exclusive:
                raise error(errno.EEXIST, path)
            return place.number
        if place.slash:
            raise error(errno.EISDIR, path)
        return self.make(self.table.get(place.parents[-1]), place.name, stat.S_IFREG | (mode & 0o7777 & ~_UMASK))


def _check_end(position: int) -> None:
    if position > _MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
