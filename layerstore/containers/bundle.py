"""From an image's config to the config.json of an OCI runtime bundle (OCI runtime specification 1.0.2).

The defaults are docker's: masked and read-only paths, mounts, namespaces, and capabilities but for CAP_MKNOD. Its
seccomp profile is not among them: a container started from this spec may make every system call that its capabilities
allow.

A container stays in its caller's control group, and so within its caller's limits: entering one of its own waits for a
grace period of RCU, which takes longer than all else that a start does. Docker's keeps devices from being opened. Here
none can be made, so that only an image which brings others than the usual ones needs such a group.
"""

from __future__ import annotations

import os
import posixpath

from layerstore.containers import users
from layerstore.containers.rootfs import Rootfs
from layerstore.errors import InvalidInput
from layerstore.store.layout import absolute
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any, Literal

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]

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

_READONLY_PATHS = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]

# Each with the options after "nosuid".
_MOUNTS = [
    ("/proc", "proc", "proc", ["noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", ["strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", ["noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", ["noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", ["noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", ["noexec", "nodev", "ro"]),
]

# Type, major, minor (None: every number) of the devices that a container may open.
_ALLOWED_DEVICES = [
    ("c", 1, 3),  # null
    ("c", 1, 5),  # zero
    ("c", 1, 7),  # full
    ("c", 1, 8),  # random
    ("c", 1, 9),  # urandom
    ("c", 5, 0),  # tty
    ("c", 5, 1),  # console
    ("c", 5, 2),  # ptmx
    ("c", 136, None),  # pts/*
]

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
    network: Literal["host", "none"] = "none",
    volumes: Sequence[Volume] = (),
    hostname: str | None = None,
    device_rules: bool = False,
) -> dict[str, Any]:
    """The config.json for a container of an image (its OCI image config, as parsed JSON) on a mounted root.

    `args` replace the image's Cmd; `entrypoint` replaces its Entrypoint and drops its Cmd. `env` ("NAME=value"),
    `workdir` and `user` have precedence over the image's. Mount points of `volumes` and the working directory are made
    in `rootfs` where they are missing. Without `hostname` it is the host's on the host's network, else "localhost".
    With `device_rules` (see `needs_device_rules`) a control group keeps it from opening others than the usual devices.
    Raises `InvalidInput` when the image or the call names no command, an unknown user, or an unusable path.
    """
    if network not in ("host", "none"):
        raise InvalidInput(f'the network "{network}" is not known: "host" and "none" are')
    config = _section(image_config, "config")
    name = hostname or (os.uname().nodename if network == "host" else "localhost")
    directory = _absolute(workdir or _text(config, "WorkingDir") or "/", "the working directory")
    with Rootfs(rootfs) as inside:
        identity = users.look_up(inside, _text(config, "User") if user is None else user)
        mounts = _default_mounts() + _binds(inside, volumes, network)
        if directory != "/":
            inside.make_directory(directory)
    return {
        "ociVersion": "1.0.2",
        "hostname": name,
        "root": {"path": absolute(rootfs), "readonly": False},
        "mounts": mounts,
        "process": {
            "terminal": tty,
            "args": _command(config, args, entrypoint),
            "env": _environment(_texts(config, "Env"), env, name, identity.home, tty),
            "cwd": directory,
            "user": {"uid": identity.uid, "gid": identity.gid, "additionalGids": list(identity.additional_gids)},
            "capabilities": _capabilities(identity.uid),
            "noNewPrivileges": False,
        },
        "linux": _linux(network, device_rules),
    }


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
    for pair in [*image, *own]:
        name, separator, value = pair.partition("=")
        if not name or not separator or "\0" in pair:
            raise InvalidInput(f'the environment variable "{pair}" is not of the form NAME=value')
        values[name] = value
    values.setdefault("HOME", home)
    return [f"{name}={value}" for name, value in values.items()]


def _default_mounts() -> list[dict[str, Any]]:
    return [
        {"destination": path, "type": kind, "source": source, "options": ["nosuid", *options]}
        for path, kind, source, options in _MOUNTS
    ]


def _binds(inside: Rootfs, volumes: Sequence[Volume], network: str) -> list[dict[str, Any]]:
    """The bind mounts, parents first, after their mount points were made."""
    wanted = {}
    if network == "host":
        wanted = {path: Volume(path, path, True) for path in _HOST_NETWORK_FILES if os.path.isfile(path)}
    for volume in volumes:
        target = _absolute(volume.target, "the target of a volume")
        if target == "/":
            raise InvalidInput(f'the volume "{volume.source}" cannot cover the root of the container')
        wanted[target] = volume
    mounts = []
    for target, volume in sorted(wanted.items(), key=lambda item: item[0].count("/")):
        source = volume.source
        if not os.path.isabs(source) or not os.path.exists(source):
            raise InvalidInput(f'the source "{source}" of a volume is not an existing absolute path of the host')
        if not _is_below_a_volume(target, volumes):
            inside.make_mount_point(target, directory=os.path.isdir(source))
        options = ["rbind", "rprivate", "ro" if volume.read_only else "rw"]
        mounts.append({"destination": target, "type": "bind", "source": source, "options": options})
    return mounts


def _is_below_a_volume(target: str, volumes: Sequence[Volume]) -> bool:
    """Its mount point is then made by the runtime, in that volume: one in the root would be covered."""
    parents = [posixpath.normpath(volume.target) for volume in volumes]
    return any(target.startswith(f"{parent}/") for parent in parents)


def needs_device_rules(devices: Iterable[tuple[str, int, int]]) -> bool:
    """Whether an image with these devices (`Chain.devices`) holds one that its containers must not open."""
    return any(
        (kind, major, minor) not in _ALLOWED_DEVICES and (kind, major, None) not in _ALLOWED_DEVICES
        for kind, major, minor in devices
    )


def _capabilities(uid: int) -> dict[str, list[str]]:
    if uid != 0:
        return {"bounding": _CAPABILITIES}  # what execve(2) would leave to such a user
    return {"bounding": _CAPABILITIES, "effective": _CAPABILITIES, "permitted": _CAPABILITIES}


def _linux(network: str, device_rules: bool) -> dict[str, Any]:
    namespaces = ["pid", "ipc", "uts", "mount"]
    if network == "none":
        namespaces.append("network")
    linux: dict[str, Any] = {
        "namespaces": [{"type": kind} for kind in namespaces],
        "maskedPaths": list(_MASKED_PATHS),
        "readonlyPaths": list(_READONLY_PATHS),
    }
    if device_rules:
        linux["resources"] = {"devices": _device_rules()}
    return linux


def _device_rules() -> list[dict[str, Any]]:
    rules: list[dict[str, Any]] = [{"allow": False, "access": "rwm"}]
    for kind, major, minor in _ALLOWED_DEVICES:
        known = {"major": major} if minor is None else {"major": major, "minor": minor}
        rules.append({"allow": True, "type": kind, **known, "access": "rwm"})
    return rules
