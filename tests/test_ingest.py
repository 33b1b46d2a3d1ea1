"""The import of a layer by itself: digest table, new contents, tar to index and recipe (layerstore._core.ingest).

What must come out is worked out here, from the contents that went into the tar, with the blake3 package as the judge.
"""

import itertools
import mmap
import os
import resource
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tarbytes import END, archive, directory, hardlink, member, pax, sparse_01, sparse_10, sparse_old, symlink

from layerstore._core.index import Index
from layerstore._core.ingest import LOCATION_NONE, LOCATION_OBJECT, RECORD_BYTES, Contents, Digests, LayerIngest
from layerstore.errors import CorruptError, InvalidInput, LimitExceeded

blake3 = pytest.importorskip("blake3").blake3

KEY = bytes(range(16))
THRESHOLD = 65536
RAW_FRAME = 65536
PACK = 7
SLOT = struct.Struct("<QQ32s")
RECORD = struct.Struct("<32sQII")
FOOTER = struct.Struct("<8sIIQ32s8s")
EXTENT = struct.Struct("<QQ")

Extents = list[tuple[int, int]]


def digest(data: bytes) -> bytes:
    return blake3(data).digest()


def noise(seed: int, size: int) -> bytes:
    return blake3(b"%d" % seed).digest(size)


# What an import gives


@dataclass
class Place:
    """A staging directory, an objects directory and a pack of their own."""

    path: Path
    fds: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.staging, self.objects, self.pack = (self.path / name for name in ("staging", "objects", "pack"))
        self.staging.mkdir(parents=True)
        self.objects.mkdir()
        self.staging_fd = self._open(self.staging, os.O_RDONLY | os.O_DIRECTORY)
        self.objects_fd = self._open(self.objects, os.O_RDONLY | os.O_DIRECTORY)
        self.pack_fd = self._open(self.pack, os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def _open(self, path: Path, flags: int) -> int:
        self.fds.append(os.open(path, flags | os.O_CLOEXEC, 0o600))
        return self.fds[-1]

    def contents(self, digests: Digests, threshold: int = THRESHOLD) -> Contents:
        return Contents(self.staging_fd, self.pack_fd, digests, threshold)

    def stored_objects(self) -> dict[str, bytes]:
        return {path.parent.name + path.name: path.read_bytes() for path in self.objects.glob("*/*")}


class Places:
    def __init__(self, path: Path) -> None:
        self._path = path
        self._made: list[Place] = []

    def __call__(self) -> Place:
        self._made.append(Place(self._path / str(len(self._made))))
        return self._made[-1]

    def close(self) -> None:
        for place in self._made:
            for fd in place.fds:
                os.close(fd)


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Places]:
    made = Places(tmp_path)
    yield made
    made.close()


def table(records: bytes = b"") -> Digests:
    return Digests(records, len(records) // RECORD_BYTES)


@dataclass
class Result:
    index: bytes
    recipe: bytes
    records: bytes
    slots: bytes
    pack: bytes
    objects: dict[str, bytes]
    counts: tuple[int, int, int, int]


def ingest(place: Place, spans: list[bytes], known: bytes = b"", threshold: int = THRESHOLD) -> Result:
    contents = place.contents(table(known), threshold)
    layer = LayerIngest(contents)
    recipe = b"".join(layer.feed(span) for span in spans) + layer.finish()
    index = layer.index(KEY)
    contents.publish(place.objects_fd, PACK)
    slots, pack_bytes = contents.slots()
    assert pack_bytes % 512 == 0
    assert list(place.staging.iterdir()) == []
    return Result(
        index,
        recipe,
        contents.records(),
        slots,
        place.pack.read_bytes(),
        place.stored_objects(),
        contents.counts,
    )


def cut(data: bytes, at: list[int]) -> list[bytes]:
    ends = [0, *sorted({i % len(data) for i in at} - {0}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(ends)]


# What it must give


def expected_pack(contents: list[bytes], threshold: int = THRESHOLD) -> tuple[bytes, bytes]:
    """The pack and its slots: small contents, each once, in the order of the tar (docs/format/pack.md)."""
    body, slots = bytearray(), b""
    for data in dict.fromkeys(contents):
        if len(data) <= threshold:
            slots += SLOT.pack(len(body), len(data), digest(data))
            body += data + bytes(-len(data) % 512)
    footer = FOOTER.pack(b"LSPACK\n\0", 1, len(slots) // SLOT.size, len(body), digest(slots), bytes(8))[:-8]
    return bytes(body) + slots + footer + digest(footer)[:8], slots


def expected_records(contents: list[bytes], threshold: int = THRESHOLD) -> bytes:
    records, slot = b"", 0
    for data in dict.fromkeys(contents):
        if len(data) <= threshold:
            records += RECORD.pack(digest(data), len(data), PACK, slot)
            slot += 1
        else:
            records += RECORD.pack(digest(data), len(data), LOCATION_OBJECT, 0)
    return records


def replay(recipe: bytes, contents: list[bytes]) -> bytes:
    """The tar again, from the recipe (docs/format/recipe.md)."""
    at, out, left = 0, b"", list(contents)
    raw_before = -1
    while at < len(recipe):
        kind, at = recipe[at], at + 1
        if kind == 0:
            assert raw_before in (-1, RAW_FRAME), "a raw frame follows one that is not full"
            (raw_before,) = struct.unpack_from("<I", recipe, at)
            assert 0 < raw_before <= RAW_FRAME
            out += recipe[at + 4 : at + 4 + raw_before]
            at += 4 + raw_before
            continue
        raw_before = -1
        data = left.pop(0)
        if kind == 1:
            out += data
        else:
            assert kind == 2
            (count,) = struct.unpack_from("<I", recipe, at)
            extents = EXTENT.iter_unpack(recipe[at + 4 : at + 4 + count * EXTENT.size])
            out += b"".join(data[offset : offset + length] for offset, length in extents)
            at += 4 + count * EXTENT.size
    assert not left
    return out


def check(result: Result, tar: bytes, contents: list[bytes], threshold: int = THRESHOLD) -> None:
    """`contents`: those of the tar's files that are not empty, in its order."""
    index = Index(result.index)
    index.verify()
    assert [index.content(i) for i in range(len(contents))] == [(digest(data), len(data)) for data in contents]
    pack, slots = expected_pack(contents, threshold)
    assert result.slots == slots
    assert result.pack == pack
    assert result.records == expected_records(contents, threshold)
    large = {data for data in contents if len(data) > threshold}
    assert result.objects == {digest(data).hex(): data for data in large}
    new = set(contents)
    assert result.counts[:2] == (len(new), sum(map(len, new)))
    assert result.counts[2:] == (len(contents) - len(new), sum(map(len, contents)) - sum(map(len, new)))
    assert replay(result.recipe, contents) == tar


def holed(size: int, extents: Extents, data: bytes) -> bytes:
    out = bytearray(size)
    for offset, length in extents:
        out[offset : offset + length] = data[:length]
        data = data[length:]
    return bytes(out)


def mixed() -> tuple[bytes, list[bytes]]:
    """A tar with every way of a content to come in, and its contents."""
    small, edge, large = noise(1, 700), noise(2, THRESHOLD), noise(3, THRESHOLD + 1)
    few = [(512, 100), (3000, 50)]
    many = [(4096 * i, 16) for i in range(1, 30)]
    wide = [(1 << 20, 300)]
    parts = [
        (directory(b"d/"), None),
        (member(b"d/small", small), small),
        (member(b"d/again", small), small),
        (member(b"empty"), None),
        (sparse_old(b"few", few, 4000, noise(4, 150)), holed(4000, few, noise(4, 150))),
        (member(b"one", b"1"), b"1"),
        (member(b"d/edge", edge), edge),
        (sparse_10(b"many", many, 200_000, noise(5, 29 * 16)), holed(200_000, many, noise(5, 29 * 16))),
        (member(b"two", b"2" * 512), b"2" * 512),
        (member(b"large", large), large),
        (sparse_01(b"hole", [], 90_000, b""), bytes(90_000)),
        (sparse_01(b"little hole", [], 900, b""), bytes(900)),
        (hardlink(b"link", b"large"), None),
        (symlink(b"sym", b"d"), None),
        (pax({b"SCHILY.xattr.user.x": b"v"}) + member(b"three", b"3" * 513), b"3" * 513),
        (sparse_old(b"wide", wide, 1 << 21, noise(6, 300)), holed(1 << 21, wide, noise(6, 300))),
        (member(b"large again", large), large),
        (member(b"last", noise(7, 511)), noise(7, 511)),
    ]
    tar = b"".join(part for part, _ in parts) + END + noise(8, 2 * RAW_FRAME + 77)
    return tar, [data for _, data in parts if data is not None]


MIXED, MIXED_CONTENTS = mixed()


# How the tar is cut does not matter


def test_a_tar_in_one_span(places: Places) -> None:
    check(ingest(places(), [MIXED]), MIXED, MIXED_CONTENTS)


@pytest.mark.parametrize("size", [1, 7, 511, 512, 513, 65536, 100_000])
def test_spans_of_one_size(places: Places, size: int) -> None:
    result = ingest(places(), [MIXED[i : i + size] for i in range(0, len(MIXED), size)])
    check(result, MIXED, MIXED_CONTENTS)
    assert result == ingest(places(), [MIXED])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    at=st.lists(st.integers(0, len(MIXED)), max_size=12), threshold=st.sampled_from([0, 1, 512, 700, 65536, 1 << 22])
)
def test_spans_cut_anywhere(places: Places, at: list[int], threshold: int) -> None:
    check(ingest(places(), cut(MIXED, at), threshold=threshold), MIXED, MIXED_CONTENTS, threshold)


def test_more_contents_than_one_batch(places: Places) -> None:
    contents = [b"%d" % (i % 3000) for i in range(5000)]
    tar = archive(*(member(b"%d" % i, data) for i, data in enumerate(contents)))
    check(ingest(places(), [tar]), tar, contents)


@pytest.mark.parametrize("size", [THRESHOLD - 1, THRESHOLD, THRESHOLD + 1])
@pytest.mark.parametrize("cut_at", [[], [512 + 1], [512 + THRESHOLD - 1]])
def test_contents_up_to_the_threshold_go_to_the_pack(places: Places, size: int, cut_at: list[int]) -> None:
    data = noise(1, size)
    tar = archive(member(b"f", data))
    result = ingest(places(), cut(tar, cut_at))
    check(result, tar, [data])
    assert bool(result.slots) == (size <= THRESHOLD)


def test_an_empty_tar(places: Places) -> None:
    check(ingest(places(), [END]), END, [])
    check(ingest(places(), []), b"", [])


def test_several_layers_share_what_is_new(places: Places) -> None:
    place = places()
    contents = place.contents(table())
    for data in (b"a", b"b", b"a"):
        layer = LayerIngest(contents)
        layer.feed(archive(member(b"f", data)))
        layer.finish()
        assert Index(layer.index(KEY)).content(0) == (digest(data), 1)
    contents.publish(place.objects_fd, PACK)
    assert contents.records() == expected_records([b"a", b"b"])
    assert contents.counts == (2, 2, 1, 1)


# What is known is not written


def test_known_contents_are_not_written(places: Places) -> None:
    known = expected_records(MIXED_CONTENTS)
    for spans in ([MIXED], [MIXED[i : i + 1000] for i in range(0, len(MIXED), 1000)]):
        result = ingest(places(), spans, known)
        assert result.records == result.slots == b""
        assert result.objects == {}
        assert result.pack == expected_pack([])[0]
        assert result.counts == (0, 0, len(MIXED_CONTENTS), sum(map(len, MIXED_CONTENTS)))


def test_some_known_contents(places: Places) -> None:
    known = MIXED_CONTENTS[::2]
    result = ingest(places(), [MIXED], expected_records(known))
    rest = [data for data in MIXED_CONTENTS if data not in known]
    assert result.pack == expected_pack(rest)[0]
    assert result.records == expected_records(rest)


# Limits


def test_holes_of_a_layer_are_bounded(places: Places) -> None:
    layer = LayerIngest(places().contents(table()))
    layer.feed(sparse_01(b"fine", [], 1 << 20, b""))
    with pytest.raises(LimitExceeded, match="too much"):
        layer.feed(sparse_01(b"too much", [], (64 << 30) - (1 << 20) + 1, b""))


def test_holes_beyond_64_bits_in_all(places: Places) -> None:
    layer = LayerIngest(places().contents(table()), file_bytes=2**64 - 1)
    layer.feed(sparse_01(b"fine", [], 1 << 20, b""))
    with pytest.raises(LimitExceeded, match="too much"):
        layer.feed(sparse_01(b"too much", [], 2**64 - 1, b""))


@pytest.mark.parametrize("number", [LOCATION_OBJECT, LOCATION_NONE])
def test_a_pack_number_that_means_something_else(places: Places, number: int) -> None:
    place = places()
    with pytest.raises(LimitExceeded, match="number"):
        place.contents(table()).publish(place.objects_fd, number)


@pytest.mark.parametrize("number", [-1, 2**32])
def test_a_pack_number_of_more_than_32_bits(places: Places, number: int) -> None:
    place = places()
    with pytest.raises(OverflowError):
        place.contents(table()).publish(place.objects_fd, number)


# Errors


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Writes past `size` fail with EFBIG, as Python ignores SIGXFSZ."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


BIG = noise(9, 300_000)
FULL_DISK = {
    "pack": [archive(*(member(b"%d" % i, noise(i, 30_000)) for i in range(10)))],
    "object": [archive(member(b"f", BIG))],
    "stream": cut(archive(member(b"f", BIG)), [1000, 200_000]),
    "sparse": [archive(sparse_01(b"f", [(250_000, 512)], 250_512, noise(1, 512)))],
    "hole": [archive(sparse_01(b"f", [], 250_000, b""))],
}


def fill_disk(place: Place, spans: list[bytes]) -> None:
    contents = place.contents(table())
    layer = LayerIngest(contents)
    with file_size_limit(100_000), pytest.raises(OSError):
        for span in spans:
            layer.feed(span)
    for call in (
        lambda: layer.feed(b"x"),
        layer.finish,
        lambda: layer.index(KEY),
        lambda: LayerIngest(contents).feed(END),
        lambda: contents.publish(place.objects_fd, PACK),
    ):
        with pytest.raises(InvalidInput):
            call()


@pytest.mark.parametrize("name", FULL_DISK)
def test_a_full_disk(places: Places, name: str) -> None:
    place = places()
    fds = open_fds()
    fill_disk(place, FULL_DISK[name])
    assert place.pack.stat().st_size <= 100_000
    assert open_fds() == fds


def test_a_full_disk_at_the_end(places: Places) -> None:
    place = places()
    contents = place.contents(table())
    LayerIngest(contents).feed(archive(member(b"f", noise(1, 512))))
    with file_size_limit(600), pytest.raises(OSError):
        contents.publish(place.objects_fd, PACK)
    with pytest.raises(InvalidInput):
        contents.publish(place.objects_fd, PACK)


def test_a_damaged_tar_makes_the_import_void(places: Places) -> None:
    contents = places().contents(table())
    layer = LayerIngest(contents)
    with pytest.raises(CorruptError):
        layer.feed(member(b"f", b"data") + b"x" * 512)
    with pytest.raises(InvalidInput):
        layer.feed(END)
    with pytest.raises(InvalidInput):
        LayerIngest(contents).feed(END)


@pytest.mark.parametrize("size", [10, 100_000])
def test_a_tar_that_stops_inside_a_content(places: Places, size: int) -> None:
    layer = LayerIngest(places().contents(table()))
    layer.feed(member(b"f", noise(1, size))[: 512 + size - 1])
    with pytest.raises(CorruptError, match="ends 1 bytes before"):
        layer.finish()


def test_a_layer_given_up_inside_a_content(places: Places) -> None:
    place = places()
    fds = open_fds()
    contents = place.contents(table())
    for _ in range(3):
        LayerIngest(contents).feed(member(b"f", BIG)[:200_000])
    layer = LayerIngest(contents)
    for span in cut(archive(member(b"f", BIG)), [150_000]):
        layer.feed(span)
    layer.finish()
    contents.publish(place.objects_fd, PACK)
    assert place.stored_objects() == {digest(BIG).hex(): BIG}
    assert list(place.staging.iterdir()) == []
    del layer, contents
    assert open_fds() == fds


def test_an_import_that_failed_touches_nothing_later(places: Places, tmp_path: Path) -> None:
    """What keeps it may keep it until the number of its descriptor is that of another directory."""
    place = places()
    contents = place.contents(table())

    def pieces() -> Iterator[bytes]:
        yield BIG
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        contents.put_pieces(pieces())
    (name,) = (path.name for path in place.staging.iterdir())
    other = tmp_path / "other"
    other.mkdir()
    (other / name).write_bytes(b"of another import")
    fd = os.open(other, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    os.dup2(fd, place.staging_fd, inheritable=False)
    os.close(fd)
    del contents
    assert (other / name).read_bytes() == b"of another import"


def test_calls_out_of_order(places: Places) -> None:
    place = places()
    contents = place.contents(table())
    layer = LayerIngest(contents)
    with pytest.raises(InvalidInput, match="after finish"):
        layer.index(KEY)
    layer.feed(END)
    layer.finish()
    for call in (lambda: layer.feed(END), layer.finish):
        with pytest.raises(InvalidInput, match="ended"):
            call()
    layer.index(KEY)
    with pytest.raises(InvalidInput, match="once"):
        layer.index(KEY)
    contents.publish(place.objects_fd, PACK)
    with pytest.raises(InvalidInput, match="published"):
        contents.publish(place.objects_fd, PACK)
    with pytest.raises(InvalidInput, match="published"):
        LayerIngest(contents).feed(END)


# The digest table


def records_of(digests: list[bytes]) -> bytes:
    return b"".join(RECORD.pack(name, 1, i, i + 1) for i, name in enumerate(digests))


def located(found: Digests, digests: list[bytes]) -> list[tuple[int, int]]:
    return list(struct.iter_unpack("<II", found.locate_many(b"".join(digests), 32)))


def test_digests_are_found() -> None:
    names = [digest(b"%d" % i) for i in range(10_000)]
    absent = [digest(b"no %d" % i) for i in range(1000)]
    found = table(records_of(names))
    assert len(found) == len(names)
    assert located(found, names) == [(i, i + 1) for i in range(len(names))]
    assert located(found, absent) == [(LOCATION_NONE, 0)] * len(absent)
    assert located(table(), absent) == [(LOCATION_NONE, 0)] * len(absent)


def test_records_are_numbered_and_marked() -> None:
    names = [digest(b"%d" % i) for i in range(5000)]
    again = [*names, *names[100:200]]
    absent = [digest(b"no %d" % i) for i in range(50)]
    found = table(records_of(again))
    asked = [*names[:300], *absent, names[4000]]
    expected = [*range(100), *range(5000, 5100), *range(200, 300), *[2**32 - 1] * len(absent), 4000]
    assert list(array("I", found.number_many(b"".join(asked), 32))) == expected
    # A stride leaves out what stands between.
    assert list(array("I", found.number_many(b"".join(name + b"size    " for name in asked), 40))) == expected
    marks = bytearray(len(again))
    first = [n for n, number in enumerate(expected) if number < 2**31 and number not in expected[:n]]
    assert list(array("I", found.mark_many(b"".join(asked), 32, marks))) == first
    assert {number for number, mark in enumerate(marks) if mark} == {number for number in expected if number < 2**31}
    # What is marked already is not told again.
    assert list(array("I", found.mark_many(b"".join([names[0], names[4001], names[4001]]), 32, marks))) == [1]
    assert table().mark_many(b"".join(absent), 32, bytearray()) == b""
    with pytest.raises(InvalidInput, match="cannot be marked in 5099 bytes"):
        found.mark_many(b"".join(asked), 32, bytearray(5099))


@pytest.mark.parametrize("first", [0, 1, 2048, 2049, 5000])
def test_a_table_over_a_log_that_grew(first: int) -> None:
    names = [digest(b"%d" % i) for i in range(5000)]
    log = records_of(names)
    grown = Digests(log, len(names), Digests(log, first))
    assert located(grown, names) == [(i, i + 1) for i in range(len(names))]


def test_the_last_record_of_a_digest_holds() -> None:
    name = digest(b"x")
    assert located(table(records_of([name, digest(b"y"), name])), [name]) == [(2, 3)]


def test_digests_that_agree_in_part_do_not_collide() -> None:
    """Whoever can afford to look for contents whose digests begin alike must not make the table slow."""

    def seconds(names: list[bytes]) -> float:
        log = records_of(names)
        begin = time.process_time()
        assert len(table(log)) == len(names)
        return time.process_time() - begin

    count = 1 << 16
    alike = [(i << 48).to_bytes(8, "little") + digest(b"%d" % i)[8:] for i in range(count)]
    assert seconds(alike) < 20 * seconds([digest(b"%d" % i) for i in range(count)]) + 0.2


def test_logs_that_are_too_short_or_misplaced() -> None:
    for count in (-1, 2, 2**62):
        with pytest.raises(InvalidInput, match="1 records"):
            Digests(bytes(RECORD_BYTES), count)
    with pytest.raises(InvalidInput, match="multiple of 8"):
        Digests(memoryview(bytes(RECORD_BYTES + 1))[1:], 1)
    with pytest.raises(InvalidInput, match="stride"):
        table().locate_many(b"", 31)


@pytest.mark.parametrize("count", [2**30 + 1, 2**32, 2**32 + 1])
def test_more_records_than_a_table_takes(tmp_path: Path, count: int) -> None:
    path = tmp_path / "log"
    with open(path, "w+b") as file:
        file.truncate(count * RECORD_BYTES)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as log, pytest.raises(LimitExceeded):
            Digests(log, count)
