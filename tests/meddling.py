"""What no real condition makes: a call that fails, or that something comes in between of, at one exact point.

The fixture `meddle` (conftest.py) puts everything back. A test in which the point was never reached fails at its end.
"""

import contextlib
import copy
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from layerstore.store.db import Database

ALWAYS = 1 << 62
"""As `times`: every call, also of the rest of the test."""


class Meddling:
    """Functions of modules and methods of classes, of which some calls are other than they would be.

    `times`: of how many calls that is said, from the next one on; later ones are as always. `skip`: how many come
    before those. `when` is asked with the arguments of each, and those that it says no to do not count.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.awaited: list[str] = []
        """What has been said of no call yet."""

    def before(self, owner: Any, name: str, do: Callable[[], object], times: int = 1) -> list[tuple[Any, ...]]:
        """Have something done before the function is called; returns the arguments of all calls, as they come."""

        def first(call: Callable[[], Any]) -> Any:
            do()
            return call()

        return self._instead(owner, name, first, times)

    def after(self, owner: Any, name: str, do: Callable[[], object], times: int = 1) -> list[tuple[Any, ...]]:
        """The same once it has returned, and before whoever called it goes on."""

        def then(call: Callable[[], Any]) -> Any:
            found = call()
            do()
            return found

        return self._instead(owner, name, then, times)

    def fail(
        self,
        owner: Any,
        name: str,
        error: int | BaseException,
        times: int = 1,
        *,
        skip: int = 0,
        when: Callable[..., bool] | None = None,
    ) -> list[tuple[Any, ...]]:
        """Have it fail, with an errno or a copy of an exception, and do nothing; returns as `before`."""

        def refuse(_: Callable[[], Any]) -> Any:
            raise OSError(error, os.strerror(error)) if isinstance(error, int) else copy.copy(error)

        return self._instead(owner, name, refuse, times, skip, when)

    def noted(
        self, owner: Any, name: str, say: Callable[..., object] | None = None, among: list[Any] | None = None
    ) -> list[Any]:
        """What `say` makes of the arguments of each call that was made, by default the name; `among` others' notes."""
        notes: list[Any] = [] if among is None else among
        real = getattr(owner, name)

        def called(*given: Any, **options: Any) -> Any:
            notes.append(say(*given, **options) if say else name)
            return real(*given, **options)

        self._monkeypatch.setattr(owner, name, called)
        return notes

    def interrupt_closes(self, of: Callable[[str], bool]) -> list[str]:
        """Have each os.close of such files close them, and report an interrupt; returns their paths, as they come."""
        closed: list[str] = []
        close = os.close

        def interrupted(fd: int) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            close(fd)
            if of(path):
                closed.append(path)
                raise InterruptedError(errno.EINTR, os.strerror(errno.EINTR))

        self._monkeypatch.setattr(os, "close", interrupted)
        return closed

    def interrupt_commits(self, times: int = 1) -> None:
        """Have the next transactions end by Ctrl-C once they have committed."""
        left = [times]
        transaction = Database.transaction

        @contextlib.contextmanager
        def interrupted(database: Database, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
            with transaction(database, durable=durable) as connection:
                yield connection
            if left[0]:
                left[0] -= 1
                raise KeyboardInterrupt

        self._monkeypatch.setattr(Database, "transaction", interrupted)

    def undo(self) -> None:
        """Have all be as it was, from here on."""
        self._monkeypatch.undo()

    def _instead(
        self,
        owner: Any,
        name: str,
        instead: Callable[[Callable[[], Any]], Any],
        times: int,
        skip: int = 0,
        when: Callable[..., bool] | None = None,
    ) -> list[tuple[Any, ...]]:
        real = getattr(owner, name)
        point = f"{getattr(owner, '__name__', owner)}.{name}"
        seen: list[tuple[Any, ...]] = []
        left = [skip, times]
        self.awaited.append(point)

        def called(*given: Any, **options: Any) -> Any:
            seen.append(given)
            call = partial(real, *given, **options)
            if not left[1] or (when is not None and not when(*given, **options)):
                return call()
            if left[0]:
                left[0] -= 1
                return call()
            left[1] -= 1
            if point in self.awaited:
                self.awaited.remove(point)
            return instead(call)

        self._monkeypatch.setattr(owner, name, called)
        return seen
