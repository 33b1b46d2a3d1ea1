"""Brings cold contents back, into a pack and objects, where the kernel can be shown them."""

from __future__ import annotations

import os

from layerstore._core.index import CONTENT_BYTES
from layerstore._core.ingest import LOCATION_NONE, Digests
from layerstore.errors import RELOAD, CorruptError
from layerstore.layers.index_files import unpack_index
from layerstore.store import locks
from layerstore.store.cold_packs import is_cold
from layerstore.store.records import CONTENT, LOCATION
from layerstore.types import Value, chain_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from layerstore.store.contents import ContentStore
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.types import DiffId

_BATCH_BYTES = 8 << 20
_CHUNKS = 64
"""So many chunks of a large content are read as one: some 4 MiB."""
_THREADS = os.cpu_count() or 1


def thaw(store: OpenStore, stack: Sequence[DiffId], table: memoryview) -> int:
    """Bring back what is cold of the contents of a stack, which an index has in `table`, and have the images of that
    stack be frozen no more. Durable on return; returns the bytes that were brought back.

    Under the garbage lock of the caller's, shared. Raises `CorruptError` where a content is missing or damaged,
    `OSError`; nothing is changed then.
    """
    brought = 0
    if any(_cold_places(store.contents, table)):
        with locks.packs(store.layout):
            # Another process may have done it meanwhile.
            brought = _bring_back(store, sorted(_cold_places(store.contents, table)))
    for diff_id in stack:
        unpack_index(store.layout.layer_index(diff_id))
    chain = chain_id(stack)
    of_chain = "image_id IN (SELECT image_id FROM images WHERE chain_id = ?)"
    if store.database.read().execute(f"SELECT 1 FROM frozen WHERE {of_chain}", (chain,)).fetchone():
        with store.database.transaction() as db:
            db.execute(f"DELETE FROM frozen WHERE {of_chain}", (chain,))
    return brought


def _cold_places(contents: ContentStore, table: memoryview) -> Iterator[tuple[int, int, bytes, int]]:
    """Pack, slot, digest and size of those that are cold."""
    places = contents.digests().locate_many(table, CONTENT_BYTES)
    for (pack, slot), (digest, size) in zip(LOCATION.iter_unpack(places), CONTENT.iter_unpack(table), strict=True):
        if is_cold(pack):
            yield pack, slot, digest, size
        elif pack == LOCATION_NONE:
            raise CorruptError(f"content {digest.hex()} is missing from the store; {RELOAD}")


class _Part(Value):
    """What is read as one: contents that are near one another, or some of the chunks of a large one, of which it is the
    last part or is not."""

    digests: Sequence[bytes]
    is_large: bool
    is_last: bool


def _bring_back(store: OpenStore, places: Iterable[tuple[int, int, bytes, int]]) -> int:
    from concurrent.futures import ThreadPoolExecutor

    from layerstore.layers.imports import Import
    from layerstore.layers.ordered import groups, in_order

    brought = 0
    expected: list[bytes] = []
    cold = store.contents.cold_reader()

    def parts() -> Iterator[_Part]:
        # In the order in which they lie, so that a frame is read once.
        for batch in groups(places, lambda place: place[3], _BATCH_BYTES):
            nonlocal brought
            brought += sum(size for *_, size in batch)
            expected.extend(digest for _, _, digest, _ in batch)
            if len(batch) > 1 or batch[0][3] <= _BATCH_BYTES:
                yield _Part([digest for _, _, digest, _ in batch], False, True)
                continue
            # It need not fit into memory.
            chunks = cold.parts_of(batch[0][2])
            for at in range(0, len(chunks), _CHUNKS):
                yield _Part(chunks[at : at + _CHUNKS], True, at + _CHUNKS >= len(chunks))

    def read(part: _Part) -> tuple[_Part, list[Piece]]:
        return part, [cold.read(digest) for digest in part.digests]

    copied: list[bytes] = []
    with (
        ThreadPoolExecutor(_THREADS) as threads,
        Import(store, known=Digests(b"", 0)) as importing,
    ):
        ready = in_order(threads, read, parts())
        for part, pieces in ready:
            if part.is_large:
                copied.append(importing.copy_content(_pieces_of_large(part, pieces, ready)))
            else:
                copied.append(importing.copy_contents(pieces))
        if b"".join(copied) != b"".join(expected):
            raise CorruptError(f"a content of the cold packs is damaged; `layerstore fsck` says which; {RELOAD}")
        importing.commit()
    return brought


def _pieces_of_large(
    part: _Part, pieces: list[Piece], following: Iterator[tuple[_Part, list[Piece]]]
) -> Iterator[Piece]:
    """The pieces of a large content, of this part and those that follow."""
    yield from pieces
    while not part.is_last:
        part, pieces = next(following)
        yield from pieces
