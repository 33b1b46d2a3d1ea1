"""Containers that live without a program of their own: a small process of ours keeps their namespaces, for commands.

That process (csrc/mount/keeper.h) is a program of this package, shown in the container's /dev, so that the image need
not have any. It is confined as every program of that container.
"""

from __future__ import annotations

import contextlib
import json
import os

from layerstore._core import mount
from layerstore.containers.standard_streams import NULL_DEVICE
from layerstore.errors import InvalidInput, Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from layerstore.containers.processes import Process

KEEPER = "/dev/.init"
"""What the keeper is called in a container; no image has a /dev of its own there."""
_PID_NAMESPACE = "/proc/{}/ns/pid"


forgotten: list[Process] = []
"""Commands that nobody has any more, and that ran then."""


def see_to_forgotten() -> None:
    """Take note of the ends of commands that nobody has any more: until then they count as running."""
    for process in list(forgotten):
        with contextlib.suppress(Exception):  # nobody to be told
            process.poll()
        if process.returncode is not None:
            with contextlib.suppress(ValueError):  # another thread was faster
                forgotten.remove(process)


def shown(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec of `bundle.runtime_spec`, with the keeper in the container's /dev. Raises `Unsupported` where this machine
    has none."""
    program = f"{os.path.dirname(mount.__file__)}/keeper"
    if not os.path.exists(program):
        raise Unsupported(
            "on this processor nothing keeps a container alive that runs no program: first start one that stays, as "
            "`sleep infinity`"
        )
    if any(each["type"] == "bind" and each["destination"] in ("/dev", KEEPER) for each in spec["mounts"]):
        raise InvalidInput(
            f"a volume takes the place of {KEEPER}, by which a container lives: start a program that stays, and no init"
        )
    options = ["bind", "ro", "nosuid", "nodev"]
    bind = {"destination": KEEPER, "type": "bind", "source": program, "options": options}
    return {**spec, "mounts": [*spec["mounts"], bind]}


def under_init(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec whose program is started by the keeper, which waits for what it leaves and sends it signals. Raises as
    `shown`."""
    process = spec["process"]
    return shown({**spec, "process": {**process, "args": [KEEPER, *process["args"]]}})


def program_of(spec: Mapping[str, Any]) -> list[str]:
    """The arguments of a spec's program, without an init."""
    args: list[str] = spec["process"]["args"]
    return args[1:] if args[0] == KEEPER and len(args) > 1 else args


def is_kept(bundle: str) -> bool:
    """Whether what was last started of a bundle, a directory, was the keeper."""
    try:
        return bool(read_spec(bundle)["process"]["args"] == [KEEPER])
    except (FileNotFoundError, ValueError):  # nothing was, or somebody writes it
        return False


def read_spec(bundle: str) -> Mapping[str, Any]:
    """The config.json of a bundle. Raises `FileNotFoundError`, `ValueError`, `OSError`."""
    with open(f"{bundle}/config.json", "rb") as file:
        spec: dict[str, Any] = json.load(file)
    return spec


def remove_files(bundle: str) -> None:
    """Remove what commands of killed callers have left in a bundle, while there are none."""
    names: list[str] = []
    with contextlib.suppress(FileNotFoundError):  # the container was removed
        names = os.listdir(bundle)
    for name in names:
        if name.startswith(("command-", NULL_DEVICE)):
            with contextlib.suppress(OSError):
                os.unlink(f"{bundle}/{name}")


def processes(first: int) -> list[int]:
    """The process ids, on this machine, of what is in the container that has this one as its first."""
    namespace = _namespace(str(first))
    found = (pid for pid in os.listdir("/proc") if pid.isdigit() and _namespace(pid) == namespace)
    return [] if namespace is None else sorted(map(int, found))


def _namespace(pid: str) -> str | None:
    try:
        return os.readlink(_PID_NAMESPACE.format(pid))
    except OSError:  # it has ended, or is another user's
        return None
