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
        with open(_BOOT_ID, "rb") as file:
            current = file.read()
    except OSError:
        return False
    try:
        with open(layout.boot, "rb") as file, about(layout.boot):
            return file.read() != current
    except FileNotFoundError:
        return True


def note(layout: Layout) -> None:
    """What is to be done after a start of the machine was done. Raises `OSError`."""
    with about(_BOOT_ID), open(_BOOT_ID, "rb") as file:
        current = file.read()
    with durable.replacing(layout.boot) as fd, about(layout.boot):
        write_at(fd, current, 0)
