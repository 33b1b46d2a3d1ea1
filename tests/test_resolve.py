"""Where paths lead: judged by the kernel (openat2 with RESOLVE_IN_ROOT, for which nobody needs root) and by a model."""

import contextlib
import ctypes
import errno
import os
import random
import stat
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerstore._core import index as ix
from layerstore._core.entry import Entry
from layerstore._core.index import Index, Node, write_index
from layerstore._core.view import ROW_BYTES, Tree
from layerstore.errors import CorruptError

KEY = bytes(16)
D, F, L = stat.S_IFDIR | 0o755, stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777
_OPENAT2, _RESOLVE_IN_ROOT = 437, 0x10

# A tree: path without a leading slash -> None for a directory, b"" for a file, the target of a link.
Spec = dict[bytes, bytes | None]


def index_bytes(spec: Spec) -> bytes:
    nodes, numbers = [Node(0, b"", D)], {b"": 0}
    for path, what in sorted(spec.items()):
        parent, _, name = path.rpartition(b"/")
        numbers[path] = len(nodes)
        mode = D if what is None else L if what else F
        nodes.append(Node(numbers[parent], name, mode, target=what or None))
    return bytes(write_index(ix.CHAIN, 1, KEY, nodes))


def tree_of(spec: Spec) -> Tree:
    index = Index(index_bytes(spec))
    index.verify()
    return Tree(index)


def make_on_disk(spec: Spec, root: bytes) -> None:
    for path, what in sorted(spec.items()):
        place = root + b"/" + path
        if what is None:
            os.mkdir(place)
        elif what:
            os.symlink(what, place)
        else:
            os.close(os.open(place, os.O_CREAT | os.O_EXCL))


# The kernel


def openat2_works() -> bool:
    root = os.open("/", os.O_PATH)
    try:
        os.close(openat2(root, b"/", 0))
    except OSError:
        return False
    finally:
        os.close(root)
    return True


def openat2(directory: int, path: bytes, flags: int) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    how = struct.pack("<QQQ", os.O_PATH | os.O_CLOEXEC | flags, 0, _RESOLVE_IN_ROOT)
    fd = libc.syscall(_OPENAT2, directory, ctypes.c_char_p(path), how, ctypes.c_size_t(len(how)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(fd)


class Kernel:
    """What the kernel says of paths in a tree on disk: the path of what it finds, or the errno."""

    def __init__(self, spec: Spec, root: bytes) -> None:
        make_on_disk(spec, root)
        self.root = os.open(root, os.O_PATH | os.O_DIRECTORY)
        self.names = {os.lstat(root + b"/" + path).st_ino: path for path in spec} | {os.stat(root).st_ino: b""}

    def __call__(self, path: bytes, follow: bool) -> bytes | int:
        for _ in range(100):
            try:
                fd = openat2(self.root, path, 0 if follow else os.O_NOFOLLOW)
            except OSError as error:
                said = int(error.errno)
                # A first try without locks, which any change on the machine ends, leaves its links counted; and ".." is
                # not followed (openat2(2)) while anything is renamed or mounted.
                if said not in (errno.ELOOP, errno.EAGAIN):
                    return said
            else:
                break
        else:
            return said
        try:
            return self.names[os.fstat(fd).st_ino]
        finally:
            os.close(fd)


needs_openat2 = pytest.mark.skipif(not openat2_works(), reason="needs openat2(2) of the kernel")


@pytest.fixture
def scratch() -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as directory:
        yield os.fsencode(directory)


# The model: pieces of text that are rewritten, where the C core keeps a stack


def model(spec: Spec, path: bytes, follow: bool) -> bytes | int:
    if not 0 < len(path) < 4096:
        return errno.ENAMETOOLONG if path else errno.ENOENT
    at, rest, links = b"", path, 0
    while rest:
        if at and spec[at] is not None:
            return errno.ENOTDIR
        name, slash, rest = rest.lstrip(b"/").partition(b"/")
        rest = slash + rest
        if name in (b"", b"."):
            continue
        if name == b"..":
            at = at.rpartition(b"/")[0]
            continue
        found = (at + b"/" + name).lstrip(b"/")
        if found not in spec:
            return errno.ENAMETOOLONG if len(name) > 255 else errno.ENOENT
        target = spec[found]
        if target and (rest or follow):
            links += 1
            if links > 40:
                return errno.ELOOP
            at = b"" if target.startswith(b"/") else at
            # A slash after a link that ends the path would ask it to be a directory.
            rest = target + rest
        else:
            at = found
    return at


def ours(tree: Tree, path: bytes | str, follow: bool) -> bytes | int:
    """What the three ways of looking up say, which must be the same."""
    entry = tree.lookup(path, follow_symlinks=follow)
    rows = bytearray(ROW_BYTES)
    tree.fill_rows([path], follow, b"", rows)
    assert struct.unpack_from("<i", rows, 36)[0] == (-1 if entry is None else entry.record)
    assert rows[0] == (entry is not None)
    try:
        found = tree.find(path, follow_symlinks=follow)
    except OSError as error:
        assert entry is None
        assert error.filename == path
        return int(error.errno)
    assert entry is not None
    assert found.record == entry.record
    return os.fsencode(found.path).lstrip(b"/")


# Both


names = st.sampled_from([b"a", b"b", b"c", b"\xff", b"..a"])
components = st.one_of(names, names, st.sampled_from([b"..", b".", b"", b"a"]))
paths = st.builds(
    lambda start, parts, end: start + b"/".join(parts) + end,
    st.sampled_from([b"", b"/", b"//"]),
    st.lists(components, min_size=1, max_size=7),
    st.sampled_from([b"", b"", b"/"]),
)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    spec: Spec = {}
    directories = [b""]
    for _ in range(draw(st.integers(1, 14))):
        parent, name = draw(st.sampled_from(directories)), draw(names)
        path = parent + b"/" + name if parent else name
        if path in spec:
            continue
        kind = draw(st.sampled_from("ddfll"))
        spec[path] = None if kind == "d" else b"" if kind == "f" else draw(paths.filter(bool))
        if kind == "d":
            directories.append(path)
    return spec


def check_all(spec: Spec, asked: list[bytes], root: bytes) -> None:
    tree, kernel = tree_of(spec), Kernel(spec, root)
    try:
        for path in {*asked, *spec, b"", *(path + b"/" for path in spec)}:
            for follow in (True, False):
                said = kernel(path, follow)
                assert model(spec, path, follow) == said, (path, follow)
                assert ours(tree, path, follow) == said, (path, follow)
                assert ours(tree, os.fsdecode(path), follow) == said, (path, follow)
    finally:
        os.close(kernel.root)


@needs_openat2
@pytest.mark.kernel
@settings(max_examples=200, deadline=None)
@given(specs(), st.lists(paths, max_size=12))
def test_paths_lead_where_the_kernel_says(spec: Spec, asked: list[bytes]) -> None:
    with tempfile.TemporaryDirectory() as root:
        check_all(spec, asked, os.fsencode(root))


@settings(max_examples=200, deadline=None)
@given(specs(), st.lists(paths, max_size=12))
def test_paths_lead_where_the_model_says(spec: Spec, asked: list[bytes]) -> None:
    tree = tree_of(spec)
    for path in {*asked, *spec}:
        for follow in (True, False):
            assert ours(tree, path, follow) == model(spec, path, follow), (path, follow)


HARD: Spec = {
    **{b"d": None, b"d/e": None, b"d/e/file": b"", b"d/up": b"..", b"file": b"", b"loop": b"loop"},
    **{b"to-file": b"file", b"to-file-as-directory": b"file/", b"to-nothing": b"nothing", b"abs": b"/d/e"},
    **{
        b"out": b"../../../../etc",
        b"d/e/out": b"../../../../d",
        b"self": b".",
        b"root": b"/",
        b"slashes": b"///d//e//",
    },
    **{b"a": b"b", b"b": b"a", b"via": b"abs/../up/file", b"dots": b"d/./e/../e/./file", b"d/e/deep": b"/abs/file"},
    **{b"link0": b"file", **{b"link%d" % n: b"link%d" % (n - 1) for n in range(1, 45)}},
    **{b"twice": b"self/self/self/to-file", b"through": b"file/..", b"through-nothing": b"nothing/.."},
}
ASKED = [
    *(b"/", b"//", b".", b"..", b"/..", b"", b"./", b"../..", b"/./d/", b"d/", b"d//", b"file/", b"file/.", b"file/.."),
    *(b"d/up/file", b"d/up/../d", b"d/e/out/e", b"abs/..", b"abs/../e", b"loop/x", b"self/self/self/file", b"out/x"),
    *(b"self/" * 39 + b"to-file", b"self/" * 40 + b"file", b"self/" * 40 + b"to-file", b"self/" * 41 + b"file"),
    *(b"link39", b"link40", b"link40/", b"self/link39", b"root/root/d/e/deep", b"nothing/..", b"to-nothing/.."),
    *(b"x" * 255, b"x" * 256, b"d/" + b"x" * 256 + b"/y", b"file/" + b"x" * 256),
    *(b"./" * 2046 + b"d", b"./" * 2047, b"./" * 2047 + b"d", b"./" * 2048),
    *(b"/" * 4095, b"/" * 4096, b"d/" * 3, b"/d/e/../../../file", b"d/e/file/../x", b"./d/./e/", b"d/e/...", b"..."),
]  # fmt: skip


@needs_openat2
@pytest.mark.kernel
def test_hard_cases_lead_where_the_kernel_says(scratch: bytes) -> None:
    check_all(HARD, ASKED, scratch)


def test_what_a_lookup_takes() -> None:
    tree = tree_of({b"d": None, b"d/\xff": b"", b"d/\xc3\xa9": b"", b"d/new\nline": b""})
    for path in (b"/d/\xff", "/d/\udcff", Path("/d/\udcff"), b"d/\xff"):
        entry = tree.lookup(path)
        assert isinstance(entry, Entry)
        assert entry.path == "/d/\udcff"
        assert entry.name == "\udcff"
    assert tree.lookup("/d/é") is not None
    assert tree.names(tree.find("/d")) == ["new\nline", "é", "\udcff"]
    for wrong in (None, 1, ["/d"]):
        with pytest.raises(TypeError):
            tree.lookup(wrong)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        tree.lookup("/d/\ud800")
    assert tree.lookup("/d\0") is None
    for zero in ("/d\0x", b"/d\0x"):
        with pytest.raises(ValueError, match="embedded null byte"):
            tree.find(zero)


def test_an_entry_of_another_tree_is_refused() -> None:
    tree, other = tree_of({b"d": None}), tree_of({b"d": None})
    for call in (tree.follow, tree.children, tree.names):
        with pytest.raises(ValueError, match="<Entry d '/d'> is of another tree"):
            call(other.find("/d"))
    with pytest.raises(TypeError, match="lookup and scandir"):
        Entry()


def test_rows_are_checked_against_what_they_are_for() -> None:
    tree = tree_of({b"d": None})
    tree.fill_rows([], True, b"", bytearray())
    for n in (0, ROW_BYTES - 1, 2 * ROW_BYTES):
        with pytest.raises(ValueError, match="rows"):
            tree.fill_rows(["/d"], True, b"", bytearray(n))
    with pytest.raises(ValueError, match="locations"):
        tree.fill_rows(["/d"], True, bytes(8), bytearray(ROW_BYTES))


@pytest.mark.parametrize("seed", range(4))
def test_a_batch_says_the_same_as_one_after_another(seed: int) -> None:
    """More paths than a window, hits and misses mixed."""
    rng = random.Random(seed)
    asked = [rng.choice([*HARD, *ASKED]) + rng.choice([b"", b"", b"/", b"x", b"/x"]) for _ in range(1000)]
    tree = tree_of(HARD)
    for follow in (True, False):
        rows = bytearray(ROW_BYTES * len(asked))
        tree.fill_rows(asked, follow, b"", rows)
        records = [struct.unpack_from("<i", rows, at + 36)[0] for at in range(0, len(rows), ROW_BYTES)]
        one_by_one = [tree.lookup(path, follow_symlinks=follow) for path in asked]
        assert records == [-1 if entry is None else entry.record for entry in one_by_one]


def test_many_threads_read_one_index() -> None:
    tree = tree_of(HARD)
    asked = [*HARD, *ASKED] * 20
    expected = bytearray(ROW_BYTES * len(asked))
    tree.fill_rows(asked, True, b"", expected)
    answers: list[bytes] = []

    def read() -> None:
        for _ in range(20):
            rows = bytearray(ROW_BYTES * len(asked))
            tree.fill_rows(asked, True, b"", rows)
            answers.append(bytes(rows))

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 80
    assert set(answers) == {bytes(expected)}


# Damage


def look_at(tree: Tree, entry: Entry) -> None:
    with contextlib.suppress(CorruptError):
        _ = entry.stat(), entry.path, entry.name, entry.target, entry.digest, entry.xattrs, repr(entry)
        tree.follow(entry)


def use_everything(tree: Tree) -> None:
    """Every kind of access, each of which may find the damage."""
    with contextlib.suppress(CorruptError):
        tree.fill_rows(ASKED, True, b"", bytearray(ROW_BYTES * len(ASKED)))
    for path in [*HARD, *ASKED]:
        with contextlib.suppress(CorruptError, OSError):
            look_at(tree, tree.find(path))
    waiting, seen = [tree.find("/")], 1
    while waiting:
        with contextlib.suppress(CorruptError):
            entries = tree.children(waiting.pop())
            for entry in entries:
                look_at(tree, entry)
            waiting += entries
            seen += len(entries)
    assert seen <= len(tree.index)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_index_gives_errors_or_answers_and_always_ends(data: st.DataObject) -> None:
    damaged = bytearray(index_bytes(HARD))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(128, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(CorruptError):
        use_everything(Tree(Index(bytes(damaged))))


def test_a_truncated_index_is_none() -> None:
    whole = index_bytes(HARD)
    for length in {0, 1, 127, 128, len(whole) // 2, len(whole) - 1}:
        with pytest.raises(CorruptError):
            Tree(Index(whole[:length]))


def test_overlapping_directories_do_not_make_a_walk_explode() -> None:
    """Each directory's range said to reach to the end: followed, 2**60 paths."""
    depth = 60
    spec: Spec = {b"/".join([b"d"] * n): None for n in range(1, depth)}
    damaged = bytearray(index_bytes(spec))
    for record in range(depth - 1):
        struct.pack_into("<II", damaged, 128 + 64 * record + 44, record + 1, depth - 1 - record)
    with pytest.raises(CorruptError, match="listing a directory"):
        tree = Tree(Index(bytes(damaged)))
        waiting = [tree.find("/")]
        while waiting:
            waiting += tree.children(waiting.pop())
