"""What became of every version of every path in a stack of layers (csrc/index/provenance.h)."""

from typing import NamedTuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free
from layerstore._core.index cimport Index, ls_index, ls_record
from layerstore._core.status cimport check, ls_error


cdef extern from "index/provenance.h" nogil:
    enum ls_version_end:
        LS_VERSION_VISIBLE
        LS_VERSION_REPLACED
        LS_VERSION_WHITEOUT
        LS_VERSION_ABOVE_WHITEOUT
        LS_VERSION_ABOVE_REPLACED
        LS_VERSION_ABOVE_OPAQUE

    struct ls_version:
        uint32_t layer
        uint32_t record
        uint32_t end_layer
        uint32_t end_record
        uint32_t end
        uint32_t is_change

    struct ls_layer_figures:
        uint64_t added
        uint64_t changed
        uint64_t hidden
        uint64_t added_bytes
        uint64_t wasted_bytes

    int ls_provenance(const ls_index *const *layers, size_t layer_count, ls_buffer *versions,
                      ls_layer_figures *figures, ls_error *err)
    int ls_provenance_path(const ls_index *const *layers, size_t layer_count, const char *path, size_t length,
                           ls_buffer *versions, ls_error *err)
    int ls_provenance_follow(const ls_index *const *layers, size_t layer_count, uint32_t *layer, uint32_t *record,
                             ls_error *err)


VISIBLE = LS_VERSION_VISIBLE
REPLACED = LS_VERSION_REPLACED
WHITEOUT = LS_VERSION_WHITEOUT
ABOVE_WHITEOUT = LS_VERSION_ABOVE_WHITEOUT
ABOVE_REPLACED = LS_VERSION_ABOVE_REPLACED
ABOVE_OPAQUE = LS_VERSION_ABOVE_OPAQUE


class Life(NamedTuple):
    """One version of a path.

    path: bytes, without a leading '/'. layer, record: what brought it, a record number of that layer's index.
    is_change: it replaced another version; else the path was not there. end: VISIBLE, or how it ended. end_layer,
    end_record: where, None while it is visible; the record is that of the path, or of what hid it from above.
    """

    path: bytes
    layer: int
    record: int
    is_change: bool
    end: int
    end_layer: int | None
    end_record: int | None


class Figures(NamedTuple):
    """What became of a layer, in paths and bytes; see ls_layer_figures."""

    added: int
    changed: int
    hidden: int
    added_bytes: int
    wasted_bytes: int


cdef class _Stack:
    """The layers of a stack as C wants them."""

    cdef list owners
    cdef const ls_index **indexes

    def __cinit__(self, layers):
        self.owners = list(layers)
        self.indexes = <const ls_index **> calloc(len(self.owners) + 1, sizeof(ls_index *))
        if self.indexes == NULL:
            raise MemoryError()
        for i in range(len(self.owners)):
            self.indexes[i] = &(<Index?> self.owners[i]).index

    def __dealloc__(self):
        free(self.indexes)


cdef class _Versions:
    cdef ls_buffer buffer

    def __dealloc__(self):
        ls_buffer_free(&self.buffer)

    cdef size_t count(self) noexcept:
        return self.buffer.length // sizeof(ls_version)

    cdef const ls_version *at(self, size_t number) noexcept:
        return <const ls_version *> self.buffer.bytes + number


cdef _life(_Stack stack, const ls_version *version):
    cdef Index layer = stack.owners[version.layer]
    cdef const ls_record *record = layer._record(version.record)
    cdef bint is_over = version.end != LS_VERSION_VISIBLE

    return Life(
        path=layer._string(record.path, record.path_length),
        layer=version.layer,
        record=version.record,
        is_change=version.is_change != 0,
        end=version.end,
        end_layer=version.end_layer if is_over else None,
        end_record=version.end_record if is_over else None,
    )


cdef class Provenance:
    """Every version of every path of a stack, traced in one walk with the GIL released; the indexes are kept alive.

    layers: the layers' indexes, the bottom one first, at least one.
    Raises InvalidInput for an index that is a chain's, and, naming it, for a hard link to what the layers below do
    not show; CorruptError for a damaged layer.
    """

    cdef _Stack stack
    cdef _Versions versions
    cdef readonly list figures

    def __cinit__(self, layers):
        cdef ls_error err
        cdef int status
        cdef _Stack stack = _Stack(layers)
        cdef _Versions versions = _Versions()
        cdef size_t n = len(stack.owners)
        cdef ls_layer_figures *figures = <ls_layer_figures *> calloc(n + 1, sizeof(ls_layer_figures))

        if figures == NULL:
            raise MemoryError()
        try:
            with nogil:
                status = ls_provenance(stack.indexes, n, &versions.buffer, figures, &err)
            check(status, &err)
            self.figures = [
                Figures(f.added, f.changed, f.hidden, f.added_bytes, f.wasted_bytes) for f in figures[:n]
            ]
        finally:
            free(figures)
        self.stack = stack
        self.versions = versions

    def __len__(self):
        return self.versions.count()

    def __iter__(self):
        """Every version; those of a path together, the lowest first."""
        for i in range(self.versions.count()):
            yield _life(self.stack, self.versions.at(i))

    def of_layer(self, uint32_t layer):
        """The versions that a layer brought or ended, as a list."""
        cdef const ls_version *version
        cdef list found = []

        for i in range(self.versions.count()):
            version = self.versions.at(i)
            if version.layer == layer or version.end_layer == layer:
                found.append(_life(self.stack, version))
        return found


def versions_of(layers, bytes path not None):
    """The versions of one path (no leading '/', no "." or ".."; b"" is the root) as a list, the lowest first.

    Each layer is asked for the path and those above it, nothing is walked. Raises as Provenance does.
    """
    cdef ls_error err
    cdef int status
    cdef _Stack stack = _Stack(layers)
    cdef _Versions versions = _Versions()
    cdef size_t n = len(stack.owners), length = PyBytes_GET_SIZE(path)
    cdef const char *text = PyBytes_AS_STRING(path)

    with nogil:
        status = ls_provenance_path(stack.indexes, n, text, length, &versions.buffer, &err)
    check(status, &err)
    return [_life(stack, versions.at(i)) for i in range(versions.count())]


def follow(layers, uint32_t layer, uint32_t record):
    """The (layer, record) that a record of a layer shows: those that a hard link into the layers below it stands for,
    and its own where it is none. Raises as Provenance does."""
    cdef ls_error err
    cdef int status
    cdef _Stack stack = _Stack(layers)
    cdef size_t n = len(stack.owners)

    with nogil:
        status = ls_provenance_follow(stack.indexes, n, &layer, &record, &err)
    check(status, &err)
    return layer, record
