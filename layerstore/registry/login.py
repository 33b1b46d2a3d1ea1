"""Keeping credentials where docker, podman and this library look: in a file of theirs, or with its helper."""

from __future__ import annotations

import base64
import json
import os

from layerstore.errors import NotFound
from layerstore.registry.client import Client
from layerstore.registry.credentials import (
    Credentials,
    auths_of,
    auths_of_others,
    credential_files,
    helper_of,
    key_of,
    of_helper,
    read_config,
    run_helper,
)
from layerstore.registry.references import Reference, parse_registry
from layerstore.store import durable
from layerstore.store.pieces import write_at

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

    It is kept by the file that is read first of those that know the registry, by docker's if none does. What
    that had of it is replaced.

    Raises `AccessDenied`, `RegistryError`, `InvalidInput`, `CorruptError`, `OSError`.
    """
    credentials = Credentials(user, password)
    registry = parse_registry(registry)
    reference = Reference(registry, "any", None, None)
    with Client(reference, plain_http=plain_http, ca_file=ca_file, find=lambda: credentials) as client:
        client.check()
    files = credential_files()
    path = next((path for path in files if _knows(read_config(path), registry)), files[-1])
    config = read_config(path)
    others = auths_of_others(config, registry)
    if helper := helper_of(config, registry):
        program, key = helper
        run_helper(program, "store", json.dumps({"ServerURL": key, "Username": user, "Secret": password}))
        _keep_auths(path, config, others)
        return f"docker-credential-{program}"
    auth = base64.b64encode(f"{user}:{password}".encode()).decode()
    _keep_auths(path, config, {**others, key_of(registry): {"auth": auth}})
    return path


def logout(registry: str) -> None:
    """Forget the credentials for a registry, in every file where they would be looked for and with its helper.

    Raises `NotFound` where there are none, and as `login`.
    """
    registry = parse_registry(registry)
    files = credential_files()
    known = False
    for path in files:
        config = read_config(path)
        helper = helper_of(config, registry)
        if helper and of_helper(*helper) is not None:
            run_helper(helper[0], "erase", helper[1])
            known = True
        known |= _keep_auths(path, config, auths_of_others(config, registry))
    if not known:
        raise NotFound(f"no credentials for {registry} are kept in {' or '.join(files)}")


def _knows(config: dict[str, Any], registry: str) -> bool:
    return helper_of(config, registry) is not None or auths_of_others(config, registry) != auths_of(config)


def _keep_auths(path: str, config: dict[str, Any], auths: dict[str, Any]) -> bool:
    """Have these entries in a file; returns whether it had others."""
    if auths == auths_of(config):
        return False
    path = os.path.realpath(path)
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    # This way what is left of one that was killed, which has passwords in it, goes with the next.
    with durable.replacing(path) as fd:
        write_at(fd, json.dumps({**config, "auths": auths}, indent="\t").encode(), 0)
    return True
