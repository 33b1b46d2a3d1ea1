"""A tar from outside into a container."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat

from layerstore._core.tar import walk
from layerstore.errors import CorruptError, InvalidInput
from layerstore.layers.blob_streams import INPUT_BYTES, archive_compression_of, decompressed, pieces_of, prefixed
from layerstore.limits import DEFAULT, beyond
from layerstore.naming import about
from layerstore.oci.archives import members_of
from layerstore.store.pieces import write_all
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from layerstore._core.tar import Entry, Walk
    from layerstore.containers.copying import Files
    from layerstore.limits import Limits

_HEAD_BYTES = 512
_SPECIAL = {"char": stat.S_IFCHR, "block": stat.S_IFBLK, "fifo": stat.S_IFIFO}


def unpack(container: Files, archive: BinaryIO, directory: str, limits: Limits = DEFAULT) -> None:
    """Take the entries of a tar, compressed or not, into a directory of the container.

    See `layerstore.Container.unpack`.
    """
    directories: list[tuple[str, Entry]] = []
    size = 0
    try:
        for entry, content in members_of(_walked(archive, limits)):
            size += entry.size
            if size > limits.layer_bytes:
                raise beyond(f"with {decode_path(entry.path)!r} the files have {size} bytes", limits, "layer_bytes")
            inside = _inside(directory, entry.path)
            if inside != _inside(directory, b""):
                _make_parents(container, inside)
            _make(container, entry, content, inside, directory)
            if entry.type == "directory":
                directories.append((inside, entry))
            elif entry.type != "hardlink":
                _set_attributes(container, entry, inside)
    except CorruptError as error:
        raise InvalidInput(f"this cannot be read as a tar archive: {error}") from error
    for inside, entry in reversed(directories):
        _set_attributes(container, entry, inside)


def _walked(archive: BinaryIO, limits: Limits) -> Walk:
    head = b""
    while len(head) < _HEAD_BYTES and (piece := archive.read(_HEAD_BYTES - len(head))):
        head += piece
    pieces = prefixed(head, pieces_of(archive, INPUT_BYTES))
    return walk(decompressed(pieces, archive_compression_of(head), limits, "the archive"), **limits.of_tar())


def _inside(directory: str, name: bytes) -> str:
    """Where an entry lands: a name that leads above the directory begins at it."""
    return posixpath.normpath(f"{directory}/{posixpath.normpath('/' + decode_path(name))}")


def _make_parents(container: Files, inside: str) -> None:
    missing = []
    parent = posixpath.dirname(inside)
    while not _is_there(container, parent):
        missing.append(parent)
        parent = posixpath.dirname(parent)
    for path in reversed(missing):
        container.mkdir(path)


def _is_there(container: Files, path: str) -> bool:
    try:
        container.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _make(container: Files, entry: Entry, content: Iterator[bytes], inside: str, directory: str) -> None:
    if entry.type == "directory":
        try:
            if stat.S_ISDIR(container.lstat(inside).st_mode):
                return
            container.unlink(inside)
        except FileNotFoundError:
            pass
        container.mkdir(inside)
        return
    target = _inside(directory, entry.link) if entry.type == "hardlink" else ""
    if target and _is_linked(container, entry, target, inside):
        return
    with contextlib.suppress(FileNotFoundError):
        container.unlink(inside)
    if entry.type == "symlink":
        container.symlink(decode_path(entry.link), inside)
    elif target:
        container.link(target, inside)
    elif entry.type in _SPECIAL:
        device = 0 if entry.type == "fifo" else os.makedev(entry.device_major, entry.device_minor)
        container.mknod(inside, _SPECIAL[entry.type] | entry.mode, device)
    else:
        with about(inside), container.open(inside, "xb", 0) as file:
            for position, piece in _placed(entry, content):
                file.seek(position)
                write_all(file.write, piece)
            file.truncate(entry.size)


def _placed(entry: Entry, content: Iterator[bytes]) -> Iterator[tuple[int, bytes]]:
    """What is stored of a file in the tar, each piece with where it belongs in the file."""
    extents = iter([(0, entry.size)] if entry.extents is None else entry.extents)
    position = left = 0
    for data in content:
        at = 0
        while at < len(data):
            if not left:
                position, left = next(extents)
            piece = data[at : at + left]
            yield position, piece
            at, position, left = at + len(piece), position + len(piece), left - len(piece)


def _is_linked(container: Files, entry: Entry, target: str, inside: str) -> bool:
    """Whether a name is one of the file that a hard link of the tar means; raises where it cannot become one."""
    if target == inside:
        raise InvalidInput(f"entry {decode_path(entry.path)!r} of the tar is a hard link to itself")
    there = container.lstat(target)
    try:
        return os.path.samestat(there, container.lstat(inside))
    except FileNotFoundError:
        return False


def _set_attributes(container: Files, entry: Entry, inside: str) -> None:
    # In this order: a new owner takes capabilities and set-user-ID from a file.
    container.chown(inside, entry.uid, entry.gid, follow_symlinks=False)
    for name, value in entry.xattrs.items():
        container.setxattr(inside, os.fsdecode(name), value, follow_symlinks=False)
    if entry.type != "symlink":
        container.chmod(inside, entry.mode)
    mtime_ns = entry.mtime_seconds * 10**9 + entry.mtime_nanoseconds
    container.utime(inside, ns=(0, mtime_ns), follow_symlinks=False)
