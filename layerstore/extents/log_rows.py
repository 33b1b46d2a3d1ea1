"""The logs of writable layers as the database knows them: which there are, and which need which.

A state of a layer is (log, length). A log needs the logs that it goes on from or has data of, each up to a length;
logs that no container, snapshot or other log needs are removed.
"""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Mapping

    from layerstore.store.layout import Layout

_IS_NEEDED = (
    "SELECT 1 WHERE EXISTS (SELECT 1 FROM containers WHERE log = ?1) "
    "OR EXISTS (SELECT 1 FROM snapshots WHERE log = ?1) OR EXISTS (SELECT 1 FROM log_uses WHERE used = ?1)"
)
_NEEDED_BYTES = (
    "SELECT max(length) FROM (SELECT length FROM log_uses WHERE used = ?1 "
    "UNION ALL SELECT length FROM snapshots WHERE log = ?1)"
)


class Gone(Exception):
    """A log that something was to be made of was removed meanwhile. Look again."""


def check(db: sqlite3.Connection, logs: Iterable[str]) -> None:
    """Raises `Gone` where the database does not know one of these logs any more."""
    for log in logs:
        if not exists(db, log):
            raise Gone(log)


def insert(db: sqlite3.Connection, logs: Iterable[str], uses: Mapping[str, int]) -> None:
    """Add logs, which all need the first so many bytes of those in `uses`. Raises `Gone` where one of these is not
    there any more."""
    check(db, uses)
    names = list(logs)
    db.executemany("INSERT INTO logs VALUES (?)", [(log,) for log in names])
    for used, length in uses.items():
        db.executemany("INSERT INTO log_uses VALUES (?, ?, ?)", [(log, used, length) for log in names])


def exists(db: sqlite3.Connection, log: str) -> bool:
    """Whether a log is one that the database knows."""
    return db.execute("SELECT 1 FROM logs WHERE id = ?", (log,)).fetchone() is not None


def needed_bytes(db: sqlite3.Connection, log: str) -> int | None:
    """How many bytes of a log other logs and snapshots need, None where there are no such."""
    length: int | None = db.execute(_NEEDED_BYTES, (log,)).fetchone()[0]
    return length


def forget_unneeded(db: sqlite3.Connection, candidates: Iterable[str | None]) -> list[str]:
    """Take those of these logs that nothing needs out of the database, and what only they needed.

    Returns them, to be given to `unlink` once the transaction has committed.
    """
    waiting = [log for log in candidates if log]
    gone: list[str] = []
    while waiting:
        log = waiting.pop()
        if log in gone or db.execute(_IS_NEEDED, (log,)).fetchone():
            continue
        waiting += [used for (used,) in db.execute("SELECT used FROM log_uses WHERE log = ?", (log,)).fetchall()]
        db.execute("DELETE FROM logs WHERE id = ?", (log,))
        gone.append(log)
    return gone


def unlink(layout: Layout, logs: Iterable[str]) -> None:
    """Remove the files of logs. Raises `OSError`; what is left then is garbage."""
    for log in logs:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(layout.log(log))
