"""Contents that came in a cold pack (docs/format/cold.md) from another store, together with those that are here.

Nothing of the pack is trusted: whatever is read of it is compared with its digest, and bounded before it is read.
"""

from __future__ import annotations

import bisect
import io
import os
from itertools import accumulate

from layerstore._core.hashing import blake3, hash_many
from layerstore.errors import CorruptError, NotFound
from layerstore.limits import FREE_LAYER_BYTES, beyond
from layerstore.naming import about, fstat
from layerstore.store.cold_packs import (
    FRAME,
    FRAMES_BYTES,
    LIST,
    MAX_DELTA_BYTES,
    SLOT,
    WHOLE,
    ColdPack,
    ColdSlot,
    apply_delta,
)
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import read_at
from layerstore.store.recent import Recent
from layerstore.sync.tables import chunks_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from typing_extensions import Buffer

    from layerstore.limits import Limits
    from layerstore.store.contents import ContentStore

_TIMES = 64
"""So often everything may be read: contents are in another order in a layer than in a pack, and several may differ from
one. Without a limit a pack of some bytes could be work for a year."""


class Arrived:
    """Contents of a pack, None for none, and of the store here: what `layerstore.layers.recipe.Source` is.

    Not for two threads at once. Raises `CorruptError` for what is not as it should be, `LimitExceeded` for frames that
    are too much for the pack.

    Args:
        pack_bytes: how large the pack is.
        wanted: contents that it is to bring, with their sizes.
        own: the contents that are here.
        sources: those of them of which chunks may be needed, cut at these `sizes` (least, average, largest).
    """

    def __init__(
        self,
        pack: ColdPack | None,
        pack_bytes: int,
        wanted: Mapping[bytes, int],
        own: ContentStore,
        sources: Sequence[bytes],
        sizes: tuple[int, int, int],
        limits: Limits,
    ) -> None:
        self._pack = pack
        self._own = own
        self._sources = sources
        self._sizes = sizes
        self._own_chunks: dict[bytes, tuple[bytes, int, int]] | None = None
        self._source: tuple[bytes, bytes | io.FileIO] = b"", b""
        self._sizes_here: dict[bytes, int] = {}
        self._base: tuple[bytes, bytes] = b"", b""
        self._slots: dict[bytes, ColdSlot] = {}
        self._frames = Recent(FRAMES_BYTES, size_of=len)
        self._frames_left = 0
        self._bases_left = FREE_LAYER_BYTES + _TIMES * sum(wanted.values())
        if pack is not None:
            # A slot for each, and one and a reference for each chunk, which are in memory.
            most = 2 * len(wanted) + sum(wanted.values()) // max(1, sizes[0])
            if max(pack.slot_count, pack.reference_count) > most:
                raise CorruptError(
                    f"what came has more contents than the {len(wanted)} that were asked for; sync again"
                )
            self._frames_left = _TIMES * _check_frames(pack, pack_bytes, limits)
            for fields in SLOT.iter_unpack(pack.slots()):
                slot = ColdSlot(*fields)
                self._slots.setdefault(slot.digest, slot)
        for digest, size in wanted.items():
            found = self._slots.get(digest)
            if found is None:
                raise CorruptError(f"content {digest.hex()}, which was asked for, did not come; sync again")
            if found.size != size:
                raise _wrong(digest, f"has {found.size} bytes, and in its layer {size}")

    def read_many(self, digests: Sequence[bytes]) -> list[bytes]:
        """Contents of up to `PACK_THRESHOLD_BYTES` bytes each, whole."""
        came = [digest for digest in digests if digest in self._slots]
        here = [digest for digest in digests if digest not in self._slots]
        found = [self._small(digest) for digest in came]
        for digest, content, true in zip(came, found, hash_many(found), strict=True):
            _check(digest, content, true)
        contents = dict(zip(came + here, found + self._own.read_many(here), strict=True))
        return [contents[digest] for digest in digests]

    def _small(self, digest: bytes) -> bytes:
        slot = self._slots[digest]
        if slot.size > PACK_THRESHOLD_BYTES:
            raise _wrong(digest, f"has {slot.size} bytes, and fewer in its layer")
        return self._whole(slot)

    def find(self, digest: bytes) -> bytes | io.RawIOBase:
        """Any content, whole or as a file. What is a list is compared with digests by the chunk."""
        slot = self._slots.get(digest)
        if slot is None:
            return self._own.find(digest)
        if slot.base == LIST:
            return _Listed(self._parts(slot), self._chunk)
        content = self._whole(slot)
        _check(digest, content, blake3(content))
        return content

    def close(self) -> None:
        """Let go of what is open."""
        _, file = self._source
        if isinstance(file, io.FileIO):
            file.close()

    # What slots say

    def _whole(self, slot: ColdSlot) -> bytes:
        """The bytes of a content, not compared with its digest."""
        if slot.base == WHOLE:
            return bytes(self._written(slot, slot.size))
        if slot.size > MAX_DELTA_BYTES:
            raise _wrong(slot.digest, f"is a difference of {slot.size} bytes, more than {MAX_DELTA_BYTES}")
        if slot.base == LIST:
            return b"".join(self._chunk(digest) for digest, _ in self._parts(slot))
        (base,) = self._references(slot)
        try:
            return apply_delta(self._base_of(base), self._written(slot, slot.length), slot.size)
        except CorruptError as error:
            raise _wrong(slot.digest, f"cannot be made of what it differs from ({error})") from error

    def _base_of(self, digest: bytes) -> bytes:
        """What another content differs from, which is no difference itself."""
        if self._base[0] != digest:
            slot = self._slots.get(digest)
            if slot is not None and slot.base not in (WHOLE, LIST):
                raise CorruptError("that is a difference, too")
            self._bases_left -= self._size_here(digest) if slot is None else slot.size
            if self._bases_left < 0:
                raise CorruptError("too much was read of such contents already")
            self._base = digest, self._here(digest) if slot is None else self._whole(slot)
        return self._base[1]

    def _parts(self, slot: ColdSlot) -> list[tuple[bytes, int]]:
        """Digest and size of each chunk of a list."""
        parts = [(digest, self._chunk_bytes(digest)) for digest in self._references(slot)]
        if sum(size for _, size in parts) != slot.size:
            raise _wrong(slot.digest, f"is a list of chunks that do not have its {slot.size} bytes")
        return parts

    def _chunk_bytes(self, digest: bytes) -> int:
        slot = self._slots.get(digest)
        if slot is not None:
            return slot.size
        found = self._chunks_here().get(digest)
        return self._size_here(digest) if found is None else found[2]

    def _chunk(self, digest: bytes) -> bytes:
        """A chunk of a list: it is in the pack as it is, or is here."""
        slot = self._slots.get(digest)
        if slot is not None:
            if slot.base != WHOLE:
                raise _wrong(digest, "is a chunk, and a list or difference itself")
            chunk = bytes(self._written(slot, slot.size))
            _check(digest, chunk, blake3(chunk))
            return chunk
        found = self._chunks_here().get(digest)
        return self._here(digest) if found is None else self._part_of(*found)

    def _references(self, slot: ColdSlot) -> list[bytes]:
        assert self._pack is not None
        try:
            return self._pack.references_of(slot)
        except CorruptError as error:
            raise _wrong(slot.digest, "refers to what the pack does not have") from error

    def _written(self, slot: ColdSlot, length: int) -> Buffer:
        """What is written of a content, which is that many bytes."""
        frame = self._frames.get(slot.frame) or self._frames.keep(slot.frame, self._decompressed(slot.frame))
        if slot.length != length or slot.at + length > len(frame):
            raise _wrong(slot.digest, "lies outside of its frame")
        return memoryview(frame)[slot.at : slot.at + length]

    def _decompressed(self, number: int) -> bytes:
        assert self._pack is not None
        try:
            self._frames_left -= self._pack.frame(number).raw_bytes
            if self._frames_left < 0:
                raise CorruptError("all of them are read too often")
            return self._pack.raw(number)
        except CorruptError as error:
            raise CorruptError(f"frame {number} of the pack that came cannot be read ({error})") from error

    # What is here

    def _chunks_here(self) -> dict[bytes, tuple[bytes, int, int]]:
        """Where the chunks of the sources are: in which of these, offset and length."""
        if self._own_chunks is None:
            self._bases_left -= sum(map(self._size_here, self._sources))
            if self._bases_left < 0:
                raise CorruptError("what came is made of chunks of contents that are too large for that; sync again")
            self._own_chunks = {
                chunk: (source, offset, length)
                for source in self._sources
                for chunk, offset, length in chunks_of(self._own, source, self._sizes)
            }
        return self._own_chunks

    def _part_of(self, source: bytes, offset: int, length: int) -> bytes:
        if self._source[0] != source:
            self.close()
            self._source = source, self._own.find(source)
        found = self._source[1]
        if isinstance(found, bytes):
            return found[offset : offset + length]
        with about(found.fileno()):
            return read_at(found.fileno(), length, offset)

    def _size_here(self, digest: bytes) -> int:
        if digest not in self._sizes_here:
            found = self._find_here(digest)
            if isinstance(found, bytes):
                self._sizes_here[digest] = len(found)
            else:
                with found:
                    self._sizes_here[digest] = fstat(found.fileno()).st_size
        return self._sizes_here[digest]

    def _here(self, digest: bytes) -> bytes:
        """A content of this store that is to be in memory."""
        if self._size_here(digest) > MAX_DELTA_BYTES:
            raise CorruptError(f"content {digest.hex()} is needed whole, and has {self._size_here(digest)} bytes")
        return self._own.read(digest)

    def _find_here(self, digest: bytes) -> bytes | io.FileIO:
        try:
            return self._own.find(digest)
        except NotFound:
            raise CorruptError(
                f"content {digest.hex()} is needed, which neither came nor is here; sync again"
            ) from None


class _Listed(io.RawIOBase):
    """A content that is a list of chunks, each of which `read` gives by its digest."""

    def __init__(self, parts: Sequence[tuple[bytes, int]], read: Callable[[bytes], bytes]) -> None:
        self._digests = [digest for digest, _ in parts]
        self._ends = [*accumulate(size for _, size in parts)]
        self._chunk = read
        self._at = 0
        self._last: tuple[int, bytes] = -1, b""

    def readable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        assert whence == os.SEEK_SET
        self._at = offset
        return offset

    def readinto(self, buffer: memoryview, /) -> int:  # type: ignore[override]  # of RawIOBase.read
        number = bisect.bisect_right(self._ends, self._at)
        if number == len(self._ends) or not len(buffer):
            return 0
        if self._last[0] != number:
            self._last = number, self._chunk(self._digests[number])
        chunk = self._last[1]
        start = len(chunk) - (self._ends[number] - self._at)
        piece = chunk[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        self._at += len(piece)
        return len(piece)


def _check(digest: bytes, content: bytes, true: bytes) -> None:
    if true != digest:
        raise _wrong(digest, f"has the {len(content)} bytes of another one")


def _wrong(digest: bytes, what: str) -> CorruptError:
    return CorruptError(f"content {digest.hex()}, as it came, {what}; sync again")


def _check_frames(pack: ColdPack, pack_bytes: int, limits: Limits) -> int:
    """What the frames of a pack have before compression."""
    total: int = sum(raw_bytes for _, _, raw_bytes, _, _ in FRAME.iter_unpack(pack.frames()))
    if total > max(FREE_LAYER_BYTES, limits.layer_ratio * pack_bytes):
        raise beyond(f"what came has {total} bytes in a pack of {pack_bytes}", limits, "layer_ratio")
    return total
