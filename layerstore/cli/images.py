"""List images, newest in the store first. An image with several names has a line for each.

As JSON each also says whether it is frozen.
"""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Image, Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-q", "--quiet", action="store_true", help="print ids only")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    images = store.images()
    if args.quiet:
        for image in images:
            print(image.short_id)
        return 0
    columns: output.Columns[tuple[str, Image]] = {
        "REPOSITORY": (lambda row: row[0].rpartition(":")[0], str),
        "TAG": (lambda row: row[0].rpartition(":")[2], str),
        "IMAGE ID": (lambda row: row[1].id, output.short),
        "CREATED": (lambda row: row[1].created, output.age),
        "SIZE": (lambda row: row[1].size_bytes, output.size),
        "FROZEN": (lambda row: row[1].is_frozen, None),
    }
    rows = [(name, image) for image in images for name in image.names or ["<none>:<none>"]]
    output.listing(rows, columns, args.format)
    return 0
