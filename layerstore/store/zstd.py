"""The zstd of Python 3.14, or its backport: a module of its own, as loading either takes milliseconds."""

from __future__ import annotations

import sys

from layerstore.errors import CorruptError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

ZstdError = zstd.ZstdError
_LONG_BYTES = 4 << 20
"""From so many bytes on, matches are looked for at long distances too: those of a file and its base lie as far apart as
the base is long."""


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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it is zstd's `ZSTD_error_memory_allocation`, of which there is the message alone."""
    return "Allocation error" in str(error)


class compressing:
    """Has it be a `MemoryError` where its block cannot compress for want of memory, the one thing that it can want."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ZstdError):
            raise MemoryError(f"out of memory compressing with zstd: {error}") from error


def compress(data: Buffer, level: int) -> bytes:
    """One frame, which says its size. Raises `MemoryError`."""
    with compressing():
        return zstd.compress(data, level)


def compress_against(base: Buffer, data: Buffer, level: int) -> bytes:
    """One frame of what `data` has otherwise than `base`, at most 256 MiB both."""
    parameter = zstd.CompressionParameter
    both = len(memoryview(base)) + len(memoryview(data))
    options: dict[int, int] = {
        parameter.compression_level: level,
        parameter.window_log: max(10, both.bit_length()),
        parameter.enable_long_distance_matching: int(both > _LONG_BYTES),
    }
    prefix = zstd.ZstdDict(bytes(base), is_raw=True).as_prefix
    with compressing():
        return zstd.compress(data, options=options, zstd_dict=prefix)


def size_of(data: Buffer) -> int:
    """What a frame of `compress` says that its bytes are before compression. Raises `CorruptError`."""
    try:
        size: int | None = zstd.get_frame_info(data).decompressed_size
    except ZstdError as error:
        raise CorruptError(str(error)) from error
    if size is None:
        raise CorruptError("its zstd frame does not say how many bytes it has")
    return size


def decompress(data: Buffer, size: int, base: Buffer | None = None) -> bytes:
    """What `compress` or `compress_against` made one frame of. Raises `CorruptError` unless it has that size,
    `MemoryError`."""
    try:
        prefix = None if base is None else zstd.ZstdDict(bytes(base), is_raw=True).as_prefix
        made = zstd.ZstdDecompressor(zstd_dict=prefix)
        raw = made.decompress(data, size + 1)
    except (ZstdError, ValueError) as error:
        if is_out_of_memory(error):
            raise MemoryError(f"out of memory decompressing with zstd: {error}") from error
        raise CorruptError(str(error)) from error
    if len(raw) != size or not made.eof or made.unused_data:
        raise CorruptError(f"its zstd frame does not have the {size} bytes that it should")
    return raw
