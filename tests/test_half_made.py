"""Stores whose making was killed: nothing is lost, so any command finishes it, and a check finds nothing wrong."""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import case
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from pools import POOL_BYTES, needs_mkfs, needs_root
from test_cli import Cli

from layerstore import Store, check_store
from layerstore.errors import NotFound
from layerstore.store.layout import Layout
from layerstore.store.pool import Pool

CALLS = ("mkdir", "open", "chmod", "rename", "fsync", "close")
"""What the making changes the directory by, and what may come between that."""
IMAGE = Image([write_tar([Entry("file", "f", data=b"1")])], ["app:1"])


def die_at(number: int) -> None:
    """End this process before its n-th call of `CALLS`."""
    left = number

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os._exit(9)
            return real(*arguments, **named)

        return call

    for name in CALLS:
        setattr(os, name, counted(getattr(os, name)))


def killed_at(number: int, root: Path) -> bool:
    """Make a store in a process that is killed at its n-th call; whether it was."""
    child = os.fork()
    if not child:
        die_at(number)
        Layout(root).create()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def steps(directory: Path) -> int:
    """How many calls the making of a store takes."""
    low, high = 1, 4096
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if killed_at(middle, directory / f"steps{middle}") else (low, middle)
    return low - 1


def has_nothing(root: Path) -> bool:
    return not root.exists() or not os.listdir(root)


@case("a store whose making was killed", "finished by any command; a check finds nothing wrong")
def test_any_command_finishes_it(tmp_path: Path) -> None:
    count = steps(tmp_path)
    assert count > 25
    for at, number in enumerate(range(1, count + 1)):
        use = (check, images, load)[at % 3]
        root = tmp_path / str(number)
        assert killed_at(number, root)
        if has_nothing(root) and use is not load:
            with pytest.raises(NotFound, match="there is no store"):
                use(root)
            assert has_nothing(root)
        else:
            use(root)
            assert check_store(root, quick=True).is_clean


def check(root: Path) -> None:
    report = check_store(root)
    assert report.is_clean
    assert not report.notes


def images(root: Path) -> None:
    with Store(root) as store:
        assert store.images() == []


def load(root: Path) -> None:
    with Store(root, create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        assert store.image("app:1").view.read_bytes("/f") == b"1"


def test_the_commands(tmp_path: Path) -> None:
    for command in (["fsck"], ["images"], ["gc"]):
        root = tmp_path / command[0]
        assert killed_at(16, root)
        Cli(root)(*command)
        assert Layout(root).exists()


@pytest.mark.parametrize("name", ["mine", "packs/1.pack", "layers/x", "objects/ab/c", "digests.0", "layerstore.db"])
def test_what_has_something_in_it_is_not_finished(tmp_path: Path, name: str) -> None:
    """It may be a store that lost the file that says so, which is for a repair to find out; or somebody else's."""
    root = tmp_path / "store"
    Layout(root).create()
    (root / "format").unlink()
    (root / name).parent.mkdir(exist_ok=True)
    (root / name).write_bytes(b"something")
    with pytest.raises(NotFound, match="there is no store"):
        Store(root)
    assert not (root / "format").exists()
    assert not check_store(root).is_clean


@pytest.mark.parametrize("name", ["logs", "run"])
def test_a_directory_of_somebodys_is_no_store(tmp_path: Path, name: str) -> None:
    (tmp_path / "own" / name).mkdir(parents=True)
    with pytest.raises(NotFound, match="there is no store"):
        Store(tmp_path / "own")
    assert os.listdir(tmp_path / "own") == [name]


@needs_root
@pytest.mark.parametrize("create", [False, True])
def test_one_of_another_user(create: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        root = Path(directory, "store")
        Layout(root).create()
        read, write = os.pipe()
        child = os.fork()
        if not child:
            with contextlib.suppress(BaseException):
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                try:
                    Store(root, create=create)
                except OSError as error:
                    os.write(write, str(error).encode())
            os._exit(0)
        os.waitpid(child, 0)
        os.close(write)
        with open(read) as told:
            assert told.read() == f"the store at {root} belongs to another user; run as that user"


@needs_root
@needs_mkfs
@pytest.mark.root
def test_on_a_pool(tmp_path: Path) -> None:
    root = tmp_path / "store"
    Pool(str(root)).create(POOL_BYTES)
    with Store(root) as store:
        assert store.images() == []
    assert check_store(root).is_clean
