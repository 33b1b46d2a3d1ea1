"""Build contexts for tests, and what images hold, comparable."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from layerstore import Image
from layerstore._core.entry import Entry
from layerstore.types import encode_path
from layerstore.views.view import View


def write_context(root: Path, files: dict[str, Any]) -> Path:
    """Files from nested dicts: bytes is a file, a str a link's target, a tuple mode and file, a dict a directory."""
    root.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        path = root / name
        if isinstance(content, dict):
            write_context(path, content)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            mode, data = content if isinstance(content, tuple) else (0o644, content)
            path.write_bytes(data)
            path.chmod(mode)
            os.utime(path, (1_600_000_000, 1_600_000_000))
    return root


def tar_bytes(members: dict[str, Any], mode: str = "w") -> bytes:
    """A tar of files (bytes), links (str) and directories (None), owned by 7:8."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode) as archive:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.uid, member.gid, member.mtime, member.mode = 7, 8, 1_500_000_000, 0o640
            if content is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o750
                archive.addfile(member)
            elif isinstance(content, str):
                member.type, member.linkname = (
                    (tarfile.LNKTYPE if content.startswith("=") else tarfile.SYMTYPE),
                    content,
                )
                member.linkname = content.removeprefix("=")
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


class Seen(NamedTuple):
    """What is at one path of an image; the time not of a directory, where it is that of the build.

    `first` is the first name of the same file.
    """

    mode: int
    owner: tuple[int, int]
    target: bytes | None
    digest: bytes | None
    seconds: int | None
    first: bytes
    xattrs: dict[bytes, bytes]


def tree_of(image: Image) -> dict[str, Seen]:
    """All paths of an image but its root."""
    view = image.view
    found: dict[str, Seen] = {}
    firsts: dict[object, bytes] = {}
    for entry in entries_below(view, view.find("/")):
        path = entry.path[1:]
        first = firsts.setdefault(path if entry.is_dir() else view.index.record(entry.record).inode, encode_path(path))
        target = None if entry.target is None else encode_path(entry.target)
        digest = None if entry.digest is None else bytes.fromhex(entry.digest)
        seconds = None if entry.is_dir() else entry.mtime_ns // 10**9
        xattrs = {encode_path(name): value for name, value in entry.xattrs.items()}
        found[path] = Seen(entry.mode, (entry.uid, entry.gid), target, digest, seconds, first, xattrs)
    return found


def entries_below(view: View, directory: Entry) -> Iterator[Entry]:
    for entry in view.children(directory):
        yield entry
        if entry.is_dir():
            yield from entries_below(view, entry)
