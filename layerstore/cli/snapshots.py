"""List the snapshots of a container, oldest first."""

from __future__ import annotations

from datetime import UTC, datetime

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import Snapshot


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    columns: output.Columns[Snapshot] = {
        "NAME": (lambda snapshot: snapshot.name, str),
        "CREATED": (lambda snapshot: datetime.fromtimestamp(snapshot.created_seconds, UTC).isoformat(), output.age),
    }
    output.listing(store.container(args.container).snapshots(), columns, args.format)
    return 0
