"""Images of containers that changed: `commit` and `diff` of many small files, and of a write into a large one.

The peers are docker and podman by their commands, on containers whose program has ended.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import changed_files
from bench.bench_import import RECORDS
from bench.context import Context, remove_store
from bench.fixtures import Blob, Recipe, Step, sha256, write_modern_archive
from bench.measure import Median, interleaved, seconds
from bench.peers import Committing, timed
from bench.rows import NOTHING, OURS_ALL, Row, durably, faster, known
from bench.writable import CHANGED, LARGE, POOL_BYTES, make_large, tar_large

if TYPE_CHECKING:
    from layerstore import Container, Store

MILLISECOND = 1e3
MB = 1e6
COMMITTED = "committed:latest"
WRITE = f"import os; os.pwrite(os.open('{LARGE}', os.O_RDWR), bytes(4096), 123 << 20)"
BY_COMMAND = " by command"
DURABLE = {"ours": OURS_ALL, "docker": RECORDS, "podman": RECORDS}
Works = dict[str, Callable[[], float]]


def run(context: Context) -> list[Row]:
    return [*many_files(context), *durably(DURABLE, large_file(context))]


def committing(context: Context) -> list[Committing]:
    return [peer for peer in (context.docker(), context.podman()) if peer is not None]


# -- changed files of 2 KiB -----------------------------------------------------------------------------------------


def many_files(context: Context) -> Iterator[Row]:
    name = context.fixtures.recipe("debian").name
    with contextlib.ExitStack() as stack:
        for peer in committing(context):
            stack.enter_context(context.loaded(peer, "debian"))
        store = None if context.peers_only else stack.enter_context(context.store("debian"))
        for count in CHANGED:
            yield from changed(context, store, name, count)


def changed(context: Context, store: Store | None, name: str, count: int) -> Iterator[Row]:
    program = ["python3", "-c", Path(changed_files.__file__).read_text(), str(count)]
    with contextlib.ExitStack() as stack:
        theirs = {peer: stack.enter_context(peer.ended(name, program)) for peer in committing(context)}
        ours: dict[str, Container] = {}
        if store is not None:
            ours = {"overlay driver": ran(store, name, program), "extent driver": store.create(name, driver="extent")}
            extent = ours["extent driver"]
            changed_files.change(extent, extent.open, count)
            stack.callback(store.remove, list(ours.values()))
        check_alike(theirs, ours)
        what = f"of {count:,} changed files"
        commits = interleaved(warmed(commit_works(context, store, theirs, ours)), context.rounds())
        rows = compared(f"commit {what}", "ms", MILLISECOND, commits, list(ours), {"": 5})
        yield from durably(DURABLE, rows)
        diffs = interleaved(warmed(diff_works(context, store, theirs, ours)), context.rounds())
        rows = compared(f"diff {what}", "ms", MILLISECOND, diffs, list(ours), {"docker": 10, "podman": 3})
        yield from durably(NOTHING, rows)


def ran(store: Store, name: str, program: list[str]) -> Container:
    """A container of the overlay driver in which a program ran to its end."""
    container = store.create(name)
    if container.run(program):
        raise RuntimeError(f"{program[0]} failed in our container")
    return container


def check_alike(theirs: dict[Committing, str], ours: dict[str, Container]) -> None:
    """That ours tell of the same, and the peers of all that too.

    The peers add files of their own to a container, and podman leaves out a directory in which alone something changed.
    """
    told = {name: {f"{change.kind} {change.path}" for change in container.diff()} for name, container in ours.items()}
    for name, changes in told.items():
        if differing := changes ^ next(iter(told.values())):
            raise RuntimeError(f"the {name} tells of other changes: {sorted(differing)[:5]}")
        above = {f"C {directory}" for change in changes for directory in Path(change[2:]).parents}
        for peer, container in theirs.items():
            if missing := changes - above - peer.changes(container):
                raise RuntimeError(f"{peer.name} does not tell of {len(missing)} changes, like {sorted(missing)[:5]}")


# -- 4 KiB in a file of 1 GiB ---------------------------------------------------------------------------------------


def large_file(context: Context) -> Iterator[Row]:
    recipe, archive = large_image(context)
    program = ["python3", "-c", WRITE]
    with contextlib.ExitStack() as stack:
        works: Works = {}
        for peer in committing(context):
            peer.load(archive)
            stack.callback(peer.remove, recipe.name)
            works[peer.name] = partial(peer_commit, peer, stack.enter_context(peer.ended(recipe.name, program)))
        stores = {} if context.peers_only else our_stores(context, stack, archive)
        ours: dict[str, tuple[Store, Container]] = {}
        for where, store in stores.items():
            ours[f"overlay driver{where}"] = store, ran(store, recipe.name, program)
        if stores:
            store = stores[""]
            extent = store.create(recipe.name, driver="extent")
            with extent.open(LARGE, "r+b", 0) as file:
                file.seek(123 << 20)
                file.write(bytes(4096))
            ours["extent driver"] = store, extent
        for name, (store, container) in ours.items():
            works.update(our_commits(context, store, name, container))
        took = interleaved(works, context.rounds(3))
        yield from compared("commit of 4 KiB changed in a file of 1 GiB", "s", 1, took, list(ours), {"": 5})
        for name, (store, container) in ours.items():
            read = our_commit(store, partial(bytes_read, container.commit, COMMITTED)) / MB
            yield known(f"… read by it, {name}", "MB", read, {})


def large_image(context: Context) -> tuple[Recipe, Path]:
    """The Debian image and a layer with the large file, and its archive."""
    large = context.directory / "commit-lower/large"
    make_large(large)
    tar = tar_large(large, large.parent)
    large.unlink()
    debian = context.fixtures.recipe("debian").steps
    recipe = Recipe("large:latest", (*debian, Step(tar, "COPY large /large")), {"Cmd": ["python3"]})
    digest = sha256(tar)
    blobs = [*context.fixtures.layer_blobs("debian", "none"), Blob(tar, digest, tar.stat().st_size, digest)]
    archive = large.with_name("archive.tar")
    write_modern_archive(recipe, blobs, "none", archive)
    return recipe, archive


def our_stores(context: Context, stack: contextlib.ExitStack, archive: Path) -> dict[str, Store]:
    """One on the measured file system, and one on a pool on it, which has reflink; with the image."""
    from layerstore import Store

    stores = {}
    for where, pool_bytes in (("", None), (" on a pool", POOL_BYTES)):
        path = context.new_directory("store")
        stack.callback(remove_store, path)
        store = stores[where] = stack.enter_context(Store(path, create=True, pool_bytes=pool_bytes))
        store.load(archive)
    return stores


def bytes_read(work: Callable[[str], object], name: str) -> float:
    """Bytes that this process asks files for meanwhile; what it maps is not counted."""
    before = read_so_far()
    work(name)
    return read_so_far() - before


def read_so_far() -> int:
    return int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])


# -- both -----------------------------------------------------------------------------------------------------------


def commit_works(
    context: Context, store: Store | None, theirs: dict[Committing, str], ours: dict[str, Container]
) -> Works:
    works: Works = {peer.name: partial(peer_commit, peer, container) for peer, container in theirs.items()}
    for name, container in ours.items():
        assert store is not None
        works.update(our_commits(context, store, name, container))
    return works


def our_commits(context: Context, store: Store, name: str, container: Container) -> Works:
    """By command, and from Python."""
    command = context.command(Path(store.root), "commit", container.id, COMMITTED)
    return {
        name + BY_COMMAND: partial(our_commit, store, partial(timed, command)),
        name: partial(our_commit, store, partial(seconds, container.commit, COMMITTED)),
    }


def peer_commit(peer: Committing, container: str) -> float:
    os.sync()
    took = peer.commit(container, COMMITTED)
    peer.remove(COMMITTED)
    return took


def our_commit(store: Store, commit: Callable[[], float]) -> float:
    """Of what the store does not know: neither the layer nor, but for what the image has, its contents."""
    os.sync()
    took = commit()
    store.remove_image(COMMITTED)
    store.collect_garbage()
    return took


def diff_works(
    context: Context, store: Store | None, theirs: dict[Committing, str], ours: dict[str, Container]
) -> Works:
    works: Works = {peer.name: partial(peer.diff, container) for peer, container in theirs.items()}
    for name, container in ours.items():
        assert store is not None
        works[name] = partial(seconds, container.diff)
        works[name + BY_COMMAND] = partial(timed, context.command(Path(store.root), "diff", container.id))
    return works


def warmed(works: Works) -> Works:
    """Each of them done once."""
    for work in works.values():
        work()
    return works


def compared(
    work: str, unit: str, times: float, figures: dict[str, Median], ours: list[str], goals: dict[str, float]
) -> Iterator[Row]:
    """A line for each of ours by command and goal, which is against one peer or, without a name, all; and one for each
    of ours from Python."""
    scaled = {name: value * times for name, value in figures.items()}
    peers = {name: value for name, value in scaled.items() if name.removesuffix(BY_COMMAND) not in ours}
    for name in ours or [""]:
        said = f", {name}" if name else ""
        for goal, faster_by in goals.items():
            against = {goal: peers[goal]} if goal in peers else {} if goal else peers
            suffix = f", against {goal}" if goal else ""
            yield faster(f"{work}{said}, by command{suffix}", unit, scaled.get(name + BY_COMMAND), against, faster_by)
        if name:
            yield known(f"{work}{said}, from Python", unit, scaled[name], peers)
