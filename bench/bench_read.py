"""Reading what containers see: from cold caches against overlayfs, and what a second image adds to the page cache.

The loop device below both trees is on direct I/O (loopfs.py). One that reads through the page
cache keeps a second copy of all that is read, and its sparse file is read ahead in the steps of the disk below (8 MiB
here), metadata of the file system in it included, which never happens on a disk. Both trees are faster so, a tree of
directories more: its cold stat takes a fourth of the time (201 ms, not 948), ours two thirds (166 and 267, mounted).

Cold is measured in two ways, each the same for both:

- *from the mount on*: nothing is mounted, caches are dropped, and the time of the mount counts. What an image's first
  container meets after the machine has started.
- *mounted*: caches are dropped while the tree is mounted, as when memory ran short.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench.bench_import import unique_bytes
from bench.context import Context
from bench.loopfs import device_of, erofs_mounts_below
from bench.measure import (
    Median,
    drop_caches,
    extract,
    helper,
    helper_output,
    interleaved,
    remove_tree,
    seconds,
    split_ours,
)
from bench.rows import NOTHING, Row, at_most, durably, faster

if TYPE_CHECKING:
    from layerstore import Store

MB = 1e6
MILLISECOND = 1e3
LAYERS = 12
TIMES_FASTER = {"stat": 4.0, "read": 3.0}
WORDS = {"stat": "stat of every path", "read": "read of every file"}

Mounting = Callable[[], AbstractContextManager[Path]]


def run(context: Context) -> list[Row]:
    return list(durably(NOTHING, [*cold(context), *page_cache(context)]))


@dataclass(frozen=True)
class Walk:
    """`csrc/walk.c` over the paths of the Debian image, in the order of its tar."""

    program: Path
    paths: Path

    @classmethod
    def of(cls, context: Context) -> Walk:
        paths = context.run_directory / "paths"
        with tarfile.open(context.fixtures.debian_tar()) as tar:
            paths.write_text("".join(f"{member.name}\n" for member in tar))
        return cls(helper("walk", context.run_directory), paths)

    def seconds(self, mode: str, tree: Path) -> float:
        return float(helper_output(self.program, mode, tree, self.paths)[0])

    def from_the_mount_on(self, mode: str, mounting: Mounting) -> float:
        drop_caches()
        with contextlib.ExitStack() as stack:
            trees: list[Path] = []
            took = seconds(lambda: trees.append(stack.enter_context(mounting())))
            return took + self.seconds(mode, trees[0])

    def mounted(self, mode: str, mounting: Mounting) -> float:
        with mounting() as tree:
            drop_caches()
            return self.seconds(mode, tree)


def cold(context: Context) -> Iterator[Row]:
    """Every path of one image, the same 12 layers by overlayfs and by us."""
    walk = Walk.of(context)
    with contextlib.ExitStack() as stack:
        trees: dict[str, Mounting] = {"overlayfs, 12 directories": stack.enter_context(layers_as_directories(context))}
        if not context.peers_only:
            store = stack.enter_context(context.store("debian-12"))
            trees["ours"] = mounting_of(store, context.fixtures.recipe("debian-12").name)
        for how, measured in (("from the mount on", walk.from_the_mount_on), ("mounted", walk.mounted)):
            for mode, times in TIMES_FASTER.items():
                works: dict[str, Callable[[], float]] = {
                    name: partial(measured, mode, mounting) for name, mounting in trees.items()
                }
                figures = interleaved(works, context.rounds())
                ours, peers = split_ours({name: s * MILLISECOND for name, s in figures.items()})
                yield faster(f"cold {WORDS[mode]} of the Debian image, {how}", "ms", ours, peers, times)


def mounting_of(store: Store, image: str) -> Mounting:
    container = store.create(image)
    return lambda: container.mount()


@contextlib.contextmanager
def layers_as_directories(context: Context) -> Iterator[Mounting]:
    """The image's 12 layers as docker and podman keep and mount them: a directory each."""
    base = context.new_directory("overlay")
    tars = context.fixtures.debian_split(LAYERS)
    lowers = [extract(tar, base / str(i)) for i, tar in enumerate(tars)]
    upper, work, root = (base / part for part in ("upper", "work", "root"))
    for directory in (upper, work, root):
        directory.mkdir()
    stack = ":".join(str(lower) for lower in reversed(lowers))
    options = f"lowerdir={stack},upperdir={upper},workdir={work}"
    try:
        yield partial(mounted_overlay, root, options)
    finally:
        remove_tree(base)


@contextlib.contextmanager
def mounted_overlay(root: Path, options: str) -> Iterator[Path]:
    """By the system call: a cold mount(8) would have to be read first."""
    libc = ctypes.CDLL(None, use_errno=True)
    target = os.fsencode(root)
    if libc.mount(b"overlay", target, b"overlay", ctypes.c_ulong(0), options.encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount the overlay {options}")
    try:
        yield root
    finally:
        if libc.umount2(target, 0):
            raise OSError(ctypes.get_errno(), f"cannot unmount {root}")


def page_cache(context: Context) -> Iterator[Row]:
    """Read all of one image, then all of another one with the same files in other layers: what the second one adds."""
    walk = Walk.of(context)
    names = [context.fixtures.recipe(image).name for image in ("debian", "debian-retarred")]

    def added(*roots: Path) -> float:
        return Median(
            cached_after(context, walk, *roots) - cached_after(context, walk, roots[0])
            for _ in range(context.rounds(3))
        )

    peers = {}
    docker = context.docker()
    if docker is not None:
        with context.loaded(docker, "debian", "debian-retarred"), contextlib.ExitStack() as stack:
            roots = [
                docker.root_of(stack.enter_context(docker.running(name, 1, ["sleep", "1000"]))[0]) for name in names
            ]
            peers["docker"] = added(*roots) / MB
    ours = None
    if not context.peers_only:
        with context.store("debian", "debian-retarred") as store, contextlib.ExitStack() as stack:
            ours = added(*(stack.enter_context(store.create(name).mount()) for name in names)) / MB
    unique = unique_bytes([context.fixtures.debian_tar()]) / MB
    work = "page cache added by a second image, same files in other layers"
    yield at_most(work, "MB", ours, peers, 0.05 * unique, f"5% of {unique:.0f} MB")


def cached_after(context: Context, walk: Walk, *roots: Path) -> int:
    """Bytes in the page cache once every file below `roots` was read, counted where the kernel keeps them.

    That is every file of the file system that the stores are on, its block device (metadata), and every file of the
    EROFS mounts over it. An overlay has no pages of its own. Counting reads some metadata, so it ends a measurement.
    """
    program = helper("cached", context.run_directory)
    drop_caches()
    for root in roots:
        walk.seconds("read", root)
    places = [device_of(context.directory), context.directory, *erofs_mounts_below(context.directory)]
    return sum(map(int, helper_output(program, *places)))
