"""What a container cannot do, what docker's options loosen, and that control groups come and go with containers."""

import errno
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import leftovers
import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling
from test_containers import BOX, ROOT, base, busybox, root_only, runs
from waiting import wait_for

from layerstore import Container, Store, Volume
from layerstore._core import cgroup, mount
from layerstore.containers import bundle, containers, groups, seccomp
from layerstore.containers.confinement import CAPABILITIES, confined
from layerstore.containers.resources import PIDS_LIMIT, Resources
from layerstore.containers.runtime import Runtime
from layerstore.errors import Conflict, InvalidInput, NotFound, Unsupported

BOX_PROGRAM = "/bin/busybox"
FUSE, LOOP = (10, 229), (7, 0)  # which need no more than to be opened
UNIFIED = next((Path(place) for place in groups._PLACES if Path(place, "cgroup.procs").exists()), None)
PIDS_OF_V1 = Path("/sys/fs/cgroup/pids/tasks").exists()
PODMANS = Path("/usr/share/containers/seccomp.json")

pytestmark = [pytest.mark.root, root_only, runs]

# Prints of each call that it is named what it fails with; arguments that are no addresses fail with something else.
CALLS = r"""
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>
int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i += 2) {
		errno = 0;
		syscall(atol(argv[i]), atol(argv[i + 1]), -1L, -1L, -1L, -1L, -1L);
		printf("%d\n", errno);
	}
	return 0;
}
"""
# On x86-64 and arm64.
NUMBERS = {
    "x86_64": {
        "add_key": 248,
        "request_key": 249,
        "keyctl": 250,
        "io_uring_setup": 425,
        "userfaultfd": 323,
        "kcmp": 312,
        "unshare": 272,
        "setns": 308,
        "mount": 165,
        "fsopen": 430,
        "open_tree": 428,
        "move_mount": 429,
        "bpf": 321,
        "perf_event_open": 298,
        "pivot_root": 155,
        "kexec_load": 246,
        "open_by_handle_at": 304,
        "pidfd_getfd": 438,
        "reboot": 169,
        "vmsplice": 278,
        "clone3": 435,
        "clone": 56,
        "getpid": 39,
    },
    "aarch64": {
        "add_key": 217,
        "request_key": 218,
        "keyctl": 219,
        "io_uring_setup": 425,
        "userfaultfd": 282,
        "kcmp": 272,
        "unshare": 97,
        "setns": 268,
        "mount": 40,
        "fsopen": 430,
        "open_tree": 428,
        "move_mount": 429,
        "bpf": 280,
        "perf_event_open": 241,
        "pivot_root": 41,
        "kexec_load": 104,
        "open_by_handle_at": 265,
        "pidfd_getfd": 438,
        "reboot": 142,
        "vmsplice": 75,
        "clone3": 435,
        "clone": 220,
        "getpid": 172,
    },
}


def device_layer() -> bytes:
    return write_tar(
        [
            Entry("char", "fuse", device=FUSE, mode=0o666),
            Entry("block", "loop", device=LOOP, mode=0o666),
            Entry("char", "null", device=(1, 3), mode=0o666),
        ]
    )


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A program that tries system calls."""
    if os.uname().machine not in NUMBERS:
        pytest.skip("this architecture has other numbers of system calls")
    directory = tmp_path_factory.mktemp("calls")
    (directory / "calls.c").write_text(CALLS)
    command = ["cc", "-static", "-O1", "-o", directory / "calls", directory / "calls.c"]
    subprocess.run(command, check=True, capture_output=True)
    return (directory / "calls").read_bytes()


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory, calls: bytes) -> Iterator[Store]:
    program = write_tar([Entry("file", "calls", data=calls, mode=0o755)])
    boxes = [
        BOX,
        Image([write_tar(base()), busybox(), device_layer()], ["devices:1"]),
        Image([write_tar(base()), busybox(), program], ["calls:1"]),
    ]
    with Store(tmp_path_factory.mktemp("confinement") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files(boxes))))
        yield opened


IDS: set[str] = set()
"""Of the containers that were made here: other stores of this machine have theirs."""


def control_groups() -> list[str]:
    return leftovers.control_groups(IDS)


@pytest.fixture
def store(module_store: Store, meddle: Meddling) -> Iterator[Store]:
    meddle.noted(containers, "insert_rows", lambda _, rows: IDS.update(row.id for row in rows))
    yield module_store
    module_store.remove(module_store.containers(), force=True)
    assert control_groups() == []


def run(store: Store, *args: str, image: str = "box:1", **options: object) -> tuple[int, str]:
    """Exit status, and what it writes to standard output and error."""
    container = store.create(image)
    fd = os.memfd_create("stream")
    try:
        status = container.run(list(args), stdout=fd, stderr=fd, **options)  # type: ignore[arg-type]
        return status, os.pread(fd, 100_000, 0).decode()
    finally:
        os.close(fd)
        container.remove()


def shell(store: Store, script: str, **options: object) -> str:
    return run(store, "/bin/sh", "-c", script, **options)[1]


def tried(store: Store, *names: str, argument: int = -1, **options: object) -> dict[str, int]:
    """Of system calls the errno of each, with arguments that none of them takes."""
    numbers = NUMBERS[os.uname().machine]
    args = [text for name in names for text in (str(numbers[name]), str(argument))]
    return dict(zip(names, map(int, run(store, "/calls", *args, image="calls:1", **options)[1].split()), strict=True))


def group_of(container: Container) -> Path:
    assert UNIFIED is not None
    return UNIFIED / groups.name_of(container.id)


class TestGroup:
    def test_it_holds_what_runs_in_the_container(self, store: Store) -> None:
        container = store.create("box:1")
        pid = container.start(["/bin/sh", "-c", "(sleep 1000 &); exec sleep 1000"])
        wait_for(lambda: len((group_of(container) / "cgroup.procs").read_text().split()) == 2)
        assert str(pid) in (group_of(container) / "cgroup.procs").read_text().split()
        own = Path("/proc/self/cgroup").read_text().splitlines()[-1]
        assert own not in Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        # Nothing of the runtime's is in it, and none of ours.
        assert str(os.getpid()) not in (group_of(container) / "cgroup.procs").read_text().split()

    def test_inside_it_is_the_root(self, store: Store) -> None:
        lines = shell(store, "cat /proc/self/cgroup").splitlines()
        assert lines
        assert {line.split(":", 2)[2] for line in lines} == {"/"}

    def test_a_fork_bomb_stays_in_it(self, store: Store) -> None:
        bomb = "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 0.2; echo forked; sleep 1000"
        container = store.create("box:1")
        container.start(["/bin/sh", "-c", bomb], pids_limit=20)
        limited = Path("/sys/fs/cgroup/pids") if PIDS_OF_V1 else UNIFIED
        assert limited is not None
        directory = limited / groups.name_of(container.id)
        assert (directory / "pids.max").read_text() == "20\n"
        wait_for(lambda: int((directory / "pids.events").read_text().split()[1]) > 0)
        assert int((directory / "pids.current").read_text()) <= 20
        container.remove(force=True)

    @pytest.mark.parametrize(("given", "limit"), [({}, str(PIDS_LIMIT)), ({"pids_limit": -1}, "max")])
    def test_its_limit(self, store: Store, given: dict[str, int], limit: str) -> None:
        container = store.create("box:1")
        pid = container.start(["sleep", "1000"], **given)  # type: ignore[arg-type]
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        path = next(line.split(":", 2)[2] for line in lines if ":pids:" in line or line.startswith("0:"))
        found = Path(f"/sys/fs/cgroup/pids{path}/pids.max") if PIDS_OF_V1 else Path(f"{UNIFIED}{path}/pids.max")
        # The root of a hierarchy has no such file.
        assert (found.read_text().strip() if found.exists() else "max") == limit

    def test_gone_after_a_run(self, store: Store) -> None:
        assert run(store, "true")[0] == 0
        assert control_groups() == []

    def test_gone_after_a_start_that_fails(self, store: Store) -> None:
        container = store.create("box:1")
        with pytest.raises(OSError, match="Bad file"):
            container.run(["true"], stdin=999)
        assert control_groups() == []
        assert container.run(["true"]) == 0

    def test_gone_with_a_container_whose_program_ended(self, store: Store) -> None:
        container = store.create("box:1")
        container.start(["true"])
        wait_for(lambda: container.state != "running")
        assert container.run(["true"]) == 0  # takes the group that was left for its own
        container.start(["true"])
        wait_for(lambda: container.state != "running")
        assert group_of(container).exists()
        store.collect_garbage()
        assert control_groups() == []

    def test_garbage_collection_leaves_what_runs(self, store: Store) -> None:
        container = store.create("box:1")
        container.start(["sleep", "1000"])
        store.collect_garbage()
        assert container.state == "running"
        assert group_of(container).exists()

    def test_force_ends_what_the_runtime_has_lost(self, store: Store) -> None:
        container = store.create("box:1")
        pid = container.start(["/bin/sh", "-c", "(setsid sleep 1000 &); exec sleep 1000"])
        wait_for(lambda: len((group_of(container) / "cgroup.procs").read_text().split()) == 2)
        shutil.rmtree(store.layout.runtime + f"/{container.id}")
        container.remove(force=True)
        assert not Path(f"/proc/{pid}/exe").exists()
        assert control_groups() == []

    @pytest.mark.parametrize("how", ["rm", "start", "gc"])
    def test_what_a_killed_caller_leaves(self, store: Store, how: str) -> None:
        """It is killed between making the group and starting the runtime, and has put a process into it."""
        container = store.create("box:1")
        code = (
            "import os, signal, sys; from layerstore.containers import groups; "
            "from layerstore.containers.resources import Resources; "
            "from layerstore._core.mount import spawn; group = groups.make(sys.argv[1], Resources(5), []); "
            "spawn(['/bin/sleep', '1000'], group_fd=group.directory, task_fds=group.tasks); "
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        command = [sys.executable, "-c", code, container.id]
        killed = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
        assert killed.returncode == -signal.SIGKILL
        left = (group_of(container) / "cgroup.procs").read_text().split()
        assert len(left) == 1
        if how == "rm":
            container.remove()
        elif how == "start":
            assert container.run(["true"]) == 0
        else:
            store.collect_garbage()
        assert control_groups() == []
        assert not Path(f"/proc/{left[0]}/exe").exists()

    def test_a_program_whose_caller_was_killed(self, store: Store) -> None:
        container = store.create("box:1")
        code = (
            "import sys; from layerstore import Store; Store(sys.argv[1]).container(sys.argv[2]).run(['sleep', '1000'])"
        )
        command = [sys.executable, "-c", code, str(store.root), container.id]
        caller = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdin=subprocess.DEVNULL)
        wait_for(lambda: container.state == "running")
        caller.kill()
        caller.wait()
        store.collect_garbage()
        assert container.state == "running"
        with pytest.raises(Conflict, match="is running"):
            container.remove()
        container.remove(force=True)
        assert control_groups() == []

    def test_two_do_not_start_one_container(self, store: Store) -> None:
        container = store.create("box:1")
        held = groups.make(container.id, Resources(-1), None)
        with pytest.raises(Conflict, match="another process starts container"):
            container.run(["true"])
        with pytest.raises(Conflict, match="another process starts container"):
            container.remove()
        held.remove()
        assert container.run(["true"]) == 0

    def test_of_many_that_start_one_container_at_once_one_does(self, store: Store) -> None:
        """Each by a program of its own: what the runtime reads is what was written for it."""
        container = store.create("box:1")
        container.mount()
        count = 6
        barrier, outcomes = threading.Barrier(count), dict[int, BaseException | int]()

        def start(number: int) -> None:
            try:
                barrier.wait(60)
                outcomes[number] = container.start(["/bin/sh", "-c", f"echo >/{number}; exec sleep 1000"])
            except BaseException as error:
                outcomes[number] = error

        threads = [threading.Thread(target=start, args=[number]) for number in range(count)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        started = [number for number, outcome in outcomes.items() if isinstance(outcome, int)]
        refused = [outcome for outcome in outcomes.values() if isinstance(outcome, Conflict)]
        assert (len(started), len(refused)) == (1, count - 1), outcomes
        wait_for(lambda: container.root.joinpath(str(started[0])).exists())
        assert [number for number in range(count) if container.root.joinpath(str(number)).exists()] == started
        container.remove(force=True)

    def test_nothing_starts_beside_a_program_that_is_waited_for(self, store: Store) -> None:
        container = store.create("box:1")
        thread = threading.Thread(target=container.run, args=[["sleep", "1000"]])
        thread.start()
        wait_for(lambda: container.state == "running")
        with pytest.raises(Conflict, match=f"{container.id[:12]} is running already; end it first"):
            container.run(["true"])
        container.kill()
        thread.join(60)
        assert container.run(["true"]) == 0

    def test_a_program_that_ends_as_it_is_killed(self, store: Store) -> None:
        container = store.create("box:1")
        container.start(["true"])
        wait_for(lambda: container.state != "running")
        with pytest.raises(NotFound, match="has ended"):
            container.kill()

    def test_many_start_and_end_while_garbage_is_collected(self, store: Store) -> None:
        containers = store.create("box:1", count=4)
        failures: list[BaseException | int] = []

        def work(container: Container) -> None:
            try:
                for _ in range(5):
                    if status := container.run(["true"]):
                        failures.append(status)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=[container]) for container in containers]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            store.collect_garbage()
        assert failures == []

    def test_where_none_can_be_made(self, store: Store, meddle: Meddling) -> None:
        container = store.create("box:1")
        meddle.fail(groups.os, "mkdir", errno.EROFS, ALWAYS)
        with pytest.raises(Unsupported, match=r"control group.*Read-only file system.*--cgroups disabled"):
            groups.make(container.id, Resources(-1), None)

    def test_where_the_hierarchy_is_mounted_nowhere(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(groups, "_PLACES", ())
        container = store.create("box:1")
        pid = container.start(["sleep", "1000"])
        assert str(pid) in (group_of(container) / "cgroup.procs").read_text().split()
        assert container.id in groups.present()
        container.remove(force=True)
        assert container.id not in groups.present()

    def test_without_the_controller(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(groups, "_HIERARCHIES", "/nowhere")
        monkeypatch.setattr(groups, "_pass_on", lambda _root, _controllers: set())
        with pytest.raises(Unsupported, match="controller pids; --pids-limit -1"):
            run(store, "true")
        assert run(store, "true", pids_limit=-1)[0] == 0

    def test_groups_that_the_container_has_made_go_with_its_own(self, store: Store) -> None:
        container = store.create("box:1")
        container.start(["sleep", "1000"])
        (group_of(container) / "own" / "below").mkdir(parents=True)
        container.remove(force=True)
        assert control_groups() == []

    def test_one_that_stays_keeps_no_garbage(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        def stays(_containers: object, **_options: object) -> None:
            raise OSError(errno.EBUSY, "it stays")

        container = store.create("box:1")
        container.start(["true"])
        wait_for(lambda: container.state != "running")
        with monkeypatch.context() as patch:
            patch.setattr(groups, "remove", stays)
            store.collect_garbage()
        store.collect_garbage()
        assert control_groups() == []

    def test_one_of_which_it_cannot_be_said_whether_it_is_used_is_let_go(self, store: Store) -> None:
        def fails(container: str) -> bool:
            raise Unsupported(f"there is no runtime for {container}")

        container = store.create("box:1")
        groups.make(container.id, Resources(-1), None).release()
        with pytest.raises(Unsupported, match="no runtime"):
            groups.remove([container.id], unless=fails)
        groups.remove([container.id])
        assert control_groups() == []

    def test_in_a_group_of_an_outer_container(self, tmp_path: Path) -> None:
        """The root that it sees has its processes: to pass the controller on would make the group threaded."""
        files = {"cgroup.type": "domain\n", "cgroup.procs": "1\n", "cgroup.controllers": "cpu pids\n"}
        for name, text in {**files, "cgroup.subtree_control": "\n"}.items():
            (tmp_path / name).write_text(text)
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            groups._check_is_domain(fd)
            with pytest.raises(Unsupported, match=r"has processes of its own.*; --pids-limit -1"):
                groups._pass_on(fd, ["pids"])
            assert (tmp_path / "cgroup.subtree_control").read_text() == "\n"
            (tmp_path / "cgroup.type").write_text("domain threaded\n")
            with pytest.raises(Unsupported, match=r"type 'domain threaded'.*--cgroups disabled"):
                groups._check_is_domain(fd)
        finally:
            os.close(fd)

    @pytest.mark.skipif(not PIDS_OF_V1, reason="version 2 limits processes here")
    def test_where_that_of_version_1_may_not_be_changed(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "pids").mkdir()
        (tmp_path / "pids/tasks").touch()
        subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
            monkeypatch.setattr(groups, "_HIERARCHIES", str(tmp_path))
            with pytest.raises(Unsupported, match=r"Read-only file system.*; --pids-limit -1"):
                run(store, "true")
            assert run(store, "true", pids_limit=-1)[0] == 0
        finally:
            subprocess.run(["umount", tmp_path], check=True)
        assert control_groups() == []

    def test_where_devices_cannot_be_refused(self, store: Store, meddle: Meddling) -> None:
        meddle.fail(groups.cgroup, "allow_devices", Unsupported("cannot load the device rules"))
        with pytest.raises(Unsupported, match=r"device rules; run as root of the host.*--cgroups disabled"):
            run(store, "true")
        assert control_groups() == []

    def test_after_a_runtime_that_was_killed_as_it_began(self, store: Store) -> None:
        """It has made its directory, and nothing in it yet."""
        container = store.create("box:1")
        (Path(store.layout.runtime) / container.id).mkdir()
        assert container.run(["true"]) == 0
        (Path(store.layout.runtime) / container.id).mkdir()
        container.move("extent")
        assert not (Path(store.layout.runtime) / container.id).exists()

    def test_a_removal_by_force_beside_a_start(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, meddle: Meddling
    ) -> None:
        """It comes to the group before there is one, and to the rest after the program was started."""
        container = store.create("box:1")

        def remove() -> None:
            with Store(store.root) as other, monkeypatch.context() as patch:
                patch.setattr(groups, "remove", lambda *_args, **_options: None)
                other.remove([other.container(container.id)], force=True)

        meddle.after(Runtime, "start_watched", remove)
        with pytest.raises(NotFound, match="was removed meanwhile"):
            container.start(["sleep", "1000"])
        assert control_groups() == []

    def test_where_clone3_is_refused(self, store: Store) -> None:
        """As by a filter around this process, or Linux before 5.7."""
        refusing = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "defaultErrnoRet": 0,
            "syscalls": [{"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS}],
        }
        code = f"""
import ctypes, os, sys
from layerstore._core.mount import spawn
from layerstore.containers import bundle, groups, seccomp
from layerstore.containers.resources import Resources
data = seccomp.compile_profile({refusing!r})
class Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program(len(data) // 8, data))) == 0
group = groups.make(sys.argv[1], Resources(5), [])
pid = spawn(["/bin/cat", "/proc/self/cgroup"], group_fd=group.directory, task_fds=group.tasks)
assert os.waitpid(pid, 0)[1] == 0
group.remove()
"""
        container = store.create("box:1")
        command = [sys.executable, "-c", code, container.id]
        shown = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
        assert shown.returncode == 0, shown.stderr
        assert f"0::/{groups.name_of(container.id)}" in shown.stdout.splitlines()

    def test_disabled(self, store: Store) -> None:
        container = store.create("box:1")
        pid = container.start(["sleep", "1000"], cgroups="disabled")
        assert Path(f"/proc/{pid}/cgroup").read_text() == Path("/proc/self/cgroup").read_text()
        assert control_groups() == []


class TestDevices:
    @pytest.fixture
    def hosts(self) -> Volume:
        return Volume("/dev", "/b")

    def test_those_of_an_image(self, store: Store) -> None:
        text = shell(store, ": </null && echo null; : </fuse; echo; : </loop", image="devices:1")
        assert text.startswith("null\n")
        assert text.count("Operation not permitted") == 1  # a shell ends at the first
        assert "Operation not permitted" in shell(store, ": </loop", image="devices:1")

    def test_those_of_the_host(self, store: Store, hosts: Volume) -> None:
        for path in ("/b/fuse", "/b/loop0"):
            assert "Operation not permitted" in shell(store, f": <{path}", volumes=[hosts])
        assert shell(store, ": </b/null && echo null", volumes=[hosts]) == "null\n"

    def test_those_that_come_while_it_runs(self, store: Store) -> None:
        container = store.create("box:1")
        script = "while [ ! -e /tmp/go ]; do sleep 0.02; done; : </tmp/fuse"
        done: list[int] = []
        fd = os.memfd_create("stream")
        thread = threading.Thread(
            target=lambda: done.append(container.run(["/bin/sh", "-c", script], stderr=fd, stdout=fd))
        )
        with container.mount():
            thread.start()
            wait_for(lambda: container.state == "running")
            archive = write_tar([Entry("char", "fuse", device=FUSE, mode=0o666), Entry("file", "go")])
            container.unpack(io.BytesIO(archive), "/tmp")
            thread.join()
        assert done == [1]
        assert b"Operation not permitted" in os.pread(fd, 1000, 0)
        os.close(fd)

    def test_the_usual_ones(self, store: Store) -> None:
        names = "null zero full random urandom"
        script = f"for name in {names}; do : </dev/$name && echo $name; done; : </dev/ptmx && echo ptmx"
        assert shell(store, script).split() == [*names.split(), "ptmx"]

    def test_one_that_is_given(self, store: Store) -> None:
        text = shell(store, ": </dev/x && echo opened; : </fuse", image="devices:1", devices=["/dev/fuse:/dev/x"])
        assert text == "opened\n"
        assert "not permitted" in shell(store, ": </loop", image="devices:1", devices=["/dev/fuse"])
        text = shell(store, ": </dev/fuse && echo read; : >/dev/fuse", devices=["/dev/fuse:r"])
        assert text.startswith("read\n")
        assert "Operation not permitted" in text

    def test_privileged(self, store: Store) -> None:
        text = shell(store, ": </fuse && : </loop && : </dev/loop0 && echo all", image="devices:1", privileged=True)
        assert text == "all\n"

    def test_without_a_group(self, store: Store, hosts: Volume) -> None:
        """By the mounts then."""
        for path in ("/fuse", "/loop", "/null", "/b/fuse", "/b/loop0"):
            text = shell(store, f": <{path}", image="devices:1", cgroups="disabled", volumes=[hosts])
            assert "Permission denied" in text, path
        assert shell(store, ": </dev/null && echo null", cgroups="disabled") == "null\n"

    @pytest.mark.parametrize(
        ("rules", "minors"),
        [
            ([], []),
            ([("c", 1, 3, "rwm")], [3]),
            ([("c", 1, minor, "rwm") for minor in (3, 5, 7)], [3, 5, 7]),
            ([("c", 1, minor, "rw") for minor in (3, 7)], [3, 7]),
            ([("c", 1, 3, "w"), ("c", 1, 5, "rw")], [5]),
            ([("c", 1, None, "r")], [3, 5, 7, 8, 9]),
            ([("b", 1, None, "rwm"), ("c", 2, 3, "rwm"), ("c", 1, 35, "rwm")], []),
        ],
    )
    def test_rules(self, tmp_path: Path, rules: list[tuple[str, int, int | None, str]], minors: list[int]) -> None:
        """By programs that read the devices 1:3 to 1:9, in a group with such rules."""
        group = groups.make(f"test-{os.getpid()}", Resources(-1), rules)
        fd = os.memfd_create("stream")
        try:
            script = "for n in null zero full random urandom; do (: </dev/$n) 2>&- && echo $n; done; :"
            pid = mount.spawn(["/bin/sh", "-c", script], fds=(fd, fd, fd), group_fd=group.directory)
            assert os.waitpid(pid, 0)[1] == 0
            numbers = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9}
            assert [numbers[name] for name in os.pread(fd, 100, 0).decode().split()] == minors
        finally:
            os.close(fd)
            group.remove()


class TestSystemCalls:
    REFUSED = (
        *("add_key", "request_key", "keyctl", "io_uring_setup", "userfaultfd", "kcmp", "unshare", "setns", "mount"),
        *("fsopen", "open_tree", "move_mount", "bpf", "perf_event_open", "pivot_root", "kexec_load", "pidfd_getfd"),
        *("open_by_handle_at", "reboot", "vmsplice"),
    )

    def test_refused(self, store: Store) -> None:
        assert tried(store, *self.REFUSED, "clone3", "getpid") == {
            **dict.fromkeys(self.REFUSED, errno.EPERM),
            "clone3": errno.ENOSYS,
            "getpid": 0,
        }

    def test_unconfined(self, store: Store) -> None:
        options = {"security_opt": ["seccomp=unconfined"]}
        found = tried(store, "kcmp", "keyctl", "unshare", "clone3", argument=0x12345678, **options)
        assert found["clone3"] != errno.ENOSYS
        assert errno.EPERM not in (found["kcmp"], found["keyctl"])
        assert shell(store, f"{BOX_PROGRAM} unshare -U echo in", **options) == "in\n"

    def test_namespaces(self, store: Store) -> None:
        for flag in seccomp._NAMESPACES:
            assert tried(store, "clone", argument=flag | signal.SIGCHLD) == {"clone": errno.EPERM}
        assert "not permitted" in shell(store, f"{BOX_PROGRAM} unshare -U true")
        assert "denied" in shell(store, f"{BOX_PROGRAM} mount -t tmpfs none /tmp")

    def test_capabilities_bring_their_calls(self, store: Store) -> None:
        script = f"{BOX_PROGRAM} mount -t tmpfs none /tmp && echo mounted"
        assert shell(store, script, cap_add=["SYS_ADMIN"]) == "mounted\n"
        assert tried(store, "kcmp", "keyctl", cap_add=["sys_ptrace"])["kcmp"] != errno.EPERM
        chroot = f"{BOX_PROGRAM} chroot / /bin/echo in"
        assert shell(store, chroot) == "in\n"
        assert "not permitted" in shell(store, chroot, cap_drop=["SYS_CHROOT"])

    def test_a_profile_of_the_callers(self, store: Store, tmp_path: Path) -> None:
        profile = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [
                {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSPC},
                {"names": ["rmdir"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["unlinkat"], "action": "SCMP_ACT_ERRNO", "excludes": {"caps": ["CAP_CHOWN"]}},
            ],
        }
        path = tmp_path / "profile.json"
        path.write_text(json.dumps(profile))
        script = f"{BOX_PROGRAM} mkdir /a; {BOX_PROGRAM} rmdir /tmp && echo removed"
        text = shell(store, script, security_opt=[f"seccomp={path}"])
        assert "No space left" in text
        assert text.endswith("removed\n")

    def test_podmans_profile_works(self, store: Store) -> None:
        if not PODMANS.exists():
            pytest.skip("golang-github-containers-common is not installed")
        script = f"{BOX_PROGRAM} unshare -U echo in; {BOX_PROGRAM} mount -t tmpfs none /tmp"
        assert shell(store, script, security_opt=[f"seccomp={PODMANS}"]).startswith("in\nmount: ")

    def test_no_new_privileges(self, store: Store) -> None:
        show = "grep NoNewPrivs /proc/self/status"
        assert shell(store, show.replace("grep", f"{BOX_PROGRAM} grep")).split() == ["NoNewPrivs:", "0"]
        for option in ("no-new-privileges", "no-new-privileges:true", "no-new-privileges=true"):
            text = shell(store, f"{BOX_PROGRAM} {show}", security_opt=[option])
            assert text.split() == ["NoNewPrivs:", "1"]

    def test_the_filter_is_kept_and_checked(self, store: Store) -> None:
        assert run(store, "true")[0] == 0
        seccomp.default_filter.cache_clear()
        kept = list(Path(store.layout.run).glob("seccomp-*"))
        whole = {path: path.read_bytes() for path in kept}
        for path in kept:
            path.write_bytes(whole[path][:-1] + b"x")
        assert tried(store, "kcmp") == {"kcmp": errno.EPERM}
        default = seccomp.default_filter(frozenset(CAPABILITIES), store.layout.run)
        assert default is not None
        assert default.encode() in {data.partition(b"\n")[0] for data in whole.values()}
        assert any(path.read_bytes() == data for path, data in whole.items())

    def test_without_libseccomp_the_runtime_compiles_it(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seccomp, "default_filter", lambda *_: None)
        assert tried(store, *self.REFUSED) == dict.fromkeys(self.REFUSED, errno.EPERM)

    def test_without_seccomp(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seccomp, "_KERNEL_HAS_IT", "/nowhere")
        with pytest.raises(Unsupported, match="--security-opt seccomp=unconfined"):
            run(store, "true")
        assert run(store, "true", security_opt=["seccomp=unconfined"])[0] == 0

    @pytest.mark.parametrize("added", [(), ("SYS_ADMIN",), ("SYS_PTRACE", "SYS_NICE", "SYS_TIME")])
    def test_nothing_is_allowed_that_podman_refuses(self, added: tuple[str, ...]) -> None:
        if not PODMANS.exists():
            pytest.skip("golang-github-containers-common is not installed")
        capabilities = confined(cap_add=added).capabilities
        theirs = seccomp.read_profile(str(PODMANS), capabilities)
        ours = seccomp.default_profile(capabilities)
        assert {allow(ours, name) for name in ("read", "clone")} == {True}
        of_capabilities = {name for text in seccomp._WITH_CAPABILITY.values() for name in seccomp._names(text)}
        looser = {name for name in named(ours) if allow(ours, name) and not allow(theirs, name)}
        # With more capabilities docker allows some that podman's list does not know.
        assert looser <= (of_capabilities if added else set())
        arguments = [rule["args"][0]["value"] for rule in theirs["syscalls"] if rule["names"] == ["personality"]]
        assert sorted(arguments) == sorted(seccomp._PERSONALITIES)


def named(profile: dict[str, object]) -> set[str]:
    rules: list[dict[str, list[str]]] = profile["syscalls"]  # type: ignore[assignment]
    return {name for rule in rules for name in rule["names"]}


def allow(profile: dict[str, object], name: str) -> bool:
    """Whether a profile allows a call, perhaps with some arguments only."""
    rules: list[dict[str, object]] = profile["syscalls"]  # type: ignore[assignment]
    return any(rule["action"] == "SCMP_ACT_ALLOW" and name in rule["names"] for rule in rules)  # type: ignore[operator]


@pytest.mark.needs_tool("runc")
@pytest.mark.usefixtures("by_runc")
class TestRunc:
    """Which makes the group and compiles the filter itself."""

    def test_system_calls(self, store: Store) -> None:
        refused = TestSystemCalls.REFUSED
        assert tried(store, *refused, "clone3") == {**dict.fromkeys(refused, errno.EPERM), "clone3": errno.ENOSYS}
        assert errno.EPERM not in tried(store, "keyctl", security_opt=["seccomp=unconfined"]).values()

    def test_devices(self, store: Store) -> None:
        assert "Operation not permitted" in shell(store, ": </fuse", image="devices:1")
        assert shell(store, ": </fuse && echo opened", image="devices:1", devices=["/dev/fuse"]) == "opened\n"
        assert shell(store, ": </loop && echo opened", image="devices:1", privileged=True) == "opened\n"

    def test_group(self, store: Store) -> None:
        container = store.create("box:1")
        pid = container.start(["sleep", "1000"], pids_limit=7)
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        assert any(line.endswith(f"/{groups.name_of(container.id)}") for line in lines)
        found = [Path(place) / "pids.max" for place in control_groups()]
        assert "7\n" in [path.read_text() for path in found if path.exists()]
        container.remove(force=True)
        assert control_groups() == []

    def test_no_group(self, store: Store) -> None:
        with pytest.raises(Unsupported, match="runc always makes control groups"):
            run(store, "true", cgroups="disabled")


class TestCapabilities:
    def effective(self, store: Store, **options: object) -> set[str]:
        from layerstore.containers.confinement import _ALL_CAPABILITIES

        text = shell(store, f"{BOX_PROGRAM} grep CapEff /proc/self/status", **options)
        mask = int(text.split()[1], 16)
        return {name for number, name in enumerate(_ALL_CAPABILITIES) if mask >> number & 1}

    def test_default(self, store: Store) -> None:
        assert self.effective(store) == set(CAPABILITIES)

    def test_added_and_dropped(self, store: Store) -> None:
        found = self.effective(store, cap_add=["NET_ADMIN"], cap_drop=["cap_net_raw"])
        assert found == {*CAPABILITIES, "CAP_NET_ADMIN"} - {"CAP_NET_RAW"}
        assert self.effective(store, cap_drop=["ALL"], cap_add=["CHOWN"]) == {"CAP_CHOWN"}
        own = self.effective(store, cap_add=["ALL"])
        assert own > {*CAPABILITIES, "CAP_SYS_ADMIN"}
        assert self.effective(store, cap_add=["ALL"], cap_drop=["SYS_ADMIN"]) == own - {"CAP_SYS_ADMIN"}

    def test_privileged(self, store: Store) -> None:
        assert self.effective(store, privileged=True) == self.effective(store, cap_add=["ALL"])
        script = f"{BOX_PROGRAM} mount -t tmpfs none /mnt && touch /proc/sys/kernel/hostname && echo all"
        assert shell(store, f"{BOX_PROGRAM} mkdir -p /mnt; {script}", privileged=True) == "all\n"
        assert control_groups() == []


def test_a_volume_is_read_only_with_what_is_mounted_below_it(store: Store, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        script = "echo x >/shown/below/file; echo y >/shown/file; true"
        (tmp_path / "other").mkdir()
        others = [Volume(str(tmp_path), "/shown", True), Volume(str(tmp_path / "other"), "/shown/new")]
        assert shell(store, "echo x >/shown/new/file; echo y >/shown/file", volumes=others).count("Read-only") == 1
        assert (tmp_path / "other/file").read_text() == "x\n"
        assert shell(store, script, volumes=[Volume(str(tmp_path), "/shown", True)]).count("Read-only file system") == 2
        assert os.listdir(below) == []
    finally:
        subprocess.run(["umount", below], check=True)


def test_what_processors_tell_of_their_heat_is_masked(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cpu0/thermal_throttle", "cpu11/thermal_throttle", "cpu2", "cpufreq/thermal_throttle"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.setattr(bundle, "_CPUS", str(tmp_path))
    spec = bundle.runtime_spec({"config": {"Cmd": ["true"]}}, tmp_path)
    masked = [path for path in spec["linux"]["maskedPaths"] if path.startswith(str(tmp_path))]
    assert masked == [f"{tmp_path}/cpu{number}/thermal_throttle" for number in (0, 11)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"security_opt": ["apparmor=x"]}, 'security option "apparmor=x" is not known: seccomp=unconfined'),
        ({"security_opt": ["seccomp"]}, 'security option "seccomp" is not known'),
        ({"security_opt": ["no-new-privileges:maybe"]}, "no-new-privileges:maybe"),
        ({"security_opt": ["seccomp=/no/where"]}, "cannot read the seccomp profile /no/where.*No such file"),
        ({"security_opt": ["seccomp=/etc/passwd"]}, "cannot read the seccomp profile /etc/passwd"),
        ({"security_opt": "seccomp=unconfined"}, "security_opt is a list of strings"),
        ({"cap_add": ["FLY"]}, 'no capability "FLY"'),
        ({"cap_drop": ["CAP_"]}, 'no capability "CAP_"'),
        ({"devices": ["dev/null"]}, "HOST"),
        ({"devices": ["/dev/null:/x:/y"]}, 'access "/y": it is letters of rwm'),
        ({"devices": ["/dev/null:/x:rw:m"]}, "HOST"),
        ({"devices": ["/dev/null:x"]}, 'access "x"'),
        ({"devices": ["/dev/nowhere"]}, '"/dev/nowhere" to a container: No such file'),
        ({"devices": ["/etc/passwd"]}, '"/etc/passwd" is no device; `-v`'),
        ({"pids_limit": 0}, "processes is 0: it is 1 or more, or -1"),
        ({"pids_limit": "7"}, "processes is '7'"),
        ({"memory": "5m"}, "memory is '5m': it is 6m or more"),
        ({"memory": "much"}, "memory is 'much': it is a number of bytes, or as 512m"),
        ({"memory": -1}, "memory is -1: it is a number"),
        ({"memory": "10m", "memory_swap": "9m"}, "together are '9m': that is less than the memory alone"),
        ({"memory_swap": "9m"}, r"together are '9m': that needs a limit on memory as well \(--memory\)"),
        ({"cpus": "0.001"}, "CPUs is '0.001': it is from 0.01 to"),
        ({"cpus": 4096}, "CPUs is 4096: it is from 0.01 to"),
        ({"cpus": "some"}, "CPUs is 'some': it is as 1.5"),
        ({"cpu_shares": 1}, "CPU shares are 1: they are from 2 to 262144"),
        ({"cpuset_cpus": "4095"}, "CPUs to run on are '4095': there are 0"),
        ({"cpuset_cpus": "1-0"}, "CPUs to run on are '1-0': they are as 0-2,5"),
        ({"cpuset_cpus": ""}, "CPUs to run on are '': they are as 0-2,5"),
        ({"ulimits": ["files=7"]}, '"files=7" is not NAME=SOFT.*nofile'),
        ({"ulimits": ["nofile"]}, '"nofile" is not NAME=SOFT'),
        ({"ulimits": ["nofile=2:1"]}, '"nofile=2:1" has a soft limit that is more than the hard one'),
        ({"ulimits": ["nofile=-1"]}, '"nofile=-1" is more than the [0-9]+ files that /proc/sys/fs/nr_open lets it be'),
        ({"ulimits": "nofile=7"}, "ulimits is a list of strings"),
        ({"cgroups": "disabled", "memory": "10m", "cpus": 1}, "nothing can hold --memory and --cpus where"),
        ({"shm_size": "0"}, "size of /dev/shm is '0': it is 1 or more"),
        ({"shm_size": "all"}, "size of /dev/shm is 'all': it is a number of bytes"),
        ({"tmpfs": ["tmp"]}, 'tmpfs "tmp" is not PATH'),
        ({"tmpfs": ["/"]}, 'tmpfs "/" is not PATH'),
        ({"tmpfs": ["/x:fast"]}, 'tmpfs "/x:fast" has the option "fast": there are dev, exec'),
        ({"tmpfs": ["/x:mode=9"]}, 'has the option "mode=9"'),
        ({"tmpfs": "/x"}, "tmpfs is a list of strings"),
        ({"cgroups": "split"}, "not 'split'"),
        ({"cgroups": "disabled", "pids_limit": 7}, "nothing can hold --pids-limit where"),
        ({"cgroups": "disabled", "pids_limit": PIDS_LIMIT}, "nothing can hold --pids-limit where"),
        ({"cgroups": "disabled", "cap_add": ["MKNOD"]}, "CAP_MKNOD would let the container make every device"),
        ({"cgroups": "disabled", "cap_add": ["SYS_ADMIN"]}, "CAP_SYS_ADMIN would let the container mount its root"),
        ({"cgroups": "disabled", "devices": ["/dev/null:r"]}, 'nothing can keep /dev/null to "r"'),
    ],
)
def test_bad_values(options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        confined(**options)  # type: ignore[arg-type]


def test_a_capability_that_this_process_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    from layerstore.containers import confinement

    monkeypatch.setattr(confinement, "_own_capabilities", lambda: CAPABILITIES)
    with pytest.raises(Unsupported, match="cannot give a container CAP_NET_ADMIN"):
        confined(cap_add=["NET_ADMIN"])
    assert confined(cap_add=["ALL"]).capabilities == tuple(
        name for name in confinement._ALL_CAPABILITIES if name in CAPABILITIES
    )


def test_the_hierarchy_can_be_had_without_a_mount_point() -> None:
    fd = cgroup.open_hierarchy()
    try:
        assert "cgroup.procs" in os.listdir(fd)
    finally:
        os.close(fd)
