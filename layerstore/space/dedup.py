"""What storing images so saves, step by step: layers once, files once, and what freezing would do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from layerstore.cold.estimating import estimate
from layerstore.cold.freezing import Freezing, unused_images
from layerstore.cold.tiering import tiering
from layerstore.errors import Conflict, NotFound
from layerstore.results import DedupStats, FreezeEstimate
from layerstore.space.places import LayerContents, Places
from layerstore.space.usage import Forest, chain_rows, files_bytes, images_usage
from layerstore.store import locks

if TYPE_CHECKING:
    from collections.abc import Collection

    from layerstore.chains.chains import Chains
    from layerstore.store.opened import OpenStore
    from layerstore.types import ImageId


def dedup_stats(
    store: OpenStore,
    chains: Chains,
    among: Collection[ImageId] | None,
    sample_bytes: int,
) -> DedupStats:
    """See `layerstore.Store.dedup_stats`."""
    with locks.garbage(store.layout):
        read = store.database.read().execute
        rows = read("SELECT image_id, chain_id FROM images ORDER BY stored_seconds DESC, image_id").fetchall()
        rows = [row for row in rows if among is None or row[0] in among]
        forest = Forest(rows, chain_rows(store.database))
        places = Places(store.layout, store.contents)
        layers = LayerContents(places, chains, dict.fromkeys(forest.layers))
        kept = places.kept(layers.live)
        images = images_usage(store.database, forest, layers, kept)
        all_bytes = files_bytes(store.database)
        of_layers = sum(all_bytes[diff_id] for diff_id in layers.numbers)
        each_once = int(places.sizes[layers.files[1]].sum())
        return DedupStats(
            images=[images[image] for image, _ in rows],
            images_bytes=sum(image.size_bytes for image in images.values()),
            layers_bytes=of_layers,
            repeated_bytes=of_layers - each_once,
            contents_bytes=int(places.sizes[np.unique(layers.files[1])].sum()),
            hot_bytes=round(kept.hot.sum()),
            cold_bytes=round(kept.cold.sum()),
            freezing=_freezing(store, chains, among, sample_bytes) if sample_bytes else None,
        )


def _freezing(
    store: OpenStore,
    chains: Chains,
    among: Collection[ImageId] | None,
    sample_bytes: int,
) -> FreezeEstimate:
    while True:
        chosen = [image for image in unused_images(store, 0) if among is None or image in among]
        freezing = Freezing(store, chains, chosen)
        try:
            freezing.choose()
            break
        except (Conflict, NotFound):
            continue  # containers were made, or images removed, between the two
    written = sum(item.size for item in freezing.items)
    stored, looked_at = (
        estimate(freezing, store.contents, tiering(store.database).compression, sample_bytes) if written else (0, 0)
    )
    return FreezeEstimate(len(chosen), written + freezing.again_bytes, stored, written, looked_at)
