"""List images, newest in the store first. An image with several names has a line for each.

As JSON each also says whether it is frozen.
"""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

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
    rows = [row for image in images for row in _rows(image)]
    columns: output.Columns = {
        "REPOSITORY": str,
        "TAG": str,
        "IMAGE ID": _short,
        "CREATED": output.age,
        "SIZE": output.size,
    }
    output.listing(rows, columns, args.format)
    return 0


def _rows(image: Image) -> list[dict[str, Any]]:
    names = image.names or ["<none>:<none>"]
    return [
        {
            "REPOSITORY": name.rpartition(":")[0],
            "TAG": name.rpartition(":")[2],
            "IMAGE ID": image.id,
            "CREATED": image.created,
            "SIZE": image.size_bytes,
            "FROZEN": image.is_frozen,
        }
        for name in names
    ]


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]
