"""The one translation of the C core's status codes to Python exceptions."""

import os


class LayerstoreError(Exception):
    """Base of every error that layerstore raises itself. An errno of the system stays an `OSError`."""


class CorruptError(LayerstoreError):
    """Stored or received bytes are not what they must be: damaged, truncated, or a digest does not match."""


class DigestMismatch(CorruptError):
    """The bytes of a blob or layer do not have the digest (or diff_id, or size) that was promised for them."""


class InvalidInput(LayerstoreError, ValueError):
    """Input that could be read but is not acceptable; the message names the entry or field."""


class LimitExceeded(LayerstoreError):
    """A named limit was exceeded; the message names the limit."""


class NotFound(LayerstoreError, LookupError):
    """The image, layer, container or path asked for is not in the store."""


class Unsupported(LayerstoreError):
    """This machine, kernel or user cannot do it; the message says what is needed."""


class Conflict(LayerstoreError):
    """It cannot be done in the present state (in use, already exists); the message says what to do first."""


cdef dict _EXCEPTIONS = {
    LS_CORRUPT: CorruptError,
    LS_INVALID: InvalidInput,
    LS_LIMIT: LimitExceeded,
    LS_NOT_FOUND: NotFound,
    LS_UNSUPPORTED: Unsupported,
}


cdef int check(int status, ls_error *err) except -1:
    """Raise the exception that `status` and `err` stand for; return 0 for LS_OK."""
    if status == LS_OK:
        return 0
    message = err.message.decode("utf-8", "replace")
    if status == LS_SYSTEM:
        raise OSError(err.sys_errno, f"{message}: {os.strerror(err.sys_errno)}")
    if status == LS_NO_MEMORY:
        raise MemoryError(message)
    raise _EXCEPTIONS[status](message)
