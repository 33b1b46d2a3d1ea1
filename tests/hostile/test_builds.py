"""Dockerfiles, contexts and archives that ADD unpacks."""

import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path

import contexts
import images
import pytest
import tarbytes as tb
from exchanging import exchanging
from hostile import Place, case, raises, tree_of
from images import Image

from layerstore import Limits, Store
from layerstore._core.hashing import blake3
from layerstore.building.dockerfile import parse
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, LimitExceeded, NotFound

_ROUNDS = 100


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
            "a.tar.*1073741824 bytes.*extended_bytes",
            marks=case("ADD of an archive with a pax header of 1 GiB", "refused", "CVE-2022-2879 (archive/tar)"),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.header(b"back", size=-1024)),
            "a.tar.*'back'.*-1024 bytes",
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
            gzip.compress(tb.archive(tb.member(b"f", b"x" * 5000)))[:-20],
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
