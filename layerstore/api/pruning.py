"""Removes images and containers that nobody seems to need."""

from __future__ import annotations

import contextlib
import math
import time

from layerstore.errors import Conflict
from layerstore.results import Pruned
from layerstore.space.usage import bytes_without
from layerstore.store import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.api.engine import Engine
    from layerstore.containers.containers import ContainerRow
    from layerstore.space.garbage import Collected
    from layerstore.types import ImageId

_IMAGES = """
SELECT image_id FROM images WHERE stored_seconds <= :before
AND (:named OR image_id NOT IN (SELECT image_id FROM names))
AND image_id NOT IN (SELECT image_id FROM containers WHERE id NOT IN (SELECT value FROM json_each(:gone)))
ORDER BY stored_seconds DESC, image_id
"""
_ALWAYS = math.inf


def prune(
    engine: Engine,
    collect: Callable[[], Collected],
    *,
    named: bool,
    containers: bool,
    older_than_seconds: float,
    dry_run: bool,
) -> Pruned:
    """See `Store.prune`. `collect` collects garbage."""
    before = time.time() - older_than_seconds
    if dry_run:
        with locks.garbage(engine.layout):
            idle, young = _idle(engine, before) if containers else ([], [])
            images = _images(engine, before, named, idle)
            young_images = len(_images(engine, _ALWAYS, named, [*idle, *young])) - len(images)
            freed = bytes_without(engine.store, engine.chains, images)
        return Pruned({row.id: row.name for row in idle}, images, 0, freed, young_images, len(young))
    # Nothing is being loaded, built or created in here, so an image that has no name yet is nobody's.
    with locks.garbage_alone(engine.layout):
        idle, young = _idle(engine, before) if containers else ([], [])
        gone = {row.id: row.name for row in idle if _remove(engine, row)}
        with engine.database.transaction() as db:
            images = _images(engine, before, named, [])
            young_images = len(_images(engine, _ALWAYS, named, young)) - len(images)
            db.executemany("DELETE FROM names WHERE image_id = ?", [(image,) for image in images])
            db.executemany("DELETE FROM images WHERE image_id = ?", [(image,) for image in images])
    done = collect()
    return Pruned(gone, images, done.contents, done.freed_bytes, young_images, len(young), done.frozen, done.not_frozen)


def _idle(engine: Engine, before: float) -> tuple[list[ContainerRow], list[ContainerRow]]:
    """The containers that nobody uses: those that were made before, and those that were made since."""
    rows = engine.containers.all()
    idle = [row for row, state in zip(rows, engine.containers.states(rows), strict=True) if state == "created"]
    return [row for row in idle if row.created_seconds <= before], [row for row in idle if row.created_seconds > before]


def _remove(engine: Engine, row: ContainerRow) -> bool:
    with contextlib.suppress(Conflict):  # somebody uses it now, or writes to it
        engine.containers.remove([row], waits=False)  # others wait for the garbage lock
        return True
    return False


def _images(engine: Engine, before: float, named: bool, gone: list[ContainerRow]) -> dict[ImageId, list[str]]:
    """Images that are to go with those containers, and their names."""
    import json

    db = engine.database.read()
    values = {"before": before, "named": named, "gone": json.dumps([row.id for row in gone])}
    query = "SELECT name FROM names WHERE image_id = ? ORDER BY name"
    return {
        image: [name for (name,) in db.execute(query, (image,))] for (image,) in db.execute(_IMAGES, values).fetchall()
    }
