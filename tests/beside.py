"""A store looked at, and changed, beside whoever has it open: its database, and its contents by their digests."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

from layerstore import Store
from layerstore.results import Frozen
from layerstore.store.contents import ContentStore
from layerstore.store.db import Database
from layerstore.store.layout import Layout
from layerstore.store.opened import OpenStore


def rows(layout: Layout, query: str, *values: object) -> list[tuple[Any, ...]]:
    """What the database has (docs/store.md), read by a connection of its own."""
    with closing(sqlite3.connect(layout.database)) as db:
        db.execute("PRAGMA query_only = ON")
        return db.execute(query, values).fetchall()


@contextmanager
def transaction(layout: Layout) -> Iterator[sqlite3.Connection]:
    """Rows are changed, and their sums with them, as by another process."""
    with closing(Database(layout.database, layout.database_lock)) as database, database.transaction() as db:
        yield db


@contextmanager
def contents_of(layout: Layout) -> Iterator[ContentStore]:
    with closing(OpenStore(layout)) as opened:
        yield opened.contents


def freeze_alone(store: Store, *names: str, compression: Literal["zstd", "lz4"] = "zstd") -> Frozen:
    """Freeze images, by default all, and collect no garbage: what their contents took is in packs and objects, too."""
    from layerstore.chains.chains import Chains
    from layerstore.cold.freezing import freeze

    among = [store.image(name).id for name in names] or None
    with closing(OpenStore(store.layout)) as opened:
        return freeze(opened, Chains(opened), among, 0, compression, None)
