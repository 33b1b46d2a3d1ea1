"""An OCI runtime (crun or runc) as a program: run a bundle in the foreground or detached, signal, ask, delete.

The runtime is started without copying this process (`layerstore._core.mount.spawn`). crun refuses a host that mounts
cgroup v2 beside v1 at /sys/fs/cgroup/unified; it then runs in a mount namespace of its own where that is hidden.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time

from layerstore._core import mount
from layerstore.containers.standard_streams import Streams, check_terminal, empty, private_null
from layerstore.errors import Conflict, LayerstoreError, NotFound, Unsupported
from layerstore.naming import about, close_fd, closing_fd, fstat, null_device
from layerstore.store.layout import absolute
from layerstore.store.pieces import read_at
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from types import FrameType
    from typing import Any

    from layerstore.containers.groups import Group, Part
    from layerstore.containers.standard_streams import Sink

_KNOWN = ("crun", "runc")
_SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_STATE_FILES = ("status", "state.json")  # crun's and runc's
HYBRID = "/sys/fs/cgroup/unified"
"""Where version 2 of control groups is mounted beside version 1."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_OF_THE_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
_AGAIN_SECONDS = 0.05
LOG_BYTES = 16 << 20
"""The most that a file of a container's output has; there are two."""


def find_runtime(name: str | None, state_root: str | os.PathLike[str]) -> Runtime:
    """The runtime of that name or path, or the first of crun and runc that is installed.

    `state_root` is the directory where the runtime keeps its state (`--root`); it is made when it is missing.
    Raises `Unsupported` with the Debian packages to install when there is none.
    """
    for candidate in _KNOWN if name is None else (name,):
        found = find_program(candidate)
        if found:
            return Runtime(found, absolute(state_root))
    wanted = "no OCI runtime is" if name is None else f'the OCI runtime "{name}" is not'
    raise Unsupported(f"{wanted} installed: install crun or runc (Debian: apt-get install crun, or runc)")


def find_program(name: str) -> str | None:
    """Where a program is, by $PATH and then the usual places; a name with a slash is a path already."""
    search = f"{os.environ.get('PATH', '')}:{_SEARCH_PATH}"
    for directory in [""] if "/" in name else filter(None, search.split(":")):
        path = os.path.join(directory, name)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return None


class Runtime(Value):
    """One runtime program and the directory of its state. Safe for use by several threads."""

    def __init__(self, path: str, state_root: str) -> None:
        self.path = path
        self.state_root = state_root

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def run(
        self,
        bundle_dir: str | os.PathLike[str],
        container_id: str,
        group: Group | None = None,
        *,
        stdin: int | None = 0,
        stdout: Sink = 1,
        stderr: Sink = 2,
        tty: bool = False,
        ended: Callable[[int], object] = int,
    ) -> int:
        """Run a container to its end, and return its exit status (128 + N when signal N ended it).

        crun starts in `group`, and the container with it; runc makes one itself, as the bundle says.
        `stdin`, `stdout` and `stderr` are descriptors, None for no input, or functions that take the output; see
        `Streams`. With `tty` stdin must be a terminal, which the runtime connects to the container's. `ended` is called
        with the status, before what the container printed last is delivered.
        Called in the main thread, signals that reach this process meanwhile go to the container. Nothing of the
        container is left, also where this is interrupted or a function raises. Raises `OSError` as `Streams.finish`.
        """
        check_terminal(stdin, tty)
        with Streams(stdin, stdout, stderr, tty=tty) as streams:
            with _Forwarding() as forwarding:
                arguments = [*self._options, "run", "--bundle", os.fspath(bundle_dir), container_id]
                pid = self._spawn(arguments, streams.given, group)
                try:
                    status = forwarding.wait(pid, streams.copy)
                except BaseException:
                    streams.close()
                    self._end(container_id, pid)
                    raise
            if status < 0:  # the runtime itself was killed, and so could not clean up
                with contextlib.suppress(NotFound):
                    self.delete(container_id, force=True)
            status = 128 - status if status < 0 else status
            ended(status)
            streams.finish()
        return status

    def _end(self, container_id: str, pid: int) -> None:
        """Kill what runs in a container, until the runtime that waits for it has ended, and wait for that."""
        with contextlib.suppress(ChildProcessError):  # it was waited for already
            while not os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG):
                # Not once: a runtime cannot end a container that it is about to start.
                with contextlib.suppress(LayerstoreError, OSError):
                    self.kill(container_id, signal.SIGKILL)
                time.sleep(_AGAIN_SECONDS)

    def start_detached(
        self,
        bundle_dir: str | os.PathLike[str],
        container_id: str,
        group: Group | None = None,
    ) -> int:
        """Start a container without waiting for it and return the process id of its first process.

        `group` as for `run`. Its input is empty, what it prints goes nowhere, and it has no terminal: the bundle's
        `process.terminal` must be false. `delete` it after its end.
        """
        from pathlib import Path

        pid_file = Path(bundle_dir, "pid")
        log = Path(bundle_dir, "runtime.log")
        arguments = [*self._options, "--log", str(log), "run", "--detach", "--pid-file", str(pid_file)]
        try:
            arguments += ["--bundle", os.fspath(bundle_dir), container_id]
            with (
                closing_fd(empty()) as nothing,
                closing_fd(private_null(os.fspath(bundle_dir))) as nowhere,
            ):
                pid = self._spawn(arguments, (nothing, nowhere, nowhere), group)
            if status := _wait(pid):
                raise self._failure(container_id, log, status)
            return int(pid_file.read_text())
        finally:
            pid_file.unlink(missing_ok=True)
            log.unlink(missing_ok=True)

    def start_watched(
        self,
        bundle_dir: str | os.PathLike[str],
        container_id: str,
        group: Group | None = None,
        *,
        record: int,
        lock: int,
        events: int | None = None,
        log_bytes: int = LOG_BYTES,
        then: Sequence[str] = (),
    ) -> int:
        """As `start_detached`, by a monitor (csrc/mount/monitor.h), which goes on without this process.

        It keeps what the container prints in the bundle's files `log` and `log.1`, of at most `log_bytes` each, and its
        end in `record`, a descriptor of `program_records.begun`; with it what the descriptor `events` has then. It
        holds the descriptor `lock` until the container has started, and executes `then`, a program and its arguments,
        after the container's end.
        """
        from pathlib import Path

        monitor = f"{os.path.dirname(mount.__file__)}/monitor"
        if not os.path.exists(monitor):
            raise Unsupported("on this processor nothing watches a program that is left running; run it, and wait")
        log = Path(bundle_dir, "runtime.log")
        hide = HYBRID if self.name == "crun" and mount.is_mounted(HYBRID) else ""
        command = [self.path, "--root", self.state_root, *self._options, "--log", str(log), "run", "--detach"]
        command += ["--pid-file", "pid", "--bundle", os.fspath(bundle_dir), container_id, ""]
        with about("the start of a container"):
            heard, told = os.pipe2(os.O_CLOEXEC)
        program = mount.open_read_only(self.path) if self.name == "crun" else -1
        try:
            with null_device() as nothing:
                fds = [nothing] * 3 + [
                    told,
                    record,
                    program,
                    -1 if events is None else events,
                    -1 if group is None else group.directory,
                    lock,
                ]
                fds += () if group is None else group.tasks
                argv = [monitor, str(log_bytes), str(len(fds)), hide, *command, *then]
                pid = mount.spawn(argv, {"PATH": _SEARCH_PATH}, bundle_dir, fds)
            close_fd(told)
            told = -1
            _wait(pid)  # it goes on in a child of its own
            status, _, first = os.read(heard, 64).decode().partition(" ")
            if status != "0":
                raise self._failure(container_id, log, 128 - int(status))
            return int(first)
        finally:
            for fd in (heard, told, program):
                if fd >= 0:
                    close_fd(fd)
            log.unlink(missing_ok=True)

    def _failure(self, container_id: str, log: Path, status: int) -> LayerstoreError:
        """Of a runtime that has ended so: with what it says in its log, or -N by signal N."""
        text = log.read_text(errors="replace").strip() if log.exists() else ""
        if status == -signal.SIGKILL and not text:
            return Conflict(
                f'{self.name} was killed while it started the container "{container_id}": another process ends that, '
                "or it may have too little memory; try again, or give it more"
            )
        return LayerstoreError(
            f'{self.name} cannot start the container "{container_id}": {text or "it does not say why"}'
        )

    def begin(self, container_id: str, files: str, fds: Sequence[int], part: Part | None) -> int:
        """Begin a command in a container that runs, and return the process id of the runtime, which ends with the
        command and as that does; the caller waits for it.

        `files` is how the paths of three files begin: FILES.json has the command (`process` of the runtime
        specification), FILES.pid will have its process id, FILES.log what the runtime has to complain about. The
        descriptors are as for `Streams`. crun and the command are in `part`.
        """
        arguments = [*self._options, "--log", f"{files}.log", "exec", "--process", f"{files}.json"]
        return self._spawn([*arguments, "--pid-file", f"{files}.pid", container_id], fds, part)

    def kill(self, container_id: str, number: int) -> None:
        """Send a signal to the container's first process. `NotFound` when there is none."""
        try:
            self._command(["kill", container_id, str(int(number))], container_id)
        except LayerstoreError:
            if self.state(container_id)["status"] == "running":
                raise
            raise NotFound(f'the program of the container "{container_id}" has ended') from None

    def pause(self, container_id: str) -> None:
        """Stop every process of a container, where the runtime made its control group."""
        self._command(["pause", container_id], container_id)

    def resume(self, container_id: str) -> None:
        """Have those of a paused container go on."""
        with contextlib.suppress(NotFound):
            self._command(["resume", container_id], container_id)

    def resuming(self, container_id: str) -> list[str]:
        """The command that does `resume`."""
        return [self.path, "--root", self.state_root, "resume", container_id]

    def delete(self, container_id: str, force: bool = False) -> None:
        """Remove what the runtime keeps of a container that has ended; with `force` end it first."""
        self._command(["delete", *(["--force"] if force else []), container_id], container_id)

    def state(self, container_id: str) -> dict[str, Any]:
        """The container's state as the OCI runtime specification describes it: `status`, `pid`, `bundle` and others."""
        command = ["state", container_id]
        try:
            output = self._command(command, container_id)
        except NotFound:
            raise
        except LayerstoreError:
            # It ended while it was asked about, and another of that name took its place at once.
            output = self._command(command, container_id)
        state = json.loads(output)
        assert isinstance(state, dict)
        return state

    @property
    def starts_in_group(self) -> bool:
        """Whether it leaves a container in the control group that it was started in; runc makes one itself."""
        return self.name == "crun"

    @property
    def _options(self) -> list[str]:
        return ["--cgroup-manager=disabled"] if self.starts_in_group else []

    def _spawn(self, arguments: Sequence[str], fds: Sequence[int], group: Group | Part | None = None) -> int:
        is_crun = self.name == "crun"
        hide = [HYBRID] if is_crun and mount.is_mounted(HYBRID) else []
        # Not this process's environment: NOTIFY_SOCKET and LISTEN_FDS would change what the runtime does.
        environment = {"PATH": _SEARCH_PATH}
        argv = [self.path, "--root", self.state_root, *arguments]
        # crun sees to it that a container cannot write to its program (CVE-2019-5736): where the program is not on a
        # read-only mount already, it makes one and starts itself once more from there.
        return mount.spawn(
            argv,
            environment,
            None,
            fds,
            private_mounts=bool(hide),
            hide=hide,
            read_only_program=is_crun,
            group_fd=-1 if group is None else group.directory,
            task_fds=() if group is None else group.tasks,
        )

    def _command(self, arguments: Sequence[str], container_id: str) -> bytes:
        """Run a short command of the runtime and return what it writes."""
        self._check_known(container_id)
        output, errors = os.memfd_create("output"), os.memfd_create("errors")
        try:
            with null_device() as nothing:
                status = _wait(self._spawn(arguments, (nothing, output, errors)))
            if status:
                self._check_known(container_id)  # it may have gone, or not quite be there yet
                text = read_at(errors, 4096, 0).decode(errors="replace").strip()
                raise LayerstoreError(f'"{self.name} {arguments[0]}" of the container "{container_id}" failed: {text}')
            return read_at(output, fstat(output).st_size, 0)
        finally:
            close_fd(output)
            close_fd(errors)

    def _check_known(self, container_id: str) -> None:
        directory = f"{self.state_root}/{container_id}"
        if not any(os.path.exists(f"{directory}/{name}") for name in _STATE_FILES):
            raise NotFound(f'{self.name} knows no container "{container_id}": it has ended, or was never started')


def _wait(pid: int) -> int:
    """The exit status, or -N when signal N ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class _Forwarding:
    """While it is entered, signals of this process go to the child that `wait` waits for.

    Only the main thread can have handlers: elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self._pid: int | None = None
        self._early: list[int] = []
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Forwarding:
        # Those of the terminal's keys reach the whole foreground group, the runtime included.
        reaching = _OF_THE_TERMINAL if _in_foreground() else ()
        with contextlib.suppress(ValueError):  # the first call tells that this is not the main thread
            for number in _FORWARDED:
                handler = _pass_over if number in reaching else self._forward
                self._previous[number] = signal.signal(number, handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def wait(self, pid: int, until_ended: Callable[[int], None]) -> int:
        self._pid = pid
        try:
            for number in self._early:
                os.kill(pid, number)
            until_ended(pid)  # unreaped, so the number stays the child's
        finally:
            self._pid = None
        return _wait(pid)

    def _forward(self, number: int, _frame: FrameType | None) -> None:
        if self._pid is None:
            self._early.append(number)
        else:
            os.kill(self._pid, number)


def _pass_over(_number: int, _frame: FrameType | None) -> None:
    pass


def _in_foreground() -> bool:
    """Whether this process is in the foreground group of its controlling terminal."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        close_fd(terminal)
