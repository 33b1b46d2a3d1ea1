"""Two names that stand for each other's file in turn: what a race is tried with."""

import contextlib
import ctypes
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_MOST_SECONDS = 0.001  # that each of them stays: long enough for a few system calls
_libc = ctypes.CDLL(None, use_errno=True)


def exchange(first: Path, second: Path) -> None:
    """Have two names stand for each other's file at one moment (renameat2(2))."""
    if _libc.renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE) != 0:
        raise OSError(ctypes.get_errno(), "renameat2", str(first))


@contextlib.contextmanager
def exchanging(first: Path, second: Path) -> Iterator[None]:
    """A process that does nothing else while the block runs; both are as they were at its end."""
    code = f"import exchanging; exchanging.without_end({os.fspath(first)!r}, {os.fspath(second)!r})"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    before = first.lstat()
    process = subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, env=environment)
    try:
        assert process.stdout is not None
        assert process.stdout.read(1), "it has not begun"
        yield
        assert process.poll() is None, "it has ended before"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        if not os.path.samestat(first.lstat(), before):
            exchange(first, second)


def without_end(first: str, second: str) -> None:
    """Exchange them until this process is killed. Says on standard output that it has begun."""
    exchange(Path(first), Path(second))
    os.write(1, b".")
    names = os.fsencode(first), os.fsencode(second)
    while True:
        time.sleep(random.uniform(0, _MOST_SECONDS))
        _libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
