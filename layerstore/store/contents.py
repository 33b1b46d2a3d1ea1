"""The contents of the store: where each is, reading it, and verifying what was read (docs/format/pack.md,
docs/format/digests.md).
"""

from __future__ import annotations

import io
import os
import struct
import threading
from itertools import groupby

from layerstore._core.files import MappedFile, copy_ranges
from layerstore._core.hashing import Hasher, blake3, hash_many
from layerstore._core.ingest import LOCATION_NONE, LOCATION_OBJECT, RECORD_BYTES, Digests
from layerstore.errors import RELOAD, REPAIR, CorruptError, NotFound
from layerstore.naming import about, open_fd
from layerstore.store import durable, own_names
from layerstore.store.cold_packs import (
    FRAMES_BYTES,
    LIST,
    MAX_DELTA_BYTES,
    MAX_DEPTH,
    WHOLE,
    ColdPack,
    ColdSlot,
    apply_delta,
    is_cold,
)
from layerstore.store.layout import FIRST_COLD, PACK_THRESHOLD_BYTES
from layerstore.store.pieces import PIECE_BYTES, read_at, write_all, write_at
from layerstore.store.recent import Recent
from layerstore.store.records import LOCATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal, TypeAlias, TypeVar

    from typing_extensions import Buffer

    from layerstore.store.db import Database
    from layerstore.store.layout import Layout

    _Found = TypeVar("_Found")

    Verify: TypeAlias = Literal["always", "first", "never"]
    """When a content is hashed before it is given out: each time that it is read or opened; the first time that
    this process does so, and again once garbage was collected; or not at all."""

LOG_HEADER = b"LSDIGEST" + struct.pack("<IIQQ", 1, RECORD_BYTES, 0, 0)
_MANY_FRAMES_BYTES = 256 << 20
SLOT = struct.Struct("<QQ32s")
_FOOTER = struct.Struct("<8sIIQ32s8s")


def pack_table(path: str, length: int, read: Callable[[int, int], Buffer]) -> tuple[int, int]:
    """Where the slots of a pack begin, and how many there are; `read` gives its bytes from one position to another.

    Raises `CorruptError` where the slots or what says where they are is damaged, and what `read` raises.
    """
    footer_at = length - _FOOTER.size
    if footer_at < 0:
        raise CorruptError(f"{path} is too short for a pack; {REPAIR}")
    footer = bytes(read(footer_at, length))
    magic, version, slot_count, slots_at, slots_digest, footer_digest = _FOOTER.unpack(footer)
    if magic != b"LSPACK\n\0" or version != 1 or blake3(footer[:-8])[:8] != footer_digest:
        raise CorruptError(f"{path} does not end in a pack's footer; {REPAIR}")
    if slots_at + slot_count * SLOT.size != footer_at:
        raise CorruptError(f"{path} says that it has {slot_count} slots, which do not fit; {REPAIR}")
    if blake3(read(slots_at, footer_at)) != slots_digest:
        raise CorruptError(f"the slots of {path} are damaged; {REPAIR}")
    return int(slots_at), int(slot_count)


class Pack:
    """One pack, open for reading. Raises `CorruptError` where its slots are damaged. Safe for many threads."""

    def __init__(self, path: str) -> None:
        self.path = path
        with about(path), open(path, "rb") as file:
            self._map = memoryview(MappedFile(file.fileno()))
        self._slots_at, self.slot_count = pack_table(path, len(self._map), lambda at, end: self._map[at:end])

    def slot(self, number: int) -> tuple[int, int, bytes]:
        """`(offset, size, digest)` of a slot, bytes."""
        if number >= self.slot_count:
            raise CorruptError(f"{self.path} has {self.slot_count} slots; slot {number} was asked for")
        offset, size, digest = SLOT.unpack_from(self._map, self._slots_at + number * SLOT.size)
        if offset + size > self._slots_at:
            raise CorruptError(f"slot {number} of {self.path} lies outside the pack's contents")
        return offset, size, digest

    @property
    def slots(self) -> tuple[int, memoryview]:
        """Where the slots begin, and their bytes."""
        return self._slots_at, self._map[self._slots_at : self._slots_at + self.slot_count * SLOT.size]

    def content(self, number: int) -> memoryview:
        """The bytes of a slot, without a copy; valid while the view lives."""
        offset, size, _ = self.slot(number)
        return self._map[offset : offset + size]

    def copies(self, numbers: Iterable[int]) -> list[bytes]:
        """The bytes of many slots, in the order given. The GIL is released while they are copied."""
        return copy_ranges(self._map, [self.slot(number)[:2] for number in numbers])


class _Generation:
    """What was opened of one generation of the digest log: the table over it, packs, and which contents were found to
    be what their digests say."""

    def __init__(self, number: int, frames_bytes: int = FRAMES_BYTES) -> None:
        self.number = number
        self.digests = Digests(b"", 0)
        self.packs: dict[int, Pack] = {}
        self.cold_packs: dict[int, ColdPack] = {}
        self.frames = Recent(frames_bytes, size_of=len)
        self.sound_slots: dict[int, bytearray] = {}
        """Of a pack, a byte for each slot: 1 where its content is sound."""
        self.sound_objects: set[bytes] = set()


class ContentStore:
    """Finds and reads contents by digest. Safe for many threads.

    Every content that is given out comes through here, and is verified here as `verify` says: all of it is hashed
    before its first byte is given out, whatever part of it is wanted. One that is read whole is hashed in the memory
    that is given out. One that is opened is hashed in its file, by the MiB, and read from there afterwards: what
    becomes of the file between the two is not seen.

    No lock is held while a content is read, so garbage collection may remove its pack or punch it meanwhile. It commits
    the next generation of the digest log before it touches a file: what was looked up and read within one generation
    is what the digest says, and everything else is looked up again.
    """

    def __init__(self, layout: Layout, database: Database, verify: Verify = "never") -> None:
        self._layout = layout
        self._database = database
        self._verify = verify
        self._lock = threading.Lock()
        self._opened = _Generation(-1)

    def digests(self) -> Digests:
        """The table over everything committed so far. Raises `CorruptError`, `OSError`."""
        return self._current().digests

    def _current(self) -> _Generation:
        with self._lock:
            while True:
                number, count = _log_state(self._database.read())
                opened = self._opened
                try:
                    if opened.number != number:
                        # Packs that were collected are given back to the system with the generation that had them.
                        opened = _Generation(number)
                        opened.digests = Digests(self._map_log(number, count), count)
                    elif len(opened.digests) < count:
                        opened.digests = Digests(self._map_log(number, count), count, opened.digests)
                except FileNotFoundError as error:
                    if _log_state(self._database.read())[0] == number:
                        raise _missing(error) from error
                    continue  # it was collected between the two
                self._opened = opened
                return opened

    def _map_log(self, generation: int, count: int) -> memoryview:
        if count == 0:
            return memoryview(b"")
        path = self._layout.digests(generation)
        with about(path), open(path, "rb") as file:
            if file.read(len(LOG_HEADER)) != LOG_HEADER:
                raise CorruptError(f"{path} is not a digest log; {REPAIR}")
            return memoryview(MappedFile(file.fileno()))[len(LOG_HEADER) :]

    def log_records(self) -> bytes:
        """All committed records of the digest log."""
        generation, count = _log_state(self._database.read())
        return bytes(self._map_log(generation, count)[: count * RECORD_BYTES])

    def append(self, db: sqlite3.Connection, records: bytes) -> None:
        """Add log records inside the transaction `db`; they count once it commits. Durable on return."""
        generation, count = _log_state(db)
        path = self._layout.digests(generation)
        with open_fd(path, os.O_WRONLY | os.O_CREAT, 0o600) as fd, about(path):
            write_at(fd, LOG_HEADER, 0)
            write_at(fd, records, len(LOG_HEADER) + count * RECORD_BYTES)
            os.fsync(fd)
        if count == 0:
            durable.sync_directory(self._layout.root)
        count += len(records) // RECORD_BYTES
        db.execute("UPDATE counters SET value = ? WHERE name = 'digests'", (count,))

    def replace_log(self, db: sqlite3.Connection, records: bytes) -> None:
        """Have only `records` in the log once the transaction `db` commits."""
        generation, _ = _log_state(db)
        durable.write_file(self._layout.digests(generation + 1), LOG_HEADER + records)
        db.execute("UPDATE counters SET value = value + 1 WHERE name = 'digests_generation'")
        db.execute("UPDATE counters SET value = ? WHERE name = 'digests'", (len(records) // RECORD_BYTES,))

    def remove_old_logs(self) -> None:
        """Remove the logs that `replace_log` has replaced, and what it left when it was killed."""
        generation, _ = _log_state(self._database.read())
        for name in own_names.own(self._layout.root, own_names.DIGESTS):
            path = f"{self._layout.root}/{name}"
            if path != self._layout.digests(generation):
                os.unlink(path)

    def log_state(self) -> tuple[int, int]:
        """Changes with each commit and collection: locations that were looked up before may be out of date then."""
        return _log_state(self._database.read())

    def locate_many(self, digests: bytes | memoryview, stride: int) -> bytes:
        """Locations as `Digests.locate_many`. Raises `CorruptError` when one is not stored."""
        return _all_located(self.digests(), digests, stride)

    def find(self, digest: bytes) -> bytes | io.FileIO:
        """The bytes of a content that is in a pack; for others the object's file, opened.

        What was found stays readable, whatever is collected after. Raises `NotFound`, `CorruptError` where it is
        missing or found to be damaged, `OSError`.
        """
        return self._settled(lambda opened: self._find(opened, digest))

    def _find(self, opened: _Generation, digest: bytes) -> bytes | io.FileIO:
        pack, slot = _located(opened, digest)
        if pack == LOCATION_OBJECT:
            return self._open_object(opened, digest)
        if is_cold(pack):
            return self._find_cold(opened, pack, slot, digest)
        content = bytes(self._pack(opened, pack).content(slot))
        self._check_slots(opened, pack, [slot], [digest], [content])
        return content

    def _find_cold(self, opened: _Generation, pack: int, slot: int, digest: bytes) -> bytes | io.FileIO:
        """As of any other: one that is no larger than those in packs is given as bytes, a larger one in a file, which
        has no name."""
        if self._cold_pack(opened, pack).slot(slot).size <= PACK_THRESHOLD_BYTES:
            return self._read_cold(opened, pack, slot, digest)
        return self._in_file(self._cold_pieces(opened, pack, slot, digest))

    def _read_cold(self, opened: _Generation, pack: int, slot: int, digest: bytes) -> bytes:
        return b"".join(self._cold_pieces(opened, pack, slot, digest))

    def _cold_in_memory(self, opened: _Generation, pack: int, slot: int, digest: bytes) -> Buffer:
        """A content of a cold pack; one that is too large for that, mapped, from a file that has no name."""
        if self._cold_pack(opened, pack).slot(slot).size <= MAX_DELTA_BYTES:
            return self._read_cold(opened, pack, slot, digest)
        with self._in_file(self._cold_pieces(opened, pack, slot, digest)) as file:
            return memoryview(MappedFile(file.fileno()))

    def cold_reader(self) -> ColdReader:
        """Reads contents that are cold, for who holds the garbage lock, reads many, and verifies them."""
        current = self._current()
        # What they differ from lies elsewhere, so more frames are kept.
        opened = _Generation(current.number, _MANY_FRAMES_BYTES)
        opened.digests = current.digests
        return ColdReader(self, opened)

    def _cold_pieces(self, opened: _Generation, pack: int, slot: int, digest: bytes) -> Iterator[bytes | memoryview]:
        """The bytes of a content of a cold pack, those of large ones by the chunk. They are verified whatever `verify`
        says, at the end: it takes a tenth of the time of decompressing them, and a collection may punch a frame."""
        hasher = Hasher()
        for piece in self._unverified(opened, pack, slot, digest):
            hasher.update(piece)
            yield piece
        if hasher.digest() != digest:
            raise _damaged(digest, f"slot {slot} of {self._layout.pack(pack)}")

    def _unverified(
        self, opened: _Generation, pack: int, slot: int, digest: bytes, depth: int = 0
    ) -> Iterator[bytes | memoryview]:
        cold, found = self._cold_slot(opened, pack, slot, digest)
        if depth > MAX_DEPTH:
            raise CorruptError(f"slot {slot} of {cold.path} needs others that need others, without end; {REPAIR}")
        if found.base == LIST:
            left = found.size
            for chunk in cold.references_of(found):
                piece = self._read(opened, chunk, depth + 1)
                left -= len(piece)
                if left < 0:
                    break
                yield piece
            if left:
                raise CorruptError(f"the chunks of slot {slot} of {cold.path} are not of {found.size} bytes; {REPAIR}")
            return
        place = pack, found.frame
        frame = opened.frames.get(place) or opened.frames.keep(place, cold.raw(found.frame))
        written = memoryview(frame)[found.at : found.at + found.length]
        if found.base == WHOLE:
            yield written
            return
        (base,) = cold.references_of(found)
        content = self._read(opened, base, depth + 1)
        try:
            yield apply_delta(content, written, found.size)
        except CorruptError as error:
            raise CorruptError(f"slot {slot} of {cold.path} is damaged ({error}); {REPAIR}") from error

    def _cold_slot(self, opened: _Generation, pack: int, slot: int, digest: bytes) -> tuple[ColdPack, ColdSlot]:
        cold = self._cold_pack(opened, pack)
        found = cold.slot(slot)
        if found.digest != digest:
            raise CorruptError(f"slot {slot} of {cold.path} has another content than {digest.hex()}; {REPAIR}")
        return cold, found

    def _cold_pack(self, opened: _Generation, pack: int) -> ColdPack:
        with self._lock:
            cold = opened.cold_packs.get(pack)
            if cold is None:
                cold = opened.cold_packs[pack] = ColdPack(self._layout.cold_pack(pack - FIRST_COLD))
            return cold

    def open_place(self, digest: bytes) -> tuple[io.FileIO, int, bool]:
        """The file that a content is in, opened, the byte at which it begins, and whether others are in that file.

        While it is open nothing is punched in it. Raises as `find`.
        """
        return self._settled(lambda opened: self._open_place(opened, digest))

    def _open_place(self, opened: _Generation, digest: bytes) -> tuple[io.FileIO, int, bool]:
        pack, slot = _located(opened, digest)
        if pack == LOCATION_OBJECT:
            return self._open_object(opened, digest), 0, False
        if is_cold(pack):
            return self._in_file(self._cold_pieces(opened, pack, slot, digest)), 0, False
        offset, size, _ = self._pack(opened, pack).slot(slot)
        file = io.FileIO(self._layout.pack(pack))
        try:
            if self._verify != "never":
                self._check_slots(opened, pack, [slot], [digest], [read_at(file.fileno(), size, offset)])
        except BaseException:
            file.close()
            raise
        return file, offset, True

    def _in_file(self, pieces: Iterable[Buffer]) -> io.FileIO:
        """A content in a file that has no name."""
        file = durable.nameless(self._layout.staging)
        try:
            with about(self._layout.staging):
                for piece in pieces:
                    write_all(file.write, piece)
                file.seek(0)
        except BaseException:
            file.close()
            raise
        return file

    def link_to(self, digest: bytes, path: str) -> bool:
        """Make `path` another name of an object; False where the content is none. Under the garbage lock.

        Raises `CorruptError` where it is found to be damaged, `OSError`.
        """
        try:
            os.link(self._layout.object(digest.hex()), path)
        except FileNotFoundError:
            return False
        if self._verify != "never":
            self._open_object(self._current(), digest).close()
        return True

    def open(self, digest: bytes) -> io.BufferedReader | io.BytesIO:
        """A binary file over one content, positioned at its start. Raises as `find`."""
        found = self.find(digest)
        return io.BufferedReader(found) if isinstance(found, io.FileIO) else io.BytesIO(found)

    def read(self, digest: bytes) -> bytes:
        """One content whole. Raises as `find`."""
        return self._settled(lambda opened: self._read(opened, digest))

    def _read(self, opened: _Generation, digest: bytes, depth: int = 0) -> bytes:
        """`depth`: of how many that need each other it is the last; the first is verified, and so all are."""
        pack, slot = _located(opened, digest)
        if pack == LOCATION_OBJECT:
            return self._read_object(opened, digest)
        if is_cold(pack):
            if depth:
                return b"".join(self._unverified(opened, pack, slot, digest, depth))
            return self._read_cold(opened, pack, slot, digest)
        found = self._find(opened, digest)
        assert isinstance(found, bytes)
        return found

    def reader(self) -> Callable[[bytes], Buffer]:
        """Gives contents for who holds the garbage lock, without copying what is in packs and objects; each is verified
        when it is first asked for. What comes into the store after this call is not found. It raises as `read`."""
        opened = self._current()
        sound: set[bytes] = set()

        def read(digest: bytes) -> Buffer:
            pack, slot = _located(opened, digest)
            content: Buffer
            if is_cold(pack):
                content, place = self._cold_in_memory(opened, pack, slot, digest), self._layout.pack(pack)
            elif pack != LOCATION_OBJECT:
                content, place = self._pack(opened, pack).content(slot), self._layout.pack(pack)
            else:
                place = self._layout.object(digest.hex())
                with about(place), open(place, "rb", buffering=0) as file:
                    content = memoryview(MappedFile(file.fileno()))
            if digest not in sound:
                if blake3(content) != digest:
                    raise _damaged(digest, f"slot {slot} of {place}" if pack != LOCATION_OBJECT else place)
                sound.add(digest)
            return content

        return read

    def read_many(self, digests: Sequence[bytes]) -> list[bytes]:
        """Many contents whole: looked up at once, read in the order in which they lie in packs, equal ones once.

        Raises `CorruptError` where one is missing or found to be damaged, `OSError`.
        """
        unique = list(dict.fromkeys(digests))
        found = self._settled(lambda opened: self._read_unique(opened, unique))
        return [found[digest] for digest in digests]

    def _read_unique(self, opened: _Generation, digests: list[bytes]) -> dict[bytes, bytes]:
        locations = LOCATION.iter_unpack(_all_located(opened.digests, b"".join(digests), 32))
        found: dict[bytes, bytes] = {}
        for pack, places in groupby(sorted(zip(locations, digests, strict=True)), key=lambda place: place[0][0]):
            slots, names = zip(*((slot, digest) for (_, slot), digest in places), strict=True)
            if pack == LOCATION_OBJECT:
                found.update((digest, self._read_object(opened, digest)) for digest in names)
            elif is_cold(pack):
                for slot, digest in zip(slots, names, strict=True):
                    found[digest] = self._read_cold(opened, pack, slot, digest)
            else:
                copies = self._pack(opened, pack).copies(slots)
                self._check_slots(opened, pack, slots, names, copies)
                found.update(zip(names, copies, strict=True))
        return found

    def _read_object(self, opened: _Generation, digest: bytes) -> bytes:
        path = self._layout.object(digest.hex())
        with about(path), open(path, "rb") as file:
            content = file.read()
        if self._is_in_doubt(opened, digest):
            if blake3(content) != digest:
                raise _damaged(digest, path)
            opened.sound_objects.add(digest)
        return content

    def _open_object(self, opened: _Generation, digest: bytes) -> io.FileIO:
        path = self._layout.object(digest.hex())
        file = io.FileIO(path)
        try:
            if self._is_in_doubt(opened, digest):
                if _hash_of(file) != digest:
                    raise _damaged(digest, path)
                opened.sound_objects.add(digest)
        except BaseException:
            file.close()
            raise
        return file

    def _is_in_doubt(self, opened: _Generation, digest: bytes) -> bool:
        """Whether an object is to be hashed now."""
        return self._verify != "never" and (self._verify == "always" or digest not in opened.sound_objects)

    def _check_slots(
        self, opened: _Generation, pack: int, slots: Sequence[int], digests: Sequence[bytes], contents: Sequence[Buffer]
    ) -> None:
        """Verify what was read of slots of a pack, as far as that is to be done now. Raises `CorruptError`."""
        if self._verify == "never":
            return
        sound = opened.sound_slots.setdefault(pack, bytearray(self._pack(opened, pack).slot_count))
        again = self._verify == "always"
        doubtful = [number for number, slot in enumerate(slots) if again or not sound[slot]]
        for number, digest in zip(doubtful, hash_many([contents[number] for number in doubtful]), strict=True):
            if digest != digests[number]:
                raise _damaged(digests[number], f"slot {slots[number]} of {self._layout.pack(pack)}")
            sound[slots[number]] = 1

    def _settled(self, read: Callable[[_Generation], _Found]) -> _Found:
        """What `read` gives of a generation that was the current one until it had read. It ends, as each further round
        takes a collection that was committed during the last."""
        while True:
            opened = self._current()
            try:
                found = read(opened)
            except FileNotFoundError as error:
                if self._is_current(opened):
                    raise _missing(error) from error
                continue
            except CorruptError:
                if self._is_current(opened):
                    raise
                continue  # what was read had been punched
            if isinstance(found, io.FileIO) or self._is_current(opened):  # an open file stays what it is
                return found

    def _is_current(self, opened: _Generation) -> bool:
        return _log_state(self._database.read())[0] == opened.number

    def pack(self, number: int) -> Pack:
        """An open pack. Its bytes stay what they are under the garbage lock only. Raises `CorruptError`, `OSError`."""
        return self._pack(self._opened, number)

    def forget_packs(self) -> None:
        """Let go of the packs that are open here."""
        with self._lock:
            self._opened.packs.clear()
            self._opened.cold_packs.clear()

    def _pack(self, opened: _Generation, number: int) -> Pack:
        with self._lock:
            pack = opened.packs.get(number)
            if pack is None:
                pack = opened.packs[number] = Pack(self._layout.pack(number))
            return pack


class ColdReader:
    """Reads contents that are cold (`ContentStore.cold_reader`). Safe for many threads."""

    def __init__(self, contents: ContentStore, opened: _Generation) -> None:
        self._contents = contents
        self._opened = opened

    def read(self, digest: bytes) -> bytes | memoryview:
        """One content, or a chunk of one, which may be hot. It is not verified. Raises as `ContentStore.find`."""
        pack, slot = _located(self._opened, digest)
        if not is_cold(pack):
            return self._contents._read(self._opened, digest)
        pieces = list(self._contents._unverified(self._opened, pack, slot, digest))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def parts_of(self, digest: bytes) -> list[bytes]:
        """The digests of the chunks of a content; its own where it has none. Raises as `read`."""
        cold, slot = self._contents._cold_slot(self._opened, *_located(self._opened, digest), digest)
        return cold.references_of(slot) if slot.base == LIST else [digest]


def _all_located(table: Digests, digests: bytes | memoryview, stride: int) -> bytes:
    locations = table.locate_many(digests, stride)
    for i, (pack, _) in enumerate(LOCATION.iter_unpack(locations)):
        if pack == LOCATION_NONE:
            digest = bytes(digests[i * stride : i * stride + 32]).hex()
            raise CorruptError(f"content {digest} is missing from the store; {RELOAD}")
    return locations


def _located(opened: _Generation, digest: bytes) -> tuple[int, int]:
    pack, slot = LOCATION.unpack(opened.digests.locate_many(digest, 32))
    if pack == LOCATION_NONE:
        raise NotFound(f"content {digest.hex()} is not in the store")
    return pack, slot


def _hash_of(file: io.FileIO) -> bytes:
    """The digest of a file from its beginning, where it is afterwards."""
    hasher = Hasher()
    piece = memoryview(bytearray(PIECE_BYTES))
    while count := file.readinto(piece):
        hasher.update(piece[:count])
    file.seek(0)
    return hasher.digest()


def _damaged(digest: bytes, place: str) -> CorruptError:
    return CorruptError(
        f"content {digest.hex()}, which is {place}, is damaged; `layerstore fsck` says which images have it"
    )


def _missing(error: FileNotFoundError) -> CorruptError:
    return CorruptError(f"{error.filename} is missing from the store; {RELOAD}")


def _log_state(db: sqlite3.Connection) -> tuple[int, int]:
    """The generation and the number of committed records of the digest log, of one moment."""
    query = "SELECT value FROM counters WHERE name IN ('digests', 'digests_generation') ORDER BY name"
    (count,), (generation,) = db.execute(query).fetchall()
    return generation, count
