"""Copy images to another store, with all their names. Only what the other store lacks is sent, as differences from what
both have. The other store verifies it, as it does a load. The next sync goes on where an interrupted one ended."""

from __future__ import annotations

from layerstore.cli import output
from layerstore.results import Progress

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="names or ids")
    parser.add_argument(
        "destination",
        metavar="DIR|ssh://[USER@]HOST[:PORT][/DIR]",
        help="the other store, made where there is none; of a host without DIR the one that layerstore uses there",
    )
    add_timeout(parser)
    parser.add_argument(
        "--program", default="layerstore", metavar="PATH", help="layerstore on the other machine (default: layerstore)"
    )


def add_timeout(parser: argparse.ArgumentParser) -> None:
    """The option that `receive` has, too."""
    parser.add_argument(
        "--timeout",
        type=float,
        default=300,
        metavar="SECONDS",
        help="give up when the other side says nothing for so long (default: 300; 0: never)",
    )


def run(store: Store, args: argparse.Namespace) -> int:
    with output.progress_bar() as bar:

        def show(progress: Progress) -> None:
            """A bar for each stage."""
            assert bar is not None
            bar(
                Progress(progress.stage, f"{progress.stage} {progress.what}", progress.done_bytes, progress.total_bytes)
            )

        shown = None if bar is None else show
        timeout = args.timeout or None
        synced = store.sync(
            args.images, args.destination, program=args.program, timeout_seconds=timeout, progress=shown
        )
    images = len(synced.images)
    print(
        f"{images} image{'' if images == 1 else 's'} synced: {synced.layers} layers and {synced.contents} contents of "
        f"{output.size(synced.content_bytes)} were lacking; {output.size(synced.sent_bytes)} sent, "
        f"{output.size(synced.received_bytes)} received"
    )
    return 0
