"""List containers, newest first: created (not mounted), mounted, or running."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Container, Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    containers = store.containers()
    if args.quiet:
        for container in containers:
            print(container.id)
        return 0
    columns: output.Columns[tuple[Container, str]] = {
        "CONTAINER ID": (lambda row: row[0].id, output.short),
        "IMAGE": (lambda row: row[0].row.image_name, str),
        "COMMAND": (lambda row: json.loads(row[0].row.command or "null"), _command),
        "CREATED": (lambda row: datetime.fromtimestamp(row[0].row.created_seconds, UTC).isoformat(), output.age),
        "STATUS": (lambda row: row[1], str),
        "NAME": (lambda row: row[0].name, lambda name: name or ""),
    }
    output.listing(list(zip(containers, store.states(containers), strict=True)), columns, args.format)
    return 0


def _command(argv: list[str] | None) -> str:
    text = shlex.join(argv or [])
    return text if len(text) <= 30 else text[:29] + "…"
