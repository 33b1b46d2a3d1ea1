"""A layer's tar as the blob that is saved or sent: as it is, or compressed.

Equal tars give equal blobs, whatever pieces they come in and however many processors there are.
"""

from __future__ import annotations

import itertools
import os
import struct

from layerstore.errors import RELOAD, CorruptError, InvalidInput
from layerstore.layers.blob_streams import Counted, read_ahead
from layerstore.types import DiffId, Digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from layerstore.store.pieces import Piece

COMPRESSIONS = ("none", "gzip", "zstd")
"""What a layer can be compressed with, in the words of those who choose."""
BLOCK_BYTES = 1 << 20
"""What is compressed at a time."""
_GZIP_LEVEL = 3
_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # RFC 1952: deflate, no name, no time, no system
_GZIP_END = b"\x03\0"  # RFC 1951: a last block that is empty
_TRAILER = struct.Struct("<II")
_RAW_DEFLATE = -15
_WINDOW_BYTES = 1 << 15
_MAX_THREADS = 8


class LayerBlob:
    """A layer's tar on its way to being a blob. To be iterated once, which gives the blob's bytes by the piece.

    The tar is read and hashed in one thread, compressed in others, and the blob is hashed in the caller's; what waits
    between them is bounded, to some MiB for each thread. Not for two threads at once.

    Args:
        tar: the layer's.
        compression: "none", "gzip" or "zstd". `InvalidInput` for another one.
        diff_id: the layer's: `CorruptError` is raised at the end where the tar was another one.
        progress: called with the bytes of the tar that were read so far, from the thread that reads.

    Iterating it raises what reading the tar raises, too. Nothing may be made of the blob before all of it came. Who
    does not iterate to the end closes the iterator, which ends the threads.
    """

    def __init__(
        self, tar: Iterable[Piece], compression: str, diff_id: DiffId, progress: Callable[[int], None] | None = None
    ) -> None:
        import hashlib

        if compression not in COMPRESSIONS:
            raise InvalidInput(f"there is no compression {compression!r}; it is one of {', '.join(COMPRESSIONS)}")
        self._compression = compression
        self.diff_id = diff_id
        self._tar_hash = hashlib.sha256()
        self._blob_hash = self._tar_hash if compression == "none" else hashlib.sha256()
        self._tar = Counted(tar, digest=None if compression == "none" else self._tar_hash, progress=progress)
        self.size_bytes = 0
        """Of the blob, so far."""

    def __iter__(self) -> Generator[Piece, None, None]:
        with read_ahead(self._tar) as tar:
            for piece in compressed(tar, self._compression):
                self._blob_hash.update(piece)
                self.size_bytes += len(piece)
                yield piece
        found = f"sha256:{self._tar_hash.hexdigest()}"
        if found != self.diff_id:
            raise CorruptError(f"layer {self.diff_id} comes out of the store as {found}; {RELOAD}")

    @property
    def digest(self) -> Digest:
        """Of the blob, once all of it came."""
        return Digest(f"sha256:{self._blob_hash.hexdigest()}")


def compressed(tar: Iterable[Piece], compression: str) -> Iterable[Piece]:
    """The pieces compressed by "gzip" or "zstd", or as they are for "none". Raises what reading them raises.

    gzip: one member (RFC 1952). The blocks are compressed by several threads, each with what comes before it as its
    dictionary, so that together they are one stream. igzip's level 3 takes a ninth of the time of zlib's level 6, which
    gzip has, for 9% more bytes; whoever wants fewer takes zstd, with 13% fewer in little more time than igzip
    (docs/measurements.md, "Compression of a layer").

    zstd: one frame (RFC 8878) of level 3, as others have it, by zstd's own threads.
    """
    if compression == "gzip":
        return _gzip(tar)
    return _zstd(tar) if compression == "zstd" else tar


def _gzip(tar: Iterable[Piece]) -> Iterator[Piece]:
    from isal.isal_zlib import crc32

    checksum, size = 0, 0

    def jobs() -> Iterator[tuple[bytes, bytes]]:
        nonlocal checksum, size
        before = b""
        for block in blocks(tar, BLOCK_BYTES):
            checksum, size = crc32(block, checksum), size + len(block)
            yield before, block
            before = block[-_WINDOW_BYTES:]

    yield _GZIP_HEADER
    yield from _in_threads(_deflated, jobs())
    yield _GZIP_END + _TRAILER.pack(checksum, size & 0xFFFFFFFF)


def _deflated(job: tuple[bytes, bytes]) -> bytes:
    """A block as whole bytes of a deflate stream that goes on; given what is before it, and the block."""
    from isal import isal_zlib

    before, block = job
    compressor = isal_zlib.compressobj(_GZIP_LEVEL, isal_zlib.DEFLATED, _RAW_DEFLATE, zdict=before)
    return compressor.compress(block) + compressor.flush(isal_zlib.Z_SYNC_FLUSH)


def _in_threads(work: Callable[[tuple[bytes, bytes]], bytes], jobs: Iterator[tuple[bytes, bytes]]) -> Iterator[bytes]:
    """`work` of each job, in their order. One job needs no thread: loading what starts them takes as long."""
    head = list(itertools.islice(jobs, 2))
    if len(head) < 2:
        yield from map(work, head)
        return
    from concurrent.futures import ThreadPoolExecutor

    from layerstore.layers.ordered import in_order

    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    with ThreadPoolExecutor(threads, "layerstore-compress") as pool:
        yield from in_order(pool, work, itertools.chain(head, jobs), ahead=threads)


def _zstd(tar: Iterable[Piece]) -> Iterator[Piece]:
    from layerstore.store.zstd import blob_compressor, compressing

    compressor = blob_compressor(min(os.cpu_count() or 1, _MAX_THREADS))
    for block in blocks(tar, BLOCK_BYTES):
        with compressing():
            data = compressor.compress(block)
        if data:
            yield data
    with compressing():
        data = compressor.flush()
    yield data


def blocks(pieces: Iterable[Piece], size: int) -> Iterator[bytes]:
    """The same bytes in blocks of `size`, of which only the last may be shorter."""
    parts: list[Piece] = []
    missing = size
    for piece in pieces:
        rest = memoryview(piece)
        while len(rest) >= missing:
            parts.append(rest[:missing])
            rest = rest[missing:]
            yield b"".join(parts)
            parts, missing = [], size
        if rest:
            parts.append(rest)
            missing -= len(rest)
    if parts:
        yield b"".join(parts)
