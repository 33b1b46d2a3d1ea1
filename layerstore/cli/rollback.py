"""Put a container back to a snapshot. What it changed since then is lost. The snapshot stays."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME", help="the snapshot")


def run(store: Store, args: argparse.Namespace) -> int:
    store.container(args.container).rollback(args.name)
    return 0
