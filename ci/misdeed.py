"""Has the core do what a sanitizer must see, for ci/sanitized, which goes on only where this fails. `address`: read one
byte past the end of an object of Python. `thread`: write to memory that another thread reads."""

import ctypes
import sys
import threading

from layerstore._core.extent_file import read
from layerstore._core.extents import ExtentMap
from layerstore._core.hashing import blake3

SIZE = 100  # of what Python would not take from malloc by itself


def read_too_far() -> None:
    """A bytes object ends in a NUL that counts as its own; the byte behind that is nobody's. Loads of vectors with a
    mask are built into the compiler, which does not have them checked: the portable kernel has none."""
    data = bytes(SIZE)
    begin = id(data) + bytes.__basicsize__ - 1
    blake3((ctypes.c_ubyte * (SIZE + 2)).from_address(begin), "portable")


def race() -> None:
    """One thread fills a buffer with zeros while another hashes it, neither with the GIL."""
    zeros = ExtentMap()
    buffer = bytearray(8 << 20)
    zeros.truncate(len(buffer))
    threads = [
        threading.Thread(target=lambda: [blake3(buffer) for _ in range(20)]),
        threading.Thread(target=lambda: [read(zeros, [], None, 0, buffer) for _ in range(20)]),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    {"address": read_too_far, "thread": race}[sys.argv[1]]()
