"""Writes a layer's tar again, bit for bit, from its recipe and the stored contents (docs/format/recipe.md)."""

import io
import struct
from collections.abc import Callable, Iterator

from layerstore._core.index import Index
from layerstore.errors import RELOAD, CorruptError
from layerstore.layers.streams import PIECE_BYTES, Reader, decompressed, pieces_of

_U32 = struct.Struct("<I")
_EXTENT = struct.Struct("<QQ")
_RAW, _CONTENT, _SPARSE = 0, 1, 2

OpenContent = Callable[[bytes], io.BufferedReader | io.BytesIO]


def tar_pieces(recipe: str, index: Index, open_content: OpenContent) -> Iterator[bytes]:
    """The bytes of the layer's tar. Raises `CorruptError` where the recipe does not fit, `OSError`."""
    with open(recipe, "rb") as file:
        frames = Reader(decompressed(pieces_of(file), "zstd"))
        number = 0
        while kind := frames.read(1):
            if kind[0] == _RAW:
                (length,) = _U32.unpack(_exactly(frames, 4, recipe))
                yield _exactly(frames, length, recipe)
                continue
            if kind[0] not in (_CONTENT, _SPARSE):
                raise CorruptError(f"{recipe} has a frame of unknown kind {kind[0]}; {RELOAD}")
            digest, size = index.content(number)
            number += 1
            extents = [(0, size)] if kind[0] == _CONTENT else _extents(frames, recipe)
            with open_content(digest) as content:
                for offset, length in extents:
                    content.seek(offset)
                    yield from _range(content, length, digest)


def _extents(frames: Reader, recipe: str) -> list[tuple[int, int]]:
    (count,) = _U32.unpack(_exactly(frames, 4, recipe))
    return list(_EXTENT.iter_unpack(_exactly(frames, count * _EXTENT.size, recipe)))


def _exactly(frames: Reader, length: int, recipe: str) -> bytes:
    data = frames.read(length)
    if len(data) != length:
        raise CorruptError(f"{recipe} is cut off; {RELOAD}")
    return data


def _range(content: io.BufferedReader | io.BytesIO, length: int, digest: bytes) -> Iterator[bytes]:
    while length:
        piece = content.read(min(length, PIECE_BYTES))
        if not piece:
            raise CorruptError(f"content {digest.hex()} is shorter than its layer says; {RELOAD}")
        length -= len(piece)
        yield piece
