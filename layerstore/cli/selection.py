"""Which containers a command is about: those named, or all."""

from __future__ import annotations

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Container, Store


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="*", help="name, id, or the beginning of an id")
    parser.add_argument("-a", "--all", action="store_true", help="all containers")


def selected(store: Store, args: argparse.Namespace) -> list[Container]:
    """Raises `InvalidInput` when neither or both were given, `NotFound`."""
    if args.all == bool(args.containers):
        raise InvalidInput("name the containers, or give --all")
    return store.containers() if args.all else [store.container(name) for name in args.containers]
