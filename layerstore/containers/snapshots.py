"""Snapshots of a container of the overlay driver, and rolling back: directories, and no rows.

    containers/<id>/upper                      what the kernel writes to
    containers/<id>/snapshots/<name>/upper     a clone of it (csrc/upper/clone_tree.h)
    containers/<id>/snapshots/<name>/created   an empty file of the time at which it was made
    containers/<id>/before, before.<name>      the upper that a rollback is replacing; with a name: that snapshot's
    containers/<id>/removed/<random>           garbage, and snapshots that are being made

Rolling back moves the snapshot's directory into the place of the upper one, so that it takes two renames whatever is in
them. A snapshot without `upper` therefore is the upper directory as it is now; before the container is mounted, and so
before anything can change it, it is cloned back (`settle`). At most one snapshot is in that state.

Each step leaves what `_repair` finishes or undoes.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from layerstore._core.clone import clone_tree
from layerstore._core.mount import container_remove_many
from layerstore.errors import Conflict, NotFound
from layerstore.naming import about, close_fd, exists, open_fd
from layerstore.store import locks
from layerstore.store.durable import file_system
from layerstore.store.layout import make_private
from layerstore.trees.whiteouts import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from layerstore.store.layout import Layout

    State = tuple[str | None, float, str, int]
    """A snapshot's name, None for what the container is now; when it was made; its upper directory, and what inode that
    is."""

_UUID_BYTES = 16


def clone_upper(source_fd: int, target: str) -> bool:
    """Clone the upper directory of the container's directory `source_fd` to another container's directory `target`.

    It gets its name when it is whole. Returns whether it has to be synced for what has its name to be whole after a
    power cut: what is shared is on the disk before the name is.

    The clone is another overlay to the kernel: it does not keep the identity that the first mount gave its original
    (overlayfs.rst, "UUID"). Raises `OSError`.
    """
    made = f"{target}/made"
    has_copied = clone_tree(source_fd, "upper", source_fd, made)
    with contextlib.suppress(OSError):  # never mounted, or no file system or user for such an attribute
        if os.getxattr(made, UUID):
            os.setxattr(made, UUID, os.urandom(_UUID_BYTES))
    os.rename(made, f"{target}/upper")
    return has_copied


@contextlib.contextmanager
def source(layout: Layout, container: str, *, lasting: bool = False) -> Iterator[int]:
    """The descriptor of a container's directory, which is whole and neither rolled back nor removed meanwhile.

    lasting: an iterator has it so. Raises `NotFound`, `Conflict`, `OSError`.
    """
    with _missing_is_removed(layout.container(container)) as directory:
        # Shared from the beginning where nothing is to be repaired: who reads it may fork it meanwhile.
        while True:
            with locks.container(layout, container, alone=False, lasting=lasting):
                if is_whole(directory):
                    with open_fd(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
                        yield fd
                    return
            make_whole(layout, container)


def is_whole(directory: str) -> bool:
    """Whether `make_whole` has nothing to do. Raises `OSError`."""
    names = os.listdir(directory)
    return "work" in names and not any(map(_is_before, names))


def make_whole(layout: Layout, container: str) -> None:
    """Finish or undo a rollback that was interrupted. Raises `NotFound`, `Conflict`, `OSError`."""
    with _alone(layout, container):
        pass


@contextlib.contextmanager
def _alone(layout: Layout, container: str) -> Iterator[str]:
    """A container's directory, locked and whole."""
    with (
        _missing_is_removed(layout.container(container)) as directory,
        locks.container(layout, container, alone=True),
    ):
        _repair(directory)
        yield directory


@contextlib.contextmanager
def _missing_is_removed(directory: str) -> Iterator[str]:
    try:
        yield directory
    except FileNotFoundError:
        if exists(directory):
            raise
        container = os.path.basename(directory)[:12]
        raise NotFound(f"container {container} was removed; `layerstore ps -a` lists what is there") from None


def take(
    layout: Layout, container: str, name: str, still: Callable[[], AbstractContextManager[None]], *, durable: bool
) -> None:
    """Make a snapshot of the upper directory as it is now. Raises `Conflict` when the name is taken, `OSError`.

    still: in that block nothing writes to it.
    durable: what is in it is on the disk before its name is.
    """
    with _alone(layout, container) as directory:
        if exists(_snapshot(directory, name)):
            raise Conflict(f"there is a snapshot {name!r} already; remove it, or give another name")
        made = _garbage(directory)
        try:
            os.mkdir(made, 0o700)
            with file_system(directory) as sync:
                with still():
                    has_copied = _clone(directory, f"{made}/upper")
                with about(made), open(f"{made}/created", "x", opener=partial(os.open, mode=0o600)):
                    pass
                if has_copied and durable:
                    sync()
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{directory}/snapshots", 0o700)
            os.rename(made, _snapshot(directory, name))
        except BaseException:
            _remove(directory, made)
            raise


def listing(directory: str) -> list[tuple[str, float]]:
    """Name and time of making (seconds since 1970) of each, oldest first."""
    try:
        names = os.listdir(f"{directory}/snapshots")
    except FileNotFoundError:
        return []
    found = []
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # it was removed meanwhile
            found.append((name, os.stat(f"{_snapshot(directory, name)}/created").st_mtime))
    return sorted(found, key=lambda one: (one[1], one[0]))


def restore(layout: Layout, container: str, name: str, check: Callable[[], None]) -> None:
    """Put the upper directory of a snapshot in the place of the present one, which becomes garbage.

    `check` raises where the container is mounted, which it cannot be from then on. Raises `NotFound`, `Conflict`.
    """
    with _alone(layout, container) as directory, locks.mounting(layout, [container]):
        check()
        require(directory, name)
        upper = f"{_snapshot(directory, name)}/upper"
        if not exists(upper):
            return  # nothing was mounted since the last rollback, which was to this one
        current = _current(directory)
        before = f"{directory}/before" if current is None else f"{directory}/before.{current}"
        os.rename(f"{directory}/upper", before)
        os.rename(upper, f"{directory}/upper")
        _finish(directory, os.path.basename(before))
        # What the kernel keeps in it belongs to the upper directory that was there.
        os.rename(f"{directory}/work", _garbage(directory))
        os.mkdir(f"{directory}/work", 0o700)


def remove(layout: Layout, container: str, name: str) -> None:
    """Remove a snapshot. Raises `NotFound`, `Conflict`, `OSError`."""
    with _alone(layout, container) as directory:
        require(directory, name)
        removed = _garbage(directory)
        os.rename(_snapshot(directory, name), removed)
        _remove(directory, removed)


def settle(directory: str) -> None:
    """Before the container is mounted: have every snapshot in its own place, so that no write reaches one.

    The caller holds the lock of the container, shared, and that of its mount; and it is whole.
    """
    current = _current(directory)
    if current is None:
        return
    made = _garbage(directory)
    try:
        with file_system(directory) as sync:
            if _clone(directory, made):
                sync()
        os.rename(made, f"{_snapshot(directory, current)}/upper")
    except BaseException:
        _remove(directory, made)
        raise


def _clone(directory: str, target: str) -> bool:
    """Returns as `clone_upper`."""
    with open_fd(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        return clone_tree(fd, "upper", fd, target)


def clear(layout: Layout, container: str) -> None:
    """Remove a container's garbage, unless somebody has the container in use. Raises `OSError`."""
    directory = layout.container(container)
    if not exists(f"{directory}/removed"):
        return
    with locks.container_if_free(layout, container) as is_held:
        if not is_held or not exists(f"{directory}/removed"):
            return
        _repair(directory)
        for name in os.listdir(f"{directory}/removed"):
            _remove(directory, f"{directory}/removed/{name}")


# Moving to another driver (containers/moving.py)


def make(directory: str, name: str, created_seconds: float) -> str:
    """Make a snapshot of a container that is no other process's yet; returns its upper directory, which is empty."""
    made = _snapshot(directory, name)
    make_private(f"{made}/upper")
    close_fd(os.open(f"{made}/created", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    created_ns = round(created_seconds * 10**9)
    with about(f"{made}/created"):
        os.utime(f"{made}/created", ns=(created_ns, created_ns))
    return f"{made}/upper"


def begin_move(layout: Layout, container: str, check: Callable[[], None]) -> tuple[list[State], tuple[int, int]]:
    """What a container is and was: its snapshots, oldest first, and at last itself; and by what `end_move` knows
    whether it was mounted since, or another move began.

    `check` raises where the container is mounted. Raises `NotFound`, `Conflict`, `OSError`.
    """
    with _alone(layout, container) as directory, locks.mounting(layout, [container]):
        check()
        # The kernel leaves something in the work directory of whatever it mounted.
        emptied = _garbage(directory)
        os.rename(f"{directory}/work", emptied)
        os.mkdir(f"{directory}/work", 0o700)
        _remove(directory, emptied)
        return _states(directory), _work(directory)


@contextlib.contextmanager
def end_move(
    layout: Layout, container: str, states: list[State], work: tuple[int, int], check: Callable[[], None]
) -> Iterator[bool]:
    """Whether the container was neither mounted since `begin_move` nor has other snapshots or is another one: so it
    stays in the block.

    `check` raises where the container is mounted. Raises `NotFound`, `Conflict`, `OSError`.
    """
    with _alone(layout, container) as directory, locks.mounting(layout, [container]):
        check()
        yield _work(directory) == work and _states(directory) == states


def _work(directory: str) -> tuple[int, int]:
    """Another one with each work directory that is made, and with each mount that uses it."""
    status = os.stat(f"{directory}/work")
    return status.st_ino, status.st_ctime_ns


def _states(directory: str) -> list[State]:
    found: list[State] = []
    upper = f"{directory}/upper"
    for name, created in listing(directory):
        own = f"{_snapshot(directory, name)}/upper"
        shown = own if exists(own) else upper
        found.append((name, created, shown, os.stat(shown).st_ino))
    return [*found, (None, 0.0, upper, os.stat(upper).st_ino)]


def _snapshot(directory: str, name: str) -> str:
    return f"{directory}/snapshots/{name}"


def require(directory: str, name: str) -> None:
    """Raise `NotFound` where the container in that directory has no such snapshot."""
    if not exists(_snapshot(directory, name)):
        there = ", ".join(name for name, _ in listing(directory)) or "none"
        container = os.path.basename(directory)[:12]
        raise NotFound(f"container {container} has no snapshot {name!r}; there is {there}")


def _current(directory: str) -> str | None:
    """The snapshot that the upper directory still is, without a change."""
    for name, _ in listing(directory):
        if not exists(f"{_snapshot(directory, name)}/upper"):
            return name
    return None


def _repair(directory: str) -> None:
    """Finish or undo a rollback that was interrupted."""
    for name in os.listdir(directory):
        if _is_before(name):
            if exists(f"{directory}/upper"):
                _finish(directory, name)
            else:
                os.rename(f"{directory}/{name}", f"{directory}/upper")
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{directory}/work", 0o700)


def _is_before(name: str) -> bool:
    return name.partition(".")[0] == "before"


def _finish(directory: str, before: str) -> None:
    _, _, snapshot = before.partition(".")
    target = f"{_snapshot(directory, snapshot)}/upper" if snapshot else _garbage(directory)
    os.rename(f"{directory}/{before}", target)


def _garbage(directory: str) -> str:
    """A new name among the garbage."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(f"{directory}/removed", 0o700)
    return f"{directory}/removed/{os.urandom(8).hex()}"


def _remove(directory: str, path: str) -> None:
    with open_fd(f"{directory}/removed", os.O_RDONLY | os.O_DIRECTORY) as fd:
        container_remove_many(fd, [os.path.basename(path)])
    with contextlib.suppress(OSError):
        os.rmdir(f"{directory}/removed")
