"""Images as others write them, from hand-made layers: the files of docker archives and OCI layouts, for tests to spoil.

    image = Image([tar], names=["app:1"])
    files = docker_files([image], style="20.10")          # {member: its bytes, or the target of a symlink as str}
    path.write_bytes(tar_of(files, last="manifest.json"))
    write_directory(oci_files([image], "zstd"), directory)

Layers are tars as bytes, bottom first (tests/tarbytes.py, tests/layer_model.py).
"""

import functools
import gzip
import hashlib
import io
import itertools
import json
import os
import sqlite3
import stat
import struct
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Files = dict[str, bytes | str]
COMPRESSIONS = ("none", "gzip", "zstd", "zstd:chunked")
CREATED = "2024-05-06T07:08:09.123456789Z"
OCI = "application/vnd.oci.image"
DOCKER = "application/vnd.docker"


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def digest_of(data: bytes) -> str:
    return f"sha256:{hex_of(data)}"


def compressed(data: bytes, how: str) -> bytes:
    if how == "gzip":
        return gzip.compress(data, 1, mtime=0)
    if how == "zstd:chunked":
        return zstd_chunked(data)
    return zstd.compress(data, 1) if how == "zstd" else data


def skippable(data: bytes, number: int = 0) -> bytes:
    """A skippable frame (RFC 8878, 3.1.2)."""
    return struct.pack("<II", 0x184D2A50 + number, len(data)) + data


def zstd_chunked(data: bytes) -> bytes:
    """As podman writes it (containers/storage, containers-storage-zstd-chunked.md): a frame for each part, then the
    table of contents and the footer, in skippable frames."""
    parts = [zstd.compress(data[at : at + 5000], 1) for at in range(0, len(data), 5000)]
    toc = zstd.compress(b'{"version": 1, "entries": []}')
    footer = struct.pack("<4Q", sum(map(len, parts)) + 8, len(toc), 29, 1) + b"GnUlInUx"
    return b"".join([*parts, skippable(toc), skippable(footer)])


def media_ending(compression: str) -> str:
    """What the media type of a layer of that compression says of it, without what goes before it."""
    return "" if compression == "none" else compression.partition(":")[0]


@dataclass
class Image:
    """An image to be written. `document` has precedence over what is made up for its config."""

    layers: Sequence[bytes]
    names: Sequence[str] = ()
    runtime: Mapping[str, Any] = field(default_factory=dict)
    document: Mapping[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> bytes:
        document = {
            "architecture": "amd64",
            "os": "linux",
            "created": CREATED,
            "config": dict(self.runtime),
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
            "history": [{"created": CREATED, "created_by": f"step {i}"} for i in range(len(self.layers))],
        }
        return json.dumps(document | dict(self.document)).encode()

    @property
    def id(self) -> str:
        return digest_of(self.config)

    @functools.cached_property
    def diff_ids(self) -> list[str]:
        return [digest_of(layer) for layer in self.layers]


def docker_files(images: Iterable[Image], style: str = "25", compression: str = "none") -> Files:
    """A docker archive. Styles: "20.10" (a directory a layer, equal ones as symlinks) and "25" (with OCI blobs)."""
    return _legacy_files(list(images), compression) if style == "20.10" else _modern_files(list(images), compression)


def _legacy_files(images: list[Image], compression: str) -> Files:
    files: Files = {}
    manifest, repositories, written = [], {}, {}
    for image in images:
        chain, layers = "", []
        for layer in image.layers:
            diff_id = digest_of(layer)
            chain = hex_of(f"{chain} {diff_id}".encode())
            layers.append(f"{chain}/layer.tar")
            files[f"{chain}/VERSION"] = b"1.0"
            files[f"{chain}/json"] = json.dumps({"id": chain, "os": "linux"}).encode()
            if diff_id in written and written[diff_id] != chain:
                files[f"{chain}/layer.tar"] = f"../{written[diff_id]}/layer.tar"
            else:
                files[f"{chain}/layer.tar"] = compressed(layer, compression)
                written[diff_id] = chain
        config = f"{hex_of(image.config)}.json"
        files[config] = image.config
        manifest.append({"Config": config, "RepoTags": list(image.names) or None, "Layers": layers})
        for name in image.names:
            repository, _, tag = name.rpartition(":")
            repositories.setdefault(repository, {})[tag] = chain
    files["manifest.json"] = json.dumps(manifest).encode()
    if repositories:
        files["repositories"] = json.dumps(repositories).encode()
    return files


def _modern_files(images: list[Image], compression: str) -> Files:
    files = oci_files(images, compression)
    manifest, descriptors = [], iter(json.loads(files["index.json"])["manifests"])
    for image in images:
        of_image = next(itertools.islice(descriptors, max(len(image.names), 1) - 1, None))
        blobs = json.loads(files[blob_path(of_image["digest"])])
        layers = [blob_path(layer["digest"]) for layer in blobs["layers"]]
        config = blob_path(blobs["config"]["digest"])
        manifest.append({"Config": config, "RepoTags": list(image.names) or None, "Layers": layers})
    return files | {"manifest.json": json.dumps(manifest).encode()}


def put(files: Files, data: bytes, media_type: str, **more: Any) -> dict[str, Any]:
    """Have `data` among an OCI layout's blobs; returns its descriptor."""
    digest = digest_of(data)
    files[blob_path(digest)] = data
    return {"mediaType": media_type, "digest": digest, "size": len(data)} | more


def blob_path(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def put_image(files: Files, image: Image, compression: str = "none", **more: Any) -> dict[str, Any]:
    """Have an image's blobs among an OCI layout's; returns its manifest's descriptor."""
    suffix = f"+{media_ending(compression)}".rstrip("+")
    layers = [put(files, compressed(layer, compression), f"{OCI}.layer.v1.tar{suffix}") for layer in image.layers]
    config = put(files, image.config, f"{OCI}.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": layers}
    return put(files, json.dumps(manifest).encode(), f"{OCI}.manifest.v1+json", **more)


def index_of(descriptors: Sequence[Mapping[str, Any]]) -> bytes:
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": list(descriptors)}
    return json.dumps(index).encode()


def oci_files(images: Iterable[Image], compression: str = "none") -> Files:
    """An OCI layout; a name is its manifest's annotation, as skopeo and docker 25 write it."""
    files: Files = {"oci-layout": b'{"imageLayoutVersion": "1.0.0"}'}
    descriptors = []
    for image in images:
        of_image = put_image(files, image, compression)
        for name in image.names or [None]:
            key = "io.containerd.image.name" if name and "/" in name else "org.opencontainers.image.ref.name"
            descriptors.append(of_image | ({"annotations": {key: name}} if name else {}))
    return files | {"index.json": index_of(descriptors)}


def tar_of(files: Files, *, first: str | None = None, last: str | None = None) -> bytes:
    """The files as a tar, in the order of their names but for `first` and `last`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in sorted(files, key=lambda name: (name != first, name == last, name)):
            member, data = tarfile.TarInfo(name), files[name]
            if isinstance(data, str):
                member.type, member.linkname = tarfile.SYMTYPE, data
                archive.addfile(member)
            else:
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def write_directory(files: Files, root: Path) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(data, str):
            path.symlink_to(data)
        else:
            path.write_bytes(data)
    return root


def store_state(root: Path) -> tuple[dict[str, object], list[str]]:
    """All that a store holds: its files but for locks (path: type and content), and its database as SQL."""
    tree: dict[str, object] = {}
    above = len(f"{root}/")
    for top, directories, files in os.walk(root):
        for name in directories:
            path = f"{top}/{name}"
            tree[path[above:]] = (stat.S_IFMT(os.lstat(path).st_mode), None)
        for name in files:
            path = f"{top}/{name}"
            if not path.startswith("layerstore.db", above) and not path.endswith(".lock"):
                data = Path(path).read_bytes() if os.path.isfile(path) else None
                tree[path[above:]] = (stat.S_IFMT(os.lstat(path).st_mode), None if data is None else hex_of(data))
    db = sqlite3.connect(root / "layerstore.db")
    try:
        return tree, list(db.iterdump())
    finally:
        db.close()


def used_bytes(root: Path) -> int:
    """Disk space of a store's files, its database left out."""
    paths = [path for path in root.rglob("*") if path.is_file() and not path.name.startswith("layerstore.db")]
    return sum(os.lstat(path).st_blocks * 512 for path in paths)
