"""What every benchmark is given: the fixtures, the file system under all stores, the peers, and layerstore itself."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bench.fixtures import Fixtures
from bench.peers import PEERS, Containerd, Docker, Peer, Podman, timed

if TYPE_CHECKING:
    from layerstore import Store

P = TypeVar("P", bound=Peer)


@dataclass
class Context:
    """`directory` is on the measured file system, `run_directory` has a short path for sockets."""

    fixtures: Fixtures
    directory: Path
    run_directory: Path
    quick: bool = False
    peers_only: bool = False
    log: Callable[[str], None] = print
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _peers: dict[type[Peer], Peer] = field(default_factory=dict)

    def rounds(self, full: int = 5) -> int:
        return 2 if self.quick else full

    def count(self, full: int = 1000) -> int:
        return full // 10 if self.quick else full

    # -- peers, started when first asked for and kept until the end -------------------------------------------------

    def peer(self, kind: type[P]) -> P | None:
        if missing := kind.missing():
            self.log(f"{kind.name}: {missing} is not installed; its figures are left out")
            return None
        if kind not in self._peers:
            self._peers[kind] = self._stack.enter_context(kind(self.directory, self.run_directory))
        started = self._peers[kind]
        assert isinstance(started, kind)
        return started

    def peers(self) -> list[Peer]:
        return [peer for kind in PEERS if (peer := self.peer(kind)) is not None]

    def docker(self) -> Docker | None:
        return self.peer(Docker)

    def podman(self) -> Podman | None:
        return self.peer(Podman)

    def containerd(self) -> Containerd | None:
        return self.peer(Containerd)

    @contextlib.contextmanager
    def loaded(self, peer: Peer, *images: str) -> Iterator[None]:
        """The named fixture images in the peer, for as long as this lasts."""
        names = [self.fixtures.recipe(image).name for image in images]
        for image in images:
            peer.load(self.fixtures.archive(image, "gzip"))
        try:
            yield
        finally:
            for name in names:
                peer.remove(name)

    # -- layerstore -------------------------------------------------------------------------------------------------

    def command(self, store: Path, *arguments: str) -> list[str]:
        """layerstore's own command, as its script runs it."""
        script = Path(sys.executable).with_name("layerstore")
        program = [str(script)] if script.exists() else [sys.executable, "-m", "layerstore"]
        return [*program, "--root", str(store), *arguments]

    @contextlib.contextmanager
    def store(self, *images: str) -> Iterator[Store]:
        """A fresh store with the named fixture images, gone at the end."""
        import layerstore

        path = self.new_directory("store")
        store = layerstore.Store(path, create=True)
        try:
            for image in images:
                store.load(self.fixtures.archive(image, "gzip"))
            yield store
        finally:
            store.close()
            remove_store(path)

    def new_directory(self, purpose: str) -> Path:
        """A path that does not exist yet, on the measured file system."""
        return self.directory / f"{purpose}-{time.monotonic_ns()}"

    def load_by_command(self, archive: Path) -> float:
        """Seconds of `layerstore load` into a new store, which it makes; it is removed afterwards."""
        path = self.new_directory("store")
        try:
            os.sync()
            return timed(self.command(path, "load", "-i", str(archive)))
        finally:
            remove_store(path)

    def close(self) -> None:
        self._stack.close()


def remove_store(path: Path) -> None:
    """Unmount what the store holds mounted and delete it, so that the next measurement starts from nothing."""
    from bench.loopfs import unmount_below

    if path.exists():
        unmount_below(path)
        shutil.rmtree(path)
