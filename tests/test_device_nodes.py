"""Every way in which a device node can come to where a program of a container sees it: the program cannot open it.

The nodes are of a loop device, whose content must stay as it was, and of devices that every Linux has. In each test the
nodes are there and their modes let everybody open them. So what refuses is the kernel, with "Operation not permitted"
(the rules of the container's control group) or "Permission denied" (a mount without devices).
"""

import io
import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cases
import pytest
import tarbytes as tb
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_containers import busybox
from waiting import wait_for

from layerstore import Container, Store, Volume

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.needs_tool("losetup")]

CONTENT = os.urandom(1 << 16)
CHARACTERS = {"mem": (1, 1), "kmsg": (1, 11), "tun": (10, 200)}
USERS = ("0", "1000:1000")
# Opens each for reading and for both, and writes to block devices. A line for each: path, what for, how it went.
TRY = """for path in "$@"; do
for use in '<' '<>'; do
said="no device"
if [ -b $path ] || [ -c $path ]; then said=$( (eval "exec 3$use$path") 2>&1) && said=opened; fi
echo "$path $use $said"
done
[ -b $path ] && (echo spoiled >$path) 2>/dev/null && echo "$path > opened"
done; true
"""
REFUSED = ("Operation not permitted", "Permission denied")


def case(name: str) -> pytest.MarkDecorator:
    return cases.case(name, "cannot be opened")


class Nodes:
    """The devices, and what they are to a tar, a layer and a file system."""

    def __init__(self, loop: Path) -> None:
        status = loop.stat()
        self.loop = loop
        self.devices = {name: (stat.S_IFCHR, *numbers) for name, numbers in CHARACTERS.items()}
        self.devices["loop"] = (stat.S_IFBLK, os.major(status.st_rdev), os.minor(status.st_rdev))

    def entries(self, directory: str) -> list[Entry]:
        made = [Entry("dir", directory, mode=0o755)]
        for name, (kind, *numbers) in self.devices.items():
            word = "block" if kind == stat.S_IFBLK else "char"
            made.append(Entry(word, f"{directory}/{name}", mode=0o666, device=(numbers[0], numbers[1])))
        return made

    def tar(self, directory: str = "n") -> bytes:
        return write_tar(self.entries(directory)) + tb.END

    def make(self, directory: Path) -> Path:
        """Nodes below a directory of the host."""
        directory.mkdir()
        directory.chmod(0o755)
        for name, (kind, *numbers) in self.devices.items():
            os.mknod(directory / name, kind | 0o666, os.makedev(*numbers))
            (directory / name).chmod(0o666)
        return directory

    def paths(self, directory: str) -> list[str]:
        return [f"{directory}/{name}" for name in self.devices]


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    """With a loop device of the module's own, which at the end has the content that it had."""
    file = tmp_path_factory.mktemp("loop") / "content"
    file.write_bytes(CONTENT)
    done = subprocess.run(["losetup", "--find", "--show", str(file)], capture_output=True, text=True, check=True)
    device = Path(done.stdout.strip())
    try:
        # The host's root can open it: what is refused below is refused to the container.
        os.close(os.open(device, os.O_RDWR))
        yield Nodes(device)
    finally:
        subprocess.run(["losetup", "--detach", str(device)], check=True)
    assert file.read_bytes() == CONTENT


@pytest.fixture(scope="module")
def module_store(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Iterator[Store]:
    box = [write_tar([Entry("dir", name, mode=0o755) for name in ("etc", "n.d")]), busybox()]
    box.append(write_tar([Entry("dir", "tmp", mode=0o1777), Entry("file", "try", data=TRY.encode(), mode=0o755)]))
    with_nodes = write_tar(nodes.entries("n"))
    gone = write_tar([Entry("file", ".wh.n")])
    images = [
        Image(box, ["box:1"]),
        Image([*box, with_nodes], ["nodes:1"]),
        Image([*box, with_nodes, gone], ["gone:1"]),
        Image([*box, with_nodes, gone, with_nodes], ["back:1"]),
    ]
    with Store(tmp_path_factory.mktemp("devices") / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files(images))))
        yield store


@pytest.fixture
def store(module_store: Store) -> Iterator[Store]:
    yield module_store
    module_store.remove(module_store.containers(), force=True)


def tried(container: Container, paths: list[str], stdin: str | Path = os.devnull, **options: Any) -> list[str]:
    """What a program of the container says of these paths: "path use answer"."""
    with open(stdin, "rb") as given, os.fdopen(os.memfd_create("out"), "w+b") as out:
        command = ["/bin/sh", "/try", *paths]
        status = container.run(command, stdin=given.fileno(), stdout=out, stderr=out, **options)
        out.seek(0)
        printed = out.read().decode()
    assert status == 0, printed
    return printed.splitlines()


def is_refused(lines: list[str], paths: list[str]) -> None:
    """Each was tried for reading and for writing, was there, and did not open."""
    assert len(lines) == 2 * len(paths), lines
    assert [line for line in lines if not line.endswith(REFUSED)] == []


def refuses(container: Container, paths: list[str], **options: Any) -> None:
    for user in USERS:
        is_refused(tried(container, paths, user=user, **options), paths)


# In images


@case("device nodes in a layer")
@pytest.mark.parametrize("image", ["nodes:1", "back:1"])
def test_in_a_layer(store: Store, nodes: Nodes, image: str) -> None:
    refuses(store.create(image), nodes.paths("/n"))


def test_below_a_whiteout(store: Store, nodes: Nodes) -> None:
    lines = tried(store.create("gone:1"), nodes.paths("/n"))
    assert {line.split(" ", 2)[2] for line in lines} == {"no device"}


@case("hard links to device nodes, and another way to the root")
def test_a_hard_link_and_another_way_to_the_root(store: Store, nodes: Nodes) -> None:
    container = store.create("nodes:1")
    with container.mount() as root:
        (root / "links").mkdir()
        for name in nodes.devices:
            os.link(root / "n" / name, root / "links" / name)
    refuses(container, nodes.paths("/links"))
    is_refused(tried(container, nodes.paths("/proc/1/root/n")), nodes.paths("/proc/1/root/n"))


@pytest.mark.needs_tool("runc")
@pytest.mark.usefixtures("by_runc")
def test_with_runc(store: Store, nodes: Nodes) -> None:
    """But for /dev/net/tun, which runc before 1.2 lets every container have, as docker's do."""
    refuses(store.create("nodes:1"), ["/n/mem", "/n/kmsg", "/n/loop"])


# Into containers


@case("device nodes in a tar for cp")
@pytest.mark.parametrize("mounted", [False, True])
def test_from_a_tar(store: Store, nodes: Nodes, mounted: bool) -> None:
    container = store.create("box:1")
    if mounted:
        container.mount()
    container.unpack(io.BytesIO(nodes.tar()), "/n.d")
    refuses(container, nodes.paths("/n.d/n"))


@case("device nodes for a container that runs")
@pytest.mark.parametrize("user", USERS)
def test_into_a_running_container(store: Store, nodes: Nodes, tmp_path: Path, user: str) -> None:
    """What started before the nodes came cannot open them either."""
    container = store.create("box:1")
    script = 'echo >/tmp/up; while ! [ -e /go ]; do sleep 0.01; done; /bin/sh /try "$@"'
    paths = [*nodes.paths("/n.d/n"), *nodes.paths("/copied")]
    container.start(["/bin/sh", "-c", script, "sh", *paths], user=user)
    wait_for((container.root / "tmp/up").exists)
    container.unpack(io.BytesIO(nodes.tar()), "/n.d")
    container.copy_in(nodes.make(tmp_path / "made"), "/copied")
    (container.root / "go").touch()
    container.wait(20)
    is_refused(b"".join(piece.data for piece in container.logs()).decode().splitlines(), paths)


@case("device nodes copied from the host")
def test_copied_from_the_host(store: Store, nodes: Nodes, tmp_path: Path) -> None:
    container = store.create("box:1")
    container.copy_in(nodes.make(tmp_path / "made"), "/copied")
    refuses(container, nodes.paths("/copied"))


@case("device nodes in a volume")
@pytest.mark.parametrize("read_only", [False, True])
def test_in_a_volume(store: Store, nodes: Nodes, tmp_path: Path, read_only: bool) -> None:
    made = nodes.make(tmp_path / "made")
    volumes = [Volume(str(made), "/v", read_only), Volume(str(nodes.loop), "/alone", read_only)]
    refuses(store.create("box:1"), [*nodes.paths("/v"), "/alone"], volumes=volumes)


@case("a block device as standard input, to open again")
@pytest.mark.parametrize("user", USERS)
def test_as_standard_input(store: Store, nodes: Nodes, user: str) -> None:
    """It may be read through the descriptor, which the caller gave, and not be opened once more."""
    (first, second) = tried(store.create("box:1"), ["/proc/self/fd/0"], stdin=nodes.loop, user=user)
    assert first.endswith((*REFUSED, "no device"))
    assert second.endswith((*REFUSED, "no device"))


@pytest.fixture
def given(store: Store, nodes: Nodes) -> Container:
    """A container whose image has no node, and which was given some."""
    container = store.create("box:1")
    container.unpack(io.BytesIO(nodes.tar()), "/")
    return container


@case("device nodes in a committed container")
def test_committed(store: Store, nodes: Nodes, given: Container) -> None:
    image = given.commit("committed:1")
    made = store.create("committed:1")
    refuses(made, nodes.paths("/n"))
    made.remove()
    store.remove_image(image.id)


@case("device nodes in a fork")
def test_forked(nodes: Nodes, given: Container) -> None:
    refuses(given.fork(), nodes.paths("/n"))


@case("device nodes in a snapshot")
def test_rolled_back(nodes: Nodes, given: Container) -> None:
    given.snapshot("with")
    assert given.run(["busybox", "rm", "-r", "/n"]) == 0
    given.umount()
    given.rollback("with")
    refuses(given, nodes.paths("/n"))


@case("device nodes of a container of the extent driver, moved")
def test_moved_between_drivers(store: Store, nodes: Nodes) -> None:
    container = store.create("box:1", driver="extent")
    container.unpack(io.BytesIO(nodes.tar()), "/")
    container.move("overlay")
    refuses(store.container(container.id), nodes.paths("/n"))


# In builds


@pytest.fixture
def build(store: Store, tmp_path: Path) -> Callable[..., list[str]]:
    """Builds a Dockerfile and gives back what its last RUN, `{try} PATH...`, printed."""

    def done(dockerfile: str, **options: Any) -> list[str]:
        context = tmp_path / "context"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(dockerfile)
        printed: list[bytes] = []

        def told(event: Any) -> None:
            if event.kind == "output":
                printed.append(event.data)

        image = store.build(context, progress=told, pull="never", no_cache=True, **options)
        store.remove_image(image.id)
        return b"".join(printed).decode().splitlines()

    return done


def steps_of_all(mounts: str, paths: list[str]) -> str:
    """A RUN that tries the paths, for each user."""
    return "".join(f"USER {user}\nRUN {mounts} sh /try {' '.join(paths)}\n" for user in USERS)


@case("device nodes of an image, a stage and a context, by RUN --mount")
def test_bound_into_a_step(build: Callable[..., list[str]], nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    nodes.make(tmp_path / "context" / "n")
    ways = {"/image": "from=nodes:1", "/image-rw": "from=nodes:1,rw", "/stage": "from=stage", "/context": "rw=false"}
    ways["/context-rw"] = "rw"
    mounts = " ".join(f"--mount=type=bind,target={target},{how}" for target, how in ways.items())
    paths = [path for target in ways for path in nodes.paths(f"{target}/n")]
    dockerfile = f"FROM box:1 AS stage\nCOPY n /n\nFROM box:1\n{steps_of_all(mounts, paths)}"
    is_refused(build(dockerfile), paths * len(USERS))


@case("device nodes by COPY, COPY --from and ADD")
def test_brought_by_a_step(build: Callable[..., list[str]], nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "context").mkdir()
    nodes.make(tmp_path / "context" / "n")
    (tmp_path / "context" / "n.tar").write_bytes(nodes.tar())
    steps = "COPY --from=nodes:1 /n /image\nCOPY --from=stage /n /stage\nCOPY n /context\nADD n.tar /archive\n"
    paths = [path for place in ("/image", "/stage", "/context", "/archive/n") for path in nodes.paths(place)]
    dockerfile = f"FROM nodes:1 AS stage\nFROM box:1\n{steps}{steps_of_all('', paths)}"
    is_refused(build(dockerfile), paths * len(USERS))


@case("device nodes of the image that a build begins from")
def test_on_an_image_that_has_them(build: Callable[..., list[str]], nodes: Nodes) -> None:
    is_refused(build(f"FROM nodes:1\n{steps_of_all('', nodes.paths('/n'))}"), nodes.paths("/n") * len(USERS))


@case("device nodes in a cache of builds")
def test_in_a_cache_of_builds(store: Store, build: Callable[..., list[str]], nodes: Nodes) -> None:
    """No program can make a node there: this one is from the host's root."""
    build("FROM box:1\nRUN --mount=type=cache,target=/c echo >/c/mark\n")
    (mark,) = (store.root / "builds").rglob("mark")
    nodes.make(mark.parent / "n")
    paths = nodes.paths("/c/n")
    dockerfile = f"FROM box:1\n{steps_of_all('--mount=type=cache,target=/c', paths)}"
    is_refused(build(dockerfile), paths * len(USERS))


# What is usual opens


@pytest.mark.parametrize("user", USERS)
def test_the_usual_ones_open(store: Store, user: str) -> None:
    paths = [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "ptmx")]
    lines = tried(store.create("nodes:1"), [*paths, "/dev/tty"], user=user)
    assert [line for line in lines if not line.endswith((" opened", "/dev/tty: No such device or address"))] == []
    assert len(lines) == 2 * len(paths) + 2


# What lets containers have others


@case("device nodes made by a program with CAP_MKNOD")
def test_made_inside(store: Store, nodes: Nodes) -> None:
    """By a program with CAP_MKNOD, which may not open what it makes, if it may make it."""
    steps = []
    for name, (kind, *numbers) in nodes.devices.items():
        letter = "b" if kind == stat.S_IFBLK else "c"
        steps.append(f"busybox mknod -m 666 /tmp/{name} {letter} {numbers[0]} {numbers[1]} 2>/dev/null")
    container = store.create("box:1")
    container.run(["sh", "-c", "; ".join(steps)], cap_add=["MKNOD"])
    paths = nodes.paths("/tmp")
    for user in USERS:
        lines = tried(container, paths, user=user, cap_add=["MKNOD"])
        assert len(lines) == 2 * len(paths)
        assert [line for line in lines if not line.endswith((*REFUSED, "no device"))] == []


@pytest.mark.parametrize("groups", [{}, {"cgroups": "disabled"}])
def test_a_device_that_is_given_opens_alone(store: Store, nodes: Nodes, groups: dict[str, Any]) -> None:
    container = store.create("nodes:1")
    given = ["/dev/full:/dev/given"]
    lines = tried(container, ["/dev/given", *nodes.paths("/n")], devices=given, **groups)
    assert lines[:2] == ["/dev/given < opened", "/dev/given <> opened"]
    is_refused(lines[2:], nodes.paths("/n"))


def test_a_device_that_is_given_for_reading(store: Store, nodes: Nodes) -> None:
    lines = tried(store.create("nodes:1"), ["/dev/given"], devices=[f"{nodes.loop}:/dev/given:r"])
    assert lines[0] == "/dev/given < opened"
    assert lines[1].endswith("Operation not permitted")
    assert len(lines) == 2


def test_a_privileged_container_opens_all(store: Store, nodes: Nodes) -> None:
    container = store.create("nodes:1")
    paths = [f"/n/{name}" for name in CHARACTERS]
    lines = tried(container, paths, privileged=True)
    assert [line for line in lines if line.endswith(REFUSED)] == []
    assert "/n/kmsg < opened" in lines
    assert container.run(["sh", "-c", ": </n/loop"], privileged=True) == 0


@case("device nodes where control groups are disabled")
def test_without_control_groups(store: Store, nodes: Nodes, tmp_path: Path) -> None:
    """No rules hold there: the mounts have no devices."""
    volumes = [Volume(str(nodes.make(tmp_path / "made")), "/v")]
    container = store.create("nodes:1")
    refuses(container, [*nodes.paths("/n"), *nodes.paths("/v")], volumes=volumes, cgroups="disabled")
    lines = tried(container, ["/dev/null", "/dev/zero"], cgroups="disabled")
    assert [line for line in lines if not line.endswith(" opened")] == []


@case("a device as a volume of its own where control groups are disabled")
def test_a_volume_of_one_without_control_groups(store: Store, nodes: Nodes) -> None:
    volumes = [Volume(str(nodes.loop), "/alone")]
    refuses(store.create("box:1"), ["/alone"], volumes=volumes, cgroups="disabled")
