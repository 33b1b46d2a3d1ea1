"""The extent map of a file, over csrc/extent/extents.h."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy

from layerstore._core.status cimport LS_LIMIT, check

from layerstore._core.status import Conflict, InvalidInput

ZERO = LS_EXTENT_ZERO
IMAGE = LS_EXTENT_IMAGE
MAX_LOGS = LS_EXTENT_MAX_LOGS

cdef enum:
    PIECES = 128


cdef uint64_t unsigned(long long number, str what) except? 0xFFFFFFFFFFFFFFFF:
    """`number` if it is not negative. Raises `InvalidInput` naming `what`."""
    if number < 0:
        raise InvalidInput(f"{what} of a file cannot be negative: {number}")
    return <uint64_t>number


cdef int check_change(int status, ls_error *err) except -1:
    """As `check`, but a range that no file can have is an `OverflowError`, as for other files."""
    if status == LS_LIMIT:
        raise OverflowError(err.message.decode("utf-8", "replace"))
    return check(status, err)


def source(uint64_t log, uint64_t offset):
    """The source of a range whose bytes begin at byte `offset` (below 2^48) of the log of that number.

    Raises `InvalidInput` for a number from `MAX_LOGS` on, or an offset that no source can name.
    """
    if log >= LS_EXTENT_MAX_LOGS or offset >= LS_EXTENT_LOG_BYTES:
        raise InvalidInput(f"no source names byte {offset} of log {log}: numbers are below {MAX_LOGS}, bytes below 2^48")
    return log << LS_EXTENT_LOG_SHIFT | offset


cdef class _Words:
    """A copy of u64 words from a buffer, `width` in a row."""

    cdef uint64_t *words
    cdef size_t rows

    def __cinit__(self, buffer, size_t width):
        cdef Py_buffer view
        PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
        try:
            if <size_t>view.len % (8 * width):
                raise InvalidInput(f"{width} words of 8 bytes each are expected, which {view.len} bytes are not")
            self.rows = <size_t>view.len // (8 * width)
            self.words = <uint64_t *>malloc(<size_t>view.len + 1)
            if self.words == NULL:
                raise MemoryError(f"out of memory for {self.rows} ranges of an extent map")
            memcpy(self.words, view.buf, <size_t>view.len)
        finally:
            PyBuffer_Release(&view)

    def __dealloc__(self):
        free(self.words)


cdef class _Pieces:
    """A growing array of pieces."""

    cdef ls_piece *pieces
    cdef size_t count
    cdef size_t capacity

    cdef int reserve(self, size_t extra) except -1 nogil:
        cdef size_t capacity = 2 * self.capacity + extra
        cdef ls_piece *pieces
        if self.capacity - self.count >= extra:
            return 0
        pieces = <ls_piece *>realloc(self.pieces, capacity * sizeof(ls_piece))
        if pieces == NULL:
            with gil:
                raise MemoryError(f"out of memory for {capacity} pieces of a file")
        self.pieces = pieces
        self.capacity = capacity
        return 0

    def __dealloc__(self):
        free(self.pieces)

    cdef bytes packed(self):
        return PyBytes_FromStringAndSize(<char *>self.pieces, <Py_ssize_t>(self.count * sizeof(ls_piece)))


cdef int collect(const ls_extents *map, uint64_t start, uint64_t end, _Pieces pieces) except -1 nogil:
    """Append the pieces of a range."""
    cdef size_t n
    while True:
        pieces.reserve(PIECES)
        n = ls_extents_lookup(map, start, end, pieces.pieces + pieces.count, PIECES)
        pieces.count += n
        if n < PIECES:
            return 0
        start = pieces.pieces[pieces.count - 1].start + pieces.pieces[pieces.count - 1].length


cdef class ExtentMap:
    """Where the bytes of a file of `size` bytes are. Every byte below the size has a source; nothing is beyond.

    Offsets, lengths and sizes are bytes, from 0 to 2^63 - 1. Raises `InvalidInput` (a `ValueError`) for a negative one,
    `OverflowError` for a range that ends beyond 2^63 - 1 bytes, `Conflict` for a change of a frozen map, `MemoryError`; after an
    error the map is what it was. One lookup or change costs O(log n) of n extents plus what it covers. Reading is
    safe in many threads, changing is for one at a time.
    """

    def __cinit__(self, long long image_size=0):
        """A map of a file of `image_size` bytes, all of them the image's."""
        cdef ls_piece piece = ls_piece(0, unsigned(image_size, "the size"), LS_EXTENT_IMAGE)
        self.put(&piece)

    def __dealloc__(self):
        ls_extents_free(&self.map)

    cdef int begin_change(self) except -1:
        if self.frozen:
            raise Conflict("this extent map is frozen, others share it: change a clone() of it")
        self.changes += 1
        return 0

    cdef int check_piece(self, const ls_piece *piece) except -1:
        """Raise what `put` of that piece would raise, short of memory."""
        cdef ls_error err
        if self.frozen:
            self.begin_change()
        return check_change(ls_piece_check(piece, &err), &err)

    cdef int put(self, const ls_piece *piece) except -1:
        """`write`."""
        cdef ls_error err
        self.begin_change()
        return check_change(ls_extents_write(&self.map, piece, &err), &err)

    @property
    def size(self):
        """Bytes of the file."""
        return self.map.size

    def __len__(self):
        """How many extents there are: ranges as long as they can be."""
        return self.map.count

    def __bool__(self):
        """Always true: a map of an empty file is one as well."""
        return True

    def __iter__(self):
        """`(start, length, source)` of every extent in order, as the map is when the iteration begins."""
        return iter(self.pieces(0, self.map.size))

    def write(self, long long start, long long length, uint64_t source):
        """Have a range come from `source`. What lies between the former size and `start` becomes zeros.

        Raises `InvalidInput` for a source that is no source, or a range of a log that passes byte 2^48. A length of 0
        changes nothing, not even the size.
        """
        cdef ls_piece piece = ls_piece(unsigned(start, "an offset"), unsigned(length, "a length"), source)
        self.put(&piece)

    def punch(self, long long start, long long length):
        """Have what of a range lies below the size be zeros; the size stays."""
        cdef ls_error err
        cdef uint64_t first = unsigned(start, "an offset"), n = unsigned(length, "a length")
        self.begin_change()
        check_change(ls_extents_punch(&self.map, first, n, &err), &err)

    def truncate(self, long long size):
        """Set the size. What is cut off is gone; what is added is zeros."""
        cdef ls_error err
        cdef uint64_t new_size = unsigned(size, "the size")
        self.begin_change()
        check_change(ls_extents_truncate(&self.map, new_size, &err), &err)

    def write_many(self, writes):
        """`write` for many in their order: u64 `start`, `length` and `source` of each, native, one after another.

        All or nothing. The GIL is released. Raises `RuntimeError` where another thread changed the map meanwhile.
        """
        cdef ls_error err
        cdef int status
        cdef _Words words = _Words(writes, 3)
        # A clone is changed and takes the map's place, so that nothing of it is seen before, or after an error.
        cdef ExtentMap changed = self.clone()
        self.begin_change()
        cdef uint64_t changes = self.changes
        with nogil:
            status = ls_extents_write_many(&changed.map, <const ls_piece *>words.words, words.rows, &err)
        check_change(status, &err)
        if self.changes != changes or self.frozen:
            raise RuntimeError("an extent map was changed by another thread during write_many; lock around changes")
        self.map, changed.map = changed.map, self.map

    cdef list pieces(self, uint64_t start, uint64_t end):
        cdef ls_piece pieces[PIECES]
        cdef size_t n, i
        cdef list found = []
        while True:
            n = ls_extents_lookup(&self.map, start, end, pieces, PIECES)
            for i in range(n):
                found.append((pieces[i].start, pieces[i].length, pieces[i].source))
            if n < PIECES:
                return found
            start = pieces[n - 1].start + pieces[n - 1].length

    def lookup(self, long long start, long long length):
        """`(start, length, source)` of the pieces of a range in order. They cover what of it lies below the size."""
        cdef uint64_t first = unsigned(start, "an offset")
        return self.pieces(first, first + unsigned(length, "a length"))

    def lookup_many(self, ranges):
        """`lookup` for many: u64 `start` and `length` of each, native. The GIL is released.

        Returns the pieces of all ranges as u64 triples, and for each range a u64: how many pieces there are up to its
        last. So those of range i are `pieces[ends[i - 1] : ends[i]]`.
        """
        cdef _Words words = _Words(ranges, 2)
        cdef _Pieces pieces = _Pieces()
        # What other threads change meanwhile is no part of a clone.
        cdef ExtentMap still = self.clone()
        cdef uint64_t start, length
        cdef size_t i
        with nogil:
            for i in range(words.rows):
                start = words.words[2 * i]
                length = words.words[2 * i + 1]
                collect(&still.map, start, start + min(length, still.map.size), pieces)
                # The start is read: its place takes the end.
                words.words[i] = pieces.count
        return pieces.packed(), PyBytes_FromStringAndSize(<char *>words.words, <Py_ssize_t>(8 * words.rows))

    def packed(self):
        """All extents as u64 triples, as `write_many` takes them."""
        cdef _Pieces pieces = _Pieces()
        pieces.reserve(self.map.count + PIECES)
        collect(&self.map, 0, self.map.size, pieces)
        return pieces.packed()

    def live_bytes(self):
        """How many bytes of the file come from each log, by its number; logs that give none are not there."""
        cdef uint32_t n = ls_extents_log_count(&self.map), i
        cdef uint64_t *live
        if not n:
            return {}
        live = <uint64_t *>calloc(n, sizeof(uint64_t))
        if live == NULL:
            raise MemoryError(f"out of memory counting the bytes of {n} logs")
        try:
            ls_extents_add_live(&self.map, live)
            return {i: live[i] for i in range(n) if live[i]}
        finally:
            free(live)

    def clone(self):
        """A map of its own that says the same, and is not frozen. Blocks of up to 256 extents are shared until they change."""
        cdef ls_error err
        cdef ExtentMap clone = ExtentMap()
        check(ls_extents_clone(&clone.map, &self.map, &err), &err)
        return clone

    def freeze(self):
        """Refuse changes from now on."""
        self.frozen = True
