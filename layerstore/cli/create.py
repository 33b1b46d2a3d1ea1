"""Make containers from an image and print their ids. They take almost no space until something is written.

`start` starts the command that is given here, or the image's own, with these options (docs/security.md)."""

from __future__ import annotations

import argparse

from layerstore.cli import confining, starting
from layerstore.cli.run import HELP, add_program, options
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.api import Store

__all__ = ("HELP", "arguments", "run")

_UNSAID: tuple[object, ...] = (None, False, [], "none", "enabled")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, metavar="N", help="how many (default: 1)")
    parser.add_argument(
        "--volatile", action="store_true", help="never sync what is written in them: fast, lost with power"
    )
    parser.add_argument("--name", help="a name for the container")
    add_program(parser)
    parser.add_argument(
        "--driver",
        choices=("overlay", "extent"),
        default="overlay",
        help="overlay: to be mounted and run programs (default); extent: to be worked on from Python, without root",
    )
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER, help="the command, instead of the image's own")


def run(store: Store, args: argparse.Namespace) -> int:
    if args.count is not None and args.name is not None:
        raise InvalidInput("--name goes with one container only, so not with --count")
    starting.check_left_running(args)
    given = options(args)
    # Where nothing is said, the image's own command is started: no file is needed for that.
    is_prepared = bool(args.args) or any(value not in _UNSAID for value in given.values())
    alike = {
        "volatile": args.volatile,
        "driver": args.driver,
        "disk_size": confining.disk_size(args),
        "prepared": {"args": args.args or None, **given} if is_prepared else None,
    }
    if args.count is None:
        made = [store.create(args.image, name=args.name, **alike)]
    else:
        made = store.create(args.image, count=args.count, **alike)
    for container in made:
        print(container.id)
    return 0
