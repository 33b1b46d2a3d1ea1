"""Freezing images and bringing them back: what is read, what is kept, what is given back."""

import errno
import io
import os
import random
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from beside import content_store, freeze_alone, transaction
from images import Image, docker_files, tar_of, zstd
from layer_model import Entry, write_tar
from meddling import Meddling

from layerstore import Store
from layerstore._core.files import MappedFile
from layerstore._core.hashing import blake3
from layerstore._core.ingest import LOCATION_OBJECT
from layerstore.checking.contents import Record
from layerstore.cold import encoding, freezing
from layerstore.cold.encoding import delta_of, name_of
from layerstore.errors import Conflict, CorruptError, InvalidInput, NotFound
from layerstore.store import durable, locks
from layerstore.store.cold_packs import LIST, MAX_DELTA_BYTES, WHOLE, ColdPack, apply_delta, is_cold

TEXT = b"".join(b"line %d of a text that many versions have\n" % n for n in range(3_000))
LARGE = random.Random("large").randbytes(3 << 20)


def version(number: int) -> dict[str, bytes]:
    """The files of an image: most of them differ a little from those of other versions, as in real ones."""
    draw = random.Random("code")
    files = {
        f"lib/module-{number}.{number + 1}/{n}.pyc": struct.pack("<4sII", b"\xcb\r\r\n", 0, 1_000 * number + n)
        + draw.randbytes(5_000)
        for n in range(20)
    }
    at = 70_000 + 10 * number
    files["share/text"] = TEXT[:at] + b"version %d" % number + TEXT[at:]
    files["share/same"] = b"the same in all of them" * 100
    files["share/own"] = random.Random(f"own {number}").randbytes(30_000)
    files["share/random"] = LARGE[: 1_000_000 + number] + b"%d" % number + LARGE[1_000_000 + number :]
    files["share/large"] = random.Random(f"large {number}").randbytes(2 << 20) + LARGE[: 2 << 20]
    files["empty"] = b""
    return files


def layer(files: dict[str, bytes]) -> bytes:
    return write_tar([Entry("file", path, data=data) for path, data in sorted(files.items())])


def load(store: Store, *numbers: int) -> None:
    for number in numbers:
        archive = tar_of(docker_files([Image([layer(version(number))], [f"app:{number}"])]))
        store.load(io.BytesIO(archive))


def require_files(store: Store, number: int) -> None:
    view = store.image(f"app:{number}").view
    files = version(number)
    assert view.read_many([f"/{path}" for path in files]) == list(files.values())
    for path, data in files.items():
        with view.open(f"/{path}", "rb") as file:
            assert file.read() == data


def hot_bytes(store: Store) -> int:
    """What packs and objects take on disk."""
    return sum(
        path.stat().st_blocks * 512
        for top in ("packs", "objects")
        for path in (store.root / top).rglob("*")
        if path.is_file()
    )


def cold_packs(store: Store) -> list[ColdPack]:
    return [ColdPack(str(path)) for path in sorted((store.root / "cold").glob("*.cold"))]


def kinds(store: Store) -> list[str]:
    names = {WHOLE: "whole", LIST: "list"}
    return [names.get(pack.slot(n).base, "difference") for pack in cold_packs(store) for n in range(pack.slot_count)]


class TestFreeze:
    @pytest.mark.parametrize("compression", ["zstd", "lz4"])
    def test_what_is_frozen_reads_as_before(self, store: Store, compression: str) -> None:
        load(store, 1, 2, 3)
        before = hot_bytes(store)
        done = store.freeze(compression=compression)  # type: ignore[arg-type]
        assert sorted(done.images) == sorted(image.id for image in store.images())
        assert done.stored_bytes < done.content_bytes / 2
        assert hot_bytes(store) < before / 20
        assert {"whole", "list", "difference"} == set(kinds(store))
        for number in (1, 2, 3):
            require_files(store, number)
        assert store.check().is_clean

    def test_a_small_change_takes_little(self, store: Store) -> None:
        load(store, 1, 2, 3, 4, 5, 6)
        done = store.freeze()
        own = sum(len(version(1)[path]) for path in ("share/own", "share/large"))
        once = sum(map(len, version(1).values()))
        # Random bytes do not compress: what all have in common is there once, what is each one's own six times.
        assert done.stored_bytes < once + 5 * (own - (2 << 20)) + 200_000

    def test_a_layer_comes_out_as_it_came_in(self, store: Store, tmp_path: Path) -> None:
        load(store, 1, 2)
        tars = {image.id: b"".join(image.layer_tar(image.diff_ids[0])) for image in store.images()}
        store.freeze()
        assert {image.id: b"".join(image.layer_tar(image.diff_ids[0])) for image in store.images()} == tars

    def test_what_a_hot_image_needs_stays_hot(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze("app:1")
        same = store.image("app:2").view
        assert same.read_bytes("/share/same") == version(2)["share/same"]
        located = {pack.slot(n).digest for pack in cold_packs(store) for n in range(pack.slot_count)}
        assert blake3(version(2)["share/same"]) not in located
        assert blake3(version(1)["share/own"]) in located
        require_files(store, 1)
        require_files(store, 2)

    def test_a_large_file_that_a_hot_image_needs_stays_hot(self, store: Store) -> None:
        load_files(store, "hot:1", {"large": LARGE})
        load_files(store, "cold:1", {"large": LARGE, "own": b"x" * 10_000})
        assert store.freeze("cold:1").content_bytes == 10_000
        assert Path(store.layout.object(blake3(LARGE).hex())).read_bytes() == LARGE

    def test_frozen_one_after_another(self, store: Store) -> None:
        load(store, 1, 2, 3)
        for number in (1, 2, 3):
            store.freeze(f"app:{number}")
        assert len(cold_packs(store)) == 3
        own = sum(len(version(1)[path]) for path in ("share/own", "share/large"))
        once = sum(map(len, version(1).values()))
        assert sum(path.stat().st_size for path in (store.root / "cold").iterdir()) < once + 2 * own
        for number in (1, 2, 3):
            require_files(store, number)
        assert store.check().is_clean

    def test_of_differences_none_is_a_base(self, store: Store) -> None:
        load(store, 1, 2, 3, 4)
        for number in (4, 2, 1, 3):
            store.freeze(f"app:{number}")
        packs = cold_packs(store)
        slots = [(pack, pack.slot(n)) for pack in packs for n in range(pack.slot_count)]
        differences = {slot.digest for _, slot in slots if slot.base not in (WHOLE, LIST)}
        needed = {each for pack, slot in slots for each in pack.references_of(slot)}
        assert differences and not differences & needed

    def test_frozen_again_after_thawing_costs_nothing(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze()
        cold = [path.name for path in (store.root / "cold").iterdir()]
        store.thaw("app:1")
        require_files(store, 1)
        assert store.freeze("app:1").contents == 0
        assert [path.name for path in (store.root / "cold").iterdir()] == cold
        assert hot_bytes(store) < 100_000
        require_files(store, 1)

    def test_a_collection_meanwhile_takes_no_cold_copy_that_is_needed(self, store: Store, meddle: Meddling) -> None:
        files = {"own": version(1)["share/own"], "text": TEXT}  # none of which is a list, whose chunks keep the pack
        store.load(io.BytesIO(tar_of(docker_files([Image([layer(files)], ["app:1"])]))))
        store.freeze()
        store.thaw("app:1")
        meddle.before(locks, "garbage_alone", store.collect_garbage)
        store.freeze("app:1")
        assert cold_packs(store) == []
        assert store.image("app:1").view.read_many([f"/{path}" for path in files]) == list(files.values())
        assert store.check().is_clean
        load(store, 2)
        store.freeze("app:2")
        assert hot_bytes(store) < 100_000
        assert store.image("app:1").view.read_many([f"/{path}" for path in files]) == list(files.values())

    def test_a_collection_meanwhile_leaves_what_is_written(self, store: Store, meddle: Meddling) -> None:
        load(store, 1, 2)
        collected: list[int] = []
        meddle.before(locks, "garbage_alone", lambda: collected.append(store.collect_garbage().contents))
        assert len(store.freeze().images) == 2
        assert collected == [0]
        assert hot_bytes(store) < 100_000
        require_files(store, 1)
        assert store.check().is_clean

    def test_an_image_that_is_removed_meanwhile(self, store: Store, meddle: Meddling) -> None:
        from layerstore.cold import freezing

        load(store, 1, 2)
        meddle.before(freezing.Freezing, "_remove_derived", lambda: store.remove_image("app:1"))
        store.freeze()
        require_files(store, 2)
        assert store.check().is_clean

    def test_what_only_frozen_images_need_is_not_kept_hot(self, store: Store) -> None:
        for name, files in {
            "a:1": {"text": TEXT, "own": b"own"},
            "b:1": {"text": TEXT, "b": b"b"},
            "c:1": {"c": b"c"},
        }.items():
            store.load(io.BytesIO(tar_of(docker_files([Image([layer(files)], [name])]))))
        store.freeze(["a:1", "b:1"])
        store.thaw("a:1")
        store.remove_image("a:1")
        store.collect_garbage()
        assert hot_bytes(store) > len(TEXT)
        store.freeze("c:1")
        assert hot_bytes(store) < 10_000
        assert store.image("b:1").view.read_bytes("/text") == TEXT

    def test_one_in_use_is_refused(self, store: Store) -> None:
        load(store, 1)
        container = store.create("app:1", driver="extent")
        with pytest.raises(Conflict, match="a container uses image"):
            store.freeze("app:1")
        assert store.freeze().images == []
        container.remove()
        assert len(store.freeze("app:1").images) == 1

    def test_one_that_comes_into_use_meanwhile_is_left(self, store: Store, meddle: Meddling) -> None:
        load(store, 1, 2)
        meddle.after(freezing, "unused_images", lambda: store.create("app:1"))
        assert store.freeze().images == [store.image("app:2").id]
        store.thaw("app:2")
        meddle.after(freezing, "unused_images", lambda: store.create("app:2"))
        # Who is asked for it says that it cannot be.
        with pytest.raises(Conflict, match="a container uses image"):
            store.freeze("app:2")
        require_files(store, 2)

    def test_one_that_is_not_there_is_refused(self, store: Store) -> None:
        with pytest.raises(NotFound):
            store.freeze("app:1")

    def test_only_what_was_not_used_for_long(self, store: Store) -> None:
        load(store, 1, 2)
        assert store.freeze(unused_for_seconds=3600).images == []
        with transaction(store.layout) as db:
            db.execute("UPDATE images SET stored_seconds = stored_seconds - 7200")
        for path in (store.root / "blobs").rglob("*"):
            os.utime(path, (0, path.stat().st_mtime - 7200))
        store.image("app:2").view.read_bytes("/share/same")
        done = store.freeze(unused_for_seconds=3600)
        assert done.images == [store.image("app:1").id]

    def test_a_load_knows_what_is_frozen(self, store: Store) -> None:
        load(store, 1)
        store.freeze()
        store.remove_image("app:1")
        before = hot_bytes(store)
        load(store, 1)
        assert hot_bytes(store) == before
        require_files(store, 1)

    def test_nothing_else_sees_half_of_it(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        from layerstore.cold import freezing

        load(store, 1, 2)

        def fail(*_: object) -> None:
            raise KeyboardInterrupt

        for name in ("write", "commit"):
            with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
                patch.setattr(freezing.Freezing, name, fail)
                store.freeze()
            assert list((store.root / "cold").iterdir()) == []
            require_files(store, 1)
        freeze_alone(store)
        require_files(store, 1)
        store.collect_garbage()
        assert hot_bytes(store) < 100_000
        require_files(store, 2)


def index_files(store: Store, number: int) -> list[bytes]:
    image = store.image(f"app:{number}")
    return [Path(store.layout.layer_index(diff_id)).read_bytes() for diff_id in image.diff_ids]


def load_over_one(store: Store, *numbers: int) -> None:
    """Images with a layer that all have, and one of their own."""
    base = layer({f"base/{n}": b"%d" % n for n in range(100)})
    for number in numbers:
        store.load(io.BytesIO(tar_of(docker_files([Image([base, layer(version(number))], [f"app:{number}"])]))))


class TestIndexes:
    def test_those_of_frozen_layers_alone_are_compressed(self, store: Store) -> None:
        load_over_one(store, 1, 2)
        before = index_files(store, 1)
        store.freeze("app:1")
        base, own = index_files(store, 1)
        assert (base, zstd.decompress(own)) == (before[0], before[1])
        assert len(own) < len(before[1]) * 0.7
        store.freeze("app:2")
        assert list(map(zstd.decompress, index_files(store, 1))) == before
        require_files(store, 1)
        assert store.check().is_clean
        store.thaw("app:1")
        assert index_files(store, 1) == before
        assert index_files(store, 2)[1] != own
        require_files(store, 2)

    def test_one_that_is_damaged_is_found_and_comes_back_with_its_layer(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze()
        (before,) = index_files(store, 1)
        path = Path(store.layout.layer_index(store.image("app:1").diff_ids[0]))
        for at in (2, 5, len(before) // 2, len(before) - 1):
            path.write_bytes(before[:at] + bytes([before[at] ^ 0x10]) + before[at + 1 :])
            assert [finding.what for finding in store.check().damages] == ["layer"], at
            with pytest.raises(CorruptError):
                store.thaw("app:1")
        store.check(repair=True)
        load(store, 1)
        require_files(store, 1)
        assert store.check().is_clean

    def test_a_full_disk_leaves_them(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        load(store, 1)
        before = index_files(store, 1)

        def full(path: str, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

        with monkeypatch.context() as patched:
            patched.setattr(durable, "write_file", full)
            with pytest.raises(OSError, match="No space left"):
                store.freeze()
        assert index_files(store, 1) == before
        assert not store.usage().images[0].is_frozen
        store.freeze()
        require_files(store, 1)


class TestThaw:
    def test_by_a_container(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze()
        container = store.create("app:1", driver="extent")
        assert hot_bytes(store) > len(version(1)["share/large"])
        assert container.read_bytes("/share/text") == version(1)["share/text"]
        assert container.read_bytes("/share/large") == version(1)["share/large"]
        with container.open("/share/large", "r+b") as file:
            file.seek(1 << 20)
            file.write(b"changed")
        assert container.read_bytes("/share/large")[(1 << 20) : (1 << 20) + 7] == b"changed"

    @pytest.mark.root
    @pytest.mark.kernel
    def test_by_a_mount(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze()
        with store.create("app:1").mount() as root:
            for path, data in version(1).items():
                assert (root / path).read_bytes() == data
            with pytest.raises(Conflict):
                store.freeze("app:1")
            # The other one is frozen still, and what it needs is kept.
            store.collect_garbage()
            require_files(store, 2)
            for path, data in version(1).items():
                assert (root / path).read_bytes() == data
        assert store.check().is_clean

    @pytest.mark.root
    @pytest.mark.kernel
    def test_after_a_freeze_that_was_killed_at_its_commit(self, store: Store) -> None:
        """A tree image that was left, and says where contents were hot, goes before they do."""
        load(store, 1, 2)
        with store.create("app:1").mount():
            pass
        store.remove(store.containers())
        with transaction(store.layout) as db:
            db.execute("INSERT INTO frozen VALUES (?)", (store.image("app:1").id,))
        store.freeze("app:2")
        with store.create("app:1").mount() as root:
            for path, data in version(1).items():
                assert (root / path).read_bytes() == data

    @pytest.mark.root
    @pytest.mark.kernel
    def test_of_an_image_that_was_removed_when_others_were_frozen(self, store: Store) -> None:
        """Its tree image says where contents were hot, which it has in common with them. It may be loaded again before
        garbage is collected."""
        both = {"both/small": random.Random("small").randbytes(50_000), "both/large": LARGE[:300_000]}
        own = {"own": random.Random("own").randbytes(60_000)}
        first, second = Image([layer(both | own)], ["a:1"]), Image([layer(both)], ["b:1"])
        store.load(io.BytesIO(tar_of(docker_files([first, second]))))
        store.remove([store.create("a:1")])
        store.remove_image("a:1")
        freeze_alone(store, "b:1")
        store.load(io.BytesIO(tar_of(docker_files([first]))))
        container = store.create("a:1")
        store.collect_garbage()
        with container.mount() as root:
            for path, data in (both | own).items():
                assert (root / path).read_bytes() == data

    def test_of_a_large_content_with_a_chunk_that_is_hot(self, store: Store) -> None:
        chunk = bytes(1 << 19)
        large = {"large": chunk * 3 + random.Random("rest").randbytes(9 << 20)}
        load_files(store, "app:1", large)
        load_files(store, "app:2", {"chunk": chunk})
        store.freeze()
        store.thaw("app:2")
        store.thaw("app:1")
        require(store, {"app:1": large, "app:2": {"chunk": chunk}})

    def test_while_the_store_is_checked(self, store: Store, meddle: Meddling) -> None:
        """The tree image names a pack that came after the check had begun."""
        from layerstore.checking.contents import ContentsCheck

        load(store, 1)
        store.freeze()

        def make_mountable() -> None:
            with Store(store.root) as other:
                other.create("app:1")

        meddle.before(ContentsCheck, "run", make_mountable)
        assert store.check().damages == ()

    def test_is_asked_for(self, store: Store) -> None:
        load(store, 1)
        store.freeze()
        unique = sum(map(len, {data for data in version(1).values() if data}))
        assert store.thaw("app:1") == unique
        assert store.thaw("app:1") == 0
        require_files(store, 1)
        assert hot_bytes(store) > unique

    def test_of_contents_that_come_in_parts(self, store: Store) -> None:
        draw = random.Random("parts")
        files = {f"large-{number}": draw.randbytes(10_000_000 + number) for number in range(3)}
        files |= {f"small-{number}": draw.randbytes(40_000) for number in range(30)}
        # One that is a difference is one part, however large it is.
        files["large-0-again"] = files["large-0"][:5_000_000] + b"changed" + files["large-0"][5_000_000:]
        load_files(store, "parts:1", files)
        store.freeze()
        assert store.thaw("parts:1") == sum(map(len, files.values()))
        digests = b"".join(map(blake3, files.values()))
        with content_store(store.layout) as contents:
            places = struct.iter_unpack("<II", contents.locate_many(digests, 32))
        assert not any(is_cold(pack) for pack, _ in places)
        require(store, {"parts:1": files})
        assert store.check().is_clean


class TestLargeOnes:
    """What need not fit into memory is not read into it as a whole."""

    def test_by_a_check(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        from layerstore.checking.cold import ColdContents

        load(store, 1)
        store.freeze()
        lists = []
        pieces = ColdContents.pieces

        def told(cold: ColdContents, record: Record) -> Iterator[bytes]:
            found = list(pieces(cold, record))
            if record.size > 1 << 20:
                lists.append(max(map(len, found)))
            return iter(found)

        monkeypatch.setattr(ColdContents, "pieces", told)
        assert store.check().damages == ()
        assert len(lists) == 2
        assert max(lists) <= 1 << 19

    def test_by_who_reads_many(self, store: Store) -> None:
        """It is mapped, from a file."""
        large = bytes(MAX_DELTA_BYTES + 1)
        load_files(store, "app:1", {"large": large})
        store.freeze()
        with content_store(store.layout) as contents:
            found = contents.reader()(blake3(large))
            assert isinstance(found, memoryview) and isinstance(found.obj, MappedFile)
            assert found == large


class TestGarbage:
    def test_of_what_was_frozen(self, store: Store) -> None:
        load(store, 1, 2, 3)
        store.freeze()
        store.remove_image("app:1")
        store.remove_image("app:2")
        store.collect_garbage()
        # What the one that is left differs from is kept.
        require_files(store, 3)
        assert store.check().is_clean
        store.remove_image("app:3")
        store.collect_garbage()
        assert list((store.root / "cold").iterdir()) == []

    def test_frames_that_nothing_needs_are_punched(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze()
        (path,) = (store.root / "cold").iterdir()
        before = path.stat().st_blocks
        store.remove_image("app:1")
        store.collect_garbage()
        assert path.stat().st_blocks < before
        require_files(store, 2)
        assert store.check().is_clean

    def test_a_base_that_is_hot_outlives_its_image(self, store: Store) -> None:
        load(store, 1, 2)
        store.freeze("app:2")
        assert "difference" in kinds(store)
        store.remove_image("app:1")
        store.collect_garbage()
        require_files(store, 2)
        assert store.check().is_clean
        # It is frozen with the next, and is whole then.
        load(store, 3)
        store.freeze()
        assert hot_bytes(store) < 100_000
        require_files(store, 2)
        require_files(store, 3)


CODE = random.Random("code of many versions").randbytes(20_000)


def code(number: int, more: bytes = b"") -> dict[str, bytes]:
    """One file that differs a little from that of another number."""
    return {f"lib/code-{number}.py": CODE[:9_000] + b"v" * (10 * number) + CODE[9_000:] + more}


def load_files(store: Store, name: str, *files: dict[str, bytes]) -> None:
    store.load(io.BytesIO(tar_of(docker_files([Image([layer(each) for each in files], [name])]))))


def require(store: Store, images: dict[str, dict[str, bytes]]) -> None:
    """All of them can be read, and a check has nothing to say."""
    with Store(store.root) as other:
        for name, files in images.items():
            for path, data in files.items():
                assert other.image(name).view.read_bytes(f"/{path}") == data, (name, path)
        assert other.check().damages == ()


def differing(store: Store) -> int:
    """The number of the version of `code` that is a difference."""
    (slot,) = (s for p in cold_packs(store) for s in map(p.slot, range(p.slot_count)) if s.base not in (WHOLE, LIST))
    return (slot.size - len(CODE)) // 10


class TestReferences:
    """What others are differences from or lists of can be read for as long as they need it."""

    def test_a_difference_of_a_hot_image_is_no_base(self, store: Store) -> None:
        load_files(store, "app:1", code(1))
        load_files(store, "app:2", code(2))
        store.freeze()
        number = differing(store)
        store.remove_image(f"app:{number}")
        load_files(store, f"app:{number}", code(number))
        third = {"lib/code-3.py": code(number)[f"lib/code-{number}.py"][:-3] + b"abc"}
        load_files(store, "app:3", third)
        store.freeze("app:3")
        require(store, {"app:1": code(1), "app:2": code(2), "app:3": third})

    def test_a_base_that_was_a_difference_when_it_was_frozen_before(self, store: Store) -> None:
        load_files(store, "app:1", code(1))
        load_files(store, "app:2", code(2))
        store.freeze()
        number = differing(store)
        store.thaw(f"app:{number}")
        third = {"lib/code-3.py": code(number)[f"lib/code-{number}.py"][:-3] + b"abc"}
        load_files(store, "app:3", third)
        store.freeze("app:3")
        store.freeze(f"app:{number}")
        require(store, {"app:1": code(1), "app:2": code(2), "app:3": third})
        assert hot_bytes(store) < 50_000

    def test_a_slot_of_a_content_that_is_looked_up_elsewhere_is_no_base(self, store: Store) -> None:
        load_files(store, "app:1", code(1))
        load_files(store, "other:1", {"other": random.Random(1).randbytes(50_000)})
        store.freeze()
        store.remove_image("app:1")
        store.collect_garbage()
        load_files(store, "app:2", code(2))
        store.freeze()
        load_files(store, "app:1", code(1))
        store.freeze()
        third = {"lib/code-3.py": code(1)["lib/code-1.py"][:-3] + b"abc"}
        load_files(store, "app:3", third)
        store.freeze()
        require(store, {"app:1": code(1), "app:2": code(2), "app:3": third})

    def test_a_content_that_is_a_chunk_of_another(self, store: Store) -> None:
        files = {"data/file-1": bytes(3 << 19), "data/file-2": bytes(1 << 19)}
        load_files(store, "app:1", files)
        store.freeze()
        require(store, {"app:1": files})

    def test_a_repair_leaves_what_can_be_read(self, store: Store) -> None:
        part, rest = b"x" * 524_288, random.Random("rest").randbytes(1 << 20)
        images = {
            "a:1": {"lib/x-1": (b"x" * 400_000 + random.Random("z").randbytes(5_000)) * 3},
            "b:1": {"lib/x-2": part},
            "c:1": {"z/large": part + rest},
        }
        for name, files in images.items():
            load_files(store, name, files)
            store.freeze()
        store.check(repair=True)
        require(store, images)

    def test_differences_go_on_in_another_frame(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(encoding, "GROUP_BYTES", 2_000)
        base = random.Random("base").randbytes(30_000)
        files = {f"lib/f-{n}": base[:20_000] + random.Random(n).randbytes(1_500) + base[20_000:] for n in range(12)}
        load_files(store, "app:1", files)
        store.freeze()
        (pack,) = cold_packs(store)
        deltas = {s.frame for s in map(pack.slot, range(pack.slot_count)) if s.base not in (WHOLE, LIST)}
        assert len(deltas) > 5
        require(store, {"app:1": files})

    def test_the_log_does_not_grow_by_thawing(self, store: Store) -> None:
        load(store, 1, 2)
        counts = []
        for _ in range(4):
            store.freeze()
            store.thaw("app:1")
            store.collect_garbage()
            with content_store(store.layout) as contents:
                counts.append(len(contents.log_records()))
        assert len(set(counts)) == 1

    @pytest.mark.parametrize("seed", range(6))
    def test_whatever_is_done(self, store: Store, seed: int) -> None:
        draw = random.Random(seed)
        names, there = [f"app:{n}" for n in range(5)], {}
        for step in range(25):
            name, version_of = draw.choice(names), draw.randrange(4)
            what = draw.choice(["load", "load", "freeze", "freeze", "freeze all", "thaw", "remove", "collect", "again"])
            if what == "load":
                own = {"own": random.Random(step).randbytes(draw.choice([100, 3_000, 40_000]))}
                files = {**code(version_of, b"m" * draw.randrange(3)), **own}
                if draw.random() < 0.4:
                    files["large-1"] = LARGE[: 1_100_000 + version_of] + b"!" + LARGE[:300_000]
                load_files(store, name, files)
                there[name] = files
            elif name not in there:
                continue
            elif what == "again":  # as it was, after it was removed
                store.remove_image(name)
                load_files(store, name, there[name])
            elif what == "remove":
                store.remove_image(name)
                del there[name]
            elif what == "freeze":
                store.freeze(name)
            elif what == "freeze all":
                store.freeze()
            elif what == "thaw":
                store.thaw(name)
            else:
                store.collect_garbage()
            require(store, there)


class TestDamage:
    @pytest.mark.parametrize("which", ["share/own", "share/large"])
    def test_is_not_frozen(self, store: Store, which: str) -> None:
        """What others are differences from would be lost with it."""
        load(store, 1, 2)
        digest, path, at = blake3(version(1)[which]), Path(), 1_000
        with content_store(store.layout) as contents:
            pack, slot = struct.unpack("<II", contents.locate_many(digest, 32))
            if pack == LOCATION_OBJECT:
                path = Path(store.layout.object(digest.hex()))
            else:
                path = Path(store.layout.pack(pack))
                at += contents.pack(pack).slot(slot)[0]
        flip(path, at)
        with pytest.raises(CorruptError, match=f"content {digest.hex()}.* is damaged"):
            store.freeze()
        assert list((store.root / "cold").iterdir()) == []
        store.check(repair=True)
        load(store, 1)
        store.freeze()
        require_files(store, 1)
        require_files(store, 2)

    @pytest.mark.parametrize("which", ["share/own", "share/large", "base"])
    def test_of_a_cold_copy_keeps_the_other_one(self, store: Store, which: str) -> None:
        """What was thawed is frozen again by what is in the cold pack still, if that is whole."""
        load(store, 1, 2)
        store.freeze()
        with content_store(store.layout) as contents:
            places = contents.locate_many(blake3(version(1)["share/large" if which == "base" else which]), 32)
        store.thaw(["app:1", "app:2"])
        (pack,) = cold_packs(store)
        slot = pack.slot(struct.unpack("<II", places)[1])
        if which == "base":
            number = next(n for n in range(pack.slot_count) if pack.slot(n).base not in (WHOLE, LIST))
            (base,) = pack.references_of(pack.slot(number))
            slot = next(s for s in map(pack.slot, range(pack.slot_count)) if s.digest == base)
        elif slot.base == LIST:
            chunk = pack.references_of(slot)[0]
            slot = next(s for s in map(pack.slot, range(pack.slot_count)) if s.digest == chunk)
        flip(Path(pack.path), pack.frame(slot.frame).offset + 9)
        store.freeze()
        require_files(store, 1)
        require_files(store, 2)
        assert hot_bytes(store) < 100_000

    @pytest.mark.parametrize("is_there", [True, False])
    def test_of_an_index_that_is_noted_keeps_nothing_from_being_frozen(self, store: Store, is_there: bool) -> None:
        load(store, 1, 2)
        path = Path(store.layout.layer_index(store.image("app:1").diff_ids[0]))
        flip(path, 1_000)
        store.check(repair=True)
        if is_there:
            path.write_bytes(b"no index")
        assert len(store.freeze().images) == 2
        require_files(store, 2)
        load(store, 1)
        require_files(store, 1)

    def test_of_tables_keeps_what_is_referred_to(self, store: Store) -> None:
        """A repair reads it."""
        for number in (1, 2):
            load_files(store, f"app:{number}", code(number))
            store.freeze()
        assert kinds(store) == ["whole", "difference"]
        store.remove_image("app:1")
        path = sorted((store.root / "cold").iterdir())[1]
        flip(path, path.stat().st_size - 3)
        with Store(store.root) as other:
            other.collect_garbage()
            other.check(repair=True)
        require(store, {"app:2": code(2)})

    @pytest.mark.root
    @pytest.mark.kernel
    def test_of_the_record_of_a_thawed_content(self, store: Store) -> None:
        """It is cold after a repair, and so its hot copy is garbage: no tree image may name that."""
        files = {"one": random.Random(1).randbytes(50_000), "two": random.Random(2).randbytes(30_000)}
        load_files(store, "app:1", files)
        store.freeze()
        store.thaw("app:1")
        store.remove([store.create("app:1")])
        with content_store(store.layout) as contents:
            log = Path(store.layout.digests(contents.log_state()[0]))
        flip(log, log.read_bytes().rindex(blake3(files["one"])) + 10)
        with Store(store.root) as other:
            other.check(repair=True)
            other.collect_garbage()
            with other.create("app:1").mount() as root:
                for path, data in files.items():
                    assert (root / path).read_bytes() == data

    def test_is_an_error_where_it_is_read(self, store: Store) -> None:
        load(store, 1)
        store.freeze()
        (path,) = (store.root / "cold").iterdir()
        pack = ColdPack(str(path))
        whole = next(s for s in map(pack.slot, range(pack.slot_count)) if s.base == WHOLE and s.size == 30_000)
        frame = pack.frame(whole.frame)
        for at in range(frame.offset + 100, frame.offset + frame.stored_bytes, 5_000):
            flip(path, at)
        with Store(store.root, verify="first") as other, pytest.raises(CorruptError, match="damaged"):
            other.image("app:1").view.read_bytes("/share/own")
        report = store.check()
        assert any(damage.what == "content" and "/share/own" in damage.detail for damage in report.damages)
        store.check(repair=True)
        load(store, 1)
        require_files(store, 1)
        assert store.check().is_clean

    @pytest.mark.parametrize("where", ["first", "last", "slots"])
    def test_of_tables_loses_nothing(self, store: Store, where: str) -> None:
        load(store, 1, 2)
        store.freeze()
        (path,) = (store.root / "cold").iterdir()
        pack = ColdPack(str(path))
        flip(
            path,
            {"first": 3, "last": path.stat().st_size - 3, "slots": pack.frames_end + 40 * pack.frame_count + 9}[where],
        )
        with pytest.raises(CorruptError, match="cold"), Store(store.root) as other:
            other.image("app:1").view.read_bytes("/share/own")
        assert any(damage.what == "pack" for damage in store.check().damages)
        store.check(repair=True)
        require_files(store, 1)
        require_files(store, 2)
        assert store.check().is_clean


def flip(path: Path, at: int) -> None:
    os.chmod(path, 0o600)
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


class TestDifference:
    @pytest.mark.parametrize(
        ("base", "content"),
        [
            (b"abc" * 1000, b"abc" * 1000),
            (b"abc" * 1000, b"abc" * 999),
            (b"abc" * 1000, b"x" + b"abc" * 1000),
            (b"", b"abc"),
            (b"aaaa", b"aaaaaaaa"),
            (TEXT, TEXT[5_000:] + TEXT[:5_000]),
            (LARGE, LARGE[:100_000] + b"new" * 50_000 + LARGE[100_000:]),
        ],
    )
    def test_makes_the_content(self, base: bytes, content: bytes) -> None:
        delta = delta_of(base, content, 1 << 30)
        assert delta is not None
        assert apply_delta(base, delta, len(content)) == content

    def test_that_is_too_long_is_none(self) -> None:
        assert delta_of(LARGE[:10_000], LARGE[20_000:30_000], 5_000) is None

    @pytest.mark.parametrize("cut", [0, 5, 9, 30])
    def test_that_is_damaged_is_refused(self, cut: int) -> None:
        delta = delta_of(TEXT, TEXT[:40_000] + LARGE[:500] + TEXT[41_000:], 1 << 20)
        assert delta is not None
        with pytest.raises(CorruptError):
            apply_delta(TEXT, delta[:cut], len(TEXT) - 500)


def test_names_leave_versions_out() -> None:
    assert name_of(b"usr/lib/python3.11/site-packages/numpy-1.26.4.dist-info/METADATA") == name_of(
        b"usr/lib/python3.12/site-packages/numpy-2.0.dist-info/METADATA"
    )
    assert name_of(b"lib/libopenblas-0cf96a72.so") == name_of(b"lib/libopenblas-99b71e71.so")
    assert name_of(b"lib/a.py") != name_of(b"lib/b.py")
    assert name_of(b"lib/deadbeef.py") != name_of(b"lib/deadbeefs.py")


def test_unknown_compression_is_refused(store: Store) -> None:
    load(store, 1)
    with pytest.raises(InvalidInput, match="'zstd' or 'lz4'"):
        store.freeze(compression="gzip")  # type: ignore[arg-type]
