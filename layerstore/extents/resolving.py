"""Where a path leads in a writable layer: path_resolution(7), as root in a chroot to the layer's root."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, NamedTuple

from layerstore.extents.image_tree import ROOT
from layerstore.trees.paths import MAX_LINKS
from layerstore.types import encode_path

if TYPE_CHECKING:
    from layerstore._core.view import AnyPath
    from layerstore.extents.table import Table

_MAX_PATH_BYTES = 4096
_MAX_NAME_BYTES = 255

FOLLOW = 2
"""A link at the end of the path is followed."""
STAY = 1
"""A link at the end of the path is meant itself, unless the path ends in "/"."""
PARENT = 0
"""A link at the end of the path is meant itself: how the system takes what is to be made, removed or renamed."""


class Place(NamedTuple):
    """What a path leads to: the inode `number`, None where the last name is not there.

    `parents` are the directories on the way from the root to the one that has the `name`. The name is "", "." or ".."
    where the path ends so; then the last of `parents` is the directory itself. `slash`: the path asks for a directory.
    """

    parents: tuple[int, ...]
    name: bytes
    number: int | None
    slash: bool


def error(number: int, path: AnyPath, other: AnyPath | None = None) -> OSError:
    """The `OSError` of the system for a path (and the other one of a call that takes two), as they were given."""
    if other is None:
        return OSError(number, os.strerror(number), os.fspath(path))
    return OSError(number, os.strerror(number), os.fspath(path), None, os.fspath(other))


def encoded(path: AnyPath) -> bytes:
    """The bytes of a path. `ValueError` for one with a zero byte."""
    data = encode_path(os.fspath(path))
    if b"\0" in data:
        raise ValueError("embedded null byte")
    return data


def resolve(table: Table, path: AnyPath, follow: int) -> Place:
    """The place that a path leads to.

    Raises the `OSError` of the system where a directory on the way is missing (ENOENT) or none (ENOTDIR), with ELOOP or
    ENAMETOOLONG.
    """
    data = encoded(path)
    if not data:
        raise error(errno.ENOENT, path)
    if len(data) >= _MAX_PATH_BYTES:
        raise error(errno.ENAMETOOLONG, path)
    stack = [ROOT]
    waiting = data.split(b"/")[::-1]
    links = 0
    name = b""
    while waiting:
        part = waiting.pop()
        if part in (b"", b"."):
            name = part or name
            continue
        if part == b"..":
            name = part
            if len(stack) > 1:
                stack.pop()
            continue
        if len(part) > _MAX_NAME_BYTES:
            raise error(errno.ENAMETOOLONG, path)
        name = b""
        last = not any(waiting)
        slash = last and bool(waiting)
        number = table.child(table.get(stack[-1]), part)
        if number is None:
            if last:
                return Place(tuple(stack), part, None, slash)
            raise error(errno.ENOENT, path)
        inode = table.get(number)
        if inode.target is not None and (not last or follow == FOLLOW or (slash and follow == STAY)):
            links += 1
            if links > MAX_LINKS:
                raise error(errno.ELOOP, path)
            if not inode.target:
                raise error(errno.ENOENT, path)
            if inode.target.startswith(b"/"):
                del stack[1:]
            waiting += inode.target.split(b"/")[::-1]
            continue
        if last and not (slash and follow != PARENT and not inode.is_dir()):
            return Place(tuple(stack), part, number, slash)
        if not inode.is_dir():
            raise error(errno.ENOTDIR, path)
        stack.append(number)
    return Place(tuple(stack), name, stack[-1], True)
