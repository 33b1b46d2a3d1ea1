"""Saves images as docker archives and OCI layouts: each layer once, its tar rebuilt from its recipe."""

from __future__ import annotations

import os

from layerstore.errors import RELOAD, CorruptError, DigestMismatch, InvalidInput
from layerstore.layers import targets
from layerstore.layers.blobs import COMPRESSIONS, LayerBlob
from layerstore.layers.recipe import tar_bytes, tar_pieces
from layerstore.oci import layouts
from layerstore.oci.configs import parse_config
from layerstore.oci.layouts import LayoutBlob, LayoutImage, blob_name
from layerstore.results import telling
from layerstore.store import locks
from layerstore.store.pieces import read_whole
from layerstore.types import Digest, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import BinaryIO

    from layerstore._core.index import Index
    from layerstore.layers.targets import Target
    from layerstore.results import ProgressCallback
    from layerstore.store.contents import ContentStore
    from layerstore.store.layout import Layout
    from layerstore.types import DiffId, ImageId

FORMATS = ("docker-archive", "oci-archive", "oci")


def save(
    layout: Layout,
    contents: ContentStore,
    layer_index: Callable[[DiffId], Index],
    images: Mapping[ImageId, Sequence[str]],
    target: str | os.PathLike[str] | BinaryIO,
    form: str,
    compression: str,
    progress: ProgressCallback | None,
) -> None:
    """Write images, each with the names given for it; see `layerstore.Store.save`."""
    if compression not in COMPRESSIONS:
        raise InvalidInput(f"there is no compression {compression!r}; it is one of {', '.join(COMPRESSIONS)}")
    # What a collection takes away while it is read would be missing in the middle.
    with locks.garbage(layout, again=True), _opened(layout, target, form) as out:
        layers = _Layers(layout, contents, layer_index, out, compression, progress)
        out.put("oci-layout", layouts.LAYOUT_FILE)
        saved = [_image(layout, image, tuple(names), layers) for image, names in images.items()]
        for image in saved:
            out.put(blob_name(image.config.image_id), image.config_data)
            manifest = image.manifest()
            out.put(blob_name(sha256_digest(manifest)), manifest)
        out.put("index.json", layouts.index(saved))
        if form == "docker-archive":
            out.put("manifest.json", layouts.docker_manifest(saved))
            repositories = layouts.docker_repositories(saved)
            if repositories is not None:
                out.put("repositories", repositories)


def _opened(layout: Layout, target: str | os.PathLike[str] | BinaryIO, form: str) -> AbstractContextManager[Target]:
    if form not in FORMATS:
        raise InvalidInput(f"there is no format {form!r}; it is one of {', '.join(FORMATS)}")
    if form != "oci":
        return targets.archive(target, layout.staging)
    if not isinstance(target, (str, os.PathLike)):
        raise InvalidInput("format oci is a directory, not a stream; give its path, or save in format oci-archive")
    return targets.directory(target)


def _image(layout: Layout, image_id: ImageId, names: tuple[str, ...], layers: _Layers) -> LayoutImage:
    try:
        data = read_whole(layout.blob(Digest(image_id)))
        config = parse_config(data, image_id)
    except (FileNotFoundError, DigestMismatch) as error:
        raise CorruptError(f"the config of image {image_id} is missing or damaged; {RELOAD}") from error
    return LayoutImage(config, data, tuple(layers.put(diff_id) for diff_id in config.diff_ids), names)


class _Layers:
    """The layers that were put to a target."""

    def __init__(
        self,
        layout: Layout,
        contents: ContentStore,
        layer_index: Callable[[DiffId], Index],
        target: Target,
        compression: str,
        progress: ProgressCallback | None,
    ) -> None:
        self._layout = layout
        self._contents = contents
        self._layer_index = layer_index
        self._target = target
        self._compression = compression
        self._progress = progress
        self._put: dict[DiffId, LayoutBlob] = {}

    def put(self, diff_id: DiffId) -> LayoutBlob:
        """What the layer is in the target, put there unless it is there."""
        if diff_id not in self._put:
            self._put[diff_id] = self._written(diff_id)
        return self._put[diff_id]

    def _written(self, diff_id: DiffId) -> LayoutBlob:
        recipe, index = self._layout.layer_recipe(diff_id), self._layer_index(diff_id)
        total = tar_bytes(recipe, index)
        tar = tar_pieces(recipe, index, self._contents)
        blob = LayerBlob(tar, self._compression, diff_id, telling(self._progress, "save", diff_id, total))
        self._target.put_layer(blob, total if self._compression == "none" else None)
        return LayoutBlob(blob.digest, blob.size_bytes, self._compression)
