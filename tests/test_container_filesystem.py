"""Containers through fsspec, to be read and written: its own published test classes, and pandas."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.local import LocalFileSystem, make_path_posix
from fsspec.tests.abstract import AbstractCopyTests, AbstractFixtures, AbstractGetTests, AbstractPutTests
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from layerstore import Store
from layerstore.filesystem import ContainerFileSystem

IMAGE = Image([write_tar([Entry("file", "small", data=b"small"), Entry("symlink", "link", link="small")])], ["app:1"])


class ContainerFixtures(AbstractFixtures):
    @pytest.fixture(scope="class")
    def fs(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerFileSystem]:
        root = tmp_path_factory.mktemp("filesystem") / "store"
        with Store(root, create=True) as store:
            store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
            store.create("app:1", driver="extent", name="work")
        made = ContainerFileSystem(root, auto_mkdir=True, skip_instance_cache=True)
        yield made
        made.store.close()

    @pytest.fixture
    def fs_path(self) -> str:
        return "work"

    @pytest.fixture
    def local_fs(self) -> LocalFileSystem:
        return LocalFileSystem(auto_mkdir=True)

    @pytest.fixture
    def local_path(self, tmp_path: Path) -> str:
        return make_path_posix(str(tmp_path))

    @pytest.fixture
    def supports_empty_directories(self) -> bool:
        return True


class TestCopy(AbstractCopyTests, ContainerFixtures):
    pass


class TestGet(AbstractGetTests, ContainerFixtures):
    pass


class TestPut(AbstractPutTests, ContainerFixtures):
    pass


class TestOwn(ContainerFixtures):
    def test_what_is_written_is_read(self, fs: ContainerFileSystem) -> None:
        with fs.open("work/d", "wb") as file:
            file.write(b"data")
        with fs.open("work/d", "ab") as file:
            file.write(b"more")
        assert fs.cat("work/d") == b"datamore"
        assert fs.cat_file("work/d", -4, None) == b"more"
        fs.mv("work/d", "work/e")
        assert not fs.exists("work/d")
        fs.touch("work/e")
        assert fs.info("container://work/e")["size"] == 0
        fs.rm("work/e")
        assert fs.info("work/link")["destination"] == "small"
        assert fs.ls("", detail=False) == ["work"]
        assert fs.find("work") == ["work/link", "work/small"]
        fs.makedirs("work/x/y")
        fs.rm("work/x", recursive=True)
        with pytest.raises(FileNotFoundError):
            fs.ls("other")

    def test_pandas_writes(self, fs: ContainerFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
        fsspec.register_implementation("container", ContainerFileSystem, clobber=True)
        fs.store.close()
        options: dict[str, Any] = {"store": fs.store.root}
        pd.DataFrame({"a": [1, 2]}).to_csv("container://work/table.csv", index=False, storage_options=options)
        with fsspec.open("container://work/table.csv", "r", **options) as file:
            assert file.read() == "a\n1\n2\n"
        fsspec.filesystem("container", **options).store.close()
