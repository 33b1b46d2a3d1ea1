"""Layers as blobs: what others decompress them to, that they depend on the tar alone, and what is said of them."""

import gzip
import hashlib
import os
import random
import subprocess
import threading
import zlib
from collections.abc import Iterator

import images
import pytest

from layerstore.errors import CorruptError, InvalidInput
from layerstore.layers import blobs
from layerstore.layers.blobs import BLOCK_BYTES, COMPRESSIONS, LayerBlob
from layerstore.store.zstd import blob_compressor, zstd
from layerstore.types import DiffId

RANDOM = random.Random(5)
WORDS = [RANDOM.randbytes(RANDOM.randrange(3, 40)) for _ in range(4000)]


def text(size: int) -> bytes:
    """Compressible, with repetitions that reach back over the borders of blocks."""
    some = b"".join(RANDOM.choices(WORDS, k=10_000))
    return (some * (size // len(some) + 1))[:size]


TARS = {
    "empty": b"",
    "one byte": b"x",
    "one block": text(BLOCK_BYTES),
    "a block and a byte": text(BLOCK_BYTES + 1),
    "several": text(5 * BLOCK_BYTES + 12_345),
    "zeros": bytes(2 * BLOCK_BYTES),
    "noise": RANDOM.randbytes(2 * BLOCK_BYTES + 99),
}


def cut(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def made(tar: bytes, compression: str, piece: int = 100_000) -> tuple[bytes, LayerBlob]:
    blob = LayerBlob(cut(tar, piece), compression, DiffId(images.digest_of(tar)))
    return b"".join(blob), blob


def plain(data: bytes, compression: str) -> bytes:
    if compression == "gzip":
        return gzip.decompress(data)
    return zstd.decompress(data) if compression == "zstd" else data


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("name", TARS)
def test_what_is_in_a_blob(name: str, compression: str) -> None:
    tar = TARS[name]
    data, blob = made(tar, compression)
    assert plain(data, compression) == tar
    assert (blob.digest, blob.size_bytes) == (images.digest_of(data), len(data))


def test_a_gzip_blob_is_one_member_that_says_nothing_else() -> None:
    data, _ = made(TARS["several"], "gzip")
    decoder = zlib.decompressobj(wbits=31)
    assert decoder.decompress(data) == TARS["several"]
    assert decoder.eof and decoder.unused_data == b""
    assert data[:10] == bytes((0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 0, 0xFF))  # RFC 1952, 2.3


def test_a_zstd_blob_is_one_frame() -> None:
    data, _ = made(TARS["several"], "zstd")
    decoder = zstd.ZstdDecompressor()
    assert decoder.decompress(data) == TARS["several"]
    assert decoder.eof and decoder.unused_data == b""


def test_gzip_reads_it() -> None:
    data, _ = made(TARS["several"], "gzip")
    assert subprocess.run(["gzip", "-dc"], input=data, capture_output=True, check=True).stdout == TARS["several"]


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_blob_depends_on_the_tar_alone(compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = TARS["several"]
    found = set()
    for processors in (1, 2, 5):
        monkeypatch.setattr(os, "cpu_count", lambda count=processors: count)
        found |= {made(tar, compression, piece)[0] for piece in (7_001, BLOCK_BYTES, len(tar))}
    assert len(found) == 1


def test_zstds_threads_give_the_same_bytes() -> None:
    tar = b"".join(text(BLOCK_BYTES) for _ in range(20))
    found = set()
    for threads in (1, 2, 3):
        compressor = blob_compressor(threads)
        found.add(b"".join([*map(compressor.compress, cut(tar, 300_000)), compressor.flush()]))
    assert len(found) == 1


def test_blocks_are_compressed_with_what_is_before_them() -> None:
    """As one stream, and not as if nothing had come before: what ends one block and begins the next comes once."""
    twice = [RANDOM.randbytes(15_000) for _ in range(6)]
    ends = zip([b"", *twice], [*twice, b""], strict=True)
    tar = b"".join(begin + bytes(BLOCK_BYTES - len(begin) - len(end)) + end for begin, end in ends)
    assert len(made(tar, "gzip")[0]) < 1.5 * sum(map(len, twice))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_another_tar_than_promised(compression: str) -> None:
    for tar in (TARS["several"], b"x"):
        promised = DiffId(images.digest_of(b"other"))
        blob = LayerBlob(cut(tar, 100_000), compression, promised)
        with pytest.raises(CorruptError, match=f"layer {promised} comes out of the store as {images.digest_of(tar)}"):
            list(blob)


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_an_error_of_the_reading_comes_out(compression: str) -> None:
    def broken() -> Iterator[bytes]:
        yield from cut(TARS["several"], 100_000)
        raise CorruptError("there")

    with pytest.raises(CorruptError, match="there"):
        list(LayerBlob(broken(), compression, DiffId(images.digest_of(TARS["several"]))))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_one_that_is_given_up_leaves_no_thread(compression: str) -> None:
    before = threading.active_count()
    blob = iter(LayerBlob(cut(TARS["noise"] * 10, 100_000), compression, DiffId("sha256:" + 64 * "0")))
    for _ in range(2):
        next(blob)
    blob.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_reading_stays_a_bounded_way_ahead(compression: str) -> None:
    """Of 300 MB, when nobody takes the blob, some are read and then no more."""
    read = 0
    piece = RANDOM.randbytes(1 << 20)
    whole = hashlib.sha256()

    def much() -> Iterator[bytes]:
        nonlocal read
        for _ in range(300):
            whole.update(piece)
            read += len(piece)
            yield piece

    blob = iter(LayerBlob(much(), compression, DiffId("sha256:" + 64 * "0")))
    next(blob)
    next(blob)
    assert read < 64 << 20
    blob.close()  # type: ignore[attr-defined]


def test_progress_tells_of_the_tar() -> None:
    told: list[int] = []
    tar = TARS["several"]
    list(LayerBlob(cut(tar, BLOCK_BYTES), "gzip", DiffId(images.digest_of(tar)), told.append))
    assert told == [*range(BLOCK_BYTES, len(tar), BLOCK_BYTES), len(tar)]


def test_compressions_are_those_that_there_are() -> None:
    with pytest.raises(InvalidInput, match="no compression 'bzip2'; it is one of none, gzip, zstd"):
        LayerBlob([], "bzip2", DiffId(images.digest_of(b"")))


def test_blocks() -> None:
    for pieces in ([b"abc", b"defgh", b"i"], [b"abcdefghi"], [b"a", b"", b"bcdefghi"]):
        assert list(blobs.blocks(pieces, 4)) == [b"abcd", b"efgh", b"i"]
    assert list(blobs.blocks([b"abcd", b"efgh"], 4)) == [b"abcd", b"efgh"]
    assert list(blobs.blocks([], 4)) == []
