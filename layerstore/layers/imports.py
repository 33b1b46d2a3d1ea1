"""One import: any number of layers and images that become visible together, or not at all.

Everything new goes to a staging directory and one new pack. `commit` makes it durable with one syncfs and then names it
in one transaction. What a killed import leaves is unreachable; the next import or garbage collection clears it away.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import struct
import time

from layerstore._core.erofs import write_pack
from layerstore._core.index import check_links
from layerstore._core.ingest import LOCATION_NONE, RECORD_BYTES, Contents, LayerIngest
from layerstore.errors import DigestMismatch, InvalidInput
from layerstore.layers.blob_streams import (
    BackgroundHash,
    Counted,
    compression_of,
    decompressed,
    pieces_of,
    prefixed,
    read_ahead,
)
from layerstore.layers.index_files import open_layer_index
from layerstore.layers.known_blobs import KnownBlob, remember, saw
from layerstore.limits import DEFAULT, FREE_INDEX_BYTES, FREE_LAYER_BYTES, beyond
from layerstore.naming import about, close_fd, closing_fd, exists, fstat, open_fd
from layerstore.store import durable, locks, own_names
from layerstore.store.clearing import clear_tree
from layerstore.store.db import SET_NAME
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import read_at
from layerstore.store.records import LOCATION
from layerstore.trees.sources import StoredContent, begun
from layerstore.types import DiffId, Digest, Value, chain_ids, digest_hex, hash_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import BinaryIO

    from typing_extensions import Buffer

    from layerstore._core.index import Index
    from layerstore._core.ingest import Digests
    from layerstore.limits import Limits
    from layerstore.oci.configs import ImageConfig
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Clone, Source
    from layerstore.types import ChainId


_U32 = struct.Struct("<I")
_ADD_LAYER = (
    "INSERT INTO layers VALUES (?, ?, ?) "
    "ON CONFLICT (diff_id) DO UPDATE SET files_bytes = excluded.files_bytes, recipe = excluded.recipe"
)


class ImportedLayer(Value):
    """A layer in the staging area: its identity, its blob, the bytes of the files in it, the BLAKE3 of its recipe."""

    diff_id: DiffId
    blob: KnownBlob
    files_bytes: int
    recipe_digest: bytes

    def check(self, diff_id: DiffId | None, digest: Digest | None, size_bytes: int | None) -> None:
        """Raise `DigestMismatch` unless the layer is what was promised, as far as anything was."""
        blob = self.blob
        if size_bytes is not None and blob.size_bytes != size_bytes:
            raise DigestMismatch(f"a layer's blob has {blob.size_bytes} bytes, but {size_bytes} were promised")
        if digest is not None and blob.digest != digest:
            raise DigestMismatch(f"a layer's blob has digest {blob.digest}, but {digest} was promised")
        if diff_id is not None and self.diff_id != diff_id:
            raise DigestMismatch(f"a layer has diff_id {self.diff_id}, but {diff_id} was promised")


class Import:
    """Use as a context manager; leaving it without `commit` throws away what was staged.

    Contents that are `known` are not stored again: by default all that the store has. `limits` are on layers that come
    from outside (`add_layer`).
    """

    def __init__(
        self,
        store: OpenStore,
        *,
        known: Digests | None = None,
        limits: Limits = DEFAULT,
    ) -> None:
        self._layout = store.layout
        self._database = store.database
        self._store = store
        self._known = known
        self._limits = limits
        self._layers: dict[DiffId, ImportedLayer] = {}
        self._images: list[tuple[ImageConfig, list[str], dict[Digest, bytes]]] = []
        self._staging = f"{store.layout.staging}/{os.urandom(8).hex()}"
        self._staging_fd = self._pack_fd = -1
        self._contents: Contents | None = None

    def __enter__(self) -> Import:
        with contextlib.ExitStack() as stack:
            stack.enter_context(locks.garbage(self._layout, again=True))
            # A pool learns late that its host's disk is full: what another import could not write is not of this one.
            sync = durable.file_system(self._layout.root, afresh=self._layout.is_pool)
            self._sync = stack.enter_context(sync)
            with locks.staging(self._layout):
                clear_abandoned(self._store)
                os.mkdir(self._staging, mode=0o700)
                stack.callback(clear_tree, self._staging)
                lock_fd = os.open(f"{self._staging}/lock", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                stack.callback(close_fd, lock_fd)
                locks.try_lock(lock_fd)
                self._pack_number, pack_fd = _reserve_pack(self._store)
                stack.callback(close_fd, pack_fd)
                stack.callback(_drop_pack, self._store, self._pack_number)
            self._pack_fd = pack_fd
            self._staging_fd = os.open(self._staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(close_fd, self._staging_fd)
            self._cleanup = stack.pop_all()
        return self

    def _opened(self) -> Contents:
        if self._staging_fd < 0:
            raise InvalidInput("an import is used as a context manager")
        if self._contents is None:  # what others have stored until now is known
            known = self._store.contents.digests() if self._known is None else self._known
            self._contents = Contents(self._staging_fd, self._pack_fd, known, PACK_THRESHOLD_BYTES)
        return self._contents

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def is_staged(self, diff_id: DiffId) -> bool:
        """Was the layer added here?"""
        return diff_id in self._layers

    def claim_missing(self, diff_ids: Iterable[DiffId]) -> set[DiffId]:
        """Those of the layers that are not stored, which this import is to bring. Once, before anything is staged.

        Where another import brings some of them, this waits until it has, or has failed. Raises `OSError`.
        """
        wanted = set(diff_ids)
        missing = wanted - self.stored_layers(wanted)
        if missing:
            claims = locks.Claims(self._layout.layers_lock)
            self._cleanup.callback(claims.close)
            claims.take(missing)
            stored = self.stored_layers(missing)
            claims.release(stored)
            missing -= stored
        return missing

    def stored_layers(self, diff_ids: Iterable[DiffId]) -> set[DiffId]:
        """Those of the layers that are in the store, and not known to be damaged."""
        query = (
            "SELECT diff_id FROM layers WHERE diff_id IN (SELECT value FROM json_each(?)) "
            "AND diff_id NOT IN (SELECT diff_id FROM damaged_layers)"
        )
        rows = self._database.read().execute(query, (json.dumps(list(diff_ids)),))
        return {DiffId(diff_id) for (diff_id,) in rows}

    def add_layer(
        self,
        pieces: Iterable[Piece],
        *,
        diff_id: DiffId | None = None,
        digest: Digest | None = None,
        size_bytes: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> ImportedLayer:
        """Stage a layer from its blob, compressed or not.

        `diff_id`, `digest` and `size_bytes` are checked where given. `progress` is called with the blob's bytes so far.
        Raises `DigestMismatch`, `CorruptError`, `InvalidInput`, `LimitExceeded`, `OSError`; the import is void then.
        """
        source = iter(pieces)
        head = next(source, b"")
        compression = compression_of(head)
        if compression:
            with BackgroundHash() as blob_hash:
                blob = Counted(prefixed(head, source), digest=blob_hash, progress=progress)
                layer = self._ingest(blob, compression, blob_hash, self._limits)
        else:
            layer = self._ingest(Counted(prefixed(head, source), progress=progress), "", None, self._limits)
        layer.check(diff_id, digest, size_bytes)
        self._layers[layer.diff_id] = layer
        return layer

    def add_tar(self, write: Callable[[Clone], Iterable[Piece]]) -> ImportedLayer:
        """Stage a layer from a tar that is written here: `write` gives its pieces.

        It is given a function that it asks, for each content that is too large for the pack and in the tar's order, for
        what to read that content from. So a content that can be cloned is not written again, and is what it was at one
        moment. Raises what `write` does, and as `add_layer`.
        """
        contents = self._opened()
        contents.expect_clones(True)
        layer = self._ingest(Counted(write(_Clones(self._staging))), "", None, None)
        contents.expect_clones(False)
        self._layers[layer.diff_id] = layer
        return layer

    def _ingest(
        self, blob: Counted, compression: str, blob_hash: BackgroundHash | None, limits: Limits | None
    ) -> ImportedLayer:
        import hashlib

        from layerstore._core.hashing import Hasher
        from layerstore.store.zstd import compressing, recipe_compressor

        ingest = _ingest_of(self._opened(), limits)
        recipe = f"{self._staging}/{os.urandom(8).hex()}.recipe"
        compressor = recipe_compressor()
        # The reading thread hashes the tar where it need not decompress it; else this one, which stores it, does.
        tar_hash = hashlib.sha256()
        plain = decompressed(blob, compression, limits or DEFAULT, "the layer")
        tar = Counted(plain, digest=None if compression else tar_hash)
        recipe_hash = Hasher()
        spans_of = ((span, blob.bytes, tar.bytes) for span in tar)
        with about(recipe), _new_file(recipe) as out, read_ahead(spans_of) as spans:

            def write(frames: bytes) -> None:
                recipe_hash.update(frames)
                with compressing():
                    packed = compressor.compress(frames)
                out.write(packed)

            for span, blob_bytes, tar_bytes in spans:
                if limits is not None:
                    if tar_bytes > limits.layer_bytes:
                        raise beyond(f"the layer has {tar_bytes} bytes and more", limits, "layer_bytes")
                    ingest.allow(
                        index_bytes=min(limits.index_bytes, max(FREE_INDEX_BYTES, limits.index_ratio * blob_bytes)),
                        hole_bytes=max(FREE_LAYER_BYTES, limits.layer_ratio * blob_bytes),
                    )
                if compression:
                    tar_hash.update(span)
                write(ingest.feed(span))
            write(ingest.finish())
            with compressing():
                packed = compressor.flush()
            out.write(packed)
        diff_id = DiffId(f"sha256:{tar_hash.hexdigest()}")
        index = ingest.index(hash_key(diff_id))
        hex_id = digest_hex(diff_id)
        _write(f"{self._staging}/{hex_id}.index", index)
        os.rename(recipe, f"{self._staging}/{hex_id}.recipe")
        digest = Digest(f"sha256:{blob_hash.hexdigest()}" if blob_hash else diff_id)
        known = KnownBlob(digest, blob.bytes, compression)
        return ImportedLayer(diff_id, known, ingest.files_bytes, recipe_hash.digest())

    def add_image(self, config: ImageConfig, names: Iterable[str], blobs: dict[Digest, bytes]) -> None:
        """Stage an image over layers that are staged or stored. `blobs` (its config, its manifest) are kept.

        Raises `InvalidInput` for a layer with a hard link to what neither it nor a layer below it has: no container of
        the image could be made.
        """
        self._check_links(config.diff_ids)
        self._images.append((config, list(names), blobs))

    def _check_links(self, diff_ids: Sequence[DiffId]) -> None:
        chains = chain_ids(diff_ids)
        query = "SELECT chain_id FROM chains WHERE chain_id IN (SELECT value FROM json_each(?))"
        stored = {chain for (chain,) in self._database.read().execute(query, (json.dumps(chains),))}
        # The layers of a chain that is stored were looked at when it came.
        first = next((number for number in range(len(chains), 0, -1) if chains[number - 1] in stored), 0)
        layers = [self._layer_index(diff_id) for diff_id in diff_ids[first:]]
        if any(layer.has_lower_links() for layer in layers):
            check_links([*map(self._layer_index, diff_ids[:first]), *layers], first)

    def _layer_index(self, diff_id: DiffId) -> Index:
        path = self._layout.layer_index(diff_id)
        return open_layer_index(
            f"{self._staging}/{os.path.basename(path)}" if self.is_staged(diff_id) else path, diff_id
        )

    def copy_contents(self, contents: Sequence[Piece]) -> bytes:
        """Stage contents that belong to layers which are stored; returns their digests, 32 bytes each."""
        return self._opened().put_many(contents)

    def copy_content(self, pieces: Iterable[Piece]) -> bytes:
        """The same of one, which comes in pieces."""
        return self._opened().put_pieces(pieces)

    def commit(
        self,
        pulled_from: tuple[str, str] | None = None,
        check: Callable[[sqlite3.Connection], None] | None = None,
    ) -> None:
        """Make everything staged durable and visible, in this order: contents, indexes, digest log, transaction.

        `pulled_from` is the registry and the repository in it that the blobs of the layers come from. `check` is called
        in the transaction, before anything; nothing is committed where it raises.
        What another import has stored meanwhile is not named twice. Raises `OSError`; nothing is visible then, and the
        import can be run again.
        """
        used = {diff_id for config, _, _ in self._images for diff_id in config.diff_ids}
        layers = [layer for diff_id, layer in self._layers.items() if diff_id in used]
        records, has_pack = self._publish_contents()
        for layer in layers:
            for path in (self._layout.layer_index(layer.diff_id), self._layout.layer_recipe(layer.diff_id)):
                durable.place(f"{self._staging}/{os.path.basename(path)}", path)
        for _, _, blobs in self._images:
            for digest, data in blobs.items():
                staged = f"{self._staging}/{digest_hex(digest)}"
                _write(staged, data)
                durable.place(staged, self._layout.blob(digest))
        self._sync()
        with self._database.transaction() as db:
            if check is not None:
                check(db)
            if records and self._known is None:
                records, has_pack = self._without_known(records)
            if records:
                self._store.contents.append(db, records)
            if has_pack:
                db.execute("INSERT INTO packs VALUES (?)", (self._pack_number,))
                db.execute("UPDATE counters SET value = max(value, ?) WHERE name = 'packs'", (self._pack_number + 1,))
            for layer in layers:
                db.execute(_ADD_LAYER, (layer.diff_id, layer.files_bytes, layer.recipe_digest))
                db.execute("DELETE FROM damaged_layers WHERE diff_id = ?", (layer.diff_id,))
                if layer.blob.compression or pulled_from:
                    remember(db.execute, layer.diff_id, layer.blob)
                if pulled_from:
                    saw(db.execute, layer.blob.digest, *pulled_from)
            for config, names, blobs in self._images:
                _insert_image(db.execute, config, names, blobs)
            is_any_damaged = db.execute("SELECT 1 FROM damaged_layers").fetchone() is not None
        if is_any_damaged:
            from layerstore.layers.damaged import forget_whole

            forget_whole(self._store)

    def _publish_contents(self) -> tuple[bytes, bool]:
        """Finish the pack, write its index, move the objects to their places.

        Returns the digest log's new records, and whether the pack holds anything.
        """
        contents = self._contents
        if contents is None:
            return b"", False
        with open_fd(self._layout.objects, os.O_RDONLY | os.O_DIRECTORY) as objects_fd:
            contents.publish(objects_fd, self._pack_number)
        slots, contents_bytes = contents.slots()
        if slots:
            image = write_pack(self._pack_number, contents_bytes, slots)
            _write(self._layout.pack_image(self._pack_number), image)
        return contents.records(), bool(slots)

    def _without_known(self, records: bytes) -> tuple[bytes, bool]:
        """The records of contents that no other import has stored since this one began, and whether any is in the
        pack."""
        places = self._store.contents.digests().locate_many(records, RECORD_BYTES)
        own = b"".join(
            records[at * RECORD_BYTES : (at + 1) * RECORD_BYTES]
            for at, (pack, _) in enumerate(LOCATION.iter_unpack(places))
            if pack == LOCATION_NONE
        )
        number = _U32.pack(self._pack_number)
        return own, any(own[at + 40 : at + 44] == number for at in range(0, len(own), RECORD_BYTES))


def _ingest_of(contents: Contents, limits: Limits | None) -> LayerIngest:
    if limits is None:
        return LayerIngest(contents)
    return LayerIngest(contents, **limits.of_tar(), hole_bytes=limits.hole_bytes)


class _Clones:
    """Clones in a staging directory, numbered as `Contents.expect_clones` wants them."""

    def __init__(self, staging: str) -> None:
        self._staging = staging
        self._count = 0

    def __call__(self, source: Source, size: int) -> tuple[Iterable[Piece], int]:
        """What to read the next large content from, and its size: its clone, or where none can be made the source
        itself. One that has become small is in memory: the numbers are those of large ones."""
        path = f"{self._staging}/clone.{self._count}"
        if isinstance(source, StoredContent) and source.link_to(path):
            self._count += 1
            return _pieces_of_file(path), size
        with open(path, "x+b", buffering=0, opener=functools.partial(os.open, mode=0o400)) as file:
            if source.clone_to(file.fileno()):
                size = fstat(file.fileno()).st_size
                if size > PACK_THRESHOLD_BYTES:
                    self._count += 1
                    return _pieces_of_file(path), size
                with about(path):
                    whole = read_at(file.fileno(), size, 0)
                os.unlink(path)
                return (whole,), size
        os.unlink(path)
        content, size = begun(source, size)
        self._count += size > PACK_THRESHOLD_BYTES
        return content, size


def _pieces_of_file(path: str) -> Iterator[Piece]:
    with open(path, "rb", buffering=0) as file:
        yield from pieces_of(file)


def _new_file(path: str) -> BinaryIO:
    return open(path, "wb", opener=functools.partial(os.open, mode=0o600))


def _write(path: str, data: Buffer) -> None:
    with about(path), _new_file(path) as file:
        file.write(data)


def _insert_image(
    execute: Callable[..., sqlite3.Cursor], config: ImageConfig, names: Iterable[str], blobs: Iterable[Digest]
) -> None:
    chains = chain_ids(config.diff_ids)
    execute(
        "INSERT OR IGNORE INTO images VALUES (?, ?, ?, ?)", (config.image_id, chains[-1], config.created, time.time())
    )
    _insert_chains(execute, chains, config.diff_ids)
    for digest in blobs:
        execute("INSERT OR IGNORE INTO image_blobs VALUES (?, ?)", (config.image_id, digest))
    for name in names:
        execute(SET_NAME, (name, config.image_id))


def _insert_chains(
    execute: Callable[..., sqlite3.Cursor], chains: Sequence[ChainId], diff_ids: Sequence[DiffId]
) -> None:
    """From the top down to one that is there: those below it are there too, from an image that this one is built on."""
    for number in range(len(diff_ids) - 1, -1, -1):
        parent = chains[number - 1] if number else None
        row = (chains[number], parent, diff_ids[number])
        if not execute("INSERT OR IGNORE INTO chains VALUES (?, ?, ?)", row).rowcount:
            return


def _reserve_pack(store: OpenStore) -> tuple[int, int]:
    """Make the next pack's file, locked so that others see it is in use; returns its number and descriptor.

    The number of a pack that was committed is never used again: readers may have the pack open.
    """
    (number,) = store.database.read().execute("SELECT value FROM counters WHERE name = 'packs'").fetchone()
    return durable.first_free(store.layout.pack, number)


def clear_abandoned(store: OpenStore) -> None:
    """Remove the staging directories and packs of imports that were killed. Under the staging lock."""
    for name in own_names.own(store.layout.staging, own_names.STAGING):
        directory = f"{store.layout.staging}/{name}"
        _if_abandoned(f"{directory}/lock", functools.partial(clear_tree, directory))
    committed = {number for (number,) in store.database.read().execute("SELECT number FROM packs")}
    packs = [name.removesuffix(".pack") for name in own_names.own(store.layout.packs, own_names.PACKS)]
    for number in map(int, filter(str.isdigit, packs)):
        if number not in committed:
            _if_abandoned(store.layout.pack(number), functools.partial(_drop_pack, store, number))
    clear_abandoned_cold(store)


def clear_abandoned_cold(store: OpenStore) -> None:
    """Remove the cold packs of freezes that were killed. Under the staging lock."""
    if not exists(store.layout.cold):
        return
    committed = {number for (number,) in store.database.read().execute("SELECT number FROM cold_packs")}
    for name in own_names.own(store.layout.cold, own_names.COLD):
        number = name.removesuffix(".cold")
        if number.isdigit() and int(number) not in committed:
            _if_abandoned(f"{store.layout.cold}/{name}", functools.partial(drop_cold_pack, store, int(number)))


def drop_cold_pack(store: OpenStore, number: int) -> None:
    """As `_drop_pack`."""
    if store.database.read().execute("SELECT 1 FROM cold_packs WHERE number = ?", (number,)).fetchone() is None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(store.layout.cold_pack(number))


def _if_abandoned(lock: str, remove: Callable[[], object]) -> None:
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        remove()
        return
    with closing_fd(fd):
        if locks.try_lock(fd):
            remove()


def _drop_pack(store: OpenStore, number: int) -> None:
    """Remove a pack unless it was committed, which the database alone knows: an exception (Ctrl-C) may come between a
    commit and whoever would have noted it, and another import may commit between a listing and the lock."""
    if store.database.read().execute("SELECT 1 FROM packs WHERE number = ?", (number,)).fetchone() is None:
        for path in (store.layout.pack_image(number), store.layout.pack(number)):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
