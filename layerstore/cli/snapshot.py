"""Keep the state of a container under a name, or remove a snapshot."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME", help="a name for the snapshot")
    parser.add_argument("--rm", action="store_true", help="remove the snapshot instead")


def run(store: Store, args: argparse.Namespace) -> int:
    container = store.container(args.container)
    if args.rm:
        container.remove_snapshot(args.name)
    else:
        container.snapshot(args.name)
    return 0
