"""What an archive or layout says of the images in it: manifests and index of the OCI image specification 1.1
("manifest.md", "image-index.md", "image-layout.md", "annotations.md"), and docker's manifest.json and repositories.

All of it is deterministic: equal images give equal bytes.
"""

from __future__ import annotations

from layerstore.oci.configs import to_json
from layerstore.types import Digest, Value, full_name, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any

    from layerstore.oci.configs import ImageConfig

LAYOUT_FILE = b'{"imageLayoutVersion":"1.0.0"}'
_TYPE = "application/vnd.oci.image"
_MANIFEST_TYPE = f"{_TYPE}.manifest.v1+json"
_PLATFORM = ("architecture", "os", "os.version", "os.features", "variant")


class LayoutBlob(Value):
    """A layer as it is saved: its blob's digest and size in bytes, and what it is compressed with ("none", "gzip",
    "zstd")."""

    digest: Digest
    size_bytes: int
    compression: str


class LayoutImage(Value):
    """An image to be saved: its config as it is read and as it is stored, its layers bottom first, its names."""

    config: ImageConfig
    config_data: bytes
    layers: tuple[LayoutBlob, ...]
    names: tuple[str, ...]

    def manifest(self) -> bytes:
        """Its manifest."""
        layers = [_descriptor(_layer_type(layer), layer.digest, layer.size_bytes) for layer in self.layers]
        config = _descriptor(f"{_TYPE}.config.v1+json", Digest(self.config.image_id), len(self.config_data))
        return to_json({"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, "config": config, "layers": layers})

    def platform(self) -> dict[str, Any]:
        """What its config says that it runs on; empty where it does not say both system and architecture."""
        document = self.config.document
        if not (document.get("architecture") and document.get("os")):
            return {}
        return {key: document[key] for key in _PLATFORM if document.get(key)}


def blob_name(digest: str) -> str:
    """Where a blob is in a layout."""
    return f"blobs/{digest.replace(':', '/')}"


def index(images: Sequence[LayoutImage]) -> bytes:
    """index.json: a descriptor for each name of each image, one without annotations for an image that has none.

    As containerd and docker write it, the whole name is in one annotation and the tag in another. Where the tag alone
    would name two images, the name as docker prints it is in its place.
    """
    tags = [tag for image in images for tag in {_tag(name) for name in image.names}]
    manifests = []
    for image in images:
        data = image.manifest()
        descriptor = _descriptor(_MANIFEST_TYPE, sha256_digest(data), len(data))
        if platform := image.platform():
            descriptor["platform"] = platform
        manifests += [{**descriptor, "annotations": _annotations(name, tags)} for name in image.names] or [descriptor]
    return to_json({"schemaVersion": 2, "mediaType": f"{_TYPE}.index.v1+json", "manifests": manifests})


def _annotations(name: str, tags: Sequence[str]) -> dict[str, str]:
    short = _tag(name) if tags.count(_tag(name)) == 1 else name
    return {"io.containerd.image.name": full_name(name), "org.opencontainers.image.ref.name": short}


def docker_manifest(images: Iterable[LayoutImage]) -> bytes:
    """manifest.json, which docker (since 1.10) and those that read its archives take images from."""
    return to_json(
        [
            {
                "Config": blob_name(image.config.image_id),
                "RepoTags": list(image.names) or None,
                "Layers": [blob_name(layer.digest) for layer in image.layers],
            }
            for image in images
        ]
    )


def docker_repositories(images: Iterable[LayoutImage]) -> bytes | None:
    """The file `repositories`, which tells a topmost layer by repository and tag; None where no image has a name."""
    found: dict[str, dict[str, str]] = {}
    for image in images:
        for name in image.names if image.layers else ():
            repository, _, tag = name.rpartition(":")
            found.setdefault(repository, {})[tag] = image.layers[-1].digest.removeprefix("sha256:")
    return to_json(found) if found else None


def _tag(name: str) -> str:
    return name.rpartition(":")[2]


def _layer_type(layer: LayoutBlob) -> str:
    ending = "" if layer.compression == "none" else f"+{layer.compression}"
    return f"{_TYPE}.layer.v1.tar{ending}"


def _descriptor(media_type: str, digest: Digest, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest, "size": size}
