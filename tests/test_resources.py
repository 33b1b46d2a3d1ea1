"""Limits of containers: each is reached for by a program, and holds."""

import io
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE

import leftovers
import pytest
from images import docker_files, tar_of
from pools import upper_of
from test_commands import BOX, shell
from test_containers import ROOT, root_only, runs
from waiting import wait_for

from layerstore import Container, Store, Volume
from layerstore.containers import groups
from layerstore.containers.resources import Resources, resources
from layerstore.errors import InvalidInput, ProgramNotFound, Unsupported

pytestmark = [pytest.mark.root, root_only, runs]

HOG = ["busybox", "dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"]
KILLED = 137
UNIFIED = next((Path(place) for place in groups._PLACES if Path(place, "cgroup.procs").exists()), None)


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("resources") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([BOX]))))
        yield opened


@pytest.fixture(params=[False, pytest.param(True, marks=pytest.mark.needs_tool("runc"))], ids=["crun", "runc"])
def is_runc(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def store(module_store: Store, request: pytest.FixtureRequest, is_runc: bool) -> Iterator[Store]:
    if is_runc:
        request.getfixturevalue("by_runc")
    yield module_store
    containers = module_store.containers()
    module_store.remove(containers, force=True)
    assert leftovers.control_groups({container.id for container in containers}) == []


@pytest.fixture
def container(store: Store) -> Container:
    return store.create("box:1")


def group_file(container: Container, controller: str, first: str, second: str) -> Path:
    """A file of the container's group: of version 1, or version 2 where that has the controller."""
    name = groups.name_of(container.id)
    if Path(f"/sys/fs/cgroup/{controller}/tasks").exists():
        return Path(f"/sys/fs/cgroup/{controller}/{name}/{first}")
    assert UNIFIED is not None
    return UNIFIED / name / second


def cpu_seconds(container: Container) -> float:
    """Of the container's group, by version 2, which counts without a controller; runc has one of version 1."""
    if Path("/sys/fs/cgroup/cpuacct/tasks").exists():
        path = Path(f"/sys/fs/cgroup/cpuacct/{groups.name_of(container.id)}/cpuacct.usage")
        if path.exists():
            return int(path.read_text()) / 1e9
    assert UNIFIED is not None
    return int((UNIFIED / groups.name_of(container.id) / "cpu.stat").read_text().split()[1]) / 1e6


def throttled(container: Container) -> int:
    """How many periods it was held back in."""
    lines = group_file(container, "cpu", "cpu.stat", "cpu.stat").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("nr_throttled ")))


class TestMemory:
    def test_a_hog_is_killed_and_others_go_on(self, container: Container) -> None:
        container.keep_alive(memory="32m")
        assert int(group_file(container, "memory", "memory.limit_in_bytes", "memory.max").read_text()) == 32 << 20
        beside = container.popen(["sleep", "1000"])
        hog = container.popen(HOG, stdout=PIPE, stderr=PIPE)
        hog.communicate()
        assert (hog.returncode, hog.oom_killed) == (KILLED, True)
        assert beside.poll() is None
        after = container.popen(["busybox", "true"])
        assert (after.wait(), after.oom_killed) == (0, False)
        beside.kill()
        beside.wait()

    def test_what_a_shell_lost(self, container: Container) -> None:
        container.keep_alive(memory=32 << 20)
        command = container.popen(["sh", "-c", f"{' '.join(HOG)} 2>/dev/null; echo $?"], stdout=PIPE, text=True)
        assert command.communicate()[0] == f"{KILLED}\n"
        assert (command.returncode, command.oom_killed) == (0, True)

    def test_a_program_that_is_run(self, container: Container) -> None:
        assert container.run(HOG, memory="32m", stderr=os.memfd_create("nothing")) == KILLED
        assert container.run(HOG, memory="128m", stderr=os.memfd_create("nothing")) == 0

    def test_it_is_counted_for_as_long_as_the_group_is_there(self, container: Container) -> None:
        container.start(["sleep", "1000"], memory="32m")
        fd = groups.open_oom_events(container.id)
        assert fd is not None
        try:
            assert groups.oom_kills(os.pread(fd, 4096, 0).decode()) == 0
            container.exec(HOG, capture_output=True)
            assert groups.oom_kills(os.pread(fd, 4096, 0).decode()) == 1
            container.remove(force=True)
            with pytest.raises(OSError, match="No such device"):
                os.pread(fd, 4096, 0)
        finally:
            os.close(fd)
        assert groups.open_oom_events(container.id) is None

    def test_the_least(self, container: Container) -> None:
        assert container.run(["true"], memory="6m") == 0

    def test_with_swap(self, container: Container) -> None:
        container.keep_alive(memory="32m", memory_swap="48m")
        swap = group_file(container, "memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
        assert int(swap.read_text()) == (48 if "memsw" in swap.name else 16) << 20
        container.stop()
        container.keep_alive(memory="32m")
        assert int(swap.read_text()) == (64 if "memsw" in swap.name else 32) << 20
        container.stop()
        container.keep_alive(memory="32m", memory_swap=-1)
        assert swap.read_text() == "max\n" or int(swap.read_text()) > 1 << 60

    def test_a_kill_is_no_want_of_memory(self, container: Container) -> None:
        container.keep_alive(memory="32m")
        command = container.popen(["sleep", "1000"])
        assert command.pid
        command.kill()
        assert (command.wait(), command.oom_killed) == (KILLED, False)


class TestCpus:
    def test_a_spinner_is_held_back(self, container: Container) -> None:
        container.start(["sh", "-c", "while :; do :; done"], cpus="0.1")
        wait_for(lambda: throttled(container) >= 5)
        # Of each period of 0.1 s at most 0.01, and what a scheduler gives in slices.
        before, periods = cpu_seconds(container), throttled(container)
        wait_for(lambda: throttled(container) >= periods + 10)
        assert cpu_seconds(container) - before < 0.5 * (throttled(container) - periods) * 0.1

    def test_for_commands_too(self, container: Container) -> None:
        container.keep_alive(cpus=0.1)
        spinner = container.popen(["sh", "-c", "while :; do :; done"])
        wait_for(lambda: throttled(container) >= 5)
        spinner.kill()
        spinner.wait()

    def test_those_that_it_runs_on(self, container: Container) -> None:
        last = max(os.sched_getaffinity(0))
        container.keep_alive(cpuset_cpus=str(last))
        assert shell(container, "grep Cpus_allowed_list /proc/self/status").split()[1] == str(last)
        process = container.popen(["sleep", "1000"])
        assert os.sched_getaffinity(process.pid) == {last}
        process.kill()
        process.wait()

    def test_shares(self, container: Container) -> None:
        container.keep_alive(cpu_shares=2048)
        found = group_file(container, "cpu", "cpu.shares", "cpu.weight")
        assert found.read_text().strip() == ("2048" if found.name == "cpu.shares" else "79")


class TestProcesses:
    def test_a_fork_bomb_is_held_with_what_runs_beside_it(self, container: Container) -> None:
        container.keep_alive(pids_limit=20)
        held = group_file(container, "pids", "pids.current", "pids.current")
        bomb = container.popen(["sh", "-c", "bomb() { bomb | bomb & }; bomb 2>/dev/null; sleep 1000"])
        wait_for(lambda: int(held.with_name("pids.events").read_text().split()[1]) > 0)
        assert int(held.read_text()) <= 20
        container.stop(0)
        bomb.wait()

    def test_ulimits(self, container: Container, is_runc: bool) -> None:
        script = "ulimit -n; ulimit -Hn; ulimit -c; ulimit -s"
        ulimits = ["nofile=100", "core=0", "nofile=123:456", "stack=-1"]
        container.keep_alive(ulimits=ulimits)
        # runc before 1.2 may take what it has raised for itself for the command's own soft limit.
        soft = {"123", "456"} if is_runc else {"123"}
        found = shell(container, script).split()
        assert (found[0] in soft, found[1:]) == (True, ["456", "0", "unlimited"])
        container.stop()
        fd = os.memfd_create("output")
        assert container.run(["sh", "-c", script], ulimits=ulimits, stdout=fd) == 0
        assert os.pread(fd, 100, 0).split() == [b"123", b"456", b"0", b"unlimited"]


def test_all_at_once(store: Store, container: Container) -> None:
    """And what a killed caller leaves of them goes with the next start."""
    every = {"memory": "32m", "cpus": 1, "cpuset_cpus": "0", "cpu_shares": 512, "ulimits": ["nofile=64"]}
    container.start(["sleep", "1000"], **every)  # type: ignore[arg-type]
    assert len(leftovers.control_groups({container.id})) >= (5 if Path("/sys/fs/cgroup/pids/tasks").exists() else 1)
    container.kill()
    wait_for(lambda: container.state != "running")
    assert container.run(["true"]) == 0
    assert leftovers.control_groups({container.id}) == []
    container.start(["true"], **every)  # type: ignore[arg-type]
    wait_for(lambda: container.state != "running")
    store.collect_garbage()
    assert leftovers.control_groups({container.id}) == []


def test_without_a_controller(module_store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    container = module_store.create("box:1")
    limiting = groups._limiting()
    monkeypatch.setattr(groups, "_HIERARCHIES", "/nowhere")
    monkeypatch.setattr(groups, "_limiting", lambda: limiting)
    monkeypatch.setattr(groups, "_pass_on", lambda _root, _controllers: {"pids"} if not limiting else set())
    for controller, options in {
        "memory": {"memory": "32m"},
        "cpu": {"cpus": 1},
        "cpuset": {"cpuset_cpus": "0"},
    }.items():
        with pytest.raises(Unsupported, match=f"no control groups here have the controller {controller}; leave out --"):
            container.run(["true"], pids_limit=-1, **options)  # type: ignore[arg-type]
    container.remove()
    assert leftovers.control_groups({container.id}) == []


def test_files_of_both_versions(tmp_path: Path) -> None:
    """No machine has both, nor a controller in both: a directory stands for the group of version 2."""
    every = resources(7, "32m", "48m", "1.5" if (os.cpu_count() or 1) > 1 else "1", 1024, "0")
    files = every.files()
    assert list(files) == ["pids", "memory", "cpu", "cpuset"]
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        for _, second in files.values():
            with pytest.raises(Unsupported, match=r"this kernel cannot limit by|does not account for swap"):
                groups._limit(second, fd, None)
            for name, _ in second:
                (tmp_path / name).touch()
            groups._limit(second, fd, None)
    finally:
        os.close(fd)
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found.pop("cpu.max").split()[1] == "20000"
    assert found == {
        "pids.max": "7",
        "memory.max": str(32 << 20),
        "memory.swap.max": str(16 << 20),
        "cpu.weight": "39",
        "cpuset.cpus": "0",
    }
    assert [dict(Resources(-1, cpus=cpus).files()["cpu"][1])["cpu.max"] for cpus in (0.01, 0.05)] == [
        "1000 100000",
        "1000 20000",
    ]
    assert Resources(-1).files() == {}
    assert Resources(-1).of_runtime() == {}


def test_controllers_are_passed_on_once(tmp_path: Path) -> None:
    """To a root of version 2; a directory stands for it."""
    texts = {"cgroup.controllers": "cpuset cpu memory pids\n", "cgroup.subtree_control": "pids\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert groups._pass_on(fd, ["pids"]) == {"pids"}
        assert (tmp_path / "cgroup.subtree_control").read_text() == "pids\n"
        assert groups._pass_on(fd, ["pids", "memory", "hugetlb", "cpu"]) == {"pids", "memory", "cpu"}
        assert (tmp_path / "cgroup.subtree_control").read_text() == "+cpu +memory"
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    ("text", "kills"),
    [
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
        ("low 0\nhigh 0\nmax 9\noom 3\noom_kill 1\noom_group_kill 0\n", 1),
        ("", 0),
    ],
)
def test_what_counts_want_of_memory(text: str, kills: int) -> None:
    assert groups.oom_kills(text) == kills


@pytest.mark.parametrize(
    ("given", "bytes_"),
    [
        ("512m", 512 << 20),
        ("1.5G", 3 << 29),
        ("8000000", 8000000),
        ("64 MiB", 64 << 20),
        (9 << 20, 9 << 20),
        ("1gb", 1 << 30),
    ],
)
def test_sizes(given: int | str, bytes_: int) -> None:
    assert resources(-1, given).memory == bytes_


def layerstore(store: Store, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "layerstore", "--root", str(store.root), *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_on_the_command_line(module_store: Store) -> None:
    options = ["--memory", "32m", "--memory-swap", "-1", "--cpus", "0.5", "--cpuset-cpus", "0", "--cpu-shares", "512"]
    options += ["--ulimit", "nofile=64", "--ulimit", "core=0"]
    script = "ulimit -n; grep Cpus_allowed_list /proc/self/status"
    assert layerstore(module_store, "run", "--rm", *options, "box:1", "sh", "-c", script).stdout.split() == [
        *("64", "Cpus_allowed_list:", "0")
    ]
    assert layerstore(module_store, "run", "--rm", "-m", "32m", "box:1", *HOG).returncode == KILLED
    bad = layerstore(module_store, "run", "--rm", "-m", "1k", "box:1", "true")
    assert (bad.returncode, bad.stderr) == (125, "layerstore run: the limit on memory is '1k': it is 6m or more\n")


class TestMounts:
    def test_a_root_that_is_read_only(self, container: Container, tmp_path: Path) -> None:
        script = "touch /etc/x; touch /tmp/x /data/x /dev/shm/x && echo written; touch /dev/.init"
        options: dict[str, object] = {"tmpfs": ["/tmp"], "volumes": [Volume(str(tmp_path), "/data")]}
        container.keep_alive(read_only=True, **options)  # type: ignore[arg-type]
        done = container.exec(["sh", "-c", script], capture_output=True, text=True)
        assert done.stdout == "written\n"
        assert [line.rpartition(": ")[2] for line in done.stderr.splitlines()] == ["Read-only file system"] * 2
        container.stop()
        fd = os.memfd_create("output")
        container.run(["sh", "-c", script], read_only=True, stdout=fd, stderr=fd, **options)  # type: ignore[arg-type]
        assert b"written" in os.pread(fd, 1000, 0)
        assert (tmp_path / "x").exists()
        assert container.run(["touch", "/etc/x"]) == 0

    def test_in_memory(self, container: Container, is_runc: bool) -> None:
        given = ["/one", "/two:size=1m,mode=0700,uid=7,exec", "/two/below:ro,size=50%", "/dev/shm:size=2m,nr_inodes=9"]
        container.keep_alive(tmpfs=given)
        lines = shell(container, "grep tmpfs /proc/mounts").splitlines()
        found = {line.split()[1]: set(line.split()[3].split(",")) for line in lines}
        assert found["/one"] >= {"rw", "nosuid", "nodev", "noexec"}
        assert found["/two"] >= {"rw", "nosuid", "nodev", "size=1024k", "mode=700", "uid=7"}
        assert "noexec" not in found["/two"]
        assert found["/two/below"] >= {"ro", "noexec"}
        assert next(set(line.split()[3].split(",")) for line in reversed(lines) if " /dev/shm " in line) >= {
            *("size=2048k", "nr_inodes=9")
        }
        full = container.exec(["sh", "-c", "busybox dd if=/dev/zero of=/two/file bs=2M count=1"], capture_output=True)
        assert b"No space left" in full.stderr
        if not is_runc:  # before 1.2 it gives them the modes of the directories that they cover
            assert shell(container, "busybox stat -c %a /one /two") == "1777\n700\n"

    @pytest.mark.parametrize(("given", "blocks"), [({}, 64 << 20), ({"shm_size": "3m"}, 3 << 20)])
    def test_shared_memory(self, container: Container, given: dict[str, str], blocks: int) -> None:
        container.keep_alive(**given)  # type: ignore[arg-type]
        size, unit = shell(container, "busybox stat -f -c '%b %S' /dev/shm").split()
        assert int(size) * int(unit) == blocks

    def test_two_in_one_place(self, container: Container, tmp_path: Path) -> None:
        with pytest.raises(InvalidInput, match='two mounts want the place "/x"'):
            container.keep_alive(tmpfs=["/x"], volumes=[Volume(str(tmp_path), "/x/")])


def test_a_read_only_root_without_groups(module_store: Store) -> None:
    """Where the root is mounted again, so that no device can be opened on it."""
    container = module_store.create("box:1")
    assert container.run(["sh", "-c", "! touch /etc/x 2>/dev/null"], cgroups="disabled", read_only=True) == 0
    assert container.run(["touch", "/etc/x"], cgroups="disabled") == 0
    container.remove()


def test_mounts_and_names_on_the_command_line(
    module_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown/file").write_text("content")
    (tmp_path / "env").write_bytes(b'\xef\xbb\xbf# a comment\n\n  A=1 "x" \nB=file\r\nHOME_OF\nNOBODY_SET\n')
    mounts = [
        f"type=bind,src={tmp_path}/shown,dst=/one,readonly",
        "type=tmpfs,target=/two,tmpfs-size=1m,tmpfs-mode=750",
    ]
    options = [
        *("-h", "some.name", "--env-file", f"{tmp_path}/env", "-e", "B=given", "--shm-size", "1m", "--read-only")
    ]
    options += [word for mount in mounts for word in ("--mount", mount)]
    script = 'busybox hostname; echo "$A|$B|$HOME_OF|${NOBODY_SET-unset}"; cat /one/file; echo; touch /one/x /x 2>&1; '
    monkeypatch.setenv("HOME_OF", "mine")
    command = ["box:1", "sh", "-c", f"{script} busybox stat -c %a /two"]
    done = layerstore(module_store, "run", "--rm", *options, *command)
    lines = done.stdout.splitlines()
    assert lines[:3] == ["some.name", '1 "x" |given|mine|unset', "content"]
    assert [line.rpartition(": ")[2] for line in lines[3:5]] == ["Read-only file system"] * 2
    assert lines[5:] == ["750"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mount", "source=/etc,target=/x"], "the type 'volume' is not to be had: bind and tmpfs are"),
        (["--mount", "type=bind,source=/etc"], "it needs target=PATH, absolute, and source="),
        (["--mount", "type=tmpfs,target=x"], "it needs target=PATH, absolute\n"),
        (["--mount", "type=tmpfs,target=/x,source=/etc"], "type=tmpfs has no 'source', it has target, tmpfs-mode"),
        (["--mount", "type=tmpfs,target=/x,tmpfs-size=all"], 'has the option "size=all"'),
        (["--mount", "type=bind,source=/etc,target=/x,readonly=maybe"], "readonly is true or false"),
        (["--mount", "type=bind,source=/nowhere,target=/x"], "there is no /nowhere to bind"),
        (["--env-file", "/nowhere"], "No such file"),
        (["-h", "x" * 65], "is no name of at most 64 bytes"),
    ],
)
def test_bad_options(module_store: Store, options: list[str], message: str) -> None:
    done = layerstore(module_store, "run", "--rm", *options, "box:1", "true")
    assert (done.returncode, message in done.stderr) == (125, True), done.stderr
    assert module_store.containers() == []


def test_a_file_that_sets_no_variables(module_store: Store, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("A=1\nB C=2\n")
    done = layerstore(module_store, "run", "--env-file", str(tmp_path / "env"), "box:1", "true")
    assert (done.returncode, "env, line 2: 'B C' is no name of a variable" in done.stderr) == (125, True)


class TestInit:
    def test_status(self, store: Store, container: Container) -> None:
        for script, status in {"exit 7": 7, "kill -9 $$": 137, "exec busybox true": 0}.items():
            assert container.run(["sh", "-c", script], init=True) == status
        assert container.run(["true"], init=True, user="1000", env=["PATH=/nowhere:/bin"]) == 0
        assert container.run(["bin/true"], init=True) == 0
        with pytest.raises(ProgramNotFound):
            container.run(["nothing"], init=True)
        assert store.container(container.id).inspect()["Command"] == ["bin/true"]

    def test_what_it_leaves_is_waited_for(self, container: Container) -> None:
        leaves = ["sh", "-c", "(busybox sh -c 'until test -e /go; do sleep 0.01; done' &); exec sleep 1000"]
        zombies = "cat /proc/[0-9]*/stat | grep -c ') Z'; true"
        container.start(leaves, init=True)
        wait_for(lambda: int(shell(container, "ls -d /proc/[0-9]* | wc -l")) >= 6)
        shell(container, "busybox touch /go")
        wait_for(lambda: int(shell(container, "ls -d /proc/[0-9]* | wc -l")) == 5)
        assert shell(container, zombies) == "0\n"
        assert shell(container, "busybox tr '\\0' ' ' </proc/1/cmdline").startswith("/dev/.init sh -c")
        container.stop(0)
        shell(container, "busybox rm /go")
        container.start(leaves)
        wait_for(lambda: int(shell(container, "ls -d /proc/[0-9]* | wc -l")) >= 5)
        shell(container, "busybox touch /go")
        wait_for(lambda: shell(container, zombies) == "1\n")

    def test_signals(self, container: Container) -> None:
        container.start(
            ["sh", "-c", "trap 'echo >/got; exit' TERM; echo >/ready; while :; do sleep 0.01; done"], init=True
        )
        wait_for(lambda: container.exec(["test", "-e", "/ready"]).returncode == 0)
        container.stop()
        assert (upper_of(container) / "got").exists()

    def test_one_signal_of_a_terminal(self, container: Container) -> None:
        script = "n=0; trap 'n=$((n+1))' INT; echo ready; while [ $n = 0 ]; do sleep 0.01; done; sleep 0.1; echo had $n"
        outer, inner = pty.openpty()
        try:
            command = [sys.executable, "-c", "import sys; from layerstore import Store; sys.exit(Store(sys.argv[1])."]
            command[-1] += "container(sys.argv[2]).run(['sh', '-c', sys.argv[3]], tty=True, init=True))"
            arguments = [str(container._engine.layout.root), container.id, script]
            begun = subprocess.Popen([*command, *arguments], stdin=inner, stdout=inner, stderr=inner, cwd=ROOT)
            text = b""
            while b"ready" not in text:
                text += os.read(outer, 1000)
            os.write(outer, b"\x03")
            while b"had" not in text:
                text += os.read(outer, 1000)
            assert b"had 1" in text
            assert begun.wait() == 0
        finally:
            os.close(outer)
            os.close(inner)

    def test_kept_alive(self, container: Container) -> None:
        container.keep_alive(init=True)
        assert shell(container, "echo ran") == "ran\n"
        container.umount()
