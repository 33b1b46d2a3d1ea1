"""What runs in a container stands still while a fork or a snapshot of it is made."""

import io
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from subprocess import PIPE

import pytest
from images import docker_files, tar_of
from test_commands import BOX
from test_containers import ROOT, root_only, runs
from waiting import wait_for

from layerstore import Container, Store
from layerstore.containers.runtime import find_runtime
from layerstore.containers.stillness import still
from layerstore.errors import Unsupported

pytestmark = [pytest.mark.root, root_only, runs]

FILES = 200
ROUNDS = f"""i=0
while :; do
    i=$((i + 1)); n=0
    while [ $n -lt {FILES} ]; do echo $i >/rounds/$n; n=$((n + 1)); done
done"""
"""Writes a number to all files, one after the other, and then the next number."""

HOLDER = """if True:
    import signal, sys, time
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    import layerstore
    from layerstore.containers import runtime
    from layerstore.containers.stillness import still
    found = runtime.find_runtime(sys.argv[3], sys.argv[1] + "/run/runtime")
    runtime.find_runtime = lambda name, root: found
    store = layerstore.Store(sys.argv[1])
    container = store.container(sys.argv[2])
    with still(store.layout, container._engine.containers, container.id):
        print("still", flush=True)
        time.sleep(600)
"""


@pytest.fixture(
    params=[
        pytest.param("crun", marks=pytest.mark.needs_tool("crun")),
        pytest.param("runc", marks=pytest.mark.needs_tool("runc")),
    ]
)
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def container(runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Container]:
    """One in which rounds are written."""
    with Store(tmp_path / "store", create=True) as store:
        found = find_runtime(runtime, store.root / "run/runtime")
        monkeypatch.setattr("layerstore.containers.runtime.find_runtime", lambda name, root: found)
        store.load(io.BytesIO(tar_of(docker_files([BOX]))))
        container = store.create("box:1")
        container.start(["/bin/sh", "-c", f"mkdir /rounds; {ROUNDS}"])
        wait_for(lambda: first_round(container) > 1)
        yield container
        store.remove(store.containers(), force=True)


def first_round(container: Container) -> int:
    try:
        return int((container.root / "rounds/0").read_text() or 0)
    except FileNotFoundError:
        return 0


def numbers(container: Container) -> list[str]:
    """What is in all files, which takes far longer to read than a number to write."""
    return [(container.root / "rounds" / str(n)).read_text() for n in range(FILES)]


def check_is_of_one_moment(rounds: Path) -> None:
    said = [(rounds / str(n)).read_text() for n in range(FILES)]
    numbers = [int(text) for text in said if text]
    assert len(numbers) >= FILES - 1  # the one that is being written may be empty
    assert all(one >= next for one, next in pairwise(numbers))
    assert numbers[0] - numbers[-1] <= 1


def test_a_fork_is_of_one_moment(container: Container) -> None:
    for _ in range(5):
        fork = container.fork()
        with fork.mount() as view:
            check_is_of_one_moment(view / "rounds")
    goes_on(container)


def test_a_snapshot_is_of_one_moment(container: Container) -> None:
    container.snapshot("one")
    goes_on(container)
    container.stop(0)
    container.umount()
    container.rollback("one")
    with container.mount() as view:
        check_is_of_one_moment(view / "rounds")


def test_forks_at_the_same_time(container: Container) -> None:
    with ThreadPoolExecutor(4) as threads:
        forks = list(threads.map(lambda _: container.fork(), range(4)))
    for fork in forks:
        with fork.mount() as view:
            check_is_of_one_moment(view / "rounds")
    goes_on(container)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_goes_on_when_the_caller_is_killed(container: Container, runtime: str, number: int) -> None:
    command = [sys.executable, "-c", HOLDER, str(container._engine.layout.root), container.id, runtime]
    with subprocess.Popen(command, stdout=PIPE, stderr=PIPE, cwd=ROOT, text=True, start_new_session=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "still\n"
        assert numbers(container) == numbers(container)
        os.killpg(holder.pid, number)
    goes_on(container)


def test_of_one_that_is_paused(container: Container) -> None:
    container.pause()
    fork = container.fork()
    assert container.state == "paused"
    with fork.mount() as view:
        check_is_of_one_moment(view / "rounds")
    container.unpause()
    goes_on(container)


def test_nothing_is_frozen_without_a_guard(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("layerstore.containers.stillness._GUARD", "exit 1")
    with pytest.raises(Unsupported, match="ended as it started"):
        container.fork()
    goes_on(container)


def test_an_error_in_the_block(container: Container) -> None:
    engine = container._engine
    with pytest.raises(ZeroDivisionError), still(engine.layout, engine.containers, container.id):
        assert numbers(container) == numbers(container)
        raise ZeroDivisionError
    goes_on(container)


def goes_on(container: Container) -> None:
    """Wait until it writes."""
    written = first_round(container)
    wait_for(lambda: first_round(container) > written)
