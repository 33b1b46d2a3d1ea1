"""Files of an image, opened for reading."""

from __future__ import annotations

import errno
import io
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import IO

    from typing_extensions import Buffer

    from layerstore._core.view import AnyPath

_BUFFER_BYTES = 64 * 1024


class ContentFile(io.RawIOBase):
    """A raw, seekable file over the bytes of one content. `name` is the path that was opened."""

    mode = "rb"

    def __init__(self, content: Buffer, name: AnyPath) -> None:
        super().__init__()
        self._content = memoryview(content)
        self._position = 0
        self.name = name

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file")

    def readable(self) -> bool:
        self._check_open()
        return True

    def seekable(self) -> bool:
        self._check_open()
        return True

    def readinto(self, buffer: Buffer) -> int:
        self._check_open()
        view = memoryview(buffer).cast("B")
        piece = self._content[self._position : self._position + len(view)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._check_open()
        if whence not in (os.SEEK_SET, os.SEEK_CUR, os.SEEK_END):
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        start = (0, self._position, len(self._content))[whence]
        if start + offset < 0:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        self._check_open()
        return self._position


def parse_mode(mode: str, path: AnyPath) -> bool:
    """Whether a mode of `open` asks for text.

    Raises `OSError` with EROFS for one that would write, `ValueError` for one that is none.
    """
    letters = set(mode)
    if letters & set("wax+") and letters <= set("rwaxbt+") and len(letters) == len(mode):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
    if len(letters) != len(mode) or letters not in ({"r"}, {"r", "b"}, {"r", "t"}):
        raise ValueError(f"invalid mode: {mode!r}")
    return "b" not in letters


def open_content(
    found: Buffer | str, name: AnyPath, text: bool, buffering: int, encoding: str | None, errors: str | None,
    newline: str | None,
) -> IO[bytes] | IO[str]:  # fmt: skip
    """A file over a content, which is bytes or the path of a file of its own. The rest as of the built-in `open`, but
    that text is UTF-8 where nothing else is said. Raises `ValueError`, `OSError`."""
    if not text and (encoding, errors, newline) != (None, None, None):
        raise ValueError("binary mode takes no encoding, errors or newline")
    if text and buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    raw: io.RawIOBase = _named(io.FileIO(found), name) if isinstance(found, str) else ContentFile(found, name)
    if buffering == 0:
        return raw  # type: ignore[return-value]  # a raw file is one of bytes, which typeshed's IO does not say
    buffered = io.BufferedReader(raw, buffering if buffering > 1 else _BUFFER_BYTES)
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline) if text else buffered


def _named(file: io.FileIO, name: AnyPath) -> io.FileIO:
    file.name = name  # the path in the image, not that in the store
    return file
