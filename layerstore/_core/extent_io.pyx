"""Where contents and logs are, and appending to logs, over csrc/extent/extent_io.h. Reading is in extent_file.pyx."""

import os
from _thread import allocate_lock

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from layerstore._core.buffer cimport ls_buffer_append, ls_buffer_free, ls_buffer_reserve
from layerstore._core.extents cimport (
    LS_EXTENT_LOG_BYTES,
    LS_EXTENT_LOG_SHIFT,
    LS_EXTENT_MAX_LOGS,
    LS_EXTENT_ZERO,
    ExtentMap,
    ls_piece,
    unsigned,
)
from layerstore._core.log cimport (
    LS_LOG_MAX_PAYLOAD,
    LS_LOG_MORE,
    LS_LOG_SYNCED,
    LS_LOG_WRITE,
    Record,
    ls_log_check,
    ls_log_padding,
    ls_log_record,
    ls_log_record_bytes,
    ls_log_seal,
)
from layerstore._core.status cimport check, ls_error

from layerstore._core.status import InvalidInput

cdef extern from "extent/extent_io.h" nogil:
    int ls_log_append(
        int fd,
        uint64_t position,
        const uint8_t *records,
        size_t length,
        const ls_log_record *record,
        const uint8_t *payload,
        ls_error *err,
    )

cdef enum:
    GATHERED_BYTES = 1 << 20
    # Data that is written as it is: copying it first would cost more than the system call that it saves.
    DIRECT_BYTES = 128 << 10


cdef class Content:
    """Where a content of the image is: `size` bytes at `offset` of the file of descriptor `fd`, which is borrowed."""

    def __cinit__(self, int fd, uint64_t offset, uint64_t size):
        self.fd = fd
        self.offset = offset
        self.size = size


cdef class LogFile:
    """A log to read from: the first `length` bytes of the file of descriptor `fd`, which is borrowed."""

    def __init__(self, int fd, uint64_t length):
        self.fd = fd
        self.length = length

    def __dealloc__(self):
        ls_buffer_free(&self.gathered)


cdef class LogWriter(LogFile):
    """Appends to a log that is `length` bytes long and has this `id` (16 bytes); `number` is the one that sources name it by.

    Data is gathered in memory up to 1 MiB and readable at once; anything else is appended at once, after it. Safe for many
    threads. Raises `OSError` where the file cannot be written (a full disk): the log's length is what it was before the
    call, what was gathered before stays gathered and readable, and the next call tries it again.
    """

    cdef object lock
    cdef uint8_t id[16]
    cdef uint64_t source
    # Where a record says that all before it is on the disk.
    cdef uint64_t synced

    def __init__(self, int fd, uint64_t length, bytes id not None, uint64_t number):
        LogFile.__init__(self, fd, length)
        if len(id) != 16 or length % 8 or number >= LS_EXTENT_MAX_LOGS:
            raise InvalidInput("a log has an id of 16 bytes, a length that is a multiple of 8, and a number below 65535")
        self.lock = allocate_lock()
        memcpy(self.id, <const uint8_t *>PyBytes_AS_STRING(id), 16)
        self.source = number << LS_EXTENT_LOG_SHIFT

    @property
    def end(self):
        """Bytes with those that are gathered."""
        return self.length + self.gathered.length

    def write(self, ExtentMap extents not None, uint64_t inode, long long offset, data, long long mtime_ns):
        """Write `data` at byte `offset` of a file: a WRITE record (several beyond MAX_PAYLOAD_BYTES), and into its map.

        Raises `OverflowError`, `ValueError` and `Conflict` as of `ExtentMap.write`, before anything is written. Where only a
        part of several records could be written, that part is in the map when `OSError` is raised.
        """
        cdef Py_buffer view
        cdef ls_piece piece
        cdef ls_log_record record
        cdef uint64_t done = 0
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            piece = ls_piece(unsigned(offset, "an offset"), <uint64_t>view.len, LS_EXTENT_ZERO)
            extents.check_piece(&piece)
            memset(&record, 0, sizeof(record))
            record.type = LS_LOG_WRITE
            record.inode = inode
            record.mtime_seconds = mtime_ns // 1_000_000_000
            record.mtime_nanoseconds = <uint32_t>(mtime_ns % 1_000_000_000)
            with self.lock:
                while done < <uint64_t>view.len:
                    record.offset = <uint64_t>offset + done
                    record.payload_length = <uint32_t>min(<uint64_t>view.len - done, <uint64_t>LS_LOG_MAX_PAYLOAD)
                    self.write_record(extents, &record, <const uint8_t *>view.buf + done)
                    done += record.payload_length
        finally:
            PyBuffer_Release(&view)

    cdef int write_record(self, ExtentMap extents, ls_log_record *record, const uint8_t *data) except -1:
        cdef size_t length = record.payload_length
        cdef ls_piece piece = ls_piece(record.offset, length, 0)
        if length < DIRECT_BYTES and self.gathered.length + ls_log_record_bytes(length) > GATHERED_BYTES:
            self.flush_gathered(NULL, NULL)
        piece.source = self.source_after_header()
        if length >= DIRECT_BYTES:
            self.write_directly(extents, record, data, &piece)
            return 0
        self.reserve(length)
        extents.put(&piece)
        self.gather(record, data)
        return 0

    cdef int write_directly(
        self, ExtentMap extents, ls_log_record *record, const uint8_t *data, const ls_piece *piece
    ) except -1:
        cdef uint64_t before = self.length + self.gathered.length
        self.flush_gathered(record, data)
        try:
            extents.put(piece)
        except BaseException:
            # Or it would be in the file when the log is read the next time.
            self.length = before
            os.ftruncate(self.fd, before)
            raise
        return 0

    cdef uint64_t source_after_header(self) except? 0:
        cdef uint64_t at = self.length + self.gathered.length + sizeof(ls_log_record)
        if at >= LS_EXTENT_LOG_BYTES:
            raise InvalidInput("this log is full: it has 2^48 bytes; compact the layer")
        return self.source | at

    cdef int reserve(self, size_t payload_length) except -1:
        cdef ls_error err
        return check(ls_buffer_reserve(&self.gathered, ls_log_record_bytes(payload_length), &err), &err)

    cdef void gather(self, ls_log_record *record, const uint8_t *payload):
        """Append a record to what is gathered, where there is room."""
        cdef size_t length = record.payload_length
        self.seal(record, payload)
        ls_buffer_append(&self.gathered, record, sizeof(ls_log_record), NULL)
        ls_buffer_append(&self.gathered, payload, length, NULL)
        ls_buffer_append(&self.gathered, NULL, ls_log_padding(length), NULL)

    cdef void seal(self, ls_log_record *record, const uint8_t *payload) noexcept nogil:
        """Complete the record that will stand behind what is gathered."""
        cdef uint64_t position = self.length + self.gathered.length
        record.flags &= ~LS_LOG_SYNCED
        if position == self.synced:
            record.flags |= LS_LOG_SYNCED
        ls_log_seal(record, payload, self.id, position)

    cdef int flush_gathered(self, ls_log_record *record, const uint8_t *data) except -1:
        """Append what was gathered, and that record if there is one."""
        cdef ls_error err
        cdef int status
        cdef uint64_t end = self.length + self.gathered.length
        if record == NULL and not self.gathered.length:
            return 0
        with nogil:
            if record != NULL:
                self.seal(record, data)
                end += ls_log_record_bytes(record.payload_length)
            status = ls_log_append(self.fd, self.length, self.gathered.bytes, self.gathered.length, record, data, &err)
        check(status, &err)
        self.length = end
        self.gathered.length = 0
        if self.gathered.capacity > 2 * GATHERED_BYTES:
            ls_buffer_free(&self.gathered)
        return 0

    def append(self, records not None):
        """Append what was gathered and then one operation, all of `records` or none of them. Returns the new length, bytes.

        Raises `InvalidInput` for a record that makes no sense, naming it.
        """
        cdef size_t before
        with self.lock:
            before = self.gathered.length
            try:
                self.gather_records(tuple(records))
                self.flush_gathered(NULL, NULL)
            except BaseException:
                self.gathered.length = before
                raise
            return self.length

    cdef int gather_records(self, tuple records) except -1:
        cdef Record record
        cdef ls_log_record fields
        cdef ls_error err
        cdef const uint8_t *payload
        cdef Py_ssize_t left = len(records)
        for record in records:
            left -= 1
            joined = record.name + record.payload if record.name else record.payload
            payload = <const uint8_t *>PyBytes_AS_STRING(joined)
            fields = record.fields
            if <size_t>len(joined) != fields.payload_length:
                raise InvalidInput(f"the data of {record!r}, which was read, is not in it")
            fields.flags = LS_LOG_MORE if left else 0
            check(ls_log_check(&fields, payload, &err), &err)
            self.reserve(fields.payload_length)
            self.gather(&fields, payload)
        return 0

    def flush(self):
        """Append what was gathered. Returns the length, bytes."""
        with self.lock:
            self.flush_gathered(NULL, NULL)
            return self.length

    def sync(self):
        """`flush`, and have all of it durable (fdatasync(2)). Returns the length, bytes."""
        length = self.flush()
        os.fdatasync(self.fd)
        with self.lock:
            self.synced = max(self.synced, length)
        return length
