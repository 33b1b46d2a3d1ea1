"""Forks, snapshots and rollback of containers of the overlay driver, on a pool and on the tests' own file system."""

import contextlib
import errno
import io
import os
import random
import resource
import shutil
import signal
import stat
import struct
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from forked import Forked
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import Meddling
from pools import POOL_AND_HOST, directory_of, needs_root, store_on, upper_of
from test_clone import told
from test_containers import BOX, runs
from waiting import wait_for

from layerstore import Container, Store
from layerstore._core.clone import clone_tree, join_trees
from layerstore._core.files import punch_holes
from layerstore.containers import snapshots
from layerstore.errors import Conflict, InvalidInput, LimitExceeded, NotFound
from layerstore.naming import open_fd
from layerstore.store import frozen, locks

LARGE = random.Random(5).randbytes(8 << 20)
pytestmark = [needs_root, pytest.mark.root, pytest.mark.kernel]

BASE = Image(
    [
        write_tar(
            [
                Entry("dir", "etc", mode=0o755),
                Entry("file", "etc/hosts", data=b"localhost"),
                Entry("file", "large", data=LARGE),
                Entry("file", "gone", data=b"gone"),
                Entry("dir", "moved", mode=0o755),
                Entry("dir", "moved/in", mode=0o755),
                Entry("file", "moved/in/file", data=b"within" * 100),
                Entry("dir", "opaque", mode=0o755),
                Entry("file", "opaque/old", data=b"old"),
                Entry("file", "meta", data=b"meta" * 1000),
            ]
        )
    ],
    ["base:1"],
)


@pytest.fixture(scope="module", params=POOL_AND_HOST)
def module_store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store_on(request.param, tmp_path_factory.mktemp("forks")) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BASE, BOX]))))
        yield opened


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    module_store.remove(module_store.containers(), force=True)
    assert os.listdir(module_store.layout.containers) == []
    if os.path.exists(module_store.layout.frozen):
        module_store.collect_garbage()
        assert os.listdir(module_store.layout.frozen) == []


def change(view: Path) -> None:
    """Have everything that overlayfs writes to an upper directory."""
    (view / "new").write_bytes(b"new")
    (view / "etc/hosts").write_bytes(b"changed")
    (view / "gone").unlink()
    os.chmod(view / "meta", 0o640)
    os.rename(view / "moved", view / "elsewhere")
    (view / "elsewhere/in/more").write_bytes(b"more")
    shutil.rmtree(view / "opaque")
    (view / "opaque").mkdir()
    (view / "opaque/young").write_bytes(b"young")
    os.link(view / "large", view / "second")
    with open(view / "second", "r+b") as file:
        file.seek(5_000_000)
        file.write(b"x" * 4096)
    os.symlink("new", view / "link")
    os.mkfifo(view / "fifo")
    os.setxattr(view / "new", "user.note", b"kept")


def said(container: Container, snapshot: str | None = None) -> dict[str, object]:
    """`told` of what a container changed, or a snapshot of it, as one tree: without overlayfs's attributes of its root,
    and how many names an inode has elsewhere."""
    layout, directory = container._engine.layout, directory_of(container)
    top = directory / "snapshots" / snapshot if snapshot else directory
    uppers = [directory / "upper"] if snapshot is None else []
    uppers += [Path(frozen.path(layout, name)) for name in frozen.stack(f"{top}/lower")]
    made = Path(layout.root, "joined")
    made.mkdir()
    try:
        with contextlib.ExitStack() as held:
            *fds, target = (held.enter_context(open_fd(path, os.O_RDONLY)) for path in (*uppers, made))
            join_trees(fds, target)
        found = told(made)
    finally:
        shutil.rmtree(made)
    root = list(found["."])  # type: ignore[call-overload]
    root[7] = {key: value for key, value in root[7].items() if not key.startswith("trusted.overlay.")}
    return {path: (*one[:4], *one[5:]) for path, one in {**found, ".": root}.items()}  # type: ignore[index]


def parts(container: Container) -> set[str]:
    """What is in a container's directory."""
    return set(os.listdir(directory_of(container))) - {"lower", "snapshots"}


class TestFork:
    def test_it_is_the_same(self, store: Store) -> None:
        origin = store.create("base:1")
        with origin.mount() as view:
            change(view)
            shown = told(view)
        fork = origin.fork(name="fork")
        assert (fork.name, fork.image.id, fork.state) == ("fork", origin.image.id, "created")
        assert said(fork) == said(origin)
        assert parts(fork) == {"root", "upper", "work"}
        with fork.mount() as view:
            assert told(view) == shown
        assert fork.diff() == origin.diff()

    def test_they_go_their_own_ways(self, store: Store) -> None:
        origin = store.create("base:1")
        with origin.mount() as view:
            change(view)
        fork = origin.fork()
        store.mount([origin, fork])
        (fork.root / "etc/hosts").write_bytes(b"of the fork")
        (origin.root / "new").unlink()
        with open(fork.root / "large", "r+b") as file:
            file.write(b"y" * 10)
        assert (origin.root / "etc/hosts").read_bytes() == b"changed"
        assert (fork.root / "new").read_bytes() == b"new"
        assert (origin.root / "second").read_bytes()[:10] == LARGE[:10]
        assert (fork.root / "large").read_bytes()[:10] == b"y" * 10
        # As of an image, a name that is written to is a file of its own then.
        assert (fork.root / "second").read_bytes()[:10] == LARGE[:10]
        assert (fork.root / "elsewhere/in/file").read_bytes() == b"within" * 100
        assert not (fork.root / "opaque/old").exists()

    def test_to_the_kernel_they_are_two(self, store: Store) -> None:
        origin = store.create("base:1")
        origin.mount()
        fork = origin.fork()
        fork.mount()
        names = {os.getxattr(upper_of(c), "trusted.overlay.uuid") for c in (origin, fork)}
        assert len(names) == 2
        assert len({os.statvfs(c.root).f_fsid for c in (origin, fork)}) == 2

    def test_while_it_is_mounted_and_written_to(self, store: Store) -> None:
        origin = store.create("base:1")
        stop = threading.Event()
        with origin.mount() as view:
            change(view)

            def write() -> None:
                n = 0
                while not stop.is_set():
                    n += 1
                    (view / "tmp").write_bytes(b"%d" % (n % 10) * 50_000)
                    os.rename(view / "tmp", view / "replaced")
                    os.chmod(view / "meta", 0o600 + n % 8)

            (view / "replaced").write_bytes(b"0" * 50_000)
            writer = threading.Thread(target=write)
            writer.start()
            try:
                forks = [origin.fork() for _ in range(10)]
            finally:
                stop.set()
                writer.join()
        store.mount(forks)
        for fork in forks:
            content = (fork.root / "replaced").read_bytes()
            assert content == content[:1] * 50_000
            assert (fork.root / "meta").read_bytes() == b"meta" * 1000
            assert (fork.root / "elsewhere/in/more").read_bytes() == b"more"

    def test_a_copy_up_of_data_under_way_is_not_seen_halfway(self, store: Store) -> None:
        """A file of which the attributes are in the upper directory already gets its data, while it is forked."""
        for _ in range(5):
            origin = store.create("base:1")
            with origin.mount() as view:
                os.chmod(view / "large", 0o600)
                done = threading.Thread(target=lambda path=view / "large": path.open("r+b").close())
                done.start()
                forks = [origin.fork() for _ in range(4)]
                done.join()
            store.mount(forks)
            assert all((fork.root / "large").read_bytes() == LARGE for fork in forks)

    def test_many_are_alike(self, store: Store) -> None:
        origin = store.create("base:1")
        with origin.mount() as view:
            change(view)
        forks = origin.fork(count=25)
        assert len({fork.id for fork in forks}) == 25
        assert all(said(fork) == said(origin) for fork in forks[::6])
        assert len(store.containers()) == 26

    def test_a_fork_of_a_fork(self, store: Store) -> None:
        at = store.create("base:1")
        for i in range(8):
            with at.mount() as view:
                (view / f"step{i}").write_bytes(b"%d" % i)
            at = at.fork()
        with at.mount() as view:
            assert [(view / f"step{i}").read_bytes() for i in range(8)] == [b"%d" % i for i in range(8)]

    def test_a_container_that_was_never_mounted(self, store: Store) -> None:
        origin = store.create("base:1")
        fork = origin.fork()
        assert said(fork) == said(origin)
        with fork.mount() as view:
            assert (view / "large").read_bytes() == LARGE

    def test_a_volatile_one(self, store: Store) -> None:
        origin = store.create("base:1", volatile=True)
        origin.mount()
        (origin.root / "new").write_bytes(b"new")
        fork = origin.fork()
        assert fork.row.volatile
        with fork.mount() as view:
            assert (view / "new").read_bytes() == b"new"

    def test_errors(self, store: Store) -> None:
        origin = store.create("base:1", name="origin")
        for count, name in ((0, None), (-1, None), (2, "two")):
            with pytest.raises(InvalidInput, match="count"):
                origin.fork(count=count, name=name)  # type: ignore[call-overload]
        with pytest.raises(InvalidInput, match="name"):
            origin.fork(name="a/b")
        with pytest.raises(Conflict, match="origin"):
            origin.fork(name="origin")
        assert os.listdir(store.layout.containers) == [origin.id]
        origin.remove()
        with pytest.raises(NotFound, match="removed"):
            origin.fork()
        assert os.listdir(store.layout.containers) == []

    def test_an_origin_that_is_removed_meanwhile(self, store: Store, meddle: Meddling) -> None:
        origin = store.create("base:1")
        origin.mount()
        meddle.after(snapshots, "clone_frozen", lambda: origin.remove(force=True))  # else it would wait for the fork
        with pytest.raises(NotFound, match="removed meanwhile"):
            origin.fork()
        assert os.listdir(store.layout.containers) == []

    def test_an_origin_whose_files_go_meanwhile(self, store: Store, meddle: Meddling) -> None:
        origin = store.create("base:1")
        origin.mount()
        meddle.before(snapshots, "clone_frozen", lambda: origin.remove(force=True))
        with pytest.raises(NotFound, match="removed meanwhile"):
            origin.fork()
        assert os.listdir(store.layout.containers) == []

    def test_a_directory_that_is_lost_is_told_as_such(self, store: Store) -> None:
        container = store.create("base:1")
        shutil.rmtree(store.layout.container(container.id))
        uses = (container.fork, container.diff, container.mount, lambda: container.snapshot("s"))
        for use in uses:
            with pytest.raises(NotFound, match=r"has lost its directory; `layerstore rm` it"):
                use()
        container.remove()

    @runs
    def test_of_a_container_that_runs(self, store: Store) -> None:
        origin = store.create("box:1")
        origin.start(["/bin/sh", "-c", "echo there > /tmp/file; sleep 60"])
        wait_for(lambda: (origin.root / "tmp/file").exists())
        fork = origin.fork()
        with fork.mount() as view:
            assert (view / "tmp/file").read_bytes() == b"there\n"
        assert origin.state == "running"


def test_any_input_and_output(store: Store) -> None:
    """In the manner of fsx: a file of the image, written to in every way, against memory; and forks of it meanwhile."""
    rng = random.Random(7)
    origin = store.create("base:1")
    expected = bytearray(LARGE[: 2 << 20])
    forks = []
    with origin.mount() as view, open(view / "large", "r+b", buffering=0) as file:
        os.ftruncate(file.fileno(), len(expected))
        for step in range(3000):
            at, length = rng.randrange(2 << 20), rng.randrange(1, 70_000)
            kind = rng.random()
            if kind < 0.45:
                data = rng.randbytes(length)
                assert os.pwrite(file.fileno(), data, at) == length
                expected.extend(bytes(max(0, at - len(expected))))
                expected[at : at + length] = data
            elif kind < 0.55:
                os.ftruncate(file.fileno(), at)
                expected = expected[:at] + bytes(max(0, at - len(expected)))
            elif kind < 0.65:
                punch_holes(file.fileno(), struct.pack("<QQ", at, length))
                end = min(len(expected), at + length)
                expected[at:end] = bytes(max(0, end - at))
            elif kind < 0.98:
                assert os.pread(file.fileno(), length, at) == expected[at : at + length]
            elif kind < 0.99:
                os.fsync(file.fileno())
            if step % 200 == 199:
                forks.append((origin.fork(), bytes(expected)))
        assert os.pread(file.fileno(), 4 << 20, 0) == expected
    for fork, content in forks:
        with fork.mount() as view:
            assert (view / "large").read_bytes() == content


class TestSnapshots:
    def test_there_and_back(self, store: Store) -> None:
        container = store.create("base:1")
        container.snapshot("clean")
        with container.mount() as view:
            change(view)
        upper = said(container)
        container.snapshot("changed")
        for _ in range(2):
            container.rollback("clean")
            assert container.diff() == []
            with container.mount() as view:
                assert (view / "gone").read_bytes() == b"gone"
                (view / "junk").write_bytes(b"junk")
            container.rollback("changed")
            assert said(container) == upper
            with container.mount() as view:
                assert not (view / "junk").exists()
                (view / "large").write_bytes(b"overwritten")
        container.rollback("changed")
        assert said(container) == upper

    def test_the_list(self, store: Store) -> None:
        container = store.create("base:1")
        assert container.snapshots() == []
        before = time.time()
        for name in ("b", "a", "c"):
            container.snapshot(name)
            time.sleep(0.02)
        assert [one.name for one in container.snapshots()] == ["b", "a", "c"]
        assert all(before - 1 < one.created_seconds < time.time() + 1 for one in container.snapshots())
        container.rollback("a")
        container.mount()
        container.umount()
        assert [one.name for one in container.snapshots()] == ["b", "a", "c"]
        container.remove_snapshot("b")
        assert [one.name for one in container.snapshots()] == ["a", "c"]

    def test_while_mounted(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            change(view)
            container.snapshot("now")
            (view / "new").write_bytes(b"later")
            with pytest.raises(Conflict, match="umount"):
                container.rollback("now")
        container.rollback("now")
        with container.mount() as view:
            assert (view / "new").read_bytes() == b"new"

    def test_errors(self, store: Store) -> None:
        container = store.create("base:1")
        container.snapshot("one")
        with pytest.raises(Conflict, match="'one' already"):
            container.snapshot("one")
        container.rollback("one")
        with pytest.raises(Conflict, match="'one' already"):
            container.snapshot("one")
        for name in ("", "..", "a/b", "\0"):
            for call in (container.snapshot, container.rollback, container.remove_snapshot):
                with pytest.raises(InvalidInput, match="name"):
                    call(name)
        for call in (container.rollback, container.remove_snapshot):
            with pytest.raises(NotFound, match="no snapshot 'two'; there is one"):
                call("two")
        container.remove()
        with pytest.raises(NotFound, match="removed"):
            container.snapshot("two")

    def test_a_snapshot_that_is_rolled_back_to_and_removed(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            change(view)
        upper = said(container)
        container.snapshot("one")
        container.rollback("one")
        container.remove_snapshot("one")
        assert container.snapshots() == []
        assert said(container) == upper

    def test_a_fork_has_none(self, store: Store) -> None:
        container = store.create("base:1")
        container.snapshot("one")
        container.rollback("one")
        fork = container.fork()
        assert fork.snapshots() == []
        assert said(fork) == said(container)

    def test_garbage_is_collected(self, store: Store) -> None:
        container = store.create("base:1")
        container.snapshot("one")
        for _ in range(3):
            with container.mount() as view:
                (view / "junk").write_bytes(b"junk" * 1000)
            container.rollback("one")
        assert len(os.listdir(directory_of(container) / "removed")) > 0
        store.collect_garbage()
        assert parts(container) == {"root", "upper", "work"}
        assert [one.name for one in container.snapshots()] == ["one"]

    def test_garbage_that_another_process_removes_meanwhile(self, store: Store, meddle: Meddling) -> None:
        container = store.create("base:1")
        removed = directory_of(container) / "removed"
        removed.mkdir()
        meddle.before(locks, "container_if_free", removed.rmdir)
        store.collect_garbage()
        assert not removed.exists()

    def test_removing_the_container_removes_all(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            change(view)
            container.snapshot("one")
        container.rollback("one")
        container.remove()
        assert os.listdir(store.layout.containers) == []

    @runs
    def test_not_while_a_program_runs(self, store: Store) -> None:
        container = store.create("box:1")
        container.snapshot("one")
        container.start(["/bin/sleep", "60"])
        with pytest.raises(Conflict, match="running"):
            container.rollback("one")


def step(container: Container, number: int) -> None:
    """Add a file, change one and remove one."""
    with container.mount() as view:
        (view / f"at{number}").write_bytes(b"%d" % number)
        (view / "state").write_bytes(b"%d" % number)
        (view / f"at{number - 5}").unlink(missing_ok=True)


def shows_step(view: Path, number: int) -> None:
    assert (view / "state").read_bytes() == b"%d" % number
    there = {f"at{n}" for n in range(max(0, number - 4), number + 1)}
    assert {name for name in os.listdir(view) if name.startswith("at")} == there


class TestStacks:
    def test_they_stay_low_and_each_snapshot_as_it_was(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            for number in range(500):
                (view / f"file{number}").write_bytes(b"file")
        made = 40
        for number in range(made):
            step(container, number)
            container.snapshot(f"s{number}")
            assert len(frozen.stack(f"{directory_of(container)}/lower")) <= 5
        # The first files were not joined each time.
        uppers = [entry.path for entry in os.scandir(store.layout.frozen) if not entry.is_symlink()]
        assert sum(os.path.exists(f"{upper}/file0") for upper in uppers) == 1
        for number in (*range(0, made, 7), made - 1):
            container.rollback(f"s{number}")
            with container.mount() as view:
                shows_step(view, number)
                (view / "junk").write_bytes(b"junk")
        for number in range(made - 1):
            container.remove_snapshot(f"s{number}")
        container.rollback(f"s{made - 1}")
        store.collect_garbage()
        names = frozen.stack(f"{directory_of(container)}/lower")
        assert {name.partition(".")[0] for name in os.listdir(store.layout.frozen)} == set(names)

    def test_of_one_in_use_they_stay_low_too(self, store: Store) -> None:
        at = store.create("base:1")
        for number in range(12):
            at.mount()
            (at.root / "state").write_bytes(b"%d" % number)
            (at.root / f"at{number}").write_bytes(b"")
            at = at.fork()
            assert len(frozen.stack(f"{directory_of(at)}/lower")) <= 5
        with at.mount() as view:
            assert (view / "state").read_bytes() == b"11"
            assert all((view / f"at{number}").exists() for number in range(12))

    def test_nothing_is_copied(self, store: Store) -> None:
        origin = store.create("base:1")
        with origin.mount() as view:
            (view / "new").write_bytes(b"new")
        inode = (upper_of(origin) / "new").stat().st_ino
        forks = origin.fork(count=3)
        again = origin.fork()
        (frozen_one,) = frozen.stack(f"{directory_of(origin)}/lower")
        assert Path(frozen.path(store.layout, frozen_one), "new").stat().st_ino == inode
        assert all(frozen.stack(f"{directory_of(one)}/lower") == [frozen_one] for one in (*forks, again))
        assert all(os.listdir(upper_of(one)) == [] for one in (origin, *forks, again))

    def test_what_nobody_stands_on_goes_with_the_last(self, store: Store) -> None:
        origin = store.create("base:1")
        with origin.mount() as view:
            (view / "new").write_bytes(b"new")
        fork = origin.fork()
        origin.remove()
        with fork.mount() as view:
            assert (view / "new").read_bytes() == b"new"
        fork.snapshot("one")
        fork.rollback("one")
        fork.remove()
        assert os.listdir(store.layout.frozen) == []

    def test_the_root_of_a_view(self, store: Store) -> None:
        """Its attributes are the upper's own."""
        container = store.create("base:1")
        container.snapshot("clean")
        with container.mount() as view:
            os.chmod(view, 0o2711)
            os.chown(view, 3, 4)
            os.setxattr(view, "user.own", b"1")
            os.utime(view, ns=(0, 123_456_789))
        fork = container.fork()
        container.snapshot("changed")
        container.rollback("clean")
        with container.mount() as view:
            assert view.stat().st_mode & 0o7777 != 0o2711 and os.listxattr(view) == []
        container.rollback("changed")
        for one in (container, fork, container.fork()):
            with one.mount() as view:
                status = view.stat()
                assert (status.st_mode & 0o7777, status.st_uid, status.st_gid) == (0o2711, 3, 4)
                assert (status.st_mtime_ns, os.getxattr(view, "user.own")) == (123_456_789, b"1")
            assert [change.path for change in one.diff()] == []

    def test_one_that_is_lost_is_told(self, store: Store) -> None:
        container = store.create("base:1")
        container.snapshot("one")
        (name,) = frozen.stack(f"{directory_of(container)}/lower")
        shutil.rmtree(frozen.path(store.layout, name))
        assert [damage.detail for damage in store.check(quick=True).damages] == [f"it has no directory frozen/{name}"]
        container.remove()
        assert not store.check(quick=True).damages

    def test_usage_counts_it_once(self, store: Store) -> None:
        origin = store.create("base:1")
        with origin.mount() as view:
            (view / "new").write_bytes(LARGE)
        forks = origin.fork(count=5)
        usage = store.usage()
        sizes = {one.container_id: one.size_bytes for one in usage.containers}
        assert all(sizes[one.id] >= len(LARGE) for one in (origin, *forks))
        assert len(LARGE) <= usage.parts["containers"].size_bytes < 2 * len(LARGE)
        assert usage.parts["containers"].reclaimable_bytes == usage.parts["containers"].size_bytes
        with forks[0].mount():
            part = store.usage().parts["containers"]
            assert part.reclaimable_bytes < len(LARGE) <= part.size_bytes

    def test_usage_counts_once_what_was_joined(self, store: Store) -> None:
        container = store.create("base:1")
        with container.mount() as view:
            (view / "new").write_bytes(LARGE)
        for number in range(7):
            step(container, number)
            container.snapshot(f"s{number}")
        stood_on = {name for names in frozen.stacks(directory_of(container)) for name in names}
        assert sum(os.path.exists(frozen.path(store.layout, name) + "/new") for name in stood_on) > 1
        usage = store.usage()
        assert len(LARGE) <= usage.containers[0].size_bytes < 2 * len(LARGE)
        assert len(LARGE) <= usage.parts["containers"].size_bytes < 2 * len(LARGE)

    def test_those_that_cannot_be_joined(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Snapshots are made up to a limit, which a deeper path than a layer may have keeps them from being under."""
        container = store.create("base:1")
        monkeypatch.setattr(frozen, "_HIGHEST", 9)
        with container.mount() as view, contextlib.ExitStack() as opened:
            at = opened.enter_context(open_fd(str(view), os.O_RDONLY))
            for _ in range(18):
                os.mkdir("L" * 250, dir_fd=at)
                at = opened.enter_context(open_fd("L" * 250, os.O_RDONLY, dir_fd=at))
        for number in range(9):
            container.snapshot(f"s{number}")
            step(container, number)
        before = frozen.stack(f"{directory_of(container)}/lower")
        for ask in (partial(container.snapshot, "more"), container.fork):
            with pytest.raises(LimitExceeded, match="is too long, so that"):
                ask()
        assert frozen.stack(f"{directory_of(container)}/lower") == before and len(before) == 9
        with container.mount() as view:
            shows_step(view, 8)
            with pytest.raises(LimitExceeded, match="no more can be stacked; stop it"):
                container.fork()
            shutil.rmtree(view / ("L" * 250))
        container.rollback("s1")
        with container.mount() as view:
            shows_step(view, 0)
        container.remove()
        store.collect_garbage()
        assert os.listdir(store.layout.frozen) == []

    def test_no_room_for_another_on_it(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A link can have so many names only: the next stand on an empty upper on it."""
        monkeypatch.setattr(frozen, "_MOST_USES", 8)
        origin = store.create("base:1")
        step(origin, 0)
        forks = [origin.fork() for _ in range(20)]
        with origin.mount():
            forks += [origin.fork() for _ in range(10)]
        links = [entry.path for entry in os.scandir(store.layout.frozen) if entry.name.endswith(frozen.NAME_ENDING)]
        assert len(links) > 3 and all(os.lstat(link).st_nlink <= 9 for link in links)
        for one in (origin, *forks):
            with one.mount() as view:
                shows_step(view, 0)
        store.remove([origin, *forks])
        assert os.listdir(store.layout.frozen) == []

    def test_deeper_than_descriptors(self, store: Store) -> None:
        container = store.create("base:1")
        for number in range(3):
            step(container, number)
            container.snapshot(f"s{number}")
        with container.mount() as view:
            at = view
            for _ in range(400):
                at /= "d"
                at.mkdir()
            (at / "file").write_bytes(b"deep")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 200, limits[1]))
        try:
            for number in range(3, 5):
                step(container, number)
                container.snapshot(f"s{number}")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        assert len(frozen.stack(f"{directory_of(container)}/lower")) < 4
        with container.mount() as view:
            assert (view / "/".join(["d"] * 400) / "file").read_bytes() == b"deep"


@pytest.mark.parametrize("kind", ["file", "link", "whiteout"])
def test_joined_is_what_can_have_no_more_names(tmp_path: Path, kind: str) -> None:
    upper, joined = tmp_path / "upper", tmp_path / "joined"
    for made in (upper, joined):
        made.mkdir()
    first = upper / "first"
    if kind == "file":
        first.write_bytes(LARGE)
        os.setxattr(first, "user.own", b"1")
    elif kind == "link":
        first.symlink_to("target")
    else:
        os.mknod(first, stat.S_IFCHR, 0)
    (upper / "second").hardlink_to(first) if kind != "link" else os.link(first, upper / "second", follow_symlinks=False)
    other = tmp_path / "others"
    other.mkdir()
    try:
        for number in range(66_000):
            os.link(first, other / str(number), follow_symlinks=False)
        pytest.skip("files of this file system can have more names than a test makes")
    except OSError as error:
        assert error.errno == errno.EMLINK
    with open_fd(str(upper), os.O_RDONLY) as fd, open_fd(str(joined), os.O_RDONLY) as target:
        assert join_trees([fd], target) == (kind == "file")
    for name in ("first", "second"):
        status = (joined / name).lstat()
        assert (status.st_mode, status.st_rdev) == (first.lstat().st_mode, first.lstat().st_rdev)
        assert status.st_ino == (joined / "first").lstat().st_ino or kind == "link"
        assert status.st_ino != first.lstat().st_ino
    if kind == "file":
        assert (joined / "second").read_bytes() == LARGE and os.getxattr(joined / "second", "user.own") == b"1"
    elif kind == "link":
        assert os.readlink(joined / "second") == "target"


def as_an_earlier_version_left_it(container: Container, *, is_current: bool) -> None:
    """A container without a stack, with a snapshot "one": a clone, or the upper directory itself."""
    made = directory_of(container) / "snapshots/one"
    made.mkdir(parents=True)
    (made / "created").touch()
    if not is_current:
        with open_fd(directory_of(container), os.O_RDONLY) as fd:
            clone_tree(fd, "upper", fd, f"{made}/upper")


@pytest.mark.parametrize("is_current", [False, True])
@pytest.mark.parametrize("first", ["mount", "fork", "snapshot", "rollback", "diff", "move"])
def test_a_snapshot_of_an_earlier_version(store: Store, is_current: bool, first: str) -> None:
    container = store.create("base:1")
    with container.mount() as view:
        change(view)
        shown = told(view)
    before = said(container)
    as_an_earlier_version_left_it(container, is_current=is_current)
    if first == "move":
        container.move("extent")
        container.move("overlay")
    elif first in ("snapshot", "rollback"):
        getattr(container, first)("two" if first == "snapshot" else "one")
    else:
        use = getattr(container, first)()
        if first == "fork":
            assert said(use) == before
    container.umount()
    with container.mount() as view:
        (view / "new").write_bytes(b"other")
        (view / "junk").write_bytes(b"junk")
    assert {one.name for one in container.snapshots()} == {"one"} | ({"two"} if first == "snapshot" else set())
    for name in [one.name for one in container.snapshots()]:
        container.rollback(name)
        if first != "move":
            assert said(container) == before
        with container.mount() as view:
            assert {path: one[8] for path, one in told(view).items()} == {path: one[8] for path, one in shown.items()}
            (view / "junk").write_bytes(b"junk")
    store.collect_garbage()
    assert parts(container) == {"root", "upper", "work"}


KILLED = """if True:
    import os, signal, sys
    from layerstore import Store
    from layerstore.containers import snapshots
    root, name, call, left = sys.argv[1:4] + [int(sys.argv[4])]
    def count(event, arguments):
        global left
        if event in ("os.rename", "os.mkdir", "open", "os.listdir", "os.rmdir", "os.link", "os.symlink", "os.remove"):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    container = Store(root).container(name)
    sys.addaudithook(count)
    if call == "mount":
        container.mount()
        container.umount()
    else:
        getattr(container, call)("two" if call == "snapshot" else "one")
"""


@pytest.mark.parametrize("call", ["snapshot", "rollback", "mount", "remove_snapshot"])
@pytest.mark.parametrize("current", [False, True])
def test_killed_anywhere(store: Store, call: str, current: bool) -> None:
    """What is there afterwards is from before or after it, and works."""
    with Forked("from layerstore import Store\nfrom layerstore.containers import snapshots", KILLED) as killed:
        for step in range(1, 90):
            container = store.create("base:1")
            with container.mount() as view:
                (view / "state").write_bytes(b"one")
            container.snapshot("one")
            with container.mount() as view:
                (view / "state").write_bytes(b"other")
            container.snapshot("other")
            if current:
                container.rollback("other")
            if call == "mount":
                container.rollback("one")
            one = said(container, "one")
            status, output = killed.run(store.root, container.id, call, step)
            assert status in (0, -signal.SIGKILL), output
            container.umount()
            with container.mount() as view:
                (view / "scratch").write_bytes(b"scratch")
                assert (view / "state").read_bytes() in ((b"one",) if call == "mount" else (b"one", b"other"))
            names = [snapshot.name for snapshot in container.snapshots()]
            assert "other" in names
            if call != "remove_snapshot":
                container.rollback("one")
                assert said(container) == one
            container.rollback("other")
            with container.mount() as view:
                assert (view / "state").read_bytes() == b"other"
                assert not (view / "scratch").exists()
            store.collect_garbage()
            assert parts(container) == {"root", "upper", "work"}
            container.remove()
            assert os.listdir(store.layout.frozen) == []
            if status == 0:
                break
    assert step > 3


class Machine(RuleBasedStateMachine):
    """Containers of one image, against what their files should say."""

    store: Store

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, tuple[Container, dict[str, bytes], dict[str, dict[str, bytes]]]] = {}
        first = self.store.create("base:1")
        self.made[first.id] = (first, {}, {})

    def teardown(self) -> None:
        self.store.remove([container for container, _, _ in self.made.values()], force=True)

    def pick(self, number: int) -> tuple[Container, dict[str, bytes], dict[str, dict[str, bytes]]]:
        return self.made[sorted(self.made)[number % len(self.made)]]

    @rule(
        number=st.integers(0, 9), name=st.sampled_from("abcd"), content=st.binary(max_size=3), size=st.integers(1, 5000)
    )
    def write(self, number: int, name: str, content: bytes, size: int) -> None:
        container, files, _ = self.pick(number)
        with container.mount() as view:
            (view / name).write_bytes(content * size)
        files[name] = content * size

    @rule(number=st.integers(0, 9), name=st.sampled_from("abcd"))
    def unlink(self, number: int, name: str) -> None:
        container, files, _ = self.pick(number)
        if files.pop(name, None) is not None:
            with container.mount() as view:
                (view / name).unlink()

    @precondition(lambda self: len(self.made) < 6)
    @rule(number=st.integers(0, 9))
    def fork(self, number: int) -> None:
        container, files, _ = self.pick(number)
        fork = container.fork()
        self.made[fork.id] = (fork, dict(files), {})

    @rule(number=st.integers(0, 9), name=st.sampled_from("xyz"))
    def snapshot(self, number: int, name: str) -> None:
        container, files, kept = self.pick(number)
        if name not in kept:
            container.snapshot(name)
            kept[name] = dict(files)

    @rule(number=st.integers(0, 9), name=st.sampled_from("xyz"))
    def rollback(self, number: int, name: str) -> None:
        container, files, kept = self.pick(number)
        if name in kept:
            container.rollback(name)
            files.clear()
            files.update(kept[name])

    @rule(number=st.integers(0, 9), name=st.sampled_from("xyz"))
    def remove_snapshot(self, number: int, name: str) -> None:
        container, _, kept = self.pick(number)
        if kept.pop(name, None) is not None:
            container.remove_snapshot(name)

    @precondition(lambda self: len(self.made) > 1)
    @rule(number=st.integers(0, 9))
    def remove(self, number: int) -> None:
        container, _, _ = self.pick(number)
        container.remove()
        del self.made[container.id]

    @rule()
    def collect(self) -> None:
        self.store.collect_garbage()

    @rule(number=st.integers(0, 9))
    def look(self, number: int) -> None:
        container, files, _ = self.pick(number)
        with container.mount() as view:
            assert {name: (view / name).read_bytes() for name in "abcd" if (view / name).exists()} == files

    @invariant()
    def upper_directories_hold_it(self) -> None:
        for container, files, kept in self.made.values():
            assert {change.path for change in container.diff()} == {f"/{name}" for name in files}
            assert {one.name for one in container.snapshots()} == set(kept)


def test_any_sequence(store: Store) -> None:
    machine = type("Bound", (Machine,), {"store": store})
    checks = [HealthCheck.too_slow]
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine, settings=settings(max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=checks)
    )
