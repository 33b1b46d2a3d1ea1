"""What a store shows, and what it takes on disk: comparable between stores that the same was done to.

A state is a dict of names ("name app:1", "image sha256:…", "container box") to lines that tell all that is to be seen
under the name, contents included. Reading it is the proof that all of it can be read.
"""

import contextlib
import errno
import hashlib
import os
import re
import sqlite3
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from beside import content_store
from host_tree import LATER_NS, below

from layerstore import Container, Image, Store
from layerstore.errors import LayerstoreError
from layerstore.store.contents import ContentStore
from layerstore.store.pool import Pool
from layerstore.trees.entries import Entry

State = dict[str, tuple[str, ...]]

_ID = re.compile(r"[0-9a-f]{64}")
_BLOCK_BYTES = 4096
_LOCK_THAT_STAYS = re.compile(r"run/[a-z]+\.lock|builds/.*lock")


class Failure(Exception):
    """Something is not as it must be. `kind` is a count of `record.Row`: lost, corrupt, crashed or leaked."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(kind, text)  # so that it can be sent to another process
        self.kind = kind
        self._text = text

    def __str__(self) -> str:
        return f"{self.kind}: {self._text}"


@contextlib.contextmanager
def inside(root: Path) -> Iterator[Path]:
    """Where the files of a store are in the block: in its pool, where it has one, attached and detached again."""
    pool = Pool(str(root))
    if not pool.exists():
        yield root
        return
    try:
        with pool.attached():
            yield Path(pool.target)
    finally:
        pool.detach()


def is_store(root: Path) -> bool:
    """Whether there is a store, made to its end."""
    with inside(root) as directory:
        return (directory / "format").exists()


def state_of(root: Path, outputs: Path | None = None) -> State:
    """Everything that a store, where there is one, shows; and files and directories beside it, but for hidden ones.

    Raises `Failure` where something that is visible cannot be read whole.
    """
    state: State = {}
    if is_store(root):
        with _reading("the store"), Store(root) as store:
            state["store"] = ()
            state |= _images(store) | _containers(store)
    if outputs is not None:
        for path in sorted(outputs.iterdir()):
            if not path.name.startswith("."):
                state[f"output {path.name}"] = _tree_on_host(path)
    return state


def _images(store: Store) -> State:
    state: State = {}
    with content_store(store.layout) as contents:
        for image in store.images():
            with _reading(f"image {image.short_id} {image.names}"):
                state[f"image {image.id}"] = image_lines(image, contents)
                state |= {f"name {name}": (image.id,) for name in image.names}
    return state


def image_lines(image: Image, contents: ContentStore) -> tuple[str, ...]:
    """All of an image: config, layers, and its tree with contents. Each layer's tar must have its diff_id."""
    lines = [_hex(repr(image.config.document).encode())]
    for diff_id in image.diff_ids:
        real = hashlib.sha256()
        for piece in image.layer_tar(diff_id):
            real.update(piece)
        if f"sha256:{real.hexdigest()}" != diff_id:
            raise Failure("corrupt", f"the tar of layer {diff_id} of {image.names} has another digest")
        lines.append(f"layer {diff_id}")
    from layerstore.trees.whole import whole

    return (*lines, *_tree(whole(image.index(), contents, ())))


def _containers(store: Store) -> State:
    state: State = {}
    unnamed: Counter[str] = Counter()
    for container in store.containers():
        if (name := container.name) is None:
            unnamed[container.row.image_name] += 1
            name = f"{unnamed[container.row.image_name]} of {container.row.image_name}"
        with _reading(f"container {name}"):
            state[f"container {name}"] = container_lines(container)
    return state


def container_lines(container: Container) -> tuple[str, ...]:
    """A container: its driver, its tree with contents, the names of its snapshots."""
    snapshots = ", ".join(sorted(snapshot.name for snapshot in container.snapshots()))
    head = f"{container.driver} of {container.row.image_id}, snapshots: {snapshots}"
    return (head, *_tree(container.entries()))


def snapshots_of(root: Path) -> State:
    """What is in each snapshot. The containers are rolled back for it: of use at the end only."""
    state: State = {}
    with Store(root) as store:
        for container in store.containers():
            for snapshot in container.snapshots():
                name = f"snapshot {snapshot.name} of {container.name}"
                with _reading(name):
                    container.rollback(snapshot.name)
                    state[name] = container_lines(store.container(container.id))[1:]
    return state


def _tree(entries: Iterable[Entry]) -> tuple[str, ...]:
    return tuple(_line(entry) for entry in entries)


def _line(entry: Entry) -> str:
    time = "now" if entry.mtime_ns >= LATER_NS else entry.mtime_ns
    told: list[object] = [entry.path, oct(entry.mode), entry.uid, entry.gid, time, entry.rdev, entry.target, entry.link]
    if entry.link is None:
        told += [sorted(entry.xattrs.items()), entry.size]
        if entry.source is not None:
            told.append(_digest(entry.source.pieces))
    return repr(told)


def _digest(pieces: Callable[[], Iterable[bytes]]) -> str:
    found = hashlib.sha256()
    for piece in pieces():
        found.update(piece)
    return found.hexdigest()


def _tree_on_host(path: Path) -> tuple[str, ...]:
    if path.is_file():
        return (_hex(path.read_bytes()),)
    told = below(path).items()
    return tuple(sorted(_hex(repr(one).encode()) + f" {name}" for name, one in told))


def _hex(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _reading:
    """Has what goes wrong in its block be a `Failure`: something visible is not whole."""

    def __init__(self, what: str) -> None:
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (LayerstoreError, OSError, sqlite3.Error)):
            raise Failure("corrupt", f"{self._what} cannot be read: {type(error).__name__}: {error}") from error


def differences(found: State, expected: State) -> str:
    """For a reader: what the one state has otherwise than the other."""
    told = []
    for key in sorted(found.keys() | expected.keys()):
        has, wants = found.get(key), expected.get(key)
        if has == wants:
            continue
        if has is None or wants is None:
            told.append(f"{key} is {'missing' if has is None else 'there'}")
        else:
            lines = [f"+{line}" for line in has if line not in wants] + [
                f"-{line}" for line in wants if line not in has
            ]
            told.append(f"{key}: " + " ".join(lines or ["in another order"]))
    return "; ".join(told)


# On disk


def disk_of(root: Path) -> Counter[str]:
    """Files and directories of a store, with lengths and what they take on disk, and the database's rows by table.

    Names that are made up are left out of it, and so are derived files, the database's own and locks that stay for
    good. Equal for stores that equal things were done to, after garbage was collected.
    """
    found: Counter[str] = Counter()
    waiting = [root]
    while waiting:
        for path in waiting.pop().iterdir():
            name = str(path.relative_to(root))
            top, status = name.partition("/")[0], path.lstat()
            if top == "frozen" and name != top:  # how many are joined depends on what there was room for
                found["frozen/* on which nobody stands"] += not _is_stood_on(path)
                continue
            if (
                name.startswith("layerstore.db")
                or (top == "chains" and not path.name.startswith("."))
                or name.startswith("run/seccomp-")
                or _LOCK_THAT_STAYS.fullmatch(name)
            ):
                continue
            if stat.S_ISDIR(status.st_mode):
                waiting.append(path)
                found[f"{_without_made_up(name)}/"] += 1
            else:
                taken = _taken(path) if stat.S_ISREG(status.st_mode) else status.st_blocks * 512
                found[f"{_without_made_up(name)} {status.st_size} {taken}"] += 1
    return found + _rows(root / "layerstore.db")


def _is_stood_on(path: Path) -> bool:
    """Of a frozen upper, or a link beside it (layerstore/store/frozen.py)."""
    try:
        return path.with_name(f"{path.name.partition('.')[0]}.name").lstat().st_nlink > 1
    except FileNotFoundError:
        return False


def _taken(path: Path) -> int:
    """What of a file is on the disk, in whole blocks: without holes, and without what XFS reserves behind its end."""
    taken = at = 0
    with path.open("rb") as file:
        while True:
            try:
                begin = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:  # nothing follows
                    raise
                return taken
            at = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            taken += -(-at // _BLOCK_BYTES) * _BLOCK_BYTES - begin // _BLOCK_BYTES * _BLOCK_BYTES


def _without_made_up(name: str) -> str:
    top, _, rest = name.partition("/")
    if top == "logs":
        return "logs/*" if rest else top
    if top == "containers":
        return _ID.sub("*", name)
    if top in ("packs", "cold"):
        return re.sub(r"\d+", "*", name)
    return re.sub(r"^digests\.\d+", "digests.*", name)


def _rows(database: Path) -> Counter[str]:
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        tables = [table for (table,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return Counter({f"rows of {t}": db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables})
    finally:
        db.close()
