"""The merge of layers, against a model that applies them one by one, and against what overlayfs shows of them."""

import itertools
import os
import random
import stat
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stack_model import (
    EXAMPLES,
    KEY,
    Inode,
    Layer,
    describe_index,
    describe_view,
    digest_of,
    directory,
    layer_index,
    lower_link,
    model,
    regular,
    show,
    stacks,
    without_layers,
)

from layerstore._core import index as ix
from layerstore._core.index import Index, Node, merge, write_index
from layerstore.errors import CorruptError, InvalidInput


@settings(max_examples=EXAMPLES, deadline=None)
@given(stacks(), st.randoms(use_true_random=False))
def test_merge_shows_what_the_model_shows(layers: list[Layer], shuffle: random.Random) -> None:
    merged = merge([layer_index(layer, shuffle) for layer in layers], KEY)
    index = Index(merged)
    index.verify()
    assert index.kind == ix.CHAIN
    assert index.layer_count == len(layers)
    assert describe_index(index) == describe_view(model(layers))
    used = [r.content for r in index if r.content is not None]
    assert list(dict.fromkeys(used)) == list(range(index.content_count)), "contents are not those used, in record order"
    assert len({index.content(i)[0] for i in range(index.content_count)}) == index.content_count
    assert merge([layer_index(layer) for layer in layers], KEY) == merged, "the order of nodes shows"


@settings(max_examples=EXAMPLES, deadline=None)
@given(stacks(min_size=2), st.data())
def test_merging_a_chain_further_gives_the_same_bytes(layers: list[Layer], data: st.DataObject) -> None:
    indexes = [layer_index(layer) for layer in layers]
    at_once = merge(indexes, KEY)
    split = data.draw(st.integers(1, len(layers)))
    chain = Index(merge(indexes[:split], b"another key, yes"))
    assert merge([chain, *indexes[split:]], KEY) == at_once


@pytest.fixture
def scratch(tmp_path: Path):
    """A directory on a tmpfs of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes whiteouts and mounts an overlay")
    where = tmp_path / "scratch"
    where.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "layerstore-test", where], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", where], check=True)


@pytest.mark.root
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layers=stacks(min_size=2, on_kernel=True))
def test_merge_shows_what_overlayfs_shows(scratch: Path, layers: list[Layer]) -> None:
    merged = Index(merge([layer_index(layer) for layer in layers], KEY))
    assert without_layers(describe_index(merged)) == show(scratch, layers)


# Single rules


@pytest.mark.parametrize(
    ("between", "target"),
    [
        ({}, b"absent"),
        ({}, b"d"),
        ({(b"d", b"f"): Inode(flags=ix.WHITEOUT), (b"d",): directory()}, b"d/f"),
        ({(b"d",): directory(flags=ix.OPAQUE)}, b"d/f"),
        ({(b"d",): Inode(flags=ix.WHITEOUT)}, b"d/f"),
        ({(b"d",): regular()}, b"d/f"),
        ({(): directory(flags=ix.OPAQUE)}, b"d/f"),
    ],
    ids=["absent", "directory", "whiteout", "opaque", "parent-whiteout", "parent-is-file", "opaque-root"],
)
def test_a_lower_link_to_what_is_not_shown_is_refused(between: Layer, target: bytes) -> None:
    bottom = {(): directory(), (b"d",): directory(), (b"d", b"f"): regular()}
    top = {(): directory(), (b"lin\nk",): lower_link(target)}
    layers = [layer_index(layer) for layer in (bottom, {(): directory(), **between}, top)]
    with pytest.raises(InvalidInput, match=rf'"lin\\x0ak" of layer 2 is a hard link to "{target.decode()}"'):
        merge(layers, KEY)


def test_a_lower_link_does_not_see_its_own_layer() -> None:
    top = {(): directory(), (b"link",): lower_link(b"f"), (b"f",): regular(b"new")}
    index = Index(merge([layer_index({(): directory(), (b"f",): regular(b"old")}), layer_index(top)], KEY))
    assert index.content(index.record(index.lookup(b"link")).content) == (digest_of(b"old"), 3)
    assert index.content(index.record(index.lookup(b"f")).content) == (digest_of(b"new"), 3)


def test_only_the_bottom_may_be_a_chain() -> None:
    layer = layer_index({(): directory()})
    chain = Index(merge([layer], KEY))
    with pytest.raises(InvalidInput, match="number 1 is a chain"):
        merge([layer, chain], KEY)
    with pytest.raises(InvalidInput, match="merging layers: 0 of them"):
        merge([], KEY)


def test_two_sizes_of_one_content_are_corrupt() -> None:
    nodes = [Node(0, b"", stat.S_IFDIR), Node(0, b"f", stat.S_IFREG, content=0)]
    other = [nodes[0], Node(0, b"g", stat.S_IFREG, content=0)]
    layers = [
        Index(write_index(ix.LAYER, 1, KEY, nodes, [(bytes(32), 1)])),
        Index(write_index(ix.LAYER, 1, KEY, other, [(bytes(32), 2)])),
    ]
    with pytest.raises(CorruptError, match="another size"):
        merge(layers, KEY)


def test_contents_that_many_layers_share_are_there_once() -> None:
    files = [[regular(b"%d" % number) for number in range(first, first + 1_000)] for first in (0, 500, 250)]
    layers = [
        {(): directory(), **{(b"%d-%d" % (layer, i),): file for i, file in enumerate(inodes)}}
        for layer, inodes in enumerate(files)
    ]
    index = Index(merge([layer_index(layer) for layer in layers], KEY))
    assert index.content_count == 1_500
    assert describe_index(index) == describe_view(model(layers))


def test_many_layers_share_a_directory() -> None:
    count = 300
    layers = [{(): directory(), (b"d",): directory(uid=i), (b"d", b"%d" % i): regular()} for i in range(count)]
    for i, j in itertools.pairwise(range(0, count, 2)):
        layers[j][(b"d", b"%d" % i)] = Inode(flags=ix.WHITEOUT)
    index = Index(merge([layer_index(layer) for layer in layers], KEY))
    assert describe_index(index) == describe_view(model(layers))
