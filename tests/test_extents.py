"""The extent map: after any changes, of clones too, it says of every byte what an array of all bytes says."""

import random
import struct
import threading
from array import array
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from layerstore._core import extents
from layerstore._core.extents import IMAGE, MAX_LOGS, ZERO, ExtentMap, source
from layerstore.errors import Conflict, InvalidInput

MOST = 3000
LARGEST = 2**63 - 1
Sources = npt.NDArray[np.uint64]
Triple = tuple[int, int, int]


# The model: the source of every byte


def run(first: int, length: int) -> Sources:
    """The sources of a range that begins with one."""
    if first >= IMAGE:
        return np.full(length, first, np.uint64)
    return np.arange(first, first + length, dtype=np.uint64)


def written(model: Sources, start: int, length: int, first: int) -> Sources:
    if not length:
        return model
    if start + length > len(model):
        model = resized(model, start + length)
    model = model.copy()
    model[start : start + length] = run(first, length)
    return model


def resized(model: Sources, size: int) -> Sources:
    return np.concatenate((model[:size], run(ZERO, max(0, size - len(model)))))


def normal_form(model: Sources) -> list[Triple]:
    """The extents that a map of these bytes has: as long as they can be."""
    constant = model[:-1] >= np.uint64(IMAGE)
    following = np.where(constant, model[:-1], model[:-1] + np.uint64(1))
    starts = np.concatenate(([0], np.flatnonzero(model[1:] != following) + 1)) if len(model) else np.array([], int)
    ends = np.append(starts[1:], len(model))
    return [(int(s), int(e - s), int(model[s])) for s, e in zip(starts, ends, strict=False)]


def pieces_of(model: Sources, start: int, length: int) -> list[Triple]:
    return [(start + s, n, first) for s, n, first in normal_form(model[start : start + length])]


sources = st.one_of(
    st.sampled_from([ZERO, IMAGE]), st.builds(source, st.sampled_from([0, 1, 9, MAX_LOGS - 1]), st.integers(0, 200))
)
positions = st.integers(0, MOST)


class Maps(RuleBasedStateMachine):
    """Some maps, clones of one another, each beside its model."""

    @initialize(size=positions)
    def begin(self, size: int) -> None:
        self.pairs = [(ExtentMap(size), run(IMAGE, size))]

    def change(self, which: int, do: Callable[[ExtentMap], None], model: Callable[[Sources], Sources]) -> None:
        index = which % len(self.pairs)
        extent_map, before = self.pairs[index]
        if extent_map.frozen:
            with pytest.raises(Conflict, match="clone"):
                do(extent_map)
        else:
            do(extent_map)
            self.pairs[index] = (extent_map, model(before))

    @rule(which=positions, start=positions, length=st.integers(0, 400) | positions, first=sources)
    def write(self, which: int, start: int, length: int, first: int) -> None:
        self.change(which, lambda m: m.write(start, length, first), lambda b: written(b, start, length, first))

    @rule(which=positions, start=positions, length=positions)
    def punch(self, which: int, start: int, length: int) -> None:
        def model(before: Sources) -> Sources:
            end = min(start + length, len(before))
            return written(before, start, end - start, ZERO) if start < end else before

        self.change(which, lambda m: m.punch(start, length), model)

    @rule(which=positions, size=positions)
    def truncate(self, which: int, size: int) -> None:
        self.change(which, lambda m: m.truncate(size), lambda b: resized(b, size))

    @rule(which=positions, seed=positions, n=st.sampled_from([1, 50, 300, 1000]), most=st.sampled_from([1, 3, 40]))
    def write_many(self, which: int, seed: int, n: int, most: int) -> None:
        """Many small extents: blocks fill, divide and join."""
        rng = random.Random(seed)
        writes = [
            (rng.randrange(MOST), rng.randrange(most + 1), source(rng.randrange(3), rng.randrange(99)))
            for _ in range(n)
        ]

        def model(before: Sources) -> Sources:
            for start, length, first in writes:
                before = written(before, start, length, first)
            return before

        packed = array("Q", [word for triple in writes for word in triple])
        self.change(which, lambda m: m.write_many(packed), model)

    @rule(which=positions)
    def clone(self, which: int) -> None:
        extent_map, model = self.pairs[which % len(self.pairs)]
        self.pairs.append((extent_map.clone(), model))
        del self.pairs[:-5]

    @rule(which=positions)
    def freeze(self, which: int) -> None:
        index = which % len(self.pairs)
        extent_map, model = self.pairs[index]
        extent_map.freeze()
        self.pairs.append((extent_map.clone(), model))

    @rule(which=positions, start=positions, length=positions)
    def lookup(self, which: int, start: int, length: int) -> None:
        extent_map, model = self.pairs[which % len(self.pairs)]
        assert extent_map.lookup(start, length) == pieces_of(model, start, length)

    @rule(which=positions, ranges=st.lists(st.tuples(positions, positions), max_size=5))
    def lookup_many(self, which: int, ranges: list[tuple[int, int]]) -> None:
        extent_map, model = self.pairs[which % len(self.pairs)]
        words, ends = extent_map.lookup_many(np.array(ranges, np.uint64))
        pieces = list(struct.iter_unpack("<3Q", words))
        begin = 0
        for (start, length), (end,) in zip(ranges, struct.iter_unpack("<Q", ends), strict=True):
            assert pieces[begin:end] == pieces_of(model, start, length)
            begin = end
        assert begin == len(pieces)

    @rule(which=positions, start=positions)
    def refused(self, which: int, start: int) -> None:
        """What cannot be written changes nothing."""
        extent_map, _ = self.pairs[which % len(self.pairs)]
        bad = array("Q", [start, 5, source(3, 0), start, 1, IMAGE - 1])
        with pytest.raises((InvalidInput, Conflict)):
            extent_map.write_many(bad)
        with pytest.raises((OverflowError, Conflict)):
            extent_map.write(LARGEST - start, start + 1, ZERO)

    @invariant()
    def maps_are_their_models(self) -> None:
        for extent_map, model in self.pairs:
            expected = normal_form(model)
            assert list(extent_map) == expected
            assert (len(extent_map), extent_map.size) == (len(expected), len(model))
            live: dict[int, int] = {}
            for _, length, first in expected:
                if first < IMAGE:
                    live[first >> 48] = live.get(first >> 48, 0) + length
            assert extent_map.live_bytes() == live


Maps.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestMaps = Maps.TestCase


# Many extents


def scattered(n: int, log: int, seed: int) -> Sources:
    """`n` writes of 4 KiB at random places."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(0, 4 * n, n).astype(np.uint64) * 4096
    offsets = np.arange(n, dtype=np.uint64) * 4160 + 192 + (log << 48)
    return np.stack((starts, np.full(n, 4096, np.uint64), offsets), axis=1)


def test_a_hundred_thousand_writes() -> None:
    n = 100_000
    writes = scattered(n, 2, 1)
    extent_map = ExtentMap(4 * n * 4096)
    extent_map.write_many(writes)
    blocks = np.full(4 * n, IMAGE, np.uint64)
    for start, _, first in writes.tolist():
        blocks[start // 4096] = first
    words = np.frombuffer(extent_map.packed(), np.uint64).reshape(-1, 3)
    assert len(words) == len(extent_map) > n
    changed = np.flatnonzero(blocks != IMAGE)
    from_log = words[words[:, 2] < IMAGE]
    assert (from_log[:, 0] == changed * 4096).all()
    assert (from_log[:, 2] == blocks[changed]).all()
    assert extent_map.live_bytes() == {2: 4096 * len(changed)}
    copy = ExtentMap()
    copy.write_many(extent_map.packed())
    assert copy.packed() == extent_map.packed()
    copy.punch(4096 * n, 4096 * n)
    copy.truncate(3 * 4096 * n)
    assert copy.live_bytes() == {2: 4096 * int((changed < n).sum() + ((changed >= 2 * n) & (changed < 3 * n)).sum())}
    copy.truncate(0)
    assert (list(copy), len(copy), copy.size) == ([], 0, 0)
    assert len(extent_map) == len(words)


def test_writes_in_order_that_continue_one_another_are_one_extent() -> None:
    extent_map = ExtentMap()
    for i in range(1000):
        extent_map.write(4096 * i, 4096, source(0, 192 + 4096 * i))
    assert list(extent_map) == [(0, 4096000, source(0, 192))]
    for i in reversed(range(1000)):
        extent_map.write(4096 * i, 4096, source(1, 192 + 4096 * i))
    assert list(extent_map) == [(0, 4096000, source(1, 192))]


def test_the_largest_file() -> None:
    extent_map = ExtentMap(LARGEST)
    extent_map.write(LARGEST - 1, 1, source(0, 5))
    assert list(extent_map) == [(0, LARGEST - 1, IMAGE), (LARGEST - 1, 1, source(0, 5))]
    extent_map.punch(1, LARGEST - 1)
    assert extent_map.lookup(0, LARGEST) == [(0, 1, IMAGE), (1, LARGEST - 1, ZERO)]
    assert extent_map.lookup(LARGEST - 1, LARGEST) == [(LARGEST - 1, 1, ZERO)]
    pieces, ends = extent_map.lookup_many(array("Q", [2**64 - 1, 2**64 - 1, 5, 2**64 - 1]))
    assert pieces == struct.pack("<3Q", 5, LARGEST - 5, ZERO)
    assert ends == struct.pack("<2Q", 0, 1)


def test_the_end_of_a_log_does_not_continue_in_the_next() -> None:
    extent_map = ExtentMap()
    extent_map.write(0, 10, source(0, 2**48 - 11))
    with pytest.raises(InvalidInput, match="2\\^48"):
        extent_map.write(10, 1, source(0, 2**48 - 1))
    extent_map.write(10, 1, source(1, 0))
    assert len(extent_map) == 2


# Wrong arguments


@pytest.mark.parametrize(
    ("error", "do"),
    [
        (InvalidInput, lambda m: ExtentMap(-1)),
        (OverflowError, lambda m: ExtentMap(2**63)),
        (InvalidInput, lambda m: m.write(-1, 1, ZERO)),
        (InvalidInput, lambda m: m.write(1, -1, ZERO)),
        (OverflowError, lambda m: m.write(1, LARGEST, ZERO)),
        (OverflowError, lambda m: m.write(2**63, 0, ZERO)),
        (OverflowError, lambda m: m.write(0, 1, -1)),
        (InvalidInput, lambda m: m.write(0, 1, IMAGE - 1)),
        (InvalidInput, lambda m: m.punch(-1, 1)),
        (OverflowError, lambda m: m.punch(2, LARGEST - 1)),
        (InvalidInput, lambda m: m.truncate(-1)),
        (OverflowError, lambda m: m.truncate(2**63)),
        (InvalidInput, lambda m: m.lookup(-1, 1)),
        (InvalidInput, lambda m: m.lookup(1, -1)),
        (InvalidInput, lambda m: m.write_many(bytes(25))),
        (InvalidInput, lambda m: m.lookup_many(bytes(15))),
        (TypeError, lambda m: m.write_many([(1, 1, 1)])),
        (InvalidInput, lambda m: source(MAX_LOGS, 0)),
        (InvalidInput, lambda m: source(0, 2**48)),
    ],
)
def test_what_is_refused(error: type[Exception], do: Callable[[ExtentMap], None]) -> None:
    extent_map = ExtentMap(10)
    with pytest.raises(error):
        do(extent_map)
    assert list(extent_map) == [(0, 10, IMAGE)]


def test_a_map_of_an_empty_file_is_true() -> None:
    assert ExtentMap()
    assert extents.ExtentMap().lookup(0, 10) == []


# Threads


def test_clones_of_one_map_change_in_many_threads() -> None:
    base = ExtentMap(2**30)
    base.write_many(scattered(20_000, 0, 0))
    base.freeze()
    before = base.packed()
    results: dict[int, bytes] = {}

    def work(seed: int) -> None:
        for _ in range(5):
            clone = base.clone()
            clone.write_many(scattered(5_000, 1, seed))
            clone.lookup_many(scattered(1_000, 1, seed)[:, :2].copy())
        results[seed] = clone.packed()

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert base.packed() == before
    for seed, packed in results.items():
        clone = base.clone()
        clone.write_many(scattered(5_000, 1, seed))
        assert packed == clone.packed()


def test_a_map_that_two_threads_change_at_once_stays_whole() -> None:
    """Which is an error of theirs, and told, but must not break memory."""
    shared = ExtentMap(2**30)
    told = []

    def work(seed: int) -> None:
        for _ in range(20):
            try:
                shared.write_many(scattered(2_000, seed, seed))
            except RuntimeError as error:
                told.append(error)
            shared.write(4096 * seed, 10, ZERO)
            shared.lookup(0, 2**30)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(length for _, length, _ in shared) == shared.size
    assert all("lock around" in str(error) for error in told)
