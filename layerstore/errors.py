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


class ProgramNotFound(NotFound):
    """The program to run is not in the container's root file system."""


class ProgramNotExecutable(InvalidInput):
    """The program to run is there, but is no file that its user may execute."""


__all__ = [
    "Conflict",
    "CorruptError",
    "DigestMismatch",
    "InvalidInput",
    "LayerstoreError",
    "LimitExceeded",
    "NotFound",
    "ProgramNotExecutable",
    "ProgramNotFound",
    "Unsupported",
]
