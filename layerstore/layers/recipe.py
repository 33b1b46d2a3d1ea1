"""Writes a layer's tar again, bit for bit, from its recipe and the stored contents (docs/format/recipe.md)."""

from __future__ import annotations

import io
import struct

from layerstore.errors import RELOAD, CorruptError, LimitExceeded
from layerstore.layers.blob_streams import decompressed, pieces_of
from layerstore.limits import beyond
from layerstore.naming import about
from layerstore.store.layout import PACK_THRESHOLD_BYTES
from layerstore.store.pieces import PIECE_BYTES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Protocol, TypeAlias

    from layerstore._core.index import Index
    from layerstore.limits import Limits
    from layerstore.store.contents import ContentStore
    from layerstore.store.pieces import Piece

    class Table(Protocol):
        """The contents of a layer in the order in which its recipe wants them, as `Index` has them."""

        @property
        def content_count(self) -> int: ...
        def content(self, number: int) -> tuple[bytes, int]: ...

    class Source(Protocol):
        """What contents are read from, as `ContentStore`."""

        def read_many(self, digests: Sequence[bytes]) -> list[bytes]: ...
        def find(self, digest: bytes) -> bytes | io.RawIOBase: ...

    Part: TypeAlias = "bytes | tuple[bytes, int, list[tuple[int, int]] | None]"
    """Bytes of the tar; or a content's digest and size, and which ranges of it, None for all of it."""

_U32 = struct.Struct("<I")
_EXTENT = struct.Struct("<QQ")
_RAW, _CONTENT, _SPARSE = 0, 1, 2


def tar_pieces(recipe: str, index: Index, contents: ContentStore) -> Iterator[Piece]:
    """The bytes of the layer's tar, in pieces of about 1 MiB.

    Whoever needs to know that they are those that came in compares their digest with the diff_id. Raises
    `CorruptError` where the recipe does not fit or a content is missing, `OSError`.
    """
    with _opened(recipe) as file:
        yield from _played(_parts(_frames(recipe, file), index), contents)


def recipe_frames(recipe: str, most_bytes: int) -> bytes | None:
    """All frames of a recipe; None where these are more than so many bytes. Raises `CorruptError`, `OSError`."""
    found = bytearray()
    with _opened(recipe) as file:
        try:
            for piece in decompressed(pieces_of(file), "zstd"):
                found += piece
                if len(found) > most_bytes:
                    return None
        except (CorruptError, LimitExceeded) as error:
            raise CorruptError(f"{recipe} is damaged: {error}; {RELOAD}") from error
    return bytes(found)


def arrived_tar_pieces(
    what: str, frames: Iterable[Piece], table: Table, contents: Source, limits: Limits
) -> Iterator[Piece]:
    """The same of a recipe that is not of this store: its `frames`, decompressed. `what` names it in errors.

    Raises what `frames` does, and `LimitExceeded`.
    """
    yield from _played(_parts(_Frames(what, frames, "sync again", limits), table), contents)


def _played(parts: Iterable[Part], contents: Source) -> Iterator[Piece]:
    batch = _Batch(contents)
    for part in parts:
        if isinstance(part, bytes):
            batch.add(part)
        else:
            digest, size, ranges = part
            if ranges is None and size <= PACK_THRESHOLD_BYTES:
                batch.add_content(digest, size)
            else:
                yield from batch.take()
                yield from _ranges(contents, digest, [(0, size)] if ranges is None else ranges)
        if batch.bytes >= PIECE_BYTES:
            yield from batch.take()
    yield from batch.take()


def tar_bytes(recipe: str, index: Index) -> int:
    """The size of the layer's tar, without reading a content. Raises as `tar_pieces`."""
    total = 0
    with _opened(recipe) as file:
        for part in _parts(_frames(recipe, file), index):
            if isinstance(part, bytes):
                total += len(part)
            else:
                _, size, ranges = part
                total += size if ranges is None else sum(length for _, length in ranges)
    return total


class _Batch:
    """A stretch of the tar, with small contents that are read together: what each costs on its own would be most of the
    time."""

    def __init__(self, contents: Source) -> None:
        self._contents = contents
        self._clear()

    def _clear(self) -> None:
        self.bytes = 0
        self._parts: list[bytes] = []
        self._places: list[int] = []
        self._digests: list[bytes] = []
        self._sizes: list[int] = []

    def add(self, part: bytes) -> None:
        self._parts.append(part)
        self.bytes += len(part)

    def add_content(self, digest: bytes, size: int) -> None:
        self._places.append(len(self._parts))
        self._digests.append(digest)
        self._sizes.append(size)
        self._parts.append(b"")
        self.bytes += size

    def take(self) -> Iterator[bytes]:
        """What was added, in one piece; none where that is nothing."""
        read = self._contents.read_many(self._digests)
        for place, digest, size, data in zip(self._places, self._digests, self._sizes, read, strict=True):
            if len(data) != size:
                raise _another_size(digest)
            self._parts[place] = data
        if self.bytes:
            yield b"".join(self._parts)
        self._clear()


def _frames(recipe: str, file: io.FileIO) -> _Frames:
    return _Frames(recipe, decompressed(pieces_of(file), "zstd"), RELOAD)


def _parts(frames: _Frames, table: Table) -> Iterator[Part]:
    number, count = 0, table.content_count
    while (kind := frames.kind()) is not None:
        if kind == _RAW:
            yield from frames.raw()
            continue
        if kind not in (_CONTENT, _SPARSE):
            raise frames.wrong(f"has a frame of unknown kind {kind}")
        if number == count:
            raise frames.wrong(f"wants more than the {count} contents of its layer")
        digest, size = table.content(number)
        number += 1
        yield digest, size, None if kind == _CONTENT else frames.extents(size)


def _opened(recipe: str) -> io.FileIO:
    try:
        return io.FileIO(recipe)
    except FileNotFoundError:
        raise CorruptError(f"{recipe} is missing from the store; {RELOAD}") from None


class _Frames:
    """The frames of a recipe, field by field. `cure` is what to do about one that is damaged."""

    def __init__(self, recipe: str, pieces: Iterable[Piece], cure: str, limits: Limits | None = None) -> None:
        self._recipe = recipe
        self._pieces = iter(pieces)
        self._cure = cure
        self._limits = limits
        self._hole_bytes = 0
        self._data = b""
        self._at = 0

    def wrong(self, what: str) -> CorruptError:
        return CorruptError(f"{self._recipe} {what}; {self._cure}")

    def _has(self, length: int) -> bool:
        """Have that many bytes from `_at` on; False where the recipe ends before."""
        while len(self._data) - self._at < length:
            try:
                piece = next(self._pieces, None)
            except (CorruptError, LimitExceeded) as error:
                if self._limits is not None:
                    raise
                raise self.wrong(f"is damaged: {error}") from error
            if piece is None:
                return False
            self._data, self._at = self._data[self._at :] + piece, 0
        return True

    def _take(self, length: int) -> bytes:
        if not self._has(length):
            raise self.wrong("is cut off")
        self._at += length
        return self._data[self._at - length : self._at]

    def kind(self) -> int | None:
        """The kind of the next frame; None at the end."""
        if not self._has(1):
            return None
        self._at += 1
        return self._data[self._at - 1]

    def raw(self) -> Iterator[bytes]:
        """What is in a raw frame, at most 1 MiB at a time, as a damaged one may say that it has any length."""
        (length,) = _U32.unpack(self._take(4))
        while length > PIECE_BYTES:
            yield self._take(PIECE_BYTES)
            length -= PIECE_BYTES
        yield self._take(length)

    def extents(self, size: int) -> list[tuple[int, int]]:
        """The ranges of a sparse frame, of a content of that size."""
        (count,) = _U32.unpack(self._take(4))
        if self._limits is not None and count > self._limits.sparse_extents:
            raise beyond(f"{self._recipe} has a file of {count} extents", self._limits, "sparse_extents")
        found = list(_EXTENT.iter_unpack(self._take(count * _EXTENT.size)))
        if any(offset + length > size for offset, length in found):
            raise self.wrong("wants a range that its content does not have")
        if self._limits is not None:
            self._check_work(found, size, self._limits)
        return found

    def _check_work(self, extents: list[tuple[int, int]], size: int, limits: Limits) -> None:
        """Of a recipe that was not written here: no content is read twice for a file, and no more is passed over than
        the reader of the tar would take as holes."""
        end = 0
        for offset, length in extents:
            if offset < end:
                raise self.wrong("wants ranges of a content that do not follow each other")
            end = offset + length
        self._hole_bytes += size - sum(length for _, length in extents)
        if self._hole_bytes > limits.hole_bytes:
            raise beyond(f"{self._recipe} has {self._hole_bytes} bytes of holes", limits, "hole_bytes")


def _ranges(contents: Source, digest: bytes, ranges: list[tuple[int, int]]) -> Iterator[Piece]:
    found = contents.find(digest)
    if isinstance(found, bytes):
        for offset, length in ranges:
            if offset + length > len(found):
                raise _another_size(digest)
            if length:
                yield found[offset : offset + length]
        return
    name = getattr(found, "name", None)
    what = name if isinstance(name, str) else f"content {digest.hex()}"
    with found:
        for offset, length in ranges:
            found.seek(offset)
            while length:
                with about(what):
                    piece = found.read(min(length, PIECE_BYTES))
                if not piece:
                    raise _another_size(digest)
                length -= len(piece)
                yield piece


def _another_size(digest: bytes) -> CorruptError:
    return CorruptError(f"content {digest.hex()} has another size than its layer says; {RELOAD}")
