"""Where things are below the root of a store (docs/architecture.md, "The store on disk")."""

import os
import stat
from pathlib import Path

from layerstore.errors import InvalidInput, NotFound
from layerstore.store import durable
from layerstore.types import ChainId, DiffId, Digest, digest_hex

FORMAT = "layerstore 1\n"
PACK_THRESHOLD_BYTES = 128 * 1024
"""Contents up to this size go to a pack, larger ones become objects (docs/measurements.md, "Pack threshold")."""


class Layout:
    """Paths of one store. Making one touches nothing; `create` and `check` do."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.format = root / "format"
        self.database = root / "layerstore.db"
        self.packs = root / "packs"
        self.objects = root / "objects"
        self.layers = root / "layers"
        self.chains = root / "chains"
        self.containers = root / "containers"
        self.blobs = root / "blobs" / "sha256"
        self.run = root / "run"
        self.staging = root / "staging"
        self.runtime = self.run / "runtime"
        self.chain_mounts = self.run / "chains"
        self.pack_mounts = self.run / "packs"
        self.garbage_lock = self.run / "garbage.lock"
        self.staging_lock = self.run / "staging.lock"
        self.mount_lock = self.run / "mount.lock"

    def digests(self, generation: int) -> Path:
        return self.root / f"digests.{generation}"

    def pack(self, number: int) -> Path:
        return self.packs / f"{number}.pack"

    def pack_image(self, number: int) -> Path:
        return self.packs / f"{number}.erofs"

    def object(self, hex_digest: str) -> Path:
        return self.objects / hex_digest[:2] / hex_digest[2:]

    def layer_index(self, diff_id: DiffId) -> Path:
        return self.layers / f"{digest_hex(diff_id)}.index"

    def layer_recipe(self, diff_id: DiffId) -> Path:
        return self.layers / f"{digest_hex(diff_id)}.recipe"

    def chain_image(self, chain: ChainId) -> Path:
        return self.chains / f"{digest_hex(chain)}.erofs"

    def blob(self, digest: Digest) -> Path:
        return self.blobs / digest_hex(digest)

    def exists(self) -> bool:
        return self.format.exists()

    def create(self) -> None:
        """Make an empty store, or finish making one that was interrupted.

        Raises `InvalidInput` when the directory holds something else, `OSError`.
        """
        if self.root.is_dir() and not self.exists():
            # Another process may be making it at this moment.
            names = {entry.name for entry in self.root.iterdir() if not entry.name.startswith(f".{self.format.name}.")}
            strangers = names - self._own_names() - {"lost+found", self.format.name}
            if strangers:
                raise InvalidInput(
                    f"{self.root} is not empty and not a store (it has {min(strangers)!r}); give an empty directory"
                )
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)
        for directory in (
            *(self.packs, self.objects, self.layers, self.chains, self.containers, self.blobs),
            *(self.staging, self.runtime, self.chain_mounts, self.pack_mounts),
            *(self.objects / f"{i:02x}" for i in range(256)),
        ):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        durable.sync_file_system(self.root)
        durable.write_file(self.format, FORMAT.encode())

    def check(self) -> None:
        """Raise `NotFound` where there is no store, `InvalidInput` where it is not one that this version reads."""
        try:
            text = self.format.read_text()
        except FileNotFoundError:
            raise NotFound(
                f"there is no store at {self.root}; `layerstore init` or `layerstore load` makes one"
            ) from None
        except PermissionError:
            raise PermissionError(
                f"the store at {self.root} belongs to another user; run as that user or as root"
            ) from None
        if text != FORMAT:
            raise InvalidInput(f"{self.format} says {text.strip()!r}; this version reads {FORMAT.strip()!r} only")
        status = self.root.stat()
        if status.st_uid != os.geteuid() and os.geteuid() != 0:
            raise PermissionError(f"{self.root} belongs to user {status.st_uid}; run as that user or as root")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise InvalidInput(f"{self.root} is open to other users; `chmod 700 {self.root}` first")

    def _own_names(self) -> set[str]:
        own = (self.packs, self.objects, self.layers, self.chains, self.containers, self.blobs.parent, self.run)
        database = {self.database.name + ending for ending in ("", "-wal", "-shm")}
        return {path.name for path in (*own, self.staging)} | database
