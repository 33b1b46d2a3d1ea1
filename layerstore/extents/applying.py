"""What the records of a log do to a table: the same when they are written and when they are read again."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from layerstore._core import log as kinds
from layerstore._core.extents import IMAGE, ZERO, ExtentMap, source
from layerstore._core.log import Record
from layerstore.errors import CorruptError
from layerstore.extents.table import Inode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from layerstore.extents.table import Table

_EXTENT = struct.Struct("<QQQ")
"""Of a log's record: start and length in bytes, source (`layerstore._core.extents`)."""
_EXTENTS_A_RECORD = 1 << 20
_EVERYTHING = kinds.SET_MODE | kinds.SET_UID | kinds.SET_GID | kinds.SET_MTIME
_LOG_SHIFT = 48
_LOG_OFFSETS = (1 << _LOG_SHIFT) - 1


def place_of(where: int) -> tuple[int, int]:
    """What an extent's source stands for (`source`): the number of a log, and a byte in it."""
    return where >> _LOG_SHIFT, where & _LOG_OFFSETS


def extents_of(inode: Inode) -> ExtentMap:
    """The map of a regular file that may be changed, made if nobody wrote to it before."""
    if inode.extents is None:
        inode.extents = ExtentMap(inode.image_size)
    return inode.extents


def attributes(inode: Inode) -> tuple[int, int, int, int, dict[bytes, bytes]]:
    """Those that any inode can change."""
    return inode.mode, inode.uid, inode.gid, inode.mtime_ns, inode.xattrs


def inode_records(inode: Inode, before: Inode | None) -> list[Record]:
    """What makes an inode as it is, but for its content and names: a new one, or of the one `before` of the image."""
    number = inode.number
    if before is None:
        known: dict[bytes, bytes] = {}
        made = (kinds.CREATE, number, 0, inode.rdev, inode.mode, inode.uid, inode.gid, inode.mtime_ns)
        records = [Record(*made, payload=inode.target or b"")]
    else:
        known = before.xattrs
        mode = inode.mode & 0o7777
        records = [Record(kinds.ATTRIBUTES, number, 0, _EVERYTHING, mode, inode.uid, inode.gid, inode.mtime_ns)]
    for name, value in inode.xattrs.items():
        if known.get(name) != value:
            records.append(Record(kinds.XATTR, number, name=name, payload=value))
    for name in known.keys() - inode.xattrs.keys():
        records.append(Record(kinds.XATTR_REMOVE, number, name=name))
    return records


def extents_records(number: int, extents: Iterable[tuple[int, int, int]]) -> Iterator[Record]:
    """Records of an inode's extents: start and length in bytes, and source, of each."""
    words = [_EXTENT.pack(*extent) for extent in extents]
    for first in range(0, len(words), _EXTENTS_A_RECORD):
        yield Record(kinds.EXTENTS, number, payload=b"".join(words[first : first + _EXTENTS_A_RECORD]))


class Applier:
    """Applies records of one log to a table.

    Args:
        log_number: that by which extents of the table name the log.
        add_source: given the id of another log that this one names, returns the number that the table names it by.
        former: one that applied the same log before, to another table; the same files are open.
    """

    def __init__(
        self, table: Table, log_number: int, add_source: Callable[[bytes], int], former: Applier | None = None
    ) -> None:
        self.table = table
        self._log_number = log_number
        self._add_source = add_source
        self._sources = {0: log_number}
        self._logs: dict[bytes, int] = former._logs if former else {}
        self._nameless: list[int] = []
        # While a log is read nobody knows of which inodes files were open: none is forgotten before its end.
        self._replaying = False
        self._unneeded: list[int] = []
        self.opened: dict[int, int] = former.opened if former else {}
        """How many files are open of an inode: such a one outlives its last name."""

    def replay(self, records: Iterable[Record]) -> None:
        """Apply the records of a log that was read. `CorruptError` where they do not go together."""
        self._replaying = True
        try:
            for record in records:
                _ACTIONS[record.type](self, record)
                if not record.more:
                    self._settle()
        except (LookupError, ValueError, OverflowError, TypeError, AttributeError) as error:
            raise CorruptError(f"a record of a writable layer's log does not fit those before it: {error!r}") from error
        self._replaying = False
        for number in self._unneeded:
            self._forget_nameless(number)
        self._unneeded = []

    def apply(self, records: Iterable[Record]) -> None:
        """Apply the records of one operation."""
        for record in records:
            _ACTIONS[record.type](self, record)
        self._settle()

    def release(self, number: int) -> None:
        """A file of this inode was closed."""
        left = self.opened[number] - 1
        if left:
            self.opened[number] = left
        else:
            del self.opened[number]
            self._forget_nameless(number)

    # Inodes that lose a name

    def _forget_nameless(self, number: int) -> None:
        """Drop an inode that has no name, unless a file of it is open."""
        inode = self.table.changed(number)
        if inode is not None and not inode.nlink and number not in self.opened:
            self.table.forget(number)

    def _unname(self, number: int) -> None:
        inode = self.table.changed(number)
        if inode is None:
            image = self.table.image.inode(number)
            # Nobody will ever see a file of the image again that has lost its only name.
            if image.nlink == 1 and not image.is_dir() and number not in self.opened and not self._replaying:
                return
        inode = self.table.change(number)
        inode.nlink -= 1
        if inode.nlink <= 0:
            self._nameless.append(number)

    def _settle(self) -> None:
        """At the end of an operation (a rename gives and takes a name): what is without a name is gone, with all in
        it."""
        while self._nameless:
            number = self._nameless.pop()
            inode = self.table.get(number)
            if inode.nlink:
                continue
            if inode.entries is not None:
                children = self.table.children(inode)
                inode = self.table.change(number)
                inode.entries, inode.lower = {}, None
                for _, child in children:
                    self._unname(child)
            if self._replaying:
                self._unneeded.append(number)
            else:
                self._forget_nameless(number)

    # Records

    def _write(self, record: Record) -> None:
        inode = self.table.change(record.inode)
        where = source(self._log_number, record.payload_position)
        extents_of(inode).write(record.offset, record.payload_length, where)
        inode.mtime_ns = record.mtime_ns

    def _punch(self, record: Record) -> None:
        inode = self.table.change(record.inode)
        extents_of(inode).punch(record.offset, record.value)
        inode.mtime_ns = record.mtime_ns

    def _truncate(self, record: Record) -> None:
        inode = self.table.change(record.inode)
        extents_of(inode).truncate(record.value)
        inode.mtime_ns = record.mtime_ns

    def _create(self, record: Record) -> None:
        inode = Inode(record.inode, record.mode, record.uid, record.gid, record.mtime_ns, 0)
        if inode.is_dir():
            inode.entries = {}
        elif inode.is_symlink():
            inode.target = record.payload
        elif inode.is_file():
            inode.extents = ExtentMap()
        inode.rdev = record.value
        self.table.add(inode)
        self._nameless.append(record.inode)

    def _attributes(self, record: Record) -> None:
        inode = self.table.change(record.inode)
        if record.value & kinds.SET_MODE:
            inode.mode = (inode.mode & ~0o7777) | record.mode
        if record.value & kinds.SET_UID:
            inode.uid = record.uid
        if record.value & kinds.SET_GID:
            inode.gid = record.gid
        if record.value & kinds.SET_MTIME:
            inode.mtime_ns = record.mtime_ns

    def _entry(self, record: Record) -> None:
        directory, name = self.table.change(record.inode), record.payload
        old = self.table.child(directory, name)
        entries = directory.entries
        if entries is None:
            raise CorruptError(f"the log of a writable layer has the name {name!r} in what is no directory")
        entries[name] = record.value
        directory.mtime_ns = record.mtime_ns
        self.table.change(record.value).nlink += 1
        if old is not None:
            self._unname(old)

    def _remove(self, record: Record) -> None:
        directory, name = self.table.change(record.inode), record.payload
        old = self.table.child(directory, name)
        entries = directory.entries
        if old is None or entries is None:
            raise CorruptError(f"the log of a writable layer removes {name!r}, which is not there")
        if directory.lower is not None and self.table.image.child(directory.lower, name) is not None:
            entries[name] = None
        else:
            del entries[name]
        directory.mtime_ns = record.mtime_ns
        self._unname(old)

    def _xattr(self, record: Record) -> None:
        self.table.change(record.inode).xattrs[record.name] = record.payload

    def _xattr_remove(self, record: Record) -> None:
        del self.table.change(record.inode).xattrs[record.name]

    def _source_log(self, record: Record) -> None:
        log = record.payload
        if log not in self._logs:
            self._logs[log] = self._add_source(log)
        self._sources[record.value] = self._logs[log]

    def _extents(self, record: Record) -> None:
        extents = extents_of(self.table.change(record.inode))
        writes = b"".join(
            _EXTENT.pack(start, length, self._renumbered(where))
            for start, length, where in _EXTENT.iter_unpack(record.payload)
        )
        extents.write_many(writes)

    def _renumbered(self, where: int) -> int:
        if where in (ZERO, IMAGE):
            return where
        number, offset = place_of(where)
        return source(self._sources[number], offset)


_ACTIONS = {
    kinds.WRITE: Applier._write,
    kinds.PUNCH: Applier._punch,
    kinds.TRUNCATE: Applier._truncate,
    kinds.CREATE: Applier._create,
    kinds.ATTRIBUTES: Applier._attributes,
    kinds.ENTRY: Applier._entry,
    kinds.REMOVE: Applier._remove,
    kinds.XATTR: Applier._xattr,
    kinds.XATTR_REMOVE: Applier._xattr_remove,
    kinds.SOURCE_LOG: Applier._source_log,
    kinds.EXTENTS: Applier._extents,
}
