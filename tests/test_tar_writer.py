"""The tar of a layer as it is written, judged by the tar walk, Python's tarfile, GNU tar and bsdtar."""

import io
import os
import shutil
import stat
import subprocess
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tarbytes import END

from layerstore._core.index import WHITEOUT, Index
from layerstore._core.layer import build_layer
from layerstore._core.tar import Data, walk
from layerstore._core.tar import Entry as Read
from layerstore._core.tar_writer import TarWriter
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded

GIB = 1 << 30


@dataclass
class Member:
    """The arguments of `TarWriter.entry`, and the content."""

    path: bytes
    mode: int = stat.S_IFREG | 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    data: bytes = b""
    rdev: int = 0
    target: bytes | None = None
    link: bytes | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def write(self, writer: TarWriter) -> None:
        writer.entry(
            *(self.path, self.mode, self.uid, self.gid, self.mtime_ns),
            size=len(self.data),
            rdev=self.rdev,
            target=self.target,
            link=self.link,
            xattrs=self.xattrs,
        )
        if self.data:
            writer.data(self.data)
            writer.end_data()


def tar(*members: Member) -> bytes:
    writer = TarWriter()
    for member in members:
        member.write(writer)
    writer.finish()
    return bytes(writer.take())


def read(data: bytes) -> list[tuple[Read, bytes]]:
    found: list[tuple[Read, bytes]] = []
    for event in walk([data]):
        if isinstance(event, Read):
            found.append((event, b""))
        elif isinstance(event, Data):
            found[-1] = (found[-1][0], found[-1][1] + event.data)
    return found


def header(**arguments: object) -> Read:
    """What the walk reads of one entry that is written."""
    [(entry, _)] = read(tar(Member(**{"path": b"f", **arguments})))  # type: ignore[arg-type]
    return entry


def members_of(data: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(data), encoding="utf-8", errors="surrogateescape") as archive:
        return archive.getmembers()


# Each field


PLAIN = 1_700_000_000


def test_a_plain_file_is_one_header() -> None:
    data = tar(Member(b"d/f", mtime_ns=PLAIN * 10**9, data=b"abc"))
    assert len(data) == 512 + 512 + 1024
    assert data[:3] == b"d/f"
    assert data[257:265] == b"ustar\x0000"
    assert data[512:1024] == b"abc".ljust(512, b"\0")
    assert data.endswith(END)


def test_the_root_and_directories() -> None:
    entries = read(tar(Member(b"", stat.S_IFDIR | 0o755), Member(b"d", stat.S_IFDIR | 0o1777)))
    assert [(e.path, e.type, e.mode) for e, _ in entries] == [
        (b"./", "directory", 0o755),
        (b"d/", "directory", 0o1777),
    ]


def test_whiteouts_and_opaque_directories() -> None:
    writer = TarWriter()
    writer.entry(b"d", stat.S_IFDIR | 0o755)
    writer.opaque(b"d")
    writer.whiteout(b"d/gone")
    writer.whiteout(b"gone")
    writer.opaque(b"")
    writer.finish()
    entries = [entry for entry, _ in read(bytes(writer.take()))]
    assert [e.path for e in entries] == [b"d/", b"d/.wh..wh..opq", b"d/.wh.gone", b".wh.gone", b".wh..wh..opq"]
    for entry in entries[1:]:
        assert (entry.type, entry.mode, entry.uid, entry.gid, entry.mtime_seconds, entry.size) == (
            *("regular", 0, 0, 0, 0, 0),
        )


def test_a_whiteout_of_the_longest_name() -> None:
    writer = TarWriter()
    writer.whiteout(b"n" * 255)
    writer.finish()
    data = bytes(writer.take())
    assert [entry.path for entry, _ in read(data)] == [b".wh." + b"n" * 255]
    index = Index(build_layer(data, bytes(16))[0])
    assert [(record.path, record.flags) for record in index][1:] == [(b"n" * 255, WHITEOUT)]


TYPES = [
    (Member(b"f", data=b"x" * 513), "regular"),
    (Member(b"d", stat.S_IFDIR | 0o700), "directory"),
    (Member(b"l", stat.S_IFLNK | 0o777, target=b"../x"), "symlink"),
    (Member(b"h", stat.S_IFREG | 0o4755, link=b"f"), "hardlink"),
    (Member(b"hl", stat.S_IFLNK | 0o777, link=b"l", target=b"../x"), "hardlink"),
    (Member(b"c", stat.S_IFCHR | 0o666, rdev=os.makedev(5, 1)), "char"),
    (Member(b"b", stat.S_IFBLK | 0o660, rdev=os.makedev(4095, (1 << 20) - 1)), "block"),
    (Member(b"p", stat.S_IFIFO | 0o600), "fifo"),
]


@pytest.mark.parametrize(("member", "kind"), TYPES, ids=[kind for _, kind in TYPES])
def test_types(member: Member, kind: str) -> None:
    [(entry, content)] = read(tar(member))
    assert (entry.type, content, entry.mode) == (kind, member.data, stat.S_IMODE(member.mode))
    assert entry.link == (member.link or member.target or b"")
    assert (entry.device_major, entry.device_minor) == (os.major(member.rdev), os.minor(member.rdev))


@pytest.mark.parametrize(
    "path",
    [
        b"n" * 100,
        b"p" * 100 + b"/" + b"n" * 100,
        b"p" * 154 + b"/" + b"n" * 100,
        b"p" * 155 + b"/" + b"n" * 100,
        b"a/" * 40 + b"n" * 60,
        b"n",
    ],
    ids=len,
)
def test_names_that_fit_need_no_extended_header(path: bytes) -> None:
    data = tar(Member(path))
    assert len(data) == 512 + 1024
    assert read(data)[0][0].path == path
    assert members_of(data)[0].name.encode() == path


@pytest.mark.parametrize(
    "path",
    [
        b"n" * 101,
        b"n" * 255,
        b"p" * 156 + b"/" + b"n" * 100,
        b"p" * 155 + b"/" + b"n" * 101,
        b"ab/" * 1365 + b"n",
        "dé".encode(),
        b"\xff\xfe",
        b"\xc0\x80",
        b"\xed\xa0\x80",
        b"\xf4\x90\x80\x80",
        b"\xe2\x82",
        b"d\xe9/" + b"n" * 200,
    ],
    ids=len,
)
def test_names_that_need_one(path: bytes) -> None:
    data = tar(Member(path), Member(b"l", stat.S_IFLNK | 0o777, target=path))
    assert len(data) > 4 * 512 + 1024
    [(entry, _), (link, _)] = read(data)
    assert (entry.path, link.link) == (path, path)
    file, symlink = members_of(data)
    assert (os.fsencode(file.name), os.fsencode(symlink.linkname)) == (path, path)
    try:
        path.decode()
    except UnicodeDecodeError:
        assert file.pax_headers["hdrcharset"] == "BINARY"
    else:
        assert "hdrcharset" not in file.pax_headers


def test_a_directorys_slash_counts() -> None:
    fits, longer = tar(Member(b"d" * 99, stat.S_IFDIR | 0o755)), tar(Member(b"d" * 100, stat.S_IFDIR | 0o755))
    assert (len(fits), len(longer)) == (512 + 1024, 3 * 512 + 1024)
    assert read(fits)[0][0].path == b"d" * 99 + b"/"
    assert read(longer)[0][0].path == b"d" * 100 + b"/"


@pytest.mark.parametrize(
    ("mtime_ns", "record"),
    [
        (0, None),
        ((8**11 - 1) * 10**9, None),
        (8**11 * 10**9, "8589934592"),
        (1, "0.000000001"),
        (PLAIN * 10**9 + 120_000_000, f"{PLAIN}.12"),
        (-1, "-0.000000001"),
        (-(10**9), "-1"),
        (-1_500_000_000, "-1.5"),
        (-2_000_000_001, "-2.000000001"),
        (-(2**62) * 10**9, str(-(2**62))),
    ],
)
def test_times(mtime_ns: int, record: str | None) -> None:
    data = tar(Member(b"f", mtime_ns=mtime_ns))
    assert members_of(data)[0].pax_headers.get("mtime") == record
    [(entry, _)] = read(data)
    assert entry.mtime_seconds * 10**9 + entry.mtime_nanoseconds == mtime_ns


@pytest.mark.parametrize("owner", [0, 8**7 - 1, 8**7, 2**32 - 1])
def test_owners(owner: int) -> None:
    entry = header(uid=owner, gid=owner)
    assert (entry.uid, entry.gid) == (owner, owner)
    data = tar(Member(b"f", uid=owner, gid=owner))
    assert (members_of(data)[0].uid, members_of(data)[0].gid) == (owner, owner)
    assert (len(data) == 512 + 1024) == (owner < 8**7)


@pytest.mark.parametrize("size", [8 * GIB - 1, 8 * GIB, 9 * GIB, 1 << 40])
def test_sizes(size: int) -> None:
    writer = TarWriter()
    writer.entry(b"f", stat.S_IFREG | 0o644, size=size)
    data = bytes(writer.take())
    entry = next(event for event in walk([data]) if isinstance(event, Read))
    assert entry.size == size
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.next().size == size  # type: ignore[union-attr]


def test_extended_attributes_are_as_they_are_and_sorted() -> None:
    xattrs = {
        b"user.z": bytes(range(256)),
        b"user.a": b"",
        b"user.m": b"1 hdrcharset=x\n=",
        b"security.capability": b"\0",
    }
    data = tar(Member(b"f", xattrs=xattrs))
    [(entry, _)] = read(data)
    assert list(entry.xattrs.items()) == sorted(xattrs.items())
    names = [name for name in members_of(data)[0].pax_headers if name.startswith("SCHILY")]
    assert names == [f"SCHILY.xattr.{name.decode()}" for name in sorted(xattrs)]
    assert data == tar(Member(b"f", xattrs=dict(sorted(xattrs.items()))))


@pytest.mark.parametrize("length", [*range(60, 75), *range(960, 975)])
def test_a_records_length_counts_its_own_digits(length: int) -> None:
    assert header(xattrs={b"user.x": b"v" * length}).xattrs == {b"user.x": b"v" * length}


# Content


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 100_000])
def test_content_comes_in_any_pieces(size: int) -> None:
    content = bytes(i % 251 for i in range(size))
    writer = TarWriter()
    writer.entry(b"f", stat.S_IFREG | 0o644, size=size)
    taken = [bytes(writer.take())]
    for at in range(0, size, 1000):
        writer.data(memoryview(content)[at : at + 1000])
        taken.append(bytes(writer.take()))
    writer.end_data()
    writer.entry(b"g", stat.S_IFREG | 0o644)
    writer.finish()
    assert len(writer) == len(taken[-1:]) * 512 + 1024 + -size % 512
    taken.append(bytes(writer.take()))
    assert len(writer) == 0
    whole = b"".join(taken)
    assert whole == tar(Member(b"f", data=content), Member(b"g"))
    assert [content for _, content in read(whole)] == [content, b""]


def test_what_was_taken_stays() -> None:
    writer = TarWriter()
    assert bytes(writer.take()) == b""
    writer.entry(b"one", stat.S_IFREG | 0o644)
    one = writer.take()
    before = bytes(one)
    writer.entry(b"two", stat.S_IFREG | 0o644)
    two = writer.take()
    del writer
    assert bytes(one) == before
    assert bytes(two)[:3] == b"two"
    assert one.readonly


def test_content_of_another_size_is_refused() -> None:
    writer = TarWriter()
    writer.entry(b"d/f", stat.S_IFREG | 0o644, size=5)
    writer.data(b"123")
    with pytest.raises(CorruptError, match=r'"/d/f".*ends 2 bytes before'):
        writer.end_data()
    with pytest.raises(CorruptError, match=r'"/d/f".*of which 2 bytes were to come, by 1 bytes'):
        writer.data(b"456")
    with pytest.raises(InvalidInput, match="begins before the end"):
        writer.entry(b"g", stat.S_IFREG | 0o644)
    with pytest.raises(InvalidInput, match="ends before the end"):
        writer.finish()


def test_content_without_its_padding_is_refused() -> None:
    writer = TarWriter()
    writer.entry(b"f", stat.S_IFREG | 0o644, size=5)
    writer.data(b"12345")
    with pytest.raises(InvalidInput, match="begins before the end"):
        writer.whiteout(b"g")


# What is refused


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (b"/f", "no empty component"),
        (b"d/", "no empty component"),
        (b"d//f", "no empty component"),
        (b"./f", 'no "."'),
        (b"d/../f", 'no "."'),
        (b"d\0f", "NUL byte"),
        (b".wh.f", r"begins with \"\.wh\.\" says that something was deleted"),
        (b"d/.wh..wh..opq", "says that something was deleted"),
        (b".wh./f", "says that something was deleted"),
        (b"", "the root is a directory"),
    ],
)
def test_paths_that_would_mean_something_else(path: bytes, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        TarWriter().entry(path, stat.S_IFREG | 0o644)
    if path:
        with pytest.raises(InvalidInput, match=message):
            TarWriter().whiteout(path)
        with pytest.raises(InvalidInput, match=message):
            TarWriter().opaque(path)
        with pytest.raises(InvalidInput, match=message):
            TarWriter().entry(b"f", stat.S_IFREG | 0o644, link=path)


def test_there_is_no_whiteout_of_the_root() -> None:
    with pytest.raises(InvalidInput, match="no empty component"):
        TarWriter().whiteout(b"")


@pytest.mark.parametrize("path", [b".wh", b"a.wh.b", b"...", b"..a", b"d/.w"])
def test_paths_that_are_fine(path: bytes) -> None:
    assert header(path=path).path == path


def test_limits() -> None:
    longest = b"/".join([b"n" * 255] * 16)
    assert len(longest) == 4095
    assert header(path=longest).path == longest
    with pytest.raises(LimitExceeded, match=r"4097 bytes in the tar, more than a layer can hold \(4096\)"):
        TarWriter().entry(longest + b"/n", stat.S_IFREG | 0o644)
    with pytest.raises(LimitExceeded, match=r"4099 bytes in the tar"):
        TarWriter().whiteout(longest)
    with pytest.raises(LimitExceeded, match=r"256 bytes, more than a layer can hold \(255\)"):
        TarWriter().entry(b"n" * 256, stat.S_IFREG | 0o644)
    with pytest.raises(LimitExceeded, match=r"4097 bytes, more than a layer can hold \(4096\)"):
        TarWriter().entry(b"l", stat.S_IFLNK | 0o777, target=b"t" * 4097)
    with pytest.raises(LimitExceeded, match=r"1099511627777 bytes, more than a layer can hold"):
        TarWriter().entry(b"f", stat.S_IFREG | 0o644, size=(1 << 40) + 1)
    with pytest.raises(LimitExceeded, match="names and extended attributes take"):
        TarWriter().entry(b"f", stat.S_IFREG | 0o644, xattrs={b"user.%d" % i: bytes(65536) for i in range(17)})
    with pytest.raises(LimitExceeded, match="device number 2097152:0"):
        TarWriter().entry(b"c", stat.S_IFCHR | 0o644, rdev=os.makedev(8**7, 0))


def test_other_input_that_makes_no_sense() -> None:
    writer = TarWriter()
    for name in (b"user.a=b", b"", b"user.\0"):
        with pytest.raises(InvalidInput, match=r'"/f".*extended attribute "[^"]*".*remove the attribute'):
            writer.entry(b"f", stat.S_IFREG | 0o644, xattrs={name: b"v"})
    with pytest.raises(InvalidInput, match="leave sockets out"):
        writer.entry(b"s", stat.S_IFSOCK | 0o755)
    with pytest.raises(InvalidInput, match="only a regular file has content"):
        writer.entry(b"d", stat.S_IFDIR | 0o755, size=1)
    with pytest.raises(InvalidInput, match="only a regular file has content"):
        writer.entry(b"h", stat.S_IFREG | 0o755, size=1, link=b"f")
    with pytest.raises(InvalidInput, match="target is empty"):
        writer.entry(b"l", stat.S_IFLNK | 0o777)
    with pytest.raises(InvalidInput, match="target is empty or has a NUL"):
        writer.entry(b"l", stat.S_IFLNK | 0o777, target=b"a\0b")
    with pytest.raises(OverflowError):
        writer.entry(b"f", stat.S_IFREG | 0o644, uid=1 << 32)


# Any entries


names = st.one_of(
    st.sampled_from([b"a", b"dir", "é".encode(), b"\xff", b"n" * 120, b"=", b"\n"]),
    st.binary(min_size=1, max_size=20).map(lambda name: name.replace(b"\0", b"0").replace(b"/", b"1")),
).filter(lambda name: not name.startswith(b".wh.") and name not in (b".", b".."))
paths = st.lists(names, min_size=1, max_size=5).map(b"/".join)
values = st.one_of(st.binary(max_size=20), st.sampled_from([b"=", b"\n", b"9 path=x\n", b"v" * 300]))
xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 61} & set(name)), values, max_size=3
)
members = st.builds(
    Member,
    path=paths,
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 1),
    gid=st.integers(0, 2**32 - 1),
    mtime_ns=st.one_of(st.integers(-(2**70), 2**70), st.integers(0, 10**10).map(lambda seconds: seconds * 10**9)),
    xattrs=xattrs,
)
KINDS = {
    "regular": stat.S_IFREG,
    "directory": stat.S_IFDIR,
    "symlink": stat.S_IFLNK,
    "hardlink": stat.S_IFREG,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


@st.composite
def any_member(draw: st.DrawFn) -> tuple[Member, str]:
    member, kind = draw(members), draw(st.sampled_from(list(KINDS)))
    member.mode |= KINDS[kind]
    if kind == "regular":
        member.data = draw(st.one_of(st.binary(max_size=40), st.sampled_from([bytes(511), bytes(512), bytes(1025)])))
    elif kind == "symlink":
        member.target = draw(st.one_of(paths, st.just(b"/t" * 200)))
    elif kind == "hardlink":
        member.link = draw(paths)
    elif kind in ("char", "block"):
        member.rdev = os.makedev(draw(st.integers(0, 4095)), draw(st.integers(0, (1 << 20) - 1)))
    return member, kind


@settings(max_examples=300, deadline=None)
@given(st.lists(any_member(), max_size=4))
@example([(Member(b"h", stat.S_IFREG, link=b"\xff" * 200), "hardlink")])
def test_the_walk_reads_what_was_written(entries: list[tuple[Member, str]]) -> None:
    data = tar(*(member for member, _ in entries))
    assert data == tar(*(member for member, _ in entries))
    assert len(data) % 512 == 0
    found = read(data)
    assert len(found) == len(entries)
    for (entry, content), (member, kind) in zip(found, entries, strict=True):
        assert entry.type == kind
        assert entry.path == member.path + b"/" * (kind == "directory")
        assert entry.link == (member.link or member.target or b"")
        assert (entry.mode, entry.uid, entry.gid) == (stat.S_IMODE(member.mode), member.uid, member.gid)
        assert entry.mtime_seconds * 10**9 + entry.mtime_nanoseconds == member.mtime_ns
        assert (content, entry.size, entry.xattrs) == (member.data, len(member.data), member.xattrs)
        assert (entry.device_major, entry.device_minor) == (os.major(member.rdev), os.minor(member.rdev))


# Other readers


def everything() -> list[Member]:
    """Every type, with what needs an extended header; a tree that can be unpacked."""
    second = 10**9
    xattrs = {b"user.a": b"\0=\n"}
    return [
        Member(b"", stat.S_IFDIR | 0o755, mtime_ns=PLAIN * second),
        Member(b"d", stat.S_IFDIR | 0o1777, mtime_ns=5 * second),
        Member(b"d/" + b"n" * 200, data=b"x" * 700, mtime_ns=PLAIN * second + 123_456_789, xattrs=xattrs),
        Member("d/é".encode(), data=b"utf-8", mtime_ns=7 * second),
        Member(b"d/latin\xe9", data=b"latin", mtime_ns=-3 * second),
        Member(b"d/" + b"p" * 90 + b"\xff", stat.S_IFDIR | 0o700, mtime_ns=1),
        Member(b"d/" + b"p" * 90 + b"\xff/" + b"q" * 90, data=b"deep", uid=3_000_000, gid=4_000_000),
        Member(b"d/linked", stat.S_IFREG | 0o644, link=b"d/latin\xe9", mtime_ns=-3 * second),
        Member(b"d/soft", stat.S_IFLNK | 0o777, target=b"t" * 300, mtime_ns=9 * second),
        Member(b"fifo", stat.S_IFIFO | 0o600),
        Member(b"suid", stat.S_IFREG | 0o6755, uid=12, gid=34, data=b"s"),
    ]


def unpacked(root: Path) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(os.fsencode(root)):
        for name in (*directories, *files, *([b"."] if directory == os.fsencode(root) else [])):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            content: object = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    content = file.read()
            elif stat.S_ISLNK(status.st_mode):
                content = os.readlink(path)
            owner = (status.st_uid, status.st_gid)
            times = status.st_mtime_ns
            relative = os.path.relpath(path, os.fsencode(root))
            found[b"" if relative == b"." else relative] = (status.st_mode, owner, times, content)
    return found


def expected() -> dict[bytes, tuple[object, ...]]:
    members = {member.path: member for member in everything()}
    found: dict[bytes, tuple[object, ...]] = {}
    for path, member in members.items():
        inode = members[member.link] if member.link is not None else member
        content = inode.data if stat.S_ISREG(inode.mode) else inode.target
        found[path] = (inode.mode, (inode.uid, inode.gid), inode.mtime_ns, content)
    return found


@pytest.mark.root
@pytest.mark.parametrize("program", [name for name in ("tar", "bsdtar") if shutil.which(name)])
def test_other_programs_unpack_it(tmp_path: Path, program: str) -> None:
    """GNU tar says that it does not know hdrcharset, and takes the bytes as they are."""
    archive, root = tmp_path / "layer.tar", tmp_path / "root"
    archive.write_bytes(tar(*everything()))
    root.mkdir()
    options = ["--xattrs", "--numeric-owner"]
    subprocess.run([program, "-x", "-p", *options, "-f", archive, "-C", root], check=True, capture_output=True)
    found, wanted = unpacked(root), expected()
    if program == "bsdtar":  # it does not set the time of "./"
        found.pop(b"")
        wanted.pop(b"")
    assert found == wanted
    assert os.getxattr(root / "d" / ("n" * 200), "user.a") == b"\0=\n"


def test_an_import_takes_it() -> None:
    index, contents = build_layer(tar(*everything()), bytes(16))
    found = Index(index)
    found.verify()
    assert sorted(record.path for record in found) == sorted(member.path for member in everything())
    assert len(contents) == len([member for member in everything() if member.data])
    record = found.record(found.lookup(b"d/linked") or 0)
    assert (record.count, record.inode) == (2, found.lookup(b"d/latin\xe9"))
