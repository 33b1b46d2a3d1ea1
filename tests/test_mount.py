"""Mounts and programs started by the core, judged by the kernel: /proc/self/mountinfo, /proc/<pid>, exit statuses."""

import contextlib
import errno
import os
import pty
import re
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from leftovers import mount_points

from layerstore._core import mount
from layerstore.errors import CorruptError, InvalidInput, Unsupported

KERNEL = mount.features()
needs_root = pytest.mark.skipif(not KERNEL.may_mount, reason="mounting needs CAP_SYS_ADMIN")
needs_kernel = pytest.mark.skipif(
    not (KERNEL.may_mount and KERNEL.overlay and KERNEL.erofs), reason="needs CAP_SYS_ADMIN, overlayfs and EROFS"
)
NOBODY = 65534
MKFS_EROFS = "/usr/bin/mkfs.erofs"


def names_in(directory: Path) -> list[str]:
    return sorted(entry.name for entry in directory.iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A directory of the test's own. No mount may be left below it, none of the system's gone, no descriptor open."""
    before, fds = mount_points(), names_in(Path("/proc/self/fd"))
    yield tmp_path
    assert names_in(Path("/proc/self/fd")) == fds
    after = mount_points()
    left = [point for point in after if point.startswith(f"{tmp_path}/")]
    for point in reversed(left):
        mount.umount(point, lazy=True)
    assert left == []
    # Below others there are mounts of tests that run at the same time.
    system = [p for p in before if re.match(r"/(proc|sys|dev(?!/shm/)|etc|usr|boot)(/|$)|/$", p)]
    assert set(system) <= set(after)


@pytest.fixture
def image(place: Path) -> Path:
    """An EROFS image with a file `hello` and a directory `etc`."""
    kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=True).stdout.strip()
    if kind not in ("ext2/ext3", "xfs", "btrfs"):
        pytest.skip(f"EROFS images cannot be mounted from {kind}: set TMPDIR to a directory on ext4, XFS or btrfs")
    if not Path(MKFS_EROFS).exists():
        pytest.skip("mkfs.erofs is not installed (erofs-utils)")
    tree = place / "tree"
    (tree / "etc").mkdir(parents=True)
    (tree / "hello").write_text("from the image\n")
    path = place / "image.erofs"
    subprocess.run([MKFS_EROFS, "--quiet", path, tree], check=True, capture_output=True)
    return path


class Containers:
    """A directory of containers on one mounted image."""

    def __init__(self, place: Path, image: Path) -> None:
        self.path = place / "containers"
        self.path.mkdir()
        self.image_root = place / "image-root"
        self.image_root.mkdir()
        mount.mount_erofs(image, None, self.image_root)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.lower = os.open(self.image_root, os.O_PATH | os.O_DIRECTORY)

    def make(self, *names: str) -> None:
        mount.container_make_many(self.fd, names, 0o755, 0, 0, 0)

    def mount(self, *names: str) -> int:
        return mount.overlay_mount_many(self.fd, names, [self.lower], [])

    def close(self) -> None:
        mount.umount_many(self.fd, [entry.name for entry in self.path.iterdir()], lazy=True)
        os.close(self.lower)
        os.close(self.fd)
        mount.umount(self.image_root, lazy=True)


@pytest.fixture
def containers(place: Path, image: Path) -> Iterator[Containers]:
    made = Containers(place, image)
    yield made
    made.close()


def as_nobody(code: str, before: str = "") -> str:
    """Run Python code in a child that gives its privileges up after `before`, and return what it prints."""
    start = "import os\nfrom layerstore._core import mount\nfrom layerstore.errors import *\n"
    drop = f"os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY})\n"
    command = [sys.executable, "-c", start + before + drop + code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def under_seccomp(system_call: int, argument: int, value: int, error: int, code: str) -> str:
    """Run Python code in a child where the system call fails with `error` when its argument has that value."""
    program = [
        (0x20, 0, 0, 0),  # load the number
        (0x15, 0, 3, system_call),
        (0x20, 0, 0, 16 + 8 * argument),  # the low half of the argument
        (0x15, 0, 1, value),
        (0x06, 0, 0, 0x00050000 | error),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    filters = b"".join(struct.pack("HBBI", *one) for one in program)
    install = f"""
import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
filters = ctypes.create_string_buffer({filters!r}, {len(filters)})
class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filters", ctypes.c_void_p)]
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(Program({len(program)}, ctypes.addressof(filters)))) == 0
from layerstore._core import mount
from layerstore.errors import *
"""
    command = [sys.executable, "-c", install + code]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def report(call: str) -> str:
    """Code that prints the exception that a call ends with."""
    return f"try:\n    {call}\nexcept Exception as error:\n    print(type(error).__name__, error)\n"


FSOPEN, FSCONFIG = 430, 431
FSCONFIG_SET_FD = 5


@pytest.mark.root
@pytest.mark.kernel
@needs_kernel
class TestErofs:
    def test_shows_the_image_read_only_until_unmounted(self, place: Path, image: Path) -> None:
        target = place / "target"
        target.mkdir()
        assert not mount.is_mounted(target)
        mount.mount_erofs(image, None, target)
        assert mount.is_mounted(target)
        assert str(target) in mount_points()
        assert (target / "hello").read_text() == "from the image\n"
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        mount.umount(target)
        assert not mount.is_mounted(target)
        mount.umount(target)

    def test_path_longer_than_an_option_may_be(self, place: Path, image: Path) -> None:
        deep = place / ("d" * 150) / ("e" * 150)
        deep.mkdir(parents=True)
        moved = image.rename(deep / "image.erofs")
        target = deep / "target"
        target.mkdir()
        mount.mount_erofs(os.fsencode(moved), None, os.fsencode(target))
        assert (target / "hello").read_text() == "from the image\n"
        mount.umount(target)

    def test_device_is_used(self, place: Path) -> None:
        tree = place / "tree"
        tree.mkdir()
        content = os.urandom(300_000)
        (tree / "big").write_bytes(content)
        image, blobs, target = place / "chunked.erofs", place / "blobs", place / "target"
        target.mkdir()
        command = [MKFS_EROFS, "--quiet", f"--blobdev={blobs}", "--chunksize=4096", str(image), str(tree)]
        subprocess.run(command, check=True, capture_output=True)
        mount.mount_erofs(image, blobs, target)
        assert (target / "big").read_bytes() == content
        mount.umount(target)

    def test_not_an_image(self, place: Path) -> None:
        (place / "text").write_bytes(b"x" * 8192)
        (place / "target").mkdir()
        with pytest.raises(CorruptError, match=r"text\" is not an EROFS image"):
            mount.mount_erofs(place / "text", None, place / "target")

    def test_missing_image_and_target(self, place: Path, image: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"nowhere"):
            mount.mount_erofs(place / "nowhere", None, place)
        with pytest.raises(FileNotFoundError, match=r"no-target"):
            mount.mount_erofs(image, None, place / "no-target")

    @pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="no tmpfs to try it on")
    def test_image_on_tmpfs(self, place: Path, image: Path) -> None:
        with tempfile.NamedTemporaryFile(dir="/dev/shm", prefix="layerstore-test-") as copy:
            copy.write(image.read_bytes())
            copy.flush()
            with pytest.raises(Unsupported, match=re.escape(copy.name) + ".*ext4, XFS or btrfs.* Linux >= 6.12"):
                mount.mount_erofs(copy.name, None, place)

    def test_without_privilege(self, place: Path, image: Path) -> None:
        said = as_nobody(report(f"mount.mount_erofs({str(image)!r}, None, {str(place)!r})"))
        assert said.startswith("Unsupported")
        assert "mounting needs CAP_SYS_ADMIN: run as root" in said

    def test_kernel_without_the_mount_api(self, place: Path, image: Path) -> None:
        code = report(f"mount.mount_erofs({str(image)!r}, None, {str(place)!r})") + "print(mount.features())"
        said = under_seccomp(FSOPEN, 1, 1, errno.ENOSYS, code)
        assert re.match(r"Unsupported .*Linux >= 6\.12 .*>= 6\.13", said)
        assert "new_mount_api=False" in said

    def test_busy(self, place: Path, image: Path) -> None:
        target = place / "target"
        target.mkdir()
        mount.mount_erofs(image, None, target)
        with (target / "hello").open() as held:
            with pytest.raises(OSError, match=r"in use.*lazily") as caught:
                mount.umount(target)
            assert caught.value.errno == errno.EBUSY
            mount.umount(target, lazy=True)
            assert held.read() == "from the image\n"
        assert not mount.is_mounted(target)

    def test_nul_in_a_path(self, place: Path) -> None:
        with pytest.raises(InvalidInput, match="NUL"):
            mount.mount_erofs(f"{place}/a\0b", None, place)


@pytest.mark.root
@pytest.mark.kernel
@needs_kernel
class TestOverlays:
    def test_containers_see_the_image_and_only_their_own_writes(self, containers: Containers) -> None:
        names = [f"c{i}" for i in range(20)]
        containers.make(*names)
        assert containers.mount(*names) == 20
        assert mount.mounted_many(containers.fd, [*names, "absent"]) == [True] * 20 + [False]
        for name in names:
            (containers.path / name / "root" / "own").write_text(name)
        for name in names:
            assert (containers.path / name / "root" / "hello").read_text() == "from the image\n"
            assert (containers.path / name / "upper" / "own").read_text() == name
        mount.umount_many(containers.fd, names)
        assert mount.mounted_many(containers.fd, names) == [False] * 20
        mount.umount_many(containers.fd, [*names, "absent"])

    def test_options(self, containers: Containers) -> None:
        containers.make("web")
        containers.mount("web")
        (line,) = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "/web/root " in line]
        kind, source, options = line.split(" - ")[1].split()
        assert (kind, source) == ("overlay", "web")
        assert {"metacopy=on", "redirect_dir=on"} <= set(options.split(","))
        assert f"upperdir={containers.path}/web/upper" in options
        assert not {"nosuid", "nodev"} & set(line.split()[5].split(","))
        (containers.path / "web" / "root" / "hello").chmod(0o600)
        assert "trusted.overlay.metacopy" in os.listxattr(containers.path / "web" / "upper" / "hello")

    def test_data_only_layer_serves_a_redirected_file(self, containers: Containers, place: Path) -> None:
        data, lower = place / "objects", place / "lower"
        data.mkdir()
        lower.mkdir()
        (data / "object").write_text("content of the object")
        (lower / "file").touch()
        os.truncate(lower / "file", 21)
        os.setxattr(lower / "file", "trusted.overlay.metacopy", b"")
        os.setxattr(lower / "file", "trusted.overlay.redirect", b"/object")
        fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (lower, data)]
        containers.make("web")
        mount.overlay_mount_many(containers.fd, ["web"], fds[:1], fds[1:])
        for fd in fds:
            os.close(fd)
        assert (containers.path / "web" / "root" / "file").read_text() == "content of the object"
        assert not (containers.path / "web" / "root" / "object").exists()

    def test_mounted_name_is_passed_over(self, containers: Containers) -> None:
        containers.make("one", "two")
        containers.mount("one")
        assert containers.mount("one", "two") == 2
        assert mount_points().count(f"{containers.path}/one/root") == 1

    def test_stops_at_the_first_error(self, containers: Containers) -> None:
        containers.make("one", "three")
        with pytest.raises(FileNotFoundError, match="two/upper"):
            containers.mount("one", "two", "three")
        assert mount.mounted_many(containers.fd, ["one", "three"]) == [True, False]

    def test_attributes_of_the_root(self, containers: Containers) -> None:
        mount.container_make_many(containers.fd, ["web"], 0o2751, 1000, 70_000, -1_500_000_001)
        containers.mount("web")
        shown = (containers.path / "web" / "root").stat()
        assert (shown.st_mode & 0o7777, shown.st_uid, shown.st_gid) == (0o2751, 1000, 70_000)
        assert shown.st_mtime_ns == -1_500_000_001
        assert (containers.path / "web").stat().st_mode & 0o7777 == 0o700

    def test_making_is_all_or_nothing(self, containers: Containers) -> None:
        containers.make("taken")
        (containers.path / "taken" / "upper" / "kept").touch()
        with pytest.raises(FileExistsError, match="taken"):
            containers.make("new", "newer", "taken", "never")
        assert names_in(containers.path) == ["taken"]
        assert (containers.path / "taken" / "upper" / "kept").exists()
        with pytest.raises(InvalidInput):
            containers.make("new", "")
        containers.path.chmod(0o777)
        opening = f"fd = os.open({str(containers.path)!r}, os.O_RDONLY)\n"
        said = as_nobody(report("mount.container_make_many(fd, ['new'], 0o755, 0, 0, 0)"), opening)
        assert said.startswith("PermissionError")
        assert "attributes of the image's root" in said
        assert names_in(containers.path) == ["taken"]

    @pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 256])
    def test_names_stay_inside(self, containers: Containers, name: str) -> None:
        for call in (containers.make, containers.mount):
            with pytest.raises(InvalidInput, match="name of a container"):
                call(name)
        with pytest.raises(InvalidInput):
            mount.umount_many(containers.fd, [name])
        with pytest.raises(InvalidInput):
            mount.mounted_many(containers.fd, [name])
        with pytest.raises(InvalidInput):
            mount.container_remove_many(containers.fd, [name])
        assert containers.path.is_dir()

    def test_longest_name(self, containers: Containers) -> None:
        containers.make("x" * 255)
        assert containers.mount("x" * 255) == 1

    def test_busy_one_does_not_keep_the_others(self, containers: Containers) -> None:
        containers.make("one", "two", "three")
        containers.mount("one", "two", "three")
        with (containers.path / "one" / "root" / "hello").open():
            with pytest.raises(OSError, match=r'"one".*in use') as caught:
                mount.umount_many(containers.fd, ["one", "two", "three"])
            assert caught.value.errno == errno.EBUSY
            assert mount.mounted_many(containers.fd, ["one", "two", "three"]) == [True, False, False]
            containers.mount("two")
            with (containers.path / "two" / "root" / "hello").open():
                with pytest.raises(OSError, match='"one"'):
                    mount.umount_many(containers.fd, ["one", "two"])
                mount.umount_many(containers.fd, ["one", "two"], lazy=True)
        assert mount.mounted_many(containers.fd, ["one"]) == [False]

    def test_layer_that_is_no_directory(self, containers: Containers, image: Path) -> None:
        containers.make("web")
        with image.open() as file, pytest.raises(OSError, match="not a directory"):
            mount.overlay_mount_many(containers.fd, ["web"], [file.fileno()], [])
        with pytest.raises(OSError, match="lowerdir") as caught:
            mount.overlay_mount_many(containers.fd, ["web"], [9999], [])
        assert caught.value.errno == errno.EBADF

    def test_without_privilege(self, containers: Containers) -> None:
        containers.make("web")
        (containers.path / "web").chmod(0o711)
        opening = f"fd = os.open({str(containers.path)!r}, os.O_PATH)\n"
        said = as_nobody(report("mount.overlay_mount_many(fd, ['web'], [fd], [])"), opening)
        assert said.startswith("Unsupported")
        assert "mounting needs CAP_SYS_ADMIN: run as root" in said
        containers.mount("web")
        said = as_nobody(report("mount.umount_many(fd, ['web'])"), opening)
        assert said.startswith("Unsupported")
        assert "CAP_SYS_ADMIN" in said

    def test_kernel_without_layers_by_descriptor(self, containers: Containers) -> None:
        """Linux 6.12 takes /proc/self/fd/N where it refuses descriptors."""
        containers.make("web")
        code = (
            f"import os; fd = os.open({str(containers.path)!r}, os.O_RDONLY)\n"
            f"lower = os.open({str(containers.image_root)!r}, os.O_RDONLY)\n"
            "print(mount.overlay_mount_many(fd, ['web'], [lower], []))"
        )
        assert under_seccomp(FSCONFIG, 1, FSCONFIG_SET_FD, errno.EINVAL, code) == "1"
        assert (containers.path / "web" / "root" / "hello").read_text() == "from the image\n"

    def test_threads(self, containers: Containers) -> None:
        groups = [[f"t{thread}-{i}" for i in range(25)] for thread in range(4)]
        for group in groups:
            containers.make(*group)
        threads = [threading.Thread(target=containers.mount, args=group) for group in groups]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert mount.mounted_many(containers.fd, [name for group in groups for name in group]) == [True] * 100


def wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def output(argv: list[str], **options: object) -> str:
    """What the program writes to its standard output and error."""
    read_end, write_end = os.pipe()
    with open(read_end) as stream, open(os.devnull) as nothing:
        pid = mount.spawn(argv, fds=(nothing.fileno(), write_end, write_end), **options)  # type: ignore[arg-type]
        os.close(write_end)
        text = stream.read()
    wait(pid)
    return text


def children() -> list[str]:
    return Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()


class Made:
    """Containers that are not mounted, in a directory of their own."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.mkdir()
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)

    def make(self, *names: str) -> None:
        mount.container_make_many(self.fd, names, 0o755, os.geteuid(), os.getegid(), 0)

    def remove(self, *names: str) -> None:
        mount.container_remove_many(self.fd, names)


@pytest.fixture
def made(place: Path) -> Iterator[Made]:
    made = Made(place / "made")
    yield made
    os.close(made.fd)


@contextlib.contextmanager
def few_descriptors(more: int) -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + 1 + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def make_deep(top: Path, depth: int) -> None:
    """Directories in each other, a file in each: much longer than a path may be."""
    fd = os.open(top, os.O_RDONLY)
    for _ in range(depth):
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        os.mkdir("deeper", dir_fd=fd)
        below = os.open("deeper", os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


class TestRemove:
    def test_by_several_at_once(self, made: Made) -> None:
        """As garbage collection does while somebody removes a container."""
        names = [f"c{n}" for n in range(60)]
        made.make(*names)
        for name in names:
            for n in range(20):
                (made.path / name / "upper" / f"{n}" / "a" / "b").mkdir(parents=True)
                (made.path / name / "upper" / f"{n}" / "a" / "file").touch()
        with ThreadPoolExecutor(4) as threads:
            for removed in [threads.submit(made.remove, *names) for _ in range(4)]:
                removed.result()
        assert names_in(made.path) == []

    def test_everything_below_goes_and_nothing_else(self, made: Made, place: Path) -> None:
        made.make("one", "two")
        outside = place / "outside"
        outside.mkdir()
        (outside / "kept").write_text("kept")
        upper = made.path / "one" / "upper"
        for name in ("link", "link2"):
            (upper / name).symlink_to(outside)
        (upper / "dangling").symlink_to("nowhere")
        os.link(outside / "kept", upper / "hard link")
        os.mkfifo(upper / "pipe")
        for i in range(3000):
            (upper / f"{i:04}").write_bytes(b"x")
        for i in range(300):
            (upper / f"directory {i}" / "a" / "b").mkdir(parents=True)
            (upper / f"directory {i}" / "a" / "link").symlink_to(outside)
        (made.path / "one" / "config.json").write_text("{}")
        made.remove("one", "never there")
        assert names_in(made.path) == ["two"]
        assert names_in(made.path / "two") == ["root", "upper", "work"]
        assert (outside / "kept").read_text() == "kept"

    def test_a_container_that_is_a_link(self, made: Made, place: Path) -> None:
        made.make("one")
        (made.path / "link").symlink_to("one")
        with pytest.raises(OSError, match="link"):
            made.remove("link")
        assert names_in(made.path / "one") == ["root", "upper", "work"]

    @pytest.mark.parametrize("depth", [*range(6, 13), 5000])
    def test_depth_costs_no_descriptors(self, made: Made, depth: int) -> None:
        made.make("deep")
        make_deep(made.path / "deep" / "upper", depth)
        with few_descriptors(10):
            made.remove("deep")
        assert names_in(made.path) == []

    def test_many_deep_ones(self, made: Made) -> None:
        made.make("wide")
        for i in range(50):
            below = made.path / "wide" / "upper" / f"{i}"
            below.mkdir()
            make_deep(below, 20)
        made.remove("wide")
        assert names_in(made.path) == []

    def test_what_an_interrupted_removal_left(self, made: Made) -> None:
        made.make("one")
        for name in ("0", "1", "3"):
            (made.path / "one" / name / "below" / "it").mkdir(parents=True)
        (made.path / "one" / "2").write_text("a file of such a name")
        make_deep(made.path / "one" / "upper", 5)
        made.remove("one")
        assert names_in(made.path) == []

    @needs_root
    def test_special_files_and_closed_directories(self, made: Made) -> None:
        made.make("one")
        upper = made.path / "one" / "upper"
        os.mknod(upper / "whiteout", 0o600 | stat.S_IFCHR, os.makedev(0, 0))
        (made.path / "one" / "work" / "work" / "incompat").mkdir(parents=True)
        (made.path / "one" / "work" / "work").chmod(0)
        made.remove("one")
        assert names_in(made.path) == []

    @needs_kernel
    def test_a_mounted_one_is_not_touched(self, containers: Containers) -> None:
        containers.make("one", "two", "three")
        containers.mount("two")
        (containers.path / "two" / "root" / "new").write_text("written")
        with pytest.raises(OSError, match=r'"two".*mounted') as caught:
            mount.container_remove_many(containers.fd, ["one", "two", "three"])
        assert caught.value.errno == errno.EBUSY
        assert names_in(containers.path) == ["two"]
        assert (containers.path / "two" / "root" / "new").read_text() == "written"
        mount.umount_many(containers.fd, ["two"])
        assert (containers.path / "two" / "upper" / "new").read_text() == "written"
        mount.container_remove_many(containers.fd, ["two"])
        assert names_in(containers.path) == []

    @needs_root
    @pytest.mark.parametrize("where", [".", "upper", "upper/a/b"])
    def test_no_mount_is_entered(self, made: Made, place: Path, where: str) -> None:
        """One on the same file system neither, which no device number tells apart."""
        made.make("one")
        outside = place / "outside"
        (outside / "directory").mkdir(parents=True)
        (outside / "directory" / "kept").write_text("kept")
        target = made.path / "one" / where
        target.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--bind", outside, target], check=True)
        try:
            with pytest.raises(OSError) as caught:
                made.remove("one")
        finally:
            (mounted,) = [point for point in mount_points() if point.startswith(str(made.path))]
            mount.umount(mounted)
        assert caught.value.errno == errno.EBUSY
        assert (outside / "directory" / "kept").read_text() == "kept"
        made.remove("one")
        assert names_in(made.path) == []

    @needs_root
    def test_without_the_right(self, made: Made) -> None:
        made.make("one")
        (made.path / "one" / "upper" / "kept").touch()
        made.path.chmod(0o755)
        opening = f"fd = os.open({str(made.path)!r}, os.O_RDONLY)\n"
        said = as_nobody(report("mount.container_remove_many(fd, ['one'])"), opening)
        assert said.startswith("PermissionError")
        assert "one" in said
        assert (made.path / "one" / "upper" / "kept").exists()


class TestOpenInside:
    def test_links_stay_inside(self, tmp_path: Path) -> None:
        root = tmp_path / "root"
        (root / "etc").mkdir(parents=True)
        (tmp_path / "secret").write_text("outside")
        (root / "secret").write_text("inside")
        (root / "etc" / "up").symlink_to("../../../secret")
        (root / "etc" / "absolute").symlink_to("/secret")
        (root / "etc" / "out").symlink_to(tmp_path / "secret")
        root_fd = os.open(root, os.O_PATH)
        try:
            for path in ("secret", "/secret", "../secret", "/etc/up", "/etc/absolute"):
                with open(mount.open_inside(root_fd, path, os.O_RDONLY)) as file:
                    assert file.read() == "inside"
                    assert not os.get_inheritable(file.fileno())
            with pytest.raises(FileNotFoundError, match="/etc/out"):
                mount.open_inside(root_fd, "/etc/out", os.O_RDONLY)
        finally:
            os.close(root_fd)


class TestSpawn:
    @pytest.mark.parametrize("status", [0, 1, 42, 255])
    def test_exit_status(self, status: int) -> None:
        assert wait(mount.spawn(["/bin/sh", "-c", f"exit {status}"])) == status

    def test_environment_arguments_and_directory(self, place: Path) -> None:
        script = 'echo "$0|$1|$A|$HOME"; pwd'
        argv = ["/bin/sh", "-c", script, "zero", "ä ö"]
        assert output(argv, env={"A": "b c"}, cwd=place) == f"zero|ä ö|b c|\n{place}\n"
        assert output(["/bin/sh", "-c", "echo $HOME"]) == os.environ["HOME"] + "\n"

    def test_missing_program_and_directory(self, place: Path) -> None:
        before = children()
        with pytest.raises(FileNotFoundError, match='cannot execute "/no/such/program"'):
            mount.spawn(["/no/such/program"])
        with pytest.raises(PermissionError, match="cannot execute"):
            mount.spawn([place])
        with pytest.raises(FileNotFoundError, match=r"change the directory.*nowhere"):
            mount.spawn(["/bin/true"], cwd=place / "nowhere")
        with pytest.raises(OSError, match="descriptors"):
            mount.spawn(["/bin/true"], fds=(9999, 1, 2))
        with pytest.raises(InvalidInput):
            mount.spawn([])
        with pytest.raises(InvalidInput, match="NUL"):
            mount.spawn(["/bin/echo", "a\0b"])
        assert children() == before

    @pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 1, 0), (2, 2, 2), (1, 2, 0)])
    def test_descriptors_that_overlap(self, place: Path, order: tuple[int, int, int]) -> None:
        """In a child whose own descriptors 0 to 2 are three known files, which end up as `order` says."""
        names = ["a", "b", "c"]
        for name in names:
            (place / name).touch()
        result = place / "result"
        reading = f"""
import os
with open({str(result)!r}, "w") as result:
    result.write(" ".join(os.readlink(f"/proc/self/fd/{{number}}") for number in range(3)))
"""
        code = f"""
import os
from layerstore._core import mount
for number, name in enumerate({names!r}):
    file = os.open({str(place)!r} + "/" + name, os.O_RDWR | os.O_CLOEXEC)
    os.dup2(file, number, inheritable=False)
    os.close(file)
pid = mount.spawn([{sys.executable!r}, "-c", {reading!r}], fds={order!r})
os._exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
        assert subprocess.run([sys.executable, "-c", code]).returncode == 0
        assert result.read_text().split() == [str(place / names[number]) for number in order]

    def test_nothing_else_is_inherited(self) -> None:
        with tempfile.NamedTemporaryFile() as held:
            shown = output(["/bin/ls", "-l", "/proc/self/fd"])
        assert "pipe:" in shown
        assert held.name not in shown

    def test_signals_are_reset(self) -> None:
        """Python ignores SIGPIPE; a blocked signal and a handler must not reach the program either."""
        old_handler = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        try:
            status = output(["/bin/cat", "/proc/self/status"], env={})  # no LD_PRELOAD that takes signals
            assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == old_mask | {signal.SIGTERM}
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)
            signal.signal(signal.SIGUSR1, old_handler)
        assert re.findall(r"Sig(?:Blk|Ign|Cgt):\t(.*)", status) == ["0" * 16] * 3

    def test_killed(self) -> None:
        pid = mount.spawn(["/bin/sleep", "60"])
        os.kill(pid, signal.SIGTERM)
        assert wait(pid) == -signal.SIGTERM

    def test_many_leave_nothing(self) -> None:
        fds, before = names_in(Path("/proc/self/fd")), children()
        memory = Path("/proc/self/maps").read_text().count("\n")
        for i in range(100):
            assert wait(mount.spawn(["/bin/true"])) == 0
            with pytest.raises(FileNotFoundError):
                mount.spawn([f"/missing/{i}"])
        assert (names_in(Path("/proc/self/fd")), children()) == (fds, before)
        assert Path("/proc/self/maps").read_text().count("\n") <= memory + 5

    def test_from_threads_with_signals_arriving(self) -> None:
        """A handler of this process must never run in a child that shares its memory."""
        runners: list[int] = []
        failures: list[object] = []
        old = signal.signal(signal.SIGALRM, lambda *_: runners.append(os.getpid()))
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)

        def run() -> None:
            for _ in range(50):
                status = wait(mount.spawn(["/bin/sh", "-c", "exit 7"]))
                if status != 7:
                    failures.append(status)

        threads = [threading.Thread(target=run) for _ in range(3)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, old)
        assert failures == []
        assert set(runners) == {os.getpid()}

    @pytest.mark.root
    @needs_root
    @pytest.mark.parametrize("private", [False, True])
    def test_read_only_program(self, place: Path, private: bool) -> None:
        """Who holds on to what /proc shows of it cannot write to it later, when the kernel would let them."""
        program = shutil.copy("/bin/sleep", place)
        for read_only in (False, True):
            pid = mount.spawn([program, "60"], private_mounts=private, read_only_program=read_only)
            # The kernel lets the caller go on before it has put the new program's arguments in their place.
            while not Path(f"/proc/{pid}/cmdline").read_text():
                time.sleep(0.001)
            held = os.open(f"/proc/{pid}/exe", os.O_PATH)
            assert Path(f"/proc/{pid}/cmdline").read_text() == f"{program}\x0060\x00"
            os.kill(pid, signal.SIGKILL)
            wait(pid)
            with pytest.raises(OSError, match="Read-only") if read_only else contextlib.nullcontext():
                os.close(os.open(f"/proc/self/fd/{held}", os.O_RDWR))
            os.close(held)
        assert [point for point in mount_points() if point.startswith(str(place))] == []

    @pytest.mark.root
    @needs_root
    def test_read_only_program_that_cannot_be(self, place: Path) -> None:
        script = place / "script"
        script.write_text("#!/bin/sh\necho $0 $1\n")
        script.chmod(0o755)
        assert output([str(script), "one"], read_only_program=True) == f"{script} one\n"
        with pytest.raises(FileNotFoundError, match='cannot execute "/no/such/program"'):
            mount.spawn(["/no/such/program"], read_only_program=True)
        start = "pid = mount.spawn(['/bin/sh', '-c', 'exit 7'], read_only_program=True)\n"
        assert as_nobody(start + "print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))") == "7"

    @pytest.mark.root
    @needs_root
    def test_private_mounts(self, place: Path) -> None:
        """Even below a shared mount nothing that the program mounts is seen outside, and what is hidden stays whole."""
        shared, hidden = place / "shared", place / "shared" / "hidden"
        shared.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "shared", shared], check=True)
        try:
            subprocess.run(["mount", "--make-shared", shared], check=True)
            (shared / "inside").mkdir()
            hidden.mkdir()
            (hidden / "file").touch()
            script = f"ls {hidden}; touch {hidden}/trace; mount -t tmpfs none {shared}/inside && echo done"
            hide = [hidden, place / "absent"]
            assert output(["/bin/sh", "-c", script], private_mounts=True, hide=hide) == "done\n"
            assert names_in(hidden) == ["file"]
            assert not mount.is_mounted(shared / "inside")
            assert output(["/bin/ls", str(hidden)], private_mounts=True) == "file\n"
            with pytest.raises(NotADirectoryError, match=r"hide.*file"):
                mount.spawn(["/bin/true"], private_mounts=True, hide=[hidden / "file"])
        finally:
            mount.umount(shared, lazy=True)

    @pytest.mark.root
    @needs_root
    def test_private_mounts_without_privilege(self) -> None:
        said = as_nobody(report("mount.spawn(['/bin/true'], private_mounts=True)"))
        assert said.startswith("Unsupported")
        assert "CAP_SYS_ADMIN" in said

    def test_controlling_terminal(self) -> None:
        ours, theirs = pty.openpty()
        try:
            pid = mount.spawn(
                ["/bin/sh", "-c", "cut -d ' ' -f 1,6 /proc/self/stat; tty; echo $$; echo >/dev/tty opened"],
                fds=(theirs, theirs, theirs),
                controlling_terminal=True,
            )
            terminal = os.ttyname(theirs)
            assert wait(pid) == 0
            text = ""
            while not text.endswith("opened\r\n"):
                text += os.read(ours, 4096).decode()
            _, session, *rest = text.split()
            assert [session, *rest] == [str(pid), terminal, str(pid), "opened"]
        finally:
            os.close(ours)
            os.close(theirs)
        with open(os.devnull) as nothing, pytest.raises(OSError, match="controlling terminal"):
            mount.spawn(["/bin/true"], fds=(nothing.fileno(), 1, 2), controlling_terminal=True)


def test_features_and_syncfs(tmp_path: Path) -> None:
    for kind in ("overlay", "erofs"):
        if re.search(rf"\t{kind}$", Path("/proc/filesystems").read_text(), re.MULTILINE) and KERNEL.may_mount:
            assert getattr(KERNEL, kind)
    fd = os.open(tmp_path, os.O_RDONLY)
    mount.syncfs(fd)
    os.close(fd)
    with pytest.raises(OSError, match="syncfs"):
        mount.syncfs(fd)


@pytest.mark.root
@needs_root
def test_features_without_privilege() -> None:
    assert as_nobody("print(mount.features().may_mount, mount.features().new_mount_api)") == "False True"
