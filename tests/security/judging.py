"""What may differ between our container and docker's and podman's, and why: each difference has to be named here."""

import re
from collections.abc import Iterator

from security.probing import Answers

Thing = tuple[str, str]

# What ours allows and docker's default refuses, and why that is right. Every line has to be of use.
EXCUSED: dict[Thing, str] = {
    ("system calls", "name_to_handle_at"): "docker allows it from 23 on: a handle opens nothing",
    ("system calls", "process_vm_readv of a process of its own"): "docker allows it from 23 on: `ptrace` does more",
}

_NEWER = "newer versions of docker refuse it"
_USER_NAMESPACE = "as docker's: with all capabilities of a namespace, a program reaches more faults of the kernel"

# Why ours answers otherwise than docker's or podman's: a pattern of "group: name", and the reason.
EXPLAINED: list[tuple[str, str]] = [
    (r"system calls: io_uring_\w+( by int 0x80)?", f"as podman's; {_NEWER} too, for its many faults"),
    (r"sockets: AF_VSOCK", f"{_NEWER}: it leads to other virtual machines, and to their host"),
    (r"system calls: .*user namespace.*|namespaces of its own: unshare: user", _USER_NAMESPACE),
    (r"control groups: mount of .* in .*namespaces?", _USER_NAMESPACE),
    (r"system calls: clone3", "as docker's: no filter sees its flags; the C library falls back to `clone`"),
    (r"system calls: (mbind|[gs]et_mempolicy)", "as docker's, without CAP_SYS_NICE"),
    (r"system calls: pidfd_getfd", "as docker's, without CAP_SYS_PTRACE"),
    (r"system calls: keyctl", "as docker's: keyrings belong to users, not to containers"),
    (r"the host: a key of the user's keyring, .*", "no call reaches keyrings"),
    (r"devices: mknod of .*|capabilities: mknod", "as podman's: no CAP_MKNOD; the usual nodes are there"),
    (r"devices: /dev/(console|net/tun)", "as podman's: without CAP_MKNOD it cannot be made; `--device` gives it"),
    (r"capabilities: net_raw|sockets: AF_(INET|PACKET) raw.*", "as docker's: `ping` needs it"),
    (
        r"capabilities: audit_write|sockets: AF_NETLINK: audit",
        "as docker's: `su` and `login` tell of what they do; to read that takes more",
    ),
    (r"sockets: a port below 1024", "as podman's; docker sets `net.ipv4.ip_unprivileged_port_start` to 0"),
    (r"files of the kernel, to read: /proc/interrupts", "masked, as newer versions of docker do"),
    (r"the host: more than 2,100 processes", "as podman's: 2,048 at most, or `--pids-limit`"),
    (
        r"the host's namespaces: cgroup|control groups: its place among the host's groups",
        "a cgroup namespace of its own; docker and podman make none where control groups are of version 1",
    ),
]


def more_than(ours: Answers, theirs: Answers) -> list[Thing]:
    """What ours allows and theirs refuses, but for what is excused."""
    return [
        thing for thing, found in ours.items() if found.allowed and not theirs[thing].allowed and thing not in EXCUSED
    ]


def differences(ours: Answers, others: list[Answers]) -> Iterator[Thing]:
    """What ours answers otherwise than any of the others."""
    for thing, found in ours.items():
        if any(other[thing].allowed != found.allowed for other in others):
            yield thing


def pattern(thing: Thing) -> str | None:
    """The pattern of `EXPLAINED` that is meant for it."""
    return next((one for one, _ in EXPLAINED if re.fullmatch(one, ": ".join(thing))), None)


def explanation(thing: Thing) -> str | None:
    found = pattern(thing)
    return None if found is None else dict(EXPLAINED)[found]
