"""The path index: what is at a path of a stack of layers, by depth, against dictionaries, SQLite and overlayfs.

The stacks are the Debian image dealt over 1 to 2,000 layers (stacks.py). All of its paths are looked up, and as many
that are not there, in one shuffled order. The peers are those of lookup_peers.py; overlayfs takes 500 layers at most.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import re
import struct
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import lookup_peers, many_paths, stacks
from bench.context import Context
from bench.lookup_peers import Dicts, Sqlite, SqliteByLayer, SqliteByPath
from bench.measure import drop_caches, helper, helper_output, interleaved, remove_tree, seconds, split_ours
from bench.rows import NOTHING, Row, at_least, at_most, durably, faster, known
from bench.stacks import Layer

if TYPE_CHECKING:
    from layerstore import Store
    from layerstore._core.index import Index
    from layerstore.views.view import View

NANOSECOND, MICROSECOND, MILLISECOND = 1e9, 1e6, 1e3
DEPTHS = (1, 12, 127, 500, 2000)
OVERLAYFS_DEEPEST = 500
OVERLAYFS = "overlayfs"
BY_LAYER, BY_PATH = "SQLite (layer, path)", "SQLite (path, layer)"
SQLITES: dict[str, type[Sqlite]] = {BY_LAYER: SqliteByLayer, BY_PATH: SqliteByPath}
OURS, DICTS = "ours", "dicts"
CALLS = 8
"""Of a batch of ours, a figure: one takes a millisecond."""
SLOW_DEPTH, SAMPLE = 100, 1000
"""From this depth on, what goes down the layers one by one is asked for so many of the paths, when warm."""
TIMES_FASTER = 10
SMALL = 10
BATCH = 10_000
HASH_KEY = bytes(range(16))

Paths = Sequence[str]
LookUp = Callable[[Paths], object]


def run(context: Context) -> list[Row]:
    entries = stacks.image_entries(context.fixtures.debian_tar())
    with contextlib.ExitStack() as stack:
        store = None if context.peers_only else stack.enter_context(context.store())
        asked = Asked.of(list(entries), context.run_directory)
        deep = [stack.enter_context(prepared(context, store, stacks.deal(entries, depth))) for depth in DEPTHS]
        check(context, asked, deep)
        rows = list(warm(context, asked, deep))
        if store is not None:
            rows += level(context, asked, deep[0], deep[-1])
        rows += [*cold(context, asked, deep), *one_by_one(context, asked, deep[1])]
    if not context.peers_only:
        rows += [*building(context, entries), *large(context)]
    return list(durably(NOTHING, rows))


# -- what is asked, and who is asked -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """The paths, "hits" and "misses", and the same as files for csrc/stat_paths.c."""

    paths: dict[str, list[str]]
    lists: dict[str, Path]

    @classmethod
    def of(cls, hits: list[str], directory: Path) -> Asked:
        """What is missing would lie where programs look in vain: in a directory that is there, beside what is."""
        random.Random(stacks.SEED).shuffle(hits)
        paths = {"hits": hits, "misses": [path + stacks.BACKUP for path in hits]}
        lists = {what: directory / what for what in paths}
        for what, file in lists.items():
            file.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in paths[what]))
        return cls(paths, lists)


@dataclass(frozen=True)
class Stack:
    """One depth: our store and the name of the image in it, the dicts, SQLite's files, and the mounted overlay.

    There is no store where only the peers are measured, and no overlay where there are too many layers for it.
    """

    depth: int
    store: Path | None
    image: str
    dicts: Dicts
    sqlite: dict[str, Path]
    overlay: Path | None

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[str, LookUp]]:
        """Everyone but the kernel, by name."""
        with contextlib.ExitStack() as stack:
            look_ups: dict[str, LookUp] = {DICTS: self.dicts.lookup_many}
            for name, kind in SQLITES.items():
                look_ups[name] = stack.enter_context(contextlib.closing(kind(self.sqlite[name]))).lookup_many
            if self.store is not None:
                look_ups[OURS] = stack.enter_context(self.view()).look_up
            yield look_ups

    @contextlib.contextmanager
    def view(self) -> Iterator[Ours]:
        import layerstore

        assert self.store is not None
        with layerstore.Store(self.store) as store:
            yield Ours(store.image(self.image).view)


class Ours:
    """As the peers are asked: nobody else follows a link in the last place."""

    def __init__(self, view: View) -> None:
        self.look_up = partial(view.lookup_many, follow_symlinks=False)
        self.look_up_one = partial(view.lookup, follow_symlinks=False)


@contextlib.contextmanager
def prepared(context: Context, store: Store | None, layers: list[Layer]) -> Iterator[Stack]:
    depth = len(layers)
    context.log(f"index: a stack of {depth:,} layers")
    base = make(context.new_directory(f"stack-{depth}"))
    tables = lookup_peers.tables(layers)
    with contextlib.ExitStack() as stack:
        stack.callback(remove_tree, base)
        tars = [stacks.write_tar(layer, base / f"{i}.tar") for i, layer in enumerate(layers)]
        overlay = None
        if depth <= OVERLAYFS_DEEPEST:
            lowers = [stacks.write_directory(layer, tars[i], base / str(i)) for i, layer in enumerate(layers)]
            # Two is the least that overlayfs joins.
            lowers += [make(base / "empty")] * (depth == 1)
            mounting = helper("mount_layers", context.run_directory)
            overlay = stack.enter_context(lookup_peers.mounted_layers(mounting, lowers, base / "root"))
        image = f"stack:{depth}"
        if store is not None:
            store.load(stacks.write_archive(image, tars, base / "archive.tar"))
        sqlite = {name: kind.write(base / f"{kind.__name__}.db", tables) for name, kind in SQLITES.items()}
        yield Stack(depth, None if store is None else store.root, image, Dicts(tables), sqlite, overlay)


def make(directory: Path) -> Path:
    directory.mkdir()
    return directory


def check(context: Context, asked: Asked, deep: Sequence[Stack]) -> None:
    """That all of them say the same, before anything is measured."""
    for stack in deep:
        for what, paths in asked.paths.items():
            expected = len(paths) if what == "hits" else 0
            with stack.opened() as look_ups:
                counted = {name: found(look_up(paths[:SAMPLE])) for name, look_up in look_ups.items()}
            assert set(counted.values()) == {min(expected, SAMPLE)}, f"{stack.depth} layers, {what} found: {counted}"
            if stack.overlay is not None:
                _, kernel = stat_paths(context, stack.overlay, asked.lists[what], passes=1)[0]
                assert kernel == expected, f"{stack.depth} layers, {what} found by overlayfs: {kernel}"


def found(rows: Any) -> int:
    """How many of the paths are there, of a list of rows or None, or of our array."""
    return sum(row is not None for row in rows) if isinstance(rows, list) else int(rows["found"].sum())


def stat_paths(context: Context, tree: Path, paths: Path, passes: int) -> list[tuple[float, int]]:
    """Nanoseconds a path and how many were there, of each pass."""
    figures = helper_output(helper("stat_paths", context.run_directory), tree, paths, passes)
    return [(float(ns), int(count)) for ns, count in zip(figures[::2], figures[1::2], strict=True)]


def per_path(look_up: LookUp, paths: Paths, calls: int = 1) -> float:
    """Nanoseconds, after one call that is not timed."""
    look_up(paths)
    return seconds(lambda: [look_up(paths) for _ in range(calls)]) * NANOSECOND / calls / len(paths)


# -- by depth ----------------------------------------------------------------------------------------------------------

WORK = re.compile(r"look up the Debian image's paths, (hits|misses), ([\d,]+) layers?, (warm|cold)")


def work_of(what: str, depth: int, state: str) -> str:
    """What a row is called, which WORK reads again (plot_index.py)."""
    return f"look up the Debian image's paths, {what}, {depth:,} layer{'s' * (depth > 1)}, {state}"


Key = tuple[str, int, str]
"""Who, depth, hits or misses."""


def warm(context: Context, asked: Asked, deep: Sequence[Stack]) -> Iterator[Row]:
    works: dict[Key, Callable[[], float]] = {}
    with contextlib.ExitStack() as opened:
        for stack in deep:
            look_ups = opened.enter_context(stack.opened())
            for what, paths in asked.paths.items():
                for name, look_up in look_ups.items():
                    sample = paths if stack.depth < SLOW_DEPTH or name == OURS else paths[:SAMPLE]
                    calls = CALLS if name == OURS else 1
                    works[name, stack.depth, what] = partial(per_path, look_up, sample, calls)
                if stack.overlay is not None:
                    works[OVERLAYFS, stack.depth, what] = partial(warm_stat, context, stack.overlay, asked.lists[what])
        figures = interleaved(works, context.rounds(7))
    yield from rows_of(figures, "warm", 100)
    for what in asked.paths:
        ours = figures.get((OURS, 127, what))
        work = f"the same against overlayfs alone, {what}, 127 layers, warm"
        yield faster(work, "ns", ours, {OVERLAYFS: figures[OVERLAYFS, 127, what]}, TIMES_FASTER)


def level(context: Context, asked: Asked, least: Stack, most: Stack) -> Iterator[Row]:
    """Ours at the least and the greatest depth, with nobody else in between: how much the depth matters."""
    with contextlib.ExitStack() as opened:
        views = {stack.depth: opened.enter_context(stack.view()) for stack in (least, most)}
        for what, paths in asked.paths.items():
            works: dict[int, Callable[[], float]] = {
                depth: partial(per_path, view.look_up, paths, 1) for depth, view in views.items()
            }
            figures = interleaved(works, context.rounds(51))
            work = f"… {what}, {most.depth:,} layers over {least.depth:,}"
            yield at_most(work, "times", figures[most.depth] / figures[least.depth], {}, 1.2)


def rows_of(figures: dict[Key, float], state: str, limit: float | None) -> Iterator[Row]:
    for what in ("hits", "misses"):
        for depth in DEPTHS:
            of_all = {name: figure for (name, *key), figure in figures.items() if key == [depth, what]}
            ours, peers = split_ours(of_all)
            if limit is None:
                yield known(work_of(what, depth, state), "ns", ours, peers)
            else:
                yield at_most(work_of(what, depth, state), "ns", ours, peers, limit)


def warm_stat(context: Context, tree: Path, paths: Path) -> float:
    return stat_paths(context, tree, paths, passes=2)[1][0]


def cold(context: Context, asked: Asked, deep: Sequence[Stack]) -> Iterator[Row]:
    """Nothing of any of them in the page cache or the kernel's other caches; ours and SQLite opened after that."""
    works: dict[Key, Callable[[], float]] = {}
    for stack in deep:
        for what, paths in asked.paths.items():
            if stack.store is not None:
                works[OURS, stack.depth, what] = partial(cold_ours, stack, paths)
            works[BY_PATH, stack.depth, what] = partial(cold_sqlite, stack, paths)
            if stack.overlay is not None:
                works[OVERLAYFS, stack.depth, what] = partial(cold_stat, context, stack.overlay, asked.lists[what])
    yield from rows_of(interleaved(works, context.rounds(3)), "cold", None)


def cold_ours(stack: Stack, paths: Paths) -> float:
    def look_up() -> None:
        with stack.view() as ours:
            ours.look_up(paths)

    # A mapping that is still there would keep its pages.
    gc.collect()
    drop_caches()
    return seconds(look_up) * NANOSECOND / len(paths)


def cold_sqlite(stack: Stack, paths: Paths) -> float:
    def look_up() -> None:
        with contextlib.closing(SqliteByPath(stack.sqlite[BY_PATH])) as opened:
            opened.lookup_many(paths)

    drop_caches()
    return seconds(look_up) * NANOSECOND / len(paths)


def cold_stat(context: Context, tree: Path, paths: Path) -> float:
    drop_caches()
    return stat_paths(context, tree, paths, passes=1)[0][0]


# -- one path, from Python ---------------------------------------------------------------------------------------------


def one_by_one(context: Context, asked: Asked, stack: Stack) -> Iterator[Row]:
    """The loop included, as a program would have it."""
    assert stack.overlay is not None
    with contextlib.ExitStack() as opened:
        ours = None if stack.store is None else opened.enter_context(stack.view())
        for what, paths in asked.paths.items():
            below = [f"{stack.overlay}/{path}" for path in paths]
            works: dict[str, Callable[[], float]] = {"os.lstat, overlayfs": partial(each, exists, below)}
            if ours is not None:
                works[OURS] = partial(each, ours.look_up_one, paths)
            figures = split_ours(interleaved(works, context.rounds(7)))
            yield at_most(f"look up one path from Python, {what}, {stack.depth} layers, warm", "µs", *figures, 1.0)


def exists(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def each(look_up: Callable[[str], object], paths: Paths) -> float:
    """Microseconds a path."""

    def look_up_all() -> None:
        for path in paths:
            look_up(path)

    look_up_all()
    return seconds(look_up_all) * MICROSECOND / len(paths)


# -- building ----------------------------------------------------------------------------------------------------------


def layer_indexes(tars: Sequence[Path]) -> list[Index]:
    from layerstore._core.index import Index
    from layerstore._core.layer import build_layer

    return [Index(build_layer(tar.read_bytes(), HASH_KEY)[0]) for tar in tars]


def building(context: Context, entries: stacks.Entries) -> Iterator[Row]:
    """In memory: nothing is read from a file or written to one."""
    from layerstore._core.erofs import write_tree
    from layerstore._core.index import Index, merge

    layers = layer_indexes(context.fixtures.debian_split(12))
    image = Index(merge(layers, HASH_KEY))
    small = context.run_directory / "small.tar"
    top = layer_indexes([stacks.write_tar(small_layer(entries), small)])[0]
    # Every content in one pack: where a content is changes a number in the image and not what there is to do.
    locations = b"".join(struct.pack("<II", 1, slot) for slot in range(image.content_count))
    works: dict[str, Callable[[], object]] = {
        "merge": lambda: merge(layers, HASH_KEY),
        "verify": lambda: verify(layers),
        "erofs": lambda: write_tree(image, locations),
        "one more": lambda: merge([image, top], HASH_KEY),
    }
    timed: dict[str, Callable[[], float]] = {name: partial(milliseconds, work) for name, work in works.items()}
    figures = interleaved(timed, context.rounds(15))
    paths = f"{len(image):,}"
    yield at_most(f"merge the {len(layers)} layers of the Debian image, {paths} paths", "ms", figures["merge"], {}, 15)
    yield known("… verifying them first", "ms", figures["verify"] + figures["merge"], {})
    yield at_most("make its EROFS image", "ms", figures["erofs"], {}, 30)
    yield at_most(f"merge one more layer of {SMALL} entries onto it", "ms", figures["one more"], {}, 3)


def verify(indexes: Sequence[Index]) -> None:
    for index in indexes:
        index.verify()


def milliseconds(work: Callable[[], object]) -> float:
    return seconds(work) * MILLISECOND


def small_layer(entries: stacks.Entries) -> Layer:
    """New files, rewritten ones and one that is removed, all in directories that are there."""
    files = [path for path, entry in entries.items() if entry.isreg()]
    chosen = random.Random(stacks.SEED).sample(files, SMALL)
    new = {path + stacks.BACKUP: stacks.stand_in(entries[path], path + stacks.BACKUP) for path in chosen[:4]}
    return Layer(entries={**new, **{path: entries[path] for path in chosen[4:9]}}, whiteouts=chosen[9:])


# -- ten million paths -------------------------------------------------------------------------------------------------


def large(context: Context) -> Iterator[Row]:
    """Memory: up to 5 GB, for the layer's index and the chain's that it is merged into."""
    count = context.count(10_000_000)
    layer, chain = context.directory / "large-layer", context.directory / "large-chain"
    with contextlib.ExitStack() as stack:
        stack.callback(layer.unlink, missing_ok=True)
        stack.callback(chain.unlink, missing_ok=True)
        rate = count / build_large(context, count, layer) / 1e6
        yield at_least(f"build the index of a layer of {count:,} paths from its tar", "M/s", rate, 1.0)
        rate = count / merge_large(layer, chain) / 1e6
        yield at_least("… merge it into the index of a chain", "M/s", rate, 1.0)
        yield known("… bytes of that a path", "B", chain.stat().st_size / count, {})
        yield from large_lookups(context, chain)


def build_large(context: Context, count: int, file: Path) -> float:
    """Seconds from the first byte of the tar to the index in memory, without those of making up the tar."""
    from layerstore._core.ingest import Contents, Digests, LayerIngest

    staging = make(context.new_directory("staging"))
    with contextlib.ExitStack() as stack:
        stack.callback(remove_tree, staging)
        pack = stack.enter_context((staging / "pack").open("wb"))
        staging_fd = os.open(staging, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, staging_fd)
        ingest = LayerIngest(Contents(staging_fd, pack.fileno(), Digests(b"", 0), 1))
        took = sum(seconds(ingest.feed, span.reshape(-1)) for span in many_paths.spans(count))
        ingest.feed(many_paths.END)
        ingest.finish()
        index, last = timed(lambda: ingest.index(HASH_KEY))
        file.write_bytes(index)
        return took + last


def merge_large(layer: Path, file: Path) -> float:
    """Seconds, from a file that is in the page cache to the index in memory."""
    from layerstore._core.index import merge
    from layerstore.layers.index_files import open_index

    index, took = timed(lambda: merge([open_index(str(layer))], HASH_KEY))
    file.write_bytes(index)
    return took


def timed(work: Callable[[], memoryview]) -> tuple[memoryview, float]:
    """What it gives, and the seconds that it took."""
    begin = time.perf_counter()
    result = work()
    return result, time.perf_counter() - begin


def large_lookups(context: Context, file: Path) -> Iterator[Row]:
    from layerstore.layers.index_files import open_index
    from layerstore.views.view import View

    opening = partial(milliseconds, lambda: open_index(str(file)))
    yield at_most("… open it", "ms", interleaved({OURS: opening}, context.rounds(7))[OURS], {}, 1.0)
    index = open_index(str(file))
    choice = random.Random(stacks.SEED)
    hits = [index.record(choice.randrange(len(index))).path.decode() for _ in range(context.count(1_000_000))]
    with context.store() as store:
        ours = Ours(View(index, store._engine.contents))
        works: dict[str, Callable[[], float]] = {}
        for what, paths in {"hits": hits, "misses": [path + stacks.BACKUP for path in hits]}.items():
            batches = ["\n".join(paths[i : i + BATCH]) for i in range(0, len(paths), BATCH)]
            works[what] = partial(of_batches, ours.look_up, batches)
        for what, figure in interleaved(works, context.rounds(5)).items():
            yield at_most(f"… look up random paths of it, {what}, in batches of {BATCH:,}", "ns", figure, {}, 200)


def of_batches(look_up: LookUp, batches: Sequence[str]) -> float:
    """Nanoseconds a path, of paths that were just made, as those are that a program asks for."""
    fresh = (batch.split("\n") for batch in batches)
    return sum(seconds(look_up, paths) for paths in fresh) * NANOSECOND / len(batches) / BATCH
