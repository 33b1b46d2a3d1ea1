"""The side of a sync that gets the images. What the other side says is not trusted: layers are made from what came and
imported as if their tars had come, which are verified, limited and committed so."""

from __future__ import annotations

import contextlib
import os
import sqlite3

from layerstore._core.hashing import Hasher
from layerstore._core.index import CONTENT_BYTES
from layerstore._core.ingest import LOCATION_NONE
from layerstore.errors import CorruptError, DigestMismatch, InvalidInput, LayerstoreError, SyncError
from layerstore.layers.blob_streams import decompressed
from layerstore.layers.imports import Import
from layerstore.layers.recipe import arrived_tar_pieces, recipe_frames
from layerstore.limits import FREE_INDEX_BYTES, beyond
from layerstore.naming import about, fstat
from layerstore.oci.configs import parse_config
from layerstore.oci.manifests import is_index, parse_document, parse_index, parse_manifest
from layerstore.store import durable, zstd
from layerstore.store.cold_packs import ColdPack
from layerstore.store.pieces import PIECE_BYTES, pieces_between, read_at, write_at
from layerstore.store.records import CONTENT, LOCATION
from layerstore.store.spool import Spool
from layerstore.sync.arrived import Arrived
from layerstore.sync.channel import Kind, size_of
from layerstore.sync.tables import DIGEST_BYTES, SMALL_RECIPE_BYTES, SMALL_TABLE_BYTES, Table
from layerstore.types import DiffId, Digest, Value, normalise_name, parse_digest, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from typing import Any

    from typing_extensions import Buffer

    from layerstore.chains.chains import Chains
    from layerstore.limits import Limits
    from layerstore.oci.configs import ImageConfig
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.sync.channel import Channel

_SOURCES = 1024
_LEAST_CHUNK, _LARGEST_CHUNK = 16 << 10, 16 << 20
_TELL_BYTES = 4 << 20
"""Every so many bytes of a layer the other side is told of them."""


def receive(store: OpenStore, chains: Chains, channel: Channel, limits: Limits) -> bool:
    """Take in the images that the other side of the channel sends, until it has no more.

    Returns False where it could not, and the other side was told why. Raises that where it could not be told.
    """
    try:
        channel.greet()
        receiving = _Receiving(store, chains, channel, limits)
        while True:
            kind, payload = channel.receive(Kind.IMAGE, Kind.END)
            if kind == Kind.END:
                return True
            receiving.receive(channel.document(kind, payload))
    except (LayerstoreError, OSError, MemoryError, sqlite3.Error) as error:
        if channel.tell(error):
            return False
        raise


class _Layer(Value):
    """What came of a layer: its table of contents, and the frames of its recipe, which can be had once."""

    diff_id: DiffId
    table: Table
    frames: Iterable[Piece]


class _TableSizes:
    """What the tables of the layers of one image have together, which are in memory at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._packed = self._bytes = 0

    def add(self, packed_bytes: int, size_bytes: int) -> None:
        """Raises `LimitExceeded`."""
        limits = self._limits
        self._packed += packed_bytes
        self._bytes += size_bytes
        what = f"the tables of the layers have {self._bytes} bytes"
        if self._bytes > limits.index_bytes:
            raise beyond(what, limits, "index_bytes")
        if self._bytes > max(FREE_INDEX_BYTES, limits.index_ratio * self._packed):
            raise beyond(f"{what} in {self._packed}", limits, "index_ratio")


class _Offer(Value):
    """A cold pack that is to come: its bytes and digest, the contents here that chunks of it are from, and between
    which sizes those are cut."""

    size_bytes: int
    digest: str
    sources: list[bytes]
    chunk_sizes: tuple[int, int, int]


class _Receiving:
    def __init__(self, store: OpenStore, chains: Chains, channel: Channel, limits: Limits) -> None:
        self._layout = store.layout
        self._database = store.database
        self._chains = chains
        self._channel = channel
        self._limits = limits
        # Layers are made of what is here: what is damaged of that is to be told apart from what came.
        self._store = store.verifying("first")
        self._contents = self._store.contents

    def receive(self, said: dict[str, Any]) -> None:
        """Take in one image."""
        names = self._names(said)
        config, blobs = self._blobs(said)
        diff_ids = list(dict.fromkeys(config.diff_ids))
        with Import(self._store, limits=self._limits) as importing:
            missing = importing.claim_missing(diff_ids)
            offered = self._offered()
            stored = importing.stored_layers(offered)
            flags = [diff_id not in missing for diff_id in diff_ids] + [diff_id in stored for diff_id in offered]
            self._channel.send_flags(Kind.STORED, flags)
            lacking = [diff_id for diff_id in diff_ids if diff_id in missing]
            if lacking:
                self._import(importing, lacking, stored | {*diff_ids} - missing)
            importing.add_image(config, names, blobs)
            importing.commit()
        self._channel.send(Kind.DONE)

    # The image

    def _names(self, said: dict[str, Any]) -> list[str]:
        names = said.get("names")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise self._channel.wrong("names an image by what is no list of names")
        return [normalise_name(name) for name in names]

    def _blobs(self, said: dict[str, Any]) -> tuple[ImageConfig, dict[Digest, bytes]]:
        """The config, the first of the blobs, and all of these."""
        listed = said.get("blobs")
        if not isinstance(listed, list) or not listed or not all(map(_is_blob, listed)):
            raise self._channel.wrong("describes an image without a list of its blobs and their sizes")
        sizes = {parse_digest(digest, "the digest of a blob"): size for digest, size in listed}
        if len(sizes) != len(listed):
            raise self._channel.wrong("describes an image with a blob twice")
        limits = self._limits
        if sum(sizes.values()) > limits.metadata_bytes:
            raise beyond(f"the image has {sum(sizes.values())} bytes of config and manifests", limits, "metadata_bytes")
        blobs: dict[Digest, bytes] = {}
        for digest, size in sizes.items():
            data = b"".join(self._channel.data(size))
            if sha256_digest(data) != digest:
                raise DigestMismatch(f"a blob has digest {sha256_digest(data)}, but {digest} was promised")
            blobs[digest] = data
        first, *others = blobs
        config = parse_config(blobs[first], first, limits)
        for digest in others:
            _check_manifest(blobs[digest], digest, config, limits)
        return config, blobs

    def _offered(self) -> list[DiffId]:
        """Layers that the other side has, which are here perhaps."""
        _, payload = self._channel.receive(Kind.OFFER)
        if len(payload) % DIGEST_BYTES:
            raise self._channel.wrong(f"offers layers in {len(payload)} bytes")
        digests = (payload[at : at + DIGEST_BYTES] for at in range(0, len(payload), DIGEST_BYTES))
        return [DiffId(f"sha256:{digest.hex()}") for digest in digests]

    # Layers

    def _import(self, importing: Import, lacking: Sequence[DiffId], here: Collection[DiffId]) -> None:
        """Stage the layers that are lacking, by what comes of them and what is here."""
        with contextlib.ExitStack() as stack:
            recipes = stack.enter_context(durable.nameless(self._layout.staging)).fileno()
            sizes = _TableSizes(self._limits)
            layers = [self._layer(diff_id, here, recipes, sizes) for diff_id in lacking]
            wanted = self._wanted(layers)
            offer = self._answer(sum(wanted.values()) * 65 // 64 + 256 * len(wanted) + 4096)
            spool = stack.enter_context(self._fetched(offer)) if offer.size_bytes else None
            try:
                self._stage(importing, layers, wanted, offer, spool)
            except LayerstoreError as error:
                if spool is not None and not isinstance(error, SyncError):
                    spool.remove()  # what is in it is wrong
                raise
            if spool is not None:
                # Before the import is made durable: else it would be written to the disk with it.
                spool.remove()

    def _layer(self, diff_id: DiffId, here: Collection[DiffId], recipes: int, sizes: _TableSizes) -> _Layer:
        """A layer as it comes: its table of contents and its recipe, maybe as differences from one that is here. The
        recipe is put into a file, and decompressed when the layer is made: all of an image's at once may be much."""
        said = self._channel.hear(Kind.LAYER)
        like = said.get("like")
        if like is not None and (not isinstance(like, str) or like not in here):
            raise self._channel.wrong(f"sends layer {diff_id} as a difference from {like!r}, which is not here")
        limits = self._limits
        (packed, size), (packed_recipe, recipe_size) = (self._sizes(said.get(key)) for key in ("table", "recipe"))
        if max(packed, packed_recipe) > limits.index_bytes:
            raise beyond(f"the table or recipe of layer {diff_id} is too large", limits, "index_bytes")
        sizes.add(packed, size)
        theirs = None if like is None else self._chains.layer_index(DiffId(like)).contents_bytes()
        if theirs is not None and (recipe_size > SMALL_RECIPE_BYTES or max(size, len(theirs)) > SMALL_TABLE_BYTES):
            raise self._too_large(diff_id)
        table = self._unpacked(diff_id, b"".join(self._channel.data(packed)), size, theirs)
        start = end = fstat(recipes).st_size
        for piece in self._channel.data(packed_recipe):
            with about(self._layout.staging):
                write_at(recipes, piece, end)
            end += len(piece)
        came = pieces_between(recipes, start, end)
        if like is None:
            frames = decompressed(came, "zstd", limits, f"the recipe of layer {diff_id}")
        else:
            frames = self._recipe(diff_id, came, recipe_size, DiffId(like))
        return _Layer(diff_id, self._checked(diff_id, table), frames)

    def _recipe(self, diff_id: DiffId, came: Iterable[Piece], size: int, like: DiffId) -> Iterator[Piece]:
        """The frames of a recipe that came as a difference from another."""
        base = recipe_frames(self._layout.layer_recipe(like), SMALL_RECIPE_BYTES)
        if base is None:
            raise self._too_large(diff_id)
        yield self._unpacked(diff_id, b"".join(came), size, base)

    def _too_large(self, diff_id: DiffId) -> SyncError:
        return self._channel.wrong(f"sends layer {diff_id} as a difference although it is too large for that")

    def _unpacked(self, diff_id: DiffId, data: bytes, size: int, base: Buffer | None = None) -> bytes:
        """What was made one frame of."""
        try:
            return zstd.decompress(data, size, base)
        except CorruptError as error:
            raise CorruptError(f"what came of layer {diff_id} is damaged ({error}); sync again") from error

    def _sizes(self, said: object) -> tuple[int, int]:
        """How many bytes come of something, and how many they are decompressed."""
        sizes = [size_of(value) for value in said] if isinstance(said, list) else []
        if len(sizes) != 2 or sizes[0] is None or sizes[1] is None:
            raise self._channel.wrong(f"gives {said!r} for sizes")
        return sizes[0], sizes[1]

    def _checked(self, diff_id: DiffId, data: bytes) -> Table:
        limits, total = self._limits, 0
        if len(data) % CONTENT_BYTES:
            raise CorruptError(f"the table of layer {diff_id} has {len(data)} bytes, which is no table")
        for digest, size in CONTENT.iter_unpack(data):
            total += size
            if not size:
                raise CorruptError(f"content {digest.hex()} of layer {diff_id} is said to be empty")
            if size > limits.file_bytes:
                raise beyond(f"content {digest.hex()} of layer {diff_id} has {size} bytes", limits, "file_bytes")
        if total > limits.layer_bytes + limits.hole_bytes:
            raise beyond(f"the contents of layer {diff_id} have {total} bytes", limits, "layer_bytes")
        return Table(data)

    def _wanted(self, layers: Sequence[_Layer]) -> dict[bytes, int]:
        """Ask for the contents of the layers that are not here; returns their sizes."""
        sizes: dict[bytes, int] = {}
        for layer in layers:
            for digest, size in CONTENT.iter_unpack(layer.table.data):
                if sizes.setdefault(digest, size) != size:
                    raise CorruptError(f"content {digest.hex()} is said to have {sizes[digest]} bytes and {size}")
        lacking = [not is_here for is_here in self._are_here(b"".join(sizes))]
        self._channel.send_flags(Kind.WANTED, lacking)
        return {digest: size for (digest, size), is_lacking in zip(sizes.items(), lacking, strict=True) if is_lacking}

    def _are_here(self, digests: bytes) -> list[bool]:
        places = self._contents.digests().locate_many(digests, DIGEST_BYTES)
        return [pack != LOCATION_NONE for pack, _ in LOCATION.iter_unpack(places)]

    # Contents

    def _answer(self, most_bytes: int) -> _Offer:
        """Say which contents are here, as often as the other side asks, until it offers those that were asked for."""
        while True:
            kind, payload = self._channel.receive(Kind.HAVE, Kind.PACK)
            if kind == Kind.PACK:
                return self._offer(self._channel.document(kind, payload), most_bytes)
            if not payload or len(payload) % DIGEST_BYTES:
                raise self._channel.wrong(f"asks for contents in {len(payload)} bytes")
            self._channel.send_flags(Kind.HELD, self._are_here(payload))

    def _offer(self, said: dict[str, Any], most_bytes: int) -> _Offer:
        size = size_of(said.get("bytes"))
        if size is None or size > most_bytes:
            raise self._channel.wrong(f"offers a pack of {said.get('bytes')!r} bytes where {most_bytes} are enough")
        if not size:
            return _Offer(0, "", [], (0, 0, 0))
        digest, sources, chunks = (said.get(key) for key in ("digest", "sources", "chunks"))
        if (
            not _is_hex(digest)
            or not isinstance(sources, list)
            or len(sources) > _SOURCES
            or not all(map(_is_hex, sources))
        ):
            raise self._channel.wrong("offers a pack without digests of it and of what chunks are from")
        sizes = [size_of(value) or 0 for value in chunks] if isinstance(chunks, list) else []
        if len(sizes) != 3 or not _LEAST_CHUNK <= sizes[0] <= sizes[1] <= sizes[2] <= _LARGEST_CHUNK:
            raise self._channel.wrong(f"cuts chunks of {chunks!r} bytes")
        return _Offer(size, str(digest), [*map(bytes.fromhex, dict.fromkeys(sources))], (sizes[0], sizes[1], sizes[2]))

    @contextlib.contextmanager
    def _fetched(self, offer: _Offer) -> Iterator[Spool]:
        """The pack in a file, with what an earlier sync that did not end has left of it."""
        os.makedirs(self._layout.downloads, mode=0o700, exist_ok=True)
        spool = Spool(self._layout.downloads, offer.digest)
        try:
            self._fetch(offer, spool)
            yield spool
        finally:
            spool.close()

    def _fetch(self, offer: _Offer, spool: Spool) -> None:
        kept = fstat(spool.fd).st_size
        if kept > offer.size_bytes:
            kept = 0
        hasher = Hasher()
        with about(spool.path):
            for at in range(0, kept, PIECE_BYTES):
                hasher.update(read_at(spool.fd, min(PIECE_BYTES, kept - at), at))
        self._channel.say(Kind.KEPT, {"bytes": kept, "digest": hasher.digest().hex()})
        start = self._channel.hear(Kind.FROM).get("at")
        if start == 0:
            kept, hasher = 0, Hasher()
        elif start != kept:
            raise self._channel.wrong(f"goes on from byte {start!r}, and {kept} are here")
        with about(spool.path):
            os.ftruncate(spool.fd, kept)
            for piece in self._channel.data(offer.size_bytes - kept):
                write_at(spool.fd, piece, kept)
                hasher.update(piece)
                kept += len(piece)
        if hasher.digest().hex() != offer.digest:
            spool.remove()
            raise CorruptError("the pack has another digest than was promised; sync again")

    def _stage(
        self, importing: Import, layers: Sequence[_Layer], wanted: dict[bytes, int], offer: _Offer, spool: Spool | None
    ) -> None:
        """Stage the layers: write the tar of each, and import it."""
        try:
            pack = None if spool is None else ColdPack(spool.path)
        except CorruptError as error:
            raise CorruptError(f"the pack that came is none ({error}); sync again") from error
        source = Arrived(pack, offer.size_bytes, wanted, self._contents, offer.sources, offer.chunk_sizes, self._limits)
        with contextlib.closing(source):
            for layer in layers:
                what = f"the recipe of layer {layer.diff_id}"
                tar = arrived_tar_pieces(what, layer.frames, layer.table, source, self._limits)
                importing.add_layer(tar, diff_id=layer.diff_id, progress=self._telling(layer.diff_id))

    def _telling(self, diff_id: DiffId) -> Callable[[int], None]:
        told = 0

        def tell(done: int) -> None:
            nonlocal told
            if done - told >= _TELL_BYTES:
                told = done
                self._channel.say(Kind.PROGRESS, {"layer": diff_id, "done": done})

        return tell


def _is_hex(value: object) -> bool:
    return isinstance(value, str) and len(value) == 2 * DIGEST_BYTES and not value.strip("0123456789abcdef")


def _is_blob(value: object) -> bool:
    return isinstance(value, list) and len(value) == 2 and size_of(value[1]) is not None


def _check_manifest(data: bytes, digest: Digest, config: ImageConfig, limits: Limits) -> None:
    """That it is a manifest of the image, or an index. Raises `InvalidInput`, `LimitExceeded`."""
    document = parse_document(data, f"the manifest {digest}", limits)
    if is_index(document, ""):
        parse_index(document)
        return
    manifest = parse_manifest(document, limits)
    if manifest.config.digest != Digest(config.image_id) or len(manifest.layers) != len(config.diff_ids):
        raise InvalidInput(f"the manifest {digest} is of another image than {config.image_id}")
