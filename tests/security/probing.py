"""Builds the probe (probe.c), gives it a host to look for, and runs it in a container: ours, docker's and podman's,
each as it is without any option.

    with host() as facts:
        found = parse(ours(store_root, "1000", facts))
"""

import contextlib
import ctypes
import io
import os
import secrets
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from bench.peers import Committing, PeerError
from layerstore import Store

ROOT = Path(__file__).parents[2]
SOURCE = Path(__file__).with_name("probe.c")
IMAGE = "probe:1"
USERS = {"root": "0", "uid 1000": "1000:1000"}
PROCESSES = 2100
NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
RUN_SECONDS = 120
HYBRID = Path("/sys/fs/cgroup/unified")
# A daemon without a bridge has no other network, and podman would raise limits that not every caller may raise.
NEEDED = {
    "docker": ("--network", "none"),
    "podman": ("--network", "none", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096"),
}
_FLAGS = ("-std=gnu11", "-Wall", "-Wextra", "-Werror", "-static", "-no-pie")
_ADD_KEY, _KEYCTL = (248, 250) if os.uname().machine == "x86_64" else (217, 219)
_USER_KEYRING, _UNLINK = -4, 9


@dataclass(frozen=True)
class Found:
    """What the probe says of one thing."""

    allowed: bool
    why: str


Answers = dict[tuple[str, str], Found]


def compiled(directory: Path) -> Path:
    """The probe, compiled into a directory. Raises `subprocess.CalledProcessError` where it does not compile."""
    target = directory / "probe"
    subprocess.run(["gcc", *_FLAGS, "-o", str(target), str(SOURCE)], check=True)
    return target


def archive(probe: Path) -> bytes:
    """An image of the probe alone, as a docker archive."""
    program = probe.read_bytes()
    entries = [Entry("dir", name, mode=0o755) for name in ("bin", "dev", "etc", "proc", "sys")]
    entries += [Entry("dir", "tmp", mode=0o1777), Entry("file", "etc/passwd", data=b"root:x:0:0::/:/bin/probe\n")]
    entries += [
        Entry("file", "bin/probe", data=program, mode=0o755, uid=0),
        Entry("file", "bin/probe-as-root", data=program, mode=0o4755, uid=0),
    ]
    image = Image([write_tar(entries)], [IMAGE], runtime={"Entrypoint": ["/bin/probe"], "Cmd": []})
    return tar_of(docker_files([image], style="20.10"))


# The host


@contextlib.contextmanager
def host() -> Iterator[list[str]]:
    """The arguments of the probe. What they name is on the host in the block: sockets, a process, a key."""
    with contextlib.ExitStack() as stack:
        name = f"layerstore-probe-{secrets.token_hex(8)}"
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind(f"\0{name}")
        abstract.listen()
        port = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        process = subprocess.Popen(["sleep", "600"])
        stack.callback(process.wait)
        stack.callback(process.kill)
        serial = _add_key(name)
        stack.callback(_libc_call, _KEYCTL, _UNLINK, serial, _USER_KEYRING)
        yield [
            *(f"ns.{kind}={os.readlink(f'/proc/self/ns/{kind}')}" for kind in NAMESPACES),
            f"abstract={name}",
            f"port={port.getsockname()[1]}",
            f"pid={process.pid}",
            f"key={name}",
            f"serial={serial}",
            f"disk={_disk()}",
            f"processes={PROCESSES}",
        ]


def _add_key(name: str) -> int:
    return _libc_call(_ADD_KEY, b"user", name.encode(), b"secret", 6, _USER_KEYRING)


def _libc_call(number: int, *arguments: bytes | int) -> int:
    given = [ctypes.c_char_p(one) if isinstance(one, bytes) else ctypes.c_long(one) for one in arguments]
    done = int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *given))
    if done < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"system call {number}: {os.strerror(code)}")
    return done


def _disk() -> str:
    """A block device that has content: a disk of the machine, where there is one."""
    disks = [path for path in sorted(Path("/sys/block").iterdir()) if (path / "device").exists()]
    return ((disks or [Path("/sys/block/loop0")])[0] / "dev").read_text().strip()


# Running it


def ours(store: Path, user: str, facts: Sequence[str], *options: str, runtime: str = "crun") -> str:
    """What the probe prints in a new container of a store that has its image."""
    code = f"from layerstore.containers import runtime; runtime._KNOWN = {(runtime,)}; from layerstore.cli import main"
    command = [sys.executable, "-c", f"import sys; {code}; sys.exit(main())", "--root", str(store)]
    return _printed([*command, "run", "--rm", "-i", "-u", user, *options, IMAGE, *facts])


def theirs(peer: Committing, user: str, facts: Sequence[str]) -> str:
    """What it prints in docker's or podman's, with the options that the peer needs (`NEEDED`)."""
    options = NEEDED[peer.name]
    return _printed([*_without_hybrid(), *peer.command("run", "--rm", "-i", *options, "--user", user, IMAGE, *facts)])


def _without_hybrid() -> list[str]:
    """What runs a command where cgroup v2 is not seen beside v1: crun, which podman runs, refuses that."""
    if not HYBRID.is_dir():
        return []
    return ["unshare", "--mount", "sh", "-c", f'umount {HYBRID}; exec "$@"', "sh"]


def _printed(command: list[str]) -> str:
    """What a command prints, whose standard input is a file for reading and whose output is one to append to: the probe
    tries to open them for something else."""
    with tempfile.TemporaryDirectory() as directory:
        given, printed = Path(directory, "in"), Path(directory, "out")
        given.touch()
        with given.open("rb") as stdin, printed.open("ab") as stdout:
            streams = {"stdin": stdin, "stdout": stdout, "stderr": subprocess.PIPE}
            done = subprocess.run(command, **streams, text=True, timeout=RUN_SECONDS)
        if done.returncode:
            raise PeerError(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
        return printed.read_text()


def parse(printed: str) -> Answers:
    """What the probe printed, by group and name."""
    found: Answers = {}
    for line in printed.splitlines():
        group, name, answer, why = line.split("\t")
        assert answer in ("allowed", "refused"), line
        found[group, name] = Found(answer == "allowed", why)
    return found


def load(store: Store, archived: bytes) -> None:
    store.load(io.BytesIO(archived))
