"""Where images are saved to: an archive in a file or as a stream, a directory; files for others.

Nothing is at a path before all of it is, and then it is durable.
"""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import tarfile

from layerstore.errors import InvalidInput
from layerstore.layers.blob_streams import pieces_of
from layerstore.naming import about, fstat
from layerstore.oci.layouts import blob_name
from layerstore.store import durable
from layerstore.store.pieces import write_all, write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO, Protocol

    from layerstore.layers.blobs import LayerBlob
    from layerstore.store.pieces import Piece

    class Target(Protocol):
        """What the files of an archive or layout are put to."""

        def put(self, name: str, data: bytes) -> None:
            """A file. Raises `OSError`."""

        def put_layer(self, blob: LayerBlob, size_bytes: int | None) -> None:
            """A layer's blob, under its digest. `size_bytes` is its size where it is known before, which is that of a
            tar that is not compressed. Raises `OSError` and what reading the blob raises."""


_BLOCK = 512


@contextlib.contextmanager
def archive(target: str | os.PathLike[str] | BinaryIO, staging: str) -> Iterator[Target]:
    """An archive. A file that is there is replaced when the block ends; a stream, pipe or device is written to.

    staging: a directory for what has to be whole before it can be written to a stream: one layer at a time.
    Raises `InvalidInput` for a directory, `OSError`.
    """
    if not isinstance(target, (str, os.PathLike)):
        writing = TarStream(target.write, "the stream", staging)
        yield writing
        writing.end()
        target.flush()
        return
    path, found = _resolved(target)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise InvalidInput(f"{path} is a directory; give a file, or save in format oci, which is a directory")
    with file(path) as fd:
        is_file = stat.S_ISREG(fstat(fd).st_mode)
        writing = TarFile(fd, path) if is_file else TarStream(functools.partial(os.write, fd), path, staging)
        yield writing
        writing.end()


@contextlib.contextmanager
def file(target: str | os.PathLike[str]) -> Iterator[int]:
    """The descriptor to write a file by that replaces what is there when the block ends; of a pipe or device itself.

    What replaces another file has its mode and, where that may be given, its owner. Raises `OSError`.
    """
    path, found = _resolved(target)
    if found is None or stat.S_ISREG(found.st_mode):
        with durable.replacing(path, mode=0o666 if found is None else 0o600) as fd:
            _take_after(fd, found)
            yield fd
        return
    with open(path, "wb", buffering=0) as opened:
        yield opened.fileno()


@contextlib.contextmanager
def directory(target: str | os.PathLike[str]) -> Iterator[Target]:
    """A directory, which may be there when it is empty, and is filled when the block ends. It keeps mode and owner.

    Raises `InvalidInput` for one that is not empty or cannot be replaced, `OSError`.
    """
    path, found = _resolved(target)
    if found is not None and not stat.S_ISDIR(found.st_mode):
        raise InvalidInput(f"{path} is no directory, which format oci is; remove it, or give another name")
    if found is not None and os.listdir(path):
        raise InvalidInput(f"{path} is not empty; empty it, or give a directory that is not there yet")
    if os.path.ismount(path):
        raise InvalidInput(f"{path} is a mount point, which cannot be replaced; give a directory in it")

    def make(new: str) -> int:
        os.mkdir(new, 0o777 if found is None else 0o700)
        return os.open(new, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    with durable.claimed_beside(path, make) as (partial, _):
        with durable.file_system(partial) as sync:
            os.makedirs(f"{partial}/blobs/sha256")
            yield Directory(partial)
            _take_after(partial, found)
            sync()
        os.rename(partial, path)
    durable.sync_directory(os.path.dirname(path))


def _resolved(target: str | os.PathLike[str]) -> tuple[str, os.stat_result | None]:
    """The path without links, that what is there is replaced and not a link to it; and what is there.

    A pipe or device, which is not replaced, is at the path that was given: one that /dev/fd leads to has no other.
    Raises `OSError`, also without parent.
    """
    try:
        found = os.stat(target)
    except FileNotFoundError:
        found = None
    if found is not None and stat.S_IFMT(found.st_mode) not in (stat.S_IFREG, stat.S_IFDIR):
        return os.fspath(target), found
    path = os.path.realpath(target)
    os.stat(os.path.dirname(path))
    return path, found


def _take_after(place: int | str, found: os.stat_result | None) -> None:
    """Give a file or directory the mode and owner of what it is to replace, if that is anything."""
    if found is not None:
        with contextlib.suppress(OSError):  # who may not give things away owns what they made
            os.chown(place, found.st_uid, found.st_gid)
        os.chmod(place, found.st_mode & 0o777)


def _write_all(write: Callable[[Piece], int | None], data: Piece, path: str) -> None:
    with about(path):
        write_all(write, data)


class TarStream:
    """A tar that is written from its beginning to its end. The same files give the same bytes."""

    def __init__(self, write: Callable[[Piece], int | None], path: str, staging: str) -> None:
        self._write_some = write
        self._path = path
        self._staging = staging
        for name in ("blobs", "blobs/sha256"):
            self._write(_header(name, 0, tarfile.DIRTYPE))

    def _write(self, data: Piece) -> None:
        _write_all(self._write_some, data, self._path)

    def put(self, name: str, data: bytes) -> None:
        self._put(name, len(data), [data])

    def _put(self, name: str, size: int, pieces: Iterable[Piece]) -> None:
        self._write(_header(name, size))
        for piece in pieces:
            self._write(piece)
        self._write(bytes(-size % _BLOCK))

    def put_layer(self, blob: LayerBlob, size_bytes: int | None) -> None:
        if size_bytes is not None:
            self._put(blob_name(blob.diff_id), size_bytes, blob)
            return
        with about(self._staging), durable.nameless(self._staging) as whole:
            for piece in blob:
                _write_all(whole.write, piece, self._staging)
            whole.seek(0)
            self._put(blob_name(blob.digest), blob.size_bytes, pieces_of(whole))

    def end(self) -> None:
        """What ends a tar."""
        self._write(bytes(2 * _BLOCK))


class TarFile(TarStream):
    """A tar in a file, where a header can be written after what it is of."""

    def __init__(self, fd: int, path: str) -> None:
        self._fd = fd
        super().__init__(functools.partial(os.write, fd), path, "")

    def put_layer(self, blob: LayerBlob, size_bytes: int | None) -> None:
        if size_bytes is not None:
            super().put_layer(blob, size_bytes)
            return
        place = os.lseek(self._fd, _BLOCK, os.SEEK_CUR) - _BLOCK
        for piece in blob:
            self._write(piece)
        self._write(bytes(-blob.size_bytes % _BLOCK))
        header = _header(blob_name(blob.digest), blob.size_bytes)
        with about(self._path):
            write_at(self._fd, header, place)


class Directory:
    """A directory that is not at its place yet."""

    def __init__(self, root: str) -> None:
        self._root = root

    def put(self, name: str, data: bytes) -> None:
        self._put(name, [data])

    def _put(self, name: str, pieces: Iterable[Piece]) -> None:
        path = f"{self._root}/{name}"
        with about(path), open(path, "xb", buffering=0) as file:
            for piece in pieces:
                _write_all(file.write, piece, path)

    def put_layer(self, blob: LayerBlob, size_bytes: int | None) -> None:
        self._put("layer", blob)
        os.rename(f"{self._root}/layer", f"{self._root}/{blob_name(blob.digest)}")


def _header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block, whatever the size: from 8 GiB on it is written as GNU tar does, in binary."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    member.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    return member.tobuf(tarfile.GNU_FORMAT)
