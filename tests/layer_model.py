"""What the layer tests share: a tar writer, a reader of index bytes, a small model of the rules of csrc/index/layer.h.

The model keeps a flat dictionary of whole paths and deletes by prefix, which is nothing like what the builder does.
"""

import os
import stat
import struct
from dataclasses import dataclass, field
from decimal import Decimal
from typing import NamedTuple

import tarbytes

NONE = 0xFFFFFFFF
WHITEOUT, OPAQUE, IMPLIED, LOWER_LINK = 1, 2, 4, 8
TYPES = {
    "file": (b"0", stat.S_IFREG),
    "dir": (b"5", stat.S_IFDIR),
    "symlink": (b"2", stat.S_IFLNK),
    "hardlink": (b"1", 0),
    "fifo": (b"6", stat.S_IFIFO),
    "char": (b"3", stat.S_IFCHR),
    "block": (b"4", stat.S_IFBLK),
}
# For random entries: the common kinds more often.
KINDS = ["file", "file", "file", "dir", "dir", "symlink", "symlink", "hardlink", "hardlink", "fifo", "char"]


@dataclass(frozen=True)
class Entry:
    """One entry of a hand-made tar."""

    kind: str
    path: str
    link: str = ""
    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: tuple[int, int] = (0, 0)
    xattrs: dict[str, bytes] = field(default_factory=dict)
    device: tuple[int, int] = (0, 0)


def write_entry(entry: Entry) -> bytes:
    path, link = os.fsencode(entry.path), os.fsencode(entry.link)
    records = {b"SCHILY.xattr." + name.encode(): value for name, value in entry.xattrs.items()}
    if len(path) > 100:
        records[b"path"] = path
    if len(link) > 100:
        records[b"linkpath"] = link
    if entry.mtime[1]:
        records[b"mtime"] = f"{entry.mtime[0] + Decimal(entry.mtime[1]) / 10**9:f}".encode()
    head = tarbytes.header(
        path, type=TYPES[entry.kind][0], size=len(entry.data), mode=entry.mode, uid=entry.uid, gid=entry.gid,
        mtime=entry.mtime[0], link=link, device=entry.device,
    )  # fmt: skip
    return (tarbytes.pax(records) if records else b"") + head + tarbytes.padded(entry.data)


def write_tar(entries: list[Entry]) -> bytes:
    return tarbytes.archive(*map(write_entry, entries))


class Record(NamedTuple):
    mode: int
    uid: int
    gid: int
    size: int
    mtime: tuple[int, int]
    flags: int
    content: int | None  # a regular file's content number
    target: bytes | None
    xattrs: dict[bytes, bytes]
    links: frozenset[str]  # every path of the inode


HEADER = struct.Struct("<8sIIIIIIQ16s32s32s8s")
RECORD = struct.Struct("<IHHIIIIQqIIIIIHH")


def _xattrs(heap: bytes, offset: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    if not offset:
        return found
    (count,) = struct.unpack_from("<H", heap, offset)
    offset += 2
    for _ in range(count):
        name_length, value_length = struct.unpack_from("<HI", heap, offset)
        name_end = offset + 6 + name_length
        found[heap[offset + 6 : name_end]] = heap[name_end : name_end + value_length]
        offset = name_end + value_length
    assert list(found) == sorted(found) and len(found) == count
    return found


def read_index(index: bytes) -> dict[str, Record]:
    """The records of a layer's index by path, read from the format alone."""
    magic, version, kind, count, contents, slots, layers, heap_bytes, *_ = HEADER.unpack_from(index)
    assert (magic, version, kind, layers) == (b"LSINDEX\n", 1, 1, 1)
    heap = index[HEADER.size + 64 * count + 8 * slots + 40 * contents :]
    assert len(heap) == heap_bytes
    raw = [RECORD.unpack_from(index, HEADER.size + 64 * i) for i in range(count)]
    paths = [heap[r[0] : r[0] + r[1]].decode("utf-8", "surrogateescape") for r in raw]
    groups: dict[int, set[str]] = {}
    for path, r in zip(paths, raw, strict=True):
        groups.setdefault(r[12], set()).add(path)
    found = {}
    for path, r in zip(paths, raw, strict=True):
        mode, uid, gid, size, seconds, nanoseconds, data, links, inode, xattrs, flags, _ = r[4:]
        is_file, has_target = stat.S_ISREG(mode), stat.S_ISLNK(mode) or flags & LOWER_LINK
        if mode and not stat.S_ISDIR(mode):
            assert links == len(groups[inode])
        found[path] = Record(
            mode, uid, gid, size, (seconds, nanoseconds), flags,
            data if is_file and data != NONE else None,
            heap[data : data + size] if has_target else None,
            _xattrs(heap, xattrs), frozenset(groups[inode]),
        )  # fmt: skip
    assert len(found) == count
    return found


class Refused(Exception):
    pass


Path = tuple[str, ...]


class Inode:
    def __init__(self, mode: int, entry: Entry | None = None, content: int | None = None) -> None:
        self.mode, self.entry, self.content, self.lower = mode, entry, content, None


class Model:
    """The rules of csrc/index/layer.h, one path at a time."""

    def __init__(self) -> None:
        self.tree: dict[Path, Inode] = {(): Inode(stat.S_IFDIR | 0o755)}
        self.whiteouts: set[Path] = set()
        self.opaques: set[Path] = set()
        self.contents = 0

    def clean(self, path: str) -> Path:
        parts: list[str] = []
        for part in path.split("/"):
            if part == ".." and not parts:
                raise Refused("leaves the root")
            if part == "..":
                parts.pop()
            elif part not in ("", "."):
                parts.append(part)
        return tuple(parts)

    def follow(self, parents: Path) -> Path:
        todo, at, links = list(parents), (), 0
        while todo:
            part = todo.pop(0)
            if part in ("", "."):
                continue
            if part == "..":
                at = at[:-1]
                continue
            inode = self.tree.get((*at, part))
            if inode is None or stat.S_ISDIR(inode.mode):
                at = (*at, part)
            elif stat.S_ISLNK(inode.mode):
                links += 1
                if links > 40:
                    raise Refused("too many links")
                at = () if inode.entry.link.startswith("/") else at
                todo = inode.entry.link.split("/") + todo
            else:
                raise Refused("below a non-directory")
        return at

    def make_parents(self, path: Path) -> None:
        for i in range(1, len(path)):
            if path[:i] not in self.tree:
                if path[i - 1].startswith(".wh."):
                    raise Refused("a directory with a whiteout's name")
                self.tree[path[:i]] = Inode(stat.S_IFDIR | 0o755)

    def drop(self, path: Path) -> None:
        def below(p: Path) -> bool:
            return len(p) > len(path) and p[: len(path)] == path

        self.tree = {p: inode for p, inode in self.tree.items() if p != path and not below(p)}
        self.whiteouts = {p for p in self.whiteouts if not below(p)}
        self.opaques = {p for p in self.opaques if p != path and not below(p)}

    def add(self, entry: Entry) -> None:
        content = None
        if entry.data:
            content, self.contents = self.contents, self.contents + 1
        parts = self.clean(entry.path)
        if any(part.startswith(".wh..wh.") for part in parts[:-1]):
            return
        name = parts[-1] if parts else ""
        if name.startswith(".wh..wh.") and name != ".wh..wh..opq":
            return
        if name[4:] in ("", ".", "..") and name.startswith(".wh."):
            raise Refused("a whiteout of nothing")
        if not parts and entry.kind != "dir":
            raise Refused("the root is a directory")
        path = self.follow(parts[:-1]) + parts[-1:]
        self.make_parents(path)
        if name == ".wh..wh..opq":
            self.opaques.add(path[:-1])
        elif name.startswith(".wh."):
            self.whiteouts.add((*path[:-1], name[4:]))
        elif entry.kind == "hardlink":
            self.link(path, entry)
        else:
            self.put(path, entry, content)

    def link(self, path: Path, entry: Entry) -> None:
        parts = self.clean(entry.link)
        if not parts:
            raise Refused("a link to the root")
        target = self.follow(parts[:-1]) + parts[-1:]
        inode = self.tree.get(target)
        if inode and stat.S_ISDIR(inode.mode):
            raise Refused("a link to a directory")
        if target[: len(path)] == path:
            raise Refused("a link to itself")
        if inode is None:
            inode = Inode(0)
            inode.lower = "/".join(target)
        self.drop(path)
        self.tree[path] = inode

    def put(self, path: Path, entry: Entry, content: int | None) -> None:
        present = self.tree.get(path)
        if not (present and stat.S_ISDIR(present.mode) and entry.kind == "dir"):
            self.drop(path)
        mode = 0o777 if entry.kind == "symlink" else entry.mode
        self.tree[path] = Inode(TYPES[entry.kind][1] | mode, entry, content)

    def records(self) -> dict[str, Record]:
        paths: dict[int, set[str]] = {}
        for path, inode in self.tree.items():
            paths.setdefault(id(inode), set()).add("/".join(path))
        found = {"/".join(p): Record(0, 0, 0, 0, (0, 0), WHITEOUT, None, None, {}, frozenset(["/".join(p)]))
                 for p in self.whiteouts if p not in self.tree}  # fmt: skip
        for path, inode in self.tree.items():
            name = "/".join(path)
            flags = 0
            if stat.S_ISDIR(inode.mode):
                flags |= OPAQUE if path in self.opaques or path in self.whiteouts else 0
                flags |= 0 if inode.entry else IMPLIED
            entry = inode.entry or Entry("dir", name)
            links = frozenset(paths[id(inode)])
            if inode.lower is not None:
                target = inode.lower.encode()
                found[name] = Record(0, 0, 0, len(target), (0, 0), LOWER_LINK, None, target, {}, frozenset([name]))
                continue
            target = entry.link.encode() if entry.kind == "symlink" else None
            size = len(target) if target is not None else len(entry.data)
            if entry.kind in ("char", "block"):
                size = entry.device[0] << 32 | entry.device[1]
            xattrs = {key.encode(): value for key, value in sorted(entry.xattrs.items())}
            found[name] = Record(
                inode.mode, entry.uid, entry.gid, size, entry.mtime, flags, inode.content, target, xattrs, links
            )
        return found
