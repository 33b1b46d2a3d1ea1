"""What bench/bench_fork.py judges forks by: bench/one_moment.py tells a tree of one moment from others."""

import itertools
import shutil
from pathlib import Path

import pytest

from bench import one_moment
from bench.one_moment import EACH, HALF_BYTES, NUMBER, PLACES


def write(top: Path, number: int) -> None:
    """What the program does for the write of that number."""
    if number % EACH == 0:
        for at in top.glob("at-*"):
            at.unlink()
        (top / f"at-{number}").touch()
    place = number % PLACES
    with (top / one_moment.path_of(place)).open("r+b") as file:
        file.seek(place % 2 * HALF_BYTES)
        file.write(NUMBER.pack(number) * (HALF_BYTES // NUMBER.size))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """After two rounds."""
    top = tmp_path / "top"
    for place in range(PLACES):
        (top / one_moment.path_of(place)).parent.mkdir(parents=True, exist_ok=True)
        (top / one_moment.path_of(place)).touch()
    for number in range(2 * PLACES):
        write(top, number)
    return top


def test_every_moment_is_one(written: Path) -> None:
    assert one_moment.torn(written) is None
    for number in range(2 * PLACES, 2 * PLACES + EACH + 3):
        write(written, number)
        if number % 10 == 0 or number % EACH in (1, EACH - 1):
            assert one_moment.torn(written) is None
    last = 3 * PLACES - 1
    for number in range(2 * PLACES + EACH + 3, last + 1):
        write(written, number)
    (written / f"at-{last + 1 - EACH}").rename(written / f"at-{last + 1}")
    assert one_moment.torn(written) is None  # the rename is done, and the write after it is not


def test_a_copy_that_is_made_while_it_is_written_is_torn(written: Path, tmp_path: Path) -> None:
    copy, numbers = tmp_path / "copy", itertools.count(2 * PLACES)
    for place in range(0, PLACES, 2):
        path = one_moment.path_of(place)
        (copy / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(written / path, copy / path)
        for number in itertools.islice(numbers, 3):
            write(written, number)
    (copy / next(written.glob("at-*")).name).touch()
    assert "not of one moment" in str(one_moment.torn(copy))


def test_what_is_not_of_one_moment_is_told(written: Path) -> None:
    path = written / one_moment.path_of(70)
    whole = path.read_bytes()
    path.write_bytes(NUMBER.pack(1070) * (len(whole) // NUMBER.size))
    assert "belongs elsewhere" in str(one_moment.torn(written))
    path.write_bytes(whole[:5] + b"x" + whole[6:])
    assert "of several writes" in str(one_moment.torn(written))
    path.write_bytes(NUMBER.pack(70) * (HALF_BYTES // NUMBER.size) + whole[HALF_BYTES:])
    write(written, 2 * PLACES)
    assert "not of one moment" in str(one_moment.torn(written))
    path.write_bytes(whole)
    assert one_moment.torn(written) is None
    (written / f"at-{2 * PLACES}").rename(written / "at-0")
    assert "there is ['at-0']" in str(one_moment.torn(written))
