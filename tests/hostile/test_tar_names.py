"""Names of entries of layers."""

import unicodedata

import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Place, contained, is_refused, layer, refused

from layerstore.errors import InvalidInput, LimitExceeded

TARFILE = "CVE-2007-4559"  # Python's tarfile


def pax_path(path: bytes) -> bytes:
    return layer(tb.pax({b"path": path}), tb.member(b"x", b"data"))


def deep(levels: int) -> bytes:
    return b"/".join([b"d"] * levels)


REFUSED = [
    refused("name ../x", layer(tb.member(b"../x", b"!")), InvalidInput, '"../x".*leaves the root', TARFILE),
    refused("name a/../../x", layer(tb.member(b"a/../../x", b"!")), InvalidInput, '"a/../../x".*leaves', TARFILE),
    refused("name /../x", layer(tb.member(b"/../x", b"!")), InvalidInput, '"/../x".*leaves', TARFILE),
    refused("name ./a/./../../x", layer(tb.member(b"./a/./../../x")), InvalidInput, "leaves the root"),
    refused("directory ../d", layer(tb.directory(b"../d/")), InvalidInput, "leaves the root"),
    refused("../ in the prefix field", layer(tb.header(b"x", prefix=b"a/../..")), InvalidInput, '"a/../../x"'),
    refused("../ in a pax path", pax_path(b"../../../etc/cron.d/x"), InvalidInput, "etc/cron.d/x", TARFILE),
    refused("../ in a GNU long name", layer(tb.gnu_long(b"../" * 60 + b"x"), tb.member(b"x")), InvalidInput, "leaves"),
    refused("NUL in a name", pax_path(b"safe\0/../x"), InvalidInput, r"safe\\x00.*NUL"),
    refused("an empty name", layer(tb.header(b"")), InvalidInput, "path is empty"),
    refused("a file in place of the root", layer(tb.member(b".", b"x")), InvalidInput, "root but is not a directory"),
    refused(
        "a file in place of the root, spelled ///", layer(tb.member(b"///")), InvalidInput, "root but is not a dir"
    ),
    refused("a link in place of the root", layer(tb.symlink(b"./", b"/etc")), InvalidInput, "root but is not a dir"),
    refused("escapes for the terminal in ../", layer(tb.member(b"\x1b[2J/../../x")), InvalidInput, r"\\x1b\[2J"),
    refused("a newline in ../", layer(tb.member(b"a\nerror: none\n/../../x")), InvalidInput, r"a\\x0aerror"),
    refused(
        "letters from right to left in ../", layer(tb.member("\u202egpj/../../x".encode())), InvalidInput, "leaves"
    ),
    refused("a name of 256 bytes", pax_path(b"n" * 256), LimitExceeded, "nnn.*256 bytes.*name_bytes"),
    refused("a name of 300 bytes in a directory", pax_path(b"d/" + b"n" * 300), LimitExceeded, "300 bytes.*name_bytes"),
    refused("a path of 5,000 bytes", pax_path(b"/".join([b"p" * 99] * 50)), LimitExceeded, "4999 bytes.*path_bytes"),
    refused(
        "a GNU long name of 5,000 bytes",
        layer(tb.gnu_long(b"/".join([b"p" * 99] * 50)), tb.member(b"x")),
        LimitExceeded,
        "path_bytes",
    ),
    refused("100,000 levels", pax_path(deep(100_000)), LimitExceeded, "199999 bytes.*path_bytes"),
    refused("100,000 levels of ..", pax_path(b"../" * 100_000 + b"x"), LimitExceeded, "path_bytes"),
    refused("an entry below a file", layer(tb.member(b"honest/x")), InvalidInput, '"honest/x".*not a directory'),
    refused("an entry below a fifo", layer(tb.header(b"p", type=b"6"), tb.member(b"p/x")), InvalidInput, '"p/x"'),
    refused("a name that no one ended", layer(tb.gnu_long(b"")[:512]), Exception, "entry|ends|checksum"),
]


@pytest.mark.parametrize("given", REFUSED)
def test_a_name_is_refused(place: Place, given: Given) -> None:
    is_refused(place, given)


@case("absolute names", "below the root of the image", "CVE-2021-32804 (node-tar)")
def test_absolute_names(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b"/etc/passwd", b"1"), tb.member(b"///etc//shadow", b"2"))) as image:
        assert image.view.listdir("/etc") == ["passwd", "shadow"]
        assert image.view.read_bytes("/etc/passwd") == b"1"


@case(".. within the image", "folded, never followed", TARFILE)
def test_dots_within(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b"etc/../var/./x", b"1"), tb.directory(b"a/.."))) as image:
        assert image.view.read_bytes("/var/x") == b"1"


@case("names of control characters", "kept; printed without them to a terminal")
def test_control_characters(place: Place) -> None:
    names = [b"a\nb", b"\x1b[31mred", b"\r\x07", b"\x7f", "\u202e".encode()]
    with contained(place, tb.archive(*(tb.member(b"d/" + name, b"x") for name in names))) as image:
        assert sorted(name.encode() for name in image.view.listdir("/d")) == sorted(names)


@case("names that are no UTF-8", "kept byte for byte")
def test_bytes(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b"d/\xff\xfe", b"x"), tb.member(b"d/\xed\xa0\x80", b"y"))) as image:
        assert [name.encode("utf-8", "surrogateescape") for name in image.view.listdir("/d")] == [
            b"\xed\xa0\x80",
            b"\xff\xfe",
        ]


@case("the longest name and path", "taken")
def test_the_longest(place: Place) -> None:
    name = b"n" * 255
    with contained(place, pax_path(name), tb.archive(tb.pax({b"path": deep(2048)}), tb.member(b"x", b"1"))) as image:
        assert image.view.read_bytes(b"/" + name) == b"data"
        assert image.view.read_bytes(b"/" + deep(2048)) == b"1"


@case("a path twice", "the last one holds")
def test_duplicates(place: Place) -> None:
    parts = [tb.member(b"f", b"1"), tb.member(b"./f", b"2"), tb.directory(b"f"), tb.member(b"/f", b"3")]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.read_bytes("/f") == b"3"


@case("names that differ in case", "two files", "CVE-2021-37712 (node-tar)")
def test_case(place: Place) -> None:
    parts = [tb.symlink(b"LINK", b"/etc"), tb.directory(b"link"), tb.member(b"link/passwd", b"mine")]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.readlink("/LINK") == "/etc"
        assert image.view.read_bytes("/etc/passwd") == b"lower\n"
        assert image.view.read_bytes("/link/passwd") == b"mine"


@case("names of equal letters in other bytes", "two files", "CVE-2021-37712 (node-tar)")
def test_unicode(place: Place) -> None:
    one, other = (unicodedata.normalize(form, "caf\u00e9").encode() for form in ("NFC", "NFD"))
    parts = [tb.symlink(one, b"/etc"), tb.directory(other), tb.member(other + b"/passwd", b"mine")]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.read_bytes("/etc/passwd") == b"lower\n"


@case("backslashes", "letters of a name", "CVE-2021-37713 (node-tar)")
def test_backslashes(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b"..\\..\\x", b"1"))) as image:
        assert image.view.read_bytes("/..\\..\\x") == b"1"
