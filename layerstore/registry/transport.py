"""Requests over HTTP: connections, TLS, time-outs, redirects, and errors that say whether to try again."""

from __future__ import annotations

import contextlib
import email.utils
import functools
import json
import os
import random
import ssl
import threading
import time
import urllib.request
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

import urllib3
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ProxyError,
    SSLError,
)

from layerstore.errors import InvalidInput, LimitExceeded, RegistryError
from layerstore.registry.pace import POOLS, TooSlow
from layerstore.registry.references import is_loopback

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any, TypeAlias, TypeVar

    Body: TypeAlias = bytes | Iterable[bytes]
    Response: TypeAlias = urllib3.BaseHTTPResponse
    T = TypeVar("T")

CONNECT_SECONDS = 15.0
READ_SECONDS = 60.0
"""How long a server may be silent."""
DOCUMENT_SECONDS = 300.0
"""How long a document may take to come: a manifest, a config, a token."""
END_SECONDS = 1.0
"""Waited for a thread that is to end; one that waits for a server ends when that answers."""
_REDIRECTS = 5
_CONNECTIONS = 8
"""Kept open to a server, at most."""
_PASSING = {408, 429, 500, 502, 503, 504}
"""Statuses that may be others when one asks again (RFC 9110, section 15; RFC 6585)."""
_TOLD_BYTES = 64 << 10
_AGENT = "layerstore"


class Transient(RegistryError):
    """A failure that may pass; `wait_seconds` is how long the server wants to be left alone, None if unsaid."""

    def __init__(self, message: str, wait_seconds: float | None = None) -> None:
        super().__init__(message)
        self.wait_seconds = wait_seconds


class Patience:
    """How often to try, and how long to wait between: twice as long each time, half of it by chance.

    A server that asks for more than `longest_seconds` (Retry-After) is not waited for. Once `stopped` is set, none is:
    what failed is raised.
    """

    tries = 5
    first_seconds = 0.25
    longest_seconds = 60.0

    def __init__(self) -> None:
        self.stopped = threading.Event()

    def wait(self, failures: int, error: Transient, stopped: threading.Event | None = None) -> None:
        """Wait after so many failures in a row; raise the last one where there were too many of them."""
        if failures >= self.tries or (error.wait_seconds or 0) > self.longest_seconds:
            raise error
        delay = error.wait_seconds
        if delay is None:
            delay = self.first_seconds * 2 ** (failures - 1) * random.uniform(0.5, 1)
        (stopped or self.stopped).wait(delay)
        if self.stopped.is_set():
            raise error

    def keep_trying(self, attempt: Callable[[], T]) -> T:
        """What `attempt` gives, asked again while it fails for now (`Transient`)."""
        failures = 0
        while True:
            try:
                return attempt()
            except Transient as error:
                failures += 1
                self.wait(failures, error)


def origin_of(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port: where credentials belong to (RFC 6454). Raises `RegistryError` for no URL."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError as error:
        raise RegistryError(f"the registry names {url!r}, which is no URL: {error}") from None
    return parts.scheme, parts.hostname, port


def target_of(url: str, place: str) -> str:
    """Where `place`, the field Location of an answer from `url`, leads.

    Raises `RegistryError` for what is no URL of HTTP or HTTPS, or would give up TLS.
    """
    try:
        target = urljoin(url, place)
    except ValueError as error:
        raise RegistryError(f"{shown(url)} leads to {shown(place)!r}, which is no URL: {error}") from None
    scheme, host, _ = origin_of(target)
    if host is None or scheme not in ("http", "https") or (scheme == "http" and origin_of(url)[0] == "https"):
        raise RegistryError(f"{shown(url)} leads to {shown(target)}, which is not followed: it is no https")
    return target


@functools.lru_cache(maxsize=1)
def _tls_of(_authorities: tuple[tuple[int, ...] | None, ...]) -> ssl.SSLContext:
    """By the authorities of the system, while their files are the same: reading them takes longer than a request."""
    return ssl.create_default_context()


def _authorities() -> tuple[tuple[int, ...] | None, ...]:
    """Which files the authorities of the system are in now, or of $SSL_CERT_FILE and $SSL_CERT_DIR."""
    where = ssl.get_default_verify_paths()
    found: list[tuple[int, ...] | None] = []
    for path in (where.cafile, where.capath):
        status = None
        if path is not None:
            with contextlib.suppress(OSError):
                status = os.stat(path)
        found.append(status and (status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size))
    return tuple(found)


class Transport:
    """Sends requests. Safe for many threads.

    ca_file: certificates, in PEM, of authorities that are trusted beside the system's (or $SSL_CERT_FILE's).
    """

    def __init__(self, ca_file: str | os.PathLike[str] | None = None) -> None:
        if ca_file is None:
            self.tls = _tls_of(_authorities())
        else:
            self.tls = ssl.create_default_context()
            try:
                self.tls.load_verify_locations(os.fspath(ca_file))
            except ssl.SSLError as error:
                raise InvalidInput(f"{os.fspath(ca_file)} is no file of certificates in PEM: {error}") from error
            except OSError as error:
                raise OSError(error.errno, error.strerror, os.fspath(ca_file)) from error
        timeout = urllib3.Timeout(connect=CONNECT_SECONDS, read=READ_SECONDS)
        self._options: dict[str, Any] = {
            "ssl_context": self.tls,
            "timeout": timeout,
            "retries": False,
            "maxsize": _CONNECTIONS,
        }
        self._direct = urllib3.PoolManager(**self._options)
        self._direct.pool_classes_by_scheme = POOLS
        self._proxies: dict[str, urllib3.ProxyManager] = {}

    def close(self) -> None:
        """Close the connections that are kept open."""
        for pool in (self._direct, *self._proxies.values()):
            pool.clear()

    def send(self, method: str, url: str, headers: Mapping[str, str], body: Body | None = None) -> Response:
        """One request and the head of its response, whose `url` is where it comes from.

        Redirects are followed, elsewhere without Authorization, and with a body not elsewhere.

        `body` is sent in chunks (RFC 9112, section 7.1) where it is no bytes; then it is not sent again. Raises
        `Transient` where it may go better the next time, `RegistryError`, and what `body` does.
        """
        sent = {"User-Agent": _AGENT, "Accept-Encoding": "identity", **headers}
        for _ in range(_REDIRECTS + 1):
            response = self._once(method, url, sent, body)
            response.url = url
            place = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or not place:
                return response
            discard(response)
            target = target_of(url, place)
            self._check_redirect(url, target, body)
            if origin_of(target) != origin_of(url):
                sent.pop("Authorization", None)
            url = target
        raise RegistryError(f"{shown(url)} redirects more than {_REDIRECTS} times")

    def _check_redirect(self, url: str, target: str, body: Body | None) -> None:
        if body is not None and (origin_of(target) != origin_of(url) or not isinstance(body, bytes)):
            raise RegistryError(f"{shown(url)} redirects what is sent to {shown(target)}, which is not followed")

    def _once(self, method: str, url: str, headers: Mapping[str, str], body: Body | None) -> Response:
        try:
            return self._pool(url).request(
                method,
                url,
                headers=headers,
                body=body,
                redirect=False,
                preload_content=False,
                decode_content=False,
                chunked=body is not None and not isinstance(body, bytes),
            )
        except HTTPError as error:
            told = translated(error, url)
            if isinstance(error, ProtocolError) and body is None:
                told = Transient(f"{told}{_hint(url)}")
            raise told from error

    def _pool(self, url: str) -> urllib3.PoolManager:
        scheme, host, _ = origin_of(url)
        proxy = urllib.request.getproxies().get(scheme)
        if not proxy or is_loopback(host) or urllib.request.proxy_bypass(host or ""):
            return self._direct
        if proxy not in self._proxies:
            self._proxies[proxy] = _proxy_manager(proxy, self._options)
            self._proxies[proxy].pool_classes_by_scheme = POOLS
        return self._proxies[proxy]


def _proxy_manager(proxy: str, options: Mapping[str, Any]) -> urllib3.ProxyManager:
    """For a proxy as the environment names it: `[http://][USER:PASSWORD@]HOST:PORT`."""
    scheme, _, rest = proxy.rpartition("://")
    who, at, place = rest.rpartition("@")
    # The headers are made of Latin-1 there; what is sent is UTF-8.
    headers = urllib3.make_headers(proxy_basic_auth=unquote_to_bytes(who).decode("latin-1")) if at else None
    return urllib3.ProxyManager(f"{scheme or 'http'}://{place}", proxy_headers=headers, **options)


def shown(url: str) -> str:
    """A URL without its query, which may carry a signature."""
    return url.partition("?")[0]


def translated(error: HTTPError, url: str) -> RegistryError:
    """A failure of the connection as this library's."""
    host = urlsplit(url).netloc
    slow = next((each for each in (error.__cause__, *error.args) if isinstance(each, TooSlow)), None)
    if slow is not None:
        return Transient(f"{host} is too slow, and was given up: {slow}; try again when it or the network is faster")
    if isinstance(error, NameResolutionError):
        return RegistryError(f"there is no host {host} ({_cause(error)}); is the name of the image right?")
    if isinstance(error, SSLError) or isinstance(error.__cause__, ssl.SSLCertVerificationError):
        return RegistryError(
            f"no secure connection to {host}: {error}; if its certificate is of an authority of your own, name that "
            "with --ca-file or SSL_CERT_FILE; if it speaks plain HTTP, say --plain-http"
        )
    if isinstance(error, ProxyError):
        return Transient(f"the proxy for {host} gives no connection: {_cause(error.original_error)}")
    if isinstance(error, LocationValueError):
        return RegistryError(f"there is no way to {host}: {error}")
    if isinstance(error, NewConnectionError | ConnectTimeoutError):
        _, _, port = origin_of(url)
        place = host if urlsplit(url).port else f"{host}:{port}"
        return Transient(f"nothing answers at {place} ({_cause(error)}); is the registry running?")
    return Transient(f"the connection to {host} failed: {error}")


def _cause(error: BaseException) -> str:
    """Of a connection that was not made: what the system says, where it was that."""
    return getattr(error.__cause__, "strerror", None) or str(error)


def _hint(url: str) -> str:
    """What may be wrong where a server does not understand a request."""
    return "; if it speaks TLS, leave out --plain-http" if url.startswith("http:") else ""


def read_body(response: Response, limit_bytes: int, what: str, url: str) -> bytes:
    """The whole body. Raises `LimitExceeded` naming `what`, `Transient`."""
    begin = time.monotonic()
    try:
        parts, size = [], 0
        while piece := response.read(1 << 16):
            parts.append(piece)
            size += len(piece)
            if time.monotonic() - begin > DOCUMENT_SECONDS:
                response.close()
                host = urlsplit(url).netloc
                raise Transient(
                    f"{host} is too slow, and was given up: of {what} it gave {size} bytes in "
                    f"{DOCUMENT_SECONDS:.0f} s; try again when it or the network is faster"
                )
            if size > limit_bytes:
                response.close()
                raise LimitExceeded(f"{what} has more than {limit_bytes} bytes, which are the most that is accepted")
        return b"".join(parts)
    except HTTPError as error:
        raise translated(error, url) from error


def discard(response: Response) -> None:
    """Have done with a response whose body is not needed; its connection is kept where the body is short."""
    try:
        read_body(response, _TOLD_BYTES, "a body", response.url or "")
    except (Transient, LimitExceeded):
        response.close()


def failure(response: Response, method: str, url: str) -> RegistryError:
    """What a response that is an error says ("Errors", "error codes" of the distribution specification)."""
    try:
        body = read_body(response, _TOLD_BYTES, "an error", url)
    except (Transient, LimitExceeded):
        body = b""
    message = f"{urlsplit(url).netloc} answers {response.status} to {method} {urlsplit(url).path}{_told(body)}"
    if response.status == 400 and (b"HTTPS" in body or b"SSL" in body):  # as Go, nginx and Apache say it
        message += _hint(url)
    if response.status in _PASSING:
        return Transient(message, _retry_after(response.headers.get("Retry-After")))
    return RegistryError(message)


def _told(body: bytes) -> str:
    try:
        errors = json.loads(body)["errors"]
        texts = [f"{error.get('code', '')}: {error.get('message', '')}" for error in errors]
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        text = body.decode(errors="replace").strip()
        texts = [text[:200]] if text and not text.startswith("<") else []
    return "".join(f" ({''.join(c if c.isprintable() else ' ' for c in text)[:500]})" for text in texts[:3])


def _retry_after(field: str | None) -> float | None:
    """Seconds that the field Retry-After asks for (RFC 9110, section 10.2.3)."""
    if not field:
        return None
    seconds = field.strip()
    if seconds.isascii() and seconds.isdecimal():
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(field).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
