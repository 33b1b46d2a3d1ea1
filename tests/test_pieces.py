"""Writing all of a piece, where a call takes only some of it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from cases import case

from layerstore.store.pieces import pieces_between, write_all, write_at

DATA = bytes(range(256))


def some_of(taken: bytearray) -> Callable[[memoryview], int]:
    """A call that takes 100 bytes at a time."""

    def write(data: memoryview) -> int:
        taken.extend(data[:100])
        return min(len(data), 100)

    return write


@pytest.mark.parametrize("data", [DATA, memoryview(DATA).cast("I"), bytearray(DATA)], ids=["bytes", "words", "array"])
def test_all_of_it_is_written(data: bytes | memoryview | bytearray) -> None:
    taken = bytearray()
    write_all(some_of(taken), data)
    assert taken == DATA


def test_what_takes_nothing_for_now_is_not_asked_again() -> None:
    with pytest.raises(BlockingIOError):
        write_all(lambda _: None, DATA)
    write_all(lambda _: None, b"")


def test_all_of_it_is_written_at_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, position: whole(fd, data[:100], position))
    with open(tmp_path / "file", "wb", 0) as file:
        write_at(file.fileno(), memoryview(DATA).cast("I"), 5)
        assert file.tell() == 0
    assert (tmp_path / "file").read_bytes() == bytes(5) + DATA


@case("a file that becomes shorter while it is read", "an error, and no loop")
def test_a_file_that_ends_too_soon_is_an_error_and_no_loop(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", 0) as file:
        file.write(DATA)
        pieces = pieces_between(file.fileno(), 0, 2 << 20)
        assert next(pieces) == DATA
        with pytest.raises(OSError, match=r"ends at byte 256.*try again") as caught:
            next(pieces)
        assert caught.value.filename == str(tmp_path / "file")
