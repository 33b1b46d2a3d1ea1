from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from layerstore._core.buffer cimport ls_bytes, ls_xattr
from layerstore._core.status cimport ls_error


cdef extern from "tar/tar.h" nogil:
    struct ls_tar_limits:
        size_t path_bytes
        size_t name_bytes
        size_t extended_bytes
        size_t sparse_extents
        uint64_t file_bytes
        uint64_t entries
        bint nameless

    const ls_tar_limits ls_tar_default_limits

    enum ls_tar_type:
        LS_TAR_REGULAR
        LS_TAR_HARDLINK
        LS_TAR_SYMLINK
        LS_TAR_CHAR
        LS_TAR_BLOCK
        LS_TAR_DIRECTORY
        LS_TAR_FIFO

    struct ls_tar_extent:
        uint64_t offset
        uint64_t length

    struct ls_tar_entry:
        ls_tar_type type
        uint32_t mode, uid, gid
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds
        uint32_t device_major, device_minor
        uint64_t size, stored_size
        ls_bytes path, link
        const ls_xattr *xattrs
        size_t xattr_count
        const ls_tar_extent *extents
        size_t extent_count
        int is_sparse
        uint64_t position

    enum ls_tar_event_kind:
        LS_TAR_NEED_MORE
        LS_TAR_RAW
        LS_TAR_ENTRY
        LS_TAR_DATA

    struct ls_tar_event:
        ls_tar_event_kind kind
        ls_bytes bytes
        const ls_tar_entry *entry

    struct ls_tar:
        pass

    int ls_tar_new(ls_tar **tar, const ls_tar_limits *limits, ls_error *err)
    void ls_tar_free(ls_tar *tar)
    void ls_tar_feed(ls_tar *tar, const void *bytes, size_t length)
    int ls_tar_next(ls_tar *tar, ls_tar_event *event, ls_error *err)
    int ls_tar_finish(ls_tar *tar, ls_error *err)


cdef inline ls_tar_limits tar_limits(path_bytes, name_bytes, extended_bytes, sparse_extents, file_bytes,
                                     entries) except *:
    """The default limits, but for those that are not None."""
    cdef ls_tar_limits limits = ls_tar_default_limits

    if path_bytes is not None:
        limits.path_bytes = path_bytes
    if name_bytes is not None:
        limits.name_bytes = name_bytes
    if extended_bytes is not None:
        limits.extended_bytes = extended_bytes
    if sparse_extents is not None:
        limits.sparse_extents = sparse_extents
    if file_bytes is not None:
        limits.file_bytes = file_bytes
    if entries is not None:
        limits.entries = entries
    return limits
