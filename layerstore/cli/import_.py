"""Make an image of one layer from the tar of a root file system, compressed with gzip or zstd or not."""

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
    parser.add_argument("file", metavar="ROOTFS.tar", help="the tar; - is standard input")
    parser.add_argument("name", metavar="NAME[:TAG]", help="the image's name")


def run(store: Store, args: argparse.Namespace) -> int:
    source: str | BinaryIO = sys.stdin.buffer if args.file == "-" else args.file
    with output.progress_bar() as progress:
        print(store.import_rootfs(source, args.name, progress=progress).id)
    return 0
