"""Paths in an image that know how to look at what is there, in the manner of `pathlib`."""

from __future__ import annotations

import errno
import functools
import os
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, overload

from layerstore.views.globbing import glob

if TYPE_CHECKING:
    import io
    from collections.abc import Iterator, Sequence
    from typing import IO, Any, Literal, TypeAlias

    from layerstore._core.entry import Entry
    from layerstore.views.view import View

    Segment: TypeAlias = "str | PurePosixPath"


@functools.total_ordering
class ImagePath:
    """An absolute path in a view, read-only: the methods of `pathlib.Path` that read, and nothing that writes.

    It is no `os.PathLike`, since it is no path of this machine: `open(path)` would open something else. Equal are
    equal paths of the same view. Methods raise the errors of `View`.
    """

    __slots__ = ("_path", "_view")

    def __init__(self, view: View, path: Segment = "/") -> None:
        self._view = view
        # PurePosixPath keeps two slashes at the beginning, which POSIX leaves to the system; for Linux they are one.
        self._path = PurePosixPath("/" + os.fspath(path).lstrip("/"))

    # What it is called

    def __str__(self) -> str:
        return str(self._path)

    def __repr__(self) -> str:
        return f"ImagePath({str(self)!r})"

    def as_posix(self) -> str:
        """As `str`."""
        return str(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImagePath):
            return NotImplemented
        return self._view is other._view and self._path == other._path

    def __hash__(self) -> int:
        return hash((id(self._view), self._path))

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, ImagePath) or other._view is not self._view:
            return NotImplemented
        return self._path < other._path

    @property
    def parts(self) -> tuple[str, ...]:
        """Its components, the first of them "/"."""
        return self._path.parts

    @property
    def name(self) -> str:
        """The last component; "" of the root."""
        return self._path.name

    @property
    def stem(self) -> str:
        """The name without its last suffix."""
        return self._path.stem

    @property
    def suffix(self) -> str:
        """The end of the name from its last dot on, or ""."""
        return self._path.suffix

    @property
    def suffixes(self) -> list[str]:
        """The suffixes of the name."""
        return self._path.suffixes

    @property
    def parent(self) -> ImagePath:
        """The path without its last component, links not looked at; the root of the root."""
        return self._at(self._path.parent)

    @property
    def parents(self) -> Sequence[ImagePath]:
        """The parent, its parent, and so on to the root."""
        return [self._at(parent) for parent in self._path.parents]

    def _at(self, path: Segment) -> ImagePath:
        return ImagePath(self._view, path)

    def __truediv__(self, segment: Segment) -> ImagePath:
        return self._at(self._path / segment)

    def joinpath(self, *segments: Segment) -> ImagePath:
        """The path with components added; an absolute one begins at the root again."""
        return self._at(self._path.joinpath(*segments))

    def with_name(self, name: str) -> ImagePath:
        """With another last component. Raises `ValueError` as pathlib does."""
        return self._at(self._path.with_name(name))

    def with_stem(self, stem: str) -> ImagePath:
        """With another stem. Raises `ValueError` as pathlib does."""
        return self._at(self._path.with_stem(stem))

    def with_suffix(self, suffix: str) -> ImagePath:
        """With another suffix. Raises `ValueError` as pathlib does."""
        return self._at(self._path.with_suffix(suffix))

    def relative_to(self, other: Segment | ImagePath) -> PurePosixPath:
        """The rest of the path below another. Raises `ValueError` where it is not below it."""
        return self._path.relative_to(str(other))

    def is_relative_to(self, other: Segment | ImagePath) -> bool:
        """Whether it is below another path, or the same."""
        return self._path.is_relative_to(str(other))

    def is_absolute(self) -> bool:
        """True."""
        return True

    def match(self, pattern: str) -> bool:
        """Whether it matches a pattern of shell wildcards, from the right, as pathlib does it."""
        return self._path.match(pattern)

    # What is there

    def _lookup(self, *, follow_symlinks: bool = True) -> Entry | None:
        return self._view.lookup(self._path, follow_symlinks=follow_symlinks)

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether there is something."""
        return self._lookup(follow_symlinks=follow_symlinks) is not None

    def is_file(self) -> bool:
        """Whether it is or leads to a regular file."""
        entry = self._lookup()
        return entry is not None and entry.is_file()

    def is_dir(self) -> bool:
        """Whether it is or leads to a directory."""
        entry = self._lookup()
        return entry is not None and entry.is_dir()

    def is_symlink(self) -> bool:
        """Whether it is a symbolic link."""
        entry = self._lookup(follow_symlinks=False)
        return entry is not None and entry.is_symlink()

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """As `View.stat`."""
        return self._view.stat(self._path, follow_symlinks=follow_symlinks)

    def lstat(self) -> os.stat_result:
        """As `stat`, of a link the link."""
        return self.stat(follow_symlinks=False)

    def samefile(self, other: Segment | ImagePath) -> bool:
        """Whether both lead to the same inode."""
        if not isinstance(other, ImagePath):
            other = self._at(other)
        return os.path.samestat(self.stat(), other.stat())

    def readlink(self) -> PurePosixPath:
        """What a symbolic link holds, which may be relative."""
        return PurePosixPath(self._view.readlink(self._path))

    def resolve(self, strict: bool = False) -> ImagePath:
        """Where it leads, without links and "..". What is not there stays as it is spelled, behind where the last that
        is there leads, unless `strict`; then, and for a loop of links, it raises `OSError`."""
        rest: list[str] = []
        place = self._path
        while True:
            try:
                return self._at(os.path.normpath(os.path.join(self._view.resolve(str(place)), *rest)))
            except OSError as error:
                if strict or error.errno not in (errno.ENOENT, errno.ENOTDIR):
                    raise
            rest.insert(0, place.name)
            place = place.parent

    # Directories

    def iterdir(self) -> Iterator[ImagePath]:
        """The paths in a directory, ordered by name as bytes."""
        return (self / name for name in self._view.listdir(self._path))

    def glob(self, pattern: str) -> Iterator[ImagePath]:
        """The paths below that match, sorted, each once. As pathlib does it, wildcards match names that begin with a
        dot; `**` goes through no symbolic link, and at the end it matches files, too (as from Python 3.13 on).

        Raises `ValueError` for an empty pattern, `NotImplementedError` for an absolute one.
        """
        if not pattern:
            raise ValueError(f"Unacceptable pattern: {pattern!r}")
        if pattern.startswith("/"):
            raise NotImplementedError("Non-relative patterns are unsupported")
        return map(self._at, glob(self._view, pattern, hidden=True, below=str(self)))

    def rglob(self, pattern: str) -> Iterator[ImagePath]:
        """As `glob` with "**/" before the pattern."""
        return self.glob(f"**/{pattern}")

    def walk(
        self, top_down: bool = True, follow_symlinks: bool = False
    ) -> Iterator[tuple[ImagePath, list[str], list[str]]]:
        """As `View.walk`, with paths."""
        for path, directories, others in self._view.walk(str(self), topdown=top_down, follow_symlinks=follow_symlinks):
            yield self._at(path), directories, others

    # Contents

    if TYPE_CHECKING:

        @overload
        def open(
            self,
            mode: Literal["r", "rt", "tr"] = "r",
            buffering: int = -1,
            encoding: str | None = None,
            errors: str | None = None,
            newline: str | None = None,
        ) -> io.TextIOWrapper: ...
        @overload
        def open(self, mode: Literal["rb", "br"], buffering: Literal[-1] = -1) -> io.BufferedReader: ...
        @overload
        def open(self, mode: str, buffering: int = -1, encoding: str | None = None, errors: str | None = None,
                 newline: str | None = None) -> IO[Any]: ...  # fmt: skip

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """As `View.open`; text unless the mode says "b"."""
        return self._view.open(self._path, mode, buffering, encoding, errors, newline)

    def read_bytes(self) -> bytes:
        """As `View.read_bytes`."""
        return self._view.read_bytes(self._path)

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """As `View.read_text`."""
        return self._view.read_text(self._path, encoding, errors)
