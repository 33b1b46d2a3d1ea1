"""A build in the usual store."""

from __future__ import annotations

from layerstore.api.store import Store
from layerstore.store.layout import default_root

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from typing import Any

    from layerstore.api.image import Image


def build(context: str | os.PathLike[str], *, root: str | os.PathLike[str] | None = None, **options: Any) -> Image:
    """Build an image by the Dockerfile of a directory, in the store at `root` (by default that of the command line,
    made if there is none). The options are those of `Store.build`. The store is open as long as the image is used.

    Raises as `Store` and `Store.build`.
    """
    return Store(root or default_root(), create=True).build(context, **options)
