"""The zstd of Python 3.14, or its backport: a module of its own, as loading either takes milliseconds."""

import sys

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ZstdError = zstd.ZstdError


def decompressor(max_window_log: int) -> zstd.ZstdDecompressor:
    """A decoder of one frame, whose window is at most 2 to the power of `max_window_log` bytes."""
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: max_window_log})


def recipe_compressor() -> zstd.ZstdCompressor:
    """The compressor of recipes (docs/format/recipe.md)."""
    return zstd.ZstdCompressor(level=1)


def blob_compressor(threads: int) -> zstd.ZstdCompressor:
    """The compressor of layers' blobs. Any number of threads, from 1 on, gives the same bytes."""
    options: dict[int, int] = {zstd.CompressionParameter.compression_level: 3}
    if zstd.CompressionParameter.nb_workers.bounds()[1] > 0:
        options[zstd.CompressionParameter.nb_workers] = threads
    return zstd.ZstdCompressor(options=options)
