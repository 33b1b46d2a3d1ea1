"""What stores, images and containers are compared and pickled by."""

import io
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_containers import ROOT

from layerstore import Limits, Store

IMAGES = [Image([write_tar([Entry("file", name)])], [f"{name}:1"]) for name in ("one", "other")]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    with Store(tmp_path / "store", create=True) as opened:
        opened.load(io.BytesIO(tar_of(docker_files(IMAGES))))
    return Store(tmp_path / "store")


def test_equal_where_it_is_the_same(store: Store, tmp_path: Path) -> None:
    with store, Store(store.root) as again, Store(tmp_path / "elsewhere", create=True) as elsewhere:
        elsewhere.load(io.BytesIO(tar_of(docker_files(IMAGES))))
        container, second = store.create("one:1", count=2, driver="extent")
        assert store == again != elsewhere
        assert store.image("one:1") == again.image("one:1") != store.image("other:1")
        assert store.image("one:1") != elsewhere.image("one:1")
        assert container == again.container(container.id) != second
        found = {again, elsewhere, again.image("one:1"), again.container(second.id)}
        assert {store, store.image("one:1"), second} < found
        assert container not in found
        assert store != str(store.root)


def test_shown(store: Store) -> None:
    with store:
        container = store.create("one:1", driver="extent")
        assert repr(store) == f"<Store {store.root}>"
        assert repr(store.image("one:1")) == f"<Image {store.image('one:1').short_id} one:1>"
        assert repr(container) == f"<Container {container.id[:12]} of one:1>"


def test_in_another_process(store: Store) -> None:
    code = (
        "import pickle, sys\n"
        "container, image, store = pickle.load(sys.stdin.buffer)\n"
        "print(container.id, image.id, store.root, store.limits.members, image.view.listdir('/'))\n"
        "assert image in store.images() and container in store.containers()\n"
        "container.mkdir('made')\n"
        "container._engine.close()\n"
    )
    with Store(store.root, limits=Limits(members=77)) as opened:
        container, image = opened.create("one:1", driver="extent"), opened.image("one:1")
        data = pickle.dumps([container, image, opened])
        done = subprocess.run([sys.executable, "-c", code], input=data, stdout=subprocess.PIPE, cwd=ROOT, check=True)
        assert done.stdout.decode() == f"{container.id} {image.id} {store.root} 77 ['one']\n"
        assert "made" in container.listdir("/")
    store.close()


def test_in_this_process(store: Store) -> None:
    """They share a store, which is not the one that they come from."""
    with store:
        first, second = pickle.loads(pickle.dumps(list(store.images())))
    assert {image.names[0] for image in (first, second)} == {"one:1", "other:1"}
    assert first._engine is second._engine
    first._engine.close()
