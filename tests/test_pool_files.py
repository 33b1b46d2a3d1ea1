"""Random input and output through the mounts of containers on a pool, against a plain file (in the manner of fsx)."""

import ctypes
import io
import mmap
import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from exerciser import IMAGE, PATH, Exerciser
from images import docker_files, tar_of
from pools import needs_mkfs, needs_root, pool_store
from stack_model import EXAMPLES

from layerstore import Container

OPERATIONS = 250 * EXAMPLES
KEEP_SIZE_PUNCH_HOLE = 0x01 | 0x02  # linux/falloc.h
pytestmark = [needs_root, needs_mkfs, pytest.mark.root, pytest.mark.kernel]


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Container]:
    with pool_store(tmp_path) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        yield store.create("files:1")


class MountedFile:
    """The file of `exerciser`; every other time it is read and written to through a mapping."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.fd = os.open(f"{os.fspath(container.mount())}{PATH}", os.O_RDWR)

    def mapped(self, at: int, length: int, access: int) -> mmap.mmap | None:
        """All of the file, where the range lies in it."""
        size = os.fstat(self.fd).st_size
        return mmap.mmap(self.fd, size, access=access) if at % 2 and at + length <= size else None

    def pread(self, length: int, at: int) -> bytes:
        view = self.mapped(at, length, mmap.ACCESS_READ)
        if view is None:
            return os.pread(self.fd, length, at)
        with view:
            return view[at : at + length]

    def pwrite(self, data: bytes, at: int) -> None:
        view = self.mapped(at, len(data), mmap.ACCESS_WRITE)
        if view is None:
            assert os.pwrite(self.fd, data, at) == len(data)
            return
        with view:
            view[at : at + len(data)] = data

    def append(self, data: bytes) -> None:
        fd = os.open(f"{self.container.root}{PATH}", os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)

    def truncate(self, size: int) -> None:
        os.ftruncate(self.fd, size)

    def punch(self, at: int, length: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        arguments = self.fd, KEEP_SIZE_PUNCH_HOLE, ctypes.c_long(at), ctypes.c_long(length)
        if libc.fallocate(*arguments):
            raise OSError(ctypes.get_errno(), "fallocate failed")

    def forget(self) -> None:
        os.fsync(self.fd)
        os.posix_fadvise(self.fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        os.close(self.fd)
        self.container.umount()


def test_random_input_and_output_is_that_of_a_plain_file(container: Container, tmp_path: Path) -> None:
    with closing(Exerciser(container, MountedFile, tmp_path / "plain", seed=1)) as exerciser:
        exerciser.run(OPERATIONS)
