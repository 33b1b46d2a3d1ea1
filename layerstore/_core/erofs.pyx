"""EROFS images of metadata: the tree of a chain, and the index of a pack. See csrc/erofs/erofs.h and docs/format/erofs.md."""

from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset

from layerstore._core.buffer cimport ls_buffer, ls_buffer_free
from layerstore._core.index cimport Index, ls_index
from layerstore._core.ingest cimport LS_LOCATION_OBJECT, ls_location, ls_pack_slot
from layerstore._core.status cimport check, ls_error


cdef extern from "erofs/erofs.h" nogil:
    const int LS_PACK_BLOCK_BYTES

    int ls_erofs_write_tree(const ls_index *chain, const ls_location *locations, ls_buffer *out, ls_error *err)


cdef extern from "erofs/erofs_pack.h" nogil:
    int ls_erofs_write_pack(uint32_t pack, uint64_t pack_bytes, const ls_pack_slot *slots, uint32_t slot_count,
                            ls_buffer *out, ls_error *err)


PACK_BLOCK_BYTES = LS_PACK_BLOCK_BYTES
OBJECT = LS_LOCATION_OBJECT


cdef class Image:
    """The bytes of an image, read-only, by the buffer protocol: `memoryview(image)`, `file.write(image)`."""

    cdef ls_buffer _buffer

    def __init__(self):
        raise TypeError("images are made by write_tree and write_pack")

    def __len__(self):
        return self._buffer.length

    def __getbuffer__(self, Py_buffer *view, int flags):
        PyBuffer_FillInfo(view, self, self._buffer.bytes, self._buffer.length, 1, flags)

    def __dealloc__(self):
        ls_buffer_free(&self._buffer)


cdef Image _empty_image():
    cdef Image image = Image.__new__(Image)

    memset(&image._buffer, 0, sizeof(image._buffer))
    return image


cdef size_t _count(const unsigned char[::1] items, size_t item_bytes, str what) except? 0:
    if items.shape[0] % item_bytes:
        raise ValueError(f"{what}: {items.shape[0]} bytes are no multiple of the {item_bytes} of an item")
    return items.shape[0] // item_bytes


def write_tree(Index index not None, locations not None):
    """The image of a chain's index, as an `Image`.

    index: of kind CHAIN. locations: one (u32 pack, u32 slot), little-endian, for each content of the index; pack
    OBJECT means an object of its own, named by the content's digest. An extended attribute that Linux
    cannot show on EROFS is left out. Raises LimitExceeded for what exceeds a limit of EROFS or Linux, InvalidInput and
    CorruptError for an index that is not a chain's or damaged, each naming the path. Releases the GIL. Source: Linux,
    fs/erofs/erofs_fs.h.
    """
    cdef ls_error err
    cdef int status
    cdef const unsigned char[::1] view = memoryview(locations).cast("B")
    cdef size_t count = _count(view, 8, "locations")
    cdef const ls_location *c_locations = <const ls_location *> &view[0] if count else NULL
    cdef Image image = _empty_image()

    if count != index.index.header.content_count:
        raise ValueError(f"{count} locations for {index.index.header.content_count} contents")
    with nogil:
        status = ls_erofs_write_tree(&index.index, c_locations, &image._buffer, &err)
    check(status, &err)
    return image


def write_pack(uint32_t pack, uint64_t pack_bytes, slots not None):
    """The image that shows the contents of a pack as /p<pack>/0, /p<pack>/1, …, as an `Image`.

    pack: its number. pack_bytes: its size, a multiple of PACK_BLOCK_BYTES. slots: one (u64 offset, u64 size, 32-byte
    digest), little-endian, for each content; offsets are multiples of PACK_BLOCK_BYTES. The pack is the image's one extra
    device. Raises InvalidInput for a slot that is empty, unaligned or outside the pack, LimitExceeded for a pack of 2
    TiB or a slot of 4 GiB. Releases the GIL. Source: Linux, fs/erofs/erofs_fs.h.
    """
    cdef ls_error err
    cdef int status
    cdef const unsigned char[::1] view = memoryview(slots).cast("B")
    cdef size_t count = _count(view, 48, "slots")
    cdef const ls_pack_slot *c_slots = <const ls_pack_slot *> &view[0] if count else NULL
    cdef Image image = _empty_image()

    if count > 0xFFFFFFFF:
        raise ValueError(f"{count} slots")
    with nogil:
        status = ls_erofs_write_pack(pack, pack_bytes, c_slots, count, &image._buffer, &err)
    check(status, &err)
    return image
