"""Free the space of contents, layers and files that no image or container uses. Waits for loads that are running.

Before that it freezes images that were not used for as long as `layerstore tiering` says.
"""

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
    with output.progress_bar() as progress:
        collected = store.collect_garbage(derived_limit_bytes=args.derived_limit, progress=progress)
    output.collected(collected)
    return 0
