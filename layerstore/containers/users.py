"""The `User` of an image's config, looked up in the image's own /etc/passwd and /etc/group, as docker does."""

from __future__ import annotations

from layerstore.errors import InvalidInput
from layerstore.types import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Protocol

    class Files(Protocol):
        """The files of an image."""

        def read_text(self, path: str, max_size_bytes: int, /) -> str: ...


MAX_FILE_SIZE_BYTES = 16 << 20
MAX_ID = (1 << 31) - 1  # what docker accepts


class Identity(Value):
    """Who a container's process runs as, and the home directory that /etc/passwd gives for it."""

    uid: int
    gid: int
    additional_gids: tuple[int, ...]
    home: str


def look_up(rootfs: Files, user: str) -> Identity:
    """Who `user` is in the image: "", "name", "uid", "name:group", "uid:gid" and mixtures of them.

    A name has precedence over a number. A number need not be in /etc/passwd or /etc/group, a name must: else
    `InvalidInput`. Without a group the user's own one holds, and every group of which the user is a member.
    """
    user_part, _, group_part = user.partition(":")
    name, uid, gid, home = _find_user(rootfs, user_part or "0")
    if group_part:
        gid = _find_group(rootfs, group_part)
        gids = [gid]
    else:
        gids = [gid] + [number for _, number, members in _groups(rootfs) if name and name in members]
    if max(uid, *gids) > MAX_ID:
        raise InvalidInput(f'the image gives user "{user[:100]}" an ID greater than {MAX_ID}')
    return Identity(uid, gid, tuple(dict.fromkeys(gids)), home)


def _find_user(rootfs: Files, wanted: str) -> tuple[str, int, int, str]:
    """Name, uid, gid and home directory."""
    number = _id(wanted, "user")
    entries = list(_passwd(rootfs))
    for entry in entries:
        if entry[0] == wanted:
            return entry
    if number is None:
        raise InvalidInput(f'user "{wanted}" is not in /etc/passwd of the image: name one that is, or a user ID')
    for entry in entries:
        if entry[1] == number:
            return entry
    return "", number, 0, "/"


def _find_group(rootfs: Files, wanted: str) -> int:
    gid = _id(wanted, "group")
    for name, number, _ in _groups(rootfs):
        if name == wanted:
            return number
    if gid is None:
        raise InvalidInput(f'group "{wanted}" is not in /etc/group of the image: name one that is, or a group ID')
    return gid


def _id(text: str, kind: str) -> int | None:
    """The number that `text` is, or None for a name."""
    if not (text.isascii() and text.isdigit()):
        return None
    number = _number(text)
    if number > MAX_ID:
        raise InvalidInput(f"{kind} ID {text[:100]} is greater than {MAX_ID}")
    return number


def _number(digits: str) -> int:
    """What decimal digits say; of very many, which Python does not read, one that is too great as well."""
    return int(digits) if len(digits) < 100 else MAX_ID + 1


def _passwd(rootfs: Files) -> Iterator[tuple[str, int, int, str]]:
    """Of each user the name, uid, gid and home directory."""
    for name, _password, uid, gid, _comment, home, *_shell in _records(rootfs, "/etc/passwd", 6):
        if uid.isascii() and uid.isdigit() and gid.isascii() and gid.isdigit():
            yield name, _number(uid), _number(gid), home or "/"


def _groups(rootfs: Files) -> Iterator[tuple[str, int, list[str]]]:
    """Of each group the name, gid and members."""
    for name, _password, gid, *members in _records(rootfs, "/etc/group", 3):
        if gid.isascii() and gid.isdigit():
            yield name, _number(gid), members[0].split(",") if members else []


def _records(rootfs: Files, path: str, min_fields: int) -> Iterator[list[str]]:
    """The records of a file of colon-separated fields; an image without that file has none."""
    try:
        text = rootfs.read_text(path, MAX_FILE_SIZE_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return
    for line in text.splitlines():
        fields = line.strip().split(":")
        if len(fields) >= min_fields and not line.startswith("#"):
            yield fields
