"""Chains: the merged index of a stack of layers and its EROFS tree image. Derived, made when first needed."""

import json
import mmap
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from layerstore._core.erofs import write_tree
from layerstore._core.index import Index, merge
from layerstore._core.ingest import LOCATION_OBJECT
from layerstore._core.layer import build_layer
from layerstore.errors import CorruptError
from layerstore.store import durable
from layerstore.store.contents import ContentStore
from layerstore.store.layout import Layout
from layerstore.store.locks import locked
from layerstore.types import ChainId, DiffId, chain_id, digest_hex, hash_key

_CONTENT_BYTES = 40
_EMPTY_TAR = bytes(1024)


@dataclass(frozen=True)
class Chain:
    """A chain that can be mounted: its tree image and the data-only layers that its files are in."""

    chain_id: ChainId
    image: Path
    packs: tuple[int, ...]
    objects: bool


def open_index(path: Path) -> Index:
    """Map an index file. Raises `CorruptError`, `OSError`."""
    with open(path, "rb") as file:
        try:
            return Index(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise CorruptError(f"{path} is empty; load the image again") from None


class Chains:
    """Makes and opens chains. Safe for many threads and processes."""

    def __init__(self, layout: Layout, contents: ContentStore) -> None:
        self._layout = layout
        self._contents = contents

    def layer_index(self, diff_id: DiffId) -> Index:
        """The index of one stored layer. Raises `CorruptError` when it is missing or damaged."""
        try:
            return open_index(self._layout.layer_index(diff_id))
        except FileNotFoundError:
            raise CorruptError(f"the index of layer {diff_id} is missing; load the image again") from None

    def index(self, diff_ids: Sequence[DiffId]) -> Index:
        """The merged index of a stack, made if it is missing or damaged."""
        path = self._layout.chain_index(chain_id(diff_ids))
        try:
            return open_index(path)
        except (FileNotFoundError, CorruptError):
            durable.write_file(path, self._merge(diff_ids))
            return open_index(path)

    def _merge(self, diff_ids: Sequence[DiffId]) -> memoryview:
        key = hash_key(chain_id(diff_ids))
        layers = []
        for diff_id in diff_ids:
            layer = self.layer_index(diff_id)
            layer.verify()
            layers.append(layer)
        if not layers:
            empty, _ = build_layer(_EMPTY_TAR, key)
            layers.append(Index(empty))
        return merge(layers, key)

    def mountable(self, diff_ids: Sequence[DiffId]) -> Chain:
        """The chain with its tree image, made if it is missing."""
        chain = chain_id(diff_ids)
        description = self._description(chain)
        try:
            return self._read(chain, description)
        except (FileNotFoundError, CorruptError):
            pass
        with locked(self._layout.run / f"{digest_hex(chain)}.lock", exclusive=True):
            try:
                return self._read(chain, description)
            except (FileNotFoundError, CorruptError):
                self._write_image(self.index(diff_ids), chain, description)
        return self._read(chain, description)

    def described(self, chain: ChainId) -> Chain:
        """A chain that was made mountable before. Raises `CorruptError`, `OSError` when it is not there."""
        return self._read(chain, self._description(chain))

    def _description(self, chain: ChainId) -> Path:
        return self._layout.chain_image(chain).with_suffix(".json")

    def _read(self, chain: ChainId, description: Path) -> Chain:
        data = description.read_bytes()
        try:
            needs = json.loads(data)
            packs, objects, size = tuple(map(int, needs["packs"])), bool(needs["objects"]), int(needs["image_bytes"])
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptError(f"{description} is damaged: {error}") from error
        image = self._layout.chain_image(chain)
        if image.stat().st_size != size:
            raise CorruptError(f"{image} does not have the {size} bytes that it was written with")
        return Chain(chain, image, packs, objects)

    def _write_image(self, index: Index, chain: ChainId, description: Path) -> None:
        locations = self._contents.locate_many(index.contents_bytes(), _CONTENT_BYTES)
        packs = {pack for pack, _ in struct.iter_unpack("<II", locations)}
        objects = LOCATION_OBJECT in packs
        image = write_tree(index, locations)
        needs = {"packs": sorted(packs - {LOCATION_OBJECT}), "objects": objects, "image_bytes": len(image)}
        # The description comes last: it is what says that the image is whole.
        description.unlink(missing_ok=True)
        durable.write_file(self._layout.chain_image(chain), memoryview(image))
        durable.write_file(description, json.dumps(needs).encode())
