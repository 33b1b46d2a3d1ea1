"""Reading a command line without argparse, which takes longer to load than a short command takes to do its work.

A command's `arguments(parser)` is called with a `Line` first, which reads the usual command lines: options, each
spelled out, then arguments. What it makes of one is what argparse makes of it. All others it leaves to argparse, with
help and messages: for that the same function is called with an `argparse.ArgumentParser`.
"""

from __future__ import annotations

from types import SimpleNamespace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

REMAINDER = "..."
"""argparse's own: from the first argument on all words are arguments, whatever they begin with."""


class _Argument:
    def __init__(
        self,
        *names: str,
        action: str = "store",
        nargs: str | None = None,
        default: Any = None,
        type: Callable[[str], Any] | None = None,
        choices: Sequence[str] | None = None,
        required: bool = False,
        dest: str | None = None,
        metavar: str | None = None,
        help: str | None = None,
    ) -> None:
        self.names = names
        self.is_option = names[0].startswith("-")
        long = next((name for name in names if name.startswith("--")), names[0])
        self.dest = dest or (long.lstrip("-").replace("-", "_") if self.is_option else long)
        self.action = action
        self.nargs = nargs
        self.default = False if action == "store_true" else default
        self.type = type
        self.choices = choices
        self.required = required

    @property
    def least(self) -> int:
        """How many words it takes at least, if it is no option."""
        return 1 if self.nargs in (None, "+") else 0

    def value_of(self, word: str) -> Any:
        """Raises `_Unusual` where argparse has something to say, and whatever its type raises."""
        value = self.type(word) if self.type else word
        if self.choices is not None and value not in self.choices:
            raise _Unusual
        return value


class _Unusual(Exception):
    """This is for argparse."""


class Line:
    """Takes `add_argument` as `argparse.ArgumentParser` does, and reads the command lines that are usual."""

    def __init__(self) -> None:
        self._options: dict[str, _Argument] = {}
        self._arguments: list[_Argument] = []
        self._has_groups = False

    def add_argument(self, *names: str, **how: Any) -> None:
        argument = _Argument(*names, **how)
        if argument.is_option:
            self._options.update(dict.fromkeys(names, argument))
        else:
            self._arguments.append(argument)

    def add_mutually_exclusive_group(self) -> Line:
        self._has_groups = True
        return self

    def read(self, words: Sequence[str]) -> SimpleNamespace | None:
        """What argparse would give, or None where argparse is to be asked."""
        if self._has_groups or "--" in words:
            return None
        values = {argument.dest: argument.default for argument in (*self._options.values(), *self._arguments)}
        try:
            at = self._read_options(words, values)
            self._read_arguments(words[at:], values)
        except Exception:  # a type may raise what it likes, and argparse tells of it
            return None
        return SimpleNamespace(**values)

    def _read_options(self, words: Sequence[str], values: dict[str, Any]) -> int:
        """Returns where the arguments begin."""
        missing = {option.dest for option in self._options.values() if option.required}
        at = 0
        while at < len(words) and _is_option(words[at]):
            name, separator, value = words[at].partition("=")
            option = self._options[name]
            at += 1
            missing.discard(option.dest)
            if option.action == "store_true":
                if separator:
                    raise _Unusual
                values[option.dest] = True
                continue
            if not separator:
                value = words[at]
                at += 1
            if not value or _is_option(value) or (separator and not name.startswith("--")):
                raise _Unusual
            one = option.value_of(value)
            values[option.dest] = [*values[option.dest], one] if option.action == "append" else one
        if missing:
            raise _Unusual
        return at

    def _read_arguments(self, words: Sequence[str], values: dict[str, Any]) -> None:
        """Each takes as many words as it may and leaves those behind it the least that they need."""
        takes_all = bool(self._arguments) and self._arguments[-1].nargs == REMAINDER
        if not takes_all and any(_is_option(word) for word in words):
            raise _Unusual
        spare = len(words) - sum(argument.least for argument in self._arguments)
        if spare < 0:
            raise _Unusual
        at = 0
        for argument in self._arguments:
            most = {None: 0, "?": min(spare, 1)}.get(argument.nargs, spare)
            taken = words[at : at + argument.least + most]
            at += len(taken)
            spare -= most
            if argument.nargs == REMAINDER:
                values[argument.dest] = list(taken)
            elif argument.nargs in (None, "?"):
                if taken:
                    values[argument.dest] = argument.value_of(taken[0])
            elif taken or argument.default is None:
                values[argument.dest] = [argument.value_of(word) for word in taken]
        if spare:
            raise _Unusual


def _is_option(word: str) -> bool:
    return word.startswith("-") and word != "-"
