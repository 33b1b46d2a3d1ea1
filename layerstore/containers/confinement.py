"""What keeps a container to itself, and docker's options that loosen it."""

from __future__ import annotations

import os
import posixpath
import re
import stat

from layerstore.containers.resources import PIDS_LIMIT, USUAL, Resources, resources, size
from layerstore.errors import InvalidInput, Unsupported
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Any, Literal, TypedDict

    from layerstore.containers.groups import Rule
    from layerstore.containers.networks import Port
    from layerstore.containers.tmpfs import Tmpfs

    class Loosened(TypedDict, total=False):
        """The arguments of `confined` that callers pass on."""

        security_opt: Sequence[str]
        cap_add: Sequence[str]
        cap_drop: Sequence[str]
        devices: Sequence[str]
        privileged: bool
        pids_limit: int | None
        memory: int | str | None
        memory_swap: int | str | None
        cpus: float | str | None
        cpu_shares: int | None
        cpuset_cpus: str | None
        ulimits: Sequence[str]
        shm_size: int | str | None
        read_only: bool
        tmpfs: Sequence[str]
        init: bool
        cgroups: Literal["enabled", "disabled"]
        ports: Sequence[str]


SHM_BYTES = 64 << 20
"""What /dev/shm of a container holds: docker's default."""

# Docker's, but for CAP_MKNOD.
CAPABILITIES = (
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
)

# In the order of their numbers (linux/capability.h).
_CAPABILITY_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE "
    "NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT "
    "SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL "
    "SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"
)
_ALL_CAPABILITIES = tuple(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())

# The devices that every container may use.
_USUAL_DEVICES: tuple[Rule, ...] = (
    ("c", 1, 3, "rwm"),  # null
    ("c", 1, 5, "rwm"),  # zero
    ("c", 1, 7, "rwm"),  # full
    ("c", 1, 8, "rwm"),  # random
    ("c", 1, 9, "rwm"),  # urandom
    ("c", 5, 0, "rwm"),  # tty
    ("c", 5, 1, "rwm"),  # console
    ("c", 5, 2, "rwm"),  # ptmx
    ("c", 136, None, "rwm"),  # pts/*
)

# As docker calls them; RLIMIT_NAME of getrlimit(2).
_ULIMITS = (
    *("core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile", "nproc", "rss", "rtprio"),
    *("rttime", "sigpending", "stack"),
)
_INFINITY = 2**64 - 1
_NR_OPEN = "/proc/sys/fs/nr_open"

# Below /dev, what a privileged container has of its own (docker).
_OWN_IN_DEV = (
    *("pts", "shm", "mqueue", "fd", "console"),
    *("null", "zero", "full", "random", "urandom", "tty", "ptmx"),
)
_SECURITY_OPTIONS = "seccomp=unconfined, seccomp=FILE.json and no-new-privileges are"


class Device(Value):
    """A device of the host in a container, at the absolute path `path`; `access` is letters of "rwm"."""

    def __init__(self, path: str, found: os.stat_result, access: str) -> None:
        self.path = path
        self.kind = "b" if stat.S_ISBLK(found.st_mode) else "c"
        self.major = os.major(found.st_rdev)
        self.minor = os.minor(found.st_rdev)
        self.mode = stat.S_IMODE(found.st_mode)
        self.uid = found.st_uid
        self.gid = found.st_gid
        self.access = access


class Confinement(Value):
    """How a container is confined.

    `seccomp`: a profile for the runtime (`linux.seccomp`), "default" or "unconfined". `rlimits`: as `process.rlimits`.
    `has_group`: it runs in a control group of its own. `shm_bytes`: the size of /dev/shm. `read_only`: its root is.
    `has_init`: its first process is an init of ours.
    `ports`: of a private network, those that the host's lead to.
    """

    def __init__(
        self,
        capabilities: tuple[str, ...] = CAPABILITIES,
        seccomp: dict[str, Any] | Literal["default", "unconfined"] = "default",
        no_new_privileges: bool = False,
        devices: tuple[Device, ...] = (),
        privileged: bool = False,
        resources: Resources = USUAL,
        has_group: bool = True,
        rlimits: tuple[dict[str, Any], ...] = (),
        shm_bytes: int = SHM_BYTES,
        read_only: bool = False,
        tmpfs: tuple[Tmpfs, ...] = (),
        has_init: bool = False,
        ports: tuple[Port, ...] = (),
    ) -> None:
        self.capabilities = capabilities
        self.seccomp = seccomp
        self.no_new_privileges = no_new_privileges
        self.devices = devices
        self.privileged = privileged
        self.resources = resources
        self.has_group = has_group
        self.rlimits = rlimits
        self.shm_bytes = shm_bytes
        self.read_only = read_only
        self.tmpfs = tmpfs
        self.has_init = has_init
        self.ports = ports

    @property
    def device_rules(self) -> list[Rule] | None:
        """The devices that the container may use; None for all."""
        if self.privileged:
            return None
        # The runtime, which is in the group as well, makes the device files.
        given = ((device.kind, device.major, device.minor, device.access + "m") for device in self.devices)
        return [*_USUAL_DEVICES, *given]


DEFAULT = Confinement()


def confined(
    security_opt: Sequence[str] = (),
    cap_add: Sequence[str] = (),
    cap_drop: Sequence[str] = (),
    devices: Sequence[str] = (),
    privileged: bool = False,
    pids_limit: int | None = None,
    memory: int | str | None = None,
    memory_swap: int | str | None = None,
    cpus: float | str | None = None,
    cpu_shares: int | None = None,
    cpuset_cpus: str | None = None,
    ulimits: Sequence[str] = (),
    shm_size: int | str | None = None,
    read_only: bool = False,
    tmpfs: Sequence[str] = (),
    init: bool = False,
    cgroups: Literal["enabled", "disabled"] = "enabled",
    ports: Sequence[str] = (),
) -> Confinement:
    """The confinement that docker's options of these names ask for; without any, the default.

    Raises `InvalidInput` for a value that is none, or two that do not go together, `Unsupported`, `OSError`.
    """
    for name, value in (
        ("security_opt", security_opt),
        ("cap_add", cap_add),
        ("cap_drop", cap_drop),
        ("devices", devices),
        ("ulimits", ulimits),
        ("tmpfs", tmpfs),
        ("ports", ports),
    ):
        if isinstance(value, str):
            raise InvalidInput(f"{name} is a list of strings, not the string {value!r}")
    if cgroups not in ("enabled", "disabled"):
        raise InvalidInput(f'control groups are "enabled" or "disabled", not {cgroups!r}')
    if pids_limit is None:
        pids_limit = PIDS_LIMIT if cgroups == "enabled" else -1
    asked = resources(pids_limit, memory, memory_swap, cpus, cpu_shares, cpuset_cpus)
    capabilities = _capabilities(cap_add, cap_drop, privileged)
    profile, no_new_privileges = _security(security_opt)
    seccomp: dict[str, Any] | Literal["default", "unconfined"] = "unconfined" if privileged else "default"
    if profile == "unconfined":
        seccomp = "unconfined"
    elif profile is not None:
        from layerstore.containers.seccomp import read_profile

        seccomp = read_profile(profile, capabilities)
    chosen = _host_devices() if privileged else ()
    result = Confinement(
        capabilities,
        seccomp,
        no_new_privileges,
        (*chosen, *map(_device, devices)),
        privileged,
        asked,
        cgroups == "enabled",
        _rlimits(ulimits),
        SHM_BYTES if shm_size is None else _shm_bytes(shm_size),
        read_only,
        _tmpfs(tmpfs),
        init,
        tuple(map(_port, ports)),
    )
    if not result.has_group:
        _check_without_group(result)
    return result


def _check_without_group(asked: Confinement) -> None:
    """Nothing but the mounts keeps such a container from devices, so that it must not make device files."""
    if limited := asked.resources.limited:
        raise InvalidInput(f"nothing can hold {' and '.join(limited)} where control groups are disabled")
    if asked.privileged:
        return
    for name, means in (("CAP_MKNOD", "make every device"), ("CAP_SYS_ADMIN", "mount its root again, with devices")):
        if name in asked.capabilities:
            raise InvalidInput(f"{name} would let the container {means} where control groups are disabled: drop one")
    for device in asked.devices:
        if not {"r", "w"} <= set(device.access):
            raise InvalidInput(
                f'nothing can keep {device.path} to "{device.access}" where control groups are disabled: give it as rwm'
            )


def _capabilities(added: Sequence[str], dropped: Sequence[str], privileged: bool) -> tuple[str, ...]:
    """ALL, then each by its name; what is dropped by its name goes, also where it was added."""
    if not added and not dropped and not privileged:
        return CAPABILITIES
    adds, drops = [_capability(name) for name in added], [_capability(name) for name in dropped]
    own = _own_capabilities()
    chosen = set(CAPABILITIES)
    if privileged or "ALL" in adds:
        chosen = set(own)
    chosen = set() if "ALL" in drops else chosen - set(drops)
    named = {name for name in adds if name != "ALL"}
    if missing := sorted(named - set(own)):
        raise Unsupported(f"cannot give a container {missing[0]}, which this process does not have itself")
    return tuple(name for name in _ALL_CAPABILITIES if name in chosen | (named - set(drops)))


def _capability(name: str) -> str:
    upper = name.upper()
    full = upper if upper == "ALL" or upper.startswith("CAP_") else f"CAP_{upper}"
    if full != "ALL" and full not in _ALL_CAPABILITIES:
        raise InvalidInput(f'there is no capability "{name}"; they are ALL and those of capabilities(7), as NET_ADMIN')
    return full


def _own_capabilities() -> tuple[str, ...]:
    """Those that this process may pass on."""
    with open("/proc/self/status", "rb") as file:
        bounding = next((line for line in file if line.startswith(b"CapBnd:")), b"CapBnd: 0")
    mask = int(bounding.split()[1], 16)
    return tuple(name for number, name in enumerate(_ALL_CAPABILITIES) if mask >> number & 1)


def _security(options: Iterable[str]) -> tuple[str | None, bool]:
    """The seccomp profile, if one was named, and whether no new privileges are to be had."""
    profile, no_new_privileges = None, False
    for option in options:
        name, separator, value = option.partition(":" if option.startswith("no-new-privileges:") else "=")
        if name == "seccomp" and value:
            profile = value
        elif name == "no-new-privileges" and (value in ("true", "false") or not separator):
            no_new_privileges = value != "false"
        else:
            raise InvalidInput(f'the security option "{option}" is not known: {_SECURITY_OPTIONS}')
    return profile, no_new_privileges


def _rlimits(texts: Iterable[str]) -> tuple[dict[str, Any], ...]:
    """Of NAME=SOFT[:HARD] each, -1 for no limit; the last of a name counts."""
    found = {}
    for text in texts:
        match = re.fullmatch(r"([a-z]+)=(-1|[0-9]+)(?::(-1|[0-9]+))?", text, re.ASCII)
        if match is None or match[1] not in _ULIMITS:
            raise InvalidInput(f'the ulimit "{text}" is not NAME=SOFT[:HARD], with a NAME of {", ".join(_ULIMITS)}')
        soft, hard = (_INFINITY if value == "-1" else int(value) for value in (match[2], match[3] or match[2]))
        if soft > hard or hard > _INFINITY:
            raise InvalidInput(f'the ulimit "{text}" has a soft limit that is more than the hard one')
        if match[1] == "nofile":
            with open(_NR_OPEN) as file:
                most = int(file.read())
            if hard > most:
                raise InvalidInput(f'the ulimit "{text}" is more than the {most} files that {_NR_OPEN} lets it be')
        found[match[1]] = {"type": f"RLIMIT_{match[1].upper()}", "soft": soft, "hard": hard}
    return tuple(found.values())


def _shm_bytes(given: int | str) -> int:
    value = size(given, "the size of /dev/shm")
    if not value:
        raise InvalidInput(f"the size of /dev/shm is {given!r}: it is 1 or more")
    return value


def _tmpfs(texts: Sequence[str]) -> tuple[Tmpfs, ...]:
    if not texts:
        return ()
    from layerstore.containers.tmpfs import tmpfs

    return tuple(map(tmpfs, texts))


def _port(text: str) -> Port:
    from layerstore.containers.networks import port

    return port(text)


def _device(text: str) -> Device:
    """Of HOST[:CONTAINER[:ACCESS]], or HOST:ACCESS."""
    host, *rest = text.split(":")
    if len(rest) == 1 and not rest[0].startswith("/"):
        rest = [host, *rest]
    target, access = [*rest, *(host, "rwm")[len(rest) :]][:2]
    if len(rest) > 2 or not host.startswith("/") or not target.startswith("/") or "\0" in text:
        raise InvalidInput(f'the device "{text}" is not HOST[:CONTAINER[:rwm]] with absolute paths')
    if not access or set(access) - set("rwm"):
        raise InvalidInput(f'the device "{text}" has the access "{access}": it is letters of rwm')
    try:
        found = os.stat(host)
    except OSError as error:
        raise InvalidInput(f'cannot give the device "{host}" to a container: {error.strerror}') from error
    if not stat.S_ISBLK(found.st_mode) and not stat.S_ISCHR(found.st_mode):
        raise InvalidInput(f'"{host}" is no device; `-v` (volumes) shows other files in a container')
    return Device(posixpath.normpath(target), found, access)


def _host_devices() -> tuple[Device, ...]:
    """All device files below /dev of the host."""
    found = []
    for directory, directories, files in os.walk("/dev"):
        if directory == "/dev":
            directories[:] = [name for name in directories if name not in _OWN_IN_DEV]
            files = [name for name in files if name not in _OWN_IN_DEV]
        for name in files:
            path = f"{directory}/{name}"
            try:
                status = os.lstat(path)
            except FileNotFoundError:
                continue
            if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
                found.append(Device(path, status, "rwm"))
    return tuple(found)
