"""What a container of the extent driver changed: as entries, by `diff`, at a moment; any operations are in
test_extent_model.py."""

import io
import os
import random
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry as TarEntry
from layer_model import write_tar
from pools import needs_mkfs, needs_root, pool_store
from test_extent_containers import in_another_process

from layerstore import Container, Store
from layerstore.errors import NotFound
from layerstore.extents.delta import entries
from layerstore.store import durable
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.trees.entries import Entry

LARGE = random.Random(3).randbytes(3 << 20)
SMALL = b"small" * 1000
assert len(LARGE) > PACK_THRESHOLD_BYTES > len(SMALL)
DEEP = "/".join(["d"] * 900)
IMAGE = Image(
    [
        write_tar(
            [
                TarEntry("dir", ".", mode=0o755, mtime=(5, 0)),
                TarEntry("dir", "etc", mode=0o755, mtime=(6, 0)),
                TarEntry("file", "etc/hosts", data=SMALL, mtime=(7, 0), xattrs={"user.x": b"1"}),
                TarEntry("file", "etc/passwd", data=b"root", mtime=(8, 0)),
                TarEntry("dir", "usr", mode=0o755, mtime=(9, 0)),
                TarEntry("dir", "usr/bin", mode=0o755, mtime=(10, 0)),
                TarEntry("file", "usr/bin/perl", data=LARGE, mode=0o755, mtime=(11, 0)),
                TarEntry("hardlink", "usr/bin/perl5", link="usr/bin/perl"),
                TarEntry("hardlink", "zz", link="usr/bin/perl"),
                TarEntry("symlink", "usr/bin/sh", link="dash", mtime=(12, 0)),
                TarEntry("file", "empty", mtime=(13, 0)),
                TarEntry("char", "null", device=(1, 3), mtime=(14, 0)),
                TarEntry("dir", DEEP, mode=0o755, mtime=(15, 0)),
            ]
        )
    ],
    ["base:1"],
)


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("delta") / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        yield store


@pytest.fixture
def container(module_store: Store) -> Iterator[Container]:
    made = module_store.create("base:1", driver="extent")
    yield made
    made.remove()


def entries_of(container: Container) -> dict[bytes, Entry]:
    return {entry.path: entry for entry in entries(container._layer().moment())}


def content_of(entry: Entry) -> bytes:
    assert entry.source is not None
    return b"".join(map(bytes, entry.source.pieces()))


def changes_of(container: Container) -> list[str]:
    return [f"{change.kind} {change.path}" for change in container.diff()]


def keep_times(container: Container, *paths: str) -> None:
    """As if what is in these directories had not been touched."""
    view = container.image.view
    for path in paths:
        container.utime(path, ns=(0, view.find(path).mtime_ns))


class TestEntries:
    def test_of_nothing(self, container: Container) -> None:
        assert entries_of(container) == {}
        assert changes_of(container) == []

    def test_what_is_as_it_was_is_none(self, container: Container) -> None:
        container.chmod("/etc/hosts", 0o600)
        container.setxattr("/etc/hosts", "user.y", b"2")
        container.rename("/etc/passwd", "/etc/other")
        container.rename("/usr", "/moved")
        container.write_bytes("/etc/new", b"new")
        container.link("/zz", "/etc/zz")
        assert len(entries_of(container)) > 5
        container.chmod("/etc/hosts", 0o644)
        container.removexattr("/etc/hosts", "user.y")
        container.rename("/etc/other", "/etc/passwd")
        container.rename("/moved", "/usr")
        container.unlink("/etc/new")
        container.unlink("/etc/zz")
        keep_times(container, "/etc", "/")
        assert entries_of(container) == {}
        assert changes_of(container) == []

    def test_a_file_that_was_only_written_to_as_much_as_nothing(self, container: Container) -> None:
        """A truncation to the size that it has changes its time and no byte."""
        container.truncate("/etc/hosts", len(SMALL))
        keep_times(container, "/etc/hosts")
        assert entries_of(container) == {}

    def test_the_root_is_one_where_its_own_attributes_changed(self, container: Container) -> None:
        container.write_bytes("/etc/new", b"new")
        assert list(entries_of(container)) == [b"etc", b"etc/new"]
        container.chmod("/", 0o700)
        found = entries_of(container)
        assert list(found) == [b"", b"etc", b"etc/new"]
        assert found[b""].mode == stat.S_IFDIR | 0o700
        assert changes_of(container) == ["C /etc", "A /etc/new"]

    def test_attributes_alone_leave_the_content_the_images(self, container: Container) -> None:
        container.chmod("/etc/hosts", 0o4711)
        container.utime("/etc/hosts", ns=(0, 77))
        container.setxattr("/etc/hosts", "user.y", b"2")
        entry = entries_of(container)[b"etc/hosts"]
        assert (entry.mode, entry.mtime_ns, entry.size) == (stat.S_IFREG | 0o4711, 77, len(SMALL))
        assert entry.xattrs == {b"user.x": b"1", b"user.y": b"2"}
        assert container.image.index().record(entry.lower or 0).path == b"etc/hosts"
        assert content_of(entry) == SMALL

    def test_attributes_that_are_no_containers(self, container: Container) -> None:
        for name in ("trusted.overlay.opaque", "security.selinux", "security.ima", "security.evm"):
            container.setxattr("/etc/hosts", name, b"y")
        assert entries_of(container) == {}
        container.setxattr("/etc/hosts", "trusted.other", b"y")
        assert entries_of(container)[b"etc/hosts"].xattrs == {b"user.x": b"1", b"trusted.other": b"y"}

    def test_a_change_shows_at_all_names_of_a_file(self, container: Container) -> None:
        container.unlink("/usr/bin/perl5")
        with container.open("/zz", "r+b", 0) as file:
            file.write(b"new")
        found = entries_of(container)
        assert list(found) == [b"usr", b"usr/bin", b"usr/bin/perl", b"usr/bin/perl5", b"zz"]
        assert found[b"usr/bin/perl5"].is_whiteout()
        assert (found[b"zz"].link, found[b"zz"].size, found[b"zz"].lower) == (b"usr/bin/perl", len(LARGE), None)
        assert content_of(found[b"usr/bin/perl"]) == content_of(found[b"zz"]) == b"new" + LARGE[3:]
        assert changes_of(container) == ["C /usr", "C /usr/bin", "C /usr/bin/perl", "D /usr/bin/perl5", "C /zz"]

    def test_a_new_name_has_all_names_be_entries(self, container: Container) -> None:
        container.link("/etc/hosts", "/again")
        found = entries_of(container)
        assert list(found) == [b"", b"again", b"etc", b"etc/hosts"]
        assert (found[b"again"].link, found[b"etc/hosts"].link) == (None, b"again")
        assert found[b"again"].lower == found[b"etc/hosts"].lower is not None
        assert changes_of(container) == ["A /again", "C /etc", "C /etc/hosts"]

    def test_a_name_less_changes_nothing_of_the_others(self, container: Container) -> None:
        container.unlink("/zz")
        assert [(path, entry.is_whiteout()) for path, entry in entries_of(container).items()] == [
            (b"", False),
            (b"zz", True),
        ]

    def test_a_renamed_directory_is_told_whole(self, container: Container) -> None:
        container.rename("/usr", "/opt")
        found = entries_of(container)
        expected = [b"", b"opt", b"opt/bin", b"opt/bin/perl", b"opt/bin/perl5", b"opt/bin/sh", b"usr", b"zz"]
        assert list(found) == expected
        assert (found[b"opt/bin/perl5"].link, found[b"zz"].link) == (b"opt/bin/perl", b"opt/bin/perl")
        assert container.image.index().record(found[b"opt/bin/perl"].lower or 0).path == b"zz"
        assert found[b"opt/bin/sh"].target == b"dash"
        assert found[b"usr"].is_whiteout()
        assert not found[b"opt"].opaque
        kinds = [change.kind for change in container.diff()]
        assert kinds == ["A"] * 5 + ["D", "C"]

    def test_one_in_the_place_of_another(self, container: Container) -> None:
        container.rename("/usr", "/aside")
        container.rename("/etc", "/usr")
        container.mkdir("/etc")
        container.mkdir("/etc/hosts")
        found = entries_of(container)
        assert (found[b"usr"].opaque, found[b"etc"].opaque, found[b"etc/hosts"].opaque) == (True, True, False)
        assert b"usr/bin" not in found
        expected = ["A /aside", "A /aside/bin", "A /aside/bin/perl", "A /aside/bin/perl5", "A /aside/bin/sh"]
        expected += ["C /etc", "C /etc/hosts", "D /etc/passwd", "C /usr", "D /usr/bin", "A /usr/hosts", "A /usr/passwd"]
        assert changes_of(container) == [*expected, "C /zz"]

    def test_files_and_directories_change_places(self, container: Container) -> None:
        container.rmtree("/usr")
        container.write_bytes("/usr", b"a file")
        container.unlink("/empty")
        container.mkdir("/empty")
        container.write_bytes("/empty/in", b"in")
        found = entries_of(container)
        assert list(found) == [b"", b"empty", b"empty/in", b"usr"]
        assert not found[b"empty"].opaque
        assert content_of(found[b"usr"]) == b"a file"
        assert changes_of(container) == ["C /empty", "A /empty/in", "C /usr"]

    def test_a_socket_counts_as_nothing(self, container: Container) -> None:
        container.mknod("/etc/socket", stat.S_IFSOCK | 0o644)
        container.unlink("/etc/hosts")
        container.mknod("/etc/hosts", stat.S_IFSOCK | 0o644)
        keep_times(container, "/etc")
        found = entries_of(container)
        assert list(found) == [b"etc", b"etc/hosts"]
        assert found[b"etc/hosts"].is_whiteout()
        assert changes_of(container) == ["C /etc", "C /etc/hosts", "A /etc/socket"]
        container.unlink("/etc/hosts")
        container.write_bytes("/etc/hosts", SMALL)
        container.mkdir("/new")
        container.mknod("/new/socket", stat.S_IFSOCK | 0o644)
        assert list(entries_of(container)) == [b"", b"etc", b"etc/hosts", b"new"]

    def test_devices_and_fifos(self, container: Container) -> None:
        container.mknod("/full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
        container.mknod("/fifo", stat.S_IFIFO | 0o600)
        container.chmod("/null", 0o600)
        found = entries_of(container)
        assert (found[b"full"].rdev, found[b"null"].rdev) == (os.makedev(1, 7), os.makedev(1, 3))
        assert stat.S_ISFIFO(found[b"fifo"].mode)

    def test_names_of_bytes_and_their_order(self, container: Container) -> None:
        for name in (b"a-", b"a", b"a/\xff", b"a/b", b"a0", b"\xfe"):
            if name == b"a":
                container.mkdir(b"/" + name)
            else:
                container.write_bytes(b"/" + name, b"")
        assert list(entries_of(container)) == [b"", b"a", b"a/b", b"a/\xff", b"a-", b"a0", b"\xfe"]
        assert [change.path for change in container.diff()] == ["/a", "/a-", "/a/b", "/a/\udcff", "/a0", "/\udcfe"]

    def test_directories_as_deep_as_no_path_is_long(self, container: Container) -> None:
        container.rename("/d", "/up")
        container.mkdir("/d")
        container.rename("/up", "/d/d")
        top = "/" + "/".join(["e" * 200] * 15)
        container.makedirs(top)
        container.rename("/d", top + "/d")
        found = entries_of(container)
        deepest = max(found, key=len)
        assert deepest.count(b"/") == 915
        container.rename(top, "/f")
        container.rename("/f/d", "/d")
        container.chmod("/d/d/" + DEEP[2:], 0o700)
        assert len(entries_of(container)) > 900
        assert len(container.diff()) > 900


class TestSources:
    def test_pieces_are_as_large_as_a_mebibyte(self, container: Container) -> None:
        container.write_bytes("/new", LARGE[: (2 << 20) + 5])
        source = entries_of(container)[b"new"].source
        assert source is not None
        assert [len(piece) for piece in source.pieces()] == [1 << 20, 1 << 20, 5]
        container.chmod("/zz", 0o600)
        source = entries_of(container)[b"zz"].source
        assert source is not None
        assert [len(piece) for piece in source.pieces()] == [1 << 20] * 3

    @pytest.mark.parametrize("path", ["/etc/hosts", "/zz"])
    def test_what_is_the_images_and_what_is_not(self, container: Container, path: str) -> None:
        data = bytearray(container.read_bytes(path))
        with container.open(path, "r+b", 0) as file:
            file.seek(1000)
            file.write(b"x" * 100)
            file.truncate(len(data) - 7)
            file.truncate(len(data) + 100)
            file.punch(2000, 500)
        data[1000:1100] = b"x" * 100
        data[-7:] = bytes(107)
        data[2000:2500] = bytes(500)
        entry = entries_of(container)[os.fsencode(path[1:] if path != "/zz" else "usr/bin/perl")]
        assert entry.lower is None
        assert content_of(entry) == data

    def test_an_empty_one_has_none(self, container: Container) -> None:
        container.chmod("/empty", 0o600)
        container.write_bytes("/new", b"")
        container.truncate("/etc/passwd", 0)
        found = entries_of(container)
        for path in (b"empty", b"new", b"etc/passwd"):
            assert (found[path].size, found[path].source, found[path].lower) == (0, None, None)


def write_to_it(container: Container) -> None:
    with container.open("/zz", "r+b", 0) as file:
        file.seek(5000)
        file.write(b"y" * 5000)
        file.seek(len(LARGE) - 3)
        file.write(b"end and more")
        file.punch(100_000, 9_000)
        file.truncate(len(LARGE) + 100)
    container.sync()


def free_bytes(store: Store) -> int:
    with durable.file_system(store.layout.root) as sync:
        sync()
    status = os.statvfs(store.layout.root)
    return status.f_bfree * status.f_frsize


@pytest.mark.root
@needs_root
@needs_mkfs
def test_clones_share_what_is_the_images(tmp_path: Path) -> None:
    with pool_store(tmp_path) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        container = store.create("base:1", driver="extent")
        container.chmod("/zz", 0o600)
        container.chmod("/etc/hosts", 0o600)
        container.write_bytes("/new", LARGE)
        target = Path(store.layout.root) / "clone"

        def cloned(path: bytes) -> bool:
            source = entries_of(container)[path].source
            assert source is not None
            target.unlink(missing_ok=True)
            with target.open("x+b", buffering=0) as file:
                done = source.clone_to(file.fileno())
                os.fsync(file.fileno())
            assert target.read_bytes() == (content_of(entries_of(container)[path]) if done else b"")
            return done

        assert cloned(b"usr/bin/perl")
        assert not cloned(b"etc/hosts")  # in a pack
        assert not cloned(b"new")
        write_to_it(container)
        target.unlink()
        free = free_bytes(store)
        assert cloned(b"usr/bin/perl")
        assert free - free_bytes(store) < 1 << 20
        container.truncate("/zz", 70_000)
        assert cloned(b"usr/bin/perl")
        container.write_bytes("/zz", LARGE)  # nothing of it is the image's any more
        assert not cloned(b"usr/bin/perl")


@needs_root
def test_without_reflink_nothing_is_cloned(container: Container, tmp_path: Path) -> None:
    container.chmod("/zz", 0o600)
    source = entries_of(container)[b"usr/bin/perl"].source
    assert source is not None
    with (tmp_path / "clone").open("x+b", buffering=0) as file:
        if source.clone_to(file.fileno()):
            pytest.skip("has reflink already")
        assert os.fstat(file.fileno()).st_size == 0


class TestMoment:
    def test_it_stays_what_it_is(self, container: Container) -> None:
        container.write_bytes("/new", b"before")
        container.rename("/etc", "/conf")
        moment = container._layer().moment()
        container.write_bytes("/new", b"after")
        container.unlink("/conf/hosts")
        container.rmtree("/usr")
        with container.open("/new", "ab") as file:
            file.write(b" and more")
        found = {entry.path: entry for entry in entries(moment)}
        assert content_of(found[b"new"]) == b"before"
        assert content_of(found[b"conf/hosts"]) == SMALL
        assert b"usr" not in found

    def test_it_is_what_was_written_before_whoever_reads_then(self, container: Container) -> None:
        """What is gathered in memory is in it, in files that stay open."""
        with container.open("/new", "wb", 0) as file:
            for count in range(1, 50):
                file.write(b"%04d" % count)
                (entry,) = (e for e in entries(container._layer().moment()) if e.path == b"new")
                assert content_of(entry).endswith(b"%04d" % count)
                assert entry.size == 4 * count

    def test_it_outlives_rollbacks_and_the_container(self, module_store: Store) -> None:
        container = module_store.create("base:1", driver="extent")
        container.snapshot("clean")
        container.write_bytes("/new", LARGE)
        moment = container._layer().moment()
        container.rollback("clean")
        assert changes_of(container) == []
        container.remove()
        module_store.collect_garbage()
        (found,) = (entry for entry in entries(moment) if entry.path == b"new")
        assert content_of(found) == LARGE
        with pytest.raises(NotFound):
            container.diff()

    def test_of_what_another_process_has_handed_over(self, module_store: Store, container: Container) -> None:
        code = f"container = store.container({container.id!r})\ncontainer.write_bytes('/new', b'1')\n"
        code += f"store.container({container.id!r}).write_bytes('/etc/new', b'2')\n"
        assert in_another_process(module_store, code + "os._exit(0)").stderr == ""
        assert changes_of(container) == ["C /etc", "A /etc/new", "A /new"]
        looking = f"print(*(c.path for c in store.container({container.id!r}).diff()))"
        container.write_bytes("/third", b"3")
        assert in_another_process(module_store, looking).stdout == "/etc /etc/new /new /third\n"

    def test_while_others_write(self, container: Container) -> None:
        """Of two files that are written one after the other the second is never newer; each is of one moment."""
        stop = threading.Event()
        failed: list[BaseException] = []

        def write() -> None:
            count = 0
            try:
                while not stop.is_set():
                    count += 1
                    data = b"%08d" % count
                    for path in ("/first", "/second"):
                        container.write_bytes(path + ".tmp", data * 1000)
                        container.rename(path + ".tmp", path)
                    container.chmod("/zz", 0o600 + count % 8)
                    with container.open("/usr/bin/perl", "r+b", 0) as file:
                        file.seek(8 * (count % 1000))
                        file.write(data)
            except BaseException as error:
                failed.append(error)

        def version(found: dict[bytes, Entry], path: bytes) -> int:
            data = content_of(found[path])
            assert data == data[:8] * 1000
            return int(data[:8])

        writers = [threading.Thread(target=write)]
        for writer in writers:
            writer.start()
        try:
            while not {b"second", b"zz"} <= entries_of(container).keys():
                assert not failed
            for _ in range(100):
                found = entries_of(container)
                assert version(found, b"first") - version(found, b"second") in (0, 1)
                assert found[b"zz"].link == b"usr/bin/perl"
                container.diff()
        finally:
            stop.set()
            for writer in writers:
                writer.join()
        assert not failed
