"""Where contents of entries are read from, and clones of files."""

from __future__ import annotations

import errno
import fcntl
import io

from layerstore.layers.streams import PIECE_BYTES, pieces_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.layers.streams import Piece
    from layerstore.store.contents import ContentStore

_FICLONE = 0x40049409  # linux/fs.h
_NO_CLONE = {errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.EBADF, errno.EPERM, errno.ETXTBSY}


class StoredContent:
    """A content of the store. Raises `CorruptError` where it is missing, when it is read."""

    def __init__(self, contents: ContentStore, digest: bytes) -> None:
        self._contents = contents
        self.digest = digest

    def pieces(self) -> Iterator[Piece]:
        """The content."""
        found = self._contents.find(self.digest)
        if isinstance(found, bytes):
            yield found
            return
        with found:
            yield from pieces_of(found, PIECE_BYTES)

    def link_to(self, path: str) -> bool:
        """Make `path` another name of the content's own file; False where it has none. It must not be changed.

        Whoever calls holds the garbage lock. Raises `OSError`.
        """
        return self._contents.link_to(self.digest, path)

    def clone_to(self, fd: int) -> bool:
        """As `Source.clone_to`: where it is a file of its own, on a file system with reflink."""
        found = self._contents.find(self.digest)
        if isinstance(found, io.FileIO):
            with found:
                return clone_file(found.fileno(), fd)
        return False


def clone_file(source_fd: int, target_fd: int) -> bool:
    """Have the empty file `target_fd` share all that `source_fd` has; False where these file systems cannot.

    Raises `OSError`.
    """
    try:
        fcntl.ioctl(target_fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True
