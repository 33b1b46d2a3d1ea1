"""Chains: the merged index of a stack of layers and its EROFS tree image. Derived, made when first needed.

The tree image is kept on disk beside a description of what it needs to be mounted. The merged index is kept on disk
once somebody has looked something up in it, and not because an image was mounted: it would double what a further image
of the same layers costs.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import time
from functools import cached_property

from layerstore.errors import CorruptError, NotFound
from layerstore.store import durable, locks
from layerstore.store.pieces import read_whole
from layerstore.store.sealed import sealed, unsealed
from layerstore.types import Value, chain_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from layerstore._core.index import Index
    from layerstore.chains.derived import Derived
    from layerstore.chains.indexes import MergedIndexes
    from layerstore.store.opened import OpenStore
    from layerstore.types import ChainId, DiffId

_NOTE_USE_SECONDS = 60
_ANY_FROZEN = "SELECT 1 FROM cold_packs UNION ALL SELECT 1 FROM frozen LIMIT 1"


class Chain(Value):
    """A chain that can be mounted: its tree image, the data-only layers that its files are in, and its root directory.

    `image_version` tells the image from one that was made in its place: inode number and time of modification, ns.
    `devices` are those in it, each ("b" or "c", major, minor). `root_mode` is permission bits, `root_mtime_ns`
    nanoseconds.
    """

    def __init__(self, chain_id: ChainId, image: str, version: tuple[int, int], needs: dict[str, Any]) -> None:
        root = needs["root"]
        self.chain_id = chain_id
        self.image = image
        self.image_version = version
        self.packs = tuple(map(int, needs["packs"]))
        self.objects = bool(needs["objects"])
        self.devices = tuple((str(kind), int(major), int(minor)) for kind, major, minor in needs["devices"])
        self.root_mode = int(root["mode"])
        self.root_uid = int(root["uid"])
        self.root_gid = int(root["gid"])
        self.root_mtime_ns = int(root["mtime_ns"])
        self.root_xattrs = tuple((bytes.fromhex(name), bytes.fromhex(value)) for name, value in root["xattrs"].items())


def version_of(status: os.stat_result) -> tuple[int, int]:
    """Of a tree image: see `Chain`."""
    return status.st_ino, status.st_mtime_ns


class Chains:
    """Makes and opens chains. Safe for many threads and processes."""

    def __init__(self, store: OpenStore) -> None:
        self._store = store
        self._layout = store.layout
        self._database = store.database
        self._known_indexes: tuple[int, MergedIndexes] | None = None
        self._described: dict[ChainId, Chain] = {}
        self._noted: dict[ChainId, float] = {}

    @cached_property
    def derived(self) -> Derived:
        """The limit on what is made here."""
        from layerstore.chains.derived import Derived

        return Derived(self._store)

    @property
    def _indexes(self) -> MergedIndexes:
        from layerstore.chains.indexes import MergedIndexes

        # Should two threads come here at once, either's will do: what it caches can be had again.
        collections = self._database.collections()
        known = self._known_indexes
        if known is None or known[0] != collections:
            known = collections, MergedIndexes(self._layout, self.derived, self.layer_index)
            self._known_indexes = known
        return known[1]

    def close(self) -> None:
        """Let go of the merged indexes that are open, for they keep files open. They can be asked for again."""
        self._known_indexes = None

    def layer_index(self, diff_id: DiffId) -> Index:
        """The index of one stored layer. Raises `CorruptError` when it is missing, damaged or another layer's."""
        from layerstore.layers.index_files import open_layer_index

        return open_layer_index(self._layout.layer_index(diff_id), diff_id)

    def index(self, diff_ids: Sequence[DiffId]) -> Index:
        """The merged index of a stack, kept on disk from now on.

        It is merged from the longest stack below it that is merged already, and what is above that. Raises
        `CorruptError` when a layer's index is missing or damaged.
        """
        return self._indexes.shared(diff_ids)

    def mountable(self, chain: ChainId, diff_ids: Callable[[], Sequence[DiffId]]) -> Chain:
        """The chain with its tree image, made if it is missing; only then is `diff_ids` asked for the stack.

        Raises `NotFound` where that is not the chain's (any more: the image was removed), `CorruptError`, `OSError`.
        """
        try:
            found = self.described(chain)
            self._note_use(chain)
            return found
        except (FileNotFoundError, CorruptError):
            pass
        # Garbage collection would take the contents' places away between their lookup and the image that names them.
        with (
            locks.garbage(self._layout, again=True),
            locks.chain(self._layout, chain),
        ):
            try:
                return self.described(chain)
            except (FileNotFoundError, CorruptError):
                stack = diff_ids()
                if chain_id(stack) != chain:
                    raise NotFound("the image was removed meanwhile; load it again") from None
                self._write_image(self._indexes.private(stack), chain, stack)
                return self.described(chain)

    def described(self, chain: ChainId) -> Chain:
        """A chain that was made mountable before. Raises `CorruptError`, `OSError` when it is not there."""
        known = self._described.get(chain)
        image = known.image if known else self._layout.chain_image(chain)
        status = os.stat(image)
        if known is None or version_of(status) != known.image_version:
            known = self._described[chain] = self._read(chain, image, status)
        return known

    def is_current(self, chain: Chain) -> bool:
        """Whether the chain is still as it was described: not evicted, nor made again with other packs."""
        try:
            return self.described(chain.chain_id) == chain
        except (FileNotFoundError, CorruptError):
            return False

    def _note_use(self, chain: ChainId) -> None:
        """Tell eviction, once a minute at most, that the image is in use."""
        now = time.monotonic()
        if now > self._noted.get(chain, 0.0):
            self._noted[chain] = now + _NOTE_USE_SECONDS
            with contextlib.suppress(OSError):  # a full disk, or it was evicted at this moment
                os.utime(self._layout.chain_description(chain))

    def _read(self, chain: ChainId, image: str, status: os.stat_result) -> Chain:
        description = self._layout.chain_description(chain)
        try:
            needs = json.loads(unsealed(read_whole(description), description))
            if int(needs["image_bytes"]) != status.st_size:
                raise CorruptError(f"{image} does not have the {needs['image_bytes']} bytes that it was written with")
            return Chain(chain, image, version_of(status), needs)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptError(f"{description} is damaged: {error}") from error

    def _write_image(self, index: Index, chain: ChainId, stack: Sequence[DiffId]) -> None:
        from layerstore._core.erofs import write_tree
        from layerstore._core.hashing import blake3
        from layerstore.chains.packs import locate_in_few, packs_of

        # Where nothing is frozen, to look at every content would take as long as the rest of this.
        if self._database.read().execute(_ANY_FROZEN).fetchone():
            from layerstore.layers.thawing import thaw

            thaw(self._store, stack, index.contents_bytes())
        locations = locate_in_few(self._store, index.contents_bytes())
        packs, objects = packs_of(locations)
        image = memoryview(write_tree(index, locations))
        root = index.record(0)
        needs = {
            "packs": sorted(packs),
            "objects": objects,
            "devices": sorted(index.devices()),
            "image_bytes": image.nbytes,
            "image_digest": blake3(image).hex(),
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
        durable.write_file(self._layout.chain_image(chain), image)
        durable.write_file(description, sealed(json.dumps(needs).encode()))
        self.derived.written(image.nbytes)
