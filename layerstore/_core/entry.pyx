"""What an index says of one path."""

import os

cimport cython
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.stat cimport S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG

from layerstore._core.index cimport LS_NONE, Index, ls_index_name, ls_index_string, ls_record
from layerstore._core.status cimport check, ls_error

from layerstore._core.status import CorruptError


cdef extern from "content/rows.h" nogil:
    char ls_type_letter(uint32_t mode)


cdef str text(const char *string, size_t length):
    return PyUnicode_DecodeUTF8(string, length, "surrogateescape")


@cython.final
@cython.freelist(64)
cdef class Entry:
    """What an index says of one path: of a link the link, unless a lookup has followed it. Made by `Tree`.

    Attributes are read from the index when they are asked for, and raise `CorruptError` where it is damaged.
    """

    def __init__(self):
        raise TypeError("entries come from a view's lookup and scandir")

    def __repr__(self):
        return f"<Entry {self.type} {self.path!r}>"

    @property
    def path(self):
        """Where it is in the tree: an absolute path without links, str with surrogateescape."""
        return "/" + self._string(self._record.path, self._record.path_length)

    cdef str _string(self, uint32_t offset, uint64_t length):
        cdef ls_error err
        cdef const char *string = NULL

        check(ls_index_string(&self.index.index, offset, length, &string, &err), &err)
        return text(string, length)

    @property
    def name(self):
        """The last component of its path; "" of the root."""
        cdef ls_error err
        cdef const char *string = NULL
        cdef size_t length = 0

        check(ls_index_name(&self.index.index, self._record, &string, &length, &err), &err)
        return text(string, length)

    @property
    def type(self):
        """A letter: f regular file, d directory, l symbolic link, c and b devices, p FIFO, s socket."""
        return chr(ls_type_letter(self._record.mode))

    @property
    def mode(self):
        """As `st_mode`: the type and the permissions."""
        return self._record.mode

    @property
    def uid(self):
        """The number of its owner."""
        return self._record.uid

    @property
    def gid(self):
        """The number of its group."""
        return self._record.gid

    @property
    def size(self):
        """Bytes of a regular file's content or of a link's target; 0 of all else."""
        return self._record.size if S_ISREG(self._record.mode) or S_ISLNK(self._record.mode) else 0

    @property
    def mtime_ns(self):
        """When it was last modified, nanoseconds since the epoch."""
        return int(self._record.mtime_seconds) * 1_000_000_000 + self._record.mtime_nanoseconds

    @property
    def layer(self):
        """The number of the layer that it is from, 0 at the bottom."""
        return self._record.layer

    @property
    def nlink(self):
        """The number of its hard links; 1 of a directory, whose subdirectories are not counted."""
        return 1 if S_ISDIR(self._record.mode) else self._record.count

    @property
    def target(self):
        """Of a symbolic link what it holds, str with surrogateescape; else None."""
        return self._string(self._record.data, self._record.size) if S_ISLNK(self._record.mode) else None

    @property
    def xattrs(self):
        """Its extended attributes: names (str) to values (bytes)."""
        return {name.decode("utf-8", "surrogateescape"): value
                for name, value in self.index._xattrs(self._record.xattrs).items()}

    @property
    def rdev(self):
        """The (major, minor) numbers of a device; else None."""
        if not S_ISCHR(self._record.mode) and not S_ISBLK(self._record.mode):
            return None
        major, minor = self._record.size >> 32, self._record.size & 0xFFFFFFFF
        if major >= 1 << 12 or minor >= 1 << 20:
            raise CorruptError(
                f"reading an index: {self.path!r} is device {major}:{minor}, which no import takes; rebuild the index"
            )
        return major, minor

    @property
    def digest(self):
        """The BLAKE3-256 of its content, 64 hexadecimal digits; None of an empty file and of all but regular files."""
        if not S_ISREG(self._record.mode) or self._record.data == LS_NONE:
            return None
        self.index._check_content(self._record.data)
        return PyBytes_FromStringAndSize(<const char *> self.index.index.contents[self._record.data].digest, 32).hex()

    def is_file(self):
        """Whether it is a regular file."""
        return bool(S_ISREG(self._record.mode))

    def is_dir(self):
        """Whether it is a directory."""
        return bool(S_ISDIR(self._record.mode))

    def is_symlink(self):
        """Whether it is a symbolic link."""
        return bool(S_ISLNK(self._record.mode))

    def stat(self):
        """As `os.lstat`: st_ino is the number of the inode's first record and 1, st_dev the same for equal stacks of
        layers only, and every time is that of modification."""
        cdef const ls_record *r = self._record
        cdef uint64_t device = 0

        memcpy(&device, self.index.index.header.hash_key, sizeof(device))
        ns = self.mtime_ns
        exact = r.mtime_seconds + 1e-9 * r.mtime_nanoseconds
        times = {f"st_{which}time{unit}": value for which in "amc" for unit, value in (("", exact), ("_ns", ns))}
        device_number = os.makedev(*(self.rdev or (0, 0)))
        rest = {"st_blksize": 4096, "st_blocks": (self.size + 511) // 512, "st_rdev": device_number}
        seconds = r.mtime_seconds
        return os.stat_result(
            (r.mode, r.inode + 1, device, self.nlink, r.uid, r.gid, self.size, seconds, seconds, seconds), times | rest
        )


cdef Entry make_entry(Index index, uint32_t record):
    cdef Entry entry = Entry.__new__(Entry)

    entry.index = index
    entry.record = record
    entry._record = &index.index.records[record]
    return entry
