"""Containers of the overlay driver that start from others, and their snapshots."""

from __future__ import annotations

import contextlib
import os
import time
from functools import partial

from layerstore._core.mount import container_make_many, project_of
from layerstore.containers import snapshots
from layerstore.containers.containers import ContainerRow, check_name, insert_rows
from layerstore.containers.program_records import carry_options
from layerstore.errors import Conflict
from layerstore.naming import fstat, open_fd
from layerstore.store import frozen, locks
from layerstore.store.removal import remove_directory

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
            self._containers.or_none(ids),
        ):
            if not self._fork_at_rest(row, ids):
                self._fork_in_use(row, ids)
            directories = [self._layout.container(container) for container in ids]
            carry_options(self._layout.container(row.id), directories, durable=not row.volatile)
            with self._database.transaction(durable=False) as db:
                # A removal or a move changes the row first: as long as it has not, nothing was missing.
                self._containers.check(row, db)
                insert_rows(db, rows)
        return rows

    def _fork_at_rest(self, row: ContainerRow, ids: list[str]) -> bool:
        """Freeze it and make the directories of forks that stand on that. False where it is in use, or read."""
        with locks.container_if_free(self._layout, row.id) as is_free:
            if not is_free:
                return False
            directory = snapshots.repaired(self._layout, row.id)
            with locks.mounting(self._layout, [row.id]):
                if not self._is_at_rest(row):
                    return False
                is_stacked = snapshots.freeze(
                    self._layout, directory, is_volatile=row.volatile, always=False, uses=len(ids)
                )
                self._make(row, ids, f"{directory}/upper", f"{row.id}/lower" if is_stacked else None)
        return True

    def _fork_in_use(self, row: ContainerRow, ids: list[str]) -> None:
        """Freeze a clone of it and make the directories of forks that stand on that."""
        beside = f"{ids[0]}.{os.urandom(8).hex()}"
        made = self._layout.container(beside)
        try:
            os.mkdir(made, 0o700)
            with snapshots.source(self._layout, row.id) as fd:
                directory = self._layout.container(row.id)
                if snapshots.is_frozen(self._layout, directory) and frozen.has_room(f"{directory}/lower", len(ids)):
                    self._make(row, ids, self._containers.upper(row.id), f"{row.id}/lower")
                    return
                still = partial(self._still, row.id)
                snapshots.clone_frozen(self._layout, fd, made, still, is_volatile=row.volatile)
            (top, *_) = frozen.stack(f"{made}/lower")
            self._make(row, ids, frozen.path(self._layout, top), f"{beside}/lower")
        finally:
            remove_directory(self._layout.containers, beside)

    def _make(self, origin: ContainerRow, ids: list[str], like: str, stack: str | None) -> None:
        """Directories of forks whose uppers are empty, with the attributes of that one, on what a link names."""
        with open_fd(like, os.O_RDONLY | os.O_DIRECTORY) as fd:
            status, xattrs = fstat(fd), snapshots.root_xattrs(fd)
        attributes = (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns)
        container_make_many(self._mounts.containers_fd, ids, *attributes, stack)
        for attribute, value in xattrs.items():
            for container in ids:
                os.setxattr(self._containers.upper(container), attribute, value)
        self._limit(origin.id, ids)

    def _is_at_rest(self, row: ContainerRow) -> bool:
        return self._containers.states([row]) == ["created"]

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
            at_rest, still = partial(self._is_at_rest, row), partial(self._still, row.id)
            snapshots.take(self._layout, row.id, name, at_rest, still, is_volatile=row.volatile)
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
            snapshots.restore(self._layout, row.id, name, check, is_volatile=row.volatile)

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
