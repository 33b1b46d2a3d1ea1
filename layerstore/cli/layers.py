"""Show what each layer of an image brought, counted in paths and bytes, and what later layers left of it. With PATH,
show every version of it in the layers, the topmost first; symbolic links above its last component are followed, and a
column tells where to. With --changes, show what one layer changed: A added, C
changed, D deleted, a path a line."""

from __future__ import annotations

from layerstore.cli import output
from layerstore.results import LayerSummary
from layerstore.types import DiffId

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from layerstore.api import Image, Store
    from layerstore.results import Version

_COUNTED = ("size_bytes", "added", "changed", "hidden", "added_bytes", "wasted_bytes")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("path", metavar="PATH", nargs="?", help="show the versions of this path")
    what.add_argument("--changes", metavar="LAYER", type=int, help="show what this layer changed, by its number")
    parser.add_argument("--no-trunc", action="store_true", help="print ids and commands whole")
    output.add_format(parser)


def run(store: Store, args: argparse.Namespace) -> int:
    image = store.image(args.image)
    if args.changes is not None:
        output.changes(image.layer_changes(args.changes), args.format)
    elif args.path is not None:
        _versions(image, args.path, args.no_trunc, args.format)
    else:
        _layers(image, args.no_trunc, args.format)
    return 0


def _layers(image: Image, whole: bool, form: str) -> None:
    layers = image.layers()
    if form == "json":
        output.document([vars(layer) for layer in layers])
        return
    total = LayerSummary(0, DiffId(""), "", *(sum(vars(layer)[field] for layer in layers) for field in _COUNTED))
    columns: output.Columns[LayerSummary] = {
        "LAYER": (lambda layer: "total" if layer is total else layer.number, str),
        "DIFF ID": (lambda layer: layer.diff_id, str if whole else output.short),
        "SIZE": (lambda layer: layer.size_bytes, output.size),
        "ADDED": (lambda layer: layer.added, str),
        "CHANGED": (lambda layer: layer.changed, str),
        "HIDDEN": (lambda layer: layer.hidden, str),
        "WASTED": (lambda layer: layer.wasted_bytes, output.size),
        "CREATED BY": (lambda layer: layer.created_by, str if whole else output.shortened),
    }
    output.listing([*layers, total], columns, form)


def _versions(image: Image, path: str, whole: bool, form: str) -> None:
    versions = image.versions(path)
    if form == "json":
        output.document([vars(version) for version in versions])
        return
    columns: output.Columns[Version] = {
        "PATH": (lambda version: version.path, str),
        "LAYER": (lambda version: version.layer, str),
        "DIFF ID": (lambda version: version.diff_id, str if whole else output.short),
        "KIND": (_kind, str),
        "MODE": (lambda version: version.mode, "{:04o}".format),
        "OWNER": (lambda version: f"{version.uid}:{version.gid}", str),
        "SIZE": (lambda version: version.size_bytes, output.size),
        "MODIFIED": (lambda version: version.mtime_ns, output.time),
        "ENDED": (_ended, str),
    }
    if all(version.path == "/" + path.strip("/") for version in versions):
        del columns["PATH"]
    output.listing(versions, columns, form)


def _kind(version: Version) -> str:
    if version.linked_to is not None:
        return f"{version.kind}, linked to {version.linked_to}"
    return f"{version.kind} to {version.target}" if version.target is not None else version.kind


def _ended(version: Version) -> str:
    if version.ended_how is None:
        return ""
    if not version.ended_how.startswith("directory "):
        return f"{version.ended_how} by layer {version.ended_by}"
    return f"{version.ended_at} {version.ended_how.removeprefix('directory ')} by layer {version.ended_by}"
