"""What all commands share: arguments, the store, errors as messages."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sqlite3
import sys
from importlib import import_module

from layerstore.errors import InvalidInput, LayerstoreError
from layerstore.naming import about, text_of
from layerstore.store.layout import default_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from layerstore.api import Store
    from layerstore.limits import Limits


def parser_of(name: str, module: ModuleType) -> argparse.ArgumentParser:
    """What reads the command line, and gives help."""
    # Messages are in English: looking for a translation of each would load `locale`.
    argparse._ = str  # type: ignore[attr-defined]
    description = f"{module.__doc__}".strip()
    parser = argparse.ArgumentParser(
        f"layerstore {name}", description=description, formatter_class=_formatter, add_help=False
    )
    help_options = getattr(module, "HELP", ("-h", "--help"))
    parser.add_argument(*help_options, action="help", help="show this help message and exit")
    module.arguments(parser)
    return parser


def _formatter(prog: str) -> argparse.HelpFormatter:
    # Without a width it would load shutil to ask for it, for each argument that is added.
    try:
        columns = os.get_terminal_size().columns
    except OSError:
        columns = 80
    return argparse.HelpFormatter(prog, width=columns - 2)


def run(
    name: str,
    module_name: str,
    arguments: Sequence[str],
    root: str | None,
    verify: str | None,
    limits: Sequence[str] = (),
) -> int:
    """Run the command of that name on the store at `root`, verifying what is read when `verify` says and accepting what
    the `limits`, NAME=VALUE each, say; without them, as is usual. Returns the exit status."""
    path = f"layerstore.cli.{module_name}"
    module = None
    try:
        module = import_module(path)
        args = parser_of(name, module).parse_args(arguments)
        # Not closed: the process ends, and with its last connection SQLite would move its log to the database and sync.
        # The same goes for a pool: it stays attached, as to detach and attach it takes 0.1 s.
        args.root = root or default_root()
        has_store = getattr(module, "NEEDS_STORE", True)
        if not has_store and (verify or limits):
            raise InvalidInput(f"--{'verify' if verify else 'limit'} means nothing to `{name}`; leave it out")
        store = _open_store(module, args.root, verify, limits, args) if has_store else None
        gc.freeze()
        gc.enable()
        status: int = module.run(store, args)
        with about("standard output"):
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        with contextlib.suppress(OSError):  # the terminal may have gone
            print(f"layerstore {name}: interrupted; nothing half-done was kept", file=sys.stderr)
        raise
    except (LayerstoreError, OSError, MemoryError, ImportError, sqlite3.Error) as error:
        with contextlib.suppress(OSError):
            print(f"layerstore {name}: {told(error)}", file=sys.stderr)
        statuses: dict[type[Exception], int] = getattr(module, "STATUS_OF", {})
        return statuses.get(type(error), getattr(module, "FAILURE_STATUS", 1))


def _open_store(
    module: ModuleType, root: str, verify: str | None, limits: Sequence[str], args: argparse.Namespace
) -> Store:
    from layerstore.api import Store

    creates = getattr(module, "CREATES_STORE", False)
    return Store(
        root,
        create=creates,
        pool_bytes=getattr(args, "pool_bytes", None),
        verify=verify or "never",  # type: ignore[arg-type]  # another word is for the store to refuse
        limits=_limits(limits),
    )


def _limits(given: Sequence[str]) -> Limits | None:
    """Those of options `NAME=VALUE`. Raises `InvalidInput`."""
    if not given:
        return None
    from layerstore.cli.output import parse_size
    from layerstore.limits import DEFAULT

    values = {}
    for text in given:
        name, _, value = text.partition("=")
        try:
            values[name] = parse_size(value)
        except argparse.ArgumentTypeError as error:
            raise InvalidInput(f"--limit {text}: {error}") from None
    return DEFAULT.changed(values)


def told(error: BaseException) -> str:
    """As `text_of`. What registries, archives and paths say in it could be orders to the terminal: those are written as
    escapes."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text_of(error))
