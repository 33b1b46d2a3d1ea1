"""Mount containers and print the path of each one's view, in their order. Needs root."""

from __future__ import annotations

from layerstore.cli import selection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    selection.add(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    containers = selection.selected(store, args)
    store.mount(containers)
    for container in containers:
        print(container.root)
    return 0
