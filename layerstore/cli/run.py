"""Run a program in a new container of an image, or its own command. The exit status is the program's; 125 when
layerstore failed, 126 or 127 when the program could not be started. Needs root and an OCI runtime (crun or runc).

The program is confined, and has no network. Options loosen that: docs/security.md says how far."""

from __future__ import annotations

import argparse

from layerstore.cli import confining, starting
from layerstore.errors import InvalidInput, ProgramNotExecutable, ProgramNotFound
from layerstore.naming import null_device

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from layerstore.api import Store

FAILURE_STATUS = 125
HELP = ("--help",)  # -h is the name of the host, as docker has it
STATUS_OF: dict[type[Exception], int] = {ProgramNotFound: 127, ProgramNotExecutable: 126}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rm", action="store_true", help="remove the container when the program has ended")
    parser.add_argument(
        "-d",
        "--detach",
        action="store_true",
        help="print the id and leave the program running; `logs` has its output, `wait` its end",
    )
    add_program(parser)
    parser.add_argument("--name", help="a name for the container")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER, help="the command, instead of the image's own")


def add_program(parser: argparse.ArgumentParser) -> None:
    """Options of a program that is the container's first."""
    starting.add_options(parser)
    parser.add_argument("-h", "--hostname", metavar="NAME", help="what the host is called in the container")
    parser.add_argument(
        "--entrypoint", metavar="PROGRAM", help="the program, instead of the image's entrypoint and command"
    )
    parser.add_argument(
        "--network",
        choices=("none", "private", "host"),
        help="none (default); private, with a way out by pasta, and nothing of the host's; or the host's own",
    )
    parser.add_argument(
        "-p",
        "--publish",
        action="append",
        default=[],
        metavar="[ADDRESS:]HOST:PORT[/udp]",
        help="have a port of the host lead to one of the program; the network is private then",
    )
    parser.add_argument(
        "--log-opt",
        action="append",
        default=[],
        metavar="max-size=SIZE|max-file=N",
        help="keep so much of its output where it is left running: N times SIZE (default: 32m once)",
    )
    parser.add_argument(
        "--cap-add", action="append", default=[], metavar="NAME", help="add a capability, or ALL of them"
    )
    parser.add_argument(
        "--cap-drop", action="append", default=[], metavar="NAME", help="take a capability away, or ALL of them"
    )
    parser.add_argument(
        "--device",
        action="append",
        default=[],
        metavar="HOST[:PATH[:rwm]]",
        help="let the program use a device of the host",
    )
    parser.add_argument(
        "--privileged", action="store_true", help="no confinement: root in the container is root of the host"
    )
    confining.add_options(parser, of="the program", where="the container")
    confining.add_limits(parser)
    confining.add_storage(parser)


def options(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of `add_program`, by the names that `Container.run` and `start` have for it. Raises
    `InvalidInput`."""
    given = {
        "entrypoint": None if args.entrypoint is None else [args.entrypoint],
        "env": starting.environment(args),
        "workdir": args.workdir,
        "user": args.user,
        "hostname": args.hostname,
        "cap_add": args.cap_add,
        "cap_drop": args.cap_drop,
        "devices": args.device,
        "privileged": args.privileged,
        "ports": args.publish,
        "log_bytes": _log_bytes(args.log_opt),
    }
    given |= confining.given(args) | confining.limits(args)
    if args.network is None:
        given["network"] = "private" if args.publish else "none"
    return given


def _log_bytes(texts: list[str]) -> int | None:
    from layerstore.containers.resources import size

    given = dict(text.partition("=")[::2] for text in texts)
    for name, value in given.items():
        if name not in ("max-size", "max-file") or (name == "max-file" and (not value.isdecimal() or int(value) < 1)):
            raise InvalidInput(f"--log-opt {name}={value} is not to be had: max-size=SIZE and max-file=N are")
    if not given:
        return None
    if "max-size" not in given:
        raise InvalidInput("--log-opt max-file=N says how often max-size=SIZE is kept: give that, too")
    return size(given["max-size"], "--log-opt max-size") * int(given.get("max-file", 1))


def run(store: Store, args: argparse.Namespace) -> int:
    if args.detach:
        starting.check_left_running(args)
    given = options(args)
    command = args.args or None
    container = store.create(
        args.image,
        name=args.name,
        volatile=args.rm,
        disk_size=confining.disk_size(args),
        prepared=None if args.rm else {"args": command, **given},
    )
    try:
        if args.detach:
            container.start(command, auto_remove=args.rm, **given)
            print(container.id)
            return 0
        given.pop("log_bytes")  # nothing is kept of what is seen
        with null_device() as nothing:
            stdin = None if args.interactive or args.tty else nothing
            status = container.run(command, tty=args.tty, stdin=stdin, **given)
    except BaseException as error:
        from layerstore.containers.standard_streams import Undelivered

        # Where only its output was lost, the program has done what it was to do.
        if args.rm or not isinstance(error, Undelivered):
            container.remove(force=True)
        raise
    if args.rm:
        container.remove()
    return status
