"""How many packs an image may need: what each costs a mount and the first opening of a file, for docs/measurements.md.

Not among the benchmarks that run by default: `python -m bench.run packs`.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from unittest import mock

from bench.context import Context
from bench.measure import interleaved, seconds
from bench.rows import Row, known

if TYPE_CHECKING:
    from layerstore import Container, Image, Store

COUNTS = (1, 12, 32, 64, 100, 200, 400)
NO_LIMIT = 1_000_000
MILLISECOND, MICROSECOND = 1e3, 1e6


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    with context.store() as store, mock.patch("layerstore.chains.packs.MAX_PACKS", NO_LIMIT):
        images = {count: image_in_packs(store, count) for count in COUNTS}
        # The first mount of an image mounts what all its containers share.
        held = [store.create(image) for image in images.values()]
        store.mount(held)
        rows = list(measured(context, store, images))
        store.remove(held)
    return rows


def image_in_packs(store: Store, count: int) -> Image:
    """An image of `count` files, each in a pack of its own: each came with an import of its own."""
    for number in range(count):
        files = {f"file{n}": content(count, n) for n in range(number + 1)}
        image = store.import_rootfs(io.BytesIO(tar_of(files)), f"packs-{count}:{number}")
    return image


def content(count: int, number: int) -> bytes:
    return f"{number} of {count}\n".encode() * 100


def tar_of(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


def measured(context: Context, store: Store, images: dict[int, Image]) -> Iterator[Row]:
    rounds = context.rounds(31)
    mounts: dict[str, Callable[[], float]] = {str(n): partial(mounting, store, image) for n, image in images.items()}
    yield known("mount of one more container", "ms", None, interleaved(mounts, rounds))
    unmounts: dict[str, Callable[[], float]] = {
        str(n): partial(unmounting, store, image) for n, image in images.items()
    }
    yield known("its unmount", "ms", None, interleaved(unmounts, rounds))
    opens: dict[str, Callable[[], float]] = {str(n): partial(opening, store, image, n) for n, image in images.items()}
    yield known("first opening of a file whose path was looked up before", "µs", None, interleaved(opens, rounds))


def mounting(store: Store, image: Image) -> float:
    container = store.create(image)
    took = seconds(container.mount)
    store.remove([container])
    return took * MILLISECOND


def unmounting(store: Store, image: Image) -> float:
    container = store.create(image)
    container.mount()
    took = seconds(container.umount)
    store.remove([container])
    return took * MILLISECOND


def opening(store: Store, image: Image, count: int) -> float:
    """The mean over the files of a fresh mount."""
    container: Container = store.create(image)
    with container.mount() as root:
        paths = [root / f"file{number}" for number in range(count)]
        for path in paths:
            path.stat()
        took = seconds(open_all, paths)
    store.remove([container])
    return took / count * MICROSECOND


def open_all(paths: list[Path]) -> None:
    for path in paths:
        path.open("rb").close()
