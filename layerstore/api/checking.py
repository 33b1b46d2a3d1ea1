"""Checks and repairs a store that perhaps cannot be opened."""

from __future__ import annotations

import time

from layerstore.api.store import Store
from layerstore.checking.findings import Findings
from layerstore.checking.rebuilding import check_foundation
from layerstore.results import CheckReport
from layerstore.store import locks
from layerstore.store.layout import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    import os
    from collections.abc import Sequence

    from layerstore.results import ProgressCallback


class _CannotBeOpened(Exception):
    """Its foundation is damaged, and was not to be repaired."""


class _Checked(Store):
    """A store whose foundation is looked at, and mended where that is asked for, before it is opened."""

    def __init__(self, root: str | os.PathLike[str], repair: bool) -> None:
        self.found = Findings()
        self._repair = repair
        super().__init__(root)

    def _open(self, root: str, create: bool, derived_limit_bytes: int | None) -> None:
        layout = Layout(root)
        layout.finish()
        if layout.has_parts():
            with locks.garbage_alone(layout) if self._repair else locks.garbage(layout):
                if not check_foundation(layout, self.found, self._repair):
                    raise _CannotBeOpened
        super()._open(root, create, derived_limit_bytes)


def check_store(
    root: str | os.PathLike[str],
    images: Sequence[str] | None = None,
    *,
    quick: bool = False,
    repair: bool = False,
    progress: ProgressCallback | None = None,
) -> CheckReport:
    """Check the store in a directory, also one that cannot be opened; see `Store.check`.

    What keeps it from being opened is told, or repaired: then all the rest is checked. Raises `NotFound` where there is
    no store, and as `Store` and `Store.check`.
    """
    begin = time.monotonic()
    store = _Checked.__new__(_Checked)
    try:
        store.__init__(root, repair)  # type: ignore[misc]
    except _CannotBeOpened:
        damages = tuple(finding.damage(None) for finding in store.found.damages)
        return CheckReport(damages, (), 0, 0, time.monotonic() - begin)
    with store:
        report = store.check(images, quick=quick, repair=repair, progress=progress)
        mended = tuple(finding.damage(None) for finding in store.found.damages)
    return CheckReport(mended + report.damages, report.notes, report.contents, report.bytes, report.seconds)
