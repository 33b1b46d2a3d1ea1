"""Fuzzes what reads names of images, the fields and bodies of a registry's answers, and files of credentials."""

import contextlib
import os

import atheris
from harness import fuzz, require, text_of

with atheris.instrument_imports(include=["layerstore"]):
    from layerstore.errors import CorruptError, InvalidInput, NotFound, RegistryError
    from layerstore.registry import authorization, challenges, credentials, references, transport
    from layerstore.types import full_name, normalise_name

URL = "https://registry.example.com/v2/a/blobs/uploads/"


def read_name(data: bytes) -> None:
    text = text_of(data)
    with contextlib.suppress(InvalidInput):
        registry = references.parse_registry(text)
        require(references.parse_registry(registry) == registry, "a registry is one")
    reference = references.parse_reference(text)
    again = references.parse_reference(str(reference))
    require(
        (again.registry, again.repository, again.digest)
        == (reference.registry, reference.repository, reference.digest),
        "a reference is read as it is shown",
    )
    name = normalise_name(text)
    require(normalise_name(name) == name and normalise_name(full_name(name)) == name, "a name in full is the same one")


def read_challenges(data: bytes) -> None:
    for challenge in challenges.parse_challenges(data.decode("latin-1")):
        require(challenge.scheme == challenge.scheme.lower() != "", "a challenge has a scheme")


def read_fields(data: bytes) -> None:
    text = data.decode("latin-1")
    seconds = transport._retry_after(text)
    require(seconds is None or seconds >= 0, "nothing is to be tried again in the past")
    target = transport.target_of(URL, text)
    require(transport.origin_of(target)[0] == "https", "TLS is not given up")
    transport.shown(target)


def read_bodies(data: bytes) -> None:
    require(len(transport._told(data)) < 2000, "what a registry says is short")
    token, life = authorization._token_in(data, URL)
    require(token.isprintable() and life == life, "a token can be sent")


def read_credentials(data: bytes) -> None:
    """The helpers that a file names are not run: they answer with the file."""
    credentials.run_helper = lambda helper, verb, given: data if given.isascii() else None
    with memory(data) as path:
        document = credentials.read_config(path)
    for registry, repository in (("docker.io", "library/a"), ("r.example.com:5000", "a/b/c")):
        found = credentials._in_file(document, "config.json", registry, repository)
        require(found is None or found.basic.isascii(), "credentials can be sent")
        credentials.auths_of_others(document, registry)


@contextlib.contextmanager
def memory(data: bytes):  # type: ignore[no-untyped-def]
    """The path of a file with that content."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


if __name__ == "__main__":
    fuzz(
        (read_name, read_challenges, read_fields, read_bodies, read_credentials),
        (CorruptError, InvalidInput, NotFound, RegistryError),
    )
