"""Containers: their directories, and the logs of those of the extent driver."""

from __future__ import annotations

import mmap
import os

from layerstore._core.log import HEADER_BYTES, SOURCE_LOG, LogReader
from layerstore.checking.findings import reason, tried
from layerstore.checking.hashing import read_through
from layerstore.errors import CorruptError, Unsupported
from layerstore.extents import log_rows
from layerstore.extents.log import chain_bytes
from layerstore.naming import about, fstat, open_fd
from layerstore.store import frozen
from layerstore.store.locks import mounting, try_lock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.checking.catalog import Catalog
    from layerstore.checking.findings import Findings
    from layerstore.store.layout import Layout
    from layerstore.store.opened import OpenStore
    from layerstore.types import ChainId


_IS_OVERLAY = "SELECT 1 FROM containers WHERE id = ? AND driver = 'overlay'"


def check_containers(store: OpenStore, catalog: Catalog, findings: Findings, quick: bool) -> None:
    """Each container has what its driver needs, and each log is whole and needs what the database says."""
    chains: dict[str, ChainId] = {}
    for container, image, chain, driver, log in catalog.containers:
        if image in catalog.images and catalog.images[image][0] != chain:
            detail = f"container {container[:12]} is of chain {chain}, which is not its image's"
            findings.add("container", store.layout.database, detail, container)
        if driver == "overlay":
            lost = _lost_directories(store.layout, container)
            if lost:
                with mounting(store.layout, [container]):  # no rollback has one of them away
                    lost = _lost_directories(store.layout, container)
                # Who removes a container removes its row first.
                if lost and store.database.read().execute(_IS_OVERLAY, (container,)).fetchone():
                    detail = f"it has no directory {' and '.join(lost)}"
                    findings.add("container", store.layout.container(container), detail, container)
        elif log is not None:
            chains[log] = chain
    lengths: dict[str, int | None] = {}
    for log in catalog.logs:
        before = len(findings.damages)
        lengths[log] = _check_log(store.layout, catalog, findings, log, chains.get(log), quick)
        if not log_rows.exists(store.database.read(), log):  # it was removed meanwhile
            del findings.damages[before:]
            lengths[log] = None
    for used, needed, who in _needs(catalog):
        length = lengths.get(used, 0)
        if length is not None and length < needed:
            detail = f"{who} needs {needed} bytes of it, and {length} are whole"
            findings.add("log", store.layout.log(used), detail, used)


def _needs(catalog: Catalog) -> list[tuple[str, int, str]]:
    """Log, how much of it, and who needs that."""
    needs = [(used, length, f"log {log}") for log, uses in catalog.logs.items() for used, length in uses.items()]
    needs += [(log, length, f"snapshot {name!r}") for _, name, log, length in catalog.snapshots if log is not None]
    return needs


def _lost_directories(layout: Layout, container: str) -> list[str]:
    path = layout.container(container)
    lost = [name for name in ("upper", "root") if not os.path.isdir(f"{path}/{name}")]
    if "upper" in lost and os.path.isdir(f"{path}/fresh"):
        lost.remove("upper")  # whoever uses it next finishes what was interrupted
    stood_on = sorted(set().union(*frozen.stacks(path)))
    return lost + [f"frozen/{name}" for name in stood_on if not os.path.isdir(frozen.path(layout, name))]


def _check_log(
    layout: Layout, catalog: Catalog, findings: Findings, log: str, chain: ChainId | None, quick: bool
) -> int | None:
    """How many of its bytes are whole operations; None where that was told already, or the log is gone by now."""
    path = layout.log(log)

    def wrong(detail: str) -> None:
        findings.add("log", path, detail, log)

    def whole() -> int | None:
        with open_fd(path, os.O_RDONLY) as fd:
            return looked_at(fd)

    def looked_at(fd: int) -> int | None:
        size = fstat(fd).st_size
        if size < HEADER_BYTES:
            wrong(f"it has {size} bytes, less than its header")
            return None
        read_through(path)
        with about(path):
            mapped = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
        reader = LogReader(mapped, size if quick else 0)
        header = reader.header
        if header.id.hex() != log or (chain is not None and header.chain_id != chain_bytes(chain)):
            wrong("it is the log of another layer")
            return None
        uses = {header.base_id.hex(): header.base_length} if header.base_length else {}
        sources = {record.payload.hex() for record in reader if record.type == SOURCE_LOG}
        noted = catalog.logs[log]
        if any(noted.get(used) != length for used, length in uses.items()) or sources | set(uses) != set(noted):
            wrong("the logs that it needs are not those that the database knows")
        # While it is written to, the end may be an operation half appended.
        if reader.end < size and try_lock(fd, exclusive=False):
            detail = f"{size - reader.end} bytes at its end are no whole operation: {reader.reason}"
            if reader.later:
                wrong(detail)
            else:
                findings.note("log", path, f"{detail}; a crash leaves that, too")
        return int(reader.end)

    try:
        return tried(whole)
    except FileNotFoundError:
        wrong("it is missing")
        return None
    except (CorruptError, Unsupported) as error:
        wrong(str(error))
        return None
    except OSError as error:
        wrong(f"it cannot be read: {reason(error)}")
        return None
