"""Patterns of paths: those of COPY and ADD (Go's filepath.Match, https://pkg.go.dev/path/filepath#Match) and those of
.dockerignore (https://docs.docker.com/build/concepts/context/, "Pattern syntax").

What `**` is differs: in a .dockerignore any number of directories; in COPY and ADD one `*` after another, which is one,
as BuildKit has it. (buildah has it be any number of directories there, too.)
"""

from __future__ import annotations

import functools
import posixpath
import re

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


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
    chunks = [""]
    for kind, letter in _tokens(pattern, stars=False):
        if kind == _SOME:
            chunks.append("")
        else:
            chunks[-1] += letter
    # What stands between two "*" is looked for where it first is, and nowhere else after that: other places would do no
    # better, and trying them takes a time that grows with a power of the length.
    first, *others = chunks
    between = "".join(f"(?>[^/]*?{chunk})" for chunk in others[:-1] if chunk)
    return re.compile(first + between + (f"[^/]*{others[-1]}" if others else ""), re.DOTALL)


_LETTER, _SOME, _EVERYTHING, _DIRECTORIES = range(4)
_REGEX = {_SOME: "[^/]*", _EVERYTHING: ".*", _DIRECTORIES: "(?:.*/)?"}
_FEW_WILDCARDS = 2


class _PathPattern:
    """A pattern of whole paths, in which `**` is any number of directories: at its end with what is in the last one,
    before letters alone ("**.txt") with the beginning of a name. Raises `InvalidInput`."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._tokens: list[tuple[int, str]] = []
        self._regex: re.Pattern[str] | None = None
        self._letters: dict[str, re.Pattern[str]] = {}
        letters = re.split(r"[*?\[\]\\]", pattern)
        self._head = letters[0]
        self.tail = letters[-1].removeprefix("/")  # which a "**" before it is the end of
        """Letters that every path ends with that it matches."""
        self.top = self._head.partition("/")[0] if "/" in self._head else ""
        """The first name of every path that it matches; "" where that may be more than one."""
        if "[" in pattern or "\\" in pattern:
            self._compile()

    def matches(self, path: str) -> bool:
        """Whether it is all of a path."""
        if not path.startswith(self._head):
            return False
        if not self._tokens:
            self._compile()
        if self._regex is not None:
            return self._regex.fullmatch(path) is not None
        # The places that are reached, as bits of one number: each token moves all of them at once.
        where = {
            letter: _bits(found.start() for found in regex.finditer(path)) for letter, regex in self._letters.items()
        }
        slashes = _bits(at for at, letter in enumerate(path) if letter == "/")
        names = (1 << len(path)) - 1 & ~slashes
        reached = 1
        for kind, letter in self._tokens:
            after_first = -(reached & -reached)
            if kind == _LETTER:
                reached = (reached & where[letter]) << 1
            elif kind == _SOME:
                reached |= ((reached & names) + names) ^ names
            elif kind == _EVERYTHING:
                reached = after_first & ((1 << len(path) + 1) - 1)
            else:
                reached |= slashes << 1 & after_first << 1
            if not reached:
                return False
        return bool(reached >> len(path) & 1)

    def _compile(self) -> None:
        tokens = list(_tokens(self._pattern, stars=True))
        # What `re` needs grows with the length of a path to the power of the wildcards.
        if sum(kind != _LETTER for kind, _ in tokens) <= _FEW_WILDCARDS:
            self._regex = re.compile("".join(_REGEX.get(kind) or letter for kind, letter in tokens), re.DOTALL)
        else:
            self._letters = {letter: re.compile(letter, re.DOTALL) for kind, letter in tokens if kind == _LETTER}
        self._tokens = tokens  # last: another stage's thread that finds them takes the rest for made


def _bits(places: Iterable[int]) -> int:
    return functools.reduce(int.__or__, (1 << place for place in places), 0)


def _is_special(pattern: str) -> bool:
    """Whether anything in it is not a letter that stands for itself."""
    return any(letter in pattern for letter in "*?[]\\")


def _tokens(pattern: str, *, stars: bool) -> Iterator[tuple[int, str]]:
    """What a pattern is made of: wildcards, and letters as regular expressions. `stars`: `**` has a meaning."""
    at = 0
    while at < len(pattern):
        letter = pattern[at]
        if stars and pattern.startswith("**", at):
            rest = pattern[at + 2 :]
            ends_a_name = not at and not rest.startswith("/") and not _is_special(rest)
            at += 2 + rest.startswith("/")
            yield (_EVERYTHING if ends_a_name or at == len(pattern) else _DIRECTORIES), ""
            continue
        if letter == "[":
            part, at = _class(pattern, at)
            yield _LETTER, part
            continue
        if letter == "*":
            yield _SOME, ""
        elif letter == "?":
            yield _LETTER, "[^/]"
        elif letter == "\\":
            at += 1
            if at == len(pattern):
                raise InvalidInput(f"the pattern {pattern!r} ends in an escape")
            yield _LETTER, re.escape(pattern[at])
        else:
            yield _LETTER, re.escape(letter)
        at += 1


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
        self._keeps: list[bool] = []  # of each pattern
        self._paths: dict[str, int] = {}  # patterns that are paths, and the last place where each stands
        # The others, by what a path has to begin and end with: of many patterns few are tried then.
        self._wild: dict[tuple[str, str], list[tuple[int, _PathPattern]]] = {}
        self._last: dict[str, int] = {"": -1}  # of directories: the last pattern that matches one or what is above it
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
                if _is_special(pattern):
                    wild = _PathPattern(pattern)
                    self._wild.setdefault((wild.top, wild.tail), []).append((len(self._keeps), wild))
                else:
                    self._paths[pattern] = len(self._keeps)
            except InvalidInput as error:
                raise InvalidInput(f"{name}:{number}: {error}") from None
            self._keeps.append(keeps)
        self._tail_lengths = {len(tail) for _, tail in self._wild}
        self.keeps_some = any(self._keeps)
        """Whether something may be kept in a directory that is left out."""

    def __bool__(self) -> bool:
        return bool(self._keeps)

    def leaves_out(self, path: str) -> bool:
        """Whether a path of the context (relative, clean) is left out."""
        if not path:
            return False
        below = []  # the path, and what is above it of which nothing is known
        above = path
        while above not in self._last:
            below.append(above)
            above = posixpath.dirname(above)
        last = self._last[above]
        for at in reversed(below):
            last = self._match(at, last)
            if at != path:
                self._last[at] = last
        return last >= 0 and not self._keeps[last]

    def _match(self, path: str, last: int) -> int:
        """The last pattern that matches a path, if it is after `last`; or else that."""
        last = max(last, self._paths.get(path, -1))
        top = path.partition("/")[0]
        for length in self._tail_lengths:
            tail = path[len(path) - length :] if length <= len(path) else None
            for key in ("", tail), (top, tail):
                for number, pattern in reversed(self._wild.get(key, ())):  # type: ignore[arg-type]
                    if number <= last:
                        break
                    if pattern.matches(path):
                        last = number
                        break
        return last
