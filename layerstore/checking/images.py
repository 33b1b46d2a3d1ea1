"""Images: their configs and manifests, and what the database says of them."""

from __future__ import annotations

from functools import partial

from layerstore.checking.findings import reason, tried
from layerstore.errors import LayerstoreError
from layerstore.oci.configs import parse_config
from layerstore.store.pieces import read_whole
from layerstore.types import Digest, chain_ids, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerstore.checking.catalog import Catalog
    from layerstore.checking.findings import Findings
    from layerstore.store.layout import Layout
    from layerstore.types import ImageId


def check_images(layout: Layout, catalog: Catalog, findings: Findings, images: Iterable[ImageId]) -> None:
    """The blobs of these images are whole, and their rows are as their configs say."""
    sound: dict[Digest, bytes | None] = {}
    for image in images:
        for digest in sorted(catalog.blobs.get(image, set()) | {Digest(image)}):
            if digest not in sound:
                sound[digest] = _read(layout, findings, digest)
            if sound[digest] is None:
                for finding in findings.of("blob"):
                    if finding.subject == digest:
                        finding.images.add(image)
        data = sound[Digest(image)]
        if data is not None:
            _check_row(layout, catalog, findings, image, data)


def _read(layout: Layout, findings: Findings, digest: Digest) -> bytes | None:
    path = layout.blob(digest)
    try:
        data = tried(partial(read_whole, path))
    except OSError as error:
        findings.add("blob", path, f"it cannot be read: {reason(error)}", digest)
        return None
    if sha256_digest(data) != digest:
        findings.add("blob", path, "its bytes are not those of its digest", digest)
        return None
    return data


def _check_row(layout: Layout, catalog: Catalog, findings: Findings, image: ImageId, data: bytes) -> None:
    def wrong(detail: str) -> None:
        findings.add("image", layout.database, detail, image, images=[image])

    try:
        config = parse_config(data)
    except LayerstoreError as error:
        wrong(f"its config makes no sense: {error}")
        return
    chain, created = catalog.images[image]
    chains = chain_ids(config.diff_ids)
    if chain != chains[-1]:
        wrong(f"the database has it end in chain {chain}, and by its config that is {chains[-1]}")
    elif tuple(catalog.stack(chain)) != config.diff_ids:
        wrong("the database has other layers for it than its config")
    elif created != config.created:
        wrong(f"the database has it made at {created!r}, and its config at {config.created!r}")
    if Digest(image) not in catalog.blobs.get(image, set()):
        wrong("the database does not know that its config belongs to it")
    for diff_id in config.diff_ids:
        if diff_id not in catalog.layers:
            wrong(f"the database does not know its layer {diff_id}")
