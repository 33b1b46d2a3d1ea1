"""Stores on a pool of their own and on the tests' own file system, and where containers of them are."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from waiting import wait_for

from layerstore import Container, Store
from layerstore._core import mount

POOL_BYTES = 512 << 20
SEARCH_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"

needs_mkfs = pytest.mark.skipif(
    shutil.which("mkfs.xfs", path=SEARCH_PATH) is None,
    reason="mkfs.xfs is not installed; ci/packages.txt says xfsprogs",
)
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or not mount.features().may_mount, reason="attaching a pool needs root"
)
POOL_AND_HOST = [pytest.param("pool", marks=needs_mkfs), "host"]


@contextmanager
def pool_store(directory: Path) -> Iterator[Store]:
    """A store on a new pool below `directory`, gone at the end with all that is mounted of it."""
    with Store(directory / "store", create=True, pool_bytes=POOL_BYTES) as store:
        if store.pool is None:
            pytest.skip("the file system of the tests has reflink already: no pool is made")
        yield store
        store.remove(store.containers(), force=True)
    pool = store.pool
    # On a busy machine something may have had a file of it open at that moment; then it stays until it is asked again.
    wait_for(lambda: not os.path.ismount(pool.target) or pool.detach())


@contextmanager
def store_on(place: str, directory: Path) -> Iterator[Store]:
    """A store below `directory`, `place` being one of `POOL_AND_HOST`."""
    with pool_store(directory) if place == "pool" else Store(directory / "store", create=True) as store:
        yield store


def directory_of(container: Container) -> Path:
    return container.root.parent


def upper_of(container: Container) -> Path:
    return directory_of(container) / "upper"
