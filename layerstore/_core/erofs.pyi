from typing import Final

from typing_extensions import Buffer

from layerstore._core.index import Index

PACK_BLOCK_BYTES: Final[int]
OBJECT: Final[int]

class Image:
    def __len__(self) -> int: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

def write_tree(index: Index, locations: Buffer) -> Image: ...
def write_pack(pack: int, pack_bytes: int, slots: Buffer) -> Image: ...
