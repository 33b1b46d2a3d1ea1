"""Manifests of the OCI image specification and of docker, checked as they are read."""

from __future__ import annotations

import os

from layerstore.errors import DigestMismatch, InvalidInput
from layerstore.limits import beyond
from layerstore.oci.configs import json_list, json_object, parse_config, parse_json
from layerstore.types import Digest, Value, parse_digest, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from layerstore.limits import Limits
    from layerstore.oci.configs import ImageConfig

_GO_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}

INDEX_TYPES = {
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
}
MANIFEST_TYPES = {
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
}
_CONFIG_TYPES = {
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
}
LAYER_TYPES = {
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
}


def go_architecture() -> str:
    """This machine's architecture in the names that images use."""
    machine = os.uname().machine
    return _GO_ARCHITECTURES.get(machine, machine)


class Descriptor(Value):
    """A reference to a blob ("descriptor.md"): what it is, its digest, its size in bytes, annotations, platform."""

    media_type: str
    digest: Digest
    size_bytes: int
    annotations: dict[str, str]
    platform: dict[str, Any]


def is_foreign(layer: Descriptor) -> bool:
    """Is it a layer that its maker alone may distribute ("layer.md", "Non-Distributable Layers")?"""
    return ".nondistributable." in layer.media_type or ".foreign." in layer.media_type


class Manifest(Value):
    """An image manifest: config and layers, bottom first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_descriptor(value: Any, what: str) -> Descriptor:
    """Check a descriptor. Raises `InvalidInput` naming `what`."""
    descriptor = json_object(value, what)
    size = descriptor.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise InvalidInput(f"the size of {what} is {size!r}, not a number of bytes")
    media_type = descriptor.get("mediaType")
    annotations = descriptor.get("annotations") or {}
    platform = descriptor.get("platform") or {}
    return Descriptor(
        media_type=media_type if isinstance(media_type, str) else "",
        digest=parse_digest(descriptor.get("digest"), f"the digest of {what}"),
        size_bytes=size,
        annotations={k: v for k, v in json_object(annotations, f"annotations of {what}").items() if isinstance(v, str)},
        platform=json_object(platform, f"the platform of {what}"),
    )


def check_blob(data: bytes, descriptor: Descriptor, what: str) -> None:
    """Raises `DigestMismatch` where data have not the descriptor's size and digest."""
    if len(data) != descriptor.size_bytes:
        raise DigestMismatch(f"{what} has {len(data)} bytes, but its descriptor says {descriptor.size_bytes}")
    digest = sha256_digest(data)
    if digest != descriptor.digest:
        raise DigestMismatch(f"{what} has digest {digest}, but its descriptor says {descriptor.digest}")


def is_index(document: dict[str, Any], media_type: str) -> bool:
    """Is it an index of manifests, not a manifest? Raises `InvalidInput` when it claims to be both or neither."""
    declared = document.get("mediaType", media_type)
    known = INDEX_TYPES | MANIFEST_TYPES
    if not isinstance(declared, str):
        raise InvalidInput(f"the manifest's media type is {declared!r}, which is no text")
    if declared in known and media_type in known and declared != media_type:
        raise InvalidInput(f"the manifest's media type is {declared!r} by itself and {media_type!r} by what names it")
    if "manifests" in document and ("layers" in document or "config" in document):
        raise InvalidInput("a manifest is both an index and an image manifest, so neither can be trusted")
    if declared in INDEX_TYPES or (not declared and "manifests" in document):
        return True
    if declared in MANIFEST_TYPES or (not declared and "layers" in document):
        return False
    raise InvalidInput(f"media type {declared!r} is neither an image manifest nor an index")


def parse_document(data: bytes, what: str, limits: Limits | None = None) -> dict[str, Any]:
    """Decode a manifest or index. Raises `InvalidInput` naming `what`, `LimitExceeded`."""
    if limits is not None and len(data) > limits.manifest_bytes:
        raise beyond(f"{what} has {len(data)} bytes", limits, "manifest_bytes")
    return json_object(parse_json(data, what, limits), what)


def parse_manifest(document: dict[str, Any], limits: Limits | None = None) -> Manifest:
    """Read an image manifest. Raises `InvalidInput`, `LimitExceeded`."""
    config = parse_descriptor(document.get("config"), "the manifest's config")
    if config.media_type not in _CONFIG_TYPES:
        raise InvalidInput(f"the config's media type is {config.media_type!r}; this is not a container image")
    layers = json_list(document.get("layers"), "the manifest's layers")
    if limits is not None and len(layers) > limits.layers:
        raise beyond(f"the manifest names {len(layers)} layers", limits, "layers")
    parsed = tuple(parse_descriptor(layer, f"layer {i} of the manifest") for i, layer in enumerate(layers))
    for i, layer in enumerate(parsed):
        if layer.media_type not in LAYER_TYPES:
            raise InvalidInput(f"layer {i} has media type {layer.media_type!r}, which is not known")
    return Manifest(config=config, layers=parsed)


def config_of(manifest: Manifest, data: bytes, limits: Limits) -> ImageConfig:
    """Read the config that a manifest names. Raises `InvalidInput` where they do not go together, and as
    `parse_config`."""
    check_blob(data, manifest.config, "the image config")
    config = parse_config(data, manifest.config.digest, limits)
    if len(manifest.layers) != len(config.diff_ids):
        raise InvalidInput(
            f"the manifest has {len(manifest.layers)} layers, but its config has {len(config.diff_ids)} diff_ids"
        )
    return config


def parse_index(document: dict[str, Any]) -> Sequence[Descriptor]:
    """The manifests of an index. Raises `InvalidInput`."""
    manifests = json_list(document.get("manifests"), "the index's manifests")
    return [parse_descriptor(m, f"manifest {i} of the index") for i, m in enumerate(manifests)]


def for_platform(manifests: Sequence[Descriptor], architecture: str) -> Iterator[Descriptor]:
    """Those of an index that fit linux on `architecture` (Go's name); those that name no platform fit too."""
    for manifest in manifests:
        platform = manifest.platform
        if platform.get("os", "linux") == "linux" and platform.get("architecture", architecture) == architecture:
            yield manifest
