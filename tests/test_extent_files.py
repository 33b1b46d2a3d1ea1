"""Files of the extent driver: random I/O against a plain file (in the manner of fsx), and what else `io` promises."""

import io
import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from stack_model import EXAMPLES

from layerstore import Store
from layerstore.api import Container

OPERATIONS = 250 * EXAMPLES
LARGE = random.Random(5).randbytes(300_000)
IMAGE = Image(
    [write_tar([Entry("file", "small", data=b"0123456789"), Entry("file", "large", data=LARGE)])], ["files:1"]
)
MAX_BYTES = 400_000


@pytest.fixture
def container(store: Store) -> Iterator[Container]:
    store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
    yield store.create("files:1", driver="extent")


class Exerciser:
    """One file of a container, opened raw, and a plain file that the same is done to."""

    def __init__(self, store: Store, container: Container, plain: Path, seed: int) -> None:
        self.store = store
        self.container = container
        self.plain = open(plain, "w+b", 0)  # noqa: SIM115  # closed by `close`
        self.random = random.Random(seed)
        self.file = container.open("/large", "r+b", 0)
        self.plain.write(container.read_bytes("/large"))

    def close(self) -> None:
        self.file.close()
        self.plain.close()

    def place(self) -> tuple[int, int]:
        length = self.random.choice(
            (1, 17, 512, 4096, 4097, 9000, self.random.randrange(1, 30_000), self.random.randrange(1, 200_000))
        )
        return self.random.randrange(MAX_BYTES - length), length

    def write(self) -> None:
        at, length = self.place()
        data = self.random.randbytes(length)
        self.file.seek(at)
        assert self.file.write(data) == length
        os.pwrite(self.plain.fileno(), data, at)

    def read(self) -> None:
        at, length = self.place()
        self.file.seek(at)
        assert self.file.read(length) == os.pread(self.plain.fileno(), length, at), (at, length)

    def truncate(self) -> None:
        size = self.random.randrange(MAX_BYTES)
        self.file.truncate(size)
        os.ftruncate(self.plain.fileno(), size)

    def punch(self) -> None:
        at, length = self.place()
        self.file.punch(at, length)  # type: ignore[attr-defined]
        size = os.fstat(self.plain.fileno()).st_size
        if at < size:
            os.pwrite(self.plain.fileno(), bytes(min(length, size - at)), at)

    def append(self) -> None:
        if os.fstat(self.plain.fileno()).st_size < MAX_BYTES:
            with self.container.open("/large", "ab", 0) as file:
                file.write(b"appended")
            os.pwrite(self.plain.fileno(), b"appended", os.fstat(self.plain.fileno()).st_size)

    def fork(self) -> None:
        """Go on in a fork, and forget where it came from."""
        self.file.close()
        before, self.container = self.container, self.container.fork()
        if self.random.random() < 0.5:
            before.remove()
        self.file = self.container.open("/large", "r+b", 0)

    def reopen(self) -> None:
        self.file.close()
        self.store._writable.layers.close()
        self.file = self.container.open("/large", "r+b", 0)

    def run(self, count: int) -> None:
        rare = count // 250
        kinds = [self.write, self.read, self.truncate, self.punch, self.append, self.fork, self.reopen]
        weights = [40, 45, 5, 5, 4, rare / count * 25, rare / count * 25]
        for kind in self.random.choices(kinds, weights, k=count):
            kind()
        size = os.fstat(self.plain.fileno()).st_size
        assert self.container.read_bytes("/large") == os.pread(self.plain.fileno(), size, 0)


def test_random_input_and_output_is_that_of_a_plain_file(store: Store, container: Container, tmp_path: Path) -> None:
    exerciser = Exerciser(store, container, tmp_path / "plain", seed=1)
    try:
        exerciser.run(OPERATIONS)
    finally:
        exerciser.close()


def test_modes_are_those_of_the_builtin_open(container: Container, tmp_path: Path) -> None:
    for mode in ("r", "w", "a", "x", "r+", "w+", "a+", "x+"):
        for kind in ("", "b", "t"):
            for exists in (True, False):
                told = []
                for opened in (open, container.open):
                    path = tmp_path / "f" if opened is open else "/f"
                    if exists:
                        with opened(path, "w") as file:
                            file.write("before\n")
                    try:
                        with opened(path, mode + kind) as file:
                            flags = file.readable(), file.writable(), file.tell()
                            if file.writable():
                                file.write("ü" if kind != "b" else b"new")
                                file.seek(0)
                            told.append((flags, file.read() if file.readable() else None, type(file).__mro__[-4:]))
                    except OSError as error:
                        told.append(error.errno)
                    content = b""
                    try:
                        with opened(path, "rb") as file:
                            content = file.read()
                        os.unlink(path) if opened is open else container.unlink(path)
                    except FileNotFoundError:
                        pass
                    told.append(content)
                assert told[:2] == told[2:], (mode, kind, exists)


@pytest.mark.parametrize("mode", ["", "rw", "rbt", "rr", "z", "+", "U"])
def test_a_mode_that_is_none_is_refused(container: Container, mode: str) -> None:
    with pytest.raises(ValueError, match="invalid mode"):
        container.open("/small", mode)


def test_a_file_without_a_name_lives_until_it_is_closed(container: Container) -> None:
    with container.open("/small", "r+b", 0) as file, container.open("/new", "w+b", 0) as new:
        new.write(b"new")
        container.unlink("/small")
        container.unlink("/new")
        container.fork().remove()
        file.seek(10)
        file.write(b"abc")
        file.seek(0)
        new.seek(0)
        assert (file.read(), new.read()) == (b"0123456789abc", b"new")
        container.write_bytes("/small", b"another")
        file.seek(0)
        assert file.read() == b"0123456789abc"
    assert container.read_bytes("/small") == b"another"
    assert container.listdir("/") == ["large", "small"]


def test_files_see_each_other_s_writes(container: Container) -> None:
    with container.open("/small", "rb", 0) as reader, container.open("/small", "r+b", 0) as writer:
        assert reader.read(4) == b"0123"
        writer.write(b"abcdefgh")
        assert reader.read() == b"efgh89"
        writer.truncate(2)
        assert (reader.seek(0), reader.read()) == (0, b"ab")


def test_flush_hands_over_and_not_before(store: Store, container: Container) -> None:
    with Store(store.root) as other:
        seen = other.container(container.id)
        with container.open("/f", "wb") as file:
            file.write(b"data")
            assert seen.read_bytes("/f") == b""
            file.flush()
            assert seen.read_bytes("/f") == b"data"
            file.raw.sync()  # type: ignore[attr-defined]


def test_a_closed_file_and_one_of_another_mode_refuse(container: Container) -> None:
    file = container.open("/small", "rb", 0)
    with pytest.raises(io.UnsupportedOperation):
        file.write(b"x")
    with pytest.raises(io.UnsupportedOperation):
        file.truncate(0)
    with pytest.raises(OSError, match="fileno"):
        file.fileno()
    with pytest.raises(OSError, match="Invalid argument"):
        file.seek(-1)
    file.close()
    file.close()
    with pytest.raises(ValueError, match="closed"):
        file.read()
    with container.open("/w", "wb", 0) as only, pytest.raises(io.UnsupportedOperation):
        only.read()
    with container.open("/w", "r+b", 0) as big, pytest.raises(OSError, match="too large"):
        big.seek((1 << 63) - 2)
        big.write(b"xyz")


@pytest.mark.parametrize(
    "arguments",
    [(3,), (0, os.SEEK_END), (-1, os.SEEK_END), (1, os.SEEK_CUR), (-1,), (-9, os.SEEK_CUR), (1 << 63,), (1.5,), ("1",)],
)
@pytest.mark.parametrize("buffering", [0, -1])
def test_seek_is_that_of_the_builtin_open(container: Container, tmp_path: Path, arguments: Any, buffering: int) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    told = []
    for opened, path in ((open, tmp_path / "f"), (container.open, "/small")):
        with opened(path, "r+b", buffering) as file:
            file.read(5)
            try:
                told.append((file.seek(*arguments), file.tell(), file.read()))
            except (OSError, OverflowError, TypeError, ValueError) as error:
                told.append((type(error), file.tell(), file.read()))
    assert told[0] == told[1]


def test_threads_write_and_read_one_container(container: Container) -> None:
    """Each has a file of its own and one that all append to; forks are taken meanwhile."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for round_number in range(50):
                data = bytes([number]) * 5000
                container.write_bytes(f"/own{number}", data)
                assert container.read_bytes(f"/own{number}") == data
                with container.open("/all", "ab", 0) as file:
                    file.write(b"%02d%02d\n" % (number, round_number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    forks = [container.fork() for _ in range(5)]
    for thread in threads:
        thread.join()
    assert failures == []
    lines = container.read_text("/all").splitlines()
    assert sorted(lines) == [f"{number:02}{round_number:02}" for number in range(6) for round_number in range(50)]
    for fork in forks:
        kept = fork.read_text("/all").splitlines() if fork.exists("/all") else []
        assert kept == lines[: len(kept)]
