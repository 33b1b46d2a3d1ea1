"""Pushes to a real registry: what is sent and what is not, uploads that break, and what others make of the result."""

import gc
import json
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import images
import pytest
from images import DOCKER, OCI, Image, digest_of, docker_files, oci_files, write_directory
from registries import (
    Fault,
    Proxy,
    Registry,
    TokenServer,
    ask,
    certificate,
    layer_of,
    manifest_of,
    put_image,
    put_manifest,
)

from layerstore import Progress, Store
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError, NotFound, RegistryError

pytestmark = pytest.mark.needs_tool("docker-registry")
HASTE = {"Retry-After": "0"}
MEDIA_NAME = "[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"  # RFC 6838, section 4.2
BELOW = Image([layer_of(1), layer_of(2, 100)], names=["below:1"])
IMAGE = Image([*BELOW.layers, layer_of(3, 9_000_000)], names=["app:1"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        yield started


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    with Proxy(registry.port) as started:
        yield started


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as made:
        made.load(write_directory(docker_files([BELOW, IMAGE]), tmp_path / "archive"))
        yield made


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    """A repository of the test's own."""
    return re.sub("[^a-z0-9]+", "-", request.node.name.lower()).strip("-")


class Held:
    """A change that a fault makes: the answer comes after half a minute, or says to come again then (`busy`)."""

    def __init__(self) -> None:
        self.busy = False
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __call__(self, status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        self.reached.set()
        if self.busy:
            return 503, {"Retry-After": "30"}, b""
        self.go_on.wait(30)
        return status, fields, body


@pytest.fixture
def held() -> Iterator[Held]:
    made = Held()
    yield made
    made.go_on.set()


def manifest(registry: Registry, repository: str, tag: str = "1") -> dict[str, Any]:
    kinds = {"Accept": f"{OCI}.manifest.v1+json, {DOCKER}.distribution.manifest.v2+json"}
    status, fields, body = ask(registry.port, "GET", f"/v2/{repository}/manifests/{tag}", fields=kinds)
    assert status == 200
    found: dict[str, Any] = json.loads(body)
    assert fields["Content-Type"] == found["mediaType"]
    return found


def sent_bytes(proxy: Proxy) -> int:
    return sum(request.body_bytes for request in proxy.requests if "/blobs/" in request.path)


def is_in(registry: Registry, repository: str, tmp_path: Path, image: Image = IMAGE) -> bool:
    """Does another store get the very image?"""
    path = tmp_path / "other"
    shutil.rmtree(path, ignore_errors=True)
    with Store(path, create=True) as other:
        found = other.pull(f"{registry.host}/{repository}:1")
        return found.id == image.id and [b"".join(found.layer_tar(d)) for d in found.diff_ids] == list(image.layers)


# What is sent


def test_an_image_is_sent_once(store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path) -> None:
    told: list[Progress] = []
    digest = store.push("app:1", f"{proxy.host}/{name}:1", progress=told.append)
    assert is_in(registry, name, tmp_path)
    assert [p.stage for p in told if p.stage not in ("waiting", "upload")] == ["uploaded"] * 3 + ["manifest"]
    assert told[-1].what == digest

    del proxy.requests[:], told[:]
    assert store.push("app:1", f"{proxy.host}/{name}:2", progress=told.append) == digest
    assert sent_bytes(proxy) == 0
    assert [request.method for request in proxy.requests] == ["HEAD"] * 4 + ["PUT"]
    assert [p.stage for p in told] == ["waiting"] * 3 + ["stored"] * 3 + ["manifest"]


def test_only_the_layers_that_are_new_are_sent(store: Store, proxy: Proxy, name: str) -> None:
    store.push("below:1", f"{proxy.host}/{name}:below")
    del proxy.requests[:]
    store.push("app:1", f"{proxy.host}/{name}:1")
    new = len(images.compressed(IMAGE.layers[2], "gzip"))
    assert abs(sent_bytes(proxy) - len(IMAGE.config) - new) < new / 50
    assert proxy.count("POST", "/uploads/") == 2  # the layer and the config


def test_layers_of_another_repository_are_mounted(store: Store, registry: Registry, proxy: Proxy, name: str) -> None:
    store.push("below:1", f"{proxy.host}/{name}/below:1")
    told: list[Progress] = []
    store.push("app:1", f"{proxy.host}/{name}/app:1", progress=told.append)
    mounted = {p.what: p.source for p in told if p.stage == "mounted"}
    assert mounted == dict.fromkeys(BELOW.diff_ids, f"{name}/below")
    assert proxy.count("POST", "mount=") == 2


@pytest.mark.parametrize("status", [400, 403, 404, 405, 501])
def test_a_mount_that_is_refused_is_an_upload(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path, status: int
) -> None:
    store.push("app:1", f"{proxy.host}/{name}/one:1")
    proxy.faults.append(Fault("POST", "mount=", times=3, status=status))
    store.push("app:1", f"{proxy.host}/{name}/two:1")
    assert is_in(registry, f"{name}/two", tmp_path)


def test_a_mount_that_begins_an_upload_is_the_only_one(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    for source in ("one", "two"):
        store.push("app:1", f"{proxy.host}/{name}/{source}:1")
    del proxy.requests[:]

    def instead(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        _, begun, _ = ask(registry.port, "POST", f"/v2/{name}/three/blobs/uploads/", fields={"Host": proxy.host})
        return 202, {"Location": begun["Location"]}, b""

    proxy.faults.append(Fault("POST", "mount=", times=99, change=instead))
    store.push("app:1", f"{proxy.host}/{name}/three:1")
    assert proxy.count("POST", "/uploads/") == 3 + 1  # one for each layer, and the config's
    assert is_in(registry, f"{name}/three", tmp_path)


def test_what_the_registry_has_lost_is_sent_again(store: Store, registry: Registry, proxy: Proxy, name: str) -> None:
    store.push("app:1", f"{proxy.host}/{name}:1")
    for layer in manifest(registry, name)["layers"]:
        assert ask(registry.port, "DELETE", f"/v2/{name}/blobs/{layer['digest']}")[0] == 202
    told: list[Progress] = []
    store.push("app:1", f"{proxy.host}/{name}:1", progress=told.append)
    assert sum(p.stage == "uploaded" for p in told) == 3


def test_layers_of_a_compressed_archive_are_known(registry: Registry, proxy: Proxy, name: str, tmp_path: Path) -> None:
    """The registry has the blobs that the archive has: nothing is sent, and nothing was pulled."""
    put_image(registry.port, name, "theirs", IMAGE)
    with Store(tmp_path / "second", create=True) as store:
        store.load(write_directory(oci_files([IMAGE], "gzip"), tmp_path / "layout"))
        store.push("app:1", f"{proxy.host}/{name}:1")
    assert sent_bytes(proxy) == 0


# The manifest


@pytest.mark.parametrize("family", [OCI, DOCKER])
def test_the_manifest_that_an_image_came_with_is_kept(
    registry: Registry, name: str, tmp_path: Path, family: str
) -> None:
    digest = put_image(registry.port, name, "theirs", IMAGE, family=family)
    with Store(tmp_path / "second", create=True) as store:
        image = store.pull(f"{registry.host}/{name}:theirs")
        assert store.push(image, f"{registry.host}/{name}:1") == digest
        assert store.push(image, f"{registry.host}/{name}/other:1") == digest
    assert manifest(registry, name) == manifest_of(IMAGE, family=family)


@pytest.mark.parametrize(("family", "other"), [(OCI, DOCKER), (DOCKER, OCI), ("", OCI), ("", DOCKER)])
def test_a_manifest_and_a_config_of_two_families(
    registry: Registry, name: str, tmp_path: Path, family: str, other: str
) -> None:
    """And a manifest that does not say what it is, which is one of OCI's."""
    put_image(registry.port, name, "parts", IMAGE)
    document = manifest_of(IMAGE, family=family or OCI)
    document["config"]["mediaType"] = manifest_of(IMAGE, family=other)["config"]["mediaType"]
    kind = document["mediaType"] if family else document.pop("mediaType")
    digest = put_manifest(registry.port, name, "theirs", document, kind)
    with Store(tmp_path / "second", create=True) as store:
        image = store.pull(f"{registry.host}/{name}:theirs")
        assert store.push(image, f"{registry.host}/{name}:1") == digest
        assert store.push(image, f"{registry.host}/{name}/other:1") == digest
    assert ask(registry.port, "GET", f"/v2/{name}/manifests/1", fields={"Accept": kind})[1]["Content-Type"] == kind


def test_the_family_stays_where_the_blobs_are_others(registry: Registry, name: str, tmp_path: Path) -> None:
    put_image(registry.port, name, "theirs", IMAGE, family=DOCKER)
    with Registry(tmp_path) as second, Store(tmp_path / "second", create=True) as store:
        image = store.pull(f"{registry.host}/{name}:theirs")
        store.push(image, f"{second.host}/{name}:1")
        found = manifest(second, name)
        assert found["mediaType"] == f"{DOCKER}.distribution.manifest.v2+json"
        assert {layer["mediaType"] for layer in found["layers"]} == {f"{DOCKER}.image.rootfs.diff.tar.gzip"}
        assert is_in(second, name, tmp_path)


def test_the_manifest_keeps_the_rules(store: Store, registry: Registry, name: str) -> None:
    """Of "manifest.md" and "descriptor.md" of the OCI image specification 1.1, and its JSON schemas."""
    store.push("app:1", f"{registry.host}/{name}:1")
    found = manifest(registry, name)
    assert found.keys() == {"schemaVersion", "mediaType", "config", "layers"}
    assert found["schemaVersion"] == 2
    assert found["mediaType"] == f"{OCI}.manifest.v1+json"
    assert found["config"]["mediaType"] == f"{OCI}.config.v1+json"
    assert found["config"]["digest"] == IMAGE.id
    assert len(found["layers"]) == 3
    for descriptor in (found["config"], *found["layers"]):
        assert descriptor.keys() == {"mediaType", "digest", "size"}
        assert re.fullmatch(
            r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}", descriptor["mediaType"]
        )
        assert re.fullmatch("sha256:[a-f0-9]{64}", descriptor["digest"])
        status, _, body = ask(registry.port, "GET", f"/v2/{name}/blobs/{descriptor['digest']}")
        assert (status, len(body), digest_of(body)) == (200, descriptor["size"], descriptor["digest"])
    assert {layer["mediaType"] for layer in found["layers"]} == {f"{OCI}.layer.v1.tar+gzip"}


# What breaks


def test_an_upload_that_breaks_is_finished(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    proxy.faults += [Fault("PATCH", "/uploads/", cut_sending_after=count) for count in (3_000_000, 1_000_000)]
    store.push("app:1", f"{proxy.host}/{name}:1")
    assert is_in(registry, name, tmp_path)
    assert proxy.count("PATCH", "/uploads/") == 3


def test_an_upload_that_breaks_leaves_no_threads(store: Store, proxy: Proxy, name: str) -> None:
    """Where they are ended by a garbage collection, that may be in a thread which others wait for."""
    proxy.faults.append(Fault("PATCH", "/uploads/", cut_sending_after=6_000_000))
    gc.disable()
    try:
        store.push("app:1", f"{proxy.host}/{name}:1")
        assert not [thread for thread in threading.enumerate() if thread.name.startswith("layerstore-")]
    finally:
        gc.enable()


def test_an_upload_goes_on_where_the_registry_says(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    proxy.faults.append(Fault("PATCH", "/uploads/", keep_after=3_000_000))
    store.push("app:1", f"{proxy.host}/{name}:1")
    first, second = (request.body_bytes for request in proxy.requests if request.method == "PATCH")
    size = max(layer["size"] for layer in manifest(registry, name)["layers"])
    assert (first, second) == (3_000_000, size - 3_000_000)
    assert is_in(registry, name, tmp_path)


@pytest.mark.needs_tool("openssl")
def test_a_token_that_ends_during_an_upload_is_replaced(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    with TokenServer(tmp_path) as tokens:
        field = {"WWW-Authenticate": f'Bearer realm="{tokens.realm}",service="s",error="invalid_token"'}
        proxy.faults.append(Fault("PATCH", "/uploads/", times=99, status=401, fields=field))
        with pytest.raises(RegistryError, match="wants to be shown a new token"):
            store.push("app:1", f"{proxy.host}/{name}:1")
        proxy.faults[:] = [Fault(method, "/uploads/", status=401, fields=field) for method in ("POST", "PATCH")]
        del tokens.asked[:]
        store.push("app:1", f"{proxy.host}/{name}:1")
        assert len(tokens.asked) == 2
    assert is_in(registry, name, tmp_path)


def test_an_upload_of_which_all_arrived_is_only_finished(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    """The answer is lost; asked, the registry says that it has everything."""

    def lose(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        end = next(request.body_bytes for request in proxy.requests if request.method == "PATCH") - 1
        proxy.kept.append({"Location": fields["Location"], "Range": f"0-{end}"})
        return 503, HASTE, b""

    proxy.faults.append(Fault("PATCH", "/uploads/", change=lose))
    store.push("app:1", f"{proxy.host}/{name}:1")
    assert [request.body_bytes > 0 for request in proxy.requests if request.method == "PATCH"] == [True, False]
    assert is_in(registry, name, tmp_path)


@pytest.mark.parametrize(("method", "part"), [("HEAD", "/blobs/"), ("POST", "/uploads/"), ("PATCH", ""), ("PUT", "")])
def test_errors_that_pass_are_waited_for(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path, method: str, part: str
) -> None:
    proxy.faults.append(Fault(method, part, times=2, status=503, fields=HASTE))
    store.push("app:1", f"{proxy.host}/{name}:1")
    assert is_in(registry, name, tmp_path)


def test_the_answer_to_the_last_request_is_lost(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    def lose(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 502, HASTE, b""

    proxy.faults.append(Fault("PUT", "/uploads/", times=4, change=lose))
    store.push("app:1", f"{proxy.host}/{name}:1")
    assert [proxy.count(method, "/uploads/") for method in ("POST", "PATCH", "PUT")] == [4, 1, 4]
    assert is_in(registry, name, tmp_path)


def test_a_push_that_fails_sets_no_tag_and_is_not_done_twice(
    store: Store, registry: Registry, proxy: Proxy, name: str, tmp_path: Path
) -> None:
    said = b'{"errors": [{"code": "DENIED", "message": "no room"}]}'
    proxy.faults.append(Fault("PUT", "/manifests/", status=413, body=said))
    with pytest.raises(RegistryError, match=r"413.*DENIED: no room"):
        store.push("app:1", f"{proxy.host}/{name}:1")
    assert ask(registry.port, "GET", f"/v2/{name}/manifests/1")[0] == 404
    del proxy.requests[:]
    store.push("app:1", f"{proxy.host}/{name}:1")
    assert sent_bytes(proxy) == 0
    assert is_in(registry, name, tmp_path)


def test_a_damaged_layer_is_not_pushed(store: Store, registry: Registry, proxy: Proxy, name: str) -> None:
    """A byte of a large content has changed on the disk: the tar is no longer the layer's."""
    objects = [path for path in (store.root / "objects").rglob("*") if path.is_file()]
    path = max(objects, key=lambda path: path.stat().st_size)
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.seek(8_000_000)
        byte = file.read(1)[0]
        file.seek(8_000_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(CorruptError):
        store.push("app:1", f"{proxy.host}/{name}:1")
    assert ask(registry.port, "GET", f"/v2/{name}/manifests/1")[0] == 404
    assert proxy.requests[-1].method in ("DELETE", "PUT", "PATCH", "POST")
    assert not [r for r in registry.requests() if r[0] == "PUT" and f"/v2/{name}/manifests" in r[1]]


@pytest.mark.parametrize("how", ["silent", "busy"])
@pytest.mark.parametrize("method", ["POST", "PATCH"])
def test_a_push_that_is_interrupted_ends(
    store: Store, proxy: Proxy, name: str, held: Held, how: str, method: str
) -> None:
    held.busy = how == "busy"
    proxy.faults.append(Fault(method, "/uploads/", times=99, change=held))
    command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "push", "app:1", f"{proxy.host}/{name}:1"]
    # Whoever runs the tests may have it ignore interrupts.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, preexec_fn=heed) as process:
        assert held.reached.wait(30)
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in said


@pytest.mark.parametrize("how", ["silent", "busy"])
def test_a_layer_that_fails_ends_the_others(store: Store, proxy: Proxy, name: str, held: Held, how: str) -> None:
    held.busy = how == "busy"
    proxy.faults.append(Fault("PATCH", "/uploads/", times=99, change=held))

    def fail(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert held.reached.wait(30)
        return 400, {}, b""

    proxy.faults.append(Fault("PUT", "/uploads/", times=99, change=fail))
    begun = time.monotonic()
    with pytest.raises(RegistryError, match="400 to PUT"):
        store.push("app:1", f"{proxy.host}/{name}:1")
    assert time.monotonic() - begun < 20


def test_what_cannot_be_pushed(store: Store, registry: Registry) -> None:
    with pytest.raises(NotFound, match="no image"):
        store.push("nothing", f"{registry.host}/x")
    with pytest.raises(InvalidInput, match="push to NAME"):
        store.push("app:1", f"{registry.host}/x@{digest_of(b'')}")
    with pytest.raises(LayerstoreError):
        store.push("app:1", "not a name")


@pytest.mark.parametrize("method", ["POST", "PATCH"])
@pytest.mark.parametrize("place", ["http://{host}/other/place", "file:///other/place", "https://["])
def test_an_upload_does_not_leave_tls(
    store: Store, registry: Registry, name: str, tmp_path: Path, method: str, place: str
) -> None:
    key, chain = certificate(tmp_path)
    with Proxy(registry.port, (key, chain)) as secure:

        def stay(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            return status, fields | {"Location": fields["Location"].replace("http:", "https:")}, body

        def leave(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            return status, fields | {"Location": place.format(host=secure.host)}, body

        secure.faults.append(Fault(method, "/uploads/", times=99, change=leave))
        secure.faults.append(Fault("POST", "/uploads/", times=99, change=stay))
        with pytest.raises(RegistryError, match=r"other/place, which is not followed|is no URL"):
            store.push("app:1", f"{secure.host}/{name}:1", ca_file=chain)
        assert not [request for request in secure.requests if "/other/place" in request.path]


@pytest.mark.parametrize("quiet", [[], ["-q"]])
@pytest.mark.parametrize("command", ["push", "pull"])
def test_what_the_registry_warns_of_is_shown_once(
    store: Store, registry: Registry, proxy: Proxy, name: str, command: str, quiet: list[str]
) -> None:
    """ "Warnings" of the distribution specification 1.1."""

    def warn(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        said = '299 - "say \\"no\\" to 1.0", 110 - "stale", 299 - "to be \x1b gone"'
        return status, fields | {"Warning": said}, body

    remote = f"{proxy.host}/{name}:1"
    store.push("app:1", remote)
    proxy.faults += [Fault(method, "", times=99, change=warn) for method in ("HEAD", "GET", "PUT")]
    arguments = ["push", *quiet, "app:1", remote] if command == "push" else ["pull", *quiet, remote]
    done = subprocess.run(
        [sys.executable, "-m", "layerstore", "--root", str(store.root), *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0
    warns = "layerstore: the registry warns:"
    assert done.stderr.splitlines() == [f'{warns} say "no" to 1.0', f"{warns} to be   gone"]


# What others make of it


def run(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.peers
@pytest.mark.needs_tool("skopeo")
@pytest.mark.parametrize("form", ["oci", "docker-archive", "dir"])
def test_skopeo_copies_what_was_pushed(store: Store, registry: Registry, name: str, tmp_path: Path, form: str) -> None:
    store.push("app:1", f"{registry.host}/{name}:1")
    target = f"{form}:{tmp_path}/copied" + {"oci": ":app", "docker-archive": ".tar:app:1", "dir": ""}[form]
    run("skopeo", "copy", "--src-tls-verify=false", f"docker://{registry.host}/{name}:1", target)
    config = json.loads(run("skopeo", "inspect", "--raw", "--config", target))
    assert config == json.loads(IMAGE.config)
    if form != "dir":
        with Store(tmp_path / "second", create=True) as second:
            (image,) = second.load(tmp_path / ("copied.tar" if form == "docker-archive" else "copied"))
            assert image.id == IMAGE.id


@pytest.mark.peers
@pytest.mark.needs_tool("skopeo")
@pytest.mark.parametrize("form", ["oci", "v2s2"])
def test_what_skopeo_pushed_is_pulled(store: Store, registry: Registry, name: str, tmp_path: Path, form: str) -> None:
    layout = write_directory(oci_files([IMAGE], "gzip"), tmp_path / "layout")
    remote = f"docker://{registry.host}/{name}:1"
    run("skopeo", "copy", "--dest-tls-verify=false", "--format", form, f"oci:{layout}:app:1", remote)
    found = store.pull(f"{registry.host}/{name}:1")
    assert json.loads(IMAGE.config) == found.config.document
    assert list(found.diff_ids) == IMAGE.diff_ids
