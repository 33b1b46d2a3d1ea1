"""Images in a store: listings, names, history, inspect, removal."""

import contextlib
import gc
import io
import os
import resource
import sqlite3
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import images
import pytest
from images import CREATED, Image, docker_files, oci_files, tar_of
from layer_model import Entry, write_tar
from meddling import Meddling

from layerstore import Image as ImageOfStore
from layerstore import Store
from layerstore.api.engine import Engine
from layerstore.chains.chains import Chains
from layerstore.errors import Conflict, CorruptError, InvalidInput, NotFound, Unsupported
from layerstore.store.db import Database
from layerstore.store.recent import Recent
from layerstore.types import normalise_name


def layer(number: int) -> bytes:
    return write_tar([Entry("file", f"f{number}", data=b"x" * 1000 * (number + 1))])


def step(text: str, empty: bool = False) -> dict[str, object]:
    made = {"created": CREATED, "created_by": text, "comment": f"about {text}"}
    return made | ({"empty_layer": True} if empty else {})


BASE = Image([layer(0)], ["base:1"], document={"history": [step("ADD base"), step("CMD sh", True)]})
MIDDLE = Image([layer(0), layer(1)], [], document={"history": [step("ADD base"), step("CMD sh", True), step("RUN 1")]})
TOP = Image(
    [layer(0), layer(1), layer(2)],
    ["top:1", "top:latest", "registry.example:5000/team/top:1"],
    runtime={"Cmd": ["/bin/sh"], "Env": ["A=b"]},
    document={
        "author": "somebody",
        "history": [step("ADD base"), step("CMD sh", True), step("RUN 1"), step("RUN 2"), step("ENTRYPOINT x", True)],
    },
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store", create=True) as opened:
        yield opened


def load(store: Store, *made: Image) -> None:
    store.load(io.BytesIO(tar_of(docker_files(made))))


class TestFinding:
    def test_by_name_and_id(self, store: Store) -> None:
        load(store, TOP, BASE)
        digits = TOP.id.removeprefix("sha256:")
        for text in ("top", "top:1", "docker.io/library/top", "registry.example:5000/team/top:1"):
            assert store.image(text).id == TOP.id
        for text in (TOP.id, digits, digits[:12], digits[:5], f"sha256:{digits[:7]}"):
            assert store.image(text).id == TOP.id

    @pytest.mark.parametrize(
        ("text", "name"),
        [
            ("debian", "debian:latest"),
            ("library/debian:12", "debian:12"),
            ("docker.io/debian", "debian:latest"),
            ("index.docker.io/library/debian", "debian:latest"),
            ("docker.io/library/team/app", "library/team/app:latest"),
            ("library/team/app", "library/team/app:latest"),
            ("localhost/debian", "localhost/debian:latest"),
            ("localhost:5000/library/debian", "localhost:5000/library/debian:latest"),
            ("Host.example/a/b__c:V1", "Host.example/a/b__c:V1"),
            ("a--b.example/x---y", "a--b.example/x---y:latest"),
            ("a.b", "a.b:latest"),
            ("[::1]:5000/a", "[::1]:5000/a:latest"),
            (f"{'0a' * 32}:1", f"{'0a' * 32}:1"),
            (f"example.com/{'a' * 255}:1", f"example.com/{'a' * 255}:1"),
        ],
    )
    def test_names_are_written_as_docker_writes_them(self, text: str, name: str) -> None:
        """By splitDockerDomain and familiarizeName of github.com/distribution/reference."""
        assert normalise_name(text) == name

    @pytest.mark.parametrize(
        "text",
        [
            *("", "A", "a/B", "UPPER/a", "a:", "a:-", "a//b", "/a", "a b", "a\n", "a" * 400, "a" * 256, "é"),
            *("../x", "./x", "../../etc/x", "a/../b", "a..b/x", ".a.b/x", "a.b./x", "-a.b/x", "a-.b/x", "a.b-:5/x"),
            *(
                "a.b:/x",
                "a.b:x/y",
                "[::1/x",
                "[]/x",
                "[g]/x",
                "a_b.c/x",
                "docker.io/a.b/x",
                "docker.io/localhost/x",
                "..",
                "a/.",
                "a/..:1",
                "0a" * 32,
            ),
        ],
    )
    def test_what_is_no_name(self, text: str) -> None:
        with pytest.raises(InvalidInput, match="not a valid image name"):
            normalise_name(text)

    def test_a_name_with_a_digest_is_refused_as_such(self, store: Store) -> None:
        load(store, TOP)
        text = f"top@{TOP.id}"
        with pytest.raises(InvalidInput, match="by digest"):
            store.tag("top:1", text)
        with pytest.raises(NotFound, match="digest"):
            store.image(text)

    @pytest.mark.parametrize("text", ["", "nothing", "top:2", "sha256:", "0" * 64, "Not A Name", "top@sha256:00", ":1"])
    def test_what_is_not_there(self, store: Store, text: str) -> None:
        load(store, TOP)
        with pytest.raises(NotFound, match="layerstore images"):
            store.image(text)

    def test_a_name_comes_before_an_id(self, store: Store) -> None:
        load(store, TOP, BASE)
        store.tag(TOP.id, BASE.id[7:15])
        assert store.image(BASE.id[7:15]).id == TOP.id
        assert store.image(f"sha256:{BASE.id[7:15]}").id == BASE.id

    def test_an_ambiguous_id(self, store: Store) -> None:
        made = [Image([layer(0)], document={"author": str(i)}) for i in range(40)]
        load(store, *made)
        first = [image.id[7] for image in made]
        with pytest.raises(InvalidInput, match="more than one"):
            store.image(next(digit for digit in first if first.count(digit) > 1))

    def test_listing(self, store: Store) -> None:
        assert store.images() == []
        load(store, BASE)
        load(store, TOP)
        assert [image.id for image in store.images()] == [TOP.id, BASE.id]
        load(store, BASE)
        assert [image.id for image in store.images()] == [TOP.id, BASE.id]


class TestHistory:
    def test_missing_where_a_step_has_no_image(self, store: Store) -> None:
        load(store, TOP)
        steps = store.image("top").history()
        assert [s.created_by for s in steps] == ["ENTRYPOINT x", "RUN 2", "RUN 1", "CMD sh", "ADD base"]
        assert [s.image_id for s in steps] == [TOP.id, None, None, None, None]
        assert [s.size_bytes for s in steps] == [0, 3000, 2000, 0, 1000]
        assert [s.empty_layer for s in steps] == [True, False, False, True, False]
        assert steps[1].comment == "about RUN 2"
        assert steps[1].created == CREATED

    def test_images_of_the_steps_below(self, store: Store) -> None:
        load(store, TOP, MIDDLE)
        assert [s.image_id for s in store.image("top").history()] == [TOP.id, None, MIDDLE.id, None, None]

    def test_another_image_of_the_same_layers_is_not_a_step(self, store: Store) -> None:
        other = Image(TOP.layers, ["other:1"], document={"author": "else"})
        load(store, TOP, other)
        assert [s.image_id for s in store.image("top").history()] == [TOP.id, None, None, None, None]

    @pytest.mark.parametrize("history", [None, [], [step("only one")], [step("nothing", True)]])
    def test_a_history_that_says_less(self, store: Store, history: list[dict[str, object]] | None) -> None:
        load(store, Image([layer(0), layer(1)], ["x:1"], document={"history": history}))
        steps = store.image("x:1").history()
        assert sum(s.size_bytes for s in steps) == 3000
        assert [s.created_by for s in steps[::-1][: len(history or [])]] == [s["created_by"] for s in history or []]
        assert [s.image_id for s in steps] == [store.image("x:1").id, *(None for _ in steps[1:])]

    def test_a_history_that_says_more(self, store: Store) -> None:
        more = [step("one"), step("two"), step("three"), step("four", True)]
        load(store, Image([layer(0), layer(1)], ["x:1"], document={"history": more}))
        steps = store.image("x:1").history()
        assert [s.created_by for s in steps] == ["four", "three", "two", "one"]
        assert [s.size_bytes for s in steps] == [0, 0, 2000, 1000]
        assert [s.image_id is None for s in steps] == [False, True, True, True]
        assert [s.empty_layer for s in steps] == [True, False, False, False]


class TestInspect:
    def test_in_dockers_words(self, store: Store) -> None:
        load(store, TOP)
        said = store.image("top").inspect()
        assert said["Id"] == TOP.id
        assert said["RepoTags"] == sorted(TOP.names)
        assert said["RootFS"] == {"Type": "layers", "Layers": TOP.diff_ids}
        assert said["Config"] == {"Cmd": ["/bin/sh"], "Env": ["A=b"]}
        assert (said["Architecture"], said["Os"], said["Author"], said["Size"]) == ("amd64", "linux", "somebody", 6000)
        assert said["Created"] == CREATED

    def test_a_damaged_config(self, store: Store) -> None:
        load(store, TOP)
        path = store.root / "blobs/sha256" / TOP.id[7:]
        path.write_bytes(path.read_bytes().replace(b"/bin/sh", b"/bin/no"))
        with pytest.raises(CorruptError, match="digest"):
            store.image("top").inspect()
        path.unlink()
        with pytest.raises(NotFound, match="load the image again"):
            store.image("top").inspect()


class TestNames:
    def test_tag(self, store: Store) -> None:
        load(store, TOP, BASE)
        store.tag("top", "more")
        assert store.image("more:latest").id == TOP.id
        store.tag("base:1", "more")
        assert store.image("more").id == BASE.id
        assert store.image("base:1").names == ["base:1", "more:latest"]
        with pytest.raises(InvalidInput, match="Not valid"):
            store.tag("top", "Not valid")
        with pytest.raises(NotFound):
            store.tag("nothing", "x")

    def test_removing_names_and_then_the_image(self, store: Store) -> None:
        load(store, TOP)
        assert store.remove_image("top") == ["Untagged: top:latest"]
        assert store.remove_image("registry.example:5000/team/top:1") == ["Untagged: registry.example:5000/team/top:1"]
        assert store.remove_image("top:1") == ["Untagged: top:1", f"Deleted: {TOP.id}"]
        assert store.images() == []
        with pytest.raises(NotFound):
            store.remove_image("top:1")

    def test_by_id(self, store: Store) -> None:
        load(store, TOP, BASE)
        with pytest.raises(Conflict, match="3 names"):
            store.remove_image(TOP.id)
        assert len(store.image(TOP.id).names) == 3
        assert len(store.remove_image(TOP.id[7:19], force=True)) == 4
        assert store.remove_image(BASE.id) == ["Untagged: base:1", f"Deleted: {BASE.id}"]

    def test_images_that_share_layers(self, store: Store) -> None:
        load(store, TOP, BASE)
        store.remove_image(TOP.id, force=True)
        store.collect_garbage()
        found = store.image("base:1")
        assert [b"".join(found.layer_tar(d)) for d in found.diff_ids] == list(BASE.layers)

    def test_a_name_whose_last_use_is_a_container(self, store: Store) -> None:
        load(store, TOP)
        container = store.create("top:1")
        store.remove_image("top:1")
        store.remove_image("top:latest")
        with pytest.raises(Conflict, match="layerstore rm"):
            store.remove_image(TOP.names[2])
        with pytest.raises(Conflict, match="layerstore rm"):
            store.remove_image(TOP.id, force=True)
        container.remove()
        store.remove_image(TOP.names[2])


class TestStore:
    def test_opening(self, tmp_path: Path) -> None:
        with pytest.raises(NotFound, match="layerstore init"):
            Store(tmp_path / "none")
        (tmp_path / "full").mkdir()
        (tmp_path / "full/file").write_bytes(b"mine")
        with pytest.raises(InvalidInput, match="'file'"):
            Store(tmp_path / "full", create=True)
        assert (tmp_path / "full/file").read_bytes() == b"mine"
        with Store(tmp_path / "new/deep", create=True), Store(str(tmp_path / "new/deep"), create=True) as again:
            assert again.images() == []
        (tmp_path / "new/deep").chmod(0o755)
        with pytest.raises(InvalidInput, match="chmod 700"):
            Store(tmp_path / "new/deep")

    def test_a_store_of_another_version(self, tmp_path: Path) -> None:
        Store(tmp_path / "s", create=True).close()
        (tmp_path / "s/format").write_text("layerstore 2\n")
        with pytest.raises(InvalidInput, match="layerstore 2"):
            Store(tmp_path / "s")

    def test_a_database_of_another_version(self, tmp_path: Path) -> None:
        Store(tmp_path / "s", create=True).close()
        with contextlib.closing(sqlite3.connect(tmp_path / "s/layerstore.db")) as db:
            db.execute("PRAGMA user_version = 1")
        with pytest.raises(Unsupported, match="load the images into a new store"):
            Store(tmp_path / "s")

    def test_a_damaged_database(self, tmp_path: Path) -> None:
        Store(tmp_path / "s", create=True).close()
        (tmp_path / "s/layerstore.db").write_bytes(b"damaged" * 1000)
        with pytest.raises(CorruptError, match=r"layerstore\.db"):
            Store(tmp_path / "s")

    def test_an_interrupted_creation_is_finished(self, tmp_path: Path) -> None:
        Store(tmp_path / "s", create=True).close()
        (tmp_path / "s/format").unlink()
        with Store(tmp_path / "s", create=True) as store:
            load(store, TOP)

    def test_a_damaged_content_is_told(self, store: Store) -> None:
        large = Image([write_tar([Entry("file", "f", data=bytes(range(256)) * 800)])], ["large:1"])
        load(store, large)
        (path,) = (p for p in (store.root / "objects").rglob("*") if p.is_file())
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:1000])
        found = store.image("large:1")
        with pytest.raises(CorruptError, match="load the image again"):
            b"".join(found.layer_tar(found.diff_ids[0]))

    def test_a_damaged_index_is_told(self, store: Store) -> None:
        load(store, BASE)
        (path,) = (store.root / "layers").glob("*.index")
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-40])
        with pytest.raises(CorruptError):
            store.image("base:1").index()
        path.unlink()
        with pytest.raises(CorruptError, match="load the image again"):
            store.create("base:1")
        # What the message says to do.
        store.remove_image("base:1")
        store.collect_garbage()
        load(store, BASE)
        store.image("base:1").index().verify()


def test_manifest_and_config_are_kept_as_they_were(store: Store) -> None:
    files = oci_files([BASE], "gzip")
    store.load(io.BytesIO(tar_of(files)))
    kept = {path.name: path.read_bytes() for path in (store.root / "blobs/sha256").iterdir()}
    wanted = {n.removeprefix("blobs/sha256/"): d for n, d in files.items() if n.startswith("blobs") and d[:1] == b"{"}
    assert kept == wanted
    assert images.digest_of(kept[BASE.id[7:]]) == BASE.id


class TestBesideOthers:
    """Another process does something between the beginning of a call and its transaction."""

    @pytest.fixture
    def moved(self, store: Store, meddle: Meddling) -> None:
        """Its name is another image's when the next transaction begins."""

        def move() -> None:
            with Store(store.root) as other:
                other.tag("top:1", "base:1")

        load(store, BASE, TOP)
        meddle.before(Database, "transaction", move)

    @pytest.mark.usefixtures("moved")
    def test_a_name_that_moves_takes_no_image_with_it(self, store: Store) -> None:
        assert store.remove_image("base:1") == ["Untagged: base:1"]
        assert {image.id for image in store.images()} == {BASE.id, TOP.id}
        assert "base:1" not in store.image("top:1").names

    @pytest.mark.usefixtures("moved")
    def test_a_tag_is_of_the_image_that_has_the_name_then(self, store: Store) -> None:
        store.tag("base:1", "new:1")
        assert store.image("new:1").id == TOP.id

    def test_a_save_has_the_name_that_the_image_was_found_by(
        self, store: Store, tmp_path: Path, meddle: Meddling
    ) -> None:
        load(store, BASE)

        def remove() -> None:
            with Store(store.root) as other:
                other.remove_image("base:1")

        store.tag("base:1", "kept:1")
        meddle.after(Engine, "find_named", remove)
        store.save("base:1", tmp_path / "saved.tar")
        with Store(tmp_path / "other", create=True) as other:
            assert other.load(tmp_path / "saved.tar")[0].names == ["base:1"]

    def test_a_save_of_what_is_removed_and_collected_meanwhile(
        self, store: Store, tmp_path: Path, meddle: Meddling
    ) -> None:
        load(store, BASE)

        def remove() -> None:
            with Store(store.root) as other:
                other.remove_image("base:1")
                other.collect_garbage()

        meddle.after(Engine, "find_named", remove)
        with pytest.raises(NotFound, match="was removed; load it again"):
            store.save("base:1", tmp_path / "saved.tar")
        assert os.listdir(tmp_path) == ["store"]

    @pytest.mark.parametrize(
        ("step", "look"),
        [
            ("index", lambda store, image: image.view),
            ("index", lambda store, image: image.index()),
            ("index", lambda store, image: store.view(image.diff_ids)),
            ("index", lambda store, image: store.diff("base:1", "top:1")),
            ("layer_index", lambda store, image: image.layers()),
        ],
    )
    def test_an_image_that_is_removed_as_it_is_looked_into(
        self, store: Store, meddle: Meddling, step: str, look: Callable[[Store, ImageOfStore], object]
    ) -> None:
        load(store, BASE, TOP)
        image = store.image("top:1")

        def remove() -> None:
            with Store(store.root) as other:
                other.remove_image(TOP.id, force=True)
                other.remove_image(BASE.id)
                other.collect_garbage()

        meddle.before(Chains, step, remove)
        with pytest.raises(NotFound):
            look(store, image)
        assert store.check().is_clean


def test_looking_into_many_images_takes_no_more_descriptors(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has a pack of its own."""
    for kept in ("layerstore.api.engine._VIEWS", "layerstore.extents.image_tree._OPEN_PACKS"):
        monkeypatch.setattr(kept, 8)
    for number in range(40):
        store.load(io.BytesIO(tar_of(docker_files([Image([layer(number)], [f"i{number}:1"])]))))
    assert len(list((store.root / "packs").glob("*.pack"))) == 40
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 30, limits[1]))
    views = []
    try:
        with Store(store.root) as looking:
            for number in range(40):
                image = looking.image(f"i{number}:1")
                views.append(weakref.ref(image.view))
                assert len(image.view.read_bytes(f"/f{number}")) == 1000 * (number + 1)
                container = looking.create(image, driver="extent")
                assert container.read_bytes(f"/f{number}") == image.view.read_bytes(f"/f{number}")
                container.remove()
            gc.collect()
            assert len([view for view in views if view() is not None]) == 8
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_limit_on_what_is_kept() -> None:
    gone: list[str] = []
    recent = Recent(2, gone.append)
    assert recent.keep(1, "a") == "a"
    assert recent.keep(2, "b") == "b"
    assert recent.keep(1, "other") == "a"
    recent.keep(3, "c")
    assert gone == ["b"]
    assert (recent.get(1), recent.get(2), recent.get(3)) == ("a", None, "c")
    recent.forget(1)
    assert gone == ["b", "a"]
    assert recent.clear() == ["c"]
    assert recent.get(3) is None
