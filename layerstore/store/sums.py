"""A sum over the rows of every table of the database, by which a row that was changed on disk is found.

The sum of a table is the number of its rows, and what the first 128 bits of the BLAKE3 of each add up to, modulo 2^128:
it does not depend on their order, and a change adds and subtracts. Triggers tell functions of the connection of every
row that comes and goes; what they told is added up at the end of the transaction, in it. Who writes to the database
without these functions fails, rather than to leave sums that are wrong.
"""

from __future__ import annotations

from layerstore.errors import CorruptError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator
    from typing import Any

    Row = tuple[Any, ...]

COME, GONE = "layerstore_row_come", "layerstore_row_gone"
"""What triggers call with the name of the table and the values of a row."""
TABLE = "CREATE TABLE sums (name TEXT PRIMARY KEY, row_count INTEGER NOT NULL, total BLOB NOT NULL) WITHOUT ROWID"
_BYTES = 16
_MODULUS = 1 << (8 * _BYTES)
_BATCH = 4096


class Changes:
    """The rows that came and went in the transaction of one connection: (table, values).

    Of a statement that `failed` nobody knows which of those that it told have stayed: a transaction with such a
    statement is not committed.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        come: list[Row] = []
        gone: list[Row] = []
        self._come, self._gone = come, gone
        self.failed: BaseException | None = None
        db.create_function(COME, -1, lambda *row: come.append(row))
        db.create_function(GONE, -1, lambda *row: gone.append(row))

    def forget(self) -> None:
        """The transaction ended."""
        self._come.clear()
        self._gone.clear()
        self.failed = None

    def settle(self, db: sqlite3.Connection) -> None:
        """Bring the sums up to date, as the last thing in the transaction. Raises what a statement has failed with."""
        if self.failed is not None:
            raise self.failed
        changes: dict[str, list[int]] = {}
        for rows, sign in ((self._come, 1), (self._gone, -1)):
            for row, value in zip(rows, _values(rows), strict=True):
                change = changes.setdefault(row[0], [0, 0])
                change[0] += sign
                change[1] += sign * value
        for table, change in changes.items():
            _add(db, table, *change)


def _add(db: sqlite3.Connection, table: str, count: int, total: int) -> None:
    found = db.execute("SELECT row_count, total FROM sums WHERE name = ?", (table,)).fetchone()
    if found is None:
        raise CorruptError(f"the database has no sum of its table {table}; `layerstore fsck --repair` makes it again")
    new = _packed(int.from_bytes(found[1], "little") + total)
    db.execute("UPDATE sums SET row_count = ?, total = ? WHERE name = ?", (found[0] + count, new, table))


def _values(rows: list[Row]) -> list[int]:
    """A number for each row. `ascii`, as `repr` depends on the Unicode tables of this Python."""
    if not rows:
        return []
    from layerstore._core.hashing import hash_many

    return [int.from_bytes(digest[:_BYTES], "little") for digest in hash_many([ascii(row).encode() for row in rows])]


def _packed(total: int) -> bytes:
    return (total % _MODULUS).to_bytes(_BYTES, "little")


def tables(db: sqlite3.Connection) -> list[str]:
    """The tables that have sums."""
    query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'sums'"
    return sorted(name for (name,) in db.execute(query).fetchall())


def columns(db: sqlite3.Connection, table: str) -> list[str]:
    """The columns of a table, in their order."""
    return [row[1] for row in db.execute(f"PRAGMA table_info ({table})").fetchall()]


def install(db: sqlite3.Connection) -> None:
    """Have every table told of, and its sum there."""
    for statement in statements(db):
        db.execute(statement)
    seal_anew(db)


def statements(db: sqlite3.Connection) -> Iterator[str]:
    """What makes the triggers of the tables that there are."""
    for table in tables(db):
        named = columns(db, table)
        come, gone = (
            f"SELECT {function}('{table}', {', '.join(f'{row}.{name}' for name in named)});"
            for function, row in ((COME, "NEW"), (GONE, "OLD"))
        )
        for event, told in (("INSERT", come), ("DELETE", gone), ("UPDATE", f"{gone} {come}")):
            name = f"{table}_{event.lower()}"
            yield f"DROP TRIGGER IF EXISTS {name}"
            yield f"CREATE TRIGGER {name} AFTER {event} ON {table} BEGIN {told} END"


def seal(db: sqlite3.Connection) -> None:
    """Have the sums be those of the rows that there are."""
    db.execute("DELETE FROM sums")
    for table in tables(db):
        db.execute("INSERT INTO sums VALUES (?, ?, ?)", (table, *computed(db, table)))


def seal_anew(db: sqlite3.Connection) -> None:
    """The same in a transaction, whatever has changed in it until now."""
    seal(db)
    if isinstance(changes := getattr(db, "changes", None), Changes):
        changes.forget()


def computed(db: sqlite3.Connection, table: str) -> tuple[int, bytes]:
    """The number of rows and the sum of a table, of the rows that are read."""
    rows = db.execute(f"SELECT '{table}', {', '.join(columns(db, table))} FROM {table}")
    count = total = 0
    while batch := rows.fetchmany(_BATCH):
        count += len(batch)
        total += sum(_values(batch))
    return count, _packed(total)


def differing(db: sqlite3.Connection) -> list[str]:
    """Tables whose rows are not those that the sums are of, or that have no sum, or are gone."""
    noted = {name: (count, total) for name, count, total in db.execute("SELECT * FROM sums").fetchall()}
    found = {table: computed(db, table) for table in tables(db)}
    return sorted(table for table in noted | found if noted.get(table) != found.get(table))
