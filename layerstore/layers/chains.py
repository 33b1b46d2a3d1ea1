"""Chains: the merged index of a stack of layers and its EROFS tree image. Derived, made when first needed.

The tree image is kept on disk beside a description of what it needs to be mounted. The merged index is
made in memory from the layers' when it is asked for: it takes a few milliseconds, and on disk would double what a
further image of the same layers costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import threading
from collections import OrderedDict

from layerstore.errors import RELOAD, CorruptError, NotFound
from layerstore.store import durable
from layerstore.store.locks import locked
from layerstore.types import Value, chain_id, hash_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from layerstore._core.index import Index
    from layerstore.store.contents import ContentStore
    from layerstore.store.layout import Layout
    from layerstore.types import ChainId, DiffId

_EMPTY_TAR = bytes(1024)
_CACHED_INDEXES = 8


class Chain(Value):
    """A chain that can be mounted: its tree image, the data-only layers that its files are in, and its root directory.

    `devices` are those in it, each ("b" or "c", major, minor). `root_mode` is permission bits, `root_mtime_ns`
    nanoseconds.
    """

    def __init__(self, chain_id: ChainId, image: str, needs: dict[str, Any]) -> None:
        root = needs["root"]
        self.chain_id = chain_id
        self.image = image
        self.packs = tuple(map(int, needs["packs"]))
        self.objects = bool(needs["objects"])
        self.devices = tuple((str(kind), int(major), int(minor)) for kind, major, minor in needs["devices"])
        self.root_mode = int(root["mode"])
        self.root_uid = int(root["uid"])
        self.root_gid = int(root["gid"])
        self.root_mtime_ns = int(root["mtime_ns"])
        self.root_xattrs = tuple((bytes.fromhex(name), bytes.fromhex(value)) for name, value in root["xattrs"].items())


def open_index(path: str) -> Index:
    """Map an index file. Raises `CorruptError`, `OSError`."""
    import mmap

    from layerstore._core.index import Index

    with open(path, "rb") as file:
        try:
            return Index(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except ValueError:
            raise CorruptError(f"{path} is empty; {RELOAD}") from None


class Chains:
    """Makes and opens chains. Safe for many threads and processes."""

    def __init__(self, layout: Layout, contents: Callable[[], ContentStore]) -> None:
        self._layout = layout
        self._contents = contents
        self._lock = threading.Lock()
        self._indexes: OrderedDict[ChainId, Index] = OrderedDict()
        # What was read of a chain, and of which tree image: inode and time of modification.
        self._described: dict[ChainId, tuple[int, int, Chain]] = {}

    def layer_index(self, diff_id: DiffId) -> Index:
        """The index of one stored layer. Raises `CorruptError` when it is missing or damaged."""
        try:
            return open_index(self._layout.layer_index(diff_id))
        except FileNotFoundError:
            raise CorruptError(f"the index of layer {diff_id} is missing; {RELOAD}") from None

    def index(self, diff_ids: Sequence[DiffId]) -> Index:
        """The merged index of a stack. Raises `CorruptError` when a layer's index is missing or damaged."""
        chain = chain_id(diff_ids)
        with self._lock:
            index = self._indexes.get(chain)
        if index is None:
            from layerstore._core.index import Index

            index = Index(self._merge(diff_ids))
        with self._lock:
            self._indexes[chain] = index
            self._indexes.move_to_end(chain)
            while len(self._indexes) > _CACHED_INDEXES:
                self._indexes.popitem(last=False)
        return index

    def _merge(self, diff_ids: Sequence[DiffId]) -> memoryview:
        from layerstore._core.index import Index, merge
        from layerstore._core.layer import build_layer

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

    def mountable(self, chain: ChainId, diff_ids: Callable[[], Sequence[DiffId]]) -> Chain:
        """The chain with its tree image, made if it is missing; only then is `diff_ids` asked for the stack.

        Raises `NotFound` where that is not the chain's (any more: the image was removed), `CorruptError`, `OSError`.
        """
        try:
            return self.described(chain)
        except (FileNotFoundError, CorruptError):
            pass
        # Garbage collection would take the contents' places away between their lookup and the image that names them.
        with (
            locked(self._layout.garbage_lock, exclusive=False),
            locked(self._layout.chain_lock(chain), exclusive=True),
        ):
            try:
                return self.described(chain)
            except (FileNotFoundError, CorruptError):
                stack = diff_ids()
                if chain_id(stack) != chain:
                    raise NotFound("the image was removed meanwhile; load it again") from None
                self._write_image(self.index(stack), chain)
        return self.described(chain)

    def described(self, chain: ChainId) -> Chain:
        """A chain that was made mountable before. Raises `CorruptError`, `OSError` when it is not there."""
        known = self._described.get(chain)
        image = known[2].image if known else self._layout.chain_image(chain)
        status = os.stat(image)
        if known is None or (status.st_ino, status.st_mtime_ns) != known[:2]:
            known = (status.st_ino, status.st_mtime_ns, self._read(chain, image, status.st_size))
            self._described[chain] = known
        return known[2]

    def _read(self, chain: ChainId, image: str, size: int) -> Chain:
        description = self._layout.chain_description(chain)
        try:
            with open(description, "rb") as file:
                needs = json.load(file)
            if int(needs["image_bytes"]) != size:
                raise CorruptError(f"{image} does not have the {needs['image_bytes']} bytes that it was written with")
            return Chain(chain, image, needs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{description} is damaged: {error}") from error

    def _write_image(self, index: Index, chain: ChainId) -> None:
        import struct

        from layerstore._core.erofs import write_tree
        from layerstore._core.index import CONTENT_BYTES
        from layerstore._core.ingest import LOCATION_OBJECT

        locations = self._contents().locate_many(index.contents_bytes(), CONTENT_BYTES)
        packs = {pack for pack, _ in struct.iter_unpack("<II", locations)}
        image = write_tree(index, locations)
        root = index.record(0)
        needs = {
            "packs": sorted(packs - {LOCATION_OBJECT}),
            "objects": LOCATION_OBJECT in packs,
            "devices": sorted(index.devices()),
            "image_bytes": len(image),
            "root": {
                "mode": stat.S_IMODE(root.mode),
                "uid": root.uid,
                "gid": root.gid,
                "mtime_ns": root.mtime_ns,
                "xattrs": {name.hex(): value.hex() for name, value in root.xattrs.items()},
            },
        }
        description = self._layout.chain_description(chain)
        # The description comes last: it is what says that the image is whole.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(description)
        durable.write_file(self._layout.chain_image(chain), memoryview(image))
        durable.write_file(description, json.dumps(needs).encode())
