"""Upper directories that make of an image what entries say: how a container comes to the overlay driver.

What overlayfs finds in one is written in Documentation/filesystems/overlayfs.rst, "whiteouts and opaque directories"
and "Metadata only copy up": a file whose content is the image's has a size and no bytes, and names the file of the
image.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from layerstore._core.branches import record as record_of
from layerstore.errors import CorruptError, Unsupported
from layerstore.extents.own_contents import LayerContent
from layerstore.naming import about, close_fd, open_fd
from layerstore.store import reflink
from layerstore.trees.entries import Entry, is_left_out
from layerstore.trees.sources import write_filled
from layerstore.trees.whiteouts import METACOPY, OPAQUE, REDIRECT, is_whiteout
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Iterator

    from layerstore._core.index import Index
    from layerstore.trees.entries import Source

    Made = dict[Hashable, str]
    """Where contents of a container's own are that were written, by what they are."""

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_ROOM = (errno.ENOSPC, errno.E2BIG, errno.ERANGE)


def write_upper(entries: Iterable[Entry], index: Index, upper: str, made: Made | None = None) -> None:
    """Fill the empty directory `upper` with what entries, in canonical order, make of an image; its own attributes are
    the image's root's where no entry says otherwise. `index` is that of the image's chain.

    Contents are shared with the store where the file system has reflink, and those that are the image's not written at
    all. `made` is given for several states of one container, to share what they have in common: empty for the first.
    Takes root. Nothing is synced.

    Raises `OSError` with the path of what could not be made, `Unsupported` for what no upper directory can have,
    `CorruptError` where a content has another size than its entry. What was made until then stays.
    """
    with (
        open_fd(upper, os.O_RDONLY | os.O_DIRECTORY) as fd,
        contextlib.closing(_Writer(index, fd, upper, made)) as writer,
    ):
        for entry in entries:
            writer.make(entry)
        writer.finish()


def _root_of(index: Index) -> Entry:
    """The root of the image as an entry."""
    root = record_of(index, 0)
    entry = Entry(b"", root.mode, root.uid, root.gid, root.mtime_ns)
    entry.xattrs = {name: value for name, value in root.xattrs.items() if not is_left_out(name)}
    return entry


class _Writer:
    """Names are taken from the descriptor of the directory that they are in, as a path may be as long as any."""

    def __init__(self, index: Index, top_fd: int, shown: str, made: Made | None) -> None:
        self._made = made
        self._index = index
        self._top_fd = top_fd
        self._shown = shown
        self._parent = b""
        with about(top_fd):
            self._parent_fd = os.dup(top_fd)
        self._directories = [_root_of(index)]

    def close(self) -> None:
        close_fd(self._parent_fd)

    @contextlib.contextmanager
    def _naming(self, entry: Entry) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"{self._shown}/{decode_path(entry.path)}") from error

    def make(self, entry: Entry) -> None:
        """Make what an entry says; a directory without its attributes, as its time changes with what is made in it, and
        a default ACL would be for that."""
        with self._naming(entry):
            parent, _, name = entry.path.rpartition(b"/")
            if not entry.path:
                self._directories[0] = entry
                return
            self._go_to(parent)
            if entry.is_dir():
                self._directories.append(entry)
                os.mkdir(name, 0o700, dir_fd=self._parent_fd)
            elif entry.is_whiteout():
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=self._parent_fd)
            elif entry.link is not None:
                os.link(entry.link, name, src_dir_fd=self._top_fd, dst_dir_fd=self._parent_fd, follow_symlinks=False)
            elif entry.is_file():
                self._file(entry, name)
            else:
                self._special(entry, name)

    def finish(self) -> None:
        """Give the directories their attributes."""
        for entry in reversed(self._directories):
            with self._naming(entry), open_fd(entry.path or b".", _DIRECTORY, dir_fd=self._top_fd) as fd:
                _set_attributes(fd, entry)
                if entry.opaque:
                    os.setxattr(fd, OPAQUE, b"y")
                os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _go_to(self, parent: bytes) -> None:
        if parent != self._parent:
            fd = os.open(parent or b".", _DIRECTORY, dir_fd=self._top_fd)
            close_fd(self._parent_fd)
            self._parent, self._parent_fd = parent, fd

    def _file(self, entry: Entry, name: bytes) -> None:
        with open_fd(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._parent_fd) as fd:
            if entry.source is not None and not (entry.lower is not None and self._refer(fd, entry.lower, entry.size)):
                self._fill(fd, entry, entry.source)
            _set_attributes(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _refer(self, fd: int, lower: int, size: int) -> bool:
        """Have the file's content be that of a file of the image; False where there is no room to say so."""
        os.ftruncate(fd, size)
        os.setxattr(fd, METACOPY, b"")
        try:
            os.setxattr(fd, REDIRECT, b"/" + record_of(self._index, lower).path)
        except OSError as error:
            if error.errno not in _NO_ROOM:
                raise
            os.removexattr(fd, METACOPY)
            os.ftruncate(fd, 0)
            return False
        return True

    def _fill(self, fd: int, entry: Entry, source: Source) -> None:
        if self._made is None or not isinstance(source, LayerContent):
            self._write(fd, entry, source)
            return
        identity = source.identity()
        if not (identity in self._made and _share(fd, self._made[identity])):
            self._write(fd, entry, source)
            self._made[identity] = f"{self._shown}/{os.fsdecode(entry.path)}"

    def _write(self, fd: int, entry: Entry, source: Source) -> None:
        if source.clone_to(fd):
            return
        size = write_filled(fd, source.pieces())
        if size != entry.size:
            raise CorruptError(f"/{decode_path(entry.path)} has {size} bytes and not {entry.size}")

    def _special(self, entry: Entry, name: bytes) -> None:
        if is_whiteout(entry.mode, entry.rdev):
            raise Unsupported(
                f"/{decode_path(entry.path)} is the character device 0:0, which to overlayfs says that a file was "
                "removed; remove it first"
            )
        if entry.target is not None:
            os.symlink(entry.target, name, dir_fd=self._parent_fd)
        else:
            os.mknod(name, entry.mode, entry.rdev, dir_fd=self._parent_fd)
        path = b"/proc/self/fd/%d/%b" % (self._parent_fd, name)
        _set_attributes(path, entry)
        os.utime(path, ns=(entry.mtime_ns, entry.mtime_ns), follow_symlinks=False)


def _share(fd: int, path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return reflink.share(fd, file.fileno())
    except OSError:  # a path that is too long to be opened at once
        return False


def _set_attributes(file: int | bytes, entry: Entry) -> None:
    """All but the time, of a file by its descriptor or of a link by its path. In this order, as a new owner takes
    permissions and capabilities away."""
    of_link = {} if isinstance(file, int) else {"follow_symlinks": False}
    os.chown(file, entry.uid, entry.gid, **of_link)
    if entry.target is None:
        os.chmod(file, stat.S_IMODE(entry.mode))
    for attribute, value in entry.xattrs.items():
        os.setxattr(file, attribute, value, **of_link)
