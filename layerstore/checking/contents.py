"""The digest log, packs and objects: whether each content is where the log says, and what its digest says."""

from __future__ import annotations

import os
import threading
from functools import partial

from layerstore._core.erofs import PACK_BLOCK_BYTES, write_pack
from layerstore._core.ingest import LOCATION_OBJECT, RECORD_BYTES
from layerstore.checking import hashing
from layerstore.checking.cold import ColdContents, Unreachable
from layerstore.checking.findings import reason, tried
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded
from layerstore.extents.image_tree import Descriptor
from layerstore.naming import fstat
from layerstore.results import Progress
from layerstore.store.cold_packs import LIST, ColdPack, is_cold
from layerstore.store.contents import LOG_HEADER, SLOT, pack_table
from layerstore.store.pieces import read_at
from layerstore.store.records import RECORD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container, Iterator

    from layerstore.checking.catalog import Catalog
    from layerstore.checking.findings import Findings
    from layerstore.results import ProgressCallback
    from layerstore.store.layout import Layout


class Record:
    """One of the digest log, and where it is there."""

    __slots__ = ("digest", "number", "pack", "size", "slot")

    def __init__(self, number: int, digest: bytes, size: int, pack: int, slot: int) -> None:
        self.number = number
        self.digest = digest
        self.size = size
        self.pack = pack
        self.slot = slot


class ContentsCheck:
    """Checks the contents that are `wanted`, all without it.

    After `run`: `records` of the log in their order; by their numbers, why, those whose content is damaged (`bad`;
    those of `padding` only in what follows it, those that are `rescuable` only in others of the same frame, and those
    that are `unreachable` only in what they need), and those that are themselves (`misplaced`); and the packs of which
    nothing can be found in `bad_packs`.
    """

    def __init__(
        self,
        layout: Layout,
        catalog: Catalog,
        findings: Findings,
        wanted: Container[bytes] | None,
        quick: bool,
        progress: ProgressCallback | None,
    ) -> None:
        self._layout = layout
        self._catalog = catalog
        self._findings = findings
        self._wanted = wanted
        self._quick = quick
        self._progress = progress
        self._lock = threading.Lock()
        self._total_bytes = 0
        self.records: list[Record] = []
        self.bad: dict[int, str] = {}
        self.padding: set[int] = set()
        self.misplaced: dict[int, str] = {}
        self.bad_packs: dict[int, str] = {}
        self.rescuable: set[int] = set()
        self.unreachable: set[int] = set()

    @property
    def log_path(self) -> str:
        """The digest log."""
        return self._layout.digests(int(self._catalog.counters.get("digests_generation", 0)))

    def sound(self) -> dict[bytes, Record]:
        """The record of each content that is whole as far as is known: of several the last."""
        return {
            record.digest: record
            for record in self.records
            if not {record.number} & (self.bad.keys() | self.misplaced.keys())
        }

    def is_to_be_looked_at_again(self) -> bool:
        """Whether a repair may have made something whole that was not, or found what was not known."""
        return bool(self.unreachable) or any(map(is_cold, self.bad_packs)) or bool(self._findings.of("digest log"))

    def run(self) -> None:
        """Look at everything."""
        self._read_log()
        self._cold = ColdContents(self._layout, self.records)
        self._total_bytes = sum(record.size for record in self.records if self._is_wanted(record))
        by_pack: dict[int, list[Record]] = {number: [] for number in self._catalog.packs | self._catalog.cold_packs}
        objects = []
        for record in self.records:
            if record.pack == LOCATION_OBJECT:
                objects.append(record)
            else:
                by_pack.setdefault(record.pack, []).append(record)
        hashing.in_threads(self._jobs(by_pack, objects))

    def _read_log(self) -> None:
        count = int(self._catalog.counters.get("digests", 0))
        if not count:
            return
        length = len(LOG_HEADER) + count * RECORD_BYTES
        try:
            data = tried(partial(_beginning, self.log_path, length))
        except OSError as error:
            self._findings.add("digest log", self.log_path, f"it cannot be read: {reason(error)}", "log")
            return
        if len(data) < length:
            detail = f"it has {len(data)} bytes; the database says that {length} count"
            self._findings.add("digest log", self.log_path, detail, "log")
        if not data.startswith(LOG_HEADER):
            self._findings.add("digest log", self.log_path, "its header is damaged", "log")
        body = data[len(LOG_HEADER) :]
        whole = len(body) // RECORD_BYTES * RECORD_BYTES
        self.records = [Record(n, *fields) for n, fields in enumerate(RECORD.iter_unpack(body[:whole]))]

    def _jobs(self, by_pack: dict[int, list[Record]], objects: list[Record]) -> Iterator[Callable[[], None]]:
        for number, records in sorted(by_pack.items()):
            wanted = [record for record in records if self._is_wanted(record)]
            if wanted or self._wanted is None:
                yield from (self._cold_jobs if is_cold(number) else self._pack_jobs)(number, wanted)
        for record in objects:
            if self._is_wanted(record):
                yield partial(self._check_object, record)

    def _is_wanted(self, record: Record) -> bool:
        return self._wanted is None or record.digest in self._wanted

    def _check_object(self, record: Record) -> None:
        path = self._layout.object(record.digest.hex())
        if record.slot:
            self.misplaced[record.number] = f"record {record.number} names slot {record.slot} of an object"
            return
        if self._quick:
            try:
                length = os.stat(path).st_size
            except OSError as error:
                why = f"it cannot be found: {reason(error)}"
            else:
                why = "" if length == record.size else f"it has {length} bytes, not {record.size}"
        else:
            why = hashing.compare_object(path, record.size, record.digest)
        self._done(record, why)

    def _done(self, record: Record, why: str) -> None:
        if why:
            self.bad[record.number] = why
            if why == hashing.PADDING:
                self.padding.add(record.number)
        with self._lock:
            self._findings.contents += 1
            if not self._quick:
                self._findings.bytes += record.size
                if self._progress is not None:
                    self._progress(Progress("check", "contents", self._findings.bytes, self._total_bytes))

    def _pack_jobs(self, number: int, wanted: list[Record]) -> Iterator[Callable[[], None]]:
        path = self._layout.pack(number)
        try:
            pack, slots_at, slots = tried(partial(_opened_pack, path))
        except CorruptError as error:
            self.bad_packs[number] = str(error)
            return
        except OSError as error:
            self.bad_packs[number] = f"it cannot be read: {reason(error)}"
            return
        self._compare_image(number, slots_at, slots)
        located, count = [], len(slots) // SLOT.size
        for record in wanted:
            if record.slot >= count:
                self.misplaced[record.number] = f"record {record.number} names slot {record.slot} of {count} of {path}"
                continue
            offset, size, digest = SLOT.unpack_from(slots, record.slot * SLOT.size)
            if (size, digest) != (record.size, record.digest):
                detail = f"record {record.number} names slot {record.slot} of {path}, which has another content"
                self.misplaced[record.number] = detail
            else:
                located.append((offset, record))
        if self._quick:
            for _, record in located:
                self._done(record, "")
            return
        located.sort(key=lambda place: place[0])
        places = [(offset, record.size, record.digest) for offset, record in located]
        at = 0
        for batch in hashing.batches(places):
            yield partial(self._compare, pack, batch, [record for _, record in located[at : at + len(batch)]])
            at += len(batch)

    def _cold_jobs(self, number: int, wanted: list[Record]) -> Iterator[Callable[[], None]]:
        path = self._layout.pack(number)
        try:
            pack = tried(partial(_opened_cold, path))
        except (CorruptError, OSError) as error:
            self.bad_packs[number] = reason(error)
            return
        by_frame: dict[int, list[Record]] = {}
        for record in wanted:
            slot = pack.slot(record.slot) if record.slot < pack.slot_count else None
            if slot is None or (slot.size, slot.digest) != (record.size, record.digest):
                detail = f"record {record.number} names slot {record.slot} of {path}, which has another content"
                self.misplaced[record.number] = detail
            elif self._quick:
                self._done(record, "")
            else:
                by_frame.setdefault(-1 if slot.base == LIST else slot.frame, []).append(record)
        for frame, found in sorted(by_frame.items()):
            yield partial(self._compare_frame, pack, frame, found)

    def _compare_frame(self, pack: ColdPack, frame: int, found: list[Record]) -> None:
        is_sound = frame < 0 or pack.is_sound(frame)
        for record in found:
            why = "" if is_sound else f"frame {frame}, in which it is compressed, is damaged"
            try:
                if tried(partial(self._cold.digest_of, record)) != record.digest:
                    why = "its bytes are not those of its digest"
                elif why:
                    self.rescuable.add(record.number)
            except Unreachable as error:
                why = reason(error)
                self.unreachable.add(record.number)
            except (CorruptError, OSError) as error:
                why = f"it cannot be read: {reason(error)}"
            self._done(record, why)

    def _compare(self, pack: Descriptor, batch: list[hashing.Place], records: list[Record]) -> None:
        for record, why in zip(records, hashing.compare(pack.fd, batch, PACK_BLOCK_BYTES), strict=True):
            self._done(record, why)

    def _compare_image(self, number: int, slots_at: int, slots: bytes) -> None:
        """The pack as the kernel sees it is made of the slots alone."""
        path = self._layout.pack_image(number)
        try:
            expected = write_pack(number, slots_at, slots)
            with open(path, "rb") as file:
                is_same = file.read() == memoryview(expected)
            detail = "" if is_same else "it is not what is made of the slots of the pack"
        except OSError as error:
            detail = f"it cannot be read: {reason(error)}"
        except (InvalidInput, LimitExceeded) as error:
            self.bad_packs[number] = f"its slots make no sense: {error}"
            return
        if detail:
            self._findings.add("pack image", path, detail, number)


def _beginning(path: str, length: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(length)


def _opened_pack(path: str) -> tuple[Descriptor, int, bytes]:
    """A pack, to be closed after the last job that has it; where its slots begin, and they. Raises `CorruptError`."""
    pack = Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    read = partial(read_at, pack.fd)
    slots_at, count = pack_table(path, fstat(pack.fd).st_size, lambda at, end: read(end - at, at))
    return pack, slots_at, read(count * SLOT.size, slots_at)


def _opened_cold(path: str) -> ColdPack:
    hashing.read_through(path)
    return ColdPack(path)
