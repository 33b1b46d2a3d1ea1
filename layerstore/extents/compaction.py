"""Writing a layer's log anew, so that it holds what lives alone and goes on from no other log."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from layerstore._core import log as kinds
from layerstore._core.extent_file import read
from layerstore._core.extent_io import LogWriter
from layerstore._core.extents import IMAGE, ZERO, ExtentMap, source
from layerstore._core.log import Record
from layerstore.extents.applying import extents_records, inode_records, place_of
from layerstore.extents.log import new_log
from layerstore.store.pieces import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.extents.table import Inode
    from layerstore.extents.tree import Tree
    from layerstore.store.layout import Layout
    from layerstore.types import ChainId

_MAX_LOGS = 64
_WORTHWHILE_BYTES = 1 << 20
_COPIED_BYTES = 1 << 20


def is_due(tree: Tree, is_needed: Callable[[], bool]) -> bool:
    """Whether a layer is better written anew: it goes on from many logs, or most of its own is dead and nobody needs
    it, which is asked last."""
    if len(tree.logs) > _MAX_LOGS:
        return True
    end = tree.logs.files[tree.log_number].length
    if end <= 2 * _WORTHWHILE_BYTES or is_needed():
        return False
    dead = end - _live_bytes(tree)[tree.log_number]
    return dead > _WORTHWHILE_BYTES and dead > end // 2


def _live_bytes(tree: Tree) -> Counter[int]:
    """How many bytes of each log are in files."""
    live: Counter[int] = Counter()
    for inode in tree.table:
        if inode.extents is not None:
            live.update(inode.extents.live_bytes())
    return live


def rewrite(layout: Layout, chain: ChainId, tree: Tree) -> tuple[str, dict[str, int]]:
    """Write the state of a tree to a log of its own, durable; returns its id, and of which logs it has data up to
    where.

    Data of the last log, and of others that have little that lives, is copied. Raises `OSError`; nothing is left then.
    """
    live = _live_bytes(tree)
    copied = {number for number, count in live.items() if number == tree.log_number or count < _COPIED_BYTES}
    kept = {number: new for new, number in enumerate(sorted(live.keys() - copied), 1)}
    with new_log(layout, chain) as (log, writer):
        records = [
            Record(kinds.SOURCE_LOG, value=kept[number], payload=bytes.fromhex(tree.logs.ids[number]))
            for number in kept
        ]
        inodes = list(tree.table)
        for inode in inodes:
            records += _inode(tree, inode, kept)
        records += [record for inode in inodes for record in _names(inode, added=True)]
        records += [record for inode in inodes for record in _names(inode, added=False)]
        if records:
            writer.append(records)
        for inode in inodes:
            _copy(tree, writer, inode, copied)
        writer.sync()
    return log, {tree.logs.ids[number]: tree.logs.files[number].length for number in kept}


def _inode(tree: Tree, inode: Inode, kept: dict[int, int]) -> Iterator[Record]:
    number = inode.number
    yield from inode_records(inode, None if number >= kinds.FIRST_NEW_INODE else tree.table.image.inode(number))
    if inode.extents is not None:
        if inode.digest is not None:
            yield Record(kinds.TRUNCATE, number, value=0, mtime_ns=inode.mtime_ns)
        yield Record(kinds.TRUNCATE, number, value=inode.extents.size, mtime_ns=inode.mtime_ns)
        pieces = [(s, n, _renumbered(where, kept)) for s, n, where in inode.extents]
        shared = ((s, n, where) for s, n, where in pieces if where is not None and where != ZERO)
        yield from extents_records(number, shared)


def _renumbered(where: int, kept: dict[int, int]) -> int | None:
    """A source as the new log names it, None where its data is copied."""
    if where in (IMAGE, ZERO):
        return where
    number, offset = place_of(where)
    return source(kept[number], offset) if number in kept else None


def _names(inode: Inode, *, added: bool) -> Iterator[Record]:
    for name, number in (inode.entries or {}).items():
        if added and number is not None:
            yield Record(kinds.ENTRY, inode.number, value=number, mtime_ns=inode.mtime_ns, payload=name)
        elif not added and number is None:
            yield Record(kinds.REMOVE, inode.number, mtime_ns=inode.mtime_ns, payload=name)


def _copy(tree: Tree, writer: LogWriter, inode: Inode, copied: set[int]) -> None:
    scratch = ExtentMap()
    for start, length, where in inode.extents or ():
        if where in (IMAGE, ZERO) or place_of(where)[0] not in copied:
            continue
        for position in range(start, start + length, PIECE_BYTES):
            data = bytearray(min(PIECE_BYTES, start + length - position))
            assert inode.extents is not None
            read(inode.extents, tree.logs.files, None, position, data)
            writer.write(scratch, inode.number, position, data, inode.mtime_ns)
