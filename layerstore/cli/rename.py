"""Give a container another name."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("name", metavar="NAME")


def run(store: Store, args: argparse.Namespace) -> int:
    store.container(args.container).set_name(args.name)
    return 0
