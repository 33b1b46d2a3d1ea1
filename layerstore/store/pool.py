"""A pool: a store's own file system with reflink, XFS in a sparse file, where the host's file system has none.

    <root>/pool.img     the sparse file, attached to a loop device with direct I/O while the pool is in use
    <root>/pool         where it is mounted: the store proper is in it
    <root>/pool.lock    held while a pool is made, attached or detached

What is attached is asked of the kernel, never remembered, so that a crash or a reboot leaves nothing to repair. The
mount belongs to the mount namespace of whoever attached it; in another one the same loop device is mounted once more.
"""

from __future__ import annotations

import contextlib
import errno
import os

from layerstore._core import mount, pool
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, NotFound, Unsupported
from layerstore.naming import about, closing_fd, exists, open_fd
from layerstore.store import durable, locks
from layerstore.store.layout import FORMAT_NAME, POOL_NAME, make_private
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_POOL_BYTES = 300 << 20
"""XFS's own minimum."""
_ALIGNMENT_BYTES = 1 << 20
_COW_BLOCKS = 8
"""What XFS sets aside, in blocks of 4 KiB, where a shared block is written to; its own 32 would be kept for minutes."""
_SEARCH_PATH = "/usr/sbin:/sbin:/usr/local/sbin"


class PoolStatus(Value):
    """A pool's figures, bytes: the file system's size and what is used of it, what the sparse file takes of the host's
    disk, and what is free there. `direct_io` says whether the loop device passes over the host's page cache.
    """

    size_bytes: int
    used_bytes: int
    host_bytes: int
    host_free_bytes: int
    direct_io: bool


class Pool:
    """The pool of the store at `root` (absolute). Safe for many threads and processes. All but `exists` needs root."""

    def __init__(self, root: str) -> None:
        self._root = root
        self.image = f"{root}/{POOL_NAME}.img"
        self.target = f"{root}/{POOL_NAME}"
        self._lock = f"{root}/{POOL_NAME}.lock"
        self._quotas = f"{root}/{POOL_NAME}.quotas"
        self._unfinished = f"{root}/.{POOL_NAME}.img.new"

    def _locked(self, *, alone: bool) -> locks.Lock:
        return locks.pool(self._lock, self.target, alone=alone)

    def exists(self) -> bool:
        return exists(self.image)

    def create(self, size_bytes: int) -> None:
        """Make it, unless there is one. One that was interrupted is made again.

        The size is rounded down to whole MiB. Raises `InvalidInput` when that is too little or the directory holds
        something else, `Conflict` where there is a store without a pool, `Unsupported` without mkfs.xfs or the right to
        mount, `OSError`.
        """
        size_bytes -= size_bytes % _ALIGNMENT_BYTES
        if size_bytes < MIN_POOL_BYTES:
            raise InvalidInput(
                f"a pool of {size_bytes} bytes is too small: XFS needs {MIN_POOL_BYTES >> 20} MiB or more"
            )
        if not mount.features().may_mount:
            raise Unsupported("a pool is a file system of its own, and mounting it needs CAP_SYS_ADMIN: run as root")
        program = _find_mkfs()
        make_private(self._root)
        self._check_directory()
        os.chmod(self._root, 0o700)
        with self._locked(alone=True):
            if not self.exists():
                self._make(program, size_bytes)

    def _check_directory(self) -> None:
        names = set(os.listdir(self._root))
        if FORMAT_NAME in names:
            raise Conflict(
                f"there is a store without a pool at {self._root}; make one with a pool in another directory"
            )
        own = {os.path.basename(path) for path in (self.image, self.target, self._lock, self._quotas, self._unfinished)}
        strangers = names - own - {"lost+found"}
        if strangers:
            raise InvalidInput(
                f"{self._root} is not empty and not a store (it has {min(strangers)!r}); give an empty directory"
            )

    def _make(self, program: str, size_bytes: int) -> None:
        import subprocess

        try:
            with open_fd(self._unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) as fd:
                os.truncate(self._unfinished, size_bytes)
                # Sectors as large as the loop device's blocks; discarding would only tell the host about holes.
                command = [program, "-q", "-f", "-K", "-m", "reflink=1,rmapbt=0", "-s", "size=4096"]
                command += ["-d", f"cowextsize={_COW_BLOCKS}", self._unfinished]
                with about(program):
                    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
                if done.returncode:
                    raise LayerstoreError(
                        f"mkfs.xfs cannot make a file system in {self._unfinished}: {done.stderr.strip()}"
                    )
                with about(self._unfinished):
                    os.fsync(fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._unfinished)
            raise
        os.rename(self._unfinished, self.image)
        durable.sync_directory(self._root)

    @contextlib.contextmanager
    def attached(self) -> Iterator[None]:
        """Have it attached, and keep others from detaching it: open something in it before this ends.

        Raises `Unsupported` where this user or kernel cannot, `NotFound` where there is no pool, `OSError`.
        """
        while True:
            with self._locked(alone=False):
                if mount.is_mounted(self.target):
                    yield
                    return
            with self._locked(alone=True):
                self._attach()

    def _attach(self) -> None:
        if mount.is_mounted(self.target):
            return
        os.makedirs(self.target, mode=0o700, exist_ok=True)
        with self._loop() as loop:
            pool.mount_xfs(loop.path, self.target, exists(self._quotas))

    def _loop(self) -> pool.Loop:
        """The file's loop device. There is never a second one: two XFS on one file would destroy each other."""
        try:
            fd = os.open(self.image, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"there is no pool at {self._root}; `layerstore init --pool SIZE` makes one") from None
        with closing_fd(fd):
            return pool.find_loop(fd) or pool.attach_loop(fd)

    def detach(self) -> bool:
        """Unmount it unless something uses it: an open store, a mounted container. The loop device goes with it.

        Returns whether it is detached now. Raises `OSError`.
        """
        with self._locked(alone=True):
            try:
                mount.umount(self.target)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
                return False
            return True

    def ask_for_quotas(self) -> None:
        """Have it mounted with project quotas whenever it is attached from now on, on kernels that have them."""
        durable.write_file(self._quotas, b"")

    def grow(self, size_bytes: int) -> None:
        """Let the attached pool grow to `size_bytes` (rounded down to whole MiB) while it is in use.

        One that was interrupted is finished by the next. Raises `InvalidInput` when that is less than now, `OSError`.
        """
        size_bytes -= size_bytes % _ALIGNMENT_BYTES
        with self._locked(alone=True), open_fd(self.target, os.O_RDONLY | os.O_DIRECTORY) as fd:
            now = os.stat(self.image).st_size
            if size_bytes < now:
                raise InvalidInput(f"the pool has {now} bytes and does not shrink to {size_bytes}; XFS cannot")
            os.truncate(self.image, size_bytes)
            with self._loop() as loop:
                loop.resize()
            pool.grow_xfs(fd, size_bytes)

    def trim(self) -> int:
        """Give what is free in the attached pool back to the host's file system; returns by how many bytes the
        sparse file shrank. Raises `OSError`.
        """
        before = _allocated(self.image)
        with open_fd(self.target, os.O_RDONLY | os.O_DIRECTORY) as fd:
            mount.syncfs(fd)  # what was removed is free only once that is in XFS's log
            pool.trim(fd)
        return max(0, before - _allocated(self.image))

    def status(self) -> PoolStatus:
        """The figures of the attached pool. Raises `OSError`."""
        inside, host = os.statvfs(self.target), os.statvfs(self._root)
        with self._loop() as loop:
            direct_io = loop.direct_io
        return PoolStatus(
            size_bytes=inside.f_blocks * inside.f_frsize,
            used_bytes=(inside.f_blocks - inside.f_bfree) * inside.f_frsize,
            host_bytes=_allocated(self.image),
            host_free_bytes=host.f_bavail * host.f_frsize,
            direct_io=direct_io,
        )


def _allocated(path: str) -> int:
    return os.stat(path).st_blocks * 512


def _find_mkfs() -> str:
    import shutil

    program = shutil.which("mkfs.xfs", path=f"{os.environ.get('PATH', '')}:{_SEARCH_PATH}")
    if program is None:
        raise Unsupported(
            "mkfs.xfs, which makes a pool's file system, is not installed (Debian: apt-get install xfsprogs)"
        )
    return program
