"""Make containers from an image and print their ids. They take almost no space until something is written."""

from __future__ import annotations

from layerstore.cli import confining
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--count", type=int, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--volatile", action="store_true", help="never sync what is written in them: fast, lost with power"
    )
    parser.add_argument("--name", help="a name for the container")
    confining.add_storage(parser)
    parser.add_argument(
        "--driver",
        choices=("overlay", "extent"),
        default="overlay",
        help="overlay: to be mounted and run programs (default); extent: to be worked on from Python, without root",
    )


def run(store: Store, args: argparse.Namespace) -> int:
    if args.count is not None and args.name is not None:
        raise InvalidInput("--name goes with one container only, so not with --count")
    size = confining.disk_size(args)
    if args.count is None:
        made = [store.create(args.image, name=args.name, volatile=args.volatile, driver=args.driver, disk_size=size)]
    else:
        made = store.create(args.image, count=args.count, volatile=args.volatile, driver=args.driver, disk_size=size)
    for container in made:
        print(container.id)
    return 0
