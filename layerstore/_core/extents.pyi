"""The extent map of a file (csrc/extents.h): which bytes come from the image, from a log, or are zeros."""

from collections.abc import Iterator
from typing import Final

from typing_extensions import Buffer

ZERO: Final[int]
"""The source of a range of zeros."""
IMAGE: Final[int]
"""The source of a range that is the image's content of the file, at the same offset."""
MAX_LOGS: Final[int]
"""How many logs sources can tell apart: numbers are below it."""

def source(log: int, offset: int) -> int:
    """The source of a range whose bytes begin at byte `offset` (below 2^48) of the log of that number.

    `ValueError` for a number from `MAX_LOGS` on, or an offset that no source can name.
    """

class ExtentMap:
    """Where the bytes of a file of `size` bytes are. Every byte below the size has a source; nothing is beyond.

    Offsets, lengths and sizes are bytes, from 0 to 2^63 - 1. `ValueError` for a negative one, `OverflowError` for a range that
    ends beyond 2^63 - 1 bytes, `Conflict` for a change of a frozen map, `MemoryError`; after an error the map is what it was.
    One lookup or change costs O(log n) of n extents plus what it covers. Reading is safe in many threads, changing
    is for one at a time.
    """

    def __init__(self, image_size: int = 0) -> None:
        """A map of a file of `image_size` bytes, all of them the image's."""

    @property
    def size(self) -> int: ...
    @property
    def frozen(self) -> bool: ...
    def __len__(self) -> int:
        """How many extents there are: ranges as long as they can be."""

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """`(start, length, source)` of every extent in order, as the map is when the iteration begins."""

    def write(self, start: int, length: int, source: int) -> None:
        """Have a range come from `source`. What lies between the former size and `start` becomes zeros.

        `ValueError` for a source that is no source, or a range of a log that passes byte 2^48. A length of 0 changes
        nothing, not even the size.
        """

    def punch(self, start: int, length: int) -> None:
        """Have what of a range lies below the size be zeros; the size stays."""

    def truncate(self, size: int) -> None:
        """Set the size. What is cut off is gone; what is added is zeros."""

    def write_many(self, writes: Buffer) -> None:
        """`write` for many in their order: u64 `start`, `length` and `source` of each, native, one after another.

        All or nothing. The GIL is released. `RuntimeError` where another thread changed the map meanwhile.
        """

    def lookup(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """`(start, length, source)` of the pieces of a range in order. They cover what of it lies below the size."""

    def lookup_many(self, ranges: Buffer) -> tuple[bytes, bytes]:
        """`lookup` for many: u64 `start` and `length` of each, native. The GIL is released.

        Returns the pieces of all ranges as u64 triples, and for each range a u64: how many pieces there are up to its
        last. So those of range i are `pieces[ends[i - 1] : ends[i]]`.
        """

    def packed(self) -> bytes:
        """All extents as u64 triples, as `write_many` takes them."""

    def live_bytes(self) -> dict[int, int]:
        """How many bytes of the file come from each log, by its number; logs that give none are not there."""

    def clone(self) -> ExtentMap:
        """A map of its own that says the same, and is not frozen. Blocks of up to 256 extents are shared until they change."""

    def freeze(self) -> None:
        """Refuse changes from now on."""
