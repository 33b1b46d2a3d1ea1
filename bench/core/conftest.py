"""Inputs of the benchmarks of the core: a tree that looks like a Debian layer, and stacks of layers made of it.

A fixed seed makes them, so that two revisions are given the same bytes. They are made outside of what is timed.
"""

from __future__ import annotations

import functools
import io
import os
import random
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# At the end: `layerstore` is of the tree that PYTHONPATH names, when it names one.
sys.path.append(str(Path(__file__).parent.parent.parent))

from bench import stacks

SEED = 15
FILES = 3000
MEDIAN_BYTES, SPREAD, LARGEST_BYTES = 2500, 1.6, 4 << 20
"""Of the files' sizes: log-normal, as those of a Debian root are."""
DIRECTORIES = (
    "usr/bin", "usr/lib/x86_64-linux-gnu", "usr/share/man/man1", "var/lib/dpkg/info", "etc/init.d",
    *(f"usr/share/doc/package{number}" for number in range(200)),
    *(f"usr/share/locale/l{number}/LC_MESSAGES" for number in range(50)),
    *(f"usr/lib/python3/dist-packages/module{number}" for number in range(50)),
)  # fmt: skip
HASH_KEY = bytes(range(16))


def pytest_configure() -> None:
    """Whoever measures another tree's package must not be given this one's."""
    tree = os.environ.get("LAYERSTORE_PERF_TREE")
    if tree is None:
        return
    import layerstore

    if not Path(layerstore.__file__).is_relative_to(tree):
        raise pytest.UsageError(f"layerstore is {layerstore.__file__}, and not of {tree}")


@dataclass(frozen=True)
class Debian:
    """The layer: its tar, the contents of its files, and its entries for `bench.stacks`."""

    tar: bytes
    contents: list[bytes]
    entries: stacks.Entries

    @property
    def paths(self) -> list[bytes]:
        """All paths, and as many that are missing, in any order."""
        paths = [os.fsencode(path + end) for path in self.entries for end in ("", stacks.BACKUP)]
        random.Random(SEED).shuffle(paths)
        return paths


@pytest.fixture(scope="session")
def debian() -> Debian:
    choice = random.Random(SEED)
    entries: stacks.Entries = {}
    for directory in DIRECTORIES:
        for path in (directory, *stacks.parents_of(directory)):
            entries[path] = tarfile.TarInfo(path)
            entries[path].type, entries[path].mode = tarfile.DIRTYPE, 0o755
    contents = {}
    for number in range(FILES):
        path = f"{choice.choice(DIRECTORIES)}/file{number}"
        entry = entries[path] = tarfile.TarInfo(path)
        entry.mtime = 1_700_000_000 + number
        if number % 10 == 9:
            entry.type, entry.linkname = tarfile.SYMTYPE, f"file{number - 1}"
        else:
            size = int(choice.lognormvariate(0, SPREAD) * MEDIAN_BYTES)
            contents[path] = choice.randbytes(min(size, LARGEST_BYTES))
            entry.size = len(contents[path])
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(entries):
            tar.addfile(entries[path], io.BytesIO(contents.get(path, b"")))
    by_path = {path: stacks.stand_in(entry, path) for path, entry in entries.items()}
    return Debian(out.getvalue(), list(contents.values()), by_path)


@pytest.fixture(scope="session")
def layers(debian: Debian, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[object]]:
    """The layer dealt over so many, the indexes of which are given."""
    directory = tmp_path_factory.mktemp("layers")

    @functools.cache
    def dealt(depth: int) -> list[object]:
        from layerstore._core.index import Index
        from layerstore._core.layer import build_layer

        tars = (stacks.write_tar(layer, directory / "layer.tar") for layer in stacks.deal(debian.entries, depth))
        return [Index(build_layer(tar.read_bytes(), HASH_KEY)[0]) for tar in tars]

    return dealt


@pytest.fixture
def large_file(tmp_path: Path) -> Iterator[int]:
    """A file without a name, open to read and to write."""
    fd = os.open(tmp_path, os.O_TMPFILE | os.O_RDWR, 0o600)
    yield fd
    os.close(fd)
