"""Where the contents of entries are read from, and which ranges of them have to be written."""

from __future__ import annotations

from layerstore.store import reflink
from layerstore.store.pieces import PIECE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.layers.streams import Piece
    from layerstore.store.contents import ContentStore

_BLOCK_BYTES = 64 << 10
_PAGE_BYTES = 4096
_ZEROS = bytes(_BLOCK_BYTES)


class StoredContent:
    """A content of the store, as the `Source` of an entry. Raises also `NotFound` where it was collected meanwhile."""

    __slots__ = ("_contents", "_digest")

    def __init__(self, contents: ContentStore, digest: bytes) -> None:
        self._contents = contents
        self._digest = digest

    @property
    def digest(self) -> bytes:
        """BLAKE3 of the content."""
        return self._digest

    def pieces(self) -> Iterator[Piece]:
        with self._contents.open(self._digest) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def link_to(self, path: str) -> bool:
        """Make `path` another name of the content's own file; False where it has none. Nobody may write to it.

        Whoever calls holds the garbage lock. Raises `OSError`.
        """
        return self._contents.link_to(self._digest, path)

    def clone_to(self, fd: int) -> bool:
        file, _, shared = self._contents.open_place(self._digest)
        with file:
            return not shared and reflink.share(fd, file.fileno())


def filled(data: memoryview) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges, made of blocks of 64 KiB, that have anything but zeros."""
    return _ranges(data, _BLOCK_BYTES, lambda at, block: block != _ZEROS[: len(block)])


def differing(data: memoryview, other: bytearray) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges, made of blocks of 4 KiB, that are not as in `other`, which is as long."""
    if other == data:
        return iter(())
    return _ranges(data, _PAGE_BYTES, lambda at, block: block != other[at : at + len(block)])


def _ranges(data: memoryview, size: int, counts: Callable[[int, bytes], bool]) -> Iterator[tuple[int, int]]:
    """Start and end of the ranges of blocks that count."""
    begin: int | None = None
    for at in range(0, len(data), size):
        if counts(at, bytes(data[at : at + size])):
            begin = at if begin is None else begin
        elif begin is not None:
            yield begin, at
            begin = None
    if begin is not None:
        yield begin, len(data)
