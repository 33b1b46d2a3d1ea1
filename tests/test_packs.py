"""Many packs: an image built by hundreds of imports is mounted, and the packs that it was in before are given back."""

import contextlib
import os
import signal
from pathlib import Path
from subprocess import PIPE

import pytest
from beside import READS, Meanwhile, content_store
from images import Image as MadeImage
from layer_model import Entry, write_tar
from stacks import Stack, chain_files, contents_of
from test_garbage import DYING, load
from test_load import check_loaded, child

from layerstore import Store
from layerstore._core.ingest import Contents, Digests
from layerstore.chains.chains import Chains
from layerstore.chains.packs import MAX_PACKS
from layerstore.errors import CorruptError, InvalidInput
from layerstore.store import durable
from layerstore.store.opened import OpenStore
from layerstore.views.view import View


def pack_files(store: Store) -> set[str]:
    return {path.name for path in (store.root / "packs").iterdir()}


def needs(store: Store, name: str) -> tuple[int, ...]:
    """The packs that an image's mount needs."""
    image = store.image(name)
    with contextlib.closing(OpenStore(store.layout)) as opened:
        return Chains(opened).mountable(image.chain_id, lambda: image.diff_ids).packs


def check_contents(store: Store, stack: Stack, count: int) -> None:
    """Every file of an image is read right from the store."""
    with content_store(store.layout) as contents:
        check_view(View(store.image(f"grown:{count}").index(), contents), stack, count)


def check_view(view: View, stack: Stack, count: int) -> None:
    for path, data in stack.files(count).items():
        with view.open(path) as file:
            assert file.read() == data


@pytest.mark.root
@pytest.mark.kernel
def test_six_hundred_imports(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(durable, "syncfs", lambda _: None)  # which is most of the time, and not in question
    stack = Stack(600)
    stack.load(store, range(1, 61))
    old = store.create("grown:60")
    old.mount()
    old_packs = needs(store, "grown:60")
    assert len(old_packs) > MAX_PACKS // 2
    stack.load(store, range(61, 601), present=60)
    assert len(pack_files(store)) == 2 * 600
    with store.create("grown:600").mount() as root:
        assert contents_of(root) == stack.files(600)
        assert len(needs(store, "grown:600")) <= MAX_PACKS
        assert contents_of(old.root) == stack.files(60)
        store.collect_garbage()
        assert contents_of(root) == stack.files(600)
        assert contents_of(old.root) == stack.files(60)
        assert {f"{number}.pack" for number in old_packs} <= pack_files(store)
    old.umount()
    store.collect_garbage()
    assert len(pack_files(store)) <= 2 * MAX_PACKS
    for count in (60, 600):
        with store.create(f"grown:{count}").mount() as root:
            assert contents_of(root) == stack.files(count)
        check_contents(store, stack, count)


@pytest.mark.usefixtures("few")
def test_an_image_that_grows_stays_within_the_limit(store: Store) -> None:
    stack = Stack(30)
    made = set()
    for count in range(1, 31):
        stack.load(store, [count], present=count - 1)
        made |= set(needs(store, f"grown:{count}"))
        assert len(needs(store, f"grown:{count}")) <= 4
    assert len(made) < 30 + 16, "contents are brought together once in a few steps"
    check_contents(store, stack, 30)
    store.collect_garbage()
    assert len(pack_files(store)) <= 2 * 5
    check_contents(store, stack, 30)
    assert store.collect_garbage().contents == 0


@pytest.mark.usefixtures("few")
def test_large_packs_stay_as_they_are(store: Store, tmp_path: Path) -> None:
    layers = []
    for number in range(8):
        size = 100_000 if number in (2, 5) else 1_000
        layers.append(write_tar([Entry("file", f"f{number}", data=os.urandom(size))]))
        load(store, tmp_path, MadeImage(layers, [f"grown:{number + 1}"]))
    assert {2, 5} & set(needs(store, "grown:8")) in ({2}, {5}), "the largest of two that are left is one of those"
    assert len(needs(store, "grown:8")) == 2
    check_loaded(store, MadeImage(layers, ["grown:8"]))


@pytest.mark.usefixtures("few")
def test_contents_that_no_image_has_any_more(store: Store, tmp_path: Path) -> None:
    """They move with the others: loading their image again costs nothing, and gc drops them."""
    stack = Stack(9)
    stack.load(store, range(1, 10))
    other = MadeImage([write_tar([Entry("file", "f", data=b"other")]), *stack.layers[:9]], ["other:1"])
    load(store, tmp_path, other)
    store.remove_image("other:1")
    store.create("grown:9").remove()
    load(store, tmp_path, other)
    check_loaded(store, other)
    store.remove_image("other:1")
    assert store.collect_garbage().contents == 1
    check_contents(store, stack, 9)


@pytest.mark.usefixtures("few")
def test_two_stores_at_one_root(store: Store) -> None:
    """One process brings together what another knows at its old place."""
    stack = Stack(20)
    stack.load(store, range(1, 21))
    with Store(store.root) as other, content_store(store.layout) as contents:
        view = View(other.image("grown:20").index(), contents)
        check_view(view, stack, 20)
        digests = contents.digests()
        store.create("grown:20").remove()
        store.collect_garbage()
        assert contents.digests() is not digests
        check_view(view, stack, 20)
        contents.forget_packs()
        check_view(view, stack, 20)
        assert len(needs(other, "grown:20")) <= 4


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("how", READS)
def test_a_reader_that_located_a_content_before_it_was_moved(store: Store, how: str) -> None:
    stack = Stack(9)
    stack.load(store, range(1, 10))

    def move() -> None:
        store.create("grown:9").remove()
        store.collect_garbage()

    layout = Meanwhile(store.layout, "pack", move)
    with content_store(layout) as contents:
        found = READS[how](View(store.image("grown:9").index(), contents), "dir0/own0")
    assert found == stack.files(9)["dir0/own0"]
    assert layout.asked == 2


@pytest.mark.usefixtures("few")
def test_damage_is_not_copied(store: Store) -> None:
    stack = Stack(9)
    stack.load(store, range(1, 10))
    pack = store.root / "packs" / "3.pack"
    data = bytearray(pack.read_bytes())
    data[5] ^= 1
    pack.chmod(0o600)
    pack.write_bytes(data)
    before = pack_files(store)
    with pytest.raises(CorruptError, match=r"3\.pack is damaged"):
        store.create("grown:9")
    assert pack_files(store) == before
    assert chain_files(store) == set()


FEW = """
    import os, sys
    from layerstore import Store
    from layerstore.chains import packs
    packs.MAX_PACKS, packs._PACKS_LEFT = 4, 2
"""
CREATE = (
    FEW
    + """
    with Store(sys.argv[1]) as store:
        sys.stdin.readline()
        for count in sys.argv[2:]:
            store.create(f"grown:{count}")
"""
)
CUT = (
    FEW
    + DYING
    + """
    import pathlib, shutil
    import layerstore.layers.imports as imports
    import layerstore.store.durable as durable
    from layerstore.store.contents import ContentStore

    with Store(sys.argv[1]) as store:
        for home, name in (
            (imports.Import, "copy_contents"), (imports.Import, "commit"), (imports.Import, "_publish_contents"),
            (imports, "write_pack"), (durable, "syncfs"), (durable, "write_file"), (os, "fsync"),
            (ContentStore, "append"), (imports, "_drop_pack"), (os, "rename"), (shutil, "rmtree"),
        ):
            setattr(home, name, dying(getattr(home, name)))
        store.create("grown:9")
    sys.exit(3)
"""
)


def check_after_a_kill(store: Store, stack: Stack) -> None:
    check_contents(store, stack, 9)
    with store.create("grown:9").mount() as view:
        assert contents_of(view) == stack.files(9)
    assert len(needs(store, "grown:9")) <= 4
    store.collect_garbage()
    check_contents(store, stack, 9)
    with store.create("grown:3").mount() as view:
        assert contents_of(view) == stack.files(3)
    stack.load(store, [1])  # an import clears away what a killed one left
    assert list((store.root / "staging").iterdir()) == []
    assert len(pack_files(store)) <= 2 * 4


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.usefixtures("few")
def test_bringing_together_killed_at_many_steps(store: Store) -> None:
    for step in range(0, 40, 2):
        stack = Stack(9, salt=f" of step {step}")
        stack.load(store, range(1, 10))
        store.create("grown:3").remove()
        with child(CUT, store.root, step) as process:
            _, errors = process.communicate()
        check_after_a_kill(store, stack)
        store.remove(store.containers())
        for image in store.images():
            store.remove_image(image.id, force=True)
        store.collect_garbage()
        assert pack_files(store) == set()
        if process.returncode == 3:
            break
        assert process.returncode == -signal.SIGKILL, errors.decode()
    assert 10 < step < 39


def test_two_processes_bring_together_the_same_packs(store: Store, few: None) -> None:
    stack = Stack(24)
    stack.load(store, range(1, 25))
    counts = [range(12, 25), range(24, 11, -1)]
    processes = [child(CREATE, store.root, *each, stdin=PIPE) for each in counts]
    ends = [process.communicate(b"\n") for process in processes]
    assert [process.returncode for process in processes] == [0, 0], ends
    for count in range(12, 25):
        assert len(needs(store, f"grown:{count}")) <= 4
    store.collect_garbage()
    check_contents(store, stack, 24)
    store.remove(store.containers(), force=True)


ELSEWHERE = """
    import pathlib, sys
    from layerstore import Store
    from stacks import Stack, contents_of
    stack = Stack(9)
    with Store(sys.argv[1]) as store:
        first = store.create("grown:3")
        first.mount()
        print("mounted", flush=True)
        sys.stdin.readline()
        second = store.create("grown:3")
        second.mount()
        assert contents_of(first.root) == contents_of(second.root) == stack.files(3)
        second.umount()
        assert contents_of(first.root) == stack.files(3)
        store.remove([first, second])
        packs = [path for path in pathlib.Path(sys.argv[1], "run/packs").iterdir() if path.is_mount()]
        assert packs == [], packs
"""


@pytest.mark.root
@pytest.mark.kernel
@pytest.mark.needs_tool("unshare")
@pytest.mark.usefixtures("few")
def test_packs_go_that_are_mounted_where_nobody_sees(store: Store) -> None:
    """In another mount namespace, a mounted image keeps its packs although they were removed; it is made again with
    others there, beside the old one."""
    stack = Stack(9)
    stack.load(store, range(1, 10))
    with child(ELSEWHERE, store.root, before=("unshare", "-m"), stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == b"mounted\n"
        store.create("grown:9")
        store.collect_garbage()
        assert "0.pack" not in pack_files(store)
        _, errors = process.communicate(b"\n")
    assert process.returncode == 0, errors.decode()
    store.remove(store.containers(), force=True)


def test_contents_are_put_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "staging").mkdir()
    staging = os.open(tmp_path / "staging", os.O_RDONLY)
    pack = os.open(tmp_path / "pack", os.O_RDWR | os.O_CREAT)
    try:
        contents = Contents(staging, pack, Digests(b"", 0), 1_000)
        digests = contents.put_many([b"one", memoryview(b"two"), bytearray(2_000), b"one"])
        assert len(digests) == 4 * 32
        assert digests[:32] == digests[96:]
        assert contents.counts == (3, 2_006, 1, 3)
        assert contents.put_many([]) == b""
        with pytest.raises(InvalidInput, match="empty"):
            contents.put_many([b"three", b""])
        assert contents.put_many([b"three"])
    finally:
        os.close(staging)
        os.close(pack)
