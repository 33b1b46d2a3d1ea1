"""Sides of a sync that lie, do not end, or send what would be too much."""

import contextlib
import io
import json
import os
import random
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import tarbytes as tb
from cases import case
from hostile import Place, raises
from images import Image, digest_of, docker_files, store_state, tar_of
from meddling import Meddling
from registries import manifest_of

from layerstore import Store
from layerstore._core.hashing import blake3
from layerstore.cold.encoding import Item
from layerstore.errors import CorruptError, DigestMismatch, InvalidInput, LayerstoreError, LimitExceeded, SyncError
from layerstore.layers.blob_streams import decompressed
from layerstore.limits import DEFAULT
from layerstore.store import zstd
from layerstore.store.cold_packs import FOOTER, FRAME, LIST, MAGIC, SLOT, STORED, VERSION, WHOLE, ZSTD
from layerstore.sync import arrived, receiving, sending
from layerstore.sync import channel as channels
from layerstore.sync.channel import Channel, Kind

SECRET = (b"what only the other side has\n" * 200)[:3000]
SMALL = random.Random("small").randbytes(3000)
OTHER = random.Random("other").randbytes(5000)
LARGE = random.Random("large").randbytes(1_500_000)
LAYER = tb.archive(tb.member(b"small", SMALL), tb.member(b"other", OTHER), tb.member(b"large", LARGE))
IMAGE = Image([LAYER], ["app:1"])
TABLE = [(blake3(content), len(content)) for content in (SMALL, OTHER, LARGE)]

Payload = Callable[[Kind, bytes], bytes | None]


@pytest.fixture(scope="module")
def sender(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """The store that is to be synced from."""
    with Store(tmp_path_factory.mktemp("sender") / "store", create=True) as made:
        made.load(io.BytesIO(tar_of(docker_files([IMAGE]))))
        yield made


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    made = Place(tmp_path_factory.mktemp("hostile") / "top")
    secret = Image([tb.archive(tb.member(b"secret", SECRET))], ["secret:1"])
    made.store.load(io.BytesIO(tar_of(docker_files([secret]))))
    yield made
    made.store.close()


def refuses(place: Place, sender: Store, error: type[Exception], told: str) -> None:
    """The store refuses what the sender sends."""
    with place.untouched():
        raises(lambda: sender.sync("app:1", place.store.root), error, told)
        forget_downloads(place)


def forget_downloads(place: Place) -> None:
    downloads = place.store.root / "downloads"
    for name in os.listdir(downloads) if downloads.is_dir() else []:
        (downloads / name).unlink()
    if downloads.is_dir():
        downloads.rmdir()


def test_nothing_is_wrong_with_the_image(place: Place, sender: Store) -> None:
    sender.sync("app:1", place.store.root)
    assert b"".join(place.store.image("app:1").layer_tar(IMAGE.diff_ids[0])) == LAYER
    place.drop("app:1")
    forget_downloads(place)
    place.changed()


# What is said


@contextlib.contextmanager
def tampered(change: Payload) -> Iterator[None]:
    """In the block the side that sends says something else: what `change` makes of its messages, nothing for None."""
    send = Channel.send

    def changed(self: Channel, kind: Kind, payload: Any = b"") -> None:
        if self.other == "the side that sends":
            send(self, kind, payload)
        elif (made := change(kind, bytes(payload))) is not None:
            send(self, kind, made)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Channel, "send", changed)
        yield


def says(name: str, kind: Kind, made: Any, error: type[Exception], told: str) -> Any:
    """Of a message `made` is: its bytes, fields that it has otherwise, or what makes the bytes of what it was."""

    def change(each: Kind, payload: bytes) -> bytes:
        if each != kind:
            return payload
        if isinstance(made, dict):
            return json.dumps(json.loads(payload) | made).encode()
        found: bytes = made(payload) if callable(made) else made
        return found

    return pytest.param(change, error, told, id=name, marks=case(name, "refused"))


def renamed(payload: bytes) -> bytes:
    return payload.replace(b"app:1", b"/etc/x")


SAID = [
    says("an image that is no JSON", Kind.IMAGE, b"{", SyncError, "no JSON"),
    says("an image of a list", Kind.IMAGE, b"[1]", SyncError, "no JSON object"),
    says("lists in lists without end", Kind.IMAGE, b"[" * 500_000, SyncError, "no JSON"),
    says("names that are no list", Kind.IMAGE, {"names": "app:1"}, SyncError, "no list of names"),
    says("a name that is a path", Kind.IMAGE, renamed, InvalidInput, "not a valid image name"),
    says("an image without blobs", Kind.IMAGE, {"blobs": []}, SyncError, "list of its blobs"),
    says("a blob of less than no bytes", Kind.IMAGE, {"blobs": [[IMAGE.id, -1]]}, SyncError, "blobs and their sizes"),
    says("a blob of a path", Kind.IMAGE, {"blobs": [["../../x", 5]]}, InvalidInput, "digest of a blob"),
    says("a config of 2^40 bytes", Kind.IMAGE, {"blobs": [[IMAGE.id, 1 << 40]]}, LimitExceeded, "metadata_bytes"),
    says(
        "a blob twice",
        Kind.IMAGE,
        {"blobs": [[IMAGE.id, len(IMAGE.config)], [IMAGE.id, len(IMAGE.config)]]},
        SyncError,
        "a blob twice",
    ),
    says("a config that is changed on the way", Kind.DATA, b"x" * len(IMAGE.config), DigestMismatch, "was promised"),
    says("more of a config than was promised", Kind.DATA, lambda data: data + b"x", SyncError, "were to come"),
    says("layers offered in odd bytes", Kind.OFFER, b"x" * 33, SyncError, "33 bytes"),
    says(
        "a layer that differs from one that is not here",
        Kind.LAYER,
        {"like": "sha256:" + "0" * 64},
        SyncError,
        "not here",
    ),
    says("a layer that differs from an object", Kind.LAYER, {"like": {}}, SyncError, "not here"),
    says("a layer that differs from a path", Kind.LAYER, {"like": "../../etc/passwd"}, SyncError, "not here"),
    says("a table of 2^50 bytes", Kind.LAYER, {"table": [100, 1 << 50]}, LimitExceeded, "index_bytes"),
    says("a table of 2^50 bytes on the way", Kind.LAYER, {"table": [1 << 50, 120]}, LimitExceeded, "index_bytes"),
    says("a table that becomes 1 GB", Kind.LAYER, {"table": [100, 1 << 30]}, LimitExceeded, "index_ratio"),
    says("a recipe of 2^50 bytes", Kind.LAYER, {"recipe": [1 << 50, 0]}, LimitExceeded, "index_bytes"),
    says("a table of more than it has", Kind.LAYER, lambda said: resized(said, 160), CorruptError, "160 bytes"),
    says("a table of less than it has", Kind.LAYER, lambda said: resized(said, 80), CorruptError, "80 bytes"),
    says("sizes of text", Kind.LAYER, {"table": ["1", "2"]}, SyncError, "for sizes"),
    says("a size that is true", Kind.LAYER, {"table": [True, 120]}, SyncError, "for sizes"),
    says("a pack that is larger than its contents", Kind.PACK, {"bytes": 1 << 40}, SyncError, "are enough"),
    says("no pack at all", Kind.PACK, {"bytes": 0}, CorruptError, "did not come"),
    says("a pack that is named by a path", Kind.PACK, {"digest": "../" * 21 + "x"}, SyncError, "without digests"),
    says("a pack of another digest", Kind.PACK, {"digest": "0" * 64}, CorruptError, "another digest"),
    says("chunks of 1 byte", Kind.PACK, {"chunks": [1, 1, 1]}, SyncError, r"cuts chunks of \[1, 1, 1\]"),
    says("chunks of no numbers", Kind.PACK, {"chunks": [None, [], {}]}, SyncError, "cuts chunks"),
    says("chunks of 2,000 contents", Kind.PACK, {"sources": ["0" * 64] * 2000}, SyncError, "without digests"),
    says("a pack from behind its end", Kind.FROM, {"at": 1 << 40}, SyncError, "goes on from byte"),
    says("a pack from what is not there", Kind.FROM, {"at": 5}, SyncError, "goes on from byte 5"),
    says("a pack from text", Kind.FROM, {"at": "0"}, SyncError, "goes on from byte '0'"),
]


def resized(said: bytes, size: int) -> bytes:
    document = json.loads(said)
    document["table"][1] = size
    return json.dumps(document).encode()


@pytest.mark.parametrize(("change", "error", "told"), SAID)
def test_what_is_said_is_refused(
    place: Place, sender: Store, change: Payload, error: type[Exception], told: str
) -> None:
    with tampered(change):
        refuses(place, sender, error, told)


def is_described(name: str, manifest: bytes, error: type[Exception], told: str, digest: str = "") -> Any:
    return pytest.param(manifest, digest or digest_of(manifest), error, told, id=name, marks=case(name, "refused"))


MANIFEST = manifest_of(IMAGE)
MANIFESTS = [
    is_described(
        "a manifest that is changed on the way",
        b"{}",
        DigestMismatch,
        "was promised",
        digest_of(json.dumps(MANIFEST).encode()),
    ),
    is_described("a manifest that is no JSON", b"{", InvalidInput, "not JSON"),
    is_described("a manifest of nothing", b"{}", InvalidInput, "neither an image manifest nor an index"),
    is_described(
        "a manifest of another image",
        json.dumps(manifest_of(Image([LAYER], document={"created": "2020-01-01T00:00:00Z"}))).encode(),
        InvalidInput,
        "of another image",
    ),
    is_described(
        "a manifest that is an index, too",
        json.dumps(MANIFEST | {"manifests": []}).encode(),
        InvalidInput,
        "both an index",
    ),
    is_described("a manifest of 5 MiB", b" " * (5 << 20), LimitExceeded, "manifest_bytes"),
]


@pytest.mark.parametrize(("manifest", "digest", "error", "told"), MANIFESTS)
def test_a_manifest_is_refused(
    place: Place,
    sender: Store,
    monkeypatch: pytest.MonkeyPatch,
    manifest: bytes,
    digest: str,
    error: type[Exception],
    told: str,
) -> None:
    def describe(self: Any, _: object) -> None:
        blobs = [[IMAGE.id, len(IMAGE.config)], [digest, len(manifest)]]
        self._channel.say(Kind.IMAGE, {"names": [], "blobs": blobs})
        self._channel.send_data([IMAGE.config, manifest])
        self._channel.receive()

    monkeypatch.setattr(sending._Sending, "_describe", describe)
    refuses(place, sender, error, told)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        pytest.param(b"\x01\xff\xff\xff\xff", "4294967295 bytes", marks=case("a message of 4 GiB", "refused")),
        pytest.param(b"\x63\0\0\0\0", "kind 99", marks=case("a message of no kind", "refused")),
        pytest.param(b"\x23\0\0\0\0", "HELD", marks=case("what the other side says", "refused")),
        pytest.param(b"\x06\0\0\0\0", "FROM", marks=case("the last message first", "refused")),
    ],
)
def test_messages_are_refused(place: Place, data: bytes, told: str) -> None:
    with place.untouched():
        assert told in answered(place, channels.GREETING + data)


@pytest.mark.parametrize(
    "greeting",
    [
        pytest.param(b"layerstore sync 2\n", marks=case("another version", "refused")),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", marks=case("another protocol", "refused")),
    ],
)
def test_greetings_are_refused(place: Place, greeting: bytes) -> None:
    with place.untouched():
        assert "have the same version of it there" in answered(place, greeting)


def answered(place: Place, said: bytes) -> str:
    """What the store answers to what is said, as text."""
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as answers:
        file.write(said)
        file.seek(0)
        place.store.receive(os.dup(file.fileno()), os.dup(answers.fileno()))
        answers.seek(0)
        return answers.read().decode(errors="replace")


@pytest.mark.parametrize("count", range(9))
def test_a_sender_that_ends(place: Place, sender: Store, count: int) -> None:
    """After each of its messages."""
    seen = 0

    def change(kind: Kind, payload: bytes) -> bytes:
        nonlocal seen
        seen += 1
        if seen > count:
            raise SyncError("ends")
        return payload

    with tampered(change):
        refuses(place, sender, SyncError, "ends")


def test_an_error_that_is_none(place: Place, sender: Store) -> None:
    with place.untouched():
        for said in (
            b"x",
            b"[]",
            b'{"error":[],"message":{},"errno":"x"}',
            b'{"error":"object","message":"m","errno":null}',
        ):
            answer = answered(place, channels.GREETING + struct.pack("<BI", Kind.ERROR, len(said)) + said)
            assert "SyncError" in answer


# Layers


def frames_of(layer: bytes) -> bytes:
    """The recipe of a layer, as it should be."""
    with tempfile.TemporaryDirectory() as top, Store(f"{top}/store", create=True) as store:
        store.load(io.BytesIO(tar_of(docker_files([Image([layer])]))))
        (path,) = (store.root / "layers").glob("*.recipe")
        return b"".join(decompressed([path.read_bytes()], "zstd"))


FRAMES = frames_of(LAYER)
RAW, CONTENT, SPARSE = 0, 1, 2


def raw(data: bytes) -> bytes:
    return bytes([RAW]) + struct.pack("<I", len(data)) + data


def sparse(*extents: tuple[int, int]) -> bytes:
    return bytes([SPARSE]) + struct.pack("<I", len(extents)) + b"".join(struct.pack("<QQ", *each) for each in extents)


def comes(
    name: str,
    error: type[Exception],
    told: str,
    table: Sequence[tuple[bytes, int]] = TABLE,
    frames: bytes | Callable[[], bytes] = FRAMES,
) -> Any:
    return pytest.param(table, frames, error, told, id=name, marks=case(name, "refused"))


def bomb() -> bytes:
    return zstd.compress(raw(bytes(1 << 30)) + raw(bytes(256 << 20)), 1)


LAYERS = [
    comes("a content of the other side's", DigestMismatch, "has diff_id", [(blake3(SECRET), len(SECRET)), *TABLE[1:]]),
    comes("contents in another order", CorruptError, "tar header", [TABLE[1], TABLE[0], TABLE[2]]),
    comes("an empty content", CorruptError, "said to be empty", [(TABLE[0][0], 0), *TABLE[1:]]),
    comes("a content of 2^50 bytes", LimitExceeded, "file_bytes", [(TABLE[0][0], 1 << 50), *TABLE[1:]]),
    comes("contents of 2^40 bytes", LimitExceeded, "layer_bytes", [(bytes([n]) * 32, 1 << 39) for n in range(3)]),
    comes("a content of two sizes", CorruptError, "is said to have", [*TABLE, (TABLE[0][0], 5)]),
    comes("a content with another size than it has", CorruptError, "has 3000 bytes", [(TABLE[0][0], 30), *TABLE[1:]]),
    comes(
        "a content of the other side's with another size",
        CorruptError,
        "another size",
        [(blake3(SECRET), 5), *TABLE[1:]],
    ),
    comes("a table of too few contents", CorruptError, "wants more than the 2 contents", TABLE[:2]),
    comes("a recipe that is cut off", CorruptError, "is cut off", frames=raw(b"x" * 600)[:-90]),
    comes("a recipe with a frame of no kind", CorruptError, "unknown kind 9", frames=b"\x09" + FRAMES),
    comes("a recipe of no frames", DigestMismatch, "has diff_id", frames=b""),
    comes("a recipe of another tar", DigestMismatch, "has diff_id", frames=frames_of(tb.archive())),
    comes("a recipe of what is no tar", LayerstoreError, ".", frames=raw(b"x" * 600)),
    comes("a recipe that says it has 4 GiB", CorruptError, "cut off", frames=b"\0\xff\xff\xff\xff" + bytes(600)),
    comes("a recipe that is not zstd", CorruptError, "zstd stream", frames=lambda: b"x" * 500),
    comes("a recipe that becomes 1.3 GB", LimitExceeded, "layer_ratio", frames=bomb),
    comes("4 billion extents", LimitExceeded, "sparse_extents", frames=b"\x02\xff\xff\xff\xff" + bytes(600)),
    comes("an extent behind the end", CorruptError, "range that its content does not", frames=sparse((0, 1 << 60))),
    comes("extents in each other", CorruptError, "do not follow each other", frames=sparse((0, 10), (5, 10))),
    comes(
        "holes of 2^37 bytes",
        LimitExceeded,
        "hole_bytes",
        [(blake3(SECRET), 1 << 37)],
        sparse((0, 1)),
    ),
]


@pytest.mark.parametrize(("table", "frames", "error", "told"), LAYERS)
def test_a_layer_is_refused(
    place: Place,
    sender: Store,
    monkeypatch: pytest.MonkeyPatch,
    table: Sequence[tuple[bytes, int]],
    frames: bytes | Callable[[], bytes],
    error: type[Exception],
    told: str,
) -> None:
    def send_layer(self: Any, diff_id: str, _: bytes, __: object) -> None:
        data = b"".join(struct.pack("<32sQ", *content) for content in table)
        packed = zstd.compress(data, 3)
        recipe = frames() if callable(frames) else zstd.compress(frames, 3)
        self._say_layer(None, (len(packed), len(data)), (len(recipe), 0))
        self._channel.send_data([packed, recipe])

    send_layers = sending._Sending._send_layers

    def send_what_the_table_has(self: Any, *args: Any) -> dict[bytes, tuple[int, bytes]]:
        found = send_layers(self, *args)
        named = {digest: (size, path) for (digest, (_, path)), (_, size) in zip(found.items(), TABLE, strict=True)}
        return {digest: named.get(digest, (size, b"x")) for digest, size in dict(table).items()}

    monkeypatch.setattr(sending._Sending, "_send_layer", send_layer)
    monkeypatch.setattr(sending._Sending, "_send_layers", send_what_the_table_has)
    refuses(place, sender, error, told)


# Packs


class Slot:
    """A slot of a pack that is made by hand."""

    def __init__(
        self, content: bytes, at: int = 0, length: int | None = None, base: int = WHOLE, frame: int = 0, size: int = -1
    ) -> None:
        self.bytes = SLOT.pack(
            blake3(content),
            len(content) if size < 0 else size,
            bytes(8),
            frame,
            at,
            len(content) if length is None else length,
            base,
        )


def pack_of(
    slots: Sequence[Slot | bytes],
    frames: Sequence[tuple[bytes, int, int]] = (),
    references: Sequence[bytes] = (),
    offset: int | None = None,
) -> bytes:
    """A cold pack. Frames are what is stored, the bytes that it says it had, and the codec."""
    body, table = b"", b""
    for stored, size, codec in frames:
        at = FOOTER.size + len(body) if offset is None else offset
        table += FRAME.pack(at, len(stored), size, codec, blake3(stored)[:16])
        body += stored
    written = [slot.bytes if isinstance(slot, Slot) else slot for slot in slots]
    tables = table + b"".join(written) + b"".join(references)
    counts = len(frames), len(slots), len(references)
    footer = FOOTER.pack(MAGIC, VERSION, *counts, FOOTER.size + len(body), blake3(tables), bytes(8))[:-8]
    footer += blake3(footer)[:8]
    return footer + body + tables + footer


def stored(*contents: bytes) -> tuple[bytes, int, int]:
    data = b"".join(contents)
    return data, len(data), STORED


SO_IT_IS = [Slot(SMALL), Slot(OTHER, 3000), Slot(LARGE, 8000)]
ALL = stored(SMALL, OTHER, LARGE)
DELTA = struct.pack("<IIB", 0, 0, 0)


def delta(content: bytes) -> bytes:
    """A difference that has all of a content."""
    return DELTA + content


def brings(name: str, pack: bytes | Callable[[], bytes], error: type[Exception], told: str) -> Any:
    return pytest.param(pack, error, told, id=name, marks=case(name, "refused"))


def zeros() -> bytes:
    """1.5 GB in a small frame."""
    stored = zstd.compress(bytes(1500 << 20), 1)
    return pack_of(SO_IT_IS, [(stored, 1500 << 20, ZSTD)])


def more_than_it_says() -> bytes:
    return pack_of(SO_IT_IS, [(zstd.compress(bytes(600 << 20), 1), 2_000_000, ZSTD)])


PACKS = [
    brings("garbage", random.Random(1).randbytes(10_000), CorruptError, "the pack that came is none"),
    brings("a pack that is cut off", pack_of(SO_IT_IS, [ALL])[:-50], CorruptError, "the pack that came is none"),
    brings("an empty pack", pack_of([]), CorruptError, "did not come"),
    brings("a content of other bytes", pack_of([Slot(SMALL, 1), *SO_IT_IS[1:]], [ALL]), CorruptError, "of another one"),
    brings(
        "a large content of other bytes", pack_of([*SO_IT_IS[:2], Slot(LARGE, 7999)], [ALL]), CorruptError, "another"
    ),
    brings(
        "a slot behind its frame", pack_of([Slot(SMALL, 1 << 31), *SO_IT_IS[1:]], [ALL]), CorruptError, "outside of"
    ),
    brings("a slot of another length", pack_of([Slot(SMALL, length=5), *SO_IT_IS[1:]], [ALL]), CorruptError, "outside"),
    brings("a slot of no frame", pack_of([Slot(SMALL, frame=7), *SO_IT_IS[1:]], [ALL]), CorruptError, "frame 7"),
    brings("a frame outside of the pack", pack_of(SO_IT_IS, [ALL], offset=1 << 60), CorruptError, "lies outside"),
    brings("a frame of no codec", pack_of(SO_IT_IS, [(ALL[0], ALL[1], 9)]), CorruptError, "unknown number 9"),
    brings("a frame that is no zstd", pack_of(SO_IT_IS, [(ALL[0], ALL[1], ZSTD)]), CorruptError, "frame 0"),
    brings("a frame of 1.5 GB", zeros, LimitExceeded, "layer_ratio"),
    brings("a frame of 600 MB that says 2", more_than_it_says, CorruptError, "frame 0"),
    brings(
        "a difference from itself",
        pack_of([Slot(SMALL, length=3009, base=0), *SO_IT_IS[1:]], [stored(delta(SMALL))], [blake3(SMALL)]),
        CorruptError,
        "that is a difference, too",
    ),
    brings(
        "a difference of a difference",
        pack_of(
            [Slot(SMALL, 0, 3009, 0), Slot(OTHER, 3009, 5009, 1), Slot(LARGE, frame=1)],
            [stored(delta(SMALL), delta(OTHER)), stored(LARGE)],
            [blake3(OTHER), blake3(SECRET)],
        ),
        CorruptError,
        "that is a difference, too",
    ),
    brings(
        "a difference from what is nowhere",
        pack_of([Slot(SMALL, length=3009, base=0), *SO_IT_IS[1:]], [stored(delta(SMALL))], [bytes(32)]),
        CorruptError,
        "neither came nor is here",
    ),
    brings(
        "a difference that does not fit",
        pack_of(
            [Slot(SMALL, length=3009, base=0), *SO_IT_IS[1:]],
            [stored(struct.pack("<IIB", 1 << 31, 1 << 31, 0) + SMALL)],
            [blake3(SECRET)],
        ),
        CorruptError,
        "does not fit its base",
    ),
    brings(
        "a reference that is not there", pack_of([Slot(SMALL, base=9), *SO_IT_IS[1:]], [ALL]), CorruptError, "refers"
    ),
    brings(
        "a list of itself",
        pack_of([*SO_IT_IS[:2], Slot(LARGE, 0, 1, LIST)], [ALL], [blake3(LARGE)]),
        CorruptError,
        "a list or difference itself",
    ),
    brings(
        "a list of more than it has",
        pack_of([*SO_IT_IS[:2], Slot(LARGE, 0, 2, LIST)], [ALL], [blake3(OTHER)] * 2),
        CorruptError,
        "do not have its 1500000 bytes",
    ),
    brings(
        "a list of 16 million references",
        pack_of([*SO_IT_IS[:2], Slot(LARGE, 0, 1 << 24, LIST)], [ALL], [blake3(OTHER)]),
        CorruptError,
        "refers to what the pack does not have",
    ),
    brings(
        "a list of what is nowhere",
        pack_of([*SO_IT_IS[:2], Slot(LARGE, 0, 1, LIST)], [ALL], [bytes(32)]),
        CorruptError,
        "neither came nor is here",
    ),
    brings(
        "a list with a chunk of other bytes",
        pack_of(
            [*SO_IT_IS[:2], Slot(LARGE, 0, 2, LIST), Slot(LARGE[:9], 1), Slot(LARGE[9:], 8009)],
            [ALL],
            [blake3(LARGE[:9]), blake3(LARGE[9:])],
        ),
        CorruptError,
        "of another one",
    ),
    brings(
        "a list of chunks in another order",
        pack_of(
            [*SO_IT_IS[:2], Slot(LARGE, 0, 2, LIST), Slot(LARGE[:9], 8000), Slot(LARGE[9:], 8009)],
            [ALL],
            [blake3(LARGE[9:]), blake3(LARGE[:9])],
        ),
        DigestMismatch,
        "has diff_id",
    ),
]


HALVES = LARGE[:9], LARGE[9:]
BY_HAND = (
    [
        *(Slot(SMALL), Slot(OTHER, 1_503_000, 5009, 0), Slot(LARGE, 1, 2, LIST)),
        *(Slot(HALVES[0], 3000), Slot(HALVES[1], 3009)),
    ],
    [stored(SMALL, LARGE, delta(OTHER))],
    [blake3(SECRET), *map(blake3, HALVES)],
)
"""A pack with a content as it is, a difference and a list."""


class Forged:
    """What stands in for the encoder."""

    data = b""

    def __init__(self, fd: int, *_: object) -> None:
        self._fd = fd

    def write(self, items: Sequence[Item], _: object) -> None:
        os.pwrite(self._fd, self.data, 0)


@pytest.fixture
def forge(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes], None]:
    """Has the side that sends send that pack."""
    monkeypatch.setattr(sending, "Encoder", Forged)

    def send(pack: bytes) -> None:
        Forged.data = pack

    return send


@pytest.mark.parametrize(("pack", "error", "told"), PACKS)
def test_a_pack_is_refused(
    place: Place,
    sender: Store,
    forge: Callable[[bytes], None],
    pack: bytes | Callable[[], bytes],
    error: type[Exception],
    told: str,
) -> None:
    forge(pack() if callable(pack) else pack)
    with place.untouched():
        raises(lambda: sender.sync("app:1", place.store.root), error, told)
        assert os.listdir(place.store.root / "downloads") == []
        forget_downloads(place)


@case("tables of many layers that become 48 MB together", "refused")
def test_tables_are_limited_together() -> None:
    sizes = receiving._TableSizes(DEFAULT)
    sizes.add(100, 16 << 20)
    sizes.add(100, 16 << 20)
    with pytest.raises(LimitExceeded, match=r"have 50331648 bytes in 300, .*index_ratio"):
        sizes.add(100, 16 << 20)


@case("a pack with 200 contents more than the 3 that were asked for", "refused")
def test_a_pack_of_many_contents(place: Place, sender: Store, forge: Callable[[bytes], None]) -> None:
    slots, frames, references = BY_HAND
    forge(pack_of([*slots, *[slots[0]] * 200], frames, references))
    refuses(place, sender, CorruptError, "more contents than the 3 that were asked for")


def test_packs_that_are_made_by_hand_can_be_right(place: Place, sender: Store, forge: Callable[[bytes], None]) -> None:
    """Or the others could be refused for anything."""
    forge(pack_of(*BY_HAND))
    test_nothing_is_wrong_with_the_image(place, sender)


@pytest.fixture
def limits(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Less may be read of what arrives, by the names of module `arrived`."""
    for name, value in request.param.items():
        monkeypatch.setattr(arrived, name, value)


@pytest.mark.parametrize("limits", [{"FREE_LAYER_BYTES": 0, "_TIMES": 0}], indirect=True)
@pytest.mark.usefixtures("limits")
def test_bases_are_not_read_without_end(place: Place, sender: Store, forge: Callable[[bytes], None]) -> None:
    slots = [Slot(SMALL, length=3009, base=0), Slot(OTHER, frame=1), Slot(LARGE, 5000, frame=1)]
    forge(pack_of(slots, [stored(delta(SMALL)), stored(OTHER, LARGE)], [blake3(SECRET)]))
    refuses(place, sender, CorruptError, "too much was read of such contents")


@pytest.mark.parametrize("limits", [{"FRAMES_BYTES": 1, "_TIMES": 1}], indirect=True)
@pytest.mark.usefixtures("limits")
def test_frames_are_not_read_without_end(place: Place, sender: Store, forge: Callable[[bytes], None]) -> None:
    """Of two frames that do not fit into memory together each content is in the other one than the one before."""
    slots = [Slot(SMALL), Slot(OTHER, frame=1), Slot(LARGE, 3000)]
    forge(pack_of(slots, [stored(SMALL, LARGE), stored(OTHER)]))
    refuses(place, sender, CorruptError, "read too often")


@case("300 changed packs", "refused, or the image as it is")
def test_any_change_of_a_pack(place: Place, sender: Store, forge: Callable[[bytes], None]) -> None:
    """Of which the digests of its tables and of itself are right again."""
    draw = random.Random("pack")
    before = place.state()
    for _ in range(300):
        slots = [slot.bytes for slot in BY_HAND[0]]
        frames, references = list(BY_HAND[1]), list(BY_HAND[2])
        which = draw.randrange(4)
        if which == 0:
            number = draw.randrange(len(slots))
            slots[number] = changed(slots[number], draw)
        elif which == 1:
            references[draw.randrange(len(references))] = draw.choice([*references, blake3(SMALL), blake3(LARGE)])
        elif which == 2:
            stored, size, codec = frames[0]
            frames[0] = changed(stored, draw), size, draw.choice([codec, ZSTD, 2])
        else:
            stored, size, codec = frames[0]
            frames[0] = stored, draw.choice([0, size - 1, size + 1, (1 << 32) - 1]), draw.choice([codec, ZSTD, 2])
        forge(pack_of(slots, frames, references))
        with contextlib.suppress(LayerstoreError):
            sender.sync("app:1", place.store.root)
        forget_downloads(place)
        if "app:1" in [name for image in place.store.images() for name in image.names]:
            assert b"".join(place.store.image("app:1").layer_tar(IMAGE.diff_ids[0])) == LAYER
            place.drop("app:1")
            place.changed()
            before = place.state()
        else:
            assert place.state() == before


def changed(data: bytes, draw: random.Random) -> bytes:
    found = bytearray(data)
    found[draw.randrange(len(found))] = draw.choice([0, 1, 0x7F, 0xFF, draw.randrange(256)])
    return bytes(found)


# Sides that receive


def lies(name: str, told: str, error: type[Exception], *answers: tuple[Kind, bytes] | bytes) -> Any:
    return pytest.param(answers, error, told, id=name, marks=case(name, "refused"))


HELLO = channels.GREETING
LACKS = (Kind.STORED, b"\0")
WANTS = (Kind.WANTED, b"\7")
ANSWERS = [
    lies("a side that ends at once", "has ended", SyncError),
    lies("a side of another version", "says b'layerstore sync 9", SyncError, b"layerstore sync 9\n"),
    lies("a side that does not stop", "where layerstore says", SyncError, b"x" * 50_000),
    lies("layers in too many bits", "STORED in 2 bytes", SyncError, HELLO, (Kind.STORED, b"\0\0")),
    lies("layers in no bits", "STORED in 0 bytes", SyncError, HELLO, (Kind.STORED, b"")),
    lies("contents in too many bits", "WANTED in 5 bytes", SyncError, HELLO, LACKS, (Kind.WANTED, bytes(5))),
    lies("all said before it was asked", "says DONE", SyncError, HELLO, (Kind.DONE, b"")),
    lies("what the side that sends says", "says IMAGE", SyncError, HELLO, (Kind.IMAGE, b"{}")),
    lies("more than there is", "of .* bytes", SyncError, HELLO, LACKS, WANTS, (Kind.KEPT, b'{"bytes":99999999999}')),
    lies("less than nothing", "says that it has -1", SyncError, HELLO, LACKS, WANTS, (Kind.KEPT, b'{"bytes":-1}')),
    lies("true bytes", "says that it has True", SyncError, HELLO, LACKS, WANTS, (Kind.KEPT, b'{"bytes":true}')),
    lies("no JSON", "KEPT in what is no JSON", SyncError, HELLO, LACKS, WANTS, (Kind.KEPT, b"{")),
    lies(
        "progress of another layer",
        "which it does not import",
        SyncError,
        *(HELLO, LACKS, WANTS, (Kind.KEPT, b'{"bytes":0,"digest":""}')),
        (Kind.PROGRESS, b'{"layer":"\\u001b[2J","done":1}'),
    ),
    lies("a message of 4 GiB", "4294967295 bytes", SyncError, HELLO, b"\x21\xff\xff\xff\xff"),
    lies("an error of no kind", "not of which", SyncError, HELLO, (Kind.ERROR, b"[]")),
    lies(
        "an error of ours",
        "m",
        SyncError,
        HELLO,
        (Kind.ERROR, b'{"error":"KeyboardInterrupt","message":"m","errno":null}'),
    ),
    lies(
        "an error of the system",
        "No space",
        OSError,
        HELLO,
        (Kind.ERROR, b'{"error":"OSError","message":"No space","errno":28}'),
    ),
    lies(
        "an error of our output", "m", SyncError, HELLO, (Kind.ERROR, b'{"error":"OSError","message":"m","errno":32}')
    ),
]


@pytest.mark.parametrize(("answers", "error", "told"), ANSWERS)
def test_what_is_answered_is_refused(
    sender: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    answers: Sequence[tuple[Kind, bytes] | bytes],
    error: type[Exception],
    told: str,
) -> None:
    def receive(_: Store, channel: Channel) -> None:
        with contextlib.suppress(SyncError, BrokenPipeError):
            for answer in answers:
                if isinstance(answer, bytes):
                    os.write(channel.writing, answer)
                else:
                    channel.send(*answer)
            while os.read(channel.reading, 1 << 16):  # or what is sent could not be written
                if len(answers) < 2:
                    return

    answer(monkeypatch, receive)
    before = store_state(sender.root)
    with pytest.raises(error, match=told):
        sender.sync("app:1", tmp_path / "there")
    assert store_state(sender.root) == before


def answer(monkeypatch: pytest.MonkeyPatch, receive: Callable[[Store, Channel], None]) -> None:
    """Have the other store be one that answers so."""
    monkeypatch.setattr(Store, "_receive", receive)


# Anything


def conversation(sender: Store, root: Path, meddle: Meddling) -> tuple[list[bytes], list[bytes]]:
    """What the side that sends says, message by message, and what the other one does."""
    sends = threading.current_thread()
    written = meddle.noted(channels, "write_all", lambda _, data: (threading.current_thread() is sends, bytes(data)))
    sender.sync("app:1", root)
    meddle.undo()
    return [data for is_said, data in written if is_said], [data for is_said, data in written if not is_said]


def spoilt(messages: list[bytes], draw: random.Random) -> bytes:
    """The messages with something changed."""
    messages = list(messages)
    number = draw.randrange(len(messages))
    data = bytearray(messages[number])
    way = draw.randrange(6)
    if way == 0:
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    elif way == 1:
        data[draw.randrange(min(len(data), 100))] = draw.randrange(256)
    elif way == 2:
        at = draw.randrange(len(data))
        del data[at : at + draw.randrange(1, 50)]
    elif way == 3:
        data += messages[draw.randrange(len(messages))]
    elif way == 4:
        data.clear()
    else:
        other = draw.randrange(len(messages))
        data, messages[other] = bytearray(messages[other]), bytes(data)
    messages[number] = bytes(data)
    return b"".join(messages)


@case("1,000 changed conversations", "refused, or the image as it is")
def test_any_change_of_what_is_said(
    place: Place, sender: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddle: Meddling
) -> None:
    said, _ = conversation(sender, tmp_path / "there", meddle)
    draw = random.Random("said")
    assert answered(place, b"".join(said)).encode().endswith(struct.pack("<BI", Kind.DONE, 0))
    place.drop("app:1")
    forget_downloads(place)
    place.changed()
    images = {image.id for image in place.store.images()}
    before = place.state()
    for _ in range(500):
        data = spoilt(said, draw)
        answered(place, data)
        forget_downloads(place)
        if made := {image.id for image in place.store.images()} - images:
            assert made == {IMAGE.id}  # under another name, at most
            assert b"".join(place.store.image(IMAGE.id).layer_tar(IMAGE.diff_ids[0])) == LAYER
            place.store.remove_image(IMAGE.id, force=True)
            place.store.collect_garbage()
            place.changed()
            before = place.state()
        else:
            assert place.state() == before


def test_any_change_of_what_is_answered(
    sender: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meddle: Meddling
) -> None:
    _, answers = conversation(sender, tmp_path / "there", meddle)
    draw = random.Random("answers")
    before = store_state(sender.root)

    def receive(_: Store, channel: Channel) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(channel.writing, data)
        os.close(channel.writing)
        channel.writing = os.open(os.devnull, os.O_WRONLY)
        while os.read(channel.reading, 1 << 20):
            pass

    answer(monkeypatch, receive)
    for _ in range(500):
        data = spoilt(answers, draw)
        with contextlib.suppress(LayerstoreError, OSError):
            sender.sync("app:1", tmp_path / "there")
    assert store_state(sender.root) == before
