"""Commits of containers of both drivers: what is in the image, what it costs, and what fails whole."""

import io
import os
import random
import shutil
import stat
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import Meddling
from pools import POOL_AND_HOST, needs_mkfs, needs_root, pool_store, store_on
from test_cli import Cli
from test_judges import compare, loaded_by_docker, tree

from bench.peers import Docker
from layerstore import Container, Store
from layerstore.errors import InvalidInput, NotFound
from layerstore.layers.imports import Import

LARGE = bytes(range(251)) * 40_000
CAPABILITY = b"\x01\x00\x00\x02\x00\x04\x00\x00" + bytes(12)
RUNTIME = {"Cmd": ["base"], "Env": ["A=1"]}
IMAGE = Image(
    [
        write_tar(
            [
                Entry("dir", "etc", mode=0o755),
                Entry("file", "etc/hosts", data=b"localhost"),
                Entry("file", "large", data=LARGE),
                Entry("file", "meta", data=b"meta" * 1000),
                Entry("dir", "gone/in", mode=0o755),
                Entry("file", "gone/in/a", data=b"a"),
                Entry("dir", "emptied", mode=0o755),
                Entry("file", "emptied/b", data=b"b"),
                Entry("dir", "moved/in", mode=0o755),
                Entry("file", "moved/in/large", data=LARGE[::-1]),
                Entry("file", "was-file", data=b"file"),
                Entry("dir", "was-dir", mode=0o755),
                Entry("file", "was-dir/x", data=b"x"),
                Entry("symlink", "link", link="etc/hosts"),
            ]
        )
    ],
    ["app:1"],
    runtime=RUNTIME,
)
OVERLAY = pytest.param("overlay", marks=[pytest.mark.root, pytest.mark.kernel])
Do = Any


@pytest.fixture
def filled(store: Store) -> Store:
    store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
    return store


@pytest.fixture(params=["extent", OVERLAY])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def container(filled: Store, driver: str) -> Container:
    return filled.create("app:1", driver=driver)


class Host:
    """What of `Operations` the tests use, on a mounted container."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def do(path: str, *rest: Any, **more: Any) -> Any:
            if name in ("rename", "link"):
                rest = (f"{self._root}{rest[0]}",)
            if name == "symlink":
                return os.symlink(path, f"{self._root}{rest[0]}")
            if name == "write_bytes":
                return Path(f"{self._root}{path}").write_bytes(*rest)
            return getattr(shutil if name == "rmtree" else os, name)(f"{self._root}{path}", *rest, **more)

        return do


def change(container: Container, work: Callable[[Do], object]) -> None:
    """Do something in a container, whatever its driver."""
    if container.driver == "extent":
        work(container)
        return
    with container.mount() as view:
        work(Host(view))


def everything(files: Do) -> None:
    """Every kind of change, and times that do not depend on when this runs."""
    files.write_bytes("/etc/hosts", b"changed")
    files.chmod("/meta", 0o4640)
    files.rmtree("/gone")
    files.rmtree("/emptied")
    files.mkdir("/emptied")
    files.write_bytes("/emptied/c", b"c")
    files.rename("/moved", "/elsewhere")
    files.unlink("/was-file")
    files.mkdir("/was-file")
    files.rmtree("/was-dir")
    files.write_bytes("/was-dir", b"now a file")
    files.unlink("/link")
    files.symlink("/etc", "/link")
    files.write_bytes("/new", b"new")
    files.link("/new", "/etc/again")
    files.mknod("/pipe", stat.S_IFIFO | 0o600)
    files.setxattr("/new", "user.note", b"\x00=1")
    files.truncate("/large", 1000)
    for number, path in enumerate(
        ["/etc/hosts", "/emptied/c", "/was-dir", "/new", "/pipe", "/large", "/emptied", "/was-file", "/etc", "/"]
    ):
        files.utime(path, ns=(0, 1_600_000_000_123_456_789 + number))
    files.utime("/link", ns=(0, 1_700_000_000 * 10**9), follow_symlinks=False)


def told(container: Container) -> dict[bytes, tuple[Any, ...]]:
    """All that its view shows."""
    found = {}
    for entry in container.entries():
        content = b"" if entry.source is None else b"".join(map(bytes, entry.source.pieces()))
        told = (entry.mode, entry.uid, entry.gid, entry.mtime_ns, entry.rdev, entry.target, entry.xattrs, content)
        found[entry.path] = (*told, entry.link)
    return found


def test_the_image_is_what_the_container_shows(filled: Store, container: Container) -> None:
    change(container, everything)
    image = container.commit("app:2")
    assert image.names == ["app:2"]
    assert image.diff_ids[:-1] == container.image.diff_ids
    assert told(filled.create(image, driver="extent")) == told(container)


def test_equal_changes_are_equal_layers(filled: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever the driver and the order; the first time it is stored, the second time it is there."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    drivers = ["extent", "extent"] + (["overlay"] if os.geteuid() == 0 else [])
    images = []
    for number, driver in enumerate(drivers):
        container = filled.create("app:1", driver=driver)  # type: ignore[call-overload]
        if number == 1:
            change(container, lambda files: (files.write_bytes("/detour", b"1"), files.unlink("/detour")))
        change(container, everything)
        images.append(container.commit(author="me", message="all"))
    assert len({image.diff_ids[-1] for image in images}) == 1
    assert len({image.id for image in images}) == 1


def test_nothing_changed_is_a_step_without_a_layer(container: Container) -> None:
    change(container, lambda files: files.write_bytes("/x", b"") and None)
    change(container, lambda files: files.unlink("/x"))
    change(container, lambda files: files.utime("/", ns=(0, container.image.view.stat("/").st_mtime_ns)))
    image = container.commit(message="nothing")
    assert image.diff_ids == container.image.diff_ids
    step, *_ = image.history()
    assert (step.empty_layer, step.comment, step.size_bytes) == (True, "nothing", 0)


def test_config_and_history(container: Container) -> None:
    change(container, lambda files: files.write_bytes("/x", b"12345"))
    image = container.commit("app", author="Jane <j@x>", message="why", changes=["ENV B=$A", 'CMD ["x"]', "LABEL a=b"])
    assert image.names == ["app:latest"]
    assert image.config.runtime == {"Cmd": ["x"], "Env": ["A=1", "B=1"], "Labels": {"a": "b"}}
    assert image.config.document["author"] == "Jane <j@x>"
    first, *rest = image.history()
    assert (first.comment, first.size_bytes, first.empty_layer) == ("why", 5, False)
    assert [step.created_by for step in rest] == [step.created_by for step in container.image.history()]
    second = container.commit("app", changes=["USER nobody"])
    assert (second.names, image.names) == (["app:latest"], [])
    assert "author" not in second.config.document


def test_layers_without_history_keep_their_sizes(filled: Store, driver: str) -> None:
    silent = Image([IMAGE.layers[0]], ["silent:1"], document={"history": []})
    filled.load(io.BytesIO(tar_of(docker_files([silent]))))
    container = filled.create("silent:1", driver=driver)  # type: ignore[call-overload]
    change(container, lambda files: files.write_bytes("/x", b"12345"))
    sizes = [step.size_bytes for step in container.commit(message="mine").history()]
    assert sizes == [5, container.image.size_bytes]


def test_commits_upon_commits(filled: Store, driver: str) -> None:
    image = filled.image("app:1")
    for number in range(5):
        container = filled.create(image, driver=driver)  # type: ignore[call-overload]
        change(container, lambda files, number=number: files.write_bytes(f"/{number}", str(number).encode()))
        change(container, lambda files, number=number: number and files.unlink(f"/{number - 1}"))
        image = container.commit()
    assert len(image.diff_ids) == 6
    assert [name for name in image.view.listdir("/") if name.isdecimal()] == ["4"]


@pytest.mark.timeout(60)
def test_it_can_be_forked_and_committed_while_it_is_read(container: Container) -> None:
    change(container, lambda files: files.write_bytes("/x", b"1"))
    for entry in container.entries():
        if entry.path == b"x":
            assert container.fork().commit().id
            assert container.commit().id


def files_of(store: Store) -> set[str]:
    return {
        str(path.relative_to(store.layout.root))
        for path in Path(store.layout.root).rglob("*")
        if path.parts[-2] in ("layers", "blobs", "sha256", "packs", "staging") or "objects" in path.parts
    }


@pytest.mark.parametrize("name", ["/.wh.x", "/.wh..wh..opq"])
def test_a_name_that_no_layer_can_have(filled: Store, container: Container, name: str) -> None:
    change(container, lambda files: files.write_bytes(name, b"1"))
    before, images = files_of(filled), [image.id for image in filled.images()]
    with pytest.raises(InvalidInput, match=r"\.wh\."):
        container.commit("app:2")
    assert (files_of(filled), [image.id for image in filled.images()]) == (before, images)
    change(container, lambda files: files.unlink(name))
    container.commit("app:2")


@pytest.mark.parametrize(("name", "changes"), [("UPPER", []), ("a@sha256:0", []), (None, ["RUN x"]), (None, ["ENV"])])
def test_what_is_refused(filled: Store, container: Container, name: str | None, changes: list[str]) -> None:
    with pytest.raises(InvalidInput):
        container.commit(name, changes=changes)
    assert len(filled.images()) == 1


def test_a_container_that_was_removed(container: Container) -> None:
    container.remove()
    with pytest.raises(NotFound):
        container.commit()


def test_what_is_removed_after_its_commit_is_committed(filled: Store, container: Container, meddle: Meddling) -> None:
    """By force, which waits for nobody."""
    if container.driver == "overlay":
        (Path(container.inspect()["Upper"]) / "new").touch()
    meddle.after(Import, "commit", lambda: container.remove(force=True))
    image = container.commit("made:1")
    assert filled.image("made:1").id == image.id
    filled.remove_image("made:1")


def test_sockets_are_left_out(filled: Store, container: Container) -> None:
    def work(files: Do) -> None:
        files.mknod("/socket", stat.S_IFSOCK | 0o600)
        files.unlink("/meta")
        files.mknod("/meta", stat.S_IFSOCK | 0o600)

    change(container, work)
    names = container.commit().view.listdir("/")
    assert "socket" not in names
    assert "meta" not in names


def test_a_large_content_that_is_stored_is_not_written_again(filled: Store, container: Container) -> None:
    """One that was moved, and one that was written with the same bytes."""

    def work(files: Do) -> None:
        files.rename("/moved", "/elsewhere")
        files.write_bytes("/copy", LARGE)

    objects = {path.name: path.stat() for path in Path(filled.layout.objects).glob("*/*")}
    change(container, work)
    image = container.commit()
    after = {path.name: path.stat() for path in Path(filled.layout.objects).glob("*/*")}
    assert {name: (s.st_ino, s.st_nlink) for name, s in after.items()} == {
        name: (s.st_ino, s.st_nlink) for name, s in objects.items()
    }
    assert image.view.read_bytes("/elsewhere/in/large") == LARGE[::-1]
    assert image.view.read_bytes("/copy") == LARGE


@needs_root
@needs_mkfs
@pytest.mark.root
@pytest.mark.kernel
def test_on_a_pool_a_large_file_is_shared(tmp_path: Path, driver: str) -> None:
    """4 KiB of a large file changed: the image's object and the container's file are one on the disk."""
    with pool_store(tmp_path) as store:
        big = Image([write_tar([Entry("file", "big", data=os.urandom(64 << 20))])], ["big:1"])
        store.load(io.BytesIO(tar_of(docker_files([big]))))
        container = store.create("big:1", driver=driver)  # type: ignore[call-overload]

        def work(files: Do) -> None:
            with files.open("/big", "r+b") if driver == "extent" else open(files._root / "big", "r+b") as file:
                file.seek(30_000_000)
                file.write(b"x" * 4096)

        change(container, work)
        os.sync()
        before = os.statvfs(store.layout.root)
        image = container.commit()
        os.sync()
        after = os.statvfs(store.layout.root)
        assert (before.f_bavail - after.f_bavail) * after.f_frsize < 4 << 20
        change(container, lambda files: files.truncate("/big", 0))
        data = image.view.read_bytes("/big")
        assert (len(data), data[30_000_000:30_004_096]) == (64 << 20, b"x" * 4096)
        store.remove(store.containers(), force=True)


@needs_root
@needs_mkfs
@pytest.mark.root
@pytest.mark.kernel
def test_on_a_pool_each_content_has_the_clone_of_its_own_file(tmp_path: Path, driver: str) -> None:
    """Also where one comes whole in a piece of the tar, and the next is cut by its end."""
    sizes = {"a": 262_144, "b": 6_454_153, "c": 140_000, "d": 900_000, "e": 131_073}
    with pool_store(tmp_path) as store:
        files = [Entry("file", name, data=name.encode() * size) for name, size in sizes.items()]
        store.load(io.BytesIO(tar_of(docker_files([Image([write_tar(files)], ["big:1"])]))))
        container = store.create("big:1", driver=driver)  # type: ignore[call-overload]

        def work(files: Do) -> None:
            for name in sizes:
                with files.open(f"/{name}", "r+b") if driver == "extent" else open(files._root / name, "r+b") as file:
                    file.seek(100_000)
                    file.write(b"changed")

        change(container, work)
        image = container.commit()
        for name, size in sizes.items():
            byte = name.encode()
            assert image.view.read_bytes(f"/{name}") == byte * 100_000 + b"changed" + byte * (size - 100_007)
        assert not store.check([image]).damages
        store.remove(store.containers(), force=True)


@needs_root
@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.parametrize("place", POOL_AND_HOST)
def test_while_files_are_cut_and_grow_and_go(tmp_path: Path, place: str) -> None:
    """Whatever a program does to large files, commits, exports and forks are whole, and hold what it wrote."""
    failures: list[BaseException] = []
    ended = threading.Event()

    def work(view: Path) -> None:
        draw = random.Random(1)
        try:
            while not ended.is_set():
                name = view / f"f{draw.randrange(5)}"
                what = draw.randrange(6)
                if name.is_dir():
                    name.rmdir()
                elif what == 0:
                    name.unlink(missing_ok=True)
                elif what == 1 and name.exists():
                    os.truncate(name, draw.choice([0, 1000, 200_000, 2_000_000]))
                elif what == 2:
                    name.unlink(missing_ok=True)
                    name.mkdir()
                elif what == 3:
                    (view / "new").write_bytes(b"n" * draw.randrange(1_500_000))
                    (view / "new").replace(name)
                else:
                    with open(name, "ab") as file:
                        file.write(b"w" * draw.randrange(1_000_000))
        except BaseException as error:
            failures.append(error)

    def contents(tar: bytes) -> Iterator[bytes]:
        with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
            for member in archive:
                if member.isfile() and member.name.startswith("f"):
                    yield archive.extractfile(member).read()  # type: ignore[union-attr]

    with store_on(place, tmp_path) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        container = store.create("app:1")
        with container.mount() as view:
            thread = threading.Thread(target=work, args=(view,))
            thread.start()
            try:
                for _ in range(3):
                    image = container.commit()
                    fork = container.fork()
                    tars = [*image.layer_tar(image.diff_ids[-1])], [*container.export()], [*fork.export()]
                    for tar in tars:
                        for data in contents(b"".join(tar)):
                            assert set(data) <= set(b"nw\0")
                    assert not store.check([image]).damages
            finally:
                ended.set()
                thread.join()
        assert failures == []
        store.remove(store.containers(), force=True)


@pytest.mark.root
@pytest.mark.kernel
def test_a_container_in_use(filled: Store, tmp_path: Path) -> None:
    """While a program writes and removes, commits are whole layers of files that are each of one moment."""
    container = filled.create("app:1")
    ended = threading.Event()
    failures: list[BaseException] = []

    def work(view: Path) -> None:
        number = 0
        try:
            while not ended.is_set():
                number += 1
                (view / f"f{number % 50}").write_bytes(bytes([number % 251]) * (number * 37 % 300_000))
                if number % 7 == 0:
                    (view / f"f{number * 3 % 50}").unlink(missing_ok=True)
                if number % 11 == 0:
                    shutil.rmtree(view / "d", ignore_errors=True)
                    (view / "d").mkdir()
                    (view / "d/x").write_bytes(b"x")
        except BaseException as error:
            failures.append(error)

    with container.mount() as view:
        thread = threading.Thread(target=work, args=(view,))
        thread.start()
        try:
            images = [container.commit() for _ in range(15)]
        finally:
            ended.set()
            thread.join()
    assert failures == []
    for image in images:
        for name in image.view.listdir("/"):
            if name.startswith("f"):
                assert len(set(image.view.read_bytes(f"/{name}"))) <= 1


@pytest.mark.peers
@pytest.mark.root
@pytest.mark.kernel
def test_docker_shows_the_same(filled: Store, docker: Docker, tmp_path: Path, driver: str) -> None:
    container = filled.create("app:1", driver=driver)  # type: ignore[call-overload]
    change(container, everything)
    image = container.commit("committed:1")
    layers = [b"".join(image.layer_tar(diff_id)) for diff_id in image.diff_ids]
    archive = tmp_path / "archive.tar"
    document = image.config.document
    archive.write_bytes(tar_of(docker_files([Image(layers, ["committed:1"], document=document)])))
    with (
        loaded_by_docker(docker, tmp_path, archive, "committed:1", len(layers)) as theirs,
        filled.create(image).mount() as ours,
    ):
        compare(tree(ours), tree(theirs), {b"."})


def test_the_command(tmp_path: Path) -> None:
    root = tmp_path / "store"
    with Store(root, create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        store.create("app:1", name="c", driver="extent").write_bytes("/x", b"12345")
    cli = Cli(root)
    printed = cli("commit", "-a", "Jane", "-m", "why", "-c", 'CMD ["x"]', "--change", "ENV Z=1", "c", "new:1")
    with Store(root) as store:
        image = store.image("new:1")
        assert printed == f"{image.id}\n"
        assert image.config.runtime["Cmd"] == ["x"]
        assert image.config.runtime["Env"] == ["A=1", "Z=1"]
        assert image.history()[0].comment == "why"
    assert "there is no container 'none'" in cli("commit", "none", status=1)
    assert "RUN" in cli("commit", "-c", "RUN x", "c", status=1)
