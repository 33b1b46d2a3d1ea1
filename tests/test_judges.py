"""Mounted trees against what `umoci unpack` and docker's overlay2 make of the same images, entry by entry.

Where the two disagree with each other, csrc/index/layer.h and csrc/index/merge.h say what we chose, and a test here
says which judge that is:

- An entry below a symlink of a lower layer: docker (the directory takes the symlink's place); umoci follows the link.
- A parent that a layer does not describe: umoci (it keeps mode, owner and time of the lower layer's directory);
  docker makes a new one of its own that hides them.
- A hard link to a file of a lower layer: umoci (it is linked); docker refuses the layer.
- A hard link whose header says other things than its file's: umoci (they are ignored); docker gives them to the file.
- Two entries of one path: umoci (the later one counts); docker refuses the layer.

Neither reads GNU's old sparse form; tests/test_layer_judges.py has GNU tar for that.
"""

import hashlib
import os
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import NamedTuple

import images
import pytest
import tarbytes
from host_tree import acl
from images import Image, docker_files, oci_files, tar_of
from layer_model import Entry, write_entry

from bench.fixtures import Fixtures, default_cache
from bench.peers import Docker, PeerError, output
from layerstore import Store
from layerstore._core.index import IMPLIED, Index
from layerstore._core.layer import build_layer

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.peers]


class Seen(NamedTuple):
    """What a judge can say of one path."""

    type: int
    mode: int | None  # None, as the next two: no layer says it
    owner: tuple[int, int] | None
    mtime_ns: int | None
    xattrs: dict[str, bytes]
    links: frozenset[bytes]
    content: bytes | int | None  # the digest of what is in it, a symlink's target, a device's number


def tree(root: Path) -> dict[bytes, Seen]:
    top = os.fsencode(root)
    paths = [b"."]
    for directory, directories, files in os.walk(top):
        paths += [os.path.relpath(os.path.join(directory, name), top) for name in directories + files]
    stats = {path: os.lstat(os.path.join(top, path)) for path in paths}
    # An overlay gives its directories' numbers and its files' from different sources.
    groups: dict[tuple[int, int], set[bytes]] = {}
    for path, status in stats.items():
        groups.setdefault((status.st_dev, status.st_ino), set()).add(path)
    links = {path: groups[status.st_dev, status.st_ino] for path, status in stats.items()}
    return {path: look(os.path.join(top, path), stats[path], links[path]) for path in paths}


def look(path: bytes, status: os.stat_result, links: set[bytes]) -> Seen:
    content: bytes | int | None = None
    if stat.S_ISREG(status.st_mode):
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
    elif stat.S_ISLNK(status.st_mode):
        content = os.readlink(path)
    elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
        content = status.st_rdev
    xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)}
    own = {name: value for name, value in xattrs.items() if not name.startswith("trusted.overlay.")}
    who = (status.st_uid, status.st_gid)
    kind, mode = stat.S_IFMT(status.st_mode), stat.S_IMODE(status.st_mode)
    return Seen(kind, mode, who, status.st_mtime_ns, own, frozenset(links), content)


def undescribed(tars: list[bytes], *, by_the_topmost: bool) -> set[bytes]:
    """Directories whose mode, owner, time and attributes no layer says, or not the topmost of those that have them."""
    found: dict[bytes, bool] = {}
    for tar in tars:
        index = Index(build_layer(tar, bytes(16))[0])
        for record in index:
            path = record.path or b"."
            implied = bool(record.flags & IMPLIED)
            found[path] = implied if by_the_topmost else implied and found.get(path, True)
    return {path for path, implied in found.items() if implied}


def compare(ours: dict[bytes, Seen], theirs: dict[bytes, Seen], unsaid: set[bytes]) -> None:
    assert ours.keys() == theirs.keys()
    for path, seen in ours.items():
        other = theirs[path]
        if path in unsaid:
            seen = seen._replace(mode=None, owner=None, mtime_ns=None, xattrs={})
            other = other._replace(mode=None, owner=None, mtime_ns=None, xattrs={})
        assert (path, seen) == (path, other)


def written(tmp_path: Path, image: Image) -> Path:
    archive = tmp_path / "archive.tar"
    archive.write_bytes(tar_of(docker_files([image])))
    return archive


def ours(tmp_path: Path, image: Image) -> dict[bytes, Seen]:
    return shown(tmp_path, written(tmp_path, image))


def shown(tmp_path: Path, archive: Path) -> dict[bytes, Seen]:
    with Store(tmp_path / "store", create=True) as store:
        (loaded,) = store.load(archive)
        container = store.create(loaded)
        try:
            with container.mount() as root:
                return tree(root)
        finally:
            container.remove()


def umoci(tmp_path: Path, image: Image) -> dict[bytes, Seen]:
    return unpacked(tmp_path, images.write_directory(oci_files([image]), tmp_path / "layout"), "1")


def unpacked(tmp_path: Path, layout: Path, tag: str) -> dict[bytes, Seen]:
    root = tmp_path / "umoci"
    done = subprocess.run(
        ["umoci", "raw", "unpack", "--image", f"{layout}:{tag}", root], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    try:
        return tree(root)
    finally:
        shutil.rmtree(root)


def overlay2(docker: Docker, tmp_path: Path, image: Image) -> AbstractContextManager[Path]:
    return loaded_by_docker(docker, tmp_path, written(tmp_path, image), image.names[0], len(image.layers))


@contextmanager
def loaded_by_docker(docker: Docker, tmp_path: Path, archive: Path, name: str, count: int) -> Iterator[Path]:
    """Docker's layers of an image as one tree: without the one that it makes for /dev, /etc/hosts and the like."""
    docker.load(archive)
    container = output(docker.command("create", name, "/none"))
    try:
        lower = output(docker.command("inspect", "--format", "{{.GraphDriver.Data.LowerDir}}", container)).split(":")
        layers = [directory for directory in lower if not directory.endswith("-init/diff")]
        assert len(layers) == count == len(lower) - 1
        if len(layers) == 1:
            yield Path(layers[0])
            return
        target = tmp_path / "overlay2"
        target.mkdir()
        subprocess.run(["mount", "-t", "overlay", "none", "-o", f"ro,lowerdir={':'.join(layers)}", target], check=True)
        try:
            yield target
        finally:
            subprocess.run(["umount", target], check=True)
    finally:
        output(docker.command("rm", container))
        docker.remove(name)


def folder(path: str, **more: object) -> Entry:
    return Entry("dir", path, mode=0o755, mtime=(1_000_000, 0), **more)  # type: ignore[arg-type]


NOBODY = 0xFFFFFFFF
ACL = acl((1, 6, NOBODY), (2, 4, 1000), (4, 4, NOBODY), (0x10, 6, NOBODY), (0x20, 0, NOBODY))
CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
LARGE = bytes(range(256)) * 400
T = (1_700_000_000, 123_456_789)
ROOT_ENTRY = folder(".")
Layers = list[list[Entry | bytes]]

CASES: dict[str, Layers] = {
    "hard links": [
        [
            ROOT_ENTRY,
            Entry("file", "f", data=LARGE, mtime=T),
            Entry("hardlink", "g", link="f", mtime=T),
            Entry("hardlink", "h", link="f", mtime=T),
        ],
        [Entry("file", "f", data=b"replaced"), Entry("file", "i", data=b"i"), Entry("hardlink", "j", link="i")],
        [Entry("file", "h", data=b"h"), Entry("file", ".wh.i")],
    ],
    "symlinks": [
        [
            ROOT_ENTRY,
            folder("d"),
            Entry("file", "d/f", data=b"f"),
            Entry("symlink", "s", link="d", mtime=T),
            Entry("symlink", "dangling", link="/no/where", uid=5),
        ],
        [
            Entry("symlink", "d/up", link="../d/f"),
            Entry("symlink", "s2", link="s" * 1000),
            Entry("file", "s", data=b"no link now"),
        ],
    ],
    "below a symlink of the same layer": [
        [
            ROOT_ENTRY,
            folder("usr"),
            folder("usr/lib"),
            Entry("symlink", "lib", link="usr/lib"),
            Entry("file", "lib/x", data=b"x"),
        ],
        [folder("usr"), folder("usr/lib"), Entry("file", "usr/lib/y", data=b"y")],
    ],
    "devices and fifos": [
        [
            ROOT_ENTRY,
            Entry("char", "null", device=(1, 3), mode=0o666, mtime=T),
            Entry("block", "disk", device=(8, 1), gid=6),
            Entry("fifo", "pipe", mode=0o600),
        ],
        [Entry("char", "many", device=(5, 70_000)), Entry("fifo", "null", mode=0o622), Entry("file", ".wh.pipe")],
    ],
    "attributes": [
        [
            folder(".", xattrs={"trusted.root": b"r"}),
            Entry(
                "file",
                "ping",
                data=b"program",
                mode=0o755,
                xattrs={"security.capability": CAPABILITY, "trusted.x": b"\0\xff" * 40},
            ),
            folder("d", xattrs={"trusted.d": b"1"}),
            Entry("file", "d/f", data=LARGE, xattrs={"trusted.same": b"v" * 100}),
        ],
        [Entry("file", "ping", data=b"program 2", mode=0o755), Entry("file", "e", xattrs={"trusted.same": b"v" * 100})],
    ],
    "access control lists": [
        [ROOT_ENTRY, Entry("file", "f", data=b"x", mode=0o660, xattrs={"system.posix_acl_access": ACL})],
        [Entry("file", "g", data=b"y", mode=0o660, xattrs={"system.posix_acl_access": ACL})],
    ],
    "modes and owners": [
        [
            ROOT_ENTRY,
            Entry("file", "su", data=b"su", mode=0o4755),
            Entry("file", "sg", mode=0o2711, gid=8),
            Entry("dir", "tmp", mode=0o1777, mtime=T),
        ],
        [
            Entry("file", "none", mode=0),
            Entry("file", "big", data=b"b", uid=3_000_000_000, gid=2_000_000_000),
            Entry("dir", "tmp", mode=0o2750, uid=9, mtime=T),
        ],
    ],
    "sparse": [
        [
            ROOT_ENTRY,
            tarbytes.sparse_10(b"s1", [(1 << 20, 5000), (3 << 20, 0)], 3 << 20, LARGE[:5000]),
            tarbytes.sparse_00(b"s2", [(0, 512), (100_000, 512)], 100_512, LARGE[:1024]),
        ],
        [tarbytes.sparse_01(b"s3", [(70_000, 100)], 80_000, LARGE[:100]), Entry("file", "zeros", data=bytes(200_000))],
    ],
    "times": [
        [
            ROOT_ENTRY,
            *(
                Entry("file", f"t{i}", data=b"t", mtime=(s, n))
                for i, (s, n) in enumerate([(0, 1), (T[0], 999_999_999), (2**32 + 5, 7), (1, 0)])
            ),
            Entry("dir", "d", mode=0o755, mtime=T),
            Entry("file", "d/f", mtime=(3, 3)),
        ],
        [Entry("symlink", "l", link="x", mtime=T), Entry("dir", "d", mode=0o755, mtime=(9, 9))],
    ],
    "a directory over a file and back": [
        [
            ROOT_ENTRY,
            Entry("file", "a", data=b"file"),
            folder("b"),
            Entry("file", "b/in", data=b"in"),
            Entry("symlink", "c", link="b"),
        ],
        [folder("a"), Entry("file", "a/x", data=b"x"), Entry("file", "b", data=b"file now"), folder("c")],
        [
            Entry("file", "a", data=b"file again"),
            folder("b"),
            Entry("file", "b/new", data=b"n"),
            Entry("symlink", "c", link="a"),
        ],
        [folder("a"), Entry("file", "a/y", data=b"y")],
    ],
    "whiteouts": [
        [
            ROOT_ENTRY,
            folder("d"),
            folder("d/e"),
            Entry("file", "d/f", data=b"f"),
            Entry("file", "d/e/g", data=b"g"),
            Entry("file", "x", data=b"x"),
        ],
        [folder("d"), Entry("file", "d/.wh.f"), Entry("file", ".wh.x"), Entry("file", "y", data=b"y")],
        [Entry("file", "x", data=b"again"), folder("d"), Entry("file", "d/.wh.e")],
        [folder("d"), folder("d/e"), Entry("file", "d/e/h", data=b"h")],
    ],
    "opaque directories": [
        [ROOT_ENTRY, folder("d"), Entry("file", "d/a", data=b"a"), folder("d/s"), Entry("file", "d/s/t", data=b"t")],
        [folder("d"), Entry("file", "d/.wh..wh..opq"), Entry("file", "d/b", data=b"b"), folder("d/s")],
        [folder("d"), Entry("file", "d/c", data=b"c"), folder("d/s"), Entry("file", "d/s/u", data=b"u")],
        [folder("d"), folder("d/s"), Entry("file", "d/s/.wh..wh..opq")],
    ],
    "a whiteout of a directory that comes again": [
        [ROOT_ENTRY, folder("d"), Entry("file", "d/a", data=b"a")],
        [Entry("file", ".wh.d"), Entry("file", "other", data=b"o")],
        [folder("d"), Entry("file", "d/b", data=b"b")],
    ],
    "entries without their parents": [
        [Entry("file", "p/q/r/f", data=b"f", mtime=T), Entry("file", "p/g", data=b"g")],
        [Entry("file", "p/q/h", data=b"h"), Entry("symlink", "new/s", link="x")],
        [Entry("file", "p/q/r/.wh.f"), Entry("dir", "p/q", mode=0o700, uid=4, mtime=T)],
    ],
    "duplicate entries": [
        [
            ROOT_ENTRY,
            Entry("file", "f", data=b"one"),
            Entry("file", "f", data=b"two", mode=0o600),
            folder("d"),
            Entry("file", "d/x", data=b"x"),
            Entry("dir", "d", mode=0o700, mtime=T),
        ],
        [
            Entry("file", "d/y", data=b"1"),
            Entry("symlink", "d/y", link="2"),
            Entry("file", "d/y", data=b"3", mtime=T),
            Entry("dir", "d", mode=0o711, mtime=T),
        ],
    ],
    "long names": [
        [
            ROOT_ENTRY,
            Entry("file", "n" * 255, data=b"n"),
            *(folder("/".join(["p" * 200] * i)) for i in range(1, 6)),
            Entry("file", "/".join(["p" * 200] * 5 + ["f"]), data=b"f"),
        ],
        [
            tarbytes.gnu_long(b"g" * 150) + write_entry(Entry("file", "cut", data=b"g")),
            Entry("file", "/".join(["p" * 200] * 2 + [".wh." + "p" * 200])),
        ],
    ],
    "names that are not UTF-8": [
        [
            ROOT_ENTRY,
            tarbytes.header(b"\xff\xfe", type=b"5", mode=0o755),
            tarbytes.member(b"\xff\xfe/\xe9\n\t", b"x"),
            Entry("file", "ünï", data=b"u"),
        ],
        [
            tarbytes.member(b"\xff\xfe/.wh.\xe9\n\t"),
            tarbytes.header(b"\xff\xfe", type=b"5", mode=0o755),
            tarbytes.member(b"\x80", b"y"),
        ],
    ],
    "empty and small files of equal content": [
        [
            ROOT_ENTRY,
            *(Entry("file", f"e{i}") for i in range(3)),
            *(Entry("file", f"s{i}", data=b"same") for i in range(3)),
        ],
        [*(Entry("file", f"l{i}", data=LARGE) for i in range(3)), Entry("file", "e1", data=b"not empty")],
    ],
}


def image_of(layers: Layers, name: str = "judged:1") -> Image:
    tars = [b"".join(p if isinstance(p, bytes) else write_entry(p) for p in layer) + tarbytes.END for layer in layers]
    return Image(tars, [name])


@pytest.mark.needs_tool("umoci")
@pytest.mark.parametrize("case", CASES)
def test_as_umoci_unpacks(tmp_path: Path, case: str) -> None:
    image = image_of(CASES[case])
    seen = umoci(tmp_path, Image(image.layers, ["1"]))
    compare(ours(tmp_path, image), seen, undescribed(list(image.layers), by_the_topmost=False))


@pytest.mark.parametrize("case", sorted(CASES.keys() - {"duplicate entries"}))
def test_as_docker_shows(tmp_path: Path, docker: Docker, case: str) -> None:
    image = image_of(CASES[case])
    with overlay2(docker, tmp_path, image) as root:
        seen = tree(root)
    compare(ours(tmp_path, image), seen, undescribed(list(image.layers), by_the_topmost=True))


BELOW_A_LOWER_SYMLINK: Layers = [
    [ROOT_ENTRY, folder("usr"), folder("usr/lib"), Entry("symlink", "lib", link="usr/lib")],
    [Entry("file", "lib/x", data=b"x")],
]


def test_below_a_symlink_of_a_lower_layer_as_docker(tmp_path: Path, docker: Docker) -> None:
    image = image_of(BELOW_A_LOWER_SYMLINK)
    with overlay2(docker, tmp_path, image) as root:
        seen = tree(root)
    mine = ours(tmp_path, image)
    compare(mine, seen, undescribed(list(image.layers), by_the_topmost=True))
    assert stat.S_ISDIR(mine[b"lib"].type)
    assert b"usr/lib/x" not in mine


@pytest.mark.needs_tool("umoci")
def test_below_a_symlink_of_a_lower_layer_not_as_umoci(tmp_path: Path) -> None:
    assert b"usr/lib/x" in umoci(tmp_path, Image(image_of(BELOW_A_LOWER_SYMLINK).layers, ["1"]))


UNDESCRIBED_PARENT: Layers = [
    [ROOT_ENTRY, Entry("dir", "d", mode=0o750, uid=7, gid=8, mtime=T)],
    [Entry("file", "d/f", data=b"f")],
]


@pytest.mark.needs_tool("umoci")
def test_a_parent_that_is_not_described_keeps_what_it_was_as_umoci(tmp_path: Path) -> None:
    image = image_of(UNDESCRIBED_PARENT)
    mine, seen = ours(tmp_path, image), umoci(tmp_path, Image(image.layers, ["1"]))
    compare(mine, seen, set())
    assert (mine[b"d"].mode, mine[b"d"].owner, mine[b"d"].mtime_ns) == (0o750, (7, 8), T[0] * 10**9 + T[1])


def test_a_parent_that_is_not_described_is_another_for_docker(tmp_path: Path, docker: Docker) -> None:
    with overlay2(docker, tmp_path, image_of(UNDESCRIBED_PARENT)) as root:
        assert tree(root)[b"d"].owner == (0, 0)


LINK_TO_A_LOWER_LAYER: Layers = [
    [ROOT_ENTRY, Entry("file", "f", data=LARGE, mode=0o640, uid=3, mtime=T)],
    [Entry("hardlink", "g", link="f")],
]


@pytest.mark.needs_tool("umoci")
def test_a_hard_link_to_a_lower_layer_as_umoci(tmp_path: Path) -> None:
    image = image_of(LINK_TO_A_LOWER_LAYER)
    mine = ours(tmp_path, image)
    compare(mine, umoci(tmp_path, Image(image.layers, ["1"])), set())
    assert mine[b"g"].links == {b"f", b"g"}


LINK_THAT_SAYS_OTHERWISE: Layers = [
    [ROOT_ENTRY, Entry("file", "f", data=b"f", mtime=T), Entry("hardlink", "g", link="f", mode=0o600, mtime=(5, 0))],
]


@pytest.mark.needs_tool("umoci")
def test_what_the_header_of_a_hard_link_says_as_umoci(tmp_path: Path, docker: Docker) -> None:
    image = image_of(LINK_THAT_SAYS_OTHERWISE)
    compare(ours(tmp_path, image), umoci(tmp_path, Image(image.layers, ["1"])), set())
    with overlay2(docker, tmp_path, image) as root:
        assert tree(root)[b"f"].mtime_ns == 5 * 10**9


def test_a_hard_link_to_a_lower_layer_is_refused_by_docker(tmp_path: Path, docker: Docker) -> None:
    with pytest.raises(PeerError, match="no such file"), overlay2(docker, tmp_path, image_of(LINK_TO_A_LOWER_LAYER)):
        pass


def test_duplicate_entries_are_refused_by_docker(tmp_path: Path, docker: Docker) -> None:
    image = image_of(CASES["duplicate entries"])
    with pytest.raises(PeerError, match="duplicates of file paths"), overlay2(docker, tmp_path, image):
        pass


def test_user_attributes(tmp_path: Path, docker: Docker) -> None:
    """They survive, on files and directories, as docker has them."""
    image = image_of(
        [[ROOT_ENTRY, Entry("file", "f", data=b"x", xattrs={"user.note": b"n"}), folder("d", xattrs={"user.d": b"d"})]]
    )
    with overlay2(docker, tmp_path, image) as root:
        seen = tree(root)
    mine = ours(tmp_path, image)
    compare(mine, seen, {b"."})  # whose time docker does not keep
    assert mine[b"f"].xattrs == {"user.note": b"n"}


@pytest.fixture(scope="module")
def application() -> Fixtures:
    if not (default_cache() / "debian.tar").exists():
        pytest.skip(f"{default_cache()} has no Debian image: `python -m bench.fixtures` makes it")
    return Fixtures()


@pytest.mark.needs_tool("umoci")
def test_a_real_image(tmp_path: Path, docker: Docker, application: Fixtures) -> None:
    """Debian with Python, flask, and an application: three layers, as both judges show them."""
    tars = [application.debian_tar(), application.flask_tar(), application.app_tar("app-a")]
    archive = application.archive("app-a", "none")
    mine = shown(tmp_path, archive)
    assert len(mine) > 10_000
    layers = [tar.read_bytes() for tar in tars]
    layout = application.oci_layout("app-a", "gzip")
    compare(mine, unpacked(tmp_path, layout, "latest"), undescribed(layers, by_the_topmost=False))
    with loaded_by_docker(docker, tmp_path, archive, "app-a", len(layers)) as root:
        compare(mine, tree(root), undescribed(layers, by_the_topmost=True))
