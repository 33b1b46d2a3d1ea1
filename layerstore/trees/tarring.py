"""The tar of a layer from the entries that say what changed."""

from __future__ import annotations

import stat

from layerstore._core.tar_writer import TarWriter
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import PIECE_BYTES
from layerstore.trees.sources import begun

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Clone, Entry


def tar_pieces(entries: Iterable[Entry], clone: Clone | None = None) -> Iterator[Piece]:
    """The tar of a layer with these entries (csrc/tar/tar_writer.h), in pieces of about 1 MiB.

    Equal entries give equal bytes. Sockets are left out, as a tar cannot hold them.

    clone: asked for the content of each regular file that is larger than PACK_THRESHOLD_BYTES, once, in the order of
        the tar, right before the header of the file is written.

    Raises `InvalidInput` and `LimitExceeded`, naming the path, for what a layer cannot hold, `CorruptError` where a
    source gives another number of bytes than its entry says, and what sources raise. Not for two threads at once.
    """
    writer = TarWriter()
    for entry in entries:
        content = None if entry.link is not None else content_of(entry, clone)
        write_header(writer, entry)
        if content is not None:
            yield from write_content(writer, content)
        if len(writer) >= PIECE_BYTES:
            yield writer.take()
    writer.finish()
    yield writer.take()


def content_of(entry: Entry, clone: Clone | None) -> Iterable[Piece] | None:
    """The content of a regular file, from a clone where it is large; None where it is empty. The entry has the size of
    that then, which is another one where the file changed."""
    if entry.source is None:
        return None
    read = begun if clone is None or entry.size <= PACK_THRESHOLD_BYTES else clone
    content, entry.size = read(entry.source, entry.size)
    return content


def write_header(writer: TarWriter, entry: Entry) -> None:
    """All of an entry but its content. Raises as `tar_pieces`."""
    if entry.is_whiteout():
        writer.whiteout(entry.path)
    elif not stat.S_ISSOCK(entry.mode):
        writer.entry(
            entry.path,
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_ns,
            size=0 if entry.link is not None else entry.size,
            rdev=entry.rdev,
            target=entry.target,
            link=entry.link,
            xattrs=entry.xattrs,
        )
        if entry.opaque:
            writer.opaque(entry.path)


def write_content(writer: TarWriter, content: Iterable[Piece]) -> Iterator[Piece]:
    """The content of the entry just begun; gives what is written meanwhile by the piece. Raises as `tar_pieces`."""
    for piece in content:
        writer.data(piece)
        if len(writer) >= PIECE_BYTES:
            yield writer.take()
    writer.end_data()
