"""Which names in the directories of a store are its own. What somebody else put there is nobody's garbage: nothing
reads or removes it, and a check tells of it."""

from __future__ import annotations

import os
import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from layerstore.store.layout import Layout

_NUMBER = "(?:0|[1-9][0-9]{0,9})"
_HEX = "[0-9a-f]"


def _names(pattern: str) -> re.Pattern[str]:
    """With those of files that are being written (`durable.write_file`)."""
    return re.compile(rf"{pattern}|\.{pattern}\.layerstore-{_HEX}{{12}}")


PACKS = _names(rf"{_NUMBER}\.(?:pack|erofs)")
COLD = _names(rf"{_NUMBER}\.cold")
OBJECT_DIRECTORIES = re.compile(rf"{_HEX}{{2}}")
OBJECTS = re.compile(rf"{_HEX}{{62}}")
LAYERS = _names(rf"{_HEX}{{64}}\.(?:index|recipe)")
CHAINS = _names(rf"{_HEX}{{64}}\.(?:index|erofs|json)")
BLOBS = re.compile(rf"{_HEX}{{64}}")
CONTAINERS = re.compile(rf"{_HEX}{{64}}(?:\.{_HEX}{{16}})?")
FROZEN = re.compile(rf"{_HEX}{{12}}(?:\.name|\.below)?")
LOGS = _names(rf"{_HEX}{{32}}")
DOWNLOADS = re.compile(rf"{_HEX}{{64}}|{_HEX}{{16}}\.private")
STAGING = re.compile(rf"{_HEX}{{16}}|tmp[a-z0-9_]{{8}}")
CHAIN_MOUNTS = re.compile(rf"{_HEX}{{64}}\.{_HEX}{{16}}")
PACK_MOUNTS = re.compile(_NUMBER)
DIGESTS = _names(rf"digests\.{_NUMBER}")


def own(directory: str, names: re.Pattern[str]) -> list[str]:
    """Those of the names in a directory that are the store's. Raises `OSError`."""
    return list(filter(names.fullmatch, os.listdir(directory)))


def object_directories(layout: Layout) -> list[str]:
    """The names of those that hold objects; each was made with its first one. Raises `OSError`."""
    with os.scandir(layout.objects) as found:
        return [
            entry.name
            for entry in found
            if OBJECT_DIRECTORIES.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
        ]


def strangers(layout: Layout) -> list[str]:
    """The paths of all that is in the store's directories and not its own. Raises `OSError`."""
    directories = {
        layout.packs: PACKS,
        layout.cold: COLD,
        layout.objects: OBJECT_DIRECTORIES,
        layout.layers: LAYERS,
        layout.chains: CHAINS,
        layout.blobs: BLOBS,
        layout.containers: CONTAINERS,
        layout.frozen: FROZEN,
        layout.logs: LOGS,
        layout.downloads: DOWNLOADS,
        layout.staging: STAGING,
        layout.runtime: CONTAINERS,
        layout.borrowed: CONTAINERS,
        layout.chain_mounts: CHAIN_MOUNTS,
        layout.pack_mounts: PACK_MOUNTS,
    }
    found = []
    for directory, names in directories.items():
        found += _strangers_in(directory, names)
    for entry in os.scandir(layout.objects):
        if OBJECT_DIRECTORIES.fullmatch(entry.name):
            is_own = entry.is_dir(follow_symlinks=False)
            found += _strangers_in(entry.path, OBJECTS) if is_own else [entry.path]
    return sorted(found)


def _strangers_in(directory: str, names: re.Pattern[str]) -> list[str]:
    try:
        there = os.listdir(directory)
    except FileNotFoundError:
        return []
    return [f"{directory}/{name}" for name in there if not names.fullmatch(name)]
