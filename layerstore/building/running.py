"""RUN: a program in a container on the image so far, and what it leaves there that it did not make itself."""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import stat

from layerstore.containers import launching, program
from layerstore.containers.bundle import runtime_spec
from layerstore.containers.mounted import MountedFiles
from layerstore.containers.rootfs import Rootfs
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, Literal

    from layerstore.building.workshop import Workshop
    from layerstore.containers.bundle import Volume
    from layerstore.containers.containers import ContainerRow

_FROM_THE_HOST = ("/etc/resolv.conf", "/etc/hosts")
_FROM_THE_RUNTIME = ("/proc", "/dev", "/sys")


class Command(Value):
    """What RUN runs. `document` is the image's config, `env` what there is beside its environment."""

    document: dict[str, Any]
    args: Sequence[str]
    env: Sequence[str]
    network: Literal["host", "none"]
    volumes: Sequence[Volume]
    mounts: Sequence[dict[str, Any]]


def run(shop: Workshop, row: ContainerRow, command: Command, output: Callable[[int, bytes], None]) -> int:
    """Run it in a mounted container to its end; returns the exit status. What it prints goes to `output`, with 1 or 2
    for the stream; what that raises ends it. Mount points that were made for it are gone after it.

    Raises `InvalidInput`, `ProgramNotFound` and `ProgramNotExecutable`, `Unsupported`, `Stopped`, `OSError`.
    """
    containers = shop.containers
    root = containers.root(row.id)
    runtime = containers.runtime()
    confinement = shop.options.confinement
    with _mount_points(root, command), contextlib.ExitStack() as stack:
        spec = runtime_spec(
            command.document,
            root,
            entrypoint=command.args,
            env=command.env,
            network=command.network,
            volumes=command.volumes,
            hostname=row.id[:12] if command.network == "none" else None,
            confinement=confinement,
        )
        spec["mounts"] += command.mounts
        program.check(spec)
        launching.complete(spec, confinement, runtime, row.id, shop.layout.run)
        bundle = containers.write_bundle(row.id, spec)
        stack.enter_context(shop.running(row.id))
        group = stack.enter_context(launching.grouped(confinement, runtime, row.id))
        out, errors = (functools.partial(output, stream) for stream in (1, 2))
        status = runtime.run(bundle, row.id, group, stdin=None, stdout=out, stderr=errors)
    shop.check()
    return status


@contextlib.contextmanager
def _mount_points(root: str, command: Command) -> Iterator[None]:
    """Make what the command's mounts need in the root; take away in the end what is still as it was made, and give the
    directories above the times that they had, unless something else was done in them."""
    wanted = [(path, True) for path in _FROM_THE_RUNTIME]
    if command.network == "host":
        wanted += [(path, False) for path in _FROM_THE_HOST if os.path.isfile(path)]
    wanted += [(volume.target, os.path.isdir(volume.source)) for volume in command.volumes]
    # What is below one of the runtime's own mounts, the runtime makes there.
    own = tuple(f"{path}/" for path in _FROM_THE_RUNTIME)
    others = (posixpath.normpath(mount["destination"]) for mount in command.mounts)
    wanted += [(path, True) for path in others if not path.startswith(own)]
    with Rootfs(root) as inside, MountedFiles(root) as files:
        points = _Points(files)
        for path, is_directory in sorted(wanted, key=lambda point: point[0].count("/")):
            points.note(inside.steps(path))
            inside.make_mount_point(path, directory=is_directory)
        points.made()
        try:
            yield
        finally:
            points.remove()


class _Points:
    def __init__(self, files: MountedFiles) -> None:
        self._files = files
        self._missing: list[str] = []
        self._before: dict[str, int] = {}
        self._after: dict[str, int] = {}

    def note(self, steps: Iterator[str]) -> None:
        for path in steps:
            if path in self._missing:
                continue
            try:
                self._files.lstat(path)
            except FileNotFoundError:
                above = posixpath.dirname(path)
                if above not in self._missing:
                    self._before.setdefault(above, self._files.lstat(above).st_mtime_ns)
                self._missing.append(path)

    def made(self) -> None:
        self._after = {path: self._files.lstat(path).st_mtime_ns for path in (*self._missing, *self._before)}

    def remove(self) -> None:
        still = {path for path in self._after if self._is_as_made(path)}
        for path in reversed(self._missing):
            with contextlib.suppress(OSError):  # something was put in it, or it is another mount's
                if stat.S_ISDIR(self._files.lstat(path).st_mode):
                    self._files.rmdir(path)
                elif path in still and not self._files.lstat(path).st_size:
                    self._files.unlink(path)
        for path, mtime_ns in self._before.items():
            if path in still:
                self._files.utime(path, ns=(mtime_ns, mtime_ns))

    def _is_as_made(self, path: str) -> bool:
        try:
            return self._files.lstat(path).st_mtime_ns == self._after[path]
        except OSError:
            return False
