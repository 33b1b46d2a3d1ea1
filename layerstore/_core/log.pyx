"""The records of a log, over csrc/extent/log.h."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.string cimport memcpy, memset

from layerstore._core.status cimport check

from layerstore._core.status import InvalidInput

HEADER_BYTES = sizeof(ls_log_header)
RECORD_HEADER_BYTES = sizeof(ls_log_record)
MAX_PAYLOAD_BYTES = LS_LOG_MAX_PAYLOAD
FIRST_NEW_INODE = LS_LOG_FIRST_NEW_INODE

WRITE = LS_LOG_WRITE
PUNCH = LS_LOG_PUNCH
TRUNCATE = LS_LOG_TRUNCATE
CREATE = LS_LOG_CREATE
ATTRIBUTES = LS_LOG_ATTRIBUTES
ENTRY = LS_LOG_ENTRY
REMOVE = LS_LOG_REMOVE
XATTR = LS_LOG_XATTR
XATTR_REMOVE = LS_LOG_XATTR_REMOVE
SOURCE_LOG = LS_LOG_SOURCE_LOG
EXTENTS = LS_LOG_EXTENTS

SET_MODE = LS_LOG_SET_MODE
SET_UID = LS_LOG_SET_UID
SET_GID = LS_LOG_SET_GID
SET_MTIME = LS_LOG_SET_MTIME

NO_BASE = bytes(LS_LOG_ID_BYTES)
"""The `Header.base_id` of a log that goes on from the image alone."""


cdef class Record:
    """One record; what each type holds stands in docs/format/log.md. Immutable.

    Compares equal by type, fields, name and payload. Making one raises `OverflowError` for a number that its field has no
    room for; whether it makes sense is checked where it is appended.
    """

    def __cinit__(
        self,
        uint8_t type,
        uint64_t inode=0,
        uint64_t offset=0,
        uint64_t value=0,
        uint32_t mode=0,
        uint32_t uid=0,
        uint32_t gid=0,
        mtime_ns=0,
        bytes name=b"",
        bytes payload=b"",
    ):
        if name is None or payload is None:
            raise TypeError("the name and the payload of a record are bytes")
        if len(name) > 0xFFFF or len(name) + len(payload) > LS_LOG_MAX_PAYLOAD:
            raise OverflowError(f"a name of {len(name)} and a payload of {len(payload)} bytes do not fit a record")
        memset(&self.fields, 0, sizeof(self.fields))
        self.fields.type = type
        self.fields.inode = inode
        self.fields.offset = offset
        self.fields.value = value
        self.fields.mode = mode
        self.fields.uid = uid
        self.fields.gid = gid
        self.fields.mtime_seconds, self.fields.mtime_nanoseconds = divmod(mtime_ns, 1_000_000_000)
        self.fields.name_length = len(name)
        self.fields.payload_length = len(name) + len(payload)
        self.name = name
        self.payload = payload
        self.payload_length = self.fields.payload_length

    @property
    def type(self):
        """One of `WRITE` to `EXTENTS`."""
        return self.fields.type

    @property
    def inode(self):
        """The number of the inode that changes."""
        return self.fields.inode

    @property
    def offset(self):
        """Bytes into the file."""
        return self.fields.offset

    @property
    def value(self):
        """A length or size in bytes, an inode's number, a device, a sum of `SET_*`, or a log's number."""
        return self.fields.value

    @property
    def mode(self):
        """As `st_mode`; in `ATTRIBUTES` without the type."""
        return self.fields.mode

    @property
    def uid(self):
        """The owner."""
        return self.fields.uid

    @property
    def gid(self):
        """The group."""
        return self.fields.gid

    @property
    def mtime_ns(self):
        """Nanoseconds since the epoch."""
        return <object>self.fields.mtime_seconds * 1_000_000_000 + self.fields.mtime_nanoseconds

    @property
    def more(self):
        """The next record belongs to the same operation."""
        return bool(self.fields.flags & LS_LOG_MORE)

    def _key(self):
        return (
            self.type, self.inode, self.offset, self.value, self.mode, self.uid, self.gid, self.mtime_ns, self.name,
            self.payload,
        )

    def __eq__(self, other):
        return self._key() == (<Record>other)._key() if isinstance(other, Record) else NotImplemented

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        names = ("type", "inode", "offset", "value", "mode", "uid", "gid", "mtime_ns", "name", "payload")
        shown = (f"{name}={value!r}" for name, value in zip(names, self._key()) if value or name == "type")
        return f"Record({', '.join(shown)})"


class Header:
    """The header of a log: its own id, that of the log it goes on from (and at how many bytes of it), and the image."""

    __slots__ = ("base_id", "base_length", "chain_id", "id")

    def __init__(self, id, chain_id, base_id=NO_BASE, base_length=0):
        self.id = id
        self.chain_id = chain_id
        self.base_id = base_id
        self.base_length = base_length

    def pack(self):
        """The HEADER_BYTES bytes to begin the file with. Raises `InvalidInput` for ids of other lengths, or half a base."""
        cdef ls_log_header header
        cdef ls_error err
        cdef const uint8_t[::1] field
        memset(&header, 0, sizeof(header))
        memcpy(header.magic, LS_LOG_MAGIC, 8)
        header.version = LS_LOG_VERSION
        header.base_length = self.base_length
        if len(self.id) != 16 or len(self.base_id) != 16 or len(self.chain_id) != 32:
            raise InvalidInput("a log's id and that of its base are 16 bytes, the image's chain_id 32")
        field = self.id
        memcpy(header.id, &field[0], 16)
        field = self.base_id
        memcpy(header.base_id, &field[0], 16)
        field = self.chain_id
        memcpy(header.chain_id, &field[0], 32)
        if self.id == NO_BASE or (self.base_id == NO_BASE) != (self.base_length == 0):
            raise InvalidInput("a log has an id other than zeros, and a base both an id and a length")
        ls_log_seal_header(&header)
        return PyBytes_FromStringAndSize(<char *>&header, sizeof(header))


cdef class LogReader:
    """The records of whole operations of a log, in order: an iterator of `Record`.

    Opening checks everything up to the first record that is incomplete or damaged, in one pass with the GIL released.
    `end` is where the last whole operation ends, `reason` why there, `later` where the next whole record is behind a damaged
    one, 0 for none.
    """

    cdef readonly object header
    cdef readonly uint64_t end
    cdef readonly uint64_t later
    cdef readonly str reason
    cdef Py_buffer view
    cdef uint64_t position

    def __cinit__(self, data, uint64_t checked=0):
        """Read a log that begins with the bytes `data` (an mmap, of which nothing may be cut off meanwhile).

        The data of WRITE records that end at byte `checked` or before is not compared with its checksum: give the length
        at which the log was known to be whole on the disk. Raises `CorruptError` for a damaged header, for a record whose
        checksum holds but that makes no sense, and for one that is damaged though a later one says that it was on the disk (a
        crash does neither); `Unsupported` for a newer version.
        """
        cdef ls_log_header header
        cdef ls_log_scan scan
        cdef ls_error err
        cdef int status
        PyObject_GetBuffer(data, &self.view, PyBUF_SIMPLE)
        with nogil:
            status = ls_log_find_end(<const uint8_t *>self.view.buf, <size_t>self.view.len, checked, &scan, &err)
        check(status, &err)
        check(ls_log_read_header(<const uint8_t *>self.view.buf, <size_t>self.view.len, &header, &err), &err)
        self.header = Header(
            header.id[:16], header.chain_id[:32], header.base_id[:16], header.base_length
        )
        self.end = scan.end
        self.later = scan.later
        self.reason = scan.reason.decode()
        self.position = sizeof(header)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def __iter__(self):
        return self

    def __next__(self):
        """The next record. Raises `CorruptError` where the log changed since it was opened."""
        cdef Record record = Record.__new__(Record, 0)
        cdef const char *payload
        cdef ls_error err
        if self.position >= self.end:
            raise StopIteration
        record.payload_position = self.position + sizeof(ls_log_record)
        check(ls_log_next(<const uint8_t *>self.view.buf, self.end, &self.position, &record.fields, &err), &err)
        record.payload_length = record.fields.payload_length
        if record.fields.type != LS_LOG_WRITE:
            payload = <const char *>self.view.buf + record.payload_position
            record.name = payload[:record.fields.name_length]
            record.payload = payload[record.fields.name_length : record.payload_length]
        return record
