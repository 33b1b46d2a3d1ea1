"""Images through fsspec: its own published test classes where they apply to what is read-only, and its users."""

import errno
import io
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests.abstract import AbstractFixtures, AbstractGetTests
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from layerstore import Store
from layerstore.filesystem import LayerFileSystem

TABLE = b"name,count\none,1\ntwo,2\n"
BYTES = bytes(range(256)) * 1024


def zipped() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inside.txt", "zipped\n" * 100)
    return out.getvalue()


LAYERS = [
    write_tar(
        [
            Entry("dir", "data", mode=0o750, uid=7, mtime=(1_000_000_000, 0)),
            Entry("file", "data/table.csv", data=TABLE, mtime=(1_000_000_000, 500_000_000)),
            Entry("file", "data/bytes", data=BYTES),
            Entry("file", "data/gone", data=b"gone"),
            Entry("symlink", "link", link="/data/table.csv"),
            Entry("symlink", "directory-link", link="data"),
            Entry("symlink", "data/loop", link=".."),
            Entry("symlink", "dangling", link="nowhere"),
            Entry("fifo", "pipe"),
        ]
    ),
    write_tar([Entry("file", "data/.wh.gone"), Entry("file", "archive.zip", data=zipped()), Entry("file", "empty")]),
]
IMAGE = Image(LAYERS, ["app:1", "registry.example:5000/team/app:2"])
OTHER = Image([write_tar([Entry("file", "b", data=b"b")])], ["registry.example:5000/team:latest"])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("filesystem") / "store", create=True) as made:
        made.load(io.BytesIO(tar_of(docker_files([IMAGE, OTHER]))))
        yield made


@pytest.fixture
def layers(store: Store) -> LayerFileSystem:
    return LayerFileSystem(store.root)


class TestPublished(AbstractFixtures, AbstractGetTests):
    """The trees that fsspec's tests make on the file system are made on disk here, and imported."""

    @pytest.fixture
    def fs(self, store: Store) -> LayerFileSystem:
        return LayerFileSystem(store.root)

    @pytest.fixture
    def fs_join(self) -> Callable[..., str]:
        return lambda *parts: "/".join(parts)

    @pytest.fixture
    def fs_path(self) -> str:
        return "published:latest/top"

    @staticmethod
    def imported(store: Store, top: Path, make: Callable[..., str]) -> str:
        """The path, in an image, of the tree that `make` makes in a directory."""
        top.mkdir()
        made = Path(make(LocalFileSystem(auto_mkdir=True), os.path.join, str(top)))
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as archive:
            archive.add(top, "top")
        out.seek(0)
        store.import_rootfs(out, "published")
        return f"published:latest/top/{made.relative_to(top)}"

    @pytest.fixture
    def fs_bulk_operations_scenario_0(self, store: Store, tmp_path: Path) -> str:
        return self.imported(store, tmp_path / "tree", self._bulk_operations_scenario_0)

    @pytest.fixture
    def fs_glob_edge_cases_files(self, store: Store, tmp_path: Path) -> str:
        return self.imported(store, tmp_path / "tree", self._glob_edge_cases_files)

    @pytest.fixture
    def fs_dir_and_file_with_same_name_prefix(self, store: Store, tmp_path: Path) -> str:
        return self.imported(store, tmp_path / "tree", self._dir_and_file_with_same_name_prefix)

    @pytest.fixture
    def fs_10_files_with_hashed_names(self, store: Store, tmp_path: Path) -> str:
        return self.imported(store, tmp_path / "tree", self._10_files_with_hashed_names)

    test_get_directory_recursive = None  # makes its tree on the file system itself

    @pytest.fixture
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_join(self) -> Callable[..., str]:
        return os.path.join

    @pytest.fixture
    def local_path(self, tmp_path: Path) -> str:
        return make_path_posix(str(tmp_path))


def url(path: str, name: str = "app:1") -> str:
    return f"layer://{name}/{path}"


def test_the_entry_point() -> None:
    (point,) = [point for point in entry_points(group="fsspec.specs") if point.name == "layer"]
    assert point.load() is LayerFileSystem


def test_pandas(store: Store) -> None:
    table = pd.read_csv(url("link"), storage_options={"store": str(store.root)})
    assert table.to_dict("list") == {"name": ["one", "two"], "count": [1, 2]}


def test_zipfile(layers: LayerFileSystem) -> None:
    with layers.open(url("archive.zip")) as file, zipfile.ZipFile(file) as archive:
        assert archive.read("inside.txt") == b"zipped\n" * 100


def test_a_chained_url(store: Store) -> None:
    chained = f"zip://inside.txt::{url('archive.zip')}"
    with fsspec.open(chained, "r", layer={"store": str(store.root)}) as file:
        assert file.readline() == "zipped\n"


def test_info(layers: LayerFileSystem, store: Store) -> None:
    info = layers.info(url("data/table.csv"))
    entry = store.image("app:1").view.find("data/table.csv")
    assert info["name"] == "app:1/data/table.csv"
    assert (info["type"], info["size"], info["layer"], info["islink"]) == ("file", len(TABLE), 0, False)
    assert (info["mtime"], info["digest"]) == (1_000_000_000.5, entry.digest)
    directory = layers.info("app:1/data/")
    assert (directory["type"], directory["size"], directory["mode"], directory["uid"]) == ("directory", 0, 0o40750, 7)
    assert layers.info("app:1")["type"] == "directory"
    assert layers.info("app:1/pipe")["type"] == "other"
    assert layers.modified("app:1/data").timestamp() == 1_000_000_000
    assert layers.ukey("app:1/link") == entry.digest
    assert layers.ukey("app:1/data") != layers.ukey("app:1")


def test_links(layers: LayerFileSystem) -> None:
    info = layers.info("app:1/link")
    assert (info["type"], info["islink"], info["destination"]) == ("file", True, "/data/table.csv")
    assert layers.isdir("app:1/directory-link")
    assert layers.cat("app:1/directory-link/table.csv") == TABLE
    assert layers.lexists("app:1/dangling")
    assert not layers.exists("app:1/dangling")
    assert not layers.lexists("app:1/nowhere")
    with pytest.raises(FileNotFoundError):
        layers.info("app:1/dangling")


def test_listing(layers: LayerFileSystem) -> None:
    types = {info["name"]: info["type"] for info in layers.ls("app:1")}
    assert types == {
        **{"app:1/data": "directory", "app:1/link": "link", "app:1/directory-link": "link", "app:1/dangling": "link"},
        **{"app:1/pipe": "other", "app:1/archive.zip": "file", "app:1/empty": "file"},
    }
    assert layers.ls("app:1/empty", detail=False) == ["app:1/empty"]
    found = layers.find("app:1/data")
    assert found == ["app:1/data/bytes", "app:1/data/loop", "app:1/data/table.csv"]
    assert layers.glob("app:1/**/*.csv") == ["app:1/data/table.csv"]
    assert layers.du("app:1/data") == len(TABLE) + len(BYTES)


def test_the_root_lists_images(layers: LayerFileSystem, store: Store) -> None:
    assert {"app:1", "registry.example:5000"} <= set(layers.ls("", detail=False))
    team = "registry.example:5000/team"
    assert layers.ls("registry.example:5000", detail=False) == [team, f"{team}:latest"]
    assert layers.cat(f"{team}/app:2/empty") == b""
    assert layers.cat(f"{team}:latest/b") == layers.cat(f"{team}/b") == b"b"  # the tag left out
    assert layers.info(f"{store.image('app:1').short_id}/empty")["type"] == "file"
    assert layers.isdir("")
    assert layers.isdir("registry.example:5000")


@pytest.mark.parametrize(
    ("path", "number"),
    [
        ("nothing:1/x", errno.ENOENT),
        ("app:1/x", errno.ENOENT),
        ("app:1/empty/x", errno.ENOTDIR),
        ("app:1/data", errno.EISDIR),
        ("", errno.ENOENT),
        ("abc/x", errno.ENOENT),
    ],
)
def test_what_cannot_be_opened(layers: LayerFileSystem, path: str, number: int) -> None:
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        layers.open(path)
    assert caught.value.errno == number
    assert caught.value.filename == path


def test_ranges(layers: LayerFileSystem) -> None:
    path = "app:1/data/bytes"
    ranges = [(None, None), (0, 10), (5, None), (None, -5), (-7, -2), (250_000, 10**9), (10, 5), (10**9, None)]
    for start, end in ranges:
        assert layers.cat_file(path, start, end) == BYTES[start:end]
    assert layers.cat_ranges([path, path], [0, -3], [2, None]) == [BYTES[:2], BYTES[-3:]]
    assert layers.head(path, 3) == BYTES[:3]
    assert layers.read_block(path, 256, 2) == BYTES[256:258]


def test_text(layers: LayerFileSystem) -> None:
    with layers.open("app:1/link", "r", encoding="ascii") as file:
        assert list(file) == TABLE.decode().splitlines(keepends=True)
    assert layers.read_text("app:1/link") == TABLE.decode()


def test_nothing_writes(layers: LayerFileSystem, tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"own")
    own = str(tmp_path / "own")
    attempts: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        (layers.open, ("app:1/new", "wb")),
        (layers.open, ("app:1/empty", "ab")),
        (layers.open, ("app:1/new", "w")),
        (layers.mkdir, ("app:1/new",)),
        (layers.makedirs, ("app:1/new",)),
        (layers.rmdir, ("app:1/data",)),
        (layers.rm, ("app:1/empty",)),
        (layers.rm_file, ("app:1/empty",)),
        (layers.mv, ("app:1/empty", "app:1/new")),
        (layers.copy, ("app:1/empty", "app:1/new")),
        (layers.put, (own, "app:1/new")),
        (layers.touch, ("app:1/new",)),
        (layers.pipe, ("app:1/new", b"x")),
        (layers.write_text, ("app:1/new", "x")),
    ]
    for attempt, arguments in attempts:
        with pytest.raises(OSError, match="read-only") as caught:
            attempt(*arguments)
        assert caught.value.errno == errno.EROFS
    assert not layers.exists("app:1/new")


def test_it_is_made_again_from_its_arguments(layers: LayerFileSystem, store: Store) -> None:
    assert pickle.loads(pickle.dumps(layers)).cat("app:1/link") == TABLE
    assert LayerFileSystem(store.root) is layers
    assert fsspec.filesystem("layer", store=str(store.root)).cat("app:1/link") == TABLE


def test_the_usual_store_is_that_of_the_moment(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store(tmp_path / "other", create=True) as other:
        other.import_rootfs(io.BytesIO(LAYERS[0]), "elsewhere:1")
        for _ in range(2):
            monkeypatch.setenv("LAYERSTORE_ROOT", str(store.root))
            with fsspec.open(url("link")) as file:
                assert file.read() == TABLE
            usual = fsspec.filesystem("layer")
            assert fsspec.filesystem("layer") is usual
            monkeypatch.setenv("LAYERSTORE_ROOT", str(other.root))
            with fsspec.open(url("link", "elsewhere:1")) as file:
                assert file.read() == TABLE
            assert fsspec.filesystem("layer") is not usual


def test_times(layers: LayerFileSystem, store: Store) -> None:
    years = {"late": 2**45, "early": -(2**45), "new": 1_000_000_000}
    layer = write_tar([Entry("file", name, mtime=(seconds, 0)) for name, seconds in years.items()])
    store.import_rootfs(io.BytesIO(layer), "times:1")
    found = [layers.modified(f"times:1/{name}") for name in years]
    assert found == [
        datetime.max.replace(tzinfo=UTC),
        datetime.min.replace(tzinfo=UTC),
        datetime(2001, 9, 9, 1, 46, 40, tzinfo=UTC),
    ]
    with pytest.raises(NotImplementedError, match="do not say when 'times:1/new' was created"):
        layers.created("times:1/new")
