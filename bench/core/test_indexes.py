"""Indexes of layers: joining them, looking up in them by depth, writing the tree of them as EROFS."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from conftest import HASH_KEY, Debian

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

DEPTHS = (1, 12, 127, 500)
Layers = Callable[[int], list[Any]]


@pytest.mark.parametrize("depth", DEPTHS)
def test_merge(benchmark: BenchmarkFixture, layers: Layers, depth: int) -> None:
    from layerstore._core.index import merge

    benchmark(merge, layers(depth), HASH_KEY)


@pytest.mark.parametrize("depth", DEPTHS)
def test_look_up(benchmark: BenchmarkFixture, debian: Debian, layers: Layers, depth: int) -> None:
    from layerstore._core.index import Index, merge

    index = Index(merge(layers(depth), HASH_KEY))
    found = benchmark(index.lookup_many, debian.paths)
    assert len(found) - found.count(None) == len(debian.entries)


def test_write_an_erofs_tree(benchmark: BenchmarkFixture, layers: Layers) -> None:
    from layerstore._core.erofs import write_tree
    from layerstore._core.index import Index, merge

    index = Index(merge(layers(12), HASH_KEY))
    locations = b"".join(struct.pack("<II", 1, slot) for slot in range(index.content_count))
    benchmark(write_tree, index, locations)


def test_write_an_erofs_pack(benchmark: BenchmarkFixture, debian: Debian) -> None:
    from layerstore._core.erofs import PACK_BLOCK_BYTES, write_pack

    slots, end = b"", 0
    for content in debian.contents:
        slots += struct.pack("<QQ32x", end, len(content))
        end += len(content) + -len(content) % PACK_BLOCK_BYTES
    benchmark(write_pack, 1, end, slots)
