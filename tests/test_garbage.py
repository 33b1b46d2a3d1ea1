"""Giving space back: what is dropped, what stays readable, and what a killed collection leaves."""

import contextlib
import errno
import gc
import io
import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import images
import pytest
from beside import READS, Meanwhile, content_store, rows
from cases import case
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_load import check_loaded, child

from layerstore import Store
from layerstore.errors import CorruptError, NotFound
from layerstore.layers.imports import Import
from layerstore.space import garbage
from layerstore.store.locks import try_lock
from layerstore.views.view import View

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


def image_of(numbers: range, name: str) -> Image:
    """An image of a small and a large file for each number: those of equal numbers are equal."""
    entries = []
    for number in numbers:
        draw = random.Random(number)
        entries += [
            Entry("file", f"small{number}", data=draw.randbytes(9_000)),
            Entry("file", f"large{number}", data=draw.randbytes(150_000)),
        ]
    return Image([write_tar(entries)], [name])


FIRST, SECOND, THIRD = (
    image_of(range(20), "first:1"),
    image_of(range(10, 30), "second:1"),
    image_of(range(40, 60), "x:1"),
)


def load(store: Store, tmp_path: Path, *made: Image) -> None:
    path = tmp_path / "archive.tar"
    path.write_bytes(tar_of(docker_files(made)))
    store.load(path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def files_of(store: Store) -> list[str]:
    tops = ("packs", "objects", "layers", "chains", "blobs", "containers", "staging")
    return sorted(str(p) for top in tops for p in (store.root / top).rglob("*") if p.is_file())


def test_everything_goes_with_the_last_image(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, FIRST, SECOND)
    store.image("first:1").index()
    before = images.used_bytes(store.root)
    for name in ("first:1", "second:1"):
        store.remove_image(name)
    collected = store.collect_garbage()
    assert collected.contents == 2 * 30
    assert 0.95 * before < collected.freed_bytes <= before
    assert files_of(store) == []
    assert store.collect_garbage() == type(collected)(0, 0)
    load(store, tmp_path, FIRST)
    check_loaded(store, FIRST)


def test_what_lives_stays_readable_and_dead_space_comes_back(store: Store, tmp_path: Path) -> None:
    for image in (FIRST, SECOND):
        load(store, tmp_path, image)
    before = images.used_bytes(store.root)
    store.remove_image("first:1")
    collected = store.collect_garbage()
    assert collected.contents == 2 * 10
    given_back = before - images.used_bytes(store.root)
    assert given_back == collected.freed_bytes
    assert given_back > 0.95 * 10 * 159_000
    check_loaded(store, SECOND)
    with Store(store.root) as other:
        check_loaded(other, SECOND)
    load(store, tmp_path, FIRST)
    check_loaded(store, FIRST)
    check_loaded(store, SECOND)


def test_nothing_to_do(store: Store, tmp_path: Path) -> None:
    assert store.collect_garbage().contents == 0
    load(store, tmp_path, FIRST)
    state = images.store_state(store.root)
    collected = store.collect_garbage()
    assert (collected.contents, collected.freed_bytes) == (0, 0)
    assert images.store_state(store.root) == state


def test_a_removed_image_that_was_not_collected_yet_costs_nothing_to_load(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, FIRST)
    files = files_of(store)
    store.remove_image("first:1")
    load(store, tmp_path, FIRST)
    assert files_of(store) == files
    check_loaded(store, FIRST)


def test_a_reader_that_had_a_pack_open_does_not_read_another_in_its_place(store: Store, tmp_path: Path) -> None:
    """The pack of a collected image and a later one must not be taken for each other."""
    with Store(store.root) as reader:
        load(store, tmp_path, FIRST)
        check_loaded(reader, FIRST)
        store.remove_image("first:1")
        store.collect_garbage()
        load(store, tmp_path, THIRD)
        check_loaded(reader, THIRD)
        check_loaded(store, THIRD)


def test_orphans_are_swept(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, FIRST)
    kept = files_of(store)
    digits = "ab" * 32
    root = store.root
    for path in (
        root / "objects" / digits[:2] / digits[2:],
        root / "layers" / f"{digits}.index",
        root / "layers" / f"{digits}.recipe",
        root / "layers" / f".{digits}.index.layerstore-0123456789ab",
        root / "chains" / f"{digits}.erofs",
        root / "blobs/sha256" / digits,
        root / "packs" / "77.pack",
        root / "packs" / "77.erofs",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"left behind")
    (root / "containers" / digits / "upper").mkdir(parents=True)
    (root / "digests.9").write_bytes(b"")
    (root / ".digests.9.layerstore-0123456789ab").write_bytes(b"of a killed collection")
    store.collect_garbage()
    assert files_of(store) == kept
    assert list((root / "containers").iterdir()) == []
    assert [path.name for path in root.glob("*digests.*")] == ["digests.0"]
    check_loaded(store, FIRST)


@needs_root
def test_while_containers_are_mounted(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, FIRST, SECOND)
    container = store.create("second:1")
    with container.mount() as root:
        (root / "own").write_bytes(b"own")
        store.remove_image("first:1")
        assert store.collect_garbage().contents == 2 * 10
        for number in range(10, 30):
            draw = random.Random(number)
            assert (root / f"small{number}").read_bytes() == draw.randbytes(9_000)
            assert (root / f"large{number}").read_bytes() == draw.randbytes(150_000)
        assert (root / "own").read_bytes() == b"own"
    container.remove()


COLLECT = """
    import sys
    from layerstore import Store
    with Store(sys.argv[1]) as store:
        store.collect_garbage()
"""
# For a child: the call after the first `left` ones of what is `dying` kills it.
DYING = """
    import os, sys

    left = int(sys.argv[2])

    def dying(function):
        def call(*args, **kwargs):
            global left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), 9)
            return function(*args, **kwargs)
        return call
"""
CUT = (
    DYING
    + """
    import pathlib
    import layerstore.space.garbage as garbage
    from layerstore import Store
    from layerstore.store.contents import ContentStore
    import layerstore.store.durable as durable

    with Store(sys.argv[1]) as store:
        pathlib.Path.unlink = dying(pathlib.Path.unlink)
        durable.write_file = dying(durable.write_file)
        ContentStore.remove_old_logs = dying(ContentStore.remove_old_logs)
        garbage.punch_holes = dying(garbage.punch_holes)
        store.collect_garbage()
"""
)


def test_what_a_killed_import_left(store: Store) -> None:
    """The staging directory of one that lives stays."""
    left, alive = (Path(store.layout.staging, name) for name in ("1" * 16, "2" * 16))
    for directory in (left, alive):
        directory.mkdir()
        (directory / "clone.0").write_bytes(bytes(1 << 20))
        (directory / "lock").touch()
    with open(alive / "lock") as lock:
        assert try_lock(lock.fileno())
        assert store.collect_garbage().freed_bytes >= 1 << 20
        assert (left.exists(), alive.exists()) == (False, True)
    store.collect_garbage()
    assert not alive.exists()


def check_after_a_kill(store: Store, tmp_path: Path) -> None:
    check_loaded(store, SECOND)
    load(store, tmp_path, FIRST)
    check_loaded(store, FIRST)
    store.collect_garbage()
    container = store.create("first:1")
    if os.geteuid() == 0:
        with container.mount() as root:
            for number in range(20):
                draw = random.Random(number)
                assert (root / f"small{number}").read_bytes() == draw.randbytes(9_000)
                assert (root / f"large{number}").read_bytes() == draw.randbytes(150_000)
    container.remove()


@pytest.mark.parametrize("step", [0, 1, 2, 3, 5, 9, 14, 15, 16, 17, 18, 20])
def test_a_collection_killed_at_a_step(store: Store, tmp_path: Path, step: int) -> None:
    load(store, tmp_path, FIRST)
    load(store, tmp_path, SECOND)
    for image in (FIRST, SECOND):
        store.create(image.names[0]).remove()  # so that its chain is there
    store.remove_image("first:1")
    with child(CUT, store.root, step) as process:
        _, errors = process.communicate()
    assert process.returncode == -signal.SIGKILL or (step > 13 and process.returncode == 0), errors.decode()
    check_after_a_kill(store, tmp_path)
    store.remove_image("first:1")
    store.collect_garbage()
    assert store.collect_garbage().contents == 0
    check_loaded(store, SECOND)
    with Store(tmp_path / "fresh", create=True) as fresh:
        for image in (FIRST, SECOND):
            load(fresh, tmp_path, image)
            check_loaded(fresh, image)
            fresh.create(image.names[0]).remove()
        fresh.remove_image("first:1")
        fresh.collect_garbage()
        assert len(files_of(store)) == len(files_of(fresh))


def test_a_collection_killed_at_random(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, SECOND)
    draw = random.Random(8)
    for _ in range(4):
        load(store, tmp_path, FIRST)
        store.create("first:1").remove()
        store.remove_image("first:1")
        with child(COLLECT, store.root) as process:
            try:
                process.wait(draw.uniform(0.1, 0.4))
            except subprocess.TimeoutExpired:
                process.kill()
            process.communicate()
        check_after_a_kill(store, tmp_path)


def test_collecting_while_loading(store: Store, tmp_path: Path) -> None:
    """A collection waits for the loads that are under way, so it takes nothing of theirs."""
    path = tmp_path / "first.tar"
    path.write_bytes(tar_of(docker_files([FIRST])))
    program = """
        import sys
        from layerstore import Store
        with Store(sys.argv[1]) as store:
            for _ in range(8):
                store.load(sys.argv[2])
                store.remove_image("first:1")
    """
    with child(program, store.root, path) as loading:
        while loading.poll() is None:
            store.collect_garbage()
        _, errors = loading.communicate()
    assert loading.returncode == 0, errors.decode()
    store.collect_garbage()
    assert files_of(store) == []


def archive_of(data: dict[str, bytes]) -> io.BytesIO:
    return io.BytesIO(write_tar([Entry("file", name, data=content) for name, content in data.items()]))


@pytest.fixture
def punched(store: Store) -> tuple[Store, bytes]:
    """Image a:1 alone has "dead", in a pack that stays for b:1. Removing a:1 and collecting punches it."""
    data = {"dead": random.Random(1).randbytes(120_000), "live": b"live" * 1_000}
    store.import_rootfs(archive_of(data), "a:1")
    store.import_rootfs(archive_of({"live": data["live"], "other": b"o"}), "b:1")
    return store, data["dead"]


def remove_elsewhere(store: Store, *names: str) -> None:
    with Store(store.root) as other:
        for name in names:
            other.remove_image(name)
        assert other.collect_garbage().contents > 0


def test_a_file_that_is_open_stays_what_it_was(punched: tuple[Store, bytes]) -> None:
    store, dead = punched
    view = store.image("a:1").view
    digest = bytes.fromhex(view.find("/dead").digest or "")
    with view.open("/dead") as file, content_store(store.layout) as contents, contents.open(digest) as content:
        start = file.read(10)
        remove_elsewhere(store, "a:1")
        assert start + file.read() == dead
        assert content.read() == dead
    with pytest.raises(CorruptError):
        view.open("/dead")


@pytest.mark.parametrize("how", READS)
def test_what_is_collected_between_lookup_and_reading_is_no_zeros(punched: tuple[Store, bytes], how: str) -> None:
    store, dead = punched
    with content_store(store.layout) as contents:
        assert View(store.image("a:1").index(), contents).read_bytes("/dead") == dead
    layout = Meanwhile(store.layout, "pack", lambda: remove_elsewhere(store, "a:1"))
    with content_store(layout) as contents:
        view = View(store.image("a:1").index(), contents)
        with pytest.raises((NotFound, CorruptError), match=r"content .* (is not in|is missing from) the store"):
            READS[how](view, "/dead")
    assert layout.asked == 1


def test_a_log_that_is_collected_before_it_is_opened(punched: tuple[Store, bytes]) -> None:
    """It is read anew, and is no path that is missing."""
    store, _ = punched
    layout = Meanwhile(store.layout, "digests", lambda: remove_elsewhere(store, "a:1"))
    with content_store(layout) as contents:
        view = View(store.image("b:1").index(), contents)
        assert view.lookup_many(["/live"])["found"].tolist() == [True]
    assert layout.asked == 2


def test_a_log_that_is_missing(punched: tuple[Store, bytes]) -> None:
    store, _ = punched
    (store.root / "digests.0").unlink()
    with Store(store.root) as reader, pytest.raises(CorruptError, match=r"digests\.0 is missing"):
        reader.image("b:1").view.lookup_many(["/live"])


def import_singly(store: Store, count: int) -> list[bytes]:
    """Images i0:1, i1:1 ... of a small content each, in a pack of its own; returns the contents."""
    data = [random.Random(number).randbytes(20_000) for number in range(count)]
    for number, content in enumerate(data):
        store.import_rootfs(archive_of({"f": content}), f"i{number}:1")
    return data


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)


@pytest.mark.usefixtures("few")
def test_on_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is dead is given back, although there is no room to bring the rest together."""
    data = import_singly(store, 10)
    for number in range(3):
        store.remove_image(f"i{number}:1")

    def full(*_: object) -> bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Import, "copy_contents", full)
        collected = store.collect_garbage()
    assert collected.contents == 3
    assert collected.freed_bytes >= 3 * 20_000
    assert len(list((store.root / "packs").glob("*.pack"))) == 7
    assert list((store.root / "staging").iterdir()) == []
    assert store.collect_garbage().contents == 0
    assert len(list((store.root / "packs").glob("*.pack"))) == 1
    for number in range(3, 10):
        assert store.image(f"i{number}:1").view.read_bytes("/f") == data[number]


@pytest.mark.root
@pytest.mark.kernel
def test_on_a_full_file_system(tmp_path: Path) -> None:
    directory = tmp_path / "full"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "none", directory], check=True)
    try:
        with Store(directory / "store", create=True) as store:
            for number in range(70):
                content = random.Random(number).randbytes(120_000)
                store.import_rootfs(archive_of({"f": content, "g": content[1:]}), f"i{number}:1")
            for number in range(69):
                store.remove_image(f"i{number}:1")
            with open(directory / "filling", "wb", buffering=0) as filling, contextlib.suppress(OSError):
                while True:
                    filling.write(bytes(4096))
            os.truncate(directory / "filling", (directory / "filling").stat().st_size - (1 << 20))
            assert store.collect_garbage().freed_bytes > 69 * 239_000
            assert store.image("i69:1").view.read_bytes("/f") == content
    finally:
        subprocess.run(["umount", "-l", directory], check=True)  # the view has files mapped


@pytest.mark.usefixtures("few")
def test_what_is_dead_is_not_copied(store: Store) -> None:
    """No pack is made for it."""
    import_singly(store, 10)
    for number in range(8):
        store.remove_image(f"i{number}:1")
    ((before,),) = rows(store.layout, "SELECT value FROM counters WHERE name = 'packs'")
    assert store.collect_garbage().contents == 8
    assert rows(store.layout, "SELECT value FROM counters WHERE name = 'packs'") == [(before,)]


@pytest.mark.usefixtures("few")
def test_contents_are_counted_once_however_often_they_were_copied(store: Store) -> None:
    data = import_singly(store, 8)
    store.import_rootfs(archive_of({str(number): content for number, content in enumerate(data)}), "all:1")
    store.create("all:1").remove()
    for number in range(8):
        store.remove_image(f"i{number}:1")
    store.remove_image("all:1")
    assert store.collect_garbage().contents == 8


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("removed", [True, False])
def test_a_damaged_content_stops_nothing(store: Store, removed: bool) -> None:
    """Neither a dead one nor a live one: that stays where it is, and the others are brought together without it."""
    data = import_singly(store, 10)
    flip(store.root / "packs" / "5.pack", 7)
    store.remove_image("i5:1" if removed else "i6:1")
    collected = store.collect_garbage()
    assert collected.contents == 1
    assert len(list((store.root / "packs").glob("*.pack"))) == (1 if removed else 2)
    for number in {*range(10)} - {5, 6}:
        assert store.image(f"i{number}:1").view.read_bytes("/f") == data[number]
    if not removed:
        assert store.image("i5:1").view.read_bytes("/f") != data[5]
        assert store.collect_garbage().freed_bytes == 0


@pytest.mark.usefixtures("few")
def test_a_pack_of_damaged_slots_stops_nothing(store: Store) -> None:
    data = import_singly(store, 10)
    flip(store.root / "packs" / "5.pack", -70)
    (store.root / "packs" / "4.pack").unlink()
    store.remove_image("i0:1")
    assert store.collect_garbage().contents == 1
    for number in (1, 2, 3, 6, 7, 8, 9):
        assert store.image(f"i{number}:1").view.read_bytes("/f") == data[number]
    with pytest.raises(CorruptError, match=r"the slots of .*5\.pack are damaged"):
        store.image("i5:1").view.read_bytes("/f")


def test_a_damaged_index_of_a_layer_is_not_believed(store: Store, tmp_path: Path) -> None:
    load(store, tmp_path, FIRST)
    load(store, tmp_path, SECOND)
    (diff_id,) = store.image("first:1").diff_ids
    path = Path(store.layout.layer_index(diff_id))
    whole = path.read_bytes()
    name = bytes.fromhex(store.image("first:1").view.find("/small3").digest or "")
    store.remove_image("second:1")
    state = files_of(store)
    for damaged in (whole.replace(name, bytes(32)), whole[:-1], None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        with pytest.raises(CorruptError, match=f"nothing was collected: what layer {diff_id} needs is not known"):
            store.collect_garbage()
        path.write_bytes(whole)
        assert [file for file in state if "/chains/" not in file] == [f for f in files_of(store) if "/chains/" not in f]
    check_loaded(store, FIRST)
    path.write_bytes(bytes(len(whole)))
    store.remove_image("first:1")
    assert store.collect_garbage().contents == 2 * 30, "after what the message says to do"
    assert files_of(store) == []


def test_the_index_of_another_layer_is_not_taken_for_it(store: Store) -> None:
    for name, data in (("a:1", b"A"), ("b:1", b"B")):
        store.import_rootfs(archive_of({"f": data}), name)
    paths = [Path(store.layout.layer_index(store.image(name).diff_ids[0])) for name in ("a:1", "b:1")]
    indexes = [path.read_bytes() for path in paths]
    for path, index in zip(paths, reversed(indexes), strict=True):
        path.write_bytes(index)
    for use in (lambda: store.image("a:1").view, lambda: store.create("a:1"), store.image("a:1").layers):
        with pytest.raises(CorruptError, match="is the index of another layer"):
            use()
    with pytest.raises(CorruptError, match="nothing was collected"):
        store.collect_garbage()


@pytest.mark.root
@pytest.mark.kernel
def test_a_file_in_a_mount_that_was_detached_by_force(punched: tuple[Store, bytes]) -> None:
    """Neither its container nor its image is there any more, but who has it open reads what it was."""
    store, dead = punched
    container = store.create("a:1")
    container.mount()
    with open(container.root / "dead", "rb", buffering=0) as file:
        start = file.read(4096)
        store.remove([container], force=True)
        store.remove_image("a:1")
        assert store.collect_garbage().contents == 1
        assert start + file.readall() == dead
    assert store.collect_garbage().freed_bytes >= 116 << 10
    assert store.image("b:1").view.read_bytes("/live") == b"live" * 1_000


def test_a_pack_that_another_process_has_open_is_punched_later(punched: tuple[Store, bytes]) -> None:
    store, _ = punched
    with Store(store.root) as reader:
        reader.image("b:1").view.read_bytes("/live")
        store.remove_image("a:1")
        before = os.stat(store.layout.pack(0)).st_blocks
        store.collect_garbage()
        assert os.stat(store.layout.pack(0)).st_blocks == before
        reader.image("b:1").view.lookup_many([])
        assert store.collect_garbage().freed_bytes >= 116 << 10
        assert reader.image("b:1").view.read_bytes("/live") == b"live" * 1_000


def test_nobody_needs_to_be_root() -> None:
    code = """
import os, sys
from layerstore import Store
from layerstore.layers import imports, loading
from layerstore.space import garbage
from test_garbage import archive_of
if os.geteuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
with Store(sys.argv[1] + "/store", create=True) as store:
    store.import_rootfs(archive_of({"dead": os.urandom(100_000), "live": b"live"}), "a:1")
    store.import_rootfs(archive_of({"live": b"live"}), "b:1")
    store.remove_image("a:1")
    assert store.collect_garbage().freed_bytes >= 96 << 10
    assert oct(os.stat(store.layout.pack(0)).st_mode) == "0o100400"
print(os.geteuid())
"""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() == 0:
            os.chown(directory, 65534, 65534)
        with child(code, directory, stdout=subprocess.PIPE) as process:
            output, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert int(output) != 0


def deleted_maps(store: Store) -> list[str]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split(maxsplit=5)[5] for line in lines if str(store.root) in line and line.endswith(" (deleted)")]


@pytest.mark.parametrize("shared", [True, False])
def test_a_process_lets_go_of_what_is_collected(store: Store, shared: bool) -> None:
    """Also of an image all of whose contents others have."""
    data = import_singly(store, 4)
    if shared:
        store.import_rootfs(archive_of({str(number): content for number, content in enumerate(data)}), "all:1")
    for number, content in enumerate(data):
        assert store.image(f"i{number}:1").view.read_bytes("/f") == content
    with Store(store.root) as other:
        for number in range(4):
            other.remove_image(f"i{number}:1")
        other.collect_garbage()
    assert deleted_maps(store) != []
    store.import_rootfs(archive_of({"f": b"new"}), "new:1").view.read_bytes("/f")
    gc.collect()
    assert deleted_maps(store) == []


def test_files_that_go_while_they_are_counted(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an import that ends or an eviction: nothing is locked then."""
    load(store, tmp_path, FIRST)
    store.image("first:1").index()
    scandir, gone = os.scandir, []

    @contextlib.contextmanager
    def late(path: str) -> Iterator[list[os.DirEntry[str]]]:
        with scandir(path) as entries:
            found = list(entries)
        for entry in found:
            if path == str(store.root / "chains") and not gone:
                gone.append(entry)
                os.unlink(entry.path)
        yield found

    monkeypatch.setattr(garbage, "os", SimpleNamespace(**vars(os) | {"scandir": late}))
    assert store.collect_garbage().contents == 0
    assert gone != []


STRANGERS = (
    *("packs/x.pack", "packs/007.pack", "packs/7.pack.bak", "packs/\u0663.pack", "packs/d.pack/in", "cold/x.cold"),
    *("objects/note", "objects/zz/note", "objects/00/note", "objects/00/d/in", "objects/ff"),
    *("layers/x.index", "layers/x.recipe"),
    *("layers/d/in", "chains/x.json", "chains/x.erofs", "chains/x", "chains/d.index/in", "blobs/sha256/x"),
    *("blobs/sha256/d/in", "containers/file", "containers/mine/file", "logs/mine", "logs/d/in", "downloads/mine"),
    *("downloads/d/in", "staging/file", "staging/mine/in", "run/packs/x/in", "run/packs/file", "run/chains/x/in"),
    *("run/chains/file", "run/runtime/x/in", "run/runtime/file", "digests.txt", "digests.x/in"),
)


@case("files of somebody's own in every directory of a store", "left alone; a check tells of them")
def test_what_is_not_the_stores_is_left_alone(store: Store, tmp_path: Path) -> None:
    """Files and directories of its owner, in every directory: all works, they stay, and a check tells of them."""
    root = Path(store.layout.root)
    load(store, tmp_path, FIRST, SECOND)
    for name in STRANGERS:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"mine")
    load(store, tmp_path, THIRD)
    container = store.create("first:1", driver="extent")
    container.write_bytes("/f", b"1")
    container.commit("committed:1")
    store.freeze("second:1")
    store.thaw("second:1")
    store.usage()
    store.remove([container])
    store.remove_image("x:1")
    store.collect_garbage(derived_limit_bytes=0)
    report = store.check()
    assert not report.damages
    told = {note.path for note in report.notes if note.what == "stranger"}
    expected = {"/".join(name.split("/")[: -1 if name.endswith("/in") else None]) for name in STRANGERS}
    expected = {name.removesuffix("/note") if "/zz/" in name else name for name in expected}
    expected = {name.removesuffix("/file") if "/mine/" in name else name for name in expected}
    assert told == {f"{root}/{name}" for name in expected if not name.startswith("digests")}
    assert not store.check(repair=True).damages
    store.prune(named=True, older_than_seconds=0)
    assert {name for name in STRANGERS if (root / name).read_bytes() == b"mine"} == set(STRANGERS)
    load(store, tmp_path, FIRST)
