"""Bundles and OCI runtimes. The judges are crun and runc, and busybox inside the containers they start."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_for

from layerstore._core import mount
from layerstore.containers.bundle import Volume, runtime_spec
from layerstore.containers.rootfs import Rootfs
from layerstore.containers.runtime import Runtime, find_runtime
from layerstore.containers.users import look_up
from layerstore.errors import Conflict, InvalidInput, LayerstoreError, NotFound, Unsupported

BUSYBOX = Path("/bin/busybox")
APPLETS = "cat chmod cut dd env false grep head id ip ls mkdir mknod mount pwd sh sleep sort stty touch true tty wc"
PASSWD = """# a comment
root:x:0:0:root:/root:/bin/sh
bob:x:1000:1001:Bob:/home/bob:/bin/sh
broken line
1234:x:77:78::/numeric:/bin/sh
homeless:x:5:5:::
"""
GROUP = "root:x:0:\nstaff:x:50:bob,root\nbob:x:1001:\naudio:x:29:alice,bob\n4321:x:99:\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system without programs."""
    path = tmp_path / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "tmp"):
        (path / name).mkdir(parents=True)
    (path / "etc/passwd").write_text(PASSWD)
    (path / "etc/group").write_text(GROUP)
    return path


class TestUsers:
    @pytest.mark.parametrize(
        ("user", "uid", "gid", "additional", "home"),
        [
            ("", 0, 0, (0, 50), "/root"),
            ("root", 0, 0, (0, 50), "/root"),
            ("bob", 1000, 1001, (1001, 50, 29), "/home/bob"),
            ("1000", 1000, 1001, (1001, 50, 29), "/home/bob"),
            ("bob:staff", 1000, 50, (50,), "/home/bob"),
            ("bob:7", 1000, 7, (7,), "/home/bob"),
            ("4000", 4000, 0, (0,), "/"),
            ("4000:4001", 4000, 4001, (4001,), "/"),
            ("1234", 77, 78, (78,), "/numeric"),
            ("bob:4321", 1000, 99, (99,), "/home/bob"),
            (":staff", 0, 50, (50,), "/root"),
            ("homeless", 5, 5, (5,), "/"),
        ],
    )
    def test_forms(self, root: Path, user: str, uid: int, gid: int, additional: tuple[int, ...], home: str) -> None:
        with Rootfs(root) as rootfs:
            found = look_up(rootfs, user)
        assert (found.uid, found.gid, found.additional_gids, found.home) == (uid, gid, additional, home)

    @pytest.mark.parametrize(
        ("user", "message"),
        [
            ("alice", 'user "alice" is not in /etc/passwd of the image'),
            ("bob:nogroup", 'group "nogroup" is not in /etc/group of the image'),
            ("2147483648", "greater than 2147483647"),
            ("-1", "not in /etc/passwd"),
        ],
    )
    def test_errors(self, root: Path, user: str, message: str) -> None:
        with Rootfs(root) as rootfs, pytest.raises(InvalidInput, match=message):
            look_up(rootfs, user)

    @pytest.mark.parametrize("digits", ["2147483648", "9" * 5000])
    def test_an_id_may_have_any_length(self, root: Path, digits: str) -> None:
        (root / "etc/passwd").write_text(f"far:x:{digits}:0::/:\nout:x:0:{digits}::/:\nin:x:1:1::/:\n")
        with Rootfs(root) as rootfs:
            assert look_up(rootfs, "in").uid == 1
            for user in ("far", "out", digits, f"in:{digits}"):
                with pytest.raises(InvalidInput, match="greater than 2147483647"):
                    look_up(rootfs, user)

    def test_image_without_the_files(self, root: Path) -> None:
        (root / "etc/passwd").unlink()
        (root / "etc/group").unlink()
        with Rootfs(root) as rootfs:
            assert look_up(rootfs, "") == look_up(rootfs, "0:0")
            with pytest.raises(InvalidInput, match="bob"):
                look_up(rootfs, "bob")

    def test_links_stay_inside(self, root: Path, tmp_path: Path) -> None:
        """A link to a file of the host must be looked up in the image."""
        (tmp_path / "secret").write_text("mallory:x:0:0::/:\n")
        (root / "etc/passwd").unlink()
        (root / "etc/passwd").symlink_to(tmp_path / "secret")
        with Rootfs(root) as rootfs, pytest.raises(InvalidInput, match="mallory"):
            look_up(rootfs, "mallory")
        (root / "etc/passwd").unlink()
        (root / "etc/passwd").symlink_to("../../../../../../usr/passwd")
        (root / "usr").mkdir()
        (root / "usr/passwd").write_text("eve:x:3:4::/:\n")
        with Rootfs(root) as rootfs:
            assert look_up(rootfs, "eve").uid == 3

    def test_not_a_file(self, root: Path) -> None:
        (root / "etc/passwd").unlink()
        os.mkfifo(root / "etc/passwd")
        with Rootfs(root) as rootfs, pytest.raises(InvalidInput, match="not a regular file"):
            look_up(rootfs, "bob")


class TestRootfs:
    def test_mount_points(self, root: Path) -> None:
        with Rootfs(root) as rootfs:
            rootfs.make_mount_point("/new/deep/directory", directory=True)
            rootfs.make_mount_point("/new/deep/file", directory=False)
            rootfs.make_mount_point("/new/deep/file", directory=False)
            rootfs.make_mount_point("/new", directory=True)
            with pytest.raises(InvalidInput, match="not a directory"):
                rootfs.make_directory("/etc/passwd")
        assert (root / "new/deep/directory").is_dir()
        assert (root / "new/deep/file").is_file()

    def test_links_stay_inside(self, root: Path, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.mkdir()
        (root / "absolute").symlink_to(outside)
        (root / "relative").symlink_to("../../../../../run/there")
        (root / "etc/resolv.conf").symlink_to("../run/resolve/stub")
        (root / "loop").symlink_to("loop")
        with Rootfs(root) as rootfs:
            rootfs.make_directory("/absolute/a")
            rootfs.make_directory("/relative/b")
            rootfs.make_mount_point("/etc/resolv.conf", directory=False)
            with pytest.raises((InvalidInput, OSError)):
                rootfs.make_directory("/loop/c")
        assert list(outside.iterdir()) == []
        assert (root / f".{outside}" / "a").is_dir()
        assert (root / "run/there/b").is_dir()
        assert (root / "run/resolve/stub").is_file()


CONFIG = {"config": {"Entrypoint": ["/entry"], "Cmd": ["a", "b"], "Env": ["A=1", "PATH=/bin"], "WorkingDir": "/w"}}


class TestSpec:
    @pytest.mark.parametrize(
        ("args", "entrypoint", "expected"),
        [
            (None, None, ["/entry", "a", "b"]),
            (["c"], None, ["/entry", "c"]),
            (None, ["/own"], ["/own"]),
            (["c"], ["/own", "x"], ["/own", "x", "c"]),
            (["c"], [""], ["c"]),
        ],
    )
    def test_command(self, root: Path, args: Any, entrypoint: Any, expected: list[str]) -> None:
        spec = runtime_spec(CONFIG, root, args=args, entrypoint=entrypoint)
        assert spec["process"]["args"] == expected

    @pytest.mark.parametrize("config", [{}, {"config": None}, {"config": {"Cmd": None, "Entrypoint": []}}])
    def test_no_command(self, root: Path, config: dict[str, Any]) -> None:
        with pytest.raises(InvalidInput, match="no command"):
            runtime_spec(config, root)
        with pytest.raises(InvalidInput, match="no command"):
            runtime_spec(CONFIG, root, entrypoint=[])

    def test_environment(self, root: Path) -> None:
        spec = runtime_spec(CONFIG, root, env=["A=2", "B=x=y"], user="bob", tty=True, hostname="box")
        env = dict(pair.split("=", 1) for pair in spec["process"]["env"])
        assert env == {"PATH": "/bin", "HOSTNAME": "box", "TERM": "xterm", "A": "2", "B": "x=y", "HOME": "/home/bob"}
        env_of_nothing = runtime_spec({}, root, args=["x"], env=["HOME=/elsewhere"])["process"]["env"]
        assert "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" in env_of_nothing
        assert "HOME=/elsewhere" in env_of_nothing
        assert not any(pair.startswith("TERM=") for pair in env_of_nothing)

    @pytest.mark.parametrize(
        ("config", "options", "message"),
        [
            ({"Cmd": "sh"}, {}, '"Cmd".*list of strings'),
            ({"Cmd": [1]}, {}, '"Cmd".*list of strings'),
            ({"User": 0}, {}, '"User".*string'),
            ({"WorkingDir": "relative"}, {}, "relative.*absolute"),
            ({"Env": ["broken"]}, {}, "broken.*NAME=value"),
            ({}, {"env": ["=x"]}, "NAME=value"),
            ({}, {"workdir": "w"}, "absolute"),
            ({}, {"network": "bridge"}, "bridge"),
            ({}, {"user": "alice"}, "alice.*passwd"),
            ({}, {"volumes": [Volume("/nowhere", "/v")]}, "/nowhere.*existing"),
            ({}, {"volumes": [Volume("/etc", "v")]}, "absolute"),
            ({}, {"volumes": [Volume("/etc", "/v/..")]}, "root of the container"),
        ],
    )
    def test_errors(self, root: Path, config: dict[str, Any], options: dict[str, Any], message: str) -> None:
        with pytest.raises(InvalidInput, match=message):
            runtime_spec({"config": {"Entrypoint": ["/x"], **config}}, root, **options)

    def test_privileges_follow_the_user(self, root: Path) -> None:
        as_root = runtime_spec(CONFIG, root)["process"]["capabilities"]
        as_bob = runtime_spec(CONFIG, root, user="bob")["process"]["capabilities"]
        assert "CAP_SETUID" in as_root["effective"]
        assert not {"CAP_SYS_ADMIN", "CAP_MKNOD"} & set(as_root["bounding"])
        assert as_bob == {"bounding": as_root["bounding"]}

    def test_working_directory_is_made(self, root: Path) -> None:
        assert runtime_spec(CONFIG, root, workdir="/a/./b/../c")["process"]["cwd"] == "/a/c"
        assert (root / "a/c").is_dir()

    def test_later_volumes_and_parents_first(self, root: Path, tmp_path: Path) -> None:
        (tmp_path / "one").mkdir()
        (tmp_path / "two").touch()
        volumes = [Volume(f"{tmp_path}/two", "/data/in/file"), Volume(f"{tmp_path}/one", "/data", True)]
        mounts = [m for m in runtime_spec(CONFIG, root, volumes=volumes)["mounts"] if m["type"] == "bind"]
        assert [m["destination"] for m in mounts] == ["/data", "/data/in/file"]
        assert "ro" in mounts[0]["options"]
        assert "rw" in mounts[1]["options"]

    def test_host_network(self, root: Path) -> None:
        spec = runtime_spec(CONFIG, root, network="host")
        assert "network" not in [one["type"] for one in spec["linux"]["namespaces"]]
        binds = [m["destination"] for m in spec["mounts"] if m["type"] == "bind"]
        assert binds == [path for path in ("/etc/resolv.conf", "/etc/hosts") if Path(path).is_file()]
        own = runtime_spec(CONFIG, root, network="host", volumes=[Volume("/etc/group", "/etc/hosts")])
        assert [m["source"] for m in own["mounts"] if m["destination"] == "/etc/hosts"] == ["/etc/group"]


def test_find_runtime(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="apt-get install crun"):
        find_runtime("no-such-runtime", tmp_path)


class Box:
    """Runs commands in a busybox container and keeps what they write."""

    def __init__(self, runtime: Runtime, root: Path, bundle: Path) -> None:
        self.runtime, self.root, self.bundle = runtime, root, bundle
        self.count = 0

    def write(self, script: str | list[str], **options: Any) -> str:
        args = ["/bin/sh", "-c", script] if isinstance(script, str) else script
        config = {"config": options.pop("config", {})}
        spec = runtime_spec(config, self.root, args=args, **options)
        (self.bundle / "config.json").write_text(json.dumps(spec))
        self.count += 1
        return f"layerstore-test-{os.getpid()}-{self.count}"

    def run(self, script: str | list[str], input_bytes: bytes = b"", **options: Any) -> tuple[int, str]:
        name = self.write(script, **options)
        with (self.bundle / "in").open("wb+") as stdin, (self.bundle / "out").open("wb+") as stdout:
            stdin.write(input_bytes)
            stdin.seek(0)
            out = stdout.fileno()
            status = self.runtime.run(self.bundle, name, stdin=stdin.fileno(), stdout=out, stderr=out)
            stdout.seek(0)
            return status, stdout.read().decode()


def control_groups_left() -> list[str]:
    """Control groups that this process's test containers left."""
    mark = f"layerstore-test-{os.getpid()}-"
    groups = [str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{mark}*")]
    groups += [str(path) for path in Path("/sys/fs/cgroup").glob(f"{mark}*")]
    return groups


@pytest.fixture(params=["crun", "runc"])
def box(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> Iterator[Box]:
    if not mount.features().may_mount:
        pytest.skip("containers need root")
    if not BUSYBOX.exists():
        pytest.skip("no busybox at /bin/busybox (busybox-static)")
    try:
        runtime = find_runtime(request.param, tmp_path / "state")
    except Unsupported as error:
        pytest.skip(str(error))
    (root / "bin/busybox").write_bytes(BUSYBOX.read_bytes())
    (root / "bin/busybox").chmod(0o755)
    if subprocess.run(["chroot", root, "/bin/busybox", "true"], capture_output=True).returncode != 0:
        pytest.skip("/bin/busybox is not static (busybox-static)")
    for applet in APPLETS.split():
        (root / "bin" / applet).symlink_to("busybox")
    root.chmod(0o755)
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    before = Path("/proc/self/mountinfo").read_text().count(str(tmp_path))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    yield Box(runtime, root, bundle)
    state = tmp_path / "state"
    left = [path.name for path in state.iterdir()] if state.exists() else []
    for name in left:  # of a test that failed: it would run on
        runtime.delete(name, force=True)
    assert left == []
    assert Path("/proc/self/mountinfo").read_text().count(str(tmp_path)) == before == 0
    assert Path(f"/proc/self/task/{os.getpid()}/children").read_text() == children
    assert control_groups_left() == []


@pytest.mark.root
class TestContainers:
    @pytest.mark.parametrize("status", [0, 7, 255])
    def test_exit_status(self, box: Box, status: int) -> None:
        assert box.run(f"exit {status}") == (status, "")

    def test_killed_by_a_signal(self, box: Box) -> None:
        assert box.run("sh -c 'kill -9 $$'; exit $?")[0] == 128 + 9

    def test_environment_user_and_directory(self, box: Box) -> None:
        config = {"User": "bob", "WorkingDir": "/new/place", "Env": ["A=b c"]}
        status, text = box.run("echo $A:$HOME:$HOSTNAME; pwd; id -u; id -g; id -G", config=config)
        first, directory, uid, gid, groups = text.splitlines()
        assert (status, first, directory, uid, gid) == (0, "b c:/home/bob:localhost", "/new/place", "1000", "1001")
        assert set(groups.split()) == {"1001", "29", "50"}

    def test_much_through_standard_input_and_output(self, box: Box) -> None:
        name = box.write(["/bin/cat"])
        content = os.urandom(3 << 20)
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()
        received = bytearray()

        def feed() -> None:
            with open(to_write, "wb") as stream:
                stream.write(content)

        def drain() -> None:
            with open(from_read, "rb") as stream:
                received.extend(stream.read())

        threads = [threading.Thread(target=feed), threading.Thread(target=drain)]
        for thread in threads:
            thread.start()
        status = box.runtime.run(box.bundle, name, stdin=to_read, stdout=from_write)
        os.close(to_read)
        os.close(from_write)
        for thread in threads:
            thread.join()
        assert status == 0
        assert bytes(received) == content

    def test_volumes(self, box: Box, tmp_path: Path) -> None:
        shared = tmp_path / "shared"
        shared.mkdir()
        (shared / "given").write_text("given\n")
        volumes = [Volume(str(shared), "/mnt/rw"), Volume(str(shared / "given"), "/mnt/file", True)]
        script = "exec 2>&1; cat /mnt/rw/given /mnt/file; echo made >/mnt/rw/made; echo no >/mnt/file || echo read-only"
        status, text = box.run(script, volumes=volumes)
        assert status == 0
        assert text.startswith("given\ngiven\n")
        assert text.endswith("Read-only file system\nread-only\n")
        assert (shared / "made").read_text() == "made\n"

    def test_isolation(self, box: Box) -> None:
        script = """
ls /proc/self/ns >/dev/null && echo $$
cut -d: -f1 /proc/net/dev | grep -v '|' | grep -v Inter | sort
echo x 2>/dev/null >/proc/sys/kernel/domainname || echo proc-sys-read-only
head -c 1 /proc/keys | wc -c
ls /sys/firmware | wc -l
touch /sys/x 2>/dev/null || echo sys-read-only
mknod /tmp/fuse c 10 229 2>/dev/null || echo no-devices
mount -t tmpfs none /tmp 2>/dev/null || echo no-mounting
grep CapEff /proc/self/status
"""
        status, text = box.run(script)
        assert status == 0
        assert text.split() == [
            "1",
            "lo",
            "proc-sys-read-only",
            "0",
            "0",
            "sys-read-only",
            "no-devices",
            "no-mounting",
            "CapEff:",
            "00000000a00425fb",
        ]

    def test_host_network(self, box: Box) -> None:
        script = "cut -d: -f1 /proc/net/dev | grep -v '|' | grep -v Inter; cat /etc/hosts"
        status, text = box.run(script, network="host")
        assert status == 0
        interfaces = [line.split(":")[0] for line in Path("/proc/net/dev").read_text().splitlines()[2:]]
        assert text == "\n".join(interfaces) + "\n" + Path("/etc/hosts").read_text()

    def test_command_that_is_not_there(self, box: Box) -> None:
        status, text = box.run(["/no/such/program"])
        assert status != 0
        assert "/no/such/program" in text

    def test_signals_reach_the_container(self, box: Box) -> None:
        script = "trap 'echo term; exit 3' TERM; trap 'echo usr1' USR1; touch /tmp/ready; while :; do sleep 0.05; done"

        def send() -> None:
            wait_for((box.root / "tmp/ready").exists)
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)

        sender = threading.Thread(target=send)
        handler = signal.getsignal(signal.SIGTERM)
        sender.start()
        assert box.run(script) == (3, "usr1\nterm\n")
        sender.join()
        assert signal.getsignal(signal.SIGTERM) == handler

    def test_runtime_killed(self, box: Box) -> None:
        """The runtime cannot clean up then: we do."""
        name = box.write("touch /tmp/ready; sleep 60")
        status: list[int] = []
        run = threading.Thread(target=lambda: status.append(box.runtime.run(box.bundle, name)))
        run.start()
        wait_for((box.root / "tmp/ready").exists)
        # The program may be faster than crun, which writes down last what it started; runc does so first.
        state = Path(box.runtime.state_root, name)
        wait_for(lambda: any((state / file).exists() for file in ("status", "state.json")))
        pid = next(p for p in Path("/proc").glob("[0-9]*") if name in command_line(p) and "run" in command_line(p))
        os.kill(int(pid.name), signal.SIGKILL)
        run.join()
        assert status == [128 + 9]

    @pytest.mark.parametrize("box", ["crun"], indirect=True)
    def test_crun_does_not_start_itself_again(self, box: Box) -> None:
        """It looks for a program that cannot be written to; where it made one itself, it says so in its environment."""
        name = box.write("touch /tmp/ready; while ! test -e /tmp/go; do sleep 0.05; done")
        run = threading.Thread(target=box.runtime.run, args=(box.bundle, name))
        run.start()
        try:
            wait_for((box.root / "tmp/ready").exists)
            (process,) = (p for p in Path("/proc").glob("[0-9]*") if name in command_line(p))
            environment = (process / "environ").read_text()
            flags = os.statvfs(process / "exe").f_flag
        finally:
            (box.root / "tmp/go").touch()
            run.join()
        assert flags & os.ST_RDONLY
        assert [pair.partition("=")[0] for pair in environment.split("\0") if pair] == ["PATH"]

    def test_terminal(self, box: Box) -> None:
        name = box.write("tty && stty size && read line && echo got $line; exit 4", tty=True)
        code = f"""
import sys
from layerstore.containers.runtime import Runtime
sys.exit(Runtime({box.runtime.path!r}, {box.runtime.state_root!r}).run({str(box.bundle)!r}, {name!r}, tty=True))
"""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, [sys.executable, "-c", code])
        text = b""
        sent = False
        while select.select([terminal], [], [], 20)[0]:
            try:
                text += os.read(terminal, 4096)
            except OSError:
                break
            if not sent and text.count(b"\n") >= 2:
                os.write(terminal, b"hello\n")
                sent = True
        os.close(terminal)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4
        lines = text.decode().split("\r\n")
        assert lines[0].startswith("/dev/")
        assert "got hello" in lines

    def test_terminal_is_required(self, box: Box) -> None:
        with open(os.devnull) as nothing, pytest.raises(InvalidInput, match="the input device is not a TTY"):
            box.runtime.run(box.bundle, "x", stdin=nothing.fileno(), tty=True)

    def fails_once(self, box: Box, directory: Path) -> Runtime:
        """As a runtime fails that asks about a container which ends, while another of its name starts."""
        directory.mkdir()
        program, done = directory / box.runtime.name, directory / "done"
        lines = (f'[ -e {done} ] && exec {box.runtime.path} "$@"', f">{done}", "echo it is gone >&2", "exit 1")
        program.write_text("\n".join(("#!/bin/sh", *lines, "")))
        program.chmod(0o755)
        return Runtime(str(program), box.runtime.state_root)

    def test_detached(self, box: Box, tmp_path: Path) -> None:
        name = box.write("trap 'exit 0' TERM; touch /tmp/ready; while :; do sleep 0.05; done")
        pid = box.runtime.start_detached(box.bundle, name)
        state = box.runtime.state(name)
        assert (state["status"], state["pid"], state["bundle"]) == ("running", pid, str(box.bundle))
        wait_for((box.root / "tmp/ready").exists)
        assert self.fails_once(box, tmp_path / "bin").state(name) == state
        with pytest.raises(LayerstoreError, match=name):
            box.runtime.delete(name)
        box.runtime.kill(name, signal.SIGTERM)
        wait_for(lambda: box.runtime.state(name)["status"] == "stopped")
        box.runtime.delete(name)
        assert not (box.bundle / "pid").exists()
        for call in (box.runtime.state, box.runtime.delete, lambda name: box.runtime.kill(name, 15)):
            with pytest.raises(NotFound, match=name):
                call(name)

    def test_detached_and_forced(self, box: Box) -> None:
        name = box.write("touch /tmp/ready; sleep 60")
        pid = box.runtime.start_detached(box.bundle, name)
        box.runtime.delete(name, force=True)
        wait_for(lambda: not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text())

    def test_detached_that_cannot_start(self, box: Box) -> None:
        name = box.write(["/no/such/program"])
        with pytest.raises(LayerstoreError, match=r"/no/such/program"):
            box.runtime.start_detached(box.bundle, name)

    @pytest.mark.parametrize("said", ["", "it broke"])
    def test_detached_and_killed_as_it_begins(self, box: Box, tmp_path: Path, said: str) -> None:
        """As by a removal by force in another process; what it could say comes before."""
        program = tmp_path / box.runtime.name
        logs = 'while [ "$1" != --log ]; do shift; done; echo it broke >"$2"\n' if said else ""
        program.write_text(f"#!/bin/sh\n{logs}kill -9 $$\n")
        program.chmod(0o755)
        runtime = Runtime(str(program), box.runtime.state_root)
        with pytest.raises(LayerstoreError, match=said or "was killed while it started") as caught:
            runtime.start_detached(box.bundle, "x")
        assert isinstance(caught.value, Conflict) != bool(said)

    @pytest.mark.skipif(not os.path.ismount("/sys/fs/cgroup/unified"), reason="no hybrid control groups here")
    def test_hidden_directory_stays_clean(self, box: Box) -> None:
        """What a runtime makes below the hidden mount would otherwise stay there, out of sight."""
        assert box.run("exit 0")[0] == 0
        script = "umount /sys/fs/cgroup/unified && ls /sys/fs/cgroup/unified"
        shown = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=True)
        assert f"layerstore-test-{os.getpid()}-" not in shown.stdout


def command_line(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_text().split("\0")
    except OSError:
        return []
