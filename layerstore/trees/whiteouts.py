"""How overlayfs writes what is gone or moved (Documentation/filesystems/overlayfs.rst; csrc/base/whiteout.h)."""

import stat

OVERLAY = b"trusted.overlay."
"""Begins the names of overlayfs's own extended attributes, by which a kernel knows what an inode is."""
OPAQUE = OVERLAY + b"opaque"
REDIRECT = OVERLAY + b"redirect"
METACOPY = OVERLAY + b"metacopy"
UUID = OVERLAY + b"uuid"


def is_whiteout(mode: int, rdev: int) -> bool:
    """Whether an inode, with these `st_mode` and `st_rdev`, is a whiteout to overlayfs: a character device 0:0."""
    return stat.S_ISCHR(mode) and not rdev
