"""Compress images that are not in use, as differences from others that are stored.

A frozen image can be read as before (cat, ls, save, push, diff). To make or mount a container of it decompresses it
first, as `thaw` does. Contents that other images need stay as they are.
"""

from __future__ import annotations

from layerstore.cli import output
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", metavar="IMAGE", nargs="*", help="names or ids")
    parser.add_argument(
        "--unused-for",
        type=output.parse_duration,
        metavar="AGE",
        help="all images that came into the store and were used longer ago, and that no container uses: 24h, 7d ...",
    )
    parser.add_argument(
        "--compression",
        choices=("zstd", "lz4"),
        help="lz4 is larger, and read faster (default: what `layerstore tiering` says, zstd if nothing)",
    )


def run(store: Store, args: argparse.Namespace) -> int:
    if bool(args.images) == (args.unused_for is not None):
        raise InvalidInput("give images, or --unused-for AGE for all that were not used for so long")
    with output.progress_bar() as progress:
        done = store.freeze(
            args.images or None,
            unused_for_seconds=args.unused_for or 0,
            compression=args.compression,
            progress=progress,
        )
    if done.images:
        print(output.frozen(done))
    else:
        why = "frozen already" if args.images else "all was used since, or is frozen already"
        print(f"nothing to be frozen: {why}")
    return 0
