"""A sandbox provider for inspect_ai (https://inspect.aisi.org.uk): each sample has containers of its own.

    Task(..., sandbox=("layerstore", "debian:12"))              # an image of the store, else of its registry
    Task(..., sandbox=("layerstore", "layerstore.yaml"))        # a file with what `LayerstoreConfig` has
    Task(..., sandbox=SandboxEnvironmentSpec("layerstore", LayerstoreConfig(image="debian:12", network="host")))

inspect_ai finds it by the entry point; nothing else imports this module.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import os
import posixpath
import shlex
import signal
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired
from typing import Any, Literal, overload

import anyio
import anyio.to_thread
from inspect_ai.util import (
    ExecResult,
    OutputLimitExceededError,
    SandboxConnection,
    SandboxEnvironment,
    SandboxEnvironmentLimits,
    SandboxUnavailableError,
    sandboxenv,
)
from inspect_ai.util import concurrency as at_once
from inspect_ai.util._subprocess import max_subprocesses_context_var
from pydantic import BaseModel, ConfigDict

from layerstore import aio
from layerstore.api import Container, Store
from layerstore.errors import InvalidInput, LayerstoreError, NotFound, ProgramNotExecutable, ProgramNotFound
from layerstore.naming import text_of
from layerstore.store.layout import absolute, default_root

_PREFIX = "inspect-"
_FILE_SECONDS = 600
_SYSTEM = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
"""For commands of our own: no program of the image's PATH takes the place of one of the system's."""
_NOT_BEGUN, _NOT_FOUND, _KILLED = 126, 127, 128 + signal.SIGKILL
_ERRORS = (
    *(errno.EACCES, errno.EISDIR, errno.ENOENT, errno.ENOTDIR, errno.EROFS, errno.ENOSPC, errno.EDQUOT),
    *(errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.EPERM),
)

# Modes hold for root, too: who takes the right to read or write from all means it.
_READ = """\
case $(ls -ldL -- "$1" 2>/dev/null) in
-r* | d* | "") exec head -c "$2" -- "$1" ;;
-*) echo "Permission denied" >&2 ;;
*) echo "Invalid argument" >&2 ;;
esac
exit 1
"""
_WRITE = """\
case $(ls -ldL -- "$1" 2>/dev/null) in
"") mkdir -p -- "$2" || exit 1 ;;
-?w* | d*) ;;
-*) echo "Permission denied" >&2; exit 1 ;;
*) echo "Invalid argument" >&2; exit 1 ;;
esac
exec cat >"$1"
"""
_LOGIN = "command -v bash >/dev/null && exec bash -l || exec sh -l"


class Environment(BaseModel):
    """A container of each sample.

    Attributes:
        image: a name of the store, or of a registry from which it is pulled when the task begins.
        user: who runs commands, and reads and writes files; without it the image's user.
        working_dir: where they begin, and where paths begin that are not absolute; it is made if it is missing. Without
            it that of the image.
        env: environment variables.
        network: as of `Container.keep_alive`.
        options: more arguments of `Container.keep_alive`, by their names: limits, `cap_add`, `hostname` ...
    """

    model_config = ConfigDict(extra="forbid")

    image: str
    user: str | None = None
    working_dir: str | None = None
    env: dict[str, str] = {}
    network: Literal["none", "private", "host"] = "none"
    options: dict[str, Any] = {}

    def __hash__(self) -> int:
        return hash(self.model_dump_json())


class LayerstoreConfig(Environment):
    """What each sample of a task has: the environment "default", and `others` by their names.

    Attributes:
        root: the store; without it $LAYERSTORE_ROOT or the usual place.
    """

    root: str | None = None
    others: dict[str, Environment] = {}

    @property
    def environments(self) -> dict[str, Environment]:
        return {"default": self, **self.others}

    @property
    def store_root(self) -> str:
        return absolute(self.root or default_root())


@sandboxenv(name="layerstore")
class LayerstoreSandbox(SandboxEnvironment):
    """One container. See `inspect_ai.util.SandboxEnvironment` for what its methods promise.

    A command that takes too long is killed with all that it has started, and not tried again: nothing but the command
    can be slow. Of each output the last bytes are kept, as many as inspect_ai's limit says.
    """

    def __init__(self, container: Container, asked: Environment, root: str) -> None:
        super().__init__()
        self.container = container
        self._asked = asked
        self._root = root
        self._reviving = asyncio.Lock()
        self._user = asked.user
        image = container.image.config.document.get("config") or {}
        self._directory = posixpath.join("/", asked.working_dir or image.get("WorkingDir") or "/")

    @classmethod
    def config_files(cls) -> list[str]:
        return ["layerstore.yaml", "layerstore.yml", "layerstore.json"]

    @classmethod
    def config_deserialize(cls, config: dict[str, Any]) -> BaseModel:
        return LayerstoreConfig(**config)

    @classmethod
    async def task_init(cls, task_name: str, config: BaseModel | str | None) -> None:
        """Pull the images that the store has not. Raises as `Store.pull`."""
        if isinstance(config, str):
            # inspect_ai takes an image's name for a file beside the task's, in whose directory it calls this alone.
            _names[config] = config.removeprefix(f"{Path.cwd()}/")
        await anyio.to_thread.run_sync(_pull_missing, _resolved(config))

    @classmethod
    async def sample_init(
        cls, task_name: str, config: BaseModel | str | None, metadata: dict[str, str]
    ) -> dict[str, SandboxEnvironment]:
        asked = _resolved(config)
        made = await anyio.to_thread.run_sync(_start, asked)
        return {name: cls(made[name], one, asked.store_root) for name, one in asked.environments.items()}

    @classmethod
    async def sample_cleanup(
        cls,
        task_name: str,
        config: BaseModel | str | None,
        environments: dict[str, SandboxEnvironment],
        interrupted: bool,
    ) -> None:
        containers = [one.as_type(LayerstoreSandbox).container for one in environments.values()]
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(_remove, containers)

    @classmethod
    async def task_cleanup(cls, task_name: str, config: BaseModel | str | None, cleanup: bool) -> None:
        """Remove what samples that were interrupted have left, or say what there is."""
        left = list(_living.values())
        if cleanup:
            await anyio.to_thread.run_sync(_remove, left)
        elif left:
            print("containers that were not removed:", *(container.name for container in left))
            print("to remove them: inspect sandbox cleanup layerstore [NAME]")
            _living.clear()

    @classmethod
    async def cli_cleanup(cls, id: str | None) -> None:
        """Remove the container of that name, or all that samples have left in the usual store ($LAYERSTORE_ROOT)."""
        await anyio.to_thread.run_sync(_remove_left, id)

    async def exec(
        self,
        cmd: list[str],
        input: str | bytes | None = None,
        cwd: str | None = None,
        env: dict[str, str] | None = None,
        user: str | None = None,
        timeout: int | None = None,
        timeout_retry: bool = True,
        concurrency: bool = True,
    ) -> ExecResult[str]:
        limits: contextlib.AbstractAsyncContextManager[Any] = contextlib.nullcontext()
        if concurrency:
            limits = at_once("subprocesses", max_subprocesses_context_var.get(), resizable=True)
        async with limits:
            done = await self._run(
                cmd,
                input,
                SandboxEnvironmentLimits.MAX_EXEC_OUTPUT_SIZE,
                timeout=timeout,
                workdir=self._path(cwd or ""),
                env=env or {},
                user=user or self._user,
            )
        return ExecResult(done.returncode == 0, done.returncode, _text(done.stdout), _text(done.stderr))

    async def write_file(self, file: str, contents: str | bytes) -> None:
        path = self._path(file)
        await self._own(file, ["/bin/sh", "-c", _WRITE, "sh", path, posixpath.dirname(path)], contents, 0)

    @overload
    async def read_file(self, file: str, text: Literal[True] = True) -> str: ...

    @overload
    async def read_file(self, file: str, text: Literal[False]) -> bytes: ...

    async def read_file(self, file: str, text: bool = True) -> str | bytes:
        limit = SandboxEnvironmentLimits.MAX_READ_FILE_SIZE
        command = ["/bin/sh", "-c", _READ, "sh", self._path(file), str(limit + 1)]
        contents = await self._own(file, command, None, limit + 1)
        if len(contents) > limit:
            raise OutputLimitExceededError(SandboxEnvironmentLimits.MAX_READ_FILE_SIZE_STR, None)
        return contents.decode() if text else contents

    async def connection(self, *, user: str | None = None) -> SandboxConnection:
        container = self.container
        if await anyio.to_thread.run_sync(lambda: container.state) != "running":
            raise ConnectionError(f"container {container.name} does not run")
        who = user or self._user
        command = ["layerstore", "--root", self._root, "exec", "-it", "-w", self._directory]
        command += [*(["-u", who] if who else []), container.name or container.id, "sh", "-c", _LOGIN]
        return SandboxConnection(type="layerstore", command=shlex.join(command), container=container.name)

    def default_polling_interval(self) -> float:
        return 0.2

    def _path(self, path: str) -> str:
        return posixpath.join(self._directory, path)

    async def _own(self, file: str, command: list[str], input: str | bytes | None, output_bytes: int) -> bytes:
        """The output of a command of our own about a file."""
        done = await self._run(
            command,
            input,
            max(output_bytes, 1 << 10),
            timeout=_FILE_SECONDS,
            workdir="/",
            env=_SYSTEM,
            user=self._user,
        )
        if done.returncode == 0:
            return done.stdout
        told = _text(done.stderr).strip()
        for number in _ERRORS:
            if os.strerror(number) in told:
                raise OSError(number, os.strerror(number), file)
        raise RuntimeError(f"{file}: {told or f'the shell of the sandbox ended with status {done.returncode}'}")

    async def _run(
        self, command: list[str], input: str | bytes | None, tail_bytes: int, **options: Any
    ) -> CompletedProcess[bytes]:
        """Run a command. One that cannot begin by what was asked is one that has failed."""
        given = input.encode() if isinstance(input, str) else input
        running = asyncio.ensure_future(
            aio.exec(self.container, command, input=given, capture_output=True, tail_bytes=tail_bytes, **options)
        )
        try:
            done = await asyncio.shield(running)
            if done.returncode == _KILLED:
                await self._revived()
            return done
        except asyncio.CancelledError:
            # anyio cancels again whatever its task waits for, until that has ended.
            running.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(running, return_exceptions=True)
                with contextlib.suppress(SandboxUnavailableError):
                    await self._revived()
            raise
        except TimeoutExpired as expired:
            await self._revived()
            error = TimeoutError(f"the command took longer than {expired.timeout} seconds")
            error.truncated_output = _text(expired.output) + _text(expired.stderr)  # type: ignore[attr-defined]
            raise error from None
        except ProgramNotExecutable as error:
            raise PermissionError(errno.EACCES, text_of(error), command[0]) from error
        except (ProgramNotFound, InvalidInput) as error:
            status = _NOT_FOUND if isinstance(error, ProgramNotFound) else _NOT_BEGUN
            return CompletedProcess(command, status, b"", text_of(error).encode())
        except LayerstoreError as error:
            raise SandboxUnavailableError(text_of(error)) from error

    async def _revived(self) -> None:
        """Where the container was killed with a command, have it live again with what it was given: the next command
        would start it with the defaults. Raises `SandboxUnavailableError`."""
        async with self._reviving:
            try:
                await anyio.to_thread.run_sync(_keep, self.container, self._asked)
            except LayerstoreError as error:
                raise SandboxUnavailableError(text_of(error)) from error


# The work that is done in threads

_living: dict[str, Container] = {}
"""The containers of samples of this process, by their ids."""

_names: dict[str, str] = {}
"""Images by what inspect_ai has made of their names."""


@functools.cache
def _store(root: str) -> Store:
    """Open until the process ends: many samples use it."""
    return Store(root, create=True)


def _resolved(config: BaseModel | str | None) -> LayerstoreConfig:
    """Raises `InvalidInput`."""
    if isinstance(config, LayerstoreConfig):
        return config
    if not isinstance(config, str):
        raise InvalidInput(
            "say which image the sandbox is to have: sandbox=('layerstore', 'debian:12'), the path of a "
            "layerstore.yaml, or a LayerstoreConfig"
        )
    path = Path(config)
    if path.suffix in (".yaml", ".yml", ".json"):
        import yaml

        return LayerstoreConfig(**yaml.safe_load(path.read_text()))
    return LayerstoreConfig(image=_names.get(config, config))


def _pull_missing(config: LayerstoreConfig) -> None:
    store = _store(config.store_root)
    for asked in config.environments.values():
        try:
            store.image(asked.image)
        except NotFound:
            store.pull(asked.image)


def _start(config: LayerstoreConfig) -> dict[str, Container]:
    store, sample, made = _store(config.store_root), os.urandom(6).hex(), {}
    try:
        for name, asked in config.environments.items():
            container = store.create(asked.image, name=f"{_PREFIX}{sample}-{name}", volatile=True)
            made[name] = _living[container.id] = container
            _keep(container, asked)
    except BaseException:
        _remove(list(made.values()))
        raise
    return made


def _keep(container: Container, asked: Environment) -> None:
    """Have it live, unless it does."""
    if container.state != "running":
        container.keep_alive(
            env=asked.env,
            workdir=asked.working_dir,
            user=asked.user,
            network=asked.network,
            **asked.options,
        )


def _remove(containers: list[Container]) -> None:
    for container in containers:
        with contextlib.suppress(NotFound):
            container.remove(force=True)
        _living.pop(container.id, None)


def _remove_left(name: str | None) -> None:
    """Raises `NotFound` where there is none of that name."""
    store = _store(absolute(default_root()))
    found = [container for container in store.containers() if (container.name or "").startswith(_PREFIX)]
    if name is not None:
        found = [container for container in found if container.name == name]
        if not found:
            raise NotFound(f"there is no container {name} of a sample in {default_root()}")
    store.remove(found, force=True)
    print(f"containers removed: {len(found)}")


def _text(output: bytes | None) -> str:
    return (output or b"").decode(errors="replace")
