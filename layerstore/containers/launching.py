"""What a container is confined by from its start on: the filter of its system calls, its control group, its devices."""

from __future__ import annotations

import contextlib
import os

from layerstore.containers import groups, networks, seccomp
from layerstore.containers.runtime import find_program
from layerstore.errors import Unsupported

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from layerstore.containers.confinement import Confinement
    from layerstore.containers.groups import Group
    from layerstore.containers.networks import Network, Port
    from layerstore.containers.runtime import Runtime

_REMOUNT = 'while read -r line; do :; done; exec "$0" -n -o remount,bind,nodev "$1"'
GROUPED = "layerstore.group"
"""Annotation of a container that has a control group."""
_FILTER = "run.oci.seccomp_bpf_data"  # crun(1)


def complete(spec: dict[str, Any], confinement: Confinement, runtime: Runtime, container: str, directory: str) -> None:
    """Add to a spec of `runtime_spec` what this runtime is to confine the container by.

    `directory` is where compiled filters are kept. Raises `Unsupported`, `OSError`.
    """
    _add_seccomp(spec, confinement, runtime, directory)
    if confinement.has_group:
        spec.setdefault("annotations", {})[GROUPED] = "yes"
    if not confinement.has_group:
        if not runtime.starts_in_group:
            raise Unsupported(f"{runtime.name} always makes control groups: without them, install crun")
        if not confinement.privileged:
            _refuse_devices(spec)
    elif not runtime.starts_in_group:
        spec["linux"]["cgroupsPath"] = f"/{groups.name_of(container)}"
        spec["linux"]["resources"] = runtime_resources(confinement)


@contextlib.contextmanager
def grouped(confinement: Confinement, runtime: Runtime, container: str) -> Iterator[Group | None]:
    """The control group for this runtime to start a container in, if it has one, for the block that starts it and waits
    for its end.

    Raises `Conflict` while another process has it, `Unsupported` where there can be none, `OSError`.
    """
    memory = confinement.resources.memory
    if not confinement.has_group or not runtime.starts_in_group:
        is_counted = confinement.has_group and memory is not None and groups.make_counting(container, memory)
        try:
            yield None
        except BaseException:
            if is_counted:
                groups.remove([container], force=True)
            raise
        return
    group = groups.make(container, confinement.resources, confinement.device_rules)
    try:
        yield group
    except BaseException:
        group.remove()
        raise
    if group.stays:
        group.release()
    else:
        group.remove()


@contextlib.contextmanager
def networked(spec: dict[str, Any], network: str, ports: Sequence[Port], container: str) -> Iterator[Network | None]:
    """The network of a container's own, if it is to have a "private" one, for the block that starts it and waits for
    its end. The spec names it then. Raises as `networks.private`."""
    if network != "private":
        yield None
        return
    with networks.private(container, ports) as made:
        (namespace,) = (one for one in spec["linux"]["namespaces"] if one["type"] == "network")
        namespace["path"] = made.path
        yield made


def _refuse_devices(spec: dict[str, Any]) -> None:
    """Have no device file be opened but those that the runtime makes, where no group holds rules: by the mounts."""
    for mount in spec["mounts"]:
        if mount["type"] == "bind":
            # crun opens the target of a recursive option as a directory.
            below = "r" if os.path.isdir(mount["source"]) else ""
            mount["options"] = [*mount["options"], f"{below}nodev"]
    program = find_program("mount")
    if program is None:
        raise Unsupported("without control groups mount(8) refuses devices, and it is not installed (Debian: mount)")
    # The runtime specification knows no such option of the root. A hook that does not read what crun writes to it may
    # fail crun.
    arguments = ["sh", "-c", _REMOUNT, program, spec["root"]["path"]]
    spec["hooks"] = {"createContainer": [{"path": "/bin/sh", "args": arguments}]}


def _add_seccomp(spec: dict[str, Any], confinement: Confinement, runtime: Runtime, directory: str) -> None:
    wanted = confinement.seccomp
    if wanted == "unconfined":
        return
    seccomp.check_kernel()
    if not isinstance(wanted, str):
        spec["linux"]["seccomp"] = wanted
        return
    capabilities = frozenset(confinement.capabilities)
    compiled = seccomp.default_filter(capabilities, directory) if runtime.name == "crun" else None
    if compiled is None:
        spec["linux"]["seccomp"] = seccomp.default_profile(capabilities)
        return
    # A crun that does not know the annotation goes by the profile, which lets nothing start.
    spec["linux"]["seccomp"] = {"defaultAction": "SCMP_ACT_ERRNO"}
    spec.setdefault("annotations", {})[_FILTER] = compiled


def runtime_resources(confinement: Confinement) -> dict[str, Any]:
    """`linux.resources` of the OCI runtime specification, for a runtime that makes a control group itself."""
    rules = confinement.device_rules
    if rules is None:
        devices: list[dict[str, Any]] = [{"allow": True, "access": "rwm"}]
    else:
        # To make a device file is a matter of CAP_MKNOD (csrc/mount/cgroup.c).
        devices = [{"allow": False, "access": "rwm"}]
        devices += [{"allow": True, "type": kind, "access": "m"} for kind in "cb"]
        for kind, major, minor, access in rules:
            known = {"major": major} if minor is None else {"major": major, "minor": minor}
            devices.append({"allow": True, "type": kind, **known, "access": access})
    return {"devices": devices, **confinement.resources.of_runtime()}
