"""Files of the extent driver: random I/O against a plain file (in the manner of fsx), and what else `io` promises."""

import errno
import io
import os
import stat
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from exerciser import IMAGE, PATH, Exerciser
from images import docker_files, tar_of
from stack_model import EXAMPLES

from layerstore import Store
from layerstore.api import Container

OPERATIONS = 250 * EXAMPLES


@pytest.fixture
def container(store: Store) -> Iterator[Container]:
    store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
    yield store.create("files:1", driver="extent")


class ExtentFile:
    """The file of `exerciser`; what it reads, one that was opened before all that was done reads, too."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.reader = container.open(PATH, "rb", 0)
        self.file = container.open(PATH, "r+b", 0)

    def pread(self, length: int, at: int) -> bytes:
        buffer = bytearray(length)
        count = self.file.readinto_at(buffer, at)  # type: ignore[attr-defined]
        self.reader.seek(at)
        found = self.reader.read(length)
        assert buffer[:count] == found
        return found

    def pwrite(self, data: bytes, at: int) -> None:
        self.file.seek(at)
        assert self.file.write(data) == len(data)

    def append(self, data: bytes) -> None:
        with self.container.open(PATH, "ab", 0) as file:
            file.write(data)

    def truncate(self, size: int) -> None:
        self.file.truncate(size)

    def punch(self, at: int, length: int) -> None:
        self.file.punch(at, length)  # type: ignore[attr-defined]

    def forget(self) -> None:
        self.close()
        self.container._engine.writable.layers.close()

    def close(self) -> None:
        self.reader.close()
        self.file.close()


def test_random_input_and_output_is_that_of_a_plain_file(container: Container, tmp_path: Path) -> None:
    with closing(Exerciser(container, ExtentFile, tmp_path / "plain", seed=1)) as exerciser:
        exerciser.run(OPERATIONS)


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


@pytest.mark.parametrize("mode", ["ab", "a+b"])
def test_a_raw_file_to_append_to_begins_at_its_end(container: Container, tmp_path: Path, mode: str) -> None:
    (tmp_path / "small").write_bytes(b"0123456789")
    told = []
    for opened, path in ((open, str(tmp_path / "small")), (container.open, "/small")):
        with opened(path, mode, 0) as file:
            told.append(
                [file.tell(), file.truncate(), file.read() if "+" in mode else b"", file.write(b"x"), file.tell()]
            )
        with opened(path, "rb") as file:
            told[-1].append(file.read())
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "arguments",
    [("wb", -1, "utf-8"), ("wb", -1, None, "strict"), ("w", 0), ("w", -1, "none"), ("w", -1, None, None, "x")],
)
def test_arguments_are_refused_before_anything_is_done(container: Container, arguments: Any) -> None:
    with pytest.raises((ValueError, LookupError)):
        container.open("/small", *arguments)
    with pytest.raises((ValueError, LookupError)):
        container.open("/made", *arguments)
    assert container.read_bytes("/small") == b"0123456789"
    assert not container.exists("/made")


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


def test_a_file_that_was_opened_before_another_process_wrote_shows_what_was(store: Store, container: Container) -> None:
    with container.open("/small", "rb", 0) as file:
        with Store(store.root) as other:
            other.container(container.id).write_bytes("/small", b"other")
        container.write_bytes("/large", b"")
        container.write_bytes("/small", b"own")
        assert file.read() == b"0123456789"
    with container.open("/small", "rb", 0) as file:
        container.write_bytes("/small", b"again")
        assert file.read() == b"again"


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


def test_truncate_by_path_is_that_of_os(container: Container, tmp_path: Path) -> None:
    container.mkdir("/d")
    container.mknod("/fifo", stat.S_IFIFO | 0o644)
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "small").write_bytes(b"0123456789")
    for name, length in (("d", 1), ("fifo", 1), ("gone", 1), ("gone", -1), ("small", -1), ("small", 3), ("small", 12)):
        told = []
        for truncate, path in ((os.truncate, tmp_path / name), (container.truncate, f"/{name}")):
            try:
                told.append(truncate(path, length))
            except OSError as error:
                told.append(error.errno)
        assert told[0] == told[1], (name, length)
    assert container.read_bytes("/small") == (tmp_path / "small").read_bytes()


@pytest.mark.parametrize(("offset", "length"), [(0, 0), (0, -1), (-1, 2), (1, 2**63 - 1), (2**64, 1)])
def test_a_range_that_is_none_is_refused_as_by_fallocate(container: Container, offset: int, length: int) -> None:
    with container.open("/small", "r+b", 0) as file, pytest.raises(OSError) as caught:
        file.punch(offset, length)
    assert caught.value.errno == (errno.EFBIG if offset > 0 else errno.EINVAL)
    assert container.read_bytes("/small") == b"0123456789"


@pytest.mark.parametrize("size", [2**63, 2**64])
def test_a_size_that_no_file_has_is_refused(container: Container, size: int) -> None:
    with container.open("/small", "r+b", 0) as file:
        for truncate in (file.truncate, lambda size: container.truncate("/small", size)):
            with pytest.raises(OSError, match="too large") as caught:
                truncate(size)
            assert caught.value.errno == errno.EFBIG
        assert file.truncate(2**63 - 1) == 2**63 - 1


@pytest.mark.root
def test_owners_are_taken_as_by_os(container: Container, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(b"")
    ids = (-(2**40), -2, -1, 0, 7, 2**31, 2**32 - 2, 2**32 - 1, 2**32, 2**70)
    for uid, gid in [(one, -1) for one in ids] + [(-1, one) for one in ids]:
        told: list[Any] = []
        for chown, status, path in (
            (os.chown, os.stat, str(tmp_path / "small")),
            (container.chown, container.stat, "/small"),
        ):
            try:
                chown(path, uid, gid)
            except OverflowError:
                told.append("no id")
            told.append((status(path).st_uid, status(path).st_gid))
        half = len(told) // 2
        assert told[:half] == told[half:], (uid, gid)


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
