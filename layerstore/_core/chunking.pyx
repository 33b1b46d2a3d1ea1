"""Content-defined chunks (csrc/hash/chunker.h)."""

from operator import index

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytearray cimport PyByteArray_FromStringAndSize
from libc.stddef cimport size_t
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memset

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free
from layerstore._core.hashing cimport ls_b3_kernel, ls_b3_kernel_find, ls_kernel_name, ls_kernel_runs_here
from layerstore._core.status cimport check, ls_error

from layerstore._core.status import InvalidInput


cdef extern from "hash/chunker.h" nogil:
    enum:
        LS_CHUNKER_VERSION
        LS_CHUNK_MOST_BYTES

    struct ls_chunk_sizes:
        uint32_t min
        uint32_t average
        uint32_t max

    int ls_chunk_sizes_check(const ls_chunk_sizes *sizes, ls_error *err)

    struct ls_cut_kernel:
        pass

    const ls_cut_kernel *ls_cut_kernel_at(size_t i)
    int ls_cut_kernel_find(const char *name, const ls_cut_kernel **kernel, ls_error *err)

    int ls_chunk_ends(const ls_cut_kernel *kernel, const ls_chunk_sizes *sizes, const uint8_t *bytes, size_t length,
                      ls_buffer *ends, ls_error *err)
    int ls_chunk_digests(const ls_cut_kernel *kernel, const ls_b3_kernel *hash, const ls_chunk_sizes *sizes,
                         const uint8_t *bytes, size_t length, ls_buffer *ends, ls_buffer *digests, ls_error *err)


VERSION = LS_CHUNKER_VERSION


def all_kernels():
    """The names of the kernels in this build, the portable one first, the fastest last."""
    return _names(False)


def kernels():
    """The names of the kernels that this CPU can run, the portable one first, the fastest last."""
    return _names(True)


cdef list _names(bint running):
    cdef list names = []
    cdef size_t i = 0
    while ls_cut_kernel_at(i) != NULL:
        if not running or ls_kernel_runs_here(ls_cut_kernel_at(i)):
            names.append(ls_kernel_name(ls_cut_kernel_at(i)).decode())
        i += 1
    return names


cdef uint32_t _size(value, str what) except? 0:
    """A size as the C core has it; it says whether it is a possible one."""
    number = index(value)
    if not 0 <= number <= LS_CHUNK_MOST_BYTES:
        raise InvalidInput(f"{what} is {number}; give a number of bytes up to {LS_CHUNK_MOST_BYTES}")
    return number


cdef class _Chunker:
    """The sizes and kernels of one call, and what it found."""

    cdef ls_chunk_sizes sizes
    cdef const ls_cut_kernel *kernel
    cdef const ls_b3_kernel *hash
    cdef ls_buffer ends
    cdef ls_buffer digests

    def __cinit__(self, min_bytes, avg_bytes, max_bytes, str kernel):
        cdef ls_error err
        memset(&self.ends, 0, sizeof(self.ends))
        memset(&self.digests, 0, sizeof(self.digests))
        self.sizes.average = _size(avg_bytes, "avg_bytes")
        self.sizes.min = _size(min_bytes, "min_bytes")
        self.sizes.max = _size(max_bytes, "max_bytes")
        check(ls_chunk_sizes_check(&self.sizes, &err), &err)
        # A name with a NUL in it, or that is not UTF-8, must be looked up, and not found, as a whole.
        encoded = kernel.encode("utf-8", "backslashreplace").replace(b"\0", b"\\0")
        check(ls_cut_kernel_find(encoded, &self.kernel, &err), &err)
        check(ls_b3_kernel_find(NULL, &self.hash, &err), &err)

    def __dealloc__(self):
        ls_buffer_free(&self.ends)
        ls_buffer_free(&self.digests)

    cdef int run(self, data, bint hashed) except -1:
        cdef Py_buffer view
        cdef int status
        cdef ls_error err
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            with nogil:
                if hashed:
                    status = ls_chunk_digests(self.kernel, self.hash, &self.sizes, <const uint8_t *> view.buf,
                                              <size_t> view.len, &self.ends, &self.digests, &err)
                else:
                    status = ls_chunk_ends(self.kernel, &self.sizes, <const uint8_t *> view.buf, <size_t> view.len,
                                           &self.ends, &err)
            return check(status, &err)
        finally:
            PyBuffer_Release(&view)


cdef object _copied(ls_buffer *buffer):
    return PyByteArray_FromStringAndSize(<const char *> buffer.bytes, <Py_ssize_t> buffer.length)


def cut(data, min_bytes, avg_bytes, max_bytes, str kernel="auto"):
    """Where each chunk of `data`, an object with a contiguous buffer, ends: a memoryview of ascending numbers ("Q"), the
    last of them the length of `data`; of none for an empty one.

    The GIL is released; nobody may write to the buffer meanwhile.

    Raises `InvalidInput` for sizes that csrc/hash/chunker.h does not allow, `NotFound` for an unknown `kernel`,
    `Unsupported` for one that this CPU lacks, `BufferError` or `TypeError` for what has no contiguous buffer,
    `MemoryError`.
    """
    cdef _Chunker chunker = _Chunker(min_bytes, avg_bytes, max_bytes, kernel)
    chunker.run(data, False)
    return memoryview(_copied(&chunker.ends)).cast("Q")


def chunk(data, min_bytes, avg_bytes, max_bytes, str kernel="auto"):
    """(ends, digests): `ends` as of `cut`, and the BLAKE3 digests of the chunks, 32 bytes each, in one bytearray.

    Chunks are hashed many at once while they are in the CPU's cache. Errors as of `cut`.
    """
    cdef _Chunker chunker = _Chunker(min_bytes, avg_bytes, max_bytes, kernel)
    chunker.run(data, True)
    return memoryview(_copied(&chunker.ends)).cast("Q"), _copied(&chunker.digests)
