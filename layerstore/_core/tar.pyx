"""The bounded tar walk (csrc/tar/tar.h), an event at a time: for reading single archives, and for the tests."""

from collections import namedtuple
from collections.abc import Iterable

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer

from layerstore._core.buffer cimport ls_bytes
from layerstore._core.status cimport check, ls_error


# In the order of enum ls_tar_type.
TYPES = ("regular", "hardlink", "symlink", "char", "block", "directory", "fifo")


class Raw(namedtuple("Raw", "data")):
    """The next bytes of the archive that are not content: headers, padding, the end."""

    __slots__ = ()


class Data(namedtuple("Data", "data")):
    """The next stored bytes of the last entry's content, never empty."""

    __slots__ = ()


_FIELDS = (
    "type path link mode uid gid mtime_seconds mtime_nanoseconds "
    "device_major device_minor size stored_size xattrs extents position"
)


class Entry(namedtuple("Entry", _FIELDS)):
    """An entry of the archive; its headers came before as `Raw`, `stored_size` bytes of `Data` follow.

    `type` is one of `TYPES`, `mode` the bits 07777. The path is as the archive has it: neither cleaned nor checked
    for "..", but without NUL and not empty. `size` is the logical size in bytes (0 unless regular), `extents` the
    (offset, length) pairs of a sparse file's stored content, `None` for a file that is not sparse.
    `position` is the offset in bytes of the entry's first header in the archive.
    """

    __slots__ = ()


cdef bytes _bytes(ls_bytes text):
    return (<const char *>text.bytes)[:text.length] if text.length else b""


cdef object _entry(const ls_tar_entry *entry):
    xattrs = {_bytes(entry.xattrs[i].name): _bytes(entry.xattrs[i].value) for i in range(entry.xattr_count)}
    extents = None
    if entry.is_sparse:
        extents = [(entry.extents[i].offset, entry.extents[i].length) for i in range(entry.extent_count)]
    return Entry(
        TYPES[entry.type], _bytes(entry.path), _bytes(entry.link), entry.mode, entry.uid, entry.gid,
        entry.mtime_seconds, entry.mtime_nanoseconds, entry.device_major, entry.device_minor,
        entry.size, entry.stored_size, xattrs, extents, entry.position,
    )


cdef class Walk:
    """Iterator over the events of an archive; made by `walk`."""

    cdef ls_tar *tar
    cdef object chunks
    cdef Py_buffer span
    cdef bint has_span
    cdef bint over

    def __cinit__(self, chunks, limits, bint nameless):
        cdef ls_error err
        cdef ls_tar_limits c_limits = limits

        c_limits.nameless = nameless
        check(ls_tar_new(&self.tar, &c_limits, &err), &err)
        self.chunks = iter(chunks)

    def __dealloc__(self):
        self._release()
        ls_tar_free(self.tar)

    cdef void _release(self):
        if self.has_span:
            PyBuffer_Release(&self.span)
            self.has_span = False

    cdef bint _feed(self) except -1:
        """Hand over the next chunk; False after the last one."""
        for chunk in self.chunks:
            self._release()
            PyObject_GetBuffer(chunk, &self.span, PyBUF_SIMPLE)
            self.has_span = True
            ls_tar_feed(self.tar, self.span.buf, <size_t>self.span.len)
            return True
        return False

    def __iter__(self):
        return self

    def __next__(self):
        cdef ls_tar_event event
        cdef ls_error err

        if self.over:
            raise StopIteration
        # Until the walk has ended well, any exit but a returned event ends it: after an error the C walk is not usable.
        self.over = True
        while True:
            check(ls_tar_next(self.tar, &event, &err), &err)
            if event.kind != LS_TAR_NEED_MORE:
                break
            if not self._feed():
                check(ls_tar_finish(self.tar, &err), &err)
                raise StopIteration
        self.over = False
        if event.kind == LS_TAR_ENTRY:
            return _entry(event.entry)
        return (Raw if event.kind == LS_TAR_RAW else Data)(_bytes(event.bytes))


def walk(chunks: Iterable, *, path_bytes=None, name_bytes=None, extended_bytes=None, sparse_extents=None,
         file_bytes=None, entries=None, nameless=False):
    """Walk a tar archive that arrives in chunks of any size; return an iterator of `Raw`, `Entry` and `Data`.

    chunks: objects with a contiguous buffer (bytes, memoryview, mmap ...), which must not change while they are walked.
    The limits are those of struct ls_tar_limits in csrc/tar/tar.h, with the defaults given there (4,096 bytes of a path,
    255 of a name, 1 MiB of extended headers, 65,536 extents, 1 TiB of a file, 16 Mi entries). An entry of no name is not
    acceptable, unless `nameless` says so; its path is empty.

    The `data` of all `Raw` and `Data` in their order is the archive. The GIL is held: an event costs less
    than a microsecond, and imports do not go through here.

    Raises `CorruptError` for bytes that are no tar archive or a damaged or truncated one, `InvalidInput` for an entry
    that is not acceptable, `LimitExceeded` with the name of the limit. Formats: see csrc/tar/tar.h.
    """
    limits = tar_limits(path_bytes, name_bytes, extended_bytes, sparse_extents, file_bytes, entries)
    return Walk(chunks, limits, nameless)
