"""Directories of files that say themselves what must be in them, and what must be where when several wrote and removed.

A generation is a directory of a name like `gen-3.0.0.17-4`: what made it, and how many files it has. Each file says its
own digest, its length and its generation. One whose name begins with `gen-` was made under another name and renamed, so
that nobody may ever see a part of it; one of `in-` was copied to its place, and is whole once that was done.

`History` is told what was done to containers by whom and when, by the clock that all processes share, and says which
generations must be in what was read of a container meanwhile.
"""

import hashlib
import io
import math
import random
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath

WHOLE = "whole"
_NAME = re.compile(r"(gen|in)-[\w.]+-(\d+)")
_LARGE_BYTES = 200_000
"""More than what goes to a pack."""


def new_name(kind: str, maker: str, draw: random.Random) -> str:
    return f"{kind}-{maker}-{draw.randrange(1, 6)}"


def files_of(name: str) -> dict[str, bytes]:
    """The files of a generation, by their names in it; equal for equal names."""
    draw = random.Random(name)
    count = int(name.rpartition("-")[2])
    sizes = [draw.choice((0, 30, 700, 5_000)) for _ in range(count)]
    if draw.random() < 0.2:
        sizes[0] = _LARGE_BYTES
    return {f"f{number}": _file(name, draw.randbytes(size)) for number, size in enumerate(sizes)}


def texts_of(name: str) -> dict[str, str]:
    """As `files_of`, of letters and small, for what a shell writes."""
    draw = random.Random(name)
    count = int(name.rpartition("-")[2])
    return {f"f{n}": _file(name, draw.randbytes(draw.randrange(60)).hex().encode()).decode() for n in range(count)}


def _file(name: str, payload: bytes) -> bytes:
    return f"{hashlib.sha256(payload).hexdigest()} {len(payload)} {name}\n".encode() + payload


def is_generation(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def judge(name: str, files: Mapping[str, bytes]) -> str:
    """`WHOLE`, or what is wrong with a generation of which these files were found."""
    count = int(name.rpartition("-")[2])
    wanted = {f"f{number}" for number in range(count)}
    if files.keys() != wanted:
        return f"it has {sorted(files)}, not {count} files"
    for file, data in files.items():
        head, _, payload = data.partition(b"\n")
        if data != _file(name, payload):
            return f"{file} has {len(data)} bytes, which are not those that it says ({head[:120]!r})"
    return WHOLE


def judge_all(files: Iterable[tuple[str, bytes | None]]) -> dict[str, str]:
    """What is found of each generation, from the paths of a tree, relative to its root; None for what is no file."""
    found: dict[str, dict[str, bytes]] = {}
    for path, data in files:
        parts = PurePosixPath(path).parts
        if parts and is_generation(parts[0]):
            of_it = found.setdefault(parts[0], {})
            if len(parts) > 1 and data is not None:
                of_it["/".join(parts[1:])] = data
    return {name: judge(name, files) for name, files in found.items()}


def in_tar(file: io.RawIOBase) -> Iterator[tuple[str, bytes | None]]:
    """The paths of a tar with their contents, for `judge_all`."""
    with tarfile.open(fileobj=file, mode="r|") as archive:
        for member in archive:
            read = archive.extractfile(member) if member.isreg() else None
            yield member.name, None if read is None else read.read()


def tar_of(name: str) -> bytes:
    """A generation as a tar."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        top = tarfile.TarInfo(name)
        top.type, top.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(top)
        for file, data in files_of(name).items():
            member = tarfile.TarInfo(f"{name}/{file}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


# What must be there


@dataclass(frozen=True)
class Span:
    """From when to when something was done, seconds of the monotonic clock; to infinity where nobody saw its end."""

    begin: float
    end: float = math.inf

    def overlaps(self, other: "Span") -> bool:
        return self.begin < other.end and other.begin < self.end


@dataclass(frozen=True)
class Seen:
    """What was read of a container, or of what was made of it, as it was at some moment of the span.

    generations: of each that was found what `judge` says of it.
    """

    container: str
    span: Span
    how: str
    generations: Mapping[str, str]


@dataclass
class History:
    """What was done to containers, each by its id."""

    made: dict[str, dict[str, Span]] = field(default_factory=lambda: defaultdict(dict))
    """Of each container generation -> while it was made; only those that were finished and that nothing disturbed."""
    removed: dict[tuple[str, str], list[Span]] = field(default_factory=lambda: defaultdict(list))
    rollbacks: dict[str, list[tuple[Span, str]]] = field(default_factory=lambda: defaultdict(list))
    """container -> the rollbacks that may have been done, with the names of their snapshots."""
    snapshots: dict[tuple[str, str], Span] = field(default_factory=dict)
    """(container, snapshot) -> while it was taken. A name is used once."""

    def must_have(self, container: str, generation: str, span: Span) -> bool:
        """Whether a container surely had a generation all the time."""
        return self._must_have(container, generation, span, frozenset())

    def _must_have(self, container: str, generation: str, span: Span, asked: frozenset[str]) -> bool:
        made = self.made[container].get(generation)
        if made is None or made.end >= span.begin:
            return False
        if any(removal.begin < span.end for removal in self.removed.get((container, generation), ())):
            return False
        for rollback, snapshot in self.rollbacks.get(container, ()):
            if rollback.begin < span.end and made.begin < rollback.end:
                taken = self.snapshots.get((container, snapshot))
                if taken is None or snapshot in asked:
                    return False
                if not self._must_have(container, generation, taken, asked | {snapshot}):
                    return False
        return True

    def lost(self, seen: Seen) -> list[str]:
        """The generations that must be in what was read, and are not whole there."""
        return [
            f"{name}: {seen.generations.get(name, 'it is missing')}"
            for name in self.made[seen.container]
            if seen.generations.get(name) != WHOLE and self.must_have(seen.container, name, seen.span)
        ]

    def torn(self, seen: Seen) -> list[str]:
        """The generations of which a part was read that nobody was ever to see."""
        return [
            f"{name}: {said}"
            for name, said in seen.generations.items()
            if said != WHOLE
            and name.startswith("gen-")
            and not any(removal.overlaps(seen.span) for removal in self.removed.get((seen.container, name), ()))
        ]
