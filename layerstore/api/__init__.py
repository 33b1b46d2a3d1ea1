"""The library's face: `Store`, `Image` and `Container`.

A module that only some methods need is imported in them, here and in what is imported here: each takes up to several
milliseconds to load, and every command would wait for all of them. tests/test_startup.py says what `run` may load.
"""

from layerstore.api.container import Container
from layerstore.api.image import Image
from layerstore.api.store import Store
from layerstore.containers.bundle import Volume

__all__ = ["Container", "Image", "Store", "Volume"]
