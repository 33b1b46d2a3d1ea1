"""What the rows of the database should be, by what can be read of them and by the files of the store.

A chain, a layer, an image says itself whether it is right: each is named by a digest. What a row refers to by a name
that nothing has is taken to be what differs from it in one bit, if there is one such thing; a row of which no sense can
be made is left out. Names of images and containers, times and options are told by nothing else, and are taken as they
are.
"""

from __future__ import annotations

import os

from layerstore._core.log import HEADER_BYTES, SOURCE_LOG, LogReader
from layerstore.checking.findings import reason
from layerstore.checking.hashing import read_through
from layerstore.checking.layers import contents_of, recipe_digest
from layerstore.cold import tiering
from layerstore.errors import CorruptError, LayerstoreError, Unsupported
from layerstore.layers.index_files import open_index
from layerstore.naming import exists
from layerstore.oci.configs import parse_config
from layerstore.store import own_names
from layerstore.store.cold_packs import LZ4, ZSTD, ColdPack
from layerstore.store.locks import try_lock
from layerstore.types import DiffId, Digest, chain_ids

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable
    from typing import Any

    from layerstore.oci.configs import ImageConfig
    from layerstore.store.layout import Layout

    Row = tuple[Any, ...]
    Rows = dict[str, list[Row]]

TYPES: dict[str, str] = {
    "counters": "si",
    "packs": "i",
    "layers": "sib",
    "images": "sssf",
    "chains": "ses",
    "image_blobs": "ss",
    "names": "ss",
    "cold_packs": "i",
    "frozen": "s",
    "logs": "s",
    "containers": "sesssfiese",
    "log_uses": "ssi",
    "snapshots": "ssfeo",
    "layer_blobs": "ssis",
    "blob_places": "sssf",
    "damaged_layers": "ss",
}
"""The tables, those first that others refer to; of each the types of its columns: text (s), text or null (e), integer
(i), integer or null (o), number (f), a digest or null (b)."""
_IS = {
    "s": lambda value: isinstance(value, str),
    "e": lambda value: value is None or isinstance(value, str),
    "i": lambda value: isinstance(value, int),
    "o": lambda value: value is None or isinstance(value, int),
    "f": lambda value: isinstance(value, (int, float)),
    "b": lambda value: value is None or (isinstance(value, bytes) and len(value) == 32),
}


_SETTINGS: dict[str, Callable[[int], bool]] = {
    "derived_limit": lambda value: value >= 0,
    tiering.AFTER: lambda value: value >= 0,
    tiering.CODEC: lambda value: value in (ZSTD, LZ4),
}
"""What else is in the table of counters, where it was set, and what it may be."""


def _fits(table: str, row: Row) -> bool:
    types = TYPES[table]
    return len(row) == len(types) and all(_IS[kind](value) for kind, value in zip(types, row, strict=True))


def near(text: str | None, among: Collection[str]) -> str | None:
    """`text` if it is among those; else the one that differs from it in one bit; None for none, or several."""
    if text is None or text in among:
        return text
    data = text.encode("utf-8", "surrogateescape")
    found = [one for one in among if _is_a_bit_off(data, one.encode("utf-8", "surrogateescape"))]
    return found[0] if len(found) == 1 else None


def _is_a_bit_off(a: bytes, b: bytes) -> bool:
    if len(a) != len(b):
        return False
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).bit_count() == 1


class Reconciled:
    """The rows that `found` should be. `lost` counts, by table, the rows that were left out."""

    def __init__(self, layout: Layout, found: Rows) -> None:
        self._layout = layout
        self.lost: dict[str, int] = {}
        self.rows: Rows = {}
        sound = self._sound = {table: [row for row in found.get(table, []) if _fits(table, row)] for table in TYPES}
        for table in TYPES:
            self.rows[table] = getattr(self, f"_{table}")(_unique(table, sound[table]))
            left_out = len(found.get(table, [])) - len(self.rows[table])
            if left_out > 0:
                self.lost[table] = left_out

    def _ids(self, table: str) -> set[str]:
        return {row[0] for row in self.rows[table]}

    # What says itself whether it is right

    def _counters(self, rows: list[Row]) -> list[Row]:
        known: dict[str, int] = dict(rows)
        names = own_names.own(self._layout.root, own_names.DIGESTS)
        logs = [int(name[8:]) for name in names if name[8:].isdigit()]
        generation = known.get("digests_generation", -1)
        if logs and generation not in logs:
            generation = max(logs)
        generation = max(generation, 0)
        path = self._layout.digests(generation)
        room = max(os.stat(path).st_size - 32, 0) // 48 if exists(path) else 0
        count = known.get("digests", room)
        packs = [number + 1 for number in self._numbers_of_packs()]
        cold = [number + 1 for number in self._numbers_of_cold()]
        kept = {
            "digests": count if 0 <= count <= room else room,
            "digests_generation": generation,
            "packs": max([known.get("packs", 0) if known.get("packs", 0) < 1 << 31 else 0, *packs]),
            "cold_packs": max([known.get("cold_packs", 0) if known.get("cold_packs", 0) < 1 << 30 else 0, *cold]),
        }
        settings = {name: known[name] for name, is_one in _SETTINGS.items() if name in known and is_one(known[name])}
        return sorted({**kept, **settings}.items())

    def _packs(self, rows: list[Row]) -> list[Row]:
        from layerstore.store.contents import Pack

        known = {number for (number,) in rows if exists(self._layout.pack(number))} if rows else set()
        for number in self._numbers_of_packs():
            if number not in known:
                try:
                    Pack(self._layout.pack(number))
                    known.add(number)
                except (CorruptError, OSError) as error:
                    reason(error)  # else it is of an import that was killed
        return sorted((number,) for number in known)

    def _numbers_of_packs(self) -> list[int]:
        names = own_names.own(self._layout.packs, own_names.PACKS)
        return [int(name[:-5]) for name in names if name.endswith(".pack") and name[:-5].isdigit()]

    def _numbers_of_cold(self) -> list[int]:
        names = own_names.own(self._layout.cold, own_names.COLD) if exists(self._layout.cold) else []
        return [int(name[:-5]) for name in names if name[:-5].isdigit()]

    def _cold_packs(self, rows: list[Row]) -> list[Row]:
        known = {number for (number,) in rows if exists(self._layout.cold_pack(number))}
        for number in self._numbers_of_cold():
            if number not in known:
                try:
                    with open(self._layout.cold_pack(number), "rb") as file:
                        is_left = try_lock(file.fileno(), exclusive=False)
                    ColdPack(self._layout.cold_pack(number))
                    if is_left:  # a freeze that is under way commits it by itself
                        known.add(number)
                except (CorruptError, OSError) as error:
                    reason(error)  # else it is of a freeze that was killed
        return sorted((number,) for number in known)

    def _frozen(self, rows: list[Row]) -> list[Row]:
        images = self._ids("images")
        return sorted({(image,) for (at,) in rows if (image := near(at, images)) is not None})

    def _layers(self, rows: list[Row]) -> list[Row]:
        names = own_names.own(self._layout.layers, own_names.LAYERS)
        files = {f"sha256:{name.partition('.')[0]}" for name in names if not name.startswith(".")}
        self._configs = self._read_configs()
        needed = {diff_id for config in self._configs.values() for diff_id in config.diff_ids}
        known: dict[str, Row] = {mended: row for row in rows if (mended := near(row[0], files | needed)) is not None}
        made = []
        for diff_id in sorted((needed & files) | known.keys()):
            row = known.get(diff_id, (diff_id, None, None))
            made.append((diff_id, self._files_bytes(DiffId(diff_id), row[1]), self._recipe(DiffId(diff_id), row[2])))
        return made

    def _files_bytes(self, diff_id: DiffId, noted: int | None) -> int:
        try:
            read_through(self._layout.layer_index(diff_id))
            index = open_index(self._layout.layer_index(diff_id))
            index.verify_digest()
            return sum(size for _, size in contents_of(index))
        except (CorruptError, Unsupported, OSError) as error:
            reason(error)
            return noted or 0

    def _recipe(self, diff_id: DiffId, noted: bytes | None) -> bytes | None:
        """None where it is for the layer's tar to say what is right."""
        try:
            digest = recipe_digest(self._layout.layer_recipe(diff_id))
        except (LayerstoreError, OSError) as error:
            reason(error)
            return noted
        return noted if digest == noted else None

    def _read_configs(self) -> dict[str, ImageConfig]:
        """Of the blobs that are configs of images."""
        found = {}
        for name in own_names.own(self._layout.blobs, own_names.BLOBS):
            try:
                with open(f"{self._layout.blobs}/{name}", "rb") as file:
                    found[f"sha256:{name}"] = parse_config(file.read(), f"sha256:{name}")
            except (LayerstoreError, OSError) as error:
                reason(error)
                continue
        return found

    def _images(self, rows: list[Row]) -> list[Row]:
        layers = self._ids("layers")
        whole = {i: c for i, c in self._configs.items() if layers.issuperset(c.diff_ids)}
        found: dict[str, Row] = {}
        for row in rows:
            image = near(row[0], whole) or row[0]
            config = whole.get(image)
            if config is not None:
                found[image] = (image, chain_ids(config.diff_ids)[-1], config.created, row[3])
            elif _is_digest(image) and _is_digest(row[1]):
                found[image] = row  # its config is to be loaded again
        for image, config in whole.items():
            if image not in found:
                stored = os.stat(self._layout.blob(Digest(image))).st_mtime
                found[image] = (image, chain_ids(config.diff_ids)[-1], config.created, stored)
        return sorted(found.values())

    def _chains(self, rows: list[Row]) -> list[Row]:
        layers = self._ids("layers")
        found: dict[str, Row] = {}
        for chain, parent, diff_id in rows:
            if diff_id in layers and chain_ids([DiffId(diff_id)], parent)[-1] == chain:
                found[chain] = (chain, parent, diff_id)
        for image in self._ids("images") & self._configs.keys():
            diff_ids = self._configs[image].diff_ids
            chains = chain_ids(diff_ids)
            for number, diff_id in enumerate(diff_ids):
                found[chains[number]] = (chains[number], chains[number - 1] if number else None, diff_id)
        return list(found.values())

    def _image_blobs(self, rows: list[Row]) -> list[Row]:
        images = self._ids("images")
        files = {f"sha256:{name}" for name in own_names.own(self._layout.blobs, own_names.BLOBS)}
        found = {(image, image) for image in images}
        for row in rows:
            image, digest = near(row[0], images), near(row[1], files) or row[1]
            if image is not None and _is_digest(digest):
                found.add((image, digest))
        return sorted(found)

    # What refers to that

    def _names(self, rows: list[Row]) -> list[Row]:
        images = self._ids("images")
        return [(name, image) for name, at in rows if (image := near(at, images)) is not None]

    def _logs(self, rows: list[Row]) -> list[Row]:
        files = set(own_names.own(self._layout.logs, own_names.LOGS)) if os.path.isdir(self._layout.logs) else set()
        found = {near(log, files) or log for (log,) in rows}
        # What others refer to, too, and what those need.
        named = [row[9] for row in self._sound["containers"]] + [row[3] for row in self._sound["snapshots"]]
        named += [log for row in self._sound["log_uses"] for log in row[:2]]
        waiting = [*found, *(log for name in named if (log := near(name, files)) is not None)]
        while waiting:
            log = waiting.pop()
            found.add(log)
            waiting += [used for used in _needs(self._layout.log(log)) if used in files and used not in found]
        return sorted((log,) for log in found)

    def _containers(self, rows: list[Row]) -> list[Row]:
        images = {row[0]: row[1] for row in self.rows["images"]}
        directories = set(own_names.own(self._layout.containers, own_names.CONTAINERS))
        logs = self._ids("logs")
        found, names = [], set()
        for row in rows:
            image = near(row[2], images)
            if image is None:
                of_chain = [i for i, chain in images.items() if chain == row[4]]
                image = of_chain[0] if len(of_chain) == 1 else None
            driver = near(row[8], ("overlay", "extent"))
            container = near(row[0], directories) if driver == "overlay" else row[0]
            log = near(row[9], logs)
            if image is None or driver is None or (driver == "extent" and log is None):
                continue
            name = None if row[1] in names else row[1]
            names.add(row[1])
            found.append((container or row[0], name, image, row[3], images[image], *row[5:8], driver, log))
        return found

    def _log_uses(self, rows: list[Row]) -> list[Row]:
        logs = self._ids("logs")
        found: dict[tuple[str, str], Row] = {}
        for row in rows:
            log, used = near(row[0], logs), near(row[1], logs)
            if log is not None and used is not None:
                found[log, used] = (log, used, row[2])
        for log in logs:
            for used, length in _needs(self._layout.log(log)).items():
                if used in logs:
                    noted = found.get((log, used), (log, used, length))[2]
                    found[log, used] = (log, used, length if length is not None else noted or HEADER_BYTES)
        return [row for row in found.values() if row[2] is not None]

    def _snapshots(self, rows: list[Row]) -> list[Row]:
        containers, logs = self._ids("containers"), self._ids("logs")
        found = []
        for row in rows:
            container = near(row[0], containers)
            if container is not None and (row[3] is None or near(row[3], logs) is not None):
                found.append((container, row[1], row[2], near(row[3], logs), row[4]))
        return found

    def _layer_blobs(self, rows: list[Row]) -> list[Row]:
        layers = self._ids("layers")
        return [row for row in rows if row[1] in layers and _is_digest(row[0]) and row[3] in ("", "gzip", "zstd")]

    def _blob_places(self, rows: list[Row]) -> list[Row]:
        blobs = self._ids("layer_blobs")
        return [row for row in rows if row[0] in blobs]

    def _damaged_layers(self, rows: list[Row]) -> list[Row]:
        layers = self._ids("layers")
        return [(diff_id, lacks) for at, lacks in rows if (diff_id := near(at, layers)) is not None]


def _unique(table: str, rows: Iterable[Row]) -> list[Row]:
    """One row for each key, the first."""
    width = {"image_blobs": 2, "log_uses": 2, "snapshots": 2, "blob_places": 3}.get(table, 1)
    found: dict[Row, Row] = {}
    for row in rows:
        found.setdefault(row[:width], row)
    return list(found.values())


def _is_digest(text: str) -> bool:
    return len(text) == 71 and text.startswith("sha256:") and not text[7:].strip("0123456789abcdef")


def _needs(path: str) -> dict[str, int | None]:
    """The logs that a log needs by what it says itself, and how much of its base."""
    try:
        with open(path, "rb") as file:
            reader = LogReader(file.read())
    except (OSError, CorruptError, Unsupported) as error:
        reason(error)
        return {}
    found: dict[str, int | None] = {record.payload.hex(): None for record in reader if record.type == SOURCE_LOG}
    if reader.header.base_length:
        found[reader.header.base_id.hex()] = reader.header.base_length
    return found
