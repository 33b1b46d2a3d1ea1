"""Reads that verify: every way that a content of an image reaches a caller, with its bytes flipped on the disk."""

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar

from layerstore import Store
from layerstore._core.hashing import blake3
from layerstore.errors import CorruptError, InvalidInput
from layerstore.store.opened import OpenStore
from layerstore.trees.sources import StoredContent

SMALL, LARGE = b"of a pack " * 3_000, b"of an object" * 200_000
CONTENTS = {"small": SMALL, "large": LARGE}
IMAGE = Image([write_tar([Entry("file", name, data=data) for name, data in CONTENTS.items()])], ["app:1"])
Read = Callable[[Store, str], bytes]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    with Store(tmp_path / "store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        store.create("app:1", name="work", driver="extent")
    return tmp_path / "store"


def damage(root: Path, name: str) -> None:
    """Flip one bit in the middle of a content."""
    content = CONTENTS[name]
    digest = blake3(content).hex()
    path = root / "objects" / digest[:2] / digest[2:] if name == "large" else root / "packs" / "0.pack"
    path.chmod(0o600)
    data = path.read_bytes()
    at = data.index(content) + len(content) // 2
    with path.open("r+b") as file:
        file.seek(at)
        file.write(bytes([data[at] ^ 1]))


def wrong(name: str) -> bytes:
    content = CONTENTS[name]
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


class Verifying(Store):
    """One that says how it verifies, for those that are to do the same beside it."""

    def __init__(self, root: Path, verify: Any = "never") -> None:
        super().__init__(root, verify=verify)
        self.verify = verify


def opened(store: Store, name: str) -> bytes:
    with store.image("app:1").view.open(name) as file:
        file.seek(5)
        rest = file.read()
        file.seek(0)
        return file.read(5) + rest


def by_url(store: Verifying, name: str) -> bytes:
    options = {"store": str(store.root), "verify": store.verify, "skip_instance_cache": True}
    with fsspec.open(f"layer://app:1/{name}", **options) as file:
        return bytes(file.read())


def of_a_container_by_url(store: Verifying, name: str) -> bytes:
    options = {"store": str(store.root), "verify": store.verify, "skip_instance_cache": True}
    with fsspec.open(f"container://work/{name}", **options) as file:
        return bytes(file.read())


def by_the_command(store: Verifying, name: str) -> bytes:
    command = [
        sys.executable,
        "-m",
        "layerstore",
        "--root",
        store.root,
        f"--verify={store.verify}",
        "cat",
        "app:1",
        name,
    ]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        raise CorruptError(done.stderr.decode())
    return done.stdout


def in_a_container(store: Store, name: str) -> bytes:
    with store.container("work").open(name, "rb") as file:
        return file.read()


def changed_in_a_container(store: Store, name: str) -> bytes:
    """Of a file of which one byte was written, the others."""
    made = store.create("app:1", driver="extent")
    with made.open(name, "r+b") as file:
        file.write(b"!")
    with made.open(name, "rb") as file:
        return CONTENTS[name][:1] + file.read()[1:]


def copied_out(store: Store, name: str) -> bytes:
    target = store.root / f"copy.{name}.{os.urandom(4).hex()}"
    store.container("work").copy_out(f"/{name}", target)
    return target.read_bytes()


def in_the_tar(name: str, tar: bytes) -> bytes:
    import tarfile

    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        member = archive.extractfile(name)
        assert member is not None
        return member.read()


def committed(store: Store, name: str) -> bytes:
    made = store.create("app:1", driver="extent")
    made.rename(name, "renamed")
    image = made.commit(f"committed:{os.urandom(4).hex()}")
    with Store(store.root) as unverified:
        return unverified.image(image.id).view.read_bytes("renamed")


def linked(store: Verifying, name: str) -> bytes:
    """As a commit takes an object over, or where that is none, clones or copies it."""
    path = store.root / f"linked.{os.urandom(4).hex()}"
    with contextlib.closing(OpenStore(store.layout, store.verify)) as opened:
        source = StoredContent(opened.contents, blake3(CONTENTS[name]))
        if source.link_to(str(path)):
            return path.read_bytes()
        return b"".join(source.pieces())


WAYS: dict[str, Read] = {
    "read_bytes": lambda store, name: store.image("app:1").view.read_bytes(name),
    "read_many": lambda store, name: store.image("app:1").view.read_many([name, name])[1],
    "open": opened,
    "path": lambda store, name: store.image("app:1").path.joinpath(name).read_bytes(),
    "fsspec": by_url,
    "fsspec of a container": of_a_container_by_url,
    "cat": by_the_command,
    "layer_tar": lambda store, name: in_the_tar(name, b"".join(store.image("app:1").layer_tar(IMAGE.diff_ids[0]))),
    "container": in_a_container,
    "changed file": changed_in_a_container,
    "copy_out": copied_out,
    "export": lambda store, name: in_the_tar(name, b"".join(store.container("work").export())),
    "commit": committed,
    "link": linked,
}


@pytest.mark.parametrize("name", CONTENTS)
@pytest.mark.parametrize("way", WAYS)
def test_no_wrong_byte_is_given_out(root: Path, way: str, name: str) -> None:
    damage(root, name)
    with Verifying(root) as store:
        assert WAYS[way](store, name) == wrong(name)
    for verify in ("first", "always"):
        with Verifying(root, verify) as store:
            for _ in range(2):
                with pytest.raises(CorruptError, match="layerstore fsck") as raised:
                    WAYS[way](store, name)
            digest = blake3(CONTENTS[name]).hex()
            assert digest in str(raised.value)
            assert ("0.pack" if name == "small" else f"objects/{digest[:2]}/{digest[2:]}") in str(raised.value)


@pytest.mark.parametrize("verify", ["first", "always"])
@pytest.mark.parametrize("way", WAYS)
def test_what_is_sound_is_given_out(root: Path, way: str, verify: str) -> None:
    with Verifying(root, verify) as store:
        for name, content in CONTENTS.items():
            assert WAYS[way](store, name) == content


@pytest.mark.parametrize("name", CONTENTS)
def test_first_is_once_until_garbage_was_collected_and_always_is_each_time(root: Path, name: str) -> None:
    with Verifying(root, "first") as first, Verifying(root, "always") as always:
        for store in (first, always):
            assert store.image("app:1").view.read_bytes(name) == CONTENTS[name]
        damage(root, name)
        for way in ("read_bytes", "read_many", "open"):
            assert WAYS[way](first, name) == wrong(name)
            with pytest.raises(CorruptError):
                WAYS[way](always, name)
        first.load(io.BytesIO(tar_of(docker_files([Image([write_tar([Entry("file", "x", data=b"x")])], ["x:1"])]))))
        first.remove_image("x:1")
        first.collect_garbage()
        with pytest.raises(CorruptError):
            first.image("app:1").view.read_bytes(name)


def test_a_damaged_content_keeps_nobody_from_the_others(root: Path) -> None:
    damage(root, "small")
    with Verifying(root, "first") as store:
        view = store.image("app:1").view
        with pytest.raises(CorruptError, match="slot 0 of"):
            view.read_many(["large", "small"])
        assert view.read_many(["large"]) == [LARGE]


def test_an_object_that_was_cut_off(root: Path) -> None:
    (path,) = (root / "objects").rglob("??????*")
    path.chmod(0o600)
    os.truncate(path, len(LARGE) - 1)
    with Verifying(root, "first") as store:
        for way in ("read_bytes", "read_many", "open", "container"):
            with pytest.raises(CorruptError):
                WAYS[way](store, "large")


def test_a_large_content_is_hashed_in_little_memory(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 200
    with Store(tmp_path / "store", create=True) as store:
        image = Image([write_tar([Entry("file", "huge", data=content)])], ["huge:1"])
        store.load(io.BytesIO(tar_of(docker_files([image]))))
    code = (
        "import resource, sys; from layerstore import Store; "
        "store = Store(sys.argv[1], verify='first'); view = store.image('huge:1').view; "
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss; "
        "assert len(view.open('huge').read(10)) == 10; "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "store"], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 16 << 10


def test_another_word(root: Path) -> None:
    with pytest.raises(InvalidInput, match="'sometimes'"):
        Store(root, verify="sometimes")  # type: ignore[arg-type]  # it is none of them
    done = subprocess.run(
        [sys.executable, "-m", "layerstore", "--root", root, "--verify", "sometimes", "images"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "'sometimes'" in done.stderr
