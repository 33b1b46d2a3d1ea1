"""A tar from outside into a container."""

from __future__ import annotations

import contextlib
import gzip
import lzma
import os
import posixpath
import stat
import tarfile
import zlib
from decimal import Decimal, InvalidOperation

from layerstore.errors import InvalidInput, LayerstoreError
from layerstore.limits import DEFAULT, beyond
from layerstore.naming import about
from layerstore.store.pieces import PIECE_BYTES, write_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO, Self

    from layerstore.containers.copying import Files
    from layerstore.limits import Limits

XATTR = "SCHILY.xattr."
TYPES = {
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


# What reading a tar that is not whole raises, `tarfile` itself and what it decompresses with.
DAMAGED = (tarfile.TarError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, ValueError, IndexError)
_INVALID: type[Exception] = tarfile.InvalidHeaderError  # type: ignore[attr-defined]
_EXTENDED = {
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
}


def bounded_member(limits: Limits) -> type[tarfile.TarInfo]:
    """What `tarfile` makes of headers: it would read extended ones of any size at once, and go back where a size is
    below 0. There may be as many entries as `limits` say, and bytes in their files together."""
    entries = size = 0

    class Member(tarfile.TarInfo):
        @classmethod
        def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
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

    return Member


def unpack(container: Files, archive: BinaryIO, directory: str, limits: Limits = DEFAULT) -> None:
    """Take the entries of a tar, compressed or not as `tarfile` reads it, into a directory of the container.

    See `layerstore.Container.unpack`.
    """
    directories: list[tuple[str, tarfile.TarInfo]] = []
    try:
        member_type = bounded_member(limits)
        with tarfile.open(fileobj=archive, mode="r|*", bufsize=PIECE_BYTES, tarinfo=member_type) as members:
            for member in members:
                inside = _inside(directory, member.name)
                if inside != _inside(directory, ""):
                    _make_parents(container, inside)
                _make(container, members, member, inside, directory)
                if member.isdir():
                    directories.append((inside, member))
                elif not member.islnk():
                    _set_attributes(container, member, inside)
    except LayerstoreError:
        raise
    except DAMAGED as error:
        raise InvalidInput(f"this cannot be read as a tar archive: {error}") from error
    for inside, member in reversed(directories):
        _set_attributes(container, member, inside)


def _inside(directory: str, name: str) -> str:
    """Where an entry lands: a name that leads above the directory begins at it."""
    return posixpath.normpath(f"{directory}/{posixpath.normpath('/' + name)}")


def _make_parents(container: Files, inside: str) -> None:
    parent = posixpath.dirname(inside)
    try:
        container.lstat(parent)
    except FileNotFoundError:
        _make_parents(container, parent)
        container.mkdir(parent)


def _make(container: Files, members: tarfile.TarFile, member: tarfile.TarInfo, inside: str, directory: str) -> None:
    if member.isdir():
        try:
            if stat.S_ISDIR(container.lstat(inside).st_mode):
                return
            container.unlink(inside)
        except FileNotFoundError:
            pass
        container.mkdir(inside)
        return
    target = _inside(directory, member.linkname) if member.islnk() else ""
    if target and _is_linked(container, member, target, inside):
        return
    with contextlib.suppress(FileNotFoundError):
        container.unlink(inside)
    if member.issym():
        container.symlink(member.linkname, inside)
    elif target:
        container.link(target, inside)
    elif member.type in TYPES:
        device = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
        container.mknod(inside, TYPES[member.type] | (member.mode & 0o7777), device)
    elif member.isreg():
        read = members.extractfile(member)
        assert read is not None
        with about(inside), container.open(inside, "xb", 0) as write:
            while piece := read.read(PIECE_BYTES):
                write_all(write.write, piece)
    else:
        raise InvalidInput(f"entry {member.name!r} of the tar is of a type ({member.type!r}) that no file system has")


def _is_linked(container: Files, member: tarfile.TarInfo, target: str, inside: str) -> bool:
    """Whether a name is one of the file that a hard link of the tar means; raises where it cannot become one."""
    if target == inside:
        raise InvalidInput(f"entry {member.name!r} of the tar is a hard link to itself")
    there = container.lstat(target)
    try:
        return os.path.samestat(there, container.lstat(inside))
    except FileNotFoundError:
        return False


def _set_attributes(container: Files, member: tarfile.TarInfo, inside: str) -> None:
    # In this order: a new owner takes capabilities and set-user-ID from a file.
    container.chown(inside, member.uid, member.gid, follow_symlinks=False)
    for key, value in member.pax_headers.items():
        if key.startswith(XATTR):
            data = value.encode("utf-8", "surrogateescape")
            container.setxattr(inside, key.removeprefix(XATTR), data, follow_symlinks=False)
    if not member.issym():
        container.chmod(inside, member.mode & 0o7777)
    container.utime(inside, ns=(0, mtime_ns(member)), follow_symlinks=False)


def mtime_ns(member: tarfile.TarInfo) -> int:
    """Its time of modification; the exact one where the tar says it."""
    text = member.pax_headers.get("mtime", "")
    try:
        return int(Decimal(text) * 10**9)
    except (InvalidOperation, ValueError, OverflowError):
        return int(member.mtime) * 10**9
