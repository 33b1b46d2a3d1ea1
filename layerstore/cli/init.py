"""Make an empty store, or do nothing where there is one."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


CREATES_STORE = True


def arguments(parser: argparse.ArgumentParser) -> None:
    pass


def run(store: Store, args: argparse.Namespace) -> int:
    print(store.layout.root)
    return 0
