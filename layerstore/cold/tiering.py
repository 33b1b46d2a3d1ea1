"""The policy of the cold tier, which is the store's and every process's: what is frozen without being asked for."""

from __future__ import annotations

import math

from layerstore.errors import InvalidInput
from layerstore.store.cold_packs import LZ4, ZSTD
from layerstore.store.db import SET_COUNTER
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.cold.encoding import Compression
    from layerstore.store.db import Database

AFTER, CODEC = "freeze_after_ms", "freeze_codec"
"""Their names in the table of counters, where they were set."""
_CODECS: dict[str, int] = {"zstd": ZSTD, "lz4": LZ4}


class Tiering(Value):
    """What `collect_garbage` freezes: images that no container has and that were not used for `unused_for_seconds`;
    None: nothing. `compression` is what freezing compresses with where nothing else is asked for: "zstd", or "lz4",
    which is larger and read faster.

    Raises `InvalidInput` where the time is below 0 or no number, or the compression another one.
    """

    def __init__(self, unused_for_seconds: float | None = None, compression: Compression = "zstd") -> None:
        if compression not in _CODECS:
            raise InvalidInput(f"frames are compressed by 'zstd' or 'lz4', not {compression!r}")
        if unused_for_seconds is not None and not 0 <= unused_for_seconds < math.inf:
            raise InvalidInput(f"an image cannot be unused for {unused_for_seconds} seconds; give 0 or more, or None")
        self.unused_for_seconds = unused_for_seconds
        self.compression = compression


def tiering(database: Database) -> Tiering:
    """The store's policy."""
    query = "SELECT name, value FROM counters WHERE name IN (?, ?)"
    found = dict(database.read().execute(query, (AFTER, CODEC)).fetchall())
    after = found.get(AFTER)
    return Tiering(None if after is None else after / 1000, "lz4" if found.get(CODEC) == LZ4 else "zstd")


def set_tiering(database: Database, policy: Tiering) -> None:
    """Have every process use this policy. Durable on return."""
    if policy == tiering(database):
        return
    with database.transaction() as db:
        db.execute(SET_COUNTER, (CODEC, _CODECS[policy.compression]))
        if policy.unused_for_seconds is None:
            db.execute("DELETE FROM counters WHERE name = ?", (AFTER,))
        else:
            db.execute(SET_COUNTER, (AFTER, round(policy.unused_for_seconds * 1000)))
