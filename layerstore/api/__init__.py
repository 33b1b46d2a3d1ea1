"""The library's face: `Store`, `Image` and `Container`.

`store.py`, `image.py` and `container.py` have one each, `engine.py` what these work with, `handles.py` what they are
compared and pickled by; `building.py` has `build`, `checking.py` the check of a store that perhaps cannot be opened,
`pruning.py` what `Store.prune` chooses.

A module that only some methods need is imported in them, here and in what is imported here: each takes up to several
milliseconds to load, and every command would wait for all of them (docs/command-line.md). tests/test_startup.py says
what `run` may load.
"""

from layerstore.api.container import Container
from layerstore.api.image import Image
from layerstore.api.store import Store
from layerstore.containers.bundle import Volume

__all__ = ["Container", "Image", "Store", "Volume"]
