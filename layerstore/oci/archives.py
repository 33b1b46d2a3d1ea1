"""Images in files: docker archives (as `docker save` of any version writes them), OCI layouts as directories or tars.

`list_images` reads what an archive says of its images; their layers are opened by name after that.
"""

from __future__ import annotations

import errno
import os
import stat

from layerstore._core.mount import open_inside
from layerstore._core.tar import Data, Entry, Raw, Walk, walk
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError, NotFound
from layerstore.limits import beyond
from layerstore.naming import about, closing_fd, fstat, open_fd
from layerstore.oci.configs import ImageConfig, parse_config, parse_json
from layerstore.oci.layouts import blob_name
from layerstore.oci.manifests import (
    check_blob,
    config_of,
    for_platform,
    go_architecture,
    is_index,
    parse_document,
    parse_index,
    parse_manifest,
)
from layerstore.types import Value, decode_path, normalise_name, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import BinaryIO, Protocol

    from layerstore.limits import Limits
    from layerstore.oci.manifests import Descriptor
    from layerstore.types import DiffId, Digest

    class Readable(Protocol):
        def read(self, size: int, /) -> bytes: ...

    class Members(Protocol):
        """Random access to the files of an archive by name. `limit` names the limit of what is read."""

        def read(self, name: str, limit: str) -> bytes: ...

        def has(self, name: str) -> bool: ...


_BLOCK = 512
_ANY_BYTES = (1 << 63) - 1


class LayerSource(Value):
    """A layer that an image wants: where it is in the archive, and what is promised for it."""

    member: str
    diff_id: DiffId
    digest: Digest | None
    size_bytes: int | None


class ArchivedImage(Value):
    """An image of an archive: its config without the document, its layers bottom first, its names, its blobs (config,
    manifest) to keep."""

    config: ImageConfig
    layers: tuple[LayerSource, ...]
    names: tuple[str, ...]
    blobs: dict[Digest, bytes]


def list_images(members: Members, label: str, limits: Limits) -> Iterator[ArchivedImage]:
    """The images of a docker archive or OCI layout, one at a time. `label` names images whose reference is only a tag.

    Raises `InvalidInput` where it is neither, `DigestMismatch`, `LimitExceeded`, `CorruptError`.
    """
    reader = _Reader(members, label, limits)
    if members.has("manifest.json"):
        return reader.docker_images()
    if members.has("index.json"):
        return reader.oci_images()
    raise InvalidInput(
        "this is neither a docker archive (no manifest.json) nor an OCI layout (no index.json); "
        "a plain root file system is taken in by `layerstore import FILE NAME`"
    )


class _Reader:
    """Reads what an archive says of its images. What is read in all is limited: a few bytes can name a config often."""

    def __init__(self, members: Members, label: str, limits: Limits) -> None:
        self._members = members
        self._label = label
        self._limits = limits
        self._bytes = self._layers = 0
        self._blobs: dict[Digest, bytes] = {}

    def _read(self, name: str, limit: str) -> bytes:
        data = self._members.read(name, limit)
        self._bytes += len(data)
        if self._bytes > self._limits.metadata_bytes:
            what = f"{name} brings the manifests and configs of the archive to {self._bytes} bytes"
            raise beyond(what, self._limits, "metadata_bytes")
        return data

    def docker_images(self) -> Iterator[ArchivedImage]:
        data = self._read("manifest.json", "manifest_bytes")
        entries = parse_json(data, "manifest.json", self._limits)
        if not isinstance(entries, list) or not entries:
            raise InvalidInput("manifest.json of the docker archive lists no image")
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("Config"), str):
                raise InvalidInput('manifest.json of the docker archive has an image without a "Config"')
            yield self._docker_image(entry["Config"], entry.get("Layers") or [], entry.get("RepoTags") or [])

    def _docker_image(self, name: str, layers: object, tags: object) -> ArchivedImage:
        data = self._read(clean_member(name), "config_bytes")
        config = parse_config(data, None, self._limits)
        _check_named_digest(name, data)
        if not isinstance(layers, list) or len(layers) != len(config.diff_ids):
            count = len(layers) if isinstance(layers, list) else "no list of"
            raise InvalidInput(
                f"manifest.json lists {count} layers for image {config.image_id}, "
                f"but its config has {len(config.diff_ids)}"
            )
        sources = tuple(
            LayerSource(clean_member(str(name)), diff_id, None, None)
            for name, diff_id in zip(layers, config.diff_ids, strict=True)
        )
        if not isinstance(tags, list):
            raise InvalidInput(f"RepoTags of image {config.image_id} in manifest.json is not a list of names")
        names = tuple(_name_of(config.image_id, str(name)) for name in tags)
        return self._image(config, sources, names, {sha256_digest(data): data})

    def _image(
        self, config: ImageConfig, layers: tuple[LayerSource, ...], names: tuple[str, ...], blobs: dict[Digest, bytes]
    ) -> ArchivedImage:
        """An image, of which no more is kept than is needed: an archive may name one config thousands of times."""
        self._layers += len(layers)
        if self._layers > 2 * self._limits.layers:
            raise beyond(
                f"half of the {self._layers} layers of the archive's images is too much", self._limits, "layers"
            )
        kept = {digest: self._blobs.setdefault(digest, data) for digest, data in blobs.items()}
        return ArchivedImage(ImageConfig(config.image_id, {}, config.diff_ids, config.created), layers, names, kept)

    def oci_images(self) -> Iterator[ArchivedImage]:
        top = parse_document(self._read("index.json", "manifest_bytes"), "index.json", self._limits)
        found = False
        for descriptor in for_platform(parse_index(top), go_architecture()):
            names = _names_of(descriptor, self._label)
            for manifest, data in self._manifests(descriptor, self._limits.index_depth):
                found = True
                yield self._oci_image(manifest, data, names)
        if not found:
            raise NotFound(f"the OCI layout holds no image for linux on {go_architecture()}")

    def _manifests(self, descriptor: Descriptor, depth: int) -> Iterator[tuple[Descriptor, bytes]]:
        what = f"the manifest {descriptor.digest}"
        data = self._read(blob_name(descriptor.digest), "manifest_bytes")
        check_blob(data, descriptor, what)
        document = parse_document(data, what, self._limits)
        if not is_index(document, descriptor.media_type):
            yield descriptor, data
            return
        if depth == 0:
            raise beyond(f"the index {descriptor.digest} is nested too deep in others", self._limits, "index_depth")
        for child in for_platform(parse_index(document), go_architecture()):
            yield from self._manifests(child, depth - 1)
            return

    def _oci_image(self, descriptor: Descriptor, data: bytes, names: tuple[str, ...]) -> ArchivedImage:
        manifest = parse_manifest(parse_document(data, "a manifest", self._limits), self._limits)
        raw_config = self._read(blob_name(manifest.config.digest), "config_bytes")
        config = config_of(manifest, raw_config, self._limits)
        sources = tuple(
            LayerSource(blob_name(layer.digest), diff_id, layer.digest, layer.size_bytes)
            for layer, diff_id in zip(manifest.layers, config.diff_ids, strict=True)
        )
        return self._image(config, sources, names, {manifest.config.digest: raw_config, descriptor.digest: data})


def _check_named_digest(name: str, data: bytes) -> None:
    """A config file is named by its digest; one that is not would change the image's id unseen."""
    stem = os.path.basename(clean_member(name)).removesuffix(".json")
    if len(stem) == 64 and sha256_digest(data) != f"sha256:{stem}":
        raise CorruptError(f"config {name} has digest {sha256_digest(data)}; save the image again")


def _names_of(descriptor: Descriptor, label: str) -> tuple[str, ...]:
    full = descriptor.annotations.get("io.containerd.image.name")
    if full:
        return (_name_of(descriptor.digest, full),)
    name = descriptor.annotations.get("org.opencontainers.image.ref.name")
    if not name:
        return ()
    if "/" not in name and ":" not in name:
        # By the specification the annotation is often the tag alone; the layout's own name stands for the repository.
        name = f"{label}:{name}"
    try:
        return (normalise_name(name),)
    except InvalidInput:
        return ()  # the specification allows what no name of an image has, as v1.0+1: it is known by its id


def _name_of(image: str, name: str) -> str:
    try:
        return normalise_name(name)
    except InvalidInput as error:
        raise InvalidInput(f"image {image} cannot be loaded by that name: {error}; save it under another") from error


def clean_member(name: str) -> str:
    """A member's name in one spelling. Raises `InvalidInput` where it leaves the archive."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidInput(f"the archive names {name!r}, which leaves it")
    return "/".join(parts)


class DirectoryMembers:
    """An OCI layout (or unpacked docker archive) in a directory. Symbolic links lead nowhere but inside of it."""

    def __init__(self, root: str, limits: Limits) -> None:
        self._root = root
        self._limits = limits

    def has(self, name: str) -> bool:
        try:
            self.open(name).close()
        except NotFound:
            return False
        return True

    def open(self, name: str) -> BinaryIO:
        """Raises `NotFound`, `InvalidInput` where it is no file: a fifo would be waited for."""
        with open_fd(self._root, os.O_PATH | os.O_DIRECTORY) as root:
            try:
                with closing_fd(open_inside(root, name, os.O_PATH | os.O_CLOEXEC)) as fd:
                    if not stat.S_ISREG(fstat(fd).st_mode):
                        raise InvalidInput(f"{self._root}/{name} is no file; copy the layout again")
                    return open(f"/proc/self/fd/{fd}", "rb", buffering=0)
            except (FileNotFoundError, NotADirectoryError):
                raise NotFound(f"{self._root} has no {name}; copy the layout again") from None
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
                raise InvalidInput(f"{self._root}/{name} is a loop of links; copy the layout again") from None

    def size_bytes(self, name: str) -> int:
        with self.open(name) as file:
            return fstat(file.fileno()).st_size

    def read(self, name: str, limit: str) -> bytes:
        with self.open(name) as file:
            return _read_limited(file, name, self._limits, limit)


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


class Link(Value):
    """A member that is a link: symbolic, from where it is, or hard, from the top."""

    is_symbolic: bool
    target: str


class Names:
    """The names of an archive's members as they come, and where links among them lead. Of a name that comes again the
    last holds, as where the archive is unpacked; but not of those that say which images there are, of which other
    readers take the first.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._links: dict[str, Link] = {}
        self._seen: set[str] = set()
        self._count = 0

    def add(self, entry: Entry) -> str | None:
        """Take note of a member; returns its name where it is a file. Raises `InvalidInput`, `LimitExceeded`."""
        name = clean_member(decode_path(entry.path))
        self._count += 1
        if self._count > self._limits.members:
            raise beyond(f"the archive has {self._count} files with {name!r}", self._limits, "members")
        if name in ("manifest.json", "index.json"):
            if name in self._seen:
                raise InvalidInput(f"the archive has two files {name}, and so may stand for two images; save it again")
            self._seen.add(name)
        self._links.pop(name, None)
        if entry.type in ("symlink", "hardlink"):
            self._links[name] = Link(entry.type == "symlink", decode_path(entry.link))
        elif entry.extents is not None:
            raise InvalidInput(f"the archive's member {name!r} is a sparse file; write the archive without those")
        return name if entry.type == "regular" else None

    def resolve(self, name: str) -> str:
        return resolve_links(name, self._links)


def _walked(chunks: Iterable[bytes | memoryview], limits: Limits) -> Walk:
    return walk(
        chunks,
        path_bytes=limits.path_bytes,
        name_bytes=limits.name_bytes,
        extended_bytes=limits.extended_bytes,
        file_bytes=_ANY_BYTES,
        entries=limits.members + 1,
    )


def streamed_members(chunks: Iterable[bytes | memoryview], limits: Limits) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """The members of a tar that comes once, each with its content, which can be read until the next one is asked for.

    Raises `CorruptError`, `InvalidInput`, `LimitExceeded`, and what `chunks` raises.
    """
    return members_of(_walked(chunks, limits))


def members_of(events: Iterator[Raw | Entry | Data]) -> Iterator[tuple[Entry, Iterator[bytes]]]:
    """The same of a tar that is walked already (`layerstore._core.tar.walk`)."""
    for event in events:
        if isinstance(event, Entry):
            content = _content(events, event.stored_size)
            yield event, content
            for _ in content:
                pass


def _content(events: Iterator[Raw | Entry | Data], left: int) -> Iterator[bytes]:
    while left:
        event = next(events)
        if isinstance(event, Data):
            left -= len(event.data)
            yield event.data


class TarMembers:
    """An uncompressed archive in a seekable file. Of what is in its members nothing is read until it is asked for."""

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._names = Names(limits)
        self._files: dict[str, tuple[int, int]] = {}
        with about(getattr(file, "name", "the archive")):
            self._read_entries(file.seek(0, os.SEEK_END))

    def _read_entries(self, size: int) -> None:
        at = 0
        while at < size:
            try:
                entry, start = self._entry(at)
            except LayerstoreError as error:
                raise type(error)(f"the archive cannot be read from byte {at} on: {error}") from error
            if entry is None:
                break
            at = start + entry.stored_size
            if at > size:
                path = decode_path(entry.path)
                raise CorruptError(f"the archive ends within {path!r}, {at - size} bytes too early; save it again")
            at += -at % _BLOCK
            name = self._names.add(entry)
            if name is not None:
                self._files[name] = start, entry.stored_size

    def _entry(self, at: int) -> tuple[Entry | None, int]:
        """The entry whose headers begin at a byte, and at which its content begins; None at the end of the archive."""
        blocks = _Blocks(self._file, at)
        if not blocks.first.strip(b"\0"):
            return None, at
        for event in _walked(blocks, self._limits):
            if isinstance(event, Entry):
                return event, blocks.at
        return None, at

    def has(self, name: str) -> bool:
        return name in self._files

    def open(self, name: str) -> Range:
        return Range(self._file, *self._place(name))

    def size_bytes(self, name: str) -> int:
        return self._place(name)[1]

    def _place(self, name: str) -> tuple[int, int]:
        try:
            return self._files[self._names.resolve(name)]
        except KeyError:
            raise NotFound(f"the archive has no file {name}; save the image again") from None

    def read(self, name: str, limit: str) -> bytes:
        with self.open(name) as file:
            return _read_limited(file, name, self._limits, limit)


class _Blocks:
    """The blocks of a tar from byte `at` on, which goes along: no more is read of it than headers."""

    def __init__(self, file: BinaryIO, at: int) -> None:
        self._file = file
        self.at = at
        file.seek(at)
        self.first = file.read(_BLOCK)

    def __iter__(self) -> Iterator[bytes]:
        block = self.first
        while block:
            self.at += len(block)
            yield block
            block = self._file.read(_BLOCK)


def resolve_links(name: str, links: Mapping[str, Link]) -> str:
    """Follow links among members (docker 20.10 writes equal layers so). Raises `InvalidInput` for a loop."""
    for _ in range(40):
        member = links.get(name)
        if member is None:
            return name
        # From "." and not from "", below which ".." would lead to the top again: a link out of the archive is refused.
        base = (os.path.dirname(name) or ".") if member.is_symbolic else ""
        name = clean_member(os.path.normpath(f"{base}/{member.target}").lstrip("/"))
    raise InvalidInput(f"the archive's member {name!r} is a loop of links")


def _read_limited(file: Readable, name: str, limits: Limits, limit: str) -> bytes:
    limit_bytes: int = getattr(limits, limit)
    data = b""
    with about(name):
        while len(data) <= limit_bytes and (piece := file.read(limit_bytes + 1 - len(data))):
            data += piece
    if len(data) > limit_bytes:
        raise beyond(f"{name} is too large", limits, limit)
    return data
