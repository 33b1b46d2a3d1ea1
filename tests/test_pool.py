"""Pools: a store's own XFS in a sparse file. Every test leaves no loop device and no mount (conftest.py checks too)."""

import contextlib
import errno
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from beside import rows
from campaigns import logged_disk
from cases import case
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from leftovers import loop_devices, mount_points
from meddling import Meddling
from pools import POOL_BYTES, needs_mkfs, needs_root, pool_store
from waiting import wait_for

from layerstore import Store
from layerstore._core import mount
from layerstore._core import pool as core
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, NotFound, Unsupported
from layerstore.store import pool as pools
from layerstore.store import reflink
from layerstore.store.pool import Pool
from layerstore.store.reflink import has_reflink

ROOT = Path(__file__).parent.parent
LARGE_BYTES = 64 << 20
pytestmark = [needs_root, needs_mkfs, pytest.mark.root]


def image() -> Image:
    large = random.Random(1).randbytes(LARGE_BYTES)
    return Image([write_tar([Entry("file", "large", data=large), Entry("file", "small", data=b"s")])], ["app:1"])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A store on a pool, with an image of a large file."""
    with pool_store(tmp_path_factory.mktemp("shared")) as store:
        store.load(io.BytesIO(tar_of(docker_files([image()]))))
        yield store


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """Where a test may make a store on a pool; detached at the end."""
    if has_reflink(str(tmp_path)):
        pytest.skip("the file system of the tests has reflink already: no pool is made")
    yield tmp_path / "store"
    if Pool(str(tmp_path / "store")).exists():
        assert Pool(str(tmp_path / "store")).detach()
    assert not [point for point in mount_points() if point.startswith(str(tmp_path))]
    wait_until_free(tmp_path / "store")


def devices_of(root: Path) -> list[str]:
    return [device for device, file in loop_devices().items() if file == f"{root}/pool.img"]


def wait_until_free(root: Path) -> None:
    """Whoever looks at all loop devices at this moment, another test, keeps this one attached until he closes it."""
    wait_for(lambda: devices_of(root) == [])


def is_attached(root: Path) -> bool:
    return str(root / "pool") in mount_points()


def pool_of(store: Store) -> Pool:
    assert store.pool is not None
    return store.pool


def command(root: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    line = [sys.executable, "-m", "layerstore", "--root", str(root), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(line, env=environment, capture_output=True, text=True)


def child(program: str, root: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-c", program, str(root)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


class TestInit:
    def test_a_store_is_made_on_it(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            assert is_attached(root)
            assert len(devices_of(root)) == 1
            assert store.root == root
            assert has_reflink(store.layout.containers)
            status = pool_of(store).status()
            assert 0.8 * POOL_BYTES < status.size_bytes < POOL_BYTES
            assert status.host_bytes < 0.3 * POOL_BYTES
            assert status.used_bytes < status.size_bytes
        assert not is_attached(root)
        wait_until_free(root)
        assert sorted(os.listdir(root)) == ["pool", "pool.img", "pool.lock"]
        assert os.listdir(root / "pool") == []
        assert root.stat().st_mode & 0o777 == 0o700

    def test_it_is_attached_whenever_the_store_is_opened(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            store.import_rootfs(io.BytesIO(write_tar([Entry("file", "f", data=b"x")])), "one")
        for _ in range(2):
            with Store(root) as store:
                assert store.image("one").names == ["one:latest"]
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            assert len(store.images()) == 1

    @pytest.mark.parametrize("size", [-1, 0, 1 << 20, (300 << 20) - 1])
    def test_too_small(self, root: Path, size: int) -> None:
        with pytest.raises(InvalidInput, match="300 MiB"):
            Store(root, create=True, pool_bytes=size)
        assert not (root / "pool.img").exists()

    def test_the_smallest(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=300 << 20) as store:
            assert store.images() == []

    def test_a_store_without_a_pool_gets_none(self, root: Path) -> None:
        Store(root, create=True).close()
        with pytest.raises(Conflict, match="without a pool"):
            Store(root, create=True, pool_bytes=POOL_BYTES)
        with Store(root) as store:
            assert store.pool is None

    def test_something_else_is_in_the_directory(self, root: Path) -> None:
        root.mkdir()
        (root / "letter").write_text("dear")
        with pytest.raises(InvalidInput, match="'letter'"):
            Store(root, create=True, pool_bytes=POOL_BYTES)
        assert os.listdir(root) == ["letter"]

    def test_without_xfsprogs(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "/nowhere")
        monkeypatch.setattr(pools, "_SEARCH_PATH", "/nowhere/else")
        with pytest.raises(Unsupported, match="apt-get install xfsprogs"):
            Store(root, create=True, pool_bytes=POOL_BYTES)

    def test_without_privilege(self) -> None:
        program = """if True:
            import os, sys
            from layerstore import Store, errors
            import layerstore.store.pool
            os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)
            try:
                Store(sys.argv[1], create=True, pool_bytes=512 << 20)
            except errors.Unsupported as error:
                print(error)
        """
        with tempfile.TemporaryDirectory(prefix="layerstore-") as directory:
            os.chmod(directory, 0o777)
            out, err = child(program, Path(directory, "store")).communicate()
            assert "run as root" in out, err
            assert os.listdir(f"{directory}/store") == []

    def test_a_failing_mkfs_is_told(self, root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        program = tmp_path / "mkfs.xfs"
        program.write_text("#!/bin/sh\necho it broke >&2\nexit 1\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(LayerstoreError, match="it broke"):
            Store(root, create=True, pool_bytes=POOL_BYTES)
        monkeypatch.undo()
        Store(root, create=True, pool_bytes=POOL_BYTES).close()

    def test_a_close_that_is_interrupted_is_no_failure(self, root: Path, meddle: Meddling) -> None:
        closed = meddle.interrupt_closes(lambda path: path.endswith(".new"))
        Pool(str(root)).create(POOL_BYTES)
        assert closed == [f"{root}/.pool.img.new"]

    def test_where_the_file_system_has_reflink_none_is_made(self, shared: Store) -> None:
        inside = Path(pool_of(shared).target) / "another"
        with Store(inside, create=True, pool_bytes=POOL_BYTES) as store:
            assert store.pool is None
        done = command(inside, "init", "--pool", "1G")
        assert (done.returncode, done.stdout) == (0, f"{inside}\n")
        assert "no pool is needed" in done.stderr
        shutil.rmtree(inside)


KILLED = """if True:
    import os, signal, sys
    left = int(sys.stdin.readline())
    watched = {"open", "os.rename", "os.truncate", "os.chmod", "subprocess.Popen", "fcntl.flock"}
    def count(event, arguments):
        global left
        if event in watched and (event[0] != "o" or any(str(one).startswith(sys.argv[1]) for one in arguments[:1])):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)
    from layerstore import Store
    sys.addaudithook(count)
    Store(sys.argv[1], create=True, pool_bytes=512 << 20).close()
"""


def test_killed_anywhere_while_it_is_made(root: Path) -> None:
    """The next init finishes it, whatever is there."""
    unfinished = 0
    for step in range(1, 200, 2):
        process = child(KILLED, root)
        _, errors = process.communicate(f"{step}\n")
        assert process.returncode in (0, -signal.SIGKILL), errors
        if process.returncode == 0:
            break
        if step % 3 == 0:
            try:
                Store(root).close()
            except NotFound as error:
                assert "layerstore init" in str(error)
                unfinished += 1
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            assert store.images() == []
        assert sorted(os.listdir(root)) == ["pool", "pool.img", "pool.lock"]
        shutil.rmtree(root)
    assert step > 8
    assert unfinished
    process.wait()


def is_dead(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


class TestAttaching:
    def test_many_processes_at_once(self, root: Path) -> None:
        Store(root, create=True, pool_bytes=POOL_BYTES).close()
        program = """if True:
            import sys
            from layerstore import Store
            from layerstore.store.db import Database
            for i in range(6):
                with Store(sys.argv[1]) as store:
                    assert store.images() == []
                    database = Database(store.layout.database, store.layout.database_lock)
                    with database.transaction() as db:
                        db.execute("UPDATE counters SET value = value + 1 WHERE name = 'packs'")
                    database.close()
        """
        running = [child(program, root) for _ in range(4)]
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
        wait_until_free(root)
        with Store(root) as store:
            assert len(devices_of(root)) == 1
            query = "SELECT value FROM counters WHERE name = 'packs'"
            assert rows(store.layout, query) == [(24,)]

    def test_many_threads_at_once(self, root: Path) -> None:
        Store(root, create=True, pool_bytes=POOL_BYTES).close()
        failures = []

        def use() -> None:
            try:
                for _ in range(5):
                    with Store(root) as store:
                        store.images()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        wait_until_free(root)

    def test_it_stays_while_another_has_it_open(self, root: Path) -> None:
        one = Store(root, create=True, pool_bytes=POOL_BYTES)
        two = Store(root)
        one.close()
        assert is_attached(root)
        assert two.images() == []
        two.close()
        assert not is_attached(root)

    def test_what_was_looked_at_does_not_keep_it(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            store.import_rootfs(io.BytesIO(write_tar([Entry("file", "f", data=b"x")])), "one")
            container = store.create("one")
            assert container.diff() == []
            assert store.image("one").view.read_bytes("/f") == b"x"
        assert not is_attached(root)

    def test_a_killed_process_leaves_nothing_that_matters(self, root: Path) -> None:
        Store(root, create=True, pool_bytes=POOL_BYTES).close()
        program = """if True:
            import sys
            from layerstore import Store
            store = Store(sys.argv[1])
            print("open", flush=True)
            sys.stdin.read()
        """
        process = child(program, root)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        process.kill()
        process.communicate()
        assert is_attached(root)
        with Store(root) as store:
            assert store.images() == []
            assert len(devices_of(root)) == 1
        assert not is_attached(root)

    def test_another_mount_namespace_uses_the_same_device(self, root: Path) -> None:
        Store(root, create=True, pool_bytes=POOL_BYTES).close()
        with Store(root) as store:
            store.import_rootfs(io.BytesIO(write_tar([Entry("file", "f", data=b"x")])), "one")
        program = """if True:
            import ctypes, sys
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.unshare(0x20000) == 0
            assert libc.mount(None, b"/", None, 0x44000, None) == 0  # private, recursively
            from layerstore import Store
            store = Store(sys.argv[1])
            print(len(store.images()), flush=True)
            sys.stdin.readline()
            store.close()
        """
        process = child(program, root)
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        assert not is_attached(root)
        with Store(root) as store:
            assert len(devices_of(root)) == 1
            assert len(store.images()) == 1
        assert len(devices_of(root)) == 1
        _, errors = process.communicate("\n")
        assert process.returncode == 0, errors
        wait_until_free(root)

    def test_the_device_of_another_path_to_the_file_is_found(self, root: Path, tmp_path: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES):
            os.link(root / "pool.img", tmp_path / "same")
            with open(tmp_path / "same", "r+b") as file:
                loop = core.find_loop(file.fileno())
            assert loop is not None
            assert [Path(loop.path).name] == devices_of(root)
            loop.close()

    @case("a loop device of the machine whose file is dead", "passed over")
    def test_a_device_whose_file_cannot_be_asked_is_passed_over(self, tmp_path: Path) -> None:
        """One on a file system whose server has died."""
        served, image = tmp_path / "served", tmp_path / "image"
        served.mkdir()
        image.write_bytes(bytes(1 << 20))
        with contextlib.ExitStack() as stack:
            server = subprocess.Popen([logged_disk.built(), image, tmp_path / "log", served])
            stack.callback(server.wait)
            stack.callback(server.kill)
            wait_for(lambda: os.path.ismount(served))
            stack.callback(subprocess.run, ["umount", "-l", served], check=True)
            device = stack.enter_context(logged_disk.loop_device(served / "disk"))
            server.kill()
            server.wait()
            wait_for(lambda: is_dead(served / "disk"))  # what the kernel remembers of it is good for a second
            file = stack.enter_context(open(image, "r+b"))
            assert core.find_loop(file.fileno()) is None
            with core.attach_loop(file.fileno()) as ours, core.find_loop(file.fileno()) as found:
                assert found.path == ours.path != device

    def test_a_pool_whose_file_is_gone(self, root: Path) -> None:
        with pytest.raises(NotFound, match="layerstore init --pool"), Pool(str(root.parent)).attached():
            pass

    def test_errors_of_the_device(self, tmp_path: Path) -> None:
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            with pytest.raises(OSError, match="attach a file to /dev/loop"):
                core.attach_loop(fd)
            assert core.find_loop(fd) is None
        finally:
            os.close(fd)


@pytest.mark.kernel
class TestContainers:
    def test_mounted_ones_keep_it_attached(self, shared: Store) -> None:
        container = shared.create("app:1")
        with container.mount() as view:
            with Store(shared.root) as other:
                assert other.container(container.id).state == "mounted"
            assert not pool_of(shared).detach()
            assert (view / "small").read_bytes() == b"s"

    def test_a_mounted_container_outlives_the_store(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            store.import_rootfs(io.BytesIO(write_tar([Entry("file", "f", data=b"x")])), "one")
            container = store.create("one")
            container.mount()
        assert is_attached(root)
        assert (container.root / "f").read_bytes() == b"x"
        with Store(root) as store:
            store.remove(store.containers())
        assert not is_attached(root)

    def test_a_write_into_a_large_file_copies_nothing(self, shared: Store) -> None:
        with shared.create("app:1").mount() as view, open(view / "large", "r+b") as file:
            before = allocated(shared)
            file.seek(12_345)
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            assert allocated(shared) - before <= 64 << 10
            assert os.fstat(file.fileno()).st_size == LARGE_BYTES

    def test_chmod_copies_nothing(self, shared: Store) -> None:
        with shared.create("app:1").mount() as view:
            before = allocated(shared)
            os.chmod(view / "large", 0o600)
            os.chown(view / "large", 5, 6)
            assert allocated(shared) - before <= 64 << 10
            upper = view.parent / "upper" / "large"
            assert upper.stat().st_blocks == 0
            assert (view / "large").stat().st_uid == 5
            with open(view / "large", "rb") as file:
                assert file.read(100) == random.Random(1).randbytes(LARGE_BYTES)[:100]


def allocated(store: Store) -> int:
    """Bytes in use on the pool, what is written and not yet placed included."""
    fd = os.open(store.layout.root, os.O_RDONLY)
    mount.syncfs(fd)
    os.close(fd)
    status = os.statvfs(store.layout.root)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


class TestSize:
    def test_growing_in_use(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            pool = pool_of(store)
            before = pool.status().size_bytes
            pool.grow(1 << 30)
            assert pool.status().size_bytes == before + (1 << 30) - POOL_BYTES
            pool.grow(1 << 30)
            with pytest.raises(InvalidInput, match="does not shrink"):
                pool.grow(POOL_BYTES)
            data = random.Random(2).randbytes(100 << 20) * 6
            with open(f"{store.layout.root}/filler", "wb") as file:
                file.write(data)
        with Store(root) as store:
            with open(f"{store.layout.root}/filler", "rb") as file:
                assert file.read() == data
            os.unlink(f"{store.layout.root}/filler")

    def test_growing_that_was_interrupted_is_finished(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            before = pool_of(store).status().size_bytes
            os.truncate(root / "pool.img", 1 << 30)
        with Store(root) as store:
            assert pool_of(store).status().size_bytes == before
            pool_of(store).grow(1 << 30)
            assert pool_of(store).status().size_bytes == before + (1 << 30) - POOL_BYTES

    def test_what_is_removed_goes_back_to_the_host(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=POOL_BYTES) as store:
            pool = pool_of(store)
            empty = pool.status().host_bytes
            tar = write_tar([Entry("file", "f", data=random.Random(3).randbytes(100 << 20))])
            store.import_rootfs(io.BytesIO(tar), "big")
            assert pool.status().host_bytes > empty + (90 << 20)
            store.remove_image("big")
            store.collect_garbage()
            wait_for(lambda: pool.trim() >= 0 and pool.status().host_bytes < empty + (20 << 20), 10, 0.1)

    def test_the_hosts_disk_is_taken_as_it_fills(self, root: Path) -> None:
        with Store(root, create=True, pool_bytes=1 << 40) as store:
            assert pool_of(store).status().size_bytes > 0.9 * (1 << 40)
            assert pool_of(store).status().host_bytes < 4 << 30

    def test_larger_than_a_file_may_be(self, root: Path) -> None:
        with pytest.raises(OSError, match=r"pool\.img"):
            Store(root, create=True, pool_bytes=1 << 62)
        assert os.listdir(root) == ["pool.lock"]


class TestCommand:
    def test_from_init_to_detach(self, root: Path) -> None:
        assert command(root, "init", "--pool", "512MB").stdout == f"{root}\n"
        shown = json.loads(command(root, "pool", "--format", "json").stdout)[0]
        assert shown["image"] == str(root / "pool.img")
        assert is_attached(root)  # a command leaves it so: the next one is quicker
        assert command(root, "pool", "grow", "1.024GB").returncode == 0
        grown = json.loads(command(root, "pool", "show", "--format", "json").stdout)[0]
        assert abs(grown["size_bytes"] - shown["size_bytes"] - 512_000_000) < 2 << 20
        assert command(root, "pool").stdout.startswith("SIZE ")
        assert command(root, "pool", "trim").stdout.endswith(" given back\n")
        with Store(root):
            busy = command(root, "pool", "detach")
            assert (busy.returncode, busy.stdout) == (1, "")
            assert "in use" in busy.stderr
        assert command(root, "pool", "detach").returncode == 0
        assert not is_attached(root)

    def test_wrong_uses(self, root: Path, shared: Store) -> None:
        for arguments in (["pool", "grow"], ["pool", "trim", "1G"]):
            done = command(shared.root, *arguments)
            assert done.returncode == 1
            assert "pool grow SIZE" in done.stderr
        assert "'much' is not a size" in command(root, "init", "--pool", "much").stderr
        Store(root, create=True).close()
        done = command(root, "pool")
        assert done.returncode == 1
        assert "has no pool" in done.stderr


def test_the_reflink_probe_leaves_other_errors_alone(meddle: Meddling, tmp_path: Path) -> None:
    meddle.fail(reflink.fcntl, "ioctl", OSError(errno.ENOSPC, "full"))
    with pytest.raises(OSError, match="full"):
        has_reflink(str(tmp_path))
