"""What images take in the cold tier: against a count by hand, and against what a collection gives back."""

import io
import json
import random
from pathlib import Path

import pytest
from beside import freeze_alone
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_cli import Cli
from usage_model import require_as_counted

from layerstore import Store
from layerstore.store.cold_packs import LIST, ColdPack

TEXT = b"".join(b"line %d that all versions have\n" % n for n in range(4_000))
LARGE = random.Random("large").randbytes(2 << 20)


def content(name: str, version: int) -> bytes:
    """Versions of a file are alike; those of "large" ones share chunks, of "own" ones nothing. "like" is large, too."""
    if name == "like":
        return LARGE[:1_000_000] + b"%d" % version + LARGE[1_000_000:]
    if name.startswith("large"):
        return random.Random(f"{name} {version}").randbytes(1_500_000) + LARGE
    if name.startswith("own"):
        return random.Random(f"{name} {version}").randbytes(20_000)
    at = 7 * len(name) + version
    return TEXT[:at] + f"{name} {version}".encode() + TEXT[at:]


def layer(files: dict[str, int]) -> bytes:
    """Files of these names and versions; a name that ends in "+" has a copy, "again"."""
    entries = []
    for name, version in sorted(files.items()):
        entries.append(Entry("file", f"lib-{version}.0/{name}", data=content(name, version)))
        if name.endswith("+"):
            entries.append(Entry("file", f"again/{name}", data=content(name, version)))
    return write_tar(entries)


def load(store: Store, name: str, *layers: dict[str, int]) -> None:
    store.load(io.BytesIO(tar_of(docker_files([Image([layer(files) for files in layers], [name])]))))


def disk_bytes(store: Store, top: str) -> int:
    return sum(path.stat().st_blocks * 512 for path in (store.root / top).rglob("*") if path.is_file())


@pytest.mark.parametrize("seed", range(4))
def test_against_a_count_by_hand(store: Store, seed: int) -> None:
    draw = random.Random(seed)
    names = ["text", "text+", "other", "own", "own+", "large", "small", "like"]
    made = 0
    for _ in range(14):
        have = [image.names[0] for image in store.images()]
        what = draw.choice(["load", "load", "freeze", "freeze", "thaw", "remove", "collect"])
        if what == "load" or not have:
            drawn = [
                {name: draw.randrange(3) for name in draw.sample(names, draw.randrange(1, 5))}
                for _ in range(draw.randrange(1, 4))
            ]
            load(store, f"made:{made}", *drawn)
            made += 1
        elif what == "freeze":
            is_alone = draw.random() < 0.5
            chosen, how = draw.sample(have, draw.randrange(1, len(have) + 1)), draw.choice(["zstd", "lz4"])
            freeze_alone(store, *chosen, compression=how) if is_alone else store.freeze(chosen, compression=how)
        elif what == "thaw":
            store.thaw(draw.choice(have))
        elif what == "remove":
            store.remove_image(draw.choice(have))
        else:
            would = store.usage().parts["cold"]
            store.collect_garbage()
            left, packs = would.size_bytes - would.reclaimable_bytes, len(list((store.root / "cold").glob("*")))
            # The file system may need a block more of each, to say where the holes are.
            assert left <= disk_bytes(store, "cold") <= left + packs * 4096
        require_as_counted(store)


def test_what_is_frozen_is_garbage_and_then_gone(store: Store) -> None:
    load(store, "a:1", {"text": 1, "own": 1, "large": 1})
    load(store, "a:2", {"text": 2, "own": 2, "large": 2})
    before = store.usage()
    assert before.parts["cold"].size_bytes == 0 and before.parts["cold"].count == 0
    hot = before.parts["images"].size_bytes
    done = freeze_alone(store)
    usage = store.usage()
    assert usage.parts["images"].size_bytes == 0 and usage.parts["garbage"].size_bytes == hot
    assert usage.parts["cold"].count == 2 and usage.parts["cold"].reclaimable_bytes == 0
    assert all(image.is_frozen and image.hot_bytes == 0 for image in usage.images)
    # Everything in the pack but its tables is somebody's.
    everything = sum(image.unique_bytes for image in usage.images) + max(image.shared_bytes for image in usage.images)
    assert 0.95 * done.stored_bytes < everything < done.stored_bytes
    store.collect_garbage()
    after = store.usage()
    assert after.parts["garbage"].size_bytes == 0
    assert after.images == usage.images


def test_what_was_frozen_is_garbage_beside_what_stays_hot(store: Store) -> None:
    load(store, "a:1", {"text": 1, "own": 1})
    load(store, "b:1", {"text": 1})
    freeze_alone(store, "a:1")
    parts = store.usage().parts
    assert parts["images"].size_bytes == len(content("text", 1)) and parts["garbage"].size_bytes == 20_000
    require_as_counted(store)


def test_lists_keep_no_frame(store: Store) -> None:
    """A list is in no frame, and says 0."""
    load(store, "a:1", {"own": 1, "own2": 1})
    load(store, "a:2", {"large": 2})
    store.freeze()
    (path,) = (store.root / "cold").iterdir()
    pack = ColdPack(str(path))
    assert next(s for s in map(pack.slot, range(pack.slot_count)) if s.frame == 0 and s.base != LIST).size == 20_000
    store.remove_image("a:1")
    assert store.usage().parts["cold"].reclaimable_bytes == 32_768


def test_a_collection_gives_back_what_was_said_of_cold_packs(store: Store) -> None:
    for number in range(6):
        load(store, f"a:{number}", {"text": number, "own": number, "own2": number, "large": number})
    store.freeze()
    given_back = 0
    for number in range(5):
        store.remove_image(f"a:{number}")
        would = store.usage().parts["cold"]
        assert would.size_bytes == disk_bytes(store, "cold")
        given_back += would.reclaimable_bytes
        store.collect_garbage()
        after = store.usage().parts["cold"]
        assert after.size_bytes == disk_bytes(store, "cold")
        # The file system may need a block more, to say where the holes are.
        assert (
            would.size_bytes - would.reclaimable_bytes
            <= after.size_bytes
            <= would.size_bytes - would.reclaimable_bytes + 4096
        )
        assert after.reclaimable_bytes == 0
    # One of them has what all have in common in its frames.
    assert given_back > 4 * 1_500_000
    store.remove_image("a:5")
    would = store.usage().parts["cold"]
    assert would.reclaimable_bytes == would.size_bytes > 0
    assert store.prune(dry_run=True).freed_bytes == would.size_bytes
    store.collect_garbage()
    assert store.usage().parts["cold"].size_bytes == disk_bytes(store, "cold") == 0


def test_removing_a_frozen_image_gives_back_what_is_its_own(store: Store) -> None:
    load(store, "a:1", {"text": 1, "own": 1, "large": 1})
    load(store, "a:2", {"text": 2, "own": 2, "large": 2})
    store.freeze()
    usage = {image.names[0]: image for image in store.usage().images}
    for image in usage.values():
        # Chunks that begin in its own part of the large file and end in the common one are its own.
        assert 1_520_000 <= image.unique_bytes <= 2_100_000
        assert image.reclaimable_bytes == image.unique_bytes
        assert image.shared_bytes >= 1_500_000
    container = store.create("a:1", driver="extent")
    assert {image.names[0]: image.reclaimable_bytes for image in store.usage().images}["a:1"] == 0
    container.remove()


def test_the_chunks_of_a_base_are_its_images(store: Store) -> None:
    load(store, "a:1", {"like": 1})
    load(store, "a:2", {"like": 2})
    store.freeze()
    whole, difference = sorted(store.usage().images, key=lambda image: -image.cold_bytes)
    assert whole.cold_bytes > 1.9 * (1 << 20) and whole.unique_bytes < 10
    assert difference.cold_bytes == difference.unique_bytes < 2_000
    require_as_counted(store)


def test_what_a_killed_freeze_left_is_garbage(store: Store) -> None:
    load(store, "a:1", {"own": 1})
    cold = Path(store.layout.cold)
    cold.mkdir(mode=0o700)
    (cold / "7.cold").write_bytes(bytes(100_000))
    assert store.usage().parts["garbage"].size_bytes == 102_400
    assert store.usage().parts["cold"].size_bytes == 0
    store.collect_garbage()
    assert store.usage().parts["garbage"].size_bytes == 0


def test_a_damaged_cold_pack_has_nothing(store: Store) -> None:
    load(store, "a:1", {"own": 1, "text": 1})
    store.freeze()
    (path,) = Path(store.layout.cold).iterdir()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 1)
    (image,) = store.usage().images
    assert (image.hot_bytes, image.cold_bytes, image.unique_bytes) == (0, 0, 0)
    assert store.usage().parts["cold"].size_bytes == path.stat().st_blocks * 512


def test_a_hot_base_of_an_image_that_is_gone_is_its_users(store: Store) -> None:
    load(store, "a:1", {"text": 1})
    load(store, "a:2", {"text": 2})
    store.freeze("a:2")
    store.remove_image("a:1")
    store.collect_garbage()
    (image,) = store.usage().images
    assert image.hot_bytes == len(content("text", 1)) and 0 < image.cold_bytes < 200
    assert image.shared_bytes == 0 and image.reclaimable_bytes == image.hot_bytes + image.cold_bytes
    require_as_counted(store)


def test_commands(store: Store) -> None:
    load(store, "a:1", {"text": 1})
    load(store, "b:1", {"text": 1, "own": 1})
    store.freeze("b:1")
    store.create("a:1", driver="extent")
    cli = Cli(store.root)
    lines = {line.split()[0]: line.split() for line in cli("system", "df", "-v").splitlines() if ":1" in line}
    assert lines["a:1"][-2:] == ["1", "container"] and lines["a:1"][3] == "0B"
    assert lines["b:1"][-1] == "frozen" and lines["b:1"][3] == "20kB"
    total = {line.split()[0]: line.split() for line in cli("system", "df").splitlines()}
    assert total["Images"][1:3] == ["2", "1"] and total["Cold"][1:3] == ["1", "0"]
    told = json.loads(cli("system", "df", "--format", "json"))
    assert {image["names"][0]: image["is_frozen"] for image in told["images"]} == {"a:1": False, "b:1": True}
    assert all(image["hot_bytes"] == len(content("text", 1)) for image in told["images"])


def test_one_that_a_container_thawed_takes_both(store: Store) -> None:
    load(store, "a:1", {"own": 1})
    load(store, "b:1", {"own2": 1})
    store.freeze()
    store.create("a:1", driver="extent")
    usage = store.usage()
    assert usage.parts["cold"].count == 1 and usage.parts["images"].active == 1
    both = next(image for image in usage.images if not image.is_frozen)
    assert both.names == ["a:1"] and both.hot_bytes == 20_000 < both.cold_bytes + 2_000
    require_as_counted(store)
