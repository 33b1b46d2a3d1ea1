"""The programs that are asked what they make of our images, each with a daemon of its own where it has one."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from bench.peers import Peer

P = TypeVar("P", bound=Peer)


@contextmanager
def started(kind: type[P]) -> Iterator[P]:
    if missing := kind.missing():
        pytest.skip(f"{missing} is not installed; ci/packages.txt says what tests use")
    with (
        tempfile.TemporaryDirectory(prefix="ls-judge-", dir="/var/tmp") as scratch,
        kind(Path(scratch), Path(scratch) / "r") as peer,
    ):
        yield peer
