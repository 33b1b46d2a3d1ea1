"""Who may look into a store, and whose it may be."""

import io
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import images
import pytest
import tarbytes as tb
from cases import case
from images import Image

from layerstore import Store
from layerstore.errors import InvalidInput, NotFound

IMAGE = Image([tb.archive(tb.member(b"large", b"x" * 200_000), tb.member(b"small", b"y"))], ["app:1"])


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def fill(root: Path, context: Path) -> None:
    with Store(root, create=True) as store:
        store.load(io.BytesIO(images.tar_of(images.docker_files([IMAGE], "25", "gzip"))))
        overlay, extent = store.create("app:1"), store.create("app:1", driver="extent")
        extent.write_text("/new", "new\n")
        for container in (overlay, extent):
            container.snapshot("before")
            container.fork()
        extent.commit("commit:1")
        store.image("app:1").view.listdir("/")
        context.mkdir()
        (context / "Dockerfile").write_text("FROM app:1\nCOPY Dockerfile /\n")
        store.build(context)


@case("a umask of 0", "no directory or file of the store lets another user in")
def test_modes(tmp_path: Path, no_umask: None) -> None:
    top = tmp_path / "new"
    fill(top / "above" / "store", tmp_path / "context")
    found = [top, *top.rglob("*")]
    assert len(found) > 60
    # What an upper directory holds is the container's, whose modes are its own; a symbolic link has none.
    uppers = [path for path in found if path.name == "upper" or path.parent.name == "frozen"]
    for path in found:
        if not path.is_symlink() and not any(path == upper or upper in path.parents for upper in uppers):
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path


@pytest.mark.parametrize(
    "mode",
    [
        pytest.param(0o770, marks=case("a store that its group may write to", "refused")),
        pytest.param(0o707, marks=case("a store that all may write to", "refused")),
        pytest.param(0o750, marks=case("a store that its group may look into", "refused", "CVE-2021-41091 (docker)")),
        pytest.param(0o711, marks=case("a store that all may pass through", "refused", "CVE-2021-41091 (docker)")),
        pytest.param(0o1777, marks=case("a store that is like /tmp", "refused")),
    ],
)
def test_a_store_that_is_open(tmp_path: Path, mode: int) -> None:
    Store(tmp_path / "store", create=True).close()
    (tmp_path / "store").chmod(mode)
    for create in (False, True):
        with pytest.raises(InvalidInput, match="open to other users"):
            Store(tmp_path / "store", create=create)


@pytest.mark.root
@case("a store of another user", "refused, to root as well", "CVE-2022-24765 (git)")
def test_a_store_of_another_user(tmp_path: Path) -> None:
    Store(tmp_path / "store", create=True).close()
    os.chown(tmp_path / "store", 1234, 1234)
    for create in (False, True):
        with pytest.raises(PermissionError, match="belongs to user 1234"):
            Store(tmp_path / "store", create=create)


@pytest.mark.root
@case("a directory of another user to make a store in", "refused, to root as well")
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(0o700)
    os.chown(tmp_path / "store", 1234, 1234)
    with pytest.raises(PermissionError, match="belongs to user 1234"):
        Store(tmp_path / "store", create=True)
    assert os.listdir(tmp_path / "store") == []


@pytest.mark.root
@case("a store, to another user", "no entry")
def test_another_user_gets_in_nowhere(tmp_path: Path) -> None:
    Store(tmp_path / "store", create=True).close()
    # In it, as pytest lets nobody pass through its own directories.
    code = "import os; os.setgroups([]); os.setgid(1234); os.setuid(1234); print(os.listdir('store'))"
    command = [sys.executable, "-c", f"import os; os.chmod('.', 0o777); {code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0 and "Permission" in done.stderr, done


@case("a store that is a file", "refused")
def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("x")
    with pytest.raises((NotADirectoryError, FileExistsError)):
        Store(tmp_path / "store", create=True)


@case("a directory that holds something else", "refused, and left alone")
def test_a_directory_of_something_else(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir(0o755)
    (tmp_path / "store" / "mine").write_text("x")
    with pytest.raises(InvalidInput, match="'mine'"):
        Store(tmp_path / "store", create=True)
    assert stat.S_IMODE((tmp_path / "store").stat().st_mode) == 0o755
    with pytest.raises(NotFound):
        Store(tmp_path / "store")
