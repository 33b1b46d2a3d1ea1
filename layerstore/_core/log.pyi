"""The records of a log (csrc/log.h, docs/format/log.md): what they hold, and reading them."""

from typing import Final

from typing_extensions import Buffer

HEADER_BYTES: Final[int]
"""A log's header; its first record begins after it."""
RECORD_HEADER_BYTES: Final[int]
MAX_PAYLOAD_BYTES: Final[int]
FIRST_NEW_INODE: Final[int]
"""Numbers below it are inodes of the image: the record number in its index of the first name of the inode. New inodes are
numbered from it on, by the caller."""

# Types of records. What each holds stands in docs/format/log.md; fields that it does not name are 0 or empty.
WRITE: Final[int]  # inode, offset, mtime_ns; payload: the data
PUNCH: Final[int]  # inode, offset, value: length, mtime_ns. The size stays.
TRUNCATE: Final[int]  # inode, value: size, mtime_ns
CREATE: Final[int]  # inode, mode (with its type), uid, gid, mtime_ns, value: device; payload: target of a symlink
ATTRIBUTES: Final[int]  # inode, value: sum of SET_*, mode (without type), uid, gid, mtime_ns
ENTRY: Final[int]  # inode: directory, value: inode of the entry, mtime_ns: the directory's; payload: name
REMOVE: Final[int]  # inode: directory, mtime_ns: the directory's; payload: name
XATTR: Final[int]  # inode, name, payload: value
XATTR_REMOVE: Final[int]  # inode, name
SOURCE_LOG: Final[int]  # value: number that EXTENTS of this log use, from 1; payload: id of that log, 16 bytes
EXTENTS: Final[int]  # inode, offset: 0; payload: u64 (start, length, source) each; log number 0 is this log

SET_MODE: Final[int]
SET_UID: Final[int]
SET_GID: Final[int]
SET_MTIME: Final[int]

class Record:
    """One record. Compares equal by type, fields, name and payload."""

    type: int
    inode: int
    offset: int
    value: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    name: bytes
    payload: bytes
    """Empty for a WRITE that was read: its data stays where it is, at `payload_position` of the log."""
    payload_position: int
    """Where the payload begins in the log, 0 for a record that was not read."""
    payload_length: int
    """bytes"""
    more: bool
    """The next record belongs to the same operation."""

    def __init__(
        self,
        type: int,
        inode: int = 0,
        offset: int = 0,
        value: int = 0,
        mode: int = 0,
        uid: int = 0,
        gid: int = 0,
        mtime_ns: int = 0,
        name: bytes = b"",
        payload: bytes = b"",
    ) -> None: ...

class Header:
    """The header of a log: its own id, that of the log it goes on from (and at how many bytes of it), and the image."""

    id: bytes
    """16 bytes"""
    base_id: bytes
    """16 bytes, zeros for none"""
    base_length: int
    """bytes of the base that count, 0 for none"""
    chain_id: bytes
    """32 bytes: the image that inode numbers below FIRST_NEW_INODE are of"""

    def __init__(self, id: bytes, chain_id: bytes, base_id: bytes = ..., base_length: int = 0) -> None: ...
    def pack(self) -> bytes:
        """The HEADER_BYTES bytes to begin the file with. `InvalidInput` for ids of other lengths, or half a base."""

class LogReader:
    """The records of whole operations of a log, in order: an iterator of `Record`.

    Opening checks everything up to the first record that is incomplete or damaged, in one pass with the GIL released.
    """

    header: Header
    end: int
    """Where the last whole operation ends: bytes from here on do not count, and are to be cut off before more is appended."""
    reason: str
    """Why it ends there; empty where the file ends there too."""

    def __init__(self, data: Buffer, checked: int = 0) -> None:
        """Read a log that begins with the bytes `data` (an mmap, of which nothing may be cut off meanwhile).

        The data of WRITE records that end at byte `checked` or before is not compared with its checksum: give the length
        at which the log was known to be whole on the disk. `CorruptError` for a damaged header, and for a record whose
        checksum holds but that makes no sense (a crash does not write such a one); `Unsupported` for a newer version.
        """

    def __iter__(self) -> LogReader: ...
    def __next__(self) -> Record: ...
