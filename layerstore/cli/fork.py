"""Make containers that start from what a container is now, and print their ids. Nothing is copied; but of a container
of the overlay driver that is in use what it changed is, as clones where the file system has reflink.

`start` starts in them what it starts in that container, without its published ports."""

from __future__ import annotations

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("--count", type=int, metavar="N", help="how many (default: 1)")
    parser.add_argument("--name", help="a name for the new container")


def run(store: Store, args: argparse.Namespace) -> int:
    if args.count is not None and args.name is not None:
        raise InvalidInput("--name goes with one container only, so not with --count")
    container = store.container(args.container)
    made = [container.fork(name=args.name)] if args.count is None else container.fork(count=args.count)
    for fork in made:
        print(fork.id)
    return 0
