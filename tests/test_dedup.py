"""What dedup saves: every step against a count by hand; what freezing would save, against a freeze."""

import io
import json
import random
from pathlib import Path

import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from meddling import Meddling
from test_cli import Cli

from layerstore import Store
from layerstore.cold import estimating
from layerstore.errors import NotFound
from layerstore.results import FreezeEstimate

WORDS = [random.Random(f"word {n}").randbytes(random.Random(n).randrange(3, 12)).hex().encode() for n in range(2_000)]


def text(name: str, size: int) -> bytes:
    """What compresses to about a fifth."""
    draw = random.Random(name)
    return b" ".join(draw.choices(WORDS, k=size // 15))[:size]


def load(store: Store, name: str, *layers: dict[str, bytes]) -> None:
    tars = [write_tar([Entry("file", path, data=data) for path, data in sorted(layer.items())]) for layer in layers]
    store.load(io.BytesIO(tar_of(docker_files([Image(tars, [name])]))))


class TestSteps:
    def test_against_sets(self, store: Store) -> None:
        draw = random.Random(1)
        pool = {f"f{n}": random.Random(n).randbytes(draw.randrange(1, 20_000)) for n in range(30)}
        layers = []
        for _ in range(8):
            layer = {name: pool[name] for name in draw.sample(sorted(pool), 5)}
            layers.append(layer | {f"copy/{name}": data for name, data in list(layer.items())[:2]})
        made = {f"made:{n}": [layers[i] for i in draw.sample(range(8), 3)] for n in range(6)}
        for name, stack in made.items():
            load(store, name, *stack)
        for among in (None, ["made:1", "made:4"], "made:2"):
            chosen = (
                made if among is None else {name: made[name] for name in ([among] if isinstance(among, str) else among)}
            )
            found = store.dedup_stats(among)
            each = [layer for stack in chosen.values() for layer in stack]
            distinct = {id(layer): layer for layer in each}.values()
            assert {image.names[0] for image in found.images} == set(chosen)
            assert found.images_bytes == sum(len(data) for layer in each for data in layer.values())
            assert found.layers_bytes == sum(len(data) for layer in distinct for data in layer.values())
            assert found.repeated_bytes == sum(
                len(data) for layer in distinct for path, data in layer.items() if path.startswith("copy/")
            )
            once = {data for layer in each for data in layer.values()}
            assert found.contents_bytes == found.hot_bytes == sum(map(len, once)) and found.cold_bytes == 0
            for image in found.images:
                own = {data for layer in made[image.names[0]] for data in layer.values()}
                others = {
                    data
                    for name, stack in chosen.items()
                    for layer in stack
                    for data in layer.values()
                    if name != image.names[0]
                }
                assert image.unique_bytes == sum(map(len, own - others))
                assert image.shared_bytes == sum(map(len, own & others))

    def test_of_nothing(self, store: Store) -> None:
        found = store.dedup_stats()
        assert (found.images, found.images_bytes, found.contents_bytes, found.hot_bytes) == ([], 0, 0, 0)
        assert found.freezing == FreezeEstimate(0, 0, 0, 0, 0)
        with pytest.raises(NotFound):
            store.dedup_stats("none:1")

    def test_what_is_frozen_is_cold(self, store: Store) -> None:
        load(store, "a:1", {"text": text("a", 50_000)})
        load(store, "b:1", {"text": text("b", 50_000)})
        store.freeze("a:1")
        found = store.dedup_stats()
        assert found.contents_bytes == 100_000 and found.hot_bytes == 50_000 and 5_000 < found.cold_bytes < 25_000
        assert found.freezing is not None and found.freezing.images == 1


class TestFreezing:
    def fill(self, store: Store) -> None:
        """Versions of files, small and large, that differ a little or much; and such as are alone."""
        for version in range(3):
            files = {f"lib-{version}.0/{n}.py": text(f"{n}", 9_000) + b"%d" % version for n in range(60)}
            files |= {f"own/{version}{chr(97 + n)}.txt": text(f"own {version} {n}", 7_000) for n in range(60)}
            files |= {f"bin/{n}-{version}.0": random.Random(f"{n} {version}").randbytes(60_000) for n in range(10)}
            large = text("large", 3_000_000)
            files[f"large-{version}.0"] = large[:1_000_000] + b"version %d" % version + large[1_000_000:]
            files[f"other-{version}.0"] = random.Random(f"other {version}").randbytes(1_200_000)
            files["alone/" + "abc"[version]] = text(f"alone {version}", 2_500_000)
            load(store, f"a:{version}", files)

    def estimated(self, store: Store, sample_bytes: int = 256 << 20) -> FreezeEstimate:
        found = store.dedup_stats(sample_bytes=sample_bytes).freezing
        assert found is not None
        return found

    @pytest.mark.parametrize("compression", ["zstd", "lz4"])
    def test_of_all_is_what_a_freeze_makes(self, store: Store, compression: str) -> None:
        from layerstore import Tiering

        self.fill(store)
        store.tiering = Tiering(None, compression)  # type: ignore[arg-type]
        found = self.estimated(store)
        done = store.freeze()
        assert found == FreezeEstimate(3, done.content_bytes, done.stored_bytes, done.content_bytes, done.content_bytes)
        assert found.saved_bytes == done.content_bytes - done.stored_bytes

    @pytest.mark.parametrize("sample_bytes", [8 << 20, 12 << 20])
    def test_of_a_sample_is_near_it(self, store: Store, sample_bytes: int) -> None:
        self.fill(store)
        found = self.estimated(store, sample_bytes)
        assert self.estimated(store, sample_bytes) == found
        assert sample_bytes / 2 < found.sample_bytes < sample_bytes * 1.5 < found.written_bytes
        done = store.freeze()
        assert found.content_bytes == found.written_bytes == done.content_bytes
        assert abs(found.stored_bytes / done.stored_bytes - 1) < 0.15

    @pytest.mark.parametrize("kind", ["small", "large", "uneven"])
    def test_of_one_kind(self, store: Store, kind: str) -> None:
        """Small and large files of which later versions differ in a few bytes; large ones of two halves."""
        for version in range(3):
            changed = b"version %d" % version
            if kind == "small":
                whole = [random.Random(n).randbytes(9_000) for n in range(300)]
                files = {f"{n}-{version}.0": data[:5_000] + changed + data[5_000:] for n, data in enumerate(whole)}
            elif kind == "large":
                whole = [random.Random(n).randbytes(5_000_000) for n in range(2)]
                files = {
                    f"{n}-{version}.0": data[:2_000_000] + changed + data[2_000_000:] for n, data in enumerate(whole)
                }
            else:
                draw = random.Random(version)
                files = {f"{chr(97 + version)}{n}": bytes(3_000_000) + draw.randbytes(3_000_000) for n in "ab"}
            load(store, f"a:{version}", files)
        written = store.dedup_stats(sample_bytes=0).contents_bytes
        found = self.estimated(store, written // 2)
        done = store.freeze()
        assert found.sample_bytes < 0.8 * written
        assert abs(found.stored_bytes / done.stored_bytes - 1) < 0.15

    def test_by_what_stays(self, store: Store) -> None:
        """What differs from what is frozen or hot is estimated so."""
        self.fill(store)
        store.freeze("a:0")
        store.create("a:1", driver="extent")
        exact, found = self.estimated(store), self.estimated(store, 4 << 20)
        done = store.freeze()
        assert exact.images == found.images == 1
        assert exact.stored_bytes == done.stored_bytes and exact.content_bytes == done.content_bytes
        assert abs(found.stored_bytes / done.stored_bytes - 1) < 0.2

    def test_what_was_thawed_costs_nothing(self, store: Store) -> None:
        load(store, "a:1", {"text": text("a", 50_000)})
        load(store, "b:1", {"text": text("b", 60_000)})
        store.freeze()
        store.thaw("b:1")
        assert self.estimated(store) == FreezeEstimate(1, 60_000, 0, 0, 0)

    def test_is_left_out(self, store: Store, meddle: Meddling) -> None:
        load(store, "a:1", {"text": text("a", 50_000)})
        estimates = meddle.noted(estimating, "estimate")
        assert store.dedup_stats(sample_bytes=0).freezing is None
        assert estimates == []

    def test_of_some(self, store: Store) -> None:
        load(store, "a:1", {"text": text("a", 50_000), "same": text("same", 10_000)})
        load(store, "b:1", {"text": text("b", 60_000), "same": text("same", 10_000)})
        found = store.dedup_stats("a:1").freezing
        assert found is not None and (found.images, found.content_bytes) == (1, 50_000)


def test_commands(tmp_path: Path) -> None:
    cli = Cli(tmp_path / "store")
    with Store(cli.root, create=True) as store:
        assert cli("dedup-stats").splitlines()[0].split() == ["SIZE", "STEP", "IN", "ALL"]
        load(store, "a:1", {"text": text("a", 50_000), "again": text("a", 50_000)})
        load(store, "b:1", {"text": text("a", 50_000), "again": text("a", 50_000)}, {"more": text("b", 50_000)})
    lines = cli("dedup-stats").splitlines()
    assert lines[1].split("  ")[0] == "Every image by itself" and lines[1].split()[4:] == ["250kB", "1.00x"]
    assert lines[2].split()[3:] == ["150kB", "1.67x", "1.67x"]
    assert lines[3].split()[3:] == ["100kB", "1.50x", "2.50x"]
    assert lines[4].split()[2:] == ["100kB", "1.00x", "2.50x"]
    assert lines[5].startswith("With all frozen, about")
    assert "Of layers 50kB are files that one has more than once." in lines
    assert any(line.startswith("Freezing 2 images would save about ") and line.endswith("kB.") for line in lines)
    assert [line.split()[0] for line in lines[-2:]] == ["b:1", "a:1"]
    assert "100kB   1" in cli("dedup-stats", "a:1", "--sample", "0").replace("    ", "   ")
    assert "frozen" not in cli("dedup-stats", "--sample", "0")
    told = json.loads(cli("dedup-stats", "--format", "json"))
    assert told["layers_bytes"] == 150_000 and told["images"][0]["names"] == ["b:1"]
    assert told["freezing"]["saved_bytes"] == told["freezing"]["content_bytes"] - told["freezing"]["stored_bytes"]
    assert json.loads(cli("dedup-stats", "--format", "json", "--sample", "0"))["freezing"] is None
