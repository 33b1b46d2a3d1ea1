"""What a repair makes of damage: what is derived is there again, the rest after the same layers were loaded again, bit
for bit and without writing anything else; nothing that is whole is lost, whenever it is interrupted."""

import builtins
import contextlib
import errno
import functools
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from beside import rows, transaction
from pools import POOL_AND_HOST, store_on
from test_fsck import (
    DAMAGES,
    FIRST,
    SECOND,
    THIRD,
    change,
    checked,
    cut,
    fill,
    flip,
    load,
    needs_root,
    one,
    told,
    unnoticed,
)

from layerstore import Store, check_store
from layerstore.checking import rebuilding, reconcile
from layerstore.errors import Conflict, CorruptError, Unsupported
from layerstore.store.contents import Pack
from layerstore.store.db import SCHEMA_VERSION
from layerstore.store.layout import Layout

ROOT = Path(__file__).parent.parent
CONTENTS = ("packs/*.pack", "objects/*/*")


def mended(root: Path) -> Any:
    return check_store(root, repair=True)


def state(root: Path) -> dict[str, Any]:
    """All that a store shows of its images and containers."""
    with Store(root) as store:
        shown: dict[str, Any] = {"names": sorted(name for image in store.images() for name in image.names)}
        for image in store.images():
            tars = [b"".join(map(bytes, image.layer_tar(diff_id))) for diff_id in image.diff_ids]
            records = [(r.path, r.mode, r.uid, r.gid, r.size, r.mtime_ns, r.target) for r in image.index()]
            shown[image.id] = (image.created, image.chain_id, image.history(), tars, records)
        for container in store.containers():
            shown[container.id] = (container.name, container.read_bytes("/new"), container.listdir("/"))
            shown[container.id] += tuple(snapshot.name for snapshot in container.snapshots())
        return shown


def written(root: Path) -> int:
    """Bytes of contents in packs and objects."""
    return sum(path.stat().st_size for pattern in CONTENTS for path in root.glob(pattern))


def object_of(root: Path, name: str) -> Path:
    """The object of a file of `first:1`."""
    with Store(root) as store:
        index = store.image("first:1").index()
        number = next(record.content for record in index if record.path == name.encode())
        assert number is not None
        return Path(store.layout.object(index.content(number)[0].hex()))


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("repair") / "store"
    with Store(root, create=True) as store:
        fill(store)
    return root


@pytest.fixture(scope="module")
def whole(master: Path) -> dict[str, Any]:
    return state(master)


@pytest.fixture
def root(master: Path, whole: dict[str, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(master, tmp_path / "store"))


LEFT = {  # what is damaged until it is loaded again, of what was: none where it is derived or found elsewhere
    "a content in a pack": {"content"},
    "the end of a pack": set(),
    "a pack": {"pack"},
    "an object": {"content"},
    "the end of an object": {"content"},
    "a lost object": {"content"},
    "an index": {"layer"},
    "the header of an index": {"layer"},
    "a lost index": {"layer"},
    "a recipe": {"recipe"},
    "the end of a recipe": {"recipe"},
    "a lost recipe": {"recipe"},
    "a config": {"blob"},
    "a log": {"log"},
}


@pytest.mark.parametrize("name", [name for name in DAMAGES if name != "a log"])
def test_a_repair_and_a_load_bring_everything_back(root: Path, whole: dict[str, Any], name: str) -> None:
    _, pattern, spoil, _ = DAMAGES[name]
    path = one(root, pattern)
    spoil(path)
    report = mended(root)
    assert {damage.what for damage in report.damages if not damage.repaired} == LEFT.get(name, set()), told(report)
    again = checked(root)
    assert again.is_clean == (not LEFT.get(name)), told(again)
    before = written(root)
    with Store(root) as store:
        load(store, FIRST, SECOND)
    assert told(checked(root)) == ""
    missing = {"a content in a pack": 9_000, "an object": 150_000, "the end of an object": 150_000}
    missing |= {"a lost object": 150_000, "a pack": 6 * 9_000}
    assert before + missing.get(name, 0) <= written(root) <= before + missing.get(name, 0) * 1.1 + 1024
    assert state(root) == whole
    with Store(root) as store:
        store.collect_garbage()
    assert told(checked(root)) == ""
    assert state(root) == whole


def test_a_damaged_log_is_left_to_its_container(root: Path, whole: dict[str, Any]) -> None:
    ((log,),) = rows(Layout(root), "SELECT log FROM containers WHERE name = 'one'")
    flip(root / "logs" / log, 40)
    report = mended(root)
    assert not report.is_clean
    with Store(root) as store:
        with pytest.raises(CorruptError):
            store.container("one").read_bytes("/new")
        store.remove([store.container("one")])
        load(store, FIRST)


def test_what_is_damaged_is_kept(root: Path) -> None:
    path = one(root, "objects/*/*")
    flip(path, 5)
    spoiled = path.read_bytes()
    flip(root / "packs/0.pack", 100)
    slot = (root / "packs/0.pack").read_bytes()[:9_000]
    mended(root)
    kept = {path.read_bytes() for path in (root / "quarantine").iterdir()}
    assert kept == {spoiled, slot}
    with Store(root) as store:
        store.collect_garbage()
    assert len(list((root / "quarantine").iterdir())) == 2


def test_what_a_damaged_image_lacks_is_said_where_it_is_needed(root: Path) -> None:
    flip(object_of(root, "large5"), 5)
    mended(root)
    with Store(root) as store:
        for name in ("first:1", "second:1"):
            with pytest.raises(CorruptError, match=r"fsck --repair`, then load the image again") as raised:
                store.create(name)
            assert raised.value.__notes__ == [f"image {name} is damaged"]
            with pytest.raises(CorruptError, match=r"fsck --repair`, then load the image again"):
                store.image(name).view.read_many(["/large5"])
            (diff_id,) = store.image(name).inspect()["DamagedLayers"]
            assert diff_id in store.image(name).diff_ids


def test_one_load_is_enough_where_images_share_what_was_lost(root: Path, whole: dict[str, Any]) -> None:
    """`large5` is in both."""
    flip(object_of(root, "large5"), 77)
    mended(root)
    assert len(checked(root).damages) == 2
    with Store(root) as store:
        load(store, SECOND)
    assert told(checked(root)) == ""
    assert state(root) == whole


def test_garbage_is_collected_while_layers_are_damaged(root: Path, whole: dict[str, Any]) -> None:
    with Store(root) as store:
        load(store, THIRD)
        (path,) = (Path(store.layout.layer_index(diff_id)) for diff_id in store.image("first:1").diff_ids)
    path.unlink()
    with Store(root) as store, pytest.raises(CorruptError, match="nothing was collected"):
        store.collect_garbage()
    mended(root)
    with Store(root) as store:
        store.remove_image("x:1")
        # What `first:1` alone needs is not known to be needed; what it shares stays.
        assert store.collect_garbage().contents == 2 * (5 + 3)
        load(store, FIRST)
    assert told(checked(root)) == ""
    assert state(root) == whole


def test_what_follows_a_content_is_made_zeros_again(root: Path, whole: dict[str, Any]) -> None:
    data = (root / "packs/0.pack").read_bytes()
    flip(root / "packs/0.pack", 9_100)
    assert mended(root).is_clean
    assert (root / "packs/0.pack").read_bytes() == data
    assert (root / "packs/0.pack").stat().st_mode & 0o777 == 0o400
    assert not (root / "quarantine").exists()


@pytest.mark.parametrize("how", ["no image", "no slots", "cut"])
def test_a_pack_without_its_slots_is_written_again(root: Path, whole: dict[str, Any], how: str) -> None:
    pack = root / "packs/0.pack"
    if how == "no image":
        flip(pack, -60)
        (root / "packs/0.erofs").unlink()
    elif how == "no slots":
        change(pack, lambda data: data.__setitem__(slice(6 * 9_216, None), bytes(len(data) - 6 * 9_216)))
    else:
        cut(pack, 6 * 48 + 64)
    report = mended(root)
    assert "6 of them were brought to a new one" in told(report)
    assert report.is_clean, told(report)
    assert not pack.exists()
    assert told(checked(root)) == ""
    assert state(root) == whole


def test_of_a_pack_that_was_cut_the_rest_is_brought_over(root: Path, whole: dict[str, Any]) -> None:
    cut(root / "packs/0.pack", 6 * 48 + 64 + 3 * 9_216)
    report = mended(root)
    assert "3 of them were brought to a new one" in told(report)
    assert not report.is_clean
    before = written(root)
    with Store(root) as store:
        load(store, FIRST, SECOND)
    assert 3 * 9_000 < written(root) - before < 4 * 9_216
    assert told(checked(root)) == ""
    assert state(root) == whole


# The database


def zero_page(number: int) -> Callable[[Path], object]:
    def edit(data: bytearray) -> None:
        data[4096 * (number - 1) : 4096 * number] = bytes(4096)

    return lambda path: change(path, edit)


DATABASES: dict[str, Callable[[Path], object]] = {
    "its first byte": lambda path: flip(path, 0),
    "its size of a page": lambda path: flip(path, 16),
    "its schema": lambda path: change(path, lambda data: data.__setitem__(data.index(b"CREATE TABLE names"), 0xC5)),
    "a column": lambda path: change(path, lambda data: data.__setitem__(data.index(b"containers (") + 17, ord("j"))),
    "a cell of the logs": lambda path: change(path, lambda data: data.__setitem__(4096 * 14 + 9, 0)),
    "its end": lambda path: cut(path, 8192),
    "its version": lambda path: flip(path, 63, 3),
    "its counter": lambda path: flip(path, 27),
    "a type of a page": lambda path: flip(path, 4096 * 8, 2),
    "nothing left": lambda path: change(path, lambda data: data.clear()),
    "all of it": os.unlink,
    **{f"page {number}": zero_page(number) for number in (3, 4, 5, 6, 8, 16, 25)},
}


@pytest.mark.parametrize("name", DATABASES)
def test_a_damaged_database_is_made_again(root: Path, whole: dict[str, Any], name: str) -> None:
    DATABASES[name](root / "layerstore.db")
    assert not check_store(root).is_clean
    report = mended(root)
    assert report.damages
    assert report.is_clean, told(report)
    assert told(check_store(root)) == ""
    with Store(root) as store:
        load(store, FIRST, SECOND)
    got = state(root)
    if name in ("its end", "nothing left", "all of it"):
        # Of containers and names nothing but the database tells; what they have is put aside.
        assert {key: got.get(key) for key in whole if key.startswith("sha256:")} == {
            key: value for key, value in whole.items() if key.startswith("sha256:")
        }
        lost = len(whole) - len(got)
        assert len(list((root / "quarantine").iterdir())) >= lost
    else:
        assert got == whole
    with Store(root) as store:
        store.collect_garbage()
    assert told(check_store(root)) == ""


def test_a_store_without_its_database_is_not_taken_for_an_empty_one(root: Path) -> None:
    (root / "layerstore.db").unlink()
    with pytest.raises(CorruptError, match=r"layerstore\.db is missing"):
        Store(root)
    assert not (root / "layerstore.db").exists()


@pytest.mark.parametrize("table", ["images", "chains", "layers", "names", "containers", "log_uses", "image_blobs"])
def test_a_flipped_bit_of_a_key_is_flipped_back(root: Path, whole: dict[str, Any], table: str) -> None:
    column = {"names": "image_id", "containers": "image_id", "log_uses": "used", "image_blobs": "digest"}.get(table)
    with unnoticed(root) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        if column is None:
            column = db.execute(f"PRAGMA table_info ({table})").fetchone()[1]
        (value,) = db.execute(f"SELECT {column} FROM {table}").fetchone()
        digit = value[-1]
        other = chr(ord(digit) ^ 1)
        db.execute(f"UPDATE {table} SET {column} = ? WHERE {column} = ?", (value[:-1] + other, value))
    assert not checked(root).is_clean
    report = mended(root)
    assert report.is_clean, told(report)
    assert told(checked(root)) == ""
    assert state(root) == whole


def test_a_name_that_has_changed_is_told_and_taken(root: Path) -> None:
    with unnoticed(root) as db:
        db.execute("UPDATE names SET name = 'fjrst:1' WHERE name = 'first:1'")
    report = mended(root)
    assert "rows of table names are not what was written" in told(report)
    assert "is taken for right" in told(report) or "agrees with the files" in told(report)
    assert report.is_clean
    with Store(root) as store:
        assert store.image("fjrst:1").names == ["fjrst:1"]


def test_a_database_that_another_process_has_open_is_not_replaced(root: Path) -> None:
    flip(root / "layerstore.db", 27)
    code = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM names'); input('open')"
    command = [sys.executable, "-c", code, str(root / "layerstore.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdin is not None
        assert other.stdout.read(4) == b"open"
        with pytest.raises(Conflict, match="another process has it open"):
            mended(root)
        other.communicate(b"\n")
    assert mended(root).is_clean


def test_a_lost_format_file_is_written_again(root: Path, whole: dict[str, Any]) -> None:
    for spoil in (lambda path: flip(path, 3, 6), lambda path: flip(path, 3, 7), os.unlink, cut):
        spoil(root / "format")  # type: ignore[operator]
        assert [damage.what for damage in check_store(root).damages] == ["format"]
        assert mended(root).is_clean
        assert told(check_store(root)) == ""
    assert state(root) == whole


# Whatever happens meanwhile


class Stop(BaseException):
    pass


def stop(*_: Any) -> None:
    raise Stop


class Stopping:
    """Has the N-th call that changes a name or syncs a file raise instead."""

    def __init__(self, patched: pytest.MonkeyPatch, stop_at: int) -> None:
        self.calls = 0
        self._stop_at = stop_at
        for name in ("rename", "unlink", "link", "mkdir", "fsync"):
            patched.setattr(os, name, functools.partial(self._call, getattr(os, name)))

    def _call(self, call: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        if self.calls == self._stop_at:
            raise Stop
        return call(*arguments, **options)


def spoil(root: Path, *, database: bool) -> None:
    """Damage of every kind that a repair does something about."""
    flip(one(root, "objects/*/*"), 5)
    flip(root / "packs/0.pack", 100)
    flip(root / "packs/1.pack", -40)
    flip(one(root, "layers/*.index"), 500)
    cut(one(root, "blobs/sha256/*"))
    flip(one(root, "chains/*.erofs"), 2000)
    if database:
        flip(root / "layerstore.db", 27)


@pytest.mark.parametrize("database", [False, True])
def test_a_repair_can_be_interrupted(
    root: Path, whole: dict[str, Any], database: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """At some of the calls; `make bitrot` does it at each."""
    spoil(root, database=database)
    at = 1
    while True:
        store = Path(shutil.copytree(root, tmp_path / "again"))
        with monkeypatch.context() as patched:
            stopping = Stopping(patched, at)
            with contextlib.suppress(Stop):
                check_store(store, repair=True)
        mended(store)
        with Store(store) as opened:
            load(opened, FIRST, SECOND)
        assert told(check_store(store)) == ""
        assert state(store) == whole
        shutil.rmtree(store)
        if stopping.calls < at:
            break
        at += 9
    assert at > 9


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENOMEM, errno.EACCES])
@pytest.mark.parametrize("place", ["objects", "packs", "layers", "blobs"])
def test_what_the_system_refuses_is_no_damage(
    root: Path, whole: dict[str, Any], place: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process without descriptors or memory has not found anything: what is whole stays where it is."""
    refused = 0

    def refuse(call: Callable[..., Any], path: Any, *arguments: Any, **options: Any) -> Any:
        nonlocal refused
        if f"/{place}/" in str(path) and Path(path).is_file():
            refused += 1
            raise OSError(number, os.strerror(number), path)
        return call(path, *arguments, **options)

    for repair in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(os, "open", functools.partial(refuse, os.open))
            patched.setattr(builtins, "open", functools.partial(refuse, open))
            with pytest.raises(OSError, match=os.strerror(number)):
                check_store(root, repair=repair)
    assert refused
    assert not (root / "quarantine").exists()
    assert told(check_store(root)) == "" and state(root) == whole


@pytest.mark.parametrize("what", ["pack", "index", "log", "chain"])
def test_a_block_that_cannot_be_read_is_damage_and_no_signal(
    root: Path, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To who has the file mapped it would be SIGBUS."""
    patterns = {"pack": "packs/0.pack", "index": "layers/*.index", "log": "logs/*", "chain": "chains/*.index"}
    path = one(root, patterns[what])

    def fail(call: Callable[..., Any], fd: int, *arguments: Any) -> Any:
        # Of the pack its first block, and not its slots.
        if os.readlink(f"/proc/self/fd/{fd}") == str(path) and arguments[-1] < 4096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return call(fd, *arguments)

    def mapped(pack: Pack, number: int) -> memoryview:
        assert (pack.path, number) != (str(path), 0)
        return content(pack, number)

    content = Pack.content
    with monkeypatch.context() as patched:
        for name in ("pread", "preadv"):
            patched.setattr(os, name, functools.partial(fail, getattr(os, name)))
        patched.setattr(Pack, "content", mapped)
        for report in (check_store(root), mended(root)):
            assert f"{path}" in told(report) and "cannot be read: Input/output error" in told(report)
    with Store(root) as store:
        load(store, FIRST, SECOND)
    if what != "log":
        assert told(check_store(root)) == ""


def test_an_interrupted_repair_of_the_database_comes_before_all_else(
    root: Path, whole: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new database would take the place of one to which something has come meanwhile."""
    flip(root / "layerstore.db", 27)
    with monkeypatch.context() as patched, pytest.raises(Stop):
        patched.setattr(rebuilding.Quarantine, "take", stop)
        mended(root)
    with pytest.raises(CorruptError, match=r"was interrupted.*fsck --repair"):
        Store(root)
    assert "was interrupted" in told(check_store(root))
    assert mended(root).is_clean and state(root) == whole


def test_a_database_that_is_written_to_meanwhile_is_not_replaced(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flip(root / "layerstore.db", 27)

    def changed(layout: Any, rows: Any) -> reconcile.Reconciled:
        os.utime(root / "layerstore.db")
        return reconcile.Reconciled(layout, rows)

    with monkeypatch.context() as patched, pytest.raises(Conflict, match="was written to"):
        patched.setattr(rebuilding, "Reconciled", changed)
        mended(root)
    assert not (root / "quarantine").exists()
    assert mended(root).is_clean


def test_a_store_of_a_later_version_is_left_alone(root: Path) -> None:
    (root / "format").write_text("layerstore 2\n")
    with contextlib.closing(sqlite3.connect(root / "layerstore.db", isolation_level=None)) as db:
        db.execute("CREATE TABLE later (x)")
        db.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(Unsupported):
        mended(root)
    assert (root / "format").read_text() == "layerstore 2\n"
    flip(root / "layerstore.db", 3)
    assert not mended(root).is_clean
    assert (root / "format").read_text() == "layerstore 2\n" and not (root / "quarantine").exists()


@pytest.mark.root
@pytest.mark.kernel
@needs_root
@pytest.mark.parametrize("place", POOL_AND_HOST)
def test_what_is_mounted_goes_on_and_new_mounts_are_whole(place: str, tmp_path: Path) -> None:
    with store_on(place, tmp_path) as store:
        load(store, FIRST, SECOND)
        root = Path(store.layout.root)
        old = store.create("first:1")
        mounted = old.mount()
        whole = {path: (Path(mounted) / path).read_bytes() for path in ("small0", "small1", "large1")}
        flip(root / "packs/0.pack", 0)
        flip(one(root, "chains/*.erofs"), 2000)
        report = store.check(repair=True)
        assert {damage.what for damage in report.damages} == {"content", "chain"}
        assert "it is mounted" in told(report)
        assert (Path(mounted) / "small1").read_bytes() == whole["small1"]
        load(store, FIRST)
        assert told(store.check()) == ""
        new = store.create("first:1")
        with new.mount() as shown:
            assert {path: (Path(shown) / path).read_bytes() for path in whole} == whole
        old.umount()
        store.remove([old, new])
        store.collect_garbage()
        assert told(store.check()) == ""


def test_a_repair_looks_at_everything(root: Path) -> None:
    from layerstore.errors import InvalidInput

    for options in ({"quick": True}, {"images": ["first:1"]}):
        with pytest.raises(InvalidInput):
            check_store(root, repair=True, **options)  # type: ignore[arg-type]


def test_the_command_repairs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from layerstore.cli import execute as run

    flip(one(root, "chains/*.erofs"), 2000)
    assert run(["--root", str(root), "fsck", "--repair"]) == 0
    assert "repaired" in capsys.readouterr().out
    (root / "layerstore.db").unlink()
    assert run(["--root", str(root), "fsck", "--format", "json"]) == 1
    assert json.loads(capsys.readouterr().out)["damages"][0]["what"] == "database"
    assert run(["--root", str(root), "fsck", "--repair"]) == 0
    assert "made again" in capsys.readouterr().out
    assert run(["--root", str(root), "images"]) == 0


def test_a_recipe_gets_a_digest_once_its_tar_was_compared(root: Path) -> None:
    """As those of a store that an older version has written have none."""
    with transaction(Layout(root)) as db:
        noted = db.execute("SELECT * FROM layers").fetchall()
        db.execute("UPDATE layers SET recipe = NULL")
    assert mended(root).damages == ()
    assert rows(Layout(root), "SELECT * FROM layers") == noted


def test_a_clean_store_is_not_changed(root: Path) -> None:
    import images

    before = images.store_state(root)
    assert mended(root).damages == ()
    assert images.store_state(root) == before
