"""Show what a container's program prints from now on, until it ends, and exit with its status. Signals go to it.

It has no input: what is typed here does not reach it. `exec -it` has a terminal in the container."""

from __future__ import annotations

import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Container, Store


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--no-sig-proxy", action="store_true", help="signals end this command, not the program")
    parser.add_argument("container", metavar="CONTAINER")


def run(store: Store, args: argparse.Namespace) -> int:
    from layerstore.errors import Conflict

    container = store.container(args.container)
    if container.state not in ("running", "paused"):
        raise Conflict(f"nothing runs in container {args.container}; `layerstore logs` has what was printed")
    return follow(container, time.time(), has_proxy=not args.no_sig_proxy)


def follow(container: Container, since: float, *, has_proxy: bool = True) -> int:
    """Print what its program prints from that time on, seconds since 1970; the exit status. Signals go to the program
    where `has_proxy`. Raises as `Container.wait` and `logs`."""
    import signal

    from layerstore.cli import logs
    from layerstore.errors import NotFound

    def forward(number: int, _frame: object) -> None:
        try:
            container.kill(number)
        except NotFound:
            raise KeyboardInterrupt(number) from None

    # Before its output: one that is removed with its end is not there any more after that.
    with container.ending() as ending:
        if has_proxy:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, forward)
        logs.show(container.logs(follow=True, since=since), timestamps=False)
        record = ending.wait(None)
    assert record is not None
    return record.known_status()
