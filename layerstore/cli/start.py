"""Start containers, and leave them running: what was given to `create`, or to the last `run`, with the options that it
had there. Prints the names as they were given; `logs` has the output, `wait` the end."""

from __future__ import annotations

from layerstore.errors import ProgramNotExecutable, ProgramNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store

STATUS_OF: dict[type[Exception], int] = {ProgramNotFound: 127, ProgramNotExecutable: 126}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("containers", metavar="CONTAINER", nargs="+")


def run(store: Store, args: argparse.Namespace) -> int:
    for name in args.containers:
        container = store.container(name)
        # Commands may have left it running without its program.
        program = container.program
        if program is None or not program.is_watched:
            container.start_prepared()
        print(name)
    return 0
