"""The tar walk, judged by GNU tar and Python's tarfile, and with archives made by hand for what they do not write."""

import os
import random
import stat
import subprocess
import tarfile
from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore._core.tar import Data, Entry, Raw, walk
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError, LimitExceeded
from tests import tarbytes as tb

FORMS = [tb.sparse_old, tb.sparse_00, tb.sparse_01, tb.sparse_10]


def read(data: bytes, chunks: Iterable[bytes] | None = None, **limits: Any) -> list[tuple[Entry, bytes]]:
    """The entries with their stored content, having checked what holds for every archive."""
    entries: list[tuple[Entry, bytes]] = []
    whole = b""
    for event in walk([data] if chunks is None else chunks, **limits):
        if isinstance(event, Entry):
            assert event.position <= len(whole), "an entry's headers come before it"
            entries.append((event, b""))
            continue
        whole += event.data
        assert event.data
        if isinstance(event, Data):
            entry, content = entries[-1]
            entries[-1] = (entry, content + event.data)
    assert whole == data, "every byte is in exactly one event, in order"
    for entry, content in entries:
        assert len(content) == entry.stored_size
        assert entry.extents is None or sum(length for _, length in entry.extents) == entry.stored_size
    return entries


def one(*parts: bytes, **limits: Any) -> Entry:
    [(entry, _)] = read(tb.archive(*parts), **limits)
    return entry


def logical(entry: Entry, content: bytes) -> bytes:
    """A sparse file's content with its holes."""
    if entry.extents is None:
        return content
    out = bytearray(entry.size)
    at = 0
    for offset, length in entry.extents:
        out[offset : offset + length] = content[at : at + length]
        at += length
    return bytes(out)


# ---- real judges


def make_tree(root: Path) -> None:
    """A tree with every type, awkward names, old and sub-second times."""
    rng = random.Random(7)
    (root / "d" / "empty").mkdir(parents=True)
    for i, size in enumerate([0, 1, 511, 512, 513, 1024, 10_000, 100_000]):
        file = root / "d" / f"file{i}"
        file.write_bytes(rng.randbytes(size))
        file.chmod(0o600 | i)
        os.utime(file, ns=(0, 1_600_000_000_123_456_789 + i))
    (root / "suid").write_bytes(b"x")
    (root / "suid").chmod(0o6755)
    (root / "tmp").mkdir()
    (root / "tmp").chmod(0o1777)
    os.link(root / "d" / "file6", root / "hard")
    (root / "soft").symlink_to("d/file6")
    os.mkfifo(root / "fifo")
    if os.geteuid() == 0:
        os.mknod(root / "char", stat.S_IFCHR | 0o600, os.makedev(5, 1))
        os.mknod(root / "block", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
        os.chown(root / "suid", 12345, 54321)
    (root / os.fsdecode(b"latin\xe9")).write_bytes(b"latin")


def make_long_names(root: Path) -> None:
    deep = root / ("a" * 90) / ("b" * 90) / ("c" * 90)
    deep.mkdir(parents=True)
    (deep / ("n" * 200)).write_bytes(b"deep")
    (root / "longlink").symlink_to("t" * 300)
    os.link(deep / ("n" * 200), root / "hardlong")


def gnu_tar(source: Path, *options: str) -> bytes:
    command = ["tar", "-C", str(source), *options, "--sort=name", "-cf", "-", "."]
    return subprocess.run(command, check=True, capture_output=True).stdout


TARFILE_TYPES = {
    tarfile.REGTYPE: "regular",
    tarfile.AREGTYPE: "regular",
    tarfile.GNUTYPE_SPARSE: "regular",
    tarfile.LNKTYPE: "hardlink",
    tarfile.SYMTYPE: "symlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.DIRTYPE: "directory",
    tarfile.FIFOTYPE: "fifo",
}


def assert_same_as_tarfile(data: bytes, source: BytesIO | Path) -> int:
    """Compare every entry and content with Python's tarfile; return how many."""
    options: Any = {"name": source} if isinstance(source, Path) else {"fileobj": source}
    entries = read(data)
    with tarfile.open(mode="r:", encoding="utf-8", errors="surrogateescape", **options) as judge:
        members = judge.getmembers()
        assert len(entries) == len(members)
        for (entry, content), member in zip(entries, members, strict=True):
            kind = TARFILE_TYPES[member.type]
            assert entry.type == kind
            # tarfile drops a directory's trailing slash.
            path = entry.path.rstrip(b"/") if kind == "directory" else entry.path
            assert path == os.fsencode(member.name).rstrip(b"/")
            assert (entry.mode, entry.uid, entry.gid) == (member.mode & 0o7777, member.uid, member.gid)
            assert entry.mtime_seconds + entry.mtime_nanoseconds / 1e9 == pytest.approx(float(member.mtime), abs=1e-6)
            if kind in ("hardlink", "symlink"):
                assert entry.link == os.fsencode(member.linkname)
            if kind in ("char", "block"):
                assert (entry.device_major, entry.device_minor) == (member.devmajor, member.devminor)
            assert entry.size == (member.size if kind == "regular" else 0)
            if kind == "regular":
                file = judge.extractfile(member)
                assert file is not None
                assert logical(entry, content) == file.read()
    return len(entries)


@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "pax"])
def test_gnu_tar_formats_read_as_tarfile_reads_them(tmp_path: Path, form: str) -> None:
    make_tree(tmp_path)
    options = [f"--format={form}"]
    if form == "v7":
        options += ["--exclude=./char", "--exclude=./block", "--exclude=./fifo"]
    if form in ("oldgnu", "gnu", "pax"):
        make_long_names(tmp_path)
    data = gnu_tar(tmp_path, *options)
    assert assert_same_as_tarfile(data, BytesIO(data)) > 15


def test_pax_keeps_nanoseconds(tmp_path: Path) -> None:
    times = {"a": 1_600_000_000_123_456_789, "b": -1_500_000_001, "c": -1, "d": 0}
    for name, nanoseconds in times.items():
        (tmp_path / name).touch()
        os.utime(tmp_path / name, ns=(0, nanoseconds))
    found = {e.path: (e.mtime_seconds, e.mtime_nanoseconds) for e, _ in read(gnu_tar(tmp_path, "--format=pax"))}
    for name, nanoseconds in times.items():
        assert found[b"./" + name.encode()] == divmod(nanoseconds, 10**9)


@pytest.mark.parametrize("form", ["gnu", "oldgnu"])
def test_gnu_negative_mtime_is_base_256(tmp_path: Path, form: str) -> None:
    (tmp_path / "old").touch()
    os.utime(tmp_path / "old", (0, -86400 * 365))
    found = {e.path: e.mtime_seconds for e, _ in read(gnu_tar(tmp_path, f"--format={form}"))}
    assert found[b"./old"] == -86400 * 365


def make_sparse(root: Path) -> None:
    rng = random.Random(3)
    for name, extents, size in [
        ("holes", [(0, 4096), (65536, 5000), (1 << 20, 4096)], 3 << 20),
        ("hole_first", [(1 << 20, 100)], (1 << 20) + 100),
        ("only_hole", [], 1 << 20),
        ("many", [(i * 16384, 4096) for i in range(60)], 60 * 16384),
    ]:
        with (root / name).open("wb") as file:
            file.truncate(size)
            for offset, length in extents:
                file.seek(offset)
                file.write(rng.randbytes(length))


@pytest.mark.parametrize(
    "options",
    [
        ["--format=gnu"],
        ["--format=oldgnu"],
        ["--format=pax", "--sparse-version=0.0"],
        ["--format=pax", "--sparse-version=0.1"],
        ["--format=pax", "--sparse-version=1.0"],
    ],
    ids=lambda options: options[-1].strip("-"),
)
def test_gnu_sparse_files_have_their_content(tmp_path: Path, options: list[str]) -> None:
    make_sparse(tmp_path)
    data = gnu_tar(tmp_path, "--sparse", *options)
    files = {entry.path: (entry, content) for entry, content in read(data) if entry.type == "regular"}
    assert files.keys() == {b"./holes", b"./hole_first", b"./only_hole", b"./many"}
    for path, (entry, content) in files.items():
        assert entry.extents is not None
        assert len(content) < entry.size
        assert logical(entry, content) == (tmp_path / os.fsdecode(path)).read_bytes()
    assert files[b"./only_hole"][0].extents == []
    assert_same_as_tarfile(data, BytesIO(data))


def test_gnu_tar_xattrs(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.touch()
    values = {"user.b": bytes(range(256)), "user.a": b"new\nline=1", "user.empty": b""}
    try:
        for name, value in values.items():
            os.setxattr(file, name, value)
    except OSError as error:
        pytest.skip(f"{tmp_path} takes no user xattrs: {error}")
    found = {e.path: e.xattrs for e, _ in read(gnu_tar(tmp_path, "--xattrs", "--format=pax"))}
    assert found[b"./f"] == {name.encode(): value for name, value in sorted(values.items())}
    assert list(found[b"./f"]) == sorted(found[b"./f"])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_tarfile_formats(tmp_path: Path, form: int) -> None:
    make_tree(tmp_path)
    if form != tarfile.USTAR_FORMAT:
        make_long_names(tmp_path)
    out = BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, errors="surrogateescape") as writer:
        writer.add(tmp_path, "top")
    assert_same_as_tarfile(out.getvalue(), BytesIO(out.getvalue()))


def test_real_image_reads_as_tarfile_reads_it(debian_tar: Path) -> None:
    with tarfile.open(debian_tar) as judge:
        expected = [
            (os.fsencode(m.name), m.size if m.isreg() else 0, m.mode, m.uid, m.gid, int(m.mtime), m.offset)
            for m in judge.getmembers()
        ]
    found = []
    total = 0
    with debian_tar.open("rb") as file:
        for event in walk(iter(lambda: file.read(1 << 20), b"")):
            if isinstance(event, Entry):
                path = event.path.rstrip(b"/") or b"."
                found.append((path, event.size, event.mode, event.uid, event.gid, event.mtime_seconds, event.position))
            else:
                total += len(event.data)
    assert total == debian_tar.stat().st_size
    assert found == expected


# ---- spans


def varied_archive() -> bytes:
    """A little of everything that has a state of its own."""
    extents = [(i * 1000, 30) for i in range(30)]
    data = random.Random(1).randbytes(900)
    return tb.archive(
        tb.pax({b"comment": b"global", b"uid": b"77"}, type=b"g"),
        tb.header(b"volume", type=b"V"),
        tb.directory(b"d/"),
        tb.member(b"d/f", b"some content" * 100),
        tb.pax({b"path": b"p" * 200, b"SCHILY.xattr.user.x": b"1", b"mtime": b"-1.5"}),
        tb.member(b"cut", b"1"),
        tb.gnu_long(b"l" * 180),
        tb.gnu_long(b"k" * 150, type=b"K"),
        tb.header(b"l", type=b"2", magic=tb.GNU, link=b"k"),
        *(form(b"sparse", extents, 40_000, data) for form in FORMS),
        tb.member(b"empty"),
        tb.member(b"last", bytes(511)),
    )


def normal(events: Iterable[Raw | Entry | Data]) -> list[Raw | Entry | Data]:
    """Neighbouring RAW and neighbouring DATA joined: how they are cut depends on the spans."""
    joined: list[Raw | Entry | Data] = []
    for event in events:
        before = joined[-1] if joined else None
        if isinstance(event, Raw) and isinstance(before, Raw):
            joined[-1] = Raw(before.data + event.data)
        elif isinstance(event, Data) and isinstance(before, Data):
            joined[-1] = Data(before.data + event.data)
        else:
            joined.append(event)
    return joined


VARIED = varied_archive()


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, len(VARIED)), max_size=40))
def test_any_split_gives_the_same_events(cuts: list[int]) -> None:
    bounds = [0, *sorted(cuts), len(VARIED)]
    chunks = [VARIED[a:b] for a, b in pairwise(bounds)]
    assert normal(walk(chunks)) == normal(walk([VARIED]))
    read(VARIED, chunks)


@pytest.mark.parametrize("size", [1, 7, 511, 512, 513])
def test_equal_chunks_give_the_same_events(size: int) -> None:
    chunks = [VARIED[at : at + size] for at in range(0, len(VARIED), size)]
    assert normal(walk(chunks)) == normal(walk([VARIED]))


def test_any_buffer_will_do() -> None:
    assert normal(walk([memoryview(VARIED)[:700], bytearray(VARIED[700:])])) == normal(walk([VARIED]))


def test_iterating_after_the_end_or_an_error_stops() -> None:
    events = walk([tb.END])
    assert list(events) == [Raw(tb.END)]
    assert list(events) == []
    broken = walk([b"x" * 512])
    with pytest.raises(CorruptError):
        next(broken)
    assert list(broken) == []


def test_an_error_of_the_chunks_goes_through() -> None:
    def chunks() -> Iterable[bytes]:
        yield VARIED[:1000]
        raise RuntimeError("source")

    with pytest.raises(RuntimeError, match="source"):
        list(walk(chunks()))


# ---- headers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (b"0000644\0", 0o644),
        (b"000644 \0", 0o644),
        (b"   644 \0", 0o644),
        (b"  644   ", 0o644),
        (b"\0\0\0\0\0\0\0\0", 0),
        (b"        ", 0),
        (b"00000644", 0o644),
        (b"\0000644 \0", 0o644),
        (b"644\0junk", 0o644),
        (tb.base256(0o755, 8), 0o755),
        (b"0100644\0", 0o644),
    ],
)
def test_octal_spellings(field: bytes, value: int) -> None:
    assert one(tb.header(mode=field)).mode == value


def test_base_256() -> None:
    entry = one(tb.header(uid=tb.base256(2**32 - 1, 8), mtime=-5, magic=tb.GNU))
    assert (entry.uid, entry.mtime_seconds, entry.mtime_nanoseconds) == (2**32 - 1, -5, 0)
    assert one(tb.header(mtime=tb.base256(-(2**63), 12))).mtime_seconds == -(2**63)
    assert one(tb.header(mtime=tb.base256(2**63 - 1, 12))).mtime_seconds == 2**63 - 1


FIELDS: list[tuple[str, dict[str, Any]]] = [
    ("mode", {"mode": b"0o644"}),
    ("mode", {"mode": b"0000648\0"}),
    ("mode", {"mode": b"6 4"}),
    ("mode", {"mode": b"-1"}),
    ("uid", {"uid": b"12x"}),
    ("gid", {"gid": b"\x01"}),
    ("size", {"size": b"1e3"}),
    ("size", {"size": tb.base256(-1, 12)}),
    ("size", {"size": tb.base256(2**63, 12)}),
    ("mtime", {"mtime": b"now"}),
    ("mtime", {"mtime": tb.base256(2**63, 12)}),
    ("mtime", {"mtime": tb.base256(-(2**63) - 1, 12)}),
    ("devmajor", {"type": b"3", "device": (b"z", 0)}),
    ("devminor", {"type": b"4", "device": (0, b"z")}),
    ("chksum", {"chksum": b"zzz"}),
]


@pytest.mark.parametrize(("field", "values"), FIELDS, ids=lambda value: value if isinstance(value, str) else "")
def test_garbage_in_a_number_names_field_and_position(field: str, values: dict[str, Any]) -> None:
    data = tb.archive(tb.member(b"first", b"1"), tb.header(b"bad", **values))
    with pytest.raises(CorruptError, match=rf"byte 1024\b.*{field}"):
        read(data)


@pytest.mark.parametrize("ids", [{"uid": -1}, {"gid": -1}, {"uid": 2**32}, {"gid": 2**40}])
def test_owners_beyond_32_bits_are_refused(ids: dict[str, int]) -> None:
    [(name, value)] = ids.items()
    with pytest.raises(InvalidInput, match=rf"{name} {value} "):
        one(tb.header(**ids))  # type: ignore[arg-type]
    with pytest.raises(InvalidInput, match=f"{name}.*{value}"):
        one(tb.pax({name.encode(): b"%d" % value}), tb.header())


def test_device_number_beyond_32_bits_is_refused() -> None:
    with pytest.raises(InvalidInput, match="device number 4294967296:0"):
        one(tb.header(type=b"3", device=(2**32, 0)))


def test_garbage_in_an_unused_device_number_is_not_looked_at() -> None:
    assert one(tb.header(type=b"0", device=(b"z", b"z"))).device_major == 0
    assert one(tb.header(type=b"3", magic=tb.V7, patch={329: b"garbage"})).device_major == 0


def test_checksum_signed_and_unsigned() -> None:
    name = b"caf\xe9"
    assert one(tb.header(name, signed=False)).path == name
    assert one(tb.header(name, signed=True)).path == name
    good = tb.checksum(tb.header(name))
    for wrong in (good + 1, good - 1, good - 256 * 2, 0):
        with pytest.raises(CorruptError, match="byte 0: the checksum"):
            one(tb.header(name, chksum=tb.octal(wrong, 7)))


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    block = tb.header(b"name", size=0, mode=0o644, link=b"l")
    for bit in range(512 * 8):
        damaged = bytearray(block)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            entry = one(bytes(damaged))
        except CorruptError:
            continue
        # Leading and closing bytes of the checksum's own field may be spelled in another way.
        assert 148 <= bit // 8 < 156, bit
        assert entry.path == b"name"


@pytest.mark.parametrize(
    ("type", "magic", "name", "expected"),
    [
        (b"\0", tb.V7, b"d/", "directory"),
        (b"\0", tb.V7, b"f", "regular"),
        (b"\0", tb.USTAR, b"d/", "directory"),
        (b"0", tb.USTAR, b"f/", "regular"),
        (b"7", tb.USTAR, b"f", "regular"),
        (b"5", tb.USTAR, b"d", "directory"),
    ],
)
def test_types_of_old_archives(type: bytes, magic: bytes, name: bytes, expected: str) -> None:
    assert one(tb.header(name, type=type, magic=magic)).type == expected


def test_contiguous_file_has_content() -> None:
    assert read(tb.archive(tb.member(b"f", b"abc", type=b"7")))[0][1] == b"abc"


@pytest.mark.parametrize("type", [b"D", b"M", b"N", b"X", b"A", b"Z", b"8", b"9", b"\xff", b"a"])
def test_unknown_types_are_refused_by_letter(type: bytes) -> None:
    shown = type.decode() if type < b"\x80" else r"\\xff"
    with pytest.raises(InvalidInput, match=f"byte 0: entries of type '{shown}'"):
        one(tb.header(type=type))


def test_volume_label_is_raw() -> None:
    entries = read(tb.archive(tb.header(b"label", type=b"V", size=700), bytes(1024), tb.member(b"f", b"1")))
    assert [(e.path, e.position) for e, _ in entries] == [(b"f", 1536)]


def test_extended_header_before_a_volume_label_is_not_the_next_entrys() -> None:
    assert one(tb.pax({b"path": b"label"}), tb.header(type=b"V"), tb.header(b"f")).path == b"f"


def test_prefix_is_used_for_posix_magic_only() -> None:
    assert one(tb.header(b"n" * 100, prefix=b"p" * 155), name_bytes=300).path == b"p" * 155 + b"/" + b"n" * 100
    for magic in (tb.GNU, tb.V7):
        assert one(tb.header(b"n", prefix=b"p", magic=magic)).path == b"n"


@pytest.mark.parametrize("type", [b"1", b"2", b"3", b"4", b"5", b"6"])
def test_types_without_content_have_none_whatever_the_size_says(type: bytes) -> None:
    entries = read(tb.archive(tb.header(b"first", type=type, size=5000, link=b"t"), tb.member(b"next", b"1")))
    assert [(e.path, e.size, e.stored_size) for e, _ in entries] == [(b"first", 0, 0), (b"next", 1, 1)]


def test_paths_are_kept_as_they_are() -> None:
    for path in (b"./a//b/../c", b"/abs", b"..", b".", b"\xff\xfe\n"):
        assert one(tb.header(path)).path == path


@pytest.mark.parametrize(
    "parts",
    [
        [tb.header(b"")],
        [tb.pax({b"path": b""}), tb.header(b"")],
        [tb.header(b"l", type=b"2")],
        [tb.header(b"l", type=b"1")],
        [tb.gnu_long(b""), tb.header(b"")],
    ],
)
def test_empty_names_are_refused(parts: list[bytes]) -> None:
    with pytest.raises(InvalidInput, match="is empty"):
        one(*parts)


@pytest.mark.parametrize("key", [b"path", b"linkpath"])
def test_nul_in_a_pax_name_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidInput, match=r'"a\\x00b" contains a NUL'):
        one(tb.pax({key: b"a\0b"}), tb.symlink(b"l", b"t"))


def test_a_long_name_ends_at_its_first_nul() -> None:
    assert one(tb.gnu_long(b"abc\0def"), tb.header(b"cut")).path == b"abc"


# ---- extended headers


def test_pax_records_override_the_header() -> None:
    records = {
        b"path": b"long/" + b"p" * 200,
        b"size": b"3",
        b"uid": b"4294967295",
        b"gid": b"5",
        b"mtime": b"1.25",
        b"hdrcharset": b"BINARY",
        b"unknown.key": b"x=y",
        b"SCHILY.xattr.user.b": b"2\n3=\0",
        b"SCHILY.xattr.user.a": b"",
    }
    [(entry, content)] = read(tb.archive(tb.pax(records), tb.header(b"cut", size=0, uid=1), tb.padded(b"abc")))
    assert content == b"abc"
    assert (entry.path, entry.size, entry.uid, entry.gid) == (records[b"path"], 3, 2**32 - 1, 5)
    assert (entry.mtime_seconds, entry.mtime_nanoseconds) == (1, 250_000_000)
    assert list(entry.xattrs.items()) == [(b"user.a", b""), (b"user.b", b"2\n3=\0")]
    assert entry.position == 0


def test_later_records_win() -> None:
    records = [(b"path", b"one"), (b"SCHILY.xattr.user.a", b"1"), (b"path", b"two"), (b"SCHILY.xattr.user.a", b"2")]
    entry = one(tb.pax(records), tb.header())
    assert (entry.path, entry.xattrs) == (b"two", {b"user.a": b"2"})


PATH_AND_TIME = tb.pax({b"path": b"one", b"mtime": b"5", b"uid": b"9"})
# The second of each is what GNU tar, bsdtar and Go's archive/tar make of it, or POSIX where they disagree.
SEQUENCES = {
    "two": ([PATH_AND_TIME, tb.pax({b"path": b"two"})], (b"two", 0, 0)),
    "the second without a path": ([PATH_AND_TIME, tb.pax({b"mtime": b"6"})], (b"name", 6, 0)),
    "the second empty": ([PATH_AND_TIME, tb.pax(b"")], (b"name", 0, 0)),
    "three": ([PATH_AND_TIME, tb.pax({b"mtime": b"6"}), tb.pax({b"uid": b"7"})], (b"name", 0, 7)),
    "a global one after it": ([PATH_AND_TIME, tb.pax({b"uid": b"7"}, type=b"g")], (b"one", 5, 9)),
    "a global one between": (
        [PATH_AND_TIME, tb.pax({b"uid": b"7"}, type=b"g"), tb.pax({b"mtime": b"6"})],
        (b"name", 6, 7),
    ),
    "a long name between": ([PATH_AND_TIME, tb.gnu_long(b"long"), tb.pax({b"uid": b"7"})], (b"long", 0, 7)),
    "a long name before": ([tb.gnu_long(b"long"), PATH_AND_TIME, tb.pax({b"uid": b"7"})], (b"long", 0, 7)),
    "two long names": ([tb.gnu_long(b"first"), tb.gnu_long(b"long")], (b"long", 0, 0)),
}


@pytest.mark.parametrize("name", SEQUENCES)
def test_of_two_pax_headers_the_later_one_replaces_the_former(name: str) -> None:
    parts, expected = SEQUENCES[name]
    data = tb.archive(*parts, tb.member(b"name", b"x"), tb.member(b"next"))
    (entry, _), (following, _) = read(data)
    assert (entry.path, entry.mtime_seconds, entry.uid) == expected
    assert (following.path, following.mtime_seconds) == (b"next", 0)
    command = ["tar", "--utc", "--full-time", "--numeric-owner", "-tvf", "-"]
    listed = subprocess.run(command, input=data, capture_output=True, check=True).stdout.splitlines()[0].split()
    assert (listed[5], listed[4][-2:], listed[1]) == (expected[0], b"%02d" % expected[1], b"%d/0" % expected[2])


def test_a_pax_header_that_was_replaced_leaves_no_attributes_and_no_holes() -> None:
    replaced = tb.pax({b"SCHILY.xattr.user.a": b"1", b"GNU.sparse.map": b"0,1", b"GNU.sparse.size": b"9"})
    records = [(b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"4"), (b"GNU.sparse.numbytes", b"3")]
    for before in (replaced, tb.pax(records), tb.pax(records[:2])):
        [(entry, content)] = read(tb.archive(before, tb.pax({b"uid": b"1"}), tb.member(b"f", b"abc")))
        assert (entry.xattrs, entry.extents, entry.size, content) == ({}, None, 3, b"abc")
    [(entry, _)] = read(tb.archive(tb.pax(records), tb.pax(records), tb.member(b"f", b"abc")))
    assert (entry.extents, entry.size) == ([(4, 3)], 9)


def test_xattrs_are_sorted_bytewise_and_unique() -> None:
    names = [b"user.b", b"user.a", b"user.aa", b"user.\xff", b"user.a", b"user.B", b"user.a"]
    records = [(b"SCHILY.xattr." + name, b"%d" % i) for i, name in enumerate(names)]
    entry = one(tb.pax(records), tb.header())
    assert list(entry.xattrs.items()) == [
        (b"user.B", b"5"),
        (b"user.a", b"6"),
        (b"user.aa", b"2"),
        (b"user.b", b"0"),
        (b"user.\xff", b"3"),
    ]


def test_extended_headers_do_not_outlive_their_entry() -> None:
    extended = tb.pax({b"path": b"p", b"uid": b"9", b"mtime": b"0.5", b"SCHILY.xattr.user.a": b"1"})
    entries = read(tb.archive(extended, tb.header(), tb.gnu_long(b"long"), tb.header(), tb.header(b"plain")))
    assert [e.path for e, _ in entries] == [b"p", b"long", b"plain"]
    plain = entries[2][0]
    assert (plain.uid, plain.mtime_nanoseconds, plain.xattrs) == (0, 0, {})


def test_global_records_hold_until_overridden() -> None:
    entries = read(
        tb.archive(
            tb.pax({b"uid": b"7", b"mtime": b"3.5", b"gid": b"8"}, type=b"g"),
            tb.header(b"a"),
            tb.pax({b"uid": b"1"}),
            tb.header(b"b"),
            tb.pax({b"uid": b"", b"gid": b"9"}, type=b"g"),
            tb.pax({b"mtime": b""}),
            tb.header(b"c", uid=5, mtime=6),
            tb.header(b"d", uid=5),
        )
    )
    found = [(e.path, e.uid, e.gid, e.mtime_seconds, e.mtime_nanoseconds) for e, _ in entries]
    half = 500_000_000
    assert found == [(b"a", 7, 8, 3, half), (b"b", 1, 8, 3, half), (b"c", 5, 9, 6, 0), (b"d", 5, 9, 3, half)]


def test_position_is_that_of_the_entrys_first_header() -> None:
    parts = [tb.pax({b"uid": b"7"}, type=b"g"), tb.gnu_long(b"n"), tb.pax({b"gid": b"1"}), tb.header()]
    assert one(*parts).position == 1024


def test_the_gnu_long_name_wins_over_pax() -> None:
    for parts in (
        [tb.pax({b"path": b"pax"}), tb.gnu_long(b"long")],
        [tb.gnu_long(b"long"), tb.pax({b"path": b"pax"})],
    ):
        assert one(*parts, tb.header()).path == b"long"


@pytest.mark.parametrize(
    ("text", "seconds", "nanoseconds"),
    [
        (b"0", 0, 0),
        (b"12.", 12, 0),
        (b"12.5", 12, 500_000_000),
        (b"1.0000000019", 1, 1),
        (b"-0", 0, 0),
        (b"-1", -1, 0),
        (b"-1.5", -2, 500_000_000),
        (b"-0.000000001", -1, 999_999_999),
        (b"-0.0000000001", 0, 0),
        (b"9223372036854775806", 2**63 - 2, 0),
        (b"-9223372036854775806.5", -(2**63) + 1, 500_000_000),
    ],
)
def test_pax_mtime(text: bytes, seconds: int, nanoseconds: int) -> None:
    entry = one(tb.pax({b"mtime": text}), tb.header(mtime=77))
    assert (entry.mtime_seconds, entry.mtime_nanoseconds) == (seconds, nanoseconds)


@pytest.mark.parametrize(
    ("key", "value", "error"),
    [
        (b"mtime", b"1.2.3", CorruptError),
        (b"mtime", b"-", CorruptError),
        (b"mtime", b".5", CorruptError),
        (b"mtime", b"1e9", CorruptError),
        (b"mtime", b"99999999999999999999", InvalidInput),
        (b"size", b"0x10", CorruptError),
        (b"size", b" 1", CorruptError),
        (b"size", b"1.0", CorruptError),
        (b"size", b"-1", InvalidInput),
        (b"size", b"18446744073709551616", InvalidInput),
        (b"uid", b"root", CorruptError),
        (b"gid", b"-5", InvalidInput),
        (b"uid", b"4294967296", InvalidInput),
    ],
)
def test_pax_numbers_that_are_none(key: bytes, value: bytes, error: type[Exception]) -> None:
    with pytest.raises(error, match=rf"byte 1024.*{key.decode()}"):
        one(tb.pax({key: value}), tb.header())


@pytest.mark.parametrize(
    "body",
    [
        b"x",
        b"7 a=bc",
        b"6 a=bcd\n",
        b"8 a=bc\n",
        b"99999999999999999999999 a=b\n",
        b"0 a=b\n",
        b"00 a=b\n",
        b"-7 a=b\n",
        b" 7 a=b\n",
        b"6 abc\n",
        b"5 =b\n",
        b"7 a\0=b\n",
        b"6 a=b\n\0",
        b"6 a=b\n3 \n",
        b"2 ",
        b"1 ",
        b"\0" * 600,
    ],
)
def test_malformed_pax_records(body: bytes) -> None:
    assert one(tb.pax(b"6 a=b\n"), tb.header())
    for type in (b"x", b"g"):
        with pytest.raises(CorruptError, match="byte 0: the pax record"):
            one(tb.pax(body, type=type), tb.header())


@pytest.mark.parametrize("body", [b"6 a=bcd\n", b"8 a=bc\n", b"5 a=b\n"])
def test_pax_record_must_end_where_it_says(body: bytes) -> None:
    # The body before it leaves a newline in the buffer behind where this one ends.
    before = [tb.pax(b"8 a=bcd\n"), tb.header()]
    with pytest.raises(CorruptError, match=r"byte 1536: the pax record .* 0 bytes into the extended header"):
        read(tb.archive(*before, tb.pax(body), tb.header()))


def test_pax_record_of_length_0_behind_another() -> None:
    with pytest.raises(CorruptError, match="6 bytes into the extended header"):
        one(tb.pax(b"6 a=b\n0 a=b\n"), tb.header())


def test_xattr_without_a_name_is_refused() -> None:
    with pytest.raises(InvalidInput, match="no attribute name"):
        one(tb.pax({b"SCHILY.xattr.": b"1"}), tb.header())


@pytest.mark.parametrize("key", [b"SCHILY.xattr.user.a", b"GNU.sparse.size", b"GNU.sparse.offset"])
def test_global_header_with_what_belongs_to_one_entry_is_refused(key: bytes) -> None:
    with pytest.raises(InvalidInput, match=key.decode()):
        one(tb.pax({key: b"1"}, type=b"g"), tb.header())


def test_empty_extended_headers() -> None:
    assert one(tb.pax(b""), tb.pax(b"", type=b"g"), tb.header(b"f")).path == b"f"
    assert read(tb.pax(b"", type=b"g")) == []


@pytest.mark.parametrize("extended", [tb.pax({b"uid": b"1"}), tb.gnu_long(b"n"), tb.gnu_long(b"n", type=b"K")])
def test_extended_header_without_entry(extended: bytes) -> None:
    for end in (tb.END, b""):
        with pytest.raises(CorruptError, match="before the entry"):
            read(extended + end)


# ---- sparse

EXTENTS = [(0, 512), (1000, 24), (5000, 600)]
CONTENT = bytes(range(256)) * 4 + bytes(112)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("extents", "size", "expected"),
    [
        (EXTENTS, 9000, EXTENTS),
        ([*EXTENTS, (9000, 0)], 9000, EXTENTS),
        ([(10, 500), (510, 12), (522, 0), (522, 600), (2000, 24)], 3000, [(10, 1112), (2000, 24)]),
        ([(i * 3, 1) for i in range(1136)], 4000, [(i * 3, 1) for i in range(1136)]),
    ],
    ids=["plain", "end", "adjacent", "many"],
)
def test_sparse_forms(
    form: Callable[..., bytes], extents: tb.Extents, size: int, expected: list[tuple[int, int]]
) -> None:
    parts = [form(b"s", extents, size, CONTENT), tb.member(b"next", b"n")]
    [(entry, content), (following, _)] = read(tb.archive(*parts))
    assert (entry.path, entry.size, entry.extents, content) == (b"s", size, expected, CONTENT)
    assert following.path == b"next"
    assert following.extents is None


@pytest.mark.parametrize("form", FORMS)
def test_sparse_without_extents(form: Callable[..., bytes]) -> None:
    entry = one(form(b"s", [(5000, 0)], 5000, b""))
    assert (entry.size, entry.stored_size, entry.extents) == (5000, 0, [])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("extents", "size", "complaint"),
    [
        ([(0, 512), (500, 624)], 9000, "does not follow"),
        ([(1000, 1000), (0, 136)], 9000, "does not follow"),
        ([(0, 1136), (100, 0)], 9000, "does not follow"),
        ([(1, 2**63 - 1), (2**63 - 1, 2**63 - 1)], 9000, "does not follow|behind"),
        ([(8000, 1136)], 9000, "behind the file's 9000"),
        ([(0, 1136), (9001, 0)], 9000, "behind the file's 9000"),
        ([(0, 1135)], 9000, "hold 1135 bytes, and 1136 are stored"),
        ([(0, 1137)], 9000, "hold 1137 bytes, and 1136 are stored"),
        ([(5000, 0)], 9000, "hold 0 bytes, and 1136 are stored"),
    ],
)
def test_sparse_maps_that_lie(form: Callable[..., bytes], extents: tb.Extents, size: int, complaint: str) -> None:
    with pytest.raises(CorruptError, match=complaint):
        one(form(b"s", extents, size, CONTENT))


@pytest.mark.parametrize("form", FORMS)
def test_sparse_limits(form: Callable[..., bytes]) -> None:
    assert one(form(b"s", EXTENTS, 9000, CONTENT), sparse_extents=3, file_bytes=9000)
    with pytest.raises(LimitExceeded, match=r"sparse_extents \(2\)"):
        one(form(b"s", EXTENTS, 9000, CONTENT), sparse_extents=2)
    with pytest.raises(LimitExceeded, match=r"file_bytes \(8999\)"):
        one(form(b"s", EXTENTS, 9000, CONTENT), file_bytes=8999)


def test_sparse_1_0_map_is_refused_by_its_first_number() -> None:
    with pytest.raises(LimitExceeded, match=r"65537 extents, more than the limit sparse_extents \(65536\)"):
        one(tb.sparse_10(b"s", [], 9000, CONTENT, map_bytes=b"65537\n"))


@pytest.mark.parametrize(
    "map_bytes",
    [
        b"",
        b"\n",
        b"1\n0\n1136",
        b"1\n0\n1136 \n",
        b"x\n",
        b"-1\n",
        b"1\n0\n18446744073709551616\n",
        b"2\n0\n1136\n",
        b"1\r\n0\r\n1136\r\n",
    ],
)
def test_sparse_1_0_maps_that_are_none(map_bytes: bytes) -> None:
    with pytest.raises(CorruptError, match="sparse map"):
        one(tb.sparse_10(b"s", [], 9000, CONTENT, map_bytes=map_bytes))


def test_sparse_1_0_map_longer_than_what_is_stored() -> None:
    with pytest.raises(CorruptError, match="sparse map is longer than the 1024 bytes"):
        numbers = b"1000\n" + b"".join(b"%d\n1\n" % (2 * i) for i in range(1000))
        one(tb.sparse_10(b"s", [], 9000, b"", map_bytes=numbers[:1024]))
    records = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}
    with pytest.raises(CorruptError, match="100 bytes cannot hold the sparse map"):
        one(tb.pax(records), tb.member(b"s", bytes(100)))


@pytest.mark.parametrize(
    "records",
    [
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"4")],
        [(b"GNU.sparse.numbytes", b"4")],
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"4"), (b"GNU.sparse.offset", b"9")],
        [(b"GNU.sparse.offset", b"0")],
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"")],
        [(b"GNU.sparse.offset", b"x"), (b"GNU.sparse.numbytes", b"4")],
        [(b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"4")],
        [(b"GNU.sparse.map", b"0,4,9")],
        [(b"GNU.sparse.map", b"0,4,")],
        [(b"GNU.sparse.map", b"0, 4")],
        [(b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.numblocks", b"2")],
        [(b"GNU.sparse.map", b"0,4"), (b"GNU.sparse.numblocks", b"x")],
        [],
    ],
)
def test_sparse_0_records_that_do_not_fit(records: list[tuple[bytes, bytes]]) -> None:
    assert one(tb.pax([(b"GNU.sparse.size", b"10"), (b"GNU.sparse.map", b"0,4")]), tb.member(b"s", b"data"))
    with pytest.raises(CorruptError):
        one(tb.pax([(b"GNU.sparse.size", b"10"), *records]), tb.member(b"s", b"data"))


def test_sparse_needs_a_size() -> None:
    for records in (
        [(b"GNU.sparse.map", b"0,4")],
        [(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"4")],
        [(b"GNU.sparse.major", b"0"), (b"GNU.sparse.minor", b"0")],
    ):
        with pytest.raises(CorruptError, match=r"needs the pax record GNU\.sparse\.size"):
            one(tb.pax(records), tb.member(b"s", b"data"))


def test_sparse_versions_that_are_not_known() -> None:
    for major, minor in ((b"1", b"1"), (b"2", b"0"), (b"0", b"2")):
        with pytest.raises(InvalidInput, match="of GNU's sparse format is not known"):
            one(tb.pax({b"GNU.sparse.major": major, b"GNU.sparse.minor": minor}), tb.member())


def test_sparse_only_for_regular_files() -> None:
    with pytest.raises(InvalidInput, match="only a regular file can be sparse"):
        one(tb.pax({b"GNU.sparse.size": b"10", b"GNU.sparse.map": b"0,0"}), tb.symlink(b"l", b"t"))


def test_old_sparse_with_another_map_or_another_magic() -> None:
    old = tb.sparse_old(b"s", EXTENTS, 9000, CONTENT)
    with pytest.raises(CorruptError, match="another sparse map"):
        one(tb.pax([(b"GNU.sparse.offset", b"0"), (b"GNU.sparse.numbytes", b"1")]), old)
    with pytest.raises(InvalidInput, match="another tar than GNU's"):
        one(tb.header(b"s", type=b"S"))


# ---- limits


def test_path_limits() -> None:
    assert one(tb.pax({b"path": b"/".join([b"n" * 9] * 2)}), tb.header(), path_bytes=19, name_bytes=9)
    with pytest.raises(LimitExceeded, match=r'the path "nnnn.*has 19 bytes, more than the limit path_bytes \(18\)'):
        one(tb.header(b"n" * 9 + b"/" + b"n" * 9), path_bytes=18)
    for path in (b"n" * 10, b"n" * 10 + b"/a", b"a/" + b"n" * 10, b"a/" + b"n" * 10 + b"/", b"//" + b"n" * 10 + b"/b"):
        with pytest.raises(LimitExceeded, match=r'component "n{10}" of 10 bytes, more than the limit name_bytes \(9\)'):
            one(tb.header(path), name_bytes=9)
        assert one(tb.header(path), name_bytes=10).path == path


def test_path_limits_by_default() -> None:
    component = b"n" * 255
    longest = b"/".join([component] * 16)
    assert len(longest) == 4095
    for make in (tb.gnu_long, lambda path: tb.pax({b"path": path})):
        assert one(make(longest + b"/"), tb.header()).path == longest + b"/"
        with pytest.raises(LimitExceeded, match=r"4097 bytes, more than the limit path_bytes \(4096\)"):
            one(make(longest + b"/a"), tb.header())
        with pytest.raises(LimitExceeded, match=r'component "n{256}" of 256 bytes'):
            one(make(component + b"n"), tb.header())


def test_a_whiteout_may_hide_the_longest_name() -> None:
    longest = b"d/.wh." + b"n" * 255
    assert one(tb.pax({b"path": longest}), tb.header()).path == longest
    for path in (longest + b"n", b"wh.." + b"n" * 252):
        with pytest.raises(LimitExceeded, match=r"more than the limit name_bytes \(255\)"):
            one(tb.pax({b"path": path}), tb.header())


def test_link_limits() -> None:
    assert one(tb.symlink(b"l", b"t" * 50), name_bytes=20).link == b"t" * 50
    with pytest.raises(LimitExceeded, match=r"hard link .*name_bytes"):
        one(tb.hardlink(b"l", b"t" * 50), name_bytes=20)
    with pytest.raises(LimitExceeded, match=r"symlink .*path_bytes"):
        one(tb.symlink(b"l", b"t" * 50), path_bytes=49)


def test_extended_limit_is_checked_before_the_body() -> None:
    records = tb.pax_record(b"comment", b"c" * 200)
    assert one(tb.pax(records), tb.pax(records), tb.header(), extended_bytes=2 * len(records))
    with pytest.raises(LimitExceeded, match=r"extended_bytes \(\d+\)"):
        one(tb.pax(records), tb.pax(records), tb.header(), extended_bytes=2 * len(records) - 1)
    for type in (b"x", b"g", b"L", b"K"):
        with pytest.raises(LimitExceeded, match=r"extended_bytes \(1048576\)"):
            list(walk([tb.header(type=type, size=2**62)]))
    for type in (b"x", b"L"):
        many = tb.pax(records, type=type) + tb.header()
        assert len(read(tb.archive(many, many, many), extended_bytes=len(records))) == 3


def test_global_headers_are_limited_together() -> None:
    records = tb.pax_record(b"comment", b"c" * 200)
    with pytest.raises(LimitExceeded, match="extended_bytes"):
        read(tb.archive(*[tb.pax(records, type=b"g"), tb.header()] * 3), extended_bytes=2 * len(records))


def test_file_limit() -> None:
    assert one(tb.member(b"f", b"12345"), file_bytes=5).size == 5
    with pytest.raises(LimitExceeded, match=r'"f"\): the file has 6 bytes, more than the limit file_bytes \(5\)'):
        one(tb.member(b"f", b"123456"), file_bytes=5)
    with pytest.raises(LimitExceeded, match=r"file_bytes \(1099511627776\)"):
        list(walk([tb.header(size=2**40 + 1)]))


def test_entry_limit() -> None:
    parts = [tb.header(b"a"), tb.pax({b"uid": b"1"}), tb.header(b"b")]
    assert len(read(tb.archive(*parts), entries=2)) == 2
    with pytest.raises(LimitExceeded, match=r"the limit entries \(1\)"):
        read(tb.archive(*parts), entries=1)


# ---- the end


def test_ends() -> None:
    file = tb.member(b"f", b"x" * 600)
    for end in (b"", bytes(512), bytes(1024), bytes(10240), bytes(512) + file, bytes(1024) + b"junk", bytes(700)):
        assert [e.path for e, _ in read(file + end)] == [b"f"]
    assert read(b"") == []
    assert read(tb.END) == []


def test_missing_padding_at_the_end_is_accepted() -> None:
    file = tb.member(b"f", b"x" * 600)
    assert [e.path for e, _ in read(file[: 512 + 600])] == [b"f"]


def test_every_other_truncation_is_noticed() -> None:
    file = tb.pax({b"uid": b"1"}) + tb.member(b"f", b"x" * 600)
    for length in (*range(1, 40), *range(500, 1536 + 600, 37), 1536, 1536 + 599):
        with pytest.raises(CorruptError, match="the archive ends"):
            read(file[:length])
    extents = [(i * 1000, 30) for i in range(60)]
    for form in (tb.sparse_old, tb.sparse_10):
        whole = form(b"s", extents, 70_000, bytes(1800))
        for length in range(100, len(whole) - 512, 211):
            with pytest.raises(CorruptError, match="the archive ends"):
                read(whole[:length])


def test_truncation_names_what_it_cut() -> None:
    data = tb.member(b"first", b"1") + tb.member(b"second", b"2")
    with pytest.raises(CorruptError, match=r'byte 1024 \("second"\): the archive ends 1 bytes before'):
        read(data[: 1024 + 512])
    with pytest.raises(CorruptError, match="byte 1024: the archive ends at byte 1124, inside a header"):
        read(data[: 1024 + 100])


def test_what_is_no_tar() -> None:
    for data in (b"\x1f\x8b" + bytes(600), b"PK" * 300, random.Random(5).randbytes(2048)):
        with pytest.raises(CorruptError, match="byte 0: the"):
            read(data)


# ---- damage


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_archives_give_errors_and_never_crash(data: st.DataObject) -> None:
    damaged = bytearray(VARIED)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at] ^= data.draw(st.integers(1, 255))
        if data.draw(st.booleans()):
            start = at // 512 * 512
            block = bytes(damaged[start : start + 512])
            damaged[start + 148 : start + 156] = b"%06o\0 " % (tb.checksum(block) & 0o777777)
    try:
        read(bytes(damaged))
    except LayerstoreError as error:
        assert "byte " in str(error)
