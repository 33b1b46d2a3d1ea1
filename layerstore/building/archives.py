"""The tar archives that ADD unpacks: by their content, whatever they are called."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import posixpath
import stat
import tarfile

from layerstore.containers.unpacking import DAMAGED, TYPES, XATTR, bounded_member, mtime_ns
from layerstore.errors import InvalidInput, LayerstoreError
from layerstore.layers.entries import Entry
from layerstore.layers.streams import pieces_of
from layerstore.limits import FREE_LAYER_BYTES, beyond
from layerstore.naming import about
from layerstore.store.pieces import PIECE_BYTES
from layerstore.types import encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import IO, Any, BinaryIO

    from layerstore.layers.streams import Piece
    from layerstore.limits import Limits

_MAGIC = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}


class _Member:
    """The content of a file of an archive."""

    def __init__(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        self._archive = archive
        self._member = member

    def pieces(self) -> Iterator[Piece]:
        file = self._archive.extractfile(self._member)
        assert file is not None
        with file:
            yield from pieces_of(file)

    def clone_to(self, fd: int) -> bool:
        return False


@contextlib.contextmanager
def opened(fd: int, scratch: str, name: str, limits: Limits) -> Iterator[list[Entry] | None]:
    """The entries of the archive that the file `fd` is, in its order; None where it is none.

    Their sources can be read in the block. A link's `link` is the path that the archive says. That of the directory
    that it is unpacked into has an empty path. `scratch` is a directory for what is decompressed, `name` is told in
    messages. Raises `InvalidInput` where it is damaged, `LimitExceeded`, `OSError`.
    """
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(open(fd, "rb", closefd=False))
        try:
            plain = _decompressed(stack, file, scratch, limits)
            entries = None
            if plain is not None:
                member_type = bounded_member(limits)
                archive = stack.enter_context(tarfile.open(fileobj=plain, mode="r:", tarinfo=member_type))
                entries = [_entry(archive, member) for member in archive]
        except LayerstoreError as error:
            raise type(error)(f"{name}: {error}") from error
        except DAMAGED as error:
            raise InvalidInput(f"{name} cannot be read as the archive that it begins as: {error}") from error
        yield entries


def _decompressed(stack: contextlib.ExitStack, file: BinaryIO, scratch: str, limits: Limits) -> IO[bytes] | None:
    """The archive as a seekable file at its start, or None where it is none."""
    with about(file.fileno()):
        head = file.read(6)
        file.seek(0)
    opener: Any = next((opener for magic, opener in _MAGIC.items() if head.startswith(magic)), None)
    if opener is None:
        if not _is_header(file.read(tarfile.BLOCKSIZE)):
            return None
        file.seek(0)
        return file
    with opener(file, "rb") as stream:
        try:
            block = stream.read(tarfile.BLOCKSIZE)
        except DAMAGED:
            return None
        except OSError as error:
            if error.errno is None:  # the decoder's, of what is damaged
                return None
            raise
        if not _is_header(block):
            return None
        plain = stack.enter_context(os.fdopen(os.open(scratch, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b"))
        plain.write(block)
        while piece := stream.read(PIECE_BYTES):
            plain.write(piece)
            size = plain.tell()
            if size > limits.layer_bytes:
                raise beyond("it is too large", limits, "layer_bytes")
            if size > max(FREE_LAYER_BYTES, limits.layer_ratio * file.tell()):
                raise beyond(f"it has {size} bytes and more in {file.tell()}", limits, "layer_ratio")
    plain.seek(0)
    return plain


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    entry = Entry(_path(member.name), 0, member.uid, member.gid, mtime_ns(member))
    permissions = member.mode & 0o7777
    if not entry.path and not member.isdir():
        raise ValueError(f"entry {member.name!r} is no directory, as what it is unpacked into has to be")
    if member.isdir():
        entry.mode = stat.S_IFDIR | permissions
    elif member.issym():
        entry.mode = stat.S_IFLNK | 0o777
        entry.target = encode_path(member.linkname)
    elif member.islnk():
        entry.mode = stat.S_IFREG | permissions
        entry.link = _path(member.linkname)
    elif member.type in TYPES:
        entry.mode = TYPES[member.type] | permissions
        entry.rdev = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
    elif member.isreg():
        entry.mode = stat.S_IFREG | permissions
        entry.size = member.size
        entry.source = _Member(archive, member) if member.size else None
    else:
        raise ValueError(f"entry {member.name!r} is of a type ({member.type!r}) that no file system has")
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR):
            entry.xattrs[key.removeprefix(XATTR).encode()] = value.encode("utf-8", "surrogateescape")
    return entry


def _path(name: str) -> bytes:
    """The path below the directory that it is unpacked into: a name that leads above it begins at it."""
    return encode_path(posixpath.normpath("/" + name).lstrip("/"))
