"""Whether the machine was started anew since a store was last used."""

from __future__ import annotations

from layerstore.naming import about
from layerstore.store import durable
from layerstore.store.pieces import write_at

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.store.layout import Layout

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


def is_new(layout: Layout) -> bool:
    """Whether the machine was started since `note` was last called. False where the kernel does not say."""
    try:
        now = current()
    except OSError:
        return False
    try:
        with open(layout.boot, "rb") as file, about(layout.boot):
            return file.read() != now
    except FileNotFoundError:
        return True


def note(layout: Layout) -> None:
    """What is to be done after a start of the machine was done. Raises `OSError`."""
    now = current()
    with durable.replacing(layout.boot) as fd, about(layout.boot):
        write_at(fd, now, 0)


def current() -> bytes:
    """What tells this start of the machine from others, a line. Raises `OSError`."""
    with about(_BOOT_ID), open(_BOOT_ID, "rb") as file:
        return file.read()
