"""The library's face: `Store`, `Image` and `Container`.

A module that only some methods need is imported in them, here and in what is imported here: each takes up to several
milliseconds to load, and every command would wait for all of them. tests/test_startup.py says what `run` may load.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading

from layerstore.containers import program
from layerstore.containers.bundle import Volume, needs_device_rules, runtime_spec
from layerstore.containers.containers import Containers
from layerstore.containers.runtime import may_use_cgroups
from layerstore.errors import RELOAD, Conflict, InvalidInput, NotFound, Unsupported
from layerstore.extents.operations import Operations
from layerstore.layers.chains import Chains
from layerstore.mount.shared import Mounts
from layerstore.oci.configs import CONFIG_LIMIT_BYTES, parse_config
from layerstore.store.db import LAYERS_OF, SET_NAME, Database
from layerstore.store.layout import POOL_NAME, Layout, absolute
from layerstore.types import ChainId, DiffId, Digest, ImageId, chain_id, chain_ids, normalise_name, parse_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from types import TracebackType
    from typing import Any, BinaryIO, Literal, TypeAlias, overload

    from layerstore._core.index import Index
    from layerstore.containers.containers import ContainerRow
    from layerstore.containers.forks import Forks
    from layerstore.containers.writable import WritableContainers
    from layerstore.extents.image import ImageTree
    from layerstore.extents.layers import Layer, Layers
    from layerstore.layers.garbage import Collected
    from layerstore.oci.configs import ImageConfig
    from layerstore.results import Change, HistoryEntry, LayerSummary, Progress, Snapshot, Version
    from layerstore.store.contents import ContentStore
    from layerstore.store.pool import Pool
    from layerstore.views.paths import ImagePath
    from layerstore.views.view import View

    Driver: TypeAlias = Literal["overlay", "extent"]
    ProgressCallback: TypeAlias = Callable[[Progress], None]

__all__ = ["Container", "Image", "Store", "Volume"]


class Store:
    """A store of images and containers in one directory. Safe for many threads; many processes may have it open.

    Args:
        root: the directory.
        create: make the store if there is none.
        derived_limit_bytes: what merged indexes and tree images may take on disk. It is the store's from then on, for
            every process and command; where none was ever given, 4 GiB. They are made when first needed; where they
            exceed it, those that were not used for longest are removed, and made again when needed again.
        pool_bytes: when it is made on a file system without reflink, give it a pool of this size: a file system of its
            own in a sparse file (needs root and mkfs.xfs). With reflink none is needed, and none is made: see `pool`.

    Raises:
        NotFound: there is no store and `create` is false.
        InvalidInput: the directory holds something else, or is open to other users; the pool is too small, or
            the limit below 0.
        Conflict: there is a store, and it has no pool.
        Unsupported: another version of layerstore made it; a pool cannot be made or attached by this user or on this
            machine.
        CorruptError: the database is damaged.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        create: bool = False,
        derived_limit_bytes: int | None = None,
        pool_bytes: int | None = None,
    ) -> None:
        self._root = absolute(root)
        self.pool = self._find_pool(create, pool_bytes)
        if self.pool is None:
            self._open(self._root, create, derived_limit_bytes)
            return
        try:
            with self.pool.attached():
                if not create and not Layout(self.pool.target).exists():
                    raise NotFound(f"the store at {self._root} was never finished; `layerstore init` does that")
                self._open(self.pool.target, create, derived_limit_bytes)
        except BaseException:
            self._let_go()
            raise

    def _find_pool(self, create: bool, pool_bytes: int | None) -> Pool | None:
        if pool_bytes is None and not os.path.exists(f"{self._root}/{POOL_NAME}.img"):
            return None
        from layerstore.store.pool import Pool, has_reflink

        pool = Pool(self._root)
        if pool_bytes is not None and create and not pool.exists():
            os.makedirs(self._root, mode=0o700, exist_ok=True)
            if has_reflink(self._root):
                return None
            pool.create(pool_bytes)
        return pool if pool.exists() else None

    def _open(self, root: str, create: bool, derived_limit_bytes: int | None) -> None:
        self.layout = Layout(root)
        if create and not self.layout.exists():
            self.layout.create()
        self.layout.check()
        self._database = Database(self.layout.database)
        self._opened_contents: ContentStore | None = None
        self._known_images: tuple[int, dict[str, Image]] = -1, {}
        self._chains = Chains(self.layout, self._database, lambda: self._contents)
        if derived_limit_bytes is not None:
            self._chains.derived.limit_bytes = derived_limit_bytes
        self._mounts = Mounts(self.layout)
        self._containers = Containers(self.layout, self._database, self._chains, self._mounts)
        self._opened_layers: Layers | None = None
        self._opening = threading.Lock()
        self._image_trees: dict[ImageId, ImageTree] = {}

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def root(self) -> Path:
        """Its directory. With a pool what is in it is below `layout.root` while the store is open."""
        from pathlib import Path

        return Path(self._root)

    @property
    def _forks(self) -> Forks:
        from layerstore.containers.forks import Forks

        return Forks(self.layout, self._database, self._mounts, self._containers)

    @property
    def derived_limit_bytes(self) -> int:
        """What merged indexes and tree images may take on disk, as it was given last by any process."""
        return self._chains.derived.limit_bytes

    @property
    def _contents(self) -> ContentStore:
        if self._opened_contents is None:
            from layerstore.store.contents import ContentStore

            # Should two threads come here at once, either's will do: it holds nothing but what was read.
            self._opened_contents = ContentStore(self.layout, self._database)
        return self._opened_contents

    @property
    def _writable(self) -> WritableContainers:
        from layerstore.containers.writable import WritableContainers

        if self._opened_layers is None:
            from layerstore.extents.layers import Layers

            with self._opening:
                if self._opened_layers is None:
                    os.makedirs(self.layout.logs, mode=0o700, exist_ok=True)
                    self._opened_layers = Layers(self.layout, self._database, self._image_tree)
        return WritableContainers(self.layout, self._database, self._opened_layers)

    def _image_tree(self, image: ImageId) -> ImageTree:
        from layerstore.extents.image import ImageTree

        tree = self._image_trees.get(image)
        if tree is None:
            tree = self._image_trees[image] = ImageTree(self._image(image).view, self._contents)
        return tree

    def close(self) -> None:
        """Close the database, once or more often. Mounted containers stay mounted; what was written to containers of
        the extent driver is handed to the system, and other processes may write to them.

        A pool is detached when nobody else uses it: no other store, no mounted container, no content still open.
        Raises `OSError`.
        """
        if self._opened_layers is not None:
            self._opened_layers.close()
        self._database.close()
        self._mounts.close()
        self._known_images = -1, {}
        self._image_trees.clear()
        self._chains.close()
        self._opened_contents = None
        self._let_go()

    def _let_go(self) -> None:
        if self.pool is not None:
            with contextlib.suppress(Unsupported):  # who may not unmount may have the store open all the same
                self.pool.detach()

    # Images

    def load(
        self, source: str | os.PathLike[str] | BinaryIO, *, progress: ProgressCallback | None = None
    ) -> list[Image]:
        """Take in every image of a docker archive or OCI layout: a file, a directory, or a binary stream.

        Files may be compressed with gzip or zstd. Layers that are stored are not read again, files that are stored
        not written again. Everything is verified before anything is visible; a failed load leaves nothing and can be
        run again.

        Raises:
            InvalidInput: it is not such an archive, or an entry in it is not acceptable (named in the message).
            DigestMismatch, CorruptError: bytes are not what was promised for them.
            LimitExceeded, OSError.
        """
        from layerstore.layers import loading

        ids = loading.load(self.layout, self._database, self._contents, source, progress)
        return [self._image(image_id) for image_id in ids]

    def import_rootfs(
        self, source: str | os.PathLike[str] | BinaryIO, name: str, *, progress: ProgressCallback | None = None
    ) -> Image:
        """Make an image of one layer from the tar of a root file system, compressed with gzip or zstd or not.

        The image has no command. Its creation time is SOURCE_DATE_EPOCH where that is set. Raises as `load`.
        """
        import time
        from datetime import UTC, datetime

        from layerstore.layers import loading

        seconds = os.environ.get("SOURCE_DATE_EPOCH") or time.time()
        try:
            created = datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        except (ValueError, OverflowError) as error:
            raise InvalidInput(f"SOURCE_DATE_EPOCH is {seconds!r}, not a number of seconds: {error}") from error
        image_id = loading.import_rootfs(
            self.layout, self._database, self._contents, source, normalise_name(name), created, progress
        )
        return self._image(image_id)

    def images(self) -> list[Image]:
        """Every image, newest in the store first."""
        query = "SELECT image_id FROM images ORDER BY stored_seconds DESC, image_id"
        return [self._image(image_id) for (image_id,) in self._database.read().execute(query)]

    def image(self, name: str) -> Image:
        """The image of that name (`NAME[:TAG]`) or id (whole or an unambiguous beginning, with or without `sha256:`).

        Raises `NotFound`, `InvalidInput` when ambiguous.
        """
        db = self._database.read()
        digits = name.removeprefix("sha256:")
        is_id = bool(digits) and all(c in "0123456789abcdef" for c in digits)
        if "@" in name:
            raise NotFound(f"no image is named by a registry's digest, as {name!r} is; `layerstore images` lists ids")
        if not name.startswith("sha256:"):
            row = db.execute(query := "SELECT image_id FROM names WHERE name = ?", (name,)).fetchone()
            if row is None:
                with contextlib.suppress(InvalidInput):
                    row = db.execute(query, (normalise_name(name),)).fetchone()
            if row is not None:
                return self._image(row[0])
        if is_id:
            low, high = f"sha256:{digits}", f"sha256:{digits}g"
            rows = db.execute("SELECT image_id FROM images WHERE image_id >= ? AND image_id < ? LIMIT 2", (low, high))
            found = rows.fetchall()
            if len(found) > 1:
                raise InvalidInput(f"more than one image's id begins with {digits!r}; give more digits")
            if found:
                return self._image(found[0][0])
        raise NotFound(f"there is no image {name!r}; `layerstore images` lists them, `layerstore load` brings them in")

    def tag(self, image: Image | str, name: str) -> None:
        """Give the image one more name; a name that another image has moves here."""
        found = self._resolve(image)
        with self._database.transaction() as db:
            if db.execute("SELECT 1 FROM images WHERE image_id = ?", (found.id,)).fetchone() is None:
                raise NotFound(f"image {found.short_id} was removed; load it again")
            db.execute(SET_NAME, (normalise_name(name), found.id))

    def remove_image(self, name: str, *, force: bool = False) -> list[str]:
        """Remove a name, and the image when that was its last name.

        By id the image goes with its names: with more than one only by `force`. Returns what was done, a line each, as
        `docker rmi` says it. Layers and contents that nothing uses any more are given back by `collect_garbage`; until
        then loading them again costs nothing.
        Raises `Conflict` while a container uses the image, `NotFound`.
        """
        image = self.image(name)
        with self._database.transaction() as db:
            return self._remove_image(db.execute, image, name, force)

    def _remove_image(self, execute: Callable[..., Any], image: Image, name: str, force: bool) -> list[str]:
        names = [n for (n,) in execute("SELECT name FROM names WHERE image_id = ? ORDER BY name", (image.id,))]
        by_name = None
        if not name.startswith("sha256:"):
            with contextlib.suppress(InvalidInput):
                by_name = normalise_name(name) if normalise_name(name) in names else None
        if by_name is None and len(names) > 1 and not force:
            raise Conflict(f"image {name} has {len(names)} names ({', '.join(names)}); remove them, or force it")
        gone = names if by_name is None else [by_name]
        if len(gone) == len(names):
            user = execute("SELECT id FROM containers WHERE image_id = ?", (image.id,)).fetchone()
            if user is not None:
                raise Conflict(f"container {user[0][:12]} uses image {name}; `layerstore rm {user[0][:12]}` first")
        for each in gone:
            execute("DELETE FROM names WHERE name = ?", (each,))
        done = [f"Untagged: {each}" for each in gone]
        if len(gone) == len(names):
            execute("DELETE FROM images WHERE image_id = ?", (image.id,))
            done.append(f"Deleted: {image.id}")
        return done

    def diff(self, a: Image | str | Sequence[DiffId], b: Image | str | Sequence[DiffId]) -> list[Change]:
        """What `b` has otherwise than `a`: paths added (A), changed (C) or deleted (D), sorted.

        Each is an image, its name or id, or the diff_ids of stored layers, bottom first (none: an empty tree).
        A path has changed when its type, mode, owner, time of modification, content, link target, device number or
        xattrs have. A directory in which something differs has not changed for that; of one that came or went, or that
        something else became or replaced, every path below is listed too. Which layers say so makes no difference.
        It takes time in proportion to the directories that differ.

        Raises `NotFound` where there is no such image or layer, `InvalidInput` when ambiguous or as `view`,
        `CorruptError`.
        """
        from layerstore.views.comparison import changes

        return changes(self._chains.index(self._stack(a)), self._chains.index(self._stack(b)))

    def _stack(self, chain: Image | str | Sequence[DiffId]) -> Sequence[DiffId]:
        if isinstance(chain, Image | str):
            image = self._image_to_compare(chain) if isinstance(chain, str) else chain
            stack = image.diff_ids
            if chain_id(stack) != image.chain_id:
                raise NotFound(f"image {image.short_id} was removed; load it again")
            return stack
        execute = self._database.read().execute
        for diff_id in chain:
            parse_digest(diff_id, "a layer of a stack")
            if execute("SELECT 1 FROM layers WHERE diff_id = ?", (diff_id,)).fetchone() is None:
                raise NotFound(f"there is no layer {diff_id}; `layerstore inspect IMAGE` lists those of an image")
        return chain

    def _image_to_compare(self, name: str) -> Image:
        """The image of that name or id; who names a container instead is told so."""
        try:
            return self.image(name)
        except NotFound as missing:
            try:
                container = self._containers.find(name)
            except (NotFound, InvalidInput):
                raise missing from None
        raise InvalidInput(
            f"{name!r} is a container of {container.image_name}, and images are compared with images; "
            f"`layerstore diff {name}` shows what it changed"
        )

    def view(self, diff_ids: Sequence[DiffId]) -> View:
        """The merged tree of a stack of stored layers, bottom first, to look into without mounting it.

        Raises `NotFound` for a layer that is not stored, `InvalidInput` where one has a hard link to what those below
        it do not show, `CorruptError`.
        """
        from layerstore.views.view import View

        return View(self._chains.index(self._stack(diff_ids)), self._contents)

    def collect_garbage(self, *, derived_limit_bytes: int | None = None) -> Collected:
        """Give back the space of what nothing uses any more, a pool's to the host; waits for loads that are under way.

        Derived files are brought under `derived_limit_bytes`, by default the store's limit (`evict_derived`).
        Raises `OSError`, `CorruptError`; it can be run again then.
        """
        from layerstore.layers import garbage

        collected = garbage.collect(self.layout, self._database, self._contents, self._chains, derived_limit_bytes)
        self._forks.clear()
        if self.pool is not None:
            self.pool.trim()
        return collected

    def evict_derived(self, limit_bytes: int) -> int:
        """Remove merged indexes and tree images, longest unused first, until at most so many bytes are left.

        They are made again when they are needed. What is mounted or being made stays; who has an index open keeps it.
        Returns the bytes removed. Raises `OSError`.
        """
        from layerstore.store.locks import locked

        with locked(self.layout.garbage_lock, exclusive=False):
            return self._chains.derived.evict(limit_bytes)

    def _image(self, image_id: str) -> Image:
        # An image never changes, so what was read of it (its config above all) serves every later use; until something
        # was collected: one that is removed would keep its files.
        collections = self._database.collections()
        known = self._known_images
        if known[0] != collections:
            known = self._known_images = collections, {}
        return known[1].setdefault(image_id, Image(self, ImageId(image_id)))

    def _resolve(self, image: Image | str) -> Image:
        return image if isinstance(image, Image) else self.image(image)

    # Containers

    if TYPE_CHECKING:

        @overload
        def create(
            self, image: Image | str, *, name: str | None = None, volatile: bool = False, driver: Driver = "overlay"
        ) -> Container: ...

        @overload
        def create(
            self, image: Image | str, *, count: int, volatile: bool = False, driver: Driver = "overlay"
        ) -> list[Container]: ...

    def create(
        self,
        image: Image | str,
        *,
        count: int | None = None,
        name: str | None = None,
        volatile: bool = False,
        driver: Driver = "overlay",
    ) -> Container | list[Container]:
        """Make a container, or `count` of them as a list: all or none. They are not mounted yet.

        driver: "overlay", whose writable layer is the kernel's and which programs run in; or "extent", whose writable
        layer is ours: without root or a mount, worked on from Python, forked and rolled back at once.

        What is written in a `volatile` one (of the overlay driver) is never synced to disk: fsync returns at once, and
        unmounting does not flush the store's file system. It is for containers that need not outlive the machine;
        remove them after a power loss.

        Raises `NotFound`, `Conflict` when `name` is taken, `InvalidInput` when it is no name, `OSError`.
        """
        _check_count(count, name)
        found = self._resolve(image)
        shown = image if isinstance(image, str) else next(iter(found.names), found.short_id)
        if driver == "extent":
            if volatile:
                raise InvalidInput("the extent driver syncs only what it is asked to; create it without volatile")
            rows = self._writable.create(found.id, shown, found.chain_id, count or 1, name)
        elif driver == "overlay":
            chain = self._chains.mountable(found.chain_id, lambda: found.diff_ids)
            rows = self._containers.create(found.id, shown, chain, count or 1, name, volatile)
        else:
            raise InvalidInput(f"there is no driver {driver!r}; it is 'overlay' or 'extent'")
        made = [Container(self, row) for row in rows]
        return made[0] if count is None else made

    def containers(self) -> list[Container]:
        """Every container, newest first."""
        return [Container(self, row) for row in self._containers.all()]

    def container(self, name: str) -> Container:
        """The container of that name, id or unambiguous beginning of an id. Raises `NotFound`, `InvalidInput`."""
        return Container(self, self._containers.find(name))

    def mount(self, containers: Sequence[Container]) -> None:
        """Mount many at once; each view is then at its `root`. Those already mounted stay.

        Raises `NotFound` where one was removed, `Unsupported` where this user or kernel cannot mount, `OSError`.
        """
        self._containers.mount([container.row for container in containers], lambda image: self._image(image).diff_ids)

    def umount(self, containers: Sequence[Container], *, force: bool = False) -> None:
        """Unmount many at once; `force` detaches those in use. Raises `Conflict` where one is in use."""
        self._containers.unmount([container.row for container in containers], lazy=force)

    def remove(self, containers: Sequence[Container], *, force: bool = False) -> None:
        """Remove containers and what they wrote. Raises `Conflict` where one runs or is in use, without `force`."""
        rows = [container.row for container in containers]
        if self._opened_layers is not None:
            self._writable.forget(rows)
        self._containers.remove(rows, force=force)

    def states(self, containers: Sequence[Container]) -> list[str]:
        """Of each: "created", "mounted" or "running"."""
        return self._containers.states([container.row for container in containers])


class Image:
    """An image in a store. What it says is read when asked for."""

    def __init__(self, store: Store, image_id: ImageId) -> None:
        self._store = store
        self.id = image_id
        self._config: ImageConfig | None = None
        self._chain_id: ChainId | None = None
        self._view: View | None = None

    def __repr__(self) -> str:
        return f"<Image {self.short_id} {' '.join(self.names)}>"

    @property
    def short_id(self) -> str:
        return self.id.removeprefix("sha256:")[:12]

    @property
    def names(self) -> list[str]:
        """`NAME:TAG`, sorted."""
        query = "SELECT name FROM names WHERE image_id = ? ORDER BY name"
        return [name for (name,) in self._store._database.read().execute(query, (self.id,))]

    @property
    def config(self) -> ImageConfig:
        """The image's config. Raises `CorruptError`, `NotFound` when the image is gone."""
        if self._config is None:
            try:
                with open(self._store.layout.blob(Digest(self.id)), "rb") as file:
                    self._config = parse_config(file.read(CONFIG_LIMIT_BYTES + 1), self.id)
            except FileNotFoundError:
                raise NotFound(f"the config of image {self.short_id} is gone; {RELOAD}") from None
        return self._config

    @property
    def diff_ids(self) -> tuple[DiffId, ...]:
        """The layers, bottom first."""
        return tuple(DiffId(d) for d, _ in self._store._database.read().execute(LAYERS_OF, (self.id,)))

    @property
    def chain_id(self) -> ChainId:
        """The ChainID of its layers. Raises `NotFound` when the image is gone."""
        if self._chain_id is None:
            query = "SELECT chain_id FROM images WHERE image_id = ?"
            row = self._store._database.read().execute(query, (self.id,)).fetchone()
            if row is None:
                raise NotFound(f"image {self.short_id} was removed; load it again")
            self._chain_id = ChainId(row[0])
        return self._chain_id

    @property
    def created(self) -> str:
        """When it was made, as its config says (RFC 3339), "" when it does not."""
        query = "SELECT created FROM images WHERE image_id = ?"
        row = self._store._database.read().execute(query, (self.id,)).fetchone()
        return str(row[0]) if row else ""

    @property
    def size_bytes(self) -> int:
        """The sum of its layers' file sizes, as docker shows it."""
        return sum(self._layer_bytes().values())

    def _layer_bytes(self) -> dict[int, int]:
        rows = self._store._database.read().execute(LAYERS_OF, (self.id,))
        return {position: files_bytes for position, (_, files_bytes) in enumerate(rows)}

    def history(self) -> list[HistoryEntry]:
        """Its steps, newest first, as `docker image history` lists them.

        A layer that the config's history says nothing of is a step too, so that the sizes add up to `size_bytes`.
        """
        from layerstore.results import HistoryEntry

        steps = self.config.steps()
        sizes = self._layer_bytes()
        ids = self._images_of_prefixes()
        last = len(steps) - 1
        found = [
            HistoryEntry(
                image_id=self.id if number == last else (None if layer is None else ids.get(layer + 1)),
                created=str(step.get("created") or ""),
                created_by=str(step.get("created_by") or ""),
                comment=str(step.get("comment") or ""),
                size_bytes=0 if layer is None else sizes.get(layer, 0),
                empty_layer=bool(step.get("empty_layer")),
            )
            for number, (step, layer) in enumerate(steps)
        ]
        return found[::-1]

    def _images_of_prefixes(self) -> dict[int, ImageId]:
        """Images of the store that end where a step of this one does, by their number of layers."""
        lengths = {chain: n for n, chain in enumerate(chain_ids(self.diff_ids)[:-1], 1)}
        rows = self._store._database.read().execute("SELECT image_id, chain_id FROM images")
        return {lengths[chain]: ImageId(image) for image, chain in rows if chain in lengths}

    def layers(self) -> list[LayerSummary]:
        """What each layer brought and what later ones left of it, bottom first.

        Raises `CorruptError`, `InvalidInput` for an image with a hard link to nothing, `NotFound` when it is gone.
        """
        from layerstore.views import provenance

        diff_ids, sizes = self.diff_ids, self._layer_bytes()
        made_by = {layer: str(step.get("created_by") or "") for step, layer in self.config.steps()}
        numbers = range(len(diff_ids))
        return provenance.layers(
            self._layer_indexes(diff_ids), diff_ids, [made_by.get(n, "") for n in numbers], [sizes[n] for n in numbers]
        )

    @property
    def wasted_bytes(self) -> int:
        """Bytes in files of its layers that nothing shows any more: later layers replaced or hid them.

        They are part of `size_bytes`, and travel with the image. A file with several hard links is wasted when the last
        of them is gone. What dive calls wasted is an estimate by path: all versions of a path that more than one layer
        has, the visible one too (https://github.com/wagoodman/dive, dive/filetree/efficiency.go).
        """
        return sum(layer.wasted_bytes for layer in self.layers())

    def layer_changes(self, number: int) -> list[Change]:
        """What a layer (from 0 at the bottom) adds, changes and hides in the view of those below it, sorted by path.

        A directory that is hidden is told alone, without what was in it, as docker tells it; one that is described
        again as it was is no change, whatever changes in it.
        Raises `NotFound` where there is no such layer, `CorruptError`, `InvalidInput` as `layers`.
        """
        from layerstore.views import provenance

        diff_ids = self.diff_ids
        if not 0 <= number < len(diff_ids):
            raise NotFound(f"image {self.short_id} has no layer {number}; it has {len(diff_ids)}, counted from 0")
        return provenance.changes(self._layer_indexes(diff_ids[: number + 1]))

    def versions(self, path: str | bytes) -> list[Version]:
        """Every version of a path in its layers, the topmost first, with what ended each.

        Symlinks above the last component are followed as the whole image shows them: of "/bin/sh", where /bin is a link
        to usr/bin, those of /usr/bin/sh are told (`Version.path`), and those of /bin/sh from layers where /bin was a
        directory yet. A symlink at the end is not followed: it has versions itself. Each layer is asked for the path,
        nothing is walked.
        Raises `FileNotFoundError` when no layer ever had it, otherwise as `view`.
        """
        from layerstore.views import provenance

        diff_ids = self.diff_ids
        tree = self.view if diff_ids else None
        return provenance.versions(self._layer_indexes(diff_ids), diff_ids, tree, path)

    def _layer_indexes(self, diff_ids: Sequence[DiffId]) -> list[Index]:
        return [self._store._chains.layer_index(diff_id) for diff_id in diff_ids]

    def index(self) -> Index:
        """The merged index of its layers. Raises as `view`."""
        return self._store._chains.index(self.diff_ids)

    @property
    def view(self) -> View:
        """Its tree, to look into without mounting it or being root: `image.view.listdir("/etc")`.

        Raises `NotFound` when the image is gone, `InvalidInput` for one with a hard link to nothing, `CorruptError`.
        """
        if self._view is None:
            self._view = self._store.view(self._store._stack(self))
        return self._view

    @property
    def path(self) -> ImagePath:
        """The root of its tree as a path to go on from: `(image.path / "etc" / "os-release").read_text()`.

        Raises as `view`.
        """
        from layerstore.views.paths import ImagePath

        return ImagePath(self.view)

    def layer_tar(self, diff_id: DiffId) -> Iterator[bytes]:
        """The tar of one of its layers, bit for bit as it came in, in pieces. Raises `CorruptError`, `OSError`."""
        from layerstore.layers.recipe import tar_pieces

        store = self._store
        recipe = store.layout.layer_recipe(diff_id)
        return tar_pieces(recipe, store._chains.layer_index(diff_id), store._contents.open)

    def inspect(self) -> dict[str, Any]:
        """What is known of the image, in docker's words."""
        document = self.config.document
        return {
            "Id": self.id,
            "RepoTags": self.names,
            "Created": self.created,
            "Architecture": document.get("architecture", ""),
            "Os": document.get("os", ""),
            "Author": document.get("author", ""),
            "Config": self.config.runtime,
            "Size": self.size_bytes,
            "RootFS": {"Type": "layers", "Layers": list(self.diff_ids)},
            "ChainId": self.chain_id,
        }


class Container(Operations):
    """A writable layer on an image. As a context manager it is mounted inside the block and unmounted after it.

    The functions of the `os` module (see `Operations`) are for the extent driver, mounting and programs for the overlay
    driver.
    """

    def __init__(self, store: Store, row: ContainerRow) -> None:
        self._store = store
        self.row = row

    def __repr__(self) -> str:
        return f"<Container {self.id[:12]} of {self.row.image_name}>"

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.row.id

    @property
    def name(self) -> str | None:
        return self.row.name

    @property
    def image(self) -> Image:
        return self._store._image(self.row.image_id)

    @property
    def driver(self) -> str:
        """ "overlay" or "extent"."""
        return self.row.driver

    @property
    def root(self) -> Path:
        """Where its view is while it is mounted."""
        from pathlib import Path

        return Path(self._store._containers.root(self.id))

    @property
    def state(self) -> str:
        """ "created", "mounted" or "running"."""
        return self._store.states([self])[0]

    def mount(self) -> _Mounted:
        """Mount it; the result is the path of its view, and as a context manager unmounts it at the end.

        Raises `Unsupported` where this user or kernel cannot mount, `OSError`.
        """
        self._store.mount([self])
        return _Mounted(self)

    def umount(self, *, force: bool = False) -> None:
        """Unmount it; nothing happens when it is not mounted. Raises `Conflict` while it is in use, without `force`."""
        self._store.umount([self], force=force)

    def remove(self, *, force: bool = False) -> None:
        """Remove it and what it wrote. Raises `Conflict` while it runs or is in use, without `force`."""
        self._store.remove([self], force=force)

    # The extent driver

    def _layer(self) -> Layer:
        return self._writable.layer(self.row)

    @property
    def _writable(self) -> WritableContainers:
        if self.row.driver != "extent":
            raise Unsupported(
                f"container {self.id[:12]} is of the overlay driver; mount it and work on the files below its root, "
                "or create one with the driver 'extent'"
            )
        return self._store._writable

    if TYPE_CHECKING:

        @overload
        def fork(self, count: None = None, name: str | None = None) -> Container: ...

        @overload
        def fork(self, count: int) -> list[Container]: ...

    def fork(self, count: int | None = None, name: str | None = None) -> Container | list[Container]:
        """Make a container that goes on from what this one is now, or `count` of them, alike, as a list: all or none.

        With the extent driver it takes the same time whatever is in it, and copies nothing. The moment is between two
        operations on this container, of whatever thread or process: of another process, what it has flushed counts.

        With the overlay driver, on a file system with reflink (XFS, btrfs, a pool) contents are shared and a fork costs
        the time of making its files again, about 20 µs for each changed file; without, it costs their bytes. This one
        may be mounted and in use. A file that is being written is in the fork as it was at one moment, where contents
        are shared; where they are copied, each write of that while may be in it or not. The tree is not of one moment:
        of two files that are written one after the other, the fork may have the second write and not the first. Who
        minds stops the container's programs meanwhile. What programs hold in memory is not in a fork.

        Raises `Conflict` when `name` is taken, `InvalidInput` when it is no name, `NotFound` when this one was removed,
        `OSError`.
        """
        _check_count(count, name)
        made = [Container(self._store, row) for row in self._states.fork(self.row, count or 1, name)]
        return made[0] if count is None else made

    def snapshot(self, name: str) -> None:
        """Keep what it is now under a name, to roll back to. Costs as `fork`, and sees a container in use as that does.

        Raises `Conflict` when there is a snapshot of that name, `InvalidInput` when it is no name, `OSError`.
        """
        self._states.snapshot(self.row, name)

    def snapshots(self) -> list[Snapshot]:
        """Its snapshots, oldest first."""
        return self._states.snapshots(self.row)

    def rollback(self, name: str) -> None:
        """Have it be what it was at a snapshot, which stays. It takes no longer the more has changed.

        Files of the extent driver that are open raise `OSError` with ESTALE then. With the overlay driver, what it was
        until now is given back by `collect_garbage`, or with the container, and the next `mount` takes the snapshot
        again first, as long as `snapshot` took.

        Raises `NotFound` when there is no such snapshot, `Conflict` while it is mounted, runs, or another process
        writes to it, `OSError`.
        """
        self._states.rollback(self.row, name)

    def remove_snapshot(self, name: str) -> None:
        """Remove a snapshot, and give back what only it needed. Raises `NotFound` when there is none, `OSError`."""
        self._states.remove_snapshot(self.row, name)

    @property
    def _states(self) -> WritableContainers | Forks:
        return self._store._writable if self.row.driver == "extent" else self._store._forks

    def diff(self) -> list[Change]:
        """What it changed, sorted by path. Raises `NotFound` when removed, `Unsupported` for the extent driver."""
        from pathlib import Path

        from layerstore.containers import changes

        if self.row.driver != "overlay":
            raise Unsupported(
                f"container {self.id[:12]} is of the {self.row.driver} driver, of which there is no diff yet"
            )
        try:
            return changes.changes(Path(self._store._containers.upper(self.id)), self.image.index())
        except FileNotFoundError:
            self._store.container(self.id)
            raise

    def run(
        self,
        args: Sequence[str] | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        tty: bool = False,
        network: Literal["host", "none"] = "host",
        volumes: Sequence[Volume] = (),
        hostname: str | None = None,
        stdin: int | BinaryIO | None = None,
        stdout: int | BinaryIO | None = None,
        stderr: int | BinaryIO | None = None,
    ) -> int:
        """Run a program in the container and wait for it; the container is mounted for it if it is not.

        Args:
            args: the arguments, in place of the image's command.
            entrypoint: in place of the image's entrypoint and command.
            env: `K=V` strings or a mapping, added to the image's environment.
            network: "host" or "none".
            stdin, stdout, stderr: descriptors or files with one; None is the caller's own.

        Returns:
            The exit status, 128 + N when signal N ended it.

        Raises:
            InvalidInput: the image says no command, or names a user that it does not have.
            ProgramNotFound, ProgramNotExecutable: the program is not in the container, or no program for that user.
            Conflict: a program runs in it already.
            Unsupported: no OCI runtime, or no right to mount.
        """
        self._store._containers.forget_ended(self.id)
        was_mounted = self.state != "created"
        if not was_mounted:
            self.mount()
        try:
            rules = self._needs_device_rules()
            bundle = self._bundle(args, entrypoint, env, workdir, user, tty, network, volumes, hostname, rules)
            fds = [_descriptor(file, own) for own, file in enumerate((stdin, stdout, stderr))]
            runtime = self._store._containers.runtime()
            return runtime.run(bundle, self.id, stdin=fds[0], stdout=fds[1], stderr=fds[2], tty=tty, own_group=rules)
        finally:
            if not was_mounted:
                self.umount()

    def start(
        self,
        args: Sequence[str] | None = None,
        *,
        entrypoint: Sequence[str] | None = None,
        env: Sequence[str] | Mapping[str, str] = (),
        workdir: str | None = None,
        user: str | None = None,
        network: Literal["host", "none"] = "host",
        volumes: Sequence[Volume] = (),
        hostname: str | None = None,
        stdout: int | BinaryIO | None = None,
        stderr: int | BinaryIO | None = None,
    ) -> int:
        """Start a program in the container and leave it running; returns the id of its first process.

        Arguments as for `run`; standard input is empty, output goes nowhere unless a file is given. The container stays
        mounted; `kill` ends the program, `remove` the container. Raises as `run`.
        """
        self._store._containers.forget_ended(self.id)
        was_mounted = self.state != "created"
        if not was_mounted:
            self.mount()
        try:
            rules = self._needs_device_rules()
            bundle = self._bundle(args, entrypoint, env, workdir, user, False, network, volumes, hostname, rules)
            with open(os.devnull, "r+b", buffering=0) as nothing:
                out, err = (nothing.fileno() if f is None else _descriptor(f, 1) for f in (stdout, stderr))
                runtime = self._store._containers.runtime()
                return runtime.start_detached(
                    bundle, self.id, stdin=nothing.fileno(), stdout=out, stderr=err, own_group=rules
                )
        except BaseException:
            if not was_mounted:
                self.umount()
            raise

    def kill(self, number: int = 9) -> None:
        """Send a signal (SIGKILL) to its first process. Raises `NotFound` when nothing runs in it."""
        self._store._containers.runtime().kill(self.id, number)

    def inspect(self) -> dict[str, Any]:
        """What is known of the container."""
        from datetime import UTC, datetime

        state = self.state
        return {
            "Id": self.id,
            "Name": self.name,
            "Image": self.row.image_id,
            "ImageName": self.row.image_name,
            "Driver": self.row.driver,
            "Created": datetime.fromtimestamp(self.row.created_seconds, UTC).isoformat(),
            "Command": json.loads(self.row.command) if self.row.command else None,
            "State": state,
            "Root": str(self.root) if state != "created" else None,
            "Upper": self._store._containers.upper(self.id) if self.row.driver == "overlay" else None,
        }

    def _needs_device_rules(self) -> bool:
        """Raises `Unsupported` where there must be some, and cannot."""
        needed = needs_device_rules(self._store._chains.described(self.row.chain_id).devices)
        if needed and not may_use_cgroups():
            raise Unsupported(
                f"image {self.row.image_name} brings device files, and without the right to make control groups "
                "nothing keeps its programs from opening them; run as root of the host"
            )
        return needed

    def _bundle(
        self,
        args: Sequence[str] | None,
        entrypoint: Sequence[str] | None,
        env: Sequence[str] | Mapping[str, str],
        workdir: str | None,
        user: str | None,
        tty: bool,
        network: Literal["host", "none"],
        volumes: Sequence[Volume],
        hostname: str | None,
        device_rules: bool,
    ) -> str:
        spec = runtime_spec(
            self.image.config.document,
            self._store._containers.root(self.id),
            args=args,
            entrypoint=entrypoint,
            env=[f"{key}={value}" for key, value in env.items()] if hasattr(env, "items") else env,
            workdir=workdir,
            user=user,
            tty=tty,
            network=network,
            volumes=volumes,
            hostname=hostname or self.id[:12] if network == "none" else hostname,
            device_rules=device_rules,
        )
        program.check(spec)
        return self._store._containers.write_bundle(self.id, spec)


class _Mounted:
    """What `Container.mount` gives: a path already; inside a with block, one that is unmounted at its end."""

    def __init__(self, container: Container) -> None:
        self._container = container

    def __fspath__(self) -> str:
        return str(self._container.root)

    def __str__(self) -> str:
        return str(self._container.root)

    def __enter__(self) -> Path:
        return self._container.root

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.umount()


def _check_count(count: int | None, name: str | None) -> None:
    if count is not None and (count < 1 or name is not None):
        raise InvalidInput("count is at least 1, and a name goes with one container only")


def _descriptor(file: int | BinaryIO | None, own: int) -> int:
    if file is None:
        return own
    return file if isinstance(file, int) else file.fileno()
