"""Forks of a container that runs and writes: whether they are of one moment, and how long it stands still for one.

This file is also the program that writes, run by the image's own Python. Each of its writes has a number, and goes to
the place with that number, all places taken in turn: so they are of one moment if the least and the greatest number of
all places are less than a round apart. Each hundredth write comes after a file was renamed to that number: the tree is
of that moment, too.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path

FILES, PER_DIRECTORY = 1000, 100
HALF_BYTES = 1024
PLACES = 2 * FILES
"""Each file has two halves, written one after the other."""
EACH = 100
GAP, NUMBER = struct.Struct("<d"), struct.Struct("<Q")


def path_of(place):  # type: ignore[no-untyped-def]
    file = place // 2
    return f"{file // PER_DIRECTORY}/{file}"


def write_for_ever(top, told):  # type: ignore[no-untyped-def]
    """Write below a directory. A file that is shared has the longest time between two writes, which others may set to
    0, and how many writes there were."""
    fds = []
    for place in range(0, PLACES, 2):
        path = Path(top, path_of(place))
        path.parent.mkdir(parents=True, exist_ok=True)
        fds.append(os.open(path, os.O_RDWR | os.O_CREAT))
    at = Path(top, "at-0")
    at.touch()
    shared = open_told(told)
    number, before = 0, time.monotonic()
    while True:
        if number % EACH == 0:
            at = at.rename(f"{top}/at-{number}")
        place = number % PLACES
        os.pwrite(fds[place // 2], NUMBER.pack(number) * (HALF_BYTES // NUMBER.size), place % 2 * HALF_BYTES)
        now = time.monotonic()
        if now - before > GAP.unpack_from(shared)[0]:
            GAP.pack_into(shared, 0, now - before)
        before = now
        number += 1
        NUMBER.pack_into(shared, GAP.size, number)


def open_told(path):  # type: ignore[no-untyped-def]
    with open(path, "r+b") as file:
        return mmap.mmap(file.fileno(), mmap.PAGESIZE)


def torn(top):  # type: ignore[no-untyped-def]
    """What is not of one moment below a directory; None where all is."""
    numbers = []
    for place in range(PLACES):
        with open(f"{top}/{path_of(place)}", "rb") as file:
            file.seek(place % 2 * HALF_BYTES)
            data = file.read(HALF_BYTES)
        if data != data[: NUMBER.size] * (HALF_BYTES // NUMBER.size):
            return f"a half of {path_of(place)} is of several writes"
        numbers.append(NUMBER.unpack_from(data)[0])
        if numbers[-1] % PLACES != place:
            return f"{path_of(place)} has what belongs elsewhere"
    last = max(numbers)
    if last - min(numbers) >= PLACES:
        return f"writes {min(numbers)} and {last} are not of one moment"
    names = [path.name for path in Path(top).glob("at-*")]
    # The last write's own hundred, or the next one, of which no write is done.
    if names not in ([f"at-{last - last % EACH}"], [f"at-{last + 1}"] if (last + 1) % EACH == 0 else None):
        return f"after write {last} there is {names}"
    return None


if __name__ == "__main__":
    write_for_ever(*sys.argv[1:])
