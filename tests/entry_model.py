"""What the entries of a container are to be, from a look at all of it and all of its image; and what entries make of an
image."""

import os
import stat
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

from host_tree import LATER_NS, Dump

from layerstore._core.extents import IMAGE
from layerstore._core.index import Index
from layerstore.extents.tree import Tree
from layerstore.results import Change
from layerstore.store.contents import ContentStore
from layerstore.trees.entries import Entry


class Found(NamedTuple):
    """An entry, but for what it shares with the inode."""

    path: bytes
    whiteout: bool
    link: bytes | None
    opaque: bool
    lower: int | None


class _Facts:
    """All paths of a container, and which of them are as in the image."""

    def __init__(self, tree: Tree) -> None:
        self.table = tree.table
        self.index = tree.table.image.index
        self.image = {record.path: record for record in self.index}
        self.numbers: dict[bytes, int] = {b"": 0}
        self.in_place = {b""}
        self._list(b"")
        self.linked_anew = {
            number for path, number in self.numbers.items() if path not in self.in_place and not self.is_dir(path)
        }

    def _list(self, directory: bytes) -> None:
        for name, number in self.table.children(self.table.get(self.numbers[directory])):
            path = directory + b"/" + name if directory else name
            self.numbers[path] = number
            if directory in self.in_place and path in self.image and self.image[path].inode == number:
                self.in_place.add(path)
            if self.is_dir(path):
                self._list(path)

    def mode(self, path: bytes) -> int:
        return self.table.get(self.numbers[path]).mode

    def is_dir(self, path: bytes) -> bool:
        return stat.S_ISDIR(self.mode(path))

    def is_own(self, path: bytes) -> bool:
        inode = self.table.get(self.numbers[path])
        return inode.extents is not None and list(inode.extents) != (
            [(0, inode.image_size, IMAGE)] if inode.image_size else []
        )

    def differs(self, path: bytes) -> bool:
        inode, record = self.table.get(self.numbers[path]), self.image[path]
        known = (record.mode, record.uid, record.gid, record.mtime_ns, record.xattrs)
        return self.is_own(path) or known != (inode.mode, inode.uid, inode.gid, inode.mtime_ns, inode.xattrs)

    def shown(self, sockets: bool) -> set[bytes]:
        """The paths that are not as in the image, without directories on the way to them."""
        there = {path for path in self.numbers if sockets or not stat.S_ISSOCK(self.mode(path))}
        return {
            path
            for path in there
            if path not in self.in_place or self.numbers[path] in self.linked_anew or self.differs(path)
        }

    def gone(self, sockets: bool) -> set[bytes]:
        """The paths of the image that are not in a directory which is still the image's."""
        there = {path for path in self.numbers if sockets or not stat.S_ISSOCK(self.mode(path))}
        return {
            path
            for path in self.image
            if path not in there and path.rpartition(b"/")[0] in self.in_place & there
            if self.is_dir(path.rpartition(b"/")[0])
        }


def _with_parents(paths: set[bytes]) -> set[bytes]:
    found = set(paths)
    for path in paths:
        while path:
            path = path.rpartition(b"/")[0]
            if path:
                found.add(path)
    return found


def _order(path: bytes) -> list[bytes]:
    return path.split(b"/") if path else []


def expected_entries(tree: Tree) -> list[Found]:
    facts = _Facts(tree)
    gone = facts.gone(sockets=False)
    first: dict[int, bytes] = {}
    found = []
    for path in sorted(_with_parents(facts.shown(sockets=False) | gone), key=_order):
        if path in gone:
            found.append(Found(path, True, None, False, None))
            continue
        number = facts.numbers[path]
        if facts.is_dir(path):
            above_is_in_place = path == b"" or path.rpartition(b"/")[0] in facts.in_place
            hides = above_is_in_place and path in facts.image and stat.S_ISDIR(facts.image[path].mode)
            found.append(Found(path, False, None, hides and path not in facts.in_place, None))
            continue
        link = first.setdefault(number, path)
        inode = facts.table.get(number)
        lower = number if inode.digest is not None and not facts.is_own(path) else None
        found.append(Found(path, False, link if link != path else None, False, lower))
    return found


def expected_changes(tree: Tree) -> list[Change]:
    facts = _Facts(tree)
    found = dict.fromkeys(facts.gone(sockets=True), "D")
    changed = _with_parents(facts.shown(sockets=True) | set(found)) - set(found) - {b""}
    found |= {path: "C" if path in facts.image else "A" for path in changed}
    for path, record in facts.image.items():
        parent = path.rpartition(b"/")[0]
        is_replaced = parent in facts.numbers and facts.is_dir(parent) and parent not in facts.in_place
        if path not in facts.numbers and is_replaced:
            assert stat.S_ISDIR(facts.image[parent].mode), record
            found[path] = "D"
    return [Change(kind, "/" + os.fsdecode(path)) for path, kind in sorted(found.items())]


def found_of(entry: Entry) -> Found:
    return Found(entry.path, entry.is_whiteout(), entry.link, entry.opaque, entry.lower)


# What entries make of an image


class Node:
    """An inode; hard links share one."""

    def __init__(self, mode: int, uid: int, gid: int, mtime_ns: int) -> None:
        self.mode = mode
        self.uid = uid
        self.gid = gid
        self.mtime_ns = mtime_ns
        self.xattrs: dict[bytes, bytes] = {}
        self.target: bytes | None = None
        self.rdev = 0
        self.data = b""


Nodes = dict[bytes, Node]


def image_nodes(index: Index, contents: ContentStore) -> Nodes:
    nodes: Nodes = {}
    by_inode: dict[int, Node] = {}
    for record in index:
        node = by_inode.get(record.inode)
        if node is None:
            node = by_inode[record.inode] = Node(record.mode, record.uid, record.gid, record.mtime_ns)
            node.xattrs, node.target = record.xattrs, record.target
            node.rdev = os.makedev(*record.rdev) if record.rdev else 0
            if record.content is not None:
                node.data = contents.read(index.content(record.content)[0])
        nodes[record.path] = node
    return nodes


def apply(nodes: Nodes, entries: Iterable[Entry], index: Index, contents: ContentStore) -> Nodes:
    """The tree that a layer of these entries makes of a tree."""
    nodes = dict(nodes)
    for entry in entries:
        there = nodes.get(entry.path)
        is_merged = entry.is_dir() and there is not None and stat.S_ISDIR(there.mode)
        if entry.is_whiteout():
            assert there is not None, entry.path
        assert not entry.opaque or is_merged, entry.path
        below = entry.path + b"/"
        if not is_merged or entry.opaque:
            nodes = {path: node for path, node in nodes.items() if path != entry.path and not path.startswith(below)}
        if not entry.is_whiteout():
            parent = nodes[entry.path.rpartition(b"/")[0]]
            assert stat.S_ISDIR(parent.mode)
            nodes[entry.path] = _node(entry, index, contents) if entry.link is None else nodes[entry.link]
            if entry.link is not None:
                assert _facts(nodes[entry.link], 0) == _facts(_node(entry, index, contents), 0)
    return nodes


def _node(entry: Entry, index: Index, contents: ContentStore) -> Node:
    node = Node(entry.mode, entry.uid, entry.gid, entry.mtime_ns)
    node.xattrs, node.target, node.rdev = entry.xattrs, entry.target, entry.rdev
    node.data = b"".join(map(bytes, entry.source.pieces())) if entry.source is not None else b""
    assert (entry.source is None) == (entry.size == 0) or not entry.is_file()
    assert not entry.is_file() or len(node.data) == entry.size, entry.path
    if entry.lower is not None:
        record = index.record(entry.lower)
        assert record.content is not None
        assert contents.read(index.content(record.content)[0]) == node.data
    return node


def _facts(node: Node, links: int) -> tuple[Any, ...]:
    root = os.geteuid() == 0
    is_dir, is_device = stat.S_ISDIR(node.mode), stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode)
    return (
        node.mode,
        node.uid if root else 0,
        node.gid if root else 0,
        0 if is_dir else links,
        0 if is_dir else len(node.target if node.target is not None else node.data),
        node.rdev if is_device else 0,
        "now" if node.mtime_ns >= LATER_NS else node.mtime_ns,
    )


def told(nodes: Nodes) -> Dump:
    """As `host_tree.dump` tells a tree."""
    links = Counter(map(id, nodes.values()))
    first: dict[int, str] = {}
    found: Dump = {}
    for path in sorted(nodes, key=_order):
        node = nodes[path]
        shown = os.fsdecode(b"./" + path) if path else "."
        one: list[Any] = [_facts(node, links[id(node)])]
        one.append({os.fsdecode(name): node.xattrs[name] for name in sorted(node.xattrs)})
        if node.target is not None:
            one.append(os.fsdecode(node.target))
        elif stat.S_ISREG(node.mode):
            one.append(node.data)
        if not stat.S_ISDIR(node.mode):
            one.append(first.setdefault(id(node), shown))
        found[shown] = tuple(one)
    return found


def without_sockets(dump: Dump) -> Dump:
    return {path: one for path, one in dump.items() if not stat.S_ISSOCK(one[0][0])}
