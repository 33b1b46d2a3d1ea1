"""File operations that Python does not have (csrc/base/files.h)."""

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from layerstore._core.status cimport check, ls_error

from layerstore._core.status import InvalidInput

cdef extern from "base/files.h" nogil:
    struct ls_range:
        uint64_t offset
        uint64_t length
    struct ls_mapping:
        const uint8_t *bytes
        size_t length
    int ls_punch_holes(int fd, const ls_range *ranges, size_t n, ls_error *err)
    int ls_map(int fd, ls_mapping *mapping, ls_error *err)
    void ls_unmap(ls_mapping *mapping)


def punch_holes(int fd, const uint8_t[::1] ranges not None):
    """Give the blocks of ranges of a file back; they read as zeros then and the file's size stays.

    `ranges` holds a little-endian (u64 offset, u64 length) for each, bytes. Raises `Unsupported` where the file system
    cannot, `OSError`. Source: fallocate(2).
    """
    cdef ls_error err
    cdef int status
    cdef size_t n = ranges.shape[0] // 16
    if ranges.shape[0] % 16:
        raise InvalidInput(f"ranges are 16 bytes each, which {ranges.shape[0]} bytes are not")
    if not n:
        return
    with nogil:
        status = ls_punch_holes(fd, <const ls_range *>&ranges[0], n, &err)
    check(status, &err)


def copy_ranges(const uint8_t[::1] source not None, ranges):
    """Copies of ranges of a buffer, such as a mapped file, as a list of bytes. The GIL is released meanwhile.

    `ranges` is a sequence of (offset, length), bytes. Raises `InvalidInput` for one that the buffer does not have.
    """
    cdef list copies = []
    cdef Py_ssize_t i, n = len(ranges)
    cdef const uint8_t *start = &source[0] if source.shape[0] else NULL
    cdef ls_range *c_ranges = <ls_range *> malloc((n + 1) * sizeof(ls_range))
    cdef char **to = <char **> malloc((n + 1) * sizeof(char *))

    try:
        if c_ranges == NULL or to == NULL:
            raise MemoryError()
        for i, (offset, length) in enumerate(ranges):
            if offset < 0 or length < 0 or offset + length > source.shape[0]:
                raise InvalidInput(f"{length} bytes at {offset} of a buffer of {source.shape[0]}")
            copy = PyBytes_FromStringAndSize(NULL, length)
            copies.append(copy)
            c_ranges[i] = ls_range(offset, length)
            to[i] = PyBytes_AS_STRING(copy)
        with nogil:
            for i in range(n):
                memcpy(to[i], start + c_ranges[i].offset, c_ranges[i].length)
        return copies
    finally:
        free(c_ranges)
        free(to)


cdef class MappedFile:
    """An open file in memory, read-only, by the buffer protocol: `memoryview(mapped)`. The file may be closed then.

    Unlike mmap.mmap it keeps no descriptor. It must not be cut short while it is mapped. Raises `OSError`.
    """

    cdef ls_mapping mapping

    def __cinit__(self, int fd):
        cdef ls_error err
        check(ls_map(fd, &self.mapping, &err), &err)

    def __dealloc__(self):
        ls_unmap(&self.mapping)

    def __len__(self):
        return self.mapping.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef const uint8_t *bytes = self.mapping.bytes if self.mapping.bytes != NULL else <const uint8_t *>b""
        PyBuffer_FillInfo(view, self, <void *>bytes, self.mapping.length, 1, flags)
