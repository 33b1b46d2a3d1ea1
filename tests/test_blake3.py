"""BLAKE3 kernels against the published vectors and the blake3 package; none of them judges itself."""

import json
import random
from pathlib import Path

import blake3 as peer
import pytest

from layerstore._core import hashing
from layerstore.errors import NotFound, Unsupported

VECTORS = json.loads((Path(__file__).parent / "data" / "blake3_vectors.json").read_text())["hash"]
KERNELS = hashing.kernels()
CHUNK = 1024
LARGE = 4096 * CHUNK  # inputs above this are hashed alone


def pattern(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


def random_view(seed: int, length: int) -> memoryview:
    return memoryview(random.Random(seed).randbytes(length))


def expected(inputs: list[memoryview]) -> list[bytes]:
    return [peer.blake3(data).digest() for data in inputs]


@pytest.fixture(scope="module")
def mixed() -> tuple[list[memoryview], list[bytes]]:
    """10,000 inputs of 0 to 300 KB, most of them small as in a layer, at every alignment, and their digests."""
    rng = random.Random(3)
    data = random_view(4, 1_000_000)
    inputs = []
    for _ in range(10_000):
        length = rng.choice(
            [rng.randrange(2 * CHUNK), rng.randrange(20_000), min(300_000, int(rng.paretovariate(0.5)))]
        )
        if rng.random() < 0.01:
            length = rng.randrange(300_000)
        start = rng.randrange(len(data) - length)
        inputs.append(data[start : start + length])
    return inputs, expected(inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_published_vectors(kernel: str) -> None:
    inputs = [pattern(int(length)) for length in VECTORS]
    assert [digest.hex() for digest in hashing.hash_many(inputs, kernel)] == list(VECTORS.values())
    for data, digest in zip(inputs, VECTORS.values(), strict=True):
        assert hashing.blake3(data, kernel).hex() == digest
        hasher = hashing.Hasher(kernel)
        hasher.update(data)
        assert hasher.digest().hex() == digest


@pytest.mark.parametrize("kernel", KERNELS)
def test_mixed_lengths_match_the_package(kernel: str, mixed: tuple[list[memoryview], list[bytes]]) -> None:
    inputs, digests = mixed
    assert hashing.hash_many(inputs, kernel) == digests


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_length_of_a_chunk_and_every_tree_shape(kernel: str) -> None:
    data = random_view(5, 70 * CHUNK)
    lengths = [*range(2 * CHUNK + 2), *(n * CHUNK + d for n in range(2, 70) for d in (-1, 0, 1))]
    inputs = [data[:length] for length in lengths]
    digests = expected(inputs)
    assert hashing.hash_many(inputs, kernel) == digests
    assert [hashing.hash_many([data], kernel)[0] for data in inputs[::97]] == digests[::97]


@pytest.mark.parametrize("kernel", KERNELS)
def test_lengths_around_the_group_and_window_limits(kernel: str) -> None:
    data = random_view(6, 2 * LARGE + 5)
    lengths = [LARGE - 1, LARGE, 700, LARGE + 1, LARGE + CHUNK, 2 * LARGE + 5, LARGE - 5 * CHUNK, 6 * CHUNK, 0]
    inputs = [data[:length] for length in lengths]
    assert hashing.hash_many(inputs, kernel) == expected(inputs)


@pytest.mark.parametrize("kernel", KERNELS)
def test_pieces_of_any_size_give_the_same_digest(kernel: str) -> None:
    rng = random.Random(7)
    data = random_view(8, 5_000_000)
    for most in (3, CHUNK, 3 * CHUNK, 100_000, 3_000_000):
        part = data[: min(len(data), most * 60)]
        hasher, whole, start = hashing.Hasher(kernel), peer.blake3(), 0
        while start < len(part):
            piece = part[start : start + rng.choice([rng.randrange(most + 1), most])]
            hasher.update(piece)
            whole.update(piece)
            start += len(piece)
            if rng.random() < 0.2:  # a digest in between must not disturb what follows
                assert hasher.digest() == whole.digest()
        assert hasher.digest() == whole.digest()


def test_pieces_at_every_place_of_the_tree() -> None:
    data = random_view(9, 140 * CHUNK)
    for before in range(0, 70):
        for pieces in (1, 2, 31, 33, 64, 65):
            for extra in (0, 1):
                hasher = hashing.Hasher()
                cut, end = before * CHUNK + extra, (before + pieces) * CHUNK + extra
                hasher.update(data[:cut])
                hasher.update(data[cut:end])
                assert hasher.digest() == peer.blake3(data[:end]).digest()


@pytest.mark.parametrize("size", [bytes, bytearray, memoryview])
def test_any_contiguous_buffer_is_an_input(size: type) -> None:
    assert hashing.hash_many([size(b"abc"), size(b"")]) == [peer.blake3(b"abc").digest(), peer.blake3(b"").digest()]


def test_nothing_to_hash() -> None:
    assert hashing.hash_many([]) == []
    assert hashing.Hasher().digest() == peer.blake3(b"").digest()


def test_an_input_without_a_contiguous_buffer_is_refused_and_the_others_released() -> None:
    before = bytearray(10)
    with pytest.raises(TypeError):
        hashing.hash_many([before, "text"])  # type: ignore[list-item]
    with pytest.raises(BufferError):
        hashing.hash_many([before, memoryview(bytes(10))[::2]])
    before.append(0)  # fails with BufferError while an export is held


def test_the_buffers_of_a_batch_are_released() -> None:
    data = bytearray(5000)
    hashing.hash_many([data, memoryview(data)[1:]])
    hasher = hashing.Hasher()
    hasher.update(data)
    data.append(0)


@pytest.mark.parametrize("name", ["", "AVX2", "avx1024", "portable\0", "\udcff"])
def test_an_unknown_kernel_is_not_found(name: str) -> None:
    for call in (lambda: hashing.hash_many([], name), lambda: hashing.blake3(b"", name), lambda: hashing.Hasher(name)):
        with pytest.raises(NotFound, match="no BLAKE3 kernel"):
            call()


def test_a_kernel_of_another_cpu_is_unsupported() -> None:
    missing = [name for name in hashing.all_kernels() if name not in KERNELS]
    if not missing:
        pytest.skip("this CPU runs every kernel; test_kernels.py covers the refusal")
    for name in missing:
        with pytest.raises(Unsupported, match="this CPU cannot run"):
            hashing.blake3(b"", name)


def test_portable_is_first_and_always_runs() -> None:
    assert hashing.all_kernels()[0] == KERNELS[0] == "portable"
