"""Patterns of paths: those of COPY and ADD (Go's filepath.Match, https://pkg.go.dev/path/filepath#Match) and those of
.dockerignore (https://docs.docker.com/build/concepts/context/, "Pattern syntax")."""

from __future__ import annotations

import posixpath
import re

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def has_wildcards(pattern: str) -> bool:
    """Whether it is a pattern and not a path."""
    escaped = False
    for letter in pattern:
        if letter in "*?[" and not escaped:
            return True
        escaped = letter == "\\" and not escaped
    return False


def without_top(pattern: str) -> tuple[str, list[str]]:
    """The path that a pattern begins with, and the components after it, the first of which has a wildcard.

    Links on the way of the path are followed, as BuildKit does, and none where the wildcards are.
    """
    parts = posixpath.normpath("/" + pattern).strip("/").split("/")
    count = next((count for count, part in enumerate(parts) if "\\" in part or has_wildcards(part)), len(parts))
    return "/".join(parts[:count]), parts[count:]


def component_regex(pattern: str) -> re.Pattern[str]:
    """What a component of a pattern matches. Raises `InvalidInput`."""
    return re.compile(_translated(pattern, stars=False), re.DOTALL)


def _translated(pattern: str, *, stars: bool) -> str:
    """A pattern as a regular expression; `stars`: `**` is any number of directories."""
    result, at = "", 0
    while at < len(pattern):
        letter = pattern[at]
        if stars and pattern.startswith("**", at):
            at += 2
            if pattern.startswith("/", at):
                at += 1
                result += "(?:.*/)?"
            else:
                result += ".*"
            continue
        if letter == "*":
            result += "[^/]*"
        elif letter == "?":
            result += "[^/]"
        elif letter == "[":
            part, at = _class(pattern, at)
            result += part
            continue
        elif letter == "\\":
            at += 1
            if at == len(pattern):
                raise InvalidInput(f"the pattern {pattern!r} ends in an escape")
            result += re.escape(pattern[at])
        else:
            result += re.escape(letter)
        at += 1
    return result


def _class(pattern: str, at: int) -> tuple[str, int]:
    """The class that begins at a "[", and where it ends."""
    start, at = at, at + 1
    negated = pattern.startswith("^", at)
    at += negated
    ranges = ""
    while at < len(pattern) and (pattern[at] != "]" or not ranges):
        low, at = _class_letter(pattern, at)
        high = low
        if pattern.startswith("-", at):
            high, at = _class_letter(pattern, at + 1)
        if low > high:
            raise InvalidInput(f"the pattern {pattern!r} has a range from {low!r} to {high!r}, which is none")
        ranges += f"{re.escape(low)}-{re.escape(high)}"
    if at >= len(pattern) or not ranges:
        raise InvalidInput(f"the pattern {pattern!r} has no end of {pattern[start:]!r}")
    return f"(?!/)[{'^' if negated else ''}{ranges}]", at + 1


def _class_letter(pattern: str, at: int) -> tuple[str, int]:
    if pattern[at : at + 1] in ("", "-", "]"):
        raise InvalidInput(f"the pattern {pattern!r} has a class with {pattern[at : at + 1]!r} where a letter comes")
    at += pattern[at] == "\\"
    if at == len(pattern):
        raise InvalidInput(f"the pattern {pattern!r} ends in an escape")
    return pattern[at], at + 1


class Ignored:
    """What a .dockerignore leaves out of a context: the last pattern that matches a path, or one above it, says."""

    def __init__(self, lines: Iterable[str], name: str) -> None:
        """`name` begins the messages. Raises `InvalidInput`."""
        self._patterns: list[tuple[bool, re.Pattern[str]]] = []
        for number, line in enumerate(lines, 1):
            pattern = line.strip()
            if number == 1:
                pattern = pattern.removeprefix("\ufeff")
            if not pattern or line.startswith("#"):
                continue
            keeps = pattern.startswith("!")
            pattern = pattern[1:].strip() if keeps else pattern
            if not pattern:
                raise InvalidInput(f"{name}:{number}: there is no pattern after the '!'")
            pattern = posixpath.normpath(pattern).lstrip("/")
            if not pattern:
                continue
            try:
                regex = re.compile(_translated(pattern, stars=True), re.DOTALL)
            except InvalidInput as error:
                raise InvalidInput(f"{name}:{number}: {error}") from None
            self._patterns.append((keeps, regex))
        self.keeps_some = any(keeps for keeps, _ in self._patterns)
        """Whether something may be kept in a directory that is left out."""

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def leaves_out(self, path: str) -> bool:
        """Whether a path of the context (relative, clean) is left out."""
        if not path:
            return False
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]
        out = False
        for keeps, regex in self._patterns:
            if keeps == out and any(regex.fullmatch(prefix) for prefix in prefixes):
                out = not keeps
        return out
