"""Options of `run` and `build` that say how a program is confined."""

from __future__ import annotations

import os

from layerstore.errors import InvalidInput
from layerstore.store.layout import absolute

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
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


def limits(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of `add_limits`, by the names that the functions of `Container` have for it."""
    return {
        "memory": args.memory,
        "memory_swap": args.memory_swap,
        "cpus": args.cpus,
        "cpuset_cpus": args.cpuset_cpus,
        "cpu_shares": args.cpu_shares,
        "ulimits": args.ulimit,
    }


def given(args: argparse.Namespace) -> dict[str, Any]:
    """What was given, by the names that the functions of `Store` and `Container` have for it. Raises `InvalidInput`."""
    return {
        "network": args.network,
        "volumes": [_volume(text) for text in args.volume],
        "security_opt": args.security_opt,
        "pids_limit": args.pids_limit,
        "cgroups": args.cgroups,
    }


def _volume(text: str) -> Volume:
    from layerstore.api import Volume

    source, _, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not target.startswith("/") or mode not in ("", "ro", "rw"):
        raise InvalidInput(f"{text!r} is not DIR:PATH or DIR:PATH:ro with an absolute PATH")
    if not os.path.exists(source):
        raise InvalidInput(f"there is no {source} to bind into the container; make it first")
    return Volume(absolute(source), target, mode == "ro")
