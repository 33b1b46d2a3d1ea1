"""What the side that sends knows of the other one: which contents that has, and what others may differ from."""

from __future__ import annotations

from layerstore.cold.encoding import LARGE_BYTES, NO_NAME, Item, hash_names, name_of
from layerstore.store.db import LAYERS_OF
from layerstore.store.records import CONTENT
from layerstore.sync.tables import chunks_of
from layerstore.types import DiffId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from typing import TypeAlias

    from layerstore.chains.chains import Chains
    from layerstore.store.contents import ContentStore
    from layerstore.store.db import Database
    from layerstore.types import ImageId

    Bases: TypeAlias = dict[bytes, list[tuple[bytes, int]]]
    """Contents that others may be differences from, by name: digest and size."""

_IMAGES = 256
_LAYERS = 1024
"""So many layers of so many other images are offered, at most: 32 KiB."""
_PATHS = 500_000
"""So many of their paths are looked at for contents of the same names: a second."""
_ASKED = 2
"""So many contents of one name the other side is asked for."""
_SOURCES = 256
_SOURCES_OF_EACH = 2
_LARGER = 16
"""The other side cuts at most so many contents, the two that are nearest in size, if not so many times as large."""


def layers_like(database: Database, image: ImageId, names: Sequence[str], own: Collection[DiffId]) -> list[DiffId]:
    """Layers of other images that are not among its `own`: first of those with names in the same repositories, then of
    those that came last."""
    db = database.read()
    repositories = {name.rpartition(":")[0] for name in names}
    named = db.execute("SELECT image_id, name FROM names").fetchall()
    near = {other for other, name in named if name.rpartition(":")[0] in repositories}
    query = "SELECT image_id FROM images WHERE image_id <> ? ORDER BY stored_seconds DESC, image_id"
    others = [other for (other,) in db.execute(query, (image,)).fetchall()]
    damaged = {diff_id for (diff_id,) in db.execute("SELECT diff_id FROM damaged_layers").fetchall()}
    found: dict[DiffId, None] = {}
    for other in sorted(others, key=lambda other: other not in near)[:_IMAGES]:
        found.update((DiffId(diff_id), None) for diff_id, _ in db.execute(LAYERS_OF, (other,)).fetchall())
        if len(found) > _LAYERS + len(own):
            break
    return [diff_id for diff_id in found if diff_id not in own and diff_id not in damaged][:_LAYERS]


class Known:
    """What is known of the other side, which has the layers `there`; of those `elsewhere`, which are here alone, it may
    have contents: `ask` says which.

    Raises `CorruptError` where an index here is missing or damaged, and what `ask` raises.
    """

    def __init__(
        self,
        chains: Chains,
        contents: ContentStore,
        there: Sequence[DiffId],
        elsewhere: Sequence[DiffId],
        ask: Callable[[Sequence[bytes]], list[bool]],
    ) -> None:
        self._chains = chains
        self._contents = contents
        self._there = there
        self._elsewhere = elsewhere
        self._ask = ask
        self._tables: dict[DiffId, frozenset[bytes]] | None = None

    def layer_like(self, table: bytes) -> DiffId | None:
        """The layer that the other side has which has the most contents of this table; None for none of them."""
        if self._tables is None:
            self._tables = dict(self._read_tables())
        digests = {digest for digest, _ in CONTENT.iter_unpack(table)}
        shared = {diff_id: len(digests & theirs) for diff_id, theirs in self._tables.items()}
        best = max(shared, key=lambda diff_id: shared[diff_id], default=None)
        return best if best is not None and shared[best] else None

    def _read_tables(self) -> Iterator[tuple[DiffId, frozenset[bytes]]]:
        looked_at = 0
        for diff_id in self._there:
            table = self._chains.layer_index(diff_id).contents_bytes()
            yield diff_id, frozenset(digest for digest, _ in CONTENT.iter_unpack(table))
            looked_at += len(table) // CONTENT.size
            if looked_at > _PATHS:
                return

    def items_and_bases(self, contents: Sequence[tuple[bytes, int, bytes]]) -> tuple[list[Item], Bases]:
        """These contents (digest, size, path) as an encoder has them, with names; and what both sides have of the same
        names: what was at the very path in an image before, or at one that is the same but for version numbers."""
        lacking = {digest for digest, _, _ in contents}
        paths = {path for _, _, path in contents}
        names = dict(zip(paths, hash_names([name_of(path) for path in paths]), strict=True)) | {b"": NO_NAME}
        at_path, of_name, left = self._find(self._there, paths, {*names.values()}, lacking, _PATHS)
        missing = {name for path, name in names.items() if path and path not in at_path and name not in of_name}
        _, candidates, _ = self._find(self._elsewhere, (), missing, lacking, left)
        of_name.update(self._held(candidates))
        exact = dict(zip(at_path, hash_names([*at_path]), strict=True))
        items = [Item(digest, size, path, exact.get(path, names[path])) for digest, size, path in contents]
        bases = of_name | {exact[path]: same for path, same in at_path.items()}
        # Of those that are equally near in size, the encoder takes the last.
        return items, {name: same[::-1] for name, same in bases.items()}

    def _find(
        self,
        layers: Sequence[DiffId],
        paths: Collection[bytes],
        names: Collection[bytes],
        lacking: Collection[bytes],
        most: int,
    ) -> tuple[Bases, Bases, int]:
        """What these layers have at these paths, and of these names, and is not lacking, as far as that many paths go;
        and how many of those are left."""
        at_path: Bases = {}
        of_name: Bases = {}
        for diff_id in layers:
            if most <= 0 or not names:
                break
            index = self._chains.layer_index(diff_id)
            found = index.content_paths()
            most -= len(found)
            hashes = hash_names([name_of(path) for path in found])
            table = CONTENT.iter_unpack(index.contents_bytes())
            for path, name, content in zip(found, hashes, table, strict=True):
                if content[0] in lacking or not path:
                    continue
                if path in paths:
                    at_path.setdefault(path, []).append(content)
                if name in names:
                    of_name.setdefault(name, []).append(content)
        return _each_once(at_path), _each_once(of_name), most

    def _held(self, candidates: Bases) -> Bases:
        """Those of them that the other side has."""
        asked = [content for same in candidates.values() for content in same[:_ASKED]]
        flags = self._ask([digest for digest, _ in asked])
        held = {content for content, flag in zip(asked, flags, strict=True) if flag}
        found = {name: [content for content in same if content in held] for name, same in candidates.items()}
        return {name: same for name, same in found.items() if same}

    def chunks(self, items: Sequence[Item], bases: Bases, sizes: tuple[int, int, int]) -> Chunks:
        """Those of contents that both sides have and large `items` may have in common with them."""
        sources: dict[bytes, None] = {}
        for item in items:
            if item.size > LARGE_BYTES:
                near = sorted(bases.get(item.name, ()), key=lambda base: abs(base[1] - item.size))[:_SOURCES_OF_EACH]
                sources.update((digest, None) for digest, size in near if LARGE_BYTES < size <= _LARGER * item.size)
        return Chunks(self._contents, [*sources][:_SOURCES], sizes)


class Chunks:
    """Which chunks the other side can cut out of contents that it has. These are cut when they are first asked for."""

    def __init__(self, contents: ContentStore, digests: Sequence[bytes], sizes: tuple[int, int, int]) -> None:
        self._contents = contents
        self._digests = digests
        self._sizes = sizes
        self._sources_of: dict[bytes, bytes] | None = None
        self.sources: dict[bytes, None] = {}
        """The contents that it is to cut, of which chunks were asked for and found."""

    def known(self, digests: Sequence[bytes]) -> set[bytes]:
        """Those of these chunks."""
        if self._sources_of is None:
            self._sources_of = {
                chunk: source
                for source in self._digests
                for chunk, _, _ in chunks_of(self._contents, source, self._sizes)
            }
        found = {digest for digest in digests if digest in self._sources_of}
        self.sources.update((self._sources_of[digest], None) for digest in sorted(found))
        return found


def _each_once(bases: Bases) -> Bases:
    return {name: list(dict.fromkeys(same)) for name, same in bases.items()}
