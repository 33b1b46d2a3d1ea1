"""Owners, modes, devices, times and extended attributes of entries."""

import os
import struct

import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Place, contained, is_refused, layer, refused

from layerstore.errors import CorruptError, InvalidInput, LimitExceeded

OVERLAY = "CVE-2023-2640 (overlayfs of Ubuntu)"


def xattr(name: bytes, value: bytes) -> bytes:
    return layer(tb.pax({b"SCHILY.xattr." + name: value}), tb.member(b"marked", b"x"))


def record(key: bytes, value: bytes) -> bytes:
    return layer(tb.pax({key: value}), tb.member(b"marked", b"x"))


REFUSED = [
    refused("an xattr without a name", xattr(b"", b"v"), InvalidInput, "no attribute name"),
    refused(
        "an xattr with a name of 256 bytes", xattr(b"user." + b"n" * 251, b"v"), LimitExceeded, '"marked".*255 bytes'
    ),
    refused("an xattr of 100 KB", xattr(b"user.x", b"v" * 100_000), LimitExceeded, '"marked".*64 KiB'),
    refused(
        "20,000 xattrs of one entry",
        layer(tb.pax([(b"SCHILY.xattr.user.%d" % i, b"v") for i in range(20_000)]), tb.member(b"marked")),
        LimitExceeded,
        '"marked".*64 KiB',
    ),
    refused(
        "an xattr of every entry",
        layer(tb.pax({b"SCHILY.xattr.user.x": b"v"}, type=b"g"), tb.member(b"marked")),
        InvalidInput,
        "global pax header.*user.x",
    ),
    refused("a user id below 0", layer(tb.header(b"marked", uid=-1)), InvalidInput, '"marked".*uid -1'),
    refused("a user id of 2^32", layer(tb.header(b"marked", uid=1 << 32)), InvalidInput, '"marked".*uid 4294967296'),
    refused("a group id below 0, pax", record(b"gid", b"-5"), InvalidInput, '"marked".*gid=-5'),
    refused("a user id of 2^70, pax", record(b"uid", b"%d" % (1 << 70)), InvalidInput, '"marked".*uid=118'),
    refused("a user id that is no number, pax", record(b"uid", b"0x0"), CorruptError, '"marked".*uid=0x0'),
    refused(
        "a user id that is no number", layer(tb.header(b"marked", uid=b"root")), CorruptError, '"marked".*uid.*root'
    ),
    refused("a mode that is no number", layer(tb.header(b"marked", mode=b"rwxrwx")), CorruptError, '"marked".*mode'),
    refused("a time that is no number", record(b"mtime", b"1e9"), CorruptError, '"marked".*mtime=1e9'),
    refused("a time of 2^70", record(b"mtime", b"%d" % (1 << 70)), InvalidInput, '"marked".*mtime'),
    refused("a time of two points", record(b"mtime", b"1.2.3"), CorruptError, '"marked".*mtime=1.2.3'),
    refused(
        "a device number that Linux has no room for",
        layer(tb.header(b"marked", type=b"3", device=(1 << 12, 1))),
        LimitExceeded,
        '"marked".*device',
    ),
    refused(
        "a device number of 2^40", layer(tb.header(b"marked", type=b"4", device=(1, 1 << 40))), InvalidInput, "marked"
    ),
    refused(
        "a device number below 0", layer(tb.header(b"marked", type=b"3", device=(-1, 0))), CorruptError, "devmajor"
    ),
    refused(
        "a device number that is none", layer(tb.header(b"marked", type=b"3", device=(b"x", 0))), CorruptError, "devm"
    ),
    refused("an entry of a made-up type", layer(tb.header(b"marked", type=b"Z")), InvalidInput, "type 'Z'"),
    refused("an entry of a type that is no letter", layer(tb.header(b"marked", type=b"\x1b")), InvalidInput, r"\\x1b"),
    refused("an entry of a multi-volume archive", layer(tb.header(b"marked", type=b"M")), InvalidInput, "type 'M'"),
]


@pytest.mark.parametrize("given", REFUSED)
def test_an_attribute_is_refused(place: Place, given: Given) -> None:
    is_refused(place, given)


CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 21, 0, 0, 0)
"""cap_sys_admin, of version 2; that of version 3 says for whose user namespace it is."""
CAPABILITY_OF_1000 = struct.pack("<IIIIII", 0x03000001, 1 << 21, 0, 0, 0, 1000)


@case("set-user-ID and capabilities", "attributes of the image's file, and of nothing else")
def test_privileges(place: Place) -> None:
    parts = [
        tb.header(b"su", mode=0o6755, uid=0),
        tb.pax({b"SCHILY.xattr.security.capability": CAPABILITY}),
        tb.member(b"cap", b"x"),
        tb.pax({b"SCHILY.xattr.security.capability": CAPABILITY_OF_1000}),
        tb.member(b"of", b"x"),
    ]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.stat("/su").st_mode & 0o7777 == 0o6755
        container = place.store.create(image, driver="extent")
        assert container.getxattr("/cap", "security.capability") == CAPABILITY
        assert container.getxattr("/of", "security.capability") == CAPABILITY_OF_1000
        assert container.listxattr("/su") == []


@pytest.mark.root
@pytest.mark.kernel
@case("capabilities for another user namespace", "shown as they are by a mount")
def test_a_capability_of_a_namespace(place: Place) -> None:
    parts = [tb.pax({b"SCHILY.xattr.security.capability": CAPABILITY_OF_1000}), tb.member(b"of", b"x")]
    with contained(place, tb.archive(*parts)) as image, place.store.create(image).mount() as root:
        assert os.getxattr(root / "of", "security.capability") == CAPABILITY_OF_1000


ATTRIBUTES = {
    b"trusted.overlay.opaque": b"y",
    b"trusted.overlay.redirect": b"/etc",
    b"trusted.overlay.metacopy": b"",
    b"trusted.overlay.origin": b"x" * 20,
    b"trusted.overlay.impure": b"y",
    b"trusted.overlay.overlay.opaque": b"y",
    b"user.overlay.opaque": b"y",
    b"user.overlay.redirect": b"/etc",
}


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=case(f"xattr {name.decode()} of a directory", "an attribute that does nothing", OVERLAY)
        )
        for name in ATTRIBUTES
    ],
)
def test_attributes_of_overlayfs_do_nothing(place: Place, name: bytes) -> None:
    value = ATTRIBUTES[name]
    marked = [tb.pax({b"SCHILY.xattr." + name: value}), tb.directory(b"etc"), tb.member(b"etc/new", b"new")]
    with contained(place, tb.archive(*marked)) as image:
        assert place.store.create(image, driver="extent").getxattr("/etc", name) == value
        container = place.store.create(image)
        with container.mount() as root:
            assert sorted(os.listdir(root / "etc")) == ["new", "passwd"]
            assert (root / "etc" / "passwd").read_text() == "lower\n"
            assert os.getxattr(root / "etc", name) == value
            (root / "etc" / "written").touch()
        assert [change.path for change in container.diff()] == ["/etc", "/etc/written"]


@case("a time before 1970 and one after 9999", "kept")
def test_times(place: Place) -> None:
    parts = [tb.pax({b"mtime": b"-1.5"}), tb.member(b"early"), tb.member(b"late", mtime=1 << 40)]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.stat("/early").st_mtime_ns == -1_500_000_000
        assert image.view.stat("/late").st_mtime == 1 << 40


@case("device nodes of the host's disks", "nodes of the image")
def test_devices(place: Place) -> None:
    with contained(place, tb.archive(tb.header(b"sda", type=b"4", device=(8, 0), mode=0o666))) as image:
        assert image.view.stat("/sda").st_rdev == os.makedev(8, 0)
