"""Compressed layers and archives that are damaged or more than one stream. Bombs are in heavy.py."""

import gzip
import io

import images
import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Pipe, Place, contained, raises, refused, source
from images import zstd

from layerstore.errors import CorruptError, LayerstoreError

TAR = tb.archive(tb.member(b"x", bytes(range(256)) * 400))
GZIP = gzip.compress(TAR, 1, mtime=0)
ZSTD = zstd.compress(TAR, 1)
SKIPPED = images.skippable(b"skipped" * 9)

REFUSED = [
    refused("gzip cut off", GZIP[:-20], CorruptError, "gzip stream is cut off"),
    refused("gzip cut off in its header", GZIP[:5], CorruptError, "gzip stream is cut off"),
    refused("gzip without its checksum", GZIP[:-8], CorruptError, "gzip stream is cut off"),
    refused("gzip with a wrong checksum", GZIP[:-8] + b"\xff" * 4 + GZIP[-4:], CorruptError, "gzip stream is damaged"),
    refused("gzip with a wrong length", GZIP[:-4] + b"\xff" * 4, CorruptError, "gzip stream is damaged"),
    refused("gzip with junk after it", GZIP + b"junk", CorruptError, "gzip stream has bytes after its end"),
    refused("gzip with zstd after it", GZIP + ZSTD, CorruptError, "gzip stream has bytes after its end"),
    refused("gzip with half a member after it", GZIP + GZIP[:9], CorruptError, "gzip stream is cut off"),
    refused("gzip of a method that there is not", b"\x1f\x8b\x09" + GZIP[3:], CorruptError, "gzip stream is damaged"),
    refused("gzip of noise", b"\x1f\x8b\x08" + bytes(7) + b"\xff" * 500, CorruptError, "gzip stream is damaged"),
    refused("gzip of gzip", gzip.compress(GZIP), CorruptError, "byte 0|checksum|chksum"),
    refused("gzip with zeros and a member after it", GZIP + bytes(9) + GZIP, CorruptError, "bytes after its end"),
    refused(
        "gzip with zeros and junk far after it", GZIP + bytes(700_000) + b"\1", CorruptError, "bytes after its end"
    ),
    refused("zstd with zeros after it", ZSTD + bytes(9), CorruptError, "bytes after its end"),
    refused("a skippable frame that is cut off", ZSTD + SKIPPED[:-1], CorruptError, "zstd stream is cut off"),
    refused("a skippable frame cut off in its size", ZSTD + SKIPPED[:6], CorruptError, "zstd stream is cut off"),
    refused("a skippable frame cut off in its magic number", ZSTD + b"\x5f\x2a", CorruptError, "stream is cut off"),
    refused(
        "a skippable frame of 4 GiB that are not there",
        b"\x50\x2a\x4d\x18\xff\xff\xff\xff" + ZSTD,
        CorruptError,
        "zstd stream is cut off",
    ),
    refused(
        "a skippable frame that is longer than it says",
        b"\x50\x2a\x4d\x18\1\0\0\0ab" + ZSTD,
        CorruptError,
        "zstd stream has bytes after its end",
    ),
    refused("a skippable frame before what is no zstd", SKIPPED + GZIP, CorruptError, "bytes after its end"),
    refused("zstd cut off", ZSTD[:-20], CorruptError, "zstd stream is cut off"),
    refused("zstd with junk after it", ZSTD + b"junk!", CorruptError, "zstd stream has bytes after its end"),
    refused("zstd of noise", b"\x28\xb5\x2f\xfd" + b"\xff" * 500, LayerstoreError, "zstd"),
    refused("zstd with a dictionary", b"\x28\xb5\x2f\xfd\x21\x07\x00" + bytes(100), CorruptError, "zstd"),
]


@pytest.mark.parametrize("given", REFUSED)
def test_a_stream_is_refused(place: Place, given: Given) -> None:
    data, error, told = given
    with place.untouched():
        raises(lambda: place.store.import_rootfs(io.BytesIO(data), "hostile:1"), error, told)
        raises(lambda: place.store.import_rootfs(source(Pipe(data)), "hostile:1"), error, told)
        raises(lambda: place.store.load(io.BytesIO(data)), LayerstoreError, ".")
        files: images.Files = {"layer.tar": data, "manifest.json": b"[]"}
        raises(lambda: place.store.load(source(Pipe(images.tar_of(files)))), LayerstoreError, ".")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(
            gzip.compress(TAR[:700]) + gzip.compress(b"") + gzip.compress(TAR[700:]),
            marks=case("gzip of many members", "read as one, its digest that of all"),
        ),
        pytest.param(
            zstd.compress(TAR[:700]) + zstd.compress(b"") + zstd.compress(TAR[700:]),
            marks=case("zstd of many frames", "read as one, its digest that of all"),
        ),
        pytest.param(GZIP + bytes(700_000), marks=case("gzip with zeros after it", "taken, as GNU gzip takes it")),
        pytest.param(
            SKIPPED + zstd.compress(TAR[:700]) + SKIPPED + zstd.compress(TAR[700:]) + SKIPPED * 2,
            marks=case("skippable frames before, between and after those of zstd", "passed over"),
        ),
        pytest.param(
            images.skippable(b"", 15) + images.skippable(bytes(3 << 20), 7) + ZSTD,
            marks=case("a skippable frame of 3 MiB", "passed over"),
        ),
        pytest.param(images.zstd_chunked(TAR), marks=case("zstd:chunked", "taken")),
    ],
    ids=["gzip", "zstd", "zeros", "skippable", "large", "chunked"],
)
def test_streams_one_after_the_other(place: Place, data: bytes) -> None:
    image = place.store.import_rootfs(io.BytesIO(data), "hostile:1")
    assert image.diff_ids == (images.digest_of(TAR),)
    assert b"".join(image.layer_tar(image.diff_ids[0])) == TAR
    place.drop("hostile:1")
    place.changed()


@case("nothing but skippable frames", "taken for a tar without entries")
def test_nothing_but_skippable_frames(place: Place) -> None:
    image = place.store.import_rootfs(io.BytesIO(SKIPPED * 3), "hostile:1")
    assert image.diff_ids == (images.digest_of(b""),)
    place.drop("hostile:1")
    place.changed()


@case("a tar that begins as gzip does", "taken for gzip by its first bytes, and refused")
def test_a_name_that_is_a_magic_number(place: Place) -> None:
    data = tb.archive(tb.member(b"\x1f\x8b", b"x"))
    place.refuses(lambda: place.store.import_rootfs(io.BytesIO(data), "hostile:1"), CorruptError, "gzip")


def test_an_honest_layer_is_taken(place: Place) -> None:
    """A gigabyte of zeros is none, and 100 MiB of them pass."""
    with contained(place, tb.archive(tb.member(b"zeros", bytes(20 << 20)))) as image:
        assert image.view.stat("/zeros").st_size == 20 << 20
