"""Fuzzes what reads images: manifests, indexes and configs, archives of them, archives that ADD unpacks, users."""

import hashlib
import io
import json
import tempfile
from pathlib import Path

import atheris
from harness import fuzz, require, text_of

with atheris.instrument_imports(include=["layerstore"]):
    from layerstore.building import add_archives
    from layerstore.building.hostfiles import HostDirectory
    from layerstore.containers import users
    from layerstore.errors import CorruptError, DigestMismatch, InvalidInput, LimitExceeded, NotFound
    from layerstore.layers.blob_streams import compression_of, decompressed
    from layerstore.limits import DEFAULT
    from layerstore.oci import archives, configs, manifests
    from layerstore.types import DiffId


class Members(dict):  # type: ignore[type-arg]
    """The files of an archive."""

    def has(self, name: str) -> bool:
        return name in self

    def read(self, name: str, limit: str) -> bytes:
        if name not in self:
            raise NotFound(f"no {name}")
        return bytes(self[name])[: getattr(DEFAULT, limit)]


def list_layout(data: bytes) -> None:
    """JSON documents, one a line, what names others behind them: `@N` stands for the digest of document N, `#N` for its
    size. The last one is index.json, or manifest.json where it is a list; for that, config N is the file `cN`."""
    members = Members()
    for number, line in enumerate(data.split(b"\n")[:6]):
        for known in range(number):
            line = line.replace(b"@%d" % known, members[f"digest {known}"])
            line = line.replace(b"#%d" % known, b"%d" % len(members[f"c{known}"]))
        digest = hashlib.sha256(line).hexdigest()
        members[f"c{number}"] = members[f"blobs/sha256/{digest}"] = line
        members[f"digest {number}"] = b"sha256:" + digest.encode()
    members["manifest.json" if line.startswith(b"[") else "index.json"] = line
    for image in archives.list_images(members, "label", DEFAULT):
        require(len(image.layers) == len(image.config.diff_ids), "each layer has its diff_id")
        require(all(".." not in layer.member.split("/") for layer in image.layers), "no member leads out")


def read_config(data: bytes) -> None:
    config = configs.parse_config(data, None, DEFAULT)
    require(sum(layer is not None for _, layer in config.steps()) == len(config.diff_ids), "each layer has a step")
    made = configs.next_config(config, config.runtime, DiffId("sha256:" + "0" * 64), {"created": config.created})
    again = configs.parse_config(made)
    require(again.diff_ids[:-1] == config.diff_ids, "a config has the layers of the one that it is made of")


def read_manifest(data: bytes) -> None:
    document = manifests.parse_document(data, "a manifest", DEFAULT)
    if manifests.is_index(document, ""):
        list(manifests.for_platform(manifests.parse_index(document), "amd64"))
    else:
        manifest = manifests.parse_manifest(document, DEFAULT)
        require(all(layer.media_type in manifests.LAYER_TYPES for layer in manifest.layers), "layers are layers")


def read_archive(data: bytes) -> None:
    members = archives.TarMembers(io.BytesIO(data), DEFAULT)
    for name in list(members._files)[:20]:
        try:
            require(len(members.read(name, "config_bytes")) <= members.size_bytes(name), "a member has its size")
        except (CorruptError, InvalidInput, LimitExceeded, NotFound) as error:
            require(str(error), "an error says something")
    list(archives.list_images(members, "label", DEFAULT))


def unpack_archive(data: bytes) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as top:
        Path(top, "archive").write_bytes(data)
        with HostDirectory(top) as context:
            source = context.look("archive")[0].source
            if source is None:  # it is empty
                return
            with add_archives.opened(source, top, "archive", DEFAULT) as entries:
                for entry in entries or ():
                    names = entry.path.split(b"/")
                    require(not entry.path.startswith(b"/") and b".." not in names, "no entry leads out")
                    require(0 <= entry.uid < 1 << 32 and 0 <= entry.gid < 1 << 32, "owners have 32 bits")
                    require(-(1 << 63) <= entry.mtime_ns // 10**9 < 1 << 63, "times have 64 bits")


class Rootfs:
    def __init__(self, passwd: str, group: str) -> None:
        self._files = {"/etc/passwd": passwd, "/etc/group": group}

    def read_text(self, path: str, max_size_bytes: int) -> str:
        return self._files[path][:max_size_bytes]


def look_up_user(data: bytes) -> None:
    """/etc/passwd, /etc/group and the user, NULs between them."""
    passwd, group, user = (text_of(part) for part in (*data.split(b"\0", 2), b"", b"")[:3])
    found = users.look_up(Rootfs(passwd, group), user)
    ids = (found.uid, found.gid, *found.additional_gids)
    require(all(0 <= number <= users.MAX_ID for number in ids), "ids are those that docker accepts")
    json.dumps(found.home)


def decompress(data: bytes) -> None:
    """The same whatever pieces it comes in; no more than so much of it."""
    compression = compression_of(data[1:])
    if not compression:
        return
    said = []
    for size in (len(data), data[0] + 1):
        try:
            whole = hashlib.sha256()
            read = 0
            pieces = (data[at : at + size] for at in range(1, len(data), size))
            for piece in decompressed(pieces, compression):
                whole.update(piece)
                read += len(piece)
                if read > 1 << 22:
                    return
            said.append(whole.hexdigest())
        except (CorruptError, LimitExceeded) as error:
            said.append(type(error).__name__)
    require(said[0] == said[1], "a stream is the same in other pieces")


if __name__ == "__main__":
    fuzz(
        (list_layout, read_config, read_manifest, read_archive, unpack_archive, look_up_user, decompress),
        (CorruptError, DigestMismatch, InvalidInput, LimitExceeded, NotFound),
    )
