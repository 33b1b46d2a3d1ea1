"""A pool on the measured file system: first writes, beside overlayfs on that file system and on the pool's own, an XFS
with reflink; forks and rolling back."""

from __future__ import annotations

from pathlib import Path

from bench.context import Context
from bench.measure import remove_tree
from bench.rows import Row
from bench.writable import POOL, POOL_BYTES, first_writes, forks, import_large, make_large, many_forks


def run(context: Context) -> list[Row]:
    from layerstore import Store

    if context.peers_only:
        return []
    large = context.directory / "pool-lower/large"
    make_large(large)
    with Store(context.directory / "pool-store", create=True, pool_bytes=POOL_BYTES) as store:
        try:
            import_large(store, large, context.directory)
            within = Path(store.layout.root) / "beside"
            within.mkdir()
            make_large(within / "lower/large")
            first = list(first_writes(context, store, POOL, large, within / "lower/large"))
            remove_tree(within)
            return [*first, *forks(context, store, POOL), *many_forks(context, store, POOL)]
        finally:
            store.remove(store.containers(), force=True)
