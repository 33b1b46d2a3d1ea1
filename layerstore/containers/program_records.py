"""What is kept of the program that a container ran last: when it was started, and how it ended.

The file `record` in the container's directory has it, a word and its value a line. Whoever watches the program has the
lock of that file as long as he lives, and writes its last line at the program's end: a monitor (csrc/mount/monitor.h)
or the process that waits for it. So a record without that line, which nobody has, is of a program whose end nobody saw.
What a power cut takes of it is not told either.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import time

from layerstore._core import mount
from layerstore.errors import LayerstoreError, NotFound
from layerstore.naming import about, close_fd, closing_fd, open_fd
from layerstore.store import boot
from layerstore.store.durable import file_system, write_file, write_whole
from layerstore.store.locks import try_lock
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

NAME = "record"
NEW = "record.new"
_OPTIONS = "start.json"
_OF_START = {"entrypoint", "env", "workdir", "user", "network", "volumes", "hostname", "log_bytes"}
_FILE_BYTES = 4096
_EVENTS_BYTES = 1 << 16
_LOOK_MS = 100
_PATIENCE_SECONDS = 10.0


class Record(Value):
    """What is known of a container's last program.

    `status` is its exit status, 128 + N after signal N, and None as long as it runs or where nobody saw its end; times
    are seconds since 1970. `is_watched`: somebody waits for its end. `lost_bytes` of its output could not be kept, on
    a full disk. `was_restarted`: the machine was started anew since.
    """

    started: float
    finished: float | None
    status: int | None
    oom_killed: bool
    lost_bytes: int
    monitor: int
    is_watched: bool
    was_restarted: bool

    def known_status(self) -> int:
        """Raises `LayerstoreError` where nobody saw its end."""
        if self.status is not None:
            return self.status
        why = "the machine was started anew" if self.was_restarted else "who waited for it was killed"
        raise LayerstoreError(f"nobody saw the end of the program of the container: {why}")


@contextlib.contextmanager
def begun(directory: str) -> Iterator[int]:
    """The record of a program that is started in the block by one who puts it into its place; a descriptor that has its
    lock, and that whoever watches the program is to have. Raises `OSError`."""
    path = f"{directory}/{NEW}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    with open_fd(path, os.O_RDWR | os.O_CREAT | os.O_EXCL) as fd:
        try:
            try_lock(fd)
            _write(fd, f"boot {boot.current().decode()}")
            yield fd
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
            raise


@contextlib.contextmanager
def kept(directory: str, events: int | None) -> Iterator[Callable[[int], None]]:
    """The record of a program that this process waits for in the block; a function that is to be called with its exit
    status, and adds what the descriptor `events` has then (`groups.open_oom_events`). Raises `OSError`."""
    with begun(directory) as fd:
        _write(fd, f"monitor {os.getpid()}\nstarted {time.time():.9f}\n")
        os.replace(f"{directory}/{NEW}", f"{directory}/{NAME}")
        yield lambda status: _write(fd, f"{_text(events)}\nexited {status} {time.time():.9f}\n")


def _text(events: int | None) -> str:
    """Empty where its group has gone."""
    with contextlib.suppress(OSError):
        return "" if events is None else os.pread(events, _FILE_BYTES, 0).decode().rstrip()
    return ""


def _write(fd: int, text: str) -> None:
    with about(fd):
        os.write(fd, text.encode())


def options_of(args: Sequence[str] | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of the arguments of `Container.start`. Raises `InvalidInput` where they are none."""
    from layerstore.containers import processes, program_logs
    from layerstore.containers.confinement import confined
    from layerstore.errors import InvalidInput

    known = {*_OF_START, *confined.__annotations__} - {"return"}
    if unknown := sorted(options.keys() - known):
        raise InvalidInput(f"a container is not started with {unknown[0]!r}; with args, {', '.join(sorted(known))}")
    for name in ("args", "entrypoint"):
        if (command := args if name == "args" else options.get(name)) is not None:
            processes.check_strings(name, command)
    if options.get("log_bytes") is not None:
        program_logs.file_bytes(options["log_bytes"])
    confined(**{name: value for name, value in options.items() if name not in _OF_START})
    # A profile by its name is of the directory that the caller is in.
    security = [
        f"seccomp={os.path.abspath(path)}" if name == "seccomp" and path != "unconfined" else text
        for text, (name, _, path) in ((text, text.partition("=")) for text in options.get("security_opt", ()))
    ]
    return {
        **options,
        "security_opt": security,
        "args": None if args is None else list(args),
        "volumes": [vars(volume) for volume in options.get("volumes", ())],
    }


def write_options(
    directories: Sequence[str], options: Mapping[str, Any], *, durable: bool, file: str | None = None
) -> None:
    """Keep what programs of containers are to be started with; on the disk on return where `durable`, else a power cut
    may leave what is no JSON. What `file` has already, if it is given, gets other names, which are not synced. Raises
    `OSError`."""
    write = write_file if durable else write_whole
    is_written = False
    with contextlib.ExitStack() as stack:
        sync = stack.enter_context(file_system(directories[0])) if durable and len(directories) > 1 else None
        for directory in directories:
            path = f"{directory}/{_OPTIONS}"
            if file is None or not _is_linked(file, path):
                write(path, json.dumps(options).encode())
                file, is_written = path, True
        if sync and is_written:
            sync()


def carry_options(origin: str, directories: Sequence[str], *, durable: bool) -> None:
    """Have others be started with what one is to be started with, but without its ports: one of the host leads to one
    container. Raises as `read_options` and `write_options`."""
    if options := read_options(origin):
        file = None if options.get("ports") else f"{origin}/{_OPTIONS}"
        write_options(directories, {**options, "ports": []}, durable=durable, file=file)


def _is_linked(file: str, path: str) -> bool:
    """Give a file another name; False where it has too many, or this file system knows none."""
    try:
        os.link(file, path)
    except OSError:
        return False
    return True


def read_options(directory: str) -> dict[str, Any]:
    """Empty where nothing was kept. Raises `LayerstoreError` where a power cut took it, `OSError`."""
    try:
        with open(f"{directory}/{_OPTIONS}", "rb") as file:
            options: dict[str, Any] = json.load(file)
    except FileNotFoundError:
        return {}
    except ValueError:
        raise LayerstoreError("what the container was to be started with was lost with power; create another") from None
    return options


def read(directory: str) -> Record | None:
    """None where no program was started. Raises `OSError`."""
    try:
        fd = os.open(f"{directory}/{NAME}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    with closing_fd(fd), about(f"{directory}/{NAME}"):
        return _read(fd)


class Ending:
    """The end of a container's last program, to be waited for: when one of `fds` can be read, look with `ended`.

    A context manager. Raises `NotFound` where no program was started, `OSError`.
    """

    def __init__(self, directory: str, *, with_output: bool = False) -> None:
        """`with_output`: `fds` tell of what is written to files of the directory, too."""
        self.fds: list[int] = []
        self._path = f"{directory}/{NAME}"
        try:
            self._fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound("no program was started in it that could be waited for") from None
        self._watcher = -1
        try:
            self.fds.append(mount.watch(f"/proc/self/fd/{self._fd}"))
            if with_output:
                self.fds.append(mount.watch(directory))
            if pid := self._read().monitor:
                with contextlib.suppress(ProcessLookupError):
                    # Where somebody has the lock even then, no other process has that number.
                    self._watcher = os.pidfd_open(pid)
                    self.fds.append(self._watcher)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Ending:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self._fd, *self.fds):
            close_fd(fd)

    def _read(self) -> Record:
        with about(self._path):
            return _read(self._fd)

    def ended(self) -> Record | None:
        """What is known once it has ended, or nobody waits for its end any more; else None."""
        has_gone = self._watcher in self.poll(0)
        record = self._read()
        return None if record.is_watched and not has_gone else record

    def wait(self, timeout: float | None) -> Record | None:
        """`ended`, after at most so many seconds."""
        end = None if timeout is None else time.monotonic() + timeout
        while (record := self.ended()) is None:
            left = None if end is None else (end - time.monotonic()) * 1000
            if left is not None and left <= 0:
                return None
            self.poll(left)
        return record

    def poll(self, milliseconds: float | None) -> list[int]:
        """Wait for one of `fds`; which could be read."""
        poll = select.poll()
        for fd in self.fds:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(milliseconds)]
        for fd in ready:
            if fd != self._watcher:
                with contextlib.suppress(BlockingIOError):
                    os.read(fd, _EVENTS_BYTES)
        return ready

    def is_held(self) -> bool:
        """Whether another process, which watches it, has not done yet with what comes after its end."""
        return self._read().monitor != os.getpid() and not try_lock(self._fd, exclusive=False)


def see_out(directory: str) -> None:
    """Wait, for some seconds, until whoever watched a program that has ended has kept all that it printed, and removed
    the container if it is to. Nothing happens where this is he."""
    end = time.monotonic() + _PATIENCE_SECONDS
    with contextlib.suppress(NotFound), Ending(directory) as ending:
        while ending.is_held() and time.monotonic() < end:
            ending.poll(_LOOK_MS)


def _read(fd: int) -> Record:
    # Before the text: whoever had it has written all when he lets go of it.
    is_watched = not try_lock(fd, exclusive=False)
    *lines, _ = os.pread(fd, _FILE_BYTES, 0).decode(errors="replace").split("\n")
    values = dict(line.partition(" ")[::2] for line in lines)
    status, _, finished = values.get("exited", "").partition(" ")
    return Record(
        started=float(values.get("started", 0)),
        finished=float(finished) if finished else None,
        status=int(status) if status else None,
        oom_killed=values.get("oom_kill", "0") != "0",
        lost_bytes=int(values.get("lost", 0)),
        monitor=int(values.get("monitor", 0)),
        is_watched=is_watched and not status,
        was_restarted=f"{values.get('boot')}\n".encode() != boot.current(),
    )
