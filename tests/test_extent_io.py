"""Files through extent maps and logs: what is read is what was written, on a full disk too; a short log is an error."""

import mmap
import os
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from layerstore._core import log
from layerstore._core.extent_file import read
from layerstore._core.extent_io import Content, LogFile, LogWriter
from layerstore._core.extents import IMAGE, ZERO, ExtentMap, source
from layerstore._core.log import Header, LogReader, Record
from layerstore.errors import Conflict, CorruptError, InvalidInput

ID = bytes(range(16))
CHAIN = bytes(32)
MIB = 1 << 20


class Log:
    """A log in a file without a name, and its writer."""

    def __init__(self, directory: Path, number: int = 0) -> None:
        self.fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(self.fd, Header(ID, CHAIN).pack())
        self.writer = LogWriter(self.fd, log.HEADER_BYTES, ID, number)

    def bytes(self) -> bytes:
        return os.pread(self.fd, os.fstat(self.fd).st_size, 0)

    def close(self) -> None:
        os.close(self.fd)


@pytest.fixture
def layer_log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path)
    yield made
    made.close()


def content_of(directory: Path, content: bytes, offset: int = 100) -> tuple[int, Content]:
    """A content between others, as in a pack."""
    fd = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.pwrite(fd, b"\xff" * offset + content + b"\xff" * 100, 0)
    return fd, Content(fd, offset, len(content))


def read_all(extents: ExtentMap, logs: list[LogFile], content: Content | None = None) -> bytes:
    buffer = bytearray(extents.size + 10)
    n = read(extents, logs, content, 0, buffer)
    assert buffer[n:] == bytes(10)
    return bytes(buffer[:n])


def replayed(data: bytes, logs: list[LogFile], image_size: int, content: Content | None) -> bytes:
    """The file with inode 1 as one finds it who opens the log."""
    extents = ExtentMap(image_size)
    for record in LogReader(data):
        if record.inode != 1:
            continue
        if record.type == log.WRITE:
            extents.write(record.offset, record.payload_length, source(0, record.payload_position))
        elif record.type == log.PUNCH:
            extents.punch(record.offset, record.value)
        else:
            extents.truncate(record.value)
    return read_all(extents, logs, content)


# Any operations

lengths = st.integers(0, 100) | st.integers(0, 9000) | st.sampled_from([128 << 10, (128 << 10) - 1, 300_000])
offsets = st.integers(0, 20_000) | st.integers(0, 400_000)


class Files(RuleBasedStateMachine):
    """One file of the image that is changed, beside a bytearray; and states of it that were kept."""

    directory: Path

    def __init__(self) -> None:
        super().__init__()
        self.log = Log(self.directory)
        self.image = random.Random(1).randbytes(50_000)
        self.fd, self.content = content_of(self.directory, self.image)
        self.extents = ExtentMap(len(self.image))
        self.model = bytearray(self.image)
        self.kept: list[tuple[ExtentMap, bytes]] = []

    def teardown(self) -> None:
        self.log.close()
        os.close(self.fd)

    @rule(offset=offsets, length=lengths, seed=st.integers(0, 9))
    def write(self, offset: int, length: int, seed: int) -> None:
        data = random.Random(seed).randbytes(length)
        self.log.writer.write(self.extents, 1, offset, data, 5)
        assert data == random.Random(seed).randbytes(length), "the caller's data was changed"
        if data:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + length] = data

    @rule(offset=offsets, n=st.integers(1, 300), length=st.integers(1, 700))
    def write_blocks_in_order(self, offset: int, n: int, length: int) -> None:
        for i in range(n):
            self.write(offset + i * length, length, i % 10)

    @rule(offset=offsets, length=st.integers(1, 9000))
    def punch(self, offset: int, length: int) -> None:
        self.extents.punch(offset, length)
        self.log.writer.append([Record(log.PUNCH, 1, offset=offset, value=length)])
        end = min(offset + length, len(self.model))
        self.model[offset:end] = bytes(max(0, end - offset))

    @rule(size=offsets)
    def truncate(self, size: int) -> None:
        self.extents.truncate(size)
        self.log.writer.append([Record(log.TRUNCATE, 1, value=size)])
        self.model = self.model[:size] + bytes(max(0, size - len(self.model)))

    @rule()
    def keep(self) -> None:
        self.extents.freeze()
        self.kept.append((self.extents, bytes(self.model)))
        self.extents = self.extents.clone()
        del self.kept[:-3]

    @rule(position=offsets, length=lengths)
    def read_a_range(self, position: int, length: int) -> None:
        buffer = bytearray(b"\xee" * length)
        n = read(self.extents, [self.log.writer], self.content, position, buffer)
        assert bytes(buffer[:n]) == bytes(self.model[position : position + length])
        assert buffer[n:] == b"\xee" * (length - n)

    @rule()
    def open_again(self) -> None:
        end = self.log.writer.flush()
        data = self.log.bytes()
        assert len(data) == end
        assert LogReader(data).end == end
        state: list[LogFile] = [LogFile(self.log.fd, end)]
        assert replayed(data, state, len(self.image), self.content) == bytes(self.model)

    @invariant()
    def files_are_their_models(self) -> None:
        logs: list[LogFile] = [self.log.writer]
        for extents, model in ((self.extents, bytes(self.model)), *self.kept):
            assert read_all(extents, logs, self.content) == model


def test_files(tmp_path: Path) -> None:
    Files.directory = tmp_path
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Files, settings=settings(max_examples=40, stateful_step_count=25, deadline=None)
    )


# Reading


def test_a_file_of_several_logs_and_the_image(tmp_path: Path) -> None:
    first, second = Log(tmp_path, 0), Log(tmp_path, 1)
    fd, content = content_of(tmp_path, b"i" * 10)
    extents = ExtentMap(10)
    first.writer.write(extents, 1, 2, b"aaaa", 0)
    length = first.writer.flush()
    second.writer.write(extents, 1, 4, b"bbbb", 0)
    first.writer.write(extents, 1, 9, b"later", 0)
    logs: list[LogFile] = [first.writer, second.writer]
    assert read_all(extents, logs, content) == b"iiaabbbbilater"
    second.writer.flush()
    assert read_all(extents, logs, content) == b"iiaabbbbilater"
    with pytest.raises(CorruptError, match="5 bytes at byte"):
        read_all(extents, [LogFile(first.fd, length), second.writer], content)
    for closed in (first.fd, second.fd, fd):
        os.close(closed)


def test_data_that_is_half_in_the_file_and_half_gathered(layer_log: Log) -> None:
    """As extents of a log that took over from another may name it."""
    extents = ExtentMap()
    layer_log.writer.write(extents, 1, 0, b"flushed.", 0)
    length = layer_log.writer.flush()
    layer_log.writer.write(extents, 1, 0, b"gathered", 0)
    whole = ExtentMap()
    whole.write(0, 8 + 64 + 8, source(0, length - 8))
    found = read_all(whole, [layer_log.writer])
    assert (found[:8], found[-8:]) == (b"flushed.", b"gathered")
    layer_log.writer.flush()
    assert read_all(whole, [layer_log.writer]) == found


@pytest.mark.parametrize(
    "piece",
    [
        (0, 10, source(0, 200)),
        (0, 10, source(0, 128 + 64)),
        (0, 10, source(1, 128)),
        (0, 2**47, source(0, 128)),
        (0, 10, source(0, 2**48 - 20)),
        (1, 10, IMAGE),
    ],
)
def test_an_extent_that_names_what_is_not_there(tmp_path: Path, layer_log: Log, piece: tuple[int, int, int]) -> None:
    layer_log.writer.write(ExtentMap(), 1, 0, b"12345678", 0)
    fd, content = content_of(tmp_path, b"i" * 10)
    extents = ExtentMap()
    extents.write(*piece)
    for _ in range(2):
        with pytest.raises(CorruptError, match="a file needs"):
            read(extents, [layer_log.writer], content, 0, bytearray(100))
        layer_log.writer.flush()
    with pytest.raises(CorruptError, match="a file needs"):
        read(extents, [], None, 0, bytearray(100))
    os.close(fd)


def test_a_log_that_is_shorter_than_it_was(layer_log: Log) -> None:
    extents = ExtentMap()
    for i in range(3):
        layer_log.writer.write(extents, 1, 4096 * i, bytes(4096), 0)
    layer_log.writer.flush()
    os.ftruncate(layer_log.fd, 128 + 64 + 4096 + 64 + 10)
    with pytest.raises(CorruptError, match="ends at byte 4362"):
        read_all(extents, [layer_log.writer])


def test_what_reading_refuses(layer_log: Log) -> None:
    extents = ExtentMap()
    layer_log.writer.write(extents, 1, 0, b"x", 0)
    with pytest.raises(InvalidInput):
        read(extents, [layer_log.writer], None, -1, bytearray(1))
    with pytest.raises(BufferError):
        read(extents, [layer_log.writer], None, 0, b"x")  # type: ignore[arg-type, unused-ignore]
    with pytest.raises(TypeError):
        read(extents, [layer_log], None, 0, bytearray(1))  # type: ignore[list-item]
    assert read(extents, [layer_log.writer], None, 1, bytearray(1)) == 0
    assert read(extents, [layer_log.writer], None, 2**63 - 1, bytearray(1)) == 0
    assert read(extents, [], None, 0, bytearray()) == 0


def test_a_descriptor_that_is_closed(tmp_path: Path) -> None:
    extents = ExtentMap(5)
    with pytest.raises(OSError, match="cannot read the content"):
        read(extents, [], Content(999_999, 0, 5), 0, bytearray(5))


def test_a_sequence_of_small_writes_is_read_in_few_system_calls(layer_log: Log) -> None:
    """Counted by the kernel: syscr of /proc/self/io."""
    extents = ExtentMap()
    data = random.Random(1).randbytes(1000 * 4096)
    for at in range(0, len(data), 4096):
        layer_log.writer.write(extents, 1, at, data[at : at + 4096], 0)
    layer_log.writer.flush()

    def reads() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(dict(line.split(": ") for line in lines)["syscr"])

    before = reads()
    found = read_all(extents, [layer_log.writer])
    calls = reads() - before
    assert found == data
    assert calls < 50


# Writing


def test_data_is_gathered_and_metadata_is_not(layer_log: Log) -> None:
    extents = ExtentMap()
    layer_log.writer.write(extents, 1, 0, bytes(4096), 0)
    assert (layer_log.writer.length, layer_log.writer.end) == (128, 128 + 64 + 4096)
    assert len(layer_log.bytes()) == 128
    length = layer_log.writer.append([Record(log.TRUNCATE, 1, value=5)])
    assert length == layer_log.writer.length == layer_log.writer.end == len(layer_log.bytes())
    for i in range(300):
        layer_log.writer.write(extents, 1, i * 4096, bytes(4096), 0)
    assert length < layer_log.writer.length < layer_log.writer.end
    assert layer_log.writer.end - layer_log.writer.length <= MIB


def test_much_data_is_several_records(layer_log: Log) -> None:
    extents = ExtentMap()
    size = 2 * log.MAX_PAYLOAD_BYTES + 5
    with mmap.mmap(-1, size) as data:
        data[size - 5 :] = b"12345"
        data[log.MAX_PAYLOAD_BYTES - 1] = 9
        layer_log.writer.write(extents, 1, 3, data, 0)
        assert [length for _, length, _ in extents] == [3, log.MAX_PAYLOAD_BYTES, log.MAX_PAYLOAD_BYTES, 5]
        buffer = bytearray(size)
        assert read(extents, [layer_log.writer], None, 3, buffer) == size
        assert buffer == data[:]
    layer_log.writer.flush()
    with mmap.mmap(layer_log.fd, 0, access=mmap.ACCESS_READ) as mapped:
        reader = LogReader(mapped)
        assert [record.payload_length for record in reader] == [log.MAX_PAYLOAD_BYTES] * 2 + [5]
        assert reader.reason == ""
        del reader


def test_what_writing_refuses(layer_log: Log) -> None:
    extents = ExtentMap(5)
    writer = layer_log.writer
    with pytest.raises(InvalidInput):
        writer.write(extents, 1, -1, b"x", 0)
    with pytest.raises(OverflowError):
        writer.write(extents, 1, 2**63 - 2, b"xx", 0)
    with pytest.raises(OverflowError):
        writer.write(extents, 1, 0, b"xx", 2**63)
    with pytest.raises(OverflowError):
        writer.write(extents, -1, 0, b"xx", 0)
    with pytest.raises(BufferError):
        writer.write(extents, 1, 0, memoryview(b"1234")[::2], 0)
    extents.freeze()
    for data in (b"x", bytes(MIB)):
        with pytest.raises(Conflict):
            writer.write(extents, 1, 0, data, 0)
    assert list(extents) == [(0, 5, IMAGE)]
    assert writer.length == writer.end == len(layer_log.bytes()) == 128
    writer.write(extents.clone(), 1, 2**63 - 1, b"", 0)


@pytest.mark.parametrize("arguments", [(128, ID[:8], 0), (127, ID, 0), (128, ID, 65535)])
def test_a_writer_of_no_log(arguments: tuple[int, bytes, int]) -> None:
    with pytest.raises(InvalidInput):
        LogWriter(0, *arguments)


@contextmanager
def no_room_after(size: int) -> Iterator[None]:
    """The kernel writes no byte of a file from `size` on, and says so (EFBIG), as a full disk does (ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def fill(writer: LogWriter, extents: ExtentMap) -> None:
    for i in range(1000):
        writer.write(extents, 1, i * 4096, bytes([i % 256]) * 4096, 0)


@pytest.mark.parametrize(
    "do",
    [
        lambda writer, extents: writer.flush(),
        lambda writer, extents: writer.sync(),
        lambda writer, extents: writer.append([Record(log.TRUNCATE, 1, value=5)]),
        lambda writer, extents: writer.write(extents, 1, 0, bytes(MIB), 0),
        fill,
    ],
)
def test_a_full_disk_takes_nothing_away(layer_log: Log, do: Callable[[LogWriter, ExtentMap], object]) -> None:
    extents = ExtentMap()
    writer = layer_log.writer
    data = random.Random(1).randbytes(100_000)
    writer.write(extents, 1, 0, data[:50_000], 0)
    length = writer.flush()
    writer.write(extents, 1, 50_000, data[50_000:], 0)
    with no_room_after(length + 20_000), pytest.raises(OSError, match="free space and try again"):
        do(writer, extents)
    assert writer.length == len(layer_log.bytes()) == length
    found = read_all(extents, [writer])
    if do is not fill:
        assert found == data
    layer_log.writer.flush()
    assert read_all(extents, [writer]) == found
    reader = LogReader(layer_log.bytes())
    assert (reader.end, reader.reason) == (writer.length, "")
    assert {record.type for record in reader} == {log.WRITE}
    assert replayed(layer_log.bytes(), [LogFile(layer_log.fd, writer.length)], 0, None) == found


# Threads


def test_readers_beside_a_writer(layer_log: Log) -> None:
    """A block is 4,096 times the same byte, whenever it is read."""
    extents = ExtentMap()
    blocks, stop = 64, threading.Event()
    for i in range(blocks):
        layer_log.writer.write(extents, 1, 4096 * i, bytes(4096), 0)
    failures: list[object] = []

    def read_blocks(seed: int) -> None:
        rng, buffer = random.Random(seed), bytearray(4096)
        while not stop.is_set():
            n = read(extents, [layer_log.writer], None, 4096 * rng.randrange(blocks), buffer)
            if n != 4096 or buffer != bytes([buffer[0]]) * 4096:
                failures.append((n, bytes(buffer[:8])))

    threads = [threading.Thread(target=read_blocks, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    rng = random.Random(9)
    for i in range(5000):
        layer_log.writer.write(extents, 1, 4096 * rng.randrange(blocks), bytes([i % 256]) * 4096, 0)
        if i % 100 == 0:
            layer_log.writer.flush()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_map_that_is_frozen_while_its_data_is_written(layer_log: Log) -> None:
    """What does not come into the map does not stay in the log either."""
    data = bytes(16 * MIB)
    begun = threading.Event()

    def freeze(extents: ExtentMap) -> None:
        begun.wait()
        while os.fstat(layer_log.fd).st_size == size:
            pass
        extents.freeze()

    for _ in range(3):
        size = layer_log.writer.length
        extents = ExtentMap()
        thread = threading.Thread(target=freeze, args=(extents,))
        thread.start()
        begun.set()
        try:
            layer_log.writer.write(extents, 1, 0, data, 0)
        except Conflict:
            assert (layer_log.writer.length, extents.size) == (size, 0)
        else:
            assert (layer_log.writer.length, extents.size) == (size + 64 + len(data), len(data))
        # The other thread looks for a change of the size.
        layer_log.writer.append([Record(log.TRUNCATE, 1)])
        thread.join()
    assert LogReader(layer_log.bytes()).end == layer_log.writer.length == os.fstat(layer_log.fd).st_size


def test_writers_of_different_files_share_a_log(layer_log: Log) -> None:
    maps = [ExtentMap() for _ in range(4)]

    def write(inode: int) -> None:
        for i in range(300):
            layer_log.writer.write(maps[inode], inode, 5000 * i, bytes([inode]) * 5000, 0)
            if i % 50 == 0:
                layer_log.writer.append([Record(log.ATTRIBUTES, inode, value=log.SET_UID, uid=i)])
                layer_log.writer.write(maps[inode], inode, 0, bytes([inode]) * MIB, 0)

    threads = [threading.Thread(target=write, args=(inode,)) for inode in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    layer_log.writer.flush()
    for inode, extents in enumerate(maps):
        assert read_all(extents, [layer_log.writer]) == bytes([inode]) * 1_500_000
    reader = LogReader(layer_log.bytes())
    assert reader.reason == ""
    assert sum(record.type == log.ATTRIBUTES for record in reader) == 24


def test_zeros_need_no_log() -> None:
    extents = ExtentMap()
    extents.write(0, 100, ZERO)
    buffer = bytearray(b"\xff" * 50)
    assert read(extents, [], None, 60, buffer) == 40
    assert buffer == bytes(40) + b"\xff" * 10
