"""Registries: how long a pull from loopback takes, and what a push sends of what is there already."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from bench.bench_import import DURABLE, RECORDS
from bench.context import Context, remove_store
from bench.loopfs import unmount_below
from bench.measure import interleaved, seconds, split_ours
from bench.peers import Daemon, Peer, timed
from bench.rows import Row, at_most, durably, faster, known

TIMES_FASTER = 4.0
REQUESTS_A_LAYER = 3
PUSHED = {"ours": "what the registry makes durable, which is not known"}


class Registry:
    """docker-registry on loopback, on the measured file system."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{probe.getsockname()[1]}"
        self._blobs = directory / "data/docker/registry/v2/blobs"
        self._log = directory / "log"
        config = {
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(directory / "data")}},
            "http": {"addr": self.host, "secret": "of the benchmark"},
        }
        # JSON is YAML.
        (directory / "config.yml").write_text(json.dumps(config))
        self._daemon = Daemon(["docker-registry", "serve", str(directory / "config.yml")], self._log, self._answers)

    def _answers(self) -> bool:
        host, _, port = self.host.partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((host, int(port))) == 0

    def stored_bytes(self) -> int:
        return sum(path.stat().st_size for path in self._blobs.rglob("data"))

    def requests(self) -> list[str]:
        """Those so far, "METHOD PATH"."""
        lines = self._log.read_text().splitlines()
        return [line.split('"')[1].rpartition(" ")[0] for line in lines if ' HTTP/1.1" ' in line]

    def stop(self) -> None:
        self._daemon.stop()


def run(context: Context) -> list[Row]:
    missing = next((name for name in ("docker-registry", "skopeo") if shutil.which(name) is None), None)
    if missing:
        context.log(f"{missing} is not installed; the figures of registries are left out")
        return []
    with contextlib.ExitStack() as stack:
        registry = Registry(context.new_directory("registry"))
        stack.callback(registry.stop)
        rows = list(durably({**DURABLE, "skopeo": RECORDS}, pulls(context, registry)))
        return rows if context.peers_only else [*rows, *durably(PUSHED, pushes(context, registry))]


def pulls(context: Context, registry: Registry) -> Iterator[Row]:
    """By command, each into a store that has nothing of the image; what the registry reads is in the page cache."""
    name = f"{registry.host}/debian:1"
    archive = f"docker-archive:{context.fixtures.archive('debian', 'gzip')}"
    timed(["skopeo", "copy", "--quiet", "--dest-tls-verify=false", archive, f"docker://{name}"])

    works: dict[str, Callable[[], float]] = {
        peer.name: partial(pull_and_remove, peer, name) for peer in context.peers()
    }
    works["skopeo"] = partial(pull_by_skopeo, context, name)
    if not context.peers_only:
        works["ours"] = partial(pull_by_command, context, name)
        works["from Python"] = partial(pull_from_python, context, name)
    figures = interleaved(works, context.rounds())
    called = figures.pop("from Python", None)
    ours, peers = split_ours(figures)
    yield faster("pull of the 245 MB Debian image from loopback, by command", "s", ours, peers, TIMES_FASTER)
    yield known("pull of it, from Python", "s", called, peers)


def pull_and_remove(peer: Peer, name: str) -> float:
    os.sync()
    took = peer.pull(name)
    peer.remove(name)
    return took


def pull_by_skopeo(context: Context, name: str) -> float:
    """To containers-storage, which is podman's."""
    store, state = context.new_directory("skopeo"), context.run_directory / "skopeo"
    target = f"containers-storage:[overlay@{store}+{state}]{name}"
    os.sync()
    try:
        return timed(["skopeo", "copy", "--quiet", "--src-tls-verify=false", f"docker://{name}", target])
    finally:
        for place in (store, state):
            unmount_below(place)
            shutil.rmtree(place, ignore_errors=True)


def pull_by_command(context: Context, name: str) -> float:
    path = context.new_directory("store")
    try:
        timed(context.command(path, "init"))
        os.sync()
        return timed(context.command(path, "pull", name))
    finally:
        remove_store(path)


def pull_from_python(context: Context, name: str) -> float:
    with context.store() as store:
        os.sync()
        return seconds(store.pull, name)


def pushes(context: Context, registry: Registry) -> Iterator[Row]:
    """Of a first app, of a second one that shares all but the last layer, and of that again."""
    first, second = (context.fixtures.recipe(image).name for image in ("app-a", "app-b"))
    with context.store("app-a", "app-b") as store:
        took = seconds(store.push, first, f"{registry.host}/app:a")
        yield known("push of an app of 3 layers, 243 MB, to a registry without them, from Python", "s", took, {})
        before = registry.stored_bytes()
        took = seconds(store.push, second, f"{registry.host}/app:b")
        yield known("push of a second app on the same base, from Python", "s", took, {})
        sent = registry.stored_bytes() - before
        layer = context.fixtures.app_tar("app-b").stat().st_size
        yield at_most("… bytes that it sends", "kB", sent / 1e3, {}, layer / 1e3, "its own layer, uncompressed")
        before, asked = registry.stored_bytes(), len(registry.requests())
        took = seconds(store.push, second, f"{registry.host}/app:b")
        yield known("the same push again, from Python", "s", took, {})
        yield at_most("… bytes that it sends", "kB", (registry.stored_bytes() - before) / 1e3, {}, 0.0)
        blobs = [request for request in registry.requests()[asked:] if "/blobs/" in request]
        yield at_most("… requests a layer, that for the config among them", "", len(blobs) / 3, {}, REQUESTS_A_LAYER)
