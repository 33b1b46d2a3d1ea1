"""What a benchmark says: rows of ours beside the peers, with the target, as a table, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.measure import Median

NOTHING = {"all": "nothing is written"}
OURS_ALL = "contents, names and database"
"""What an import makes durable, by one syncfs and a transaction (layerstore/layers/imports.py)."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is the fastest (smallest) peer over ours: above 1, ours is the better one.

    `durable` says by name ("ours", a peer, or "all") what is on the disk when the work returns; of who is missing there
    it is not known.
    """

    work: str
    unit: str
    ours: float | None
    peers: dict[str, float]
    target: str = ""
    met: bool | None = None
    more_is_better: bool = False
    durable: Mapping[str, str] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        if not self.ours or min(self.ours, *self.peers.values(), 0) < 0 or not self.peers:
            return None
        return self.ours / max(self.peers.values()) if self.more_is_better else min(self.peers.values()) / self.ours


def faster(work: str, unit: str, ours: float | None, peers: dict[str, float], times: float) -> Row:
    """Ours is to be at least `times` times faster than the fastest peer."""
    met = None if ours is None or not peers else min(peers.values()) >= times * ours
    return Row(work, unit, ours, peers, f"≥ {times:g}× faster", met)


def smaller(work: str, unit: str, ours: float | None, peers: dict[str, float], times: float) -> Row:
    """Ours is to be at least `times` times smaller than the smallest peer."""
    met = None if ours is None or not peers else min(peers.values()) >= times * ours
    return Row(work, unit, ours, peers, f"≥ {times:g}× smaller", met)


def within(work: str, unit: str, ours: float | None, peers: dict[str, float], times: float) -> Row:
    """Ours is to take at most `times` times what the fastest peer takes."""
    met = None if ours is None or not peers else ours <= times * min(peers.values())
    return Row(work, unit, ours, peers, f"≤ {times:g}× the peer", met)


def keeps_up(work: str, unit: str, ours: float | None, peers: dict[str, float], share: float) -> Row:
    """Ours is to have at least this share of the fastest peer's speed."""
    met = None if ours is None or not peers else min(peers.values()) >= share * ours
    return Row(work, unit, ours, peers, f"≥ {share:g}× the peer's speed", met)


def more_often(work: str, unit: str, ours: float | None, peers: dict[str, float], share: float) -> Row:
    """Ours is to have at least this share of the fastest peer's rate."""
    met = None if ours is None or not peers else ours >= share * max(peers.values())
    return Row(work, unit, ours, peers, f"≥ {share:g}× the peer's rate", met, more_is_better=True)


def at_most(work: str, unit: str, ours: float | None, peers: dict[str, float], limit: float, why: str = "") -> Row:
    """Ours is to be at most `limit`, whatever the peers do."""
    target = f"≤ {limit:,.4g} {unit}" + (f" ({why})" if why else "")
    # Less than nothing is the noise of what is measured machine-wide, and shows nothing.
    return Row(work, unit, ours, peers, target, None if ours is None or ours < 0 else ours <= limit)


def at_least(work: str, unit: str, ours: float, limit: float) -> Row:
    """Ours is to be at least `limit`: more is better."""
    return Row(work, unit, ours, {}, f"≥ {limit:,.4g} {unit}", ours >= limit, more_is_better=True)


def known(work: str, unit: str, ours: float | None, peers: dict[str, float]) -> Row:
    """Without a target: for the reader."""
    return Row(work, unit, ours, peers)


def durably(durable: Mapping[str, str], rows: Iterable[Row]) -> Iterator[Row]:
    """The rows, and what their work makes durable."""
    return (replace(row, durable=durable) for row in rows)


Kept = dict[str, Any]
"""A row as results keep it."""


def as_json(row: Row) -> Kept:
    """What results keep of a row; by name `spread` has the least and the greatest of a median's figures."""
    figures = {"ours": row.ours, **row.peers}
    spread = {name: spread_of(figure) for name, figure in figures.items() if figure is not None}
    return {**vars(row), "ratio": row.ratio, "spread": spread}


def spread_of(figure: float) -> dict[str, float]:
    figures = figure.figures if isinstance(figure, Median) else (figure,)
    return {"min": min(figures), "max": max(figures), "runs": len(figures)}


# -- tables, of rows as results keep them -----------------------------------------------------------------------------

NOT_RECORDED = "—"
"""Results of an older run have neither `spread` nor `durable`."""
HEADINGS = ["work", "ours", "unit", "peers", "peer / ours", "target", "met", "min–max", "runs", "durable on return"]


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def cells(row: Mapping[str, Any]) -> list[str]:
    peers = ", ".join(f"{name} {number(value)}" for name, value in row["peers"].items())
    ratio = "–" if row["ratio"] is None else f"{number(row['ratio'])}×"
    met = {True: "yes", False: "NO", None: "–"}[row["met"]]
    figures = [row["work"], number(row["ours"]), row["unit"], peers or "–", ratio, row["target"] or "–", met]
    return [*figures, *spread_cells(row), durable_cell(row)]


def spread_cells(row: Mapping[str, Any]) -> tuple[str, str]:
    """Least and greatest, where there were several, and how many there were."""
    if "spread" not in row:
        return NOT_RECORDED, NOT_RECORDED
    spread = row["spread"]
    ranges = {name: f"{number(each['min'])}–{number(each['max'])}" for name, each in spread.items() if each["runs"] > 1}
    runs = {name: f"{each['runs']:,}" for name, each in spread.items()}
    return said_of(ranges, spread), said_of(runs, spread)


def durable_cell(row: Mapping[str, Any]) -> str:
    if "durable" not in row:
        return NOT_RECORDED
    if "all" in row["durable"]:
        return str(row["durable"]["all"])
    who = [*(["ours"] if row["ours"] is not None else []), *row["peers"]]
    return said_of({name: row["durable"].get(name, "not known") for name in who}, who)


def said_of(said: Mapping[str, str], who: Collection[str]) -> str:
    """What is said of each of `who`, or of some; once of those that the same is said of, of all without their names."""
    names: dict[str, list[str]] = {}
    for name, what in said.items():
        names.setdefault(what, []).append(name)
    if len(names) == 1 and len(said) == len(who):
        return next(iter(names))
    return "; ".join(f"{', '.join(alike)}: {what}" for what, alike in names.items()) or "–"


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """For a terminal: columns aligned, without what is long."""
    lines = [HEADINGS[:-1], *(cells(row)[:-1] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(padded)


def markdown(rows: Iterable[Mapping[str, Any]]) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
