"""The database: names, images, layers, packs and containers. Its transactions are the commit points of the store.

What is promised: a transaction is durable when it returns, except those asked for with `durable=False` (containers:
nothing written to one is durable before its own fsync either), which survive a crash of the process but may be
lost, whole and in order, when the machine loses power.
"""

from __future__ import annotations

import _thread
import _weakref
import contextlib
import errno
import os
import sqlite3
import time

from layerstore.errors import REPAIR_DATABASE, Conflict, CorruptError, Unsupported
from layerstore.naming import about, close_fd
from layerstore.store import locks, sums, wal_index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

SCHEMA_VERSION = 7

SET_NAME = "INSERT INTO names VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET image_id = excluded.image_id"
"""Gives an image (id, second) a name (first); one that another image has moves to it."""
SET_COUNTER = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
"""Gives a counter (its name, first) a value."""
LAYERS_OF = """
WITH RECURSIVE stack (diff_id, parent, depth) AS (
    SELECT diff_id, parent, 0 FROM chains WHERE chain_id = (SELECT chain_id FROM images WHERE image_id = ?)
    UNION ALL
    SELECT chains.diff_id, chains.parent, depth + 1 FROM stack JOIN chains ON chains.chain_id = stack.parent
)
SELECT diff_id, files_bytes FROM stack JOIN layers USING (diff_id) ORDER BY depth DESC
"""
"""The layers of an image, bottom first, and the bytes of their files."""
UNUSED_CHAINS = """
chain_id NOT IN (
    WITH RECURSIVE needed (chain_id) AS (
        SELECT chain_id FROM images UNION SELECT parent FROM needed JOIN chains USING (chain_id) WHERE parent NOT NULL
    )
    SELECT chain_id FROM needed
)
"""
"""The chains that no image ends in or goes through."""
_TIMEOUT_SECONDS = 60
_LOOK_SECONDS = 0.0005
_LOG_PAGES = 100
_IN_MEMORY = ":memory:"
_WRITE_NOTHING = "DELETE FROM counters WHERE 0"
_ERRORS = (sqlite3.Error, UnicodeDecodeError)
_NO_TEXT = "Could not decode to UTF-8"
_INTERRUPTED = "user-defined function raised exception"
"""SQLite says so, and not which, where Python called a signal handler that raised before the first line of ours."""
_OTHER_TABLES = ("no such table", "no such column", "has no column named", "values were supplied")
"""SQLite says so of statements that do not fit the tables, and all of ours do."""
_ERRNO = {
    sqlite3.SQLITE_IOERR: errno.EIO,
    sqlite3.SQLITE_CANTOPEN: errno.EIO,
    sqlite3.SQLITE_PROTOCOL: errno.ENOLCK,
    sqlite3.SQLITE_PERM: errno.EACCES,
    sqlite3.SQLITE_READONLY: errno.EROFS,
}
_OF_A_FULL_DISK = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
"""What SQLite also says where it cannot make or extend a file beside the database."""

_SCHEMA = """
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT INTO counters VALUES ('digests', 0), ('digests_generation', 0), ('packs', 0);
CREATE TABLE packs (number INTEGER PRIMARY KEY);
CREATE TABLE layers (diff_id TEXT PRIMARY KEY, files_bytes INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE images (
    image_id TEXT PRIMARY KEY, chain_id TEXT NOT NULL, created TEXT NOT NULL, stored_seconds REAL NOT NULL
) WITHOUT ROWID;
CREATE TABLE chains (
    chain_id TEXT PRIMARY KEY, parent TEXT, diff_id TEXT NOT NULL REFERENCES layers
) WITHOUT ROWID;
CREATE INDEX chains_of_layer ON chains (diff_id);
CREATE TABLE image_blobs (
    image_id TEXT NOT NULL REFERENCES images ON DELETE CASCADE, digest TEXT NOT NULL, PRIMARY KEY (image_id, digest)
) WITHOUT ROWID;
CREATE TABLE names (name TEXT PRIMARY KEY, image_id TEXT NOT NULL REFERENCES images) WITHOUT ROWID;
CREATE INDEX names_of ON names (image_id);
CREATE TABLE containers (
    id TEXT PRIMARY KEY, name TEXT UNIQUE, image_id TEXT NOT NULL REFERENCES images, image_name TEXT NOT NULL,
    chain_id TEXT NOT NULL, created_seconds REAL NOT NULL, volatile INTEGER NOT NULL, command TEXT
) WITHOUT ROWID;
CREATE INDEX containers_of_chain ON containers (chain_id);
CREATE INDEX containers_of_image ON containers (image_id);
"""
_LOGS = """
CREATE TABLE logs (id TEXT PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE log_uses (
    log TEXT NOT NULL REFERENCES logs ON DELETE CASCADE, used TEXT NOT NULL REFERENCES logs,
    length INTEGER NOT NULL, PRIMARY KEY (log, used)
) WITHOUT ROWID;
CREATE INDEX log_uses_of ON log_uses (used);
ALTER TABLE containers ADD COLUMN driver TEXT NOT NULL DEFAULT 'overlay';
ALTER TABLE containers ADD COLUMN log TEXT REFERENCES logs;
CREATE INDEX containers_of_log ON containers (log) WHERE log IS NOT NULL;
CREATE TABLE snapshots (
    container_id TEXT NOT NULL REFERENCES containers ON DELETE CASCADE, name TEXT NOT NULL,
    created_seconds REAL NOT NULL, log TEXT REFERENCES logs, length INTEGER, PRIMARY KEY (container_id, name)
) WITHOUT ROWID;
CREATE INDEX snapshots_of_log ON snapshots (log) WHERE log IS NOT NULL;
"""
_BLOBS = """
CREATE TABLE layer_blobs (
    digest TEXT PRIMARY KEY, diff_id TEXT NOT NULL REFERENCES layers ON DELETE CASCADE,
    size_bytes INTEGER NOT NULL, compression TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX layer_blobs_of ON layer_blobs (diff_id);
CREATE TABLE blob_places (
    digest TEXT NOT NULL REFERENCES layer_blobs ON DELETE CASCADE, registry TEXT NOT NULL, repository TEXT NOT NULL,
    seen_seconds REAL NOT NULL, PRIMARY KEY (digest, registry, repository)
) WITHOUT ROWID;
"""
_CHECKS = f"""
ALTER TABLE layers ADD COLUMN recipe BLOB;
CREATE TABLE damaged_layers (
    diff_id TEXT PRIMARY KEY REFERENCES layers ON DELETE CASCADE, lacks TEXT NOT NULL
) WITHOUT ROWID;
{sums.TABLE};
"""
_COLD = """
CREATE TABLE cold_packs (number INTEGER PRIMARY KEY);
CREATE TABLE frozen (image_id TEXT PRIMARY KEY REFERENCES images ON DELETE CASCADE) WITHOUT ROWID;
INSERT INTO counters VALUES ('cold_packs', 0);
"""
_NOTHING = "SELECT 0"
_STEPS = {0: _SCHEMA, 2: _LOGS, 3: _BLOBS, 4: _CHECKS, 5: _COLD, 6: _NOTHING}
"""What is done to a database of that version. The one of version 1 is not read any more. From version 7 on containers
may stand on frozen uppers, of which earlier versions of layerstore know nothing."""


class _Cursor(sqlite3.Cursor):
    """Has errors of SQLite, which reads on as rows are asked for, as those of the connection."""

    connection: _Connection

    def __next__(self) -> Any:
        try:
            return super().__next__()
        except _ERRORS as error:
            raise self.connection.failed(error) from error

    def fetchone(self) -> Any:
        try:
            return super().fetchone()
        except _ERRORS as error:
            raise self.connection.failed(error) from error

    def fetchall(self) -> list[Any]:
        try:
            return super().fetchall()
        except _ERRORS as error:
            raise self.connection.failed(error) from error


class _Connection(sqlite3.Connection):
    """Has errors of SQLite as this library's: a damaged file, a lock that another process holds on to, the system's."""

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._path = path
        self.durable: bool | None = None
        """Whether its transactions are; None before it is first set."""
        self.changes = sums.Changes(self)
        self.writes = False
        """Whether it is known to have the file open for writing, too."""
        self.in_use = False
        """Whether a transaction of `Database` is under way."""
        self._log_fd: int | None = None
        self.index: tuple[int, int] | None = None
        """See `wal_index.let_go`."""

    def sync_log(self) -> None:
        """Have the log on the disk as it is now. Raises `OSError`."""
        if self._log_fd is None:
            self.execute("PRAGMA user_version").fetchone()  # from the first read on the log is there, until it closes
            self._log_fd = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)
        with about(f"{self._path}-wal"):
            os.fdatasync(self._log_fd)

    def close(self) -> None:
        super().close()
        index, self.index = self.index, None
        wal_index.let_go(index)
        if self._log_fd is not None:
            close_fd(self._log_fd)
            self._log_fd = None

    def execute(self, *args: Any) -> sqlite3.Cursor:
        try:
            return self.cursor(_Cursor).execute(*args)
        except _ERRORS as error:
            raise self.failed(error) from error

    def executemany(self, *args: Any) -> sqlite3.Cursor:
        try:
            return self.cursor(_Cursor).executemany(*args)
        except _ERRORS as error:
            raise self.failed(error) from error

    def failed(self, error: Exception) -> BaseException:
        translated = KeyboardInterrupt() if str(error) == _INTERRUPTED else _translated(error, self._path)
        # Not at any other time: with its traceback it keeps alive what its callers had, open files and their locks.
        if self.in_use:
            self.changes.failed = translated
        return translated


def _translated(error: Exception, path: str) -> Exception:
    """The primary result codes of https://www.sqlite.org/rescode.html that are no mistake of the caller's."""
    if any(text in str(error) for text in _OTHER_TABLES):
        return CorruptError(f"{path} is damaged: its tables are not as they were made ({error}); {REPAIR_DATABASE}")
    if isinstance(error, UnicodeDecodeError) or str(error).startswith(_NO_TEXT):
        return CorruptError(f"{path} is damaged: text in it is none; {REPAIR_DATABASE}")
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return CorruptError(f"{path} is damaged ({error}); {REPAIR_DATABASE}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Conflict(f"another process has kept {path} locked ({error}); try again when it has ended")
    if code == sqlite3.SQLITE_FULL or (
        code in _OF_A_FULL_DISK and not wal_index.has_room(os.path.dirname(path) or ".")
    ):
        return wal_index.no_room(errno.ENOSPC, path)
    if code in _ERRNO:
        return OSError(_ERRNO[code], f"cannot read or write {path}: {error}")
    return error


def _connected(path: str) -> _Connection:
    index = None if path == _IN_MEMORY else wal_index.have_whole(path)
    try:
        connection = sqlite3.connect(
            path, timeout=_TIMEOUT_SECONDS, isolation_level=None, check_same_thread=False, factory=_Connection
        )
    except BaseException as error:
        wal_index.let_go(index)
        if isinstance(error, sqlite3.Error):
            raise _translated(error, path) from error
        raise
    connection.index = index
    return connection


def connect_alone(path: str) -> sqlite3.Connection:
    """A connection that has read nothing yet, whatever others of this process have in memory.

    Bytes of a text that are none come as surrogates. Raises `CorruptError`, `OSError`.
    """
    connection = _connected(path)
    connection.text_factory = lambda text: text.decode("utf-8", "surrogateescape")
    return connection


def schema() -> list[tuple[str, str, str | None]]:
    """What SQLite says of the tables, indexes and triggers of a database of this version: type, name, SQL."""
    with contextlib.closing(Database(_IN_MEMORY, os.devnull)) as made:
        return tables_in(made.read())


def tables_in(db: sqlite3.Connection) -> list[tuple[str, str, str | None]]:
    """The same of a database as it is."""
    return db.execute("SELECT type, name, sql FROM sqlite_schema ORDER BY type, name").fetchall()


class Database:
    """One SQLite file, a connection for each thread. `turn` is the lock file of those that wait to write to it.

    Raises `Unsupported` where another version of layerstore made it. Its connections raise `CorruptError` where SQLite
    finds the file damaged, `Conflict` where another process does not let go of it, and `OSError`.
    """

    def __init__(self, path: str, turn: str) -> None:
        self._path = path
        self._turn = turn
        # By the number of the thread, which another thread has after its end, and the connection with it. Not in a
        # threading.local: loading that module takes as long as loading several of ours.
        self._connections: dict[int, _Connection] = {}
        self._sync_failed = False
        self._is_made = False
        _opened.add(_weakref.ref(self, _opened.discard))
        try:
            version = self._brought_up()
        except BaseException:
            self.close()
            raise
        if version != SCHEMA_VERSION:
            self.close()
            raise Unsupported(
                f"{path} is of another version of layerstore (schema {version}, and 2 to {SCHEMA_VERSION} are read): "
                "use that version, or load the images into a new store"
            )
        self._is_made = True

    def _brought_up(self) -> int:
        version = _version(self.read())
        if version == 0:
            _begin_wal(self.read())
        return version if version >= SCHEMA_VERSION else self._bring_up()

    def _bring_up(self) -> int:
        """Make the tables of today, unless another process has made them meanwhile; returns the schema's version."""
        with self.transaction() as db:
            version = _version(db)
            if version in _STEPS:
                for step in [step for needed, step in _STEPS.items() if needed >= version]:
                    for statement in step.split(";\n"):
                        try:
                            db.execute(statement)
                        except sqlite3.OperationalError as error:
                            raise CorruptError(
                                f"{self._path} says that it is of version {version}, and has other tables ({error}); "
                                f"{REPAIR_DATABASE}"
                            ) from error
                sums.install(db)
                db.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            return _version(db)

    def read(self) -> _Connection:
        """This thread's connection, outside a transaction, for single SELECTs."""
        connection = self._connections.get(_thread.get_ident())
        if connection is None:
            connection = _connected(self._path)
            connection.execute("PRAGMA foreign_keys = ON")
            # What a statement undoes where it fails; triggers have every one keep that, and in a file it takes longer.
            connection.execute("PRAGMA temp_store = MEMORY")
            # The log outlives a process that ends without closing, and the next one reads what is in it.
            connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
            self._connections[_thread.get_ident()] = connection
        return connection

    def before_fork(self) -> None:
        """Close this thread's connection, which is opened again when it is needed.

        SQLite has one set of locks for all connections of a process to a file, and takes those of the parent for its
        own in the child, where they are none: a child with a connection that was open at the fork would write to a log
        that the parent, closing, has removed.
        """
        connection = self._connections.get(_thread.get_ident())
        if connection is not None and not connection.in_use:
            del self._connections[_thread.get_ident()]
            connection.close()

    def after_fork(self) -> None:
        """In the child: leave alone what other threads of the parent have open."""
        _of_parents.extend(self._connections.values())
        self._connections.clear()

    def collections(self) -> int:
        """How often something was taken away by garbage collection: the generation of the digest log. What was read
        before and is kept in memory may be of what is gone, and keeps its files from being given back."""
        query = "SELECT value FROM counters WHERE name = 'digests_generation'"
        return int(self.read().execute(query).fetchone()[0])

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Begin immediately, commit at the end, roll back on an exception. Not nested."""
        if self.read().in_use:
            raise RuntimeError("a transaction is under way in this thread")
        writing = locks.writing(self._turn)
        try:
            connection = self._begin_writing(durable)
            connection.in_use = True
            yield connection
            connection.changes.settle(connection)
            connection.execute("COMMIT")
        except BaseException as error:
            # An interrupt may have come as it had just begun.
            if (begun := self._connections.get(_thread.get_ident())) is not None:
                self._take_back(begun, error)
            raise
        finally:
            writing.end()
            if (ended := self._connections.get(_thread.get_ident())) is not None:
                ended.in_use = False
                ended.changes.forget()

    def _take_back(self, connection: _Connection, error: BaseException) -> None:
        # Not where it was committed already, or SQLite has rolled it back by itself (a full disk).
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if _is_of_sync(error):
            self._sync_failed = True
            with contextlib.suppress(OSError, Conflict):
                self._write_again(connection)

    def _begin_writing(self, durable: bool) -> _Connection:
        """Begin a transaction that writes. Where SQLite cannot open a file for writing at a moment (no descriptors
        are left), it opens it for reading, without a word, and goes on with that; such a connection is replaced here.
        """
        try:
            connection = self._begin(durable)
            if self._is_made and not connection.writes:
                _write_nothing(connection)
        except OSError as error:
            if error.errno != errno.EROFS or not self._is_made:
                raise
            self._connections.pop(_thread.get_ident()).close()
            connection = self._begin(durable)
            _write_nothing(connection)
        return connection

    def _begin(self, durable: bool) -> _Connection:
        """Begin a transaction that writes, in one's turn where others do.

        SQLite waits by looking again, less and less often, and for a minute: of hundreds of processes, one may be
        unlucky for as long. So only the first of those that wait looks, often; the others stand in line for that.
        """
        connection = self.read()
        if self._sync_failed:
            self._write_again(connection)
        if connection.durable is not durable:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            connection.durable = durable
        connection.execute("PRAGMA busy_timeout = 0")
        try:
            if _begun(connection):
                return connection
            with locks.turn(self._turn):
                deadline = time.monotonic() + _TIMEOUT_SECONDS
                while not _begun(connection):
                    if time.monotonic() > deadline:
                        raise Conflict(
                            f"another process has kept {self._path} locked for {_TIMEOUT_SECONDS} s; "
                            "try again when it has ended"
                        )
                    time.sleep(_LOOK_SECONDS)
            return connection
        finally:
            connection.execute(f"PRAGMA busy_timeout = {_TIMEOUT_SECONDS * 1000}")

    def _write_again(self, connection: _Connection) -> None:
        """After a sync that failed: have what is committed be on the disk, and nothing else.

        The kernel tells once that something could not be written and takes it for written then, so a later sync of the
        log would say nothing about it; and what was to be committed is in the log, whole, where a crash would find it.
        So all that counts is written to the database itself, and the log emptied. Raises `OSError`.
        """
        (is_busy, _, _) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise Conflict(
                f"{self._path} could not be written to the disk, and others that read it keep it from being tried again"
            )
        self._sync_failed = False

    def sync(self) -> None:
        """Make durable what was committed until now, by whomever. Raises `OSError`, `Conflict`.

        To commit with `durable=False`, and this then, is for what is done whether it gets to the disk or not: nobody
        waits for the disk with the lock of writers, and those that sync at the same time are served by the file system
        together.
        """
        connection = self.read()
        try:
            connection.sync_log()
        except OSError:
            self._sync_failed = True
            with contextlib.suppress(OSError):  # a descriptor of SQLite's has the same error to tell, once
                return self._write_again(connection)
            self._write_again(connection)

    def close(self) -> None:
        """Close the connections of all threads."""
        while self._connections:
            self._connections.popitem()[1].close()


def _begun(connection: _Connection) -> bool:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except Conflict:
        return False
    return True


def _write_nothing(connection: _Connection) -> None:
    """In a transaction, which is ended where that fails: see whether it can write."""
    try:
        connection.execute(_WRITE_NOTHING)
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.writes = True


def _is_of_sync(error: BaseException) -> bool:
    code = getattr(error.__cause__, "sqlite_errorcode", 0)
    return code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_IOERR_DIR_FSYNC)


def _begin_wal(connection: sqlite3.Connection) -> None:
    """Have the file in WAL mode from now on. Nobody else may use it at that moment, for which SQLite does not wait."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        try:
            # To its end: SQLite answers, and writes the file then.
            connection.execute("PRAGMA journal_mode = WAL").fetchall()
            return
        except Conflict:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.005)


def _version(connection: sqlite3.Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


_opened: set[_weakref.ReferenceType[Database]] = set()
_of_parents: list[_Connection] = []
"""What was open at a fork. To close it here would have SQLite believe that nobody uses the file any more."""


def _before_fork() -> None:
    for reference in list(_opened):
        if (database := reference()) is not None:
            database.before_fork()


def _after_fork() -> None:
    for reference in list(_opened):
        if (database := reference()) is not None:
            database.after_fork()
    wal_index.after_fork()


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
