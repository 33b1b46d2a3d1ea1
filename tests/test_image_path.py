"""`ImagePath` against `pathlib.Path` on the same tree on disk."""

import errno
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from layer_model import Entry, write_tar

from layerstore import Store
from layerstore.views.image_paths import ImagePath

TREE = [
    *(Entry("dir", name, mode=0o755) for name in ("etc", "etc/ssl", "usr", "usr/lib")),
    Entry("file", "etc/os-release", data=b"ID=test\nNAME=\xc3\xa9\n"),
    Entry("file", "etc/.hidden", data=b"1"),
    Entry("file", "etc/ssl/a.tar.gz", data=b"2"),
    Entry("file", "etc/[odd]", data=b"3"),
    Entry("file", "usr/lib/\udcff", data=b"4"),
    Entry("symlink", "lib", link="usr/lib"),
    Entry("symlink", "usr/lib/up", link="../../etc"),
    Entry("symlink", "dangling", link="nowhere/at/all"),
    Entry("symlink", "loop", link="loop"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ImagePath, Path]]:
    """The root of an image, and a directory with the same."""
    top = tmp_path_factory.mktemp("paths")
    disk = top / "disk"
    disk.mkdir()
    for entry in TREE:
        path = disk / entry.path
        if entry.kind == "dir":
            path.mkdir()
        elif entry.kind == "symlink":
            path.symlink_to(entry.link)
        else:
            path.write_bytes(entry.data)
    with Store(top / "store", create=True) as store:
        yield store.import_rootfs(io.BytesIO(write_tar(TREE)), "tree").path, disk


@pytest.fixture
def root(place: tuple[ImagePath, Path]) -> ImagePath:
    return place[0]


PURE: list[Callable[[Any], object]] = [
    lambda p: (p.name, p.stem, p.suffix, p.suffixes, p.parts),
    lambda p: (str(p), p.as_posix(), p.is_absolute()),
    lambda p: (str(p.parent), [str(parent) for parent in p.parents]),
    lambda p: str(p / "x" / "../y"),
    lambda p: str(p / "/etc"),
    lambda p: str(p.joinpath("x", "y/z", ".")),
    lambda p: str(p.with_name("n")),
    lambda p: str(p.with_stem("n")),
    lambda p: str(p.with_suffix(".n")),
    lambda p: str(p.with_suffix("n")),
    lambda p: p.relative_to("/etc"),
    lambda p: (p.is_relative_to("/etc"), p.match("*.gz"), p.match("ssl/*"), p.match("/etc/*/*")),
]


@pytest.mark.parametrize("call", PURE)
@pytest.mark.parametrize(
    "path", ["/", "etc", "/etc/ssl/a.tar.gz", "etc//ssl/./x", "/../up", "/usr/lib/.hidden", "a b/c."]
)
def test_what_a_path_is_called(root: ImagePath, path: str, call: Callable[[Any], object]) -> None:
    def tried(it: Any) -> object:
        try:
            return call(it)
        except ValueError as error:
            return str(error)

    assert tried(root / path) == tried(PurePosixPath("/") / path)


def test_paths_are_compared_and_hashed(root: ImagePath) -> None:
    etc = root / "etc"
    assert etc == root.joinpath("etc") == root / "./etc/" == root / "//etc"
    assert len({etc, root / "etc", root}) == 2
    assert sorted([etc / "b", etc, etc / "a"]) == [etc, etc / "a", etc / "b"]
    assert (root < etc, etc <= etc, etc > root, root >= etc) == (True, True, True, False)
    assert etc != PurePosixPath("/etc")
    assert etc != "/etc"
    assert repr(etc) == "ImagePath('/etc')"
    with pytest.raises(TypeError):
        _ = etc < PurePosixPath("/etc")  # type: ignore[operator]
    with pytest.raises(TypeError):
        os.fspath(etc)  # type: ignore[call-overload]


def test_nothing_writes(root: ImagePath) -> None:
    for method in ("write_bytes", "write_text", "mkdir", "touch", "unlink", "rename", "replace", "rmdir", "chmod"):
        assert not hasattr(root, method)


def told(call: Callable[[Any], object], path: Any) -> object:
    try:
        return call(path)
    except OSError as error:
        return type(error), error.errno


LOOKS: list[Callable[[Any], object]] = [
    lambda p: (p.exists(), p.is_file(), p.is_dir(), p.is_symlink()),
    lambda p: p.stat().st_size if p.is_file() else p.stat() and None,
    lambda p: p.lstat().st_mode >> 12,
    lambda p: p.read_bytes(),
    lambda p: str(p.readlink()),
    lambda p: sorted(child.name for child in p.iterdir()),
    lambda p: p.samefile(p.parent / p.name),
]


@pytest.mark.parametrize("look", LOOKS)
def test_what_is_there(place: tuple[ImagePath, Path], look: Callable[[Any], object]) -> None:
    root, disk = place
    names = [entry.path for entry in TREE]
    for name in [*names, "nope", "etc/os-release/x", "lib/up/os-release", "lib/up/ssl", "lib/../etc", "dangling/x"]:
        assert told(look, root / name) == told(look, disk / name), name


@pytest.mark.parametrize(
    "pattern",
    [
        "*",
        "etc/*",
        "**/*.gz",
        "etc/.*",
        "*/lib",
        "lib/*",
        "etc/ssl/../*",
        "**/os-release",
        "etc/[[]*",
        "l*/up/*",
        "nope/*",
    ],
)
def test_patterns(place: tuple[ImagePath, Path], pattern: str) -> None:
    root, disk = place
    expected = {str(path)[len(str(disk)) :] for path in disk.glob(pattern)}
    assert [str(path) for path in root.glob(pattern)] == sorted(expected)


def test_patterns_below_odd_names(root: ImagePath) -> None:
    """A directory's own name is no pattern."""
    assert list((root / "etc" / "[odd]").glob("*")) == []
    assert list((root / "e*c").glob("*")) == []
    assert [path.name for path in (root / "etc").rglob("*.gz")] == ["a.tar.gz"]
    assert list((root / "etc" / "ssl").glob("**")) == [root / "etc" / "ssl", root / "etc" / "ssl" / "a.tar.gz"]
    with pytest.raises(ValueError, match="Unacceptable"):
        root.glob("")
    with pytest.raises(NotImplementedError):
        root.glob("/etc/*")


def test_resolve(root: ImagePath) -> None:
    assert (root / "lib" / "up" / "os-release").resolve() == root / "etc" / "os-release"
    assert (root / "lib" / ".." / ".." / "x" / "y").resolve() == root / "x" / "y"
    assert (root / "lib" / "up" / "nope" / ".." / "z").resolve() == root / "etc" / "z"
    assert (root / "..").resolve() == root
    with pytest.raises(FileNotFoundError):
        (root / "nope").resolve(strict=True)
    with pytest.raises(OSError, match="Too many") as caught:
        (root / "loop" / "x").resolve()
    assert caught.value.errno == errno.ELOOP


def test_walk_and_open(root: ImagePath) -> None:
    walked = {str(path): (directories, others) for path, directories, others in root.walk()}
    assert list(walked) == ["/", "/etc", "/etc/ssl", "/usr", "/usr/lib"]
    assert walked["/usr/lib"] == (["up"], ["\udcff"])
    assert [path for path, _, _ in (root / "usr").walk(top_down=False)] == [root / "usr" / "lib", root / "usr"]
    with (root / "etc" / "os-release").open() as file:
        assert file.readlines() == ["ID=test\n", "NAME=é\n"]
    with (root / "etc" / "os-release").open("rb") as binary:
        assert binary.read(3) == b"ID="
    assert (root / "etc" / "os-release").read_text("latin-1").endswith("Ã©\n")
    with pytest.raises(OSError, match="Read-only") as caught:
        (root / "etc" / "new").open("w")
    assert caught.value.errno == errno.EROFS
