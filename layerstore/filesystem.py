"""Images and containers as file systems of fsspec (https://filesystem-spec.readthedocs.io): `layer://NAME:TAG/path`,
read-only, and `container://NAME/path`.

fsspec.open("layer://debian:12/etc/os-release", store="/var/lib/layerstore")
pandas.read_csv("layer://data:latest/table.csv", storage_options={"store": …})
table.to_csv("container://work/table.csv", storage_options={"store": …})
"""

from __future__ import annotations

import errno
import io
import os
import shutil
import stat
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from fsspec import AbstractFileSystem

from layerstore._core.entry import Entry
from layerstore.api import Container, Image, Store
from layerstore.errors import InvalidInput, NotFound
from layerstore.store.layout import default_root
from layerstore.store.pieces import PIECE_BYTES
from layerstore.views.view import View

if TYPE_CHECKING:
    from layerstore.store.contents import Verify

_TYPES = {"f": "file", "d": "directory", "l": "link"}
_SHORT_ID = 12


class _ByUsualStore(type(AbstractFileSystem)):  # type: ignore[misc]  # fsspec has no types
    """fsspec keeps file systems by their arguments; without one, which store is meant changes with the environment."""

    @property
    def usual_store(cls) -> str:
        return str(Path(default_root()).absolute())


class LayerFileSystem(AbstractFileSystem, metaclass=_ByUsualStore):  # type: ignore[misc]  # fsspec has no types
    """Every image of a store, as a directory named `NAME:TAG` (with directories above it where NAME has slashes).

    The tag may be left out for `latest`, and 12 or more digits of an image's id stand for its name. Symbolic links are
    followed inside the image when a path is asked for; listings show them as links, and `find` and `walk` do not go
    through them. Whatever writes raises `OSError` with EROFS.

    Args:
        store: the store's directory; without it that of $LAYERSTORE_ROOT at that moment, or the usual place of this
            user.
        verify: when contents are hashed before they are used, as of `layerstore.Store`.

    Raises `NotFound` where there is no store.
    """

    protocol = "layer"
    root_marker = ""
    _extra_tokenize_attributes = ("usual_store",)

    def __init__(
        self, store: str | os.PathLike[str] | None = None, verify: Verify = "never", **storage_options: Any
    ) -> None:
        super().__init__(store=store, verify=verify, **storage_options)
        self.store = Store(default_root() if store is None else store, verify=verify)

    # Which image a path is in

    def _find(self, path: str, *, follow_symlinks: bool = True) -> tuple[View, Entry]:
        """The view of the image that a path is in, and what is at the path. Raises `FileNotFoundError`, `OSError`."""
        view, inner = self._split(path)
        try:
            return view, view.find(inner, follow_symlinks=follow_symlinks)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    def _split(self, path: str) -> tuple[View, str]:
        parts = path.split("/")
        prefixes = ["/".join(parts[:count]) for count in range(1, len(parts) + 1)]
        # A name as it is before a name without its tag: "a" must not hide what is in "a/b:1".
        for named in (self._image_named, self._image_named_shortly):
            for count, prefix in enumerate(prefixes, 1):
                image = named(prefix)
                if image is not None:
                    return image.view, "/" + "/".join(parts[count:])
        raise FileNotFoundError(errno.ENOENT, "no image of this name; `layerstore images` lists them", path)

    def _image_named(self, name: str) -> Image | None:
        digits = name.removeprefix("sha256:")
        is_id = len(digits) >= _SHORT_ID and not digits.strip("0123456789abcdef")
        if not is_id and not _has_tag(name):
            return None
        try:
            image = self.store.image(name)
        except (NotFound, InvalidInput):
            return None
        return image if is_id or name in image.names else None

    def _image_named_shortly(self, name: str) -> Image | None:
        return None if _has_tag(name) else self._image_named(f"{name}:latest")

    def _names_below(self, path: str) -> list[str]:
        """The paths one step below a path that leads to images: directories of them, and they themselves."""
        prefix = f"{path}/" if path else ""
        names = [name for image in self.store.images() for name in image.names if name.startswith(prefix)]
        return sorted({prefix + name.removeprefix(prefix).split("/")[0] for name in names})

    # What fsspec asks

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of what a path leads to: name, size (bytes), type ("file", "directory", "other"), mode, uid, gid, mtime
        (seconds), ino, nlink, layer (0 at the bottom), islink and destination, digest (BLAKE3-256 of a content)."""
        path = self._strip_protocol(path)
        if not path:
            return _directory(path)
        try:
            view, entry = self._find(path, follow_symlinks=False)
        except FileNotFoundError:
            if self._names_below(path):
                return _directory(path)
            raise
        target = view.follow(entry)
        if target is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return {**_info(path, target), **_link(entry)}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]] | list[str]:
        """The entries of a directory, or the one file. Links are shown as links."""
        infos = list(self._infos(self._strip_protocol(path)))
        return infos if detail else [info["name"] for info in infos]

    def _infos(self, path: str) -> Iterator[dict[str, Any]]:
        try:
            view, entry = self._find(path)
        except FileNotFoundError:
            names = self._names_below(path)
            if path and not names:
                raise
            yield from map(_directory, names)
            return
        if not entry.is_dir():
            yield self.info(path)
            return
        for child in view.children(entry):
            yield {**_info(f"{path}/{child.name}", child), **_link(child)}

    def lexists(self, path: str, **_: Any) -> bool:
        """Whether there is something at the path, a link that leads nowhere included."""
        path = self._strip_protocol(path)
        try:
            return bool(self._find(path, follow_symlinks=False))
        except OSError:
            return not path or bool(self._names_below(path))

    def modified(self, path: str) -> datetime:
        """When the file was modified, as the image says; the nearest time that a `datetime` holds."""
        seconds: float = self.info(path).get("mtime", 0)
        try:
            return datetime.fromtimestamp(seconds, UTC)
        except (OverflowError, ValueError, OSError):
            return (datetime.min if seconds < 0 else datetime.max).replace(tzinfo=UTC)

    def created(self, path: str) -> NoReturn:
        """Raises `NotImplementedError`: layers say when a file was modified only."""
        raise NotImplementedError(f"images do not say when {path!r} was created; `modified` tells when it was modified")

    def ukey(self, path: str) -> str:
        """The content's digest: equal for equal contents, whatever their paths. Of a directory that of its info."""
        digest: str | None = self.info(path).get("digest")
        return digest or str(super().ukey(path))

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        """The content, or that part of it; negative positions count from the end."""
        with self._open(self._strip_protocol(path)) as file:
            first, last, _step = slice(start, end).indices(file.size)
            file.seek(first)
            return file.read(max(0, last - first))

    def _open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        if mode != "rb":
            self._refuse(path)
        view, entry = self._find(path)
        try:
            return _File(view.open(entry.path), entry.size)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None

    # What writes

    def _refuse(self, path: str, *_: Any, **__: Any) -> NoReturn:
        raise OSError(errno.EROFS, "images are read-only; create a container to write to", path)

    mkdir = makedirs = rmdir = cp_file = _rm = rm_file = rm = put_file = touch = pipe_file = _refuse


class _File(io.BufferedReader):
    """A content, with the attribute that fsspec's files have."""

    def __init__(self, file: io.BufferedReader, size: int) -> None:
        super().__init__(file.detach())
        self.size = size


class ContainerFileSystem(AbstractFileSystem):  # type: ignore[misc]  # fsspec has no types
    """The containers of the extent driver, to be read and written: a directory each, named by name or id.

    Links are followed inside the container when a path is asked for; listings show them as links. What was written to
    a file is there for others when it is flushed or closed. The first change makes this process the one that writes to
    that container, until `store` is closed.

    Args:
        store: the store's directory; without it $LAYERSTORE_ROOT, or the usual place of this user.
        auto_mkdir: make the directories above a file that is written, as `LocalFileSystem` of fsspec does.
        verify: when contents of the image are hashed before they are used, as of `layerstore.Store`.

    Raises `NotFound` where there is no store.
    """

    protocol = "container"
    root_marker = ""

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        auto_mkdir: bool = False,
        verify: Verify = "never",
        **storage_options: Any,
    ) -> None:
        super().__init__(store=store, auto_mkdir=auto_mkdir, verify=verify, **storage_options)
        self.store = Store(default_root() if store is None else store, verify=verify)
        self.auto_mkdir = auto_mkdir

    def _split(self, path: str) -> tuple[Container, str]:
        """The container that a path is in, and the path there. Raises `FileNotFoundError`."""
        path = self._strip_protocol(path)
        name, _, inner = path.partition("/")
        try:
            return self.store.container(name), f"/{inner}"
        except (NotFound, InvalidInput):
            raise FileNotFoundError(
                errno.ENOENT, "no container of this name; `layerstore ps -a` lists them", path
            ) from None

    def _make_parent(self, container: Container, inner: str) -> None:
        if self.auto_mkdir:
            container.makedirs(os.path.dirname(inner), exist_ok=True)  # noqa: PTH120  # a path in a container

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Of what a path leads to: name, size (bytes), type ("file", "directory", "other"), mode, uid, gid, mtime
        (seconds), ino, nlink, islink and destination."""
        path = self._strip_protocol(path)
        if not path:
            return _directory(path)
        container, inner = self._split(path)
        status = container.lstat(inner)
        link = {"islink": True, "destination": container.readlink(inner)} if stat.S_ISLNK(status.st_mode) else {}
        return {**_status_info(path, container.stat(inner)), "islink": False, **link}

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]] | list[str]:
        """The entries of a directory, or the one file. Links are shown as links."""
        path = self._strip_protocol(path)
        infos = list(self._infos(path))
        return infos if detail else [info["name"] for info in infos]

    def _infos(self, path: str) -> Iterator[dict[str, Any]]:
        if not path:
            containers = [each for each in self.store.containers() if each.driver == "extent"]
            yield from sorted((_directory(each.name or each.id) for each in containers), key=lambda info: info["name"])
            return
        container, inner = self._split(path)
        if not stat.S_ISDIR(container.stat(inner).st_mode):
            yield self.info(path)
            return
        for entry in container.scandir(inner):
            yield _status_info(f"{path}/{entry.name!s}", entry.stat(follow_symlinks=False))

    def modified(self, path: str) -> datetime:
        """When the file was modified."""
        seconds: float = self.info(path).get("mtime", 0)
        return datetime.fromtimestamp(seconds, UTC)

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        container, inner = self._split(path)
        if mode != "rb":
            self._make_parent(container, inner)
        file: Any = container.open(inner, mode)
        return _File(file, container.stat(inner).st_size) if isinstance(file, io.BufferedReader) else file

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        """As `os.mkdir`, or with the directories above as `os.makedirs`."""
        container, inner = self._split(path)
        (container.makedirs if create_parents else container.mkdir)(inner)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """As `os.makedirs`."""
        container, inner = self._split(path)
        container.makedirs(inner, exist_ok=exist_ok)

    def rmdir(self, path: str) -> None:
        """As `os.rmdir`."""
        container, inner = self._split(path)
        container.rmdir(inner)

    def rm_file(self, path: str) -> None:
        """Remove a file, or an empty directory: `rm` asks for both by this."""
        container, inner = self._split(path)
        is_directory = stat.S_ISDIR(container.lstat(inner).st_mode)
        (container.rmdir if is_directory else container.unlink)(inner)

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        """Copy the content of a file; of a directory, make one."""
        if self.isdir(path1):
            self.makedirs(path2, exist_ok=True)
            return
        self.makedirs(self._parent(path2), exist_ok=True)
        with self.open(path1, "rb") as read, self.open(path2, "wb") as write:
            shutil.copyfileobj(read, write, PIECE_BYTES)

    def mv(self, path1: str, path2: str, recursive: bool = False, maxdepth: int | None = None, **kwargs: Any) -> None:
        """Rename, inside of one container; else copy and remove."""
        container, old = self._split(path1)
        other, new = self._split(path2)
        if container.id == other.id and maxdepth is None:
            container.rename(old, new)
        else:
            super().mv(path1, path2, recursive=recursive, maxdepth=maxdepth, **kwargs)

    def touch(self, path: str, truncate: bool = True, **_: Any) -> None:
        """Make an empty file, or set the time of one."""
        container, inner = self._split(path)
        self._make_parent(container, inner)
        container.open(inner, "wb" if truncate else "ab", 0).close()
        container.utime(inner)


def _status_info(path: str, status: os.stat_result) -> dict[str, Any]:
    types = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link"}
    return {
        "name": path,
        "size": 0 if stat.S_ISDIR(status.st_mode) else status.st_size,
        "type": types.get(stat.S_IFMT(status.st_mode), "other"),
        "mode": status.st_mode,
        "uid": status.st_uid,
        "gid": status.st_gid,
        "mtime": status.st_mtime_ns / 1e9,
        "ino": status.st_ino,
        "nlink": status.st_nlink,
    }


def _has_tag(name: str) -> bool:
    return ":" in name.rpartition("/")[2]


def _directory(path: str) -> dict[str, Any]:
    return {"name": path, "size": 0, "type": "directory"}


def _info(path: str, entry: Entry) -> dict[str, Any]:
    info = {
        "name": path,
        "size": entry.size if entry.is_file() else 0,
        "type": _TYPES.get(entry.type, "other"),
        "mode": entry.mode,
        "uid": entry.uid,
        "gid": entry.gid,
        "mtime": entry.mtime_ns / 1e9,
        "ino": entry.record + 1,
        "nlink": entry.nlink,
        "layer": entry.layer,
    }
    return {**info, "digest": entry.digest} if entry.digest else info


def _link(entry: Entry) -> dict[str, Any]:
    return {"islink": True, "destination": entry.target} if entry.is_symlink() else {"islink": False}
