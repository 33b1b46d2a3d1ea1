"""Fuzzes what reads the store's own files, as a damaged disk or a peer gives them: recipes, packs, cold packs."""

import contextlib
import os
import struct
from collections.abc import Iterator

import atheris
from harness import fuzz, require

with atheris.instrument_imports(include=["layerstore"]):
    from layerstore._core import index as ix
    from layerstore._core.hashing import blake3
    from layerstore.errors import CorruptError, LimitExceeded, Unsupported
    from layerstore.layers import recipe
    from layerstore.store import cold_packs
    from layerstore.store.contents import Pack
    from layerstore.store.zstd import recipe_compressor

CONTENTS = [(bytes([number]) * 32, number + 1) for number in range(5)]
NODES = [
    ix.Node(0, b"", 0o40755),
    *(ix.Node(0, b"%d" % number, 0o100644, content=number) for number in range(len(CONTENTS))),
]
INDEX = ix.Index(ix.write_index(ix.LAYER, 1, bytes(16), NODES, CONTENTS))


class Contents:
    """A store that has them all."""

    def find(self, digest: bytes) -> bytes:
        return bytes(digest[0] + 1)

    def read_many(self, digests: list[bytes]) -> list[bytes]:
        return [self.find(digest) for digest in digests]


@contextlib.contextmanager
def memory(data: bytes) -> Iterator[str]:
    """The path of a file with that content."""
    fd = os.memfd_create("fuzz")
    try:
        os.write(fd, data)
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def read_recipe(data: bytes) -> None:
    """Its frames; compressed here, but where the first byte is odd."""
    if data[:1] and not data[0] % 2:
        data = b" " + recipe_compressor().compress(data[1:])
    with memory(data[1:]) as path:
        size = 0
        for piece in recipe.tar_pieces(path, INDEX, Contents()):  # type: ignore[arg-type]
            size += len(piece)
            if size > 1 << 24:
                return
        require(recipe.tar_bytes(path, INDEX) == size, "a recipe says how long the tar is")


def read_pack(data: bytes) -> None:
    """Slots and contents as they are, then 16 bytes of a footer whose digests are right."""
    slots_at = int.from_bytes(data[:2], "little")
    body = data[18:]
    head = b"LSPACK\n\0" + data[2:6] + struct.pack("<I", (len(body) - slots_at) // 48 if slots_at < len(body) else 0)
    footer = head + struct.pack("<Q", slots_at) + blake3(body[slots_at:])
    with memory(body + footer + blake3(footer)[:8]) as path:
        pack = Pack(path)
        for number in range(pack.slot_count):
            with contextlib.suppress(CorruptError):
                offset, size, _ = pack.slot(number)
                require(offset + size <= len(body) and len(pack.content(number)) == size, "a slot is in its pack")
                require(pack.copies([number]) == [bytes(pack.content(number))], "a copy is a copy")


def read_cold_pack(data: bytes) -> None:
    """Counts of frames, slots and references, the tables, and frames after them; the digests are put right."""
    counts = struct.unpack("<BBB", data[:3].ljust(3, b"\0"))
    tables_bytes = 40 * counts[0] + 64 * counts[1] + 32 * counts[2]
    tables, frames = data[3 : 3 + tables_bytes].ljust(tables_bytes, b"\0"), data[3 + tables_bytes :]
    head = b"LSCOLD\n\0" + struct.pack("<IIIIQ", 1, *counts, cold_packs.FOOTER.size + len(frames)) + blake3(tables)
    footer = head + blake3(head)[:8]
    with memory(footer + frames + tables + footer) as path:
        pack = cold_packs.ColdPack(path)
        raw: list[bytes] = []
        for number in range(pack.frame_count):
            with contextlib.suppress(CorruptError):
                raw.append(pack.raw(number))
                require(len(raw[-1]) == pack.frame(number).raw_bytes, "a frame is as long as it says")
        for number in range(pack.slot_count):
            with contextlib.suppress(CorruptError):
                slot = pack.slot(number)
                require(all(len(digest) == 32 for digest in pack.references_of(slot)), "references are digests")
                for content in raw[:2]:
                    delta = content[slot.at : slot.at + slot.length]
                    require(
                        len(cold_packs.apply_delta(frames, delta, slot.size)) == slot.size, "a difference has its size"
                    )


if __name__ == "__main__":
    fuzz((read_recipe, read_pack, read_cold_pack), (CorruptError, LimitExceeded, Unsupported))
