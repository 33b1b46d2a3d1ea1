"""The tar archives that ADD unpacks: by their content, whatever they are called."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
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

    from layerstore.building.hostfiles import HostFile
    from layerstore.layers.streams import Piece
    from layerstore.limits import Limits

_SHOWN = 200
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


class _Stream(io.RawIOBase):
    """A content that is read once, from its pieces. `taken`: bytes of it so far."""

    def __init__(self, pieces: Iterator[Piece]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")
        self.taken = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(next(self._pieces, b""))
            self.taken += len(self._rest)
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


@contextlib.contextmanager
def opened(source: HostFile, scratch: str, name: str, limits: Limits) -> Iterator[list[Entry] | None]:
    """The entries of the archive that a file is, in its order; None where it is none.

    Their sources can be read in the block. A link's `link` is the path that the archive says. That of the directory
    that it is unpacked into has an empty path; an entry of that path or of no name that is no directory is passed over,
    as by BuildKit. `scratch` is a directory for the archive as it is read from, decompressed: what is unpacked is what
    was hashed, whatever becomes of the file meanwhile. `name` is told in messages.

    Raises `InvalidInput` where it is damaged, `Conflict` where it changes, `LimitExceeded`, `OSError`.
    """
    with contextlib.ExitStack() as stack:
        try:
            plain = _decompressed(stack, source, scratch, limits)
            entries: list[Entry] | None = None
            if plain is not None:
                member_type = bounded_member(limits)
                archive = stack.enter_context(tarfile.open(fileobj=plain, mode="r:", tarinfo=member_type))
                entries = []
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    if _path(member.name) or member.isdir():
                        entries.append(_entry(archive, _checked(member, limits)))
        except LayerstoreError as error:
            raise type(error)(f"{name}: {error}") from error
        except RecursionError:  # of `tarfile`, once for each extended header
            raise beyond(f"{name} has a thousand extended headers before one entry", limits, "extended_bytes") from None
        except DAMAGED as error:
            raise InvalidInput(f"{name} cannot be read as the archive that it begins as: {error}") from error
        yield entries


def _decompressed(stack: contextlib.ExitStack, source: HostFile, scratch: str, limits: Limits) -> IO[bytes] | None:
    """The archive as a seekable file at its start, or None where it is none."""
    opener = _opener(source)
    if opener is None:
        return None
    plain = stack.enter_context(os.fdopen(os.open(scratch, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b"))
    if opener is _as_it_is and source.clone_to(plain.fileno()):
        return plain
    file = _Stream(stack.enter_context(contextlib.closing(source.pieces())))
    with opener(io.BufferedReader(file), "rb") as stream:
        while piece := stream.read(PIECE_BYTES):
            plain.write(piece)
            size = plain.tell()
            if size > limits.layer_bytes:
                raise beyond("it is too large", limits, "layer_bytes")
            if size > max(FREE_LAYER_BYTES, limits.layer_ratio * file.taken):
                raise beyond(f"it has {size} bytes and more in {file.taken}", limits, "layer_ratio")
    while file.read(PIECE_BYTES):  # up to its end, where it is known to be what was hashed
        pass
    plain.seek(0)
    return plain


def _opener(source: HostFile) -> Any:
    """What gives the plain bytes of the archive that a file is; None where it is none."""
    with source.opened() as fd, open(fd, "rb", closefd=False) as file:
        with about(fd):
            head = file.read(6)
            file.seek(0)
        opener: Any = next((opener for magic, opener in _MAGIC.items() if head.startswith(magic)), _as_it_is)
        with opener(file, "rb") as stream:
            try:
                block = stream.read(tarfile.BLOCKSIZE)
            except DAMAGED:
                return None
            except OSError as error:
                if error.errno is None:  # the decoder's, of what is damaged
                    return None
                raise
        return opener if _is_header(block) else None


@contextlib.contextmanager
def _as_it_is(file: BinaryIO, mode: str) -> Iterator[BinaryIO]:
    yield file


def _is_header(block: bytes) -> bool:
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _checked(member: tarfile.TarInfo, limits: Limits) -> tarfile.TarInfo:
    for name in (member.name, member.linkname):
        if len(encode_path(name)) > limits.path_bytes:
            raise beyond(f"{name[:_SHOWN]!r}... has {len(encode_path(name))} bytes", limits, "path_bytes")
    return member


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    entry = Entry(_path(member.name), 0, member.uid, member.gid, mtime_ns(member))
    permissions = member.mode & 0o7777
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
