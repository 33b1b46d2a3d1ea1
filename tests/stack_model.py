"""Random stacks of layers, a model that applies them one by one, and what overlayfs shows of them: what the tests of
the merge and of the provenance share.

How many stacks each of those tests tries is EXAMPLES: LAYERSTORE_EXAMPLES, or 200. `make campaign` tries 5,000.
"""

import hashlib
import os
import random
import shutil
import stat
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import strategies as st

from layerstore._core import index as ix
from layerstore._core.index import Index, Node, write_index

EXAMPLES = int(os.environ.get("LAYERSTORE_EXAMPLES") or 200)
KEY = bytes(range(16))
NAMES = [b"a", b"b", b"ab", b"a-", b"\xff\xfe", b"z z", b"longer-than-8-bytes-1", b"longer-than-8-bytes-2"]
NAMES += [b"\n", b"...", b"n" * 255]
DEPTH = 12  # so that a path has less than 4,096 bytes, whatever its names
LINKS = ["link", "lower link", "rename"]
Parts = tuple[bytes, ...]


@dataclass(eq=False)
class Inode:
    """An entry of a layer or of a view; hard links share one."""

    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    data: bytes | None = None
    target: bytes | None = None
    rdev: tuple[int, int] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    flags: int = 0

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)


Layer = dict[Parts, Inode]
View = dict[Parts, tuple[Inode, int]]


def digest_of(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def layer_bytes(layer: Layer, shuffle: random.Random | None = None) -> memoryview:
    paths = sorted(layer, key=lambda path: (len(path), path))
    if shuffle:
        rest = paths[1:]
        shuffle.shuffle(rest)
        paths[1:] = rest
    number = {path: i for i, path in enumerate(paths)}
    links: dict[int, int] = {}
    contents: list[tuple[bytes, int]] = []
    nodes = []
    for path in paths:
        inode = layer[path]
        content = None
        if inode.data:
            content = len(contents)
            contents.append((digest_of(inode.data), len(inode.data)))
        nodes.append(
            Node(
                parent=number[path[:-1]],
                name=path[-1] if path else b"",
                mode=inode.mode,
                uid=inode.uid,
                gid=inode.gid,
                mtime_ns=inode.mtime_ns,
                content=content,
                target=inode.target,
                rdev=inode.rdev,
                xattrs=inode.xattrs,
                flags=inode.flags,
                inode=links.setdefault(id(inode), number[path]),
            )
        )
    return write_index(ix.LAYER, 1, KEY, nodes, contents)


def layer_index(layer: Layer, shuffle: random.Random | None = None) -> Index:
    return Index(layer_bytes(layer, shuffle))


def below(path: Parts, ancestor: Parts) -> bool:
    return len(path) > len(ancestor) and path[: len(ancestor)] == ancestor


def remove(view: View, path: Parts, itself: bool) -> None:
    for other in [p for p in view if below(p, path) or (itself and p == path)]:
        del view[other]


def apply(view: View, layer: Layer, number: int) -> View:
    """The view once the layer is on top: the model that the merge is compared with."""
    before = dict(view)
    view = dict(view)
    for path, inode in layer.items():
        if inode.flags & ix.OPAQUE:
            remove(view, path, itself=False)
        if inode.flags & ix.WHITEOUT:
            remove(view, path, itself=True)
    for path in sorted(layer, key=len):
        inode = layer[path]
        old = view.get(path)
        if inode.flags & ix.WHITEOUT:
            continue
        if inode.is_directory:
            if old and not old[0].is_directory:
                del view[path]
                old = None
            if old and inode.flags & ix.IMPLIED and not old[0].flags & ix.IMPLIED:
                continue
            view[path] = (replace(inode, flags=inode.flags & ix.IMPLIED), number)
            continue
        remove(view, path, itself=True)
        if inode.flags & ix.LOWER_LINK:
            inode = before[tuple(inode.target.split(b"/"))][0]
        view[path] = (inode, number)
    return view


def model(layers: list[Layer]) -> View:
    view: View = {}
    for number, layer in enumerate(layers):
        view = apply(view, layer, number)
    return view


def describe_view(view: View) -> tuple[dict, list[list[bytes]]]:
    described = {}
    links: dict[int, list[bytes]] = {}
    for path, (inode, layer) in view.items():
        joined = b"/".join(path)
        content = (digest_of(inode.data), len(inode.data)) if inode.data else None
        described[joined] = (
            *(inode.mode, inode.uid, inode.gid, inode.mtime_ns, content, inode.target, inode.rdev),
            *(inode.xattrs, inode.flags, layer),
        )
        links.setdefault(id(inode), []).append(joined)
    return described, sorted(sorted(group) for group in links.values())


def describe_index(index: Index) -> tuple[dict, list[list[bytes]]]:
    described = {}
    links: dict[int, list[bytes]] = {}
    for r in index:
        content = None if r.content is None else index.content(r.content)
        described[r.path] = (
            *(r.mode, r.uid, r.gid, r.mtime_ns, content, r.target, r.rdev),
            *(r.xattrs, r.flags, r.layer),
        )
        links.setdefault(r.inode, []).append(r.path)
    for number, group in links.items():
        record = index.record(number)
        if not stat.S_ISDIR(record.mode):
            assert record.count == len(group)
    return described, sorted(sorted(group) for group in links.values())


def pick(draw, options):
    """One of a list. Hypothesis keeps strategies of integers, but makes those of a choice from a list anew."""
    return options[draw(st.integers(0, len(options) - 1))]


def inode_of(draw, tag: int, on_kernel: bool):
    """Anything but a directory, a whiteout or a link."""
    kind = pick(draw, ["file", "file", "file", "empty", "symlink", "device", "fifo"])
    inode = Inode(
        mode=pick(draw, [0o644, 0o4755, 0o600, 0]),
        uid=pick(draw, [0, 1000, 4_000_000_000]),
        gid=pick(draw, [0, 70_000]),
        mtime_ns=pick(draw, [0, 1_700_000_000_123_456_789, 1] + ([] if on_kernel else [-1, -(10**18)])),
        xattrs=pick(draw, [{}, {}, {b"trusted.b": b"", b"trusted.a": b"\x00\xff"}]),
    )
    if kind == "symlink":
        inode.mode, inode.target = stat.S_IFLNK | 0o777, pick(draw, [b"a", b"../\xff", b"/etc"])
    elif kind == "device":
        inode.mode |= pick(draw, [stat.S_IFCHR, stat.S_IFBLK])
        inode.rdev = pick(draw, [(1, 3), (259, 70_000)])
    elif kind == "fifo":
        inode.mode |= stat.S_IFIFO
    else:
        inode.mode |= stat.S_IFREG
        inode.data = b"" if kind == "empty" else b"content %d" % pick(draw, [0, tag])
    return inode


def directory_of(draw, on_kernel: bool):
    if not on_kernel and draw(st.booleans()):
        directory = Inode(mode=stat.S_IFDIR | 0o755, flags=ix.IMPLIED)
    else:
        directory = Inode(
            mode=stat.S_IFDIR | pick(draw, [0o755, 0o1777, 0o700]),
            uid=pick(draw, [0, 5]),
            mtime_ns=draw(st.integers(0, 3)) * 10**18 + 7,
            xattrs=pick(draw, [{}, {b"trusted.d": b"1"}]),
        )
    if draw(st.integers(0, 4)) == 0:
        directory.flags |= ix.OPAQUE
    return directory


def has_room(layer: Layer, path: Parts) -> bool:
    """Whether the layer can still be given a path: it has none there, and nothing but directories above."""
    above = (layer.get(path[:depth]) for depth in range(len(path)))
    return path not in layer and all(inode is None or inode.is_directory for inode in above)


def make_parents(draw, layer: Layer, path: Parts, on_kernel: bool) -> None:
    for depth in range(1, len(path)):
        if path[:depth] not in layer:
            layer[path[:depth]] = directory_of(draw, on_kernel)


def path_near(draw, shown: list[Parts]):
    """Any path, often one that is there or below one that is."""
    names = [pick(draw, NAMES) for _ in range(draw(st.integers(1, 4)))]
    if draw(st.booleans()):
        return tuple(names)
    near = pick(draw, shown) + tuple(names[: draw(st.integers(0, 1))])
    return near[:DEPTH] or tuple(names)


def rename(draw, layer: Layer, view: View, old: Parts, new: Parts, on_kernel: bool) -> None:
    """What a layer has of a rename: a whiteout, and the same files at another path."""
    moved = {path: view[path][0] for path in view if path == old or below(path, old)}
    if not moved or old[: len(new)] == new[: len(old)] or max(map(len, moved)) - len(old) + len(new) > DEPTH:
        return
    if not (has_room(layer, old) and has_room(layer, new)):
        return
    make_parents(draw, layer, old, on_kernel)
    make_parents(draw, layer, new, on_kernel)
    layer[old] = Inode(flags=ix.WHITEOUT)
    copies: dict[int, Inode] = {}
    for path, inode in moved.items():
        copy = copies.setdefault(id(inode), replace(inode, flags=0))
        layer[new + path[len(old) :]] = copy


def layer_on(draw, view: View, tag: int, on_kernel: bool):
    """A layer whose links into the layers below, which show `view`, can be resolved."""
    root = directory_of(draw, on_kernel)
    if on_kernel:
        root.flags = 0  # overlayfs does not look for an opaque mark on the root of a layer
    layer: Layer = {(): root}
    shown = sorted(view) or [()]
    lower_files = [path for path in shown if path and not view[path][0].is_directory]
    for path in [path_near(draw, shown) for _ in range(draw(st.integers(0, 14)))]:
        if not has_room(layer, path):
            continue
        kind = pick(draw, ["directory", "directory", "inode", "inode", "whiteout", *LINKS])
        if kind == "rename":
            rename(draw, layer, view, pick(draw, shown), path, on_kernel)
            continue
        make_parents(draw, layer, path, on_kernel)
        files = [inode for inode in layer.values() if not inode.is_directory and inode.mode]
        if kind == "directory":
            layer[path] = directory_of(draw, on_kernel)
        elif kind == "whiteout":
            layer[path] = Inode(flags=ix.WHITEOUT)
        elif kind == "link" and files:
            layer[path] = pick(draw, files)
        elif kind == "lower link" and lower_files:
            layer[path] = Inode(flags=ix.LOWER_LINK, target=b"/".join(pick(draw, lower_files)))
        else:
            layer[path] = inode_of(draw, tag, on_kernel)
    return layer


@st.composite
def stacks(draw, min_size: int = 1, on_kernel: bool = False):
    layers: list[Layer] = []
    view: View = {}
    for number in range(draw(st.integers(min_size, 5))):
        layers.append(layer_on(draw, view, number, on_kernel))
        view = apply(view, layers[-1], number)
    return layers


# What the kernel shows


def write_inode(where: Path, inode: Inode, first_link: Path | None) -> None:
    if first_link is not None:
        os.link(first_link, where, follow_symlinks=False)
        return
    if inode.flags & ix.WHITEOUT:
        os.mknod(where, stat.S_IFCHR, os.makedev(0, 0))
        return
    if inode.is_directory:
        where.mkdir()
        if inode.flags & ix.OPAQUE:
            os.setxattr(where, "trusted.overlay.opaque", b"y")
    elif inode.target is not None:
        where.symlink_to(os.fsdecode(inode.target))
    elif inode.data is not None:
        where.write_bytes(inode.data)
    else:
        os.mknod(where, inode.mode, os.makedev(*inode.rdev) if inode.rdev else 0)
    for name, value in inode.xattrs.items():
        os.setxattr(where, name, value, follow_symlinks=False)
    os.chown(where, inode.uid, inode.gid, follow_symlinks=False)
    if inode.target is None:
        where.chmod(stat.S_IMODE(inode.mode))


def write_layer(top: Path, layer: Layer) -> None:
    where = {parts: top.joinpath(*map(os.fsdecode, parts)) for parts in sorted(layer, key=len)}
    links: dict[int, Path] = {}
    for parts, path in where.items():
        write_inode(path, layer[parts], links.get(id(layer[parts])))
        links.setdefault(id(layer[parts]), path)
    for parts, path in reversed(where.items()):
        time = layer[parts].mtime_ns
        os.utime(path, ns=(time, time), follow_symlinks=False)


def describe_file(where: Path) -> tuple | None:
    try:
        s = where.lstat()
    except FileNotFoundError:
        return None  # overlayfs lists whiteouts of directories that are not merged, and then does not find them
    data = target = rdev = None
    if stat.S_ISREG(s.st_mode):
        content = where.read_bytes()
        data = (digest_of(content), len(content)) if content else None
    elif stat.S_ISLNK(s.st_mode):
        target = os.fsencode(where.readlink())
    elif stat.S_ISCHR(s.st_mode) or stat.S_ISBLK(s.st_mode):
        rdev = (os.major(s.st_rdev), os.minor(s.st_rdev))
    xattrs = {
        os.fsencode(name): os.getxattr(where, name, follow_symlinks=False)
        for name in os.listxattr(where, follow_symlinks=False)
    }
    return s.st_ino, (s.st_mode, s.st_uid, s.st_gid, s.st_mtime_ns, data, target, rdev, xattrs)


def describe_mount(top: Path) -> tuple[dict, list[list[bytes]]]:
    described = {}
    links: dict[object, list[bytes]] = {}
    queue = [top]
    for where in queue:
        found = describe_file(where)
        if found is None:
            continue
        path = b"" if where == top else os.fsencode(where.relative_to(top))
        inode, described[path] = found
        is_directory = stat.S_ISDIR(described[path][0])
        links.setdefault(path if is_directory else inode, []).append(path)
        if is_directory:
            queue += where.iterdir()
    return described, sorted(sorted(group) for group in links.values())


def without_layers(description: tuple[dict, list]) -> tuple[dict, list]:
    described, links = description
    return {path: attributes[:8] for path, attributes in described.items()}, links


def without_lower_links(layers: list[Layer]) -> list[Layer]:
    """The layers as a file system can hold them, which has no links from one directory tree into another: the inode is
    copied up with all the names by which it is seen, as overlayfs does with an index of inodes."""
    found = []
    view: View = {}
    for number, layer in enumerate(layers):
        view = apply(view, layer, number)
        copied_up = {id(view[path][0]) for path, inode in layer.items() if inode.flags & ix.LOWER_LINK}
        plain = {path: inode for path, inode in layer.items() if not inode.flags & ix.LOWER_LINK}
        for path in [path for path, (inode, _) in view.items() if id(inode) in copied_up]:
            for depth in range(1, len(path) + 1):
                plain.setdefault(path[:depth], view[path[:depth]][0])
        found.append(plain)
    return found


def show(scratch: Path, layers: list[Layer]) -> tuple[dict, list[list[bytes]]]:
    """What overlayfs shows of the layers."""
    tops = [scratch / f"layer{number}" for number in range(len(layers))]
    for top, layer in zip(tops, without_lower_links(layers), strict=True):
        write_layer(top, layer)
    where = scratch / "merged"
    where.mkdir()
    options = f"ro,lowerdir={':'.join(map(str, reversed(tops)))}"
    subprocess.run(["mount", "-t", "overlay", "layerstore-test", "-o", options, where], check=True)
    try:
        return describe_mount(where)
    finally:
        subprocess.run(["umount", where], check=True)
        for each in [*tops, where]:
            shutil.rmtree(each)


# Hand-made entries


def directory(**attributes) -> Inode:
    return Inode(mode=stat.S_IFDIR | 0o755, **attributes)


def regular(data: bytes = b"x") -> Inode:
    return Inode(mode=stat.S_IFREG | 0o644, data=data)


def lower_link(target: bytes) -> Inode:
    return Inode(flags=ix.LOWER_LINK, target=target)
