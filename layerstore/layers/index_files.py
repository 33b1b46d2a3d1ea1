"""The files of layers' indexes (docs/format/index.md): as they are, or compressed, as those of frozen images are."""

from __future__ import annotations

import os

from layerstore._core.files import MappedFile
from layerstore._core.index import LAYER, Index
from layerstore.errors import RELOAD, REPAIR, CorruptError
from layerstore.naming import open_fd
from layerstore.store import durable
from layerstore.types import hash_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from layerstore.types import DiffId

_FRAME_MAGIC = b"\x28\xb5\x2f\xfd"
_LEVEL = 3
_BLOCK_BYTES = 4096


def open_index(path: str) -> Index:
    """The index in a file: mapped, or in memory where it is compressed.

    Raises `CorruptError`, `Unsupported` for another version's, `OSError`.
    """
    data = _mapped(path)
    return Index(_unpacked(data) if _is_packed(data) else data)


def open_layer_index(path: str, diff_id: DiffId) -> Index:
    """The index of a layer. Raises as `open_index`, `CorruptError` also where it is missing or another layer's."""
    try:
        index = open_index(path)
    except FileNotFoundError:
        raise CorruptError(f"the index of layer {diff_id} is missing; {RELOAD}") from None
    if (index.kind, index.hash_key) != (LAYER, hash_key(diff_id)):
        raise CorruptError(f"{path} is the index of another layer; {RELOAD}")
    return index


def pack_index(path: str) -> None:
    """Compress an index, unless it takes no more than a block. Durable on return; whoever has it open has it as it was.

    Raises as `open_index`; the file is as before then.
    """
    data = _mapped(path)
    if _is_packed(data) or len(data) <= _BLOCK_BYTES:
        return
    from layerstore.store.zstd import compress

    _verify(path, data)
    durable.write_file(path, compress(data, _LEVEL))


def unpack_index(path: str) -> None:
    """Have an index be as it is without compression. Durable on return; raises as `open_index`."""
    data = _mapped(path)
    if _is_packed(data):
        raw = _unpacked(data)
        _verify(path, raw)
        durable.write_file(path, raw)


def _mapped(path: str) -> memoryview:
    with open_fd(path, os.O_RDONLY) as fd:
        return memoryview(MappedFile(fd))


def _is_packed(data: memoryview) -> bool:
    return data[: len(_FRAME_MAGIC)] == _FRAME_MAGIC


def _unpacked(data: memoryview) -> bytes:
    from layerstore.store.zstd import decompress, size_of

    return decompress(data, size_of(data))


def _verify(path: str, data: Buffer) -> None:
    try:
        Index(data).verify_digest()
    except CorruptError as error:
        raise CorruptError(f"{path} is damaged: {error}; {REPAIR}") from error
