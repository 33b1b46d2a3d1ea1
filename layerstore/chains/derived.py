"""Keeps what is derived (merged indexes, tree images) under a size: the least recently used goes first.

A file's time of modification says when it was used last: `used` sets it.
"""

from __future__ import annotations

import contextlib
import os
import threading

from layerstore._core.mount import is_mounted
from layerstore.errors import InvalidInput
from layerstore.store import locks
from layerstore.store.db import SET_COUNTER
from layerstore.store.layout import DERIVED_LIMIT_BYTES, chain_of_mount
from layerstore.types import ChainId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore

_LOOK_EVERY = 16
"""Files are counted again when a sixteenth of the limit was written, and then an eighth is made free: a build that
writes an index at every step would otherwise spend its time on counting."""
_FREE = 8
_LIMIT = "derived_limit"
"""Its name in the table of counters, where one was set."""


class _Unit:
    """Files that are of use together only: an index; or a tree image, its description; and what was begun."""

    def __init__(self, chain: ChainId, is_index: bool) -> None:
        self.chain = chain
        self.is_index = is_index
        self.size_bytes = 0
        self.used_ns = 0
        self.paths: list[str] = []

    def add(self, path: str, status: os.stat_result) -> None:
        self.size_bytes += status.st_size
        self.used_ns = max(self.used_ns, status.st_mtime_ns)
        self.paths.append(path)


class Derived:
    """The derived files of a store and their limit, bytes. Safe for many threads and processes."""

    def __init__(self, store: OpenStore) -> None:
        self._layout = store.layout
        self._database = store.database
        self._lock = threading.Lock()
        self._unlooked_bytes: int | None = None

    @property
    def limit_bytes(self) -> int:
        """The store's limit, which is every process's. Raises `InvalidInput` when it is set to less than 0."""
        row = self._database.read().execute(f"SELECT value FROM counters WHERE name = '{_LIMIT}'").fetchone()
        return DERIVED_LIMIT_BYTES if row is None else int(row[0])

    @limit_bytes.setter
    def limit_bytes(self, limit_bytes: int) -> None:
        if limit_bytes < 0:
            raise InvalidInput(f"a limit of {limit_bytes} bytes cannot be; 0 keeps nothing that is not in use")
        if limit_bytes != self.limit_bytes:
            with self._database.transaction() as db:
                db.execute(SET_COUNTER, (_LIMIT, limit_bytes))

    def written(self, size_bytes: int) -> None:
        """Something of that size was written: make room where there is too much. As `evict` otherwise."""
        limit = self.limit_bytes
        with self._lock:
            unlooked, self._unlooked_bytes = self._unlooked_bytes, (self._unlooked_bytes or 0) + size_bytes
            if unlooked is not None and self._unlooked_bytes <= limit // _LOOK_EVERY:
                return
            self._unlooked_bytes = 0
        self._shrink(limit, limit - limit // _FREE)

    def evict(self, limit_bytes: int) -> int:
        """Remove what was not used for longest until at most `limit_bytes` are left; returns the bytes removed.

        Tree images that are mounted and what is locked by someone stay. Under the garbage lock of the caller's. Raises
        `OSError`.
        """
        return self._shrink(limit_bytes, limit_bytes)

    def _shrink(self, limit_bytes: int, target_bytes: int) -> int:
        units = self._units()
        total = used = sum(unit.size_bytes for unit in units)
        if total <= limit_bytes:
            return 0
        with without_mounting(self._layout) as attached:
            for unit in sorted(units, key=lambda unit: unit.used_ns):
                if total <= target_bytes:
                    break
                if (unit.is_index or unit.chain not in attached) and self._remove(unit):
                    total -= unit.size_bytes
        return used - total

    def _units(self) -> Iterable[_Unit]:
        from layerstore.store.own_names import CHAINS

        units: dict[tuple[str, bool], _Unit] = {}
        with os.scandir(self._layout.chains) as entries:
            for entry in entries:
                if not CHAINS.fullmatch(entry.name):
                    continue
                # What is being written begins with a dot, under the lock of its chain; what a killed writer left, too.
                digits, _, ending = entry.name.removeprefix(".").partition(".")
                is_index = ending.startswith("index")
                with contextlib.suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    unit = units.setdefault((digits, is_index), _Unit(ChainId(f"sha256:{digits}"), is_index))
                    unit.add(entry.path, status)
        return units.values()

    def _remove(self, unit: _Unit) -> bool:
        with locks.chain_if_free(self._layout, unit.chain) as is_held:
            if is_held:
                # What was written as the directory was read may not be among those that were found.
                remove_derived({*unit.paths, *(() if unit.is_index else tree_image(self._layout, unit.chain))})
            return is_held


def used(path: str) -> None:
    """Note that a derived file is in use."""
    with contextlib.suppress(OSError):  # a full disk, or it was evicted at this moment
        os.utime(path)


def tree_image(layout: Layout, chain: ChainId) -> tuple[str, str]:
    """The files of the tree image of a chain."""
    return layout.chain_description(chain), layout.chain_image(chain)


def described_chains(layout: Layout) -> list[ChainId]:
    """Those of which there is the description of a tree image. Raises `OSError`."""
    from layerstore.store.own_names import CHAINS, own

    names = (name.partition(".") for name in own(layout.chains, CHAINS))
    return [ChainId(f"sha256:{digits}") for digits, _, ending in names if ending == "json"]


def remove_derived(paths: Iterable[str]) -> None:
    """Remove derived files, descriptions first: they say that an image is whole."""
    for path in sorted(paths, key=lambda path: not path.endswith(".json")):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)


@contextlib.contextmanager
def without_mounting(layout: Layout) -> Iterator[set[ChainId]]:
    """Inside, no tree image is attached below run/ but those of the chains given, and none is taken away."""
    with locks.mounts(layout, alone=False):
        names = [name for name in os.listdir(layout.chain_mounts) if is_mounted(f"{layout.chain_mounts}/{name}")]
        yield {chain_of_mount(name) for name in names}
