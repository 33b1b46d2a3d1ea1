"""The tar archives that ADD unpacks: by their content, whatever they are called."""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
import tarfile
from decimal import Decimal, InvalidOperation

from layerstore.errors import CorruptError, InvalidInput, LayerstoreError
from layerstore.layers.streams import archive_compression_of, decompressed, pieces_of
from layerstore.limits import beyond
from layerstore.naming import about
from layerstore.trees.entries import Entry
from layerstore.types import encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any, BinaryIO, Self

    from layerstore.building.hostfiles import HostFile
    from layerstore.limits import Limits
    from layerstore.store.pieces import Piece

_SHOWN = 200
_XATTR = "SCHILY.xattr."
_TYPES = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
# What reading a tar that is not whole raises; the last for extended headers that follow each other by the hundred.
_DAMAGED = (tarfile.TarError, EOFError, ValueError, IndexError, RecursionError)
_INVALID: type[Exception] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
_EXTENDED = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}


def _bounded_member(limits: Limits) -> type[tarfile.TarInfo]:
    """What `tarfile` makes of headers: it would read extended ones of any size at once, and go back where a size is
    below 0. There may be as many entries as `limits` say, and bytes in their files together."""
    entries = size = 0
    for_all: object = None  # the records of global headers

    class Member(tarfile.TarInfo):
        _is_described = False

        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
            nonlocal for_all
            for_all = tarfile.pax_headers
            try:
                return super().fromtarfile(tarfile)
            except _INVALID as error:  # which would be the end of the archive to `tarfile`
                raise InvalidInput(f"this cannot be read as a tar archive: {error} at byte {tarfile.offset}") from error

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            nonlocal entries, size
            member = super().frombuf(buf, encoding, errors)
            entries += 1
            size += member.size
            if member.size < 0:
                raise InvalidInput(f"entry {member.name!r} has a size of {member.size} bytes")
            if member.type in _EXTENDED and member.size > limits.extended_bytes:
                raise beyond(f"the extended header {member.name!r} has {member.size} bytes", limits, "extended_bytes")
            if entries > limits.entries:
                raise beyond(f"with {member.name!r} there are {entries} entries", limits, "entries")
            if size > limits.layer_bytes:
                raise beyond(f"with {member.name!r} the files have {size} bytes", limits, "layer_bytes")
            return member

        def _apply_pax_info(self, records: dict[str, str], *given: Any) -> None:
            """Of two extended headers the later one holds (csrc/tar/tar.h), and is applied before the first."""
            if records is not for_all and self._is_described:
                return
            self._is_described = records is not for_all
            super()._apply_pax_info(records, *given)  # type: ignore[misc]

    return Member


def _mtime_ns(member: tarfile.TarInfo) -> int:
    """Its time of modification; the exact one where the tar says it."""
    text = member.pax_headers.get("mtime", "")
    try:
        return int(Decimal(text) * 10**9)
    except (InvalidOperation, ValueError, OverflowError):
        return int(member.mtime) * 10**9


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
                member_type = _bounded_member(limits)
                archive = stack.enter_context(tarfile.open(fileobj=plain, mode="r:", tarinfo=member_type))
                entries = []
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # it would keep them all
                    if _path(member.name) or member.isdir():
                        entries.append(_entry(archive, _checked(member, limits)))
        except LayerstoreError as error:
            if isinstance(error, CorruptError):
                raise _unreadable(name, error) from error
            raise type(error)(f"{name}: {error}") from error
        except _DAMAGED as error:
            raise _unreadable(name, error) from error
        yield entries


def _unreadable(name: str, error: Exception) -> InvalidInput:
    return InvalidInput(f"{name} cannot be read as the archive that it begins as: {error}")


def _decompressed(stack: contextlib.ExitStack, source: HostFile, scratch: str, limits: Limits) -> BinaryIO | None:
    """The archive as a seekable file at its start, or None where it is none."""
    compression = _compression_of(source, limits)
    if compression is None:
        return None
    plain = stack.enter_context(os.fdopen(os.open(scratch, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600), "w+b"))
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


def _compression_of(source: HostFile, limits: Limits) -> str | None:
    """How the archive that a file is was compressed, "" where it was not; None where it is no archive."""
    with source.opened() as fd, open(fd, "rb", closefd=False) as file:
        with about(fd):
            head = file.read(tarfile.BLOCKSIZE)
            file.seek(0)
        compression = archive_compression_of(head)
        pieces = iter(decompressed(pieces_of(file), compression, limits, "it"))
        head = b""
        try:
            while len(head) < tarfile.BLOCKSIZE and (piece := next(pieces, b"")):
                head += piece
        except CorruptError:
            return None
    return compression if _is_header(head[: tarfile.BLOCKSIZE]) else None


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
    entry = Entry(_path(member.name), 0, member.uid, member.gid, _mtime_ns(member))
    permissions = member.mode & 0o7777
    if member.isdir():
        entry.mode = stat.S_IFDIR | permissions
    elif member.issym():
        entry.mode = stat.S_IFLNK | 0o777
        entry.target = encode_path(member.linkname)
    elif member.islnk():
        entry.mode = stat.S_IFREG | permissions
        entry.link = _path(member.linkname)
    elif member.type in _TYPES:
        entry.mode = _TYPES[member.type] | permissions
        entry.rdev = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
    elif member.isreg():
        entry.mode = stat.S_IFREG | permissions
        entry.size = member.size
        entry.source = _Member(archive, member) if member.size else None
    else:
        raise ValueError(f"entry {member.name!r} is of a type ({member.type!r}) that no file system has")
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            entry.xattrs[key.removeprefix(_XATTR).encode()] = value.encode("utf-8", "surrogateescape")
    return entry


def _path(name: str) -> bytes:
    """The path below the directory that it is unpacked into: a name that leads above it begins at it."""
    return encode_path(posixpath.normpath("/" + name).lstrip("/"))
