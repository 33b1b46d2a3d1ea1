"""Random input and output on one file of a container, in the manner of fsx, against a plain file."""

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from images import Image
from layer_model import Entry, write_tar

from layerstore import Container

PATH = "/large"
LARGE = random.Random(5).randbytes(300_000)
IMAGE = Image(
    [write_tar([Entry("file", "small", data=b"0123456789"), Entry("file", "large", data=LARGE)])], ["files:1"]
)
MAX_BYTES = 400_000


class File(Protocol):
    """The file of a container, open; everything that is done to it is seen by what is done next."""

    def pread(self, length: int, at: int) -> bytes: ...
    def pwrite(self, data: bytes, at: int) -> None: ...
    def append(self, data: bytes) -> None: ...
    def truncate(self, size: int) -> None: ...
    def punch(self, at: int, length: int) -> None: ...
    def forget(self) -> None:
        """Let go of what is in memory of it."""

    def close(self) -> None: ...


class Exerciser:
    """Forks, snapshots and rollbacks of the container are among what is done; at the end there may be another one."""

    def __init__(self, container: Container, opened: Callable[[Container], File], plain: Path, seed: int) -> None:
        self.container = container
        self.opened = opened
        self.file = opened(container)
        self.plain = os.open(plain, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        os.pwrite(self.plain, LARGE, 0)
        self.random = random.Random(seed)
        self.snapped: bytes | None = None

    def close(self) -> None:
        self.file.close()
        os.close(self.plain)

    def run(self, count: int) -> None:
        often = {self.write: 40, self.read: 45, self.truncate: 5, self.punch: 5, self.append: 4}
        seldom = dict.fromkeys((self.fork, self.snapshot, self.roll_back, self.reopen), 0.05)
        weights = {**often, **seldom}
        for work in self.random.choices(list(weights), list(weights.values()), k=count):
            work()
        for work in (*seldom, self.read_all):
            work()

    @property
    def size(self) -> int:
        return os.fstat(self.plain).st_size

    def place(self) -> tuple[int, int]:
        length = self.random.choice(
            (1, 17, 512, 4096, 4097, 9000, self.random.randrange(1, 30_000), self.random.randrange(1, 200_000))
        )
        return self.random.randrange(MAX_BYTES - length), length

    def write(self) -> None:
        at, length = self.place()
        data = self.random.randbytes(length)
        self.file.pwrite(data, at)
        os.pwrite(self.plain, data, at)

    def read(self) -> None:
        at, length = self.place()
        assert self.file.pread(length, at) == os.pread(self.plain, length, at), (at, length)

    def truncate(self) -> None:
        size = self.random.randrange(MAX_BYTES)
        self.file.truncate(size)
        os.ftruncate(self.plain, size)

    def punch(self) -> None:
        at, length = self.place()
        self.file.punch(at, length)
        if at < self.size:
            os.pwrite(self.plain, bytes(min(length, self.size - at)), at)

    def append(self) -> None:
        if self.size < MAX_BYTES:
            self.file.append(b"appended")
            os.pwrite(self.plain, b"appended", self.size)

    def read_all(self) -> None:
        self.same_as_plain(self.file)

    def same_as_plain(self, file: File) -> None:
        assert file.pread(MAX_BYTES + 1, 0) == os.pread(self.plain, MAX_BYTES + 1, 0)

    def fork(self) -> None:
        """While the file is open. It goes on in one of the two, and the other is what it was then."""
        other = self.container.fork()
        if self.random.random() < 0.5:
            self.file.close()
            self.container, other, self.snapped = other, self.container, None
            self.file = self.opened(self.container)
        file = self.opened(other)
        self.same_as_plain(file)
        file.close()
        other.remove()

    def snapshot(self) -> None:
        """While the file is open."""
        if self.snapped is not None:
            self.container.remove_snapshot("then")
        self.container.snapshot("then")
        self.snapped = os.pread(self.plain, MAX_BYTES + 1, 0)

    def roll_back(self) -> None:
        if self.snapped is None:
            return
        self.file.close()
        self.container.rollback("then")
        os.ftruncate(self.plain, 0)
        os.pwrite(self.plain, self.snapped, 0)
        self.file = self.opened(self.container)

    def reopen(self) -> None:
        self.file.forget()
        self.file.close()
        self.file = self.opened(self.container)
