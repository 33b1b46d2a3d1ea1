"""Show everything about images or containers, as a JSON list. A name is looked for among containers first."""

from __future__ import annotations

from layerstore.cli import output
from layerstore.errors import NotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="IMAGE|CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    output.document([_inspect(store, name) for name in args.names])
    return 0


def _inspect(store: Store, name: str) -> dict[str, Any]:
    try:
        return store.container(name).inspect()
    except NotFound:
        pass
    try:
        return store.image(name).inspect()
    except NotFound:
        raise NotFound(f"there is no image or container {name!r}; `layerstore images` and `ps` list them") from None
