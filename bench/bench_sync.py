"""Syncing a new version of an image to a store that has the one before: how much is sent, and how long it takes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING

from bench.context import Context, remove_store
from bench.family import Family
from bench.measure import Median, seconds
from bench.rows import OURS_ALL, Row, durably, known, within

if TYPE_CHECKING:
    from layerstore import Image, Store, Synced

MB = 1e6
PART = 0.5
BLOBS = "their layers that changed, zstd"
UPDATES = {
    "packages updated": ("science-a", "science-b"),
    "Debian and packages updated": ("flask-a", "flask-b"),
    "Debian updated": ("bookworm-before", "bookworm"),
}
RELEASES = {
    "another release of Debian, and packages updated": ("node-a", "node-b"),
    "another release of Debian, another Python, and packages updated": ("django-a", "django-b"),
}
"""Of these hardly a file is in both."""


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    there = {"ours": f"there, {OURS_ALL}", BLOBS: "nothing, they are compressed and not sent"}
    return list(durably(there, [*versions(context), *rebuild(context)]))


def versions(context: Context) -> Iterator[Row]:
    family = Family(context.fixtures.cache, context.log)
    pairs = dict(islice(UPDATES.items(), 1)) if context.quick else {**UPDATES, **RELEASES}
    for what, (old, new) in pairs.items():
        with context.store() as store:
            for image in (old, new):
                store.load(family.oci_layout(image, "none"))
            images = store.image(family.recipe(old).name), store.image(family.recipe(new).name)
            yield from synced(context, store, *images, f"{old} to {new} ({what})", what in UPDATES)


def rebuild(context: Context) -> Iterator[Row]:
    """Of an application and its Debian, in which nothing but the time has changed."""
    family = Family(context.fixtures.cache, context.log)
    with context.store() as store:
        images = [store.load(archive)[0] for archive in family.rebuilds(2, context.directory)]
        yield from synced(context, store, images[0], images[1], "a rebuild (all times and .pyc headers new)", True)


def synced(context: Context, store: Store, old: Image, new: Image, what: str, is_update: bool) -> Iterator[Row]:
    """To a store that has the old image, which is made anew for each round."""
    sent: list[Synced] = []
    times = [sync_once(context, store, old, new, sent) for _ in range(context.rounds(3))]
    ours = (sent[0].sent_bytes + sent[0].received_bytes) / MB
    changed = [diff_id for diff_id in new.diff_ids if diff_id not in old.diff_ids]
    blobs = {BLOBS: sum(map(partial(zstd_bytes, new), changed)) / MB}
    work = f"sync to a store that has the version before, {what}: bytes both ways"
    yield within(work, "MB", ours, blobs, PART) if is_update else known(work, "MB", ours, blobs)
    yield known(f"… of contents of {sent[0].content_bytes / MB:.0f} MB, the time, from Python", "s", Median(times), {})


def sync_once(context: Context, store: Store, old: Image, new: Image, sent: list[Synced]) -> float:
    path = context.new_directory("other")
    try:
        store.sync(old, path)
        return seconds(lambda: sent.append(store.sync(new, path)))
    finally:
        remove_store(path)


def zstd_bytes(image: Image, diff_id: str) -> int:
    from layerstore.layers.blobs import compressed
    from layerstore.types import DiffId

    return sum(len(piece) for piece in compressed(image.layer_tar(DiffId(diff_id)), "zstd"))
