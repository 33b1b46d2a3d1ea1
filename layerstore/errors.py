"""Every exception that layerstore raises itself. Errors of the system stay `OSError`."""

from layerstore._core.status import (
    Conflict,
    CorruptError,
    DigestMismatch,
    InvalidInput,
    LayerstoreError,
    LimitExceeded,
    NotFound,
    Unsupported,
)

REPAIR = "`layerstore fsck --repair` says which images need it, and makes room for it to be loaded again"
"""What to do about a file of contents that is damaged in the store."""
REPAIR_DATABASE = "`layerstore fsck --repair` makes a new one of what is whole"
"""What to do about a database that is damaged."""
RELOAD = "`layerstore fsck --repair`, then load the image again or pull it"
"""What to do about a layer that is damaged in the store: once that is noted, a load reads the layer again."""


class ProgramNotFound(NotFound):
    """The program to run is not in the container's root file system."""


class ProgramNotExecutable(InvalidInput):
    """The program to run is there, but is no file that its user may execute."""


class BuildFailed(LayerstoreError):
    """A command of a build has failed: its line and command are in the message. `status` is its exit status."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class RegistryError(LayerstoreError):
    """A registry cannot be reached, or refuses what was asked of it."""


class AccessDenied(RegistryError):
    """A registry wants other credentials than those that it was given, or any at all."""


class SyncError(LayerstoreError):
    """The other side of a sync cannot be reached, ends too soon, or says what it should not."""


__all__ = [
    "AccessDenied",
    "BuildFailed",
    "Conflict",
    "CorruptError",
    "DigestMismatch",
    "InvalidInput",
    "LayerstoreError",
    "LimitExceeded",
    "NotFound",
    "ProgramNotExecutable",
    "ProgramNotFound",
    "RegistryError",
    "SyncError",
    "Unsupported",
]
