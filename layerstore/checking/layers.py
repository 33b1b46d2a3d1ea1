"""Layers: index and recipe of each, and whether the contents that it needs are there."""

from __future__ import annotations

from functools import partial

from layerstore._core.hashing import Hasher
from layerstore._core.index import CONTENT_BYTES
from layerstore.checking.findings import reason, tried
from layerstore.checking.hashing import read_through
from layerstore.errors import CorruptError, LimitExceeded, Unsupported
from layerstore.layers.blob_streams import decompressed, pieces_of
from layerstore.layers.recipe import tar_pieces
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore._core.index import Index
    from layerstore.chains.chains import Chains
    from layerstore.checking.catalog import Catalog
    from layerstore.checking.findings import Findings
    from layerstore.store.contents import ContentStore
    from layerstore.store.layout import Layout
    from layerstore.types import DiffId

_SHOWN_PATHS = 3


class LayersCheck:
    """Checks those layers. After `run`, `whole` are those of which the index is."""

    def __init__(self, layout: Layout, catalog: Catalog, chains: Chains, findings: Findings) -> None:
        self._layout = layout
        self._catalog = catalog
        self._chains = chains
        self._findings = findings
        self.whole: list[DiffId] = []
        self.recipes: dict[DiffId, bytes] = {}
        """The digests of the recipes that could be read."""

    def run(self, layers: Iterable[DiffId]) -> None:
        """Look at indexes and recipes."""
        for diff_id in layers:
            if diff_id in self._catalog.layers:
                self._check_index(diff_id)
                self._check_recipe(diff_id)

    def _check_index(self, diff_id: DiffId) -> None:
        path = self._layout.layer_index(diff_id)

        def opened() -> Index:
            read_through(path)
            found = self._chains.layer_index(diff_id)
            found.verify()
            return found

        try:
            index = tried(opened)
        except (CorruptError, Unsupported) as error:
            self._findings.add("layer", path, f"its index is damaged: {error}", diff_id, layers=[diff_id])
            return
        except OSError as error:
            detail = f"its index cannot be read: {reason(error)}"
            self._findings.add("layer", path, detail, diff_id, layers=[diff_id])
            return
        self.whole.append(diff_id)
        files_bytes = sum(size for _, size in contents_of(index))
        noted = self._catalog.layers[diff_id][0]
        if noted != files_bytes:
            detail = f"layer {diff_id} has {files_bytes} bytes in files, and {noted} are noted"
            self._findings.add("database", self._layout.database, detail, ("layer", diff_id), layers=[diff_id])

    def indexes(self) -> Iterator[tuple[DiffId, Index]]:
        """The layers that are whole with their indexes, opened one at a time: those that are compressed would fill the
        memory. Raises `OSError`, `CorruptError` where one is not any more what it was."""
        return ((diff_id, self._chains.layer_index(diff_id)) for diff_id in self.whole)

    def _check_recipe(self, diff_id: DiffId) -> None:
        path = self._layout.layer_recipe(diff_id)

        try:
            digest = tried(partial(recipe_digest, path))
        except (CorruptError, LimitExceeded):
            self._findings.add("recipe", path, "its bytes do not decompress", diff_id, layers=[diff_id])
            return
        except OSError as error:
            self._findings.add("recipe", path, f"it cannot be read: {reason(error)}", diff_id, layers=[diff_id])
            return
        self.recipes[diff_id] = digest
        if self._catalog.layers[diff_id][1] not in (None, digest):
            self._findings.add("recipe", path, "it is not what was written", diff_id, layers=[diff_id])

    def unsealed(self) -> list[DiffId]:
        """Layers of a store that an older version wrote, of whose recipes no digest was noted."""
        return [diff_id for diff_id in self.recipes if self._catalog.layers[diff_id][1] is None]

    def check_tar(self, diff_id: DiffId, contents: ContentStore) -> None:
        """The layer's tar comes out of the store as it came in."""
        import hashlib

        path = self._layout.layer_recipe(diff_id)
        digest = hashlib.sha256()
        try:
            for piece in tar_pieces(path, self._chains.layer_index(diff_id), contents):
                digest.update(piece)
        except (CorruptError, OSError) as error:
            self._findings.add("recipe", path, f"its tar cannot be written: {reason(error)}", diff_id, layers=[diff_id])
            return
        if f"sha256:{digest.hexdigest()}" != diff_id:
            detail = "the tar that it makes is not the layer's"
            self._findings.add("recipe", path, detail, diff_id, layers=[diff_id])

    def needing(self, missing: Iterable[bytes]) -> dict[DiffId, set[bytes]]:
        """The layers that need any of these contents, and which."""
        wanted = set(missing)
        found: dict[DiffId, set[bytes]] = {}
        if not wanted:
            return found
        for diff_id, index in self.indexes():
            needed = wanted.intersection(digest for digest, _ in contents_of(index))
            if needed:
                found[diff_id] = needed
        return found

    def paths(self, diff_id: DiffId, digests: set[bytes]) -> dict[bytes, str]:
        """Which files of the layer have these contents, a few of each, to be told."""
        index = self._chains.layer_index(diff_id)
        numbers = {n: digest for n, (digest, _) in enumerate(contents_of(index)) if digest in digests}
        found: dict[bytes, list[str]] = {}
        for record in index:
            if record.content in numbers:
                found.setdefault(numbers[record.content], []).append("/" + decode_path(record.path))
        return {
            digest: ", ".join(paths[:_SHOWN_PATHS])
            + (f" and {len(paths) - _SHOWN_PATHS} more" if len(paths) > _SHOWN_PATHS else "")
            for digest, paths in found.items()
        }


def recipe_digest(path: str) -> bytes:
    """BLAKE3 of a recipe, decompressed. Raises `CorruptError`, `LimitExceeded`, `OSError`."""
    hasher = Hasher()
    with open(path, "rb", buffering=0) as file:
        for piece in decompressed(pieces_of(file), "zstd"):
            hasher.update(piece)
    return hasher.digest()


def contents_of(index: Index) -> Iterator[tuple[bytes, int]]:
    """Digest and size of each content that an index names."""
    table = bytes(index.contents_bytes())
    for at in range(0, len(table), CONTENT_BYTES):
        yield table[at : at + 32], int.from_bytes(table[at + 32 : at + CONTENT_BYTES], "little")
