"""What a check of a store finds: every kind of damage, with the images that it is in; and nothing else."""

import contextlib
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beside import content_store, rows, transaction
from images import docker_files, tar_of
from meddling import Meddling
from pools import POOL_AND_HOST, store_on
from stacks import Stack
from test_garbage import image_of

from layerstore import CheckReport, Damage, Store, check_store
from layerstore.chains import derived
from layerstore.checking import database
from layerstore.errors import CorruptError
from layerstore.store.db import Database
from layerstore.store.layout import Layout
from layerstore.store.opened import OpenStore

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
FIRST, SECOND, THIRD = (
    image_of(range(6), "first:1"),
    image_of(range(3, 9), "second:1"),
    image_of(range(40, 45), "x:1"),
)
OTHER_ID = "sha256:" + "ab" * 32


def load(store: Store, *made: object) -> None:
    for image in made:
        store.load(io.BytesIO(tar_of(docker_files([image]))))  # type: ignore[list-item]


def fill(store: Store) -> None:
    """Two images that share contents, all that is derived of one, and containers of the extent driver."""
    load(store, FIRST, SECOND)
    store.remove(store.create("first:1", count=1))
    store.image("first:1").index()
    container = store.create("first:1", driver="extent", name="one")
    container.write_bytes("/new", b"written" * 100)
    container.snapshot("before")
    container.write_bytes("/more", b"also written")
    container.fork()


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fsck") / "store"
    with Store(root, create=True) as store:
        fill(store)
    return root


@pytest.fixture
def root(master: Path, tmp_path: Path) -> Path:
    """A closed store that is as `fill` leaves it."""
    return Path(shutil.copytree(master, tmp_path / "store"))


def checked(root: Path, **options: bool) -> CheckReport:
    with Store(root) as store:
        return store.check(**options)  # type: ignore[arg-type]


def told(report: CheckReport) -> str:
    return "\n".join(f"{damage.what} {damage.path}: {damage.detail}" for damage in report.damages)


def change(path: Path, edit: Callable[[bytearray], object]) -> None:
    """Write a file anew, with its mode and times."""
    status = path.stat()
    data = bytearray(path.read_bytes())
    edit(data)
    path.chmod(0o600)
    path.write_bytes(data)
    path.chmod(status.st_mode & 0o777)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def flip(path: Path, at: int, bit: int = 0) -> None:
    def edit(data: bytearray) -> None:
        data[at] ^= 1 << bit

    change(path, edit)


def cut(path: Path, count: int = 1) -> None:
    change(path, lambda data: data.__delitem__(slice(len(data) - count, None)))


def one(root: Path, pattern: str) -> Path:
    return min(path for path in root.glob(pattern) if path.is_file() and path.stat().st_size)


# Stores that are whole


def test_a_store_that_is_whole_is_clean(root: Path) -> None:
    report = checked(root)
    assert told(report) == ""
    assert report.notes == ()
    assert report.is_clean
    assert (report.contents, report.bytes) == (18, 9 * 159_000)
    quick = checked(root, quick=True)
    assert (quick.is_clean, quick.contents, quick.bytes) == (True, 18, 0)
    assert report.seconds > 0


def test_an_empty_store_is_clean(store: Store) -> None:
    report = store.check()
    assert report == CheckReport((), (), 0, 0, report.seconds)


def test_a_store_is_clean_whatever_was_done_in_it(store: Store) -> None:
    load(store, FIRST, SECOND, THIRD)
    Stack(5).load(store, range(1, 6))
    store.tag("x:1", "y:1")
    container = store.create("grown:5", driver="extent")
    container.write_bytes("/f", b"x" * 300_000)
    container.snapshot("s")
    container.rollback("s")
    container.commit("made:1")
    assert told(store.check()) == ""
    store.remove_image("first:1")
    assert told(store.check()) == ""
    store.collect_garbage()
    assert told(store.check()) == ""
    store.evict_derived(0)
    store.remove([container])
    assert told(store.check()) == ""
    load(store, FIRST)
    assert told(store.check()) == ""


def test_a_store_that_others_write_to_meanwhile(root: Path, meddle: Meddling) -> None:
    """The database has grown in its log, and its file has not."""
    with Store(root) as other:

        def write() -> None:
            for number in range(30):
                other.tag("first:1", f"{number}:{'x' * 100}")
            ((pages,),) = rows(other.layout, "PRAGMA page_count")
            assert pages * 4096 > os.stat(other.layout.database).st_size

        meddle.before(database, "_check_pages", write)
        assert told(checked(root, quick=True)) == ""


def test_a_tree_image_that_was_written_as_others_looked_what_to_evict(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    units = derived.Derived._units
    (description,) = root.glob("chains/*.json")

    def early(self: derived.Derived) -> object:
        os.rename(description, root / "later")
        found = list(units(self))
        os.rename(root / "later", description)
        return found

    with Store(root) as store:
        store.remove(store.containers(), force=True)
        monkeypatch.setattr(derived.Derived, "_units", early)
        store.evict_derived(0)
    assert list(root.glob("chains/*.erofs")) == []
    assert told(checked(root)) == ""


@pytest.mark.usefixtures("few")
def test_a_store_is_clean_after_packs_were_brought_together(store: Store) -> None:
    Stack(12).load(store, range(1, 13))
    store.remove([store.create("grown:12")])
    assert told(store.check()) == ""
    store.collect_garbage()
    assert told(store.check()) == ""


@pytest.mark.root
@pytest.mark.parametrize("place", POOL_AND_HOST)
@needs_root
def test_containers_of_both_drivers_are_clean(place: str, tmp_path: Path) -> None:
    with store_on(place, tmp_path) as store:
        load(store, FIRST)
        container = store.create("first:1")
        with container.mount() as mounted:
            (mounted / "written").write_bytes(b"x" * 5000)
            assert told(store.check()) == ""
        container.snapshot("s")
        container.fork()
        assert told(store.check()) == ""
        container.move("extent")
        assert told(store.check()) == ""


# Damage


DAMAGES: dict[str, tuple[str, str, Callable[[Path], object], bool]] = {
    "a content in a pack": ("content", "packs/0.pack", lambda path: flip(path, 100), False),
    "what follows a content in a pack": ("content", "packs/0.pack", lambda path: flip(path, 9_100), False),
    "the footer of a pack": ("pack", "packs/0.pack", lambda path: flip(path, -40), True),
    "a slot of a pack": ("pack", "packs/0.pack", lambda path: flip(path, -70), True),
    "the end of a pack": ("pack", "packs/0.pack", cut, True),
    "a pack": ("pack", "packs/0.pack", os.unlink, True),
    "the image of a pack": ("pack image", "packs/0.erofs", lambda path: flip(path, 1500), True),
    "an object": ("content", "objects/*/*", lambda path: flip(path, 149_999, 7), False),
    "the end of an object": ("content", "objects/*/*", cut, True),
    "a lost object": ("content", "objects/*/*", os.unlink, True),
    "the header of the digest log": ("digest log", "digests.0", lambda path: flip(path, 20), True),
    "the end of the digest log": ("digest log", "digests.0", cut, True),
    "a digest in the log": ("digest log", "digests.0", lambda path: flip(path, 32 + 5), True),
    "a size in the log": ("digest log", "digests.0", lambda path: flip(path, 32 + 33), True),
    "a slot in the log": ("digest log", "digests.0", lambda path: flip(path, 32 + 45), True),
    "an index": ("layer", "layers/*.index", lambda path: flip(path, 500), True),
    "the header of an index": ("layer", "layers/*.index", lambda path: flip(path, 45), True),
    "a lost index": ("layer", "layers/*.index", os.unlink, True),
    "a recipe": ("recipe", "layers/*.recipe", lambda path: flip(path, 60), True),
    "the end of a recipe": ("recipe", "layers/*.recipe", cut, True),
    "a lost recipe": ("recipe", "layers/*.recipe", os.unlink, True),
    "a merged index": ("chain", "chains/*.index", lambda path: flip(path, 300), True),
    "a tree image": ("chain", "chains/*.erofs", lambda path: flip(path, 2000), True),
    "the description of a tree image": ("chain", "chains/*.json", lambda path: flip(path, 15, 1), True),
    "a config": ("blob", "blobs/sha256/*", lambda path: flip(path, 3), True),
    "a log": ("log", "logs/*", lambda path: flip(path, 40), True),
    "the number of the application": ("database", "layerstore.db", lambda path: flip(path, 70), True),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found(root: Path, name: str) -> None:
    what, pattern, spoil, is_quick = DAMAGES[name]
    path = one(root, pattern)
    spoil(path)
    report = checked(root)
    assert {damage.what for damage in report.damages} >= {what}, told(report)
    assert not report.is_clean
    found = [damage for damage in report.damages if damage.what == what]
    if what not in ("database", "log", "pack image", "digest log"):
        assert found[0].images, told(report)
    if path.name != "layerstore.db":
        assert str(path) in {damage.path for damage in found}, told(report)
    quick = checked(root, quick=True)
    assert (what in {damage.what for damage in quick.damages}) == is_quick, told(quick)


def test_the_images_and_files_of_a_damaged_content_are_told(root: Path) -> None:
    """`small5` is in both images, `small0` in one."""
    with Store(root) as store:
        first, second = store.image("first:1"), store.image("second:1")
        for name, images in (("small5", {first.id, second.id}), ("small0", {first.id})):
            digest = next(record for record in first.index() if record.path == name.encode())
            content, size = first.index().content(digest.content or 0)
            slot = digest.content
            assert slot is not None and size == 9_000
            found = _place_of(store, content)
            flip(found[0], found[1] + 17)
            (damage,) = store.check().damages
            assert set(damage.images) == images
            assert f"file /{name}: " in damage.detail and content.hex() in damage.detail
            flip(found[0], found[1] + 17)
            assert store.check().is_clean


def _place_of(store: Store, digest: bytes) -> tuple[Path, int]:
    with content_store(store.layout) as contents:
        file, offset, _ = contents.open_place(digest)
    with file:
        return Path(str(file.name)), offset


def test_only_what_images_need_is_checked_where_they_are_named(root: Path) -> None:
    with Store(root) as store:
        content, _ = store.image("first:1").index().content(0)
        flip(*_place_of(store, content))
        assert not store.check("first:1").is_clean
        assert not store.check(["second:1", "first:1"]).is_clean
        assert store.check("second:1").is_clean
        assert store.check("second:1").contents == 12


DATABASE_DAMAGES = {
    "names": "UPDATE names SET name = 'fjrst:1' WHERE name = 'first:1'",
    "layers": "UPDATE layers SET files_bytes = files_bytes + 1",
    "images": "UPDATE images SET stored_seconds = stored_seconds + 1",
    "containers": "UPDATE containers SET created_seconds = created_seconds + 1",
    "counters": "UPDATE counters SET value = value + 1 WHERE name = 'packs'",
    "snapshots": "UPDATE snapshots SET name = 'bfore'",
    "chains": f"UPDATE chains SET parent = '{OTHER_ID}'",
    "log_uses": "UPDATE log_uses SET length = length - 8",
    "sums": "UPDATE sums SET row_count = row_count + 1 WHERE name = 'packs'",
}


@contextlib.contextmanager
def unnoticed(root: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are as those of a disk: no sum knows of them."""
    db = sqlite3.connect(root / "layerstore.db", isolation_level=None)
    db.execute("PRAGMA synchronous = OFF")
    triggers = db.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    yield db
    for _, sql in triggers:
        db.execute(sql)
    db.close()


@pytest.mark.parametrize("table", DATABASE_DAMAGES)
def test_a_changed_row_is_found(root: Path, table: str) -> None:
    with unnoticed(root) as db:
        db.execute(DATABASE_DAMAGES[table])
    for quick in (False, True):
        report = checked(root, quick=quick)
        named = "packs" if table == "sums" else table
        assert f"rows of table {named} are not what was written" in told(report)


def test_a_row_that_came_or_went_is_found(root: Path) -> None:
    for statement in ("DELETE FROM names WHERE name = 'first:1'", "INSERT INTO packs VALUES (7)"):
        with unnoticed(root) as db:
            db.execute(statement)
        assert "rows of table" in told(checked(root))


def test_sums_follow_every_way_to_change_rows(store: Store) -> None:
    from layerstore.store import sums

    database = Database(store.layout.database, store.layout.database_lock)
    with database.transaction() as db:
        db.execute("INSERT INTO images VALUES ('a', 'c', ?, 1)", ("x\u1234",))
        db.executemany("INSERT INTO names VALUES (?, 'a')", [("one",), ("two",)])
        db.execute("INSERT INTO image_blobs VALUES ('a', 'b')")
        db.execute("INSERT INTO packs VALUES ('17')")
    assert sums.differing(database.read()) == []
    with database.transaction() as db:
        db.execute("UPDATE images SET stored_seconds = 1.5")
        db.execute("INSERT INTO names VALUES ('one', 'a') ON CONFLICT DO UPDATE SET name = 'three'")
        db.execute("DELETE FROM names")
        db.execute("DELETE FROM images")  # image_blobs goes with it
    assert sums.differing(database.read()) == []
    assert database.read().execute("SELECT row_count FROM sums WHERE name = 'image_blobs'").fetchone() == (0,)
    with contextlib.suppress(KeyError), database.transaction() as db:
        db.execute("INSERT INTO packs VALUES (3)")
        raise KeyError
    assert sums.differing(database.read()) == []
    database.close()


def test_a_transaction_in_which_a_statement_failed_is_not_committed(store: Store) -> None:
    from layerstore.store import sums

    with pytest.raises(sqlite3.IntegrityError), transaction(store.layout) as db:
        db.execute("INSERT INTO packs VALUES (1)")
        with contextlib.suppress(sqlite3.IntegrityError):
            db.execute("INSERT INTO packs VALUES (2), (1)")
    assert rows(store.layout, "SELECT * FROM packs") == []
    with contextlib.closing(sqlite3.connect(store.layout.database)) as db:
        assert sums.differing(db) == []


def test_who_does_not_keep_the_sums_cannot_write(root: Path) -> None:
    db = sqlite3.connect(root / "layerstore.db")
    with contextlib.closing(db), pytest.raises(sqlite3.OperationalError, match="layerstore_row_come"):
        db.execute("INSERT INTO packs VALUES (9)")


@pytest.mark.parametrize("table", ["names", "layers"])
def test_text_in_the_database_that_is_none_is_found(root: Path, table: str) -> None:
    with unnoticed(root) as db:
        db.execute("PRAGMA foreign_keys = OFF")
        column = db.execute(f"PRAGMA table_info ({table})").fetchone()[1]
        db.execute(f"UPDATE {table} SET {column} = CAST(CAST(substr({column}, 1, 70) AS BLOB) || x'b1' AS TEXT)")
    report = check_store(root)
    assert not report.is_clean
    assert {damage.what for damage in report.damages} >= {"database"}
    if table == "names":
        with Store(root) as store, pytest.raises(CorruptError, match="text in it is none"):
            _ = [image.names for image in store.images()]


def test_a_torn_end_of_a_log_is_told_as_what_a_crash_leaves(root: Path) -> None:
    ((log,),) = rows(Layout(root), "SELECT log FROM containers WHERE name = 'one'")
    cut(root / "logs" / log)
    report = checked(root)
    assert [note.path for note in report.notes] == [str(root / "logs" / log)]
    assert "a crash leaves that" in report.notes[0].detail


def test_what_of_a_log_a_snapshot_needs_is_to_be_there(root: Path) -> None:
    ((log, length),) = rows(Layout(root), "SELECT log, length FROM snapshots")
    path = root / "logs" / log
    cut(path, path.stat().st_size - length + 1)
    assert "snapshot 'before' needs" in told(checked(root))


def test_a_remembered_step_of_a_build_is_checked(store: Store) -> None:
    from layerstore.building.steps import Step, Steps
    from layerstore.types import ChainId

    with contextlib.closing(OpenStore(store.layout)) as opened:
        steps = Steps(opened)
        steps.add("k" * 64, Step("2024-05-06T07:08:09Z", None, ChainId(OTHER_ID)))
        assert store.check().is_clean
        flip(Path(store.layout.builds) / "steps" / ("k" * 64), 20)
        (damage,) = store.check().damages
        assert damage.what == "build step"
        assert steps.find("k" * 64) is None


def test_a_recipe_without_a_digest_is_judged_by_its_tar(root: Path) -> None:
    with unnoticed(root) as db:
        db.execute("UPDATE layers SET recipe = NULL")
    with transaction(Layout(root)) as db:
        from layerstore.store import sums

        sums.seal(db)
    assert checked(root).is_clean
    path = one(root, "layers/*.recipe")
    data = path.read_bytes()
    from layerstore.store.zstd import zstd

    frames = bytearray(zstd.decompress(data))
    frames[20] ^= 1
    change(path, lambda old: old.__setitem__(slice(None), zstd.compress(bytes(frames))))
    report = checked(root)
    assert "the tar that it makes is not the layer's" in told(report)


def test_others_import_while_a_store_is_checked(root: Path) -> None:
    with Store(root) as store:
        loaded = []

        def progress(_: object) -> None:
            if not loaded:
                loaded.append(1)
                with Store(root) as other:
                    load(other, THIRD)

        assert told(store.check(progress=progress)) == ""
        assert loaded
        assert told(store.check()) == ""


# The command


def test_the_command(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from layerstore.cli import execute as run

    assert run(["--root", str(root), "fsck"]) == 0
    assert capsys.readouterr().out.startswith("18 contents, 1.43MB compared, ")
    for path in root.glob("objects/*/*"):
        flip(path, 9)
    assert run(["--root", str(root), "fsck"]) == 1
    shown = capsys.readouterr().out
    assert "image first:1 (" in shown and "image second:1 (" in shown
    assert "6 damaged\n" in shown and "and 1 more" in shown
    assert "`layerstore fsck --repair`" in shown.splitlines()[-1]
    assert shown.count("\n") < 20
    assert run(["--root", str(root), "fsck", "--quick"]) == 0
    assert capsys.readouterr().out == "18 contents looked at by their sizes, all else compared: clean\n"
    assert run(["--root", str(root), "fsck", "--format", "json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert len(document["damages"]) == 9 and document["clean"] is False
    assert isinstance(Damage(**document["damages"][0]), Damage)
    assert run(["--root", str(root), "fsck", "nothing:1"]) == 1


def test_a_damaged_database_is_said_to_be_so_on_opening(root: Path) -> None:
    flip(root / "layerstore.db", 3)
    with pytest.raises(CorruptError, match="fsck --repair"):
        Store(root)
