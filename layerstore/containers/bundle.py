"""From an image's config to the config.json of an OCI runtime bundle (OCI runtime specification 1.0.2).

The defaults are docker's: masked and read-only paths, mounts, namespaces, one for control groups among them, and
capabilities but for CAP_MKNOD. What else confines a container, and what loosens it, is in `confinement.py`; the filter
of system calls (`seccomp.py`) and the control group (`groups.py`) are added when it starts (`launching.py`).
"""

from __future__ import annotations

import os
import posixpath
import re
import signal

from layerstore.containers import users
from layerstore.containers.confinement import DEFAULT
from layerstore.containers.rootfs import Rootfs
from layerstore.errors import InvalidInput
from layerstore.store.layout import absolute
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Literal

    from layerstore.containers.confinement import Confinement
    from layerstore.containers.tmpfs import Tmpfs

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_MASKED_PATHS = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
]

_CPUS = "/sys/devices/system/cpu"

_READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

# Each with the options after "nosuid".
_MOUNTS = [
    ("/proc", "proc", "proc", ["noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", ["noexec", "nodev", "mode=1777"]),
    ("/dev/mqueue", "mqueue", "mqueue", ["noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", ["noexec", "nodev", "ro"]),
]

_NAME_BYTES = 64  # sethostname(2)
_HOST_NETWORK_FILES = ["/etc/resolv.conf", "/etc/hosts"]


class Volume(Value):
    """A file or directory of the host, shown in the container at the absolute path `target`."""

    def __init__(self, source: str, target: str, read_only: bool = False) -> None:
        self.source = source
        self.target = target
        self.read_only = read_only


def runtime_spec(
    image_config: Mapping[str, Any],
    rootfs: str | os.PathLike[str],
    *,
    args: Sequence[str] | None = None,
    entrypoint: Sequence[str] | None = None,
    env: Sequence[str] = (),
    workdir: str | None = None,
    user: str | None = None,
    tty: bool = False,
    network: Literal["host", "none", "private"] = "none",
    volumes: Sequence[Volume] = (),
    hostname: str | None = None,
    confinement: Confinement = DEFAULT,
) -> dict[str, Any]:
    """The config.json for a container of an image (its OCI image config, as parsed JSON) on a mounted root.

    `args` replace the image's Cmd; `entrypoint` replaces its Entrypoint and drops its Cmd. `env` ("NAME=value"),
    `workdir` and `user` have precedence over the image's. Mount points of `volumes` and the working directory are made
    in `rootfs` where they are missing. Without `hostname` it is the host's on the host's network, else "localhost".
    Seccomp, device rules, the limits of control groups and the files of a private network are not in it.
    Raises `InvalidInput` when the image or the call names no command, an unknown user, or an unusable path.
    """
    if network not in ("host", "none", "private"):
        raise InvalidInput(f'the network "{network}" is not known: "host", "none" and "private" are')
    if confinement.ports and network != "private":
        raise InvalidInput(f'ports are published of a "private" network only, not with "{network}"')
    config = _section(image_config, "config")
    name = hostname or (os.uname().nodename if network == "host" else "localhost")
    if "\0" in name or len(os.fsencode(name)) > _NAME_BYTES:
        raise InvalidInput(f"the host name {name!r} is no name of at most {_NAME_BYTES} bytes")
    directory = _absolute(workdir or _text(config, "WorkingDir") or "/", "the working directory")
    with Rootfs(rootfs) as inside:
        identity = users.look_up(inside, _text(config, "User") if user is None else user)
        mounts = _default_mounts(confinement) + _shown(inside, volumes, confinement.tmpfs, network)
        if directory != "/":
            inside.make_directory(directory)
    return {
        "ociVersion": "1.0.2",
        "hostname": name,
        "root": {"path": absolute(rootfs), "readonly": confinement.read_only},
        "mounts": mounts,
        "process": {
            "terminal": tty,
            "args": _command(config, args, entrypoint),
            "env": _environment(_texts(config, "Env"), env, name, identity.home, tty),
            "cwd": directory,
            "user": _user(identity),
            "capabilities": _capabilities(confinement.capabilities, identity.uid),
            "noNewPrivileges": confinement.no_new_privileges,
            **({"rlimits": list(confinement.rlimits)} if confinement.rlimits else {}),
        },
        "linux": _linux(network, confinement),
    }


def command_process(
    spec: Mapping[str, Any],
    image_config: Mapping[str, Any],
    args: Sequence[str],
    *,
    env: Sequence[str] = (),
    workdir: str | None = None,
    user: str | None = None,
    tty: bool = False,
) -> dict[str, Any]:
    """The process of a command in a container that was started with `spec`: as its first one, but for what is given.

    Another user has the home directory of that user, unless the image's config sets HOME. Raises as `runtime_spec`.
    """
    process = dict(spec["process"])
    home = None
    if user is not None:
        with Rootfs(spec["root"]["path"]) as inside:
            identity = users.look_up(inside, user)
        process["user"] = _user(identity)
        process["capabilities"] = _capabilities(tuple(process["capabilities"]["bounding"]), identity.uid)
        if not any(text.startswith("HOME=") for text in _texts(_section(image_config, "config"), "Env")):
            home = identity.home
    values = ({"TERM": "xterm"} if tty else {}) | _pairs(process["env"])
    if home is not None:
        values["HOME"] = home
    values |= _pairs(env)
    if workdir is not None:
        process["cwd"] = _absolute(workdir, "the working directory")
    process["env"] = [f"{name}={value}" for name, value in values.items()]
    return {**process, "terminal": tty, "args": list(args)}


def stop_signal(image_config: Mapping[str, Any]) -> int:
    """The signal that asks a program of the image to end: what its config says, else SIGTERM."""
    text = _text(_section(image_config, "config"), "StopSignal").upper().removeprefix("SIG")
    if re.fullmatch("[0-9]{1,2}", text):
        number = int(text)
    elif found := re.fullmatch(r"RT(MIN|MAX)([+-][0-9]{1,2})?", text):
        number = signal.Signals[f"SIGRT{found[1]}"] + int(found[2] or 0)
    else:
        number = signal.Signals.__members__.get(f"SIG{text}", signal.SIGTERM)
    return number if 0 < number < signal.NSIG else signal.SIGTERM


def _section(document: Mapping[str, Any], field: str) -> Mapping[str, Any]:
    value = document.get(field)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput(f'"{field}" in the image\'s config is not an object')
    return value


def _text(config: Mapping[str, Any], field: str) -> str:
    value = config.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise InvalidInput(f'"{field}" in the image\'s config is not a string')
    return value


def _texts(config: Mapping[str, Any], field: str) -> list[str]:
    value = config.get(field)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidInput(f'"{field}" in the image\'s config is not a list of strings')
    return value


def _absolute(path: str, what: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidInput(f'{what} "{path}" is not an absolute path')
    return "/" + posixpath.normpath(path).lstrip("/")


def _command(config: Mapping[str, Any], args: Sequence[str] | None, entrypoint: Sequence[str] | None) -> list[str]:
    """Docker's rules: an entrypoint of the caller's does not go with the Cmd that was meant for the image's."""
    if entrypoint is None:
        command = _texts(config, "Entrypoint") + list(args or _texts(config, "Cmd"))
    else:
        command = [part for part in entrypoint if part] + list(args or ())
    if not command:
        raise InvalidInput("no command to run: the image names no Entrypoint and no Cmd, so give one")
    return command


def _environment(image: Sequence[str], own: Sequence[str], hostname: str, home: str, tty: bool) -> list[str]:
    values = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if tty:
        values["TERM"] = "xterm"
    values |= _pairs([*image, *own])
    values.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in values.items()]


def _pairs(environment: Sequence[str]) -> dict[str, str]:
    values = {}
    for pair in environment:
        name, separator, value = pair.partition("=")
        if not name or not separator or "\0" in pair:
            raise InvalidInput(f'the environment variable "{pair}" is not of the form NAME=value')
        values[name] = value
    return values


def _user(identity: users.Identity) -> dict[str, Any]:
    return {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.additional_gids)}


def _default_mounts(confinement: Confinement) -> list[dict[str, Any]]:
    mounts = []
    for path, kind, source, options in _MOUNTS:
        given = ["nosuid", *(option for option in options if not (confinement.privileged and option == "ro"))]
        if source == "shm":
            given.append(f"size={confinement.shm_bytes}")
        mounts.append({"destination": path, "type": kind, "source": source, "options": given})
    return mounts


def _shown(inside: Rootfs, volumes: Sequence[Volume], tmpfs: Sequence[Tmpfs], network: str) -> list[dict[str, Any]]:
    """The mounts that were asked for, parents first, after their mount points were made."""
    wanted: dict[str, Volume | Tmpfs] = {}
    if network == "host":
        wanted = {path: Volume(path, path, True) for path in _HOST_NETWORK_FILES if os.path.isfile(path)}
    for given in volumes:
        target = _absolute(given.target, "the target of a volume")
        if target == "/":
            raise InvalidInput(f'the volume "{given.source}" cannot cover the root of the container')
        wanted[target] = given
    for one in tmpfs:
        if one.target in wanted:
            raise InvalidInput(f'two mounts want the place "{one.target}" in the container')
        wanted[one.target] = one
    parents = [*(posixpath.normpath(volume.target) for volume in volumes), *(one.target for one in tmpfs)]
    mounts = []
    for target, volume in sorted(wanted.items(), key=lambda item: item[0].count("/")):
        is_below = any(target.startswith(f"{parent}/") for parent in parents)
        if not isinstance(volume, Volume):
            if not is_below:
                inside.make_mount_point(target, directory=True)
            mounts.append(volume.mount())
            continue
        source = volume.source
        if not os.path.isabs(source) or not os.path.exists(source):
            raise InvalidInput(f'the source "{source}" of a volume is not an existing absolute path of the host')
        if not is_below:  # else the runtime makes its mount point: one in the root would be covered
            inside.make_mount_point(target, directory=os.path.isdir(source))
        holds_others = any(other.startswith(f"{target}/") for other in wanted)
        options = ["rbind", "rprivate", _read_only(source, holds_others) if volume.read_only else "rw"]
        mounts.append({"destination": target, "type": "bind", "source": source, "options": options})
    return mounts


def _throttles() -> list[str]:
    """What each processor tells of its heat, by which a program can tell what others compute (GHSA-6fw5-f8r9-fgfm)."""
    with os.scandir(_CPUS) as found:
        paths = [f"{entry.path}/thermal_throttle" for entry in found if entry.name[3:].isdigit()]
    return sorted(filter(os.path.exists, paths))


def _read_only(source: str, holds_others: bool) -> str:
    """The option of a bind: with what is mounted below a directory where the kernel can do that (mount_setattr(2)), but
    the runtime could not make the mount point of another volume in it then."""
    if holds_others or not os.path.isdir(source):
        return "ro"
    major, minor = map(int, re.findall(r"\d+", os.uname().release)[:2])
    return "rro" if (major, minor) >= (5, 12) else "ro"


def _capabilities(given: tuple[str, ...], uid: int) -> dict[str, list[str]]:
    capabilities = list(given)
    if uid != 0:
        return {"bounding": capabilities}  # what execve(2) would leave to such a user
    return {"bounding": capabilities, "effective": capabilities, "permitted": capabilities}


def _linux(network: str, confinement: Confinement) -> dict[str, Any]:
    namespaces = ["pid", "ipc", "uts", "mount", "cgroup"]
    if network != "host":
        namespaces.append("network")
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in namespaces],
        "maskedPaths": [] if confinement.privileged else [*_MASKED_PATHS, *_throttles()],
        "readonlyPaths": [] if confinement.privileged else list(_READONLY_PATHS),
    }
    if confinement.devices:
        linux["devices"] = [
            {
                "path": device.path,
                "type": device.kind,
                "major": device.major,
                "minor": device.minor,
                "fileMode": device.mode,
                "uid": device.uid,
                "gid": device.gid,
            }
            for device in confinement.devices
        ]
    return linux
