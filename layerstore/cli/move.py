"""Change the driver of a container; its snapshots come along. A container of the overlay driver can be mounted and run
programs. One of the extent driver is worked on from Python, without root or a mount. Nothing happens where it has that
driver already.

What `create` or `run` was given for a later `start` does not come along, nor what was kept of a program's output.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("--driver", choices=("overlay", "extent"), required=True, help="the driver that it gets")


def run(store: Store, args: argparse.Namespace) -> int:
    store.container(args.container).move(args.driver)
    return 0
