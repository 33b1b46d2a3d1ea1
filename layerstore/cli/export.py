"""Write all files of a container as a tar: those of its image, and what it changed. It need not be mounted."""

from __future__ import annotations

import sys

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable
    from typing import BinaryIO

    from layerstore.api import Store
    from layerstore.store.pieces import Piece


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: standard output")


def run(store: Store, args: argparse.Namespace) -> int:
    pieces = store.container(args.container).export()
    if args.output is None:
        write(pieces, standard_output())
        return 0
    from layerstore.layers import targets

    with targets.file(args.output) as fd, open(fd, "wb", closefd=False) as file:
        write(pieces, file)
    return 0


def standard_output() -> BinaryIO:
    """Standard output, for a tar. Raises `InvalidInput` where that is a terminal."""
    if sys.stdout.isatty():
        raise InvalidInput("a tar is nothing for a terminal; redirect it, or give a file")
    return sys.stdout.buffer


def write(pieces: Iterable[Piece], file: BinaryIO) -> None:
    """Write all of them."""
    for piece in pieces:
        file.write(piece)
