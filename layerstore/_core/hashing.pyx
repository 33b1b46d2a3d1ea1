"""BLAKE3-256 of many inputs at once, over csrc/hash/blake3.h."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_CheckExact, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Calloc, PyMem_Free, PyMem_Malloc
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t

from layerstore._core.status cimport check, ls_error


def all_kernels():
    """The names of the kernels in this build, the portable one first, the fastest last."""
    names = []
    cdef size_t i = 0
    while ls_b3_kernel_at(i) != NULL:
        names.append(ls_kernel_name(ls_b3_kernel_at(i)).decode())
        i += 1
    return names


def kernels():
    """The names of the kernels that this CPU can run, the portable one first, the fastest last."""
    names = []
    cdef size_t i = 0
    while ls_b3_kernel_at(i) != NULL:
        if ls_kernel_runs_here(ls_b3_kernel_at(i)):
            names.append(ls_kernel_name(ls_b3_kernel_at(i)).decode())
        i += 1
    return names


cdef const ls_b3_kernel *find_kernel(str name) except NULL:
    cdef const ls_b3_kernel *kernel = NULL
    cdef ls_error err
    # A name with a NUL in it, or that is not UTF-8, must be looked up, and not found, as a whole.
    encoded = name.encode("utf-8", "backslashreplace").replace(b"\0", b"\\0")
    check(ls_b3_kernel_find(encoded, &kernel, &err), &err)
    return kernel


cdef class _Batch:
    """Holds the buffers of a batch, and the arrays that describe them, for as long as C looks at them."""

    cdef tuple inputs
    cdef Py_buffer *views
    cdef const uint8_t **start
    cdef size_t *length
    cdef size_t n
    cdef size_t n_views

    def __cinit__(self, inputs):
        cdef Py_buffer *view
        cdef size_t i
        self.inputs = tuple(inputs)
        self.n = len(self.inputs)
        self.start = <const uint8_t **>PyMem_Calloc(self.n, sizeof(uint8_t *))
        self.length = <size_t *>PyMem_Calloc(self.n, sizeof(size_t))
        self.views = <Py_buffer *>PyMem_Calloc(self.n, sizeof(Py_buffer))
        if self.start == NULL or self.length == NULL or self.views == NULL:
            raise MemoryError(f"out of memory describing {self.n} inputs to hash")
        for i in range(self.n):
            item = self.inputs[i]
            # The tuple keeps a bytes object alive and nothing can change it: no export is needed.
            if PyBytes_CheckExact(item):
                self.start[i] = <const uint8_t *>PyBytes_AS_STRING(item)
                self.length[i] = <size_t>PyBytes_GET_SIZE(item)
                continue
            view = &self.views[self.n_views]
            PyObject_GetBuffer(item, view, PyBUF_SIMPLE)
            self.n_views += 1
            self.start[i] = <const uint8_t *>view.buf
            self.length[i] = <size_t>view.len

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.n_views):
            PyBuffer_Release(&self.views[i])
        PyMem_Free(self.views)
        PyMem_Free(self.length)
        PyMem_Free(self.start)


def hash_many(inputs, str kernel="auto"):
    """The 32-byte BLAKE3 digests of `inputs`, any sequence of objects with a contiguous buffer, in their order.

    Many small inputs in one call are several times faster than one call each, since chunks of different inputs
    share the lanes of a vector. The GIL is released; nobody may write to the buffers meanwhile.

    Raises `NotFound` for an unknown `kernel`, `Unsupported` for one that this CPU lacks, `BufferError` or
    `TypeError` for an input without a contiguous buffer, `MemoryError`.
    """
    cdef const ls_b3_kernel *chosen = find_kernel(kernel)
    cdef _Batch batch = _Batch(inputs)
    cdef size_t i
    cdef int status
    cdef ls_error err
    cdef uint8_t *out = <uint8_t *>PyMem_Malloc(batch.n * LS_B3_DIGEST_BYTES)
    if out == NULL:
        raise MemoryError(f"out of memory for the digests of {batch.n} inputs")
    try:
        with nogil:
            status = ls_b3_hash_many(chosen, batch.start, batch.length, batch.n, out, &err)
        check(status, &err)
        return [
            PyBytes_FromStringAndSize(<char *>out + i * LS_B3_DIGEST_BYTES, LS_B3_DIGEST_BYTES) for i in range(batch.n)
        ]
    finally:
        PyMem_Free(out)


def blake3(data, str kernel="auto"):
    """The 32-byte BLAKE3 digest of `data`, an object with a contiguous buffer. Errors as of `hash_many`."""
    return hash_many((data,), kernel)[0]


cdef class Hasher:
    """BLAKE3 of one input that arrives in pieces; pieces of 64 KiB and more run at the kernel's full speed.

    Errors as of `hash_many`. A hasher is for one thread at a time.
    """

    cdef ls_b3_hasher hasher

    def __cinit__(self, str kernel="auto"):
        ls_b3_hasher_init(&self.hasher, find_kernel(kernel))

    def update(self, data):
        """Append `data`, an object with a contiguous buffer. The GIL is released."""
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                ls_b3_hasher_update(&self.hasher, view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def digest(self):
        """The 32-byte digest of what was appended so far; more may be appended afterwards."""
        cdef uint8_t digest[LS_B3_DIGEST_BYTES]
        ls_b3_hasher_final(&self.hasher, digest)
        return PyBytes_FromStringAndSize(<char *>digest, LS_B3_DIGEST_BYTES)
