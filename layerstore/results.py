"""What the library tells its callers: what changed, the history of an image, progress of an import."""

from dataclasses import dataclass

from layerstore.types import ImageId


@dataclass(frozen=True)
class Change:
    """One line of a container's diff or of a comparison of images: `kind` is "A" (added), "C" (changed) or "D"
    (deleted); `path` is absolute."""

    kind: str
    path: str


@dataclass(frozen=True)
class HistoryEntry:
    """One line of an image's history, newest first.

    `image_id` is None where the step has no image of its own in the store (docker prints `<missing>`); `size_bytes` is
    the sum of the sizes of the layer's regular files, 0 for a step without a layer.
    """

    image_id: ImageId | None
    created: str
    created_by: str
    comment: str
    size_bytes: int
    empty_layer: bool


@dataclass(frozen=True)
class Progress:
    """How far a long operation is: `done_bytes` of `total_bytes` (None when unknown) of `what`.

    `stage` is "import" while something is read, "stored" for a layer that is in the store already and passed over.
    """

    stage: str
    what: str
    done_bytes: int
    total_bytes: int | None
