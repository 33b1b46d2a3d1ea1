"""The path index: the paths of a layer, or of a whole chain of layers, in one immutable buffer (csrc/index/index.h)."""

import struct
from collections import namedtuple

from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.stat cimport S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG

from layerstore._core.buffer cimport ls_buffer_free
from layerstore._core.status cimport check, ls_error


cdef extern from "hash/siphash.h" nogil:
    uint64_t ls_siphash13(const uint8_t *key, const void *bytes, size_t length)
    uint64_t ls_siphash(unsigned c, unsigned d, const uint8_t *key, const void *bytes, size_t length)


cdef extern from "index/index_writer.h" nogil:
    struct ls_index_description:
        uint64_t size
        int64_t mtime_seconds
        uint32_t mtime_nanoseconds
        uint32_t mode
        uint32_t uid
        uint32_t gid
        uint32_t data
        uint16_t flags
        uint16_t layer

    struct ls_index_node:
        ls_index_description record
        uint32_t parent
        uint32_t inode
        uint32_t xattrs_length
        uint16_t name_length
        const char *name
        const char *target
        const uint8_t *xattrs

    int ls_index_write(ls_index_kind kind, uint32_t layer_count, const uint8_t *hash_key, const ls_index_node *nodes,
                       uint32_t node_count, const ls_content *contents, uint32_t content_count, ls_buffer *out,
                       ls_error *err)


cdef extern from "index/merge.h" nogil:
    int ls_merge(const ls_index *const *layers, size_t layer_count, const uint8_t *hash_key, ls_buffer *out,
                 ls_error *err)
    int ls_merge_check_links(const ls_index *const *layers, size_t layer_count, size_t first, ls_error *err)


CONTENT_BYTES = sizeof(ls_content)
LAYER = LS_INDEX_LAYER
CHAIN = LS_INDEX_CHAIN
WHITEOUT = LS_RECORD_WHITEOUT
OPAQUE = LS_RECORD_OPAQUE
IMPLIED = LS_RECORD_IMPLIED
LOWER_LINK = LS_RECORD_LOWER_LINK


_RECORD_FIELDS = (
    *("path", "name", "parent", "mode", "uid", "gid", "size", "mtime_ns", "target", "first_child", "count", "inode"),
    *("xattrs", "flags", "layer", "content", "rdev"),
)
_NODE_DEFAULTS = {
    **{"uid": 0, "gid": 0, "mtime_ns": 0, "content": None, "target": None, "rdev": None, "xattrs": {}, "flags": 0},
    **{"layer": 0, "inode": None},
}


class Record(namedtuple("Record", _RECORD_FIELDS)):
    """One path of an index.

    path, name: bytes without a leading '/'; the root's are empty.
    parent, inode: record numbers; inode is that of the first link of the same inode.
    mode: as st_mode; 0 for a whiteout and a lower link. size: bytes. mtime_ns: nanoseconds since the epoch.
    target: of a symlink or lower link. first_child, count: the range of a directory's children (0 without);
    for all others, first_child is 0 and count the number of links. flags: WHITEOUT, OPAQUE, IMPLIED, LOWER_LINK.
    layer: from 0 at the bottom. content: number into the contents of the index, None for an empty file and
    whatever is not a regular file. rdev: (major, minor) of a device.
    """

    __slots__ = ()


class Node(namedtuple("Node", ("parent", "name", "mode", *_NODE_DEFAULTS), defaults=_NODE_DEFAULTS.values())):
    """What `write_index` makes a record of; see csrc/index/index_writer.h. parent and inode are node numbers (inode None: its
    own); the root is node 0. size is taken from content or target where there is one."""

    __slots__ = ()


cdef class Index:
    """An index over any buffer that holds one (bytes, an mmap), which is kept alive and must not change.

    Raises CorruptError where the bytes are no index, and Unsupported for a version that this layerstore does not read.
    Opening looks at the header only; `verify` looks at everything. Safe for use by many threads at once.
    """

    def __cinit__(self, buffer not None):
        cdef ls_error err
        cdef const uint8_t[::1] view = memoryview(buffer).cast("B")

        # csrc/index/index.h wants its sections aligned, which a slice of something else may not be.
        if view.shape[0] and <size_t> &view[0] % 8:
            view = bytes(buffer)
        self._view = view
        check(ls_index_open(&self.index, &view[0] if view.shape[0] else NULL, view.shape[0], &err), &err)

    @property
    def kind(self):
        """LAYER or CHAIN."""
        return self.index.header.kind

    @property
    def layer_count(self):
        """The number of layers that the index answers for; 1 for a layer."""
        return self.index.header.layer_count

    @property
    def content_count(self):
        """The number of contents."""
        return self.index.header.content_count

    @property
    def hash_key(self):
        """The 16 bytes that key the hash of the paths."""
        return PyBytes_FromStringAndSize(<const char *> self.index.header.hash_key, 16)

    @property
    def nbytes(self):
        """The size of the index in bytes."""
        return self._view.shape[0]

    def __len__(self):
        return self.index.header.record_count

    def verify(self):
        """Compare the digest of all bytes and look at every record once. Raises CorruptError."""
        cdef ls_error err
        cdef int status

        with nogil:
            status = ls_index_verify(&self.index, &err)
        check(status, &err)

    def verify_digest(self):
        """Compare the digest of all bytes only: enough for what this store wrote itself. Raises CorruptError."""
        cdef ls_error err
        cdef int status

        with nogil:
            status = ls_index_verify_digest(&self.index, &err)
        check(status, &err)

    def lookup(self, bytes path not None):
        """The record number of a path (no leading '/', no "." or ".."; b"" is the root), or None."""
        cdef ls_error err
        cdef uint32_t number

        check(ls_index_lookup(&self.index, PyBytes_AS_STRING(path), PyBytes_GET_SIZE(path), &number, &err), &err)
        return None if number == LS_NONE else number

    def lookup_many(self, paths not None):
        """The record numbers of many paths, as a list in their order; None where there is none."""
        cdef ls_error err
        cdef int status
        cdef list items = list(paths)
        cdef Py_ssize_t i, n = len(items)
        cdef ls_path *c_paths = <ls_path *> malloc((n + 1) * sizeof(ls_path))
        cdef uint32_t *numbers = <uint32_t *> malloc((n + 1) * sizeof(uint32_t))

        try:
            if c_paths == NULL or numbers == NULL:
                raise MemoryError()
            for i in range(n):
                c_paths[i].bytes = PyBytes_AS_STRING(<bytes?> items[i])
                c_paths[i].length = PyBytes_GET_SIZE(items[i])
            with nogil:
                status = ls_index_find_many(&self.index, c_paths, n, numbers, &err)
            check(status, &err)
            return [None if number == LS_NONE else number for number in numbers[:n]]
        finally:
            free(c_paths)
            free(numbers)

    def record(self, number):
        """The record of that number. Raises IndexError where there is none, CorruptError where it is damaged."""
        cdef const ls_record *r = self._record(number)
        cdef bytes path = self._string(r.path, r.path_length)
        cdef uint32_t first = 0, count = 0
        cdef ls_error err

        if S_ISDIR(r.mode):
            check(ls_index_children(&self.index, number, &first, &count, &err), &err)
        else:
            count = r.count
        if S_ISREG(r.mode) and r.data != LS_NONE:
            self._check_content(r.data)
        return Record(
            path=path,
            name=path[r.name_start:],
            parent=r.parent,
            mode=r.mode,
            uid=r.uid,
            gid=r.gid,
            size=0 if S_ISDIR(r.mode) else r.size,
            mtime_ns=int(r.mtime_seconds) * 1_000_000_000 + r.mtime_nanoseconds,
            target=self._string(r.data, r.size) if S_ISLNK(r.mode) or r.flags & LS_RECORD_LOWER_LINK else None,
            first_child=first,
            count=count,
            inode=r.inode,
            xattrs=self._xattrs(r.xattrs),
            flags=r.flags,
            layer=r.layer,
            content=r.data if S_ISREG(r.mode) and r.data != LS_NONE else None,
            rdev=(r.size >> 32, r.size & 0xFFFFFFFF) if S_ISCHR(r.mode) or S_ISBLK(r.mode) else None,
        )

    def __getitem__(self, number):
        return self.record(number)

    def __iter__(self):
        """Every record, parents before their children."""
        for number in range(len(self)):
            yield self.record(number)

    def children(self, number):
        """The record numbers of a directory's children, sorted by name; empty for whatever is no directory."""
        cdef ls_error err
        cdef uint32_t first, count

        self._record(number)
        check(ls_index_children(&self.index, number, &first, &count, &err), &err)
        return range(first, first + count)

    def content(self, number):
        """(BLAKE3 digest, size in bytes) of the content of that number. Raises IndexError where there is none."""
        cdef const ls_content *content

        if not 0 <= number < self.content_count:
            raise IndexError(f"content {number} of an index that has {self.content_count}")
        content = &self.index.contents[<uint32_t> number]
        return PyBytes_FromStringAndSize(<const char *> content.digest, 32), content.size

    def contents_bytes(self):
        """All contents as a read-only memoryview of 40 bytes each: 32 of digest, 8 of size, little-endian."""
        start = <const uint8_t *> self.index.contents - &self._view[0]
        return memoryview(self._view).toreadonly()[start : start + 40 * self.content_count]

    def content_paths(self):
        """A path of each content, by its number: that of the first record that has it; b"" where none does.

        Raises CorruptError where a record is damaged.
        """
        cdef const ls_record *record
        cdef uint32_t i
        cdef list paths = [b""] * self.content_count

        for i in range(self.index.header.record_count):
            record = &self.index.records[i]
            if S_ISREG(record.mode) and record.data != LS_NONE:
                self._check_content(record.data)
                if not <bytes> paths[record.data]:
                    paths[record.data] = self._string(record.path, record.path_length)
        return paths

    def devices(self):
        """The devices in it, whatever their paths: a set of ("b" or "c", major, minor)."""
        cdef const ls_record *record
        cdef uint32_t i
        cdef set found = set()

        for i in range(self.index.header.record_count):
            record = &self.index.records[i]
            if S_ISCHR(record.mode) or S_ISBLK(record.mode):
                found.add(("b" if S_ISBLK(record.mode) else "c", record.size >> 32, record.size & 0xFFFFFFFF))
        return found

    def has_lower_links(self):
        """Whether there is a hard link to what a layer below has (LOWER_LINK)."""
        cdef uint32_t i
        cdef uint32_t flags = 0

        for i in range(self.index.header.record_count):
            flags |= self.index.records[i].flags
        return bool(flags & LS_RECORD_LOWER_LINK)

    cdef const ls_record *_record(self, number) except NULL:
        if not 0 <= number < len(self):
            raise IndexError(f"record {number} of an index that has {len(self)}")
        return &self.index.records[<uint32_t> number]

    cdef int _check_content(self, uint32_t number) except -1:
        if number >= self.index.header.content_count:
            from layerstore._core.status import CorruptError

            raise CorruptError(f"reading an index: content {number} of {self.content_count}; rebuild it")
        return 0

    cdef bytes _string(self, uint32_t offset, uint64_t length):
        cdef ls_error err
        cdef const char *string = NULL

        check(ls_index_string(&self.index, offset, length, &string, &err), &err)
        return PyBytes_FromStringAndSize(string, length)

    cdef dict _xattrs(self, uint32_t block):
        cdef ls_error err
        cdef ls_xattr_cursor cursor
        cdef dict xattrs = {}

        memset(&cursor, 0, sizeof(cursor))
        while True:
            check(ls_index_xattr_next(&self.index, block, &cursor, &err), &err)
            if cursor.name == NULL:
                return xattrs
            name = PyBytes_FromStringAndSize(cursor.name, cursor.name_length)
            xattrs[name] = PyBytes_FromStringAndSize(<const char *> cursor.value, cursor.value_length)


cdef class Written:
    """Owns what the C core wrote: up to gigabytes, which are not copied once more into a bytes object."""

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self.buffer.bytes, self.buffer.length, True, flags)

    def __dealloc__(self):
        ls_buffer_free(&self.buffer)


cdef const uint8_t *_key(bytes hash_key) except NULL:
    if PyBytes_GET_SIZE(hash_key) != 16:
        raise ValueError(f"a hash key has 16 bytes, not {len(hash_key)}")
    return <const uint8_t *> PyBytes_AS_STRING(hash_key)


cdef class Stack:
    """Indexes as C wants them, kept while this lives."""

    cdef list owners
    cdef size_t count
    cdef const ls_index **indexes

    def __cinit__(self, layers):
        self.owners = list(layers)
        self.count = len(self.owners)
        self.indexes = <const ls_index **> calloc(self.count + 1, sizeof(ls_index *))
        if self.indexes == NULL:
            raise MemoryError()
        for i in range(self.count):
            self.indexes[i] = &(<Index?> self.owners[i]).index

    def __dealloc__(self):
        free(self.indexes)


def merge(layers, bytes hash_key not None):
    """The index of the chain of these layers, the bottom one first (which may itself be a chain's index), as a
    read-only memoryview of its bytes.

    hash_key: 16 bytes, derived from the identity of the chain. See csrc/index/merge.h for the rules.
    Raises InvalidInput, naming it, for a hard link to what the layers below do not show; CorruptError for a damaged layer.
    """
    cdef ls_error err
    cdef int status
    cdef Written out = Written()
    cdef Stack stack = Stack(layers)
    cdef const uint8_t *key = _key(hash_key)

    with nogil:
        status = ls_merge(stack.indexes, stack.count, key, &out.buffer, &err)
    check(status, &err)
    return memoryview(out)


def check_links(layers, size_t first):
    """Look whether the hard links of the layers from number `first` on lead to a file of a layer below their own.

    Raises InvalidInput, naming it, for one that does not; CorruptError for a damaged layer.
    """
    cdef ls_error err
    cdef int status
    cdef Stack stack = Stack(layers)

    with nogil:
        status = ls_merge_check_links(stack.indexes, stack.count, first, &err)
    check(status, &err)


def encode_xattrs(xattrs):
    """The xattr block of a mapping of names to values, as the heap of an index holds it; b"" for none."""
    parts = [struct.pack("<H", len(xattrs))] if xattrs else []
    for name, value in sorted(xattrs.items()):
        parts.append(struct.pack("<HI", len(name), len(value)) + name + value)
    return b"".join(parts)


def write_index(kind, layer_count, bytes hash_key not None, nodes, contents=()):
    """An index of nodes (see Node; the root first, else in any order) and contents ((digest, size), …), as a
    read-only memoryview of its bytes.

    Raises InvalidInput or LimitExceeded, naming the node. For tests and tools: layers are built in C (csrc/index/layer.h).
    """
    cdef ls_error err
    cdef int status
    cdef Written out = Written()
    cdef const uint8_t *key = _key(hash_key)
    cdef uint32_t node_count = len(nodes), content_count = len(contents)
    cdef list alive = []
    cdef ls_index_kind c_kind = kind
    cdef uint32_t c_layer_count = layer_count
    cdef ls_content *c_contents = <ls_content *> calloc(content_count + 1, sizeof(ls_content))
    cdef ls_index_node *c_nodes = <ls_index_node *> calloc(node_count + 1, sizeof(ls_index_node))

    try:
        if c_contents == NULL or c_nodes == NULL:
            raise MemoryError()
        for i, (digest, size) in enumerate(contents):
            if len(digest) != 32:
                raise ValueError(f"a digest has 32 bytes, not {len(digest)}")
            memcpy(c_contents[i].digest, PyBytes_AS_STRING(digest), 32)
            c_contents[i].size = size
        for i, node in enumerate(nodes):
            _fill_node(&c_nodes[i], i, node, contents, alive)
        with nogil:
            status = ls_index_write(c_kind, c_layer_count, key, c_nodes, node_count, c_contents, content_count,
                                    &out.buffer, &err)
        check(status, &err)
        return memoryview(out)
    finally:
        free(c_contents)
        free(c_nodes)


cdef int _fill_node(ls_index_node *out, uint32_t number, node, contents, list alive) except -1:
    cdef bytes name = node.name
    cdef bytes xattrs = encode_xattrs(node.xattrs)

    alive += [name, xattrs, node.target]
    out.parent = LS_NONE if node.parent is None else node.parent
    out.inode = number if node.inode is None else node.inode
    out.name = name
    if len(name) > 0xFFFF:
        raise ValueError(f"a name of {len(name)} bytes")
    out.name_length = len(name)
    out.record.mode = node.mode
    out.record.uid = node.uid
    out.record.gid = node.gid
    out.record.mtime_seconds = node.mtime_ns // 1_000_000_000
    out.record.mtime_nanoseconds = node.mtime_ns % 1_000_000_000
    out.record.flags = node.flags
    out.record.layer = node.layer
    out.record.data = LS_NONE if node.content is None else node.content
    if node.content is not None and node.content < len(contents):
        out.record.size = contents[node.content][1]
    if node.target is not None and not S_ISDIR(node.mode):
        out.target = node.target
        out.record.size = len(node.target)
    if node.rdev is not None:
        out.record.size = node.rdev[0] << 32 | node.rdev[1]
    if xattrs:
        out.xattrs = <const uint8_t *> PyBytes_AS_STRING(xattrs)
        out.xattrs_length = len(xattrs)
    return 0


def siphash(key, data, compression_rounds=1, finalization_rounds=3):
    """SipHash of bytes under a key of 16 bytes, as an int of 64 bits; by default the 1-3 that the indexes use."""
    cdef bytes k = key, d = data
    cdef const uint8_t *c_key = _key(k)

    if (compression_rounds, finalization_rounds) == (1, 3):
        return ls_siphash13(c_key, PyBytes_AS_STRING(d), len(d))
    return ls_siphash(compression_rounds, finalization_rounds, c_key, PyBytes_AS_STRING(d), len(d))
