"""Reading what containers see: from cold caches against overlayfs, and what a second image adds to the page cache."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.bench_import import unique_bytes
from bench.context import Context
from bench.loopfs import direct_io, unmount_below
from bench.measure import drop_caches, extract, helper, helper_output, interleaved, page_cache_bytes, split_ours
from bench.rows import Row, at_most, faster

MB = 1e6
MILLISECOND = 1e3
LAYERS = 12


def run(context: Context) -> list[Row]:
    with direct_io(context.directory):
        return [*cold(context), *page_cache(context)]


def cold(context: Context) -> Iterator[Row]:
    """Every path of one image, caches dropped before: the same 12 layers mounted by overlayfs and by us."""
    paths, program = path_list(context), helper("walk", context.run_directory)
    with contextlib.ExitStack() as stack:
        trees = {"overlayfs, 12 directories": stack.enter_context(overlay_of_directories(context))}
        if not context.peers_only:
            store = stack.enter_context(context.store("debian-12"))
            trees["ours"] = stack.enter_context(store.create(context.fixtures.recipe("debian-12").name).mount())
        for mode, what, times in (("stat", "stat of every path", 4.0), ("read", "read of every file", 3.0)):
            works = {name: cold_walk(program, mode, tree, paths) for name, tree in trees.items()}
            ours, peers = split_ours(
                {name: s * MILLISECOND for name, s in interleaved(works, context.rounds()).items()}
            )
            yield faster(f"cold {what} of the Debian image", "ms", ours, peers, times)


def cold_walk(program: Path, mode: str, tree: Path, paths: Path) -> Callable[[], float]:
    def work() -> float:
        drop_caches()
        return float(helper_output(program, mode, tree, paths)[0])

    return work


def path_list(context: Context) -> Path:
    """Every path of the image, in the order of its tar."""
    out = context.run_directory / "paths"
    with tarfile.open(context.fixtures.debian_tar()) as tar:
        out.write_text("".join(f"{member.name}\n" for member in tar))
    return out


@contextlib.contextmanager
def overlay_of_directories(context: Context) -> Iterator[Path]:
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
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", root], check=True)
        yield root
    finally:
        unmount_below(root)
        subprocess.run(["rm", "-rf", base], check=True)


def page_cache(context: Context) -> Iterator[Row]:
    """Read all of one image, then all of another one with the same files in other layers: what the second one adds."""
    program, paths = helper("walk", context.run_directory), path_list(context)
    names = [context.fixtures.recipe(image).name for image in ("debian", "debian-retarred")]

    def added_once(first: Path, second: Path) -> float:
        drop_caches()
        helper_output(program, "read", first, paths)
        before = page_cache_bytes()
        helper_output(program, "read", second, paths)
        return (page_cache_bytes() - before) / MB

    def added(*roots: Path) -> float:
        return statistics.median(added_once(*roots) for _ in range(context.rounds(3)))

    peers = {}
    docker = context.docker()
    if docker is not None:
        with context.loaded(docker, "debian", "debian-retarred"), contextlib.ExitStack() as stack:
            roots = [
                docker.root_of(stack.enter_context(docker.running(name, 1, ["sleep", "1000"]))[0]) for name in names
            ]
            peers["docker"] = added(*roots)
    ours = None
    if not context.peers_only:
        with context.store("debian", "debian-retarred") as store, contextlib.ExitStack() as stack:
            ours = added(*(stack.enter_context(store.create(name).mount()) for name in names))
    unique = unique_bytes([context.fixtures.debian_tar()]) / MB
    work = "page cache added by a second image, same files in other layers"
    yield at_most(work, "MB", ours, peers, 0.05 * unique, f"5% of {unique:.0f} MB")
