"""What a build has in the store only while it runs: images that its steps run in, containers, temporary directories.

A build notes each before it makes it, and holds a lock. Of the builds that run at one time the first takes away what
those left that were killed before it, programs that still run included, and the last what all of them noted. So does
garbage collection.
"""

from __future__ import annotations

import contextlib
import os

from layerstore.building.steps import Steps
from layerstore.naming import about, close_fd
from layerstore.store import locks
from layerstore.store.layout import make_private
from layerstore.store.removal import remove_directory

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from layerstore.containers.containers import Containers
    from layerstore.store.opened import OpenStore
    from layerstore.types import ImageId

_MEMORY = "/dev/shm"
_NAMED = "SELECT id FROM containers WHERE name = ?"
_FORGET_IMAGE = """
DELETE FROM images WHERE image_id = ? AND image_id NOT IN (SELECT image_id FROM names)
AND image_id NOT IN (SELECT image_id FROM containers)
"""


class Leftovers:
    """Safe for many threads and processes."""

    def __init__(self, store: OpenStore, containers: Containers) -> None:
        self._layout = store.layout
        self._top = store.layout.builds
        self._images = f"{self._top}/images"
        self._names = f"{self._top}/containers"
        self._temporary = f"{self._top}/temporary"
        self._database = store.database
        self._containers = containers

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """A build runs in the block. Raises as `clear`."""
        for directory in (self._images, self._names, self._temporary):
            make_private(directory)
        with contextlib.closing(locks.Builds(self._layout, make=True)) as lock:
            self._clear(lock)
            lock.share()
            try:
                yield
            finally:
                self._clear(lock)

    def clear(self) -> None:
        """Take away what builds have left that were killed, unless one runs. Raises `OSError`, `Conflict`."""
        try:
            lock = locks.Builds(self._layout, make=False)
        except FileNotFoundError:
            return
        with contextlib.closing(lock):
            if self._clear(lock):
                Steps.remove_unfinished(self._top)

    def _clear(self, lock: locks.Builds) -> bool:
        """Returns whether no build runs."""
        if not lock.try_alone():
            return False
        for name in os.listdir(self._names):
            row = self._database.read().execute(_NAMED, (name,)).fetchone()
            if row is not None:
                self._containers.remove([self._containers.find(row[0])], force=True)
            os.unlink(f"{self._names}/{name}")
        images = os.listdir(self._images)
        if images:
            # Durable before the notes go, or a power cut could bring back an image that nothing says is a leftover.
            with self._database.transaction() as db:
                db.executemany(_FORGET_IMAGE, [(f"sha256:{image}",) for image in images])
            for image in images:
                os.unlink(f"{self._images}/{image}")
        for name in os.listdir(self._temporary):
            _remove(f"{self._temporary}/{name}")
        return True

    def images_locked(self) -> locks.Lock:
        """Between a look at which images there are and their commit: an image that another build has made for good is
        not noted as a leftover."""
        return locks.images_of_builds(self._layout)

    def note_image(self, image: ImageId) -> None:
        """Under `images_locked`, before it is made."""
        _make_empty(f"{self._images}/{image.removeprefix('sha256:')}")

    def keep_image(self, image: ImageId) -> None:
        """It is the result of a build. Under `images_locked`."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._images}/{image.removeprefix('sha256:')}")

    def container_name(self) -> str:
        """A name for a container that is about to be made."""
        name = f"build-{os.urandom(6).hex()}"
        _make_empty(f"{self._names}/{name}")
        return name

    def forget_container(self, name: str) -> None:
        """It was removed."""
        os.unlink(f"{self._names}/{name}")

    @contextlib.contextmanager
    def temporary(self, *, in_memory: bool = False) -> Iterator[str]:
        """A directory for the block; `in_memory` it is on no disk."""
        name = os.urandom(8).hex()
        noted = directory = f"{self._temporary}/{name}"
        if in_memory:
            directory = f"{_MEMORY}/layerstore-{name}"
            os.symlink(directory, noted)
        os.mkdir(directory, 0o700)
        try:
            yield directory
        finally:
            _remove(noted)


def _remove(noted: str) -> None:
    """Remove a temporary directory, or the one in memory that a link says."""
    is_link = os.path.islink(noted)
    directory = os.readlink(noted) if is_link else noted
    with about(noted):
        remove_directory(os.path.dirname(directory), os.path.basename(directory))
    if is_link:
        os.unlink(noted)


def _make_empty(path: str) -> None:
    close_fd(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
