"""Decompress frozen images now, instead of when a container of them is made."""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="names or ids")


def run(store: Store, args: argparse.Namespace) -> int:
    print(f"{output.size(store.thaw(args.images))} brought back")
    return 0
