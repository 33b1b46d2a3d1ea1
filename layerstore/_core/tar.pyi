from collections.abc import Iterable, Iterator
from typing import Final, Literal, NamedTuple

from typing_extensions import Buffer

TYPES: Final[tuple[str, ...]]

class Raw(NamedTuple):
    data: bytes

class Data(NamedTuple):
    data: bytes

class Entry(NamedTuple):
    type: Literal["regular", "hardlink", "symlink", "char", "block", "directory", "fifo"]
    path: bytes
    link: bytes
    mode: int
    uid: int
    gid: int
    mtime_seconds: int
    mtime_nanoseconds: int
    device_major: int
    device_minor: int
    size: int
    stored_size: int
    xattrs: dict[bytes, bytes]
    extents: list[tuple[int, int]] | None
    position: int

class Walk(Iterator[Raw | Entry | Data]):
    def __iter__(self) -> Walk: ...
    def __next__(self) -> Raw | Entry | Data: ...

def walk(
    chunks: Iterable[Buffer],
    *,
    path_bytes: int | None = None,
    name_bytes: int | None = None,
    extended_bytes: int | None = None,
    sparse_extents: int | None = None,
    file_bytes: int | None = None,
    entries: int | None = None,
    nameless: bool = False,
) -> Walk: ...
