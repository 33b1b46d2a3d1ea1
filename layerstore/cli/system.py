"""`system df`: show what images, containers and the rest of a store take, and what of it would be given back.

Files that several images have are stored once. SIZE of an image is the sum of its files; HOT and COLD what these take,
as they are and in frozen images' packs. Of that SHARED is what other images have or need too, UNIQUE what its removal
alone would give back, unless it has containers. What an image has more than once counts each time in SIZE, and once in
the others. What frozen images take, Cold, has with it what nothing needs any more until `layerstore gc`.
"""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import ContainerUsage, Part, Usage


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=("df",), help="what to show")
    parser.add_argument("-v", "--verbose", action="store_true", help="each image and container")
    parser.add_argument(
        "--format", choices=("table", "json"), default="table", help="tables, or one JSON object of all"
    )


def run(store: Store, args: argparse.Namespace) -> int:
    usage = store.usage()
    if args.format == "json":
        parts = {name: vars(part) for name, part in usage.parts.items()}
        images = [vars(image) for image in usage.images]
        containers = [vars(container) for container in usage.containers]
        output.document({"parts": parts, "images": images, "containers": containers})
    elif args.verbose:
        _show_each(usage)
    else:
        _show_parts(usage)
    return 0


def _show_parts(usage: Usage) -> None:
    columns: output.Columns[tuple[str, Part]] = {
        "TYPE": (lambda row: row[0].capitalize(), str),
        "TOTAL": (lambda row: row[1].count or "", str),
        "ACTIVE": (lambda row: row[1].active if row[1].count else "", str),
        "SIZE": (lambda row: row[1].size_bytes, output.size),
        "RECLAIMABLE": (lambda row: row[1], _reclaimable),
    }
    output.listing(usage.parts.items(), columns, "table")


def _reclaimable(part: Part) -> str:
    shown, whole = output.size(part.reclaimable_bytes), part.size_bytes
    return f"{shown} ({100 * part.reclaimable_bytes // whole}%)" if whole else shown


def _show_each(usage: Usage) -> None:
    print("Images:\n")
    output.images(usage.images)
    print("\nContainers:\n")
    columns: output.Columns[ContainerUsage] = {
        "CONTAINER ID": (lambda container: container.container_id, output.short),
        "IMAGE": (lambda container: container.image_name, str),
        "STATUS": (lambda container: container.state, str),
        "SIZE": (lambda container: container.size_bytes, output.size),
        "NAME": (lambda container: container.name or "", str),
    }
    output.listing(usage.containers, columns, "table")
