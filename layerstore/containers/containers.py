"""Containers: a writable layer each on an image, their rows, directories, mounts and processes."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from functools import partial

from layerstore._core.mount import container_make_many, container_remove_many, project_of
from layerstore.containers import program_records
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, NotFound, Unsupported
from layerstore.extents import log_rows
from layerstore.naming import about, close_fd, exists, fstat
from layerstore.store import boot, frozen, locks
from layerstore.store.last_use import note_use
from layerstore.store.layout import make_private
from layerstore.store.removal import remove_directory
from layerstore.trees.whiteouts import OVERLAY
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from sqlite3 import Connection
    from typing import Any

    from layerstore.chains.chains import Chain, Chains
    from layerstore.containers.runtime import Runtime
    from layerstore.mount.shared import Mounts
    from layerstore.store.opened import OpenStore
    from layerstore.types import ChainId, DiffId, ImageId

_COLUMNS = "id, name, image_id, image_name, chain_id, created_seconds, volatile, command, driver, log"
NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}"
_BATCH = 500
_LOCKED_TOGETHER = 64
_TRIES = 20
_JOIN_SECONDS, _LOOK_SECONDS = 10.0, 0.002
_END_MS = 10_000
_LOGS_OF = (
    "SELECT log FROM containers WHERE id = :id AND log IS NOT NULL "
    "UNION SELECT log FROM snapshots WHERE container_id = :id AND log IS NOT NULL"
)


class ContainerRow(Value):
    """What the database knows of a container. `command` is what was last run in it, None if nothing was.

    `log` names the log that a container of the extent driver begins with; it may have another one later.
    """

    def __init__(
        self,
        id: str,
        name: str | None,
        image_id: ImageId,
        image_name: str,
        chain_id: ChainId,
        created_seconds: float,
        volatile: bool,
        command: str | None,
        driver: str = "overlay",
        log: str | None = None,
    ) -> None:
        self.id = id
        self.name = name
        self.image_id = image_id
        self.image_name = image_name
        self.chain_id = chain_id
        self.created_seconds = created_seconds
        self.volatile = volatile
        self.command = command
        self.driver = driver
        self.log = log


def _root_xattrs(xattrs: Mapping[bytes, bytes]) -> list[tuple[bytes, bytes]]:
    """Those that an upper directory may have: to the kernel trusted.overlay.* would say what the directory is."""
    return [(name, value) for name, value in xattrs.items() if not name.startswith(OVERLAY)]


def check_name(name: str, what: str) -> None:
    """Raise `InvalidInput` where this is no name for `what`."""
    if not re.fullmatch(NAME, name, re.ASCII):
        raise InvalidInput(f"{name!r} is not a name for {what}: it is letters, digits and . _ -")


def check_count(count: int | None, name: str | None) -> None:
    """Raise `InvalidInput` unless so many containers can be made, under that name."""
    if count is not None and (count < 1 or name is not None):
        raise InvalidInput("count is at least 1, and a name goes with one container only")


def insert_rows(db: Connection, rows: Sequence[ContainerRow]) -> None:
    """Add the rows of new containers, alike but for their ids and logs, in a transaction.

    Raises `NotFound` where the image is gone, `Conflict` where the name is taken.
    """
    first = rows[0]
    if db.execute("SELECT 1 FROM images WHERE image_id = ?", (first.image_id,)).fetchone() is None:
        raise NotFound(f"image {first.image_name} was removed meanwhile; load it again")
    name = first.name
    if name is not None and db.execute("SELECT 1 FROM containers WHERE name = ?", (name,)).fetchone():
        raise Conflict(f"there is a container named {name!r} already; `layerstore rm {name}` first")
    values = [tuple(vars(row).values()) for row in rows]
    db.executemany(f"INSERT INTO containers ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _require_overlay(rows: Iterable[ContainerRow]) -> None:
    for row in rows:
        if row.driver != "overlay":
            raise Unsupported(
                f"container {row.id[:12]} is of the {row.driver} driver, which mounts nothing: "
                f"`layerstore move {row.id[:12]} --driver overlay` first (`Container.move`), "
                "or work on it from Python (`Container.open` and its like)"
            )


def _lost(container: str) -> NotFound:
    return NotFound(f"container {container[:12]} has lost its directory; `layerstore rm` it")


def _is_at(fd: int, path: str) -> bool:
    """Whether the directory that is open as `fd`, which is -1 for none, is still that of the path."""
    try:
        return fd >= 0 and os.path.samestat(fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _runs(container: str) -> Conflict:
    return Conflict(f"container {container[:12]} is running already; end it first, or create another one")


class Containers:
    """Creates, mounts, lists and removes containers. Safe for many threads and processes."""

    def __init__(self, store: OpenStore, chains: Chains, mounts: Mounts) -> None:
        self._layout = store.layout
        self._database = store.database
        self._chains = chains
        self._mounts = mounts

    def create(
        self,
        image_id: ImageId,
        image_name: str,
        chain: Chain,
        count: int,
        name: str | None,
        volatile: bool,
        disk_bytes: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> list[ContainerRow]:
        """Make `count` containers; all of them or none, each of which may write `disk_bytes` and has the `options` of
        `program_records.options_of`.

        Raises `Conflict` when `name` is taken, `Unsupported` where that cannot be limited, `OSError`.
        """
        if name is not None:
            check_name(name, "a container")
        now = time.time()
        rows = [
            ContainerRow(os.urandom(32).hex(), name, image_id, image_name, chain.chain_id, now, volatile, None)
            for _ in range(count)
        ]
        with locks.garbage(self._layout, again=True):
            self._make(rows, chain, disk_bytes, options)
        return rows

    def _make(
        self, rows: Sequence[ContainerRow], chain: Chain, disk_bytes: int | None, options: Mapping[str, Any] | None
    ) -> None:
        """The directories and rows of new containers, alike but for their ids."""
        ids = [row.id for row in rows]
        # Directories first: a row never names a container that is not there.
        owner = (chain.root_uid, chain.root_gid) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
        container_make_many(self._mounts.containers_fd, ids, chain.root_mode, *owner, chain.root_mtime_ns)
        # The root of a view is the upper directory's own: nothing of the chain's root shows through it.
        for attribute, value in _root_xattrs(dict(chain.root_xattrs)):
            for container in ids:
                with contextlib.suppress(OSError):  # one that this user may not set, or this file system not have
                    os.setxattr(self.upper(container), attribute, value)
        with self.or_none(ids):
            if disk_bytes is not None:
                from layerstore.containers import quotas

                quotas.limit(self._mounts.containers_fd, ids, disk_bytes)
            if options is not None:
                directories = [self._layout.container(container) for container in ids]
                program_records.write_options(directories, options, durable=not rows[0].volatile)
            with self._database.transaction(durable=False) as db:
                insert_rows(db, rows)

    def forget_lost(self) -> None:
        """After a start of the machine: forget the containers that a power cut has left without their directories.

        To create one syncs nothing, so its row may have reached the disk before they did. Then nothing in it had.
        On a full disk it is done again at each opening, which is for collecting garbage then.
        """
        if not boot.is_new(self._layout):
            return
        # In the transaction, as a move to the other driver takes the directory away after its own.
        with self._database.transaction() as db:
            rows = db.execute("SELECT id FROM containers WHERE driver = 'overlay'").fetchall()
            lost = [(container,) for (container,) in rows if not self._is_there(container)]
            db.executemany("DELETE FROM containers WHERE id = ?", lost)
        try:
            boot.note(self._layout)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def _is_there(self, container: str) -> bool:
        """Whether it has an upper directory, perhaps one that was being put in the place of another; also where that
        cannot be seen."""
        try:
            names = os.listdir(self._layout.container(container))
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return "upper" in names or any(name.partition(".")[0] in ("before", "fresh") for name in names)

    @contextlib.contextmanager
    def or_none(self, ids: Sequence[str]) -> Iterator[None]:
        """Remove the directories of new containers unless their rows are committed in the block."""
        try:
            yield
        except BaseException:
            if self._is_known(ids[0]):  # the interrupt came after the commit
                raise
            with contextlib.suppress(OSError):
                container_remove_many(self._mounts.containers_fd, ids)
            raise

    def _is_known(self, container: str) -> bool:
        rows = self._database.read().execute("SELECT 1 FROM containers WHERE id = ?", (container,))
        return rows.fetchone() is not None

    def row(self, container: str) -> ContainerRow:
        """The row of a container (id) as it is now. Raises `NotFound` where it was removed."""
        query = f"SELECT {_COLUMNS} FROM containers WHERE id = ?"
        row = self._database.read().execute(query, (container,)).fetchone()
        if row is None:
            raise NotFound(f"container {container[:12]} was removed; `layerstore ps -a` lists what is there")
        return ContainerRow(*row)

    def check(self, row: ContainerRow, db: Connection | None = None) -> None:
        """Now, or in a transaction: raise `NotFound` where the container was removed, `Conflict` where it was moved."""
        rows = (db or self._database.read()).execute("SELECT driver FROM containers WHERE id = ?", (row.id,))
        found = rows.fetchone()
        if found is None:
            raise NotFound(f"container {row.id[:12]} was removed meanwhile")
        if found[0] != row.driver:
            raise Conflict(f"container {row.id[:12]} was moved to the {found[0]} driver meanwhile; open it again")

    def all(self) -> list[ContainerRow]:
        """Every container, newest first."""
        query = f"SELECT {_COLUMNS} FROM containers ORDER BY created_seconds DESC, id"
        return [ContainerRow(*row) for row in self._database.read().execute(query)]

    def find(self, text: str) -> ContainerRow:
        """The container of that name, id or unambiguous beginning of an id. Raises `NotFound`, `InvalidInput`."""
        query = f"SELECT {_COLUMNS} FROM containers WHERE name = ? OR id = ?"
        rows = []
        if re.fullmatch(NAME, text, re.ASCII):
            rows = self._database.read().execute(query, (text, text)).fetchall()
        if not rows and text and all(c in "0123456789abcdef" for c in text):
            query = f"SELECT {_COLUMNS} FROM containers WHERE id >= ? AND id < ? LIMIT 2"
            rows = self._database.read().execute(query, (text, text + "g")).fetchall()
        if not rows:
            raise NotFound(f"there is no container {text!r}; `layerstore ps -a` lists them")
        if len(rows) > 1:
            raise InvalidInput(f"more than one container's id begins with {text!r}; give more digits")
        return ContainerRow(*rows[0])

    def root(self, container: str) -> str:
        """Where a container's view is when it is mounted."""
        return f"{self._layout.container(container)}/root"

    def upper(self, container: str) -> str:
        return f"{self._layout.container(container)}/upper"

    def mount(
        self, rows: Iterable[ContainerRow], diff_ids: Callable[[ImageId], Sequence[DiffId]], *, borrows: bool = False
    ) -> None:
        """Mount them, a batch for each chain; `diff_ids` gives the stack of an image.

        borrows: those that are not mounted yet are to be unmounted again by whoever is the last to use them
        (`give_back`), unless somebody mounts them without that meanwhile.

        Raises `NotFound` where one was removed, `Unsupported`, `Conflict`, `OSError`; those mounted before stay.
        """
        rows = list(rows)
        _require_overlay(rows)
        batches: dict[tuple[ChainId, bool], list[str]] = {}
        images: dict[ChainId, ImageId] = {}
        for row in rows:
            images[row.chain_id] = row.image_id
            batches.setdefault((row.chain_id, bool(row.volatile)), []).append(row.id)
        for (chain, volatile), ids in batches.items():
            self._mount_chain(chain, ids, volatile, partial(diff_ids, images[chain]), borrows)

    def _mount_chain(
        self,
        chain: ChainId,
        ids: Sequence[str],
        volatile: bool,
        diff_ids: Callable[[], Sequence[DiffId]],
        borrows: bool,
    ) -> None:
        while True:
            mountable = self._chains.mountable(chain, diff_ids)
            try:
                # Some at a time: the kernel looks for a locked byte among all, and others wait for all of these.
                for at in range(0, len(ids), _LOCKED_TOGETHER):
                    self._mount_some(mountable, ids[at : at + _LOCKED_TOGETHER], volatile, borrows)
                return
            except FileNotFoundError as error:
                if self._made_whole(ids):
                    continue
                gone = [container for container in ids if not exists(self.upper(container))]
                if gone:
                    _require_overlay([self.row(gone[0])])  # who mounts it may have found it before it was moved
                    raise _lost(gone[0]) from error
                # An image that was evicted between the two is made again, perhaps with other packs.
                if self._chains.is_current(mountable):
                    raise

    def _made_whole(self, ids: Sequence[str]) -> bool:
        """Finish or undo what was interrupted in their directories; whether there was any."""
        from layerstore.containers import snapshots

        broken = []
        for id in ids:
            with contextlib.suppress(FileNotFoundError):
                if not snapshots.is_whole(self._layout.container(id)):
                    broken.append(id)
        for id in broken:
            snapshots.make_whole(self._layout, id)
        return bool(broken)

    def _mount_some(self, chain: Chain, ids: Sequence[str], volatile: bool, borrows: bool) -> None:
        with contextlib.ExitStack() as stack:
            self._lock_to_mount(stack, ids)
            self._check_drivers(ids)
            self._check_views(ids)
            if borrows:
                self._borrow(ids)
            if project_of(self._mounts.containers_fd):
                from layerstore.containers import quotas

                quotas.hold(self._mounts.containers_fd, ids)
            self._mounts.mount(chain, ids, volatile=volatile)
            if not borrows:
                self._keep(ids)

    def _check_drivers(self, ids: Sequence[str]) -> None:
        """Under the locks of their mounts, without which none is moved. Where a move was killed there may be a
        directory that is none of the container. Raises `NotFound`, `Unsupported`."""
        query = "SELECT id FROM containers WHERE driver = 'overlay' AND id IN (SELECT value FROM json_each(?))"
        found = {id for (id,) in self._database.read().execute(query, (json.dumps(ids),))}
        _require_overlay(self.row(id) for id in ids if id not in found)

    def _check_views(self, ids: Sequence[str]) -> None:
        """Under the locks of their mounts: raise `Conflict` where a program has the only view that there is of one. The
        kernel would put a second overlay on the same directories."""
        started = [id for id in ids if exists(f"{self._layout.runtime}/{id}")]
        for id, is_mounted in zip(started, self._mounts.mounted(started), strict=True):
            if not is_mounted and self.is_running(id):
                raise Conflict(f"container {id[:12]} runs in a view that was unmounted; end it first")

    def _lock_to_mount(self, stack: contextlib.ExitStack, ids: Sequence[str]) -> None:
        """Hold the locks of their mounts, and have no write reach a snapshot."""
        held: set[str] = set()
        while True:
            stack.enter_context(locks.mounting(self._layout, ids))
            found = {id for id in ids if self._may_be_snapshot(id)}
            if not found:
                return
            from layerstore.containers import snapshots

            directories = {id: self._layout.container(id) for id in found}
            if found <= held and all(map(snapshots.is_whole, directories.values())):
                for directory in directories.values():
                    snapshots.settle(directory)
                return
            # The locks of the containers themselves are taken before those of their mounts.
            stack.close()
            for id, directory in directories.items():
                if not snapshots.is_whole(directory):
                    snapshots.make_whole(self._layout, id)
            stack.enter_context(locks.containers(self._layout, found))
            held = found

    def _may_be_snapshot(self, container: str) -> bool:
        """Whether its upper may be a snapshot's, as earlier versions left it."""
        directory = self._layout.container(container)
        return exists(f"{directory}/snapshots") and not os.path.lexists(f"{directory}/lower")

    # A mount for the time of one's use

    def _borrow(self, ids: Sequence[str]) -> None:
        """Note it of those that are not mounted, under the lock of their mounts."""
        make_private(self._layout.borrowed)
        for id in (id for id, is_mounted in zip(ids, self._mounts.mounted(ids), strict=True) if not is_mounted):
            close_fd(os.open(self._borrowed(id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def _borrowed(self, container: str) -> str:
        return f"{self._layout.borrowed}/{container}"

    def _keep(self, ids: Iterable[str]) -> None:
        """Under the lock of their mounts."""
        with contextlib.suppress(FileNotFoundError):  # nobody has ever borrowed one
            for id in set(ids).intersection(os.listdir(self._layout.borrowed)):
                os.unlink(self._borrowed(id))

    @contextlib.contextmanager
    def mounted_for(
        self, row: ContainerRow, diff_ids: Callable[[ImageId], Sequence[DiffId]], *, keep: bool = False
    ) -> Iterator[int]:
        """A container that is mounted in the block, whatever others do, and after it as it was before: with `keep` it
        stays mounted unless the block raises. Gives a descriptor of the root of its view (O_PATH).

        Raises as `mount`.
        """
        with self.told_of_removal(row):
            try:
                fd = self._pinned(row, diff_ids)
                try:
                    yield fd
                    if keep:
                        with locks.mounting(self._layout, [row.id]):
                            self._keep([row.id])
                finally:
                    close_fd(fd)
            finally:
                self._give_back(row)

    def _pinned(self, row: ContainerRow, diff_ids: Callable[[ImageId], Sequence[DiffId]]) -> int:
        """The root of its view, which nobody can unmount without force while that is open."""
        for _ in range(_TRIES):
            self.mount([row], diff_ids, borrows=True)
            fd = os.open(self.root(row.id), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            # Somebody may have unmounted it between the two, and then this is the mount point.
            if fstat(fd).st_dev != fstat(self._mounts.containers_fd).st_dev:
                return fd
            close_fd(fd)
        raise Conflict(
            f"container {row.id[:12]} is unmounted by others again and again; try again when they have ended"
        )

    def _give_back(self, row: ContainerRow) -> None:
        """Unmount it where it was mounted for a use, unless somebody else still uses it, who will then."""
        if not exists(self._borrowed(row.id)):
            return
        with locks.mounting(self._layout, [row.id]):
            # The kernel would not refuse while a program has it, whose caller was killed.
            if not exists(self._borrowed(row.id)) or self.is_running(row.id):
                return
            try:
                self._mounts.unmount([row.id])
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return
            self._keep([row.id])
        self._release_of([row])

    def unmount(self, rows: Sequence[ContainerRow], *, lazy: bool = False) -> None:
        """Unmount them, and the chain and pack mounts that nobody uses then.

        Raises `Conflict` where one runs, before anything is done, or is busy, after trying all.
        """
        if not lazy:
            self.end_idle(rows)
            self._check_ended(rows)
        failed: Exception | None = None
        for at in range(0, len(rows), _LOCKED_TOGETHER):
            some = rows[at : at + _LOCKED_TOGETHER]
            try:
                # Whoever starts a program takes the lock again when it runs, before he lets go of the mount.
                with locks.mounting(self._layout, [row.id for row in some]):
                    if not lazy:
                        self._check_ended(some)
                    self._unmount(some, lazy)
            except (Conflict, OSError) as error:
                failed = failed or error
        if failed is not None:
            raise failed
        self._release_of(rows)

    def _check_ended(self, rows: Sequence[ContainerRow]) -> None:
        """The kernel would not refuse: the programs of a container see it in a mount namespace of their own."""
        for row in self._known(rows):
            if self.is_running(row.id):
                raise Conflict(f"container {row.id[:12]} is running; end it first, or force it")

    def _unmount(self, rows: Sequence[ContainerRow], lazy: bool) -> None:
        """Under the locks of their mounts."""
        try:
            self._mounts.unmount([row.id for row in rows], lazy=lazy)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            raise Conflict(f"{error}; end what uses the container, or force it") from error

    def _release_of(self, rows: Sequence[ContainerRow]) -> None:
        if not any(self._chain_in_use(chain) for chain in {row.chain_id for row in rows}):
            self.release_unused()

    def release_unused(self) -> None:
        """Take away the mounts of chains and packs that nobody uses, if a process that was killed has left some."""
        self._mounts.release(self._chain_if_used)

    def mounted(self, rows: Sequence[ContainerRow]) -> list[bool]:
        return self._mounts.mounted([row.id for row in rows])

    def _chain_in_use(self, chain: ChainId) -> bool:
        query = "SELECT id FROM containers WHERE chain_id = ?"
        cursor = self._database.read().execute(query, (chain,))
        while batch := cursor.fetchmany(_BATCH):
            if any(self._mounts.mounted([container for (container,) in batch])):
                return True
        return False

    def _chain_if_used(self, chain: ChainId) -> Chain | None:
        return self._chains.described(chain) if self._chain_in_use(chain) else None

    def _known(self, rows: Sequence[ContainerRow]) -> list[ContainerRow]:
        """Those of which the OCI runtime has something: that run, or ended without being deleted."""
        names = set(os.listdir(self._layout.runtime))
        return [row for row in rows if row.id in names]

    def states(self, rows: Sequence[ContainerRow]) -> list[str]:
        """Of each: "created", "mounted", "running" or "paused"."""
        from layerstore.containers import stillness

        running = {row.id for row in self._known(rows) if self.is_running(row.id)}
        return [
            ("paused" if stillness.is_paused(self._layout, self, row.id) else "running")
            if row.id in running
            else "mounted"
            if is_mounted
            else "created"
            for row, is_mounted in zip(rows, self.mounted(rows), strict=True)
        ]

    def forget_ended(self, container: str) -> None:
        """Make room for another program, where nobody else starts one: a container that is only kept alive is ended.
        Raises `Conflict` while one runs."""
        from layerstore.containers import groups, keeping

        if os.path.isdir(f"{self._layout.runtime}/{container}"):
            self._end_if_idle(container)
            if self.is_running(container):
                raise _runs(container)
            with contextlib.suppress(NotFound):
                self.runtime().delete(container)
            # A runtime that was killed as it began knows nothing of what it has made.
            remove_directory(self._layout.runtime, container)
            groups.remove([container], force=True)
            with locks.command(self._layout, container, alone=True) as has_none:
                if has_none:  # else who has one wants to know why it has ended
                    keeping.remove_files(self._layout.container(container))

    @contextlib.contextmanager
    def starting(self, container: str) -> Iterator[int]:
        """A program is started in the block, and nobody else's: neither its bundle nor its control group is another's.
        The descriptor of the lock for that.

        Raises `Conflict` while one runs or is started.
        """
        lock = locks.program(self._layout, container)
        with lock as is_held:
            if is_held:
                self.forget_ended(container)
                program_records.see_out(self._layout.container(container))
                yield lock.fileno()
            elif self.is_running(container):
                raise _runs(container)
            else:
                raise Conflict(f"another process starts a program in container {container[:12]}; try again later")

    # Containers that are kept alive, for commands

    def joined(self, container: str, keep_alive: Callable[[], None]) -> locks.Containers:
        """A lock on a container that lives, by which it goes on living: `keep_alive` makes it live where it does not.
        The caller leaves the lock.

        Raises `Conflict` where others end it again and again or have started it without end, and what `keep_alive`
        raises.
        """
        end = time.monotonic() + _JOIN_SECONDS
        while True:
            lock = locks.command(self._layout, container, alone=False)
            if lock.__enter__():
                try:
                    if not self._lives(container):
                        keep_alive()
                    return lock
                except Conflict:  # another process starts it at this moment, or ends what it ran
                    lock.__exit__()
                    if time.monotonic() > end:
                        raise
                except BaseException:
                    lock.__exit__()
                    raise
            else:
                lock.__exit__()
                if time.monotonic() > end:
                    raise Conflict(f"others end container {container[:12]} again and again; try again later")
            time.sleep(_LOOK_SECONDS)

    def _lives(self, container: str) -> bool:
        """As `is_running`, without asking the runtime where nobody is starting a program in it."""
        from layerstore.containers import groups

        if not os.path.isdir(f"{self._layout.runtime}/{container}"):
            return False
        with locks.starts_no_program(self._layout, container) as is_settled:
            if is_settled and (first := groups.population(container, commands=False)) is not None:
                return first > 0
        return self.is_running(container)

    def end_idle(self, rows: Sequence[ContainerRow]) -> list[ContainerRow]:
        """End those that are only kept alive, and run nothing. Returns them."""
        ended = []
        for row in self._known(rows):
            with locks.program(self._layout, row.id) as starts_none:
                if starts_none and self._end_if_idle(row.id):
                    ended.append(row)
        return ended

    def _end_if_idle(self, container: str) -> bool:
        """Where nobody else starts a program in it. Whether it was ended."""
        from layerstore.containers import groups, keeping

        if not keeping.is_kept(self._layout.container(container)):
            return False
        keeping.see_to_forgotten()
        with locks.command(self._layout, container, alone=True) as has_none:
            if not has_none:
                return False
            with contextlib.suppress(NotFound):
                if self._has_programs(container):
                    return False
                self.runtime().delete(container, force=True)
            groups.remove([container], force=True)
            keeping.remove_files(self._layout.container(container))
        return True

    def _has_programs(self, container: str) -> bool:
        """Whether a container that is kept alive has other processes but its first one. Raises `NotFound`."""
        from layerstore.containers import groups, keeping

        found = groups.population(container, commands=True)
        if found is not None:
            return found > 1
        state = self.runtime().state(container)
        return state["status"] == "running" and len(keeping.processes(state["pid"])) > 1

    def stop(self, container: str, number: int, timeout: float) -> None:
        """Send its first process a signal, wait for its end, and kill it after `timeout` seconds."""
        import select
        import signal

        from layerstore.containers import groups, stillness

        runtime = self.runtime()
        with contextlib.suppress(NotFound, ProcessLookupError):
            state = runtime.state(container)
            if state["status"] != "stopped":
                ended = os.pidfd_open(state["pid"])
                try:
                    poll = select.poll()
                    poll.register(ended, select.POLLIN)
                    runtime.kill(container, number)
                    stillness.unpause(self._layout, self, container)
                    groups.thaw_parts(container)
                    if not poll.poll(timeout * 1000):
                        runtime.kill(container, signal.SIGKILL)
                        poll.poll(_END_MS)
                finally:
                    close_fd(ended)
        program_records.see_out(self._layout.container(container))
        end = time.monotonic() + _JOIN_SECONDS
        # Who waited for it clears away first; or a collection looks at it.
        while not self._cleared_away(container) and not self.is_running(container) and time.monotonic() < end:
            time.sleep(_LOOK_SECONDS)

    def _cleared_away(self, container: str) -> bool:
        """Take away what is left of what ran. False while somebody else starts a program, or waits for its end."""
        from layerstore.containers import groups

        with contextlib.suppress(Conflict), locks.program(self._layout, container) as is_free:
            if not is_free:
                return False
            self.forget_ended(container)
            groups.remove([container], force=True)
        return True

    def rename(self, row: ContainerRow, name: str) -> ContainerRow:
        """Raises `InvalidInput` where it is no name, `Conflict` where another container has it, `NotFound`."""
        check_name(name, "a container")
        with self._database.transaction() as db:
            self.check(row, db)
            found = db.execute("SELECT id FROM containers WHERE name = ?", (name,)).fetchone()
            if found is not None and found[0] != row.id:
                raise Conflict(f"there is a container named {name!r} already; `layerstore rm {name}` first")
            db.execute("UPDATE containers SET name = ? WHERE id = ?", (name, row.id))
        return self.row(row.id)

    def forget_groups(self) -> None:
        """Take away the control groups that killed processes have left of containers that do not run."""
        from layerstore.containers import groups

        known = {row.id for row in self.all()} if (there := groups.present()) else ()
        for container in there:
            if container in known:
                # One that stays, whatever keeps it, is no reason to collect nothing. runc holds no lock of a group.
                with locks.program(self._layout, container) as is_free, contextlib.suppress(Conflict, OSError):
                    if is_free:
                        groups.remove([container], unless=self.is_running)

    def is_running(self, container: str) -> bool:
        """Does a process of it run, by the OCI runtime's word?"""
        if not os.path.isdir(f"{self._layout.runtime}/{container}"):
            return False
        try:
            return self.runtime().state(container)["status"] in ("running", "paused")
        except NotFound:
            return False

    def runtime(self) -> Runtime:
        """The OCI runtime of this machine. Raises `Unsupported` when there is none."""
        from layerstore.containers.runtime import find_runtime

        return find_runtime(None, self._layout.runtime)

    def write_bundle(self, container: str, spec: dict[str, Any], *, is_program: bool = True) -> str:
        """Make the container's directory an OCI bundle; returns it. `is_program`: its command is this from now on."""
        bundle = self._layout.container(container)
        # Who begins a command reads it at any time.
        with about(f"{bundle}/config.json"), open(f"{bundle}/config.json.new", "w") as file:
            file.write(json.dumps(spec))
        os.replace(f"{bundle}/config.json.new", f"{bundle}/config.json")
        if not is_program:
            return bundle
        from layerstore.containers import keeping

        with self._database.transaction(durable=False) as db:
            db.execute(
                "UPDATE containers SET command = ? WHERE id = ?", (json.dumps(keeping.program_of(spec)), container)
            )
        return bundle

    def remove(self, rows: Sequence[ContainerRow], *, force: bool = False, waits: bool = True) -> None:
        """Remove containers and all that they wrote; those that are gone already are passed over.

        Who reads one (a commit, an export) is waited for, unless `waits` is false; with `force` he is not, and fails.

        Raises `Conflict` where one runs, its mount is in use or somebody reads it and `force` is not given, or
        somebody mounts it; nothing is removed then.
        """
        from layerstore.containers import groups

        # Before others are waited for, and again when nobody can begin anything.
        if force:
            self._end(rows)
        else:
            self.end_idle(rows)
            self._check_idle(rows)
        with contextlib.ExitStack() as stack:
            ids = [row.id for row in rows]
            if force:
                stack.enter_context(locks.mounting(self._layout, ids))
            else:
                if not stack.enter_context(locks.containers_to_remove(self._layout, ids, waits=waits)):
                    raise Conflict(
                        f"somebody reads or mounts container {' or '.join(id[:12] for id in ids)}; try again later"
                    )
                starts_none = stack.enter_context(locks.programs(self._layout, ids))
                self._check_idle(rows)
                if not starts_none:
                    raise Conflict(
                        "another process starts or ends a program in container "
                        f"{' or '.join(id[:12] for id in ids)}; try again later"
                    )
            self._end(rows)
            # Before the rows go, or nobody knows of them any more.
            groups.remove(ids, force=force)
            gone = self._remove(rows, force)
            if force:
                # A start which was past its look may have made a group meanwhile.
                groups.remove(ids, force=True)
        log_rows.unlink(self._layout, gone)
        for row in self._known(rows):
            # A runtime that was killed as it began knows nothing of what it has made.
            with contextlib.suppress(OSError):
                remove_directory(self._layout.runtime, row.id)

    def _check_idle(self, rows: Sequence[ContainerRow]) -> None:
        for row in self._known(rows):
            if self.is_running(row.id):
                raise Conflict(f"container {row.id[:12]} is running; end it first, or remove it by force")
        for row in rows:
            if self._is_written(row.id):
                raise Conflict(
                    f"another process writes to container {row.id[:12]}; end it first, or remove it by force"
                )

    def _end(self, rows: Sequence[ContainerRow]) -> None:
        """End what runs in them, and have the runtime forget what has ended."""
        from layerstore.containers import stillness

        for row in self._known(rows):
            with contextlib.suppress(NotFound):
                try:
                    stillness.unpause(self._layout, self, row.id)
                    self.runtime().delete(row.id, force=True)
                except NotFound:
                    raise
                except LayerstoreError:  # its monitor does it at the same moment
                    program_records.see_out(self._layout.container(row.id))
                    self.runtime().delete(row.id, force=True)
        for row in rows:
            program_records.see_out(self._layout.container(row.id))

    def _remove(self, rows: Sequence[ContainerRow], force: bool) -> list[str]:
        """Under the locks of the containers. Returns the logs that nobody needs any more."""
        if any(self.mounted(rows)):
            self._unmount(rows, lazy=force)
            self._release_of(rows)
        # Rows first: what is left of a directory whose row is gone is garbage, not half a container. And on the disk,
        # or a power cut could bring back the row of what it has taken; unless that was not to outlive one.
        with self._database.transaction(durable=False) as db:
            needed = [log for row in rows for (log,) in db.execute(_LOGS_OF, {"id": row.id})]
            db.executemany("DELETE FROM containers WHERE id = ?", [(row.id,) for row in rows])
            gone = log_rows.forget_unneeded(db, needed)
        if not all(row.volatile for row in rows):
            self._database.sync()
        # A container is a use of its image for as long as it is there.
        note_use(self._layout, {row.image_id for row in rows})
        stood_on = self._stacks(rows)
        try:
            container_remove_many(self._mounts.containers_fd, [row.id for row in rows])
        except OSError as error:
            # Somebody who was not waited for still makes files in one: what is left of it is garbage, without a row.
            if error.errno != errno.ENOTEMPTY:
                raise
        self._keep(row.id for row in rows)
        for names in stood_on:
            frozen.release(self._layout, names)
        return gone

    def _stacks(self, rows: Sequence[ContainerRow]) -> set[tuple[str, ...]]:
        """What these and their snapshots stand on."""
        found: set[tuple[str, ...]] = set()
        for row in rows:
            if row.driver == "overlay":
                found.update(frozen.stacks(self._layout.container(row.id)))
        return found

    @contextlib.contextmanager
    def told_of_removal(self, row: ContainerRow) -> Iterator[None]:
        """Raise as `check` where the block fails as a container's files go, which a removal by force, or a move, takes
        from whoever has them; `Conflict` too where it was moved and moved back."""
        path = self._layout.container(row.id)
        try:
            # As long as it is open no other directory has its inode.
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            fd = -1
        try:
            yield
        except (FileNotFoundError, NotADirectoryError, NotFound) as error:
            self.check(row)
            if row.driver == "overlay" and not _is_at(fd, path):
                if not exists(path):
                    raise _lost(row.id) from error
                raise Conflict(
                    f"container {row.id[:12]} was moved to another driver and back meanwhile; try again"
                ) from error
            raise
        finally:
            if fd >= 0:
                close_fd(fd)

    def _is_written(self, container: str) -> bool:
        """Does a process write to this container, by its log, which only one of the extent driver has?"""
        query = "SELECT log FROM containers WHERE id = ? AND log IS NOT NULL"
        row = self._database.read().execute(query, (container,)).fetchone()
        if row is None:
            return False
        try:
            fd = os.open(self._layout.log(row[0]), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not locks.try_lock(fd)
        finally:
            close_fd(fd)
