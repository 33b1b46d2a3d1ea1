"""Starting: how long the shortest commands take, beside a Python that does nothing."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from functools import partial

from bench.context import Context
from bench.measure import interleaved, split_ours
from bench.peers import timed
from bench.rows import NOTHING, Row, durably, known, within

MILLISECOND = 1e3
BARE = [sys.executable, "-c", "pass"]


def run(context: Context) -> list[Row]:
    return [] if context.peers_only else list(durably(NOTHING, by_command(context)))


def by_command(context: Context) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        root = stack.enter_context(context.store("debian")).root
        yield within("layerstore --help", "ms", *beside_python(context, context.command(root, "--help")), 3.0)
        yield known("layerstore images", "ms", *beside_python(context, context.command(root, "images")))


def beside_python(context: Context, command: list[str]) -> tuple[float | None, dict[str, float]]:
    works: dict[str, Callable[[], float]] = {"bare python": partial(timed, BARE), "ours": partial(timed, command)}
    for work in works.values():
        work()
    figures = interleaved(works, context.rounds(15))
    return split_ours({name: value * MILLISECOND for name, value in figures.items()})
