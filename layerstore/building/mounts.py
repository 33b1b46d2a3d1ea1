"""RUN --mount: binds of the context, a stage or an image, caches, secrets, tmpfs
(https://docs.docker.com/reference/dockerfile/, "RUN --mount")."""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
import re

from layerstore._core.sha256 import sha256
from layerstore.building.copy_and_add import Copy, Item
from layerstore.containers.bundle import Volume
from layerstore.containers.copying import copy_out
from layerstore.errors import InvalidInput, NotFound
from layerstore.naming import about, close_fd, exists
from layerstore.store.layout import make_private
from layerstore.store.locks import release, take_between
from layerstore.store.pieces import read_whole
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Any

    from layerstore.trees.entries import Entry

_BOOLEANS = {"": True, "true": True, "1": True, "false": False, "0": False}
_ALIASES = {
    "dst": "target",
    "destination": "target",
    "src": "source",
    "ro": "readonly",
    "rw": "readwrite",
}
_KEYS = {
    "bind": {"type", "target", "source", "from", "readonly", "readwrite"},
    "cache": {"type", "target", "id", "sharing", "mode", "uid", "gid", "readonly", "readwrite"},
    "secret": {"type", "target", "id", "required", "mode", "uid", "gid", "env"},
    "tmpfs": {"type", "target", "size"},
}


class Mount(Value):
    """One --mount, its values as they are written."""

    kind: str
    values: dict[str, str]

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def target(self) -> str:
        if self.kind == "secret" and not self.values.get("target"):
            return f"/run/secrets/{self.id}"
        return self.values["target"]

    @property
    def id(self) -> str:
        return self.values.get("id") or posixpath.basename(self.values.get("target", ""))

    @property
    def source(self) -> str:
        """Of a bind: the path below the context, or below the root of `from`."""
        return self.values.get("source") or "/"

    @property
    def sharing(self) -> str:
        """Of a cache."""
        return self.values.get("sharing", "shared").lower()

    def is_set(self, key: str) -> bool:
        """Whether a switch is on. Raises `InvalidInput`."""
        text = self.values.get(key, "false")
        if text.lower() not in _BOOLEANS:
            raise InvalidInput(f"--mount: {key}={text}: it is true or false")
        return _BOOLEANS[text.lower()]

    @property
    def is_read_only(self) -> bool:
        """Whether a bind is, as it is unless it says otherwise. Raises `InvalidInput`."""
        return self.is_set("readonly") if "readonly" in self.values else not self.is_set("readwrite")

    def number(self, key: str, default: int, base: int = 10) -> int:
        """A number. Raises `InvalidInput`."""
        try:
            return int(self.values[key], base) if key in self.values else default
        except ValueError:
            raise InvalidInput(f"--mount: {key}={self.values[key]} is no number") from None

    @property
    def size_bytes(self) -> int:
        """Of a tmpfs; 0 for what is usual. Raises `InvalidInput`."""
        text = self.values.get("size", "0")
        match = re.fullmatch(r"(?ai)(\d{1,18})([kmgt]?)(?:i?b)?", text)
        if match is None:
            raise InvalidInput(f"--mount: size={text}: it is a number of bytes, or like 64m or 1g")
        return int(match[1]) << 10 * "_kmgt".index(match[2].lower() or "_")


def parse_mount(text: str) -> Mount:
    """The value of a --mount flag. Raises `InvalidInput`."""
    values = {}
    for word in text.split(","):
        key, _, value = word.partition("=")
        key = key.strip().lower()
        values[_ALIASES.get(key, key)] = value.strip()
    if "" in values:
        raise InvalidInput(f"--mount={text}: it is KEY=VALUE,KEY=VALUE, and no field of it is empty")
    kind = values.get("type", "bind")
    if kind not in _KEYS:
        raise InvalidInput(f"--mount=type={kind}: there are {', '.join(_KEYS)}")
    strangers = set(values) - _KEYS[kind]
    if strangers:
        raise InvalidInput(
            f"--mount=type={kind} has no {min(strangers)!r} here; it takes {', '.join(sorted(_KEYS[kind]))}"
        )
    mount = Mount(kind, values)
    if not values.get("target") and kind != "secret":
        raise InvalidInput(f"--mount=type={kind} needs target=PATH")
    if kind == "secret" and not mount.id:
        raise InvalidInput("--mount=type=secret needs id=NAME or target=PATH")
    if mount.sharing not in ("shared", "locked", "private"):
        raise InvalidInput(f"--mount=type=cache,sharing={mount.sharing}: it is shared, locked or private")
    return mount


def digest_of_bind(entries: list[Entry]) -> str:
    """What of a bind's files counts for the cache. Raises `OSError`."""
    return Copy([Item("", entries)], "/", chown=None, chmod=None, keeps_owner=True, scratch=None).digest()


@contextlib.contextmanager
def caches(wanted: Sequence[tuple[Mount, str]], directory: str, check: Callable[[], None]) -> Iterator[list[Volume]]:
    """The store's directories of a RUN's caches, each given with where it is mounted. Raises `InvalidInput`,
    `Conflict`, `OSError`.

    They stay for later builds; with sharing=locked, which private is too, nobody else has one meanwhile. `check` is
    called while it waits for others, and what it raises is raised.
    """
    paths = [
        f"{directory}/{sha256((mount.id if mount.values.get('id') else target).encode()).hex()}"
        for mount, target in wanted
    ]
    of_path: dict[str, list[Mount]] = {}
    for path, (mount, _) in zip(paths, wanted, strict=True):
        of_path.setdefault(path, []).append(mount)
    with contextlib.ExitStack() as stack:
        # In one order, and each once, or two that take several could wait for each other, and one for itself.
        for path, mounts in sorted(of_path.items()):
            stack.enter_context(_cache(path, mounts, check))
        yield [
            Volume(path, target, mount.is_set("readonly")) for path, (mount, target) in zip(paths, wanted, strict=True)
        ]


@contextlib.contextmanager
def _cache(path: str, mounts: Sequence[Mount], check: Callable[[], None]) -> Iterator[None]:
    """A cache that is there, made as the first of these says, and locked for all of them."""
    mount = mounts[0]
    uid, gid, mode = mount.number("uid", 0), mount.number("gid", 0), mount.number("mode", 0o755, 8)
    make_private(os.path.dirname(path))
    # The runtime inherits the lock, and so holds it for as long as the command runs, also where this process is killed.
    # It is of a file, not of the directory: no program could get to the host's directory by it.
    fd = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    os.set_inheritable(fd, True)
    try:
        if not exists(path):
            take_between(fd, exclusive=True, check=check)
            if not exists(path):
                _make_cache(path, uid, gid, mode)
        take_between(fd, exclusive=any(each.sharing != "shared" for each in mounts), check=check)
        yield
    finally:
        release(fd)  # runtimes of other stages may have it too
        close_fd(fd)


def _make_cache(path: str, uid: int, gid: int, mode: int) -> None:
    """Whole or not at all, while nobody else has it."""
    made = f"{path}.new"
    with contextlib.suppress(FileExistsError):
        os.mkdir(made, 0o700)
    os.chown(made, uid, gid)
    os.chmod(made, mode)
    os.rename(made, path)


def secret_data(mount: Mount, secrets: Mapping[str, str]) -> bytes | None:
    """The content of a secret, `secrets` being files by id; None where there is none, and it is not required.

    Raises `NotFound`, `OSError`.
    """
    path = secrets.get(mount.id)
    if path is None:
        if mount.is_set("required"):
            raise NotFound(f"there is no secret {mount.id}; give it by --secret id={mount.id},src=FILE")
        return None
    return read_whole(path)


def write_secret(mount: Mount, data: bytes, target: str, directory: str) -> Volume:
    """A file with a secret in a directory, to be mounted at `target`. Raises `InvalidInput`, `OSError`."""
    path = f"{directory}/secret"
    with about(path), open(path, "xb", opener=functools.partial(os.open, mode=0o600)) as file:
        file.write(data)
        os.fchown(file.fileno(), mount.number("uid", 0), mount.number("gid", 0))
        os.fchmod(file.fileno(), mount.number("mode", 0o400, 8))
    return Volume(path, target, read_only=True)


def write_context(entries: list[Entry], directory: str) -> str:
    """A copy of what a bind shows of the context: writing to it changes nothing there. Raises `Conflict`, `OSError`."""
    target = f"{directory}/{os.urandom(8).hex()}"
    copy_out(entries, target, keep_owner=True)
    return target


def tmpfs(mount: Mount, target: str) -> dict[str, Any]:
    """A mount of the runtime's config, at `target`. Raises `InvalidInput`."""
    size = mount.size_bytes
    options = ["nosuid", "nodev", "mode=1777", *([f"size={size}"] if size else [])]
    return {"destination": target, "type": "tmpfs", "source": "tmpfs", "options": options}
