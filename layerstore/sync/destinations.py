"""Where images are synced to: the store in a directory, or one of another machine that ssh reaches."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import threading

from layerstore.errors import InvalidInput, SyncError
from layerstore.naming import about, close_fd, starting
from layerstore.sync.channel import SILENCE_SECONDS, Channel
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_URL = re.compile(
    r"ssh://(?:(?P<user>[^@/]+)@)?(?P<host>\[[0-9A-Fa-f:.%]+\]|[^@/:]+)(?::(?P<port>[0-9]{1,5}))?(?P<path>/.*)?"
)
_END_SECONDS = 10
"""So long a program that is not listened to any more may take to end."""


class Remote(Value):
    """A store of another machine: `[user@]host` and the port for ssh, "" for the usual one; its directory there, "" for
    the one that layerstore uses there by itself."""

    host: str
    port: str
    root: str

    def command(self, program: str, limits: Mapping[str, int], timeout_seconds: float | None) -> list[str]:
        """What runs there `program`, which is layerstore: $LAYERSTORE_SSH or ssh, and what it is given."""
        options = [word for name, value in limits.items() for word in ("--limit", f"{name}={value}")]
        root = ["--root", self.root] if self.root else []
        timeout = [] if timeout_seconds == SILENCE_SECONDS else ["--timeout", f"{timeout_seconds or 0:g}"]
        there = shlex.join([program, *root, *options, "receive", *timeout])
        port = ["-p", self.port] if self.port else []
        return [*shlex.split(os.environ.get("LAYERSTORE_SSH", "ssh")), *port, "--", self.host, there]


def parse_destination(text: str) -> Remote | None:
    """What `ssh://[USER@]HOST[:PORT][/DIRECTORY]` stands for; None for a directory of this machine.

    Raises `InvalidInput` for any other URL, and for what ssh would take for an option.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text) is None:
        return None
    match = _URL.fullmatch(text)
    if match is None or not text.isprintable():
        raise InvalidInput(f"{text!r} is no destination; give a directory, or ssh://[USER@]HOST[:PORT][/DIRECTORY]")
    host = match["host"].strip("[]")
    target = f"{match['user']}@{host}" if match["user"] else host
    if target.startswith("-") or host.startswith("-"):
        raise InvalidInput(f"{text!r} is no destination: ssh would take {target!r} for an option")
    return Remote(target, match["port"] or "", (match["path"] or "").rstrip("/"))


@contextlib.contextmanager
def in_thread(receive: Callable[[Channel], object], name: str, timeout_seconds: float | None) -> Iterator[Channel]:
    """The channel to a side that receives in a thread of this process. What it raises and could not tell is raised."""
    raised: list[BaseException] = []
    with contextlib.ExitStack() as stack:
        there, here = (stack.enter_context(contextlib.closing(end)) for end in _ends(name, timeout_seconds))

        def run() -> None:
            with contextlib.closing(there):
                try:
                    receive(there)
                except BaseException as error:
                    raised.append(error)

        thread = threading.Thread(target=run, name="layerstore-sync", daemon=True)
        with starting():
            thread.start()
        try:
            yield here
        except SyncError:
            here.close()
            thread.join()
            if raised and not isinstance(raised[0], SyncError):
                raise raised[0] from None
            raise
        finally:
            here.close()
            thread.join()


def _ends(name: str, timeout_seconds: float | None) -> tuple[Channel, Channel]:
    """Those of a channel of two pipes: there and here. `name` is what is there."""
    with about(f"a pipe to {name}"):
        there_reads, here_writes = os.pipe()
        try:
            here_reads, there_writes = os.pipe()
        except BaseException:
            close_fd(there_reads)
            close_fd(here_writes)
            raise
    there = Channel(there_reads, there_writes, "the side that sends", timeout_seconds)
    return there, Channel(here_reads, here_writes, name, timeout_seconds)


@contextlib.contextmanager
def over_ssh(
    remote: Remote, program: str, limits: Mapping[str, int], name: str, timeout_seconds: float | None
) -> Iterator[Channel]:
    """The channel to a side that receives on another machine. It has ended when the block has."""
    command = remote.command(program, limits, timeout_seconds)
    with contextlib.ExitStack() as stack:
        there, here = (stack.enter_context(contextlib.closing(end)) for end in _ends(name, timeout_seconds))
        try:
            process = subprocess.Popen(command, stdin=there.reading, stdout=there.writing)
        except FileNotFoundError:
            raise SyncError(f"there is no program {command[0]!r} to reach {name} by; install ssh") from None
        there.close()
        is_done = False
        try:
            yield here
            is_done = True
        except SyncError as error:
            here.close()
            status = _status(process)
            if status:
                raise SyncError(f"{error} ({command[0]} has ended with status {status})") from error
            raise
        finally:
            here.close()
            if not is_done:
                process.terminate()
            if _status(process) is None:
                process.kill()
                process.wait()


def _status(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(_END_SECONDS)
    except subprocess.TimeoutExpired:
        return None
