"""The tar archives that ADD unpacks: by their content, whatever they are called."""

from __future__ import annotations

import array
import contextlib
import io
import itertools
import os
import posixpath
import stat
import tarfile

from layerstore._core.tar import Entry as Member
from layerstore._core.tar import walk
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError
from layerstore.layers.blob_streams import archive_compression_of, decompressed, first_decompressed, pieces_of
from layerstore.limits import FREE_LAYER_BYTES, beyond
from layerstore.naming import about
from layerstore.store import durable
from layerstore.store.pieces import PIECE_BYTES, pieces_between
from layerstore.trees.entries import Entry
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from layerstore.building.hostfiles import HostFile
    from layerstore.limits import Limits
    from layerstore.store.pieces import Piece

_TYPES = {
    "regular": stat.S_IFREG,
    "hardlink": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "directory": stat.S_IFDIR,
    "fifo": stat.S_IFIFO,
}
_ZEROS = memoryview(bytes(PIECE_BYTES))


class _Content:
    """The content of a file of an archive, the stored bytes of which begin at `position`."""

    def __init__(self, archive: BinaryIO, position: int, member: Member) -> None:
        self._archive = archive
        self._position = position
        self._size = member.size
        extents = [(0, member.size)] if member.extents is None else member.extents
        # Of a list of pairs the maps of an archive would take many times their own size.
        self._extents = array.array("Q", itertools.chain.from_iterable(extents))

    def pieces(self) -> Iterator[Piece]:
        position, end = self._position, 0
        for offset, length in zip(self._extents[::2], self._extents[1::2], strict=True):
            yield from _zeros(offset - end)
            yield from pieces_between(self._archive.fileno(), position, position + length)
            position, end = position + length, offset + length
        yield from _zeros(self._size - end)

    def clone_to(self, fd: int) -> bool:
        return False


def _zeros(count: int) -> Iterator[Piece]:
    for at in range(0, count, PIECE_BYTES):
        yield _ZEROS[: count - at]


@contextlib.contextmanager
def opened(source: HostFile, scratch: str, name: str, limits: Limits) -> Iterator[list[Entry] | None]:
    """The entries of the archive that a file is, in its order; None where it is none.

    Their sources can be read in the block. A link's `link` is the path that the archive says. That of the directory
    that it is unpacked into has an empty path; an entry of that path that is no directory, or of no name, is passed
    over, as by BuildKit. `scratch` is a directory for the archive as it is read from, decompressed: what is unpacked is
    what was hashed, whatever becomes of the file meanwhile. `name` is told in messages.

    Raises `InvalidInput` where it is damaged, `Conflict` where it changes, `LimitExceeded`, `OSError`.
    """
    with contextlib.ExitStack() as stack:
        try:
            plain = _decompressed(stack, source, scratch, limits)
            entries = None if plain is None else list(_entries(plain, source.size, limits))
        except CorruptError as error:
            raise InvalidInput(f"{name} cannot be read as the archive that it begins as: {error}") from error
        except LayerstoreError as error:
            raise type(error)(f"{name}: {error}") from error
        yield entries


def _entries(archive: BinaryIO, packed_bytes: int, limits: Limits) -> Iterator[Entry]:
    """See `opened`. `packed_bytes` is the size of the archive as it came."""
    position = size = holes = 0
    for event in walk(pieces_of(archive), nameless=True, **limits.of_tar()):
        if not isinstance(event, Member):
            position += len(event.data)
            continue
        size += event.size
        holes += event.size - event.stored_size
        what = f"with {decode_path(event.path)!r} the files have"
        if size > limits.layer_bytes:
            raise beyond(f"{what} {size} bytes", limits, "layer_bytes")
        if holes > limits.hole_bytes:
            raise beyond(f"{what} holes of {holes} bytes", limits, "hole_bytes")
        if holes > max(FREE_LAYER_BYTES, limits.layer_ratio * packed_bytes):
            raise beyond(f"{what} holes of {holes} bytes in {packed_bytes} of the archive", limits, "layer_ratio")
        if event.path and (_path(event.path) or event.type == "directory"):
            yield _entry(archive, position, event)


def _decompressed(stack: contextlib.ExitStack, source: HostFile, scratch: str, limits: Limits) -> BinaryIO | None:
    """The archive as a seekable file at its start, or None where it is none."""
    compression = _compression_of(source)
    if compression is None:
        return None
    plain = stack.enter_context(io.BufferedRandom(durable.nameless(scratch)))
    if not compression and source.clone_to(plain.fileno()):
        return plain
    size = 0
    # To its end, where it is known to be what was hashed.
    for piece in decompressed(source.pieces(), compression, limits, "it"):
        size += plain.write(piece)
        if size > limits.layer_bytes:
            raise beyond("it is too large", limits, "layer_bytes")
    plain.seek(0)
    return plain


def _compression_of(source: HostFile) -> str | None:
    """How the archive that a file is was compressed, "" where it was not; None where it is no archive."""
    with source.opened() as fd, open(fd, "rb", closefd=False) as file:
        with about(fd):
            head = file.read(tarfile.BLOCKSIZE)
            file.seek(0)
        compression = archive_compression_of(head)
        try:
            head = first_decompressed(pieces_of(file), compression, tarfile.BLOCKSIZE)
        except CorruptError:
            return None
    return compression if _is_header(head) else None


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _entry(archive: BinaryIO, position: int, member: Member) -> Entry:
    """The content of a file is at `position`."""
    mtime_ns = member.mtime_seconds * 10**9 + member.mtime_nanoseconds
    entry = Entry(_path(member.path), _TYPES[member.type] | member.mode, member.uid, member.gid, mtime_ns)
    entry.xattrs = member.xattrs
    if member.type == "symlink":
        entry.mode = stat.S_IFLNK | 0o777
        entry.target = member.link
    elif member.type == "hardlink":
        entry.link = _path(member.link)
    elif member.type in ("char", "block"):
        entry.rdev = _device(member)
    elif member.size:
        entry.size = member.size
        entry.source = _Content(archive, position, member)
    return entry


def _device(member: Member) -> int:
    try:
        return os.makedev(member.device_major, member.device_minor)
    except OverflowError:
        number = f"{member.device_major}:{member.device_minor}"
        has = f"{decode_path(member.path)!r} has the device number {number}"
        raise InvalidInput(f"{has}, which no system has") from None


def _path(name: bytes) -> bytes:
    """The path below the directory that it is unpacked into: a name that leads above it begins at it."""
    return posixpath.normpath(b"/" + name).lstrip(b"/")
