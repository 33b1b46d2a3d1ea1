"""Give an image one more name. A name that another image has moves to this one."""

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
