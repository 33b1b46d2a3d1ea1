"""Reads the rows of an SQLite file page by page, whatever is damaged in others.

Source: https://www.sqlite.org/fileformat2.html. A page or cell that makes no sense is passed over.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import struct

from layerstore.naming import exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Row = tuple[Any, ...]

PAGE_BYTES = 4096
_HEADER_BYTES = 100
_TABLE_LEAF, _TABLE_INTERIOR, _INDEX_LEAF, _INDEX_INTERIOR = 13, 5, 10, 2
_INTERIOR = (_TABLE_INTERIOR, _INDEX_INTERIOR)
_TABLE = (_TABLE_LEAF, _TABLE_INTERIOR)
_INTEGERS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}
_BEGIN = b"SQLite format 3\0" + struct.pack(">HBBBBBB", PAGE_BYTES, 2, 2, 0, 64, 32, 32)


def consolidated(path: str, directory: str) -> bytes:
    """The bytes of a database with what is in its log, made in copies in `directory`; the files stay as they are.

    Raises `OSError`.
    """
    copy = f"{directory}/copy.db"
    shutil.copyfile(path, copy)
    if exists(f"{path}-wal"):
        shutil.copyfile(f"{path}-wal", f"{copy}-wal")
    length = os.stat(copy).st_size
    with open(copy, "r+b") as file:
        # What can be said of the header: SQLite looks at nothing where it is not so.
        file.write(_BEGIN)
        file.seek(28)
        file.write((length // PAGE_BYTES).to_bytes(4, "big"))
        file.seek(44)
        file.write((4).to_bytes(4, "big"))
        file.seek(56)
        file.write((1).to_bytes(4, "big"))
    try:
        connection = sqlite3.connect(copy, isolation_level=None)
        try:
            connection.execute("PRAGMA page_count").fetchone()
        finally:
            connection.close()  # the last one moves the log to the file
    except (sqlite3.Error, UnicodeDecodeError):  # SQLite's own message may have what is damaged in it
        pass  # what the file alone has is what there is
    with open(copy, "rb") as file:
        return file.read()


class Pages:
    """The pages of a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.count = len(data) // PAGE_BYTES

    def roots(self) -> Iterator[tuple[str, int]]:
        """The names of tables and the pages where they begin."""
        for row in self.rows(1):
            if len(row) >= 4 and row[0] == "table" and isinstance(row[1], str) and isinstance(row[3], int):
                yield row[1], row[3]

    def rows(self, root: int) -> Iterator[Row]:
        """The rows of a table. One with row numbers has the number as its first value where the row has null there."""
        seen: set[int] = set()
        waiting = [root]
        while waiting:
            number = waiting.pop()
            if number in seen or not 1 <= number <= self.count:
                continue
            seen.add(number)
            page = self._data[(number - 1) * PAGE_BYTES : number * PAGE_BYTES]
            at = _HEADER_BYTES if number == 1 else 0
            kind = page[at]
            if kind not in (*_INTERIOR, _TABLE_LEAF, _INDEX_LEAF):
                continue
            count = int.from_bytes(page[at + 3 : at + 5], "big")
            cells = at + (12 if kind in _INTERIOR else 8)
            if kind in _INTERIOR:
                waiting.append(int.from_bytes(page[at + 8 : at + 12], "big"))
            for i in range(min(count, PAGE_BYTES // 4)):
                place = int.from_bytes(page[cells + 2 * i : cells + 2 * i + 2], "big")
                try:
                    if kind in _INTERIOR:
                        waiting.append(int.from_bytes(page[place : place + 4], "big"))
                        place += 4
                    if kind != _TABLE_INTERIOR:
                        yield self._cell(page, place, kind)
                except (IndexError, ValueError, struct.error):
                    continue

    def _cell(self, page: bytes, at: int, kind: int) -> Row:
        length, at = _varint(page, at)
        key = 0
        if kind in _TABLE:
            key, at = _varint(page, at)
        most = PAGE_BYTES - 35 if kind in _TABLE else (PAGE_BYTES - 12) * 64 // 255 - 23
        least = (PAGE_BYTES - 12) * 32 // 255 - 23
        here = length
        if length > most:
            here = least + (length - least) % (PAGE_BYTES - 4)
            here = here if here <= most else least
        payload = page[at : at + here]
        more = int.from_bytes(page[at + here : at + here + 4], "big") if length > here else 0
        while len(payload) < length:
            if not 1 <= more <= self.count:
                raise ValueError("an overflow page that is not there")
            begin = (more - 1) * PAGE_BYTES
            more = int.from_bytes(self._data[begin : begin + 4], "big")
            payload += self._data[begin + 4 : begin + min(PAGE_BYTES, 4 + length - len(payload))]
        row = _record(payload)
        return (key, *row[1:]) if kind in _TABLE and row and row[0] is None else row


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for i in range(8):
        byte = data[at + i]
        value = value << 7 | byte & 0x7F
        if byte < 0x80:
            return value, at + i + 1
    return value << 8 | data[at + 8], at + 9


def _record(payload: bytes) -> Row:
    end, at = _varint(payload, 0)
    kinds = []
    while at < end:
        kind, at = _varint(payload, at)
        kinds.append(kind)
    row: list[Any] = []
    at = end
    for kind in kinds:
        if kind == 0:
            row.append(None)
        elif kind in _INTEGERS:
            row.append(int.from_bytes(payload[at : at + _INTEGERS[kind]], "big", signed=True))
            at += _INTEGERS[kind]
        elif kind == 7:
            row.append(struct.unpack_from(">d", payload, at)[0])
            at += 8
        elif kind in (8, 9):
            row.append(kind - 8)
        elif kind >= 12:
            data = payload[at : at + (kind - 12) // 2]
            if len(data) < (kind - 12) // 2:
                raise ValueError("a value that goes beyond its row")
            row.append(data if kind % 2 == 0 else data.decode("utf-8", "surrogateescape"))
            at += len(data)
        else:
            raise ValueError("a kind of value that there is not")
    return tuple(row)
