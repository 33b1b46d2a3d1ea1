"""What is sent of layers, tables of contents and recipes, and the chunks of contents."""

from __future__ import annotations

from layerstore._core.chunking import chunk
from layerstore._core.files import MappedFile
from layerstore._core.index import CONTENT_BYTES
from layerstore.store.records import CONTENT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.store.contents import ContentStore

DIGEST_BYTES = 32
SMALL_TABLE_BYTES = 32 << 20
"""A layer with a larger table is not sent as a difference from another one."""
SMALL_RECIPE_BYTES = 64 << 20
"""Nor one with a larger recipe, decompressed: it and the other one are in memory."""


class Table:
    """A table of contents (`layerstore.layers.recipe.Table`)."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.content_count = len(data) // CONTENT_BYTES

    def content(self, number: int) -> tuple[bytes, int]:
        digest, size = CONTENT.unpack_from(self.data, number * CONTENT_BYTES)
        return digest, size


def chunks_of(contents: ContentStore, digest: bytes, sizes: tuple[int, int, int]) -> Iterator[tuple[bytes, int, int]]:
    """Digest, offset and length of each chunk of a content, cut at these least, average and largest sizes."""
    found = contents.find(digest)
    if isinstance(found, bytes):
        yield from _chunks_of(memoryview(found), sizes)
        return
    with found:
        yield from _chunks_of(memoryview(MappedFile(found.fileno())), sizes)


def _chunks_of(content: memoryview, sizes: tuple[int, int, int]) -> Iterator[tuple[bytes, int, int]]:
    ends, digests = chunk(content, *sizes)
    start = 0
    for number, end in enumerate(ends):
        yield bytes(digests[number * DIGEST_BYTES : (number + 1) * DIGEST_BYTES]), start, end - start
        start = end
