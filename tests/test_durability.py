"""After a sync that failed nothing is reported as done, and nothing later is that depends on it; what replaces what is
in use is on the disk before. What a loss of power does to all operations is the business of campaigns/powerloss.py.
"""

import errno
import io
import os
import shutil
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling
from test_containers import root_only

from layerstore import Container, Store
from layerstore.containers import program_records
from layerstore.errors import CorruptError
from layerstore.extents import log as extents_log
from layerstore.store import boot, db, durable

LAYER = write_tar([Entry("file", "small", data=b"1" * 100), Entry("file", "large", data=b"2" * 200_000)])
ARCHIVE = tar_of(docker_files([Image([LAYER], ["app:1"])]))


def load(store: Store) -> None:
    store.load(io.BytesIO(ARCHIVE))


REFUSED = OSError(errno.EIO, "the disk says no")


class TestFailedSync:
    def test_of_an_import(self, store: Store, meddle: Meddling) -> None:
        meddle.fail(durable, "syncfs", REFUSED)
        with pytest.raises(OSError, match="the disk says no"):
            load(store)
        assert store.images() == []
        load(store)
        assert store.image("app:1").view.read_bytes("/large") == b"2" * 200_000
        assert store.check().is_clean

    def test_of_an_import_is_looked_for_from_its_beginning(self, store: Store, meddle: Meddling) -> None:
        """The kernel tells of an error those who had the file system open when it happened."""
        opened = meddle.noted(durable, "file_system", lambda *_, **__: any((store.root / "staging").iterdir()))
        load(store)
        assert opened == [False]

    @root_only
    @pytest.mark.parametrize("what", ["fork", "snapshot"])
    def test_of_a_copy(self, store: Store, meddle: Meddling, what: str) -> None:
        """Of a container in use; one at rest is not copied."""
        load(store)
        container = store.create("app:1")
        with container.mount() as root:
            (root / "just written").write_bytes(b"and on no disk yet")
            meddle.fail(durable, "syncfs", REFUSED, ALWAYS)
            with pytest.raises(OSError, match="the disk says no"):
                container.fork() if what == "fork" else container.snapshot("s")
        assert len(store.containers()) == 1
        assert container.snapshots() == []

    @pytest.mark.parametrize("what", ["fork", "create"])
    def test_of_a_new_log(self, store: Store, meddle: Meddling, what: str) -> None:
        load(store)
        container = store.create("app:1", driver="extent")
        meddle.fail(os, "fdatasync", REFUSED, ALWAYS)
        with pytest.raises(OSError, match="the disk says no"):
            container.fork() if what == "fork" else store.create("app:1", driver="extent")
        assert len(store.containers()) == 1
        assert len(list((store.root / "logs").iterdir())) == 1

    def test_of_what_a_container_is_to_be_started_with(self, store: Store, meddle: Meddling) -> None:
        load(store)
        container, volatile = store.create("app:1"), store.create("app:1", volatile=True)
        container.prepare(["first"])
        meddle.fail(os, "fsync", REFUSED, ALWAYS)
        with pytest.raises(OSError, match="the disk says no"):
            container.prepare(["second"])
        assert program_records.read_options(str(container.root.parent))["args"] == ["first"]
        assert list(container.root.parent.glob(".*")) == []
        volatile.prepare(["second"])


class TestLogOfAContainer:
    @pytest.fixture
    def container(self, store: Store) -> Container:
        load(store)
        made = store.create("app:1", driver="extent")
        made.write_bytes("/small", b"synced")
        made.sync()
        made.write_bytes("/small", b"not synced")
        return made

    @pytest.fixture
    def written(self, meddle: Meddling) -> list[int]:
        """How much was written again, at each call."""
        return meddle.noted(extents_log, "write_at", lambda fd, data, offset: len(data))

    def test_is_written_again_after_a_sync_that_failed(
        self, container: Container, written: list[int], meddle: Meddling
    ) -> None:
        meddle.fail(os, "fdatasync", REFUSED, times=2)
        for _ in range(2):
            with pytest.raises(OSError, match="the disk says no"):
                container.sync()
        container.write_bytes("/small", b"after it")
        container.sync()
        (log,) = (container.root.parents[2] / "logs").iterdir()
        assert written[-1] == log.stat().st_size
        count = len(written)
        container.sync()
        assert len(written) == count

    def test_that_is_lost_is_never_durable(self, container: Container, written: list[int], meddle: Meddling) -> None:
        meddle.fail(os, "fdatasync", REFUSED)
        with pytest.raises(OSError, match="the disk says no"):
            container.sync()
        (log,) = (container.root.parents[2] / "logs").iterdir()
        with log.open("r+b") as file:
            file.seek(-16, os.SEEK_END)
            file.write(bytes(16))
        for _ in range(2):
            with pytest.raises((OSError, CorruptError), match=r"lost|damaged"):
                container.sync()
        assert written == []

    def test_that_a_fork_goes_on_from(self, container: Container, written: list[int], meddle: Meddling) -> None:
        fork = container.fork()
        fork.write_bytes("/large", b"of the fork")
        meddle.fail(os, "fdatasync", REFUSED)
        with pytest.raises(OSError, match="the disk says no"):
            container.sync()
        written.clear()
        fork.sync()
        assert sum(written) > 0


FAILED_COMMIT = """
import os, sys
from layerstore import Store

store = Store(sys.argv[1])
try:
    store.tag("app:1", "failed:1")
except OSError as error:
    print(error.errno, flush=True)
if sys.argv[2] == "go on":
    store.tag("app:1", "later:1")
os._exit(0)  # as if it was killed: the log of the database stays
"""


@pytest.mark.needs_tool("strace")
@pytest.mark.parametrize("what", ["go on", "stop"])
def test_a_commit_that_was_not_synced_is_not_there(store: Store, what: str) -> None:
    load(store)
    root = store.root
    store.close()
    inject = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO:when=1"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, sys.executable, "-c", FAILED_COMMIT, str(root), what]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == [str(errno.EIO)], done.stderr
    with Store(root) as again:
        assert sorted(again.image("app:1").names) == ["app:1", *(["later:1"] if what == "go on" else [])]
        assert again.check().is_clean


FAILED_REMOVAL = """
import os, sys
from layerstore import Store

store = Store(sys.argv[1])
try:
    store.container("kept").remove()
    print("removed", flush=True)
except OSError as error:
    print(error.errno, error.filename, flush=True)
os._exit(0)
"""


@pytest.mark.needs_tool("strace")
@pytest.mark.parametrize("failing", ["once", "twice", "always"])
def test_a_removal_that_was_not_synced_is_on_the_disk_by_another_way_or_not_told(store: Store, failing: str) -> None:
    """The first to fail is our own sync of the log of the database, the second SQLite's of the same. This process has
    the store open, so that the log is there already."""
    load(store)
    root = store.root
    with Store(root) as other:
        other.create("app:1", name="kept", driver="extent").write_bytes("/new", b"written")
    when = {"once": "1", "twice": "1..2", "always": "1+"}[failing]
    inject = ["-e", "trace=fdatasync,fsync", "-e", f"inject=fdatasync,fsync:error=EIO:when={when}"]
    command = ["strace", "-f", "-qq", "-o", "/dev/null", *inject, sys.executable, "-c", FAILED_REMOVAL, str(root)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ([str(errno.EIO), "None"] if failing == "always" else ["removed"]), done.stderr
    with Store(root) as again:
        assert again.containers() == []
        again.collect_garbage()
        assert not list((root / "logs").iterdir())
        assert again.check().is_clean


def test_a_database_that_could_not_be_synced_commits_nothing_until_it_is(store: Store, meddle: Meddling) -> None:
    with closing(db.Database(store.layout.database, store.layout.database_lock)) as database:
        meddle.fail(os, "fdatasync", REFUSED)
        written = meddle.fail(db.Database, "_write_again", REFUSED, times=3)
        with pytest.raises(OSError, match="the disk says no"):
            database.sync()
        assert len(written) == 2  # a second time, as the first may have been told of what the sync was
        with pytest.raises(OSError, match="the disk says no"), database.transaction() as writing:
            writing.execute("INSERT INTO packs VALUES (7)")
        for number in (8, 9):
            with database.transaction() as writing:
                writing.execute("INSERT INTO packs VALUES (?)", (number,))
        assert len(written) == 4
        assert database.read().execute("SELECT number FROM packs").fetchall() == [(8,), (9,)]


class TestPlace:
    def test_replaces_with_what_is_on_the_disk(self, tmp_path: Path, meddle: Meddling) -> None:
        events: list[str] = []
        for name in ("fsync", "rename", "link"):
            meddle.noted(os, name, among=events)
        path = tmp_path / "path"
        for content in ("first", "second"):
            (tmp_path / "staged").write_text(content)
            durable.place(str(tmp_path / "staged"), str(path))
            assert path.read_text() == content
            assert not (tmp_path / "staged").exists()
        assert events == ["link", "link", "fsync", "rename"]

    @pytest.mark.needs_tool("strace")
    def test_is_how_an_object_gets_to_its_place(self, store: Store, tmp_path: Path) -> None:
        """One that another import, or one that was killed, has put there."""
        load(store)
        (large,) = [path for path in (store.root / "objects").rglob("*") if path.is_file()]
        content = large.read_bytes()
        store.remove_image("app:1")
        store.collect_garbage()
        large.write_bytes(b"of a killed import")
        (tmp_path / "app.tar").write_bytes(ARCHIVE)
        script = "import sys; from layerstore import Store; Store(sys.argv[1]).load(sys.argv[2])"
        trace = tmp_path / "trace"
        command = ["strace", "-f", "-qq", "-y", "-o", str(trace), "-e", "trace=fsync,renameat,renameat2"]
        command += [sys.executable, "-c", script, str(store.root), str(tmp_path / "app.tar")]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, check=True, env=environment)
        assert large.read_bytes() == content
        name = large.parent.name + large.name
        calls = [line.split("(")[0].split()[-1] for line in trace.read_text().splitlines() if name in line]
        assert calls == ["renameat2", "fsync", "renameat"]


class TestAfterAStartOfTheMachine:
    def test_containers_are_forgotten_whose_directories_did_not_get_to_the_disk(self, store: Store) -> None:
        load(store)
        kept, lost, partly = (store.create("app:1", name=name) for name in ("kept", "lost", "partly"))
        extent = store.create("app:1", name="extent", driver="extent")
        shutil.rmtree(store.layout.container(lost.id))
        os.rmdir(f"{store.layout.container(partly.id)}/upper")
        with Store(store.root) as again:
            assert len(again.containers()) == 4  # nobody says that the power was gone
        os.unlink(store.layout.boot)
        with Store(store.root) as again:
            assert {container.id for container in again.containers()} == {kept.id, extent.id}
            again.create("app:1", name="lost")
            again.collect_garbage()
            assert not os.path.exists(store.layout.container(partly.id))
            assert not boot.is_new(again.layout)

    def test_a_full_disk_does_not_keep_it_from_being_opened(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else nobody could collect garbage."""

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "full")

        os.unlink(store.layout.boot)
        with monkeypatch.context() as context:
            context.setattr(durable, "replacing", full)
            Store(store.root).close()
        assert boot.is_new(store.layout)
        Store(store.root).close()
        assert not boot.is_new(store.layout)

    def test_a_container_whose_directory_cannot_be_read_stays(self, store: Store, meddle: Meddling) -> None:
        load(store)
        container = store.create("app:1")
        directory = store.layout.container(container.id)
        os.unlink(store.layout.boot)
        meddle.fail(os, "listdir", REFUSED, ALWAYS, when=lambda path: path == directory)
        with Store(store.root) as again:
            assert len(again.containers()) == 1

    def test_a_container_that_was_being_rolled_back_stays(self, store: Store) -> None:
        load(store)
        container = store.create("app:1")
        directory = store.layout.container(container.id)
        os.rename(f"{directory}/upper", f"{directory}/before")
        os.unlink(store.layout.boot)
        with Store(store.root) as again:
            assert len(again.containers()) == 1


def test_a_removal_is_durable_before_files_go(store: Store, meddle: Meddling) -> None:
    from layerstore.containers import containers

    load(store)
    done: list[str] = []
    for owner, name in ((db.Database, "sync"), (containers, "container_remove_many")):
        meddle.noted(owner, name, among=done)
    store.create("app:1").remove()
    assert done == ["sync", "container_remove_many"]
    with store.create("app:1", volatile=True).mount():
        pass
    done.clear()
    store.remove(store.containers())
    assert done == ["container_remove_many"]
