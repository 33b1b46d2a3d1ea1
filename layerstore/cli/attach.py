"""Show what a container's program prints from now on, until it ends, and exit with its status. Signals go to it.

It has no input: what is typed here does not reach it. `exec -it` has a terminal in the container."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-sig-proxy", action="store_true", help="signals end this command, not the program")
    parser.add_argument("container", metavar="CONTAINER")


def run(store: Store, args: argparse.Namespace) -> int:
    import signal

    from layerstore.cli import logs
    from layerstore.errors import Conflict, NotFound

    container = store.container(args.container)
    if container.state not in ("running", "paused"):
        raise Conflict(f"nothing runs in container {args.container}; `layerstore logs` has what was printed")

    def forward(number: int, _frame: object) -> None:
        try:
            container.kill(number)
        except NotFound:
            raise KeyboardInterrupt(number) from None

    if not args.no_sig_proxy:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, forward)
    logs.show(container.logs(follow=True, since=time.time()), timestamps=False)
    return container.wait()
