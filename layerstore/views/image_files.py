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


def asks_for_text(mode: str, buffering: int, options: tuple[str | None, ...], path: AnyPath) -> bool:
    """Whether arguments of `open` ask for text; options are its encoding, errors and newline.

    Raises `OSError` with EROFS for a mode that would write, `ValueError` for arguments that the built-in refuses.
    """
    letters = set(mode)
    once = len(letters) == len(mode)
    if once and letters & set("wax+") and letters <= set("rwaxbt+"):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), os.fspath(path))
    if not once or letters not in ({"r"}, {"r", "b"}, {"r", "t"}):
        raise ValueError(f"invalid mode: {mode!r}")
    text = "b" not in letters
    if not text and any(option is not None for option in options):
        raise ValueError("binary mode takes no encoding, errors or newline")
    if text and buffering == 0:
        raise ValueError("can't have unbuffered text I/O")
    return text


def open_content(
    found: Buffer | io.FileIO, name: AnyPath, text: bool, buffering: int, options: tuple[str | None, ...]
) -> IO[bytes] | IO[str]:
    """A file over a content, which is bytes or a file of its own, for arguments that `asks_for_text` has seen. Text is
    UTF-8 where nothing else is said."""
    raw: io.RawIOBase = _named(found, name) if isinstance(found, io.FileIO) else ContentFile(found, name)
    if buffering == 0:
        return raw  # type: ignore[return-value]  # a raw file is one of bytes, which typeshed's IO does not say
    buffered = io.BufferedReader(raw, buffering if buffering > 1 else _BUFFER_BYTES)
    if not text:
        return buffered
    encoding, errors, newline = options
    return io.TextIOWrapper(buffered, encoding or "utf-8", errors, newline)


def _named(file: io.FileIO, name: AnyPath) -> io.FileIO:
    file.name = name  # the path in the image, not that in the store
    return file
