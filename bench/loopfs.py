"""A file system of the benchmark's own: in a sparse file, on a loop device, gone at the end.

The stores of layerstore and of all peers are put on one, so that they are measured on the same file system with a journal;
the root file system of a virtual machine may have none, and times file creation erratically.
"""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
}


@contextlib.contextmanager
def loop_file_system(kind: str = "ext4", size_bytes: int = 16 << 30, where: Path | None = None) -> Iterator[Path]:
    """Make and mount one; yields its mount point. `where` holds the sparse file (default: /var/tmp, which is on a disk).

    Unmounting takes what is mounted inside along, on an error and on an interrupt too.
    """
    with tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=where or "/var/tmp") as scratch:
        image, target = Path(scratch) / "image", Path(scratch) / "mnt"
        target.mkdir()
        with image.open("wb") as sparse:
            sparse.truncate(size_bytes)
        subprocess.run([*MAKE[kind], str(image)], check=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(target)], check=True)
        try:
            yield target
        finally:
            unmount_below(target)


def unmount_below(target: Path) -> None:
    """Unmount `target` and every mount below it, the last one first."""
    inside = [point for point in mount_points() if point == target or target in point.parents]
    for point in reversed(inside):
        subprocess.run(["umount", str(point)], check=False, stderr=subprocess.DEVNULL)
    left = [point for point in mount_points() if point == target or target in point.parents]
    for point in reversed(left):
        subprocess.run(["umount", "--lazy", str(point)], check=False)


def mount_points() -> list[Path]:
    """Mount points of this mount namespace, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
