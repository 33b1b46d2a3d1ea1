"""Build contexts for tests, and what images hold, comparable."""

import io
import os
import stat
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from layerstore import Image
from layerstore.trees.whole import whole


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
    found = {}
    for entry in whole(image.index(), image._engine.contents, ()):
        if entry.path:
            digest = getattr(entry.source, "digest", None)
            seconds = None if stat.S_ISDIR(entry.mode) else entry.mtime_ns // 10**9
            first = entry.link or entry.path
            owner = (entry.uid, entry.gid)
            seen = Seen(entry.mode, owner, entry.target, digest, seconds, first, entry.xattrs)
            found[os.fsdecode(entry.path)] = seen
    return found
