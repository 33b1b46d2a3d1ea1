"""What is made again when it is missing: merged indexes, tree images, remembered steps of builds."""

from __future__ import annotations

import json
import os

from layerstore._core.hashing import Hasher
from layerstore._core.index import CHAIN
from layerstore.checking.findings import reason
from layerstore.checking.hashing import read_through
from layerstore.errors import CorruptError, Unsupported
from layerstore.layers.index_files import open_index
from layerstore.naming import fstat
from layerstore.store import locks, own_names
from layerstore.store.pieces import PIECE_BYTES
from layerstore.store.sealed import unsealed
from layerstore.types import ChainId, hash_key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from layerstore.checking.catalog import Catalog
    from layerstore.checking.findings import Findings
    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore


def check_chains(store: OpenStore, catalog: Catalog, findings: Findings, wanted: Callable[[ChainId], bool]) -> None:
    """Merged indexes, tree images and their descriptions, but those that somebody is making."""
    endings: dict[str, set[str]] = {}
    for name in own_names.own(store.layout.chains, own_names.CHAINS):
        digits, _, ending = name.partition(".")
        if digits:  # what is being written begins with a dot
            endings.setdefault(digits, set()).add(ending)
    for digits, there in sorted(endings.items()):
        chain = ChainId(f"sha256:{digits}")
        if not wanted(chain):
            continue
        with locks.chain_if_free(store.layout, chain) as is_held:
            if is_held:
                _check_chain(store, catalog, findings, chain, there)


def _check_chain(store: OpenStore, catalog: Catalog, findings: Findings, chain: ChainId, there: set[str]) -> None:
    def wrong(path: str, detail: str, what: str) -> None:
        findings.add("chain", path, detail, (chain, what), chains=[chain])

    if "index" in there:
        path = store.layout.chain_index(chain)
        try:
            read_through(path)
            index = open_index(path)
            index.verify()
            layers = len(catalog.stack(chain))
            if (index.kind, index.hash_key) != (CHAIN, hash_key(chain)) or (layers and index.layer_count != layers):
                wrong(path, "it is the index of another chain", "index")
        except (CorruptError, Unsupported) as error:
            wrong(path, str(error), "index")
        except FileNotFoundError:
            pass  # it was evicted meanwhile
        except OSError as error:
            wrong(path, f"it cannot be read: {reason(error)}", "index")
    if "json" in there:
        path = store.layout.chain_description(chain)
        try:
            with open(path, "rb") as file:
                needs = json.loads(unsealed(file.read(), path))
        except (CorruptError, ValueError) as error:
            wrong(path, str(error), "image")
            return
        except FileNotFoundError:
            return
        except OSError as error:
            wrong(path, f"it cannot be read: {reason(error)}", "image")
            return
        detail = _compare_image(store.layout.chain_image(chain), needs["image_bytes"], needs["image_digest"])
        if detail:
            wrong(store.layout.chain_image(chain), detail, "image")
        lost = {number for number in needs["packs"] if number not in catalog.packs}
        if lost:
            # Some may have come since then.
            lost -= {number for (number,) in store.database.read().execute("SELECT number FROM packs").fetchall()}
        if lost:
            wrong(path, f"it names packs that are gone: {', '.join(map(str, sorted(lost)))}", "image")


def _compare_image(path: str, size: int, digest: str) -> str:
    """What is wrong with a tree image, "" for nothing."""
    hasher = Hasher()
    try:
        with open(path, "rb", buffering=0) as file:
            length = fstat(file.fileno()).st_size
            while piece := file.read(PIECE_BYTES):
                hasher.update(piece)
    except OSError as error:
        return f"it cannot be read: {reason(error)}"
    if length != size:
        return f"it has {length} bytes, not {size}"
    return "" if hasher.digest().hex() == digest else "its bytes are not those of its digest"


def check_steps(layout: Layout, findings: Findings) -> None:
    """What builds remember of their steps."""
    directory = f"{layout.builds}/steps"
    if not os.path.isdir(directory):
        return
    for name in sorted(os.listdir(directory)):
        if name.startswith("."):
            continue
        path = f"{directory}/{name}"
        try:
            with open(path, "rb") as file:
                unsealed(file.read(), path)
        except FileNotFoundError:
            continue
        except (CorruptError, OSError) as error:
            findings.add("build step", path, reason(error), path)
