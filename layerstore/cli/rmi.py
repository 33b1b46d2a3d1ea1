"""Remove names, and with an image's last name the image. `layerstore gc` then gives the space back."""

from __future__ import annotations

import sys

from layerstore.errors import Conflict, InvalidInput, NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="+")
    parser.add_argument(
        "-f", "--force", action="store_true", help="remove an image by id although it has several names"
    )


def run(store: Store, args: argparse.Namespace) -> int:
    status = 0
    for name in args.images:
        try:
            for line in store.remove_image(name, force=args.force):
                print(line)
        except (Conflict, InvalidInput, NotFound) as error:
            # As docker: the others go all the same.
            print(f"layerstore rmi: {error}", file=sys.stderr)
            status = 1
    return status
