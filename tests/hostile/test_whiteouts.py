"""Whiteouts and opaque markers of layers."""

from pathlib import Path

import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Place, contained, is_refused, layer, refused

from layerstore.errors import InvalidInput, LimitExceeded

REFUSED = [
    refused("a whiteout of .", layer(tb.member(b"d/.wh..")), InvalidInput, r'"d/\.wh\.\.".*no name'),
    refused("a whiteout of ..", layer(tb.member(b"d/.wh...")), InvalidInput, r'"d/\.wh\.\.\.".*no name'),
    refused("a whiteout of nothing", layer(tb.member(b"d/.wh.")), InvalidInput, r'"d/\.wh\.".*no name'),
    refused("a whiteout outside", layer(tb.member(b"../.wh.etc")), InvalidInput, "leaves the root"),
    refused("a whiteout below a file", layer(tb.member(b"honest/.wh.x")), InvalidInput, '"honest/.wh.x".*not a dir'),
    refused("an opaque marker outside", layer(tb.member(b"../.wh..wh..opq")), InvalidInput, "leaves the root"),
    refused("an opaque marker below a file", layer(tb.member(b"honest/.wh..wh..opq")), InvalidInput, "not a directory"),
    refused("a file in a whiteout", layer(tb.member(b".wh.d/x")), InvalidInput, r'"\.wh\.d/x".*kept for whiteouts'),
    refused(
        "a whiteout of 256 bytes", layer(tb.gnu_long(b".wh." + b"n" * 256), tb.member(b"x")), LimitExceeded, "name"
    ),
    refused(
        "an opaque marker below a loop of links",
        layer(tb.symlink(b"a", b"b"), tb.symlink(b"b", b"a"), tb.member(b"a/.wh..wh..opq")),
        LimitExceeded,
        "40 symbolic links",
    ),
]


@pytest.mark.parametrize("given", REFUSED)
def test_a_whiteout_is_refused(place: Place, given: Given) -> None:
    is_refused(place, given)


@case("a whiteout below a symlink to /etc", "hides what the image has there", "CVE-2014-6407 (docker)")
def test_a_whiteout_below_a_symlink(place: Place, outside: Path) -> None:
    with contained(place, tb.archive(tb.symlink(b"d", b"/etc"), tb.member(b"d/.wh.passwd"))) as image:
        assert not image.view.exists("/etc/passwd")
    assert (outside / "etc" / "passwd").exists()


@case("an opaque marker below a symlink to /etc", "empties what the image has there", "CVE-2014-6407 (docker)")
def test_an_opaque_marker_below_a_symlink(place: Place) -> None:
    with contained(place, tb.archive(tb.symlink(b"d", b"/etc"), tb.member(b"d/.wh..wh..opq"))) as image:
        assert image.view.listdir("/etc") == []


@case("a whiteout below a symlink of a lower layer", "hides nothing elsewhere")
def test_a_whiteout_below_a_lower_symlink(place: Place) -> None:
    with contained(place, tb.archive(tb.symlink(b"d", b"/etc")), tb.archive(tb.member(b"d/.wh.passwd"))) as image:
        assert image.view.read_bytes("/etc/passwd") == b"lower\n"


@case("an opaque root", "the lower layers are hidden")
def test_an_opaque_root(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b".wh..wh..opq"), tb.member(b"x"))) as image:
        assert image.view.listdir("/") == ["x"]


@case("a whiteout and an entry of one name", "the entry stays")
def test_a_whiteout_and_an_entry(place: Place) -> None:
    with contained(place, tb.archive(tb.member(b"etc/.wh.passwd"), tb.member(b"etc/passwd", b"mine"))) as image:
        assert image.view.read_bytes("/etc/passwd") == b"mine"


@case("names of AUFS's own", "dropped with what is below them")
def test_aufs(place: Place) -> None:
    parts = [tb.member(b".wh..wh.aufs", b"x"), tb.directory(b".wh..wh.plnk"), tb.member(b".wh..wh.plnk/1.2", b"x")]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.listdir("/") == ["etc"]


@pytest.mark.root
@pytest.mark.kernel
@case("a character device 0:0", "a device to readers, and no whiteout of what is below")
def test_a_device_that_overlayfs_takes_for_a_whiteout(place: Place) -> None:
    device = tb.header(b"etc/new", type=b"3", device=(0, 0))
    with contained(place, tb.archive(device)) as image:
        assert image.view.stat("/etc/new").st_rdev == 0
        container = place.store.create(image)
        with container.mount() as root:
            assert (root / "etc" / "passwd").read_text() == "lower\n"
        assert container.diff() == []
