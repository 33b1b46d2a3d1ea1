"""Writing the tar of a layer into memory (csrc/tar/tar_writer.h)."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset
from posix.stat cimport S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG

from layerstore._core.buffer cimport ls_buffer_free, ls_buffer_reserve, ls_bytes, ls_xattr
from layerstore._core.index cimport Written
from layerstore._core.status cimport check, ls_error
from layerstore._core.tar cimport (
    LS_TAR_BLOCK,
    LS_TAR_CHAR,
    LS_TAR_DIRECTORY,
    LS_TAR_FIFO,
    LS_TAR_HARDLINK,
    LS_TAR_REGULAR,
    LS_TAR_SYMLINK,
    ls_tar_entry,
)

from layerstore._core.status import InvalidInput


cdef extern from "<sys/sysmacros.h>" nogil:
    uint32_t c_major "major"(uint64_t device)
    uint32_t c_minor "minor"(uint64_t device)


cdef ls_bytes _text(bytes text):
    return ls_bytes(<const uint8_t *> PyBytes_AS_STRING(text), <size_t> PyBytes_GET_SIZE(text))


cdef int _describe_type(ls_tar_entry *entry, uint32_t mode, bytes link) except -1:
    cdef uint32_t kind = mode & S_IFMT

    if link is not None:
        entry.type = LS_TAR_HARDLINK
    elif kind == S_IFREG:
        entry.type = LS_TAR_REGULAR
    elif kind == S_IFDIR:
        entry.type = LS_TAR_DIRECTORY
    elif kind == S_IFLNK:
        entry.type = LS_TAR_SYMLINK
    elif kind == S_IFCHR:
        entry.type = LS_TAR_CHAR
    elif kind == S_IFBLK:
        entry.type = LS_TAR_BLOCK
    elif kind == S_IFIFO:
        entry.type = LS_TAR_FIFO
    else:
        raise InvalidInput(f"a layer's tar has no entry of mode {mode:o}; leave sockets out")
    return 0


cdef class TarWriter:
    """Writes a layer's tar, entry by entry; what it wrote is taken away by `take`. The bytes depend on the calls alone.

    A regular file's `entry` is followed by its content, as `data` any number of times and `end_data`; not needed where
    the size is 0. Raises `InvalidInput` for what a reader would take for something else (a path that is not clean, a name
    that begins with ".wh.", an extended attribute with "=" in its name), `LimitExceeded` for what is longer or larger
    than an import takes; each names the path. After an error the archive is of no use. Not for two threads at once.
    """

    def __dealloc__(self):
        ls_buffer_free(&self.writer.out)

    def entry(self, bytes path not None, uint32_t mode, uint32_t uid=0, uint32_t gid=0, mtime_ns=0, *, uint64_t size=0,
              uint64_t rdev=0, bytes target=None, bytes link=None, xattrs=None):
        """Begin the entry of a path (without a "/" at its ends; empty for the root).

        mode, rdev: as `st_mode`, `st_rdev`. size: bytes of a regular file that is no link. target: of a symbolic link.
        link: the path of an earlier entry; it is a hard link then. xattrs: names and values, bytes, in any order.
        """
        cdef ls_tar_entry entry
        cdef ls_error err
        cdef list ordered = sorted(xattrs.items()) if xattrs else []
        cdef ls_xattr *c_xattrs = NULL
        cdef Py_ssize_t i

        memset(&entry, 0, sizeof(entry))
        _describe_type(&entry, mode, link)
        entry.path = _text(path)
        entry.mode = mode & 0o7777
        entry.uid = uid
        entry.gid = gid
        entry.mtime_seconds, entry.mtime_nanoseconds = divmod(mtime_ns, 1_000_000_000)
        entry.size = size
        if entry.type == LS_TAR_CHAR or entry.type == LS_TAR_BLOCK:
            entry.device_major = c_major(rdev)
            entry.device_minor = c_minor(rdev)
        if link is not None or target is not None:
            entry.link = _text(target if link is None else link)
        try:
            if ordered:
                c_xattrs = <ls_xattr *> malloc(len(ordered) * sizeof(ls_xattr))
                if c_xattrs == NULL:
                    raise MemoryError()
                for i in range(len(ordered)):
                    c_xattrs[i].name = _text(<bytes?> ordered[i][0])
                    c_xattrs[i].value = _text(<bytes?> ordered[i][1])
                entry.xattrs = c_xattrs
                entry.xattr_count = len(ordered)
            check(ls_tar_write_entry(&self.writer, &entry, &err), &err)
        finally:
            free(c_xattrs)

    def opaque(self, bytes path not None):
        """Have the directory of that path, whose entry was the last, hide what the layers below have in it."""
        cdef ls_error err
        check(ls_tar_write_opaque(&self.writer, _text(path), &err), &err)

    def whiteout(self, bytes path not None):
        """Have the layer hide what the layers below have at a path."""
        cdef ls_error err
        check(ls_tar_write_whiteout(&self.writer, _text(path), &err), &err)

    def data(self, buffer not None):
        """The next bytes of the last entry's content. Raises `CorruptError` for more than its size."""
        cdef ls_error err
        cdef Py_buffer view

        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            check(ls_tar_write_data(&self.writer, view.buf, <size_t> view.len, &err), &err)
        finally:
            PyBuffer_Release(&view)

    def end_data(self):
        """The content is whole. Raises `CorruptError` where that is less than its size."""
        cdef ls_error err
        check(ls_tar_write_data_end(&self.writer, &err), &err)

    def finish(self):
        """The end of the archive."""
        cdef ls_error err
        check(ls_tar_write_end(&self.writer, &err), &err)

    def __len__(self):
        """The bytes that `take` would give."""
        return self.writer.out.length

    def take(self):
        """What was written since the last call, as a read-only memoryview."""
        cdef Written taken = Written()
        cdef ls_error err

        taken.buffer = self.writer.out
        memset(&self.writer.out, 0, sizeof(self.writer.out))
        # The next piece will be as long.
        check(ls_buffer_reserve(&self.writer.out, taken.buffer.length, &err), &err)
        return memoryview(taken)
