"""What images take, counted by hand: over every image, every content and every record, in plain Python.

What a collection of garbage would keep is asked of the collection itself.
"""

import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from beside import content_store, rows

from layerstore import Store
from layerstore.layers.index_files import open_layer_index
from layerstore.space.garbage import _kept_records, with_references
from layerstore.store.cold_packs import LIST, ColdPack, is_cold
from layerstore.store.layout import FIRST_COLD

RECORD = struct.Struct("<32sQII")
CONTENT = struct.Struct("<32sQ")
OBJECT = 0xFFFFFFFF


@dataclass
class Taken:
    hot: int
    cold: Fraction
    unique: Fraction


class Model:
    """Of each image by its id what it takes; `hot_bytes` of all hot places that are needed; `dead_bytes` of others, and
    of files that nothing needs."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._packs = {
            FIRST_COLD + int(path.stem): ColdPack(str(path)) for path in Path(store.layout.cold).glob("*.cold")
        }
        with content_store(store.layout) as contents:
            log = contents.log_records()
        records = list(RECORD.iter_unpack(log))
        self._size = {digest: size for digest, size, _, _ in records}
        self._at = {digest: (pack, slot) for digest, _, pack, slot in records}
        self.files = {image.id: self._files(image.diff_ids) for image in store.images()}
        live = with_references(store.layout, log, set().union(*self.files.values()))
        kept = set(RECORD.iter_unpack(_kept_records(log, live, lambda in_use: (set(in_use), set()))))
        self._cold_places = {digest: set() for digest in self._size}
        self._all_cold_places = {digest: set() for digest in self._size}
        for digest, size, pack, slot in records:
            if is_cold(pack):
                self._all_cold_places[digest].add((pack, slot))
                if (digest, size, pack, slot) in kept:
                    self._cold_places[digest].add((pack, slot))
        places = {(pack, slot, digest if pack == OBJECT else b""): size for digest, size, pack, slot in records}
        alive = {(pack, slot, digest if pack == OBJECT else b"") for digest, _, pack, slot in kept}
        hot = {place for place in places if not is_cold(place[0])}
        self.hot_bytes = sum(places[place] for place in hot & alive)
        self.dead_bytes = sum(places[place] for place in hot - alive)
        self.images = self._count()
        needed = {diff_id[7:] for image in store.images() for diff_id in image.diff_ids}
        needed |= {digest[7:] for (digest,) in rows(store.layout, "SELECT digest FROM image_blobs")}
        files = [*Path(store.layout.layers).iterdir(), *Path(store.layout.blobs).iterdir()]
        self.dead_bytes += sum(path.stat().st_blocks * 512 for path in files if path.name.split(".")[0] not in needed)

    def _files(self, diff_ids: tuple[str, ...]) -> set[bytes]:
        paths = ((self._store.layout.layer_index(diff_id), diff_id) for diff_id in diff_ids)
        tables = (open_layer_index(path, diff_id).contents_bytes() for path, diff_id in paths)
        return {digest for table in tables for digest, _ in CONTENT.iter_unpack(table)}

    def _needed(self, digests: set[bytes], *, lists_only: bool = False) -> set[bytes]:
        found, waiting = set(digests), list(digests)
        while waiting:
            for pack, slot in self._all_cold_places[waiting.pop()]:
                opened = self._packs[pack]
                if opened.slot(slot).base == LIST or not lists_only:
                    new = set(opened.references_of(opened.slot(slot))) - found
                    found |= new
                    waiting += new
        return found

    def _hot(self, digest: bytes) -> int:
        return 0 if is_cold(self._at[digest][0]) else self._size[digest]

    def _cold(self, digest: bytes) -> Fraction:
        total = Fraction(0)
        for pack, number in self._cold_places[digest]:
            slot = self._packs[pack].slot(number)
            if slot.base != LIST:
                frame = self._packs[pack].frame(slot.frame)
                total += Fraction(frame.stored_bytes * slot.length, frame.raw_bytes)
        return total

    def _count(self) -> dict[str, Taken]:
        needed = {image: self._needed(files) for image, files in self.files.items()}
        own = {image: self._needed(files, lists_only=True) for image, files in self.files.items()}
        somebodys = set().union(*own.values())
        found = {}
        for image in own:
            mine = own[image] | (needed[image] - somebodys)
            others = set().union(*(needed[other] for other in needed if other != image))
            hot, cold = sum(map(self._hot, mine)), sum(map(self._cold, mine), Fraction(0))
            unique = sum((self._hot(digest) + self._cold(digest) for digest in mine - others), Fraction(0))
            found[image] = Taken(hot, cold, unique)
        return found


def require_as_counted(store: Store) -> None:
    """What the store says of its images is what this model counts."""
    model = Model(store)
    usage = store.usage()
    assert {image.image_id for image in usage.images} == set(model.images)
    for image in usage.images:
        counted = model.images[image.image_id]
        assert image.hot_bytes == counted.hot
        assert abs(image.cold_bytes - counted.cold) <= 1
        assert abs(image.unique_bytes - counted.unique) <= 1
        assert image.shared_bytes + image.unique_bytes == image.hot_bytes + image.cold_bytes
        assert image.is_frozen == store.image(image.image_id).is_frozen
    assert usage.parts["images"].size_bytes == model.hot_bytes
    assert usage.parts["garbage"].size_bytes == model.dead_bytes
    cold = Path(store.layout.cold)
    on_disk = sum(path.stat().st_blocks * 512 for path in cold.glob("*")) if cold.is_dir() else 0
    assert usage.parts["cold"].size_bytes == on_disk
