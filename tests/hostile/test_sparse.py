"""Sparse files whose maps lie."""

import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Place, contained, is_refused, layer, refused

from layerstore.errors import CorruptError, InvalidInput, LimitExceeded

FORMS = {"old": tb.sparse_old, "0.0": tb.sparse_00, "0.1": tb.sparse_01, "1.0": tb.sparse_10}
UNBOUNDED = "CVE-2025-58183 (archive/tar)"


def of(form: str, extents: tb.Extents, size: int, data: bytes) -> bytes:
    return layer(FORMS[form](b"marked", extents, size, data))


REFUSED = [
    *(
        refused(
            f"extents that overlap, {form}",
            of(form, [(0, 10), (5, 10)], 100, b"x" * 20),
            CorruptError,
            "extent 2",
        )
        for form in FORMS
    ),
    *(
        refused(
            f"extents behind the end, {form}",
            of(form, [(0, 10), (95, 10)], 100, b"x" * 20),
            CorruptError,
            "ends at 105",
        )
        for form in FORMS
    ),
    *(
        refused(
            f"extents of more than is stored, {form}", of(form, [(0, 100)], 100, b"x" * 20), CorruptError, "100 bytes"
        )
        for form in FORMS
    ),
    refused("extents that go back", of("0.1", [(50, 10), (0, 10)], 100, b"x" * 20), CorruptError, "extent 2"),
    refused("an extent of 2^64 bytes", of("0.1", [(1, (1 << 64) - 1)], 100, b"x"), CorruptError, "marked"),
    refused("a file of 2 TiB of holes", of("1.0", [], 2 << 40, b""), LimitExceeded, "marked.*file_bytes"),
    refused(
        "60 GiB of holes in a layer of some KiB", of("1.0", [], 60 << 30, b""), LimitExceeded, "marked.*layer_ratio"
    ),
    refused(
        "60 GiB of holes in sixty files",
        layer(*[tb.sparse_10(b"marked%d" % number, [], 1 << 30, b"") for number in range(60)]),
        LimitExceeded,
        "marked1.*layer_ratio",
    ),
    refused(
        "60 GiB of holes before content",
        of("old", [((60 << 30) - 3, 3)], 60 << 30, b"abc"),
        LimitExceeded,
        "marked.*layer_ratio",
    ),
    refused("65 GiB of holes", of("1.0", [], 65 << 30, b""), LimitExceeded, "marked.*hole_bytes"),
    refused(
        "a map of 10^9 extents",
        layer(tb.sparse_10(b"marked", [], 1, b"", map_bytes=b"1000000000\n")),
        LimitExceeded,
        "marked.*sparse_extents",
        UNBOUNDED,
    ),
    refused(
        "a map of 10^30 extents",
        layer(tb.sparse_10(b"marked", [], 1, b"", map_bytes=b"1" + b"0" * 30 + b"\n")),
        CorruptError,
        "marked.*number 1",
        UNBOUNDED,
    ),
    refused(
        "a map that is no number",
        layer(tb.sparse_10(b"marked", [], 1, b"", map_bytes=b"1\nx\n5\n")),
        CorruptError,
        "marked.*decimal",
    ),
    refused(
        "a map below 0",
        layer(tb.sparse_10(b"marked", [], 1, b"", map_bytes=b"1\n-5\n5\n")),
        CorruptError,
        "marked.*decimal",
    ),
    refused(
        "a map that does not end",
        layer(tb.sparse_10(b"marked", [], 1, b"", map_bytes=b"9" * 512)),
        CorruptError,
        "marked",
        UNBOUNDED,
    ),
    refused(
        "a count that lies",
        layer(
            tb.pax({b"GNU.sparse.size": b"9", b"GNU.sparse.numblocks": b"7", b"GNU.sparse.map": b"0,1"}),
            tb.member(b"marked", b"x"),
        ),
        CorruptError,
        "numblocks is 7",
    ),
    refused(
        "a map without a size",
        layer(tb.pax({b"GNU.sparse.map": b"0,1"}), tb.member(b"marked", b"x")),
        CorruptError,
        "marked.*GNU.sparse.size",
    ),
    refused(
        "a size below 0",
        layer(tb.pax({b"GNU.sparse.size": b"-9", b"GNU.sparse.map": b"0,1"}), tb.member(b"marked", b"x")),
        InvalidInput,
        "marked.*negative",
    ),
    refused(
        "a sparse directory",
        layer(tb.pax({b"GNU.sparse.size": b"9", b"GNU.sparse.map": b"0,1"}), tb.directory(b"marked")),
        InvalidInput,
        "only a regular file",
    ),
    refused(
        "a version that there is not",
        layer(tb.pax({b"GNU.sparse.major": b"7", b"GNU.sparse.minor": b"0"}), tb.member(b"marked")),
        InvalidInput,
        "version 7.0",
    ),
    refused(
        "a name with .. in a sparse header",
        layer(tb.sparse_10(b"../../x", [], 1, b"")),
        InvalidInput,
        "leaves the root",
    ),
    refused(
        "a map that every entry has",
        layer(tb.pax({b"GNU.sparse.map": b"0,1"}, type=b"g"), tb.member(b"m")),
        InvalidInput,
        "global pax header",
    ),
]


@pytest.mark.parametrize("given", REFUSED)
def test_a_map_is_refused(place: Place, given: Given) -> None:
    is_refused(place, given)


@case("100 MiB of holes", "read as zeros, take no space")
def test_holes(place: Place) -> None:
    with (
        contained(place, tb.archive(tb.sparse_10(b"big", [(50 << 20, 3)], 100 << 20, b"abc"))) as image,
        image.view.open("/big") as file,
    ):
        file.seek((50 << 20) - 2)
        assert file.read(7) == b"\0\0abc\0\0"
