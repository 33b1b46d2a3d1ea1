"""Remove names, and with an image's last name the image. `layerstore gc` then gives the space back."""

from __future__ import annotations

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
    for name in args.images:
        for line in store.remove_image(name, force=args.force):
            print(line)
    return 0
