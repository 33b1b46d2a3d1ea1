"""What a layer costs to compress and how large it is then: behind the choice of levels (layerstore/layers/blobs.py)."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Protocol

from isal import isal_zlib

from bench.context import Context
from bench.rows import Row, known
from layerstore.store.zstd import zstd

MB = 1e6
PIECE_BYTES = 1 << 20
_GZIP = 31


class Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


COMPRESSORS: dict[str, Callable[[], Compressor]] = {
    **{f"zlib, level {level}": partial(zlib.compressobj, level, zlib.DEFLATED, _GZIP) for level in (1, 6)},
    **{f"igzip, level {level}": partial(isal_zlib.compressobj, level, zlib.DEFLATED, _GZIP) for level in (1, 2, 3)},
    **{f"zstd, level {level}": partial(zstd.ZstdCompressor, level) for level in (1, 3, 6)},
}


def run(context: Context) -> list[Row]:
    return [] if context.peers_only else list(measured(context))


def measured(context: Context) -> Iterator[Row]:
    """In one thread, as time of that core, so that what else the machine does counts little."""
    data = context.fixtures.debian_tar().read_bytes()
    for name, make in COMPRESSORS.items():
        begin = time.thread_time()
        compressor = make()
        size = sum(len(compressor.compress(data[at : at + PIECE_BYTES])) for at in range(0, len(data), PIECE_BYTES))
        size += len(compressor.flush())
        yield known(f"compress the 245 MB Debian layer, {name}", "s", time.thread_time() - begin, {})
        yield known("… its size", "MB", size / MB, {})
