"""What `Store`, `Image` and `Container` do their work with: the parts of an open store, and the images kept at hand."""

from __future__ import annotations

import _thread
import contextlib
import os

from layerstore.api.image import Image
from layerstore.chains.chains import Chains
from layerstore.containers.containers import Containers
from layerstore.errors import CorruptError, InvalidInput, NotFound
from layerstore.mount.shared import Mounts
from layerstore.store.last_use import note_use
from layerstore.store.opened import OpenStore
from layerstore.store.recent import Recent
from layerstore.types import DiffId, ImageId, chain_id, normalise_name, parse_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from layerstore._core.index import Index
    from layerstore.api.handles import Opened
    from layerstore.containers.containers import ContainerRow
    from layerstore.containers.forks import Forks
    from layerstore.containers.moving import Moves
    from layerstore.containers.writable import WritableContainers
    from layerstore.extents.image_tree import ImageTree, PackFiles
    from layerstore.extents.writable_layers import Layers
    from layerstore.limits import Limits
    from layerstore.store.contents import ContentStore
    from layerstore.store.db import Database
    from layerstore.store.layout import Layout

_IMAGES = 1024
"""Whose configs stay in memory."""
_VIEWS = 64
"""Images whose trees stay in memory, where nobody else has them."""


class Engine:
    """The parts of an open store. Those that only some uses need are imported and opened then. Safe for many threads.

    Raises `CorruptError`, `OSError`; nothing is open then.
    """

    def __init__(self, layout: Layout, opened: Opened, derived_limit_bytes: int | None) -> None:
        self.layout = layout
        self.opened = opened
        self.given_limits = opened.limits
        self.store = OpenStore(layout, opened.verify)
        self.chains = Chains(self.store)
        self.mounts = Mounts(layout)
        self.containers = Containers(self.store, self.chains, self.mounts)
        self.layers: Layers | None = None
        self._opening = _thread.allocate_lock()
        self._collections = -1
        self._known_images = Recent(_IMAGES, Image.let_go)
        self._looked_into = Recent(_VIEWS, Image.let_go)
        self._image_trees = Recent(_VIEWS)
        self._image_files: PackFiles | None = None
        try:
            if derived_limit_bytes is not None:
                self.chains.derived.limit_bytes = derived_limit_bytes
            self.containers.forget_lost()
        except BaseException:
            self.mounts.close()
            self.store.close()
            raise

    @property
    def database(self) -> Database:
        return self.store.database

    @property
    def contents(self) -> ContentStore:
        return self.store.contents

    @property
    def limits(self) -> Limits:
        """What is accepted of archives, registries and Dockerfiles."""
        if self.given_limits is None:
            from layerstore.limits import DEFAULT

            self.given_limits = DEFAULT
        return self.given_limits

    @property
    def forks(self) -> Forks:
        from layerstore.containers.forks import Forks

        return Forks(self.store, self.mounts, self.containers)

    @property
    def moves(self) -> Moves:
        from layerstore.containers.moving import Moves

        return Moves(self.store, self.mounts, self.containers, self.writable.layers)

    @property
    def writable(self) -> WritableContainers:
        """Containers of the extent driver."""
        from layerstore.containers.writable import WritableContainers

        if self.layers is None:
            from layerstore.extents.writable_layers import Layers

            with self._opening:
                if self.layers is None:
                    os.makedirs(self.layout.logs, mode=0o700, exist_ok=True)
                    self.layers = Layers(self.store, self._image_tree)
        return WritableContainers(self.store, self.layers)

    def _image_tree(self, image: ImageId) -> ImageTree:
        from layerstore.extents.image_tree import ImageTree, PackFiles

        self._forget_collected()
        tree: ImageTree | None = self._image_trees.get(image)
        if tree is None:
            # Should two threads come here at once, either's will do; and another one may let go of it meanwhile.
            files = self._image_files
            if files is None:
                files = self._image_files = PackFiles()
            made = ImageTree(self.image(image).view, self.contents, files)
            tree = self._image_trees.keep(image, made)
        return tree

    def close(self) -> None:
        """Close all of it, once or more often. Raises `OSError` as `Store.close`; all is closed then, too."""
        try:
            if self.layers is not None:
                self.layers.close()
        finally:
            self.store.close()
            self.mounts.close()
            self._forget_images()
            self.chains.close()

    # Containers

    def mount(self, rows: Sequence[ContainerRow]) -> None:
        """See `Store.mount`."""
        self.containers.mount(rows, self.diff_ids)

    def remove(self, rows: Sequence[ContainerRow], *, force: bool) -> None:
        """See `Store.remove`."""
        if self.layers is not None:
            self.writable.forget(rows)
        self.containers.remove(rows, force=force)

    # Images

    def diff_ids(self, image_id: ImageId) -> Sequence[DiffId]:
        """The layers of an image, bottom first."""
        return self.image(image_id).diff_ids

    def image(self, image_id: str) -> Image:
        # An image never changes, so what was read of it (its config above all) serves later uses, too.
        self._forget_collected()
        known: Image | None = self._known_images.get(image_id)
        if known is None:
            known = self._known_images.keep(image_id, Image(self, ImageId(image_id)))
        return known

    def looked_into(self, image: Image) -> None:
        """Keep its tree in memory, as long as it is one of those that were looked into last."""
        self._looked_into.keep(image.id, image)

    def removed(self, image: Image) -> None:
        """Let go of its tree."""
        self._image_trees.forget(image.id)

    def _forget_collected(self) -> None:
        """Let go of what is kept of images where something was collected: one that is removed would keep its files."""
        collections = self.database.collections()
        if self._collections != collections:
            self._collections = collections
            self._forget_images()

    def _forget_images(self) -> None:
        for image in (*self._known_images.clear(), *self._looked_into.clear()):
            image.let_go()
        self._image_trees.clear()
        self._image_files = None

    def resolve(self, image: Image | str) -> Image:
        return image if isinstance(image, Image) else self.find_image(image)

    def find_image(self, name: str, least_digits: int = 1) -> Image:
        """As `Store.image`; an id without `sha256:` has at least so many digits."""
        return self.find_named(name, least_digits)[0]

    def find_named(self, name: str, least_digits: int = 1) -> tuple[Image, str | None]:
        """The same, and the name that it was found by, None where that is no name of it."""
        db = self.database.read()
        digits = name.removeprefix("sha256:")
        least = 1 if name.startswith("sha256:") else least_digits
        is_id = len(digits) >= least and all(c in "0123456789abcdef" for c in digits)
        if "@" in name:
            query = "SELECT image_id FROM image_blobs WHERE digest = ? AND digest <> image_id LIMIT 2"
            of_it = db.execute(query, (name.partition("@")[2],)).fetchall()
            if len(of_it) == 1:
                return self.image(of_it[0][0]), None
            raise NotFound(
                f"{'several images' if of_it else 'no image here'} came with the digest of {name!r}; "
                "`layerstore images` lists those that are here, `layerstore pull` brings others"
            )
        if not name.startswith("sha256:"):
            query = "SELECT image_id, name FROM names WHERE name = ?"
            row = db.execute(query, (name,)).fetchone()
            if row is None:
                with contextlib.suppress(InvalidInput):
                    row = db.execute(query, (normalise_name(name),)).fetchone()
            if row is not None:
                return self.image(row[0]), row[1]
        if is_id:
            low, high = f"sha256:{digits}", f"sha256:{digits}g"
            rows = db.execute("SELECT image_id FROM images WHERE image_id >= ? AND image_id < ? LIMIT 2", (low, high))
            found = rows.fetchall()
            if len(found) > 1:
                raise InvalidInput(f"more than one image's id begins with {digits!r}; give more digits")
            if found:
                return self.image(found[0][0]), None
        raise NotFound(f"there is no image {name!r}; `layerstore images` lists them, `layerstore load` brings them in")

    # Stacks of layers

    def index(self, chain: Image | str | Sequence[DiffId]) -> Index:
        """The merged index of an image, given by itself, its name or id, or of a stack of stored layers."""
        with self.told_of_removal(chain):
            return self.chains.index(self.stack(chain))

    @contextlib.contextmanager
    def told_of_removal(self, chain: Image | str | Sequence[DiffId]) -> Iterator[None]:
        """Raise `NotFound` where the block misses a layer's index as that was removed meanwhile."""
        try:
            yield
        except CorruptError:
            self.stack(chain)
            raise

    def stack(self, chain: Image | str | Sequence[DiffId]) -> Sequence[DiffId]:
        """Its layers, bottom first. Raises `NotFound` where it, or one of them, is not stored (any more)."""
        if isinstance(chain, Image | str):
            image = self._image_to_compare(chain) if isinstance(chain, str) else chain
            stack = image.diff_ids
            if chain_id(stack) != image.chain_id:
                raise NotFound(f"image {image.short_id} was removed; load it again")
            note_use(self.layout, [image.id])
            return stack
        execute = self.database.read().execute
        for diff_id in chain:
            parse_digest(diff_id, "a layer of a stack")
            if execute("SELECT 1 FROM layers WHERE diff_id = ?", (diff_id,)).fetchone() is None:
                raise NotFound(f"there is no layer {diff_id}; `layerstore inspect IMAGE` lists those of an image")
        return chain

    def _image_to_compare(self, name: str) -> Image:
        """The image of that name or id; who names a container instead is told so."""
        try:
            return self.find_image(name)
        except NotFound as missing:
            try:
                container = self.containers.find(name)
            except (NotFound, InvalidInput):
                raise missing from None
        raise InvalidInput(
            f"{name!r} is a container of {container.image_name}, and images are compared with images; "
            f"`layerstore diff {name}` shows what it changed"
        )
