"""A network of a container's own, with a way out: a network namespace, and pasta(1) beside it.

pasta (Debian: passt) copies between that namespace and sockets of the host. It needs no address of its own, no rule of
a firewall and no daemon. It runs in a control group of its own beside the container's, by which it is ended: with the
program, by who waits for it or its monitor, and else where the control group of the container is taken away
(`groups.py`).
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re

from layerstore._core import mount
from layerstore.containers import groups
from layerstore.containers.runtime import find_program
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, Unsupported
from layerstore.naming import about, close_fd, fstat, null_device, path_of
from layerstore.store.pieces import read_at
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Literal

_PORT = r"(?:(?P<address>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<host>\d+):(?P<own>\d+)(?:/(?P<protocol>tcp|udp))?"
_MOST_PORT = 65535
_NAMES = "169.254.1.1"
"""Where programs ask for names: an address of no host (RFC 3927), of which pasta sends the questions on."""
_SINCE_FLOWS = "--map-host-loopback"
_NOISE = "Failed to send"
_END = 'PATH=/usr/bin:/bin; cd "$1" && [ "$(stat -c %i .)" = "$2" ] && echo 1 >cgroup.kill'


class Port(Value):
    """A port of the host that leads to one of a container. `address` is the host's, None for every one."""

    def __init__(self, host: int, own: int, protocol: Literal["tcp", "udp"], address: str | None) -> None:
        self.host = host
        self.own = own
        self.protocol = protocol
        self.address = address

    def option(self) -> list[str]:
        """As pasta takes it."""
        address = "" if self.address is None else f"{self.address}/"
        return ["-t" if self.protocol == "tcp" else "-u", f"{address}{self.host}:{self.own}"]


def port(text: str) -> Port:
    """Of [ADDRESS:]HOST:CONTAINER[/tcp|udp], as docker takes it. Raises `InvalidInput`."""
    found = re.fullmatch(_PORT, text, re.ASCII)
    if found is None:
        raise InvalidInput(f'the port "{text}" is not [ADDRESS:]HOST:CONTAINER[/udp], as 8080:80 or 127.0.0.1:8080:80')
    host, own = int(found["host"]), int(found["own"])
    if not (0 < host <= _MOST_PORT and 0 < own <= _MOST_PORT):
        raise InvalidInput(f'the port "{text}" is none: ports are numbers from 1 to {_MOST_PORT}')
    address = found["address"]
    if address is not None:
        try:
            address = str(ipaddress.ip_address(address.strip("[]")))
        except ValueError:
            raise InvalidInput(
                f'the port "{text}" has the address {address}, which is neither IPv4 nor [IPv6]'
            ) from None
    return Port(host, own, "udp" if found["protocol"] == "udp" else "tcp", address)


class Network:
    """A network of a container, which ends with the block that made it unless it `stays`."""

    def __init__(self, namespace: int, group: int) -> None:
        self.path = f"/proc/{os.getpid()}/fd/{namespace}"
        """Of the namespace, in the block."""
        self.ending = ["/bin/sh", "-c", _END, "sh", path_of(group), str(fstat(group).st_ino)]
        """A command that ends it, and never that of a later start."""
        self.stays = False


@contextlib.contextmanager
def private(container: str, ports: Sequence[Port]) -> Iterator[Network]:
    """The network of a container (its id) that is about to start, with its way out and these ports.

    By who holds the container's lock of programs. Raises `Conflict` where a port is taken, `Unsupported` without pasta
    or the privilege, `OSError`.
    """
    program = find_program("pasta")
    if program is None:
        raise Unsupported("a private network needs pasta, which is not installed (Debian: passt)")
    _check_datagrams(program, ports)
    namespace = mount.network_make()
    try:
        with groups.aside(container) as group:
            network = Network(namespace, group.directory)
            _start(program, namespace, ports, group.directory)
            yield network
            group.stays = network.stays
    finally:
        close_fd(namespace)


def _check_datagrams(program: str, ports: Sequence[Port]) -> None:
    """A pasta from before its flows of datagrams (July 2024), as Debian 12's, loses the answers from another port."""
    if any(port.protocol == "udp" and port.host != port.own for port in ports):
        _, text = _output([program, "--help"])
        if _SINCE_FLOWS not in text:
            raise Unsupported(
                "the pasta of this machine publishes a port of UDP under the same number only, as 53:53/udp; "
                "for another one install a passt of August 2024 or later"
            )


def _output(argv: Sequence[str], stdin: int | None = None, group: int = -1) -> tuple[int, str]:
    """The exit status of a program, and what it wrote. Where SIGCHLD is ignored the kernel keeps no status: 0."""
    with about("the messages of pasta"):
        messages = os.memfd_create("messages")
    try:
        with null_device() as nothing:
            given = (nothing if stdin is None else stdin, messages, messages)
            pid = mount.spawn(argv, {}, "/", given, group_fd=group)
        status = 0
        with contextlib.suppress(ChildProcessError):
            status = os.waitpid(pid, 0)[1]
        return status, read_at(messages, fstat(messages).st_size, 0).decode(errors="replace")
    finally:
        close_fd(messages)


def _start(program: str, namespace: int, ports: Sequence[Port], group: int) -> None:
    """Have pasta run until it is killed; it does its work when this returns."""
    argv = [program, "--quiet", "--runas", "0:0", "--config-net", "--netns-only", "--netns", "/proc/self/fd/0"]
    argv += ["--no-map-gw", "--dns-forward", _NAMES, "-T", "none", "-U", "none"]
    for kind, protocol in (("-t", "tcp"), ("-u", "udp")):
        if not any(port.protocol == protocol for port in ports):
            argv += [kind, "none"]
    for port in ports:
        argv += port.option()
    status, text = _output(argv, namespace, group)
    if status:
        raise _failure(text)


def _failure(text: str) -> LayerstoreError:
    told = "; ".join(line for line in text.splitlines() if line and not line.startswith(_NOISE))
    if taken := re.search(r"bind any port for '-[tu] (\S+)'", told):
        return Conflict(f"the port {taken[1].rpartition(':')[0]} of the host is taken: publish another one")
    return Unsupported(f"pasta cannot give the container a network: {told or 'it did not say why'}")


def write_files(directory: str, hostname: str) -> dict[str, str]:
    """Make the files in `directory` by which a container with a private network finds names; where they are, by where
    they are to be shown. Raises `OSError`."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
            kept = [line for line in file if line.split()[:1] in (["search"], ["options"])]
    except FileNotFoundError:
        kept = []
    texts = {
        "/etc/resolv.conf": "".join([f"nameserver {_NAMES}\n", *kept]),
        "/etc/hosts": f"127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 {hostname}\n",
    }
    made = {}
    for path, text in texts.items():
        made[path] = f"{directory}/{os.path.basename(path)}"
        # Not in place: the last program's may still be shown somewhere.
        with about(made[path]), open(f"{made[path]}.new", "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(f"{made[path]}.new", 0o644)
        os.replace(f"{made[path]}.new", made[path])
    return made
