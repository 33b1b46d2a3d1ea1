"""layerstore: a storage engine for container image layers.

    import layerstore

    with layerstore.Store("/var/lib/layerstore", create=True) as store:
        (image,) = store.load("image.tar")
        container = store.create(image)
        with container.mount() as root:
            print((root / "etc/os-release").read_text())

Everything is imported when it is first used, so that `import layerstore` costs nothing.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layerstore import errors as errors
    from layerstore.api import Container as Container
    from layerstore.api import Image as Image
    from layerstore.api import Store as Store
    from layerstore.api import Volume as Volume
    from layerstore.types import Change as Change
    from layerstore.types import HistoryEntry as HistoryEntry
    from layerstore.types import Progress as Progress

_HOMES = {
    "Change": "layerstore.types",
    "Container": "layerstore.api",
    "HistoryEntry": "layerstore.types",
    "Image": "layerstore.api",
    "Progress": "layerstore.types",
    "Store": "layerstore.api",
    "Volume": "layerstore.api",
}
__all__ = ["Change", "Container", "HistoryEntry", "Image", "Progress", "Store", "Volume", "errors"]


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name == "errors":
        return import_module("layerstore.errors")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'layerstore' has no attribute {name!r}")
