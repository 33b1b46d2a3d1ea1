"""What an image's history says of steps ("created_by"), in the form that BuildKit gives it."""

from __future__ import annotations

import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any


def of_config(name: str, text: str, config: Mapping[str, Any]) -> str:
    """Of an instruction that has changed the config, which is told where it is what counts."""
    if name == "CMD":
        return f"CMD {_strings(config.get('Cmd') or ())}"
    if name == "ENTRYPOINT":
        return f"ENTRYPOINT {_strings(config.get('Entrypoint') or ())}"
    if name == "WORKDIR":
        return f"WORKDIR {config['WorkingDir']}"
    if name == "SHELL":
        return f"SHELL {_strings(config['Shell'])}"
    return f"{name} {text}"


def of_run(args: Iterable[str], arguments: Sequence[str]) -> str:
    """Of a command line, `arguments` being the ARGs that it had in its environment."""
    given = f"|{len(arguments)} {' '.join(arguments)} " if arguments else ""
    return f"RUN {given}{' '.join(args)}"


def of_copy(name: str, flags: Mapping[str, str | None], words: Iterable[str]) -> str:
    given = (f"--{flag}={value}" for flag, value in flags.items() if value)
    return " ".join((name, *given, *words))


def _strings(words: Iterable[str]) -> str:
    return f"[{' '.join(json.dumps(word, ensure_ascii=False) for word in words)}]"
