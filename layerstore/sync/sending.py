"""The side of a sync that has the images: says what is in them, and sends what the other side lacks."""

from __future__ import annotations

import io

from layerstore._core.hashing import Hasher
from layerstore.cold.encoding import CHUNK_BYTES, Encoder
from layerstore.errors import RELOAD, CorruptError, NotFound
from layerstore.layers.blob_streams import pieces_of
from layerstore.layers.recipe import recipe_frames
from layerstore.naming import fstat
from layerstore.oci.configs import parse_config
from layerstore.results import Progress, Synced, telling
from layerstore.store import durable, locks, zstd
from layerstore.store.pieces import pieces_between, read_whole
from layerstore.store.records import CONTENT
from layerstore.sync.channel import MOST_BYTES, Kind, size_of
from layerstore.sync.known import Known, layers_like
from layerstore.sync.tables import DIGEST_BYTES, SMALL_RECIPE_BYTES, SMALL_TABLE_BYTES
from layerstore.types import DiffId, Digest, ImageId, digest_hex, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.chains.chains import Chains
    from layerstore.oci.configs import ImageConfig
    from layerstore.results import ProgressCallback
    from layerstore.store.opened import OpenStore
    from layerstore.sync.channel import Channel


_CHUNK_SIZES = CHUNK_BYTES // 4, CHUNK_BYTES, CHUNK_BYTES * 8
"""Least, average and largest: as `Encoder` cuts large contents."""
_LEVEL = 3


def send(
    store: OpenStore,
    chains: Chains,
    images: Sequence[ImageId],
    channel: Channel,
    progress: ProgressCallback | None,
) -> Synced:
    """Have the other side of the channel have these images, one after the other; see `layerstore.Store.sync`."""
    channel.greet()
    sending = _Sending(store, chains, channel, progress)
    for image in images:
        sending.send(image)
    channel.send(Kind.END)
    sent, received = channel.sent_bytes, channel.received_bytes
    return Synced([*images], sending.layers, sending.contents, sending.content_bytes, sent, received)


class _Sending:
    def __init__(
        self,
        store: OpenStore,
        chains: Chains,
        channel: Channel,
        progress: ProgressCallback | None,
    ) -> None:
        self._layout = store.layout
        self._database = store.database
        self._contents = store.contents
        self._chains = chains
        self._channel = channel
        self._progress = progress
        self.layers = self.contents = self.content_bytes = 0

    def send(self, image: ImageId) -> None:
        with durable.nameless(self._layout.staging) as file:
            fd = file.fileno()
            # What a collection takes away while it is read would be missing in the middle.
            with locks.garbage(self._layout):
                config, names = self._describe(image)
                what = next(iter(names), image)
                lacking, sources = self._offer(image, config, names, what, fd)
            if sources is not None:
                self._send_pack(fd, what, sources)
        self._hear_of_import(set(lacking))
        self.layers += len(lacking)

    def _offer(
        self, image: ImageId, config: ImageConfig, names: Sequence[str], what: str, fd: int
    ) -> tuple[list[DiffId], list[str] | None]:
        """Find out what the other side lacks, and say of what it is made. Returns the layers; and of a pack that is to
        be sent, which is written to `fd`, from what chunks are."""
        own = list(dict.fromkeys(config.diff_ids))
        others = layers_like(self._database, image, names, set(own))
        self._channel.send(Kind.OFFER, b"".join(bytes.fromhex(digest_hex(diff_id)) for diff_id in others))
        stored = self._channel.flags(Kind.STORED, len(own) + len(others))
        there = [diff_id for diff_id, is_there in zip([*own, *others], stored, strict=True) if is_there]
        lacking = [diff_id for diff_id, is_there in zip(own, stored, strict=False) if not is_there]
        if not lacking:
            return [], None
        elsewhere = [diff_id for diff_id in others if diff_id not in there]
        known = Known(self._chains, self._contents, there, elsewhere, self._ask)
        return lacking, self._write_pack(fd, what, self._send_layers(lacking, known), known)

    # The image and its layers

    def _describe(self, image: ImageId) -> tuple[ImageConfig, list[str]]:
        """Say which image it is, with its config and manifests."""
        db = self._database.read()
        names = [name for (name,) in db.execute("SELECT name FROM names WHERE image_id = ? ORDER BY name", (image,))]
        rows = db.execute("SELECT digest FROM image_blobs WHERE image_id = ? ORDER BY digest", (image,)).fetchall()
        if not rows:
            raise NotFound(f"image {image} was removed meanwhile")
        others = [Digest(digest) for (digest,) in rows if digest != image]
        blobs = {digest: self._blob(image, digest) for digest in (Digest(image), *others)}
        sizes = [[digest, len(data)] for digest, data in blobs.items()]
        self._channel.say(Kind.IMAGE, {"names": names, "blobs": sizes})
        self._channel.send_data(blobs.values())
        return parse_config(blobs[Digest(image)], image), names

    def _blob(self, image: ImageId, digest: Digest) -> bytes:
        try:
            data = read_whole(self._layout.blob(digest))
        except FileNotFoundError:
            data = b""
        if sha256_digest(data) != digest:
            raise CorruptError(f"{digest} of image {image} is missing or damaged; {RELOAD}")
        return data

    def _send_layers(self, lacking: Sequence[DiffId], known: Known) -> dict[bytes, tuple[int, bytes]]:
        """Send tables of contents and recipes; returns size and path of each content in them, in order."""
        found: dict[bytes, tuple[int, bytes]] = {}
        for diff_id in lacking:
            index = self._chains.layer_index(diff_id)
            table = bytes(index.contents_bytes())
            self._send_layer(diff_id, table, known.layer_like(table))
            for (digest, size), path in zip(CONTENT.iter_unpack(table), index.content_paths(), strict=True):
                found.setdefault(digest, (size, path))
        return found

    def _send_layer(self, diff_id: DiffId, table: bytes, like: DiffId | None) -> None:
        """The table and the recipe of a layer, as differences from those of one that the other side has, too."""
        frames = self._frames(diff_id) if like and len(table) <= SMALL_TABLE_BYTES else None
        base = self._frames(like) if like and frames is not None else None
        if like is None or frames is None or base is None:
            packed = zstd.compress(table, _LEVEL)
            with io.FileIO(self._layout.layer_recipe(diff_id)) as file:
                recipe_bytes = fstat(file.fileno()).st_size
                self._say_layer(None, (len(packed), len(table)), (recipe_bytes, 0))
                self._channel.send_data([packed])
                self._channel.send_data(pieces_of(file))
            return
        packed = zstd.compress_against(self._chains.layer_index(like).contents_bytes(), table, _LEVEL)
        recipe = zstd.compress_against(base, frames, _LEVEL)
        self._say_layer(like, (len(packed), len(table)), (len(recipe), len(frames)))
        self._channel.send_data([packed, recipe])

    def _frames(self, diff_id: DiffId) -> bytes | None:
        return recipe_frames(self._layout.layer_recipe(diff_id), SMALL_RECIPE_BYTES)

    def _say_layer(self, like: DiffId | None, table: tuple[int, int], recipe: tuple[int, int]) -> None:
        """Of table and recipe how many bytes come, and how many they are decompressed."""
        self._channel.say(Kind.LAYER, {"like": like, "table": table, "recipe": recipe})

    # Contents

    def _write_pack(
        self, fd: int, what: str, contents: dict[bytes, tuple[int, bytes]], known: Known
    ) -> list[str] | None:
        """Write those that the other side wants to a cold pack; returns from what chunks of it are, None where it wants
        none."""
        flags = self._channel.flags(Kind.WANTED, len(contents))
        wanted = [(digest, *of) for (digest, of), flag in zip(contents.items(), flags, strict=True) if flag]
        if not wanted:
            self._channel.say(Kind.PACK, {"bytes": 0})
            return None
        items, bases = known.items_and_bases(wanted)
        chunks = known.chunks(items, bases, _CHUNK_SIZES)
        total = sum(item.size for item in items)
        told = telling(self._progress, "compare", what, total)
        staging = self._layout.staging
        encoder = Encoder(fd, staging, "zstd", self._contents.reader(), chunks.known, bases, told)
        encoder.write(items, set())
        self.contents += len(items)
        self.content_bytes += total
        return [source.hex() for source in chunks.sources]

    def _send_pack(self, fd: int, what: str, sources: list[str]) -> None:
        """Of the pack, what the other side does not have from a sync that did not end."""
        size = fstat(fd).st_size
        offer = {"bytes": size, "digest": _digest(fd, size), "sources": sources, "chunks": _CHUNK_SIZES}
        self._channel.say(Kind.PACK, offer)
        kept = self._channel.hear(Kind.KEPT)
        have = size_of(kept.get("bytes"))
        if have is None or have > size:
            raise self._channel.wrong(f"says that it has {kept.get('bytes')!r} of {size} bytes")
        start = have if have and kept.get("digest") == _digest(fd, have) else 0
        self._channel.say(Kind.FROM, {"at": start})
        tell = telling(self._progress, "send", what, size)
        for piece in pieces_between(fd, start, size):
            self._channel.send_data([piece])
            start += len(piece)
            if tell is not None:
                tell(start)

    def _ask(self, digests: Sequence[bytes]) -> list[bool]:
        """Which of these contents the other side has."""
        found: list[bool] = []
        most = MOST_BYTES // DIGEST_BYTES
        for at in range(0, len(digests), most):
            batch = digests[at : at + most]
            self._channel.send(Kind.HAVE, b"".join(batch))
            found += self._channel.flags(Kind.HELD, len(batch))
        return found

    # What the other side says

    def _hear_of_import(self, layers: set[DiffId]) -> None:
        """Wait until the other side has all of it."""
        while True:
            kind, payload = self._channel.receive(Kind.PROGRESS, Kind.DONE)
            if kind == Kind.DONE:
                return
            said = self._channel.document(kind, payload)
            layer, done = said.get("layer"), size_of(said.get("done"))
            if not isinstance(layer, str) or layer not in layers or done is None:
                raise self._channel.wrong(f"tells of {said.get('done')!r} bytes of {layer!r}, which it does not import")
            if self._progress is not None:
                self._progress(Progress("import", layer, done, None))


def _digest(fd: int, length: int) -> str:
    hasher = Hasher()
    for piece in pieces_between(fd, 0, length):
        hasher.update(piece)
    return hasher.digest().hex()
