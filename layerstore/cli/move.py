"""Have a container be one of the other driver, with its snapshots: of the overlay driver, to be mounted and to run
programs in; of the extent driver, to be worked on from Python, without root or a mount. Nothing is done where it is of
that driver already.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("--driver", choices=("overlay", "extent"), required=True, help="what it is to be of")


def run(store: Store, args: argparse.Namespace) -> int:
    store.container(args.container).move(args.driver)
    return 0
