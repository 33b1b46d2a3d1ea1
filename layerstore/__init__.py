"""layerstore: a storage engine for container image layers.

    import layerstore

    with layerstore.Store("/var/lib/layerstore", create=True) as store:
        (image,) = store.load("image.tar")
        container = store.create(image)
        with container.mount() as root:
            print((root / "etc/os-release").read_text())

Everything is imported when it is first used, so that `import layerstore` costs nothing. What only annotations need is
imported under `TYPE_CHECKING`, which type checkers take for true: loading `typing` takes several milliseconds.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from layerstore import errors as errors
    from layerstore._core.entry import Entry as Entry
    from layerstore.api import Container as Container
    from layerstore.api import Image as Image
    from layerstore.api import Store as Store
    from layerstore.api import Volume as Volume
    from layerstore.api.building import build as build
    from layerstore.api.checking import check_store as check_store
    from layerstore.chunking import Chunks as Chunks
    from layerstore.chunking import chunk as chunk
    from layerstore.cold.tiering import Tiering as Tiering
    from layerstore.limits import Limits as Limits
    from layerstore.results import BuildEvent as BuildEvent
    from layerstore.results import Change as Change
    from layerstore.results import CheckReport as CheckReport
    from layerstore.results import ContainerUsage as ContainerUsage
    from layerstore.results import Damage as Damage
    from layerstore.results import DedupStats as DedupStats
    from layerstore.results import FreezeEstimate as FreezeEstimate
    from layerstore.results import Frozen as Frozen
    from layerstore.results import HistoryEntry as HistoryEntry
    from layerstore.results import ImageUsage as ImageUsage
    from layerstore.results import LayerSummary as LayerSummary
    from layerstore.results import Part as Part
    from layerstore.results import Progress as Progress
    from layerstore.results import Pruned as Pruned
    from layerstore.results import Snapshot as Snapshot
    from layerstore.results import Synced as Synced
    from layerstore.results import Usage as Usage
    from layerstore.results import Version as Version
    from layerstore.views.image_paths import ImagePath as ImagePath
    from layerstore.views.view import View as View

_HOMES = {
    "BuildEvent": "layerstore.results",
    "Change": "layerstore.results",
    "CheckReport": "layerstore.results",
    "Chunks": "layerstore.chunking",
    "Container": "layerstore.api",
    "ContainerUsage": "layerstore.results",
    "Damage": "layerstore.results",
    "DedupStats": "layerstore.results",
    "Entry": "layerstore._core.entry",
    "FreezeEstimate": "layerstore.results",
    "Frozen": "layerstore.results",
    "HistoryEntry": "layerstore.results",
    "Image": "layerstore.api",
    "ImagePath": "layerstore.views.image_paths",
    "ImageUsage": "layerstore.results",
    "LayerSummary": "layerstore.results",
    "Limits": "layerstore.limits",
    "Part": "layerstore.results",
    "Progress": "layerstore.results",
    "Pruned": "layerstore.results",
    "Snapshot": "layerstore.results",
    "Store": "layerstore.api",
    "Synced": "layerstore.results",
    "Tiering": "layerstore.cold.tiering",
    "Usage": "layerstore.results",
    "Version": "layerstore.results",
    "View": "layerstore.views.view",
    "Volume": "layerstore.api",
    "build": "layerstore.api.building",
    "check_store": "layerstore.api.checking",
    "chunk": "layerstore.chunking",
}
__all__ = [*_HOMES, "errors"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("layerstore.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'layerstore' has no attribute {name!r}")
