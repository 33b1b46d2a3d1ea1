"""Writable layers: extents and their logs, random blocks and replay. And making and mounting a container."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SEED, Debian
from images import Image, docker_files, tar_of

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

BLOCK = bytes(range(256)) * 16
BLOCKS = 16384
HEADER_ID = bytes(range(16))
OPERATIONS = 4000
ROUNDS = 15
FILE = "/etc/written"


def offsets() -> list[int]:
    choice = random.Random(SEED)
    return [choice.randrange(BLOCKS) * len(BLOCK) for _ in range(OPERATIONS)]


@pytest.fixture
def store(debian: Debian, tmp_path: Path) -> Iterator[Any]:
    """A store with the image "debian:1"."""
    from layerstore import Store

    with Store(tmp_path / "store", create=True) as made:
        made.load(io.BytesIO(tar_of(docker_files([Image([debian.tar], ["debian:1"])]))))
        yield made
        made.remove(made.containers(), force=True)


def test_extents_random_writes(benchmark: BenchmarkFixture) -> None:
    from layerstore._core.extents import ExtentMap, source

    starts, length = offsets(), len(BLOCK)
    sources = [source(0, 4096 + number * length) for number in range(OPERATIONS)]

    def write() -> None:
        extents = ExtentMap()
        for start, where in zip(starts, sources, strict=True):
            extents.write(start, length, where)

    benchmark(write)


def test_extents_random_lookups(benchmark: BenchmarkFixture) -> None:
    from layerstore._core.extents import ExtentMap, source

    extents, starts, length = ExtentMap(), offsets(), len(BLOCK)
    for number, start in enumerate(starts):
        extents.write(start, length, source(0, 4096 + number * length))

    def look_up() -> None:
        for start in starts:
            extents.lookup(start, length)

    benchmark(look_up)


def made_log(fd: int) -> tuple[Any, Any]:
    """An empty log in a file, and the extents of the one file that it will write."""
    from layerstore._core.extent_io import LogWriter
    from layerstore._core.extents import ExtentMap
    from layerstore._core.log import HEADER_BYTES, Header

    os.ftruncate(fd, 0)
    os.pwrite(fd, Header(HEADER_ID, bytes(32)).pack(), 0)
    return LogWriter(fd, HEADER_BYTES, HEADER_ID, 0), ExtentMap()


def fill(log: Any, extents: Any) -> None:
    for number, start in enumerate(offsets()):
        log.write(extents, 1, start, BLOCK, number)
    log.flush()


def test_log_random_writes(benchmark: BenchmarkFixture, large_file: int) -> None:
    benchmark.pedantic(fill, setup=lambda: (made_log(large_file), {}), rounds=ROUNDS, warmup_rounds=1)


def test_log_random_reads(benchmark: BenchmarkFixture, large_file: int) -> None:
    from layerstore._core.extent_file import read

    log, extents = made_log(large_file)
    fill(log, extents)
    starts, buffer = offsets(), bytearray(len(BLOCK))

    def read_all() -> None:
        for start in starts:
            read(extents, [log], None, start, buffer)

    benchmark(read_all)


def test_log_replay(benchmark: BenchmarkFixture, store: Any) -> None:
    """The first look into a container of the extent driver, by a process that opens its store."""
    from layerstore import Store

    name = store.create("debian:1", driver="extent").id
    with store.container(name).open(FILE, "w+b", buffering=0) as file:
        for start in offsets():
            file.seek(start)
            file.write(BLOCK)
        file.flush()
    opened: list[Any] = []

    def open_store() -> tuple[tuple[Any], dict[str, Any]]:
        while opened:
            opened.pop().close()
        opened.append(Store(store.root))
        return (opened[0].container(name),), {}

    def replay(container: Any) -> None:
        with container.open(FILE, "rb") as file:
            assert file.seek(0, os.SEEK_END) > len(BLOCK)

    benchmark.pedantic(replay, setup=open_store, rounds=ROUNDS, warmup_rounds=1)
    opened.pop().close()


def test_create_and_mount(benchmark: BenchmarkFixture, store: Any) -> None:
    from layerstore._core import mount

    if os.geteuid() != 0 or not mount.features().may_mount:
        pytest.skip("needs root, and a right to mount")

    def make() -> None:
        made.append(store.create("debian:1", volatile=True))
        made[-1].mount()

    def remove() -> None:
        while len(made) > 1:
            made.pop().remove(force=True)

    made: list[Any] = []
    # The first keeps the image's tree mounted.
    make()
    benchmark.pedantic(make, setup=remove, rounds=ROUNDS, warmup_rounds=1)
