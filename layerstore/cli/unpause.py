"""Have the programs of paused containers go on."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    for name in args.containers:
        store.container(name).unpause()
        print(name)
    return 0
