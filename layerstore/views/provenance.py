"""Which layer brought what: summaries and changes of the layers of a stack, the versions of a path."""

from __future__ import annotations

import posixpath
import stat
from typing import TYPE_CHECKING

from layerstore._core import provenance as core
from layerstore._core.index import LOWER_LINK
from layerstore.results import Change, LayerSummary, Version
from layerstore.trees.paths import names_of, parent_of
from layerstore.types import decode_path, encode_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from layerstore._core.index import Index
    from layerstore._core.view import Tree
    from layerstore.types import DiffId

_KINDS = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symlink",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}
_ENDS = {
    core.REPLACED: "replaced",
    core.WHITEOUT: "deleted",
    core.ABOVE_WHITEOUT: "directory deleted",
    core.ABOVE_REPLACED: "directory replaced",
    core.ABOVE_OPAQUE: "directory emptied",
}


def layers(
    indexes: Sequence[Index], diff_ids: Sequence[DiffId], created_by: Sequence[str], sizes_bytes: Sequence[int]
) -> list[LayerSummary]:
    """A summary of each layer of a stack, given what else is known of each; all are bottom first."""
    found = zip(_trace(indexes).figures, diff_ids, created_by, sizes_bytes, strict=True) if indexes else ()
    return [
        LayerSummary(
            number=number,
            diff_id=diff_id,
            created_by=step,
            size_bytes=size,
            added=figures.added,
            changed=figures.changed,
            hidden=figures.hidden,
            added_bytes=figures.added_bytes,
            wasted_bytes=figures.wasted_bytes,
        )
        for number, (figures, diff_id, step, size) in enumerate(found)
    ]


def changes(indexes: Sequence[Index]) -> list[Change]:
    """What the topmost layer of a stack adds, changes and hides in what those below it show, sorted by path."""
    top = len(indexes) - 1
    lives = _trace(indexes).of_layer(top)
    found = {life.path: "C" if life.is_change else "A" for life in lives if life.layer == top}
    found |= {life.path: "D" for life in lives if life.end_layer == top and _is_told(life, indexes[top])}
    return [Change(kind, "/" + decode_path(path)) for path, kind in sorted(found.items())]


def _is_told(life: core.Life, layer: Index) -> bool:
    """Whether what a layer hid is told itself: the directory that it was in is still there, or there again."""
    if life.end == core.ABOVE_OPAQUE:
        return layer.lookup(parent_of(life.path)) is not None
    return life.end == core.WHITEOUT


def versions(
    indexes: Sequence[Index], diff_ids: Sequence[DiffId], tree: Tree | None, path: str | bytes
) -> list[Version]:
    """Every version of a path and of where it leads in a stack, the topmost first. `tree` is what the stack shows, None
    for no layers. Raises `FileNotFoundError` when there is none."""
    places = () if tree is None else _places(tree, path)
    found = [_version(indexes, diff_ids, life) for place in places for life in core.versions_of(indexes, place)[::-1]]
    if not found:
        import errno

        raise FileNotFoundError(errno.ENOENT, "no layer of the image ever had it", path)
    return sorted(found, key=lambda version: -version.layer)


def _places(tree: Tree, path: str | bytes) -> Iterable[bytes]:
    """Where a path leads, and itself as it is spelled: there may have been directories where there are links now."""
    parts = names_of(encode_path(path))
    leads = _followed(tree, parts)
    # ".." leads up from where a link leads, so that without following it the spelling means something else.
    return (leads,) if b".." in parts else dict.fromkeys((leads, b"/".join(parts)))


def _followed(tree: Tree, parts: list[bytes]) -> bytes:
    """A path as an index spells it when the symbolic links in it are followed, but for one that is its last component.

    From the first component on that the tree does not show as a directory, it is taken as it is spelled.
    """
    names = parts[:-1] if parts[-1:] != [b".."] else parts
    for count in reversed(range(len(names) + 1)):
        above = tree.lookup(b"/".join(names[:count]) or b"/")
        if above is not None and above.is_dir():
            return _clean([*names_of(encode_path(above.path)), *parts[count:]])
    raise AssertionError("a tree has a root, which is a directory")


def _clean(parts: Iterable[bytes]) -> bytes:
    """A path as an index spells it, from its components: ".." leads up, and no further than the root."""
    return posixpath.normpath(b"/" + b"/".join(parts)).strip(b"/")


def _trace(indexes: Sequence[Index]) -> core.Provenance:
    for index in indexes:
        index.verify()
    return core.Provenance(indexes)


def _version(indexes: Sequence[Index], diff_ids: Sequence[DiffId], life: core.Life) -> Version:
    record = indexes[life.layer].record(life.record)
    shown = record
    if record.flags & LOWER_LINK:
        layer, number = core.follow(indexes, life.layer, life.record)
        shown = indexes[layer].record(number)
    return Version(
        path="/" + decode_path(record.path),
        layer=life.layer,
        diff_id=diff_ids[life.layer],
        kind=_KINDS[stat.S_IFMT(shown.mode)],
        mode=stat.S_IMODE(shown.mode),
        uid=shown.uid,
        gid=shown.gid,
        size_bytes=shown.size if stat.S_ISREG(shown.mode) else 0,
        mtime_ns=shown.mtime_ns,
        target=None if shown.target is None else decode_path(shown.target),
        linked_to="/" + decode_path(record.target or b"") if record.flags & LOWER_LINK else None,
        ended_by=life.end_layer,
        ended_how=_ENDS.get(life.end),
        ended_at=_ended_at(indexes, life),
    )


def _ended_at(indexes: Sequence[Index], life: core.Life) -> str | None:
    if life.end_layer is None or life.end_record is None:
        return None
    return "/" + decode_path(indexes[life.end_layer].record(life.end_record).path)
