"""File operations that Python does not have (csrc/files.h)."""

from libc.stdint cimport uint8_t

from layerstore._core.status cimport check, ls_error

from layerstore._core.status import InvalidInput

cdef extern from "files.h" nogil:
    struct ls_range:
        pass
    int ls_punch_holes(int fd, const ls_range *ranges, size_t n, ls_error *err)


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
