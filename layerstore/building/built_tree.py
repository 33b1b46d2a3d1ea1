"""The tree of an image that is being built: the merged index of stored layers under the entries of new ones."""

from __future__ import annotations

import errno
import os
import stat

from layerstore.building.patterns import component_regex, without_top
from layerstore.errors import InvalidInput, LimitExceeded, NotFound
from layerstore.limits import DEFAULT, beyond
from layerstore.trees.entries import Entry
from layerstore.trees.paths import MAX_LINKS, directories_above, join, names_of, parent_of, path_error
from layerstore.trees.whole import stored_entry, whole
from layerstore.types import decode_path, encode_path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from layerstore._core.index import Index
    from layerstore.store.contents import ContentStore

_SHOWN = 200
_NEW_DIRECTORY_MODE = stat.S_IFDIR | 0o755


class _Paths(dict[bytes, Entry]):
    """Entries by path. Those below one are found without a look at the others."""

    def __init__(self) -> None:
        super().__init__()
        self._names: dict[bytes, set[bytes]] = {}  # of directories: paths in them that are, or were, or lead to entries

    def __setitem__(self, path: bytes, entry: Entry) -> None:
        super().__setitem__(path, entry)
        while path and path not in (names := self._names.setdefault(parent_of(path), set())):
            names.add(path)
            path = parent_of(path)

    def drop_below(self, path: bytes) -> list[bytes]:
        """Forget all entries below a path; gives their paths."""
        dropped = []
        waiting = [path]
        while waiting:
            names = self._names.pop(waiting.pop(), ())
            dropped += [name for name in names if self.pop(name, None) is not None]
            waiting += names
        return dropped


class Tree:
    """Paths are bytes without a leading slash; those given to anything but `follow` have no links in them."""

    def __init__(self, index: Index, contents: ContentStore) -> None:
        self._index = index
        self._contents = contents
        self._new = _Paths()  # none is a hard link: each says all of its file
        self._hidden: set[bytes] = set()  # where something took the place of a stored directory: what was in it is gone

    def get(self, path: bytes) -> Entry | None:
        """What is at a path, a link itself; None where nothing is."""
        entry = self._new.get(path)
        if entry is not None:
            return entry
        if self._hidden and any(above in self._hidden for above in directories_above(path)):
            return None
        number = self._index.lookup(path)
        return None if number is None else stored_entry(self._index, self._contents, path, number)

    def is_dir(self, path: bytes) -> bool:
        entry = self.get(path)
        return entry is not None and entry.is_dir()

    def follow(self, path: bytes) -> bytes:
        """Where a path leads, links followed inside the tree; what is missing is taken as it is spelled.

        Raises `OSError` (ENOTDIR, ELOOP).
        """
        reached = b""
        waiting = names_of(path)[::-1]
        links = 0
        while waiting:
            name = waiting.pop()
            if name == b"..":
                reached = parent_of(reached)
                continue
            child = join(reached, name)
            entry = self.get(child)
            if entry is not None and entry.target is not None:
                links += 1
                if links > MAX_LINKS:
                    raise path_error(errno.ELOOP, path)
                waiting += names_of(entry.target)[::-1]
                reached = b"" if entry.target.startswith(b"/") else reached
                continue
            if entry is not None and waiting and not entry.is_dir():
                raise path_error(errno.ENOTDIR, path)
            reached = child
        return reached

    def place_for(self, path: str) -> bytes:
        """As `follow`, for what is to be put there. Raises `InvalidInput`, `LimitExceeded`."""
        spelled = encode_path(path)
        if len(spelled) > DEFAULT.path_bytes:  # all directories of it would be made before a layer refuses it
            raise beyond(f"{path[:_SHOWN]}... of the image has {len(spelled)} bytes", DEFAULT, "path_bytes")
        try:
            return self.follow(spelled)
        except OSError as error:
            raise InvalidInput(f"{path} of the image: {os.strerror(error.errno or 0)}") from None

    def read_text(self, path: str, max_size_bytes: int) -> str:
        """As `Rootfs.read_text`."""
        entry = self.get(self.follow(encode_path(path)))
        if entry is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        if not entry.is_file():
            raise InvalidInput(f'"{path}" of the image is not a regular file')
        if entry.size > max_size_bytes:
            raise LimitExceeded(f'"{path}" of the image has {entry.size} bytes, more than {max_size_bytes}')
        data = b"".join(map(bytes, entry.source.pieces())) if entry.source else b""
        return data.decode("utf-8", "surrogateescape")

    def put(self, entry: Entry) -> list[bytes]:
        """Have an entry that is no hard link at its path, whose directory is there. Gives the paths of the entries that
        were put below it and are gone: it takes the place of a directory."""
        path = entry.path
        gone = []
        if not entry.is_dir() and self.is_dir(path):
            gone = self._new.drop_below(path)
            self._hidden.add(path)
        self._new[path] = entry
        return gone


class NewLayer:
    """What a step puts into a tree, to be the entries of a layer.

    owner: of the directories that are made on the way, (uid, gid); mtime_ns: theirs.
    """

    def __init__(self, tree: Tree, owner: tuple[int, int], mtime_ns: int) -> None:
        self._tree = tree
        self._owner = owner
        self._mtime_ns = mtime_ns
        self._put: dict[bytes, Entry] = {}  # all names of a file have one entry, with the path of any; it is no link
        self._replaced: set[bytes] = set()  # directories that something else took the place of in this layer

    def put(self, entry: Entry) -> None:
        """Have an entry at its path. Directories on the way are made; what was there is replaced, but a directory by a
        directory keeps what is in it. A hard link may be to a file that is in the image already: the layer has that,
        too, then, with the attributes that the link's entry says. Raises `InvalidInput` where something else is on the
        way, or a hard link is to no file, or to what it replaces."""
        path = entry.path
        if entry.link is not None and (entry.link + b"/").startswith(path + b"/"):
            raise InvalidInput(f"/{decode_path(path)} cannot take the place of what it is a hard link to")
        if path:
            self.make_directory(parent_of(path))
        file = entry if entry.link is None else self._file(entry.link, entry)
        if not entry.is_dir() and self._tree.is_dir(path):
            self._replaced.add(path)
        file.opaque = file.is_dir() and path in self._replaced
        for below in self._tree.put(file if file is entry else file.at(path)):
            self._put.pop(below, None)
        self._put[path] = file

    def _file(self, path: bytes, link: Entry) -> Entry:
        """The file at a path of the layer, that of the image brought into it. Raises `InvalidInput`."""
        file = self._tree.get(path)
        if file is None or file.is_dir():
            raise InvalidInput(
                f"/{decode_path(link.path)} is a hard link to /{decode_path(path)}, where the image has no file"
            )
        if path not in self._put:
            file = file.at(path)
            file.mode = stat.S_IFMT(file.mode) | stat.S_IMODE(link.mode)
            file.uid, file.gid, file.mtime_ns = link.uid, link.gid, link.mtime_ns
            self.put(file)
        return self._put[path]

    def make_directory(self, path: bytes) -> None:
        """Make a directory, and those on the way to it, where they are missing. Raises `InvalidInput`."""
        missing = []
        while path and (found := self._tree.get(path)) is None:
            missing.append(path)
            path = parent_of(path)
        if path and not found.is_dir():  # type: ignore[union-attr]
            raise InvalidInput(
                f"/{decode_path(path)} of the image is not a directory, and files cannot be put below it"
            )
        for place in reversed(missing):
            entry = Entry(place, _NEW_DIRECTORY_MODE, *self._owner, self._mtime_ns)
            self._tree.put(entry)
            self._put[place] = entry

    def entries(self) -> list[Entry]:
        """In the order of a layer (layerstore/trees/entries.py), with the directories on the way to each."""
        found = dict(self._put)
        for path in self._put:
            for above in directories_above(path):
                if not above or above in found:
                    break
                entry = self._tree.get(above)
                assert entry is not None, "a directory is made before what is in it"
                found[above] = entry.at(above)
        return list(_as_links(sorted(found.items(), key=lambda item: item[0].split(b"/"))))


def _as_links(entries: Iterable[tuple[bytes, Entry]]) -> Iterator[Entry]:
    """Of a file with more names, the one that comes first is the file and the others are links to it."""
    first: dict[int, bytes] = {}
    for path, entry in entries:
        name = first.setdefault(id(entry), path)
        if name != path:
            yield entry.at(path, name)
        else:
            yield entry if entry.path == path else entry.at(path)


class ImageFiles:
    """The files of an image that is stored, for COPY --from: what `Context` is for a directory of the host."""

    def __init__(self, index: Index, contents: ContentStore, name: str) -> None:
        """`name` is told in messages."""
        self._index = index
        self._contents = contents
        self._tree = Tree(index, contents)
        self._name = name

    def resolve(self, path: str) -> str:
        """As `Context.resolve`; a path that leads above the root ends there."""
        try:
            found = self._tree.follow(encode_path(path))
        except OSError as error:
            raise NotFound(f"{path} of {self._name}: {os.strerror(error.errno or 0)}") from None
        if self._tree.get(found) is None:
            raise NotFound(f"{path} is not in {self._name}")
        return decode_path(found)

    def match(self, pattern: str) -> list[str]:
        """As `Context.match`."""
        top, parts = without_top(pattern)
        try:
            found = [encode_path(self.resolve(top))]
        except NotFound:
            return []
        for part in parts:
            matches = component_regex(part).fullmatch
            found = [
                path for above in found for path in self._names(above) if matches(decode_path(path.split(b"/")[-1]))
            ]
        return sorted(map(decode_path, found))

    def _names(self, directory: bytes) -> list[bytes]:
        number = self._index.lookup(directory)
        if number is None or not stat.S_ISDIR(self._index.record(number).mode):
            return []
        return [join(directory, self._index.record(child).name) for child in self._index.children(number)]

    def below(self, path: str) -> Iterator[Entry]:
        """As `Context.below`, with owners, attributes and hard links."""
        return whole(self._index, self._contents, (), encode_path(path))
