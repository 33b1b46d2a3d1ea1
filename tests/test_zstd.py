"""What zstd says that it cannot do."""

from typing import Any, NoReturn

import pytest

from layerstore.errors import CorruptError
from layerstore.layers.streams import decompressed
from layerstore.store import zstd


class _NoMemory:
    """A decoder that has none."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def decompress(self, *_: Any) -> NoReturn:
        raise zstd.ZstdError("Unable to decompress Zstandard data: Allocation error : not enough memory")


def test_a_lack_of_memory_is_no_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = zstd.compress(b"content" * 100, 3)
    monkeypatch.setattr(zstd.zstd, "ZstdDecompressor", _NoMemory)
    with pytest.raises(MemoryError, match="out of memory decompressing"):
        zstd.decompress(packed, 700)
    with pytest.raises(MemoryError, match="out of memory decompressing the layer"):
        list(decompressed([packed], "zstd", what="the layer"))


def test_damage_is_damage() -> None:
    packed = zstd.compress(b"content" * 100, 3)
    with pytest.raises(CorruptError):
        zstd.decompress(packed[:-3], 700)
    with pytest.raises(CorruptError, match="is damaged"):
        list(decompressed([packed[:4] + b"\xff" * 20], "zstd"))
