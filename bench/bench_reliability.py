"""What trust costs: reads that verify, checks and garbage collection beside restic and borg, many processes at once.

podman 4.3, Debian's, has no `podman system check`; docker and containerd have nothing that compares what they keep with
digests. restic and borg do: they are given the trees of the same images, one after the other.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from bench.context import Context
from bench.creating import rate
from bench.loopfs import disk_bytes
from bench.measure import extract, interleaved, remove_tree, seconds
from bench.peers import Podman, timed
from bench.repositories import Borg, Restic
from bench.rows import NOTHING, Row, at_least, durably, known

if TYPE_CHECKING:
    from layerstore import Store

IMAGES = ("debian", "debian-retarred", "app-a", "app-b")
PROCESSES = (1, 2, 4, 8, 16)
GB = 1e9
MADE = {"ours": "removals, not what is made", "podman's API": "its records"}
COLLECTED = {"ours": "all of it"}


def run(context: Context) -> list[Row]:
    return [
        *durably(NOTHING, verified_reads(context)),
        *durably(MADE, throughput(context)),
        *checks(context),
    ]


def verified_reads(context: Context) -> Iterator[Row]:
    """Every file of the Debian image by `read_many`, from the page cache."""
    if context.peers_only:
        return
    import layerstore

    with context.store("debian") as store:
        name = context.fixtures.recipe("debian").name
        view = store.image(name).view
        paths = [
            path
            for directory, _, names in view.walk("/")
            for path in (f"{directory}/{each}" for each in names)
            if view.find(path, follow_symlinks=False).is_file()
        ]

        def reading(verify: str, before: int) -> Callable[[], float]:
            def read() -> float:
                with layerstore.Store(store.root, verify=verify) as opened:  # type: ignore[arg-type]  # a word of them
                    image = opened.image(name).view
                    image.read_many(paths[:1])
                    for _ in range(before):
                        image.read_many(paths)
                    return seconds(image.read_many, paths) * 1e3

            return read

        figures = interleaved(
            {
                "never": reading("never", 1),
                "first, the first time": reading("first", 0),
                "first, later": reading("first", 1),
                "always": reading("always", 1),
            },
            context.rounds(),
        )
    for verify in ("first, the first time", "first, later", "always"):
        work = f"read_many of all files of the Debian image, verified {verify}"
        yield known(work, "ms", figures[verify], {"not verified": figures["never"]})


def throughput(context: Context) -> Iterator[Row]:
    """Containers made and removed a second by so many processes; podman's by as many connections to its API."""
    lasts = 1.0 if context.quick else 4.0
    peers = dict(podman_throughput(context, lasts))
    if context.peers_only:
        for count in PROCESSES:
            yield Row(_work("overlay", count), "/s", None, peers.get(count, {}), more_is_better=True)
        return
    image = context.fixtures.recipe("debian").name
    with context.store("debian") as store:
        for driver in ("overlay", "extent"):
            figures = interleaved(
                {count: _rate_of(store, image, driver, count, lasts) for count in PROCESSES}, context.rounds(3)
            )
            for count in PROCESSES:
                beside = peers.get(count, {}) if driver == "overlay" else {}
                if count == 8:
                    row = at_least(_work(driver, count), "/s", figures[count], figures[1])
                    yield Row(row.work, row.unit, row.ours, beside, f"{row.target} (1 process)", row.met, True)
                else:
                    yield Row(_work(driver, count), "/s", figures[count], beside, more_is_better=True)


def _rate_of(store: Store, image: str, driver: str, count: int, lasts: float) -> Callable[[], float]:
    return lambda: rate(store.root, image, driver, count, lasts)


def _work(driver: str, count: int) -> str:
    return f"containers made and removed, {driver} driver, {count} process{'es' if count > 1 else ''}, from Python"


def podman_throughput(context: Context, lasts: float) -> Iterator[tuple[int, dict[str, float]]]:
    podman = context.podman()
    if podman is None:
        return
    image = context.fixtures.recipe("debian").name
    with context.loaded(podman, "debian"):
        for count in PROCESSES:
            yield count, {"podman's API": _podman_rate(podman, image, count, lasts)}


def _podman_rate(podman: Podman, image: str, count: int, lasts: float) -> float:
    done: list[int] = []
    end = time.perf_counter() + lasts

    def work() -> None:
        api, made = podman.api(), 0
        while time.perf_counter() < end:
            body = {"image": image, "command": ["/bin/true"]}
            container = api.request("POST", "/v4.0.0/libpod/containers/create", body)["Id"]
            api.request("DELETE", f"/v4.0.0/libpod/containers/{container}?force=true")
            made += 1
        done.append(made)

    begin = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - begin)


# Checking, and giving space back


@contextlib.contextmanager
def repositories(context: Context) -> Iterator[tuple[list[Restic | Borg], Path]]:
    """Those of restic and borg with the trees of the images; and the tree of the image that goes."""
    directory = context.new_directory("repositories")
    directory.mkdir()
    try:
        # Without compression, as ours.
        made: list[Restic | Borg] = []
        if Restic.missing() is None:
            made.append(Restic(directory, compression="off"))
        if Borg.missing() is None:
            made.append(Borg(directory, compression="none"))
        tree = directory / "none"
        for image in IMAGES if made else ():
            tree = directory / image
            for number, step in enumerate(context.fixtures.recipe(image).steps):
                extract(step.tar, tree / str(number))
            for each in made:
                each.add(tree)
            remove_tree(tree)
        yield made, tree
    finally:
        remove_tree(directory)


def checks(context: Context) -> Iterator[Row]:
    """All from the page cache, by command, into a process of its own each time."""
    gone = context.fixtures.recipe(IMAGES[-1]).name
    with contextlib.ExitStack() as stack:
        peers, tree = stack.enter_context(repositories(context))
        full: dict[str, Callable[[], float]] = {peer.name: peer.check for peer in peers}
        quick: dict[str, Callable[[], float]] = {peer.name: peer.check_quickly for peer in peers}
        ours: Store | None = None
        if not context.peers_only:
            ours = stack.enter_context(context.store(*IMAGES))
            full["ours"] = lambda: timed(context.command(ours.root, "fsck"))
            quick["ours"] = lambda: timed(context.command(ours.root, "fsck", "--quick"))
        full_seconds = interleaved(full, context.rounds(3))
        quick_seconds = interleaved(quick, context.rounds(3))
        whole, fast = full_seconds.pop("ours", None), quick_seconds.pop("ours", None)
        of = f"of {len(IMAGES)} images"
        rows = [
            known(
                f"fsck {of}, by command; restic check --read-data, borg check --verify-data", "s", whole, full_seconds
            ),
            known(f"fsck --quick {of}, by command; restic check, borg check", "s", fast, quick_seconds),
        ]
        yield from durably({"ours": "nothing"}, rows)
        if ours is not None:
            yield from durably({"ours": "nothing"}, rates(ours, of))
            peers_seconds = {peer.name: peer.collect(tree) for peer in peers}
            yield from durably(COLLECTED, collecting(context, ours, gone, peers_seconds))


def rates(store: Store, of: str) -> Iterator[Row]:
    report = store.check()
    yield Row(f"fsck {of}, from Python, contents", "GB/s", report.bytes / report.seconds / GB, {}, more_is_better=True)
    yield Row(f"fsck {of}, from Python, files", "/s", report.contents / report.seconds, {}, more_is_better=True)
    swift = store.check(quick=True)
    per_second = report.contents / swift.seconds
    yield Row(f"fsck --quick {of}, from Python, files", "/s", per_second, {}, more_is_better=True)


def collecting(context: Context, store: Store, gone: str, peers: dict[str, float]) -> Iterator[Row]:
    """Give back what one image alone had, and then all that is left: what du says of it."""
    store.remove_image(gone)
    took = timed(context.command(store.root, "gc"))
    yield known(
        f"gc of what one of {len(IMAGES)} images had alone, by command; restic prune, borg compact", "s", took, peers
    )
    for image in store.images():
        store.remove_image(image.id, force=True)
    contents = store.usage().parts["garbage"].size_bytes
    before = disk_bytes(store.root)
    collected: list[float] = []
    took = seconds(lambda: collected.append(store.collect_garbage().contents))
    given = before - disk_bytes(store.root)
    yield Row("gc of all images, from Python, contents", "GB/s", contents / took / GB, {}, more_is_better=True)
    yield Row("gc of all images, from Python, files", "/s", collected[0] / took, {}, more_is_better=True)
    row = at_least("disk given back by it, by du", "MB", given / 1e6, 0.95 * contents / 1e6)
    yield Row(row.work, row.unit, row.ours, {}, f"{row.target} (95% of its garbage)", row.met, True)
