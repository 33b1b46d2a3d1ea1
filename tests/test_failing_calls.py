"""System calls that fail or do half of what they are asked for: what must not come of it. Each was found by
campaigns/faults.py, which has every call of every operation fail."""

import errno
import fcntl
import gzip
import io
import os
import re
import resource
import select
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cases import case
from contexts import tar_bytes, write_context
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling

from layerstore import Store
from layerstore._core.extent_io import LogWriter
from layerstore.building import add_archives
from layerstore.checking import containers, contents, hashing, images, layers
from layerstore.containers.containers import Containers
from layerstore.containers.rootfs import Rootfs
from layerstore.containers.standard_streams import Streams
from layerstore.extents import log
from layerstore.naming import about, close_fd, fstat, null_device
from layerstore.registry.downloads import Download, Downloads
from layerstore.store import boot, db, durable, locks
from layerstore.store.contents import ContentStore
from layerstore.store.db import _Connection
from layerstore.store.layout import Layout
from layerstore.store.pieces import read_at
from layerstore.sync import receiving

ROOT = Path(__file__).parent.parent
APP = Image(
    [write_tar([Entry("dir", "etc", mode=0o755), Entry("file", "etc/passwd", data=b"ann:x:7:8:::\n")])], ["app:1"]
)


@pytest.fixture
def app(store: Store) -> Iterator[Store]:
    store.load(io.BytesIO(tar_of(docker_files([APP]))))
    yield store


def failing(function: Callable[..., Any], number: int, count: int = 1) -> Callable[..., Any]:
    """The function, of which the first calls fail."""
    left = [count]

    def call(*args: Any, **options: Any) -> Any:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return function(*args, **options)

    return call


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


# Which file an error is about


def test_an_error_that_names_no_file_is_given_one(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="Input/output error: '/a/path'"), about("/a/path"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(FileNotFoundError, match="'/dev/nothing'"), about("/a/path"):
        os.stat("/dev/nothing")
    with pytest.raises(OSError, match=r"^\[Errno 5\] of its own$"), about("/a/path"):
        raise OSError(errno.EIO, "of its own")
    with (
        open(tmp_path / "file", "wb") as file,
        pytest.raises(OSError, match=f"'{tmp_path}/file'"),
        about(file.fileno()),
    ):
        os.read(file.fileno(), 1)
    with pytest.raises(OSError, match="descriptor 12345"), about(12345):
        os.read(12345, 1)


def test_a_failed_sync_names_the_file_that_it_was_of(tmp_path: Path, meddle: Meddling) -> None:
    meddle.fail(os, "fsync", errno.EIO, times=9)
    with pytest.raises(OSError, match=f"'{tmp_path}/file'"):
        durable.write_file(tmp_path / "file", b"data")
    with pytest.raises(OSError, match=f"'{tmp_path}'"):
        durable.sync_directory(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_start_of_the_machine_that_cannot_be_noted_names_the_file(store: Store, meddle: Meddling) -> None:
    meddle.fail(os, "pwrite", errno.EIO)
    with pytest.raises(OSError, match=f"'{store.root}/run/boot'"):
        boot.note(store.layout)


def test_a_failed_lock_names_its_file_and_leaves_none_open(tmp_path: Path, meddle: Meddling) -> None:
    (tmp_path / "run").mkdir()
    before = descriptors()
    meddle.fail(fcntl, "flock", errno.ENOLCK)
    with pytest.raises(OSError, match=f"'{tmp_path}/run/staging.lock'"), locks.staging(Layout(tmp_path)):
        pass
    assert descriptors() == before


def test_a_descriptor_of_which_nothing_can_be_told(tmp_path: Path, meddle: Meddling) -> None:
    meddle.fail(os, "fstat", errno.EIO)
    with open(tmp_path / "file", "wb") as file, pytest.raises(OSError, match=f"'{tmp_path}/file'"):
        fstat(file.fileno())


def test_a_claim_that_fails_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, claims = descriptors(), locks.Claims(f"{tmp_path}/lock")
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "fcntl", failing(fcntl.fcntl, errno.ENOLCK, 9))
        with pytest.raises(OSError, match=f"'{tmp_path}/lock'"):
            claims.take(["sha256:" + "0" * 64])
        claims.close()
    assert descriptors() == before


def test_a_close_that_reports_an_error_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, close = descriptors(), os.close

    def report(fd: int) -> None:
        close(fd)
        if sys._getframe(1).f_code is not close_fd.__code__:
            return
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", report)
        with Store(tmp_path / "store", create=True) as store:
            store.load(io.BytesIO(tar_of(docker_files([APP]))))
            store.create("app:1", name="box", driver="extent").write_bytes("file", b"1")
            store.container("box").commit("made:1")
    assert descriptors() == before
    with pytest.raises(OSError, match="Bad file descriptor"):
        close_fd(12345)


# Half of what was asked for


@pytest.fixture
def half(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every pread gives half of what it could."""
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda fd, count, at: pread(fd, max(1, count // 2), at))


def test_a_file_is_read_to_its_end_by_reads_that_give_half(tmp_path: Path, half: None) -> None:
    (tmp_path / "file").write_bytes(bytes(range(100)))
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert read_at(fd, 90, 5) == bytes(range(5, 95))
        assert read_at(fd, 1000, 50) == bytes(range(50, 100))
    finally:
        os.close(fd)


def test_a_log_that_is_read_by_halves_is_not_cut_off(tmp_path: Path, half: None) -> None:
    with Store(tmp_path / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([APP]))))
        container = store.create("app:1", driver="extent")
        container.write_bytes("one", b"1" * 3000)
        container.write_bytes("two", b"2")
    with Store(tmp_path / "store") as again:
        found = again.container(container.id)
        found.write_bytes("three", b"3")
        assert {name: found.read_bytes(name)[:1] for name in ("one", "two", "three")} == {
            "one": b"1", "two": b"2", "three": b"3",
        }  # fmt: skip


def test_a_file_of_an_image_is_read_whole_by_halves(tmp_path: Path, half: None) -> None:
    (tmp_path / "passwd").write_text("ann:x:7:8:::\nbob:x:9:9:::\n")
    with Rootfs(str(tmp_path)) as root:
        assert root.read_text("passwd", 1000).endswith("bob:x:9:9:::\n")


# The database


def test_a_connection_that_cannot_write_is_replaced(app: Store) -> None:
    """SQLite opens a file for reading where it could not be opened for writing, as no descriptor was left."""
    database = app._engine.database
    (thread,) = database._connections
    database._connections.pop(thread).close()
    path = f"file:{app.layout.database}?mode=ro"
    database._connections[thread] = sqlite3.connect(path, uri=True, isolation_level=None, factory=_Connection)
    app.tag("app:1", "again:1")
    assert set(app.image("app:1").names) == {"app:1", "again:1"}


def test_a_connection_that_can_read_the_log_alone_is_replaced(app: Store, meddle: Meddling) -> None:
    """SQLite goes on with a log that it could open for reading only: then no transaction begins that writes."""
    meddle.fail(db, "_begun", errno.EROFS)
    connected = meddle.noted(db, "_connected")
    app.tag("app:1", "again:1")
    assert len(connected) == 1
    assert set(app.image("app:1").names) == {"app:1", "again:1"}


def test_a_database_that_cannot_be_begun_is_begun_again(tmp_path: Path) -> None:
    """SQLite says that it is in WAL mode, and then writes so to the file."""
    where = f"{tmp_path}/layerstore.db", f"{tmp_path}/database.lock"
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2048, unlimited[1]))
    try:
        with pytest.raises(OSError, match=r"layerstore\.db: disk I/O error"):
            db.Database(*where)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    with closing(db.Database(*where)) as database:
        assert database.read().execute("PRAGMA journal_mode").fetchall() == [("wal",)]


def test_an_error_of_the_database_keeps_nothing_of_its_callers(app: Store) -> None:
    with closing(db.Database(app.layout.database, app.layout.database_lock)) as database:
        connection = database.read()
        with pytest.raises(sqlite3.Error):
            connection.execute("SELECT nothing")
        assert connection.changes.failed is None


# What is left behind


def test_an_import_that_cannot_lock_its_pack_leaves_none(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app.tar").write_bytes(tar_of(docker_files([APP])))
    before, flock = descriptors(), fcntl.flock

    def refuse(fd: int, how: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".pack"):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))
        flock(fd, how)

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", refuse)
        with pytest.raises(OSError, match=r"\.pack"):
            store.load(tmp_path / "app.tar")
    assert descriptors() == before
    assert list((store.root / "packs").iterdir()) == []
    store.load(tmp_path / "app.tar")


def test_staging_that_cannot_be_cleared_away_is_no_failure(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """shutil.rmtree raises what os.fstat does, although it is told to ignore errors."""
    (tmp_path / "app.tar").write_bytes(tar_of(docker_files([APP])))
    fstat, staging = os.fstat, f"{store.root}/staging/"

    def refuse(fd: int) -> os.stat_result:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.startswith(staging) and path.count("/") == staging.count("/"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return fstat(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", refuse)
        store.load(tmp_path / "app.tar")
    assert [image.names for image in store.images()] == [["app:1"]]
    store.load(tmp_path / "app.tar")
    store.collect_garbage()
    assert list((store.root / "staging").iterdir()) == []


def test_a_content_that_cannot_be_read_is_named(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = Image([write_tar([Entry("file", "large", data=bytes(200_000))])], ["large:1"])
    store.load(io.BytesIO(tar_of(docker_files([large]))))
    find = ContentStore.find

    class Unreadable(io.FileIO):
        def read(self, _: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def found(self: ContentStore, digest: bytes) -> Any:
        given = find(self, digest)
        return given if isinstance(given, bytes) else Unreadable(given.name)

    monkeypatch.setattr(ContentStore, "find", found)
    with pytest.raises(OSError, match=r"Input/output error: '.*/objects/"):
        store.save("large:1", tmp_path / "saved.tar")


def test_a_cold_pack_that_cannot_be_synced_is_named(app: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def refuse(fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".cold"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match=r"Input/output error: '.*/cold/0\.cold'"):
            app.freeze("app:1")
    assert list((app.root / "cold").iterdir()) == []
    app.freeze("app:1")


def test_a_move_says_which_log_or_directory_fails(app: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    overlay = app.create("app:1")
    with monkeypatch.context() as patch:

        class Refusing(LogWriter):
            def sync(self) -> int:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(log, "LogWriter", Refusing)
        with pytest.raises(OSError, match=r"Input/output error: '.*/logs/[0-9a-f]{32}'"):
            overlay.move("extent")
    extent = app.create("app:1", driver="extent")
    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", failing(os.dup, errno.EMFILE))
        with pytest.raises(OSError, match=r"Too many open files: '.*/upper'"):
            extent.move("overlay")
    overlay.move("extent")
    extent.move("overlay")


def test_a_close_of_the_null_device_that_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    close, closed = os.close, []

    def interrupted(fd: int) -> None:
        closed.append(os.readlink(f"/proc/self/fd/{fd}"))
        close(fd)
        raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

    with monkeypatch.context() as patch:
        patch.setattr(os, "close", interrupted)
        with null_device() as nothing:
            os.write(nothing, b"taken")
            assert os.read(nothing, 1) == b""
    assert closed == [os.devnull]


def test_a_recipe_that_cannot_be_kept_by_a_sync_is_named(
    app: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(tmp_path / "other", create=True).close()
    with monkeypatch.context() as patch:
        patch.setattr(receiving, "write_at", failing(receiving.write_at, errno.ENOSPC))
        with pytest.raises(OSError, match="/other/staging: No space left on device"):
            app.sync("app:1", tmp_path / "other")
    app.sync("app:1", tmp_path / "other")


def test_closes_of_files_without_a_name_that_are_interrupted(app: Store, tmp_path: Path, meddle: Meddling) -> None:
    Store(tmp_path / "other", create=True).close()
    closed = meddle.interrupt_closes(lambda path: path.endswith("(deleted)"))
    app.sync("app:1", tmp_path / "other")
    assert {*map(os.path.dirname, closed)} >= {f"{app.root}/staging", f"{tmp_path}/other/staging"}


def test_an_archive_whose_beginning_cannot_be_read_is_named(store: Store, tmp_path: Path) -> None:
    class Unreadable(io.FileIO):
        def read(self, _: int = -1) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    (tmp_path / "app.tar").write_bytes(tar_of(docker_files([APP])))
    with Unreadable(f"{tmp_path}/app.tar") as file, pytest.raises(OSError, match=f"'{tmp_path}/app.tar'"):
        store.load(file)


def test_a_log_whose_header_cannot_be_written_is_not_left(app: Store, meddle: Meddling) -> None:
    meddle.fail(os, "pwrite", errno.ENOSPC)
    with pytest.raises(OSError, match="/logs/"):
        app.create("app:1", driver="extent")
    assert list((app.root / "logs").iterdir()) == []


def test_a_download_that_cannot_be_removed_is_closed(tmp_path: Path, meddle: Meddling) -> None:
    before = descriptors()
    download = Download(
        SimpleNamespace(), SimpleNamespace(digest="sha256:" + "0" * 64, size_bytes=9), str(tmp_path), bool
    )  # type: ignore[arg-type]
    download._open()
    meddle.fail(os, "unlink", errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        download.close()
    assert descriptors() == before


def test_a_pack_that_cannot_be_kept_from_being_written_is_closed(tmp_path: Path, meddle: Meddling) -> None:
    (tmp_path / "pack").write_bytes(b"1")
    before = descriptors()
    meddle.fail(os, "chmod", errno.EIO, when=lambda _, mode: mode == 0o400)
    with pytest.raises(OSError, match="Input/output error"), durable.writable(str(tmp_path / "pack")):
        pass
    assert descriptors() == before


def test_a_context_whose_place_cannot_be_seen_is_closed(app: Store, tmp_path: Path, meddle: Meddling) -> None:
    files = {"Dockerfile": b"FROM app:1\nCOPY link/file /\n", "real": {"file": b"1"}, "link": "real"}
    write_context(tmp_path / "context", files)
    before = descriptors()
    meddle.fail(os, "readlink", errno.ENOMEM)
    with pytest.raises(OSError, match="Cannot allocate memory"):
        app.build(tmp_path / "context", pull="never")
    assert descriptors() == before


@pytest.mark.root
@pytest.mark.kernel
def test_a_container_of_a_build_that_cannot_be_removed_goes_later(
    app: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_context(tmp_path / "context", {"Dockerfile": b"FROM app:1\nCOPY file /\nRUN true\n", "file": b"1"})
    with monkeypatch.context() as patch:
        patch.setattr(Containers, "mount", failing(Containers.mount, errno.ENOMEM, 99))
        patch.setattr(Containers, "remove", failing(Containers.remove, errno.ENOMEM, 99))
        with pytest.raises(OSError, match="Cannot allocate memory"):
            app.build(tmp_path / "context", pull="never")
    assert len(app.containers()) == 1
    app.collect_garbage()
    assert app.containers() == []
    assert [image.names for image in app.images()] == [["app:1"]]


@pytest.mark.parametrize("started_before", range(3))
def test_threads_that_cannot_be_started_leave_none(tmp_path: Path, meddle: Meddling, started_before: int) -> None:
    threads = threading.active_count()

    def descriptor(number: int) -> Any:
        return SimpleNamespace(digest=f"sha256:{number:064}", size_bytes=9)

    repository = SimpleNamespace(open_blob=failing(print, errno.ECONNRESET, 9))
    refused = RuntimeError("can't start new thread")
    meddle.fail(threading.Thread, "start", refused, ALWAYS, skip=started_before)
    downloads = Downloads(repository, [descriptor(n) for n in range(4)], str(tmp_path), None)  # type: ignore[arg-type]
    with pytest.raises(OSError, match="cannot start a thread"), downloads:
        pass
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_check_whose_threads_cannot_be_started(app: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="cannot start a thread"):
            app.check()
    assert app.check().is_clean


def test_a_check_that_cannot_map_a_log_names_it(app: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    app.create("app:1", driver="extent").write_bytes("file", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(containers.mmap, "mmap", failing(print, errno.EMFILE))
        with pytest.raises(OSError, match=r"Too many open files: '.*/logs/"):
            app.check(repair=True)
    assert app.check().is_clean


def test_the_output_of_a_program_that_cannot_be_read(meddle: Meddling) -> None:
    """The program has no reader any more, and this fails: nobody waits, and all did not go well."""
    before = descriptors()
    meddle.fail(os, "read", errno.EIO)
    with (
        pytest.raises(OSError, match="Input/output error: 'the input and output of a container'"),
        Streams(None, print, print) as streams,
    ):
        held = os.dup(streams.given[1])
        os.write(held, b"text")
        streams.copy(os.getpid())
    with pytest.raises(BrokenPipeError):
        os.write(held, b"text")
    os.close(held)
    assert descriptors() == before


def test_pipes_of_a_program_that_cannot_be_made(meddle: Meddling) -> None:
    before = descriptors()
    for count in range(3):
        meddle.fail(os, "pipe2", errno.EMFILE, skip=count)
        with (
            open(os.devnull, "rb") as given,
            pytest.raises(OSError, match="Too many open files: 'the input and output of a container'"),
        ):
            Streams(given.fileno(), print, print)
        assert descriptors() == before


def test_output_of_a_program_that_cannot_be_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refusing:
        register = lambda *_: None  # noqa: E731

        def poll(self, _: int) -> None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    before = descriptors()
    monkeypatch.setattr(select, "poll", Refusing)
    with (
        pytest.raises(OSError, match="Cannot allocate memory: 'the input and output of a container'"),
        Streams(None, print, print) as streams,
    ):
        streams.copy(os.getpid())
    assert descriptors() == before


# Errors that are not to be taken for something else


@pytest.mark.root
def test_a_snapshot_that_cannot_be_looked_at_is_not_taken_for_missing(
    app: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One without a directory is what the container still is, and then there is nothing to roll back."""
    container = app.create("app:1", name="box")
    for name in ("first", "second"):
        container.snapshot(name)
    upper = app.root / "containers" / container.id / "upper"
    container.rollback("first")
    with container.mount() as root:
        (root / "file").touch()
    stat = os.stat

    def refuse(path: Any, **options: Any) -> os.stat_result:
        if str(path).endswith("first/upper"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        return stat(path, **options)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", refuse)
        with pytest.raises(OSError, match="first/upper"):
            container.rollback("first")
    assert (upper / "file").exists()
    container.rollback("first")
    assert [change.path for change in container.diff()] == []


@pytest.mark.parametrize(
    ("module", "name"),
    [(images, "read_whole"), (layers, "read_through"), (containers, "read_through"), (hashing, "_compare_object")]
    + [(contents, name) for name in ("_beginning", "_opened_pack")]
    + [(hashing, "_read")],
)
def test_what_can_be_read_at_the_second_time_is_no_damage(app: Store, meddle: Meddling, module: Any, name: str) -> None:
    """A repair would take it away: the log of a container, the config of an image."""
    large = Image([write_tar([Entry("file", "large", data=bytes(200_000))])], ["large:1"])
    app.load(io.BytesIO(tar_of(docker_files([large]))))
    app.create("app:1", name="box", driver="extent").write_bytes("file", b"1")
    meddle.fail(module, name, errno.EIO)
    assert app.check(repair=True).damages == ()
    assert app.container("box").read_bytes("file") == b"1"


def test_an_archive_that_cannot_be_read_is_no_plain_file(
    app: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = gzip.compress(tar_bytes({"inside": b"1"}))
    write_context(tmp_path / "context", {"Dockerfile": b"FROM app:1\nADD it.tar.gz /\n", "it.tar.gz": packed})
    with monkeypatch.context() as patch:
        patch.setattr(add_archives, "pieces_of", failing(add_archives.pieces_of, errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            app.build(tmp_path / "context", pull="never")
    assert app.build(tmp_path / "context", pull="never").view.read_bytes("/inside") == b"1"


def test_a_sync_after_one_that_failed_writes_again(app: Store, meddle: Meddling) -> None:
    """The kernel says once that it could not write, and takes what it could not write for written from then on."""
    container = app.create("app:1", driver="extent")
    container.write_bytes("file", b"data" * 1000)
    meddle.fail(os, "fdatasync", errno.EIO)
    written = meddle.noted(os, "pwrite", lambda fd, data, at: len(data))
    with pytest.raises(OSError, match="/logs/"):
        container.sync()
    assert sum(written) == 0
    container.sync()
    (log,) = (app.root / "logs").iterdir()
    assert sum(written) == log.stat().st_size
    container.sync()
    assert sum(written) == log.stat().st_size


# A kernel that says for ever that it should be asked again

SEEKER = """
import errno, os, sys
from campaigns.injection import Fault, Injector
from layerstore._core import mount

def seek(mark):
    root = os.open(sys.argv[1], os.O_PATH)
    mark(True)
    try:
        mount.open_inside(root, "file", os.O_RDONLY)
    except OSError as error:
        return str(error)
    finally:
        mark(False)

outcome = Injector().run(seek, Fault(("openat2",), 1, errno.EAGAIN, persistent=True))
print(outcome.problem, outcome.injected, outcome.answer)
"""


@pytest.mark.root
@pytest.mark.needs_tool("cc")
@case("a path that the kernel cannot look up, however often it is asked", "given up")
def test_a_look_up_that_never_ends_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", SEEKER, str(tmp_path)]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert re.fullmatch(r" \d\d \[Errno 11\] cannot open \"file\" inside the root directory.*\n", told), told


# The campaign itself


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.needs_tool("cc")
@pytest.mark.needs_tool("mkfs.xfs")
def test_a_few_cases_of_the_campaign() -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-m", "campaigns.faults", "--operation", "tag", "--sample", "6", "--jobs", "1"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 lost, 0 corrupt, 0 crashed, 0 leaked" in run.stdout


WRITER = """
import errno, os, sys
from campaigns.injection import Fault, Injector

def write(mark):
    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    done = []
    mark(True)
    for _ in range(4):
        try:
            done.append(os.write(fd, b"12345678"))
        except OSError as error:
            done.append(errno.errorcode[error.errno])
    mark(False)
    return done

if len(sys.argv) > 2:
    print(Injector().run(write, Fault(("write",), int(sys.argv[2]), int(sys.argv[3]))).answer)
else:
    print(write(lambda on: None))
"""


@pytest.mark.root
@pytest.mark.needs_tool("cc")
@pytest.mark.needs_tool("strace")
@pytest.mark.parametrize("at", [1, 3])
def test_the_injector_does_what_strace_does(tmp_path: Path, at: int) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}

    def answer(*command: str) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout

    program = (sys.executable, "-c", WRITER, str(tmp_path / "file"))
    fault = f"inject=write:error=ENOSPC:when={at}"
    ours = answer(*program, str(at), str(errno.ENOSPC))
    assert ours == answer("strace", "-qqq", "-o", "/dev/null", "-e", "trace=write", "-e", fault, *program)
    assert ours.count("ENOSPC") == 1


@pytest.mark.root
@pytest.mark.needs_tool("cc")
def test_the_injector_has_calls_do_half(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", WRITER, str(tmp_path / "file"), "2", "0"]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "[8, 4, 8, 8]\n"
    assert (tmp_path / "file").read_bytes() == b"1234567812341234567812345678"


RELEASER = """
import errno, fcntl, os, sys
from campaigns.injection import Fault, Injector

def release(mark):
    fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    mark(True)
    try:
        for how in (fcntl.LOCK_SH, fcntl.LOCK_UN):
            fcntl.flock(fd, how)
    except OSError as error:
        return errno.errorcode[error.errno]
    finally:
        mark(False)

print([Injector().run(release, Fault(("flock",), at, errno.ENOLCK)).answer for at in (1, 2)])
"""


@pytest.mark.root
@pytest.mark.needs_tool("cc")
def test_the_injector_has_no_release_of_a_lock_fail(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [sys.executable, "-c", RELEASER, str(tmp_path / "file")]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout == "['ENOLCK', None]\n"
