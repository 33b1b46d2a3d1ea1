from collections.abc import Iterable, Iterator
from typing import Final, NamedTuple

from layerstore._core.index import Index

VISIBLE: Final[int]
REPLACED: Final[int]
WHITEOUT: Final[int]
ABOVE_WHITEOUT: Final[int]
ABOVE_REPLACED: Final[int]
ABOVE_OPAQUE: Final[int]

class Life(NamedTuple):
    path: bytes
    layer: int
    record: int
    is_change: bool
    end: int
    end_layer: int | None
    end_record: int | None

class Figures(NamedTuple):
    added: int
    changed: int
    hidden: int
    added_bytes: int
    wasted_bytes: int

class Provenance:
    figures: Final[list[Figures]]
    def __init__(self, layers: Iterable[Index]) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[Life]: ...
    def of_layer(self, layer: int) -> list[Life]: ...

def versions_of(layers: Iterable[Index], path: bytes) -> list[Life]: ...
def follow(layers: Iterable[Index], layer: int, record: int) -> tuple[int, int]: ...
