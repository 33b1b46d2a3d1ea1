"""Options of `run` and `exec` that say how a program is started."""

from __future__ import annotations

import os

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--interactive", action="store_true", help="pass standard input to the program")
    parser.add_argument("-t", "--tty", action="store_true", help="give the program a terminal")
    parser.add_argument(
        "-e",
        "--env",
        action="append",
        default=[],
        metavar="K[=V]",
        help="set an environment variable (K alone: to the value that it has here)",
    )
    parser.add_argument(
        "--env-file",
        action="append",
        default=[],
        metavar="FILE",
        help="set those of a file, K[=V] a line; lines with # are passed over",
    )
    parser.add_argument("-w", "--workdir", metavar="DIR", help="the working directory")
    parser.add_argument("-u", "--user", metavar="NAME|UID[:GROUP]", help="the user to run as")


def check_left_running(args: argparse.Namespace) -> None:
    """Raise `InvalidInput` where more was asked for than a program has that is left running."""
    if args.interactive or args.tty:
        raise InvalidInput(
            "a program that is left running has no input and no terminal: leave out -i and -t; "
            "`layerstore exec -i -t CONTAINER COMMAND` has both, in any container that was created or runs"
        )


def environment(args: argparse.Namespace) -> list[str]:
    """The variables that were asked for, as K=V: those of files first, as the last of a name counts.

    Raises `InvalidInput`, `OSError`.
    """
    asked = [text for path in args.env_file for text in _lines(path)] + args.env
    return [
        text if "=" in text else f"{text}={os.environ[text]}" for text in asked if "=" in text or text in os.environ
    ]


def _lines(path: str) -> list[str]:
    """docker's: a value is all that comes after the sign, with quotes and spaces."""
    found = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            text = line.rstrip("\n").removesuffix("\r").lstrip()
            if not text or text.startswith("#"):
                continue
            name = text.partition("=")[0]
            if not name or name.split() != [name]:
                raise InvalidInput(f"{path}, line {number}: {name!r} is no name of a variable; it is K or K=V")
            found.append(text)
    return found
