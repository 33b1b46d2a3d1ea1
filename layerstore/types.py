"""The words of the OCI image specification as types.

A digest is `sha256:` and 64 lower-case hexadecimal digits. `Digest`, `DiffId`, `ChainId` and `ImageId` are all written
so, but name different things (https://github.com/opencontainers/image-spec, "descriptor.md" and "config.md").
"""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NewType

from layerstore.errors import InvalidInput

Digest = NewType("Digest", str)
"""Of the bytes that are stored or sent: a manifest, a config, a compressed layer."""
DiffId = NewType("DiffId", str)
"""Of a layer's uncompressed tar."""
ChainId = NewType("ChainId", str)
"""Of a stack of layers."""
ImageId = NewType("ImageId", str)
"""Of an image's config."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_NAME_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(
    rf"(?:(?P<host>[A-Za-z0-9.-]+(?::[0-9]+)?)/)?(?P<path>{_NAME_PART}(?:/{_NAME_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}))?",
    re.ASCII,
)
_NAME_LIMIT = 255 + 129


def parse_digest(text: object, what: str) -> Digest:
    """Check `text` against the grammar of a sha256 digest. `what` names it in the `InvalidInput` otherwise raised."""
    if not isinstance(text, str) or not _DIGEST.fullmatch(text):
        raise InvalidInput(f"{what} is {text!r}, not a digest of the form sha256:<64 hexadecimal digits>")
    return Digest(text)


def sha256_digest(data: bytes) -> Digest:
    """The digest of `data`."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def digest_hex(digest: str) -> str:
    """The 64 hexadecimal digits of a digest."""
    return digest.removeprefix("sha256:")


def hash_key(identity: str) -> bytes:
    """The 16-byte path hash key of the index of a layer or chain: the first half of its digest's bytes."""
    return bytes.fromhex(digest_hex(identity)[:32])


def chain_id(diff_ids: Iterable[DiffId]) -> ChainId:
    """ChainID of a stack, bottom first, as the OCI image specification defines it ("config.md", "Layer ChainID")."""
    chain = ""
    for diff_id in diff_ids:
        chain = sha256_digest(f"{chain} {diff_id}".encode()) if chain else diff_id
    if not chain:
        # A stack of no layers has no ChainID in the specification; this one cannot be that of any layer.
        chain = sha256_digest(b"layerstore: no layers")
    return ChainId(chain)


def normalise_name(text: str) -> str:
    """`NAME[:TAG]` with the tag spelled out and Docker Hub's implied prefixes dropped, as docker prints names.

    Raises `InvalidInput` when it is not a valid reference.
    """
    if "@" in text:
        raise InvalidInput(f"{text!r} names an image by digest, which only a registry can; give NAME[:TAG] or an id")
    match = _NAME.fullmatch(text) if len(text) <= _NAME_LIMIT else None
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a valid image name; it is NAME[:TAG] of lower-case letters, digits and . _ - /"
        )
    host, path = match["host"], str(match["path"])
    if host and not ("." in host or ":" in host or host == "localhost"):
        if host != host.lower():
            raise InvalidInput(f"{text!r} is not a valid image name: {host!r} must be lower case")
        path, host = f"{host}/{path}", None
    if host in (None, "docker.io", "index.docker.io"):
        host = None
        if path.count("/") == 1:
            path = path.removeprefix("library/")
    return f"{host + '/' if host else ''}{path}:{match['tag'] or 'latest'}"


@dataclass(frozen=True)
class Change:
    """One line of a container's diff: `kind` is "A" (added), "C" (changed) or "D" (deleted); `path` is absolute."""

    kind: str
    path: str


@dataclass(frozen=True)
class HistoryEntry:
    """One line of an image's history, newest first.

    `image_id` is None where the step has no image of its own in the store (docker prints `<missing>`); `size_bytes` is
    the sum of the sizes of the layer's regular files, 0 for a step without a layer.
    """

    image_id: ImageId | None
    created: str
    created_by: str
    comment: str
    size_bytes: int
    empty_layer: bool


@dataclass(frozen=True)
class Progress:
    """How far a long operation is: `done_bytes` of `total_bytes` (None when unknown) of `what`.

    `stage` is "import" while something is read, "stored" for a layer that is in the store already and passed over.
    """

    stage: str
    what: str
    done_bytes: int
    total_bytes: int | None
