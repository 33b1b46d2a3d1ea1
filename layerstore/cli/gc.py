"""Give back the space of contents, layers and files that no image or container uses. Waits for loads under way."""

from __future__ import annotations

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(store: Store, args: argparse.Namespace) -> int:
    collected = store.collect_garbage()
    print(f"{collected.contents} contents dropped, {output.size(collected.freed_bytes)} given back")
    return 0
