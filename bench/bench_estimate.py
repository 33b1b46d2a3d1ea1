"""How far what `dedup-stats` says that freezing would take is from what it takes, for docs/measurements.md.

Not among the benchmarks that run by default: `python -m bench.run estimate`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import Context
from bench.family import FAMILY, Family
from bench.rows import Row, known

if TYPE_CHECKING:
    from layerstore import Store

MIB = 1 << 20
SAMPLES_BYTES = [size * MIB for size in (32, 64, 128, 256, 512)]
SETS: dict[str, tuple[str, ...]] = {
    "the family": tuple(FAMILY),
    "its bases": ("bookworm-before", "bookworm", "trixie"),
    "its science": ("science-a", "science-b", "science-c"),
    "its Node.js": ("node-a", "node-b"),
    "its small applications": ("flask-a", "flask-b", "django-a", "django-b"),
    "one image": ("report-a",),
}
QUICK = "its bases"
REBUILDS = 30


def run(context: Context) -> list[Row]:
    if context.peers_only:
        return []
    family = Family(context.fixtures.cache, context.log)
    found: list[Row] = []
    for name, images in SETS.items():
        if not context.quick or name == QUICK:
            found += of_set(context, name, (family.oci_layout(image, "none") for image in images))
    if not context.quick:
        found += of_set(context, f"{REBUILDS} rebuilds", family.rebuilds(REBUILDS, context.directory))
    return found


def of_set(context: Context, name: str, archives: Iterable[Path]) -> Iterator[Row]:
    with contextlib.ExitStack() as stack:
        store = stack.enter_context(context.store())
        for archive in archives:
            store.load(archive)
        says = {size: estimated(store, size) for size in SAMPLES_BYTES}
        takes = store.freeze()
    yield known(f"{name}: hot", "MB", takes.content_bytes / 1e6, {})
    yield known("… frozen", "MB", takes.stored_bytes / 1e6, {})
    for size, (stored_bytes, cpu_seconds) in says.items():
        yield known(f"… estimated by {size // MIB} MiB: error", "%", 100 * (stored_bytes / takes.stored_bytes - 1), {})
        yield known("… … CPU", "s", cpu_seconds, {})


def estimated(store: Store, sample_bytes: int) -> tuple[int, float]:
    """What freezing would take, and the seconds of CPU that it takes to say so."""
    begin = time.process_time()
    freezing = store.dedup_stats(sample_bytes=sample_bytes).freezing
    assert freezing is not None
    return freezing.stored_bytes, time.process_time() - begin
