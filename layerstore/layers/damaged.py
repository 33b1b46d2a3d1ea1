"""Layers that are known to be damaged: a load, pull or build of one reads it again, and stores what is missing."""

from __future__ import annotations

from layerstore._core.index import CONTENT_BYTES
from layerstore._core.ingest import LOCATION_NONE
from layerstore.errors import CorruptError, Unsupported
from layerstore.layers.index_files import open_index
from layerstore.naming import exists
from layerstore.store.records import LOCATION
from layerstore.types import DiffId

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Mapping

    from layerstore.store.contents import ContentStore
    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore

_MARK = "INSERT INTO damaged_layers VALUES (?, ?) ON CONFLICT (diff_id) DO UPDATE SET lacks = excluded.lacks"


def mark(db: sqlite3.Connection, lacking: Mapping[DiffId, str]) -> None:
    """Note what layers lack. In a transaction of the caller's."""
    db.executemany(_MARK, list(lacking.items()))


def forget_whole(store: OpenStore) -> None:
    """Take the mark from layers that have all that they need, as another layer has brought it. Raises `OSError`."""
    rows = store.database.read().execute("SELECT diff_id FROM damaged_layers").fetchall()
    whole = [diff_id for (diff_id,) in rows if _is_whole(store.layout, store.contents, DiffId(diff_id))]
    if whole:
        with store.database.transaction() as db:
            db.executemany("DELETE FROM damaged_layers WHERE diff_id = ?", [(diff_id,) for diff_id in whole])


def _is_whole(layout: Layout, contents: ContentStore, diff_id: DiffId) -> bool:
    if not exists(layout.layer_recipe(diff_id)):
        return False
    try:
        index = open_index(layout.layer_index(diff_id))
        index.verify_digest()
    except (CorruptError, Unsupported, FileNotFoundError):
        return False
    locations = contents.digests().locate_many(index.contents_bytes(), CONTENT_BYTES)
    return all(pack != LOCATION_NONE for pack, _ in LOCATION.iter_unpack(locations))
