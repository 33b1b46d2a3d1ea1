"""What images, containers and the rest of a store take, and what of it would be given back.

Of contents, bytes are their own, not rounded up to blocks; of everything else they are those that files take on disk.
An image has the contents of its layers, also those that upper ones hide. Which images have a content is answered
without going through the images: chains are a forest, each image is the way from a node to a root, and the images of a
subtree are next to each other where images are counted along a walk over it. So a layer belongs to the images of an
interval, and a content to those of a few of them: it is one image's alone where they are all the same interval of one.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import numpy as np

from layerstore._core.ingest import LOCATION_NONE, LOCATION_OBJECT
from layerstore.layers.derived import without_mounting
from layerstore.results import ContainerUsage, ImageUsage, Part, Usage
from layerstore.store.locks import locked
from layerstore.types import ChainId, DiffId, ImageId, digest_hex

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from numpy.typing import NDArray

    from layerstore.layers.chains import Chains
    from layerstore.store.contents import ContentStore
    from layerstore.store.db import Database
    from layerstore.store.layout import Layout

_CONTENT = np.dtype([("digest", "V32"), ("size", "<u8")])
_LOCATION = np.dtype([("pack", "<u4"), ("slot", "<u4")])
_RECORD = np.dtype([("digest", "V32"), ("size", "<u8"), ("pack", "<u4"), ("slot", "<u4")])


class _Layers:
    """The distinct contents of stored layers: `sizes` by their numbers, and pairs of a layer and a content that it has,
    each once, sorted by layer."""

    def __init__(self, chains: Chains, contents: ContentStore, diff_ids: Iterable[DiffId]) -> None:
        self.numbers = {diff_id: number for number, diff_id in enumerate(diff_ids)}
        tables = [np.frombuffer(chains.layer_index(diff_id).contents_bytes(), _CONTENT) for diff_id in self.numbers]
        table = np.concatenate([np.empty(0, _CONTENT), *tables])
        layers = np.repeat(np.arange(len(tables)), [len(each) for each in tables])
        places = np.frombuffer(contents.digests().locate_many(table.tobytes(), _CONTENT.itemsize), _LOCATION)
        is_here = places["pack"] != LOCATION_NONE
        table, layers, places = table[is_here], layers[is_here], places[is_here]
        keys, first, of_pair = np.unique(_keys(table["digest"], places), return_index=True, return_inverse=True)
        self.sizes = table["size"][first].astype(np.int64)
        pairs = np.unique(layers * len(keys) + of_pair)
        self.layers, self.contents = np.divmod(pairs, max(1, len(keys)))

    @property
    def bytes(self) -> int:
        """Those of all contents, each once."""
        return int(self.sizes.sum())


def _keys(digests: NDArray[np.void], places: NDArray[np.void]) -> NDArray[np.uint64]:
    """A number for each content: where it is, which of objects does not tell them apart."""
    keys = places["pack"].astype(np.uint64) << np.uint64(32) | places["slot"].astype(np.uint64)
    objects = np.flatnonzero(places["pack"] == LOCATION_OBJECT)
    keys[objects] += np.unique(digests[objects], return_inverse=True)[1].astype(np.uint64)
    return keys


class _Forest:
    """The chains of images, in the order of a walk from their roots: of each its layer, the one below it, where its
    subtree ends, and the interval of images that it is in."""

    def __init__(self, images: Iterable[tuple[ImageId, ChainId]], rows: dict[ChainId, tuple[ChainId, DiffId]]) -> None:
        of_chain: dict[ChainId, list[ImageId]] = {}
        above: dict[ChainId, list[ChainId]] = {}
        roots: list[ChainId] = []
        self.images: list[ImageId] = []
        self.node_of_image: list[int] = []
        seen: set[ChainId] = set()
        for image, chain in images:
            if chain not in rows:  # of no layers
                self.images.append(image)
                self.node_of_image.append(-1)
                continue
            of_chain.setdefault(chain, []).append(image)
            while chain not in seen:
                seen.add(chain)
                parent = rows[chain][0]
                (above.setdefault(parent, []) if parent in rows else roots).append(chain)
                chain = parent if parent in rows else chain
        self.layers: list[DiffId] = []
        self.parents: list[int] = []
        self.ends: list[int] = []
        self.first_image: list[int] = []
        self.end_image: list[int] = []
        stack = [(root, -1) for root in roots]
        while stack:
            chain, parent_node = stack.pop()
            if parent_node == -2:  # everything above it was seen
                node = int(chain)
                self.ends[node], self.end_image[node] = len(self.layers), len(self.images)
                continue
            node = len(self.layers)
            self.layers.append(rows[chain][1])
            self.parents.append(parent_node)
            self.ends.append(0)
            self.first_image.append(len(self.images))
            self.end_image.append(0)
            for image in of_chain.get(chain, ()):
                self.images.append(image)
                self.node_of_image.append(node)
            stack.append((ChainId(str(node)), -2))
            stack += [(child, node) for child in above.get(chain, ())]


def usage(
    layout: Layout, database: Database, contents: ContentStore, chains: Chains, states: Callable[[], dict[str, str]]
) -> Usage:
    """See `layerstore.Store.usage`; `states` gives that of each container by its id."""
    with locked(layout.garbage_lock, exclusive=False):
        read = database.read().execute
        containers = _containers(layout, database, states())
        in_use: dict[str, int] = {}
        for container in containers:
            in_use[container.image_id] = in_use.get(container.image_id, 0) + 1
        rows = read("SELECT image_id, chain_id FROM images ORDER BY stored_seconds DESC, image_id").fetchall()
        forest = _Forest(rows, _chain_rows(database))
        layers = _Layers(chains, contents, dict.fromkeys(forest.layers))
        images = _images(database, forest, layers, in_use)
        by_id = {image.image_id: image for image in images}
        metadata, dead_files = _files(layout, database, layers.numbers)
        dead = _log_bytes(contents.log_records()) - layers.bytes + dead_files
        return Usage(
            images=[by_id[image] for image, _ in rows],
            containers=containers,
            parts={
                "images": Part(len(images), len(in_use), layers.bytes, layers.bytes - _active(forest, layers, in_use)),
                "containers": _containers_part(containers),
                "derived": _derived(layout),
                "build cache": _whole(layout.builds),
                "downloads": _whole(layout.downloads),
                "metadata": metadata,
                "garbage": Part(0, 0, dead, dead),
            },
        )


def bytes_without(database: Database, contents: ContentStore, chains: Chains, removed: Collection[ImageId]) -> int:
    """The bytes of contents that would be given back by collecting garbage once these images are gone."""
    rows = database.read().execute("SELECT image_id, chain_id FROM images").fetchall()
    forest = _Forest([row for row in rows if row[0] not in removed], _chain_rows(database))
    kept = _Layers(chains, contents, dict.fromkeys(forest.layers))
    return _log_bytes(contents.log_records()) - kept.bytes


def _chain_rows(database: Database) -> dict[ChainId, tuple[ChainId, DiffId]]:
    rows = database.read().execute("SELECT chain_id, parent, diff_id FROM chains")
    return {chain: (parent, diff_id) for chain, parent, diff_id in rows}


def _log_bytes(records: bytes) -> int:
    """The bytes of all places that the digest log names, each once."""
    log = np.frombuffer(records, _RECORD)
    is_object = log["pack"] == LOCATION_OBJECT
    objects = log[is_object]
    _, first = np.unique(objects["digest"], return_index=True)
    return int(log["size"][~is_object].sum()) + int(objects["size"][first].sum())


def _images(database: Database, forest: _Forest, layers: _Layers, in_use: dict[str, int]) -> list[ImageUsage]:
    read = database.read().execute
    files_bytes: dict[DiffId, int] = dict(read("SELECT diff_id, files_bytes FROM layers").fetchall())
    names: dict[ImageId, list[str]] = {}
    for name, image in read("SELECT name, image_id FROM names ORDER BY name"):
        names.setdefault(image, []).append(name)
    stored, size = _stored_bytes(forest, layers), [0] * len(forest.layers)
    for node, parent in enumerate(forest.parents):
        size[node] = files_bytes[forest.layers[node]] + (size[parent] if parent >= 0 else 0)
    unique = _unique_bytes(forest, layers)
    found = []
    for number, (image, node) in enumerate(zip(forest.images, forest.node_of_image, strict=True)):
        whole = int(stored[node]) if node >= 0 else 0
        own = int(unique[number])
        users = in_use.get(image, 0)
        found.append(
            ImageUsage(
                image,
                names.get(image, []),
                size[node] if node >= 0 else 0,
                whole - own,
                own,
                0 if users else own,
                users,
            )
        )
    return found


def _unique_bytes(forest: _Forest, layers: _Layers) -> NDArray[np.int64]:
    """Of each image the bytes of contents that no other image has."""
    first = _of_layers(forest, layers, forest.first_image, np.minimum)
    end = _of_layers(forest, layers, forest.end_image, np.maximum)
    content_first = np.full(len(layers.sizes), len(forest.images))
    content_end = np.zeros(len(layers.sizes), np.int64)
    np.minimum.at(content_first, layers.contents, first[layers.layers])
    np.maximum.at(content_end, layers.contents, end[layers.layers])
    is_unique = content_end - content_first == 1
    of_images = np.bincount(content_first[is_unique], weights=layers.sizes[is_unique], minlength=len(forest.images))
    return of_images.astype(np.int64)


def _of_layers(forest: _Forest, layers: _Layers, of_nodes: list[int], extreme: np.ufunc) -> NDArray[np.int64]:
    """For each layer the least or largest value of the nodes that have it."""
    nodes = np.array([layers.numbers[diff_id] for diff_id in forest.layers], np.int64)
    found = np.full(len(layers.numbers), len(forest.images) if extreme is np.minimum else 0)
    extreme.at(found, nodes, np.array(of_nodes, np.int64))
    return found


def _stored_bytes(forest: _Forest, layers: _Layers) -> NDArray[np.int64]:
    """Of each node the bytes of the contents of its layer and of those below it, each once."""
    count = len(forest.layers)
    begins = np.searchsorted(layers.layers, np.arange(len(layers.numbers) + 1))
    parts = [layers.contents[begins[n] : begins[n + 1]] for n in (layers.numbers[each] for each in forest.layers)]
    nodes = np.repeat(np.arange(count), [len(part) for part in parts])
    keys = np.concatenate([np.empty(0, np.int64), *parts]) * (count + 1) + nodes
    keys.sort()
    contents, nodes = np.divmod(keys, count + 1)
    # Of the nodes that have a content, in the order of the walk, one has another below it where a subtree that began
    # before has not ended.
    ends = np.maximum.accumulate(contents * (count + 1) + np.array(forest.ends, np.int64)[nodes]) if count else keys
    is_new = np.ones(len(keys), bool)
    is_new[1:] = ends[:-1] <= keys[1:]
    new = np.bincount(nodes[is_new], weights=layers.sizes[contents[is_new]], minlength=count)
    stored: NDArray[np.int64] = new.astype(np.int64)
    for node, parent in enumerate(forest.parents):
        if parent >= 0:
            stored[node] += stored[parent]
    return stored


def _active(forest: _Forest, layers: _Layers, in_use: dict[str, int]) -> int:
    """The bytes of contents of images that containers use."""
    is_active = np.zeros(len(layers.numbers), bool)
    nodes = {node for image, node in zip(forest.images, forest.node_of_image, strict=True) if image in in_use}
    seen: set[int] = set()
    for node in nodes:
        while node >= 0 and node not in seen:
            seen.add(node)
            is_active[layers.numbers[forest.layers[node]]] = True
            node = forest.parents[node]
    return int(layers.sizes[np.unique(layers.contents[is_active[layers.layers]])].sum())


def _containers(layout: Layout, database: Database, states: dict[str, str]) -> list[ContainerUsage]:
    read = database.read().execute
    logs: dict[str, set[str]] = {}
    for container, log in read(
        "SELECT id, log FROM containers WHERE log IS NOT NULL "
        "UNION SELECT container_id, log FROM snapshots WHERE log IS NOT NULL"
    ):
        logs.setdefault(container, set()).add(log)
    query = "SELECT id, name, image_id, image_name, driver FROM containers ORDER BY created_seconds DESC, id"
    return [
        ContainerUsage(
            container,
            name,
            image,
            image_name,
            states.get(container, "created"),
            sum(_bytes_of(layout.log(log)) for log in logs.get(container, ()))
            if driver == "extent"
            else _tree_bytes(layout.container(container), {"root", "work"}),
        )
        for container, name, image, image_name, driver in read(query).fetchall()
    ]


def _containers_part(containers: list[ContainerUsage]) -> Part:
    idle = [container.size_bytes for container in containers if container.state == "created"]
    total = sum(container.size_bytes for container in containers)
    return Part(len(containers), len(containers) - len(idle), total, sum(idle))


def _derived(layout: Layout) -> Part:
    with without_mounting(layout) as chains:
        attached = set(map(digest_hex, chains))
    count = active = total = reclaimable = 0
    with os.scandir(layout.chains) as entries:
        for entry in entries:
            size = _bytes_of(entry.path)
            is_in_use = not entry.name.endswith(".index") and entry.name.split(".")[0] in attached
            if not entry.name.endswith(".json"):
                count, active = count + 1, active + is_in_use
            total, reclaimable = total + size, reclaimable + (0 if is_in_use else size)
    return Part(count, active, total, reclaimable)


def _whole(path: str) -> Part:
    """What is in a directory and may go at any time."""
    size = _tree_bytes(path)
    return Part(0, 0, size, size)


def _files(layout: Layout, database: Database, live: Collection[DiffId]) -> tuple[Part, int]:
    """Indexes, recipes and blobs that images need; and the bytes of those, and of directories and logs of containers,
    that nothing needs."""
    read = database.read().execute
    keep = {layout.layers: {digest_hex(diff_id) for diff_id in live}}
    keep[layout.blobs] = {digest_hex(digest) for (digest,) in read("SELECT digest FROM image_blobs")}
    keep[layout.containers] = {container for (container,) in read("SELECT id FROM containers WHERE driver = 'overlay'")}
    keep[layout.logs] = {log for (log,) in read("SELECT id FROM logs")}
    count = needed = dead = 0
    for directory, names in keep.items():
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.split(".")[0] not in names:
                    dead += _tree_bytes(entry.path) if entry.is_dir(follow_symlinks=False) else _bytes_of(entry.path)
                elif directory in (layout.layers, layout.blobs):
                    count, needed = count + 1, needed + _bytes_of(entry.path)
    return Part(count, count, needed, 0), dead


def _bytes_of(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0  # it has just gone


def _tree_bytes(path: str, without: Collection[str] = ()) -> int:
    """What is on the disk at and below a path, hard links once."""
    total = _bytes_of(path)
    seen: set[int] = set()
    waiting = [path]
    while waiting:
        directory = waiting.pop()
        try:
            entries = os.scandir(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        with entries:
            for entry in entries:
                if directory == path and entry.name in without:
                    continue
                try:
                    status = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if status.st_nlink > 1 and not entry.is_dir(follow_symlinks=False):
                    if status.st_ino in seen:
                        continue
                    seen.add(status.st_ino)
                total += status.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total
