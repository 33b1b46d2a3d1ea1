"""The database on a disk that is full: told as such, and nothing ends by a signal; what needs no room works."""

import errno
import io
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cases import case
from images import docker_files, tar_of
from pools import SEARCH_PATH
from test_containers import PLAIN

from layerstore import Store
from layerstore.store import locks, wal_index

ROOT = Path(__file__).parent.parent
MKFS = shutil.which("mkfs.ext4", path=SEARCH_PATH) or ""

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not MKFS, reason="mkfs.ext4 is not installed; ci/packages.txt says e2fsprogs"),
]


@pytest.fixture(params=[1024, 4096])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A small file system of blocks of that size, with a store."""
    image, directory = tmp_path / "disk", tmp_path / "mounted"
    with image.open("wb") as file:
        file.truncate(48 << 20)
    subprocess.run([MKFS, "-q", "-F", "-b", str(request.param), image], check=True)
    directory.mkdir()
    subprocess.run(["mount", "-o", "loop", image, directory], check=True)
    try:
        with Store(directory / "store", create=True) as store:
            store.load(io.BytesIO(tar_of(docker_files([PLAIN]))))
        yield directory
    finally:
        subprocess.run(["umount", directory], check=True)


@contextmanager
def full(disk: Path, leave_bytes: int = 0) -> Iterator[None]:
    fd = os.open(disk / "filling", os.O_WRONLY | os.O_CREAT)
    try:
        size = 1 << 20
        while size >= 512:
            try:
                os.write(fd, bytes(size))
            except OSError as error:
                assert error.errno == errno.ENOSPC
                os.fsync(fd)
                size //= 2
        os.ftruncate(fd, os.fstat(fd).st_size - leave_bytes)
        os.fsync(fd)
        yield
    finally:
        os.close(fd)
        (disk / "filling").unlink()
        os.sync()


def command(disk: Path, *arguments: str) -> tuple[int, str, str]:
    """In a process of its own, which a signal may end."""
    argv = [sys.executable, "-m", "layerstore", "--root", str(disk / "store"), *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode != -signal.SIGBUS
    return done.returncode, done.stdout, done.stderr


@case("a full disk, and what needs no room", "works")
def test_what_needs_no_room_works(disk: Path) -> None:
    """A command leaves the files of the database there, which the next ones use."""
    assert command(disk, "tag", "plain:1", "other:1")[0] == 0
    with full(disk):
        for _ in range(2):
            status, out, err = command(disk, "images")
            assert (status, "other" in out, err) == (0, True, "")
        assert command(disk, "ps", "-aq")[0] == 0


@case("a disk that is full or nearly full", "told, with the file that needs room; no SIGBUS")
@pytest.mark.parametrize("leave_kib", [0, 8, 16, 32])
def test_a_full_disk_is_told(disk: Path, leave_kib: int) -> None:
    """Where the last one to close the database has removed what connections share, and much or little is left."""
    assert not (disk / "store/layerstore.db-shm").exists()
    with full(disk, leave_kib << 10):
        status, _, err = command(disk, "images", "-q")
        assert status == 1 or leave_kib
        if status:
            assert "layerstore.db" in err
            assert "the disk is full, and this file needs room; free some" in err
        for arguments in (("gc",), ("tag", "plain:1", "other:1"), ("create", "plain:1"), ("images",)):
            status, _, err = command(disk, *arguments)
            assert status in (0, 1)
            assert status == 0 or "the disk is full" in err or "No space left on device" in err, err
    assert command(disk, "images", "-q")[0] == 0
    with Store(disk / "store") as store:
        assert store.check().is_clean


@pytest.mark.parametrize("disk", [1024], indirect=True)
def test_what_connections_share_has_no_holes(disk: Path) -> None:
    path = disk / "store/layerstore.db-shm"
    with Store(disk / "store") as store, Store(disk / "store") as again:
        status = path.stat()
        assert status.st_size == 4 * 32768
        assert status.st_blocks * 512 >= status.st_size
        assert (status.st_dev, status.st_ino) in wal_index._held
        again.tag("plain:1", "other:1")
        again.close()
        assert (status.st_dev, status.st_ino) in wal_index._held
        store.image("other:1")
    assert not path.exists()
    assert wal_index._held == {}


@pytest.mark.parametrize("disk", [1024], indirect=True)
def test_holes_that_others_have_left_are_closed(disk: Path) -> None:
    """Who came first found no room, and somebody else has opened the file meanwhile."""
    database = str(disk / "store/layerstore.db")
    fd = os.open(f"{database}-shm", os.O_RDWR | os.O_CREAT)
    try:
        locks.share_after(fd, wal_index._FIRST_COME, lambda: None)
        os.truncate(fd, 32768)
        with full(disk), pytest.raises(OSError, match="the disk is full, and this file needs room"):
            wal_index.have_whole(database)
        assert wal_index._held == {}
        wal_index.let_go(wal_index.have_whole(database))
        status = os.fstat(fd)
        assert status.st_blocks * 512 >= status.st_size == 32768
    finally:
        os.close(fd)


WRITES = """
import sys
from layerstore import Store
for number in range(8):
    with Store(sys.argv[1]) as store:
        store.tag("plain:1", f"of-{sys.argv[2]}:{number}")
"""


@pytest.mark.parametrize("disk", [1024], indirect=True)
def test_many_open_and_close_it_at_once(disk: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-c", WRITES, str(disk / "store")]
    processes = [subprocess.Popen([*argv, str(number)], env=environment) for number in range(4)]
    assert [process.wait(60) for process in processes] == [0] * 4
    with Store(disk / "store") as store:
        assert len(store.image("plain:1").names) == 1 + 4 * 8
        assert store.check().is_clean
