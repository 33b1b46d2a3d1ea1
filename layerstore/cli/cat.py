"""Write the contents of files of an image to standard output, one after another, without mounting it."""

from __future__ import annotations

import sys

from layerstore.cli.command import told
from layerstore.store.pieces import PIECE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.views.view import View


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="name or id")
    parser.add_argument("paths", metavar="PATH", nargs="+", help="in the image")


def run(store: Store, args: argparse.Namespace) -> int:
    view = store.image(args.image).view
    return max([_copy(view, path) for path in args.paths])


def _copy(view: View, path: str) -> int:
    """Copy one file; one that cannot be opened is told, and the next one comes."""
    try:
        file = view.open(path)
    except OSError as error:
        sys.stdout.flush()
        print(f"layerstore cat: {told(error)}", file=sys.stderr)
        return 1
    with file:
        while piece := file.read(PIECE_BYTES):
            sys.stdout.buffer.write(piece)
    return 0
