"""Files of what is on its way here. Of one that does not get here whole, the next who fetches it goes on from there."""

from __future__ import annotations

import contextlib
import os

from layerstore.naming import close_fd, fstat
from layerstore.store.locks import try_lock

_PRIVATE = ".private"
"""Ends the name of a file that nobody else will look for."""


class Spool:
    """The file for what has that name in `directory`, locked; one of another name where it is being fetched already.

    `fd` is open for reading and writing, and has what was fetched before. Raises `OSError`.
    """

    def __init__(self, directory: str, name: str) -> None:
        self.path = f"{directory}/{name}"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        self.fd = os.open(self.path, flags, 0o600)
        # Between opening and locking it may have been removed.
        if _is_taken(self.fd):
            return
        close_fd(self.fd)
        self.path = f"{directory}/{os.urandom(8).hex()}{_PRIVATE}"
        self.fd = os.open(self.path, flags | os.O_EXCL, 0o600)
        _is_taken(self.fd)

    def remove(self) -> None:
        """Have what was fetched not be there for the next one; who has the file open reads on."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def close(self) -> None:
        """Close it once, and leave it for the next one where there is something in it and it would be found."""
        if self.fd == -1:
            return
        fd, self.fd = self.fd, -1
        try:
            if self.path.endswith(_PRIVATE) or not fstat(fd).st_size:
                self.remove()
        finally:
            close_fd(fd)


def _is_taken(fd: int) -> bool:
    """Whether the file is locked now, and still there. It is closed where that raises `OSError`."""
    try:
        return try_lock(fd) and fstat(fd).st_nlink > 0
    except BaseException:
        close_fd(fd)
        raise
