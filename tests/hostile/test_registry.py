"""Registries that lie, do not end, or lead elsewhere."""

import contextlib
import gzip
import http.server
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tarbytes as tb
from cases import case
from hostile import Place, raises
from images import OCI, Image, compressed, digest_of
from registries import hurry, manifest_of

from layerstore.errors import AccessDenied, DigestMismatch, InvalidInput, LimitExceeded, NotFound, RegistryError
from layerstore.registry import transport

CONFUSION = "CVE-2021-41190 (OCI distribution)"
LEAK = "CVE-2020-15157 (containerd)"
IMAGE = Image([tb.archive(tb.member(b"one", b"1" * 1000))])
BLOB = compressed(IMAGE.layers[0], "gzip")
MANIFEST = manifest_of(IMAGE)

Answer = tuple[int, dict[str, str], bytes]


class Registry:
    """Gives what it is told to. `answers` has an answer, or what makes one of a request, for each path."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, str | None]] = []
        self.answers: dict[str, Any] = {"/v2/": (200, {}, b"")}
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    super().handle()

            def do_GET(self) -> None:
                owner.asked.append((self.command, self.path, self.headers.get("Authorization")))
                found = owner.answers.get(self.path, (404, {}, b"{}"))
                if callable(found):
                    found(self)
                    return
                status, fields, body = found
                self.send_response_only(status)
                for name, value in ({"Content-Length": str(len(body))} | fields).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "Registry":
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def give(self, manifest: bytes | dict[str, Any] = MANIFEST, kind: str = "", **fields: str) -> None:
        """An image "app:1": its manifest and blobs."""
        data = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        more = {
            "Content-Type": kind or f"{OCI}.manifest.v1+json",
            **{k.replace("_", "-"): v for k, v in fields.items()},
        }
        self.answers["/v2/app/manifests/1"] = 200, more, data
        for blob in (IMAGE.config, BLOB):
            self.answers[f"/v2/app/blobs/{digest_of(blob)}"] = 200, {}, blob


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as made:
        made.give()
        yield made


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hurry(monkeypatch, first_seconds=0.001, READ_SECONDS=1.0)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "auth.json"))
    (tmp_path / "auth.json").write_text("{}")


def refuses(place: Place, registry: Registry, error: type[Exception], told: str) -> str:
    downloads = place.store.root / "downloads"
    with place.untouched():
        message = raises(lambda: place.store.pull(f"{registry.host}/app:1"), error, told)
        for name in os.listdir(downloads) if downloads.is_dir() else []:
            (downloads / name).unlink()
        if downloads.is_dir():
            downloads.rmdir()
    return message


def changed(change: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(json.dumps(MANIFEST))
    change(manifest)
    return manifest


def layer_with(**fields: Any) -> dict[str, Any]:
    return changed(lambda manifest: manifest["layers"][0].update(fields))


def wrong(name: str, manifest: Any, error: type[Exception], told: str, stands_for: str = "", kind: str = "") -> Any:
    return pytest.param(manifest, kind, error, told, id=name, marks=case(name, "refused", stands_for))


OUT = "sha256:" + "../" * 21 + "x"
WRONG = [
    wrong(
        "a manifest that is an index, too", changed(lambda m: m.update(manifests=[])), InvalidInput, "both", CONFUSION
    ),
    wrong(
        "a manifest that is sent as an index",
        MANIFEST,
        InvalidInput,
        "by the registry",
        CONFUSION,
        f"{OCI}.index.v1+json",
    ),
    wrong("a digest that leads out", layer_with(digest=OUT), InvalidInput, "digest of layer 0", "CVE-2024-3727"),
    wrong(
        "a digest of the config that is a URL",
        changed(lambda m: m["config"].update(digest="http://127.0.0.1/x")),
        InvalidInput,
        "digest of the manifest's config",
        "CVE-2024-3727 (containers/image)",
    ),
    wrong("a digest with a query", layer_with(digest=f"{digest_of(BLOB)}?x=y"), InvalidInput, "digest of layer 0"),
    wrong(
        "a key twice",
        json.dumps(MANIFEST).encode().replace(b'"layers"', b'"layers": [], "layers"', 1),
        InvalidInput,
        "twice",
    ),
    wrong("a manifest of 5 MiB", b" " * (5 << 20), LimitExceeded, "manifest of 1.*manifest_bytes"),
    wrong("a config of 2^40 bytes", changed(lambda m: m["config"].update(size=1 << 40)), LimitExceeded, "config_bytes"),
    wrong("a layer of 2^60 bytes", layer_with(size=1 << 60), LimitExceeded, "sha256:.*layer_bytes"),
    wrong("a layer of less bytes than it has", layer_with(size=10), DigestMismatch, "promises 10"),
    wrong("a layer of more bytes than it has", layer_with(size=len(BLOB) + 5), DigestMismatch, "promises"),
    wrong(
        "a layer of the config's bytes",
        layer_with(digest=digest_of(IMAGE.config), size=len(IMAGE.config)),
        Exception,
        ".",
    ),
    wrong(
        "a foreign layer with a URL",
        layer_with(
            mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", urls=["http://127.0.0.1:1/steal"]
        ),
        InvalidInput,
        "foreign.*not be given on",
        LEAK,
    ),
]


@pytest.mark.parametrize(("manifest", "kind", "error", "told"), WRONG)
def test_a_manifest_is_refused(
    place: Place, registry: Registry, manifest: Any, kind: str, error: type[Exception], told: str
) -> None:
    registry.give(manifest, kind)
    refuses(place, registry, error, told)
    assert not [path for _, path, _ in registry.asked if ".." in path or "steal" in path]


@case(
    "a Docker-Content-Digest that leads out", "refused or passed over, never a path", "CVE-2024-3727 (containers/image)"
)
def test_a_digest_field(place: Place, registry: Registry) -> None:
    registry.give(Docker_Content_Digest=OUT)
    refuses(place, registry, DigestMismatch, "says sha256:")


@case("an index that names itself", "refused", "CVE-2021-41190 (OCI distribution)")
def test_an_index_of_indexes(place: Place, registry: Registry) -> None:
    kind = f"{OCI}.index.v1+json"
    data = json.dumps(MANIFEST).encode()
    for _ in range(12):
        registry.answers[f"/v2/app/manifests/{digest_of(data)}"] = 200, {"Content-Type": kind}, data
        child = {"mediaType": kind, "digest": digest_of(data), "size": len(data)}
        data = json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [child]}).encode()
    registry.give(data, kind)
    refuses(place, registry, LimitExceeded, "index_depth")
    assert len(registry.asked) < 10


@pytest.mark.parametrize(
    "to",
    [
        pytest.param("file:///etc/passwd", marks=case("a redirect to file:", "not followed")),
        pytest.param("ftp://127.0.0.1/x", marks=case("a redirect to ftp:", "not followed")),
        pytest.param("http://[::1", marks=case("a redirect to no URL", "not followed")),
        pytest.param("http://127.0.0.1:99999/x", marks=case("a redirect to no port", "not followed")),
        pytest.param("/v2/app/manifests/1", marks=case("a redirect to itself", "followed five times")),
    ],
)
def test_a_redirect(place: Place, registry: Registry, to: str) -> None:
    registry.answers["/v2/app/manifests/1"] = 307, {"Location": to}, b""
    refuses(place, registry, RegistryError, "leads to|redirects more than|no URL")


@case("a redirect of a layer to another host", "followed without the password", LEAK)
def test_no_password_along_a_redirect(place: Place, registry: Registry, tmp_path: Path) -> None:
    with Registry() as thief:
        registry.answers["/v2/app/manifests/1"] = 401, {"WWW-Authenticate": 'Basic realm="x"'}, b""
        (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": "YW5uOnNlY3JldA=="}}}))

        def guarded(handler: Any) -> None:
            is_known = handler.headers.get("Authorization")
            handler.send_response_only(307 if is_known else 401)
            handler.send_header(
                "Location" if is_known else "WWW-Authenticate",
                f"http://{thief.host}/x" if is_known else 'Basic realm="x"',
            )
            handler.send_header("Content-Length", "0")
            handler.end_headers()

        registry.answers["/v2/app/manifests/1"] = guarded
        refuses(place, registry, NotFound, "no image")
        assert [authorization for _, _, authorization in registry.asked if authorization]
        assert thief.asked
        assert not [authorization for _, _, authorization in thief.asked if authorization]


@pytest.mark.parametrize(
    "realm",
    [
        pytest.param("http://192.0.2.1/token", marks=case("a realm without TLS elsewhere", "not asked", LEAK)),
        pytest.param("file:///etc/passwd", marks=case("a realm that is a file", "not asked")),
        pytest.param("gopher://127.0.0.1/x", marks=case("a realm of another protocol", "not asked")),
        pytest.param("", marks=case("a realm that is nothing", "not asked")),
    ],
)
def test_a_realm(place: Place, registry: Registry, tmp_path: Path, realm: str) -> None:
    (tmp_path / "auth.json").write_text(json.dumps({"auths": {registry.host: {"auth": "YW5uOnNlY3JldA=="}}}))
    fields = {"WWW-Authenticate": f'Bearer realm="{realm}",service="s"'}
    registry.answers["/v2/app/manifests/1"] = 401, fields, b""
    refuses(place, registry, RegistryError, "nothing was sent|no URL")


@case("a challenge of escapes for the terminal", "told without them")
def test_a_challenge_of_escapes(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = 401, {"WWW-Authenticate": 'Bearer realm="\x1b[2Jhttps://x"'}, b""
    refuses(place, registry, RegistryError, r"x1b\[2J")


@pytest.mark.parametrize(
    "token",
    [
        pytest.param({"token": "x\r\nHost: evil"}, marks=case("a token with a newline", "refused")),
        pytest.param({"token": ["x"]}, marks=case("a token that is no text", "refused")),
        pytest.param([], marks=case("an answer that is no token", "refused")),
        pytest.param({"token": "x" * (2 << 20)}, marks=case("a token of 2 MiB", "refused")),
    ],
)
def test_a_token(place: Place, registry: Registry, token: Any) -> None:
    realm = f'Bearer realm="http://{registry.host}/token"'
    registry.answers["/v2/app/manifests/1"] = 401, {"WWW-Authenticate": realm}, b""
    registry.answers["/token"] = registry.answers["/token?scope=repository%3Aapp%3Apull"] = (
        200,
        {},
        json.dumps(token).encode(),
    )
    refuses(place, registry, (RegistryError, LimitExceeded), "token")  # type: ignore[arg-type]


def endless(handler: Any) -> None:
    """A body without a length that does not end."""
    handler.send_response_only(200)
    handler.send_header("Content-Type", f"{OCI}.manifest.v1+json")
    handler.end_headers()
    handler.close_connection = True
    with contextlib.suppress(OSError):
        while True:
            handler.wfile.write(b" " * 65_536)


@case("a manifest without end", "refused at the limit")
def test_a_manifest_without_end(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = endless
    refuses(place, registry, LimitExceeded, "manifest_bytes")


@case("an error without end", "refused; a little of it is read")
def test_an_error_without_end(place: Place, registry: Registry) -> None:
    def answer(handler: Any) -> None:
        handler.send_response_only(403)
        handler.end_headers()
        handler.close_connection = True
        with contextlib.suppress(OSError):
            while True:
                handler.wfile.write(b"<" * 65_536)

    registry.answers["/v2/app/manifests/1"] = answer
    refuses(place, registry, AccessDenied, "403|credentials")


@case("a config without end", "refused at the size that its manifest promises")
def test_a_config_without_end(place: Place, registry: Registry) -> None:
    registry.answers[f"/v2/app/blobs/{digest_of(IMAGE.config)}"] = endless
    refuses(place, registry, LimitExceeded, "more than")


@case("a layer without end", "refused at the size that its manifest promises")
def test_a_layer_without_end(place: Place, registry: Registry) -> None:
    registry.answers[f"/v2/app/blobs/{digest_of(BLOB)}"] = endless
    refuses(place, registry, DigestMismatch, "goes on after")


@case("a Content-Length that is more than comes", "asked for again, then refused")
def test_a_length_that_lies(place: Place, registry: Registry) -> None:
    def answer(handler: Any) -> None:
        handler.send_response_only(200)
        handler.send_header("Content-Length", str(len(BLOB)))
        handler.end_headers()
        handler.wfile.write(b"")
        handler.close_connection = True

    registry.answers[f"/v2/app/blobs/{digest_of(BLOB)}"] = answer
    refuses(place, registry, RegistryError, "blobs|connection")


@case("a Content-Length that is no number", "refused")
def test_a_length_that_is_none(place: Place, registry: Registry) -> None:
    registry.answers[f"/v2/app/blobs/{digest_of(BLOB)}"] = 200, {"Content-Length": "-5"}, b""
    refuses(place, registry, Exception, "promises|connection")


@case("a header of 1 MiB", "refused")
def test_a_header_without_end(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = 200, {"X": "x" * (1 << 20)}, b""
    refuses(place, registry, RegistryError, "connection")


@case("a thousand headers", "refused")
def test_many_headers(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = 200, {f"X-{number}": "x" for number in range(1000)}, b""
    refuses(place, registry, RegistryError, "connection")


@case("an answer that is no HTTP", "refused")
def test_no_http(place: Place, registry: Registry) -> None:
    def answer(handler: Any) -> None:
        handler.wfile.write(b"\x1b[31mSSH-2.0-x\r\n")
        handler.close_connection = True

    registry.answers["/v2/app/manifests/1"] = answer
    with place.untouched(), pytest.raises(RegistryError):
        place.store.pull(f"{registry.host}/app:1")


@case("an error of escapes for the terminal", "told without them")
def test_an_error_of_escapes(place: Place, registry: Registry) -> None:
    told = {"errors": [{"code": "X", "message": "\x1b]0;title\x07\x1b[2J"}]}
    registry.answers["/v2/app/manifests/1"] = 400, {}, json.dumps(told).encode()
    refuses(place, registry, RegistryError, "400")


@case("a body that is compressed on the way", "not decompressed: it is not what the digest is of")
def test_a_compressed_body(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = (
        200,
        {"Content-Type": f"{OCI}.manifest.v1+json", "Content-Encoding": "gzip"},
        gzip.compress(bytes(8 << 20)),
    )
    refuses(place, registry, InvalidInput, "not JSON")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is waited for as long as one would."""
    hurry(monkeypatch, PACE_SECONDS=0.2, tries=2)


def drip(head: bytes, body: bytes) -> Callable[[Any], None]:
    """An answer that comes a byte at a time, until two seconds are over."""

    def answer(handler: Any) -> None:
        handler.close_connection = True
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
        begin = time.monotonic()
        with contextlib.suppress(OSError):
            if head.startswith(b"HTTP/1.1 200 "):
                handler.wfile.write(whole[: -len(body)])
                whole = body
            for at in range(len(whole)):
                if time.monotonic() > begin + 2:
                    return
                handler.wfile.write(whole[at : at + 1])
                time.sleep(0.01)

    return answer


OK = f"HTTP/1.1 200 OK\r\nContent-Type: {OCI}.manifest.v1+json\r\n".encode()
SLOW_HEAD = b"HTTP/1.1 418 Slow\r\n" + b"X: 1\r\n" * 40


@case("a layer that comes a byte at a time", "given up; what came is kept")
@pytest.mark.usefixtures("hasty")
def test_a_slow_layer(place: Place, registry: Registry) -> None:
    path = f"/v2/app/blobs/{digest_of(BLOB)}"
    registry.answers[path] = drip(OK, BLOB)
    told = refuses(place, registry, RegistryError, "is too slow, and was given up: it gave")
    assert registry.host in told
    assert 2 <= [asked for _, asked, _ in registry.asked].count(path) <= 3


@case("a layer of which each answer has a byte", "given up; what came is kept")
def test_a_layer_by_the_byte(place: Place, registry: Registry) -> None:
    path = f"/v2/app/blobs/{digest_of(BLOB)}"

    def answer(handler: Any) -> None:
        start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
        handler.close_connection = True
        handler.send_response_only(206 if start else 200)
        handler.send_header("Content-Range", f"bytes {start}-{len(BLOB) - 1}/{len(BLOB)}")
        handler.send_header("Content-Length", str(len(BLOB) - start))
        handler.end_headers()
        handler.wfile.write(BLOB[start : start + 1])

    registry.answers[path] = answer
    refuses(place, registry, RegistryError, "connection|ended after")
    assert [asked for _, asked, _ in registry.asked].count(path) <= 10


@case("a manifest that comes a byte at a time", "given up")
@pytest.mark.usefixtures("hasty")
def test_a_slow_manifest(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = drip(OK, json.dumps(MANIFEST).encode())
    refuses(place, registry, RegistryError, "is too slow, and was given up")


@case("a config that comes a byte at a time", "given up")
@pytest.mark.usefixtures("hasty")
def test_a_slow_config(place: Place, registry: Registry) -> None:
    registry.answers[f"/v2/app/blobs/{digest_of(IMAGE.config)}"] = drip(OK, IMAGE.config)
    refuses(place, registry, RegistryError, "is too slow, and was given up")


@case("an answer whose head comes a byte at a time", "given up")
@pytest.mark.usefixtures("hasty")
def test_a_slow_head(place: Place, registry: Registry) -> None:
    registry.answers["/v2/app/manifests/1"] = drip(SLOW_HEAD, b"")
    refuses(place, registry, RegistryError, "is too slow, and was given up")


@case("a token that comes a byte at a time", "given up")
@pytest.mark.usefixtures("hasty")
def test_a_slow_token(place: Place, registry: Registry) -> None:
    realm = f'Bearer realm="http://{registry.host}/token"'
    registry.answers["/v2/app/manifests/1"] = 401, {"WWW-Authenticate": realm}, b""
    registry.answers["/token?scope=repository%3Aapp%3Apull"] = drip(OK, b'{"token": "t"}' + b" " * 200)
    refuses(place, registry, RegistryError, "is too slow, and was given up")


def test_a_document_that_comes_too_late(place: Place, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fast enough at each moment, and much too long."""
    hurry(monkeypatch, DOCUMENT_SECONDS=0.1, tries=1)

    def answer(handler: Any) -> None:
        handler.close_connection = True
        handler.send_response_only(200)
        handler.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(20):
                handler.wfile.write(b" " * 65_536)
                time.sleep(0.02)

    registry.answers["/v2/app/manifests/1"] = answer
    refuses(place, registry, RegistryError, "is too slow, and was given up: of the answer")


@case("a registry that takes a push a byte at a time", "given up")
@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("is_whole", [True, False])
def test_a_slow_reader(is_whole: bool) -> None:
    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server, contextlib.closing(transport.Transport()) as sending:

        def read() -> None:
            connection, _ = server.accept()
            with connection:
                while not ended.wait(0.01) and connection.recv(1):
                    pass

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        body = bytes(32 << 20) if is_whole else (bytes(1 << 20) for _ in range(32))
        with pytest.raises(RegistryError, match="is too slow, and was given up: it took less than"):
            sending.send("PUT", f"http://127.0.0.1:{server.getsockname()[1]}/x", {}, body)
        ended.set()
        reader.join()


def test_an_honest_image_comes(place: Place, registry: Registry) -> None:
    image = place.store.pull(f"{registry.host}/app:1")
    assert image.view.read_bytes("/one") == b"1" * 1000
    place.drop(image.names[0])
    place.changed()


def test_a_server_that_is_silent_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch, CONNECT_SECONDS=0.2, tries=1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        host = f"127.0.0.1:{server.getsockname()[1]}"
        place.refuses(lambda: place.store.pull(f"{host}/app:1"), RegistryError, "connection|answers")
