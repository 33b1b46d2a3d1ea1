"""What a check has found so far."""

from __future__ import annotations

import errno

from layerstore.results import Damage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from layerstore.checking.catalog import Catalog
    from layerstore.types import ChainId, DiffId, ImageId

    T = TypeVar("T")

_OF_THE_SYSTEM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.EACCES, errno.EPERM)
"""That this process may not, or has not what it takes: it says nothing of a file."""


def reason(error: Exception) -> str:
    """What is wrong with a file by the error of reading it. Raises that where it says nothing of the file."""
    if not isinstance(error, OSError):
        return str(error)
    if error.errno in _OF_THE_SYSTEM:
        raise error
    return error.strerror or str(error)


def tried(read: Callable[[], T]) -> T:
    """`read()`, once more where the system could not: what is told to be damaged is taken away by a repair, and a disk
    may give at the second time what it did not at the first. Raises what that raises."""
    try:
        return read()
    except OSError as error:
        reason(error)
        return read()


class Finding:
    """A damage, and what repairing needs to know of it: the layer, chain, pack ... that it is of, `subject`."""

    def __init__(self, what: str, path: str, detail: str, subject: Any = None) -> None:
        self.what = what
        self.path = path
        self.detail = detail
        self.subject = subject
        self.layers: set[DiffId] = set()
        self.chains: set[ChainId] = set()
        self.images: set[ImageId] = set()
        self.repaired = False

    def tell_made_again(self, lost: dict[str, int]) -> None:
        """It was of the database, which was made again without so many rows of these tables."""
        self.repaired = True
        self.detail += "; made again of what can be read and agrees with the files"
        if lost:
            told = ", ".join(f"{count} of {table}" for table, count in sorted(lost.items()))
            self.detail += f"; rows that were left out: {told}"

    def damage(self, catalog: Catalog | None) -> Damage:
        """The same as it is told."""
        images = set(self.images)
        if catalog is not None:
            images |= set(catalog.images_of_layers(self.layers)) if self.layers else set()
            images |= set(catalog.images_of_chains(self.chains)) if self.chains else set()
        return Damage(self.what, self.path, self.detail, tuple(sorted(images)), self.repaired)


class Findings:
    """Damages, notes, and how much was compared."""

    def __init__(self) -> None:
        self.damages: list[Finding] = []
        self.notes: list[Finding] = []
        self.contents = 0
        self.bytes = 0

    def add(
        self,
        what: str,
        path: str,
        detail: str,
        subject: Any = None,
        *,
        layers: Iterable[DiffId] = (),
        chains: Iterable[ChainId] = (),
        images: Iterable[ImageId] = (),
    ) -> Finding:
        """Something is damaged; returns it, so that more can be said of it."""
        finding = Finding(what, path, detail, subject)
        finding.layers.update(layers)
        finding.chains.update(chains)
        finding.images.update(images)
        self.damages.append(finding)
        return finding

    def note(self, what: str, path: str, detail: str) -> None:
        """Something is as a crash leaves it, or as damage does."""
        self.notes.append(Finding(what, path, detail))

    def of(self, *kinds: str) -> list[Finding]:
        """Damages of these kinds."""
        return [finding for finding in self.damages if finding.what in kinds]
