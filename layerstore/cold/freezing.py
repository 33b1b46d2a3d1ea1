"""Freezes images: what no image that stays hot needs is written to a cold pack, and is read from there from then on.

A cold pack is written beside everything else under the shared garbage lock, where it is an abandoned file unless a
transaction names it. That transaction runs under the exclusive lock and is the commit: it looks again at which images
are in use, and has the digest log say where the contents are. Garbage collection then gives back what they took.
"""

from __future__ import annotations

import contextlib
import os
import time
from concurrent.futures import ThreadPoolExecutor

from layerstore._core.ingest import LOCATION_NONE, RECORD_BYTES
from layerstore.chains.derived import described_chains, remove_derived, tree_image
from layerstore.cold.encoding import NO_NAME, Encoder, Item, hash_names, name_of
from layerstore.errors import Conflict, CorruptError, InvalidInput, NotFound
from layerstore.layers.imports import clear_abandoned_cold, drop_cold_pack
from layerstore.layers.index_files import pack_index
from layerstore.layers.ordered import in_order
from layerstore.naming import about, close_fd, fstat
from layerstore.results import Frozen, telling
from layerstore.store import durable, locks
from layerstore.store.cold_packs import LIST, MAX_DEPTH, SLOT, WHOLE, ColdPack, is_cold
from layerstore.store.last_use import last_use
from layerstore.store.layout import FIRST_COLD, make_private
from layerstore.store.records import CONTENT, LOCATION, RECORD, packs_of
from layerstore.types import ChainId, DiffId, ImageId

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Collection, Iterable, Sequence

    from layerstore._core.index import Index
    from layerstore.chains.chains import Chains
    from layerstore.cold.encoding import Compression
    from layerstore.results import ProgressCallback
    from layerstore.store.opened import OpenStore

_INDEXES_AT_ONCE = 4
_HOT_PATHS = 1_000_000
"""Of so many paths of images that stay hot contents are looked at, as what those that are frozen may differ from."""


class _Images:
    """Which images there are, at one moment: their chains, and which are frozen or in use."""

    def __init__(self, db: sqlite3.Connection) -> None:
        read = db.execute
        self.chains = {ImageId(i): ChainId(c) for i, c in read("SELECT image_id, chain_id FROM images").fetchall()}
        self.frozen = {ImageId(i) for (i,) in read("SELECT image_id FROM frozen").fetchall()}
        self.in_use = {ImageId(i) for (i,) in read("SELECT DISTINCT image_id FROM containers").fetchall()}
        rows = read("SELECT chain_id, parent, diff_id FROM chains").fetchall()
        self._rows = {ChainId(chain): (parent, DiffId(diff_id)) for chain, parent, diff_id in rows}

    def hot(self, chosen: Collection[ImageId]) -> set[ImageId]:
        """The images that stay hot where those chosen are frozen."""
        return {image for image in self.chains if image in self.in_use or not (image in chosen or image in self.frozen)}

    def layers(self, images: Iterable[ImageId]) -> list[DiffId]:
        """Those of these images, each once, bottom first."""
        found: dict[DiffId, None] = {}
        seen: set[ChainId] = set()
        for image in images:
            stack = []
            at: ChainId | None = self.chains[image]
            while at is not None and at not in seen and at in self._rows:
                seen.add(at)
                at, diff_id = self._rows[at]
                stack.append(diff_id)
            found.update(dict.fromkeys(reversed(stack)))
        return list(found)


def freeze(
    store: OpenStore,
    chains: Chains,
    among: Collection[ImageId] | None,
    unused_for_seconds: float,
    compression: Compression,
    progress: ProgressCallback | None,
) -> Frozen:
    """See `layerstore.Store.freeze`; what the contents took is garbage then, and not given back yet."""
    if compression not in ("zstd", "lz4"):
        raise InvalidInput(f"frames are compressed by 'zstd' or 'lz4', not {compression!r}")
    chosen = unused_images(store, unused_for_seconds, among)
    while True:
        try:
            return _freeze(store, chains, chosen, compression, progress)
        except (Conflict, NotFound):
            before, chosen = chosen, unused_images(store, unused_for_seconds, among)
            # Where nobody has asked for those that came into use or were removed meanwhile, the others are left.
            if among is not None or chosen == before:
                raise


def _freeze(
    store: OpenStore,
    chains: Chains,
    images: Sequence[ImageId],
    compression: Compression,
    progress: ProgressCallback | None,
) -> Frozen:
    make_private(store.layout.cold)
    with locks.freeze(store.layout), contextlib.ExitStack() as stack:
        freezing = Freezing(store, chains, images)
        with locks.garbage(store.layout):
            with locks.staging(store.layout):
                clear_abandoned_cold(store)
                number, fd = _reserve(store)
                stack.callback(close_fd, fd)
                stack.callback(drop_cold_pack, store, number)
            written = freezing.write(number, fd, compression, progress)
            freezing.pack_indexes()
        with locks.garbage_alone(store.layout):
            frozen = freezing.commit(number, written)
        stored = fstat(fd).st_size if written else 0
        return Frozen(frozen, len(freezing.items), sum(item.size for item in freezing.items), stored)


def unused_images(store: OpenStore, seconds: float, among: Collection[ImageId] | None = None) -> list[ImageId]:
    """Images that are not frozen, came into the store and were used longer ago, oldest first; all that no container
    uses, or those that are given. Images of the same layers have all in common, so a use of one is one of all."""
    read = store.database.read().execute
    rows = read("SELECT image_id, chain_id, stored_seconds FROM images ORDER BY stored_seconds").fetchall()
    frozen = {image for (image,) in read("SELECT image_id FROM frozen").fetchall()}
    in_use = {chain for (chain,) in read("SELECT DISTINCT chain_id FROM containers").fetchall()}
    used: dict[str, float] = {}
    for image, chain, stored in rows:
        used[chain] = max(stored, last_use(store.layout, ImageId(image)), used.get(chain, 0))
    before = time.time() - seconds
    return [
        ImageId(image)
        for image, chain, _ in rows
        if image not in frozen and (chain not in in_use if among is None else image in among) and used[chain] <= before
    ]


class Freezing:
    """Images that are to be frozen: `items`, the contents that are to be written for that; `must_stay`, those of them
    that others differ from; `again_bytes`, those of contents that are in cold packs already and hot, too."""

    def __init__(
        self,
        store: OpenStore,
        chains: Chains,
        images: Sequence[ImageId],
    ) -> None:
        self._layout = store.layout
        self._database = store.database
        self._contents = store.contents
        self._chains = chains
        self._images = images
        self.items: list[Item] = []
        self.must_stay: set[bytes] = set()
        self.again_bytes = 0
        self._again: list[bytes] = []
        self._hot_layers: list[DiffId] = []
        self._own_layers: list[DiffId] = []
        """Those of the images that no image has which stays hot."""
        self._cold: dict[bytes, bytes] = {}
        """The last records of contents that cold packs have, by digest."""
        self._opened: dict[int, ColdPack] = {}
        self._sound_frames: dict[tuple[int, int], bool] = {}
        self._sound: set[DiffId] = set()
        self._written: list[tuple[bytes, int]] = []

    def choose(self) -> None:
        """Find what is to be written. Under the garbage lock, shared. Raises `NotFound`, and `Conflict` where a
        container uses one of the images."""
        there = _Images(self._database.read())
        for image in self._images:
            if image not in there.chains:
                raise NotFound(f"image {image} was removed meanwhile")
            if image in there.in_use:
                raise Conflict(f"a container uses image {image[7:19]}; `layerstore rm` it first")
        hot_images = there.hot(set(self._images))
        self._hot_layers = there.layers(hot_images)
        hot_layers = set(self._hot_layers)
        self._own_layers = [layer for layer in there.layers(self._images) if layer not in hot_layers]
        log = self._contents.log_records()
        cold_layers = there.layers(image for image in there.chains if image not in hot_images)
        paths = self._paths(log, cold_layers)
        self._cold = _cold_records(log)
        references = self._references(log)
        for digest, size in references.items():
            paths.setdefault(digest, (size, b""))
        for digest in self._among(list(paths), self._hot_layers):
            del paths[digest]
        self.must_stay = set(references)
        places = LOCATION.iter_unpack(self._contents.digests().locate_many(b"".join(paths), 32))
        there_now = []
        for (digest, (size, _)), (pack, _) in zip(paths.items(), places, strict=True):
            # What others refer to is to be whole, and may have been a difference in a pack when it was frozen before.
            is_kept = digest in self._cold and (digest not in references or self._is_whole(*_place(self._cold[digest])))
            if is_cold(pack) or (is_kept and self._is_sound(*_place(self._cold[digest]))):
                if not is_cold(pack):
                    self._again.append(digest)
                    self.again_bytes += size
            elif pack != LOCATION_NONE:
                there_now.append(digest)
        names = dict(zip(there_now, hash_names([name_of(paths[digest][1]) for digest in there_now]), strict=True))
        self.items = [
            Item(digest, paths[digest][0], paths[digest][1], names[digest] if paths[digest][1] else NO_NAME)
            for digest in there_now
        ]

    def write(self, number: int, fd: int, compression: Compression, progress: ProgressCallback | None) -> bool:
        """Write what is to be frozen to a cold pack; False where that is nothing."""
        self.choose()
        if not self.items:
            return False
        total = sum(item.size for item in self.items)
        tell = telling(progress, "freeze", "contents", total)
        path = self._layout.cold_pack(number)
        encoder = Encoder(fd, path, compression, self._contents.reader(), self.whole_chunks, self.bases(), tell)
        self._written = encoder.write(self.items, self.must_stay)
        with about(path):
            os.fsync(fd)
        durable.sync_directory(self._layout.cold)
        return True

    def pack_indexes(self) -> None:
        """Compress the indexes of layers that no image has which stays hot. Before the commit, as it needs room."""
        # Of the files most wait for the disk.
        with ThreadPoolExecutor(_INDEXES_AT_ONCE) as threads:
            paths = (self._layout.layer_index(layer) for layer in self._own_layers if layer in self._sound)
            for _ in in_order(threads, pack_index, paths):
                pass

    def commit(self, number: int, written: bool) -> list[ImageId]:
        """Have the contents be where they were written, and the images frozen; returns those that are."""
        there = _Images(self._database.read())
        frozen = [image for image in self._images if image in there.chains and image not in there.in_use]
        if self._images and not frozen:
            raise Conflict("containers of all these images were made meanwhile, or they were removed")
        hot_images = there.hot(set(frozen))
        chosen = [*(digest for digest, _ in self._written), *self._again]
        hot = self._among(chosen, there.layers(hot_images))
        pack = ColdPack(self._layout.cold_pack(number)) if written else None
        records = [
            RECORD.pack(digest, size, FIRST_COLD + number, slot)
            for slot, (digest, size) in enumerate(self._written)
            if digest not in hot
        ]
        if pack is not None:
            self._require_references(pack)
        # What was thawed is where it was, unless that was collected meanwhile.
        cold = _cold_records(self._contents.log_records())
        records += [cold[digest] for digest in self._again if digest in cold and digest not in hot]
        # Tree images say where contents are hot, and would be taken for right by who mounts one: they go before.
        stay = {there.chains[image] for image in hot_images}
        self._remove_derived({there.chains[image] for image in frozen} - stay, stay)
        with self._database.transaction() as db:
            if records:
                self._contents.append(db, b"".join(records))
            if written:
                db.execute("INSERT INTO cold_packs VALUES (?)", (number,))
                db.execute("UPDATE counters SET value = max(value, ?) WHERE name = 'cold_packs'", (number + 1,))
            # An image may be removed at any moment.
            there_still = "INSERT OR IGNORE INTO frozen SELECT image_id FROM images WHERE image_id = ?"
            db.executemany(there_still, [(image,) for image in frozen])
        return frozen

    def _remove_derived(self, chains: Collection[ChainId], stay: Collection[ChainId]) -> None:
        """Those of these chains; and tree images of all others but those that stay: one of an image that was removed
        would be of use again once that is loaded again."""
        layout = self._layout
        for chain in set(described_chains(layout)) - set(stay):
            remove_derived(tree_image(layout, chain))
        remove_derived(layout.chain_index(chain) for chain in chains)
        durable.sync_directory(layout.chains)

    def _require_references(self, pack: ColdPack) -> None:
        """What it refers to may have been collected, or have become a difference, since it was looked up."""
        needed = _references_of(pack) - {digest for digest, _ in self._written}
        places = LOCATION.iter_unpack(self._contents.digests().locate_many(b"".join(needed), 32))
        if any(
            place == LOCATION_NONE or (is_cold(place) and not self._is_whole(place, slot)) for place, slot in places
        ):
            raise Conflict("what these images have in common with others changed while they were frozen; try again")

    def _is_whole(self, pack: int, slot: int, kinds: Collection[int] = (WHOLE, LIST)) -> bool:
        """Whether a place in a cold pack has what others may refer to: no difference."""
        return self._pack(pack).slot(slot).base in kinds

    def _is_sound(self, pack: int, slot: int, depth: int = 0) -> bool:
        """Whether the bytes at a place in a cold pack, and those that it needs in others, are as they were written: the
        hot copy of what is there goes."""
        opened = self._pack(pack)
        found = opened.slot(slot)
        if found.base != LIST:
            frame = pack, found.frame
            if frame not in self._sound_frames:
                self._sound_frames[frame] = opened.is_sound(found.frame)
            if not self._sound_frames[frame]:
                return False
        needed = b"".join(opened.references_of(found))
        places = LOCATION.iter_unpack(self._contents.digests().locate_many(needed, 32)) if needed else ()
        return depth <= MAX_DEPTH and all(
            place != LOCATION_NONE and (not is_cold(place) or self._is_sound(place, at, depth + 1))
            for place, at in places
        )

    def _pack(self, number: int) -> ColdPack:
        """By its number in locations."""
        if number not in self._opened:
            self._opened[number] = ColdPack(self._layout.pack(number))
        return self._opened[number]

    # What is looked at

    def _index(self, layer: DiffId) -> Index | None:
        """None of a layer that is noted as damaged and of which the index is: nobody mounts it, and whoever loads it
        again brings what it needs. A damaged one that says nothing of what is hot would take that from a mount."""
        try:
            index = self._chains.layer_index(layer)
            if layer not in self._sound:
                index.verify_digest()
                self._sound.add(layer)
            return index
        except CorruptError:
            query = "SELECT 1 FROM damaged_layers WHERE diff_id = ?"
            if self._database.read().execute(query, (layer,)).fetchone():
                return None
            raise

    def _paths(self, log: bytes, layers: Iterable[DiffId]) -> dict[bytes, tuple[int, bytes]]:
        """Size and path of each content of these layers that is stored, and not in a cold pack."""
        found: dict[bytes, tuple[int, bytes]] = {}
        digests = self._contents.digests()
        # Of the records; what came in since the log was read waits for the next time.
        is_seen = bytearray(is_cold(pack) for pack in packs_of(log))
        is_seen += b"\1" * (len(digests) - len(is_seen))
        for layer in layers:
            index = self._index(layer)
            if index is None:
                continue
            table = bytes(index.contents_bytes())
            # Of most layers of frozen images that is nothing.
            if new := memoryview(digests.mark_many(table, CONTENT.size, is_seen)).cast("I"):
                paths = index.content_paths()
                contents = ((CONTENT.unpack_from(table, at * CONTENT.size), paths[at]) for at in new)
                found.update((digest, (size, path)) for (digest, size), path in contents)
        return found

    def _among(self, chosen: Sequence[bytes], layers: Iterable[DiffId]) -> set[bytes]:
        """Those of these contents that layers have."""
        digests = self._contents.digests()
        is_there = bytearray(len(digests))
        for layer in layers:
            index = self._index(layer)
            if index is not None:
                digests.mark_many(index.contents_bytes(), CONTENT.size, is_there)
        numbers = memoryview(digests.number_many(b"".join(chosen), 32)).cast("I")
        return {digest for digest, n in zip(chosen, numbers, strict=True) if n < len(is_there) and is_there[n]}

    def _references(self, log: bytes) -> dict[bytes, int]:
        """What contents of cold packs differ from or are made of, with their sizes: it is no difference itself."""
        numbers = self._database.read().execute("SELECT number FROM cold_packs").fetchall()
        needed = {each for (number,) in numbers for each in _references_of(self._pack(FIRST_COLD + number))}
        return {digest: size for digest, size, _, _ in RECORD.iter_unpack(log) if digest in needed}

    def bases(self) -> dict[bytes, list[tuple[bytes, int]]]:
        """Contents that are stored and stay where they are, by those of the names of items that they have."""
        names = {item.name for item in self.items}
        written = {item.digest for item in self.items}
        found: dict[bytes, list[tuple[bytes, int]]] = {}
        for number in {_place(record)[0] for record in self._cold.values()}:
            pack = self._pack(number)
            for slot, (digest, size, name, _, _, _, base) in enumerate(SLOT.iter_unpack(pack.slots())):
                if name not in names or base not in (WHOLE, LIST) or name == NO_NAME or digest in written:
                    continue
                # Of a content with several, the last one, which is where it is looked up once it is cold.
                if digest in self._cold and _place(self._cold[digest]) == (number, slot):
                    found.setdefault(name, []).append((digest, size))
        looked_at = 0
        for layer in self._hot_layers:
            if looked_at > _HOT_PATHS:
                break
            index = self._index(layer)
            if index is None:
                continue
            paths = index.content_paths()
            looked_at += len(paths)
            hashes = hash_names([name_of(path) for path in paths])
            table = bytes(index.contents_bytes())
            places = LOCATION.iter_unpack(self._contents.digests().locate_many(table, CONTENT.size))
            for name, (digest, size), (pack, _) in zip(hashes, CONTENT.iter_unpack(table), places, strict=True):
                # One that is cold is among those above, or is a difference.
                if name in names and pack != LOCATION_NONE and not is_cold(pack):
                    found.setdefault(name, []).append((digest, size))
        return {name: list(dict.fromkeys(bases)) for name, bases in found.items()}

    def whole_chunks(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of these contents that cold packs have as they are: what is hot may become a difference or a list."""
        places = LOCATION.iter_unpack(self._contents.digests().locate_many(b"".join(digests), 32))
        found = zip(digests, places, strict=True)
        return {
            digest
            for digest, (pack, slot) in found
            if is_cold(pack) and self._is_whole(pack, slot, (WHOLE,)) and self._is_sound(pack, slot)
        }


def _cold_records(log: bytes) -> dict[bytes, bytes]:
    records = ((at * RECORD_BYTES, pack) for at, pack in enumerate(packs_of(log)))
    return {log[at : at + 32]: log[at : at + RECORD_BYTES] for at, pack in records if is_cold(pack)}


def _references_of(pack: ColdPack) -> set[bytes]:
    references = bytes(pack.references())
    return {references[at : at + 32] for at in range(0, len(references), 32)}


def _place(record: bytes) -> tuple[int, int]:
    _, _, pack, slot = RECORD.unpack(record)
    return pack, slot


def _reserve(store: OpenStore) -> tuple[int, int]:
    """Make the next cold pack's file, locked so that others see it is in use; returns its number and descriptor."""
    query = "SELECT value FROM counters WHERE name = 'cold_packs'"
    (number,) = store.database.read().execute(query).fetchone()
    return durable.first_free(store.layout.cold_pack, number)
