"""Looking into images from Python: against the `os` module and Python's own programs in a chroot, and on odd trees."""

import contextlib
import errno
import glob
import io
import os
import pickle
import random
import stat
import subprocess
import sys
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beside import READS, Meanwhile, content_store
from hypothesis import given, settings
from hypothesis import strategies as st
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_resolve import Spec, make_on_disk, specs, tree_of

import layerstore
from layerstore import Store
from layerstore._core.compare import compare
from layerstore._core.entry import Entry as Found
from layerstore._core.index import Index
from layerstore._core.view import ROW_BYTES, Tree
from layerstore.errors import CorruptError, NotFound
from layerstore.views import globbing
from layerstore.views.view import IN_OBJECT, NO_CONTENT, View

LARGE = bytes(range(256)) * 1024
TEXT = "Grüße\r\nzwei\n".encode()
LOWER = [
    Entry("dir", "bin", mode=0o755),
    Entry("file", "bin/busybox", data=b"program", mode=0o4755, uid=1, gid=2, mtime=(3, 4)),
    Entry("hardlink", "bin/sh", link="bin/busybox"),
    Entry("symlink", "sbin", link="/bin"),
    Entry("file", "etc/old", data=b"old"),
    Entry("file", "etc/gone", data=b"gone"),
]
UPPER = [
    Entry("dir", "data", mode=0o700, xattrs={"user.dir": b"\0"}),
    Entry("file", "data/large", data=LARGE),
    Entry("file", "data/large-too", data=LARGE),
    Entry("file", "data/empty"),
    Entry("file", "data/text", data=TEXT, xattrs={"user.a": b"1", "user.b": b"\xff"}, mtime=(-1, 500_000_000)),
    Entry("file", "data/.hidden", data=b"h"),
    Entry("file", "data/not-\udcff-utf8", data=b"x"),
    Entry("file", "data/new\nline", data=b"y"),
    Entry("file", "data/[x]", data=b"z"),
    Entry("symlink", "data/up", link=".."),
    Entry("symlink", "data/to-\udcfe", link="not-\udcff-utf8"),
    Entry("symlink", "data/dangling", link="nowhere"),
    Entry("symlink", "data/loop", link="loop"),
    Entry("char", "data/null", device=(1, 3), mode=0o666),
    Entry("fifo", "data/fifo"),
    Entry("file", "etc/old", data=b"new"),
    Entry("file", "etc/.wh.gone"),
]
APP = Image([write_tar(LOWER), write_tar(UPPER)], ["app:1"])


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("views") / "store", create=True) as made:
        made.load(io.BytesIO(tar_of(docker_files([APP]))))
        yield made


@pytest.fixture
def view(opened: Store) -> View:
    return opened.image("app:1").view


# What is there


def test_a_view_shows_the_upper_layer_over_the_lower(view: View) -> None:
    assert view.listdir() == ["bin", "data", "etc", "sbin"]
    assert view.listdir("/etc") == ["old"]
    assert view.read_bytes("/etc/old") == b"new"
    assert not view.exists("/etc/gone")
    assert [entry.layer for entry in view.scandir("/")] == [0, 1, 1, 0]


def test_entries_say_what_their_layers_said(view: View) -> None:
    entry = view.lookup("/sbin/sh")
    assert entry is not None
    assert (entry.path, entry.name, entry.type, entry.mode) == ("/bin/sh", "sh", "f", 0o104755)
    assert (entry.uid, entry.gid, entry.size, entry.mtime_ns, entry.nlink) == (1, 2, 7, 3_000_000_004, 2)
    assert (entry.is_file(), entry.is_dir(), entry.is_symlink(), entry.target) == (True, False, False, None)
    assert entry.digest == layerstore_blake3(b"program")
    text = view.find("data/text")
    assert (text.xattrs, text.mtime_ns, text.layer) == ({"user.a": b"1", "user.b": b"\xff"}, -500_000_000, 1)
    assert view.find("/data").xattrs == {"user.dir": b"\0"}
    null = view.find("/data/null")
    assert (null.type, null.rdev, null.size, null.digest) == ("c", (1, 3), 0, None)
    link = view.find("/data/to-\udcfe", follow_symlinks=False)
    assert (link.type, link.target, link.size, link.name) == ("l", "not-\udcff-utf8", 10, "to-\udcfe")
    assert view.find("/data/empty").digest is None
    assert [view.find(path, follow_symlinks=False).type for path in ("/", "/sbin", "/data/fifo")] == ["d", "l", "p"]
    assert repr(entry) == "<Entry f '/bin/sh'>"
    assert view.follow(link).path == "/data/not-\udcff-utf8"
    assert view.follow(view.find("/data/dangling", follow_symlinks=False)) is None


def layerstore_blake3(data: bytes) -> str:
    from blake3 import blake3

    return blake3(data).hexdigest()


def test_stat_is_that_of_the_os(view: View) -> None:
    found = view.stat("/bin/busybox")
    assert isinstance(found, os.stat_result)
    assert (found.st_mode, found.st_nlink, found.st_uid, found.st_gid, found.st_size) == (0o104755, 2, 1, 2, 7)
    assert (found.st_mtime_ns, found.st_mtime, found[stat.ST_MTIME]) == (3_000_000_004, 3.000000004, 3)
    assert os.path.samestat(found, view.stat("/bin/sh"))
    assert not os.path.samestat(found, view.stat("/data/text"))
    assert view.stat("/data/null").st_rdev == os.makedev(1, 3)
    assert view.stat("/data/text").st_mtime_ns == -500_000_000
    assert view.stat("/data/text").st_mtime == -0.5
    assert stat.S_ISLNK(view.stat("/sbin", follow_symlinks=False).st_mode)
    assert view.stat("/data/large").st_blocks == len(LARGE) // 512


def test_views_of_equal_stacks_show_the_same_inodes(opened: Store) -> None:
    image = opened.image("app:1")
    again, lower = opened.view(image.diff_ids), opened.view(image.diff_ids[:1])
    assert image.view is image.view
    assert os.path.samestat(again.stat("/bin/sh"), image.view.stat("/bin/sh"))
    assert not os.path.samestat(lower.stat("/bin/sh"), image.view.stat("/bin/sh"))
    assert lower.read_bytes("/etc/gone") == b"gone"
    assert opened.view([]).listdir("/") == []
    with pytest.raises(NotFound, match="there is no layer sha256:0"):
        opened.view([layerstore.types.DiffId("sha256:" + "0" * 64)])


WRONG: list[tuple[Callable[[View], object], type[OSError], int, str]] = [
    (lambda view: view.stat("/nope"), FileNotFoundError, errno.ENOENT, "/nope"),
    (lambda view: view.stat(""), FileNotFoundError, errno.ENOENT, ""),
    (lambda view: view.open("/data/dangling"), FileNotFoundError, errno.ENOENT, "/data/dangling"),
    (lambda view: view.stat("/etc/old/x"), NotADirectoryError, errno.ENOTDIR, "/etc/old/x"),
    (lambda view: view.listdir("etc/old"), NotADirectoryError, errno.ENOTDIR, "etc/old"),
    (lambda view: view.scandir("etc/old"), NotADirectoryError, errno.ENOTDIR, "etc/old"),
    (lambda view: next(view.walk("/etc/old")), NotADirectoryError, errno.ENOTDIR, "/etc/old"),
    (lambda view: view.open("/etc"), IsADirectoryError, errno.EISDIR, "/etc"),
    (lambda view: view.read_bytes("/etc"), IsADirectoryError, errno.EISDIR, "/etc"),
    (lambda view: view.open("/data/fifo"), OSError, errno.ENXIO, "/data/fifo"),
    (lambda view: view.resolve("/data/loop"), OSError, errno.ELOOP, "/data/loop"),
    (lambda view: view.readlink("/etc"), OSError, errno.EINVAL, "/etc"),
    (lambda view: view.open("/etc/old", "w"), OSError, errno.EROFS, "/etc/old"),
    (lambda view: view.open("/etc/new", "xb"), OSError, errno.EROFS, "/etc/new"),
    (lambda view: view.open("/etc/old", "r+"), OSError, errno.EROFS, "/etc/old"),
    (lambda view: view.stat("/" + "x" * 256), OSError, errno.ENAMETOOLONG, "/" + "x" * 256),
]


@pytest.mark.parametrize(("call", "kind", "number", "path"), WRONG)
def test_errors_are_those_of_the_os(
    view: View, call: Callable[[View], object], kind: type[OSError], number: int, path: str
) -> None:
    with pytest.raises(kind) as caught:
        call(view)
    assert (caught.value.errno, caught.value.filename) == (number, path)
    assert str(caught.value) == f"[Errno {number}] {os.strerror(number)}: {path!r}"


def test_bytes_in_are_bytes_out(view: View) -> None:
    assert b"not-\xff-utf8" in view.listdir(b"/data")
    assert view.readlink(b"/data/to-\xfe") == b"not-\xff-utf8"
    assert view.readlink("/data/to-\udcfe") == "not-\udcff-utf8"
    assert view.resolve(b"/data/to-\xfe") == b"/data/not-\xff-utf8"
    assert view.resolve("data/up/sbin/../etc") == "/etc"
    with pytest.raises(FileNotFoundError) as caught:
        view.stat(b"/nope")
    assert caught.value.filename == b"/nope"


# Walks and patterns


def test_a_walk_goes_where_the_caller_lets_it(view: View) -> None:
    seen = []
    for path, directories, _ in view.walk():
        seen.append(path)
        if path == "/":
            assert directories == ["bin", "data", "etc", "sbin"]
            directories[:] = ["etc", "sbin", "bin", "not there"]
    assert seen == ["/", "/etc", "/bin"]
    assert [path for path, _, _ in view.walk(topdown=False)] == ["/bin", "/data", "/etc", "/"]
    assert [path for path, _, _ in view.walk("etc")] == ["etc"]
    links = [path for path, _, _ in view.walk("/", follow_symlinks=True) if path.count("/") < 3]
    assert links == ["/", "/bin", "/data", "/data/up", "/etc", "/sbin"]
    for topdown in (True, False):
        walked = [(path, *names) for path, *names in view.walk("/", topdown=topdown)]
        as_bytes = [
            (os.fsencode(path), list(map(os.fsencode, directories)), list(map(os.fsencode, others)))
            for path, directories, others in walked
        ]
        assert list(view.walk(b"/", topdown=topdown)) == as_bytes
    deepest = max((path for path, _, _ in view.walk("/", follow_symlinks=True)), key=len)
    assert deepest.count("up") == 40


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("/etc/old", ["/etc/old"]),
        ("etc/*", ["/etc/old"]),
        ("/", ["/"]),
        ("/*/", ["/bin", "/data", "/etc", "/sbin"]),
        ("/*bin/sh", ["/bin/sh", "/sbin/sh"]),
        ("/data/.*", ["/data/.hidden"]),
        ("/data/[[]x]", ["/data/[x]"]),
        ("/data/new?line", ["/data/new\nline"]),
        ("/data/not-?-utf8", ["/data/not-\udcff-utf8"]),
        ("/data/d*", ["/data/dangling"]),
        ("/data/d*/", []),
        ("/data/u*/", ["/data/up"]),
        ("/**/old", ["/etc/old"]),
        ("/**/b*", ["/bin", "/bin/busybox"]),
        ("/b*/**", ["/bin", "/bin/busybox", "/bin/sh"]),
        ("/sbin/**", ["/sbin", "/sbin/busybox", "/sbin/sh"]),
        ("/nope/*", []),
        ("/etc/old/*", []),
        ("/data/../etc/*", ["/data/../etc/old"]),
        ("", []),
    ],
)
def test_patterns(view: View, pattern: str, found: list[str]) -> None:
    assert view.glob(pattern) == found


components = st.sampled_from(["*", "?", "a*", "[ab]", "[!a]", "..a", ".*", "a", "b", "**", "*.", "c*c"])
patterns = st.tuples(st.lists(components, min_size=1, max_size=4), st.sampled_from(["", "/"])).map(
    lambda drawn: "/".join(drawn[0]) + drawn[1]
)


@settings(max_examples=200, deadline=None)
@given(specs(), st.lists(st.tuples(patterns, st.booleans()), max_size=8))
def test_patterns_match_what_glob_does(spec: Spec, asked: list[tuple[str, bool]]) -> None:
    """On random trees whose links stay inside; with "**", which goes through links there, where there are none."""
    inside = {path: what for path, what in spec.items() if not what or not {b"..", b""} & set(what.split(b"/"))}
    plain = {path: what for path, what in spec.items() if not what}
    for shape, recursive in ((inside, False), (plain, True)):
        tree = tree_of(shape)
        with tempfile.TemporaryDirectory() as root:
            make_on_disk(shape, os.fsencode(root))
            for pattern, hidden in asked:
                if ("**" in pattern) == recursive:
                    found = glob.glob(f"{root}/{pattern}", recursive=True, include_hidden=hidden)
                    # It also gives "x/" for "x/**" where there is no directory x.
                    said = {path.removeprefix(root).rstrip("/") or "/" for path in found if os.path.lexists(path)}
                    assert globbing.glob(tree, pattern, hidden=hidden) == sorted(said), (pattern, hidden)


# Contents


def test_open_gives_files_as_the_builtin_does(view: View) -> None:
    with view.open("/data/text") as file:
        assert isinstance(file, io.BufferedReader)
        assert (file.name, file.mode, file.read()) == ("/data/text", "rb", TEXT)
        assert file.seek(-4, os.SEEK_END) == len(TEXT) - 4
        assert file.read(2) == b"we"
        assert not file.writable()
        with pytest.raises(io.UnsupportedOperation):
            file.fileno()
    assert file.closed
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with view.open("/data/text", "r") as text:
        assert text.read() == "Grüße\nzwei\n"
    with view.open("/data/text", "rt", newline="", encoding="latin-1") as text:
        assert text.readline() == "GrÃ¼Ã\x9fe\r\n"
    with view.open("/data/empty") as file:
        assert (file.read(), file.read(), file.tell()) == (b"", b"", 0)
    with view.open("/data/text", "rb", buffering=0) as raw:
        assert (raw.read(3), raw.tell(), raw.readall()) == (TEXT[:3], 3, TEXT[3:])
        with pytest.raises(OSError, match="Invalid argument"):
            raw.seek(-1)
        with pytest.raises(ValueError, match="whence"):
            raw.seek(0, 9)
        assert (raw.seek(100), raw.read(1)) == (100, b"")
    for large in (
        view.open("/data/large"),
        view.open("/data/large", buffering=7),
        view.open("/data/large", buffering=0),
    ):
        with large:
            large.seek(70_000)
            assert (large.name, large.read(10)) == ("/data/large", LARGE[70_000:70_010])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("q",), "invalid mode"), (("",), "invalid mode"), (("rr",), "invalid mode"), (("tb",), "invalid mode"),
        (("rbt",), "invalid mode"), (("rb", -1, "utf-8"), "binary mode"), (("r", 0), "unbuffered"),
    ],
)  # fmt: skip
def test_open_refuses_what_the_builtin_refuses(view: View, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        view.open("/data/text", *arguments)


def test_archives_in_an_image_are_read_in_place(tmp_path: Path) -> None:
    packed, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for n in range(300):
            archive.writestr(f"{n}.txt", str(n) * 1000)
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive_tar:
        member = tarfile.TarInfo("large")
        member.size = len(LARGE)
        archive_tar.addfile(member, io.BytesIO(LARGE))
    layer = write_tar([Entry("file", "a.zip", data=packed.getvalue()), Entry("file", "a.tgz", data=tarred.getvalue())])
    with Store(tmp_path / "store", create=True) as store:
        view = store.import_rootfs(io.BytesIO(layer), "archives").view
        with view.open("/a.zip") as file, zipfile.ZipFile(file) as archive:
            assert archive.testzip() is None
            assert archive.read("299.txt") == b"299" * 1000
        with view.open("/a.tgz") as file, tarfile.open(fileobj=file) as archive_tar:
            assert archive_tar.extractfile("large").read() == LARGE


def test_many_contents_at_once(view: View) -> None:
    paths = [
        "/data/large",
        "/etc/old",
        "/data/empty",
        b"/data/not-\xff-utf8",
        "/sbin/sh",
        "/etc/old",
        "/data/large-too",
    ]
    assert view.read_many(paths) == [LARGE, b"new", b"", b"x", b"program", b"new", LARGE]
    assert view.read_many(iter(paths[:2])) == [LARGE, b"new"]
    assert view.read_many([]) == []
    without_contents = View(view.index, None)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError) as caught:
        without_contents.read_many(["/etc/old", "/nope"])
    assert caught.value.filename == "/nope"
    with pytest.raises(IsADirectoryError):
        without_contents.read_many(["/etc"])
    with pytest.raises(TypeError):
        without_contents.read_many("/etc/old")


# Batches


def test_rows_say_what_entries_say(view: View) -> None:
    paths = [
        *view.glob("/**"),
        *view.glob("/**/.*"),
        "/nope",
        "/etc/old/x",
        "/data/loop",
        b"/data/not-\xff-utf8",
        "",
        "//etc/",
    ]
    for follow in (True, False):
        rows = view.lookup_many(paths, follow_symlinks=follow)
        for path, row in zip(paths, rows, strict=True):
            entry = view.lookup(path, follow_symlinks=follow)
            assert row["found"] == (entry is not None)
            if entry is None:
                assert row.tolist() == (False, b"", 0, 0, 0, 0, 0, -1, -1, (NO_CONTENT, 0))
                continue
            assert row["type"].decode() == entry.type
            for name in ("mode", "uid", "gid", "size", "mtime_ns", "layer", "record"):
                assert row[name] == getattr(entry, name), (path, name)
            assert (row["location"]["pack"] == NO_CONTENT) == (entry.digest is None)
    kinds = {path: row["location"] for path, row in zip(paths, rows, strict=True)}
    assert kinds["/data/large"] == kinds["/data/large-too"]
    assert kinds["/data/large"]["pack"] == IN_OBJECT
    assert kinds["/etc/old"]["pack"] == 0


def test_rows_are_an_ordinary_array(view: View) -> None:
    rows = view.lookup_many(f"/data/{name}" for name in view.listdir("/data"))
    assert rows.dtype.names == (
        *("found", "type", "mode", "uid", "gid", "size", "mtime_ns", "layer", "record", "location"),
    )
    assert rows[rows["type"] == b"f"]["size"].sum() == 2 * len(LARGE) + len(TEXT) + 5
    assert view.lookup_many([]).shape == (0,)
    assert isinstance(rows, np.ndarray)
    with pytest.raises(TypeError, match="many paths"):
        view.lookup_many("/data")
    with pytest.raises(TypeError):
        view.lookup_many(["/data", None])  # type: ignore[list-item]


def test_times_beyond_64_bits_of_nanoseconds_are_the_nearest(tmp_path: Path) -> None:
    times = {"old": -(2**40), "new": 2**40, "far": 2**33}
    layer = write_tar([Entry("file", name, mtime=(seconds, 0)) for name, seconds in times.items()])
    with Store(tmp_path / "store", create=True) as store:
        view = store.import_rootfs(io.BytesIO(layer), "times").view
        rows = view.lookup_many(times)
        assert rows["mtime_ns"].tolist() == [-(2**63), 2**63 - 1, 2**33 * 10**9]
        assert [view.find(name).mtime_ns for name in times] == [seconds * 10**9 for seconds in times.values()]


def test_locations_follow_garbage_collection(tmp_path: Path) -> None:
    first = Image([write_tar([Entry("file", "a", data=b"first")])], ["first:1"])
    second = Image([write_tar([Entry("file", "b", data=b"second")])], ["second:1"])
    with Store(tmp_path / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([first]))))
        store.load(io.BytesIO(tar_of(docker_files([second]))))
        gone, kept = store.image("first:1"), store.image("second:1")
        held = gone.view
        assert held.lookup_many(["/a"])["location"].tolist() == [(0, 0)]
        assert kept.view.lookup_many(["/b"])["location"].tolist() == [(1, 0)]
        store.remove_image("first:1")
        store.collect_garbage()
        assert kept.view.lookup_many(["/b"])["location"].tolist() == [(1, 0)]
        assert held.exists("/a")
        # What the index says is known without contents.
        (row,) = held.lookup_many(["/a"])
        assert (row["found"], row["size"], row["location"]["pack"]) == (True, 5, NO_CONTENT)
        for read in (held.read_bytes, held.open, lambda path: held.read_many([path])):
            with pytest.raises(CorruptError, match=r"is missing from the store; .* load the image again"):
                read("/a")
        gone.let_go()
        with pytest.raises(NotFound, match="was removed"):
            _ = gone.view


@pytest.mark.parametrize("how", READS)
def test_a_content_is_looked_up_again_where_something_was_collected_before_it_was_read(store: Store, how: str) -> None:
    """One that is moved then is in tests/test_packs.py, one that is collected in tests/test_garbage.py."""
    for name in ("kept", "gone"):
        store.import_rootfs(io.BytesIO(write_tar([Entry("file", name, data=name.encode())])), name)
    index = store.image("kept").index()

    def collect() -> None:
        with Store(store.root) as other:
            other.remove_image("gone")
            assert other.collect_garbage().contents == 1

    layout = Meanwhile(store.layout, "pack", collect)
    with content_store(layout) as contents:
        assert READS[how](View(index, contents), "/kept") == b"kept"
    assert layout.asked == 2
    os.unlink(layout.pack(0))
    missing = pytest.raises(CorruptError, match=r"packs/0.pack is missing from the store")
    with content_store(store.layout) as contents, missing:
        READS[how](View(index, contents), "/kept")


# Damage

CHAIN = (Path(__file__).parent / "data" / "index-chain-v1.bin").read_bytes()
HEADER_BYTES = 128


def exercise(damaged: bytes, whole: Index) -> None:
    """Ask an index for everything that a view of it could be asked for; an error of the system is an answer, too."""
    index = Index(damaged)
    tree = Tree(index)
    everywhere = [f"/{path}" for path in ("", "*", "**", "*/*", "*/.*", "a/b/..", "bin/sh")]
    entries: list[Found] = []

    def listed(directory: Found) -> None:
        entries.extend(tree.children(directory))
        tree.names(directory)

    calls: list[Callable[[], Any]] = [lambda: entries.append(tree.find("/"))]
    calls += [lambda path=path: entries.append(tree.find(path)) for path in everywhere]
    calls += [lambda pattern=pattern: globbing.glob(tree, pattern, hidden=False) for pattern in everywhere]
    calls += [lambda: compare(index, whole), lambda: compare(whole, index), lambda: compare(index, index)]
    locations, rows = bytes(8 * index.content_count), bytearray(ROW_BYTES * len(everywhere))
    calls += [lambda: tree.fill_rows(everywhere, True, locations, rows)]
    for call in calls:
        with contextlib.suppress(CorruptError, OSError):
            call()
    for entry in entries:
        for name in ENTRY_NAMES:
            with contextlib.suppress(CorruptError):
                value = getattr(entry, name)
                value() if callable(value) else None
        for step in (tree.follow, listed):
            with contextlib.suppress(CorruptError):
                step(entry)


ENTRY_NAMES = [name for name in dir(Found) if not name.startswith("_")] + ["__repr__"]


def test_damage_is_an_error_or_an_answer() -> None:
    """As of a view that was damaged after it was opened: what is opened is compared with its digest."""
    rnd, whole = random.Random(3), Index(CHAIN)
    for _ in range(2000):
        damaged = bytearray(CHAIN)
        for _ in range(rnd.randint(1, 5)):
            damaged[rnd.randrange(HEADER_BYTES, len(damaged))] = rnd.choice((0, 1, 3, 255, rnd.randrange(256)))
        exercise(bytes(damaged), whole)


# Threads


def test_many_threads_look_into_one_view(view: View) -> None:
    paths = [path for path in view.glob("/**") if view.find(path, follow_symlinks=False).is_file()]
    expected = [view.read_bytes(path) for path in paths], view.lookup_many(paths).tobytes()
    failed: list[object] = []

    def look() -> None:
        for _ in range(50):
            if (view.read_many(paths), view.lookup_many(paths).tobytes()) != expected:
                failed.append(1)
            if [view.open(path).read() for path in paths] != expected[0]:
                failed.append(2)

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# Without privileges


def test_nobody_needs_to_be_root() -> None:
    """As another user, with nothing mounted before or after."""
    code = """
import hashlib, io, os, sys
import numpy
from layerstore import Store, api
from layerstore.layers import loading
from layerstore.views import image_paths, view
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
def mounts():
    return [line for line in open("/proc/self/mountinfo") if sys.argv[1] in line]
assert mounts() == []
with Store(sys.argv[1] + "/store", create=True) as store:
    image = store.import_rootfs(io.BytesIO(sys.stdin.buffer.read()), "small")
    assert image.view.read_many(["/bin/sh", "/bin/busybox"]) == [b"program"] * 2
    assert image.view.lookup_many(["/bin/sh", "/x"])["found"].tolist() == [True, False]
    assert (image.path / "sbin" / "sh").read_text() == "program"
    assert [path for path, _, _ in image.view.walk()] == ["/", "/bin", "/etc"]
    assert mounts() == []
assert mounts() == []
print(os.geteuid())
"""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        command = [sys.executable, "-c", code, directory]
        done = subprocess.run(command, input=write_tar(LOWER), capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        assert int(done.stdout) != 0


# A real image


JUDGE = """
import glob, os, pathlib, pickle, sys
patterns, path_patterns = pickle.load(sys.stdin.buffer)
def tried(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return error.errno
def facts(path):
    s = os.lstat(path)
    size = 0 if os.path.isdir(path) and not os.path.islink(path) else s.st_size
    links = 1 if os.path.isdir(path) and not os.path.islink(path) else s.st_nlink
    return s.st_mode, s.st_uid, s.st_gid, size, s.st_mtime_ns, links, s.st_rdev
walk = [(top, sorted(dirs, key=os.fsencode), sorted(files, key=os.fsencode)) for top, dirs, files in os.walk("/")]
paths = [os.path.join(top, name) for top, dirs, files in walk for name in dirs + files]
pickle.dump({
    "walk": sorted(walk),
    "facts": {path: facts(path) for path in paths},
    "resolved": {path: tried(lambda: os.path.realpath(path, strict=True)) for path in paths},
    "links": {path: os.readlink(path) for path in paths if os.path.islink(path)},
    "globs": {pattern: sorted(glob.glob(pattern, recursive=True)) for pattern in patterns},
    "path globs": {
        (top, pattern): sorted(set(map(str, pathlib.Path(top).glob(pattern)))) for top, pattern in path_patterns
    },
}, sys.stdout.buffer)
"""
PATTERNS = [
    *("/etc/*", "/*", "/*/passwd", "/usr/lib/*/lib*.so*", "/etc/[a-c]*/*", "/usr/bin/*.??", "/etc/.*", "/lib/*.d"),
    *("/etc/**/*.conf", "/usr/share/doc/**/copyright", "/var/**/", "/etc/skel/*", "/usr/lib/python3*/json/*.py"),
]
PATH_PATTERNS = [
    *(("/etc", "*"), ("/etc", "**/*.conf"), ("/usr/share/doc", "*/copyright"), ("/lib", "python3*/json/*.py")),
    *(("/etc", ".*"), ("/etc", "skel/*"), ("/usr", "*/python3*"), ("/var", "**/dpkg*")),
]


class Judged:
    """A real image in a store, the same tree on disk, and what its own Python says of it in a chroot."""

    def __init__(self, store: Store, tar: Path, place: Path) -> None:
        self.image = store.import_rootfs(tar, "debian")
        self.tree = place / "tree"
        self.tree.mkdir()
        subprocess.run(["tar", "-xpf", tar, "-C", self.tree, "--numeric-owner", "--xattrs"], check=True)
        command = ["chroot", self.tree, "/usr/bin/python3", "-I", "-B", "-X", "utf8", "-c", JUDGE]
        asked = pickle.dumps((PATTERNS, PATH_PATTERNS))
        self.said = pickle.loads(subprocess.run(command, input=asked, capture_output=True, check=True).stdout)


def memory_directory() -> str | None:
    """Where programs may run and a GB fits, or None: on some disks removing a tree takes longer than all else."""
    try:
        status = os.statvfs("/dev/shm")
    except OSError:
        return None
    return "/dev/shm" if not status.f_flag & os.ST_NOEXEC and status.f_bavail * status.f_frsize > 2**30 else None


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory, debian_tar: Path) -> Iterator[Judged]:
    if os.geteuid() != 0:
        pytest.skip("unpacking devices and chroot need root")
    with (
        tempfile.TemporaryDirectory(dir=memory_directory()) as place,
        Store(tmp_path_factory.mktemp("judged") / "store", create=True) as store,
    ):
        yield Judged(store, debian_tar, Path(place))


@pytest.mark.root
class TestDebian:
    def test_walk(self, judged: Judged) -> None:
        view = judged.image.view
        assert sorted(view.walk()) == judged.said["walk"]
        assert sorted(view.walk(topdown=False)) == judged.said["walk"]
        assert all(
            view.listdir(top) == sorted(dirs + files, key=os.fsencode) for top, dirs, files in judged.said["walk"]
        )

    def test_stat(self, judged: Judged) -> None:
        view, said = judged.image.view, judged.said["facts"]
        for path, facts in said.items():
            s = view.stat(path, follow_symlinks=False)
            found = s.st_mode, s.st_uid, s.st_gid, s.st_size, s.st_mtime_ns, s.st_nlink, s.st_rdev
            assert found == facts, path
        rows = view.lookup_many(said, follow_symlinks=False)
        assert rows["found"].all()
        for column, name in enumerate(("mode", "uid", "gid", "size", "mtime_ns")):
            assert rows[name].tolist() == [facts[column] for facts in said.values()]

    def test_links(self, judged: Judged) -> None:
        view, said = judged.image.view, judged.said
        assert {path: view.readlink(path) for path in said["links"]} == said["links"]
        for path, resolved in said["resolved"].items():
            try:
                found: str | int = view.resolve(path)
            except OSError as error:
                found = int(error.errno)
            assert found == resolved, path

    @pytest.mark.parametrize("pattern", PATTERNS)
    def test_glob(self, judged: Judged, pattern: str) -> None:
        links = judged.said["links"]

        def through_a_link(path: str) -> bool:
            parts = path.split("/")
            return "**" in pattern and any("/".join(parts[:n]) in links for n in range(1, len(parts)))

        said = {path.rstrip("/") or "/" for path in judged.said["globs"][pattern] if not through_a_link(path)}
        assert judged.image.view.glob(pattern) == sorted(said)

    @pytest.mark.parametrize(("top", "pattern"), PATH_PATTERNS)
    def test_glob_of_a_path(self, judged: Judged, top: str, pattern: str) -> None:
        found = [str(path) for path in (judged.image.path / top).glob(pattern)]
        assert found == judged.said["path globs"][top, pattern]

    def test_contents(self, judged: Judged) -> None:
        paths = [path for path, facts in judged.said["facts"].items() if stat.S_ISREG(facts[0])]
        for path, content in zip(paths, judged.image.view.read_many(paths), strict=True):
            assert content == (judged.tree / path[1:]).read_bytes(), path
