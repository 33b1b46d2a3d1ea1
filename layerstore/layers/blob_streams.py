"""Blobs as iterators of pieces: bounded decompression of gzip and zstd, counting and hashing of what passes.

A piece is a bytes-like object of 1 byte to a few MiB that is not changed afterwards.
"""

from __future__ import annotations

import contextlib
import itertools
import queue
import threading

from layerstore.errors import CorruptError, LimitExceeded
from layerstore.limits import DEFAULT, FREE_LAYER_BYTES, LARGEST_WINDOW_BYTES, beyond
from layerstore.naming import about, starting
from layerstore.store.pieces import PIECE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol, TypeAlias, TypeVar

    from layerstore.limits import Limits
    from layerstore.oci.archives import Readable
    from layerstore.store.pieces import Piece

    T = TypeVar("T")
    _Failure: TypeAlias = type[Exception]

    class Hash(Protocol):
        """What `Counted` gives its pieces to."""

        def update(self, piece: Piece, /) -> None: ...

    class _Decoder(Protocol):
        """What the decoders of isal and zstd have in common. Each decodes one gzip member or zstd frame."""

        @property
        def eof(self) -> bool: ...

        @property
        def needs_input(self) -> bool: ...

        @property
        def unused_data(self) -> bytes: ...

        def decompress(self, data: Piece, max_length: int, /) -> bytes: ...


QUEUED_PIECES = 8
INPUT_BYTES = 1 << 18
"""Compressed bytes taken at a time."""
_MAGIC = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0"}
_PADDED = ("gzip", "xz")
XZ_MEMORY_BYTES = 128 << 20
"""More than `xz -9` wants to be decompressed, 65 MiB."""
_SKIPPABLE_MAGIC = b"\x2a\x4d\x18"
"""Of zstd's skippable frames, behind a first byte from 0x50 to 0x5F; the size of the rest follows, 4 bytes."""
_SKIPPABLE_HEAD_BYTES = 8
_FIRST_INPUT_BYTES = 1 << 10
"""What a decoder is given first, and then twice as much each time: it copies what is behind its end, and a stream may
have an end every few bytes."""


def pieces_of(source: Readable, size: int = PIECE_BYTES) -> Iterator[Piece]:
    """The bytes of `source` to its end."""
    name = getattr(source, "name", None)
    with about(name if isinstance(name, (str, int)) else "the stream that is read"):
        while piece := source.read(size):
            yield piece


def prefixed(head: Piece, rest: Iterable[Piece]) -> Iterator[Piece]:
    """`rest` with what was read of it to see what it is, `head`, in front again."""
    if head:
        yield head
    yield from rest


class BackgroundHash:
    """SHA-256 in a thread of its own, so that hashing a compressed blob does not slow its decompression down.

    The thread starts with the second piece: hashing one takes no longer than that. As a context manager it has ended
    its thread when it is left.
    """

    def __init__(self) -> None:
        import hashlib

        self._hash = hashlib.sha256()
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._room = threading.Semaphore(QUEUED_PIECES)
        self._thread: threading.Thread | None = None
        self._begun = False

    def _run(self) -> None:
        while (piece := self._pieces.get()) is not None:
            self._hash.update(piece)
            self._room.release()

    def update(self, piece: Piece, /) -> None:
        if not self._begun:
            self._begun = True
            self._hash.update(piece)
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="layerstore-hash", daemon=True)
            with starting():
                self._thread.start()
        self._room.acquire()
        self._pieces.put(piece)

    def hexdigest(self) -> str:
        """Of all pieces; nothing can be added after."""
        self.__exit__()
        return self._hash.hexdigest()

    def __enter__(self) -> BackgroundHash:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None and self._thread.is_alive():
            self._pieces.put(None)
            self._thread.join()


@contextlib.contextmanager
def read_ahead(pieces: Iterable[T]) -> Iterator[Iterator[T]]:
    """Read `pieces` in a thread of its own, a few ahead. Its exceptions are raised here; leaving stops it.

    One piece needs no thread, and starting one would be most of the work on a small layer.
    """
    source = iter(pieces)
    head = list(itertools.islice(source, 2))
    if len(head) < 2:
        yield iter(head)
        return
    ready: queue.Queue[T | BaseException | None] = queue.Queue(QUEUED_PIECES)
    stopped = threading.Event()

    def read() -> None:
        end: BaseException | None = None
        try:
            for piece in source:
                ready.put(piece)
                if stopped.is_set():
                    return
        except BaseException as error:
            end = error
        ready.put(end)

    def received() -> Iterator[T]:
        yield from head
        while (piece := ready.get()) is not None:
            if isinstance(piece, BaseException):
                raise piece
            yield piece

    thread = threading.Thread(target=read, name="layerstore-read-ahead", daemon=True)
    with starting():
        thread.start()
    try:
        yield received()
    finally:
        stopped.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                ready.get(timeout=0.01)
        thread.join()


class Counted:
    """Passes pieces on, counting them, giving them to `digest` if there is one, calling `progress` with the count."""

    def __init__(
        self, pieces: Iterable[Piece], *, digest: Hash | None = None, progress: Callable[[int], None] | None = None
    ) -> None:
        self._pieces = pieces
        self._hash = digest
        self._progress = progress
        self.bytes = 0

    def __iter__(self) -> Iterator[Piece]:
        for piece in self._pieces:
            self.bytes += len(piece)
            if self._hash is not None:
                self._hash.update(piece)
            if self._progress is not None:
                self._progress(self.bytes)
            yield piece


def _gzip(_window_bytes: int, _memory_bytes: int | None) -> tuple[Callable[[], _Decoder], _Failure]:
    from isal import igzip_lib

    # The stub of isal says that IsalError is an instance.
    failure: _Failure = igzip_lib.IsalError  # type: ignore[assignment]
    return lambda: igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP), failure


def _zstd(window_bytes: int, _memory_bytes: int | None) -> tuple[Callable[[], _Decoder], _Failure]:
    from layerstore.store.zstd import ZstdError, decompressor

    window_log = window_bytes.bit_length() - 1
    return lambda: decompressor(window_log), ZstdError


def _bzip2(_window_bytes: int, _memory_bytes: int | None) -> tuple[Callable[[], _Decoder], _Failure]:
    import bz2

    return bz2.BZ2Decompressor, OSError


def _xz(_window_bytes: int, memory_bytes: int | None) -> tuple[Callable[[], _Decoder], _Failure]:
    import lzma

    return lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=memory_bytes), lzma.LZMAError


_FORMATS = {"gzip": _gzip, "zstd": _zstd, "bzip2": _bzip2, "xz": _xz}
"""What loads the module for a compression and gives: what makes a decoder, whose window (zstd) or memory (xz) has these
bytes at most, and what a decoder raises."""


def decompressed(
    pieces: Iterable[Piece], compression: str, limits: Limits | None = None, what: str = "the stream"
) -> Iterable[Piece]:
    """`pieces` decompressed, never more than a piece at a time; `compression` as `compression_of` or
    `archive_compression_of` says.

    They are any number of gzip members (RFC 1952) or xz streams, with zeros behind the last as a tape has them (so GNU
    gzip and xz), of bzip2 streams, or of zstd frames (RFC 8878), of which skippable ones say nothing (section 3.1.2).

    Raises `CorruptError` and, naming `what`, `LimitExceeded` while it is read: for a frame that wants a larger window,
    for xz that wants more memory, and for a stream that has too many bytes for those that it was compressed to;
    `MemoryError`. Without `limits`, what the store itself has compressed is read.
    """
    return _decompressed(pieces, compression, limits, what, XZ_MEMORY_BYTES) if compression else pieces


def first_decompressed(pieces: Iterable[Piece], compression: str, count: int) -> bytes:
    """The same of the first `count` bytes, or all where there are fewer: to see what it is, whatever window or memory
    the rest wants. Raises `CorruptError`, also for a window that nothing makes; `MemoryError`."""
    limits = DEFAULT.changed({"zstd_window_bytes": LARGEST_WINDOW_BYTES})
    plain = _decompressed(pieces, compression, limits, "it", None) if compression else iter(pieces)
    data = b""
    try:
        while len(data) < count and (piece := next(plain, b"")):
            data += piece
    except LimitExceeded as error:
        raise CorruptError(str(error)) from error
    return data[:count]


def _in_parts(pieces: Iterable[Piece]) -> Iterator[memoryview]:
    for piece in pieces:
        for at in range(0, len(piece), INPUT_BYTES):
            yield memoryview(piece)[at : at + INPUT_BYTES]


def _decompressed(
    pieces: Iterable[Piece], compression: str, limits: Limits | None, what: str, memory_bytes: int | None
) -> Iterator[Piece]:
    if compression == "zstd":
        from layerstore.store.zstd import is_out_of_memory

    new_decoder, failure = _FORMATS[compression]((limits or DEFAULT).zstd_window_bytes, memory_bytes)
    decoder: _Decoder | None = None
    taken = given = passed_over = room = 0
    is_over = False
    for part in _in_parts(pieces):
        taken += len(part)
        at = min(passed_over, len(part))
        passed_over -= at
        while at < len(part) or (decoder is not None and not decoder.needs_input):
            if decoder is None:
                head = bytes(part[at : at + _SKIPPABLE_HEAD_BYTES])
                is_over = is_over or (compression in _PADDED and not head[0] and taken > len(part) - at)
                if is_over and not bytes(part[at:]).strip(b"\0"):
                    break
                # Where a part's end cuts the magic number, the decoder judges the rest.
                if is_over or not _begins(compression, head):
                    raise CorruptError(f"the {compression} stream has bytes after its end; fetch or save it again")
                if size := _skippable_bytes(head):
                    at += size
                    passed_over = max(0, at - len(part))
                    continue
                decoder, room = new_decoder(), _FIRST_INPUT_BYTES
            fed = part[at : at + room]
            try:
                data = decoder.decompress(fed, PIECE_BYTES)
            except failure as error:
                if compression == "zstd" and is_out_of_memory(error):
                    raise MemoryError(f"out of memory decompressing {what} with zstd: {error}") from error
                if compression == "zstd" and "memory" in str(error):
                    name = "zstd_window_bytes"
                    raise beyond(f"{what} is zstd that needs a larger window", limits or DEFAULT, name) from error
                if compression == "xz" and "memory" in str(error).lower():
                    needs = f"needs more than {XZ_MEMORY_BYTES >> 20} MiB to be decompressed"
                    raise LimitExceeded(f"{what} is xz that {needs}; compress it with xz -9 or less") from error
                raise CorruptError(f"the {compression} stream is damaged ({error}); fetch or save it again") from error
            if data:
                given += len(data)
                if limits is not None and given > max(FREE_LAYER_BYTES, limits.layer_ratio * taken):
                    has = f"{what} has {given} bytes and more in {taken} of {compression}"
                    raise beyond(has, limits, "layer_ratio")
                yield data
            at += len(fed)
            room *= 2
            if decoder.eof:
                at -= len(decoder.unused_data)
                decoder = None
    if decoder is not None or passed_over:
        raise CorruptError(f"the {compression} stream is cut off; fetch or save it again")


def _begins(compression: str, head: bytes) -> bool:
    """Can a member or frame begin with these bytes? There may be too few to be sure."""
    magic = _MAGIC[compression]
    if magic.startswith(head[: len(magic)]):
        return True
    return compression == "zstd" and head[0] & 0xF0 == 0x50 and _SKIPPABLE_MAGIC.startswith(head[1:4])


def _skippable_bytes(head: bytes) -> int:
    """How long the skippable frame is of which the first bytes are all there; 0 where they are of no such frame."""
    if len(head) < _SKIPPABLE_HEAD_BYTES or not _is_skippable(head):
        return 0
    return _SKIPPABLE_HEAD_BYTES + int.from_bytes(head[4:8], "little")


def _is_skippable(head: bytes) -> bool:
    return head[1:4] == _SKIPPABLE_MAGIC and head[0] & 0xF0 == 0x50


def compression_of(head: Piece) -> str:
    """ "gzip", "zstd" or "" by the first bytes of a blob. A skippable frame is taken for zstd, as containerd and podman
    take it; LZ4 has them too."""
    found = archive_compression_of(head)
    return found if found in ("gzip", "zstd") else ""


def archive_compression_of(head: Piece) -> str:
    """The same of a tar that is no layer, which may be "bzip2" and "xz", too."""
    first = bytes(head[:6])
    found = next((name for name, magic in _MAGIC.items() if first.startswith(magic)), "")
    return found or ("zstd" if _is_skippable(first) else "")
