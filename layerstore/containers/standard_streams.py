"""Standard input, output and errors of a container: pipes of its own, and copying between these and the caller's files.

No file of the caller's gets into a container: a runtime gives the files of descriptors 0 to 2 to the program's user
(fchown), and the program can open them again by /proc/self/fd, for what they were not given for. `Streams` copies in
the thread that waits for the program.

A file of the caller's is shared with others, so none of its flags change; and nothing waits for a reader or writer of
one while there is something else to copy: to and from pipes splice(2) takes a flag for that, a terminal is opened
again, and to a socket as much is written as surely fits when poll(2) says that something does. A program that reads its
input while its output is not read goes on.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import signal
import stat
import sys

from layerstore._core import mount
from layerstore.errors import InvalidInput, Unsupported
from layerstore.naming import about, close_fd, fstat, null_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import TypeAlias

    Sink: TypeAlias = int | Callable[[bytes], object] | "Own"
    """A descriptor, or a function that is called with what was written, or one for the program itself."""

NULL_DEVICE = ".null-"
"""How the name of a null device begins that a container has for a moment."""
_WHAT = "the input and output of a container"
_PIECE_BYTES = 1 << 16
_SMALL_BYTES = 4096  # PIPE_BUF: what can be written without waiting when poll(2) says that something can
_SPLICE_BYTES = 1 << 20
_LAST_BYTES = 1 << 24
_LOOK_MS = 100
_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL
_ACCESS = os.O_RDONLY | os.O_WRONLY | os.O_RDWR
_PTMX = os.makedev(5, 2)
_NULL = os.makedev(1, 3)


class Own:
    """A descriptor that was made for a program: this gets it itself, and it is closed here then."""

    def __init__(self, fd: int) -> None:
        self.fd = fd


class Undelivered(OSError):
    """What a program wrote, or was to read, was not passed on to its end. The program has ended."""


class Streams:
    """Three descriptors for a runtime, `given`, and what is copied meanwhile. A context manager, of one thread.

    `stdin` None is an empty input. What the program did not read of a file is read by whoever reads that next; of a
    pipe or socket up to 128 KiB were taken and are gone, of a terminal a line. Where both outputs are the same
    open file they share a pipe, so that their lines stay in order. With `tty` the runtime gets the caller's terminals
    themselves, which it neither changes nor lets in: the program has one of its container's.
    """

    def __init__(self, stdin: int | Own | None, stdout: Sink, stderr: Sink, *, tty: bool = False) -> None:
        self._input: _Input | None = None
        self._outputs: list[_Output] = []
        self._lent: list[int] = []
        self.given: Sequence[int] = ()
        self.gives_up = False
        """What cannot be delivered at once, once the program has ended, is dropped."""
        for stream in {one for one in (stdin, stdout, stderr) if isinstance(one, Own)}:
            self._lent.append(stream.fd)
        try:
            self.given = [self._take_input(stdin, tty), *self._take_outputs([stdout, stderr], tty)]
        except BaseException:
            self.close()
            raise

    def _take_input(self, stdin: int | Own | None, tty: bool) -> int:
        if isinstance(stdin, Own):
            return stdin.fd
        if stdin is not None and tty:
            return stdin
        if stdin is None:
            self._lent.append(empty())
        else:
            self._input = _Input(stdin, self._lent)
        return self._lent[-1]

    def _take_outputs(self, sinks: Sequence[Sink], tty: bool) -> list[int]:
        ends = []
        for sink in sinks[: 1 if _are_one(*sinks) else 2]:
            if isinstance(sink, Own):
                ends.append(sink.fd)
            elif tty and isinstance(sink, int) and os.isatty(sink):
                ends.append(sink)
            else:
                self._outputs.append(_Output(sink, self._lent))
                ends.append(self._lent[-1])
        return [ends[0], ends[-1]]

    def __enter__(self) -> Streams:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Have the program, if it runs still, find its input at the end and nobody who reads its output."""
        self._close_lent()
        for stream in (self._input, *self._outputs):
            if stream is not None:
                stream.close()

    @property
    def copies(self) -> bool:
        """Whether there is anything for `copy` to do but to wait."""
        return self._input is not None or bool(self._outputs)

    def _close_lent(self) -> None:
        while self._lent:
            close_fd(self._lent.pop())

    def copy(self, pid: int) -> None:
        """Copy until that child, which has `given`, has ended. Raises `OSError`, and what functions raise."""
        self._close_lent()
        with about(_WHAT):
            ended = os.pidfd_open(pid)
        try:
            with _sigpipe_ignored():
                while ended not in self._moved(ended):
                    pass
        finally:
            close_fd(ended)

    def _moved(self, ended: int) -> Mapping[int, int]:
        """Wait for something to copy or the child's end, and copy. Returns what was ready."""
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        pause_ms = self._input.register(poll) if self._input is not None else None
        for output in self._outputs:
            output.register(poll)
        with about(_WHAT):
            ready = dict(poll.poll(pause_ms))
        if ended not in ready and self._input is not None:
            self._input.move(ready)
        for output in self._outputs:
            output.move(ready)
        return ready

    def finish(self) -> None:
        """Deliver what was written before the container's end, and leave the rest of an input to others.

        Raises `Undelivered` where an input could not be read to its end, or an output not be written; that its reader
        had gone is no failure. The program has seen it: no more input, and SIGPIPE.
        """
        if self._input is not None:
            self._input.give_back()
        for output in self._outputs:
            output.left = _LAST_BYTES  # it is in the pipe; should another process hold that, it is not listened to
        with _sigpipe_ignored():
            while any(output.is_open for output in self._outputs):
                poll = select.poll()
                for output in self._outputs:
                    output.register(poll)
                with about(_WHAT):
                    waits = not self.gives_up and any(output.waits for output in self._outputs)
                    ready = dict(poll.poll(_LOOK_MS if waits else 0))
                if not ready and not waits:
                    break
                for output in self._outputs:
                    output.move(ready)
        for stream in (*self._outputs, self._input):
            if stream is not None and (failure := stream.failure) is not None:
                raise Undelivered(failure.errno, failure.strerror, failure.filename) from failure


class _Input:
    """What comes from a file of the caller's and goes into a pipe, of which the other end is added to `lent`."""

    def __init__(self, source: int, lent: list[int]) -> None:
        self._source = self._write = self._read = -1
        self._pending = memoryview(b"")
        self._taken = 0
        self._waits = False
        self.failure: OSError | None = None
        with about(_WHAT):
            read, self._write = os.pipe2(os.O_CLOEXEC)
        lent.append(read)
        try:
            self._source = _own(source, os.O_RDONLY)
            mode = fstat(source).st_mode
            os.set_blocking(self._write, False)
            self._splices = stat.S_ISFIFO(mode)
            self._is_terminal = self._waits = os.isatty(source)
            with about(_WHAT):
                if stat.S_ISREG(mode):
                    self._read = os.dup(read)
                if self._is_terminal:  # a pipe of one page takes more when all that it had was read
                    fcntl.fcntl(self._write, fcntl.F_SETPIPE_SZ, _SMALL_BYTES)
            if _flags(source) & _ACCESS == os.O_WRONLY:  # as of nohup(1)
                self._end()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._end()
        for fd in (self._source, self._read):
            if fd >= 0:
                close_fd(fd)
        self._source = self._read = -1

    def _end(self) -> None:
        if self._write >= 0:
            close_fd(self._write)
        self._write = -1

    def register(self, poll: select.poll) -> int | None:
        """Returns after how many milliseconds to look again, None for not."""
        if self._write < 0:
            return None
        if self._waits:
            poll.register(self._write, select.POLLOUT)
        elif self._is_terminal and _in_background(self._source):
            return _LOOK_MS  # to read would stop this process (SIGTTIN), and the program may not want any
        else:
            poll.register(self._source, select.POLLIN)
        return None

    def move(self, ready: Mapping[int, int]) -> None:
        if self._write not in ready and self._source not in ready:
            return
        if ready.get(self._write, 0) & select.POLLERR:  # nobody reads it any more, so no other line is taken
            self._end()
            return
        try:
            if self._splices:
                self._splice()
            else:
                self._copy()
        except BrokenPipeError:
            self._end()
        except OSError as error:
            is_hung_up = self._is_terminal and error.errno == errno.EIO
            if not is_hung_up and error.errno != errno.EISDIR:  # which there is no input from
                self.failure = error
            self._end()

    def _splice(self) -> None:
        try:
            with about(self._source):
                count = os.splice(self._source, self._write, _SPLICE_BYTES, flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self._waits = not self._waits  # one of the two was ready, so it is the other
            return
        self._waits = False
        if not count:
            self._end()

    def _copy(self) -> None:
        if not self._pending:
            if self._waits:
                self._waits = False
                return
            try:
                with about(self._source):
                    data = os.read(self._source, _SMALL_BYTES if self._is_terminal else _PIECE_BYTES)
            except BlockingIOError:  # somebody else was faster
                return
            if not data:
                self._end()
                return
            self._taken += len(data)
            self._pending = memoryview(data)
        with contextlib.suppress(BlockingIOError):
            self._pending = self._pending[os.write(self._write, self._pending) :]
        self._waits = self._is_terminal or bool(self._pending)

    def give_back(self) -> None:
        """Leave to others what the program has not read of a file."""
        if self._read < 0:
            return
        self._end()
        unread = len(self._pending)
        while data := os.read(self._read, _PIECE_BYTES):
            unread += len(data)
        if unread:
            with about(self._source):  # a program may have written to its input itself
                os.lseek(self._source, -min(unread, self._taken), os.SEEK_CUR)


class _Output:
    """What comes out of a pipe, of which the other end is added to `lent`, and goes to `sink`."""

    def __init__(self, sink: Sink, lent: list[int]) -> None:
        self._read = self._sink = -1
        self._function: Callable[[bytes], object] | None = None
        self._splices = False
        self._piece_bytes = _PIECE_BYTES
        self._pending = memoryview(b"")
        self.waits = False
        """Whether it has something that the sink cannot take at the moment."""
        self.left = sys.maxsize
        self.failure: OSError | None = None
        with about(_WHAT):
            self._read, given = os.pipe2(os.O_CLOEXEC)
        lent.append(given)
        try:
            os.set_blocking(self._read, False)
            if not isinstance(sink, int):
                assert not isinstance(sink, Own)
                self._function = sink
                return
            self._sink = _own(sink, os.O_WRONLY)
            status = fstat(sink)
            # To append, splice(2) takes pipes alone.
            is_null = status.st_rdev == _NULL and not _flags(sink) & os.O_APPEND
            self._splices = stat.S_ISFIFO(status.st_mode) or is_null
            if stat.S_ISSOCK(status.st_mode) or os.isatty(sink):
                self._piece_bytes = _SMALL_BYTES
        except BaseException:
            self.close()
            raise

    @property
    def is_open(self) -> bool:
        return self._read >= 0

    def close(self) -> None:
        for fd in (self._read, self._sink):
            if fd >= 0:
                close_fd(fd)
        self._read = self._sink = -1
        self.waits = False

    def register(self, poll: select.poll) -> None:
        if not self.is_open:
            return
        if self.waits:
            poll.register(self._sink, select.POLLOUT)
            return
        poll.register(self._read, select.POLLIN)
        if self._sink >= 0:
            poll.register(self._sink, 0)  # tells when its reader goes

    def move(self, ready: Mapping[int, int]) -> None:
        if not self.is_open or (self._read not in ready and self._sink not in ready):
            return
        if ready.get(self._sink, 0) & _GONE:
            self.close()
            return
        try:
            if self._splices:
                self._splice()
            else:
                self._copy()
        except BrokenPipeError:
            self.close()
        except OSError as error:
            if self._function is not None:
                raise
            self.failure = error
            self.close()

    def _splice(self) -> None:
        try:
            with about(self._sink):
                count = os.splice(self._read, self._sink, min(_SPLICE_BYTES, self.left), flags=os.SPLICE_F_NONBLOCK)
        except BlockingIOError:
            self.waits = not self.waits  # one of the two was ready, so it is the other
            return
        self._took(count)

    def _copy(self) -> None:
        if not self._pending:
            try:
                with about(_WHAT):
                    data = os.read(self._read, min(self._piece_bytes, self.left))
            except BlockingIOError:
                return
            self._took(len(data))
            if not data:
                return
            if self._function is not None:
                self._function(data)
                return
            self._pending = memoryview(data)
        elif self.waits:
            with about(self._sink), contextlib.suppress(BlockingIOError):
                self._pending = self._pending[os.write(self._sink, self._pending) :]
        self.waits = bool(self._pending)

    def _took(self, count: int) -> None:
        self.waits = False
        self.left -= count
        if not count:
            self.close()


def check_terminal(stdin: int | Own | None, tty: bool) -> None:
    """Raise `InvalidInput` where a program is to have a terminal, and its input is none."""
    if tty and not (isinstance(stdin, int) and os.isatty(stdin)):
        raise InvalidInput("the input device is not a TTY: run without a terminal, or from one")


def private_null(directory: str) -> int:
    """A null device that is not the host's: its owner and mode may change."""
    path = f"{directory}/{NULL_DEVICE}{os.urandom(8).hex()}"
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, _NULL)
        try:
            return os.open(path, os.O_RDWR | os.O_CLOEXEC)
        finally:
            os.unlink(path)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EACCES):  # no right to make one, a file system mounted with nodev
            raise
    return _drained()


def _drained() -> int:
    """The end of a pipe of which cat(1), in a session of its own (setsid(1)), reads what anybody writes to it."""
    programs = [_program(name) for name in ("setsid", "cat")]
    with about(_WHAT):
        read, write = os.pipe2(os.O_CLOEXEC)
    try:
        with null_device() as nothing:
            # It forks, so that the copying is no child of this process, and ends.
            pid = mount.spawn([programs[0], "--fork", programs[1]], {}, "/", (read, nothing, nothing))
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        if status:
            raise OSError(errno.EAGAIN, "cannot start a process that reads the output", programs[0])
    except BaseException:
        close_fd(write)
        raise
    finally:
        close_fd(read)
    return write


def _program(name: str) -> str:
    for directory in ("/usr/bin", "/bin"):
        if os.access(path := f"{directory}/{name}", os.X_OK):
            return path
    raise Unsupported(
        f"there is no {name}, which a program that is to print to nowhere needs where no device can be made: install "
        "util-linux and coreutils"
    )


def empty() -> int:
    """A pipe that nothing comes out of."""
    with about(_WHAT):
        read, write = os.pipe2(os.O_CLOEXEC)
    close_fd(write)
    return read


def _own(fd: int, access: int) -> int:
    """Another descriptor of a file of the caller's, which may close its own meanwhile.

    A terminal is opened again, so as not to wait for it; /dev/ptmx would be a new one. Raises `OSError`.
    """
    with about(fd):
        if os.isatty(fd) and os.fstat(fd).st_rdev != _PTMX:
            with contextlib.suppress(OSError):  # a right that went since it was opened
                return os.open(f"/proc/self/fd/{fd}", access | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC)
        return os.dup(fd)


def _are_one(one: Sink | None, other: Sink | None) -> bool:
    """Whether two outputs go to the same place of one file, where their order counts."""
    if not isinstance(one, int) or not isinstance(other, int):
        return one is other and (one is None or isinstance(one, Own))
    if one == other:
        return True
    status = fstat(one)
    if not os.path.samestat(status, fstat(other)):
        return False
    flags = _flags(one)
    if flags != _flags(other):
        return False
    if not stat.S_ISREG(status.st_mode) or flags & os.O_APPEND:
        return True
    return os.lseek(one, 0, os.SEEK_CUR) == os.lseek(other, 0, os.SEEK_CUR)


def _flags(fd: int) -> int:
    with about(fd):
        return fcntl.fcntl(fd, fcntl.F_GETFL)


def _in_background(terminal: int) -> bool:
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # not this process's terminal: nobody is stopped for reading it
        return False


@contextlib.contextmanager
def _sigpipe_ignored() -> Iterator[None]:
    """In the block, what this thread writes that nobody reads does not end the process, which Python sees to already
    unless the caller wants otherwise."""
    if signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPIPE])
    try:
        yield
    finally:
        if signal.SIGPIPE not in before:
            while signal.SIGPIPE in signal.sigpending() and signal.sigtimedwait([signal.SIGPIPE], 0):
                pass
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGPIPE])
