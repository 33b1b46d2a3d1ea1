"""Being let in by a registry: Basic, and Bearer tokens from the server that it names
("Token Authentication Specification" and "OAuth2 Token Authentication" of distribution)."""

from __future__ import annotations

import json
import re
import threading
import time
from urllib.parse import urlencode

from layerstore.errors import AccessDenied, RegistryError
from layerstore.registry.references import is_loopback
from layerstore.registry.transport import discard, failure, origin_of, read_body, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerstore.registry.challenges import Challenge
    from layerstore.registry.credentials import Credentials
    from layerstore.registry.transport import Patience, Transport

_ANSWER_BYTES = 1 << 20
_LIFE_SECONDS = 60
"""Of a token that does not say how long it lasts."""
_MARGIN_SECONDS = 10
_CLIENT = "layerstore"
_TOKEN = re.compile(r"[\x21-\x7e]+")


class Authorization:
    """What to send as Authorization to one registry. Safe for many threads.

    registry: as names spell it, for messages. origin: its (`origin_of`).
    find: gives its credentials, or None; it is asked when they are needed first.
    is_login: they are tried before they are kept.
    """

    def __init__(
        self,
        registry: str,
        origin: tuple[str, str | None, int | None],
        find: Callable[[], Credentials | None],
        transport: Transport,
        patience: Patience,
        *,
        is_login: bool = False,
    ) -> None:
        self._registry = registry
        self._is_login = is_login
        self._origin = origin
        self._find = find
        self._transport = transport
        self._patience = patience
        self._lock = threading.Lock()
        self._challenge: Challenge | None = None
        self._credentials: Credentials | None = None
        self._more_scopes: dict[tuple[str, ...], list[str]] = {}
        self._tokens: dict[tuple[str, ...], tuple[str, float]] = {}

    def header(self, scopes: Sequence[str]) -> str | None:
        """The value for a request that needs these scopes; None until the registry has asked for one (`challenged`).

        Raises `AccessDenied`, `RegistryError`.
        """
        with self._lock:
            if self._challenge is None:
                return None
            if self._challenge.scheme == "basic":
                assert self._credentials is not None
                return self._credentials.basic
            key = tuple(sorted(scopes))
            token, until = self._tokens.get(key, ("", 0.0))
            if time.monotonic() >= until:
                token, life = self._patience.keep_trying(lambda: self._fetch(key))
                self._tokens[key] = token, time.monotonic() + max(1.0, life - _MARGIN_SECONDS)
            return f"Bearer {token}"

    def challenged(self, challenges: Sequence[Challenge], scopes: Sequence[str], sent: str | None) -> None:
        """Take note of what the registry asked for when it refused a request with `sent`.

        Raises `AccessDenied` where there is nothing else to show it.
        """
        with self._lock:
            if self._credentials is None:
                self._credentials = self._find()
            for challenge in challenges:
                is_basic = challenge.scheme == "basic"
                if challenge.scheme == "bearer" and "realm" in challenge.parameters:
                    if sent is not None and sent != f"Bearer {self._tokens.pop(tuple(sorted(scopes)), ('', 0))[0]}":
                        return  # another thread has a newer one
                elif not is_basic or self._credentials is None or self._credentials.identity_token or sent is not None:
                    continue
                self._challenge = challenge
                self._more_scopes[tuple(sorted(scopes))] = _not_in(scopes, challenge.parameters.get("scope", ""))
                return
        raise self.denied(scopes)

    def denied(self, scopes: Sequence[str]) -> AccessDenied:
        """That it lets nobody do this, or not the user that is known."""
        wanted = ", ".join(scopes) or "its API"
        if self._credentials is None:
            return AccessDenied(
                f"{self._registry} wants credentials for {wanted}, and none are kept; `layerstore login "
                f"{self._registry}` keeps some, as `docker login` and `podman login` do; or there is no such repository"
            )
        refusal = f"{self._registry} does not let the user {self._credentials.user!r}"
        if self._is_login:
            return AccessDenied(f"{refusal} in with this password; is it mistyped?")
        return AccessDenied(
            f"{refusal} with the password that is kept have {wanted}; `layerstore login {self._registry}` keeps "
            "another one"
        )

    def _fetch(self, scopes: tuple[str, ...]) -> tuple[str, float]:
        """A new token and the seconds that it lasts. Under the lock."""
        assert self._challenge is not None
        scopes = (*scopes, *self._more_scopes.get(scopes, ()))
        realm = self._challenge.parameters["realm"]
        service = self._challenge.parameters.get("service", "")
        self._check_realm(realm)
        who = self._credentials
        headers: dict[str, str] = {}
        body: bytes | None = None
        method = "GET"
        if who is not None and who.identity_token:
            method = "POST"
            form = {"grant_type": "refresh_token", "service": service, "client_id": _CLIENT}
            form |= {"scope": " ".join(scopes), "refresh_token": who.identity_token}
            body = urlencode(form).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            url = realm
        else:
            query = [("service", service)] * bool(service) + [("scope", scope) for scope in scopes]
            if who is not None:
                query.append(("account", who.user))
                headers["Authorization"] = who.basic
            url = realm + ("&" if "?" in realm else "?") + urlencode(query)
        response = self._transport.send(method, url, headers, body)
        if response.status in (400, 401, 403):
            discard(response)
            raise self.denied(scopes)
        if response.status != 200:
            raise failure(response, method, url)
        return _token_in(read_body(response, _ANSWER_BYTES, "a token", url), realm)

    def _check_realm(self, realm: str) -> None:
        """Where the registry sends us for a token: a password goes there."""
        scheme, host, _ = origin_of(realm)
        here = is_loopback(self._origin[1]) and is_loopback(host)
        safe = scheme == "https" or (scheme == "http" and (here or self._credentials is None))
        if not safe or not host:
            raise AccessDenied(
                f"{self._registry} sends its users to {realm!r} for a token, where a password would not be secret; "
                "nothing was sent there"
            )


def _not_in(scopes: Sequence[str], said: str) -> list[str]:
    """What a registry says that a request needs and that is not among our scopes: some have scopes of their own.

    Nothing where we need none, as at a login: there some name an example, which nobody may have.
    """
    ours = {right for scope in scopes for right in _rights(scope)}
    return [scope for scope in said.split() if scopes and not _rights(scope) <= ours]


def _rights(scope: str) -> set[tuple[str, str]]:
    """Each action that a scope is for, with what it is done to ("Token Scope Documentation" of distribution)."""
    resource, _, actions = scope.rpartition(":")
    return {(resource, action) for action in actions.split(",")}


def _token_in(body: bytes, realm: str) -> tuple[str, float]:
    try:
        answer = json.loads(body)
        token = answer.get("token") or answer["access_token"]
        life = float(answer.get("expires_in") or _LIFE_SECONDS)
        if not isinstance(token, str) or not _TOKEN.fullmatch(token):
            raise ValueError("it is no text of printable characters")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise RegistryError(f"{shown(realm)} gave no token that can be used: {error}") from None
    return token, life
