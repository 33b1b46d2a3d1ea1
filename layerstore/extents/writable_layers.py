"""The writable layers of a store: opening them, their forks, snapshots and rollbacks."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections import OrderedDict
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from layerstore._core.extent_io import LogWriter
from layerstore._core.log import FIRST_NEW_INODE, HEADER_BYTES
from layerstore.errors import Conflict, NotFound, Unsupported
from layerstore.extents import compaction, log_rows
from layerstore.extents.log import LogMissing, Logs, LogSyncs, OpenLog, create_logs, open_log
from layerstore.extents.table import Table
from layerstore.extents.tree import Tree
from layerstore.naming import about, fstat
from layerstore.store import durable, locks
from layerstore.store.recent import Recent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from layerstore.extents.image_tree import Descriptor, ImageTree
    from layerstore.extents.log import State
    from layerstore.extents.table import Inode
    from layerstore.store.opened import OpenStore
    from layerstore.types import ChainId, ImageId

_Found = TypeVar("_Found")
_CACHED_STATES = 64
_OPEN_LAYERS = 256
_LEFT_BYTES = 64 << 20
_LEFT_LOG_BYTES = 1 << 20


class Frozen:
    """A state of a layer in memory, which those that go on from it share."""

    def __init__(self, levels: tuple[dict[int, Inode], ...], logs: Logs, next_number: int) -> None:
        self.levels = levels
        self.logs = logs
        self.next_number = next_number


def _no_source(log: bytes) -> int:
    raise AssertionError(f"a tree that nobody changes is to read from log {log.hex()}")


class Layers:
    """Opens the writable layers of a store's containers, and keeps those in memory that were used last.

    Safe for many threads.
    """

    def __init__(self, store: OpenStore, image_tree: Callable[[ImageId], ImageTree]) -> None:
        self.layout = store.layout
        self.database = store.database
        self.image_tree = image_tree
        self._lock = threading.RLock()  # taken before that of a layer, which is taken before that of its tree
        self._left_lock = threading.Lock()
        self._states = Recent(_CACHED_STATES)
        self._layers: OrderedDict[str, Layer] = OrderedDict()
        self.syncs = LogSyncs(store.layout)
        self._left: set[str] = set()
        self._left_bytes = 0
        _opened.add(self)

    def layer(self, container: str, image: ImageId, chain: ChainId) -> Layer:
        """The layer of a container."""
        with self._lock:
            layer = self._layers.get(container)
            if layer is None:
                layer = self._layers[container] = Layer(self, container, image, chain)
            self._layers.move_to_end(container)
            if len(self._layers) > _OPEN_LAYERS:
                self._retire_one(layer)
            return layer

    def _retire_one(self, but: Layer) -> None:
        """Close the layer that was not used for the longest time, of those without open files."""
        for layer in self._layers.values():
            if layer is not but and not layer.in_use:
                del self._layers[layer.container]
                layer.close(retire=True)
                return

    def forget(self, container: str) -> None:
        """The container was removed."""
        with self._lock:
            layer = self._layers.pop(container, None)
            if layer is not None:
                layer.close(retire=True)

    def close(self) -> None:
        """Append what is gathered and let others write. Raises `OSError` where that failed for a layer; the others are
        closed, too."""
        failed: list[OSError] = []
        with self._lock:
            while self._layers:
                try:
                    self._layers.popitem()[1].close(retire=True)
                except OSError as error:
                    failed.append(error)
        self._states.clear()
        if failed:
            raise failed[0]
        self._remove_left()

    def leave(self, gone: list[str]) -> None:
        """These logs were taken out of the database.

        Their files stay until that is durable, as a power cut may bring back rows that need them, with what was synced
        in them; that is when something is synced, when there is much of them, and at the end (`close`). To wait for
        the disk each time would be most of what a rollback takes.
        """
        with self._left_lock:
            for log in gone:
                with contextlib.suppress(FileNotFoundError):
                    self._left_bytes += max(os.stat(self.layout.log(log)).st_size, _LEFT_LOG_BYTES)
            self._left.update(gone)
            is_much = self._left_bytes > _LEFT_BYTES
        if is_much:
            self._remove_left()

    def _remove_left(self) -> None:
        if self._left:
            with contextlib.suppress(OSError):  # it is garbage
                self.make_durable()

    def make_durable(self) -> None:
        """Make the names of logs and what the database says of them durable, and remove what was left.

        Raises `OSError`; what was left is garbage then.
        """
        with self._left_lock:
            left = self._left
            self._left, self._left_bytes = set(), 0
        durable.sync_directory(self.layout.logs)
        self.database.sync()
        log_rows.unlink(self.layout, left)

    def forked(self) -> None:
        """This process is a child that os.fork made: nothing is open for writing here, and nobody holds a lock.

        What is gathered is the parent's to append. The lock of a log is held by its file as it was opened, which is the
        parent's, too, so it is let go here without being unlocked.
        """
        self._lock, self._left_lock = threading.RLock(), threading.Lock()
        self._states = Recent(_CACHED_STATES)
        self._left.clear()
        for layer in self._layers.values():
            layer.forked()

    # States

    def keep(self, state: State, frozen: Frozen) -> None:
        """Have a state at hand for those who will go on from it."""
        self._states.keep(state, frozen)

    def frozen(self, image: ImageTree, chain: ChainId, state: State | None) -> Frozen:
        """A state, read from its logs if it is not at hand. Raises `CorruptError`, `OSError`."""
        waiting: list[tuple[State, OpenLog]] = []
        found: Frozen | None = None
        while state is not None:
            found = self._states.get(state)
            if found is not None:
                break
            log = OpenLog(self.layout, chain, state[0], open_log(self.layout, state[0]), state[1])
            waiting.append((state, log))
            state = log.base
        found = found or Frozen((), Logs(), FIRST_NEW_INODE)
        for reached, log in reversed(waiting):
            found = self.freeze(self.replayed(image, found, log, 0))
            self.keep(reached, found)
        return found

    def replayed(self, image: ImageTree, base: Frozen, log: OpenLog, device: int) -> Tree:
        """What a log makes of the state that it goes on from. Raises `CorruptError`, `OSError`."""
        table = Table(image, base.levels, base.next_number)
        names = Logs(base.logs)

        def add_source(log_id: bytes) -> int:
            descriptor = open_log(self.layout, log_id.hex())
            return names.add(log_id.hex(), descriptor, fstat(descriptor.fd).st_size)

        number = names.add(log.id, log.descriptor, log.end)
        tree = Tree(table, names, number, device, add_source)
        tree.applier.replay(log.reader)
        return tree

    def freeze(self, tree: Tree) -> Frozen:
        """What a tree is now, whatever is done to it later. What is gathered was appended before."""
        names = Logs(tree.logs)
        if tree.writer is not None:
            number = tree.log_number
            fresh = Logs()
            fresh.add(names.ids[number], names.descriptors[number], tree.writer.length)
            names.files[number] = fresh.files[0]
        return Frozen(tree.table.freeze(), names, tree.table.next_number)


class Layer:
    """The writable layer of one container. Safe for many threads."""

    def __init__(self, layers: Layers, container: str, image: ImageId, chain: ChainId) -> None:
        self.container = container
        self._layers = layers
        self._layout = layers.layout
        self._database = layers.database
        self._image = image
        self._chain = chain
        self._device = int(container[:15], 16)
        self._lock = threading.RLock()
        self._tree: Tree | None = None
        self._log = ""
        self._seen_bytes = 0
        self._is_torn = False
        self._retired = False

    def forked(self) -> None:
        """As `Layers.forked`."""
        self._lock = threading.RLock()
        tree, self._tree = self._tree, None
        if tree is not None:
            tree.lock = threading.RLock()
            tree.closed = tree.closed or tree.writer is not None

    def _is_writing(self) -> bool:
        return self._tree is not None and self._tree.writer is not None

    @property
    def in_use(self) -> bool:
        """Whether files of it are open."""
        return self._tree is not None and bool(self._tree.applier.opened)

    def close(self, *, retire: bool = False) -> None:
        """Append what is gathered and let others write. Raises `OSError`.

        retire: another `Layer` stands for the container from then on.
        """
        with self._lock:
            self._retired = self._retired or retire
            descriptor = self._end()
            if descriptor is not None:
                locks.release(descriptor.fd)

    def _end(self) -> Descriptor | None:
        """Let go of the tree; returns the log where it is locked. Forks of this process may go on reading through
        it."""
        tree, self._tree = self._tree, None
        if tree is None or tree.writer is None:
            return None
        try:
            tree.end()
        except BaseException:
            locks.release(tree.logs.descriptors[tree.log_number].fd)
            raise
        return tree.logs.descriptors[tree.log_number]

    def _current_log(self) -> str:
        row = self._database.read().execute("SELECT log FROM containers WHERE id = ?", (self.container,)).fetchone()
        if row is None:
            raise NotFound(f"container {self.container[:12]} was removed; `layerstore ps -a` lists what is there")
        if row[0] is None:
            raise Unsupported(f"container {self.container[:12]} was moved to the overlay driver; open it again")
        return str(row[0])

    def _of_current(self, look: Callable[[str], _Found]) -> _Found:
        """What there is to see in the current log, which another process may replace and remove meanwhile."""
        while True:
            log = self._current_log()
            try:
                return look(log)
            except LogMissing:
                if self._current_log() == log:
                    raise

    # Reading

    def reading(self) -> Tree:
        """The tree to look into: of the moment, also where another process writes to it.

        Raises `NotFound` where the container is gone, `CorruptError`, `OSError`.
        """
        tree = self._tree
        if tree is not None and tree.writer is not None:
            return tree
        with self._lock:
            if self._retired:
                return self._successor().reading()
            if self._tree is not None and self._tree.writer is not None:
                return self._tree
            return self._of_current(lambda log: self._read(log, None))

    def _read(self, log: str, descriptor: Descriptor | None) -> Tree:
        """The tree of a log as it is on disk, read again only where the log has changed."""
        if self._tree is not None and self._log == log:
            known = self._tree.logs.descriptors[self._tree.log_number]
            if fstat(known.fd).st_size == self._seen_bytes:
                return self._tree
        opened = OpenLog(self._layout, self._chain, log, descriptor or open_log(self._layout, log))
        image = self._layers.image_tree(self._image)
        base = self._layers.frozen(image, self._chain, opened.base)
        self._tree = self._layers.replayed(image, base, opened, self._device)
        self._log, self._seen_bytes, self._is_torn = log, opened.size, opened.reader.later > 0
        return self._tree

    # Writing

    def writing(self) -> Tree:
        """The tree to change. Until `close`, or the end of this process, no other one can write.

        Raises `Conflict` where another one does, and as `reading`.
        """
        tree = self._tree
        if tree is not None and tree.writer is not None:
            return tree
        with self._lock:
            if self._retired:
                return self._successor().writing()
            if self._tree is not None and self._tree.writer is not None:
                return self._tree
            return self._begin()

    def _successor(self) -> Layer:
        return self._layers.layer(self.container, self._image, self._chain)

    def _locked(self) -> tuple[Descriptor, str]:
        """The current log, open and locked."""
        while True:
            log, descriptor = self._of_current(lambda log: (log, open_log(self._layout, log, write=True)))
            if not locks.try_lock(descriptor.fd):
                raise Conflict(
                    f"another process writes to container {self.container[:12]}; try again when it has closed its store"
                )
            if self._current_log() == log:
                return descriptor, log

    def _locked_if_there(self) -> Descriptor | None:
        """The current log, open and locked; None where it was lost, so that nobody can write to it."""
        try:
            return self._locked()[0]
        except LogMissing:
            return None

    def _needed_bytes(self, log: str) -> int | None:
        return log_rows.needed_bytes(self._database.read(), log)

    def _begin(self) -> Tree:
        """Lock the current log, read it, and go on writing to it."""
        try:
            return self._begun()
        except BaseException:
            tree = self._tree
            if tree is not None and tree.writer is None and not tree.applier.opened:
                self._tree = None  # where it has the log that was locked open, nobody could lock that again
            raise

    def _begun(self, *, may_compact: bool = True) -> Tree:
        descriptor, log = self._locked()
        tree = self._read(log, descriptor)
        number = tree.log_number
        end = tree.logs.files[number].length
        if self._is_torn or (self._needed_bytes(log) or 0) > end:
            # A crash took what a fork or snapshot goes on from. That must not become what is written from now on. Or
            # whole records follow one that is not: perhaps not because of a crash, so they are not cut off.
            self._switch((log, end))
            return self._begun()
        if fstat(descriptor.fd).st_size > end:
            with about(descriptor.fd):
                os.ftruncate(descriptor.fd, end)
        if may_compact and self._compact(tree):
            return self._begun(may_compact=False)
        tree.logs.reopen(number, descriptor)
        writer = LogWriter(descriptor.fd, end, bytes.fromhex(log), number)
        tree.begin(writer, partial(self._layers.syncs.of_writer, log), self._make_durable)
        return tree

    def _make_durable(self) -> None:
        """What the log of the layer depends on: its bases, the names of logs, and the rows."""
        if self._tree is not None:
            self._layers.syncs.of_bases(self._tree.logs, self._tree.log_number)
        self._layers.make_durable()

    def _compact(self, tree: Tree) -> bool:
        """Have the log, which is locked, be one that holds what lives alone, where that is due. Whether it is another
        one now.

        Nobody writes to the tree yet, so that nothing gets into the former log meanwhile.
        """
        with tree.lock:
            if tree.applier.opened or not compaction.is_due(tree, lambda: self._needed_bytes(self._log) is not None):
                return False
            with contextlib.suppress(OSError), locks.garbage(self._layout, again=True):
                new, uses = compaction.rewrite(self._layout, self._chain, tree)
                self._set_log(new, uses, at_once=True)
            # On a full disk it is as before: it need not be compact for what is to be done.
            tree.closed = self._current_log() != self._log
            return tree.closed

    # States

    def moment(self) -> Tree:
        """The tree as it is now, which stays so whatever is done to the layer: to be read without a lock.

        What another process has not handed over is not in it. It keeps the logs open, not the image's contents in the
        store. Raises as `reading`.
        """
        with self._lock:
            if self._retired:
                return self._successor().moment()
            tree = self.reading()
            with tree.lock:
                if tree.writer is not None:
                    tree.flush()
                return self._still(self._layers.freeze(tree))

    def at(self, state: State) -> Tree:
        """The tree of a state of the layer, as `moment`. Raises `CorruptError`, `OSError`."""
        return self._still(self._layers.frozen(self._layers.image_tree(self._image), self._chain, state))

    @contextlib.contextmanager
    def still(self) -> Iterator[Tree]:
        """Have nobody write to the layer in the block; gives the tree as of `moment`.

        Raises `Conflict` where another process writes to it, or files of it are open; and as `reading`.
        """
        with self._lock, self._tree.lock if self._tree is not None else contextlib.nullcontext():
            if self._retired:
                raise Conflict(f"container {self.container[:12]} was closed by another thread; try again")
            if self.in_use:
                raise Conflict(f"files of container {self.container[:12]} are open; close them first")
            moment = self.moment() if self._is_writing() else None
            # Forks of this process keep the file of the log open, and so its lock.
            descriptor = self._end() or self._locked()[0]
        try:
            yield moment or self.moment()
        finally:
            locks.release(descriptor.fd)

    def _still(self, frozen: Frozen) -> Tree:
        """A tree that nobody changes."""
        table = Table(self._layers.image_tree(self._image), frozen.levels, frozen.next_number)
        return Tree(table, frozen.logs, len(frozen.logs) - 1, self._device, _no_source)

    def state(self) -> State:
        """The state of the moment: of this process's writing, or of what another one has written to the log.

        Raises `NotFound`, `CorruptError`, `OSError`.
        """
        with self._lock:
            tree = self._tree
            if tree is not None and tree.writer is not None:
                with tree.lock:
                    state = self._log, tree.flush()
                    self._layers.keep(state, self._layers.freeze(tree))
                return state
            return self._of_current(self._state_of)

    def _state_of(self, log: str) -> State:
        """The state that a log on disk is at: after its last whole operation. Whoever writes to it may be about to
        append more, or take that back and append something else, which is not to be seen in what goes on from here."""
        descriptor = open_log(self._layout, log)
        with about(descriptor.fd):
            size = fstat(descriptor.fd).st_size
        tree = self._tree
        if tree is not None and (self._log, self._seen_bytes) == (log, size):
            return log, tree.logs.files[tree.log_number].length
        return log, OpenLog(self._layout, self._chain, log, descriptor, checked=size).end

    def origin(self) -> State | None:
        """What a fork of the moment goes on from: the state, or where the layer itself came from if nothing was done
        to it.

        Raises as `state`.
        """
        return self._of_current(lambda _: self._origin())

    def _origin(self) -> State | None:
        log, length = self.state()
        if length > HEADER_BYTES:
            return log, length
        return OpenLog(self._layout, self._chain, log, open_log(self._layout, log)).base

    def _switch(self, state: State) -> None:
        """Go on from a state with a log of its own."""
        with locks.garbage(self._layout, again=True):
            (log,) = create_logs(self._layout, self._chain, state, 1)
            self._set_log(log, dict([state]))

    def _set_log(self, new: str, uses: dict[str, int], *, at_once: bool = False) -> None:
        """Have the container go on with a log that was made for it; where that fails, it is removed.

        at_once: be durable, as the log is but for its name, and remove the former one if nothing needs it.
        """
        try:
            if at_once:
                durable.sync_directory(self._layout.logs)
            with self._database.transaction(durable=at_once) as db:
                old = self._current_log()
                log_rows.insert(db, [new], uses)
                db.execute("UPDATE containers SET log = ? WHERE id = ?", (new, self.container))
                gone = log_rows.forget_unneeded(db, [old])
        except BaseException:
            # An interrupt may be raised once the transaction has committed.
            if not log_rows.exists(self._database.read(), new):
                log_rows.unlink(self._layout, [new])
            raise
        if at_once:
            log_rows.unlink(self._layout, gone)
        else:
            self._layers.leave(gone)

    def rollback(self, name: str) -> None:
        """Be again what a snapshot was. Files that are open raise `OSError` with ESTALE from then on.

        Raises `NotFound`, `Conflict` where another process writes to it.
        """
        with self._lock:
            self.snapshot_state(name)
            descriptor = self._end() or self._locked_if_there()
            try:
                while True:
                    # Another process may have removed it, and made another.
                    with contextlib.suppress(log_rows.Gone):
                        return self._switch(self.snapshot_state(name))
            finally:
                if descriptor is not None:
                    locks.release(descriptor.fd)

    def snapshot(self, name: str) -> None:
        """Remember the state of the moment. Raises `Conflict` where the name is taken."""
        while True:
            with contextlib.suppress(log_rows.Gone):  # another process has rolled it back, or written its log anew
                return self._insert_snapshot(name, self.state())

    def _insert_snapshot(self, name: str, state: State) -> None:
        with self._database.transaction(durable=False) as db:
            self._current_log()
            log_rows.check(db, [state[0]])
            taken = "SELECT 1 FROM snapshots WHERE container_id = ? AND name = ?"
            if db.execute(taken, (self.container, name)).fetchone():
                raise Conflict(
                    f"container {self.container[:12]} has a snapshot {name!r} already; "
                    "give another name, or remove it first"
                )
            db.execute("INSERT INTO snapshots VALUES (?, ?, ?, ?, ?)", (self.container, name, time.time(), *state))

    def snapshot_state(self, name: str) -> State:
        """The state that a snapshot names. Raises `NotFound`."""
        query = "SELECT log, length FROM snapshots WHERE container_id = ? AND name = ?"
        row = self._database.read().execute(query, (self.container, name)).fetchone()
        if row is None:
            raise NotFound(
                f"container {self.container[:12]} has no snapshot {name!r}; "
                "`layerstore snapshots` lists those that it has"
            )
        return str(row[0]), int(row[1])


_opened: weakref.WeakSet[Layers] = weakref.WeakSet()


def _forked() -> None:
    for layers in _opened:
        layers.forked()


os.register_at_fork(after_in_child=_forked)
