"""What we save, loaded by docker, podman, containerd, skopeo and umoci: the same image id, the names, the same tree.

And what they save, loaded by us. What they cannot load, a test here says: docker before version 23 no zstd, umoci 0.4
neither; podman no OCI layout that holds more than one name.
"""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import images
import pytest
from images import Image, docker_files, tar_of
from judges import started
from layer_model import Entry, write_tar
from test_judges import ROOT_ENTRY, Seen, T, compare, folder, loaded_by_docker, shown, tree, undescribed, unpacked

from bench.fixtures import Fixtures, default_cache
from bench.peers import Containerd, Docker, PeerError, Podman, output
from layerstore import Store
from layerstore.layers import blobs, saving

pytestmark = [pytest.mark.root, pytest.mark.kernel, pytest.mark.peers]

LOWER = write_tar(
    [
        ROOT_ENTRY,
        folder("d"),
        Entry("file", "d/f", data=b"f" * 5000, mtime=T),
        Entry("hardlink", "d/again", link="d/f"),
        Entry("file", "large", data=bytes(range(256)) * 2000, mode=0o4755, uid=3, gid=70_000),
        Entry("symlink", "s", link="d/f"),
        folder("gone"),
        Entry("file", "gone/x", data=b"x"),
        Entry("fifo", "p", mtime=(9, 0)),
    ]
)
MIDDLE = write_tar([folder("d"), Entry("file", "d/.wh..wh..opq"), Entry("file", "d/new", data=b"n")])
IMAGE = Image(
    [LOWER, MIDDLE, write_tar([Entry("file", ".wh.gone"), Entry("file", "top", data=b"t")])],
    ["judged.example:5000/team/app:1", "judged:2"],
    runtime={"Cmd": ["/none"], "Env": ["A=b"]},
)
# The time of the root is of when podman and containerd made its directory.
UNSAID = {b".", *undescribed(list(IMAGE.layers), by_the_topmost=False)}
SECOND = Image([LOWER, write_tar([Entry("file", "other", data=b"o")])], ["second:3"])
FULL_NAMES = ["docker.io/library/judged:2", "judged.example:5000/team/app:1"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with Store(tmp_path_factory.mktemp("judges") / "store", create=True) as made:
        path = Path(made.root).parent / "archive.tar"
        path.write_bytes(tar_of(docker_files([IMAGE, SECOND])))
        made.load(path)
        yield made


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, Seen]:
    top = tmp_path_factory.mktemp("ours")
    (top / "archive.tar").write_bytes(tar_of(docker_files([IMAGE])))
    return shown(top, top / "archive.tar")


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with started(Podman) as peer:
        yield peer


@pytest.fixture(scope="module")
def containerd() -> Iterator[Containerd]:
    with started(Containerd) as peer:
        yield peer


def loaded_ids(path: Path, store: Path) -> list[str]:
    """The images that a new store of ours finds in an archive or layout."""
    with Store(store, create=True) as made:
        found = made.load(path)
        for image in found:
            tars = [b"".join(image.layer_tar(diff_id)) for diff_id in image.diff_ids]
            assert [images.digest_of(tar) for tar in tars] == list(image.diff_ids)
        return [image.id for image in found]


# -- docker -----------------------------------------------------------------------------------------------------------


@contextmanager
def in_docker(docker: Docker, path: Path) -> Iterator[None]:
    docker.load(path)
    try:
        yield
    finally:
        while found := output(docker.command("images", "--quiet")).split():
            docker.remove(found[0])


def dockers_images(docker: Docker) -> set[tuple[str, str]]:
    shown = output(docker.command("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"))
    return {(name, image) for name, image in (line.split() for line in shown.splitlines())}


@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
def test_docker_loads_it(store: Store, tmp_path: Path, docker: Docker, ours: Any, compression: Any) -> None:
    store.save(IMAGE.names, tmp_path / "out", compression=compression)
    if compression not in docker.loads:
        with pytest.raises(PeerError, match="Error processing tar file"):
            docker.load(tmp_path / "out")
        return
    with loaded_by_docker(docker, tmp_path, tmp_path / "out", IMAGE.names[0], len(IMAGE.layers)) as root:
        compare(ours, tree(root), undescribed(list(IMAGE.layers), by_the_topmost=True))
        assert dockers_images(docker) == {(name, IMAGE.id) for name in IMAGE.names}
    docker.remove(IMAGE.names[1])


def test_docker_loads_several(store: Store, tmp_path: Path, docker: Docker) -> None:
    store.save([IMAGE.id, *SECOND.names], tmp_path / "out")
    with in_docker(docker, tmp_path / "out"):
        assert dockers_images(docker) == {("<none>:<none>", IMAGE.id), (SECOND.names[0], SECOND.id)}


def test_what_docker_saves(store: Store, tmp_path: Path, docker: Docker) -> None:
    store.save([*IMAGE.names, *SECOND.names], tmp_path / "ours")
    with in_docker(docker, tmp_path / "ours"):
        output(docker.command("save", "--output", str(tmp_path / "theirs"), *IMAGE.names, *SECOND.names))
    assert sorted(loaded_ids(tmp_path / "theirs", tmp_path / "store")) == sorted([IMAGE.id, SECOND.id])
    with Store(tmp_path / "store") as second:
        assert second.image(IMAGE.id).names == sorted(IMAGE.names)
        second.save([*IMAGE.names, *SECOND.names], tmp_path / "again")
    assert (tmp_path / "again").read_bytes() == (tmp_path / "ours").read_bytes()


# -- podman -----------------------------------------------------------------------------------------------------------


@contextmanager
def in_podman(podman: Podman, path: Path) -> Iterator[None]:
    podman.load(path)
    try:
        yield
    finally:
        output(podman.command("rmi", "--all", "--force"))


def podmans_images(podman: Podman) -> set[tuple[str, str]]:
    shown = output(podman.command("images", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"))
    return {(name, image) for name, image in (line.split() for line in shown.splitlines())}


@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
@pytest.mark.parametrize("form", saving.FORMATS)
def test_podman_loads_it(store: Store, tmp_path: Path, podman: Podman, ours: Any, form: Any, compression: Any) -> None:
    store.save(IMAGE.names[0], tmp_path / "out", format=form, compression=compression)
    with in_podman(podman, tmp_path / "out"):
        ((name, image),) = podmans_images(podman)
        assert image == IMAGE.id
        # It names what comes from a directory by the directory.
        assert name == IMAGE.names[0] or (form == "oci" and name == f"localhost{tmp_path}/out:latest")
        root = output(podman.command("image", "mount", IMAGE.id))
        try:
            compare(ours, tree(Path(root)), UNSAID)
        finally:
            output(podman.command("image", "unmount", IMAGE.id))


def test_podman_and_several_names(store: Store, tmp_path: Path, podman: Podman) -> None:
    store.save([*IMAGE.names, *SECOND.names], tmp_path / "docker")
    with in_podman(podman, tmp_path / "docker"):
        assert podmans_images(podman) == {
            (IMAGE.names[0], IMAGE.id),
            (f"localhost/{IMAGE.names[1]}", IMAGE.id),
            (f"localhost/{SECOND.names[0]}", SECOND.id),
        }
    store.save(IMAGE.names, tmp_path / "oci", format="oci-archive")
    with pytest.raises(PeerError, match="more than one image in oci, choose an image"):
        podman.load(tmp_path / "oci")


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci-dir"])
def test_what_podman_saves(store: Store, tmp_path: Path, podman: Podman, form: str) -> None:
    # Between docker's and OCI's, podman writes the config anew, which is another image then.
    store.save(
        IMAGE.names[0], tmp_path / "ours", format="docker-archive" if form == "docker-archive" else "oci-archive"
    )
    with in_podman(podman, tmp_path / "ours"):
        output(podman.command("save", "--quiet", "--format", form, "-o", str(tmp_path / "theirs"), IMAGE.names[0]))
    assert loaded_ids(tmp_path / "theirs", tmp_path / "store") == [IMAGE.id]


# -- containerd -------------------------------------------------------------------------------------------------------


@contextmanager
def in_containerd(containerd: Containerd, path: Path) -> Iterator[None]:
    containerd.load(path)
    try:
        yield
    finally:
        output(containerd.command("images", "rm", "--sync", *containerds_names(containerd)))


def containerds_names(containerd: Containerd) -> list[str]:
    return sorted(output(containerd.command("images", "ls", "--quiet")).split())


def containerds_config(containerd: Containerd, name: str) -> str:
    """The digest of the config of an image, which is what others name it by."""
    for line in output(containerd.command("images", "ls")).splitlines()[1:]:
        if line.split()[0] == name:
            manifest = json.loads(output(containerd.command("content", "get", line.split()[2])))
            return str(manifest["config"]["digest"])
    raise AssertionError(name)


@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
@pytest.mark.parametrize("form", ["docker-archive", "oci-archive"])
def test_containerd_loads_it(
    store: Store, tmp_path: Path, containerd: Containerd, ours: Any, form: Any, compression: Any
) -> None:
    store.save([*IMAGE.names, *SECOND.names], tmp_path / "out", format=form, compression=compression)
    with in_containerd(containerd, tmp_path / "out"):
        assert containerds_names(containerd) == sorted([*FULL_NAMES, "docker.io/library/second:3"])
        assert containerds_config(containerd, FULL_NAMES[0]) == IMAGE.id
        assert containerds_config(containerd, "docker.io/library/second:3") == SECOND.id
        root = tmp_path / "root"
        root.mkdir()
        output(containerd.command("images", "mount", FULL_NAMES[0], str(root)))
        try:
            compare(ours, tree(root), UNSAID)
        finally:
            output(containerd.command("images", "unmount", "--rm", str(root)))


def test_what_containerd_saves(store: Store, tmp_path: Path, containerd: Containerd) -> None:
    for compression in blobs.COMPRESSIONS:
        store.save(IMAGE.names, tmp_path / "ours", compression=compression)  # type: ignore[arg-type]
        with in_containerd(containerd, tmp_path / "ours"):
            output(containerd.command("images", "export", str(tmp_path / "theirs"), *FULL_NAMES))
        assert set(loaded_ids(tmp_path / "theirs", tmp_path / f"store-{compression}")) == {IMAGE.id}
        with Store(tmp_path / f"store-{compression}") as second:
            assert second.image(IMAGE.id).names == sorted(IMAGE.names)


# -- skopeo and umoci -------------------------------------------------------------------------------------------------


@pytest.mark.needs_tool("skopeo")
@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
@pytest.mark.parametrize("form", saving.FORMATS)
def test_skopeo_reads_it_and_we_what_it_writes(store: Store, tmp_path: Path, form: Any, compression: Any) -> None:
    store.save([*IMAGE.names, *SECOND.names], tmp_path / "out", format=form, compression=compression)
    source = f"{form}:{tmp_path / 'out'}:{IMAGE.names[1] if form == 'docker-archive' else '2'}"
    config = subprocess.run(["skopeo", "inspect", "--config", "--raw", source], capture_output=True, check=True).stdout
    assert images.digest_of(config) == IMAGE.id
    for target in ("docker-archive", "oci-archive", "oci"):
        if (form == "docker-archive") != (target == "docker-archive"):
            continue  # it writes the config anew, which is another image then
        path = tmp_path / f"theirs-{target}"
        output(["skopeo", "copy", "--insecure-policy", "--quiet", source, f"{target}:{path}:copied:1"])
        assert loaded_ids(path, tmp_path / f"store-{target}") == [IMAGE.id]


@pytest.mark.needs_tool("umoci")
@pytest.mark.parametrize("compression", blobs.COMPRESSIONS)
def test_umoci_unpacks_it(store: Store, tmp_path: Path, ours: Any, compression: Any) -> None:
    store.save(IMAGE.names, tmp_path / "out", format="oci", compression=compression)
    assert output(["umoci", "ls", "--layout", str(tmp_path / "out")]).split() == ["1", "2"]
    if compression == "zstd":
        with pytest.raises(PeerError, match="blob is not correct mediatype"):
            output(["umoci", "raw", "unpack", "--image", f"{tmp_path / 'out'}:1", str(tmp_path / "root")])
        return
    seen = unpacked(tmp_path, tmp_path / "out", "1")
    compare(ours, seen, undescribed(list(IMAGE.layers), by_the_topmost=False))
    # A layout that umoci has written its own index to.
    output(["umoci", "tag", "--image", f"{tmp_path / 'out'}:1", "tagged"])
    assert set(loaded_ids(tmp_path / "out", tmp_path / "store")) == {IMAGE.id}


# -- a real image -----------------------------------------------------------------------------------------------------


def test_debian_with_an_application(tmp_path: Path, docker: Docker, podman: Podman, containerd: Containerd) -> None:
    if not (default_cache() / "debian.tar").exists():
        pytest.skip(f"{default_cache()} has no Debian image: `python -m bench.fixtures` makes it")
    with Store(tmp_path / "store", create=True) as store:
        (image,) = store.load(Fixtures().archive("app-a", "gzip"))
        (name,) = image.names
        store.save(name, tmp_path / "out", compression="gzip")
        with in_docker(docker, tmp_path / "out"):
            assert dockers_images(docker) == {(name, image.id)}
        store.save(name, tmp_path / "out", format="oci-archive", compression="zstd")
        with in_podman(podman, tmp_path / "out"):
            assert podmans_images(podman) == {(f"docker.io/library/{name}", image.id)}
        with in_containerd(containerd, tmp_path / "out"):
            assert containerds_config(containerd, f"docker.io/library/{name}") == image.id


# -- history ----------------------------------------------------------------------------------------------------------


def step(created_by: str, comment: str = "", empty: bool = False) -> dict[str, object]:
    said = {"created": images.CREATED, "created_by": created_by, "comment": comment}
    return {key: value for key, value in said.items() if value} | ({"empty_layer": True} if empty else {})


# Without symlinks, whose targets docker's overlay2 counts as bytes.
TOLD = [write_tar([ROOT_ENTRY, Entry("file", f"f{i}", data=bytes(1000 * i + 7))]) for i in range(3)]
HISTORIES = {
    "as builds write it": [
        step("/bin/sh -c #(nop) ADD file:1 in / "),
        step("/bin/sh -c #(nop)  ENV A=b", empty=True),
        step("COPY d /d # buildkit", "buildkit.dockerfile.v0"),
        step("/bin/sh -c echo 'quoted  spaces' && true"),
        step('CMD ["/none"]', "buildkit.dockerfile.v0", empty=True),
    ],
    "a layer last": [step("one"), step("two", empty=True), step("two and a half"), step("three")],
}


def dockers_history(docker: Docker, name: str) -> list[tuple[str, str, str, str, str]]:
    command = docker.command("history", "--no-trunc", "--human=false", "--format", "{{json .}}", name)
    lines = [json.loads(line) for line in output(command).splitlines()]
    return [(line["ID"], line["CreatedAt"], line["CreatedBy"], line["Comment"], line["Size"]) for line in lines]


def our_history(store: Store, name: str) -> list[tuple[str, str, str, str, str]]:
    return [
        (
            entry.image_id or "<missing>",
            f"{entry.created[:19]}Z",
            entry.created_by,
            entry.comment,
            str(entry.size_bytes),
        )
        for entry in store.image(name).history()
    ]


@pytest.mark.parametrize("case", HISTORIES)
def test_the_history_of_a_loaded_image(tmp_path: Path, docker: Docker, case: str) -> None:
    image = Image(TOLD, ["told:1"], document={"history": HISTORIES[case]})
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([image])))
    with in_docker(docker, tmp_path / "archive.tar"), Store(tmp_path / "store", create=True) as store:
        store.load(tmp_path / "archive.tar")
        assert our_history(store, "told:1") == dockers_history(docker, "told:1")


def test_the_history_of_an_image_built_on_another(tmp_path: Path, docker: Docker) -> None:
    """Images that are there are shown at their own last step: also one that only adds to the config of the other."""
    base = Image(TOLD[:1], ["base:1"], document={"history": HISTORIES["as builds write it"][:2]})
    (tmp_path / "archive.tar").write_bytes(tar_of(docker_files([base])))
    (tmp_path / "context").mkdir()
    (tmp_path / "context/file").write_bytes(b"copied")
    (tmp_path / "context/Dockerfile").write_text("FROM base:1\nENV C=d\nCOPY file /\nENV E=f\n")
    with in_docker(docker, tmp_path / "archive.tar"), Store(tmp_path / "store", create=True) as store:
        # The builder that docker had before BuildKit: the one that leaves an image a step.
        build = docker.command("build", "--quiet", "--tag", "built:1", str(tmp_path / "context"))
        subprocess.run(build, env={**os.environ, "DOCKER_BUILDKIT": "0"}, check=True, capture_output=True)
        steps = [line[0] for line in dockers_history(docker, "built:1")]
        output(docker.command("save", "--output", str(tmp_path / "built"), *steps[:-1], "built:1", "base:1"))
        store.load(tmp_path / "built")
        assert our_history(store, "built:1") == dockers_history(docker, "built:1")
        assert steps[3:] == [base.id, "<missing>"]
