"""What the fuzzers in Python share. Each is a program of libFuzzer (atheris), as those in C are; `make fuzz` runs it,
and `python tests/fuzz/fuzz_build.py FILE` runs a find again.

The first byte of an input chooses the parser, the rest is what it reads. Whatever that is, nothing but errors of the
library may come of it, and none may take long.
"""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import atheris  # noqa: E402

MOST_SECONDS = 2
"""Of processor time, for inputs of a few KiB."""


class Broken(Exception):
    """Something that holds for every input does not hold for this one."""


def require(condition: object, what: str) -> None:
    if not condition:
        raise Broken(what)


def text_of(data: bytes) -> str:
    """Any text, with surrogates for what is no UTF-8, as Python has what comes from file names and JSON."""
    return data.decode("utf-8", "surrogateescape")


def fuzz(parsers: Sequence[Callable[[bytes], None]], errors: tuple[type[Exception], ...]) -> None:
    """Run libFuzzer with the arguments of this program. `errors` are those that a parser may raise."""

    def one(data: bytes) -> None:
        if not data:
            return
        begun = time.process_time()
        try:
            parsers[data[0] % len(parsers)](data[1:])
        except errors as error:
            require(str(error), "an error says something")
        took = time.process_time() - begun
        require(took < MOST_SECONDS, f"{len(data)} bytes took {took:.1f} s")

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
