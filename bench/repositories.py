"""What keeps trees of files by content, as peers: restic, borg, casync, ostree. Each has a repository of its own.

    repository = Restic(directory)   # made empty in the directory, which exists
    repository.add(tree) -> seconds  keep a tree, by the peer's own command
    repository.path                  what it takes on disk; caches that it could do without are elsewhere

Their programs are installed when `missing()` is None.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from bench.peers import timed


class Repository:
    name = ""

    def __init__(self, directory: Path) -> None:
        self.path = directory / self.name

    @classmethod
    def missing(cls) -> str | None:
        """Its program, when it is not installed."""
        return None if shutil.which(cls.name) else cls.name

    def add(self, tree: Path) -> float:
        raise NotImplementedError


class Restic(Repository):
    """Chunks, in packs. `compression` is restic's own word; "auto" is its default: zstd."""

    name = "restic"

    def __init__(self, directory: Path, compression: str = "auto") -> None:
        super().__init__(directory)
        self._compression = compression
        timed(self._restic("init", "--repository-version", "2"))

    def _restic(self, *arguments: str) -> list[str]:
        # Without a password to think about.
        return ["env", "RESTIC_PASSWORD=bench", "restic", "--no-cache", "--quiet", "-r", str(self.path), *arguments]

    def add(self, tree: Path) -> float:
        return timed(self._restic("backup", f"--compression={self._compression}", "--tag", tree.name, str(tree)))

    def check(self) -> float:
        return timed(self._restic("check", "--read-data"))

    def check_quickly(self) -> float:
        return timed(self._restic("check"))

    def collect(self, tree: Path) -> float:
        timed(self._restic("forget", "--tag", tree.name, "--keep-tag", "none"), ok=(0, 1))
        return timed(self._restic("prune", "--max-unused", "0"))


class Borg(Repository):
    """Chunks, in segments. `compression` is borg's own word."""

    name = "borg"

    def __init__(self, directory: Path, compression: str = "zstd") -> None:
        super().__init__(directory)
        self._compression = compression
        self._home = directory / "borg-home"
        timed(self._borg("init", "--encryption=none", str(self.path)))

    def _borg(self, *arguments: str) -> list[str]:
        return ["env", f"BORG_BASE_DIR={self._home}", "borg", *arguments]

    def add(self, tree: Path) -> float:
        return timed(self._borg("create", f"--compression={self._compression}", f"{self.path}::{tree.name}", str(tree)))

    def check(self) -> float:
        return timed(self._borg("check", "--verify-data", str(self.path)))

    def check_quickly(self) -> float:
        return timed(self._borg("check", str(self.path)))

    def collect(self, tree: Path) -> float:
        timed(self._borg("delete", f"{self.path}::{tree.name}"))
        return timed(self._borg("compact", "--threshold=0", str(self.path)))


class Casync(Repository):
    """Chunks of the serialized tree, a file each, with zstd; beside them an index of each tree."""

    name = "casync"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.path.mkdir()

    def add(self, tree: Path) -> float:
        index = self.path / f"{tree.name}.caidx"
        return timed(["casync", "make", f"--store={self.path}/default.castr", str(index), str(tree)])


class Ostree(Repository):
    """Whole files, each with zlib: mode "archive". A commit a tree, on a branch of its own."""

    name = "ostree"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        timed(self._ostree("init", "--mode=archive"))

    def _ostree(self, *arguments: str) -> list[str]:
        return ["ostree", f"--repo={self.path}", *arguments]

    def add(self, tree: Path) -> float:
        # Its time does not count: durable or not, it takes as much.
        return timed(self._ostree("commit", "--fsync=no", f"--branch={tree.name}", f"--tree=dir={tree}"))
