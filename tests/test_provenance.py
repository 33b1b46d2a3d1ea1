"""Which layer brought what, and what ended it: against a replay of the layers, and rule by rule."""

import contextlib
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from stack_model import (
    EXAMPLES,
    KEY,
    Inode,
    Layer,
    Parts,
    View,
    apply,
    directory,
    layer_bytes,
    layer_index,
    lower_link,
    regular,
    stacks,
)

from layerstore import LayerSummary, Store
from layerstore._core import index as ix
from layerstore._core import provenance as core
from layerstore._core.index import Index, merge
from layerstore._core.provenance import Figures, Provenance, versions_of
from layerstore._core.view import Tree
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded, NotFound
from layerstore.views import provenance

# Against a replay: one version begins or ends at a time, by comparing the views of two heights.


def views(layers: list[Layer]) -> list[View]:
    found: list[View] = [{}]
    for number, layer in enumerate(layers):
        found.append(apply(found[-1], layer, number))
    return found


def looks(inode: Inode) -> tuple:
    return inode.mode, inode.uid, inode.gid, inode.mtime_ns, inode.xattrs


def is_new(before: View, after: View, path: Parts, number: int) -> bool:
    inode, layer = after[path]
    if path not in before:
        return True
    if inode.is_directory and before[path][0].is_directory:
        return looks(inode) != looks(before[path][0])
    return layer == number


def why_gone(layer: Layer, path: Parts) -> tuple[int, Parts]:
    """How a layer hid a path, and where."""
    if path in layer:
        return core.WHITEOUT, path
    for depth in reversed(range(len(path))):
        above = layer.get(path[:depth])
        if above is None:
            continue
        if above.flags & ix.WHITEOUT:
            return core.ABOVE_WHITEOUT, path[:depth]
        if not above.is_directory:
            return core.ABOVE_REPLACED, path[:depth]
        if above.flags & ix.OPAQUE:
            return core.ABOVE_OPAQUE, path[:depth]
    raise AssertionError(path)


Traced = tuple[Parts, int, bool, int, int | None, Parts | None]


def replay(layers: list[Layer]) -> list[Traced]:
    """Every version: path, layer, whether it replaced one, how it ended, in which layer, by what path."""
    done: list[Traced] = []
    begun: dict[Parts, tuple[int, bool]] = {}
    heights = views(layers)
    for number, layer in enumerate(layers):
        before, after = heights[number : number + 2]
        for path in set(before) | set(after):
            if path not in after:
                done.append((path, *begun.pop(path), *end_of(*why_gone(layer, path), number)))
            elif is_new(before, after, path, number):
                if path in begun:
                    done.append((path, *begun[path], core.REPLACED, number, path))
                begun[path] = (number, path in before)
    return done + [(path, *beginning, core.VISIBLE, None, None) for path, beginning in begun.items()]


def end_of(how: int, where: Parts, number: int) -> tuple[int, int, Parts]:
    return how, number, where


def replayed_figures(layers: list[Layer], traced: list[Traced]) -> list[Figures]:
    shown = {id(inode) for inode, _ in views(layers)[-1].values()}
    found = []
    for number, layer in enumerate(layers):
        files = {id(inode): len(inode.data) for inode in layer.values() if inode.data}
        hidden = [t for t in traced if t[4] == number and t[3] != core.REPLACED]
        found.append(
            Figures(
                added=sum(t[1] == number and not t[2] for t in traced),
                changed=sum(t[1] == number and t[2] for t in traced),
                hidden=len(hidden),
                added_bytes=sum(files.values()),
                wasted_bytes=sum(size for inode, size in files.items() if inode not in shown),
            )
        )
    return found


def parts(path: bytes) -> Parts:
    return tuple(path.split(b"/")) if path else ()


def told(indexes: list[Index], life: core.Life) -> Traced:
    where = None if life.end_layer is None else parts(indexes[life.end_layer].record(life.end_record).path)
    assert indexes[life.layer].record(life.record).path == life.path
    return parts(life.path), life.layer, life.is_change, life.end, life.end_layer, where


@settings(max_examples=EXAMPLES, deadline=None)
@given(stacks())
def test_provenance_is_what_a_replay_finds(layers: list[Layer]) -> None:
    indexes = [layer_index(layer) for layer in layers]
    traced = Provenance(indexes)
    expected = replay(layers)
    assert sorted(told(indexes, life) for life in traced) == sorted(expected)
    assert len(traced) == len(expected)
    assert traced.figures == replayed_figures(layers, expected)
    for path in {path for layer in layers for path in layer}:
        lives = [told(indexes, life) for life in versions_of(indexes, b"/".join(path))]
        assert lives == sorted(version for version in expected if version[0] == path)
    for number in range(len(layers)):
        concerned = [version for version in expected if number in (version[1], version[4])]
        assert sorted(told(indexes, life) for life in traced.of_layer(number)) == sorted(concerned)


@settings(max_examples=EXAMPLES, deadline=None)
@given(stacks())
def test_changes_lead_from_each_view_to_the_next(layers: list[Layer]) -> None:
    indexes = [layer_index(layer) for layer in layers]
    heights = views(layers)
    for number in range(len(layers)):
        shown = {"/" + os.fsdecode(b"/".join(path)) for path in heights[number]}
        changes = provenance.changes(indexes[: number + 1])
        assert all((change.path in shown) == (change.kind != "A") for change in changes)
        # Below what was deleted, or is no directory now, nothing is told: it went with it.
        kinds = {change.path: change.kind for change in changes}
        after = {"/" + os.fsdecode(b"/".join(path)): inode for path, (inode, _) in heights[number + 1].items()}
        gone = [p for p, kind in kinds.items() if kind == "D" or (kind == "C" and not after[p].is_directory)]
        left = {path for path in shown - set(kinds) if not any(path.startswith(p + "/") for p in gone)}
        assert left | {path for path, kind in kinds.items() if kind != "D"} == set(after)


@settings(max_examples=EXAMPLES, deadline=None)
@given(stacks(), st.data())
def test_damaged_layers_are_an_error_or_give_an_answer(layers: list[Layer], data: st.DataObject) -> None:
    indexes = [layer_bytes(layer) for layer in layers]
    number = data.draw(st.integers(0, len(layers) - 1))
    damaged = bytearray(indexes[number])
    # Not in the header, whose digest would tell when the index is opened.
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(128, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    opened = [Index(damaged if i == number else index) for i, index in enumerate(indexes)]
    for work in (
        lambda: list(Provenance(opened)),
        lambda: [versions_of(opened, b"/".join(path)) for path in layers[number]],
        lambda: merge(opened, KEY),
    ):
        with contextlib.suppress(CorruptError, InvalidInput, LimitExceeded):
            work()
    if bytes(damaged) != bytes(indexes[number]):
        with pytest.raises(CorruptError):
            opened[number].verify()


# Single rules


def lives_of(path: bytes, *layers: Layer) -> list[Traced]:
    """The versions of a path in layers that are given without their roots."""
    indexes = [layer_index({(): directory(), **layer}) for layer in layers]
    found = [told(indexes, life) for life in Provenance(indexes) if life.path == path]
    assert [told(indexes, life) for life in versions_of(indexes, path)] == found
    return found


F, D, DF, DEF = (b"f",), (b"d",), (b"d", b"f"), (b"d", b"e", b"f")
GONE = Inode(flags=ix.WHITEOUT)


def test_a_whiteout_of_nothing_ends_nothing() -> None:
    assert lives_of(b"f", {F: GONE}, {F: regular()}, {}, {F: GONE}, {F: GONE}, {F: regular()}) == [
        (F, 1, False, core.WHITEOUT, 3, F),
        (F, 5, False, core.VISIBLE, None, None),
    ]


@pytest.mark.parametrize(
    ("hiding", "end"),
    [
        ({D: GONE}, core.ABOVE_WHITEOUT),
        ({D: regular()}, core.ABOVE_REPLACED),
        ({D: directory(flags=ix.OPAQUE)}, core.ABOVE_OPAQUE),
    ],
    ids=["whiteout", "file", "opaque"],
)
def test_what_is_above_hides_what_is_below(hiding: Layer, end: int) -> None:
    below = {D: directory(), (b"d", b"e"): directory(), DEF: regular()}
    assert lives_of(b"d/e/f", below, {}, hiding, below)[0] == (DEF, 0, False, end, 2, D)


def test_what_an_opaque_directory_has_itself_replaces() -> None:
    below = {D: directory(), DF: regular()}
    opaque = {D: directory(flags=ix.OPAQUE), DF: regular()}
    assert lives_of(b"d/f", below, opaque) == [
        (DF, 0, False, core.REPLACED, 1, DF),
        (DF, 1, True, core.VISIBLE, None, None),
    ]
    assert lives_of(b"d", below, opaque) == [(D, 0, False, core.VISIBLE, None, None)]


@pytest.mark.parametrize(
    "change", [{"uid": 1}, {"gid": 1}, {"mtime_ns": 1}, {"mtime_ns": 10**9}, {"xattrs": {b"user.a": b""}}]
)
def test_a_directory_changes_with_its_attributes(change: dict) -> None:
    again = directory(flags=ix.IMPLIED)
    assert lives_of(b"d", {D: directory()}, {D: directory()}, {D: again}, {D: directory(**change)}) == [
        (D, 0, False, core.REPLACED, 3, D),
        (D, 3, True, core.VISIBLE, None, None),
    ]


def test_a_directory_that_is_implied_anew_is_another_one() -> None:
    implied = directory(flags=ix.IMPLIED)
    layers = {D: directory(), DEF[:2]: directory(uid=5)}, {D: directory(flags=ix.OPAQUE), DEF[:2]: implied}
    assert lives_of(b"d/e", *layers) == [
        (DEF[:2], 0, False, core.REPLACED, 1, DEF[:2]),
        (DEF[:2], 1, True, core.VISIBLE, None, None),
    ]


def test_bytes_of_an_inode_count_once_and_until_its_last_link_goes() -> None:
    inode = regular(b"12345")
    bottom = {(): directory(), (b"a",): inode, (b"b",): inode}
    stack = [layer_index(bottom)]
    for layer, wasted in (
        ({(b"a",): GONE}, 0),
        ({(b"c",): lower_link(b"b"), (b"b",): GONE}, 0),
        ({(b"e",): lower_link(b"c")}, 0),
        ({(b"c",): regular(b"")}, 0),
        ({(b"e",): GONE}, 5),
    ):
        stack.append(layer_index({(): directory(), **layer}))
        figures = Provenance(stack).figures
        assert (figures[0].added_bytes, figures[0].wasted_bytes) == (5, wasted)
        assert sum(f.added_bytes for f in figures[1:]) == 0


def test_layers_that_cannot_be_traced() -> None:
    layer = layer_index({(): directory()})
    with pytest.raises(InvalidInput, match="the bottom is a chain"):
        Provenance([Index(merge([layer], KEY))])
    with pytest.raises(InvalidInput, match="0 of them"):
        Provenance([])
    broken = layer_index({(): directory(), (b"link",): lower_link(b"absent")})
    with pytest.raises(InvalidInput, match=r'tracing layers: "link" of layer 1 is a hard link to "absent"'):
        Provenance([layer, broken])
    with pytest.raises(InvalidInput, match=r'tracing layers: "link" of layer 1 is a hard link to "absent"'):
        provenance.versions([layer, broken], ["", ""], Tree(Index(merge([layer], KEY))), "link")
    with pytest.raises(InvalidInput, match="layer 1 of 1 has no record 0"):
        core.follow([layer], 1, 0)
    with pytest.raises(InvalidInput, match="layer 0 of 1 has no record 1"):
        core.follow([layer], 0, 1)


def test_two_thousand_layers() -> None:
    count = 2000
    layers: list[Layer] = [{(): directory(), D: directory(), (b"d", b"%d" % i): regular()} for i in range(count)]
    for i in range(1, count):
        layers[i][b"d", b"%d" % (i - 1)] = GONE
    layers[1500][D] = directory(flags=ix.OPAQUE)
    traced = Provenance([layer_index(layer) for layer in layers])
    assert [f.wasted_bytes for f in traced.figures] == [1] * (count - 1) + [0]
    assert sum(f.hidden for f in traced.figures) == count - 1
    assert len(traced) == count + 2


# Of images in a store

LAYERS = [
    [
        Entry("dir", "d", mode=0o755),
        Entry("file", "d/big", data=b"x" * 1000), Entry("file", "d/small", data=b"y" * 10),
        Entry("file", "twice", data=b"1" * 5), Entry("file", "twice", data=b"2" * 7),
    ],
    [Entry("dir", "d", mode=0o755), Entry("file", "d/.wh.big"), Entry("file", "d/new", data=b"z" * 100, mode=0o600)],
    [Entry("file", "d/new", data=b"z" * 50, uid=7, mtime=(1_700_000_000, 5)), Entry("hardlink", "link", "d/small")],
    [Entry("file", ".wh.d"), Entry("symlink", "twice", "link")],
]  # fmt: skip
STEPS = [
    {"created_by": "ADD all"},
    {"created_by": "ENV x", "empty_layer": True},
    {"created_by": "RUN rm d/big"},
    {"created_by": "RUN change"},
    {"created_by": "RUN rm -r d"},
]
IMAGE = Image([write_tar(entries) for entries in LAYERS], ["layered:1"], document={"history": STEPS})


@pytest.fixture
def loaded(store: Store, tmp_path: Path) -> Store:
    (tmp_path / "image.tar").write_bytes(tar_of(docker_files([IMAGE])))
    store.load(tmp_path / "image.tar")
    return store


class TestImages:
    def test_layers(self, loaded: Store) -> None:
        image = loaded.image("layered:1")
        ids = image.diff_ids
        assert image.layers() == [
            LayerSummary(0, ids[0], "ADD all", 1022, 5, 0, 0, 1017, 1007),
            LayerSummary(1, ids[1], "RUN rm d/big", 100, 1, 0, 1, 100, 100),
            LayerSummary(2, ids[2], "RUN change", 50, 1, 1, 0, 50, 50),
            LayerSummary(3, ids[3], "RUN rm -r d", 0, 0, 1, 3, 0, 0),
        ]
        assert image.wasted_bytes == 1157
        assert sum(layer.size_bytes for layer in image.layers()) == image.size_bytes

    def test_changes(self, loaded: Store) -> None:
        image = loaded.image("layered:1")
        told = [" ".join(f"{change.kind}{change.path}" for change in image.layer_changes(n)) for n in range(4)]
        assert told == ["A/ A/d A/d/big A/d/small A/twice", "D/d/big A/d/new", "C/d/new A/link", "D/d C/twice"]
        for number in (-1, 4):
            with pytest.raises(NotFound, match=f"has no layer {number}; it has 4"):
                image.layer_changes(number)

    def test_versions(self, loaded: Store) -> None:
        image = loaded.image("layered:1")
        new, old = image.versions("/d/new")
        assert (new.layer, new.diff_id, new.kind, new.mode, new.uid) == (2, image.diff_ids[2], "file", 0o644, 7)
        assert (new.size_bytes, new.mtime_ns) == (50, 1_700_000_000_000_000_005)
        assert (new.ended_by, new.ended_how, new.ended_at) == (3, "directory deleted", "/d")
        assert (old.layer, old.mode, old.size_bytes) == (1, 0o600, 100)
        assert (old.ended_by, old.ended_how, old.ended_at) == (2, "replaced", "/d/new")
        (link,) = image.versions(b"./x/..//link/")
        assert (link.layer, link.kind, link.size_bytes, link.linked_to) == (2, "file", 10, "/d/small")
        assert (link.ended_by, link.ended_how, link.ended_at) == (None, None, None)
        assert [v.kind for v in image.versions("twice")] == ["symlink", "file"]
        assert image.versions("twice")[0].target == "link"
        assert image.versions("d/big")[0].ended_how == "deleted"
        assert [v.layer for v in image.versions("/..")] == [0]
        assert {v.path for v in image.versions("twice")} == {"/twice"}

    def test_versions_through_links(self, store: Store) -> None:
        layers = [
            [Entry("file", "bin/sh", data=b"old"), Entry("file", "usr/x", data=b"x"), Entry("symlink", "loop", "loop")],
            [Entry("file", ".wh.bin"), Entry("file", "usr/bin/sh", data=b"sh"), Entry("symlink", "to", "bin/sh")],
            [
                Entry("symlink", "bin", "usr/bin"),
                Entry("file", "usr/bin/.wh.gone"),
                Entry("symlink", "usr/bin/l", "sh"),
            ],
            [Entry("file", "usr/bin/sh", data=b"newer"), Entry("symlink", "deep", "/to/../../bin/../bin")],
        ]
        image = Image([write_tar(entries) for entries in layers], ["merged:1"])
        (stored,) = store.load(io.BytesIO(tar_of(docker_files([image]))))

        def told(path: str | bytes) -> list[tuple[str, int, str | None]]:
            return [(version.path, version.layer, version.ended_how) for version in stored.versions(path)]

        new = [("/usr/bin/sh", 3, None), ("/usr/bin/sh", 1, "replaced")]
        assert told("/usr/bin/sh") == new
        assert told("/bin/sh") == told(b"bin//./sh") == [*new, ("/bin/sh", 0, "directory deleted")]
        assert told("/bin") == [("/bin", 2, None), ("/bin", 0, "deleted")]
        assert told("/bin/l") == [("/usr/bin/l", 2, None)]
        assert told("/bin/../x") == [("/usr/x", 0, None)]
        assert [path for path, _, _ in told("/bin/..")] == ["/usr"]
        for path in ("/bin/nothing", "/loop/x", "/to/x", "/deep/sh"):
            with pytest.raises(FileNotFoundError, match="no layer of the image ever had it"):
                told(path)

    def test_a_path_that_no_layer_ever_had(self, loaded: Store) -> None:
        for path in ("absent", "d/absent", "twice/x", "d/.wh.big", "x\0y"):
            with pytest.raises(FileNotFoundError, match="no layer of the image ever had it") as caught:
                loaded.image("layered:1").versions(path)
            assert caught.value.filename == path

    def test_an_image_without_layers(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "image.tar").write_bytes(tar_of(docker_files([Image([], ["empty:1"])])))
        (image,) = store.load(tmp_path / "image.tar")
        assert (image.layers(), image.wasted_bytes, image.history()) == ([], 0, [])
        with pytest.raises(FileNotFoundError):
            image.versions("/")

    def test_paths_are_the_same_text_in_every_locale(self, store: Store) -> None:
        layers = [write_tar([Entry("dir", "d")]), write_tar([Entry("file", "d/é"), Entry("file", "d/\udcff")])]
        store.load(io.BytesIO(tar_of(docker_files([Image(layers, ["names:1"])]))))
        code = (
            "import sys\n"
            "from layerstore import Store\n"
            "image = Store(sys.argv[1]).image('names:1')\n"
            "names = ['/d/\\xe9', '/d/\\udcff']\n"
            "assert [change.path for change in image.layer_changes(1)] == names\n"
            "assert [change.path for change in Store(sys.argv[1]).diff(image.diff_ids[:1], image)][-2:] == names\n"
            "assert [len(image.versions(name)) for name in names] == [1, 1]\n"
            "assert [image.view.find(name).path for name in names] == names\n"
        )
        plain = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        for environment in ({}, plain):
            subprocess.run([sys.executable, "-c", code, store.root], env=os.environ | environment, check=True)

    @pytest.mark.usefixtures("unchecked_links")
    def test_a_hard_link_to_nothing(self, store: Store) -> None:
        layers = [write_tar([Entry("file", "f")]), write_tar([Entry("hardlink", "ln", "nope")])]
        store.load(io.BytesIO(tar_of(docker_files([Image(layers, ["broken:1"])]))))
        image = store.image("broken:1")
        looks = (image.layers, lambda: image.layer_changes(1), lambda: image.versions("ln"), lambda: image.view)
        for look in looks:
            with pytest.raises(
                InvalidInput, match=r'"ln" of layer 1 is a hard link to "nope", and the layers below it'
            ):
                look()

    def test_a_damaged_layer(self, loaded: Store) -> None:
        image = loaded.image("layered:1")
        path = Path(loaded.layout.layer_index(image.diff_ids[1]))
        data = bytearray(path.read_bytes())
        data[200] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptError):
            image.layers()
        with pytest.raises(CorruptError):
            image.layer_changes(2)
        assert image.layer_changes(0)


class TestCommand:
    @pytest.fixture
    def layers(self, loaded: Store):
        def run(*arguments: str, status: int = 0) -> str:
            command = [sys.executable, "-m", "layerstore", "--root", str(loaded.root), "layers", *arguments]
            done = subprocess.run(command, capture_output=True, text=True)
            assert done.returncode == status, done.stderr
            return done.stdout if status == 0 else done.stderr

        return run

    def test_layers(self, layers, loaded: Store) -> None:
        lines = layers("layered:1").splitlines()
        assert " ".join(lines[0].split()) == "LAYER DIFF ID SIZE ADDED CHANGED HIDDEN WASTED CREATED BY"
        first = loaded.image("layered:1").diff_ids[0]
        assert lines[1].split() == ["0", first[7:19], "1.02kB", "5", "0", "0", "1.01kB", "ADD", "all"]
        assert lines[5].split() == ["total", "1.17kB", "7", "2", "4", "1.16kB"]
        rows = json.loads(layers("layered:1", "--format", "json"))
        assert rows == [vars(layer) for layer in loaded.image("layered:1").layers()]

    def test_versions(self, layers) -> None:
        lines = layers("layered:1", "/d/new").splitlines()
        assert " ".join(lines[1].split()[2:]) == "file 0644 7:0 50B 2023-11-14 22:13:20 /d deleted by layer 3"
        assert lines[2].endswith("replaced by layer 2")
        assert "file, linked to /d/small" in layers("layered:1", "link")
        assert "symlink to link" in layers("layered:1", "twice")
        assert [v["ended_by"] for v in json.loads(layers("layered:1", "d/new", "--format", "json"))] == [3, 2]
        assert [line.split()[0] for line in layers("layered:1", "x/../d/new").splitlines()] == [
            "PATH",
            "/d/new",
            "/d/new",
        ]
        assert layers("layered:1", "nope", status=1) == "layerstore layers: nope: no layer of the image ever had it\n"

    def test_changes(self, layers) -> None:
        assert layers("layered:1", "--changes", "3") == "D /d\nC /twice\n"
        found = json.loads(layers("layered:1", "--changes", "1", "--format", "json"))
        assert found == [{"kind": "D", "path": "/d/big"}, {"kind": "A", "path": "/d/new"}]
        assert "has no layer 9" in layers("layered:1", "--changes", "9", status=1)
