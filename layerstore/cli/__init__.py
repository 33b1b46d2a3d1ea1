"""The command line. Each command is a module of its own, imported only when it is the one that was asked for.

A command module has `arguments(parser)`, which adds its arguments, and `run(store, args) -> int`, which gives the exit
status. `CREATES_STORE = True` says that the command makes a store where there is none, `NEEDS_STORE = False` that it
is given None instead of one (`args.root` says where it would be), `FAILURE_STATUS` what it exits with when it fails (1
without it), and `STATUS_OF` what else for certain exceptions.

Options that stand before a command are here. What commands share: `command.py` (errors as messages), `confining.py`,
`output.py`, `selection.py`, `starting.py`, `transfers.py`.
"""

from __future__ import annotations

import gc
import io
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from typing_extensions import Buffer

COMMANDS = {
    "init": "make an empty store",
    "load": "load images from a docker archive or OCI layout",
    "save": "write images as a docker archive or OCI layout",
    "pull": "download an image from a registry",
    "push": "upload an image to a registry",
    "sync": "copy images to another store, sending only what it lacks",
    "receive": "receive what a sync sends (sync runs this)",
    "login": "log in to a registry",
    "logout": "log out of a registry",
    "import": "make an image from the tar of a root file system",
    "build": "build an image by a Dockerfile",
    "images": "list images",
    "history": "show the steps by which an image was made",
    "layers": "show what each layer of an image brought and what became of it",
    "inspect": "show everything about an image or container, as JSON",
    "ls": "list a directory of an image",
    "cat": "write the contents of files of an image",
    "tag": "give an image another name",
    "rmi": "remove names and images",
    "create": "make containers from an image",
    "fork": "make containers that start as copies of a container",
    "snapshot": "keep the state of a container under a name",
    "snapshots": "list the snapshots of a container",
    "rollback": "put a container back to a snapshot",
    "move": "change the driver of a container",
    "mount": "mount containers and print their paths",
    "umount": "unmount containers",
    "run": "run a program in a new container",
    "exec": "run a command in a container",
    "wait": "wait for the ends of containers' programs",
    "logs": "show what a container's programs printed",
    "start": "start what containers were made for, and leave it running",
    "attach": "show what a container's program prints from now on",
    "stop": "stop containers",
    "kill": "send a signal to containers",
    "pause": "stop the programs of containers for a while",
    "unpause": "have paused containers go on",
    "top": "list the processes of a container",
    "stats": "show what the containers that run take",
    "ps": "list containers",
    "rename": "give a container another name",
    "rm": "remove containers",
    "diff": "show what a container changed, or compare two images",
    "commit": "make an image of a container",
    "cp": "copy files between a container and the host",
    "export": "write all files of a container as a tar",
    "gc": "free the space of contents that nothing uses",
    "prune": "remove images and containers that nothing uses",
    "freeze": "compress images that are not in use",
    "thaw": "decompress frozen images",
    "tiering": "show or set which images are frozen automatically",
    "dedup-stats": "show what sharing saves, and what freezing would save",
    "system": "show how much space images and containers take (df)",
    "fsck": "check a store, and repair it",
    "pool": "show, grow, trim or detach the pool of a store",
}
_MODULES = {"import": "import_", "dedup-stats": "dedup_stats"}

_USAGE = """\
usage: layerstore [--root DIR] [--verify WHEN] [--limit NAME=VALUE] COMMAND ...

Container image layers: stored once, joined into one view, started by the thousand. No daemon.

commands:
{commands}

options:
  --root DIR     the store (default: $LAYERSTORE_ROOT, or /var/lib/layerstore for root,
                 or ~/.local/share/layerstore)
  --verify WHEN  hash what is read of images before it is used: always, first (once)
                 or never (default); not what mounted containers show
  --limit NAME=VALUE
                 accept more or less of images from outside: layer_bytes=1GB, members=1000
                 ...; as often as needed; docs/reliability.md has the names
  --version      print the version
  -h, --help     this text; `layerstore COMMAND --help` tells more of one command
"""


def _usage() -> str:
    return _USAGE.format(commands="\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items()))


def main() -> NoReturn:
    """The program: run the command that it was called with, and end."""
    gc.disable()  # until everything is loaded: it takes a twentieth of a short command's time, and finds nothing
    status = execute(sys.argv[1:])
    try:
        sys.stderr.flush()
    except OSError:
        status = status or 1  # the terminal has gone
    # Taking the interpreter apart would take as long as a container's creation.
    os._exit(status)


def _end_by_signals() -> None:
    """Have SIGTERM and SIGHUP end the program as Ctrl-C does: what it has half done goes, and what a build runs in
    containers ends. Where they are ignored (nohup) they stay so."""
    import signal

    heeded = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]

    def interrupt(number: int, _frame: object) -> NoReturn:
        for each in heeded:  # a terminal that goes may send more than one
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(number)

    for number in heeded:
        signal.signal(number, interrupt)


def execute(argv: Sequence[str]) -> int:
    """Run one command; returns the exit status (2 for a wrong command line, 1 for a failure).

    What it printed is flushed. The store that it opened is left to the end of the process, to which SIGTERM and SIGHUP
    are what Ctrl-C is from here on.
    """
    try:
        _name_output()
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                # Names of files are bytes, which come out as they are whatever the locale says.
                stream.reconfigure(encoding="utf-8", errors="surrogateescape")
        status = _run(list(argv))
        try:
            sys.stdout.flush()
        except OSError:
            if not status:  # else it was told what failed
                raise
        return status
    except KeyboardInterrupt as error:
        import signal

        return 128 + (error.args[0] if error.args else signal.SIGINT)
    except BrokenPipeError:
        # The reader of our output has gone; there is nobody to tell.
        import signal

        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        print("layerstore", *filter(None, (error.filename, error.strerror)), sep=": ", file=sys.stderr)
        return 1


class _Output(io.FileIO):
    """Standard output, whose errors say that it is what they are about."""

    def write(self, data: Buffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = "standard output"
            raise


def _name_output() -> None:
    """Have a print that fails tell of standard output, where nobody has put another in its place."""
    given = sys.stdout
    if given is not sys.__stdout__ or not isinstance(given, io.TextIOWrapper):
        return
    given.flush()
    raw = _Output(given.fileno(), "w", closefd=False)
    sys.stdout = io.TextIOWrapper(
        raw if isinstance(given.buffer, io.RawIOBase) else io.BufferedWriter(raw),
        line_buffering=given.line_buffering,
        write_through=given.write_through,
    )


def _run(arguments: list[str]) -> int:
    values: dict[str, str] = {}
    limits: list[str] = []
    while arguments and arguments[0].startswith("-"):
        option = arguments.pop(0)
        if option in ("-h", "--help"):
            print(_usage(), end="")
            return 0
        if option == "--version":
            print(f"layerstore {_version()}")
            return 0
        option, has_value, value = option.partition("=")
        if option not in ("--root", "--verify", "--limit") or not (has_value or arguments):
            return _wrong(f"unknown option or missing value: {option}")
        values[option] = value if has_value else arguments.pop(0)
        if option == "--limit":
            limits.append(values[option])
    if not arguments:
        return _wrong("no command given")
    if arguments[0] not in COMMANDS:
        return _wrong(f"there is no command {arguments[0]!r}")
    from layerstore.cli import command

    _end_by_signals()
    name, *arguments = arguments
    root, verify = values.get("--root"), values.get("--verify")
    return command.run(name, _MODULES.get(name, name), arguments, root, verify, limits)


def _version() -> str:
    from importlib import metadata

    try:
        return metadata.version("layerstore")
    except metadata.PackageNotFoundError:
        return "(not installed)"


def _wrong(message: str) -> int:
    print(f"layerstore: {message}; `layerstore --help` lists commands and options", file=sys.stderr)
    return 2
