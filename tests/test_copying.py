"""Copies between the host and containers of both drivers, tars in and out, and the command `cp`."""

import contextlib
import io
import os
import shutil
import stat
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import tarbytes as tb
from exchanging import exchange
from host_tree import Dump, below, small_tree
from images import Image, docker_files, tar_of, zstd_chunked
from layer_model import Entry, write_tar
from test_cli import Cli

from layerstore import Container, Store
from layerstore.cli import execute as run_command
from layerstore.errors import InvalidInput, Unsupported

CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
IMAGE = Image(
    [
        write_tar(
            [
                Entry("dir", "etc", mode=0o755),
                Entry("file", "etc/hosts", data=b"localhost"),
                Entry("file", "large", data=bytes(range(256)) * 2048, mode=0o4755),
                Entry("hardlink", "etc/large", link="large"),
                Entry("symlink", "to-etc", link="/etc"),
                Entry("symlink", "out", link="../../../../../../../../tmp"),
                Entry("dir", "gone", mode=0o755),
                Entry("file", "gone/a", data=b"a"),
            ]
        )
    ],
    ["app:1"],
)
OVERLAY = pytest.param("overlay", marks=[pytest.mark.root, pytest.mark.kernel])


@pytest.fixture
def filled(store: Store) -> Store:
    store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
    return store


@pytest.fixture(params=["extent", OVERLAY])
def container(request: pytest.FixtureRequest, filled: Store) -> Container:
    return filled.create("app:1", driver=request.param)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "tree")


def shown(container: Container, path: str, tmp_path: Path) -> Dump:
    target = tmp_path / "shown"
    shutil.rmtree(target, ignore_errors=True)
    container.copy_out(path, target, keep_owner=os.geteuid() == 0)
    return below(target)


# Trees


def test_a_tree_goes_in_and_comes_out(container: Container, tree: Path, tmp_path: Path) -> None:
    for _ in range(2):  # what is there is replaced
        container.copy_in(tree, "/copied")
        container.copy_out("/copied", tmp_path / "back")
    assert below(tmp_path / "back") == below(tree)
    assert (tmp_path / "back/same").stat().st_ino == (tmp_path / "back/d/file").stat().st_ino
    assert container.state == "created"


def test_holes_stay_holes(container: Container, tmp_path: Path) -> None:
    parts = {0: b"first", 3 << 20: b"x" * 5000, 40 << 20: b"y", 50 << 20: b""}
    contents = {"middle": list(parts), "all": [50 << 20], "none-at-the-end": [0, 3 << 20, 40 << 20]}
    top = tmp_path / "sparse"
    top.mkdir()
    for name, starts in contents.items():
        with (top / name).open("wb") as file:
            for start in starts:
                file.seek(start)
                file.write(parts[start])
            file.truncate()
    container.copy_in(top, "/sparse")
    container.copy_out("/sparse", tmp_path / "out")
    assert below(tmp_path / "out") == below(top)
    if container.row.driver == "extent":
        container.sync()
    used = sum(
        path.lstat().st_blocks for path in [*container.root.parents[2].rglob("*"), *(tmp_path / "out").iterdir()]
    )
    assert used * 512 < 8 << 20


def test_what_is_there_is_merged_and_replaced(container: Container, tree: Path, tmp_path: Path) -> None:
    container.copy_in(tree / "d" / "file", "/etc/hosts")
    container.copy_in(tree, "/etc")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/large").mkdir()
    (tmp_path / "other/large/in").write_bytes(b"in")
    container.copy_in(tmp_path / "other", "/etc")
    assert set(shown(container, "/etc", tmp_path)) == {
        "", "/hosts", "/large", "/large/in", "/d", "/d/empty", "/d/file", "/same", "/link", "/fifo"
    }  # fmt: skip
    assert shown(container, "/etc/hosts", tmp_path)[""][1:] == below(tree)["/d/file"][1:]
    with pytest.raises(IsADirectoryError):
        container.copy_in(tree / "d" / "file", "/etc")


@pytest.mark.root
def test_owners_and_capabilities(container: Container, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    os.chown(file, 1000, 2000)
    os.chmod(file, 0o6755)
    os.setxattr(file, "security.capability", CAPABILITY)
    container.copy_in(file, "/kept", keep_owner=True)
    container.copy_in(file, "/roots")
    for name, owner in [("kept", (1000, 2000)), ("roots", (0, 0))]:
        container.copy_out(f"/{name}", tmp_path / name, keep_owner=True)
        status = os.stat(tmp_path / name)
        assert ((status.st_uid, status.st_gid), stat.S_IMODE(status.st_mode)) == (owner, 0o6755)
        assert os.getxattr(tmp_path / name, "security.capability") == CAPABILITY


@pytest.mark.root
def test_without_owners_nothing_gives_rights_on_the_host(container: Container, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "dir").mkdir(parents=True)
    os.chmod(tree / "dir", 0o3777)
    for name, mode in (("suid", 0o4755), ("sgid", 0o2755), ("sticky", 0o1644)):
        (tree / name).write_bytes(b"1")
        os.chown(tree / name, 1000, 1000)
        for attribute in ("security.capability", "trusted.own", "user.own"):
            os.setxattr(tree / name, attribute, CAPABILITY)
        os.chmod(tree / name, mode)
    os.mknod(tree / "null", stat.S_IFCHR | 0o4666, os.makedev(1, 3))
    os.link(tree / "null", tree / "other-name")
    os.mknod(tree / "loop", stat.S_IFBLK | 0o666, os.makedev(7, 240))
    os.mkfifo(tree / "pipe")
    container.copy_in(tree, "/tree", keep_owner=True)
    for _ in range(2):
        with pytest.raises(Unsupported, match=r"'/tree/loop' and 2 more .*; all else was copied.*--archive"):
            container.copy_out("/tree", tmp_path / "out")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
        pipe_mode = stat.S_IMODE((tree / "pipe").stat().st_mode)
        assert modes == {"dir": 0o3777, "suid": 0o755, "sgid": 0o755, "sticky": 0o644, "pipe": pipe_mode}
        for name in ("suid", "sgid", "sticky"):
            assert os.listxattr(tmp_path / "out" / name) == ["user.own"]
            assert os.stat(tmp_path / "out" / name).st_uid == 0
    container.copy_out("/tree", tmp_path / "out", keep_owner=True)
    assert below(tmp_path / "out") == below(tree)


@pytest.mark.root
def test_a_device_alone_by_command(filled: Store, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    container = filled.create("app:1", driver="extent")
    container.mknod("/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    container.sync()
    command = ["--root", str(filled.root), "cp", f"{container.id}:/null", str(tmp_path / "null")]
    assert run_command(command) == 1
    assert "the device '/null' to the host" in capfd.readouterr()[1]
    assert not (tmp_path / "null").exists()
    assert run_command([*command[:3], "-a", *command[3:]]) == 0
    assert (tmp_path / "null").is_char_device()


def test_links_of_the_container_lead_nowhere_else(container: Container, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"1")
    container.copy_in(file, "/to-etc/new")
    assert b"".join(next(container.entries("/etc/new")).source.pieces()) == b"1"  # type: ignore[union-attr]
    before = set(os.listdir("/tmp"))
    with pytest.raises(FileNotFoundError):
        container.copy_in(file, "/out/escaped")
    container.copy_in(file, "/out")  # the link is replaced, not followed
    assert next(container.entries("/out")).is_file()
    assert "escaped" not in set(os.listdir("/tmp")) - before
    container.copy_in(file, "/../../new")
    assert next(container.entries("/new")).is_file()


def test_what_is_not_there(container: Container, tmp_path: Path) -> None:
    for path, error in [
        ("/none", FileNotFoundError),
        ("/large/x", NotADirectoryError),
        ("/to-etc/no", FileNotFoundError),
    ]:
        with pytest.raises(error) as caught:
            container.copy_out(path, tmp_path / "out")
        assert caught.value.filename == path
        assert not (tmp_path / "out").exists()
    with pytest.raises(FileNotFoundError) as missing:
        container.copy_in(tmp_path, "/none/x")
    assert missing.value.filename == "/none/x"


@pytest.mark.root
@pytest.mark.kernel
def test_a_program_that_swaps_a_directory_for_a_link_does_not_lead_out(filled: Store, tmp_path: Path) -> None:
    """While files are copied into a directory of a mounted container, it becomes a link to a directory of the host."""
    container = filled.create("app:1")
    outside = tmp_path / "outside"
    outside.mkdir()
    source = tmp_path / "source"
    source.mkdir()
    for number in range(50):
        (source / str(number)).write_bytes(b"x")

    def swap(first: Path, second: Path, ended: threading.Event) -> None:
        with contextlib.suppress(FileNotFoundError):  # the copy may remove the link, to put a directory there
            while not ended.is_set():
                exchange(first, second)
                swaps.append(first)

    swaps: list[Path] = []
    with container.mount() as view:
        for number in range(20):
            directory, link, ended = view / f"dir{number}", view / f"link{number}", threading.Event()
            directory.mkdir()
            link.symlink_to(outside)
            swapping = threading.Thread(target=swap, args=(directory, link, ended))
            swapping.start()
            try:
                with contextlib.suppress(OSError):
                    container.copy_in(source, f"/{directory.name}")
            finally:
                ended.set()
                swapping.join()
        container.copy_in(source, "/undisturbed")
        assert len(list((view / "undisturbed").iterdir())) == 50
    assert list(outside.iterdir()) == []
    assert len(set(swaps)) > 10


# Tars


def archive_of(*entries: tuple[tarfile.TarInfo, bytes], mode: str = "w") -> io.BytesIO:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode=mode, format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
        for info, data in entries:
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    made.seek(0)
    return made


def info(name: str, kind: bytes = tarfile.REGTYPE, **rest: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    made.type = kind
    for key, value in rest.items():
        setattr(made, key, value)
    return made


@pytest.mark.parametrize("compression", ["", ":gz", ":xz", ":bz2", "zstd:chunked"])
def test_a_tar_is_unpacked(container: Container, compression: str, tmp_path: Path) -> None:
    archive = archive_of(
        (info("./", tarfile.DIRTYPE, mode=0o750, mtime=7), b""),
        (
            info(
                "new/deep/file", mode=0o4711, mtime=9, pax_headers={"mtime": "9.123456789", "SCHILY.xattr.user.a": "ä"}
            ),
            b"1",
        ),
        (info("new/deep/again", tarfile.LNKTYPE, linkname="new/deep/file"), b""),
        (info("hosts", tarfile.SYMTYPE, linkname="../large"), b""),
        (info("../../up", mode=0o600), b"up"),
        (info("pipe", tarfile.FIFOTYPE, mode=0o620), b""),
        mode="w" + compression if compression.startswith(":") else "w",
    )
    if compression == "zstd:chunked":
        archive = io.BytesIO(zstd_chunked(archive.read()))
    container.unpack(archive, "/etc")
    found = shown(container, "/etc", tmp_path)
    new = ["/new", "/new/deep", "/new/deep/again", "/new/deep/file"]
    assert sorted(found) == ["", "/hosts", "/large", *new, "/pipe", "/up"]
    assert found["/new/deep/file"] == ((0o104711, 0, 0, 2, 1, 0, 9_123456789), {"user.a": "ä".encode()}, b"1")
    assert found["/new/deep/again"] == found["/new/deep/file"]
    assert found["/hosts"][2] == "../large"
    assert found[""][0][:3] == (0o040750, 0, 0)
    assert found[""][0][-1] == 7 * 10**9
    assert stat.S_ISFIFO(found["/pipe"][0][0])


@pytest.mark.root
def test_a_tar_keeps_owners(container: Container, tmp_path: Path) -> None:
    container.unpack(archive_of((info("f", uid=1000, gid=3000, mode=0o6755), b"")), "/")
    assert shown(container, "/f", tmp_path)[""][0][:3] == (0o106755, 1000, 3000)


@pytest.mark.parametrize("data", [b"no tar" * 1000, b"\x1f\x8b junk"])
def test_what_is_no_tar_is_refused(container: Container, data: bytes) -> None:
    with pytest.raises(InvalidInput, match="tar"):
        container.unpack(io.BytesIO(data), "/")


@pytest.mark.parametrize(
    ("name", "target"), [("etc/hosts", "etc/hosts"), ("etc/hosts", "./etc/x/../hosts"), ("etc/hosts", "none")]
)
def test_a_hard_link_that_cannot_be_made_removes_nothing(container: Container, name: str, target: str) -> None:
    with pytest.raises((InvalidInput, FileNotFoundError)):
        container.unpack(archive_of((info(name, tarfile.LNKTYPE, linkname=target), b"")), "/")
    assert next(container.entries("/etc/hosts")).size == 9


def test_a_hard_link_that_is_there_stays(container: Container) -> None:
    archive = archive_of(
        (info("to-etc/hosts", tarfile.LNKTYPE, linkname="etc/hosts"), b""),
        (info("new"), b"1"),
        (info("again", tarfile.LNKTYPE, linkname="new"), b""),
    )
    for _ in range(2):
        archive.seek(0)
        container.unpack(archive, "/")
    assert next(container.entries("/etc/hosts")).size == 9
    assert [entry.link for entry in container.entries("/") if entry.path in (b"again", b"new")] == [None, b"again"]


def test_a_tar_that_is_cut_off_is_refused(container: Container) -> None:
    data = archive_of((info("f"), bytes(100_000))).getvalue()[:50_000]
    with pytest.raises(InvalidInput, match="tar"):
        container.unpack(io.BytesIO(data), "/")


def test_holes_of_a_tar_stay_holes(container: Container, tmp_path: Path) -> None:
    extents = [(5000, 4), (40 << 30, 2)]
    container.unpack(io.BytesIO(tb.archive(tb.sparse_10(b"f", extents, 50 << 30, b"abcdef"))), "/")
    container.copy_out("/f", tmp_path / "f")
    status = (tmp_path / "f").stat()
    assert (status.st_size, status.st_blocks < 1000) == (50 << 30, True)
    with open(tmp_path / "f", "rb") as file:
        assert [file.read(2) for at in (4999, 5002, (40 << 30) + 1) if file.seek(at)] == [b"\0a", b"cd", b"f\0"]


def test_an_exported_tar_gives_the_tree(container: Container, tree: Path, tmp_path: Path) -> None:
    container.copy_in(tree, "/copied")
    container.copy_in(tree / "d", "/gone/a")
    for path, name in [("/", "."), ("/etc", "etc"), ("/copied/d/file", "file"), ("/to-etc/hosts", "hosts")]:
        target = tmp_path / f"tar-{name}"
        target.mkdir()
        (tmp_path / "export.tar").write_bytes(b"".join(container.export(path)))
        options = ["--xattrs", "--xattrs-include=*", "--same-owner" if os.geteuid() == 0 else "--no-same-owner"]
        subprocess.run(["tar", "-xpf", tmp_path / "export.tar", "-C", target, *options], check=True)
        assert below(target / name) == shown(container, path, tmp_path), path
    assert b"".join(container.export()) == b"".join(container.export())


# The command


@pytest.fixture(params=["extent", OVERLAY])
def cli(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cli]:
    root = tmp_path / "store"
    with Store(root, create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        store.create("app:1", name="c", driver=request.param)
    yield Cli(root)
    with Store(root) as store:
        store.remove(store.containers(), force=True)


def listed(cli: Cli, path: str) -> list[str]:
    with Store(cli.root) as store:
        return [os.fsdecode(entry.path) for entry in store.container("c").entries(path)]


class TestCp:
    """Where things land is docker's ("docker container cp", "Description")."""

    def test_files_in(self, cli: Cli, tree: Path) -> None:
        file = tree / "d/file"
        cli("cp", file, "c:/new")
        cli("cp", file, "c:/etc")
        cli("cp", file, "c:/etc/hosts")
        cli("cp", file, "c:/to-etc/x")
        cli("cp", file, "c:rel")
        assert listed(cli, "/etc") == ["etc", "etc/file", "etc/hosts", "etc/large", "etc/x"]
        assert listed(cli, "/new") == ["new"]
        assert listed(cli, "/rel") == ["rel"]
        assert "/none/: No such file" in cli("cp", file, "c:/none/", status=1)
        assert "/etc/hosts/: Not a directory" in cli("cp", file, "c:/etc/hosts/", status=1)
        assert "/none/x: No such file" in cli("cp", file, "c:/none/x", status=1)

    def test_directories_in(self, cli: Cli, tree: Path) -> None:
        cli("cp", tree / "d", "c:/made")
        assert listed(cli, "/made") == ["made", "made/empty", "made/file"]
        cli("cp", tree / "d", "c:/made")
        assert listed(cli, "/made/d") == ["made/d", "made/d/empty", "made/d/file"]
        cli("cp", f"{tree}/d/.", "c:/to-etc")
        assert listed(cli, "/etc/file") == ["etc/file"]
        assert "Not a directory" in cli("cp", tree / "d", "c:/large", status=1)

    def test_files_out(self, cli: Cli, tmp_path: Path) -> None:
        cli("cp", "c:/etc/hosts", tmp_path / "h")
        assert (tmp_path / "h").read_bytes() == b"localhost"
        (tmp_path / "dir").mkdir()
        cli("cp", "c:/to-etc/hosts", tmp_path / "dir")
        assert (tmp_path / "dir/hosts").read_bytes() == b"localhost"
        assert "No such file" in cli("cp", "c:/etc/hosts", f"{tmp_path}/none/", status=1)
        assert "/none: No such file" in cli("cp", "c:/none", tmp_path, status=1)
        assert "/etc/hosts/: Not a directory" in cli("cp", "c:/etc/hosts/", tmp_path, status=1)

    def test_directories_out(self, cli: Cli, tmp_path: Path) -> None:
        target = tmp_path / "out"
        cli("cp", "c:/gone", target)
        assert sorted(below(target)) == ["", "/a"]
        cli("cp", "c:/gone", target)
        assert sorted(below(target)) == ["", "/a", "/gone", "/gone/a"]
        cli("cp", "c:/etc/.", target)
        assert (target / "hosts").exists()
        cli("cp", "c:/.", tmp_path / "whole")
        assert (tmp_path / "whole/etc/hosts").exists()
        assert "Not a directory" in cli("cp", "c:/etc", tmp_path / "out/hosts", status=1)

    def test_links(self, cli: Cli, tmp_path: Path, tree: Path) -> None:
        cli("cp", "c:/to-etc", tmp_path / "link")
        assert os.readlink(tmp_path / "link") == "/etc"
        cli("cp", "-L", "c:/to-etc", tmp_path / "followed")
        assert (tmp_path / "followed/hosts").exists()
        cli("cp", "c:/to-etc/.", tmp_path / "contents")
        assert (tmp_path / "contents/hosts").exists()
        cli("cp", tree / "link", "c:/l")
        cli("cp", "-L", tree / "link", "c:/etc")
        with Store(cli.root) as store:
            container = store.container("c")
            assert next(container.entries("/l")).target == b"d/file"
            assert next(container.entries("/etc/link")).size == 400_000

    def test_a_directory_that_a_relative_link_leads_to(self, cli: Cli, tmp_path: Path, tree: Path) -> None:
        (tmp_path / "to").symlink_to("../gone/.")
        cli("cp", tmp_path / "to", "c:/etc/to")
        for end in ("/.", "/", "/./"):
            with Store(cli.root) as store:
                assert next(store.container("c").entries(f"/etc/to{end}")).path == b"gone"
                assert next(store.container("c").entries("/etc/to")).target == b"../gone/."
                with pytest.raises(NotADirectoryError):
                    next(store.container("c").entries(f"/etc/hosts{end}"))
            name = f"file{len(end)}"
            (tmp_path / name).write_bytes(b"new")
            cli("cp", tmp_path / name, f"c:/etc/to{end}")
            assert f"gone/{name}" in listed(cli, "/gone")
            target = tmp_path / f"out{len(end)}"
            target.mkdir()
            cli("cp", f"c:/etc/to{end}", target)
            assert (target / ("to/a" if end == "/" else "a")).read_bytes() == b"a"
        cli("cp", f"{tree}/d/.", "c:/etc/to/.")
        assert "gone/file" in listed(cli, "/gone")
        assert "/etc/hosts/.: Not a directory" in cli("cp", tree / "d/file", "c:/etc/hosts/.", status=1)
        assert "/etc/hosts/.: Not a directory" in cli("cp", "c:/etc/hosts/.", tmp_path, status=1)
        assert "/none/.: No such file" in cli("cp", "c:/none/.", tmp_path, status=1)

    def test_tars(self, cli: Cli, tmp_path: Path) -> None:
        data = archive_of((info("x/y", mode=0o644), b"y")).getvalue()
        cli("cp", "-", "c:/to-etc", stdin=data)
        assert listed(cli, "/etc/x") == ["etc/x", "etc/x/y"]
        assert "Not a directory" in cli("cp", "-", "c:/large", stdin=data, status=1)
        assert "No such file" in cli("cp", "-", "c:/none", stdin=data, status=1)
        command = [*self_command(), "cp", "c:/gone", "-"]
        done = subprocess.run(command, env=cli.environment, capture_output=True, check=True)
        with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
            assert archive.getnames() == ["gone", "gone/a"]

    def test_two_containers_or_none(self, cli: Cli) -> None:
        for pair in (("c:/a", "c:/b"), ("/a", "/b"), ("./c:x", "-")):
            assert "one of the two is CONTAINER:PATH" in cli("cp", *pair, status=1)

    def test_export(self, cli: Cli, tmp_path: Path) -> None:
        cli("export", "-o", tmp_path / "c.tar", "c")
        with tarfile.open(tmp_path / "c.tar") as archive:
            assert archive.getnames()[:3] == [".", "etc", "etc/hosts"]
        assert os.listdir(tmp_path).count("c.tar") == 1
        assert "No such file" in cli("export", "-o", tmp_path / "none/c.tar", "c", status=1)

    def test_export_to_what_is_no_file(self, cli: Cli, tmp_path: Path) -> None:
        """It is written to, and stays what it is."""
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        got: list[bytes] = []
        reader = threading.Thread(target=lambda: got.append(pipe.read_bytes()))
        reader.start()
        cli("export", "-o", pipe, "c")
        reader.join()
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        with tarfile.open(fileobj=io.BytesIO(got[0])) as archive:
            assert archive.getnames()[:3] == [".", "etc", "etc/hosts"]
        assert "Is a directory" in cli("export", "-o", tmp_path, "c", status=1)

    def test_a_failed_export_leaves_what_was_there(self, cli: Cli, tmp_path: Path) -> None:
        (tmp_path / "c.tar").write_bytes(b"before")
        with Store(cli.root) as store:
            store.container("c").copy_in(tmp_path / "c.tar", "/.wh.x")
        names = sorted(os.listdir(tmp_path))
        assert "/.wh.x" in cli("export", "-o", tmp_path / "c.tar", "c", status=1)
        assert (tmp_path / "c.tar").read_bytes() == b"before"
        assert sorted(os.listdir(tmp_path)) == names


def self_command() -> list[str]:
    import sys

    return [sys.executable, "-m", "layerstore"]
