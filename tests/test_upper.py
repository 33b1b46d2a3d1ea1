"""What a container changed as entries and as a tar: random changes in mounted containers, and each rule by hand.

The judge is the tree that the kernel shows: the image's with the tar applied as one more layer must be the same.
"""

import errno
import io
import os
import random
import resource
import shutil
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from changing import CAPABILITY, Operations, files_below
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from images import Image, docker_files, tar_of
from layer_model import Entry as TarEntry
from layer_model import write_tar
from pools import SEARCH_PATH, needs_mkfs, pool_store
from stack_model import EXAMPLES
from test_changes import judged, said

from layerstore import Container, Store
from layerstore._core import mount
from layerstore._core.clone import join_trees
from layerstore._core.hashing import blake3
from layerstore._core.index import Index, merge
from layerstore._core.layer import build_layer
from layerstore._core.tar import Data, walk
from layerstore._core.tar import Entry as Read
from layerstore._core.upper import UpperWalk, changes
from layerstore.containers import upper
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded
from layerstore.store import frozen
from layerstore.trees.entries import Entry, is_left_out
from layerstore.trees.tarring import tar_pieces

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not mount.features().erofs, reason="mounting needs root, EROFS and overlayfs"
    ),
]

KEY = bytes(range(16))
ACL = bytes.fromhex("0200000001000600ffffffff02000400e803000004000400ffffffff10000400ffffffff20000400ffffffff")
HOST = ("security.selinux", "security.ima")
MKFS = shutil.which("mkfs.ext4", path=SEARCH_PATH) or ""


def image_layers() -> list[bytes]:
    """Every type, and what is awkward; in the random part directories of directories."""
    draw = random.Random(1)
    top = [
        TarEntry("dir", "d", mode=0o755, uid=1, gid=2, mtime=(1000, 5), xattrs={"user.d": b"1"}),
        TarEntry("file", "d/f", data=b"f" * 70_000, mtime=(2000, 123_456_789)),
        TarEntry("file", "d/large", data=b"L" * 200_000, mtime=(2000, 1)),
        TarEntry("file", "d/empty", mtime=(2000, 2)),
        TarEntry("file", "d/one", data=b"linked", mtime=(2000, 3), xattrs={"user.l": b"\0="}),
        TarEntry("hardlink", "d/two", link="d/one"),
        TarEntry("hardlink", "three", link="d/one"),
        TarEntry("dir", "d/sub", mode=0o2750, mtime=(1500, 0)),
        TarEntry("file", "d/sub/g", data=b"g", mode=0o4755, xattrs={"security.capability": CAPABILITY}),
        TarEntry("file", "d/sub/label", data=b"s", xattrs={"security.selinux": b"bin_t", "trusted.overlay.x": b"x"}),
        TarEntry("symlink", "d/sub/link", link="../f", mtime=(3000, 4)),
        TarEntry("fifo", "d/sub/fifo", mode=0o600, mtime=(3000, 0)),
        TarEntry("char", "d/sub/null", mode=0o666, device=(1, 3), mtime=(3000, 0)),
        TarEntry("block", "d/sub/block", mode=0o660, device=(240, 7), mtime=(3000, 0)),
        TarEntry("char", "hidden", mode=0o600, device=(0, 0)),
        TarEntry("char", "d/sub/hidden", mode=0o600, device=(0, 0)),
        TarEntry("dir", "other", mode=0o755),
        TarEntry("dir", "other/sub", mode=0o755),
        TarEntry("file", "other/sub/h", data=b"h", xattrs={"trusted.overlay.opaque": b"y", "trusted.overlay.x": b"x"}),
        TarEntry("file", "acl", data=b"acl", xattrs={"system.posix_acl_access": ACL}),
        TarEntry("file", "labelled", data=b"s", xattrs={"security.selinux": b"system_u:object_r:bin_t:s0\0"}),
    ]  # fmt: skip
    return [write_tar(files_below("", 2, draw)), write_tar(files_below("r", 2, draw)), write_tar(top)]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("upper") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([Image(image_layers(), ["tree:1"])]))))
        yield opened
        opened.remove(opened.containers(), force=True)


@pytest.fixture
def container(store: Store) -> Iterator[Container]:
    made = store.create("tree:1")
    made.mount()
    yield made
    made.remove(force=True)


# What is looked at


class Upper:
    """The upper directory of a container, open."""

    def __init__(self, container: Container) -> None:
        self.index = container.image.index()
        self.contents = container._engine.contents
        self.layout = container._engine.layout
        self.path = container.inspect()["Upper"]

    @contextmanager
    def opened(self) -> Iterator[list[int]]:
        with opened(os.path.dirname(self.path)) as fd, frozen.opened(self.layout, fd) as fds:
            yield fds

    def joined(self) -> Path:
        """What they are together, as one."""
        made = Path(self.layout.root, "joined")
        made.mkdir()
        with self.opened() as fds, opened(made) as fd:
            join_trees(fds, fd)
        return made

    def entries(self) -> list[Entry]:
        with self.opened() as fds:
            return list(upper.entries(fds, self.index, self.contents))

    def tar(self, **more: Any) -> bytes:
        """Written in C, and the same of the entries."""
        with self.opened() as fds:
            written = b"".join(upper.tar_pieces(fds, self.index, self.contents, **more))
            assert written == b"".join(tar_pieces(upper.entries(fds, self.index, self.contents), **more))
        return written

    def applied(self, tar: bytes) -> Index:
        """The index of the image with the tar as a layer upon it."""
        layer, _ = build_layer(tar, KEY)
        return Index(merge([self.index, Index(layer)], KEY))


@contextmanager
def opened(path: str | Path) -> Iterator[int]:
    """A directory's descriptor."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


class Node(NamedTuple):
    """All that tells whether something is the same."""

    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    target: bytes | None
    digest: bytes | None
    xattrs: dict[bytes, bytes]
    inode: object


Tree = dict[bytes, Node]


def kept(xattrs: dict[bytes, bytes]) -> dict[bytes, bytes]:
    return {name: value for name, value in xattrs.items() if not is_left_out(name)}


def mounted_tree(root: Path) -> Tree:
    """What the kernel shows, sockets left out."""
    found: Tree = {}
    top = os.fsencode(root)
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files, *([b""] if directory == top else [])):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            if stat.S_ISSOCK(status.st_mode):
                continue
            target = os.readlink(path) if stat.S_ISLNK(status.st_mode) else None
            digest = None
            if stat.S_ISREG(status.st_mode):
                with open(path, "rb") as file:
                    digest = blake3(file.read())
            names = [os.fsencode(n) for n in os.listxattr(path, follow_symlinks=False)]
            xattrs = {n: os.getxattr(path, n, follow_symlinks=False) for n in names}
            found[os.path.relpath(path, top) if name else b""] = Node(
                *(status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev),
                *(target, digest, kept(xattrs), (status.st_dev, status.st_ino)),
            )
    return found


def indexed_tree(index: Index) -> Tree:
    """What an index shows, but for the device that overlayfs takes for a whiteout."""
    found: Tree = {}
    for number, record in enumerate(index):
        if stat.S_ISCHR(record.mode) and record.rdev == (0, 0):
            continue
        digest = None
        if stat.S_ISREG(record.mode):
            digest = blake3(b"") if record.content is None else index.content(record.content)[0]
        found[record.path] = Node(
            *(record.mode, record.uid, record.gid, record.mtime_ns, os.makedev(*(record.rdev or (0, 0)))),
            *(record.target, digest, kept(record.xattrs), number if stat.S_ISDIR(record.mode) else record.inode),
        )
    return found


def links(tree: Tree) -> set[frozenset[bytes]]:
    """The pairs of paths that are one inode."""
    by_inode: dict[object, list[bytes]] = {}
    for path, node in tree.items():
        by_inode.setdefault(node.inode, []).append(path)
    return {frozenset((a, b)) for paths in by_inode.values() for a in paths for b in paths if a < b}


def assert_same_trees(applied: Tree, shown: Tree, image: Tree, entries: Iterable[bytes] = ()) -> None:
    assert applied.keys() ^ shown.keys() == set()
    for path, node in shown.items():
        assert applied[path]._replace(inode=0) == node._replace(inode=0), path
    # Overlayfs makes two inodes of one when it copies a name up; the layer may have it as one still. What was moved is
    # no longer one inode with what stayed.
    lost = {pair for pair in links(shown) - links(applied) if pair <= set(entries)}
    assert lost == set()
    assert links(applied) - links(shown) - links(image) == set()


def assert_canonical(entries: list[Entry], image: Tree) -> None:
    """In order, and none that says nothing."""
    paths = [entry.path for entry in entries]
    assert paths == sorted(set(paths), key=lambda path: path.split(b"/") if path else [])
    by_path = {entry.path: entry for entry in entries}
    for entry in entries:
        parent = entry.path.rpartition(b"/")[0]
        assert not parent or by_path[parent].is_dir(), f"{entry.path!r} is in no directory"
        below = image if shows_image(parent, by_path, image) else {}
        there = below.get(entry.path)
        if entry.is_whiteout():
            assert there is not None, f"a whiteout of nothing: {entry.path!r}"
            continue
        if entry.opaque:
            assert there is not None and stat.S_ISDIR(there.mode), f"{entry.path!r} is opaque for nothing"
        if there is None or entry.opaque or entry.link is not None or any(e.link == entry.path for e in entries):
            continue
        if any(path.startswith(entry.path + b"/") for path in paths):
            continue
        assert not is_node(entry, there), f"{entry.path!r} is as in the image"


def shows_image(directory: bytes, by_path: dict[bytes, Entry], image: Tree) -> bool:
    """Whether the layer's directory shows what the image has in it."""
    parts = directory.split(b"/") if directory else []
    for i in range(1, len(parts) + 1):
        entry = by_path.get(b"/".join(parts[:i]))
        there = image.get(b"/".join(parts[:i]))
        if entry is not None and (entry.opaque or there is None or not stat.S_ISDIR(there.mode)):
            return False
    return True


def is_node(entry: Entry, node: Node) -> bool:
    mine = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.rdev, entry.target, entry.xattrs)
    if mine != (*node[:6], node.xattrs):
        return False
    return not entry.is_file() or blake3(content(entry)) == node.digest


def content(entry: Entry) -> bytes:
    data = b"" if entry.source is None else b"".join(entry.source.pieces())
    assert len(data) == entry.size
    return data


def check(container: Container, root: Path, image: Tree) -> None:
    """The tar of what changed makes the image what is mounted."""
    changed = Upper(container)
    shown = mounted_tree(root)
    written = changed.tar()
    applied = changed.applied(written)
    applied.verify()
    with changed.opened() as fds:
        entries = list(upper.entries(fds, changed.index, changed.contents))
        assert_same_trees(indexed_tree(applied), shown, image, [entry.path for entry in entries])
        assert_canonical(entries, image)
        for entry in entries:
            if entry.is_file() and entry.link is None:
                assert blake3(content(entry)) == shown[entry.path].digest
            if entry.lower is not None:
                record = changed.index.record(entry.lower)
                assert (record.size, stat.S_IFMT(record.mode)) == (entry.size, stat.S_IFREG)
    joined = changed.joined()
    try:
        assert said(container) == judged(container, joined)
        with opened(joined) as fd:
            assert b"".join(upper.tar_pieces([fd], changed.index, changed.contents)) == written
    finally:
        shutil.rmtree(joined)


# Random changes


@pytest.fixture(scope="module")
def image(store: Store) -> Tree:
    """What a container of the image shows, which must be what its index says."""
    with store.create("tree:1").mount() as root:
        shown = mounted_tree(root)
    indexed = indexed_tree(store.image("tree:1").index())
    assert_same_trees(indexed, shown, indexed)
    return indexed


@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from([1, 2, 4, 8, 20]), min_size=1, max_size=3))
def test_random_changes(store: Store, image: Tree, draw: random.Random, steps: list[int]) -> None:
    """Looked at after so many steps each time, mounted and not."""
    container = store.create("tree:1")
    done: list[str] = []
    try:
        for count in steps:
            with container.mount() as root:
                operations = Operations(root, draw)
                for _ in range(count):
                    operations.step()
                done += [*operations.done, "and"]
                try:
                    check(container, root, image)
                except AssertionError as error:
                    error.add_note(f"after {' '.join(done)}")
                    raise
                tar = Upper(container).tar()
            assert Upper(container).tar() == tar, "it is another when it is not mounted"
    finally:
        container.remove(force=True)


@settings(max_examples=EXAMPLES // 4, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from([1, 2, 4, 8, 20]), min_size=2, max_size=8))
def test_random_changes_of_a_stack(store: Store, image: Tree, draw: random.Random, steps: list[int]) -> None:
    """What was changed so far is frozen each time, and shows as it did."""
    made = [container := store.create("tree:1")]
    done: list[str] = []
    try:
        for number, count in enumerate(steps):
            with container.mount() as root:
                operations = Operations(root, draw)
                for _ in range(count):
                    operations.step()
                done += [*operations.done, "and"]
                shown = mounted_tree(root)
            tar = Upper(container).tar()
            if draw.random() < 0.5:
                container.snapshot(f"s{number}")
            else:
                made.append(container := container.fork())
            with container.mount() as root:
                try:
                    now = mounted_tree(root)
                    assert_same_trees(now, shown, now)
                    check(container, root, image)
                    assert Upper(container).tar() == tar, "it is another when it is frozen"
                except AssertionError as error:
                    error.add_note(f"after {' '.join(done)}")
                    raise
    finally:
        store.remove(made, force=True)
    assert os.listdir(store.layout.frozen) == []


# Each rule


def told(entries: Iterable[Entry]) -> list[str]:
    """A line for each entry: a type, the path, and what is special about it."""
    lines = []
    for entry in entries:
        kind = "-" if entry.is_whiteout() else "?pc?d?b?-?l?s"[stat.S_IFMT(entry.mode) >> 12]
        kind = "." if entry.is_file() else kind
        special = [
            "opaque" if entry.opaque else "",
            f"= {entry.link.decode()}" if entry.link is not None else "",
            "lower" if entry.lower is not None else "",
        ]
        lines.append(" ".join(filter(None, [kind, "/" + entry.path.decode("utf-8", "backslashreplace"), *special])))
    return lines


@contextmanager
def keeping_times(*paths: Path) -> Iterator[None]:
    """In the block directories may change, and have their times back at its end."""
    times = [(path, path.stat().st_mtime_ns) for path in paths]
    yield
    for path, time in times:
        os.utime(path, ns=(time, time))


class TestEach:
    """What each kind of change is told as."""

    @pytest.fixture
    def root(self, container: Container) -> Path:
        return container.root

    @pytest.fixture
    def entries(self, container: Container, root: Path, image: Tree) -> Iterator[Any]:
        changed = Upper(container)
        yield lambda: told(changed.entries())
        check(container, root, image)

    def test_nothing(self, entries: Any, container: Container) -> None:
        assert entries() == []
        assert Upper(container).tar() == bytes(1024)

    def test_a_new_file(self, root: Path, entries: Any) -> None:
        (root / "d/new").write_bytes(b"new")
        assert entries() == ["d /d", ". /d/new"]

    def test_a_new_file_of_the_root(self, root: Path, entries: Any) -> None:
        """It changes the root's time, too."""
        (root / "new").write_bytes(b"new")
        assert entries() == ["d /", ". /new"]

    def test_the_root_is_an_entry_only_where_it_changed(self, root: Path, entries: Any) -> None:
        with keeping_times(root):
            (root / "new").write_bytes(b"new")
        assert entries() == [". /new"]
        root.chmod(0o711)
        assert entries() == ["d /", ". /new"]

    def test_attributes_alone_leave_the_content_below(self, root: Path, entries: Any, container: Container) -> None:
        (root / "d/f").chmod(0o600)
        os.setxattr(root / "d/large", "user.x", b"1")
        os.chown(root / "d/empty", 7, 7)
        assert entries() == ["d /d", ". /d/empty lower", ". /d/f lower", ". /d/large lower"]
        index = container.image.index()
        by_path = {entry.path: entry for entry in Upper(container).entries()}
        assert by_path[b"d/f"].lower == index.lookup(b"d/f")
        assert (by_path[b"d/f"].size, by_path[b"d/empty"].source) == (70_000, None)

    def test_there_and_back_is_nothing(self, root: Path, entries: Any, container: Container) -> None:
        for name in ("d/f", "d/empty", "d", "d/sub/null", "d/sub/fifo"):
            mode = stat.S_IMODE((root / name).stat().st_mode)
            (root / name).chmod(0o700)
            (root / name).chmod(mode)
        os.chown(root / "d/sub/link", 5, 5, follow_symlinks=False)
        os.chown(root / "d/sub/link", 0, 0, follow_symlinks=False)
        assert len(container.diff()) == 7
        assert entries() == []

    @pytest.mark.parametrize("name", ["d/f", "d/large", "d/empty", "acl", "other/sub/h"])
    def test_opened_for_writing_is_nothing(self, root: Path, entries: Any, name: str) -> None:
        """Its whole content is in the upper directory then."""
        os.close(os.open(root / name, os.O_RDWR))
        assert entries() == []

    @pytest.mark.parametrize("name", ["d/f", "d/large"])
    def test_one_byte_less_or_more_is_something(self, root: Path, entries: Any, name: str) -> None:
        path = root / name
        times = path.stat().st_mtime_ns
        data = path.read_bytes()
        for changed in (data[:-1], data + b"+", data[:-1] + b"+"):
            path.write_bytes(changed)
            os.utime(path, ns=(times, times))
            assert entries() == ["d /d", f". /{name}"]
        path.write_bytes(data)
        os.utime(path, ns=(times, times))
        assert entries() == []

    def test_a_deleted_file_and_tree(self, root: Path, entries: Any) -> None:
        (root / "d/f").unlink()
        shutil.rmtree(root / "other")
        assert entries() == ["d /", "d /d", "- /d/f", "- /other"]

    def test_created_and_deleted_again(self, root: Path, entries: Any) -> None:
        with keeping_times(root / "d"):
            (root / "d/new").write_bytes(b"")
            (root / "d/new").unlink()
        assert entries() == []

    def test_a_moved_file_has_the_content_of_where_it_was(self, root: Path, entries: Any) -> None:
        (root / "d/f").rename(root / "d/e")
        (root / "d/large").rename(root / "other/large")
        assert entries() == ["d /d", ". /d/e lower", "- /d/f", "- /d/large", "d /other", ". /other/large lower"]

    def test_a_file_moved_there_and_back(self, root: Path, entries: Any) -> None:
        with keeping_times(root / "d"):
            (root / "d/f").rename(root / "d/e")
            (root / "d/e").rename(root / "d/f")
        assert entries() == []

    def test_two_files_exchanged(self, root: Path, entries: Any, container: Container) -> None:
        with keeping_times(root / "d"):
            (root / "d/f").rename(root / "d/e")
            (root / "d/large").rename(root / "d/f")
            (root / "d/e").rename(root / "d/large")
        assert entries() == ["d /d", ". /d/f lower", ". /d/large lower"]
        index = container.image.index()
        assert [entry.lower for entry in Upper(container).entries()][1:] == [
            index.lookup(b"d/large"),
            index.lookup(b"d/f"),
        ]

    def test_a_moved_directory_is_told_whole(self, root: Path, entries: Any) -> None:
        with keeping_times(root):
            (root / "d").rename(root / "e-")
        assert entries() == [
            "- /d",
            "d /e-",
            *(". /e-/empty lower", ". /e-/f lower", ". /e-/large lower"),
            *(". /e-/one lower", "d /e-/sub", "b /e-/sub/block", "p /e-/sub/fifo", ". /e-/sub/g lower"),
            *(". /e-/sub/label lower", "l /e-/sub/link", "c /e-/sub/null", ". /e-/two = e-/one lower"),
        ]

    def test_changes_in_a_moved_directory(self, root: Path, entries: Any) -> None:
        with keeping_times(root):
            (root / "d").rename(root / "m")
        (root / "m/f").unlink()
        shutil.rmtree(root / "m/sub")
        (root / "m/one").chmod(0o600)
        (root / "m/empty").write_bytes(b"no more")
        (root / "m/new").write_bytes(b"")
        assert entries() == [
            *("- /d", "d /m", ". /m/empty", ". /m/large lower", ". /m/new", ". /m/one lower", ". /m/two lower")
        ]

    def test_a_directory_moved_over_a_deleted_one_is_opaque(self, root: Path, entries: Any) -> None:
        shutil.rmtree(root / "other")
        with keeping_times(root):
            (root / "d/sub").rename(root / "other")
        assert entries()[:4] == ["d /", "d /d", "- /d/sub", "d /other opaque"]
        assert "- /other/sub" not in entries()

    def test_a_directory_moved_there_and_back(self, root: Path, entries: Any) -> None:
        with keeping_times(root, root / "d"):
            (root / "d/sub").rename(root / "d/else")
            (root / "d/else").rename(root / "d/sub")
            (root / "d").rename(root / "elsewhere")
            (root / "elsewhere").rename(root / "d")
        assert entries() == []

    def test_a_directory_of_the_image_in_one_that_is_not(self, root: Path, entries: Any) -> None:
        """It shows what the image has at its path, but not because the layer shows that."""
        with keeping_times(root):
            (root / "other").rename(root / "elsewhere")
            (root / "other").mkdir()
        (root / "elsewhere/sub").rename(root / "other/sub")
        assert entries() == ["d /elsewhere", "d /other opaque", "d /other/sub", ". /other/sub/h lower"]

    def test_emptied_and_filled(self, root: Path, entries: Any) -> None:
        shutil.rmtree(root / "d")
        (root / "d/sub").mkdir(parents=True)
        assert entries() == ["d /", "d /d opaque", "d /d/sub"]

    def test_a_new_directory_hides_nothing(self, root: Path, entries: Any, container: Container) -> None:
        (root / "d/new").mkdir()
        assert os.getxattr(f"{Upper(container).path}/d/new", "trusted.overlay.opaque") == b"y"
        assert entries() == ["d /d", "d /d/new"]

    def test_a_directory_for_a_file_and_a_file_for_a_directory(self, root: Path, entries: Any) -> None:
        (root / "d/f").unlink()
        (root / "d/f").mkdir()
        (root / "d/f/in").write_bytes(b"in")
        shutil.rmtree(root / "d/sub")
        (root / "d/sub").write_bytes(b"")
        assert entries() == ["d /d", "d /d/f", ". /d/f/in", ". /d/sub"]

    def test_hard_links_are_links_to_the_first_name(self, root: Path, entries: Any) -> None:
        (root / "d/z").write_bytes(b"z")
        os.link(root / "d/z", root / "d/sub/a")
        os.link(root / "d/z", root / "other/a")
        os.symlink("x", root / "d/soft")
        os.link(root / "d/soft", root / "other/soft", follow_symlinks=False)
        assert entries() == [
            *("d /d", "l /d/soft", "d /d/sub", ". /d/sub/a", ". /d/z = d/sub/a"),
            *("d /other", ". /other/a = d/sub/a", "l /other/soft = d/soft"),
        ]

    def test_a_hard_link_to_a_file_of_the_image(self, root: Path, entries: Any) -> None:
        """Its first name is an entry then, although it is as in the image."""
        os.link(root / "d/f", root / "d/new")
        assert entries() == ["d /d", ". /d/f lower", ". /d/new = d/f lower"]

    def test_a_hard_link_that_went_again(self, root: Path, entries: Any) -> None:
        with keeping_times(root / "d"):
            os.link(root / "d/f", root / "d/new")
            (root / "d/new").unlink()
        assert entries() == []

    def test_one_of_two_names_of_the_image_changes(self, root: Path, entries: Any) -> None:
        """Overlayfs makes it a file of its own."""
        (root / "d/two").chmod(0o600)
        assert entries() == ["d /d", ". /d/two lower"]

    def test_sockets_count_as_nothing(self, root: Path, entries: Any) -> None:
        (root / "d/f").unlink()
        for name in ("d/f", "d/new"):
            os.mknod(root / name, stat.S_IFSOCK | 0o755)
        assert entries() == ["d /d", "- /d/f"]

    def test_devices_and_fifos(self, root: Path, entries: Any, container: Container) -> None:
        os.mknod(root / "d/char", stat.S_IFCHR | 0o600, os.makedev(240, 1 << 19))
        os.mkfifo(root / "d/pipe")
        assert entries() == ["d /d", "c /d/char", "p /d/pipe"]
        assert Upper(container).entries()[1].rdev == os.makedev(240, 1 << 19)

    def test_what_the_kernel_does_not_show_of_the_image_is_not_there(self, root: Path, entries: Any) -> None:
        """A 0:0 device of the image: overlayfs would take it for a whiteout."""
        with keeping_times(root):
            (root / "hidden").write_bytes(b"")
        assert entries() == [". /hidden"]
        with keeping_times(root):
            (root / "hidden").unlink()
        assert entries() == []

    def test_attributes_that_are_overlayfss_or_the_hosts_are_left_out(self, root: Path, container: Container) -> None:
        (root / "d/new").write_bytes(b"")
        for name in (*HOST, "security.capability", "user.x", "trusted.x", "trusted.overlay.x"):
            value = CAPABILITY if name == "security.capability" else name.encode()
            os.setxattr(root / "d/new", name, value)
        upper_names = os.listxattr(f"{Upper(container).path}/d/new")
        assert "trusted.overlay.overlay.x" in upper_names
        assert set(HOST) <= set(upper_names)
        assert Upper(container).entries()[-1].xattrs == {
            b"security.capability": CAPABILITY,
            b"trusted.x": b"trusted.x",
            b"user.x": b"user.x",
        }

    def test_attributes_of_the_image_come_along(self, root: Path, entries: Any, container: Container) -> None:
        """But for the same ones."""
        (root / "other/sub/h").chmod(0o600)
        (root / "labelled").chmod(0o600)
        (root / "acl").rename(root / "d/acl")
        (root / "d").rename(root / "moved")
        by_path = {entry.path: entry for entry in Upper(container).entries()}
        assert by_path[b"other/sub/h"].xattrs == {}
        assert by_path[b"labelled"].xattrs == {}
        assert by_path[b"moved/acl"].xattrs == {b"system.posix_acl_access": ACL}
        assert by_path[b"moved/sub/g"].xattrs == {b"security.capability": CAPABILITY}
        assert by_path[b"moved/sub/label"].xattrs == {}
        assert "d /other/sub" in entries()

    def test_names_of_any_bytes(self, root: Path, entries: Any) -> None:
        top = os.fsencode(root)
        for name in (b"\xff", b"\n", b"=", b"n" * 255):
            with open(top + b"/d/" + name, "wb") as file:
                file.write(name)
        assert entries() == ["d /d", ". /d/\n", ". /d/=", f". /d/{'n' * 255}", ". /d/\\xff"]

    def test_the_longest_name_is_deleted(self, store: Store, container: Container) -> None:
        (container.root / ("n" * 255)).write_bytes(b"")
        image = container.commit("longest:1")
        with store.create("longest:1").mount() as root:
            (root / ("n" * 255)).unlink()
            again = store.containers()[0].commit("longest:2")
        assert again.view.exists("/d")
        assert image.view.exists("/" + "n" * 255)
        assert not again.view.exists("/" + "n" * 255)

    def test_a_name_that_no_layer_can_have(self, root: Path, container: Container) -> None:
        (root / "d/.wh.f").write_bytes(b"")
        assert told(Upper(container).entries()) == ["d /d", ". /d/.wh.f"]
        with pytest.raises(InvalidInput, match=r'"/d/\.wh\.f" to a layer'):
            Upper(container).tar()


# Contents


def test_sources_read_what_is_there(container: Container) -> None:
    """Of a file that has grown or was cut short as much as there was; of one that went or was replaced, nothing."""
    root = container.root
    for name in ("grows", "goes", "replaced", "cut", "link"):
        (root / name).write_bytes(b"0123456789")
    changed = Upper(container)
    with opened(changed.path) as fd:
        sources = {entry.path: entry.source for entry in upper.entries([fd], changed.index, changed.contents)}
        with open(root / "grows", "ab") as file:
            file.write(b"more")
        (root / "goes").unlink()
        (root / "other-file").write_bytes(b"0123456789")
        (root / "other-file").rename(root / "replaced")
        os.truncate(root / "cut", 5)
        (root / "link").unlink()
        (root / "link").symlink_to("grows")
        grown = sources[b"grows"]
        assert grown is not None
        assert b"".join(grown.pieces()) == b"0123456789"
        cut = sources[b"cut"]
        assert cut is not None
        assert b"".join(cut.pieces()) == b"01234" + bytes(5)
        for name in (b"goes", b"replaced", b"link"):
            source = sources[name]
            assert source is not None
            with pytest.raises(OSError, match="changed this file") as caught:
                list(source.pieces())
            assert (caught.value.errno, caught.value.filename) == (errno.ESTALE, "/" + name.decode())


def test_large_files_are_asked_for_in_order(container: Container) -> None:
    """What is larger than a pack takes, and has a name of its own."""
    root = container.root
    with keeping_times(root):
        (root / "d").rename(root / "moved")
        (root / "big").write_bytes(b"b" * 131_073)
        (root / "fits").write_bytes(b"f" * 131_072)
        os.link(root / "big", root / "same")
    asked: list[int] = []

    def clone(source: Any, size: int) -> tuple[Iterable[bytes], int]:
        asked.append(size)
        return iter([b"".join(source.pieces())]), size

    changed = Upper(container)
    with opened(changed.path) as fd:
        written = b"".join(upper.tar_pieces([fd], changed.index, changed.contents, clone))
    assert asked == [131_073, 200_000]
    assert written == changed.tar()
    asked.clear()
    with opened(changed.path) as fd:
        assert written == b"".join(tar_pieces(upper.entries([fd], changed.index, changed.contents), clone))
    assert asked == [131_073, 200_000]


def test_pieces_are_of_a_moderate_size(container: Container) -> None:
    for i in range(3000):
        (container.root / f"f{i}").write_bytes(b"x" * 1500)
    (container.root / "large").write_bytes(b"y" * 5_000_000)
    changed = Upper(container)
    with opened(changed.path) as fd:
        sizes = [len(piece) for piece in upper.tar_pieces([fd], changed.index, changed.contents)]
    assert len(sizes) > 5
    assert all(1 << 20 <= size < 6 << 20 for size in sizes[:-1])


@needs_mkfs
def test_clones_where_the_file_system_can(tmp_path: Path) -> None:
    """A clone is all of the file, whatever happened to that since its entry was told."""
    with pool_store(tmp_path) as pool:
        pool.load(io.BytesIO(tar_of(docker_files([Image(image_layers(), ["tree:1"])]))))
        clone_some(pool.create("tree:1"), tmp_path / "store/pool")


def clone_some(container: Container, pool: Path) -> None:
    with container.mount() as root:
        (root / "big").write_bytes(b"b" * 200_000)
        (root / "cut").write_bytes(b"c" * 200_000)
        changed = Upper(container)
        with opened(changed.path) as fd, open(pool / "one", "w+b", 0) as one, open(pool / "two", "w+b", 0) as two:
            sources = {entry.path: entry.source for entry in upper.entries([fd], changed.index, changed.contents)}
            with open(root / "big", "ab") as file:
                file.write(b"more")
            os.truncate(root / "cut", 5)
            assert sources[b"big"].clone_to(one.fileno())  # type: ignore[union-attr]
            assert one.read() == b"b" * 200_000 + b"more"
            assert sources[b"cut"].clone_to(two.fileno())  # type: ignore[union-attr]
            assert two.read() == b"c" * 5


def test_no_clone_where_it_cannot(container: Container, tmp_path: Path) -> None:
    (container.root / "big").write_bytes(b"b" * 200_000)
    changed = Upper(container)
    # In memory, so that no file system can share it.
    target = os.memfd_create("target")
    with opened(changed.path) as fd:
        source = {entry.path: entry.source for entry in upper.entries([fd], changed.index, changed.contents)}[b"big"]
        assert source is not None
        assert not source.clone_to(target)
    assert os.fstat(target).st_size == 0
    os.close(target)


# In use


def test_a_container_in_use(store: Store, image: Tree) -> None:
    """Whatever programs do meanwhile, the tar is one of a tree that could be."""
    container = store.create("tree:1")
    with container.mount() as root:
        stop = threading.Event()
        operations = Operations(root, random.Random(3))
        worker = threading.Thread(target=work, args=(root, operations, stop))
        worker.start()
        try:
            changed = Upper(container)
            with opened(changed.path) as fd:
                for _ in range(60):
                    container.diff()
                    for entry in upper.entries([fd], changed.index, changed.contents):
                        assert entry.is_whiteout() or stat.S_IFMT(entry.mode)
                    written = b"".join(upper.tar_pieces([fd], changed.index, changed.contents))
                    changed.applied(written).verify()
        finally:
            stop.set()
            worker.join()
        check(container, root, image)
    container.remove()


def work(root: Path, operations: Operations, stop: threading.Event) -> None:
    number = 0
    while not stop.is_set():
        number += 1
        with suppress(OSError):
            if number % 50 == 0:
                operations.step()
            path = root / f"busy/{number % 20}"
            path.parent.mkdir(exist_ok=True)
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            if number % 5 == 0:
                path.mkdir()
                (path / "in").write_bytes(b"in")
            elif number % 5 == 1:
                path.symlink_to("x" * (number % 100 + 1))
            else:
                path.write_bytes(bytes(number * 997 % 150_000))
                with open(path, "ab") as file:
                    file.write(bytes(3000))


def test_what_is_exported_is_what_is_there(container: Container) -> None:
    """Of files that are changed when the tree was read and they were not yet: whole tars, and no file is missing."""
    root = container.root
    (root / "0").write_bytes(b"first")  # the tree is read when it is asked for
    for name in ("cut", "grows", "goes", "replaced", "directory", "one", "two"):
        (root / "z" / name).parent.mkdir(exist_ok=True)
        (root / "z" / name).write_bytes(b"0123456789")
    for name in ("one", "two"):
        os.link(root / "z" / name, root / "z" / f"{name}-b")
        os.link(root / "z" / name, root / "z" / f"{name}-c")
    (root / "0").write_bytes(b"f" * (2 << 20))  # so that a piece ends behind it
    pieces = container.export()
    first = bytes(next(pieces))
    os.truncate(root / "z/cut", 5)
    with open(root / "z/grows", "ab") as file:
        file.write(b"more")
    (root / "z/goes").unlink()
    (root / "new").write_bytes(b"another file")
    (root / "new").chmod(0o751)
    os.setxattr(root / "new", "user.is", b"other")
    (root / "new").rename(root / "z/replaced")
    (root / "z/directory").unlink()
    (root / "z/directory").mkdir()
    (root / "z/one").unlink()
    for name in ("two", "two-b", "two-c"):
        (root / "z" / name).unlink()
    with tarfile.open(fileobj=io.BytesIO(first + b"".join(pieces))) as archive:
        found = {
            member.name[2:]: member.linkname or archive.extractfile(member).read()  # type: ignore[union-attr]
            for member in archive
            if member.name.startswith("z/")
        }
        replaced = archive.getmember("z/replaced")
    assert found == {
        "cut": b"01234",
        "grows": b"0123456789more",
        "replaced": b"another file",
        "one-b": b"0123456789",
        "one-c": "z/one-b",
    }
    assert replaced.mode == 0o751
    assert replaced.pax_headers["SCHILY.xattr.user.is"] == "other"


def test_a_file_that_is_written_all_the_time(container: Container) -> None:
    """By another process: the size in its header is that of what was read."""
    path = container.root / "grows"
    path.write_bytes(b"")
    code = (
        "import os, sys; fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
        "while True:\n"
        "    for _ in range(400): os.write(fd, b'x' * 500)\n"
        "    os.ftruncate(fd, 0)"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, path])
    try:
        changed = Upper(container)
        sizes = set()
        with opened(changed.path) as fd:
            for turn in count():
                written = b"".join(upper.tar_pieces([fd], changed.index, changed.contents))
                events = list(walk([written]))
                data = b"".join(event.data for event in events if isinstance(event, Data))
                assert data == b"x" * len(data)
                sizes.add(len(data))
                if turn >= 1500 and len(sizes) > 5:
                    break
    finally:
        writer.kill()
        writer.wait()


# Upper directories made by hand


def chain(*entries: TarEntry) -> Index:
    return Index(merge([Index(build_layer(write_tar(list(entries)), KEY)[0])], KEY))


IMAGE = (
    TarEntry("dir", "d", mode=0o755, mtime=(1, 0)),
    TarEntry("file", "d/f", data=b"f", mtime=(1, 0)),
    TarEntry("dir", "d/sub", mode=0o755, mtime=(1, 0)),
    TarEntry("file", "d/sub/g", data=b"gg", mtime=(1, 0)),
    TarEntry("file", "file", data=b"file", mtime=(1, 0)),
)


class TestByHand:
    """What overlayfs would not write, or not here."""

    @pytest.fixture
    def top(self, tmp_path: Path) -> Path:
        (tmp_path / "upper").mkdir()
        os.utime(tmp_path / "upper", ns=(0, 0))
        return tmp_path / "upper"

    def both(self, top: Path, *image: TarEntry) -> tuple[list[str], list[tuple[str, str]]]:
        """The entries, and what changed."""
        index = chain(*(image or IMAGE))
        nothing: Any = None  # no content is read
        with opened(top) as fd:
            return told(upper.entries([fd], index, nothing)), changes(index, [fd])

    def test_a_redirect_that_leads_nowhere(self, top: Path) -> None:
        for name, redirect in (("a", "/nowhere"), ("b", "nowhere"), ("c", "/file"), ("e", "x" * 5000)):
            (top / name).mkdir()
            with suppress(OSError):  # longer than this file system takes
                os.setxattr(top / name, "trusted.overlay.redirect", redirect.encode())
        assert self.both(top) == (
            ["d /", "d /a", "d /b", "d /c", "d /e"],
            [("A", "/a"), ("A", "/b"), ("A", "/c"), ("A", "/e")],
        )

    def test_a_relative_redirect_counts_from_where_the_directory_above_was(self, top: Path) -> None:
        (top / "moved/named").mkdir(parents=True)
        os.setxattr(top / "moved", "trusted.overlay.redirect", b"/d")
        os.setxattr(top / "moved/named", "trusted.overlay.redirect", b"sub")
        entries, told = self.both(top)
        assert entries == [
            *("d /", "d /moved", ". /moved/f lower", "d /moved/named", ". /moved/named/g lower"),
            *("d /moved/sub", ". /moved/sub/g lower"),
        ]
        assert ("A", "/moved/named/g") in told

    def test_a_relative_redirect_in_a_new_directory_leads_nowhere(self, top: Path) -> None:
        (top / "new/d").mkdir(parents=True)
        os.setxattr(top / "new", "trusted.overlay.opaque", b"y")
        os.setxattr(top / "new/d", "trusted.overlay.redirect", b"d")
        assert self.both(top)[0] == ["d /", "d /new", "d /new/d"]

    def test_an_opaque_directory_shows_nothing_wherever_it_was(self, top: Path) -> None:
        (top / "d").mkdir()
        os.setxattr(top / "d", "trusted.overlay.redirect", b"/d")
        os.setxattr(top / "d", "trusted.overlay.opaque", b"y")
        assert self.both(top) == (["d /", "d /d opaque"], [("C", "/d"), ("D", "/d/f"), ("D", "/d/sub")])

    @pytest.mark.parametrize("value", [b"n", b"yes", b"x"])
    def test_only_y_is_opaque(self, top: Path, value: bytes) -> None:
        (top / "d").mkdir()
        os.setxattr(top / "d", "trusted.overlay.opaque", value)
        assert self.both(top) == (["d /", "d /d"], [("C", "/d")])

    @pytest.mark.parametrize("redirect", [None, b"/nowhere", b"/d", b"nowhere"])
    def test_a_content_that_the_image_does_not_have_is_damage(self, top: Path, redirect: bytes | None) -> None:
        (top / "new").write_bytes(b"")
        os.setxattr(top / "new", "trusted.overlay.metacopy", b"")
        if redirect is not None:
            os.setxattr(top / "new", "trusted.overlay.redirect", redirect)
        with pytest.raises(CorruptError, match=r'"/new" has the content of a file of the image'):
            self.both(top)

    def test_whiteouts_of_nothing_are_nothing(self, top: Path) -> None:
        for name in ("gone", "d/gone", "file/gone", "d/f"):
            (top / name).parent.mkdir(exist_ok=True)
            os.mknod(top / name, stat.S_IFCHR, os.makedev(0, 0))
        os.utime(top / "d", ns=(10**9, 10**9))
        entries, told = self.both(top)
        assert entries == ["d /", "d /d", "- /d/f", "d /file"]
        assert told == [("C", "/d"), ("D", "/d/f"), ("C", "/file")]

    def test_the_order_is_that_of_the_names(self, top: Path) -> None:
        for name in ("a", "a-", "a.b", "a/b", "a/b!", "a0", "\xff"):
            (top / name).mkdir(parents=True, exist_ok=True)
        (top / "a/b/c").write_bytes(b"")
        entries, told = self.both(top)
        assert [line[2:] for line in entries] == [
            *("/", "/a", "/a/b", "/a/b/c", "/a/b!", "/a-", "/a.b", "/a0", "/\xff")
        ]
        assert [path for _, path in told] == sorted(path[2:] for path in entries[1:])

    def test_what_changes_while_the_names_are_known(self, top: Path) -> None:
        """A batch ends in the midst of a directory: what comes is what is there then."""
        for i in range(5000):
            (top / f"{i:04}").write_bytes(b"")
        kept = [TarEntry("file", f"{i}", data=b"x") for i in range(4990, 5000)]
        index = chain(*kept)
        with opened(top) as fd:
            reading = UpperWalk(index, [fd])
            count = reading.read()
            assert 4000 < count < 4990
            for name, make in (
                ("4990", lambda path: None),
                ("4991", lambda path: path.symlink_to("target")),
                ("4992", os.mkfifo),
                ("4993", lambda path: os.mknod(path, stat.S_IFSOCK)),
                ("4994", lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(0, 0))),
                ("4995", lambda path: os.mknod(path, stat.S_IFCHR, os.makedev(1, 3))),
                ("4996", os.mkdir),
                ("4980", lambda path: None),
            ):
                (top / name).unlink()
                make(top / name)  # type: ignore[no-untyped-call]
            (top / "4996/in").write_bytes(b"")
            rest = [reading[i] for i in range(reading.read())]
            assert reading.read() == 0
        found = [(os.fsdecode(entry.path), stat.S_IFMT(entry.mode), entry.target) for entry in rest]
        assert (count, len(rest)) == (count, 5000 - count + 2 - 1)
        assert found[-11:] == [
            ("4990", 0, None),
            ("4991", stat.S_IFLNK, b"target"),
            ("4992", stat.S_IFIFO, None),
            ("4993", 0, None),
            ("4994", 0, None),
            ("4995", stat.S_IFCHR, None),
            ("4996", stat.S_IFDIR, None),
            ("4996/in", stat.S_IFREG, None),
            *((name, stat.S_IFREG, None) for name in ("4997", "4998", "4999")),
        ]
        assert "4980" not in [name for name, _, _ in found]

    @pytest.mark.needs_tool("strace")
    def test_renames_that_never_end_are_an_error(self, top: Path) -> None:
        """The kernel cannot look up a path while something on the machine is renamed, and says to try again."""
        (top / "/".join(["d"] * 80)).mkdir(parents=True)
        code = (
            "import os, sys; from layerstore._core.index import Index; from layerstore._core.upper import changes\n"
            "fd = os.open(sys.argv[1], os.O_RDONLY); index = Index(sys.stdin.buffer.read())\n"
            "print(len(changes(index, [fd])))"
        )
        command = ["strace", "-f", "-qq", "-o", "/dev/null", "-e", "inject=openat2:error=EAGAIN:when=1+"]
        command += [sys.executable, "-c", code, str(top)]
        index = merge([Index(build_layer(write_tar([]), KEY)[0])], KEY)
        done = subprocess.run(command, input=index, capture_output=True, timeout=20)
        assert done.returncode
        assert b"something was renamed at each of" in done.stderr
        assert int(subprocess.run(command[-4:], input=index, capture_output=True, check=True).stdout) == 80

    def test_a_deep_tree_that_moves_while_it_is_read(self, top: Path) -> None:
        here = os.open(top, os.O_RDONLY)
        for _ in range(100):
            os.mkdir("d", dir_fd=here)
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        for i in range(5000):
            os.close(os.open(f"{i}", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        os.close(here)
        with opened(top) as fd:
            reading = UpperWalk(chain(*IMAGE), [fd])
            assert reading.read() > 4000
            (top / "d").rename(top / "elsewhere")
            with pytest.raises(OSError, match="cannot read what a container changed"):
                reading.read()

    def test_inodes_with_several_names_by_the_hundred(self, top: Path) -> None:
        for i in range(300):
            (top / f"a{i}").write_bytes(b"")
            os.link(top / f"a{i}", top / f"b{i}")
        entries, _ = self.both(top)
        assert entries[301:] == [f". /b{name} = a{name}" for name in sorted(map(str, range(300)))]

    def test_a_descriptor_that_nobody_took_is_closed(self, top: Path) -> None:
        (top / "a").write_bytes(b"12345")
        (top / "b").write_bytes(b"123456")
        with opened(top) as fd:
            before = len(os.listdir("/proc/self/fd"))
            reading = UpperWalk(chain(*IMAGE), [fd], 4)
            assert (reading.read(), reading.read()) == (2, 1)
            large = reading.large()
            assert large is not None
            assert (large.path, large.size) == (b"b", 6)
            del reading
            assert len(os.listdir("/proc/self/fd")) == before

    def test_files_that_end_before_their_size(self) -> None:
        """As those of sysfs do, which all seem to have a page."""
        index = chain(*IMAGE)
        nothing: Any = None
        with opened("/sys/kernel/mm/transparent_hugepage") as fd:
            events = list(walk([b"".join(upper.tar_pieces([fd], index, nothing))]))
        sizes = {event.path: event.size for event in events if isinstance(event, Read)}
        assert 0 < sizes[b"enabled"] < 100

    def test_a_layers_index_is_refused(self, top: Path) -> None:
        layer = Index(build_layer(write_tar(list(IMAGE)), KEY)[0])
        with opened(top) as fd:
            with pytest.raises(InvalidInput, match="the index of a chain"):
                changes(layer, [fd])
            with pytest.raises(InvalidInput, match="the index of a chain"):
                UpperWalk(layer, [fd])

    def test_depth_costs_no_descriptors(self, top: Path) -> None:
        """On the way up, too: each directory has a file behind the next one."""
        depth = 400
        here = os.open(top, os.O_RDONLY)
        for _ in range(depth):
            os.mkdir("d", dir_fd=here)
            os.close(os.open("e", os.O_CREAT | os.O_WRONLY, dir_fd=here))
            below = os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 80, limits[1]))
        try:
            entries, told = self.both(top)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(entries) == 2 * depth + 1
        assert entries[-2:] == [". /d/e", ". /e"]
        assert [path for _, path in told] == sorted(path for _, path in told)
        assert len(told) == 2 * depth

    def test_a_path_longer_than_a_layer_can_hold(self, top: Path) -> None:
        here = os.open(top, os.O_RDONLY)
        for _ in range(16):
            os.mkdir("n" * 255, dir_fd=here)
            below = os.open("n" * 255, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        assert len(self.both(top)[0]) == 17
        os.mkdir("m", dir_fd=here)
        os.close(here)
        with pytest.raises(LimitExceeded, match=r'more than 4096 bytes.*"/n{255}'):
            self.both(top)
        index = chain(*IMAGE)
        with opened(top) as fd, pytest.raises(LimitExceeded, match=r"more than 4096 bytes"):
            changes(index, [fd])

    def test_it_is_not_there_any_more(self, top: Path) -> None:
        with opened(top) as fd:
            top.rmdir()
            assert changes(chain(*IMAGE), [fd]) == []

    @pytest.mark.skipif(not MKFS, reason="mkfs.ext4 is not installed; ci/packages.txt says e2fsprogs")
    def test_a_file_system_that_does_not_tell_types(self, tmp_path: Path) -> None:
        """Overlayfs takes none such for its upper directory; but the walk asks then."""
        disk, top = tmp_path / "disk", tmp_path / "mounted"
        with open(disk, "wb") as file:
            file.truncate(4 << 20)
        subprocess.run([MKFS, "-q", "-O", "^filetype", disk], check=True)
        top.mkdir()
        subprocess.run(["mount", "-o", "loop", disk, top], check=True)
        try:
            (top / "lost+found").rmdir()
            (top / "d/sub").mkdir(parents=True)
            (top / "d/sub/new").write_bytes(b"new")
            (top / "d/link").symlink_to("x")
            os.mkfifo(top / "d/pipe")
            os.mknod(top / "d/f", stat.S_IFCHR, os.makedev(0, 0))
            os.mknod(top / "d/null", stat.S_IFCHR, os.makedev(1, 3))
            os.mknod(top / "socket", stat.S_IFSOCK)
            entries, told = self.both(top)
        finally:
            subprocess.run(["umount", top], check=True)
        assert entries == [
            *("d /", "d /d", "- /d/f", "l /d/link", "c /d/null", "p /d/pipe", "d /d/sub", ". /d/sub/new")
        ]
        assert told == [
            *(("C", "/d"), ("D", "/d/f"), ("A", "/d/link"), ("A", "/d/null"), ("A", "/d/pipe"), ("C", "/d/sub")),
            *(("A", "/d/sub/new"), ("A", "/socket")),
        ]


def test_the_tar_is_read_by_the_walk(container: Container) -> None:
    """Names of what it holds, as another reader of it has them."""
    (container.root / "d/new").write_bytes(b"new")
    (container.root / "d/f").unlink()
    found = [event.path for event in walk([Upper(container).tar()]) if hasattr(event, "path")]
    assert found == [b"d/", b"d/.wh.f", b"d/new"]
