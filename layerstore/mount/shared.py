"""The mounts of a store: one EROFS mount for each chain and pack in use, one overlay for each mounted container.

Which are mounted is asked of the kernel, never remembered. Chain and pack mounts are attached below run/ while a
container of theirs is mounted, so that all share one page cache, and taken away with the last.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time

from layerstore._core import mount
from layerstore.chains.chains import version_of
from layerstore.errors import CorruptError, Unsupported
from layerstore.naming import about, close_fd, fstat, open_fd
from layerstore.store import locks
from layerstore.store.layout import chain_of_mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from layerstore.chains.chains import Chain
    from layerstore.store.layout import Layout
    from layerstore.types import ChainId

_PAUSES_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1)
_READ_AHEAD_BYTES = 128 << 10
"""The least that any device lets one request for readahead cover; the kernel drops what is beyond."""
_READ_AHEAD_LIMIT_BYTES = 32 << 20
"""200,000 paths. Of a larger tree a container will hardly look at all."""


class Mounts:
    """Mounts and unmounts containers. Safe for many threads and processes."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.containers_fd = os.open(layout.containers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        """Close what is kept open. Mounts stay."""
        fd, self.containers_fd = self.containers_fd, -1
        if fd >= 0:  # a second time it would be somebody else's
            close_fd(fd)

    def _target(self, chain: Chain) -> str:
        return self._layout.chain_mount(chain.chain_id, chain.packs)

    def _pack_target(self, number: int) -> str:
        return f"{self._layout.pack_mounts}/{number}"

    def mount(self, chain: Chain, containers: Sequence[str], *, volatile: bool) -> None:
        """Mount these containers (ids) of one chain; those that are mounted already stay.

        Under the locks of their mounts, of the caller's: the kernel would put a second overlay on the same directories.
        `volatile` ones are never synced, not even when they are unmounted.

        Raises `Unsupported` where this user or kernel cannot, `FileNotFoundError` where the chain's image was evicted
        since it was described, `OSError`. What was mounted before an error stays.
        """
        with self._shared(chain), contextlib.ExitStack() as stack:
            lower = [_open_path(stack, self._target(chain))]
            data = [_open_path(stack, self._pack_target(number)) for number in chain.packs]
            if chain.objects:
                data.append(_open_path(stack, self._layout.objects))
            mount.overlay_mount_many(self.containers_fd, containers, lower, data, volatile)

    @contextlib.contextmanager
    def _shared(self, chain: Chain) -> Iterator[None]:
        """Have the chain's and its packs' EROFS mounts, and hold the lock that keeps them."""
        while True:
            with locks.mounts(self._layout, alone=False):
                # The chain is attached last and detached first.
                if _is_mounted(self._target(chain)):
                    yield
                    return
            with locks.mounts(self._layout, alone=True):
                self._attach(chain)

    def _attach(self, chain: Chain) -> None:
        for number in chain.packs:
            target = self._pack_target(number)
            if not _is_mounted(target):
                _attach_image(self._layout.pack_image(number), self._layout.pack(number), target)
        target = self._target(chain)
        if not _is_mounted(target):
            if version_of(os.stat(chain.image)) != chain.image_version:
                raise FileNotFoundError(
                    errno.ENOENT, "the tree image was made anew since it was described", chain.image
                )
            _attach_image(chain.image, None, target)

    def unmount(self, containers: Sequence[str], *, lazy: bool = False) -> None:
        """Unmount these containers; those that are not mounted are passed over.

        `lazy` detaches a mount that is in use. Raises `OSError` (EBUSY) otherwise, after trying all for a moment: a
        program that another thread starts has a copy of what is open here until it executes.
        """
        for pause in (*_PAUSES_SECONDS, None):
            try:
                return mount.umount_many(self.containers_fd, containers, lazy)
            except Unsupported:
                # Who may not mount may have nothing mounted all the same.
                if any(self.mounted(containers)):
                    raise
                return None
            except OSError as error:
                if error.errno != errno.EBUSY or pause is None:
                    raise
                time.sleep(pause)
        return None

    def mounted(self, containers: Sequence[str]) -> list[bool]:
        """Which of these containers are mounted, by the kernel's word."""
        return mount.mounted_many(self.containers_fd, containers)

    def release(self, in_use: Callable[[ChainId], Chain | None]) -> None:
        """Take away the chain and pack mounts that nothing uses.

        `in_use` gives a chain in use as it is described, None for one that is not in use. Of a chain whose description
        is not that of what is attached, nobody knows the packs: then all of them stay.
        """
        with locks.mounts(self._layout, alone=True):
            packs: set[int] = set()
            all_known = True
            for name in os.listdir(self._layout.chain_mounts):
                target = f"{self._layout.chain_mounts}/{name}"
                if not mount.is_mounted(target):
                    continue
                try:
                    chain = in_use(chain_of_mount(name))
                except (FileNotFoundError, CorruptError):  # evicted by who did not see this mount
                    all_known = False
                    continue
                if chain is None:
                    _detach(target)
                elif self._target(chain) == target:
                    packs.update(chain.packs)
                else:
                    all_known = False
            if all_known:
                self._detach_packs(packs)

    def _detach_packs(self, but: set[int]) -> None:
        for name in os.listdir(self._layout.pack_mounts):
            if name.isascii() and name.isdigit() and int(name) not in but:
                _detach(self._pack_target(int(name)))


def _attach_image(image: str, device: str | None, target: str) -> None:
    _read_ahead(image)
    os.makedirs(target, mode=0o700, exist_ok=True)
    mount.mount_erofs(image, device, target)


def _read_ahead(image: str) -> None:
    """Begin reading an image that is not in the page cache, in few large requests and without waiting for them.

    EROFS reads metadata by the page and on demand, so that looking at a cold tree otherwise waits for each.
    """
    with about(image), open(image, "rb", buffering=0) as file:
        end = min(fstat(file.fileno()).st_size, _READ_AHEAD_LIMIT_BYTES)
        for at in range(0, end, _READ_AHEAD_BYTES):
            os.posix_fadvise(file.fileno(), at, _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)


def _is_mounted(path: str) -> bool:
    try:
        return mount.is_mounted(path)
    except FileNotFoundError:
        return False


def _detach(target: str) -> None:
    # The directory stays: removing it would pull the mount away from other mount namespaces that have it.
    if mount.is_mounted(target):
        mount.umount(target, lazy=True)


def _open_path(stack: contextlib.ExitStack, path: str) -> int:
    return stack.enter_context(open_fd(path, os.O_PATH | os.O_DIRECTORY))
