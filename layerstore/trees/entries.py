"""What a container changed, entry by entry: what a layer's tar is written from, and what a container is moved by.

An entry says what is at a path of the container's tree that is not so in its image, as a layer of an image would:
whole, with its attributes and its content. The entries of a container come with a directory before what is in it, and
otherwise ordered by name as bytes within a directory; every directory on the way to an entry is one, too, but for the
root, which is one only where its own attributes changed. So they depend on the two trees alone, not on how the one
became the other.
"""

from __future__ import annotations

import stat
from copy import copy

from layerstore.trees.whiteouts import OVERLAY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Protocol, TypeAlias

    from layerstore.store.pieces import Piece

    class Source(Protocol):
        """Where the content of a regular file is read from."""

        def pieces(self) -> Iterator[Piece]:
            """The content, `Entry.size` bytes in all. Raises `OSError`, `CorruptError`."""

        def clone_to(self, fd: int) -> bool:
            """Have the empty file `fd` hold the content without copying its bytes, as far as it can.

            It has another size than `Entry.size` where the file does since the entry was made. False, and the file
            still empty, where file system or content do not allow that. Raises `OSError`.
            """

    Clone: TypeAlias = Callable[[Source, int], tuple[Iterable[Piece], int]]
    """Given where a content is read from and its size in bytes, gives the content and its size: those of a clone, of
    one moment, where one can be made."""


_LEFT_OUT = (OVERLAY, b"security.selinux", b"security.ima", b"security.evm")


def is_left_out(name: bytes) -> bool:
    """Whether an extended attribute belongs to no container: overlayfs's, and those that a kernel makes for itself."""
    return name.startswith(_LEFT_OUT)


class Entry:
    """What is at one path.

    path: without a leading "/"; empty for the root.
    mode: as `st_mode`; 0 for a whiteout: the image has something there, and the container nothing.
    rdev: as `st_rdev`, of a device.
    target: of a symbolic link.
    link: the path of an entry before this one that is the same inode, and says what the inode is: of this one only
        path and mode count.
    opaque: a directory that hides the image's directory at its path, and all in it.
    size: bytes of a regular file, of which `source` is the content; None where it is empty.
    lower: the record number, in the index of the image's chain, of the regular file whose content this is, unchanged;
        None where the content is the container's own.
    """

    __slots__ = (
        *("path", "mode", "uid", "gid", "mtime_ns", "rdev", "target", "link", "xattrs", "opaque"),
        *("size", "source", "lower"),
    )

    def __init__(self, path: bytes, mode: int, uid: int = 0, gid: int = 0, mtime_ns: int = 0) -> None:
        self.path = path
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.rdev = 0
        self.target: bytes | None = None
        self.link: bytes | None = None
        self.xattrs: dict[bytes, bytes] = {}
        self.opaque = False
        self.size = 0
        self.source: Source | None = None
        self.lower: int | None = None

    def at(self, path: bytes, link: bytes | None = None) -> Entry:
        """The same inode under another name, of a tree that is told whole: not opaque."""
        other = copy(self)
        other.path, other.link, other.opaque = path, link, False
        return other

    def is_whiteout(self) -> bool:
        return self.mode == 0

    def is_dir(self) -> bool:
        return stat.S_ISDIR(self.mode)

    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)
