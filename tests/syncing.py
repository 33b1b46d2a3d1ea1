"""What the tests of syncs share: versions of an image, a stand-in for ssh, a side that is not layerstore."""

import io
import os
import random
import struct
import sys
from pathlib import Path
from typing import Any

import tarbytes as tb
from images import Image, docker_files, store_state, tar_of
from layer_model import Entry, write_tar

from layerstore import Store

ROOT = Path(__file__).parent.parent
TEXT = b"".join(b"line %d of a text that many versions have\n" % n for n in range(20_000))
LARGE = random.Random("large").randbytes(6 << 20)
BASE = write_tar([Entry("dir", "etc", mode=0o755), Entry("file", "etc/passwd", data=b"root:x:0:0::/:/bin/sh\n" * 50)])


def version(number: int) -> bytes:
    """The upper layer of an image: most of it differs a little from that of other versions, as of real ones."""
    draw = random.Random("code")
    at = 300_000 + 10 * number
    files = {}
    for n in range(20):
        header = struct.pack("<4sII", b"\xcb\r\r\n", 0, 1_000 * number + n)
        files[f"lib/module-{number}.{number + 1}/{chr(97 + n)}.pyc"] = header + draw.randbytes(5_000)
    files |= {
        "share/text": TEXT[:at] + b"version %d" % number + TEXT[at:],
        "share/same": b"the same in all of them" * 100,
        "share/own": random.Random(f"own {number}").randbytes(2_500_000),
        "share/large": LARGE[: 3_000_000 + number] + b"%d" % number + LARGE[3_000_000 + number :],
        "share/empty": b"",
    }
    entries = [Entry("dir", "lib"), Entry("dir", "share", mtime=(number, 5), xattrs={"user.version": b"%d" % number})]
    entries += [Entry("file", path, data=data, mtime=(1_000 * number, 0)) for path, data in sorted(files.items())]
    entries += [
        Entry("symlink", "share/link", link="own"),
        Entry("hardlink", "share/other", link="share/own"),
        Entry("file", "etc/.wh.passwd"),
        Entry("file", "share/.wh..wh..opq"),
    ]
    extents = [(4096, 3000), (1 << 20, 5000)]
    sparse = tb.sparse_10(b"share/sparse", extents, 3 << 20, random.Random(number).randbytes(8000))
    return tb.archive(*(part for part in [write_tar(entries)[: -len(tb.END)], sparse]))


def image(number: int) -> Image:
    return Image([BASE, version(number)], [f"app:{number}", f"example.com/app:{number}"])


def load(store: Store, *images: Image | int) -> None:
    for each in images:
        made = image(each) if isinstance(each, int) else each
        store.load(io.BytesIO(tar_of(docker_files([made]))))


def require(store: Store, made: Image | int) -> None:
    """That a store has the image, bit for bit."""
    made = image(made) if isinstance(made, int) else made
    found = store.image(made.id)
    assert found.names == sorted(made.names)
    assert list(found.diff_ids) == made.diff_ids
    for diff_id, layer in zip(found.diff_ids, made.layers, strict=True):
        assert b"".join(found.layer_tar(diff_id)) == layer


def state_of(root: Path) -> Any:
    """All that a store has but what transfers that failed have left."""
    tree, rows = store_state(root)
    return {path: what for path, what in tree.items() if not path.startswith("downloads")}, rows


def stand_in(directory: Path, lines: str = 'exec sh -c "$2"') -> dict[str, str]:
    """The environment in which a program stands in for ssh that notes what it was given in `directory`/asked; `lines`
    are what it does then with the host $1 and the command $2."""
    path = directory / "ssh"
    path.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >>{directory}/asked\nwhile [ "$1" != -- ]; do shift; done\nshift\n{lines}\n'
    )
    path.chmod(0o755)
    return {"LAYERSTORE_SSH": str(path), "PYTHONPATH": str(ROOT)}


def cut_after(count: int) -> str:
    """Lines for `stand_in` that give the command so many bytes of what it is sent."""
    code = f"""
import os
left = {count}
while left and (piece := os.read(0, min(left, 65536))):
    os.write(1, piece)
    left -= len(piece)
"""
    return f"{sys.executable} -c '{code}' | sh -c \"$2\""


def layerstore_in(directory: Path) -> str:
    """A program that is layerstore."""
    path = directory / "layer store"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -m layerstore "$@"\n')
    path.chmod(0o755)
    return str(path)


def left_in(root: Path) -> list[str]:
    downloads = root / "downloads"
    return sorted(os.listdir(downloads)) if downloads.is_dir() else []
