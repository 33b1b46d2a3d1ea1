"""What images take: against a count by hand over every image; what `prune` removes and leaves."""

import io
import json
import os
import pty
import random
import re
import subprocess
import sys
from pathlib import Path

import images
import pytest
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from test_cli import Cli

from layerstore import Store
from layerstore.errors import NotFound


def layer(names: list[str]) -> bytes:
    """Files of which name and content say the same: "s3" is small, "l3" large."""
    entries = []
    for name in names:
        draw = random.Random(name)
        entries.append(Entry("file", name, data=draw.randbytes(200_000 if name[0] == "l" else 5_000)))
    return write_tar(entries)


def size_of(name: str) -> int:
    return 200_000 if name[0] == "l" else 5_000


def load(store: Store, *made: Image) -> None:
    store.load(io.BytesIO(tar_of(docker_files(made))))


def add_images(store: Store, seed: int) -> dict[str, list[list[str]]]:
    """Images of random layers upon each other and upon nothing; by name the files of each layer."""
    draw = random.Random(seed)
    pool = [f"s{n}" for n in range(30)] + [f"l{n}" for n in range(6)]
    layers = [draw.sample(pool, draw.randrange(1, 8)) for _ in range(12)]
    made: dict[str, list[list[str]]] = {}
    for number in range(14):
        below = list(draw.choice([*made.values(), []]))
        stack = below + draw.sample(layers, draw.randrange(1, 3))
        made[f"made:{number}"] = stack
        load(store, Image([layer(names) for names in stack], [f"made:{number}"]))
    return made


@pytest.mark.parametrize("seed", range(4))
def test_against_sets_of_files(tmp_path: Path, seed: int) -> None:
    with Store(tmp_path / "store", create=True) as store:
        made = add_images(store, seed)
        ids = {store.image(name).id for name in made}
        contents = {store.image(name).id: {file for part in made[name] for file in part} for name in made}
        used = {store.image(name).id for name in ("made:3", "made:9")}
        for image in used:
            store.create(image, driver="extent")
        usage = store.usage()
        assert {image.image_id for image in usage.images} == ids
        for image in usage.images:
            own = contents[image.image_id]
            others = set().union(*(files for other, files in contents.items() if other != image.image_id))
            assert image.unique_bytes == sum(map(size_of, own - others))
            assert image.shared_bytes == sum(map(size_of, own & others))
            assert image.size_bytes == store.image(image.image_id).size_bytes
            assert image.names == store.image(image.image_id).names
            assert image.reclaimable_bytes == (0 if image.image_id in used else image.unique_bytes)
            assert image.containers == (image.image_id in used)
        everything = set().union(*contents.values())
        live = set().union(*(contents[image] for image in used))
        part = usage.parts["images"]
        assert (part.count, part.active) == (len(ids), 2)
        assert part.size_bytes == sum(map(size_of, everything))
        assert part.reclaimable_bytes == sum(map(size_of, everything - live))
        assert usage.parts["garbage"].size_bytes == 0


def test_what_is_removed_is_garbage_until_it_is_collected(tmp_path: Path) -> None:
    with Store(tmp_path / "store", create=True) as store:
        load(store, Image([layer(["s1", "l1"])], ["a:1"]), Image([layer(["s1", "l1"]), layer(["s2", "l2"])], ["b:1"]))
        assert store.usage().parts["garbage"].size_bytes == 0
        (b,) = (image for image in store.usage().images if image.names == ["b:1"])
        assert (b.unique_bytes, b.shared_bytes) == (205_000, 205_000)
        store.remove_image("b:1")
        assert store.usage().parts["garbage"].size_bytes >= 205_000
        before = images.used_bytes(store.root)
        store.collect_garbage()
        assert before - images.used_bytes(store.root) >= 205_000
        assert store.usage().parts["garbage"].size_bytes == 0


def test_of_nothing_and_of_an_image_without_layers(tmp_path: Path) -> None:
    with Store(tmp_path / "store", create=True) as store:
        assert store.usage().images == [] and store.usage().parts["images"].size_bytes == 0
        load(store, Image([write_tar([])], ["empty:1"]))
        (image,) = store.usage().images
        assert (image.size_bytes, image.shared_bytes, image.unique_bytes) == (0, 0, 0)


def test_containers_take_what_was_written(tmp_path: Path) -> None:
    with Store(tmp_path / "store", create=True) as store:
        load(store, Image([layer(["s1"])], ["a:1"]))
        overlay, extent = store.create("a:1", name="overlay"), store.create("a:1", driver="extent")
        for upper in (tmp_path / "store").glob("containers/*/upper"):
            (upper / "big").write_bytes(bytes(1 << 20))
        with extent.open("/big", "wb") as file:
            file.write(bytes(range(256)) * (2 << 12))
        sizes = {container.container_id: container.size_bytes for container in store.usage().containers}
        assert 1 << 20 <= sizes[overlay.id] < 1 << 20 | 1 << 16
        assert 2 << 20 <= sizes[extent.id] < 2 << 20 | 1 << 16


def test_many_images_on_a_base(tmp_path: Path) -> None:
    base = write_tar([Entry("file", f"f{n}", data=b"%d" % n) for n in range(300)])
    with Store(tmp_path / "store", create=True) as store:
        made = [Image([base, write_tar([Entry("file", "own", data=b"own %d" % n)])], [f"a:{n}"]) for n in range(100)]
        load(store, *made)
        usage = store.usage()
        assert {image.unique_bytes for image in usage.images} == {5, 6}
        assert {image.shared_bytes for image in usage.images} == {10 + 180 + 600}
        assert usage.parts["images"].size_bytes == 790 + 10 * 5 + 90 * 6


class TestPrune:
    @pytest.fixture
    def cli(self, tmp_path: Path) -> Cli:
        with Store(tmp_path / "store", create=True) as store:
            base = layer(["s1", "l1"])
            load(store, Image([base], ["base:1"]), Image([base, layer(["l2"])], ["used:1"]))
            load(store, Image([layer(["l3"])], []))
            store.create("used:1", name="idle", driver="extent")
        return Cli(tmp_path / "store")

    def names(self, cli: Cli) -> set[str]:
        return {f"{row['REPOSITORY']}:{row['TAG']}" for row in cli.json("images")}

    def test_what_came_just_now_stays(self, cli: Cli) -> None:
        said = "0 contents dropped, 0B given back; 3 images and 1 container came too short a time ago (--until)\n"
        assert cli("prune", "--all", "--containers", "--force") == said
        assert "0B would be given back; 1 image came too short a time ago" in cli("prune", "--dry-run")
        assert len(self.names(cli)) == 3

    def test_images_without_names(self, cli: Cli) -> None:
        assert "200kB would be given back" in cli("prune", "--until", "0s", "--dry-run")
        assert len(self.names(cli)) == 3
        said = cli("prune", "--until", "0s", "--force")
        assert said.startswith("image sha256:")
        assert "1 contents dropped, 2" in said
        assert self.names(cli) == {"base:1", "used:1"}

    def test_all_that_no_container_uses(self, cli: Cli) -> None:
        cli("prune", "--all", "--until", "0s", "--force")
        assert self.names(cli) == {"used:1"}

    def test_containers_and_their_images(self, cli: Cli) -> None:
        with Store(cli.root) as store, store.container("idle").open("/written", "w") as file:
            file.write("somebody writes to it")
            file.flush()
            cli("prune", "--containers", "--until", "0s", "--force")
            assert [container.name for container in store.containers()] == ["idle"]
        would = cli("prune", "--all", "--containers", "--until", "0s", "--dry-run")
        assert re.match("container [0-9a-f]{64} idle\n", would) and "used:1" in would and "405kB would be" in would
        said = cli("prune", "--all", "--containers", "--until", "0s", "--force")
        assert said.splitlines()[:-1] == would.splitlines()[:-1]
        assert self.names(cli) == set()
        with Store(cli.root) as store:
            assert store.containers() == []
            with pytest.raises(NotFound):
                store.image("used:1")

    def test_it_asks(self, cli: Cli) -> None:
        assert "--force" in cli("prune", "--until", "0s", status=1)
        assert len(self.names(cli)) == 3

    def test_what_comes_while_it_asks_stays(self, cli: Cli) -> None:
        controller, terminal = pty.openpty()
        command = [sys.executable, "-m", "layerstore", "--root", str(cli.root), "prune", "--all", "--until", "0s"]
        with subprocess.Popen(
            command, stdin=terminal, stdout=subprocess.PIPE, cwd=Path(__file__).parent.parent
        ) as asking:
            assert asking.stdout is not None
            shown = b""
            while not shown.endswith(b"[y/N] "):
                shown += asking.stdout.read(1) or pytest.fail(f"it ended with {shown!r}")
            with Store(cli.root) as store:
                load(store, Image([layer(["l4"])], ["new:1"]))
            os.write(controller, b"y\n")
            asking.stdout.read()
        os.close(controller)
        os.close(terminal)
        assert asking.returncode == 0
        assert self.names(cli) == {"used:1", "new:1"}

    def test_ages(self, cli: Cli) -> None:
        assert "not an age" in cli("prune", "--until", "yesterday", status=2)
        assert cli("prune", "--until", "1.5h", "--force").startswith("0 contents dropped, 0B given back")


class TestSystemDf:
    def test_table_and_json(self, tmp_path: Path) -> None:
        cli = Cli(tmp_path / "store")
        with Store(cli.root, create=True) as store:
            load(store, Image([layer(["l1"])], ["a:1", "b:1"]), Image([layer(["l1"]), layer(["l2"])], ["c:1"]))
            store.create("a:1", name="idle", driver="extent")
        lines = cli("system", "df").splitlines()
        assert lines[0].split() == ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"]
        assert lines[1].split() == ["Images", "2", "1", "400kB", "200kB", "(50%)"]
        assert lines[2].split() == ["Cold", "0B", "0B"]
        each = cli("system", "df", "-v")
        assert {
            line.split()[0]: line.split()[1:] for line in each.splitlines() if ":1" in line and "idle" not in line
        } == {
            "a:1": ["200kB", "200kB", "0B", "200kB", "0B", "1", "container"],
            "b:1": ["200kB", "200kB", "0B", "200kB", "0B", "1", "container"],
            "c:1": ["400kB", "400kB", "0B", "200kB", "200kB"],
        }
        assert any("idle" in line and "created" in line for line in each.splitlines())
        told = json.loads(cli("system", "df", "--format", "json"))
        assert told["parts"]["images"] == {
            "count": 2, "active": 1, "size_bytes": 400_000, "reclaimable_bytes": 200_000,
        }  # fmt: skip
        assert [image["names"] for image in told["images"]] in ([["c:1"], ["a:1", "b:1"]], [["a:1", "b:1"], ["c:1"]])
        assert {image["is_frozen"] for image in told["images"]} == {False}
        assert "df" in cli("system", status=2)
