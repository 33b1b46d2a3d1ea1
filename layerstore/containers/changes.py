"""What a container changed: its upper directory against the chain below it, as `docker diff` tells it."""

from __future__ import annotations

from layerstore._core import upper
from layerstore.results import Change

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore._core.index import Index


def changes(uppers: Sequence[int], index: Index) -> list[Change]:
    """Every path added (A), changed (C) or deleted (D), sorted; a directory with changes inside counts as changed.

    The upper directory and those it stands on (`frozen.opened`) alone are walked, and of the chain only what was
    deleted or moved. `index` is the chain's. Reading overlayfs's attributes needs CAP_SYS_ADMIN; without it a moved
    directory is told as a new one.
    Raises `LimitExceeded` for a path of more than 4,096 bytes, `OSError`.
    """
    return [Change(kind, path) for kind, path in upper.changes(index, uppers)]
