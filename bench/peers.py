"""The peers: dockerd, containerd and podman, each with a store of its own in a directory that we give.

A peer is a context manager that starts its daemon and ends it, by its process id. All of them can

    load(archive) -> seconds       import a docker-archive with the peer's own command
    remove(name)                   forget the image and its content, so that the next load is a fresh one
    run(name, command) -> seconds  run a container to its end and remove it, with the peer's own command
    pull(name) -> seconds          bring an image from a registry of this machine; no TLS

and some have an interface for programs: containerd's snapshotter by gRPC, the REST APIs of docker and podman.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

START_TIMEOUT_SECONDS = 60.0


class PeerError(RuntimeError):
    """A peer's command failed, or its daemon did not start; the message carries what it printed."""


def timed(command: list[str], ok: tuple[int, ...] = (0,)) -> float:
    """Seconds that the command took. Its output is kept for the message of a failure only.

    It goes to a file, as a pipe would be held open, and so waited for, by what the command leaves running.
    """
    with tempfile.TemporaryFile() as out:
        begin = time.perf_counter()
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        seconds = time.perf_counter() - begin
        if done.returncode not in ok:
            out.seek(0)
            said = out.read().decode(errors="replace")[-2000:]
            raise PeerError(f"{' '.join(command)} ended with {done.returncode}: {said}")
    return seconds


def output(command: list[str]) -> str:
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if done.returncode:
        raise PeerError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout.strip()


class Daemon:
    """One background process, with its output in a file, ended by SIGTERM (SIGKILL when it does not listen)."""

    def __init__(self, command: list[str], log: Path, ready: Callable[[], bool]) -> None:
        self._name = Path(command[0]).name
        with log.open("wb") as out:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.stop()
                raise PeerError(f"{self._name} did not start; the end of {log}:\n{log.read_text()[-2000:]}")
            time.sleep(0.05)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class UnixHttp:
    """Requests with JSON bodies to an HTTP server on a unix socket, over one connection. Answers: JSON, or text."""

    class _Connection(http.client.HTTPConnection):
        def __init__(self, path: Path) -> None:
            super().__init__("localhost")
            self._path = path

        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(self._path))

    def __init__(self, path: Path) -> None:
        self._connection = self._Connection(path)

    def request(self, method: str, target: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body)
        self._connection.request(method, target, content, {"Content-Type": "application/json"} if content else {})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise PeerError(f"{method} {target}: {answer.status} {text.decode(errors='replace')[:500]}")
        is_json = (answer.getheader("Content-Type") or "").startswith("application/json")
        return json.loads(text) if is_json and text.strip() else text.decode()

    def close(self) -> None:
        self._connection.close()


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return path.exists() and probe.connect_ex(str(path)) == 0


class Peer:
    """What the peers have in common. `store` is on the measured file system; `run_directory` has a short path."""

    name = ""
    binaries: tuple[str, ...] = ()
    loads = frozenset({"none", "gzip", "zstd"})  # the compressions that it can load

    def __init__(self, store: Path, run_directory: Path) -> None:
        self.store = store / self.name
        self.run_directory = run_directory / self.name
        self._cleanup = contextlib.ExitStack()

    @classmethod
    def missing(cls) -> str | None:
        """The first of its programs that is not installed."""
        return next((name for name in cls.binaries if shutil.which(name) is None), None)

    def __enter__(self) -> Self:
        for directory in (self.store, self.run_directory):
            directory.mkdir(parents=True)
        with contextlib.ExitStack() as stack:
            self._start(stack)
            self._cleanup = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def _start(self, stack: contextlib.ExitStack) -> None:
        raise NotImplementedError

    def _daemon(self, stack: contextlib.ExitStack, command: list[str], socket_path: Path) -> None:
        log = self.run_directory / (Path(command[0]).name + ".log")
        stack.callback(Daemon(command, log, lambda: _accepts(socket_path)).stop)

    def load(self, archive: Path) -> float:
        raise NotImplementedError

    def remove(self, image: str) -> None:
        raise NotImplementedError

    def pull(self, name: str) -> float:
        raise NotImplementedError

    def push(self, image: str, name: str) -> None:
        """Have a registry of this machine have an image under a name."""
        raise NotImplementedError

    def image_id(self, image: str) -> str:
        raise NotImplementedError

    def run(self, image: str, command: list[str]) -> float:
        raise NotImplementedError

    @contextlib.contextmanager
    def running(self, image: str, count: int, command: list[str]) -> Iterator[list[str]]:
        """`count` running containers, started in the background; their ids. Killed and removed at the end."""
        raise NotImplementedError


class Builder(Peer):
    """One that builds images, too."""

    def build(self, directory: Path, name: str) -> float:
        """Build the Dockerfile of a directory, with the cache."""
        raise NotImplementedError


class Committing(Peer):
    """A peer that makes images of containers and runs commands in them, with a command that is called as docker's."""

    run_options: tuple[str, ...] = ()

    def command(self, *arguments: str) -> list[str]:
        """The peer's own command, as it reaches our daemon or store."""
        raise NotImplementedError

    @contextlib.contextmanager
    def ended(self, image: str, command: list[str]) -> Iterator[str]:
        """A container in which a program ran to its end, by its name. Removed at the end."""
        name = f"ended-{time.monotonic_ns()}"
        try:
            timed(self.command("run", "--name", name, *self.run_options, image, *command))
            yield name
        finally:
            timed(self.command("rm", "--force", name))

    def exec(self, container: str, command: list[str]) -> float:
        """Run a command in a running container."""
        return timed(self.command("exec", container, *command))

    def commit(self, container: str, image: str) -> float:
        return timed(self.command("commit", container, image))

    def diff(self, container: str) -> float:
        return timed(self.command("diff", container))

    def changes(self, container: str) -> set[str]:
        """The lines of `diff`."""
        return set(output(self.command("diff", container)).splitlines())


class Containerd(Peer):
    """containerd with its overlayfs snapshotter, used by ctr and, for prepare + mount, by gRPC."""

    name = "containerd"
    binaries = ("containerd", "ctr", "runc")
    namespace = "default"

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.socket = self.run_directory / "c.sock"
        config = self.run_directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.store}"\nstate = "{self.run_directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri"]\n'
            f'[grpc]\naddress = "{self.socket}"\n[ttrpc]\naddress = "{self.socket}.ttrpc"\n'
        )
        self._daemon(stack, ["containerd", "--config", str(config), "--log-level", "error"], self.socket)

    def command(self, *arguments: str) -> list[str]:
        """The peer's own command, as it reaches our daemon."""
        return ["ctr", "--address", str(self.socket), "--namespace", self.namespace, *arguments]

    def load(self, archive: Path) -> float:
        return timed(self.command("images", "import", str(archive)))

    def remove(self, image: str) -> None:
        timed(self.command("images", "rm", "--sync", self._full(image)))

    def pull(self, name: str) -> float:
        return timed(self.command("images", "pull", "--plain-http", name))

    @staticmethod
    def _full(image: str) -> str:
        return image if "/" in image else f"docker.io/library/{image}"

    def run(self, image: str, command: list[str]) -> float:
        name = f"run-{time.monotonic_ns()}"
        return timed(self.command("run", "--rm", "--seccomp", self._full(image), name, *command))

    @contextlib.contextmanager
    def running(self, image: str, count: int, command: list[str]) -> Iterator[list[str]]:
        names = [f"sleep-{i}" for i in range(count)]
        try:
            for name in names:
                timed(self.command("run", "--detach", "--seccomp", self._full(image), name, *command))
            yield names
        finally:
            for name in names:
                timed(self.command("tasks", "delete", "--force", name), ok=(0, 1))
                timed(self.command("containers", "delete", name), ok=(0, 1))

    def snapshotter(self) -> Snapshotter:
        return Snapshotter(self.socket, self.namespace)


class Docker(Builder, Committing):
    """dockerd with overlay2, without networks. It uses a containerd of its own, in its own store."""

    name = "docker"
    binaries = ("dockerd", "docker", "containerd", "runc")
    run_options = ("--network", "none")
    loads = frozenset({"none", "gzip"})  # 20.10 says "unexpected EOF" or worse to zstd

    def _start(self, stack: contextlib.ExitStack) -> None:
        containerd = stack.enter_context(Containerd(self.store, self.run_directory))
        self.socket = self.run_directory / "d.sock"
        roots = [f"--data-root={self.store}/data", f"--exec-root={self.run_directory}/exec"]
        files = [f"--pidfile={self.run_directory}/d.pid", f"--config-file={self.run_directory}/daemon.json"]
        (self.run_directory / "daemon.json").write_text("{}")
        networks = ["--iptables=false", "--ip6tables=false", "--bridge=none"]
        sockets = [f"--host=unix://{self.socket}", f"--containerd={containerd.socket}"]
        options = [*roots, *files, *networks, *sockets, "--storage-driver=overlay2", "--log-level=error"]
        self._daemon(stack, ["dockerd", *options], self.socket)
        self.version = output(self.command("version", "--format", "{{.Server.Version}}"))
        if int(self.version.partition(".")[0]) >= 23:
            self.loads = Peer.loads

    def command(self, *arguments: str) -> list[str]:
        return [_debian_docker(), "--host", f"unix://{self.socket}", *arguments]

    def load(self, archive: Path) -> float:
        return timed(self.command("load", "--quiet", "--input", str(archive)))

    def remove(self, image: str) -> None:
        timed(self.command("rmi", "--force", image))

    def pull(self, name: str) -> float:
        return timed(self.command("pull", "--quiet", name))

    def push(self, image: str, name: str) -> None:
        timed(self.command("tag", image, name))
        timed(self.command("push", name))

    def image_id(self, image: str) -> str:
        return output(self.command("image", "inspect", "--format", "{{.Id}}", image))

    def run(self, image: str, command: list[str]) -> float:
        return timed(self.command("run", "--rm", *self.run_options, image, *command))

    def build(self, directory: Path, name: str) -> float:
        classic = ["env", "DOCKER_BUILDKIT=0"]
        return timed([*classic, *self.command("build", "--network", "none", "--tag", name, str(directory))])

    def api(self) -> UnixHttp:
        return UnixHttp(self.socket)

    @contextlib.contextmanager
    def running(self, image: str, count: int, command: list[str]) -> Iterator[list[str]]:
        ids = []
        try:
            for _ in range(count):
                ids.append(output(self.command("run", "--detach", *self.run_options, image, *command)))
            yield ids
        finally:
            if ids:
                timed(self.command("rm", "--force", *ids))

    def root_of(self, container: str) -> Path:
        """Where the root of a running container is mounted."""
        return Path(output(self.command("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", container)))


def _debian_docker() -> str:
    """Debian's client belongs to its daemon; another one may come first in the search path."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


class Podman(Committing):
    """podman with overlay and crun, by its command and by its REST API."""

    name = "podman"
    binaries = ("podman", "crun")
    limits = ("--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024")
    confined_options = ("--network", "none", *limits)
    """With a control group, which crun refuses in hybrid mode."""
    run_options = (*confined_options, "--cgroups", "disabled")

    def _start(self, stack: contextlib.ExitStack) -> None:
        self.socket = self.run_directory / "p.sock"
        self._daemon(stack, self.command("system", "service", "--time=0", f"unix://{self.socket}"), self.socket)

    def command(self, *arguments: str) -> list[str]:
        places = [f"--root={self.store}", f"--runroot={self.run_directory}/run", f"--tmpdir={self.run_directory}/tmp"]
        kind = ["--storage-driver=overlay", "--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=crun"]
        return ["podman", *places, *kind, *arguments]

    def load(self, archive: Path) -> float:
        return timed(self.command("load", "--quiet", "--input", str(archive)))

    def remove(self, image: str) -> None:
        timed(self.command("rmi", "--force", image))

    def pull(self, name: str) -> float:
        return timed(self.command("pull", "--quiet", "--tls-verify=false", name))

    def push(self, image: str, name: str) -> None:
        timed(self.command("push", "--tls-verify=false", image, f"docker://{name}"))

    def image_id(self, image: str) -> str:
        return "sha256:" + output(self.command("image", "inspect", "--format", "{{.Id}}", image))

    def run(self, image: str, command: list[str]) -> float:
        return timed(self.command("run", "--rm", *self.confined_options, image, *command))

    @contextlib.contextmanager
    def running(self, image: str, count: int, command: list[str]) -> Iterator[list[str]]:
        ids = []
        try:
            for _ in range(count):
                ids.append(output(self.command("run", "--detach", *self.confined_options, image, *command)))
            yield ids
        finally:
            if ids:
                timed(self.command("rm", "--force", "--time=0", *ids))

    def api(self) -> UnixHttp:
        return UnixHttp(self.socket)


def exec_by_api(api: UnixHttp, container: str, command: list[str]) -> None:
    """Run a command in a running container by docker's REST API, which podman's service has, too: what a client asks
    for its outputs and its exit status."""
    asked = {"AttachStdout": True, "AttachStderr": True, "Cmd": command}
    made = api.request("POST", f"/containers/{container}/exec", asked)["Id"]
    api.request("POST", f"/exec/{made}/start", {"Detach": False, "Tty": False})
    status = api.request("GET", f"/exec/{made}/json")["ExitCode"]
    if status:
        raise PeerError(f"{' '.join(command)} ended with {status}")


def podman_create_and_mount(api: UnixHttp, image: str) -> tuple[str, Path]:
    """Create a container and mount its root through the libpod API; its id and where it is."""
    made = api.request("POST", "/v4.0.0/libpod/containers/create", {"image": image, "command": ["/bin/true"]})
    root = api.request("POST", f"/v4.0.0/libpod/containers/{made['Id']}/mount")
    return made["Id"], Path(root.strip().strip('"'))


def podman_delete(api: UnixHttp, container: str) -> None:
    api.request("POST", f"/v4.0.0/libpod/containers/{container}/unmount")
    api.request("DELETE", f"/v4.0.0/libpod/containers/{container}?force=true")


class Buildah(Builder):
    """buildah with overlay. It has no daemon, and finds the image that a name without a registry means in its store."""

    name = "buildah"
    binaries = ("buildah", "crun")

    def _start(self, stack: contextlib.ExitStack) -> None:
        pass

    def _buildah(self, *arguments: str) -> list[str]:
        places = [f"--root={self.store}", f"--runroot={self.run_directory}/run", "--storage-driver=overlay"]
        return ["buildah", *places, *arguments]

    def load(self, archive: Path) -> float:
        return timed(self._buildah("pull", "--quiet", f"docker-archive:{archive}"))

    def remove(self, image: str) -> None:
        timed(self._buildah("rmi", "--force", image))

    def build(self, directory: Path, name: str) -> float:
        how = ["--layers", "--pull-never", "--network=none", "--isolation=oci", "--runtime=crun"]
        return timed(self._buildah("build", *how, "--tag", name, str(directory)))


PEERS: tuple[type[Peer], ...] = (Docker, Podman, Containerd)


# -- containerd's snapshots service (api/services/snapshots/v1/snapshots.proto) -------------------------------------


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_fields(fields: dict[int, str | bytes]) -> bytes:
    """A protobuf message of length-delimited fields (wire type 2) by number: strings, and messages encoded already."""
    parts = []
    for number, value in fields.items():
        raw = value.encode() if isinstance(value, str) else value
        parts.append(_varint(number << 3 | 2) + _varint(len(raw)) + raw)
    return b"".join(parts)


def decode_fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, content) of each length-delimited field; the messages here have no others."""
    at = 0
    while at < len(message):
        key, at = _read_varint(message, at)
        if key & 7 != 2:
            raise PeerError(f"a protobuf field of wire type {key & 7} where containerd sends only strings and messages")
        size, at = _read_varint(message, at)
        yield key >> 3, message[at : at + size]
        at += size


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


_libc = ctypes.CDLL(None, use_errno=True)
_MOUNT_FLAGS = {"ro": 1, "rw": 0, "bind": 4096, "rbind": 4096 | 16384}


def mount(kind: str, source: str, target: Path, options: list[str]) -> None:
    """mount(2) with the options in containerd's notation."""
    flags = sum(_MOUNT_FLAGS.get(option, 0) for option in options)
    data = ",".join(option for option in options if option not in _MOUNT_FLAGS)
    if _libc.mount(source.encode(), os.fsencode(target), kind.encode(), flags, data.encode()):
        code = ctypes.get_errno()
        raise OSError(code, f"mounting {kind} with {data}: {os.strerror(code)}", str(target))


def unmount(target: Path) -> None:
    if _libc.umount2(os.fsencode(target), 0):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(target))


class Snapshotter:
    """containerd's snapshotter, spoken to as its clients do: gRPC on its socket, then mount(2) of what it answers."""

    def __init__(self, socket_path: Path, namespace: str, snapshotter: str = "overlayfs") -> None:
        import grpc  # type: ignore[import-untyped]

        self._channel = grpc.insecure_channel(f"unix://{socket_path}")
        self._snapshotter = snapshotter
        self._metadata = (("containerd-namespace", namespace),)
        self._prepare = self._method("Prepare")
        self._remove = self._method("Remove")

    def _method(self, name: str) -> Any:
        return self._channel.unary_unary(f"/containerd.services.snapshots.v1.Snapshots/{name}", _bytes, _bytes)

    def prepare_and_mount(self, key: str, parent: str, target: Path) -> None:
        """A new writable snapshot of the chain `parent`, mounted on a new directory."""
        keep = encode_fields({1: "containerd.io/gc.root", 2: "bench"})  # else its collector takes the snapshot away
        request = encode_fields({1: self._snapshotter, 2: key, 3: parent, 4: keep})
        answer = self._prepare(request, metadata=self._metadata)
        target.mkdir()
        for number, content in decode_fields(answer):
            if number == 1:
                fields = list(decode_fields(content))
                kind, source = (next(raw.decode() for n, raw in fields if n == want) for want in (1, 2))
                mount(kind, source, target, [raw.decode() for n, raw in fields if n == 4])

    def unmount_and_remove(self, key: str, target: Path) -> None:
        unmount(target)
        target.rmdir()
        self._remove(encode_fields({1: self._snapshotter, 2: key}), metadata=self._metadata)

    def close(self) -> None:
        self._channel.close()


def _bytes(message: bytes) -> bytes:
    return message
