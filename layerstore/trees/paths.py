"""Paths in the tree of an image or container, as an index spells them: bytes without a slash at either end, without "."
and ".."; the root's is empty."""

from __future__ import annotations

import os

from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_LINKS = 40
"""Symbolic links that one path may lead through: the kernel's own limit (path_resolution(7))."""


def join(directory: bytes, name: bytes) -> bytes:
    """The path of a name, or of a path, in a directory."""
    return directory + b"/" + name if directory and name else directory or name


def parent_of(path: bytes) -> bytes:
    """The directory that a path is in; the root for the root."""
    return path.rpartition(b"/")[0]


def directories_above(path: bytes) -> Iterator[bytes]:
    """The directories above a path, the nearest first, the root last."""
    while path:
        path = parent_of(path)
        yield path


def relative_to(top: bytes, path: bytes) -> bytes:
    """What leads from `top` to a path at or below it."""
    return path[len(top) :].lstrip(b"/")


def names_of(path: bytes) -> list[bytes]:
    """The names that a path has in any spelling, ".." among them."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]


def path_error(number: int, path: bytes) -> OSError:
    """The `OSError` of the system for a path in any spelling."""
    return OSError(number, os.strerror(number), "/" + decode_path(path).lstrip("/"))
