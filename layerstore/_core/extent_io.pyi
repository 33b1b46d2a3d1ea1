"""Reading files through extent maps, and appending to logs (csrc/extent_io.h)."""

from collections.abc import Sequence

from typing_extensions import Buffer

from layerstore._core.extents import ExtentMap
from layerstore._core.log import Record

class Content:
    """Where a content of the image is: `size` bytes at `offset` of the file of descriptor `fd`, which is borrowed."""

    def __init__(self, fd: int, offset: int, size: int) -> None: ...

class LogFile:
    """A log to read from: the first `length` bytes of the file of descriptor `fd`, which is borrowed."""

    def __init__(self, fd: int, length: int) -> None: ...
    @property
    def length(self) -> int: ...

class LogWriter(LogFile):
    """Appends to a log that is `length` bytes long and has this `id` (16 bytes); `number` is the one that sources name it by.

    Data is gathered in memory up to 1 MiB and readable at once; anything else is appended at once, after it. Safe for many
    threads. `OSError` where the file cannot be written (a full disk): the log's length is what it was before the
    call, what was gathered before stays gathered and readable, and the next call tries it again.
    """

    def __init__(self, fd: int, length: int, id: bytes, number: int) -> None: ...
    @property
    def length(self) -> int:
        """Bytes in the file: with this log's id, it names the state of the layer as others see it."""

    @property
    def end(self) -> int:
        """Bytes with those that are gathered."""

    def write(self, extents: ExtentMap, inode: int, offset: int, data: Buffer, mtime_ns: int) -> None:
        """Write `data` at byte `offset` of a file: a WRITE record (several beyond MAX_PAYLOAD_BYTES), and into its map.

        `OverflowError`, `ValueError` and `Conflict` as of `ExtentMap.write`, before anything is written. Where only a part of
        several records could be written, that part is in the map when `OSError` is raised.
        """

    def append(self, records: Sequence[Record]) -> int:
        """Append what was gathered and then one operation, all of `records` or none of them. Returns the new length.

        `InvalidInput` for a record that makes no sense, naming it.
        """

    def flush(self) -> int:
        """Append what was gathered. Returns the length."""

    def sync(self) -> int:
        """`flush`, and have all of it durable (fdatasync(2)). Returns the length."""

def read(
    extents: ExtentMap, logs: Sequence[LogFile], content: Content | None, position: int, buffer: Buffer
) -> int:
    """Fill `buffer` with the file's bytes from `position` on; returns how many, less at the end of the file.

    `logs` are the logs by number. The GIL is released for what is read from files. `CorruptError` where an extent names
    bytes that a log or the content does not have; `OSError`; `ValueError` for a negative position.
    """
