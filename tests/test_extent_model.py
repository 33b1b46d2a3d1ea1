"""The extent driver against the kernel: any operations, forks, snapshots, rollbacks and crashes, by hypothesis."""

import contextlib
import fcntl
import io
import os
import shutil
import signal
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from beside import rows
from entry_model import apply, expected_changes, expected_entries, found_of, image_nodes, told, without_sockets
from host_tree import Dump, HostTree, dump, in_container
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from stack_model import EXAMPLES

from layerstore import Store
from layerstore._core import mount
from layerstore.api import Container
from layerstore.errors import Conflict
from layerstore.extents import compaction, delta, recording, writable_layers

ROOT = os.geteuid() == 0
MAY_MOUNT = ROOT and mount.features().may_mount and mount.features().erofs and mount.features().overlay
LAYER = [
    Entry("dir", "d", mode=0o755, mtime=(10, 0)),
    Entry("dir", "d/sub", mode=0o750, mtime=(11, 5)),
    Entry("file", "d/sub/deep", data=b"deep" * 3000, mode=0o640, mtime=(12, 0)),
    Entry("file", "d/a", data=b"hello", mode=0o644, mtime=(13, 0), xattrs={"user.x": b"1"}),
    Entry("hardlink", "d/b", link="d/a"),
    Entry("hardlink", "c", link="d/a"),
    Entry("file", "a", data=b"A" * 5000, mode=0o4755, mtime=(14, 0)),
    Entry("file", "empty", mtime=(15, 0)),
    Entry("symlink", "l", link="d/sub", mode=0o777, mtime=(16, 0)),
    Entry("symlink", "up", link="d/a", mode=0o777, mtime=(17, 0)),
    Entry("dir", "e", mode=0o2775, mtime=(18, 0)),
    Entry("fifo", "e/fifo", mode=0o644, mtime=(19, 0)),
]
TAR = write_tar([Entry("dir", ".", mode=0o755, mtime=(9, 0)), *LAYER])
IMAGE = Image([TAR], ["model:1"])

NAMES = ["a", "b", "c", "d", "e", "l", "sub", "new"]
SAFE_TARGETS = ["a", "d", "d/a", "sub/deep", "l", "nowhere", "d/", "./d/../a", "."]
TARGETS = [*SAFE_TARGETS, "..", "../..", "/", "/d/sub", "/l/deep", "../../d/a", "/nowhere/x"] if ROOT else SAFE_TARGETS
names = st.sampled_from(NAMES)
paths = st.builds(
    lambda parts, slash: "/".join(parts) + slash,
    st.lists(
        st.one_of(names, names, names, st.sampled_from([".", "..", "deep", "fifo"] if ROOT else ["deep"])),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["", "", "", "", "", "/", "/."]),
)
sizes = st.one_of(st.integers(0, 20), st.integers(4000, 9000))
payloads = st.builds(lambda letter, count: bytes([letter]) * count, st.integers(97, 122), sizes)
attributes = st.sampled_from(["user.x", "user.y", *(["trusted.t"] if ROOT else []), "nonsense"])
modes = st.sampled_from(
    [0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o600, 0o1777, 0o6777] if ROOT else [0o644, 0o755, 0o700, 0o777]
)
times = st.integers(0, 10**18)


def extract(target: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(TAR)) as archive:
        for member in archive:
            archive.extract(member, target, numeric_owner=True, filter="fully_trusted", set_attrs=True)
            for key, value in member.pax_headers.items():
                if key.startswith("SCHILY.xattr."):
                    os.setxattr(target / member.name, key.removeprefix("SCHILY.xattr."), value.encode())
    for entry in reversed(LAYER):
        seconds, ns = entry.mtime
        if entry.kind != "hardlink":
            os.utime(target / entry.path, ns=(0, seconds * 10**9 + ns), follow_symlinks=False)
        if entry.kind == "dir":
            os.chmod(target / entry.path, entry.mode)
    os.utime(target, ns=(0, 9 * 10**9))
    os.chmod(target, 0o755)


def without_links(found: Dump) -> Dump:
    """Without the number of links: to overlayfs a file of the image has as many as there."""
    return {path: (facts[:3] + facts[4:], *rest) for path, (facts, *rest) in found.items()}


class World:
    """A container and the tree that it must be like. `history`: what it was at which length of its log."""

    def __init__(self, container: Container, host: HostTree) -> None:
        self.container = container
        self.host = host
        self.snapshots: dict[str, Path] = {}
        self.log = ""
        self.history: list[tuple[int, Dump]] = []
        self.least_bytes = 0

    def note(self) -> None:
        layer = self.container._layer()
        tree = layer._tree
        if tree is None or tree.writer is None:
            return
        if layer._log != self.log:
            self.log, self.history, self.least_bytes = layer._log, [], tree.writer.end
        self.history.append((tree.writer.end, self.host.dump()))

    def compare(self) -> None:
        shown = self.host.dump()
        assert dump(self.container, self.container.read_bytes) == shown
        self.compare_delta(shown)

    def compare_delta(self, shown: Dump) -> None:
        """What changed is what a look at everything finds, and makes the tree of the image."""
        moment = self.container._layer().moment()
        entries = list(delta.entries(moment))
        assert [found_of(entry) for entry in entries] == expected_entries(moment)
        assert self.container.diff() == expected_changes(moment)
        index, contents = self.container.image.index(), self.container._engine.contents
        assert told(apply(image_nodes(index, contents), entries, index, contents)) == without_sockets(shown)


class ExtentMachine(RuleBasedStateMachine):
    """Worlds are told by a number, taken modulo how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="extent-model-"))
        self.worlds: list[World] = []
        self.trees = 0

    @initialize()
    def begin(self) -> None:
        self.store = Store(self.top / "store", create=True)
        self.store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        tree = self.new_tree(None)
        extract(tree)
        self.worlds.append(World(self.store.create("model:1", driver="extent"), HostTree(tree)))
        self.worlds[0].compare()

    def new_tree(self, like: Path | None) -> Path:
        self.trees += 1
        tree = self.top / f"tree{self.trees}"
        if like is None:
            tree.mkdir()
        else:
            assert os.spawnlp(os.P_WAIT, "cp", "cp", "-a", str(like), str(tree)) == 0
        return tree

    def teardown(self) -> None:
        try:
            for world in self.worlds:
                world.compare()
            if self.worlds:
                self.store.remove(self.store.containers())
                assert rows(self.store.layout, "SELECT id FROM logs") == []
                self.store.collect_garbage()  # what rollbacks left before a crash
                assert os.listdir(self.store.layout.logs) == []
                self.store.close()
        finally:
            for world in self.worlds:
                world.host.close()
            shutil.rmtree(self.top)

    def world(self, number: int) -> World:
        return self.worlds[number % len(self.worlds)]

    # Operations on files

    def both(self, number: int, name: str, *arguments: Any, **options: Any) -> Any:
        world = self.world(number)
        try:
            expected: Any = world.host.call(name, *arguments, **options)
        except OSError as error:
            expected = error.errno
        try:
            found: Any = in_container(world.container, name, arguments, options)
        except OSError as error:
            found = error.errno
        assert found == expected, (name, arguments, options)
        world.note()
        return found

    worlds_numbers = st.integers(0, 3)

    @rule(n=worlds_numbers, path=paths, mode=modes)
    def mkdir(self, n: int, path: str, mode: int) -> None:
        self.both(n, "mkdir", path, mode)

    @rule(n=worlds_numbers, path=paths)
    def rmdir(self, n: int, path: str) -> None:
        self.both(n, "rmdir", path)

    @rule(n=worlds_numbers, path=paths)
    def unlink(self, n: int, path: str) -> None:
        self.both(n, "unlink", path)

    @rule(n=worlds_numbers, name=st.lists(names, min_size=1, max_size=2))
    def rmtree(self, n: int, name: list[str]) -> None:
        self.both(n, "rmtree", "/".join(name))

    @rule(n=worlds_numbers, old=paths, new=paths)
    def rename(self, n: int, old: str, new: str) -> None:
        self.both(n, "rename", old, new)

    @rule(n=worlds_numbers, old=paths, new=paths)
    def link(self, n: int, old: str, new: str) -> None:
        self.both(n, "link", old, new)

    @rule(n=worlds_numbers, text=st.sampled_from(TARGETS), path=paths)
    def symlink(self, n: int, text: str, path: str) -> None:
        self.both(n, "symlink", text, path)

    @rule(n=worlds_numbers, path=paths)
    def create(self, n: int, path: str) -> None:
        self.both(n, "create", path)

    @rule(n=worlds_numbers, path=paths, kind=st.sampled_from([0o010000, 0o100000, 0o140000]), mode=modes)
    def mknod(self, n: int, path: str, kind: int, mode: int) -> None:
        self.both(n, "mknod", path, kind | mode)

    @rule(n=worlds_numbers, path=paths, offset=sizes, data=payloads)
    def pwrite(self, n: int, path: str, offset: int, data: bytes) -> None:
        if not path.endswith("fifo"):
            self.both(n, "pwrite", path, offset, data)

    @rule(n=worlds_numbers, path=paths, size=sizes)
    def truncate(self, n: int, path: str, size: int) -> None:
        self.both(n, "truncate", path, size)

    @rule(n=worlds_numbers, path=paths, other=st.none() | paths, data=payloads, again=st.booleans())
    def change_what_lost_its_name(self, n: int, path: str, other: str | None, data: bytes, again: bool) -> None:
        """A file is opened, then unlinked or renamed over, then written to, or emptied."""
        if self.both(n, "hold", path) is None:
            if other is None:
                self.both(n, "unlink", path)
            else:
                self.both(n, "rename", other, path)
            self.both(n, "change_held", data)
        if again:
            self.reopen()

    @rule(n=worlds_numbers, path=paths, mode=modes)
    def chmod(self, n: int, path: str, mode: int) -> None:
        self.both(n, "chmod", path, mode)

    @precondition(lambda self: ROOT)
    @rule(n=worlds_numbers, path=paths, uid=st.integers(-1, 2), gid=st.integers(-1, 2), follow=st.booleans())
    def chown(self, n: int, path: str, uid: int, gid: int, follow: bool) -> None:
        self.both(n, "chown", path, uid, gid, follow_symlinks=follow)

    @rule(n=worlds_numbers, path=paths, ns=times, follow=st.booleans())
    def utime(self, n: int, path: str, ns: int, follow: bool) -> None:
        self.both(n, "utime", path, ns=(0, ns), follow_symlinks=follow)

    @rule(
        n=worlds_numbers,
        path=paths,
        name=attributes,
        value=payloads,
        flags=st.sampled_from([0, 0, 1, 2]),
        follow=st.booleans(),
    )
    def setxattr(self, n: int, path: str, name: str, value: bytes, flags: int, follow: bool) -> None:
        self.both(n, "setxattr", path, name, value[:100], flags, follow_symlinks=follow)

    @rule(n=worlds_numbers, path=paths, name=attributes, follow=st.booleans())
    def removexattr(self, n: int, path: str, name: str, follow: bool) -> None:
        self.both(n, "removexattr", path, name, follow_symlinks=follow)

    @rule(n=worlds_numbers, path=paths, follow=st.booleans())
    def look(self, n: int, path: str, follow: bool) -> None:
        self.both(n, "stat", path, follow)
        self.both(n, "readlink", path)
        self.both(n, "listdir", path)

    # States

    @precondition(lambda self: len(self.worlds) < 4)
    @rule(n=worlds_numbers)
    def fork(self, n: int) -> None:
        world = self.world(n)
        made = World(world.container.fork(), HostTree(self.new_tree(world.host.root)))
        self.protect(world)
        self.worlds.append(made)
        made.compare()

    def protect(self, world: World) -> None:
        """What was forked or remembered does not go in the crashes of this test: it was handed to the system."""
        if world.log:
            world.least_bytes = max(world.least_bytes, os.stat(self.store.layout.log(world.log)).st_size)

    @rule(n=worlds_numbers, name=names)
    def snapshot(self, n: int, name: str) -> None:
        world = self.world(n)
        if name in world.snapshots:
            world.container.remove_snapshot(name)
        world.container.snapshot(name)
        self.protect(world)
        world.snapshots[name] = self.new_tree(world.host.root)

    @precondition(lambda self: any(world.snapshots for world in self.worlds))
    @rule(data=st.data())
    def rollback(self, data: st.DataObject) -> None:
        world = data.draw(st.sampled_from([world for world in self.worlds if world.snapshots]))
        name = data.draw(st.sampled_from(sorted(world.snapshots)))
        world.container.rollback(name)
        world.host.close()
        world.host = HostTree(self.new_tree(world.snapshots[name]))
        world.log = ""
        world.compare()

    @rule(n=worlds_numbers)
    def record(self, n: int) -> None:
        """Its entries, written to a log, make the same container again; a second time with what the first has."""
        world = self.world(n)
        moment = world.container._layer().moment()
        entries = list(delta.entries(moment))
        recorder = recording.Recorder(self.store.layout, world.container.row.chain_id, moment.table.image)
        copies = [world.container.fork(), world.container.fork()]
        for copy in copies:
            log, length, uses = recorder.record(entries, share=True)
            copy._layer()._set_log(log, uses)
            assert os.stat(self.store.layout.log(log)).st_size == length
            assert dump(copy, copy.read_bytes) == without_sockets(world.host.dump())
            again = [found_of(entry) for entry in delta.entries(copy._layer().moment())]
            # Contents that are equal to the image's may have been found to be.
            expected = [
                found if found.lower is not None else found._replace(lower=there.lower)
                for found, there in zip(map(found_of, entries), again, strict=True)
            ]
            assert again == expected
        self.store.remove(copies)

    @rule(n=worlds_numbers)
    def commit(self, n: int) -> None:
        """Its entries as the tar of a layer make the same tree."""
        world = self.world(n)
        image = world.container.commit()
        made = self.store.create(image, driver="extent")
        assert dump(made, made.read_bytes) == without_sockets(world.host.dump())
        made.remove()
        with contextlib.suppress(Conflict):  # of nothing changed it is the image of all
            self.store.remove_image(image.id, force=True)

    @precondition(lambda self: MAY_MOUNT)
    @rule(n=worlds_numbers)
    def move(self, n: int) -> None:
        """To the overlay driver, where the kernel shows the same, and back, with its snapshots."""
        world = self.world(n)
        shown = world.host.dump()
        if shown != without_sockets(shown):
            return  # they are left behind
        container, changes = world.container, world.container.diff()
        container.move("overlay")
        assert container.diff() == changes
        with container.mount() as view, contextlib.chdir(view):
            found = dump(os, lambda path: Path(path).read_bytes())
        assert without_links(found) == without_links(shown)
        container.move("extent")
        container._layer().writing()
        world.note()
        self.protect(world)
        world.compare()

    @rule(n=worlds_numbers, path=paths, new=names, data=payloads)
    def kill(self, n: int, path: str, new: str, data: bytes) -> None:
        """A process changes something and ends by SIGKILL, with data that it handed over to nobody."""
        world = self.world(n)
        self.store.close()
        pid = os.fork()
        if pid == 0:
            try:
                with Store(self.top / "store") as store:
                    container = store.container(world.container.id)
                    with contextlib.suppress(OSError):
                        container.mkdir(path)
                    with contextlib.suppress(OSError):
                        file = container.open(new, "r+b", 0)
                        file.write(data)
                    os.kill(os.getpid(), signal.SIGKILL)
            finally:
                os._exit(1)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        with contextlib.suppress(OSError):
            world.host.call("mkdir", path)
        self.open_again()
        world.log = ""
        world.compare()

    @rule()
    def sync(self) -> None:
        world = self.worlds[0]
        tree = world.container._layer()._tree
        if tree is not None and tree.writer is not None:
            world.container.sync()
            world.least_bytes = tree.writer.length

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.open_again()
        for world in self.worlds:
            world.compare()

    def open_again(self) -> None:
        self.store = Store(self.top / "store")
        for world in self.worlds:
            world.container = self.store.container(world.container.id)

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        """Everything that the process has in memory is gone, and one log ends anywhere after what was synced."""
        lengths = {world.log: os.stat(self.store.layout.log(world.log)).st_size for world in self.worlds if world.log}
        assert self.store._engine.layers is not None or not lengths
        for world in self.worlds:
            tree = world.container._layer()._tree
            if tree is not None and tree.writer is not None:
                # The children have the descriptor, too, and would keep the lock.
                fcntl.flock(tree.logs.descriptors[tree.log_number].fd, fcntl.LOCK_UN)
        self.store._engine.layers = None
        self.store._engine.database.close()
        victim = data.draw(st.sampled_from(self.worlds))
        if victim.log:
            lengths[victim.log] = data.draw(
                st.integers(min(victim.least_bytes, lengths[victim.log]), lengths[victim.log])
            )
            os.truncate(self.store.layout.log(victim.log), lengths[victim.log])
        self.open_again()
        for world in self.worlds:
            if world.log and world.history:
                self.survive(world, lengths[world.log])
            world.compare()

    def survive(self, world: World, length: int) -> None:
        ends = [(end, told) for end, told in world.history if end <= length]
        assert ends, (length, world.least_bytes, [end for end, _ in world.history])
        shown = dump(world.container, world.container.read_bytes)
        assert shown == ends[-1][1]
        world.history = ends
        for socket in shown.keys() - without_sockets(shown).keys():
            world.container.unlink(socket)  # a copy leaves them out
        tree = self.new_tree(None)
        world.container.copy_out("/", tree, keep_owner=ROOT)
        world.host.close()
        world.host = HostTree(tree)
        world.note()

    @invariant()
    def is_like_the_host(self) -> None:
        for world in self.worlds[:1]:
            world.compare()


def run_machine() -> None:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    run_state_machine_as_test(
        ExtentMachine,
        settings=settings(
            max_examples=EXAMPLES // 10, stateful_step_count=60, deadline=None, suppress_health_check=checks
        ),
    )


def test_a_container_is_what_the_kernel_would_make_of_it() -> None:
    run_machine()


def test_so_it_is_where_logs_are_written_anew_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, limits in (
        (compaction, {"_MAX_LOGS": 2, "_WORTHWHILE_BYTES": 500, "_COPIED_BYTES": 3000}),
        (recording, {"PACK_THRESHOLD_BYTES": 500}),
        (writable_layers, {"_OPEN_LAYERS": 2, "_CACHED_STATES": 1}),
    ):
        for name, value in limits.items():
            monkeypatch.setattr(module, name, value)
    run_machine()
