"""Show the steps by which an image was made, newest first. A step that left no image of its own is
<missing>."""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import HistoryEntry


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--no-trunc", action="store_true", help="print ids and commands whole")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    columns: output.Columns[HistoryEntry] = {
        "IMAGE": (lambda step: step.image_id or "<missing>", str if args.no_trunc else output.short),
        "CREATED": (lambda step: step.created, output.age),
        "CREATED BY": (lambda step: step.created_by, str if args.no_trunc else output.shortened),
        "SIZE": (lambda step: step.size_bytes, output.size),
        "COMMENT": (lambda step: step.comment, str),
    }
    output.listing(store.image(args.image).history(), columns, args.format)
    return 0
