"""Looking into an index as into a file system, symbolic links followed (csrc/index/resolve.h, csrc/content/rows.h)."""

import os

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.stdlib cimport free, malloc

from layerstore._core.entry cimport Entry, make_entry, text
from layerstore._core.index cimport LS_NONE, Index, ls_index, ls_index_children, ls_index_name, ls_path
from layerstore._core.ingest cimport ls_location
from layerstore._core.status cimport check, ls_error

from layerstore._core.status import CorruptError


cdef extern from "index/resolve.h" nogil:
    int ls_resolve(const ls_index *index, ls_path path, int follow, uint32_t *record, int *sys_errno, ls_error *err)
    int ls_resolve_link(const ls_index *index, uint32_t number, uint32_t *record, int *sys_errno, ls_error *err)


cdef extern from "content/rows.h" nogil:
    struct ls_row:
        pass

    int ls_rows_of_paths(const ls_index *index, const ls_location *locations, const ls_path *paths, size_t n,
                         int follow, ls_row *rows, ls_error *err)


ROW_BYTES = sizeof(ls_row)
ROW_FIELDS = (
    *(("found", "?"), ("type", "S1"), ("mode", "<u4"), ("uid", "<u4"), ("gid", "<u4"), ("size", "<u8")),
    *(("mtime_ns", "<i8"), ("layer", "<i4"), ("record", "<i4"), ("location", [("pack", "<u4"), ("slot", "<u4")])),
)


cdef object _borrow(object path, ls_path *out):
    """Point `out` at the bytes of a path (str, bytes or os.PathLike). They are those of the object that is returned."""
    cdef Py_ssize_t length = 0

    if isinstance(path, str):
        try:
            out.bytes = PyUnicode_AsUTF8AndSize(path, &length)
            out.length = length
            return path
        except UnicodeEncodeError:
            path = path.encode("utf-8", "surrogateescape")
    elif not isinstance(path, bytes):
        return _borrow(os.fspath(path), out)
    out.bytes = PyBytes_AS_STRING(path)
    out.length = PyBytes_GET_SIZE(path)
    return path


cdef class Tree:
    """The paths of an index of a chain. Paths are str (UTF-8 with surrogateescape, as `os.fsdecode` has them), bytes or
    os.PathLike; relative ones begin at the root as absolute ones do. Symbolic links lead nowhere but inside the tree.

    Every method raises `CorruptError` where the index is damaged. Safe for many threads.
    """

    cdef readonly Index index

    def __cinit__(self, Index index not None, *_, **__):
        self.index = index

    def lookup(self, path, *, bint follow_symlinks=True):
        """The `Entry` that a path leads to, or None where the system would not find it."""
        cdef int sys_errno = 0
        cdef uint32_t number = self._resolve(path, follow_symlinks, &sys_errno)

        return None if number == LS_NONE else make_entry(self.index, number)

    def find(self, path, *, bint follow_symlinks=True):
        """The `Entry` that a path leads to. Raises the `OSError` of the system where there is none: FileNotFoundError,
        NotADirectoryError, or with ELOOP or ENAMETOOLONG; ValueError for a path with a zero byte."""
        cdef int sys_errno = 0
        cdef uint32_t number = self._resolve(path, follow_symlinks, &sys_errno)

        if number == LS_NONE:
            shown = os.fspath(path)
            if (b"\0" if isinstance(shown, bytes) else "\0") in shown:
                raise ValueError("embedded null byte")
            raise OSError(sys_errno, os.strerror(sys_errno), shown)
        return make_entry(self.index, number)

    cdef uint32_t _resolve(self, path, bint follow, int *sys_errno) except? 0xFFFFFFFE:
        cdef ls_error err
        cdef ls_path spelled
        cdef uint32_t number = LS_NONE

        owner = _borrow(path, &spelled)
        check(ls_resolve(&self.index.index, spelled, follow, &number, sys_errno, &err), &err)
        return number

    def follow(self, Entry entry not None):
        """Where a link leads, as an `Entry`, None for nowhere; every other entry as it is. Entries are those of this
        tree: others raise `ValueError`, as in `children` and `names`."""
        cdef ls_error err
        cdef int sys_errno = 0
        cdef uint32_t number = LS_NONE

        self._own(entry)
        check(ls_resolve_link(&self.index.index, entry.record, &number, &sys_errno, &err), &err)
        return None if number == LS_NONE else make_entry(self.index, number)

    cdef int _own(self, Entry entry) except -1:
        if entry.index is not self.index:
            raise ValueError(f"{entry!r} is of another tree")
        return 0

    cdef int _range(self, Entry directory, uint32_t *first, uint32_t *count) except -1:
        cdef ls_error err
        cdef uint32_t i

        self._own(directory)
        check(ls_index_children(&self.index.index, directory.record, first, count, &err), &err)
        # A child of one directory only: in a damaged index ranges could overlap, and a walk take for ever.
        for i in range(first[0], first[0] + count[0]):
            if self.index.index.records[i].parent != directory.record:
                raise CorruptError(f"listing a directory: record {i} is not of {directory.record}; rebuild the index")
        return 0

    def children(self, Entry directory not None):
        """The entries of a directory as a list, ordered by name as bytes; none of whatever is no directory."""
        cdef uint32_t i, first = 0, count = 0

        self._range(directory, &first, &count)
        return [make_entry(self.index, i) for i in range(first, first + count)]

    def names(self, Entry directory not None):
        """The names of a directory's entries as a list of str, ordered as bytes."""
        cdef ls_error err
        cdef uint32_t i, first = 0, count = 0
        cdef const char *name = NULL
        cdef size_t length = 0
        cdef list names = []

        self._range(directory, &first, &count)
        for i in range(first, first + count):
            check(ls_index_name(&self.index.index, &self.index.index.records[i], &name, &length, &err), &err)
            names.append(text(name, length))
        return names

    def fill_rows(self, paths, bint follow_symlinks, const uint8_t[::1] locations not None, uint8_t[::1] rows not None):
        """Fill `rows` (ROW_BYTES for each path, laid out as ROW_FIELDS) for an iterable of paths that has as many.

        locations: 8 bytes for each content of the index (`ContentStore.locate_many`). The GIL is released.
        """
        cdef ls_error err
        cdef int status
        cdef tuple items = tuple(paths)
        cdef Py_ssize_t i, n = len(items)
        cdef list owners = []
        cdef ls_path *c_paths = <ls_path *> malloc((n + 1) * sizeof(ls_path))
        cdef const ls_location *c_locations = <const ls_location *> &locations[0] if locations.shape[0] else NULL

        if c_paths == NULL:
            raise MemoryError()
        try:
            if rows.shape[0] != n * <Py_ssize_t> sizeof(ls_row):
                raise ValueError(f"{rows.shape[0]} bytes are not for {n} rows")
            if locations.shape[0] != 8 * <Py_ssize_t> self.index.index.header.content_count:
                raise ValueError(f"{locations.shape[0]} bytes of locations are not for the contents of this index")
            for i in range(n):
                owner = _borrow(items[i], &c_paths[i])
                if owner is not items[i]:
                    owners.append(owner)
            if not n:
                return
            with nogil:
                status = ls_rows_of_paths(&self.index.index, c_locations, c_paths, n, follow_symlinks,
                                          <ls_row *> &rows[0], &err)
            check(status, &err)
        finally:
            free(c_paths)
