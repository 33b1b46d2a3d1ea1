"""Having nothing run in a container for a moment, so that what is read of it meanwhile is of one moment."""

from __future__ import annotations

import contextlib
import os

from layerstore._core import mount
from layerstore.containers import groups
from layerstore.containers.runtime import find_program
from layerstore.errors import Conflict, NotFound, Unsupported
from layerstore.naming import about, null_device
from layerstore.store import locks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore.containers.containers import Containers
    from layerstore.containers.groups import Freezer
    from layerstore.containers.runtime import Runtime
    from layerstore.store.layout import Layout

_GUARD = 'echo >&0; read -r done || exec "$@"'
_GO_ON = ("/bin/sh", "-c", "echo 0")


@contextlib.contextmanager
def still(layout: Layout, containers: Containers, container: str) -> Iterator[None]:
    """Have no program of a container (its id) run in the block; nothing happens where none does, or it is paused.

    It goes on at the end of the block, and also where this process is killed in it. A program that crun runs without a
    control group (`cgroups="disabled"`) goes on all the while. Raises `Conflict` where a program does not stop for
    seconds, as it waits for a disk; `Unsupported`, `OSError`.
    """
    if not os.path.isdir(f"{layout.runtime}/{container}"):
        yield
        return
    # Two at the same time: the first to end would have it go on under the other.
    with locks.still(layout, container), contextlib.ExitStack() as stack:
        runtime = containers.runtime()
        if not runtime.starts_in_group:
            if containers.is_running(container):
                stack.enter_context(_paused(runtime, container))
        elif (freezer := groups.freezer(container)) is not None:
            stack.enter_context(_frozen(freezer))
        yield


@contextlib.contextmanager
def _frozen(freezer: Freezer) -> Iterator[None]:
    with freezer:
        if freezer.is_frozen():
            yield
            return
        with _guarded(_GO_ON, freezer.file):
            try:
                freezer.freeze()
                yield
            finally:
                freezer.thaw()


@contextlib.contextmanager
def _paused(runtime: Runtime, container: str) -> Iterator[None]:
    """By the runtime that made its control group."""
    if runtime.state(container)["status"] == "paused":
        yield
        return
    with null_device() as nothing, _guarded(runtime.resuming(container), nothing):
        runtime.pause(container)
        try:
            yield
        finally:
            runtime.resume(container)


@contextlib.contextmanager
def _guarded(otherwise: Sequence[str], output: int) -> Iterator[None]:
    """Have a command be executed, with that output, should the block not come to its end: an error, or a kill."""
    import socket

    program = find_program("setsid")  # who kills the process group of the caller is not to kill the guard
    argv = [*([program] if program else []), "/bin/sh", "-c", _GUARD, "sh", *otherwise]
    with about("a socket to a process of layerstore"):
        ours, its = socket.socketpair()
    with ours:
        with its, null_device() as nothing:
            pid = mount.spawn(argv, {}, "/", (its.fileno(), output, nothing))
        try:
            if not ours.recv(1):  # else it has started, and takes no time of the block's
                raise Unsupported("the process that is to have a container go on ended as it started; try again")
            yield
            with contextlib.suppress(OSError):  # it was killed
                ours.send(b"done\n")
        finally:
            ours.close()
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored the kernel waits for it
                os.waitpid(pid, 0)


def pause(layout: Layout, containers: Containers, container: str) -> None:
    """Stop every program of a container until `unpause`.

    Raises `NotFound` where nothing runs in it, `Conflict` where it is paused or a program does not stop, `Unsupported`
    without a control group, `OSError`.
    """
    if not containers.is_running(container):
        raise NotFound(f"nothing runs in container {container[:12]} that could be paused")
    with locks.still(layout, container):
        if _is_paused(containers, container):
            raise Conflict(f"container {container[:12]} is paused already")
        if not (runtime := containers.runtime()).starts_in_group:
            runtime.pause(container)
            return
        if (freezer := groups.freezer(container)) is None:
            raise Unsupported("only a container with a control group of version 2 can be paused")
        with freezer:
            try:
                freezer.freeze()
            except BaseException:
                freezer.thaw()
                raise


def unpause(layout: Layout, containers: Containers, container: str) -> bool:
    """Have a paused container go on; False where it was not paused. Raises `OSError`."""
    if not is_paused(layout, containers, container):
        return False
    with locks.still(layout, container):
        if not (runtime := containers.runtime()).starts_in_group:
            runtime.resume(container)
        elif (freezer := groups.freezer(container)) is not None:
            with freezer:
                freezer.thaw()
    return True


def is_paused(layout: Layout, containers: Containers, container: str) -> bool:
    """Whether a container is paused, and not only held for the moment of a fork, which is waited for."""
    if not _is_paused(containers, container):
        return False
    with locks.still(layout, container):
        return _is_paused(containers, container)


def _is_paused(containers: Containers, container: str) -> bool:
    if not os.path.isdir(f"{containers.runtime().state_root}/{container}"):
        return False
    if not (runtime := containers.runtime()).starts_in_group:
        with contextlib.suppress(NotFound):
            return bool(runtime.state(container)["status"] == "paused")
        return False
    if (freezer := groups.freezer(container)) is None:
        return False
    with freezer:
        return freezer.is_frozen()
