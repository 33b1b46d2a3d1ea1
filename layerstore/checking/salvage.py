"""Gets contents out of packs whose slots cannot be read, and finds contents that the digest log does not know.

Nothing is believed but a content's digest: where it may be is guessed from what is left of the slots, from the image
that the kernel is shown, and from the sizes of the contents before it.
"""

from __future__ import annotations

import os
import struct

from layerstore._core.erofs import PACK_BLOCK_BYTES
from layerstore._core.hashing import blake3
from layerstore._core.ingest import LOCATION_OBJECT
from layerstore.checking.contents import Record
from layerstore.checking.findings import reason
from layerstore.checking.hashing import compare_object
from layerstore.errors import CorruptError
from layerstore.naming import fstat
from layerstore.store import own_names
from layerstore.store.cold_packs import ColdPack, is_cold
from layerstore.store.contents import SLOT, Pack
from layerstore.store.pieces import read_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.store.layout import Layout

_FOOTER_BYTES = 64
_COUNT_AT = 12
# Of EROFS's compact inode, and the chunk index that follows it (csrc/erofs/erofs_format.h).
_INODE = struct.Struct("<4xHH I 20x 4xI")
_FILE_MODE = 0o100400
_INODE_BYTES = 32


def rescued(layout: Layout, number: int, records: Iterable[Record]) -> Iterator[tuple[Record, bytes]]:
    """Contents of a pack that are whole, by the records that say that they are in it."""
    try:
        file = open(layout.pack(number), "rb", buffering=0)  # noqa: SIM115
    except OSError as error:
        reason(error)
        return
    with file:
        length = fstat(file.fileno()).st_size
        guesses = [_offsets_of_image(layout.pack_image(number)), _offsets_of_slots(file.fileno(), length)]
        at, next_slot = 0, 0
        for record in sorted(records, key=lambda record: record.slot):
            places = [offsets[record.slot] for offsets in guesses if record.slot in offsets]
            if record.slot == next_slot:
                places.append(at)
            for offset in dict.fromkeys(places):
                data = _read(file.fileno(), offset, record.size)
                if data is not None and blake3(data) == record.digest:
                    yield record, data
                    at, next_slot = offset, record.slot
                    break
            if record.slot == next_slot:
                at, next_slot = at + -(-record.size // PACK_BLOCK_BYTES) * PACK_BLOCK_BYTES, next_slot + 1


def _read(fd: int, offset: int, size: int) -> bytes | None:
    try:
        data = read_at(fd, size, offset)
    except OSError:
        return None
    return data if len(data) == size else None


def _offsets_of_slots(fd: int, length: int) -> dict[int, int]:
    """By the slots, as many as the footer says or as there is room for."""
    try:
        footer = read_at(fd, _FOOTER_BYTES, max(length - _FOOTER_BYTES, 0))
        count = int.from_bytes(footer[_COUNT_AT : _COUNT_AT + 4], "little")
        for claimed in (count, _count_of_slots(fd, length)):
            start = length - _FOOTER_BYTES - claimed * SLOT.size
            if claimed and start >= 0:
                data = read_at(fd, claimed * SLOT.size, start)
                first = SLOT.unpack_from(data)
                if first[0] == 0:
                    return {slot: offset for slot, (offset, _, _) in enumerate(SLOT.iter_unpack(data))}
    except (OSError, struct.error):
        pass
    return {}


def _count_of_slots(fd: int, length: int) -> int:
    """How many slots end where the footer begins, by where each says that it begins."""
    end = length - _FOOTER_BYTES
    data = read_at(fd, end, 0)
    count, below = 0, 1 << 64
    while end - (count + 1) * SLOT.size >= 0:
        offset, size, _ = SLOT.unpack_from(data, end - (count + 1) * SLOT.size)
        if offset % PACK_BLOCK_BYTES or not size or offset >= below:
            return 0
        count, below = count + 1, offset
        if offset == 0:
            return count
    return 0


def _offsets_of_image(path: str) -> dict[int, int]:
    """By the image that shows the pack to the kernel: its files stand in the order of their names."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        reason(error)
        return {}
    blocks = []
    for at in range(0, len(data) - _INODE.size + 1, _INODE_BYTES):
        mode, _, _, block = _INODE.unpack_from(data, at)
        if mode == _FILE_MODE:
            blocks.append(block)
    names = sorted(range(len(blocks)), key=str)
    return {slot: block * PACK_BLOCK_BYTES for slot, block in zip(names, blocks, strict=True)}


def strays(layout: Layout, packs: Iterable[int], known: set[tuple[int, int, bytes]]) -> Iterator[Record]:
    """Contents that are whole in slots of packs and in objects, and all of cold packs, but for those that are `known`:
    pack, slot, digest."""
    for number in sorted(packs):
        try:
            if is_cold(number):
                yield from _strays_of_cold(ColdPack(layout.pack(number)), number, known)
                continue
            with open(layout.pack(number), "rb", buffering=0) as file:
                pack = Pack(layout.pack(number))
                for slot in range(pack.slot_count):
                    offset, size, digest = pack.slot(slot)
                    if (number, slot, digest) not in known:
                        data = _read(file.fileno(), offset, size)
                        if data is not None and blake3(data) == digest:
                            yield Record(-1, digest, size, number, slot)
        except (CorruptError, OSError) as error:
            reason(error)
            continue
    for directory in sorted(own_names.object_directories(layout)):
        for name in sorted(own_names.own(f"{layout.objects}/{directory}", own_names.OBJECTS)):
            path = f"{layout.objects}/{directory}/{name}"
            digest = bytes.fromhex(directory + name)
            try:
                size = os.stat(path).st_size
            except OSError as error:
                reason(error)
                continue
            if (LOCATION_OBJECT, 0, digest) not in known and size and not compare_object(path, size, digest):
                yield Record(-1, digest, size, LOCATION_OBJECT, 0)


def _strays_of_cold(pack: ColdPack, number: int, known: set[tuple[int, int, bytes]]) -> Iterator[Record]:
    """All of them: whether one is whole depends on others, which need not be known yet."""
    for at in range(pack.slot_count):
        slot = pack.slot(at)
        if (number, at, slot.digest) not in known:
            yield Record(-1, slot.digest, slot.size, number, at)
