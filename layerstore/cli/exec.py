"""Run a command in a container, beside whatever runs in it. The exit status is the command's; 125 when layerstore
failed, 126 or 127 when the command could not be started.

A container in which nothing runs is started without a program first, and stays started until `layerstore stop`. As long
as no command runs, `umount`, `rm` and `rollback` stop it, too. The command is confined as the container is."""

from __future__ import annotations

import argparse

from layerstore.cli import starting
from layerstore.cli.run import FAILURE_STATUS, STATUS_OF

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.api import Store

__all__ = ("FAILURE_STATUS", "STATUS_OF", "arguments", "run")


def arguments(parser: argparse.ArgumentParser) -> None:
    starting.add_options(parser)
    parser.add_argument("container", metavar="CONTAINER")
    parser.add_argument("command", metavar="COMMAND")
    parser.add_argument("args", metavar="ARG", nargs=argparse.REMAINDER)


def run(store: Store, args: argparse.Namespace) -> int:
    from subprocess import DEVNULL

    done = store.container(args.container).exec(
        [args.command, *args.args],
        stdin=None if args.interactive or args.tty else DEVNULL,
        env=starting.environment(args),
        workdir=args.workdir,
        user=args.user,
        tty=args.tty,
    )
    return done.returncode
