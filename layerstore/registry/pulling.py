"""A pull: from a name to an image in the store, in one transaction at the end."""

from __future__ import annotations

from layerstore.errors import InvalidInput, LayerstoreError, NotFound, RegistryError
from layerstore.layers.imports import Import
from layerstore.limits import beyond
from layerstore.oci.manifests import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    check_blob,
    config_of,
    is_foreign,
    is_index,
    parse_document,
    parse_index,
    parse_manifest,
)
from layerstore.registry.client import Client, Repository
from layerstore.registry.downloads import Downloads
from layerstore.registry.platforms import check_config, choose, this_platform
from layerstore.registry.telling import Teller
from layerstore.results import Progress, telling
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.limits import Limits
    from layerstore.oci.configs import ImageConfig
    from layerstore.oci.manifests import Descriptor, Manifest
    from layerstore.registry.platforms import Platform
    from layerstore.registry.references import Reference
    from layerstore.results import ProgressCallback
    from layerstore.store.opened import OpenStore
    from layerstore.types import DiffId, Digest, ImageId


class _Found(Value):
    """What a name stands for: an image's manifest and config, and all blobs to keep, index and manifest among them."""

    digest: Digest
    manifest: Manifest
    config: ImageConfig
    blobs: dict[Digest, bytes]


def pull(
    store: OpenStore,
    client: Client,
    reference: Reference,
    platform: Platform | None,
    progress: ProgressCallback | None,
    limits: Limits,
) -> ImageId:
    """Bring an image into the store; see `layerstore.Store.pull`."""
    repository = Repository(client, reference.repository)
    tell = Teller(progress)
    client.warn = tell.warn
    found = _find(repository, reference, platform, limits)
    size = len(found.blobs[found.digest])
    tell(Progress("manifest", found.digest, size, size))
    while True:
        try:
            _import(store, repository, reference, found, tell, limits)
        except _SpoiledDownload:  # which was removed, so this ends
            continue
        return found.config.image_id


class _SpoiledDownload(Exception):
    """What an earlier pull has left of a layer was not its bytes, as after a power cut; it is removed."""


def _import(
    store: OpenStore,
    repository: Repository,
    reference: Reference,
    found: _Found,
    tell: Teller,
    limits: Limits,
) -> None:
    """Have the image in the store. Raises `_SpoiledDownload` where it may go better the next time."""
    names = [] if reference.local_name is None else [reference.local_name]
    with Import(store, limits=limits) as importing:
        layers = dict(zip(found.config.diff_ids, found.manifest.layers, strict=True))
        claimed = importing.claim_missing(layers)
        for diff_id, descriptor in layers.items():
            done = 0 if diff_id in claimed else descriptor.size_bytes
            tell(Progress("waiting" if diff_id in claimed else "stored", diff_id, done, descriptor.size_bytes))
        missing = {diff_id: descriptor for diff_id, descriptor in layers.items() if diff_id in claimed}
        _check_sizes(missing, limits)
        _fetch(importing, repository, missing, store.layout.downloads, tell)
        importing.add_image(found.config, names, found.blobs)
        importing.commit((reference.registry, reference.repository))


def _check_sizes(missing: dict[DiffId, Descriptor], limits: Limits) -> None:
    """Before anything is fetched: a registry may send what never ends as long as its manifest promises."""
    for diff_id, descriptor in missing.items():
        if descriptor.size_bytes > limits.layer_bytes:
            what = f"the blob {descriptor.digest} of layer {diff_id} is promised to have {descriptor.size_bytes} bytes"
            raise beyond(what, limits, "layer_bytes")


def _fetch(
    importing: Import, repository: Repository, missing: dict[DiffId, Descriptor], directory: str, tell: Teller
) -> None:
    """Stage the missing layers: several are fetched at once, and one at a time is stored, while it comes."""
    for diff_id, descriptor in missing.items():
        if is_foreign(descriptor):
            raise InvalidInput(
                f"layer {diff_id} is of type {descriptor.media_type}: it may not be given on, so registries have only "
                "its name; load the image from an archive that has it"
            )
    if not missing:
        return
    of_blob = {descriptor.digest: diff_id for diff_id, descriptor in missing.items()}

    def tell_download(descriptor: Descriptor, done: int) -> None:
        tell(Progress("download", of_blob[descriptor.digest], done, descriptor.size_bytes))

    with Downloads(repository, list(missing.values()), directory, tell_download) as downloads:
        for (diff_id, descriptor), download in zip(missing.items(), downloads.all, strict=True):
            total = descriptor.size_bytes
            try:
                importing.add_layer(
                    download.pieces(),
                    diff_id=diff_id,
                    digest=descriptor.digest,
                    size_bytes=total,
                    progress=telling(tell, "import", diff_id, total),
                )
            except LayerstoreError as error:
                if not isinstance(error, RegistryError):
                    download.remove()  # the bytes are wrong: they are to be fetched again
                    if download.kept_bytes:
                        raise _SpoiledDownload from error
                raise
            tell(Progress("imported", diff_id, total, total))
        # Before the import is made durable: else they would be written to the disk with it.
        downloads.remove()


def _find(repository: Repository, reference: Reference, platform: Platform | None, limits: Limits) -> _Found:
    """Follow the name through indexes to a manifest, and read the config that it names.

    Without a platform an index gives what is for this machine, and what is alone is taken whatever it is for.
    """
    found = repository.manifest(reference.target, limits)
    top = found.digest
    blobs = {found.digest: found.data}
    descriptor = None
    for _ in range(limits.index_depth + 1):
        document = parse_document(found.data, f"the manifest {found.digest}", limits)
        _check_type(document.get("mediaType"), found.media_type, descriptor)
        if not is_index(document, found.media_type if found.media_type in INDEX_TYPES | MANIFEST_TYPES else ""):
            manifest = parse_manifest(document, limits)
            config, data = _config(repository, manifest, limits)
            if platform is not None and not (descriptor and descriptor.platform):
                check_config(config.document, platform, str(reference))
            return _Found(top, manifest, config, {**blobs, manifest.config.digest: data})
        descriptor = choose(parse_index(document), platform or this_platform(), str(reference))
        try:
            found = repository.manifest(descriptor.digest, limits)
        except NotFound:
            raise NotFound(f"{reference} is an index that names {descriptor.digest}, but there is no such") from None
        check_blob(found.data, descriptor, "the manifest")
        blobs[found.digest] = found.data
    raise beyond(f"{reference} has indexes nested too deep in one another", limits, "index_depth")


def _check_type(declared: object, said: str, descriptor: Descriptor | None) -> None:
    """A manifest that is taken for one thing here and for another there could be two images at once."""
    known = INDEX_TYPES | MANIFEST_TYPES
    if declared is not None and not isinstance(declared, str):
        raise InvalidInput(f"the manifest's media type is {declared!r}, which is no text")
    types = {declared, said, descriptor.media_type if descriptor else ""} & known
    if len(types) > 1 or (declared and declared not in known):
        told = f"{declared!r} by itself, {said!r} by the registry"
        by_index = f", {descriptor.media_type!r} by its index" if descriptor else ""
        raise InvalidInput(f"the manifest's media type is {told}{by_index}; no image can be read from that")


def _config(repository: Repository, manifest: Manifest, limits: Limits) -> tuple[ImageConfig, bytes]:
    if manifest.config.size_bytes > limits.config_bytes:
        what = f"the image config {manifest.config.digest} is promised to have {manifest.config.size_bytes} bytes"
        raise beyond(what, limits, "config_bytes")
    data = repository.blob(manifest.config.digest, manifest.config.size_bytes)
    return config_of(manifest, data, limits), data
