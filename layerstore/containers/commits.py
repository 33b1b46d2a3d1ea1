"""A container's changes as the topmost layer of a new image."""

from __future__ import annotations

import json

from layerstore.layers.imports import Import
from layerstore.oci.configs import next_config, parse_config, time_of_making
from layerstore.oci.instructions import apply_changes
from layerstore.types import normalise_name, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager
    from sqlite3 import Connection

    from layerstore.oci.configs import ImageConfig
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Clone
    from layerstore.types import ImageId


def commit(
    store: OpenStore,
    base: ImageConfig,
    tar: Callable[[Clone], Iterator[Piece]],
    held: AbstractContextManager[object],
    check: Callable[[Connection], None],
    *,
    name: str | None,
    author: str,
    message: str,
    command: str | None,
    changes: Sequence[str],
) -> ImageId:
    """Make an image of `base` and a layer, whose tar `tar` writes; see `layerstore.Container.commit`.

    held: keeps what is read from being rolled back or removed. `check` raises in the transaction that commits the image
    where it was removed all the same.
    command: what ran last in the container, as JSON.
    """
    names = [] if name is None else [normalise_name(name)]
    runtime = apply_changes(base.runtime, changes)
    step = {
        "created": time_of_making(),
        "author": author,
        "created_by": " ".join(json.loads(command)) if command else "",
        "comment": message,
    }
    with Import(store) as importing, held:
        layer = importing.add_tar(tar)
        data = next_config(base, runtime, layer.diff_id, step)
        config = parse_config(data)
        importing.add_image(config, names, {sha256_digest(data): data})
        importing.commit(check=check)
    return config.image_id
