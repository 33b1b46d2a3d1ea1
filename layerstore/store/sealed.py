"""Small documents that say their own digest: a line, and its SHA-256 in hexadecimal digits as a second one."""

from __future__ import annotations

from layerstore._core.sha256 import sha256
from layerstore.errors import CorruptError


def sealed(document: bytes) -> bytes:
    """A document, which is one line, as it is written to its file."""
    return document + b"\n" + sha256(document).hex().encode()


def unsealed(data: bytes, path: str) -> bytes:
    """The document of what is in the file `path`. Raises `CorruptError` where that is not as it was written."""
    document = data.partition(b"\n")[0]
    if data != sealed(document):
        raise CorruptError(f"{path} is damaged, or of an older version")
    return document
