"""The tar of a layer from entries."""

import io
import os
import stat
import tarfile
from collections.abc import Iterator

import pytest

from layerstore.errors import CorruptError, InvalidInput
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import PIECE_BYTES
from layerstore.trees.entries import Entry
from layerstore.trees.tarring import tar_pieces


class Bytes:
    """A source of bytes, in pieces of any size."""

    def __init__(self, data: bytes, piece: int = 1 << 20) -> None:
        self.data = data
        self.piece = piece

    def pieces(self) -> Iterator[bytes]:
        for at in range(0, len(self.data), self.piece):
            yield self.data[at : at + self.piece]

    def clone_to(self, fd: int) -> bool:
        return False


def entry(path: bytes, mode: int = stat.S_IFREG | 0o644, **rest: object) -> Entry:
    made = Entry(path, mode, uid=1, gid=2, mtime_ns=3_000_000_000)
    for name, value in rest.items():
        setattr(made, name, value)
    return made


def file(path: bytes, data: bytes, size: int | None = None) -> Entry:
    return entry(path, size=len(data) if size is None else size, source=Bytes(data))


def members(entries: list[Entry]) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(tar_pieces(entries)))) as archive:
        return archive.getmembers()


def test_every_kind() -> None:
    found = members(
        [
            entry(b"", stat.S_IFDIR | 0o755),
            entry(b"d", stat.S_IFDIR | 0o711, opaque=True, xattrs={b"user.d": b"1"}),
            file(b"d/f", b"content"),
            entry(b"d/g", link=b"d/f", size=7, source=Bytes(b"content")),
            entry(b"d/soft", stat.S_IFLNK | 0o777, target=b"f"),
            entry(b"dev", stat.S_IFCHR | 0o600, rdev=os.makedev(1, 3)),
            entry(b"empty"),
            Entry(b"gone", 0),
            entry(b"socket", stat.S_IFSOCK | 0o755),
        ]
    )
    assert [member.name for member in found] == [
        *(".", "d", "d/.wh..wh..opq", "d/f", "d/g", "d/soft", "dev", "empty", ".wh.gone")
    ]
    by_name = {member.name: member for member in found}
    assert by_name["d"].pax_headers == {"SCHILY.xattr.user.d": "1"}
    assert (by_name["d/f"].size, by_name["d/f"].uid, by_name["d/f"].gid, by_name["d/f"].mtime) == (7, 1, 2, 3)
    assert (by_name["d/g"].islnk(), by_name["d/g"].linkname, by_name["d/g"].size) == (True, "d/f", 0)
    assert by_name["d/soft"].linkname == "f"
    assert (by_name["dev"].devmajor, by_name["dev"].devminor) == (1, 3)
    assert [by_name[name].mtime for name in ("d/.wh..wh..opq", ".wh.gone")] == [0, 0]


def test_pieces_are_neither_small_nor_large() -> None:
    entries = [file(b"f%d" % i, b"x" * 2000) for i in range(2000)]
    entries.append(file(b"large", b"y" * 5_000_000))
    pieces = list(tar_pieces(entries))
    assert all(PIECE_BYTES <= len(piece) < 2.5 * PIECE_BYTES for piece in pieces[:-1])
    assert len(pieces[-1]) < 2.5 * PIECE_BYTES
    assert sum(map(len, pieces)) == 2000 * (512 + 2048) + 512 + 5_000_192 + 1024


def test_an_empty_layer_is_a_tar_too() -> None:
    assert b"".join(tar_pieces([])) == bytes(1024)


def test_large_files_are_read_from_what_was_cloned() -> None:
    """Each once, in their order, before its header is there; small ones and links are not asked about."""
    small, large = b"s" * PACK_THRESHOLD_BYTES, b"l" * (PACK_THRESHOLD_BYTES + 1)
    entries = [file(b"a", large), file(b"b", small), entry(b"c", link=b"a", size=len(large)), file(b"d", large + b"!")]
    seen: list[bytes] = []
    asked: list[int] = []

    def clone(source: object, size: int) -> tuple[Iterator[bytes], int]:
        """Of a file that has become larger."""
        assert isinstance(source, Bytes)
        assert len(source.data) == size
        asked.append(size)
        return Bytes(b"c" * (size + 5), piece=1000).pieces(), size + 5

    for piece in tar_pieces(entries, clone):
        seen.append(bytes(piece))
    with tarfile.open(fileobj=io.BytesIO(b"".join(seen))) as archive:
        contents = [archive.extractfile(name).read() for name in ("a", "b", "d")]  # type: ignore[union-attr]
    assert contents == [b"c" * (len(large) + 5), small, b"c" * (len(large) + 6)]
    assert asked == [len(large), len(large) + 1]


@pytest.mark.parametrize(("size", "message"), [(6, "ends 1 bytes before"), (4, "by 1 bytes")])
def test_a_source_of_another_size_is_refused(size: int, message: str) -> None:
    with pytest.raises(CorruptError, match=rf'"/d/f".*{message}'):
        list(tar_pieces([file(b"d/f", b"12345", size=size)]))


def test_a_name_that_would_delete_something_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r'"/d/\.wh\.f"'):
        list(tar_pieces([entry(b"d/.wh.f")]))
