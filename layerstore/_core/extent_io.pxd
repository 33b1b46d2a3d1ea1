from libc.stdint cimport uint64_t

from layerstore._core.buffer cimport ls_buffer


cdef class Content:
    cdef int fd
    cdef uint64_t offset
    cdef uint64_t size


cdef class LogFile:
    cdef int fd
    cdef readonly uint64_t length
    cdef ls_buffer gathered  # what comes after `length`
