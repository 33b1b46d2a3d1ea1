"""Containers, from create to rm: mounts, programs in them, errors, and what a killed process leaves."""

import ctypes
import errno
import io
import mmap
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling
from test_load import child
from test_many import is_waited_for
from waiting import wait_for

from layerstore import Store, Volume
from layerstore._core import mount
from layerstore.containers import copying
from layerstore.containers.containers import Containers
from layerstore.containers.runtime import Runtime
from layerstore.errors import Conflict, InvalidInput, NotFound, ProgramNotExecutable, ProgramNotFound
from layerstore.mount.shared import Mounts

BUSYBOX = Path("/bin/busybox")
APPLETS = ("sh", "cat", "echo", "sleep", "id", "env", "pwd", "true", "false", "touch", "kill", "ls", "mknod")
ROOT = Path(__file__).parent.parent
LARGE = random.Random(4).randbytes(300_000)

root_only = pytest.mark.skipif(
    os.geteuid() != 0 or not mount.features().erofs, reason="mounting needs root, EROFS and overlayfs"
)
runs = pytest.mark.skipif(not BUSYBOX.exists(), reason=f"{BUSYBOX} is not there: apt-get install busybox-static")
pytestmark = [pytest.mark.root]


def base() -> list[Entry]:
    return [
        Entry("dir", ".", mode=0o755, uid=0, mtime=(1_000_000_000, 5)),
        Entry("dir", "etc", mode=0o755),
        Entry("file", "etc/passwd", data=b"root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home/bob:/bin/sh\n"),
        Entry("file", "etc/group", data=b"root:x:0:\nbob:x:1001:\nstaff:x:50:bob\n"),
        Entry("file", "large", data=LARGE, mode=0o640, uid=7),
        Entry("dir", "tmp", mode=0o1777),
        Entry("char", "null", device=(1, 3), mode=0o666),
    ]


def busybox() -> bytes:
    data = BUSYBOX.read_bytes() if BUSYBOX.exists() else b""
    program = [Entry("dir", "bin", mode=0o755), Entry("file", "bin/busybox", data=data, mode=0o755)]
    # What a runtime and the host's network otherwise make themselves.
    program += [Entry("dir", name, mode=0o755) for name in ("dev", "proc", "sys")]
    program += [Entry("file", f"etc/{name}") for name in ("hosts", "resolv.conf")]
    return write_tar([*program, *(Entry("symlink", f"bin/{name}", link="busybox") for name in APPLETS)])


PLAIN = Image([write_tar(base()), write_tar([Entry("file", "second", data=b"2")])], ["plain:1"])
BOX = Image([write_tar(base()), busybox()], ["box:1"], runtime={"Cmd": ["/bin/sh", "-c", "exit 3"], "Env": ["A=image"]})


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    directory = tmp_path_factory.mktemp("containers")
    with Store(directory / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([PLAIN, BOX]))))
        yield opened


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    module_store.remove(module_store.containers(), force=True)
    assert mounts_below(module_store.root) == []


def mounts_below(root: Path) -> list[str]:
    lines = Path("/proc/self/mounts").read_text().splitlines()
    return [target for line in lines if (target := line.split()[1]).startswith(f"{root}/")]


def cached_pages(path: Path) -> tuple[int, int]:
    """How many pages of a file are in the page cache, of how many (mincore(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        start = ctypes.c_char.from_buffer(mapped)
        pages = -(-len(mapped) // mmap.PAGESIZE)
        resident = (ctypes.c_ubyte * pages)()
        result = libc.mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(len(mapped)), resident)
        del start
    assert result == 0, os.strerror(ctypes.get_errno())
    return sum(page & 1 for page in resident), pages


def drop_from_cache(path: Path) -> None:
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class TestCreate:
    def test_one(self, store: Store) -> None:
        container = store.create("plain:1", name="one")
        assert (container.state, container.name, container.image.id) == ("created", "one", PLAIN.id)
        assert [c.id for c in store.containers()] == [container.id]
        for text in ("one", container.id, container.id[:12], container.id[:3]):
            assert store.container(text).id == container.id
        assert container.inspect()["ImageName"] == "plain:1"
        assert container.diff() == []

    def test_many(self, store: Store) -> None:
        made = store.create("plain:1", count=300)
        assert len({container.id for container in made}) == 300
        assert {c.id for c in store.containers()} == {c.id for c in made}
        store.remove(made[:100])
        assert {c.id for c in store.containers()} == {c.id for c in made[100:]}
        assert len(list((store.root / "containers").iterdir())) == 200

    def test_newest_first(self, store: Store) -> None:
        ids = [store.create("plain:1").id for _ in range(3)]
        assert [c.id for c in store.containers()] == ids[::-1]

    def test_count_of_one_is_a_list(self, store: Store) -> None:
        assert len(store.create(store.image("plain:1"), count=1)) == 1

    def test_errors(self, store: Store) -> None:
        with pytest.raises(NotFound, match="no image 'nothing'"):
            store.create("nothing")
        for count in (0, -1):
            with pytest.raises(InvalidInput, match="count"):
                store.create("plain:1", count=count)
        store.create("plain:1", name="taken")
        with pytest.raises(Conflict, match="taken"):
            store.create("plain:1", name="taken")
        assert len(list((store.root / "containers").iterdir())) == len(store.containers()) == 1
        for name in ("", "a/b", "-x", "new\nline", "ä"):
            with pytest.raises(InvalidInput, match="name"):
                store.create("plain:1", name=name)
        with pytest.raises(NotFound):
            store.container("no-such")
        with pytest.raises(NotFound):
            store.container("")

    def test_an_ambiguous_beginning(self, store: Store) -> None:
        made = store.create("plain:1", count=40)
        with pytest.raises(InvalidInput, match="more than one"):
            store.container(next(a.id[0] for a in made for b in made if a.id != b.id and a.id[0] == b.id[0]))

    def test_an_image_removed_meanwhile(self, store: Store) -> None:
        tar = write_tar([Entry("file", "f", data=b"x")])
        image = store.import_rootfs(io.BytesIO(tar), "gone")
        found = store.image("gone")
        chain = store._engine.chains.mountable(found.chain_id, lambda: found.diff_ids)
        store.remove_image("gone")
        with pytest.raises(NotFound):
            store._engine.containers.create(image.id, "gone", chain, 1, None, False)
        assert list((store.root / "containers").iterdir()) == []

    def test_an_interrupt_right_after_the_commit(self, store: Store, meddle: Meddling) -> None:
        meddle.interrupt_commits(ALWAYS)
        with pytest.raises(KeyboardInterrupt):
            store.create("plain:1")
        meddle.undo()
        (container,) = store.containers()
        assert container.diff() == []

    def test_an_image_in_use_is_not_removed(self, store: Store) -> None:
        container = store.create("plain:1")
        with pytest.raises(Conflict, match=container.id[:12]):
            store.remove_image("plain:1")
        assert store.image("plain:1").id == PLAIN.id


@root_only
class TestMount:
    def test_the_view(self, store: Store) -> None:
        container = store.create("plain:1")
        with container.mount() as root:
            assert root == container.root
            assert container.state == "mounted"
            assert sorted(os.listdir(root)) == ["etc", "large", "null", "second", "tmp"]
            assert (root / "large").read_bytes() == LARGE
            status = (root / "large").stat()
            assert (status.st_mode & 0o7777, status.st_uid) == (0o640, 7)
            assert root.stat().st_mtime_ns == 1_000_000_000_000_000_005
            (root / "new").write_bytes(b"new")
        assert container.state == "created"
        assert os.listdir(root) == []
        with container.mount() as root:
            assert (root / "new").read_bytes() == b"new"

    def test_containers_do_not_see_each_other(self, store: Store) -> None:
        made = store.create("plain:1", count=20)
        store.mount(made)
        for i, container in enumerate(made):
            (container.root / "second").write_bytes(b"%d" % i)
        assert [(c.root / "second").read_bytes() for c in made] == [b"%d" % i for i in range(20)]
        assert store.states(made) == ["mounted"] * 20

    def test_hundreds_of_several_images(self, store: Store) -> None:
        made = store.create("plain:1", count=150) + store.create("box:1", count=150)
        random.Random(0).shuffle(made)
        store.mount(made)
        assert len(mounts_below(store.root)) == 300 + 2 + 1  # two chains, one pack
        assert all((c.root / "etc/passwd").exists() for c in made)
        store.umount(made)
        assert mounts_below(store.root) == []

    def test_mounting_twice_is_mounting_once(self, store: Store) -> None:
        container = store.create("plain:1")
        container.mount()
        container.mount()
        assert sum(m.startswith(str(container.root)) for m in mounts_below(store.root)) == 1
        container.umount()
        container.umount()
        assert container.state == "created"

    def test_the_last_umount_takes_chain_and_pack_away(self, store: Store) -> None:
        one, two = store.create("plain:1", count=2)
        other = store.create("box:1")
        store.mount([one, two, other])
        one.umount()
        assert len(mounts_below(store.root)) == 2 + 2 + 1
        two.umount()
        assert len(mounts_below(store.root)) == 1 + 1 + 1
        assert (other.root / "large").read_bytes() == LARGE
        other.umount()
        assert mounts_below(store.root) == []

    @pytest.mark.parametrize("clear", [lambda store: store.umount(store.containers()), Store.collect_garbage])
    def test_what_a_killed_process_left_goes(self, store: Store, clear: Callable[[Store], object]) -> None:
        """It had unmounted the container and not yet what only that used."""
        container = store.create("plain:1")
        container.mount()
        mount.umount(container.root)
        assert len(mounts_below(store.root)) == 2
        clear(store)
        assert mounts_below(store.root) == []

    def test_a_cold_image_is_read_ahead(self, store: Store) -> None:
        tar = write_tar([Entry("file", f"{i:04}", data=b"%d" % i) for i in range(3000)])
        store.import_rootfs(io.BytesIO(tar), "files")
        container = store.create("files")
        images = [max(d.glob("*.erofs"), key=os.path.getmtime) for d in (store.root / "chains", store.root / "packs")]
        for image in images:
            drop_from_cache(image)
            cached, pages = cached_pages(image)
            # Two requests for readahead at least; memory that other processes map cannot be dropped.
            assert cached == 0 < 32 < pages
        with container.mount():
            for image in images:
                wait_for(lambda image=image: cached_pages(image)[0] == cached_pages(image)[1])  # type: ignore[misc]

    def test_what_is_in_use_is_not_unmounted(self, store: Store) -> None:
        container = store.create("plain:1")
        container.mount()
        with open(container.root / "second") as file:
            for act in (container.umount, container.remove):
                with pytest.raises(Conflict, match="force"):
                    act()
                assert container.state == "mounted"
            container.umount(force=True)
            assert container.state == "created"
            assert file.read() == "2"

    def test_what_cannot_be_unmounted_says_why(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """That is not always who uses it."""
        container = store.create("plain:1")

        def fail(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO), "root")

        with container.mount():
            with monkeypatch.context() as patch:
                patch.setattr(Mounts, "unmount", fail)
                for act in (container.umount, container.remove):
                    with pytest.raises(OSError, match="Input/output error"):
                        act()
            assert container.state == "mounted"

    def test_force_removes_what_is_in_use(self, store: Store) -> None:
        container = store.create("plain:1")
        container.mount()
        with open(container.root / "second") as file:
            container.remove(force=True)
            assert file.read() == "2"
        assert not container.root.exists()
        with pytest.raises(NotFound):
            store.container(container.id)

    def test_one_in_use_does_not_keep_the_others_mounted(self, store: Store) -> None:
        made = store.create("plain:1", count=3)
        store.mount(made)
        with open(made[1].root / "second"):
            with pytest.raises(Conflict):
                store.umount(made)
            assert store.states(made) == ["created", "mounted", "created"]

    def test_the_same_container_named_twice(self, store: Store) -> None:
        container = store.create("plain:1")
        store.mount([container, container])
        store.umount([container, container])
        store.remove([container, container])
        assert store.containers() == []

    def test_a_container_that_is_gone(self, store: Store) -> None:
        container = store.create("plain:1")
        container.remove()
        for act in (container.mount, container.diff):
            with pytest.raises(NotFound):
                act()
        container.umount()
        container.remove()
        assert mounts_below(store.root) == []

    def test_an_exception_in_the_block_still_unmounts(self, store: Store) -> None:
        container = store.create("plain:1")
        with pytest.raises(ZeroDivisionError), container.mount():
            raise ZeroDivisionError
        assert container.state == "created"

    def test_an_image_without_layers(self, store: Store) -> None:
        store.load(io.BytesIO(tar_of(docker_files([Image([], ["nothing:1"])]))))
        container = store.create("nothing:1")
        with container.mount() as root:
            assert os.listdir(root) == []
            (root / "f").write_bytes(b"x")
            assert [str(c.path) for c in container.diff()] == ["/f"]
        container.remove()
        store.remove_image("nothing:1")

    def test_threads(self, store: Store) -> None:
        made = store.create("plain:1", count=80)
        errors: list[Exception] = []

        def work(mine: list) -> None:
            try:
                for container in mine:
                    with container.mount() as root:
                        assert (root / "large").read_bytes() == LARGE
            except Exception as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(made[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert mounts_below(store.root) == []

    def test_processes(self, store: Store) -> None:
        program = """
            import sys
            from layerstore import Store
            with Store(sys.argv[1]) as store:
                for _ in range(25):
                    container = store.create(sys.argv[2])
                    with container.mount() as root:
                        assert (root / "large").stat().st_size == 300_000
                        assert len((root / "large").read_bytes()) == 300_000
                    container.remove()
        """
        running = [child(program, store.root, image) for image in ("plain:1", "plain:1", "box:1")]
        for process in running:
            _, errors = process.communicate()
            assert process.returncode == 0, errors.decode()
        assert mounts_below(store.root) == []
        assert store.containers() == []

    def test_what_a_killed_process_leaves_is_cleaned_up(self, store: Store) -> None:
        program = """
            import sys
            from layerstore import Store
            with Store(sys.argv[1]) as store:
                while True:
                    print("again", flush=True)
                    made = store.create("plain:1", count=5)
                    store.mount(made)
                    store.umount(made[:2])
                    store.remove(made[1:3])
        """
        draw = random.Random(2)
        for _ in range(5):
            with child(program, store.root, stdout=subprocess.PIPE) as process:
                for _ in range(2):
                    assert process.stdout is not None and process.stdout.readline()
                time.sleep(draw.random() * 0.05)
                process.kill()
                process.communicate()
            with Store(store.root) as fresh:
                fresh.mount(fresh.containers()[:4])
                left = fresh.containers()
                assert left
                fresh.umount(left)
                assert mounts_below(store.root) == []
                fresh.remove(left)
                fresh.collect_garbage()
                assert list((fresh.root / "containers").iterdir()) == []

    def test_what_is_busy_for_a_moment_is_unmounted(self, store: Store) -> None:
        """As another thread has it that starts a program: the new process has a copy of it until it executes."""
        container = store.create("plain:1")
        container.mount()
        fd = os.open(container.root, os.O_PATH)
        timer = threading.Timer(0.05, os.close, [fd])
        timer.start()
        container.umount()
        timer.join()
        assert container.state == "created"

    def test_an_unmounted_chain_is_made_again(self, store: Store) -> None:
        """Derived files may be removed, or be cut off by a crash."""
        container = store.create("plain:1")
        for path in (store.root / "chains").iterdir():
            if path.suffix == ".erofs":
                os.truncate(path, 100)
            else:
                path.unlink()
        with container.mount() as root:
            assert (root / "large").read_bytes() == LARGE


@root_only
@runs
class TestRun:
    def run(self, store: Store, *args: str, **options: object) -> tuple[int, str, str]:
        """Exit status, standard output and standard error."""
        container = store.create("box:1")
        fds = [os.memfd_create("stream") for _ in range(2)]
        try:
            status = container.run(list(args) or None, stdout=fds[0], stderr=fds[1], **options)  # type: ignore[arg-type]
            assert container.state == "created"
            texts = [os.pread(fd, 100_000, 0).decode() for fd in fds]
            return status, texts[0], texts[1]
        finally:
            for fd in fds:
                os.close(fd)
            container.remove()

    def test_the_images_command_and_its_status(self, store: Store) -> None:
        assert self.run(store) == (3, "", "")

    def test_streams_and_status(self, store: Store) -> None:
        assert self.run(store, "/bin/sh", "-c", "echo out; echo err >&2; exit 41") == (41, "out\n", "err\n")

    def test_the_status_of_a_signal(self, store: Store) -> None:
        container = store.create("box:1")
        status: list[int] = []
        thread = threading.Thread(target=lambda: status.append(container.run(["sleep", "100"])))
        thread.start()
        wait_for(lambda: container.state == "running")
        with pytest.raises(Conflict, match="running already"):
            container.run(["true"])
        container.kill(signal.SIGKILL)
        thread.join(10)
        assert status == [128 + signal.SIGKILL]
        assert container.state == "created"

    def test_devices(self, store: Store) -> None:
        script = "cat /dev/null /null && echo opened; mknod /tmp/null c 1 3 2>/dev/null || echo none made"
        assert self.run(store, "/bin/sh", "-c", script)[1] == "opened\nnone made\n"

    def test_environment(self, store: Store) -> None:
        _, out, _ = self.run(store, "env", env={"B": "own", "C": "x=y"})
        lines = out.splitlines()
        assert {"A=image", "B=own", "C=x=y", "HOME=/root"} <= set(lines)
        assert "A=own" in self.run(store, "env", env=["A=own"])[1].splitlines()

    def test_user_and_directory(self, store: Store) -> None:
        assert self.run(store, "id", user="bob")[1].strip().startswith("uid=1000(bob) gid=1001(bob)")
        assert self.run(store, "id", "-u", user="12:13")[1] == "12\n"
        assert self.run(store, "pwd", workdir="/made/here")[1] == "/made/here\n"
        with pytest.raises(InvalidInput, match="alice"):
            self.run(store, "id", user="alice")

    def test_volumes(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "f").write_text("from the host\n")
        volume = Volume(str(tmp_path), "/mnt/v")
        assert self.run(store, "cat", "/mnt/v/f", volumes=[volume])[1] == "from the host\n"
        assert self.run(store, "touch", "/mnt/v/made", volumes=[volume])[0] == 0
        assert (tmp_path / "made").exists()
        status, _, errors = self.run(store, "touch", "/mnt/v/f", volumes=[Volume(str(tmp_path), "/mnt/v", True)])
        assert (status, "Read-only" in errors) == (1, True)

    def test_entrypoint(self, store: Store) -> None:
        assert self.run(store, "hello", entrypoint=["/bin/echo", "-n"])[1] == "hello"

    def test_no_network_unless_asked_for(self, store: Store) -> None:
        assert self.run(store, "ls", "/sys/class/net")[1].split() == ["lo"]
        assert self.run(store, "ls", "/sys/class/net", network="host")[1].split() == sorted(
            os.listdir("/sys/class/net")
        )

    def test_what_was_written_stays_and_is_told(self, store: Store) -> None:
        container = store.create("box:1")
        assert container.run(["/bin/sh", "-c", "echo x > /new; echo y >> /etc/passwd"]) == 0
        found = {change.path: change.kind for change in container.diff()}
        assert (found["/new"], found["/etc"], found["/etc/passwd"]) == ("A", "C", "C")
        assert container.run(["cat", "/new"]) == 0

    def test_no_such_program(self, store: Store) -> None:
        container = store.create("box:1")
        for start in (container.run, container.start):
            with pytest.raises(ProgramNotFound, match="/no/such/program"):
                start(["/no/such/program"])
            with pytest.raises(ProgramNotExecutable, match="/etc/passwd"):
                start(["/etc/passwd"])
            assert container.state == "created"
        assert container.run(["true"]) == 0

    def test_without_a_command(self, store: Store) -> None:
        container = store.create("plain:1")
        with pytest.raises(InvalidInput, match="no command"):
            container.run()
        assert container.state == "created"
        with pytest.raises(InvalidInput, match="no command"):
            container.start()
        assert container.state == "created"

    def test_run_in_a_mounted_one_leaves_it_mounted(self, store: Store) -> None:
        container = store.create("box:1")
        with container.mount() as root:
            container.run(["touch", "/here"])
            assert container.state == "mounted"
            assert (root / "here").exists()

    def test_detached(self, store: Store) -> None:
        container = store.create("box:1")
        pid = container.start(["sleep", "100"])
        wait_for(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", b"100"])
        assert container.state == "running"
        assert container.inspect()["State"] == "running"
        for act in (container.remove, container.umount):
            with pytest.raises(Conflict):
                act()
            assert container.state == "running"
        with pytest.raises(Conflict, match="running already"):
            container.start(["sleep", "1"])
        container.kill()
        wait_for(lambda: container.state == "mounted")
        assert container.run(["true"]) == 0
        container.start(["sleep", "100"])
        container.remove(force=True)
        assert mounts_below(store.root) == []
        with pytest.raises(NotFound):
            container.kill()

    def test_a_program_whose_view_was_unmounted(self, store: Store) -> None:
        """The kernel would put a second overlay on the directories that it writes to."""
        container, other = store.create("box:1", count=2)
        container.start(["sleep", "100"])
        container.umount(force=True)
        acts: list[Callable[[], object]] = [
            container.mount,
            lambda: store.mount([other, container]),
            lambda: container.copy_in(__file__, "/file"),
            lambda: container.unpack(io.BytesIO(write_tar([])), "/"),
        ]
        for act in acts:
            with pytest.raises(Conflict, match="runs in a view that was unmounted; end it first"):
                act()
        assert mounts_below(store.root) == []
        container.kill()
        wait_for(lambda: container.state != "running")
        with container.mount():
            pass

    def test_who_was_killed_has_left_a_program_in_a_mount(self, store: Store) -> None:
        """It goes on, and whoever uses the container then leaves it mounted."""
        container = store.create("box:1")
        container.start(["sleep", "100"])
        borrowed = Path(store.layout.borrowed, container.id)
        borrowed.touch()  # as of `run` whose process was killed
        for _ in range(2):
            container.copy_in(__file__, "/file")
            assert str(container.root) in mounts_below(store.root)
        assert container.state == "running"
        container.kill()
        wait_for(lambda: container.state == "mounted")
        container.copy_in(__file__, "/file")
        assert container.state == "created"
        assert not borrowed.exists()

    def test_a_program_that_starts_while_it_is_unmounted(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is one or the other: nothing runs in what was unmounted."""
        container, unmount = store.create("box:1"), Mounts.unmount
        container.mount()
        starting = threading.Thread(target=lambda: container.start(["sleep", "100"]))

        def after_a_start(self: Mounts, containers: Sequence[str], *, lazy: bool = False) -> None:
            starting.start()
            lock = Path(store.layout.containers_lock)
            wait_for(lambda: not starting.is_alive() or is_waited_for(lock))
            unmount(self, containers, lazy=lazy)

        with monkeypatch.context() as patch:
            patch.setattr(Mounts, "unmount", after_a_start)
            container.umount()
        starting.join(60)
        assert container.state == "running"
        assert mounts_below(store.root).count(str(container.root)) == 1

    def test_a_removal_that_waited_ends_no_program(self, store: Store) -> None:
        """One that was started meanwhile."""
        container = store.create("box:1")
        export = container.entries()
        next(export)
        failed: list[Exception] = []

        def remove() -> None:
            try:
                container.remove()
            except Conflict as error:
                failed.append(error)

        removing = threading.Thread(target=remove)
        removing.start()
        wait_for(lambda: is_waited_for(Path(store.layout.containers_lock)))
        container.start(["sleep", "100"])
        export.close()
        removing.join(60)
        assert [str(error) for error in failed] == [
            f"container {container.id[:12]} is running; end it first, or remove it by force"
        ]
        assert container.state == "running"

    def test_a_removal_ends_no_program_that_is_being_started(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The runtime knows it, and it does not run yet."""
        container = store.create("box:1")
        start, failed = Runtime.start_watched, []

        def remove_first(*arguments: Any, **more: Any) -> int:
            with pytest.raises(Conflict, match="another process starts or ends a program") as caught:
                container.remove()
            failed.append(caught.value)
            return start(*arguments, **more)

        with monkeypatch.context() as patch:
            patch.setattr(Runtime, "start_watched", remove_first)
            container.start(["sleep", "100"])
        assert failed
        assert container.state == "running"

    @pytest.mark.parametrize("what", ["mounting", "using", "starting"])
    def test_what_is_removed_by_force_meanwhile_is_told(self, store: Store, meddle: Meddling, what: str) -> None:
        container = store.create("box:1")
        at = {
            "mounting": (Containers, "mount"),
            "using": (copying, "copy_in"),
            "starting": (Containers, "write_bundle"),
        }
        come_between = meddle.after if what == "mounting" else meddle.before
        come_between(*at[what], lambda: container.remove(force=True))
        with pytest.raises(NotFound, match="was removed meanwhile"):
            if what == "starting":
                container.start(["true"])
            else:
                container.copy_in(__file__, "/file")

    def test_fifty_at_once(self, store: Store, tmp_path: Path) -> None:
        made = store.create("box:1", count=50)
        store.mount(made)
        for i, container in enumerate(made):
            container.start(["/bin/sh", "-c", f"echo {i} > /number; sleep 100"])
        assert store.states(made) == ["running"] * 50
        wait_for(lambda: all((c.root / "number").exists() for c in made))
        assert [(c.root / "number").read_text() for c in made] == [f"{i}\n" for i in range(50)]
        store.remove(made, force=True)
        assert mounts_below(store.root) == []
        assert list((store.root / "run/runtime").iterdir()) == []


UNPRIVILEGED = """
    import io, os, sys
    from pathlib import Path
    sys.path[:0] = sys.argv[2].split(":")
    # Another user may not read where these are.
    from images import docker_files, tar_of
    from layerstore import Store, errors
    from layerstore.errors import Unsupported
    from test_containers import PLAIN
    import layerstore.api, layerstore.layers.loading, layerstore.layers.recipe, layerstore.containers.changes
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)

    with Store(os.path.join(sys.argv[1], "store"), create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([PLAIN]))))
        image = store.image("plain:1")
        assert [b"".join(image.layer_tar(d)) for d in image.diff_ids] == list(PLAIN.layers)
        container, other = store.create("plain:1", count=2)
        assert container.diff() == []
        upper = Path(container.inspect()["Upper"])
        (upper / "new").write_bytes(b"x")
        assert [(c.kind, c.path) for c in container.diff()] == [("A", "/new")]
        for act in (container.mount, lambda: container.run(["true"]), lambda: container.start(["true"])):
            try:
                act()
            except Unsupported as error:
                assert "root" in str(error), error
            else:
                raise AssertionError("it did not refuse")
        assert container.state == "created"
        other.umount()
        other.remove()
        store.tag("plain:1", "more:1")
        container.remove()
        assert store.remove_image("more:1") == ["Untagged: more:1"]
        store.remove_image("plain:1")
        assert store.collect_garbage().contents > 0
        print("done")
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_without_root(tmp_path: Path) -> None:
    own = Path("/tmp") / f"layerstore-test-{os.getpid()}"
    own.mkdir(mode=0o777)
    own.chmod(0o777)
    try:
        paths = ":".join(map(str, (ROOT, ROOT / "tests", *filter(None, sys.path))))
        with child(UNPRIVILEGED, own, paths, stdout=subprocess.PIPE, cwd=own) as process:
            output, errors = process.communicate()
        assert (process.returncode, output) == (0, b"done\n"), errors.decode()
    finally:
        subprocess.run(["rm", "-rf", own], check=True)
