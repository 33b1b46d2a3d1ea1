"""The pages that tell of results: docs/benchmarks.md, and the figures of README.md, of the newest complete run, and of
runs of some benchmarks that were made since."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.rows import NOT_RECORDED, markdown

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench/results"
README = ROOT / "README.md"
PAGE = ROOT / "docs/benchmarks.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->\n"
IN_README = (
    "import the 245 MB Debian image, *",
    "peak memory of the import, gzip",
    "bytes on disk of the image",
    "new bytes on disk, same files re-tarred",
    "… of a second image with another app layer",
    "save the 245 MB Debian image to *",
    "pull of the 245 MB Debian image from loopback, *",
    "push of a second app on the same base*",
    "create + mount a container, *",
    "memory of a mounted container",
    "run --rm --network none IMAGE /bin/true, *",
    "create, run /bin/true, remove, from Python",
    "build again, *",
    "cold * of the Debian image, *",
    "page cache added by a second image, *",
    "look up the Debian image's paths, hits, 1 layer, *",
    "look up the Debian image's paths, hits, 127 layers, *",
    "look up the Debian image's paths, hits, 2,000 layers, *",
    "look up one path from Python, hits, *",
    "merge one more layer of 10 entries onto it",
    "first 4 KiB write into a file of 1 GiB, *",
    "… against overlayfs on the same file system with reflink",
    "fork of a container with * changed files, pool*",
    "fork of a container with * changed files, extent driver*",
    "rollback of it after another write, 10,000 files, extent driver*",
    "1,000 forks of a container with 10 changed files, 4 KiB written in each, extent driver*, each",
    "random 4 KiB reads, 1 GiB, all rewritten, seek + readinto",
    "random 4 KiB writes, 1 GiB, seek + write",
    "commit of 1,000 changed files, *",
    "diff of 1,000 changed files, *",
    "commit of 4 KiB changed in a file of 1 GiB, *",
    "bytes on disk of * images of * MB, *, frozen",
    "load and freeze them, *",
    "bytes on disk of * rebuilds of the flask application, frozen",
    "thaw an image of * MB*",
    "sync to a store that has the version before, *: bytes both ways",
    "cut * MB of files of an image, 16 KiB on average",
    "BLAKE3, *",
    "exec of true in one of *",
    "50 of them at once, from Python",
    "memory of a live container *",
    "fork of a container with * changed files, ready to use, *",
    "rollback of a container with * changed files, ready to use, *",
    "snapshot, exec that writes, rollback *",
    "100 forks of a container at rest, *",
    "looking up its files, * after * snapshots",
    "of * forks of a container that writes *",
    "how long a fork stops *",
)
"""The work of the rows that the README shows; "*" is anything."""

Result = Mapping[str, Any]


def newest(results: Path = RESULTS) -> Result:
    """The newest results of a complete run. Raises `FileNotFoundError` where there are none."""
    for path in sorted(results.glob("*.json"), reverse=True):
        result: Result = json.loads(path.read_text())
        # Of runs that did not say so yet, only complete ones are kept.
        if result.get("complete", not result["quick"]):
            return result
    raise FileNotFoundError(f"{results} has no results of a complete run; run `make bench` first")


def since(result: Result, results: Path = RESULTS) -> list[Result]:
    """The runs of some benchmarks after a complete one, oldest first; of a benchmark the newest."""
    found: list[Result] = []
    seen: set[str] = set()
    for path in sorted(results.glob("*.json"), reverse=True):
        run: Result = json.loads(path.read_text())
        names = set(run.get("benchmarks", ()))
        if run["date"] > result["date"] and not run["quick"] and not names <= seen:
            found.insert(0, run)
            seen |= names
    return found


def write(results: Path = RESULTS) -> None:
    """Write both pages anew from the newest results."""
    result = newest(results)
    later = since(result, results)
    PAGE.write_text(page(result, later))
    README.write_text(with_figures(README.read_text(), result, later))
    print(f"bench: wrote {PAGE} and the figures of {README}", file=sys.stderr)


def page(result: Result, later: Sequence[Result] = ()) -> str:
    sections = "".join(f"\n## {', '.join(run['benchmarks'])}\n\n{made(run, 'Run')}\n{rows(run)}" for run in later)
    return f"""# Benchmarks

{made(result, "Made by `make bench`")}
The stores of all are on one loop-mounted {result["file_system"]} with a journal.
Figures are medians. "Runs" says of how many runs, "min–max" gives the least and the greatest of them.
"peer / ours" is the fastest peer over ours: above 1, ours is the better one.
"Durable on return" is what each has on the disk when its time ends.
`bench/README.md` says what each line measures, and whose rounds alternate.
{rows(result)}
![The time of a lookup by the number of layers, log-log](lookup-by-depth.svg)
{sections}"""


def made(result: Result, by: str) -> str:
    about = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return (
        f"{by} on {result['date'][:10]} at commit {result['commit']}:\n"
        f"{about['processor']}, {about['cores']} cores, Linux {about['kernel']}, Python {about['python']}; {versions}."
    )


def rows(result: Result) -> str:
    return f"{not_recorded(result)}\n{markdown(result['rows'])}\n"


def with_figures(readme: str, result: Result, later: Sequence[Result] = ()) -> str:
    """The text of README.md with the figures of the results."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + figures(result, later) + END + after


def figures(result: Result, later: Sequence[Result] = ()) -> str:
    return "\n".join(
        f"Run on {run['date'][:10]} at commit {run['commit']}.\n{not_recorded(run)}\n{markdown(shown(run))}\n"
        for run in (result, *later)
        if shown(run)
    )


def shown(result: Result) -> list[Any]:
    return [row for row in result["rows"] if any(fnmatch.fnmatchcase(row["work"], work) for work in IN_README)]


def not_recorded(result: Result) -> str:
    if all("spread" in row and "durable" in row for row in result["rows"]):
        return ""
    return (
        f'"{NOT_RECORDED}": this run did not record it. '
        "Where its rows do not say whether they are by command or from Python, `bench/README.md` does.\n"
    )
