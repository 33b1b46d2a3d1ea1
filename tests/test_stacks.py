"""Stacks of up to 2,000 layers: loading, merging upon what is merged, what is kept of it on disk, and its eviction."""

import contextlib
import errno
import fcntl
import gc
import json
import os
import random
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from images import tar_of
from meddling import ALWAYS, Meddling
from stacks import Stack, chain_files, contents_of
from test_load import child

import layerstore._core.index as core
from layerstore import Image, Store
from layerstore._core.files import MappedFile
from layerstore._core.index import merge
from layerstore.chains import indexes
from layerstore.cli.output import parse_size
from layerstore.errors import CorruptError, InvalidInput
from layerstore.layers.index_files import open_layer_index
from layerstore.mount.shared import Mounts
from layerstore.store import durable
from layerstore.types import DiffId, chain_id, chain_ids, hash_key


@pytest.fixture(scope="module")
def stack() -> Stack:
    return Stack(60)


@pytest.fixture
def merges(meddle: Meddling) -> list[int]:
    """How many indexes each merge was given, from now on."""
    return meddle.noted(indexes, "merge", lambda layers, _: len(layers))


def bytes_of(store: Store, image: Image) -> bytes:
    """The file of a chain's index."""
    return (store.root / "chains" / f"{image.chain_id[7:]}.index").read_bytes()


def from_scratch(store: Store, diff_ids: list[str]) -> bytes:
    layers = [open_layer_index(store.layout.layer_index(DiffId(diff_id)), DiffId(diff_id)) for diff_id in diff_ids]
    return bytes(merge(layers, hash_key(chain_id(map(DiffId, diff_ids)))))


# Two thousand


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Store, Stack]]:
    stack = Stack(2_000)
    with Store(tmp_path_factory.mktemp("deep") / "store", create=True) as store:
        stack.load(store, [2_000])
        yield store, stack
        store.remove(store.containers(), force=True)


def test_two_thousand_layers_are_looked_up(deep: tuple[Store, Stack]) -> None:
    store, stack = deep
    image = store.image("grown:2000")
    index = image.index()
    assert index.layer_count == 2_000
    index.verify()
    shown = stack.files(2_000)
    paths = [path.encode() for path in shown]
    records = [index.record(number) for number in index.lookup_many(paths)]
    assert [index.content(record.content or 0)[1] for record in records] == [len(data) for data in shown.values()]
    assert {record.path.decode() for record in index if stat.S_ISREG(record.mode)} == set(shown)
    owners = {record.path: record.layer for record in records}
    assert owners[b"changing"] == 1_999
    assert all(owners[path] == int(path.rpartition(b"own")[2]) for path in paths if b"own" in path)


@pytest.mark.root
@pytest.mark.kernel
def test_two_thousand_layers_are_mounted(deep: tuple[Store, Stack]) -> None:
    store, stack = deep
    with store.create("grown:2000").mount() as root:
        assert contents_of(root) == stack.files(2_000)


def test_the_history_of_two_thousand_layers(deep: tuple[Store, Stack]) -> None:
    store, _ = deep
    steps = store.image("grown:2000").history()
    assert len(steps) == 2_000
    assert steps[0].size_bytes == 30 * len("of layer 1999\n") + len("layer 1999\n")


def test_many_layers_need_few_descriptors(deep: tuple[Store, Stack], tmp_path: Path) -> None:
    _, stack = deep
    (tmp_path / "archive.tar").write_bytes(stack.archive(400, 0))
    program = """
        import resource, sys
        from layerstore import Store
        resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
        with Store(sys.argv[1], create=True) as store:
            image, = store.load(sys.argv[2])
            print(len(image.index()))
    """
    with child(program, tmp_path / "few", tmp_path / "archive.tar", stdout=subprocess.PIPE) as process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors.decode()
    assert int(output) > len(stack.files(400))


# Merging upon what is merged


def test_each_step_of_a_build_merges_one_layer(store: Store, stack: Stack, merges: list[int]) -> None:
    stack.load(store, [60])
    for count in range(1, 61):
        store.view(list(map(DiffId, stack.diff_ids[:count])))
    assert merges == [1] + [2] * 59
    assert bytes_of(store, store.image("grown:60")) == from_scratch(store, stack.diff_ids)


def test_from_any_prefix_it_is_the_same_index(tmp_path: Path, stack: Stack) -> None:
    """Prefixes in memory and on disk, at random: the bytes are those of merging all layers at once."""
    draw = random.Random(5)
    with Store(tmp_path / "store", create=True) as store:
        stack.load(store, [60])
        whole = {n: from_scratch(store, stack.diff_ids[:n]) for n in range(1, 61)}
        for _ in range(25):
            with Store(store.root) as other:
                for count in draw.sample(range(1, 61), 4):
                    index = other.view(list(map(DiffId, stack.diff_ids[:count]))).index
                    assert (index.layer_count, index.nbytes) == (count, len(whole[count]))
                    path = store.root / "chains" / f"{chain_id(map(DiffId, stack.diff_ids[:count]))[7:]}.index"
                    assert path.read_bytes() == whole[count]
            for name in draw.sample(sorted(chain_files(store)), len(chain_files(store)) // 2):
                (store.root / "chains" / name).unlink()


def test_layers_upon_a_file_of_another_process(store: Store, stack: Stack, merges: list[int]) -> None:
    stack.load(store, [50, 60])
    store.image("grown:50").index()
    with Store(store.root) as other:
        other.image("grown:60").index()
    assert merges == [50, 11]


def test_what_is_not_looked_up_is_not_merged(store: Store, stack: Stack, merges: list[int]) -> None:
    stack.load(store, range(1, 21))
    assert merges == []
    store.create("grown:20").remove()
    assert merges == [20]
    assert chain_files(store, ".index") == set()
    store.image("grown:20").index()
    assert merges == [20], "what was merged for the mount is written when it is looked up"
    assert chain_files(store, ".index") == {f"{store.image('grown:20').chain_id[7:]}.index"}


def test_an_index_is_mapped_by_the_next_process(store: Store, stack: Stack, merges: list[int]) -> None:
    image = stack.load(store, [10])
    image.index()
    del merges[:]
    with Store(store.root) as other:
        found = other.image(image.id).index()
        assert other.image(image.id).index() is found
        other.create(image.id).remove()
    assert merges == []


def test_an_image_without_layers(store: Store, tmp_path: Path, merges: list[int]) -> None:
    config = b'{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}'
    manifest = [{"Config": "config.json", "RepoTags": ["none:1"], "Layers": []}]
    path = tmp_path / "archive.tar"
    path.write_bytes(tar_of({"config.json": config, "manifest.json": json.dumps(manifest).encode()}))
    store.load(path)
    for _ in range(2):
        with Store(store.root) as other:
            assert len(other.image("none:1").index()) == 1
    assert merges == [1]


def spoil(data: bytearray, how: str) -> bytes:
    if how == "empty":
        return b""
    if how == "truncated":
        return bytes(data[:-100])
    if how == "longer":
        return bytes(data) + b"more"
    if how == "newer":
        data[8] += 1
    else:
        data[{"magic": 0, "header": 50, "record": 200, "last": -1}[how]] ^= 1
    return bytes(data)


@pytest.mark.parametrize("how", ["empty", "truncated", "longer", "newer", "magic", "header", "record", "last"])
def test_a_damaged_index_is_made_again(store: Store, stack: Stack, merges: list[int], how: str) -> None:
    image = stack.load(store, [10])
    image.index()
    good = bytes_of(store, image)
    path = store.root / "chains" / f"{image.chain_id[7:]}.index"
    path.unlink()  # who has it mapped keeps it as it is
    path.write_bytes(spoil(bytearray(good), how))
    with Store(store.root) as other:
        other.image(image.id).index().verify()
    assert path.read_bytes() == good
    assert merges == [10, 10]


def test_the_index_of_another_chain_is_not_taken_for_it(store: Store, stack: Stack) -> None:
    stack.load(store, [10, 11])
    ten, eleven = store.image("grown:10"), store.image("grown:11")
    good = bytes_of(store, eleven) if eleven.index() else b""
    ten.index()
    path = store.root / "chains" / f"{eleven.chain_id[7:]}.index"
    path.unlink()
    path.write_bytes(bytes_of(store, ten))
    with Store(store.root) as other:
        assert other.image(eleven.id).index().layer_count == 11
    assert path.read_bytes() == good


def test_a_full_disk_does_not_stop_a_lookup(store: Store, stack: Stack, meddle: Meddling) -> None:
    image = stack.load(store, [10])
    calls = meddle.fail(durable, "write_whole", errno.ENOSPC, times=ALWAYS)
    image.index().verify()
    assert image.index() is image.index()
    assert chain_files(store) == set()
    assert len(calls) == 1


@pytest.mark.parametrize(("times", "least", "most"), [(3, 3, 5), (0, 1, 1)])
def test_memory_is_bounded_by_bytes(
    store: Store, stack: Stack, monkeypatch: pytest.MonkeyPatch, times: int, least: int, most: int
) -> None:
    """Those that were used last stay mapped; the very last one does, whatever its size."""
    stack.load(store, range(40, 61))
    with Store(store.root) as other:
        one = other.image("grown:60").index().nbytes
    monkeypatch.setattr(indexes, "_CACHED_BYTES", times * one)
    with Store(store.root) as other:
        for count in range(40, 61):
            other.image(f"grown:{count}").index().verify()
        gc.collect()
        kept = mapped_chains(store)
        assert least <= len(kept) <= most
        assert sum(path.stat().st_size for path in kept) <= max(times, 1) * one
        assert other.image("grown:40").index() is other.image("grown:40").index()


def mapped_chains(store: Store) -> set[Path]:
    """The merged indexes of a store that this process has mapped."""
    maps = {Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines()}
    return {path for path in maps if path.parent == store.root / "chains" and path.suffix == ".index"}


BUILD = """
    import sys
    from layerstore import Store
    from layerstore.chains import indexes
    merges = []
    merge = indexes.merge
    indexes.merge = lambda layers, key: merges.append(1) or merge(layers, key)
    with Store(sys.argv[1]) as store:
        sys.stdin.readline()
        for count in range(20, 60, 5):
            store.image(f"grown:{count}").index().verify()
    print(len(merges))
"""


def test_two_processes_make_the_same_chains(store: Store, stack: Stack) -> None:
    """One makes each, the other waits for it; what both see is right."""
    stack.load(store, range(20, 61, 5))
    processes = [child(BUILD, store.root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(2)]
    for process in processes:
        process.stdin.write(b"\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    ends = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    assert sum(int(output) for output, _ in ends) == 8
    for count in range(20, 60, 5):
        assert bytes_of(store, store.image(f"grown:{count}")) == from_scratch(store, stack.diff_ids[:count])
    assert all(name.endswith(".index") for name in chain_files(store))


def test_many_threads_make_the_same_chains(store: Store, stack: Stack, merges: list[int]) -> None:
    stack.load(store, [60])
    found: list[int] = []

    def build() -> None:
        for count in range(1, 61):
            found.append(store.view(list(map(DiffId, stack.diff_ids[:count]))).index.layer_count)

    threads = [threading.Thread(target=build) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(4 * list(range(1, 61)))
    assert len(merges) == 60


# Eviction


def derived_bytes(store: Store) -> int:
    return sum(path.stat().st_size for path in (store.root / "chains").iterdir())


def make_all(store: Store, image: Image) -> None:
    image.index()
    store.create(image).remove()


def test_everything_comes_back_after_eviction(store: Store, stack: Stack) -> None:
    stack.load(store, [30, 40])
    images = [store.image("grown:30"), store.image("grown:40")]
    for image in images:
        make_all(store, image)
    before = {name: (store.root / "chains" / name).read_bytes() for name in chain_files(store)}
    assert len(before) == 6
    index = images[0].index()
    assert store.evict_derived(0) == sum(map(len, before.values()))
    assert chain_files(store) == set()
    index.verify()  # who has it open keeps it
    for image in images:
        make_all(store, image)
    with Store(store.root) as other:
        for image in other.images():
            make_all(other, image)
    assert {name: (store.root / "chains" / name).read_bytes() for name in chain_files(store)} == before


def test_a_file_that_goes_as_it_is_looked_at_takes_no_other_with_it(
    store: Store, stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A temporary name that is the file's own by then: there is no size and no time of that image."""
    stack.load(store, [30, 40])
    for image in store.images():
        make_all(store, image)
    newest = store.image("grown:40").chain_id[7:]
    scandir = os.scandir

    class Renamed:
        def __init__(self, entry: os.DirEntry[str]) -> None:
            self.name, self.path = entry.name, entry.path

        def stat(self, *, follow_symlinks: bool) -> os.stat_result:
            raise FileNotFoundError

    @contextlib.contextmanager
    def late(path: str) -> Iterator[list[object]]:
        with scandir(path) as entries:
            yield [Renamed(entry) if entry.name[:64] == newest else entry for entry in entries]

    monkeypatch.setattr(os, "scandir", late)
    store.evict_derived(0)
    monkeypatch.undo()
    assert {name[:64] for name in chain_files(store)} == {newest}


def test_what_was_used_last_stays(store: Store, stack: Stack) -> None:
    stack.load(store, range(10, 20))
    for count in range(10, 20):
        make_all(store, store.image(f"grown:{count}"))
    for number, path in enumerate(sorted((store.root / "chains").iterdir())):
        os.utime(path, ns=(number, number))  # all of long ago
    with Store(store.root) as other:
        other.image("grown:12").index()
        other.create("grown:15").remove()
    index, image = store.image("grown:12").chain_id[7:], store.image("grown:15").chain_id[7:]
    kept = {f"{index}.index", f"{image}.erofs", f"{image}.json"}
    limit = sum((store.root / "chains" / name).stat().st_size for name in kept)
    store.evict_derived(limit)
    assert chain_files(store) == kept


def test_a_store_keeps_its_limit(tmp_path: Path, stack: Stack) -> None:
    with Store(tmp_path / "store", create=True) as store:
        stack.load(store, range(21, 61))
        make_all(store, store.image("grown:60"))
        limit = 5 * derived_bytes(store)
    with Store(tmp_path / "store", derived_limit_bytes=limit) as store:
        seen = []
        for count in range(21, 61):
            make_all(store, store.image(f"grown:{count}"))
            seen.append(derived_bytes(store))
        assert limit // 2 < max(seen) <= limit + limit // 8
        assert f"{store.image('grown:60').chain_id[7:]}.index" in chain_files(store)
    with Store(tmp_path / "store") as other:
        assert other.derived_limit_bytes == limit, "also in processes that were not told"
        other.collect_garbage()
        assert limit // 2 < derived_bytes(other) <= limit
        Store(tmp_path / "store", derived_limit_bytes=1_000).close()
        assert other.derived_limit_bytes == 1_000, "also in those that have it open"
        command = [sys.executable, "-m", "layerstore", "--root", str(other.root), "gc"]
        subprocess.check_output(command, cwd=Path(__file__).parent.parent)
        assert derived_bytes(other) <= 1_000
    with pytest.raises(InvalidInput):
        Store(tmp_path / "store", derived_limit_bytes=-1)


def test_what_a_killed_writer_left_counts_and_goes(store: Store, stack: Stack) -> None:
    stack.load(store, [10, 11])
    make_all(store, store.image("grown:11"))
    kept, whole = chain_files(store), derived_bytes(store)
    left = [
        f".{store.image('grown:10').chain_id[7:]}.{kind}.layerstore-0123456789ab" for kind in ("index", "erofs", "json")
    ]
    for name in left:
        path = store.root / "chains" / name
        path.write_bytes(bytes(1_000))
        os.utime(path, (1, 1))
    assert store.evict_derived(whole + 2_999) in (1_000, 2_000)
    assert store.evict_derived(whole) in (1_000, 2_000)
    assert chain_files(store) == kept
    for name in left:
        (store.root / "chains" / name).write_bytes(b"being written")
    with open(store.layout.chain_lock(store.image("grown:10").chain_id), "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.evict_derived(0)
    assert chain_files(store) == set(left)


def test_what_is_locked_stays(store: Store, stack: Stack) -> None:
    stack.load(store, [10, 11])
    for count in (10, 11):
        store.image(f"grown:{count}").index()
    name = f"{store.image('grown:10').chain_id[7:]}.index"
    with open(store.layout.chain_lock(store.image("grown:10").chain_id)) as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        store.evict_derived(0)
    assert chain_files(store) == {name}


def evict_elsewhere(store: Store) -> None:
    """In another thread: this one has locks."""
    evicting = threading.Thread(target=store.evict_derived, args=(0,))
    evicting.start()
    evicting.join()


def test_what_is_being_written_stays(store: Store, stack: Stack, meddle: Meddling) -> None:
    stack.load(store, [10])
    seen: list[str] = []

    def evict() -> None:
        being_written = chain_files(store)
        evict_elsewhere(store)
        assert chain_files(store) >= {name for name in being_written if name.startswith(".")}
        seen.extend(being_written)

    meddle.before(durable, "write_at", evict, times=ALWAYS)
    make_all(store, store.image("grown:10"))
    assert len([name for name in seen if name.startswith(".")]) >= 3


@pytest.mark.root
@pytest.mark.kernel
def test_what_is_mounted_stays(store: Store, stack: Stack) -> None:
    stack.load(store, [10, 11])
    for count in (10, 11):
        make_all(store, store.image(f"grown:{count}"))
    chain = store.image("grown:10").chain_id[7:]
    with store.create("grown:10").mount() as root:
        store.evict_derived(0)
        assert chain_files(store) == {f"{chain}.erofs", f"{chain}.json"}
        assert contents_of(root) == stack.files(10)
        with store.create("grown:10").mount() as other:
            assert contents_of(other) == stack.files(10)
    store.evict_derived(0)
    assert chain_files(store) == set()


@pytest.mark.root
@pytest.mark.kernel
def test_an_image_that_is_evicted_before_it_is_mounted(store: Store, stack: Stack, meddle: Meddling) -> None:
    stack.load(store, [10])
    container = store.create("grown:10")
    calls = meddle.before(Mounts, "mount", lambda: evict_elsewhere(store))
    with container.mount() as root:
        assert contents_of(root) == stack.files(10)
    assert len(calls) == 2


def test_gc_evicts_and_clears_locks_away(store: Store, stack: Stack) -> None:
    stack.load(store, [10, 11])
    for count in (10, 11):
        make_all(store, store.image(f"grown:{count}"))
    assert any(path.stem.isalnum() and len(path.stem) == 64 for path in (store.root / "run").glob("*.lock"))
    command = [sys.executable, "-m", "layerstore", "--root", str(store.root), "gc", "--derived-limit", "0"]
    output = subprocess.check_output(command, text=True, cwd=Path(__file__).parent.parent)
    assert output.startswith("0 contents dropped, ")
    assert chain_files(store) == set()
    locks = {path.name for path in (store.root / "run").glob("*.lock")}
    of_the_store = ("garbage", "staging", "layers", "mount", "containers", "packs", "database")
    assert locks <= {f"{name}.lock" for name in of_the_store}
    make_all(store, store.image("grown:11"))
    kept = chain_files(store)
    assert store.collect_garbage().freed_bytes == 0
    assert chain_files(store) == kept


@pytest.mark.parametrize(
    ("text", "size"), [("0", 0), ("12", 12), ("500MB", 500_000_000), ("4GB", 4_000_000_000), ("1.5k", 1_500)]
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "-1", "MB", "1QB", "1 000", "nan", "1e3"])
def test_no_sizes(text: str) -> None:
    import argparse

    with pytest.raises(argparse.ArgumentTypeError, match="is not a size"):
        parse_size(text)


# What it stands on


def test_chain_ids(stack: Stack) -> None:
    diff_ids = list(map(DiffId, stack.diff_ids[:9]))
    assert chain_ids(diff_ids) == [chain_id(diff_ids[: n + 1]) for n in range(9)]
    assert chain_ids(diff_ids)[0] == diff_ids[0]
    assert chain_ids([]) == [chain_id([])]
    assert chain_ids(diff_ids[:4]) + chain_ids(diff_ids[4:], chain_id(diff_ids[:4])) == chain_ids(diff_ids)


def test_chain_ids_of_one_stack_after_another(store: Store, stack: Stack) -> None:
    stack.load(store, [60])
    draw = random.Random(3)
    stacks = [list(map(DiffId, stack.diff_ids[:n])) for n in range(12)]
    stacks += [[*stacks[n], *map(DiffId, stack.diff_ids[40:42])] for n in range(12)]
    for _ in range(200):
        each = draw.choice(stacks)
        index = store.view(each).index
        assert (index.hash_key, index.layer_count) == (hash_key(chain_id(each)), max(len(each), 1))
        path = Path(store.layout.chain_index(chain_id(each)))
        assert each == [] or path.read_bytes() == from_scratch(store, each)


def test_a_mapped_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"some bytes")
    with open(path, "rb") as file:
        mapped = MappedFile(file.fileno())
    path.unlink()
    view = memoryview(mapped)
    del mapped
    assert (bytes(view), view.readonly, len(view)) == (b"some bytes", True, 10)
    (tmp_path / "empty").touch()
    with open(tmp_path / "empty", "rb") as file:
        assert bytes(memoryview(MappedFile(file.fileno()))) == b""
    with pytest.raises(OSError, match="cannot"):
        MappedFile(-1)


def test_a_digest_is_compared_alone(store: Store, stack: Stack) -> None:
    good = bytes(from_scratch(store, stack.diff_ids[:3]) if stack.load(store, [3]) else b"")
    core.Index(good).verify_digest()
    bad = bytearray(good)
    bad[-1] ^= 1
    with pytest.raises(CorruptError):
        core.Index(bytes(bad)).verify_digest()
