"""Give an image another name. Where another image has that name, it loses it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("name", metavar="NAME[:TAG]")


def run(store: Store, args: argparse.Namespace) -> int:
    store.tag(args.image, args.name)
    return 0
