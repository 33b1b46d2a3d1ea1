"""What the benchmark of the index is built from: stacks that show the same at every depth, peers that answer alike."""

import io
import tarfile
from pathlib import Path

import pytest

from bench import many_paths, stacks
from bench.bench_index import DEPTHS, WORK, work_of
from bench.lookup_peers import Dicts, Sqlite, SqliteByLayer, SqliteByPath, tables
from layerstore._core.index import Index, merge
from layerstore._core.layer import build_layer

KEY = bytes(16)


def image() -> stacks.Entries:
    """Directories of files, some in others, and a file and a symbolic link at the top."""
    entries: stacks.Entries = {}
    for path in ("usr", "etc", *(f"usr/d{i}" for i in range(8)), *(f"usr/d{i}/sub" for i in range(3))):
        entries[path] = tarfile.TarInfo(path)
        entries[path].type, entries[path].mode = tarfile.DIRTYPE, 0o755
    for path in ("top", *(f"{directory}/f{i}" for directory in list(entries) if directory != "usr" for i in range(9))):
        entries[path] = stacks.stand_in(tarfile.TarInfo(), path)
    entries["link"] = tarfile.TarInfo("link")
    entries["link"].type, entries["link"].linkname = tarfile.SYMTYPE, "top"
    return entries


@pytest.mark.parametrize("depth", [1, 2, 12, 100])
def test_a_stack_shows_the_image_at_every_depth(depth: int, tmp_path: Path) -> None:
    entries = image()
    layers = stacks.deal(entries, depth)
    assert len(layers) == depth
    assert sum(len(layer.whiteouts) for layer in layers) >= depth - 1
    assert any(layer.opaque for layer in layers) == (depth > stacks.REMADE_EVERY)
    tars = [stacks.write_tar(layer, tmp_path / str(i)) for i, layer in enumerate(layers)]
    index = Index(merge([Index(build_layer(tar.read_bytes(), KEY)[0]) for tar in tars], KEY))
    assert {record.path.decode() for record in index} == {"", *entries}

    hits = list(entries)
    misses = [path + stacks.BACKUP for path in hits]
    stack = tables(layers)
    dicts = Dicts(stack)
    numbers = [index.record(number).layer for number in index.lookup_many([path.encode() for path in hits])]
    found = dicts.lookup_many(hits)
    assert [row and row[-1] for row in found] == numbers
    assert set(dicts.lookup_many(misses)) == {None}
    kinds: list[type[Sqlite]] = [SqliteByLayer, SqliteByPath]
    for kind in kinds:
        sqlite = kind(kind.write(tmp_path / kind.__name__, stack))
        try:
            assert sqlite.lookup_many(hits) == found
            assert set(sqlite.lookup_many(misses)) == {None}
        finally:
            sqlite.close()


def test_the_tar_of_many_paths_is_one() -> None:
    count = 2 * many_paths.SPAN_ENTRIES + 7
    data = b"".join(span.tobytes() for span in many_paths.spans(count)) + many_paths.END
    index = Index(build_layer(data, KEY)[0])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = {member.name: member.isdir() for member in tar}
    assert len(members) == count
    assert {r.path.decode() for r in index} == {"", "usr", "usr/lib", *members}
    names = [record.name for record in index][3:]
    assert {len(name) for name in names} == set(range(many_paths.SHORTEST, many_paths.LONGEST + 1))
    assert data[:4096] == next(many_paths.spans(count)).tobytes()[:4096], "made anew, it is another"


def test_a_picture_is_drawn_from_the_rows(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench import plot_index

    rows = [
        {"work": work_of(what, depth, state), "ours": 50.0, "peers": {"overlayfs": 1e3 * depth}}
        for what in ("hits", "misses")
        for depth in DEPTHS
        for state in ("warm", "cold")
    ]
    assert all(WORK.fullmatch(str(row["work"])) for row in rows)
    curves = plot_index.curves([*rows, {"work": "another", "ours": 1.0, "peers": {}}])
    assert curves["hits", "cold", "overlayfs"] == [(depth, 1e3 * depth) for depth in DEPTHS]
    assert len(curves) == 8
    plot_index.draw(rows, tmp_path / "a.svg")
    plot_index.draw(rows, tmp_path / "b.svg")
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
