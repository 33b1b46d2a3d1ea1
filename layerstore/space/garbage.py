"""Gives back what no committed row reaches: contents, packs, indexes, chains, blobs, container directories, logs,
what killed imports left. What a cold content is a difference or a list of is reached too.

Runs under the exclusive garbage lock, so that no import and no creation of a container is half-way. One transaction
takes the dead contents out of the digest log first; only then are they removed, so that a crash leaves nothing but more
garbage, which the next run finds by itself.

Of a content that was frozen, what is in a pack or an object is dead. A pack whose contents were all copied to another
(chains/packs.py) goes as a whole, and only when no tree image that is mounted names it: what a live content's bytes
were is never punched. What a dead one's were is punched in packs that nobody has open, in no mount and no process; in
others by a later run.
"""

import contextlib
import errno
import os
import re
from collections.abc import Callable, Iterable
from itertools import compress
from pathlib import Path

from layerstore._core.files import punch_holes
from layerstore._core.index import CONTENT_BYTES, Index
from layerstore._core.ingest import LOCATION_OBJECT, RECORD_BYTES, Digests
from layerstore.chains.chains import Chains
from layerstore.chains.derived import described_chains, remove_derived, tree_image, without_mounting
from layerstore.chains.packs import bring_small_together
from layerstore.errors import RELOAD, CorruptError, LayerstoreError
from layerstore.layers.imports import clear_abandoned, clear_abandoned_cold
from layerstore.naming import exists
from layerstore.results import Frozen
from layerstore.store import durable, frozen, locks, own_names
from layerstore.store.cold_packs import LIST, ColdPack, is_cold
from layerstore.store.contents import Pack
from layerstore.store.db import UNUSED_CHAINS, Database
from layerstore.store.layout import FIRST_COLD, Layout
from layerstore.store.locks import open_elsewhere
from layerstore.store.opened import OpenStore
from layerstore.store.records import RANGE, RECORD, packs_of
from layerstore.store.removal import remove_directory
from layerstore.types import ChainId, DiffId, Value, digest_hex

BLOCK_BYTES = 4096
"""What holes are punched by."""
_CHAIN_LOCK = re.compile(r"[0-9a-f]{64}\.lock")


class Collected(Value):
    """What a collection gave back: contents dropped, and the disk space of files removed and holes punched, bytes.

    `frozen` is what was frozen before that, as the store's policy says (`Store.tiering`); None where there was nothing
    to freeze, or where it failed: `not_frozen` says why.
    """

    contents: int
    freed_bytes: int
    frozen: Frozen | None = None
    not_frozen: LayerstoreError | OSError | None = None


def collect(store: OpenStore, chains: Chains, derived_limit_bytes: int | None) -> Collected:
    """Collect garbage, bring small packs together, and derived files under that limit, or the store's own.

    Waits for imports that are under way. Raises `CorruptError` where the index of a layer is damaged, before anything
    that is not derived was removed, and `OSError`.
    """
    limit = chains.derived.limit_bytes if derived_limit_bytes is None else derived_limit_bytes
    before = _used_bytes(store.layout)
    dropped = _collect(store, chains, limit)
    # Not before: a copy needs room, and what is dead is not worth one. What was copied from goes at once.
    if bring_small_together(store):
        dropped += _collect(store, chains, limit)
    return Collected(dropped, max(0, before - _used_bytes(store.layout)))


def _collect(store: OpenStore, chains: Chains, derived_limit: int) -> int:
    """Returns how many contents were dropped."""
    with locks.garbage_alone(store.layout):
        with locks.staging(store.layout):
            clear_abandoned(store)
        # Derived files say where contents are, so they go before the contents that they name; and on a full disk they
        # are room for the database to say what else is to go.
        _sweep_chains(store)
        chains.derived.evict(derived_limit)
        removed = _forget_unused(store.database)
        records = store.contents.log_records()
        live = with_references(
            store.layout, records, _live_digests(store.database, chains, store.contents.digests(), records)
        )
        frozen = _frozen_chains(store.database)
        kept = _kept_records(records, live, lambda in_use: _packs_of_images(store.layout, chains, in_use, frozen))
        objects, slots = _by_place(kept)
        with store.database.transaction() as db:
            if removed or len(kept) != len(records):
                store.contents.replace_log(db, kept)
            packs = [number for (number,) in db.execute("SELECT number FROM packs")]
            db.executemany("DELETE FROM packs WHERE number = ?", [(n,) for n in packs if n not in slots])
            cold = [number for (number,) in db.execute("SELECT number FROM cold_packs")]
            gone = [(n,) for n in cold if FIRST_COLD + n not in slots]
            db.executemany("DELETE FROM cold_packs WHERE number = ?", gone)
        store.contents.remove_old_logs()
        _remove_files(store, objects, set(map(str, slots)))
        store.contents.forget_packs()
        for number, alive in sorted(slots.items()):
            # A pack that is missing or has damaged slots keeps nobody from collecting the others.
            with contextlib.suppress(CorruptError, FileNotFoundError):
                if number < FIRST_COLD:
                    _punch(store.layout.pack(number), _dead_ranges(store.layout.pack(number), alive))
                else:
                    path = store.layout.cold_pack(number - FIRST_COLD)
                    _punch(path, _dead_frames(path, alive))
        _sweep(store.layout.run, _CHAIN_LOCK, lambda _: False)
        return len({record[:32] for record in _records(records)} - live)


def _forget_unused(database: Database) -> bool:
    """Remove the rows of chains and layers that no image has; returns whether there were any."""
    with database.transaction() as db:
        chains = db.execute(f"DELETE FROM chains WHERE {UNUSED_CHAINS}").rowcount
        layers = db.execute("DELETE FROM layers WHERE diff_id NOT IN (SELECT diff_id FROM chains)").rowcount
    return bool(chains or layers)


def _frozen_chains(database: Database) -> set[ChainId]:
    query = "SELECT chain_id FROM images WHERE image_id IN (SELECT image_id FROM frozen)"
    return {ChainId(chain) for (chain,) in database.read().execute(query).fetchall()}


def _kept_records(log: bytes, live: set[bytes], packs_needed: Callable[[set[int]], tuple[set[int], set[int]]]) -> bytes:
    """The records of live contents, in their order: the last of each, and earlier ones in packs that stay anyway, of
    each place one; but of contents that are cold not those that say where they were hot.

    `packs_needed` gives the packs that stay, where contents are looked up in those given to it, and those of them in
    which nothing is to be taken for cold.
    """
    last = {record[:32]: at for at, record in enumerate(_records(log)) if record[:32] in live}
    current = set(last.values())
    stay, pinned = packs_needed({pack for at, pack in enumerate(packs_of(log)) if at in current})
    cold = {record[:32] for at, (record, pack) in enumerate(_placed(log)) if at in current and is_cold(pack)}
    kept: list[bytes] = []
    seen = {log[at * RECORD_BYTES : (at + 1) * RECORD_BYTES] for at in current}
    for at, (record, pack) in enumerate(_placed(log)):
        stays = pack in stay and (is_cold(pack) or pack in pinned or record[:32] not in cold)
        if at in current or (stays and record[:32] in live and record not in seen):
            seen.add(record)
            kept.append(record)
    return b"".join(kept)


def _packs_of_images(
    layout: Layout, chains: Chains, in_use: set[int], frozen: set[ChainId]
) -> tuple[set[int], set[int]]:
    """Packs that stay: those in use, and others of tree images that are mounted. Other images that name such packs are
    removed, and made again with the packs in use when they are needed; and so are those of frozen images, whatever left
    them there. With them the packs, and objects, of frozen images that are mounted all the same."""
    stay, pinned = set(in_use), set[int]()
    with without_mounting(layout) as attached:
        for chain in described_chains(layout):
            try:
                described = chains.described(chain)
                packs = set(described.packs)
            except (FileNotFoundError, CorruptError):
                continue  # no image, or one that will be made again
            if chain in attached:
                stay |= packs
                if chain in frozen:
                    pinned |= packs | ({LOCATION_OBJECT} if described.objects else set())
            elif packs - in_use or chain in frozen:
                remove_derived(tree_image(layout, chain))
    return stay | pinned, pinned


def _records(log: bytes) -> Iterable[bytes]:
    return (log[at : at + RECORD_BYTES] for at in range(0, len(log), RECORD_BYTES))


def _placed(log: bytes) -> Iterable[tuple[bytes, int]]:
    return zip(_records(log), packs_of(log), strict=True)


def with_references(layout: Layout, log: bytes, live: set[bytes]) -> set[bytes]:
    """These contents, and those that they are differences or lists of where they are in cold packs."""
    found = set(live)
    places: dict[bytes, list[tuple[int, int]]] = {}
    for digest, _, pack, slot in RECORD.iter_unpack(log):
        if is_cold(pack):
            places.setdefault(digest, []).append((pack, slot))
    packs: dict[int, ColdPack | None] = {}
    waiting = [digest for digest in places if digest in found]
    while waiting:
        digest = waiting.pop()
        for pack, slot in places.get(digest, ()):
            if pack not in packs:
                packs[pack] = _opened_cold(layout.cold_pack(pack - FIRST_COLD))
            new = [each for each in _needed_by(packs[pack], slot) if each not in found]
            found.update(new)
            waiting += new
    return found


def _opened_cold(path: str) -> ColdPack | None:
    """Of one whose tables are damaged, too, what it refers to is kept: a repair may read it. None where it is missing,
    or cannot be read at all."""
    try:
        return ColdPack(path, is_rescue=True)
    except (CorruptError, FileNotFoundError):
        return None


def _needed_by(pack: ColdPack | None, slot: int) -> list[bytes]:
    try:
        return [] if pack is None else pack.references_of(pack.slot(slot))
    except CorruptError:
        return []


def _live_digests(database: Database, chains: Chains, digests: Digests, log: bytes) -> set[bytes]:
    """Of the contents in the log, over which `digests` is the table, those that layers have."""
    is_live = bytearray(len(digests))
    marked = {diff_id for (diff_id,) in database.read().execute("SELECT diff_id FROM damaged_layers").fetchall()}
    for (diff_id,) in database.read().execute("SELECT diff_id FROM layers").fetchall():
        try:
            table = _verified(chains, DiffId(diff_id)).contents_bytes()
        except CorruptError:
            if diff_id in marked:
                continue  # whoever loads the layer again brings what it needs
            raise
        digests.mark_many(table, CONTENT_BYTES, is_live)
    return {record[:32] for record in compress(_records(log), is_live)}


def _verified(chains: Chains, diff_id: DiffId) -> Index:
    """A layer's index, by which contents are dropped for good that it does not name."""
    try:
        index = chains.layer_index(diff_id)
        index.verify_digest()
        return index
    except CorruptError as error:
        raise CorruptError(
            f"nothing was collected: what layer {diff_id} needs is not known, "
            f"as its index is missing or damaged; {RELOAD}"
        ) from error


def _by_place(records: bytes) -> tuple[dict[str, set[str]], dict[int, set[int]]]:
    """The names of the objects in each directory of objects, and the numbers of the slots in each pack."""
    objects: dict[str, set[str]] = {}
    slots: dict[int, set[int]] = {}
    for digest, _, pack, slot in RECORD.iter_unpack(records):
        if pack == LOCATION_OBJECT:
            name = digest.hex()
            objects.setdefault(name[:2], set()).add(name[2:])
        else:
            slots.setdefault(pack, set()).add(slot)
    return objects, slots


def _remove_files(store: OpenStore, objects: dict[str, set[str]], packs: set[str]) -> None:
    db = store.database.read()
    layers = {digest_hex(diff_id) for (diff_id,) in db.execute("SELECT diff_id FROM layers")}
    blobs = {digest_hex(digest) for (digest,) in db.execute("SELECT digest FROM image_blobs")}
    containers = {container for (container,) in db.execute("SELECT id FROM containers WHERE driver = 'overlay'")}
    logs = {log for (log,) in db.execute("SELECT id FROM logs")}
    for name in own_names.object_directories(store.layout):
        _sweep(f"{store.layout.objects}/{name}", own_names.OBJECTS, objects.get(name, set()).__contains__)
    _sweep(store.layout.packs, own_names.PACKS, lambda name: name.split(".")[0] in packs)
    with locks.staging(store.layout):
        clear_abandoned_cold(store)  # and not the one of a freeze that is under way
    _sweep(store.layout.layers, own_names.LAYERS, lambda name: name.split(".")[0] in layers)
    _sweep(store.layout.blobs, own_names.BLOBS, blobs.__contains__)
    # No pull is under way: these are of pulls that failed.
    if Path(store.layout.downloads).is_dir():
        _sweep(store.layout.downloads, own_names.DOWNLOADS, lambda _: False)
    if Path(store.layout.logs).is_dir():
        # Rows that need them may have been taken away by what is not durable yet.
        store.database.sync()
        _sweep(store.layout.logs, own_names.LOGS, logs.__contains__)
    for name in own_names.own(store.layout.containers, own_names.CONTAINERS):
        # Whoever removed the row may be removing it, too; he has it then.
        if name not in containers:
            with locks.containers_to_remove(store.layout, [name], waits=False) as is_held:
                if is_held:
                    _remove_directory(store.layout.containers, name)
    frozen.sweep(store.layout)
    for name in own_names.own(store.layout.runtime, own_names.CONTAINERS):
        if name not in containers:
            _remove_directory(store.layout.runtime, name)
    if exists(store.layout.borrowed):
        _sweep(store.layout.borrowed, own_names.CONTAINERS, containers.__contains__)


def _remove_directory(top: str, name: str) -> None:
    """What somebody has mounted in one stays, and so does the rest of that one."""
    try:
        remove_directory(top, name)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise


def _sweep_chains(store: OpenStore) -> None:
    rows = store.database.read().execute("SELECT chain_id FROM images").fetchall()
    chains = {digest_hex(chain) for (chain,) in rows}
    _sweep(store.layout.chains, own_names.CHAINS, lambda name: name.split(".")[0] in chains)


def _sweep(directory: str, names: re.Pattern[str], keep: Callable[[str], bool]) -> None:
    """Remove the store's own files of a directory that are not kept."""
    for name in own_names.own(directory, names):
        if not keep(name):
            Path(directory, name).unlink(missing_ok=True)  # a log that whoever had left it may be removing, too


def _punch(path: str, holes: bytes) -> None:
    """Give back what is dead in a pack that nobody has open: a file whose image is gone may still be read in a mount
    that was detached by force, or that is in another mount namespace."""
    if not holes:
        return
    with durable.writable(path) as fd:
        if not open_elsewhere(fd):
            punch_holes(fd, holes)


def _dead_ranges(path: str, alive: set[int]) -> bytes:
    pack = Pack(path)
    ranges: list[list[int]] = []
    for slot in range(pack.slot_count):
        offset, size, _ = pack.slot(slot)
        if slot in alive:
            continue
        if ranges and ranges[-1][1] == slot - 1:
            ranges[-1][1:] = [slot, offset + size]
        else:
            ranges.append([offset, slot, offset + size])
    holes = ((start, end - start) for start, _, end in ranges if end - start >= BLOCK_BYTES)
    return b"".join(RANGE.pack(*hole) for hole in holes)


def _dead_frames(path: str, alive: set[int]) -> bytes:
    pack = ColdPack(path)
    needed = {pack.slot(slot).frame for slot in alive if pack.slot(slot).base != LIST}
    frames = (pack.frame(number) for number in range(pack.frame_count) if number not in needed)
    return b"".join(
        RANGE.pack(frame.offset, frame.stored_bytes) for frame in frames if frame.stored_bytes >= BLOCK_BYTES
    )


def _used_bytes(layout: Layout) -> int:
    used = 0
    waiting = [layout.objects, layout.packs, layout.cold, layout.layers, layout.chains, layout.blobs, layout.logs]
    waiting += [layout.downloads, layout.staging]
    while waiting:
        # An import or an eviction renames and removes meanwhile.
        with contextlib.suppress(FileNotFoundError), os.scandir(waiting.pop()) as entries:
            for entry in entries:
                with contextlib.suppress(FileNotFoundError):
                    used += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
    return used
