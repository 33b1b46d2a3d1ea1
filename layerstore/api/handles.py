"""What stores, images and containers are compared and pickled by: the store's directory, and an id.

One that is pickled, for another process as that of `multiprocessing`, is opened there by these. Images and containers
of one store share an open store in each process, which stays open until its end.
"""

from __future__ import annotations

import _thread
import os

from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from layerstore.api.container import Container
    from layerstore.api.image import Image
    from layerstore.api.store import Store
    from layerstore.limits import Limits
    from layerstore.store.contents import Verify

_stores: dict[tuple[int, Opened], Store] = {}
_lock = _thread.allocate_lock()


class Opened(Value):
    """How a store was opened: its directory, and the arguments of `Store` that hold for one process."""

    def __init__(self, root: str, verify: Verify, limits: Limits | None) -> None:
        self.root = root
        self.verify = verify
        self.limits = limits


class Handle:
    """Equal to another one of the same thing, in whatever object of this process or another it was found."""

    def _handle(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """What opens it again, and the arguments of that."""
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Handle) and type(self) is type(other) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self._handle()

    def _identity(self) -> tuple[Any, ...]:
        opened, *rest = self._handle()[1]
        return opened.root, *rest


def store(opened: Opened) -> Store:
    """Open it anew. Raises as `Store`."""
    from layerstore.api.store import Store

    return Store(opened.root, verify=opened.verify, limits=opened.limits)


def image(opened: Opened, image_id: str) -> Image:
    return _shared(opened).image(image_id)


def container(opened: Opened, container_id: str) -> Container:
    return _shared(opened).container(container_id)


def _shared(opened: Opened) -> Store:
    """That of this process: one that a parent opened is the parent's."""
    key = os.getpid(), opened
    with _lock:
        if key not in _stores:
            _stores[key] = store(opened)
        return _stores[key]
