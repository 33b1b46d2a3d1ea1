"""Cloning trees: entry by entry the same, on a file system with reflink and without, and while they change."""

import contextlib
import os
import resource
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_tree import acl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pools import needs_mkfs, needs_root, pool_store

from layerstore._core.clone import clone_tree
from layerstore.errors import InvalidInput
from layerstore.store.reflink import has_reflink

ACCESS_ACL = "system.posix_acl_access"
DEFAULT_ACL = "system.posix_acl_default"
METACOPY = "trusted.overlay.metacopy"
NOBODY = 65534
is_root = os.geteuid() == 0


@pytest.fixture(scope="module")
def on_pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pool_store(tmp_path_factory.mktemp("pool")) as store:
        assert store.pool is not None
        yield Path(store.pool.target) / "trees"


@pytest.fixture(params=[pytest.param("pool", marks=[needs_root, needs_mkfs, pytest.mark.root]), "host"])
def top(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty directory, on a pool and on the tests' own file system."""
    if request.param == "host":
        yield tmp_path
        return
    directory = Path(request.getfixturevalue("on_pool")) / os.urandom(4).hex()
    directory.mkdir(parents=True)
    yield directory
    shutil.rmtree(directory)


def clone(source: Path, target: Path) -> bool:
    fd = os.open(source.parent, os.O_RDONLY)
    try:
        return clone_tree(fd, source.name, fd, target)
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [10, 4096, 100_000])
def test_says_whether_anything_was_copied(top: Path, size: int) -> None:
    (top / "tree/empty").mkdir(parents=True)
    (top / "tree/empty/file").touch()
    assert not clone(top / "tree", top / "first")
    (top / "tree/file").write_bytes(os.urandom(size))
    shares = has_reflink(str(top))
    # What was just written, and is small, is not waited for.
    assert clone(top / "tree", top / "second") is (not shares or size <= 4096)
    os.sync()
    assert clone(top / "tree", top / "third") is not shares
    for name in ("second", "third"):
        assert (top / name / "file").read_bytes() == (top / "tree/file").read_bytes()


def data_ranges(path: Path) -> list[tuple[int, int]]:
    found = []
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        at = 0
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, at))
    return found


def told(top: Path) -> dict[str, object]:
    """All that there is to say of each entry of a tree; inodes by the first of their names."""
    found: dict[str, object] = {}
    first: dict[int, str] = {}
    paths = [top, *sorted(top.rglob("*"))]
    for path in paths:
        name, status = str(path.relative_to(top)), path.lstat()
        xattrs = {
            key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)
        }
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = (path.read_bytes(), data_ranges(path))
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(path)
        # Overlayfs keeps one more name of its whiteouts, elsewhere; their time says nothing.
        is_whiteout = stat.S_ISCHR(status.st_mode) and status.st_rdev == 0
        links = 0 if stat.S_ISDIR(status.st_mode) or is_whiteout else status.st_nlink
        same = name if stat.S_ISDIR(status.st_mode) else first.setdefault(status.st_ino, name)
        rdev = status.st_rdev if status.st_mode & stat.S_IFCHR else 0
        found[name] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            0 if is_whiteout else status.st_mtime_ns,
            links,
            same,
            rdev,
            xattrs,
            content,
        )
    return found


def small_acl() -> bytes:
    none = 0xFFFFFFFF
    return acl((1, 7, none), (2, 5, 1234), (4, 5, none), (0x10, 5, none), (0x20, 1, none))


def full_tree(top: Path) -> Path:
    """One of everything."""
    tree = top / "tree"
    for name in ("", "empty", "deep", "deep/er", "deep/er/est", "sticky", "-n\nl\\é"):
        (tree / name).mkdir()
    (tree / "zero").touch()
    (tree / "small").write_bytes(b"small")
    (tree / "page").write_bytes(os.urandom(4096))
    (tree / "more").write_bytes(os.urandom(4097))
    (tree / "large").write_bytes(os.urandom(3_000_001))
    with open(tree / "deep/holes", "wb") as file:
        for at in (1 << 20, 5 << 20):
            os.pwrite(file.fileno(), os.urandom(65536), at)
        file.truncate(9 << 20)
    with open(tree / "only a hole", "wb") as file:
        file.truncate(3000)
    os.link(tree / "small", tree / "deep/er/second")
    os.link(tree / "large", tree / "deep/er/est/third")
    os.link(tree / "large", tree / "deep/er/est/fourth")
    os.symlink("nowhere/at all", tree / "link")
    os.link(tree / "link", tree / "deep/same link", follow_symlinks=False)
    os.mkfifo(tree / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as listening:
        at = os.open(tree, os.O_RDONLY)
        listening.bind(f"/proc/self/fd/{at}/socket")
        os.close(at)
    for name, mode in (("small", 0o4751), ("more", 0o000), ("sticky", 0o1777), ("deep", 0o2750), ("page", 0o2711)):
        os.chmod(tree / name, mode)
    os.setxattr(tree / "large", "user.long", os.urandom(2000))
    os.setxattr(tree / "deep", "user.empty", b"")
    with contextlib.suppress(OSError):  # a file system without ACLs
        os.setxattr(tree / "large", ACCESS_ACL, small_acl())
        os.setxattr(tree / "deep/er", DEFAULT_ACL, small_acl())
    if is_root:
        as_root(tree)
    for i, path in enumerate([*tree.rglob("*"), tree]):
        os.utime(path, ns=(1_000_000_000 + i, 1_234_567_890_123_456_789 - i * 1001), follow_symlinks=False)
    return tree


def as_root(tree: Path) -> None:
    os.mknod(tree / "whiteout", stat.S_IFCHR | 0o000, 0)
    os.link(tree / "whiteout", tree / "deep/whiteout too")
    os.mknod(tree / "device", stat.S_IFBLK | 0o640, os.makedev(259, 70_000))
    for path, owner in (("small", 7), ("link", 8), ("fifo", 9), ("device", 10), ("deep/er/est", 11)):
        os.chown(tree / path, owner, owner + 1, follow_symlinks=False)
    os.chmod(tree / "small", 0o4751)
    os.setxattr(tree / "link", "trusted.on.link", b"1", follow_symlinks=False)
    os.setxattr(tree / "device", "trusted.on.device", b"2")
    os.setxattr(tree / "deep", "trusted.overlay.redirect", b"/else/where")
    os.setxattr(tree / "deep/er", "trusted.overlay.opaque", b"y")
    os.setxattr(tree, "trusted.overlay.impure", b"y")
    os.setxattr(tree / "page", "security.capability", bytes.fromhex("0100000200040000000000000000000000000000"))
    with open(tree / "meta", "wb") as file:
        file.truncate(1_000_000)
    os.setxattr(tree / "meta", METACOPY, b"")
    os.setxattr(tree / "meta", "trusted.overlay.redirect", b"/there")


def test_everything_comes_along(top: Path) -> None:
    tree = full_tree(top)
    if not is_root:
        os.chmod(tree / "more", 0o400)
    clone(tree, top / "copy")
    assert told(top / "copy") == told(tree)
    assert len(told(tree)) > 20
    assert sorted(os.listdir(top)) == ["copy", "tree"]
    clone(top / "copy", top / "again")
    assert told(top / "again") == told(tree)


def test_an_umask_and_an_inherited_acl_change_nothing(top: Path) -> None:
    tree = top / "tree"
    (tree / "in").mkdir(parents=True)
    (tree / "in/file").write_bytes(b"x")
    os.chmod(tree / "in/file", 0o666)
    os.chmod(tree / "in", 0o777)
    with contextlib.suppress(OSError):
        os.setxattr(tree / "in", DEFAULT_ACL, small_acl())
    before = os.umask(0o077)
    try:
        clone(tree, top / "copy")
    finally:
        os.umask(before)
    assert told(top / "copy") == told(tree)


def test_contents_are_shared_where_they_can_be(top: Path) -> None:
    (top / "tree").mkdir()
    (top / "tree/large").write_bytes(os.urandom(64 << 20))
    os.sync()
    before = os.statvfs(top)
    clone(top / "tree", top / "copy")
    os.sync()
    taken = (before.f_bfree - os.statvfs(top).f_bfree) * before.f_frsize
    if has_reflink(str(top)):
        assert taken < 4 << 20
    with open(top / "copy/large", "r+b") as file:
        file.write(b"changed")
    assert (top / "tree/large").read_bytes()[:7] != b"changed"


def test_what_was_just_written_is_whole(top: Path) -> None:
    (top / "tree").mkdir()
    contents = {f"{i}": os.urandom(i * 37) for i in range(300)}
    for name, content in contents.items():
        (top / "tree" / name).write_bytes(content)
    clone(top / "tree", top / "copy")
    assert {path.name: path.read_bytes() for path in (top / "copy").iterdir()} == contents


def wide_tree(top: Path) -> Path:
    """More files than one thread clones alone, and hard links between directories."""
    tree = top / "tree"
    for d in range(15):
        (tree / f"{d}/in").mkdir(parents=True)
        for i in range(70):
            (tree / f"{d}/{i}").write_bytes(bytes([i]) * (i * 200))
        for i in range(0, 70, 9):
            os.link(tree / f"{d}/{i}", tree / f"{d}/in/{i}")
            os.link(tree / f"0/{i}", tree / f"{d}/of the first {i}")
        os.chmod(tree / f"{d}", 0o700 + d)
        os.utime(tree / f"{d}", ns=(d, d * 1_000_000_007))
    return tree


def test_by_many_threads(top: Path) -> None:
    tree = wide_tree(top)
    for i in range(5):
        clone(tree, top / f"copy{i}")
        assert told(top / f"copy{i}") == told(tree)
    assert sorted(os.listdir(top)) == [*(f"copy{i}" for i in range(5)), "tree"]


def test_a_failure_among_many_files(tmp_path: Path) -> None:
    tree = wide_tree(tmp_path)
    (tree / "7/large").write_bytes(bytes(100_000))
    threads, descriptors = len(os.listdir("/proc/self/task")), set(os.listdir("/proc/self/fd"))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OSError, match='"large" of "tree": File too large'):
            clone(tree, tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert len(os.listdir("/proc/self/task")) == threads
    assert not (tmp_path / "copy.links").exists()


def test_a_target_that_is_there_and_empty(top: Path) -> None:
    tree = full_tree(top)
    (top / "copy").mkdir(mode=0o500)
    clone(tree, top / "copy")
    assert told(top / "copy") == told(tree)


def test_a_deep_tree(top: Path) -> None:
    at = top / "tree"
    for _ in range(200):
        at = at / "d"
    at.mkdir(parents=True)
    (at / "f").write_bytes(b"deep")
    clone(top / "tree", top / "copy")
    assert (top / "copy" / at.relative_to(top / "tree") / "f").read_bytes() == b"deep"


def test_a_tree_too_deep_for_the_descriptors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tree" / "/".join(["d"] * 80)).mkdir(parents=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = set(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
    try:
        with pytest.raises(OSError, match="cannot clone"):
            clone(tmp_path / "tree", tmp_path / "copy")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert set(os.listdir("/proc/self/fd")) == before


def test_errors_name_the_entry(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match='cannot clone "file" of "file": Not a directory'):
        clone(tmp_path / "file", tmp_path / "copy")
    with pytest.raises(FileNotFoundError, match='"nothing"'):
        clone(tmp_path / "nothing", tmp_path / "copy")
    with pytest.raises(InvalidInput, match="NUL"):
        clone_tree(0, "a\0b", 0, "c")


@pytest.mark.root
@needs_root
def test_data_that_is_being_copied_up_is_left_out(top: Path) -> None:
    """While a file has the attribute, the kernel takes what is in it for nothing (overlayfs.rst, "Metadata only")."""
    (top / "tree").mkdir()
    with open(top / "tree/file", "wb") as file:
        file.write(b"a part")
        file.truncate(100_000)
    os.setxattr(top / "tree/file", METACOPY, b"")
    clone(top / "tree", top / "copy")
    assert (top / "copy/file").stat().st_size == 100_000
    assert data_ranges(top / "copy/file") == []
    assert os.getxattr(top / "copy/file", METACOPY) == b""


@pytest.mark.parametrize("wide", [False, True])
def test_a_tree_that_changes_meanwhile(top: Path, wide: bool) -> None:
    """Files replaced by rename are always there, as a whole; files that come and go are whole or not there."""
    tree = wide_tree(top) if wide else top / "tree"
    (tree / "sub").mkdir(parents=True)
    kept = [tree / f"kept{i}" for i in range(40)]
    for path in kept:
        path.write_bytes(b"0" * 10_000)
    stop = threading.Event()

    def change() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            new = tree / f"new{n % 7}"
            new.write_bytes(b"%d" % (n % 10) * 10_000)
            os.rename(new, kept[n % len(kept)])
            (tree / f"passing{n % 5}").write_bytes(b"1" * 10_000)
            (tree / "sub" / f"{n % 5}").mkdir(exist_ok=True)
            (tree / f"passing{(n + 2) % 5}").unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                (tree / "sub" / f"{(n + 3) % 5}").rmdir()

    thread = threading.Thread(target=change)
    thread.start()
    try:
        deadline = time.monotonic() + 3
        for i in range(60):
            copy = top / f"copy{i}"
            clone(tree, copy)
            for path in kept:
                content = (copy / path.name).read_bytes()
                assert content == content[:1] * 10_000
            shutil.rmtree(copy)
            if time.monotonic() > deadline:
                break
    finally:
        stop.set()
        thread.join()


NAMES = st.sampled_from(["a", "b", "c"])


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["file", "sparse", "dir", "link", "symlink", "xattr", "mode", "time"]),
            st.lists(NAMES, min_size=1, max_size=3),
            st.integers(0, 20_000),
        ),
        max_size=25,
    )
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_tree(top: Path, steps: list[tuple[str, list[str], int]]) -> None:
    here = top / os.urandom(6).hex()
    tree = here / "tree"
    tree.mkdir(parents=True)
    for what, parts, number in steps:
        path = tree.joinpath(*parts)
        with contextlib.suppress(OSError):  # what is there does not allow it
            if what == "file":
                path.write_bytes(bytes([number % 251]) * number)
            elif what == "sparse":
                os.truncate(path, number * 7)
            elif what == "dir":
                path.mkdir()
            elif what == "link":
                os.link(tree / parts[-1], path)
            elif what == "symlink":
                path.symlink_to("x" * (1 + number % 100))
            elif what == "xattr":
                os.setxattr(path, f"user.{number % 3}", b"v" * (number % 500), follow_symlinks=False)
            elif what == "mode":
                os.chmod(path, 0o700 | number % 0o100)
            else:
                os.utime(path, ns=(number, number * 10**9 + number), follow_symlinks=False)
    expected = told(tree)
    clone(tree, here / "copy")
    assert told(here / "copy") == expected
