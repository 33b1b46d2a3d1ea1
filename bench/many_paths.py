"""A layer of millions of made-up paths, shaped like a /usr/lib: a tar of headers, made as fast as it is read.

Names have 8 to 24 bytes and directories 8 to 200 entries, of which a few are directories again. The same seed gives the
same tar.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)
SPAN_ENTRIES = 32_768
SHORTEST, LONGEST = 8, 24
FEWEST, MOST = 8, 200
SUBDIRECTORIES = 1 / 12
"""Of the entries of a directory: 10 million paths are 5 to 6 levels deep below usr/lib."""
DEEPEST = 130
"""Bytes of a directory's path in which there is none any more: a header has 155 for it."""
# Where a ustar header has its fields (POSIX.1-2024, pax).
NAME, CHECKSUM, TYPE, PREFIX = 0, 148, 156, 345
LETTERS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz0123456789_-", dtype=np.uint8)


def spans(count: int, seed: int = 3) -> Iterator[np.ndarray]:
    """The tar of a layer of `count` entries without its `END`, in spans of up to `SPAN_ENTRIES` headers, a row each."""
    random = np.random.default_rng(seed)
    directories: deque[bytes] = deque([b"usr/lib"])
    left = count
    while left:
        sizes: list[int] = []
        prefixes: list[bytes] = []
        while (room := min(left, SPAN_ENTRIES) - sum(sizes)) and directories:
            sizes.append(min(int(random.integers(FEWEST, MOST, endpoint=True)), room))
            prefixes.append(directories.popleft())
        names, lengths = random_names(random, sum(sizes))
        is_directory = random.random(len(names)) < SUBDIRECTORIES
        parents = np.repeat(np.arange(len(sizes)), sizes)
        # The first of each is one for certain, so that the tree never ends early.
        is_directory[np.cumsum([0, *sizes[:-1]])] = True
        is_directory &= (np.array([len(prefix) for prefix in prefixes]) < DEEPEST)[parents]
        for i in np.flatnonzero(is_directory):
            directories.append(prefixes[parents[i]] + b"/" + names[i, : lengths[i]].tobytes())
        left -= len(names)
        yield headers(names, is_directory, np.array(prefixes, dtype="S155")[parents])


def random_names(random: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    lengths = random.integers(SHORTEST, LONGEST, count, endpoint=True)
    names = LETTERS[random.integers(0, len(LETTERS), (count, LONGEST))]
    names[np.arange(LONGEST) >= lengths[:, None]] = 0
    return names, lengths


def headers(names: np.ndarray, is_directory: np.ndarray, prefixes: np.ndarray) -> np.ndarray:
    blocks = np.tile(template(), (len(names), 1))
    blocks[:, NAME : NAME + LONGEST] = names
    blocks[:, TYPE] = np.where(is_directory, ord("5"), ord("0"))
    blocks[:, PREFIX : PREFIX + 155] = prefixes.view(np.uint8).reshape(len(names), 155)
    sums = blocks.sum(axis=1, dtype=np.int64)
    for digit in range(6):
        blocks[:, CHECKSUM + digit] = ord("0") + (sums >> 3 * (5 - digit) & 7)
    blocks[:, CHECKSUM + 6] = 0
    return blocks


def template() -> np.ndarray:
    """The header of an empty file without a name, its checksum blank."""
    fields = {100: b"0000755", 108: b"0000000", 116: b"0000000", 124: b"00000000000", 136: b"15012345670"}
    block = bytearray(BLOCK_BYTES)
    for at, value in {**fields, CHECKSUM: b" " * 8, 257: b"ustar\0" + b"00"}.items():
        block[at : at + len(value)] = value
    return np.frombuffer(bytes(block), dtype=np.uint8)
