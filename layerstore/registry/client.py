"""A registry's API, by the OCI distribution specification 1.1: requests with authorization, manifests, blobs."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
from urllib.parse import urljoin, urlsplit

from layerstore.errors import AccessDenied, DigestMismatch, InvalidInput, LimitExceeded, NotFound, RegistryError
from layerstore.limits import DEFAULT, beyond
from layerstore.oci.manifests import INDEX_TYPES, MANIFEST_TYPES
from layerstore.registry.authorization import Authorization
from layerstore.registry.challenges import parse_challenges
from layerstore.registry.credentials import find_credentials
from layerstore.registry.references import host_of, is_loopback
from layerstore.registry.transport import (
    CONNECT_SECONDS,
    Patience,
    Transient,
    Transport,
    discard,
    failure,
    origin_of,
    read_body,
    shown,
)
from layerstore.types import Digest, Value, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from layerstore.limits import Limits
    from layerstore.registry.credentials import Credentials
    from layerstore.registry.references import Reference
    from layerstore.registry.transport import Body, Response

_ACCEPTED = ", ".join((*sorted(INDEX_TYPES), *sorted(MANIFEST_TYPES)))
_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"
_ANSWER_BYTES = 1 << 20
_WARNING = re.compile(r'299 - "((?:[^"\\]|\\.)*)"')
"""A field Warning, by the distribution specification ("Warnings")."""


class Answer(Value):
    """A response that was read whole. The names of its fields are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes
    url: str


class FoundManifest(Value):
    """A manifest or index as a registry gave it: its bytes, its digest, and its media type as the registry says it."""

    data: bytes
    digest: Digest
    media_type: str


class Client:
    """One registry. Safe for many threads.

    Args:
        reference: what is in it. The credentials are for that, of several for the registry.
        plain_http: speak HTTP without TLS. A registry on this machine itself is asked what it speaks.
        ca_file: authorities that are trusted beside the system's.
        find: gives credentials to try before they are kept; by default those in docker's and podman's files are used.
    """

    def __init__(
        self,
        reference: Reference,
        *,
        plain_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        find: Callable[[], Credentials | None] | None = None,
    ) -> None:
        self.registry = reference.registry
        self.warn: Callable[[str], None] = lambda text: None
        """Called with what the registry has to say to its users, every time that it says it, from any thread."""
        self.patience = Patience()
        self._transport = Transport(ca_file)
        host = host_of(reference.registry)
        is_plain = plain_http or (is_loopback(urlsplit(f"//{host}").hostname) and not self._speaks_tls(host))
        self.base = f"{'http' if is_plain else 'https'}://{host}/v2/"
        self._origin = origin_of(self.base)
        self._authorization = Authorization(
            reference.registry,
            self._origin,
            find or (lambda: find_credentials(reference.registry, reference.repository)),
            self._transport,
            self.patience,
            is_login=find is not None,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def _speaks_tls(self, host: str) -> bool:
        """Does a registry on this machine answer to TLS? A certificate that is not trusted is told when it is used."""
        parts = urlsplit(f"//{host}")
        try:
            with (
                socket.create_connection((parts.hostname or "", parts.port or 443), CONNECT_SECONDS) as connection,
                self._transport.tls.wrap_socket(connection, server_hostname=parts.hostname),
            ):
                return True
        except ssl.SSLCertVerificationError:
            return True
        except (OSError, ValueError):  # a port that is none is told when it is used
            return False

    def open(
        self,
        method: str,
        url: str,
        scopes: Sequence[str],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Response:
        """One request, authorized, and the head of its response, whatever its status. Closing it is the caller's.

        `url` may be relative to the API's base. Raises as `Transport.send`, and `AccessDenied`; `Transient` also where
        a body that is no bytes was refused for want of a token, which is another one the next time.
        """
        url = urljoin(self.base, url)
        sent = None
        for challenged in (False, True):
            authorized = dict(headers or {})
            if origin_of(url) == self._origin and (sent := self._authorization.header(scopes)) is not None:
                authorized["Authorization"] = sent
            response = self._transport.send(method, url, authorized, body)
            # Who is asked elsewhere, along a redirect, has no say in where credentials are sent.
            if response.status != 401 or origin_of(response.url or url) != self._origin:
                break
            fields = ", ".join(response.headers.getlist("WWW-Authenticate"))
            discard(response)
            if challenged:
                raise self._authorization.denied(scopes)
            self._authorization.challenged(parse_challenges(fields), scopes, sent)
            if not (body is None or isinstance(body, bytes)):
                raise Transient(f"{self.registry} refused what was sent, and wants to be shown a new token", 0)
        if origin_of(response.url or url) == self._origin:
            for text in _WARNING.findall(", ".join(response.headers.getlist("Warning"))):
                self.warn(re.sub(r"\\(.)", r"\1", text))
        if response.status == 403:
            raise AccessDenied(f"{self._authorization.denied(scopes)}: {failure(response, method, url)}")
        return response

    def call(
        self,
        method: str,
        url: str,
        scopes: Sequence[str],
        expected: Collection[int],
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        limit_bytes: int = _ANSWER_BYTES,
        too_large: LimitExceeded | None = None,
    ) -> Answer:
        """One request, repeated while it fails for now, and its answer, of one of the statuses `expected`.

        Raises `AccessDenied`, `RegistryError` with what the registry says, `LimitExceeded` (`too_large` where it is
        given).
        """

        def attempt() -> Answer:
            response = self.open(method, url, scopes, headers, body)
            place = response.url or url
            if response.status not in expected:
                raise failure(response, method, place)
            try:
                what = f"the answer to {shown(place)}"
                data = b"" if method == "HEAD" else read_body(response, limit_bytes, what, place)
            except LimitExceeded as error:
                raise too_large or error from None
            response.release_conn()
            fields = {name.lower(): value for name, value in response.headers.items()}
            return Answer(response.status, fields, data, place)

        return self.patience.keep_trying(attempt)

    def check(self) -> None:
        """Is this a registry, and does it take the credentials? Raises `AccessDenied`, `RegistryError`."""
        self.call("GET", "", (), {200})


class Repository:
    """One repository of a registry. Safe for many threads."""

    def __init__(self, client: Client, name: str) -> None:
        self.client = client
        self.name = name
        self.reading = (f"repository:{name}:pull",)
        self.writing = (f"repository:{name}:pull,push",)

    def manifest(self, target: str, limits: Limits = DEFAULT) -> FoundManifest:
        """The manifest or index of a tag or digest, compared with the digest.

        Raises `NotFound`, `DigestMismatch`, `InvalidInput` for what is no manifest that is known, `LimitExceeded`,
        `RegistryError`.
        """
        url = f"{self.name}/manifests/{target}"
        accept = {"Accept": _ACCEPTED}
        too_large = beyond(f"the manifest of {target} is too large", limits, "manifest_bytes")
        answer = self.client.call(
            "GET",
            url,
            self.reading,
            {200, 404},
            headers=accept,
            limit_bytes=limits.manifest_bytes,
            too_large=too_large,
        )
        if answer.status == 404:
            if b"NAME_UNKNOWN" in answer.body:
                raise NotFound(f"{self.client.registry} has no repository {self.name}; is its name right?")
            what = "the digest" if ":" in target else "the tag"
            raise NotFound(
                f"{self.client.registry} has no image {self.name} with {what} {target}; are its name and tag right?"
            )
        media_type = answer.fields.get("content-type", "").partition(";")[0].strip()
        if media_type.startswith(_SCHEMA1):
            raise InvalidInput(
                f"{self.client.registry}/{self.name} has a manifest of docker's schema 1 for {target}, which docker "
                "gave up in 2017 and which is not read here; have it pushed again by a docker of today"
            )
        digest = sha256_digest(answer.body)
        if ":" in target and digest != target:
            raise DigestMismatch(f"{self.client.registry} gives a manifest with digest {digest} for {target}")
        self._compare(answer, digest, f"the manifest of {target}")
        return FoundManifest(answer.body, digest, media_type)

    def put_manifest(self, tag: str, data: bytes, media_type: str) -> Digest:
        """Have a manifest under a tag or its digest. Raises `AccessDenied`, `RegistryError`, `DigestMismatch`."""
        digest = sha256_digest(data)
        url = f"{self.name}/manifests/{tag}"
        kind = {"Content-Type": media_type}
        answer = self.client.call("PUT", url, self.writing, {201}, headers=kind, body=data)
        self._compare(answer, digest, "the manifest that was sent")
        return digest

    def _compare(self, answer: Answer, digest: Digest, what: str) -> None:
        """With what the registry says that it is; one that does not say sha256 is taken at its bytes."""
        said = answer.fields.get("docker-content-digest")
        if said is not None and said.startswith("sha256:") and said != digest:
            raise DigestMismatch(f"{self.client.registry} says {said} of {what}, whose digest is {digest}")

    def has_blob(self, digest: Digest, scopes: Sequence[str] | None = None) -> bool:
        """Is the blob in the repository? Raises `AccessDenied`, `RegistryError`."""
        url = f"{self.name}/blobs/{digest}"
        return self.client.call("HEAD", url, scopes or self.reading, {200, 404}).status == 200

    def blob(self, digest: Digest, limit_bytes: int) -> bytes:
        """A small blob, its digest compared. Raises `NotFound`, `DigestMismatch`, `LimitExceeded`, `RegistryError`."""
        answer = self.client.call(
            "GET", f"{self.name}/blobs/{digest}", self.reading, {200, 404}, limit_bytes=limit_bytes
        )
        if answer.status == 404:
            raise NotFound(f"{self.client.registry}/{self.name} lacks {digest}, which a manifest of its own names")
        if sha256_digest(answer.body) != digest:
            raise DigestMismatch(f"{self.client.registry} gives other bytes for the blob {digest}; pull again")
        return answer.body

    @contextlib.contextmanager
    def open_blob(self, digest: Digest, offset: int) -> Iterator[tuple[Response, int]]:
        """The blob as a response to read, and at which byte of the blob that begins: `offset`, or 0.

        Raises `NotFound`, `Transient` where it may go better the next time, `RegistryError`.
        """
        url = f"{self.name}/blobs/{digest}"
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = self.client.open("GET", url, self.reading, headers)
        try:
            if response.status == 404:
                raise NotFound(f"{self.client.registry}/{self.name} lacks {digest}, which a manifest of its own names")
            if response.status == 206 and offset:
                field = response.headers.get("Content-Range", "")
                if not field.startswith(f"bytes {offset}-"):
                    raise RegistryError(f"{self.client.registry} gives {field!r} of a blob for bytes {offset} and on")
                yield response, offset
            elif response.status == 200:
                yield response, 0
            else:
                raise failure(response, "GET", response.url or url)
        finally:
            # What is not read whole cannot be followed by another response on its connection.
            response.close()
