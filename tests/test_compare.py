"""Comparing chains: against a comparison of all their records, on damaged indexes, and what it costs."""

import io
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import stack_model
import test_trees
from hypothesis import given, settings
from hypothesis import strategies as st
from images import Image, docker_files, tar_of
from layer_model import Entry, write_tar
from stack_model import directory, regular, stacks
from test_cli import Cli
from test_index import KEY, ROOT, D, F, flips, reseal

from layerstore import Store
from layerstore._core import index as ix
from layerstore._core.compare import compare, tree
from layerstore._core.index import Index, Node, merge, write_index
from layerstore.errors import CorruptError, InvalidInput, LayerstoreError, NotFound
from layerstore.results import Change
from layerstore.views.comparison import changes

Described = dict[bytes, tuple[object, ...]]


def chain_of(layers: Sequence[stack_model.Layer]) -> Index:
    return Index(merge([stack_model.layer_index(layer) for layer in layers], KEY))


def described(index: Index) -> Described:
    """All that a comparison looks at, by path."""
    return {path: attributes[:8] for path, attributes in stack_model.describe_index(index)[0].items()}


def expected(a: Described, b: Described) -> list[tuple[bytes, str]]:
    found = [(path, "D") for path in a.keys() - b.keys()] + [(path, "A") for path in b.keys() - a.keys()]
    return sorted(found + [(path, "C") for path in a.keys() & b.keys() if a[path] != b[path]])


def walk_order(path: bytes) -> list[bytes]:
    return path.split(b"/") if path else []


# What is found


@settings(max_examples=200, deadline=None)
@given(stacks(), stacks())
def test_any_two_chains(left: list[stack_model.Layer], right: list[stack_model.Layer]) -> None:
    a, b = chain_of(left), chain_of(right)
    found, read = compare(a, b)
    assert sorted(found) == expected(described(a), described(b))
    assert [path for path, _ in found] == sorted((path for path, _ in found), key=walk_order)
    assert read <= len(a) + len(b)
    mirrored = {"A": "D", "D": "A", "C": "C"}
    assert compare(b, a)[0] == [(path, mirrored[kind]) for path, kind in found]


@settings(max_examples=200, deadline=None)
@given(stacks(min_size=2), st.data())
def test_a_chain_and_one_that_grew_from_it(layers: list[stack_model.Layer], data: st.DataObject) -> None:
    """The trees of both are partly taken from a third: `b` is made on top of `a`'s lower layers."""
    split = data.draw(st.integers(1, len(layers) - 1))
    a = chain_of(layers[:split])
    b = Index(merge([a, *map(stack_model.layer_index, layers[split:])], KEY))
    assert sorted(compare(a, b)[0]) == expected(described(a), described(b))


@settings(max_examples=100, deadline=None)
@given(stacks(), st.randoms(use_true_random=False))
def test_the_same_tree_in_other_layers_does_not_differ(layers: list[stack_model.Layer], shuffle) -> None:
    view = {path: inode for path, (inode, _) in stack_model.model(layers).items()}
    stacked = chain_of(layers)
    flat = Index(merge([stack_model.layer_index(view, shuffle)], bytes(16)))
    assert compare(stacked, flat) == ([], 2)
    assert tree(stacked, 0) == tree(flat, 0)


def rule(a: stack_model.Layer, b: stack_model.Layer) -> list[tuple[str, str]]:
    root = {(): directory()}
    return [(change.kind, change.path) for change in changes(chain_of([root | a]), chain_of([root | b]))]


def test_a_directory_in_which_something_differs_is_no_change() -> None:
    a = {(b"d",): directory(), (b"d", b"e"): directory(), (b"d", b"e", b"f"): regular(b"1")}
    assert rule(a, a | {(b"d", b"e", b"f"): regular(b"2")}) == [("C", "/d/e/f")]
    assert rule(a, a | {(b"d", b"e"): directory(uid=1)}) == [("C", "/d/e")]


def test_a_type_that_was_replaced_is_a_change_there_and_below() -> None:
    below = {(b"x",): directory(), (b"x", b"d"): directory(), (b"x", b"d", b"f"): regular()}
    assert rule(below, {(b"x",): regular()}) == [("C", "/x"), ("D", "/x/d"), ("D", "/x/d/f")]
    assert rule({(b"x",): regular()}, below) == [("C", "/x"), ("A", "/x/d"), ("A", "/x/d/f")]
    assert rule(below, {}) == [("D", "/x"), ("D", "/x/d"), ("D", "/x/d/f")]


def test_the_root_is_a_path_like_any_other() -> None:
    assert rule({}, {(): directory(uid=7)}) == [("C", "/")]


def test_links_and_layers_make_no_difference() -> None:
    shared = regular()
    assert rule({(b"a",): shared, (b"b",): shared}, {(b"a",): regular(), (b"b",): regular()}) == []


def test_they_are_sorted_as_the_changes_of_a_container() -> None:
    a = {(b"a",): directory(), (b"a", b"x"): regular(b"1"), (b"a-b",): regular(b"1"), (b"a.d",): regular(b"1")}
    b = {(b"a",): directory(), (b"a", b"x"): regular(b"2"), (b"a-b",): regular(b"2"), (b"a.d",): regular(b"2")}
    assert [path for _, path in rule(a, b)] == ["/a-b", "/a.d", "/a/x"]


def test_names_that_are_no_text_are_told() -> None:
    assert rule({}, {(b"\xff\xfe",): regular()}) == [("A", "/\udcff\udcfe")]


def test_layers_are_not_compared() -> None:
    layer, chain = Index(write_index(ix.LAYER, 1, KEY, [ROOT])), Index(write_index(ix.CHAIN, 1, KEY, [ROOT]))
    for a, b in ((layer, chain), (chain, layer)):
        with pytest.raises(InvalidInput, match="one is a layer's"):
            compare(a, b)


# What it costs


def test_the_work_is_what_differs() -> None:
    """Of 40,000 records those are read that are in the directories down to the change, and no others."""
    nodes = [ROOT, *(Node(0, b"d%d" % i, D) for i in range(20)), *(Node(1 + i % 20, b"e%d" % i, D) for i in range(400))]
    nodes += [Node(21 + i % 400, b"f%d" % i, F) for i in range(40_000)]
    before = Index(write_index(ix.CHAIN, 1, KEY, nodes))
    path = b"d3/e123/f523"
    nodes[21 + 400 + 523] = nodes[21 + 400 + 523]._replace(uid=1)
    after = Index(write_index(ix.CHAIN, 1, KEY, nodes))
    assert [r.path for r in after if r.uid] == [path]
    # The roots; what is in the root, in d3 and in e123; each in both.
    assert compare(before, after) == ([(path, "C")], 2 * (1 + 20 + 20 + 100))
    assert compare(before, before) == ([], 2)


def test_a_deep_tree_needs_no_stack() -> None:
    deep = Index(write_index(ix.CHAIN, 1, KEY, [Node(max(i - 1, 0), b"d" if i else b"", D) for i in range(2000)]))
    flat = Index(write_index(ix.CHAIN, 1, KEY, [ROOT]))
    found, read = compare(flat, deep)
    assert (len(found), read) == (1999, 2001)


# Damage


def partner() -> Index:
    """The golden chain, a little different at several depths."""
    nodes = [*test_trees.NODES, Node(2, b"new", D), Node(12, b"f", F)]
    nodes[8] = nodes[8]._replace(rdev=(1, 5))
    nodes[1] = nodes[1]._replace(target=b"bash")
    return Index(write_index(ix.CHAIN, 3, KEY, nodes, test_trees.CONTENTS[:2]))


def attempt(call: Callable[[], object]) -> bool:
    try:
        call()
    except LayerstoreError as error:
        assert isinstance(error, CorruptError), error
        return False
    return True


def test_flipped_bits_are_found_by_verify_and_harm_no_comparison() -> None:
    data, other = test_trees.everything(), partner()
    for damaged in flips(data, 128):
        index = Index(damaged)
        with pytest.raises(CorruptError, match="digest differs"):
            index.verify()
        attempt(lambda index=index: compare(index, other))
        attempt(lambda index=index: compare(other, index))


def test_what_passes_verify_is_compared_right() -> None:
    """Damage under a right digest, as a forger makes it: it is found, or the index is another sound one."""
    other = partner()
    sound = 0
    for damaged in flips(test_trees.everything(), 128):
        index = Index(reseal(damaged))
        attempt(lambda index=index: compare(index, other))
        if attempt(index.verify):
            sound += 1
            assert sorted(compare(index, other)[0]) == expected(described(index), described(other))
    assert 0 < sound < 0.1 * 8 * len(test_trees.everything())


def test_a_directory_that_lists_anothers_children_ends() -> None:
    """Each of 30 directories lists the next two: a walk that believed it would take 2^30 steps."""
    nodes = [Node(max(i - 1, 0), b"d%d" % i if i else b"", D, uid=i) for i in range(32)]
    data = bytearray(write_index(ix.CHAIN, 1, KEY, nodes))
    for i in range(30):
        data[128 + 64 * i + 48] = 2
    forged = Index(reseal(bytes(data)))
    empty = Index(write_index(ix.CHAIN, 1, KEY, [ROOT]))
    for a, b in ((forged, empty), (empty, forged)):
        with pytest.raises(CorruptError, match="not a child of the directory that lists it"):
            compare(a, b)


# Images


BASE = write_tar(
    [Entry("dir", "etc", mode=0o755), Entry("file", "etc/a", data=b"1"), Entry("file", "etc/b", data=b"2")]
)
TOP = write_tar([Entry("file", "etc/.wh.b"), Entry("file", "etc/a", data=b"other"), Entry("file", "new", data=b"3")])
FLAT = write_tar(
    [Entry("dir", "etc", mode=0o755), Entry("file", "etc/a", data=b"other"), Entry("file", "new", data=b"3")]
)
ONE, TWO, SAME = Image([BASE], ["one:latest"]), Image([BASE, TOP], ["two:latest"]), Image([FLAT], ["same:latest"])
DIFFERENCE = [Change("C", "/etc/a"), Change("D", "/etc/b"), Change("A", "/new")]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    where = tmp_path_factory.mktemp("compare") / "store"
    with Store(where, create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([ONE, TWO, SAME]))))
        store.create("two:latest", name="box")
        yield where
        store.remove(store.containers())


@pytest.fixture
def store(root: Path) -> Iterator[Store]:
    with Store(root) as opened:
        yield opened


def test_images_by_name_object_and_layers(store: Store) -> None:
    one, two = store.image("one"), store.image("two:latest")
    for a in ("one", one.id, one, one.diff_ids, list(one.diff_ids)):
        for b in ("two:latest", two, two.diff_ids):
            assert store.diff(a, b) == DIFFERENCE
    assert store.diff(two.diff_ids[:1], two) == DIFFERENCE
    assert store.diff("two", "same") == []


def test_against_nothing(store: Store) -> None:
    assert store.diff((), "one") == [Change("A", path) for path in ("/etc", "/etc/a", "/etc/b")]
    assert store.diff([], []) == []


@pytest.mark.parametrize(
    ("chain", "error", "message"),
    [
        ("absent", NotFound, "there is no image 'absent'"),
        ("box", InvalidInput, "'box' is a container of two:latest, .* `layerstore diff box` shows what it changed"),
        (["sha256:" + "0" * 64], NotFound, "there is no layer sha256:0000"),
        (["../../etc"], InvalidInput, "a layer of a stack is '../../etc', not a digest"),
    ],
    ids=["absent", "container", "layer", "no-digest"],
)
def test_what_is_no_chain(store: Store, chain: str | list[str], error: type[Exception], message: str) -> None:
    for a, b in ((chain, "one"), ("one", chain)):
        with pytest.raises(error, match=message):
            store.diff(a, b)


def test_an_image_that_was_removed(tmp_path: Path) -> None:
    with Store(tmp_path / "store", create=True) as store:
        (image,) = store.load(io.BytesIO(tar_of(docker_files([ONE]))))
        assert store.diff(image, image) == []
        store.remove_image("one")
        with pytest.raises(NotFound, match="was removed; load it again"):
            store.diff((), image)


def test_the_command(root: Path) -> None:
    cli = Cli(root)
    assert cli("diff", "one", "two") == "C /etc/a\nD /etc/b\nA /new\n"
    assert cli.json("diff", "one", "two") == [{"kind": c.kind, "path": c.path} for c in DIFFERENCE]
    assert cli("diff", "same", "two") == ""
    assert "'box' is a container of two:latest" in cli("diff", "one", "box", status=1)
    assert "'two' is an image; name the image to compare it with" in cli("diff", "two", status=1)
    assert "there is no container 'absent'" in cli("diff", "absent", status=1)


def test_kinds_of_records_that_were_compared() -> None:
    """Guards the tests above: the chains that they damage have one of every type."""
    assert {stat.S_IFMT(r.mode) for r in Index(test_trees.everything())} == {
        *(stat.S_IFDIR, stat.S_IFREG, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO)
    }
