"""Taking images in: every form of archive, what is verified, what is not read or written again, memory, kills."""

import io
import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import images
import pytest
import tarbytes
from beside import rows
from images import DOCKER, OCI, Files, Image, docker_files, hex_of, index_of, oci_files, put, put_image, tar_of
from layer_model import Entry, write_tar
from meddling import ALWAYS, Meddling

from layerstore import Progress, Store
from layerstore.errors import (
    CorruptError,
    DigestMismatch,
    InvalidInput,
    LayerstoreError,
    LimitExceeded,
    NotFound,
)
from layerstore.oci.archives import Link, resolve_links

ROOT = Path(__file__).parent.parent
BIG = random.Random(1).randbytes(200_000)  # more than a pack takes


def layer(number: int, *more: Entry) -> bytes:
    """A layer with a small and a large file of its own, and some that all layers have."""
    own = random.Random(number).randbytes(100_000)
    return write_tar(
        [
            Entry("dir", f"d{number}", mode=0o755, mtime=(5, 6)),
            Entry("file", f"d{number}/small", data=b"small %d" % number),
            Entry("file", f"d{number}/large", data=own),
            Entry("file", "shared", data=BIG, mtime=(number, 0)),
            *more,
        ]
    )


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


@pytest.fixture
def image() -> Image:
    return Image([layer(0), layer(1), layer(2)], ["example.org/app:1"])


def write(tmp_path: Path, data: bytes, name: str = "archive.tar") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


class Pipe(io.RawIOBase):
    """A stream that cannot seek and gives a few bytes at a time."""

    def __init__(self, data: bytes, piece: int = 10_007) -> None:
        self._file = io.BytesIO(data)
        self._piece = piece

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), self._piece))
        buffer[: len(data)] = data
        return len(data)


def tars_of(store: Store, name: str) -> list[bytes]:
    found = store.image(name)
    return [b"".join(found.layer_tar(diff_id)) for diff_id in found.diff_ids]


def check_loaded(store: Store, image: Image) -> None:
    """The image has its id, its names and its layers, bit for bit, and every file is where the index says."""
    found = store.image(image.id)
    assert found.id == image.id
    assert list(found.diff_ids) == image.diff_ids
    assert set(found.names) >= set(image.names)
    assert tars_of(store, image.id) == list(image.layers)
    found.index().verify()


FORMS: dict[str, Callable[[Image, str], Files]] = {
    "docker 20.10": lambda image, how: docker_files([image], "20.10", how),
    "docker 25": lambda image, how: docker_files([image], "25", how),
    "oci": lambda image, how: oci_files([image], how),
}


@pytest.mark.parametrize("compression", images.COMPRESSIONS)
@pytest.mark.parametrize("form", FORMS)
class TestForms:
    def test_file(self, store: Store, tmp_path: Path, image: Image, form: str, compression: str) -> None:
        loaded = store.load(write(tmp_path, tar_of(FORMS[form](image, compression))))
        assert [one.id for one in loaded] == [image.id]
        check_loaded(store, image)

    def test_directory(self, store: Store, tmp_path: Path, image: Image, form: str, compression: str) -> None:
        store.load(images.write_directory(FORMS[form](image, compression), tmp_path / "layout"))
        check_loaded(store, image)

    @pytest.mark.parametrize("order", ["first", "last"])
    def test_stream(self, store: Store, image: Image, form: str, compression: str, order: str) -> None:
        manifest = "index.json" if form == "oci" else "manifest.json"
        data = tar_of(FORMS[form](image, compression), **{order: manifest})
        store.load(Pipe(data))  # type: ignore[arg-type]
        check_loaded(store, image)

    @pytest.mark.parametrize("whole", ["gzip", "zstd"])
    def test_compressed_archive(
        self, store: Store, tmp_path: Path, image: Image, form: str, compression: str, whole: str
    ) -> None:
        data = images.compressed(tar_of(FORMS[form](image, compression)), whole)
        store.load(write(tmp_path, data))
        check_loaded(store, image)


class TestStreams:
    def test_a_real_pipe(self, store: Store, tmp_path: Path, image: Image) -> None:
        path = write(tmp_path, tar_of(docker_files([image])))
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            store.load(cat.stdout)  # type: ignore[arg-type]
        check_loaded(store, image)

    def test_a_layer_in_the_v7_form(self, store: Store, tmp_path: Path) -> None:
        image = Image([tarbytes.archive(tarbytes.member(b"old", b"old form", magic=tarbytes.V7))])
        store.load(Pipe(tar_of(docker_files([image]))))  # type: ignore[arg-type]
        check_loaded(store, image)

    def test_an_empty_layer(self, store: Store) -> None:
        image = Image([tarbytes.END, bytes(10240)])
        store.load(Pipe(tar_of(docker_files([image], "20.10"))))  # type: ignore[arg-type]
        check_loaded(store, image)

    def test_what_no_image_uses_is_passed_over(self, store: Store, image: Image) -> None:
        files = oci_files([image])
        put(files, b"{}", "application/vnd.in-toto+json")
        store.load(Pipe(tar_of(files)))  # type: ignore[arg-type]
        check_loaded(store, image)
        assert len(list((store.root / "layers").glob("*.index"))) == 3

    def test_an_open_file_is_read_from_its_start_to_its_end(self, store: Store, tmp_path: Path, image: Image) -> None:
        with open(write(tmp_path, tar_of(docker_files([image]))), "rb") as file:
            store.load(file)
        check_loaded(store, image)


class TestNames:
    def test_two_images_in_one_archive(self, store: Store, tmp_path: Path) -> None:
        base, other = layer(0), layer(1)
        both = [Image([base], ["a:1", "a:latest"]), Image([base, other], ["b.example:5000/x/y:2"])]
        for form in ("20.10", "25"):
            loaded = store.load(write(tmp_path, tar_of(docker_files(both, form))))
            assert [one.id for one in loaded] == [one.id for one in both]
        assert store.image("a").names == ["a:1", "a:latest"]
        check_loaded(store, both[1])
        assert len(store.images()) == 2

    def test_a_reference_that_is_only_a_tag_belongs_to_the_file(self, store: Store, tmp_path: Path) -> None:
        image = Image([layer(0)], ["1.0"])
        store.load(write(tmp_path, tar_of(oci_files([image])), "My App_x.tar"))
        assert store.image(image.id).names == ["my-app-x:1.0"]
        store.load(images.write_directory(oci_files([image]), tmp_path / "layout"))
        assert store.image(image.id).names == ["layout:1.0", "my-app-x:1.0"]

    def test_docker_hub_is_not_spelled_out(self, store: Store, tmp_path: Path) -> None:
        image = Image([layer(0)], ["docker.io/library/debian:12"])
        store.load(write(tmp_path, tar_of(oci_files([image]))))
        assert store.image("debian:12").names == ["debian:12"]
        assert store.image("docker.io/library/debian:12").id == image.id

    def test_a_name_moves_to_the_newer_image(self, store: Store, tmp_path: Path) -> None:
        old, new = Image([layer(0)], ["a:1"]), Image([layer(1)], ["a:1"])
        for image in (old, new):
            store.load(write(tmp_path, tar_of(docker_files([image]))))
        assert store.image("a:1").id == new.id
        assert store.image(old.id).names == []

    def test_without_a_name(self, store: Store, tmp_path: Path) -> None:
        for form in FORMS.values():
            image = Image([layer(0)])
            (loaded,) = store.load(write(tmp_path, tar_of(form(image, "none"))))
            assert loaded.names == []

    def test_a_bad_name(self, store: Store, tmp_path: Path) -> None:
        image = Image([layer(0)], ["Bad Name:1"])
        with pytest.raises(InvalidInput, match="Bad Name"):
            store.load(write(tmp_path, tar_of(docker_files([image]))))
        assert store.images() == []


class TestIndexes:
    """The image of this machine's platform is taken; attestations and other platforms are not."""

    def nested(self, *children: dict[str, Any], files: Files) -> Files:
        files["oci-layout"] = b"{}"
        top = put(
            files,
            index_of(children),
            f"{OCI}.index.v1+json",
            annotations={"org.opencontainers.image.ref.name": "app:1"},
        )
        return files | {"index.json": index_of([top])}

    def children(self, files: Files, image: Image) -> list[dict[str, Any]]:
        arm = Image([layer(7)], document={"architecture": "s390x"})
        statement = put(files, b'{"_type": "https://in-toto.io/Statement/v0.1"}', "application/vnd.in-toto+json")
        config = put(files, b"{}", f"{OCI}.config.v1+json")
        proof = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": [statement]}
        unknown = {"platform": {"architecture": "unknown", "os": "unknown"}}
        return [
            put_image(files, arm, platform={"architecture": "s390x", "os": "linux"}),
            put(files, json.dumps(proof).encode(), f"{OCI}.manifest.v1+json", **unknown),
            put_image(files, image, "gzip", platform={"architecture": "amd64", "os": "linux"}),
        ]

    @pytest.mark.parametrize("stream", [False, True])
    def test_nested(self, store: Store, tmp_path: Path, image: Image, stream: bool) -> None:
        files: Files = {}
        files = self.nested(*self.children(files, image), files=files)
        data = tar_of(files)
        loaded = store.load(Pipe(data) if stream else write(tmp_path, data))  # type: ignore[arg-type]
        assert [one.id for one in loaded] == [image.id]
        assert loaded[0].names == ["app:1"]
        check_loaded(store, Image(image.layers))

    def test_at_the_top(self, store: Store, tmp_path: Path, image: Image) -> None:
        files: Files = {"oci-layout": b"{}"}
        files["index.json"] = index_of(self.children(files, image))
        loaded = store.load(write(tmp_path, tar_of(files)))
        assert [one.id for one in loaded] == [image.id]

    def test_none_for_this_platform(self, store: Store, tmp_path: Path, image: Image) -> None:
        files: Files = {}
        files = self.nested(*self.children(files, image)[:2], files=files)
        with pytest.raises(NotFound, match="no image for linux on amd64"):
            store.load(write(tmp_path, tar_of(files)))

    def test_docker_manifest_lists(self, store: Store, tmp_path: Path, image: Image) -> None:
        files: Files = {}
        config = put(files, image.config, f"{DOCKER}.container.image.v1+json")
        layers = [put(files, tar, f"{DOCKER}.image.rootfs.diff.tar") for tar in image.layers]
        kind = f"{DOCKER}.distribution.manifest.v2+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers}
        child = put(files, json.dumps(manifest).encode(), kind, platform={"architecture": "amd64", "os": "linux"})
        top = {"schemaVersion": 2, "mediaType": f"{DOCKER}.distribution.manifest.list.v2+json", "manifests": [child]}
        files["index.json"] = index_of([put(files, json.dumps(top).encode(), top["mediaType"])])
        (loaded,) = store.load(write(tmp_path, tar_of(files)))
        assert loaded.id == image.id


class TestRootfs:
    @pytest.mark.parametrize("compression", images.COMPRESSIONS)
    def test_import(self, store: Store, tmp_path: Path, compression: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
        tar = layer(3)
        for source in (write(tmp_path, images.compressed(tar, compression)), Pipe(images.compressed(tar, compression))):
            image = store.import_rootfs(source, "base")  # type: ignore[arg-type]
            assert image.names == ["base:latest"]
            assert image.created == "1970-01-02T00:00:00Z"
            assert tars_of(store, "base") == [tar]
        assert len(store.images()) == 1

    @pytest.mark.parametrize(
        ("data", "error", "message"),
        [
            (b"not a tar at all" * 100, CorruptError, "header"),
            (layer(3)[:-20_000], CorruptError, "cut off|truncated|ends"),
            (tarbytes.archive(tarbytes.member(b"../up", b"x")), InvalidInput, "../up"),
        ],
    )
    def test_errors(self, store: Store, data: bytes, error: type[Exception], message: str) -> None:
        before = images.store_state(store.root)
        with pytest.raises(error, match=message):
            store.import_rootfs(io.BytesIO(data), "base")
        assert images.store_state(store.root) == before

    def test_bad_arguments(self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = write(tmp_path, layer(0))
        with pytest.raises(InvalidInput, match="NAME"):
            store.import_rootfs(path, "NAME")
        with pytest.raises(FileNotFoundError, match="nowhere"):
            store.import_rootfs(tmp_path / "nowhere", "name")
        with pytest.raises(IsADirectoryError):
            store.import_rootfs(tmp_path, "name")
        monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
        with pytest.raises(InvalidInput, match="SOURCE_DATE_EPOCH"):
            store.import_rootfs(path, "name")


# -- what is verified -------------------------------------------------------------------------------------------------


def replaced(files: Files, end: str, change: Callable[[bytes], bytes]) -> Files:
    """The files with the one whose name ends so changed."""
    (name,) = [name for name in files if name.endswith(end)]
    data = files[name]
    assert isinstance(data, bytes)
    return files | {name: change(data)}


def oci_of(image: Image, compression: str, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> Files:
    """An OCI layout whose manifest and index entry `edit(manifest, descriptor)` has changed, digests kept right."""
    files = oci_files([], compression)
    descriptor = put_image(files, image, compression)
    manifest = json.loads(files.pop(f"blobs/sha256/{descriptor['digest'][7:]}"))
    more: dict[str, Any] = {}
    edit(manifest, more)
    made = put(files, json.dumps(manifest).encode(), descriptor["mediaType"]) | more
    return files | {"index.json": index_of([made])}


def wrong(compression: str = "none", **changes: Any) -> Callable[[Image], Files]:
    """The manifest's second layer with these fields."""
    return lambda image: oci_of(image, compression, lambda m, _: m["layers"][1].update(changes))


def config_with(**document: Any) -> Callable[[Image], Files]:
    return lambda image: docker_files([Image(image.layers, document=document)])


def blob(image: Image, number: int, compression: str) -> str:
    return hex_of(images.compressed(image.layers[number], compression))


def spoiled(compression: str, change: Callable[[bytes], bytes]) -> Callable[[Image], Files]:
    """The blob of the second layer changed under its name, in a docker archive, where only the diff_id is known."""
    return lambda image: replaced(docker_files([image], "25", compression), blob(image, 1, compression), change)


def flipped(data: bytes) -> bytes:
    """A bit of the content of a file changed: the tar stays a tar."""
    at = data.index(random.Random(1).randbytes(100)[:50]) + 20
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def spoiled_inside(compression: str) -> Callable[[Image], Files]:
    """A layer whose blob has the right digest and size, but another diff_id than the config says."""

    def make(image: Image) -> Files:
        other = Image([image.layers[0], flipped(image.layers[1]), image.layers[2]])
        config = {"rootfs": {"type": "layers", "diff_ids": image.diff_ids}}
        return oci_files([Image(other.layers, document=config)], compression)

    return make


def both_kinds(image: Image) -> Files:
    return oci_of(image, "none", lambda manifest, _: manifest.update(manifests=[]))


def other_manifest(image: Image) -> Files:
    files = oci_files([image])
    digest = json.loads(files["index.json"])["manifests"][0]["digest"]
    return replaced(files, digest[7:], lambda data: data.replace(b'"schemaVersion": 2', b'"schemaVersion": 3'))


def names_of_no_list(image: Image) -> Files:
    files = docker_files([image], "20.10")
    return replaced(files, "manifest.json", lambda data: data.replace(b'["example.org/app:1"]', b"5"))


def loop_of_links(image: Image) -> Files:
    files = docker_files([image], "20.10")
    return files | {name: "layer.tar" for name in files if name.endswith("layer.tar")}


def deep(image: Image) -> Files:
    files: Files = {}
    descriptor = put_image(files, image)
    for _ in range(10):
        descriptor = put(files, index_of([descriptor]), f"{OCI}.index.v1+json")
    return files | {"index.json": index_of([descriptor])}


def without(end: str) -> Callable[[Image], Files]:
    def make(image: Image) -> Files:
        return {name: data for name, data in docker_files([image], "20.10").items() if not name.endswith(end)}

    return make


def manifest(document: Any) -> Callable[[Image], Files]:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    return lambda image: docker_files([image], "20.10") | {"manifest.json": data}


ZEROS = "sha256:" + "0" * 64
WRONG: dict[str, tuple[Callable[[Image], Files], type[Exception], str]] = {
    "digest of a layer": (wrong(digest=ZEROS), NotFound, "0" * 64),
    "size of a layer, less": (wrong(size=5), DigestMismatch, "5 were promised"),
    "size of a gzip layer, more": (wrong("gzip", size=10**9), DigestMismatch, "1000000000 were promised"),
    "size that is none": (wrong(size="5"), InvalidInput, "size of layer 1"),
    "size below nothing": (wrong(size=-1), InvalidInput, "size of layer 1"),
    "digest that is none": (wrong(digest="sha512:abc"), InvalidInput, "digest of layer 1"),
    "media type of a layer": (wrong(mediaType="application/x-rar"), InvalidInput, "x-rar"),
    "media type of the config": (
        lambda i: oci_of(
            i, "none", lambda m, _: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json")
        ),
        InvalidInput,
        "helm",
    ),
    "media type of the manifest": (
        lambda i: oci_of(i, "none", lambda m, d: (m.pop("mediaType"), d.update(mediaType="text/plain"))),
        InvalidInput,
        "text/plain",
    ),
    "digest of a manifest": (
        lambda i: oci_of(i, "none", lambda _, d: d.update(size=3)),
        DigestMismatch,
        "manifest.*3",
    ),
    "bytes of a manifest": (
        other_manifest,
        DigestMismatch,
        "manifest sha256:[0-9a-f]* has digest",
    ),
    "bytes of an OCI config": (
        lambda i: replaced(oci_files([i]), hex_of(i.config), lambda d: d.replace(b"amd64", b"arm64")),
        DigestMismatch,
        "config has digest",
    ),
    "bytes of a docker config": (
        lambda i: replaced(
            docker_files([i], "20.10"), f"{hex_of(i.config)}.json", lambda d: d.replace(b"amd64", b"arm64")
        ),
        CorruptError,
        "config .* has digest",
    ),
    "diff_id": (spoiled("none", flipped), DigestMismatch, "diff_id"),
    "diff_id of a gzip layer": (spoiled_inside("gzip"), DigestMismatch, "diff_id"),
    "diff_id of a zstd layer": (spoiled_inside("zstd"), DigestMismatch, "diff_id"),
    "gzip cut off": (spoiled("gzip", lambda d: d[:-100]), CorruptError, "gzip.*cut off"),
    "gzip cut off in its end": (spoiled("gzip", lambda d: d[:-3]), CorruptError, "gzip.*cut off"),
    "gzip with a wrong checksum": (spoiled("gzip", lambda d: d[:-8] + b"\0\0\0\0" + d[-4:]), CorruptError, "gzip"),
    "gzip with more after it": (spoiled("gzip", lambda d: d + b"junk"), CorruptError, "gzip.*after its end"),
    "gzip with zeros and more after it": (
        spoiled("gzip", lambda d: d + bytes(9) + b"x"),
        CorruptError,
        "gzip.*after its end",
    ),
    "gzip damaged": (spoiled("gzip", lambda d: d[:500] + bytes(50) + d[550:]), CorruptError, "gzip|diff_id|tar"),
    "zstd cut off": (spoiled("zstd", lambda d: d[:-100]), CorruptError, "zstd.*cut off"),
    "zstd with more after it": (spoiled("zstd", lambda d: d + b"junk!"), CorruptError, "zstd"),
    "zstd damaged": (spoiled("zstd", lambda d: d[:20] + bytes(50) + d[70:]), CorruptError, "zstd|diff_id|tar"),
    "tar cut off in a file": (spoiled("none", lambda d: d[:100_000]), CorruptError, "tar|ends|cut"),
    "tar cut off in a header": (spoiled("none", lambda d: d[:700]), CorruptError, "tar|ends|cut"),
    "a header damaged": (spoiled("none", lambda d: d[:300] + b"\xff" + d[301:]), CorruptError, "checksum"),
    "config that is no JSON": (
        manifest([{"Config": "manifest.json", "Layers": []}]),
        InvalidInput,
        "config is not a JSON object",
    ),
    "config with other layers": (
        config_with(rootfs={"type": "layers", "diff_ids": [ZEROS]}),
        InvalidInput,
        "3 layers.*has 1",
    ),
    "config without layers": (config_with(rootfs=None), InvalidInput, "rootfs"),
    "config of another rootfs": (config_with(rootfs={"type": "windows"}), InvalidInput, "windows"),
    "diff_ids that are none": (config_with(rootfs={"type": "layers", "diff_ids": [1, 2, 3]}), InvalidInput, "diff_id"),
    "history that is none": (config_with(history=[1]), InvalidInput, "history"),
    "layer count of a manifest": (
        lambda i: oci_of(i, "none", lambda m, _: m["layers"].pop()),
        InvalidInput,
        "2 layers.*3 diff_ids",
    ),
    "both index and manifest": (both_kinds, InvalidInput, "both an index and an image manifest"),
    "indexes in indexes": (deep, LimitExceeded, "nested.*index_depth"),
    "no layer": (without("layer.tar"), NotFound, "layer.tar"),
    "no config": (lambda i: without(f"{hex_of(i.config)}.json")(i), NotFound, ".json"),
    "no manifest": (without("manifest.json"), InvalidInput, "neither a docker archive"),
    "manifest that is no JSON": (manifest(b"{"), InvalidInput, "manifest.json is not JSON"),
    "manifest that is no list": (manifest({}), InvalidInput, "lists no image"),
    "manifest without a config": (manifest([{}]), InvalidInput, "Config"),
    "manifest of too many bytes": (manifest(b" " * (5 << 20)), LimitExceeded, "manifest.json"),
    "manifest that nests": (manifest(b"[" * 100_000), InvalidInput, "manifest.json is not JSON"),
    "layers that are no list": (manifest([{"Config": "manifest.json", "Layers": "abc"}]), InvalidInput, "."),
    "names that are no list": (
        names_of_no_list,
        InvalidInput,
        "RepoTags",
    ),
    "member outside": (manifest([{"Config": "../../etc/passwd", "Layers": []}]), InvalidInput, "leaves it"),
    "layer that is a loop": (
        loop_of_links,
        InvalidInput,
        "loop",
    ),
    "entry that leaves the root": (
        lambda i: docker_files([Image([*i.layers, tarbytes.archive(tarbytes.member(b"a/../../b"))])]),
        InvalidInput,
        "a/../../b",
    ),
}


@pytest.mark.parametrize("source", ["file", "stream", "directory"])
@pytest.mark.parametrize("case", WRONG)
def test_nothing_of_a_wrong_archive_is_visible(
    store: Store, tmp_path: Path, image: Image, case: str, source: str
) -> None:
    make, error, message = WRONG[case]
    files = make(image)
    root = store.root
    store.load(write(tmp_path, tar_of(docker_files([Image([layer(50)], ["before:1"])]))))
    before = images.store_state(root)
    if source == "directory":
        given: Any = images.write_directory(files, tmp_path / "directory")
    else:
        data = tar_of(files, last="manifest.json")
        given = Pipe(data) if source == "stream" else write(tmp_path, data)
    if source == "directory" and case == "layer that is a loop":
        error, message = InvalidInput, "layer.tar.*loop"
    with pytest.raises(error, match=f"(?s){message}") as caught:
        store.load(given)
    assert not isinstance(caught.value, KeyError)
    assert images.store_state(root) == before
    store.load(write(tmp_path, tar_of(docker_files([image]))))
    check_loaded(store, image)


@pytest.mark.parametrize("data", [b"", b"x", b"hello " * 1000, bytes(600), b"\x1f\x8b", b"\x28\xb5\x2f\xfd" * 9])
def test_what_is_no_archive(store: Store, tmp_path: Path, data: bytes) -> None:
    before = images.store_state(store.root)
    for source in (write(tmp_path, data), Pipe(data), io.BytesIO(data)):
        with pytest.raises((InvalidInput, CorruptError)) as caught:
            store.load(source)  # type: ignore[arg-type]
        assert str(caught.value)
    assert images.store_state(store.root) == before


def test_sources_that_are_not_there(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        store.load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInput, match="layerstore import"):
        store.load(tmp_path / "empty")


def test_random_damage_is_told(store: Store, tmp_path: Path, image: Image) -> None:
    """Whatever is changed, a load ends with one of our exceptions or with exactly the image that was promised."""
    draw = random.Random(5)
    before = images.store_state(store.root)
    whole = [tar_of(form(image, how)) for form in FORMS.values() for how in images.COMPRESSIONS]
    for _ in range(60):
        data = bytearray(draw.choice(whole))
        for _ in range(draw.choice([1, 1, 3, 200])):
            data[draw.randrange(len(data))] = draw.randrange(256)
        if draw.random() < 0.3:
            del data[draw.randrange(len(data)) :]
        source: Any = Pipe(bytes(data), 100_000) if draw.random() < 0.5 else write(tmp_path, bytes(data))
        try:
            loaded = store.load(source)
        except LayerstoreError as error:
            assert str(error)
            assert images.store_state(store.root) == before
            continue
        for one in loaded:
            assert [b"".join(one.layer_tar(diff_id)) for diff_id in one.diff_ids]
            for diff_id in one.diff_ids:
                assert images.digest_of(b"".join(one.layer_tar(diff_id))) == diff_id
            store.remove_image(one.id, force=True)
        store.collect_garbage()
        before = images.store_state(store.root)


# -- what is not done again -------------------------------------------------------------------------------------------


class CountedFile:
    """A seekable file that counts what is read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.bytes += len(data)
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_known_layer_is_not_read_again(store: Store, tmp_path: Path) -> None:
    first = Image([layer(0), layer(1)])
    store.load(write(tmp_path, tar_of(docker_files([first]))))
    second = Image([*first.layers, layer(2)])
    for form in ("20.10", "25"):
        with open(write(tmp_path, tar_of(docker_files([second], form))), "rb", buffering=0) as file:
            counted = CountedFile(file)  # type: ignore[arg-type]
            store.load(counted)  # type: ignore[arg-type]
        wanted = len(second.layers[2]) if form == "20.10" else 0
        assert wanted <= counted.bytes < wanted + 60_000
    check_loaded(store, second)


def test_what_an_image_is_not_made_of_may_be_large_in_a_stream(store: Store, image: Image) -> None:
    """As the list of its packages, which buildkit puts beside it."""
    files = docker_files([image], "25")
    archive = tar_of({**files, "blobs/sha256/" + "1" * 64: b'{"packages": [' + b"0," * (5 << 20) + b"0]}"})
    assert [loaded.names for loaded in store.load(Pipe(archive))] == [["example.org/app:1"]]
    archive = tar_of({**files, "manifest.json": files["manifest.json"] + b" " * (9 << 20)})
    with pytest.raises(LimitExceeded, match=r"manifest.json has 943\d{4} bytes.*manifest_bytes"):
        store.load(Pipe(archive))


def test_a_known_layer_is_not_written_again_from_a_stream(store: Store, tmp_path: Path) -> None:
    image = Image([layer(0), layer(1)])
    store.load(write(tmp_path, tar_of(docker_files([image]))))
    before, _ = images.store_state(store.root)
    store.load(Pipe(tar_of(docker_files([image], "25", "gzip"))))  # type: ignore[arg-type]
    assert images.store_state(store.root)[0] == before


def test_a_known_file_is_not_written_again(store: Store, tmp_path: Path) -> None:
    """The same files with other times and in other layers cost their names only."""
    entries = [Entry("file", f"f{i}", data=random.Random(i).randbytes(20_000 + 2000 * i)) for i in range(100)]
    store.load(write(tmp_path, tar_of(docker_files([Image([write_tar(entries)])]))))
    before = images.used_bytes(store.root)
    again = [Entry("file", f"x/{e.path}", data=e.data, mtime=(9, 9)) for e in entries]
    image = Image([write_tar(again[::2]), write_tar(again[1::2])])
    store.load(write(tmp_path, tar_of(docker_files([image]))))
    assert images.used_bytes(store.root) - before < 100_000 < before / 100 * 3
    assert not list((store.root / "packs").glob("1.*"))
    check_loaded(store, image)


def test_equal_files_of_one_import_are_written_once(store: Store, tmp_path: Path) -> None:
    image = Image(
        [write_tar([Entry("file", f"{i}/{n}", data=BIG[: 50_000 * (n + 1)]) for n in range(3)]) for i in range(4)]
    )
    store.load(write(tmp_path, tar_of(docker_files([image]))))
    assert images.used_bytes(store.root) < 1.1 * 300_000 + 100_000
    check_loaded(store, image)


# -- recipes ----------------------------------------------------------------------------------------------------------

DATA = random.Random(9).randbytes(5000)
MANY = [(i * 8192, 100) for i in range(60)]
TARS: dict[str, bytes] = {
    "empty": tarbytes.END,
    "no bytes of an end": tarbytes.member(b"a", DATA),
    "one block of an end": tarbytes.member(b"a", DATA) + bytes(512),
    "many zeros at the end": tarbytes.archive(tarbytes.member(b"a", DATA)) + bytes(512 * 40),
    "odd zeros at the end": tarbytes.archive(tarbytes.member(b"a", DATA)) + bytes(100),
    "junk in the padding": tarbytes.header(b"a", size=5) + b"hello" + b"\xaa" * 507 + tarbytes.END,
    "junk after the end": tarbytes.archive(tarbytes.member(b"a", DATA)) + b"junk" * 128,
    "empty files": tarbytes.archive(tarbytes.member(b"a"), tarbytes.member(b"b")),
    "v7": tarbytes.archive(tarbytes.member(b"a", DATA, magic=tarbytes.V7)),
    "gnu": tarbytes.archive(tarbytes.gnu_long(b"n" * 180), tarbytes.member(b"n" * 99, DATA, magic=tarbytes.GNU)),
    "pax": tarbytes.archive(
        tarbytes.pax({b"comment": b"c"}, type=b"g"),
        tarbytes.pax({b"path": b"p/" * 100 + b"q", b"mtime": b"1.5", b"SCHILY.xattr.user.x": b"\0\xff"}),
        tarbytes.member(b"cut", DATA),
    ),
    "sparse, old": tarbytes.archive(tarbytes.sparse_old(b"s", MANY, 1 << 20, DATA + DATA[:1000])),
    "sparse, 0.0": tarbytes.archive(tarbytes.sparse_00(b"s", [(100, 2500), (9000, 2500)], 20_000, DATA)),
    "sparse, 0.1": tarbytes.archive(tarbytes.sparse_01(b"s", [(0, 2500), (9000, 2500)], 11_500, DATA)),
    "sparse, 1.0": tarbytes.archive(tarbytes.sparse_10(b"s", MANY, 1 << 20, DATA + DATA[:1000])),
    "sparse, nothing but holes": tarbytes.archive(tarbytes.sparse_10(b"s", [], 1 << 20, b"")),
    "sparse, large": tarbytes.archive(tarbytes.sparse_10(b"s", [(1 << 30, 5000)], (1 << 30) + 5000, DATA)),
    "links and devices": tarbytes.archive(
        tarbytes.directory(b"d/"),
        tarbytes.member(b"d/f", DATA),
        tarbytes.hardlink(b"h", b"d/f"),
        tarbytes.symlink(b"s", b"d"),
        tarbytes.header(b"c", type=b"3", device=(1, 3)),
        tarbytes.header(b"p", type=b"6"),
    ),
    "whiteouts": tarbytes.archive(
        tarbytes.member(b".wh.a"), tarbytes.member(b"d/.wh..wh..opq"), tarbytes.member(b"d/f", DATA)
    ),
    "a whiteout with content": tarbytes.archive(tarbytes.member(b".wh.a", DATA), tarbytes.member(b"b", b"b")),
    "duplicates": tarbytes.archive(*(tarbytes.member(b"same", DATA[i:]) for i in range(5))),
    "a volume label": tarbytes.archive(
        tarbytes.header(b"label", type=b"V", magic=tarbytes.GNU), tarbytes.member(b"a", DATA)
    ),
    "names that are not UTF-8": tarbytes.archive(tarbytes.member(b"\xff\xfe\n", DATA)),
    "large and small": layer(4),
}


@pytest.mark.parametrize("case", TARS)
def test_a_layer_comes_back_bit_for_bit(store: Store, tmp_path: Path, case: str) -> None:
    image = Image([TARS[case]])
    store.load(write(tmp_path, tar_of(docker_files([image], "20.10", "gzip"))))
    check_loaded(store, image)


@pytest.mark.parametrize(("name", "target"), [("layer.tar", "../other.tar"), ("a/layer.tar", "../../other.tar")])
def test_a_link_out_of_the_archive_is_refused(name: str, target: str) -> None:
    with pytest.raises(InvalidInput, match="leaves it"):
        resolve_links(name, {name: Link(True, target)})


def test_a_layer_twice_in_one_image(store: Store, tmp_path: Path) -> None:
    image = Image([layer(0), layer(1), layer(0)])
    for style in ("20.10", "25"):
        data = tar_of(docker_files([image], style))
        store.load(Pipe(data))  # type: ignore[arg-type]
        store.load(write(tmp_path, data))
        store.load(images.write_directory(docker_files([image], style), tmp_path / style))
    check_loaded(store, image)


def test_an_image_without_layers(store: Store, tmp_path: Path) -> None:
    image = Image([], ["scratch:1"])
    store.load(write(tmp_path, tar_of(docker_files([image]))))
    check_loaded(store, image)
    assert store.image("scratch:1").size_bytes == 0


def test_progress_reaches_the_end_of_every_layer(store: Store, tmp_path: Path, image: Image) -> None:
    seen: dict[str, int] = {}
    path = write(tmp_path, tar_of(oci_files([image], "gzip")))
    for _ in range(2):
        seen.clear()
        store.load(path, progress=lambda p: seen.__setitem__(p.what, p.done_bytes) or p.total_bytes or 1 / 0)  # type: ignore[func-returns-value]
        assert seen == {images.digest_of(t): len(images.compressed(t, "gzip")) for t in image.layers}


@pytest.mark.parametrize("directory", [False, True])
def test_progress_knows_the_sizes_of_a_docker_archive(
    store: Store, tmp_path: Path, image: Image, directory: bool
) -> None:
    seen: list[Progress] = []
    files = docker_files([image])
    path = images.write_directory(files, tmp_path / "unpacked") if directory else write(tmp_path, tar_of(files))
    store.load(path, progress=seen.append)
    assert {(p.stage, p.what, p.total_bytes) for p in seen} == {
        ("import", images.digest_of(t), len(t)) for t in image.layers
    }
    seen.clear()
    store.load(path, progress=seen.append)
    assert [(p.stage, p.what) for p in seen] == [("stored", images.digest_of(t)) for t in image.layers]


def test_an_exception_of_the_callback_ends_the_load(store: Store, tmp_path: Path, image: Image) -> None:
    before = images.store_state(store.root)

    def stop(_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        store.load(write(tmp_path, tar_of(docker_files([image]))), progress=stop)
    assert images.store_state(store.root) == before


# -- processes --------------------------------------------------------------------------------------------------------


def child(program: str, *arguments: object, before: Sequence[str] = (), **options: Any) -> subprocess.Popen[bytes]:
    """Run a program in Python, with the command `before` in front."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    command = [*before, sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, **options)


BIG_LAYER = """
    import hashlib, io, json, random, sys
    import tarbytes
    from layerstore import Store

    SIZE = int(sys.argv[2])
    block = random.Random(0).randbytes(1 << 20)

    def pieces():
        '''A tar of files that have nothing in common, half of it in small ones.'''
        done = number = 0
        while done < SIZE:
            size = [3_000, 40_000, 500_000, 7_000_000][number % 4] if number % 200 else 300_000_000
            yield tarbytes.header(b"f%d" % number, size=size)
            left = size
            while left:
                piece = (b"%020d" % (number * 1000 + left % 997) + block)[: min(left, 1 << 20)]
                yield piece
                left -= len(piece)
            yield bytes(-size % 512)
            done, number = done + size, number + 1
        yield tarbytes.END

    class Stream(io.RawIOBase):
        def __init__(self):
            self.pieces, self.rest = pieces(), b""
        def readable(self):
            return True
        def read(self, size=-1):
            while len(self.rest) < 1 and (piece := next(self.pieces, None)) is not None:
                self.rest = piece
            data, self.rest = self.rest[:size], self.rest[size:]
            return data

    with Store(sys.argv[1], create=True) as store:
        image = store.import_rootfs(Stream(), "big")
        assert image.size_bytes >= SIZE
        # Not ru_maxrss: that begins with what the process had that started this one.
        status = open("/proc/self/status").read()
        print(status.split("VmHWM:")[1].split()[0])
"""


def test_a_layer_that_lost_its_index_is_told_by_an_image_upon_it(tmp_path: Path) -> None:
    below, above = (write_tar([Entry("file", name, data=b"x")]) for name in ("below", "above"))
    with Store(tmp_path / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([Image([below], ["below:1"])]))))
        (diff_id,) = store.image("below:1").diff_ids
        os.unlink(store.layout.layer_index(diff_id))
        with pytest.raises(CorruptError, match=f"the index of layer {diff_id} is missing"):
            store.load(io.BytesIO(tar_of(docker_files([Image([above, below], ["both:1"])]))))
        assert [image.names for image in store.images()] == [["below:1"]]


@pytest.mark.memory
def test_memory_does_not_grow_with_the_layer(tmp_path: Path) -> None:
    with child(BIG_LAYER, tmp_path / "store", 1 << 30, stdout=subprocess.PIPE) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert int(output) <= 200 * 1024


MANY_ENTRIES = """
    import os, sys
    import tarbytes
    from layerstore._core.ingest import Contents, Digests, LayerIngest

    COUNT = int(sys.argv[2])
    # The digits of a number and what they lack to 9: all headers have one checksum.
    head, tail = tarbytes.header(b"f" + b"0" * 7 + b"9" * 7).split(b"0000000", 1)
    lacking = bytes.maketrans(b"0123456789", b"9876543210")

    def resident(field):
        return int(open("/proc/self/status").read().split(field)[1].split()[0])

    directory = os.open(sys.argv[1], os.O_RDONLY)
    pack = os.open(sys.argv[1], os.O_TMPFILE | os.O_RDWR)
    ingest = LayerIngest(Contents(directory, pack, Digests(b"", 0), 65536))
    idle = resident("VmRSS:")
    for start in range(0, COUNT, 2000):
        numbers = (b"%07d" % number for number in range(start, start + 2000))
        ingest.feed(b"".join(head + digits + digits.translate(lacking) + tail[7:] for digits in numbers))
    ingest.finish()
    index = ingest.index(bytes(16))
    print((resident("VmHWM:") - idle) * 1024 / COUNT)
"""


@pytest.mark.memory
def test_memory_of_many_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index, of 106 bytes for each of these, is written where what is known of them was kept."""
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # what is given back would else be counted still
    with child(MANY_ENTRIES, tmp_path, 200_000, stdout=subprocess.PIPE) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert float(output) < 190


LOAD = """
    import sys
    from layerstore import Store
    with Store(sys.argv[1], create=True) as store:
        for path in sys.argv[2:]:
            store.load(path)
"""


def many_files(number: int) -> Image:
    draw = random.Random(number)
    entries = [
        Entry("file", f"{number}/{i}", data=draw.randbytes(draw.choice([100, 5000, 70_000, 300_000])))
        for i in range(300)
    ]
    common = [Entry("file", f"common/{i}", data=b"%d" % i * 10_000) for i in range(100)]
    return Image([write_tar(entries[:150] + common), write_tar(entries[150:])], [f"many:{number}"])


def test_a_killed_import_leaves_nothing_visible_and_is_cleared_away(tmp_path: Path) -> None:
    image = many_files(1)
    path = write(tmp_path, tar_of(docker_files([image], "25", "gzip")))
    root = tmp_path / "store"
    with child(LOAD, root) as process:
        process.communicate()
    begin = time.monotonic()
    with child(LOAD, tmp_path / "other", path) as process:
        _, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    whole = time.monotonic() - begin
    draw = random.Random(3)
    staged = 0
    for _ in range(12):
        with child(LOAD, root, path) as process:
            try:
                process.wait(draw.uniform(0.3, 1.1) * whole)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
            process.communicate()
        with Store(root) as store:
            if process.returncode == 0 or store.images():
                check_loaded(store, image)
                store.remove_image(image.id, force=True)
                store.collect_garbage()
                continue
            staged += bool(list((store.root / "staging").iterdir()))
            assert store.images() == []
            assert rows(store.layout, "SELECT diff_id FROM layers UNION SELECT number FROM packs") == []
    assert staged, "no import was killed while it staged"
    with Store(root) as store:
        store.load(path)
        check_loaded(store, image)
        assert list((store.root / "staging").iterdir()) == []
        assert len(list((store.root / "packs").glob("*.pack"))) == 1
        store.collect_garbage()
        with Store(tmp_path / "other") as other:
            assert images.used_bytes(root) == pytest.approx(images.used_bytes(other.root), rel=0.02)


def test_an_interrupt_right_after_the_commit_loses_nothing(store: Store, tmp_path: Path, meddle: Meddling) -> None:
    image = many_files(1)
    meddle.interrupt_commits(ALWAYS)
    with pytest.raises(KeyboardInterrupt):
        store.load(write(tmp_path, tar_of(docker_files([image]))))
    meddle.undo()
    check_loaded(store, image)


def run_all(commands: list[subprocess.Popen[bytes]]) -> None:
    for process in commands:
        _, errors = process.communicate()
        assert process.returncode == 0, errors.decode()


@pytest.mark.parametrize("same", [True, False])
def test_two_processes_import_at_once(tmp_path: Path, same: bool) -> None:
    made = [many_files(1 if same else n) for n in range(2)]
    paths = [write(tmp_path, tar_of(docker_files([image])), f"{i}.tar") for i, image in enumerate(made)]
    for i in range(3):
        root = tmp_path / f"store{i}"
        run_all([child(LOAD, root, path) for path in paths])
        with Store(root) as store:
            for image in made:
                check_loaded(store, image)


def test_many_processes_make_one_store(tmp_path: Path) -> None:
    path = write(tmp_path, tar_of(docker_files([Image([layer(0)])])))
    for i in range(3):
        run_all([child(LOAD, tmp_path / f"store{i}", path) for _ in range(4)])


CREATE = """
    import sys
    from layerstore import Store
    with Store(sys.argv[1]) as store:
        for _ in range(100):
            store.create(sys.argv[2], count=3)
"""


def test_importing_while_containers_are_created(tmp_path: Path) -> None:
    root, image = tmp_path / "store", many_files(1)
    paths = [write(tmp_path, tar_of(docker_files([many_files(n)])), f"{n}.tar") for n in range(2, 6)]
    with Store(root, create=True) as store:
        store.load(write(tmp_path, tar_of(docker_files([image]))))
        run_all([child(LOAD, root, *paths), child(CREATE, root, image.names[0])])
        assert len(store.containers()) == 300
        assert len(store.images()) == 5
        for n in range(1, 6):
            check_loaded(store, many_files(n))


def test_names_removed_while_their_layers_are_loaded_again(tmp_path: Path) -> None:
    """A layer that a load counts on is not taken away under it by an rmi."""
    root, image = tmp_path / "store", Image([layer(0)], ["first:1"])
    with Store(root, create=True) as store, Store(root) as other:
        store.load(write(tmp_path, tar_of(docker_files([image]))))
        second = Image([layer(0), layer(1)], ["second:1"])

        def remove(_: object) -> None:
            if other.images():
                other.remove_image("first:1")

        store.load(write(tmp_path, tar_of(docker_files([second]))), progress=remove)
        check_loaded(store, second)
        assert [one.id for one in store.images()] == [second.id]


class TestOddNames:
    """What archives call their images."""

    @pytest.mark.parametrize("name", ["v1.0+1", "../x", "App/x", "a@b", "team/../x:1"])
    def test_a_reference_that_is_no_name_is_none(self, store: Store, name: str) -> None:
        """An OCI layout may have references that no registry would have."""
        image = Image([layer(1)])
        files = oci_files([image])
        index = json.loads(files["index.json"])
        index["manifests"][0]["annotations"] = {"org.opencontainers.image.ref.name": name}
        (loaded,) = store.load(io.BytesIO(tar_of(files | {"index.json": json.dumps(index).encode()})))
        assert (loaded.id, loaded.names) == (image.id, [])

    def test_a_name_that_is_none_says_what_to_do(self, store: Store) -> None:
        image = Image([layer(1)], ["../x:1"])
        with pytest.raises(
            InvalidInput, match=rf"image {image.id} cannot be loaded .*'\.\./x:1'.*save it under another"
        ):
            store.load(io.BytesIO(tar_of(docker_files([image]))))
        assert store.images() == []
