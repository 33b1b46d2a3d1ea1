"""Containers of the extent driver: states, what happens in crashes and to what other processes do, what it costs on
disk."""

import contextlib
import errno
import io
import itertools
import linecache
import os
import re
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from beside import rows
from host_tree import acl, below, dump, small_tree
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling

from layerstore import Store
from layerstore._core import log as kinds
from layerstore._core.extent_io import LogWriter
from layerstore._core.log import Record
from layerstore.api import Container
from layerstore.api.engine import Engine
from layerstore.errors import Conflict, CorruptError, InvalidInput, NotFound, Unsupported
from layerstore.extents import applying, compaction, log, log_rows, open_files, table, tree, writable_layers
from layerstore.extents.applying import Applier
from layerstore.extents.writable_layers import Layer
from layerstore.space import garbage
from layerstore.store import db, durable, sums
from layerstore.store.layout import Layout

ROOT = Path(__file__).parent.parent
NOBODY = 65534
LARGE = bytes(range(256)) * 4096
IMAGE = Image(
    [
        write_tar(
            [
                Entry("file", "small", data=b"small"),
                Entry("file", "large", data=LARGE, mode=0o600),
                Entry("dir", "d/e", mode=0o755),
                Entry("file", "d/e/f", data=b"f"),
                Entry("hardlink", "again", link="d/e/f"),
            ]
        )
    ],
    ["app:1"],
)


@pytest.fixture
def filled(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        yield store


Reopened = Callable[..., list[Any]]


@pytest.fixture
def reopened(filled: Store) -> Iterator[Reopened]:
    """Closes the store, and opens it anew: gives that, and containers as it has them, which it reads from their logs.
    Those of before are of no use then."""
    with contextlib.ExitStack() as opened:
        stores = [filled]

        def again(*containers: Container) -> list[Any]:
            stores[-1].close()
            stores.append(opened.enter_context(Store(filled.root)))
            return [stores[-1], *(stores[-1].container(container.id) for container in containers)]

        yield again


@pytest.fixture
def container(filled: Store) -> Container:
    return filled.create("app:1", driver="extent")


def used_bytes(store: Store) -> int:
    return sum(path.stat().st_blocks * 512 for path in Path(store.layout.logs).iterdir())


def log_of(container: Container) -> Path:
    layout = Layout(container.root.parents[2])
    ((log,),) = rows(layout, "SELECT log FROM containers WHERE id = ?", container.id)
    return Path(layout.log(log))


def logs_below(container: Container) -> list[str]:
    """The logs that its own goes on from, and those that these need."""
    query = (
        "WITH RECURSIVE needed (id) AS (SELECT used FROM log_uses WHERE log = ? "
        "UNION SELECT used FROM needed JOIN log_uses ON log = id) SELECT id FROM needed"
    )
    return [log for (log,) in rows(Layout(container.root.parents[2]), query, log_of(container).name)]


def in_another_process(store: Store, code: str) -> subprocess.CompletedProcess[str]:
    program = f"import os, sys\nfrom layerstore import Store\nstore = Store({str(store.root)!r})\n{code}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)


# What it costs


def test_a_small_write_and_chmod_copy_nothing(filled: Store, container: Container) -> None:
    before = used_bytes(filled)
    container.chmod("/large", 0o644)
    container.chown("/large", 1, 1)
    container.sync()
    assert used_bytes(filled) - before <= 4096
    with container.open("/large", "r+b", 0) as file:
        file.seek(500_000)
        file.write(bytes(4096))
    container.sync()
    assert used_bytes(filled) - before <= 16384
    assert container.read_bytes("/large") == LARGE[:500_000] + bytes(4096) + LARGE[504_096:]


def test_a_log_that_is_mostly_dead_is_written_anew(filled: Store, container: Container, reopened: Reopened) -> None:
    container.write_bytes("/kept", b"kept" * 1000)
    container.setxattr("/small", "user.a", b"1")
    container.rename("/d", "/moved")
    container.rename("/small", "/swap")
    container.rename("/large", "/small")
    container.rename("/swap", "/large")
    container.unlink("/again")
    for _ in range(10):
        container.write_bytes("/f", os.urandom(1 << 20))
    with container.open("/small", "r+b", 0) as file:
        file.seek(100)
        file.write(b"x" * 5000)
    expected = told(container)
    filled, container = reopened(container)
    before, log = used_bytes(filled), log_of(container)
    container.mkdir("/new")
    assert log_of(container) != log
    assert not log.exists()
    assert used_bytes(filled) < before / 5
    container.rmdir("/new")
    assert told(container) == expected
    filled, container = reopened(container)
    assert told(container) == expected


def told(container: Container) -> dict[str, object]:
    found = dump(container, container.read_bytes)
    return {path: facts[1:] if path == "." else facts for path, facts in found.items()}


def test_what_a_snapshot_needs_is_not_compacted(filled: Store, container: Container, reopened: Reopened) -> None:
    container.write_bytes("/f", b"old")
    container.snapshot("s")
    for _ in range(6):
        container.write_bytes("/f", os.urandom(1 << 20))
    _, container = reopened(container)
    log = log_of(container)
    container.mkdir("/new")
    assert log_of(container) == log
    container.rollback("s")
    assert container.read_bytes("/f") == b"old"


def test_many_generations_of_forks(filled: Store, container: Container, reopened: Reopened) -> None:
    """Each goes on from the one before, which is removed; what is open at the end does not depend on how many there
    were."""
    for number in range(150):
        container.write_bytes(f"/f{number % 20}", b"%d" % number)
        container, before = container.fork(), container
        before.remove()
    assert sorted(container.read_bytes(f"/f{number}") for number in range(20)) == sorted(
        b"%d" % n for n in range(130, 150)
    )
    assert len(logs_below(container)) < 100
    _, container = reopened(container)
    assert container.read_bytes("/f0") == b"140"


def test_a_fork_of_an_unwritten_container_does_not_need_it(container: Container) -> None:
    fork = container.fork().fork()
    assert logs_below(fork) == []


# Forks, snapshots


def test_forks_go_their_own_ways(filled: Store, container: Container) -> None:
    container.write_bytes("/f", b"0")
    forks = container.fork(count=3)
    container.fork(name="special")
    container.write_bytes("/f", b"1")
    for number, fork in enumerate(forks):
        assert fork.read_bytes("/f") == b"0"
        fork.write_bytes("/f", b"fork %d" % number)
        fork.unlink("/small")
    assert [fork.read_bytes("/f") for fork in forks] == [b"fork 0", b"fork 1", b"fork 2"]
    assert container.exists("/small")
    assert filled.container("special").read_bytes("/f") == b"0"
    with pytest.raises(Conflict, match="there is a container named 'special' already"):
        container.fork(name="special")
    with pytest.raises(InvalidInput, match="count is at least 1"):
        container.fork(count=0)


def test_a_removed_container_s_forks_live(filled: Store, container: Container, reopened: Reopened) -> None:
    container.write_bytes("/f", b"data")
    fork = container.fork()
    log = log_of(container)
    container.remove()
    assert log.exists()
    with pytest.raises(NotFound, match="was removed"):
        container.read_bytes("/f")
    with pytest.raises(NotFound, match="was removed"):
        container.fork()
    filled, fork = reopened(fork)
    assert fork.read_bytes("/f") == b"data"
    filled.collect_garbage()
    assert fork.read_bytes("/f") == b"data"
    fork.remove()
    assert used_bytes(filled) == 0


def test_snapshots_are_listed_and_removed(filled: Store, container: Container) -> None:
    container.snapshot("before")
    container.write_bytes("/f", b"1")
    container.snapshot("after")
    assert [snapshot.name for snapshot in container.snapshots()] == ["before", "after"]
    with pytest.raises(Conflict, match="has a snapshot 'after' already"):
        container.snapshot("after")
    with pytest.raises(InvalidInput, match="is not a name for a snapshot"):
        container.snapshot("no/name")
    container.rollback("before")
    assert not container.exists("/f")
    container.rollback("after")
    assert container.read_bytes("/f") == b"1"
    container.remove_snapshot("before")
    container.remove_snapshot("after")
    assert container.snapshots() == []
    assert container.read_bytes("/f") == b"1"
    for call in (container.rollback, container.remove_snapshot):
        with pytest.raises(NotFound, match="has no snapshot 'after'"):
            call("after")


def test_a_file_that_was_open_during_a_rollback_is_stale(container: Container) -> None:
    container.write_bytes("/f", b"1")
    container.snapshot("s")
    with container.open("/f", "r+b", 0) as file:
        container.rollback("s")
        for call in (lambda: file.write(b"2"), lambda: file.read(1), lambda: file.seek(0), lambda: file.truncate(0)):
            with pytest.raises(OSError, match="tale file handle") as caught:
                call()
            assert caught.value.errno == errno.ESTALE
    assert container.read_bytes("/f") == b"1"


def test_who_reads_keeps_its_descriptor_when_another_thread_begins_to_write(
    filled: Store, container: Container, reopened: Reopened
) -> None:
    """It may have been told the number and not have called the kernel yet."""
    container.write_bytes("/f", b"data")
    _, container = reopened(container)
    with container.open("/f", "rb", 0):
        logs = container._layer().reading().logs
        fd = logs.descriptors[0].fd
        container.write_bytes("/g", b"more")
        assert container._layer().writing().logs is logs
        assert logs.descriptors[0].fd != fd
        assert os.path.samestat(os.fstat(fd), os.stat(log_of(container)))


def test_another_thread_lets_go_of_images_meanwhile(filled: Store, container: Container, meddle: Meddling) -> None:
    """As something was collected."""
    filled.import_rootfs(io.BytesIO(write_tar([Entry("file", "gone", data=b"gone")])), "gone:1")

    def collect() -> None:
        with Store(filled.root) as other:
            other.remove_image("gone:1")
            assert other.collect_garbage().contents == 1
        filled.images()

    meddle.after(Engine, "image", collect)
    assert container.read_bytes("/small") == b"small"


def test_what_another_thread_has_written_is_in_what_is_moved(container: Container, meddle: Meddling) -> None:
    """Whatever was written without an error, also between the moment of the move and the end of writing."""
    container.write_bytes("/f", b"1")
    written = []

    def write() -> None:
        with contextlib.suppress(Conflict):
            container.write_bytes("/f", b"2")
            written.append(True)

    def begin_to_write() -> None:
        thread.start()
        thread.join(0.2)

    thread = threading.Thread(target=write)
    meddle.after(Layer, "moment", begin_to_write)
    with container._layer().still():
        thread.join()
        assert not written


# Processes and crashes


def test_another_process_may_look_and_fork_but_not_write(
    filled: Store, container: Container, reopened: Reopened
) -> None:
    container.write_bytes("/f", b"1")
    name = container.id
    looking = f"c = store.container({name!r}); print(c.read_text('/f'), c.fork().read_text('/f')); c.snapshot('s')"
    assert in_another_process(filled, looking).stdout == "1 1\n"
    for code in ("c.write_bytes('/f', b'2')", "c.rollback('s')", "store.remove([c])"):
        failed = in_another_process(filled, f"c = store.container({name!r})\n{code}")
        assert "Conflict: another process writes to container" in failed.stderr, code
    filled, container = reopened(container)
    assert in_another_process(filled, f"store.container({name!r}).write_bytes('/f', b'2'); store.close()").stderr == ""
    assert container.read_bytes("/f") == b"2"
    assert in_another_process(filled, f"store.container({name!r}).rollback('s')").stderr == ""
    assert container.read_bytes("/f") == b"1"


def test_a_forked_process_does_not_write_beside_its_parent(
    filled: Store, container: Container, reopened: Reopened
) -> None:
    """It has all that the parent has in memory, and the file of the log with its lock."""
    container.write_bytes("/f", b"of both")
    file = container.open("/f", "r+b", 0)
    file.write(b"gathered")

    def child() -> None:
        assert container.read_bytes("/f") == b"of both"
        with pytest.raises(Conflict, match="another process writes"):
            container.write_bytes("/of_the_child", b"")
        with pytest.raises(OSError, match="tale file handle"):
            file.write(b"of the child")
        file.close()
        filled.close()

    assert in_a_fork(child) == 0
    container.write_bytes("/of_the_parent", b"")
    failed = in_another_process(filled, f"store.container({container.id!r}).mkdir('/d/other')")
    assert "Conflict: another process writes" in failed.stderr
    file.close()
    filled, container = reopened(container)
    assert in_a_fork(lambda: container.mkdir("/made_by_the_child")) == 0
    assert container.read_bytes("/f") == b"gathered"
    assert container.listdir("/") == ["again", "d", "f", "large", "made_by_the_child", "of_the_parent", "small"]


def test_a_fork_while_another_thread_works_leaves_no_lock_behind(container: Container) -> None:
    container.write_bytes("/f", b"1")
    layer = container._layer()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with layer._lock, layer.writing().lock:
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def child() -> None:
        assert container.read_bytes("/f") == b"1"

    try:
        assert in_a_fork(child) == 0
    finally:
        done.set()
        thread.join()


def in_a_fork(do: Callable[[], object]) -> int:
    """Do something in a child process; its status, 0 where that neither raised nor hung."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)
        try:
            do()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]


def test_what_was_flushed_survives_a_kill(filled: Store, container: Container) -> None:
    code = f"""c = store.container({container.id!r})
c.mkdir("/made")
f = c.open("/made/f", "wb"); f.write(b"flushed"); f.flush()
g = c.open("/made/g", "wb"); g.write(b"x" * 1000)
os.kill(os.getpid(), 9)"""
    assert in_another_process(filled, code).returncode == -9
    assert container.read_bytes("/made/f") == b"flushed"
    container.write_bytes("/made/h", b"h")
    assert container.listdir("/made") == ["f", "g", "h"]


def test_a_torn_record_is_cut_off(filled: Store, container: Container, reopened: Reopened) -> None:
    container.write_bytes("/f", b"1")
    container.mkdir("/gone")
    _, container = reopened(container)
    log = log_of(container)
    with open(log, "r+b") as file:
        file.truncate(log.stat().st_size - 3)
    assert not container.exists("/gone")
    container.mkdir("/other")
    _, container = reopened(container)
    assert log_of(container) == log
    assert container.listdir("/") == ["again", "d", "f", "large", "other", "small"]


@pytest.mark.parametrize("path", ["/small", "/d/e/f", "/new", "/d/new"])
@pytest.mark.parametrize("by", ["unlink", "rename", "rmtree"])
@pytest.mark.parametrize("change", ["write", "truncate"])
def test_what_is_written_to_a_file_without_a_name_does_no_harm(
    filled: Store, container: Container, path: str, by: str, change: str, reopened: Reopened
) -> None:
    container.open(path, "ab", 0).close()
    with container.open(path, "r+b", 0) as file:
        if by == "rmtree":
            container.makedirs("/top")
            container.rename(path, "/top/f")
            container.rmtree("/top")
        elif by == "rename":
            container.rename("/large", path)
        else:
            container.unlink(path)
        forks, before = [container.fork()], told(container)
        file.write(b"b" * 100) if change == "write" else file.truncate(3)
        container.snapshot("after")
        forks.append(container.fork())
        shown, changed = told(container), container.diff()
    _, container, *forks = reopened(container, *forks)
    assert told(container) == shown
    assert container.diff() == changed
    tree = container._layer().reading()
    assert all(inode.nlink for inode in tree.table.own.values())
    assert [told(fork) for fork in forks] == [before, shown]
    container.rollback("after")
    assert told(container) == shown
    container._layer()._compact(container._layer().writing())
    assert told(container) == shown
    _, container = reopened(container)
    assert told(container) == shown
    assert container.diff() == changed


def test_a_record_of_what_there_is_not_is_damage(filled: Store, container: Container, reopened: Reopened) -> None:
    container.mkdir("/made")
    _, container = reopened(container)
    log = log_of(container)
    with log.open("r+b") as file:
        writer = LogWriter(file.fileno(), log.stat().st_size, bytes.fromhex(log.name), 0)
        writer.append([Record(kinds.ENTRY, 0, value=2**32 + 7, payload=b"name")])
    with pytest.raises(CorruptError, match="does not fit those before it"):
        container.listdir()


def test_what_a_fork_goes_on_from_is_not_written_over_after_a_crash(
    filled: Store, container: Container, reopened: Reopened
) -> None:
    container.write_bytes("/f", b"1")
    container.mkdir("/lost")
    fork = container.fork()
    _, container, fork = reopened(container, fork)
    log = log_of(container)
    with open(log, "r+b") as file:
        file.truncate(log.stat().st_size - 3)
    container.mkdir("/after")
    assert log_of(container) != log
    assert not fork.exists("/after")
    assert fork.read_bytes("/f") == container.read_bytes("/f") == b"1"
    _, container, fork = reopened(container, fork)
    assert not fork.exists("/after")
    assert container.exists("/after")


@pytest.mark.parametrize("is_synced", [True, False])
def test_a_bit_that_changed_takes_nothing_from_what_is_behind_it(
    filled: Store, container: Container, is_synced: bool, reopened: Reopened
) -> None:
    """Once it was synced it is damage; before that it might be the work of a power cut."""
    container.write_bytes("/f", b"1")
    container.snapshot("s")
    container.mkdir("/damaged")
    end = log_of(container).stat().st_size
    if is_synced:
        container.sync()
    container.mkdir("/behind")
    _, container = reopened(container)
    log = log_of(container)
    data = bytearray(log.read_bytes())
    data[end - 4] ^= 1
    log.write_bytes(data)
    if is_synced:
        for call in (lambda: container.listdir("/"), lambda: container.mkdir("/new"), container.fork):
            with pytest.raises(CorruptError, match="a log is damaged, after it was whole on the disk"):
                call()
        container.rollback("s")
    container.mkdir("/new")
    assert log_of(container) != log
    assert log.read_bytes() == data
    _, container = reopened(container)
    assert container.listdir("/") == ["again", "d", "f", "large", "new", "small"]


def test_damage_in_a_header_and_a_missing_log_are_told(filled: Store, container: Container) -> None:
    log = log_of(container)
    data = bytearray(log.read_bytes())
    log.write_bytes(data[:50])
    with pytest.raises(CorruptError, match="ends in its header"):
        container.listdir("/")
    data[20] ^= 1
    log.write_bytes(data)
    with pytest.raises(CorruptError):
        container.listdir("/")
    log.unlink()
    with pytest.raises(CorruptError, match="is missing"):
        container.listdir("/")
    filled.remove([container])


@contextlib.contextmanager
def files_of_at_most(size_bytes: int) -> Iterator[None]:
    """Writing more to a file fails, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_loses_nothing(filled: Store, container: Container, reopened: Reopened) -> None:
    container.write_bytes("/f", b"before")
    with files_of_at_most(1 << 20):
        with pytest.raises(OSError, match="large"), container.open("/f", "r+b", 0) as file:
            file.write(bytes(2 << 20))
        with pytest.raises(OSError, match="large"):
            container.write_bytes("/g", bytes(2 << 20))
    assert (container.read_bytes("/f"), container.read_bytes("/g")) == (b"before", b"")
    container.write_bytes("/g", b"after")
    _, container = reopened(container)
    assert container.read_bytes("/g") == b"after"


def test_on_a_full_disk_all_containers_are_closed_and_the_first_error_raised(filled: Store) -> None:
    names = [made.id for made in filled.create("app:1", driver="extent", count=2)]
    store = Store(filled.root)
    files = [store.container(name).open("/f", "wb", 0) for name in names]
    files[0].write(b"gathered")
    files[1].write(bytes(100_000))
    with files_of_at_most(50_000), pytest.raises(OSError, match="large"):
        store.close()
    first, second = map(filled.container, names)
    assert (first.read_bytes("/f"), second.read_bytes("/f")) == (b"gathered", b"")
    for container in (first, second):
        container.write_bytes("/g", b"nobody else writes to it")


def test_on_a_full_disk_a_log_is_not_written_anew(filled: Store, container: Container, reopened: Reopened) -> None:
    container.write_bytes("/kept", LARGE)
    container = mostly_dead(container, reopened)
    log = log_of(container)
    before = os.listdir(filled.layout.logs)
    rewrite = compaction.rewrite
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(compaction, "rewrite", lambda *given: _with_little_room(rewrite, *given))
        container.unlink("/small")
    assert log_of(container) == log
    assert os.listdir(filled.layout.logs) == before
    filled, container = reopened(container)
    assert container.read_bytes("/kept") == LARGE
    assert not container.exists("/small")


def _with_little_room(do: Callable[..., Any], *given: Any) -> Any:
    with files_of_at_most(1 << 16):
        return do(*given)


def test_a_rollback_that_is_interrupted_when_it_has_committed(container: Container, meddle: Meddling) -> None:
    container.write_bytes("/f", b"1")
    container.snapshot("s")
    container.write_bytes("/f", b"2")
    meddle.interrupt_commits()
    with pytest.raises(KeyboardInterrupt):
        container.rollback("s")
    assert container.read_bytes("/f") == b"1"
    container.write_bytes("/f", b"3")
    assert container.read_bytes("/f") == b"3"


def test_a_compaction_that_is_interrupted_when_it_has_committed(
    filled: Store, container: Container, meddle: Meddling, reopened: Reopened
) -> None:
    container = mostly_dead(container, reopened)
    log = log_of(container)
    meddle.interrupt_commits()
    with pytest.raises(KeyboardInterrupt):
        container.mkdir("/new")
    assert log_of(container) != log
    container.mkdir("/new")
    _, container = reopened(container)
    assert container.listdir("/") == ["again", "d", "f", "large", "new", "small"]


def mostly_dead(container: Container, reopened: Reopened) -> Container:
    """Have its log be one that is written anew when it is next opened for writing; as the store has it then."""
    for _ in range(4):
        container.write_bytes("/f", os.urandom(1 << 20))
    _, container = reopened(container)
    return container


# Power cuts


class Cut:
    """What a power cut leaves that comes after `durable`: of the database what was there then, of the files all."""

    def __init__(self, store: Store, directory: Path) -> None:
        self.root = Path(store.root)
        self.directory = directory

    def durable(self) -> None:
        """All is durable that was committed until now."""
        for path in self._database(self.root):
            shutil.copy(path, self.directory)

    def store(self) -> Store:
        root = self.directory / "store"
        shutil.copytree(self.root, root)
        for path in self._database(root):
            path.unlink()
        for path in self._database(self.directory):
            shutil.copy(path, root)
        return Store(root)

    def _database(self, directory: Path) -> list[Path]:
        return [path for path in directory.glob("layerstore.db*") if not path.name.endswith("-shm")]


@pytest.fixture
def cut(filled: Store, tmp_path: Path) -> Cut:
    directory = tmp_path / "cut"
    directory.mkdir()
    return Cut(filled, directory)


def synced(container: Container) -> Path:
    """Make a snapshot "clean", and have something durable in a log that this does not need, which is returned."""
    container.snapshot("clean")
    container.rollback("clean")
    container.write_bytes("/f", b"synced")
    container.sync()
    return log_of(container)


def test_a_power_cut_after_a_rollback(filled: Store, container: Container, cut: Cut) -> None:
    log = synced(container)
    cut.durable()
    container.rollback("clean")
    container.write_bytes("/f", b"not synced")
    with cut.store() as after:
        assert after.container(container.id).read_bytes("/f") == b"synced"
    container.sync()
    assert not log.exists()


def test_a_power_cut_after_a_snapshot_was_removed(filled: Store, container: Container, cut: Cut) -> None:
    log = synced(container)
    container.snapshot("s")
    container.rollback("clean")
    container.sync()
    cut.durable()
    container.remove_snapshot("s")
    with cut.store() as after:
        again = after.container(container.id)
        again.rollback("s")
        assert again.read_bytes("/f") == b"synced"
    filled.close()
    assert not log.exists()


def test_much_that_rollbacks_leave_is_removed_at_once(filled: Store, container: Container) -> None:
    container.snapshot("clean")
    for _ in range(100):
        container.write_bytes("/f", b"1")
        container.rollback("clean")
    assert len(os.listdir(filled.layout.logs)) < 70
    container.write_bytes("/f", bytes(1 << 26))
    log = log_of(container)
    container.rollback("clean")
    assert not log.exists()
    assert container.listdir("/") == ["again", "d", "large", "small"]


def test_what_a_rollback_leaves_is_garbage_where_it_cannot_be_removed(
    filled: Store, container: Container, meddle: Meddling
) -> None:
    container.snapshot("clean")
    container.rollback("clean")
    container.write_bytes("/f", bytes(1 << 26))
    log = log_of(container)

    meddle.fail(db.Database, "sync", errno.ENOSPC, ALWAYS)
    container.rollback("clean")
    filled.close()
    assert log.exists()
    meddle.undo()
    with Store(filled.root) as again:
        again.collect_garbage()
    assert not log.exists()


def test_collecting_garbage_makes_durable_that_nothing_needs_a_log(
    filled: Store, container: Container, meddle: Meddling
) -> None:
    log = synced(container)
    container.rollback("clean")
    there: list[bool] = []
    meddle.after(db.Database, "sync", lambda: there.append(log.exists()), ALWAYS)
    filled.collect_garbage()
    assert there == [True]
    assert not log.exists()


def test_collecting_garbage_while_another_process_removes_it(
    filled: Store, container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Store(filled.root)
    log = synced(other.container(container.id))
    other.container(container.id).rollback("clean")
    sweep, there = garbage._sweep, []

    def sweeping(directory: str, names: re.Pattern[str], keep: Callable[[str], bool]) -> None:
        def later(name: str) -> bool:
            there.append(log.exists())
            other.close()
            return keep(name)

        sweep(directory, names, later if directory == filled.layout.logs else keep)

    monkeypatch.setattr(garbage, "_sweep", sweeping)
    filled.collect_garbage()
    assert there[0] and not log.exists()
    assert container.listdir("/") == ["again", "d", "large", "small"]


def test_a_log_that_was_written_anew_is_durable_before_the_former_is_removed(
    filled: Store, container: Container, meddle: Meddling, reopened: Reopened
) -> None:
    container = mostly_dead(container, reopened)
    log = log_of(container)
    done: list[object] = []
    meddle.noted(durable, "sync_directory", lambda path: path, done)
    meddle.noted(db.Database, "transaction", lambda _, durable=True: durable, done)
    meddle.noted(log_rows, "unlink", lambda *_: log.exists(), done)
    container.mkdir("/new")
    assert done == [filled.layout.logs, True, True]
    assert not log.exists()


def test_what_is_committed_is_durable_after_a_sync_that_changes_nothing(filled: Store, meddle: Meddling) -> None:
    """SQLite writes nothing, and so syncs nothing, for a transaction that leaves all as it is."""
    synced = meddle.noted(os, "fdatasync", lambda fd: os.readlink(f"/proc/self/fd/{fd}"))
    with contextlib.closing(db.Database(filled.layout.database, filled.layout.database_lock)) as database:
        database.sync()
    assert synced == [filled.layout.database + "-wal"]


def test_a_container_of_which_the_log_was_lost_is_rolled_back(
    filled: Store, container: Container, reopened: Reopened
) -> None:
    container.write_bytes("/f", b"1")
    container.snapshot("s")
    container.rollback("s")
    _, container = reopened(container)
    log_of(container).unlink()
    with pytest.raises(CorruptError, match="rollback"):
        container.listdir("/")
    container.rollback("s")
    assert container.read_bytes("/f") == b"1"


# Races with other processes, of which a store of its own stands for one

LOOKS: dict[str, Callable[[Container], object]] = {
    "listdir": lambda container: container.listdir("/"),
    "write": lambda container: container.write_bytes("/g", b"g"),
    "fork": lambda container: container.fork().listdir("/"),
    "snapshot": lambda container: container.snapshot("now"),
    "diff": lambda container: container.diff(),
    "rollback": lambda container: container.rollback("then"),
}


@pytest.mark.parametrize(
    ("look", "owner", "name"),
    [(look, writable_layers, "open_log") for look in LOOKS]
    + [(look, db.Database, "transaction") for look in ("fork", "snapshot")],
)
def test_another_process_rolls_back_while_this_one_looks(
    filled: Store, container: Container, meddle: Meddling, look: str, owner: Any, name: str, reopened: Reopened
) -> None:
    container.write_bytes("/f", b"then")
    container.snapshot("then")
    container.rollback("then")
    container.write_bytes("/f", b"now, in a log that nothing else needs")
    container.chmod("/f", 0o600)
    filled, container = reopened(container)
    log = log_of(container)

    def roll_back() -> None:
        with Store(filled.root) as other:
            other.container(container.id).rollback("then")
        assert not log.exists()

    meddle.before(owner, name, roll_back)
    LOOKS[look](container)
    assert container.read_bytes("/f") == b"then"
    if look == "snapshot":
        container.rollback("now")
        assert container.read_bytes("/f") == b"then"


@pytest.mark.parametrize("known", [True, False])
def test_a_fork_while_another_process_appends_ends_at_the_last_whole_operation(
    filled: Store, container: Container, known: bool
) -> None:
    """That one may not get it done: on a full disk it takes it back, and appends something else later."""
    with Store(filled.root) as writing:
        writer = writing.container(container.id)
        writer.mkdir("/before")
        log = log_of(container)
        before = log.read_bytes()
        log.write_bytes(before + bytes(1000))
        if known:
            assert container.exists("/before")
        fork = container.fork()
        container.snapshot("s")
        log.write_bytes(before)
        writer.mkdir("/after")
        assert log_of(container) == log
        assert fork.exists("/before")
        assert not fork.exists("/after")
    container.rollback("s")
    assert not container.exists("/after")


def test_a_snapshot_that_another_process_removes_while_it_is_rolled_back_to(
    filled: Store, container: Container, meddle: Meddling
) -> None:
    container.write_bytes("/f", b"1")
    container.snapshot("s")
    container.rollback("s")
    container.write_bytes("/f", b"2")
    container.snapshot("t")
    container.rollback("s")

    def remove() -> None:
        with Store(filled.root) as other:
            other.container(container.id).remove_snapshot("t")

    meddle.before(db.Database, "transaction", remove)
    with pytest.raises(NotFound, match="no snapshot 't'"):
        container.rollback("t")
    assert container.read_bytes("/f") == b"1"


# Beside the overlay driver


def test_drivers_say_what_they_cannot(filled: Store, container: Container) -> None:
    overlay = filled.create("app:1")
    assert (overlay.driver, container.driver) == ("overlay", "extent")
    for call in (lambda: overlay.listdir("/"), lambda: overlay.open("/f", "w")):
        with pytest.raises(Unsupported, match="is of the overlay driver; mount it"):
            call()
    with pytest.raises(Unsupported, match="is of the extent driver"):
        container.mount()
    with pytest.raises(InvalidInput, match="volatile"):
        filled.create("app:1", driver="extent", volatile=True)
    with pytest.raises(InvalidInput, match="no driver 'fuse'"):
        filled.create("app:1", driver="fuse")  # type: ignore[call-overload]
    assert container.state == "created"
    assert container.inspect()["Driver"] == "extent"
    with pytest.raises(Conflict, match="uses image"):
        filled.remove_image("app:1")
    filled.remove([overlay, container])
    assert filled.containers() == []


@pytest.mark.parametrize("version", [2, 3, 4, 5])
def test_a_database_of_a_version_before_is_brought_up(filled: Store, tmp_path: Path, version: int) -> None:
    filled.create("app:1", name="old")
    filled.close()
    connection = sqlite3.connect(filled.layout.database, isolation_level=None)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    connection.executescript(
        "DROP TABLE cold_packs; DROP TABLE frozen; DELETE FROM counters WHERE name = 'cold_packs';"
        "PRAGMA user_version = 5;"
    )
    if version == 5:
        sums.install(connection)
    else:
        connection.executescript(
            "DROP TABLE sums; DROP TABLE damaged_layers; ALTER TABLE layers DROP COLUMN recipe;PRAGMA user_version = 4;"
        )
    if version < 4:
        connection.executescript("DROP TABLE blob_places; DROP TABLE layer_blobs; PRAGMA user_version = 3;")
    if version == 2:
        connection.executescript(
            "DROP TABLE snapshots; DROP INDEX containers_of_log; ALTER TABLE containers DROP COLUMN log;"
            "ALTER TABLE containers DROP COLUMN driver; DROP TABLE log_uses; DROP TABLE logs; PRAGMA user_version = 2;"
        )
        shutil.rmtree(filled.layout.logs)
    connection.close()
    with Store(filled.root) as opened:
        assert opened.container("old").driver == "overlay"
        made = opened.create("app:1", driver="extent", name="new")
        made.write_bytes("/f", b"1")
        assert opened.container("new").read_bytes("/f") == b"1"
        opened.collect_garbage()
        with sqlite3.connect(opened.layout.database) as other:
            assert other.execute("PRAGMA user_version").fetchone()[0] == db.SCHEMA_VERSION
            assert other.execute("SELECT count(*) FROM layer_blobs, blob_places").fetchone() == (0,)
            assert other.execute("SELECT count(*) FROM layers WHERE recipe IS NULL").fetchone() == (version < 5,)
        assert opened.check().is_clean
        opened.remove(opened.containers())


def test_garbage_collection_takes_logs_without_a_row(filled: Store, container: Container) -> None:
    stray = Path(filled.layout.log("0" * 32))
    stray.write_bytes(bytes(10_000))
    container.write_bytes("/f", b"1")
    assert filled.collect_garbage().freed_bytes >= 8192
    assert not stray.exists()
    assert container.read_bytes("/f") == b"1"


# Trees


def test_trees_are_copied_in_and_out(container: Container, tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree")
    container.copy_in(tree, "/copied")
    container.copy_in(tree, "/copied")
    container.copy_out("/copied", tmp_path / "back")
    container.copy_out("/copied", tmp_path / "back")
    assert below(tmp_path / "back") == below(tree)
    assert container.stat("/copied/same").st_ino == container.stat("/copied/d/file").st_ino
    container.copy_in(tree / "d" / "file", "/small")
    assert container.read_bytes("/small") == b"data" * 100_000
    with pytest.raises(IsADirectoryError):
        container.copy_in(tree / "d" / "file", "/d")


def test_walking_is_as_on_the_host(container: Container, tmp_path: Path) -> None:
    container.symlink("d", "/to-d")
    for target, name in (
        ("loop", "loop"),
        ("../small/x", "d/through-a-file"),
        ("n" * 300, "too-long"),
        ("gone", "none"),
    ):
        container.symlink(target, f"/{name}")
    container.copy_out("/", tmp_path / "out")
    for top_down in (True, False):
        for follow in (True, False):
            host = [
                (path.removeprefix(str(tmp_path / "out")) or "/", sorted(names), sorted(others))
                for path, names, others in os.walk(tmp_path / "out", topdown=top_down, followlinks=follow)
            ]
            found = [(path, names, others) for path, names, others in container.walk("/", top_down, follow)]
            assert sorted(found) == sorted(host)
    entries = {entry.name: entry for entry in container.scandir("/")}
    assert (entries["to-d"].is_dir(), entries["to-d"].is_dir(follow_symlinks=False), entries["to-d"].is_symlink()) == (
        True,
        False,
        True,
    )
    assert entries["small"].stat().st_size == 5
    assert os.fspath(entries["small"]) == "/small"
    container.makedirs("/x/y/z")
    container.makedirs("/x/y/z", exist_ok=True)
    with pytest.raises(FileExistsError):
        container.makedirs("/x/y/z")
    assert container.listdir(b"/x") == [b"y"]
    assert container.readlink(b"/to-d") == b"d"


@pytest.mark.root
def test_a_user_without_rights_works_with_it(tmp_path: Path) -> None:
    """Everything, owners too: they are only written down."""
    with tempfile.TemporaryDirectory() as name:
        os.chown(name, NOBODY, NOBODY)
        archive = io.BytesIO(tar_of(docker_files([IMAGE])))
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                warm_up(tmp_path / "warm", archive)
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
                os.write(write, repr(work(Path(name) / "store", archive)).encode())
                status = 0
            finally:
                os._exit(status)
        os.close(write)
        with os.fdopen(read) as answer:
            told = answer.read()
        assert os.waitpid(pid, 0)[1] == 0
        assert told == repr((5, 6, b"1", "text", ["e"]))


def warm_up(root: Path, archive: io.BytesIO) -> None:
    """Load what is loaded when first needed: Python's own files are root's, maybe."""
    work(root, archive)


def work(root: Path, archive: io.BytesIO) -> tuple[object, ...]:
    archive.seek(0)
    with Store(root, create=True) as store:
        store.load(archive)
        container = store.create("app:1", driver="extent")
        container.chown("/small", 5, 6)
        container.mknod("/null", 0o20666, os.makedev(1, 3))
        container.write_text("/f", "text")
        container.setxattr("/small", "trusted.x", b"1")
        container.snapshot("s")
        container.rmtree("/d")
        container.rollback("s")
        fork = container.fork()
        status = fork.stat("/small")
        found = (
            status.st_uid,
            status.st_gid,
            fork.getxattr("/small", "trusted.x"),
            fork.read_text("/f"),
            fork.listdir("/d"),
        )
        container.sync()
        return found


# The command line


@pytest.fixture
def command(filled: Store) -> Iterator[object]:
    def run(*arguments: str) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        line = [sys.executable, "-m", "layerstore", "--root", str(filled.root), *arguments]
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        return done.stdout if done.returncode == 0 else f"{done.returncode}: {done.stderr}"

    return run


def test_the_commands_fork_and_roll_back(filled: Store, command, reopened: Reopened) -> None:  # type: ignore[no-untyped-def]
    made = command("create", "--driver", "extent", "--name", "c", "app:1").strip()
    filled.container(made).write_bytes("/f", b"1")
    (filled,) = reopened()
    assert command("snapshot", "c", "s") == ""
    assert len(command("fork", "c", "--count", "3").split()) == 3
    assert filled.container(command("fork", "c", "--name", "other").strip()).name == "other"
    filled.container("other").unlink("/f")
    filled.container("c").unlink("/f")
    assert command("rollback", "c", "s").startswith("1: layerstore rollback: another process writes to container")
    (filled,) = reopened()
    assert command("rollback", "c", "s") == ""
    assert filled.container("c").read_bytes("/f") == b"1"
    assert command("snapshots", "c").split()[:3] == ["NAME", "CREATED", "s"]
    assert command("snapshot", "--rm", "c", "s") == ""
    assert command("rollback", "c", "s").startswith("1: layerstore rollback: container")
    assert command("fork", "c", "--count", "2", "--name", "x").startswith("1: layerstore fork: --name goes with one")


USER, GROUP, OTHER, MASK = (1, 7, 0), (4, 5, 0), (32, 5, 0), (16, 7, 0)
VALUES = [
    ("security.capability", value)
    for value in (
        b"y",
        b"\1\0\0\2" + bytes(16),
        b"\0\0\0\2" + bytes(16),
        b"\2\0\0\2" + bytes(16),
        b"\1\0\0\2" + bytes(20),
        b"\0\0\0\3" + bytes(16),
        b"\1\0\0\1" + bytes(8),
        bytes(20),
    )
] + [
    (f"system.posix_acl_{name}", value)
    for name in ("access", "default", "other")
    for value in (
        b"",
        b"y",
        b"yyyy",
        b"\1\0\0\0",
        acl(),
        acl() + b"1234567",
        acl(USER),
        acl(USER, GROUP, OTHER, (2, 7, 1)),
        acl(USER, (2, 7, 1), GROUP, OTHER),
        acl((3, 7, 0)),
        acl(USER, (2, 7, 2**32 - 1), GROUP, MASK, OTHER),
        acl(USER, (2, 8, 1), GROUP, MASK, OTHER),
        acl(USER, (2, 7, 1), GROUP, (8, 1, 1), MASK, OTHER),
    )
]


@pytest.mark.root
@pytest.mark.parametrize("path", ["/small", "/d", "/link"])
def test_attributes_are_refused_as_by_the_kernel(container: Container, tmp_path: Path, path: str) -> None:
    (tmp_path / "small").touch()
    (tmp_path / "d").mkdir()
    (tmp_path / "link").symlink_to("small")
    container.symlink("small", "/link")
    for name, value in VALUES:
        told: list[Any] = []
        for there, place in ((os, f"{tmp_path}{path}"), (container, path)):
            try:
                there.setxattr(place, name, value, follow_symlinks=False)  # type: ignore[attr-defined]
                told.append(there.listxattr(place, follow_symlinks=False))  # type: ignore[attr-defined]
            except OSError as error:
                told.append(error.errno)
        assert told[0] == told[1], (name, value)


# Interrupts


def write_at_once(container: Container, path: str, data: bytes) -> None:
    with container.open(path, "r+b", 0) as file:
        file.seek(3)
        file.write(data)


CHANGING = [module.__file__ for module in (open_files, applying, table, tree)]
OPERATIONS: list[Callable[[Container], object]] = [
    lambda container: container.write_bytes("/w/secret", b"AAAA"),
    lambda container: container.write_bytes("/small", b"AAAA"),
    lambda container: write_at_once(container, "/w/f", b"A" * 10),
    lambda container: container.truncate("/d/e/f", 100),
    lambda container: container.rename("/d", "/w/d"),
    lambda container: container.rename("/large", "/w/f"),
    lambda container: container.unlink("/w/f"),
    lambda container: container.rmtree("/w"),
    lambda container: container.link("/small", "/w/small"),
    lambda container: container.chown("/w/f", 1, 1),
    lambda container: container.removexattr("/w/f", "user.x"),
]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_interrupt_leaves_in_memory_what_the_log_says(
    filled: Store, container: Container, operation: Callable[[Container], object], reopened: Reopened
) -> None:
    """At every line of the modules that change a layer."""
    container.mkdir("/w")
    container.write_bytes("/w/f", b"f" * 1000)
    container.setxattr("/w/f", "user.x", b"1")
    lines = 1
    for at in itertools.count():
        fork = container.fork()
        fork.chmod("/small", 0o600)
        if not interrupted(operation, fork, at):
            break
        lines += 1
        other = fork.fork() if at % 2 else None
        if fork.exists("/w"):
            fork.write_bytes("/w/public", b"BBBB")
        fork.mkdir("/made")
        shown, changed = told(fork), fork.diff()
        others = [] if other is None else [other]
        _, container, fork, *others = reopened(container, fork, *others)
        assert told(fork) == shown, at
        assert fork.diff() == changed
        if fork.exists("/w/secret"):
            assert fork.read_bytes("/w/secret") in (b"AAAA", b"")
        assert not any(other.exists("/made") for other in others)
    assert lines > 20


def test_an_interrupt_of_the_first_write_leaves_a_layer_that_can_be_written_to(
    filled: Store, container: Container, reopened: Reopened
) -> None:
    """At every line of what locks and reads its log."""
    container.write_bytes("/f", b"f")
    for at in itertools.count():
        fork = container.fork()
        if not interrupted(lambda fork: fork.mkdir("/made"), fork, at, [writable_layers.__file__, log.__file__]):
            break
        fork.mkdir("/later")
        names = fork.listdir("/")
        _, container, fork = reopened(container, fork)
        assert fork.listdir("/") == names
    assert at > 30


def interrupted(
    operation: Callable[[Container], object], container: Container, at: int, modules: Sequence[str | None] = CHANGING
) -> bool:
    """Whether an operation came to that line of these modules and ended there.

    Not at a `with`: there a block that ends is traced, too, where no signal comes in, before what it entered is left.
    """
    left = at

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal left
        if frame.f_code.co_filename not in modules:
            return None
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if event == "line" and not line.lstrip().startswith("with "):
            left -= 1
            if left < 0:
                sys.settrace(None)
                raise KeyboardInterrupt
        return trace

    former = sys.gettrace()
    sys.settrace(trace)
    try:
        operation(container)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(former)
    return False


def test_open_files_go_on_after_an_interrupt(
    filled: Store, container: Container, monkeypatch: pytest.MonkeyPatch, reopened: Reopened
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with container.open("/f", "w+b", 0) as file, container.open("/gone", "w+b", 0) as gone:
        file.write(b"file")
        gone.write(b"gone")
        container.unlink("/gone")
        with monkeypatch.context() as patch:
            patch.setattr(Applier, "apply", interrupt)
            with pytest.raises(KeyboardInterrupt):
                file.truncate(2)
        with container.open("/f", "rb", 0) as other:
            assert other.read() == b"fi"
        file.write(b"more")
        gone.write(b"more")
        assert (file.seek(0), gone.seek(0)) == (0, 0)
        assert (file.read(), gone.read()) == (b"fi\0\0more", b"gonemore")
    _, container = reopened(container)
    assert container.read_bytes("/f") == b"fi\0\0more"
    assert not container.exists("/gone")


def test_signals_leave_in_memory_what_the_log_says(filled: Store, container: Container) -> None:
    code = f"""import random, signal
c = store.container({container.id!r})
c.mkdir("/w")
random = random.Random(1)
interrupts = 0
armed = False
def interrupt(*_):
    global interrupts
    if armed:
        interrupts += 1
        raise KeyboardInterrupt
signal.signal(signal.SIGALRM, interrupt)
for number in range(1500):
    signal.setitimer(signal.ITIMER_REAL, random.random() / 2000 + 1e-6)
    try:
        armed = True
        c.write_bytes(f"/w/{{number}}", str(number).encode())
        c.rename(f"/w/{{number}}", f"/{{number}}")
        c.link(f"/{{number}}", f"/w/{{number}}.link")
        armed = False
    except KeyboardInterrupt:
        armed = False
def told():
    files = [os.path.join(top, name) for top, _, names in c.walk() for name in names]
    return {{path: (c.read_bytes(path), c.stat(path).st_nlink, c.stat(path).st_ino) for path in files}}
shown = told()
for path, (data, *_) in shown.items():
    name = os.path.basename(path).removesuffix(".link")
    assert not name.isdecimal() or data in (name.encode(), b""), path
store.close()
store = Store(store.root)
c = store.container(c.id)
assert told() == shown
print(interrupts)"""
    done = in_another_process(filled, code)
    assert done.stderr == ""
    assert int(done.stdout) > 100
