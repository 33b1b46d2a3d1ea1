"""What a benchmark says: rows of ours beside the peers, with the target, as a table, as JSON and as Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table. `ratio` is the fastest (smallest) peer over ours: above 1, ours is the better one."""

    work: str
    unit: str
    ours: float | None
    peers: dict[str, float]
    target: str = ""
    met: bool | None = None
    more_is_better: bool = False

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


def number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _cells(row: Row) -> list[str]:
    peers = ", ".join(f"{name} {number(value)}" for name, value in row.peers.items())
    ratio = "–" if row.ratio is None else f"{number(row.ratio)}×"
    met = {True: "yes", False: "NO", None: "–"}[row.met]
    return [row.work, number(row.ours), row.unit, peers or "–", ratio, row.target or "–", met]


HEADINGS = ["work", "ours", "unit", "peers", "peer / ours", "target", "met"]


def table(rows: Iterable[Row]) -> str:
    """For a terminal: columns aligned."""
    lines = [HEADINGS, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
    return "\n".join(padded)


def markdown(rows: Iterable[Row]) -> str:
    lines = [HEADINGS, ["---"] * len(HEADINGS), *map(_cells, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def as_json(row: Row) -> dict[str, Any]:
    return {**asdict(row), "ratio": row.ratio}
