"""Options of `run` and `build` that say how a program is confined."""

from __future__ import annotations

import os

from layerstore.errors import InvalidInput
from layerstore.store.layout import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from layerstore.api import Volume


def add_options(parser: argparse.ArgumentParser, *, of: str, where: str) -> None:
    """`of` and `where` say of what they are and where a volume is shown, as in "the processes of a RUN"."""
    parser.add_argument(
        "-v",
        "--volume",
        action="append",
        default=[],
        metavar="DIR:PATH[:ro]",
        help=f"show a directory or file of the host in {where}, writable without :ro",
    )
    parser.add_argument(
        "--security-opt",
        action="append",
        default=[],
        metavar="OPTION",
        help=f"seccomp=unconfined, seccomp=FILE.json, or no-new-privileges, for {of}",
    )
    parser.add_argument(
        "--pids-limit",
        type=int,
        metavar="N",
        help=f"the most processes and threads of {of} (default: 2048; -1: no limit)",
    )
    parser.add_argument(
        "--cgroups",
        choices=("enabled", "disabled"),
        default="enabled",
        help=f"disabled: no control group for {of}: no limits, and no device files but those of /dev (needs crun)",
    )


def add_limits(parser: argparse.ArgumentParser) -> None:
    """How much the programs of a container may have, as docker has them."""
    for options, metavar, text in (
        (("-m", "--memory"), "SIZE", "the most memory of all its programs together, as 512m; who takes more is killed"),
        (("--memory-swap",), "SIZE", "memory and swap together (default: twice the memory; -1: swap without a limit)"),
        (("--cpus",), "N", "the most CPU time, as that of 1.5 CPUs"),
        (("--cpuset-cpus",), "LIST", "the CPUs to run on, as 0-2,5"),
    ):
        parser.add_argument(*options, metavar=metavar, help=text)
    parser.add_argument(
        "--cpu-shares", type=int, metavar="N", help="its weight when others want CPU time as well (default: 1024)"
    )
    parser.add_argument(
        "--ulimit",
        action="append",
        default=[],
        metavar="NAME=SOFT[:HARD]",
        help="a limit of each of its processes, as nofile=1024",
    )
    parser.add_argument("--shm-size", metavar="SIZE", help="of /dev/shm (default: 64m)")
    parser.add_argument(
        "--init",
        action="store_true",
        help="have an init start the program, send it signals, and wait for what it leaves",
    )
    parser.add_argument("--read-only", action="store_true", help="nothing of its root can be written")
    parser.add_argument(
        "--tmpfs",
        action="append",
        default=[],
        metavar="PATH[:OPTIONS]",
        help="a file system in memory, with options as size=64m,mode=1777,exec",
    )
    parser.add_argument(
        "--mount",
        action="append",
        default=[],
        metavar="type=bind|tmpfs,...",
        help="type=bind,source=DIR,target=PATH[,readonly] or type=tmpfs,target=PATH[,tmpfs-size=N][,tmpfs-mode=MODE]",
    )


def add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--storage-opt",
        action="append",
        default=[],
        metavar="size=SIZE",
        help="the most that the container may write to disk (needs project quotas: docs/limits.md)",
    )


def disk_size(args: argparse.Namespace) -> str | None:
    """What was given of `add_storage`. Raises `InvalidInput`."""
    size = None
    for text in args.storage_opt:
        name, _, size = text.partition("=")
        if name != "size" or not size:
            raise InvalidInput(f"--storage-opt {text} is not to be had: size=SIZE is")
    return size


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of `add_limits`, by the names that the functions of `Container` have for it."""
    return {
        "memory": args.memory,
        "memory_swap": args.memory_swap,
        "cpus": args.cpus,
        "cpuset_cpus": args.cpuset_cpus,
        "cpu_shares": args.cpu_shares,
        "ulimits": args.ulimit,
        "shm_size": args.shm_size,
        "read_only": args.read_only,
        "init": args.init,
        "tmpfs": [*args.tmpfs, *filter(None, (_tmpfs(_fields(text), text) for text in args.mount))],
    }


def given(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, by the names that the functions of `Store` and `Container` have for it. Raises `InvalidInput`."""
    return {
        "network": args.network,
        "volumes": [*map(_volume, args.volume), *_binds(getattr(args, "mount", ()))],
        "security_opt": args.security_opt,
        "pids_limit": args.pids_limit,
        "cgroups": args.cgroups,
    }


_FIELDS = {
    "bind": {"type", "source", "target", "readonly"},
    "tmpfs": {"type", "target", "tmpfs-size", "tmpfs-mode"},
}
_ALIASES = {"src": "source", "dst": "target", "destination": "target", "ro": "readonly"}


def _fields(text: str) -> dict[str, str]:
    """Of docker's --mount: KEY=VALUE or KEY, with commas between. Raises `InvalidInput`."""
    pairs = [field.partition("=")[::2] for field in text.split(",")]
    fields = {_ALIASES.get(key, key): value for key, value in pairs}
    known = _FIELDS.get(kind := fields.get("type", "volume"))
    if known is None:
        raise InvalidInput(f"--mount {text}: the type {kind!r} is not to be had: bind and tmpfs are")
    if strangers := set(fields) - known:
        raise InvalidInput(f"--mount {text}: type={kind} has no {min(strangers)!r}, it has {', '.join(sorted(known))}")
    if not fields.get("target", "").startswith("/") or (kind == "bind" and not fields.get("source")):
        raise InvalidInput(f"--mount {text}: it needs target=PATH, absolute{', and source=' * (kind == 'bind')}")
    if fields.get("readonly", "") not in ("", "true", "1", "false", "0"):
        raise InvalidInput(f"--mount {text}: readonly is true or false")
    return fields


def _binds(texts: Sequence[str]) -> list[Volume]:
    from layerstore.api import Volume

    found = []
    for fields in map(_fields, texts):
        if fields["type"] == "bind":
            is_read_only = fields.get("readonly", "false") in ("", "true", "1")
            found.append(Volume(_existing(fields["source"]), fields["target"], is_read_only))
    return found


def _tmpfs(fields: dict[str, str], text: str) -> str | None:
    """As --tmpfs has it."""
    if fields["type"] != "tmpfs":
        return None
    if ":" in fields["target"]:
        raise InvalidInput(f"--mount {text}: the target of a tmpfs has no colon")
    options = [f"{key.removeprefix('tmpfs-')}={fields[key]}" for key in ("tmpfs-size", "tmpfs-mode") if key in fields]
    return f"{fields['target']}:{','.join(options)}"


def _existing(source: str) -> str:
    if not os.path.exists(source):
        raise InvalidInput(f"there is no {source} to bind into the container; make it first")
    return absolute(source)


def _volume(text: str) -> Volume:
    from layerstore.api import Volume

    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise InvalidInput(f"{text!r} is not DIR:PATH or DIR:PATH:ro with an absolute PATH")
    return Volume(_existing(source), target, mode == "ro")
