"""What is left when Ctrl-C, another process or a full disk comes at a bad moment: judged by a second look."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import docker_files, tar_of
from test_containers import BOX, PLAIN, root_only
from test_load import check_loaded

from layerstore import Store
from layerstore.errors import Conflict, CorruptError, NotFound
from layerstore.store.db import Database, _Connection


class InterruptedAfterCommit(_Connection):
    """Python runs signal handlers when the call that committed has returned: before anybody could note it."""

    def execute(self, *args: object) -> sqlite3.Cursor:
        cursor = super().execute(*args)  # type: ignore[arg-type]
        if args == ("COMMIT",):
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


def interrupt_after_commit(store: Store) -> None:
    """This thread's next transaction commits, and is interrupted then."""
    connection = sqlite3.connect(store.layout.database, isolation_level=None, factory=InterruptedAfterCommit)
    store._database._connections[threading.get_ident()] = connection


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


def test_a_database_that_another_process_keeps_locked(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    other = sqlite3.connect(store.root / "layerstore.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._database.read().execute("PRAGMA busy_timeout = 10")
    with pytest.raises(Conflict, match="another process"), store._database.transaction():
        pass
    other.execute("ROLLBACK")
    other.close()


def test_a_full_disk_is_told_as_such(store: Store) -> None:
    database: Database = store._database
    database.read().execute("PRAGMA max_page_count = 1")
    with pytest.raises(OSError, match="full") as caught, database.transaction() as db:
        db.executemany("INSERT INTO packs VALUES (?)", [(n,) for n in range(100_000)])
    assert caught.value.errno == 28
    database.read().execute("PRAGMA max_page_count = 1000000")
    with database.transaction() as db:
        assert db.execute("SELECT count(*) FROM packs").fetchone() == (0,)
