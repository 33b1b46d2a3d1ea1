"""Files that share their content on disk: where the file system can do that."""

from __future__ import annotations

import errno
import fcntl

from layerstore.store import durable

_FICLONE = 0x40049409  # linux/fs.h
_CANNOT = (errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS, errno.EISDIR, errno.EXDEV)


def share(fd: int, source_fd: int) -> bool:
    """Have the empty file `fd` be as `source_fd` is, without a copy; False where these two cannot. Raises `OSError`."""
    try:
        fcntl.ioctl(fd, _FICLONE, source_fd)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def has_reflink(directory: str) -> bool:
    """Whether files in `directory` can share content: tried with two nameless files. Raises `OSError`."""
    try:
        with durable.nameless(directory) as one, durable.nameless(directory) as other:
            one.write(bytes(4096))
            return share(other.fileno(), one.fileno())
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
