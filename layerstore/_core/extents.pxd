from libc.stddef cimport size_t
from libc.stdint cimport uint32_t, uint64_t

from layerstore._core.status cimport ls_error


cdef extern from "extent/extents.h" nogil:
    const uint64_t LS_EXTENT_ZERO
    const uint64_t LS_EXTENT_IMAGE
    const uint64_t LS_EXTENT_LOG_BYTES
    enum:
        LS_EXTENT_LOG_SHIFT
        LS_EXTENT_MAX_LOGS

    struct ls_piece:
        uint64_t start
        uint64_t length
        uint64_t source

    struct ls_extents:
        uint64_t size
        uint64_t count

    int ls_piece_check(const ls_piece *piece, ls_error *err)
    void ls_extents_free(ls_extents *map)
    int ls_extents_write(ls_extents *map, const ls_piece *piece, ls_error *err)
    int ls_extents_write_many(ls_extents *map, const ls_piece *pieces, size_t n, ls_error *err)
    int ls_extents_punch(ls_extents *map, uint64_t start, uint64_t length, ls_error *err)
    int ls_extents_truncate(ls_extents *map, uint64_t size, ls_error *err)
    int ls_extents_clone(ls_extents *clone, const ls_extents *map, ls_error *err)
    size_t ls_extents_lookup(
        const ls_extents *map, uint64_t start, uint64_t end, ls_piece *pieces, size_t capacity
    )
    uint32_t ls_extents_log_count(const ls_extents *map)
    void ls_extents_add_live(const ls_extents *map, uint64_t *live)


cdef class ExtentMap:
    cdef ls_extents map
    cdef readonly bint frozen
    # How often the map was changed: tells a batch that another thread was there meanwhile.
    cdef uint64_t changes

    cdef int begin_change(self) except -1
    cdef int check_piece(self, const ls_piece *piece) except -1
    cdef int put(self, const ls_piece *piece) except -1
    cdef list pieces(self, uint64_t start, uint64_t end)


cdef uint64_t unsigned(long long number, str what) except? 0xFFFFFFFFFFFFFFFF
