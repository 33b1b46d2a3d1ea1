"""What operations find before them: images of a few layers, and a store to put them into.

Images: "app" of two layers, "newer" of one more upon these, "sibling" of the lowest and another, "flat" of one of its
own, "edition1" and "edition2" that have much in common, "shell" with programs to run. They have packs and objects, and
what a layer may have in it. Apart from campaigns/operations.py, which is loaded for each trial and needs none of it.
"""

import io
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from contexts import write_context
from images import Image, docker_files, oci_files, tar_of
from layer_model import Entry, write_tar
from registries import put_image
from stacks import Stack
from test_containers import base, busybox

from campaigns.operations import Place
from layerstore import Container, Store


def files(seed: int, count: int, largest: int = 9_000) -> list[Entry]:
    """Files of any size up to that in two directories."""
    draw = random.Random(seed)
    names = [f"{draw.choice(['etc', 'usr/lib'])}/file{seed}.{number}" for number in range(count)]
    return [Entry("file", name, data=draw.randbytes(draw.randrange(largest)), mtime=(1000, 5)) for name in names]


def large(name: str, seed: int, size: int) -> Entry:
    """One that becomes an object."""
    return Entry("file", name, data=random.Random(seed).randbytes(size), mtime=(77, 0))


BOTTOM = [
    *[Entry("dir", name, mode=0o755, mtime=(9, 0)) for name in ("etc", "usr", "usr/lib", "data")],
    *files(1, 12),
    Entry("file", "etc/secret", data=b"x" * 10, mode=0o4700, uid=7, gid=8, xattrs={"user.x": b"1"}),
    large("data/large", 2, 200_000),
    Entry("hardlink", "data/same", link="data/large"),
    Entry("symlink", "link", link="data/large"),
]
MIDDLE = [
    *files(3, 10),
    Entry("file", "data/.wh.same"),
    *[Entry("file", f"data/{name}", data=b"of the image" * 99) for name in "ab"],
    Entry("file", "app", data=b"#!/bin/true\n"),
]


def edition(number: int) -> list[Entry]:
    """What differs little from one edition to the next: bytes after a time, a line of a text, the middle of something
    large that is cut into chunks; and what is each one's own."""
    code, much = random.Random("code").randbytes(3_000), random.Random("much").randbytes(1_300_000)
    text = b"".join(b"line %d of a text\n" % line for line in range(900))
    return [
        *[Entry("file", f"lib/v{number}/{n}.pyc", data=b"%08d" % (number * 100 + n) + code) for n in range(4)],
        Entry("file", "share/text", data=text[: 99 * number] + b"edition %d" % number + text[99 * number :]),
        Entry("file", "share/much", data=much[:600_000] + b"%d" % number * 99 + much[600_000:]),
        Entry("file", f"share/large{number}", data=random.Random(number).randbytes(400_000) + much[:1_000_000]),
        Entry("file", "share/own", data=random.Random(-number).randbytes(9_000)),
    ]


LAYERS = {
    "bottom": write_tar(BOTTOM),
    "middle": write_tar(MIDDLE),
    "top": write_tar([*files(4, 6), large("data/large2", 5, 150_000)]),
    "other": write_tar([*files(6, 9), large("data/large3", 7, 140_000)]),
    "flat": write_tar([*files(8, 9), large("large", 9, 260_000)]),
    "edition1": write_tar(edition(1)),
    "edition2": write_tar(edition(2)),
    "base": write_tar(base()),
    "busybox": busybox(),
}
_STACKS = {
    "app": ["bottom", "middle"],
    "newer": ["bottom", "middle", "top"],
    "sibling": ["bottom", "other"],
    "flat": ["flat"],
    "edition1": ["bottom", "edition1"],
    "edition2": ["bottom", "edition2"],
    "shell": ["base", "busybox"],
}
IMAGES = {name: Image([LAYERS[layer] for layer in stack], [f"{name}:1"]) for name, stack in _STACKS.items()}


@dataclass(frozen=True)
class Given:
    """A store that is to be made as it is before an operation; what that reads; a registry on this machine."""

    store: Store
    place: Place
    registry_port: int

    @property
    def registry(self) -> str:
        return f"127.0.0.1:{self.registry_port}"

    def load(self, *names: str) -> None:
        """Load images, all in one import."""
        self.store.load(io.BytesIO(tar_of(docker_files([IMAGES[name] for name in names]))))

    def load_stack(self, count: int) -> None:
        """Load an image of so many layers, `grown:COUNT`, each layer by an import of its own."""
        Stack(count).load(self.store, range(1, count + 1))

    def put(self, *names: str) -> None:
        """Have the registry have images, as tags of the repository "app"."""
        for name in names:
            put_image(self.registry_port, "app", name, IMAGES[name])

    def write(self, name: str, data: bytes) -> None:
        """A file among what the operation reads."""
        (self.place.inputs / name).write_bytes(data)

    def write_archive(self, name: str, image: str, kind: str, compression: str) -> None:
        """An archive of an image, of that kind: "docker" or "oci"."""
        made = docker_files if kind == "docker" else oci_files
        self.write(name, tar_of(made([IMAGES[image]], compression=compression)))

    def write_store(self, name: str, *images: str) -> None:
        """Another store, with these images."""
        with Store(self.place.inputs / name, create=True) as store:
            Given(store, self.place, self.registry_port).load(*images)

    def write_layer(self, name: str, layer: str) -> None:
        self.write(name, LAYERS[layer])

    def write_tree(self, name: str, files: dict[str, Any]) -> Path:
        """A directory, as `contexts.write_context` takes it."""
        return write_context(self.place.inputs / name, files)

    def box(self, driver: str) -> Container:
        """A container "box" of the image "app", with changes of its own: new and changed files, an object's size,
        removed and renamed ones."""
        container = self.store.create("app:1", name="box", driver="extent")
        container.makedirs("own/deep")
        container.write_bytes("own/small", b"of the container\n")
        container.write_bytes("own/deep/large", random.Random(10).randbytes(170_000))
        container.write_bytes("etc/secret", b"changed")
        container.unlink("app")
        container.rename("data/large", "data/renamed")
        container.symlink("own/small", "data/link")
        container.setxattr("own/small", "user.mine", b"1")
        container.move(driver)
        return self.store.container("box")
