"""The cold tier: how small a family of real images becomes, how long that takes, and how soon one of them runs again.

What is asked of the peers that keep trees is to keep the whole tree of each image, one after another, as a backup does.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bench_import import RECORDS, WRITTEN_OUT, load_and_remove
from bench.context import Context, remove_store
from bench.family import FAMILY, Family
from bench.fixtures import write_modern_archive
from bench.loopfs import disk_bytes, file_bytes
from bench.measure import Median, extract, interleaved, remove_tree, seconds, split_ours, warm
from bench.peers import Docker, Peer, Podman, timed
from bench.repositories import Borg, Casync, Ostree, Repository, Restic
from bench.rows import OURS_ALL, Row, durably, faster, known, smaller, within

if TYPE_CHECKING:
    from layerstore import Container, Store

MB = 1e6
QUICK = ("bookworm-before", "bookworm", "flask-a", "flask-b")
ENGINES: dict[str, type[Peer]] = {"docker": Docker, "containers-storage": Podman}
BYTES = 0.8
TIMES_FASTER = 5.0
REBUILDS, FEW_REBUILDS = 100, 20
TIMES_SMALLER = 30.0
# restic's files are synced before they get their names: github.com/restic/restic/pull/3436.
DURABLE = {"ours": OURS_ALL, "restic": "the files of its repository", "podman load": RECORDS}


def run(context: Context) -> list[Row]:
    family = Family(context.fixtures.cache, context.log)
    return [
        *whole_family(context, family),
        *durably(WRITTEN_OUT, rebuilds(context, family)),
        *durably(DURABLE, starting(context, family)),
    ]


def images_of(context: Context) -> tuple[str, ...]:
    return QUICK if context.quick else tuple(FAMILY)


# The whole family


Sizes = dict[str, tuple[int, int]]
"""By name: bytes on disk; bytes of the files in it."""


def whole_family(context: Context, family: Family) -> Iterator[Row]:
    images = images_of(context)
    layers = {step.tar for image in images for step in family.recipe(image).steps}
    logical = sum(step.tar.stat().st_size for image in images for step in family.recipe(image).steps)
    for tar in layers:
        warm(tar)
    sizes: Sizes = {}
    for name, kind in ENGINES.items():
        if (engine := context.peer(kind)) is not None:
            sizes[name] = in_engine(context, family, images, engine)
    times = dict(with_repositories(context, family, images, sizes))
    work = f"{len(images)} images of {logical / MB:,.0f} MB, their layers {sum(map(size_of, layers)) / MB:,.0f} MB"
    disk, files = ({name: size[which] / MB for name, size in sizes.items()} for which in (0, 1))
    sizes_of = [
        within(f"bytes on disk of {work}, frozen", "MB", *split_ours(disk), BYTES),
        known("… the sizes of the files, without what blocks add", "MB", *split_ours(files)),
    ]
    yield from durably(WRITTEN_OUT, sizes_of)
    freezing = times.pop("freeze", None)
    work = "load and freeze them, by command; restic backup, borg create of their trees"
    took = [faster(work, "s", *split_ours(times), TIMES_FASTER), known("… of it freeze", "s", freezing, {})]
    yield from durably(DURABLE, took)


def size_of(path: Path) -> int:
    return path.stat().st_size


def in_engine(context: Context, family: Family, images: tuple[str, ...], engine: Peer) -> tuple[int, int]:
    """What the images add to its store."""
    before = disk_bytes(engine.store), file_bytes(engine.store)
    loaded = []
    try:
        for image in images:
            with archive_of(context, family, image) as archive:
                engine.load(archive)
            loaded.append(family.recipe(image).name)
        return disk_bytes(engine.store) - before[0], file_bytes(engine.store) - before[1]
    finally:
        for name in loaded:
            engine.remove(name)


@contextlib.contextmanager
def archive_of(context: Context, family: Family, image: str) -> Iterator[Path]:
    """A docker-archive, uncompressed, for as long as this lasts: those of a family would have each base many times."""
    path = context.new_directory("archive")
    try:
        write_modern_archive(family.recipe(image), family.layer_blobs(image, "none"), "none", path)
        yield path
    finally:
        path.unlink(missing_ok=True)


def with_repositories(
    context: Context, family: Family, images: tuple[str, ...], sizes: Sizes
) -> Iterator[tuple[str, float]]:
    """Seconds of restic and borg and ours, and of ours the freezing. Only what the others take on disk counts."""
    freezing: list[float] = []
    with trees_of(context, family, images) as trees:
        for kind in available(context, Ostree, Casync):
            took = in_repository(context, kind, trees, sizes)
            context.log(f"{kind.name}: {took:.0f} s, {sizes[kind.name][0] / MB:.0f} MB")
        works: dict[str, Callable[[], float]] = {
            kind.name: partial(in_repository, context, kind, trees, sizes) for kind in available(context, Restic, Borg)
        }
        if not context.peers_only:
            works["ours"] = partial(in_store, context, family, images, sizes, freezing)
        yield from interleaved(works, context.rounds(3)).items()
    if freezing:
        yield "freeze", Median(freezing)


def available(context: Context, *kinds: type[Repository]) -> Iterator[type[Repository]]:
    for kind in kinds:
        if missing := kind.missing():
            context.log(f"{missing} is not installed; its figures are left out")
        else:
            yield kind


@contextlib.contextmanager
def trees_of(context: Context, family: Family, images: tuple[str, ...]) -> Iterator[list[Path]]:
    """The tree of each image, in a directory named after it, without devices, which ostree does not take."""
    directory = context.new_directory("trees")
    try:
        for image in images:
            for step in family.recipe(image).steps:
                extract(step.tar, directory / image)
            for path in (directory / image / "dev").iterdir():
                if path.is_char_device() and not path.is_symlink():
                    path.unlink()
        os.sync()
        yield [directory / image for image in images]
    finally:
        remove_tree(directory)


def in_repository(context: Context, kind: type[Repository], trees: list[Path], sizes: Sizes) -> float:
    """Seconds of keeping the trees in a new repository."""
    directory = context.new_directory(kind.name)
    directory.mkdir()
    try:
        repository = kind(directory)
        os.sync()
        took = sum(repository.add(tree) for tree in trees)
        sizes[kind.name] = disk_bytes(repository.path), file_bytes(repository.path)
        return took
    finally:
        remove_tree(directory)


def in_store(context: Context, family: Family, images: tuple[str, ...], sizes: Sizes, freezing: list[float]) -> float:
    """Seconds of `layerstore load` of each and `layerstore freeze` of all, in a new store."""
    path = context.new_directory("store")
    try:
        timed(context.command(path, "init"))
        os.sync()
        took = sum(
            timed(context.command(path, "load", "-i", str(family.oci_layout(image, "none")))) for image in images
        )
        freezing.append(timed(context.command(path, "freeze", *(family.recipe(image).name for image in images))))
        sizes["ours"] = disk_bytes(path), file_bytes(path)
        return took + freezing[-1]
    finally:
        remove_store(path)


# Rebuilds


def rebuilds(context: Context, family: Family) -> Iterator[Row]:
    """Of one application, each with its base. All are loaded and then frozen, but a first part of them before.

    docker is given only that part: none of its layers is like another, so that each rebuild takes as much.
    """
    count, few = (10, 4) if context.quick else (REBUILDS, FEW_REBUILDS)
    ours: dict[int, float] = {}
    growth: list[float] = []
    docker = context.docker()
    with contextlib.ExitStack() as stack:
        store = None if context.peers_only else stack.enter_context(context.store())
        asked = few if store is None else count
        for number, archive in enumerate(family.rebuilds(asked, context.directory), start=1):
            if docker is not None and number <= few:
                before = disk_bytes(docker.store)
                docker.load(archive)
                stack.callback(docker.remove, family.rebuild_name(number - 1))
                growth.append((disk_bytes(docker.store) - before) / MB)
            if store is not None:
                store.load(archive)
                if number in (few, count):
                    store.freeze()
                    ours[number] = disk_bytes(Path(store.root)) / MB
    if growth:
        context.log(f"docker: {min(growth):.1f} to {max(growth):.1f} MB a rebuild")
    measured = {"docker": sum(growth)} if growth else {}
    work = f"bytes on disk of {few} rebuilds of the flask application, frozen"
    yield smaller(work, "MB", ours.get(few), measured, TIMES_SMALLER)
    extrapolated = {f"docker, {count / few:g} × those {few}": sum(growth) * count / few} if growth else {}
    yield smaller(f"… of {count}", "MB", ours.get(count), extrapolated, TIMES_SMALLER)


# Starting a frozen image


def starting(context: Context, family: Family) -> Iterator[Row]:
    """An image of the frozen family, from the page cache, as the archive is."""
    image, package = ("flask-b", "flask") if context.quick else ("science-a", "numpy")
    name, site = family.recipe(image).name, family.site_packages(image)
    works: dict[str, Callable[[], float]] = {}
    podman = context.podman()
    if podman is not None:
        archive = family.archive(image, "zstd")
        warm(archive)
        works["podman load"] = partial(load_and_remove, podman, archive, name)
    with contextlib.ExitStack() as stack:
        if not context.peers_only:
            store = stack.enter_context(context.store())
            for each in images_of(context):
                store.load(family.oci_layout(each, "none"))
            store.freeze()
            program = ("python3", "-c", f"import {package}")
            run = context.command(Path(store.root), "run", "--rm", "--network", "none", name, *program)
            works["ours"] = partial(thawed_and_read, store, name, f"{site}/{package}")
            works["run"] = partial(thawed_and_run, store, name, run)
        figures = interleaved(works, context.rounds())
    ran = figures.pop("run", None)
    ours, peers = split_ours(figures)
    size = sum(step.tar.stat().st_size for step in family.recipe(image).steps) / MB
    work = f"thaw an image of {size:.0f} MB; podman load of its zstd archive"
    yield faster(f"{work}, by command, layerstore run, which imports {package}", "s", ran, peers, TIMES_FASTER)
    yield known(f"{work}, from Python, then create, mount and read {package}", "s", ours, peers)


def thawed_and_read(store: Store, name: str, directory: str) -> float:
    """Seconds until the files of a directory were read in a container of the frozen image; it is frozen again after."""

    def start() -> Container:
        store.thaw([name])
        container = store.create(name)
        with container.mount() as root:
            for path in (Path(root) / directory).rglob("*"):
                if path.is_file():
                    path.read_bytes()
        return container

    started: list[Container] = []
    took = seconds(lambda: started.append(start()))
    started[0].remove()
    store.freeze([name])
    return took


def thawed_and_run(store: Store, name: str, command: list[str]) -> float:
    took = timed(command)
    store.freeze([name])
    return took
