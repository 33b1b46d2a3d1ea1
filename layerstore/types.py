"""The words of the OCI image specification as types.

A digest is `sha256:` and 64 lower-case hexadecimal digits. `Digest`, `DiffId`, `ChainId` and `ImageId` are all written
so, but name different things (https://github.com/opencontainers/image-spec, "descriptor.md" and "config.md").
"""

from __future__ import annotations

from layerstore._core.sha256 import sha256
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import NewType, dataclass_transform
else:

    def NewType(_name: str, supertype: type) -> type:
        return supertype

    def dataclass_transform(**_: bool) -> object:
        return lambda made: made


Digest = NewType("Digest", str)
"""Of the bytes that are stored or sent: a manifest, a config, a compressed layer."""
DiffId = NewType("DiffId", str)
"""Of a layer's uncompressed tar."""
ChainId = NewType("ChainId", str)
"""Of a stack of layers."""
ImageId = NewType("ImageId", str)
"""Of an image's config."""


@dataclass_transform(frozen_default=True)
class Value:
    """Made of the attributes that its class names, compared, hashed and shown by them: what a dataclass is, without the
    milliseconds that `dataclasses` takes to load. Nobody changes one.

    A class of which there are hundreds of thousands has an `__init__` of its own, which takes a fifth of the time.
    """

    def __init__(self, *given: object, **named: object) -> None:
        made, values = type(self), vars(self)
        fields = made.__annotations__
        values.update(zip(fields, given, strict=False))
        for name in list(fields)[len(given) :]:
            if name in named or hasattr(made, name):
                values[name] = named.pop(name) if name in named else getattr(made, name)
        if named or len(values) != max(len(given), len(fields)):
            raise TypeError(f"{made.__name__} is made of {', '.join(fields)}")

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash(tuple(vars(self).values()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def decode_path(path: bytes) -> str:
    """A path of an image as text, also one that is no UTF-8; whatever the locale says of paths of this machine."""
    return path.decode("utf-8", "surrogateescape")


def encode_path(path: str | bytes) -> bytes:
    """The bytes of a path of an image that `decode_path` gave, or of any other text."""
    return path if isinstance(path, bytes) else path.encode("utf-8", "surrogateescape")


_NAME_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_HOST_PART = r"[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_NAME = (
    rf"(?:(?P<host>(?:{_HOST_PART}(?:\.{_HOST_PART})*|\[[0-9a-fA-F:]+\])(?::[0-9]+)?)/)?"
    rf"(?P<path>{_NAME_PART}(?:/{_NAME_PART})*)(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9_.-]{{0,127}}))?"
)
"""https://pkg.go.dev/github.com/distribution/reference, "reference.go" and "regexp.go"."""
_PATH_LIMIT = 255
_NAME_LIMIT = 255 + 129


def parse_digest(text: object, what: str) -> Digest:
    """Check `text` against the grammar of a sha256 digest. `what` names it in the `InvalidInput` otherwise raised."""
    if not isinstance(text, str) or len(text) != 71 or text[:7] != "sha256:" or text[7:].strip("0123456789abcdef"):
        raise InvalidInput(f"{what} is {text!r}, not a digest of the form sha256:<64 hexadecimal digits>")
    return Digest(text)


def sha256_digest(data: bytes) -> Digest:
    """The digest of `data`."""
    return Digest("sha256:" + sha256(data).hex())


def digest_hex(digest: str) -> str:
    """The 64 hexadecimal digits of a digest."""
    return digest.removeprefix("sha256:")


def hash_key(identity: str) -> bytes:
    """The 16-byte path hash key of the index of a layer or chain: the first half of its digest's bytes."""
    return bytes.fromhex(digest_hex(identity)[:32])


def chain_id(diff_ids: Iterable[DiffId]) -> ChainId:
    """ChainID of a stack, bottom first, as the OCI image specification defines it ("config.md", "Layer ChainID")."""
    return chain_ids(diff_ids)[-1]


def chain_ids(diff_ids: Iterable[DiffId], below: ChainId | None = None) -> list[ChainId]:
    """The ChainIDs of the stack's lowest layer, its two lowest layers, and so on to all; one for a stack of none.

    The layers lie upon the chain `below` where that is given.
    """
    found: list[ChainId] = []
    chain: str = below or ""
    for diff_id in diff_ids:
        chain = sha256_digest(f"{chain} {diff_id}".encode()) if chain else diff_id
        found.append(ChainId(chain))
    # A stack of no layers has no ChainID in the specification; this one cannot be that of any layer.
    return found or [ChainId(sha256_digest(b"layerstore: no layers"))]


def normalise_name(text: str) -> str:
    """`NAME[:TAG]` with the tag spelled out and Docker Hub's implied prefixes dropped, as docker prints names.

    Raises `InvalidInput` when it is not a valid reference.
    """
    import re

    if "@" in text:
        raise InvalidInput(f"{text!r} names an image by digest, which only a registry can; give NAME[:TAG] or an id")
    match = re.fullmatch(_NAME, text, re.ASCII) if len(text) <= _NAME_LIMIT else None
    if match is None:
        raise InvalidInput(
            f"{text!r} is not a valid image name; it is NAME[:TAG] of lower-case letters, digits and . _ - /"
        )
    host, path = match["host"], str(match["path"])
    if len(path) > _PATH_LIMIT:
        has = f"has {len(path)} characters without host and tag, more than {_PATH_LIMIT}"
        raise InvalidInput(f"{text!r} is not a valid image name: it {has}")
    if len(text) == 64 and not text.strip("0123456789abcdef"):
        raise InvalidInput(f"{text!r} is not a valid image name, as it could be the id of an image; give it a tag")
    if host and not ("." in host or ":" in host or host == "localhost"):
        if host != host.lower():
            raise InvalidInput(f"{text!r} is not a valid image name: {host!r} must be lower case")
        path, host = f"{host}/{path}", None
    if host in (None, "docker.io", "index.docker.io"):
        host = None
        if path.count("/") == 1:
            path = path.removeprefix("library/")
        first, slash, _ = path.partition("/")
        if slash and ("." in first or first == "localhost"):
            raise InvalidInput(f"{text!r} is not a valid image name: {first!r} would be taken for a host, and is none")
    return f"{host + '/' if host else ''}{path}:{match['tag'] or 'latest'}"


def full_name(name: str) -> str:
    """A name as `normalise_name` gives it with Docker Hub's prefixes spelled out, as containerd knows images."""
    first, slash, _ = name.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return name
    return f"docker.io/{name}" if slash else f"docker.io/library/{name}"
