"""Logs that make of an image what entries say: how a container comes to the extent driver."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from layerstore._core import log as kinds
from layerstore._core.branches import branches
from layerstore._core.branches import record as record_of
from layerstore._core.extent_file import read
from layerstore._core.extent_io import LogWriter
from layerstore._core.extents import ZERO, ExtentMap, source
from layerstore._core.hashing import Hasher
from layerstore._core.log import Record
from layerstore.errors import CorruptError
from layerstore.extents.applying import attributes, extents_records, inode_records
from layerstore.extents.image_tree import ROOT
from layerstore.extents.log import new_log
from layerstore.extents.table import Inode
from layerstore.naming import about
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.trees.entries import is_left_out
from layerstore.trees.paths import directories_above, parent_of
from layerstore.trees.sources import differing, filled
from layerstore.types import decode_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.extents.image_tree import ImageTree
    from layerstore.store.layout import Layout
    from layerstore.trees.entries import Entry, Source
    from layerstore.types import ChainId

    _Place = tuple[str, list[tuple[int, int, int]]]
    """A log, and start, length, and the place in it of each range of a content that is not zeros."""

_WORTH_SHARING_BYTES = 4096


class Recorded(NamedTuple):
    """A log that was written: its id and length in bytes, and of which logs it has data, up to where."""

    log: str
    length: int
    uses: dict[str, int]


class Recorder:
    """Writes logs on one image, of states of a container: what several have in common is written once.

    Not safe for many threads.
    """

    def __init__(self, layout: Layout, chain: ChainId, image: ImageTree) -> None:
        self.image = image
        self._layout = layout
        self._chain = chain
        self._written: dict[bytes, _Place] = {}
        self._lengths: dict[str, int] = {}

    def record(self, entries: Iterable[Entry], *, share: bool) -> Recorded:
        """Write a log of entries in canonical order, durable but for its name.

        share: look for contents in the logs that this object wrote, and let later ones find those of this.

        Raises `CorruptError` where a content has another size than its entry, `OSError`; nothing is left then.
        """
        with new_log(self._layout, self._chain) as (log, writer):
            plan = _Plan(self.image, list(entries))
            if records := plan.records():
                writer.append(records)
            contents = _Contents(self.image, writer, log, self._written if share else None)
            for entry, number in plan.own_contents():
                contents.add(entry, number)
            with about(self._layout.log(log)):
                self._lengths[log] = writer.sync()
        return Recorded(log, self._lengths[log], {used: self._lengths[used] for used in contents.sources})


class _Plan:
    """Which inode each entry is, and the records that say so.

    An inode of the image stays what it is where its content does, unless one of its names shows it as the image has it:
    then these two are not the same file any more, as overlayfs makes of hard links.
    """

    def __init__(self, image: ImageTree, entries: list[Entry]) -> None:
        self._image = image
        self._index = image.index
        self._entries = entries
        self._paths = {entry.path for entry in entries}
        self._merged = {b"": ROOT}
        self._at: dict[bytes, int | None] = {}
        self._numbers: dict[bytes, int] = {b"": ROOT}
        self._next_number = kinds.FIRST_NEW_INODE
        self._place()
        self._names = self._image_names()
        self._kept = set(self._names)
        # Inodes of the image of which the content is changed.
        self._changed: set[int] = set()
        for entry in entries:
            if not entry.is_whiteout():
                self._numbers[entry.path] = self._number(entry)

    def own_contents(self) -> Iterator[tuple[Entry, int]]:
        """The entries whose content is to be written, and the inodes to which."""
        for entry in self._entries:
            if entry.source is not None and entry.link is None:
                number = self._numbers[entry.path]
                if number >= kinds.FIRST_NEW_INODE or number in self._changed:
                    yield entry, number

    def records(self) -> list[Record]:
        """All but contents, as one operation: all names are given before one is taken, so that no inode is without in
        between."""
        records: list[Record] = []
        for entry in self._entries:
            if not entry.is_whiteout() and entry.link is None:
                records += self._inode(entry, self._numbers[entry.path])
        times = {entry.path: entry.mtime_ns for entry in self._entries if entry.is_dir()}
        times.setdefault(b"", self._image.inode(ROOT).mtime_ns)
        removed: list[Record] = []
        for entry in self._entries:
            parent, _, name = entry.path.rpartition(b"/")
            at = self._at[entry.path]
            if entry.is_whiteout():
                if at is not None:
                    removed.append(Record(kinds.REMOVE, self._numbers[parent], mtime_ns=times[parent], payload=name))
                continue
            number = self._numbers[entry.path]
            if entry.path and (at is None or record_of(self._index, at).inode != number):
                records.append(
                    Record(kinds.ENTRY, self._numbers[parent], 0, number, mtime_ns=times[parent], payload=name)
                )
        return records + removed

    # Places

    def _place(self) -> None:
        """Find what the image has at the paths of entries, in directories that are its own, and which are that."""
        found = self._index.lookup_many([entry.path for entry in self._entries])
        for entry, number in zip(self._entries, found, strict=True):
            at = number if parent_of(entry.path) in self._merged else None
            self._at[entry.path] = at
            if entry.is_dir() and not entry.opaque and at is not None and record_of(self._index, at).is_dir():
                self._merged[entry.path] = at

    def _shows(self, path: bytes) -> bool:
        """Whether the container shows at that path of the image what the image does."""
        if path in self._paths:
            return False
        for directory in directories_above(path):
            if directory in self._paths:
                return directory in self._merged
        return True

    # Inodes

    def _image_names(self) -> dict[int, list[bytes]]:
        """The paths in the image of the inodes of which the content is kept."""
        lowers = [record_of(self._index, entry.lower) for entry in self._entries if entry.lower is not None]
        names = {record.inode: [record.path] for record in lowers if record.links == 1}
        linked: dict[int, list[bytes]] = {record.inode: [] for record in lowers if record.links > 1}
        if linked:
            for record in branches(self._index, linked):
                if record.inode in linked:
                    linked[record.inode].append(record.path)
        return names | linked

    def _number(self, entry: Entry) -> int:
        if entry.link is not None:
            return self._numbers[entry.link]
        if entry.path in self._merged:
            return self._merged[entry.path]
        if entry.lower is not None:
            number = record_of(self._index, entry.lower).inode
            names = self._names.pop(number, None)
            if names is not None and not any(map(self._shows, names)):
                return number
        elif (at := self._at[entry.path]) is not None and self._may_share(entry, at):
            self._changed.add(at)
            return at
        self._next_number += 1
        return self._next_number - 1

    def _may_share(self, entry: Entry, at: int) -> bool:
        """Whether a file may have much of what the image's file in its place has: a large one, perhaps copied up."""
        if entry.size <= PACK_THRESHOLD_BYTES:
            return False
        there = record_of(self._index, at)
        is_large = there.content is not None and there.content[1] > PACK_THRESHOLD_BYTES
        return is_large and there.links == 1 and at not in self._kept

    def _inode(self, entry: Entry, number: int) -> list[Record]:
        """What makes the inode be as the entry says."""
        inode = Inode(number, entry.mode, entry.uid, entry.gid, entry.mtime_ns, 0)
        inode.target, inode.rdev, inode.xattrs = entry.target, entry.rdev, entry.xattrs
        size = Record(kinds.TRUNCATE, number, value=entry.size, mtime_ns=entry.mtime_ns)
        if number >= kinds.FIRST_NEW_INODE:
            return inode_records(inode, None) + ([size] if entry.size else [])
        before = self._image.inode(number)
        # What entries never say of an inode stays.
        inode.xattrs = {name: value for name, value in before.xattrs.items() if is_left_out(name)} | inode.xattrs
        if entry.is_dir() and attributes(inode) == attributes(before):
            return []
        return inode_records(inode, before) + ([size] if number in self._changed else [])


class _Contents:
    """Writes contents to a log, and finds those again that were written before.

    known: where the contents are that were written, by digest: None where none is to be found again.
    """

    def __init__(self, image: ImageTree, writer: LogWriter, log: str, known: dict[bytes, _Place] | None) -> None:
        self._image = image
        self._writer = writer
        self._log = log
        self._known = known
        self.sources: dict[str, int] = {}
        """Other logs that data is in, to the numbers that this one has for them."""

    def add(self, entry: Entry, number: int) -> None:
        """Have an inode have the content of an entry, of which it has the size: a new one, or one of the image."""
        assert entry.source is not None
        if number < kinds.FIRST_NEW_INODE:
            self._change(entry, entry.source, self._image.inode(number))
            return
        if self._known is None or entry.size < _WORTH_SHARING_BYTES:
            self._write(entry, entry.source, number)
            return
        hasher = Hasher()
        for piece in entry.source.pieces():
            hasher.update(piece)
        digest = hasher.digest()
        if digest in self._known:
            self._refer(number, self._known[digest])
        else:
            self._known[digest] = self._log, self._write(entry, entry.source, number)

    def _refer(self, number: int, place: _Place) -> None:
        log, pieces = place
        known_as = 0 if log == self._log else self.sources.get(log)
        if known_as is None:
            known_as = self.sources[log] = len(self.sources) + 1
            self._writer.append([Record(kinds.SOURCE_LOG, value=known_as, payload=bytes.fromhex(log))])
        extents = ((start, length, source(known_as, offset)) for start, length, offset in pieces)
        for record in extents_records(number, extents):
            self._writer.append([record])

    def _change(self, entry: Entry, content: Source, inode: Inode) -> None:
        """Write what differs from the image's content."""
        stored, _keeps_open = self._image.content(inode.digest or b"", inode.image_size)
        extents, written = ExtentMap(inode.image_size), ExtentMap()
        size = 0
        for piece in content.pieces():
            data = memoryview(piece)
            there = bytearray(len(data))
            read(extents, [], stored, size, there)
            for start, end in differing(data, there):
                self._writer.write(written, inode.number, size + start, data[start:end], entry.mtime_ns)
            size += len(data)
        _check_size(entry, size)

    def _write(self, entry: Entry, content: Source, number: int) -> list[tuple[int, int, int]]:
        """Returns start, length, and the place in the log of each range that is not zeros."""
        written = ExtentMap()
        size = 0
        for piece in content.pieces():
            data = memoryview(piece)
            for start, end in filled(data):
                self._writer.write(written, number, size + start, data[start:end], entry.mtime_ns)
            size += len(data)
        _check_size(entry, size)
        return [(start, length, where) for start, length, where in written if where != ZERO]


def _check_size(entry: Entry, size: int) -> None:
    if size != entry.size:
        raise CorruptError(
            f"/{decode_path(entry.path)} has {size} bytes and not {entry.size}: it was changed while it was read; "
            "try again"
        )
