from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from layerstore._core.buffer cimport ls_buffer
from layerstore._core.status cimport ls_error


cdef extern from "index/index.h" nogil:
    const uint32_t LS_NONE

    enum ls_index_kind:
        LS_INDEX_LAYER
        LS_INDEX_CHAIN

    enum ls_record_flags:
        LS_RECORD_WHITEOUT
        LS_RECORD_OPAQUE
        LS_RECORD_IMPLIED
        LS_RECORD_LOWER_LINK

    struct ls_record:
        uint32_t path
        uint16_t path_length
        uint16_t name_start
        uint32_t parent
        uint32_t mode
        uint32_t uid
        uint32_t gid
        uint64_t size
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds
        uint32_t data
        uint32_t count
        uint32_t inode
        uint32_t xattrs
        uint16_t flags
        uint16_t layer

    struct ls_content:
        uint8_t digest[32]
        uint64_t size

    struct ls_index_header:
        uint32_t kind
        uint32_t record_count
        uint32_t content_count
        uint32_t layer_count
        uint8_t hash_key[16]

    struct ls_index:
        const ls_index_header *header
        const ls_record *records
        const ls_content *contents
        const uint8_t *heap

    struct ls_xattr_cursor:
        const char *name
        size_t name_length
        const uint8_t *value
        size_t value_length

    struct ls_path:
        const char *bytes
        size_t length

    int ls_index_open(ls_index *index, const void *bytes, size_t length, ls_error *err)
    int ls_index_lookup(const ls_index *index, const char *path, size_t length, uint32_t *record, ls_error *err)
    int ls_index_find_many(const ls_index *index, const ls_path *paths, size_t n, uint32_t *records, ls_error *err)
    int ls_index_record(const ls_index *index, uint32_t number, const ls_record **record, ls_error *err)
    int ls_index_name(const ls_index *index, const ls_record *record, const char **name, size_t *length, ls_error *err)
    int ls_index_children(const ls_index *index, uint32_t number, uint32_t *first, uint32_t *count, ls_error *err)
    int ls_index_string(const ls_index *index, uint32_t offset, uint64_t length, const char **string, ls_error *err)
    int ls_index_xattr_next(const ls_index *index, uint32_t block, ls_xattr_cursor *cursor, ls_error *err)


cdef extern from "index/index_verify.h" nogil:
    int ls_index_verify(const ls_index *index, ls_error *err)
    int ls_index_verify_digest(const ls_index *index, ls_error *err)


cdef class Index:
    # Valid as long as the object: `_view` keeps the bytes alive.
    cdef ls_index index
    cdef const uint8_t[::1] _view

    cdef const ls_record *_record(self, number) except NULL
    cdef int _check_content(self, uint32_t number) except -1
    cdef bytes _string(self, uint32_t offset, uint64_t length)
    cdef dict _xattrs(self, uint32_t block)


cdef class Written:
    # Filled by the C core, once, before anyone asks for a memoryview.
    cdef ls_buffer buffer
