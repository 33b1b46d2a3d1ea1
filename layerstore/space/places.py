"""Where the contents of a store are, hot and cold, what they take there, and which a collection of garbage would keep.

The contents that the digest log names have numbers here. A content has a place where it is looked up, and may have
others: what was thawed stays in its cold pack while that has anything else. In a cold pack a content takes its part of
its frame, by its length there; a list takes nothing itself, but needs its chunks; a difference needs its base.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from layerstore._core.ingest import LOCATION_NONE, LOCATION_OBJECT
from layerstore.errors import CorruptError
from layerstore.naming import about
from layerstore.space.garbage import BLOCK_BYTES
from layerstore.store.cold_packs import LIST, WHOLE, ColdPack
from layerstore.store.layout import FIRST_COLD
from layerstore.store.pieces import data_ranges
from layerstore.types import Value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from layerstore._core.index import Index
    from layerstore.chains.chains import Chains
    from layerstore.store.contents import ContentStore
    from layerstore.store.layout import Layout
    from layerstore.types import DiffId

    Numbers = NDArray[np.int64]

_CONTENT = np.dtype([("digest", "V32"), ("size", "<u8")])
_RECORD = np.dtype([("digest", "V32"), ("size", "<u8"), ("pack", "<u4"), ("slot", "<u4")])
_FRAME = np.dtype([("offset", "<u8"), ("stored", "<u4"), ("raw", "<u4"), ("codec", "<u4"), ("", "V20")])
_SLOT_FIELDS = [("digest", "V32"), ("size", "<u8"), ("name", "V8"), ("frame", "<u4"), ("at", "<u4"), ("length", "<u4")]
_SLOT = np.dtype([*_SLOT_FIELDS, ("base", "<u4")])


class _ColdTables:
    """What the tables of a cold pack say."""

    def __init__(self, path: str) -> None:
        self._path = path
        pack = ColdPack(path)
        self.frames = np.frombuffer(pack.frames(), _FRAME)
        self.slots = np.frombuffer(pack.slots(), _SLOT)
        self.references = np.frombuffer(pack.references(), "V32")

    def shares(self, numbers: Numbers) -> NDArray[np.float64]:
        """Of slots the bytes that they take of their frames."""
        slots = self.slots[numbers]
        frames = self.frames[np.where(slots["base"] == LIST, 0, slots["frame"])] if len(self.frames) else None
        if frames is None:
            return np.zeros(len(slots))
        part = slots["length"] / np.maximum(frames["raw"], 1)
        return np.where(slots["base"] == LIST, 0.0, frames["stored"] * part)

    def is_list(self, numbers: Numbers) -> NDArray[np.bool_]:
        """Which of slots are lists."""
        lists: NDArray[np.bool_] = self.slots["base"][numbers] == LIST
        return lists

    def references_of(self, numbers: Numbers) -> tuple[Numbers, Numbers]:
        """Where the references of these slots begin, and how many each has."""
        slots = self.slots[numbers]
        is_list = slots["base"] == LIST
        counts = np.where(is_list, slots["length"], slots["base"] != WHOLE).astype(np.int64)
        return np.where(is_list, slots["at"], slots["base"]).astype(np.int64), counts

    def dead_bytes(self, kept: Numbers) -> int:
        """What punching would give back where only these slots are kept."""
        slots = self.slots[kept]
        is_dead = np.ones(len(self.frames), bool)
        is_dead[slots["frame"][slots["base"] != LIST]] = False
        begins = self.frames["offset"][is_dead].astype(np.int64)
        ends = begins + self.frames["stored"][is_dead]
        begins, ends = -(-begins // BLOCK_BYTES) * BLOCK_BYTES, ends // BLOCK_BYTES * BLOCK_BYTES
        is_whole = ends > begins
        at, before = _data_before(self._path)
        return int((np.interp(ends[is_whole], at, before) - np.interp(begins[is_whole], at, before)).sum())


def _data_before(path: str) -> tuple[list[int], list[int]]:
    """Where the data of a file begins and ends, as what was punched before takes nothing, and how many bytes of it are
    before that."""
    at, before = [0], [0]
    with about(path), open(path, "rb", buffering=0) as file:
        for begin, hole in data_ranges(file.fileno()):
            at += [begin, hole]
            before += [before[-1], before[-1] + hole - begin]
    return at, before


class _Needs:
    """Which contents need which others."""

    def __init__(self, count: int, needing: Numbers, needed: Numbers) -> None:
        order = np.argsort(needing, kind="stable")
        self._count = max(1, count)
        self._needed = needed[order]
        self._begins = np.searchsorted(needing[order], np.arange(count + 1))

    def add_to(self, groups: Numbers, members: Numbers) -> tuple[Numbers, Numbers]:
        """Pairs of a group and a content that is in it, each once, in order; and those of what these need."""
        known = np.unique(groups * self._count + members)
        new = known if len(self._needed) else known[:0]
        while len(new):
            of, number = np.divmod(new, self._count)
            counts = self._begins[number + 1] - self._begins[number]
            found = np.repeat(of, counts) * self._count + self._needed[_ranges(self._begins[number], counts)]
            new = np.setdiff1d(found, known)
            known = np.union1d(known, new)
        of, number = np.divmod(known, self._count)
        return of, number


def _ranges(begins: Numbers, counts: Numbers) -> Numbers:
    """The numbers from each beginning on, so many, one after another."""
    offsets = np.cumsum(counts) - counts
    return np.repeat(begins - offsets, counts) + np.arange(counts.sum())


class Places:
    """The contents of a store at one moment: `count` of them, `sizes` in bytes by their numbers; `is_cold`, whether
    each is looked up in a cold pack; `needs`, what each is a difference from or a list of; `chunks`, what it is a list
    of.

    Under the garbage lock of the caller's, shared. Cold packs that are missing or damaged have nothing in them. Raises
    `CorruptError` where the digest log is damaged, `OSError`.
    """

    def __init__(self, layout: Layout, contents: ContentStore) -> None:
        self._layout = layout
        self._digests = contents.digests()
        # What came in since is not in the table.
        log = np.frombuffer(contents.log_records(), _RECORD)[: len(self._digests)]
        last = self._last_records(log["digest"])
        # Of a place several records may say the same: one is enough. All objects have one slot.
        within = np.where(log["pack"] == LOCATION_OBJECT, last, log["slot"]).astype(np.uint64)
        places = log["pack"].astype(np.uint64) << np.uint64(32) | within
        is_current = places == places[last]
        _, first = np.unique(places, return_index=True)
        looked_up, of_content, self._numbers = np.unique(last[first], return_index=True, return_inverse=True)
        self._number_of = np.full(len(log) + 1, -1)
        self._number_of[looked_up] = np.arange(len(looked_up))
        self._log = log = log[first]
        self._is_current = is_current[first]
        self.sizes = log["size"][of_content].astype(np.int64)
        self.count = len(self.sizes)
        self._is_cold = (log["pack"] >= FIRST_COLD) & (log["pack"] < LOCATION_NONE)
        self.is_cold = np.zeros(self.count, bool)
        self.is_cold[self._numbers[self._is_current & self._is_cold]] = True
        self._tables = {number: self._opened(number) for number in np.unique(log["pack"][self._is_cold]).tolist()}
        self._read_cold()

    def _opened(self, pack: int) -> _ColdTables | None:
        try:
            return _ColdTables(self._layout.pack(pack))
        except (CorruptError, FileNotFoundError):
            return None

    def _last_records(self, digests: NDArray[np.void]) -> NDArray[np.uint32]:
        found = self._digests.number_many(np.ascontiguousarray(digests).tobytes(), 32)
        return np.frombuffer(found, np.uint32)

    def numbers(self, digests: NDArray[np.void]) -> Numbers:
        """Of contents; -1 for what the store does not have."""
        last = np.minimum(self._last_records(digests), len(self._number_of) - 1)
        return self._number_of[last]

    def _read_cold(self) -> None:
        """What each place in a cold pack takes and needs."""
        self._shares = np.zeros(len(self._log))
        needing, needed, chunked, chunks = ([np.empty(0, np.int64)] for _ in range(4))
        for pack, tables in self._tables.items():
            records = np.flatnonzero(self._log["pack"] == pack)
            if tables is None:
                continue
            records = records[self._log["slot"][records] < len(tables.slots)]
            slots = self._log["slot"][records].astype(np.int64)
            self._shares[records] = tables.shares(slots)
            begins, counts = tables.references_of(slots)
            of = np.repeat(self._numbers[records], counts)
            to = self.numbers(tables.references)[_ranges(begins, counts)]
            is_here = to >= 0
            is_chunk = np.repeat(tables.is_list(slots), counts) & is_here
            needing.append(of[is_here])
            needed.append(to[is_here])
            chunked.append(of[is_chunk])
            chunks.append(to[is_chunk])
        self.needs = _Needs(self.count, np.concatenate(needing), np.concatenate(needed))
        self.chunks = _Needs(self.count, np.concatenate(chunked), np.concatenate(chunks))

    def kept(self, live: Numbers) -> Kept:
        """What a collection of garbage keeps of these contents, which have with them what they need."""
        is_live = np.zeros(self.count, bool)
        is_live[live] = True
        of_live = is_live[self._numbers]
        packs = self._log["pack"]
        stay = np.unique(packs[of_live & self._is_current])
        also = np.isin(packs, stay) & (self._is_cold | ~self.is_cold[self._numbers])
        is_kept = of_live & (self._is_current | also)
        hot = np.where(is_live & ~self.is_cold, self.sizes, 0)
        cold = np.zeros(self.count)
        np.add.at(cold, self._numbers, np.where(is_kept, self._shares, 0.0))
        is_hot = ~self._is_cold
        return Kept(
            hot.astype(np.float64),
            cold,
            int(self._log["size"][is_kept & is_hot].sum()),
            int(self._log["size"][~is_kept & is_hot].sum()),
            *self._cold_packs(is_kept),
        )

    def _cold_packs(self, is_kept: NDArray[np.bool_]) -> tuple[int, int]:
        """What cold packs take on disk, and what of it would be given back."""
        total = dead = 0
        for pack, tables in self._tables.items():
            try:
                status = Path(self._layout.pack(pack)).stat()
            except FileNotFoundError:
                continue
            of_pack = is_kept & (self._log["pack"] == pack)
            total += status.st_blocks * 512
            if not of_pack.any():
                dead += status.st_blocks * 512
            elif tables is not None:
                slots = self._log["slot"][of_pack].astype(np.int64)
                dead += tables.dead_bytes(slots[slots < len(tables.slots)])
        return total, dead


def _digests_of(index: Index) -> NDArray[np.void]:
    """A copy: of many layers, indexes that are compressed would fill the memory."""
    return np.frombuffer(index.contents_bytes(), _CONTENT)["digest"].copy()


class Kept(Value):
    """What a collection of garbage would keep. Of each content `hot` and `cold` are the bytes that it takes, 0 for
    others; `hot_bytes` and `dead_bytes` what all hot places take that would be kept, and given back; `cold_bytes` what
    cold packs take on disk, and `dead_cold_bytes` what of that would be given back."""

    hot: NDArray[np.float64]
    cold: NDArray[np.float64]
    hot_bytes: int
    dead_bytes: int
    cold_bytes: int
    dead_cold_bytes: int


class LayerContents:
    """The contents of stored layers, as pairs of the number of a layer and of a content, each once, sorted by layer.

    `files`: what files of the layer have. `needed`: that, with all that it needs. `own`: files with the chunks that
    they are lists of, and of what else is needed what is no layer's own: what they differ from, if its image is gone.
    """

    def __init__(self, places: Places, chains: Chains, diff_ids: Iterable[DiffId]) -> None:
        self.numbers = {diff_id: number for number, diff_id in enumerate(diff_ids)}
        tables = [_digests_of(chains.layer_index(diff_id)) for diff_id in self.numbers]
        found = places.numbers(np.concatenate([np.empty(0, "V32"), *tables]))
        layers = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
        none = np.empty(0, np.int64)
        self.files = _Needs(places.count, none, none).add_to(layers[found >= 0], found[found >= 0])
        self.needed = places.needs.add_to(*self.files)
        own = places.chunks.add_to(*self.files)
        is_own = np.zeros(places.count, bool)
        is_own[own[1]] = True
        more = ~is_own[self.needed[1]]
        layers = np.concatenate([own[0], self.needed[0][more]])
        order = np.argsort(layers, kind="stable")
        self.own = layers[order], np.concatenate([own[1], self.needed[1][more]])[order]
        self.live = np.unique(self.needed[1])
        """The contents that are needed."""

    def of(self, pairs: tuple[Numbers, Numbers], layers: Sequence[int]) -> list[Numbers]:
        """The contents that each of these layers has among such pairs."""
        begins = np.searchsorted(pairs[0], np.arange(len(self.numbers) + 1))
        return [pairs[1][begins[number] : begins[number + 1]] for number in layers]
