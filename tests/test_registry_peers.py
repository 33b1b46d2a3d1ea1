"""docker and podman pull what was pushed, and push what is pulled, with the same image id."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from registries import Registry

from bench.loopfs import unmount_below
from bench.peers import Docker, Peer, Podman
from layerstore import Store

pytestmark = [pytest.mark.root, pytest.mark.peers, pytest.mark.needs_tool("docker-registry")]
IMAGE = Image(
    [
        write_tar([Entry("dir", "d", mode=0o750), Entry("file", "d/a", data=b"a" * 200_000), Entry("file", "b")]),
        write_tar([Entry("file", "c", data=b"c"), Entry("dir", "d", mode=0o750), Entry("file", "d/.wh.a")]),
    ],
    names=["localhost/app:1"],
    runtime={"Cmd": ["/b"]},
)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture(scope="module", params=["docker", "podman"])
def peer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    """Its daemon is for this module, in a store of its own."""
    kind = {"docker": Docker, "podman": Podman}[request.param]
    if missing := kind.missing():
        pytest.skip(f"{missing} is not installed; ci/packages.txt says what tests use")
    run = Path(tempfile.mkdtemp(prefix="lst-", dir="/run"))
    store = tmp_path_factory.mktemp("peer")
    try:
        with kind(store, run) as started:
            yield started
    finally:
        for place in (store, run):
            unmount_below(place)
        shutil.rmtree(run, ignore_errors=True)


def test_a_peer_pulls_what_was_pushed(store: Store, registry: Registry, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([IMAGE])))
    store.load(tmp_path / "archive.tar")
    name = f"{registry.host}/ours-{peer.name}:1"
    store.push("localhost/app:1", name)
    peer.pull(name)
    assert peer.image_id(name) == IMAGE.id


def test_what_a_peer_pushed_is_pulled(store: Store, registry: Registry, peer: Peer, tmp_path: Path) -> None:
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([IMAGE])))
    peer.load(tmp_path / "archive.tar")
    name = f"{registry.host}/theirs-{peer.name}:1"
    peer.push("localhost/app:1", name)
    image = store.pull(name)
    assert list(image.diff_ids) == IMAGE.diff_ids
    assert image.id == peer.image_id("localhost/app:1")
    assert [b"".join(image.layer_tar(diff_id)) for diff_id in image.diff_ids] == list(IMAGE.layers)
