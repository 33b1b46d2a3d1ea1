"""Make an empty store, or do nothing where there is one.

With --pool the store is a file system of its own, XFS in a sparse file of that size, so that a container's first write
into a large file, and a fork, copy nothing. XFS and btrfs can do that themselves: there none is needed, and none made.
"""

from __future__ import annotations

import sys

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


CREATES_STORE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pool",
        dest="pool_bytes",
        type=output.parse_size,
        metavar="SIZE",
        help="how large, e.g. 64G; only what is used takes space of the host (needs root and xfsprogs)",
    )


def run(store: Store, args: argparse.Namespace) -> int:
    if args.pool_bytes is not None and store.pool is None:
        print("the file system has reflink (a trial clone worked): no pool is needed, none was made", file=sys.stderr)
    print(store.root)
    return 0
