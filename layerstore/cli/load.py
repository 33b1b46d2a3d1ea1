"""Load every image of a docker archive (`docker save` of any version), an OCI layout as a directory or tar, or a
stream of either on standard input, compressed with gzip or zstd or not. Layers that are stored are not read again."""

from __future__ import annotations

import sys

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import BinaryIO

    from layerstore.api import Store

CREATES_STORE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--input", required=True, metavar="FILE|DIR|-", help="the archive; - is standard input")


def run(store: Store, args: argparse.Namespace) -> int:
    source: str | BinaryIO = sys.stdin.buffer if args.input == "-" else args.input
    with output.progress_bar() as progress:
        images = store.load(source, progress=progress)
    for image in images:
        for name in image.names:
            print(f"Loaded image: {name}")
        if not image.names:
            print(f"Loaded image ID: {image.id}")
    return 0
