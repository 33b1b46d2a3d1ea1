from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint64_t


cdef extern from "buffer.h" nogil:
    struct ls_buffer:
        uint8_t *bytes
        size_t length
        size_t capacity


cdef class Content:
    cdef int fd
    cdef uint64_t offset
    cdef uint64_t size


cdef class LogFile:
    cdef int fd
    cdef readonly uint64_t length
    cdef ls_buffer gathered  # what comes after `length`
