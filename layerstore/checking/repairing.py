"""Makes again what is derived, takes what is damaged out of the way, and notes which layers are to be loaded again.

Under the exclusive garbage lock. It can be killed at any point and run again: what is made again is put in place whole;
contents that are damaged go from the digest log in the transaction that notes the layers which lack them, and only what
nothing reads any more is moved.
"""

from __future__ import annotations

import contextlib
import os

from layerstore._core.erofs import PACK_BLOCK_BYTES, write_pack
from layerstore._core.ingest import LOCATION_OBJECT, Contents, Digests
from layerstore._core.mount import is_mounted
from layerstore.chains.derived import described_chains, remove_derived, tree_image
from layerstore.checking.cold import ColdContents
from layerstore.checking.contents import Record
from layerstore.checking.findings import reason
from layerstore.checking.layers import contents_of
from layerstore.checking.quarantine import Quarantine
from layerstore.checking.salvage import rescued, strays
from layerstore.layers.damaged import mark
from layerstore.naming import exists, open_fd
from layerstore.store import durable
from layerstore.store.clearing import clear_tree
from layerstore.store.cold_packs import LIST, ColdPack, is_cold
from layerstore.store.contents import Pack
from layerstore.store.layout import FIRST_COLD, PACK_THRESHOLD_BYTES, chain_of_mount
from layerstore.store.pieces import read_at
from layerstore.store.records import RECORD
from layerstore.types import ChainId, DiffId

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore.checking.checker import Check
    from layerstore.checking.findings import Finding
    from layerstore.store.opened import OpenStore


class Repair:
    """One repair of what a check of the whole store has found.

    Unless it is the last one, it leaves contents alone that want only for others, which it may bring back.
    """

    def __init__(self, store: OpenStore, check: Check, *, is_last: bool) -> None:
        assert check.catalog is not None and check.contents is not None and check.layers is not None
        self._layout = store.layout
        self._database = store.database
        self._is_last = is_last
        self._store = store.contents
        self._check = check
        self._findings = check.findings
        self._catalog = check.catalog
        self._contents = check.contents
        self._layers = check.layers
        self._quarantine = Quarantine(store.layout)

    def run(self) -> None:
        """Mend what can be. Raises `OSError`; it can be run again."""
        with durable.file_system(self._layout.root) as sync:
            self._derived()
            self._padding()
            lost_files = self._files()
            self._commit(lost_files)
            sync()

    # What is made again

    def _derived(self) -> None:
        for finding in self._findings.of("chain"):
            chain, what = finding.subject
            remove_derived([self._layout.chain_index(chain)] if what == "index" else tree_image(self._layout, chain))
            finding.repaired = True
            if what == "image" and self._is_attached(chain):
                finding.detail += "; it is mounted: unmount the containers of its images to be rid of it"
        for finding in self._findings.of("pack image"):
            image = write_pack(finding.subject, *Pack(self._layout.pack(finding.subject)).slots)
            durable.write_file(self._layout.pack_image(finding.subject), memoryview(image))
            finding.repaired = True
        for finding in self._findings.of("build step"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(finding.subject)
            finding.repaired = True

    def _is_attached(self, chain: ChainId) -> bool:
        top = self._layout.chain_mounts
        return any(chain_of_mount(name) == chain and is_mounted(f"{top}/{name}") for name in os.listdir(top))

    def _padding(self) -> None:
        """What follows a content in a pack is zeros, which nobody reads."""
        for finding in self._findings.of("content"):
            record: Record = finding.subject
            if record.number not in self._contents.padding:
                continue
            path = self._layout.pack(record.pack)
            offset, size, _ = Pack(path).slot(record.slot)
            with durable.writable(path) as fd:
                os.pwrite(fd, bytes(-size % PACK_BLOCK_BYTES), offset + size)
            finding.repaired = True

    # What is taken out of the way

    def _files(self) -> dict[DiffId, str]:
        """Indexes, recipes and blobs; returns what layers lack for it."""
        lacking: dict[DiffId, str] = {}
        for finding in self._findings.of("recipe", "layer"):
            diff_id = finding.subject
            if isinstance(diff_id, str):
                self._quarantine.take(finding.path)
                what = "its recipe" if finding.what == "recipe" else "its index"
                lacking[DiffId(diff_id)] = " and ".join(filter(None, (lacking.get(DiffId(diff_id)), what)))
                finding.detail += "; load or pull the image again"
        for finding in self._findings.of("blob"):
            self._quarantine.take(finding.path)
            finding.detail += "; load or pull the image again"
        return lacking

    def _commit(self, lacking: dict[DiffId, str]) -> None:
        contents = self._contents
        stay = contents.padding | contents.rescuable | (set() if self._is_last else contents.unreachable)
        dropped = [r for r in contents.records if r.number in contents.bad and r.number not in stay]
        misplaced = [r for r in contents.records if r.number in contents.misplaced]
        in_bad_packs = [
            record
            for record in contents.records
            if (record.pack in contents.bad_packs and record not in misplaced) or record.number in contents.rescuable
        ]
        gone = {record.number for record in (*dropped, *misplaced, *in_bad_packs)}
        kept = [record for record in contents.records if record.number not in gone]
        packs = (self._catalog.packs | self._catalog.cold_packs) - contents.bad_packs.keys()
        is_log_damaged = bool(self._findings.of("digest log"))
        if is_log_damaged or any(finding.subject[0] == "lacks" for finding in self._of_layers()):
            known = {(record.pack, record.slot, record.digest) for record in (*kept, *dropped)}
            have = {record.digest for record in kept}
            found = [record for record in strays(self._layout, packs, known) if record.digest not in have]
            cold = ColdContents(self._layout, [*kept, *found])
            kept += [record for record in found if not is_cold(record.pack) or cold.is_whole(record)]
        self._keep_damaged_bytes(dropped)
        with self._moved(in_bad_packs) as (moved, number):
            kept += moved
            have = {record.digest for record in kept}
            lacking = self._lacking(have, lacking)
            with self._database.transaction() as db:
                if gone or is_log_damaged or len(kept) != len(contents.records):
                    self._store.replace_log(db, b"".join(_packed(record) for record in kept))
                if moved:
                    db.execute("INSERT INTO packs VALUES (?)", (number,))
                    db.execute("UPDATE counters SET value = max(value, ?) WHERE name = 'packs'", (number + 1,))
                for pack in contents.bad_packs:
                    db.execute("DELETE FROM packs WHERE number = ?", (pack,))
                    db.execute("DELETE FROM cold_packs WHERE number = ?", (pack - FIRST_COLD,))
                mark(db, lacking)
                db.executemany("UPDATE layers SET recipe = ? WHERE diff_id = ?", self._judged())
                whole = [finding.subject[1] for finding in self._of_layers() if finding.subject[0] == "whole"]
                db.executemany("DELETE FROM damaged_layers WHERE diff_id = ?", [(diff_id,) for diff_id in whole])
        self._store.remove_old_logs()
        # From here on nothing looks up what was dropped.
        for record in dropped:
            if record.pack == LOCATION_OBJECT and record.digest not in have:
                self._quarantine.take(self._layout.object(record.digest.hex()), record.digest.hex())
        for pack in contents.bad_packs:
            self._quarantine.take(self._layout.pack(pack))
            if not is_cold(pack):
                self._quarantine.take(self._layout.pack_image(pack))
        # A record that is damaged does not say of which content it was.
        is_any = bool(misplaced or contents.bad_packs or is_log_damaged)
        self._forget_images({record.digest for record in (*dropped, *in_bad_packs)}, lacking, is_any=is_any)
        self._say(have, lacking)

    def _judged(self) -> list[tuple[bytes, DiffId]]:
        """The digests of recipes of which none was noted, and whose tars are right."""
        damaged = {diff_id for finding in self._findings.damages for diff_id in finding.layers}
        return [
            (self._layers.recipes[diff_id], diff_id) for diff_id in self._layers.unsealed() if diff_id not in damaged
        ]

    def _of_layers(self) -> Iterable[Finding]:
        return (finding for finding in self._findings.of("layer") if isinstance(finding.subject, tuple))

    def _keep_damaged_bytes(self, dropped: Iterable[Record]) -> None:
        for record in dropped:
            if record.pack == LOCATION_OBJECT:
                continue
            path = self._layout.pack(record.pack)
            name = f"{record.digest.hex()}.{record.pack}.{record.slot}"
            if is_cold(record.pack):
                cold = ColdPack(path)
                slot = cold.slot(record.slot)
                if slot.base != LIST:
                    self._quarantine.keep(name, bytes(cold.stored(slot.frame)))
                continue
            offset, size, _ = Pack(path).slot(record.slot)
            try:
                with open(path, "rb", buffering=0) as file:
                    data = read_at(file.fileno(), size, offset)
            except OSError as error:
                reason(error)  # else what cannot be read cannot be kept
                continue
            self._quarantine.keep(name, data)

    @contextlib.contextmanager
    def _moved(self, records: list[Record]) -> Iterator[tuple[list[Record], int]]:
        """Copies to a new pack what is whole in packs that cannot be read; gives the records, and the pack's number."""
        number = int(self._catalog.counters.get("packs", 0))
        if not records:
            yield [], number
            return
        staging = f"{self._layout.staging}/{os.urandom(8).hex()}"
        os.mkdir(staging, 0o700)
        try:
            while exists(self._layout.pack(number)):
                number += 1
            yield self._written(staging, number, records), number
        finally:
            clear_tree(staging)

    def _written(self, staging: str, number: int, records: list[Record]) -> list[Record]:
        with (
            durable.file_system(self._layout.root) as sync,
            open_fd(f"{staging}/pack", os.O_RDWR | os.O_CREAT, 0o400) as pack,
            open_fd(staging, os.O_RDONLY | os.O_DIRECTORY) as staging_fd,
            open_fd(self._layout.objects, os.O_RDONLY | os.O_DIRECTORY) as objects,
        ):
            contents = Contents(staging_fd, pack, Digests(b"", 0), PACK_THRESHOLD_BYTES)
            for pack_number in sorted({record.pack for record in records}):
                mine = [record for record in records if record.pack == pack_number]
                for size, pieces in self._rescued(pack_number, mine):
                    if size > PACK_THRESHOLD_BYTES:
                        contents.put_pieces(pieces)
                    else:
                        contents.put_many(list(pieces))
            contents.publish(objects, number)
            slots, size = contents.slots()
            if not slots:
                return []
            durable.write_whole(self._layout.pack_image(number), memoryview(write_pack(number, size, slots)))
            os.rename(f"{staging}/pack", self._layout.pack(number))
            sync()
            return [Record(-1, *fields) for fields in RECORD.iter_unpack(contents.records())]

    def _rescued(self, pack: int, records: list[Record]) -> Iterator[tuple[int, Iterable[bytes]]]:
        """Size and pieces of each content that is whole."""
        if is_cold(pack):
            cold = ColdContents(self._layout, self._contents.records)
            yield from ((record.size, cold.pieces(record)) for record in records if cold.is_whole(record))
        else:
            yield from ((len(data), [data]) for _, data in rescued(self._layout, pack, records))

    def _lacking(self, have: set[bytes], lacking: dict[DiffId, str]) -> dict[DiffId, str]:
        """What each layer lacks that lacks anything."""
        found = dict(lacking)
        for diff_id, index in self._layers.indexes():
            missing = {digest for digest, _ in contents_of(index)} - have
            if missing:
                what = f"{len(missing)} contents"
                found[diff_id] = f"{found[diff_id]} and {what}" if diff_id in found else what
        return found

    def _forget_images(self, digests: set[bytes], lacking: dict[DiffId, str], *, is_any: bool) -> None:
        """Remove tree images that name what is not there any more, or is looked up elsewhere, so that it is garbage; or
        any. They are made again when they are needed."""
        layers = {*self._layers.needing(digests), *lacking}
        if not layers and not is_any:
            return
        ends = {self._catalog.images[image][0] for image in self._catalog.images_of_layers(layers)}
        for chain in described_chains(self._layout):
            if chain in ends or is_any:
                remove_derived(tree_image(self._layout, chain))
                if self._is_attached(chain):
                    detail = "it is mounted: its containers go on to show what is damaged, until they are unmounted"
                    self._findings.note("chain", self._layout.chain_image(chain), detail)

    def _say(self, have: set[bytes], lacking: dict[DiffId, str]) -> None:
        """What became of each damage."""
        for finding in self._findings.of("content"):
            if finding.subject.digest in have:
                finding.repaired = True
            elif not finding.layers:
                finding.repaired = True
                finding.detail += "; nothing needs it, and it was taken out of the way"
            else:
                finding.detail += "; taken out of the way; load or pull the image again"
        for finding in self._findings.of("pack"):
            mine = {r.digest for r in self._contents.records if r.pack == finding.subject}
            finding.repaired = mine <= have
            finding.detail += f"; {len(mine & have)} of them were brought to a new one"
        for finding in self._findings.of("digest log"):
            finding.repaired = True
        for finding in self._of_layers():
            what, diff_id = finding.subject
            finding.repaired = what == "whole" or diff_id not in lacking


def _packed(record: Record) -> bytes:
    return RECORD.pack(record.digest, record.size, record.pack, record.slot)
