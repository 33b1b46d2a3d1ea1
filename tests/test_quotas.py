"""Limits on the disks of containers, by project quotas of the pool that the store is on."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import docker_files, tar_of
from pools import needs_mkfs, pool_store
from test_commands import BOX, shell
from test_containers import ROOT, root_only, runs
from test_pool import wait_until_free

from layerstore import Container, Store
from layerstore._core import pool
from layerstore._core.mount import project_of
from layerstore.errors import InvalidInput, Unsupported

pytestmark = [pytest.mark.root, root_only, runs, needs_mkfs]

MIB = 1 << 20
WRITE = "busybox dd if=/dev/zero of={} bs=64K count={} 2>&1"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """On a pool with quotas."""
    directory = tmp_path_factory.mktemp("quotas")
    with pool_store(directory) as made:
        assert made.pool is not None
        made.pool.ask_for_quotas()
        owner = made.pool
    owner.detach()
    with Store(directory / "store") as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BOX]))))
        yield opened
        opened.remove(opened.containers(), force=True)
    wait_until_free(directory / "store")


def has_quotas(store: Store) -> bool:
    fd = os.open(store.layout.containers, os.O_RDONLY)
    try:
        pool.project_usage(fd, 1)
        return True
    except Unsupported:
        return False
    finally:
        os.close(fd)


@pytest.fixture
def limited(store: Store) -> Container:
    if not has_quotas(store):
        pytest.skip("this kernel's XFS has no quotas (CONFIG_XFS_QUOTA)")
    return store.create("box:1", disk_size="8m")


def fill(container: Container, path: str = "/file", mebibytes: int = 16) -> int:
    """How many MiB of so many can be written."""
    found = container.exec(["sh", "-c", WRITE.format(path, mebibytes * 16)], capture_output=True, text=True)
    assert ("No space left" in found.stdout) == (found.returncode != 0)
    return int(shell(container, f"busybox stat -c %s {path}")) // MIB


def project(path: Path) -> int:
    fd = os.open(path, os.O_RDONLY)
    try:
        return project_of(fd)
    finally:
        os.close(fd)


class TestLimit:
    def test_a_filler_gets_no_more(self, store: Store, limited: Container) -> None:
        assert fill(limited) in (7, 8)
        assert "No space left" in shell(limited, f"{WRITE.format('/other', 32)}; true")
        beside = store.create("box:1")
        assert fill(beside) == 16
        # A command can begin in one that is full, and make room.
        shell(limited, "busybox rm -f /file /other")
        assert fill(limited, "/again", 4) == 4

    def test_what_it_shows_of_its_disk(self, limited: Container) -> None:
        blocks, unit = shell(limited, "busybox stat -f -c '%b %S' /").split()
        assert int(blocks) * int(unit) == 8 * MIB

    def test_a_copy_up_counts(self, store: Store, limited: Container) -> None:
        limited.exec(["sh", "-c", "echo >>/etc/passwd"], check=True)
        fd = os.open(limited.root.parent, os.O_RDONLY)
        try:
            limit, used, _ = pool.project_usage(fd, project_of(fd))
        finally:
            os.close(fd)
        assert limit == 8 * MIB
        assert used >= os.stat(limited.root / "etc/passwd").st_size

    def test_after_a_fork(self, limited: Container) -> None:
        assert fill(limited, "/first", 5) == 5
        other = limited.fork()
        assert fill(other, "/second") <= 8
        assert fill(limited, "/third") <= 3

    def test_after_a_rollback(self, limited: Container) -> None:
        assert fill(limited, "/first", 5) == 5
        limited.stop()
        limited.umount()
        limited.snapshot("one")
        assert fill(limited, "/second", 2) == 2
        limited.rollback("one")
        assert fill(limited, "/third") <= 3
        shell(limited, "busybox rm /third; busybox mkdir -p /etc/new; busybox touch /etc/new/file")

    def test_each_of_many(self, store: Store, limited: Container) -> None:
        made = store.create("box:1", count=3, disk_size=8 * MIB)
        store.mount(made)
        assert len({project(one.root.parent / "upper") for one in made} - {0, 1}) == 3
        with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
            (made[0].root / "file").write_bytes(bytes(9 * MIB))
        (made[1].root / "file").write_bytes(bytes(7 * MIB))

    def test_no_move(self, limited: Container) -> None:
        with pytest.raises(Unsupported, match="has a limit on its disk, which the extent driver cannot hold"):
            limited.move("extent")

    def test_on_the_command_line(self, store: Store, limited: Container) -> None:
        script = WRITE.format("/file", 64)
        found = layerstore(store, "run", "--rm", "--storage-opt", "size=2m", "box:1", "sh", "-c", script)
        assert "No space left" in found.stdout
        made = layerstore(store, "create", "--storage-opt", "size=2m", "box:1").stdout.strip()
        assert fill(store.container(made)) in (1, 2)


def layerstore(store: Store, *args: str) -> subprocess.CompletedProcess[str]:
    root = store.root if store.pool is None else Path(store.pool.target).parent
    command = [sys.executable, "-m", "layerstore", "--root", str(root), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_without_quotas(tmp_path: Path) -> None:
    with pool_store(tmp_path) as store:
        store.load(io.BytesIO(tar_of(docker_files([BOX]))))
        with pytest.raises(Unsupported, match=r"the file system has no project quotas; .* `layerstore pool quotas`"):
            store.create("box:1", disk_size="8m")
        assert store.containers() == []
        assert os.listdir(Path(store.layout.containers)) == []
    wait_until_free(tmp_path / "store")


def test_a_pool_is_asked_for_quotas(tmp_path: Path) -> None:
    with pool_store(tmp_path) as store:
        assert not has_quotas(store)
    root = str(tmp_path / "store")
    command = [sys.executable, "-m", "layerstore", "--root", root, "pool", "quotas"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    with Store(root) as store:
        has_them = has_quotas(store)
    wait_until_free(tmp_path / "store")
    if not has_them:
        pytest.skip("this kernel's XFS has no quotas (CONFIG_XFS_QUOTA)")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"disk_size": "all"}, InvalidInput, "the size of a container's disk is 'all': it is a number"),
        ({"disk_size": 0}, InvalidInput, "the size of a container's disk is 0: it is 1 or more"),
        ({"disk_size": "1g", "driver": "extent"}, Unsupported, "the extent driver has no limit on disk"),
    ],
)
def test_refused(store: Store, options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        store.create("box:1", **options)  # type: ignore[call-overload]
    done = layerstore(store, "run", "--storage-opt", "inodes=3", "box:1", "true")
    assert (done.returncode, "--storage-opt inodes=3 is not to be had: size=SIZE is" in done.stderr) == (125, True)
