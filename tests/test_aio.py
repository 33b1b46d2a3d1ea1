"""Commands in containers, and their ends, for asyncio. What a command is, tests/test_commands.py has, and what is kept
of a program's end tests/test_detached.py."""

import asyncio
import os
import subprocess
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE, STDOUT
from typing import Any, TypeVar

import pytest
import test_commands
from test_commands import sleepers
from test_containers import root_only, runs

from layerstore import Container, Store, aio
from layerstore.errors import InvalidInput, NotFound, ProgramNotFound

pytestmark = [pytest.mark.root, root_only, runs]
module_store, store = test_commands.module_store, test_commands.store
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work, debug=True)


@pytest.fixture
def container(store: Store) -> Iterator[Container]:
    container = store.create("box:1")
    yield container
    assert not list(container.root.parent.glob("command-*"))


def test_status_and_outputs(container: Container) -> None:
    done = run(aio.exec(container, ["sh", "-c", "cat; echo err >&2; exit 3"], input=b"in\n", capture_output=True))
    assert (done.args[0], done.returncode, done.stdout, done.stderr) == ("sh", 3, b"in\n", b"err\n")
    done = run(aio.exec(container, ["sh", "-c", "echo 1; echo 2 >&2"], stdout=PIPE, stderr=STDOUT, stdin=DEVNULL))
    assert (done.stdout, done.stderr) == (b"1\n2\n", None)
    data = b"x" * 2_000_000
    assert run(aio.exec(container, ["cat"], input=data, capture_output=True)).stdout == data
    assert run(aio.exec(container, ["true"], input=data)).returncode == 0
    with pytest.raises(subprocess.CalledProcessError):
        run(aio.exec(container, ["false"], check=True))


def test_to_a_file(container: Container, tmp_path: Path) -> None:
    with open(tmp_path / "out", "wb") as file:
        done = run(aio.exec(container, ["echo", "text"], stdout=file, stdin=DEVNULL))
    assert (done.returncode, done.stdout) == (0, None)
    assert (tmp_path / "out").read_bytes() == b"text\n"


def test_the_end_of_long_outputs(container: Container) -> None:
    script = "head -c 1000000 /dev/zero; printf end; printf error >&2"
    done = run(aio.exec(container, ["sh", "-c", script], capture_output=True, tail_bytes=5))
    assert (done.stdout, done.stderr) == (b"\0\0end", b"error")
    assert run(aio.exec(container, ["echo", "text"], capture_output=True, tail_bytes=0)).stdout == b""
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(aio.exec(container, ["cat", "/dev/zero"], timeout=0.5, capture_output=True, tail_bytes=100_000))
    assert caught.value.output == bytes(100_000)


def test_many_at_once_without_a_thread_each(container: Container) -> None:
    async def answers() -> list[bytes | None]:
        command = ["sh", "-c", "read line; echo $line"]
        begun = [await aio.popen(container, command, stdin=PIPE, stdout=PIPE) for _ in range(12)]
        found = await asyncio.gather(*(each.communicate(f"{number}\n".encode()) for number, each in enumerate(begun)))
        return [stdout for stdout, _ in found]

    assert run(answers()) == [f"{number}\n".encode() for number in range(12)]

    async def piped() -> int:
        streams = {"stdin": DEVNULL, "stdout": PIPE, "stderr": DEVNULL}
        begun = [await aio.popen(container, ["sleep", "0.2"], **streams) for _ in range(5)]
        threads = [thread for thread in threading.enumerate() if "layerstore" in thread.name]
        assert [await each.wait() for each in begun] == [0] * 5
        return len(threads)

    assert run(piped()) == 0


def test_timeout_ends_all_that_it_started(container: Container) -> None:
    with pytest.raises(subprocess.TimeoutExpired) as caught:
        run(
            aio.exec(
                container, ["sh", "-c", "echo begun; setsid sleep 1021 & sleep 1021"], timeout=1, capture_output=True
            )
        )
    assert (caught.value.timeout, caught.value.output) == (1, b"begun\n")
    assert sleepers(1021) == []
    assert container.state == "running"


def test_cancelled(container: Container) -> None:
    async def cancelled() -> None:
        task = asyncio.ensure_future(aio.exec(container, ["sh", "-c", "echo; sleep 1022"], capture_output=True))
        while not sleepers(1022):
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(cancelled())
    test_commands.wait_for(lambda: sleepers(1022) == [])
    test_commands.wait_for(lambda: container.exec(["true"]).returncode == 0)


def test_a_process(container: Container) -> None:
    async def process() -> None:
        script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 0.01; done"
        begun = await aio.popen(container, ["sh", "-c", script], stdout=PIPE, stdin=DEVNULL)
        assert begun.stdout is not None
        assert await begun.stdout.readline() == b"ready\n"
        assert begun.returncode is None
        assert begun.pid > 0
        begun.terminate()
        assert await begun.stdout.readline() == b"caught\n"
        assert [await begun.wait(), await begun.wait(), begun.returncode] == [5, 5, 5]
        assert repr(begun).endswith("returncode=5>")

    run(process())


def test_refused(container: Container) -> None:
    with pytest.raises(InvalidInput, match="for a shell"):
        run(aio.exec(container, "ls"))
    with pytest.raises(ProgramNotFound):
        run(aio.exec(container, ["nothing"]))
    with pytest.raises(InvalidInput, match="input does not go with stdin"):
        run(aio.exec(container, ["cat"], input=b"", stdin=DEVNULL))


def test_pipes_are_binary(container: Container) -> None:
    for options in ({"text": True}, {"encoding": "utf-8"}, {"errors": "replace"}):
        with pytest.raises(InvalidInput, match="binary"):
            run(aio.exec(container, ["true"], capture_output=True, **options))


WAITING = ["sh", "-c", "while ! test -e /go; do sleep 0.01; done; exit $0"]


def test_the_end_of_a_container(container: Container) -> None:
    with pytest.raises(NotFound, match="no program was started"):
        run(aio.wait(container))
    container.start([*WAITING, "3"])

    async def several() -> list[int]:
        tasks = [asyncio.ensure_future(aio.wait(container, timeout)) for timeout in (None, 20)]
        cancelled = asyncio.ensure_future(aio.wait(container))
        await asyncio.sleep(0)
        (container.root / "go").touch()
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        assert threading.active_count() == threads
        return await asyncio.gather(*tasks)

    threads = threading.active_count()
    assert run(several()) == [3, 3]
    assert [run(aio.wait(container)), run(aio.wait(container, 0))] == [3, 3]


def test_an_end_between_looks(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever happens before the event loop watches is seen."""
    container.start([*WAITING, "4"])

    async def ended() -> int:
        loop = asyncio.get_running_loop()
        add_reader = loop.add_reader

        def late(*args: Any) -> None:
            (container.root / "go").touch()
            container.wait(20)
            add_reader(*args)

        monkeypatch.setattr(loop, "add_reader", late)
        return await asyncio.wait_for(aio.wait(container), 20)

    assert run(ended()) == 4


@pytest.mark.parametrize("how", ["times out", "is cancelled"])
def test_a_wait_that_ends_before_leaves_nothing(container: Container, how: str) -> None:
    container.start(["sleep", "1023"])

    async def ends() -> None:
        before = set(os.listdir("/proc/self/fd"))
        waiting = asyncio.ensure_future(aio.wait(container, 0.05 if how == "times out" else None))
        await asyncio.sleep(0)
        assert set(os.listdir("/proc/self/fd")) > before
        if how == "is cancelled":
            waiting.cancel()
        with pytest.raises((subprocess.TimeoutExpired, asyncio.CancelledError)):
            await waiting
        assert set(os.listdir("/proc/self/fd")) == before
        assert len(asyncio.get_running_loop()._selector.get_map()) == 1  # type: ignore[attr-defined]

    run(ends())
    assert container.state == "running"
    container.stop(0)
    assert run(aio.wait(container)) == 137


def test_many_ends(store: Store) -> None:
    many = store.create("box:1", count=10)
    for number, each in enumerate(many):
        each.start(["sh", "-c", f"exit {number}"])

    async def statuses() -> list[int]:
        return await asyncio.gather(*map(aio.wait, many))

    assert run(statuses()) == list(range(10))
