"""What goes over the bytes of contents: BLAKE3, the chunker, the walk of a tar. Each import is its benchmark's own, so
that a revision without one still runs the others."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest
from conftest import HASH_KEY, SEED, Debian

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

KERNELS = ("portable", "avx2", "avx512")
SPAN_BYTES = 1 << 20
MIB = 1 << 20
SIZES = {"64B": 64, "4KiB": 4096, "64KiB": 65536, "1MiB": MIB, "16MiB": 16 * MIB}
CHUNK_BYTES = 4096, 16384, 131072


def data_of(size_bytes: int) -> bytes:
    return random.Random(SEED).randbytes(size_bytes)


@pytest.mark.parametrize("size", SIZES)
def test_blake3(benchmark: BenchmarkFixture, size: str) -> None:
    from layerstore._core.hashing import blake3

    benchmark(blake3, data_of(SIZES[size]))


@pytest.mark.parametrize("kernel", KERNELS)
def test_blake3_by_kernel(benchmark: BenchmarkFixture, kernel: str) -> None:
    from layerstore._core import hashing

    if kernel not in hashing.kernels():
        pytest.skip("this CPU has it not")
    benchmark(hashing.blake3, data_of(MIB), kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_blake3_of_files_by_kernel(benchmark: BenchmarkFixture, debian: Debian, kernel: str) -> None:
    from layerstore._core import hashing

    if kernel not in hashing.kernels():
        pytest.skip("this CPU has it not")
    benchmark(hashing.hash_many, debian.contents, kernel)


@pytest.mark.parametrize("kernel", KERNELS)
def test_cut_chunks_by_kernel(benchmark: BenchmarkFixture, debian: Debian, kernel: str) -> None:
    from layerstore._core import chunking

    if kernel not in chunking.kernels():
        pytest.skip("this CPU has it not")
    benchmark(chunking.cut, debian.tar, *CHUNK_BYTES, kernel)


def test_cut_and_hash_chunks(benchmark: BenchmarkFixture, debian: Debian) -> None:
    from layerstore._core import chunking

    benchmark(chunking.chunk, debian.tar, *CHUNK_BYTES)


def test_walk_a_tar(benchmark: BenchmarkFixture, debian: Debian) -> None:
    from layerstore._core.tar import walk

    spans = [debian.tar[start : start + SPAN_BYTES] for start in range(0, len(debian.tar), SPAN_BYTES)]
    benchmark(lambda: sum(1 for _ in walk(spans)))


def test_build_a_layer(benchmark: BenchmarkFixture, debian: Debian) -> None:
    from layerstore._core.layer import build_layer

    benchmark(build_layer, debian.tar, HASH_KEY)
