"""Snapshots of a container of the overlay driver, and rolling back: directories, and no rows.

    containers/<id>/upper                      what the kernel writes to
    containers/<id>/lower                      what that stands on (store/frozen.py)
    containers/<id>/snapshots/<name>/lower     what the container was: a stack of frozen uppers
    containers/<id>/snapshots/<name>/created   an empty file of the time at which it was made
    containers/<id>/fresh, lower.new           the upper and the stack that take the place of those that are there
    containers/<id>/removed/<random>           garbage, and snapshots that are being made

A container at rest is frozen: its upper becomes the topmost of what it stands on, and it goes on in a fresh one. So do
a snapshot and a fork of it, at the cost of some names, whatever is in it. Of a container in use a clone of its upper is
frozen (csrc/upper/clone_tree.h). Rolling back gives it the snapshot's stack, and a fresh upper.

**Where there is an upper, it is that of the stack that `lower` names.** Each change has a moment without: before it
nothing is done, after it the rest is found and done by whoever comes next (`_repair`).

Snapshots that earlier versions made have `upper`, a clone, and no `lower`; one that was rolled back to is the upper
directory as it is now and has neither, until the container is mounted and it is cloned back (`settle`).
"""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial

from layerstore._core.clone import clone_tree
from layerstore._core.mount import container_remove_many, project_of
from layerstore.errors import Conflict, NotFound
from layerstore.naming import about, close_fd, exists, open_fd
from layerstore.store import frozen, locks
from layerstore.store.durable import file_system
from layerstore.store.layout import make_private
from layerstore.trees.whiteouts import OVERLAY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from layerstore.store.layout import Layout

    State = tuple[str | None, float, tuple[str, ...], int]
    """A snapshot's name, None for what the container is now; when it was made; its upper directories, top first, and
    what inode the first is."""

_CHANGING = ("fresh", "lower.new")


def clone_frozen(
    layout: Layout, source_fd: int, beside: str, still: Callable[[], AbstractContextManager[None]], *, is_volatile: bool
) -> None:
    """Have the link `beside`/lower, in an empty directory, name a frozen clone of what a container is now: of the upper
    of its directory `source_fd`, on what that stands on. Raises `LimitExceeded`, `OSError`.

    still: in that block no program of it writes. Unless it is volatile, what was copied is on the disk on return: who
    stands on it may be there after a power cut.
    """
    with file_system(beside) as sync:
        with still():
            has_copied = clone_tree(source_fd, "upper", source_fd, f"{beside}/upper")
            frozen.add(layout, f"{beside}/upper", f"{beside}/lower", f"/proc/self/fd/{source_fd}/lower")
        if has_copied and not is_volatile:
            sync()
    if frozen.is_high(f"{beside}/lower"):
        frozen.keep_low(layout, f"{beside}/lower", f"{beside}/joined", is_volatile=is_volatile)


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
    return "work" in names and not any(_is_before(name) or name in _CHANGING for name in names)


def make_whole(layout: Layout, container: str) -> None:
    """Finish or undo what was interrupted. Raises `NotFound`, `Conflict`, `OSError`."""
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


def repaired(layout: Layout, container: str) -> str:
    """A container's directory, whole, for whoever has its lock alone. Raises `NotFound`, `OSError`."""
    with _missing_is_removed(layout.container(container)) as directory:
        _repair(directory)
        return directory


@contextlib.contextmanager
def _missing_is_removed(directory: str) -> Iterator[str]:
    try:
        yield directory
    except FileNotFoundError:
        if exists(directory):
            raise
        container = os.path.basename(directory)[:12]
        raise NotFound(f"container {container} was removed; `layerstore ps -a` lists what is there") from None


def freeze(layout: Layout, directory: str, *, is_volatile: bool, always: bool, uses: int = 1) -> bool:
    """Freeze what a container at rest is, and have it go on in a fresh upper; nothing where it has not changed since.
    Returns whether it stands on something then, which with `always` it does.

    uses: so many are about to stand on it too. The caller holds the locks of the container, alone, and of its mount;
    and it is whole. Raises `LimitExceeded`, `OSError`.
    """
    settle(directory)
    upper, lower = f"{directory}/upper", f"{directory}/lower"
    if is_frozen(layout, directory) and frozen.has_room(lower, uses):
        return True
    if frozen.is_full(lower):
        _keep_low(layout, directory, lower, is_volatile)
    if not always and not os.listdir(upper) and not frozen.stack(f"{directory}/lower"):
        return False
    _make_fresh(directory, upper, keeps_project=True)
    frozen.add(layout, upper, f"{directory}/lower.new", lower)
    _go_on(directory)
    if frozen.is_high(lower):
        _keep_low(layout, directory, lower, is_volatile)
    return True


def _keep_low(layout: Layout, directory: str, link: str, is_volatile: bool) -> None:
    frozen.keep_low(layout, link, _garbage(directory), is_volatile=is_volatile)
    _forget_empty(directory)


def is_frozen(layout: Layout, directory: str) -> bool:
    """Whether a container is what it stands on, and nothing else. Raises `OSError`."""
    names, upper = frozen.stack(f"{directory}/lower"), f"{directory}/upper"
    return bool(names and not os.listdir(upper) and _attributes(upper) == _attributes(frozen.path(layout, names[0])))


def _attributes(path: str) -> tuple[object, ...]:
    """Of the root of a view: its upper's own."""
    with open_fd(path, os.O_RDONLY | os.O_DIRECTORY) as fd, about(path):
        status = os.fstat(fd)
        return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, root_xattrs(fd)


def root_xattrs(fd: int) -> dict[str, bytes]:
    """The attributes of an upper that the root of its view shows. Raises `OSError`."""
    try:
        names = os.listxattr(fd)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}
    return {name: os.getxattr(fd, name) for name in names if not name.startswith(os.fsdecode(OVERLAY))}


def _make_fresh(directory: str, like: str, *, keeps_project: bool = False) -> None:
    """Make an empty upper with the attributes of that one. keeps_project: what that has counts on, of a limit
    (containers/quotas.py)."""
    made = f"{directory}/fresh"
    with open_fd(like, os.O_RDONLY | os.O_DIRECTORY) as source, about(made):
        status = os.fstat(source)
        os.mkdir(made, 0o700)
        os.chown(made, status.st_uid, status.st_gid)
        os.chmod(made, status.st_mode & 0o7777)
        for name, value in root_xattrs(source).items():
            os.setxattr(made, name, value)
        if keeps_project and (project := project_of(source)):
            _give_to_project(made, project)
        os.utime(made, ns=(status.st_atime_ns, status.st_mtime_ns))


def _give_to_project(directory: str, project: int) -> None:
    from layerstore._core.pool import project_set

    with open_fd(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        project_set(fd, project, True)


def _go_on(directory: str) -> None:
    """The upper that was there is away: have the new stack, and a fresh upper on it."""
    with contextlib.suppress(FileNotFoundError):
        os.rename(f"{directory}/lower.new", f"{directory}/lower")
        # Where both are names of the same link, rename(2) did nothing.
        os.unlink(f"{directory}/lower.new")
    os.rename(f"{directory}/fresh", f"{directory}/upper")


def take(
    layout: Layout,
    container: str,
    name: str,
    is_at_rest: Callable[[], bool],
    still: Callable[[], AbstractContextManager[None]],
    *,
    is_volatile: bool,
) -> None:
    """Make a snapshot of what a container is now; at rest it is frozen. Raises `Conflict` when the name is taken,
    `OSError`.

    still: in that block no program of it writes. Unless it is volatile, what is in the snapshot is on the disk before
    its name is.
    """
    with _alone(layout, container) as directory:
        if exists(_snapshot(directory, name)):
            raise Conflict(f"there is a snapshot {name!r} already; remove it, or give another name")
        made = _garbage(directory)
        try:
            os.mkdir(made, 0o700)
            _have_frozen(layout, directory, made, is_at_rest, still, is_volatile)
            with about(made), open(f"{made}/created", "x", opener=partial(os.open, mode=0o600)):
                pass
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{directory}/snapshots", 0o700)
            os.rename(made, _snapshot(directory, name))
        except BaseException:
            _remove(directory, made)
            raise


def _have_frozen(
    layout: Layout,
    directory: str,
    made: str,
    is_at_rest: Callable[[], bool],
    still: Callable[[], AbstractContextManager[None]],
    is_volatile: bool,
) -> None:
    """Have the link `made`/lower name what the container is now."""
    with locks.mounting(layout, [os.path.basename(directory)]):
        if is_at_rest():
            freeze(layout, directory, is_volatile=is_volatile, always=True)
            os.link(f"{directory}/lower", f"{made}/lower", follow_symlinks=False)
            return
    with open_fd(directory, os.O_RDONLY | os.O_DIRECTORY) as fd:
        clone_frozen(layout, fd, made, still, is_volatile=is_volatile)


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


def restore(layout: Layout, container: str, name: str, check: Callable[[], None], *, is_volatile: bool) -> None:
    """Have the container be what a snapshot is; its present upper becomes garbage.

    `check` raises where the container is mounted, which it cannot be from then on. Raises `NotFound`, `Conflict`.
    """
    with _alone(layout, container) as directory, locks.mounting(layout, [container]):
        check()
        require(directory, name)
        if _current(directory) == name:
            return  # nothing was mounted since the last rollback, which was to this one
        settle(directory)
        snapshot = _snapshot(directory, name)
        if exists(f"{snapshot}/upper"):  # of an earlier version
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{snapshot}/lower")
            frozen.add(layout, f"{snapshot}/upper", f"{snapshot}/lower", None)
        if frozen.is_high(f"{snapshot}/lower"):
            _keep_low(layout, directory, f"{snapshot}/lower", is_volatile)
        (top, *_) = frozen.stack(f"{snapshot}/lower")
        _make_fresh(directory, frozen.path(layout, top))
        os.link(f"{snapshot}/lower", f"{directory}/lower.new", follow_symlinks=False)
        os.rename(f"{directory}/upper", _garbage(directory))
        _go_on(directory)


def remove(layout: Layout, container: str, name: str) -> None:
    """Remove a snapshot. Raises `NotFound`, `Conflict`, `OSError`."""
    with _alone(layout, container) as directory:
        require(directory, name)
        removed, names = _garbage(directory), frozen.stack(f"{_snapshot(directory, name)}/lower")
        os.rename(_snapshot(directory, name), removed)
        _remove(directory, removed)
        frozen.release(layout, names)


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
    """Whether it has to be synced for what is in it to be whole after a power cut."""
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
        return _states(layout, directory), _work(directory)


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
        yield _work(directory) == work and _states(layout, directory) == states


def _work(directory: str) -> tuple[int, int]:
    """Another one with each work directory that is made, and with each mount that uses it."""
    status = os.stat(f"{directory}/work")
    return status.st_ino, status.st_ctime_ns


def _states(layout: Layout, directory: str) -> list[State]:
    found: list[State] = []
    own = (f"{directory}/upper", *_frozen(layout, directory))
    for name, created in listing(directory):
        snapshot = _snapshot(directory, name)
        shown = (f"{snapshot}/upper",) if exists(f"{snapshot}/upper") else _frozen(layout, snapshot) or own
        found.append((name, created, shown, os.stat(shown[0]).st_ino))
    return [*found, (None, 0.0, own, os.stat(own[0]).st_ino)]


def _frozen(layout: Layout, directory: str) -> tuple[str, ...]:
    return tuple(frozen.path(layout, name) for name in frozen.stack(f"{directory}/lower"))


def _snapshot(directory: str, name: str) -> str:
    return f"{directory}/snapshots/{name}"


def require(directory: str, name: str) -> None:
    """Raise `NotFound` where the container in that directory has no such snapshot."""
    if not exists(_snapshot(directory, name)):
        there = ", ".join(name for name, _ in listing(directory)) or "none"
        container = os.path.basename(directory)[:12]
        raise NotFound(f"container {container} has no snapshot {name!r}; there is {there}")


def _current(directory: str) -> str | None:
    """The snapshot that the upper directory still is, without a change, in a store of an earlier version."""
    if os.path.lexists(f"{directory}/lower"):
        return None
    for name, _ in listing(directory):
        snapshot = _snapshot(directory, name)
        if not exists(f"{snapshot}/upper") and not os.path.lexists(f"{snapshot}/lower"):
            return name
    return None


def _repair(directory: str) -> None:
    """Finish or undo what was interrupted."""
    names = os.listdir(directory)
    for name in names:
        if _is_before(name):  # a rollback of an earlier version
            if exists(f"{directory}/upper"):
                _finish(directory, name)
            else:
                os.rename(f"{directory}/{name}", f"{directory}/upper")
    if any(name in _CHANGING for name in names):
        if exists(f"{directory}/upper"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{directory}/lower.new")
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(f"{directory}/fresh")
        else:
            _go_on(directory)
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
    _forget_empty(directory)


def _forget_empty(directory: str) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(f"{directory}/removed")
