"""The layer builder over a whole tar in memory: for tests, and the simplest use of csrc/tar/tar.h with csrc/index/layer.h."""

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset

from layerstore._core.buffer cimport ls_buffer, ls_buffer_append, ls_buffer_free, ls_bytes
from layerstore._core.hashing cimport (
    ls_b3_hasher,
    ls_b3_hasher_final,
    ls_b3_hasher_init,
    ls_b3_hasher_update,
    ls_b3_kernel,
    ls_b3_kernel_find,
)
from layerstore._core.index cimport LS_NONE, ls_content
from layerstore._core.status cimport LS_NO_MEMORY, LS_OK, check, ls_error
from layerstore._core.tar cimport (
    LS_TAR_DATA,
    LS_TAR_ENTRY,
    LS_TAR_NEED_MORE,
    LS_TAR_REGULAR,
    ls_tar,
    ls_tar_default_limits,
    ls_tar_entry,
    ls_tar_event,
    ls_tar_extent,
    ls_tar_feed,
    ls_tar_finish,
    ls_tar_free,
    ls_tar_new,
    ls_tar_next,
)


cdef extern from "base/status.h" nogil:
    int ls_fail(ls_error *err, int status, const char *format, ...)


cdef extern from "index/layer.h" nogil:
    struct ls_layer_builder
    int ls_layer_builder_new(ls_layer_builder **builder, ls_error *err)
    void ls_layer_builder_free(ls_layer_builder *builder)
    int ls_layer_builder_add(ls_layer_builder *builder, const ls_tar_entry *entry, uint32_t content, ls_error *err)
    int ls_layer_builder_finish(ls_layer_builder *builder, const uint8_t *hash_key, const ls_content *contents,
                                uint32_t content_count, ls_buffer *out, ls_error *err)


# The content being read: `done` logical bytes are hashed, the next stored byte is at extents[extent].offset + within.
cdef struct import_pass:
    ls_tar *tar
    ls_layer_builder *builder
    const ls_b3_kernel *kernel
    ls_b3_hasher hasher
    uint64_t size
    uint64_t done
    ls_tar_extent *extents
    size_t extent_count
    size_t extent
    uint64_t within
    ls_buffer contents
    uint32_t content_count
    ls_buffer index


cdef uint8_t[65536] _ZEROS


cdef void hash_hole(import_pass *self, uint64_t end) noexcept nogil:
    cdef uint64_t n
    while self.done < end:
        n = min(end - self.done, <uint64_t>sizeof(_ZEROS))
        ls_b3_hasher_update(&self.hasher, _ZEROS, n)
        self.done += n


cdef void hash_data(import_pass *self, ls_bytes data) noexcept nogil:
    cdef uint64_t n
    while data.length:
        n = data.length
        if self.extents != NULL:
            while self.within == self.extents[self.extent].length:
                self.extent += 1
                self.within = 0
            n = min(n, self.extents[self.extent].length - self.within)
            hash_hole(self, self.extents[self.extent].offset + self.within)
            self.within += n
        ls_b3_hasher_update(&self.hasher, data.bytes, n)
        self.done += n
        data.bytes += n
        data.length -= n


cdef int end_content(import_pass *self, ls_error *err) noexcept nogil:
    cdef ls_content content
    if not self.size:
        return LS_OK
    hash_hole(self, self.size)
    ls_b3_hasher_final(&self.hasher, content.digest)
    content.size = self.size
    self.size = 0
    return ls_buffer_append(&self.contents, &content, sizeof(content), err)


cdef int begin_entry(import_pass *self, const ls_tar_entry *entry, ls_error *err) noexcept nogil:
    cdef void *extents
    cdef uint32_t number = LS_NONE
    free(self.extents)
    self.extents = NULL
    if entry.type == LS_TAR_REGULAR and entry.size:
        number = self.content_count
        self.content_count += 1
        self.size = entry.size
        self.done = self.within = self.extent = 0
        ls_b3_hasher_init(&self.hasher, self.kernel)
        if entry.extent_count:
            extents = realloc(NULL, entry.extent_count * sizeof(ls_tar_extent))
            if extents == NULL:
                return ls_fail(err, LS_NO_MEMORY, "out of memory for the extents of a sparse file")
            memcpy(extents, entry.extents, entry.extent_count * sizeof(ls_tar_extent))
            self.extents = <ls_tar_extent *>extents
    return ls_layer_builder_add(self.builder, entry, number, err)


cdef int walk(import_pass *self, const uint8_t *bytes, size_t length, const uint8_t *hash_key,
              ls_error *err) noexcept nogil:
    cdef ls_tar_event event
    cdef int status
    ls_tar_feed(self.tar, bytes, length)
    while True:
        status = ls_tar_next(self.tar, &event, err)
        if status or event.kind == LS_TAR_NEED_MORE:
            break
        if event.kind == LS_TAR_ENTRY:
            status = end_content(self, err)
            if not status:
                status = begin_entry(self, event.entry, err)
        elif event.kind == LS_TAR_DATA:
            hash_data(self, event.bytes)
        if status:
            break
    if not status:
        status = ls_tar_finish(self.tar, err)
    if not status:
        status = end_content(self, err)
    if not status:
        status = ls_layer_builder_finish(self.builder, hash_key, <ls_content *>self.contents.bytes, self.content_count,
                                         &self.index, err)
    return status


def build_layer(const uint8_t[::1] tar_bytes, bytes hash_key):
    """The index of one layer, and its contents, from its uncompressed tar (csrc/index/layer.h says by which rules).

    `hash_key` are the 16 bytes that key the index's slots. Returns the index's bytes (docs/format/index.md) and, in the
    tar's order, BLAKE3-256 and size in bytes of each non-empty regular file, as it reads (holes are zeros).

    Raises CorruptError, InvalidInput or LimitExceeded, naming the entry.
    """
    cdef import_pass state
    cdef ls_error err
    cdef int status
    cdef const uint8_t *bytes = &tar_bytes[0] if tar_bytes.shape[0] else NULL
    cdef size_t length = tar_bytes.shape[0]
    cdef const uint8_t *key = hash_key
    cdef const ls_content *contents
    if len(hash_key) != 16:
        raise ValueError(f"a hash key has 16 bytes, not {len(hash_key)}")
    memset(&state, 0, sizeof(state))
    try:
        check(ls_b3_kernel_find(NULL, &state.kernel, &err), &err)
        check(ls_tar_new(&state.tar, &ls_tar_default_limits, &err), &err)
        check(ls_layer_builder_new(&state.builder, &err), &err)
        with nogil:
            status = walk(&state, bytes, length, key, &err)
        check(status, &err)
        contents = <const ls_content *>state.contents.bytes
        return (
            PyBytes_FromStringAndSize(<const char *>state.index.bytes, state.index.length),
            [(contents[i].digest[:32], contents[i].size) for i in range(state.content_count)],
        )
    finally:
        ls_layer_builder_free(state.builder)
        ls_tar_free(state.tar)
        free(state.extents)
        ls_buffer_free(&state.contents)
        ls_buffer_free(&state.index)
