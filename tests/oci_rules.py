"""Is a set of files an OCI image layout by the rules of the image specification 1.1?

Written from https://github.com/opencontainers/image-spec/tree/v1.1.0: "image-layout.md", "image-index.md",
"manifest.md", "descriptor.md", "config.md", "annotations.md" and "media-types.md". `check` raises AssertionError that
names the file and what is wrong with it; it also wants nothing to be missing, which a layout may but ours do not.
"""

import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

from images import OCI, zstd

TYPE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}")  # RFC 6838
DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
REFERENCE = re.compile(r"[A-Za-z0-9]+((--|[-._:@+])[A-Za-z0-9]+)*(/[A-Za-z0-9]+((--|[-._:@+])[A-Za-z0-9]+)*)*")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")  # RFC 3339
LAYERS = {
    f"{OCI}.layer.v1.tar": lambda data: data,
    f"{OCI}.layer.v1.tar+gzip": gzip.decompress,
    f"{OCI}.layer.v1.tar+zstd": zstd.decompress,
}


def check(files: Mapping[str, bytes]) -> list[dict[str, Any]]:
    """The manifests' descriptors in the index."""
    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    blobs = {name: data for name, data in files.items() if name.startswith("blobs/")}
    for name, data in blobs.items():
        assert name == f"blobs/sha256/{hashlib.sha256(data).hexdigest()}", f"{name} is not named by its digest"
    index = json.loads(files["index.json"])
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == f"{OCI}.index.v1+json"
    assert index.keys() <= {"schemaVersion", "mediaType", "artifactType", "manifests", "subject", "annotations"}
    used = set()
    for descriptor in index["manifests"]:
        used |= check_manifest(blobs, descriptor)
    assert used == blobs.keys(), "blobs that nothing refers to"
    names = [descriptor.get("annotations", {}).get("io.containerd.image.name") for descriptor in index["manifests"]]
    assert len([name for name in names if name]) == len({name for name in names if name})
    manifests: list[dict[str, Any]] = index["manifests"]
    return manifests


def check_descriptor(blobs: Mapping[str, bytes], descriptor: Any, what: str) -> bytes:
    """What it refers to."""
    known = {"mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"}
    assert {"mediaType", "digest", "size"} <= descriptor.keys() <= known, what
    assert TYPE_NAME.fullmatch(descriptor["mediaType"]), what
    assert DIGEST.fullmatch(descriptor["digest"]), what
    data = blobs[f"blobs/{descriptor['digest'].replace(':', '/')}"]
    assert type(descriptor["size"]) is int
    assert descriptor["size"] == len(data), what
    for key, value in descriptor.get("annotations", {}).items():
        assert isinstance(value, str), what
        if key == "org.opencontainers.image.ref.name":
            assert REFERENCE.fullmatch(value), f"{value} of {what}"
    return data


def check_manifest(blobs: Mapping[str, bytes], descriptor: Any) -> set[str]:
    """The names of the blobs that it and what it refers to are in."""
    data = check_descriptor(blobs, descriptor, "a manifest")
    manifest = json.loads(data)
    assert descriptor["mediaType"] == manifest["mediaType"] == f"{OCI}.manifest.v1+json"
    assert manifest["schemaVersion"] == 2
    known = {"schemaVersion", "mediaType", "artifactType", "config", "layers", "subject", "annotations"}
    assert manifest.keys() <= known
    assert manifest["config"]["mediaType"] == f"{OCI}.config.v1+json"
    config = json.loads(check_descriptor(blobs, manifest["config"], "a config"))
    assert config["architecture"] and config["os"]
    assert config["rootfs"].keys() == {"type", "diff_ids"}
    assert config["rootfs"]["type"] == "layers"
    if "created" in config:
        assert TIME.fullmatch(config["created"])
    if "platform" in descriptor:
        assert {"architecture", "os"} <= descriptor["platform"].keys()
        assert all(config[key] == value for key, value in descriptor["platform"].items())
    found = []
    for layer in manifest["layers"]:
        plain = LAYERS[layer["mediaType"]](check_descriptor(blobs, layer, "a layer"))
        found.append(f"sha256:{hashlib.sha256(plain).hexdigest()}")
    assert found == config["rootfs"]["diff_ids"], "the layers are not those of the config"
    digests = [part["digest"] for part in (descriptor, manifest["config"], *manifest["layers"])]
    return {f"blobs/{digest.replace(':', '/')}" for digest in digests}
