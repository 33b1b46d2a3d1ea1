"""Commands in a container that lives, in the manner of Python's `subprocess`.

The runtime enters the container and waits for the command; it is a child of this process. A pipe that the caller asked
for is the command's itself. What goes to and from other files is copied by a thread (`standard_streams.py`).
"""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import select
import signal
import threading
import time
import warnings
from subprocess import DEVNULL, PIPE, STDOUT, CompletedProcess, TimeoutExpired

from layerstore.containers import groups, keeping
from layerstore.containers.standard_streams import Own, Streams, check_terminal, empty, private_null
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, ProgramNotFound
from layerstore.naming import about, close_fd, starting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import IO, Any, TypeAlias

    from layerstore.containers.groups import Part
    from layerstore.containers.runtime import Runtime
    from layerstore.containers.standard_streams import Sink

    Stream: TypeAlias = int | IO[Any] | None
    """As `subprocess` takes it: PIPE, DEVNULL, STDOUT, a descriptor, a file with one, or None for the caller's own."""

_PIECE_BYTES = 1 << 16
_LOOK_SECONDS = 0.0005
_LOOK_MS = 100
_FILES = ("json", "pid", "log")
_KILLED = 128 + signal.SIGKILL
_OF_RUNTIME = 255
_STOPPED = ("No such process", "Broken pipe", "Connection reset")
"""What runtimes complain about when the first process of the container ends meanwhile."""
_NOT_FOUND = "not found in $PATH"
STREAMS = ("stdin", "stdout", "stderr")


class Process:
    """A command in a container, from `Container.popen`. Safe for use by several threads.

    As a context manager it is waited for at the end of the block, after its streams were closed.

    Attributes:
        args: the command, a list of strings.
        stdin, stdout, stderr: files for what was `PIPE`, binary or of text; else None.
    """

    def __init__(
        self,
        args: Sequence[str],
        runtime: Runtime,
        container: str,
        files: str,
        streams: Streams,
        part: Part | None,
        release: Callable[[], None],
    ) -> None:
        """Begin it, with what `files` says (`Runtime.begin`). `release` is called when it has ended."""
        self.args = list(args)
        self.stdin: IO[Any] | None = None
        self.stdout: IO[Any] | None = None
        self.stderr: IO[Any] | None = None
        self._runtime = runtime
        self._container = container
        self._files = files
        self._part = part
        self._release = release
        self._streams = streams
        self._lock = threading.Lock()
        self._returncode: int | None = None
        self._was_killed = False
        self._failure: BaseException | None = None
        self._copying: threading.Thread | None = None
        self._received: dict[IO[Any], list[bytes]] = {}
        self._input: memoryview | None = None
        self._sent = 0
        self._kills = groups.OomKills(container)
        self._was_out_of_memory = False
        try:
            self._runtime_pid = runtime.begin(container, files, streams.given, part)
        except BaseException:
            self._kills.close()
            raise
        try:
            with about("a command in a container"):
                self._ended = os.pidfd_open(self._runtime_pid)
            if streams.copies:
                self._copying = threading.Thread(target=self._copy, name="layerstore-streams", daemon=True)
                with starting():
                    self._copying.start()
            else:
                streams.close()
        except BaseException:
            os.kill(self._runtime_pid, signal.SIGKILL)
            os.waitpid(self._runtime_pid, 0)
            self._returncode = _KILLED
            self._kills.close()
            raise

    def __repr__(self) -> str:
        state = "running" if self._returncode is None else f"returncode={self._returncode}"
        return f"<Process {self.args!r} in container {self._container[:12]}: {state}>"

    @property
    def returncode(self) -> int | None:
        """Its exit status, 128 + N when signal N ended it; None as long as nobody has seen that it ended (`poll`)."""
        return self._returncode

    @property
    def oom_killed(self) -> bool:
        """Whether the kernel has ended a process of the container for want of memory while it ran. The limit (`memory`)
        is the container's, for all its commands together: of several that run at once, it may have been another's.
        False where memory is not limited."""
        with self._lock:
            return self._was_out_of_memory if self._returncode is not None else self._kills.any()

    @property
    def pid(self) -> int:
        """Its process id on this machine, as soon as it has one. Raises `ProcessLookupError` when it ended before."""
        while True:
            if pid := self._begun():
                return pid
            if self._has_ended(_LOOK_SECONDS):
                raise ProcessLookupError(f"the command {self.args!r} has ended already")

    def _begun(self) -> int | None:
        """Its process id, once the runtime has written that."""
        try:
            with open(f"{self._files}.pid") as file:
                return int(file.read() or 0) or None
        except FileNotFoundError:
            return None

    def poll(self) -> int | None:
        """The exit status if it has ended, else None. Raises as `wait`."""
        return self._status_within(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; the exit status. What it wrote to files that are not pipes is delivered then.

        Raises `subprocess.TimeoutExpired` after `timeout` seconds, and it goes on; `LayerstoreError` where the runtime
        could not start it, `Conflict` where the container was stopped before that; `OSError` where what it wrote could
        not be delivered.
        """
        status = self._status_within(timeout)
        if status is None:
            assert timeout is not None
            raise TimeoutExpired(self.args, timeout)
        return status

    def communicate(self, input: Any = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Write `input` to its standard input and close that, read its outputs to their ends, and wait for it.

        Returns what stdout and stderr gave, None for one that is no pipe. Raises as `wait`; after a
        `TimeoutExpired` it can be called again, and nothing is lost.
        """
        end = None if timeout is None else time.monotonic() + timeout
        if self._input is None:
            data = memoryview(_encoded(self.stdin, input)) if input else memoryview(b"")
            if data and self.stdin is None:
                raise InvalidInput("there is no pipe to write the input to: ask for stdin=PIPE")
            self._input = data
        elif input:
            raise InvalidInput("the input was given already, by the call that timed out")
        self._exchange(self._input, end, timeout)
        if (status := self._status_within(_left(end))) is None:
            assert timeout is not None
            raise self._expired(timeout)
        assert status is not None
        return self._output(self.stdout), self._output(self.stderr)

    def send_signal(self, number: int) -> None:
        """Send a signal to it, not to what it has started. Nothing happens where it has ended."""
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            pid = self.pid
            fd = os.pidfd_open(pid)
            try:
                # The number may be another's by now; not while the runtime is its parent.
                if _parent_of(pid) == self._runtime_pid:
                    signal.pidfd_send_signal(fd, number)
            finally:
                close_fd(fd)

    def terminate(self) -> None:
        """`send_signal` of SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it with all that it has started, also what left its session. Without a control group of its own (runc,
        or `cgroups="disabled"`) all programs of the container are killed."""
        with self._lock:
            if self._returncode is not None:
                return
            self._was_killed = self._streams.gives_up = True
            if self._part is not None:
                # A runtime that has not begun the command yet would begin it all the same.
                self._part.end(self._runtime_pid if self._begun() else None)
                return
        with contextlib.suppress(LayerstoreError):  # it has ended
            self._runtime.kill(self._container, signal.SIGKILL)

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for stream in (self.stdout, self.stderr, self.stdin):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # it has ended, and read no more
                        stream.close()
        finally:
            self.wait()

    def __del__(self) -> None:
        if getattr(self, "_ended", None) is None or self._returncode is not None:
            return
        with contextlib.suppress(Exception):  # else nobody hears of it
            if self._status_within(0) is None:
                keeping.forgotten.append(self)
                warnings.warn(f"{self!r} was forgotten while it ran", ResourceWarning, stacklevel=2, source=self)

    # For who watches it in another way

    @contextlib.contextmanager
    def end_watched(self) -> Iterator[int]:
        """A descriptor that can be read when it has ended; `poll` gives the status then."""
        with self._lock:
            fd = os.dup(self._ended)
        try:
            yield fd
        finally:
            close_fd(fd)

    def take_pipes(self) -> tuple[IO[Any] | None, IO[Any] | None, IO[Any] | None]:
        """stdin, stdout and stderr, which are the caller's alone from then on."""
        pipes = self.stdin, self.stdout, self.stderr
        self.stdin = self.stdout = self.stderr = None
        return pipes

    # Its end

    def _copy(self) -> None:
        try:
            self._streams.copy(self._runtime_pid)
            self._streams.finish()
        except BaseException as error:
            self._failure = error
        finally:
            self._streams.close()

    def _has_ended(self, seconds: float | None) -> bool:
        if self._returncode is not None:
            return True
        poll = select.poll()
        with self._lock:
            if self._returncode is not None:
                return True
            fd = os.dup(self._ended)
        try:
            poll.register(fd, select.POLLIN)
            return bool(poll.poll(None if seconds is None else max(0, seconds) * 1000))
        finally:
            close_fd(fd)

    def _status_within(self, seconds: float | None) -> int | None:
        end = None if seconds is None else time.monotonic() + seconds
        if not self._has_ended(seconds):
            return None
        if self._copying is not None and self._copying is not threading.current_thread():
            self._copying.join(_left(end))
            if self._copying.is_alive():
                return None
        with self._lock:
            if self._returncode is None:
                self._take_status()
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        return self._returncode

    def _take_status(self) -> None:
        """Under the lock."""
        try:
            status = os.waitstatus_to_exitcode(os.waitpid(self._runtime_pid, 0)[1])
        except ChildProcessError:  # where SIGCHLD is ignored the kernel keeps none
            status = 0
        try:
            self._was_out_of_memory = self._kills.any()
            self._returncode = 128 - status if status < 0 else status
            if self._returncode not in (0, _KILLED) and not self._was_killed:
                self._failure = self._failure or self._why_not_begun()
            if self._part is not None:
                # The runtime was killed, as for want of memory: nobody waits for the command any more.
                if is_orphan := status < 0 and not self._was_killed:
                    self._part.end(None)
                self._part.close(ended=self._was_killed or is_orphan)
        finally:
            self._kills.close()
            close_fd(self._ended)
            _remove_files(self._files)
            self._release()

    def _why_not_begun(self) -> LayerstoreError | None:
        """None where it began, and has failed itself."""
        if not os.path.exists(f"{self._files}.json"):  # all went with the container, and 255 is the runtime's
            return _stopped(self._container, self.args) if self._returncode == _OF_RUNTIME else None
        try:
            with open(f"{self._files}.log", errors="replace") as file:
                text = file.read(4096).strip()
        except FileNotFoundError:  # it went with the container
            text = ""
        if not text and self._begun():
            return None
        # Where its group has gone, another life of the container is what runs now.
        is_of_this_life = self._part is None or not self._part.has_gone()
        if text and is_of_this_life and not any(sign in text for sign in _STOPPED):
            with contextlib.suppress(LayerstoreError):
                state = self._runtime.state(self._container)
                is_running = state["status"] == "running" and _has_mounts(state["pid"])
                # A program that is there was looked for in a container that was about to begin or to end.
                if is_running and not (_NOT_FOUND in text and _has_file(state["pid"], self.args[0])):
                    return _failure(self.args, text)
        return _stopped(self._container, self.args)

    # Its pipes

    def _exchange(self, data: memoryview, end: float | None, timeout: float | None) -> None:
        """Write and read until all pipes are at their ends."""
        outputs = {stream.fileno(): stream for stream in (self.stdout, self.stderr) if stream and not stream.closed}
        poll = select.poll()
        for fd, stream in outputs.items():
            self._received.setdefault(stream, [])
            poll.register(fd, select.POLLIN)
        writing = -1
        if self.stdin is not None and not self.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self.stdin.flush()
            if self._sent < len(data):
                writing = self.stdin.fileno()
                os.set_blocking(writing, False)
                poll.register(writing, select.POLLOUT)
            else:
                self._close_input()
        while outputs or writing >= 0:
            left = _left(end)
            # Of one that was killed another program of the container may hold the pipes.
            pause_ms = _LOOK_MS if self._was_killed else None
            ready = poll.poll(pause_ms if left is None else left * 1000)
            if not ready and self._was_killed and self._has_ended(0):
                break
            for fd, _ in ready:
                if fd == writing:
                    if self._write(fd, data):
                        poll.unregister(fd)
                        writing = -1
                        self._close_input()
                elif piece := os.read(fd, _PIECE_BYTES):
                    self._received[outputs[fd]].append(piece)
                else:
                    poll.unregister(fd)
                    outputs.pop(fd).close()
            if left is not None and left <= 0:
                assert timeout is not None
                raise self._expired(timeout)

    def _write(self, fd: int, data: memoryview) -> bool:
        """Returns whether there is no more to be written."""
        try:
            self._sent += os.write(fd, data[self._sent : self._sent + select.PIPE_BUF])
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return self._sent >= len(data)

    def _close_input(self) -> None:
        assert self.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()

    def _expired(self, timeout: float) -> TimeoutExpired:
        found = [b"".join(self._received[stream]) if stream in self._received else None for stream in self._outputs]
        return TimeoutExpired(self.args, timeout, output=found[0], stderr=found[1])

    @property
    def _outputs(self) -> list[Any]:
        return [self.stdout, self.stderr]

    def _output(self, stream: IO[Any] | None) -> Any:
        if stream is None or stream not in self._received:
            return None
        data = b"".join(self._received[stream])
        if isinstance(stream, io.TextIOWrapper):
            return data.decode(stream.encoding, stream.errors or "strict").replace("\r\n", "\n").replace("\r", "\n")
        return data


def begin(
    args: Sequence[str],
    process: Mapping[str, Any],
    *,
    runtime: Runtime,
    container: str,
    directory: str,
    part: Part | None,
    release: Callable[[], None],
    stdin: Stream,
    stdout: Stream,
    stderr: Stream,
    text: bool,
    encoding: str | None,
    errors: str | None,
) -> Process:
    """Begin a command, `process` of the runtime specification, in a container whose files are in `directory`.

    `release` is called when it has ended, or this fails. Raises `InvalidInput`, `OSError`.
    """
    keeping.see_to_forgotten()
    files = f"{directory}/command-{os.urandom(8).hex()}"
    own: dict[str, int] = {}
    streams: Streams | None = None
    try:
        with about(f"{files}.json"), open(f"{files}.json", "x") as file:
            json.dump(process, file)
        is_pipe = stdin in (PIPE, DEVNULL, STDOUT)
        check_terminal(None if is_pipe else _descriptor(stdin, 0), bool(process["terminal"]))
        given = _streams(stdin, stdout, stderr, directory, own)
        streams = Streams(*given, tty=bool(process["terminal"]))
        begun = Process(args, runtime, container, files, streams, part, release)
    except BaseException as error:
        if streams is not None:
            streams.close()
        for fd in own.values():
            close_fd(fd)
        _remove_files(files)
        try:
            if part is not None:
                has_gone = part.has_gone()
                part.close(ended=True)
                if isinstance(error, OSError) and has_gone:
                    raise _stopped(container, args) from error
        finally:
            release()
        raise
    for name, fd in own.items():
        mode = "wb" if name == "stdin" else "rb"
        stream: Any = os.fdopen(fd, mode)
        if text or encoding or errors:
            stream = io.TextIOWrapper(stream, encoding or "utf-8", errors, write_through=name == "stdin")
        setattr(begun, name, stream)
    return begun


def finished(process: Process, input: Any, timeout: float | None, check: bool) -> CompletedProcess[Any]:
    """Wait for a command as `subprocess.run` does: after the timeout, or where this is interrupted, it is killed with
    all that it has started. Raises `TimeoutExpired`, `CalledProcessError` with `check`, and as `Process.wait`."""
    with process:
        try:
            stdout, stderr = process.communicate(input, timeout)
        except TimeoutExpired as error:
            process.kill()
            error.output, error.stderr = process.communicate()
            raise
        except BaseException:
            process.kill()
            raise
        status = process.wait()
    done = CompletedProcess(process.args, status, stdout, stderr)
    if check:
        done.check_returncode()
    return done


def asked_streams(
    stdin: Stream, stdout: Stream, stderr: Stream, input: object, capture_output: bool
) -> tuple[Stream, Stream, Stream]:
    """The streams of a command that is waited for, as `subprocess.run` has them; with nothing to read where its outputs
    are captured. Raises `InvalidInput` for two that do not go together."""
    if capture_output and (stdout is not None or stderr is not None):
        raise InvalidInput("capture_output does not go with stdout or stderr")
    if input is not None and stdin is not None:
        raise InvalidInput("input does not go with stdin")
    if input is not None:
        stdin = PIPE
    if not capture_output:
        return stdin, stdout, stderr
    return DEVNULL if stdin is None else stdin, PIPE, PIPE


def check(args: Sequence[str], encoding: str | None, errors: str | None) -> None:
    """Raise `InvalidInput` unless these are the arguments of a command, and an encoding that Python knows."""
    try:
        codecs.lookup(encoding or "utf-8")
        codecs.lookup_error(errors or "strict")
    except LookupError as error:
        raise InvalidInput(f"{error}") from None
    if not args:
        raise InvalidInput(f"args is a list of strings, the program first, not {args!r}")
    check_strings("args", args)


def check_strings(name: str, args: Sequence[str]) -> None:
    """Raise `InvalidInput` unless these can be arguments of a program."""
    if isinstance(args, str | bytes):
        raise InvalidInput(f"{name} is a list of strings, not the string {args!r}; for a shell: ['sh', '-c', {args!r}]")
    if not all(isinstance(one, str) and "\0" not in one for one in args):
        raise InvalidInput(f"{name} is a list of strings, the program first, not {args!r}")


def _streams(
    stdin: Stream, stdout: Stream, stderr: Stream, directory: str, own: dict[str, int]
) -> tuple[int | Own | None, Sink, Sink]:
    """What `Streams` is to be given. The caller's ends of pipes are added to `own` by their names."""
    lent: list[Own] = []
    try:
        given: list[Any] = []
        for number, (name, asked) in enumerate(zip(STREAMS, (stdin, stdout, stderr), strict=True)):
            if asked == STDOUT:
                if name != "stderr":
                    raise InvalidInput(f"{name} cannot go to STDOUT; stderr can")
                given.append(given[1])
                continue
            if asked == PIPE:
                read, write = os.pipe2(os.O_CLOEXEC)
                own[name], end = (write, read) if name == "stdin" else (read, write)
                given.append(Own(end))
            elif asked == DEVNULL:
                given.append(Own(empty() if name == "stdin" else private_null(directory)))
            else:
                given.append(_descriptor(asked, number))
            if isinstance(given[-1], Own):
                lent.append(given[-1])
        return given[0], given[1], given[2]
    except BaseException:
        for one in lent:
            close_fd(one.fd)
        raise


def _descriptor(asked: Stream, own: int) -> int:
    if asked is None:
        return own
    return asked if isinstance(asked, int) else asked.fileno()


def _remove_files(files: str) -> None:
    for kind in _FILES:
        with contextlib.suppress(OSError):
            os.unlink(f"{files}.{kind}")


def _left(end: float | None) -> float | None:
    return None if end is None else max(0.0, end - time.monotonic())


def _encoded(stream: IO[Any] | None, input: Any) -> Any:
    if isinstance(input, str):
        if not isinstance(stream, io.TextIOWrapper):
            raise InvalidInput("the input is text, and the pipe is binary: give bytes, or text=True")
        return input.encode(stream.encoding, stream.errors or "strict")
    return memoryview(input).cast("B")


def _stopped(container: str, args: Sequence[str]) -> Conflict:
    return Conflict(f"container {container[:12]} was stopped before {args[0]!r} began in it; try again")


def _failure(args: Sequence[str], text: str) -> LayerstoreError:
    # "2026-12-02T15:00:00.123456Z: ..." of crun
    told = text.splitlines()[-1].partition("Z: ")[2] or text
    if "chdir" in told or "cwd" in told:
        return InvalidInput(f"cannot begin {args[0]!r} in that directory: {told}")
    if "No such file or directory" in told or "not found" in told:
        return ProgramNotFound(f'exec: "{args[0]}": {told}')
    return LayerstoreError(f'cannot start "{args[0]}" in the container: {told}')


def _has_mounts(pid: int) -> bool:
    """Whether a process has them still; one that is ending has not, long before it counts as ended."""
    try:
        os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return False
    return True


def _has_file(pid: int, program: str) -> bool:
    return program.startswith("/") and os.path.lexists(f"/proc/{pid}/root{program}")


def _parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        return int(file.read().rpartition(b")")[2].split()[1])
