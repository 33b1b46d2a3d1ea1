"""Show what each layer of an image brought, counted in paths and bytes, and what later layers left of it. With PATH,
show every version of it in the layers, the topmost first; symbolic links above its last component are followed, and a
column tells where to. With --changes, show what one layer changed: A added, C
changed, D deleted, a path a line."""

from __future__ import annotations

import json

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from typing import Any

    from layerstore.api import Image, Store
    from layerstore.results import LayerSummary, Version


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
        _document(layers)
        return
    rows: list[dict[str, Any]] = [
        {
            "LAYER": layer.number,
            "DIFF ID": layer.diff_id,
            "SIZE": layer.size_bytes,
            "ADDED": layer.added,
            "CHANGED": layer.changed,
            "HIDDEN": layer.hidden,
            "WASTED": layer.wasted_bytes,
            "CREATED BY": layer.created_by,
        }
        for layer in layers
    ]
    rows.append(_total(rows))
    columns: output.Columns = {
        "LAYER": str,
        "DIFF ID": str if whole else _short,
        "SIZE": output.size,
        "ADDED": str,
        "CHANGED": str,
        "HIDDEN": str,
        "WASTED": output.size,
        "CREATED BY": str if whole else output.shortened,
    }
    output.listing(rows, columns, form)


def _document(results: Sequence[LayerSummary] | Sequence[Version]) -> None:
    print(json.dumps([vars(result) for result in results], indent=2))


def _total(rows: list[dict[str, Any]]) -> dict[str, Any]:
    sums = {heading: sum(row[heading] for row in rows) for heading in ("SIZE", "ADDED", "CHANGED", "HIDDEN", "WASTED")}
    return {"LAYER": "total", "DIFF ID": "", **sums, "CREATED BY": ""}


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12]


def _versions(image: Image, path: str, whole: bool, form: str) -> None:
    versions = image.versions(path)
    if form == "json":
        _document(versions)
        return
    rows = [
        {
            "LAYER": version.layer,
            "DIFF ID": version.diff_id,
            "KIND": _kind(version),
            "MODE": version.mode,
            "OWNER": f"{version.uid}:{version.gid}",
            "SIZE": version.size_bytes,
            "MODIFIED": version.mtime_ns,
            "ENDED": _ended(version),
        }
        for version in versions
    ]
    columns: output.Columns = {
        "LAYER": str,
        "DIFF ID": str if whole else _short,
        "KIND": str,
        "MODE": "{:04o}".format,
        "OWNER": str,
        "SIZE": output.size,
        "MODIFIED": output.time,
        "ENDED": str,
    }
    if any(version.path != "/" + path.strip("/") for version in versions):
        rows = [{"PATH": version.path, **row} for version, row in zip(versions, rows, strict=True)]
        columns = {"PATH": str, **columns}
    output.listing(rows, columns, form)


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
