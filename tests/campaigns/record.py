"""What campaigns counted: one file of results for each, and the table of docs/reliability.md that is made of them.

`python -m campaigns.record` writes the table again.
"""

import datetime
import json
import os
import platform
import shlex
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
COUNTS = ("tried", "lost", "corrupt", "crashed", "leaked")
_COLUMNS = ("campaign", "what", "tried", "lost", "corrupt", "crashed", "leaked", "command")
_HEAD = f"| {' | '.join(_COLUMNS)} |\n|---|---|---:|---:|---:|---:|---:|---|\n"


@dataclass(frozen=True)
class Row:
    """How often something was done to a store, and in how many of these cases it went wrong.

    Attributes:
        what: what was done to what: "SIGKILL at a system call of import".
        tried: the number of cases.
        lost: cases in which something acknowledged was missing afterwards, or the operation could not be run again.
        corrupt: cases in which something visible was not whole, or a wrong byte was read, or damage was not found.
        crashed: cases in which a process ended by a signal that nobody sent, hung, or failed without a clear error.
        leaked: cases in which a mount, a loop device, a lock, a descriptor or disk space was left.
    """

    what: str
    tried: int
    lost: int = 0
    corrupt: int = 0
    crashed: int = 0
    leaked: int = 0

    @property
    def is_bad(self) -> bool:
        return bool(self.lost or self.corrupt or self.crashed or self.leaked)


def write(campaign: str, rows: Sequence[Row], command: str, seconds: float, **more: object) -> None:
    """Replace the results of a campaign, and the table."""
    RESULTS.mkdir(exist_ok=True)
    document = {
        "campaign": campaign,
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "seconds": round(seconds),
        "machine": f"Linux {platform.release()}, Python {platform.python_version()}, {os.cpu_count()} cores",
        "rows": [asdict(row) for row in rows],
        **more,
    }
    parts = document.pop("parts", None)
    text = json.dumps(document, indent=1)
    if parts is not None:
        # A line each.
        lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(part)}" for name, part in sorted(parts.items()))
        text = text.removesuffix("\n}") + f',\n "parts": {{\n{lines}\n }}\n}}'
    (RESULTS / f"{campaign}.json").write_text(text + "\n")
    write_table()


def write_part(
    campaign: str, part: str, rows: Sequence[Row], command: str, seconds: float, parts: Collection[str]
) -> None:
    """Put the results of a part (an operation) in place of those that it had, in a campaign whose rows are of all parts
    together, and write the table. What was counted by another command counts no more. Where not all of `parts` were run
    the table says so.
    """
    path = RESULTS / f"{campaign}.json"
    before = json.loads(path.read_text()) if path.exists() else {}
    known = before.get("parts", {}) if before.get("command") == command else {}
    known = {name: known[name] for name in parts if name in known}
    counts = {row.what: [getattr(row, name) for name in COUNTS] for row in rows}
    known[part] = {"seconds": round(seconds), "rows": counts}
    reach = "" if len(known) == len(parts) else f", {len(known)} of {len(parts)} operations"
    sums: dict[str, Counter[str]] = defaultdict(Counter)
    for each in known.values():
        for what, found in each["rows"].items():
            sums[what].update(dict(zip(COUNTS, found, strict=True)))
    whole = [Row(what, **counts) for what, counts in sorted(sums.items())]
    write(campaign, whole, command, sum(each["seconds"] for each in known.values()), reach=reach, parts=known)


def command_of(target: str, arguments: Sequence[str]) -> str:
    """The command that was given to make, by the arguments of the campaign."""
    given = shlex.join(argument for argument in arguments if argument != "--record")
    return f'make {target} {target.upper()}_ARGS="{given}"' if given else f"make {target}"


def merged(campaign: str, rows: Sequence[Row]) -> list[Row]:
    """The rows that a campaign has, with these in place of those of the same, in the order of their names."""
    document = json.loads((RESULTS / f"{campaign}.json").read_text())
    found = {row["what"]: Row(**row) for row in document["rows"]}
    return sorted((found | {row.what: row for row in rows}).values(), key=lambda row: row.what)


def table() -> str:
    """The table as it is in docs/reliability.md, of all results."""
    lines = []
    for path in sorted(RESULTS.glob("*.json")):
        document = json.loads(path.read_text())
        for row in document["rows"]:
            counts = " | ".join(f"{row[name]:,}" for name in COUNTS)
            command = f"`{document['command']}`{document.get('reach', '')}"
            lines.append(f"| {document['campaign']} | {row['what']} | {counts} | {command} |\n")
    return _HEAD + "".join(lines)


def write_table() -> None:
    """Put the table into docs/reliability.md."""
    before, rest = PAGE.read_text().split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{table()}{END}{rest.split(END)[1]}")


def told(rows: Sequence[Row]) -> int:
    """Print rows for a reader; returns the exit status, 1 when anything went wrong."""
    for row in rows:
        bad = f"{row.lost} lost, {row.corrupt} corrupt, {row.crashed} crashed, {row.leaked} leaked"
        print(f"{row.what}: {row.tried:,} tried, {bad}", flush=True)
    return int(any(row.is_bad for row in rows))


if __name__ == "__main__":
    write_table()
    sys.exit(0)
