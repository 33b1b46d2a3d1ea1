"""Show the steps by which an image was made, newest first. A step that left no image of its own is
<missing>."""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--no-trunc", action="store_true", help="print ids and commands whole")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    rows = [
        {
            "IMAGE": step.image_id or "<missing>",
            "CREATED": step.created,
            "CREATED BY": step.created_by,
            "SIZE": step.size_bytes,
            "COMMENT": step.comment,
        }
        for step in store.image(args.image).history()
    ]
    columns: output.Columns = {
        "IMAGE": str if args.no_trunc else lambda value: value.removeprefix("sha256:")[:12],
        "CREATED": output.age,
        "CREATED BY": str if args.no_trunc else output.shortened,
        "SIZE": output.size,
        "COMMENT": str,
    }
    output.listing(rows, columns, args.format)
    return 0
