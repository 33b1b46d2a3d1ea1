"""Writes the seeds of fuzz_index and fuzz_merge: indexes that have something of everything.

    python tests/fuzz/make_seeds.py

Run it again when the format of indexes changes.
"""

import stat
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

from stack_model import KEY, Inode, Layer, directory, layer_bytes, lower_link, regular  # noqa: E402

from layerstore._core import index as ix  # noqa: E402
from layerstore._core.index import Index, merge  # noqa: E402

LINKED = regular(b"linked")
WHITEOUT = Inode(flags=ix.WHITEOUT)
LAYERS: list[Layer] = [
    {
        (): directory(),
        (b"a",): regular(b"some"),
        (b"d",): directory(mtime_ns=5, xattrs={b"user.n": b"v", b"trusted.m": b""}),
        (b"d", b"e"): directory(uid=7),
        (b"d", b"e", b"f"): LINKED,
        (b"d", b"g"): LINKED,
        (b"device",): Inode(mode=stat.S_IFCHR | 0o600, rdev=(1, 3)),
        (b"empty",): regular(b""),
        (b"s",): Inode(mode=stat.S_IFLNK | 0o777, target=b"d/e"),
    },
    {
        (): directory(flags=ix.IMPLIED),
        (b"a",): WHITEOUT,
        (b"d",): directory(flags=ix.OPAQUE),
        (b"d", b"e"): directory(flags=ix.IMPLIED),
        (b"d", b"e", b"new"): regular(b"some"),
        (b"link",): lower_link(b"d/g"),
        (b"s",): directory(),
    },
    {(): directory(), (b"d",): regular(b"a file"), (b"again",): lower_link(b"link"), (b"link",): WHITEOUT},
]


def main() -> None:
    layers = [bytes(layer_bytes(layer)) for layer in LAYERS]
    chain = bytes(merge([Index(layer) for layer in layers], KEY))
    for number, index in enumerate((*layers, chain)):
        (HERE / "fuzz_index" / f"{number}").write_bytes(b"\0" + index)
    parts = [len(layer).to_bytes(2, "little") + layer for layer in layers]
    (HERE / "fuzz_merge" / "layers").write_bytes(b"".join(parts))
    (HERE / "fuzz_merge" / "twice").write_bytes(b"".join(parts[:2] * 2))
    (HERE / "fuzz_merge" / "chain").write_bytes(len(chain).to_bytes(2, "little") + chain + parts[1])


if __name__ == "__main__":
    main()
