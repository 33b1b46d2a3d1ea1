"""Registries for tests: Debian's docker-registry on loopback, what keeps its doors, and a proxy that breaks things.

with Registry(directory) as registry:                     # no authorization
with Registry(directory, auth="basic") as registry:       # USER, PASSWORD
with TokenServer(directory) as tokens, Registry(directory, auth="token", tokens=tokens) as registry:
with Proxy(registry.port) as proxy:                       # proxy.host stands for the registry
    proxy.faults.append(Fault("GET", "/blobs/", cut_after=1000))
"""

import base64
import contextlib
import hashlib
import http.client
import http.server
import json
import random
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import pytest
from images import DOCKER, OCI, Image, compressed, digest_of, media_ending
from layer_model import Entry, write_tar

from layerstore.registry import client, pace, transport

USER, PASSWORD = "ann", "open sesame"
# The bcrypt hash of that password.
HTPASSWD = "ann:$2b$05$LsWsJjnTYtJdr21f6h0dye.1glDP3K80PVsp0PNHwac.a5Y./HfBu\n"
ISSUER, SERVICE = "layerstore tests", "registry of the tests"


def hurry(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Have whoever asks a registry wait less, and try less often, by names of `Patience` and of modules."""
    for name, value in limits.items():
        owners = [owner for owner in (client, pace, transport, transport.Patience) if hasattr(owner, name)]
        assert owners, f"nothing has {name}"
        for owner in owners:
            monkeypatch.setattr(owner, name, value)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def certificate(directory: Path, name: str = "127.0.0.1") -> tuple[Path, Path]:
    """A key and a certificate of its own, for that address and localhost."""
    key, chain = directory / "key.pem", directory / "certificate.pem"
    if not key.exists():
        options = ["-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{name},DNS:localhost", "-days", "2"]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", chain, *options]
        subprocess.run(command, check=True, capture_output=True)
    return key, chain


class Registry:
    """docker-registry in a process of its own. `auth` is "none", "basic" or "token"; `tls` by `certificate`."""

    def __init__(
        self, directory: Path, auth: str = "none", *, tokens: "TokenServer | None" = None, tls: bool = False
    ) -> None:
        self.directory = directory
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self._log = directory / "registry.log"
        config: dict[str, Any] = {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}, "delete": {"enabled": True}},
            "http": {"addr": self.host, "secret": "not much of one"},
        }
        if tls:
            key, chain = certificate(directory)
            config["http"]["tls"] = {"certificate": str(chain), "key": str(key)}
            self.ca_file = chain
        if auth == "basic":
            (directory / "htpasswd").write_text(HTPASSWD)
            config["auth"] = {"htpasswd": {"realm": "tests", "path": str(directory / "htpasswd")}}
        if auth == "token":
            assert tokens is not None
            options = {"realm": tokens.realm, "service": SERVICE, "issuer": ISSUER}
            config["auth"] = {"token": {**options, "rootcertbundle": str(tokens.certificate)}}
        # JSON is YAML.
        (directory / "registry.yml").write_text(json.dumps(config))

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            command = ["docker-registry", "serve", str(self.directory / "registry.yml")]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while socket.socket().connect_ex(("127.0.0.1", self.port)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError(f"docker-registry did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def requests(self) -> list[tuple[str, str, int]]:
        """Method, path and status of each request so far."""
        found = []
        for line in self._log.read_text().splitlines():
            if '] "' in line and " HTTP/1.1" in line:
                request, _, rest = line.partition('] "')[2].partition('" ')
                method, path, _ = request.split(" ")
                found.append((method, path, int(rest.split()[0])))
        return found


class _Server:
    """An HTTP server in threads, of handlers that know it."""

    def __init__(self, handler: type[http.server.BaseHTTPRequestHandler], tls: tuple[Path, Path] | None = None) -> None:
        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.owner = self  # type: ignore[attr-defined]
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls[1], tls[0])
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.host = f"127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError, ssl.SSLError):  # who asked may go
            super().handle()

    @property
    def owner(self) -> Any:
        return self.server.owner  # type: ignore[attr-defined]

    def answer(self, status: int, fields: dict[str, str], body: bytes = b"") -> None:
        self.send_response_only(status)
        for name, value in fields.items():
            self.send_header(name, value)
        if "Content-Length" not in fields:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


# Tokens


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


class _TokenHandler(_Handler):
    def do_GET(self) -> None:
        query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
        authorization = self.headers.get("Authorization", "")
        self.owner.asked.append(("GET", query.get("scope", []), authorization))
        user = ""
        if authorization.startswith("Basic "):
            user, _, password = base64.b64decode(authorization[6:]).decode().partition(":")
            if (user, password) != (USER, PASSWORD):
                self.answer(401, {})
                return
        self._give(user, query.get("scope", []))

    def do_POST(self) -> None:
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        scopes = [scope for field in form.get("scope", []) for scope in field.split()]
        self.owner.asked.append(("POST", scopes, form.get("refresh_token", [""])[0]))
        if form.get("refresh_token") != [self.owner.identity_token] or form["grant_type"] != ["refresh_token"]:
            self.answer(401, {})
            return
        self._give(USER, scopes)

    def _give(self, user: str, scopes: list[str]) -> None:
        token = self.owner.token(user, scopes)
        name = "access_token" if self.command == "POST" else "token"
        answer = {name: token, "expires_in": self.owner.life_seconds}
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


class TokenServer(_Server):
    """Gives tokens that docker-registry takes ("Token Authentication Implementation" of distribution).

    Without a user they are for pulling what begins with "public/"; for USER they are for everything but "secret/".
    """

    def __init__(self, directory: Path) -> None:
        super().__init__(_TokenHandler)
        self._key, self.certificate = certificate(directory)
        self.realm = f"http://{self.host}/token"
        self.identity_token = "an identity"
        self.life_seconds = 300
        self.asked: list[tuple[str, list[str], str]] = []

    def token(self, user: str, scopes: list[str]) -> str:
        access = []
        for scope in scopes:
            kind, name, actions = scope.split(":")
            if user and not name.startswith("secret/"):
                access.append({"type": kind, "name": name, "actions": actions.split(",")})
            elif name.startswith("public/"):
                access.append({"type": kind, "name": name, "actions": ["pull"]})
        now = int(time.time())
        body = {"iss": ISSUER, "sub": user, "aud": SERVICE, "exp": now + 300, "nbf": now - 10, "iat": now, "jti": "1"}
        der = base64.b64encode(ssl.PEM_cert_to_DER_cert(self.certificate.read_text())).decode()
        header = {"typ": "JWT", "alg": "RS256", "x5c": [der]}
        parts = [_base64(json.dumps(part).encode()) for part in (header, {**body, "access": access})]
        sign = ["openssl", "dgst", "-sha256", "-sign", str(self._key)]
        signature = subprocess.run(sign, input=".".join(parts).encode(), capture_output=True, check=True).stdout
        return ".".join([*parts, _base64(signature)])


# Faults


@dataclass
class Fault:
    """What happens to the next `times` requests of a method whose path has a part. One of:

    status: this is answered, with `fields`, and the registry is not asked.
    cut_after: the connection ends after so many bytes of the answer's body.
    cut_sending_after: the registry gets so many bytes of the request's body, then both connections end.
    keep_after: as that, but the registry keeps those bytes, and the next question for the upload's status is answered
        as the distribution specification says. (docker-registry 2.8 gives up an upload whose sender disconnects.)
    change: what the answer becomes: given status, fields and body, gives them.
    """

    method: str
    part: str
    times: int = 1
    status: int = 0
    fields: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    cut_after: int | None = None
    cut_sending_after: int | None = None
    keep_after: int | None = None
    change: Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None

    def fits(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and self.part in path


@dataclass
class Request:
    method: str
    path: str
    fields: dict[str, str]
    body_bytes: int = 0
    status: int = 0


class _ProxyHandler(_Handler):
    def do_any(self) -> None:
        request = Request(self.command, self.path, dict(self.headers.items()))
        fault = self.owner.take(request)
        if fault.status:
            for piece in self._body():
                request.body_bytes += len(piece)
            request.status = fault.status
            self.answer(fault.status, fault.fields, fault.body)
            return
        if fault.cut_sending_after is not None or fault.keep_after is not None:
            self._cut_sending(request, fault.cut_sending_after or fault.keep_after or 0, fault.keep_after is not None)
            return
        if self.command == "GET" and "/uploads/" in self.path and self.owner.kept:
            request.status = 204
            self.answer(204, self.owner.kept.pop())
            return
        status, fields, body = self._ask(request)
        if fault.change is not None:
            status, fields, body = fault.change(status, fields, body)
        request.status = status
        if fault.cut_after is not None:
            fields.setdefault("Content-Length", str(len(body)))
            body = body[: fault.cut_after]
            self.close_connection = True
        self.answer(status, fields, body)

    do_GET = do_HEAD = do_POST = do_PATCH = do_PUT = do_DELETE = do_any

    def _ask(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        upstream = http.client.HTTPConnection("127.0.0.1", self.owner.upstream)
        chunked = "Transfer-Encoding" in self.headers
        pieces = self._counted(request) if chunked or self.headers.get("Content-Length", "0") != "0" else None
        upstream.request(self.command, self.path, pieces, request.fields, encode_chunked=chunked)
        answer = upstream.getresponse()
        body = answer.read()
        fields = {name: value for name, value in answer.getheaders() if name != "Transfer-Encoding"}
        upstream.close()
        return answer.status, fields, body

    def _cut_sending(self, request: Request, count: int, keep: bool) -> None:
        with socket.create_connection(("127.0.0.1", self.owner.upstream)) as upstream:
            lines = [f"{self.command} {self.path} HTTP/1.1", *(f"{k}: {v}" for k, v in request.fields.items()), "", ""]
            upstream.sendall("\r\n".join(lines).encode())
            for piece in self._body():
                part = piece[: count - request.body_bytes]
                request.body_bytes += len(part)
                upstream.sendall(b"%x\r\n%b\r\n" % (len(part), part))
                if request.body_bytes == count:
                    break
            if keep:
                upstream.sendall(b"0\r\n\r\n")
                answer = http.client.HTTPResponse(upstream)
                answer.begin()
                self.owner.kept.append({"Location": answer.headers["Location"], "Range": f"0-{count - 1}"})
        self.close_connection = True
        # With bytes of it unread the connection is reset.
        self.connection.close()

    def _counted(self, request: Request) -> Iterator[bytes]:
        for piece in self._body():
            request.body_bytes += len(piece)
            yield piece

    def _body(self) -> Iterator[bytes]:
        if "Transfer-Encoding" in self.headers:
            # Who was cut off sends no more sizes.
            while size := int(self.rfile.readline() or b"0", 16):
                yield self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            left = int(self.headers.get("Content-Length") or 0)
            while left:
                piece = self.rfile.read(min(left, 1 << 16))
                left -= len(piece)
                yield piece


class Proxy(_Server):
    """In front of a registry: notes every request and does what `faults` say."""

    def __init__(self, upstream: int, tls: tuple[Path, Path] | None = None) -> None:
        super().__init__(_ProxyHandler, tls)
        self.upstream = upstream
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.kept: list[dict[str, str]] = []
        self._lock = threading.Lock()

    def take(self, request: Request) -> Fault:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.fits(request.method, request.path):
                    fault.times -= 1
                    return fault
        return Fault("", "")

    def count(self, method: str, part: str) -> int:
        return sum(request.method == method and part in request.path for request in self.requests)


# Contents, put there without the code under test


def put_blob(port: int, repository: str, data: bytes, authorization: str = "") -> str:
    """Returns its digest."""
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    fields = {"Authorization": authorization} if authorization else {}
    _, answer, _ = ask(port, "POST", f"/v2/{repository}/blobs/uploads/", fields=fields)
    place = urllib.parse.urlsplit(answer["Location"])
    status, _, said = ask(port, "PUT", f"{place.path}?{place.query}&digest={digest}", data, fields=fields)
    assert status == 201, said
    return digest


def put_manifest(port: int, repository: str, tag: str, document: Any, media_type: str = "") -> str:
    data = document if isinstance(document, bytes) else json.dumps(document).encode()
    kind = media_type or json.loads(data)["mediaType"]
    status, _, said = ask(port, "PUT", f"/v2/{repository}/manifests/{tag}", data, fields={"Content-Type": kind})
    assert status == 201, said
    return "sha256:" + hashlib.sha256(data).hexdigest()


def ask(
    port: int, method: str, path: str, body: bytes = b"", fields: dict[str, str] | None = None
) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request(method, path, body, fields or {})
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found


def layer_of(number: int, size: int = 300_000) -> bytes:
    data = random.Random(number).randbytes(size)
    return write_tar([Entry("file", f"large{number}", data=data), Entry("file", f"small{number}", data=b"%d" % number)])


def put_image(port: int, repository: str, tag: str, image: Image, compression: str = "gzip", family: str = OCI) -> str:
    """An image with its blobs; returns the digest of its manifest. `family` is `images.OCI` or `images.DOCKER`."""
    document = manifest_of(image, compression, family)
    put_blob(port, repository, image.config)
    for layer in image.layers:
        put_blob(port, repository, compressed(layer, compression))
    return put_manifest(port, repository, tag, document)


def manifest_of(image: Image, compression: str = "gzip", family: str = OCI) -> dict[str, Any]:
    if family == OCI:
        ending = f"+{media_ending(compression)}".rstrip("+")
        types = f"{OCI}.manifest.v1+json", f"{OCI}.config.v1+json", f"{OCI}.layer.v1.tar{ending}"
    else:
        ending = f".{media_ending(compression)}".rstrip(".")
        names = "distribution.manifest.v2+json", "container.image.v1+json", f"image.rootfs.diff.tar{ending}"
        types = tuple(f"{DOCKER}.{name}" for name in names)  # type: ignore[assignment]
    blobs = [compressed(layer, compression) for layer in image.layers]
    return {
        "schemaVersion": 2,
        "mediaType": types[0],
        "config": {"mediaType": types[1], "digest": digest_of(image.config), "size": len(image.config)},
        "layers": [{"mediaType": types[2], "digest": digest_of(blob), "size": len(blob)} for blob in blobs],
    }
