"""Makes the database again of what can be read of it and of the files, and the file that says that this is a store."""

from __future__ import annotations

import contextlib
import os
import re
import sqlite3
import tempfile

from layerstore.checking.catalog import Catalog
from layerstore.checking.pages import Pages, consolidated
from layerstore.checking.quarantine import Quarantine
from layerstore.checking.reconcile import TYPES, Reconciled, near
from layerstore.errors import Conflict, CorruptError, Unsupported
from layerstore.naming import exists, open_fd
from layerstore.store import durable, own_names, sums
from layerstore.store.db import Database, connect_alone, schema, tables_in
from layerstore.store.layout import FORMAT
from layerstore.store.locks import open_elsewhere

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from layerstore.checking.findings import Findings
    from layerstore.store.layout import Layout

    Rows = dict[str, list[tuple[Any, ...]]]

_ENDINGS = ("-wal", "-shm")


def rows_of(layout: Layout) -> Rows:
    """What can be read of the rows of the database, which nobody has open in this process: SQLite's locks end where it
    closes the file in any way. Raises `OSError`."""
    if not exists(layout.database):
        return {}
    # What is left there by who is killed, the next import clears away.
    with tempfile.TemporaryDirectory(dir=layout.staging) as directory:
        return _rows_in(consolidated(layout.database, directory))


def _rows_in(data: bytes) -> Rows:
    pages = Pages(data)
    roots: dict[str, int] = {}
    for name, root in pages.roots():
        table = near(name, TYPES)
        if table is not None:
            roots.setdefault(table, root)
    return {table: list(pages.rows(root)) for table, root in roots.items()}


def rebuild(layout: Layout) -> dict[str, int]:
    """Put a database in place that is made anew; returns how many rows of which tables were lost.

    The former one goes to the quarantine. Under the exclusive garbage lock, and while nobody has the database open:
    raises `Conflict` otherwise, and `OSError`.
    """
    ready = layout.ready_database
    lost: dict[str, int] = {}
    if not exists(ready):
        _require_alone(layout.database)
        before = _written_at(layout)
        made = Reconciled(layout, rows_of(layout))
        lost = made.lost
        new = f"{layout.root}/.layerstore.db.new"
        for ending in ("", *_ENDINGS):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(new + ending)
        with durable.file_system(layout.root) as sync:
            with contextlib.closing(Database(new, layout.database_lock)) as database, database.transaction() as db:
                write_rows(db, made.rows)
            os.chmod(new, 0o600)
            sync()
        _require_alone(layout.database)
        if _written_at(layout) != before:
            raise Conflict(f"{layout.database} was written to while it was made anew; try again")
        os.rename(new, ready)
    # From here on it is known to be whole; a log of the former one may not be taken for its own.
    quarantine = Quarantine(layout)
    with durable.file_system(layout.root) as sync:
        for ending in _ENDINGS:
            quarantine.take(layout.database + ending)
        if exists(layout.database):
            quarantine.copy(layout.database)
        sync()
    os.rename(ready, layout.database)
    durable.sync_directory(layout.root)
    keep_strangers(layout)
    return lost


def _require_alone(path: str) -> None:
    if not exists(path):
        return
    with open_fd(path, os.O_RDWR) as fd:
        if open_elsewhere(fd):
            raise Conflict(f"{path} has to be made anew, and another process has it open; end that first")


def _written_at(layout: Layout) -> list[tuple[int, int]]:
    """When the files of the database were written to last, and how long they are."""
    found = []
    for path in (layout.database, f"{layout.database}-wal"):
        with contextlib.suppress(FileNotFoundError):
            status = os.stat(path)
            found.append((status.st_mtime_ns, status.st_size))
    return found


def write_rows(db: sqlite3.Connection, rows: Rows) -> None:
    """Have these rows alone, in a transaction of the caller's, and sums of them."""
    db.execute("PRAGMA defer_foreign_keys = ON")
    for table in reversed(TYPES):
        db.execute(f"DELETE FROM {table}")
    for table, types in TYPES.items():
        marks = ", ".join("?" * len(types))
        db.executemany(f"INSERT INTO {table} VALUES ({marks})", rows[table])
    sums.seal_anew(db)


def mend(layout: Layout, database: Database) -> dict[str, int]:
    """Have the rows of a database, whose pages are whole, agree with the files. Raises `OSError`."""
    with database.transaction() as db:
        made = Reconciled(layout, _rows_in(db.serialize()))
        write_rows(db, made.rows)
    keep_strangers(layout)
    return made.lost


def keep_strangers(layout: Layout) -> None:
    """Containers and logs of which no row tells any more would be taken for garbage: they may be what was lost."""
    with contextlib.closing(Database(layout.database, layout.database_lock)) as database:
        containers = {i for (i,) in database.read().execute("SELECT id FROM containers WHERE driver = 'overlay'")}
        logs = {i for (i,) in database.read().execute("SELECT id FROM logs")}
    quarantine = Quarantine(layout)
    for top, names, known in (
        (layout.containers, own_names.CONTAINERS, containers),
        (layout.logs, own_names.LOGS, logs),
    ):
        for name in own_names.own(top, names) if os.path.isdir(top) else ():
            if name not in known:
                quarantine.take(f"{top}/{name}")


def check_foundation(layout: Layout, findings: Findings, repair: bool) -> bool:
    """Look at what has to be right before a store can be opened; whether it is, or is by now.

    Under the garbage lock, exclusive for a repair. Raises as `rebuild`.
    """
    says = _format(layout)
    # Of another version of layerstore, perhaps: then it is the database that tells.
    is_ours = says == FORMAT.encode() or re.fullmatch(rb"layerstore [0-9]+\n?", says) is None
    is_whole = _check_database(layout, findings, repair and is_ours)
    return _check_format(layout, findings, says, repair and is_whole) and is_whole


def _format(layout: Layout) -> bytes:
    try:
        with open(layout.format, "rb") as file:
            return file.read(4096)
    except FileNotFoundError:
        return b""


def _check_format(layout: Layout, findings: Findings, says: bytes, repair: bool) -> bool:
    if says == FORMAT.encode():
        return True
    detail = "it does not say that this is a store of this version"
    finding = findings.add("format", layout.format, detail, "format")
    if repair:
        durable.write_file(layout.format, FORMAT.encode())
        finding.repaired = True
    return repair


def _has_our_tables(path: str) -> bool:
    with contextlib.closing(connect_alone(path)) as db:
        return tables_in(db) == schema()


def _check_database(layout: Layout, findings: Findings, repair: bool) -> bool:
    detail = ""
    try:
        layout.check_database()
        with contextlib.closing(Database(layout.database, layout.database_lock)) as database:
            Catalog(database.read())
    except (CorruptError, sqlite3.Error) as error:
        detail = str(error)
    except Unsupported:
        if not _has_our_tables(layout.database):
            raise
        detail = "the version that it says it is of is not that of its tables"
    if not detail:
        return True
    finding = findings.add("database", layout.database, detail, "pages")
    if repair:
        finding.tell_made_again(rebuild(layout))
    return repair
