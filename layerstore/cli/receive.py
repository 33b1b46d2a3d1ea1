"""Take in the images that `layerstore sync` sends, which runs this on the other machine: what comes is read from
standard input, and answered on standard output. The store is made where there is none."""

from __future__ import annotations

import io
import os

from layerstore.errors import InvalidInput

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store

CREATES_STORE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(store: Store, args: argparse.Namespace) -> int:
    if os.isatty(0):
        raise InvalidInput("nobody types what this reads; `layerstore sync` runs it on the machine that it sends to")
    with io.FileIO(os.dup(0), "r") as reading, io.FileIO(os.dup(1), "w") as writing:
        os.dup2(2, 1)  # whatever else is printed is no answer
        return 0 if store.receive(reading, writing) else 1
