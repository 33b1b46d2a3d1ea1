"""The sandbox provider for inspect_ai: its own check of sandboxes, and an evaluation, on a real Debian image."""

import asyncio
import functools
import importlib.util
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_commands import sleepers
from test_containers import root_only, runs
from test_project import examples, run_example
from waiting import wait_for

from layerstore import Store
from layerstore.errors import InvalidInput, LayerstoreError, NotFound

pytestmark = [pytest.mark.root, root_only, runs, pytest.mark.peers]

IMAGE = "debian:test"

if importlib.util.find_spec("inspect_ai") is None:

    @pytest.fixture(autouse=True)
    def inspect_ai() -> None:
        pytest.skip("inspect_ai is not installed; `make peers` installs it")

else:
    pytestmark.append(pytest.mark.anyio)  # its plugin for pytest, which runs functions of asyncio
    from inspect_ai.util._sandbox.self_check import *  # noqa: F403


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory, debian_tar: Path) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("inspect") / "store", create=True) as opened:
        opened.import_rootfs(debian_tar, IMAGE)
        yield opened


@pytest.fixture
def store(module_store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("LAYERSTORE_ROOT", str(module_store.root))
    yield module_store
    try:
        assert module_store.containers() == []
    finally:
        module_store.remove(module_store.containers(), force=True)


@functools.cache
def provider() -> Any:
    """As inspect_ai finds it."""
    from inspect_ai.util._sandbox.registry import registry_find_sandboxenv

    return registry_find_sandboxenv("layerstore")


def config(**options: Any) -> Any:
    return sys.modules[provider().__module__].LayerstoreConfig(image=IMAGE, **options)


def environment(**options: Any) -> Any:
    return sys.modules[provider().__module__].Environment(**{"image": IMAGE, **options})


class Sample:
    """What inspect_ai does around a sample."""

    def __init__(self, given: Any) -> None:
        self.given = given

    async def __aenter__(self) -> dict[str, Any]:
        await provider().task_init("startup", self.given)
        self.environments: dict[str, Any] = await provider().sample_init("task", self.given, {})
        return self.environments

    async def __aexit__(self, *_: object) -> None:
        await provider().sample_cleanup("task", self.given, self.environments, False)
        await provider().task_cleanup("shutdown", self.given, True)


@pytest.fixture(params=["root", "daemon"])
async def sandbox_env(store: Store, request: pytest.FixtureRequest) -> Any:
    """For inspect_ai's own check, none of which is left out."""
    places = {} if request.param == "root" else {"user": "daemon", "working_dir": "/var/tmp"}
    async with Sample(config(**places)) as environments:
        yield environments["default"]


# What its own check leaves to providers


async def test_named_environments(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "layerstore.yaml"
    file.write_text(
        f"image: {IMAGE}\nuser: daemon\nworking_dir: /work\nenv: {{A: b}}\n"
        f"others:\n  victim: {{image: {IMAGE}, options: {{hostname: victim, pids_limit: 20}}}}\n"
    )
    async with Sample(str(file)) as environments:
        assert list(environments) == ["default", "victim"]
        default, victim = environments.values()
        done = await default.exec(["sh", "-c", "pwd; id -un; echo $A; hostname"])
        assert done.stdout.splitlines()[:3] == ["/work", "daemon", "b"]
        assert (await default.exec(["id", "-un"], user="root")).stdout == "root\n"
        assert (await victim.exec(["hostname"])).stdout == "victim\n"
        assert victim.container.name.endswith("-victim")
    read = provider().config_deserialize(config(others={"victim": environment()}).model_dump())
    assert read == config(others={"victim": environment()})
    assert hash(read) != hash(config())


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.model import ModelOutput
from inspect_ai.scorer import includes
from inspect_ai.solver import solver
from inspect_ai.util import sandbox

@solver
def work(command):
    async def solve(state, generate):
        state.output = ModelOutput.from_content("none", (await sandbox().exec(["sh", "-c", command])).stdout)
        return state
    return solve

@task
def it(command="cat note /from-setup"):
    sample = Sample("", target="noted and set up", files={"note": "noted "}, setup="printf 'and set up' >/from-setup")
    return Task([sample], solver=work(command), scorer=includes(), sandbox=("layerstore", "IMAGE"))
"""


@pytest.fixture
def evaluated(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that evaluates a task whose file is in another directory, with an image by its name."""
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/it.py").write_text(TASK.replace("IMAGE", IMAGE))
    monkeypatch.chdir(tmp_path)
    # A shell may have had SIGINT ignored, which Python would keep.
    start = "import runpy, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    start += "sys.argv[0] = 'inspect'; runpy.run_module('inspect_ai', run_name='__main__')"
    command = [sys.executable, "-c", start, "eval", "tasks/it.py", "--model", "mockllm/model"]
    return [*command, "--display", "plain"]


@pytest.mark.parametrize("override", [(), ("--sandbox", f"layerstore:{IMAGE}")])
def test_by_the_command_line(evaluated: list[str], override: tuple[str, ...]) -> None:
    done = subprocess.run([*evaluated, *override], capture_output=True, text=True, timeout=120)
    assert re.search(r"accuracy\s+1\.0", done.stdout), done.stdout + done.stderr


@pytest.mark.parametrize(("number", "left"), [(signal.SIGINT, 0), (signal.SIGKILL, 1)])
def test_an_evaluation_that_ends_early(evaluated: list[str], store: Store, number: signal.Signals, left: int) -> None:
    with subprocess.Popen([*evaluated, "-T", "command=sleep 1033"], stdout=subprocess.PIPE) as process:
        wait_for(lambda: sleepers(1033) != [] or process.poll() is not None, 60)
        process.send_signal(number)
        process.communicate(timeout=120)
    assert len(store.containers()) == left
    command = [sys.executable, "-m", "inspect_ai", "sandbox", "cleanup", "layerstore"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert f"containers removed: {left}" in done.stdout, done.stdout + done.stderr
    assert sleepers(1033) == []


async def test_without_an_image(store: Store) -> None:
    with pytest.raises(InvalidInput, match="which image"):
        await provider().task_init("startup", None)


async def test_a_sample_that_cannot_begin_leaves_nothing(store: Store) -> None:
    with pytest.raises(InvalidInput, match="nobody-here"):
        await provider().sample_init("task", config(others={"b": environment(user="nobody-here")}), {})
    with pytest.raises(LayerstoreError):
        await provider().task_init("startup", config(others={"b": environment(image="localhost:1/nothing")}))
    assert store.containers() == []


async def test_what_commands_do_wrong(store: Store) -> None:
    from inspect_ai.util import SandboxUnavailableError

    async with Sample(config()) as environments:
        sandbox = environments["default"]
        done = await sandbox.exec(["no-such-program"])
        assert (done.success, done.returncode) == (False, 127)
        assert "no-such-program" in done.stderr
        done = await sandbox.exec(["true"], cwd="/nowhere")
        assert not done.success and "directory" in done.stderr
        assert (await sandbox.exec(["printf", "\\377"])).stdout == "\ufffd"
        with pytest.raises(TimeoutError) as caught:
            await sandbox.exec(["sh", "-c", "echo begun; setsid sleep 1031 & sleep 1031"], timeout=1)
        assert caught.value.truncated_output == "begun\n"  # type: ignore[attr-defined]
        assert sleepers(1031) == []
        sleeping = asyncio.ensure_future(sandbox.exec(["sleep", "1031"]))
        while not sleepers(1031):
            await asyncio.sleep(0.01)
        sandbox.container.remove(force=True)
        with pytest.raises(SandboxUnavailableError):
            await sleeping
        with pytest.raises(SandboxUnavailableError):
            await sandbox.exec(["true"])
        with pytest.raises(ConnectionError):
            await sandbox.connection()


@pytest.mark.needs_tool("runc")
@pytest.mark.usefixtures("by_runc")
async def test_a_container_that_ended_with_a_command_lives_on_as_it_was(store: Store) -> None:
    """runc has no control group for a command, so that a time limit ends all that is in the container."""
    asked = config(env={"A": "b"}, options={"hostname": "mine"})
    async with Sample(asked) as environments:
        sandbox = environments["default"]
        show = ["sh", "-c", "echo $A; hostname"]
        with pytest.raises(TimeoutError):
            await sandbox.exec(["sleep", "1034"], timeout=1)
        assert (await sandbox.exec(show)).stdout == "b\nmine\n"
        sleeping = asyncio.ensure_future(sandbox.exec(["sleep", "1034"]))
        while not sleepers(1034):
            await asyncio.sleep(0.01)
        sandbox.container.kill()
        assert (await sleeping).returncode == 137
        assert (await sandbox.exec(show)).stdout == "b\nmine\n"


async def test_the_end_of_long_outputs(store: Store) -> None:
    from inspect_ai.util._sandbox.limits import override_max_exec_output_size

    async with Sample(config()) as environments:
        with override_max_exec_output_size(1000):
            done = await environments["default"].exec(["sh", "-c", "head -c 1000000 /dev/zero; echo end"])
        assert done.stdout == "\0" * 996 + "end\n"


async def test_files(store: Store) -> None:
    async with Sample(config(user="daemon", working_dir="/var/tmp")) as environments:
        sandbox = environments["default"]
        for path in ("/root/deep/file", "/usr/file"):
            with pytest.raises(PermissionError):
                await sandbox.write_file(path, "text")
        with pytest.raises(PermissionError):
            await sandbox.read_file("/etc/shadow")
        await sandbox.exec(["mkfifo", "pipe"])
        for path in ("pipe", "/dev/zero"):
            with pytest.raises(OSError, match="Invalid argument"):
                await sandbox.read_file(path)
        with pytest.raises(OSError, match="Invalid argument"):
            await sandbox.write_file("pipe", "")
        await sandbox.write_file("-n\n'$x'", "a\r\nb")
        assert await sandbox.read_file("-n\n'$x'") == "a\r\nb"
        await sandbox.write_file("binary", b"\xff")
        with pytest.raises(UnicodeDecodeError):
            await sandbox.read_file("binary")
        assert "3 daemon" not in (await sandbox.exec(["ls", "-l", "binary"])).stderr


async def test_one_that_is_cancelled_ends_the_command(store: Store) -> None:
    import anyio

    async with Sample(config()) as environments:
        async with anyio.create_task_group() as group:
            group.start_soon(environments["default"].exec, ["sh", "-c", "setsid sleep 1032 & sleep 1032"])
            while len(sleepers(1032)) < 2:
                await anyio.sleep(0.01)
            group.cancel_scope.cancel()
        assert sleepers(1032) == []
        assert (await environments["default"].exec(["true"])).success


async def test_a_login(store: Store) -> None:
    async with Sample(config(user="daemon")) as environments:
        connection = await environments["default"].connection()
        words = shlex.split(connection.command)
        assert words[:5] == ["layerstore", "--root", str(store.root), "exec", "-it"]
        assert connection.container == environments["default"].container.name
        command = [sys.executable, "-m", *(word for word in words if word != "-it")]
        assert (await asyncio.to_thread(subprocess.run, command, input=b"", check=False)).returncode == 0


async def test_what_was_left_is_cleaned_up(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    environments = [await provider().sample_init("task", config(), {}) for _ in range(2)]
    await provider().task_cleanup("shutdown", config(), False)
    assert "inspect sandbox cleanup layerstore" in capsys.readouterr().out
    name = environments[0]["default"].container.name
    await provider().cli_cleanup(name)
    assert len(store.containers()) == 1
    with pytest.raises(NotFound):
        await provider().cli_cleanup(name)
    await provider().cli_cleanup(None)
    await provider().sample_init("task", config(), {})
    await provider().task_cleanup("shutdown", config(), True)


# The programs of the documentation


def debian_store(tmp_path: Path, debian_tar: Path) -> Store:
    opened = Store(tmp_path / "store", create=True)
    opened.import_rootfs(debian_tar, "debian:12")
    return opened


def test_the_program_of_an_evaluation_runs(tmp_path: Path, debian_tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSPECT_LOG_DIR", str(tmp_path / "logs"))
    with debian_store(tmp_path, debian_tar) as opened:
        printed = run_example(examples("docs/sandboxes.md")[3], tmp_path)
        assert printed.splitlines()[-1] == "success 1.0", printed
        assert opened.containers() == []
