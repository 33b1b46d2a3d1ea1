"""Show what a container changed on its image, or what image B has otherwise than image A.

A path a line: A added, C changed, D deleted.
"""

from __future__ import annotations

from layerstore.cli import output
from layerstore.errors import InvalidInput, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import Change


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("first", metavar="CONTAINER|A", help="a container, or the image to compare with")
    parser.add_argument("second", metavar="B", nargs="?", help="the image that is compared with A")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="lines, or one JSON list")


def run(store: Store, args: argparse.Namespace) -> int:
    changes = _of_container(store, args.first) if args.second is None else store.diff(args.first, args.second)
    output.changes(changes, args.format)
    return 0


def _of_container(store: Store, name: str) -> list[Change]:
    try:
        container = store.container(name)
    except NotFound:
        try:
            store.image(name)
        except (NotFound, InvalidInput):
            pass
        else:
            raise InvalidInput(
                f"{name!r} is an image; name the image to compare it with as well, or one container"
            ) from None
        raise
    return container.diff()
