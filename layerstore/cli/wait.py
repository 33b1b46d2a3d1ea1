"""Wait until the programs of containers have ended, and print their exit statuses."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    for container in [store.container(name) for name in args.containers]:
        print(container.wait(), flush=True)
    return 0
