"""Draw the time of a lookup by the number of layers: `python -m bench.plot_index [RESULTS.json] [--out FILE]`.

Without arguments from the newest results that have it, to docs/lookup-by-depth.svg, as a complete run of the benchmarks
does. The same results give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from bench.bench_index import DEPTHS, DICTS, OVERLAYFS, WORK

ROOT = Path(__file__).parent.parent
PICTURE = ROOT / "docs/lookup-by-depth.svg"
OURS = "layerstore"
STYLES = {
    OURS: ("#c1121f", "o", 2.4),
    OVERLAYFS: ("#1d3557", "s", 1.5),
    "SQLite (path, layer)": ("#2a9d8f", "D", 1.5),
    "SQLite (layer, path)": ("#8ab17d", "v", 1.5),
    DICTS: ("#e09f3e", "^", 1.5),
}
LABELS = {DICTS: "Python dicts, layer by layer", OVERLAYFS: "overlayfs, fstatat from C"}
LINES: dict[str, Any] = {"warm": "-", "cold": ":"}

Row = dict[str, Any]
Curve = list[tuple[int, float]]


def main() -> int:
    parser = argparse.ArgumentParser(prog="plot_index", description="The time of a lookup by the number of layers.")
    parser.add_argument("results", nargs="?", type=Path, help="JSON of a run (default: the newest with lookups)")
    parser.add_argument("--out", type=Path, default=PICTURE, help=f"default: {PICTURE.relative_to(ROOT)}")
    options = parser.parse_args()
    found = [options.results] if options.results else sorted((ROOT / "bench/results").glob("*.json"), reverse=True)
    for path in found:
        rows = json.loads(path.read_text())["rows"]
        if curves(rows):
            draw(rows, options.out)
            print(f"plot_index: wrote {options.out} from {path}", file=sys.stderr)
            return 0
    print("plot_index: no results with lookups by depth; run `python -m bench.run index` first", file=sys.stderr)
    return 1


def curves(rows: Iterable[Row]) -> dict[tuple[str, str, str], Curve]:
    """By hits or misses, warm or cold, and who: the nanoseconds of a lookup by depth."""
    found: dict[tuple[str, str, str], Curve] = defaultdict(list)
    for row in rows:
        if match := WORK.fullmatch(row["work"]):
            what, depth, state = match.groups()
            figures = {OURS: row["ours"], **row["peers"]}
            for name, figure in figures.items():
                if figure is not None:
                    found[what, state, name].append((int(depth.replace(",", "")), figure))
    return found


def draw(rows: Iterable[Row], out: Path) -> None:
    plt.rcParams.update({"svg.hashsalt": "layerstore", "font.size": 9, "axes.spines.top": False})
    plt.rcParams.update({"axes.spines.right": False})
    found = curves(rows)
    figure, panels = plt.subplots(1, 2, figsize=(9.5, 4.6), sharey=True, layout="constrained")
    for panel, what in zip(panels, ("hits", "misses"), strict=True):
        for (of, state, name), curve in found.items():
            if of == what:
                color, marker, width = STYLES[name]
                style = {"color": color, "linewidth": width, "linestyle": LINES[state], "marker": marker}
                panel.plot(*zip(*sorted(curve), strict=True), markersize=4, **style)
        panel.set_title({"hits": "paths that are there", "misses": "paths that are not there"}[what], loc="left")
        panel.set_xlabel("layers")
        panel.set(xscale="log", yscale="log", xticks=DEPTHS, xticklabels=[f"{depth:,}" for depth in DEPTHS])
        panel.minorticks_off()
        panel.grid(color="#dddddd", linewidth=0.6)
    panels[0].set_ylabel("nanoseconds a path")
    figure.suptitle("Looking up the 13,000 paths of a Debian image, dealt over so many layers", x=0.01, ha="left")
    figure.legend(handles=legend(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(out, metadata={"Date": None})
    plt.close(figure)


def legend() -> list[Line2D]:
    """Who by colour, and warm or cold by line."""
    who = [Line2D([], [], color=c, marker=m, linewidth=w, label=LABELS.get(n, n)) for n, (c, m, w) in STYLES.items()]
    return who + [Line2D([], [], color="#555555", linestyle=line, label=state) for state, line in LINES.items()]


if __name__ == "__main__":
    sys.exit(main())
