"""Who to be at a registry, from the files that docker and podman keep that in, and from their helper programs.

Sources: docker's `config.json` ("docker login", "Credential helpers" in its manual), containers-auth.json(5), and the
protocol of docker-credential-helpers.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re

from layerstore.errors import CorruptError, InvalidInput, NotFound, RegistryError
from layerstore.registry.references import DOCKER_HUB
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HUB_KEY = "https://index.docker.io/v1/"
_LIMIT_BYTES = 8 << 20
_HELPER_SECONDS = 60
_HELPER_NAME = re.compile(r"[A-Za-z0-9_.-]+")
_TOKEN_USER = "<token>"


class Credentials(Value):
    """A user and password; or an identity token, which a token server gives access tokens for (then no password).

    Raises `InvalidInput` where one of them is no UTF-8, as RFC 7617 has it.
    """

    def __init__(self, user: str, password: str, identity_token: str = "") -> None:
        try:
            (user + password + identity_token).encode()
        except UnicodeEncodeError:
            raise InvalidInput("the user or the password for a registry is not UTF-8") from None
        self.user = user
        self.password = password
        self.identity_token = identity_token

    def __repr__(self) -> str:
        return f"<Credentials of {self.user}>"

    @property
    def basic(self) -> str:
        """The value of Authorization for the scheme Basic (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_credentials(registry: str, repository: str = "") -> Credentials | None:
    """The credentials kept for a registry (as names spell it), the most specific for the repository; None for none.

    The first file that has some decides: $REGISTRY_AUTH_FILE alone where it is set; else podman's auth.json in
    $XDG_RUNTIME_DIR/containers (or /run/containers/UID), docker's config.json in $DOCKER_CONFIG (or ~/.docker).
    Raises `CorruptError` where a file cannot be read as one, `NotFound` where its helper is not installed,
    `RegistryError` where a helper fails, `InvalidInput`, `OSError`.
    """
    for path in credential_files():
        document = read_config(path)
        found = _in_file(document, path, registry, repository)
        if found is not None:
            return found
    return None


def credential_files() -> list[str]:
    """The files that may hold credentials, in the order in which they are read."""
    given = os.environ.get("REGISTRY_AUTH_FILE")
    if given:
        return [given]
    run = os.environ.get("XDG_RUNTIME_DIR")
    podmans = os.path.join(run, "containers/auth.json") if run else f"/run/containers/{os.getuid()}/auth.json"
    directory = os.environ.get("DOCKER_CONFIG") or os.path.expanduser("~/.docker")
    return [podmans, os.path.join(directory, "config.json")]


def read_config(path: str) -> dict[str, Any]:
    """A file that may hold credentials; empty where there is none. Raises `CorruptError`, `OSError`."""
    try:
        with open(path, "rb") as file:
            document = json.loads(file.read(_LIMIT_BYTES))
        if not isinstance(document, dict):
            raise ValueError("it is not a JSON object")
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise CorruptError(f"{path}, which may hold credentials, cannot be read ({error}); mend or remove it") from None
    return document


def _in_file(document: dict[str, Any], path: str, registry: str, repository: str) -> Credentials | None:
    keys = _keys(registry, repository)
    helper = _own_helper(document, keys)
    if helper is None:
        auths = auths_of(document)
        by_name = {**{_bare_key(name): entry for name, entry in auths.items()}, **auths}
        names = (name for key in keys for name in (key, _bare_key(key)))
        found = next((by_name[name] for name in names if isinstance(by_name.get(name), dict)), None)
        if found:
            return _of_entry(found, path, registry)
        helper = _helper_of_all(document, registry)
    return of_helper(*helper) if helper else None


def helper_of(document: dict[str, Any], registry: str) -> tuple[str, str] | None:
    """The helper that a file has for a registry, and the key that it is to keep its credentials under."""
    return _own_helper(document, _keys(registry, "")) or _helper_of_all(document, registry)


def _own_helper(document: dict[str, Any], keys: list[str]) -> tuple[str, str] | None:
    helpers = _object(document, "credHelpers")
    return next(((helpers[key], key) for key in keys if helpers.get(key) and isinstance(helpers[key], str)), None)


def _helper_of_all(document: dict[str, Any], registry: str) -> tuple[str, str] | None:
    store = document.get("credsStore")
    return (store, key_of(registry)) if isinstance(store, str) and store else None


def auths_of(document: dict[str, Any]) -> dict[str, Any]:
    """The entries of a file, by registry or repository."""
    return _object(document, "auths")


def auths_of_others(document: dict[str, Any], registry: str) -> dict[str, Any]:
    """The entries of a file but for those of a registry, however it is spelled there."""
    own = set(map(_bare_key, _keys(registry, "")))
    return {name: entry for name, entry in auths_of(document).items() if _bare_key(name) not in own}


def key_of(registry: str) -> str:
    """What docker keeps the credentials for a registry under."""
    return _HUB_KEY if registry == DOCKER_HUB else registry


def _object(document: dict[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _keys(registry: str, repository: str) -> list[str]:
    """What may be the key of an entry, the most specific first."""
    parts = repository.split("/") if repository else []
    keys = ["/".join([registry, *parts[:count]]) for count in range(len(parts), -1, -1)]
    return [*keys, _HUB_KEY, "index.docker.io"] if registry == DOCKER_HUB else keys


def _bare_key(key: str) -> str:
    """A key without what old versions of docker put around the host."""
    bare = key.removeprefix("https://").removeprefix("http://").rstrip("/")
    return re.sub(r"/v[12]$", "", bare)


def _of_entry(entry: dict[str, Any], path: str, registry: str) -> Credentials:
    identity_token = entry.get("identitytoken")
    user, password = entry.get("username") or "", entry.get("password") or ""
    if entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
            if not colon:
                raise ValueError("there is no colon in it")
        except (binascii.Error, ValueError) as error:
            raise CorruptError(f'"auth" of {registry} in {path} is not user:password in base64 ({error})') from None
    return Credentials(str(user), str(password).rstrip("\0"), identity_token if isinstance(identity_token, str) else "")


def of_helper(helper: str, key: str) -> Credentials | None:
    """What the helper keeps for the key. Raises `RegistryError`, and as `run_helper`."""
    said = run_helper(helper, "get", key)
    if said is None:
        return None
    try:
        answer = json.loads(said)
        user, secret = answer["Username"], answer["Secret"]
        if not (isinstance(user, str) and isinstance(secret, str)):
            raise TypeError("they are no strings")
    except (ValueError, LookupError, TypeError) as error:
        raise RegistryError(f"what docker-credential-{helper} gave for {key} is not credentials: {error}") from None
    if not user and not secret:
        return None
    return Credentials("", "", secret) if user == _TOKEN_USER else Credentials(user, secret)


def run_helper(helper: str, verb: str, given: str) -> bytes | None:
    """What the program `docker-credential-HELPER VERB` says when it is given that; None where it has no credentials.

    Raises `CorruptError` for a helper that has no such name, `NotFound` for one that is not installed, `RegistryError`.
    """
    import subprocess

    if not _HELPER_NAME.fullmatch(helper):
        raise CorruptError(f"{helper!r} cannot be the name of a credential helper; mend docker's or podman's config")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, verb], input=given.encode(), capture_output=True, timeout=_HELPER_SECONDS)
    except FileNotFoundError:
        raise NotFound(f"{program}, which keeps the credentials, is not installed") from None
    except subprocess.TimeoutExpired:
        raise RegistryError(f"{program} {verb} did not end within {_HELPER_SECONDS} s") from None
    if done.returncode:
        said = (done.stdout or done.stderr).decode(errors="replace").strip()
        if "credentials not found" in said:
            return None
        raise RegistryError(f"{program} {verb} failed: {said[:500]}")
    return done.stdout
