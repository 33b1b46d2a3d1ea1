"""What blobs the stored layers are known as, and in which repositories of registries those were seen.

A blob is known only where this library has compared both of its digests, of the blob and of the tar in it: so a
manifest may name it for the layer. It is forgotten with the layer.
"""

from __future__ import annotations

import json
import time

from layerstore.types import Digest, Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable

    from layerstore.store.db import Database
    from layerstore.types import DiffId


class KnownBlob(Value):
    """A layer's blob: its digest, size in bytes, compression ("gzip", "zstd" or "").

    `repositories` are those of the registry asked about where it was seen, last seen first.
    """

    digest: Digest
    size_bytes: int
    compression: str
    repositories: tuple[str, ...] = ()


def remember(execute: Callable[..., sqlite3.Cursor], diff_id: DiffId, blob: KnownBlob) -> None:
    """Have a stored layer known as the blob. In a transaction of the caller's."""
    row = (blob.digest, diff_id, blob.size_bytes, blob.compression)
    execute("INSERT OR IGNORE INTO layer_blobs VALUES (?, ?, ?, ?)", row)


def saw(execute: Callable[..., sqlite3.Cursor], digest: Digest, registry: str, repository: str) -> None:
    """Note that a repository has a blob; nothing happens where no layer is known as it. In a transaction."""
    execute(
        "INSERT INTO blob_places SELECT digest, ?, ?, ? FROM layer_blobs WHERE digest = ? "
        "ON CONFLICT DO UPDATE SET seen_seconds = excluded.seen_seconds",
        (registry, repository, time.time(), digest),
    )


def missed(execute: Callable[..., sqlite3.Cursor], digest: Digest, registry: str, repository: str) -> None:
    """Note that a repository has a blob no more. In a transaction."""
    execute(
        "DELETE FROM blob_places WHERE digest = ? AND registry = ? AND repository = ?", (digest, registry, repository)
    )


def known_blobs(database: Database, diff_ids: Iterable[DiffId], registry: str) -> dict[DiffId, list[KnownBlob]]:
    """The blobs that each of the layers is known as, those seen last in the registry first."""
    rows = database.read().execute(
        """
        SELECT diff_id, layer_blobs.digest, size_bytes, compression, repository FROM layer_blobs
        LEFT JOIN blob_places ON blob_places.digest = layer_blobs.digest AND registry = ?
        WHERE diff_id IN (SELECT value FROM json_each(?))
        ORDER BY seen_seconds DESC NULLS LAST, layer_blobs.digest
        """,
        (registry, json.dumps(list(diff_ids))),
    )
    found: dict[DiffId, dict[Digest, tuple[int, str, list[str]]]] = {}
    for diff_id, digest, size_bytes, compression, repository in rows:
        known = found.setdefault(diff_id, {}).setdefault(Digest(digest), (size_bytes, compression, []))
        if repository is not None:
            known[2].append(repository)
    return {
        diff_id: [KnownBlob(digest, size, how, tuple(places)) for digest, (size, how, places) in blobs.items()]
        for diff_id, blobs in found.items()
    }
