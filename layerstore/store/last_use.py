"""When an image was last used: the time of modification of its config, which is what every image has, and nothing
evicts. An import that brings the config again sets it, too.
"""

from __future__ import annotations

import contextlib
import os

from layerstore.types import Digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerstore.store.layout import Layout
    from layerstore.types import ImageId


def note_use(layout: Layout, images: Iterable[ImageId]) -> None:
    """Note that these images are in use now."""
    for image in images:
        with contextlib.suppress(OSError):  # it has just gone, or belongs to another user
            os.utime(layout.blob(Digest(image)))


def last_use(layout: Layout, image: ImageId) -> float:
    """When an image was last used, in seconds since the epoch; 0 where its config is missing."""
    try:
        return os.stat(layout.blob(Digest(image))).st_mtime
    except FileNotFoundError:
        return 0
