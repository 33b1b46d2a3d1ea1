"""Inputs that are large or become so: each in a process of its own, which tells how much memory it took.

`python heavy.py DIRECTORY` prints a line of JSON for each: its name, the error and its message, the most memory that it
took above that of a process with an open store, in KiB, and whether a store that refused it holds something else than
before.
"""

import gzip
import io
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import images
import tarbytes as tb
from images import zstd

from layerstore import Limits, Store

MIB = 1 << 20


class Repeated(io.RawIOBase):
    """A stream of `head`, then `piece` so many times, then `tail`, without ever being in memory."""

    def __init__(self, head: bytes, piece: bytes, times: int, tail: bytes = b"") -> None:
        self._parts = self._all(head, piece, times, tail)
        self._rest = b""

    @staticmethod
    def _all(head: bytes, piece: bytes, times: int, tail: bytes) -> Iterator[bytes]:
        yield head
        for _ in range(times):
            yield piece
        yield tail

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._rest = part
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def gzip_of_members(piece: bytes, times: int) -> io.RawIOBase:
    """As many gzip members, each of `piece`."""
    return Repeated(b"", gzip.compress(piece, 9), times)


def bomb_of_gzip(store: Store) -> None:
    store.import_rootfs(gzip_of_members(bytes(16 * MIB), 128), "x")  # type: ignore[arg-type]


def bomb_of_zstd(store: Store) -> None:
    store.import_rootfs(Repeated(b"", zstd.compress(bytes(16 * MIB), 1), 128), "x")  # type: ignore[arg-type]


def bomb_within_an_archive(store: Store) -> None:
    """The archive is compressed, and so is a layer in it."""
    inner = gzip.compress(bytes(16 * MIB), 9) * 128
    files: images.Files = {"manifest.json": b"[]", "layer.tar": inner}
    store.load(io.BytesIO(gzip.compress(images.tar_of(files), 9)))


def bomb_of_headers(store: Store) -> None:
    """Entries without content, each some bytes of gzip: none is more than a line in an index, but they are many."""
    block = b"".join(tb.header(b"d%06d" % number) for number in range(2000))
    store.import_rootfs(gzip_of_members(block, 200), "x")  # type: ignore[arg-type]


def bomb_of_paths(store: Store) -> None:
    """Names of one byte below a symbolic link to a path of 4,000."""
    link = tb.pax({b"linkpath": b"/".join([b"d" * 99] * 40)}) + tb.symlink(b"l", b"x")
    block = b"".join(tb.header(b"l/%04d" % number) for number in range(2000))
    data = gzip.compress(link) + gzip.compress(block, 9) * 20
    store.import_rootfs(io.BytesIO(data), "x")


def bomb_of_xattrs(store: Store) -> None:
    parts = [
        tb.pax({b"SCHILY.xattr.user.x": b"%05d" % number + bytes(60_000)}) + tb.header(b"f%d" % number)
        for number in range(50)
    ]
    store.import_rootfs(gzip_of_members(b"".join(parts), 40), "x")  # type: ignore[arg-type]


def bomb_of_targets(store: Store) -> None:
    parts = [tb.pax({b"linkpath": b"%04d" % n + b"/x" * 2000}) + tb.symlink(b"f%d" % n, b"x") for n in range(500)]
    store.import_rootfs(gzip_of_members(b"".join(parts), 40), "x")  # type: ignore[arg-type]


def pax_of_a_gigabyte(store: Store) -> None:
    head = tb.header(b"p", type=b"x", size=1 << 30)
    store.import_rootfs(Repeated(head, bytes(MIB), 1024), "x")  # type: ignore[arg-type]


def outer_pax_of_a_gigabyte(store: Store) -> None:
    head = tb.header(b"p", type=b"x", size=1 << 30)
    store.load(Repeated(head, bytes(MIB), 1024))  # type: ignore[arg-type]


def outer_members(store: Store) -> None:
    block = b"".join(tb.header(b"f%06d" % number) for number in range(2000))
    store.load(gzip_of_members(block, 100))  # type: ignore[arg-type]


def outer_members_of_a_file(store: Store) -> None:
    with tempfile.TemporaryFile(dir=store.root.parent) as file:
        block = b"".join(tb.header(b"f%06d" % number) for number in range(2000))
        for _ in range(100):
            file.write(block)
        file.seek(0)
        store.load(file)


def many_small_files(store: Store) -> None:
    """Files of an archive that are no layers have to be kept until its manifest comes."""
    block = b"".join(tb.member(b"f%02d" % number, b"{" + b" " * (2 * MIB)) for number in range(8))
    store.load(gzip_of_members(block, 8))  # type: ignore[arg-type]


def config_named_often() -> Callable[[Store], None]:
    """One config of 1 MiB, and a manifest that has it 5,000 times."""
    image = images.Image([tb.archive()], document={"author": "x" * MIB})
    manifest = json.dumps([{"Config": "c.json", "Layers": ["l.tar"]}] * 5000).encode()
    files: images.Files = {"c.json": image.config, "l.tar": image.layers[0], "manifest.json": manifest}
    archive = io.BytesIO(images.tar_of(files))
    return lambda store: store.load(archive) and None


def config_of(document: bytes) -> Callable[[Store], None]:
    files: images.Files = {"manifest.json": b'[{"Config": "c.json", "Layers": []}]', "c.json": document}
    archive = io.BytesIO(images.tar_of(files))
    return lambda store: store.load(archive) and None


def window(store: Store) -> None:
    """A frame that wants 2 GiB to be kept of it."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 21 << 3]) + bytes(100)
    store.import_rootfs(io.BytesIO(frame), "x")


def window_of_128_mib(store: Store) -> None:
    frame = b"\x28\xb5\x2f\xfd" + bytes([0x00, 17 << 3]) + bytes(100)
    store.import_rootfs(io.BytesIO(frame), "x")


def long_junk(store: Store) -> None:
    store.import_rootfs(Repeated(tb.archive(tb.member(b"f")), bytes(MIB), 300), "x")  # type: ignore[arg-type]
    store.remove_image("x")
    store.collect_garbage()


def layer_of_many_files(store: Store) -> None:
    """As many entries as the limit has, and one more."""
    block = b"".join(tb.header(b"%04d" % number) for number in range(1000))
    store.import_rootfs(Repeated(b"", block, 11), "x")  # type: ignore[arg-type]


def too_large(store: Store) -> None:
    store.import_rootfs(Repeated(tb.header(b"big", size=1 << 30), bytes(MIB), 1024), "x")  # type: ignore[arg-type]


MANY = b'{"rootfs": {"type": "layers", "diff_ids": []}, "x": [' + b"{}," * 2_700_000 + b"{}]}"
HEAD = b'{"rootfs": {"type": "layers", "diff_ids": []}, "x": "'
WIDE = HEAD + b"x" * (8 * MIB - 200) + "\U0001f600".encode() + b'"}'
LESS_WIDE = HEAD + b"x" * (6 * MIB - 200) + "\U0001f600".encode() + b'"}'
DEEP = b"[" * (4 * MIB)
LIMITS = {"too many entries": Limits(entries=10_000), "a layer too large": Limits(layer_bytes=100 * MIB)}
INPUTS: dict[str, Callable[[Store], None]] = {
    "a bomb of gzip": bomb_of_gzip,
    "a bomb of zstd": bomb_of_zstd,
    "a bomb of gzip in gzip": bomb_within_an_archive,
    "a bomb of entries": bomb_of_headers,
    "a bomb of paths": bomb_of_paths,
    "a bomb of xattrs": bomb_of_xattrs,
    "a bomb of link targets": bomb_of_targets,
    "a pax header of 1 GiB that is there": pax_of_a_gigabyte,
    "a pax header of 1 GiB in an archive of images": outer_pax_of_a_gigabyte,
    "200,000 files in an archive that is a stream": outer_members,
    "200,000 files in an archive that is a file": outer_members_of_a_file,
    "128 MiB of small files in an archive": many_small_files,
    "a config that is named 5,000 times": config_named_often(),
    "a config of 2,700,000 values": config_of(MANY),
    "a config of 8 MiB that takes four bytes a letter": config_of(WIDE),
    "a config of 6 MiB that takes four bytes a letter": config_of(LESS_WIDE),
    "a config of 4,000,000 levels": config_of(DEEP),
    "a zstd window of 2 GiB": window,
    "a zstd window of 128 MiB": window_of_128_mib,
    "300 MiB behind the end of a tar": long_junk,
    "too many entries": layer_of_many_files,
    "a layer too large": too_large,
}


def resident(field: str) -> int:
    with open("/proc/self/status") as file:
        return int(file.read().split(f"{field}:")[1].split()[0])


def run(name: str, directory: str) -> dict[str, object]:
    path = f"{directory}/store"
    with Store(path, limits=LIMITS.get(name)) as store:
        before = images.store_state(store.root)
        error, message = "", ""
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # VmHWM begins anew
        idle = resident("VmRSS")
        try:
            INPUTS[name](store)
        except Exception as caught:
            error, message = type(caught).__name__, str(caught)
        peak = resident("VmHWM")
        changed = images.store_state(store.root) != before
    return {"name": name, "error": error, "message": message, "kib": peak - idle, "changed": changed and bool(error)}


def main(directory: str) -> None:
    import layerstore.layers.loading
    import layerstore.store.zstd  # noqa: F401

    with Store(f"{directory}/store", create=True):
        pass
    for name in INPUTS:
        child = os.fork()
        if not child:
            try:
                print(json.dumps(run(name, directory)), flush=True)
            finally:
                os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1])
