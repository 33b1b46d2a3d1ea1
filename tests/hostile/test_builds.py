"""Dockerfiles, contexts and archives that ADD unpacks."""

import gzip
import io
import os
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import contexts
import images
import pytest
import tarbytes as tb
from cases import case
from exchanging import exchanging
from hostile import Place, raises, tree_of
from images import Image

from layerstore import Limits, Store
from layerstore._core.hashing import blake3
from layerstore.building.dockerfile import parse
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, LimitExceeded, NotFound

_ROUNDS = 100
DEEP = b"/".join([b"d"] * 2000)


class Work:
    def __init__(self, place: Place, context: Path) -> None:
        self.place = place
        self.context = context

    def build(self, dockerfile: bytes) -> Image:
        (self.context / "Dockerfile").write_bytes(dockerfile)
        return self.place.store.build(self.context, names=["hostile:1"], pull="never")  # type: ignore[return-value]

    def fails(self, dockerfile: bytes, error: type[Exception], told: str) -> None:
        (self.context / "Dockerfile").write_bytes(dockerfile)
        before = {image.id for image in self.place.store.images()}
        beside = tree_of(self.place.top, self.place.top / "store")
        raises(lambda: self.place.store.build(self.context, pull="never"), error, told)
        assert {image.id for image in self.place.store.images()} == before
        assert tree_of(self.place.top, self.place.top / "store") == beside


@pytest.fixture
def work(place: Place, tmp_path: Path) -> Iterator[Work]:
    (tmp_path / "context").mkdir()
    yield Work(place, tmp_path / "context")
    for image in place.store.images():
        if "hostile:1" in image.names:
            place.store.remove_image("hostile:1")


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(
            tb.archive(tb.header(b"p", type=b"x", size=1 << 30), bytes(1024)),
            "a.tar.*1073741824 more bytes.*extended_bytes",
            marks=case("ADD of an archive with a pax header of 1 GiB", "refused", "CVE-2022-2879 (archive/tar)"),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.header(b"back", size=-1024)),
            'a.tar.*"back".*size is negative: -1024',
            marks=case("ADD of an archive with a size below 0", "refused", "CVE-2025-8194 (tarfile)"),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.header(b"cut", size=1 << 20)),
            "a.tar",
            marks=case("ADD of an archive that is cut off", "refused"),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.pax(b"0 path=x\n"), tb.member(b"g")),
            "a.tar",
            marks=case("ADD of an archive with a pax record of length 0", "refused", "CVE-2019-20907 (tarfile)"),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.sparse_10(b"s", [], 1, b"", map_bytes=b"x\n")),
            "a.tar",
            marks=case("ADD of an archive with a sparse map that is none", "refused"),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.pax({b"size": b"-1536"}), tb.member(b"f", b"x")),
            "a.tar.*size=-1536 is negative",
            marks=case("ADD of an archive with a size below 0 in a pax header", "refused", "CVE-2025-8194 (tarfile)"),
        ),
        pytest.param(
            tb.archive(tb.sparse_10(b"s", [], 1 << 42, b"")),
            "a.tar.*4398046511104 bytes.*file_bytes",
            marks=case("ADD of an archive with a sparse file of 4 TiB", "refused at the limit"),
        ),
        pytest.param(
            tb.archive(tb.sparse_10(b"s", [], 1 << 36, b"")),
            "a.tar: with 's' .* holes of 68719476736 bytes in 3072 of the archive, .*layer_ratio",
            marks=case("ADD of an archive with a hole of 64 GiB", "refused at the limit"),
        ),
        pytest.param(
            tb.archive(tb.sparse_10(b"s", [(2 * n, 1) for n in range(70_000)], 140_000, bytes(70_000))),
            "a.tar.*70000 extents.*sparse_extents",
            marks=case("ADD of an archive with a sparse map of 70,000 extents", "refused at the limit"),
        ),
        *(
            pytest.param(
                tb.archive(tb.pax({b"mtime": text}), tb.member(b"f", b"x")),
                f"a.tar.*{told}",
                marks=case(f"ADD of an archive with a time of {shown}", "refused"),
            )
            for text, told, shown in (
                (b"1e900000", "mtime=1e900000 is not a decimal number", "1e900000"),
                (b"inf", "mtime=inf is not a decimal number", "inf"),
                (b"9" * 30, "does not fit 64 bits", "30 digits"),
            )
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.header(b"old", mtime=1 << 70)),
            "a.tar.*mtime.*does not fit 64 bits",
            marks=case("ADD of an archive with a time of 71 bits", "refused"),
        ),
        *(
            pytest.param(
                tb.archive(tb.member(b"f", b"x"), tb.header(b"null", type=b"3", device=(number, 0))),
                f"a.tar.*{number}:0",
                marks=case(f"ADD of an archive with a device number of {number.bit_length()} bits", "refused"),
            )
            for number in (1 << 40, 1 << 31)
        ),
        *(
            pytest.param(
                tb.archive(tb.member(b"f", b"x"), part),
                f"a.tar.*{told}",
                marks=case(f"ADD of an archive with a {told}", "refused"),
            )
            for part, told in (
                (tb.header(b"f", uid=-1), "uid -1"),
                (tb.header(b"f", gid=1 << 32), "gid 4294967296"),
                (tb.pax({b"gid": b"-1"}) + tb.member(b"f"), "gid=-1"),
            )
        ),
        pytest.param(
            gzip.compress(tb.archive(tb.member(b"f", b"x" * 5000)), mtime=0)[:-20],
            "a.tar",
            marks=case("ADD of an archive whose gzip is cut off", "refused"),
        ),
    ],
)
def test_an_archive_is_refused(work: Work, data: bytes, told: str) -> None:
    (work.context / "a.tar").write_bytes(data)
    work.fails(b"FROM base:1\nADD a.tar /x/\n", LayerstoreError, told)


@case("ADD of a bomb of gzip", "refused at the limit")
def test_a_bomb(tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "a.tar").write_bytes(gzip.compress(tb.archive(tb.member(b"f", bytes(20 << 20)))))
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nADD a.tar /\n")
    with Store(tmp_path / "store", create=True, limits=Limits(layer_bytes=10 << 20)) as store:
        raises(lambda: store.build(tmp_path / "context"), LimitExceeded, "a.tar.*layer_bytes")
        assert store.images() == []


@case("ADD of an archive of more holes than the limit", "refused at the limit")
def test_holes(tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    (tmp_path / "context" / "a.tar").write_bytes(tb.archive(*[tb.sparse_10(b"s", [], 6 << 20, b"")] * 2))
    (tmp_path / "context" / "Dockerfile").write_text("FROM scratch\nADD a.tar /\n")
    with Store(tmp_path / "store", create=True, limits=Limits(hole_bytes=10 << 20)) as store:
        raises(lambda: store.build(tmp_path / "context"), LimitExceeded, "a.tar.*holes of 12582912 bytes, .*hole_bytes")


@case(
    "ADD of an archive of ../ and absolute names",
    "unpacked below the directory, links followed inside the image",
    "CVE-2007-4559",
)
def test_names_of_an_archive(work: Work) -> None:
    outside = os.fsencode(work.place.outside)
    parts = [
        tb.member(b"../../../../etc/up", b"1"),
        tb.member(b"/etc/absolute", b"2"),
        tb.pax({b"linkpath": outside}),
        tb.symlink(b"link", b"x"),
        tb.member(b"link/etc/passwd", b"mine"),
        tb.member(b"a/../../../b", b"3"),
    ]
    (work.context / "a.tar").write_bytes(tb.archive(*parts))
    before = tree_of(work.place.top, work.place.top / "store")
    image = work.build(b"FROM base:1\nADD a.tar /x/\n")
    view = image.view  # type: ignore[attr-defined]
    assert view.read_bytes("/x/etc/up") == b"1"
    assert view.read_bytes("/x/etc/absolute") == b"2"
    assert view.read_bytes(f"{work.place.outside}/etc/passwd") == b"mine"
    assert view.read_bytes("/etc/passwd") == b"lower\n"
    assert tree_of(work.place.top, work.place.top / "store") == before


@case("a hard link of an archive to a file outside", "refused: the image has none there")
def test_a_hard_link_of_an_archive(work: Work) -> None:
    (work.context / "a.tar").write_bytes(tb.archive(tb.hardlink(b"l", b"../../../../../../etc/shadow")))
    work.fails(b"FROM base:1\nADD a.tar /x/\n", Exception, "shadow|link")


# Contexts


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/etc/passwd", marks=case("COPY through a link to /etc/passwd", "looked for in the context")),
        pytest.param("../outside/etc/passwd", marks=case("COPY through a link to ../", "looked for in the context")),
    ],
)
def test_a_link_out_of_the_context(work: Work, target: str) -> None:
    (work.context / "link").symlink_to(target)
    work.fails(b"FROM base:1\nCOPY link /x\n", NotFound, "link is not in the build context")


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, id=step, marks=case(f"{step}, a directory of it exchanged for a link out, and back", done))
        for step in ("COPY . /x/", "COPY d /x/d/", "ADD . /x/", "ADD d/a.tar /x/d/")
        for done in ("it has the context's own, or is an error",)
    ],
)
def test_a_directory_that_is_exchanged_while_it_is_read(work: Work, step: str) -> None:
    directory, outside, dockerfile = work.context / "d", work.place.new_path(), work.place.new_path()
    for path, said in ((directory, b"mine"), (outside, b"secret")):
        path.mkdir()
        (path / "f").write_bytes(said)
        (path / "a.tar").write_bytes(tb.archive(tb.member(b"f", said)))
    (work.context / "link").symlink_to(outside)
    secrets = {blake3(b"secret"), blake3((outside / "a.tar").read_bytes())}
    dockerfile.write_text(f"FROM base:1\n{step}\n")
    told = []
    with exchanging(directory, work.context / "link"):
        for _ in range(_ROUNDS):
            try:
                image = work.place.store.build(work.context, dockerfile=dockerfile, no_cache=True, pull="never")
            except (Conflict, NotFound) as error:
                told.append(str(error))
            else:
                assert not secrets & {seen.digest for seen in contexts.tree_of(image).values()}
    assert len(told) < _ROUNDS and not any("secret" in each for each in told)


@pytest.mark.parametrize(
    "archive",
    [
        pytest.param(archive, id=name, marks=case(f"ADD of an archive with a name of 2,000 levels ({name})", "done"))
        for name, archive in {
            "pax": tb.archive(tb.pax({b"path": DEEP}), tb.member(b"f", b"x")),
            "GNU": tb.archive(tb.gnu_long(DEEP), tb.member(b"f", b"x")),
        }.items()
    ],
)
def test_a_deep_name_of_an_archive(work: Work, archive: bytes) -> None:
    (work.context / "a.tar").write_bytes(archive)
    image = work.build(b"FROM base:1\nADD a.tar /x/\n")
    assert image.view.read_bytes(f"/x/{DEEP.decode()}") == b"x"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("archive", "told"),
    [
        pytest.param(
            tb.archive(tb.pax({b"path": b"d/" * 3000 + b"f"}), tb.member(b"f", b"x")),
            "a.tar: .*d/d/d/.*6001 bytes.*path_bytes",
            marks=case("ADD of an archive with a name of 3,000 levels", "refused at the limit"),
        ),
        pytest.param(
            tb.archive(tb.pax({b"linkpath": b"d/" * 500_000}), tb.hardlink(b"f", b"x")),
            "a.tar: .*d/d/d/.*1000000 bytes.*path_bytes",
            marks=case("ADD of an archive with a hard link to a name of 500,000 levels", "refused at the limit"),
        ),
    ],
)
def test_an_archive_that_is_too_deep(work: Work, archive: bytes, told: str) -> None:
    (work.context / "a.tar").write_bytes(archive)
    work.fails(b"FROM base:1\nADD a.tar /x/\n", LimitExceeded, told)


@case("ADD of an archive with 3,000 pax headers in a row", "the last one holds")
def test_an_archive_of_many_extended_headers(work: Work) -> None:
    headers = [tb.pax({b"path": b"%d" % number}) for number in range(3000)]
    (work.context / "a.tar").write_bytes(tb.archive(*headers, tb.member(b"f", b"x")))
    image = work.build(b"FROM base:1\nADD a.tar /x/\n")
    assert image.view.listdir("/x") == ["2999"]  # type: ignore[attr-defined]


_NAMES = [b"d/%d" % number for number in range(20_000)]


@pytest.mark.parametrize(
    ("parts", "count"),
    [
        pytest.param(
            [tb.header(name) for name in _NAMES * 2],
            20_000,
            marks=case("ADD of an archive of 20,000 files, each there twice", "done in time"),
        ),
        pytest.param(
            [tb.header(b"d/f"), *(tb.hardlink(name, b"d/f") for name in _NAMES), *map(tb.header, [b"d/f", *_NAMES])],
            20_001,
            marks=case("ADD of an archive of a file of 20,000 names that are others afterwards", "done in time"),
        ),
        pytest.param(
            [*map(tb.header, _NAMES), *[tb.directory(b"d/e/"), tb.header(b"d/e")] * 10_000],
            20_001,
            marks=case("ADD of an archive with a directory and a file in turn 10,000 times", "done in time"),
        ),
    ],
)
def test_an_archive_that_replaces_what_it_has(work: Work, parts: list[bytes], count: int) -> None:
    (work.context / "a.tar").write_bytes(tb.archive(*parts))
    start = time.process_time()
    image = work.build(b"FROM base:1\nADD a.tar /x/\n")
    assert time.process_time() - start < 10
    assert len(image.view.listdir("/x/d")) == count  # type: ignore[attr-defined]


def make_deep(directory: Path, levels: int, name: str) -> None:
    """Directories in one another, with a file in the last: deeper than a path of the system can say."""
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        above, fd = fd, os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(above)
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)


@pytest.fixture
def deep(work: Work) -> Iterator[Work]:
    make_deep(work.context / "deep", 1100, "d")
    make_deep(work.context / "long", 17, "d" * 250)
    yield work
    subprocess.run(["rm", "-rf", work.context], check=True)  # Python's own has a limit on what it goes down into


@case(
    "a context of 1,100 levels, and of paths longer than any of the system", "copied; refused at the limit or left out"
)
def test_a_deep_context(deep: Work) -> None:
    told = "Dockerfile:2: .*context/long/ddd.* bytes, more than the limit path_bytes"
    deep.fails(b"FROM base:1\nCOPY . /x/\n", LimitExceeded, told)
    (deep.context / ".dockerignore").write_text("**\n!*/*/end\n")
    deep.fails(b"FROM base:1\nCOPY . /x/\n", LimitExceeded, told)
    (deep.context / ".dockerignore").write_text("long\n.d*\nD*\n")
    image = deep.build(b"FROM base:1\nCOPY . /x/\n")
    assert image.view.listdir("/x") == ["deep"]  # type: ignore[attr-defined]
    assert image.view.exists("/x/deep/" + "d/" * 1100 + "end")  # type: ignore[attr-defined]


@case("COPY to a path of 100,000 levels", "refused at the limit")
def test_a_deep_destination(work: Work) -> None:
    (work.context / "f").write_text("x")
    for step in (b"COPY f /", b"ADD f /", b"WORKDIR /"):
        work.fails(b"FROM base:1\n" + step + b"d/" * 100_000, LimitExceeded, "Dockerfile:2: /d/d/.*path_bytes")


@case("a FIFO, a socket and a device in a context", "copied and not opened; the socket is left out")
@pytest.mark.root
def test_what_is_no_file_of_a_context(work: Work) -> None:
    for name, kind in {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK, "null": stat.S_IFCHR}.items():
        os.mknod(work.context / name, kind | 0o644, os.makedev(1, 3))
    (work.context / "link").symlink_to("fifo")
    named = (b"COPY fifo link null /x/", b"ADD fifo null /x/", b"COPY f* n* /x/", b"COPY fifo socket null /x/")
    for step in (b"COPY . /x/", b"ADD . /x/", *named, b"COPY * /x/", b"ADD [fns]* /x/"):
        image = work.build(b"FROM base:1\n%s\n" % step)
        modes = {name: image.view.stat(f"/x/{name}").st_mode for name in ("fifo", "null")}  # type: ignore[attr-defined]
        assert {name: stat.S_IFMT(mode) for name, mode in modes.items()} == {"fifo": stat.S_IFIFO, "null": stat.S_IFCHR}
        assert not image.view.exists("/x/socket")  # type: ignore[attr-defined]
    for step in (b"COPY socket /x", b"ADD s*t /x/"):
        work.fails(b"FROM base:1\n" + step, NotFound, "Dockerfile:2: nothing matches s.*t$")
    work.fails(b"FROM base:1\nRUN --mount=type=bind,source=socket,target=/s x", NotFound, "source=socket is a socket")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=case(f"a FIFO in the place of {name}", "refused, and not waited for"))
        for name in ("Dockerfile", ".dockerignore")
    ],
)
def test_a_fifo_that_a_build_would_wait_for(work: Work, name: str) -> None:
    (work.context / "Dockerfile").write_text("FROM base:1\n")
    (work.context / name).unlink(missing_ok=True)
    os.mkfifo(work.context / name)
    raises(lambda: work.place.store.build(work.context, pull="never"), InvalidInput, f"{name} is no regular file")


@case("a .dockerignore of 20,000 patterns", "done in time")
def test_a_dockerignore_of_many_patterns(work: Work) -> None:
    lines = (shape.format(n) for n in range(5000) for shape in ("a{}/*.txt", "*.x{}", "**/b{}/*.txt", "**/*.{}"))
    (work.context / ".dockerignore").write_text("\n".join(lines))
    (work.context / "kept").write_text("x")
    image = work.build(b"FROM base:1\nCOPY . /x/\n")
    assert image.view.exists("/x/kept")  # type: ignore[attr-defined]


@case("a Dockerfile that is a link to a file outside", "refused, and nothing of the file is told")
def test_a_dockerfile_that_leads_out(work: Work) -> None:
    (work.context / "Dockerfile").symlink_to(work.place.outside / "etc" / "passwd")
    told = raises(lambda: work.place.store.build(work.context), NotFound, "Dockerfile is a link that leads to nothing")
    assert "canary" not in told


@case("COPY of ../", "refused")
def test_copy_from_above(work: Work) -> None:
    work.fails(b"FROM base:1\nCOPY ../outside /x\n", InvalidInput, "outside of the build context")


@case("COPY to ../../", "stays in the image")
def test_copy_to_above(work: Work) -> None:
    (work.context / "f").write_text("x")
    image = work.build(b"FROM base:1\nCOPY f ../../../../../f\n")
    assert image.view.read_bytes("/f") == b"x"  # type: ignore[attr-defined]


@case("a .dockerignore of patterns that would be tried for ever", "done in time")
def test_a_dockerignore_that_takes_long(work: Work) -> None:
    (work.context / ".dockerignore").write_text("**/" * 12 + "*a" * 12 + "b\n" + "*" * 40 + "x\n")
    (work.context / ("a" * 60)).write_text("x")
    image = work.build(b"FROM base:1\nCOPY . /x/\n")
    assert image.view.exists("/x/" + "a" * 60)  # type: ignore[attr-defined]


@case("a pattern of COPY that would be tried for ever", "done in time")
def test_a_pattern_that_takes_long(work: Work) -> None:
    (work.context / ("a" * 120)).write_text("x")
    work.fails(b"FROM base:1\nCOPY " + b"*a" * 20 + b"b /x/\n", NotFound, "nothing matches")


# Dockerfiles


def dockerfile(name: str, data: bytes, error: type[Exception], told: str) -> object:
    return pytest.param(data, error, told, id=name, marks=case(name, "refused"))


@pytest.mark.parametrize(
    ("data", "error", "told"),
    [
        dockerfile("a Dockerfile that is no UTF-8", b"FROM \xff\n", InvalidInput, "Dockerfile is not UTF-8"),
        dockerfile("a Dockerfile of a name that leads out", b"FROM ../../etc\n", LayerstoreError, "Dockerfile:1"),
        dockerfile("a Dockerfile of escapes", b"FROM base:1\n\x1b[2JRUN x\n", InvalidInput, r"Dockerfile:2"),
        dockerfile(
            "an ENV that names itself without end", b"FROM base:1\nENV A=${A:-${A:-\n", InvalidInput, "Dockerfile:2"
        ),
        dockerfile(
            "1,000 nested variables",
            b"FROM base:1\nENV A=" + b"${A:-" * 1000 + b"}" * 1000 + b"\n",
            LimitExceeded,
            "Dockerfile:2",
        ),
        dockerfile("a heredoc without end", b"FROM base:1\nCOPY <<EOF /x\nabc\n", InvalidInput, "Dockerfile:2"),
        dockerfile("ONBUILD of ONBUILD", b"FROM base:1\nONBUILD ONBUILD ENV a=b\n", InvalidInput, "Dockerfile:2"),
        dockerfile(
            "a user of 5,000 digits",
            b"FROM base:1\nCOPY --chown=" + b"9" * 5000 + b" Dockerfile /x\n",
            InvalidInput,
            "Dockerfile:2",
        ),
    ],
)
def test_a_dockerfile_is_refused(work: Work, data: bytes, error: type[Exception], told: str) -> None:
    work.fails(data, error, told)


@case("a Dockerfile of 100 MB", "refused, and not read to its end")
def test_a_large_dockerfile(work: Work) -> None:
    with open(work.context / "Dockerfile", "wb") as file:
        file.truncate(100_000_000)
    raises(lambda: work.place.store.build(work.context), LimitExceeded, "Dockerfile is too large.*dockerfile_bytes")
    raises(lambda: parse(b" " * 100, "Dockerfile", Limits(dockerfile_bytes=99)), LimitExceeded, "dockerfile_bytes")


@case("a .dockerignore of 100 MB", "refused, and not read to its end")
def test_a_large_dockerignore(work: Work) -> None:
    with open(work.context / ".dockerignore", "wb") as file:
        file.truncate(100_000_000)
    work.fails(b"FROM base:1\n", LimitExceeded, "dockerignore is too large.*dockerfile_bytes")


@case("an image whose /etc/passwd is hostile, for --chown", "names are looked up in what is right of it")
def test_chown_by_a_hostile_passwd(work: Work) -> None:
    lines = b"evil:x:" + b"9" * 5000 + b":0::/:\n:::::::\nann:x:5:6::/:\n\xff\xfe:x:1:1::/:\n"
    data = images.tar_of(images.docker_files([Image([tb.archive(tb.member(b"etc/passwd", lines))], ["passwd:1"])]))
    work.place.store.load(io.BytesIO(data))
    (work.context / "f").write_text("x")
    image = work.build(b"FROM passwd:1\nCOPY --chown=ann f /f\n")
    assert image.view.stat("/f").st_uid == 5  # type: ignore[attr-defined]
    work.fails(b"FROM passwd:1\nCOPY --chown=evil f /f\n", InvalidInput, '"evil" an ID greater than')
    work.fails(b"FROM passwd:1\nCOPY --chown=../../etc/passwd f /f\n", InvalidInput, "is not in /etc/passwd")
