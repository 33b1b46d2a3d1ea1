"""Content-defined chunks of any bytes, with their digests: what deduplication below the level of files is made of."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from layerstore._core import chunking

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Buffer

DIGEST_BYTES = 32


class Chunks(NamedTuple):
    """The chunks of a content, in its order; they cover it without gaps.

    `offsets` and `lengths` are in bytes, `digests` a row of 32 bytes for each: the BLAKE3 digest of the chunk.
    """

    offsets: NDArray[np.uint64]
    lengths: NDArray[np.uint32]
    digests: NDArray[np.uint8]


def chunk(
    buffer: Buffer, *, min_bytes: int | None = None, avg_bytes: int = 16384, max_bytes: int | None = None
) -> Chunks:
    """Cut a content where its own bytes say so (docs/format/chunks.md), and hash the chunks.

    buffer: any object with a contiguous buffer: bytes, a memoryview, an array, a mapped file. The GIL is released, and
    nobody may write to it meanwhile. The same bytes and sizes give the same chunks on every machine; two contents that
    have a stretch in common have its chunks in common, but for one or two at its ends, wherever it lies in them.

    A chunk has at least `min_bytes` (a quarter of the average unless given; the last one of a content may be shorter),
    at most `max_bytes` (8 times the average), and in contents without a pattern about `avg_bytes` in the mean.
    64 <= min_bytes <= avg_bytes <= max_bytes <= 2^30; avg_bytes is a power of two from 2^8 to 2^24.

    Raises `InvalidInput` for other sizes, `BufferError` or `TypeError` for what has no contiguous buffer, and
    `MemoryError`.
    """
    if min_bytes is None:
        min_bytes = avg_bytes // 4
    if max_bytes is None:
        max_bytes = avg_bytes * 8
    found, digests = chunking.chunk(buffer, min_bytes, avg_bytes, max_bytes)
    ends = np.asarray(found)
    lengths = np.diff(ends, prepend=np.uint64(0))
    return Chunks(ends - lengths, lengths.astype(np.uint32), np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES))
