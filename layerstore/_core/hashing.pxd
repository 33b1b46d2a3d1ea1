from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from layerstore._core.status cimport ls_error


cdef extern from "base/kernel.h" nogil:
    const char *ls_kernel_name(const void *kernel)
    bint ls_kernel_runs_here(const void *kernel)


cdef extern from "hash/blake3.h" nogil:
    enum:
        LS_B3_DIGEST_BYTES

    struct ls_b3_kernel:
        pass

    const ls_b3_kernel *ls_b3_kernel_at(size_t i)
    int ls_b3_kernel_find(const char *name, const ls_b3_kernel **kernel, ls_error *err)

    int ls_b3_hash_many(
        const ls_b3_kernel *kernel,
        const uint8_t *const *inputs,
        const size_t *length,
        size_t n,
        uint8_t *out,
        ls_error *err,
    )

    struct ls_b3_hasher:
        pass

    void ls_b3_hasher_init(ls_b3_hasher *hasher, const ls_b3_kernel *kernel)
    void ls_b3_hasher_update(ls_b3_hasher *hasher, const void *bytes, size_t length)
    void ls_b3_hasher_final(const ls_b3_hasher *hasher, uint8_t *digest)
