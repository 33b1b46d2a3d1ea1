"""Reading files of writable layers through their extent maps, over csrc/extent/extent_io.h."""

import errno
import io
import os

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.number cimport PyNumber_Index
from libc.stddef cimport size_t
from libc.stdint cimport INT64_MAX, uint8_t, uint64_t
from libc.stdio cimport SEEK_CUR, SEEK_END, SEEK_SET
from libc.string cimport memcpy

from layerstore._core.extent_io cimport Content, LogFile
from layerstore._core.extents cimport (
    LS_EXTENT_IMAGE,
    LS_EXTENT_LOG_BYTES,
    LS_EXTENT_LOG_SHIFT,
    LS_EXTENT_ZERO,
    ExtentMap,
    ls_extents_lookup,
    ls_piece,
    unsigned,
)
from layerstore._core.status cimport check, ls_error

from layerstore._core.status import CorruptError

cdef extern from "extent/extent_io.h" nogil:
    enum:
        LS_READ_ZEROS

    struct ls_read:
        int fd
        uint64_t offset
        uint8_t *into
        size_t length

    int ls_read_all(const ls_read *reads, size_t n, ls_error *err)

cdef enum:
    PIECES = 64


cdef int plan_log(LogFile log, const ls_piece *piece, ls_read *read) except -1:
    """Copy what of a piece is still gathered in memory; plan to read the rest. Returns whether there is a rest."""
    cdef uint64_t offset = piece.source & (LS_EXTENT_LOG_BYTES - 1), length = piece.length
    cdef uint64_t filed = min(length, log.length - offset) if offset < log.length else 0
    cdef uint64_t at = offset + filed - log.length
    if filed < length and (at > log.gathered.length or length - filed > log.gathered.length - at):
        raise CorruptError(
            f"a file needs {length} bytes at byte {offset} of a log that has {log.length + log.gathered.length} bytes; "
            f"restore the log from a copy of the store"
        )
    if filed < length:
        memcpy(read.into + filed, log.gathered.bytes + at, <size_t>(length - filed))
    read.fd = log.fd
    read.offset = offset
    read.length = <size_t>filed
    return filed > 0


cdef int plan(const ls_piece *piece, list logs, Content content, ls_read *read) except -1:
    """Plan to read one piece to `read.into`. Returns whether something is to be read."""
    cdef uint64_t number = piece.source >> LS_EXTENT_LOG_SHIFT
    read.length = <size_t>piece.length
    if piece.source == LS_EXTENT_ZERO:
        read.fd = LS_READ_ZEROS
        return 1
    if piece.source != LS_EXTENT_IMAGE:
        if number >= <uint64_t>len(logs):
            raise CorruptError(f"a file needs log {number} of {len(logs)}; restore the logs from a copy of the store")
        return plan_log(<LogFile?>logs[number], piece, read)
    if content is None or piece.start + piece.length > content.size:
        raise CorruptError(
            f"a file needs {piece.length} bytes at byte {piece.start} of the image's content, which has "
            f"{0 if content is None else content.size} bytes; restore the log from a copy of the store"
        )
    read.fd = content.fd
    read.offset = content.offset + piece.start
    return 1


cdef Py_ssize_t fill(ExtentMap extents, list logs, Content content, long long position, buffer) except -1:
    """`read`."""
    cdef ls_piece[PIECES] pieces
    cdef ls_read[PIECES] reads
    cdef Py_buffer view
    cdef ls_error err
    cdef int status
    cdef size_t n, i, planned
    cdef uint64_t first = unsigned(position, "an offset"), at = first, end
    PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
    try:
        end = first + <uint64_t>view.len
        while at < end:
            n = ls_extents_lookup(&extents.map, at, end, pieces, PIECES)
            planned = 0
            for i in range(n):
                reads[planned].into = <uint8_t *>view.buf + (pieces[i].start - first)
                planned += plan(&pieces[i], logs, content, &reads[planned])
            if not n:
                break
            at = pieces[n - 1].start + pieces[n - 1].length
            if planned:
                with nogil:
                    status = ls_read_all(reads, planned, &err)
                check(status, &err)
        return <Py_ssize_t>(at - first)
    finally:
        PyBuffer_Release(&view)


def read(ExtentMap extents not None, list logs not None, Content content, long long position, buffer):
    """Fill `buffer` with the file's bytes from `position` on; returns how many, less at the end of the file.

    `logs` are the logs by number. The GIL is released for what is read from files. Raises `CorruptError` where an extent
    names bytes that a log or the content does not have; `OSError`; `InvalidInput` for a negative position.
    """
    return fill(extents, logs, content, position, buffer)


cdef class Cursor:
    """A position in a file of a tree (`layerstore.extents.tree.Tree`), moved and read at as that of a raw file of `io`.

    It is in C and not in `LayerFile`, as what Python does for a block would take longer than the kernel does for one that
    is cached. Every method raises as `check`. Safe for many threads.
    """

    cdef public long long position  # bytes
    cdef bint readable
    cdef bint closed
    cdef object tree
    cdef object number
    cdef object name
    cdef object table
    cdef list logs
    # The inode of a table whose own level has none: the same until the own level has one or `levels` is another tuple.
    cdef object below
    cdef object levels
    # Of a file of the image: the map that it has until somebody writes to it, its content, and what keeps that open.
    cdef ExtentMap untouched
    cdef Content content
    cdef object descriptor

    def __init__(self, tree not None, number not None, name, bint readable):
        """At the beginning of the inode of that number; `name` is for messages."""
        self.tree = tree
        self.number = number
        self.name = name
        self.readable = readable
        self.table = tree.table
        self.logs = tree.logs.files

    cpdef check(self, bint allowed=True, str what=""):
        """Raise `ValueError` once it is closed, `io.UnsupportedOperation` unless `allowed`, `OSError` with ESTALE once the
        tree is closed."""
        if self.closed:
            raise ValueError("I/O operation on closed file")
        if not allowed:
            raise io.UnsupportedOperation(f"File not open for {what}")
        if self.tree.closed:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.name)

    def close(self):
        """Have every call raise from now on, and keep nothing open any more."""
        self.closed = True
        self.tree = self.table = self.below = self.levels = self.content = self.descriptor = None
        self.logs = None

    def seek(self, offset, int whence=SEEK_SET):
        """As `io.IOBase.seek`."""
        cdef long long start, distance = PyNumber_Index(offset)
        self.check()
        if whence == SEEK_SET:
            start = 0
        elif whence == SEEK_CUR:
            start = self.position
        elif whence == SEEK_END:
            start = self.inode(self.table).size
        else:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if distance < -start or distance > INT64_MAX - start:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self.position = start + distance
        return self.position

    def readinto(self, buffer):
        """Fill `buffer` from the position on and move that to behind what was read. Returns how many bytes."""
        cdef Py_ssize_t count = self.read(buffer, self.position)
        self.position += count
        return count

    def readinto_at(self, buffer, long long position):
        """Fill `buffer` from byte `position` on; that of this object stays. Returns how many bytes.

        Raises `CorruptError`, `OSError`, `InvalidInput` for a negative position.
        """
        return self.read(buffer, position)

    cdef Py_ssize_t read(self, buffer, long long position) except -1:
        # Another thread may close the file meanwhile: what is read from is kept here.
        cdef object inode, table = self.table, descriptor
        cdef list logs = self.logs
        cdef Content content
        cdef ExtentMap extents
        self.check(self.readable, "reading")
        inode = self.inode(table)
        extents = inode.extents
        if self.untouched is None:
            if inode.digest is not None:
                self.content, self.descriptor = table.image.content(inode.digest, inode.image_size)
            self.untouched = ExtentMap(inode.image_size)
        content, descriptor = self.content, self.descriptor
        if self.closed:
            self.check()
        return fill(self.untouched if extents is None else extents, logs, content, position, buffer)

    cdef object inode(self, table):
        """As `Table.get`."""
        cdef object inode = (<dict?>table.own).get(self.number)
        cdef object levels
        if inode is None:
            levels = table.levels
            if levels is not self.levels:
                self.below = table.get(self.number)
                self.levels = levels
            inode = self.below
        return inode
