"""`system df`: show what images, containers and the rest of a store take, and what of it would be given back.

Files that several images have are stored once. SIZE of an image is the sum of its files; HOT and COLD what these take,
as they are and in frozen images' packs. Of that SHARED is what other images have or need too, UNIQUE what its removal
alone would give back, unless it has containers. What an image has more than once counts each time in SIZE, and once in
the others. What frozen images take, Cold, has with it what nothing needs any more until `layerstore gc`.
"""

from __future__ import annotations

import json

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from layerstore.api import Store
    from layerstore.results import Usage


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
        print(
            json.dumps(
                {
                    "parts": parts,
                    "images": [vars(image) for image in usage.images],
                    "containers": [vars(container) for container in usage.containers],
                },
                indent=2,
            )
        )
    elif args.verbose:
        _show_each(usage)
    else:
        _show_parts(usage)
    return 0


def _show_parts(usage: Usage) -> None:
    rows = [
        {
            "TYPE": name.capitalize(),
            "TOTAL": part.count or "",
            "ACTIVE": part.active if part.count else "",
            "SIZE": part.size_bytes,
            "RECLAIMABLE": (part.reclaimable_bytes, part.size_bytes),
        }
        for name, part in usage.parts.items()
    ]
    columns: output.Columns = {
        "TYPE": str,
        "TOTAL": str,
        "ACTIVE": str,
        "SIZE": output.size,
        "RECLAIMABLE": _share,
    }
    output.listing(rows, columns, "table")


def _share(value: tuple[int, int]) -> str:
    part, whole = value
    return f"{output.size(part)} ({100 * part // whole}%)" if whole else output.size(part)


def _show_each(usage: Usage) -> None:
    print("Images:\n")
    output.images(usage.images)
    containers: list[dict[str, Any]] = [
        {
            "CONTAINER ID": container.container_id[:12],
            "IMAGE": container.image_name,
            "STATUS": container.state,
            "SIZE": container.size_bytes,
            "NAME": container.name or "",
        }
        for container in usage.containers
    ]
    print("\nContainers:\n")
    shown: output.Columns = {"CONTAINER ID": str, "IMAGE": str, "STATUS": str, "SIZE": output.size, "NAME": str}
    output.listing(containers, shown, "table")
