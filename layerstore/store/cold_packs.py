"""Cold packs: contents that are kept compressed, as wholes, as differences from others, or as lists of chunks
(docs/format/cold.md). Here is their format, and reading them; cold/encoding.py makes what is in them.
"""

from __future__ import annotations

import struct

from layerstore._core.files import MappedFile
from layerstore._core.hashing import blake3
from layerstore._core.ingest import LOCATION_NONE
from layerstore.errors import REPAIR, CorruptError
from layerstore.store.layout import FIRST_COLD
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

STORED, ZSTD, LZ4 = 0, 1, 2
"""How a frame is compressed."""
WHOLE, LIST = 0xFFFFFFFF, 0xFFFFFFFE
"""What a slot has where others have the number of their base."""
FRAME = struct.Struct("<QIII4x16s")
SLOT = struct.Struct("<32sQ8sIIII")
FOOTER = struct.Struct("<8sIIIIQ32s8s")
"""Of which the beginning of a cold pack is a copy."""
DELTA = struct.Struct("<IIB")
"""Of a difference: how many bytes at the beginning and at the end are those of the base, and how what is between them
is written."""
LITERAL, AGAINST_BASE = 0, 1
MAGIC = b"LSCOLD\n\0"
VERSION = 1
CHECK_BYTES = 16
MAX_DEPTH = 8
"""Of contents that need one another. Those that freezing writes are a difference, its base, and a chunk of that."""
FRAMES_BYTES = 64 << 20
"""Of frames that are kept once they are decompressed."""
MAX_FRAME_BYTES = 256 << 20
"""Before compression: a frame is decompressed in memory. One has more than some MiB where a difference has."""
MAX_DELTA_BYTES = 128 << 20
"""A larger content is no difference, nor what others differ from: both are in memory."""


def is_cold(pack: int) -> bool:
    """Whether a location with that pack number is in a cold pack."""
    return FIRST_COLD <= pack < LOCATION_NONE


class Frame(Value):
    """A piece of a cold pack that is compressed as one: where it is, its bytes as stored and before, its codec, and the
    first 16 bytes of the BLAKE3 of what is stored."""

    def __init__(self, offset: int, stored_bytes: int, raw_bytes: int, codec: int, check: bytes) -> None:
        self.offset = offset
        self.stored_bytes = stored_bytes
        self.raw_bytes = raw_bytes
        self.codec = codec
        self.check = check


class ColdSlot(Value):
    """One content. `name` stands for its path. `base` is WHOLE, LIST, or the number of the reference to what it differs
    from. Of a LIST `at` and `length` say which references are its chunks; of others where it is in the frame."""

    def __init__(self, digest: bytes, size: int, name: bytes, frame: int, at: int, length: int, base: int) -> None:
        self.digest = digest
        self.size = size
        self.name = name
        self.frame = frame
        self.at = at
        self.length = length
        self.base = base


class ColdPack:
    """One cold pack, open for reading. Safe for many threads.

    Raises `CorruptError` where its tables are damaged, or with `is_rescue` where it is not known where they are.
    """

    def __init__(self, path: str, *, is_rescue: bool = False) -> None:
        self.path = path
        with open(path, "rb") as file:
            self._map = memoryview(MappedFile(file.fileno()))
        end = len(self._map) - FOOTER.size
        if end < FOOTER.size:
            raise CorruptError(f"{path} is too short for a cold pack; {REPAIR}")
        footer, header = bytes(self._map[end:]), bytes(self._map[: FOOTER.size])
        if not _is_footer(footer) or (footer != header and not is_rescue):
            if not (is_rescue and _is_footer(header)):
                raise CorruptError(f"{path} does not begin and end as a cold pack; {REPAIR}")
            footer = header
        _, _, frames, slots, references, tables_at, digest, _ = FOOTER.unpack(footer)
        self.frame_count, self.slot_count, self.reference_count = int(frames), int(slots), int(references)
        self.frames_end = int(tables_at)
        self._slots_at = self.frames_end + self.frame_count * FRAME.size
        self._references_at = self._slots_at + self.slot_count * SLOT.size
        if self._references_at + 32 * self.reference_count != end:
            raise CorruptError(f"{path} says that it has {slots} slots, which do not fit; {REPAIR}")
        if not is_rescue and blake3(self._map[self.frames_end : end]) != digest:
            raise CorruptError(f"the tables of {path} are damaged; {REPAIR}")

    def frame(self, number: int) -> Frame:
        """Where a frame is."""
        if number >= self.frame_count:
            raise CorruptError(f"{self.path} has {self.frame_count} frames; frame {number} was asked for")
        frame = Frame(*FRAME.unpack_from(self._map, self.frames_end + number * FRAME.size))
        if frame.offset < FOOTER.size or frame.offset + frame.stored_bytes > self.frames_end:
            raise CorruptError(f"frame {number} of {self.path} lies outside of its frames; {REPAIR}")
        if frame.raw_bytes > MAX_FRAME_BYTES:
            raise CorruptError(f"frame {number} of {self.path} says that it has {frame.raw_bytes} bytes; {REPAIR}")
        return frame

    def slot(self, number: int) -> ColdSlot:
        """One of its contents."""
        if number >= self.slot_count:
            raise CorruptError(f"{self.path} has {self.slot_count} slots; slot {number} was asked for")
        return ColdSlot(*SLOT.unpack_from(self._map, self._slots_at + number * SLOT.size))

    def slots(self) -> memoryview:
        """The bytes of all slots."""
        return self._map[self._slots_at : self._references_at]

    def frames(self) -> memoryview:
        """The bytes of the table of frames."""
        return self._map[self.frames_end : self._slots_at]

    def references(self) -> memoryview:
        """The bytes of all references."""
        return self._map[self._references_at : self._references_at + 32 * self.reference_count]

    def references_of(self, slot: ColdSlot) -> list[bytes]:
        """The digests that a slot needs: its base, or its chunks in their order."""
        if slot.base == WHOLE:
            return []
        first, count = (slot.at, slot.length) if slot.base == LIST else (slot.base, 1)
        if first + count > self.reference_count:
            raise CorruptError(f"a slot of {self.path} needs references that it does not have; {REPAIR}")
        at = self._references_at + 32 * first
        return [bytes(self._map[at + 32 * n : at + 32 * n + 32]) for n in range(count)]

    def stored(self, number: int) -> memoryview:
        """The bytes of a frame as they are stored."""
        frame = self.frame(number)
        return self._map[frame.offset : frame.offset + frame.stored_bytes]

    def is_sound(self, number: int) -> bool:
        """Whether the bytes of a frame are those that were written."""
        return blake3(self.stored(number))[:CHECK_BYTES] == self.frame(number).check

    def raw(self, number: int) -> bytes:
        """The bytes of a frame as they were. Raises `CorruptError` where they are damaged."""
        frame, stored = self.frame(number), self.stored(number)
        try:
            raw = decompressed(stored, frame.codec, frame.raw_bytes)
        except CorruptError as error:
            raise CorruptError(f"frame {number} of {self.path} is damaged ({error}); {REPAIR}") from error
        if len(raw) != frame.raw_bytes:
            raise CorruptError(f"frame {number} of {self.path} has {len(raw)} bytes, not {frame.raw_bytes}; {REPAIR}")
        return raw


def _is_footer(data: bytes) -> bool:
    magic, version, *_, digest = FOOTER.unpack(data)
    return bool(magic == MAGIC and version == VERSION and blake3(data[:-8])[:8] == digest)


def decompressed(stored: Buffer, codec: int, raw_bytes: int) -> bytes:
    """The bytes of a frame. Raises `CorruptError`."""
    if codec == STORED:
        return bytes(stored)
    if codec == ZSTD:
        from layerstore.store import zstd

        return zstd.decompress(stored, raw_bytes)
    if codec == LZ4:
        import lz4.block

        try:
            return bytes(lz4.block.decompress(stored, uncompressed_size=raw_bytes))
        except lz4.block.LZ4BlockError as error:
            raise CorruptError(str(error)) from error
    raise CorruptError(f"its codec has the unknown number {codec}")


def apply_delta(base: bytes, delta: Buffer, size: int) -> bytes:
    """The content of that size that differs so from its base. Raises `CorruptError`."""
    if max(size, len(base)) > MAX_DELTA_BYTES:
        raise CorruptError(f"it says that {size} bytes are a difference from {len(base)}")
    view = memoryview(delta)
    if len(view) < DELTA.size:
        raise CorruptError("a difference is cut off")
    head, tail, kind = DELTA.unpack_from(view)
    middle = size - head - tail
    if middle < 0 or head + tail > len(base) or kind not in (LITERAL, AGAINST_BASE):
        raise CorruptError("a difference does not fit its base")
    written = view[DELTA.size :]
    if kind == AGAINST_BASE:
        from layerstore.store import zstd

        between: Buffer = zstd.decompress(written, middle, memoryview(base)[head : len(base) - tail])
    else:
        between = written
    whole = b"".join((memoryview(base)[:head], between, memoryview(base)[len(base) - tail :]))
    if len(whole) != size:
        raise CorruptError("a difference does not make a content of the size that it should")
    return whole
