"""Tar archives made by hand, byte by byte: for layers that lie, and for forms that no installed tar writes.

    archive(directory(b"etc/"), member(b"etc/hosts", b"127.0.0.1 localhost\n", mtime=5), symlink(b"h", b"etc/hosts"))
    archive(pax({b"path": b"x" * 200}), member(b"cut", b"data"))
    archive(header(b"f", size=b"garbage"))

Every function that makes a part returns whole blocks, so that parts can be joined in any order. A numeric field takes
an int (octal when it fits, base-256 otherwise) or the bytes to put there. Nothing is checked: wrong is welcome.
"""

from collections.abc import Iterable, Mapping

BLOCK = 512
END = bytes(2 * BLOCK)

USTAR = b"ustar\x0000"
GNU = b"ustar  \x00"
V7 = bytes(8)

Number = int | bytes
Records = Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]
Extents = list[tuple[int, int]]


def octal(value: int, width: int) -> bytes:
    """`value` as octal digits and a NUL, in `width` bytes."""
    return b"%0*o\0" % (width - 1, value)


def base256(value: int, width: int) -> bytes:
    """GNU's big-endian two's complement with the first bit set, in `width` bytes."""
    return ((1 << (8 * width - 1)) | (value & ((1 << (8 * width - 1)) - 1))).to_bytes(width, "big")


def number(value: Number, width: int) -> bytes:
    """A numeric field of `width` bytes."""
    if isinstance(value, bytes):
        return value.ljust(width, b"\0")
    return octal(value, width) if 0 <= value < 8 ** (width - 1) else base256(value, width)


def padded(data: bytes) -> bytes:
    """`data` and the zeros up to a whole block."""
    return data + bytes(-len(data) % BLOCK)


def checksum(block: bytes, *, signed: bool = False) -> int:
    """The sum over a header block, its checksum field counted as spaces."""
    summed = block[:148] + b" " * 8 + block[156:]
    return sum(byte - 256 if signed and byte >= 128 else byte for byte in summed)


def header(
    name: bytes = b"file",
    *,
    type: bytes = b"0",
    size: Number = 0,
    mode: Number = 0o644,
    uid: Number = 0,
    gid: Number = 0,
    mtime: Number = 0,
    link: bytes = b"",
    magic: bytes = USTAR,
    device: tuple[Number, Number] = (0, 0),
    prefix: bytes = b"",
    patch: Mapping[int, bytes] | None = None,
    chksum: Number | None = None,
    signed: bool = False,
) -> bytes:
    """One header block. `patch` overwrites bytes at offsets before the checksum is made; `chksum` replaces it."""
    block = bytearray(BLOCK)
    fields: dict[int, bytes] = {
        0: name[:100],
        100: number(mode, 8),
        108: number(uid, 8),
        116: number(gid, 8),
        124: number(size, 12),
        136: number(mtime, 12),
        156: type,
        157: link[:100],
        257: magic,
    }
    if magic != V7:
        fields |= {329: number(device[0], 8), 337: number(device[1], 8)}
    if prefix:
        fields[345] = prefix[:155]
    for offset, value in (fields | dict(patch or {})).items():
        block[offset : offset + len(value)] = value
    if chksum is None:
        chksum = b"%06o\0 " % checksum(bytes(block), signed=signed)
    block[148:156] = number(chksum, 8)
    return bytes(block)


def member(
    name: bytes = b"file", data: bytes = b"", *, type: bytes = b"0", magic: bytes = USTAR, mtime: Number = 0
) -> bytes:
    """A header and its content; for more fields join `header(..., size=len(data))` and `padded(data)`."""
    return header(name, type=type, size=len(data), magic=magic, mtime=mtime) + padded(data)


def directory(name: bytes, *, mode: int = 0o755) -> bytes:
    return header(name, type=b"5", mode=mode)


def symlink(name: bytes, target: bytes) -> bytes:
    return header(name, type=b"2", link=target, mode=0o777)


def hardlink(name: bytes, target: bytes) -> bytes:
    return header(name, type=b"1", link=target)


def archive(*parts: bytes) -> bytes:
    """The parts and the end marker."""
    return b"".join(parts) + END


def pax_record(key: bytes, value: bytes) -> bytes:
    """b"LENGTH KEY=VALUE\\n"; the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def pax(records: Records | bytes, *, type: bytes = b"x") -> bytes:
    """An extended header (`type` b"g": a global one) of records, or of a body given as bytes."""
    if isinstance(records, bytes):
        body = records
    else:
        pairs = records.items() if isinstance(records, Mapping) else records
        body = b"".join(pax_record(key, value) for key, value in pairs)
    return header(b"pax", type=type, size=len(body)) + padded(body)


def gnu_long(text: bytes, *, type: bytes = b"L") -> bytes:
    """GNU's header for a long name (b"L") or a long link target (b"K")."""
    body = text + b"\0"
    return header(b"././@LongLink", type=type, size=len(body), magic=GNU) + padded(body)


def sparse_old(name: bytes, extents: Extents, size: Number, data: bytes) -> bytes:
    """GNU's old sparse form, type 'S': 4 extents in the header, 21 in each extension block."""

    def fields(part: Extents) -> bytes:
        return b"".join(number(offset, 12) + number(length, 12) for offset, length in part)

    rest = [extents[at : at + 21] for at in range(4, len(extents), 21)]
    patch = {386: fields(extents[:4]), 482: bytes([bool(rest)]), 483: number(size, 12)}
    blocks = [header(name, type=b"S", size=len(data), magic=GNU, patch=patch)]
    for i, part in enumerate(rest):
        blocks.append(fields(part).ljust(504, b"\0") + bytes([i + 1 < len(rest)]) + bytes(7))
    return b"".join(blocks) + padded(data)


def sparse_00(name: bytes, extents: Extents, size: int, data: bytes) -> bytes:
    """GNU sparse 0.0: an offset and a numbytes record for each extent."""
    records = [(b"GNU.sparse.size", b"%d" % size), (b"GNU.sparse.numblocks", b"%d" % len(extents))]
    for offset, length in extents:
        records += [(b"GNU.sparse.offset", b"%d" % offset), (b"GNU.sparse.numbytes", b"%d" % length)]
    return pax(records) + member(name, data)


def sparse_01(name: bytes, extents: Extents, size: int, data: bytes) -> bytes:
    """GNU sparse 0.1: the map in one record."""
    records = {
        b"GNU.sparse.size": b"%d" % size,
        b"GNU.sparse.numblocks": b"%d" % len(extents),
        b"GNU.sparse.name": name,
        b"GNU.sparse.map": b",".join(b"%d,%d" % extent for extent in extents),
    }
    return pax(records) + member(b"GNUSparseFile.0/" + name, data)


def sparse_10(name: bytes, extents: Extents, size: int, data: bytes, *, map_bytes: bytes | None = None) -> bytes:
    """GNU sparse 1.0: the map in blocks before the content; `map_bytes` replaces it."""
    if map_bytes is None:
        map_bytes = b"%d\n" % len(extents) + b"".join(b"%d\n%d\n" % extent for extent in extents)
    records = {
        b"GNU.sparse.major": b"1",
        b"GNU.sparse.minor": b"0",
        b"GNU.sparse.name": name,
        b"GNU.sparse.realsize": b"%d" % size,
    }
    return pax(records) + member(b"GNUSparseFile.0/" + name, padded(map_bytes) + data)
