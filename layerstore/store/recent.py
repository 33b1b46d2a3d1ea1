"""What was used last, kept at hand."""

from __future__ import annotations

import _thread

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any


class Recent:
    """Values by keys, of which those that were used longest ago go where there would be more than `limit`; one stays.

    Safe for many threads.

    gone: called with each value that goes, and not with those of `clear`.
    size_of: what each counts for.
    """

    def __init__(
        self, limit: int, gone: Callable[[Any], object] = lambda _: None, size_of: Callable[[Any], int] = lambda _: 1
    ) -> None:
        self._limit = limit
        self._gone = gone
        self._size_of = size_of
        self._size = 0
        self._lock = _thread.allocate_lock()
        self._values: dict[Hashable, Any] = {}

    def get(self, key: Hashable) -> Any:
        """The value, None where there is none."""
        with self._lock:
            value = self._values.pop(key, None)
            if value is not None:
                self._values[key] = value
        return value

    def keep(self, key: Hashable, value: Any) -> Any:
        """Keep a value unless there is one; gives what is kept."""
        gone = []
        with self._lock:
            if key not in self._values:
                self._size += self._size_of(value)
            kept = self._values[key] = self._values.pop(key, value)
            while self._size > self._limit and len(self._values) > 1:
                gone.append(self._pop(next(iter(self._values))))
        for each in gone:
            self._gone(each)
        return kept

    def forget(self, key: Hashable) -> None:
        """Have it go, where it is there."""
        with self._lock:
            gone = self._pop(key) if key in self._values else None
        if gone is not None:
            self._gone(gone)

    def clear(self) -> list[Any]:
        """Keep nothing; gives what was kept."""
        with self._lock:
            values, self._values, self._size = self._values, {}, 0
        return list(values.values())

    def _pop(self, key: Hashable) -> Any:
        value = self._values.pop(key)
        self._size -= self._size_of(value)
        return value
