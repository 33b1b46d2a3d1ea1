"""A store looked at, and changed, beside whoever has it open: its database, and its contents by their digests."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any, Literal

from layerstore import Store
from layerstore.results import Frozen
from layerstore.store.contents import ContentStore
from layerstore.store.db import Database
from layerstore.store.layout import Layout
from layerstore.store.opened import OpenStore
from layerstore.views.view import View


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
def content_store(layout: Layout) -> Iterator[ContentStore]:
    """What reads the contents of a store, of its own."""
    with closing(OpenStore(layout)) as opened:
        yield opened.contents


class Meanwhile(Layout):
    """Paths of a store at which something is done when the first path of a kind ("pack", "digests") is asked for: that
    is between a lookup and the opening of what it found. `asked` counts them."""

    def __init__(self, layout: Layout, kind: str, do: Callable[[], object]) -> None:
        super().__init__(layout.root)
        self._kind = kind
        self._do = do
        self.asked = 0

    def pack(self, number: int) -> str:
        self._note("pack")
        return super().pack(number)

    def digests(self, generation: int) -> str:
        self._note("digests")
        return super().digests(generation)

    def _note(self, kind: str) -> None:
        if kind == self._kind:
            self.asked += 1
            if self.asked == 1:
                self._do()


def freeze_alone(store: Store, *names: str, compression: Literal["zstd", "lz4"] = "zstd") -> Frozen:
    """Freeze images, by default all, and collect no garbage: what their contents took is in packs and objects, too."""
    from layerstore.chains.chains import Chains
    from layerstore.cold.freezing import freeze

    among = [store.image(name).id for name in names] or None
    with closing(OpenStore(store.layout)) as opened:
        return freeze(opened, Chains(opened), among, 0, compression, None)


def _open_and_read(view: View, path: str) -> bytes:
    with view.open(path) as file:
        return file.read()


READS: dict[str, Callable[[View, str], bytes]] = {
    "read_bytes": lambda view, path: view.read_bytes(path),
    "read_many": lambda view, path: view.read_many([path])[0],
    "open": _open_and_read,
}
"""The ways to have all of a file of an image."""
