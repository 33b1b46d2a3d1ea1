"""The benchmarks of bench/core, and the core of one revision against that of another.

    python -m bench.revisions                    # runs them, and keeps what was measured below build/perf
    python -m bench.revisions --revision HEAD~1  # the same for another revision built beside, and compares the two

**What is compared.** Each round is a process of its own, first of the other revision, then of this tree, and so on, so
that what else the machine does weighs on both; and between processes times differ as they do not within one (Kalibera
and Jones, "Rigorous Benchmarking in Reasonable Time", ISMM 2013). A round's figure is the least of its times: noise
only adds (Chen and Revels, "Robust benchmarking in noisy environments", 2016, arXiv:1608.04295).

**What is a slowdown.** One that is both

- large: the median of this tree's rounds is more than `THRESHOLD` times the other's. Where code happens to lie in
  memory makes some percent of difference between two builds (Mytkowicz et al., "Producing Wrong Data Without Doing
  Anything Obviously Wrong!", ASPLOS 2009), which no number of rounds takes away; and
- not explained by the spread: were both equally fast, rounds as far apart would be rarer than `ALPHA` for all the
  benchmarks together. That is the one-sided exact test of Mann and Whitney ("On a Test of Whether one of Two Random
  Variables is Stochastically Larger than the Other", 1947), which asks only for the order of the rounds, with `ALPHA`
  divided by the number of benchmarks (Bonferroni).
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shlex
import shutil
import statistics
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "build/perf"
GIT = ("git", "-c", f"safe.directory={ROOT}", "-C", str(ROOT))
THRESHOLD = 1.05
ALPHA = 0.05
ROUNDS = 10
TESTS_FAILED = 1
"""Of pytest's exit statuses."""
QUICK = ("--benchmark-max-time=0.1", "--benchmark-min-rounds=5", "--benchmark-quiet")
"""Of a round: there are many, and the table at the end tells of all."""

Figures = Mapping[str, Sequence[float]]
"""The figures of the rounds, in seconds, by the name of the benchmark."""


@dataclass(frozen=True)
class Row:
    """What is said of one benchmark: medians in seconds, `spread` as a part of the median."""

    name: str
    before: float | None
    after: float | None
    spread: float
    verdict: str

    @property
    def ratio(self) -> float | None:
        return self.after / self.before if self.before and self.after else None


# -- comparing ---------------------------------------------------------------------------------------------------------


@functools.cache
def ways(before: int, after: int, pairs: int) -> int:
    """In how many orders of so many rounds exactly `pairs` pairs have the round of `after` first."""
    if pairs < 0:
        return 0
    if not before or not after:
        return int(pairs == 0)
    return ways(before - 1, after, pairs - after) + ways(before, after - 1, pairs)


def chance(before: Sequence[float], after: Sequence[float]) -> float:
    """How probable it is that rounds of equal speed have those of `after` so much above. A tie speaks against it."""
    pairs = sum(a <= b for a in after for b in before)
    orders = math.comb(len(before) + len(after), len(after))
    return sum(ways(len(before), len(after), n) for n in range(pairs + 1)) / orders


def spread(figures: Sequence[float]) -> float:
    """The range of the middle half, as a part of the median."""
    if len(figures) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(figures, n=4, method="inclusive")
    return (high - low) / middle


def compare(before: Figures, after: Figures, reasons: Mapping[str, str]) -> list[Row]:
    """A row for each benchmark that ran in `after`; `reasons` says why those that did not run before could not."""
    alpha = ALPHA / max(1, len(before.keys() & after.keys()))
    rows = []
    for name, figures in after.items():
        median = statistics.median(figures)
        if name not in before:
            why = reasons.get(name, "not run")
            rows.append(Row(name, None, median, spread(figures), f"could not run there: {why}"))
            continue
        others = before[name]
        ratio = median / statistics.median(others)
        verdict = "same"
        if ratio > THRESHOLD and chance(others, figures) < alpha:
            verdict = "SLOWER"
        elif ratio < 1 / THRESHOLD and chance(figures, others) < alpha:
            verdict = "faster"
        rows.append(Row(name, statistics.median(others), median, max(spread(others), spread(figures)), verdict))
    return rows


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.name) for row in rows)
    lines = [f"{'benchmark':<{width}}  {'before':>10}  {'after':>10}  {'ratio':>6}  {'spread':>6}  verdict"]
    for row in rows:
        ratio = "-" if row.ratio is None else f"{row.ratio:.3f}"
        cells = f"{row.name:<{width}}  {shown(row.before):>10}  {shown(row.after):>10}  {ratio:>6}"
        lines.append(f"{cells}  {row.spread:>6.1%}  {row.verdict}")
    return "\n".join(lines)


def shown(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    for unit, size in (("s", 1), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:.2f} {unit}"
    return f"{seconds * 1e9:.1f} ns"


# -- running -----------------------------------------------------------------------------------------------------------


def run_benchmarks(tree: Path, out: Path, arguments: Sequence[str]) -> int:
    """Run this tree's bench/core with the package of `tree`, in a process; returns pytest's exit status.

    Writes `out` and, beside it, an .xml of what could not run.
    """
    out.unlink(missing_ok=True)
    # Python's -P: a current directory before PYTHONPATH would give this tree's package for the other's.
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    command += ["--tb=short", f"--junitxml={out.with_suffix('.xml')}", f"--benchmark-json={out}"]
    command += ["--benchmark-disable-gc", "--benchmark-timer=time.perf_counter", *arguments, str(ROOT / "bench/core")]
    environment = dict(os.environ, PYTHONPATH=str(tree), LAYERSTORE_PERF_TREE=str(tree))
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def figures_of(out: Path) -> dict[str, float]:
    """The least time of each benchmark of a round."""
    if not out.exists() or not out.stat().st_size:
        return {}
    return {bench["name"]: bench["stats"]["min"] for bench in json.loads(out.read_text())["benchmarks"]}


def reasons_of(xml: Path) -> dict[str, str]:
    """Why benchmarks failed: the first line of what was raised."""
    found = {}
    for case in ElementTree.parse(xml).iter("testcase"):
        for problem in (*case.findall("failure"), *case.findall("error")):
            found[case.attrib["name"]] = (problem.attrib.get("message") or "failed").splitlines()[0]
    return found


def build(revision: str) -> Path:
    """The tree of a commit, below build/perf, with its own core."""
    tree = KEPT / revision
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    archive = subprocess.run([*GIT, "archive", revision], check=True, stdout=subprocess.PIPE).stdout
    subprocess.run(["tar", "-x", "-C", str(tree)], input=archive, check=True)
    command = [sys.executable, "setup.py", "-q", "build_clib", "build_ext", "--inplace"]
    subprocess.run(command, cwd=tree, check=True)
    return tree


def commit_of(revision: str) -> str:
    command = [*GIT, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def against(revision: str, rounds: int, arguments: Sequence[str]) -> int:
    """Compare this tree with a revision; returns the exit status: 1 when it is slower, 2 when there is no telling.

    Raises `subprocess.CalledProcessError` when there is no such revision, or it cannot be built.
    """
    commit = commit_of(revision)
    print(f"building {revision} ({commit[:12]})", flush=True)
    before: dict[str, list[float]] = {}
    after: dict[str, list[float]] = {}
    reasons: dict[str, str] = {}
    try:
        other = build(commit)
        for number in range(rounds):
            print(f"round {number + 1} of {rounds}", flush=True)
            for tree, figures, label in ((other, before, "before"), (ROOT, after, "after")):
                out = KEPT / f"{label}-{number}.json"
                status = run_benchmarks(tree, out, [*QUICK, *arguments])
                if status not in (0, TESTS_FAILED) or (status and tree is ROOT):
                    print(f"the benchmarks failed with {tree}; pytest says above why")
                    return 2
                if status:
                    reasons |= reasons_of(out.with_suffix(".xml"))
                for name, seconds in figures_of(out).items():
                    figures.setdefault(name, []).append(seconds)
    finally:
        shutil.rmtree(KEPT / commit, ignore_errors=True)
    # What failed in one of the rounds says nothing.
    rows = compare({name: found for name, found in before.items() if name not in reasons}, after, reasons)
    print(table(rows))
    slower = [row.name for row in rows if row.verdict == "SLOWER"]
    print(f"{len(slower)} slower than {revision}" + (f": {', '.join(slower)}" if slower else ""))
    return 1 if slower else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="The benchmarks of the core, and of one revision against another")
    parser.add_argument("--revision", help="a revision of git to compare this tree with; without, nothing is compared")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of each of the two ({ROUNDS})")
    arguments, others = parser.parse_known_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    if arguments.revision:
        try:
            return against(arguments.revision, arguments.rounds, others)
        except subprocess.CalledProcessError as error:
            print(f"cannot build {arguments.revision} of git: {shlex.join(error.cmd)} failed", file=sys.stderr)
            return 2
    return run_benchmarks(ROOT, KEPT / f"{commit_of('HEAD')[:12]}.json", others)


if __name__ == "__main__":
    sys.exit(main())
