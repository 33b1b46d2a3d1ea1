from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from layerstore._core.index cimport ls_buffer
from layerstore._core.status cimport ls_error


cdef extern from "buffer.h" nogil:
    int ls_buffer_reserve(ls_buffer *buffer, size_t extra, ls_error *err)
    void ls_buffer_free(ls_buffer *buffer)


cdef extern from "tar_writer.h" nogil:
    struct ls_tar_bytes:
        const uint8_t *bytes
        size_t length

    struct ls_tar_xattr:
        ls_tar_bytes name
        ls_tar_bytes value

    enum ls_tar_type:
        LS_TAR_REGULAR
        LS_TAR_HARDLINK
        LS_TAR_SYMLINK
        LS_TAR_CHAR
        LS_TAR_BLOCK
        LS_TAR_DIRECTORY
        LS_TAR_FIFO

    struct ls_tar_entry:
        ls_tar_type type
        uint32_t mode, uid, gid
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds
        uint32_t device_major, device_minor
        uint64_t size
        ls_tar_bytes path, link
        const ls_tar_xattr *xattrs
        size_t xattr_count

    struct ls_tar_writer:
        ls_buffer out

    int ls_tar_write_entry(ls_tar_writer *writer, const ls_tar_entry *entry, ls_error *err)
    int ls_tar_write_opaque(ls_tar_writer *writer, ls_tar_bytes directory, ls_error *err)
    int ls_tar_write_whiteout(ls_tar_writer *writer, ls_tar_bytes path, ls_error *err)
    int ls_tar_write_data(ls_tar_writer *writer, const void *bytes, size_t length, ls_error *err)
    int ls_tar_write_data_end(ls_tar_writer *writer, ls_error *err)
    int ls_tar_write_end(ls_tar_writer *writer, ls_error *err)


cdef class TarWriter:
    cdef ls_tar_writer writer
