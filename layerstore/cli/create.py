"""Make containers from an image and print their ids. They take almost no space until something is written."""

import argparse

from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--count", type=int, metavar="N", help="how many (default: 1)")
    parser.add_argument("--name", help="a name for the container")


def run(store: Store, args: argparse.Namespace) -> int:
    if args.count is None:
        made = [store.create(args.image, name=args.name)]
    else:
        made = store.create(args.image, count=args.count)
    for container in made:
        print(container.id)
    return 0
