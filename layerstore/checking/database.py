"""The database: its pages, its tables, and its rows against their sums."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from functools import cache

from layerstore.errors import CorruptError
from layerstore.store import sums
from layerstore.store.db import connect_alone, schema, tables_in

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.checking.findings import Findings
    from layerstore.store.layout import Layout

_HEADER = struct.Struct(">16xHBBB3xIIIIIIIIIIII20sI4x")
_WAL = 2
_SHOWN = 5

_expected_tables = cache(schema)


def check_database(layout: Layout, findings: Findings) -> None:
    """Its rows can be read and believed."""
    path = layout.database
    try:
        db = connect_alone(path)
    except (CorruptError, sqlite3.Error) as error:
        findings.add("database", path, f"it cannot be opened: {error}", "pages")
        return
    with contextlib.closing(db):
        try:
            # What is in the log comes first, so that the file itself is what is looked at, where nobody else writes.
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            db.execute("BEGIN")
            if _check_pages(db, path, findings):
                _check_header(db, path, findings)
                _check_rows(db, path, findings)
        except (CorruptError, sqlite3.Error) as error:
            findings.add("database", path, f"it cannot be read: {error}", "pages")


def _check_pages(db: sqlite3.Connection, path: str, findings: Findings) -> bool:
    wrong = [text for (text,) in db.execute("PRAGMA integrity_check").fetchall() if text != "ok"]
    if wrong:
        findings.add("database", path, "; ".join(wrong[:_SHOWN]).replace("\n", " "), "pages")
    elif tables_in(db) != _expected_tables():
        findings.add("database", path, "its tables are not those of this version", "pages")
    else:
        return True
    return False


def _check_header(db: sqlite3.Connection, path: str, findings: Findings) -> None:
    """What SQLite itself does not compare with anything (https://www.sqlite.org/fileformat.html, "The Database
    Header")."""
    # Not read from the file: in closing it SQLite's locks of this process would end.
    data, length = db.serialize()[: _HEADER.size], os.stat(path).st_size
    (
        page_bytes,
        writes,
        reads,
        reserved,
        changes,
        pages,
        *_,
        form,
        cache,
        root,
        code,
        _,
        vacuum,
        application,
        spare,
        valid,
    ) = _HEADER.unpack(data)
    expected = {
        "is the version of its journal": (writes, _WAL),
        "is the version of its journal to readers": (reads, _WAL),
        "bytes are reserved in each page": (reserved, 0),
        "bytes are its length": (length, page_bytes * pages),
        "is the format of its schema": (form, 4),
        "is the size of the cache": (cache, 0),
        "is the last page of its roots": (root, 0),
        "is its encoding": (code, 1),
        "is its way to vacuum": (vacuum, 0),
        "is the application's number": (application, 0),
        "is its counter of changes": (changes, valid),
    }
    wrong = [f"{found} {what}, not {right}" for what, (found, right) in expected.items() if found != right]
    if spare.strip(b"\0"):
        wrong.append("there is something where nothing should be")
    # What is in the log now was written since, or before and is not in the file yet: then these are not of one moment.
    # Where there is nothing, there was nothing while this transaction reads: that keeps others from emptying it.
    if wrong and not _is_written(path):
        findings.add("database", path, f"its header is damaged: {'; '.join(wrong)}", "header")


def _is_written(path: str) -> bool:
    """Whether SQLite's log (`-wal`) has something that may not be in the file."""
    try:
        return os.stat(f"{path}-wal").st_size > 0
    except FileNotFoundError:
        return False


def _check_rows(db: sqlite3.Connection, path: str, findings: Findings) -> None:
    dangling = db.execute("PRAGMA foreign_key_check").fetchall()
    if dangling:
        tables = ", ".join(sorted({f"{table} to {parent}" for table, _, parent, _ in dangling}))
        findings.add("database", path, f"{len(dangling)} rows refer to rows that are not there: {tables}", "rows")
    for table in sums.differing(db):
        findings.add("database", path, f"rows of table {table} are not what was written", ("sum", table))
