"""Show what a container changed on its image: A added, C changed, D deleted, a path a line."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="lines, or one JSON list")


def run(store: Store, args: argparse.Namespace) -> int:
    changes = store.container(args.container).diff()
    if args.format == "json":
        print(json.dumps([{"kind": change.kind, "path": change.path} for change in changes], indent=2))
        return 0
    for change in changes:
        print(change.kind, change.path)
    return 0
