"""Work that threads do side by side, and whose results come in the order of the work; and work in groups."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, TypeVar

from layerstore.naming import starting

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    _Task = TypeVar("_Task")
    _Result = TypeVar("_Result")

_AHEAD = 5


def in_order(
    threads: ThreadPoolExecutor, work: Callable[[_Task], _Result], tasks: Iterable[_Task], ahead: int = _AHEAD
) -> Iterator[_Result]:
    """What `work` makes of each task; a few are under way at once. Raises what it raises, for the first that does."""
    running: deque[Future[_Result]] = deque()
    try:
        for task in tasks:
            with starting():
                running.append(threads.submit(work, task))
            if len(running) > ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        for future in running:
            future.cancel()


def groups(things: Iterable[_Task], size_of: Callable[[_Task], int], most: int) -> Iterator[list[_Task]]:
    """The same in groups of at most `most` bytes, by what `size_of` says; what is larger is alone."""
    group: list[_Task] = []
    size = 0
    for thing in things:
        if group and size + size_of(thing) > most:
            yield group
            group, size = [], 0
        group.append(thing)
        size += size_of(thing)
    if group:
        yield group
