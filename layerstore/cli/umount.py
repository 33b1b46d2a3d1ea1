"""Unmount containers. What they changed stays; mounting shows it again."""

from __future__ import annotations

from layerstore.cli import selection

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Store


def arguments(parser: argparse.ArgumentParser) -> None:
    selection.add(parser)
    parser.add_argument("-f", "--force", action="store_true", help="detach containers that are in use")


def run(store: Store, args: argparse.Namespace) -> int:
    store.umount(selection.selected(store, args), force=args.force)
    return 0
