"""What one chain has otherwise than another, as `diff` tells it."""

from __future__ import annotations

from layerstore._core.compare import compare
from layerstore.results import Change
from layerstore.types import decode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore._core.index import Index


def changes(a: Index, b: Index) -> list[Change]:
    """Every path that chain `b` has and `a` has not (A), has otherwise (C), or has not any more (D), sorted as bytes.

    Otherwise means another type, mode, owner, time of modification, content, target, device number or xattrs; "/" is a
    path like any other. Directories that hold the same are not looked into.
    Raises `InvalidInput` where one is the index of a layer, `CorruptError` where one is damaged.
    """
    found, _ = compare(a, b)
    return [Change(kind, "/" + decode_path(path)) for path, kind in sorted(found)]
