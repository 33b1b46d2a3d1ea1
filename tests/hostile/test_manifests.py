"""Manifests, indexes and configs that lie; archives and layouts that lead elsewhere."""

import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import images
import pytest
import tarbytes as tb
from cases import case
from hostile import Pipe, Place, raises, source
from images import OCI, Files, Image, digest_of, hex_of, index_of, put, put_image

from layerstore import Limits, Store
from layerstore.errors import CorruptError, DigestMismatch, InvalidInput, LimitExceeded, NotFound

CONFUSION = "CVE-2021-41190 (OCI distribution and image)"
PATHS = "CVE-2024-3727 (containers/image)"
IMAGE = Image([tb.archive(tb.member(b"one", b"1")), tb.archive(tb.member(b"two", b"2"))], ["hostile:1"])
ZEROS = "sha256:" + "0" * 64

Make = Callable[[], Files]


def wrong(name: str, make: Make, error: type[Exception], told: str, stands_for: str = "") -> Any:
    return pytest.param(make, error, told, id=name, marks=case(name, "refused", stands_for))


def manifest_of(image: Image = IMAGE) -> tuple[Files, dict[str, Any]]:
    files: Files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    descriptor = put_image(files, image)
    data = files.pop(f"blobs/sha256/{descriptor['digest'][7:]}")
    assert isinstance(data, bytes)
    return files, json.loads(data)


def changed(change: Callable[[dict[str, Any]], object], **descriptor: Any) -> Make:
    """An OCI layout whose manifest was changed before its digest was made."""

    def make() -> Files:
        files, manifest = manifest_of()
        change(manifest)
        return with_manifest(files, json.dumps(manifest).encode(), **descriptor)

    return make


def with_manifest(files: Files, data: bytes, media_type: str = f"{OCI}.manifest.v1+json", **more: Any) -> Files:
    return files | {"index.json": index_of([put(files, data, media_type) | more])}


def raw(change: Callable[[bytes], bytes]) -> Make:
    """The same for a change of the manifest's bytes."""

    def make() -> Files:
        files, manifest = manifest_of()
        return with_manifest(files, change(json.dumps(manifest).encode()))

    return make


def config(change: Callable[[bytes], bytes]) -> Make:
    """An image whose config has other bytes."""

    def make() -> Files:
        files, manifest = manifest_of()
        manifest["config"] = put(files, change(IMAGE.config), f"{OCI}.config.v1+json")
        return with_manifest(files, json.dumps(manifest).encode())

    return make


def layer_with(**fields: Any) -> Make:
    return changed(lambda manifest: manifest["layers"][1].update(fields))


def deep_index(levels: int) -> Files:
    files: Files = {}
    descriptor = put_image(files, IMAGE)
    for _ in range(levels):
        descriptor = put(files, index_of([descriptor]), f"{OCI}.index.v1+json")
    return files | {"index.json": index_of([descriptor])}


def index_with(**fields: Any) -> Make:
    def make() -> Files:
        files: Files = {}
        return {"index.json": index_of([put_image(files, IMAGE) | fields])} | files

    return make


def docker(**entry: Any) -> Make:
    def make() -> Files:
        files = images.docker_files([IMAGE], "20.10")
        manifest = json.loads(bytes(files["manifest.json"]))  # type: ignore[arg-type]
        manifest[0].update(entry)
        return files | {"manifest.json": json.dumps(manifest).encode()}

    return make


def before(text: bytes, more: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.replace(text, more + text, 1)


def padded(size: int) -> Callable[[bytes], bytes]:
    return lambda data: data + b" " * (size - len(data))


REFUSED = [
    wrong(
        "a manifest that is an index, too",
        changed(lambda m: m.update(manifests=[])),
        InvalidInput,
        "both an index",
        CONFUSION,
    ),
    wrong(
        "an index that is a manifest, too",
        changed(lambda m: m.update(manifests=[], mediaType=f"{OCI}.index.v1+json"), media_type=f"{OCI}.index.v1+json"),
        InvalidInput,
        "both an index",
        CONFUSION,
    ),
    wrong(
        "a manifest that its index calls an index",
        changed(lambda m: None, media_type=f"{OCI}.index.v1+json"),
        InvalidInput,
        "by itself.*by what names it",
        CONFUSION,
    ),
    wrong(
        "a manifest of a type of no manifest",
        changed(lambda m: m.update(mediaType="text/html")),
        InvalidInput,
        "text/html",
        CONFUSION,
    ),
    wrong("a manifest whose type is no text", changed(lambda m: m.update(mediaType=["a"])), InvalidInput, "media type"),
    wrong("a manifest without layers", changed(lambda m: m.pop("layers")), InvalidInput, "layers is not a JSON list"),
    wrong(
        "a manifest without a config", changed(lambda m: m.pop("config")), InvalidInput, "config is not a JSON object"
    ),
    wrong(
        "a key twice in a manifest",
        raw(before(b'"layers"', b'"layers": [], ')),
        InvalidInput,
        "manifest.*'layers' twice",
        CONFUSION,
    ),
    wrong(
        "a key twice in a config",
        config(before(b'"rootfs"', b'"rootfs": {}, ')),
        InvalidInput,
        "config.*'rootfs' twice",
    ),
    wrong("NaN in a config", config(before(b'"rootfs"', b'"x": NaN, ')), InvalidInput, "config.*NaN"),
    wrong(
        "a number beyond all in a config", config(before(b'"rootfs"', b'"x": 1e999, ')), InvalidInput, "config.*1e999"
    ),
    wrong(
        "a number of 10,000 digits",
        config(before(b'"rootfs"', b'"x": ' + b"9" * 10_000 + b", ")),
        InvalidInput,
        "config.*digits",
    ),
    wrong(
        "half a letter in a config", config(before(b'"rootfs"', b'"x": "\\ud800", ')), InvalidInput, "config.*surrogate"
    ),
    wrong("a config of UTF-16", config(lambda d: d.decode().encode("utf-16")), InvalidInput, "config is not JSON"),
    wrong(
        "a config that is no UTF-8", config(before(b'"rootfs"', b'"x": "\xff", ')), InvalidInput, "config is not JSON"
    ),
    wrong(
        "a config with halves of letters",
        config(before(b'"rootfs"', b'"x": "\xed\xa0\x80", ')),
        InvalidInput,
        "config is not JSON",
    ),
    wrong(
        "a config of 10,000 levels",
        config(before(b'"rootfs"', b'"x": ' + b"[" * 10_000 + b"]" * 10_000 + b", ")),
        InvalidInput,
        "config.*recursion",
    ),
    wrong(
        "a manifest of 10,000 levels",
        raw(before(b'"layers"', b'"x": ' + b"[" * 10_000 + b"]" * 10_000 + b", ")),
        InvalidInput,
        "manifest.*recursion",
    ),
    wrong("a manifest of 4 MiB and one byte", raw(padded((4 << 20) + 1)), LimitExceeded, "manifest_bytes"),
    wrong("a config of 8 MiB and one byte", config(padded((8 << 20) + 1)), LimitExceeded, "config_bytes"),
    wrong(
        "an index.json of 4 MiB and one byte",
        lambda: {"index.json": padded((4 << 20) + 1)(b"{}")},
        LimitExceeded,
        "index.json.*manifest_bytes",
    ),
    wrong(
        "a manifest.json of 4 MiB and one byte",
        lambda: {"manifest.json": padded((4 << 20) + 1)(b"[]")},
        LimitExceeded,
        "manifest.json.*manifest_bytes",
    ),
    wrong("indexes 10 deep", lambda: deep_index(10), LimitExceeded, "sha256:.*index_depth"),
    wrong("a config that is not there", layer_with(digest=ZEROS), NotFound, "0000"),
    wrong(
        "a digest that leads out",
        layer_with(digest="sha256:../../../../etc/passwd"),
        InvalidInput,
        "layer 1.*etc/passwd",
        PATHS,
    ),
    wrong(
        "a digest of 64 letters that leads out",
        layer_with(digest="sha256:" + "../" * 21 + "x"),
        InvalidInput,
        "digest of layer 1",
        PATHS,
    ),
    wrong("a digest in capitals", layer_with(digest="sha256:" + "A" * 64), InvalidInput, "digest of layer 1", PATHS),
    wrong(
        "a digest of digits of another script",
        layer_with(digest="sha256:" + "\u0660" * 64),
        InvalidInput,
        "digest of layer 1",
        PATHS,
    ),
    wrong(
        "a digest with a newline",
        layer_with(digest="sha256:" + "0" * 64 + "\n"),
        InvalidInput,
        "digest of layer 1",
        PATHS,
    ),
    wrong("a digest of sha512", layer_with(digest="sha512:" + "0" * 128), InvalidInput, "digest of layer 1"),
    wrong("a digest that is a number", layer_with(digest=5), InvalidInput, "digest of layer 1"),
    wrong(
        "a digest of the config that leads out",
        changed(lambda m: m["config"].update(digest="sha256:/etc/passwd")),
        InvalidInput,
        "config.*etc/passwd",
        PATHS,
    ),
    wrong(
        "a digest of a manifest that leads out",
        index_with(digest="sha256:../../x"),
        InvalidInput,
        "manifest 0 of the index",
        PATHS,
    ),
    wrong(
        "a diff_id that leads out",
        config(lambda d: d.replace(IMAGE.diff_ids[0].encode(), b"sha256:../../x")),
        InvalidInput,
        "diff_id.*../../x",
        PATHS,
    ),
    wrong(
        "a diff_id that is another layer's",
        config(lambda d: d.replace(IMAGE.diff_ids[0].encode(), ZEROS.encode())),
        DigestMismatch,
        "diff_id sha256:",
    ),
    wrong(
        "a digest that is another layer's",
        layer_with(digest=digest_of(IMAGE.layers[0])),
        DigestMismatch,
        "diff_id|promised",
    ),
    wrong("a size that is less", layer_with(size=512), DigestMismatch, "512 were promised"),
    wrong("a size of 2^80", layer_with(size=1 << 80), DigestMismatch, "were promised"),
    wrong("a size below 0", layer_with(size=-1), InvalidInput, "size of layer 1 .*-1"),
    wrong("a size that is true", layer_with(size=True), InvalidInput, "size of layer 1 .*True"),
    wrong("a size that is 1.5", layer_with(size=1.5), InvalidInput, "size of layer 1 .*1.5"),
    wrong("a size of a manifest that is less", index_with(size=5), DigestMismatch, "manifest sha256.*says 5"),
    wrong("a layer of a made-up type", layer_with(mediaType="application/x-sh"), InvalidInput, "layer 1.*x-sh"),
    wrong(
        "a layer of an encrypted type",
        layer_with(mediaType=f"{OCI}.layer.v1.tar+gzip+encrypted"),
        InvalidInput,
        "encrypted",
    ),
    wrong(
        "a config of an artifact",
        changed(lambda m: m["config"].update(mediaType="application/vnd.cncf.helm.config.v1+json")),
        InvalidInput,
        "helm",
    ),
    wrong(
        "one layer more than the config says",
        changed(lambda m: m["layers"].append(m["layers"][0])),
        InvalidInput,
        "3 layers.*2 diff_ids",
    ),
    wrong(
        "70,000 layers",
        config(
            lambda d: json.dumps(json.loads(d) | {"rootfs": {"type": "layers", "diff_ids": [ZEROS] * 70_000}}).encode()
        ),
        LimitExceeded,
        "70000 layers.*limit layers",
    ),
    wrong(
        "a foreign layer without its blob",
        lambda: {
            k: v
            for k, v in layer_with(
                mediaType=f"{OCI}.layer.nondistributable.v1.tar", urls=["file:///etc/passwd"]
            )().items()
            if hex_of(IMAGE.layers[1]) not in k
        },
        NotFound,
        "blobs/sha256",
        "CVE-2020-15157 (containerd)",
    ),
    wrong("annotations that are no object", index_with(annotations=[1]), InvalidInput, "annotations of manifest 0"),
    wrong("a platform that is no object", index_with(platform="linux"), InvalidInput, "platform of manifest 0"),
    wrong(
        "a name that leads out",
        index_with(annotations={"io.containerd.image.name": "../../etc"}),
        InvalidInput,
        "../../etc.*image name",
    ),
    wrong(
        "a name of escapes for the terminal",
        index_with(annotations={"io.containerd.image.name": "\x1b[31mred"}),
        InvalidInput,
        r"\\x1b\[31mred",
    ),
    wrong(
        "a name of 10,000 letters",
        index_with(annotations={"io.containerd.image.name": "a" * 10_000}),
        InvalidInput,
        "image name",
    ),
    wrong("a tag that leads out", docker(RepoTags=["app:../../x"]), InvalidInput, "app:../../x"),
    wrong("a tag with a newline", docker(RepoTags=["app:1\nx"]), InvalidInput, r"app:1\\nx"),
    wrong("a config named /etc/passwd", docker(Config="/etc/passwd"), NotFound, "etc/passwd"),
    wrong("a config named ../../etc/passwd", docker(Config="../../etc/passwd"), InvalidInput, "etc/passwd.*leaves"),
    wrong(
        "a layer named ../../etc/passwd", docker(Layers=["../../etc/passwd", "x"]), InvalidInput, "etc/passwd.*leaves"
    ),
    wrong(
        "a config of another name than its digest",
        lambda: {**docker(Config="f" * 64 + ".json")(), "f" * 64 + ".json": IMAGE.config},
        CorruptError,
        "ffff.* has digest",
    ),
    wrong(
        "an image of a Windows layer",
        config(lambda d: d.replace(b'"type": "layers"', b'"type": "layers+base"')),
        InvalidInput,
        "layers.base",
    ),
]


@pytest.mark.parametrize(("make", "error", "told"), REFUSED)
def test_what_an_archive_says_is_refused(place: Place, make: Make, error: type[Exception], told: str) -> None:
    files = make()
    data = images.tar_of(files, last="manifest.json")
    directory = images.write_directory(files, place.new_path())
    with place.untouched():
        raises(lambda: place.store.load(io.BytesIO(data)), error, told)
        raises(lambda: place.store.load(source(Pipe(data))), error, told)
        raises(lambda: place.store.load(directory), error, told)


@pytest.mark.parametrize("name", ["manifest.json", "index.json"])
@case("manifest.json or index.json twice in an archive", "refused", "differs between readers")
def test_two_manifests(place: Place, name: str) -> None:
    files = images.docker_files([IMAGE]) if name == "manifest.json" else images.oci_files([IMAGE])
    body = images.tar_of(files)
    end = len(body.rstrip(b"\0"))
    twice = body[: end + -end % 512] + tb.member(b"./" + name.encode(), b"[]") + tb.END
    for file in (io.BytesIO(twice), Pipe(twice)):
        place.refuses(lambda file=file: place.store.load(source(file)), InvalidInput, f"two files {name}")


# Archives and directories that lead elsewhere


@pytest.mark.parametrize(
    ("target", "error", "told"),
    [
        pytest.param("/etc/passwd", NotFound, ".json", marks=case("a config that is a link to /etc/passwd", "refused")),
        pytest.param(
            "../../etc/passwd", InvalidInput, "leaves it", marks=case("a config that is a link to ../..", "refused")
        ),
        pytest.param(
            "manifest.json",
            InvalidInput,
            "loop of links",
            marks=case("a manifest.json that is a link to itself", "refused"),
        ),
    ],
)
def test_links_of_an_archive(place: Place, target: str, error: type[Exception], told: str) -> None:
    name = "manifest.json" if target == "manifest.json" else f"{hex_of(IMAGE.config)}.json"
    data = images.tar_of(images.docker_files([IMAGE], "20.10") | {name: target})
    if name == "manifest.json":
        error, told = InvalidInput, "neither a docker archive"
    place.refuses(lambda: place.store.load(io.BytesIO(data)), error, told)
    place.refuses(lambda: place.store.load(source(Pipe(data))), error, told)


def layout(place: Place) -> tuple[Path, Path]:
    """An OCI layout in a directory, and the blob of its second layer."""
    directory = images.write_directory(images.oci_files([IMAGE]), place.new_path())
    return directory, directory / "blobs" / "sha256" / hex_of(IMAGE.layers[1])


@case("a blob that is a symlink out of the layout", "leads nowhere: the file outside is not read")
def test_a_blob_that_is_a_link_out(place: Place) -> None:
    directory, blob = layout(place)
    outside = place.new_path()
    blob.rename(outside)
    blob.symlink_to(outside)
    place.refuses(lambda: place.store.load(directory), NotFound, blob.name)


@case("blobs in a directory that is a symlink out of the layout", "leads nowhere")
def test_a_directory_of_blobs_that_is_a_link_out(place: Place) -> None:
    directory, _ = layout(place)
    outside = place.new_path()
    (directory / "blobs").rename(outside)
    (directory / "blobs").symlink_to(outside)
    place.refuses(lambda: place.store.load(directory), NotFound, "blobs/sha256")


@pytest.mark.parametrize("what", ["blob", "index.json"])
@case("a fifo in a layout", "refused, and not waited for")
def test_a_fifo(place: Place, what: str) -> None:
    directory, blob = layout(place)
    path = blob if what == "blob" else directory / what
    path.unlink()
    os.mkfifo(path)
    place.refuses(lambda: place.store.load(directory), InvalidInput, f"{path.name} is no file")


@pytest.mark.root
@case("a device in a layout", "refused, and not opened")
def test_a_device(place: Place) -> None:
    directory, blob = layout(place)
    blob.unlink()
    os.mknod(blob, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    place.refuses(lambda: place.store.load(directory), InvalidInput, f"{blob.name} is no file")


@case("a directory in place of a blob", "refused")
def test_a_directory_for_a_blob(place: Place) -> None:
    directory, blob = layout(place)
    blob.unlink()
    blob.mkdir()
    place.refuses(lambda: place.store.load(directory), InvalidInput, f"{blob.name} is no file")


@case("a blob that is a hard link", "is a file: its digest says what it is")
def test_a_hard_link(place: Place) -> None:
    directory, blob = layout(place)
    os.link(blob, place.new_path())
    (image,) = place.store.load(directory)
    assert image.diff_ids == tuple(IMAGE.diff_ids)
    place.drop(image.names[0])
    place.changed()


@case("a store in place of a layout", "refused, and left alone")
def test_a_store_is_no_layout(place: Place) -> None:
    place.refuses(lambda: place.store.load(place.store.root), InvalidInput, "neither a docker archive")


@case("an archive whose sparse file is a layer", "refused")
def test_a_sparse_member(place: Place) -> None:
    data = tb.archive(tb.sparse_10(b"layer.tar", [], 1 << 39, b""))
    for file in (io.BytesIO(data), Pipe(data)):
        place.refuses(lambda file=file: place.store.load(source(file)), InvalidInput, "layer.tar.*sparse")


@case("limits of the caller's own", "hold for that store, by name in the message")
def test_limits_are_the_callers(tmp_path: Path) -> None:
    data = images.tar_of(images.docker_files([IMAGE]))
    for name in ("manifest_bytes", "config_bytes", "members", "metadata_bytes", "layers", "layer_bytes", "path_bytes"):
        limits = Limits(**{name: 1})
        with (
            Store(tmp_path / name, create=True, limits=limits) as store,
            pytest.raises(LimitExceeded, match=name),
        ):
            store.load(io.BytesIO(data))
    with pytest.raises(InvalidInput, match="path_bytes is 5000"):
        Limits(path_bytes=5000)
    with pytest.raises(InvalidInput, match="no limit 'nothing'"):
        Limits().changed({"nothing": 1})
