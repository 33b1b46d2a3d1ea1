"""What the upper directory of an overlay holds, against the chain below it (csrc/upper/upper.h)."""

from collections import namedtuple

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free, ls_bytes, ls_xattr
from layerstore._core.index cimport LS_NONE, Index, ls_index
from layerstore._core.mount cimport Descriptors
from layerstore._core.status cimport check, ls_error
from layerstore._core.tar_writer cimport TarWriter, ls_tar_writer


cdef extern from "<sys/sysmacros.h>" nogil:
    uint64_t c_makedev "makedev"(uint32_t major, uint32_t minor)


cdef extern from "upper/upper_changes.h" nogil:
    int ls_upper_changes(const ls_index *index, const int *uppers, size_t upper_count, ls_buffer *changes,
                         ls_error *err)


cdef extern from "upper/upper.h" nogil:
    struct ls_upper_content:
        uint64_t device, inode
        size_t layer
        ls_bytes path

    struct ls_upper_entry:
        ls_bytes path
        uint32_t mode, uid, gid
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds
        uint32_t device_major, device_minor
        ls_bytes target, link
        const ls_xattr *xattrs
        size_t xattr_count
        bint is_opaque
        uint64_t size
        uint32_t lower
        ls_upper_content content
        ls_bytes bytes
        int fd

    struct ls_upper:
        pass

    int ls_upper_open(ls_upper **upper, const ls_index *index, const int *uppers, size_t upper_count,
                      bint with_contents, size_t whole_bytes, ls_error *err)
    void ls_upper_close(ls_upper *upper)
    int ls_upper_next(ls_upper *upper, ls_upper_entry **entries, size_t *count, ls_error *err)


cdef extern from "upper/upper_tar.h" nogil:
    int ls_upper_write(const ls_upper_entry *entries, size_t count, ls_tar_writer *writer, ls_error *err)


def changes(Index index not None, uppers):
    """(kind, path) of every path added ("A"), changed ("C") or deleted ("D"), sorted by the bytes of the path.

    uppers: the descriptors of the upper directory and of what is stacked below it, top first. path: absolute, str with surrogateescape. See csrc/upper/upper.h for what is told.
    Raises `InvalidInput` for the index of a layer, `LimitExceeded` for a path of more than 4,096 bytes, `OSError`.
    """
    cdef ls_error err
    cdef int status
    cdef ls_buffer out
    cdef Descriptors fds = Descriptors(uppers)

    memset(&out, 0, sizeof(out))
    try:
        with nogil:
            status = ls_upper_changes(&index.index, fds.array, fds.count, &out, &err)
        check(status, &err)
        return _changes(out.bytes, out.length)
    finally:
        ls_buffer_free(&out)


cdef list _changes(const uint8_t *at, size_t left):
    cdef list found = []
    cdef dict kinds = {ord(kind): kind for kind in "ACD"}
    cdef const uint8_t *end = at + left
    cdef uint16_t length

    while at != end:
        memcpy(&length, at + 1, sizeof(length))
        found.append((kinds[at[0]], PyUnicode_DecodeUTF8(<const char *> at + 3, length, "surrogateescape")))
        at += 3 + length
    return found


_FIELDS = (
    *("path", "mode", "uid", "gid", "mtime_ns", "rdev", "target", "link", "xattrs", "is_opaque", "size", "lower"),
    *("content", "identity", "layer", "place"),
)


class UpperEntry(namedtuple("UpperEntry", _FIELDS)):
    """An entry as layerstore/trees/entries.py says.

    content: the number of the content of `lower` in the index of the chain, None where it is empty.
    identity: (st_dev, st_ino) of the upper directory's file that has the content.
    layer, place: which of the upper directories that is in, and its path there.
    """

    __slots__ = ()


cdef class UpperWalk:
    """The entries of an upper directory, batch by batch. Not for two threads at once.

    Without `whole_bytes`, contents are left alone. With it, files of the upper directory of up to so many bytes are read
    into the batch, and a larger one is the last of its batch. Raises as `changes`, and `CorruptError` where the upper
    directory names a file of the chain that is not there.
    """

    cdef ls_upper *upper
    cdef ls_upper_entry *entries
    cdef size_t count
    cdef size_t whole_bytes
    cdef Index index
    cdef list contents

    def __cinit__(self, Index index not None, uppers, whole_bytes=None):
        cdef ls_error err
        cdef Descriptors fds = Descriptors(uppers)

        self.index = index
        self.whole_bytes = 0 if whole_bytes is None else whole_bytes
        check(
            ls_upper_open(
                &self.upper, &index.index, fds.array, fds.count, whole_bytes is not None, self.whole_bytes, &err
            ),
            &err,
        )

    def __dealloc__(self):
        ls_upper_close(self.upper)

    def read(self):
        """Read the next batch, in place of the last one; returns how many entries it has, 0 after the last."""
        cdef ls_error err
        cdef int status
        cdef size_t count = 0

        self.count = 0
        self.contents = None
        with nogil:
            status = ls_upper_next(self.upper, &self.entries, &count, &err)
        check(status, &err)
        self.count = count
        return count

    def __getitem__(self, Py_ssize_t i):
        """The `UpperEntry` of that number in the batch."""
        cdef const ls_upper_entry *entry
        cdef size_t x

        if not 0 <= i < <Py_ssize_t> self.count:
            raise IndexError(f"entry {i} of a batch of {self.count}")
        entry = &self.entries[i]
        return UpperEntry(
            path=_bytes(entry.path),
            mode=entry.mode,
            uid=entry.uid,
            gid=entry.gid,
            mtime_ns=int(entry.mtime_seconds) * 1_000_000_000 + entry.mtime_nanoseconds,
            rdev=c_makedev(entry.device_major, entry.device_minor),
            target=_bytes(entry.target) if entry.target.length else None,
            link=_bytes(entry.link) if entry.link.length else None,
            xattrs={_bytes(entry.xattrs[x].name): _bytes(entry.xattrs[x].value) for x in range(entry.xattr_count)},
            is_opaque=entry.is_opaque,
            size=entry.size,
            lower=None if entry.lower == LS_NONE else entry.lower,
            content=self._content(entry),
            identity=(entry.content.device, entry.content.inode),
            layer=entry.content.layer,
            place=_bytes(entry.content.path if entry.content.layer else entry.path),
        )

    cdef object _content(self, const ls_upper_entry *entry):
        cdef uint32_t number

        if entry.lower == LS_NONE:
            return None
        number = self.index.index.records[entry.lower].data
        return None if number == LS_NONE else number

    cdef bint _is_large(self, const ls_upper_entry *entry):
        return entry.fd >= 0 or (entry.lower != LS_NONE and entry.size > self.whole_bytes and not entry.link.length)

    def large(self):
        """The last entry if its content is for the caller to read: `write` leaves that entry out. Else None."""
        return self[self.count - 1] if self._has_large() else None

    cdef bint _has_large(self):
        return self.count and self._is_large(&self.entries[self.count - 1])

    def take_fd(self):
        """The open file of the `large` entry, for the caller to close; None where its content is the chain's."""
        cdef ls_upper_entry *last
        cdef int fd

        if not self._has_large():
            return None
        last = &self.entries[self.count - 1]
        if last.fd < 0:
            return None
        fd, last.fd = last.fd, -1
        return fd

    def wanted(self):
        """The numbers of the contents of the chain, in the entries' order, that `write` needs."""
        cdef size_t i

        return [self._content(&self.entries[i]) for i in range(self.count) if self._wants(&self.entries[i])]

    cdef bint _wants(self, const ls_upper_entry *entry):
        return entry.lower != LS_NONE and entry.size and not entry.link.length and not self._is_large(entry)

    def give(self, list contents not None):
        """The contents, bytes, that `wanted` asked for."""
        cdef size_t i
        cdef bytes content

        self.contents = contents
        found = iter(contents)
        for i in range(self.count):
            if self._wants(&self.entries[i]):
                content = next(found)
                self.entries[i].bytes.bytes = <const uint8_t *> PyBytes_AS_STRING(content)
                self.entries[i].bytes.length = PyBytes_GET_SIZE(content)

    def write(self, TarWriter writer not None):
        """Write the batch to a tar, but for a `large` entry. Raises as the methods of `TarWriter`."""
        cdef ls_error err
        cdef int status
        cdef size_t count = self.count - 1 if self._has_large() else self.count

        with nogil:
            status = ls_upper_write(self.entries, count, &writer.writer, &err)
        check(status, &err)


cdef bytes _bytes(ls_bytes text):
    return PyBytes_FromStringAndSize(<const char *> text.bytes, text.length)
