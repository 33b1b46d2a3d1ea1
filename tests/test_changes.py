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
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from layerstore import Container, Store
from layerstore._core import mount

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(
        os.geteuid() != 0 or not mount.features().erofs, reason="mounting needs root, EROFS and overlayfs"
    ),
]

NAMES = ("a", "b", "c", "dé", "e")


def files_below(directory: str, depth: int, draw: random.Random) -> list[Entry]:
    """A directory of files, links and directories."""
    entries = [Entry("dir", directory, mode=0o755, mtime=(1000, 0))] if directory else []
    for name in NAMES:
        path = f"{directory}/{name}".lstrip("/")
        kind = draw.choice(["dir", "dir", "file", "file", "symlink", ""] if depth else ["file", "file", "symlink", ""])
        if kind == "dir":
            entries += files_below(path, depth - 1, draw)
        elif kind == "file":
            entries.append(Entry("file", path, data=draw.randbytes(draw.choice([0, 10, 70_000])), mtime=(2000, 0)))
        elif kind:
            entries.append(Entry("symlink", path, link="a", mtime=(3000, 0)))
    return entries


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
    upper = container._store._containers.upper(container.id)
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


class Operations:
    """One random change of a tree at a time. One that cannot be made is passed over."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.root = root
        self.draw = draw
        self.done: list[str] = []

    def some(self, kind: str) -> Path:
        found = [Path(d, n) for d, ds, fs in os.walk(self.root) for n in sorted(ds if kind == "dir" else fs)]
        return self.draw.choice(sorted(found)) if found else self.root / "nothing"

    def new(self) -> Path:
        parent = self.root if self.draw.random() < 0.3 else self.some("dir")
        return parent / self.draw.choice([*NAMES, "new", "newer"])

    def step(self) -> None:
        name = self.draw.choice([name for name in dir(self) if name.startswith("do_")])
        try:
            getattr(self, name)()
        except OSError:
            return
        self.done.append(name)

    def do_create(self) -> None:
        with open(self.new(), "xb") as file:
            file.write(b"new")

    def do_write(self) -> None:
        with open(self.some("file"), "ab") as file:
            file.write(b"more")

    def do_replace(self) -> None:
        (self.root / "temporary").write_bytes(b"other")
        (self.root / "temporary").rename(self.some("file"))

    def do_chmod(self) -> None:
        self.some(self.draw.choice(["file", "dir"])).chmod(self.draw.choice([0o700, 0o4711]))

    def do_chown(self) -> None:
        os.chown(self.some("file"), 5, 6, follow_symlinks=False)

    def do_xattr(self) -> None:
        os.setxattr(self.some("file"), "user.own", b"%d" % self.draw.randrange(3), follow_symlinks=False)

    def do_unlink(self) -> None:
        self.some("file").unlink()

    def do_remove_tree(self) -> None:
        shutil.rmtree(self.some("dir"))

    def do_mkdir(self) -> None:
        self.new().mkdir()

    def do_rename_file(self) -> None:
        self.some("file").rename(self.new())

    def do_rename_directory(self) -> None:
        self.some("dir").rename(self.new())

    def do_symlink(self) -> None:
        self.new().symlink_to("somewhere")

    def do_hard_link(self) -> None:
        os.link(self.some("file"), self.new(), follow_symlinks=False)

    def do_directory_over_file(self) -> None:
        path = self.some("file")
        path.unlink()
        path.mkdir()
        (path / "inside").write_bytes(b"x")

    def do_file_over_directory(self) -> None:
        path = self.some("dir")
        shutil.rmtree(path)
        path.write_bytes(b"file now")

    def do_empty_and_fill(self) -> None:
        """Leaves an opaque directory."""
        path = self.some("dir")
        names = os.listdir(path)
        shutil.rmtree(path)
        path.mkdir()
        for name in names[::2]:
            (path / name).mkdir()
            (path / name / "a").write_bytes(b"again")

    def do_there_and_back(self) -> None:
        path = self.some("dir")
        path.rename(self.root / "elsewhere")
        (self.root / "elsewhere").rename(path)

    def do_exchange(self) -> None:
        one, two = self.some("dir"), self.some("dir")
        one.rename(self.root / "elsewhere")
        try:
            two.rename(one)
            (self.root / "elsewhere").rename(two)
        except OSError:
            (self.root / "elsewhere").rename(one)

    def do_move_over_what_was_deleted(self) -> None:
        one, two = self.some("dir"), self.some("dir")
        if two not in one.parents:
            shutil.rmtree(two)
            one.rename(two)

    def do_fifo(self) -> None:
        os.mkfifo(self.new())


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
        said = container.diff()
    assert container.diff() == said, "it is another when it is not mounted"
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
