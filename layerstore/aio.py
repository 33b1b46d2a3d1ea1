"""Containers for asyncio: `Container.popen`, `exec` and `wait` without a thread that waits for each end.

    from layerstore import aio

    done = await aio.exec(container, ["make", "test"], timeout=60, capture_output=True)
    status = await aio.wait(container)

Beginning a command takes a thread of the event loop's for some milliseconds. From then on the loop watches the
command's end (pidfd_open(2)) and its pipes. Only files that are no pipes are copied to and from by a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import deque
from subprocess import CompletedProcess, TimeoutExpired
from typing import TYPE_CHECKING, Any

from layerstore.containers.processes import STREAMS, asked_streams
from layerstore.errors import InvalidInput

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import IO

    from layerstore.api import Container
    from layerstore.containers.processes import Process as Command

_PIECE_BYTES = 1 << 16
_REST_SECONDS = 0.2


class Process:
    """A command in a container, from `popen`. For one event loop, as what `asyncio.create_subprocess_exec` gives.

    Attributes:
        stdin: an `asyncio.StreamWriter`, stdout, stderr: an `asyncio.StreamReader`, for what was `PIPE`; else None.
    """

    def __init__(self, command: Command) -> None:
        self._command = command
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._end: asyncio.Task[int] | None = None
        self._received: dict[asyncio.StreamReader, deque[bytes]] = {}
        self._tail_bytes: int | None = None

    def __repr__(self) -> str:
        return repr(self._command)

    @property
    def args(self) -> list[str]:
        return self._command.args

    @property
    def pid(self) -> int:
        """As `layerstore.Process.pid`; it waits for the runtime, a millisecond or two."""
        return self._command.pid

    @property
    def returncode(self) -> int | None:
        """As `layerstore.Process.returncode`; None until it was waited for."""
        return self._command.returncode

    def send_signal(self, number: int) -> None:
        """As `layerstore.Process.send_signal`."""
        self._command.send_signal(number)

    def terminate(self) -> None:
        """As `layerstore.Process.terminate`."""
        self._command.terminate()

    def kill(self) -> None:
        """As `layerstore.Process.kill`: with all that it has started."""
        self._command.kill()

    async def wait(self) -> int:
        """Wait for its end; the exit status. Raises as `layerstore.Process.wait`, and when the task is cancelled, in
        which case the command goes on."""
        if self._end is None:
            self._end = asyncio.ensure_future(self._wait())
        return await asyncio.shield(self._end)

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Write `input` to its standard input and close that, read its outputs to their ends, and wait for it.

        Returns what stdout and stderr gave, None for one that is no pipe. Raises as `wait`.
        """
        await asyncio.gather(self._feed(input), self._read(self.stdout), self._read(self.stderr), self.wait())
        return self._output(self.stdout), self._output(self.stderr)

    async def _read(self, stream: asyncio.StreamReader | None) -> None:
        if stream is None:
            return
        limit, received, size = self._tail_bytes, self._received.setdefault(stream, deque()), 0
        while piece := await stream.read(_PIECE_BYTES):
            received.append(piece)
            size += len(piece)
            while limit is not None and received and size - len(received[0]) >= limit:
                size -= len(received.popleft())

    def _output(self, stream: asyncio.StreamReader | None) -> bytes | None:
        if stream is None:
            return None
        output = b"".join(self._received.get(stream, ()))
        return output if self._tail_bytes is None else output[max(0, len(output) - self._tail_bytes) :]

    async def _wait(self) -> int:
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        if self._command.poll() is None:
            with self._command.end_watched() as fd:
                loop.add_reader(fd, ended.set)
                try:
                    await ended.wait()
                finally:
                    loop.remove_reader(fd)
            if self._command.poll() is None:  # what it printed last is still being copied
                await asyncio.to_thread(self._command.wait)
        status = self._command.returncode
        assert status is not None
        return status

    async def _feed(self, input: bytes | None) -> None:
        if self.stdin is None:
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it reads no more
            if input:
                self.stdin.write(input)
                await self.stdin.drain()
            self.stdin.close()
            await self.stdin.wait_closed()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        stdin, stdout, stderr = self._command.take_pipes()
        if stdin is not None:
            protocol = asyncio.StreamReaderProtocol(asyncio.StreamReader())  # which tells the writer of its end
            transport, _ = await loop.connect_write_pipe(lambda: protocol, stdin)
            self.stdin = asyncio.StreamWriter(transport, protocol, None, loop)
        self.stdout, self.stderr = await self._reader(stdout), await self._reader(stderr)

    async def _reader(self, pipe: IO[Any] | None) -> asyncio.StreamReader | None:
        if pipe is None:
            return None
        loop, reader = asyncio.get_running_loop(), asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        return reader


async def popen(container: Container, args: Sequence[str], **options: Any) -> Process:
    """Begin a command in a container. Arguments as for `Container.popen`, without `text`, `encoding` and `errors`.
    Raises as that."""
    if text := sorted({"text", "encoding", "errors"} & options.keys()):
        raise InvalidInput(f"{text[0]} does not go with asyncio, whose pipes are binary: decode what it gives")
    beginning = asyncio.ensure_future(asyncio.to_thread(container.popen, args, **options))
    try:
        command = await asyncio.shield(beginning)
    except asyncio.CancelledError:  # which does not keep the thread from beginning it
        command = await beginning
        command.kill()
        await asyncio.to_thread(command.wait)
        raise
    begun = Process(command)
    try:
        await begun._connect()
    except BaseException:
        command.kill()
        raise
    return begun


async def exec(
    container: Container,
    args: Sequence[str],
    *,
    timeout: float | None = None,
    input: bytes | None = None,
    capture_output: bool = False,
    check: bool = False,
    tail_bytes: int | None = None,
    **options: Any,
) -> CompletedProcess[bytes]:
    """Run a command in a container and wait for it. Arguments, result and exceptions as for `Container.exec`, without
    `text`, `encoding` and `errors`. Where the task is cancelled the command is killed with all that it has started.

    tail_bytes: keep of each output only the last bytes, so many; a command that prints without end takes no more memory
    than that.
    """
    stdin, stdout, stderr = (options.get(name) for name in STREAMS)
    streams = asked_streams(stdin, stdout, stderr, input, capture_output)
    options.update(zip(STREAMS, streams, strict=True))
    begun = await popen(container, args, **options)
    begun._tail_bytes = tail_bytes
    reading = asyncio.ensure_future(begun.communicate(input))
    try:
        stdout, stderr = await asyncio.wait_for(asyncio.shield(reading), timeout)
    except TimeoutError:
        begun.kill()
        await begun.wait()
        # Another program of the container may hold the pipes.
        await asyncio.wait({reading}, timeout=_REST_SECONDS)
        reading.cancel()
        outputs = begun._output(begun.stdout), begun._output(begun.stderr)
        raise TimeoutExpired(begun.args, timeout or 0, output=outputs[0], stderr=outputs[1]) from None
    except BaseException:
        reading.cancel()
        begun.kill()
        await begun.wait()
        raise
    status = begun.returncode
    assert status is not None
    done = CompletedProcess(begun.args, status, stdout, stderr)
    if check:
        done.check_returncode()
    return done


async def wait(container: Container, timeout: float | None = None) -> int:
    """Wait until the program that was started last in a container has ended; its exit status. Arguments, result and
    exceptions as for `Container.wait`. Nothing is left, and the program goes on, where the task is cancelled."""
    loop, changed = asyncio.get_running_loop(), asyncio.Event()
    with container.ending() as ending:
        try:
            async with asyncio.timeout(timeout):
                for fd in ending.fds:
                    loop.add_reader(fd, changed.set)
                while (record := ending.ended()) is None:
                    await changed.wait()
                    changed.clear()
        except TimeoutError:
            raise TimeoutExpired(json.loads(container.row.command or "[]"), timeout or 0) from None
        finally:  # before they are closed
            for fd in ending.fds:
                loop.remove_reader(fd)
    return record.known_status()
