"""Command lines as they are usually given, read without argparse. The judge is argparse."""

import contextlib
import importlib
import io
import random
from types import ModuleType
from typing import Any

import pytest

from layerstore.cli import _MODULES, COMMANDS
from layerstore.cli.arguments import Line
from layerstore.cli.command import parser_of

VALUES = [
    *("a", "b=c", "5", "0", "64G", "debian:12", "/x", "-", "", "é"),
    *("text", "json", "host", "extent", "overlay", "show", "grow"),
]


def module_of(command: str) -> ModuleType:
    return importlib.import_module(f"layerstore.cli.{_MODULES.get(command, command)}")


def read(command: str, words: list[str]) -> dict[str, Any] | None:
    line = Line()
    module_of(command).arguments(line)
    values = line.read(words)
    return None if values is None else vars(values)


def judged(command: str, words: list[str]) -> dict[str, Any] | None:
    """What argparse makes of it, None where it ends the program."""
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        try:
            return vars(parser_of(command, module_of(command)).parse_args(words))
        except SystemExit:
            return None


def random_words(rng: random.Random, command: str) -> list[str]:
    """Mostly what makes sense: options, whole and otherwise, before words, now and then behind them."""
    options = [name for action in parser_of(command, module_of(command))._actions for name in action.option_strings]
    words = []
    for _ in range(rng.randrange(5)):
        option = rng.choice(options)
        kind = rng.random()
        if kind < 0.1:
            words.append(f"{option}={rng.choice(VALUES)}")
        elif kind < 0.15:
            words.append(f"{option}{rng.choice(VALUES)}")
        elif kind < 0.2:
            words.append(option[:-1])
        elif kind < 0.23:
            words.append(rng.choice(["--", "-1", "-1.5", "--no-such", "-x y", "---"]))
        else:
            words.append(option)
        if rng.random() < 0.4:
            words.append(rng.choice(VALUES))
    words += rng.choices(VALUES, k=rng.randrange(4))
    if rng.random() < 0.2:
        rng.shuffle(words)
    return words


def is_ambiguous(command: str, words: list[str]) -> bool:
    """A word of the program that `run` starts is an error to some versions of argparse, as if it were an option."""
    options = [name for action in parser_of(command, module_of(command))._actions for name in action.option_strings]
    return command == "run" and any(
        sum(option.startswith(word.partition("=")[0]) for option in options) > 1 for word in words if word[:2] == "--"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_lines_are_read_as_argparse_reads_them(command: str) -> None:
    rng = random.Random(command)
    compared = 0
    for _ in range(1500):
        words = random_words(rng, command)
        values = read(command, words)
        if values is not None and not is_ambiguous(command, words):
            assert values == judged(command, words), words
            compared += 1
    assert compared > 0 or command == "layers"  # which has a group, and is left to argparse


@pytest.mark.parametrize(
    "line",
    [
        "images",
        "images -q",
        "images --format json",
        "images --format=json",
        "ps",
        "load -i archive.tar",
        "load --input -",
        "run --rm --network none debian:12 /bin/true",
        "run -e A=1 -e B --env C=3 -i -t debian:12 sh -c 'echo $A' --rm",
        "run debian:12",
        "create --count 5 debian:12",
        "create debian:12",
        "mount -a",
        "mount one two",
        "rm -f one two",
        "diff a b",
        "diff a",
        "ls debian:12",
        "ls -R debian:12 /etc",
        "cat debian:12 /etc/passwd /etc/group",
        "pool",
        "pool grow 64G",
        "init --pool 10G",
        "gc",
        "tag debian:12 other",
    ],
)
def test_usual_lines_are_read(line: str) -> None:
    command, *words = line.split()
    values = read(command, words)
    assert values is not None
    assert values == judged(command, words)


@pytest.mark.parametrize(
    "line",
    [
        "images -h",
        "images --help",
        "images extra",
        "images --quie",
        "images --format",
        "images --format xml",
        "load",
        "create --count many debian:12",
        "create -x debian:12",
        "create",
        "rm one -f",
        "run --rm -- debian:12",
        "run -it debian:12",
        "run -eA=1 debian:12",
        "pool grow much",
        "cat debian:12",
        "layers debian:12 --changes 1",
    ],
)
def test_others_are_left_to_argparse(line: str) -> None:
    command, *words = line.split()
    assert read(command, words) is None
