"""Show what the containers that run take, again each second until this is interrupted."""

from __future__ import annotations

import time

from layerstore.cli import output
from layerstore.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Container, Store
    from layerstore.results import Stats

_BETWEEN_SECONDS = 1.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="*", help="those alone (default: all that run)")
    parser.add_argument("--no-stream", action="store_true", help="once")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    found = [store.container(name) for name in args.containers] or store.containers()
    columns: output.Columns[tuple[Container, Stats, float]] = {
        "CONTAINER ID": (lambda row: row[0].id, output.short),
        "NAME": (lambda row: row[0].name, lambda name: name or ""),
        "CPU %": (lambda row: round(row[2], 2), lambda percent: f"{percent:.2f}%"),
        "MEM USAGE / LIMIT": (
            lambda row: [row[1].memory_bytes, row[1].memory_limit_bytes],
            lambda both: " / ".join(map(output.size, both)),
        ),
        "MEM %": (
            lambda row: round(100 * row[1].memory_bytes / row[1].memory_limit_bytes, 2),
            lambda percent: f"{percent:.2f}%",
        ),
        "PIDS": (lambda row: row[1].pids, str),
    }
    before = _measured(found)
    while True:
        time.sleep(_BETWEEN_SECONDS)
        now = _measured(found)
        rows = [
            (one, stats, 100 * (stats.cpu_seconds - before[one][1].cpu_seconds) / (at - before[one][0]))
            for one, (at, stats) in now.items()
            if one in before
        ]
        output.listing(rows, columns, args.format)
        if args.no_stream:
            return 0
        before = now


def _measured(containers: list[Container]) -> dict[Container, tuple[float, Stats]]:
    found = {}
    for container in containers:
        try:
            found[container] = time.monotonic(), container.stats()
        except NotFound:  # nothing runs in it
            continue
    return found
