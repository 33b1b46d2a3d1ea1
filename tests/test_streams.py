"""Standard input and output of containers, and what a program inside can do to the files behind them."""

import contextlib
import errno
import io
import itertools
import os
import pty
import resource
import select
import signal
import socket
import stat
import subprocess
import sys
import termios
import threading
import time
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from images import docker_files, tar_of
from meddling import ALWAYS, Meddling
from test_containers import BOX, root_only, runs
from waiting import wait_for

from layerstore import Container, Store
from layerstore.containers import standard_streams
from layerstore.containers.standard_streams import Streams

LARGE = os.urandom(1 << 20) * 3
WRITES = "busybox dd if=/dev/zero bs=65536 2>/dev/null"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("streams") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BOX]))))
        yield opened
        opened.remove(opened.containers(), force=True)


@pytest.fixture
def box(store: Store) -> Iterator[Container]:
    """A container that runs nothing at the end, and of whose streams nothing is left."""
    made = store.create("box:1", volatile=True)
    before = descriptors()
    yield made
    assert made.state != "running"
    assert descriptors() == before
    made.remove(force=True)


def descriptors() -> list[str]:
    """What this process has open but for the store's database, of which each thread has a connection."""
    found = []
    for fd in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(fd))
    return sorted(path for path in found if "layerstore.db" not in path)


def run(box: Container, script: str, **options: Any) -> int:
    return box.run(["sh", "-c", script], network="none", **options)


def owner_and_mode(path: str | Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_uid, status.st_gid, status.st_mode


class Reader(threading.Thread):
    """Reads all that comes out of a descriptor, which it closes."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.data = b""
        self.start()

    def run(self) -> None:
        with contextlib.suppress(OSError), open(self._fd, "rb", 0) as file:
            while data := file.read(1 << 16):
                self.data += data

    def all(self) -> bytes:
        self.join(20)
        assert not self.is_alive(), "nobody has closed the other end"
        return self.data


def left_in(terminal: int) -> bytes:
    """The next line of a terminal; raises where there is none."""
    os.set_blocking(terminal, False)
    return os.read(terminal, 100)


def written_by(act: Callable[[int], object]) -> bytes:
    """What an action writes to the pipe that it is given."""
    read, write = os.pipe()
    reader = Reader(read)
    try:
        act(write)
    finally:
        os.close(write)
    return reader.all()


@root_only
@runs
class TestTheCallersFiles:
    """What is given as input can be read and nothing else, as output written and nothing else."""

    ATTEMPTS = """
echo evil >/proc/self/fd/0
cat /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2 </dev/null >/tmp/read &
busybox sleep 0.2; kill $!
busybox chmod 4777 /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
busybox truncate -s 0 /proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2
: >/proc/self/fd/1; : >/proc/self/fd/2; : >/proc/1/fd/1
echo told
"""

    @pytest.fixture
    def files(self, tmp_path: Path) -> list[Path]:
        files = [tmp_path / name for name in ("in", "out", "err")]
        for path in files:
            path.write_text("secret\n")
            path.chmod(0o640)
        return files

    @pytest.mark.parametrize("user", ["1000", "0"])
    def test_they_cannot_be_reached(self, box: Container, files: list[Path], user: str) -> None:
        before = [owner_and_mode(path) for path in (*files, os.devnull)]
        with files[0].open("rb") as given, files[1].open("ab") as out, files[2].open("ab") as err:
            run(box, f"({self.ATTEMPTS}) 2>/dev/null; echo err >&2", user=user, stdin=given, stdout=out, stderr=err)
        with box.mount() as root:
            assert b"secret" not in (root / "tmp/read").read_bytes()
        assert [path.read_text() for path in files] == ["secret\n", "secret\ntold\n", "secret\nerr\n"]
        assert [owner_and_mode(path) for path in (*files, os.devnull)] == before

    @pytest.mark.parametrize("user", ["1000", "0"])
    def test_nor_by_one_that_is_left_running(self, box: Container, files: list[Path], user: str) -> None:
        before = [owner_and_mode(path) for path in (*files, os.devnull)]
        box.start(["sh", "-c", f"({self.ATTEMPTS}) 2>/dev/null; echo err >&2"], user=user)
        box.wait(20)
        assert [piece.data for piece in box.logs()] == [b"told\n", b"err\n"]
        assert [owner_and_mode(path) for path in (*files, os.devnull)] == before

    @pytest.mark.parametrize("which", ["stdin", "stdout", "start"])
    def test_the_hosts_null_device(self, box: Container, which: str) -> None:
        before = owner_and_mode(os.devnull)
        if which == "start":
            box.start(["sh", "-c", "busybox chmod 600 /proc/self/fd/1; busybox chmod 600 /proc/self/fd/0"], user="1000")
            wait_for(lambda: box.state != "running")
        else:
            with open(os.devnull, "r+b", 0) as null:
                run(box, "busybox chmod 600 /proc/self/fd/0 /proc/self/fd/1", user="1000", **{which: null})
        assert owner_and_mode(os.devnull) == before

    def test_with_a_terminal(self, box: Container, tmp_path: Path) -> None:
        """The runtime has the caller's, and the program another one; a file for its output is nobody else's, either."""
        out = tmp_path / "out"
        out.touch(0o640)
        controller, terminal = pty.openpty()
        try:
            before = os.fstat(terminal).st_uid, os.fstat(terminal).st_rdev
            with out.open("ab") as file:
                status = run(
                    box,
                    "ls -l /proc/1/fd /proc/$$/fd; cat /proc/self/fd/0 & echo",
                    tty=True, user="1000", stdin=terminal, stdout=file, stderr=file,
                )  # fmt: skip
            assert (os.fstat(terminal).st_uid, os.fstat(terminal).st_rdev) == before
        finally:
            os.close(controller)
            os.close(terminal)
        assert status == 0
        assert owner_and_mode(out) == (0, 0, stat.S_IFREG | 0o640)
        shown = [line.rpartition("-> ")[2].strip() for line in out.read_text().splitlines() if "->" in line]
        assert len(shown) >= 6
        assert set(shown) <= {"/dev/pts/0", "/dev/tty"}


@root_only
@runs
class TestInput:
    def test_an_empty_one(self, box: Container) -> None:
        def act(out: int) -> None:
            with open(os.devnull, "rb") as nothing:
                assert run(box, "cat; cat /proc/self/fd/0; echo end", stdin=nothing, stdout=out) == 0

        assert written_by(act) == b"end\n"

    def test_the_end_of_a_pipe(self, box: Container) -> None:
        read, write = os.pipe()
        os.write(write, b"text")
        os.close(write)
        try:
            assert written_by(lambda out: run(box, "cat", stdin=read, stdout=out)) == b"text"
        finally:
            os.close(read)

    def test_what_was_not_read_of_a_file_is_left(self, box: Container, tmp_path: Path) -> None:
        (tmp_path / "in").write_bytes(LARGE)
        with (tmp_path / "in").open("rb", 0) as file:
            assert run(box, "busybox dd bs=1000 count=2 2>/dev/null >/tmp/two", stdin=file, stdout=2) == 0
            assert file.read(100) == LARGE[2000:2100]
        with (tmp_path / "in").open("rb", 0) as file:
            assert run(box, "true", stdin=file) == 0
            assert file.tell() == 0

    @pytest.fixture
    def typed(self) -> Iterator[int]:
        """A terminal into which five lines were typed."""
        controller, terminal = pty.openpty()
        try:
            attributes = termios.tcgetattr(terminal)
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(terminal, termios.TCSANOW, attributes)
            os.write(controller, b"1\n2\n3\n4\n5\n")
            yield terminal
        finally:
            os.close(controller)
            os.close(terminal)

    def test_of_a_terminal_one_line_is_taken(self, box: Container, typed: int) -> None:
        script = "read -r one; read -r two; echo $one $two; busybox sleep 0.3"
        assert written_by(lambda out: run(box, script, stdin=typed, stdout=out)) == b"1 2\n"
        assert left_in(typed) in (b"3\n", b"4\n")

    def test_nor_another_when_nobody_reads_any_more(self, typed: int) -> None:
        """As while a runtime ends: its files are closed before it has ended."""
        script = "read -r one; read -r two; sleep 0.3; exec <&-; sleep 0.3"
        with open(os.devnull, "wb") as nothing, Streams(typed, nothing.fileno(), nothing.fileno()) as made:
            child = subprocess.Popen(["sh", "-c", script], stdin=made.given[0])
            made.copy(child.pid)
            made.finish()
            assert child.wait() == 0
        assert left_in(typed) in (b"3\n", b"4\n")

    @pytest.mark.parametrize("kind", ["write only", "directory"])
    def test_what_cannot_be_read_is_empty(self, box: Container, tmp_path: Path, kind: str) -> None:
        """nohup(1) gives a null device that is open for writing alone."""
        fd = os.open(*((os.devnull, os.O_WRONLY) if kind == "write only" else (tmp_path, os.O_RDONLY)))
        try:
            assert written_by(lambda out: run(box, "cat; echo end", stdin=fd, stdout=out)) == b"end\n"
        finally:
            os.close(fd)

    def test_one_that_fails_is_told(self, box: Container, tmp_path: Path, meddle: Meddling) -> None:
        (tmp_path / "in").write_bytes(b"text")
        of_it = str(tmp_path / "in")
        meddle.fail(os, "read", errno.EIO, ALWAYS, when=lambda fd, _: os.readlink(f"/proc/self/fd/{fd}") == of_it)
        with (tmp_path / "in").open("rb") as file, pytest.raises(OSError, match=r"Input/output error: '.*/in'"):
            run(box, "cat", stdin=file)

    def test_one_that_is_closed_names_it(self, box: Container) -> None:
        with pytest.raises(OSError, match="Bad file descriptor: 'descriptor 987'"):
            run(box, "true", stdin=987)

    def test_a_terminal_in_whose_background_this_is(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """To read it would stop this process, and the line be another one's."""
        controller, terminal = pty.openpty()
        is_other, ended = [True], os.pidfd_open(os.getpid())
        monkeypatch.setattr(os, "tcgetpgrp", lambda _: os.getpgrp() + is_other[0])
        try:
            os.write(controller, b"line\n")
            with Streams(terminal, 1, 2) as made:
                assert made._input is not None
                for expected, times in ((b"", 2), (b"line\n", 1)):
                    for _ in range(times):
                        made._moved(ended)
                    os.set_blocking(made.given[0], False)
                    with contextlib.suppress(BlockingIOError):
                        assert os.read(made.given[0], 100) == expected
                    is_other[0] = False
        finally:
            os.close(ended)
            os.close(controller)
            os.close(terminal)


@root_only
@runs
class TestOutput:
    def test_appended_to(self, box: Container, tmp_path: Path) -> None:
        with (tmp_path / "out").open("ab", 0) as out:
            out.write(b"before\n")
            assert run(box, f"{WRITES} count=20; echo end", stdout=out) == 0
        assert (tmp_path / "out").read_bytes() == b"before\n" + bytes(65536 * 20) + b"end\n"

    def test_to_where_a_file_stands(self, box: Container, tmp_path: Path) -> None:
        with (tmp_path / "out").open("w+b", 0) as out:
            out.write(b"before\nafter\n")
            out.seek(7)
            assert run(box, "echo x", stdout=out) == 0
            out.write(b"y")
        assert (tmp_path / "out").read_bytes() == b"before\nx\nyer\n"

    def test_to_a_socket(self, box: Container) -> None:
        ours, given = socket.socketpair()
        reader = Reader(ours.detach())
        with given:
            assert run(box, f"{WRITES} count=20; echo end", stdout=given.fileno(), stderr=given.fileno()) == 0
        assert reader.all() == bytes(65536 * 20) + b"end\n"

    def test_to_a_terminal(self, box: Container) -> None:
        controller, terminal = pty.openpty()
        tty.setraw(terminal)
        flags = select.poll and os.get_blocking(terminal)
        reader = Reader(controller)
        assert run(box, f"{WRITES} count=20; echo end", stdout=terminal, stderr=terminal) == 0
        assert os.get_blocking(terminal) is flags is True
        os.close(terminal)
        assert reader.all() == bytes(65536 * 20) + b"end\n"

    @pytest.mark.parametrize("place", ["pipe", "file", "appended"])
    def test_both_to_one_keep_their_order(self, box: Container, tmp_path: Path, place: str) -> None:
        script = "for i in 0 1 2 3 4 5 6 7 8 9; do echo out $i; echo err $i >&2; done"
        expected = "".join(f"out {i}\nerr {i}\n" for i in range(10)).encode()

        def act(out: int) -> None:
            other = os.dup(out)  # as 2>&1 does
            assert run(box, script, stdout=out, stderr=other) == 0
            os.close(other)

        if place == "pipe":
            assert written_by(act) == expected
            return
        with (tmp_path / "out").open("ab" if place == "appended" else "wb") as file:
            act(file.fileno())
        assert (tmp_path / "out").read_bytes() == expected

    def test_two_places_of_one_file_are_two(self, tmp_path: Path) -> None:
        (tmp_path / "out").touch()
        with (tmp_path / "out").open("r+b", 0) as one, (tmp_path / "out").open("r+b", 0) as other:
            other.seek(5)
            assert not standard_streams._are_one(one.fileno(), other.fileno())
        with (tmp_path / "out").open("ab", 0) as one, (tmp_path / "out").open("ab", 0) as other:
            assert standard_streams._are_one(one.fileno(), other.fileno())

    def test_a_full_disk_is_told(self, box: Container, tmp_path: Path) -> None:
        with open("/dev/full", "wb", 0) as full, pytest.raises(OSError, match=r"No space left.*'/dev/full'"):
            run(box, f"{WRITES}; echo $? >/tmp/status", stdout=full)
        with box.mount() as root:
            assert (root / "tmp/status").read_text() == f"{128 + signal.SIGPIPE}\n"

    def test_appended_to_the_null_device(self, box: Container) -> None:
        with open("/dev/null", "ab", 0) as nothing:
            assert run(box, "echo x; exit 3", stdout=nothing) == 3

    @pytest.mark.parametrize("options", [["--name", "job"], ["--rm", "--name", "job"]])
    def test_where_it_is_lost_the_container_is_not(self, store: Store, options: list[str]) -> None:
        command = [sys.executable, "-m", "layerstore", "--root", store.root, "run", *options, "box:1"]
        script = "echo done >/result; echo x"
        with open("/dev/full", "wb", 0) as full:
            ended = subprocess.run(
                [*command, "/bin/sh", "-c", script], stdout=full, stderr=subprocess.PIPE, check=False
            )
        assert ended.returncode == 125
        assert b"No space left" in ended.stderr
        kept = [container for container in store.containers() if container.name == "job"]
        results = []
        for container in kept:
            with container.mount() as root:
                results.append((root / "result").read_text())
        store.remove(kept)
        assert results == ([] if "--rm" in options else ["done\n"])

    def test_without_a_reader(self, box: Container) -> None:
        """The program gets SIGPIPE, as it would have by the pipe itself, and that is all."""
        read, write = os.pipe()
        try:
            os.close(read)
            assert run(box, "echo x; echo $? >&2", stdout=write) in (0, 1, 128 + signal.SIGPIPE)
            assert run(box, f"{WRITES}; exit $?", stdout=write) == 128 + signal.SIGPIPE
        finally:
            os.close(write)

    def test_whose_reader_goes_before_anything_is_written(self, box: Container) -> None:
        read, write = os.pipe()
        os.close(read)
        try:
            status = run(box, "busybox sleep 0.3; trap 'exit 9' PIPE; echo x; busybox sleep 0.1; exit 3", stdout=write)
        finally:
            os.close(write)
        assert status == 9

    def test_a_caller_that_sigpipe_ends(self, store: Store, tmp_path: Path) -> None:
        code = f"""
import os, signal
from layerstore import Store
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
read, write = os.pipe()
os.close(read)
with Store({str(store.root)!r}) as store:
    container = store.create("box:1")
    assert container.run(["sh", "-c", "{WRITES}; exit $?"], stdout=write) == 141
    container.remove()
signal.raise_signal(signal.SIGPIPE)
"""
        done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


@root_only
@runs
class TestBothWays:
    @pytest.mark.parametrize("kind", ["pipe", "socket", "file and pipe"])
    def test_much_at_once(self, box: Container, tmp_path: Path, kind: str) -> None:
        """Who feeds the program reads nothing before all of it is written."""
        (tmp_path / "in").write_bytes(LARGE)
        if kind == "pipe":
            (given, feed), (drain, out) = os.pipe(), os.pipe()
        elif kind == "socket":
            (given, feed), (drain, out) = ([end.detach() for end in socket.socketpair()] for _ in range(2))
        else:
            given, feed = os.open(tmp_path / "in", os.O_RDONLY), -1
            drain, out = os.pipe()

        def write() -> None:
            with open(feed, "wb", 0) as file:
                file.write(LARGE)

        writer = threading.Thread(target=write)
        writer.start() if feed >= 0 else None
        reader = Reader(drain)
        assert run(box, "cat", stdin=given, stdout=out, stderr=out) == 0
        os.close(out)
        os.close(given)
        assert reader.all() == LARGE
        if feed >= 0:
            writer.join()

    @pytest.mark.parametrize("kind", ["pipe", "socket", "terminal"])
    def test_input_goes_on_while_the_output_is_full(self, box: Container, kind: str) -> None:
        """A program that looks at its input where it cannot write: the caller reads what it wrote only after that."""
        if kind == "pipe":
            drain, out = os.pipe()
        elif kind == "socket":
            drain, out = (end.detach() for end in socket.socketpair())
        else:
            drain, out = pty.openpty()
            tty.setraw(out)
        given, feed = os.pipe()
        script = f"({WRITES} count=50)& busybox sleep 0.3; read -r line; touch /tmp/was-read; wait"
        with box.mount() as root:
            caller = threading.Thread(target=run, args=(box, script), kwargs={"stdin": given, "stdout": out})
            caller.start()
            time.sleep(0.5)  # it is stuck then
            os.write(feed, b"line\n")
            wait_for((root / "tmp/was-read").exists)
            reader = Reader(drain)
            caller.join()
            for fd in (out, given, feed):
                os.close(fd)
        assert reader.all() == bytes(65536 * 50)

    def test_what_children_write_last_is_delivered(self, box: Container) -> None:
        script = (
            "(busybox sleep 0.2; echo from a child; busybox dd if=/dev/zero bs=60000 count=1 2>/dev/null; "
            "echo >/tmp/wrote; busybox sleep 100) & while ! busybox test -e /tmp/wrote; do busybox sleep 0.05; done"
        )
        assert written_by(lambda out: run(box, script, stdout=out)) == b"from a child\n" + bytes(60000)

    def test_a_pipe_that_another_process_holds_is_not_waited_for(self) -> None:
        """None can, but where a program handed it out of its container."""
        read, write = os.pipe()
        with open(os.devnull, "rb") as nothing, Streams(nothing.fileno(), write, write) as made:
            held = os.dup(made.given[1])
            os.write(held, b"text")
            child = subprocess.Popen(["true"])
            made.copy(child.pid)
            made.finish()
            assert child.wait() == 0
        os.close(held)
        os.close(write)
        assert Reader(read).all() == b"text"

    def test_signals_while_copying(self, box: Container) -> None:
        """None of the output is lost, and each arrives."""
        script = "trap 'echo caught >&2' USR1; trap 'exit 5' TERM; " + f"while :; do {WRITES} count=3; done"
        count = itertools.count()
        seen: list[bytes] = []

        def send() -> None:
            wait_for(lambda: len(errors.data) > 0 or next(count) > 3)
            for number in (signal.SIGUSR1, signal.SIGTERM):
                os.kill(os.getpid(), number)
                time.sleep(0.3)

        read, write = os.pipe()
        errors = Reader(read)
        sender = threading.Thread(target=send)
        sender.start()
        seen.append(written_by(lambda out: seen.append(b"%d" % run(box, script, stdout=out, stderr=write))))
        sender.join()
        os.close(write)
        assert seen[0] == b"5"
        assert errors.all() == b"caught\n"
        assert len(seen[1]) % 65536 == 0 or len(seen[1]) > 65536
        assert not seen[1].strip(b"\0")

    def test_in_a_thread(self, box: Container) -> None:
        def act(out: int) -> None:
            thread = threading.Thread(target=run, args=(box, "echo x"), kwargs={"stdout": out})
            thread.start()
            thread.join()

        assert written_by(act) == b"x\n"

    def test_an_interrupt_ends_the_program(self, box: Container) -> None:
        def ring(*_: object) -> None:
            raise TimeoutError("it rang")

        before = signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(TimeoutError, match="it rang"):
                run(box, "busybox sleep 100")
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert box.state == "created"

    def test_descriptors_that_cannot_be_had(self, box: Container) -> None:
        """Wherever it fails, nothing is left and the program does not run on."""
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with box.mount() as root:
            for more in itertools.count(1):
                fds = len(os.listdir("/proc/self/fd")) - 1
                resource.setrlimit(resource.RLIMIT_NOFILE, (fds + more, hard))
                try:
                    run(box, "echo >/tmp/ran")
                    break
                except OSError as error:
                    assert error.errno == errno.EMFILE
                    assert error.filename is not None
                finally:
                    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                assert box.state == "mounted"
            assert (root / "tmp/ran").exists()

    @pytest.mark.parametrize("script", [WRITES, "cat; echo >/tmp/ended"])
    def test_a_killed_caller(self, store: Store, script: str) -> None:
        """The program finds its input at the end, and nobody who reads its output."""
        code = f"""
from layerstore import Store
with Store({str(store.root)!r}) as store:
    store.container("killed").run(["sh", "-c", "touch /tmp/runs; " + {script!r}])
"""
        container = store.create("box:1", name="killed")
        try:
            with container.mount() as root:
                with subprocess.Popen(
                    [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                ) as caller:
                    wait_for((root / "tmp/runs").exists)
                    time.sleep(0.1)
                    caller.kill()
                wait_for(lambda: container.state == "mounted")
                assert (root / "tmp/ended").exists() == script.startswith("cat")
        finally:
            container.remove(force=True)
