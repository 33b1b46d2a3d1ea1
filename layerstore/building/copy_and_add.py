"""COPY and ADD: what they read, and the entries of the layer that they make of it
(https://docs.docker.com/reference/dockerfile/, "ADD", "COPY")."""

from __future__ import annotations

import json
import posixpath
import stat

from layerstore._core.hashing import blake3
from layerstore._core.sha256 import sha256
from layerstore.building.hostfiles import HostFile
from layerstore.building.patterns import has_wildcards
from layerstore.errors import InvalidInput, NotFound
from layerstore.limits import DEFAULT
from layerstore.trees.paths import join, relative_to
from layerstore.types import Value, decode_path, encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from contextlib import ExitStack
    from typing import TypeAlias

    from layerstore.building.built_tree import ImageFiles, NewLayer, Tree
    from layerstore.building.context import Context
    from layerstore.limits import Limits
    from layerstore.store.pieces import Piece
    from layerstore.trees.entries import Entry

    Files: TypeAlias = Context | ImageFiles

_REMOTE = ("http://", "https://", "ftp://", "git://", "ssh://", "git@")


class Text:
    """A content that is in the Dockerfile itself."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.digest = blake3(data)

    def pieces(self) -> Iterator[Piece]:
        """As `Source.pieces`."""
        yield self._data

    def clone_to(self, fd: int) -> bool:
        """As `Source.clone_to`."""
        return False


class Item(Value):
    """One file or tree that is copied: the last name of its path, and its entries, the topmost first."""

    name: str
    entries: list[Entry]


class Copy:
    """One COPY or ADD.

    to: where to, absolute; with a slash at its end it is a directory. chown, chmod: values of the flags, or None.
    keeps_owner: where there is no `chown`, owners are those of what is read. scratch: for ADD, which unpacks archives,
    a directory for what it decompresses; None for COPY. limits: on archives.
    """

    def __init__(
        self,
        items: Sequence[Item],
        to: str,
        *,
        chown: str | None,
        chmod: str | None,
        keeps_owner: bool,
        scratch: str | None,
        limits: Limits = DEFAULT,
    ) -> None:
        if chmod is not None and (chmod.strip("01234567") or not 1 <= len(chmod) <= 4):
            raise InvalidInput(f"--chmod={chmod}: it is an octal number like 755")
        self._items = items
        self._to = to
        self._chown = chown
        self._mode = None if chmod is None else int(chmod, 8)
        self._keeps_owner = keeps_owner
        self._scratch = scratch
        self._limits = limits
        self.unpacked = False
        """Whether `put` unpacked an archive."""

    def digest(self) -> str:
        """SHA-256 of all that it reads, names, modes, owners and attributes included, times not. Raises `OSError`."""
        said = [
            [item.name, *(_said(entry, len(item.entries[0].path)) for entry in item.entries)] for item in self._items
        ]
        return sha256(json.dumps(said).encode()).hex()

    def put(self, tree: Tree, now_ns: int, stack: ExitStack) -> list[Entry]:
        """Put it into a tree; gives the entries of the layer, whose contents can be read until `stack` is closed.

        Raises `InvalidInput`, `OSError`, and what reading raises.
        """
        from layerstore.building.built_tree import NewLayer

        owner = None if self._chown is None else owner_of(self._chown, tree)
        layer = NewLayer(tree, owner or (0, 0), now_ns)
        target = tree.place_for(self._to)
        is_directory = self._to.endswith("/") or tree.is_dir(target)
        for item in self._items:
            unpacked = self._unpacked(item, stack)
            if unpacked is not None:
                self.unpacked = True
                self._put_archive(layer, tree, unpacked, target, owner)
            elif item.entries[0].is_dir():
                self._put_tree(layer, tree, item.entries, target, owner)
            else:
                place = join(target, encode_path(item.name)) if is_directory else target
                if not place:
                    raise InvalidInput(f"{item.name} cannot be put in the place of the root directory")
                _check_kind(tree, item.entries[0], place)
                layer.put(self._changed(item.entries[0].at(place), owner, self._keeps_owner))
        return layer.entries()

    def _unpacked(self, item: Item, stack: ExitStack) -> list[Entry] | None:
        source = item.entries[0].source
        if self._scratch is None or not isinstance(source, HostFile):
            return None
        from layerstore.building import add_archives

        return stack.enter_context(add_archives.opened(source, self._scratch, item.name, self._limits))

    def _put_tree(
        self, layer: NewLayer, tree: Tree, entries: Sequence[Entry], target: bytes, owner: tuple[int, int] | None
    ) -> None:
        layer.make_directory(target)
        top = entries[0].path
        for entry in entries[1:]:
            place = _below(target, top, entry.path)
            link = None if entry.link is None else _below(target, top, entry.link)
            _check_kind(tree, entry, place)
            layer.put(self._changed(entry.at(place, link), owner, self._keeps_owner))

    def _put_archive(
        self, layer: NewLayer, tree: Tree, entries: Sequence[Entry], target: bytes, owner: tuple[int, int] | None
    ) -> None:
        layer.make_directory(target)
        for entry in entries:
            link = None if entry.link is None else _inside(tree, target, entry.link)
            layer.put(self._changed(entry.at(_inside(tree, target, entry.path), link), owner, True))

    def _changed(self, entry: Entry, owner: tuple[int, int] | None, keeps_owner: bool) -> Entry:
        entry.lower = None
        if owner is not None:
            entry.uid, entry.gid = owner
        elif not keeps_owner:
            entry.uid = entry.gid = 0
        if self._mode is not None and not stat.S_ISLNK(entry.mode):
            entry.mode = stat.S_IFMT(entry.mode) | self._mode
        return entry


def items_of(files: Files, sources: Sequence[str]) -> list[Item]:
    """What sources of COPY name: a pattern may match nothing, or sockets alone, not all of them. Raises `NotFound`,
    `InvalidInput`, `OSError`."""
    found = []
    for source in sources:
        paths = [source]
        if has_wildcards(source):
            paths = files.match(source)
        for path in paths:
            name = posixpath.basename(posixpath.normpath("/" + path))
            entries = list(files.below(files.resolve(path)))
            if entries:  # of a socket there are none
                found.append(Item(name, entries))
    if sources and not found:
        raise NotFound(f"nothing matches {' '.join(sources)}")
    return found


def check_sources(sources: Sequence[str], to: str, what: str) -> None:
    """Raise `InvalidInput` where `what` cannot copy these."""
    for source in sources:
        if what == "ADD" and source.lower().startswith(_REMOTE):
            raise InvalidInput(
                f"ADD of {source}: only what is in the build context can be added; fetch it before, or in a RUN"
            )
    if len(sources) > 1 and not to.endswith("/"):
        raise InvalidInput(f"{what} of more than one source to {to}: it has to be a directory, and end in /")


def owner_of(text: str, tree: Tree) -> tuple[int, int]:
    """uid and gid of --chown: names are looked up in the image; a user without a group has the group of its own name or
    number, or else the user's. Raises `InvalidInput`."""
    from layerstore.containers import users

    user, colon, group = text.partition(":")
    if not user or (colon and not group) or ":" in group:
        raise InvalidInput(f"--chown={text}: it is USER or USER:GROUP, names or numbers")
    if colon:
        identity = users.look_up(tree, text)
        return identity.uid, identity.gid
    try:
        identity = users.look_up(tree, f"{user}:{user}")
    except InvalidInput:
        identity = users.look_up(tree, user)
    return identity.uid, identity.gid


def _said(entry: Entry, top_length: int) -> list[object]:
    """What of an entry counts for the cache."""
    digest = getattr(entry.source, "digest", b"")
    link = None if entry.link is None else decode_path(entry.link[top_length:])
    return [
        decode_path(entry.path[top_length:]),
        *(entry.mode, entry.uid, entry.gid, entry.rdev, digest.hex(), link),
        None if entry.target is None else decode_path(entry.target),
        {name.hex(): value.hex() for name, value in entry.xattrs.items()},
    ]


def _check_kind(tree: Tree, entry: Entry, place: bytes) -> None:
    """Raise `InvalidInput` where a directory would be put in the place of something else, or something else in that of
    a directory, as BuildKit does: the classic builder replaces /bin -> usr/bin by COPY . / without a word."""
    there = tree.get(place)
    if there is not None and there.is_dir() != entry.is_dir():
        raise InvalidInput(
            f"{decode_path(entry.path)} is {_kind(entry)}, and /{decode_path(place)} of the image is {_kind(there)}: "
            "neither can take the other's place"
        )


def _kind(entry: Entry) -> str:
    if entry.is_dir():
        return "a directory"
    return "a file" if entry.target is None else f"a link to {decode_path(entry.target)}"


def _below(target: bytes, top: bytes, path: bytes) -> bytes:
    """Where a path below `top` is when `top` is at `target`."""
    return join(target, relative_to(top, path))


def _inside(tree: Tree, target: bytes, path: bytes) -> bytes:
    """Where an entry of an archive lands: links on the way to its last name are followed inside the image."""
    above, _, name = path.rpartition(b"/")
    return join(tree.place_for(decode_path(join(target, above))), name)
