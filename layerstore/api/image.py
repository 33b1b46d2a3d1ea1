"""An image of a store."""

from __future__ import annotations

from layerstore.api import handles
from layerstore.errors import RELOAD, CorruptError, NotFound
from layerstore.oci.configs import parse_config
from layerstore.store.db import LAYERS_OF
from layerstore.store.pieces import read_whole
from layerstore.types import ChainId, DiffId, Digest, ImageId, chain_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from layerstore._core.index import Index
    from layerstore.api.engine import Engine
    from layerstore.oci.configs import ImageConfig
    from layerstore.results import Change, HistoryEntry, LayerSummary, Version
    from layerstore.store.pieces import Piece
    from layerstore.views.image_paths import ImagePath
    from layerstore.views.view import View


class Image(handles.Handle):
    """An image in a store. What it says is read when asked for."""

    def __init__(self, engine: Engine, image_id: ImageId) -> None:
        self._engine = engine
        self.id = image_id
        self._config: ImageConfig | None = None
        self._chain_id: ChainId | None = None
        self._view: View | None = None

    def __repr__(self) -> str:
        return f"<Image {self.short_id} {' '.join(self.names)}>"

    def _handle(self) -> tuple[Callable[..., Image], tuple[handles.Opened, str]]:
        return handles.image, (self._engine.opened, self.id)

    @property
    def short_id(self) -> str:
        return self.id.removeprefix("sha256:")[:12]

    @property
    def names(self) -> list[str]:
        """`NAME:TAG`, sorted."""
        query = "SELECT name FROM names WHERE image_id = ? ORDER BY name"
        return [name for (name,) in self._engine.database.read().execute(query, (self.id,))]

    @property
    def config(self) -> ImageConfig:
        """The image's config. Raises `CorruptError`, `NotFound` when the image is gone."""
        if self._config is None:
            try:
                path = self._engine.layout.blob(Digest(self.id))
                self._config = parse_config(read_whole(path), self.id)
            except FileNotFoundError:
                raise NotFound(f"the config of image {self.short_id} is gone; {RELOAD}") from None
        return self._config

    @property
    def diff_ids(self) -> tuple[DiffId, ...]:
        """The layers, bottom first."""
        return tuple(DiffId(d) for d, _ in self._engine.database.read().execute(LAYERS_OF, (self.id,)))

    @property
    def chain_id(self) -> ChainId:
        """The ChainID of its layers. Raises `NotFound` when the image is gone."""
        if self._chain_id is None:
            query = "SELECT chain_id FROM images WHERE image_id = ?"
            row = self._engine.database.read().execute(query, (self.id,)).fetchone()
            if row is None:
                raise NotFound(f"image {self.short_id} was removed; load it again")
            self._chain_id = ChainId(row[0])
        return self._chain_id

    @property
    def created(self) -> str:
        """When it was made, as its config says (RFC 3339), "" when it does not."""
        query = "SELECT created FROM images WHERE image_id = ?"
        row = self._engine.database.read().execute(query, (self.id,)).fetchone()
        return str(row[0]) if row else ""

    @property
    def is_frozen(self) -> bool:
        """Whether `Store.freeze` has frozen it, and nothing has thawed it since."""
        query = "SELECT 1 FROM frozen WHERE image_id = ?"
        return self._engine.database.read().execute(query, (self.id,)).fetchone() is not None

    @property
    def size_bytes(self) -> int:
        """The sum of its layers' file sizes, as docker shows it."""
        return sum(self._layer_bytes().values())

    def _layer_bytes(self) -> dict[int, int]:
        rows = self._engine.database.read().execute(LAYERS_OF, (self.id,))
        return {position: files_bytes for position, (_, files_bytes) in enumerate(rows)}

    def history(self) -> list[HistoryEntry]:
        """Its steps, newest first, as `docker image history` lists them.

        A layer that the config's history says nothing of is a step too, so that the sizes add up to `size_bytes`.
        """
        from layerstore.results import HistoryEntry

        steps = self.config.steps()
        sizes = self._layer_bytes()
        ids = self._images_of_steps(steps)
        found = [
            HistoryEntry(
                image_id=ids.get(number),
                created=str(step.get("created") or ""),
                created_by=str(step.get("created_by") or ""),
                comment=str(step.get("comment") or ""),
                size_bytes=0 if layer is None else sizes.get(layer, 0),
                empty_layer=bool(step.get("empty_layer")),
            )
            for number, (step, layer) in enumerate(steps)
        ]
        return found[::-1]

    def _images_of_steps(self, steps: Sequence[tuple[dict[str, Any], int | None]]) -> dict[int, ImageId]:
        """Images of the store that end where a step of this one does, by the number of that step."""
        found: dict[int, ImageId] = {}
        made_at = {layer: number for number, (_, layer) in enumerate(steps) if layer is not None}
        lengths = {chain: n for n, chain in enumerate(chain_ids(self.diff_ids), 1)}
        rows = self._engine.database.read().execute("SELECT image_id, chain_id FROM images ORDER BY image_id")
        for image_id, length in [(image_id, lengths[chain]) for image_id, chain in rows if chain in lengths]:
            first, end = made_at.get(length - 1, 0), made_at.get(length, len(steps))
            if first + 1 < end:
                # Steps without a layer follow, so its history says which of them are its own.
                try:
                    theirs = self._engine.image(image_id).config.steps()
                except (CorruptError, NotFound):
                    continue  # damaged, or removed meanwhile: what is asked for is not that image
                if theirs != steps[: len(theirs)]:
                    continue
                first = len(theirs) - 1
            found.setdefault(first, ImageId(image_id))
        return found | {len(steps) - 1: self.id}

    def layers(self) -> list[LayerSummary]:
        """What each layer brought and what later ones left of it, bottom first.

        Raises `CorruptError`, `InvalidInput` for an image with a hard link to nothing, `NotFound` when it is gone.
        """
        from layerstore.views import provenance

        diff_ids, sizes = self.diff_ids, self._layer_bytes()
        made_by = {layer: str(step.get("created_by") or "") for step, layer in self.config.steps()}
        numbers = range(len(diff_ids))
        return provenance.layers(
            self._layer_indexes(diff_ids), diff_ids, [made_by.get(n, "") for n in numbers], [sizes[n] for n in numbers]
        )

    @property
    def wasted_bytes(self) -> int:
        """Bytes in files of its layers that nothing shows any more: later layers replaced or hid them.

        They are part of `size_bytes`, and travel with the image. A file with several hard links is wasted when the last
        of them is gone. What dive calls wasted is an estimate by path: all versions of a path that more than one layer
        has, the visible one too (https://github.com/wagoodman/dive, dive/filetree/efficiency.go).
        """
        return sum(layer.wasted_bytes for layer in self.layers())

    def layer_changes(self, number: int) -> list[Change]:
        """What a layer (from 0 at the bottom) adds, changes and hides in the view of those below it, sorted by path.

        A directory that is hidden is told alone, without what was in it, as docker tells it; one that is described
        again as it was is no change, whatever changes in it.
        Raises `NotFound` where there is no such layer, `CorruptError`, `InvalidInput` as `layers`.
        """
        from layerstore.views import provenance

        diff_ids = self.diff_ids
        if not 0 <= number < len(diff_ids):
            raise NotFound(f"image {self.short_id} has no layer {number}; it has {len(diff_ids)}, counted from 0")
        return provenance.changes(self._layer_indexes(diff_ids[: number + 1]))

    def versions(self, path: str | bytes) -> list[Version]:
        """Every version of a path in its layers, the topmost first, with what ended each.

        Symlinks above the last component are followed as the whole image shows them: of "/bin/sh", where /bin is a link
        to usr/bin, those of /usr/bin/sh are told (`Version.path`), and those of /bin/sh from layers where /bin was a
        directory yet. A symlink at the end is not followed: it has versions itself. Each layer is asked for the path,
        nothing is walked.
        Raises `FileNotFoundError` when no layer ever had it, otherwise as `view`.
        """
        from layerstore.views import provenance

        diff_ids = self.diff_ids
        tree = self.view if diff_ids else None
        return provenance.versions(self._layer_indexes(diff_ids), diff_ids, tree, path)

    def _layer_indexes(self, diff_ids: Sequence[DiffId]) -> list[Index]:
        with self._engine.told_of_removal(self):
            return [self._engine.chains.layer_index(diff_id) for diff_id in diff_ids]

    def index(self) -> Index:
        """The merged index of its layers. Raises as `view`."""
        return self._engine.index(self)

    @property
    def view(self) -> View:
        """Its tree, to look into without mounting it or being root: `image.view.listdir("/etc")`.

        Raises `NotFound` when the image is gone, `InvalidInput` for one with a hard link to nothing, `CorruptError`.
        """
        from layerstore.views.view import View

        view = self._view
        if view is None:
            view = self._view = View(self._engine.index(self), self._engine.contents)
        self._engine.looked_into(self)
        return view

    def let_go(self) -> None:
        """Have it map nothing of the store any more, until it is asked again."""
        self._view = None

    @property
    def path(self) -> ImagePath:
        """The root of its tree as a path to go on from: `(image.path / "etc" / "os-release").read_text()`.

        Raises as `view`.
        """
        from layerstore.views.image_paths import ImagePath

        return ImagePath(self.view)

    def layer_tar(self, diff_id: DiffId) -> Iterator[Piece]:
        """The tar of one of its layers, bit for bit as it came in, in pieces. Raises `CorruptError`, `OSError`."""
        from layerstore.layers.recipe import tar_pieces

        engine = self._engine
        recipe = engine.layout.layer_recipe(diff_id)
        return tar_pieces(recipe, engine.chains.layer_index(diff_id), engine.contents)

    def _damaged_layers(self) -> list[str]:
        """Those of which a repair has found that something is missing, until they are loaded again."""
        damaged = {diff_id for (diff_id,) in self._engine.database.read().execute("SELECT diff_id FROM damaged_layers")}
        return [diff_id for diff_id in self.diff_ids if diff_id in damaged] if damaged else []

    def inspect(self) -> dict[str, Any]:
        """What is known of the image, in docker's words."""
        document = self.config.document
        return {
            "Id": self.id,
            "RepoTags": self.names,
            "Created": self.created,
            "Architecture": document.get("architecture", ""),
            "Os": document.get("os", ""),
            "Author": document.get("author", ""),
            "Config": self.config.runtime,
            "Size": self.size_bytes,
            "RootFS": {"Type": "layers", "Layers": list(self.diff_ids)},
            "ChainId": self.chain_id,
            "Frozen": self.is_frozen,
            "DamagedLayers": self._damaged_layers(),
        }
