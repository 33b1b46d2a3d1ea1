"""How much a container of the overlay driver may write to disk: by project quotas of the file system of its store.

A container with a limit has a project, a number of its own, which its directory names. What it writes is of that
project: its upper and work directories hand it on to what is made in them. The limit is what the file system has
recorded for that number, and needs no record of ours. The directory of all containers is of a project, too, as soon
as one has had a limit; where it is not, nothing else is looked at.

Where an upper directory comes from elsewhere, as by a fork or a rollback, it is given to a new project before it is
mounted.
"""

from __future__ import annotations

import os
import stat

from layerstore._core import pool
from layerstore._core.mount import project_of
from layerstore.errors import Unsupported
from layerstore.naming import closing_fd, fstat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_ALL = 1
"""The project of the directory of all containers."""
_WRITTEN = ("upper", "work")
_LAST, _STEP = 2**32 - 2, 7919
_NEEDED = (
    "a limit on a container's disk needs project quotas: `layerstore pool quotas` has a pool mounted with them (on a "
    "kernel with CONFIG_XFS_QUOTA, Linux 5.14), the option prjquota an XFS or ext4; `layerstore init --pool SIZE` "
    "makes a store on a pool"
)


def limit(containers: int, ids: Iterable[str], limit_bytes: int) -> None:
    """Limit containers, directories in the open directory `containers` of which none is mounted, by new projects.

    Raises `Unsupported` where the file system has no project quotas, `OSError`.
    """
    for container in ids:
        with closing_fd(os.open(container, _DIRECTORY, dir_fd=containers)) as fd:
            try:
                project = _unused(fd)
                pool.project_limit(fd, project, limit_bytes)
            except Unsupported as error:
                raise Unsupported(f"{error}; {_NEEDED}") from error
            if not project_of(containers):
                pool.project_set(containers, _ALL, False)
            pool.project_set(fd, project, False)
            for name in _WRITTEN:
                _give(fd, name, project)


def limit_of(containers: int, container: str) -> int | None:
    """The limit of a container, bytes; None where it has none. Raises `Unsupported` where one is not held."""
    if not project_of(containers):
        return None
    with closing_fd(os.open(container, _DIRECTORY, dir_fd=containers)) as fd:
        project = project_of(fd)
        if not project:
            return None
        try:
            found, _, _ = pool.project_usage(fd, project)
        except Unsupported as error:
            raise Unsupported(f"container {container[:12]} cannot be held to its limit: {error}; {_NEEDED}") from error
        if not found:
            raise Unsupported(f"the limit on the disk of container {container[:12]} was lost: its project has none")
        return found


def hold(containers: int, ids: Sequence[str]) -> None:
    """Before they are mounted: have what containers write be counted, of those that have a limit.

    Raises `Unsupported` where a limit would not be held, `OSError`.
    """
    if not project_of(containers):
        return
    for container in ids:
        if (limit_bytes := limit_of(containers, container)) is None:
            continue
        with closing_fd(os.open(container, _DIRECTORY, dir_fd=containers)) as fd:
            if not all(_is_of(fd, name, project_of(fd)) for name in _WRITTEN):
                # What it had written before is not to count, and may be there for long yet.
                limit(containers, [container], limit_bytes)


def _is_of(above: int, name: str, project: int) -> bool:
    with closing_fd(os.open(name, _DIRECTORY, dir_fd=above)) as fd:
        return project_of(fd) == project


def _give(above: int, name: str, project: int) -> None:
    """A directory and what is in it. It is the project's last of all, when all in it is."""
    with closing_fd(os.open(name, _DIRECTORY, dir_fd=above)) as top:
        for _, directories, files, fd in os.fwalk(".", topdown=False, dir_fd=top, follow_symlinks=False):
            for one in (*directories, *files):
                mode = os.stat(one, dir_fd=fd, follow_symlinks=False).st_mode
                if stat.S_ISREG(mode) or stat.S_ISDIR(mode):  # others take no blocks, and cannot be opened for this
                    with closing_fd(os.open(one, _FILE, dir_fd=fd)) as inner:
                        pool.project_set(inner, project, stat.S_ISDIR(mode))
        pool.project_set(top, project, True)


def _unused(fd: int) -> int:
    """A project of which nothing is, to begin with: the directory's inode number, unless a larger one was cut to it or
    something is left of a container whose directory had that number before."""
    project = fstat(fd).st_ino % _LAST
    while project <= _ALL or pool.project_usage(fd, project)[2]:
        project = (project + _STEP) % _LAST
    return project
