"""Extended attributes that mean something to the kernel: which values of them it takes."""

from __future__ import annotations

import errno
import re
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from layerstore.extents.table import Inode

CAPABILITY = b"security.capability"
_ACL = b"system.posix_acl_access"
_DEFAULT_ACL = b"system.posix_acl_default"
_CAPABILITY_BYTES = {0x02000000: 20, 0x03000000: 24}
_EFFECTIVE = 1
_ACL_VERSION = 2
_NO_ID = (1 << 32) - 1
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_TAGS = {0x01: "u", 0x02: "U", 0x04: "g", 0x08: "G", 0x10: "m", 0x20: "o"}
_VALID_ACL = re.compile("uU*gG*mo|ugo")


def why_not(inode: Inode, name: bytes, value: bytes) -> int:
    """The number of the error that the kernel has for setting an attribute of an inode to a value, 0 for none."""
    if name == CAPABILITY:
        # The kernel takes an empty one, too, and gives EINVAL to whoever reads it.
        return 0 if _is_capability(value) else errno.EINVAL
    return _why_no_acl(inode, name, value) if name.startswith(b"system.") else 0


def is_no_acl(name: bytes, value: bytes) -> bool:
    """Whether setting this takes an ACL away: one without entries."""
    return name in (_ACL, _DEFAULT_ACL) and len(value) <= _ACL_HEADER.size


def _is_capability(value: bytes) -> bool:
    """As security/commoncap.c, validheader."""
    magic = int.from_bytes(value[:4], "little") & ~_EFFECTIVE
    return len(value) == _CAPABILITY_BYTES.get(magic)


def _why_no_acl(inode: Inode, name: bytes, value: bytes) -> int:
    """As fs/posix_acl.c: posix_acl_from_xattr, set_posix_acl, posix_acl_valid."""
    if name not in (_ACL, _DEFAULT_ACL):
        return errno.ENOTSUP
    if value and (len(value) < _ACL_HEADER.size or (len(value) - _ACL_HEADER.size) % _ACL_ENTRY.size):
        return errno.EINVAL
    if value and _ACL_HEADER.unpack_from(value)[0] != _ACL_VERSION:
        return errno.ENOTSUP
    entries = list(_ACL_ENTRY.iter_unpack(value[_ACL_HEADER.size :]))
    if any(tag not in _TAGS or (_TAGS[tag] in "UG" and number == _NO_ID) for tag, _, number in entries):
        return errno.EINVAL
    if inode.is_symlink():
        return errno.ENOTSUP
    if not entries:
        return 0
    if name == _DEFAULT_ACL and not inode.is_dir():
        return errno.EACCES
    are_valid = _VALID_ACL.fullmatch("".join(_TAGS[tag] for tag, _, _ in entries))
    return 0 if are_valid and all(permissions <= 7 for _, permissions, _ in entries) else errno.EINVAL
