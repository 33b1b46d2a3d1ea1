"""BLAKE3: ours against the blake3 package, one thread each, side by side in one run.

    python -m bench.bench_blake3 IMAGE.tar

The rounds of the two alternate, so that what else the machine does weighs on both; the ratio is that of the medians.
"""

import argparse
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence

import blake3 as peer

from bench.measure import Median
from layerstore._core import hashing

ROUNDS = 7
MIB = 1 << 20
SPAN_BYTES = 8 * MIB  # of content handed over in one call, as an importer does


def read_files(tar_path: str) -> list[bytes]:
    """The contents of the regular files of a tar, in its order."""
    with tarfile.open(tar_path) as archive:
        return [stream.read() for entry in archive if entry.isreg() and (stream := archive.extractfile(entry))]


def in_one_buffer(files: Sequence[bytes]) -> list[memoryview]:
    """The same contents one after another in memory, where an importer finds them."""
    whole = memoryview(b"".join(files))
    views, start = [], 0
    for content in files:
        views.append(whole[start : start + len(content)])
        start += len(content)
    return views


def spans(inputs: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    first, size_bytes = 0, 0
    for i, content in enumerate(inputs):
        size_bytes += len(content)
        if size_bytes >= SPAN_BYTES:
            yield inputs[first : i + 1]
            first, size_bytes = i + 1, 0
    yield inputs[first:]


def hash_ours(batches: Sequence[Sequence[memoryview]]) -> list[bytes]:
    return [digest for batch in batches for digest in hashing.hash_many(batch)]


def hash_peer(batches: Sequence[Sequence[memoryview]]) -> list[bytes]:
    blake3 = peer.blake3
    return [blake3(content).digest() for batch in batches for content in batch]


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def compare(work: str, inputs: Sequence[memoryview], target: float) -> dict[str, object]:
    batches = list(spans(inputs))
    if hash_ours(batches) != hash_peer(batches):
        raise AssertionError(f"{work}: the two disagree about a digest")
    times = [(seconds(lambda: hash_ours(batches)), seconds(lambda: hash_peer(batches))) for _ in range(ROUNDS)]
    ours, theirs = map(Median, zip(*times, strict=True))
    size_gb = sum(map(len, inputs)) / 1e9
    return {
        "work": work,
        "ours": size_gb / ours,
        "peer": size_gb / theirs,
        "ratio": theirs / ours,
        "unit": "GB/s",
        "target": target,
    }


def run(tar_path: str) -> list[dict[str, object]]:
    """One row for each work: `work`, `ours` and `peer` in `unit`, their `ratio`, and the `target` for it."""
    files = in_one_buffer(read_files(tar_path))
    large = memoryview(bytes(range(256)) * (128 * MIB // 256))
    small = [large[start : start + 4096] for start in range(0, 64 * MIB, 4096)]
    return [
        compare("16,384 inputs of 4 KiB", small, 3.5),
        compare("one input of 128 MiB", [large], 1.0),
        compare(f"the {len(files):,} files of an image", files, 1.8),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description="BLAKE3: ours against the blake3 package, one thread each")
    parser.add_argument("tar", help="an image layer; its regular files are hashed")
    rows = run(parser.parse_args().tar)
    print(f"{'work':<36} {'ours GB/s':>10} {'blake3 GB/s':>12} {'ratio':>6} {'target':>7}")
    for row in rows:
        print(f"{row['work']:<36} {row['ours']:>10.2f} {row['peer']:>12.2f} {row['ratio']:>6.2f} {row['target']:>7.1f}")


if __name__ == "__main__":
    main()
