"""Containers of the overlay driver that start from others, and their snapshots."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial

from layerstore._core.mount import container_make_many, project_of
from layerstore.containers import snapshots
from layerstore.containers.containers import ContainerRow, check_name, insert_rows
from layerstore.errors import Conflict
from layerstore.store import durable, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.containers.containers import Containers
    from layerstore.mount.shared import Mounts
    from layerstore.results import Snapshot
    from layerstore.store.opened import OpenStore


def check_unused(containers: Containers, row: ContainerRow, why: str) -> None:
    """Raise `Conflict` where a container is mounted or runs; `why` says what is wrong with that."""
    (state,) = containers.states([row])
    if state != "created":
        first = "`layerstore umount` it" if state == "mounted" else "end it"
        raise Conflict(f"container {row.id[:12]} is {state}, and {why}; {first} first")


class Forks:
    """Forks and rolls back containers of the overlay driver. Safe for many threads and processes."""

    def __init__(self, store: OpenStore, mounts: Mounts, containers: Containers) -> None:
        self._layout = store.layout
        self._database = store.database
        self._mounts = mounts
        self._containers = containers

    def fork(self, row: ContainerRow, count: int, name: str | None) -> list[ContainerRow]:
        """Make `count` containers that start from what one is now, alike: all of them or none.

        It may be mounted and in use (csrc/upper/clone_tree.h says what a fork sees then).
        Raises `Conflict` when `name` is taken, `NotFound` when it was removed, `OSError`.
        """
        if name is not None:
            check_name(name, "a container")
        alike = {**vars(row), "name": name, "created_seconds": time.time(), "command": None}
        rows = [ContainerRow(**{**alike, "id": os.urandom(32).hex()}) for _ in range(count)]
        ids = [made.id for made in rows]
        with (
            self._containers.told_of_removal(row),
            locks.garbage(self._layout, again=True),
            durable.file_system(self._layout.containers) as sync,
            self._containers.or_none(ids),
        ):
            if self._clone(row.id, ids) and not row.volatile:
                sync()  # its row may be durable at any moment, and nothing is to be missing from it then
            with self._database.transaction(durable=False) as db:
                # A removal or a move changes the row first: as long as it has not, nothing was missing.
                self._containers.check(row, db)
                insert_rows(db, rows)
        return rows

    def _clone(self, origin: str, ids: list[str]) -> bool:
        """Returns as `snapshots.clone_upper`."""
        container_make_many(self._mounts.containers_fd, ids, 0o700, os.geteuid(), os.getegid(), 0)
        self._limit(origin, ids)
        first, *others = (self._layout.container(container) for container in ids)
        with snapshots.source(self._layout, origin) as fd, self._still(origin):
            has_copied = snapshots.clone_upper(fd, first)
        # The others from the first, so that all are of one moment, and nothing waits for the disk twice.
        with snapshots.source(self._layout, ids[0]) as fd:
            for directory in others:
                has_copied |= snapshots.clone_upper(fd, directory)
        return has_copied

    def _limit(self, origin: str, ids: list[str]) -> None:
        """Forks may write as much to disk as what they start from, each."""
        if project_of(self._mounts.containers_fd):
            from layerstore.containers import quotas

            if (limit := quotas.limit_of(self._mounts.containers_fd, origin)) is not None:
                quotas.limit(self._mounts.containers_fd, ids, limit)

    def _still(self, container: str) -> contextlib.AbstractContextManager[None]:
        from layerstore.containers.stillness import still

        return still(self._layout, self._containers, container)

    def snapshot(self, row: ContainerRow, name: str) -> None:
        """Keep what a container is now under a name of its own; it may be mounted and in use (csrc/upper/clone_tree.h).

        Raises `Conflict` when the name is taken, `InvalidInput` when it is none, `NotFound`, `OSError`.
        """
        check_name(name, "a snapshot")
        with self._containers.told_of_removal(row):
            snapshots.take(self._layout, row.id, name, partial(self._still, row.id), durable=not row.volatile)
            self._containers.check(row)

    def snapshots(self, row: ContainerRow) -> list[Snapshot]:
        """The snapshots of a container, oldest first."""
        from layerstore.results import Snapshot

        return [Snapshot(*found) for found in snapshots.listing(self._layout.container(row.id))]

    def rollback(self, row: ContainerRow, name: str) -> None:
        """Have a container be again what a snapshot of it is. What it was until now is garbage.

        One that is only kept alive is ended and unmounted. Raises `Conflict` while it is mounted or runs, `NotFound`
        when there is no such snapshot, `OSError`.
        """
        check_name(name, "a snapshot")
        with self._containers.told_of_removal(row):
            snapshots.require(self._layout.container(row.id), name)
        if ended := self._containers.end_idle([row]):
            self._containers.unmount(ended)

        def check() -> None:
            self._containers.check(row)
            check_unused(self._containers, row, "a rollback would pull its files away")

        check()
        with self._containers.told_of_removal(row):
            snapshots.restore(self._layout, row.id, name, check)

    def remove_snapshot(self, row: ContainerRow, name: str) -> None:
        """Remove a snapshot. Raises `NotFound` when there is none of that name, `OSError`."""
        check_name(name, "a snapshot")
        with self._containers.told_of_removal(row):
            snapshots.remove(self._layout, row.id, name)
            self._containers.check(row)

    def clear(self) -> None:
        """Remove what rollbacks, and snapshots that were interrupted, have left, of containers that nobody reads or
        changes now. Raises `OSError`."""
        for row in self._containers.all():
            with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
                snapshots.clear(self._layout, row.id)
