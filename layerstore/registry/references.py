"""What names an image in a registry: `HOST/REPOSITORY:TAG@DIGEST`, by the grammar of distribution's `reference`
(https://pkg.go.dev/github.com/distribution/reference), with docker's defaults."""

from __future__ import annotations

import ipaddress

from layerstore.errors import InvalidInput
from layerstore.types import Digest, Value, normalise_name, parse_digest

DOCKER_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"


class Reference(Value):
    """An image in a registry.

    registry: as names spell it, "docker.io" or "localhost:5000".
    repository: in the registry, "library/debian".
    tag: None where only a digest was given.
    digest: of a manifest or index, None where none was given.
    """

    registry: str
    repository: str
    tag: str | None
    digest: Digest | None

    @property
    def local_name(self) -> str | None:
        """The name that the image has in a store; None where only a digest was given, which is no name there."""
        return None if self.tag is None else normalise_name(f"{self.registry}/{self.repository}:{self.tag}")

    @property
    def target(self) -> str:
        """What a registry finds its manifest by: the digest where there is one, else the tag."""
        return self.digest or self.tag or "latest"

    def __str__(self) -> str:
        """In full, for messages."""
        ending = f"@{self.digest}" if self.digest else f":{self.tag}"
        return f"{self.registry}/{self.repository}{ending}"


def parse_reference(text: str) -> Reference:
    """Read `NAME[:TAG][@DIGEST]`; without either the tag is "latest". Raises `InvalidInput`."""
    name, at, digest = text.partition("@")
    path, _, tag = normalise_name(name).rpartition(":")
    has_tag = ":" in name.rpartition("/")[2]
    registry, slash, repository = path.partition("/")
    if not slash or not ("." in registry or ":" in registry or registry == "localhost"):
        registry, repository = DOCKER_HUB, path if slash else f"library/{path}"
    port = registry.rpartition(":")[2]
    if port.isdecimal() and not 0 < int(port) < 1 << 16:
        raise InvalidInput(f"{registry!r} in the name of an image names port {port}; ports are 1 to 65535")
    return Reference(
        registry,
        repository,
        tag if has_tag or not at else None,
        parse_digest(digest, f"the digest in {text!r}") if at else None,
    )


def parse_registry(text: str) -> str:
    """Read `HOST[:PORT]`, what names of images may begin with; as `Reference.registry`. Raises `InvalidInput`."""
    try:
        registry = parse_reference(f"{text}/any").registry
    except InvalidInput:
        registry = ""
    if not registry or (registry != text and text != f"index.{DOCKER_HUB}"):
        raise InvalidInput(
            f"{text!r} is no registry; it is HOST[:PORT], as registry.example.com or localhost:5000, and a host "
            "without a dot needs a port, as registry:443: without one it begins names of images of Docker Hub"
        )
    return registry


def host_of(registry: str) -> str:
    """The host, with its port where one is given, that serves a registry."""
    return _HUB_HOST if registry == DOCKER_HUB else registry


def is_loopback(host: str | None) -> bool:
    """Is it this machine itself: localhost, 127.0.0.0/8 or ::1, without brackets or port?"""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
