"""The log of a writable layer: what is written is read back and is what docs/format/log.md says; damage ends it."""

import os
import random
import stat
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore._core import log
from layerstore._core.extent_io import LogWriter
from layerstore._core.extents import IMAGE, ZERO, ExtentMap, source
from layerstore._core.log import Header, LogReader, Record
from layerstore.errors import CorruptError, InvalidInput, Unsupported

GOLDEN = Path(__file__).parent / "data" / "log-v1.bin"
ID = bytes(range(1, 17))
BASE = bytes(range(17, 33))
CHAIN = bytes(range(100, 132))
NEW = log.FIRST_NEW_INODE
RECORD = struct.Struct("<IIIBBHQQQqIIII")

EXTENTS = struct.pack("<9Q", 0, 4096, IMAGE, 4096, 10, ZERO, 5000, 7, source(1, 192))
# One of everything, in operations.
OPERATIONS = [
    [Record(log.SOURCE_LOG, value=1, payload=BASE)],
    [Record(log.EXTENTS, 7, payload=EXTENTS)],
    [
        Record(log.CREATE, NEW, mode=stat.S_IFREG | 0o644, uid=4_000_000_000, gid=2, mtime_ns=-1),
        Record(log.ENTRY, 0, value=NEW, mtime_ns=1_700_000_000_123_456_789, payload=b"\xff name"),
    ],
    [
        Record(log.CREATE, NEW + 1, mode=stat.S_IFLNK | 0o777, mtime_ns=5, payload=b"../target"),
        Record(log.CREATE, NEW + 2, mode=stat.S_IFBLK | 0o660, value=os.makedev(259, 1_000_000), mtime_ns=6),
        Record(log.REMOVE, 3, mtime_ns=7, payload=b"gone"),
        Record(log.ENTRY, 4, value=NEW + 1, mtime_ns=7, payload=b"x" * 255),
    ],
    [Record(log.ATTRIBUTES, 9, value=log.SET_MODE | log.SET_UID | log.SET_GID | log.SET_MTIME, mode=0o4755, uid=1)],
    [Record(log.XATTR, 9, name=b"user.a", payload=b"\0value")],
    [Record(log.XATTR, 9, name=b"user.empty")],
    [Record(log.XATTR_REMOVE, 9, name=b"user.a")],
    [Record(log.TRUNCATE, 7, value=2**63 - 1, mtime_ns=8)],
    [Record(log.PUNCH, 7, offset=1, value=2**62, mtime_ns=9)],
]


# A writer and a reader of the format from its page, without layerstore


def xxh32(data: bytes, seed: int) -> int:
    """From the xxHash specification."""
    primes = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D, 0x27D4EB2F, 0x165667B1
    mask = 0xFFFFFFFF

    def rotate(value: int, bits: int) -> int:
        value &= mask
        return (value << bits | value >> (32 - bits)) & mask

    lanes = [seed + primes[0] + primes[1], seed + primes[1], seed, seed - primes[0]]
    full = len(data) // 16 * 16
    for at in range(0, full, 16):
        words = struct.unpack_from("<4I", data, at)
        lanes = [rotate(lane + word * primes[1], 13) * primes[0] for lane, word in zip(lanes, words, strict=True)]
    value = sum(map(rotate, lanes, (1, 7, 12, 18))) if full else seed + primes[4]
    value += len(data)
    rest = data[full:]
    for at in range(0, len(rest) // 4 * 4, 4):
        value = rotate(value + struct.unpack_from("<I", rest, at)[0] * primes[2], 17) * primes[3]
    for byte in rest[len(rest) // 4 * 4 :]:
        value = rotate(value + byte * primes[4], 11) * primes[0]
    value &= mask
    value = (value ^ value >> 15) * primes[1] & mask
    value = (value ^ value >> 13) * primes[2] & mask
    return value ^ value >> 16


def seed_of(position: int) -> int:
    return (int.from_bytes(ID[:4], "little") + position // 8) % 2**32


def sealed(position: int, payload: bytes, type: int, flags: int = 0, name_length: int = 0, *fields: int) -> bytes:
    """A record with right checksums, whatever is in it."""
    fields += (0,) * (8 - len(fields))
    body = RECORD.pack(0, xxh32(payload, seed_of(position)), len(payload), type, flags, name_length, *fields)[4:]
    record = struct.pack("<I", xxh32(body, seed_of(position))) + body + payload
    return record + bytes(-len(record) % 8)


def header(**changes: bytes) -> bytes:
    fields = {"magic": b"LSLOG\n\0\0", "version": b"\1\0\0\0", "reserved": bytes(4), "id": ID, "base_id": BASE}
    fields |= {"base_length": struct.pack("<Q", 1000), "chain_id": CHAIN, "more": bytes(36)}
    body = b"".join((fields | changes).values())
    return body + struct.pack("<I", xxh32(body, 0))


def read_by_the_page(data: bytes) -> Iterator[tuple[Record, bool, int]]:
    assert data[:12] == b"LSLOG\n\0\0\1\0\0\0"
    assert struct.unpack_from("<I", data, 124)[0] == xxh32(data[:124], 0)
    position = 128
    while position < len(data):
        fields = RECORD.unpack_from(data, position)
        header_checksum, payload_checksum, length, type, flags, name_length, inode, offset, value, *rest = fields
        seconds, nanoseconds, mode, uid, gid = rest
        payload = data[position + 64 : position + 64 + length]
        assert header_checksum == xxh32(data[position + 4 : position + 64], seed_of(position))
        assert payload_checksum == xxh32(payload, seed_of(position))
        name, payload = payload[:name_length], payload[name_length:]
        mtime_ns = seconds * 10**9 + nanoseconds
        yield (
            Record(type, inode, offset, value, mode, uid, gid, mtime_ns, name, payload),
            bool(flags & 1),
            position + 64,
        )
        position += 64 + length + -length % 8
    assert position == len(data)


# Writing


class File:
    """A log in a file, and its writer."""

    def __init__(self, path: Path, header: bytes = b"") -> None:
        self.path = path
        path.write_bytes(header or Header(ID, CHAIN, BASE, 1000).pack())
        self.file = path.open("r+b", buffering=0)
        self.writer = LogWriter(self.file.fileno(), path.stat().st_size, ID, 0)

    def __enter__(self) -> "File":
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()


def everything(path: Path) -> bytes:
    with File(path) as file:
        for operation in OPERATIONS:
            file.writer.append(operation)
        file.writer.write(ExtentMap(), 7, 2**40, b"data of a file", 10)
        file.writer.sync()
        file.writer.write(ExtentMap(), NEW, 0, bytes(range(256)), -1)
        file.writer.flush()
    return path.read_bytes()


def all_records() -> list[Record]:
    data = [(7, 2**40, b"data of a file", 10), (NEW, 0, bytes(range(256)), -1)]
    written = [Record(log.WRITE, inode, at, mtime_ns=mtime, payload=payload) for inode, at, payload, mtime in data]
    return [record for operation in OPERATIONS for record in operation] + written


def test_the_golden_log(tmp_path: Path) -> None:
    assert everything(tmp_path / "log") == GOLDEN.read_bytes(), "the format changed: version, page and this file too"


def test_the_golden_log_is_what_its_page_says() -> None:
    data = GOLDEN.read_bytes()
    assert data[:128] == header()
    found = list(read_by_the_page(data))
    assert [record for record, _, _ in found] == all_records()
    more = [index + 1 < len(operation) for operation in OPERATIONS for index in range(len(operation))]
    assert [is_more for _, is_more, _ in found] == [*more, False, False]
    assert [position for _, _, position in found if data[position - 64 + 13] & 2] == [found[-1][2]]


def test_reading_gives_what_was_written() -> None:
    data = GOLDEN.read_bytes()
    reader = LogReader(data)
    assert (reader.header.id, reader.header.base_id, reader.header.base_length) == (ID, BASE, 1000)
    assert reader.header.chain_id == CHAIN
    assert (reader.end, reader.reason) == (len(data), "")
    for record, (expected, more, position) in zip(reader, read_by_the_page(data), strict=True):
        assert (record.payload_position, record.more) == (position, more)
        assert record.payload_length == len(expected.name) + len(expected.payload)
        if record.type == log.WRITE:
            assert record.payload == b""
            assert data[position : position + record.payload_length] == expected.payload
            assert (record.inode, record.offset) == (expected.inode, expected.offset)
            assert record.mtime_ns == expected.mtime_ns
        else:
            assert record == expected
            assert repr(record) == repr(expected)


def test_an_operation_of_nothing_writes_what_was_gathered(tmp_path: Path) -> None:
    with File(tmp_path / "log") as file:
        file.writer.write(ExtentMap(), 1, 0, b"x", 0)
        assert (file.writer.length, file.writer.end) == (128, 128 + 72)
        assert file.writer.append([]) == 128 + 72
        assert file.writer.sync() == file.path.stat().st_size


# Damage


def types_of(reader: LogReader) -> list[int]:
    return [record.type for record in reader]


def test_a_log_cut_off_anywhere_counts_up_to_its_last_whole_operation() -> None:
    data = GOLDEN.read_bytes()
    whole = [record.type for record, _, _ in read_by_the_page(data)]
    ends, count = {128: 0}, 0
    for number, (record, more, position) in enumerate(read_by_the_page(data), 1):
        length = len(record.name) + len(record.payload)
        if not more:
            ends[position + length + -length % 8] = number
    for cut in range(128, len(data) + 1):
        count = max(count, ends.get(cut, 0))
        reader = LogReader(data[:cut])
        assert types_of(reader) == whole[:count]
        assert reader.end == max(end for end in ends if end <= cut)
        assert (reader.reason == "") == (reader.end == cut)


def test_a_log_ends_at_a_bit_that_changed() -> None:
    """Where no record behind it says that it was synced."""
    data = GOLDEN.read_bytes()
    *_, (_, _, last) = read_by_the_page(data)
    data = data[: last - 64]
    positions = [position - 64 for _, _, position in read_by_the_page(data)]
    padding = {p for r, _, at in read_by_the_page(data) for n in [at + r_length(r)] for p in range(n, n + -n % 8)}
    whole = list(LogReader(data))
    for at in range(128, len(data)):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        reader = LogReader(bytes(changed))
        found = list(reader)
        if at in padding:
            assert found == whole
        else:
            begun = max(position for position in positions if position <= at)
            assert reader.end <= begun
            assert f"byte {begun}" in reader.reason
            assert found == whole[: len(found)]
            assert reader.later == next((position for position in positions if position > begun), 0)


def test_a_log_is_damaged_where_a_bit_changed_that_was_synced() -> None:
    data = GOLDEN.read_bytes()
    found = list(read_by_the_page(data))
    *_, (_, _, last) = found
    for record, _, position in found[:-1]:
        for at in {position - 64, position - 1, position + r_length(record) - 1}:
            changed = bytearray(data)
            changed[at] ^= 1 << at % 8
            with pytest.raises(CorruptError, match=f"damaged.*record.*at byte {position - 64}"):
                LogReader(bytes(changed))
    torn = data[:-1] + bytes([data[-1] ^ 1])
    assert (LogReader(torn).end, LogReader(torn).later) == (last - 64, 0)


def test_a_record_says_what_was_synced_where_nothing_was_appended_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fdatasync = os.fdatasync

    def flags() -> list[int]:
        file.writer.flush()
        data = file.path.read_bytes()
        return [data[position - 64 + 13] for _, _, position in read_by_the_page(data)]

    def write_and_sync(fd: int) -> None:
        file.writer.write(extents, 1, 0, b"meanwhile", 0)
        fdatasync(fd)

    extents = ExtentMap()
    with File(tmp_path / "log") as file:
        file.writer.sync()
        file.writer.append(OPERATIONS[2])
        file.writer.sync()
        file.writer.sync()
        file.writer.write(extents, 1, 0, bytes(1 << 18), 0)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", write_and_sync)
            file.writer.sync()
        file.writer.write(extents, 1, 0, b"x", 0)
        assert flags() == [3, 0, 2, 0, 0]


def r_length(record: Record) -> int:
    return len(record.name) + len(record.payload)


@pytest.mark.parametrize("at", range(128))
def test_a_damaged_header_is_an_error(at: int) -> None:
    data = bytearray(GOLDEN.read_bytes())
    data[at] ^= 4
    with pytest.raises(CorruptError):
        LogReader(bytes(data))


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": b"\2\0\0\0"}, Unsupported),
        ({"reserved": b"\1\0\0\0"}, CorruptError),
        ({"more": bytes(35) + b"\1"}, CorruptError),
        ({"id": bytes(16)}, CorruptError),
        ({"base_id": bytes(16)}, CorruptError),
        ({"base_length": bytes(8)}, CorruptError),
    ],
)
def test_a_header_that_makes_no_sense(changes: dict[str, bytes], error: type[Exception]) -> None:
    with pytest.raises(error):
        LogReader(header(**changes))


def test_a_record_is_of_its_log_and_its_place() -> None:
    data = GOLDEN.read_bytes()
    first = LogReader(data)
    next(first)
    length = next(first).payload_position - 64 - 128
    assert LogReader(data[:128] + data[128 : 128 + length] * 2).end == 128 + length
    other = header(id=bytes(range(2, 18)))
    assert LogReader(other + data[128:]).end == 128


def test_data_that_is_known_to_be_whole_is_not_read() -> None:
    data = bytearray(GOLDEN.read_bytes())
    *_, (_, _, position) = read_by_the_page(bytes(data))
    data[position] ^= 1
    assert LogReader(data).end == position - 64
    assert LogReader(data, checked=len(data) - 1).end == position - 64
    assert LogReader(data, checked=len(data)).end == len(data)
    data[position - 1] ^= 1
    assert LogReader(data, checked=len(data)).end == position - 64


def test_a_log_that_changes_while_it_is_read() -> None:
    data = bytearray(GOLDEN.read_bytes())
    reader = LogReader(data)
    data[128 + 8 : 128 + 12] = b"\xff\xff\xff\x03"
    with pytest.raises(CorruptError, match="changed at byte 128"):
        next(reader)


# Records that make no sense

DIRECTORY = stat.S_IFDIR | 0o755
NONSENSE = {
    "no type": (b"", 0),
    "an unknown type": (b"", 12),
    "an unknown flag": (b"x", log.REMOVE, 4),
    "a write of nothing": (b"", log.WRITE, 0, 0, 1, 0),
    "a write that passes the largest size": (b"xx", log.WRITE, 0, 0, 1, 2**63 - 2),
    "a write with a value": (b"xx", log.WRITE, 0, 0, 1, 0, 2),
    "a punch of nothing": (b"", log.PUNCH, 0, 0, 1, 0, 0),
    "a punch that passes the largest size": (b"", log.PUNCH, 0, 0, 1, 1, 2**63 - 1),
    "a truncate that passes the largest size": (b"", log.TRUNCATE, 0, 0, 1, 0, 2**63),
    "a new inode with an old number": (b"", log.CREATE, 0, 0, NEW - 1, 0, 0, 0, 0, DIRECTORY),
    "a new inode without a type": (b"", log.CREATE, 0, 0, NEW, 0, 0, 0, 0, 0o644),
    "a new inode with more than a mode": (b"", log.CREATE, 0, 0, NEW, 0, 0, 0, 0, DIRECTORY | 1 << 16),
    "a directory with a target": (b"x", log.CREATE, 0, 0, NEW, 0, 0, 0, 0, DIRECTORY),
    "a directory with a device": (b"", log.CREATE, 0, 0, NEW, 0, 1, 0, 0, DIRECTORY),
    "a symlink to nothing": (b"", log.CREATE, 0, 0, NEW, 0, 0, 0, 0, stat.S_IFLNK | 0o777),
    "a symlink to a NUL": (b"a\0", log.CREATE, 0, 0, NEW, 0, 0, 0, 0, stat.S_IFLNK | 0o777),
    "a symlink too long": (b"a" * 4096, log.CREATE, 0, 0, NEW, 0, 0, 0, 0, stat.S_IFLNK | 0o777),
    "no attributes": (b"", log.ATTRIBUTES, 0, 0, 1, 0, 0),
    "unknown attributes": (b"", log.ATTRIBUTES, 0, 0, 1, 0, 16),
    "a type among the attributes": (b"", log.ATTRIBUTES, 0, 0, 1, 0, 1, 0, 0, DIRECTORY),
    "a billion nanoseconds": (b"", log.ATTRIBUTES, 0, 0, 1, 0, 8, 0, 10**9),
    "an entry without a name": (b"", log.ENTRY, 0, 0, 1, 0, NEW),
    "an entry with a slash": (b"a/b", log.ENTRY, 0, 0, 1, 0, NEW),
    "an entry with a NUL": (b"a\0", log.ENTRY, 0, 0, 1, 0, NEW),
    "the entry .": (b".", log.ENTRY, 0, 0, 1, 0, NEW),
    "the entry ..": (b"..", log.ENTRY, 0, 0, 1, 0, NEW),
    "an entry too long": (b"a" * 256, log.ENTRY, 0, 0, 1, 0, NEW),
    "a removal with a value": (b"a", log.REMOVE, 0, 0, 1, 0, NEW),
    "an xattr without a name": (b"value", log.XATTR, 0, 0, 1),
    "an xattr longer than its payload": (b"user.a", log.XATTR, 0, 7, 1),
    "an xattr with a NUL in its name": (b"user\0a", log.XATTR, 0, 6, 1),
    "an xattr too long": (b"a" * 65538, log.XATTR, 0, 1, 1),
    "a removed xattr with a value": (b"user.a", log.XATTR_REMOVE, 0, 5, 1),
    "a source log without a number": (bytes(16), log.SOURCE_LOG),
    "a source log that is a constant": (bytes(16), log.SOURCE_LOG, 0, 0, 0, 0, 65535),
    "a source log with half an id": (bytes(8), log.SOURCE_LOG, 0, 0, 0, 0, 1),
    "no extents": (b"", log.EXTENTS, 0, 0, 1),
    "half an extent": (bytes(12), log.EXTENTS, 0, 0, 1),
    "an empty extent": (struct.pack("<3Q", 0, 0, ZERO), log.EXTENTS, 0, 0, 1),
    "an extent from nowhere": (struct.pack("<3Q", 0, 1, 2**64 - 3), log.EXTENTS, 0, 0, 1),
}


@pytest.mark.parametrize("record", NONSENSE.values(), ids=NONSENSE)
def test_a_record_that_makes_no_sense(record: tuple[bytes, int]) -> None:
    with pytest.raises(CorruptError, match="at byte 128: "):
        LogReader(header() + sealed(128, *record))


def test_a_payload_that_passes_the_limit() -> None:
    body = RECORD.pack(0, 0, log.MAX_PAYLOAD_BYTES + 1, log.WRITE, 0, 0, 1, *[0] * 7)[4:]
    with pytest.raises(CorruptError, match="passes the limit, 67108864 bytes"):
        LogReader(header() + struct.pack("<I", xxh32(body, seed_of(128))) + body)


def test_a_record_that_makes_no_sense_is_not_written(tmp_path: Path) -> None:
    with File(tmp_path / "log") as file:
        file.writer.write(ExtentMap(), 1, 0, b"x", 0)
        with pytest.raises(InvalidInput, match="entry"):
            file.writer.append([Record(log.REMOVE, 1, payload=b"fine"), Record(log.ENTRY, 1, payload=b"..")])
        with pytest.raises(InvalidInput, match="which was read"):
            file.writer.append(list(LogReader(GOLDEN.read_bytes()))[-1:])
        with pytest.raises(TypeError):
            file.writer.append([b"no record"])  # type: ignore[list-item]
        assert (file.writer.length, file.writer.end) == (128, 200)
        file.writer.flush()
        assert types_of(LogReader(file.path.read_bytes())) == [log.WRITE]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Record(256),
        lambda: Record(log.ENTRY, -1),
        lambda: Record(log.ATTRIBUTES, 1, uid=2**32),
        lambda: Record(log.ATTRIBUTES, 1, mtime_ns=2**63 * 10**9),
        lambda: Record(log.XATTR, 1, name=b"x" * 65536),
    ],
)
def test_a_number_that_its_field_has_no_room_for(make: Callable[[], Record]) -> None:
    with pytest.raises(OverflowError):
        make()


@pytest.mark.parametrize(
    "fields", [(ID[:8], CHAIN), (ID, CHAIN[:8]), (bytes(16), CHAIN), (ID, CHAIN, BASE, 0), (ID, CHAIN, bytes(16), 1)]
)
def test_a_header_that_cannot_be_written(fields: tuple[bytes, bytes]) -> None:
    with pytest.raises(InvalidInput):
        Header(*fields).pack()


# Any log

inodes = st.integers(0, 2**64 - 1)
numbers = st.integers(0, 2**63 - 1)
times = st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1)
names = st.binary(min_size=1, max_size=255).filter(lambda n: n not in (b".", b"..") and not {0, 0x2F} & set(n))
records = st.one_of(
    st.builds(lambda i, n, t: Record(log.TRUNCATE, i, value=n, mtime_ns=t), inodes, numbers, times),
    st.builds(lambda i, j, n, t: Record(log.ENTRY, i, value=j, payload=n, mtime_ns=t), inodes, inodes, names, times),
    st.builds(lambda i, n, t: Record(log.REMOVE, i, payload=n, mtime_ns=t), inodes, names, times),
    st.builds(
        lambda i, n, v: Record(log.XATTR, i, name=n, payload=v),
        inodes,
        names,
        st.binary(max_size=9) | st.just(b"v" * 65536),
    ),
)


@settings(deadline=None)
@given(st.lists(st.lists(records, min_size=1, max_size=4), max_size=8), st.randoms(use_true_random=False))
def test_any_operations_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, operations: list[list[Record]], rng: random.Random
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.log"
    with File(path) as file:
        for operation in operations:
            file.writer.append(operation)
    data = path.read_bytes()
    os.unlink(path)
    reader = LogReader(data)
    assert [record for operation in operations for record in operation] == list(reader)
    if len(data) > 128:
        damaged = bytearray(data)
        damaged[rng.randrange(128, len(data))] ^= 1 << rng.randrange(8)
        found = list(LogReader(bytes(damaged)))
        assert found == list(LogReader(data))[: len(found)]
