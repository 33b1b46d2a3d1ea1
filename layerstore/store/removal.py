"""Removing a directory that something may be mounted in: no mount is ever entered."""

from __future__ import annotations

import os

from layerstore._core.mount import container_remove_many, mounted_many, umount_many
from layerstore.naming import open_fd


def remove_directory(parent: str, name: str) -> None:
    """Remove a directory with what is in it; what is mounted on `root` in it is detached first.

    Nothing happens where it is missing, or while somebody else is removing it. Raises `OSError`, `Unsupported` where
    something is mounted and this user may not unmount it.
    """
    with open_fd(parent, os.O_RDONLY | os.O_DIRECTORY) as fd:
        while any(mounted_many(fd, [name])):
            umount_many(fd, [name], lazy=True)
        container_remove_many(fd, [name])
