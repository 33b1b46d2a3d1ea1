"""Platforms, and which manifest of an index is for one ("image-index.md" of the OCI image specification)."""

from __future__ import annotations

import os
import re

from layerstore.errors import InvalidInput, NotFound
from layerstore.oci.manifests import go_architecture
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from layerstore.oci.manifests import Descriptor

_PART = r"[A-Za-z0-9_.-]+"
_SHAPE = re.compile(rf"({_PART})/({_PART})(?:/({_PART}))?")
_ALIASES = {"x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64", "i386": "386", "i686": "386", "armhf": "arm"}
_DEFAULT_VARIANTS = {"arm64": "v8", "arm": "v7", "amd64": "v1"}
"""What a platform that names no variant is; so containerd has it, too."""


class Platform(Value):
    """An operating system and architecture, in Go's names, and a variant of that; "" where none is named."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    @property
    def full_variant(self) -> str:
        return self.variant or _DEFAULT_VARIANTS.get(self.architecture, "")


def this_platform() -> Platform:
    """That of images which run on this machine."""
    return Platform("linux", go_architecture(), "v6" if os.uname().machine == "armv6l" else "")


def parse_platform(text: str) -> Platform:
    """Read OS/ARCHITECTURE[/VARIANT]. Raises `InvalidInput`."""
    match = _SHAPE.fullmatch(text)
    if match is None:
        raise InvalidInput(f"{text!r} is no platform; it is OS/ARCHITECTURE[/VARIANT], as linux/arm64 or linux/arm/v7")
    system, architecture, variant = match.groups()
    return Platform(system.lower(), _ALIASES.get(architecture.lower(), architecture.lower()), variant or "")


def choose(manifests: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """The manifest for a platform: that of its very variant before others that it can run; the first of equals.

    Raises `NotFound` naming `what`, with the platforms that there are.
    """
    best: tuple[int, Descriptor] | None = None
    for manifest in manifests:
        fit = _fit(manifest.platform, wanted)
        if fit is not None and (best is None or fit < best[0]):
            best = fit, manifest
    if best is None:
        there = sorted({str(_named(m.platform)) for m in manifests if m.platform.get("os") not in (None, "unknown")})
        raise NotFound(
            f"{what} has no image for {wanted}; it has {', '.join(there) or 'none'}; name one of them with --platform"
        )
    return best[1]


def check_config(config: dict[str, Any], wanted: Platform, what: str) -> None:
    """Is an image for a platform, as far as its config says what it is for? Raises `NotFound` naming `what`."""
    there = _named(config)
    others = there.os not in ("", wanted.os) or there.architecture not in ("", wanted.architecture)
    if others or (there.variant and wanted.variant and _fit(config, wanted) is None):
        raise NotFound(f"{what} has no image for {wanted}; it is one for {there}, which comes without --platform")


def _named(platform: dict[str, Any]) -> Platform:
    return Platform(*(str(platform.get(key) or "") for key in ("os", "architecture", "variant")))


def _fit(platform: dict[str, Any], wanted: Platform) -> int | None:
    """How far a manifest's platform is from the one that is wanted; None where it does not run there.

    An older ARM variant runs on a newer one; one that names no platform may be for any.
    """
    if not platform:
        return 100
    there = _named(platform)
    if (there.os, there.architecture) != (wanted.os, wanted.architecture):
        return None
    if there.full_variant == wanted.full_variant:
        return 0
    levels = [re.fullmatch(r"v([0-9]+)", variant) for variant in (there.full_variant, wanted.full_variant)]
    if wanted.architecture in ("arm", "amd64") and levels[0] and levels[1]:
        older = int(levels[1][1]) - int(levels[0][1])
        return older if older > 0 else None
    return None
