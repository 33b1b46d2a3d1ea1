"""What the family of images is made with: times as of a build, and .pyc files that stay those of their source."""

import importlib.util
import io
import tarfile
from pathlib import Path

import pytest

from bench.family import EPOCH, FILES_A_SECOND, rebuild, tar_layer

SOURCE, CACHED = "lib/module.py", "lib/__pycache__/module.cpython-313.pyc"
HASHED = "lib/__pycache__/hashed.cpython-313.pyc"
MAGIC = importlib.util.MAGIC_NUMBER
CODE = bytes(range(100))
NO_TIME = bytes(4)


def pyc(flags: int, stamp: bytes) -> bytes:
    return MAGIC + flags.to_bytes(4, "little") + stamp + CODE


FILES = {
    SOURCE: b"x = 1\n",
    CACHED: pyc(0, NO_TIME + b"\6\0\0\0"),
    HASHED: pyc(1, b"12345678"),
    "lib/hashed.py": b"y = 1\n",
    "etc/hostname": b"host\n",
    "etc/passwd": b"root:x:0:0\n",
    "var/lib/dpkg/info/tar.list": b"/bin/tar\n",
}


def members(tar: Path) -> dict[str, tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(tar) as source:
        return {m.name: (m, file.read() if (file := source.extractfile(m)) else b"") for m in source}


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for name, content in FILES.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    (root / "lib/link").symlink_to("module.py")
    (root / "lib/tool").hardlink_to(root / "etc/passwd")
    tar_layer(root, tmp_path / "layer.tar", EPOCH)
    return tmp_path / "layer.tar"


def stamp(content: bytes) -> int:
    return int.from_bytes(content[8:12], "little")


def test_a_layer_has_the_times_of_its_build_and_else_what_was_installed(layer: Path, tmp_path: Path) -> None:
    found = members(layer)
    assert {member.mtime for member, _ in found.values()} == {EPOCH}
    for name, content in FILES.items():
        assert (found[name][1] == content) == (name != CACHED), name
    assert found[CACHED][1] == pyc(0, EPOCH.to_bytes(4, "little") + b"\6\0\0\0")
    assert found["lib/link"][0].linkname == "module.py"
    assert found["lib/tool"][0].islnk()


def test_a_build_takes_time(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for number in range(2 * FILES_A_SECOND + 1):
        (root / f"{number:04}").touch()
    tar_layer(root, tmp_path / "layer.tar", EPOCH)
    times = [member.mtime for member, _ in members(tmp_path / "layer.tar").values()]
    assert times == sorted(times)
    assert set(times) == {EPOCH, EPOCH + 1, EPOCH + 2}


def test_a_rebuild_changes_times_and_what_has_them_in_it(layer: Path, tmp_path: Path) -> None:
    before = members(layer)
    outs = [tmp_path / f"{number}.tar" for number in (0, 0, 1)]
    for number, out in zip((0, 0, 1), outs, strict=True):
        rebuild(layer, out, number)
    assert outs[0].read_bytes() == outs[1].read_bytes()
    rebuilt = [members(out) for out in outs[1:]]
    for found in rebuilt:
        assert stamp(found[CACHED][1]) == found[SOURCE][0].mtime
        assert {name for name, (_, content) in before.items() if found[name][1] != content} == {CACHED, "etc/hostname"}
        assert len({member.mtime for member, _ in found.values()}) > 1
        assert found["lib/tool"][0].islnk()
        assert b"status installed tar\n" in found["var/log/dpkg.log"][1]
    assert rebuilt[0].keys() == rebuilt[1].keys()
    for name in before:
        assert rebuilt[0][name][0].mtime < rebuilt[1][name][0].mtime, name
    assert rebuilt[0]["var/cache/ldconfig/aux-cache"][1] != rebuilt[1]["var/cache/ldconfig/aux-cache"][1]


def test_a_time_in_an_extended_header_goes_too(tmp_path: Path) -> None:
    tar, out = tmp_path / "in.tar", tmp_path / "out.tar"
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as target:
        member = tarfile.TarInfo("file")
        member.mtime, member.pax_headers = 5.5, {"SCHILY.xattr.user.name": "value"}
        target.addfile(member, io.BytesIO())
    rebuild(tar, out, 0)
    found, _ = members(out)["file"]
    assert found.mtime > EPOCH
    assert found.pax_headers == {"SCHILY.xattr.user.name": "value"}
