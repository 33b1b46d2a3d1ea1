"""Reading what a monitor kept of a container's output (csrc/mount/monitor.h): `log.1`, the older one, and `log`."""

from __future__ import annotations

import collections
import contextlib
import os

from layerstore.containers import program_records
from layerstore.containers.resources import size
from layerstore.errors import InvalidInput, NotFound
from layerstore.naming import about, close_fd
from layerstore.results import Printed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_LOG, _OLDER = "log", "log.1"
_PIECE_BYTES = 1 << 16
_FILES = 2
_LEAST_BYTES, _MOST_BYTES = _FILES << 14, 1 << 60


def file_bytes(log_bytes: int | str) -> int:
    """The most that each file may have where all have at most `log_bytes`, a number or as "10m". Raises
    `InvalidInput`."""
    most = size(log_bytes, "the limit on what is kept of an output")
    if not _LEAST_BYTES <= most <= _MOST_BYTES:
        raise InvalidInput(f"the limit on what is kept of an output is {log_bytes!r}: it is from 32k to 1024p")
    return most // _FILES


def printed(directory: str, *, follow: bool, since: float | None, tail: int | None) -> Iterator[Printed]:
    """What a container printed, in the order in which it came; see `Container.logs`. Raises `OSError`."""
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(_Reader(directory))
        found: Iterator[Printed] = filter(lambda piece: since is None or piece.time >= since, reader.read())
        if tail is not None:
            found = _last(found, tail)
        yield from found
        if not follow:
            return
        with contextlib.suppress(NotFound):  # no program was started
            ending = stack.enter_context(program_records.Ending(directory, with_output=True))
            has_ended = False
            while not has_ended:
                has_ended = ending.ended() is not None
                yield from reader.read()
                if not has_ended:
                    ending.poll(None)


def _last(pieces: Iterator[Printed], count: int) -> Iterator[Printed]:
    """The last lines, each with all its parts."""
    kept: collections.deque[list[Printed]] = collections.deque(maxlen=max(count, 0))
    parts: dict[str, list[Printed]] = {}
    for piece in pieces:
        if piece.stream not in parts:
            kept.append(parts.setdefault(piece.stream, []))
        parts[piece.stream].append(piece)
        if piece.data.endswith(b"\n"):
            del parts[piece.stream]
    for line in kept:
        yield from line


class _Reader:
    """Reads on where it was, in the file that comes next where one was put aside. A context manager."""

    def __init__(self, directory: str) -> None:
        self._directory = directory
        self._fd = -1
        self._rest = b""

    def __enter__(self) -> _Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            close_fd(self._fd)

    def read(self) -> Iterator[Printed]:
        """What there is that was not read yet."""
        for name in (_OLDER, _LOG):
            if self._fd < 0:
                self._fd = self._opened(name)
        while self._fd >= 0:
            # Before its end is seen: it is added to no more once another has its name.
            is_current = self._is_current()
            with about(f"{self._directory}/{_LOG}"):
                while data := os.read(self._fd, _PIECE_BYTES):
                    *lines, self._rest = (self._rest + data).split(b"\n")
                    yield from filter(None, map(_parsed, lines))
            if is_current or not self._next():
                return

    def _is_current(self) -> bool:
        try:
            return os.path.samestat(os.stat(f"{self._directory}/{_LOG}"), os.fstat(self._fd))
        except FileNotFoundError:  # a new one is about to be made, or the container was removed
            return True

    def _next(self) -> bool:
        """Go on with the file after this one; where there were more, those between are gone."""
        for name in (_OLDER, _LOG):
            fd = self._opened(name)
            if fd >= 0 and not os.path.samestat(os.fstat(fd), os.fstat(self._fd)):
                close_fd(self._fd)
                self._fd, self._rest = fd, b""
                return True
            if fd >= 0:
                close_fd(fd)
        return False

    def _opened(self, name: str) -> int:
        try:
            return os.open(f"{self._directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return -1


def _parsed(line: bytes) -> Printed | None:
    """None for what is no line of a log."""
    when, _, rest = line.partition(b" ")
    stream, _, rest = rest.partition(b" ")
    tag, _, text = rest.partition(b" ")
    if stream not in (b"stdout", b"stderr") or tag not in (b"F", b"P"):
        return None
    try:
        return Printed(text + b"\n" if tag == b"F" else text, stream.decode(), when.decode())
    except ValueError:
        return None
