"""Chunks against the definition in docs/format/chunks.md, computed once more here, and against cut points that stay."""

import contextlib
import ctypes
import hashlib
import json
import mmap
import os
import random
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path

import blake3 as peer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import layerstore
from layerstore._core import chunking
from layerstore.chunking import Chunks
from layerstore.errors import InvalidInput, NotFound, Unsupported

VECTORS = Path(__file__).parent / "data" / "chunks-v1.json"
KERNELS = chunking.kernels()
EXAMPLES = int(os.environ.get("LAYERSTORE_EXAMPLES", "100"))
DEFAULT = (4096, 16384, 131072)
SMALL = (64, 256, 2048)
# Small chunks; none that is strict, none that is loose; a cut of 17 bits, which m has a part in, and of 26; odd sizes.
SIZES = [
    *(SMALL, DEFAULT, (64, 1024, 1025), (256, 256, 300), (64, 256, 256), (100, 512, 5001)),
    *((64, 1 << 15, 1 << 17), (64, 1 << 24, 1 << 30), (1 << 18, 1 << 18, 1 << 21)),
]

# The definition once more


def product(a: int, b: int) -> int:
    """In AES's field."""
    result = 0
    for bit in range(8):
        if b >> bit & 1:
            result ^= a << bit
    for bit in range(14, 7, -1):
        if result >> bit & 1:
            result ^= 0x11B << (bit - 8)
    return result


def powers_of_3() -> Iterator[NDArray[np.uint8]]:
    """For each power the table of its products."""
    power = 1
    for _ in range(16):
        yield np.array([product(power, byte) for byte in range(256)], np.uint8)
        power = product(power, 3)


TABLES = list(powers_of_3())


def hashes(data: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """h(p) at p, 0 where there are no 16 bytes before p."""
    h = np.zeros(len(data) + 1, np.uint8)
    for k, table in enumerate(TABLES):
        h[16:] ^= table[data[15 - k : len(data) - k]]
    return h


def second_hash(data: bytes, p: int) -> int:
    m = 0
    for start in range(p - 32, p, 8):
        m = (m + int.from_bytes(data[start : start + 8], "little")) * 0x9E3779B97F4A7C15 % 2**64
    return m


def cuts(data: bytes, bits: int) -> list[int]:
    """All places that are a cut of so many bits."""
    array_of = np.frombuffer(data, np.uint8)
    if len(array_of) < 32:
        return []
    hashed = min(bits, 16)
    h = hashes(array_of)
    zeros, ones = (1 << (hashed + 1) // 2) - 1, (1 << hashed // 2) - 1
    is_cut = (h[32:] & zeros == 0) & (h[16:-16] & ones == ones)
    return [p for p in (np.flatnonzero(is_cut) + 32).tolist() if second_hash(data, p) >> (64 - bits + hashed) == 0]


def first_from(places: list[int], start: int) -> int:
    """The first of sorted places that is not before `start`; far away where there is none."""
    found = bisect_left(places, start)
    return places[found] if found < len(places) else 1 << 62


def reference(data: bytes, sizes: tuple[int, int, int]) -> list[int]:
    least, average, most = sizes
    bits = average.bit_length() - 1
    strict, loose = cuts(data, bits + 2), cuts(data, bits - 2)
    ends: list[int] = []
    start = 0
    while start < len(data):
        end = min(len(data), start + most)
        if len(data) - start > least:
            # A strict cut behind the average is a loose one too.
            end = min(end, first_from(strict, start + least), first_from(loose, start + average))
        ends.append(end)
        start = end
    return ends


def cut(data: object, sizes: tuple[int, int, int], kernel: str = "auto") -> list[int]:
    return list(chunking.cut(data, *sizes, kernel))  # type: ignore[arg-type]


def pseudo_random(seed: str, length: int) -> bytes:
    """SHA-256 of the seed and a counter, again and again: for who has no Python."""
    blocks = (hashlib.sha256(f"{seed} {i}".encode()).digest() for i in range(length // 32 + 1))
    return b"".join(blocks)[:length]


# Every kernel does what the definition says


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_random_bytes_are_cut_as_defined(kernel: str, sizes: tuple[int, int, int]) -> None:
    data = random.Random(1).randbytes(1_500_000)
    ends = reference(data, sizes)
    assert cut(data, sizes, kernel) == ends
    assert sizes[0] > 100_000 or sizes[1] > 1 << 20 or len(ends) > 20


def half_of_hash(rng: random.Random, wanted: int) -> bytes:
    """16 bytes with that hash: the last one makes it so."""
    half = rng.randbytes(15)
    rest = 0
    for power, byte in enumerate(reversed(half), 1):
        rest ^= int(TABLES[power][byte])
    return half + bytes([rest ^ wanted])


def hits_of_the_hashes() -> Iterator[bytes]:
    """Windows that are a cut of 16 bits, one after another; only m tells which is one of more."""
    rng = random.Random(2)
    for _ in range(4000):
        yield half_of_hash(rng, 0xFF) + half_of_hash(rng, 0)


@pytest.mark.parametrize("average", [1 << 15, 1 << 18, 1 << 24])
@pytest.mark.parametrize("kernel", KERNELS)
def test_the_second_hash_decides_where_the_first_does_not(kernel: str, average: int) -> None:
    data = b"".join(hits_of_the_hashes())
    sizes = (64, average, 1 << 25)
    assert len(cuts(data, 16)) >= 4000
    assert cut(data, sizes, kernel) == reference(data, sizes)


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_short_length_and_alignment(kernel: str) -> None:
    data = random.Random(3).randbytes(1200)
    sizes = (64, 256, 700)
    for length in range(701):
        assert cut(data[:length], sizes, kernel) == reference(data[:length], sizes)
    for start in range(130):
        assert cut(memoryview(data)[start:], sizes, kernel) == reference(data[start:], sizes)


@pytest.mark.parametrize("period", [*range(1, 34), 48, 64, 100, 4096])
@pytest.mark.parametrize("kernel", KERNELS)
def test_bytes_with_a_period(kernel: str, period: int) -> None:
    rng = random.Random(period)
    for pattern in (rng.randbytes(period), bytes(period - 1) + b"\x01", rng.randbytes(1) * period):
        data = pattern * (40_000 // period)
        for sizes in (SMALL, DEFAULT):
            assert cut(data, sizes, kernel) == reference(data, sizes)


@pytest.mark.parametrize("kernel", KERNELS)
def test_runs_of_a_byte_have_no_cut(kernel: str) -> None:
    for byte in range(256):
        ends = cut(bytes([byte]) * 10_000, SMALL, kernel)
        assert ends == [*range(2048, 10_000, 2048), 10_000]


def mostly_runs(rng: random.Random, length: int) -> bytes:
    pieces: list[bytes] = []
    while length > 0:
        piece = rng.choice(
            [bytes(rng.randrange(50_000)), rng.randbytes(rng.randrange(300)), b"\xff" * rng.randrange(99)]
        )
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_long_runs_between_random_bytes(kernel: str, sizes: tuple[int, int, int]) -> None:
    data = mostly_runs(random.Random(4), 1_500_000)
    assert cut(data, sizes, kernel) == reference(data, sizes)


def libc_protect(address: int, length: int, protection: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(length), protection):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


@contextlib.contextmanager
def guarded_pages() -> Iterator[memoryview]:
    """Two pages between two others that cannot be read."""
    page = mmap.PAGESIZE
    with mmap.mmap(-1, 4 * page) as area:
        held = (ctypes.c_char * len(area)).from_buffer(area)
        guards = [ctypes.addressof(held), ctypes.addressof(held) + 3 * page]
        view = memoryview(area)[page : 3 * page]
        for guard in guards:
            libc_protect(guard, page, 0)
        try:
            yield view
        finally:
            for guard in guards:
                libc_protect(guard, page, mmap.PROT_READ | mmap.PROT_WRITE)
            view.release()
            del held


@pytest.mark.parametrize("kernel", KERNELS)
def test_no_byte_outside_is_read(kernel: str) -> None:
    with guarded_pages() as pages:
        pages[:] = random.Random(5).randbytes(len(pages))
        for length in (*range(1, 420), len(pages) - 1, len(pages)):
            for start in (0, len(pages) - length):
                with pages[start : start + length] as data:
                    assert cut(data, SMALL, kernel)[-1] == length


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_follows_the_last_byte_is_no_cut(kernel: str) -> None:
    """Zeros in its place have the hash 0; before them is the other half of a cut, of which m would have to say more."""
    with guarded_pages() as pages:
        pages[-17:-1] = half_of_hash(random.Random(6), 0xFF)
        for length in range(80, 300):
            with pages[len(pages) - length :] as data:
                assert cut(data, (64, 1 << 24, 1 << 24), kernel) == [length]


pieces = st.one_of(
    st.binary(max_size=200),
    st.tuples(st.binary(min_size=1, max_size=40), st.integers(1, 300)).map(lambda pair: pair[0] * pair[1]),
    st.tuples(st.integers(0, 99), st.integers(0, 3000)).map(lambda pair: random.Random(pair[0]).randbytes(pair[1])),
)
contents = st.lists(pieces, max_size=12).map(b"".join)


@st.composite
def possible_sizes(draw: st.DrawFn) -> tuple[int, int, int]:
    average: int = 1 << draw(st.integers(8, 24))
    return draw(st.integers(64, average)), average, draw(st.integers(average, 1 << 30))


@given(contents, st.one_of(possible_sizes(), st.sampled_from(SIZES)))
@settings(max_examples=EXAMPLES, deadline=None)
def test_any_content_and_sizes(data: bytes, sizes: tuple[int, int, int]) -> None:
    ends = reference(data, sizes)
    for kernel in KERNELS:
        assert cut(data, sizes, kernel) == ends
    lengths = np.diff([0, *ends])
    assert sum(lengths) == len(data)
    assert all(sizes[0] <= length <= sizes[2] for length in lengths[:-1])
    assert all(0 < length <= sizes[2] for length in lengths)


@given(contents, st.binary(max_size=3000))
@settings(max_examples=EXAMPLES, deadline=None)
def test_a_chunk_depends_on_nothing_before_it(data: bytes, before: bytes) -> None:
    """So what is before a cut can be changed and the cuts behind it stay."""
    ends = cut(data, SMALL)
    for start in ends[:-1]:
        assert [start + end for end in cut(data[start:], SMALL)] == ends[ends.index(start) + 1 :]
    again = cut(before + data, SMALL)
    if len(before) in again:
        assert [end - len(before) for end in again if end > len(before)] == ends


def test_what_is_inserted_changes_the_chunks_around_it_only() -> None:
    data = random.Random(6).randbytes(3_000_000)
    changed = data[:1_000_000] + b"inserted" + data[1_000_000:]
    chunks, others = (layerstore.chunk(content) for content in (data, changed))
    digests, of_others = (set(map(bytes, found.digests)) for found in (chunks, others))
    assert len(digests) > 100
    assert len(of_others - digests) <= 3


def test_the_mean_of_chunks_is_about_the_average() -> None:
    data = random.Random(7).randbytes(8_000_000)
    for average in (1024, 16384):
        assert 0.9 * average < len(data) / len(cut(data, (average // 4, average, 8 * average))) < 1.3 * average


# Cut points that stay what they are


def vectors() -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads(VECTORS.read_text())
    return found


@pytest.mark.parametrize("vector", vectors(), ids=lambda vector: str(vector["sizes"]))
def test_the_cut_points_of_the_first_version(vector: dict[str, object]) -> None:
    data = pseudo_random("layerstore", 1 << 21)
    ends = vector["ends"]
    least, average, most = vector["sizes"]  # type: ignore[misc]
    assert chunking.VERSION == 1
    for kernel in KERNELS:
        found = cut(data, (least, average, most), kernel)
        assert len(found) == vector["count"]
        assert found[:24] == ends
        assert hashlib.sha256(array("Q", found).tobytes()).hexdigest() == vector["sha256_of_all"]


# Digests


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("sizes", [SMALL, DEFAULT, (64, 1 << 20, 1 << 25)], ids=str)
def test_digests_are_those_of_the_chunks(kernel: str, sizes: tuple[int, int, int]) -> None:
    """Of several batches: some end because they have many chunks, some because they have many bytes."""
    data = random.Random(8).randbytes(3_000_000)
    found, digests = chunking.chunk(data, *sizes, kernel)
    ends = list(found)
    assert ends == cut(data, sizes, kernel)
    starts = [0, *ends[:-1]]
    expected = [peer.blake3(data[start:end]).digest() for start, end in zip(starts, ends, strict=True)]
    assert bytes(digests) == b"".join(expected)


# The public function


def test_arrays_say_where_chunks_are() -> None:
    data = random.Random(9).randbytes(200_000)
    chunks = layerstore.chunk(data, avg_bytes=1024)
    assert isinstance(chunks, Chunks)
    offsets, lengths, digests = chunks
    assert (offsets.dtype, lengths.dtype, digests.dtype) == (np.uint64, np.uint32, np.uint8)
    assert offsets.shape == lengths.shape == (len(digests),)
    assert digests.shape[1] == 32
    assert offsets[0] == 0
    assert (offsets[1:] == np.cumsum(lengths)[:-1]).all()
    assert (offsets + lengths).tolist() == cut(data, (256, 1024, 8192))
    whole = [
        bytes(data[start : start + length]) for start, length in zip(offsets.tolist(), lengths.tolist(), strict=True)
    ]
    assert b"".join(whole) == data
    assert [bytes(row) for row in digests] == [peer.blake3(chunk).digest() for chunk in whole]


def test_sizes_are_taken_as_given() -> None:
    data = random.Random(10).randbytes(300_000)
    assert (layerstore.chunk(data).offsets + layerstore.chunk(data).lengths).tolist() == cut(data, DEFAULT)
    chunks = layerstore.chunk(data, min_bytes=100, avg_bytes=512, max_bytes=5001)
    assert (chunks.offsets + chunks.lengths).tolist() == cut(data, (100, 512, 5001))


def test_an_empty_content_has_no_chunks() -> None:
    for kernel in KERNELS:
        assert cut(b"", DEFAULT, kernel) == []
    chunks = layerstore.chunk(b"")
    assert (chunks.offsets.shape, chunks.lengths.shape, chunks.digests.shape) == ((0,), (0,), (0, 32))
    assert (chunks.offsets.dtype, chunks.lengths.dtype) == (np.uint64, np.uint32)


def test_any_contiguous_buffer_is_an_input(tmp_path: Path) -> None:
    data = random.Random(11).randbytes(100_000)
    expected = layerstore.chunk(data).digests.tolist()
    (tmp_path / "file").write_bytes(data)
    with (tmp_path / "file").open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        for buffer in (bytearray(data), memoryview(data), np.frombuffer(data, np.uint32), mapped):
            assert layerstore.chunk(buffer).digests.tolist() == expected
    changeable = bytearray(data)
    layerstore.chunk(changeable)
    changeable.append(0)  # fails with BufferError while an export is held


def test_what_has_no_contiguous_buffer_is_refused() -> None:
    with pytest.raises(TypeError):
        layerstore.chunk("text")  # type: ignore[arg-type]
    with pytest.raises(BufferError):
        layerstore.chunk(memoryview(bytes(10))[::2])


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"avg_bytes": 1000}, "chunks of 1000 bytes on average .* power of two from 256 to 16777216"),
        ({"avg_bytes": 128}, "chunks of 128 bytes on average"),
        ({"avg_bytes": 1 << 25}, "chunks of 33554432 bytes on average"),
        ({"avg_bytes": 0}, "chunks of 0 bytes on average"),
        ({"avg_bytes": -16384}, "avg_bytes is -16384"),
        ({"avg_bytes": 1 << 70}, "avg_bytes is 1180591620717411303424"),
        ({"min_bytes": 63}, "at least 63 bytes .* from 64 to the average, 16384"),
        ({"min_bytes": 0}, "at least 0 bytes"),
        ({"min_bytes": -1}, "min_bytes is -1"),
        ({"min_bytes": 16385}, "at least 16385 bytes"),
        ({"max_bytes": 16383}, "at most 16383 bytes .* from the average, 16384, to 1073741824"),
        ({"max_bytes": (1 << 30) + 1}, "max_bytes is 1073741825"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        layerstore.chunk(b"some", **sizes)  # type: ignore[arg-type]


def test_sizes_are_whole_numbers() -> None:
    for sizes in ({"avg_bytes": "16384"}, {"min_bytes": 64.0}):
        with pytest.raises(TypeError):
            layerstore.chunk(b"some", **sizes)  # type: ignore[arg-type]


# Kernels


@pytest.mark.parametrize("name", ["", "AVX2", "avx1024", "portable\0", "\udcff"])
def test_an_unknown_kernel_is_not_found(name: str) -> None:
    for call in (chunking.cut, chunking.chunk):
        with pytest.raises(NotFound, match="no chunking kernel"):
            call(b"", *DEFAULT, name)


def test_a_kernel_of_another_cpu_is_unsupported() -> None:
    missing = [name for name in chunking.all_kernels() if name not in KERNELS]
    if not missing:
        pytest.skip("this CPU runs every kernel; test_kernels.py covers the refusal")
    for name in missing:
        with pytest.raises(Unsupported, match="this CPU cannot run"):
            cut(b"", DEFAULT, name)


def test_portable_is_first_and_always_runs() -> None:
    assert chunking.all_kernels()[0] == KERNELS[0] == "portable"
