"""`diff` against a comparison of whole trees, after random operations on mounted containers."""

import hashlib
import io
import os
import random
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from changing import Operations, files_below
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from layerstore import Container, Store
from layerstore._core import mount
from layerstore._core.index import Index, Record
from layerstore.types import decode_path

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not mount.features().erofs, reason="mounting needs root, EROFS and overlayfs"
    ),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    draw = random.Random(1)
    layers = [write_tar(files_below("", 3, draw)) for _ in range(2)]
    layers.append(
        write_tar([Entry("dir", "empty", mode=0o755), Entry("file", ".wh.c"), Entry("file", "last", data=b"x")])
    )
    with Store(tmp_path_factory.mktemp("changes") / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files([Image(layers, ["tree:1"])]))))
        yield opened
        opened.remove(opened.containers(), force=True)


Tree = dict[str, tuple[object, ...]]


def tree(root: Path) -> Tree:
    """Every path below `root`, with all that tells whether it is the same: nothing of how it is stored."""
    seen: Tree = {}
    for directory, directories, files in os.walk(root):
        for name in directories + files:
            path = Path(directory, name)
            status = path.lstat()
            content: object = None
            if stat.S_ISREG(status.st_mode):
                content = hashlib.sha256(path.read_bytes()).digest()
            elif stat.S_ISLNK(status.st_mode):
                content = path.readlink()
            attributes = {
                n: os.getxattr(path, n, follow_symlinks=False) for n in os.listxattr(path, follow_symlinks=False)
            }
            what = (status.st_mode, status.st_uid, status.st_gid, status.st_rdev, content, tuple(attributes.items()))
            # A directory's time says that its names changed, and those are compared themselves.
            time = None if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns
            seen["/" + str(path.relative_to(root))] = (*what, time)
    return seen


def check(container: Container, before: Tree, root: Path) -> None:
    """What diff says is what a comparison of the trees finds.

    What is below a deleted directory is not told, and what was in a directory that became something else neither.
    C may be said of what is as before when the upper directory holds it: a parent of changes, a file that was opened
    for writing.
    """
    after = tree(root)
    told = {change.path: change.kind for change in container.diff()}
    assert list(told) == sorted(told, key=os.fsencode)
    for path in after.keys() - before.keys():
        assert told.pop(path, None) == "A", f"{path} is new"
    for path in before.keys() - after.keys():
        parent = os.path.dirname(path)
        if parent == "/" or (parent in after and stat.S_ISDIR(after[parent][0])):  # type: ignore[arg-type]
            assert told.pop(path, None) == "D", f"{path} is gone"
        else:
            assert path not in told, f"{path} went with its parent"
    for path in before.keys() & after.keys():
        if before[path] != after[path]:
            assert told.pop(path, None) == "C", f"{path} has changed"
    upper = container.inspect()["Upper"]
    for path, kind in told.items():
        assert kind == "C" and path in before and path in after, f"{kind} {path}"
        assert os.path.lexists(f"{upper}{path}") or moved(upper, path), f"{kind} {path} is not in the upper"


def moved(upper: Path, path: str) -> bool:
    """Is the path in a directory that was moved here from elsewhere in the image?"""
    parent = os.path.dirname(path)
    while not os.path.lexists(f"{upper}{parent}"):
        parent = os.path.dirname(parent)
    return "trusted.overlay.redirect" in os.listxattr(f"{upper}{parent}") or any(
        "trusted.overlay.redirect" in os.listxattr(f"{upper}{p}") for p in Path(parent).parents
    )


class Judge:
    """The same in plain Python, by whole paths: what `diff` must say of an upper directory."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.found: dict[bytes, str] = {}

    def directory(self, upper: Path, shown: bytes, origin: bytes | None) -> None:
        """`shown` is the directory's path, `origin` the chain's directory that shows through it, None for none."""
        for entry in os.scandir(upper):
            name = os.fsencode(entry.name)
            path = join(shown, name)
            status = entry.stat(follow_symlinks=False)
            was_there = self._record(path) is not None
            if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
                if was_there:
                    self.found[path] = "D"
                continue
            self.found[path] = "C" if was_there else "A"
            if stat.S_ISDIR(status.st_mode):
                self._inside(Path(entry.path), path, None if origin is None else join(origin, name))

    def _inside(self, upper: Path, shown: bytes, origin: bytes | None) -> None:
        redirect = attribute(upper, "trusted.overlay.redirect")
        if redirect is not None:
            # An absolute redirect counts from the root, another one replaces the last component (overlayfs.rst).
            origin = (
                redirect.lstrip(b"/")
                if redirect.startswith(b"/")
                else join((origin or b"").rpartition(b"/")[0], redirect)
            )
        elif attribute(upper, "trusted.overlay.opaque") == b"y":
            origin = None
        if origin != shown:
            self._replaced(upper, shown, origin)
        self.directory(upper, shown, origin)

    def _replaced(self, upper: Path, shown: bytes, origin: bytes | None) -> None:
        """Another directory, or none, shows through here than the chain's own: tell what came and what went."""
        came = self._names(origin)
        for name in sorted(came):
            if not os.path.lexists(upper / os.fsdecode(name)):
                self._arrived(join(shown, name), join(origin or b"", name))
        for name in self._names(shown) - came:
            if not os.path.lexists(upper / os.fsdecode(name)):
                self.found[join(shown, name)] = "D"

    def _arrived(self, shown: bytes, origin: bytes) -> None:
        """`origin` of the chain, with all that is below it, is at `shown` now."""
        self.found[shown] = "A" if self._record(shown) is None else "C"
        record = self._record(origin)
        if record is None or not stat.S_ISDIR(record.mode):
            return
        came = self._names(origin)
        for name in came:
            self._arrived(join(shown, name), join(origin, name))
        for name in self._names(shown) - came:
            self.found[join(shown, name)] = "D"

    def _names(self, directory: bytes | None) -> set[bytes]:
        record = None if directory is None else self._record(directory)
        if directory is None or record is None or not stat.S_ISDIR(record.mode):
            return set()
        children = self._index.children(self._index.lookup(directory) or 0)
        names = {self._index.record(child).name for child in children}
        return {name for name in names if self._record(join(directory, name)) is not None}

    def _record(self, path: bytes) -> Record | None:
        """None also for a 0:0 device, which an overlay does not show."""
        number = self._index.lookup(path)
        record = None if number is None else self._index.record(number)
        return None if record is None or record.rdev == (0, 0) else record


def join(directory: bytes, name: bytes) -> bytes:
    return directory + b"/" + name if directory else name


def attribute(path: Path, name: str) -> bytes | None:
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError:
        return None


def judged(container: Container, upper: Path | None = None) -> list[tuple[str, str]]:
    """`upper`: what its upper directory and those it stands on are together, where it stands on any."""
    judge = Judge(container.image.index())
    judge.directory(upper or Path(container.inspect()["Upper"]), b"", b"")
    return [(kind, "/" + decode_path(path)) for path, kind in sorted(judge.found.items())]


@pytest.mark.parametrize("seed", range(40))
def test_random_operations(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    container = store.create("tree:1")
    with container.mount() as root:
        before = tree(root)
        assert len(before) > 60
        operations = Operations(root, draw)
        while len(operations.done) < draw.choice([1, 2, 4, 15]):
            operations.step()
        try:
            check(container, before, root)
        except AssertionError as error:
            error.add_note(f"after {' '.join(operations.done)}")
            raise
        told = said(container)
        assert told == judged(container), f"after {' '.join(operations.done)}"
    assert said(container) == told, "it is another when it is not mounted"
    container.remove()


def said(container: Container) -> list[tuple[str, str]]:
    return [(change.kind, change.path) for change in container.diff()]


class TestEach:
    """What each kind of change is told as."""

    @pytest.fixture
    def image(self, store: Store) -> str:
        entries = [
            Entry("dir", "d", mode=0o755),
            Entry("file", "d/f", data=b"f" * 70_000),
            Entry("dir", "d/sub", mode=0o755),
            Entry("file", "d/sub/g", data=b"g"),
            Entry("dir", "other", mode=0o755),
            Entry("dir", "other/sub", mode=0o755),
            Entry("file", "other/sub/h", data=b"h"),
        ]
        store.load(io.BytesIO(tar_of(docker_files([Image([write_tar(entries)], ["small:1"])]))))
        return "small:1"

    @pytest.fixture
    def container(self, store: Store, image: str) -> Iterator[Container]:
        made = store.create(image)
        made.mount()
        yield made
        made.remove(force=True)

    def test_a_new_file(self, container: Container) -> None:
        (container.root / "d/new").write_bytes(b"")
        assert said(container) == [("C", "/d"), ("A", "/d/new")]

    def test_metadata_only(self, container: Container) -> None:
        (container.root / "d/f").chmod(0o600)
        assert said(container) == [("C", "/d"), ("C", "/d/f")]

    def test_the_roots_own_mode_is_no_line(self, container: Container) -> None:
        container.root.chmod(0o711)
        assert said(container) == []

    def test_a_deleted_directory_is_one_line(self, container: Container) -> None:
        shutil.rmtree(container.root / "d")
        assert said(container) == [("D", "/d")]

    def test_created_and_deleted_again(self, container: Container) -> None:
        (container.root / "d/new").write_bytes(b"")
        (container.root / "d/new").unlink()
        assert said(container) == [("C", "/d")]

    def test_a_moved_directory(self, container: Container) -> None:
        (container.root / "d").rename(container.root / "e")
        added = ["/e", "/e/f", "/e/sub", "/e/sub/g"]
        assert said(container) == [("D", "/d"), *(("A", path) for path in added)]

    def test_deleted_in_a_moved_directory(self, container: Container) -> None:
        """What was never at the new place is not gone from it."""
        (container.root / "d").rename(container.root / "e")
        (container.root / "e/f").unlink()
        assert said(container) == [("D", "/d"), ("A", "/e"), ("A", "/e/sub"), ("A", "/e/sub/g")]

    def test_moved_over_a_deleted_one(self, container: Container) -> None:
        """Below what both have, what only the old one had is gone."""
        shutil.rmtree(container.root / "other")
        (container.root / "d").rename(container.root / "other")
        assert {path: kind for kind, path in said(container)} == {
            "/d": "D",
            "/other": "C",
            "/other/f": "A",
            "/other/sub": "C",
            "/other/sub/g": "A",
            "/other/sub/h": "D",
        }

    def test_a_directory_emptied_and_filled(self, container: Container) -> None:
        shutil.rmtree(container.root / "d")
        (container.root / "d/sub").mkdir(parents=True)
        assert said(container) == [("C", "/d"), ("D", "/d/f"), ("C", "/d/sub"), ("D", "/d/sub/g")]

    def test_a_file_for_a_directory(self, container: Container) -> None:
        shutil.rmtree(container.root / "d")
        (container.root / "d").write_bytes(b"")
        assert said(container) == [("C", "/d")]

    def test_names_that_are_not_utf8(self, container: Container) -> None:
        name = os.fsdecode(b"\xff\xfe")
        (container.root / name).write_bytes(b"")
        assert said(container) == [("A", f"/{name}")]
