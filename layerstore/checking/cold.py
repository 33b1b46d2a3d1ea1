"""Reads contents of cold packs, and what they are differences or lists of, by the digest log as a check has read it:
a store whose log or packs are damaged cannot be asked."""

from __future__ import annotations

import threading

from layerstore._core.hashing import Hasher, blake3
from layerstore._core.ingest import LOCATION_OBJECT
from layerstore.checking.findings import reason
from layerstore.errors import CorruptError
from layerstore.store.cold_packs import FRAMES_BYTES, LIST, MAX_DEPTH, WHOLE, ColdPack, apply_delta, is_cold
from layerstore.store.contents import Pack
from layerstore.store.pieces import read_at, read_whole
from layerstore.store.recent import Recent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.checking.contents import Record
    from layerstore.store.layout import Layout


class Unreachable(CorruptError):
    """What a content is a difference or a list of cannot be read; nothing is known to be wrong with itself."""


class ColdContents:
    """Contents by these records of the digest log. Safe for many threads."""

    def __init__(self, layout: Layout, records: Iterable[Record]) -> None:
        self._layout = layout
        self._lock = threading.Lock()
        self._places: dict[bytes, list[Record]] = {}
        for record in records:
            self._places.setdefault(record.digest, []).append(record)
        self._packs: dict[int, ColdPack] = {}
        self._frames = Recent(FRAMES_BYTES, size_of=len)

    def pieces(self, record: Record) -> Iterator[bytes]:
        """What is at the place of a record, not verified; of a list by the chunk, as it need not fit into memory. What
        it refers to is verified, and may be anywhere else, too.

        Raises `Unreachable` where that cannot be read, `CorruptError`, `OSError`.
        """
        pack = self._pack(record.pack)
        slot = pack.slot(record.slot)
        if slot.base != LIST:
            yield self._read(record, 0)
            return
        for digest in pack.references_of(slot):
            yield self._referred(digest, 1)

    def digest_of(self, record: Record) -> bytes:
        """The digest of that. Raises as `pieces`."""
        hasher = Hasher()
        for piece in self.pieces(record):
            hasher.update(piece)
        return hasher.digest()

    def is_whole(self, record: Record) -> bool:
        """Whether it can be read, and is what its digest says."""
        try:
            return self.digest_of(record) == record.digest
        except (CorruptError, OSError) as error:
            reason(error)
            return False

    def _read(self, record: Record, depth: int) -> bytes:
        if record.pack == LOCATION_OBJECT:
            return read_whole(self._layout.object(record.digest.hex()))
        if not is_cold(record.pack):
            path = self._layout.pack(record.pack)
            offset, size, _ = Pack(path).slot(record.slot)
            with open(path, "rb", buffering=0) as file:
                return read_at(file.fileno(), size, offset)
        pack = self._pack(record.pack)
        slot = pack.slot(record.slot)
        references = pack.references_of(slot)
        if slot.base == LIST:
            return b"".join(self._referred(digest, depth + 1) for digest in references)
        place = record.pack, slot.frame
        frame: bytes = self._frames.get(place) or self._frames.keep(place, pack.raw(slot.frame))
        written = frame[slot.at : slot.at + slot.length]
        if slot.base == WHOLE:
            return written
        return apply_delta(self._referred(references[0], depth + 1), written, slot.size)

    def _referred(self, digest: bytes, depth: int) -> bytes:
        why = "it is not in the store"
        for record in reversed(self._places.get(digest, ()) if depth <= MAX_DEPTH else ()):
            try:
                content = self._read(record, depth)
            except (CorruptError, OSError) as error:
                why = reason(error)
                continue
            if blake3(content) == digest:
                return content
            why = "its bytes are not those of its digest"
        raise Unreachable(f"content {digest.hex()}, which it needs, cannot be read: {why}")

    def _pack(self, number: int) -> ColdPack:
        with self._lock:
            pack = self._packs.get(number)
            if pack is None:
                pack = self._packs[number] = ColdPack(self._layout.pack(number), is_rescue=True)
            return pack
