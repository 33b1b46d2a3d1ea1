"""Comparing two chains by their trees, so that what is equal is passed over (csrc/index/compare.h)."""

import stat

from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free
from layerstore._core.index cimport Index, ls_index, ls_record
from layerstore._core.status cimport check, ls_error


cdef extern from "index/index.h" nogil:
    struct ls_tree:
        uint8_t digest[32]

    int ls_index_tree(const ls_index *index, const ls_record *directory, const ls_tree **tree, ls_error *err)


cdef extern from "index/compare.h" nogil:
    struct ls_change:
        uint32_t kind
        uint32_t a
        uint32_t b

    const uint32_t LS_DELETED

    int ls_index_compare(const ls_index *a, const ls_index *b, ls_buffer *changes, uint64_t *read, ls_error *err)


def compare(Index a not None, Index b not None):
    """What chain `b` has otherwise than chain `a`: ([(path, kind), …], records that were read).

    path: bytes without a leading '/', b"" the root. kind: "A" (added), "C" (changed) or "D" (deleted). They come as a
    walk meets them, a directory before what is in it. See csrc/index/compare.h for what is a change.
    Raises InvalidInput where one is a layer's index, CorruptError where one is damaged.
    """
    cdef ls_error err
    cdef int status
    cdef ls_buffer changes
    cdef uint64_t read = 0

    memset(&changes, 0, sizeof(changes))
    try:
        with nogil:
            status = ls_index_compare(&a.index, &b.index, &changes, &read, &err)
        check(status, &err)
        return _changes(a, b, <const ls_change *> changes.bytes, changes.length // sizeof(ls_change)), read
    finally:
        ls_buffer_free(&changes)


cdef list _changes(Index a, Index b, const ls_change *changes, size_t count):
    cdef list found = []
    cdef const ls_record *record
    cdef Index shown
    cdef size_t i

    for i in range(count):
        if changes[i].kind == LS_DELETED:
            shown, record = a, &a.index.records[changes[i].a]
        else:
            shown, record = b, &b.index.records[changes[i].b]
        found.append((shown._string(record.path, record.path_length), chr(changes[i].kind)))
    return found


def tree(Index chain not None, number):
    """The 32 bytes of the tree of a directory of a chain, given by its record number: equal for equal directories.

    Raises IndexError where there is no such record, ValueError for whatever is not a directory, CorruptError where the
    index has no tree for it, as a layer's has for none.
    """
    cdef const ls_record *record = chain._record(number)
    cdef const ls_tree *found = NULL
    cdef ls_error err

    if not stat.S_ISDIR(record.mode):
        raise ValueError(f"record {number} is not a directory")
    check(ls_index_tree(&chain.index, record, &found, &err), &err)
    return PyBytes_FromStringAndSize(<const char *> found.digest, sizeof(found.digest))
