"""Where things are below the root of a store (docs/store.md)."""

from __future__ import annotations

import contextlib
import os
import stat

from layerstore.errors import REPAIR_DATABASE, CorruptError, InvalidInput, NotFound
from layerstore.naming import about, close_fd, exists
from layerstore.store import durable, locks
from layerstore.types import ChainId, digest_hex, sha256_digest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from layerstore.types import DiffId, Digest

FORMAT = "layerstore 1\n"
FORMAT_NAME = "format"
_UNFINISHED_FORMAT = f".{FORMAT_NAME}."
FIRST_COLD = 1 << 31
"""A location in cold pack `n` has the pack number `FIRST_COLD + n`."""
POOL_NAME = "pool"
"""With it begin the names of what is beside a pool (layerstore/store/pool.py)."""
PACK_THRESHOLD_BYTES = 128 * 1024
"""Contents up to this size go to a pack, larger ones become objects (docs/measurements.md, "Pack threshold")."""

DERIVED_LIMIT_BYTES = 4 << 30
"""What derived files may take where no limit was set: a tree image and an index for some 800 images like Debian's."""


def absolute(path: str | os.PathLike[str]) -> str:
    """The path from the root directory; its links and ".." stay, as the kernel alone knows where they lead."""
    text = os.fspath(path)
    return (text if os.path.isabs(text) else os.path.join(os.getcwd(), text)).rstrip("/") or "/"


def make_private(path: str) -> None:
    """Make a directory, and those above it that are missing, for this user alone, whatever the umask."""
    missing = []
    while not exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    for each in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(each, 0o700)


def chain_of_mount(name: str) -> ChainId:
    """The chain whose tree image is attached in the directory of that name (`Layout.chain_mount`)."""
    return ChainId(f"sha256:{name.partition('.')[0]}")


def default_root() -> str:
    """$LAYERSTORE_ROOT, or the usual place of this user."""
    given = os.environ.get("LAYERSTORE_ROOT")
    if given:
        return given
    if os.geteuid() == 0:
        return "/var/lib/layerstore"
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return f"{data}/layerstore"


class Layout:
    """Paths of one store, absolute, as strings. Making one touches nothing; `create` and `check` do."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = absolute(root)
        self.format = f"{self.root}/{FORMAT_NAME}"
        self.database = f"{self.root}/layerstore.db"
        self.ready_database = f"{self.root}/.layerstore.db.ready"
        self.packs = f"{self.root}/packs"
        self.objects = f"{self.root}/objects"
        self.cold = f"{self.root}/cold"
        self.layers = f"{self.root}/layers"
        self.chains = f"{self.root}/chains"
        self.containers = f"{self.root}/containers"
        self.frozen = f"{self.root}/frozen"
        self.logs = f"{self.root}/logs"
        self.blobs = f"{self.root}/blobs/sha256"
        self.run = f"{self.root}/run"
        self.staging = f"{self.root}/staging"
        self.builds = f"{self.root}/builds"
        self.downloads = f"{self.root}/downloads"
        self.quarantine = f"{self.root}/quarantine"
        self.runtime = f"{self.run}/runtime"
        self.chain_mounts = f"{self.run}/chains"
        self.pack_mounts = f"{self.run}/packs"
        self.borrowed = f"{self.run}/borrowed"
        self.boot = f"{self.run}/boot"
        self.garbage_lock = f"{self.run}/garbage.lock"
        self.staging_lock = f"{self.run}/staging.lock"
        self.mount_lock = f"{self.run}/mount.lock"
        self.containers_lock = f"{self.run}/containers.lock"
        self.layers_lock = f"{self.run}/layers.lock"
        self.steps_lock = f"{self.run}/steps.lock"
        self.database_lock = f"{self.run}/database.lock"
        self.packs_lock = f"{self.run}/packs.lock"
        self.freeze_lock = f"{self.run}/freeze.lock"

    @property
    def is_pool(self) -> bool:
        """Whether it is on a file system of its own, in a file of another."""
        return os.path.basename(self.root) == POOL_NAME

    def digests(self, generation: int) -> str:
        return f"{self.root}/digests.{generation}"

    def pack(self, number: int) -> str:
        """Of a pack, or of a cold pack by the number that it has in locations."""
        return f"{self.packs}/{number}.pack" if number < FIRST_COLD else self.cold_pack(number - FIRST_COLD)

    def pack_image(self, number: int) -> str:
        return f"{self.packs}/{number}.erofs"

    def cold_pack(self, number: int) -> str:
        """Number as it is in the database, from 0."""
        return f"{self.cold}/{number}.cold"

    def object(self, hex_digest: str) -> str:
        return f"{self.objects}/{hex_digest[:2]}/{hex_digest[2:]}"

    def layer_index(self, diff_id: DiffId) -> str:
        return f"{self.layers}/{digest_hex(diff_id)}.index"

    def layer_recipe(self, diff_id: DiffId) -> str:
        return f"{self.layers}/{digest_hex(diff_id)}.recipe"

    def chain_index(self, chain: ChainId) -> str:
        return f"{self.chains}/{digest_hex(chain)}.index"

    def chain_image(self, chain: ChainId) -> str:
        return f"{self.chains}/{digest_hex(chain)}.erofs"

    def chain_description(self, chain: ChainId) -> str:
        return f"{self.chains}/{digest_hex(chain)}.json"

    def chain_mount(self, chain: ChainId, packs: Iterable[int]) -> str:
        """Where a tree image is attached. One that was made anew with other packs has another place: while the old one
        is attached, perhaps in another mount namespace, neither may be taken for the other."""
        needs = sha256_digest(",".join(map(str, packs)).encode())
        return f"{self.chain_mounts}/{digest_hex(chain)}.{digest_hex(needs)[:16]}"

    def chain_lock(self, chain: ChainId) -> str:
        return f"{self.run}/{digest_hex(chain)}.lock"

    def blob(self, digest: Digest) -> str:
        return f"{self.blobs}/{digest_hex(digest)}"

    def container(self, container: str) -> str:
        return f"{self.containers}/{container}"

    def log(self, log: str) -> str:
        return f"{self.logs}/{log}"

    def exists(self) -> bool:
        """Whether there is a store. Raises `PermissionError` where it is another user's, `OSError`."""
        return self.has(FORMAT_NAME)

    def has(self, name: str) -> bool:
        """Whether something of that name is in the root. Raises as `exists`."""
        try:
            return exists(f"{self.root}/{name}")
        except PermissionError:
            raise self._another_users() from None

    def _another_users(self) -> PermissionError:
        return PermissionError(f"the store at {self.root} belongs to another user; run as that user")

    def create(self) -> None:
        """Make an empty store, or finish making one that was interrupted.

        Raises `InvalidInput` when the directory holds something else, `OSError`.
        """
        if os.path.isdir(self.root):
            self._check_owner(os.stat(self.root))
        if os.path.isdir(self.root) and not self.exists():
            # Another process may be making it at this moment.
            names = {name for name in os.listdir(self.root) if not name.startswith(_UNFINISHED_FORMAT)}
            strangers = names - self._own_names() - {"lost+found"}
            if strangers:
                raise InvalidInput(
                    f"{self.root} is not empty and not a store (it has {min(strangers)!r}); give an empty directory"
                )
        make_private(self.root)
        os.chmod(self.root, 0o700)
        with locks.making(self):
            if self.exists():
                return  # another process has made it meanwhile
            for name in os.listdir(self.root):
                if name.startswith(_UNFINISHED_FORMAT):
                    os.unlink(f"{self.root}/{name}")
            with durable.file_system(self.root) as sync:
                for directory in self._directories():
                    make_private(directory)
                # Files that SQLite puts beside it get its mode.
                close_fd(os.open(self.database, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
                sync()
            durable.write_file(self.format, FORMAT.encode())

    def finish(self) -> None:
        """Finish the making of a store that was interrupted, where nothing else is there. Raises `OSError`."""
        if not self.exists() and self._is_half_made():
            self.create()

    def _is_half_made(self) -> bool:
        """Whether there is what `create` leaves at some step, and nothing else: what has something in it, and no file
        that says what it is, is a store that is damaged."""
        made = {self.database, *self._directories(), os.path.dirname(self.blobs), self.run}
        try:
            names = [name for name in os.listdir(self.root) if name != "lost+found"]
        except (FileNotFoundError, NotADirectoryError):
            return False
        if not names or os.stat(self.root).st_uid != os.geteuid():
            return False
        if exists(self.database) and os.stat(self.database).st_size:
            return False
        there = {f"{self.root}/{name}" for name in names if not name.startswith(_UNFINISHED_FORMAT)}
        if there and not exists(self.packs):  # which comes first: else it is somebody's own directory
            return False
        for path in filter(os.path.isdir, made):
            there |= {f"{path}/{name}" for name in os.listdir(path) if path != self.run or not name.endswith(".lock")}
        return there <= made

    def _directories(self) -> tuple[str, ...]:
        """What `create` makes, in that order."""
        return (
            *(self.packs, self.objects, self.layers, self.chains, self.containers, self.logs, self.blobs),
            *(self.staging, self.runtime, self.chain_mounts, self.pack_mounts),
        )

    def has_parts(self) -> bool:
        """Whether this is, or was, a store, whatever its format file says."""
        return all(os.path.isdir(path) for path in (self.packs, self.layers, self.blobs, self.run))

    def check(self) -> None:
        """Raise `NotFound` where there is no store, `InvalidInput` where it is not one that this version reads."""
        try:
            with about(self.format), open(self.format, "rb") as file:
                text = file.read(4096).decode("utf-8", "backslashreplace")
        except FileNotFoundError:
            raise NotFound(
                f"there is no store at {self.root}; `layerstore init` or `layerstore load` makes one"
            ) from None
        except PermissionError:
            raise self._another_users() from None
        if text != FORMAT:
            raise InvalidInput(f"{self.format} says {text.strip()!r}; this version reads {FORMAT.strip()!r} only")
        status = os.stat(self.root)
        self._check_owner(status)
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise InvalidInput(f"{self.root} is open to other users; `chmod 700 {self.root}` first")

    def check_database(self) -> None:
        """Raise `CorruptError` where a store that has something has no database: a new one would make garbage of it.

        And where a repair was interrupted that had made a new one: what came to the old one would go with that.
        """
        if exists(self.ready_database):
            raise CorruptError(f"a repair of {self.database} was interrupted; {REPAIR_DATABASE}")
        if exists(self.database) and os.stat(self.database).st_size:
            return
        if os.listdir(self.layers) or os.listdir(self.packs) or os.listdir(self.blobs):
            raise CorruptError(f"{self.database} is missing; {REPAIR_DATABASE}")

    def _check_owner(self, status: os.stat_result) -> None:
        """To root as well: whoever may put links into a store would have it write anywhere."""
        if status.st_uid != os.geteuid():
            raise PermissionError(f"{self.root} belongs to user {status.st_uid}; run as that user")

    def _own_names(self) -> set[str]:
        database = (self.database + ending for ending in ("", "-wal", "-shm"))
        own = (*self._directories(), self.format, self.frozen, self.cold, self.builds, self.quarantine, *database)
        return {path.removeprefix(f"{self.root}/").partition("/")[0] for path in own}
