"""A push: what the registry lacks of an image, then its manifest."""

from __future__ import annotations

import queue
import threading

from layerstore.errors import InvalidInput
from layerstore.layers.blobs import LayerBlob
from layerstore.layers.known_blobs import KnownBlob, known_blobs, missed, remember, saw
from layerstore.naming import starting
from layerstore.oci.configs import to_json
from layerstore.oci.manifests import is_foreign, parse_document, parse_manifest
from layerstore.registry.client import Client, Repository
from layerstore.registry.telling import Teller
from layerstore.registry.transport import END_SECONDS
from layerstore.registry.uploads import Upload
from layerstore.results import Progress
from layerstore.store.pieces import read_whole
from layerstore.types import Digest, Value, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from layerstore.oci.configs import ImageConfig
    from layerstore.oci.manifests import Manifest
    from layerstore.registry.references import Reference
    from layerstore.results import ProgressCallback
    from layerstore.store.db import Database
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.types import DiffId

PARALLEL = 3
"""Layers at once."""
_ASKED = 2
"""Of the blobs that a layer is known as, how many are asked for before it is sent."""
_COMPRESSION = "gzip"
"""What every other program reads."""


class _Family(Value):
    """The media types of one specification: of a manifest, of a config, and of layers by their compression."""

    manifest: str
    config: str
    layers: dict[str, str]


_OCI = _Family(
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.oci.image.config.v1+json",
    {how: f"application/vnd.oci.image.layer.v1.tar{f'+{how}' if how else ''}" for how in ("", "gzip", "zstd")},
)
_DOCKER = _Family(
    "application/vnd.docker.distribution.manifest.v2+json",
    "application/vnd.docker.container.image.v1+json",
    {how: f"application/vnd.docker.image.rootfs.diff.tar{f'.{how}' if how else ''}" for how in ("", "gzip")},
)


class _Kept(Value):
    """A manifest that the image came with."""

    data: bytes
    manifest: Manifest
    family: _Family


def push(
    store: OpenStore,
    client: Client,
    reference: Reference,
    config: ImageConfig,
    layer_tar: Callable[[DiffId], Iterable[Piece]],
    progress: ProgressCallback | None,
) -> Digest:
    """Have a registry have an image; see `layerstore.Store.push`."""
    if reference.tag is None or reference.digest is not None:
        raise InvalidInput(f"{reference} names a digest, which is what a push gives; push to NAME[:TAG]")
    repository = Repository(client, reference.repository)
    tell = Teller(progress)
    client.warn = tell.warn
    kept = _kept_manifest(store, config)
    family = kept.family if kept else _OCI
    config_data = read_whole(store.layout.blob(Digest(config.image_id)))
    layers = _Layers(store.database, client, repository, family, kept, layer_tar, tell)
    blobs = layers.place(tuple(dict.fromkeys(config.diff_ids)))
    if not repository.has_blob(Digest(config.image_id), repository.writing):
        Upload(repository).send_bytes(config_data)
    placed = [blobs[diff_id] for diff_id in config.diff_ids]
    if kept and [blob.digest for blob in placed] == [layer.digest for layer in kept.manifest.layers]:
        data = kept.data
    else:
        data = _manifest(family, config_data, placed)
    digest = repository.put_manifest(reference.tag, data, family.manifest)
    tell(Progress("manifest", digest, len(data), len(data)))
    return digest


def _kept_manifest(store: OpenStore, config: ImageConfig) -> _Kept | None:
    """A manifest of the image's among what is kept of it, one of OCI's before docker's.

    Raises `InvalidInput` where it names layers that may not be given on.
    """
    rows = (
        store.database.read()
        .execute("SELECT digest FROM image_blobs WHERE image_id = ?", (config.image_id,))
        .fetchall()
    )
    found: list[_Kept] = []
    for digest in (Digest(row[0]) for row in rows if row[0] != str(config.image_id)):
        data = read_whole(store.layout.blob(digest))
        if sha256_digest(data) != digest:
            continue
        document = parse_document(data, "a manifest")
        if "layers" not in document:
            continue
        manifest = parse_manifest(document)
        if any(map(is_foreign, manifest.layers)):
            raise InvalidInput(
                f"image {config.image_id} has layers that their maker alone may distribute, so it cannot be pushed"
            )
        # Docker's say what they are, and a registry wants to hear the same of them; their config may be of either.
        is_docker = document.get("mediaType") == _DOCKER.manifest
        if manifest.config.digest == Digest(config.image_id):
            found.append(_Kept(data, manifest, _DOCKER if is_docker else _OCI))
    return min(found, key=lambda kept: (kept.family is _DOCKER, kept.data), default=None)


def _manifest(family: _Family, config: bytes, layers: Sequence[KnownBlob]) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": family.manifest,
        "config": {"mediaType": family.config, "digest": sha256_digest(config), "size": len(config)},
        "layers": [
            {"mediaType": family.layers[blob.compression], "digest": blob.digest, "size": blob.size_bytes}
            for blob in layers
        ],
    }
    return to_json(document)


class _Layers:
    """Has layers be in a repository, several at once."""

    def __init__(
        self,
        database: Database,
        client: Client,
        repository: Repository,
        family: _Family,
        kept: _Kept | None,
        layer_tar: Callable[[DiffId], Iterable[Piece]],
        tell: Teller,
    ) -> None:
        self._database = database
        self._registry = client.registry
        self._repository = repository
        self._family = family
        self._in_manifest = {layer.digest for layer in kept.manifest.layers} if kept else set()
        self._layer_tar = layer_tar
        self._tell = tell
        self._stopped = client.patience.stopped
        self._waiting: Iterator[DiffId] = iter(())
        self._ended: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()
        self._known: dict[DiffId, list[KnownBlob]] = {}
        self._absent: set[Digest] = set()
        self._placed: dict[DiffId, KnownBlob] = {}

    def place(self, diff_ids: Sequence[DiffId]) -> dict[DiffId, KnownBlob]:
        """The blob that each of the layers is in the repository. What was learnt of it is noted, on failure too."""
        self._known = known_blobs(self._database, diff_ids, self._registry)
        for diff_id in diff_ids:
            self._tell(Progress("waiting", diff_id, 0, None))
        self._waiting = iter(diff_ids)
        count = min(PARALLEL, len(diff_ids))
        threads = [threading.Thread(target=self._work, name="layerstore-push", daemon=True) for _ in range(count)]
        try:
            for thread in threads:
                with starting():
                    thread.start()
            for _ in threads:
                if (error := self._ended.get()) is not None:
                    raise error
        except BaseException:
            self._stopped.set()
            for thread in threads:
                if thread.is_alive():
                    thread.join(END_SECONDS)
            raise
        finally:
            self._note()
        return self._placed

    def _work(self) -> None:
        error = None
        try:
            for diff_id in self._waiting:  # which all threads take from
                if self._stopped.is_set():
                    break
                self._place(diff_id)
        except BaseException as raised:
            error = raised
        self._ended.put(error)

    def _place(self, diff_id: DiffId) -> None:
        candidates = sorted(self._known.get(diff_id, []), key=self._preference)
        candidates = [blob for blob in candidates if self._is_usable(blob)][:_ASKED]
        for blob in candidates:
            if self._repository.has_blob(blob.digest, self._repository.writing):
                self._tell(Progress("stored", diff_id, blob.size_bytes, blob.size_bytes))
                self._placed[diff_id] = blob
                return
            self._absent.add(blob.digest)
        upload = Upload(self._repository, lambda done: self._tell(Progress("upload", diff_id, done, None)))
        for blob in candidates:
            for source in [name for name in blob.repositories if name != self._repository.name][:_ASKED]:
                if upload.mount(blob.digest, source):
                    self._tell(Progress("mounted", diff_id, blob.size_bytes, blob.size_bytes, source))
                    self._placed[diff_id] = blob
                    return
        sent = upload.send(lambda: LayerBlob(self._layer_tar(diff_id), _COMPRESSION, diff_id))
        self._tell(Progress("uploaded", diff_id, sent.size_bytes, sent.size_bytes))
        self._placed[diff_id] = KnownBlob(sent.digest, sent.size_bytes, _COMPRESSION)

    def _preference(self, blob: KnownBlob) -> tuple[bool, bool, bool]:
        """What is likely to be there comes first, then what makes the manifest that the image came with."""
        names = blob.repositories
        return self._repository.name not in names, blob.digest not in self._in_manifest, not names

    def _is_usable(self, blob: KnownBlob) -> bool:
        """Docker's specification has no zstd; uncompressed ones are for who has them already."""
        return blob.compression in self._family.layers and (bool(blob.compression) or bool(blob.repositories))

    def _note(self) -> None:
        if not self._placed and not self._absent:
            return
        place = self._registry, self._repository.name
        with self._database.transaction(durable=False) as db:
            for digest in list(self._absent):  # which a thread that has not ended may change
                missed(db.execute, digest, *place)
            for diff_id, blob in list(self._placed.items()):
                # Not where the image was removed meanwhile, and collected.
                if db.execute("SELECT 1 FROM layers WHERE diff_id = ?", (diff_id,)).fetchone():
                    remember(db.execute, diff_id, blob)
                    saw(db.execute, blob.digest, *place)
