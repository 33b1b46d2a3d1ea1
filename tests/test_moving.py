"""Moving containers between the drivers: nothing is lost on the way, and at any moment they are one or the other."""

import io
import os
import random
import signal
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked import Forked
from host_tree import dump
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling
from pools import POOL_AND_HOST, needs_root, store_on, upper_of
from test_containers import BOX, runs
from test_extent_containers import in_another_process
from test_locks import shorter
from waiting import wait_for

from layerstore import Container, Store
from layerstore._core import log as kinds
from layerstore._core.log import Record
from layerstore.containers import moving, snapshots
from layerstore.containers.containers import Containers
from layerstore.errors import Conflict, InvalidInput, NotFound, Unsupported
from layerstore.extents import recording
from layerstore.store import durable
from layerstore.store.reflink import has_reflink

ROOT = Path(__file__).parent.parent
NOBODY = 65534
LARGE = random.Random(5).randbytes(3 << 20)
pytestmark = [needs_root, pytest.mark.root, pytest.mark.kernel]

BASE = Image(
    [
        write_tar(
            [
                Entry("dir", ".", mode=0o755, mtime=(5, 0)),
                Entry("dir", "etc", mode=0o755, mtime=(6, 7)),
                Entry("file", "etc/hosts", data=b"localhost" * 99, mtime=(7, 8), xattrs={"user.x": b"1"}),
                Entry("dir", "usr", mode=0o755, mtime=(9, 0)),
                Entry("dir", "usr/bin", mode=0o2755, gid=4, mtime=(10, 0)),
                Entry("file", "usr/bin/perl", data=LARGE, mode=0o4755, mtime=(11, 0)),
                Entry("hardlink", "usr/bin/perl5", link="usr/bin/perl"),
                Entry("file", "large", data=LARGE[::-1], mtime=(12, 0)),
                Entry("symlink", "usr/bin/sh", link="dash", mtime=(13, 0)),
                Entry("file", "empty", mtime=(14, 0)),
                Entry("dir", "gone", mode=0o755),
                Entry("file", "gone/in", data=b"in" * 500),
                Entry("dir", "opaque", mode=0o755),
                Entry("file", "opaque/old", data=b"old" * 500),
                Entry("char", "null", device=(1, 3), mtime=(15, 0)),
            ]
        )
    ],
    ["base:1"],
)
LONG = "/".join(["l" * 250] * 16) + "/" + "f" * 60
DEEP = Image([write_tar([Entry("file", LONG, data=b"long" * 500, mtime=(16, 0))])], ["long:1"])


@pytest.fixture(scope="module", params=POOL_AND_HOST)
def module_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store_on(request.param, tmp_path_factory.mktemp("moving")) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BASE, BOX, DEEP]))))
        yield opened


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    module_store.remove(module_store.containers(), force=True)
    assert os.listdir(module_store.layout.containers) == []
    module_store.collect_garbage()  # what rollbacks and snapshots have left
    assert os.listdir(module_store.layout.logs) == []


@pytest.fixture
def container(store: Store) -> Container:
    return store.create("base:1", driver="extent", name="box")


def change(container: Container) -> None:
    """Have everything that entries tell of."""
    container.chmod("/usr/bin/perl", 0o4711)
    container.chown("/etc/hosts", 3, 4)
    container.rename("/etc/hosts", "/usr/hosts")
    container.rename("/usr", "/opt")
    container.mkdir("/usr")
    container.write_bytes("/usr/own", b"own" * 1000)
    container.utime("/usr/own", ns=(0, 1_234_567_890_123_456_789))
    container.link("/usr/own", "/again")
    with container.open("/large", "r+b") as file:
        file.seek(1_000_000)
        file.write(b"x" * 10_000)
        file.seek(5 << 20)
        file.write(b"after a hole")
    container.rmtree("/gone")
    container.rmtree("/opaque")
    container.mkdir("/opaque", 0o700)
    container.write_bytes("/opaque/young", b"young")
    container.symlink("nowhere", "/link")
    container.mknod("/fifo", stat.S_IFIFO | 0o600)
    container.mknod("/full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
    container.chmod("/null", 0o600)
    container.chmod("/empty", 0o600)
    container.setxattr("/opaque/young", "user.note", b"kept" * 20)
    container.setxattr("/opaque/young", "security.capability", struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0))
    container.setxattr("/opaque", "trusted.note", b"\0\xff")
    container.removexattr("/opt/hosts", "user.x")
    container.chmod("/", 0o711)
    container.utime("/opt", ns=(0, 77))


def told(files: Any, read: Callable[[str], bytes], top: str = ".") -> dict[str, Any]:
    """All that is the same in a container and in its mounted view: to overlayfs a file of the image has as many names
    as in the image."""
    found = {}
    for path, (facts, *rest) in dump(files, read, top).items():
        found[path.removeprefix(top)] = (facts[:3], facts[4:], *rest[:-1])
    return found


def inside(container: Container) -> dict[str, Any]:
    return told(container, container.read_bytes)


def outside(container: Container) -> dict[str, Any]:
    with container.mount() as view:
        return told(os, lambda path: Path(path).read_bytes(), str(view))


def links(listing: Any, top: str) -> set[frozenset[str]]:
    """The names that are one file."""
    names: dict[int, set[str]] = {}
    for directory, _, files in listing.walk(top):
        for name in files:
            path = f"{directory}/{name}"
            names.setdefault(listing.lstat(path).st_ino, set()).add(path.removeprefix(top).lstrip("/"))
    return {frozenset(found) for found in names.values() if len(found) > 1}


def read_long(view: Path) -> bytes:
    """The file whose path and that of the view are too long for one call."""
    first, second = LONG[: 251 * 8], LONG[251 * 8 :]
    directory = os.open(view / first, os.O_RDONLY)
    try:
        fd = os.open(second, os.O_RDONLY, dir_fd=directory)
    finally:
        os.close(directory)
    with open(fd, "rb") as file:
        assert os.fstat(fd).st_mode == stat.S_IFREG | 0o600
        return file.read()


class TestToTheOverlayDriver:
    def test_it_is_the_same(self, container: Container) -> None:
        change(container)
        before, changes, linked = inside(container), container.diff(), links(container, "/")
        container.move("overlay")
        assert (container.driver, container.state, container.name) == ("overlay", "created", "box")
        assert container.diff() == changes
        assert outside(container) == before
        with container.mount() as view:
            assert links(os, str(view)) == linked
        assert os.listdir(container.root.parents[2] / "logs") == []

    def test_no_content_of_the_images_is_written(self, container: Container) -> None:
        container.rename("/usr", "/opt")
        container.chmod("/large", 0o600)
        container.link("/etc/hosts", "/again")
        container.move("overlay")
        upper = upper_of(container)
        for name in ("opt/bin/perl", "opt/bin/perl5", "large", "again"):
            assert (upper / name).stat().st_blocks * 512 <= 4096  # where its attributes have no room beside it
            assert os.getxattr(upper / name, "trusted.overlay.metacopy") == b""
        assert os.getxattr(upper / "again", "trusted.overlay.redirect") == b"/etc/hosts"

    def test_what_is_shown_of_the_image_can_be_changed(self, container: Container) -> None:
        """The kernel copies the data up of a file that has none, from where it is said to be."""
        container.rename("/usr", "/opt")
        container.rename("/large", "/other")
        container.chmod("/etc/hosts", 0o600)
        container.move("overlay")
        with container.mount() as view:
            for path, data in (("opt/bin/perl", LARGE), ("other", LARGE[::-1]), ("etc/hosts", b"localhost" * 99)):
                with open(view / path, "r+b") as file:
                    file.write(b"changed")
                assert (view / path).read_bytes() == b"changed" + data[7:]
            assert (view / "opt/bin/perl5").read_bytes() == b"changed" + LARGE[7:]
            os.rename(view / "opt", view / "usr")
            os.chmod(view / "usr/bin/perl", 0o700)
        with container.mount() as view:
            assert (view / "usr/bin/perl5").read_bytes() == b"changed" + LARGE[7:]
            assert (view / "usr/bin/perl").stat().st_mode & 0o7777 == 0o700
            assert (view / "usr/bin/sh").is_symlink()

    def test_new_files_do_not_inherit_what_they_did_not(self, container: Container) -> None:
        """A default ACL of a directory, and its set-group-ID, are for what is made in it later."""
        acl = struct.pack(
            "<I" + "HHI" * 4, 2, *(1, 7, 2**32 - 1), *(4, 5, 2**32 - 1), *(16, 7, 2**32 - 1), *(32, 0, 2**32 - 1)
        )
        container.mkdir("/shared")
        container.chmod("/shared", 0o2775)
        container.chown("/shared", 0, 77)
        container.write_bytes("/shared/file", b"1")
        container.mkdir("/shared/inner")
        container.chown("/shared/file", 0, 5)
        container.setxattr("/shared", "system.posix_acl_default", acl)
        before = inside(container)
        container.move("overlay")
        assert outside(container) == before

    def test_a_path_as_long_as_any(self, store: Store) -> None:
        """It has no room in an attribute of a file of ext4, where the content is copied then."""
        assert 4000 < len(LONG) < 4096
        container = store.create("long:1", driver="extent")
        container.chmod("/" + LONG, 0o600)
        container.move("overlay")
        with container.mount() as view:
            assert read_long(view) == b"long" * 500
        container.move("extent")
        assert container.read_bytes("/" + LONG) == b"long" * 500
        assert container.stat("/" + LONG).st_mtime == 16

    def test_snapshots_come_along(self, container: Container) -> None:
        container.snapshot("clean")
        change(container)
        changed = inside(container)
        container.snapshot("changed")
        container.rmtree("/opt")
        container.write_bytes("/large", b"small now")
        now, times = inside(container), [(one.name, one.created_seconds) for one in container.snapshots()]
        container.move("overlay")
        assert [(one.name, one.created_seconds) for one in container.snapshots()] == [
            (name, pytest.approx(seconds, abs=1e-5)) for name, seconds in times
        ]
        assert outside(container) == now
        container.rollback("changed")
        assert outside(container) == changed
        container.rollback("clean")
        assert container.diff() == []
        container.rollback("changed")
        assert outside(container) == changed

    def test_snapshots_share_what_they_have_in_common(self, store: Store, container: Container) -> None:
        container.write_bytes("/own", os.urandom(8 << 20))
        for name in ("one", "two", "three"):
            container.snapshot(name)
            container.write_bytes("/other", os.urandom(5000))
        container.move("overlay")
        with durable.file_system(store.layout.root) as sync:
            sync()
        told = subprocess.run(
            ["filefrag", "-v", upper_of(container) / "own"], capture_output=True, text=True, check=True
        )
        assert ("shared" in told.stdout) == has_reflink(store.layout.root)

    def test_a_fork_that_goes_on_from_it_stays(self, container: Container) -> None:
        container.write_bytes("/own", b"own")
        fork = container.fork()
        fork.write_bytes("/more", b"more")
        container.move("overlay")
        assert (fork.read_bytes("/own"), fork.read_bytes("/more")) == (b"own", b"more")
        fork.move("overlay")
        with fork.mount() as view:
            assert (view / "own").read_bytes() == b"own"

    def test_what_the_other_driver_cannot_hold(self, container: Container) -> None:
        container.mknod("/zero", stat.S_IFCHR | 0o600, 0)
        with pytest.raises(Unsupported, match=r"/zero is the character device 0:0.*remove it first"):
            container.move("overlay")
        assert container.driver == "extent"
        assert stat.S_ISCHR(container.lstat("/zero").st_mode)
        assert os.listdir(container.root.parents[1]) == []
        number = container.stat("/etc/hosts").st_ino - 1
        wrong = Record(kinds.XATTR, number, name=b"system.posix_acl_access", payload=b"none")
        container._layer().writing().commit(wrong)  # as logs have it of a time when that was not refused
        container.unlink("/zero")
        with pytest.raises(OSError, match=r"etc/hosts"):
            container.move("overlay")
        container.removexattr("/etc/hosts", "system.posix_acl_access")
        container.move("overlay")

    def test_only_for_root(self, store: Store) -> None:
        name = store.create("base:1", driver="extent").id
        code = f"c = store.container({name!r})\nos.geteuid = lambda: {NOBODY}\nc.move('overlay')"
        assert "can be moved to the overlay driver by root only" in in_another_process(store, code).stderr


class TestWhenItCannotBe:
    def test_of_that_driver_already(self, store: Store, container: Container) -> None:
        container.move("extent")
        container.write_bytes("/f", b"1")
        container.move("extent")
        overlay = store.create("base:1")
        with overlay.mount():
            overlay.move("overlay")

    def test_no_driver(self, container: Container) -> None:
        with pytest.raises(InvalidInput, match="there is no driver 'other'"):
            container.move("other")  # type: ignore[arg-type]

    def test_removed(self, container: Container) -> None:
        container.remove()
        with pytest.raises(NotFound, match="removed"):
            container.move("overlay")

    @pytest.mark.parametrize(
        ("driver", "other", "step"), [("extent", "overlay", "_write_upper"), ("overlay", "extent", "_record")]
    )
    def test_removed_by_force_meanwhile(
        self, store: Store, meddle: Meddling, driver: str, other: str, step: str
    ) -> None:
        container = store.create("base:1", driver=driver)  # type: ignore[call-overload]
        container.write_bytes("/new", b"content") if driver == "extent" else (upper_of(container) / "new").touch()
        meddle.before(moving, step, lambda: container.remove(force=True))
        with pytest.raises(NotFound, match="was removed"):
            container.move(other)  # type: ignore[arg-type]
        assert store.containers() == []

    def test_a_snapshot_that_is_removed_meanwhile(self, store: Store, container: Container, meddle: Meddling) -> None:
        """By another process, with the log that it was read from."""
        with Store(store.root) as first:
            box = first.container(container.id)
            box.write_bytes("/new", b"content")
            box.snapshot("one")
            box.rollback("one")
            box.write_bytes("/new", b"other content")
            box.snapshot("two")
            box.rollback("one")

        def remove_it() -> None:
            found = in_another_process(
                store, f"store.container({container.id!r}).remove_snapshot('two'); store.close()"
            )
            assert (found.returncode, found.stderr) == (0, "")

        meddle.before(moving, "_write_upper", remove_it)
        with Store(store.root) as mine, pytest.raises(Conflict, match="was used while it was being moved"):
            mine.container(container.id).move("overlay")
        assert store.container(container.id).driver == "extent"
        assert container.read_bytes("/new") == b"content"

    def test_files_that_are_open(self, container: Container) -> None:
        with container.open("/new", "wb") as file:
            with pytest.raises(Conflict, match="close them first"):
                container.move("overlay")
            file.write(b"more")
        container.move("overlay")
        assert (upper_of(container) / "new").read_bytes() == b"more"

    def test_written_to_by_another_process(self, store: Store, container: Container) -> None:
        read, write = os.pipe()
        code = f"store.container({container.id!r}).write_bytes('/f', b'1'); print(flush=True); sys.stdin.read()"
        program = f"import os, sys\nfrom layerstore import Store\nstore = Store({str(store.root)!r})\n{code}"
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        process = subprocess.Popen([sys.executable, "-c", program], stdin=read, stdout=subprocess.PIPE, env=environment)
        assert process.stdout is not None
        with process.stdout:
            process.stdout.readline()
            with pytest.raises(Conflict, match="another process writes"):
                container.move("overlay")
            os.close(write)
            assert process.wait() == 0
        os.close(read)
        container.move("overlay")
        assert (upper_of(container) / "f").read_bytes() == b"1"

    def test_mounted(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount(), pytest.raises(Conflict, match=r"is mounted.*`layerstore umount` it first"):
            container.move("extent")

    @runs
    def test_running(self, store: Store) -> None:
        container = store.create("box:1")
        container.start(["/bin/sh", "-c", "echo there > /tmp/file; sleep 60"])
        wait_for(lambda: (container.root / "tmp/file").exists())
        with pytest.raises(Conflict, match="is running"):
            container.move("extent")
        container.kill()

    def test_mounting_says_what_to_do(self, container: Container) -> None:
        with pytest.raises(Unsupported, match=rf"`layerstore move {container.id[:12]} --driver overlay`"):
            container.mount()
        container.move("overlay")
        with pytest.raises(Unsupported, match=rf"`layerstore move {container.id[:12]} --driver extent`"):
            container.read_bytes("/etc/hosts")

    def test_who_has_found_it_before(self, store: Store, container: Container) -> None:
        before = store.container(container.id)
        before.write_bytes("/f", b"1")
        container.move("overlay")
        for call in (lambda: before.read_bytes("/f"), lambda: before.write_bytes("/f", b"2"), before.diff, before.fork):
            with pytest.raises(Unsupported, match="was moved to the overlay driver"):
                call()
        other = store.container(container.id)
        container.move("extent")
        with pytest.raises(Unsupported, match="layerstore move"):
            other.mount()
        for call in (other.fork, other.diff, lambda: list(other.entries())):
            with pytest.raises(Conflict, match="was moved to the extent driver meanwhile; open it again"):
                call()

    @pytest.mark.parametrize("what", ["fork", "diff", "snapshot"])
    def test_moved_back_before_it_is_looked_at(
        self, store: Store, container: Container, meddle: Meddling, what: str
    ) -> None:
        """Who uses it finds that its files are gone, and then that it is what it was."""
        container.move("overlay")
        other = store.container(container.id)
        container.move("extent")
        meddle.before(Containers, "check", lambda: container.move("overlay"))
        arguments = ["new"] if what == "snapshot" else []
        with pytest.raises(Conflict, match="was moved to another driver and back meanwhile; try again"):
            getattr(other, what)(*arguments)
        assert os.listdir(store.layout.containers) == [container.id]
        getattr(other, what)(*arguments)

    def test_who_has_found_it_before_never_has_a_part(
        self, store: Store, container: Container, meddle: Meddling
    ) -> None:
        """It was of the overlay driver when they found it, and is again when they have ended."""
        before, snapshots = inside(container), [one.name for one in container.snapshots()]
        container.move("overlay")
        other = store.container(container.id)
        container.move("extent")
        begun: list[Any] = []

        def use() -> None:
            with pytest.raises(Conflict, match="was moved to the extent driver"):
                begun.append(next(other.entries()))
            with pytest.raises(Conflict, match="was moved to the extent driver"):
                other.snapshot("part")
            with pytest.raises(Unsupported, match="layerstore move"):
                other.mount()

        meddle.before(moving, "_write_upper", use, times=ALWAYS)
        container.move("overlay")
        assert begun == []
        assert [one.name for one in container.snapshots()] == snapshots
        assert outside(other) == before

    def test_nobody_uses_what_is_in_its_place(self, store: Store, container: Container) -> None:
        """What a move left that was killed as it ended."""
        container.move("overlay")
        other = store.container(container.id)
        container.move("extent")
        directory = Path(store.layout.container(container.id))
        for name in ("upper", "work", "root", "snapshots/left/upper"):
            os.makedirs(directory / name)
        (directory / "snapshots/left/created").touch()
        with pytest.raises(Unsupported, match="is of the extent driver"):
            other.mount()
        acts = (other.snapshot, other.rollback, other.remove_snapshot)
        for act, name in zip(acts, ("new", "left", "left"), strict=True):
            with pytest.raises(Conflict, match="was moved to the extent driver"):
                act(name)
        container.move("overlay")
        assert not (directory / "snapshots/left").exists()

    @pytest.mark.parametrize("has_snapshots", [False, True])
    def test_a_move_that_was_killed_between_two_calls(self, store: Store, has_snapshots: bool) -> None:
        """The work directory is gone, and there is no other one yet."""
        made = store.create("base:1")
        if has_snapshots:
            made.snapshot("one")
        os.rmdir(f"{store.layout.container(made.id)}/work")
        others = store.create("base:1", count=2)
        store.mount([others[0], made, others[1]])
        assert store.states([*others, made]) == ["mounted"] * 3

    def test_who_reads_what_is_in_its_place_is_waited_for(
        self, store: Store, container: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What a move left that was killed as it ended: who has begun with that must not end when there is another."""
        before = inside(container)
        container.move("overlay")
        other = store.container(container.id)
        container.move("extent")
        for name in ("upper", "work", "root"):
            os.makedirs(f"{store.layout.container(container.id)}/{name}")
        shorter(monkeypatch, "container", 0.2)
        entries = other.entries()
        next(entries)
        with pytest.raises(Conflict, match="waited"):
            container.move("overlay")
        entries.close()  # type: ignore[attr-defined]  # it is a generator
        assert inside(container) == before
        container.move("overlay")
        assert outside(container) == before


def log_bytes(container: Container) -> int:
    return sum(log.stat().st_size for log in (container.root.parents[2] / "logs").iterdir())


def change_by_the_kernel(view: Path) -> None:
    """Have everything that overlayfs writes to an upper directory."""
    (view / "new").write_bytes(b"new")
    os.rename(view / "usr", view / "opt")
    os.rename(view / "opt/bin", view / "bin")
    (view / "usr").mkdir()
    (view / "usr/bin").write_bytes(b"no directory")
    os.chmod(view / "large", 0o640)
    os.rename(view / "large", view / "opt/larger")
    os.link(view / "etc/hosts", view / "again")
    os.setxattr(view / "etc", "user.note", b"kept")
    (view / "gone/in").unlink()
    (view / "gone").rmdir()
    (view / "opaque/old").unlink()
    (view / "opaque").rmdir()
    (view / "opaque").mkdir()
    (view / "opaque/young").write_bytes(b"young")
    os.mkfifo(view / "fifo")
    os.symlink("new", view / "link")
    (view / "null").unlink()
    os.mknod(view / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.chown(view, 1, 2)
    os.utime(view / "bin", ns=(1, 1_234_567_890_123_456_789))


class TestToTheExtentDriver:
    def test_what_the_kernel_made(self, store: Store) -> None:
        container = store.create("base:1", name="box")
        with container.mount() as view:
            change_by_the_kernel(view)
            before, linked = told(os, lambda path: Path(path).read_bytes(), str(view)), links(os, str(view))
        changes = container.diff()
        container.move("extent")
        assert (container.driver, container.state, container.name) == ("extent", "created", "box")
        assert inside(container) == before
        assert links(container, "/") == linked
        assert container.diff() == changes
        assert os.listdir(store.layout.containers) == []
        container.write_bytes("/more", b"more")
        container.unlink("/more")
        container.move("overlay")
        assert outside(container) == before

    def test_there_and_back(self, container: Container) -> None:
        change(container)
        before, changes = dump(container, container.read_bytes), container.diff()
        for driver in ("overlay", "extent", "overlay", "extent"):
            container.move(driver)  # type: ignore[arg-type]
            assert container.diff() == changes
        assert dump(container, container.read_bytes) == before

    def test_one_that_nothing_was_done_in(self, store: Store) -> None:
        container = store.create("base:1")
        container.move("extent")
        assert container.diff() == []
        assert log_bytes(container) == 128
        container.move("overlay")
        assert container.diff() == []

    def test_the_images_contents_stay_the_images(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            os.chmod(view / "large", 0o600)
            os.rename(view / "large", view / "larger")
            os.rename(view / "usr", view / "opt")
            os.chmod(view / "empty", 0o600)
        container.move("extent")
        assert log_bytes(container) < 4096
        assert container.read_bytes("/larger") == LARGE[::-1]
        assert container.read_bytes("/opt/bin/perl5") == LARGE

    @pytest.mark.parametrize("size", [len(LARGE) - 5000, len(LARGE), len(LARGE) + (1 << 20), 200_000])
    def test_of_a_large_file_what_changed_is_written(self, store: Store, size: int) -> None:
        container = store.create("base:1")
        data = bytearray(LARGE[::-1][:size]) + bytes(max(0, size - len(LARGE)))
        data[100_000:104_096] = b"x" * 4096
        data[150_000:160_000] = bytes(10_000)
        data[-3:] = b"end"
        with container.mount() as view, open(view / "large", "r+b") as file:
            file.truncate(size)
            for at, piece in ((100_000, b"x" * 4096), (150_000, bytes(10_000)), (size - 3, b"end")):
                file.seek(at)
                file.write(piece)
        container.move("extent")
        assert container.read_bytes("/large") == data
        assert log_bytes(container) < 40_000
        with container.open("/large", "r+b") as file:
            file.truncate(size + 10)
        container.move("overlay")
        with container.mount() as view:
            assert (view / "large").read_bytes() == data + bytes(10)

    def test_one_that_was_opened_for_writing_is_the_images_again(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            status = (view / "large").stat()
            (view / "large").open("r+b").close()
            os.utime(view / "large", ns=(0, status.st_mtime_ns))
        assert [change.path for change in container.diff()] == ["/large"]
        container.move("extent")
        assert container.diff() == []

    def test_one_in_the_place_of_another(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            os.rename(view / "large", view / "other")
            (view / "large").write_bytes(LARGE[::-1][: 1 << 20] + b"more")
            (view / "usr/bin/perl").write_bytes(LARGE + b"more")
        container.move("extent")
        assert container.read_bytes("/other") == LARGE[::-1]
        assert container.read_bytes("/large") == LARGE[::-1][: 1 << 20] + b"more"
        assert container.read_bytes("/usr/bin/perl") == LARGE + b"more"
        assert container.read_bytes("/usr/bin/perl5") == LARGE

    def test_links_that_overlayfs_has_broken(self, store: Store) -> None:
        """Of two names of a file of the image, one was changed: to overlayfs they are two files since."""
        container = store.create("base:1")
        with container.mount() as view:
            os.chmod(view / "usr/bin/perl", 0o700)
        container.move("extent")
        assert links(container, "/") == set()
        assert (container.stat("/usr/bin/perl").st_mode, container.stat("/usr/bin/perl5").st_mode) == (
            0o100700,
            0o104755,
        )
        assert container.read_bytes("/usr/bin/perl") == container.read_bytes("/usr/bin/perl5") == LARGE

    def test_holes_take_no_room(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view, open(view / "sparse", "wb") as file:
            file.seek(50 << 20)
            file.write(b"data")
            file.truncate(100 << 20)
        container.move("extent")
        assert log_bytes(container) < 200_000
        with container.open("/sparse", "rb") as file:
            assert (file.seek(0, os.SEEK_END), file.seek(50 << 20), file.read(5)) == (100 << 20, 50 << 20, b"data\0")

    def test_snapshots_come_along_and_share(self, store: Store) -> None:
        container = store.create("base:1")
        container.snapshot("clean")
        with container.mount() as view:
            change_by_the_kernel(view)
            (view / "own").write_bytes(os.urandom(4 << 20))
        states = {}
        for name in ("one", "two", "three"):
            with container.mount() as view:
                (view / "state").write_bytes(name.encode() * 2000)
                if name == "two":
                    os.rename(view / "own", view / "renamed")
            states[name] = outside(container)
            container.snapshot(name)
        container.rollback("two")
        times = [(one.name, one.created_seconds) for one in container.snapshots()]
        container.move("extent")
        assert [(one.name, one.created_seconds) for one in container.snapshots()] == times
        assert log_bytes(container) < 5 << 20
        assert inside(container) == states["two"]
        store.collect_garbage()
        for name in ("three", "clean", "one", "two"):
            container.rollback(name)
            assert inside(container) == (
                states[name] if name != "clean" else inside(store.create("base:1", driver="extent"))
            )
        container.remove_snapshot("clean")
        container.remove_snapshot("one")
        container.rollback("three")
        assert inside(container) == states["three"]
        container.move("overlay")
        container.rollback("two")
        assert outside(container) == states["two"]

    def test_a_volatile_one(self, store: Store) -> None:
        container = store.create("base:1", volatile=True)
        with container.mount() as view:
            (view / "new").write_bytes(b"new")
        container.move("extent")
        assert container.read_bytes("/new") == b"new"
        container.move("overlay")
        assert container.row.volatile
        with container.mount() as view:
            assert (view / "new").read_bytes() == b"new"

    @runs
    def test_what_ran_in_it(self, store: Store) -> None:
        container = store.create("box:1")
        assert container.run(["/bin/sh", "-c", "echo 1 > /tmp/file"]) == 0
        command = store.container(container.id).row.command
        container.move("extent")
        assert container.read_bytes("/tmp/file") == b"1\n"
        container.write_bytes("/tmp/file", b"exit 7\n")
        container.move("overlay")
        assert container.row.command == command is not None
        assert container.run(["/bin/sh", "/tmp/file"]) == 7

    def test_mounted_meanwhile(self, store: Store, meddle: Meddling) -> None:
        """Nobody is kept from it: the move fails, and takes nothing away."""
        container = store.create("base:1")
        with container.mount() as view:
            (view / "new").write_bytes(b"new")

        def use() -> None:
            with store.container(container.id).mount() as view:
                (view / "more").write_bytes(b"more")

        meddle.before(recording.Recorder, "record", use, times=2)
        for _ in range(2):
            with pytest.raises(Conflict, match="was used while it was being moved; nothing was done"):
                container.move("extent")
        assert os.listdir(store.layout.logs) == []
        with container.mount() as view:
            assert (view / "more").read_bytes() == b"more"
        container.move("extent")
        assert container.read_bytes("/more") == b"more"

    def test_mounted_meanwhile_and_another_move_begun(self, store: Store, meddle: Meddling) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            (view / "new").write_bytes(b"new")

        def use() -> None:
            again = store.container(container.id)
            with again.mount() as view:
                (view / "more").write_bytes(b"more")
            snapshots.begin_move(store.layout, container.id, lambda: None)

        meddle.before(durable, "sync_directory", use)
        with pytest.raises(Conflict, match="was used while it was being moved; nothing was done"):
            container.move("extent")
        with container.mount() as view:
            assert (view / "more").read_bytes() == b"more"

    @pytest.mark.parametrize("what", ["snapshot", "remove_snapshot", "rollback", "fork", "mount"])
    def test_used_by_others(self, store: Store, meddle: Meddling, what: str) -> None:
        """What another one does with it waits for the move, or makes it fail: nothing is lost."""
        container = store.create("base:1")
        container.snapshot("one")
        with container.mount() as view:
            (view / "new").write_bytes(b"new")
        container.snapshot("two")
        other = store.container(container.id)
        arguments = {"snapshot": ["three"], "remove_snapshot": ["one"], "rollback": ["one"]}.get(what, [])
        done: list[object] = []

        def use() -> None:
            try:
                done.append(getattr(other, what)(*arguments))
            except (NotFound, Unsupported, Conflict) as error:
                done.append(error)

        thread = threading.Thread(target=use)
        meddle.before(recording.Recorder, "record", thread.start)
        try:
            container.move("extent")
        except Conflict:
            assert os.listdir(store.layout.logs) == []
        thread.join()
        container = store.container(container.id)
        was_done = not isinstance(done[0], Exception)
        if container.driver == "overlay":
            assert was_done
            container.umount()
            container.move("extent")
        elif what != "fork":
            assert not was_done
        names = {one.name for one in container.snapshots()}
        expected = {"snapshot": {"one", "two", "three"}, "remove_snapshot": {"two"}}.get(what, {"one", "two"})
        assert names == (expected if was_done else {"one", "two"})
        if what == "rollback" and was_done:
            container.rollback("two")
        assert container.read_bytes("/new") == b"new"


def test_from_the_command_line(store: Store) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        line = [sys.executable, "-m", "layerstore", "--root", str(store.root), *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        return done.returncode, done.stdout + done.stderr

    container = store.create("base:1", name="box")
    assert run("move", "box", "--driver", "extent") == (0, "")
    assert store.container("box").driver == "extent"
    with Store(store.root) as other:
        other.container("box").write_bytes("/new", b"1")
        assert run("mount", "box")[0] == 1
        assert "another process writes" in run("move", "box", "--driver", "overlay")[1]
    assert run("diff", "box") == (0, "A /new\n")
    assert run("move", "box", "--driver", "overlay") == (0, "")
    assert run("diff", "box") == (0, "A /new\n")
    assert run("move", "box", "--driver", "overlay") == (0, "")
    assert run("move", "box")[0] == 2
    assert run("move", "box", "--driver", "other")[0] == 2
    assert run("move", "none", "--driver", "extent")[0] == 1
    assert store.container("box").id == container.id


KILLED = """if True:
    import os, signal, sys
    from layerstore import Store
    root, name, driver, left = sys.argv[1:4] + [int(sys.argv[4])]
    names = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.chmod", "os.utime")
    def count(event, arguments):
        global left
        if event in names or event in ("os.truncate", "os.setxattr", "sqlite3.connect"):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    store = Store(root)
    container = store.container(name)
    sys.addaudithook(count)
    container.move(driver)
    print(-left)
"""


@pytest.mark.parametrize("driver", ["overlay", "extent"])
def test_killed_anywhere(store: Store, driver: str) -> None:
    """What is there afterwards is of one driver or the other, whole; and the move can be done again."""
    origin = store.create("base:1", driver="extent")
    container = origin
    origin.snapshot("clean")
    origin.chmod("/usr/bin/perl", 0o700)
    origin.rename("/etc", "/conf")
    origin.write_bytes("/own", b"own" * 5000)
    origin.symlink("x", "/link")
    before, snapshots = inside(origin), [one.name for one in origin.snapshots()]
    step, events = 1, 10_000
    outcomes = set()
    with Forked("from layerstore import Store", KILLED) as killed:
        while step <= events:
            container = origin.fork()
            container.snapshot("clean")
            if driver == "extent":
                container.move("overlay")
            store._engine.writable.layers.close()
            if events == 10_000:
                status, told_events = killed.run(store.root, container.id, driver, 0)
                assert status == 0, told_events
                events = int(told_events)
                container.remove()
                continue
            status, said = killed.run(store.root, container.id, driver, step)
            assert status == -signal.SIGKILL, said
            container = store.container(container.id)
            outcomes.add(container.driver == driver)
            if step % 3 == 0:
                store.collect_garbage()
                there = os.listdir(store.layout.containers)
                assert there == ([container.id] if container.driver == "overlay" else [])
            assert (inside if container.driver == "extent" else outside)(container) == before
            container.move(driver)  # type: ignore[arg-type]
            assert (inside if container.driver == "extent" else outside)(container) == before
            assert [one.name for one in container.snapshots()] == snapshots
            container.remove()
            store.collect_garbage()
            assert os.listdir(store.layout.containers) == []
            assert len(os.listdir(store.layout.logs)) == 1
            step += 1 if step < 10 or step > events - 25 else max(1, events // 20)
    assert outcomes == {True, False}
