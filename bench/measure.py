"""Measuring: medians of interleaved rounds, memory of the machine, cold caches, small C helpers."""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Self, TypeVar

K = TypeVar("K")
CSRC = Path(__file__).parent / "csrc"
KERNEL_MEMORY = ("Slab", "Percpu", "KernelStack", "PageTables", "VmallocUsed")
PROCESS_MEMORY = (*KERNEL_MEMORY, "AnonPages", "Shmem")


class Median(float):
    """The median of figures, in the order in which they were measured. It can be scaled, and keeps them."""

    figures: tuple[float, ...]

    def __new__(cls, figures: Iterable[float]) -> Self:
        kept = tuple(figures)
        made = super().__new__(cls, statistics.median(kept))
        made.figures = kept
        return made

    def __mul__(self, factor: float) -> Median:
        return Median(figure * factor for figure in self.figures)

    def __truediv__(self, divisor: float) -> Median:
        return Median(figure / float(divisor) for figure in self.figures)

    def __rtruediv__(self, dividend: float) -> Median:
        return Median(dividend / figure for figure in self.figures)

    def beyond(self, base: Median) -> Median:
        """Of what each is more than the one of the same round."""
        return Median(figure - other for figure, other in zip(self.figures, base.figures, strict=True))


def seconds(work: Callable[..., object], *arguments: object) -> float:
    begin = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - begin


def interleaved(works: dict[K, Callable[[], float]], rounds: int) -> dict[K, Median]:
    """The median of each work's figures. Rounds alternate, so that what else the machine does weighs on all."""
    figures: dict[K, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            figures[name].append(work())
    return {name: Median(values) for name, values in figures.items()}


def split_ours(figures: Mapping[str, float], name: str = "ours") -> tuple[float | None, dict[str, float]]:
    """(ours or None, the peers) of what `interleaved` gave."""
    return figures.get(name), {peer: value for peer, value in figures.items() if peer != name}


def drop_caches() -> None:
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def meminfo(*names: str) -> int:
    """The sum of the named lines of /proc/meminfo, in bytes."""
    lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
    kib = {fields[0].rstrip(":"): int(fields[1]) for fields in lines}
    return sum(kib[name] for name in names) * 1024


def memory_in_use() -> int:
    """Bytes of the kernel and of all processes, with everything that can be dropped dropped.

    Not MemTotal − MemAvailable: that counts the page cache, and moves by hundreds of MB when the kernel reclaims.
    """
    gc.collect()
    drop_caches()
    time.sleep(0.2)
    drop_caches()
    return meminfo(*PROCESS_MEMORY)


def warm(path: Path) -> None:
    """Read the file once, so that it comes from the page cache for everyone."""
    with path.open("rb") as stream:
        while stream.read(1 << 22):
            pass


def helper(name: str, where: Path) -> Path:
    """Compile csrc/<name>.c; the path of the program."""
    program = where / name
    if not program.exists():
        subprocess.run(["cc", "-std=gnu11", "-O2", "-Wall", "-Wextra", "-o", program, CSRC / f"{name}.c"], check=True)
    return program


def helper_output(program: Path, *arguments: object) -> list[str]:
    command = [str(program), *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def remove_tree(directory: Path) -> None:
    """Quicker than shutil where there are thousands of files."""
    subprocess.run(["rm", "-rf", str(directory)], check=True)


def extract(tar: Path, directory: Path) -> Path:
    """Unpack a layer with GNU tar, as root's: the directory trees that overlayfs is measured on.

    Into a directory that is there it goes over what is in it.
    """
    directory.mkdir(parents=True, exist_ok=True)
    flags = ["--numeric-owner", "--same-permissions", "--xattrs", "--xattrs-include=*"]
    subprocess.run(["tar", *flags, "-xf", str(tar), "-C", str(directory)], check=True)
    return directory
