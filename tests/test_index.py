"""The path index: what is written is read back and is what docs/format/index.md says; damage gives errors."""

import mmap
import random
import stat
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore._core import index as ix
from layerstore._core.index import Index, Node, encode_xattrs, merge, siphash, write_index
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError, LimitExceeded, Unsupported

KEY = bytes(range(100, 116))
GOLDEN = Path(__file__).parent / "data" / "index-v1.bin"
D = stat.S_IFDIR | 0o755
F = stat.S_IFREG | 0o644
ROOT = Node(0, b"", D)
NONE = 0xFFFFFFFF

# One of everything, in no order.
NODES = [
    Node(0, b"", stat.S_IFDIR | 0o700, uid=1, gid=2, mtime_ns=3),
    Node(2, b"sh", stat.S_IFLNK | 0o777, target=b"dash", mtime_ns=-1),
    Node(0, b"bin", D, flags=ix.IMPLIED),
    Node(
        2, b"dash", stat.S_IFREG | 0o4755, uid=4_000_000_000, content=1, xattrs={b"user.b": b"\0\xff", b"user.a": b""}
    ),
    Node(0, b"empty", F, xattrs={b"user.a": b"", b"user.b": b"\0\xff"}),
    Node(0, b"\xff\xfe", F, content=0, mtime_ns=1_700_000_000_123_456_789, inode=6),
    Node(7, b"linked", F, content=0, mtime_ns=1_700_000_000_123_456_789),
    Node(0, b"dev", D, flags=ix.OPAQUE),
    Node(7, b"null", stat.S_IFCHR | 0o666, rdev=(1, 3)),
    Node(7, b"disk", stat.S_IFBLK | 0o660, rdev=(259, 1_000_000)),
    Node(7, b"fifo", stat.S_IFIFO),
    Node(7, b"gone", 0, flags=ix.WHITEOUT),
    Node(7, b"older", 0, target=b"opt/file", flags=ix.LOWER_LINK),
    Node(None, b"not written", F),
]
CONTENTS = [(bytes(range(32)), 1), (bytes(range(32, 64)), 2**40), (bytes(32), 3)]


def everything() -> bytes:
    return bytes(write_index(ix.LAYER, 1, KEY, NODES, CONTENTS))


def reseal(data: bytes) -> bytes:
    """The bytes with the digests that they should have."""
    head = data[:88] + blake3(data[128:]).digest()
    return head + blake3(head).digest()[:8] + data[128:]


# The hash


def test_siphash_of_the_paper() -> None:
    assert siphash(bytes(range(16)), bytes(range(15)), 2, 4) == 0xA129CA6149BE45E5


def python_hash_key(seed: int) -> bytes:
    """The key that CPython draws for PYTHONHASHSEED (Python/bootstrap_hash.c, lcg_urandom)."""
    key = bytearray()
    for _ in range(16):
        seed = (seed * 214013 + 2531011) % 2**32
        key.append(seed >> 16 & 0xFF)
    return bytes(key)


@pytest.mark.skipif(sys.hash_info.algorithm != "siphash13", reason="this Python hashes bytes otherwise")
@pytest.mark.parametrize("seed", [1, 77, 4294967295])
def test_siphash_is_the_one_python_hashes_with(seed: int) -> None:
    code = "print(*[hash(bytes(range(n))) for n in range(1, 70)])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": str(seed)}, capture_output=True, text=True, check=True
    )
    key = python_hash_key(seed)
    signed = [struct.unpack("<q", struct.pack("<Q", siphash(key, bytes(range(n)))))[0] for n in range(1, 70)]
    assert [str(-2 if number == -1 else number) for number in signed] == done.stdout.split()
    assert [siphash(key, bytes(range(n)), 1, 3) for n in range(70)] == [
        siphash(key, bytes(range(n))) for n in range(70)
    ]


# Writing and reading


def test_everything_is_read_back() -> None:
    index = Index(everything())
    index.verify()
    assert (index.kind, index.layer_count, index.hash_key, len(index)) == (ix.LAYER, 1, KEY, 13)
    assert [r.path for r in index] == [
        *(b"", b"bin", b"dev", b"empty", b"\xff\xfe"),
        *(b"bin/dash", b"bin/sh", b"dev/disk", b"dev/fifo", b"dev/gone", b"dev/linked", b"dev/null", b"dev/older"),
    ]
    root = index.record(0)
    assert root == (b"", b"", 0, 0o40700, 1, 2, 0, 3, None, 1, 4, 0, {}, 0, 0, None, None)
    dash = index[index.lookup(b"bin/dash")]
    assert dash.uid == 4_000_000_000
    assert dash.xattrs == {b"user.a": b"", b"user.b": b"\0\xff"}
    assert index.content(dash.content) == CONTENTS[1]
    assert (dash.name, dash.parent, dash.size, dash.mode) == (b"dash", 1, 2**40, 0o104755)
    sh = index[index.lookup(b"bin/sh")]
    assert (sh.target, sh.size, sh.mtime_ns, sh.content) == (b"dash", 4, -1, None)
    one, two = index[index.lookup(b"\xff\xfe")], index[index.lookup(b"dev/linked")]
    assert (one.inode, two.inode, one.count, two.count) == (4, 4, 2, 2)
    assert one.mtime_ns == two.mtime_ns == 1_700_000_000_123_456_789
    assert index[index.lookup(b"dev/disk")].rdev == (259, 1_000_000)
    assert index[index.lookup(b"dev/older")].target == b"opt/file"
    assert [index[index.lookup(p)].flags for p in (b"bin", b"dev", b"dev/gone", b"dev/older")] == [
        *(ix.IMPLIED, ix.OPAQUE, ix.WHITEOUT, ix.LOWER_LINK)
    ]
    assert index.children(0) == range(1, 5)
    assert len(index.children(3)) == 0
    assert bytes(index.contents_bytes()) == b"".join(struct.pack("<32sQ", *content) for content in CONTENTS)
    for number in (-1, 13, 2**32):
        with pytest.raises(IndexError):
            index.record(number)
        with pytest.raises(IndexError):
            index.children(number)
        with pytest.raises(IndexError):
            index.content(number)


def test_the_golden_index() -> None:
    assert everything() == GOLDEN.read_bytes(), "the format changed: its version, its page and this file go together"


def test_equal_xattrs_are_stored_once() -> None:
    xattrs = {b"security.capability": bytes(1000)}
    nodes = [ROOT, *(Node(0, b"%03d" % i, F, xattrs=xattrs) for i in range(200))]
    nodes += [Node(0, b"x%03d" % i, F, xattrs={b"user.n": b"%d" % (i % 70)}) for i in range(200)]
    index = Index(write_index(ix.LAYER, 1, KEY, nodes))
    index.verify()
    assert [r.xattrs for r in index][1:] == [node.xattrs for node in nodes[1:]]
    blocks = {encode_xattrs(node.xattrs) for node in nodes}
    heap = 1 + sum(6 + len(r.path) for r in index) + sum(map(len, blocks))
    assert index.nbytes == 128 + 64 * len(index) + 8 * 1024 + heap


names = st.binary(min_size=1, max_size=6).filter(lambda n: n not in (b".", b"..") and not {0, 0x2F} & set(n))


@st.composite
def trees(draw) -> list[Node]:
    nodes, directories, taken = [ROOT], [0], set()
    for name in draw(st.lists(names, max_size=40)):
        parent = draw(st.sampled_from(directories))
        if (parent, name) in taken:
            continue
        taken.add((parent, name))
        if draw(st.booleans()):
            directories.append(len(nodes))
        nodes.append(Node(parent, name, D if directories[-1] == len(nodes) else F, gid=len(nodes)))
    return nodes


def path_of(nodes: list[Node], number: int) -> bytes:
    parts = []
    while number:
        parts.append(nodes[number].name)
        number = nodes[number].parent
    return b"/".join(reversed(parts))


@settings(max_examples=200, deadline=None)
@given(trees(), st.randoms(use_true_random=False), st.lists(st.binary(max_size=8), max_size=40))
def test_any_tree_is_found_again(nodes: list[Node], shuffle: random.Random, strangers: list[bytes]) -> None:
    data = write_index(ix.LAYER, 1, KEY, nodes)
    index = Index(data)
    index.verify()
    expected = {path_of(nodes, i): node.gid for i, node in enumerate(nodes)}
    order = sorted(expected, key=lambda path: (path.count(b"/") + bool(path), path.split(b"/")))
    assert [r.path for r in index] == order
    assert {r.path: r.gid for r in index} == expected
    for i, path in enumerate(order):
        assert index.lookup(path) == i
        below = [j for j, other in enumerate(order) if j and other.rpartition(b"/")[0] == path]
        assert list(index.children(i)) == below
    asked = order + strangers
    answers = [order.index(path) if path in expected else None for path in asked]
    assert index.lookup_many(asked) == answers
    assert [index.lookup(path) for path in strangers] == answers[len(order) :]

    numbers = list(range(1, len(nodes)))
    shuffle.shuffle(numbers)
    moved = {0: 0} | {number: i + 1 for i, number in enumerate(numbers)}
    shuffled = [ROOT, *(nodes[n]._replace(parent=moved[nodes[n].parent]) for n in numbers)]
    assert write_index(ix.LAYER, 1, KEY, shuffled) == data, "the order of nodes shows"


def test_a_large_index_is_found_again() -> None:
    nodes = [ROOT, *(Node(0, b"d%d" % i, D) for i in range(100))]
    nodes += [Node(1 + i % 100, b"f%d" % i, F) for i in range(20_000)]
    index = Index(write_index(ix.LAYER, 1, KEY, nodes))
    index.verify()
    paths = [r.path for r in index]
    assert index.lookup_many(paths) == list(range(len(paths)))
    assert set(index.lookup_many([path + b"x" for path in paths[1:]])) == {None}


@pytest.mark.parametrize(
    ("error", "message", "nodes"),
    [
        (InvalidInput, "is there twice", [ROOT, Node(0, b"b", F), Node(0, b"a", F), Node(0, b"a", F)]),
        (InvalidInput, "is there twice", [ROOT, Node(0, b"a", F), Node(0, b"a", F)]),
        (InvalidInput, "cannot stand in a directory", [ROOT, Node(0, b"", F)]),
        (InvalidInput, "cannot stand in a directory", [ROOT, Node(0, b".", F)]),
        (InvalidInput, "cannot stand in a directory", [ROOT, Node(0, b"..", F)]),
        (InvalidInput, r'"a/b" has a \'/\' or NUL', [ROOT, Node(0, b"a/b", F)]),
        (InvalidInput, r'"a\\x00" has a \'/\' or NUL', [ROOT, Node(0, b"a\0", F)]),
        (InvalidInput, "node 0 must be the root", []),
        (InvalidInput, "node 0 must be the root", [Node(0, b"", F)]),
        (InvalidInput, "node 0 must be the root", [Node(None, b"", D)]),
        (InvalidInput, "parent that is not there", [ROOT, Node(2, b"a", F)]),
        (InvalidInput, "cannot be reached", [ROOT, Node(2, b"a", D), Node(1, b"b", D)]),
        (InvalidInput, "cannot be reached", [ROOT, Node(None, b"a", D), Node(1, b"b", D)]),
        (InvalidInput, "has children but is not a directory", [ROOT, Node(0, b"a", F), Node(1, b"b", F)]),
        (InvalidInput, "hard link to a directory", [ROOT, Node(0, b"a", D), Node(0, b"b", F, inode=1)]),
        (InvalidInput, "inode that is not there", [ROOT, Node(0, b"a", F, inode=9)]),
        (
            InvalidInput,
            "inode that is not there",
            [ROOT, Node(0, b"a", F), Node(0, b"b", F, inode=3), Node(0, b"c", F, inode=1)],
        ),
        (InvalidInput, "of a layer that is not there", [ROOT, Node(0, b"a", F, layer=1)]),
        (InvalidInput, "is empty with a content", [ROOT, Node(0, b"a", F, content=1)]),
        (InvalidInput, "no type", [ROOT, Node(0, b"a", 0)]),
        (InvalidInput, "no type", [ROOT, Node(0, b"a", 0o150000)]),
        (InvalidInput, "flags", [ROOT, Node(0, b"a", F, flags=ix.OPAQUE)]),
        (InvalidInput, "flags", [ROOT, Node(0, b"a", F, flags=ix.WHITEOUT)]),
        (InvalidInput, "flags", [ROOT, Node(0, b"a", D, flags=64)]),
        (LimitExceeded, "more than 4,096 bytes", [ROOT, Node(0, b"a" * 4097, F)]),
        (LimitExceeded, "more than 4,096 bytes", [ROOT, Node(0, b"a" * 2048, D), Node(1, b"b" * 2048, F)]),
        (LimitExceeded, "more than 4,096 bytes", [ROOT, Node(0, b"a", stat.S_IFLNK, target=bytes(4097))]),
    ],
)
def test_what_cannot_be_written(error: type[Exception], message: str, nodes: list[Node]) -> None:
    with pytest.raises(error, match=message):
        write_index(ix.LAYER, 1, KEY, nodes, [(bytes(32), 1)])


def test_a_path_of_4096_bytes_can_be_written() -> None:
    index = Index(write_index(ix.LAYER, 1, KEY, [ROOT, Node(0, b"a" * 2048, D), Node(1, b"b" * 2047, F)]))
    index.verify()
    assert index.lookup(b"a" * 2048 + b"/" + b"b" * 2047) == 2


@pytest.mark.parametrize(("kind", "layer_count"), [(ix.LAYER, 2), (ix.LAYER, 0), (ix.CHAIN, 0), (3, 1)])
def test_kinds_and_layer_counts_that_cannot_be_written(kind: int, layer_count: int) -> None:
    with pytest.raises(InvalidInput, match="layers"):
        write_index(kind, layer_count, KEY, [ROOT])


def test_a_chain_has_no_marks_and_no_empty_content() -> None:
    for node in (Node(0, b"a", 0, flags=ix.WHITEOUT), Node(0, b"a", D, flags=ix.OPAQUE)):
        with pytest.raises(InvalidInput, match="flags"):
            write_index(ix.CHAIN, 1, KEY, [ROOT, node])
    with pytest.raises(InvalidInput, match="content 0 is empty"):
        write_index(ix.CHAIN, 1, KEY, [ROOT], [(bytes(32), 0)])


def test_any_buffer_can_be_opened(tmp_path: Path) -> None:
    data = everything()
    file = tmp_path / "index"
    file.write_bytes(data)
    with file.open("rb") as opened:
        mapped = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ)
    for buffer in (mapped, bytearray(data), memoryview(b"x" + data)[1:], memoryview(data)):
        index = Index(buffer)
        index.verify()
        assert index.lookup(b"bin/sh") == 6


def test_an_index_keeps_its_mapping_alive() -> None:
    mapped = mmap.mmap(-1, len(everything()))
    mapped[:] = everything()
    index = Index(mapped)
    contents = index.contents_bytes()
    with pytest.raises(BufferError):
        mapped.close()
    del index
    with pytest.raises(BufferError):
        mapped.close()
    del contents
    mapped.close()


# The format, read from its page alone


def read_string(data: bytes, heap: int, offset: int, length: int) -> bytes:
    return data[heap + offset : heap + offset + length]


def read_xattrs(data: bytes, at: int) -> dict[bytes, bytes]:
    xattrs = {}
    (count,) = struct.unpack_from("<H", data, at)
    at += 2
    for _ in range(count):
        name_length, value_length = struct.unpack_from("<HI", data, at)
        name = data[at + 6 : at + 6 + name_length]
        xattrs[name] = data[at + 6 + name_length : at + 6 + name_length + value_length]
        at += 6 + name_length + value_length
    assert list(xattrs) == sorted(xattrs)
    return xattrs


def test_the_golden_index_is_what_its_page_says() -> None:
    data = GOLDEN.read_bytes()
    magic, version, kind, records, contents, slots, layers, heap_bytes = struct.unpack_from("<8s6IQ", data)
    assert (magic, version, kind, layers) == (b"LSINDEX\n", 1, ix.LAYER, 1)
    assert data[40:56] == KEY
    assert data[56:88] == bytes(32)
    assert data[88:120] == blake3(data[128:]).digest()
    assert data[120:128] == blake3(data[:120]).digest()[:8]
    slots_at = 128 + 64 * records
    contents_at = slots_at + 8 * slots
    heap = contents_at + 40 * contents
    assert len(data) == heap + heap_bytes
    assert slots == 32
    assert data[heap] == 0
    index = Index(data)
    for number in range(records):
        fields = struct.unpack_from("<IHH4IQq5I2H", data, 128 + 64 * number)
        path, path_length, name_start, parent, mode, uid, gid, size, seconds, nanoseconds, field, *rest = fields
        count, inode, xattrs, flags, layer = rest
        record = index.record(number)
        path_bytes = read_string(data, heap, path, path_length)
        assert (path_bytes, path_bytes[name_start:]) == (record.path, record.name)
        assert (parent, mode, uid, gid, size, count) == (*record[2:7], record.count)
        assert seconds * 10**9 + nanoseconds == record.mtime_ns
        assert (inode, flags, layer) == (record.inode, record.flags, record.layer)
        assert (read_xattrs(data, heap + xattrs) if xattrs else {}) == record.xattrs
        if stat.S_ISREG(mode):
            assert field == (NONE if record.content is None else record.content)
        elif record.target is not None:
            assert read_string(data, heap, field, size) == record.target
        else:
            assert field == (record.first_child if stat.S_ISDIR(mode) and count else NONE)
        at = siphash(KEY, path_bytes)
        for position in range(at, at + slots):
            tag, head = struct.unpack_from("<II", data, slots_at + 8 * (position % slots))
            assert head != NONE
            if head + 6 == path:
                break
        assert struct.unpack_from("<IH", data, heap + head) == (number, path_length)
        assert tag == at >> 32
    assert data[contents_at:heap] == b"".join(struct.pack("<32sQ", *content) for content in CONTENTS)


def test_encoded_xattrs() -> None:
    assert encode_xattrs({}) == b""
    assert encode_xattrs({b"b": b"12", b"a": b""}) == b"\2\0" + b"\1\0\0\0\0\0a" + b"\1\0\2\0\0\0b12"


# Damage


def exercise(index: Index) -> None:
    """Reach for everything in an index; CorruptError is an answer."""
    other = Index(write_index(ix.LAYER, 1, KEY, [ROOT, Node(0, b"bin", D), Node(1, b"x", F)]))
    paths = [b"", b"bin/sh", b"dev/null", b"absent", b"\xff\xfe"]
    calls = [lambda: index.lookup_many(paths), lambda: [index.content(i) for i in range(index.content_count)]]
    calls += [lambda path=path: index.lookup(path) for path in paths]
    calls += [lambda i=i: index.record(i) for i in range(len(index))]
    calls += [lambda i=i: index.children(i) for i in range(len(index))]
    calls += [lambda: merge([index, other], KEY), lambda: merge([other, index], KEY)]
    for call in calls:
        try:
            call()
        except LayerstoreError:
            continue


def flips(data: bytes, start: int = 0):
    for at in range(start, len(data)):
        for bit in range(8):
            yield data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]


def test_every_flipped_bit_of_the_header_is_refused() -> None:
    for damaged in flips(everything()[:128]):
        with pytest.raises(CorruptError):
            Index(damaged + everything()[128:])


def test_every_flipped_bit_of_the_body_is_found_and_harmless() -> None:
    for damaged in flips(everything(), 128):
        index = Index(damaged)
        with pytest.raises(CorruptError, match="digest differs"):
            index.verify()
        exercise(index)


def test_every_truncation_is_refused() -> None:
    data = everything()
    for length in range(len(data)):
        with pytest.raises(CorruptError):
            Index(data[:length])
    with pytest.raises(CorruptError):
        Index(data + b"\0")


def check_sound(index: Index) -> None:
    """What passes verify can be read as a whole and merged."""
    for record in index:
        assert index.record(index.lookup(record.path)) == record
    root = Index(write_index(ix.LAYER, 1, KEY, [ROOT, Node(0, b"opt", D), Node(1, b"file", F)]))
    try:
        merged = merge([root, index], KEY)
    except InvalidInput as error:
        assert "is a hard link to" in str(error)
    else:
        Index(merged).verify()


def test_flipped_bits_under_a_right_digest() -> None:
    """Damage that no digest shows, as a forger would make it, is found by structure or makes another sound index."""
    data = everything()
    found = 0
    for damaged in flips(data, 128):
        index = Index(reseal(damaged))
        exercise(index)
        try:
            index.verify()
        except CorruptError:
            found += 1
        else:
            check_sound(index)
    assert found > 0.6 * 8 * (len(data) - 128)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_wild_fields_under_a_right_digest(data: st.DataObject) -> None:
    damaged = bytearray(everything())
    for _ in range(data.draw(st.integers(1, 3))):
        at = 128 + 4 * data.draw(st.integers(0, (13 * 64 + 32 * 8) // 4 - 1))
        struct.pack_into("<I", damaged, at, data.draw(st.sampled_from([0, 1, 2, 5, 12, 13, 255, 65535, 1 << 31, NONE])))
    index = Index(reseal(bytes(damaged)))
    exercise(index)
    try:
        index.verify()
    except CorruptError:
        return
    check_sound(index)


def header_with(**fields: int) -> bytes:
    places = {"version": 8, "kind": 12, "records": 16, "contents": 20, "slots": 24, "layers": 28, "reserved": 56}
    data = bytearray(everything())
    for name, value in fields.items():
        struct.pack_into("<I", data, places[name], value)
    return reseal(bytes(data))


@pytest.mark.parametrize(
    "fields",
    [
        *({"kind": 0}, {"kind": 3}, {"layers": 0}, {"layers": 2}, {"kind": 2, "layers": 65537}, {"reserved": 1}),
        *({"records": 0}, {"records": NONE}, {"records": 2**30 + 1}, {"records": 12}, {"records": 22}),
        *({"slots": 0}, {"slots": 31}, {"slots": 64}, {"slots": 16}, {"contents": 4}, {"contents": NONE}),
    ],
    ids=str,
)
def test_impossible_headers_under_a_right_digest(fields: dict[str, int]) -> None:
    with pytest.raises(CorruptError):
        Index(header_with(**fields))


def test_a_newer_version_is_told_from_damage() -> None:
    with pytest.raises(Unsupported, match="version 2: this layerstore reads version 1"):
        Index(header_with(version=2))


def test_a_table_without_a_free_slot_ends() -> None:
    data = bytearray(everything())
    for slot in range(32):
        struct.pack_into("<II", data, 128 + 13 * 64 + 8 * slot, 1, 1)
    index = Index(reseal(bytes(data)))
    with pytest.raises(CorruptError, match="no free slot"):
        index.lookup(b"absent")
    with pytest.raises(CorruptError, match="no free slot"):
        index.lookup_many([b"absent"] * 100)


def small() -> bytes:
    nodes = [ROOT, Node(0, b"a", D), Node(0, b"b", D), Node(1, b"x", F, content=0), Node(1, b"y", F), Node(2, b"z", F)]
    return bytes(write_index(ix.LAYER, 1, KEY, nodes, [(bytes(32), 1)]))


def forge(data: bytes, record: int, offset: int, field: bytes) -> Index:
    """The index with one field of a record overwritten, and its digests with it."""
    at = 128 + 64 * record + offset
    return Index(reseal(data[:at] + field + data[at + len(field) :]))


@pytest.mark.parametrize(
    ("record", "offset", "field", "message"),
    [
        (2, 44, struct.pack("<I", 3), "record 3 of layer 0 is not a child of the directory that lists it"),
        (1, 44, struct.pack("<I", 1), "record 1 has children 1"),
        (1, 48, struct.pack("<I", 6), "record 1 has children 3"),
        (3, 4, struct.pack("<HH", 1, 2), "a name begins at 2 of a path of 1 bytes"),
        (3, 4, struct.pack("<HH", 1, 1), "cannot stand in a directory"),
        (5, 4, struct.pack("<HH", 3, 0), "has a '/' or NUL in its name"),
        (4, 0, struct.pack("<I", NONE), "3 bytes at 4294967295"),
        (3, 52, struct.pack("<I", 9), "inode that is not there"),
        (3, 44, struct.pack("<I", 1), "content that is not there"),
        (3, 24, struct.pack("<Q", 2), "content that is not there or of another size"),
        (3, 12, struct.pack("<I", 0o150644), "no type"),
        (3, 40, struct.pack("<I", 10**9), "nanoseconds"),
        (3, 62, struct.pack("<H", 1), "of a layer that is not there"),
        (0, 12, struct.pack("<I", F), "is not a root directory"),
    ],
)
def test_merging_a_forged_layer(record: int, offset: int, field: bytes, message: str) -> None:
    with pytest.raises(CorruptError, match=message):
        merge([forge(small(), record, offset, field)], KEY)


def test_verify_wants_modes_of_16_bits() -> None:
    """What is above them is no part of a mode, and whoever shows one would show something else than another."""
    with pytest.raises(CorruptError, match="record 4 has no type"):
        forge(small(), 4, 12, struct.pack("<I", 1 << 16 | stat.S_IFREG)).verify()


def test_verify_counts_links() -> None:
    with pytest.raises(CorruptError, match="record 4 has another number of links"):
        forge(small(), 4, 48, struct.pack("<I", 2)).verify()


def test_verify_wants_names_in_order() -> None:
    data = bytearray(small())
    x, y = 128 + 64 * 3, 128 + 64 * 4
    data[x : x + 8], data[y : y + 8] = data[y : y + 8], data[x : x + 8]
    heap = len(data) - struct.unpack_from("<Q", data, 32)[0]
    for number, record in ((3, x), (4, y)):
        struct.pack_into("<I", data, heap + struct.unpack_from("<I", data, record)[0] - 6, number)
    with pytest.raises(CorruptError, match="record 4 does not follow the one before it by name"):
        Index(reseal(bytes(data))).verify()


def test_a_tag_alone_is_no_match() -> None:
    """The tag of a path that is not there, put by a forger on the slot of a shorter one that it begins with."""
    data = bytearray(small())
    path = b"a" + b"/x" * 2000
    hash_of_path = siphash(KEY, path)
    slots = struct.unpack_from("<I", data, 24)[0]
    heap = len(data) - struct.unpack_from("<Q", data, 32)[0]
    head = struct.unpack_from("<I", data, 128 + 64)[0] - 6
    assert data[heap + head + 6 : heap + head + 7] == b"a"
    struct.pack_into("<II", data, 128 + 64 * 6 + 8 * (hash_of_path % slots), hash_of_path >> 32, head)
    index = Index(reseal(bytes(data)))
    assert index.lookup(path) is None
    assert index.lookup_many([path]) == [None]


def test_a_path_of_a_record_that_is_not_there() -> None:
    data = bytearray(small())
    heap = len(data) - struct.unpack_from("<Q", data, 32)[0]
    struct.pack_into("<I", data, heap + struct.unpack_from("<I", data, 128 + 64 * 3)[0] - 6, 6)
    index = Index(reseal(bytes(data)))
    for look in (lambda: index.lookup(b"a/x"), lambda: index.lookup_many([b"a/x"]), index.verify):
        with pytest.raises(CorruptError, match="record 6 of 6"):
            look()
