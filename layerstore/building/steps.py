"""The cache of builds: what a step made, by what it was made from.

A key is the SHA-256 of all that a step depends on (layerstore/building/stage.py); its entry is a file named by it. An
entry says which layer the step made, and when. It keeps nothing: it counts while the layer is stored, which is as
long as an image needs it, and after that until garbage is collected. One of a step without a layer, which keeps the
time alone, goes when no build has used it for a month. Entries need no order and no sync of their own: one that is
torn, or names a layer that never was committed, is no entry.
"""

from __future__ import annotations

import contextlib
import json
import os
import time

from layerstore.errors import CorruptError, InvalidInput
from layerstore.store import durable
from layerstore.store.layout import make_private
from layerstore.store.sealed import sealed, unsealed
from layerstore.types import ChainId, DiffId, Value, parse_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.store.opened import OpenStore

_UNUSED_SECONDS = 30 * 86_400


class Step(Value):
    """What a step made: its layer, None where it made none; the chain that it ended in; when it ran (RFC 3339)."""

    created: str
    diff_id: DiffId | None
    chain_id: ChainId


class Steps:
    """Safe for many threads and processes."""

    def __init__(self, store: OpenStore) -> None:
        self._directory = f"{store.layout.builds}/steps"
        self._database = store.database

    def find(self, key: str) -> Step | None:
        """The entry of a key, None where there is none that counts. Under the garbage lock."""
        step = self._read(key)
        if step is None:
            return None
        if step.diff_id is None:
            with contextlib.suppress(OSError):
                os.utime(f"{self._directory}/{key}")
            return step
        query = "SELECT 1 FROM layers WHERE diff_id = ? AND diff_id NOT IN (SELECT diff_id FROM damaged_layers)"
        return step if self._database.read().execute(query, (step.diff_id,)).fetchone() else None

    def _read(self, key: str) -> Step | None:
        path = f"{self._directory}/{key}"
        try:
            with open(path, "rb") as file:
                said = json.loads(unsealed(file.read(), path))
            diff_id = said["diff_id"]
            return Step(
                str(said["created"]),
                None if diff_id is None else DiffId(parse_digest(diff_id, "the layer of a step")),
                ChainId(parse_digest(said["chain_id"], "the chain of a step")),
            )
        except (OSError, ValueError, KeyError, TypeError, InvalidInput, CorruptError):
            return None

    def add(self, key: str, step: Step) -> None:
        """Remember what a step made. Raises `OSError`."""
        make_private(self._directory)
        durable.write_whole(f"{self._directory}/{key}", sealed(json.dumps(vars(step)).encode()))

    @staticmethod
    def remove_unfinished(builds: str) -> None:
        """Remove what was to become entries, of builds that were killed. While no build runs. Raises `OSError`."""
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(f"{builds}/steps"):
                if not _is_key(name):
                    os.unlink(f"{builds}/steps/{name}")

    def sweep(self) -> None:
        """Remove the entries of chains that no image goes through, and those that are out of use. Raises `OSError`."""
        try:
            keys = os.listdir(self._directory)
        except FileNotFoundError:
            return
        query = "SELECT 1 FROM chains WHERE chain_id = :chain UNION SELECT 1 FROM images WHERE chain_id = :chain"
        for key in filter(_is_key, keys):
            path = f"{self._directory}/{key}"
            step = self._read(key)
            with contextlib.suppress(FileNotFoundError):
                unused = time.time() - os.stat(path).st_mtime > _UNUSED_SECONDS
                if (
                    step is None
                    or (step.diff_id is None and unused)
                    or not self._database.read().execute(query, {"chain": step.chain_id}).fetchone()
                ):
                    os.unlink(path)


def _is_key(name: str) -> bool:
    """Whether a file is an entry; else it is one that is being written."""
    return not name.startswith(".")
