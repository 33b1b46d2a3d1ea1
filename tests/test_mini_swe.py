"""The docker environment of mini-swe-agent, with layerstore in docker's place, on a real Debian image."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from test_commands import sleepers
from test_containers import root_only, runs
from test_project import examples, run_example
from waiting import wait_for

from layerstore import Store

pytestmark = [pytest.mark.root, root_only, runs, pytest.mark.peers]
IMAGE = "debian:12"


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory, debian_tar: Path) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("mini") / "store", create=True) as opened:
        opened.import_rootfs(debian_tar, IMAGE)
        yield opened


@pytest.fixture
def store(module_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """With `layerstore` on the PATH. What is left of an environment is nothing."""
    if find_spec("minisweagent") is None:
        pytest.skip("mini-swe-agent is not installed; `make peers` installs it")
    program = tmp_path / "bin/layerstore"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m layerstore "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("LAYERSTORE_ROOT", str(module_store.root))
    monkeypatch.setenv("MSWEA_SILENT_STARTUP", "1")
    monkeypatch.setenv("MSWEA_GLOBAL_CONFIG_DIR", str(tmp_path))
    yield module_store
    try:
        wait_for(lambda: module_store.containers() == [])
        wait_for(lambda: os.listdir(module_store.root / "containers") == [])
        wait_for(lambda: os.listdir(module_store.root / "run/runtime") == [])
    finally:
        module_store.remove(module_store.containers(), force=True)


@pytest.fixture
def made(store: Store) -> Iterator[Callable[..., Any]]:
    from minisweagent.environments.docker import DockerEnvironment

    environments: list[Any] = []

    def make(**options: Any) -> Any:
        environments.append(DockerEnvironment(**{"image": IMAGE, "executable": "layerstore", **options}))
        return environments[-1]

    yield make
    for environment in environments:
        environment.cleanup()
        environment.container_id = None  # else it is cleaned up again when it is forgotten


def test_commands(made: Callable[..., Any], store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORWARDED", "from here")
    environment = made(cwd="/var/tmp", env={"A": "b c"}, forward_env=["FORWARDED", "NOT_SET"])
    (container,) = store.containers()
    assert (environment.container_id, container.state) == (container.id, "running")
    assert re.fullmatch("minisweagent-[0-9a-f]{8}", container.name or "")

    def execute(command: str, **options: Any) -> tuple[str, int]:
        done = environment.execute({"command": command}, **options)
        return done["output"], done["returncode"]

    assert execute('pwd; echo "$A, $FORWARDED"; id -u') == ("/var/tmp\nb c, from here\n0\n", 0)
    assert execute("echo out; echo error >&2; exit 3") == ("out\nerror\n", 3)
    assert execute("echo text >note; printf '\\377'") == ("\ufffd", 0)
    assert execute("cat /var/tmp/note; pwd", cwd="/") == ("text\n/\n", 0)
    assert execute("no-such-program")[1] == 127
    done = environment.execute({"command": "echo begun; sleep 1041"}, timeout=2)
    assert (done["returncode"], done["extra"]["exception_type"]) == (-1, "TimeoutExpired")
    assert execute("echo further") == ("further\n", 0)
    environment.cleanup()
    wait_for(lambda: store.containers() == [])
    assert sleepers(1041) == []


def test_several_at_once(made: Callable[..., Any], store: Store) -> None:
    several = [made() for _ in range(3)]
    for number, environment in enumerate(several):
        environment.execute({"command": f"echo {number} >/number"})
    assert [one.execute({"command": "cat /number"})["output"] for one in several] == ["0\n", "1\n", "2\n"]


def test_an_image_that_is_not_there(made: Callable[..., Any], store: Store) -> None:
    import subprocess

    with pytest.raises(subprocess.CalledProcessError) as caught:
        made(image="localhost:1/nothing")
    assert "nothing" in caught.value.stderr
    assert store.containers() == []


def test_the_program_of_the_documentation_runs(store: Store, tmp_path: Path) -> None:
    (tmp_path / "store").symlink_to(store.root)
    printed = run_example(examples("docs/sandboxes.md")[4], tmp_path)
    assert printed.endswith("/root\n\n{'output': 'b\\n', 'returncode': 3, 'exception_info': ''}\n")
