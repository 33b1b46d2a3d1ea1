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

__all__ = [
    "Conflict",
    "CorruptError",
    "DigestMismatch",
    "InvalidInput",
    "LayerstoreError",
    "LimitExceeded",
    "NotFound",
    "Unsupported",
]
