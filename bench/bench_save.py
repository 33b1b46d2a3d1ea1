"""Saving a real image: how long, uncompressed and with gzip, how large, and how it compares to the compressor alone."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from bench.context import Context
from bench.measure import interleaved, seconds, split_ours, warm
from bench.peers import Containerd, Docker, Podman, output, timed
from bench.rows import Row, at_most, durably, faster, known, within

MB = 1e6
IMAGE = "debian"
WORK = "save the 245 MB Debian image"
NEAR = 1.5
"""How near to the compressor alone "at its speed" is: it has all cores, and reading, hashing and writing need some."""
MEMORY_LIMIT_BYTES = 250e6
DURABLE = {
    "ours": "the file and its name",
    "podman save": "pieces that it puts together, not the file",
    "skopeo copy": "pieces that it puts together, not the file",
    "ctr export": "not the file",
    "docker save": "not the file",
    "the compressor alone": "nothing, it writes no file",
}


def run(context: Context) -> list[Row]:
    rows: list[Row] = []
    target = context.new_directory("saved")
    try:
        for compression in ("none", "gzip"):
            rows += oci_archive(context, compression, target)
        rows += docker_archive(context, target)
        rows += compressor(context, target)
    finally:
        target.unlink(missing_ok=True)
    return list(durably(DURABLE, rows))


def written(target: Path, command: list[str]) -> float:
    """Seconds of a command that writes the file `target`, which is not there before."""
    target.unlink(missing_ok=True)
    os.sync()
    return timed(command)


def oci_archive(context: Context, compression: str, target: Path) -> Iterator[Row]:
    """By command, of an image that was loaded with its layer compressed so, from the page cache.

    containerd keeps that blob beside the files and does not compress.
    """
    name = context.fixtures.recipe(IMAGE).name
    archive = context.fixtures.archive(IMAGE, compression)
    peers = [peer for kind in (Podman, Containerd) if (peer := context.peer(kind)) is not None]
    sizes: dict[str, float] = {}
    for peer in peers:
        peer.load(archive)
    try:
        commands = dict(peers_commands(context, compression, name, target))
        with context.store(IMAGE) as store:
            if not context.peers_only:
                options = ("--format", "oci-archive", "--compression", compression, "-o", str(target))
                commands["ours"] = context.command(Path(store.root), "save", *options, name)
            for which, command in commands.items():
                written(target, command)
                sizes[which] = target.stat().st_size / MB
            figures = interleaved({k: partial(written, target, c) for k, c in commands.items()}, context.rounds())
    finally:
        for peer in peers:
            peer.remove(name)
    words = "uncompressed" if compression == "none" else compression
    copied = {peer: figures.pop(peer) for peer in ("ctr export",) if peer in figures and compression != "none"}
    ours, peers = split_ours(figures)
    yield faster(f"{WORK} to an OCI archive, {words}, by command", "s", ours, peers, 3)
    if copied:
        yield known(f"… against a copy of the blob that came in, {words}", "s", ours, copied)
    yield known(f"… its size, {words}", "MB", *split_ours(sizes))


def peers_commands(context: Context, compression: str, name: str, target: Path) -> Iterable[tuple[str, list[str]]]:
    podman, containerd = context.podman(), context.containerd()
    plain = compression == "none"
    if podman is not None:
        as_it_is = ["--uncompressed"] if plain else []
        save = ["save", "--quiet", "--format", "oci-archive", *as_it_is, "-o", str(target), name]
        yield "podman save", podman.command(*save)
        as_it_is = ["--dest-oci-accept-uncompressed-layers"] if plain else []
        (image,) = output(podman.command("images", "--quiet", "--no-trunc")).split()
        source = f"containers-storage:[overlay@{podman.store}+{podman.run_directory}/run]@{image.partition(':')[2]}"
        copy = ["copy", "--quiet", "--insecure-policy", *as_it_is, source, f"oci-archive:{target}:saved"]
        yield "skopeo copy", ["skopeo", *copy]
    if containerd is not None:
        yield "ctr export", containerd.command("images", "export", str(target), f"docker.io/library/{name}")


def docker_archive(context: Context, target: Path) -> Iterator[Row]:
    """The form that docker itself writes."""
    docker = context.peer(Docker)
    if docker is None:
        return
    name = context.fixtures.recipe(IMAGE).name
    commands = {"docker save": docker.command("save", "--output", str(target), name)}
    with context.loaded(docker, IMAGE), context.store(IMAGE) as store:
        if not context.peers_only:
            commands["ours"] = context.command(Path(store.root), "save", "-o", str(target), name)
        figures = interleaved({k: partial(written, target, c) for k, c in commands.items()}, context.rounds())
    yield faster(f"{WORK} to a docker archive, uncompressed, by command", "s", *split_ours(figures), 3)


def compressor(context: Context, target: Path) -> Iterator[Row]:
    """From Python, so that the start of a program does not count: against the compressor alone."""
    if context.peers_only:
        return
    from layerstore.layers.blob_streams import pieces_of
    from layerstore.layers.blobs import compressed

    tar = context.fixtures.debian_tar()
    warm(tar)

    def alone(compression: str) -> float:
        with tar.open("rb", buffering=0) as file:
            return seconds(lambda: sum(map(len, compressed(pieces_of(file), compression))))

    with context.store(IMAGE) as store:

        def save(compression: str) -> float:
            target.unlink(missing_ok=True)
            os.sync()
            return seconds(lambda: store.save(store.images(), target, format="oci-archive", compression=compression))

        for compression in ("gzip", "zstd"):
            works: dict[str, Callable[[], float]] = {
                "ours": partial(save, compression),
                "the compressor alone": partial(alone, compression),
            }
            figures = interleaved(works, context.rounds())
            yield within(f"{WORK} from Python, {compression}", "s", *split_ours(figures), NEAR)
    yield from peak_memory(context, target)


def peak_memory(context: Context, target: Path) -> Iterator[Row]:
    """The largest resident set of `layerstore save`, the pack that it has mapped included."""
    with context.store(IMAGE) as store:
        options = ("--format", "oci-archive", "--compression", "gzip", "-o", str(target))
        command = context.command(Path(store.root), "save", *options, context.fixtures.recipe(IMAGE).name)
        # Of a small process's child: what is spawned counts as large as who spawned it was.
        program = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        peak = int(output([sys.executable, "-c", program, *command])) * 1024
    yield at_most("peak memory of the save, gzip", "MB", peak / MB, {}, MEMORY_LIMIT_BYTES / MB)
