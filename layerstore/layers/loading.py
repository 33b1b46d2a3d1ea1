"""Loads archives into the store: which layers are missing, in what order their bytes come, what becomes of them."""

from __future__ import annotations

import contextlib
import io
import os

from layerstore.errors import InvalidInput, NotFound
from layerstore.layers.blob_streams import INPUT_BYTES, compression_of, decompressed, pieces_of, prefixed
from layerstore.layers.imports import Import
from layerstore.limits import beyond
from layerstore.naming import about, fstat
from layerstore.oci import archives
from layerstore.oci.archives import DirectoryMembers, Names, TarMembers, streamed_members
from layerstore.oci.configs import image_config, parse_config
from layerstore.oci.manifests import go_architecture
from layerstore.results import Progress, telling
from layerstore.store.pieces import PIECE_BYTES
from layerstore.types import sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator
    from typing import BinaryIO

    from layerstore._core.tar import Entry
    from layerstore.layers.imports import ImportedLayer
    from layerstore.limits import Limits
    from layerstore.oci.archives import ArchivedImage, LayerSource
    from layerstore.results import ProgressCallback
    from layerstore.store.opened import OpenStore
    from layerstore.store.pieces import Piece
    from layerstore.types import DiffId, ImageId

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class _Loader:
    """One load: an import, and who is told of its progress."""

    def __init__(self, importing: Import, progress: ProgressCallback | None, limits: Limits) -> None:
        self.importing = importing
        self._progress = progress
        self.limits = limits
        self.images: list[ImageId] = []

    def add_image(self, image: ArchivedImage) -> None:
        self.importing.add_image(image.config, image.names, image.blobs)
        self.images.append(image.config.image_id)

    def add_layer(self, source: archives.Readable, layer: LayerSource, total: int | None) -> None:
        self.importing.add_layer(
            pieces_of(source, PIECE_BYTES),
            diff_id=layer.diff_id,
            digest=layer.digest,
            size_bytes=layer.size_bytes,
            progress=telling(self._progress, "import", layer.diff_id, total),
        )

    def load_members(self, members: DirectoryMembers | TarMembers, label: str) -> None:
        """An archive whose files can be opened in any order: only the layers that are missing are read."""
        images = list(archives.list_images(members, label, self.limits))
        missing = self.importing.claim_missing(layer.diff_id for image in images for layer in image.layers)
        for image in images:
            for layer in image.layers:
                if layer.diff_id not in missing or self.importing.is_staged(layer.diff_id):
                    self.tell_known(layer)
                    continue
                with members.open(layer.member) as blob:
                    self.add_layer(blob, layer, members.size_bytes(layer.member))
            self.add_image(image)

    def tell_known(self, layer: LayerSource) -> None:
        if self._progress is not None:
            size = layer.size_bytes or 0
            self._progress(Progress("stored", layer.diff_id, size, size))

    def load_stream(self, pieces: Iterable[Piece], label: str) -> None:
        """A tar that comes once, its manifest perhaps last: what looks like a layer is staged as it passes."""
        seen = _StreamedMembers(self.limits)
        for member, content in streamed_members(pieces, self.limits):
            self._take_member(member, content, seen)
        for image in archives.list_images(seen, label, self.limits):
            stored = self.importing.stored_layers(layer.diff_id for layer in image.layers)
            for layer in image.layers:
                seen.check(layer, stored)
            self.add_image(image)

    def _take_member(self, member: Entry, content: Iterator[bytes], seen: _StreamedMembers) -> None:
        name = seen.names.add(member)
        if name is None:
            return
        head = b""
        while len(head) < 512 and (piece := next(content, b"")):
            head += piece
        if _is_layer(head[:512]):
            tell = telling(self._progress, "import", name, member.size)
            seen.add_layer(name, self.importing.add_layer(prefixed(head, content), progress=tell))
        else:
            seen.keep(name, prefixed(head, content))


class _StreamedMembers:
    """What a stream has shown: small files whole, layers as they were staged."""

    def __init__(self, limits: Limits) -> None:
        self.names = Names(limits)
        self._limits = limits
        self._layers: dict[str, ImportedLayer] = {}
        self._files: dict[str, bytes] = {}
        self._too_large: dict[str, int] = {}
        self._bytes = 0

    def add_layer(self, name: str, layer: ImportedLayer) -> None:
        self._forget(name)
        self._layers[name] = layer

    def _forget(self, name: str) -> None:
        self._layers.pop(name, None)
        self._files.pop(name, None)
        self._too_large.pop(name, None)

    def keep(self, name: str, pieces: Iterable[Piece]) -> None:
        """A file that is no layer, and so may be a manifest or config. One that is too large for that is passed over:
        it may be what an image is not made of, as a list of its packages. Raises `LimitExceeded`."""
        largest = max(self._limits.manifest_bytes, self._limits.config_bytes)
        self._forget(name)
        data, size = bytearray(), 0
        for piece in pieces:
            size += len(piece)
            if size > largest:
                self._bytes -= len(data)
                data.clear()
                continue
            data += piece
            self._bytes += len(piece)
            if self._bytes > self._limits.metadata_bytes:
                what = f"{name} brings the files of the archive that are no layers to {self._bytes} bytes"
                raise beyond(what, self._limits, "metadata_bytes")
        if size > largest:
            self._too_large[name] = size
        else:
            self._files[name] = bytes(data)

    def has(self, name: str) -> bool:
        return name in self._files or name in self._too_large

    def read(self, name: str, limit: str) -> bytes:
        found = self.names.resolve(name)
        data = self._files.get(found, b"")
        size = self._too_large.get(found, len(data))
        if size > getattr(self._limits, limit):
            raise beyond(f"{name} has {size} bytes", self._limits, limit)
        if found not in self._files:
            raise NotFound(f"the archive has no file {name}; save the image again")
        return data

    def check(self, wanted: LayerSource, stored: Container[DiffId]) -> None:
        """Does the layer that passed keep what the image promises for it? One that did not pass is in `stored`.

        Raises `DigestMismatch`, `NotFound`.
        """
        layer = self._layers.get(self.names.resolve(wanted.member))
        if layer is not None:
            layer.check(wanted.diff_id, wanted.digest, wanted.size_bytes)
        elif wanted.diff_id not in stored:
            raise NotFound(f"the archive has no layer {wanted.member}; save the image again")


def _is_layer(head: bytes) -> bool:
    """A compressed blob, a tar header, or the zeros of an empty tar."""
    if compression_of(head):
        return True
    # By the magic number, that a damaged header is told as one; by the checksum, as the oldest form has no such number.
    return len(head) == 512 and (head[257:262] == b"ustar" or not head.strip(b"\0") or _is_tar_header(head))


def _is_tar_header(block: bytes) -> bool:
    """Has the block the checksum of a tar header?"""
    field = block[148:156].strip(b" \0")
    if not field.isdigit() or field.translate(None, b"01234567"):
        return False
    return int(field, 8) == sum(block) - sum(block[148:156]) + 8 * ord(" ")


@contextlib.contextmanager
def _opened(source: str | os.PathLike[str] | BinaryIO) -> Iterator[tuple[BinaryIO, str]]:
    """The source as a binary file, and a label for it."""
    if isinstance(source, (str, os.PathLike)):
        with open(source, "rb", buffering=0) as file:
            yield file, _label(source)
    else:
        yield source, "stream"


def _label(path: str | os.PathLike[str]) -> str:
    """The name of a file or directory as the repository of images that have none."""
    stem = os.path.basename(os.path.realpath(path))
    for ending in (".gz", ".zst", ".tar", ".tgz"):
        stem = stem.removesuffix(ending)
    label = "".join(c if c.isalnum() and c.isascii() else "-" for c in stem.lower()).strip("-")
    return label or "image"


def load(
    store: OpenStore,
    source: str | os.PathLike[str] | BinaryIO,
    progress: ProgressCallback | None,
    limits: Limits,
) -> list[ImageId]:
    """Load every image of an archive; see `layerstore.Store.load`."""
    with Import(store, limits=limits) as importing:
        loader = _Loader(importing, progress, limits)
        if isinstance(source, (str, os.PathLike)) and os.path.isdir(source):
            loader.load_members(DirectoryMembers(os.fspath(source), limits), _label(source))
        else:
            with _opened(source) as (file, label):
                _load_file(loader, file, label)
        importing.commit()
        return loader.images


def _load_file(loader: _Loader, file: BinaryIO, label: str) -> None:
    with about(getattr(file, "name", "the archive")):
        head = file.read(512)
    compression = compression_of(head)
    if not compression and _is_seekable(file):
        file.seek(0)
        loader.load_members(TarMembers(file, loader.limits), label)
        return
    if not compression and not _is_layer(head):
        raise InvalidInput("this is not a tar archive, compressed or not; give what `docker save` or an OCI tool wrote")
    size = INPUT_BYTES if compression else PIECE_BYTES
    pieces = decompressed(prefixed(head, pieces_of(file, size)), compression, loader.limits, "the archive")
    loader.load_stream(pieces, label)


def _is_seekable(file: BinaryIO) -> bool:
    try:
        return file.seekable()
    except (AttributeError, io.UnsupportedOperation):
        return False


def import_rootfs(
    store: OpenStore,
    source: str | os.PathLike[str] | BinaryIO,
    name: str,
    created: str,
    progress: ProgressCallback | None,
    limits: Limits,
) -> ImageId:
    """Make an image of one layer; see `layerstore.Store.import_rootfs`."""
    with Import(store, limits=limits) as importing, _opened(source) as (file, label):
        total = fstat(file.fileno()).st_size if isinstance(source, (str, os.PathLike)) else None
        tell = telling(progress, "import", label, total)
        layer = importing.add_layer(pieces_of(file, PIECE_BYTES), progress=tell)
        about_it = {"created": created, "architecture": go_architecture(), "os": "linux"}
        step = {"created": created, "created_by": "layerstore import", "comment": "Imported from a root file system"}
        data = image_config(about_it, {"Env": [_PATH]}, [layer.diff_id], [step])
        config = parse_config(data)
        importing.add_image(config, [name], {sha256_digest(data): data})
        importing.commit()
        return config.image_id
