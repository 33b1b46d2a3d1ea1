from collections.abc import Sequence
from typing import NamedTuple

from layerstore._core.index import Index
from layerstore._core.tar_writer import TarWriter

class UpperEntry(NamedTuple):
    path: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    rdev: int
    target: bytes | None
    link: bytes | None
    xattrs: dict[bytes, bytes]
    is_opaque: bool
    size: int
    lower: int | None
    content: int | None
    identity: tuple[int, int]
    layer: int
    place: bytes

class UpperWalk:
    def __init__(self, index: Index, uppers: Sequence[int], whole_bytes: int | None = ...) -> None: ...
    def read(self) -> int: ...
    def __getitem__(self, i: int) -> UpperEntry: ...
    def large(self) -> UpperEntry | None: ...
    def take_fd(self) -> int | None: ...
    def wanted(self) -> list[int]: ...
    def give(self, contents: list[bytes]) -> None: ...
    def write(self, writer: TarWriter) -> None: ...

def changes(index: Index, uppers: Sequence[int]) -> list[tuple[str, str]]: ...
