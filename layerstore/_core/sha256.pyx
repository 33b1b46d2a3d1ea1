"""SHA-256 of short inputs, over csrc/hash/sha256.h."""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t


cdef extern from "hash/sha256.h" nogil:
    void ls_sha256(const void *bytes, size_t length, uint8_t *digest)


def sha256(bytes data not None):
    """The digest of `data`, 32 bytes. For a few kilobytes; hashlib's is the faster one for more."""
    cdef uint8_t digest[32]

    ls_sha256(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), digest)
    return (<char *> digest)[:32]
