"""Moving a container from one driver to the other.

What it is there is made beside what it is here, with its snapshots; then one transaction has the row say so. Before
that the container is what it was, after it what it is now, and what the other driver had of it is garbage. So is what a
move leaves that was killed: the directory of a container of the extent driver, logs that no row names.

Who has found a container before it was moved, and back, uses it as what it was. So its directory is there or not there,
never in part, and the row changes while nobody has the locks of the container and its mount.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from layerstore._core.mount import container_make_many, container_remove_many, project_of
from layerstore.containers import snapshots
from layerstore.containers.containers import ContainerRow
from layerstore.containers.forks import check_unused
from layerstore.errors import Conflict, InvalidInput, NotFound, Unsupported
from layerstore.extents import log_rows
from layerstore.extents.log import LogMissing
from layerstore.naming import open_fd
from layerstore.store import durable, frozen, locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from sqlite3 import Connection
    from typing import Any

    from layerstore.containers.containers import Containers
    from layerstore.containers.snapshots import State
    from layerstore.containers.upper_writer import Made
    from layerstore.extents.recording import Recorded, Recorder
    from layerstore.extents.tree import Tree
    from layerstore.extents.writable_layers import Layers
    from layerstore.mount.shared import Mounts
    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore

_SNAPSHOTS = "SELECT name, created_seconds, log, length FROM snapshots WHERE container_id = ? ORDER BY name"

_IN_USE = "cannot be moved while it is in use"


class Moves:
    """Moves containers between drivers. Safe for many threads and processes."""

    def __init__(self, store: OpenStore, mounts: Mounts, containers: Containers, layers: Layers) -> None:
        self._layout = store.layout
        self._database = store.database
        self._mounts = mounts
        self._containers = containers
        self._layers = layers

    def move(self, row: ContainerRow, driver: str) -> ContainerRow:
        """Have a container be one of that driver; returns its row. Raises as `Container.move`."""
        if driver not in ("overlay", "extent"):
            raise InvalidInput(f"there is no driver {driver!r}; it is 'overlay' or 'extent'")
        row = self._containers.row(row.id)
        if row.driver != driver:
            with locks.garbage(self._layout), self._containers.told_of_removal(row):
                if driver == "overlay":
                    self._to_overlay(row)
                else:
                    self._to_extent(row)
        return self._containers.row(row.id)

    @contextlib.contextmanager
    def _or_none(self, row: ContainerRow, undo: Callable[[], None]) -> Iterator[None]:
        """Undo what was made in the block where it ends before the row is changed."""
        try:
            yield
        except BaseException:
            query = "SELECT driver FROM containers WHERE id = ?"
            if self._database.read().execute(query, (row.id,)).fetchone() in ((row.driver,), None):
                with contextlib.suppress(OSError):  # it is garbage, as of a move that was killed
                    undo()
            raise

    def _remove_directory(self, name: str) -> None:
        container_remove_many(self._mounts.containers_fd, [name])

    def _check_unlimited(self, row: ContainerRow) -> None:
        if project_of(self._mounts.containers_fd):
            from layerstore.containers import quotas

            if quotas.limit_of(self._mounts.containers_fd, row.id) is not None:
                raise Unsupported(
                    f"container {row.id[:12]} has a limit on its disk, which the extent driver cannot hold"
                )

    # To the overlay driver

    def _to_overlay(self, row: ContainerRow) -> None:
        if os.geteuid() != 0:
            raise Unsupported(
                f"container {row.id[:12]} can be moved to the overlay driver by root only, who may give files owners "
                "and overlayfs's attributes"
            )
        layer = self._layers.layer(row.id, row.image_id, row.chain_id)
        check_unused(self._containers, row, _IN_USE)
        beside = f"{row.id}.{os.urandom(8).hex()}"
        with (
            layer.still() as tree,
            durable.file_system(self._layout.containers) as sync,
            self._or_none(row, partial(self._remove_directory, beside)),
        ):
            states = _snapshots(self._database.read(), row)
            container_make_many(self._mounts.containers_fd, [beside], 0o700, 0, 0, 0)
            directory = self._layout.container(beside)
            made: Made | None = {} if states else None
            try:
                _write_upper(tree, f"{directory}/upper", made)
                for name, created, log, length in states:
                    _write_upper(layer.at((log, length)), snapshots.make(directory, name, created), made)
            except LogMissing:
                self._check_same(self._database.read(), row, states)
                raise
            sync()
            gone = self._put_in_place(row, directory, states)
        self._layers.forget(row.id)
        log_rows.unlink(self._layout, gone)

    def _put_in_place(self, row: ContainerRow, directory: str, states: list[Any]) -> list[str]:
        """Have that directory be the container. Returns as `_say_overlay`."""
        with (
            locks.container(self._layout, row.id, alone=True),
            locks.mounting(self._layout, [row.id]),
            self._or_none(row, partial(self._remove_directory, row.id)),
        ):
            self._remove_directory(row.id)  # what a move left that was killed
            os.rename(directory, self._layout.container(row.id))
            durable.sync_directory(self._layout.containers)
            return self._say_overlay(row, states)

    def _say_overlay(self, row: ContainerRow, states: list[Any]) -> list[str]:
        """Returns the logs that nothing needs any more."""
        with self._database.transaction() as db:
            log = self._check_same(db, row, states)
            db.execute("UPDATE containers SET driver = 'overlay', log = NULL WHERE id = ?", (row.id,))
            db.execute("DELETE FROM snapshots WHERE container_id = ?", (row.id,))
            return log_rows.forget_unneeded(db, [log, *(state[2] for state in states)])

    def _check_same(self, db: Connection, row: ContainerRow, states: list[Any]) -> str | None:
        """As `_log_of`, and raises `Conflict` where the snapshots are others than those."""
        log = self._log_of(db, row)
        if _snapshots(db, row) != states:
            raise _changed(row)
        return log

    def _log_of(self, db: Connection, row: ContainerRow) -> str | None:
        """The container's log, None for the overlay driver. Raises where it was removed or moved meanwhile."""
        found = db.execute("SELECT driver, log FROM containers WHERE id = ?", (row.id,)).fetchone()
        if found is None:
            raise NotFound(f"container {row.id[:12]} was removed meanwhile")
        if found[0] != row.driver:
            raise _changed(row)
        log: str | None = found[1]
        return log

    # To the extent driver

    def _to_extent(self, row: ContainerRow) -> None:
        self._check_unlimited(row)
        from layerstore.extents.recording import Recorder

        with self._containers.starting(row.id):  # nobody else does, and what has ended is forgotten
            pass
        directory = self._layout.container(row.id)
        os.makedirs(self._layout.logs, mode=0o700, exist_ok=True)
        check = partial(check_unused, self._containers, row, _IN_USE)
        check()
        states, work = snapshots.begin_move(self._layout, row.id, check)
        recorder = Recorder(self._layout, row.chain_id, self._layers.image_tree(row.image_id))
        made: dict[tuple[str, ...], Recorded] = {}
        undo = partial(_unlink, self._layout, made)
        removed = f"{row.id}.{os.urandom(8).hex()}"
        with self._or_none(row, undo):
            try:
                with snapshots.source(self._layout, row.id):
                    for _, _, uppers, _ in states:
                        if uppers not in made:
                            made[uppers] = _record(recorder, uppers, share=len(states) > 1)
            except FileNotFoundError as error:
                self._log_of(self._database.read(), row)
                raise _changed(row) from error
            durable.sync_directory(self._layout.logs)
            self._log_of(self._database.read(), row)
            with snapshots.end_move(self._layout, row.id, states, work, check) as is_same:
                if not is_same:
                    raise _changed(row)
                self._say_extent(row, states, made)
                # Whoever waits for the lock, or has found the container before, is not to find it any more.
                os.rename(directory, self._layout.container(removed))
        with contextlib.suppress(OSError):  # it is garbage
            stood_on = frozen.stacks(self._layout.container(removed))
            container_remove_many(self._mounts.containers_fd, [removed])
            for names in stood_on:
                frozen.release(self._layout, names)

    def _say_extent(self, row: ContainerRow, states: list[State], made: dict[tuple[str, ...], Recorded]) -> None:
        with self._database.transaction() as db:
            self._log_of(db, row)
            for recorded in made.values():
                log_rows.insert(db, [recorded.log], recorded.uses)
            for name, created, uppers, _ in states:
                log, length, _ = made[uppers]
                if name is None:
                    db.execute("UPDATE containers SET driver = 'extent', log = ? WHERE id = ?", (log, row.id))
                else:
                    db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?)", (row.id, name, created, log, length))


def _snapshots(db: Connection, row: ContainerRow) -> list[Any]:
    """Of a container of the extent driver."""
    return db.execute(_SNAPSHOTS, (row.id,)).fetchall()


def _changed(row: ContainerRow) -> Conflict:
    return Conflict(f"container {row.id[:12]} was used while it was being moved; nothing was done, try again")


def _write_upper(tree: Tree, upper: str, made: Made | None) -> None:
    from layerstore.containers.upper_writer import write_upper
    from layerstore.extents.delta import entries

    write_upper(entries(tree), tree.table.image.index, upper, made)


def _record(recorder: Recorder, uppers: tuple[str, ...], *, share: bool) -> Recorded:
    from layerstore.containers.upper import entries

    with contextlib.ExitStack() as held:
        fds = [held.enter_context(open_fd(upper, os.O_RDONLY | os.O_DIRECTORY)) for upper in uppers]
        return recorder.record(entries(fds, recorder.image.index, recorder.image.contents), share=share)


def _unlink(layout: Layout, made: dict[tuple[str, ...], Recorded]) -> None:
    log_rows.unlink(layout, [recorded.log for recorded in made.values()])
