"""Files of a writable layer, opened: raw, buffered and text, as the built-in `open` gives them."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING, NamedTuple

from layerstore._core.extent_file import Cursor
from layerstore.extents.resolving import error

if TYPE_CHECKING:
    from typing import IO

    from typing_extensions import Buffer

    from layerstore._core.view import AnyPath
    from layerstore.extents.tree import Tree

_BUFFER_BYTES = 64 * 1024


class Mode(NamedTuple):
    """What a mode of `open` asks for."""

    readable: bool
    writable: bool
    create: bool
    exclusive: bool
    truncate: bool
    append: bool
    text: bool


def parse_mode(mode: str) -> Mode:
    """A mode of the built-in `open`. Raises `ValueError` for one that is none."""
    letters = set(mode)
    kind = letters & set("rwax")
    if len(letters) != len(mode) or not letters <= set("rwaxbt+") or len(kind) != 1 or {"b", "t"} <= letters:
        raise ValueError(f"invalid mode: {mode!r}")
    plus = "+" in letters
    return Mode(
        readable="r" in letters or plus,
        writable="r" not in letters or plus,
        create="r" not in letters,
        exclusive="x" in letters,
        truncate="w" in letters,
        append="a" in letters,
        text="b" not in letters,
    )


def check_arguments(mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None) -> None:
    """Raise `ValueError` for what the built-in `open` does not take together, `LookupError` for an unknown encoding."""
    if not mode.text and (encoding, errors, newline) != (None, None, None):
        raise ValueError("binary mode takes no encoding, errors or newline")
    if mode.text:
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        io.TextIOWrapper(io.BytesIO(), encoding or "utf-8", errors, newline)


class LayerFile(io.RawIOBase):
    """A raw file of a writable layer. `name` is the path that was opened. Safe for many threads.

    It has no descriptor of the system: `sync` stands for `os.fsync`. After a rollback of the container every operation
    raises `OSError` with ESTALE.
    """

    if TYPE_CHECKING:

        def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int: ...
        def readinto(self, buffer: Buffer, /) -> int: ...
        def readinto_at(self, buffer: Buffer, position: int) -> int: ...

    def __init__(self, tree: Tree, number: int, mode: Mode, name: AnyPath) -> None:
        super().__init__()
        self.name = name
        self._opened: Tree | None = None
        self._number = number
        self._mode = mode
        self._cursor = cursor = Cursor(tree, number, name, mode.readable)
        # Without a function of Python between: two of them would be a fifth of the time of reading a block.
        vars(self).update(seek=cursor.seek, readinto=cursor.readinto, readinto_at=cursor.readinto_at)
        opened = tree.applier.opened
        opened[number] = opened.get(number, 0) + 1
        self._opened = tree
        if mode.append:
            cursor.seek(0, os.SEEK_END)

    @property
    def _tree(self) -> Tree:
        tree = self._opened
        if tree is None:
            raise ValueError("I/O operation on closed file")
        return tree

    @property
    def mode(self) -> str:
        """As that of `io.FileIO`."""
        start = "x" if self._mode.exclusive else "a" if self._mode.append else "r"
        return ("w" if start == "r" and not self._mode.readable else start) + (
            "b+" if self._mode[:2] == (True, True) else "b"
        )

    def readable(self) -> bool:
        self._cursor.check()
        return self._mode.readable

    def writable(self) -> bool:
        self._cursor.check()
        return self._mode.writable

    def seekable(self) -> bool:
        self._cursor.check()
        return True

    def readall(self) -> bytes:
        self._cursor.check(self._mode.readable, "reading")
        data = bytearray(max(0, self._tree.table.get(self._number).size - self._cursor.position))
        count = self.readinto(data)
        return bytes(memoryview(data)[:count])

    def write(self, data: Buffer) -> int:
        self._cursor.check(self._mode.writable, "writing")
        view = memoryview(data).cast("B")
        tree = self._tree
        with tree.lock:
            tree.settle()
            if self._mode.append:
                self._cursor.position = tree.table.get(self._number).size
            tree.write(self._number, self._cursor.position, view)
            self._cursor.position += len(view)
        return len(view)

    def tell(self) -> int:
        self._cursor.check()
        return self._cursor.position

    def truncate(self, size: int | None = None) -> int:
        self._cursor.check(self._mode.writable, "writing")
        length = self._cursor.position if size is None else size
        if length < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        tree = self._tree
        with tree.lock:
            tree.settle()
            tree.truncate(self._number, length)
        return length

    def punch(self, offset: int, length: int) -> None:
        """Have a range be zeros that takes no space; the size stays, as of fallocate(2) with FALLOC_FL_PUNCH_HOLE."""
        self._cursor.check(self._mode.writable, "writing")
        tree = self._tree
        with tree.lock:
            tree.settle()
            tree.punch(self._number, offset, length)

    def flush(self) -> None:
        """Hand what was written to the system: it survives the end of this process, and others see it."""
        super().flush()
        if not self.closed and self._mode.writable and not self._tree.closed:
            with self._tree.lock:
                self._tree.flush()

    def sync(self) -> None:
        """As `os.fsync`: what was written to the container is durable when this returns."""
        self._cursor.check()
        self._tree.sync()

    def close(self) -> None:
        if not self.closed:
            try:
                super().close()
            finally:
                self._cursor.close()
                tree, self._opened = self._opened, None
                if tree is not None:
                    with tree.lock:
                        tree.applier.release(self._number)


class _Writer(io.BufferedWriter):
    def flush(self) -> None:
        super().flush()
        self.raw.flush()


class _Random(io.BufferedRandom):
    def flush(self) -> None:
        super().flush()
        self.raw.flush()


def wrap(
    raw: LayerFile, mode: Mode, buffering: int, encoding: str | None, errors: str | None, newline: str | None
) -> IO[bytes] | IO[str]:
    """A file as the built-in `open` makes it of a raw one, but that text is UTF-8 where nothing else is said. The
    arguments were checked."""
    try:
        if buffering == 0:
            return raw  # type: ignore[return-value]  # a raw file is one of bytes, which typeshed's IO does not say
        size = buffering if buffering > 1 else _BUFFER_BYTES
        buffered: io.BufferedReader | io.BufferedWriter | io.BufferedRandom
        if mode.readable and mode.writable:
            buffered = _Random(raw, size)
        else:
            buffered = _Writer(raw, size) if mode.writable else io.BufferedReader(raw, size)
        if not mode.text:
            return buffered
        return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline, line_buffering=buffering == 1)
    except BaseException:
        raw.close()
        raise


def open_raw(tree: Tree, path: AnyPath, mode: Mode) -> LayerFile:
    """Open a regular file of a tree whose lock is held. Raises `OSError`."""
    made = tree.table.next_number
    number = tree.create(path, 0o666, exclusive=mode.exclusive) if mode.create else tree.find(path).number
    inode = tree.table.get(number)
    if not inode.is_file():
        raise error(errno.EISDIR if inode.is_dir() else errno.ENXIO, path)
    if mode.truncate and number != made:
        tree.truncate(number, 0)
    return LayerFile(tree, number, mode, path)
