"""Building an image again: nothing changed, and after a change of app.py; and the time of a step by their number."""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bench_import import RECORDS
from bench.context import Context
from bench.measure import Median, interleaved, seconds, split_ours
from bench.peers import Buildah, Builder, timed
from bench.rows import OURS_ALL, Row, at_most, durably, faster, known

if TYPE_CHECKING:
    from layerstore import BuildEvent, Store

MILLISECOND = 1e3
TIMES_FASTER = 5.0
NAME = "rebuilt:1"
DOCKERFILE = """\
FROM {base}
WORKDIR /app
COPY requirements.txt .
RUN python3 -m pip --version > pip.txt
ENV PORT=8000
CMD ["python3", "app.py"]
COPY app.py .
"""
STEPS = 500
ENDS = 50
FLAT = 1.3
DURABLE = {"ours": f"{OURS_ALL}, not the cache's entries", "docker build": RECORDS, "buildah build": RECORDS}


def run(context: Context) -> list[Row]:
    return list(durably(DURABLE, [*rebuilds(context), *by_steps(context)]))


def rebuilds(context: Context) -> Iterator[Row]:
    """Each builder has built the image before. Of app.py every build of the second kind gets a version of its own."""
    directory = context.new_directory("context")
    directory.mkdir()
    (directory / "Dockerfile").write_text(DOCKERFILE.format(base=context.fixtures.recipe("debian").name))
    (directory / "requirements.txt").write_text("flask==3.0.3\n")
    versions = itertools.count()
    change(directory, versions)
    with contextlib.ExitStack() as stack:
        builds: dict[str, Callable[[], float]] = {}
        for builder in builders(context):
            stack.enter_context(context.loaded(builder, "debian"))
            stack.callback(builder.remove, NAME)
            builds[f"{builder.name} build"] = partial(builder.build, directory, NAME)
        if not context.peers_only:
            store = stack.enter_context(context.store("debian"))
            builds["ours"] = partial(timed, context.command(store.root, "build", "-t", NAME, str(directory)))
            builds["from Python"] = partial(from_python, store, directory)
        for build in builds.values():
            build()
        same = interleaved(builds, context.rounds(15))
        changed = interleaved(
            {name: partial(after_change, directory, versions, build) for name, build in builds.items()},
            context.rounds(15),
        )
    for what, figures in (("nothing changed", same), ("app.py changed", changed)):
        scaled = {name: value * MILLISECOND for name, value in figures.items()}
        called = scaled.pop("from Python", None)
        ours, peers = split_ours(scaled)
        yield faster(f"build again, {what}, by command", "ms", ours, peers, TIMES_FASTER)
        yield known(f"build again, {what}, from Python", "ms", called, peers)


def builders(context: Context) -> list[Builder]:
    return [builder for builder in (context.docker(), context.peer(Buildah)) if builder is not None]


def change(directory: Path, versions: Iterator[int]) -> None:
    (directory / "app.py").write_text(f"print({next(versions)})\n")


def after_change(directory: Path, versions: Iterator[int], build: Callable[[], float]) -> float:
    change(directory, versions)
    os.sync()
    return build()


def from_python(store: Store, directory: Path) -> float:
    return seconds(partial(store.build, directory, names=[NAME]))


def by_steps(context: Context) -> Iterator[Row]:
    """One build of many COPYs of small files: the mean time of a step among the last, over that among the first."""
    if context.peers_only:
        return
    directory = context.new_directory("context")
    directory.mkdir()
    lines = []
    for number in range(STEPS):
        (directory / f"{number}.txt").write_text(f"{number}\n")
        lines.append(f"COPY {number}.txt /files/{number}\n")
    (directory / "Dockerfile").write_text(f"FROM {context.fixtures.recipe('debian').name}\n{''.join(lines)}")
    ratios, firsts = [], []
    for _ in range(context.rounds()):
        with context.store("debian") as store:
            first, last = ends_of_a_build(store, directory)
            firsts.append(first * MILLISECOND)
            ratios.append(last / first)
    yield at_most(
        f"a step (COPY of a small file) among the last {ENDS} of {STEPS}, over one among the first, from Python",
        "×", Median(ratios), {}, FLAT, f"{Median(firsts):.2g} ms the first",
    )  # fmt: skip


def ends_of_a_build(store: Store, directory: Path) -> tuple[float, float]:
    """Seconds of a step, the mean of the first and of the last."""
    moments: list[float] = []

    def note(event: BuildEvent) -> None:
        if event.kind == "made":
            moments.append(time.perf_counter())

    store.build(directory, progress=note)
    # What comes before the second step is all that is made once.
    return (moments[ENDS + 1] - moments[1]) / ENDS, (moments[-1] - moments[-1 - ENDS]) / ENDS
