"""What the tests of hostile input share: cases, a store with something beside it to be left alone, ways into the store.

A case is a test with the mark of `cases.case`: what is put in, what is done with it, and the bug that it stands for.
"""

import contextlib
import gzip
import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import images
import pytest
import tarbytes as tb
from cases import case
from images import Image

from layerstore import Store

Given = tuple[bytes, type[Exception], str]


def refused(name: str, data: bytes, error: type[Exception], told: str, stands_for: str = "") -> Any:
    """A parameter of a test of what is refused: with which exception, and what its message says (a pattern)."""
    return pytest.param((data, error, told), id=name, marks=case(name, "refused", stands_for))


def layer(*parts: bytes) -> bytes:
    """A layer of these parts and an honest file."""
    return tb.archive(tb.member(b"honest", b"h\n"), *parts)


class Pipe(io.RawIOBase):
    """A stream that cannot be sought in."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._file.read(min(len(buffer), 65_536))
        buffer[: len(data)] = data
        return len(data)


def tree_of(root: Path, leave: Path) -> dict[str, tuple[object, ...]]:
    """All that is below a directory but `leave`: type, mode, size, time and content of each."""
    found: dict[str, tuple[object, ...]] = {}
    for top, directories, files in os.walk(root):
        directories[:] = [name for name in directories if Path(top, name) != leave]
        for name in directories + files:
            path = os.path.join(top, name)
            status = os.lstat(path)
            is_file = stat.S_ISREG(status.st_mode)
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if is_file else ""
            time = status.st_mtime_ns if is_file else 0
            found[path] = status.st_mode, status.st_size if is_file else 0, time, content
    return found


class Place:
    """A store, and what is beside it: `outside`, and `cwd`, where the test is."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.outside = top / "outside"
        self.cwd = top / "cwd"
        for directory in (self.outside, self.cwd):
            (directory / "etc").mkdir(parents=True)
            (directory / "etc" / "passwd").write_text("canary:x:0:0::/:/bin/sh\n")
        self.store = Store(top / "store", create=True)
        self.base = Image([tb.archive(tb.directory(b"etc"), tb.member(b"etc/passwd", b"lower\n"))], ["base:1"])
        self.store.load(io.BytesIO(images.tar_of(images.docker_files([self.base]))))
        self._number = 0
        self._known: tuple[object, ...] | None = None

    def new_path(self) -> Path:
        """A path for what a test brings, not among what is watched."""
        self._number += 1
        directory = self.top.parent / f"{self.top.name}-given"
        directory.mkdir(exist_ok=True)
        return directory / str(self._number)

    def state(self) -> tuple[object, ...]:
        """All that a hostile input must leave as it is."""
        return tree_of(self.top, self.top / "store"), *images.store_state(self.top / "store")

    @contextlib.contextmanager
    def untouched(self) -> Iterator[None]:
        """In the block nothing is stored, and nothing outside of the store is touched."""
        before = self.state() if self._known is None else self._known
        yield
        self._known = self.state()
        assert self._known == before

    def changed(self) -> None:
        """What is stored was changed by a test since it was last looked at."""
        self._known = None

    def refuses(self, attempt: Callable[[], object], error: type[Exception], told: str) -> str:
        """The attempt is refused with that error, of which the message is fit to be printed. Returns it."""
        with self.untouched():
            return raises(attempt, error, told)

    def drop(self, name: str) -> None:
        """Remove an image and what it alone needs."""
        self.store.remove_image(name)
        self.store.collect_garbage()


def ways(place: Place, data: bytes, base: bool = False) -> Iterator[tuple[str, Callable[[], object]]]:
    """The ways into the store for the tar of a layer, each with a name."""
    image = Image([*place.base.layers, data] if base else [data], ["hostile:1"])
    files = images.oci_files([image])
    if not base:
        yield "import of a stream", lambda: place.store.import_rootfs(source(Pipe(data)), "hostile:1")
        zipped = gzip.compress(data, 1)
        yield "import of gzip", lambda: place.store.import_rootfs(source(io.BytesIO(zipped)), "hostile:1")
    archive = images.tar_of(images.docker_files([image]), last="manifest.json")
    yield "load of a file", lambda: place.store.load(io.BytesIO(archive))
    yield "load of a stream", lambda: place.store.load(source(Pipe(archive)))
    directory = place.new_path()
    images.write_directory(files, directory)
    yield "load of a directory", lambda: place.store.load(directory)


def source(file: Any) -> BinaryIO:
    found: BinaryIO = file
    return found


def raises(attempt: Callable[[], object], error: type[Exception], told: str) -> str:
    """The attempt raises that error, of which the message is fit to be printed. Returns it."""
    with pytest.raises(error, match=f"(?s){told}") as caught:
        attempt()
    message = str(caught.value)
    assert all(c.isprintable() for c in message), message
    return message


def is_refused(place: Place, given: Given) -> None:
    """Every way into the store refuses a layer."""
    data, error, told = given
    with place.untouched():
        for _, attempt in ways(place, data):
            raises(attempt, error, told)


@contextlib.contextmanager
def contained(place: Place, *layers: bytes) -> Iterator[Any]:
    """An image of the base's layer and these, in the block. Nothing outside is touched, and its layers come back bit
    for bit."""
    before = tree_of(place.top, place.top / "store")
    image = Image([*place.base.layers, *layers], ["hostile:1"])
    (loaded,) = place.store.load(io.BytesIO(images.tar_of(images.docker_files([image]))))
    try:
        for diff_id, data in zip(loaded.diff_ids, image.layers, strict=True):
            assert b"".join(loaded.layer_tar(diff_id)) == data
        yield loaded
    finally:
        place.store.remove(place.store.containers(), force=True)
        place.drop("hostile:1")
        place.changed()
    assert tree_of(place.top, place.top / "store") == before
