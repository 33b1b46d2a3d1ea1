"""Mount containers and print the path of each one's view, in their order. Needs root."""

import argparse

from layerstore.api import Store
from layerstore.cli import selection


def arguments(parser: argparse.ArgumentParser) -> None:
    selection.add(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    containers = selection.selected(store, args)
    store.mount(containers)
    for container in containers:
        print(container.root)
    return 0
