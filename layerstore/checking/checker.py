"""Checks a store: database, layers, contents, images, what is derived, containers."""

from __future__ import annotations

import time

from layerstore._core.ingest import LOCATION_NONE, LOCATION_OBJECT
from layerstore.checking.catalog import Catalog
from layerstore.checking.containers import check_containers
from layerstore.checking.contents import ContentsCheck
from layerstore.checking.database import check_database
from layerstore.checking.derived import check_chains, check_steps
from layerstore.checking.findings import Findings
from layerstore.checking.images import check_images
from layerstore.checking.layers import LayersCheck, contents_of
from layerstore.errors import CorruptError
from layerstore.results import CheckReport
from layerstore.store import locks
from layerstore.store.cold_packs import is_cold
from layerstore.store.layout import FIRST_COLD
from layerstore.store.own_names import strangers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from layerstore.chains.chains import Chains
    from layerstore.checking.contents import Record
    from layerstore.checking.findings import Finding
    from layerstore.results import ProgressCallback
    from layerstore.store.opened import OpenStore
    from layerstore.types import DiffId, ImageId

_SHOWN_FILES = 1000
"""Contents of which it is told which files show them: that means to walk over an index, for each layer."""


class Check:
    """One check of a store, of all of it or of what those images need.

    Under the garbage lock of the caller's. After `run`: what was found in `findings`, and what repairing needs.
    """

    def __init__(
        self,
        store: OpenStore,
        chains: Chains,
        images: Sequence[ImageId] | None,
        quick: bool,
        progress: ProgressCallback | None,
    ) -> None:
        self._store = store
        self._layout = store.layout
        self._chains = chains
        self._images = images
        self._quick = quick
        self._progress = progress
        self.findings = Findings()
        self.catalog: Catalog | None = None
        self.contents: ContentsCheck | None = None
        self.layers: LayersCheck | None = None

    def run(self) -> None:
        """Look at everything."""
        check_database(self._layout, self.findings)
        try:
            db = self._store.database.read()
            db.execute("BEGIN")
            try:
                self.catalog = Catalog(db)
            finally:
                db.execute("COMMIT")
        except CorruptError as error:
            if not self.findings.damages:
                self.findings.add("database", self._layout.database, f"it cannot be read: {error}", "pages")
            return
        self._check(self.catalog)

    def _check(self, catalog: Catalog) -> None:
        images = list(catalog.images) if self._images is None else [i for i in self._images if i in catalog.images]
        check_images(self._layout, catalog, self.findings, images)
        stacks = {catalog.images[image][0]: catalog.stack(catalog.images[image][0]) for image in images}
        chosen = (
            list(catalog.layers) if self._images is None else list(dict.fromkeys(d for s in stacks.values() for d in s))
        )
        layers = self.layers = LayersCheck(self._layout, catalog, self._chains, self.findings)
        layers.run(chosen)
        wanted = None
        if self._images is not None:
            wanted = {digest for _, index in layers.indexes() for digest, _ in contents_of(index)}
        contents = self.contents = ContentsCheck(
            self._layout, catalog, self.findings, wanted, self._quick, self._progress
        )
        contents.run()
        self._tell_contents(catalog, layers, contents)
        self._check_unsealed(layers)
        is_wanted = stacks.__contains__ if self._images is not None else lambda _: True
        check_chains(self._store, catalog, self.findings, is_wanted)
        if self._images is None:
            check_steps(self._layout, self.findings)
            check_containers(self._store, catalog, self.findings, self._quick)
            self._check_counters(catalog, contents)
            for path in strangers(self._layout):
                self.findings.note("stranger", path, "it is none of the store's files: nothing reads or removes it")

    def _tell_contents(self, catalog: Catalog, layers: LayersCheck, contents: ContentsCheck) -> None:
        """Damaged packs and contents, with the files that show them; and layers that lack contents."""
        bad: dict[bytes, list[Record]] = {}
        in_packs: dict[int, set[bytes]] = {}
        sound = contents.sound()
        for record in contents.records:
            if record.number in contents.misplaced:
                self.findings.add("digest log", contents.log_path, contents.misplaced[record.number], record)
            elif record.pack in contents.bad_packs:
                in_packs.setdefault(record.pack, set()).add(record.digest)
            elif record.number in contents.bad:
                bad.setdefault(record.digest, []).append(record)
        for digests in in_packs.values():
            for digest in digests:
                found = sound.get(digest)
                if found is not None and found.pack in contents.bad_packs:
                    del sound[digest]
        needed: dict[DiffId, set[bytes]] = layers.needing(
            {*bad, *(digest for digests in in_packs.values() for digest in digests)}
        )
        self._tell_packs(contents, in_packs, needed)
        shown = dict(list(bad.items())[:_SHOWN_FILES])
        paths: dict[bytes, str] = {}
        for diff_id, digests in needed.items():
            if told := shown.keys() & digests:
                paths.update(layers.paths(diff_id, set(told)))
        for digest, records in bad.items():
            for record in records:
                path, where = self._layout.object(digest.hex()), ""
                if record.pack != LOCATION_OBJECT:
                    path, where = self._layout.pack(record.pack), f"slot {record.slot}, content {digest.hex()}: "
                files = f"file {paths[digest]}: " if digest in paths else ""
                also = "; it is whole elsewhere" if digest in sound else ""
                detail = f"{where}{files}{contents.bad[record.number]}{also}"
                self.findings.add(
                    "content", path, detail, record, layers=[d for d, named in needed.items() if digest in named]
                )
        self._tell_lacking(catalog, layers, contents)

    def _tell_packs(
        self, contents: ContentsCheck, in_packs: dict[int, set[bytes]], needed: dict[DiffId, set[bytes]]
    ) -> None:
        for number, why in sorted(contents.bad_packs.items()):
            lost = in_packs.get(number, set())
            detail = f"{why}; {len(lost)} contents are looked up in it"
            users = [diff_id for diff_id, named in needed.items() if lost.intersection(named)]
            self.findings.add("pack", self._layout.pack(number), detail, number, layers=users)

    def _tell_lacking(self, catalog: Catalog, layers: LayersCheck, contents: ContentsCheck) -> None:
        """Layers that name contents of which the log has nothing."""
        known = {record.digest for record in contents.records if record.number not in contents.misplaced}
        for diff_id, index in layers.indexes():
            lost = {digest for digest, _ in contents_of(index)} - known
            if not lost:
                continue
            files = sorted(layers.paths(diff_id, set(sorted(lost)[:3])).values())
            detail = f"it lacks {len(lost)} contents (file {', '.join(files)}); load or pull the image again"
            self.findings.add("layer", self._layout.layer_index(diff_id), detail, ("lacks", diff_id), layers=[diff_id])
        for diff_id, lacks in catalog.damaged.items():
            if not any(diff_id in finding.layers for finding in self.findings.damages):
                detail = f"layer {diff_id} is noted as damaged ({lacks}), and is whole"
                self.findings.add("layer", self._layout.database, detail, ("whole", diff_id), layers=[diff_id])

    def _check_unsealed(self, layers: LayersCheck) -> None:
        """Recipes of which no digest is noted are judged by the tars that they make."""
        if self._quick:
            return
        for diff_id in layers.unsealed():
            damaged = any(diff_id in finding.layers for finding in self.findings.damages)
            if not damaged and diff_id in layers.whole:
                layers.check_tar(diff_id, self._store.contents)

    def _check_counters(self, catalog: Catalog, contents: ContentsCheck) -> None:
        located = {record.pack for record in contents.records if record.pack < LOCATION_NONE}
        for kind, known, first in (("pack", catalog.packs, 0), ("cold pack", catalog.cold_packs, FIRST_COLD)):
            numbers = known | {number for number in located if is_cold(number) == bool(first)}
            self._check_numbers(catalog, kind, known, numbers, first)

    def _check_numbers(self, catalog: Catalog, kind: str, known: set[int], numbers: set[int], first: int) -> None:
        path, counter = self._layout.database, f"{kind.replace(' ', '_')}s"
        following = catalog.counters.get(counter, 0)
        if numbers and following <= max(numbers) - first:
            detail = f"the next {kind} is to have number {following}, and there is {max(numbers) - first}"
            self.findings.add("database", path, detail, ("counter", counter))
        for number in sorted(numbers - known):
            detail = f"it does not know {kind} {number - first}, which has contents"
            self.findings.add("database", path, detail, (kind, number))

    def take_over(self, later: Check) -> None:
        """Add what a later check found that this one did not; what that found no more is repaired."""
        left = {finding.detail.partition(";")[0] for finding in later.findings.damages if not finding.repaired}
        known = {finding.detail.partition(";")[0] for finding in self.findings.damages}
        for finding in self.findings.damages:
            finding.repaired = finding.repaired or finding.detail.partition(";")[0] not in left
        self.findings.damages += [f for f in later.findings.damages if f.detail.partition(";")[0] not in known]

    def report(self, begin: float) -> CheckReport:
        """What was found."""
        damages = tuple(finding.damage(self.catalog) for finding in self.findings.damages)
        notes = tuple(finding.damage(self.catalog) for finding in self.findings.notes)
        seconds = time.monotonic() - begin
        return CheckReport(damages, notes, self.findings.contents, self.findings.bytes, seconds)


def repair(store: OpenStore, chains: Chains, *, progress: ProgressCallback | None) -> CheckReport:
    """Check all of a store and mend what can be; see `layerstore.Store.check`."""
    from layerstore.checking.rebuilding import mend, rebuild
    from layerstore.checking.repairing import Repair

    begin = time.monotonic()
    with locks.garbage_alone(store.layout):
        checking = Check(store, chains, None, False, progress)
        checking.run()
        of_rows = checking.findings.of("database", "image")
        if of_rows:
            if checking.catalog is None or any(finding.subject in ("pages", "header") for finding in of_rows):
                store.database.close()
                lost = rebuild(store.layout)
            else:
                lost = mend(store.layout, store.database)
            checking = Check(store, chains, None, False, progress)
            checking.run()
            _tell_mended(of_rows, checking.findings, lost)
        is_last = checking.contents is None or not checking.contents.is_to_be_looked_at_again()
        Repair(store, checking, is_last=is_last).run()
        if not is_last:
            # What it could not read for want of something else it may be able to now, or knows to be lost.
            again = Check(store, chains, None, False, progress)
            again.run()
            Repair(store, again, is_last=True).run()
            checking.take_over(again)
        return checking.report(begin)


def _tell_mended(before: list[Finding], findings: Findings, lost: dict[str, int]) -> None:
    """What became of damages of the database, by a check after it was mended."""
    left = {(finding.what, finding.subject) for finding in findings.of("database", "image")}
    for finding in before:
        if (finding.what, finding.subject) not in left:
            finding.tell_made_again(lost)
            findings.damages.insert(0, finding)


def check(
    store: OpenStore,
    chains: Chains,
    images: Sequence[ImageId] | None,
    *,
    quick: bool,
    progress: ProgressCallback | None,
) -> CheckReport:
    """Check a store without changing anything; see `layerstore.Store.check`."""
    begin = time.monotonic()
    with locks.garbage(store.layout):
        checking = Check(store, chains, images, quick, progress)
        checking.run()
        return checking.report(begin)
