"""The variables of a stage: its ARGs, --build-arg, and those that are there without an ARG
(https://docs.docker.com/reference/dockerfile/, "ARG")."""

from __future__ import annotations

from layerstore.oci.manifests import go_architecture

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY")
PREDEFINED = frozenset((*_PROXIES, *map(str.lower, _PROXIES)))


def platform() -> str:
    """What images are built for here."""
    return f"linux/{go_architecture()}"


def platform_arguments() -> dict[str, str]:
    """Those that FROM may use, and a stage that declares them."""
    architecture = go_architecture()
    return {
        f"{side}{what}": value
        for side in ("TARGET", "BUILD")
        for what, value in (
            ("PLATFORM", f"linux/{architecture}"),
            ("OS", "linux"),
            ("ARCH", architecture),
            ("VARIANT", ""),
        )
    }


class Scope:
    """The variables that ARGs have declared so far, in a stage and those that it is FROM.

    given: --build-arg, which has precedence over a default. inherited: values for an ARG without one of its own.
    """

    def __init__(self, given: Mapping[str, str], inherited: Mapping[str, str]) -> None:
        self._given = given
        self.inherited = inherited
        self.predefined = {name: value for name, value in given.items() if name in PREDEFINED}
        """Proxies: for RUN, and in no key of the cache and no history."""
        self.declared: dict[str, str] = {}
        self.used: set[str] = set(self.predefined)

    def declare(self, name: str, default: str | None) -> None:
        """What ARG does. One without any value is not set."""
        if name in self._given:
            self.used.add(name)
            self.declared[name] = self._given[name]
        elif default is not None:
            self.declared[name] = default
        elif name in self.inherited:
            self.declared[name] = self.inherited[name]

    @property
    def variables(self) -> dict[str, str]:
        """For expansion."""
        return {**self.predefined, **self.declared}

    def unused(self, others: Iterable[Scope]) -> list[str]:
        """Those given that no ARG, here or in others, has asked for."""
        used = self.used.union(*(other.used for other in others))
        return sorted(set(self._given) - used)
