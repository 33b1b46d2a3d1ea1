"""The pages that tell of results: docs/benchmarks.md, and the figures of README.md, of the newest complete run."""

from __future__ import annotations

import fnmatch
import json
import sys
from collections.abc import Mapping
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


def write(results: Path = RESULTS) -> None:
    """Write both pages anew from the newest results."""
    result = newest(results)
    PAGE.write_text(page(result))
    README.write_text(with_figures(README.read_text(), result))
    print(f"bench: wrote {PAGE} and the figures of {README}", file=sys.stderr)


def page(result: Result) -> str:
    about = result["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["packages"].items())
    return f"""# Benchmarks

Made by `make bench` on {result["date"][:10]} at commit {result["commit"]}:
{about["processor"]}, {about["cores"]} cores, Linux {about["kernel"]}, Python {about["python"]}; {versions}.
The stores of all are on one loop-mounted {result["file_system"]} with a journal.
Figures are medians. "Runs" says of how many runs, "min–max" gives the least and the greatest of them.
"peer / ours" is the fastest peer over ours: above 1, ours is the better one.
"Durable on return" is what each has on the disk when its time ends.
`bench/README.md` says what each line measures, and whose rounds alternate.
{not_recorded(result)}
{markdown(result["rows"])}

![The time of a lookup by the number of layers, log-log](lookup-by-depth.svg)
"""


def with_figures(readme: str, result: Result) -> str:
    """The text of README.md with the figures of the result."""
    before, _, rest = readme.partition(BEGIN)
    _, _, after = rest.partition(END)
    return before + BEGIN + figures(result) + END + after


def figures(result: Result) -> str:
    shown = [row for row in result["rows"] if any(fnmatch.fnmatchcase(row["work"], work) for work in IN_README)]
    return f"""Run on {result["date"][:10]} at commit {result["commit"]}.
{not_recorded(result)}
{markdown(shown)}
"""


def not_recorded(result: Result) -> str:
    if all("spread" in row and "durable" in row for row in result["rows"]):
        return ""
    return (
        f'"{NOT_RECORDED}": this run did not record it. '
        "Where its rows do not say whether they are by command or from Python, `bench/README.md` does.\n"
    )
