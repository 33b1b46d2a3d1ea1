"""The policy of freezing; when an image was last used; where it is shown that one is frozen."""

import errno
import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from beside import transaction
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_cli import Cli
from test_fsck import unnoticed

from layerstore import Store, Tiering
from layerstore.errors import CorruptError, InvalidInput
from layerstore.store.cold_packs import LZ4, ZSTD, ColdPack

HOUR = 3600.0
TEXT = b"".join(b"line %d\n" % n for n in range(2_000))


def archive(name: str, runtime: dict[str, object] | None = None) -> io.BytesIO:
    layer = write_tar(
        [Entry("file", "text", data=TEXT), Entry("file", "own", data=random.Random(name).randbytes(9_000))]
    )
    return io.BytesIO(tar_of(docker_files([Image([layer], [name], runtime or {})])))


def load(store: Store, *names: str) -> None:
    for name in names:
        store.load(archive(name))


def make_old(store: Store, *names: str, hours: float = 2) -> None:
    """Have images have come, and been used for the last time, so long ago."""
    for name in names:
        image = store.image(name).id
        with transaction(store.layout) as db:
            old = "UPDATE images SET stored_seconds = stored_seconds - ? WHERE image_id = ?"
            db.execute(old, (hours * HOUR, image))
        path = Path(store.layout.blobs) / image.removeprefix("sha256:")
        os.utime(path, (0, path.stat().st_mtime - hours * HOUR))


def frozen(store: Store) -> set[str]:
    return {image.names[0] for image in store.images() if image.is_frozen}


class TestPolicy:
    def test_by_default_nothing_is_frozen(self, store: Store) -> None:
        load(store, "a:1")
        make_old(store, "a:1", hours=10_000)
        assert store.tiering == Tiering() == Tiering(None, "zstd")
        done = store.collect_garbage()
        assert (done.frozen, done.not_frozen) == (None, None)
        assert frozen(store) == set()

    def test_what_was_not_used_for_long_is_frozen(self, store: Store) -> None:
        load(store, "old:1", "new:1", "used:1")
        make_old(store, "old:1", "used:1")
        container = store.create("used:1", driver="extent")
        make_old(store, "used:1")
        store.tiering = Tiering(HOUR)
        done = store.collect_garbage()
        assert done.frozen is not None and done.frozen.images == [store.image("old:1").id]
        assert done.frozen.contents == 1 and done.freed_bytes > 0
        assert frozen(store) == {"old:1"}
        assert store.collect_garbage().frozen is None
        container.remove()
        assert store.collect_garbage().frozen is None
        make_old(store, "used:1", "new:1")
        store.prune()
        assert frozen(store) == {"old:1", "used:1", "new:1"}
        assert store.image("used:1").view.read_bytes("/text") == TEXT

    def test_is_every_processes_and_stays(self, store: Store) -> None:
        load(store, "a:1")
        make_old(store, "a:1")
        store.tiering = Tiering(1.5, "lz4")
        with Store(store.root) as other:
            assert other.tiering == Tiering(1.5, "lz4")
            assert other.collect_garbage().frozen is not None
            other.tiering = Tiering(None, "lz4")
        assert store.tiering == Tiering(None, "lz4")
        assert store.check(repair=True).is_clean

    @pytest.mark.parametrize("compression", ["zstd", "lz4"])
    def test_compression(self, store: Store, compression: str) -> None:
        load(store, "a:1", "b:1")
        make_old(store, "a:1")
        store.tiering = Tiering(HOUR, compression)  # type: ignore[arg-type]
        store.collect_garbage()
        store.freeze("b:1")
        packs = [ColdPack(str(path)) for path in (store.root / "cold").iterdir()]
        codecs = {pack.frame(n).codec for pack in packs for n in range(pack.frame_count)}
        assert len(packs) == 2 and codecs & {ZSTD, LZ4} == {{"zstd": ZSTD, "lz4": LZ4}[compression]}

    @pytest.mark.parametrize(
        ("seconds", "compression"), [(-1, "zstd"), (float("nan"), "zstd"), (float("inf"), "zstd"), (1, "gzip")]
    )
    def test_that_makes_no_sense_is_refused(self, seconds: float, compression: str) -> None:
        with pytest.raises(InvalidInput):
            Tiering(seconds, compression)  # type: ignore[arg-type]

    def test_survives_a_repair_of_the_database(self, store: Store) -> None:
        load(store, "a:1")
        store.tiering = Tiering(7 * 86400, "lz4")
        with unnoticed(store.root) as db:
            db.execute("UPDATE counters SET value = value + 1 WHERE name = 'packs'")
        report = store.check(repair=True)
        assert [damage.what for damage in report.damages] == ["database"] and report.is_clean
        assert store.tiering == Tiering(7 * 86400, "lz4")
        with unnoticed(store.root) as db:
            db.execute("UPDATE counters SET value = 77 WHERE name = 'freeze_codec'")
        assert store.check(repair=True).is_clean
        assert store.tiering == Tiering(7 * 86400, "zstd")

    def test_a_freeze_that_fails_keeps_nothing_from_being_collected(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from layerstore.cold import freezing

        load(store, "a:1", "b:1")
        store.remove_image("b:1")
        make_old(store, "a:1")
        store.tiering = Tiering(HOUR)

        def full(*_: object) -> bool:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(freezing.Freezing, "write", full)
            done = store.collect_garbage()
        assert done.frozen is None and isinstance(done.not_frozen, OSError) and done.contents == 1
        assert frozen(store) == set() and list((store.root / "cold").iterdir()) == []
        assert store.collect_garbage().frozen is not None

    def test_damage_is_told_and_keeps_nothing_from_being_collected(self, store: Store) -> None:
        load(store, "a:1", "b:1")
        store.remove_image("b:1")
        make_old(store, "a:1")
        store.tiering = Tiering(HOUR)
        for path in (store.root / "packs").glob("*.pack"):
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1])
        with Store(store.root) as other:
            done = other.collect_garbage()
        assert isinstance(done.not_frozen, CorruptError) and done.contents == 1

    def test_a_freeze_that_is_asked_for_freezes_nothing_else(self, store: Store) -> None:
        load(store, "a:1", "b:1")
        make_old(store, "b:1")
        store.tiering = Tiering(HOUR)
        store.freeze("a:1")
        assert frozen(store) == {"a:1"}


def create_and_remove(store: Store) -> None:
    store.create("a:1").remove()


def create_and_remove_an_extent_container(store: Store) -> None:
    store.create("a:1", driver="extent").remove()


def remove_one_that_is_old(store: Store) -> None:
    container = store.create("a:1", driver="extent")
    make_old(store, "a:1", hours=200)
    container.remove()


def look_into(store: Store) -> None:
    store.image("a:1").view.read_bytes("/text")


def take_its_index(store: Store) -> None:
    store.image("a:1").index()


def compare(store: Store) -> None:
    store.diff("b:1", "a:1")


def load_again(store: Store) -> None:
    load(store, "a:1")


def build_upon(store: Store) -> None:
    context = store.root.parent / "context"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM a:1\nENV A=1\nCOPY Dockerfile /\n")
    store.build(context, pull="never")


def build_upon_from_the_cache(store: Store) -> None:
    build_upon(store)
    make_old(store, "a:1")
    store.evict_derived(0)
    store.build(store.root.parent / "context", pull="never")


def thaw(store: Store) -> None:
    store.freeze("a:1")
    store.thaw("a:1")


def use_another_of_the_same_layers(store: Store) -> None:
    layer = archive("a:1", {"Env": ["A=1"]})
    (other,) = store.load(layer)
    store.tag(other, "other:1")
    store.tag(next(image for image in store.images() if image.id != other.id and not image.names), "a:1")
    make_old(store, "other:1", hours=4)
    store.image("other:1").view.read_bytes("/text")


USES = [
    create_and_remove,
    create_and_remove_an_extent_container,
    remove_one_that_is_old,
    look_into,
    take_its_index,
    compare,
    load_again,
    build_upon,
    build_upon_from_the_cache,
    thaw,
    use_another_of_the_same_layers,
]


class TestLastUse:
    @pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
    def test_is(self, store: Store, use: Callable[[Store], None]) -> None:
        load(store, "a:1", "b:1")
        make_old(store, "a:1", "b:1")
        use(store)
        # Not what is derived says so: a use is remembered when that is evicted.
        store.evict_derived(0)
        store.tiering = Tiering(HOUR)
        store.collect_garbage()
        assert "a:1" not in frozen(store)
        make_old(store, *(image.names[0] for image in store.images() if image.names))
        store.collect_garbage()
        assert "a:1" in frozen(store)

    def test_is_not(self, store: Store) -> None:
        load(store, "a:1")
        make_old(store, "a:1")
        image = store.image("a:1")
        assert image.inspect()["Frozen"] is False
        image.history(), image.size_bytes, image.layers(), store.usage(), store.check()
        store.tag("a:1", "again:1")
        store.save("a:1", io.BytesIO())
        b"".join(map(bytes, image.layer_tar(image.diff_ids[0])))
        store.tiering = Tiering(HOUR)
        store.collect_garbage()
        assert image.is_frozen and image.inspect()["Frozen"] is True

    def test_one_without_its_config(self, store: Store) -> None:
        load(store, "a:1")
        Path(store.layout.blobs, store.image("a:1").id[7:]).unlink()
        store.create("a:1", driver="extent").remove()
        store.tiering = Tiering(HOUR)
        assert store.collect_garbage().frozen is None


class TestCommands:
    @pytest.fixture
    def cli(self, tmp_path: Path) -> Cli:
        with Store(tmp_path / "store", create=True) as store:
            load(store, "old:1", "new:1")
            make_old(store, "old:1", hours=200)
        return Cli(tmp_path / "store")

    def test_tiering(self, cli: Cli) -> None:
        assert cli("tiering") == "nothing is frozen without being asked for; what is asked for, with zstd\n"
        shown = "gc and prune freeze images that were not used for 7d, with lz4\n"
        assert cli("tiering", "--unused-for", "1w", "--compression", "lz4") == shown
        assert cli("tiering") == shown
        assert '"unused_for_seconds": 604800.0' in cli("tiering", "--format", "json")
        assert "for 90m, with lz4" in cli("tiering", "--unused-for", "90m")
        assert "for 90m, with zstd" in cli("tiering", "--compression", "zstd")
        assert cli("tiering", "--off").startswith("nothing is frozen")
        assert "not allowed with" in cli("tiering", "--off", "--unused-for", "1d", status=2)
        assert "not an age" in cli("tiering", "--unused-for", "soon", status=2)

    @pytest.mark.parametrize("command", [("gc",), ("prune", "--force")])
    def test_garbage_is_collected_after_a_freeze(self, cli: Cli, command: tuple[str, ...]) -> None:
        assert "frozen" not in cli(*command)
        cli("tiering", "--unused-for", "7d")
        first, second = cli(*command).splitlines()
        assert first.startswith("1 image frozen: 1 contents of 9kB take ")
        assert second.startswith("1 contents dropped") or second.startswith("0 contents dropped")
        assert [row["FROZEN"] for row in cli.json("images")] == [False, True]
        assert cli("images").splitlines()[0].split() == ["REPOSITORY", "TAG", "IMAGE", "ID", "CREATED", "SIZE"]
        assert '"Frozen": true' in cli("inspect", "old:1")

    def test_what_keeps_it_from_freezing_is_told(self, cli: Cli) -> None:
        cli("tiering", "--unused-for", "7d")
        for path in (cli.root / "packs").glob("*.pack"):
            path.chmod(0o600)
            path.write_bytes(path.read_bytes()[:-1])
        done = subprocess.run(
            [sys.executable, "-m", "layerstore", "gc"], env=cli.environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and done.stdout == "0 contents dropped, 0B given back\n"
        assert done.stderr.startswith("layerstore: nothing was frozen: ") and ".pack" in done.stderr
