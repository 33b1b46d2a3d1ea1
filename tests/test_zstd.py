"""Streams of several frames, and what zstd says that it cannot do."""

import gzip
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import images
import pytest
import tarbytes as tb

from layerstore import Store
from layerstore.errors import CorruptError
from layerstore.layers import blob_streams
from layerstore.layers.blob_streams import compression_of, decompressed
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


FRAMES = [
    images.skippable(b""),
    images.zstd.compress(b"one", 1),
    images.skippable(bytes(300), 15),
    images.zstd.compress(b"", 1),
    images.zstd.compress(b"two" * 5000, 1),
    images.skippable(b"end", 3),
]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64, 1 << 20])
def test_skippable_frames_are_passed_over_however_they_come(size: int) -> None:
    data = b"".join(FRAMES)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert b"".join(decompressed(pieces, "zstd")) == b"one" + b"two" * 5000


@pytest.mark.parametrize("number", range(16))
def test_a_skippable_frame_is_one_of_zstd(number: int) -> None:
    assert compression_of(images.skippable(b"x", number)) == "zstd"
    assert compression_of(b"\x60" + images.skippable(b"x")[1:]) == ""


@pytest.mark.parametrize(
    ("compression", "empty"), [("gzip", gzip.compress(b"", mtime=0)), ("zstd", images.zstd.compress(b"", 1))]
)
def test_what_follows_an_end_is_not_copied_again_and_again(compression: str, empty: bytes) -> None:
    """As often as there are ends: these would be a gigabyte."""
    fed = []

    class Counted:
        def __init__(self, made: Any) -> None:
            self._made = made

        def __getattr__(self, name: str) -> Any:
            return getattr(self._made, name)

        def decompress(self, data: Any, most: int) -> Any:
            fed.append(len(data))
            return self._made.decompress(data, most)

    new, failure = blob_streams._FORMATS[compression](1 << 25, None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(blob_streams._FORMATS, compression, lambda *_: (lambda: Counted(new()), failure))
        assert list(decompressed([empty * 8000], compression)) == []
    assert len(fed) == 8000
    assert sum(fed) < 10_000_000


def test_gzip_of_several_members_and_zeros_is_what_gunzip_says(tmp_path: Path) -> None:
    data = gzip.compress(b"one") + gzip.compress(b"") + gzip.compress(b"two" * 5000) + bytes(5000)
    done = subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True)
    assert done.stdout == b"".join(decompressed([data], "gzip")) == b"one" + b"two" * 5000
    for size in (1, 3, 700):
        assert b"".join(decompressed([data[at : at + size] for at in range(0, len(data), size)], "gzip")) == done.stdout


@pytest.mark.needs_tool("skopeo")
def test_skopeos_zstd_chunked_is_loaded(store: Store, tmp_path: Path) -> None:
    tar = tb.archive(*[tb.member(b"f%d" % number, bytes([number]) * 1000 * number) for number in range(20)])
    image = images.Image([tar], ["app:1"])
    source = images.write_directory(images.oci_files([image]), tmp_path / "source")
    target = tmp_path / "target"
    command = ["skopeo", "copy", "--insecure-policy", "--quiet", "--dest-compress-format", "zstd:chunked"]
    subprocess.run([*command, "--dest-compress", f"oci:{source}:app:1", f"oci:{target}:app:1"], check=True)
    (blob,) = (path for path in (target / "blobs" / "sha256").iterdir() if path.read_bytes().endswith(b"nUlInUx"))
    assert compression_of(blob.read_bytes()[:8]) == "zstd"
    (loaded,) = store.load(target)
    assert b"".join(loaded.layer_tar(loaded.diff_ids[0])) == tar
