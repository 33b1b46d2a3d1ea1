"""What images, containers and the rest of a store take, and what of it would be given back.

Of hot contents, bytes are their own, not rounded up to blocks; of cold ones their parts of frames; of everything else
they are those that files take on disk. An image has the contents of its layers, also those that upper ones hide. Which
images have a content is answered without going through the images: chains are a forest, each image is the way from a
node to a root, and the images of a subtree are next to each other where images are counted along a walk over it. So a
layer belongs to the images of an interval, and a content to those of a few of them: it is one image's alone where they
are all the same interval of one. That a cold content of another image differs from it makes it that one's, too.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

import numpy as np

from layerstore.chains.derived import without_mounting
from layerstore.results import ContainerUsage, ImageUsage, Part, Usage
from layerstore.space.places import LayerContents, Places
from layerstore.store import frozen, locks
from layerstore.types import ChainId, DiffId, ImageId, digest_hex

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from numpy.typing import NDArray

    from layerstore.chains.chains import Chains
    from layerstore.space.places import Kept
    from layerstore.store.db import Database
    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore


class Forest:
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


def usage(store: OpenStore, chains: Chains, states: Callable[[], dict[str, str]]) -> Usage:
    """See `layerstore.Store.usage`; `states` gives that of each container by its id."""
    with locks.garbage(store.layout):
        read = store.database.read().execute
        containers, containers_part = _containers(store, states())
        rows = read("SELECT image_id, chain_id FROM images ORDER BY stored_seconds DESC, image_id").fetchall()
        forest = Forest(rows, chain_rows(store.database))
        places = Places(store.layout, store.contents)
        layers = LayerContents(places, chains, dict.fromkeys(forest.layers))
        kept = places.kept(layers.live)
        images = images_usage(store.database, forest, layers, kept)
        in_use = {image for image, used in images.items() if used.containers}
        frozen = {image for image, used in images.items() if used.is_frozen}
        metadata, dead_files = _files(store, layers.numbers)
        dead = kept.dead_bytes + dead_files
        idle = kept.hot_bytes - _active(forest, layers, kept, in_use)
        return Usage(
            images=[images[image] for image, _ in rows],
            containers=containers,
            parts={
                "images": Part(len(images), len(in_use), kept.hot_bytes, idle),
                "cold": Part(len(frozen), len(frozen & in_use), kept.cold_bytes, kept.dead_cold_bytes),
                "containers": containers_part,
                "derived": _derived(store.layout),
                "build cache": _whole(store.layout.builds),
                "downloads": _whole(store.layout.downloads),
                "metadata": metadata,
                "garbage": Part(0, 0, dead, dead),
            },
        )


def bytes_without(store: OpenStore, chains: Chains, removed: Collection[ImageId]) -> int:
    """The bytes of contents that would be given back by collecting garbage once these images are gone."""
    rows = store.database.read().execute("SELECT image_id, chain_id FROM images").fetchall()
    forest = Forest([row for row in rows if row[0] not in removed], chain_rows(store.database))
    places = Places(store.layout, store.contents)
    kept = places.kept(LayerContents(places, chains, dict.fromkeys(forest.layers)).live)
    return kept.dead_bytes + kept.dead_cold_bytes


def chain_rows(database: Database) -> dict[ChainId, tuple[ChainId, DiffId]]:
    """Of each chain the one below it and its topmost layer."""
    rows = database.read().execute("SELECT chain_id, parent, diff_id FROM chains")
    return {chain: (parent, diff_id) for chain, parent, diff_id in rows}


def images_usage(database: Database, forest: Forest, layers: LayerContents, kept: Kept) -> dict[ImageId, ImageUsage]:
    """What each image of the forest takes."""
    read = database.read().execute
    names: dict[ImageId, list[str]] = {}
    for name, image in read("SELECT name, image_id FROM names ORDER BY name"):
        names.setdefault(image, []).append(name)
    in_use: dict[ImageId, int] = dict(read("SELECT image_id, count(*) FROM containers GROUP BY image_id").fetchall())
    frozen = {image for (image,) in read("SELECT image_id FROM frozen").fetchall()}
    of_layer = files_bytes(database)
    size = [of_layer[diff_id] for diff_id in forest.layers]
    for node, parent in enumerate(forest.parents):
        size[node] += size[parent] if parent >= 0 else 0
    hot, cold = stored_bytes(forest, layers, [kept.hot, kept.cold])
    unique = unique_bytes(forest, layers, kept.hot + kept.cold)
    found = {}
    for number, (image, node) in enumerate(zip(forest.images, forest.node_of_image, strict=True)):
        own_hot, own_cold = (round(hot[node]), round(cold[node])) if node >= 0 else (0, 0)
        own = round(unique[number])
        users = in_use.get(image, 0)
        found[image] = ImageUsage(
            image,
            names.get(image, []),
            size[node] if node >= 0 else 0,
            own_hot,
            own_cold,
            max(0, own_hot + own_cold - own),
            own,
            0 if users else own,
            users,
            image in frozen,
        )
    return found


def files_bytes(database: Database) -> dict[DiffId, int]:
    """Of each layer the bytes of its files."""
    return dict(database.read().execute("SELECT diff_id, files_bytes FROM layers").fetchall())


def unique_bytes(forest: Forest, layers: LayerContents, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each image what the contents weigh that no other image needs."""
    of, number = layers.needed
    first = _of_layers(forest, layers, forest.first_image, np.minimum)
    end = _of_layers(forest, layers, forest.end_image, np.maximum)
    content_first = np.full(len(weights), len(forest.images))
    content_end = np.zeros(len(weights), np.int64)
    np.minimum.at(content_first, number, first[of])
    np.maximum.at(content_end, number, end[of])
    is_unique = content_end - content_first == 1
    of_images = np.bincount(content_first[is_unique], weights=weights[is_unique], minlength=len(forest.images))
    return of_images.astype(np.float64)


def _of_layers(forest: Forest, layers: LayerContents, of_nodes: list[int], extreme: np.ufunc) -> NDArray[np.int64]:
    """For each layer the least or largest value of the nodes that have it."""
    nodes = np.array([layers.numbers[diff_id] for diff_id in forest.layers], np.int64)
    found = np.full(len(layers.numbers), len(forest.images) if extreme is np.minimum else 0)
    extreme.at(found, nodes, np.array(of_nodes, np.int64))
    return found


def stored_bytes(
    forest: Forest, layers: LayerContents, weights: Sequence[NDArray[np.float64]]
) -> list[NDArray[np.float64]]:
    """Of each node what the contents of its layer and of those below it weigh, each once."""
    count = len(forest.layers)
    parts = layers.of(layers.own, [layers.numbers[each] for each in forest.layers])
    nodes = np.repeat(np.arange(count), [len(part) for part in parts])
    keys = np.concatenate([np.empty(0, np.int64), *parts]) * (count + 1) + nodes
    keys.sort()
    contents, nodes = np.divmod(keys, count + 1)
    # Of the nodes that have a content, in the order of the walk, one has another below it where a subtree that began
    # before has not ended.
    ends = np.maximum.accumulate(contents * (count + 1) + np.array(forest.ends, np.int64)[nodes]) if count else keys
    is_new = np.ones(len(keys), bool)
    is_new[1:] = ends[:-1] <= keys[1:]
    found = []
    for weight in weights:
        new = np.bincount(nodes[is_new], weights=weight[contents[is_new]], minlength=count)
        stored = new.astype(np.float64)
        for node, parent in enumerate(forest.parents):
            if parent >= 0:
                stored[node] += stored[parent]
        found.append(stored)
    return found


def _active(forest: Forest, layers: LayerContents, kept: Kept, in_use: Collection[ImageId]) -> int:
    """The hot bytes of contents that images need which containers use."""
    is_active = np.zeros(len(layers.numbers), bool)
    nodes = {node for image, node in zip(forest.images, forest.node_of_image, strict=True) if image in in_use}
    seen: set[int] = set()
    for node in nodes:
        while node >= 0 and node not in seen:
            seen.add(node)
            is_active[layers.numbers[forest.layers[node]]] = True
            node = forest.parents[node]
    of, number = layers.needed
    return int(kept.hot[np.unique(number[is_active[of]])].sum())


def _containers(store: OpenStore, states: dict[str, str]) -> tuple[list[ContainerUsage], Part]:
    read = store.database.read().execute
    logs: dict[str, set[str]] = {}
    for container, log in read(
        "SELECT id, log FROM containers WHERE log IS NOT NULL "
        "UNION SELECT container_id, log FROM snapshots WHERE log IS NOT NULL"
    ):
        logs.setdefault(container, set()).add(log)
    query = "SELECT id, name, image_id, image_name, driver FROM containers ORDER BY created_seconds DESC, id"
    found, uppers, all_frozen, used_frozen = [], _FrozenUppers(store.layout), set[str](), set[str]()
    total, used, linked, used_linked = 0, 0, dict[int, int](), dict[int, int]()
    for container, name, image, image_name, driver in read(query).fetchall():
        stood_on, shared = set[str](), dict[int, int]()
        if driver == "extent":
            own = sum(_bytes_of(store.layout.log(log)) for log in logs.get(container, ()))
        else:
            directory = store.layout.container(container)
            (own, shared), stood_on = _tree_sizes(directory, {"root", "work"}), set().union(*frozen.stacks(directory))
        state = states.get(container, "created")
        size = own + sum(shared.values()) + uppers.bytes_of(stood_on)
        found.append(ContainerUsage(container, name, image, image_name, state, size))
        total, all_frozen = total + own, all_frozen | stood_on
        linked |= shared
        if state != "created":
            used, used_frozen = used + own, used_frozen | stood_on
            used_linked |= shared
    total += sum(linked.values()) + uppers.bytes_of(all_frozen)
    used += sum(used_linked.values()) + uppers.bytes_of(used_frozen)
    return found, Part(len(found), sum(one.state != "created" for one in found), total, total - used)


class _FrozenUppers:
    """What frozen uppers take on disk. Those that were joined have files in common."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._sizes: dict[str, tuple[int, dict[int, int]]] = {}

    def bytes_of(self, names: set[str]) -> int:
        """Of so many together."""
        for name in names - self._sizes.keys():
            self._sizes[name] = _tree_sizes(frozen.path(self._layout, name))
        linked: dict[int, int] = {}
        for name in names:
            linked |= self._sizes[name][1]
        return sum(self._sizes[name][0] for name in names) + sum(linked.values())


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


def _files(store: OpenStore, live: Collection[DiffId]) -> tuple[Part, int]:
    """Indexes, recipes and blobs that images need; and the bytes of those, and of directories and logs of containers
    and cold packs of freezes that were killed, that nothing needs."""
    read = store.database.read().execute
    keep = {store.layout.layers: {digest_hex(diff_id) for diff_id in live}}
    keep[store.layout.blobs] = {digest_hex(digest) for (digest,) in read("SELECT digest FROM image_blobs")}
    keep[store.layout.containers] = {
        container for (container,) in read("SELECT id FROM containers WHERE driver = 'overlay'")
    }
    keep[store.layout.frozen] = _stood_on(store.layout)
    keep[store.layout.cold] = {str(number) for (number,) in read("SELECT number FROM cold_packs")}
    keep[store.layout.logs] = {log for (log,) in read("SELECT id FROM logs")}
    count = needed = dead = 0
    for directory, names in keep.items():
        with contextlib.suppress(FileNotFoundError), os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.split(".")[0] not in names:
                    dead += _tree_bytes(entry.path) if entry.is_dir(follow_symlinks=False) else _bytes_of(entry.path)
                elif directory in (store.layout.layers, store.layout.blobs):
                    count, needed = count + 1, needed + _bytes_of(entry.path)
    return Part(count, count, needed, 0), dead


def _stood_on(layout: Layout) -> set[str]:
    """The frozen uppers that somebody stands on."""
    found = set()
    with contextlib.suppress(FileNotFoundError), os.scandir(layout.frozen) as entries:
        for entry in entries:
            if entry.name.endswith(frozen.NAME_ENDING) and entry.stat(follow_symlinks=False).st_nlink > 1:
                found.add(entry.name.removesuffix(frozen.NAME_ENDING))
    return found


def _bytes_of(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except FileNotFoundError:
        return 0  # it has just gone


def _tree_bytes(path: str, without: Collection[str] = ()) -> int:
    """What is on the disk at and below a path, hard links once."""
    total, linked = _tree_sizes(path, without)
    return total + sum(linked.values())


def _tree_sizes(path: str, without: Collection[str] = ()) -> tuple[int, dict[int, int]]:
    """What is on the disk at and below a path: what has one name, and by its inode what has several."""
    total = _bytes_of(path)
    linked: dict[int, int] = {}
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
                    linked[status.st_ino] = status.st_blocks * 512
                    continue
                total += status.st_blocks * 512
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)
    return total, linked
