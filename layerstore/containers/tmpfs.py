"""A tmpfs in a container, as docker's --tmpfs says it."""

from __future__ import annotations

import posixpath
import re

from layerstore.errors import InvalidInput
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_USUAL = ("noexec", "nosuid", "nodev")
_OPPOSITES = {"exec": "noexec", "suid": "nosuid", "dev": "nodev", "rw": "ro"}
_FLAGS = {*_OPPOSITES, *_OPPOSITES.values(), "noatime", "nodiratime", "relatime", "strictatime", "sync"}
_VALUES = {
    "size": "[0-9]+[kmgKMG%]?",
    "nr_blocks": "[0-9]+[kmgKMG]?",
    "nr_inodes": "[0-9]+[kmgKMG]?",
    "mode": "[0-7]{3,4}",
    "uid": "[0-9]+",
    "gid": "[0-9]+",
}


class Tmpfs(Value):
    """A file system in memory at the absolute path `target`, with these options of mount(8)."""

    def __init__(self, target: str, options: tuple[str, ...] = _USUAL) -> None:
        self.target = target
        self.options = options

    def mount(self) -> dict[str, Any]:
        """As one of `mounts` of the OCI runtime specification."""
        return {"destination": self.target, "type": "tmpfs", "source": "tmpfs", "options": list(self.options)}


def tmpfs(text: str) -> Tmpfs:
    """Of PATH[:OPTION,...]; without options it is noexec, nosuid and nodev. Raises `InvalidInput`."""
    path, _, rest = text.partition(":")
    target = "/" + posixpath.normpath(path).lstrip("/")
    if not path.startswith("/") or target == "/" or "\0" in text:
        raise InvalidInput(f'the tmpfs "{text}" is not PATH[:OPTION,...] with an absolute path below /')
    options = list(_USUAL)
    for option in filter(None, rest.split(",")):
        name, separator, value = option.partition("=")
        if not (re.fullmatch(_VALUES[name], value, re.ASCII) if separator and name in _VALUES else option in _FLAGS):
            known = ", ".join([*sorted(_FLAGS), *(f"{name}=" for name in _VALUES)])
            raise InvalidInput(f'the tmpfs "{text}" has the option "{option}": there are {known}')
        against = {_OPPOSITES.get(option), *(one for one, other in _OPPOSITES.items() if other == option)}
        options = [one for one in options if one not in against and one != option] + [option]
    return Tmpfs(target, tuple(options))
