"""Programs that are left running: what their monitor keeps of what they print and how they end, and who is killed when.
The judges are crun, runc, and busybox in the containers."""

import errno
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import leftovers
import pytest
from images import docker_files, tar_of
from meddling import Meddling
from test_commands import BOX, sleepers
from test_containers import root_only, runs
from waiting import wait_for

from layerstore import Container, Store
from layerstore._core import mount
from layerstore.containers import program_logs, program_records
from layerstore.containers.runtime import Runtime
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, NotFound, Unsupported
from layerstore.results import Printed

pytestmark = [pytest.mark.root, root_only, runs]

MONITOR = Path(mount.__file__).with_name("monitor")
PASSING = ("pid", "record.new", "runtime.log")


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("detached") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BOX]))))
        yield opened


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    containers = module_store.containers()
    module_store.remove(containers, force=True)
    assert monitors(module_store.root) == []
    assert leftovers.control_groups({container.id for container in containers}) == []
    assert os.listdir(module_store.root / "run/runtime") == []
    assert os.listdir(module_store.root / "containers") == []


@pytest.fixture
def container(store: Store) -> Container:
    return store.create("box:1")


@pytest.fixture(params=["crun", pytest.param("runc", marks=pytest.mark.needs_tool("runc"))])
def each_runtime(request: pytest.FixtureRequest) -> None:
    if request.param == "runc":
        request.getfixturevalue("by_runc")


def monitors(root: Path) -> list[int]:
    """The monitors of a store's containers that are alive, or whoever took their places."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink().is_relative_to(root / "containers"):
                found.append(int(path.name))
        except OSError:
            continue
    return found


def shell(container: Container, script: str, **options: object) -> int:
    return container.start(["sh", "-c", script], **options)  # type: ignore[arg-type]


def texts(container: Container, stream: str | None = None, **options: object) -> bytes:
    pieces = container.logs(**options)  # type: ignore[arg-type]
    return b"".join(piece.data for piece in pieces if stream in (None, piece.stream))


def record(container: Container) -> program_records.Record:
    found = program_records.read(str(container.root.parent))
    assert found is not None
    return found


def in_another(store: Store, code: str, **options: object) -> subprocess.CompletedProcess[str]:
    """Run Python code that has `store` in a process of its own, and not as a child that is waited for."""
    whole = f"from layerstore import Store\nstore = Store({str(store.root)!r})\n{code}\n"
    return subprocess.run([sys.executable, "-c", whole], capture_output=True, text=True, timeout=60, check=False)


class TestWhatIsKept:
    @pytest.mark.usefixtures("each_runtime")
    def test_outputs_and_status(self, container: Container) -> None:
        before = time.time()
        shell(container, "echo out; echo err >&2; printf without; exit 3")
        assert container.wait(20) == 3
        assert texts(container, "stdout") == b"out\nwithout"
        assert texts(container, "stderr") == b"err\n"
        assert before <= record(container).started <= record(container).finished <= time.time()  # type: ignore[operator]
        assert all(before <= piece.time <= time.time() for piece in container.logs())
        assert not set(PASSING) & set(os.listdir(container.root.parent))

    @pytest.mark.usefixtures("each_runtime")
    def test_a_signal(self, container: Container) -> None:
        shell(container, "exec sleep 1021")
        container.kill()
        assert container.wait(20) == 128 + signal.SIGKILL
        assert container.wait(0) == 128 + signal.SIGKILL

    @pytest.mark.usefixtures("each_runtime")
    def test_out_of_memory(self, container: Container) -> None:
        shell(container, "exec busybox dd if=/dev/zero of=/dev/null bs=100M", memory="16m")
        assert container.wait(20) == 128 + signal.SIGKILL
        assert record(container).oom_killed
        shell(container, "exit 1", memory="16m")
        assert container.wait(20) == 1
        assert not record(container).oom_killed

    def test_of_a_program_that_is_waited_for(self, container: Container) -> None:
        assert container.run(["sh", "-c", "exit 5"]) == 5
        assert container.wait() == 5
        assert record(container).finished is not None
        hog = ["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=100M"]
        for command, killed in ((hog, True), (["true"], False)):
            container.run(command, memory="16m")
            assert record(container).oom_killed == killed
            assert container.inspect()["Program"]["OOMKilled"] == killed

    @pytest.mark.needs_tool("runc")
    @pytest.mark.usefixtures("by_runc")
    def test_what_counts_memory_goes_where_nothing_is_started(
        self, container: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch, pytest.raises(LayerstoreError, match="cannot start the container"):
            patch.setattr(Runtime, "_options", ["--no-such-option"])
            shell(container, "exit 9", memory="16m")
        assert leftovers.control_groups({container.id}) == []

    def test_nothing_was_started(self, container: Container) -> None:
        with pytest.raises(NotFound, match="no program was started"):
            container.wait()
        container.exec(["true"])
        with pytest.raises(NotFound, match="no program was started"):
            container.wait()
        assert texts(container, follow=True) == b""

    def test_a_wait_that_is_too_long(self, container: Container) -> None:
        shell(container, "read x </nowhere; exec sleep 1022")
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            container.wait(0.01)
        assert (caught.value.cmd[0], caught.value.timeout) == ("sh", 0.01)
        container.stop(0)

    def test_many_who_wait(self, container: Container) -> None:
        shell(container, "while ! test -e /go; do sleep 0.01; done; exit 6")
        found: list[int] = []
        threads = [threading.Thread(target=lambda: found.append(container.wait(20))) for _ in range(5)]
        for thread in threads:
            thread.start()
        (container.root / "go").touch()
        for thread in threads:
            thread.join()
        assert found == [6] * 5

    def test_two_runs(self, container: Container) -> None:
        for number in (1, 2):
            shell(container, f"echo {number}; exit {number}")
            assert container.wait(20) == number
        assert texts(container) == b"1\n2\n"
        assert container.wait() == 2

    def test_bytes_of_all_kinds(self, container: Container) -> None:
        script = "printf 'a\\000b\\n\\n\\377\\r\\n'; busybox seq 1 30000; busybox dd if=/dev/zero bs=100000 count=1"
        shell(container, f"{script} 2>/dev/null")
        assert container.wait(20) == 0
        numbers = "".join(f"{number}\n" for number in range(1, 30001)).encode()
        assert texts(container) == b"a\0b\n\n\xff\r\n" + numbers + bytes(100000)

    def test_the_format(self, container: Container) -> None:
        """That of Kubernetes' container runtimes, by its specification."""
        shell(container, "echo whole; printf part")
        container.wait(20)
        lines = (container.root.parent / "log").read_text().splitlines()
        stamp = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"
        assert [re.sub(stamp, "TIME", line) for line in lines] == ["TIME stdout F whole", "TIME stdout P part"]

    def test_what_is_chosen(self, container: Container) -> None:
        shell(container, "echo 1; echo 2; printf 3; sleep 0.01; echo 3")
        container.wait(20)
        assert texts(container, tail=2) == b"2\n33\n"
        assert texts(container, tail=0) == b""
        assert texts(container, since=time.time()) == b""
        pieces = list(container.logs())
        assert texts(container, since=pieces[-1].time) == pieces[-1].data

    def test_an_input_that_is_empty(self, container: Container) -> None:
        shell(container, "cat; echo end")
        assert container.wait(20) == 0
        assert texts(container) == b"end\n"

    def test_no_file_of_the_callers_is_kept_open(self, store: Store, container: Container) -> None:
        """Whoever reads what the caller prints would wait for the container's end."""
        read, write = os.pipe()
        os.set_inheritable(write, True)
        code = f"store.container({container.id!r}).start(['sleep', '1023'])"
        whole = f"from layerstore import Store\nstore = Store({str(store.root)!r})\n{code}\n"
        subprocess.run([sys.executable, "-c", whole], close_fds=False, check=True)
        os.close(write)
        assert os.read(read, 1) == b""
        os.close(read)
        container.stop(0)


class TestFollowing:
    def test_line_by_line(self, container: Container) -> None:
        shell(container, "for i in 1 2 3; do while ! test -e /$i; do sleep 0.01; done; echo $i; done; exit 4")
        lines = container.logs(follow=True)
        for number in (1, 2, 3):
            (container.root / str(number)).touch()
            assert next(lines).data == f"{number}\n".encode()
        assert list(lines) == []
        assert container.wait() == 4

    def test_what_is_put_aside_meanwhile(self, container: Container) -> None:
        """A reader that is as fast as the writer misses nothing of a log that is begun anew again and again."""
        script = "i=0; while [ $i -lt 60 ]; do i=$((i+1)); echo $i; while ! test -e /$i; do sleep 0.01; done; done"
        with small_logs(200):
            shell(container, script)
            found = []
            for piece in container.logs(follow=True):
                found.append(int(piece.data))
                (container.root / f"{found[-1]}").touch()
        assert found == list(range(1, 61))
        sizes = [(container.root.parent / name).stat().st_size for name in ("log", "log.1")]
        assert 0 < max(sizes) <= 200


@contextmanager
def small_logs(size: int) -> Iterator[None]:
    defaults = Runtime.start_watched.__kwdefaults__
    before = defaults["log_bytes"]
    defaults["log_bytes"] = size
    try:
        yield
    finally:
        defaults["log_bytes"] = before


def the_monitor(store: Store) -> int:
    wait_for(lambda: len(monitors(store.root)) == 1)  # those of other tests may be about to end
    (monitor,) = monitors(store.root)
    return monitor


class TestItsEnd:
    def test_it_is_nobodys_child(self, store: Store, container: Container) -> None:
        shell(container, "exec sleep 1024")
        monitor = the_monitor(store)
        assert monitor not in leftovers.child_processes()
        assert os.getsid(monitor) == monitor
        assert {os.readlink(f"/proc/{monitor}/fd/{number}") for number in range(3)} == {os.devnull}
        container.stop(0)
        assert monitors(store.root) == []

    @pytest.mark.usefixtures("each_runtime")
    def test_removed_by_itself(self, store: Store, container: Container) -> None:
        shell(container, "while ! test -e /go; do sleep 0.01; done; exit 7", auto_remove=True)
        (container.root / "go").touch()
        assert container.wait(20) == 7
        wait_for(lambda: store.containers() == [])
        wait_for(lambda: monitors(store.root) == [])

    def test_stopped_and_gone(self, store: Store, container: Container) -> None:
        shell(container, "exec sleep 1025", auto_remove=True)
        container.stop(0)
        assert store.containers() == []
        assert sleepers(1025) == []

    def test_removed_by_force_before(self, store: Store, container: Container) -> None:
        shell(container, "exec sleep 1026", auto_remove=True)
        container.remove(force=True)
        assert store.containers() == []
        with pytest.raises(NotFound):
            container.wait()

    def test_a_program_that_cannot_be_started(
        self, store: Store, container: Container, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shell(container, "exit 8")
        container.wait(20)
        with monkeypatch.context() as patch, pytest.raises(LayerstoreError, match="cannot start the container"):
            patch.setattr(Runtime, "_options", ["--no-such-option"])
            shell(container, "exit 9", auto_remove=True)
        wait_for(lambda: monitors(store.root) == [])
        assert not set(PASSING) & set(os.listdir(container.root.parent))
        assert container.wait() == 8

    def test_a_killed_monitor(self, store: Store, container: Container) -> None:
        shell(container, "while echo x; do sleep 0.01; done")
        monitor = the_monitor(store)
        os.kill(monitor, signal.SIGKILL)
        with pytest.raises(LayerstoreError, match="who waited for it was killed"):
            container.wait(20)
        # It cannot print any more.
        wait_for(lambda: container.state != "running")
        shell(container, "exit 9")
        assert container.wait(20) == 9

    def test_the_machine_was_started_anew(self, store: Store, container: Container) -> None:
        shell(container, "exec sleep 1028")
        monitor = the_monitor(store)
        os.kill(monitor, signal.SIGKILL)
        container.kill()
        path = container.root.parent / "record"
        path.write_text(re.sub("boot .*", "boot another", path.read_text()))
        with pytest.raises(LayerstoreError, match="the machine was started anew"):
            container.wait(20)

    def test_many_at_once(self, store: Store) -> None:
        many = store.create("box:1", count=20)
        threads = [
            threading.Thread(target=shell, args=(one, f"echo {number}; exit {number}"))
            for number, one in enumerate(many)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [one.wait(60) for one in many] == list(range(20))
        assert [texts(one) for one in many] == [f"{number}\n".encode() for number in range(20)]


class TestPrepared:
    """What containers are to be started with is there with them."""

    def test_many(self, store: Store) -> None:
        many = store.create("box:1", count=3, prepared={"args": ["sh", "-c", "exit $A"], "env": {"A": "5"}})
        many[0].prepare(["sh", "-c", "exit 6"])
        for one in many:
            one.start_prepared()
        assert [one.wait(20) for one in many] == [6, 5, 5]

    def test_usage_counts_it_once(self, store: Store) -> None:
        def total() -> int:
            return store.usage().parts["containers"].size_bytes

        alone, before = store.create("box:1", prepared={"args": ["true"]}), total()
        store.remove([alone])
        store.create("box:1", count=10, prepared={"args": ["true"]})
        file = (store.containers()[0].root.parent / "start.json").stat()
        assert total() == 10 * before - 9 * file.st_blocks * 512

    def test_none_is_there_without_it(self, store: Store, meddle: Meddling) -> None:
        for call in ("fsync", "rename"):
            meddle.fail(os, call, OSError(errno.EIO, "the disk says no"))
            with pytest.raises(OSError, match="the disk says no"):
                store.create("box:1", name="one", prepared={"args": ["true"]})
            assert store.containers() == []
            assert os.listdir(store.root / "containers") == []

    def test_wrong_ones(self, store: Store) -> None:
        with pytest.raises(InvalidInput, match="memory"):
            store.create("box:1", prepared={"memory": "lots"})
        for wrong in ({"args": "sleep 5"}, {"args": [b"true"]}, {"entrypoint": "sh"}, {"tty": True}):
            with pytest.raises(InvalidInput, match=next(iter(wrong))):
                store.create("box:1", prepared=wrong)
        with pytest.raises(Unsupported, match="extent driver"):
            store.create("box:1", driver="extent", prepared={})
        assert store.containers() == []


class TestForks:
    def test_they_are_started_as_what_they_come_from(self, container: Container) -> None:
        container.prepare(["sh", "-c", "echo $A; exec sleep $A"], env={"A": "1037"}, read_only=True)
        first, second = container.fork(2)
        container.prepare(["false"])
        for fork in (first, second, second.fork()):
            fork.start_prepared()
            wait_for(lambda of=fork: texts(of) == b"1037\n")  # type: ignore[misc]
            fork.stop(0)
            done = fork.exec(["sh", "-c", "echo $A; echo >/new"], capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (1, "1037\n")
        container.start_prepared()
        assert container.wait(20) == 1

    def test_of_one_that_was_given_nothing(self, container: Container) -> None:
        assert program_records.read_options(str(container.fork().root.parent)) == {}

    def test_a_port_leads_to_one_container(self, container: Container) -> None:
        container.prepare(["true"], network="private", ports=["127.0.0.1:18080:80"])
        for fork in container.fork(2):
            kept = program_records.read_options(str(fork.root.parent))
            assert (kept["args"], kept["network"], kept["ports"]) == (["true"], "private", [])
        assert program_records.read_options(str(container.root.parent))["ports"] != []

    def test_where_there_are_too_many_links(self, container: Container, meddle: Meddling) -> None:
        container.prepare(["true"])
        meddle.fail(os, "link", errno.EMLINK)
        fork = container.fork()
        assert program_records.read_options(str(fork.root.parent))["args"] == ["true"]

    def test_one_that_cannot_have_it_is_not_made(self, store: Store, container: Container, meddle: Meddling) -> None:
        container.prepare(["true"], network="private", ports=["127.0.0.1:18080:80"])
        meddle.fail(os, "fsync", OSError(errno.EIO, "the disk says no"))
        with pytest.raises(OSError, match="the disk says no"):
            container.fork(2)
        assert [one.id for one in store.containers()] == [container.id]
        assert os.listdir(store.root / "containers") == [container.id]


class TestAKilledStarter:
    """It leaves nothing, or a container that runs, is watched, and can be stopped."""

    @pytest.mark.parametrize(("name", "when"), [("spawn", "before"), ("spawn", "after"), ("start_watched", "after")])
    @pytest.mark.parametrize("removes", [False, True])
    @pytest.mark.usefixtures("each_runtime")
    def test_at_a_moment(
        self, request: pytest.FixtureRequest, store: Store, name: str, when: str, removes: bool
    ) -> None:
        container = store.create("box:1", name="left")
        code = f"""
import os, signal
from layerstore.containers import runtime
runtime._KNOWN = {("runc",) if "runc" in request.node.name else ("crun", "runc")!r}
from layerstore._core import mount
of = mount if {name!r} == "spawn" else runtime.Runtime
call = getattr(of, {name!r})
def killed(*args, **more):
    if {when!r} == "after": call(*args, **more)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(of, {name!r}, killed)
store.container("left").start(["sleep", "1029"], auto_remove={removes})
"""
        assert in_another(store, code).returncode == -signal.SIGKILL
        if when == "before":
            assert container.state == "mounted"
            return
        wait_for(lambda: container.state == "running")
        wait_for(lambda: program_records.read(str(container.root.parent)) is not None)
        container.stop(0)
        assert sleepers(1029) == []
        if removes:
            assert store.containers() == []
        else:
            assert container.wait(0) == 137

    def test_at_any_moment(self, store: Store) -> None:
        for number in range(8):
            container = store.create("box:1", name=f"any-{number}")
            code = f"store.container('any-{number}').start(['sleep', '1030'])"
            whole = f"from layerstore import Store\nstore = Store({str(store.root)!r})\nprint(flush=True)\n{code}\n"
            with subprocess.Popen([sys.executable, "-c", whole], stdout=subprocess.PIPE) as starter:
                assert starter.stdout is not None
                starter.stdout.readline()
                time.sleep(0.004 * number)
                starter.kill()
            container.stop(0)
            container.remove(force=True)
            assert monitors(store.root) == []
            assert sleepers(1030) == []


COUNTING = "i=0; while :; do i=$((i+1)); echo $i >/count; done"


def count(container: Container) -> str:
    return (container.root / "count").read_text()


def still(container: Container) -> bool:
    before = count(container)
    time.sleep(0.1)
    return before == count(container)


class TestPausing:
    @pytest.mark.usefixtures("each_runtime")
    def test_it_stands_still_and_goes_on(self, container: Container) -> None:
        shell(container, COUNTING)
        wait_for((container.root / "count").exists)
        container.pause()
        assert container.state == "paused"
        assert still(container)
        with pytest.raises(Conflict, match="paused already"):
            container.pause()
        container.unpause()
        assert container.state == "running"
        before = count(container)
        wait_for(lambda: count(container) != before)
        with pytest.raises(Conflict, match="not paused"):
            container.unpause()

    @pytest.mark.usefixtures("each_runtime")
    @pytest.mark.parametrize("how", ["stop", "kill", "remove"])
    def test_it_can_be_ended(self, store: Store, container: Container, how: str) -> None:
        shell(container, "trap 'exit 3' TERM; echo >/ready; while :; do sleep 0.01; done")
        wait_for((container.root / "ready").exists)
        container.pause()
        if how == "stop":
            container.stop(20)
            assert container.wait(20) == 3
        elif how == "kill":
            container.kill(signal.SIGTERM)
            assert container.wait(20) == 3
        else:
            container.remove(force=True)
            assert store.containers() == []

    @pytest.mark.usefixtures("each_runtime")
    def test_no_command_begins(self, container: Container) -> None:
        shell(container, "exec sleep 1031")
        container.pause()
        with pytest.raises(Conflict, match="is paused; `layerstore unpause"):
            container.exec(["true"])
        container.unpause()
        assert container.exec(["true"]).returncode == 0

    def test_it_stays_paused_through_a_fork(self, store: Store, container: Container) -> None:
        shell(container, COUNTING)
        wait_for((container.root / "count").exists)
        container.pause()
        container.fork()
        assert container.state == "paused"
        assert still(container)

    def test_a_fork_is_no_pause(self, container: Container) -> None:
        """Commands that begin meanwhile wait for it."""
        shell(container, "exec sleep 1032")
        failed: list[Exception] = []

        def run() -> None:
            try:
                for _ in range(20):
                    container.exec(["true"], check=True)
            except Exception as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        while thread.is_alive():
            container.snapshot("one")
            container.remove_snapshot("one")
        thread.join()
        assert failed == []

    def test_where_nothing_runs(self, container: Container) -> None:
        with pytest.raises(NotFound, match="nothing runs"):
            container.pause()
        with pytest.raises(NotFound):
            container.top()
        with pytest.raises(NotFound):
            container.stats()


class TestWhatRuns:
    @pytest.mark.usefixtures("each_runtime")
    def test_processes(self, container: Container) -> None:
        before = time.time() - 1
        first = shell(container, "sleep 1033 & exec sleep 1034")
        wait_for(lambda: len(container.top()) == 2)
        nowhere = subprocess.DEVNULL
        with container.popen(["sleep", "1035"], stdin=nowhere, stdout=nowhere, stderr=nowhere) as command:
            wait_for(lambda: [one.command for one in container.top()].count(["sleep", "1035"]) == 1)
            found = {one.pid: one for one in container.top()}
            entered = command.pid
            command.kill()
        assert found[first].command == ["sleep", "1034"]
        assert found[entered].command == ["sleep", "1035"]
        assert [one.command for one in found.values() if one.ppid == first] == [["sleep", "1033"]]
        assert all(before <= one.started <= time.time() + 1 for one in found.values())

    @pytest.mark.parametrize("limit", [None, 64 << 20])
    def test_what_it_takes(self, container: Container, limit: int | None) -> None:
        shell(container, "while :; do :; done", **({} if limit is None else {"memory": limit}))
        wait_for(lambda: container.stats().cpu_seconds > 0.2)
        stats = container.stats()
        assert stats.pids == 1
        assert 0 < stats.memory_bytes < 64 << 20
        machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        assert stats.memory_limit_bytes == (limit or machine)


class Direct:
    """A monitor with a shell script in the runtime's place, which says what the container is."""

    def __init__(self, directory: Path, log_bytes: int = 1 << 20) -> None:
        self.directory = directory
        self.log_bytes = log_bytes

    def __call__(self, script: str, *then: str, events: int = -1, status: int = 0) -> str:
        """The line that the starter gets."""
        runtime = self.directory / "runtime"
        # The shell that is left behind is the container; none where the start fails.
        (self.directory / "record").unlink(missing_ok=True)
        container = f"(until test -e record; do sleep 0.01; done; {script}) &\necho $! >pid\n"
        runtime.write_text(f"#!/bin/sh\n{'' if status else container}exit {status}\n")
        runtime.chmod(0o755)
        read, write = os.pipe()
        with program_records.begun(str(self.directory)) as fd, open(os.devnull, "r+b", 0) as null:
            fds = [null.fileno()] * 3 + [write, fd, -1, events]
            argv = [MONITOR, str(self.log_bytes), str(len(fds)), "", runtime, "", *then]
            os.waitpid(mount.spawn(argv, {"PATH": os.environ["PATH"]}, self.directory, fds), 0)
        os.close(write)
        with open(read) as file:
            return file.read()

    def wait(self) -> program_records.Record:
        with program_records.Ending(str(self.directory)) as ending:
            found = ending.wait(20)
        program_records.see_out(str(self.directory))
        assert found is not None
        return found

    def pieces(self) -> list[Printed]:
        return list(program_logs.printed(str(self.directory), follow=False, since=None, tail=None))


class TestAlone:
    @pytest.fixture
    def direct(self, tmp_path: Path) -> Direct:
        return Direct(tmp_path)

    def test_a_container(self, direct: Direct) -> None:
        assert re.fullmatch(r"0 \d+\n", direct("echo a; exit 3"))
        assert direct.wait().status == 3
        assert [piece.data for piece in direct.pieces()] == [b"a\n"]

    def test_what_it_is_told_of_memory(self, direct: Direct, tmp_path: Path) -> None:
        for text, expected in (("low 0\noom_kill 0\n", False), ("oom 1\noom_kill 1", True)):
            (tmp_path / "events").write_text(text)
            with open(tmp_path / "events") as events:
                direct("exit 1", events=events.fileno())
                assert direct.wait().oom_killed == expected

    def test_the_last_lines_are_kept(self, tmp_path: Path) -> None:
        direct = Direct(tmp_path, 20_000)
        direct("seq 1 20000")
        direct.wait()
        lines = b"".join(piece.data for piece in direct.pieces()).splitlines()[1:]
        numbers = [int(line) for line in lines]
        assert numbers == list(range(numbers[0], 20001))
        assert len(numbers) > 100
        assert all((tmp_path / name).stat().st_size <= 20_000 for name in ("log", "log.1"))

    def test_half_a_line_of_a_killed_one(self, direct: Direct, tmp_path: Path) -> None:
        (tmp_path / "log").write_text("2026-12-02T10:00:00.000000000Z stdout F whole\n2026-12-02T10:00:")
        direct("echo more")
        direct.wait()
        assert [piece.data for piece in direct.pieces()] == [b"whole\n", b"more\n"]

    def test_what_comes_after(self, direct: Direct, tmp_path: Path) -> None:
        direct(
            "exit 3",
            "/bin/sh",
            "-c",
            f"cat record >{tmp_path}/after; echo printed; ls -l /proc/self/fd >{tmp_path}/fds",
        )
        assert direct.wait().status == 3
        assert "exited 3" in (tmp_path / "after").read_text()
        assert "printed" not in (tmp_path / "record").read_text()

    def test_what_comes_after_a_start_that_fails(self, direct: Direct, tmp_path: Path) -> None:
        """Only where nobody is there to see to it."""
        after = ("/bin/sh", "-c", "echo >after")
        assert direct("true", *after, status=9) == "9 0\n"
        assert not (tmp_path / "after").exists()

    def test_the_time(self, direct: Direct) -> None:
        before = time.time()
        direct("echo a")
        direct.wait()
        (piece,) = direct.pieces()
        assert before <= piece.time <= time.time()

    def test_a_full_disk(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], check=True)
        try:
            direct = Direct(disk)
            (disk / "filling").write_bytes(bytes(128 << 10))
            direct("seq 1 40000; : >end; while ! test -e go; do sleep 0.01; done; echo room; exit 5")
            wait_for((disk / "end").exists)
            (disk / "filling").unlink()
            (disk / "go").touch()
            record = direct.wait()
            pieces = direct.pieces()
            assert record.status == 5
            assert record.lost_bytes == 228894 - sum(len(piece.data) for piece in pieces[:-1])
            assert pieces[-1].data == b"room\n"
        finally:
            subprocess.run(["umount", disk], check=True)
