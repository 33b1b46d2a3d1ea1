from typing import Final

from typing_extensions import Buffer

HEADER_BYTES: Final[int]
RECORD_HEADER_BYTES: Final[int]
MAX_PAYLOAD_BYTES: Final[int]
FIRST_NEW_INODE: Final[int]

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
    payload_position: int
    payload_length: int
    more: bool

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
    id: bytes
    base_id: bytes
    base_length: int
    chain_id: bytes

    def __init__(self, id: bytes, chain_id: bytes, base_id: bytes = ..., base_length: int = 0) -> None: ...
    def pack(self) -> bytes: ...

class LogReader:
    header: Header
    end: int
    later: int
    reason: str

    def __init__(self, data: Buffer, checked: int = 0) -> None: ...
    def __iter__(self) -> LogReader: ...
    def __next__(self) -> Record: ...
