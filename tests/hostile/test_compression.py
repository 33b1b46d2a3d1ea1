"""Compressed layers and archives that are damaged or more than one stream. Bombs are in heavy.py."""

import gzip
import io

import images
import pytest
import tarbytes as tb
from hostile import Given, Pipe, Place, case, contained, raises, refused, source
from images import zstd

from layerstore.errors import CorruptError, LayerstoreError

TAR = tb.archive(tb.member(b"x", bytes(range(256)) * 400))
GZIP = gzip.compress(TAR, 1, mtime=0)
ZSTD = zstd.compress(TAR, 1)

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
    ],
    ids=["gzip", "zstd"],
)
def test_streams_one_after_the_other(place: Place, data: bytes) -> None:
    image = place.store.import_rootfs(io.BytesIO(data), "hostile:1")
    assert image.diff_ids == (images.digest_of(TAR),)
    assert b"".join(image.layer_tar(image.diff_ids[0])) == TAR
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
