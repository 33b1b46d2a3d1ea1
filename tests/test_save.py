"""Saving images: what comes out is what came in, in every form; where it goes; and that nothing half is left."""

import contextlib
import errno
import fcntl
import io
import json
import os
import pty
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import images
import oci_rules
import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_cli import Cli
from test_load import TARS, Pipe, check_loaded, child, layer, many_files
from waiting import wait_for

from layerstore import Progress, Store
from layerstore._core.hashing import blake3
from layerstore.errors import CorruptError, InvalidInput, NotFound
from layerstore.layers import blobs, saving, targets
from layerstore.layers.index_files import open_layer_index
from layerstore.layers.recipe import tar_bytes
from layerstore.store.zstd import recipe_compressor, zstd

SHARED = layer(0)
APP = Image([SHARED, layer(1)], ["example.org:5000/team/app:1"])
OTHER = Image([SHARED, layer(2), write_tar([])], ["other:latest", "other:2"])
EVERY = [(form, how) for form in saving.FORMATS for how in blobs.COMPRESSIONS]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        load(opened, APP, OTHER)
        yield opened


def load(store: Store, *made: Image) -> None:
    store.load(Pipe(tar_of(docker_files(made)), 1 << 20))  # type: ignore[arg-type]


def members(path: Path) -> dict[str, bytes]:
    """The files of an archive or directory."""
    if path.is_dir():
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with tarfile.open(path, "r:") as archive:
        found = {m.name: archive.extractfile(m) for m in archive}
        assert len(found) == len(archive.getmembers()), "a name twice"
        return {name: file.read() for name, file in found.items() if file is not None}


def left(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


# -- what comes out ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "compression"), EVERY)
class TestRoundTrip:
    def test_another_store_has_the_same(self, store: Store, tmp_path: Path, form: Any, compression: Any) -> None:
        store.save([*APP.names, *OTHER.names], tmp_path / "out", format=form, compression=compression)
        with Store(tmp_path / "second", create=True) as second:
            loaded = second.load(tmp_path / "out")
            assert {image.id for image in loaded} == {APP.id, OTHER.id}
            for image in (APP, OTHER):
                check_loaded(second, image)
                assert second.image(image.id).names == sorted(image.names)

    def test_it_is_all_stored_here(self, store: Store, tmp_path: Path, form: Any, compression: Any) -> None:
        """But for manifests, which an OCI layout has."""
        before, _ = images.store_state(store.root)
        store.save(APP.names, tmp_path / "out", format=form, compression=compression)
        assert images.store_state(store.root)[0] == before
        store.load(tmp_path / "out")
        after, _ = images.store_state(store.root)
        new = after.keys() - before.keys()
        assert all(path.startswith("blobs/sha256/") for path in new)
        assert len(new) == (0 if form == "docker-archive" else 1)

    def test_the_specifications_rules(self, store: Store, tmp_path: Path, form: Any, compression: Any) -> None:
        store.save([APP.id, *OTHER.names], tmp_path / "out", format=form, compression=compression)
        files = members(tmp_path / "out")
        docker = {name: files.pop(name) for name in ("manifest.json", "repositories") if name in files}
        assert bool(docker) == (form == "docker-archive")
        descriptors = oci_rules.check(files)
        assert [descriptor.get("annotations") for descriptor in descriptors] == [
            None,
            {
                "io.containerd.image.name": "docker.io/library/other:latest",
                "org.opencontainers.image.ref.name": "latest",
            },
            {"io.containerd.image.name": "docker.io/library/other:2", "org.opencontainers.image.ref.name": "2"},
        ]
        assert {d["platform"]["architecture"] for d in descriptors} == {"amd64"}
        assert {f"blobs/sha256/{image.id[7:]}" for image in (APP, OTHER)} <= files.keys()
        # Three layers of their own, the shared one once; two configs, two manifests.
        assert len([name for name in files if name.startswith("blobs/")]) == 4 + 2 + 2

    def test_equal_images_are_equal_bytes(self, store: Store, tmp_path: Path, form: Any, compression: Any) -> None:
        """From another store, and where it was loaded otherwise."""
        with Store(tmp_path / "second", create=True) as second:
            second.load(io.BytesIO(tar_of(docker_files([OTHER], "20.10", "gzip"))))
            second.load(io.BytesIO(tar_of(docker_files([APP]))))
            for number, one in enumerate((store, store, second)):
                one.save([*OTHER.names, *APP.names], tmp_path / str(number), format=form, compression=compression)
        assert members(tmp_path / "0") == members(tmp_path / "1") == members(tmp_path / "2")
        if form != "oci":
            assert (tmp_path / "0").read_bytes() == (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_a_stream_has_the_bytes_of_a_file(self, store: Store, tmp_path: Path, form: Any, compression: Any) -> None:
        if form == "oci":
            with pytest.raises(InvalidInput, match="directory, not a stream"):
                store.save(APP.names, io.BytesIO(), format=form)
            return
        store.save(APP.names, tmp_path / "out", format=form, compression=compression)
        stream = io.BytesIO()
        store.save(APP.names, stream, format=form, compression=compression)
        assert stream.getvalue() == (tmp_path / "out").read_bytes()
        few = Few()
        store.save(APP.names, few, format=form, compression=compression)  # type: ignore[arg-type]
        assert few.data == stream.getvalue()
        assert list((store.root / "staging").iterdir()) == []


class Few:
    """Takes what it likes of what it is given, as a socket may."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> int:
        self.data += bytes(data[:65_000])
        return min(len(data), 65_000)

    def flush(self) -> None:
        pass


@pytest.mark.parametrize("case", TARS)
def test_every_kind_of_tar_comes_out(tmp_path: Path, case: str) -> None:
    image = Image([TARS[case]], ["one:1"])
    with Store(tmp_path / "store", create=True) as store:
        load(store, image)
        (diff_id,) = store.image("one:1").diff_ids
        recipe = store.layout.layer_recipe(diff_id)
        assert tar_bytes(recipe, open_layer_index(store.layout.layer_index(diff_id), diff_id)) == len(TARS[case])
        store.save("one:1", tmp_path / "out", format="oci")
        assert (tmp_path / "out/blobs/sha256" / diff_id[7:]).read_bytes() == TARS[case]


def test_an_archive_as_a_tar(store: Store, tmp_path: Path) -> None:
    """Every block is accounted for, and nothing tells who wrote it or when."""
    store.save(APP.names, tmp_path / "out")
    with tarfile.open(tmp_path / "out", "r:") as archive:
        found = archive.getmembers()
    assert [(m.name, m.type) for m in found[:3]] == [
        ("blobs", tarfile.DIRTYPE),
        ("blobs/sha256", tarfile.DIRTYPE),
        ("oci-layout", tarfile.REGTYPE),
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in found} == {(0, 0, 0, "", "")}
    assert {m.mode for m in found} == {0o755, 0o644}
    end = found[-1].offset_data + -(-found[-1].size // 512) * 512
    assert (tmp_path / "out").read_bytes()[end:] == bytes(1024)


def test_what_docker_reads(store: Store, tmp_path: Path) -> None:
    store.save([APP.id[7:19], "other", "other:2"], tmp_path / "out")
    files = members(tmp_path / "out")
    layers = [f"blobs/sha256/{diff_id[7:]}" for diff_id in OTHER.diff_ids]
    assert json.loads(files["manifest.json"]) == [
        {
            "Config": f"blobs/sha256/{APP.id[7:]}",
            "RepoTags": None,
            "Layers": [layers[0], f"blobs/sha256/{APP.diff_ids[1][7:]}"],
        },
        {"Config": f"blobs/sha256/{OTHER.id[7:]}", "RepoTags": ["other:latest", "other:2"], "Layers": layers},
    ]
    top = OTHER.diff_ids[-1][7:]
    assert json.loads(files["repositories"]) == {"other": {"latest": top, "2": top}}
    store.save(APP.id, tmp_path / "out")
    assert "repositories" not in members(tmp_path / "out")


def test_a_size_that_octal_digits_do_not_hold() -> None:
    for size in (8 << 30, (8 << 30) - 1, 5_000_000_000_000):
        header = targets._header("blobs/sha256/" + 64 * "a", size)
        assert len(header) == 512
        assert tarfile.TarInfo.frombuf(header, "utf-8", "strict").size == size


# -- names ------------------------------------------------------------------------------------------------------------


def names_in(path: Path) -> list[list[str] | None]:
    return [entry["RepoTags"] for entry in json.loads(members(path)["manifest.json"])]


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (["other"], [["other:latest"]]),
        (["docker.io/library/other:2"], [["other:2"]]),
        (["other:2", "other:2", OTHER.id, "other"], [["other:2", "other:latest"]]),
        ([OTHER.id], [None]),
        ([OTHER.id[7:], APP.id[:20]], [None, None]),
        (["other", APP.names[0]], [["other:latest"], APP.names]),
    ],
)
def test_names_are_those_that_were_given(
    store: Store, tmp_path: Path, given: Sequence[str], names: list[list[str] | None]
) -> None:
    store.save(given, tmp_path / "out")
    assert names_in(tmp_path / "out") == names


def test_an_image_object_has_all_its_names(store: Store, tmp_path: Path) -> None:
    store.save(store.image("other:2"), tmp_path / "out")
    assert names_in(tmp_path / "out") == [["other:2", "other:latest"]]
    store.save(store.images(), tmp_path / "out")
    assert sorted(map(str, names_in(tmp_path / "out"))) == [
        str(["example.org:5000/team/app:1"]),
        str(sorted(OTHER.names)),
    ]


def test_a_tag_that_two_images_have_names_neither(store: Store, tmp_path: Path) -> None:
    """skopeo and umoci find an image in a layout by this annotation."""
    store.tag(APP.id, "team/app:2")
    store.save(["team/app:2", "other:2", "other"], tmp_path / "out", format="oci")
    found = [d["annotations"] for d in oci_rules.check(members(tmp_path / "out"))]
    assert [each["org.opencontainers.image.ref.name"] for each in found] == ["team/app:2", "other:2", "latest"]
    assert found[0]["io.containerd.image.name"] == "docker.io/team/app:2"


def test_an_image_without_layers_or_platform(tmp_path: Path) -> None:
    scratch = Image([], ["scratch:1"])
    nowhere = Image([SHARED], ["nowhere:1"], document={"os": ""})
    with Store(tmp_path / "store", create=True) as store, Store(tmp_path / "second", create=True) as second:
        load(store, scratch, nowhere)
        for form in saving.FORMATS:
            store.save(["scratch:1", "nowhere:1"], tmp_path / form, format=form)  # type: ignore[arg-type]
            assert {one.id for one in second.load(tmp_path / form)} == {scratch.id, nowhere.id}
        index = json.loads(members(tmp_path / "oci")["index.json"])
        assert ["platform" in descriptor for descriptor in index["manifests"]] == [True, False]


# -- where it goes ----------------------------------------------------------------------------------------------------


def test_a_file_that_is_there_is_replaced(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "real").write_bytes(b"old")
    (place / "link").symlink_to("real")
    store.save("other", place / "link")
    assert left(place) == ["link", "real"]
    assert (place / "link").is_symlink()
    assert names_in(place / "real") == [["other:latest"]]
    assert (place / "real").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("form", saving.FORMATS)
def test_what_replaces_another_has_its_mode_and_owner(store: Store, tmp_path: Path, form: Any) -> None:
    place = tmp_path / "place"
    place.mkdir() if form == "oci" else place.touch()
    place.chmod(0o700 if form == "oci" else 0o600)
    owner = (1234, 4321) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    os.chown(place, *owner)
    before = place.stat()
    store.save("other", place, format=form)
    after = place.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, *owner)


@pytest.mark.parametrize("form", saving.FORMATS)
@pytest.mark.parametrize("name", ["x" * 255, "\N{GRINNING FACE}" * 63], ids=["255 letters", "252 bytes"])
def test_a_long_name(store: Store, tmp_path: Path, form: Any, name: str) -> None:
    for _ in range(1 if form == "oci" else 2):
        store.save("other", tmp_path / name, format=form)
    assert "index.json" in members(tmp_path / name)
    assert left(tmp_path) == sorted([name, "store"])


def test_a_relative_path(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for form in saving.FORMATS:
        store.save("other", f"out-{form}", format=form)  # type: ignore[arg-type]
        assert "index.json" in members(tmp_path / f"out-{form}")


def test_a_directory_has_to_be_empty(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "layout"
    place.mkdir()
    store.save("other", place, format="oci")
    before = members(place)
    with pytest.raises(InvalidInput, match="layout is not empty; empty it, or give a directory that is not there yet"):
        store.save(APP.names, place, format="oci")
    with pytest.raises(InvalidInput, match="layout is a directory; give a file, or save in format oci"):
        store.save(APP.names, place)
    assert members(place) == before
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match="file is no directory"):
        store.save("other", tmp_path / "file", format="oci")
    assert left(tmp_path) == ["file", "layout", "store"]


@pytest.mark.root
def test_a_mount_point_is_refused(store: Store, tmp_path: Path) -> None:
    place = tmp_path / "mounted"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    try:
        with pytest.raises(
            InvalidInput, match="mounted is a mount point, which cannot be replaced; give a directory in"
        ):
            store.save("other", place, format="oci")
        store.save("other", place / "in", format="oci")
    finally:
        subprocess.run(["umount", place], check=True)


def test_a_pipe_by_its_name(store: Store, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with open(tmp_path / "copy", "wb") as copy, subprocess.Popen(["cat", tmp_path / "pipe"], stdout=copy) as cat:
        store.save("other", tmp_path / "pipe", compression="gzip")
        assert cat.wait(60) == 0
    store.save("other", tmp_path / "out", compression="gzip")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "out").read_bytes()
    assert (tmp_path / "pipe").is_fifo()


def test_what_cannot_be_written_to(store: Store, tmp_path: Path) -> None:
    for form in saving.FORMATS:
        with pytest.raises(FileNotFoundError) as missing:
            store.save("other", tmp_path / "nowhere/out", format=form)  # type: ignore[arg-type]
        assert missing.value.filename == str(tmp_path / "nowhere")
    with pytest.raises(OSError) as full:
        store.save("other", "/dev/full")
    assert (full.value.errno, full.value.filename) == (errno.ENOSPC, "/dev/full")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"format": "tar"}, "no format 'tar'; it is one of docker-archive, oci-archive, oci"),
        ({"compression": "xz"}, "no compression 'xz'; it is one of none, gzip, zstd"),
    ],
)
def test_what_there_is_not(store: Store, tmp_path: Path, wrong: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        store.save("other", tmp_path / "out", **wrong)
    with pytest.raises(NotFound, match="no image 'nothing'"):
        store.save(["other", "nothing"], tmp_path / "out", format="oci")
    with pytest.raises(InvalidInput, match="no image was given"):
        store.save([], tmp_path / "out")
    assert left(tmp_path) == ["store"]


# -- what goes wrong --------------------------------------------------------------------------------------------------


def overwrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.chmod(0o600)
    path.write_bytes(change(path.read_bytes()))


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def reframed(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """What is in a recipe changed, and compressed again."""

    def changed(data: bytes) -> bytes:
        compressor = recipe_compressor()
        return compressor.compress(change(zstd.decompress(data))) + compressor.flush()

    return changed


def only(store: Store, pattern: str) -> Path:
    """The one file of the layer that APP alone has."""
    return next(iter((store.root / "layers").glob(f"{APP.diff_ids[1][7:]}.{pattern}")))


DAMAGE: dict[str, Callable[[Store], None]] = {
    "a content in a pack": lambda s: overwrite(
        next((s.root / "packs").glob("*.pack")), lambda d: d.replace(b"small 1", b"small 8")
    ),
    "an object": lambda s: overwrite(next((s.root / "objects").glob("*/*")), lambda d: flipped(d, 150_000)),
    "an object cut short": lambda s: overwrite(next((s.root / "objects").glob("*/*")), lambda d: d[:150_000]),
    "an object missing": lambda s: next((s.root / "objects").glob("*/*")).unlink(),
    "a recipe's bytes": lambda s: overwrite(only(s, "recipe"), lambda d: flipped(d, len(d) // 2)),
    "a recipe cut short": lambda s: overwrite(only(s, "recipe"), lambda d: d[: len(d) // 2]),
    "a recipe's frames cut short": lambda s: overwrite(only(s, "recipe"), reframed(lambda d: d[:100])),
    "a frame's kind": lambda s: overwrite(only(s, "recipe"), reframed(lambda d: d + b"\7")),
    "a content too many": lambda s: overwrite(only(s, "recipe"), reframed(lambda d: d + b"\1")),
    "a range too far": lambda s: overwrite(
        only(s, "recipe"), reframed(lambda d: d[: d.rindex(b"\1")] + b"\2\1\0\0\0" + b"\xff" * 16 + d[-1024:])
    ),
    "a header": lambda s: overwrite(only(s, "recipe"), reframed(lambda d: flipped(d, 10))),
    "a recipe longer": lambda s: overwrite(only(s, "recipe"), reframed(lambda d: d + b"\0\1\0\0\0x")),
    "a recipe missing": lambda s: only(s, "recipe").unlink(),
    "a digest in an index": lambda s: overwrite(only(s, "index"), lambda d: flipped(d, d.index(blake3(b"small 1")))),
    "an index missing": lambda s: only(s, "index").unlink(),
    "the config": lambda s: overwrite(s.root / "blobs/sha256" / APP.id[7:], lambda d: flipped(d, 20)),
    "the config missing": lambda s: (s.root / "blobs/sha256" / APP.id[7:]).unlink(),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
def test_damage_in_the_store_is_told_and_nothing_is_left(
    store: Store, tmp_path: Path, what: str, compression: Any
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "old").write_bytes(b"old")
    DAMAGE[what](store)
    for form in saving.FORMATS:
        for name in ("new", "old"):
            if (form, name) != ("oci", "old"):
                with pytest.raises(CorruptError, match="load the image again"):
                    store.save(APP.names, place / name, format=form, compression=compression)  # type: ignore[arg-type]
    with pytest.raises(CorruptError):
        store.save(APP.names, io.BytesIO(), compression=compression)
    assert left(place) == ["old"]
    assert (place / "old").read_bytes() == b"old"
    assert list((store.root / "staging").iterdir()) == []


@pytest.mark.root
@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
@pytest.mark.parametrize("form", saving.FORMATS)
def test_a_full_disk(tmp_path: Path, form: Any, compression: Any) -> None:
    image = Image([write_tar([Entry("file", "f", data=random.Random(1).randbytes(3 << 20))])], ["large:1"])
    place = tmp_path / "small"
    place.mkdir()
    with Store(tmp_path / "store", create=True) as store:
        load(store, image)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", place], check=True)
        try:
            with pytest.raises(OSError) as full:
                store.save("large:1", place / "out", format=form, compression=compression)
            assert full.value.errno == errno.ENOSPC
            assert full.value.filename.startswith(str(place))
            assert left(place) == []
        finally:
            subprocess.run(["umount", place], check=True)


@pytest.mark.root
def test_a_store_that_is_full(tmp_path: Path, store: Store) -> None:
    """A compressed layer on its way to a stream is in the store's staging directory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", store.root / "staging"], check=True)
    try:
        store.save(APP.names, io.BytesIO())
        store.save(APP.names, tmp_path / "out", compression="gzip")
        with pytest.raises(OSError) as full:
            store.save(APP.names, io.BytesIO(), compression="gzip")
        assert (full.value.errno, full.value.filename) == (errno.ENOSPC, str(store.root / "staging"))
    finally:
        subprocess.run(["umount", store.root / "staging"], check=True)


SAVE = """
    import sys
    from layerstore import Store
    with Store(sys.argv[1]) as store:
        store.save("many:1", sys.argv[2] if sys.argv[2] != "-" else sys.stdout.buffer,
                   format=sys.argv[3], compression=sys.argv[4])
"""


@pytest.mark.parametrize(("form", "compression"), EVERY)
def test_a_killed_save_leaves_what_was_there(tmp_path: Path, form: str, compression: str) -> None:
    place = tmp_path / "place"
    place.mkdir()
    if form != "oci":
        (place / "out").write_bytes(b"old")
    with Store(tmp_path / "store", create=True) as store:
        load(store, many_files(1))
    begun = 0
    draw = random.Random(form + compression)
    for _ in range(6):
        with child(SAVE, tmp_path / "store", place / "out", form, compression) as process:
            wait_for(lambda: len(left(place)) > (form != "oci") or process.poll() is not None, 60, 0.001)
            time.sleep(draw.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        assert len(left(place)) <= 1 + (form != "oci"), "what the one before left is there yet"
        if process.returncode == -signal.SIGKILL:
            begun += 1
            if form != "oci":
                assert (place / "out").read_bytes() == b"old"
            else:
                assert not (place / "out").exists()
            continue
        with contextlib.suppress(IsADirectoryError):
            (place / "out").write_bytes(b"old")
        if form == "oci":
            subprocess.run(["rm", "-r", place / "out"], check=True)
    assert begun, "none was killed while it wrote"
    with Store(tmp_path / "store") as store, Store(tmp_path / "second", create=True) as second:
        store.save("many:1", place / "out", format=form, compression=compression)  # type: ignore[arg-type]
        second.load(place / "out")
        check_loaded(second, many_files(1))
    assert left(place) == ["out"]


def test_a_save_beside_one_to_the_same_place(store: Store, tmp_path: Path) -> None:
    """What the other one is writing is not taken for what a killed one has left."""
    place = tmp_path / "place"
    place.mkdir()

    def another(_: object) -> None:
        if len(left(place)) == 1:
            with Store(store.root) as other:
                other.save(APP.names, place / "out")

    store.save(APP.names, place / "out", progress=another)
    assert left(place) == ["out"]


def test_an_exception_of_the_callback_ends_it(store: Store, tmp_path: Path) -> None:
    def stop(_: object) -> None:
        raise RuntimeError("enough")

    for form in saving.FORMATS:
        with pytest.raises(RuntimeError, match="enough"):
            store.save(APP.names, tmp_path / "out", format=form, progress=stop)  # type: ignore[arg-type]
    assert left(tmp_path) == ["store"]


def test_a_failing_stream_ends_it(store: Store) -> None:
    class Failing(Few):
        def write(self, data: bytes) -> int:
            if len(self.data) > 100_000:
                raise ConnectionResetError(errno.ECONNRESET, "gone")
            return super().write(data)

    with pytest.raises(ConnectionResetError):
        store.save(APP.names, Failing())  # type: ignore[arg-type]


def test_threads_leave_nothing_open(tmp_path: Path) -> None:
    """Each of the 40 layers is read in a thread, which has the connection of one that has ended."""
    tars = [write_tar([Entry("file", f"f{i}", data=random.Random(i).randbytes(200_000))]) for i in range(40)]
    with Store(tmp_path / "store", create=True) as store:
        load(store, Image(tars, ["many:1"]))
        store.save("many:1", io.BytesIO())
        before = os.listdir("/proc/self/fd")
        store.save("many:1", io.BytesIO())
        assert len(os.listdir("/proc/self/fd")) < len(before) + 40


def test_garbage_waits_for_a_save(store: Store) -> None:
    class Watching(Few):
        held = False

        def write(self, data: bytes) -> int:
            with open(store.layout.garbage_lock) as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                raise AssertionError("a collection could take away what is saved")
            return super().write(data)

    store.save(APP.names, Watching())  # type: ignore[arg-type]


def test_progress(store: Store) -> None:
    told: list[Progress] = []
    store.save([*APP.names, *OTHER.names], io.BytesIO(), progress=told.append, compression="gzip")
    sizes = {images.digest_of(t): len(t) for t in (*APP.layers, *OTHER.layers)}
    assert {(p.stage, p.what, p.total_bytes) for p in told} == {("save", d, size) for d, size in sizes.items()}
    assert {p.what: p.done_bytes for p in told} == sizes


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(store: Store) -> Cli:
    return Cli(store.root)


def run(cli: Cli, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "layerstore", "save", *map(str, arguments)]
    return subprocess.run(command, env=cli.environment, **options)


def test_the_command(cli: Cli, store: Store, tmp_path: Path) -> None:
    assert cli("save", "-o", tmp_path / "out", "other", APP.id) == ""
    store.save(["other", APP.id], tmp_path / "wanted")
    assert (tmp_path / "out").read_bytes() == (tmp_path / "wanted").read_bytes()
    piped = run(cli, "--format", "oci-archive", "--compression", "zstd", "other", stdout=subprocess.PIPE, check=True)
    store.save("other", tmp_path / "wanted", format="oci-archive", compression="zstd")
    assert piped.stdout == (tmp_path / "wanted").read_bytes()
    cli("save", "--output", tmp_path / "layout", "--format", "oci", "other")
    oci_rules.check(members(tmp_path / "layout"))


@pytest.mark.parametrize("path", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
def test_a_pipe_that_has_no_name(cli: Cli, store: Store, tmp_path: Path, path: str) -> None:
    store.save("other", tmp_path / "wanted")
    piped = run(cli, "-o", path, "other", stdout=subprocess.PIPE, check=True)
    assert piped.stdout == (tmp_path / "wanted").read_bytes()


def test_the_commands_messages(cli: Cli, tmp_path: Path) -> None:
    assert "format oci is a directory; give it with -o" in cli("save", "--format", "oci", "other", status=1)
    assert "there is no image 'nothing'" in cli("save", "-o", tmp_path / "out", "nothing", status=1)
    assert cli("save", "-o", "/dev/full", "other", status=1) == "layerstore save: /dev/full: No space left on device\n"
    assert "IMAGE" in cli("save", status=2)
    assert not (tmp_path / "out").exists()


def test_a_terminal_gets_no_archive(cli: Cli) -> None:
    ours, theirs = pty.openpty()
    try:
        done = run(cli, "other", stdout=theirs, stderr=subprocess.PIPE)
        assert done.returncode == 1
        assert b"a tar is nothing for a terminal; redirect it" in done.stderr
        os.set_blocking(ours, False)
        with pytest.raises(BlockingIOError):
            os.read(ours, 1)
    finally:
        os.close(ours)
        os.close(theirs)


def test_a_reader_that_has_enough(cli: Cli) -> None:
    command = [sys.executable, "-m", "layerstore", "save", "other"]
    with subprocess.Popen(command, env=cli.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.read(512)
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE
