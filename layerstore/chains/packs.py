"""Brings the contents of many small packs together, so that no image needs more packs than a mount bears.

The contents are copied to a new pack, whose import commits as any other does: from then on they are looked up there.
The old packs stay for the tree images that name them, until garbage collection finds that there are none.
"""

from __future__ import annotations

import errno
import os

from layerstore._core.hashing import hash_many
from layerstore._core.index import CONTENT_BYTES
from layerstore._core.ingest import LOCATION_OBJECT, Digests
from layerstore.errors import CorruptError
from layerstore.store import locks
from layerstore.store.records import LOCATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from layerstore.store.contents import ContentStore, Pack
    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore

MAX_PACKS = 64
"""That one image needs. Overlayfs allows 500 layers, and each pack is one; but each also costs every mount 7 µs and
every first opening of a file 0.2 µs (docs/measurements.md, "Packs of an image")."""
_PACKS_LEFT = MAX_PACKS // 2
"""After bringing together: half, so that an image that grows is not copied anew with each layer."""
_SMALL_BYTES = 1 << 20
_BATCH_BYTES = 8 << 20


def packs_of(locations: bytes) -> tuple[set[int], bool]:
    """The packs that contents at these places are in, and whether any is an object."""
    packs = {pack for pack, _ in LOCATION.iter_unpack(locations)}
    return packs - {LOCATION_OBJECT}, LOCATION_OBJECT in packs


def locate_in_few(store: OpenStore, table: memoryview) -> bytes:
    """Locations of the contents of an index in at most `MAX_PACKS` packs: the smallest are brought together before.

    Under the garbage lock of the caller's, shared. Raises as `ContentStore.locate_many`, `CorruptError` where a content
    that would be copied is damaged, `OSError`.
    """
    locations = store.contents.locate_many(table, CONTENT_BYTES)
    if len(packs_of(locations)[0]) <= MAX_PACKS:
        return locations
    with locks.packs(store.layout):
        # Another process may have done it meanwhile.
        packs, _ = packs_of(store.contents.locate_many(table, CONTENT_BYTES))
        if len(packs) > MAX_PACKS:
            by_size = sorted(packs, key=lambda number: (_used_bytes(store.layout, number), number))
            needed = {bytes(table[at : at + 32]) for at in range(0, len(table), CONTENT_BYTES)}
            _bring_together(store, sorted(by_size[: len(packs) - _PACKS_LEFT + 1]), needed)
        return store.contents.locate_many(table, CONTENT_BYTES)


def bring_small_together(store: OpenStore) -> bool:
    """Leave one small pack where the store has more than `MAX_PACKS` of them, as hundreds of small imports make them.

    Returns whether there are packs now that may be collected for it. What is damaged stays where it is, and so does
    everything where there is no room for a copy: collecting garbage is what makes room. Raises `OSError`.
    """
    with locks.garbage(store.layout), locks.packs(store.layout):
        rows = store.database.read().execute("SELECT number FROM packs ORDER BY number").fetchall()
        small = [number for (number,) in rows if _is_small(store.layout, number)]
        if len(small) <= MAX_PACKS:
            return False
        in_use = [number for number in small if _is_in_use(store.contents, number)]
        if len(in_use) <= MAX_PACKS:
            return False
        try:
            return _bring_together(store, in_use, set())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return False


def _used_bytes(layout: Layout, number: int) -> int:
    return os.stat(layout.pack(number)).st_blocks * 512


def _is_small(layout: Layout, number: int) -> bool:
    try:
        return _used_bytes(layout, number) < _SMALL_BYTES
    except FileNotFoundError:
        return False


def _is_in_use(contents: ContentStore, number: int) -> bool:
    try:
        return any(_slots_in_use(contents, number, contents.pack(number)))
    except CorruptError:
        return False


def _bring_together(store: OpenStore, numbers: Iterable[int], needed: set[bytes]) -> bool:
    """Copy all that is looked up in these packs to a new one, so that nothing is looked up in them any more.

    A damaged content stays where it is; one that is `needed` raises `CorruptError`, and nothing is copied then. Returns
    whether anything was copied.
    """
    from layerstore.layers.imports import Import

    nothing_known = Digests(b"", 0)
    copied = False
    with Import(store, known=nothing_known) as importing:
        for number in numbers:
            pack = store.contents.pack(number)
            for batch in _batches(pack, _slots_in_use(store.contents, number, pack)):
                sound = _sound(pack, batch, needed)
                importing.copy_contents(sound)
                copied = copied or bool(sound)
        importing.commit()
    return copied


def _sound(pack: Pack, batch: Sequence[tuple[int, bytes]], needed: set[bytes]) -> list[memoryview]:
    """The contents of these slots that have their digests."""
    found = [pack.content(slot) for slot, _ in batch]
    sound = []
    for content, (_, digest), real in zip(found, batch, hash_many(found), strict=True):
        if real == digest:
            sound.append(content)
        elif digest in needed:
            raise CorruptError(f"a content in {pack.path} is damaged; restore it from a copy of the store")
    return sound


def _slots_in_use(contents: ContentStore, number: int, pack: Pack) -> Iterator[tuple[int, bytes]]:
    """Slots, with their digests, whose content is looked up in this pack: of equal contents one is."""
    digests = b"".join(pack.slot(slot)[2] for slot in range(pack.slot_count))
    locations = contents.digests().locate_many(digests, 32)
    for slot, place in enumerate(LOCATION.iter_unpack(locations)):
        if place == (number, slot):
            yield slot, digests[32 * slot : 32 * slot + 32]


def _batches(pack: Pack, slots: Iterable[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    from layerstore.layers.ordered import groups

    return groups(slots, lambda slot: pack.slot(slot[0])[1], _BATCH_BYTES)
