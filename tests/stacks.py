"""Images of many layers for tests, and archives that bring only the layers that are new.

stack = Stack(2_000)
stack.load(store, range(1, 2_001))     # an image "grown:N" for each number of layers, each an import of its own
assert contents_of(root) == stack.files(2_000)
"""

import io
import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from images import Files, digest_of, hex_of, tar_of
from layer_model import Entry, write_tar

from layerstore import Image, Store


class Stack:
    """Layers that add files, change one, and take files of lower layers away again. `salt` tells stacks apart."""

    def __init__(self, count: int, salt: str = "") -> None:
        self._salt = salt
        self._entries = [self._layer(number) for number in range(count)]
        self.layers = [write_tar(entries) for entries in self._entries]
        self.diff_ids = [digest_of(layer) for layer in self.layers]

    def _layer(self, number: int) -> list[Entry]:
        entries = [
            Entry("file", f"dir{number % 7}/own{number}", data=f"of layer {number}{self._salt}\n".encode() * 30),
            Entry("file", "changing", data=f"layer {number}{self._salt}\n".encode()),
        ]
        if number % 5 == 4:
            gone = number - 3
            entries.append(Entry("file", f"dir{gone % 7}/.wh.own{gone}"))
        if number % 97 == 96:
            entries.append(Entry("file", "dir3/.wh..wh..opq"))
        return entries

    def files(self, count: int) -> dict[str, bytes]:
        """What the lowest `count` layers show: the content of each file by its path."""
        shown: dict[str, bytes] = {}
        for entries in self._entries[:count]:
            for entry in entries:
                directory, _, name = entry.path.rpartition("/")
                if name == ".wh..wh..opq":
                    own = {other.path for other in entries}
                    shown = {p: d for p, d in shown.items() if not p.startswith(f"{directory}/") or p in own}
                elif name.startswith(".wh."):
                    shown.pop(f"{directory}/{name[4:]}", None)
                else:
                    shown[entry.path] = entry.data
        return shown

    def archive(self, count: int, present: int) -> bytes:
        """A docker archive of the image of the lowest `count` layers, without the lowest `present` of them."""
        config = json.dumps(
            {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": self.diff_ids[:count]}}
        ).encode()
        names = [f"{diff_id[7:]}.tar" for diff_id in self.diff_ids[:count]]
        manifest = [{"Config": f"{hex_of(config)}.json", "RepoTags": [f"grown:{count}"], "Layers": names}]
        files: Files = dict(zip(names[present:], self.layers[present:count], strict=True))
        files |= {f"{hex_of(config)}.json": config, "manifest.json": json.dumps(manifest).encode()}
        return tar_of(files)

    def load(self, store: Store, counts: Iterable[int], present: int = 0) -> Image:
        """Load the images of so many layers, each by an import of its own; returns the last."""
        image = None
        for count in counts:
            (image,) = store.load(io.BytesIO(self.archive(count, present)))
            present = count
        assert image is not None
        return image


def contents_of(root: Path) -> dict[str, bytes]:
    """Every regular file below a directory, by its path from there."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if stat.S_ISREG(os.lstat(path).st_mode)
    }


def chain_files(store: Store, ending: str = "") -> set[str]:
    """The names of the derived files of a store."""
    return {path.name for path in (store.root / "chains").iterdir() if path.name.endswith(ending)}
