"""What the database says of images, layers and containers, as of one moment."""

from __future__ import annotations

from layerstore.store.layout import FIRST_COLD
from layerstore.types import ChainId, DiffId, Digest, ImageId

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable


class Catalog:
    """The rows that a check looks at more than once, by their keys.

    `layers`: bytes of files, digest of the recipe. `chains`: parent, topmost layer. `images`: chain, time of creation.
    `blobs` and `names` of an image. `cold_packs`: by the numbers that they have in locations. `damaged`: what a layer
    lacks that was found to be damaged before. `logs`: the logs that each needs, and how much of them.
    """

    def __init__(self, db: sqlite3.Connection) -> None:
        rows = db.execute
        self.layers = {DiffId(key): (size, recipe) for key, size, recipe in rows("SELECT * FROM layers").fetchall()}
        self.chains = {ChainId(key): (parent, diff_id) for key, parent, diff_id in rows("SELECT * FROM chains")}
        query = "SELECT image_id, chain_id, created FROM images"
        self.images = {ImageId(key): (ChainId(chain), created) for key, chain, created in rows(query)}
        self.blobs: dict[ImageId, set[Digest]] = {image: set() for image in self.images}
        for image, digest in rows("SELECT image_id, digest FROM image_blobs"):
            self.blobs.setdefault(ImageId(image), set()).add(Digest(digest))
        self.packs = {number for (number,) in rows("SELECT number FROM packs")}
        self.cold_packs = {FIRST_COLD + number for (number,) in rows("SELECT number FROM cold_packs")}
        self.counters = dict(rows("SELECT name, value FROM counters").fetchall())
        self.damaged = dict(rows("SELECT diff_id, lacks FROM damaged_layers").fetchall())
        self.containers = rows("SELECT id, image_id, chain_id, driver, log FROM containers").fetchall()
        self.snapshots = rows("SELECT container_id, name, log, length FROM snapshots").fetchall()
        self.logs: dict[str, dict[str, int]] = {log: {} for (log,) in rows("SELECT id FROM logs")}
        for log, used, length in rows("SELECT log, used, length FROM log_uses"):
            self.logs.setdefault(log, {})[used] = length
        self._above: dict[ChainId, list[ChainId]] | None = None

    def stack(self, chain: ChainId) -> list[DiffId]:
        """The layers of a chain as its rows say, bottom first; fewer where a row is missing."""
        found: list[DiffId] = []
        at: ChainId | None = chain
        while at in self.chains and len(found) < len(self.chains):
            at, diff_id = self.chains[at]
            found.append(diff_id)
        return found[::-1]

    def images_of_layers(self, layers: Iterable[DiffId]) -> tuple[ImageId, ...]:
        """The images that have any of these layers."""
        if self._above is None:
            self._above = {}
            for chain, (parent, _) in self.chains.items():
                self._above.setdefault(parent, []).append(chain)
        wanted = set(layers)
        reached: set[ChainId] = set()
        waiting = [chain for chain, (_, diff_id) in self.chains.items() if diff_id in wanted]
        while waiting:
            chain = waiting.pop()
            if chain not in reached:
                reached.add(chain)
                waiting += self._above.get(chain, ())
        return self.images_of_chains(reached)

    def images_of_chains(self, chains: Iterable[ChainId]) -> tuple[ImageId, ...]:
        """The images that end in one of these chains."""
        wanted = set(chains)
        return tuple(sorted(image for image, (chain, _) in self.images.items() if chain in wanted))
