"""Words of a Dockerfile's instructions: quoting and variables, by the rules of the Dockerfile reference
(https://docs.docker.com/reference/dockerfile/, "Environment replacement" and "ENV")."""

from __future__ import annotations

from layerstore.errors import InvalidInput, LimitExceeded

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Iterator, Mapping

_BLANK = " \t\n\r"
_NAME_START = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_DIGITS = "0123456789"
_SPECIAL = "@*#?-$!"
_DEPTH_LIMIT = 50
EXPANDED_LIMIT = 1 << 20
"""Letters of a text whose variables are replaced: Linux hands a program at most 128 KiB in one string. Without a limit
twenty lines that each double a variable would fill the memory."""


def split_words(text: str, escape: str = "\\") -> list[str]:
    """The words of a line, with their quotes and escapes: blanks separate, but not within quotes or after an escape."""
    return [word for word, _ in words_and_ends(text, escape)]


def words_and_ends(text: str, escape: str) -> Iterator[tuple[str, int]]:
    """The same words, each with the place in the text where it ends."""
    word, quote, at = "", "", 0
    while at < len(text):
        letter = text[at]
        if letter == escape and quote != "'" and at + 1 < len(text):
            word += text[at : at + 2]
            at += 2
            continue
        at += 1
        if not quote and letter in _BLANK:
            if word:
                yield word, at - 1
            word = ""
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        word += letter
    if word:
        yield word, at


def pairs(text: str, what: str, escape: str = "\\") -> list[tuple[str, str]]:
    """The `KEY=VALUE …` or the one `KEY VALUE` of ENV and LABEL, quotes and variables as they are.

    Raises `InvalidInput`, which `what`, the instruction, begins.
    """
    words = split_words(text, escape)
    if not words:
        raise InvalidInput(f"{what} needs KEY=VALUE")
    if "=" not in words[0]:
        value = text.strip()[len(words[0]) :].strip()
        if not value:
            raise InvalidInput(f"{what} {text.strip()}: there is no value; it is KEY=VALUE")
        return [(words[0], value)]
    found = []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise InvalidInput(f"{what}: {word!r} is not KEY=VALUE; put a value with blanks in quotes")
        found.append((key, value))
    return found


def expand(text: str, variables: Mapping[str, str], escape: str = "\\", *, keeps_quotes: bool = False) -> str:
    """A word without its quotes and escapes, its variables replaced; one that is not set is empty.

    `$NAME`, `${NAME}`, `${NAME:-WORD}`, `${NAME-WORD}`, `${NAME:+WORD}`, `${NAME+WORD}`, `${NAME:?WORD}`,
    `${NAME?WORD}`; and with patterns of `*` and `?`: `${NAME#PATTERN}` and `##` without the shortest and longest
    beginning that is like it, `%` and `%%` without such an end, `${NAME/PATTERN/WORD}` and `//` with the first or each
    of its longest matches replaced. Nothing within single quotes. Raises `InvalidInput`, and `LimitExceeded` for what
    has more than `EXPANDED_LIMIT` letters.

    keeps_quotes: quotes are letters like others (a heredoc), and an escape is one but before "$" and itself.
    """
    expanded = _Expansion(text, variables, escape, keeps_quotes).until("")
    if len(expanded) > max(len(text), EXPANDED_LIMIT):
        raise LimitExceeded(f"with its variables {text[:80]!r} has more than {EXPANDED_LIMIT} letters")
    return expanded


class _Expansion:
    def __init__(self, text: str, variables: Mapping[str, str], escape: str, keeps_quotes: bool) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._keeps_quotes = keeps_quotes
        self._at = 0
        self._depth = 0

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _next(self) -> str:
        letter = self._peek()
        self._at += 1
        return letter

    def _passes(self, letter: str) -> bool:
        """Whether that is the next letter; it is passed over then."""
        found = self._peek() == letter
        self._at += found
        return found

    def until(self, end: str, *, keeps_escapes: bool = False) -> str:
        """Up to the letter `end`, which is passed over, or to the end of the text where it is empty."""
        result = ""
        while letter := self._peek():
            if letter == end:
                self._at += 1
                return result
            if letter == "'" and not self._keeps_quotes:
                result += self._single()
            elif letter == '"' and not self._keeps_quotes:
                result += self._double()
            elif letter == "$":
                result += self._variable()
            else:
                self._at += 1
                if letter == self._escape and (not self._keeps_quotes or self._peek() in ("$", self._escape)):
                    letter = self._escape * keeps_escapes + self._next()
                result += letter
        if end:
            raise InvalidInput(f"{self._text!r}: {end!r} is missing")
        return result

    def _single(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise InvalidInput(f"{self._text!r}: a single quote is not closed")
        quoted = self._text[self._at + 1 : end]
        self._at = end + 1
        return quoted

    def _double(self) -> str:
        self._at += 1
        result = ""
        while letter := self._peek():
            if letter == '"':
                self._at += 1
                return result
            if letter == "$":
                result += self._variable()
                continue
            self._at += 1
            # Within double quotes an escape stands for itself unless it stands before one of these.
            if letter == self._escape and self._peek() in ('"', "$", self._escape):
                letter = self._next()
            result += letter
        raise InvalidInput(f"{self._text!r}: a double quote is not closed")

    def _name(self) -> str:
        first = self._peek()
        if first and first in _DIGITS + _SPECIAL:
            self._at += 1
            return first
        start = self._at
        while self._peek() and self._peek() in _NAME_START + (_DIGITS if self._at > start else ""):
            self._at += 1
        return self._text[start : self._at]

    def _variable(self) -> str:
        if self._depth == _DEPTH_LIMIT:
            raise LimitExceeded(f"variables are nested more than {_DEPTH_LIMIT} deep: {self._text[:80]!r}")
        self._depth += 1
        value = self._value()
        self._depth -= 1
        if len(value) > EXPANDED_LIMIT:
            raise LimitExceeded(f"a variable has more than {EXPANDED_LIMIT} letters: {self._text[:80]!r}")
        return value

    def _value(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._name()
            return self._variables.get(name, "") if name else "$"
        self._at += 1
        name = self._name()
        modifier = self._next()
        if not name or not modifier:
            raise InvalidInput(f"{self._text!r}: this is not ${{NAME}}")
        value = self._variables.get(name)
        if modifier == "}":
            return value or ""
        if modifier in "#%":
            is_longest = self._passes(modifier)
            chunks = _chunks(self.until("}", keeps_escapes=True), self._escape)
            return _trimmed(value or "", chunks, modifier == "%", is_longest)
        if modifier == "/":
            is_all = self._passes("/")
            chunks = _chunks(self.until("/", keeps_escapes=True), self._escape)
            return _replaced(value or "", chunks, self.until("}"), is_all)
        if modifier == ":":
            value = value or None
            modifier = self._next()
        if not modifier or modifier not in "-+?":
            raise InvalidInput(
                f"{self._text!r}: {modifier!r} is no modifier of ${{{name}}}; there are :- :+ :? - + ? # ## % %% / //"
            )
        word = self.until("}")
        if modifier == "+":
            return "" if value is None else word
        if value is None and modifier == "?":
            raise InvalidInput(f"{self._text!r}: {name} is not set: {word}" if word else f"{name} is not set")
        return word if value is None else value


def _chunks(pattern: str, escape: str) -> list[list[str]]:
    """What stands between the "*" of a pattern, each letter as a regular expression."""
    import re

    chunks: list[list[str]] = [[]]
    letters = iter(pattern)
    for letter in letters:
        if letter == "*":
            chunks.append([])
        else:
            chunks[-1].append(
                "." if letter == "?" else re.escape(next(letters, escape) if letter == escape else letter)
            )
    return chunks


def _compiled(chunks: list[list[str]], is_longest: bool = True) -> re.Pattern[str]:
    """A chunk between two "*" is looked for where it first is, and nowhere else after that: other places would do no
    better, and trying them takes a time that grows with a power of the length."""
    import re

    first, *others = map("".join, chunks)
    between = "".join(f"(?>.*?{chunk})" for chunk in others[:-1] if chunk)
    last = f".*{'' if is_longest else '?'}{others[-1]}" if others else ""
    return re.compile(first + between + last, re.DOTALL)


def _trimmed(value: str, chunks: list[list[str]], at_end: bool, is_longest: bool) -> str:
    if at_end:
        value, chunks = value[::-1], [chunk[::-1] for chunk in reversed(chunks)]
    found = _compiled(chunks, is_longest).match(value)
    rest = value[found.end() :] if found else value
    return rest[::-1] if at_end else rest


def _replaced(value: str, chunks: list[list[str]], word: str, is_all: bool) -> str:
    first, others = _compiled(chunks[:1]), _compiled([[], *chunks[1:]]) if chunks[1:] else _compiled([[]])
    result, at = "", 0
    while found := first.search(value, at):
        rest = others.match(value, found.end())
        # What does not follow the first place where the pattern may begin follows no later one.
        if rest is None or rest.end() == found.start():
            break
        result += value[at : found.start()] + word
        at = rest.end()
        if not is_all or len(result) > EXPANDED_LIMIT:
            break
    return result + value[at:]
