"""What the benchmarks of writable layers share: containers of either driver, written to, forked, rolled back."""

from __future__ import annotations

import os
import subprocess
import tarfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from bench.context import Context
from bench.loopfs import used_bytes
from bench.measure import interleaved, seconds, split_ours
from bench.rows import Row, at_most, durably, faster, known

if TYPE_CHECKING:
    from layerstore import Container, Store

LARGE = "/large"
LARGE_BYTES = 1 << 30
POOL_BYTES = 8 << 30
CHANGED = (10, 1000, 10_000)
PER_DIRECTORY = 100
SIZES = (500, 500, 9000)
"""Of the changed files, in turn; of a pool: two that are copied by a fork, and one that is shared."""
BLOCK = bytes(4096)
MILLISECOND = 1e3
KIB = 1024
OVERLAYFS, SAME_XFS = "overlayfs", "overlayfs on the pool's XFS"
WRITTEN = {
    "ours": "nothing",
    OVERLAYFS: "the copy that the kernel makes of the file, not the write",
    SAME_XFS: "nothing, the kernel clones the file",
}


class Files(Protocol):
    """The files of one container."""

    def write_block(self, path: str, offset: int) -> None:
        """Open, write 4 KiB, close."""

    def write_bytes(self, path: str, data: bytes) -> object: ...
    def mkdir(self, path: str) -> None: ...
    def chmod(self, path: str, mode: int) -> None: ...


class MountedFiles:
    """Below a mount point, by the functions of `os`."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def write_block(self, path: str, offset: int) -> None:
        fd = os.open(f"{self._root}{path}", os.O_RDWR)
        os.pwrite(fd, BLOCK, offset)
        os.close(fd)

    def write_bytes(self, path: str, data: bytes) -> object:
        return Path(f"{self._root}{path}").write_bytes(data)

    def mkdir(self, path: str) -> None:
        Path(f"{self._root}{path}").mkdir()

    def chmod(self, path: str, mode: int) -> None:
        Path(f"{self._root}{path}").chmod(mode)


class ExtentFiles:
    """Of a container of the extent driver, by its functions. What is written is with the system when they return."""

    def __init__(self, container: Container) -> None:
        self._container = container
        self.write_bytes = container.write_bytes
        self.mkdir = container.mkdir
        self.chmod = container.chmod

    def write_block(self, path: str, offset: int) -> None:
        with self._container.open(path, "r+b", 0) as file:
            file.seek(offset)
            file.write(BLOCK)


@contextmanager
def mounted(container: Container) -> Iterator[Files]:
    with container.mount() as view:
        yield MountedFiles(view)


@dataclass(frozen=True)
class Kind:
    """Containers as a benchmark makes them: `name` in its lines, `files` to open one's files for a while."""

    name: str
    driver: str
    files: Callable[[Container], AbstractContextManager[Files]]
    fork_limit: Callable[[int], float]
    """Milliseconds that a fork may take, by the number of changed files."""
    forked: Mapping[str, str]
    """What a fork and a rollback make durable (docs/reliability.md)."""


POOL = Kind(
    "pool",
    "overlay",
    mounted,
    lambda count: 2 + 0.020 * count,
    {"ours": "by a fork the files, not its row; by a rollback nothing"},
)
EXTENT = Kind(
    "extent driver",
    "extent",
    lambda container: nullcontext(ExtentFiles(container)),
    lambda count: 2,
    {"ours": "by a fork its log, not its row; by a rollback nothing"},
)


# -- a file of 1 GiB ------------------------------------------------------------------------------------------------


def make_large(path: Path) -> None:
    """Write a file of 1 GiB in which no two pages are alike."""
    path.parent.mkdir(exist_ok=True)
    piece = os.urandom(1 << 20)
    with path.open("wb") as file:
        for number in range(LARGE_BYTES >> 20):
            file.write(number.to_bytes(8, "little") + piece[8:])


def tar_large(path: Path, directory: Path) -> Path:
    """An archive with that file as `/large`, in `directory`."""
    archive = directory / "large.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(path, LARGE.lstrip("/"))
    return archive


def import_large(store: Store, path: Path, directory: Path) -> None:
    """Make an image "large" that has that file and nothing else."""
    archive = tar_large(path, directory)
    store.import_rootfs(archive, "large")
    archive.unlink()


def write_once(files: Files) -> None:
    files.write_block(LARGE, 123 << 20)


def change_mode_once(files: Files) -> None:
    files.chmod(LARGE, 0o640)


def first_writes(context: Context, store: Store, kind: Kind, large: Path, within: Path | None = None) -> Iterator[Row]:
    """Each in a container of its own; the peer is overlayfs on the file system that has the large file. `within`: the
    large file on the store's own file system, for overlayfs there."""
    return durably(WRITTEN, _first_writes(context, store, kind, large, within))


def _first_writes(context: Context, store: Store, kind: Kind, large: Path, within: Path | None) -> Iterator[Row]:
    ours = partial(in_container, store, kind)
    works: dict[str, Callable[[], float]] = {
        "ours": partial(ours, write_once),
        OVERLAYFS: partial(on_overlayfs, context.directory, large, write_once),
    }
    if within is not None:
        works[SAME_XFS] = partial(on_overlayfs, within.parent.parent, within, write_once)
    for work in works.values():
        work()
    took, peers = split_ours(interleaved(works, context.rounds()))
    same = {SAME_XFS: peers.pop(SAME_XFS)} if within is not None else {}
    yield faster(f"first 4 KiB write into a file of 1 GiB, {kind.name}", "ms", took, peers, 2000)
    if same:
        yield known("… against overlayfs on the same file system with reflink", "ms", took, same)
    yield at_most(f"the write on disk, {kind.name}", "KiB", growth(store, kind, write_once), {}, 64)
    works = {"ours": partial(ours, change_mode_once)}
    yield known(f"chmod of it, {kind.name}", "ms", interleaved(works, context.rounds())["ours"], {})
    yield at_most(f"the chmod on disk, {kind.name}", "KiB", growth(store, kind, change_mode_once), {}, 64)


def in_container(store: Store, kind: Kind, work: Callable[[Files], None]) -> float:
    container = store.create("large", driver=kind.driver)
    with kind.files(container) as files:
        took = seconds(work, files)
    container.remove()
    return took * MILLISECOND


def growth(store: Store, kind: Kind, work: Callable[[Files], None]) -> float:
    """KiB that it takes from the file system of the store, a container being there and mounted before."""
    container = store.create("large", driver=kind.driver)
    root = Path(store.layout.root)
    with kind.files(container) as files:
        before = used_bytes(root)
        work(files)
        taken = (used_bytes(root) - before) / KIB
    container.remove()
    return taken


def on_overlayfs(directory: Path, large: Path, work: Callable[[Files], None]) -> float:
    with overlay(directory, large.parent) as view:
        return seconds(work, MountedFiles(view)) * MILLISECOND


@contextmanager
def overlay(directory: Path, lower: Path) -> Iterator[Path]:
    upper, workdir, view = (directory / f"overlay-{name}" for name in ("upper", "work", "view"))
    for path in (upper, workdir, view):
        path.mkdir()
    options = f"lowerdir={lower},upperdir={upper},workdir={workdir}"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, view], check=True)
    try:
        yield view
    finally:
        subprocess.run(["umount", view], check=True)
        subprocess.run(["rm", "-rf", upper, workdir, view], check=True)


# -- forks and rolling back -----------------------------------------------------------------------------------------


def forks(context: Context, store: Store, kind: Kind) -> Iterator[Row]:
    return durably(kind.forked, _forks(context, store, kind))


def _forks(context: Context, store: Store, kind: Kind) -> Iterator[Row]:
    took = {}
    for count in CHANGED:
        container = changed(store, kind, count)
        os.sync()
        works = {
            "fork": partial(forking, kind, container),
            "rollback": partial(rolling_back, kind, container),
        }
        figures = interleaved(works, context.rounds(7))
        took[count] = figures["fork"]
        work = f"fork of a container with {count:,} changed files, {kind.name}, from Python"
        yield at_most(work, "ms", figures["fork"], {}, kind.fork_limit(count))
        work = f"rollback of it after another write, {count:,} files, {kind.name}, from Python"
        yield at_most(work, "ms", figures["rollback"], {}, 2)
        container.remove()
        store.collect_garbage()
    if kind.fork_limit(CHANGED[-1]) == kind.fork_limit(CHANGED[0]):
        ratio = took[CHANGED[-1]] / took[CHANGED[0]]
        yield at_most(f"… fork with {CHANGED[-1]:,} files over {CHANGED[0]}, {kind.name}", "times", ratio, {}, 1.2)


def changed(store: Store, kind: Kind, count: int) -> Container:
    """With a snapshot of that, "then"."""
    container = store.create("large", driver=kind.driver)
    with kind.files(container) as files:
        for number in range(count):
            directory = f"/{number // PER_DIRECTORY}"
            if number % PER_DIRECTORY == 0:
                files.mkdir(directory)
            files.write_bytes(f"{directory}/{number}", b"x" * SIZES[number % len(SIZES)])
    container.snapshot("then")
    return container


def write_another(kind: Kind, container: Container) -> None:
    with kind.files(container) as files:
        files.write_bytes("/after", b"after")


def forking(kind: Kind, container: Container) -> float:
    """Of what no fork was made of before."""
    write_another(kind, container)
    begun: list[Container] = []
    took = seconds(lambda: begun.append(container.fork()))
    begun[0].remove()
    return took * MILLISECOND


def rolling_back(kind: Kind, container: Container) -> float:
    write_another(kind, container)
    return seconds(container.rollback, "then") * MILLISECOND


def many_forks(context: Context, store: Store, kind: Kind) -> Iterator[Row]:
    """All of one container in one call, and then 4 KiB written in each, which stays mounted meanwhile."""
    return durably(kind.forked, _many_forks(context, store, kind))


def _many_forks(context: Context, store: Store, kind: Kind) -> Iterator[Row]:
    count = context.count()
    container = changed(store, kind, 10)
    root = Path(store.layout.root)
    before = used_bytes(root)
    made: list[Container] = []
    forking = seconds(lambda: made.extend(container.fork(count=count)))
    with ExitStack() as stack:
        writing = seconds(write_in_each, kind, made, stack)
        each = (used_bytes(root) - before) / count / KIB
    work = f"{count:,} forks of a container with 10 changed files"
    yield at_most(f"{work}, {kind.name}, from Python, each", "ms", forking / count * MILLISECOND, {}, 1)
    total = forking + writing
    work = f"{work}, 4 KiB written in each, {kind.name}, from Python"
    yield at_most(f"{work}, each", "ms", total / count * MILLISECOND, {}, 1)
    yield known(f"… all of them, {kind.name}", "s", total, {})
    yield known(f"… disk for each, {kind.name}", "KiB", each, {})
    store.remove([container, *made])


def write_in_each(kind: Kind, containers: list[Container], stack: ExitStack) -> None:
    for container in containers:
        stack.enter_context(kind.files(container)).write_block("/0/0", 0)
