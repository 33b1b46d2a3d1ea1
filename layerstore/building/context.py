"""A build's context: the directory that COPY and ADD read. Nothing is read outside of it, whatever its links say."""

from __future__ import annotations

import os
import stat

from layerstore.building.hostfiles import HostDirectory
from layerstore.building.patterns import Ignored, component_regex, without_top
from layerstore.errors import InvalidInput, NotFound
from layerstore.limits import DEFAULT, beyond
from layerstore.naming import about
from layerstore.types import encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.limits import Limits
    from layerstore.trees.entries import Entry

_MOST_BYTES = 4  # that a letter of a name has
_SHOWN = 200


class Context:
    """The files of a directory that its .dockerignore does not leave out; all belong to root. A context manager.

    Its methods raise `Conflict` where what they found before is something else when they come back to it.
    """

    def __init__(self, root: str, limits: Limits = DEFAULT) -> None:
        self._files = HostDirectory(root)
        self._limits = limits
        self._ignored = Ignored((), "")
        self._kept: dict[str, bool] = {}  # of directories that are left out themselves: is something in them kept?

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.__exit__()

    def read(self, path: str) -> bytes:
        """A Dockerfile or .dockerignore that the caller named by a path of the host, one byte more than the limit at
        most. One in the context is looked up in there, as everything of it.

        Raises `FileNotFoundError`, `InvalidInput`, `OSError`.
        """
        max_bytes = self._limits.dockerfile_bytes + 1
        inside = self._inside(path)
        if inside is not None:
            return self._files.read(inside, max_bytes)
        with about(path), open(path, "rb") as file:
            return file.read(max_bytes)

    def _inside(self, path: str) -> str | None:
        """A path of the host as one below the context; None for another."""
        for top in (os.path.abspath(self._files.path), os.path.realpath(self._files.path)):
            relative = os.path.relpath(os.path.abspath(path), top)
            if relative.split("/", 1)[0] != "..":
                return relative
        return None

    def leave_out(self, path: str) -> bool:
        """Have what a .dockerignore says be left out; False where there is none. Raises `InvalidInput`,
        `LimitExceeded`, `NotFound` where it is a link that leads to nothing in the context, `OSError`."""
        try:
            data = self.read(path)
        except FileNotFoundError:
            return False
        if len(data) > self._limits.dockerfile_bytes:
            raise beyond(f"{path} is too large", self._limits, "dockerfile_bytes")
        lines = data.decode("utf-8", "surrogateescape").splitlines()
        self._ignored = Ignored(lines, os.path.basename(path))
        return True

    def resolve(self, path: str) -> str:
        """Where a path leads, links followed inside the context: relative, without links, "" for the context itself.

        Raises `NotFound` where nothing is, or what is there is left out; `InvalidInput` where the path begins outside.
        """
        self._check_inside(path)
        try:
            found = self._files.resolve(path)
        except (FileNotFoundError, NotADirectoryError):
            raise self._missing(path) from None
        if not self._is_shown(found):
            raise self._missing(path)
        return found

    def _check_inside(self, path: str) -> None:
        if ".." in path.split("/") and os.path.normpath(path.lstrip("/")).startswith(".."):
            raise InvalidInput(f"{path} is outside of the build context; give what is in {self._files.path}")

    def _missing(self, path: str) -> NotFound:
        return NotFound(f"{path} is not in the build context {self._files.path}, or its .dockerignore leaves it out")

    def match(self, pattern: str) -> list[str]:
        """The paths that match a pattern, sorted, spelled without links: see `without_top`. Raises `InvalidInput`."""
        self._check_inside(pattern)
        top, parts = without_top(pattern)
        try:
            found = [self.resolve(top)]
        except NotFound:
            return []
        for part in parts:
            matches = component_regex(part).fullmatch
            found = [path for directory in found for path in self._paths(directory) if matches(os.path.basename(path))]
        return [path for path in sorted(found) if self._is_shown(path)]

    def _paths(self, directory: str) -> list[str]:
        return self._joined(directory, self._files.names(directory))

    def _joined(self, directory: str, names: Iterable[str]) -> list[str]:
        """The paths of names in a directory. Raises `LimitExceeded`."""
        paths = [f"{directory}/{name}" if directory else name for name in names]
        for path in paths:
            if len(path) > self._limits.path_bytes // _MOST_BYTES and len(encode_path(path)) > self._limits.path_bytes:
                has = f"{self._files.shown(path)[:_SHOWN]}... of the build context has {len(encode_path(path))} bytes"
                raise beyond(has, self._limits, "path_bytes")
        return paths

    def _is_shown(self, path: str) -> bool:
        return not self._ignored.leaves_out(path) or (self._ignored.keeps_some and self._has_kept(path))

    def _has_kept(self, path: str) -> bool:
        """Is something kept in a directory that is left out itself?"""
        known = self._kept.get(path)
        if known is not None:
            return known
        above = [(path, iter(self._paths(path)))]
        while above:
            at, children = above[-1]
            child = next(children, None)
            if child is None:
                self._kept[at] = False
                above.pop()
                continue
            known = self._kept.get(child) if self._ignored.leaves_out(child) else True
            if known:
                self._kept.update((each, True) for each, _ in above)
                return True
            if known is None:
                above.append((child, iter(self._paths(child))))
        return False

    def below(self, path: str) -> Iterator[Entry]:
        """What is at a path that `resolve` gave, and all below it, each directory before what is in it, by name.

        Paths of the entries are those of the context. Sockets are left out. Raises `LimitExceeded`, `OSError`.
        """
        waiting = [path]
        while waiting:
            path = waiting.pop()
            if path and not self._is_shown(path):
                continue
            entry, names = self._files.look(path)
            if stat.S_ISSOCK(entry.mode):
                continue
            yield entry
            waiting += self._joined(path, sorted(names, key=encode_path, reverse=True))


def open_context(root: str, dockerfile: str | None, limits: Limits = DEFAULT) -> Context:
    """The context in a directory, with the .dockerignore that holds for a Dockerfile: one beside it, named after it
    ("Dockerfile.dockerignore"), or else the directory's.

    Raises `NotFound` where there is no such directory, `InvalidInput` where a pattern is none, `LimitExceeded`,
    `OSError`.
    """
    if not os.path.isdir(root):
        raise NotFound(f"there is no directory {root!r} to build from; give the one that COPY is to read")
    context = Context(root, limits)
    try:
        if dockerfile is None or not context.leave_out(f"{dockerfile}.dockerignore"):
            context.leave_out(f"{root}/.dockerignore")
    except BaseException:
        context.__exit__()
        raise
    return context
