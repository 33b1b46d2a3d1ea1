"""Give back the space of contents, layers and files that no image or container uses. Waits for loads under way."""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--derived-limit",
        type=output.parse_size,
        metavar="SIZE",
        help="leave at most so much of what can be made again (merged indexes, tree images): 0, 500MB, 4GB ...",
    )


def run(store: Store, args: argparse.Namespace) -> int:
    collected = store.collect_garbage(derived_limit_bytes=args.derived_limit)
    print(f"{collected.contents} contents dropped, {output.size(collected.freed_bytes)} given back")
    return 0
