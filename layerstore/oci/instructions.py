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
_PORT = re.compile(
    r"(?P<first>\d{1,5})(?:-(?P<last>\d{1,5}))?(?:/(?P<protocol>tcp|udp|sctp))?", re.ASCII | re.IGNORECASE
)
_LAST_PORT = 65535
_LAST_SIGNAL = 64
_DURATION_PART = re.compile(r"(?a)(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
_NANOSECONDS = {"ns": 1, "us": 1e3, "µs": 1e3, "μs": 1e3, "ms": 1e6, "s": 1e9, "m": 60e9, "h": 3600e9}


def apply_changes(config: Mapping[str, Any], changes: Iterable[str]) -> dict[str, Any]:
    """The "config" object of an image after instructions, one a string: CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK,
    LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME, WORKDIR, by docker's rules. ENTRYPOINT takes away a CMD that the image
    had before.

    Raises `InvalidInput` naming the instruction.
    """
    changing = _Changing(config)
    for change in changes:
        changing.apply(change)
    return changing.config


class _Changing:
    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = dict(config)
        self._has_command = False

    def apply(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        action = _INSTRUCTIONS.get(name.upper())
        if action is None:
            known = ", ".join(sorted(_INSTRUCTIONS))
            raise InvalidInput(f"{line!r} changes no config; an instruction is one of {known}")
        if not rest.strip():
            raise InvalidInput(f"{name.upper()} needs an argument")
        action(self, rest.strip())

    def _expanded(self, word: str) -> str:
        variables = dict(entry.partition("=")[::2] for entry in self.config.get("Env") or [])
        return expand(word, variables)

    def _command_line(self, text: str) -> list[str]:
        words = _json_words(text)
        return [*(self.config.get("Shell") or _SHELL), text] if words is None else words

    def _cmd(self, text: str) -> None:
        self.config["Cmd"] = self._command_line(text)
        self._has_command = True

    def _entrypoint(self, text: str) -> None:
        self.config["Entrypoint"] = self._command_line(text) or None
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
        return [(self._expanded(key), self._expanded(value)) for key, value in pairs(text, what)]

    def _expose(self, text: str) -> None:
        ports = dict(self.config.get("ExposedPorts") or {})
        for word in split_words(text):
            ports.update((port, {}) for port in _ports(self._expanded(word)))
        self.config["ExposedPorts"] = ports

    def _volume(self, text: str) -> None:
        words = _json_words(text)
        paths = [self._expanded(word).strip() for word in (split_words(text) if words is None else words)]
        if not paths or "" in paths:
            raise InvalidInput(f"VOLUME {text}: a volume's path is empty")
        self.config["Volumes"] = {**(self.config.get("Volumes") or {}), **{path: {} for path in paths}}

    def _user(self, text: str) -> None:
        self.config["User"] = self._expanded(text)

    def _workdir(self, text: str) -> None:
        path = self._expanded(text)
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
        signal = self._expanded(text)
        name = re.sub(r"(?a)(?<=RTMIN)\+\d+$|(?<=RTMAX)-\d+$", "", signal.upper().removeprefix("SIG"))
        if f"SIG{name}" not in Signals.__members__ and not (signal.isdecimal() and 1 <= int(signal) <= _LAST_SIGNAL):
            raise InvalidInput(f"STOPSIGNAL {signal}: there is no such signal")
        self.config["StopSignal"] = signal

    def _healthcheck(self, text: str) -> None:
        check: dict[str, Any] = {}
        words = text.split()
        while words and words[0].startswith("--"):
            option, _, value = words.pop(0).removeprefix("--").partition("=")
            _add_check_option(check, option, value)
        kind, rest = (words or [""])[0].upper(), text.partition((words or [""])[0])[2].strip()
        if kind == "NONE" and not check and len(words) == 1:
            check["Test"] = ["NONE"]
        elif kind == "CMD" and rest:
            exec_form = _json_words(rest)
            check["Test"] = ["CMD-SHELL", rest] if exec_form is None else ["CMD", *exec_form]
        else:
            raise InvalidInput(f"HEALTHCHECK {text}: it is NONE, or options and CMD with a command")
        self.config["Healthcheck"] = check


_INSTRUCTIONS: dict[str, Callable[[_Changing, str], None]] = {
    "CMD": _Changing._cmd,
    "ENTRYPOINT": _Changing._entrypoint,
    "ENV": _Changing._env,
    "EXPOSE": _Changing._expose,
    "HEALTHCHECK": _Changing._healthcheck,
    "LABEL": _Changing._label,
    "ONBUILD": _Changing._onbuild,
    "STOPSIGNAL": _Changing._stopsignal,
    "USER": _Changing._user,
    "VOLUME": _Changing._volume,
    "WORKDIR": _Changing._workdir,
}


def _json_words(text: str) -> list[str] | None:
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
    match = _PORT.fullmatch(text)
    if match is None:
        raise InvalidInput(f"EXPOSE {text}: it is a port or a range of them, and perhaps /tcp, /udp or /sctp")
    first = int(match["first"])
    last = int(match["last"] or first)
    if not 0 < first <= last <= _LAST_PORT:
        raise InvalidInput(f"EXPOSE {text}: ports are 1 to {_LAST_PORT}, the smaller one first")
    protocol = (match["protocol"] or "tcp").lower()
    return [f"{port}/{protocol}" for port in range(first, last + 1)]


def _add_check_option(check: dict[str, Any], option: str, value: str) -> None:
    names = {"interval": "Interval", "timeout": "Timeout", "start-period": "StartPeriod"}
    if option == "retries" and value.isdecimal():
        check["Retries"] = int(value)
    elif option in names:
        check[names[option]] = _nanoseconds(value)
    else:
        raise InvalidInput(
            f"HEALTHCHECK --{option}={value}: options are --interval, --timeout, --start-period and --retries"
        )


def _nanoseconds(text: str) -> int:
    """A duration as Go writes it: "1m30s"."""
    if not text or _DURATION_PART.sub("", text):
        raise InvalidInput(f"HEALTHCHECK: {text!r} is no duration; it is like 30s or 1m30s")
    return round(sum(float(number) * _NANOSECONDS[unit] for number, unit in _DURATION_PART.findall(text)))
