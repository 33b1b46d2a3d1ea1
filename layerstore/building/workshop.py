"""What all stages of one build share: the store, the options, the cache, what is told of the progress."""

from __future__ import annotations

import contextlib
import os
import threading
import time

from layerstore.building.leftovers import Leftovers
from layerstore.building.steps import Steps
from layerstore.errors import BuildFailed, InvalidInput, LayerstoreError, NotFound
from layerstore.oci.configs import parse_config, time_of_making
from layerstore.results import BuildEvent
from layerstore.store.db import SET_NAME
from layerstore.store.locks import Claims
from layerstore.types import ImageId, Value, chain_id, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import Literal

    from layerstore._core.index import Index
    from layerstore.building.state import State
    from layerstore.building.steps import Step
    from layerstore.chains.chains import Chains
    from layerstore.containers.bundle import Volume
    from layerstore.containers.confinement import Confinement
    from layerstore.containers.containers import ContainerRow, Containers
    from layerstore.layers.imports import Import
    from layerstore.limits import Limits
    from layerstore.oci.configs import ImageConfig
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Clone, Entry
    from layerstore.types import DiffId


class Stopped(BaseException):
    """The build ends: another stage failed, or it was interrupted."""


class Options(Value):
    """What a build is asked for beside its context and file; see `layerstore.Store.build`."""

    names: Sequence[str]
    target: str | None
    arguments: Mapping[str, str]
    no_cache: bool
    network: Literal["host", "none"]
    volumes: Sequence[Volume]
    secrets: Mapping[str, str]
    limits: Limits
    confinement: Confinement


class Workshop:
    """Safe for the threads of the build."""

    def __init__(
        self,
        store: OpenStore,
        chains: Chains,
        containers: Containers,
        find_image: Callable[[str], ImageConfig],
        options: Options,
        progress: Callable[[BuildEvent], None] | None,
    ) -> None:
        self.store = store
        self.layout = store.layout
        self.database = store.database
        self.containers = containers
        self.chains = chains
        self.find_image = find_image
        self.options = options
        self.leftovers = Leftovers(store, containers)
        self.steps = Steps(store)
        self.epoch = os.environ.get("SOURCE_DATE_EPOCH") or None
        if self.epoch is not None:
            time_of_making()  # a wrong one is told before anything is done
        self._progress = progress
        self._telling = threading.Lock()
        self._lock = threading.Lock()
        self._stopped = False
        self._running: set[str] = set()

    def tell(self, event: BuildEvent) -> None:
        """Call the caller's callback, one thread at a time."""
        if self._progress is not None:
            with self._telling:
                self._progress(event)

    def now_ns(self) -> int:
        """The time of what a step makes, nanoseconds: SOURCE_DATE_EPOCH where that is set."""
        return time.time_ns() if self.epoch is None else int(self.epoch) * 10**9

    def clamped(self, entries: Iterable[Entry]) -> Iterator[Entry]:
        """Entries as a layer has them: where SOURCE_DATE_EPOCH is set, no time is later. Raises `Stopped`."""
        latest = None if self.epoch is None else int(self.epoch) * 10**9
        for entry in entries:
            self.check()
            if latest is not None and entry.mtime_ns > latest:
                entry.mtime_ns = latest
            yield entry

    # Stopping

    def check(self) -> None:
        """Raise `Stopped` where the build is to end."""
        if self._stopped:
            raise Stopped

    def stop(self) -> None:
        """Have the stages end, and the programs that run in their containers. To be called until they have."""
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for container in running:
            with contextlib.suppress(LayerstoreError):  # it is about to start, or has ended
                self.containers.runtime().kill(container, 9)

    @contextlib.contextmanager
    def running(self, container: str) -> Iterator[None]:
        """A program runs in a container. Raises `Stopped`."""
        with self._lock:
            self.check()
            self._running.add(container)
        try:
            yield
        finally:
            with self._lock:
                self._running.discard(container)

    # Images

    def index(self, diff_ids: Sequence[DiffId]) -> Index:
        """The merged index of stored layers."""
        return self.chains.index(diff_ids)

    def has_image(self, image: ImageId) -> bool:
        query = "SELECT 1 FROM images WHERE image_id = ?"
        return self.database.read().execute(query, (image,)).fetchone() is not None

    def set_names(self, image: ImageId) -> None:
        """Give the image the names asked for."""
        read = self.database.read().execute
        query = "SELECT 1 FROM names WHERE name = ? AND image_id = ?"
        missing = [name for name in self.options.names if read(query, (name, image)).fetchone() is None]
        if missing:
            with self.database.transaction() as db:
                if db.execute("SELECT 1 FROM images WHERE image_id = ?", (image,)).fetchone() is None:
                    raise NotFound("the image was removed while it was built; build again")
                db.executemany(SET_NAME, [(name, image) for name in missing])

    @contextlib.contextmanager
    def mounted(self, image: ImageId, shown: str, diff_ids: Sequence[DiffId]) -> Iterator[ContainerRow]:
        """A container of an image, mounted for the block. Raises `Unsupported`, `OSError`."""
        chain = self.chains.mountable(chain_id(diff_ids), lambda: diff_ids)
        name = self.leftovers.container_name()
        (row,) = self.containers.create(image, shown, chain, 1, name, True)
        try:
            self.containers.mount([row], lambda _image: diff_ids)
            yield row
        finally:
            # It stays among the leftovers where it cannot be removed now.
            self.containers.remove([row], force=True)
            self.leftovers.forget_container(name)


class Staged:
    """The layers that a stage has made and that are not in the store yet. A context manager, of one thread.

    The steps that it makes are claimed until their layers are in the store: other builds that need one wait for it.
    """

    def __init__(self, shop: Workshop) -> None:
        self._shop = shop
        self._importing: Import | None = None
        self._has_layers = False
        self._claims: Claims | None = None
        self._making: str | None = None
        self._made: list[str] = []

    def __enter__(self) -> Staged:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._drop()
        finally:
            if self._claims is not None:
                self._claims.close()

    def _drop(self) -> None:
        importing, self._importing, self._has_layers = self._importing, None, False
        made, self._made = self._made, []
        try:
            if importing is not None:
                importing.__exit__(None, None, None)
        finally:
            if self._claims is not None:
                self._claims.release(made)

    def find_or_claim(self, key: str, state: State) -> Step | None:
        """The step of a key; None where there is none, and this stage, which is `state`, is to make it: `made` says
        that it has. Waits while another build makes it. Raises `Stopped`, and as `publish`."""
        steps = self._shop.steps
        step = steps.find(key)
        if step is not None:
            return step
        if self._claims is None:
            self._claims = Claims(self._shop.layout.steps_lock)
        if not self._claims.try_take(key):
            # Who waits holds nothing that another could wait for.
            if self._has_layers:
                self.publish(state)
            self._drop()
            self._claims.take_between(key, self._shop.check)
            step = steps.find(key)
            if step is not None:
                self._claims.release([key])
                return step
        self._making = key
        return None

    def made(self, step: Step) -> None:
        """The step that was claimed is done, and noted."""
        key, self._making = self._making, None
        if key is not None and self._claims is not None:
            if step.diff_id is not None and self._has_layers:
                self._made.append(key)
            else:
                self._claims.release([key])

    @property
    def has_layers(self) -> bool:
        return self._has_layers

    def add(self, entries: Iterable[Entry]) -> DiffId:
        """Make a layer of entries, no time later than SOURCE_DATE_EPOCH. Raises as `add_tar`."""
        from layerstore.trees.tarring import tar_pieces

        return self.add_tar(lambda clone: tar_pieces(self._shop.clamped(entries), clone))

    def add_tar(self, write: Callable[[Clone], Iterable[Piece]]) -> DiffId:
        """Make a layer. Raises as `Import.add_tar`; the layers staged before are lost then."""
        importing = self._begun()
        try:
            layer = importing.add_tar(write)
        except BaseException:
            self._drop()
            raise
        self._has_layers = True
        return layer.diff_id

    def publish(self, state: State, *, is_result: bool = False) -> ImageId:
        """Have the image that a stage is now in the store, with its layers. Durable where it is the build's result,
        which gets the names asked for; others are taken away when the build has ended. Raises `OSError`."""
        if state.image_id is not None:
            if is_result:
                self._shop.set_names(state.image_id)
            return state.image_id
        data = state.document()
        config = parse_config(data)
        leftovers = self._shop.leftovers
        with leftovers.images_locked():
            if not self._shop.has_image(config.image_id):
                if not is_result:
                    leftovers.note_image(config.image_id)
                self._commit(config, data, self._shop.options.names if is_result else ())
            if is_result:
                leftovers.keep_image(config.image_id)
        self._drop()
        if is_result:
            self._shop.set_names(config.image_id)
        return config.image_id

    def _commit(self, config: ImageConfig, data: bytes, names: Sequence[str]) -> None:
        importing = self._begun()
        importing.add_image(config, names, {sha256_digest(data): data})
        importing.commit()

    def _begun(self) -> Import:
        from layerstore.layers.imports import Import

        if self._importing is None:
            self._importing = Import(self._shop.store).__enter__()
        return self._importing


def with_line(error: BaseException, name: str, line: int) -> BaseException:
    """The error as it is told of a line of a Dockerfile."""
    place = f"{name}:{line}"
    if isinstance(error, InvalidInput) and str(error).startswith(f"{name}:"):
        return error
    if isinstance(error, BuildFailed):
        return BuildFailed(f"{place}: {error}", error.status)
    if isinstance(error, LayerstoreError):
        return type(error)(f"{place}: {error}")
    error.add_note(place)
    return error
