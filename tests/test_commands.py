"""Commands in containers that live: `Container.exec` and `popen`, what keeps a container alive, and what ends it."""

import contextlib
import gc
import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any

import leftovers
import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_containers import ROOT, base, busybox, root_only, runs
from waiting import wait_for

from layerstore import Container, Store, Volume
from layerstore.containers.bundle import stop_signal
from layerstore.containers.containers import Containers
from layerstore.containers.runtime import find_runtime
from layerstore.errors import Conflict, InvalidInput, NotFound, ProgramNotExecutable, ProgramNotFound, Unsupported
from layerstore.store import locks
from layerstore.store.layout import Layout

pytestmark = [pytest.mark.root, root_only, runs]

APPLETS = ("chmod", "grep", "printf", "seq", "setsid", "stty", "test", "tty", "wc")
BOX = Image(
    [write_tar(base()), busybox(), write_tar([Entry("symlink", f"bin/{name}", link="busybox") for name in APPLETS])],
    ["box:1"],
)


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("commands") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BOX]))))
        yield opened


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    containers = module_store.containers()
    module_store.remove(containers, force=True)
    assert leftovers.control_groups({container.id for container in containers}) == []
    assert os.listdir(module_store.root / "run/runtime") == []
    assert os.listdir(module_store.root / "containers") == []


@pytest.fixture
def container(store: Store) -> Container:
    return store.create("box:1")


def shell(container: Container, script: str, **options: object) -> str:
    """What a script prints, which ends well."""
    done = container.exec(["sh", "-c", script], stdout=PIPE, text=True, check=True, **options)  # type: ignore[arg-type]
    assert isinstance(done.stdout, str)
    return done.stdout


def sleepers(seconds: int) -> list[str]:
    """The processes `sleep SECONDS` of this machine."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().rstrip(b"\0").split(b"\0")
        except OSError:
            continue
        if words[-2:] == [b"sleep", str(seconds).encode()]:
            found.append(path.parent.name)
    return found


class TestExec:
    def test_status_and_outputs(self, container: Container) -> None:
        done = container.exec(["sh", "-c", "echo out; echo err >&2; exit 3"], capture_output=True)
        assert (done.args[0], done.returncode, done.stdout, done.stderr) == ("sh", 3, b"out\n", b"err\n")
        assert container.exec(["true"]).returncode == 0
        assert container.exec(["sh", "-c", "kill -9 $$"]).returncode == 137
        assert container.state == "running"

    def test_input(self, container: Container) -> None:
        data = os.urandom(3_000_000)
        assert container.exec(["cat"], input=data, capture_output=True).stdout == data
        done = container.exec(["cat"], input="ä\n", capture_output=True, text=True)
        assert done.stdout == "ä\n"
        # It reads nothing of it, which is no failure.
        assert container.exec(["true"], input=data).returncode == 0
        # Nobody's terminal is read without being asked for.
        assert container.exec(["cat"], capture_output=True).stdout == b""

    def test_outputs_together(self, container: Container) -> None:
        done = container.exec(["sh", "-c", "echo 1; echo 2 >&2; echo 3"], stdout=PIPE, stderr=STDOUT)
        assert done.stdout == b"1\n2\n3\n"
        assert done.stderr is None

    def test_to_nowhere(self, container: Container) -> None:
        owner = os.stat("/dev/null").st_uid
        nowhere = {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL}
        done = container.exec(["sh", "-c", "echo 1; echo 2 >&2"], user="7", **nowhere)  # type: ignore[arg-type]
        assert done.returncode == 0
        assert os.stat("/dev/null").st_uid == owner

    def test_files_of_the_caller_stay_the_callers(self, container: Container, tmp_path: Path) -> None:
        (tmp_path / "in").write_text("first\nsecond\n")
        with open(tmp_path / "in") as given, open(tmp_path / "out", "w") as taken:
            script = "read line; echo got $line; : >/proc/self/fd/0; echo x >/proc/self/fd/1"
            status = container.exec(["sh", "-c", script], stdin=given, stdout=taken, user="7").returncode
        assert status == 0
        assert (tmp_path / "in").read_text() == "first\nsecond\n"
        assert (tmp_path / "out").read_text() == "got first\nx\n"
        assert (tmp_path / "out").stat().st_uid == os.geteuid()

    def test_environment_directory_and_user(self, container: Container) -> None:
        container.keep_alive(env={"KEPT": "1", "OTHER": "1"}, workdir="/tmp")
        assert shell(container, "echo $KEPT $OTHER $NEW; pwd", env={"OTHER": "2", "NEW": "3"}) == "1 2 3\n/tmp\n"
        assert shell(container, "id -u; pwd", user="7:8", workdir="/etc") == "7\n/etc\n"
        capabilities = shell(container, "cat /proc/self/status", user="7").partition("CapEff:\t")[2][:16]
        assert int(capabilities, 16) == 0

    def test_what_the_container_was_made_with_holds(self, store: Store, container: Container, tmp_path: Path) -> None:
        (tmp_path / "there").touch()
        container.prepare(
            ["sleep", "1018"], memory=48 << 20, env=["KEPT=1"], volumes=[Volume(str(tmp_path), "/v", False)]
        )
        for _ in range(2):
            assert shell(container, "echo $KEPT; ls /v") == "1\nthere\n"
            assert container.stats().memory_limit_bytes == 48 << 20
            assert sleepers(1018) == []
            container.stop(0)
        # By the commands.
        arguments = ["--root", str(container.root.parents[2])]
        call = [sys.executable, "-m", "layerstore", *arguments]
        made = subprocess.check_output([*call, "create", "--memory", "48m", "box:1"], text=True).strip()
        try:
            subprocess.run([*call, "exec", made, "true"], check=True)
            assert store.container(made).stats().memory_limit_bytes == 48 << 20
        finally:
            subprocess.run([*call, "rm", "--force", made], check=True, stdout=DEVNULL)

    def test_check(self, container: Container) -> None:
        with pytest.raises(subprocess.CalledProcessError) as caught:
            container.exec(["sh", "-c", "echo why; exit 4"], capture_output=True, check=True)
        assert (caught.value.returncode, caught.value.stdout) == (4, b"why\n")

    @pytest.mark.parametrize(
        ("args", "options", "message"),
        [
            ("ls -l", {}, r"not the string 'ls -l'; for a shell: \['sh', '-c', 'ls -l'\]"),
            ([], {}, "the program first"),
            (["a\0b"], {}, "the program first"),
            (["true"], {"user": "nobody-here"}, "nobody-here"),
            (["true"], {"env": ["bad"]}, "not of the form NAME=value"),
            (["true"], {"workdir": "relative"}, "not an absolute path"),
            (["true"], {"input": b"", "stdin": 0}, "input does not go with stdin"),
            (["true"], {"capture_output": True, "stdout": 1}, "capture_output does not go with"),
            (["cat"], {"input": "text", "stdout": PIPE}, "the pipe is binary"),
            (["true"], {"stdout": STDOUT}, "stdout cannot go to STDOUT"),
            (["true"], {"tty": True, "stdin": DEVNULL}, "not a TTY"),
            (["true"], {"encoding": "no-such"}, "unknown encoding"),
        ],
    )
    def test_refused(self, container: Container, args: list[str], options: dict[str, object], message: str) -> None:
        container.keep_alive()
        gc.collect()  # what other tests left open is not closed meanwhile
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(InvalidInput, match=message):
            container.exec(args, **options)  # type: ignore[arg-type]
        assert len(os.listdir("/proc/self/fd")) == before
        # Nothing of it is left, and nobody thinks that a command runs.
        assert not [name for name in os.listdir(container.root.parent) if name.startswith("command-")]
        container.remove()

    def test_program_that_is_not_there(self, container: Container) -> None:
        with pytest.raises(ProgramNotFound, match='"nothing": executable file not found'):
            container.exec(["nothing"])
        shell(container, "echo text >/file")
        with pytest.raises(ProgramNotExecutable, match="permission denied"):
            container.exec(["/file"])
        # What only the runtime finds out.
        shell(container, "printf '#!/nowhere\\n' >/script; chmod 755 /script")
        with pytest.raises(ProgramNotFound, match='"/script"'):
            container.exec(["/script"])
        assert container.exec(["true"]).returncode == 0

    def test_in_a_view_that_was_unmounted_by_force(self, container: Container) -> None:
        container.exec(["touch", "/made"])
        container.umount(force=True)
        assert shell(container, "ls /made") == "/made\n"
        with pytest.raises(ProgramNotFound):
            container.exec(["nothing"])
        container.stop()

    @pytest.mark.parametrize("begin", ["start", "keep_alive"])
    def test_a_start_in_a_view_that_is_unmounted_by_force(
        self, container: Container, monkeypatch: pytest.MonkeyPatch, begin: str
    ) -> None:
        """At the last moment: the runtime would take the directory that it was mounted on."""
        write = Containers.write_bundle

        def unmounted(*given: Any, **options: Any) -> str:
            Store(container.root.parents[2]).container(container.id).umount(force=True)
            return write(*given, **options)

        monkeypatch.setattr(Containers, "write_bundle", unmounted)
        with pytest.raises(Conflict, match="unmounted by force while it started; try again"):
            if begin == "keep_alive":
                container.keep_alive()
            else:
                getattr(container, begin)(["sleep", "1017"])
        assert container.state == "created"
        assert sleepers(1017) == []
        monkeypatch.undo()
        assert shell(container, "echo here") == "here\n"

    def test_of_a_container_that_has_gone(self, store: Store, container: Container) -> None:
        container.exec(["true"])
        store.remove([container], force=True)
        with pytest.raises(NotFound):
            container.exec(["true"])

    def test_extent_driver(self, store: Store) -> None:
        with pytest.raises(Unsupported, match="overlay"):
            store.create("box:1", driver="extent").exec(["true"])


class TestBesideOthers:
    def test_a_program_that_runs(self, container: Container) -> None:
        container.start(["sh", "-c", "echo mine >/made; exec sleep 1001"], env={"OF": "start"})
        wait_for(lambda: shell(container, "cat /made 2>/dev/null || true") == "mine\n")
        assert shell(container, "cat /proc/1/cmdline; echo $OF") == "sleep\0001001\0start\n"
        assert container.row.command is None or "sleep" in container.row.command
        container.stop(0)
        assert sleepers(1001) == []

    def test_a_program_that_is_waited_for(self, container: Container) -> None:
        statuses: list[int] = []
        program = ["sh", "-c", "until test -e /go; do sleep 0.01; done; exit 9"]
        running = threading.Thread(target=lambda: statuses.append(container.run(program)))
        running.start()
        wait_for(lambda: container.state == "running")
        assert container.exec(["touch", "/go"]).returncode == 0
        running.join()
        assert statuses == [9]

    def test_many_at_once(self, container: Container) -> None:
        failures: list[object] = []

        def work(number: int) -> None:
            for turn in range(5):
                text = f"{number} {turn}"
                done = container.exec(["echo", text], capture_output=True, text=True)
                if (done.returncode, done.stdout) != (0, f"{text}\n"):
                    failures.append(done)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []

    def test_processes_that_begin_at_the_same_moment(self, store: Store, container: Container) -> None:
        code = (
            "import sys, layerstore\n"
            "container = layerstore.Store(sys.argv[1]).container(sys.argv[2])\n"
            "print(container.exec(['cat', '/proc/1/cmdline'], capture_output=True, check=True).stdout)\n"
        )
        command = [sys.executable, "-c", code, str(store.root), container.id]
        begun = [subprocess.Popen(command, stdout=PIPE, text=True, cwd=ROOT) for _ in range(6)]
        assert [process.communicate()[0] for process in begun] == ["b'/dev/.init\\x00'\n"] * 6
        assert [process.returncode for process in begun] == [0] * 6


class TestConfinement:
    def test_as_the_container(self, container: Container) -> None:
        container.keep_alive(pids_limit=30)
        status = shell(container, "cat /proc/self/status")
        assert "\nSeccomp:\t2\n" in status
        assert shell(container, "cat /proc/self/cgroup").splitlines()[-1].startswith("0::/command-")
        # The limit is of all commands together.
        first = container.popen(["sh", "-c", "for i in $(seq 20); do sleep 1002 & done; echo; wait"], stdout=PIPE)
        assert first.stdout is not None
        first.stdout.readline()
        second = container.exec(
            ["sh", "-c", "for i in $(seq 20); do sleep 1002 >/dev/null 2>&1 & done; wait"], capture_output=True
        )
        assert second.returncode != 0
        assert b"can't fork" in second.stderr
        first.kill()
        first.wait()
        container.stop()
        assert sleepers(1002) == []

    def test_privileged(self, container: Container) -> None:
        container.keep_alive(privileged=True)
        assert "\nSeccomp:\t0\n" in shell(container, "cat /proc/self/status")

    def test_without_groups(self, container: Container) -> None:
        container.keep_alive(cgroups="disabled")
        assert shell(container, "echo yes") == "yes\n"
        process = container.popen(["sleep", "1003"])
        assert process.pid > 0  # it has begun
        with pytest.raises(Conflict, match="is running"):
            container.umount()
        process.kill()  # nothing but the namespace says what belongs to it
        assert process.wait() == 137
        wait_for(lambda: container.state == "mounted")

    def test_the_keeper_cannot_be_changed(self, container: Container) -> None:
        done = container.exec(["sh", "-c", "echo bad >/dev/.init"], capture_output=True)
        assert done.returncode != 0
        done = container.exec(["sh", "-c", "echo bad >/proc/1/exe"], capture_output=True)
        assert done.returncode != 0


class TestTimeout:
    def test_all_that_it_started_ends(self, container: Container) -> None:
        script = "echo begun; setsid sleep 1004 & sleep 1004"
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            container.exec(["sh", "-c", script], timeout=1, capture_output=True)
        assert (caught.value.timeout, caught.value.output) == (1, b"begun\n")
        wait_for(lambda: sleepers(1004) == [])
        assert container.state == "running"
        assert shell(container, "ls -d /proc/[0-9]* | wc -l") == "4\n"  # the keeper, sh, ls, wc: no zombie
        container.umount()

    @pytest.mark.parametrize("timeout", [0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.008, 0.015])
    def test_whenever_it_comes(self, container: Container, timeout: float) -> None:
        """Also before the runtime has begun the command."""
        container.keep_alive()
        with pytest.raises(subprocess.TimeoutExpired):
            container.exec(["sleep", "1015"], timeout=timeout, capture_output=True)
        assert sleepers(1015) == []
        container.umount()

    def test_a_fork_bomb_ends(self, container: Container) -> None:
        container.keep_alive(pids_limit=200)
        with pytest.raises(subprocess.TimeoutExpired):
            container.exec(["sh", "-c", "f() { f & f & }; f; sleep 1005"], timeout=0.5, stdout=DEVNULL, stderr=DEVNULL)
        assert shell(container, "echo alive") == "alive\n"
        container.umount()

    def test_another_program_holds_its_output(self, container: Container) -> None:
        """It must not keep the caller beyond the time limit."""
        container.start(
            ["sh", "-c", "until test -e /pid; do sleep 0.01; done; exec 9>/proc/$(cat /pid)/fd/1; sleep 1016"]
        )
        begun = time.monotonic()
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            script = "echo $$ >/pid.new; mv /pid.new /pid; echo said; sleep 1016"
            container.exec(["sh", "-c", script], timeout=1, capture_output=True)
        assert caught.value.output == b"said\n"
        assert time.monotonic() - begun < 10
        container.stop(0)

    def test_nobody_reads_its_output(self, container: Container) -> None:
        read, write = os.pipe()
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                container.exec(["sh", "-c", "while :; do echo y; done"], stdout=write, timeout=1)
        finally:
            os.close(read)
            os.close(write)

    def test_one_that_prints_without_pause(self, container: Container) -> None:
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            container.exec(["sh", "-c", "while :; do echo y; done"], timeout=1, capture_output=True)
        assert caught.value.output.startswith(b"y\ny\n")

    def test_others_go_on(self, container: Container) -> None:
        other = container.popen(["sh", "-c", "read line; echo $line"], stdin=PIPE, stdout=PIPE, text=True)
        with pytest.raises(subprocess.TimeoutExpired):
            container.exec(["sleep", "1006"], timeout=0.1)
        assert other.communicate("still here\n") == ("still here\n", None)


class TestProcess:
    def test_signals(self, container: Container) -> None:
        script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
        with container.popen(["sh", "-c", script], stdout=PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert process.poll() is None
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.01)
            assert Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"sh\0-c\0trap")
            process.terminate()
            assert process.stdout.readline() == "caught\n"
        assert process.returncode == process.wait() == process.poll() == 5
        assert repr(process).endswith("returncode=5>")
        process.terminate()
        process.kill()
        with pytest.raises(ProcessLookupError):
            _ = process.pid

    def test_no_input_is_lost_by_a_timeout(self, container: Container) -> None:
        data = os.urandom(300_000)
        process = container.popen(["sh", "-c", "sleep 0.5; cat"], stdin=PIPE, stdout=PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(data, timeout=0.1)
        with pytest.raises(InvalidInput, match="given already"):
            process.communicate(data)
        assert process.communicate() == (data, None)

    def test_communicate_again_after_a_timeout(self, container: Container) -> None:
        process = container.popen(["sh", "-c", "echo 1; sleep 0.5; cat"], stdin=PIPE, stdout=PIPE)
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            process.communicate(b"2\n", timeout=0.1)
        assert caught.value.output in (b"1\n", b"")
        assert process.communicate() == (b"1\n2\n", None)

    def test_what_goes_on_after_it(self, container: Container) -> None:
        shell(container, "sleep 1007 >/dev/null 2>&1 </dev/null &")
        with pytest.raises(Conflict, match="is running"):
            container.umount()
        assert len(sleepers(1007)) == 1
        container.stop()
        assert sleepers(1007) == []
        container.umount()

    def test_forgotten(self, store: Store, container: Container) -> None:
        process = container.popen(["sleep", "1008"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        pid = process.pid
        with pytest.warns(ResourceWarning, match="was forgotten while it ran"):
            del process
        container.remove(force=True)
        wait_for(lambda: not Path(f"/proc/{pid}").exists())
        assert container not in store.containers()
        # Another one begins, and what is left of this one is seen to.
        before = leftovers.child_processes()
        other = store.create("box:1")
        wait_for(lambda: other.exec(["true"]).returncode == 0 and len(leftovers.child_processes()) < len(before))

    def test_terminal(self, container: Container) -> None:
        ours, theirs = pty.openpty()
        try:
            process = container.popen(["sh", "-c", "tty; echo $TERM"], stdin=theirs, stdout=theirs, tty=True)
            assert process.wait() == 0
            assert os.read(ours, 1000).decode().split() == ["/dev/pts/0", "xterm"]
        finally:
            os.close(ours)
            os.close(theirs)

    def test_ends_with_the_runtime_that_waits_for_it(self, container: Container) -> None:
        """Which the kernel may take to end for want of memory."""
        process = container.popen(["sh", "-c", "sleep 1019 & sleep 1019"])
        wait_for(lambda: len(sleepers(1019)) == 2)
        os.kill(process._runtime_pid, signal.SIGKILL)
        assert process.wait() == 137
        assert sleepers(1019) == []
        assert container.exec(["true"]).returncode == 0


class TestAtRest:
    """A container in which nothing but the keeper is."""

    def test_what_ends_it(self, store: Store, container: Container) -> None:
        container.snapshot("before")
        container.exec(["touch", "/made"])
        container.rollback("before")
        assert container.state == "created"
        assert container.exec(["test", "-e", "/made"]).returncode == 1
        assert container.run(["sh", "-c", "exit 6"]) == 6
        container.exec(["true"])
        container.umount()
        assert container.state == "created"
        container.exec(["true"])
        container.start(["sleep", "1009"])
        assert shell(container, "cat /proc/1/cmdline") == "sleep\0001009\0"
        container.stop(0)
        container.exec(["touch", "/kept"])
        container.umount()
        container.move("extent")
        assert Path("/kept").name in os.fsdecode(b" ".join(entry.path for entry in container.entries("/")))

    def test_not_while_a_command_runs(self, container: Container) -> None:
        container.snapshot("before")
        process = container.popen(["sleep", "1010"])
        assert process.pid > 0  # it has begun

        def roll_back() -> None:
            container.rollback("before")

        def run() -> None:
            container.run(["true"])

        for act in (container.umount, container.remove, roll_back, run):
            with pytest.raises(Conflict, match="running"):
                act()
        assert process.poll() is None
        process.kill()
        assert process.wait() == 137
        container.remove()

    def test_removed_by_force(self, container: Container) -> None:
        process = container.popen(["sleep", "1011"])
        assert process.pid > 0  # it has begun
        container.remove(force=True)
        assert process.wait(10) == 137
        assert sleepers(1011) == []

    def test_zombies_are_waited_for(self, container: Container) -> None:
        shell(container, "sh -c 'sleep 0.1 &' ; sleep 0.3")
        assert shell(container, "cat /proc/[0-9]*/stat | grep -c ' Z ' || true") == "0\n"

    def test_its_caller_is_killed(self, store: Store, container: Container) -> None:
        code = (
            "import sys, layerstore\n"
            "container = layerstore.Store(sys.argv[1]).container(sys.argv[2])\n"
            "container.exec(['sh', '-c', 'echo begun; sleep 1012'])\n"
        )
        command = [sys.executable, "-c", code, str(store.root), container.id]
        with subprocess.Popen(command, stdout=PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            process.kill()
        with pytest.raises(Conflict, match="running"):
            container.umount()
        assert shell(container, "echo beside") == "beside\n"
        container.stop()
        container.remove()
        assert sleepers(1012) == []

    def test_one_that_was_forgotten_and_ended(self, container: Container) -> None:
        process = container.popen(["sleep", "0.3"], stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
        with pytest.warns(ResourceWarning):
            del process
        time.sleep(1)
        container.umount()

    def test_a_rollback_to_no_snapshot_stops_nothing(self, container: Container) -> None:
        container.keep_alive()
        with pytest.raises(NotFound, match="no snapshot 'typo'"):
            container.rollback("typo")
        assert container.state == "running"

    def test_a_volume_over_dev(self, container: Container, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match="a volume takes the place"):
            container.keep_alive(volumes=[Volume(str(tmp_path), "/dev")])


class TestStop:
    @pytest.mark.parametrize(
        ("text", "number"),
        [
            ("", 15),
            ("SIGINT", 2),
            ("quit", 3),
            ("9", 9),
            ("SIGRTMIN+3", 37),
            ("RTMAX-2", 62),
            ("SIGNOTHING", 15),
            ("77", 15),
        ],
    )
    def test_signal_of_an_image(self, text: str, number: int) -> None:
        assert stop_signal({"config": {"StopSignal": text}}) == number

    def test_asked_first(self, container: Container) -> None:
        container.start(["sh", "-c", "trap 'echo asked >/told; exit' TERM; echo >/ready; while :; do sleep 0.01; done"])
        wait_for(lambda: container.exec(["test", "-e", "/ready"]).returncode == 0)
        container.stop()
        assert container.state == "mounted"
        assert (container.root / "told").read_text() == "asked\n"

    def test_commands_are_asked_too(self, container: Container) -> None:
        script = "trap 'echo asked >/told; exit 0' TERM; echo ready; while :; do sleep 0.01; done"
        process = container.popen(["sh", "-c", script], stdout=PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        container.stop()
        assert process.wait() == 0
        assert (container.root / "told").read_text() == "asked\n"

    def test_killed_then(self, container: Container) -> None:
        container.start(["sh", "-c", "trap '' TERM; echo >/ready; while :; do sleep 0.01; done"])
        wait_for(lambda: container.exec(["test", "-e", "/ready"]).returncode == 0)
        begun = time.monotonic()
        container.stop(0.2)
        assert 0.2 <= time.monotonic() - begun < 5
        assert container.state == "mounted"

    def test_nothing_to_stop(self, container: Container) -> None:
        container.stop()
        container.mount()
        container.stop()
        assert container.state == "mounted"


class TestCommandLine:
    def layerstore(self, store: Store, *args: str, **options: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "layerstore", "--root", str(store.root), *args]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, **options)  # type: ignore[call-overload, no-any-return]

    def test_exec_and_stop(self, store: Store, container: Container) -> None:
        script = "echo $A; cat; exit 7"
        done = self.layerstore(store, "exec", "-e", "A=1", container.id, "sh", "-c", script, input="unread")
        assert (done.returncode, done.stdout, done.stderr) == (7, "1\n", "")
        done = self.layerstore(store, "exec", "-i", "-w", "/etc", container.id, "cat", input="read\n")
        assert (done.returncode, done.stdout) == (0, "read\n")
        done = self.layerstore(store, "exec", container.id, "nothing")
        assert done.returncode == 127
        assert done.stderr == 'layerstore exec: exec: "nothing": executable file not found in $PATH\n'
        assert container.state == "running"
        done = self.layerstore(store, "stop", "-t", "1", container.id)
        assert (done.returncode, done.stdout) == (0, f"{container.id}\n")
        assert container.state == "mounted"

    def test_a_signal_ends_what_it_runs(self, store: Store, container: Container) -> None:
        command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "exec", container.id]
        with subprocess.Popen([*command, "sh", "-c", "echo begun; sleep 1013"], stdout=PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGTERM)
        wait_for(lambda: sleepers(1013) == [])
        container.umount()


@pytest.mark.needs_tool("runc")
class TestRunc:
    """Which makes the control groups itself."""

    @pytest.fixture
    def container(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> Container:
        runtime = find_runtime("runc", store.root / "run/runtime")
        monkeypatch.setattr("layerstore.containers.runtime.find_runtime", lambda name, root: runtime)
        return store.create("box:1")

    def test_a_command(self, container: Container) -> None:
        done = container.exec(["sh", "-c", "echo out; cat /proc/1/cmdline; exit 3"], capture_output=True)
        assert (done.returncode, done.stdout) == (3, b"out\n/dev/.init\0")
        container.umount()
        assert container.state == "created"

    def test_a_timeout_ends_the_container(self, container: Container) -> None:
        with pytest.raises(subprocess.TimeoutExpired):
            container.exec(["sh", "-c", "setsid sleep 1014 & sleep 1014"], timeout=1)
        assert sleepers(1014) == []
        assert container.exec(["true"]).returncode == 0


def test_a_stop_takes_what_callers_left_that_were_killed(container: Container) -> None:
    files = container.root.parent
    for begin in (lambda: container.start(["sleep", "1000"]), container.keep_alive):
        begin()
        for name in ("command-0123.json", "command-0123.pid", ".null-0123"):
            (files / name).touch()
        container.stop(0)
        assert not [*files.glob("command-*"), *files.glob(".null-*")]


@pytest.mark.parametrize("forced", [False, True])
def test_the_end_of_what_a_killed_caller_froze(container: Container, forced: bool) -> None:
    """He was about to kill a command that took too long."""
    with container.popen(["sleep", "1016"], stdout=DEVNULL) as process:
        wait_for(lambda: process.pid)
        for group in leftovers.control_groups({container.id}):
            for path in Path(group).glob("command-*/cgroup.freeze"):
                path.write_text("1")
                wait_for(lambda path=path: "frozen 1" in (path.parent / "cgroup.events").read_text())
        begin = time.monotonic()
        if forced:
            container.remove(force=True)
        else:
            container.stop(0)
        assert time.monotonic() - begin < 8, "else it waits for what is frozen, and then gives up"
    assert process.returncode in (137, 143)
    assert sleepers(1016) == []


def test_a_stop_leaves_no_group_where_a_collection_looks_at_it(
    container: Container, monkeypatch: pytest.MonkeyPatch
) -> None:
    container.keep_alive()
    with contextlib.ExitStack() as looking:
        looking.enter_context(locks.program(Layout(container.root.parents[2]), container.id))
        monkeypatch.setattr("layerstore.containers.containers.time.sleep", lambda _: looking.close())
        container.stop(0)
    assert leftovers.control_groups({container.id}) == []
