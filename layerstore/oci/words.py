"""Words of a Dockerfile's instructions: quoting and variables, by the rules of the Dockerfile reference
(https://docs.docker.com/reference/dockerfile/, "Environment replacement" and "ENV")."""

from __future__ import annotations

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import re
    from collections.abc import Mapping

_BLANK = " \t\n\r"
_NAME_START = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
_DIGITS = "0123456789"
_SPECIAL = "@*#?-$!"


def split_words(text: str, escape: str = "\\") -> list[str]:
    """The words of a line, with their quotes and escapes: blanks separate, but not within quotes or after an escape."""
    words: list[str] = []
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
                words.append(word)
            word = ""
            continue
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        word += letter
    return [*words, word] if word else words


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
    of its longest matches replaced. Nothing within single quotes. Raises `InvalidInput`.

    keeps_quotes: quotes are letters like others (a heredoc), and an escape is one but before "$" and itself.
    """
    return _Expansion(text, variables, escape, keeps_quotes).until("")


class _Expansion:
    def __init__(self, text: str, variables: Mapping[str, str], escape: str, keeps_quotes: bool) -> None:
        self._text = text
        self._variables = variables
        self._escape = escape
        self._keeps_quotes = keeps_quotes
        self._at = 0

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
            pattern = _compiled(self.until("}", keeps_escapes=True), self._escape)
            return _trimmed(value or "", pattern, modifier == "%", is_longest)
        if modifier == "/":
            count = 0 if self._passes("/") else 1
            pattern = _compiled(self.until("/", keeps_escapes=True), self._escape)
            word = self.until("}")
            return pattern.sub(lambda match: word if match[0] else "", value or "", count)
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


def _compiled(pattern: str, escape: str) -> re.Pattern[str]:
    import re

    result = ""
    letters = iter(pattern)
    for letter in letters:
        if letter == escape:
            result += re.escape(next(letters, escape))
        else:
            result += {"*": ".*", "?": "."}.get(letter) or re.escape(letter)
    return re.compile(result, re.DOTALL)


def _trimmed(value: str, pattern: re.Pattern[str], at_end: bool, is_longest: bool) -> str:
    sizes = range(len(value) + 1)
    for size in reversed(sizes) if is_longest else sizes:
        cut = len(value) - size if at_end else size
        if pattern.fullmatch(value[cut:] if at_end else value[:cut]):
            return value[:cut] if at_end else value[cut:]
    return value
