"""The part of an index that leads to some of its inodes (csrc/index/branches.h), and records read as far as they are asked for."""

cimport cython
from libc.stdint cimport uint32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.stat cimport S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free
from layerstore._core.index cimport LS_NONE, Index, ls_index, ls_record
from layerstore._core.status cimport check, ls_error


cdef extern from "index/branches.h" nogil:
    int ls_index_branches(const ls_index *index, const uint32_t *inodes, size_t n, ls_buffer *out, ls_error *err)


@cython.final
@cython.freelist(64)
@cython.no_gc  # an index refers to no record, so there can be no cycle to look for
cdef class LazyRecord:
    """A record of an index, as `Record` has it; what takes time is read when it is asked for.

    That raises `CorruptError` where the index is damaged.
    """

    cdef Index index
    cdef const ls_record *record
    cdef readonly uint32_t number

    def __init__(self):
        raise TypeError("lazy records come from the functions of this module")

    @property
    def path(self):
        return self.index._string(self.record.path, self.record.path_length)

    @property
    def name(self):
        return self.path[self.record.name_start:]

    @property
    def parent(self):
        return self.record.parent

    @property
    def inode(self):
        return self.record.inode

    @property
    def links(self):
        """The number of names of its inode in the index; 1 of a directory."""
        return 1 if S_ISDIR(self.record.mode) else self.record.count

    @property
    def mode(self):
        return self.record.mode

    @property
    def uid(self):
        return self.record.uid

    @property
    def gid(self):
        return self.record.gid

    @property
    def mtime_ns(self):
        return int(self.record.mtime_seconds) * 1_000_000_000 + self.record.mtime_nanoseconds

    @property
    def xattrs(self):
        return self.index._xattrs(self.record.xattrs) if self.record.xattrs else {}

    @property
    def target(self):
        """Of a symbolic link, else None."""
        return self.index._string(self.record.data, self.record.size) if S_ISLNK(self.record.mode) else None

    @property
    def rdev(self):
        """(major, minor) of a device, else None."""
        if not S_ISCHR(self.record.mode) and not S_ISBLK(self.record.mode):
            return None
        return self.record.size >> 32, self.record.size & 0xFFFFFFFF

    @property
    def content(self):
        """(BLAKE3 digest, size in bytes) of a regular file's content; None of an empty file and of all else."""
        if not S_ISREG(self.record.mode) or self.record.data == LS_NONE:
            return None
        return self.index.content(self.record.data)

    def is_dir(self):
        return bool(S_ISDIR(self.record.mode))


cdef LazyRecord lazy(Index index, number):
    cdef LazyRecord record = LazyRecord.__new__(LazyRecord)

    record.record = index._record(number)
    record.index = index
    record.number = number
    return record


def record(Index index not None, number):
    """The record of that number. Raises `IndexError` where there is none."""
    return lazy(index, number)


def records(Index index not None, numbers not None):
    """The records of these numbers, as a list in their order. Raises `IndexError` where there is none."""
    return [lazy(index, number) for number in numbers]


def branches(Index index not None, inodes not None):
    """All records of these inodes, each given by the number of its first record, and all directories above them, each once,
    as a list of `LazyRecord` in the order of their numbers: the root first, a directory before what is in it, and that
    ordered by name.

    The GIL is released. Raises `CorruptError` where the index is damaged or has no record of such a number.
    """
    cdef ls_error err
    cdef int status
    cdef ls_buffer out
    cdef const uint32_t *found
    cdef list wanted = list(inodes)
    cdef size_t n = len(wanted), i
    cdef uint32_t *numbers = <uint32_t *> malloc((n + 1) * sizeof(uint32_t))

    memset(&out, 0, sizeof(out))
    try:
        if numbers == NULL:
            raise MemoryError(f"out of memory for the numbers of {n} inodes")
        for i in range(n):
            numbers[i] = wanted[i]
        with nogil:
            status = ls_index_branches(&index.index, numbers, n, &out, &err)
        check(status, &err)
        found = <const uint32_t *> out.bytes
        return [lazy(index, found[i]) for i in range(out.length // sizeof(uint32_t))]
    finally:
        free(numbers)
        ls_buffer_free(&out)
