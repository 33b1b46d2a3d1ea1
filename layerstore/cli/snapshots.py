"""List the snapshots of a container, oldest first."""

from __future__ import annotations

from datetime import UTC, datetime

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    rows = [
        {"NAME": snapshot.name, "CREATED": datetime.fromtimestamp(snapshot.created_seconds, UTC).isoformat()}
        for snapshot in store.container(args.container).snapshots()
    ]
    output.listing(rows, {"NAME": str, "CREATED": output.age}, args.format)
    return 0
