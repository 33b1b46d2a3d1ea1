"""Symbolic and hard links of layers."""

import io
import os
from pathlib import Path

import images
import pytest
import tarbytes as tb
from cases import case
from hostile import Given, Place, contained, is_refused, layer, raises, refused, ways

from layerstore.errors import InvalidInput, LimitExceeded

DOCKER = "CVE-2014-6407 (docker)"

REFUSED = [
    refused("a hard link to ../", layer(tb.hardlink(b"l", b"../../etc/shadow")), InvalidInput, '"l".*leaves', DOCKER),
    refused("a hard link to /..", layer(tb.hardlink(b"l", b"/../etc/shadow")), InvalidInput, '"l".*leaves', DOCKER),
    refused("a hard link to itself", layer(tb.hardlink(b"l", b"./l")), InvalidInput, '"l".*itself'),
    refused("a hard link to what is below itself", layer(tb.hardlink(b"l", b"l/x")), InvalidInput, '"l".*below itself'),
    refused("a hard link to a directory", layer(tb.directory(b"d"), tb.hardlink(b"l", b"d")), InvalidInput, '"l".*dir'),
    refused("a hard link to the root", layer(tb.hardlink(b"l", b"/")), InvalidInput, '"l".*root directory'),
    refused("a hard link to no name", layer(tb.hardlink(b"l", b"")), InvalidInput, '"l".*empty'),
    refused("a hard link below a file", layer(tb.hardlink(b"l", b"honest/x")), InvalidInput, '"l".*not a directory'),
    refused(
        "a hard link to a NUL", layer(tb.pax({b"linkpath": b"a\0b"}), tb.hardlink(b"l", b"a")), InvalidInput, '"l".*NUL'
    ),
    refused(
        "a hard link to a name of 300 bytes",
        layer(tb.pax({b"linkpath": b"t" * 300}), tb.hardlink(b"l", b"a")),
        LimitExceeded,
        '"l".*name_bytes',
    ),
    refused("a symlink to no name", layer(tb.symlink(b"l", b"")), InvalidInput, '"l".*empty'),
    refused(
        "a symlink to a NUL", layer(tb.pax({b"linkpath": b"a\0b"}), tb.symlink(b"l", b"a")), InvalidInput, '"l".*NUL'
    ),
    refused(
        "a symlink to 5,000 bytes",
        layer(tb.gnu_long(b"t" * 5000, type=b"K"), tb.symlink(b"l", b"a")),
        LimitExceeded,
        '"l".*path_bytes',
    ),
    refused(
        "a parent that is a loop",
        layer(tb.symlink(b"a", b"b"), tb.symlink(b"b", b"a"), tb.member(b"a/x")),
        LimitExceeded,
        '"a/x".*40 symbolic links',
    ),
    refused(
        "a parent that is a link to itself",
        layer(tb.symlink(b"a", b"a/a"), tb.member(b"a/x")),
        LimitExceeded,
        '"a/x".*symbolic links',
    ),
    refused(
        "a parent 50 links away",
        layer(*(tb.symlink(b"l%d" % i, b"l%d" % (i + 1)) for i in range(50)), tb.member(b"l0/x")),
        LimitExceeded,
        '"l0/x".*40 symbolic links',
    ),
    refused(
        "a parent that is a link to a file",
        layer(tb.symlink(b"a", b"honest"), tb.member(b"a/x")),
        InvalidInput,
        '"a/x".*not a directory',
    ),
    refused(
        "a path that grows over the limit by a link",
        layer(tb.pax({b"linkpath": b"d" + b"/ddddddddd" * 400}), tb.symlink(b"l", b"x"), tb.member(b"l/" + b"n" * 96)),
        LimitExceeded,
        '"l/nnn.*4096',
    ),
]


@pytest.mark.parametrize("given", REFUSED)
def test_a_link_is_refused(place: Place, given: Given) -> None:
    is_refused(place, given)


@pytest.mark.parametrize(
    "target",
    [
        pytest.param("/etc", marks=case("a parent that is a symlink to /", "followed inside the image", DOCKER)),
        pytest.param(
            "../../../../../etc", marks=case("a parent that is a symlink to ../../..", "followed inside", DOCKER)
        ),
        pytest.param("/proc/self/root/etc", marks=case("a parent that is a symlink into /proc", "followed inside")),
    ],
)
def test_a_symlinked_parent_of_the_same_layer(place: Place, target: str) -> None:
    with contained(place, tb.archive(tb.symlink(b"d", target.encode()), tb.member(b"d/passwd", b"mine"))) as image:
        inside = "/proc/self/root/etc/passwd" if "proc" in target else "/etc/passwd"
        assert image.view.read_bytes(inside) == b"mine"
        assert image.view.readlink("/d") == target


@case("a parent that is a symlink to the canary", "followed inside the image", DOCKER)
def test_a_symlink_to_what_is_beside_the_store(place: Place, outside: Path) -> None:
    parts = [tb.symlink(b"d", os.fsencode(outside)[:99]), tb.member(b"d/etc/passwd", b"mine")]
    if len(os.fsencode(outside)) > 99:
        parts.insert(0, tb.pax({b"linkpath": os.fsencode(outside)}))
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.read_bytes(f"{outside}/etc/passwd") == b"mine"


@case("a parent that is a symlink in a lower layer", "a directory takes its place", "CVE-2021-32803 (node-tar)")
def test_a_symlinked_parent_of_a_lower_layer(place: Place) -> None:
    lower = tb.archive(tb.symlink(b"d", b"/etc"))
    with contained(place, lower, tb.archive(tb.member(b"d/passwd", b"mine"))) as image:
        assert image.view.read_bytes("/etc/passwd") == b"lower\n"
        assert image.view.read_bytes("/d/passwd") == b"mine"


@case(
    "a directory, then a symlink of its name, then an entry", "the link is followed inside", "CVE-2021-32803 (node-tar)"
)
def test_a_directory_that_becomes_a_link(place: Place) -> None:
    parts = [tb.directory(b"d"), tb.member(b"d/x", b"1"), tb.symlink(b"d", b"/etc"), tb.member(b"d/passwd", b"mine")]
    with contained(place, tb.archive(*parts)) as image:
        assert image.view.read_bytes("/etc/passwd") == b"mine"
        assert not image.view.exists("/etc/x")


@case("a hard link through a symlinked parent", "leads inside the image", DOCKER)
def test_a_hard_link_through_a_symlink(place: Place) -> None:
    with contained(place, tb.archive(tb.symlink(b"d", b"/etc"), tb.hardlink(b"l", b"d/passwd"))) as image:
        assert image.view.read_bytes("/l") == b"lower\n"


NOWHERE = '"l".*is a hard link to "etc/passwd", and the layers below it show no file there'
TO_PASSWD = tb.archive(tb.hardlink(b"l", b"etc/passwd"))


@case("a hard link to nothing", "refused", DOCKER)
def test_a_hard_link_to_nothing(place: Place) -> None:
    is_refused(place, (TO_PASSWD, InvalidInput, NOWHERE))
    with place.untouched():
        for _, attempt in ways(place, tb.archive(tb.hardlink(b"l", b"no/where")), base=True):
            raises(attempt, InvalidInput, '"l".*of layer 1.*"no/where"')


@pytest.mark.parametrize(
    "layers",
    [
        pytest.param(
            [tb.archive(tb.member(b"etc/.wh.passwd")), TO_PASSWD],
            marks=case("a hard link to what a layer between has hidden", "refused"),
        ),
        pytest.param(
            [tb.archive(tb.directory(b"etc"), tb.member(b"etc/.wh..wh..opq")), TO_PASSWD],
            marks=case("a hard link into a directory that is opaque", "refused"),
        ),
        pytest.param(
            [tb.archive(tb.member(b"etc")), TO_PASSWD],
            marks=case("a hard link into a directory that is a file now", "refused"),
        ),
        pytest.param(
            [tb.archive(tb.hardlink(b"l", b"etc/passwd"), tb.member(b".wh.etc"), tb.directory(b"etc/passwd"))],
            marks=case("a hard link to what is a directory later", "taken for the file of the layer below"),
        ),
        pytest.param(
            [tb.archive(tb.member(b".wh.etc")), TO_PASSWD, tb.archive(tb.member(b".wh.l"))],
            marks=case("a hard link to nothing that a layer above hides", "refused"),
        ),
        pytest.param(
            [tb.archive(tb.hardlink(b"l", b"new"), tb.member(b"new"))],
            marks=case("a hard link to what comes after it", "refused"),
        ),
    ],
    ids=["whiteout", "opaque", "file", "later directory", "hidden", "later"],
)
def test_a_hard_link_to_what_is_not_shown(place: Place, layers: list[bytes], request: pytest.FixtureRequest) -> None:
    image = images.Image([*place.base.layers, *layers], ["hostile:1"])
    archive = images.tar_of(images.docker_files([image]))
    if "later directory" in request.node.name:
        with contained(place, *layers) as loaded:
            assert loaded.view.read_bytes("/l") == b"lower\n"
        return
    place.refuses(lambda: place.store.load(io.BytesIO(archive)), InvalidInput, '"l".*is a hard link to')


@case("a layer with a hard link, upon another base", "refused where the base has no such file")
def test_a_stored_layer_upon_another_base(place: Place) -> None:
    with contained(place, TO_PASSWD) as image:
        assert image.view.read_bytes("/l") == b"lower\n"
        other = images.Image([tb.archive(tb.directory(b"etc")), TO_PASSWD], ["other:1"])
        archive = images.tar_of(images.docker_files([other]))
        place.changed()
        place.refuses(lambda: place.store.load(io.BytesIO(archive)), InvalidInput, NOWHERE)
        upon = images.Image([*place.base.layers, TO_PASSWD, tb.archive(tb.member(b"f"))], ["upon:1"])
        place.store.load(io.BytesIO(images.tar_of(images.docker_files([upon]))))
        place.drop("upon:1")


@case("a hard link to nothing that is stored already", "told by name when the image is looked into")
@pytest.mark.usefixtures("unchecked_links")
def test_a_stored_hard_link_to_nothing(place: Place) -> None:
    with contained(place, tb.archive(tb.hardlink(b"l", b"no/where"))) as image:
        with pytest.raises(InvalidInput, match="no/where"):
            image.view.listdir("/")
        with pytest.raises(InvalidInput, match="no/where"):
            place.store.create(image)


@case("a hard link to a symlink", "is a name of the symlink")
def test_a_hard_link_to_a_symlink(place: Place) -> None:
    with contained(place, tb.archive(tb.symlink(b"s", b"/etc/passwd"), tb.hardlink(b"l", b"s"))) as image:
        assert image.view.readlink("/l") == "/etc/passwd"


@case("a link that is written through", "the link is replaced, not followed", DOCKER)
def test_an_entry_over_a_link(place: Place) -> None:
    with contained(place, tb.archive(tb.symlink(b"f", b"/etc/passwd"), tb.member(b"f", b"mine"))) as image:
        assert image.view.read_bytes("/f") == b"mine"
        assert image.view.read_bytes("/etc/passwd") == b"lower\n"


@pytest.mark.root
@pytest.mark.kernel
@case("links out of the image, mounted and copied out", "lead inside the image", "CVE-2018-15664 (docker)")
def test_links_of_a_container(place: Place, tmp_path: Path, outside: Path) -> None:
    target = os.fsencode(outside)
    parts = [tb.pax({b"linkpath": target}), tb.symlink(b"d", b"x"), tb.symlink(b"e", b"../../../../../../etc")]
    with contained(place, tb.archive(*parts)) as image:
        container = place.store.create(image)
        with pytest.raises(FileNotFoundError):
            container.copy_out("/d/etc/passwd", tmp_path / "out")
        container.copy_out("/e/passwd", tmp_path / "out")
        assert (tmp_path / "out").read_text() == "lower\n"
        (tmp_path / "in").write_text("in\n")
        container.copy_in(tmp_path / "in", "/e/passwd")
        assert (outside / "etc" / "passwd").read_text().startswith("canary")
