"""Private networks of containers: a way out by pasta, ports of the host, and nothing left of it."""

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import DEVNULL, PIPE

import leftovers
import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_containers import ROOT, base, busybox, root_only, runs
from waiting import wait_for

from layerstore import Container, Store
from layerstore.containers import networks
from layerstore.containers.runtime import find_runtime
from layerstore.errors import Conflict, InvalidInput, Unsupported


def has_way_out() -> bool:
    lines = [line.split() for line in Path("/proc/net/route").read_text().splitlines()]
    return any(line[1:2] == ["00000000"] for line in lines)


pytestmark = [
    pytest.mark.root,
    root_only,
    runs,
    pytest.mark.needs_tool("pasta"),
    pytest.mark.skipif(not has_way_out(), reason="this machine has no default route for a private network to lead to"),
]

APPLETS = ("hostname", "mkfifo", "nc", "nslookup", "readlink")
BOX = Image(
    [write_tar(base()), busybox(), write_tar([Entry("symlink", f"bin/{name}", link="busybox") for name in APPLETS])],
    ["box:1"],
)
OUTSIDE, OWN_SIDE = "198.51.100.2", "198.51.100.1"
SERVER = """if True:
    import socket, sys
    kind = socket.SOCK_STREAM if sys.argv[1] == "tcp" else socket.SOCK_DGRAM
    server = socket.socket(socket.AF_INET, kind)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((sys.argv[2], int(sys.argv[3])))
    if sys.argv[1] == "tcp":
        server.listen()
    print(server.getsockname()[1], flush=True)
    while True:
        if sys.argv[1] == "tcp":
            with server.accept()[0] as one:
                one.sendall(b"heard " + one.recv(100))
        else:
            data, sender = server.recvfrom(100)
            server.sendto(b"heard " + data, sender)
"""


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.needs_tool(name)) for name in ("crun", "runc")])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as store:
        runtime = find_runtime(request.param, store.root / "run/runtime")
        monkeypatch.setattr("layerstore.containers.runtime.find_runtime", lambda name, root: runtime)
        store.load(io.BytesIO(tar_of(docker_files([BOX]))))
        yield store
        containers = store.containers()
        store.remove(containers, force=True)
        assert leftovers.control_groups({container.id for container in containers}) == []


@pytest.fixture
def container(store: Store) -> Container:
    return store.create("box:1")


class Serving:
    """A server of this machine, which answers "heard " and what it was sent."""

    def __init__(self, protocol: str, address: str, port: int = 0, namespace: str | None = None) -> None:
        enter = [] if namespace is None else ["nsenter", f"--net={namespace}"]
        command = [*enter, sys.executable, "-c", SERVER, protocol, address, str(port)]
        self._process = subprocess.Popen(command, stdout=PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def __enter__(self) -> "Serving":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    """Two network namespaces, as of a host whose default route leads to another one: where they are."""
    holders = [subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) for _ in range(2)]
    try:
        here, outside = (f"/proc/{holder.pid}/ns/net" for holder in holders)
        wait_for(lambda: len({os.readlink(path) for path in ("/proc/self/ns/net", here, outside)}) == 3)
        for namespace, command in (
            (here, f"link add out type veth peer name in netns {holders[1].pid}"),
            (here, f"addr add {OWN_SIDE}/24 dev out"),
            (here, "link set out up"),
            (here, f"route add default via {OUTSIDE}"),
            (outside, f"addr add {OUTSIDE}/24 dev in"),
            (outside, "link set in up"),
        ):
            subprocess.run(["nsenter", f"--net={namespace}", "ip", *command.split()], check=True)
        yield here, outside
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()


def said(container: Container, script: str) -> str:
    done = container.exec(["sh", "-c", script], capture_output=True, text=True, timeout=20)
    assert isinstance(done.stdout, str)
    return done.stdout


def asking(address: str, port: int) -> str:
    """A script that says what a server answers. Its input stays open: the pasta of Debian 12 may lose an answer to who
    has closed that already."""
    return f"mkfifo /f; exec 3<>/f; echo -n you >&3; nc -w 2 {address} {port} <&3; rm /f"


def asked(address: str, port: int) -> bytes:
    """What a server answers; nothing where none listens yet."""
    with contextlib.suppress(ConnectionError), socket.create_connection((address, port), 10) as connection:
        connection.sendall(b"you")
        return connection.recv(100)
    return b""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def pastas(container: Container) -> list[str]:
    """The processes that serve a container's network."""
    groups = leftovers.control_groups({container.id})
    return [
        pid for group in groups if group.endswith(".aside") for pid in Path(group, "cgroup.procs").read_text().split()
    ]


class TestTheWayOut:
    @pytest.mark.parametrize(("network", "heard"), [("private", b"heard you"), ("none", b"")])
    def test_another_host(self, store: Store, hosts: tuple[str, str], network: str, heard: bytes) -> None:
        here, outside = hosts
        with Serving("tcp", OUTSIDE, namespace=outside) as server:
            command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "run", "--rm"]
            command += ["--network", network, "box:1", "sh", "-c", asking(OUTSIDE, server.port)]
            done = subprocess.run(["nsenter", f"--net={here}", *command], stdout=PIPE, stderr=DEVNULL, cwd=ROOT)
        assert done.stdout == heard

    def test_nothing_of_the_host_is(self, container: Container) -> None:
        container.keep_alive(network="private")
        routes = said(container, "cat /proc/net/route").splitlines()
        (gateway,) = [line.split()[2] for line in routes if line.split()[1] == "00000000"]
        near = ".".join(str(byte) for byte in reversed(bytes.fromhex(gateway)))
        with Serving("tcp", "0.0.0.0") as server:
            assert asked("127.0.0.1", server.port) == b"heard you"
            for address in ("127.0.0.1", near):
                assert said(container, asking(address, server.port)) == ""
        namespaces = [os.readlink("/proc/self/ns/net"), said(container, "readlink /proc/self/ns/net").strip()]
        assert namespaces[0] != namespaces[1]

    def test_names(self, container: Container) -> None:
        container.keep_alive(network="private", hostname="own")
        assert said(container, "cat /etc/resolv.conf").splitlines()[0] == "nameserver 169.254.1.1"
        assert said(container, "hostname; grep own /etc/hosts") == "own\n127.0.1.1 own\n"

    def test_none_is_the_default(self, container: Container) -> None:
        assert said(container, "cat /proc/net/route").count("\n") == 1
        assert pastas(container) == []


class TestPorts:
    def test_of_a_program(self, store: Store) -> None:
        ports = [free_port(), free_port()]
        containers = [store.create("box:1"), store.create("box:1")]
        for port, container in zip(ports, containers, strict=True):
            script = "while :; do nc -l -p 80 -e /bin/hostname; done"
            options = {"hostname": f"on-{port}", "network": "private", "ports": [f"127.0.0.1:{port}:80"]}
            container.start(["/bin/sh", "-c", script], **options)  # type: ignore[arg-type]
        for port in ports:
            wait_for(lambda port=port: asked("127.0.0.1", port) == f"on-{port}\n".encode())  # type: ignore[misc]

    def test_of_datagrams(self, container: Container) -> None:
        port = free_port()
        pid = container.start(["/bin/sh", "-c", "sleep 600"], network="private", ports=[f"{port}:{port}/udp"])
        with Serving("udp", "0.0.0.0", port, f"/proc/{pid}/ns/net"), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"you", ("127.0.0.1", port))
            assert client.recv(100) == b"heard you"

    def test_of_datagrams_under_another_number(self, container: Container) -> None:
        """The pasta of Debian 12 cannot; a later one can."""
        port = free_port()
        try:
            pid = container.start(["/bin/sh", "-c", "sleep 600"], network="private", ports=[f"{port}:53/udp"])
        except Unsupported as error:
            assert "under the same number only" in str(error)
            assert leftovers.control_groups({container.id}) == []
            return
        with Serving("udp", "0.0.0.0", 53, f"/proc/{pid}/ns/net"), socket.socket(type=socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.sendto(b"you", ("127.0.0.1", port))
            assert client.recv(100) == b"heard you"

    def test_one_that_is_taken(self, container: Container, tmp_path: Path) -> None:
        with Serving("tcp", "127.0.0.1") as server:
            text = f"127.0.0.1:{server.port}:80"
            with pytest.raises(Conflict, match=f"127.0.0.1/{server.port} of the host is taken"):
                container.start(["/bin/sh", "-c", "echo >/began"], network="private", ports=[text])
        assert container.state == "created"
        assert leftovers.control_groups({container.id}) == []
        with container.mount() as view:
            assert not (view / "began").exists()

    @pytest.mark.parametrize("text", ["80", "80:", "a:80", "0:80", "80:65536", "1.2.3:80:80", "80:80/sctp", "-1:5"])
    def test_what_is_none(self, container: Container, text: str) -> None:
        with pytest.raises(InvalidInput, match="the port"):
            container.run(["/bin/true"], network="private", ports=[text])

    def test_of_another_network(self, container: Container) -> None:
        with pytest.raises(InvalidInput, match='"private" network only'):
            container.run(["/bin/true"], ports=["8080:80"])


class TestTheEnd:
    def test_of_a_program_that_is_waited_for(self, container: Container) -> None:
        assert container.run(["/bin/sh", "-c", "exit 3"], network="private") == 3
        assert leftovers.control_groups({container.id}) == []

    def test_of_one_that_ends_by_itself(self, store: Store, container: Container) -> None:
        port = free_port()
        options = {"network": "private", "ports": [f"127.0.0.1:{port}:80"]}
        container.start(["/bin/sh", "-c", "sleep 0.2"], **options)  # type: ignore[arg-type]
        wait_for(lambda: container.state != "running" and pastas(container) == [])
        store.create("box:1").start(["/bin/sh", "-c", "sleep 600"], **options)  # type: ignore[arg-type]

    def test_the_end_of_one_is_not_that_of_the_next(self, container: Container) -> None:
        with networks.private(container.id, []) as first:
            ending = first.ending
        container.start(["/bin/sh", "-c", "sleep 600"], network="private")
        assert subprocess.run(ending, stderr=DEVNULL).returncode != 0
        assert len(pastas(container)) == 1

    def test_of_one_that_is_stopped(self, container: Container) -> None:
        container.start(["/bin/sh", "-c", "sleep 600"], network="private")
        assert len(pastas(container)) == 1
        container.stop(0)
        assert leftovers.control_groups({container.id}) == []

    def test_of_one_that_is_kept(self, container: Container) -> None:
        container.keep_alive(network="private")
        assert len(pastas(container)) == 1
        container.umount()
        assert leftovers.control_groups({container.id}) == []

    def test_another_program_has_no_network_of_the_last(self, container: Container) -> None:
        container.start(["/bin/sh", "-c", "exit 0"], network="private")
        wait_for(lambda: container.state != "running")
        container.run(["/bin/sh", "-c", "exit 0"])
        assert leftovers.control_groups({container.id}) == []

    def test_of_a_caller_that_is_killed(self, store: Store) -> None:
        command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "run", "--network", "private"]
        command += ["--name", "killed", "box:1", "sh", "-c", "echo began; sleep 600"]
        with subprocess.Popen(command, stdout=PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"began\n"
            process.send_signal(signal.SIGKILL)
        container = store.container("killed")
        (served,) = pastas(container)
        container.remove(force=True)
        wait_for(lambda: not Path("/proc", served).exists())

    def test_what_a_killed_caller_left_is_collected(self, store: Store, container: Container) -> None:
        pid = container.start(["/bin/sh", "-c", "sleep 600"], network="private")
        (served,) = pastas(container)
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda: container.state != "running")
        store.collect_garbage()
        wait_for(lambda: not Path("/proc", served).exists())


def test_the_command(store: Store) -> None:
    port = free_port()
    command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "run", "--rm", "-p", f"{port}:80"]
    command += ["box:1", "sh", "-c", "echo began; nc -l -p 80 -e /bin/hostname"]
    with subprocess.Popen(command, stdout=PIPE, stderr=DEVNULL, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"began\n"
        wait_for(lambda: asked("127.0.0.1", port) != b"")
        assert process.wait() == 0
    assert store.containers() == []


def test_without_pasta(container: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "find_program", lambda name: None)
    with pytest.raises(Unsupported, match="Debian: passt"):
        container.run(["/bin/true"], network="private")
    assert leftovers.control_groups({container.id}) == []
