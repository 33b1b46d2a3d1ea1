"""Pulls from a real registry: what is fetched, what is verified, what is refused, and connections that break."""

import contextlib
import errno
import json
import os
import pty
import resource
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import images
import pytest
from beside import rows
from images import DOCKER, OCI, Image, compressed, digest_of, write_directory
from layer_model import write_tar
from registries import Fault, Proxy, Registry, ask, hurry, layer_of, manifest_of, put_blob, put_image, put_manifest

from layerstore import Progress, Store
from layerstore.errors import DigestMismatch, InvalidInput, LayerstoreError, LimitExceeded, NotFound, RegistryError
from layerstore.registry import downloads, transport

pytestmark = pytest.mark.needs_tool("docker-registry")
HASTE = {"Retry-After": "0"}
IMAGE = Image([layer_of(1), layer_of(2), layer_of(3), layer_of(4)])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("registry")) as started:
        put_image(started.port, "app", "1", IMAGE)
        yield started


@pytest.fixture
def proxy(registry: Registry) -> Iterator[Proxy]:
    with Proxy(registry.port) as started:
        yield started


def is_whole(store: Store, image: Image = IMAGE) -> bool:
    found = store.image(image.id)
    tars = [b"".join(found.layer_tar(diff_id)) for diff_id in found.diff_ids]
    return tars == list(image.layers)


def blob_of(image: Image, number: int, compression: str = "gzip") -> str:
    return digest_of(compressed(image.layers[number], compression))


# What comes


def test_a_blob_that_cannot_be_written_is_named(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int, data: Any, position: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = f"127.0.0.1:{registry.port}/app:1"
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "write_at", full)
        with pytest.raises(OSError, match=f"No space left on device: '{store.root}/downloads/"):
            store.pull(name)
    store.pull(name)
    assert is_whole(store)


@pytest.mark.parametrize("compression", images.COMPRESSIONS)
@pytest.mark.parametrize("family", [OCI, DOCKER])
def test_an_image_comes_as_it_is(store: Store, registry: Registry, compression: str, family: str) -> None:
    repository = f"all/{compression.replace(':', '-')}-{'oci' if family == OCI else 'docker'}"
    put_image(registry.port, repository, "x", IMAGE, compression, family)
    image = store.pull(f"{registry.host}/{repository}:x")
    assert image.id == IMAGE.id
    assert image.names == [f"{registry.host}/{repository}:x"]
    assert is_whole(store)


def test_a_pull_by_digest_gives_no_name(store: Store, registry: Registry) -> None:
    digest = put_image(registry.port, "app", "1", IMAGE)
    image = store.pull(f"{registry.host}/app@{digest}")
    assert (image.id, image.names) == (IMAGE.id, [])
    assert store.image(f"whatever@{digest}").id == IMAGE.id
    assert store.pull(f"{registry.host}/app:named@{digest}").names == [f"{registry.host}/app:named"]


def test_layers_that_are_stored_are_not_fetched(store: Store, registry: Registry, proxy: Proxy, tmp_path: Path) -> None:
    below = Image(IMAGE.layers[:3])
    store.load(write_directory(images.oci_files([below]), tmp_path / "below"))
    told: list[Progress] = []
    store.pull(f"{proxy.host}/app:1", progress=told.append)
    assert {p.what for p in told if p.stage == "stored"} == set(IMAGE.diff_ids[:3])
    fetched = {request.path.rpartition("/")[2] for request in proxy.requests if "/blobs/" in request.path}
    assert fetched == {IMAGE.id, blob_of(IMAGE, 3)}
    assert is_whole(store)


def test_what_is_there_is_not_fetched_again(store: Store, proxy: Proxy) -> None:
    store.pull(f"{proxy.host}/app:1")
    del proxy.requests[:]
    store.pull(f"{proxy.host}/app:1")
    assert [request.method for request in proxy.requests] == ["GET", "GET"]


def test_progress_is_told_of_every_layer(store: Store, registry: Registry) -> None:
    told: list[Progress] = []
    store.pull(f"{registry.host}/app:1", progress=told.append)
    assert told[0].stage == "manifest"
    for number, diff_id in enumerate(IMAGE.diff_ids):
        mine = [progress for progress in told if progress.what == diff_id]
        size = len(compressed(IMAGE.layers[number], "gzip"))
        assert mine[0].stage == "waiting"
        assert mine[-1] == Progress("imported", diff_id, size, size)
        for stage in ("download", "import"):
            done = [progress.done_bytes for progress in mine if progress.stage == stage]
            assert done == sorted(done)
            assert done[-1] == size


# Platforms


def test_an_index_gives_the_image_for_the_platform(store: Store, registry: Registry) -> None:
    by_platform = {}
    manifests = []
    for number, name in enumerate(["linux/amd64", "linux/arm64/v8", "linux/arm/v5", "linux/arm/v7", "windows/amd64"]):
        system, architecture, *variant = name.split("/")
        image = by_platform[name] = Image([layer_of(10 + number, 1000)], document={"architecture": architecture})
        digest = put_image(registry.port, "multi", f"tag{number}", image)
        platform = {"os": system, "architecture": architecture, **({"variant": variant[0]} if variant else {})}
        size = len(json.dumps(manifest_of(image)).encode())
        manifests.append({"mediaType": f"{OCI}.manifest.v1+json", "digest": digest, "size": size, "platform": platform})
    index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": manifests}
    digest = put_manifest(registry.port, "multi", "all", index)
    name = f"{registry.host}/multi:all"
    wanted = {"linux/arm64": "linux/arm64/v8", "linux/arm/v6": "linux/arm/v5", "linux/arm": "linux/arm/v7"}
    for asked, given in {"linux/amd64": "linux/amd64", "windows/amd64": "windows/amd64", **wanted}.items():
        assert store.pull(name, platform=asked).id == by_platform[given].id
    assert store.image(name).id == by_platform["linux/arm/v7"].id
    with pytest.raises(NotFound, match=r"it has linux/amd64, linux/arm/v5.*--platform"):
        store.pull(name, platform="linux/riscv64")
    with pytest.raises(InvalidInput, match="is no platform"):
        store.pull(name, platform="linux")


@pytest.mark.parametrize(
    ("config", "fitting", "others"),
    [
        (
            {"architecture": "amd64"},
            ["linux/amd64", "linux/amd64/v2"],
            ["linux/arm64", "windows/amd64", "linux/arm/v7"],
        ),
        ({"architecture": "arm"}, ["linux/arm", "linux/arm/v6"], ["linux/arm64"]),
        ({"architecture": "arm", "variant": "v6"}, ["linux/arm", "linux/arm/v6", "linux/arm/v7"], ["linux/arm/v5"]),
        ({"architecture": "", "os": ""}, ["linux/arm64"], []),
    ],
)
@pytest.mark.parametrize("is_alone", [True, False])
def test_what_is_no_choice_is_for_the_platform_that_is_named(
    store: Store, registry: Registry, config: dict[str, Any], fitting: list[str], others: list[str], is_alone: bool
) -> None:
    image = Image([layer_of(20, 1000)], document=config)
    digest = put_image(registry.port, "alone", "1", image)
    if not is_alone:
        manifest = {
            "mediaType": f"{OCI}.manifest.v1+json",
            "digest": digest,
            "size": len(json.dumps(manifest_of(image))),
        }
        index = {"schemaVersion": 2, "mediaType": f"{OCI}.index.v1+json", "manifests": [manifest]}
        put_manifest(registry.port, "alone", "1", index)
    for platform in others:
        with pytest.raises(
            NotFound, match=f"has no image for {platform}; it is one for linux/{config['architecture']}"
        ):
            store.pull(f"{registry.host}/alone:1", platform=platform)
    assert store.images() == []
    for platform in [*fitting, None]:
        assert store.pull(f"{registry.host}/alone:1", platform=platform).id == image.id


# What is refused


def refused(store: Store, host: str, kind: type[LayerstoreError], text: str) -> None:
    before = images.store_state(store.root)[1]
    with pytest.raises(kind, match=text):
        store.pull(f"{host}/app:1")
    assert images.store_state(store.root)[1] == before


def change_manifest(proxy: Proxy, media_type: str = "", **more: Any) -> None:
    def change(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        document = {**json.loads(body), **more}
        data = json.dumps({key: value for key, value in document.items() if value is not None}).encode()
        fields = {name: value for name, value in fields.items() if name not in ("Docker-Content-Digest", "Etag")}
        return status, fields | {"Content-Type": media_type or fields["Content-Type"], "Content-Length": ""}, data

    def fixed(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        status, fields, body = change(status, fields, body)
        return status, fields | {"Content-Length": str(len(body))}, body

    proxy.faults.append(Fault("GET", "/manifests/", change=fixed))


CONFIG, LAYERS = manifest_of(IMAGE)["config"], manifest_of(IMAGE)["layers"]


@pytest.mark.parametrize(
    ("more", "kind", "text"),
    [
        ({"manifests": []}, InvalidInput, "both an index and an image manifest"),
        (
            {"config": {**manifest_of(IMAGE)["config"], "mediaType": "text/plain"}},
            InvalidInput,
            "not a container image",
        ),
        ({"layers": LAYERS[:3]}, InvalidInput, "3 layers, but its config has 4"),
        ({"layers": [{**LAYERS[0], "digest": "sha256:../../x"}, *LAYERS[1:]]}, InvalidInput, "not a digest"),
        ({"layers": [{**LAYERS[0], "digest": "sha512:" + "0" * 128}, *LAYERS[1:]]}, InvalidInput, "not a digest"),
        ({"layers": [{**LAYERS[0], "size": -1}, *LAYERS[1:]]}, InvalidInput, "not a number of bytes"),
        ({"layers": [{**LAYERS[0], "size": 7}, *LAYERS[1:]]}, DigestMismatch, "where its manifest promises 7"),
        ({"layers": [LAYERS[1], LAYERS[0], *LAYERS[2:]]}, DigestMismatch, "diff_id"),
        ({"layers": [{**LAYERS[0], "mediaType": "image/png"}, *LAYERS[1:]]}, InvalidInput, "image/png"),
        (
            {"layers": [{**LAYERS[0], "mediaType": f"{DOCKER}.image.rootfs.foreign.diff.tar.gzip"}, *LAYERS[1:]]},
            InvalidInput,
            "may not be given on",
        ),
        ({"mediaType": f"{OCI}.index.v1+json"}, InvalidInput, "by the registry; no image"),
        ({"mediaType": "application/vnd.example"}, InvalidInput, "vnd.example"),
        ({"mediaType": []}, InvalidInput, "no text"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused(
    store: Store, proxy: Proxy, more: dict[str, Any], kind: type[LayerstoreError], text: str
) -> None:
    change_manifest(proxy, **more)
    refused(store, proxy.host, kind, text)


def test_schema_1_is_refused(store: Store, proxy: Proxy) -> None:
    change_manifest(proxy, "application/vnd.docker.distribution.manifest.v1+prettyjws")
    refused(store, proxy.host, InvalidInput, "schema 1")


@pytest.mark.parametrize(
    ("body", "kind", "text"),
    [
        (b"{" + b" " * (5 << 20) + b"}", LimitExceeded, "manifest_bytes.*4194304"),
        (b"[" * 100_000, InvalidInput, "not JSON"),
        (b"<html>", InvalidInput, "not JSON"),
        (b"[]", InvalidInput, "not a JSON object"),
    ],
)
def test_what_is_no_manifest_is_refused(
    store: Store, proxy: Proxy, body: bytes, kind: type[LayerstoreError], text: str
) -> None:
    fields = {"Content-Type": f"{OCI}.manifest.v1+json"}
    proxy.faults.append(Fault("GET", "/manifests/", status=200, fields=fields, body=body))
    refused(store, proxy.host, kind, text)


def test_another_manifest_than_the_digest_is_refused(store: Store, proxy: Proxy) -> None:
    digest = digest_of(b"")
    fields = {"Content-Type": f"{OCI}.manifest.v1+json", "Docker-Content-Digest": digest}
    data = json.dumps(manifest_of(IMAGE)).encode()
    proxy.faults.append(Fault("GET", "/manifests/", times=2, status=200, fields=fields, body=data))
    with pytest.raises(DigestMismatch, match=f"gives a manifest with digest {digest_of(data)} for {digest}"):
        store.pull(f"{proxy.host}/app@{digest}")
    refused(store, proxy.host, DigestMismatch, f"says {digest}")


def test_wrong_bytes_are_refused_and_fetched_again(store: Store, proxy: Proxy) -> None:
    def spoil(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return status, fields, body[:100_000] + bytes([body[100_000] ^ 1]) + body[100_001:]

    proxy.faults.append(Fault("GET", blob_of(IMAGE, 1), change=spoil))
    with pytest.raises(LayerstoreError):
        store.pull(f"{proxy.host}/app:1")
    assert store.images() == []
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)


def test_an_image_that_is_not_there_is_said_so(store: Store, registry: Registry, proxy: Proxy) -> None:
    with pytest.raises(NotFound, match="has no image app with the tag latest"):
        store.pull(f"{registry.host}/app")
    with pytest.raises(NotFound, match=f"has no image app with the digest {digest_of(b'')}"):
        store.pull(f"{registry.host}/app@{digest_of(b'')}")
    said = b'{"errors": [{"code": "NAME_UNKNOWN", "message": "repository name not known to registry"}]}'
    proxy.faults.append(Fault("GET", "/manifests/", status=404, body=said))
    with pytest.raises(NotFound, match="has no repository nothing; is its name right"):
        store.pull(f"{proxy.host}/nothing")


# What breaks


def ranges(proxy: Proxy, digest: str) -> list[str | None]:
    return [request.fields.get("Range") for request in proxy.requests if digest in request.path]


def test_a_download_goes_on_where_it_was_cut_off(store: Store, proxy: Proxy) -> None:
    digest = blob_of(IMAGE, 1)
    proxy.faults += [Fault("GET", digest, cut_after=270_000), Fault("GET", digest, cut_after=10_000)]
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)
    assert ranges(proxy, digest) == [None, "bytes=270000-", "bytes=280000-"]


def test_a_download_begins_again_where_ranges_are_not_known(store: Store, proxy: Proxy) -> None:
    def whole(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return ask(proxy.upstream, "GET", f"/v2/app/blobs/{digest}")

    digest = blob_of(IMAGE, 1)
    proxy.faults += [Fault("GET", digest, cut_after=270_000), Fault("GET", digest, change=whole)]
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)


def test_a_range_that_was_not_asked_for_is_refused(store: Store, proxy: Proxy) -> None:
    digest = blob_of(IMAGE, 1)
    wrong = Fault("GET", digest, status=206, fields={"Content-Range": "bytes 1-9/10"}, body=b"123456789")
    proxy.faults += [Fault("GET", digest, cut_after=270_000), wrong]
    refused(store, proxy.host, RegistryError, "for bytes 270000 and on")


@pytest.mark.parametrize("part", ["/manifests/", IMAGE.id, blob_of(IMAGE, 0)])
@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_errors_that_pass_are_waited_for(store: Store, proxy: Proxy, part: str, status: int) -> None:
    proxy.faults.append(Fault("GET", part, times=3, status=status, fields=HASTE))
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)
    assert proxy.count("GET", part) == 4


def test_errors_that_stay_are_told(store: Store, proxy: Proxy) -> None:
    said = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "come back \\u001b later"}]}'
    proxy.faults.append(Fault("GET", "/manifests/", times=99, status=429, fields=HASTE, body=said))
    refused(store, proxy.host, RegistryError, r"429 to GET /v2/app/manifests/1 \(TOOMANYREQUESTS: come back   later\)")
    assert proxy.count("GET", "/manifests/") == 5


def test_a_signature_is_not_told(
    store: Store, registry: Registry, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch, first_seconds=0)
    with Proxy(registry.port) as other:
        path = f"/v2/app/blobs/{blob_of(IMAGE, 0)}"
        redirected(proxy, f"http://{other.host}{path}?signature=secret")
        size = len(compressed(IMAGE.layers[0], "gzip"))
        fields = {"Transfer-Encoding": "chunked", "Content-Length": str(size)}
        other.faults.append(Fault("GET", path, times=99, status=200, fields=fields, body=b"5\r\nshort\r\n0\r\n\r\n"))
        with pytest.raises(RegistryError, match="ended after") as told:
            store.pull(f"{proxy.host}/app:1")
        assert "secret" not in str(told.value)


def test_a_server_that_wants_to_be_left_alone_for_long_is(store: Store, proxy: Proxy) -> None:
    proxy.faults.append(Fault("GET", "/manifests/", times=99, status=503, fields={"Retry-After": "3600"}))
    refused(store, proxy.host, RegistryError, "503")
    assert proxy.count("GET", "/manifests/") == 1


def test_what_a_failed_pull_fetched_is_not_fetched_again(store: Store, proxy: Proxy) -> None:
    last = blob_of(IMAGE, 3)
    proxy.faults += [Fault("GET", last, cut_after=270_000), Fault("GET", last, times=99, status=503, fields=HASTE)]
    refused(store, proxy.host, RegistryError, "503")
    proxy.faults.clear()
    del proxy.requests[:]
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)
    assert ranges(proxy, last) == ["bytes=270000-"]
    assert proxy.count("GET", "/blobs/") == 2  # that one and the config
    assert os.listdir(store.layout.downloads) == []


@pytest.mark.parametrize("whole", [False, True])
def test_spoiled_bytes_of_an_earlier_pull_are_fetched_again(store: Store, proxy: Proxy, whole: bool) -> None:
    os.makedirs(store.layout.downloads, exist_ok=True)
    for number in (1, 3):
        blob = compressed(IMAGE.layers[number], "gzip")
        kept = blob[: len(blob) if whole else 250_000]
        path = Path(store.layout.downloads, digest_of(blob).removeprefix("sha256:"))
        path.write_bytes(kept[:-20_000] + bytes(20_000))
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)
    for number in (1, 3):
        assert ranges(proxy, blob_of(IMAGE, number))[-1] is None
    assert os.listdir(store.layout.downloads) == []


def test_wrong_bytes_are_fetched_once_more_and_not_for_ever(store: Store, proxy: Proxy) -> None:
    def spoil(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return status, fields, bytes(len(body))

    digest = blob_of(IMAGE, 1)
    proxy.faults += [Fault("GET", digest, cut_after=250_000), Fault("GET", digest, times=99, change=spoil)]
    Path(store.layout.downloads).mkdir(exist_ok=True)
    Path(store.layout.downloads, digest.removeprefix("sha256:")).write_bytes(bytes(1000))
    refused(store, proxy.host, LayerstoreError, ".")
    assert None in ranges(proxy, digest)
    assert len(ranges(proxy, digest)) < 5


def test_garbage_collection_takes_what_failed_pulls_left(store: Store, proxy: Proxy) -> None:
    last = blob_of(IMAGE, 3)
    proxy.faults += [Fault("GET", last, times=99, status=503, fields=HASTE)]
    refused(store, proxy.host, RegistryError, "503")
    left = sum(len(compressed(tar, "gzip")) for tar in IMAGE.layers[:3])
    assert len(os.listdir(store.layout.downloads)) == 3
    assert store.collect_garbage().freed_bytes >= left
    assert os.listdir(store.layout.downloads) == []


def test_two_pulls_of_one_image_at_once(registry: Registry, tmp_path: Path) -> None:
    found: list[str] = []
    with Store(tmp_path / "store", create=True) as store:
        threads = [
            threading.Thread(target=lambda: found.append(store.pull(f"{registry.host}/app:1").id)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [IMAGE.id] * 4
        assert is_whole(store)
        assert os.listdir(store.layout.downloads) == []


# Redirects


def redirected(proxy: Proxy, target: str, times: int = 99) -> None:
    def change(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return 307, {"Location": target}, b""

    proxy.faults.append(Fault("GET", blob_of(IMAGE, 0), times=times, change=change))


def test_a_redirect_is_followed(store: Store, registry: Registry, proxy: Proxy) -> None:
    with Proxy(registry.port) as other:
        redirected(proxy, f"http://{other.host}/v2/app/blobs/{blob_of(IMAGE, 0)}")
        store.pull(f"{proxy.host}/app:1")
        assert is_whole(store)
        assert other.count("GET", "/blobs/") == 1


def test_redirects_that_lead_nowhere_are_told(store: Store, proxy: Proxy) -> None:
    redirected(proxy, f"/v2/app/blobs/{blob_of(IMAGE, 0)}")
    refused(store, proxy.host, RegistryError, "redirects more than 5 times")
    proxy.faults.clear()
    redirected(proxy, "file:///etc/passwd")
    refused(store, proxy.host, RegistryError, "which is not followed")


def test_a_layer_blob_that_is_known_is_remembered(store: Store, registry: Registry) -> None:
    store.pull(f"{registry.host}/app:1")
    known = rows(store.layout, "SELECT diff_id, digest FROM layer_blobs")
    assert set(known) == {(IMAGE.diff_ids[number], blob_of(IMAGE, number)) for number in range(4)}
    places = rows(store.layout, "SELECT DISTINCT registry, repository FROM blob_places")
    assert places == [(registry.host, "app")]
    store.remove_image(IMAGE.id)
    store.collect_garbage()
    assert rows(store.layout, "SELECT count(*) FROM layer_blobs, blob_places") == [(0,)]


def test_few_files_are_open_at_once(registry: Registry, tmp_path: Path) -> None:
    """However many layers there are, and also while none can be stored as the first one does not come."""
    image = Image([layer_of(number, 100) for number in range(300)])
    put_image(registry.port, "many", "1", image)
    with Proxy(registry.port) as proxy:
        go_on = threading.Event()

        def wait(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
            go_on.wait(1)
            return status, fields, body

        proxy.faults.append(Fault("GET", blob_of(image, 0), change=wait))
        command = [sys.executable, "-m", "layerstore", "--root", str(tmp_path), "pull", "-q", f"{proxy.host}/many:1"]
        limit = partial(resource.setrlimit, resource.RLIMIT_NOFILE, (128, 128))
        subprocess.run(command, check=True, preexec_fn=limit, timeout=60)
    with Store(tmp_path) as store:
        assert is_whole(store, image)
        assert os.listdir(store.layout.downloads) == []


def test_an_empty_layer_comes(store: Store, registry: Registry) -> None:
    image = Image([write_tar([]), layer_of(1)])
    put_blob(registry.port, "empty", b"")
    put_image(registry.port, "empty", "1", image)
    assert store.pull(f"{registry.host}/empty:1").id == image.id


# By command


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_pull_that_is_ended_goes_on_the_next_time(store: Store, proxy: Proxy, number: signal.Signals) -> None:
    last = blob_of(IMAGE, 3)
    waiting, go_on = threading.Event(), threading.Event()

    def wait(status: int, fields: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        waiting.set()
        go_on.wait(30)
        return status, fields, body

    proxy.faults.append(Fault("GET", last, change=wait))
    command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "pull", "-q", f"{proxy.host}/app:1"]
    # Whoever runs the tests may have it ignore interrupts.
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heed)
    assert waiting.wait(30)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    go_on.set()
    assert process.returncode == (130 if number == signal.SIGINT else -signal.SIGKILL)
    assert b"Traceback" not in said
    assert store.images() == []
    del proxy.requests[:]
    store.pull(f"{proxy.host}/app:1")
    assert is_whole(store)
    assert proxy.count("GET", "/blobs/") < 6
    assert os.listdir(store.layout.downloads) == []


def test_a_terminal_shows_bars_above_which_are_lines(store: Store, registry: Registry) -> None:
    command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "pull", f"{registry.host}/app:1"]
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (30, 100))
    with subprocess.Popen(command, stdout=slave, stderr=slave) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while piece := os.read(master, 65536):
                shown += piece
    os.close(master)
    assert process.returncode == 0, shown
    for diff_id in IMAGE.diff_ids:
        assert f"{diff_id[7:19]}: Downloading:".encode() in shown
        assert f"{diff_id[7:19]}: Pull complete\r\n".encode() in shown


@pytest.mark.parametrize(
    ("field", "seconds"), [("5", 5), (" 7 ", 7), ("\x1c1", 1), ("", None), ("\xb2", None), ("soon", None)]
)
def test_a_registry_may_ask_to_wait_in_any_words(field: str, seconds: float | None) -> None:
    assert transport._retry_after(field) == seconds
