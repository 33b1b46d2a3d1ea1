"""The Debian image dealt over any number of layers, as a build of that many steps would leave it.

What the stack shows is the image, path for path, whatever its depth. Each layer has

- an equal share of the image's paths, neighbours together as a package's files are, with the directories above them;
- some files of the layers below, written once more (`REWRITTEN`), as a package manager rewrites its lists;
- some files that the next layer hides by whiteouts (`LEFT_BEHIND`): a copy beside the file, its name ending in "~";
- in every tenth layer a directory of files made anew: opaque, with all of its files.

Hard links are files of their own, for their targets may be in another layer. A file holds its own path and not the real
contents, which no lookup reads. A fixed seed decides what there is to decide.
"""

from __future__ import annotations

import io
import os
import random
import stat
import tarfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.fixtures import Blob, Recipe, Step, sha256, write_modern_archive
from bench.measure import extract

SEED = 3
REWRITTEN = 0.05
LEFT_BEHIND = 0.05
REMADE_EVERY = 10
BACKUP = "~"

Entries = dict[str, tarfile.TarInfo]


@dataclass
class Layer:
    """What one layer says: entries by path, paths that it hides, and directories that hide what is below them.

    `left_behind` are those of the entries that the next layer hides.
    """

    entries: Entries = field(default_factory=dict)
    whiteouts: list[str] = field(default_factory=list)
    opaque: list[str] = field(default_factory=list)
    left_behind: list[str] = field(default_factory=list)


def image_entries(tar: Path) -> Entries:
    """The entries of an image's tar by path, without the root."""
    entries: Entries = {}
    with tarfile.open(tar) as source:
        for member in source:
            path = member.name.removeprefix("./").strip("/")
            if path not in ("", "."):
                entries[path] = stand_in(member, path)
    return entries


def stand_in(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
    """The entry with its path as content, so that no two are the same."""
    kind = tarfile.REGTYPE if member.islnk() else member.type
    entry = member.replace(name=path, deep=False)
    entry.type, entry.pax_headers = kind, {}
    entry.size = len(os.fsencode(path)) if kind == tarfile.REGTYPE else 0
    return entry


def deal(entries: Entries, depth: int) -> list[Layer]:
    """The image in `depth` layers, the bottom one first."""
    choice = random.Random(SEED)
    above = {parent for path in entries for parent in parents_of(path)}
    leaves = sorted(entries.keys() - above)
    shares = [leaves[i * len(leaves) // depth : (i + 1) * len(leaves) // depth] for i in range(depth)]
    remade = remade_directories(leaves, shares, choice)
    layers: list[Layer] = []
    for number, share in enumerate(shares):
        layer = Layer(whiteouts=layers[-1].left_behind if layers else [], opaque=list(remade.get(number, {})))
        again = choice.sample(leaves[: leaves.index(share[0])], min(leaves.index(share[0]), few(share, REWRITTEN)))
        anew = [path for files in remade.get(number, {}).values() for path in files]
        if number < depth - 1:
            layer.left_behind = [path + BACKUP for path in choice.sample(share, few(share, LEFT_BEHIND))]
        layer.entries = {path: entries[path] for path in (*share, *again, *anew)}
        layer.entries |= {path: stand_in(tarfile.TarInfo(), path) for path in layer.left_behind}
        needed = {parent for path in (*layer.entries, *layer.whiteouts) for parent in parents_of(path)}
        layer.entries |= {path: entries[path] for path in needed}
        layers.append(layer)
    return layers


def few(share: list[str], part: float) -> int:
    return max(1, round(part * len(share)))


def remade_directories(
    leaves: list[str], shares: list[list[str]], choice: random.Random
) -> dict[int, dict[str, list[str]]]:
    """For every tenth layer a directory that holds nothing but leaves of the layers below, with these."""
    files: dict[str, list[str]] = defaultdict(list)
    for path in leaves:
        files[path.rpartition("/")[0]].append(path)
    plain = sorted(path for path in files if path and not any(other.startswith(path + "/") for other in files))
    remade = {}
    for number in range(REMADE_EVERY - 1, len(shares), REMADE_EVERY):
        first = shares[number][0]
        ready = [path for path in plain if files[path][-1] < first]
        if ready:
            path = choice.choice(ready)
            remade[number] = {path: files[path]}
    return remade


def parents_of(path: str) -> Iterator[str]:
    """The directories above a path, the nearest first, without the root."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


def write_tar(layer: Layer, out: Path) -> Path:
    """The layer as an image has it: whiteouts are entries named ".wh.", as the OCI specification says."""
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as tar:
        for path in sorted(layer.entries):
            entry = layer.entries[path]
            tar.addfile(entry, io.BytesIO(os.fsencode(path)) if entry.isreg() else None)
        for path in layer.opaque:
            tar.addfile(tarfile.TarInfo(f"{path}/.wh..wh..opq"))
        for path in layer.whiteouts:
            directory, slash, name = path.rpartition("/")
            tar.addfile(tarfile.TarInfo(f"{directory}{slash}.wh.{name}"))
    return out


def write_directory(layer: Layer, tar: Path, directory: Path) -> Path:
    """The layer as a lower directory of overlayfs, from its tar."""
    extract(tar, directory)
    for path in layer.opaque:
        (directory / path / ".wh..wh..opq").unlink()
        os.setxattr(directory / path, "trusted.overlay.opaque", b"y")
    for path in layer.whiteouts:
        whiteout = directory / path
        whiteout.with_name(f".wh.{whiteout.name}").unlink()
        os.mknod(whiteout, stat.S_IFCHR, os.makedev(0, 0))
    return directory


def write_archive(name: str, tars: Sequence[Path], out: Path) -> Path:
    """An image of these layers, as `docker save` writes it."""
    blobs = []
    for tar in tars:
        digest = sha256(tar)
        blobs.append(Blob(tar, digest, tar.stat().st_size, digest))
    write_modern_archive(Recipe(name, tuple(Step(tar, tar.stem) for tar in tars)), blobs, "none", out)
    return out
