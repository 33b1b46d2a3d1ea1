"""Whether a program can be started is told before a runtime is: the judge is execve(2) in a chroot."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from layerstore.containers import program
from layerstore.errors import ProgramNotExecutable, ProgramNotFound

BUSYBOX = Path("/bin/busybox")
SEARCH_PATH = "/usr/local/bin:/usr/bin:/bin"
pytestmark = pytest.mark.skipif(os.geteuid() != 0 or not BUSYBOX.exists(), reason=f"chroot needs root, and {BUSYBOX}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "rootfs"
    for name in ("usr/bin", "usr/local/bin", "etc", "opt", "srv", "proc"):
        (path / name).mkdir(parents=True)
    (path / "usr/bin/prog").write_bytes(BUSYBOX.read_bytes())
    (path / "usr/bin/prog").chmod(0o755)
    (path / "bin").symlink_to("usr/bin")
    (path / "usr/bin/absolute").symlink_to("/bin/relative")
    (path / "usr/bin/relative").symlink_to("../../usr/bin/prog")
    (path / "usr/bin/up").symlink_to("../../../../../../usr/bin/prog")
    (path / "usr/bin/dangling").symlink_to("/etc/none")
    (path / "usr/bin/of-the-host").symlink_to(sys.executable)
    (path / "usr/bin/loop").symlink_to("loop")
    (path / "usr/bin/plain").write_text("")
    (path / "usr/bin/directory").mkdir()
    os.mkfifo(path / "usr/bin/fifo", 0o777)
    for name, mode, uid, gid in (("roots", 0o700, 0, 0), ("groups", 0o750, 0, 77), ("not-mine", 0o077, 55, 0)):
        (path / "usr/bin" / name).write_bytes(BUSYBOX.read_bytes())
        os.chown(path / "usr/bin" / name, uid, gid)
        (path / "usr/bin" / name).chmod(mode)
    # In front of the good one on the search path.
    (path / "usr/local/bin/prog").mkdir()
    (path / "usr/local/bin/prog2").write_text("")
    os.link(path / "usr/bin/prog", path / "usr/bin/prog2")
    (path / "srv/here").symlink_to("../bin/prog")
    return path


def spec(root: Path, name: str, *mounts: str, uid: int = 0, gid: int = 0, path: str = SEARCH_PATH) -> dict[str, Any]:
    return {
        "root": {"path": str(root)},
        "process": {
            "args": [name],
            "env": ["A=b", f"PATH={path}"],
            "cwd": "/srv",
            "user": {"uid": uid, "gid": gid, "additionalGids": [77] if gid else []},
        },
        "mounts": [{"destination": place} for place in ("/proc", *mounts)],
    }


def told(config: dict[str, Any]) -> str:
    try:
        program.check(config)
    except ProgramNotFound as error:
        return f"127 {error}"
    except ProgramNotExecutable as error:
        return f"126 {error}"
    return "starts"


def judged(config: dict[str, Any]) -> str:
    """What the kernel says of the file itself, searched for as execvp(3) does, but for programs that are no files."""
    process = config["process"]
    user = process["user"]
    name, path = process["args"][0], process["env"][1][5:]
    candidates = [name] if "/" in name else [f"{place}/{name}" for place in path.split(":")]
    code = (
        "import os, errno\n"
        f"os.chroot({config['root']['path']!r}); os.chdir({process['cwd']!r})\n"
        f"os.setgroups({user['additionalGids']!r}); os.setgid({user['gid']}); os.setuid({user['uid']})\n"
        "denied = False\n"
        f"for candidate in {candidates!r}:\n"
        "    try: os.execve(candidate, ['true'], {})\n"
        "    except OSError as error: denied = denied or error.errno == errno.EACCES\n"
        "os._exit(126 if denied else 127)\n"
    )
    status = subprocess.run([sys.executable, "-c", code]).returncode
    return "starts" if status == 0 else str(status)


@pytest.mark.parametrize("uid, gid", [(0, 0), (1000, 1000), (55, 55)])
@pytest.mark.parametrize(
    "name",
    [
        *("prog", "absolute", "relative", "up", "none", "prog2", "roots", "groups", "not-mine"),
        *("/usr/bin/prog", "/bin/prog", "/bin/absolute", "/usr/bin/up", "./here", "../bin/prog", "../../../bin/prog"),
        *("/no/where", "/bin/dangling", "/bin/loop", "/bin/of-the-host", "/usr/bin/plain/x", "./none"),
        *("/bin/plain", "/bin/directory", "/bin/fifo", "/bin/roots", "/bin/groups", "/bin/not-mine"),
    ],
)
def test_as_the_kernel_says(root: Path, name: str, uid: int, gid: int) -> None:
    config = spec(root, name, uid=uid, gid=gid)
    expected = judged(config)
    if "/" not in name and expected == "126":
        expected = "127"  # docker passes over what cannot be executed, and then has found nothing
    assert told(config).split()[0] == expected


def test_messages(root: Path) -> None:
    assert told(spec(root, "none")) == '127 exec: "none": executable file not found in $PATH'
    assert told(spec(root, "none", path="")) == '127 exec: "none": executable file not found in $PATH'
    assert told(spec(root, "/none")) == '127 exec: "/none": stat /none: no such file or directory'
    assert told(spec(root, "/bin/plain")) == '126 exec: "/bin/plain": permission denied'
    assert told(spec(root, "/bin/directory")) == '126 exec: "/bin/directory": is a directory'


@pytest.mark.parametrize(
    ("name", "mount"),
    [
        ("/opt/tool", "/opt"),
        ("/opt/tool", "/opt/tool"),
        ("/opt/a/b/tool", "/opt/a"),
        ("/bin/plain", "/usr/bin"),  # reached through a link
        ("/usr/bin/plain", "/bin"),  # mounted through a link
        ("none", "/usr/local/bin"),
        ("/bin/dangling", "/etc"),
        ("/opt/../etc/none", "/etc"),
    ],
)
def test_what_a_mount_may_bring_is_left_to_the_runtime(root: Path, name: str, mount: str) -> None:
    assert told(spec(root, name, mount)) == "starts"
    assert told(spec(root, name, "/srv/other")) != "starts"
    assert told(spec(root, "/proc/self/exe")) == "starts"


def test_an_access_control_list_is_left_to_the_runtime(root: Path) -> None:
    if subprocess.run(["setfacl", "-m", "u:1000:rx", root / "usr/bin/groups"], capture_output=True).returncode:
        pytest.skip("no setfacl, or a file system without access control lists")
    config = spec(root, "/bin/groups", uid=1000)
    assert told(config) == judged(config) == "starts"
