"""Instructions of a Dockerfile that change an image's config, as `docker commit --change` takes them
(https://docs.docker.com/reference/dockerfile/; what they become: the OCI image specification, "config.md")."""

from __future__ import annotations

import json
import posixpath
import re
from signal import Signals

from layerstore.errors import InvalidInput
from layerstore.oci.words import expand, pairs, split_words

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from typing import Any

_SHELL = ["/bin/sh", "-c"]
# Compiled where one is needed, as that takes longer than most else.
_PORT = r"(?ai)(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?(?:/(?P<protocol>tcp|udp|sctp))?"
_LAST_PORT = 65535
_FIELDS_OF_TEXTS = ("Cmd", "Entrypoint", "Env", "OnBuild", "Shell")
_FIELDS_OF_OBJECTS = ("ExposedPorts", "Labels", "Volumes")
_LAST_SIGNAL = 64
_DURATION_PART = r"(?a)(\d+(?:\.\d*)?|\.\d+)(ns|us|µs|μs|ms|s|m|h)"
_LONGEST_NANOSECONDS = 2.0**62  # of the 63 bits that docker has for them
_NANOSECONDS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}


def apply_changes(config: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The "config" object of an image after instructions, one a string: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK,
    LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR, by docker's rules. ENTRYPOINT takes away a CMD that the image
    had before.

    Raises `InvalidInput` naming the instruction.
    """
    changing = ConfigChanges(config)
    for change in changes:
        changing.apply(change)
    return changing.config


class ConfigChanges:
    """A "config" object that instructions change one after another. Not for two threads at once.

    `config` is what it is now, `arguments` the variables that there are beside those of the config's environment, which
    have precedence. `escape` is the escape character. Raises `InvalidInput` for a config whose fields are none that
    the specification has.
    """

    def __init__(self, config: Mapping[str, Any], escape: str = "\\") -> None:
        self.config = dict(config)
        for field in _FIELDS_OF_TEXTS:
            value = config.get(field) or []
            if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
                raise InvalidInput(f"the {field!r} of the image's config is no list of strings")
        for field in _FIELDS_OF_OBJECTS:
            if not isinstance(config.get(field) or {}, dict):
                raise InvalidInput(f"the {field!r} of the image's config is no object")
        self.arguments: Mapping[str, str] = {}
        self._escape = escape
        self._has_command = False

    def apply(self, line: str) -> None:
        """Raises `InvalidInput` naming the instruction."""
        name, _, rest = line.strip().partition(" ")
        action = _INSTRUCTIONS.get(name.upper())
        if action is None:
            known = ", ".join(sorted(_INSTRUCTIONS))
            raise InvalidInput(f"{line!r} changes no config; an instruction is one of {known}")
        if not rest.strip():
            raise InvalidInput(f"{name.upper()} needs an argument")
        action(self, rest.strip())

    @property
    def environment(self) -> dict[str, str]:
        """The variables of the config."""
        return dict(entry.partition("=")[::2] for entry in self.config.get("Env") or [])

    def expanded(self, word: str, *, keeps_quotes: bool = False) -> str:
        """A word without quotes, or text that `keeps_quotes`, as a heredoc, with its variables replaced. Raises
        `InvalidInput`."""
        return expand(word, {**self.arguments, **self.environment}, self._escape, keeps_quotes=keeps_quotes)

    def command_line(self, text: str) -> list[str]:
        """The arguments of a command in the exec form, or of the shell in the other. Raises `InvalidInput`."""
        words = exec_form(text)
        return [*(self.config.get("Shell") or _SHELL), text] if words is None else words

    def _cmd(self, text: str) -> None:
        self.config["Cmd"] = self.command_line(text)
        self._has_command = True

    def _entrypoint(self, text: str) -> None:
        self.config["Entrypoint"] = self.command_line(text) or None
        if not self._has_command:
            self.config["Cmd"] = None

    def _env(self, text: str) -> None:
        entries = list(self.config.get("Env") or [])
        for key, value in self._pairs(text, "ENV"):
            if not key:
                raise InvalidInput(f"ENV {text}: a variable has a name before the '='")
            place = next((i for i, entry in enumerate(entries) if entry.partition("=")[0] == key), len(entries))
            entries[place : place + 1] = [f"{key}={value}"]
        self.config["Env"] = entries

    def _label(self, text: str) -> None:
        self.config["Labels"] = {**(self.config.get("Labels") or {}), **dict(self._pairs(text, "LABEL"))}

    def _pairs(self, text: str, what: str) -> list[tuple[str, str]]:
        # All of a line is expanded with what the variables were before it.
        return [(self.expanded(key), self.expanded(value)) for key, value in pairs(text, what, self._escape)]

    def _expose(self, text: str) -> None:
        ports = dict(self.config.get("ExposedPorts") or {})
        for word in split_words(text, self._escape):
            ports.update((port, {}) for port in _ports(self.expanded(word)))
        self.config["ExposedPorts"] = ports

    def _volume(self, text: str) -> None:
        words = exec_form(text)
        paths = [self.expanded(word).strip() for word in (split_words(text, self._escape) if words is None else words)]
        if not paths or "" in paths:
            raise InvalidInput(f"VOLUME {text}: a volume's path is empty")
        self.config["Volumes"] = {**(self.config.get("Volumes") or {}), **{path: {} for path in paths}}

    def _user(self, text: str) -> None:
        self.config["User"] = self.expanded(text)

    def _workdir(self, text: str) -> None:
        path = self.expanded(text)
        if not path.startswith("/"):
            path = posixpath.normpath(f"/{self.config.get('WorkingDir') or ''}/{path}")
            path = "/" + path.lstrip("/")  # two at the beginning have a meaning of their own to normpath
        self.config["WorkingDir"] = path

    def _onbuild(self, text: str) -> None:
        trigger = text.partition(" ")[0].upper()
        if trigger in ("ONBUILD", "FROM", "MAINTAINER"):
            raise InvalidInput(f"ONBUILD {trigger} is not allowed")
        self.config["OnBuild"] = [*(self.config.get("OnBuild") or []), text]

    def _stopsignal(self, text: str) -> None:
        signal = self.expanded(text)
        name = re.sub(r"(?a)(?<=RTMIN)\+\d+$|(?<=RTMAX)-\d+$", "", signal.upper().removeprefix("SIG"))
        if f"SIG{name}" not in Signals.__members__ and signal not in map(str, range(1, _LAST_SIGNAL + 1)):
            raise InvalidInput(f"STOPSIGNAL {signal}: there is no such signal")
        self.config["StopSignal"] = signal

    def _healthcheck(self, text: str) -> None:
        check: dict[str, Any] = {}
        words = text.split()
        count = next((count for count, word in enumerate(words) if not word.startswith("--")), len(words))
        for word in words[:count]:
            option, _, value = word.removeprefix("--").partition("=")
            _add_check_option(check, option, value)
        words = words[count:]
        kind, rest = (words or [""])[0].upper(), text.partition((words or [""])[0])[2].strip()
        if kind == "NONE" and not check and len(words) == 1:
            check["Test"] = ["NONE"]
        elif kind == "CMD" and rest:
            program = exec_form(rest)
            check["Test"] = ["CMD-SHELL", rest] if program is None else ["CMD", *program]
        else:
            raise InvalidInput(f"HEALTHCHECK {text}: it is NONE, or options and CMD with a command")
        self.config["Healthcheck"] = check


_INSTRUCTIONS: dict[str, Callable[[ConfigChanges, str], None]] = {
    "CMD": ConfigChanges._cmd,
    "ENTRYPOINT": ConfigChanges._entrypoint,
    "ENV": ConfigChanges._env,
    "EXPOSE": ConfigChanges._expose,
    "HEALTHCHECK": ConfigChanges._healthcheck,
    "LABEL": ConfigChanges._label,
    "ONBUILD": ConfigChanges._onbuild,
    "STOPSIGNAL": ConfigChanges._stopsignal,
    "USER": ConfigChanges._user,
    "VOLUME": ConfigChanges._volume,
    "WORKDIR": ConfigChanges._workdir,
}


def exec_form(text: str) -> list[str] | None:
    """The strings of the exec form; None for anything else, which is the shell form. Raises `InvalidInput`."""
    if not text.startswith("["):
        return None
    try:
        words = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not all(isinstance(word, str) for word in words):
        raise InvalidInput(f"{text}: the exec form is a list of strings")
    return list(words)


def _ports(text: str) -> list[str]:
    match = re.fullmatch(_PORT, text)
    if match is None:
        raise InvalidInput(f"EXPOSE {text}: it is a port or a range of them, and perhaps /tcp, /udp or /sctp")
    first = int(match["first"])
    last = int(match["last"] or first)
    if not 0 < first <= last <= _LAST_PORT:
        raise InvalidInput(f"EXPOSE {text}: ports are 1 to {_LAST_PORT}, the smaller one first")
    protocol = (match["protocol"] or "tcp").lower()
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _add_check_option(check: dict[str, Any], option: str, value: str) -> None:
    names = {
        "interval": "Interval",
        "timeout": "Timeout",
        "start-period": "StartPeriod",
        "start-interval": "StartInterval",
    }
    if option == "retries" and value.isdecimal() and len(value) < 10:
        check["Retries"] = int(value)
    elif option in names:
        check[names[option]] = _nanoseconds(value)
    else:
        raise InvalidInput(
            f"HEALTHCHECK --{option}={value}: options are {', '.join(f'--{name}' for name in names)} and --retries"
        )


def _nanoseconds(text: str) -> int:
    """A duration as Go writes it: "1m30s"."""
    part, at, total = re.compile(_DURATION_PART), 0, 0.0
    while match := part.match(text, at):
        total += float(match[1]) * _NANOSECONDS[match[2]]
        at = match.end()
    if not text or at < len(text) or total > _LONGEST_NANOSECONDS:
        raise InvalidInput(f"HEALTHCHECK: {text[:100]!r} is no duration; it is like 30s or 1m30s")
    return round(total)
