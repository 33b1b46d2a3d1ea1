"""What all commands share: arguments, the store, errors as messages."""

import argparse
import importlib
import os
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from layerstore.api import Store
from layerstore.errors import LayerstoreError


def default_root() -> Path:
    """$LAYERSTORE_ROOT, or the usual place of this user."""
    given = os.environ.get("LAYERSTORE_ROOT")
    if given:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/layerstore")
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local/share") / "layerstore"


def run(name: str, module_name: str, root: str | None, arguments: Sequence[str]) -> int:
    """Run the command of that name; returns the exit status."""
    module = importlib.import_module(f"layerstore.cli.{module_name}")
    parser = argparse.ArgumentParser(prog=f"layerstore {name}", description=f"{module.__doc__}".strip())
    module.arguments(parser)
    args = parser.parse_args(arguments)
    try:
        with Store(root or default_root(), create=getattr(module, "CREATES_STORE", False)) as store:
            status: int = module.run(store, args)
            sys.stdout.flush()
            return status
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        print(f"layerstore {name}: interrupted; nothing half-done was kept", file=sys.stderr)
        raise
    except (LayerstoreError, OSError, MemoryError, sqlite3.Error) as error:
        print(f"layerstore {name}: {_told(error)}", file=sys.stderr)
        statuses: dict[type[Exception], int] = getattr(module, "STATUS_OF", {})
        return statuses.get(type(error), getattr(module, "FAILURE_STATUS", 1))


def _told(error: BaseException) -> str:
    """An error of the system without its number, and what it is about first."""
    if isinstance(error, OSError) and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
