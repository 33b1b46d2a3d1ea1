"""Headers of tars: extended ones, numbers, ends."""

import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Place, contained, is_refused, layer, refused

from layerstore.errors import CorruptError, InvalidInput, LimitExceeded

READ_WHOLE = "CVE-2022-2879 (archive/tar)"


def pax_of(body: bytes) -> bytes:
    return layer(tb.pax(body), tb.member(b"marked", b"x"))


def record(key: bytes, value: bytes) -> bytes:
    return layer(tb.pax({key: value}), tb.member(b"marked", b"x"))


REFUSED = [
    refused(
        "a pax header of 1 GiB",
        layer(tb.header(b"p", type=b"x", size=1 << 30)),
        LimitExceeded,
        "1073741824.*extended_bytes",
        READ_WHOLE,
    ),
    refused(
        "a global pax header of 1 GiB",
        layer(tb.header(b"p", type=b"g", size=1 << 30)),
        LimitExceeded,
        "extended_bytes",
        READ_WHOLE,
    ),
    refused(
        "a GNU long name of 1 GiB",
        layer(tb.header(b"p", type=b"L", size=1 << 30, magic=tb.GNU)),
        LimitExceeded,
        "extended_bytes",
        READ_WHOLE,
    ),
    refused("a pax header of 2^63 bytes", layer(tb.header(b"p", type=b"x", size=1 << 63)), Exception, "byte 1024"),
    refused(
        "a pax header of less than 0 bytes", layer(tb.header(b"p", type=b"x", size=-512)), CorruptError, "negative"
    ),
    refused(
        "pax headers of 1.5 MiB together",
        layer(*[tb.pax({b"comment": b"c" * 500_000})] * 3, tb.member(b"m")),
        LimitExceeded,
        "extended_bytes",
    ),
    refused(
        "global pax headers of 1.5 MiB together",
        layer(*[tb.pax({b"comment": b"c" * 500_000}, type=b"g")] * 3, tb.member(b"m")),
        LimitExceeded,
        "extended_bytes",
    ),
    refused("a pax record of length 0", pax_of(b"0 path=x\n"), CorruptError, "0 path=x", "CVE-2019-20907 (tarfile)"),
    refused("a pax record of a length below 0", pax_of(b"-9 path=x\n"), CorruptError, "-9 path=x"),
    refused("a pax record of a length beyond the header", pax_of(b"99 path=x\n"), CorruptError, "99 path=x"),
    refused("a pax record of a length of 30 digits", pax_of(b"9" * 30 + b" path=x\n"), CorruptError, "999"),
    refused("a pax record of a length that is no number", pax_of(b"1a path=x\n"), CorruptError, "1a path=x"),
    refused("a pax record without =", pax_of(b"8 path\n\n"), CorruptError, "8 path"),
    refused("a pax record without a key", pax_of(b"6 =xx\n"), CorruptError, "6 =xx"),
    refused("a pax record with a NUL in its key", pax_of(b"9 pa\0h=x\n"), CorruptError, r"pa\\x00h"),
    refused("a pax record with escapes for the terminal", pax_of(b"\x1b[31m path=x\n"), CorruptError, r"\\x1b\[31m"),
    refused("a size below 0, pax", record(b"size", b"-1"), InvalidInput, '"marked".*size=-1'),
    refused(
        "a size of 2^64, pax", record(b"size", b"%d" % (1 << 64)), InvalidInput, '"marked".*size=18446744073709551616'
    ),
    refused("a size that is no number, pax", record(b"size", b"1k"), CorruptError, '"marked".*size=1k'),
    refused(
        "a size below 0",
        layer(tb.header(b"marked", size=-1)),
        CorruptError,
        '"marked".*size.*negative',
        "CVE-2025-8194 (tarfile)",
    ),
    refused("a size of 2^80", layer(tb.header(b"marked", size=b"\x80\x01" + bytes(10))), CorruptError, "does not fit"),
    refused(
        "a size that is no number",
        layer(tb.header(b"marked", size=b"12x4567")),
        CorruptError,
        '"marked".*size.*12x4567',
    ),
    refused("a size of 2 TiB", layer(tb.header(b"marked", size=2 << 40)), LimitExceeded, '"marked".*file_bytes'),
    refused(
        "a size beyond the stream",
        layer(tb.header(b"marked", size=1 << 30), b"x" * 512),
        CorruptError,
        '"marked".*ends',
    ),
    refused("a checksum that is wrong", layer(tb.header(b"marked", chksum=5)), CorruptError, "checksum"),
    refused("a checksum that is no number", layer(tb.header(b"marked", chksum=b"zzzzzz")), CorruptError, "chksum"),
    refused(
        "a global header with an xattr",
        layer(tb.pax({b"SCHILY.xattr.user.a": b"b"}, type=b"g")),
        InvalidInput,
        "global pax",
    ),
    refused(
        "an extended header without an entry",
        tb.archive(tb.pax({b"path": b"x"})),
        CorruptError,
        "ends before the entry",
    ),
    refused(
        "an archive that ends within a header",
        layer(tb.header(b"marked"))[: 1024 + 100],
        CorruptError,
        "inside a header",
    ),
    refused(
        "an archive that ends within an extended header",
        layer(tb.pax({b"path": b"x" * 5000}))[: 1024 + 700],
        CorruptError,
        "inside a header",
    ),
    refused(
        "an archive that ends within a file",
        layer(tb.member(b"marked", b"x" * 5000))[: 1024 + 700],
        CorruptError,
        '"marked".*ends',
    ),
]


@pytest.mark.parametrize("given", REFUSED)
def test_a_header_is_refused(place: Place, given: Given) -> None:
    is_refused(place, given)


@case("junk after the end of a tar", "kept with the layer, and no file of it")
def test_trailing_junk(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b"x", b"1")) + tb.member(b"hidden", b"2") + b"junk" * 1000) as image:
        assert image.view.listdir("/") == ["etc", "x"]


@case("a path in a pax header and in a GNU header", "GNU's holds, as for docker", "differs between readers")
def test_two_paths(place: Place) -> None:
    parts = [tb.pax({b"path": b"pax"}), tb.gnu_long(b"gnu"), tb.member(b"header", b"1")]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.listdir("/") == ["etc", "gnu"]


@case("a link with a size", "has no content, as for docker", "differs between readers")
def test_a_link_with_content(place: Place) -> None:
    hidden = tb.member(b"hidden", b"2")
    with contained(place, tb.archive(tb.header(b"l", type=b"2", link=b"x", size=len(hidden)), hidden)) as image:
        assert image.view.listdir("/") == ["etc", "hidden", "l"]
