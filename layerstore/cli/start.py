"""Start containers, and leave them running: what was given to `create`, or to the last `run`, with the options that it
had there. Prints the names as they were given; `logs` has the output, `wait` the end.

With -a it shows what the program prints, until it ends, and exits with its status, as `attach` does. What is printed
faster than it is shown is lost where it is more than is kept (32 MiB, or --log-opt)."""

from __future__ import annotations

import time

from layerstore.errors import InvalidInput, ProgramNotExecutable, ProgramNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store

STATUS_OF: dict[type[Exception], int] = {ProgramNotFound: 127, ProgramNotExecutable: 126}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-a", "--attach", action="store_true", help="show its output and wait for its end; signals go to the program"
    )
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    if args.attach and len(args.containers) > 1:
        raise InvalidInput("-a shows what one container prints; start the others without it")
    for name in args.containers:
        container = store.container(name)
        since = time.time()
        # Commands may have left it running without its program.
        program = container.program
        if program is None or not program.is_watched:
            container.start_prepared()
        if args.attach:
            from layerstore.cli import attach

            return attach.follow(container, since)
        print(name)
    return 0
