"""A stack of layers as one file system to look into: no mount, no root, nothing written."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING, overload

from layerstore._core.index import CONTENT_BYTES
from layerstore._core.ingest import LOCATION_NONE, LOCATION_OBJECT
from layerstore._core.view import ROW_FIELDS, Tree
from layerstore.errors import RELOAD, CorruptError, NotFound
from layerstore.types import encode_path
from layerstore.views.globbing import glob
from layerstore.views.image_files import asks_for_text, open_content

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator
    from typing import IO, Any, Literal, TypeVar

    import numpy as np
    from numpy.typing import NDArray

    from layerstore._core.entry import Entry
    from layerstore._core.index import Index
    from layerstore._core.view import AnyPath
    from layerstore.store.contents import ContentStore

    _Read = TypeVar("_Read")

IN_OBJECT = LOCATION_OBJECT
"""As the pack of a row's location: the content is an object, a file of its own."""
NO_CONTENT = LOCATION_NONE
"""As the pack of a row's location: there is no content (a missing path, an empty file, no regular file), or the store
does not have it any more (a regular file whose size is not 0)."""


class View(Tree):
    """The merged tree of a stack of layers, read as the `os` module reads a file system, as root in a chroot.

    Paths are str (UTF-8 with surrogateescape, as `os.fsdecode` gives it), bytes or os.PathLike; relative ones begin at
    the root. Symbolic links are followed inside the tree only. What is not there raises the `OSError` that the system
    would (FileNotFoundError, NotADirectoryError, IsADirectoryError, ELOOP) with the path as it was given; a damaged
    index raises `CorruptError`, and so does reading a content that is damaged or not in the store any more. Safe for
    many threads.

    From `Tree`: `lookup(path)` gives an `Entry` or None, `find(path)` an `Entry` or the error.
    """

    def __init__(self, index: Index, contents: ContentStore) -> None:
        self._contents = contents
        self._located: tuple[tuple[int, int], bytes] | None = None

    def __repr__(self) -> str:
        return f"<View of {len(self.index)} paths of {self.index.layer_count} layers>"

    # Many paths

    def lookup_many(self, paths: Iterable[AnyPath], *, follow_symlinks: bool = True) -> NDArray[np.void]:
        """What is at each path, as a numpy structured array: a row for each, in their order.

        Fields: found (bool), type (S1: f d l c b p s as of `Entry.type`, empty where nothing is), mode, uid, gid (u4),
        size (u8, bytes), mtime_ns (i8), layer (i4, 0 at the bottom, -1 where nothing is), record (i4, -1 likewise),
        location (pack u4, slot u4; the pack is `IN_OBJECT` for an object, `NO_CONTENT` for none). A time outside of
        what i8 holds is the nearest that it does.

        Raises `TypeError` for one path.
        """
        import numpy as np

        if isinstance(paths, (str, bytes)):
            raise TypeError(f"lookup_many takes many paths, not the one of {paths!r}; `lookup` takes one")
        paths = tuple(paths)
        rows = np.empty(len(paths), np.dtype(list(ROW_FIELDS), align=True))
        self.fill_rows(paths, follow_symlinks, self._locations(), rows.view(np.uint8).data)
        return rows

    def _locations(self) -> bytes:
        state = self._contents.log_state()
        located = self._located
        if located is None or located[0] != state:
            # Not that of the store, which raises where any content of the image is missing: rows are of metadata, too.
            located = state, self._contents.digests().locate_many(self.index.contents_bytes(), CONTENT_BYTES)
            self._located = located
        return located[1]

    # One path

    def stat(self, path: AnyPath, *, follow_symlinks: bool = True) -> os.stat_result:
        """As `os.stat`; see `Entry.stat` for st_ino, st_dev and times."""
        return self.find(path, follow_symlinks=follow_symlinks).stat()

    def exists(self, path: AnyPath) -> bool:
        """As `os.path.exists`: a link that leads nowhere does not."""
        return self.lookup(path) is not None

    @overload
    def readlink(self, path: str | os.PathLike[str]) -> str: ...
    @overload
    def readlink(self, path: bytes | os.PathLike[bytes]) -> bytes: ...
    def readlink(self, path: AnyPath) -> str | bytes:
        """As `os.readlink`; bytes for a path of bytes. Raises `OSError` with EINVAL where there is no link."""
        target = self.find(path, follow_symlinks=False).target
        if target is None:
            raise _error(errno.EINVAL, path)
        return encode_path(target) if _is_bytes(path) else target

    @overload
    def resolve(self, path: str | os.PathLike[str]) -> str: ...
    @overload
    def resolve(self, path: bytes | os.PathLike[bytes]) -> bytes: ...
    def resolve(self, path: AnyPath) -> str | bytes:
        """Where a path leads: absolute, without links, as `os.path.realpath(path, strict=True)`."""
        found = self.find(path).path
        return encode_path(found) if _is_bytes(path) else found

    # Directories

    @overload
    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]: ...
    @overload
    def listdir(self, path: bytes | os.PathLike[bytes]) -> list[bytes]: ...
    def listdir(self, path: AnyPath = "/") -> list[str] | list[bytes]:
        """As `os.listdir`, ordered as bytes; names in bytes for a path of bytes."""
        names = self.names(self._directory(path))
        return [encode_path(name) for name in names] if _is_bytes(path) else names

    def scandir(self, path: AnyPath = "/") -> Iterator[Entry]:
        """The entries of a directory, ordered by name as bytes; of a link the link (`follow` gives where it leads)."""
        return iter(self.children(self._directory(path)))

    def _directory(self, path: AnyPath) -> Entry:
        entry = self.find(path)
        if not entry.is_dir():
            raise _error(errno.ENOTDIR, path)
        return entry

    @overload
    def walk(
        self, top: str | os.PathLike[str] = "/", *, topdown: bool = True, follow_symlinks: bool = False
    ) -> Iterator[tuple[str, list[str], list[str]]]: ...
    @overload
    def walk(
        self, top: bytes | os.PathLike[bytes], *, topdown: bool = True, follow_symlinks: bool = False
    ) -> Iterator[tuple[bytes, list[bytes], list[bytes]]]: ...
    def walk(self, top: AnyPath = "/", *, topdown: bool = True, follow_symlinks: bool = False) -> Iterator[Any]:
        """As `os.walk`: (directory, names of directories in it, names of the rest), ordered as bytes, and all as bytes
        where `top` is.

        Links to directories count as directories; they are gone into with `follow_symlinks` only, where a link upwards
        is followed up to 40 times. With `topdown`, what the caller leaves in the list of directories is gone into. A
        `top` that is no directory raises, unlike that of `os.walk`.
        """
        is_bytes = _is_bytes(top)
        waiting: list[tuple[Any, Entry] | tuple[Any, list[Any], list[Any]]] = [(os.fspath(top), self._directory(top))]
        while waiting:
            place = waiting.pop()
            if len(place) == 3:
                yield place
                continue
            path, directory = place
            names, others = self._split(directory, is_bytes)
            if topdown:
                yield path, names, others
            else:
                waiting.append((path, names, others))
            for name in reversed(names):
                below = os.path.join(path, name)
                entry = self.lookup(below, follow_symlinks=follow_symlinks)
                if entry is not None and entry.is_dir():
                    waiting.append((below, entry))

    def _split(self, directory: Entry, is_bytes: bool) -> tuple[list[Any], list[Any]]:
        """The names of a directory's entries that are or lead to directories, and those of the others."""
        names: list[Any] = []
        others: list[Any] = []
        for entry in self.children(directory):
            target = self.follow(entry)
            name = encode_path(entry.name) if is_bytes else entry.name
            (names if target is not None and target.is_dir() else others).append(name)
        return names, others

    def glob(self, pattern: str) -> list[str]:
        """The absolute paths that match, sorted, as `glob.glob(pattern, recursive=True)`: wildcards match no leading
        dot, and `**` any number of directories. But a pattern without a leading "/" begins at the root, `**` goes
        through no symbolic link, and a directory found by "x/" or "x/**" has no slash at its end."""
        return glob(self, pattern, hidden=False)

    # Contents

    if TYPE_CHECKING:

        @overload
        def open(
            self, path: AnyPath, mode: Literal["rb", "br"] = "rb", buffering: Literal[-1] = -1
        ) -> io.BufferedReader: ...
        @overload
        def open(
            self,
            path: AnyPath,
            mode: Literal["r", "rt", "tr"],
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
        ) -> io.TextIOWrapper: ...
        @overload
        def open(self, path: AnyPath, mode: str = "rb", buffering: int = -1, encoding: str | None = None,
                 errors: str | None = None, newline: str | None = None) -> IO[Any]: ...  # fmt: skip

    def open(
        self,
        path: AnyPath,
        mode: str = "rb",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """A regular file opened for reading, seekable, as of the built-in `open` (text is UTF-8 unless said otherwise).

        Raises also `OSError` with EROFS for a mode that writes, with ENXIO for devices, FIFOs and sockets,
        `ValueError` for arguments that the built-in refuses.
        """
        options = (encoding, errors, newline)
        text = asks_for_text(mode, buffering, options, path)
        return open_content(self._content(self._contents.find, path), path, text, buffering, options)

    def read_bytes(self, path: AnyPath) -> bytes:
        """The content of a regular file. Raises as `open`."""
        return self._content(self._contents.read, path)

    def read_text(self, path: AnyPath, encoding: str = "utf-8", errors: str = "strict") -> str:
        """The content of a regular file as text, its line ends made "\\n". Raises as `open`; `UnicodeDecodeError`."""
        with self.open(path, "r", encoding=encoding, errors=errors) as file:
            return file.read()

    def read_many(self, paths: Iterable[AnyPath]) -> list[bytes]:
        """The contents of many regular files, in the order of the paths. They are looked up at once and read in the
        order in which they lie in packs, equal ones once. Raises as `open`, before anything is read, for the first
        path that is no regular file."""
        if isinstance(paths, (str, bytes)):
            raise TypeError(f"read_many takes many paths, not the one of {paths!r}; `read_bytes` takes one")
        digests = [self._regular(path).digest for path in paths]
        contents = iter(self._contents.read_many([bytes.fromhex(digest) for digest in digests if digest]))
        return [next(contents) if digest else b"" for digest in digests]

    def _content(self, read: Callable[[bytes], _Read], path: AnyPath) -> _Read | bytes:
        """What `read` gives of the digest of a regular file's content. Raises as `open`."""
        digest = self._regular(path).digest
        if digest is None:
            return b""
        try:
            return read(bytes.fromhex(digest))
        except NotFound:
            raise CorruptError(f"content {digest} of {os.fspath(path)!r} is missing from the store; {RELOAD}") from None

    def _regular(self, path: AnyPath) -> Entry:
        entry = self.find(path)
        if not entry.is_file():
            raise _error(errno.EISDIR if entry.is_dir() else errno.ENXIO, path)
        return entry


def _error(number: int, path: AnyPath) -> OSError:
    return OSError(number, os.strerror(number), os.fspath(path))


def _is_bytes(path: AnyPath) -> bool:
    return isinstance(os.fspath(path), bytes)
