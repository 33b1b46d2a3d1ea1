"""What is left when Ctrl-C, another process or a full disk comes at a bad moment: judged by a second look."""

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import docker_files, tar_of
from meddling import Meddling
from test_containers import BOX, PLAIN, root_only
from test_extent_containers import in_a_fork
from test_load import check_loaded

from layerstore import Store
from layerstore.errors import Conflict, CorruptError, NotFound
from layerstore.store import db, locks, sums
from layerstore.store.db import Database, _Connection
from layerstore.store.layout import Layout


class InterruptedAfterCommit(_Connection):
    """Python runs signal handlers when the call that committed has returned: before anybody could note it."""

    def execute(self, *args: object) -> sqlite3.Cursor:
        cursor = super().execute(*args)  # type: ignore[arg-type]
        if args == ("COMMIT",):
            raise KeyboardInterrupt
        return cursor


class InterruptedAfterBegin(_Connection):
    """The same when it has the lock for writing, and before the transaction is anybody's."""

    def execute(self, *args: object) -> sqlite3.Cursor:
        cursor = super().execute(*args)  # type: ignore[arg-type]
        if args == ("BEGIN IMMEDIATE",):
            raise KeyboardInterrupt
        return cursor


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar_of(docker_files([PLAIN, BOX])))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def database(store: Store) -> Iterator[Database]:
    with contextlib.closing(Database(store.layout.database, store.layout.database_lock)) as opened:
        yield opened


def interrupt_after_commit(store: Store) -> None:
    """This thread's next transaction commits, and is interrupted then."""
    interrupt(store, InterruptedAfterCommit)


def interrupt(store: Store, factory: type[_Connection]) -> None:
    connection = sqlite3.connect(store.layout.database, isolation_level=None, factory=factory)
    store._engine.database._connections[threading.get_ident()] = connection


def test_a_load_interrupted_after_its_commit_keeps_its_pack(store: Store, archive: Path) -> None:
    interrupt_after_commit(store)
    with pytest.raises(KeyboardInterrupt):
        store.load(archive)
    with Store(store.root) as again:
        check_loaded(again, PLAIN)
        check_loaded(again, BOX)


def test_containers_created_before_an_interrupt_keep_their_directories(store: Store, archive: Path) -> None:
    store.load(archive)
    interrupt_after_commit(store)
    with pytest.raises(KeyboardInterrupt):
        store.create("plain:1", count=2)
    with Store(store.root) as again:
        assert [container.diff() for container in again.containers()] == [[], []]


@root_only
def test_a_transaction_interrupted_as_it_began_keeps_nobody_from_writing(store: Store, archive: Path) -> None:
    interrupt(store, InterruptedAfterBegin)
    with pytest.raises(KeyboardInterrupt):
        store.load(archive)
    other = sqlite3.connect(store.root / "layerstore.db", timeout=0, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.close()


def test_a_transaction_in_another_is_refused_and_leaves_it_as_it_is(database: Database) -> None:
    with database.transaction() as outer:
        outer.execute("INSERT INTO packs VALUES (7)")
        with pytest.raises(RuntimeError, match="under way"), database.transaction():
            pass
    assert database.read().execute("SELECT count(*) FROM packs").fetchone() == (1,)


def test_an_interrupt_while_a_row_is_told(database: Database) -> None:
    """SQLite calls Python for each row that changes, and says of an exception in there no more than that it was one."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    database.read().create_function(sums.COME, -1, interrupted)
    with pytest.raises(KeyboardInterrupt), database.transaction() as writing:
        writing.execute("INSERT INTO packs VALUES (7)")
    assert database.read().execute("SELECT count(*) FROM packs").fetchone() == (0,)


def test_who_is_interrupted_waiting_for_a_lock_keeps_no_file_open(tmp_path: Path, meddle: Meddling) -> None:
    (tmp_path / "run").mkdir()
    meddle.fail(locks, "_let_pass", KeyboardInterrupt())
    before = os.listdir("/proc/self/fd")
    with pytest.raises(KeyboardInterrupt), locks.garbage(Layout(tmp_path)):
        pass
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("kind", ["shared", "exclusive", "past sharers", "claim"])
def test_a_process_forked_meanwhile_does_not_keep_a_lock(tmp_path: Path, kind: str) -> None:
    """It has the descriptor, too: what another thread holds as a program forks a worker must end with the holder. And
    the child lets go of nothing that is its parent's."""
    layout = Layout(tmp_path)
    (tmp_path / "run").mkdir()
    path = layout.garbage_lock
    digest = "sha256:" + 64 * "1"
    end, begin = os.pipe()

    def is_free() -> bool:
        claims = locks.Claims(path)
        fd = os.open(path, os.O_RDWR)
        try:
            return locks.try_lock(fd) and claims.try_take(digest)
        finally:
            os.close(fd)
            claims.close()

    with contextlib.ExitStack() as stack:
        if kind == "claim":
            claims = locks.Claims(path)
            stack.callback(claims.close)
            claims.take([digest])
        elif kind == "past sharers":
            stack.enter_context(locks.garbage_alone(layout))
        else:
            stack.enter_context(locks.pool(path, layout.root, alone=kind == "exclusive"))
        assert in_a_fork(stack.close) == 0
        assert not is_free()
        pid = os.fork()
        if pid == 0:
            os.close(begin)
            os.read(end, 1)
            os._exit(0)
    try:
        assert is_free()
    finally:
        os.close(begin)
        os.close(end)
        os.waitpid(pid, 0)


def test_what_a_forked_process_commits_outlives_the_store_of_its_parent(store: Store, archive: Path) -> None:
    """SQLite's connections do not get through fork(2): the locks that keep the log from being removed are the parent's
    alone."""
    store.load(archive)
    (begin, end), (answer, tell) = os.pipe(), os.pipe()

    def child() -> None:
        os.write(tell, b"1")
        os.read(begin, 1)
        store.tag("plain:1", "child:1")

    def parent() -> None:
        os.read(answer, 1)
        store.close()
        os.write(end, b"1")

    closing = threading.Thread(target=parent)
    closing.start()
    try:
        assert in_a_fork(child) == 0
    finally:
        closing.join()
        for fd in (begin, end, answer, tell):
            os.close(fd)
    with Store(store.root) as again:
        assert again.image("child:1").id == again.image("plain:1").id


def test_an_image_removed_before_its_tree_was_made(store: Store, archive: Path) -> None:
    """The tree of no layers must not take the place of the tree of the image, which may come back."""
    image, _ = store.load(archive)
    assert image.chain_id
    with Store(store.root) as other:
        other.remove_image("plain:1")
    with pytest.raises(NotFound, match="removed"):
        store.create(image)
    with pytest.raises(NotFound, match="removed"):
        store.tag(image, "again:1")
    store.load(archive)
    with store.create("plain:1").mount() as root:
        assert (root / "second").read_bytes() == b"2"


def test_closing_twice_closes_no_descriptor_of_others(store: Store) -> None:
    store.close()
    with open(store.layout.format) as other:
        store.close()
        assert other.read()


def test_a_database_damaged_inside(store: Store, archive: Path) -> None:
    store.load(archive)
    store.close()
    data = bytearray((store.root / "layerstore.db").read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    (store.root / "layerstore.db").write_bytes(data)
    with Store(store.root) as damaged, pytest.raises(CorruptError, match="damaged"):
        damaged.load(archive)


def test_a_database_that_another_process_keeps_locked(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sqlite3.connect(store.root / "layerstore.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    monkeypatch.setattr(db, "_TIMEOUT_SECONDS", 0.01)
    with pytest.raises(Conflict, match="another process"), database.transaction():
        pass
    other.execute("ROLLBACK")
    other.close()


def test_a_full_disk_is_told_as_such(database: Database) -> None:
    database.read().execute("PRAGMA max_page_count = 1")
    with pytest.raises(OSError, match="full") as caught, database.transaction() as writing:
        writing.executemany("INSERT INTO packs VALUES (?)", [(n,) for n in range(100_000)])
    assert caught.value.errno == 28
    database.read().execute("PRAGMA max_page_count = 1000000")
    with database.transaction() as writing:
        assert writing.execute("SELECT count(*) FROM packs").fetchone() == (0,)
