"""Give back the space of contents, layers and files that no image or container uses. Waits for loads under way."""

import argparse

from layerstore.api import Store
from layerstore.cli import output


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(store: Store, args: argparse.Namespace) -> int:
    collected = store.collect_garbage()
    print(f"{collected.contents} contents dropped, {output.size(collected.freed_bytes)} given back")
    return 0
