"""Writes a cold pack (docs/format/cold.md): which contents become differences from others, which go together into one
frame, and which are cut into chunks.

What is compressed is compressed by threads, two at a time on two cores, and written in the order in which it was given:
the pack is the same, whatever the threads do. Nothing is known here of a store but how to read a content.
"""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, groupby

from layerstore._core import chunking
from layerstore._core.ends import common_ends
from layerstore._core.hashing import blake3, hash_many
from layerstore.layers.ordered import groups, in_order
from layerstore.naming import about
from layerstore.store import zstd
from layerstore.store.cold_packs import (
    AGAINST_BASE,
    CHECK_BYTES,
    DELTA,
    FOOTER,
    FRAME,
    LIST,
    LITERAL,
    LZ4,
    MAGIC,
    MAX_DELTA_BYTES,
    SLOT,
    STORED,
    VERSION,
    WHOLE,
    ZSTD,
)
from layerstore.store.pieces import write_at
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Literal, TypeAlias

    from typing_extensions import Buffer

    Compression: TypeAlias = Literal["zstd", "lz4"]
    """How frames are compressed."""
    _Answer: TypeAlias = "tuple[Item, bytes, bytes] | tuple[Item, None, None]"

GROUP_BYTES = 1 << 20
"""What is compressed as one: a read of one content reads so much."""
LARGE_BYTES = 1 << 20
"""Contents of more are cut into chunks."""
LARGE_GROUP_BYTES = 8 << 20
"""Of chunks: whoever reads a large content reads more of it."""
CHUNK_BYTES = 64 << 10
"""Of a large content, on average."""
SIMILAR_BYTES = 32 << 10
"""Contents of that many bytes and more are also looked at for others of other names that are like them."""
_FEATURE = struct.Struct("<Q24x")
"""The beginning of the digest of a small chunk."""
_FEATURE_BYTES = 1 << 10
_FEATURES = 24
_ALIKE_BY_FEATURE = 16
LEVEL = 3
_ALIKE = 3
"""A base is not so many times as large as what differs from it, nor the other way around."""
_BASES = 2
"""So many bases of one name are tried, those whose sizes are nearest; none after one that is near enough."""
_NEAR = 0.1
_WORTH = 0.3
"""A difference that is larger than that part of the content is none: the content compresses as well by itself."""
_LITERAL_BYTES = 48
_TASK_BYTES = 4 << 20
_THREADS = os.cpu_count() or 1
_VARYING = re.compile(rb"(?<![0-9A-Za-z])[0-9a-f]{8,}(?![0-9A-Za-z])|[0-9]+(?:\.[0-9]+)*")
NO_NAME = bytes(8)
"""Stands for the name of a content that has no path: a chunk, or what only others need."""


def name_of(path: bytes) -> bytes:
    """A path without what differs between versions: numbers, and digests in hexadecimal digits."""
    return _VARYING.sub(b"#", path)


def hash_names(names: Sequence[bytes]) -> list[bytes]:
    """What stands for each name in a cold pack: the first 8 bytes of its BLAKE3."""
    return [digest[:8] for digest in hash_many(names)]


class Item(Value):
    """A content that is to be written: `path` is one that it has, `name` stands for it in the pack."""

    def __init__(self, digest: bytes, size: int, path: bytes, name: bytes) -> None:
        self.digest = digest
        self.size = size
        self.path = path
        self.name = name


class Encoder:
    """Writes one cold pack to the empty file `fd`.

    Args:
        compression: of frames. What is written as a difference is compressed with zstd whatever it says.
        read: gives a content by its digest; called from several threads at once.
        known: which of these chunks, by digest, cold packs have as they are.
        bases: contents that others may be differences from, by name: digest and size. They are not differences
            themselves.
        progress: called with the bytes that were read of the items until now.

    Once all is written, `stored_bytes` are those of the pack. Raises `OSError`, and what `read` does.
    """

    def __init__(
        self,
        fd: int,
        path: str,
        compression: Compression,
        read: Callable[[bytes], Buffer],
        known: Callable[[Sequence[bytes]], set[bytes]],
        bases: dict[bytes, list[tuple[bytes, int]]],
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self._fd = fd
        self._path = path
        self._codec = ZSTD if compression == "zstd" else LZ4
        self._read = read
        self._known = known
        self._bases = bases
        self._progress = progress
        self.stored_bytes = 0
        self._done = 0
        self._at = FOOTER.size
        self._frames: list[bytes] = []
        self._slots: list[bytes] = []
        self._references: list[bytes] = []
        self._digests: list[tuple[bytes, int]] = []
        self._chunks: set[bytes] = set()

    def write(self, items: Sequence[Item], must_stay: set[bytes]) -> list[tuple[bytes, int]]:
        """Write these contents, each once, and what says where they are; returns digest and size of each slot, which
        are those of chunks, too. Contents that `must_stay` whole are no differences, as others differ from them."""
        with about(self._path), ThreadPoolExecutor(_THREADS) as threads:
            wholes = self._write_deltas(threads, items, must_stay)
            small = [item for item in wholes if item.size <= LARGE_BYTES]
            near = groups(sorted(small, key=neighbours), _size, GROUP_BYTES)
            for size in self._write_wholes(threads, near, self._read):
                self._tell(size)
            self._write_large(threads, [item for item in wholes if item.size > LARGE_BYTES])
            self._write_tables()
        return self._digests

    # Differences

    def _write_deltas(self, threads: ThreadPoolExecutor, items: Sequence[Item], must_stay: set[bytes]) -> list[Item]:
        """Write those that are differences; returns the others."""
        wholes: list[Item] = []
        families: list[list[Item]] = []
        by_name = sorted(items, key=lambda item: item.name)
        for name, same in groupby(by_name, key=lambda item: item.name):
            family = list(same)
            if (len(family) == 1 and name not in self._bases) or name == NO_NAME:
                wholes += family
            else:
                families.append(family)
        tasks = groups(families, lambda family: sum(item.size for item in family), _TASK_BYTES)
        compared = in_order(threads, lambda families: self._compare(families, must_stay), tasks)
        wholes += self._put_answers(answer for answers in compared for answer in answers)
        return self._write_similar(threads, wholes, must_stay | set(self._references))

    def _write_similar(self, threads: ThreadPoolExecutor, items: list[Item], must_stay: set[bytes]) -> list[Item]:
        """Write those as differences that are like others of other names; returns the others. The larger ones come
        first: who has less in it than another is found in it."""
        wholes = [item for item in items if not SIMILAR_BYTES <= item.size <= MAX_DELTA_BYTES]
        large = [item for item in items if SIMILAR_BYTES <= item.size <= MAX_DELTA_BYTES]
        large.sort(key=lambda item: (-item.size, item.digest))
        with_feature: dict[int, list[Item]] = {}
        tasks: list[tuple[Item, Item]] = []
        for item, features in in_order(threads, lambda item: (item, features_of(self._read(item.digest))), large):
            votes = Counter(other for feature in features for other in with_feature.get(feature, ()))
            best = next(iter(votes.most_common(1)), None)
            if best is not None and best[1] >= 2 and item.digest not in must_stay:
                tasks.append((item, best[0]))
                continue
            wholes.append(item)
            for feature in features:
                # What very many have in common says little, and to count it takes long.
                if len(same := with_feature.setdefault(feature, [])) < _ALIKE_BY_FEATURE:
                    same.append(item)
        return wholes + self._put_answers(in_order(threads, self._compare_similar, tasks))

    def _compare_similar(self, task: tuple[Item, Item]) -> _Answer:
        item, base = task
        delta = delta_of(self._read(base.digest), self._read(item.digest), int(item.size * _WORTH))
        return (item, None, None) if delta is None else (item, base.digest, delta)

    def _compare(self, families: list[list[Item]], must_stay: set[bytes]) -> list[_Answer]:
        return [answer for family in families for answer in self._compare_family(family, must_stay)]

    def _compare_family(self, family: list[Item], must_stay: set[bytes]) -> Iterator[_Answer]:
        """Of contents of one name: which base each has, and the difference from it."""
        bases = list(self._bases.get(family[0].name, ()))
        # Those that stay whole come first, so that others differ from them.
        for item in sorted(family, key=lambda item: item.digest not in must_stay):
            best: tuple[Item, bytes, bytes] | None = None
            if item.digest not in must_stay and item.size <= MAX_DELTA_BYTES:
                content = self._read(item.digest)
                limit = int(item.size * _WORTH)
                for digest, _ in nearest(bases, item.size):
                    delta = delta_of(self._read(digest), content, limit)
                    if delta is not None:
                        best, limit = (item, digest, delta), len(delta) - 1
                        if limit < max(item.size * _NEAR, DELTA.size + _LITERAL_BYTES):
                            break
            if best is None:
                bases.append((item.digest, item.size))
                yield item, None, None
            else:
                yield best

    def _put_answers(self, answers: Iterable[_Answer]) -> list[Item]:
        """Write the differences, many to a frame; returns the contents that are none."""
        wholes: list[Item] = []
        written: list[tuple[Item, bytes, bytes]] = []
        pending = 0
        for item, base, delta in answers:
            if base is None or delta is None:
                wholes.append(item)
                continue
            self._tell(item.size)
            written.append((item, base, delta))
            pending += len(delta)
            if pending >= GROUP_BYTES:
                self._put_deltas(written)
                written, pending = [], 0
        self._put_deltas(written)
        return wholes

    def _put_deltas(self, written: list[tuple[Item, bytes, bytes]]) -> None:
        if not written:
            return
        frame = len(self._frames)
        at = 0
        for item, base, delta in written:
            self._add_slot(item.digest, item.size, item.name, frame, at, len(delta), len(self._references))
            self._references.append(base)
            at += len(delta)
        self._put_frame(*self._compressed(b"".join(delta for _, _, delta in written)))

    # Wholes

    def _write_wholes(
        self, threads: ThreadPoolExecutor, frames: Iterable[list[Item]], read: Callable[[bytes], Buffer]
    ) -> Iterator[int]:
        """Write contents as they are, as many to a frame as are given; gives the bytes of each once it is written."""

        def compressed(group: list[Item]) -> tuple[list[Item], tuple[bytes, int, int]]:
            return group, self._compressed(b"".join(read(item.digest) for item in group))

        for group, frame in in_order(threads, compressed, frames):
            at = 0
            for item in group:
                self._add_slot(item.digest, item.size, item.name, len(self._frames), at, item.size, WHOLE)
                at += item.size
            self._put_frame(*frame)
            yield at

    def _write_large(self, threads: ThreadPoolExecutor, items: Iterable[Item]) -> None:
        """Write contents as lists of chunks, of which those are written that are nowhere yet."""
        # Those that are to be written; a frame takes them from here.
        chunks: dict[bytes, memoryview] = {}
        # Those of one content lie together: so one that is garbage can be given back.
        of_one = (groups(self._new_chunks(item, chunks), _size, LARGE_GROUP_BYTES) for item in items)
        for _ in self._write_wholes(threads, chain.from_iterable(of_one), chunks.pop):
            pass

    def _new_chunks(self, item: Item, chunks: dict[bytes, memoryview]) -> list[Item]:
        content = memoryview(self._read(item.digest))
        if len(content) != item.size:
            raise ValueError(f"content {item.digest.hex()} has {len(content)} bytes, not {item.size}")
        ends, hashes = chunking.chunk(content, CHUNK_BYTES // 4, CHUNK_BYTES, CHUNK_BYTES * 8)
        digests = [bytes(hashes[at : at + 32]) for at in range(0, len(hashes), 32)]
        known = self._known(digests)
        new: list[Item] = []
        for digest, start, end in zip(digests, [0, *ends[:-1]], ends, strict=True):
            if digest not in self._chunks and digest not in known:
                self._chunks.add(digest)
                chunks[digest] = content[start:end]
                new.append(Item(digest, int(end - start), b"", NO_NAME))
        self._add_slot(item.digest, item.size, item.name, 0, len(self._references), len(digests), LIST)
        self._references += digests
        self._tell(item.size)
        return new

    # What is written

    def _compressed(self, raw: bytes) -> tuple[bytes, int, int]:
        """A frame: its bytes, its codec, and how many bytes it was."""
        if self._codec == ZSTD:
            packed = zstd.compress(raw, LEVEL)
        else:
            import lz4.block

            packed = lz4.block.compress(raw, store_size=False)
        return (packed, self._codec, len(raw)) if len(packed) < len(raw) else (raw, STORED, len(raw))

    def _put_frame(self, packed: bytes, codec: int, raw_bytes: int) -> None:
        write_at(self._fd, packed, self._at)
        check = blake3(packed)[:CHECK_BYTES]
        self._frames.append(FRAME.pack(self._at, len(packed), raw_bytes, codec, check))
        self._at += len(packed)

    def _add_slot(self, digest: bytes, size: int, name: bytes, frame: int, at: int, length: int, base: int) -> None:
        self._slots.append(SLOT.pack(digest, size, name, frame, at, length, base))
        self._digests.append((digest, size))

    def _write_tables(self) -> None:
        tables = b"".join((*self._frames, *self._slots, *self._references))
        counts = len(self._frames), len(self._slots), len(self._references)
        footer = FOOTER.pack(MAGIC, VERSION, *counts, self._at, blake3(tables), bytes(8))[:-8]
        footer += blake3(footer)[:8]
        write_at(self._fd, tables + footer, self._at)
        write_at(self._fd, footer, 0)
        self.stored_bytes = self._at + len(tables) + len(footer)

    def _tell(self, size: int) -> None:
        self._done += size
        if self._progress is not None:
            self._progress(self._done)


def delta_of(base: Buffer, content: Buffer, limit: int) -> bytes | None:
    """How a content differs from its base (`layerstore.store.cold_packs.apply_delta`); None where that takes more than
    `limit` bytes."""
    head, tail = common_ends(base, content)
    old, new = memoryview(base), memoryview(content)
    old_middle, new_middle = old[head : len(old) - tail], new[head : len(new) - tail]
    written: Buffer = new_middle
    kind = LITERAL
    if len(new_middle) > _LITERAL_BYTES and len(old_middle) >= 8:
        written, kind = zstd.compress_against(old_middle, new_middle, LEVEL), AGAINST_BASE
    delta = DELTA.pack(head, tail, kind) + bytes(written)
    return delta if len(delta) <= limit or len(delta) <= DELTA.size + _LITERAL_BYTES else None


def features_of(content: Buffer) -> list[int]:
    """What contents that are alike have in common, some of it at least: the least of the digests of small chunks."""
    _, digests = chunking.chunk(content, _FEATURE_BYTES // 4, _FEATURE_BYTES, _FEATURE_BYTES * 8)
    return sorted({feature for (feature,) in _FEATURE.iter_unpack(digests)})[:_FEATURES]


def _size(item: Item) -> int:
    return item.size


def nearest(bases: list[tuple[bytes, int]], size: int) -> list[tuple[bytes, int]]:
    """Those bases, digest and size, that a content of that size is compared with."""
    alike = [
        base for base in bases if base[1] <= _ALIKE * size and size <= _ALIKE * base[1] and base[1] <= MAX_DELTA_BYTES
    ]
    # Of those that are equally near, the one that came last.
    by_distance = sorted(enumerate(alike), key=lambda numbered: (abs(numbered[1][1] - size), -numbered[0]))
    return [base for _, base in by_distance[:_BASES]]


def neighbours(item: Item) -> tuple[bytes, bytes]:
    """Contents of one kind lie together, and of these such as lie together in the image."""
    name = item.path.rpartition(b"/")[2]
    return name.rpartition(b".")[2] if b"." in name else b"", item.path
