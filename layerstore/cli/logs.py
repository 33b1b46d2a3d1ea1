"""Print what those programs of a container printed that were left running (`run -d`, `start`): standard output as
standard output, errors as errors. The last 16 MB or more are kept, or what --log-opt said."""

from __future__ import annotations

import sys

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from layerstore.api import Store
    from layerstore.results import Printed


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--follow", action="store_true", help="go on until the program ends")
    parser.add_argument(
        "--since",
        type=output.parse_moment,
        metavar="TIME",
        help="only what came since then: 2026-12-02T10:00:00Z, seconds since 1970, or 10m, 1h30m for how long ago",
    )
    parser.add_argument("-n", "--tail", type=output.parse_lines, metavar="N", help="of what there is, the last N lines")
    parser.add_argument("-t", "--timestamps", action="store_true", help="begin each line with the time of its coming")
    parser.add_argument("container", metavar="CONTAINER")


def run(store: Store, args: argparse.Namespace) -> int:
    show(store.container(args.container).logs(follow=args.follow, since=args.since, tail=args.tail), args.timestamps)
    return 0


def show(pieces: Iterable[Printed], timestamps: bool) -> None:
    """Print what a container printed, as it comes."""
    outputs = {"stdout": sys.stdout.buffer, "stderr": sys.stderr.buffer}
    begun: set[str] = set()
    for piece in pieces:
        file = outputs[piece.stream]
        if timestamps and piece.stream not in begun:
            file.write(f"{piece.stamp} ".encode())
        file.write(piece.data)
        file.flush()
        (begun.discard if piece.data.endswith(b"\n") else begun.add)(piece.stream)
