"""The EROFS writer, judged by fsck.erofs, dump.erofs and the kernel."""

import errno
import functools
import hashlib
import json
import os
import random
import re
import shutil
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import blake3
import kernel_fs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from layerstore._core.erofs import OBJECT, PACK_BLOCK_BYTES, Image, write_pack, write_tree
from layerstore._core.index import CHAIN, LAYER, Index, Node, Record, write_index
from layerstore._core.status import CorruptError, InvalidInput, LimitExceeded

DATA = Path(__file__).parent / "data"
KEY = b"erofs test key.."
DIRECTORY, REGULAR, SYMLINK, CHAR, BLOCK, FIFO = (
    stat.S_IFDIR,
    stat.S_IFREG,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
)
NOWHERE_BLOCK = 0x7FFF_FFF0
INLINE_MAX = 65_536  # contents up to here go to the pack
CAPABILITY = struct.pack("<5I", 0x0200_0001, 1 << 10, 0, 0, 0)  # cap_net_bind_service=ep
ACL = struct.pack("<I", 2) + b"".join(
    struct.pack("<HHI", tag, perm, who)
    for tag, perm, who in [(1, 6, 2**32 - 1), (2, 4, 1000), (4, 4, 2**32 - 1), (16, 4, 2**32 - 1), (32, 0, 2**32 - 1)]
)


class Tree:
    """A chain to be written: nodes and contents."""

    def __init__(self, **root: object) -> None:
        self.nodes = [Node(0, b"", **{"mode": DIRECTORY | 0o755, **root})]  # type: ignore[arg-type]
        self.contents: list[bytes] = []

    def add(self, parent: int, name: bytes, mode: int, data: bytes | None = None, **fields: object) -> int:
        if data:
            fields["content"] = self.content(data)
        self.nodes.append(Node(parent, name, mode, **fields))  # type: ignore[arg-type]
        return len(self.nodes) - 1

    def content(self, data: bytes) -> int:
        if data not in self.contents:
            self.contents.append(data)
        return self.contents.index(data)

    def index(self, kind: int = CHAIN) -> Index:
        contents = [(blake3.blake3(data).digest(), len(data)) for data in self.contents]
        index = Index(write_index(kind, 1, KEY, self.nodes, contents))
        index.verify()
        return index

    def pack(self) -> tuple[bytes, bytes, bytes]:
        """The pack's bytes, the slots, and the locations."""
        pack, slots, locations = b"", b"", b""
        for data in self.contents:
            if len(data) > INLINE_MAX:
                locations += struct.pack("<II", OBJECT, 0)
                continue
            locations += struct.pack("<II", 7, len(slots) // 48)
            slots += struct.pack("<QQ32x", len(pack), len(data))
            pack += data + bytes(-len(data) % PACK_BLOCK_BYTES)
        return pack, slots, locations

    def image(self) -> bytes:
        return bytes(write_tree(self.index(), self.pack()[2]))


def tree_of(*nodes: tuple[bytes, int, dict[str, object]]) -> Tree:
    tree = Tree()
    for name, mode, fields in nodes:
        tree.add(0, name, mode, **fields)  # type: ignore[arg-type]
    return tree


def every_type() -> Tree:
    tree = Tree(mtime_ns=1_700_000_000_123_456_789, xattrs={b"user.root": b"yes"})
    etc = tree.add(0, b"etc", DIRECTORY | 0o1755, uid=1, gid=2, mtime_ns=-5_000_000_001)
    first = tree.add(etc, b"first", REGULAR | 0o4755, b"linked", uid=70_000, gid=80_000, mtime_ns=1)
    tree.add(0, b"second", REGULAR | 0o4755, b"linked", uid=70_000, gid=80_000, mtime_ns=1, inode=first)
    tree.add(0, b"copy", REGULAR | 0o600, b"linked", mtime_ns=2**33 * 10**9 + 999_999_999)
    tree.add(etc, b"large", REGULAR | 0o644, bytes(range(256)) * 1024)
    tree.add(etc, b"block", REGULAR | 0o644, b"b" * 4096)
    tree.add(etc, b"empty", REGULAR | 0o640)
    tree.add(etc, b"null", CHAR | 0o666, rdev=(1, 3))
    tree.add(etc, b"wide", BLOCK | 0o660, rdev=(4095, 1_048_575))
    tree.add(etc, b"zero", BLOCK | 0o660, rdev=(0, 0))
    tree.add(etc, b"pipe", FIFO | 0o622)
    tree.add(etc, b"link", SYMLINK | 0o777, target=b"first", xattrs={b"trusted.on": b"a symlink"})
    tree.add(0, b"-", REGULAR | 0o600)
    tree.add(0, b"..-", DIRECTORY | 0o700)
    tree.add(0, b".-", REGULAR | 0o600)
    tree.add(0, b"...", REGULAR | 0o600)
    tree.add(0, bytes([255]) * 255, REGULAR | 0o600, b"longest name")
    return tree


def fsck(*images: Path, subpage: bool = False) -> None:
    """fsck.erofs finds nothing to complain of. Its exit status does not tell: it is 0 for a wrong checksum, too."""
    program = shutil.which("fsck.erofs")
    if not program:
        pytest.skip("fsck.erofs is not installed (erofs-utils)")
    if subpage:
        version = subprocess.run([program, "-V"], capture_output=True, text=True).stdout
        numbers = re.search(r"(\d+)\.(\d+)", version)
        if not numbers or tuple(map(int, numbers.groups())) < (1, 6):
            return  # 1.5 of Debian 12 knows blocks of 4,096 bytes only
    for image in images:
        done = subprocess.run([program, image], capture_output=True, text=True)
        output = done.stdout + done.stderr
        assert done.returncode == 0 and "<E>" not in output and "<W>" not in output, output


def test_fsck_can_fail(tmp_path: Path) -> None:
    image = bytearray(every_type().image())
    image[1500] ^= 1
    (tmp_path / "image").write_bytes(image)
    with pytest.raises(AssertionError):
        fsck(tmp_path / "image")


@pytest.fixture(scope="session")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the kernel tests need: root, and a kernel that mounts EROFS from a file, and layers from descriptors."""
    if os.geteuid():
        pytest.skip("needs root to mount")
    try:
        with show(Tree(), tmp_path_factory.mktemp("probe")):
            pass
    except OSError as error:
        pytest.skip(f"this kernel or the file system of the temporary directory cannot mount it: {error}")


@functools.cache
def past_the_end_is_an_error() -> bool:
    """Whether this kernel fails reads past the end of an image in a file: Linux 7.0, 6.18 with the fix eade54040384.

    Before, it gave zeros, or pages as they were. Found out with an image that does not depend on our choice of a block.
    """
    tree = tree_of((b"file", REGULAR | 0o600, {"data": b"x" * 4096}))
    image = bytearray(tree.image())
    at = image.index(struct.pack("<I", NOWHERE_BLOCK))
    struct.pack_into("<I", image, at, len(image) // 4096 + 1)
    struct.pack_into("<I", image, 1024 + 8, 2 | 4)  # without the checksum
    with tempfile.TemporaryDirectory() as where:
        (Path(where) / "image").write_bytes(image)
        with kernel_fs.erofs(Path(where) / "image") as mount:
            try:
                read_at(mount, "file")
            except OSError as error:
                return error.errno == errno.EIO
    return False


def need_an_error_past_the_end() -> None:
    if not past_the_end_is_an_error():
        pytest.skip("this kernel does not fail reads past the end of an image in a file (Linux 7.0 does)")


class Shown:
    def __init__(self, tree: Tree, index: Index, lower: int, pack: int, merged: int) -> None:
        self.tree, self.index = tree, index
        self.lower, self.pack, self.merged = lower, pack, merged


@contextmanager
def show(tree: Tree, where: Path) -> Iterator[Shown]:
    """Write all of a chain into a directory and mount it: its tree alone, its pack, and the overlay of both."""
    index = tree.index()
    pack, slots, locations = tree.pack()
    (where / "tree.erofs").write_bytes(write_tree(index, locations))
    (where / "pack").write_bytes(pack)
    (where / "pack.erofs").write_bytes(write_pack(7, len(pack), slots))
    for name in ("objects", "upper", "work"):
        (where / name).mkdir()
    for data in tree.contents:
        if len(data) > INLINE_MAX:
            digest = blake3.blake3(data).hexdigest()
            (where / "objects" / digest[:2]).mkdir(exist_ok=True)
            (where / "objects" / digest[:2] / digest[2:]).write_bytes(data)
    with ExitStack() as stack:
        lower = stack.enter_context(kernel_fs.erofs(where / "tree.erofs"))
        packs = stack.enter_context(kernel_fs.erofs(where / "pack.erofs", where / "pack"))
        objects = os.open(where / "objects", os.O_PATH | os.O_CLOEXEC)
        stack.callback(os.close, objects)
        merged = stack.enter_context(
            kernel_fs.overlay(lower, [packs, objects], where / "upper", where / "work"),
        )
        yield Shown(tree, index, lower, packs, merged)


def is_hidden(record: Record) -> bool:
    return stat.S_ISCHR(record.mode) and record.rdev == (0, 0)


def xattrs_of(path: bytes) -> dict[bytes, bytes]:
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def listed(path: bytes) -> list[tuple[bytes, bool, bool]]:
    with os.scandir(path) as entries:
        return sorted((entry.name, entry.is_dir(follow_symlinks=False), entry.is_symlink()) for entry in entries)


def compare_record(index: Index, number: int, record: Record, path: bytes) -> None:
    """What holds in the tree alone and through the overlay."""
    found = os.lstat(path)
    assert (found.st_mode, found.st_uid, found.st_gid) == (record.mode, record.uid, record.gid), path
    assert found.st_mtime_ns == record.mtime_ns, path
    if stat.S_ISDIR(record.mode):
        children = [index[child] for child in index.children(number)]
        expected = [(c.name, stat.S_ISDIR(c.mode), stat.S_ISLNK(c.mode)) for c in children if not is_hidden(c)]
        assert listed(path) == sorted(expected), path
    else:
        assert found.st_nlink == record.count, path
    if record.rdev:
        assert (os.major(found.st_rdev), os.minor(found.st_rdev)) == record.rdev, path
    if stat.S_ISREG(record.mode) or stat.S_ISLNK(record.mode):
        assert found.st_size == record.size, path
    if record.target is not None:
        assert os.readlink(path) == record.target, path


def escaped(name: bytes) -> bytes:
    return re.sub(rb"^trusted\.overlay\.", b"trusted.overlay.overlay.", name)


def compare_lower(shown: Shown, number: int, record: Record, path: bytes) -> None:
    compare_record(shown.index, number, record, path)
    expected = {escaped(name): value for name, value in record.xattrs.items()}
    found = xattrs_of(path)
    if record.content is not None:
        assert found.pop(b"trusted.overlay.metacopy") == b""
        assert found.pop(b"trusted.overlay.redirect").startswith(b"/")
    assert found == expected, path
    if stat.S_ISDIR(record.mode):
        subdirectories = sum(stat.S_ISDIR(shown.index[child].mode) for child in shown.index.children(number))
        assert os.lstat(path).st_nlink == 2 + subdirectories, path


def compare_merged(shown: Shown, number: int, record: Record, path: bytes) -> None:
    if number == 0:  # an overlay shows the upper directory's attributes for its root
        return
    compare_record(shown.index, number, record, path)
    assert xattrs_of(path) == record.xattrs, path
    if stat.S_ISREG(record.mode):
        expected = b"" if record.content is None else shown.tree.contents[record.content]
        assert Path(os.fsdecode(path)).read_bytes() == expected, path


def compare(shown: Shown) -> None:
    for number, record in enumerate(shown.index):
        lower = kernel_fs.path_of(shown.lower, record.path)
        merged = kernel_fs.path_of(shown.merged, record.path)
        if is_hidden(record):
            for path in (lower, merged):
                with pytest.raises(FileNotFoundError):
                    os.lstat(path)
            continue
        compare_lower(shown, number, record, lower)
        compare_merged(shown, number, record, merged)


@contextmanager
def compared(tree: Tree, where: Path) -> Iterator[Shown]:
    """The tree passes fsck.erofs and is what the kernel shows."""
    with show(tree, where) as shown:
        fsck(where / "tree.erofs")
        fsck(where / "pack.erofs", subpage=True)
        compare(shown)
        yield shown


def read_at(mount: int, path: str) -> bytes:
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=mount)) as file:
        return file.read()


def names_at(mount: int, path: str) -> list[str]:
    fd = os.open(path, os.O_RDONLY, dir_fd=mount)
    try:
        with os.scandir(fd) as entries:
            return sorted(entry.name for entry in entries)
    finally:
        os.close(fd)


# The tree


@pytest.mark.root
@pytest.mark.kernel
def test_every_type_is_shown(kernel: None, tmp_path: Path) -> None:
    with compared(every_type(), tmp_path):
        pass


@pytest.mark.root
@pytest.mark.kernel
def test_content_without_the_overlay_is_an_error(kernel: None, tmp_path: Path) -> None:
    need_an_error_past_the_end()
    with show(every_type(), tmp_path) as shown:
        for name in ("etc/first", "etc/large", "etc/block", "copy"):
            with pytest.raises(OSError) as caught:
                read_at(shown.lower, name)
            assert caught.value.errno == errno.EIO
        assert read_at(shown.lower, "etc/empty") == b""


def test_content_is_said_to_be_past_the_end() -> None:
    image = every_type().image()
    assert image.count(struct.pack("<I", NOWHERE_BLOCK)) == 5  # inodes with content
    assert len(image) < NOWHERE_BLOCK * 4096


@pytest.mark.root
@pytest.mark.kernel
def test_only_a_root(kernel: None, tmp_path: Path) -> None:
    with compared(Tree(mtime_ns=5, uid=3), tmp_path) as shown:
        assert names_at(shown.merged, ".") == []


@pytest.mark.root
@pytest.mark.kernel
def test_one_entry(kernel: None, tmp_path: Path) -> None:
    with compared(tree_of((b"only", REGULAR | 0o644, {"data": b"x"})), tmp_path) as shown:
        assert read_at(shown.merged, "only") == b"x"


@pytest.mark.root
@pytest.mark.kernel
def test_a_literal_whiteout_device_hides_nothing_and_is_not_listed(kernel: None, tmp_path: Path) -> None:
    tree = tree_of((b"gone", CHAR | 0o600, {"rdev": (0, 0)}), (b"here", REGULAR | 0o600, {"data": b"x"}))
    only = tree.add(0, b"only", DIRECTORY | 0o755)
    first = tree.add(only, b"linked", CHAR | 0o600, rdev=(0, 0))
    tree.add(0, b"again", CHAR | 0o600, rdev=(0, 0), inode=first)
    with compared(tree, tmp_path) as shown:
        assert names_at(shown.merged, ".") == ["here", "only"]
        assert names_at(shown.lower, "only") == []


@pytest.mark.root
@pytest.mark.kernel
def test_changes_go_to_the_upper_directory(kernel: None, tmp_path: Path) -> None:
    tree = every_type()
    with compared(tree, tmp_path) as shown:
        os.chmod("etc/large", 0o600, dir_fd=shown.merged)
        copied = tmp_path / "upper/etc/large"
        assert copied.stat().st_size == 262_144 and copied.stat().st_blocks * 512 <= 4096  # metadata only
        assert read_at(shown.merged, "etc/large") == bytes(range(256)) * 1024
        for name in ("etc/large", "copy"):
            fd = os.open(name, os.O_RDWR, dir_fd=shown.merged)
            os.pwrite(fd, b"NEW", 2)
            os.close(fd)
        assert read_at(shown.merged, "etc/large") == b"\0\1NEW" + (bytes(range(256)) * 1024)[5:]
        assert read_at(shown.merged, "copy") == b"liNEWd"
        assert read_at(shown.merged, "second") == b"linked"
        os.unlink("etc/empty", dir_fd=shown.merged)
        assert "empty" not in names_at(shown.merged, "etc")


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("is_same_image", [True, False])
def test_inode_numbers_after_copy_up(kernel: None, tmp_path: Path, is_same_image: bool) -> None:
    """overlayfs notes the UUID and the position of what it copied up, and must not look there in another image."""
    before = tree_of((b"changed", REGULAR | 0o644, {"data": b"old"}), (b"further", REGULAR | 0o644, {"data": b"old"}))
    after = tree_of((b"another", REGULAR | 0o644, {"data": b"old"}), (b"changed", REGULAR | 0o644, {"data": b"old"}))
    with show(before, tmp_path) as shown:
        number = os.stat("changed", dir_fd=shown.merged).st_ino
        fd = os.open("changed", os.O_WRONLY, dir_fd=shown.merged)
        os.write(fd, b"new")
        os.close(fd)
    (tmp_path / "after.erofs").write_bytes((before if is_same_image else after).image())
    with ExitStack() as stack:
        lower = stack.enter_context(kernel_fs.erofs(tmp_path / "after.erofs"))
        packs = stack.enter_context(kernel_fs.erofs(tmp_path / "pack.erofs", tmp_path / "pack"))
        again = stack.enter_context(kernel_fs.overlay(lower, [packs], tmp_path / "upper", tmp_path / "work"))
        assert read_at(again, "changed") == b"new"
        if is_same_image:
            assert os.stat("changed", dir_fd=again).st_ino == number
        else:
            assert os.stat("another", dir_fd=again).st_ino == number
            assert os.stat("changed", dir_fd=again).st_ino != number


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("length", [1, 255, 1900, 2047, 2048, 2049, 4000, 4031, 4032, 4033, 4094, 4095])
def test_symlinks_of_every_length(kernel: None, tmp_path: Path, length: int) -> None:
    tree = Tree()
    for i in range(7):  # at different places in their blocks
        tree.add(0, b"%d" % i, SYMLINK | 0o777, target=bytes([65 + i]) * length)
    with compared(tree, tmp_path):
        pass


@pytest.mark.root
@pytest.mark.kernel
def test_directories_of_every_fill(kernel: None, tmp_path: Path) -> None:
    """Directories whose last block is empty but for one entry, half full, full, and one too many, inline and not."""
    tree = Tree()
    for count in (0, 1, 15, 16, 17, 18, 30, 31, 32, 33, 34, 45, 47, 48, 64, 65, 200):
        directory = tree.add(0, b"d%d" % count, DIRECTORY | 0o755)
        for i in range(count):
            tree.add(directory, b"%03d" % i + b"n" * (113 if i % 7 else 240), REGULAR | 0o644)
    with compared(tree, tmp_path):
        pass


@pytest.mark.root
@pytest.mark.kernel
def test_a_large_directory(kernel: None, tmp_path: Path) -> None:
    tree = Tree()
    directory = tree.add(0, b"many", DIRECTORY | 0o755)
    for i in range(100_000):
        tree.add(directory, b"file-%d" % i, REGULAR | 0o644, mtime_ns=i)
    with show(tree, tmp_path) as shown:
        fsck(tmp_path / "tree.erofs")
        assert len(names_at(shown.merged, "many")) == 100_000
        for i in random.Random(1).sample(range(100_000), 500):
            assert os.stat(f"many/file-{i}", dir_fd=shown.merged).st_mtime_ns == i
            with pytest.raises(FileNotFoundError):
                os.stat(f"many/file-{i}-", dir_fd=shown.merged)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("size", [1, 2**32 - 1, 2**32, 2**32 + 1, 2**40])
def test_sizes_of_large_files(kernel: None, tmp_path: Path, size: int) -> None:
    """Sparse objects: their bytes are read at the ends and where a chunk of 2^32 bytes would begin."""
    contents = [(b"\xab" * 32, size)]
    tree = Tree()
    tree.nodes.append(Node(0, b"large", REGULAR | 0o644, content=0))
    index = Index(write_index(CHAIN, 1, KEY, tree.nodes, contents))
    (tmp_path / "tree.erofs").write_bytes(write_tree(index, struct.pack("<II", OBJECT, 0)))
    fsck(tmp_path / "tree.erofs")
    for name in ("upper", "work", "objects/ab"):
        (tmp_path / name).mkdir(parents=True)
    places = sorted({0, size // 2, max(0, size - 4)})
    with open(tmp_path / "objects/ab" / ("ab" * 31), "wb") as file:
        file.truncate(size)
        for place in places:
            os.pwrite(file.fileno(), b"mark"[: size - place], place)
    with ExitStack() as stack:
        lower = stack.enter_context(kernel_fs.erofs(tmp_path / "tree.erofs"))
        objects = os.open(tmp_path / "objects", os.O_PATH)
        stack.callback(os.close, objects)
        merged = stack.enter_context(kernel_fs.overlay(lower, [objects], tmp_path / "upper", tmp_path / "work"))
        for mount in (lower, merged):
            assert os.stat("large", dir_fd=mount).st_size == size
        for mount, is_readable in ((lower, False), (merged, True)):
            fd = os.open("large", os.O_RDONLY, dir_fd=mount)
            stack.callback(os.close, fd)
            for place in places:
                if is_readable:
                    assert os.pread(fd, 4, place) == b"mark"[: size - place]
                elif past_the_end_is_an_error():
                    with pytest.raises(OSError) as caught:
                        os.pread(fd, 4, place)
                    assert caught.value.errno == errno.EIO


# Extended attributes


@pytest.mark.root
@pytest.mark.kernel
def test_xattrs_are_shown(kernel: None, tmp_path: Path) -> None:
    tree = Tree()
    label = {b"security.selinux": b"system_u:object_r:usr_t:s0\0"}
    for i in range(40):
        tree.add(0, b"labelled-%d" % i, REGULAR | 0o755, b"%d" % (i // 2), xattrs=label)
    tree.add(0, b"capable", REGULAR | 0o755, b"c", xattrs={b"security.capability": CAPABILITY, **label})
    tree.add(0, b"acl", REGULAR | 0o640, b"a", xattrs={b"system.posix_acl_access": ACL})
    default = {b"system.posix_acl_access": ACL, b"system.posix_acl_default": ACL}
    tree.add(0, b"default", DIRECTORY | 0o740, xattrs=default)
    tree.add(0, b"again", DIRECTORY | 0o740, xattrs=default)
    tree.add(0, b"empty", REGULAR | 0o644, xattrs={b"user.empty": b"", b"user.e": b""})
    tree.add(0, b"long", REGULAR | 0o644, xattrs={b"user." + b"n" * 250: b"v" * 100, b"trusted." + b"t" * 247: b""})
    for name, mode, fields in (
        (b"null", CHAR, {"rdev": (1, 3)}),
        (b"fifo", FIFO, {}),
        (b"link", SYMLINK, {"target": b"t" * 3000}),
    ):
        tree.add(0, name, mode | 0o600, xattrs={b"trusted.t": b"x" * 5000}, **fields)  # type: ignore[arg-type]
    with compared(tree, tmp_path):
        pass


@pytest.mark.root
@pytest.mark.kernel
def test_overlay_xattrs_of_the_image_have_no_effect_and_are_shown(kernel: None, tmp_path: Path) -> None:
    tree = Tree()
    hostile = {
        b"trusted.overlay.opaque": b"y",
        b"trusted.overlay.redirect": b"/elsewhere",
        b"trusted.overlay.metacopy": b"",
        b"trusted.overlay.whiteout": b"",
        b"trusted.overlay.overlay.opaque": b"nested",
        b"trusted.overlayed": b"not ours",
        b"trusted.overlay." + b"n" * (255 - 16 - 8): b"the longest that can be escaped",
        b"user.overlay.redirect": b"/elsewhere",
    }
    directory = tree.add(0, b"directory", DIRECTORY | 0o755, xattrs=hostile)
    tree.add(directory, b"empty", REGULAR | 0o644, xattrs=hostile)
    tree.add(directory, b"file", REGULAR | 0o644, b"mine", xattrs=hostile)
    with compared(tree, tmp_path) as shown:
        assert read_at(shown.merged, "directory/file") == b"mine"
        assert read_at(shown.merged, "directory/empty") == b""


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.parametrize("count", [1, 250, 253, 254, 255, 256, 300])
def test_many_xattrs(kernel: None, tmp_path: Path, count: int, copies: int) -> None:
    tree = Tree()
    for copy in range(copies):
        xattrs = {b"user.%03d" % i: b"value %d" % i for i in range(count)}
        tree.add(0, b"%d" % copy, REGULAR | 0o644, b"content", xattrs=xattrs)
        tree.add(0, b"d%d" % copy, DIRECTORY | 0o755, xattrs=xattrs)
    with compared(tree, tmp_path):
        pass


@pytest.mark.root
@pytest.mark.kernel
def test_large_xattrs(kernel: None, tmp_path: Path) -> None:
    """Values up to what 16 bits can say, and more of them than an inode has room for."""
    tree = Tree()
    for i, (count, size) in enumerate([(1, 65_535), (1, 4_000), (3, 65_535), (4, 65_000), (5, 65_535), (16, 65_000)]):
        xattrs = {b"user.%02d" % j: bytes([j]) * size for j in range(count)}
        tree.add(0, b"%d" % i, REGULAR | 0o644, b"content", xattrs=xattrs)
    with compared(tree, tmp_path):
        pass


def test_equal_xattrs_are_stored_once() -> None:
    value = os.urandom(2000)
    tree = tree_of(*((b"%d" % i, REGULAR | 0o644, {"xattrs": {b"user.v": value}}) for i in range(50)))
    image = tree.image()
    assert image.count(value) == 1 and len(image) < 20_000
    alone = tree_of((b"x", REGULAR | 0o644, {"xattrs": {b"user.v": value}})).image()
    assert alone.count(value) == 1


def test_each_of_many_different_xattrs_is_stored_once() -> None:
    values = [os.urandom(16) for _ in range(500)]
    files = ((b"%d" % i, REGULAR | 0o644, {"xattrs": {b"user.v": values[i % 500]}}) for i in range(1_000))
    image = tree_of(*files).image()
    assert {image.count(value) for value in values} == {1}


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        (b"user." + b"n" * 251, b"", LimitExceeded),
        (b"trusted.overlay." + b"n" * (255 - 16 - 7), b"", LimitExceeded),
        (b"user.large", bytes(65_536), LimitExceeded),
    ],
)
def test_an_xattr_that_erofs_cannot_hold_is_refused(name: bytes, value: bytes, error: type[Exception]) -> None:
    tree = tree_of((b"guilty\n", REGULAR | 0o644, {"xattrs": {name: value}}))
    with pytest.raises(error) as caught:
        tree.image()
    assert r"'/guilty\x0a'" in str(caught.value)
    assert repr(name)[2:20].rstrip("'").replace("\\x00", "") in str(caught.value).replace("\\x00", "")


@pytest.mark.parametrize(
    "name",
    [
        *(b"system.nfs4_acl", b"system.posix_acl_accessory", b"com.apple.provenance"),
        *(b"user.", b"trusted.", b"user.a\0b"),
    ],
)
def test_an_xattr_that_linux_cannot_show_is_left_out(name: bytes) -> None:
    kept = {b"user.kept": b"value"}
    with_it = tree_of((b"x", REGULAR | 0o644, {"xattrs": {**kept, name: b"gone"}})).image()
    assert bytes(with_it) == bytes(tree_of((b"x", REGULAR | 0o644, {"xattrs": kept})).image())


def test_an_image_may_have_no_xattr_that_linux_can_show() -> None:
    tree = tree_of((b"x", REGULAR | 0o644, {"xattrs": {b"com.apple.provenance": b"gone"}}))
    assert tree.image() == tree_of((b"x", REGULAR | 0o644, {})).image()


def test_too_many_xattrs_are_refused() -> None:
    xattrs = {b"user.%04d" % i: bytes(1000) for i in range(600)}
    with pytest.raises(LimitExceeded, match=r"'/guilty': its 600 extended attributes"):
        tree_of((b"guilty", REGULAR | 0o644, {"xattrs": xattrs})).image()


# What the tree refuses


@pytest.mark.parametrize(
    ("name", "mode", "fields", "error", "message"),
    [
        (b"n" * 256, REGULAR, {}, LimitExceeded, "256 bytes"),
        (b"link", SYMLINK, {"target": b"t" * 4096}, LimitExceeded, "4096 bytes"),
        (b"link", SYMLINK, {"target": b""}, InvalidInput, "empty"),
        (b"major", CHAR, {"rdev": (4096, 0)}, LimitExceeded, "4096:0"),
        (b"minor", BLOCK, {"rdev": (0, 1 << 20)}, LimitExceeded, "0:1048576"),
        (b"socket", stat.S_IFSOCK, {}, CorruptError, "no type"),
    ],
)
def test_what_an_image_cannot_show_is_refused(
    name: bytes, mode: int, fields: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        tree_of((name, mode | 0o600, fields)).image()
    assert f"'/{name.decode()}'" in str(caught.value)


def test_a_file_larger_than_a_chunk_is_refused() -> None:
    nodes = [Node(0, b"", DIRECTORY | 0o755), Node(0, b"vast", REGULAR | 0o644, content=0)]
    for size, is_fine in ((2**43, True), (2**43 + 1, False)):
        index = Index(write_index(CHAIN, 1, KEY, nodes, [(bytes(32), size)]))
        if is_fine:
            write_tree(index, bytes(8))
            continue
        with pytest.raises(LimitExceeded, match="8 TiB"):
            write_tree(index, bytes(8))


def test_the_index_of_a_layer_is_refused() -> None:
    with pytest.raises(InvalidInput, match="merge"):
        write_tree(Tree().index(LAYER), b"")


def test_locations_must_match_the_contents() -> None:
    index = every_type().index()
    for wrong in (b"", bytes(8 * (index.content_count - 1)), bytes(8 * index.content_count + 1)):
        with pytest.raises(ValueError, match="locations"):
            write_tree(index, wrong)


def test_damaged_indexes_never_crash() -> None:
    tree = every_type()
    tree.add(0, b"x", REGULAR | 0o644, b"x", xattrs={b"user.a": b"b" * 30, b"trusted.overlay.x": b"c"})
    nodes, contents = tree.nodes, [(blake3.blake3(data).digest(), len(data)) for data in tree.contents]
    good = write_index(CHAIN, 1, KEY, nodes, contents)
    locations = tree.pack()[2]
    source = random.Random(20)
    outcomes = {CorruptError: 0, None: 0}
    for _ in range(6000):
        bad = bytearray(good)
        for _ in range(source.choice((1, 1, 2, 8))):
            bad[source.randrange(128, len(bad))] = source.choice((0, 1, 0x7F, 0x80, 0xFF, source.randrange(256)))
        try:
            write_tree(Index(bytes(bad)), locations)
            outcomes[None] += 1
        except CorruptError:
            outcomes[CorruptError] += 1
        except (InvalidInput, LimitExceeded):
            pass
    assert all(outcomes.values())


# Packs


def numbered_slots(count: int) -> tuple[bytes, bytes]:
    """A pack of contents of different lengths, and its slots."""
    source = random.Random(count)
    pack, slots = bytearray(), bytearray()
    for i in range(count):
        data = b"%d|" % i * source.randrange(1, 40)
        slots += struct.pack("<QQ32x", len(pack), len(data))
        pack += data + bytes(-len(data) % PACK_BLOCK_BYTES)
    return bytes(pack), bytes(slots)


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("count", [0, 1, 2, 9, 10, 11, 24, 25, 26, 100, 101, 999, 10_000])
def test_a_pack_shows_its_slots(kernel: None, tmp_path: Path, count: int) -> None:
    pack, slots = numbered_slots(count)
    (tmp_path / "pack").write_bytes(pack)
    (tmp_path / "pack.erofs").write_bytes(write_pack(4_294_967_294, len(pack), slots))
    fsck(tmp_path / "pack.erofs", subpage=True)
    with kernel_fs.erofs(tmp_path / "pack.erofs", tmp_path / "pack") as mount:
        assert names_at(mount, ".") == ["p4294967294"]
        assert names_at(mount, "p4294967294") == sorted(map(str, range(count)))
        for i in range(count):
            offset, size = struct.unpack_from("<QQ", slots, 48 * i)
            assert read_at(mount, f"p4294967294/{i}") == pack[offset : offset + size]
        with pytest.raises(FileNotFoundError):
            os.stat(f"p4294967294/{count}", dir_fd=mount)
        if count:
            found = os.stat("p4294967294/0", dir_fd=mount)
            assert (found.st_mode, found.st_uid, found.st_mtime_ns) == (REGULAR | 0o400, 0, 0)


@pytest.mark.root
@pytest.mark.kernel
def test_a_pack_without_its_device_is_no_zeros(kernel: None, tmp_path: Path) -> None:
    need_an_error_past_the_end()
    pack, slots = numbered_slots(3)
    (tmp_path / "pack.erofs").write_bytes(write_pack(1, len(pack), slots))
    with kernel_fs.erofs(tmp_path / "pack.erofs") as mount:
        for i in range(3):
            with pytest.raises(OSError) as caught:
                read_at(mount, f"p1/{i}")
            assert caught.value.errno == errno.EIO


@pytest.mark.root
@pytest.mark.kernel
def test_slots_far_into_a_pack(kernel: None, tmp_path: Path) -> None:
    """Offsets beyond 4 GiB, and a slot of almost that size."""
    far = 5 * 2**30
    slots = [(far, 3), (512, 2**32 - 1), (0, 512)]
    with open(tmp_path / "pack", "wb") as file:
        file.truncate(far + 512)
        os.pwrite(file.fileno(), b"far", far)
        os.pwrite(file.fileno(), b"end", 512 + 2**32 - 1 - 3)
    image = write_pack(0, far + 512, b"".join(struct.pack("<QQ32x", *slot) for slot in slots))
    (tmp_path / "pack.erofs").write_bytes(image)
    with kernel_fs.erofs(tmp_path / "pack.erofs", tmp_path / "pack") as mount:
        assert read_at(mount, "p0/0") == b"far"
        with open("p0/1", "rb", opener=lambda name, flags: os.open(name, flags, dir_fd=mount)) as file:
            assert file.seek(0, os.SEEK_END) == 2**32 - 1
            file.seek(-4, os.SEEK_END)
            assert file.read() == b"\0end"


@pytest.mark.parametrize(
    ("pack_bytes", "slot", "error"),
    [
        (1000, (0, 1), InvalidInput),
        (1024, (0, 0), InvalidInput),
        (1024, (100, 1), InvalidInput),
        (1024, (512, 513), InvalidInput),
        (1024, (1024, 1), InvalidInput),
        (1024, (2**64 - 512, 1024), InvalidInput),
        (2**33, (0, 2**32), LimitExceeded),
        (2**41, (0, 1), LimitExceeded),
    ],
)
def test_slots_that_cannot_be_are_refused(pack_bytes: int, slot: tuple[int, int], error: type[Exception]) -> None:
    with pytest.raises(error):
        write_pack(0, pack_bytes, struct.pack("<QQ32x", *slot))


def test_slots_must_be_whole() -> None:
    with pytest.raises(ValueError, match="slots"):
        write_pack(0, 512, bytes(17))


# Both


def test_images_are_the_same_byte_for_byte() -> None:
    """Pinned: a change here is a change of the format, and of docs/format/erofs.md."""
    pack, slots = numbered_slots(300)
    found = {
        "tree": hashlib.sha256(every_type().image()).hexdigest(),
        "pack": hashlib.sha256(write_pack(3, len(pack), slots)).hexdigest(),
    }
    assert found == json.loads((DATA / "erofs_golden.json").read_text())


def test_images_are_whole_blocks_and_differ_in_uuid() -> None:
    tree, pack = every_type().image(), bytes(write_pack(0, 0, b""))
    assert len(tree) % 4096 == 0 and len(pack) % 512 == 0
    uuids = {image[1024 + 48 : 1024 + 64] for image in (tree, pack, bytes(write_pack(1, 0, b"")), Tree().image())}
    assert len(uuids) == 4 and bytes(16) not in uuids


def test_an_image_is_a_read_only_buffer() -> None:
    image = write_pack(0, 0, b"")
    view = memoryview(image)
    assert view.readonly and view.nbytes == len(image) and bytes(image) == view
    with pytest.raises(TypeError):
        Image()


def test_dump_sees_the_directory_in_order(tmp_path: Path) -> None:
    program = shutil.which("dump.erofs")
    if not program:
        pytest.skip("dump.erofs is not installed (erofs-utils)")
    (tmp_path / "image").write_bytes(every_type().image())
    output = subprocess.run([program, "--ls", "--path=/", tmp_path / "image"], capture_output=True, check=True).stdout
    names = [line.split(maxsplit=2)[2].strip() for line in output.split(b"FILENAME\n")[1].splitlines()]
    assert names == [b"-", b".", b".-", b"..", b"..-", b"...", b"copy", b"etc", b"second", b"\xff" * 255]


names = st.one_of(
    st.sampled_from([b"-", b".-", b"...", b"..-", b"..0", b".", b".."]),
    st.binary(min_size=1, max_size=255),
).filter(lambda name: name not in (b".", b"..") and not set(name) & {0, 47})
any_xattrs = st.dictionaries(
    st.binary(min_size=1, max_size=40).filter(lambda name: 0 not in name).map(lambda name: b"trusted." + name),
    st.binary(max_size=300) | st.sampled_from([bytes(70), b"same", bytes(5000)]),
    max_size=4,
)
user_xattrs = st.dictionaries(
    st.sampled_from([b"user.a", b"user.b", b"security.ima"]), st.binary(max_size=9), max_size=2
)
owners = st.sampled_from([0, 1, 1000, 65_535, 65_536, 2**31])
times = st.integers(-(2**40) * 10**9, 2**40 * 10**9)


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    tree = Tree(mtime_ns=draw(times))
    directories, files, taken = [0], [], set()
    for _ in range(draw(st.integers(0, 40))):
        parent, name = draw(st.sampled_from(directories)), draw(names)
        if (parent, name) in taken:
            continue
        taken.add((parent, name))
        if files and draw(st.integers(0, 5)) == 0:
            first = draw(st.sampled_from(files))
            tree.nodes.append(tree.nodes[first]._replace(parent=parent, name=name, inode=first))
            continue
        kind = draw(st.sampled_from([DIRECTORY, DIRECTORY, REGULAR, REGULAR, REGULAR, SYMLINK, CHAR, BLOCK, FIFO]))
        fields: dict[str, object] = {"uid": draw(owners), "gid": draw(owners), "mtime_ns": draw(times)}
        xattrs = draw(any_xattrs)
        if kind in (DIRECTORY, REGULAR):
            xattrs |= draw(user_xattrs)
        if kind == REGULAR:
            size = draw(st.sampled_from([0, 1, 511, 512, 513, 4096, 70_000]))
            fields["data"] = bytes([draw(st.integers(1, 3))]) * size
        if kind == SYMLINK:
            fields["target"] = draw(st.binary(min_size=1, max_size=60).filter(lambda target: 0 not in target))
        if kind in (CHAR, BLOCK):
            fields["rdev"] = draw(st.tuples(st.sampled_from([0, 1, 4095]), st.sampled_from([0, 255, 256, 2**20 - 1])))
        number = tree.add(parent, name, kind | draw(st.integers(0, 0o7777)), xattrs=xattrs, **fields)  # type: ignore[arg-type]
        (directories if kind == DIRECTORY else files).append(number)
    return tree


@pytest.mark.root
@pytest.mark.kernel
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(tree=trees())
def test_any_tree_is_shown(kernel: None, tree: Tree) -> None:
    with tempfile.TemporaryDirectory() as where, compared(tree, Path(where)):
        pass
