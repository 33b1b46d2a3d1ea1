"""Who else can say what a stack of layers has at a path: dictionaries, SQLite, and overlayfs in the kernel.

Each in the best form that its kind has. Dictionaries and SQLite store what an opaque directory hides as whiteouts of
the paths themselves, so that a lookup need not look at the directories above it. They give a row of attributes or None.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.loopfs import unmount_below
from bench.stacks import Layer

Attributes = tuple[int, int, int, int, int, int]
"""Mode, uid, gid, size, mtime, layer."""
Table = dict[str, Attributes | None]

ABSENT: Any = object()
SQLITE_CACHE_KIB = 256 << 10


def tables(layers: Sequence[Layer]) -> list[Table]:
    """What each layer says, the bottom one first; None is a whiteout."""
    stack: list[Table] = []
    below: set[str] = set()
    for number, layer in enumerate(layers):
        prefixes = tuple(f"{directory}/" for directory in layer.opaque)
        table: Table = dict.fromkeys(path for path in below if path.startswith(prefixes)) if prefixes else {}
        table |= dict.fromkeys(layer.whiteouts)
        for path, entry in layer.entries.items():
            table[path] = (entry.mode, entry.uid, entry.gid, entry.size, int(entry.mtime), number)
        below |= layer.entries.keys()
        stack.append(table)
    return stack


class Dicts:
    """A dict a layer, asked from the top one down."""

    def __init__(self, stack: Sequence[Table]) -> None:
        self._top_down = [table.get for table in reversed(stack)]

    def lookup_many(self, paths: Sequence[str]) -> list[Attributes | None]:
        top_down = self._top_down
        found = []
        for path in paths:
            attributes = None
            for get in top_down:
                if (attributes := get(path, ABSENT)) is not ABSENT:
                    break
            found.append(None if attributes is ABSENT else attributes)
        return found


class Sqlite:
    """A table of all layers' entries; one prepared statement for a batch, which is given as a JSON array.

    A statement a path takes half as long again. The file is said to be immutable, so that no locks are taken.
    """

    KEY = ""
    TOPMOST = ""
    """The layer of the topmost entry of the path `asked.value`, as a query."""

    def __init__(self, file: Path) -> None:
        self.connection = sqlite3.connect(f"file:{file}?immutable=1", uri=True)
        self.connection.execute(f"PRAGMA cache_size = -{SQLITE_CACHE_KIB}")
        self.connection.execute(f"PRAGMA mmap_size = {1 << 30}")
        self._select = (
            "SELECT mode, uid, gid, size, mtime, layer FROM json_each(?) AS asked "
            f"LEFT JOIN entry ON entry.path = asked.value AND layer = ({self.TOPMOST})"
        )

    @classmethod
    def write(cls, file: Path, stack: Sequence[Table]) -> Path:
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            connection.execute(
                "CREATE TABLE entry (path TEXT, mode INT, uid INT, gid INT, size INT, mtime INT, layer INT, "
                f"PRIMARY KEY ({cls.KEY})) WITHOUT ROWID"
            )
            connection.execute("CREATE TABLE layer (number INTEGER PRIMARY KEY)")
            connection.executemany("INSERT INTO layer VALUES (?)", ((number,) for number in range(len(stack))))
            rows = [
                (path, *(attributes or (None, None, None, None, None, number)))
                for number, table in enumerate(stack)
                for path, attributes in table.items()
            ]
            at = [("path", "layer").index(name) for name in cls.KEY.split(", ")]
            rows.sort(key=lambda row: [(row[0], row[-1])[i] for i in at])
            connection.executemany("INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
        return file

    def lookup_many(self, paths: Sequence[str]) -> list[Attributes | None]:
        rows = self.connection.execute(self._select, (json.dumps(paths),)).fetchall()
        return [None if row[0] is None else row for row in rows]

    def close(self) -> None:
        self.connection.close()


class SqliteByLayer(Sqlite):
    """As layers come: the index is on (layer, path), and the statement goes down the layers."""

    KEY = "layer, path"
    TOPMOST = (
        "SELECT number FROM layer CROSS JOIN entry AS e ON e.layer = number AND e.path = asked.value "
        "ORDER BY number DESC LIMIT 1"
    )


class SqliteByPath(Sqlite):
    """Laid out for this question: the index is on (path, layer), and a path's topmost entry is the next one to it."""

    KEY = "path, layer"
    TOPMOST = "SELECT e.layer FROM entry AS e WHERE e.path = asked.value ORDER BY e.layer DESC LIMIT 1"


@contextlib.contextmanager
def mounted_layers(program: Path, lowers: Sequence[Path], root: Path) -> Iterator[Path]:
    """The directories, the bottom one first, as one read-only overlay on `root`; `program` is csrc/mount_layers.c."""
    root.mkdir()
    subprocess.run([program, root, *reversed(lowers)], check=True)
    try:
        yield root
    finally:
        unmount_below(root)
