from libc.stdint cimport uint8_t

from layerstore._core.status cimport ls_error


cdef extern from "base/buffer.h" nogil:
    struct ls_buffer:
        uint8_t *bytes
        size_t length
        size_t capacity

    int ls_buffer_reserve(ls_buffer *buffer, size_t extra, ls_error *err)
    int ls_buffer_append(ls_buffer *buffer, const void *bytes, size_t length, ls_error *err)
    void ls_buffer_free(ls_buffer *buffer)


cdef extern from "base/bytes.h" nogil:
    struct ls_bytes:
        const uint8_t *bytes
        size_t length

    struct ls_xattr:
        ls_bytes name
        ls_bytes value
