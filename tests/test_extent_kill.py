"""Containers of the extent driver whose process is killed at any moment: all is there that it had done, and at most one
operation more.

A child process works on one. The test knows what it does and how far it came, and does the same to a tree of the host.
"""

import contextlib
import io
import os
import random
import select
import signal
import subprocess
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from host_tree import Dump, HostTree, dump, in_container
from images import docker_files, tar_of
from stack_model import EXAMPLES
from test_extent_model import IMAGE, NAMES, extract

from layerstore import Container, Store

KILLS = 12 * EXAMPLES // 200
MOST_SECONDS = 0.03
"""That a child goes on for after its first operation."""


def operation(number: int) -> tuple[str, tuple[Any, ...]]:
    """What is done as the `number`th, always the same: of `HostTree`, or fork, commit, snapshot, roll back."""
    draw = random.Random(number)
    if draw.random() < 0.04:
        return draw.choice(["fork", "fork", "commit", "snapshot", "rollback", "rollback"]), ()
    path, other = ("/".join(draw.choices(NAMES, k=draw.choice([1, 1, 2, 2, 3]))) for _ in "ab")
    data = draw.randbytes(draw.choice([0, 10, 5000, 200_000]))
    return draw.choice(
        [
            *[("create", (path,)), ("mkdir", (path,)), ("pwrite", (path, draw.randrange(9000), data))] * 3,
            *[("truncate", (path, draw.randrange(9000))), ("rename", (path, other))] * 2,
            *[("link", (path, other)), ("symlink", (draw.choice(["a", "d/a", "nowhere"]), path))],
            *[("unlink", (path,)), ("rmdir", (path,)), ("rmtree", (path,))],
            *[("chmod", (path, 0o750)), ("utime", (path, (number, number))), ("setxattr", (path, "user.x", data[:50]))],
        ]
    )


def made_by(number: int) -> str:
    """What an operation that makes something calls it."""
    name = operation(number)[0]
    return f"commit:{number}" if name == "commit" else f"{name}-{number}"


class Twin:
    """The tree that the container must be like, and what it was when forks, commits and snapshots were made of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.trees = 0
        tree = self.new_tree()
        tree.mkdir()
        extract(tree)
        self.host = HostTree(tree)
        self.made: dict[str, Dump] = {}
        self.snapshot: Path | None = None

    def new_tree(self) -> Path:
        self.trees += 1
        return self.directory / f"tree{self.trees}"

    def copy(self, tree: Path) -> Path:
        made = self.new_tree()
        subprocess.run(["cp", "-a", tree, made], check=True)
        return made

    def do(self, number: int) -> None:
        name, arguments = operation(number)
        if name in ("fork", "commit"):
            self.made[made_by(number)] = self.host.dump()
        elif name == "snapshot":
            self.snapshot = self.copy(self.host.root)
        elif name == "rollback":
            if self.snapshot is not None:
                self.host.close()
                self.host = HostTree(self.copy(self.snapshot))
        else:
            with contextlib.suppress(OSError):
                self.host.call(name, *arguments)


def do(container: Container, number: int) -> None:
    name, arguments = operation(number)
    if name == "fork":
        container.fork(name=made_by(number))
    elif name == "commit":
        container.commit(made_by(number))
    elif name == "snapshot":
        container.snapshot(str(number))
    elif name == "rollback":
        if snapshots := container.snapshots():
            container.rollback(snapshots[-1].name)
    else:
        with contextlib.suppress(OSError):
            in_container(container, name, arguments, {})


def work(root: Path, container: str, number: int, told: int) -> None:
    """What the child does, which ends by a signal: operations from `number` on, telling of each."""
    try:
        with Store(root) as store:
            mine = store.container(container)
            while True:
                do(mine, number)
                os.write(told, b".")
                number += 1
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def killed(root: Path, container: str, number: int, seconds: float) -> int:
    """Have a child work for so long; returns the number of the operation that it had not told of."""
    told, to_test = os.pipe()
    pid = os.fork()
    if pid == 0:
        work(root, container, number, to_test)
    os.close(to_test)
    with open(told, "rb", 0) as pipe:
        select.select([pipe], [], [], 60)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
        assert os.waitpid(pid, 0)[1] == signal.SIGKILL
        return number + len(pipe.read(1 << 20))


@pytest.fixture
def twin(tmp_path: Path) -> Iterator[Twin]:
    made = Twin(tmp_path)
    yield made
    made.host.close()


def test_all_is_there_that_was_done(twin: Twin, tmp_path: Path) -> None:
    with Store(tmp_path / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        name = store.create("model:1", driver="extent").id
    moments, number = random.Random(1), 0
    for _ in range(KILLS):
        reached = killed(tmp_path / "store", name, number, moments.uniform(0, MOST_SECONDS))
        for done in range(number, reached):
            twin.do(done)
        with Store(tmp_path / "store") as store:
            compare(store, store.container(name), twin, reached)
        number = reached + 1
    with Store(tmp_path / "store") as store:
        store.collect_garbage()
        container = store.container(name)
        assert dump(container, container.read_bytes) == twin.host.dump()


def compare(store: Store, container: Container, twin: Twin, unsure: int) -> None:
    """The operation of that number was done or not; afterwards the twin has it if it was."""
    there = {str(made.name) for made in store.containers()} | {name for made in store.images() for name in made.names}
    there |= {f"snapshot-{made.name}" for made in container.snapshots()}
    shown = dump(container, container.read_bytes)
    what, mark = operation(unsure)[0], made_by(unsure)
    if mark in there if what in ("fork", "commit", "snapshot") else shown != twin.host.dump():
        twin.do(unsure)
    assert shown == twin.host.dump()
    for name, expected in twin.made.items():
        assert name in there
        made = store.container(name) if name.startswith("fork") else store.create(name, driver="extent")
        assert dump(made, made.read_bytes) == expected
        made.remove()
    twin.made.clear()
