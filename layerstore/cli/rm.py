"""Remove containers and all that they wrote, and print their ids."""

import argparse

from layerstore.api import Store
from layerstore.cli import selection


def arguments(parser: argparse.ArgumentParser) -> None:
    selection.add(parser)
    parser.add_argument("-f", "--force", action="store_true", help="end and remove containers that run or are in use")


def run(store: Store, args: argparse.Namespace) -> int:
    containers = selection.selected(store, args)
    store.remove(containers, force=args.force)
    for container in containers:
        print(container.id)
    return 0
