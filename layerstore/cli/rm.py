"""Remove containers and all that they wrote, and print their ids."""

from __future__ import annotations

from layerstore.cli import selection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    selection.add(parser)
    parser.add_argument("-f", "--force", action="store_true", help="end and remove containers that run or are in use")


def run(store: Store, args: argparse.Namespace) -> int:
    containers = selection.selected(store, args)
    store.remove(containers, force=args.force)
    for container in containers:
        print(container.id)
    return 0
