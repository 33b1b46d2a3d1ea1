"""Up to which size contents should go to a pack: what the threshold costs and saves, for docs/measurements.md.

Not among the benchmarks that run by default: `python -m bench.run threshold`, and for copy-up by clone also
`python -m bench.run threshold --file-system xfs`.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from bench.bench_read import MB, MILLISECOND, WORDS, Mounting, Walk, cached_after, mounting_of
from bench.context import Context
from bench.measure import Median, interleaved, seconds, warm
from bench.rows import Row, known

if TYPE_CHECKING:
    from layerstore import Store

KIB = 1024
THRESHOLDS_BYTES = [size * KIB for size in (32, 64, 128, 256, 1024)]
IMAGE = "debian-12"
RETARRED = "debian-retarred"
COPIED_UP = 100


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    rows = [*import_times(context), *copy_up(context)]
    with contextlib.ExitStack() as stack:
        stores = {}
        for size in THRESHOLDS_BYTES:
            with of_size(size):
                stores[label(size)] = stack.enter_context(context.store(IMAGE, RETARRED))
        return [*rows, *contents(stores), *cold(context, stores), *page_cache(context, stores)]


@contextlib.contextmanager
def of_size(size: int) -> Iterator[None]:
    """Have imports put contents up to this many bytes into packs."""
    with mock.patch("layerstore.layers.imports.PACK_THRESHOLD_BYTES", size):
        yield


def label(size: int) -> str:
    return f"{size // KIB} KiB"


def each(work: str, unit: str, figures: dict[str, float]) -> Row:
    return known(work, unit, None, figures)


def import_times(context: Context) -> Iterator[Row]:
    """From Python, uncompressed: where decompression hides nothing."""
    archive = context.fixtures.archive("debian", "none")
    warm(archive)

    def imported(size: int) -> float:
        with of_size(size), context.store() as store:
            os.sync()
            return seconds(store.load, archive) * MILLISECOND

    works: dict[str, Callable[[], float]] = {label(size): partial(imported, size) for size in THRESHOLDS_BYTES}
    yield each("import of the Debian image, uncompressed, from Python", "ms", interleaved(works, context.rounds()))


def copy_up(context: Context) -> Iterator[Row]:
    """The first write to each of many files of the threshold's size, read before: where contents are clones or not."""
    for place, extra in (("in a pack", 0), ("an object", -1)):
        works: dict[str, Callable[[], float]] = {
            label(size): partial(first_write, context, size, size + extra) for size in THRESHOLDS_BYTES
        }
        figures = {size: s * MILLISECOND for size, s in interleaved(works, context.rounds()).items()}
        yield each(f"first write to a file of this size, {place}", "ms", figures)


def first_write(context: Context, size: int, threshold: int) -> float:
    """The mean over all files, seconds."""
    with of_size(threshold), context.store() as store:
        store.import_rootfs(io.BytesIO(tar_of_files(size)), "files")
        container = store.create("files")
        with container.mount() as root:
            paths = [root / str(i) for i in range(COPIED_UP)]
            for path in paths:
                warm(path)
            os.sync()
            return seconds(write_first_byte, paths) / COPIED_UP


def write_first_byte(paths: list[Path]) -> None:
    for path in paths:
        fd = os.open(path, os.O_WRONLY)
        os.write(fd, b"x")
        os.close(fd)


def tar_of_files(size: int) -> bytes:
    out, source = io.BytesIO(), random.Random(size)
    with tarfile.open(fileobj=out, mode="w") as tar:
        for i in range(COPIED_UP):
            member = tarfile.TarInfo(str(i))
            member.size = size
            tar.addfile(member, io.BytesIO(source.randbytes(size)))
    return out.getvalue()


def contents(stores: dict[str, Store]) -> Iterator[Row]:
    objects = {name: float(sum(1 for _ in (store.root / "objects").glob("*/*"))) for name, store in stores.items()}
    packs = {
        name: sum(path.stat().st_size for path in (store.root / "packs").glob("*.pack")) / MB
        for name, store in stores.items()
    }
    yield each("objects", "", objects)
    yield each("contents in packs", "MB", packs)


def cold(context: Context, stores: dict[str, Store]) -> Iterator[Row]:
    walk = Walk.of(context)
    name = context.fixtures.recipe(IMAGE).name
    mountings: dict[str, Mounting] = {size: mounting_of(store, name) for size, store in stores.items()}
    for how, measured in (("from the mount on", walk.from_the_mount_on), ("mounted", walk.mounted)):
        works: dict[str, Callable[[], float]] = {
            size: partial(measured, "read", mounting) for size, mounting in mountings.items()
        }
        figures = {size: s * MILLISECOND for size, s in interleaved(works, context.rounds()).items()}
        yield each(f"cold {WORDS['read']}, {how}", "ms", figures)


def page_cache(context: Context, stores: dict[str, Store]) -> Iterator[Row]:
    """After reading all of one image: contents in packs are cached twice, as the pack's and as the file's pages."""
    walk = Walk.of(context)
    first: dict[str, float] = {}
    second: dict[str, float] = {}
    for size, store in stores.items():
        with contextlib.ExitStack() as stack:
            names = [context.fixtures.recipe(image).name for image in (IMAGE, RETARRED)]
            roots = [stack.enter_context(mounting_of(store, name)()) for name in names]
            rounds = range(context.rounds(3))
            first[size] = Median(cached_after(context, walk, roots[0]) for _ in rounds) / MB
            second[size] = Median(cached_after(context, walk, *roots) for _ in rounds) / MB - first[size]
    yield each("page cache after reading one image", "MB", first)
    yield each("… added by a second one, same files in other layers", "MB", second)
