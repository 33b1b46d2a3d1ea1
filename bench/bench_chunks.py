"""Content-defined chunks: how fast they are cut and hashed, one thread, and how well they deduplicate.

The peers are given the same sizes where they take any; borg's are powers of two, and it has no average but a mask.
"""

from __future__ import annotations

import importlib
import io
import sys
import tarfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import blake3

from bench.context import Context
from bench.family import FAMILY, Family
from bench.measure import interleaved, split_ours
from bench.rows import NOTHING, Row, durably
from layerstore._core import chunking, hashing

MIN_BYTES, AVG_BYTES, MAX_BYTES = 4096, 16384, 131072
NORMALISATION = 2
"""Of FastCDC: how many bits more and fewer a cut has before and behind the average; ours has as many."""
BORG_MASK_BITS, BORG_WINDOW_BYTES = 14, 4095
DEBIAN_PYTHON = "/usr/lib/python3/dist-packages"
GB, MB = 1e9, 1e6

Cut = Callable[[bytes], Iterable[int]]
"""The lengths of the chunks of a content."""


def run(context: Context) -> list[Row]:
    peers = dict(found_peers(context))
    return list(durably(NOTHING, [*rates(context, peers), *deduplication(context, peers)]))


# -- chunkers ------------------------------------------------------------------------------------------------------


def lengths_of(data: bytes) -> list[int]:
    ends = chunking.cut(data, MIN_BYTES, AVG_BYTES, MAX_BYTES).tolist()
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]


def found_peers(context: Context) -> Iterator[tuple[str, Cut]]:
    """Those that are installed."""
    makers: dict[str, Callable[[], Cut]] = {
        "pyfastcdc": pyfastcdc,
        "fastcdc": fastcdc,
        "tilecdc": tilecdc,
        "borg": borg,
    }
    for name, make in makers.items():
        try:
            yield name, make()
        except ImportError as error:
            context.log(f"{name} is not installed ({error}); its figures are left out")


def pyfastcdc() -> Cut:
    module = importlib.import_module("pyfastcdc")
    chunker = module.FastCDC(AVG_BYTES, min_size=MIN_BYTES, max_size=MAX_BYTES, normalized_chunking=NORMALISATION)
    return lambda data: [chunk.length for chunk in chunker.cut_buf(data)]


def fastcdc() -> Cut:
    cut = importlib.import_module("fastcdc").fastcdc
    return lambda data: [chunk.length for chunk in cut(data, MIN_BYTES, AVG_BYTES, MAX_BYTES)]


def tilecdc() -> Cut:
    cut: Cut = importlib.import_module("tilecdc").Chunker(MIN_BYTES, AVG_BYTES, MAX_BYTES, norm=NORMALISATION).chunk
    return cut


def borg() -> Cut:
    """Debian's: it is built for Debian's Python, and can be imported by one of the same version."""
    sys.path.append(DEBIAN_PYTHON)
    try:
        module = importlib.import_module("borg.chunker")
    finally:
        sys.path.remove(DEBIAN_PYTHON)
    exponents = MIN_BYTES.bit_length() - 1, MAX_BYTES.bit_length() - 1
    chunker: Any = module.Chunker(0, *exponents, BORG_MASK_BITS, BORG_WINDOW_BYTES)
    return lambda data: [chunk.meta["size"] for chunk in chunker.chunkify(io.BytesIO(data))]


# -- how fast ------------------------------------------------------------------------------------------------------


def rates(context: Context, peers: dict[str, Cut]) -> Iterator[Row]:
    data = b"".join(contents([context.fixtures.debian_tar()]))
    cutters: dict[str, Callable[[], object]] = {name: partial(cut, data) for name, cut in peers.items()}
    if not context.peers_only:
        cutters["ours"] = partial(chunking.cut, data, MIN_BYTES, AVG_BYTES, MAX_BYTES)
    ours, of_peers = split_ours(measured(context, cutters, len(data)))
    met = None if ours is None or not of_peers else ours >= 2 * max(of_peers.values())
    work = f"cut {len(data) / MB:.0f} MB of files of an image, 16 KiB on average"
    yield Row(work, "GB/s", ours, of_peers, "≥ 2× faster", met, more_is_better=True)
    if context.peers_only:
        return
    kernels: dict[str, Callable[[], object]] = {
        name: partial(chunking.cut, data, MIN_BYTES, AVG_BYTES, MAX_BYTES, name) for name in chunking.kernels()
    }
    by_kernel = measured(context, kernels, len(data))
    fastest = by_kernel.pop(chunking.kernels()[-1])
    yield Row(f"… by the kernel {chunking.kernels()[-1]}", "GB/s", fastest, by_kernel, more_is_better=True)
    both: dict[str, Callable[[], object]] = {"ours": partial(chunking.chunk, data, MIN_BYTES, AVG_BYTES, MAX_BYTES)}
    if "pyfastcdc" in peers:
        both["pyfastcdc and the blake3 package"] = partial(cut_and_hash, peers["pyfastcdc"], data)
    ours, of_peers = split_ours(measured(context, both, len(data)))
    met = None if ours is None else ours >= 4
    yield Row("… and hash the chunks", "GB/s", ours, of_peers, "≥ 4 GB/s", met, more_is_better=True)


def cut_and_hash(cut: Cut, data: bytes) -> list[bytes]:
    return [blake3.blake3(piece).digest() for piece in pieces(data, cut(data))]


def measured(context: Context, works: dict[str, Callable[[], object]], size_bytes: int) -> dict[str, float]:
    """GB a second of one core's time; each was done once before."""
    for work in works.values():
        work()
    timed = {name: partial(core_seconds, work) for name, work in works.items()}
    return {name: size_bytes / took / GB for name, took in interleaved(timed, context.rounds(7)).items()}


def core_seconds(work: Callable[[], object]) -> float:
    """Of this thread, so that what else the machine does counts little."""
    begin = time.thread_time()
    work()
    return time.thread_time() - begin


# -- how well they deduplicate -------------------------------------------------------------------------------------


def deduplication(context: Context, peers: dict[str, Cut]) -> Iterator[Row]:
    """Bytes of the distinct chunks of the files of real layers. A file of one that is stored whole is one chunk."""
    layers = family_layers(context)
    cutters = {**peers, "whole files": lambda data: [len(data)]}
    if not context.peers_only:
        cutters["ours"] = lengths_of
    unique = dict.fromkeys(cutters, 0)
    known_digests: dict[str, set[bytes]] = {name: set() for name in cutters}
    size_bytes = 0
    for content in contents(layers):
        size_bytes += len(content)
        for name, cut in cutters.items():
            found = pieces(content, cut(content))
            for piece, digest in zip(found, hashing.hash_many(found), strict=True):
                if digest not in known_digests[name]:
                    known_digests[name].add(digest)
                    unique[name] += len(piece)
    ours, of_peers = split_ours({name: size / MB for name, size in unique.items()})
    gear = of_peers.get("pyfastcdc")
    met = None if ours is None or gear is None else ours <= 1.01 * gear
    work = f"distinct chunks of the {size_bytes / MB:,.0f} MB of files of {len(layers)} layers"
    yield Row(work, "MB", ours, of_peers, "≤ 1.01× gear FastCDC (pyfastcdc)", met)


def family_layers(context: Context) -> list[Path]:
    """Each once; in a quick run those of one image."""
    family = Family(context.fixtures.cache, context.log)
    images = ["flask-b"] if context.quick else FAMILY
    return list(dict.fromkeys(step.tar for image in images for step in family.recipe(image).steps))


def contents(layers: Iterable[Path]) -> Iterator[bytes]:
    """The contents of the regular files that are not empty."""
    for layer in layers:
        with tarfile.open(layer) as archive:
            for member in archive:
                if member.isreg() and member.size and (stream := archive.extractfile(member)):
                    yield stream.read()


def pieces(content: bytes, lengths: Iterable[int]) -> list[memoryview]:
    view, found, start = memoryview(content), [], 0
    for length in lengths:
        found.append(view[start : start + length])
        start += length
    return found
