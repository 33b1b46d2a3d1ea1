"""Brings cold contents back, into a pack and objects, where the kernel can be shown them."""

from __future__ import annotations

import os
import struct
from functools import partial

from layerstore._core.index import CONTENT_BYTES
from layerstore._core.ingest import LOCATION_NONE, Digests
from layerstore.errors import RELOAD, CorruptError
from layerstore.store.cold import is_cold
from layerstore.store.locks import locked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from layerstore.store.contents import ContentStore
    from layerstore.store.db import Database
    from layerstore.store.layout import Layout
    from layerstore.types import ChainId

_PLACE = struct.Struct("<II")
_CONTENT = struct.Struct("<32sQ")
_BATCH_BYTES = 8 << 20
_THREADS = os.cpu_count() or 1


def thaw(layout: Layout, database: Database, contents: ContentStore, chain: ChainId, table: memoryview) -> int:
    """Bring back what is cold of the contents of a chain, which an index has in `table`, and have the images of that
    chain be frozen no more. Durable on return; returns the bytes that were brought back.

    Under the garbage lock of the caller's, shared. Raises `CorruptError` where a content is missing or damaged,
    `OSError`; nothing is changed then.
    """
    brought = 0
    if any(_cold_places(contents, table)):
        with locked(layout.packs_lock, exclusive=True):
            # Another process may have done it meanwhile.
            brought = _bring_back(layout, database, contents, sorted(_cold_places(contents, table)))
    of_chain = "image_id IN (SELECT image_id FROM images WHERE chain_id = ?)"
    if database.read().execute(f"SELECT 1 FROM frozen WHERE {of_chain}", (chain,)).fetchone():
        with database.transaction() as db:
            db.execute(f"DELETE FROM frozen WHERE {of_chain}", (chain,))
    return brought


def _cold_places(contents: ContentStore, table: memoryview) -> Iterator[tuple[int, int, bytes, int]]:
    """Pack, slot, digest and size of those that are cold."""
    places = contents.digests().locate_many(table, CONTENT_BYTES)
    for (pack, slot), (digest, size) in zip(_PLACE.iter_unpack(places), _CONTENT.iter_unpack(table), strict=True):
        if is_cold(pack):
            yield pack, slot, digest, size
        elif pack == LOCATION_NONE:
            raise CorruptError(f"content {digest.hex()} is missing from the store; {RELOAD}")


def _bring_back(
    layout: Layout, database: Database, contents: ContentStore, places: Iterable[tuple[int, int, bytes, int]]
) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from layerstore.layers.imports import Import
    from layerstore.layers.ordered import groups, in_order

    brought = 0
    read_cold = contents.cold_reader()
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        Import(layout, database, contents, known=Digests(b"", 0)) as importing,
    ):
        # In the order in which they lie, so that a frame is read once.
        batches = groups(places, lambda place: place[3], _BATCH_BYTES)
        for batch, read in in_order(threads, partial(_read, read_cold), batches):
            digests = b"".join(digest for _, _, digest, _ in batch)
            # A large one alone, by the piece: it need not fit into memory.
            copied = importing.copy_contents(read) if read else importing.copy_content(read_cold(digests))
            if copied != digests:
                raise CorruptError(f"a content of the cold packs is damaged; `layerstore fsck` says which; {RELOAD}")
            brought += sum(size for *_, size in batch)
        importing.commit()
    return brought


def _read(
    read: Callable[[bytes], Iterator[bytes]], batch: list[tuple[int, int, bytes, int]]
) -> tuple[list[tuple[int, int, bytes, int]], list[bytes]]:
    """The contents of a batch; none where it is one large one."""
    if batch[0][3] > _BATCH_BYTES:
        return batch, []
    return batch, [b"".join(read(digest)) for _, _, digest, _ in batch]
