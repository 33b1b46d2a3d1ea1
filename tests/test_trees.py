"""The trees of a chain: digests of what its directories hold, as docs/format/index.md says."""

import stat
import struct
from pathlib import Path

import pytest
import stack_model
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from stack_model import stacks
from test_index import CONTENTS, KEY, ROOT, D, F, flips, forge, path_of, reseal
from test_index import trees as layer_trees

from layerstore._core import index as ix
from layerstore._core.compare import tree
from layerstore._core.index import Index, Node, encode_xattrs, merge, write_index
from layerstore.errors import CorruptError

GOLDEN = Path(__file__).parent / "data" / "index-chain-v1.bin"

XATTRS = {b"user.b": b"\0\xff", b"user.a": b""}

# One of everything that a chain can have, of three layers, in no order.
NODES = [
    Node(0, b"", stat.S_IFDIR | 0o700, uid=1, gid=2, mtime_ns=3),
    Node(2, b"sh", stat.S_IFLNK | 0o777, target=b"dash", mtime_ns=-1, layer=1),
    Node(0, b"bin", D, flags=ix.IMPLIED),
    Node(2, b"dash", stat.S_IFREG | 0o4755, uid=4_000_000_000, content=1, xattrs=XATTRS),
    Node(0, b"empty", F, xattrs=XATTRS),
    Node(0, b"\xff\xfe", F, content=0, mtime_ns=1_700_000_000_123_456_789, inode=6),
    Node(7, b"linked", F, content=0, mtime_ns=1_700_000_000_123_456_789, layer=2),
    Node(0, b"dev", D, layer=2),
    Node(7, b"null", stat.S_IFCHR | 0o666, rdev=(1, 3)),
    Node(7, b"disk", stat.S_IFBLK | 0o660, rdev=(259, 1_000_000)),
    Node(7, b"fifo", stat.S_IFIFO),
    Node(7, b"nothing in it", D, mtime_ns=5, xattrs={b"user.d": b"1"}),
]


def everything() -> bytes:
    return bytes(write_index(ix.CHAIN, 3, KEY, NODES, CONTENTS[:2]))


def model(index: Index, number: int, known: dict[int, bytes] | None = None) -> bytes:
    """The tree of a directory, computed from what its records say."""
    entries = b""
    for child in index.children(number):
        r = index.record(child)
        size = r.rdev[0] << 32 | r.rdev[1] if r.rdev else r.size
        seconds, nanoseconds = divmod(r.mtime_ns, 10**9)
        entries += struct.pack("<H", len(r.name)) + r.name
        entries += struct.pack("<3IQqI", r.mode, r.uid, r.gid, size, seconds, nanoseconds)
        if stat.S_ISDIR(r.mode):
            entries += known[child] if known else model(index, child)
        elif r.content is not None:
            entries += index.content(r.content)[0]
        entries += (r.target or b"") + (encode_xattrs(r.xattrs) or b"\0\0")
    return blake3(entries).digest()


def directories(index: Index) -> list[int]:
    return [number for number, record in enumerate(index) if stat.S_ISDIR(record.mode)]


def check_trees(index: Index) -> None:
    known: dict[int, bytes] = {}
    for number in reversed(directories(index)):
        known[number] = model(index, number, known)
    assert {number: tree(index, number) for number in known} == known


# The format


def test_the_golden_chain() -> None:
    assert everything() == GOLDEN.read_bytes(), "the format changed: its version, its page and this file go together"


def test_the_golden_chain_is_what_its_page_says() -> None:
    data = GOLDEN.read_bytes()
    magic, version, kind, records, contents, slots, layers, heap_bytes = struct.unpack_from("<8s6IQ", data)
    assert (magic, version, kind, layers, contents) == (b"LSINDEX\n", 1, ix.CHAIN, 3, 2)
    (tree_count,) = struct.unpack_from("<I", data, 56)
    assert tree_count == 4
    assert data[60:88] == bytes(28)
    trees_at = 128 + 64 * records + 8 * slots + 40 * contents
    assert len(data) == trees_at + 32 * tree_count + heap_bytes
    numbers = []
    for number in range(records):
        mode, size = struct.unpack_from("<I8xQ", data, 128 + 64 * number + 12)
        if stat.S_ISDIR(mode):
            numbers.append(size)
            digest = data[trees_at + 32 * size : trees_at + 32 * size + 32]
            assert digest == model(Index(data), number) == tree(Index(data), number)
    assert numbers == [0, 1, 2, 3]


def test_the_bytes_that_are_hashed() -> None:
    nodes = [ROOT, Node(0, b"d", D, mtime_ns=2 * 10**9 + 7), Node(1, b"link", stat.S_IFLNK | 0o777, uid=1, target=b"t")]
    index = Index(write_index(ix.CHAIN, 1, KEY, nodes))
    link = bytes.fromhex("ffa10000 01000000 00000000 0100000000000000 0000000000000000 00000000")
    d = bytes.fromhex("ed410000 00000000 00000000 0000000000000000 0200000000000000 07000000")
    inner = blake3(b"\4\0link" + link + b"t" + b"\0\0").digest()
    assert tree(index, 1) == inner
    assert tree(index, 0) == blake3(b"\1\0d" + d + inner + b"\0\0").digest()


def test_the_tree_of_an_empty_directory_is_the_digest_of_nothing() -> None:
    index = Index(write_index(ix.CHAIN, 1, KEY, [ROOT]))
    assert tree(index, 0) == blake3(b"").digest()


def test_a_directory_of_a_chain_has_no_size() -> None:
    index = Index(everything())
    assert [index.record(number).size for number in directories(index)] == [0, 0, 0, 0]


def test_a_layer_has_no_trees() -> None:
    layer = Index(write_index(ix.LAYER, 1, KEY, [ROOT, Node(0, b"f", F)]))
    with pytest.raises(CorruptError, match="tree 0 of 0"):
        tree(layer, 0)
    with pytest.raises(ValueError, match="record 1 is not a directory"):
        tree(layer, 1)
    with pytest.raises(IndexError):
        tree(layer, 2)


# What is computed


@settings(max_examples=150, deadline=None)
@given(stacks())
def test_the_trees_of_a_merge_are_those_of_its_records(layers: list[stack_model.Layer]) -> None:
    indexes = [stack_model.layer_index(layer) for layer in layers]
    chain = Index(merge(indexes, KEY))
    chain.verify()
    check_trees(chain)


@settings(max_examples=150, deadline=None)
@given(stacks(min_size=2), st.data())
def test_trees_that_are_taken_from_a_chain_are_right(layers: list[stack_model.Layer], data: st.DataObject) -> None:
    indexes = [stack_model.layer_index(layer) for layer in layers]
    chain = Index(merge(indexes[:1], KEY))
    for layer in indexes[1:]:
        chain = Index(merge([chain, layer], KEY))
        chain.verify()
    assert merge(indexes, KEY) == merge([chain], KEY)


@settings(max_examples=50, deadline=None)
@given(layer_trees())
def test_a_tree_does_not_depend_on_what_is_above_and_beside(nodes: list[Node]) -> None:
    alone = Index(write_index(ix.CHAIN, 1, KEY, nodes))
    moved = [ROOT, Node(0, b"above", D), Node(1, b"here", D, uid=7), Node(1, b"beside", F)]
    moved += [node._replace(parent=node.parent + 3 if node.parent else 2, layer=4) for node in nodes[1:]]
    below = Index(write_index(ix.CHAIN, 9, bytes(16), moved))
    for number in range(len(nodes)):
        path = path_of(nodes, number)
        if stat.S_ISDIR(alone.record(alone.lookup(path)).mode):
            there = below.lookup(b"above/here" + (b"/" + path if path else b""))
            assert tree(below, there) == tree(alone, alone.lookup(path))


def test_many_directories_and_large_ones() -> None:
    """More than one batch of directories, and one of entries."""
    nodes = [ROOT, *(Node(0, b"d%d" % i, D) for i in range(700)), *(Node(1 + i, b"e", D) for i in range(650))]
    nodes += [Node(701 + i % 600, b"file %d" % i, F, gid=i) for i in range(5000)]
    nodes += [Node(1, b"f%06d" % i, F, uid=i) for i in range(9000)]
    nodes += [
        Node(700, b"long", stat.S_IFLNK, target=b"x" * 4096),
        Node(699, b"x", F, xattrs={b"user.x": b"y" * 70_000}),
    ]
    index = Index(write_index(ix.CHAIN, 1, KEY, nodes))
    index.verify()
    check_trees(index)


def test_a_deep_chain_of_directories() -> None:
    index = Index(write_index(ix.CHAIN, 1, KEY, [Node(max(i - 1, 0), b"d" if i else b"", D) for i in range(2000)]))
    index.verify()
    check_trees(index)


@pytest.mark.parametrize(
    "change",
    [
        *({"name": b"other"}, {"mode": 0o100600}, {"uid": 1}, {"gid": 1}, {"mtime_ns": 1}, {"mtime_ns": 10**9}),
        *({"content": 1}, {"content": None}, {"xattrs": {b"user.a": b""}}, {"mode": stat.S_IFIFO, "content": None}),
    ],
    ids=str,
)
def test_every_attribute_shows(change: dict[str, object]) -> None:
    file = Node(1, b"file", F, content=0)
    roots = set()
    for node in (file, file._replace(**change)):
        index = Index(write_index(ix.CHAIN, 1, KEY, [ROOT, Node(0, b"d", D), node], [(bytes(32), 1), (b"x" * 32, 1)]))
        roots.add(tree(index, 0))
    assert len(roots) == 2


def test_targets_and_device_numbers_show() -> None:
    kinds = [
        *({"mode": stat.S_IFLNK | 0o777, "target": target} for target in (b"a", b"b")),
        *({"mode": stat.S_IFCHR | 0o600, "rdev": rdev} for rdev in ((1, 3), (3, 1))),
    ]
    found = {tree(Index(write_index(ix.CHAIN, 1, KEY, [ROOT, Node(0, b"x", **kind)])), 0) for kind in kinds}
    assert len(found) == 4


# Damage


def test_flipped_bits_of_trees_under_a_right_digest_are_found() -> None:
    data = everything()
    trees_at = 128 + 64 * 12 + 8 * 32 + 40 * 2
    for damaged in flips(data[: trees_at + 4 * 32], trees_at):
        with pytest.raises(CorruptError, match=r"record \d+ has a tree that is not the digest of what is in it"):
            Index(reseal(damaged + data[trees_at + 4 * 32 :])).verify()


@pytest.mark.parametrize("number", [0, 2, 3, 4, 2**32, 2**64 - 1])
def test_a_directory_with_another_tree_is_found(number: int) -> None:
    index = forge(everything(), 1, 24, struct.pack("<Q", number))
    with pytest.raises(CorruptError, match="record 1 has another tree than the next one"):
        index.verify()
    merged = Index(merge([index], KEY))
    if number < 4:
        with pytest.raises(CorruptError, match="record 1 has a tree that is not the digest"):
            merged.verify()
        return
    merged.verify()
    with pytest.raises(CorruptError, match=f"tree {number} of 4"):
        tree(index, 1)


def test_a_layer_with_a_tree_is_found() -> None:
    layer = bytes(write_index(ix.LAYER, 1, KEY, [ROOT, Node(0, b"d", D)]))
    with pytest.raises(CorruptError, match="record 1 has a tree, which only a directory of a chain has"):
        forge(layer, 1, 24, struct.pack("<Q", 1)).verify()


@pytest.mark.parametrize("count", [0, 3, 5, 13, 2**32 - 1])
def test_another_number_of_trees_is_refused(count: int) -> None:
    """By the length of the file, or as impossible; and where the length is made to agree, by verify."""
    data = everything()
    forged = reseal(data[:56] + struct.pack("<I", count) + data[60:])
    with pytest.raises(CorruptError):
        Index(forged)
    heap_bytes = struct.unpack_from("<Q", data, 32)[0] + 32 * (4 - count)
    if count and heap_bytes > 0:
        with pytest.raises(CorruptError):
            Index(reseal(forged[:32] + struct.pack("<Q", heap_bytes) + forged[40:])).verify()
