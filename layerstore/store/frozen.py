"""Frozen uppers: directories that were the upper of a container, which nobody changes and everybody may stand on.

    frozen/<n>                             the directory
    frozen/<n>.name                        a symbolic link to "<n>/<m>/...": it and those below it, top first
    frozen/<n>.below                       another name of <m>.name; none where it stands on the image's tree
    containers/<id>/lower                  what a container's upper stands on: another name of a .name
    containers/<id>/snapshots/<s>/lower    what a snapshot is: the same

So one read tells a whole stack, and the file system counts who stands on a frozen upper, by the names of the link: what
has one name is garbage and stays so, as another name is made only of one by which somebody stands on it.
"""

from __future__ import annotations

import contextlib
import errno
import os

from layerstore.errors import LimitExceeded
from layerstore.naming import open_fd
from layerstore.store import durable, own_names
from layerstore.store.layout import make_private
from layerstore.store.removal import remove_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.store.layout import Layout

NAME_ENDING, BELOW_ENDING = ".name", ".below"
_MOST = 4
"""So many may be stacked; lookups feel each. Where joining fails, more are."""
_HIGHEST = 200
"""No more are stacked: the kernel and the walk of a stack have limits of their own."""
_LEAST_KEPT = 2
"""So many may stay below those that are joined, where joining them would cost much."""
_DISPROPORTION, _SMALL = 4, 64
"""One of more entries than so many times those above it, and some, is not joined with them."""
_MOST_USES = 60_000
"""So many names a link may have; ext4 allows 65,000, btrfs 65,535."""


def stack(link: str, dir_fd: int | None = None) -> list[str]:
    """The frozen uppers that a link names, top first; none where it is not there. Raises `OSError`."""
    try:
        return os.readlink(link, dir_fd=dir_fd).split("/")
    except FileNotFoundError:
        return []


def stacks(directory: str) -> set[tuple[str, ...]]:
    """What the container with that directory, and its snapshots, stand on. Raises `OSError`.

    A snapshot that has its upper still stands on nothing: what its link names is being made (`add`).
    """
    links = [f"{directory}/lower"]
    with contextlib.suppress(FileNotFoundError):
        snapshots = [f"{directory}/snapshots/{name}" for name in os.listdir(f"{directory}/snapshots")]
        links += [f"{snapshot}/lower" for snapshot in snapshots if not os.path.isdir(f"{snapshot}/upper")]
    return {tuple(names) for link in links if (names := stack(link))}


def path(layout: Layout, name: str) -> str:
    """Where a frozen upper is."""
    return f"{layout.frozen}/{name}"


def _path_of_name(layout: Layout, name: str) -> str:
    return path(layout, name) + NAME_ENDING


@contextlib.contextmanager
def opened(layout: Layout, directory_fd: int) -> Iterator[list[int]]:
    """Descriptors of the upper of the container's directory `directory_fd` and of what it stands on, top first, for
    whoever holds its lock. Raises `OSError`."""
    flags = os.O_RDONLY | os.O_DIRECTORY
    with contextlib.ExitStack() as held:
        upper = held.enter_context(open_fd("upper", flags, dir_fd=directory_fd))
        yield [
            upper,
            *(held.enter_context(open_fd(path(layout, name), flags)) for name in stack("lower", directory_fd)),
        ]


def add(layout: Layout, tree: str, link: str, below: str | None) -> None:
    """Have the directory `tree` be a frozen upper on what the link `below` names, which may be none; `link` is made,
    and names it. The directory is moved last. Raises `LimitExceeded`, `OSError`."""
    rest = [] if below is None else stack(below)
    if len(rest) >= _HIGHEST:
        raise LimitExceeded(
            f"this container stands on {len(rest)} frozen uppers, and no more can be stacked; stop it, then fork it or "
            "take a snapshot: that says why they cannot be joined"
        )
    while True:
        name = os.urandom(6).hex()
        os.symlink("/".join([name, *rest]), link)
        try:
            os.link(link, _path_of_name(layout, name), follow_symlinks=False)
            break
        except FileNotFoundError:
            make_private(layout.frozen)
            os.unlink(link)
        except FileExistsError:
            os.unlink(link)
    if rest:
        os.link(_path_of_name(layout, rest[0]), path(layout, name) + BELOW_ENDING, follow_symlinks=False)
    os.rename(tree, path(layout, name))


def has_room(link: str, uses: int) -> bool:
    """Whether so many more may stand on what a link names. Raises `OSError`."""
    return os.lstat(link).st_nlink + uses <= _MOST_USES


def is_high(link: str) -> bool:
    """Whether a stack is to be made lower now. Raises `OSError`.

    The fifth upper has them joined; where that failed, the 6th, 8th, 12th, 20th and so on do.
    """
    above = len(stack(link)) - _MOST
    return above > 0 and above & (above - 1) == 0


def is_full(link: str) -> bool:
    """Whether nothing can be put on a stack. Raises `OSError`."""
    return len(stack(link)) >= _HIGHEST


def keep_low(layout: Layout, link: str, beside: str, *, is_volatile: bool) -> None:
    """Have a link name a lower stack that shows the same.

    beside: a directory that is made for the time; after a crash it is garbage. What others stand on stays as it is.
    That there is no room for it, or a path too long, is no failure as long as more can be stacked.
    Raises `LimitExceeded`, `OSError`.
    """
    must = is_full(link)
    os.mkdir(beside, 0o700)
    try:
        _join(layout, stack(link), link, beside, is_volatile)
    except (LimitExceeded, OSError):
        if must:
            raise
    finally:
        parent, name = os.path.split(beside)
        remove_directory(parent, name)


def _join(layout: Layout, names: list[str], link: str, beside: str, is_volatile: bool) -> None:
    from layerstore._core.clone import join_trees

    count = _to_join(layout, names)
    made, joined = f"{beside}/upper", f"{beside}/lower"
    os.mkdir(made, 0o700)
    with contextlib.ExitStack() as held:
        flags = os.O_RDONLY | os.O_DIRECTORY
        uppers = [held.enter_context(open_fd(path(layout, name), flags)) for name in names[:count]]
        sync = held.enter_context(durable.file_system(made))
        if join_trees(uppers, held.enter_context(open_fd(made, flags))) and not is_volatile:
            sync()
    add(layout, made, joined, _path_of_name(layout, names[count]) if count < len(names) else None)
    os.rename(joined, link)
    release(layout, names)


def _to_join(layout: Layout, names: list[str]) -> int:
    """How many, from the top. All but the lowest two are; these only where they are not much larger than those above:
    else each join would link the many entries of a large one again."""
    total = 0
    for at, name in enumerate(names):
        is_free = at >= len(names) - _LEAST_KEPT
        most = _DISPROPORTION * total + _SMALL if is_free else None
        size = _entries(path(layout, name), most)
        if most is not None and size > most:
            return at
        total += size
    return len(names)


def _entries(directory: str, most: int | None) -> int:
    """How many there are below a directory; any number above `most` where there are more than that.

    Raises `LimitExceeded`, `OSError`.
    """
    count = 0
    waiting = [directory]
    while waiting and (most is None or count <= most):
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    count += 1
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            why = "a path of this container is too long, so that the uppers that it stands on cannot be joined"
            raise LimitExceeded(f"{why}; remove or rename it") from error
    return count


def release(layout: Layout, names: Iterable[str]) -> None:
    """Remove those of a stack that nobody stands on any more, from its top. Raises `OSError`."""
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            if os.lstat(_path_of_name(layout, name)).st_nlink > 1:
                return
        _remove(layout, name)


def _remove(layout: Layout, name: str) -> None:
    remove_directory(layout.frozen, name)
    for ending in (BELOW_ENDING, NAME_ENDING):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path(layout, name) + ending)


def sweep(layout: Layout) -> None:
    """Remove all that nobody stands on. Under the garbage lock, alone: nobody is about to. Raises `OSError`."""
    if not os.path.isdir(layout.frozen):
        return
    for name in {name.partition(".")[0] for name in own_names.own(layout.frozen, own_names.FROZEN)}:
        release(layout, stack(_path_of_name(layout, name)) or [name])
