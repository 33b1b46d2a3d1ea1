from libc.stdint cimport uint32_t, uint64_t

from layerstore._core.index cimport Index, ls_record


cdef class Entry:
    cdef readonly Index index
    cdef readonly uint32_t record
    cdef const ls_record *_record

    cdef str _string(self, uint32_t offset, uint64_t length)


# Bytes of an index as str: UTF-8 with surrogateescape.
cdef str text(const char *string, size_t length)
# The entry of a record that the index has.
cdef Entry make_entry(Index index, uint32_t record)
