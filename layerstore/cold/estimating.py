"""What freezing would take, estimated: a sample of the contents is written as a freeze would, to nowhere, and the rest
is taken to be like it.

Contents are of four kinds, each sampled by itself: whether there is another of their name before them, from which they
may be a difference, and whether they are large. Of small ones whole groups are taken, as neighbours are compressed
together; of large ones pieces, each as if it were a content, beside what its base has around the same place. They are
sorted as a freeze sorts them, by what kind of file they are and where it is, and every n-th is taken: so equal stores
give equal estimates.

That a content is like one of another name, or has chunks in common with one, is found where both are in the sample. So
what is said is rather too much.
"""

from __future__ import annotations

import os

from layerstore._core.hashing import blake3
from layerstore.cold.encoding import GROUP_BYTES, LARGE_BYTES, NO_NAME, Encoder, Item, nearest, neighbours
from layerstore.layers.ordered import groups
from layerstore.naming import open_fd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias, TypeVar

    from typing_extensions import Buffer

    from layerstore.cold.encoding import Compression
    from layerstore.cold.freezing import Freezing
    from layerstore.store.contents import ContentStore

    Bases: TypeAlias = dict[bytes, list[tuple[bytes, int]]]
    _Unit = TypeVar("_Unit")

_PIECE_BYTES = 2 << 20
_LARGE_WEIGHT = 3
"""Large contents differ more from each other in how they compress: so many times as much of them is looked at."""


def estimate(
    freezing: Freezing, contents: ContentStore, compression: Compression, sample_bytes: int
) -> tuple[int, int]:
    """The bytes that what was chosen to be frozen would take in a cold pack; and of how many that was found out, about
    `sample_bytes`. Where that is all of them the first is what it would take.

    Under the garbage lock of the caller's, shared. Raises `CorruptError`, `OSError`.
    """
    sampling = _Sampling(freezing, contents, compression)
    if _size(freezing.items) <= sample_bytes:
        return sampling.written(freezing.items, freezing.bases()), _size(freezing.items)
    kinds = sampling.kinds()
    weights = [_size(items) * (_LARGE_WEIGHT if is_large else 1) for (is_large, _), items in kinds.items()]
    stored = looked_at = 0
    for (kind, items), weight in zip(kinds.items(), weights, strict=True):
        taken = sampling.sample(kind, items, min(1, sample_bytes * weight / sum(weights) / _size(items)))
        stored += sampling.written(taken, sampling.bases_of(taken)) * _size(items) // _size(taken)
        looked_at += _size(taken)
    return stored, looked_at


def _size(items: Sequence[Item]) -> int:
    return sum(item.size for item in items)


class _Sampling:
    def __init__(self, freezing: Freezing, contents: ContentStore, compression: Compression) -> None:
        self._freezing = freezing
        self._contents = contents
        self._compression: Compression = compression
        self._read_whole = contents.reader()
        self._pieces: dict[bytes, tuple[bytes, int, int]] = {}
        """Of pieces, by what stands for their digests: the content, where they begin, and their bytes."""
        self._before: dict[bytes, tuple[list[tuple[bytes, int]], int]] = {}
        """Of contents and pieces the list of those of their name, and how many of these come before them."""

    def kinds(self) -> dict[tuple[bool, bool], list[Item]]:
        """The contents, by whether they are large and whether others of their name come before them."""
        found: dict[tuple[bool, bool], list[Item]] = {}
        same = self._freezing.bases()
        for item in self._freezing.items:
            alike = same.setdefault(item.name, []) if item.name != NO_NAME else []
            self._before[item.digest] = alike, len(alike)
            found.setdefault((item.size > LARGE_BYTES, bool(alike)), []).append(item)
            alike.append((item.digest, item.size))
        return found

    def _alike_before(self, digest: bytes) -> list[tuple[bytes, int]]:
        alike, count = self._before[digest]
        return alike[:count]

    def sample(self, kind: tuple[bool, bool], items: list[Item], part: float) -> list[Item]:
        """About that part of the bytes of contents of one kind."""
        is_large, _ = kind
        in_order = sorted(items, key=neighbours)
        if is_large:
            places = [(item, at) for item in in_order for at in range(0, item.size, _PIECE_BYTES)]
            return [self._piece(item, at) for item, at in _evenly(places, part)]
        units = list(groups(in_order, lambda item: item.size, GROUP_BYTES))
        return [item for unit in _evenly(units, part) for item in unit]

    def _piece(self, item: Item, at: int) -> Item:
        """A piece of a content, and of each of those before it what lies around there."""
        size = min(_PIECE_BYTES, item.size - at)
        piece = self._standing_for(item.digest, at, size)
        before = []
        for digest, base_size in nearest(self._alike_before(item.digest), item.size):
            begin, end = max(0, at - size), min(base_size, at + 2 * size)
            if begin < end:
                before.append((self._standing_for(digest, begin, end - begin), end - begin))
        self._before[piece] = before, len(before)
        return Item(piece, size, item.path, piece[:8])

    def _standing_for(self, digest: bytes, at: int, size: int) -> bytes:
        piece = blake3(digest + at.to_bytes(8, "little") + size.to_bytes(8, "little"))
        self._pieces[piece] = digest, at, size
        return piece

    def bases_of(self, taken: Sequence[Item]) -> Bases:
        """What contents of a sample may be differences from, by their names: those before the first of each name."""
        found: Bases = {}
        for item in taken:
            if item.name != NO_NAME:
                found.setdefault(item.name, self._alike_before(item.digest))
        return found

    def _read(self, digest: bytes) -> Buffer:
        if digest not in self._pieces:
            return self._read_whole(digest)
        content, at, size = self._pieces[digest]
        with self._contents.open(content) as file:
            file.seek(at)
            return file.read(size)

    def written(self, items: Sequence[Item], bases: Bases) -> int:
        """How many bytes these contents take."""
        with open_fd(os.devnull, os.O_WRONLY) as fd:
            encoder = Encoder(fd, os.devnull, self._compression, self._read, self._freezing.whole_chunks, bases)
            encoder.write(items, self._freezing.must_stay)
            return encoder.stored_bytes


def _evenly(units: Sequence[_Unit], part: float) -> list[_Unit]:
    """That part of them, at least one, from all over."""
    count = max(1, round(part * len(units)))
    return [units[(2 * n + 1) * len(units) // (2 * count)] for n in range(count)]
