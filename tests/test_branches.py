"""The part of an index that leads to some inodes (csrc/index/branches.h); records read when they are asked for."""

import stat
import struct

import pytest
import stack_model
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_model import stacks
from test_index import CONTENTS, KEY, ROOT, D, F, flips, forge
from test_trees import everything

from layerstore._core import index as ix
from layerstore._core.branches import LazyRecord, branches, record, records
from layerstore._core.index import Index, Node, merge, write_index
from layerstore.errors import CorruptError


def expected(index: Index, inodes: set[int]) -> list[int]:
    found = {0}
    for number, one in enumerate(index):
        if one.inode in inodes:
            while number not in found:
                found.add(number)
                number = index.record(number).parent
    return sorted(found)


@settings(max_examples=100, deadline=None)
@given(stacks(), st.data())
def test_they_are_those_of_a_walk_upwards(layers: list[stack_model.Layer], data: st.DataObject) -> None:
    index = Index(merge([stack_model.layer_index(layer) for layer in layers], KEY))
    some = st.sampled_from(sorted({one.inode for one in index}))
    inodes = data.draw(st.lists(some, max_size=10))
    assert [one.number for one in branches(index, inodes)] == expected(index, set(inodes))
    assert [one.number for one in branches(index, {one.inode for one in index})] == list(range(len(index)))


@settings(max_examples=100, deadline=None)
@given(stacks())
def test_a_lazy_record_is_the_record(layers: list[stack_model.Layer]) -> None:
    index = Index(merge([stack_model.layer_index(layer) for layer in layers], KEY))
    for number, (lazy, whole) in enumerate(zip(records(index, range(len(index))), index, strict=True)):
        for name in ("path", "name", "parent", "inode", "mode", "uid", "gid", "mtime_ns", "xattrs", "target", "rdev"):
            assert getattr(lazy, name) == getattr(whole, name), name
        assert lazy.number == number
        assert lazy.is_dir() == stat.S_ISDIR(whole.mode)
        assert lazy.links == (1 if lazy.is_dir() else whole.count)
        assert lazy.content == (None if whole.content is None else index.content(whole.content))


def test_nothing_leads_to_the_root_alone() -> None:
    index = Index(everything())
    assert [one.number for one in branches(index, [])] == [0]
    assert [one.path for one in branches(index, [0, 0])] == [b""]


def test_more_than_a_word_of_marks() -> None:
    nodes = [ROOT, *(Node(0, b"%03d" % i, D) for i in range(300)), *(Node(1 + i, b"f", F) for i in range(300))]
    index = Index(write_index(ix.CHAIN, 1, KEY, nodes))
    assert [one.path for one in branches(index, [301 + 64, 600, 301])] == [
        *(b"", b"000", b"064", b"299", b"000/f", b"064/f", b"299/f")
    ]


def test_all_names_of_an_inode() -> None:
    index = Index(everything())
    (number,) = (number for number, one in enumerate(index) if one.name == b"\xff\xfe")
    assert [one.path for one in branches(index, [index.record(number).inode])] == [
        b"",
        b"dev",
        b"\xff\xfe",
        b"dev/linked",
    ]


def test_a_lazy_record_outlives_the_name_of_its_index() -> None:
    lazy = records(Index(everything()), [2])[0]
    assert lazy.path == Index(everything()).record(2).path


def test_what_is_none() -> None:
    index = Index(everything())
    with pytest.raises(TypeError, match="come from"):
        LazyRecord()
    with pytest.raises(IndexError, match="record 12"):
        record(index, 12)
    with pytest.raises(IndexError):
        records(index, [0, 12])
    with pytest.raises(CorruptError, match="record 12"):
        branches(index, [1, 12])
    for number in (-1, 1 << 32):
        with pytest.raises(OverflowError):
            branches(index, [number])


def test_a_parent_that_stands_behind_is_found() -> None:
    data = bytes(write_index(ix.CHAIN, 1, KEY, [ROOT, Node(0, b"d", D), Node(1, b"f", F)], CONTENTS[:0]))
    for parent in (2, 3, 2**32 - 1):
        with pytest.raises(CorruptError, match=f"the parent of record 2 is {parent}"):
            branches(forge(data, 2, 8, struct.pack("<I", parent)), [2])


def test_flipped_bits_are_harmless() -> None:
    data = everything()
    for damaged in flips(data[: 128 + 64 * 12], 128):
        index = Index(damaged + data[128 + 64 * 12 :])
        try:
            for one in branches(index, range(12)):
                assert one.path is not None
                assert one.xattrs is not None
        except CorruptError:
            continue
