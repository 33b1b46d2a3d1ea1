"""Options of `run` and `exec` that say how a program is started."""

from __future__ import annotations

import os

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
    parser.add_argument("-w", "--workdir", metavar="DIR", help="the working directory")
    parser.add_argument("-u", "--user", metavar="NAME|UID[:GROUP]", help="the user to run as")


def environment(args: argparse.Namespace) -> list[str]:
    """The variables that were asked for, as K=V."""
    return [
        text if "=" in text else f"{text}={os.environ[text]}" for text in args.env if "=" in text or text in os.environ
    ]
