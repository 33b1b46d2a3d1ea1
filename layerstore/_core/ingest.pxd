from libc.stdint cimport uint8_t, uint32_t, uint64_t

from layerstore._core.hashing cimport ls_b3_kernel
from layerstore._core.status cimport ls_error


cdef extern from "content/digests.h" nogil:
    struct ls_location:
        uint32_t pack
        uint32_t slot

    struct ls_digest_record:
        pass

    struct ls_digests:
        uint32_t count
        uint32_t slot_count
        uint64_t *slots
        uint64_t key[2]

    const uint32_t LS_LOCATION_OBJECT
    const uint32_t LS_LOCATION_NONE
    int ls_digests_init(ls_digests *digests, ls_error *err)
    void ls_digests_free(ls_digests *digests)
    int ls_digests_extend(ls_digests *digests, const ls_digest_record *records, size_t count, ls_error *err)
    void ls_digests_find_many(const ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                              uint32_t *numbers)
    size_t ls_digests_mark_many(const ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n, uint8_t *marks,
                                uint32_t *positions)
    void ls_digests_locate_many(const ls_digests *digests, const uint8_t *bytes, size_t stride, size_t n,
                                ls_location *locations)


cdef extern from "content/contents.h" nogil:
    struct ls_pack_slot:
        pass

    struct ls_contents:
        pass

    struct ls_contents_counts:
        uint64_t new_count
        uint64_t new_bytes
        uint64_t known_count
        uint64_t known_bytes

    int ls_contents_new(ls_contents **contents, int staging, int pack, const ls_digests *digests,
                        size_t pack_threshold, const ls_b3_kernel *kernel, ls_error *err)
    void ls_contents_free(ls_contents *contents)
    void ls_contents_expect_clones(ls_contents *contents, int expected)
    int ls_contents_put_many(ls_contents *contents, const uint8_t *const *inputs, const size_t *length, size_t n,
                             uint8_t *out, ls_error *err)
    int ls_contents_stream_begin(ls_contents *contents, ls_error *err)
    int ls_contents_stream_data(ls_contents *contents, const uint8_t *bytes, size_t length, ls_error *err)
    int ls_contents_stream_end(ls_contents *contents, uint8_t *digest, ls_error *err)
    int ls_contents_publish(ls_contents *contents, int objects, uint32_t pack, ls_error *err)
    ls_contents_counts ls_contents_counts_ "ls_contents_counts" (const ls_contents *contents)
    const ls_digest_record *ls_contents_records(const ls_contents *contents, uint32_t *count)
    const ls_pack_slot *ls_contents_slots(const ls_contents *contents, uint32_t *count, uint64_t *bytes)
