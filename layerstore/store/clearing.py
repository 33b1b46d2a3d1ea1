"""Clearing away what was begun. Its own module, which whoever cleans up has loaded before: where no descriptor is left,
nothing can be."""

from __future__ import annotations

import contextlib
import shutil


def clear_tree(path: str) -> None:
    """Remove a directory with what is in it, as far as that can be done: what is left is for the next one to remove.
    `shutil.rmtree` raises errors of some calls although it is told to ignore them."""
    with contextlib.suppress(OSError):
        shutil.rmtree(path, ignore_errors=True)
