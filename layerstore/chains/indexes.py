"""Merged indexes: made upon the longest stack that is merged already, kept in memory and in chains/.

A merged index depends on the layers alone, so it is the same whether it was made of all of them at once or one upon
the other (csrc/index/merge.h), and a process can use what another has made.
"""

from __future__ import annotations

import os

from layerstore._core.index import CHAIN, Index, merge
from layerstore._core.layer import build_layer
from layerstore.chains.derived import used
from layerstore.errors import CorruptError, Unsupported
from layerstore.layers.index_files import open_index
from layerstore.store import durable, locks
from layerstore.store.recent import Recent
from layerstore.types import chain_ids, digest_hex, hash_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from layerstore.chains.derived import Derived
    from layerstore.store.layout import Layout
    from layerstore.types import ChainId, DiffId

_EMPTY_TAR = bytes(1024)
_CACHED_BYTES = 256 << 20


class _Merged:
    """An index, and its bytes where they are still to be written to its file."""

    def __init__(self, index: Index, unwritten: memoryview | None) -> None:
        self.index = index
        self.unwritten = unwritten


class MergedIndexes:
    """Finds, makes and keeps merged indexes. Safe for many threads and processes."""

    def __init__(self, layout: Layout, derived: Derived, layer_index: Callable[[DiffId], Index]) -> None:
        self._layout = layout
        self._derived = derived
        self._layer_index = layer_index
        self._cached = Recent(_CACHED_BYTES, size_of=lambda merged: merged.index.nbytes)
        self._last_stack: tuple[Sequence[DiffId], list[ChainId]] = ((), [])

    def shared(self, diff_ids: Sequence[DiffId]) -> Index:
        """The merged index of a stack, from its file, which is written for all processes where there is none.

        Raises `CorruptError` where a layer's index is missing or damaged, `InvalidInput` where they do not fit.
        """
        chains = self._chain_ids(diff_ids)
        found = self._recall(chains[-1])
        if found and found.unwritten is None:
            return found.index
        index = self._open(chains[-1], len(chains))
        if index is None:
            with (
                locks.garbage(self._layout, again=True),
                locks.chain(self._layout, chains[-1]),
            ):
                index = self._open(chains[-1], len(chains)) or self._make(diff_ids, chains)
        return index

    def private(self, diff_ids: Sequence[DiffId]) -> Index:
        """The same for one use, of which no file is left behind."""
        chains = self._chain_ids(diff_ids)
        found = self._recall(chains[-1])
        return found.index if found else self._merge(diff_ids, chains).index

    def _chain_ids(self, diff_ids: Sequence[DiffId]) -> list[ChainId]:
        """As `chain_ids`; what the last stack has in common with this one is not computed again: a build asks for one
        layer more each time."""
        known_ids, known = self._last_stack
        pairs = enumerate(zip(diff_ids, known_ids, strict=False))
        common = next((n for n, (a, b) in pairs if a != b), min(len(diff_ids), len(known_ids)))
        if not common:
            chains = chain_ids(diff_ids)
        elif common == len(diff_ids):
            return known[:common]
        else:
            chains = known[:common] + chain_ids(diff_ids[common:], known[common - 1])
        self._last_stack = (tuple(diff_ids), chains)
        return chains

    def _make(self, diff_ids: Sequence[DiffId], chains: Sequence[ChainId]) -> Index:
        merged = self._recall(chains[-1]) or self._merge(diff_ids, chains)
        if merged.unwritten is None:
            return merged.index
        path = self._layout.chain_index(chains[-1])
        try:
            durable.write_whole(path, merged.unwritten)
            self._derived.written(merged.unwritten.nbytes)
            # From here on all processes have one copy of it in memory.
            return self._remember(chains[-1], _Merged(open_index(path), None)).index
        except OSError:
            # A full disk is no reason to answer nothing, and is not tried again by this process.
            return self._remember(chains[-1], _Merged(merged.index, None)).index

    def _merge(self, diff_ids: Sequence[DiffId], chains: Sequence[ChainId]) -> _Merged:
        count, base = self._longest(chains)
        if base is not None and count == len(chains):
            return _Merged(base, None)
        key = hash_key(chains[-1])
        stack = [] if base is None else [base]
        for diff_id in diff_ids[count:]:
            layer = self._layer_index(diff_id)
            layer.verify()
            stack.append(layer)
        if not stack:
            empty, _ = build_layer(_EMPTY_TAR, key)
            stack.append(Index(empty))
        data = merge(stack, key)
        return self._remember(chains[-1], _Merged(Index(data), data))

    def _longest(self, chains: Sequence[ChainId]) -> tuple[int, Index | None]:
        """The most layers from the bottom whose merged index is at hand, and that; 0 and None where there is none."""
        recalled = next((n for n in range(len(chains), 0, -1) if self._recall(chains[n - 1])), 0)
        found = self._recall(chains[recalled - 1]) if recalled else None
        files = set(os.listdir(self._layout.chains))
        for n in range(len(chains), recalled, -1):
            if f"{digest_hex(chains[n - 1])}.index" in files:
                opened = self._open(chains[n - 1], n)
                if opened is not None:
                    return n, opened
        return (recalled, found.index) if found else (0, None)

    def _open(self, chain: ChainId, layer_count: int) -> Index | None:
        """The index in the chain's file; None where there is none, or one that is damaged or of another version."""
        path = self._layout.chain_index(chain)
        try:
            index = open_index(path)
            index.verify_digest()
        except (FileNotFoundError, CorruptError, Unsupported):
            return None
        if (index.kind, index.layer_count, index.hash_key) != (CHAIN, layer_count, hash_key(chain)):
            return None
        used(path)
        return self._remember(chain, _Merged(index, None)).index

    def _recall(self, chain: ChainId) -> _Merged | None:
        found: _Merged | None = self._cached.get(chain)
        return found

    def _remember(self, chain: ChainId, merged: _Merged) -> _Merged:
        self._cached.forget(chain)
        self._cached.keep(chain, merged)
        return merged
