"""The field WWW-Authenticate of a response: what a server wants to be shown (RFC 9110, sections 11.3 and 11.6.1)."""

from __future__ import annotations

import re

from layerstore.types import Value

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SCHEME = re.compile(rf"[ \t,]*({_TOKEN})(?:[ ]+|(?=,)|$)")
_PARAMETER = re.compile(rf"[ \t,]*({_TOKEN})[ \t]*=[ \t]*(?:({_TOKEN})|\"((?:[^\"\\]|\\.)*)\")[ \t]*(?=,|$)", re.DOTALL)
_TOKEN68 = re.compile(r"[A-Za-z0-9._~+/-]+=*[ \t]*(?=,|$)")


class Challenge(Value):
    """One way to be let in: its scheme, in lower case, and its parameters, their names in lower case."""

    scheme: str
    parameters: dict[str, str]


def parse_challenges(field: str) -> list[Challenge]:
    """The challenges of a field (several fields of that name joined by commas), up to what cannot be understood."""
    found: list[Challenge] = []
    at = 0
    while match := _SCHEME.match(field, at):
        at = match.end()
        parameters: dict[str, str] = {}
        while parameter := _PARAMETER.match(field, at):
            at = parameter.end()
            name, token, quoted = parameter.groups()
            parameters.setdefault(name.lower(), token if quoted is None else re.sub(r"\\(.)", r"\1", quoted))
        if not parameters and (credentials := _TOKEN68.match(field, at)):
            at = credentials.end()
        found.append(Challenge(match[1].lower(), parameters))
    return found
