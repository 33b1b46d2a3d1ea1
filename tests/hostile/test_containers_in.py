"""What containers are given: tars, users, names; and what images say of how to run them."""

import gzip
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import tarbytes as tb
from cases import case
from hostile import Pipe, Place, source, tree_of
from images import Image

from layerstore import Container
from layerstore.cli import execute as run_command
from layerstore.containers import users
from layerstore.containers.rootfs import Rootfs
from layerstore.errors import InvalidInput, LayerstoreError, LimitExceeded

OVERLAY = pytest.param("overlay", marks=[pytest.mark.root, pytest.mark.kernel])
READ_WHOLE = "CVE-2022-2879 (archive/tar)"


@pytest.fixture(params=["extent", OVERLAY])
def container(request: pytest.FixtureRequest, place: Place) -> Iterator[Container]:
    made = place.store.create("base:1", driver=request.param)
    yield made
    place.store.remove([made], force=True)
    place.changed()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(
            tb.archive(tb.header(b"p", type=b"x", size=1 << 30), bytes(1024)),
            "byte 0: 1073741824 more bytes.*extended_bytes",
            marks=case("a tar for cp with a pax header of 1 GiB", "refused", READ_WHOLE),
        ),
        pytest.param(
            tb.archive(tb.member(b"f", b"x"), tb.header(b"back", size=-1024)),
            "byte 1024.*-1024",
            marks=case("a tar for cp with a size below 0", "refused", "CVE-2025-8194 (tarfile)"),
        ),
        pytest.param(
            tb.archive(tb.sparse_10(b"s", [], 1, b"", map_bytes=b"x\n")),
            "tar archive",
            marks=case("a tar for cp with a sparse map that is none", "refused"),
        ),
        pytest.param(
            tb.archive(tb.hardlink(b"l", b"l")),
            "'l'.*itself",
            marks=case("a tar for cp with a link to itself", "refused"),
        ),
        pytest.param(
            gzip.compress(tb.archive(tb.member(b"f", b"x" * 3000)), mtime=0)[:-30],
            "tar archive",
            marks=case("a tar for cp whose gzip is cut off", "refused"),
        ),
        pytest.param(
            tb.archive(tb.pax({b"path": b"a/" * 3000 + b"f"}), tb.member(b"x")),
            "6001 bytes.*path_bytes",
            marks=case("a tar for cp with a name of 3,000 levels", "refused"),
        ),
        pytest.param(
            images.zstd.compress(bytes(1024), 1) + images.skippable(bytes(50))[:-1],
            "tar archive.*zstd stream is cut off",
            marks=case("a tar for cp whose skippable frame is cut off", "refused"),
        ),
    ],
)
def test_a_tar_is_refused(place: Place, container: Container, data: bytes, told: str) -> None:
    before = tree_of(place.top, place.top / "store")
    with pytest.raises(LayerstoreError, match=f"(?s){told}") as caught:
        container.unpack(source(Pipe(data)), "/srv")
    assert str(caught.value).isprintable()
    assert tree_of(place.top, place.top / "store") == before


@case("a tar for cp with names of 2,000 levels", "unpacked in the container")
def test_a_deep_name_of_a_tar(container: Container) -> None:
    deep = b"/".join([b"a"] * 1990) + b"/f"
    parts = [tb.pax({b"path": deep}), tb.member(b"x", b"deep"), *[tb.pax(b"")] * 2000, tb.member(b"last")]
    container.unpack(source(io.BytesIO(tb.archive(*parts))), "/etc")
    assert [change.path for change in container.diff()][-2:] == [f"/etc/{deep.decode()}", "/etc/last"]


@case("a tar for cp of ../, absolute names and links out", "unpacked in the container", "CVE-2018-15664 (docker)")
def test_names_of_a_tar(place: Place, container: Container) -> None:
    before = tree_of(place.top, place.top / "store")
    parts = [
        tb.member(b"../../../../etc/up", b"1"),
        tb.member(b"/etc/absolute", b"2"),
        tb.pax({b"linkpath": os.fsencode(place.outside / "etc")}),
        tb.symlink(b"link", b"x"),
    ]
    container.makedirs("/srv") if container.row.driver == "extent" else None
    container.unpack(source(io.BytesIO(tb.archive(*parts))), "/srv")
    paths = {change.path for change in container.diff()}
    assert {"/srv/etc/up", "/srv/etc/absolute", "/srv/link"} <= paths
    with pytest.raises((OSError, LayerstoreError)):
        container.unpack(source(io.BytesIO(tb.archive(tb.member(b"link/passwd", b"mine")))), "/srv")
    assert tree_of(place.top, place.top / "store") == before


@pytest.mark.root
@case(
    "a set-user-ID program of root's with capabilities, and a device, for cp to the host",
    "a program without, no device",
)
def test_what_cp_gives_the_host(place: Place, container: Container) -> None:
    parts = [
        tb.directory(b"srv"),
        tb.pax({b"SCHILY.xattr.security.capability": b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)}),
        tb.header(b"srv/program", mode=0o6755),
        tb.header(b"srv/disk", type=b"4", mode=0o666, device=(7, 240)),
    ]
    container.unpack(source(io.BytesIO(tb.archive(*parts))), "/")
    target = place.cwd / "out"
    with pytest.raises(LayerstoreError, match="device '/srv/disk'"):
        container.copy_out("/srv", target)
    assert [path.name for path in target.iterdir()] == ["program"]
    assert os.stat(target / "program").st_mode & 0o7777 == 0o755
    assert os.listxattr(target / "program") == []
    shutil.rmtree(target)


# Users


@pytest.fixture
def rootfs(tmp_path: Path) -> Path:
    (tmp_path / "rootfs" / "etc").mkdir(parents=True)
    return tmp_path / "rootfs"


@case("an /etc/passwd that is a fifo", "refused, and not waited for")
def test_a_passwd_that_is_a_fifo(rootfs: Path) -> None:
    os.mkfifo(rootfs / "etc" / "passwd")
    with Rootfs(rootfs) as files, pytest.raises(InvalidInput, match="not a regular file"):
        users.look_up(files, "root")


@case("an /etc/passwd that is a link to the host's", "looked for in the image")
def test_a_passwd_that_is_a_link(rootfs: Path) -> None:
    (rootfs / "etc" / "passwd").symlink_to("../../../../../../../etc/passwd")
    (rootfs / "etc" / "group").symlink_to("/etc/group")
    with Rootfs(rootfs) as files:
        for user in ("daemon", "0:daemon"):
            with pytest.raises((InvalidInput, OSError)):
                users.look_up(files, user)


@case("an /etc/passwd of 1 GiB", "refused")
def test_a_passwd_that_is_large(rootfs: Path) -> None:
    with open(rootfs / "etc" / "passwd", "wb") as file:
        file.truncate(1 << 30)
    with Rootfs(rootfs) as files, pytest.raises(LimitExceeded, match="1073741824"):
        users.look_up(files, "root")


@pytest.mark.parametrize(
    "user",
    [
        pytest.param("../../etc/passwd", marks=case("a user ../../etc/passwd", "refused")),
        pytest.param("9" * 5000, marks=case("a user of 5,000 digits", "refused")),
        pytest.param("4294967295", marks=case("a user that is -1 to the kernel", "refused")),
        pytest.param("-1", marks=case("a user -1", "refused")),
        pytest.param("\u0663", marks=case("a user of digits of another script", "refused")),
        pytest.param("evil", marks=case("a user whose id is 2^32 in /etc/passwd", "refused")),
        pytest.param("0:evil", marks=case("a group whose id has 5,000 digits in /etc/group", "refused")),
        pytest.param("root\nx", marks=case("a user with a newline", "refused")),
    ],
)
def test_a_user_is_refused(rootfs: Path, user: str) -> None:
    (rootfs / "etc" / "passwd").write_text(f"root:x:0:0::/root:\nevil:x:{1 << 32}:0::/:\n")
    (rootfs / "etc" / "group").write_text(f"evil:x:{'9' * 5000}:\n")
    with Rootfs(rootfs) as files, pytest.raises(InvalidInput):
        users.look_up(files, user)


# Names


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../../etc", marks=case("a container named ../../etc", "refused")),
        pytest.param("a/b", marks=case("a container named a/b", "refused")),
        pytest.param(".", marks=case("a container named .", "refused")),
        pytest.param("\x1b[2J", marks=case("a container of escapes for the terminal", "refused")),
        pytest.param("a\nb", marks=case("a container with a newline", "refused")),
        pytest.param("a\0b", marks=case("a container with a NUL", "refused")),
        pytest.param("\ud800", marks=case("a container of half a letter", "refused")),
        pytest.param("n" * 10_000, marks=case("a container of 10,000 letters", "refused")),
    ],
)
def test_a_name_is_refused(place: Place, name: str) -> None:
    place.refuses(lambda: place.store.create("base:1", name=name, driver="extent"), InvalidInput, ".")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("../../etc", marks=case("a snapshot named ../../etc", "refused")),
        pytest.param("a\0b", marks=case("a snapshot with a NUL", "refused")),
        pytest.param("..", marks=case("a snapshot named ..", "refused")),
    ],
)
def test_the_name_of_a_snapshot_is_refused(place: Place, container: Container, name: str) -> None:
    with pytest.raises(InvalidInput):
        container.snapshot(name)


# What commands print

HISTORY = [{"created": "\x1b[31m", "created_by": "\x1b]0;title\x07 \u202e\nx", "comment": "\x9b2J"}]


@case("a history of escapes for the terminal", "printed without them")
def test_what_an_image_says_is_printed_without_escapes(place: Place, capfd: pytest.CaptureFixture[str]) -> None:
    runtime = {"Env": ["A=\x1b[2J"], "Cmd": ["\x1b[2J"], "Labels": {"\x1b[2J": "\x9b"}}
    image = Image(
        place.base.layers, ["escapes:1"], runtime, {"history": HISTORY, "author": "\x1b[2J", "created": "\x1b[2J"}
    )
    place.store.load(io.BytesIO(images.tar_of(images.docker_files([image]))))
    for words in (["history", "escapes:1"], ["inspect", "escapes:1"], ["images"], ["layers", "escapes:1"]):
        assert run_command(["--root", str(place.store.root), *words]) == 0
        out, err = capfd.readouterr()
        assert all(c.isprintable() or c == "\n" for c in out + err), words
    place.drop("escapes:1")
    place.changed()


@case("an archive of an entry of escapes, by command", "told without them, status 1")
def test_what_a_command_tells(place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(tb.archive(tb.member(b"\x1b[2J\n/../../x")))
    assert run_command(["--root", str(place.store.root), "import", str(tmp_path / "x.tar"), "x:1"]) == 1
    _, err = capfd.readouterr()
    assert "leaves the root" in err
    assert all(c.isprintable() or c == "\n" for c in err)


@case("--limit", "holds for the command")
def test_a_limit_of_a_command(place: Place, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.tar").write_bytes(tb.archive(tb.member(b"x", b"x" * 5000)))
    words = ["import", str(tmp_path / "x.tar"), "x:1"]
    assert run_command(["--root", str(place.store.root), "--limit", "file_bytes=1kB", *words]) == 1
    assert "file_bytes (1000)" in capfd.readouterr()[1]
    assert run_command(["--root", str(place.store.root), "--limit=nothing=1", *words]) == 1
    assert "no limit 'nothing'" in capfd.readouterr()[1]
    assert run_command(["--root", str(place.store.root), "--limit=file_bytes=x", *words]) == 1
    assert "not a size" in capfd.readouterr()[1]
