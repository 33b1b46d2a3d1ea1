"""Importing a real image: how long, how much memory, and how many bytes on disk, also when the contents are known."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import Context, remove_store
from bench.loopfs import used_bytes
from bench.measure import interleaved, seconds, split_ours, warm
from bench.peers import Peer
from bench.rows import OURS_ALL, Row, at_most, durably, faster, known

if TYPE_CHECKING:
    from layerstore import Store

MB = 1e6
TIMES_FASTER = {"gzip": 5.0, "zstd": 6.0, "none": 8.0}
WORDS = {"gzip": "gzip", "zstd": "zstd", "none": "uncompressed"}
MEMORY_LIMIT_BYTES = 200e6
RECORDS = "its records, not the files of layers"
DURABLE = {
    "ours": OURS_ALL,
    "docker": RECORDS,
    "podman": RECORDS,
    "containerd": "the blobs and its databases, not the unpacked files",
}
WRITTEN_OUT = {"all": "everything is synced before it is counted"}


def run(context: Context) -> list[Row]:
    rows = [row for compression in TIMES_FASTER for row in durably(DURABLE, import_times(context, compression))]
    return [*rows, *durably(DURABLE, peak_memory(context)), *durably(WRITTEN_OUT, disk_use(context))]


def import_times(context: Context, compression: str) -> Iterator[Row]:
    """By command, each into a store that has nothing of the image; the archive itself is in the page cache."""
    archive = context.fixtures.archive("debian", compression)
    name = context.fixtures.recipe("debian").name
    warm(archive)

    works: dict[str, Callable[[], float]] = {}
    for peer in context.peers():
        if compression in peer.loads:
            works[peer.name] = partial(load_and_remove, peer, archive, name)
    if not context.peers_only:
        works["ours"] = partial(context.load_by_command, archive)
        works["from Python"] = partial(from_python, context, archive, False)
        works["and used"] = partial(from_python, context, archive, True)
    figures = interleaved(works, context.rounds())
    called, used = figures.pop("from Python", None), figures.pop("and used", None)
    ours, peers = split_ours(figures)
    work = f"import the 245 MB Debian image, {WORDS[compression]}"
    yield faster(f"{work}, by command", "s", ours, peers, TIMES_FASTER[compression])
    yield known(f"{work}, from Python", "s", called, peers)
    yield known(f"{work}, from Python, and a first container of it mounted", "s", used, peers)


def load_and_remove(peer: Peer, archive: Path, name: str) -> float:
    os.sync()
    took = peer.load(archive)
    peer.remove(name)
    return took


def from_python(context: Context, archive: Path, and_mount: bool) -> float:
    with context.store() as store:
        os.sync()
        return seconds(load_and_mount, store, archive) if and_mount else seconds(store.load, archive)


def peak_memory(context: Context) -> Iterator[Row]:
    """The largest resident set of `layerstore load`. The daemons' memory cannot be told apart by import."""
    if context.peers_only:
        return
    path = context.new_directory("store")
    command = context.command(path, "load", "-i", str(context.fixtures.archive("debian", "gzip")))
    try:
        quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=quiet)
        _, status, usage = os.wait4(pid, 0)
    finally:
        remove_store(path)
    if status:
        raise RuntimeError(f"{' '.join(command)} ended with status {status}")
    yield at_most("peak memory of the import, gzip", "MB", usage.ru_maxrss * 1024 / MB, {}, MEMORY_LIMIT_BYTES / MB)


def disk_use(context: Context) -> Iterator[Row]:
    """Growth of the file system, everything written out, by each of several images loaded one after another."""
    images = ("debian", "debian-retarred", "app-a", "app-b")
    growths = {peer.name: peer_growth(context, peer, images) for peer in context.peers()}
    ours = {} if context.peers_only else our_growth(context, images)

    def of(image: str) -> tuple[float | None, dict[str, float]]:
        peers = {name: growth[image] / MB for name, growth in growths.items()}
        return (ours[image] / MB if ours else None), peers

    unique = unique_bytes([context.fixtures.debian_tar()]) / MB
    yield at_most(
        "bytes on disk of the image", "MB", *of("debian"), 1.05 * unique, f"1.05× its {unique:.1f} MB of unique files"
    )
    yield at_most("new bytes on disk, same files re-tarred", "MB", *of("debian-retarred"), 0.03 * unique, "3%")
    app = context.fixtures.app_tar("app-b").stat().st_size / MB
    yield at_most(
        "… of a second image with another app layer", "MB", *of("app-b"), app + 0.01 * unique, "app layer + 1%"
    )


def peer_growth(context: Context, peer: Peer, images: tuple[str, ...]) -> dict[str, int]:
    try:
        return growth_by(context, images, peer.load)
    finally:
        for image in images:
            peer.remove(context.fixtures.recipe(image).name)


def our_growth(context: Context, images: tuple[str, ...]) -> dict[str, int]:
    """The store's own fixed files count with the first image, and what a first container makes with each."""
    before = used_bytes(context.directory)
    with context.store() as store:
        fixed = used_bytes(context.directory) - before
        growth = growth_by(context, images, partial(load_and_mount, store))
    growth[images[0]] += fixed
    return growth


def load_and_mount(store: Store, archive: Path) -> None:
    """Import, and use the image once: what is derived at its first use is there then."""
    (image,) = store.load(archive)
    container = store.create(image)
    with container.mount():
        pass
    container.remove()


def growth_by(context: Context, images: tuple[str, ...], load: Callable[[Path], object]) -> dict[str, int]:
    growth = {}
    used = used_bytes(context.directory)
    for image in images:
        load(context.fixtures.archive(image, "gzip"))
        now = used_bytes(context.directory)
        growth[image], used = now - used, now
    return growth


def unique_bytes(tars: list[Path]) -> int:
    """Sum of the sizes of the different file contents."""
    sizes: dict[bytes, int] = {}
    for path in tars:
        with tarfile.open(path) as tar:
            for member in tar:
                if member.isreg() and (content := tar.extractfile(member)):
                    sizes[hashlib.sha256(content.read()).digest()] = member.size
    return sum(sizes.values())
