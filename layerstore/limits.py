"""How much of what comes from outside is accepted: the one place of every limit on it."""

from __future__ import annotations

from layerstore.errors import InvalidInput, LimitExceeded
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypedDict

    class OfTar(TypedDict):
        path_bytes: int
        name_bytes: int
        extended_bytes: int
        sparse_extents: int
        file_bytes: int
        entries: int


FREE_LAYER_BYTES = 1 << 30
"""Decompressed, `layer_ratio` says nothing of a layer up to this size: half a second of work."""
FREE_INDEX_BYTES = 32 << 20
"""Up to this size `index_ratio` says nothing of a layer's index."""
FREE_JSON_BYTES = 1 << 20
"""Up to this size `json_values` says nothing of a document."""
LARGEST_WINDOW_BYTES = 1 << 31
"""What `zstd_window_bytes` is at most, and the window of `zstd --ultra --long=31`."""
_LEAST = {"zstd_window_bytes": 1 << 10}
_LARGEST = {"path_bytes": 4096, "name_bytes": 255, "layers": 65_535, "zstd_window_bytes": LARGEST_WINDOW_BYTES}
_LARGEST_NUMBER = (1 << 63) - 1


class Limits(Value):
    """What is accepted of archives, layouts, registries and Dockerfiles; more raises `LimitExceeded`.

    A value: what is not given has its default, and nothing changes it. `layerstore.Store(limits=)` takes one.
    Raises `InvalidInput` for a number below 1 or above what the formats have room for.

    Attributes:
        manifest_bytes: a manifest or index, `index.json` or `manifest.json`.
        config_bytes: an image's config.
        metadata_bytes: manifests, indexes and configs of one archive together; of an archive that comes as a
            stream, all of its files that are no layers and not too large to be one of these.
        json_values: values in one of them that has more than 1 MiB, counted by its commas, colons and brackets.
        index_depth: indexes in one another.
        layers: layers of an image (65,535 at most); twice as many of all images of an archive.
        members: files of an archive of images.
        layer_bytes: a layer, decompressed.
        layer_ratio: bytes of a layer for each byte of its compressed blob, or of the pack in which its contents are
            synced, where it has more than 1 GiB; of the holes of its sparse files, too, for each byte of its blob,
            compressed or not.
        entries: entries of a layer, or of an archive that ADD or `Container.unpack` takes.
        index_bytes: what the entries of a layer take in memory and in its index: names, attributes, targets of links.
        index_ratio: bytes of that for each byte of the layer's blob, where it is more than 32 MiB.
        file_bytes: a file of a layer, holes included.
        hole_bytes: the holes of a layer's sparse files together, which are hashed like other bytes (`layer_ratio`).
        sparse_extents: extents of one sparse file.
        extended_bytes: the extended headers (pax, GNU) before one entry of a tar; the global ones of a tar together.
        path_bytes: a path in a layer, or where a link points to (4,096 at most).
        name_bytes: a name in a path (255 at most).
        zstd_window_bytes: what a zstd frame may ask to be kept in memory of what it has decompressed.
        dockerfile_bytes: a Dockerfile or .dockerignore.
    """

    def __init__(
        self,
        *,
        manifest_bytes: int = 4 << 20,
        config_bytes: int = 8 << 20,
        metadata_bytes: int = 32 << 20,
        json_values: int = 250_000,
        index_depth: int = 4,
        layers: int = 65_535,
        members: int = 100_000,
        layer_bytes: int = 256 << 30,
        layer_ratio: int = 200,
        entries: int = 1 << 24,
        index_bytes: int = 1 << 30,
        index_ratio: int = 32,
        file_bytes: int = 1 << 40,
        hole_bytes: int = 64 << 30,
        sparse_extents: int = 65_536,
        extended_bytes: int = 1 << 20,
        path_bytes: int = 4096,
        name_bytes: int = 255,
        zstd_window_bytes: int = 32 << 20,
        dockerfile_bytes: int = 16 << 20,
    ) -> None:
        self.manifest_bytes = manifest_bytes
        self.config_bytes = config_bytes
        self.metadata_bytes = metadata_bytes
        self.json_values = json_values
        self.index_depth = index_depth
        self.layers = layers
        self.members = members
        self.layer_bytes = layer_bytes
        self.layer_ratio = layer_ratio
        self.entries = entries
        self.index_bytes = index_bytes
        self.index_ratio = index_ratio
        self.file_bytes = file_bytes
        self.hole_bytes = hole_bytes
        self.sparse_extents = sparse_extents
        self.extended_bytes = extended_bytes
        self.path_bytes = path_bytes
        self.name_bytes = name_bytes
        self.zstd_window_bytes = zstd_window_bytes
        self.dockerfile_bytes = dockerfile_bytes
        for name, value in vars(self).items():
            least, largest = _LEAST.get(name, 1), _LARGEST.get(name, _LARGEST_NUMBER)
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= largest:
                raise InvalidInput(f"the limit {name} is {value!r}; it is a number from {least} to {largest}")

    def changed(self, values: Mapping[str, int]) -> Limits:
        """These with other values for some names. Raises `InvalidInput`, also for a name that no limit has."""
        for name in values:
            if name not in vars(self):
                raise InvalidInput(f"there is no limit {name!r}; there are {', '.join(vars(self))}")
        return Limits(**{**vars(self), **values})

    def of_tar(self) -> OfTar:
        """Those of one tar whose entries become files, as a walk over it takes them."""
        return {
            "path_bytes": self.path_bytes,
            "name_bytes": self.name_bytes,
            "extended_bytes": self.extended_bytes,
            "sparse_extents": self.sparse_extents,
            "file_bytes": self.file_bytes,
            "entries": self.entries,
        }

    def changes(self) -> dict[str, int]:
        """Those that are not as they are by default."""
        return {name: value for name, value in vars(self).items() if value != getattr(DEFAULT, name)}


def beyond(what: str, limits: Limits, name: str) -> LimitExceeded:
    """That something is more than the limit `name` allows; `what` begins the message: "the manifest has 9 bytes"."""
    return LimitExceeded(f"{what}, more than the limit {name} ({getattr(limits, name)}); `--limit {name}=N` sets it")


DEFAULT = Limits()
