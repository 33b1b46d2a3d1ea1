"""List containers, newest first: created (not mounted), mounted, or running."""

from __future__ import annotations

import json
import shlex
from datetime import UTC, datetime

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    containers = store.containers()
    if args.quiet:
        for container in containers:
            print(container.id)
        return 0
    rows = [
        {
            "CONTAINER ID": container.id,
            "IMAGE": container.row.image_name,
            "COMMAND": json.loads(container.row.command) if container.row.command else None,
            "CREATED": datetime.fromtimestamp(container.row.created_seconds, UTC).isoformat(),
            "STATUS": state,
            "NAME": container.name,
        }
        for container, state in zip(containers, store.states(containers), strict=True)
    ]
    columns: output.Columns = {
        "CONTAINER ID": lambda value: value[:12],
        "IMAGE": str,
        "COMMAND": _command,
        "CREATED": output.age,
        "STATUS": str,
        "NAME": lambda value: value or "",
    }
    output.listing(rows, columns, args.format)
    return 0


def _command(argv: list[str] | None) -> str:
    text = shlex.join(argv or [])
    return text if len(text) <= 30 else text[:29] + "…"
