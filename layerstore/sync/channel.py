"""What the two sides of a sync say to each other: messages over a pair of pipes (docs/format/sync.md)."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import struct
import threading
from enum import IntEnum

import numpy as np

from layerstore import errors
from layerstore.errors import InvalidInput, LayerstoreError, SyncError
from layerstore.naming import about, close_fd, starting, text_of
from layerstore.oci.configs import parse_json, to_json
from layerstore.store.pieces import write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Any, NoReturn

    from typing_extensions import Buffer

GREETING = b"layerstore sync 1\n"
MOST_BYTES = 1 << 20
"""Of one message."""
SILENCE_SECONDS = 300.0
"""So long the other side may say nothing and take nothing, where nobody says otherwise."""
ALIVE_SECONDS = 5.0
"""A side that works says so every so often."""
_MOST_SECONDS = 2_000_000.0
"""Of which poll(2) can count the milliseconds."""
_HEADER = struct.Struct("<BI")
_TOLD = (
    *("Conflict", "CorruptError", "DigestMismatch", "InvalidInput", "LimitExceeded", "NotFound", "SyncError"),
    "Unsupported",
)
"""Errors that one side has as the same ones where the other one tells of them."""
_ERROR_LETTERS = 10_000


class Kind(IntEnum):
    """Of a message. The side that sends an image says the first, the one that receives it the second."""

    IMAGE, OFFER, LAYER, HAVE, PACK, FROM, END = 1, 2, 3, 4, 5, 6, 7
    STORED, WANTED, HELD, KEPT, PROGRESS, DONE = 33, 34, 35, 36, 37, 38
    DATA, ERROR, ALIVE = 64, 65, 66


class Channel:
    """One end, by the descriptors to read from and to write to, which it closes; `other` is what errors call the other
    side, and `timeout_seconds` how long that may say nothing, or take nothing of what is said, None for any time.

    Not for two threads at once. Whatever reads or writes raises `SyncError` where the other side has ended, is silent
    for too long or says what it should not, and the error of the other side where it tells of one. Raises
    `InvalidInput` where a side that works would be taken for silent.
    """

    def __init__(self, reading: int, writing: int, other: str, timeout_seconds: float | None = SILENCE_SECONDS) -> None:
        self.reading = reading
        self.writing = writing
        self._is_open = True
        self.other = other
        check_timeout(timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._lock = threading.Lock()
        self._ended_here = threading.Event()
        self._alive: threading.Thread | None = None
        self.sent_bytes = 0
        self.received_bytes = 0

    def close(self) -> None:
        """Once or more often."""
        if self._is_open:
            self._is_open = False
            self._ended_here.set()
            if self._alive is not None:
                self._alive.join()
            with contextlib.suppress(OSError):
                os.set_blocking(self.writing, True)  # the pipe may be another program's as well
            close_fd(self.writing)
            close_fd(self.reading)

    def greet(self) -> None:
        """Both sides do so first, and neither says anything else before it has heard it. From then on the other side is
        told every now and then that this one is there."""
        with about(f"what is said to {self.other}"):
            os.set_blocking(self.writing, False)
        self._greet()
        alive = threading.Thread(target=self._say_alive, name="layerstore-alive", daemon=True)
        with starting():
            alive.start()
        self._alive = alive

    def _say_alive(self) -> None:
        message = _HEADER.pack(Kind.ALIVE, 0)
        while not self._ended_here.wait(ALIVE_SECONDS):
            # Where that fails, whoever says something else is told of it; and there is no need where much waits.
            with self._lock, contextlib.suppress(OSError):
                if self._is_ready(self.writing, select.POLLOUT, 0):
                    self.sent_bytes += os.write(self.writing, message)

    def _greet(self) -> None:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what it said before it ended tells more
            self._put(GREETING)
        heard = b""
        while len(heard) < len(GREETING) and heard == GREETING[: len(heard)]:
            piece = self._read_some(len(GREETING) - len(heard))
            if not piece:
                break
            heard += piece
        if heard != GREETING:
            if not heard:
                raise self._ended()
            raise SyncError(
                f"{self.other} says {heard!r} where layerstore says {GREETING!r}; have the same version of it there, "
                "and nothing that prints when somebody logs in"
            )

    def send(self, kind: Kind, payload: Buffer = b"") -> None:
        """A message, of `MOST_BYTES` at most."""
        view = memoryview(payload).cast("B")
        self._write(_HEADER.pack(kind, len(view)) + view)

    def say(self, kind: Kind, document: dict[str, Any]) -> None:
        """A message that is a JSON object. Raises `InvalidInput` where that is too large."""
        data = to_json(document)
        if len(data) > MOST_BYTES:
            raise InvalidInput(f"what is to be said to {self.other} has {len(data)} bytes, more than a message has")
        self.send(kind, data)

    def send_data(self, pieces: Iterable[Buffer]) -> None:
        """What the other side takes by `data`."""
        for piece in pieces:
            view = memoryview(piece).cast("B")
            for at in range(0, len(view), MOST_BYTES):
                self.send(Kind.DATA, view[at : at + MOST_BYTES])

    def receive(self, *kinds: Kind) -> tuple[Kind, bytes]:
        """The next message, of one of these kinds."""
        number, length = _HEADER.unpack(self._read(_HEADER.size))
        while (number, length) == (Kind.ALIVE, 0):
            number, length = _HEADER.unpack(self._read(_HEADER.size))
        if length > MOST_BYTES:
            raise self.wrong(f"sends a message of {length} bytes, more than {MOST_BYTES}")
        payload = self._read(length)
        if number == Kind.ERROR:
            raise _error_of(self.other, payload)
        if number not in kinds:
            said = Kind(number).name if number in {*Kind} else f"a message of kind {number}"
            raise self.wrong(f"says {said} where it should say {' or '.join(kind.name for kind in kinds)}")
        return Kind(number), payload

    def hear(self, kind: Kind) -> dict[str, Any]:
        """The next message, which is a JSON object."""
        return self.document(kind, self.receive(kind)[1])

    def document(self, kind: Kind, payload: bytes) -> dict[str, Any]:
        """The JSON object of a message."""
        try:
            found = parse_json(payload, "it")
        except InvalidInput as error:
            raise self.wrong(f"says {kind.name} in what is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise self.wrong(f"says {kind.name} in what is no JSON object")
        return found

    def data(self, size: int) -> Iterator[bytes]:
        """So many bytes, as the other side sends them."""
        left = size
        while left:
            _, payload = self.receive(Kind.DATA)
            if not payload or len(payload) > left:
                raise self.wrong(f"sends {len(payload)} bytes where {left} were to come")
            left -= len(payload)
            yield payload

    def send_flags(self, kind: Kind, flags: Sequence[bool]) -> None:
        """A bit for each, the lowest of a byte first, in as many messages as that takes; in one for none."""
        bits = np.packbits(np.array(flags, bool), bitorder="little").tobytes()
        for at in range(0, len(bits) or 1, MOST_BYTES):
            self.send(kind, bits[at : at + MOST_BYTES])

    def flags(self, kind: Kind, count: int) -> list[bool]:
        """So many, as the other side sends them."""
        left = (count + 7) // 8
        bits = b""
        while True:
            _, payload = self.receive(kind)
            if len(payload) != min(left, MOST_BYTES):
                raise self.wrong(f"says {kind.name} in {len(payload)} bytes, and not in {min(left, MOST_BYTES)}")
            bits += payload
            left -= len(payload)
            if not left:
                break
        found = np.unpackbits(np.frombuffer(bits, np.uint8), count=count, bitorder="little").astype(bool)
        flags: list[bool] = found.tolist()
        return flags

    def wrong(self, what: str) -> SyncError:
        return SyncError(f"{self.other} {what}; have the same version of layerstore on both sides")

    def tell(self, error: BaseException) -> bool:
        """Tell the other side of an error. Returns whether that could be done."""
        number = error.errno if isinstance(error, OSError) else None
        said = {"error": type(error).__name__, "message": text_of(error)[:_ERROR_LETTERS], "errno": number}
        try:
            self.say(Kind.ERROR, said)
        except (LayerstoreError, OSError):
            return False
        return True

    # Bytes

    def _write(self, data: Buffer) -> None:
        try:
            self._put(data)
        except (BrokenPipeError, ConnectionResetError):
            self._hear_the_last()

    def _put(self, data: Buffer) -> None:
        with self._lock, about(f"what is said to {self.other}"):
            write_all(self._write_some, data)
            self.sent_bytes += len(memoryview(data))

    def _write_some(self, data: memoryview) -> int:
        try:
            return os.write(self.writing, data)
        except BlockingIOError:
            if not self._is_ready(self.writing, select.POLLOUT, self._timeout_seconds):
                raise self._is_silent("has taken nothing of what is said to it") from None
            return 0

    def _is_ready(self, fd: int, event: int, seconds: float | None) -> bool:
        """Whether it can be read from or written to within that time, or has ended."""
        poll = select.poll()
        poll.register(fd, event)
        with about(fd):
            return bool(poll.poll(None if seconds is None else seconds * 1000))

    def _is_silent(self, what: str) -> SyncError:
        return SyncError(
            f"{self.other} {what} for {self._timeout_seconds:g} seconds; see that it runs and can be reached, and sync "
            "again to go on from there; or give it more time (--timeout)"
        )

    def _hear_the_last(self) -> NoReturn:
        """The other side does not listen any more. It may have said why."""
        while True:
            self.receive(*Kind)

    def _read(self, count: int) -> bytes:
        parts = []
        while count:
            piece = self._read_some(count)
            if not piece:
                raise self._ended()
            parts.append(piece)
            count -= len(piece)
        return b"".join(parts)

    def _read_some(self, count: int) -> bytes:
        if not self._is_ready(self.reading, select.POLLIN, self._timeout_seconds):
            raise self._is_silent("has said nothing")
        with about(f"what {self.other} says"):
            piece = os.read(self.reading, count)
        self.received_bytes += len(piece)
        return piece

    def _ended(self) -> SyncError:
        return SyncError(f"{self.other} has ended before all was said; sync again to go on from there")


def check_timeout(seconds: float | None) -> None:
    """Raise `InvalidInput` where a side that works would be taken for silent in that time."""
    if seconds is not None and not 2 * ALIVE_SECONDS <= seconds < _MOST_SECONDS:
        least = f"{2 * ALIVE_SECONDS:g}"
        raise InvalidInput(f"the other side of a sync cannot be given {seconds} seconds to say something; give {least}")


def _error_of(other: str, payload: bytes) -> Exception:
    """The error that the other side tells of."""
    try:
        said = parse_json(payload, "it")
        name, text, number = said["error"], said["message"], said["errno"]
    except (InvalidInput, KeyError, TypeError):
        return SyncError(f"{other} tells of an error, and not of which")
    text = f"{other}: {text}"
    if isinstance(number, int) and number != errno.EPIPE:  # which would be one of our own output
        return OSError(number, text)
    kind: type[LayerstoreError] = getattr(errors, name) if name in _TOLD else SyncError
    return kind(text)


def size_of(value: object) -> int | None:
    """A number of bytes of a JSON document; None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None
