"""The layer builder: every rule of csrc/index/layer.h by hand, then random layers against a model of the rules."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_model import (
    IMPLIED,
    KINDS,
    LOWER_LINK,
    OPAQUE,
    WHITEOUT,
    Entry,
    Model,
    Record,
    Refused,
    read_index,
    write_tar,
)

from layerstore._core.index import Index
from layerstore._core.layer import build_layer
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded

blake3 = pytest.importorskip("blake3").blake3

KEY = bytes(range(16))


def build(*entries: Entry) -> dict[str, Record]:
    index, _ = build_layer(write_tar(list(entries)), KEY)
    Index(index).verify()
    return read_index(index)


def d(path: str, **rest: object) -> Entry:
    return Entry("dir", path, mode=rest.pop("mode", 0o750), **rest)


def f(path: str, data: bytes = b"", **rest: object) -> Entry:
    return Entry("file", path, data=data, **rest)


def s(path: str, target: str) -> Entry:
    return Entry("symlink", path, link=target)


def h(path: str, target: str, **rest: object) -> Entry:
    return Entry("hardlink", path, link=target, **rest)


def names(records: dict[str, Record]) -> set[str]:
    return set(records) - {""}


# ---- paths ----


@pytest.mark.parametrize(
    "spelling", ["a/b", "./a/b", "/a/b", "//a///b", "a/./b/.", "x/../a/b", "a/c/../b", "/x/../a/b"]
)
def test_a_path_is_cleaned(spelling: str) -> None:
    assert names(build(f(spelling))) == {"a", "a/b"}


@pytest.mark.parametrize("spelling", ["..", "../a", "a/../..", "a/../../b", "/../a", "./../a"])
def test_a_path_that_leaves_the_root_is_refused_by_name(spelling: str) -> None:
    with pytest.raises(InvalidInput, match=r'entry "' + spelling.replace(".", r"\.") + r'".*leaves the root'):
        build(f(spelling))


@pytest.mark.parametrize("spelling", ["./", "/", ".", "a/.."])
def test_an_entry_for_the_root_describes_it(spelling: str) -> None:
    root = build(d(spelling, mode=0o711, uid=3, mtime=(5, 6)))[""]
    assert (root.mode, root.uid, root.mtime, root.flags) == (0o40711, 3, (5, 6), 0)


def test_without_an_entry_the_root_is_implied() -> None:
    assert build()[""] == Record(0o40755, 0, 0, 0, (0, 0), IMPLIED, None, None, {}, frozenset([""]))


@pytest.mark.parametrize("entry", [f("./"), s("./", "a"), h("./", "a"), Entry("fifo", "/")])
def test_the_root_is_nothing_but_a_directory(entry: Entry) -> None:
    with pytest.raises(InvalidInput, match="stands for the root"):
        build(f("a"), entry)


def test_missing_parents_are_implied_until_described() -> None:
    records = build(f("a/b/c"), d("a", mode=0o700))
    assert records["a"].flags == 0 and records["a"].mode == 0o40700
    assert records["a/b"] == Record(0o40755, 0, 0, 0, (0, 0), IMPLIED, None, None, {}, frozenset(["a/b"]))


@pytest.mark.parametrize("below", [f("a"), Entry("fifo", "a"), h("a", "elsewhere")])
def test_an_entry_below_a_non_directory_is_refused(below: Entry) -> None:
    with pytest.raises(InvalidInput, match=r'entry "a/b".*not a directory'):
        build(below, f("a/b"))


def test_names_are_bytes() -> None:
    assert names(build(f("caf\udce9"), f("a\nb"))) == {"caf\udce9", "a\nb"}


# ---- limits ----


def test_names_and_paths_up_to_the_limits() -> None:
    longest = "/".join(["n" * 255] * 16)
    assert len(longest) == 4095
    assert longest in build(f(longest))
    deepest = "a/" * 2047 + "ab"
    assert len(deepest) == 4096
    assert deepest in build(f(deepest))


@pytest.mark.parametrize("path", ["a" * 256, "b/" + "a" * 256 + "/c", "a/" * 2048 + "a"])
def test_names_and_paths_over_the_limits(path: str) -> None:
    with pytest.raises(LimitExceeded):
        build(f(path))


def test_a_path_that_grows_over_the_limit_by_following() -> None:
    deep = "/".join(["n" * 250] * 16)
    assert deep + "/ab" in build(d(deep), s("l", deep), f("l/" + "ab"))
    for name in ("a" * 255, "b/" * 50 + "c"):
        with pytest.raises(LimitExceeded, match="4096 bytes"):
            build(d(deep), s("l", deep), f("l/" + name))


# ---- symlinked parents ----


@pytest.mark.parametrize(
    ("target", "lands"),
    [("usr/lib", "usr/lib/x"), ("/usr/lib", "usr/lib/x"), ("../../usr/./lib//", "usr/lib/x"),
     ("usr/bin/../lib", "usr/lib/x"), ("missing/../usr", "usr/x"), ("missing/dir", "missing/dir/x"), ("/", "x"),
     ("..", "x")],
)  # fmt: skip
def test_a_symlinked_parent_is_followed_inside_the_root(target: str, lands: str) -> None:
    records = build(d("usr/lib"), s("lib", target), f("lib/x", b"1"))
    assert lands in records and "lib/x" not in records
    assert names(records) - {"usr", "usr/lib", "lib", lands} <= {"missing", "missing/dir"}
    assert ("missing" in records) == lands.startswith("missing")


def test_a_relative_symlink_starts_from_its_own_directory() -> None:
    assert "a/c/x" in build(s("a/b", "c"), f("a/b/x"))
    assert "c/x" in build(s("a/b", "../c"), f("a/b/x"))
    assert names(build(s("a/b", "/c"), f("a/b/x"))) == {"a", "a/b", "c", "c/x"}


def test_symlinks_through_symlinks() -> None:
    assert "d/x" in build(s("a", "b/c"), s("b", "e"), s("e/c", "../d"), f("a/x"))


def test_the_last_component_is_never_followed() -> None:
    records = build(d("usr"), s("lib", "usr"), d("lib", mode=0o711), f("lib/x"))
    assert records["lib"].mode == 0o40711 and "lib/x" in records and "usr/x" not in records


def test_forty_links_are_followed_and_no_more() -> None:
    chain = [s(f"l{i}", f"l{i + 1}") for i in range(40)]
    assert "l40/x" in build(*chain, f("l0/x"))
    with pytest.raises(LimitExceeded, match="40 symbolic links"):
        build(*chain, s("l40", "end"), f("l0/x"))
    with pytest.raises(LimitExceeded, match="40 symbolic links"):
        build(s("a", "b"), s("b", "a"), f("a/x"))


def test_the_targets_followed_have_4096_bytes_together() -> None:
    half = "./" * 1023 + "bb"
    assert len(half) == 2048
    assert "c/x" in build(s("a", half), s("bb", half[:-2] + "c/"), f("a/x"))
    with pytest.raises(LimitExceeded, match="4096 bytes of them"):
        build(s("a", half), s("bb", half[:-2] + "c//"), f("a/x"))


def test_a_replaced_symlink_is_not_followed_any_more() -> None:
    records = build(s("l", "a"), f("l/x"), d("l"), f("l/y"), s("l", "b"), f("l/z"))
    assert names(records) == {"l", "a", "a/x", "b", "b/z"}


def test_the_next_path_may_share_directories_or_only_their_spelling() -> None:
    records = build(f("a/b/c/x"), f("a/bc/x"), f("a/b/x"), f("ab/x"), f("a/b/c/y"), s("l", "a/b"), f("l/z"), f("a/b/w"))
    assert {path for path in names(records) if path[-1] in "xyzw"} == {
        "a/b/c/x", "a/bc/x", "a/b/x", "ab/x", "a/b/c/y", "a/b/z", "a/b/w",
    }  # fmt: skip


# ---- replacing ----


def test_a_later_entry_replaces_an_earlier_one() -> None:
    records = build(f("a", b"1", mode=0o600), f("a", b"22", mode=0o640, uid=7))
    assert (records["a"].mode, records["a"].uid, records["a"].size, records["a"].content) == (0o100640, 7, 2, 1)
    assert build(f("a", b"1"), s("a", "b"))["a"].target == b"b"
    assert build(s("a", "b"), f("a"))["a"].mode == 0o100644


def test_a_directory_over_a_directory_keeps_the_children() -> None:
    records = build(d("a", mode=0o700, xattrs={"user.x": b"1"}), f("a/b"), d("a", mode=0o755))
    assert names(records) == {"a", "a/b"} and records["a"].mode == 0o40755 and records["a"].xattrs == {}


@pytest.mark.parametrize("over", [f("a"), s("a", "x"), h("a", "x"), Entry("fifo", "a")])
def test_anything_else_over_a_directory_drops_the_children(over: Entry) -> None:
    entries = [f("x"), d("a/b/c"), f("a/b/f"), f("a/.wh.w"), f("a/.wh..wh..opq"), over]
    assert names(build(*entries)) == {"a", "x"}
    records = build(*entries, d("a"), f("a/b"))
    assert names(records) == {"a", "a/b", "x"} and records["a"].flags == 0


def test_content_numbers_count_every_file_of_the_tar() -> None:
    index, contents = build_layer(write_tar([f("a", b"old"), f("e"), f(".wh.x", b"w"), f("a", b"new")]), KEY)
    assert contents == [(blake3(data).digest(), 3 if data != b"w" else 1) for data in (b"old", b"w", b"new")]
    records = read_index(index)
    assert records["a"].content == 2 and records["e"].content is None and records["e"].size == 0


# ---- whiteouts ----


@pytest.mark.parametrize("kind", ["file", "dir", "symlink", "hardlink", "char", "fifo"])
def test_a_whiteout_is_one_by_its_name_whatever_its_type(kind: str) -> None:
    records = build(Entry(kind, "a/.wh.b", link="q", mode=0o777, uid=4, xattrs={"user.x": b"1"}))
    assert names(records) == {"a", "a/b"}
    assert records["a/b"] == Record(0, 0, 0, 0, (0, 0), WHITEOUT, None, None, {}, frozenset(["a/b"]))


def test_an_opaque_directory() -> None:
    assert build(d("a"), f("a/.wh..wh..opq"))["a"].flags == OPAQUE
    assert build(f("a/.wh..wh..opq"))["a"].flags == OPAQUE | IMPLIED
    assert build(f("a/.wh..wh..opq"), d("a"))["a"].flags == OPAQUE
    assert build(f(".wh..wh..opq"), d("./"))[""].flags == OPAQUE
    assert names(build(f("a/.wh..wh..opq"))) == {"a"}


def test_aufs_names_are_dropped_with_what_is_below() -> None:
    records = build(
        d(".wh..wh.plnk"), f(".wh..wh.plnk/1.2", b"x"), f(".wh..wh.aufs"), f("a/.wh..wh.orph/b/c"), f(".wh..wh.")
    )
    assert names(records) == set()


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "a/.wh..", "a/.wh."])
def test_a_whiteout_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(InvalidInput, match="whiteout of no name"):
        build(f(name))


@pytest.mark.parametrize("path", [".wh.a/b", "x/.wh.a/b/c"])
def test_a_directory_with_the_name_of_a_whiteout_is_refused(path: str) -> None:
    with pytest.raises(InvalidInput, match="kept for whiteouts"):
        build(f(path))
    with pytest.raises(InvalidInput, match="kept for whiteouts"):
        build(s("l", path), f("l/x"))


def test_names_that_only_look_like_whiteouts() -> None:
    assert names(build(f(".wha"), f(".wh"), f("a.wh.b"), f(".wh.x/../y"))) == {".wha", ".wh", "a.wh.b", "y"}
    assert build(f(".wh.wh.x"))["wh.x"].flags == WHITEOUT
    assert build(f(".wh...a"))["..a"].flags == WHITEOUT


@pytest.mark.parametrize("first", [0, 1])
def test_a_whiteout_and_an_entry_of_one_path_leave_the_entry(first: int) -> None:
    def both(*entries: Entry) -> Record:
        whiteout = f(".wh.a")
        return build(*((whiteout, *entries) if first else (*entries, whiteout)))["a"]

    assert both(f("a", b"1")).flags == 0
    assert both(s("a", "x")).flags == 0
    assert both(h("a", "lower")).flags == LOWER_LINK
    assert both(d("a")).flags == OPAQUE
    assert both(f("a/b")).flags == OPAQUE | IMPLIED
    assert both(f("a"), d("a")).flags == OPAQUE
    assert both(d("a"), f("a")).flags == 0


def test_a_whiteout_is_found_through_a_symlinked_parent() -> None:
    assert build(d("usr"), s("lib", "usr"), f("lib/.wh.x"))["usr/x"].flags == WHITEOUT


# ---- hard links ----


def test_hard_links_share_the_inode_of_the_first_entry() -> None:
    records = build(
        f("a", b"1", mode=0o600, uid=5, xattrs={"user.x": b"v"}), h("b/c", "a", mode=0o777, uid=9), h("d", "b/c")
    )
    assert records["a"] == records["b/c"] == records["d"]
    assert records["a"].links == {"a", "b/c", "d"} and records["a"].content == 0
    assert (records["d"].mode, records["d"].uid, records["d"].xattrs) == (0o100600, 5, {b"user.x": b"v"})


@pytest.mark.parametrize("spelling", ["/a/f", "./a//f", "x/../a/f", "l/f", "/l/./f"])
def test_a_hard_link_target_is_cleaned_and_followed(spelling: str) -> None:
    records = build(f("a/f", b"1"), s("l", "a"), h("b", spelling))
    assert records["b"].links == {"a/f", "b"} and "x" not in records


def test_a_hard_link_to_a_symlink_shares_the_symlink() -> None:
    records = build(f("t", b"1"), s("a", "t"), h("b", "a"))
    assert records["b"] == records["a"] and records["b"].target == b"t" and records["b"].links == {"a", "b"}
    assert "t/x" in build(d("t"), s("a", "t"), h("b", "a"), f("b/x"))


@pytest.mark.parametrize("kind", ["fifo", "char", "block"])
def test_a_hard_link_to_a_special_file(kind: str) -> None:
    records = build(Entry(kind, "a", device=(4, 70000) if kind != "fifo" else (0, 0)), h("b", "a"))
    assert records["b"] == records["a"] and records["b"].size == (0 if kind == "fifo" else 4 << 32 | 70000)


def test_a_replaced_link_leaves_the_others() -> None:
    records = build(f("a", b"1"), h("b", "a"), h("c", "b"), f("b", b"2"))
    assert records["a"].links == records["c"].links == {"a", "c"} and records["b"].links == {"b"}


def test_when_the_first_link_is_replaced_the_rest_keep_the_inode() -> None:
    records = build(f("a", b"1", uid=3), h("b", "a"), h("c", "a"), d("a"))
    assert records["b"].links == {"b", "c"} and (records["c"].uid, records["c"].content) == (3, 0)
    records = build(f("x/a", b"1", uid=3), h("b", "x/a"), h("c", "b"), f("x"))
    assert records["b"].links == {"b", "c"} and records["c"].content == 0
    records = build(f(".wh.b"), f("x/a", b"1"), h("b", "x/a"), f("x"))
    assert records["b"].links == {"b"} and records["b"].content == 0


def test_a_link_keeps_the_inode_and_not_the_whiteout_of_the_first_path() -> None:
    records = build(f(".wh.a"), f("a", b"1"), h("b", "a"), f("a", b"2"))
    assert (records["b"].flags, records["b"].content, records["b"].links) == (0, 0, {"b"})


def test_a_hard_link_target_is_what_is_there_now() -> None:
    records = build(h("1", "a/b/f"), f("a/b/f", b"1"), h("2", "a/b/f"), f("a"), d("a"), h("3", "a/b/f"),
                    f("a/b/f", b"2"), h("4", "a/b/f"))  # fmt: skip
    assert [records[path].links for path in "1234"] == [{"1"}, {"2"}, {"3"}, {"4", "a/b/f"}]
    assert [records[path].target for path in "13"] == [b"a/b/f"] * 2
    replaced = build(f("a/b/f", b"1"), h("1", "a/b/f"), f("a"), d("a"), f("a/b/f", b"2"), h("2", "a/b/f"))
    assert replaced["2"].links == {"2", "a/b/f"}


def test_a_hard_link_to_what_is_not_in_the_layer_is_left_to_the_merge() -> None:
    records = build(s("l", "usr"), h("b", "./l//lib/../f"), h("c", "b"), h("d", "/usr/f"))
    for path in "bcd":
        assert records[path] == Record(0, 0, 0, 5, (0, 0), LOWER_LINK, None, b"usr/f", {}, frozenset([path]))
    assert "usr" not in records
    assert build(f(".wh.a"), h("b", "a"))["b"].target == b"a"
    assert build(h("b", "a"), f("a", b"1"))["b"].flags == LOWER_LINK


@pytest.mark.parametrize("target", ["d", "d/", "./d/../d", "/", ".", "x/..", "l/e"])
def test_a_hard_link_to_a_directory_is_refused(target: str) -> None:
    with pytest.raises(InvalidInput, match="hard link to"):
        build(d("d/e"), s("l", "d"), h("b", target))


@pytest.mark.parametrize("before", [(), (f("a", b"1"),), (f(".wh.a"),)])
@pytest.mark.parametrize("target", ["a", "./a", "l/a"])
def test_a_hard_link_to_itself_is_refused(before: tuple[Entry, ...], target: str) -> None:
    with pytest.raises(InvalidInput, match="to itself"):
        build(s("l", "/"), *before, h("a", target))


def test_a_hard_link_in_place_of_its_target_s_directory_is_refused() -> None:
    with pytest.raises(InvalidInput, match="below itself"):
        build(f("a/b/f", b"1"), h("a", "a/b/f"))


@pytest.mark.parametrize("target", ["../a", "a/../../b"])
def test_a_hard_link_target_that_leaves_the_root_is_refused(target: str) -> None:
    with pytest.raises(InvalidInput, match="leaves the root"):
        build(h("x", target))


def test_a_hard_link_target_below_a_file_is_refused() -> None:
    with pytest.raises(InvalidInput, match="not a directory"):
        build(f("a"), h("b", "a/x"))


# ---- what an entry says ----


def test_every_field_of_every_type() -> None:
    common = {
        "uid": 1 << 31,
        "gid": 70000,
        "mtime": (-5, 123456789),
        "xattrs": {"user.b": b"2", "security.a": b"\x00\xff"},
    }
    for kind, mode, size in [("file", 0o107755, 0), ("dir", 0o41777, 0), ("fifo", 0o10600, 0), ("symlink", 0o120777, 1),
                             ("char", 0o20660, 4 << 32 | 70000), ("block", 0o60660, 4 << 32 | 70000)]:  # fmt: skip
        entry = Entry(kind, "a", link="x" if kind == "symlink" else "", mode=mode & 0o7777,
                      device=(4, 70000) if size > 1 else (0, 0), **common)  # fmt: skip
        record = build(entry)["a"]
        assert record[:6] == (mode, 1 << 31, 70000, size, (-5, 123456789), 0)
        assert record.xattrs == {b"security.a": b"\x00\xff", b"user.b": b"2"}


def test_a_symlink_s_mode_is_linux_s() -> None:
    assert build(Entry("symlink", "a", link="b", mode=0o600))["a"].mode == 0o120777


def test_a_whiteout_of_the_longest_name_is_taken() -> None:
    """Its own name is longer than a file's can be, and is nothing else."""
    longest = "n" * 255
    assert build(f(f"d/.wh.{longest}"))[f"d/{longest}"].flags == WHITEOUT
    for entry in (f(f".wh.{longest}n"), f(f".wh.{longest}/f"), h("l", f".wh.{longest}"), d(f".wh..wh.{longest}")):
        with pytest.raises(LimitExceeded, match="255"):
            build(entry)


@pytest.mark.parametrize("device", [(4096, 0), (0, 1 << 20)])
def test_a_device_number_that_linux_cannot_hold_is_refused(device: tuple[int, int]) -> None:
    with pytest.raises(LimitExceeded, match="device"):
        build(Entry("char", "a", device=device))


def test_xattrs_and_their_limits() -> None:
    whole = {"user.a": b"v" * (65536 - 2 - 6 - 6)}
    assert build(f("a", xattrs=whole))["a"].xattrs == {b"user.a": whole["user.a"]}
    records = build(*(f(path, xattrs={"user.a": value}) for path, value in [("1", b"x"), ("2", b"x"), ("3", b"y")]))
    assert [records[path].xattrs[b"user.a"] for path in "123"] == [b"x", b"x", b"y"]
    with pytest.raises(LimitExceeded, match="64 KiB"):
        build(f("a", xattrs={"user.a": whole["user.a"] + b"v"}))
    with pytest.raises(LimitExceeded, match="255"):
        build(f("a", xattrs={"user." + "a" * 251: b""}))


# ---- the whole ----


def test_damaged_tars_raise_and_name_what_is_wrong() -> None:
    whole = write_tar([f("a", b"1" * 600)])
    with pytest.raises(CorruptError):
        build_layer(whole[:700], KEY)
    assert names(read_index(build_layer(b"", KEY)[0])) == set()


def test_a_wrong_key_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes"):
        build_layer(b"", b"short")


def test_the_index_depends_on_the_entries_and_the_key_alone() -> None:
    entries = [
        d("d"),
        *(f(f"d/{i % 977}/{i}", b"%d" % i, uid=i % 3, xattrs={"user.x": b"%d" % (i % 5)}) for i in range(5000)),
    ]
    tar = write_tar(entries)
    first, contents = build_layer(tar, KEY)
    assert build_layer(tar, KEY) == (first, contents)
    assert build_layer(tar, bytes(16))[0] != first
    empty = [d("d"), *(f(f"d/{i % 977}/{i}", uid=i % 3) for i in range(2000))]
    assert build_layer(write_tar(empty), KEY) == build_layer(write_tar(empty[::-1]), KEY)


def test_sparse_content_is_hashed_as_it_reads(tmp_path: Path) -> None:
    holes = {"mid": [(0, b"a" * 4096), (1 << 20, b"b" * 5000)], "end": [(8192, b"c" * 4096)], "all": []}
    for name, parts in holes.items():
        with open(tmp_path / name, "wb") as file:
            for offset, data in parts:
                file.seek(offset)
                file.write(data)
            file.truncate(3 << 20)
    for form in ("gnu", "0.0", "0.1", "1.0"):
        flags = ["--format=gnu"] if form == "gnu" else ["--format=pax", f"--sparse-version={form}"]
        tar = subprocess.run(["tar", "-C", tmp_path, *flags, "-S", "-cf", "-", *holes], capture_output=True, check=True)
        assert len(tar.stdout) < 1 << 20
        index, contents = build_layer(tar.stdout, KEY)
        assert contents == [(blake3((tmp_path / name).read_bytes()).digest(), 3 << 20) for name in holes]
        assert [read_index(index)[name].size for name in holes] == [3 << 20] * 3


# ---- hostile input ends, and soon ----


def test_replacing_a_big_directory_again_and_again_is_linear() -> None:
    big = [f(f"a/{i}") for i in range(5000)]
    again = [entry for i in range(5000) for entry in (f("a"), f(f"b/{i}"), d("a"), f("a/x"))]
    assert names(build(*big, *again)) == {"a", "a/x", "b"} | {f"b/{i}" for i in range(5000)}


def test_deep_paths_share_their_directories() -> None:
    deep = "a/" * 2000
    records = build(*[f(f"{deep}{i}") for i in range(500)])
    assert len(records) == 1 + 2000 + 500


def test_implied_directories_through_one_symlink_are_limited() -> None:
    link = s("s", "a/" * 2000)
    cycle = [f("s/x"), f("a"), d("a")]
    with pytest.raises(LimitExceeded, match="implies more directories"):
        build(link, *cycle * 100)


# ---- random layers against the model ----

PARENTS = [*["a", "b", "ab"] * 3, ".", "..", "", ".wh.a"]
NAMES = [*PARENTS, ".wh.b", ".wh..wh..opq", ".wh..wh.plnk", ".wh.", ".wh..."]
LINKS = [*["a", "b", "ab"] * 2, "..", "."]


@st.composite
def random_entries(draw: st.DrawFn) -> Entry:
    kind = draw(st.sampled_from(KINDS))
    parts = [*draw(st.lists(st.sampled_from(PARENTS), max_size=3)), draw(st.sampled_from(NAMES))]
    targets = draw(st.lists(st.sampled_from(LINKS), min_size=1, max_size=3))
    return Entry(
        kind,
        draw(st.sampled_from(["", "", "./", "/"])) + "/".join(parts) or "./",
        link=draw(st.sampled_from(["", "/", "../"])) + "/".join(targets) if kind in ("symlink", "hardlink") else "",
        data=draw(st.sampled_from([b"", b"1", b"22"])) if kind == "file" else b"",
        mode=draw(st.integers(0, 0o7777)),
        uid=draw(st.integers(0, 3)),
        gid=draw(st.integers(0, 3)),
        mtime=draw(st.tuples(st.integers(0, 9), st.integers(0, 2))),
        xattrs=draw(st.dictionaries(st.sampled_from(["user.a", "user.b"]), st.just(b"v"))),
        device=(1, 3) if kind == "char" else (0, 0),
    )


def expected(entries: list[Entry]) -> dict[str, Record] | None:
    model = Model()
    try:
        for entry in entries:
            model.add(entry)
    except Refused:
        return None
    return model.records()


def check_against_model(entries: list[Entry]) -> None:
    """The layer up to the first refused entry, then the refusal."""
    for i in range(1, len(entries) + 1):
        if expected(entries[:i]) is None:
            with pytest.raises((InvalidInput, LimitExceeded)):
                build(*entries[:i])
            entries = entries[: i - 1] + entries[i:]
            return check_against_model(entries)
    assert build(*entries) == expected(entries)
    return None


@settings(max_examples=int(os.environ.get("LAYER_EXAMPLES", "300")), deadline=None)
@given(st.lists(random_entries(), max_size=14))
def test_random_layers_are_what_the_model_says(entries: list[Entry]) -> None:
    check_against_model(entries)
