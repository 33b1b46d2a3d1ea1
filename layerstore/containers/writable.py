"""Containers of the extent driver: making, forking, snapshots. Their files are below `layerstore.extents`."""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from layerstore.containers.containers import ContainerRow, check_name, insert_rows
from layerstore.errors import NotFound
from layerstore.extents import log_rows
from layerstore.extents.log import create_logs
from layerstore.results import Snapshot
from layerstore.store import locks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.extents.log import State
    from layerstore.extents.writable_layers import Layer, Layers
    from layerstore.store.opened import OpenStore
    from layerstore.types import ChainId, ImageId


class WritableContainers:
    """Makes, forks and rolls back containers of the extent driver. Safe for many threads and processes."""

    def __init__(self, store: OpenStore, layers: Layers) -> None:
        self._layout = store.layout
        self._database = store.database
        self.layers = layers

    def layer(self, row: ContainerRow) -> Layer:
        """The writable layer of a container."""
        return self.layers.layer(row.id, row.image_id, row.chain_id)

    def create(
        self, image_id: ImageId, image_name: str, chain: ChainId, count: int, name: str | None
    ) -> list[ContainerRow]:
        """Make `count` containers; all of them or none. Raises `Conflict` when `name` is taken, `OSError`."""
        return self._make(
            ContainerRow("", name, image_id, image_name, chain, time.time(), False, None, "extent"), None, count
        )

    def fork(self, row: ContainerRow, count: int, name: str | None) -> list[ContainerRow]:
        """Make `count` containers that go on from what one is at this moment. Raises as `create`; `NotFound`."""
        alike = ContainerRow(
            "", name, row.image_id, row.image_name, row.chain_id, time.time(), False, row.command, "extent"
        )
        while True:
            with contextlib.suppress(log_rows.Gone):  # another process has rolled it back, or written its log anew
                return self._make(alike, self.layer(row).origin(), count, parent=row)

    def _make(
        self, alike: ContainerRow, base: State | None, count: int, parent: ContainerRow | None = None
    ) -> list[ContainerRow]:
        if alike.name is not None:
            check_name(alike.name, "a container")
        rows: list[ContainerRow] = []
        with locks.garbage(self._layout, again=True):
            try:
                for log in create_logs(self._layout, alike.chain_id, base, count):
                    rows.append(ContainerRow(**{**vars(alike), "id": os.urandom(32).hex(), "log": log}))
                with self._database.transaction(durable=False) as db:
                    if parent is not None and not db.execute(_EXISTS, (parent.id,)).fetchone():
                        raise NotFound(
                            f"container {parent.id[:12]} was removed or moved; `layerstore ps -a` lists what is there"
                        )
                    log_rows.insert(db, [str(row.log) for row in rows], dict([base]) if base else {})
                    insert_rows(db, rows)
            except BaseException:
                if not rows or not log_rows.exists(self._database.read(), str(rows[0].log)):
                    log_rows.unlink(self._layout, [str(row.log) for row in rows])
                raise
        return rows

    def snapshot(self, row: ContainerRow, name: str) -> None:
        """Remember what a container is at this moment. Raises `Conflict` when the name is taken, `InvalidInput`."""
        check_name(name, "a snapshot")
        self.layer(row).snapshot(name)

    def snapshots(self, row: ContainerRow) -> list[Snapshot]:
        """The snapshots of a container, oldest first."""
        query = "SELECT name, created_seconds FROM snapshots WHERE container_id = ? ORDER BY created_seconds, name"
        return [Snapshot(*found) for found in self._database.read().execute(query, (row.id,))]

    def rollback(self, row: ContainerRow, name: str) -> None:
        """Have a container be again what a snapshot of it is. Raises `NotFound`, `Conflict`."""
        self.layer(row).rollback(name)

    def remove_snapshot(self, row: ContainerRow, name: str) -> None:
        """Forget a snapshot. Raises `NotFound`."""
        state = self.layer(row).snapshot_state(name)
        with self._database.transaction(durable=False) as db:
            db.execute("DELETE FROM snapshots WHERE container_id = ? AND name = ?", (row.id, name))
            gone = log_rows.forget_unneeded(db, [state[0]])
        self.layers.leave(gone)

    def forget(self, rows: Sequence[ContainerRow]) -> None:
        """Let go of containers that are to be removed. Nothing that is gathered is lost if they are not."""
        for row in rows:
            self.layers.forget(row.id)


_EXISTS = "SELECT 1 FROM containers WHERE id = ? AND driver = 'extent'"
