"""List what is in a directory of an image, or at another path, without mounting it.

Names that begin with a dot are shown, too. Of a symbolic link to a directory the directory is listed; with -l the link
is shown, unless the path ends in "/".
"""

from __future__ import annotations

import stat
import time

from layerstore.cli import output

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence
    from typing import Any

    from layerstore._core.entry import Entry
    from layerstore.api import Store
    from layerstore.views.view import View


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="name or id")
    parser.add_argument("path", metavar="PATH", nargs="?", default="/", help="in the image (default: /)")
    parser.add_argument(
        "-l", "--long", action="store_true", help="permissions, links, owner, group, bytes, time (UTC), layer, name"
    )
    parser.add_argument("-R", "--recursive", action="store_true", help="directories in it, too, not through links")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="lines, or one JSON list")


def run(store: Store, args: argparse.Namespace) -> int:
    view = store.image(args.image).view
    listings = _listings(view, args.path, args.long, args.recursive)
    if args.format == "json":
        output.document([_document(name, entry) for _, entries in listings for name, entry in entries])
        return 0
    for number, (heading, entries) in enumerate(listings):
        if heading and args.recursive:
            print("\n" * bool(number) + output.shown(heading) + ":")
        for line in _long(entries) if args.long else (output.shown(name) for name, _ in entries):
            print(line)
    return 0


def _listings(view: View, path: str, long: bool, recursive: bool) -> Iterator[tuple[str, list[tuple[str, Entry]]]]:
    """Directories, by the path that leads there, with the names and entries in each; "" for what is no directory."""
    found = view.lookup(path, follow_symlinks=not long) or view.find(path, follow_symlinks=False)
    if not found.is_dir():
        yield "", [(path, found)]
        return
    tops = (top for top, _, _ in view.walk(path)) if recursive else iter([path])
    for top in tops:
        yield top, [(entry.name, entry) for entry in view.scandir(top)]


def _long(entries: Sequence[tuple[str, Entry]]) -> Iterator[str]:
    rows = [_row(name, entry) for name, entry in entries]
    widths = [max(map(len, column)) for column in zip(*(row[:-1] for row in rows), strict=True)]
    for row in rows:
        yield " ".join([*(cell.rjust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])


def _row(name: str, entry: Entry) -> list[str]:
    size = str(entry.size) if entry.rdev is None else "{}, {}".format(*entry.rdev)
    target = "" if entry.target is None else f" -> {entry.target}"
    owner = [str(entry.nlink), str(entry.uid), str(entry.gid)]
    times = [_time(entry.mtime_ns), str(entry.layer)]
    return [stat.filemode(entry.mode), *owner, size, *times, output.shown(name + target)]


def _time(ns: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(ns // 10**9))
    except (OverflowError, ValueError, OSError):
        return f"@{ns // 10**9}"  # a year that the calendar of the system does not have


def _document(name: str, entry: Entry) -> dict[str, Any]:
    """`name` is as in the lines: as it was asked for, or as its directory has it; `path` is where it is."""
    fields = ("path", "type", "mode", "uid", "gid", "size", "mtime_ns", "nlink", "layer", "target", "digest", "rdev")
    xattrs = {xattr: value.hex() for xattr, value in entry.xattrs.items()}
    return {"name": name} | {field: getattr(entry, field) for field in fields} | {"xattrs": xattrs}
