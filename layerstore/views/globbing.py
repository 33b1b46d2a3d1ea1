"""Paths that match a pattern, by listing only the directories in which something may."""

from __future__ import annotations

import fnmatch
import functools
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore._core.entry import Entry
    from layerstore._core.view import Tree

_MAGIC = re.compile(r"[*?[]")


def glob(tree: Tree, pattern: str, *, hidden: bool, below: str = "/") -> list[str]:
    """The absolute paths below a directory that match, as they are spelled in the pattern, sorted; each once.

    `*`, `?` and `[...]` match within a component, `**` as a whole component any number of directories, which are
    not followed through symbolic links. A pattern that ends in "/" matches directories only. hidden: whether a
    wildcard also matches names that begin with a dot (where the component of the pattern does not begin with one).
    """
    parts = [part for part in pattern.split("/") if part not in ("", ".")]
    start = tree.lookup(below)
    if start is None or not pattern:
        return []
    if pattern.endswith(("/", "/.")):
        parts.append(".")
    found = {path for path, _ in _match(tree, [(below.rstrip("/"), start)], parts, hidden)}
    return sorted(path or "/" for path in found)


def _match(tree: Tree, places: list[tuple[str, Entry]], parts: list[str], hidden: bool) -> list[tuple[str, Entry]]:
    """Paths (without the slash of the root alone) and entries that the parts lead to from the places."""
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        step = _recursive if part == "**" else _wild if _MAGIC.search(part) else _literal
        places = list({found[0]: found for place in places for found in step(tree, place, part, last, hidden)}.values())
    return places


def _directory(tree: Tree, entry: Entry) -> Entry | None:
    """The directory that an entry is or leads to."""
    target = tree.follow(entry)
    return target if target is not None and target.is_dir() else None


def _literal(
    tree: Tree, place: tuple[str, Entry], part: str, _last: bool, _hidden: bool
) -> Iterator[tuple[str, Entry]]:
    path = f"{place[0]}/{part}" if part != "." else f"{place[0]}/"
    entry = tree.lookup(path, follow_symlinks=False)
    if entry is not None:
        yield path.rstrip("/"), entry


def _wild(tree: Tree, place: tuple[str, Entry], part: str, last: bool, hidden: bool) -> Iterator[tuple[str, Entry]]:
    directory = _directory(tree, place[1])
    if directory is None:
        return
    matches = _matcher(part)
    shows = hidden or part.startswith(".")
    for entry in tree.children(directory):
        name = entry.name
        if (shows or not name.startswith(".")) and matches(name) and (last or not entry.is_file()):
            yield f"{place[0]}/{name}", entry


def _recursive(
    tree: Tree, place: tuple[str, Entry], _part: str, last: bool, hidden: bool
) -> Iterator[tuple[str, Entry]]:
    """The directory itself and everything below it; directories only where more of the pattern comes."""
    path, directory = place[0], _directory(tree, place[1])
    if directory is None:
        return
    yield place
    waiting = [(path, directory)]
    while waiting:
        path, directory = waiting.pop()
        for entry in tree.children(directory):
            name = entry.name
            if not hidden and name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append((f"{path}/{name}", entry))
            if entry.is_dir() or last:
                yield f"{path}/{name}", entry


@functools.lru_cache(maxsize=256)
def _matcher(part: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(fnmatch.translate(part)).match
