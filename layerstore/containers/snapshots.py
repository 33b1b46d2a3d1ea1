"""Snapshots of a container of the overlay driver, and rolling back: directories, and no rows.

    containers/<id>/upper                      what the kernel writes to
    containers/<id>/snapshots/<name>/upper     a clone of it (csrc/clone_tree.h)
    containers/<id>/snapshots/<name>/created   an empty file of the time at which it was made
    containers/<id>/before, before.<name>      the upper that a rollback is replacing; with a name: that snapshot's
    containers/<id>/removed/<random>           garbage, and snapshots that are being made

Rolling back moves the snapshot's directory into the place of the upper one, so that it takes two renames whatever is in
them. A snapshot without `upper` therefore is the upper directory as it is now; before the container is mounted, and so
before anything can change it, it is cloned back (`settle`). At most one snapshot is in that state.

Each step leaves what `_repair` finishes or undoes. The lock is that of the container's directory; where the store's
mount lock is taken too, it is taken first.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from functools import partial

from layerstore._core.clone import clone_tree
from layerstore._core.mount import container_remove_many
from layerstore.errors import Conflict, NotFound
from layerstore.naming import about, close_fd, exists
from layerstore.store.durable import file_system
from layerstore.store.layout import make_private
from layerstore.store.locks import locked_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    State = tuple[str | None, float, str, int]
    """A snapshot's name, None for what the container is now; when it was made; its upper directory, and what inode that
    is."""

_UUID = "trusted.overlay.uuid"
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
        if os.getxattr(made, _UUID):
            os.setxattr(made, _UUID, os.urandom(_UUID_BYTES))
    os.rename(made, f"{target}/upper")
    return has_copied


@contextlib.contextmanager
def source(directory: str) -> Iterator[int]:
    """The descriptor of a container's directory (absolute), which is whole and not rolled back meanwhile."""
    # Shared from the beginning where nothing is to be repaired: who reads it may fork it meanwhile.
    with _locked(directory, exclusive=False) as fd:
        if _is_whole(directory):
            yield fd
            return
    with _locked(directory) as fd:
        with about(fd):
            fcntl.flock(fd, fcntl.LOCK_SH)
        yield fd


def _is_whole(directory: str) -> bool:
    """Whether `_repair` has nothing to do."""
    names = os.listdir(directory)
    return "work" in names and not any(map(_is_before, names))


@contextlib.contextmanager
def _locked(directory: str, *, exclusive: bool = True) -> Iterator[int]:
    """The descriptor of a container's directory, locked; repaired where nobody else has it."""
    try:
        with locked_directory(directory, exclusive=exclusive) as fd:
            if exclusive:
                _repair(directory)
            yield fd
    except FileNotFoundError:
        if exists(directory):
            raise
        raise _removed(directory) from None


def _removed(directory: str) -> NotFound:
    return NotFound(f"container {os.path.basename(directory)[:12]} was removed; `layerstore ps` lists what is there")


def take(directory: str, name: str, *, durable: bool) -> None:
    """Make a snapshot of the upper directory as it is now. Raises `Conflict` when the name is taken, `OSError`.

    durable: what is in it is on the disk before its name is.
    """
    with _locked(directory) as fd:
        if exists(_snapshot(directory, name)):
            raise Conflict(f"there is a snapshot {name!r} already; remove it, or give another name")
        made = _garbage(directory)
        try:
            os.mkdir(made, 0o700)
            with file_system(directory) as sync:
                has_copied = clone_tree(fd, "upper", fd, f"{made}/upper")
                with about(made), open(f"{made}/created", "x", opener=partial(os.open, mode=0o600)):
                    pass
                if has_copied and durable:
                    sync()
            os.makedirs(f"{directory}/snapshots", mode=0o700, exist_ok=True)
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


def restore(directory: str, name: str) -> None:
    """Put the upper directory of a snapshot in the place of the present one, which becomes garbage.

    The caller holds the mount lock exclusively and has seen that the container is not mounted. Raises `NotFound`.
    """
    with _locked(directory):
        _check(directory, name)
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


def remove(directory: str, name: str) -> None:
    """Remove a snapshot. Raises `NotFound`, `OSError`."""
    with _locked(directory):
        _check(directory, name)
        removed = _garbage(directory)
        os.rename(_snapshot(directory, name), removed)
        _remove(directory, removed)


def settle(directory: str) -> None:
    """Before the container is mounted: have every snapshot in its own place, so that no write reaches one.

    The caller holds the mount lock.
    """
    with _locked(directory) as fd:
        current = _current(directory)
        if current is None:
            return
        made = _garbage(directory)
        try:
            with file_system(directory) as sync:
                if clone_tree(fd, "upper", fd, made):
                    sync()
            os.rename(made, f"{_snapshot(directory, current)}/upper")
        except BaseException:
            _remove(directory, made)
            raise


def clear(directory: str) -> None:
    """Remove a container's garbage, unless somebody is making or has just made some. Raises `OSError`."""
    if not exists(f"{directory}/removed"):
        return
    with _locked(directory):
        if not exists(f"{directory}/removed"):
            return  # whoever had the lock has removed it
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


def begin_move(directory: str) -> list[State]:
    """What a container is and was: its snapshots, oldest first, and at last itself. `end_move` knows whether it was
    mounted since.

    The caller holds the mount lock exclusively and has seen that the container is not mounted. Raises `OSError`.
    """
    with _locked(directory):
        # The kernel leaves something in the work directory of whatever it mounted.
        emptied = _garbage(directory)
        os.rename(f"{directory}/work", emptied)
        os.mkdir(f"{directory}/work", 0o700)
        _remove(directory, emptied)
        return _states(directory)


@contextlib.contextmanager
def end_move(directory: str, states: list[State]) -> Iterator[bool]:
    """Whether the container was neither mounted since `begin_move` nor has other snapshots or is another one: so it
    stays in the block.

    The caller holds the mount lock exclusively. Raises `OSError`.
    """
    with _locked(directory):
        yield not os.listdir(f"{directory}/work") and _states(directory) == states


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


def _check(directory: str, name: str) -> None:
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
    fd = os.open(f"{directory}/removed", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        container_remove_many(fd, [os.path.basename(path)])
    finally:
        close_fd(fd)
    with contextlib.suppress(OSError):
        os.rmdir(f"{directory}/removed")
