"""Images in files: docker archives (as `docker save` of any version writes them), OCI layouts as directories or tars.

`list_images` reads what an archive says of its images; their layers are opened by name after that.
"""

from __future__ import annotations

import os
import stat
import tarfile

from layerstore.errors import CorruptError, InvalidInput, LimitExceeded, NotFound
from layerstore.naming import about
from layerstore.oci.configs import CONFIG_LIMIT_BYTES, parse_config, parse_json
from layerstore.oci.images import (
    MANIFEST_LIMIT_BYTES,
    check_blob,
    for_platform,
    go_architecture,
    is_index,
    parse_index,
    parse_manifest,
)
from layerstore.types import Value, normalise_name, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO, Protocol

    from layerstore.oci.configs import ImageConfig
    from layerstore.oci.images import Descriptor
    from layerstore.types import DiffId, Digest

    class Readable(Protocol):
        def read(self, size: int, /) -> bytes: ...

    class Members(Protocol):
        """Random access to the files of an archive by name."""

        def read(self, name: str, limit_bytes: int) -> bytes: ...

        def has(self, name: str) -> bool: ...


_INDEX_DEPTH = 4


class LayerSource(Value):
    """A layer that an image wants: where it is in the archive, and what is promised for it."""

    def __init__(self, member: str, diff_id: DiffId, digest: Digest | None, size_bytes: int | None) -> None:
        self.member = member
        self.diff_id = diff_id
        self.digest = digest
        self.size_bytes = size_bytes


class ArchivedImage(Value):
    """An image of an archive: its config, its layers bottom first, its names, its blobs (config, manifest) to keep."""

    def __init__(
        self, config: ImageConfig, layers: tuple[LayerSource, ...], names: tuple[str, ...], blobs: dict[Digest, bytes]
    ) -> None:
        self.config = config
        self.layers = layers
        self.names = names
        self.blobs = blobs


def list_images(members: Members, label: str) -> list[ArchivedImage]:
    """The images of a docker archive or OCI layout. `label` names images whose reference is only a tag.

    Raises `InvalidInput` where it is neither, `DigestMismatch`, `LimitExceeded`, `CorruptError`.
    """
    if members.has("manifest.json"):
        return list(_docker_images(members))
    if members.has("index.json"):
        return list(_oci_images(members, label))
    raise InvalidInput(
        "this is neither a docker archive (no manifest.json) nor an OCI layout (no index.json); "
        "a plain root file system is taken in by `layerstore import FILE NAME`"
    )


def _docker_images(members: Members) -> Iterator[ArchivedImage]:
    entries = parse_json(members.read("manifest.json", MANIFEST_LIMIT_BYTES), "manifest.json", MANIFEST_LIMIT_BYTES)
    if not isinstance(entries, list) or not entries:
        raise InvalidInput("manifest.json of the docker archive lists no image")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
            raise InvalidInput('manifest.json of the docker archive has an image without a "Config"')
        data = members.read(clean_member(entry["Config"]), CONFIG_LIMIT_BYTES)
        config = parse_config(data)
        _check_named_digest(entry["Config"], data)
        layers = entry.get("Layers") or []
        if not isinstance(layers, list) or len(layers) != len(config.diff_ids):
            raise InvalidInput(
                f"manifest.json lists {len(layers)} layers for image {config.image_id}, "
                f"but its config has {len(config.diff_ids)}"
            )
        sources = tuple(
            LayerSource(clean_member(str(name)), diff_id, None, None)
            for name, diff_id in zip(layers, config.diff_ids, strict=True)
        )
        tags = entry.get("RepoTags") or []
        if not isinstance(tags, list):
            raise InvalidInput(f"RepoTags of image {config.image_id} in manifest.json is not a list of names")
        names = tuple(normalise_name(str(name)) for name in tags)
        yield ArchivedImage(config, sources, names, {sha256_digest(data): data})


def _check_named_digest(name: str, data: bytes) -> None:
    """A config file is named by its digest; one that is not would change the image's id unseen."""
    stem = os.path.basename(clean_member(name)).removesuffix(".json")
    if len(stem) == 64 and sha256_digest(data) != f"sha256:{stem}":
        raise CorruptError(f"config {name} has digest {sha256_digest(data)}; save the image again")


def _oci_images(members: Members, label: str) -> Iterator[ArchivedImage]:
    top = parse_json(members.read("index.json", MANIFEST_LIMIT_BYTES), "index.json", MANIFEST_LIMIT_BYTES)
    if not isinstance(top, dict):
        raise InvalidInput("index.json of the OCI layout is not a JSON object")
    found = False
    for descriptor in for_platform(parse_index(top), go_architecture()):
        names = _names_of(descriptor, label)
        for manifest, data in _manifests(members, descriptor, _INDEX_DEPTH):
            found = True
            yield _oci_image(members, manifest, data, names)
    if not found:
        raise NotFound(f"the OCI layout holds no image for linux on {go_architecture()}")


def _names_of(descriptor: Descriptor, label: str) -> tuple[str, ...]:
    full = descriptor.annotations.get("io.containerd.image.name")
    name = full or descriptor.annotations.get("org.opencontainers.image.ref.name")
    if not name:
        return ()
    if not full and "/" not in name and ":" not in name:
        # By the specification the annotation is often the tag alone; the layout's own name stands for the repository.
        name = f"{label}:{name}"
    return (normalise_name(name),)


def _manifests(members: Members, descriptor: Descriptor, depth: int) -> Iterator[tuple[Descriptor, bytes]]:
    data = members.read(_blob_member(descriptor.digest), MANIFEST_LIMIT_BYTES)
    check_blob(data, descriptor, "a manifest")
    document = parse_json(data, "a manifest", MANIFEST_LIMIT_BYTES)
    if not isinstance(document, dict):
        raise InvalidInput("a manifest is not a JSON object")
    if not is_index(document, descriptor.media_type):
        yield descriptor, data
        return
    if depth == 0:
        raise InvalidInput(f"indexes are nested more than {_INDEX_DEPTH} deep")
    for child in for_platform(parse_index(document), go_architecture()):
        yield from _manifests(members, child, depth - 1)
        return


def _oci_image(members: Members, descriptor: Descriptor, data: bytes, names: tuple[str, ...]) -> ArchivedImage:
    manifest = parse_manifest(parse_json(data, "a manifest", MANIFEST_LIMIT_BYTES))
    raw_config = members.read(_blob_member(manifest.config.digest), CONFIG_LIMIT_BYTES)
    check_blob(raw_config, manifest.config, "the image config")
    config = parse_config(raw_config, manifest.config.digest)
    if len(manifest.layers) != len(config.diff_ids):
        raise InvalidInput(
            f"the manifest has {len(manifest.layers)} layers, but the config has {len(config.diff_ids)} diff_ids"
        )
    sources = tuple(
        LayerSource(_blob_member(layer.digest), diff_id, layer.digest, layer.size_bytes)
        for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
    )
    return ArchivedImage(config, sources, names, {manifest.config.digest: raw_config, descriptor.digest: data})


def _blob_member(digest: Digest) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def clean_member(name: str) -> str:
    """A member's name in one spelling. Raises `InvalidInput` where it leaves the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidInput(f"the archive names {name!r}, which leaves it")
    return "/".join(parts)


class DirectoryMembers:
    """An OCI layout (or unpacked docker archive) in a directory; symlinks are not followed."""

    def __init__(self, root: str) -> None:
        self._root = root

    def has(self, name: str) -> bool:
        try:
            return stat.S_ISREG(os.stat(os.path.join(self._root, name)).st_mode)
        except FileNotFoundError:
            return False

    def open(self, name: str) -> BinaryIO:
        try:
            fd = os.open(os.path.join(self._root, name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{self._root} has no {name}; copy the layout again") from None
        return open(fd, "rb", buffering=0)

    def size_bytes(self, name: str) -> int:
        return os.lstat(os.path.join(self._root, name)).st_size

    def read(self, name: str, limit_bytes: int) -> bytes:
        with self.open(name) as file:
            return _read_limited(file, limit_bytes, name)


class Range:
    """A range of a seekable file, read in order. Closing it leaves the file open."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        self._file = file
        self._offset = offset
        self._left = size

    def read(self, size: int, /) -> bytes:
        want = min(size, self._left)
        if not want:
            return b""
        with about(getattr(self._file, "name", "the archive")):
            self._file.seek(self._offset)
            data = self._file.read(want)
        if not data:
            raise CorruptError("the archive is cut off; save the image again")
        self._offset += len(data)
        self._left -= len(data)
        return data

    def __enter__(self) -> Range:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class TarMembers:
    """An uncompressed archive in a seekable file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        try:
            with about(getattr(file, "name", "the archive")), tarfile.open(fileobj=file, mode="r:") as archive:
                self._members = {clean_member(member.name): member for member in archive}
        except tarfile.TarError as error:
            raise CorruptError(f"the archive cannot be read as a tar: {error}") from error
        self._links = {name: member for name, member in self._members.items() if member.issym() or member.islnk()}

    def has(self, name: str) -> bool:
        return name in self._members

    def open(self, name: str) -> Range:
        member = self._file_member(name)
        return Range(self._file, member.offset_data, member.size)

    def size_bytes(self, name: str) -> int:
        return self._file_member(name).size

    def _file_member(self, name: str) -> tarfile.TarInfo:
        name = resolve_links(name, self._links)
        member = self._members.get(name)
        if member is None or not member.isreg():
            raise NotFound(f"the archive has no file {name}; save the image again")
        return member

    def read(self, name: str, limit_bytes: int) -> bytes:
        with self.open(name) as file:
            return _read_limited(file, limit_bytes, name)


def resolve_links(name: str, links: dict[str, tarfile.TarInfo]) -> str:
    """Follow links among members (docker 20.10 writes equal layers so). Raises `InvalidInput` for a loop."""
    for _ in range(40):
        member = links.get(name)
        if member is None:
            return name
        # From "." and not from "", below which ".." would lead to the top again: a link out of the archive is refused.
        base = (os.path.dirname(name) or ".") if member.issym() else ""
        name = clean_member(os.path.normpath(f"{base}/{member.linkname}").lstrip("/"))
    raise InvalidInput(f"the archive's member {name!r} is a loop of links")


def _read_limited(file: Readable, limit_bytes: int, name: str) -> bytes:
    data = b""
    with about(name):
        while len(data) <= limit_bytes and (piece := file.read(limit_bytes + 1 - len(data))):
            data += piece
    if len(data) > limit_bytes:
        raise LimitExceeded(f"{name} has more than {limit_bytes} bytes, the limit for such a file")
    return data
