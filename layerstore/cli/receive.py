"""Take in the images that `layerstore sync` sends, which runs this on the other machine: what comes is read from
standard input, and answered on standard output. The store is made where there is none."""

from __future__ import annotations

import os

from layerstore.cli.sync import add_timeout
from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store

CREATES_STORE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    add_timeout(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    if os.isatty(0):
        raise InvalidInput("nobody types what this reads; `layerstore sync` runs it on the machine that it sends to")
    reading, writing = os.dup(0), os.dup(1)
    os.dup2(2, 1)  # whatever else is printed is no answer
    return 0 if store.receive(reading, writing, timeout_seconds=args.timeout or None) else 1
