"""A file system of the benchmark's own: in a sparse file, on a loop device, gone at the end.

The stores of layerstore and of all peers are on one, so that they are measured on the same file system with a journal;
the root file system of a virtual machine may have none, and times file creation erratically. The loop device is on
direct I/O, as a disk has no page cache of its own: else everything would be cached twice, and come with the sparse
file's readahead.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-F", "-O", "has_journal", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "xfs": ["mkfs.xfs", "-q", "-f", "-m", "reflink=1"],
}


@contextlib.contextmanager
def loop_file_system(kind: str = "ext4", size_bytes: int = 24 << 30, where: Path | None = None) -> Iterator[Path]:
    """Make and mount one; yields its mount point. `where` holds the sparse file (default: /var/tmp).

    Unmounting takes what is mounted inside along, on an error and on an interrupt too.
    """
    with contextlib.ExitStack() as stack:
        scratch = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="layerstore-bench-", dir=where or "/var/tmp"))
        )
        image, target = scratch / "image", scratch / "mnt"
        target.mkdir()
        with image.open("wb") as sparse:
            sparse.truncate(size_bytes)
        subprocess.run([*MAKE[kind], str(image)], check=True)
        attach = subprocess.run(
            ["losetup", "--find", "--show", "--direct-io=on", str(image)],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        )
        device = attach.stdout.strip()
        stack.callback(subprocess.run, ["losetup", "--detach", device], check=False)
        subprocess.run(["mount", "-t", kind, device, str(target)], check=True)
        stack.callback(unmount_below, target)
        yield target


def device_of(target: Path) -> Path:
    """The device that is mounted on `target`."""
    command = ["findmnt", "-n", "-o", "SOURCE", str(target)]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def erofs_mounts_below(target: Path) -> list[Path]:
    """Where EROFS images are mounted below `target`."""
    command = ["findmnt", "-n", "-l", "-t", "erofs", "-o", "TARGET"]
    listed = subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return [Path(point) for point in listed if target in Path(point).parents]


def unmount_below(target: Path) -> None:
    """Unmount `target` and every mount below it, the last one first; what is busy is detached."""
    for options in ([], ["--lazy"]):
        for point in reversed(mount_points_below(target)):
            subprocess.run(["umount", *options, str(point)], check=False, stderr=subprocess.DEVNULL)


def mount_points_below(target: Path) -> list[Path]:
    """`target` and the mount points below it in this mount namespace, in the order in which they were mounted."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    points = [Path(line.split()[4].encode().decode("unicode_escape")) for line in lines]
    return [point for point in points if point == target or target in point.parents]


def used_bytes(path: Path) -> int:
    """Bytes in use on the file system that holds `path`, with everything written out first."""
    os.sync()
    status = os.statvfs(path)
    return (status.f_blocks - status.f_bfree) * status.f_frsize


def disk_bytes(directory: Path) -> int:
    """What du(1) says, bytes, with everything written out first; without what is mounted inside."""
    return _du(directory)


def file_bytes(directory: Path) -> int:
    """The sizes of all files and directories, bytes: what du(1) says when blocks do not count."""
    return _du(directory, "--apparent-size")


def _du(directory: Path, *options: str) -> int:
    os.sync()
    command = ["du", "--summarize", "--one-file-system", "--block-size=1", *options, str(directory)]
    return int(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout.split()[0])
