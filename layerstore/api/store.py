"""A store: images and containers in one directory."""

from __future__ import annotations

import contextlib
import os
from functools import partial

from layerstore.api import handles
from layerstore.api.container import Container
from layerstore.api.engine import Engine
from layerstore.api.image import Image
from layerstore.containers.containers import check_count
from layerstore.errors import Conflict, CorruptError, InvalidInput, LayerstoreError, NotFound, Unsupported
from layerstore.store.db import SET_NAME
from layerstore.store.last_use import note_use
from layerstore.store.layout import POOL_NAME, Layout, absolute, make_private
from layerstore.types import DiffId, ImageId, normalise_name

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from pathlib import Path
    from typing import Any, BinaryIO, Literal, TypeAlias, overload

    from layerstore.cold.encoding import Compression
    from layerstore.cold.tiering import Tiering
    from layerstore.containers.bundle import Volume
    from layerstore.limits import Limits
    from layerstore.oci.configs import ImageConfig
    from layerstore.results import (
        BuildEvent,
        Change,
        CheckReport,
        DedupStats,
        Frozen,
        ProgressCallback,
        Pruned,
        Synced,
        Usage,
    )
    from layerstore.space.garbage import Collected
    from layerstore.store.contents import Verify
    from layerstore.store.pool import Pool
    from layerstore.sync.channel import Channel
    from layerstore.types import Digest
    from layerstore.views.view import View

    Driver: TypeAlias = Literal["overlay", "extent"]


class Store(handles.Handle):
    """A store of images and containers in one directory. Safe for many threads; many processes may have it open.

    A process that has one open must not go on with it on both sides of `os.fork`, nor open it again in the child:
    SQLite, which the database is, keeps its locks for the process. Start other processes by `subprocess`, or
    `multiprocessing` with "spawn" or "forkserver", or fork before one is opened (sqlite.org/howtocorrupt.html, 2.6).

    Stores, images and containers are equal where they are of the same directory and id, and can be pickled: the process
    that unpickles one opens the store.

    Args:
        root: the directory.
        create: make the store if there is none. One whose making was interrupted is finished without it, too.
        derived_limit_bytes: what merged indexes and tree images may take on disk. It is the store's from then on, for
            every process and command; where none was ever given, 4 GiB. They are made when first needed; where they
            exceed it, those that were not used for longest are removed, and made again when needed again.
        limits: what is accepted of archives, registries and Dockerfiles (`layerstore.Limits`).
        pool_bytes: when it is made on a file system without reflink, give it a pool of this size: a file system of its
            own in a sparse file (needs root and mkfs.xfs). With reflink none is needed, and none is made: see `pool`.
        verify: when the content of a file of an image is hashed before its first byte is given out, whatever asks for
            it here: "always", each time that it is opened or read; "first", the first time in this process, and again
            once garbage was collected; "never". One that is not what its digest says raises `CorruptError`. What a
            mounted container shows is read by the kernel, and never verified.

    Raises:
        NotFound: there is no store and `create` is false.
        InvalidInput: the directory holds something else, or is open to other users; the pool is too small, the limit
            below 0, or `verify` none of these.
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
        verify: Verify = "never",
        limits: Limits | None = None,
    ) -> None:
        if verify not in ("always", "first", "never"):
            raise InvalidInput(f"contents are verified 'always', 'first' or 'never', not {verify!r}")
        self._verify: Verify = verify
        self._root = absolute(root)
        self._limits = limits
        self.pool = self._find_pool(create, pool_bytes)
        if self.pool is None:
            self._open(self._root, create, derived_limit_bytes)
            return
        try:
            with self.pool.attached():
                # A pool is made for nothing else, so in an empty one a store was to be made.
                self._open(self.pool.target, create or not os.listdir(self.pool.target), derived_limit_bytes)
        except BaseException:
            self._let_go()
            raise

    def _find_pool(self, create: bool, pool_bytes: int | None) -> Pool | None:
        if pool_bytes is None and not Layout(self._root).has(f"{POOL_NAME}.img"):
            return None
        from layerstore.store.pool import Pool
        from layerstore.store.reflink import has_reflink

        pool = Pool(self._root)
        if pool_bytes is not None and create and not pool.exists():
            make_private(self._root)
            if has_reflink(self._root):
                return None
            pool.create(pool_bytes)
        return pool if pool.exists() else None

    def _open(self, root: str, create: bool, derived_limit_bytes: int | None) -> None:
        self.layout = Layout(root)
        if create and not self.layout.exists():
            self.layout.create()
        self.layout.finish()
        self.layout.check()
        self.layout.check_database()
        opened = handles.Opened(self._root, self._verify, self._limits)
        self._engine = Engine(self.layout, opened, derived_limit_bytes)

    def __repr__(self) -> str:
        return f"<Store {self._root}>"

    def _handle(self) -> tuple[Callable[..., Store], tuple[handles.Opened]]:
        return handles.store, (self._engine.opened,)

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
    def limits(self) -> Limits:
        """What is accepted of archives, registries and Dockerfiles, as it was given when the store was opened."""
        return self._engine.limits

    @property
    def derived_limit_bytes(self) -> int:
        """What merged indexes and tree images may take on disk, as it was given last by any process."""
        return self._engine.chains.derived.limit_bytes

    def close(self) -> None:
        """Close the database, once or more often. Mounted containers stay mounted; what was written to containers of
        the extent driver is handed to the system, and other processes may write to them.

        A pool is detached when nobody else uses it: no other store, no mounted container, no content still open.
        Raises `OSError`, of the first container of which something could not be handed over; it is closed then, too.
        """
        try:
            self._engine.close()
        finally:
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

        ids = loading.load(self._engine.store, source, progress, self.limits)
        return [self._engine.image(image_id) for image_id in ids]

    def import_rootfs(
        self, source: str | os.PathLike[str] | BinaryIO, name: str, *, progress: ProgressCallback | None = None
    ) -> Image:
        """Make an image of one layer from the tar of a root file system, compressed with gzip or zstd or not.

        The image has no command. Its creation time is SOURCE_DATE_EPOCH where that is set. Raises as `load`.
        """
        from layerstore.layers import loading
        from layerstore.oci.configs import time_of_making

        created = time_of_making()
        image_id = loading.import_rootfs(
            self._engine.store, source, normalise_name(name), created, progress, self.limits
        )
        return self._engine.image(image_id)

    def build(
        self,
        context: str | os.PathLike[str],
        *,
        dockerfile: str | os.PathLike[str] | None = None,
        names: Sequence[str] = (),
        target: str | None = None,
        build_args: Mapping[str, str] | None = None,
        no_cache: bool = False,
        network: Literal["host", "none"] = "host",
        volumes: Sequence[Volume] = (),
        secrets: Mapping[str, str | os.PathLike[str]] | None = None,
        pull: Literal["missing", "never"] = "missing",
        security_opt: Sequence[str] = (),
        pids_limit: int | None = None,
        cgroups: Literal["enabled", "disabled"] = "enabled",
        progress: Callable[[BuildEvent], None] | None = None,
    ) -> Image:
        """Build an image by a Dockerfile.

        Each step is taken from the cache where the same step on the same chain, reading the same content (names, modes
        and owners included, times not) and seeing the same of the config, was done before, in whatever build. What is
        in the cache lasts as long as images need its layers, and after that until garbage is collected: the steps of
        the result stay with it, those of other stages are done again after a collection. With SOURCE_DATE_EPOCH set no
        time in a new layer is later than that, and the same build gives the same bytes.

        Args:
            context: the directory that COPY and ADD read; its .dockerignore leaves files out.
            dockerfile: the file, "-" for standard input; by default "Dockerfile" in the context.
            names: `NAME[:TAG]` of the image; one that another image has moves here.
            target: the stage to build, a name or number; by default the last one. Stages that it does not need are not
                built; up to two that do not wait for each other are built at once.
            build_args: values for ARG.
            no_cache: do every step, and remember what they made in place of what was remembered.
            network: of RUN: "host", where it does not ask for "none", or "none", where asking for "host" is refused.
            volumes: shown to every RUN; they are in no layer and no key of the cache.
            secrets: files for `RUN --mount=type=secret,id=...`, by id.
            pull: whether images that are not in the store are brought from their registries, as by `pull`.
            security_opt, pids_limit, cgroups: of RUN, as of `Container.run`; they are in no key of the cache.
            progress: called with what happens, in threads of the build, one at a time. An exception that it raises ends
                the build. Without it, output of commands is lost.

        RUN needs root and an OCI runtime, the rest of a build neither. Durable on return. When it fails or is
        interrupted, no container, mount or image is left, and the steps that were done are in the cache. Garbage
        collection waits for builds. Safe for many threads and processes.

        Raises, with the file's name and line where they are of one:
            InvalidInput: the Dockerfile, .dockerignore or an argument is wrong.
            NotFound: an image, stage, file or secret is not there.
            BuildFailed: a command ended with another status than 0.
            Conflict: a file of the context changed while it was read.
            Unsupported: no OCI runtime, or no right to mount.
            ProgramNotFound, ProgramNotExecutable, LimitExceeded, CorruptError, OSError, and what `pull` does.
        """
        from layerstore.building import builder
        from layerstore.building.workshop import Options, Workshop
        from layerstore.containers.confinement import confined

        if network not in ("host", "none"):
            raise InvalidInput(f"RUN has the network 'host' or 'none', not {network!r}")
        options = Options(
            [normalise_name(name) for name in names],
            target,
            build_args or {},
            no_cache,
            network,
            volumes,
            {name: os.fspath(path) for name, path in (secrets or {}).items()},
            self.limits,
            confined(security_opt=security_opt, pids_limit=pids_limit, cgroups=cgroups),
        )
        shop = Workshop(
            self._engine.store,
            self._engine.chains,
            self._engine.containers,
            partial(self._config_for_build, pull),
            options,
            progress,
        )
        file = None if dockerfile is None else os.fspath(dockerfile)
        built = self._engine.image(builder.build(shop, os.fspath(context), file))
        note_use(self.layout, [built.id])  # which may have been there before
        return built

    def _config_for_build(self, pull: str, name: str) -> ImageConfig:
        try:
            # Fewer digits are more likely a stage's name with a slip in it.
            found = self._engine.find_image(name, 12)
            note_use(self.layout, [found.id])
            return found.config
        except NotFound:
            if pull == "never":
                raise
        try:
            return self.pull(name).config
        except LayerstoreError as error:
            raise type(error)(f"the store has no image {name}, and it cannot be pulled: {error}") from error

    def pull(
        self,
        name: str,
        *,
        platform: str | None = None,
        plain_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> Image:
        """Download an image from a registry: `NAME[:TAG]` or `NAME@sha256:...`. With a tag it gets that name.

        Args:
            platform: OS/ARCHITECTURE[/VARIANT]; by default this machine's, where the name stands for images of several.
            plain_http: speak HTTP without TLS, for which a registry of this machine itself needs no permission.
            ca_file: a file of certificates (PEM) of authorities that are trusted beside the system's.
            progress: called from several threads, one at a time.

        Layers that are stored are not fetched, files that are stored not written again. Several layers are fetched at
        once; each goes on where its connection broke, and is verified as it is stored. All becomes visible at once. Of
        a pull that fails nothing is visible, but what it has fetched is there for the next one, until garbage is
        collected. Credentials are those that docker and podman keep.

        Raises:
            NotFound: there is no such image, or not for this platform.
            AccessDenied: the registry wants other credentials.
            RegistryError: it cannot be reached, or fails again and again.
            DigestMismatch, CorruptError: bytes are not what was promised for them.
            InvalidInput: it is no name or no platform; or the registry has what is no image that is read here.
            LimitExceeded, OSError.
        """
        from layerstore.registry.client import Client
        from layerstore.registry.platforms import parse_platform
        from layerstore.registry.pulling import pull
        from layerstore.registry.references import parse_reference

        reference = parse_reference(name)
        wanted = None if platform is None else parse_platform(platform)
        with Client(reference, plain_http=plain_http, ca_file=ca_file) as client:
            image = pull(self._engine.store, client, reference, wanted, progress, self.limits)
            return self._engine.image(image)

    def push(
        self,
        image: Image | str,
        name: str | None = None,
        *,
        plain_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        progress: ProgressCallback | None = None,
    ) -> Digest:
        """Upload an image to a registry as `name`, by default the name that it is given by; returns the digest of
        its manifest there. `plain_http`, `ca_file` and `progress` are as for `pull`.

        Layers that the repository has are not sent, those of another repository of the registry are mounted; what is
        sent is compressed with gzip as it is read. The manifest is of the specification, OCI's or docker's, that the
        image came with; it is the very manifest it came with where the registry has the very blobs of that.

        Raises `NotFound`, `AccessDenied`, `RegistryError`, `CorruptError` for a layer that is damaged in the store,
        `InvalidInput`, `OSError`. The tag is set last: it stands for the whole image or is as it was.
        """
        from layerstore.registry.client import Client
        from layerstore.registry.pushing import push
        from layerstore.registry.references import parse_reference

        found = self._engine.resolve(image)
        target = name if name is not None else image if isinstance(image, str) else next(iter(found.names), "")
        reference = parse_reference(target)
        with Client(reference, plain_http=plain_http, ca_file=ca_file) as client:
            return push(self._engine.store, client, reference, found.config, found.layer_tar, progress)

    def save(
        self,
        images: Image | str | Iterable[Image | str],
        target: str | os.PathLike[str] | BinaryIO,
        *,
        format: Literal["docker-archive", "oci-archive", "oci"] = "docker-archive",
        compression: Literal["none", "gzip", "zstd"] = "none",
        progress: ProgressCallback | None = None,
    ) -> None:
        """Write images, whose layers are the very tars that came in, each once whatever number of images has it.

        An image that is given by a name has that name there, one given by an id none, an `Image` all its names.

        Args:
            target: a path, or for an archive a binary stream. A file there is replaced; a directory has to be empty.
                Either is there, whole and durable, on return, and not at all when this raises.
            format: "docker-archive", what `docker save` has written since version 25: an OCI layout that older versions
                load, too; "oci-archive", an OCI layout as a tar; "oci", one in a directory. podman loads a layout of
                one name only.
            compression: of the layers. docker before version 23 does not load zstd.
            progress: called from a thread of its own, for one layer after the other.

        Equal images give equal bytes. Layers that are compressed to a stream take space in the store meanwhile, one at
        a time. Collecting garbage waits for this.

        Raises:
            NotFound, InvalidInput: there is no such image; the target is no such thing.
            CorruptError: what the store has of a layer is missing or damaged.
            OSError.
        """
        from layerstore.layers import saving

        chosen: dict[ImageId, list[str]] = {}
        for image in [images] if isinstance(images, (Image, str)) else images:
            found, name = (image, None) if isinstance(image, Image) else self._engine.find_named(image)
            names = chosen.setdefault(found.id, [])
            given = found.names if isinstance(image, Image) else [name]
            names += [name for name in given if name is not None and name not in names]
        if not chosen:
            raise InvalidInput("no image was given to save; `layerstore images` lists them")
        layer_index = self._engine.chains.layer_index
        with contextlib.ExitStack() as stack:
            for image_id in chosen:  # one may be removed, and collected, before the garbage lock is had
                stack.enter_context(self._engine.told_of_removal(self._engine.image(image_id)))
            saving.save(self.layout, self._engine.contents, layer_index, chosen, target, format, compression, progress)

    def sync(
        self,
        images: Image | str | Iterable[Image | str],
        to: str | os.PathLike[str],
        *,
        program: str = "layerstore",
        timeout_seconds: float | None = 300,
        progress: ProgressCallback | None = None,
    ) -> Synced:
        """Copy images to another store, with all their names; a name that another image has there moves.

        Args:
            to: the directory of the other store, which is made where there is none; or `ssh://[USER@]HOST[:PORT][/DIR]`,
                which runs `layerstore receive` there, on the store in that directory or on the one that it uses by
                itself. $LAYERSTORE_SSH is what runs it, `ssh` by default.
            program: layerstore's name on the other machine, or its path.
            timeout_seconds: how long the other side may say nothing, 10 or more; None: for ever. A side that works, or
                waits for a lock, says so every few seconds. The other side has the same patience with this one.
            progress: see `Progress`.

        Layers that are there are not sent. Of the others go names, attributes and the contents that the other side
        lacks: as differences from others that both stores have, or in chunks, compressed. There each layer is put
        together and verified as one that is loaded, and an image becomes visible, and durable, with all of it. Images
        come one after the other: of a sync that fails those before are there, and what was sent of the next is not sent
        again, unless garbage is collected there. What is frozen stays so. Collecting garbage waits, here and there.

        Raises:
            NotFound, InvalidInput: there is no such image; it is no destination.
            SyncError: the other side cannot be reached, ends too soon, or is silent for too long.
            CorruptError: what the store has of an image is damaged; or it came damaged, and the message says so.
            DigestMismatch, LimitExceeded, Unsupported, OSError.
        """
        from layerstore.sync.channel import check_timeout
        from layerstore.sync.destinations import in_thread, over_ssh, parse_destination
        from layerstore.sync.sending import send

        check_timeout(timeout_seconds)
        chosen = list(dict.fromkeys(image.id for image in self._given(images)))
        name = os.fspath(to)
        remote = parse_destination(name)
        with contextlib.ExitStack() as stack:
            if remote is not None:
                changed = self.limits.changes()
                channel = stack.enter_context(over_ssh(remote, program, changed, name, timeout_seconds))
            else:
                other = stack.enter_context(Store(to, create=True, limits=self._engine.given_limits))
                channel = stack.enter_context(in_thread(other._receive, name, timeout_seconds))
            return send(self._engine.store, self._engine.chains, chosen, channel, progress)

    def receive(self, reading: int, writing: int, *, timeout_seconds: float | None = 300) -> bool:
        """Take in what `sync` of another store sends, which is what `layerstore receive` does.

        Args:
            reading, writing: descriptors, of what comes from there and what goes there; they are closed.
            timeout_seconds: as of `sync`.

        Returns whether all is here; if not, the other side was told why. Raises what it could not be told.
        """
        from layerstore.sync.channel import Channel

        with contextlib.closing(Channel(reading, writing, "the side that sends", timeout_seconds)) as channel:
            return self._receive(channel)

    def _receive(self, channel: Channel) -> bool:
        from layerstore.sync.receiving import receive

        return receive(self._engine.store, self._engine.chains, channel, self.limits)

    def images(self) -> list[Image]:
        """Every image, newest in the store first."""
        query = "SELECT image_id FROM images ORDER BY stored_seconds DESC, image_id"
        return [self._engine.image(image_id) for (image_id,) in self._engine.database.read().execute(query)]

    def image(self, name: str) -> Image:
        """The image of that name (`NAME[:TAG]`) or id (whole or an unambiguous beginning, with or without `sha256:`).

        `NAME@sha256:...` is the image that came with that manifest or index, whatever its name.
        Raises `NotFound`, `InvalidInput` when ambiguous.
        """
        return self._engine.find_image(name)

    def _given(self, images: Image | str | Iterable[Image | str]) -> list[Image]:
        """Raises as `image`."""
        return [self._engine.resolve(each) for each in ([images] if isinstance(images, (Image, str)) else images)]

    def tag(self, image: Image | str, name: str) -> None:
        """Give the image one more name; a name that another image has moves here."""
        with self._engine.database.transaction() as db:
            found = self._engine.resolve(image)
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
        with self._engine.database.transaction() as db:
            # In here, or another process that moves the name meanwhile would lose the image that has it then.
            image, by_name = self._engine.find_named(name)
            done = self._remove_image(db.execute, image, name, by_name, force)
        self._engine.removed(image)
        return done

    def _remove_image(
        self, execute: Callable[..., Any], image: Image, name: str, by_name: str | None, force: bool
    ) -> list[str]:
        names = [n for (n,) in execute("SELECT name FROM names WHERE image_id = ? ORDER BY name", (image.id,))]
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

        return changes(self._engine.index(a), self._engine.index(b))

    def view(self, diff_ids: Sequence[DiffId]) -> View:
        """The merged tree of a stack of stored layers, bottom first, to look into without mounting it.

        Raises `NotFound` for a layer that is not stored, `InvalidInput` where one has a hard link to what those below
        it do not show, `CorruptError`.
        """
        from layerstore.views.view import View

        return View(self._engine.index(diff_ids), self._engine.contents)

    @property
    def tiering(self) -> Tiering:
        """The store's policy of freezing, every process's: what `collect_garbage` freezes, by default nothing.

        Set to another, it is durable.
        """
        from layerstore.cold.tiering import tiering

        return tiering(self._engine.database)

    @tiering.setter
    def tiering(self, policy: Tiering) -> None:
        from layerstore.cold.tiering import set_tiering

        set_tiering(self._engine.database, policy)

    def collect_garbage(
        self, *, derived_limit_bytes: int | None = None, progress: ProgressCallback | None = None
    ) -> Collected:
        """Give back the space of what nothing uses any more, a pool's to the host; waits for loads that are under way.

        Before that, images are frozen that were not used for as long as `tiering` says, which `progress` tells of. That
        this fails, as on a full disk, keeps nothing from being given back: `Collected.not_frozen`.

        Derived files are brought under `derived_limit_bytes`, by default the store's limit (`evict_derived`).
        Raises `OSError`, `CorruptError`; it can be run again then.
        """
        from layerstore.space.garbage import Collected

        frozen, failed = None, None
        try:
            frozen = self._freeze_unused(progress)
        except (LayerstoreError, OSError) as error:
            failed = error
        collected = self._collect(derived_limit_bytes)
        return Collected(collected.contents, collected.freed_bytes, frozen, failed)

    def _freeze_unused(self, progress: ProgressCallback | None) -> Frozen | None:
        from layerstore.cold.tiering import tiering

        policy = tiering(self._engine.database)
        if policy.unused_for_seconds is None:
            return None
        from layerstore.cold.freezing import unused_images

        if not unused_images(self._engine.store, policy.unused_for_seconds):
            return None
        return self._freeze(None, policy.unused_for_seconds, policy.compression, progress)

    def _freeze(
        self,
        among: Collection[ImageId] | None,
        unused_for_seconds: float,
        compression: Compression,
        progress: ProgressCallback | None,
    ) -> Frozen:
        """Without a collection of garbage."""
        from layerstore.cold.freezing import freeze

        where = self._engine.store, self._engine.chains
        return freeze(*where, among, unused_for_seconds, compression, progress)

    def _collect(self, derived_limit_bytes: int | None = None) -> Collected:
        from layerstore.building.leftovers import Leftovers
        from layerstore.building.steps import Steps
        from layerstore.space import garbage

        Leftovers(self._engine.store, self._engine.containers).clear()
        self._engine.containers.forget_groups()
        with contextlib.suppress(Unsupported):  # whoever may not unmount
            self._engine.containers.release_unused()
        self._engine.forks.clear()
        collected = garbage.collect(self._engine.store, self._engine.chains, derived_limit_bytes)
        Steps(self._engine.store).sweep()
        if self.pool is not None:
            self.pool.trim()
        return collected

    def freeze(
        self,
        images: Image | str | Iterable[Image | str] | None = None,
        *,
        unused_for_seconds: float = 0,
        compression: Compression | None = None,
        progress: ProgressCallback | None = None,
    ) -> Frozen:
        """Keep images compressed that are not in use, by what differs from others that are stored; and collect garbage.

        Args:
            images: which; without it all that no container uses.
            unused_for_seconds: of these, only such as came into the store, had a container, were built upon or looked
                into (`Image.view`), or thawed longer ago.
            compression: "zstd", or "lz4", which is larger and read faster; by default what `tiering` says.
            progress: called with the bytes of contents that were written.

        What a frozen image has can be read as before, `Image.view` and all that reads by it. To mount it, or to make a
        container of it, brings its contents back (`thaw`). What an image needs that is not frozen stays as it is.
        Durable on return; interrupted, it can be done again.

        Raises `Conflict` where a container uses one of `images`, `NotFound`, `CorruptError`, `OSError`.
        """
        among = None if images is None else [image.id for image in self._given(images)]
        how = self.tiering.compression if compression is None else compression
        done = self._freeze(among, unused_for_seconds, how, progress)
        self._collect()
        return done

    def thaw(self, images: Image | str | Iterable[Image | str]) -> int:
        """Bring back the contents of frozen images; returns how many bytes of contents that was. Durable on return.

        Raises `NotFound`, `CorruptError`, `OSError`.
        """
        from layerstore.layers.thawing import thaw
        from layerstore.store import locks

        brought = 0
        for image in self._given(images):
            with locks.garbage(self.layout):
                stack = self._engine.stack(image)
                table = self._engine.chains.index(stack).contents_bytes()
                brought += thaw(self._engine.store, stack, table)
        return brought

    def usage(self) -> Usage:
        """What images, containers and the rest take, and what of it would be given back. Waits for a collection of
        garbage that is under way. It takes time in proportion to the contents of distinct layers, whatever number of
        images has them. Raises `CorruptError` where the index of a layer is missing or damaged, `OSError`."""
        from layerstore.space.usage import usage

        def states() -> dict[str, str]:
            rows = self._engine.containers.all()
            return dict(zip((row.id for row in rows), self._engine.containers.states(rows), strict=True))

        return usage(self._engine.store, self._engine.chains, states)

    def dedup_stats(
        self, images: Image | str | Iterable[Image | str] | None = None, *, sample_bytes: int = 256 << 20
    ) -> DedupStats:
        """What it saves to store images as they are: each layer once, each file once, compressed once frozen; and what
        freezing those of them would save that no container uses.

        Args:
            images: which; without it all. What they have in common with others does not count.
            sample_bytes: of how many bytes of contents, about, is found out what freezing makes of them, which takes as
                long as to freeze so many; the rest is taken to be like it. 0: it is not estimated.

        Waits for a collection of garbage that is under way. Raises `NotFound`, `CorruptError`, `OSError`.
        """
        from layerstore.space.dedup import dedup_stats

        among = None if images is None else {image.id for image in self._given(images)}
        return dedup_stats(self._engine.store, self._engine.chains, among, sample_bytes)

    def prune(
        self,
        *,
        named: bool = False,
        containers: bool = False,
        older_than_seconds: float = 60,
        dry_run: bool = False,
    ) -> Pruned:
        """Remove images that have no name and no container, and collect garbage.

        Args:
            named: images that have names too, unless a container uses them.
            containers: before that, containers that are neither mounted nor open, with all that was written to them.
            older_than_seconds: what came into the store since then stays: somebody may be about to use it.
            dry_run: remove nothing, and say what would be, and the bytes of contents that it would give back.

        An image that was pulled by its digest has no name: `tag` it to keep it. Waits for loads, builds and creations
        that are under way. Durable on return. Raises as `collect_garbage`.
        """
        from layerstore.api.pruning import prune

        return prune(
            self._engine,
            self.collect_garbage,
            named=named,
            containers=containers,
            older_than_seconds=older_than_seconds,
            dry_run=dry_run,
        )

    def check(
        self,
        images: Image | str | Iterable[Image | str] | None = None,
        *,
        quick: bool = False,
        repair: bool = False,
        progress: ProgressCallback | None = None,
    ) -> CheckReport:
        """Compare everything in the store with its digests, or what these images need.

        Args:
            quick: of contents of files compare the size alone.
            repair: make what is derived again, and the database of what agrees with the files; take what else is
                damaged to the directory `quarantine` in the store; and have layers that lack something read again by
                the next load, pull or build, which stores what is missing and nothing else. What is mounted stays so.
                It can be interrupted at any moment, and done again.
            progress: called, from several threads one at a time, with the bytes of contents that were compared.

        Without `repair` others may import, run and write meanwhile, and garbage collection waits; with it imports and
        creations of containers wait, too. The files of containers of the overlay driver are the user's, and are not
        looked at. A store that cannot be opened is for `layerstore.check_store`.

        Raises `NotFound` where there is no such image, `InvalidInput` for a repair that is quick or of some images,
        `Conflict` where the database is to be made anew and another process has it open, `OSError`.
        """
        from layerstore.checking import checker

        if repair and (quick or images is not None):
            raise InvalidInput("a repair looks at everything; leave out what says to look at less")
        if repair:
            return checker.repair(self._engine.store, self._engine.chains, progress=progress)
        chosen = None if images is None else [image.id for image in self._given(images)]
        return checker.check(self._engine.store, self._engine.chains, chosen, quick=quick, progress=progress)

    def evict_derived(self, limit_bytes: int) -> int:
        """Remove merged indexes and tree images, longest unused first, until at most so many bytes are left.

        They are made again when they are needed. What is mounted or being made stays; who has an index open keeps it.
        Returns the bytes removed. Raises `OSError`.
        """
        from layerstore.store import locks

        with locks.garbage(self.layout):
            return self._engine.chains.derived.evict(limit_bytes)

    # Containers

    if TYPE_CHECKING:

        @overload
        def create(
            self,
            image: Image | str,
            *,
            name: str | None = None,
            volatile: bool = False,
            driver: Driver = "overlay",
            disk_size: int | str | None = None,
            prepared: Mapping[str, Any] | None = None,
        ) -> Container: ...

        @overload
        def create(
            self,
            image: Image | str,
            *,
            count: int,
            volatile: bool = False,
            driver: Driver = "overlay",
            disk_size: int | str | None = None,
            prepared: Mapping[str, Any] | None = None,
        ) -> list[Container]: ...

    def create(
        self,
        image: Image | str,
        *,
        count: int | None = None,
        name: str | None = None,
        volatile: bool = False,
        driver: Driver = "overlay",
        disk_size: int | str | None = None,
        prepared: Mapping[str, Any] | None = None,
    ) -> Container | list[Container]:
        """Make a container, or `count` of them as a list: all or none. They are not mounted yet.

        driver: "overlay", whose writable layer is the kernel's and which programs run in; or "extent", whose writable
        layer is ours: without root or a mount, worked on from Python, forked and rolled back at once.

        What is written in a `volatile` one (of the overlay driver) is never synced to disk: fsync returns at once, and
        unmounting does not flush the store's file system. It is for containers that need not outlive the machine;
        remove them after a power loss.

        disk_size: how much each may write to disk, bytes or as "1g"; a fork of it as much again. Programs get ENOSPC
        then. It needs project quotas (docs/limits.md), else it is `Unsupported`.

        prepared: what `Container.prepare` is to be given, by name; no container is there without it.

        Raises `NotFound`, `Conflict` when `name` is taken, `InvalidInput` when it is no name, `OSError`.
        """
        check_count(count, name)
        disk_bytes, options = _disk_bytes(disk_size, driver), _options(prepared, driver)
        found = self._engine.resolve(image)
        shown = image if isinstance(image, str) else next(iter(found.names), found.short_id)
        if driver == "extent":
            if volatile:
                raise InvalidInput("the extent driver syncs only what it is asked to; create it without volatile")
            # It could be read as it is, a file at a time whenever one is opened.
            if self._engine.database.read().execute("SELECT 1 FROM frozen WHERE image_id = ?", (found.id,)).fetchone():
                self.thaw(found)
            rows = self._engine.writable.create(found.id, shown, found.chain_id, count or 1, name)
        elif driver == "overlay":
            try:
                chain = self._engine.chains.mountable(found.chain_id, lambda: found.diff_ids)
            except CorruptError as error:
                error.add_note(f"image {shown} is damaged")
                raise
            rows = self._engine.containers.create(
                found.id, shown, chain, count or 1, name, volatile, disk_bytes, options
            )
        else:
            raise InvalidInput(f"there is no driver {driver!r}; it is 'overlay' or 'extent'")
        made = [Container(self._engine, row) for row in rows]
        return made[0] if count is None else made

    def containers(self) -> list[Container]:
        """Every container, newest first."""
        return [Container(self._engine, row) for row in self._engine.containers.all()]

    def container(self, name: str) -> Container:
        """The container of that name, id or unambiguous beginning of an id. Raises `NotFound`, `InvalidInput`."""
        return Container(self._engine, self._engine.containers.find(name))

    def mount(self, containers: Sequence[Container]) -> None:
        """Mount many at once; each view is then at its `root`. Those already mounted stay.

        Raises `NotFound` where one was removed, `Unsupported` where this user or kernel cannot mount, `OSError`.
        """
        self._engine.mount([container.row for container in containers])

    def umount(self, containers: Sequence[Container], *, force: bool = False) -> None:
        """Unmount many at once; `force` detaches those in use. Raises `Conflict` where one is in use."""
        self._engine.containers.unmount([container.row for container in containers], lazy=force)

    def remove(self, containers: Sequence[Container], *, force: bool = False) -> None:
        """Remove containers and what they wrote. Raises `Conflict` where one runs or is in use, without `force`."""
        self._engine.remove([container.row for container in containers], force=force)

    def states(self, containers: Sequence[Container]) -> list[str]:
        """Of each: "created", "mounted", "running" or "paused"."""
        return self._engine.containers.states([container.row for container in containers])


def _options(prepared: Mapping[str, Any] | None, driver: str) -> dict[str, Any] | None:
    if prepared is None:
        return None
    from layerstore.containers import program_records

    if driver == "extent":
        raise Unsupported("containers of the extent driver run no programs; those of the overlay driver do")
    options = dict(prepared)
    return program_records.options_of(options.pop("args", None), options)


def _disk_bytes(given: int | str | None, driver: str) -> int | None:
    if given is None:
        return None
    from layerstore.containers.resources import size

    if driver == "extent":
        raise Unsupported("the extent driver has no limit on disk; the overlay driver has")
    if not (value := size(given, "the size of a container's disk")):
        raise InvalidInput("the size of a container's disk is 0: it is 1 or more")
    return value
