"""Logs as files: making, opening and reading them again."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
from typing import TYPE_CHECKING

from layerstore._core.extent_io import LogFile, LogWriter
from layerstore._core.log import HEADER_BYTES, Header, LogReader
from layerstore.errors import CorruptError
from layerstore.extents import log_rows
from layerstore.extents.image_tree import Descriptor
from layerstore.naming import about, fstat, open_fd
from layerstore.store import durable
from layerstore.store.pieces import PIECE_BYTES, read_at, write_at

if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.store.layout import Layout
    from layerstore.types import ChainId

_READ_BYTES = 16 * 1024

State = tuple[str, int]
"""A state of a layer: the id of a log, 32 hexadecimal digits, and how many of its bytes count."""


class Logs:
    """The logs that the extents of one table name, by their numbers: to read from, by id, and what keeps them open."""

    def __init__(self, other: Logs | None = None) -> None:
        self.files: list[LogFile] = list(other.files) if other else []
        self.ids: list[str] = list(other.ids) if other else []
        self.descriptors: list[Descriptor] = list(other.descriptors) if other else []
        self._former: list[Descriptor] = []

    def __len__(self) -> int:
        return len(self.files)

    def add(self, log: str, descriptor: Descriptor, length: int) -> int:
        """Add a log, of which `length` bytes count; returns its number."""
        self.files.append(LogFile(descriptor.fd, length))
        self.ids.append(log)
        self.descriptors.append(descriptor)
        return len(self.files) - 1

    def reopen(self, number: int, descriptor: Descriptor) -> None:
        """Have a log open by another descriptor. The former stays open: a thread may be about to read from it."""
        self._former.append(self.descriptors[number])
        self.descriptors[number] = descriptor


class LogMissing(CorruptError):
    """There is no file of a log: it was lost, or nothing needs it any more since whoever opens it looked."""


def open_log(layout: Layout, log: str, *, write: bool = False) -> Descriptor:
    """Open the file of a log. Raises `LogMissing`, `OSError`."""
    try:
        return Descriptor(os.open(layout.log(log), (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC))
    except FileNotFoundError:
        raise LogMissing(
            f"log {log} of a container is missing: it was lost with power before it was synced, or removed; "
            "`layerstore rollback` the container to a snapshot, or `layerstore rm` it"
        ) from None


class OpenLog:
    """The first `length` bytes of a log (all without it), open and read up to the first record that is not whole.

    Data that ends at byte `checked` or before is not read for that. Raises `CorruptError` where it is no log or not
    that of this image, `OSError`.
    """

    def __init__(
        self,
        layout: Layout,
        chain: ChainId,
        log: str,
        descriptor: Descriptor,
        length: int | None = None,
        *,
        checked: int = 0,
    ) -> None:
        self.id = log
        self.descriptor = descriptor
        with about(layout.log(log)):
            self.size = fstat(descriptor.fd).st_size
        count = self.size if length is None else min(self.size, length)
        if count < HEADER_BYTES:
            raise CorruptError(f"{layout.log(log)} ends in its header; `layerstore rm` the container")
        self.reader = LogReader(_content(descriptor.fd, count), checked)
        header = self.reader.header
        if header.id.hex() != log or header.chain_id != chain_bytes(chain):
            raise CorruptError(f"{layout.log(log)} is the log of another layer; restore it from a copy of the store")
        self.end = self.reader.end
        self.base: State | None = (header.base_id.hex(), header.base_length) if header.base_length else None


def _content(fd: int, count: int) -> bytes | mmap.mmap:
    """The first bytes of a file; to map those of a new log would take longer than all else in opening it."""
    with about(fd):
        return read_at(fd, count, 0) if count <= _READ_BYTES else mmap.mmap(fd, count, access=mmap.ACCESS_READ)


def read_again(fd: int, length: int) -> LogReader:
    """The records of the first `length` bytes of a log that this process read or wrote before.

    Raises `CorruptError` where they are not whole any more; `OSError`.
    """
    reader = LogReader(_content(fd, length), length)
    if reader.end != length:
        raise CorruptError(f"log {reader.header.id.hex()} was damaged while it was written: {reader.reason}")
    return reader


class LogSyncs:
    """Syncs of logs by this process, which know those that failed.

    The kernel tells once that it could not write something, and takes it for written then: the next fdatasync(2) would
    be a lie. Before that such a log is written again.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._failed: set[str] = set()

    def of_writer(self, log: str, writer: LogWriter) -> None:
        """`LogWriter.sync`. Raises `OSError`, also of a later sync, until all of the log is on the disk."""
        with self._told(log, writer.flush()), about(self._layout.log(log)):
            writer.sync()

    def of_bases(self, logs: Logs, but: int) -> None:
        """Have the logs be durable that one goes on from, or has data of. Raises as `of_writer`."""
        for number, log in enumerate(logs.ids):
            if number != but:
                with self._told(log, logs.files[number].length), about(self._layout.log(log)):
                    os.fdatasync(logs.descriptors[number].fd)

    @contextlib.contextmanager
    def _told(self, log: str, length: int) -> Iterator[None]:
        try:
            if log in self._failed:
                self._write_again(log, length)
            yield
        except OSError:
            self._failed.add(log)
            raise
        self._failed.discard(log)

    def _write_again(self, log: str, length: int) -> None:
        """Write the first bytes of a log over themselves. Raises `OSError` where they are not there any more."""
        descriptor = open_log(self._layout, log, write=True)
        reader = LogReader(_content(descriptor.fd, length))
        if reader.end != length:
            raise OSError(
                errno.EIO,
                f"log {log} of a container could not be written to the disk, and is lost from byte {reader.end} on",
            )
        with about(self._layout.log(log)):
            for position in range(0, length, PIECE_BYTES):
                piece = read_at(descriptor.fd, min(PIECE_BYTES, length - position), position)
                write_at(descriptor.fd, piece, position)
            os.fdatasync(descriptor.fd)


def chain_bytes(chain: ChainId) -> bytes:
    """A chain's id as the header of a log has it."""
    return bytes.fromhex(chain.removeprefix("sha256:"))


def create_log(layout: Layout, chain: ChainId, base: State | None) -> str:
    """Make an empty log that goes on from a state; returns its id. Raises `OSError`."""
    log = os.urandom(16)
    header = (
        Header(log, chain_bytes(chain), bytes.fromhex(base[0]), base[1]) if base else Header(log, chain_bytes(chain))
    )
    path = layout.log(log.hex())
    with open_fd(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as fd:
        try:
            with about(path):
                write_at(fd, header.pack(), 0)
        except BaseException:
            os.unlink(path)
            raise
    return log.hex()


@contextlib.contextmanager
def new_log(layout: Layout, chain: ChainId) -> Iterator[tuple[str, LogWriter]]:
    """A log that goes on from no other, to be written in the block: its id and what writes to it. It is removed where
    the block raises. Raises `OSError`."""
    log = create_log(layout, chain, None)
    try:
        with open_fd(layout.log(log), os.O_RDWR) as fd:
            yield log, LogWriter(fd, fstat(fd).st_size, bytes.fromhex(log), 0)
    except BaseException:
        log_rows.unlink(layout, [log])
        raise


def create_logs(layout: Layout, chain: ChainId, base: State | None, count: int) -> list[str]:
    """As `create_log`, so many, which are on the disk then, with their names: a row that needs one may be durable as
    soon as it is there. Raises `OSError`; none is left then."""
    logs: list[str] = []
    try:
        with durable.file_system(layout.logs) as sync_all:
            logs += (create_log(layout, chain, base) for _ in range(count))
            if count > 1:
                sync_all()
            else:
                path = layout.log(logs[0])
                with open_fd(path, os.O_RDONLY) as fd, about(path):
                    os.fdatasync(fd)
                durable.sync_directory(layout.logs)
    except BaseException:
        log_rows.unlink(layout, logs)
        raise
    return logs
