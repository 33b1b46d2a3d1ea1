"""List the processes of a container, by their ids on this machine."""

from __future__ import annotations

import shlex

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store
    from layerstore.results import Running


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", metavar="CONTAINER")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    columns: output.Columns[Running] = {
        "UID": (lambda one: one.uid, str),
        "PID": (lambda one: one.pid, str),
        "PPID": (lambda one: one.ppid, str),
        "STIME": (lambda one: int(one.started * 10**9), output.time),
        "TIME": (lambda one: one.cpu_seconds, _time),
        "CMD": (lambda one: one.command, shlex.join),
    }
    output.listing(store.container(args.container).top(), columns, args.format)
    return 0


def _time(seconds: float) -> str:
    return f"{int(seconds) // 3600:02}:{int(seconds) // 60 % 60:02}:{int(seconds) % 60:02}"
