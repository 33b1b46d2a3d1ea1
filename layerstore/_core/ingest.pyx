"""The import of a layer: digest table, new contents, tar to index and recipe (csrc/content/digests.h, contents.h, ingest.h)."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport UINT32_MAX, UINT64_MAX, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free
from layerstore._core.hashing cimport ls_b3_kernel, ls_b3_kernel_find
from layerstore._core.index cimport Written
from layerstore._core.status cimport check, ls_error
from layerstore._core.tar cimport ls_tar_limits, tar_limits

from layerstore._core.status import InvalidInput

cdef extern from "content/ingest.h" nogil:
    struct ls_ingest:
        pass
    int ls_ingest_new(ls_ingest **ingest, ls_contents *contents, const ls_tar_limits *limits, ls_error *err)
    void ls_ingest_free(ls_ingest *ingest)
    const uint64_t LS_INGEST_HOLE_BYTES
    struct ls_ingest_limits:
        uint64_t hole_bytes
        uint64_t passed_hole_bytes
        uint64_t index_bytes
    void ls_ingest_limit(ls_ingest *ingest, const ls_ingest_limits *limits)
    int ls_ingest_feed(ls_ingest *ingest, const uint8_t *bytes, size_t length, ls_error *err)
    int ls_ingest_finish(ls_ingest *ingest, ls_error *err)
    int ls_ingest_take_recipe(ls_ingest *ingest, ls_buffer *out, ls_error *err)
    int ls_ingest_index(ls_ingest *ingest, const uint8_t *hash_key, ls_buffer *out, ls_error *err)
    uint64_t ls_ingest_files_bytes(const ls_ingest *ingest)

RECORD_BYTES = 48
LOCATION_OBJECT = LS_LOCATION_OBJECT
LOCATION_NONE = LS_LOCATION_NONE


cdef class Digests:
    """Where contents are: a table over `count` records (48 bytes each) of the digest log in `buffer`.

    `buffer` (any bytes-like object, such as a memory map) is kept alive and must not change. `base`, a table over the
    first records of the same log, saves work. Immutable once made: safe to read from many threads.
    Raises `InvalidInput` when the buffer is too short or not at a multiple of 8 in memory, `LimitExceeded` for more than
    2^30 records, `MemoryError`.
    """

    cdef ls_digests digests
    cdef Py_buffer view
    cdef bint viewed

    def __cinit__(self, buffer, Py_ssize_t count, Digests base=None):
        cdef ls_error err
        cdef int status
        check(ls_digests_init(&self.digests, &err), &err)
        PyObject_GetBuffer(buffer, &self.view, PyBUF_SIMPLE)
        self.viewed = True
        if count < 0 or self.view.len // 48 < count:
            raise InvalidInput(f"the digest log holds {self.view.len // 48} records, but {count} were committed")
        if <uintptr_t>self.view.buf % 8:
            raise InvalidInput("the records of the digest log must start at a multiple of 8 in memory")
        if base is not None and base.digests.slot_count and base.digests.count <= count:
            self.digests.slots = <uint64_t *>malloc(base.digests.slot_count * sizeof(uint64_t))
            if self.digests.slots == NULL:
                raise MemoryError("out of memory copying the digest table")
            memcpy(self.digests.slots, base.digests.slots, base.digests.slot_count * sizeof(uint64_t))
            self.digests.slot_count = base.digests.slot_count
            self.digests.count = base.digests.count
            self.digests.key = base.digests.key
        with nogil:
            status = ls_digests_extend(&self.digests, <const ls_digest_record *>self.view.buf, <size_t>count, &err)
        check(status, &err)

    def __dealloc__(self):
        ls_digests_free(&self.digests)
        if self.viewed:
            PyBuffer_Release(&self.view)

    def __len__(self):
        return self.digests.count

    def locate_many(self, const uint8_t[::1] digests not None, Py_ssize_t stride):
        """Locations of the digests that begin at every `stride`-th byte of `digests`.

        Returns bytes: for each, two little-endian u32, pack and slot. Pack is LOCATION_OBJECT for an object,
        LOCATION_NONE where the content is not stored.
        """
        cdef Py_ssize_t n = _count(digests, stride)
        out = PyBytes_FromStringAndSize(NULL, n * sizeof(ls_location))
        cdef ls_location *locations = <ls_location *>PyBytes_AS_STRING(out)
        if n:
            with nogil:
                ls_digests_locate_many(&self.digests, &digests[0], stride, n, locations)
        return out

    def number_many(self, const uint8_t[::1] digests not None, Py_ssize_t stride):
        """Which record of the log is the last of each digest, of those that begin at every `stride`-th byte of `digests`.

        Returns bytes: for each a u32 of this machine, 2^32 - 1 where the content is not stored.
        """
        cdef Py_ssize_t n = _count(digests, stride)
        out = PyBytes_FromStringAndSize(NULL, n * sizeof(uint32_t))
        cdef uint32_t *numbers = <uint32_t *>PyBytes_AS_STRING(out)
        if n:
            with nogil:
                ls_digests_find_many(&self.digests, &digests[0], stride, n, numbers)
        return out

    def mark_many(self, const uint8_t[::1] digests not None, Py_ssize_t stride, uint8_t[::1] marks not None):
        """Set the byte in `marks`, which has one for each record, of the last record of each of these digests.

        Returns bytes: for each of the digests whose byte was 0 a u32 of this machine, which of them it is.
        """
        cdef Py_ssize_t n = _count(digests, stride)
        cdef size_t count = 0
        if n > UINT32_MAX:
            raise InvalidInput(f"{n} digests are more than can be counted")
        if marks.shape[0] < self.digests.count:
            raise InvalidInput(f"{self.digests.count} records cannot be marked in {marks.shape[0]} bytes")
        out = PyBytes_FromStringAndSize(NULL, n * sizeof(uint32_t))
        cdef uint32_t *positions = <uint32_t *>PyBytes_AS_STRING(out)
        if n and marks.shape[0]:
            with nogil:
                count = ls_digests_mark_many(&self.digests, &digests[0], stride, n, &marks[0], positions)
        return out[:count * sizeof(uint32_t)]


cdef Py_ssize_t _count(const uint8_t[::1] digests, Py_ssize_t stride) except -1:
    if stride < 32:
        raise InvalidInput(f"digests are 32 bytes each, so a stride of {stride} cannot be")
    return digests.shape[0] // stride


cdef class Spans:
    """The bytes of a list of bytes-like objects as C wants them, kept while this lives."""

    cdef list kept
    cdef size_t count
    cdef const uint8_t **starts
    cdef size_t *lengths

    def __cinit__(self, objects):
        cdef const uint8_t[::1] view
        cdef size_t i
        self.kept = [memoryview(each).cast("B") for each in objects]
        self.count = len(self.kept)
        self.starts = <const uint8_t **>calloc(self.count + 1, sizeof(uint8_t *))
        self.lengths = <size_t *>calloc(self.count + 1, sizeof(size_t))
        if self.starts == NULL or self.lengths == NULL:
            raise MemoryError(f"out of memory for {self.count} contents")
        for i in range(self.count):
            view = self.kept[i]
            if not view.shape[0]:
                raise InvalidInput("an empty file has no content to be stored")
            self.starts[i] = &view[0]
            self.lengths[i] = view.shape[0]

    def __dealloc__(self):
        free(self.starts)
        free(self.lengths)


cdef class Contents:
    """The new contents of one import, written to the directory `staging_fd` and the empty file `pack_fd`.

    Contents of at most `pack_threshold_bytes` go to the pack, larger ones to files named by their digest.
    The descriptors stay the caller's. After `publish`, and after an exception from it or from a layer's import, nothing
    can be added (`InvalidInput`). Not for use by two threads at once.
    """

    cdef ls_contents *contents
    cdef Digests digests
    cdef bint closed

    def __cinit__(self, int staging_fd, int pack_fd, Digests digests not None, size_t pack_threshold_bytes):
        cdef ls_error err
        cdef const ls_b3_kernel *kernel
        self.digests = digests
        check(ls_b3_kernel_find(NULL, &kernel, &err), &err)
        check(ls_contents_new(&self.contents, staging_fd, pack_fd, &digests.digests, pack_threshold_bytes, kernel,
                              &err), &err)

    def __dealloc__(self):
        ls_contents_free(self.contents)

    cdef int check_open(self) except -1:
        # What was to be written next may lie in memory that is gone.
        if self.closed:
            raise InvalidInput("this import failed or was published: begin another")
        return 0

    def expect_clones(self, bint expected):
        """Whether the n-th content from now on, from 0, of those that are too large for the pack may be in the staging
        directory already, as the file `clone.n`: its bytes are hashed then, and not written.
        """
        ls_contents_expect_clones(self.contents, expected)

    def put_many(self, contents not None):
        """Hash contents (bytes-like objects, none empty) and store those that are new; returns their digests, 32 bytes
        each. Raises `OSError`.
        """
        cdef ls_error err
        cdef int status
        cdef Spans spans = Spans(contents)
        cdef bytes digests = PyBytes_FromStringAndSize(NULL, 32 * <Py_ssize_t>spans.count)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(digests)
        self.check_open()
        with nogil:
            status = ls_contents_put_many(self.contents, spans.starts, spans.lengths, spans.count, out, &err)
        self.closed = status != 0
        check(status, &err)
        return digests

    def put_pieces(self, pieces not None):
        """Store one content, which comes in pieces (bytes-like objects), unless it is known; returns its digest, 32 bytes.

        Raises `OSError`, and what `pieces` does.
        """
        cdef ls_error err
        cdef int status
        cdef const uint8_t[::1] view
        cdef bytes digest = PyBytes_FromStringAndSize(NULL, 32)
        cdef uint8_t *out = <uint8_t *>PyBytes_AS_STRING(digest)
        self.check_open()
        self.closed = True
        check(ls_contents_stream_begin(self.contents, &err), &err)
        for piece in pieces:
            view = memoryview(piece).cast("B")
            if view.shape[0]:
                with nogil:
                    status = ls_contents_stream_data(self.contents, &view[0], view.shape[0], &err)
                check(status, &err)
        with nogil:
            status = ls_contents_stream_end(self.contents, out, &err)
        check(status, &err)
        self.closed = False
        return digest

    def publish(self, int objects_fd, uint32_t pack):
        """Finish the pack, which has that number, and move the objects to their places below `objects_fd`.

        Nothing can be added after. Raises `OSError`, `LimitExceeded` for a number that no pack can have.
        """
        cdef ls_error err
        cdef int status
        self.check_open()
        self.closed = True
        with nogil:
            status = ls_contents_publish(self.contents, objects_fd, pack, &err)
        check(status, &err)

    @property
    def counts(self):
        """`(new count, new bytes, known count, known bytes)` so far."""
        cdef ls_contents_counts counts = ls_contents_counts_(self.contents)
        return counts.new_count, counts.new_bytes, counts.known_count, counts.known_bytes

    def records(self):
        """Digest log records (48 bytes each) of what was new, after `publish`."""
        cdef uint32_t count
        cdef const ls_digest_record *records = ls_contents_records(self.contents, &count)
        return PyBytes_FromStringAndSize(<const char *>records, <Py_ssize_t>count * 48)

    def slots(self):
        """`(slots, bytes)`: the pack's slots (48 bytes each) and the bytes of contents in it."""
        cdef uint32_t count
        cdef uint64_t size
        cdef const ls_pack_slot *slots = ls_contents_slots(self.contents, &count, &size)
        return PyBytes_FromStringAndSize(<const char *>slots, <Py_ssize_t>count * 48), size


cdef class LayerIngest:
    """The import of one layer's tar into `contents`. Not for use by two threads at once.

    After an exception from any method the import is void: every method raises `InvalidInput`, for `contents` too. Index,
    recipe, and what is stored and in which order depend on the tar alone, not on how it is cut.
    The limits are those of csrc/tar/tar.h and, of `hole_bytes`, of csrc/content/ingest.h, with the defaults given there.
    """

    cdef ls_ingest *ingest
    cdef ls_buffer recipe
    cdef Contents contents
    cdef bint finished
    cdef bint indexed
    cdef ls_ingest_limits limits

    def __cinit__(self, Contents contents not None, *, path_bytes=None, name_bytes=None, extended_bytes=None,
                  sparse_extents=None, file_bytes=None, entries=None, hole_bytes=None):
        cdef ls_error err
        cdef ls_tar_limits limits = tar_limits(path_bytes, name_bytes, extended_bytes, sparse_extents, file_bytes,
                                               entries)
        self.contents = contents
        self.limits.hole_bytes = LS_INGEST_HOLE_BYTES if hole_bytes is None else hole_bytes
        self.limits.passed_hole_bytes = self.limits.index_bytes = UINT64_MAX
        check(ls_ingest_new(&self.ingest, contents.contents, &limits, &err), &err)
        ls_ingest_limit(self.ingest, &self.limits)

    def __dealloc__(self):
        ls_ingest_free(self.ingest)
        ls_buffer_free(&self.recipe)

    cdef object take_recipe(self, int status, ls_error *err):
        if not status:
            status = ls_ingest_take_recipe(self.ingest, &self.recipe, err)
        if status:
            self.finished = self.indexed = self.contents.closed = True
        check(status, err)
        return PyBytes_FromStringAndSize(<const char *>self.recipe.bytes, self.recipe.length)

    def allow(self, uint64_t index_bytes, uint64_t hole_bytes):
        """From the next span on, refuse an entry that brings what the layer's entries take, or the holes that have come
        of its sparse files, to more bytes than these (`struct ls_ingest_limits` in csrc/content/ingest.h)."""
        self.limits.index_bytes = index_bytes
        self.limits.passed_hole_bytes = hole_bytes
        ls_ingest_limit(self.ingest, &self.limits)

    def feed(self, const uint8_t[::1] span not None):
        """Take in the next bytes of the tar; returns the recipe bytes that are complete with them.

        Raises `CorruptError`, `InvalidInput` or `LimitExceeded` (naming the entry), `OSError`.
        """
        cdef ls_error err
        cdef int status
        cdef size_t length = span.shape[0]
        self.contents.check_open()
        if self.finished:
            raise InvalidInput("this layer's tar has ended: nothing can be fed after finish")
        if not length:
            return b""
        with nogil:
            status = ls_ingest_feed(self.ingest, &span[0], length, &err)
        return self.take_recipe(status, &err)

    def finish(self):
        """Say that the tar has ended; returns the last bytes of the recipe.

        Raises `CorruptError` when the tar stops inside an entry.
        """
        cdef ls_error err
        self.contents.check_open()
        if self.finished:
            raise InvalidInput("this layer's tar has ended already")
        self.finished = True
        return self.take_recipe(ls_ingest_finish(self.ingest, &err), &err)

    def index(self, bytes hash_key not None):
        """The layer's index as a read-only memoryview, its path hash keyed by `hash_key` (16 bytes).

        Once, after `finish`.
        """
        cdef ls_error err
        cdef int status
        cdef Written out = Written()
        cdef const uint8_t *key
        if len(hash_key) != 16:
            raise InvalidInput(f"a path hash key is 16 bytes, not {len(hash_key)}")
        if not self.finished or self.indexed:
            raise InvalidInput("a layer has its index after finish, and gives it once")
        self.indexed = True
        key = <const uint8_t *>PyBytes_AS_STRING(hash_key)
        with nogil:
            status = ls_ingest_index(self.ingest, key, &out.buffer, &err)
        check(status, &err)
        return memoryview(out)

    @property
    def files_bytes(self):
        """The sum of the logical sizes of the regular files so far, bytes."""
        return ls_ingest_files_bytes(self.ingest)
