"""Stop containers, and print their names as they were given: their first process is asked to end (SIGTERM, or the
image's STOPSIGNAL), and killed with all others when it does not. What they wrote stays."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-t", "--time", type=float, default=10, metavar="SECONDS", help="how long to wait before killing (default: 10)"
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    for name in args.containers:
        store.container(name).stop(args.time)
        print(name)
    return 0
