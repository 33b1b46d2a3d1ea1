"""Keeping credentials where docker, podman and this library find them: docker's config.json, or the helper in it."""

from __future__ import annotations

import base64
import json
import os

from layerstore.errors import NotFound, RegistryError
from layerstore.registry.client import Client
from layerstore.registry.credentials import (
    HUB_KEY,
    Credentials,
    bare_key,
    docker_config,
    find_credentials,
    read_config,
    run_helper,
)
from layerstore.registry.references import DOCKER_HUB, Reference, parse_registry
from layerstore.store import durable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def login(
    registry: str,
    user: str,
    password: str,
    *,
    plain_http: bool = False,
    ca_file: str | os.PathLike[str] | None = None,
) -> str:
    """Show a registry a user's password and, where it takes it, keep it; returns where: a path or a helper's name.

    Raises `AccessDenied`, `RegistryError`, `InvalidInput`, `CorruptError`, `OSError`.
    """
    credentials = Credentials(user, password)
    registry = parse_registry(registry)
    reference = Reference(registry, "any", None, None)
    with Client(reference, plain_http=plain_http, ca_file=ca_file, find=lambda: credentials) as client:
        client.check()
    key = _key(registry)
    config = read_config(docker_config())
    if helper := _helper(config, key):
        secret = {"ServerURL": key, "Username": user, "Secret": password}
        run_helper(helper, "store", json.dumps(secret))
        return f"docker-credential-{helper}"
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    config.setdefault("auths", {})[key] = {"auth": auth}
    _write(config)
    return docker_config()


def logout(registry: str) -> None:
    """Forget the credentials for a registry. Raises `NotFound` where docker's config has none, as `login` else."""
    registry = parse_registry(registry)
    key = _key(registry)
    config = read_config(docker_config())
    helper = _helper(config, key)
    if helper and find_credentials(registry) is not None:
        run_helper(helper, "erase", key)
        return
    auths = config.get("auths") or {}
    kept = {name: entry for name, entry in auths.items() if bare_key(name) != bare_key(key)}
    if len(kept) == len(auths):
        raise NotFound(f"{docker_config()} has no credentials for {registry}")
    config["auths"] = kept
    _write(config)


def _key(registry: str) -> str:
    return HUB_KEY if registry == DOCKER_HUB else registry


def _helper(config: dict[str, Any], key: str) -> str:
    helpers = config.get("credHelpers")
    helper = (helpers.get(key) if isinstance(helpers, dict) else None) or config.get("credsStore") or ""
    if not isinstance(helper, str):
        raise RegistryError(f"{docker_config()} names {helper!r} as the helper for {key}, which is no name")
    return helper


def _write(config: dict[str, Any]) -> None:
    path = os.path.realpath(docker_config())
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    durable.write_file(path, json.dumps(config, indent="\t").encode())
